#!/usr/bin/env python3
"""The same prompts through NVIDIA's kvpress, at the same KV budget, in head_eval's format.

    python3 tests/quality/peer_kvpress.py --model models/needle-24m/hf --set eval-open.jsonl.gz \\
        --lengths 8192 32768 --n 40 --budget-of r0.jsonl --budget-variant measured \\
        --head-table configs/head_tables/needle-24m.measured.json --output peer.jsonl

Needs torch, transformers and kvpress (PyPI). A press prunes the cache when the prompt, or with
--question-after the context alone, has been prefilled, as head_eval does; the first answer token
comes from the full prefill in both. The budget is the share of the dense cache that head_eval's
variant holds at that length, or --budget. Rows: dense, and one per press:
  streaming_llm        sinks and recent tokens on every head
  knorm                keys of small norm stay
  snapkv               what the last 64 queries look at stays
  expected_attention   what future queries are expected to look at stays
  adakv_snapkv, adakv_expected   the same, with the budget shared out among the heads of a layer
  kvzip                what reconstructing the context needs stays (a second prefill; query-agnostic)
  duo                  DuoAttention's heads: those of --head-table keep all, the others 64 sinks and
                       as many recent tokens as the budget leaves
Started again with the same --output it goes on where it ended.
"""

import argparse
import gzip
import json
import os
import pathlib
import sys
import time

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402

import kvpress  # noqa: E402

QUESTION = "\nQuestion:"
transformers.utils.logging.disable_progress_bar()


def heads_of(path):
    """1 for heads that keep everything, 0 for others; [layers][kv heads]"""
    table = json.loads(pathlib.Path(path).read_text())
    return [[1.0 if name == "full" else 0.0 for name in row] for row in table["heads"]]


class TableDuoPress(kvpress.DuoAttentionPress):
    """DuoAttentionPress over a head table instead of a pattern from the network."""

    def __init__(self, heads, budget, context_tokens):
        import numpy as np

        self.scores = np.array(heads)
        full = float(self.scores.mean())
        kept = max(0.0, (budget - full) / (1 - full)) * context_tokens
        self.sinks = min(64, max(4, int(kept) // 4))
        self.recent = max(16, int(kept) - self.sinks)
        super().__init__(head_compression_ratio=1 - full)

    def load_attention_pattern(self, model):
        return self.sinks, self.recent, self.scores


def make_press(name, budget, context_tokens, heads):
    ratio = 1 - budget
    if name == "duo":
        return TableDuoPress(heads, budget, context_tokens)
    return {
        "streaming_llm": lambda: kvpress.StreamingLLMPress(ratio),
        "knorm": lambda: kvpress.KnormPress(ratio),
        "snapkv": lambda: kvpress.SnapKVPress(ratio),
        "expected_attention": lambda: kvpress.ExpectedAttentionPress(ratio),
        "adakv_snapkv": lambda: kvpress.AdaKVPress(kvpress.SnapKVPress(ratio)),
        "adakv_expected": lambda: kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(ratio)),
        "kvzip": lambda: kvpress.KVzipPress(compression_ratio=ratio),
    }[name]()


PRESSES = [
    "streaming_llm",
    "knorm",
    "snapkv",
    "expected_attention",
    "adakv_snapkv",
    "adakv_expected",
    "kvzip",
    "duo",
]


class Answerer:
    def __init__(self, args):
        gguf = {}
        path = pathlib.Path(args.model)
        if path.suffix == ".gguf":
            gguf = {"gguf_file": path.name}
            path = path.parent
        tokenizer = {} if args.tokenizer else gguf
        self.tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or str(path), **tokenizer)
        self.model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=getattr(torch, args.dtype), attn_implementation="sdpa", **gguf
        ).to(args.device)
        self.model.eval()
        if args.tokenizer:
            self.model.config.name_or_path = args.tokenizer  # KVzipPress loads it again
        self.max_tokens = args.max_tokens
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def ids(self, text, first):
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if first and self.adds_bos() and ids[:1] != [bos]:
            ids = [bos, *ids]
        return torch.tensor([ids], device=self.model.device)

    def adds_bos(self):
        """As the vocabulary says: what the tokenizer itself puts first."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    @torch.no_grad()
    def answer(self, context, question, press):
        for layer in self.model.model.layers:
            layer.self_attn.masked_key_indices = None
        cache = DynamicCache()
        if press is None:
            hidden = self.model.model(input_ids=context, past_key_values=cache).last_hidden_state
        else:
            with press(self.model):
                hidden = self.model.model(input_ids=context, past_key_values=cache).last_hidden_state
        position = context.shape[1]
        if question is None:
            token = self.model.lm_head(hidden[:, -1]).argmax(-1)
        else:
            positions = torch.arange(position, position + question.shape[1], device=context.device)
            out = self.model(
                input_ids=question,
                past_key_values=cache,
                position_ids=positions[None],
                logits_to_keep=1,
            )
            token = out.logits[:, -1].argmax(-1)
            position += question.shape[1]
        tokens = []
        while len(tokens) < self.max_tokens:
            if token.item() in self.ends or "\n" in self.tokenizer.decode(token):
                break
            tokens.append(token.item())
            out = self.model(
                input_ids=token[:, None],
                past_key_values=cache,
                position_ids=torch.tensor([[position]], device=context.device),
            )
            token = out.logits[:, -1].argmax(-1)
            position += 1
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip(" ")


def read_cases(args):
    """As head_eval reads them: index counts within a task and length."""
    opened = gzip.open(args.set, "rt") if args.set.endswith(".gz") else open(args.set)
    counts, cases = {}, []
    with opened as lines:
        for line in lines:
            case = json.loads(line)
            if case["length"] not in args.lengths or (args.tasks and case["task"] not in args.tasks):
                continue
            cell = case["task"], case["length"]
            case["index"] = counts.get(cell, 0)
            counts[cell] = case["index"] + 1
            if case["index"] < args.n:
                cases.append(case)
    return cases


def budgets(args):
    if args.budget:
        return {length: args.budget for length in args.lengths}
    with open(args.budget_of) as lines:
        for line in lines:
            for variant in json.loads(line).get("variants", []):
                if variant["name"] == args.budget_variant:
                    return {length: variant["kv_share"][str(length)] for length in args.lengths}
    sys.exit(f"{args.budget_of}: no variant {args.budget_variant!r}")


def score_of(case, text):
    if "expected" in case:
        line = text.split("\n")[0]
        return sum(e in line for e in case["expected"]) / len(case["expected"])
    return float(text == case["answer"].strip())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder, or GGUF (needs gguf)")
    parser.add_argument("--tokenizer", help="folder, if the model's own does not load")
    parser.add_argument("--set", required=True, help="JSON lines, as head_eval reads or exports")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192])
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--n", type=int, default=10, help="prompts per task and length")
    parser.add_argument("--budget", type=float, help="share of the dense cache")
    parser.add_argument("--budget-of", help="head_eval's output that names the share")
    parser.add_argument("--budget-variant", default="measured")
    parser.add_argument("--head-table", help="for duo")
    parser.add_argument("--presses", nargs="+", default=PRESSES, choices=PRESSES)
    parser.add_argument("--question-after", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--output", default="peer.jsonl")
    args = parser.parse_args()
    if bool(args.budget) == bool(args.budget_of):
        parser.error("give --budget or --budget-of")
    shares = budgets(args)
    heads = heads_of(args.head_table) if args.head_table else None
    names = [name for name in args.presses if name != "duo" or heads]

    done = set()
    if pathlib.Path(args.output).exists():
        for line in open(args.output):
            entry = json.loads(line)
            if "scores" in entry:
                done.add((entry["task"], entry["length"], entry["index"]))
    answerer = Answerer(args)
    cases = [c for c in read_cases(args) if (c["task"], c["length"], c["index"]) not in done]
    with open(args.output, "a", buffering=1) as out:
        rows = [("kvpress:dense", None)] + [(f"kvpress:{name}", name) for name in names]
        header = {
            "model": str(args.model),
            "kvpress": getattr(kvpress, "__version__", "?"),
            "question_after": args.question_after,
            "variants": [
                {
                    "name": row,
                    "kind": "peer",
                    "table": "",
                    "kv_share": {str(n): shares[n] if press else 1.0 for n in args.lengths},
                }
                for row, press in rows
            ],
        }
        out.write(json.dumps(header) + "\n")
        for number, case in enumerate(cases, 1):
            begin = time.monotonic()
            prompt, cut = case["prompt"], case["prompt"].rfind(QUESTION)
            question = None
            if args.question_after and cut >= 0:
                prompt, question = prompt[:cut], answerer.ids(prompt[cut:], first=False)
            context = answerer.ids(prompt, first=True)
            line = {k: case[k] for k in ("task", "length", "index", "depth")}
            line["scores"], line["answers"] = {}, {}
            for row, name in rows:
                press = name and make_press(name, shares[case["length"]], context.shape[1], heads)
                text = answerer.answer(context, question, press)
                line["scores"][row] = score_of(case, text)
                line["answers"][row] = text
            line["seconds"] = time.monotonic() - begin
            out.write(json.dumps(line) + "\n")
            print(f"{number}/{len(cases)} {case['task']} {case['length']} {line['seconds']:.1f} s",
                  file=sys.stderr)


if __name__ == "__main__":
    main()
