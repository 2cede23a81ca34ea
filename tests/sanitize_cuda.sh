#!/bin/bash
# Runs the GPU's tests under compute-sanitizer and prints a table: bash tests/sanitize_cuda.sh [BINARIES]
# BINARIES: where the test programs are (build/release). Every case of the kernels' tests runs under
# memcheck, racecheck, initcheck and synccheck, what is chosen below of the engine's under memcheck
# and initcheck, each in a process of its own. LIMIT: seconds for one (300); JOBS at once (half of the
# CPUs); LOGS: their folder (sanitizer-logs); ONLY: a regular expression of "tool program case".
# racecheck leaves out what is tagged [cublas]: it reports hazards inside cuBLAS' own kernels. Fails on
# any finding, of which the first few stand under their row, and where a case fails; a case that meets
# its limit says what was found until then. Left out: test_device_faults and test_serve, which break
# the device on purpose.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binaries=${1:-$root/build/release}
export LIMIT=${LIMIT:-300} LOGS=${LOGS:-sanitizer-logs}
mkdir -p "$LOGS"

program() { find "$binaries" -type f -name "$1" -perm -u+x | head -n 1; }

pieces() { # lines: tool, program, case
  cases() { "$(program "$1")" --list-test-names-only "$2" | sed 's/^ *//; /^$/d' || true; }
  for name in test_linear test_elements test_attention test_top_logits test_token_draw; do
    for tool in memcheck racecheck initcheck synccheck; do
      tags='[cuda]'
      [ $tool != racecheck ] || tags='[cuda]~[cublas]'
      cases $name "$tags" | while read -r case; do printf '%s\t%s\t%s\n' $tool "$(program $name)" "$case"; done
    done
  done
  for case in "Contract: a window as long as the context is dense, bit for bit" \
    "CudaOps: hits, forks, neighbours and preemption leave a request its logprobs" \
    "Layer windows: a request may lift a policy, not the model's window"; do
    for tool in memcheck initcheck; do
      printf '%s\t%s\t%s\n' $tool "$(program test_engine_core)" "$case"
    done
  done
}

run_piece() {
  IFS=$'\t' read -r tool program case <<<"$1"
  log=$LOGS/$tool-$(basename "$program")-$(tr -c 'a-zA-Z0-9\n' _ <<<"$case" | cut -c 1-120).log
  start=$SECONDS code=0
  timeout "$LIMIT" compute-sanitizer --tool "$tool" --error-exitcode 99 "$program" --device cuda \
    "${case//,/\\,}" >"$log" 2>&1 || code=$?
  found=$(sed -n 's/.*ERROR SUMMARY: \([0-9]*\) error.*/\1/p; s/.*RACECHECK SUMMARY: \([0-9]*\) hazard.*/\1/p' "$log" | tail -n 1)
  case $code in
    0) result=clean ;;
    124) result="time limit, $(grep -c '^=========.*\(Invalid\|Error\|hazard\|Uninitialized\|Barrier\)' "$log" || true) found" ;;
    *) result="FAILED (exit $code, ${found:-?} found)" ;;
  esac
  findings=$(grep -E '^=+ .*(Race reported|Invalid|Uninitialized|Barrier error)' "$log" | sort -u | head -n 3 | cut -c 1-300 || true)
  printf '%-9s | %-16s | %-70s | %4d s | %s\n%s' "$tool" "$(basename "$program")" "${case:0:70}" $((SECONDS - start)) \
    "$result" "${findings:+$findings$'\n'}"
}
export -f run_piece

pieces | grep -E "${ONLY:-.}" >"$LOGS/pieces.txt" || { echo "no case to run: $binaries, ONLY=${ONLY:-}" >&2; exit 1; }
xargs -d '\n' -P "${JOBS:-$((($(nproc) + 1) / 2))}" -I{} bash -c 'run_piece "$1"' _ {} <"$LOGS/pieces.txt" | tee "$LOGS/table.txt"
! grep -qE 'FAILED|limit, [1-9]' "$LOGS/table.txt"
