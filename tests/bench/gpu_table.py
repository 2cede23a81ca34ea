#!/usr/bin/env python3
"""The README's table of a GPU's speed, on Llama-3-8B's shape with random weights; beside llama.cpp, if it is
given, in the same run, taking turns:

    python3 tests/bench/gpu_table.py --device cuda
    python3 tests/bench/gpu_table.py --device cuda --llama-bench llama.cpp/build/bin/llama-bench \\
        --gguf f16=/dev/shm/f16.gguf,q8_0=/dev/shm/q8_0.gguf,q4_k=/dev/shm/q4_k.gguf

Files that do not exist are written (random_gguf.py). Ours are figures of `headwater bench --offline`: the
floor is the bytes that must be read over the copy bandwidth that it measures, or the FLOPs over its largest
product. llama.cpp's are llama-bench's and, of several streams and of long contexts, those of the
llama-batched-bench beside it. --only picks rows by patterns: 'f16/*', '*/pp8192'. Standard library only.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import headwater  # noqa: E402
import random_gguf  # noqa: E402

DECODED = 64  # tokens of each stream
LONG = 32768  # from here on the fewest repetitions


class Row:
    """A decode of `batch` streams behind `depth` tokens each, or (batch == 0) a prefill of `depth`."""

    def __init__(self, weights, batch, depth):
        self.weights, self.batch, self.depth = weights, batch, depth
        self.ours, self.theirs, self.floors = [], [], []

    def name(self):
        if self.batch == 0:
            return f"{self.weights}/pp{self.depth}"
        return f"{self.weights}/tg{self.batch}" + (f"@{self.depth}" if self.depth else "")

    def label(self):
        weights = {"f16": "F16", "q8_0": "Q8_0", "q4_k": "Q4_K (Q6_K output)"}[self.weights]
        if self.batch == 0:
            return f"{weights}, prefill of {self.depth:,}"
        streams = "one stream" if self.batch == 1 else f"{self.batch} streams"
        return f"{weights}, decode, {streams}" + (f" at {self.depth:,}" if self.depth else "")

    def group(self):
        """Rows of one group are measured by one process."""
        length = 0 if self.batch == 0 and self.depth < LONG else self.depth
        return self.weights, "long" if length >= LONG else length


def rows():
    for weights in ("f16", "q8_0", "q4_k"):
        yield from (Row(weights, batch, 0) for batch in (1, 8, 16, 64))
        if weights == "f16":
            yield Row(weights, 64, 1024)
            yield from (Row(weights, 1, depth) for depth in (LONG, 122880))
        yield from (Row(weights, 0, prompt) for prompt in (512, 8192))
        if weights == "f16":
            yield from (Row(weights, 0, prompt) for prompt in (LONG, 122880))


def joined(values):
    return ",".join(map(str, sorted(set(values))))


class Clock:
    def __init__(self, limit):
        self.begin, self.limit = time.perf_counter(), limit

    def run(self, command, **kwargs):
        """Standard output; empty if no time is left or the command failed."""
        begin, left = time.perf_counter(), self.limit - (time.perf_counter() - self.begin)
        if left <= 0:
            return ""
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=left, **kwargs)
        except subprocess.TimeoutExpired:
            print(f"out of time: {command}", file=sys.stderr)
            return ""
        print(f"{time.perf_counter() - begin:6.1f} s: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
        if done.returncode != 0:
            print(f"ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
        return done.stdout


def measure_ours(args, clock, group, members, ceilings):
    is_long = group[1] == "long"
    decodes = [row for row in members if row.batch]
    output = clock.run(
        [headwater.BINARY, "bench", "--offline", "--device", args.device, "--shape", args.shape, "--weights", group[0],
         "--prompt-lens", joined(row.depth for row in members if not row.batch),
         "--batch-sizes", joined(row.batch for row in decodes), "--depths", joined(row.depth for row in decodes),
         "--output-len", DECODED, "--max-num-batched-tokens", 8192,
         "--repetitions", 1 if is_long else args.repetitions], env=headwater.clean_env())
    for line in output.splitlines():
        if found := re.match(r"copy ([\d.]+) GB/s(?:, product of f16 (\d+) TFLOP/s)?", line):
            ceilings.append((float(found[1]), float(found[2] or 0)))
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 9:
            continue
        test, speed, share = cells[3], cells[4].split(" ")[0], cells[8].rstrip(" %")
        for row in members:
            own = f"pp{row.depth}" if not row.batch else f"tg{DECODED} x{row.batch}" + (f" @ d{row.depth}" if row.depth else "")
            if test == own:
                row.ours.append(float(speed))
                row.floors.append(100 * float(speed) / float(share))


def run_llama_bench(args, clock, model, members):
    """Short prefills and one stream behind nothing."""
    if not members:
        return
    output = clock.run([args.llama_bench, "-m", model, "-ngl", 99, "-fa", "on", "-b", args.ubatch, "-ub", args.ubatch,
                        "-p", joined(row.depth for row in members if not row.batch) or 0,
                        "-n", DECODED if any(row.batch for row in members) else 0, "-r", args.repetitions, "-o", "json"])
    for test in json.loads(output or "[]"):
        for row in members:
            if (test["n_prompt"], test["n_gen"]) == ((0, DECODED) if row.batch else (row.depth, 0)):
                row.theirs.append(test["avg_ts"])


def run_batched_bench(args, clock, model, members):
    """All else: prompts of the depth, then tokens of every stream; both are timed."""
    if not members:
        return
    depths = {max(row.depth, 1) for row in members}
    batches = {row.batch or 1 for row in members}
    # The first prompt warms the kernels of prefills up.
    npp = joined(depths) if max(batches) > 1 else "512," + joined(depths)
    output = clock.run([pathlib.Path(args.llama_bench).with_name("llama-batched-bench"), "-m", model, "-ngl", 99,
                        "-fa", "on", "-b", args.ubatch, "-ub", args.ubatch, "-c", max(batches) * (max(depths) + DECODED),
                        "-npp", npp, "-ntg", DECODED, "-npl", joined(batches), "--output-format", "jsonl"])
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        test = json.loads(line)
        for row in members:
            if test["pp"] == max(row.depth, 1) and test["pl"] == (row.batch or 1):
                row.theirs.append(test["speed_tg" if row.batch else "speed_pp"])


def measure_theirs(args, clock, group, members, files):
    model = files[group[0]]
    alone = [row for row in members if group[1] == 0 and row.batch < 2]
    run_llama_bench(args, clock, model, alone)
    run_batched_bench(args, clock, model, [row for row in members if row not in alone])


def number(values, digits=3):
    if not values:
        return "–"
    value = statistics.median(values)
    places = max(0, digits - len(str(int(value))))
    text = f"{value:,.{places}f}" if value < 1000 else f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return text if len(values) == 1 else f"{text} ({min(values):.0f} to {max(values):.0f})"


def print_table(args, measured, ceilings):
    copies, products = zip(*ceilings)
    print(f"\n{args.shape}, random weights. Floors: a copy of {min(copies):.0f} to {max(copies):.0f} GB/s"
          + (f", a product of {min(products):.0f} to {max(products):.0f} TFLOP/s" if max(products) else "")
          + ", measured by the same process as ours.\n")
    peer = bool(args.llama_bench)
    print("| | Headwater, tokens/s |" + (" llama.cpp | ratio |" if peer else "") + " floor | Headwater of it |"
          + (" llama.cpp of it |" if peer else ""))
    print("|---|---|---|---|" + ("---|---|---|" if peer else ""))
    for row in measured:
        ours = statistics.median(row.ours) if row.ours else None
        theirs = statistics.median(row.theirs) if row.theirs else None
        floor = statistics.median(row.floors) if row.floors else None
        share = lambda speed: f"{100 * speed / floor:.0f} %" if speed and floor else "–"  # noqa: E731
        ratio = f"{ours / theirs:.2f}" if ours and theirs else "–"
        print(f"| {row.label()} | {number(row.ours, 4)} |" + (f" {number(row.theirs, 4)} | {ratio} |" if peer else "")
              + f" {number([floor] if floor else [])} | {share(ours)} |" + (f" {share(theirs)} |" if peer else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", choices=random_gguf.SHAPES, default="llama3-8b")
    parser.add_argument("--llama-bench", help="the program; llama-batched-bench is expected beside it")
    parser.add_argument("--gguf", default="", help="files of llama.cpp: f16=FILE,q8_0=FILE,q4_k=FILE")
    parser.add_argument("--ubatch", type=int, default=2048, help="tokens that llama.cpp computes at once")
    parser.add_argument("--only", default="*", help="rows, by patterns: f16/tg*,*/pp8192")
    parser.add_argument("--repetitions", type=int, default=3, help=f"of one process; 1 from {LONG} tokens on")
    parser.add_argument("--rounds", type=int, default=1, help="ours, theirs, ours, theirs ...")
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which the rest is left out")
    args = parser.parse_args()

    patterns = args.only.split(",")
    wanted = [row for row in rows() if any(fnmatch.fnmatch(row.name(), pattern) for pattern in patterns)]
    groups = {}
    for row in wanted:
        groups.setdefault(row.group(), []).append(row)
    files = dict(pair.split("=", 1) for pair in args.gguf.split(",") if pair)
    if args.llama_bench:
        for weights in {row.weights for row in wanted}:
            if weights not in files:
                parser.error(f"--gguf lacks {weights}=FILE")
            if not os.path.exists(files[weights]):
                random_gguf.write(files[weights], random_gguf.SHAPES[args.shape], weights)
    clock, ceilings = Clock(args.limit), []
    for _ in range(args.rounds):
        for group, members in groups.items():
            measure_ours(args, clock, group, members, ceilings)
            if args.llama_bench:
                measure_theirs(args, clock, group, members, files)
    if not ceilings:
        raise SystemExit("nothing was measured")
    print_table(args, wanted, ceilings)
    print(f"\n{time.perf_counter() - clock.begin:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
