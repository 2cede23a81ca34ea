#!/usr/bin/env python3
"""Exact match of needle-24m on its open evaluation set, per task and length.

    python3 tests/quality/needle_eval.py --url http://127.0.0.1:8000 --lengths 2048 8192 --n 10

Without --url it starts build/release/bin/headwater (HEADWATER_BIN) on --model. Greedy, stop at the
newline, as the model was trained. The expected dense scores are in the model's README; a sample of
n prompts per cell moves by 100/n per prompt. Exits 1 if the mean is below --min-mean.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import gzip
import json
import os
import pathlib
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("HEADWATER_SHARED", ROOT.parent / "shared"))


def read_cases(path, lengths, tasks, n):
    """The first n cases of every (task, length)."""
    taken = collections.Counter()
    cases = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            case = json.loads(line)
            cell = case["task"], case["length"]
            if case["length"] not in lengths or (tasks and case["task"] not in tasks):
                continue
            if taken[cell] < n:
                taken[cell] += 1
                cases.append(case)
    return cases


def ask(url, case, body, timeout):
    body = {"prompt": case["prompt"], "temperature": 0, "max_tokens": 128, "stop": ["\n"], **body}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        answer = json.load(reply)
    return answer["choices"][0]["text"].strip(), answer["usage"]["prompt_tokens"]


def print_table(scores, lengths):
    print(f"{'task':<24}" + "".join(f"{length:>9}" for length in lengths))
    for task in sorted({task for task, _ in scores}):
        cells = [scores[task, length] for length in lengths]
        print(f"{task:<24}" + "".join(f"{100 * sum(c) / len(c):>8.0f}%" if c else f"{'-':>9}" for c in cells))


@contextlib.contextmanager
def server_url(args):
    if args.url:
        yield args.url.rstrip("/")
        return
    os.environ["HEADWATER_SMOLLM2"] = str(args.model)
    sys.path.insert(0, str(ROOT / "tests" / "e2e"))
    import headwater

    with tempfile.TemporaryDirectory() as folder:
        with headwater.Server(pathlib.Path(folder) / "log", *args.serve.split()) as server:
            yield server.url


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a running server; default: start one")
    parser.add_argument("--model", default=ROOT / "tests/data/needle-24m-q8_0.gguf")
    parser.add_argument("--serve", default="", help="further flags for the server it starts")
    parser.add_argument("--set", default=SHARED / "models/needle-24m/eval-open.jsonl.gz")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--n", type=int, default=5, help="prompts per task and length")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=600, help="seconds per request")
    parser.add_argument("--body", type=json.loads, default={}, help="JSON merged into each request")
    parser.add_argument("--min-mean", type=float, default=0, help="percent")
    parser.add_argument("--show-wrong", action="store_true")
    args = parser.parse_args()
    cases = read_cases(args.set, args.lengths, args.tasks, args.n)
    if not cases:
        sys.exit(f"{args.set}: no case of lengths {args.lengths} and tasks {args.tasks}")

    scores = collections.defaultdict(list)
    prompt_tokens = 0
    with server_url(args) as url, concurrent.futures.ThreadPoolExecutor(args.concurrency) as pool:
        with urllib.request.urlopen(f"{url}/v1/models") as reply:
            body = {"model": json.load(reply)["data"][0]["id"], **args.body}
        begin = time.monotonic()
        answers = pool.map(lambda case: ask(url, case, body, args.timeout), cases)
        for case, (text, tokens) in zip(cases, answers):
            right = text == case["answer"].strip()
            scores[case["task"], case["length"]].append(right)
            prompt_tokens += tokens
            if args.show_wrong and not right:
                print(f"{case['task']} {case['length']}: {text!r} instead of {case['answer']!r}")
        seconds = time.monotonic() - begin

    results = [right for cell in scores.values() for right in cell]
    mean = 100 * sum(results) / len(results)
    print_table(scores, args.lengths)
    print(f"mean {mean:.1f} % of {len(results)} prompts, {prompt_tokens} prompt tokens in {seconds:.0f} s")
    sys.exit(mean < args.min_mean)


if __name__ == "__main__":
    main()
