#!/usr/bin/env python3
"""Headwater beside llama.cpp: same file, same machine, same threads, alternating A B A B.

    python3 tests/bench/peer_llama_cpp.py --model SmolLM2-135M-Instruct.Q4_1.gguf

Needs `CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python numpy`. Per round each side runs
alone in a process of its own: a warm-up, then pp (a prompt of random tokens, time to the first
token) and tg (tokens after a short prompt, time between the first and the last). Headwater is
measured through its HTTP stream, llama.cpp in process, so HTTP and JSON count against Headwater.
Printed: median and spread over the rounds, the share of the floor (bytes of weights read per token
over the measured read bandwidth) and the resident memory after the run.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def resident_mb(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def prompts_of(args, seed):
    """Random ids, different in every repetition so that no prefix cache helps."""
    rng = random.Random(seed)
    return [[rng.randrange(1000, 20000) for _ in range(args.pp)] for _ in range(args.repetitions + 1)]


def summary(samples, prompt_tokens, output_tokens, rss_mb):
    """samples: (seconds to the first token of pp, seconds from first to last of tg)"""
    return {
        "ttft_ms": statistics.median(1e3 * first for first, _ in samples),
        "prefill": statistics.median(prompt_tokens / first for first, _ in samples),
        "decode": statistics.median((output_tokens - 1) / rest for _, rest in samples),
        "rss_mb": rss_mb,
    }


def run_llama_cpp(args):
    import llama_cpp

    model = llama_cpp.Llama(
        str(args.model), n_ctx=2048, n_batch=512, n_ubatch=512, n_threads=args.threads,
        n_threads_batch=args.threads, verbose=False,
    )

    def greedy():
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),))))

    def generate(prompt, num_tokens):
        model.reset()
        begin = time.monotonic()
        model.eval(prompt)
        token = greedy()
        first = time.monotonic()
        for _ in range(num_tokens - 1):
            model.eval([token])
            token = greedy()
        return first - begin, time.monotonic() - first

    samples = []
    for prompt in prompts_of(args, args.seed):
        samples.append((generate(prompt, 1)[0], generate(prompt[:16], args.tg)[1]))
    return summary(samples[1:], args.pp, args.tg, resident_mb(os.getpid()))


def run_headwater(args):
    os.environ["HEADWATER_SMOLLM2"] = str(args.model)
    sys.path.insert(0, str(ROOT / "tests" / "e2e"))
    import headwater

    def generate(server, prompt, num_tokens):
        body = {
            "model": server.model_id, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0,
            "ignore_eos": True, "stream": True,
        }
        request = urllib.request.Request(
            f"{server.url}/v1/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        stamps = []
        begin = time.monotonic()
        with urllib.request.urlopen(request) as reply:
            for line in reply:
                if line.startswith(b"data: {"):
                    stamps.append(time.monotonic())
        return stamps[0] - begin, stamps[-1] - stamps[0]

    samples = []
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--threads", args.threads, "--max-num-seqs", 4, "--max-model-len", 2048]
        with headwater.Server(pathlib.Path(folder) / "log", *flags) as server:
            server.model_id = server.get("/v1/models").json()["data"][0]["id"]
            for prompt in prompts_of(args, args.seed):
                samples.append(
                    (generate(server, prompt, 1)[0], generate(server, prompt[:16], args.tg)[1])
                )
            rss_mb = resident_mb(server.process.pid)
    return summary(samples[1:], args.pp, args.tg, rss_mb)


def read_bandwidth(threads):
    """Bytes per second at which `threads` threads together read 256 MiB each; best of 8."""
    buffers = [np.ones(1 << 25) for _ in range(threads)]
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            begin = time.perf_counter()
            list(pool.map(np.max, buffers))
            best = max(best, sum(b.nbytes for b in buffers) / (time.perf_counter() - begin))
    return best


def warn_if_busy():
    """Spinning thread pools lose far more to a busy machine than sleeping ones: no fair race."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: load average {load:.1f} before the start: the ratios below mean nothing",
              file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pp", type=int, default=512)
    parser.add_argument("--tg", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3, help="per round, after a warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", choices=["headwater", "llama.cpp"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=pathlib.Path, help="write the samples here as well")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(run_headwater(args) if args.side == "headwater" else run_llama_cpp(args)))
        return

    warn_if_busy()
    rounds = {"headwater": [], "llama.cpp": []}
    for number in range(args.rounds):
        for side, results in rounds.items():
            command = [sys.executable, __file__, "--side", side, "--model", str(args.model)]
            for name in ("threads", "pp", "tg", "repetitions"):
                command += [f"--{name}", str(getattr(args, name))]
            output = subprocess.run(
                [*command, "--seed", str(args.seed + number)], stdout=subprocess.PIPE, check=True
            ).stdout
            results.append(json.loads(output.splitlines()[-1]))
            print(f"round {number + 1} {side}: {results[-1]}", file=sys.stderr)

    bandwidth = read_bandwidth(args.threads)
    weight_bytes = args.model.stat().st_size
    floor = bandwidth / weight_bytes
    print(f"{args.model.name}, {args.threads} threads, {args.rounds} rounds; read bandwidth "
          f"{bandwidth / 1e9:.1f} GB/s, {weight_bytes / 1e6:.0f} MB of weights: decode floor {floor:.0f} tokens/s")
    labels = {"prefill": f"pp{args.pp} tokens/s", "ttft_ms": f"TTFT of {args.pp} ms",
              "decode": f"tg{args.tg} tokens/s", "rss_mb": "resident MB"}
    print(f"{'':<20}{'headwater':>30}{'llama.cpp':>30}{'ratio':>8}")
    for key, label in labels.items():
        medians, cells = [], []
        for results in rounds.values():
            values = [r[key] for r in results]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:.1f} [{min(values):.1f}, {max(values):.1f}]")
        print(f"{label:<20}{cells[0]:>30}{cells[1]:>30}{medians[0] / medians[1]:>8.2f}")
        if key == "decode":
            shares = [f"{100 * m / floor:.0f} %" for m in medians]
            print(f"{'  share of floor':<20}{shares[0]:>30}{shares[1]:>30}")
    if args.json:
        args.json.write_text(json.dumps(rounds))


if __name__ == "__main__":
    main()
