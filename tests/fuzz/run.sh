#!/bin/sh
# tests/fuzz/run.sh [SECONDS] [TARGET...]: builds the libFuzzer targets with clang and runs each (or
# the named ones) for SECONDS (default 30), as many at once as there are cores. Fails on a crash,
# leaving the input that caused it.
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
# As many at once as there are cores; each writes its log, and its name into failed if it fails.
: > "$build/failed"
run_one='
  name=$1 build=$2 seconds=$3
  mkdir -p "$build/corpus/$name" "$build/seeds/$name"
  "$build/fuzz/$name" -max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=10 \
    -max_len=65536 -print_final_stats=1 -artifact_prefix="$build/$name-" \
    "$build/corpus/$name" "$build/seeds/$name" > "$build/$name.log" 2>&1 || echo "$name" >> "$build/failed"'
names=""
for fuzzer in "$build"/fuzz/fuzz_*; do
  name=$(basename "$fuzzer")
  case " ${*:-$name} " in *" $name "*) names="$names $name" ;; esac
done
printf '%s\n' $names | xargs -P "$(nproc)" -I NAME sh -c "$run_one" run_one NAME "$build" "$seconds"

for name in $names; do
  echo "== $name, $seconds s"
  grep -E "number_of_executed_units|peak_rss_mb" "$build/$name.log" || tail -40 "$build/$name.log"
done
if [ -s "$build/failed" ]; then
  while read -r name; do tail -40 "$build/$name.log"; done < "$build/failed"
  echo "failed: $(tr '\n' ' ' < "$build/failed")" >&2
  exit 1
fi
