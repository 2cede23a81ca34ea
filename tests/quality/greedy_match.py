#!/usr/bin/env python3
"""Greedy answers of one device beside another's: equal, or parting where the two likeliest tokens are near.

    python3 tests/quality/greedy_match.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --device cuda --against ref

Starts a server for each device, asks both the same prompts (a batch at a time, so that steps hold many
sequences), and prints how many answers are equal token for token and, for each that parts, how far apart
the two likeliest tokens were there on the device it is compared with. Fails if one was farther than
--near. Standard library only.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import headwater  # noqa: E402

SUBJECTS = ("the sea", "a lighthouse", "bread", "the moon", "a small robot", "winter", "a library", "honey bees", "trains", "glass")
REQUESTS = (
    "Write one sentence about {}.",
    "Explain {} to a child.",
    "List three facts about {}.",
    "Tell a short story about {}.",
    "What would the world be like without {}?",
)


def answers(device, prompts, args, folder):
    """Per prompt: the tokens, and at each the gap between the two likeliest (nats)."""
    flags = ["--device", device, "--max-num-seqs", args.batch, "--max-logprobs", 2]
    with headwater.Server(pathlib.Path(folder) / device, *flags, model=args.model) as server:

        def ask(prompt):
            body = {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": args.tokens,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": 2,
            }
            reply = server.request("POST", "/v1/chat/completions", json.dumps(body).encode(),
                                   {"Content-Type": "application/json"}, timeout=3600)
            if reply.status != 200:
                raise SystemExit(f"{device}: HTTP {reply.status}: {reply.body.decode()}")
            steps = reply.json()["choices"][0]["logprobs"]["content"]
            gaps = [s["top_logprobs"][0]["logprob"] - s["top_logprobs"][1]["logprob"] for s in steps]
            return [tuple(s["bytes"]) for s in steps], gaps

        with concurrent.futures.ThreadPoolExecutor(args.batch) as pool:
            return list(pool.map(ask, prompts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--against", default="ref")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=10, help="prompts in flight")
    parser.add_argument("--near", type=float, default=1e-2, help="nats between the two likeliest tokens where answers may part")
    args = parser.parse_args()

    prompts = [request.format(subject) for subject in SUBJECTS for request in REQUESTS][: args.prompts]
    with tempfile.TemporaryDirectory() as folder:
        ours = answers(args.device, prompts, args, folder)
        theirs = answers(args.against, prompts, args, folder)
    equal, far, compared = 0, 0, 0
    for prompt, (a, _), (b, gaps) in zip(prompts, ours, theirs):
        parts = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        compared += len(b) if parts is None else parts
        if parts is None and len(a) == len(b):
            equal += 1
            continue
        parts = min(len(a), len(b)) - 1 if parts is None else parts
        far += gaps[parts] > args.near
        print(f"parts at token {parts}, where the two likeliest are {gaps[parts]:.4f} apart: {prompt}")
    print(f"{args.device} and {args.against}: {equal} of {len(prompts)} answers equal ({compared} tokens alike), "
          f"{len(prompts) - equal - far} part where the two likeliest tokens are within {args.near:g}, {far} elsewhere")
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
