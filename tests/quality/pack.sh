#!/bin/sh
# Packs head_eval for another x86-64 Linux machine: sh tests/quality/pack.sh OUTDIR [MODEL...]
# OUTDIR gets bin/, lib/ (its shared libraries and their loader), the head tables, the models, the
# open set if $HEADWATER_SHARED has it, and run.sh, which starts one process per two cores:
#   OUTDIR/run.sh RESULTS [head_eval options]     then: head_report.py RESULTS/*.jsonl
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$1
shift
binary=$root/build/release/tests/quality/head_eval
mkdir -p "$out/bin" "$out/lib"
cp "$binary" "$out/bin/head_eval"
strip "$out/bin/head_eval"
ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\).*/\1/p' |
  while read -r library; do cp -L "$library" "$out/lib/"; done
cp "$root"/tests/quality/head_report.py "$root"/tests/quality/peer_kvpress.py "$out/"
[ ! -d "$root/configs/head_tables" ] || cp "$root"/configs/head_tables/*.json "$out/"
for model in "$@"; do cp -rL "$model" "$out/"; done
set=${HEADWATER_SHARED:-$root/../shared}/models/needle-24m/eval-open.jsonl.gz
[ ! -f "$set" ] || gunzip -c "$set" >"$out/open.jsonl"
cat >"$out/run.sh" <<'RUN'
#!/bin/sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
results=$1
shift
mkdir -p "$results"
n=${SHARDS:-$((($(nproc) + 1) / 2))}
threads=$(($(nproc) / n))
[ "$threads" -ge 1 ] || threads=1
loader=$(echo "$here"/lib/ld-linux*)
i=0
while [ $i -lt "$n" ]; do
  "$loader" --library-path "$here/lib" "$here/bin/head_eval" "$@" --threads $threads \
    --shard $i/"$n" --output "$results/shard-$i-of-$n.jsonl" 2>"$results/shard-$i-of-$n.log" &
  i=$((i + 1))
done
wait
tail -qn 1 "$results"/*.log
RUN
chmod +x "$out/run.sh"
du -sh "$out"
