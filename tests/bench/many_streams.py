#!/usr/bin/env python3
"""Output tokens per second of many short requests over HTTP, every prompt new:

    python3 tests/bench/many_streams.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf -- --device cuda

A server and several `headwater bench` clients, since one is busy reading 50,000 events a second; they share
the streams and draw different prompts, other ones in every round. Tokens are the engine's own count, over
the time in which anything ran. What follows -- goes to the server. Standard library only.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import headwater  # noqa: E402


def parts(total, count):
    return [total // count + (i < total % count) for i in range(count)]


def measure(server, args, seed):
    clients = [
        subprocess.Popen(
            [headwater.BINARY, "bench", "--url", server.url, "--num-prompts", str(prompts), "--concurrency", str(streams),
             "--random-input-len", str(args.prompt), "--random-output-len", str(args.output), "--ignore-eos",
             "--num-warmups", "0", "--temperature", str(args.temperature), "--seed", str(seed + i)],
            env=headwater.clean_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i, (prompts, streams) in enumerate(zip(parts(args.requests, args.clients), parts(args.streams, args.clients)))
    ]
    readings = []
    while any(client.poll() is None for client in clients):
        readings.append((time.perf_counter(), server.metrics()))
        time.sleep(0.02)
    readings.append((time.perf_counter(), server.metrics()))
    for client in clients:
        if client.returncode != 0:
            raise SystemExit(f"a client ended with {client.returncode}:\n{client.stdout.read()}")
    change = lambda name: readings[-1][1][name] - readings[0][1][name]  # noqa: E731
    busy = [at for at, metrics in readings if metrics["vllm:num_requests_running"] > 0]
    seconds, tokens = busy[-1] - busy[0], change("vllm:generation_tokens_total")
    most = max(metrics["vllm:num_requests_running"] for _, metrics in readings)
    print(f"{tokens / seconds:.0f} output tokens/s: {tokens:.0f} in {seconds:.2f} s, {change('headwater:steps_total'):.0f} steps, "
          f"at most {most:.0f} at once, {change('vllm:prefix_cache_hits_total'):.0f} of "
          f"{change('vllm:prefix_cache_queries_total'):.0f} prompt tokens from the prefix cache", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=2048)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--clients", type=int, default=3, help="processes that share requests and streams")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--output", type=int, default=256, help="tokens")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of headwater serve, behind --")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--max-num-seqs", args.streams, "--max-queue", 2 * args.streams, "--max-num-batched-tokens", 8192,
                 "--max-model-len", args.prompt + args.output, *args.options]
        with headwater.Server(pathlib.Path(folder) / "log", *flags, model=args.model) as server:
            for round_idx in range(args.rounds):
                measure(server, args, seed=int.from_bytes(os.urandom(4), "little") + round_idx)


if __name__ == "__main__":
    main()
