#!/bin/sh
# tests/fuzz/run.sh [SECONDS] [TARGET...]: builds the libFuzzer targets with clang and runs each (or
# the named ones) for SECONDS (default 30). Fails on a crash, leaving the input that caused it.
# Environment: CXX (default clang++), BUILD_DIR (default build/fuzz).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD_DIR:-$root/build/fuzz}
seconds=${1:-30}
[ $# -eq 0 ] || shift

# Every library carries the coverage counters; only the targets link the fuzzer itself.
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DCMAKE_CXX_COMPILER="${CXX:-clang++}" -DCMAKE_CXX_FLAGS="-fsanitize=fuzzer-no-link -fno-sanitize-recover=all" \
  -DHEADWATER_SANITIZE=address,undefined -DHEADWATER_BUILD_FUZZ=ON -DHEADWATER_CUDA=off
ninja -C "$build" make_seeds "${@:-fuzzers}"

"$build/tests/fuzz/make_seeds" "$build/seeds"
failed=""
for fuzzer in "$build"/fuzz/fuzz_*; do
  name=$(basename "$fuzzer")
  case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
  mkdir -p "$build/corpus/$name" "$build/seeds/$name"
  echo "== $name, $seconds s"
  "$fuzzer" -max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=10 \
    -max_len=65536 -print_final_stats=1 -artifact_prefix="$build/$name-" \
    "$build/corpus/$name" "$build/seeds/$name" > "$build/$name.log" 2>&1 || failed="$failed $name"
  grep -E "number_of_executed_units|peak_rss_mb" "$build/$name.log" || tail -40 "$build/$name.log"
done
if [ -n "$failed" ]; then
  for name in $failed; do tail -40 "$build/$name.log"; done
  echo "failed:$failed" >&2
  exit 1
fi
