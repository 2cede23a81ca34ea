#!/usr/bin/env python3
"""What a retention policy costs and gains in speed, beside dense, on one machine in one run.

    python3 tests/bench/retention_speed.py --model needle.gguf --length 32768 \\
        --other "--attention razor --head-table auto"
    ... --requests 12 --pool-sequences 4      twelve requests over a pool of four dense sequences

All servers stay up and take turns, A B B A: idle ones cost nothing, and what the machine does to a
round it does to all of it. Random prompts; greedy; streams. Prints medians with their range and,
since a shared machine drifts by more than what is looked for, the median of each round's ratio
beside what the bytes of a decode step (weights and held KV) allow. Standard library only.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import headwater  # noqa: E402


def complete(port, body, times):
    """Streams one completion; appends the arrival of every token, returns the usage."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"HTTP {response.status}: {response.read().decode()}")
    usage = None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("usage"):
            usage = event["usage"]
        if event["choices"]:
            times.append(time.perf_counter())
    return usage


class Run:
    """One policy: its server, and what its rounds measured."""

    def __init__(self, name, flags):
        self.name, self.flags = name, flags.split()
        self.ttft, self.tpot, self.total, self.output = [], [], [], []
        self.kv_bytes = 0

    def start(self, args, folder):
        flags = [*self.flags, "--max-model-len", args.length, "--max-num-seqs", max(args.requests, 1)]
        if args.threads:
            flags += ["--threads", args.threads]
        if args.pool_sequences:
            flags += ["--kv-cache-bytes", int(args.pool_sequences * args.length * args.kv_bytes_per_token * 1.01)]
        return headwater.Server(pathlib.Path(folder) / self.name.replace("/", "_"), *flags, model=args.model)

    def measure(self, args, port, seed):
        rng = random.Random(seed)
        prompts = [
            [rng.randrange(args.low_id, args.high_id) for _ in range(args.length - args.output)]
            for _ in range(max(args.requests, 1))
        ]
        warm = {"prompt": prompts[0][1:65], "max_tokens": 4, "ignore_eos": True, "temperature": 0}
        complete(port, warm, [])
        body = {"max_tokens": args.output, "ignore_eos": True, "temperature": 0}
        times = [[] for _ in prompts]
        usages = [None] * len(prompts)

        def work(i):
            usages[i] = complete(port, {**body, "prompt": prompts[i]}, times[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - begin
        self.ttft.append(times[0][0] - begin)
        self.tpot.append(statistics.mean((t[-1] - t[0]) / (args.output - 1) for t in times))
        tokens = sum(u["prompt_tokens"] + u["completion_tokens"] for u in usages)
        self.total.append(tokens / wall)
        self.output.append(sum(u["completion_tokens"] for u in usages) / wall)
        self.kv_bytes = usages[0]["kv_bytes"]


def cell(values, digits=1):
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "tests/data/needle-24m-q8_0.gguf", type=pathlib.Path)
    parser.add_argument("--length", type=int, default=32768, help="prompt + output")
    parser.add_argument("--output", type=int, default=128, help="output tokens")
    parser.add_argument("--other", action="append", default=[], help="flags of the server beside dense; repeatable")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=0, help="so many at once; 0 = one, alone")
    parser.add_argument("--pool-sequences", type=float, default=0, help="KV pool, in dense sequences of --length")
    parser.add_argument("--kv-bytes-per-token", type=int, default=8192, help="dense; needle-24m: 8192, SmolLM2: 23040")
    parser.add_argument("--same-prompt", action="store_true",
                        help="in every round: from the second on the prefix cache answers it, and many short "
                        "rounds tell small differences of decode apart")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--low-id", type=int, default=32)
    parser.add_argument("--high-id", type=int, default=127)
    args = parser.parse_args()

    runs = [Run("dense", "--attention dense")] + [Run(flags, flags) for flags in args.other]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(run.start(args, folder)) for run in runs]
        for round_idx in range(args.rounds):
            pairs = list(zip(runs, servers))
            for run, server in pairs if round_idx % 2 == 0 else reversed(pairs):
                run.measure(args, server.port, seed=0 if args.same_prompt else round_idx)
                print(f"round {round_idx + 1}/{args.rounds} {run.name}: TTFT {run.ttft[-1]:.2f} s, "
                      f"{1 / run.tpot[-1]:.1f} tokens/s a stream, {run.total[-1]:.0f} tokens/s in all",
                      file=sys.stderr, flush=True)
    weights = args.model.stat().st_size
    print(f"{args.model.name}, {args.length - args.output} + {args.output} tokens, "
          f"{max(args.requests, 1)} at once, median of {args.rounds} rounds (range), load at start {load:.1f}")
    print("| policy | TTFT of the first, s | decode tokens/s a stream | output tokens/s | total tokens/s | KV held, MB |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        decode = [1 / t for t in run.tpot]
        print(f"| {run.name} | {cell(run.ttft, digits=2)} | {cell(decode)} | {cell(run.output)} "
              f"| {cell(run.total, digits=0)} | {run.kv_bytes / 1e6:.1f} |")
    dense = runs[0]
    for run in runs[1:]:
        def ratios(name):
            return cell([a / b for a, b in zip(getattr(run, name), getattr(dense, name))], digits=3)

        bound = (weights + dense.kv_bytes) / (weights + run.kv_bytes)
        print(f"{run.name} / dense, of each round: TTFT {ratios('ttft')}, TPOT {ratios('tpot')} "
              f"(one stream's bytes allow {1 / bound:.3f}), output/s {ratios('output')}, total/s {ratios('total')}")


if __name__ == "__main__":
    main()
