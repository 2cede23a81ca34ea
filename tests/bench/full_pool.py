#!/usr/bin/env python3
"""How many long sequences a GPU decodes at once under a retention policy, and how fast, over HTTP:

    python3 tests/bench/random_gguf.py /dev/shm/random-8b.gguf
    python3 tests/bench/full_pool.py --model /dev/shm/random-8b.gguf -- --device cuda

Random prompts, each of its own, arrive at once; every request decodes --output tokens. Heads that keep
everything (--full-share of all KV heads) are drawn by --seed. All figures but the wall time are the
engine's own counters, read from /metrics every --interval seconds. **Decoding while the pool is full**
counts the intervals between two readings in which the number that ran stayed the same, none ended or gave
its pages up, and no prompt was computed: the rows of the engine's steps are the tokens it gave (and at most
1 % more). Full is the largest number that did so for a second. What follows -- goes to the server. Standard
library only.
"""

import argparse
import http.client
import json
import pathlib
import random
import re
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import headwater  # noqa: E402
import random_gguf  # noqa: E402


def head_table(shape, full_share, seed):
    layers, kv_heads = shape.layers, shape.kv_heads
    num_full = -int(-full_share * layers * kv_heads // 1)
    full = set(random.Random(seed).sample(range(layers * kv_heads), num_full))
    rows = [["full" if i * kv_heads + h in full else "compressed" for h in range(kv_heads)] for i in range(layers)]
    model = {"num_layers": layers, "num_kv_heads": kv_heads, "head_dim": shape.head_dim}
    return num_full, {"format": "headwater.head_table/1", "method": "razor", "model": model, "heads": rows}


def copy_gbs(device):
    """GB/s of a copy in the device's memory, read plus written."""
    done = headwater.run("bench", "--offline", "--device", device, "--shape", "smollm2-135m", "--prompt-lens", "",
                         "--batch-sizes", "")
    found = re.search(r"copy ([\d.]+) GB/s", done.stdout)
    if not found:
        raise SystemExit(f"headwater bench --offline:\n{done.stdout}{done.stderr}")
    return float(found[1])


class Client(threading.Thread):
    """One request; counts its events, keeps its usage and what went wrong."""

    def __init__(self, port, prompt, output):
        super().__init__(daemon=True)
        options = {"max_tokens": output, "temperature": 0, "ignore_eos": True, "stream": True,
                   "stream_options": {"include_usage": True}}
        self.port = port
        self.body = json.dumps(options)[:-1] + ', "prompt": [' + ",".join(map(str, prompt)) + "]}"
        self.usage, self.error, self.first = None, None, None

    def run(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
            connection.request("POST", "/v1/completions", self.body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"HTTP {response.status}: {response.read().decode()}")
            last = b""
            for line in response:
                if line.startswith(b"data: {"):
                    self.first = self.first or time.perf_counter()
                    last = line
            self.usage = json.loads(last[6:])["usage"]
        except (OSError, RuntimeError, http.client.HTTPException, KeyError, ValueError) as error:
            self.error = str(error) or repr(error)


class Sample:
    def __init__(self, metrics):
        self.at = time.perf_counter()
        self.running = int(metrics["vllm:num_requests_running"])
        self.waiting = int(metrics["vllm:num_requests_waiting"])
        self.tokens = int(metrics["vllm:generation_tokens_total"])
        self.rows = int(metrics["vllm:iteration_tokens_total_sum"])
        self.steps = int(metrics["headwater:steps_total"])
        self.ended = sum(int(v) for k, v in metrics.items() if k.startswith("vllm:request_success_total"))
        self.host_draws = int(metrics["headwater:host_draws_total"])
        self.preemptions = int(metrics["vllm:num_preemptions_total"])
        self.hits = int(metrics["vllm:prefix_cache_hits_total"])
        pages, held = "headwater:kv_pages{{state=\"{}\"}}", "headwater:kv_bytes{{state=\"{}\"}}"
        states = ("free", "held", "cached")
        self.pages_held, self.pages = metrics[pages.format("held")], sum(metrics[pages.format(s)] for s in states)
        self.bytes_held, self.bytes = metrics[held.format("held")], sum(metrics[held.format(s)] for s in states)


class Decoding:
    """Intervals with one number of sequences running and no row of a prompt."""

    def __init__(self):
        self.seconds, self.tokens, self.steps, self.held = 0.0, 0, 0, []

    def add(self, a, b):
        self.seconds += b.at - a.at
        self.tokens += b.tokens - a.tokens
        self.steps += b.steps - a.steps
        self.held.append((a.bytes_held + b.bytes_held) / 2)


def decoding_by_count(samples):
    counts = {}
    for a, b in zip(samples, samples[1:]):
        rows, tokens = b.rows - a.rows, b.tokens - a.tokens
        decodes_only = tokens > 0 and 100 * (rows - tokens) <= tokens  # a token drawn by the host costs a row
        if decodes_only and a.running == b.running and a.ended == b.ended and a.preemptions == b.preemptions:
            counts.setdefault(a.running, Decoding()).add(a, b)
    return counts


def watch(server, clients, args):
    """Samples until all requests are done or the limit is reached."""
    samples = [Sample(server.metrics())]
    begin = shown = time.perf_counter()
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients) and time.perf_counter() - begin < args.limit:
        time.sleep(args.interval)
        samples.append(Sample(server.metrics()))
        s = samples[-1]
        if s.at - shown >= 5:
            shown = s.at
            print(f"{s.at - begin:6.1f} s: {s.running} run, {s.waiting} wait, {s.ended} ended, {s.tokens} tokens given, "
                  f"{s.bytes_held / 1e9:.2f} GB held, {s.preemptions} preemptions", file=sys.stderr, flush=True)
    wall = time.perf_counter() - begin
    samples.append(Sample(server.metrics()))
    return samples, wall


def report(args, samples, clients, wall, client_seconds, copy):
    first, last = samples[0], samples[-1]
    fullest = max(samples, key=lambda s: s.bytes_held)
    done = [c for c in clients if c.usage]
    output = sum(c.usage["completion_tokens"] for c in done)
    tokens = last.tokens - first.tokens
    print(f"{len(done)} of {len(clients)} requests done in {wall:.1f} s, {tokens} output tokens: {tokens / wall:.0f} a second; "
          f"prefix hits {last.hits - first.hits} tokens, preemptions {last.preemptions - first.preemptions}, "
          f"tokens drawn by the host {last.host_draws - first.host_draws}")
    firsts = sorted(c.first - first.at for c in clients if c.first)
    if firsts:
        print(f"first token of the first request after {firsts[0]:.1f} s, of the last after {firsts[-1]:.1f} s; "
              f"the client used {100 * client_seconds / wall:.0f} % of a core")
    print(f"running at most {max(s.running for s in samples)}; pages (of one head) in use at most "
          f"{fullest.pages_held:.0f} of {fullest.pages:.0f}, {fullest.bytes_held / 1e9:.2f} of {fullest.bytes / 1e9:.2f} GB")
    weights = random_gguf.read_bytes(random_gguf.SHAPES[args.shape], args.weights)
    counts = decoding_by_count(samples)
    full = max((running for running, d in counts.items() if d.seconds >= 1), default=None)
    print(f"\nDecoding, no prompt beside it (floor: {weights / 1e9:.2f} GB of weights and the KV held, once a step, at "
          f"{copy:.0f} GB/s)\n| running | seconds | steps | tokens | tokens/s | ms a step | KV read, GB | floor, tokens/s | of it |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for running in sorted(counts, reverse=True)[: args.rows]:
        d = counts[running]
        held = sum(d.held) / len(d.held)
        floor = running * copy * 1e9 / (weights + held)
        print(f"| {running}{' (full)' if running == full else ''} | {d.seconds:.2f} | {d.steps} | {d.tokens} "
              f"| {d.tokens / d.seconds:.0f} | {1e3 * d.seconds / d.steps:.2f} | {held / 1e9:.2f} | {floor:.0f} "
              f"| {100 * d.tokens / d.seconds / floor:.0f} % |")
    if full is None:
        print("\nno second of decoding without a prompt beside it")
    else:
        print(f"\nheld at once: {full}; decode tokens/s while the pool is full: {counts[full].tokens / counts[full].seconds:.0f}")
    for error in {c.error for c in clients if c.error}:
        print(f"error: {error}")
    return output == len(clients) * args.output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="of random_gguf.py")
    parser.add_argument("--shape", choices=random_gguf.SHAPES, default="llama3-8b", help="of the model")
    parser.add_argument("--weights", choices=random_gguf.MIXES, default="f16", help="of the model")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=32768, help="tokens of each")
    parser.add_argument("--output", type=int, default=1024, help="tokens of each")
    parser.add_argument("--attention", default="razor")
    parser.add_argument("--prefill-mode", choices=["streaming", "faithful"], default="streaming")
    parser.add_argument("--full-share", type=float, default=0.15, help="of the KV heads")
    parser.add_argument("--seed", type=int, default=1, help="of the heads and the prompts")
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between samples")
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which it reports what there is")
    parser.add_argument("--copy-gbs", type=float, help="of the floor; default: measured before the start")
    parser.add_argument("--rows", type=int, default=4, help="of the table, largest number running first")
    parser.add_argument("options", nargs="*", help="of headwater serve, behind --")
    args = parser.parse_args()

    shape = random_gguf.SHAPES[args.shape]
    device = args.options[args.options.index("--device") + 1] if "--device" in args.options else "auto"
    copy = args.copy_gbs or copy_gbs(device)
    with tempfile.TemporaryDirectory() as folder:
        # Prompts in large chunks whatever decodes beside them: the pool is to fill before anyone ends.
        flags = ["--max-model-len", args.prompt + args.output, "--max-num-seqs", 64, "--max-queue", 1024,
                 "--max-num-batched-tokens", 8192, "--max-itl-stretch", 1000, "--gpu-memory-utilization", 0.92,
                 "--attention", args.attention, "--drain-timeout", 1]
        if args.attention != "dense":
            num_full, table = head_table(shape, args.full_share, args.seed)
            path = pathlib.Path(folder) / "heads.json"
            path.write_text(json.dumps(table))
            flags += ["--head-table", path, "--prefill-mode", args.prefill_mode]
            print(f"{args.attention}, {num_full} of {shape.layers * shape.kv_heads} KV heads keep everything, {args.prefill_mode} prefill; "
                  f"{args.requests} requests of {args.prompt} + {args.output} tokens at once", flush=True)
        begin = time.perf_counter()
        with headwater.Server(pathlib.Path(folder) / "log", *flags, *args.options, model=args.model) as server:
            print(f"server ready after {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
            rng = random.Random(args.seed)
            ids = range(512, shape.vocab)  # below are bytes and control tokens
            clients = [Client(server.port, rng.choices(ids, k=args.prompt), args.output) for _ in range(args.requests)]
            used = time.process_time()
            samples, wall = watch(server, clients, args)
            complete = report(args, samples, clients, wall, time.process_time() - used, copy)
            if not complete:
                print("incomplete; the server's last words:\n" + server.log()[-2000:], file=sys.stderr)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
