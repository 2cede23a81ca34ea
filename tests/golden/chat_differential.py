#!/usr/bin/env python3
"""Renders templates and conversations with jinja2 and with `headwater render`, and compares.

usage: chat_differential.py [--headwater build/release/bin/headwater] [--count 40] [--seed 1]
                            [--batch PROGRAM] [TEMPLATE_OR_FOLDER...]
Conversations are made up from a seed: system and developer messages, several turns, contents that are
texts or lists of parts, tools, tool calls with arguments as objects or texts, tool results, reasoning,
and the variables that templates of published models know. The snippets of jinja_cases.json run too.
Where jinja2 raises, `headwater render` has to exit with status 1. Exits with 1 if anything differs.
--batch names a program that renders JSON lines {"source", "variables"} to {"text"} or {"error"},
which saves a process for each text.
"""

import argparse
import collections
import copy
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from make_text_goldens import LANGUAGE, NOW, environment

TEXTS = [
    "", " ", "Hi", "Hello, world!\n", "  spaces around  ", "line\n\nline\n", "\u4f60\u597d \U0001f600 \u00e9",
    "'single' \"double\" \\back\\ \\n", "<|im_end|> <think>x</think> </s> [INST]", "{{ x }} {% if %} {# c #}",
    "<b>&amp;</b>", "a" * 300, "\t\ttabs\r\nand returns", "{\"json\": [1, 2]}", "2+2=4",
    "<think>\nplan\n</think>\n\nanswer", "<think>only", "x</think>y", "\u2028\u00a0end",
]
NAMES = ["get_weather", "search", "run_python", "stop"]


def value(rng, depth=0):
    kinds = ["text", "int", "float", "bool", "null"] + (["list", "dict"] if depth < 3 else [])
    kind = rng.choice(kinds)
    if kind == "text":
        return rng.choice(TEXTS)
    if kind == "int":
        return rng.choice([0, 1, -7, 10**12])
    if kind == "float":
        return rng.choice([0.5, 1.0, -2.5e-7, 1e21, 3.14159])
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "null":
        return None
    if kind == "list":
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["a", "b\u00e9", "c d", "q\"", "type"]): value(rng, depth + 1)
            for _ in range(rng.randrange(4))}


def schema(rng, depth=0):
    kind = rng.choice(["string", "integer", "number", "boolean", "array", "object"])
    out = {"type": kind}
    if rng.random() < 0.2:
        out["type"] = [kind, "null"]
    if rng.random() < 0.7:
        out["description"] = rng.choice(TEXTS)
    if rng.random() < 0.3:
        out["enum"] = [value(rng, 3) for _ in range(2)]
    if rng.random() < 0.2:
        out["default"] = value(rng, 2)
    if rng.random() < 0.1:
        out["nullable"] = True
    if kind == "array" and depth < 3:
        out["items"] = schema(rng, depth + 1)
    if kind == "object" and depth < 3:
        out["properties"] = {name: schema(rng, depth + 1) for name in rng.sample(["x", "y", "z"], rng.randrange(3))}
        if rng.random() < 0.5:
            out["required"] = list(out["properties"])[:1]
    if rng.random() < 0.1:
        out["anyOf"] = [{"type": "string"}, {"type": "integer"}]
    return out


def tool(rng):
    function = {"name": rng.choice(NAMES), "description": rng.choice(TEXTS + ["Does it."])}
    names = rng.sample(["city", "unit", "days", "code"], rng.randrange(5))
    function["parameters"] = {"type": "object", "properties": {n: schema(rng) for n in names}}
    if rng.random() < 0.7:
        function["parameters"]["required"] = names[:rng.randrange(len(names) + 1)]
    if rng.random() < 0.1:
        function["return"] = {"type": "string", "description": "what came out"}
    if rng.random() < 0.1:
        del function["parameters"]
    return function if rng.wild and rng.random() < 0.1 else {"type": "function", "function": function}


def content(rng, text=None):
    text = rng.choice(TEXTS) if text is None else text
    if not rng.wild or rng.random() < 0.7:
        return text
    parts = [{"type": "text", "text": text}]
    if rng.random() < 0.5:
        parts.append({"type": "text", "text": rng.choice(TEXTS)})
    if rng.random() < 0.1:
        parts.append({"type": "image"})
    return parts


def conversation(rng):
    # Most are what a client would send; the wild ones mix shapes, and many templates raise.
    rng.wild = rng.random() < 0.3
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": rng.choice(["system", "system", "developer"]) if rng.wild else "system", "content": content(rng)})
    call_number = 0
    for _ in range(rng.randrange(1, 5)):
        messages.append({"role": "user", "content": content(rng)})
        while rng.random() < 0.4:
            calls = []
            for _ in range(rng.choice([1, 1, 2])):
                call_number += 1
                arguments = {k: value(rng, 1) for k in rng.sample(["city", "days", "code"], rng.randrange(4))}
                call = {"id": f"call{call_number:05d}", "type": "function",
                        "function": {"name": rng.choice(NAMES),
                                     "arguments": arguments if rng.random() < 0.8 else json.dumps(arguments)}}
                calls.append(call["function"] if rng.wild and rng.random() < 0.1 else call)
            message = {"role": "assistant", "tool_calls": calls}
            if not rng.wild or rng.random() < 0.8:
                message["content"] = rng.choice([None, "", "Let me see."] if rng.wild else ["", "Let me see."])
            if rng.random() < 0.3:
                message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = rng.choice(TEXTS)
            messages.append(message)
            for call in calls:
                result = {"role": rng.choice(["tool", "ipython"]) if rng.wild else "tool", "content": content(rng)}
                if not rng.wild or rng.random() < 0.8:
                    result["tool_call_id"] = call.get("id", "none")
                if rng.random() < 0.5:
                    result["name"] = call.get("function", call).get("name")
                if rng.wild and rng.random() < 0.1:
                    result["content"] = value(rng, 1)
                messages.append(result)
        if not rng.wild or rng.random() < 0.8:
            message = {"role": "assistant", "content": content(rng)}
            if rng.random() < 0.3:
                message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = rng.choice(TEXTS)
            messages.append(message)
    if rng.wild and rng.random() < 0.1:
        rng.shuffle(messages)
    if rng.random() < 0.7 and messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": "And now?"})
    variables = {"messages": messages, "add_generation_prompt": rng.random() < 0.7,
                 "bos_token": "<s>", "eos_token": "</s>"}
    if rng.random() < 0.5:
        variables["tools"] = [tool(rng) for _ in range(rng.randrange(1, 4))]
    elif rng.random() < 0.5:
        variables["tools"] = None
    extras = {"enable_thinking": True, "thinking": False, "reasoning_effort": "high", "documents": [
        {"title": "One", "text": "Body", "doc_id": 1}], "date_string": "26 Jul 2024", "builtin_tools": ["web"],
        "controls": {"length": "short"}, "custom_tools": None, "tools_in_user_message": False, "model_identity": "I.",
        "preserve_thinking": True, "clear_thinking": False, "continue_final_message": True, "unk_token": "<unk>",
        "citations": "on", "grounded": True, "add_vision_id": True, "truncate_history_thinking": False,
        "response_format": {"type": "object"}, "xml_tools": ["a"], "python_tools": None, "keep_past_thinking": True}
    for name in rng.sample(sorted(extras), rng.choice([0, 0, 1, 2, 4])):
        variables[name] = rng.choice([extras[name], extras[name], True, False, "low"])
    return variables


def expected(env, source, variables):
    try:
        return env.from_string(source).render(**copy.deepcopy(variables)), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def by_process(headwater, cases):
    with tempfile.NamedTemporaryFile("w", suffix=".jinja", newline="", encoding="utf-8") as file:
        last = None
        for source, variables in cases:
            if source is not last:
                file.seek(0)
                file.truncate()
                file.write(source)
                file.flush()
                last = source
            done = subprocess.run([headwater, "render", "--template", file.name, "--json", "--now", str(NOW)],
                                  input=json.dumps(variables).encode(), capture_output=True, timeout=60)
            if done.returncode not in (0, 1):
                raise SystemExit(f"exit status {done.returncode}: {done.stderr.decode()[:500]}")
            yield (None, done.stderr.decode()) if done.returncode else (done.stdout.decode(), None)


def by_batch(program, cases):
    lines = "\n".join(json.dumps({"source": s, "variables": v}) for s, v in cases)
    done = subprocess.run([program], input=lines.encode(), capture_output=True, check=True)
    for line in done.stdout.decode().split("\n")[:len(cases)]:
        reply = json.loads(line)
        yield reply.get("text"), reply.get("error")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    root = pathlib.Path(__file__).parent.parent.parent
    parser.add_argument("--headwater", default=str(root / "build/release/bin/headwater"))
    parser.add_argument("--batch")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shown", type=int, default=3)
    parser.add_argument("templates", nargs="*", type=pathlib.Path, default=[root / "../shared/data/templates"])
    args = parser.parse_args()
    env = environment()
    files = [f for path in args.templates for f in (sorted(path.glob("*.jinja")) if path.is_dir() else [path])]
    cases, names = [], []
    for file in files:
        source = file.read_bytes().decode()
        rng = random.Random(args.seed)
        for i in range(args.count):
            cases.append((source, conversation(rng)))
            names.append(file.name)
    for source in LANGUAGE["sources"]:
        cases.append((source, LANGUAGE["variables"]))
        names.append("snippets")
    replies = by_batch(args.batch, cases) if args.batch else by_process(args.headwater, cases)
    total, equal, raised, shown = (collections.Counter() for _ in range(4))
    for name, (source, variables), (got, problem) in zip(names, cases, replies):
        want, error = expected(env, source, variables)
        total[name] += 1
        raised[name] += want is None
        equal[name] += got == want
        if got == want or shown[name] >= args.shown:
            continue
        shown[name] += 1
        print(f"--- {name}" + (f": {source[:300]}" if name == "snippets" else ""))
        print("variables", json.dumps(variables)[:1500] if name != "snippets" else "")
        if got is None or want is None:
            print("jinja2", repr(want)[:300], error, "\nours  ", repr(got)[:300], problem)
        else:
            at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            print("differs at", at, "\njinja2", repr(want[max(0, at - 60):at + 60]),
                  "\nours  ", repr(got[max(0, at - 60):at + 60]))
    for name in total:
        print(f"{name}: {equal[name]} of {total[name]} equal, {raised[name]} of them raise")
    print(f"all: {sum(equal.values())} of {sum(total.values())} equal")
    return 0 if equal == total else 1


if __name__ == "__main__":
    sys.exit(main())
