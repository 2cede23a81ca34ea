#!/bin/sh
# Builds the tests under a sanitizer and runs them: sh tests/sanitize.sh [address|thread] [ctest options]
# address: AddressSanitizer and UndefinedBehaviorSanitizer (preset cpu-asan, the default);
# thread: ThreadSanitizer (preset cpu-tsan). Any finding fails the test it was in.
# Runs the programs labelled unit (the contract and random-workload tests of the engine, HTTP and
# gRPC are among them). Left out: golden and e2e, which compare numbers and texts of a real model and
# take the same code, lint, and cases tagged [slow].
# test_grpc and test_serve run under address only: ThreadSanitizer cannot see the synchronisation
# inside Debian's gRPC and Abseil, which are not built with it, and reports races in them (and
# crashes in their headers, which behave otherwise when they are compiled under it).
# HEADWATER_SANITIZE_TARGETS="test_http test_grpc" builds and runs just those programs.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
kind=${1:-address}
[ $# -eq 0 ] || shift
case $kind in
  address) preset=cpu-asan ;;
  thread) preset=cpu-tsan ;;
  *)
    echo "usage: sh tests/sanitize.sh [address|thread] [ctest options]" >&2
    exit 2
    ;;
esac

[ "$kind" = address ] || set -- --exclude-regex '^test_(grpc|serve)$' "$@"

export ASAN_OPTIONS="detect_stack_use_after_return=1:strict_string_checks=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="second_deadlock_stack=1:${TSAN_OPTIONS:-}"

sh docker/install-deps.sh --tests
targets=${HEADWATER_SANITIZE_TARGETS:-unit_tests}
BUILD_PRESET=$preset sh docker/build.sh $targets
if [ "$targets" != unit_tests ]; then
  set -- --tests-regex "^($(echo "$targets" | tr ' ' '|'))\$" "$@"
fi
exec ctest --test-dir build/$preset --output-on-failure --label-regex unit --label-exclude slow "$@"
