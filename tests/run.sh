#!/bin/sh
# Builds everything and runs the default tests: sh tests/run.sh [ctest options]
# The slow ones too: sh tests/run.sh --slow. The exit code says whether all passed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
results=build/release/tests.xml

if [ "${1:-}" = --slow ]; then
  shift
  sh docker/install-deps.sh --tests --image
else
  set -- --label-exclude slow "$@"
  sh docker/install-deps.sh --tests
fi
sh docker/build.sh all
sh docker/fetch-model.sh >/dev/null ||
  echo "tests/run.sh: without the model, the tests that need it are skipped" >&2

status=0
rm -f $results
ctest --test-dir build/release --output-on-failure --output-junit "$root/$results" "$@" || status=$?

# CTest counts programs; inside them are Catch2's and pytest's cases.
number() { sed -n "s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" $results | head -n 1; }
cases() { # cases PATTERN: sums the number that PATTERN captures over the tests' output
  sed -n "s/.*$1.*/\1/p" build/release/Testing/Temporary/LastTest.log | awk '{ n += $1 } END { print n + 0 }'
}
[ -s $results ] || { echo "tests/run.sh: ctest wrote no results" >&2; exit 1; }
failed=$(number failures)
skipped=$(number skipped)
passed=$(($(number tests) - failed - skipped))
echo
echo "cases in them: $(($(cases 'in \([0-9]*\) test case') + $(cases 'test cases:.* \([0-9]*\) passed'))) C++, $(cases ' \([0-9][0-9]*\) passed.* in [0-9]') end-to-end"
echo "$passed passed, $failed failed, $skipped skipped"
exit $status
