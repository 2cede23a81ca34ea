#!/bin/sh
# Configures (once) and builds a preset: sh docker/build.sh [TARGET...]  (default: all)
# BUILD_PRESET names one of CMakePresets.json other than release.
# Runs as many compilers as there are cores, but no more than memory carries (1.5 GB each);
# BUILD_JOBS overrides.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

if [ -z "${BUILD_JOBS:-}" ]; then
  memory_kb=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  if [ "$limit" != max ] && [ $((limit / 1024)) -lt "$memory_kb" ]; then
    memory_kb=$((limit / 1024))
  fi
  BUILD_JOBS=$((memory_kb / 1500000))
  [ "$BUILD_JOBS" -ge 1 ] || BUILD_JOBS=1
  [ "$BUILD_JOBS" -le "$(nproc)" ] || BUILD_JOBS=$(nproc)
fi

# Lets ccache serve a clone in another directory, or the same compiler in another root.
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1 CCACHE_COMPILERCHECK=content

preset=${BUILD_PRESET:-release}
[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset"
[ $# -gt 0 ] || set -- all
cmake --build "build/$preset" --parallel "$BUILD_JOBS" --target "$@"
