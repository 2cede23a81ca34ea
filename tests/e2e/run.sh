#!/bin/sh
# Runs the end-to-end tests: run.sh BINARY BUILD_DIR [pytest options]
# Their Python packages live in BUILD_DIR/e2e-venv; without the network to fill it, or without the
# model, the tests are skipped (exit 77).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
HEADWATER_BIN=$1
venv=$2/e2e-venv
shift 2
export HEADWATER_BIN

skip() {
  echo "e2e: skipped: $*"
  exit 77
}

if ! cmp -s "$here/requirements.txt" "$venv/installed"; then
  python3 -m venv "$venv" || skip "python3 has no venv (docker/install-deps.sh --tests)"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" ||
    skip "PyPI is not reachable, so $here/requirements.txt is not installed"
  cp "$here/requirements.txt" "$venv/installed"
fi
if [ -z "${HEADWATER_SMOLLM2:-}" ]; then
  HEADWATER_SMOLLM2=$(sh "$here/../../docker/fetch-model.sh") || skip "no model"
  export HEADWATER_SMOLLM2
fi
exec "$venv/bin/python" -m pytest -p no:cacheprovider --tb=short --durations=5 "$here" "$@"
