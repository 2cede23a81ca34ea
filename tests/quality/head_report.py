#!/usr/bin/env python3
"""Merges the JSON lines of head_eval and peer_kvpress.py into tables, one per length.

    python3 tests/quality/head_report.py r*.jsonl peer.jsonl > table.md
    python3 tests/quality/head_report.py --json r*.jsonl

Columns: dense, every head table, the mean of its random draws, all but its heads, every peer. Only
prompts that all columns answered count. A random draw may hold some of the heads that matter, so a
second table shows every draw with the number of the table's heads it holds. Repeated blocks and
KL of text are nats, everything else is the share of right answers in percent.
"""

import argparse
import collections
import json
import statistics
import sys

LOSSES = ("repeated_block", "text_kl")  # nats
CONTROL = "local"  # needs no retrieval
HARDEST = ("niah_multivalue", "multivalue")
GROUPS = {
    "mean, but multivalue and control": lambda task: task not in (*HARDEST, CONTROL),
    "mean, but control": lambda task: task != CONTROL,
}


def read(paths):
    """variants by name; scores by (task, length, index) and variant name."""
    variants, scores, seconds = {}, collections.defaultdict(dict), collections.defaultdict(list)
    for path in paths:
        with open(path) as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was cut off
                for variant in entry.get("variants", []):
                    variants.setdefault(variant["name"], variant)
                    variants[variant["name"]]["kv_share"].update(variant["kv_share"])
                if "scores" in entry:
                    case = entry["task"], entry["length"], entry["index"]
                    scores[case].update(entry["scores"])
                    seconds[path, entry["length"]].append(entry["seconds"])
    return variants, scores, seconds


def columns_of(variants):
    """(title, names of the variants whose mean it is)"""
    columns = []
    draws = collections.defaultdict(list)
    for name, variant in variants.items():
        if variant["kind"] == "random":
            draws[variant["table"]].append(name)
    for name, variant in variants.items():
        if variant["kind"] == "random":
            continue
        columns.append((name, [name]))
        if variant["kind"] == "table" and draws[name]:
            columns.append((f"{name}: {len(draws[name])} random", draws[name]))
    return columns


def mean(values):
    return statistics.fmean(values) if values else None


def show(value, task):
    if value is None:
        return "-"
    return f"{value:.4f}" if task in LOSSES else f"{100 * value:.1f}"


def table(rows):
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def evaluate(variants, scores):
    """[{length, n, rows: [{task, columns: {title: value}}], draws: [...]}]"""
    columns = columns_of(variants)
    result = []
    for length in sorted({length for _, length, _ in scores}):
        cases = {case: s for case, s in scores.items() if case[1] == length}
        names = [name for _, members in columns for name in members]
        present = [n for n in names if any(n in s for s in cases.values())]
        complete = {c: s for c, s in cases.items() if all(n in s for n in present)}
        tasks = sorted({task for task, _, _ in complete})

        def score(name, task, complete=complete):
            return mean([s[name] for (t, _, _), s in complete.items() if t == task])

        per_task = {
            task: {
                title: mean([score(n, task) for n in members])
                for title, members in columns
                if members[0] in present
            }
            for task in tasks
        }
        rows = [{"task": task, "columns": per_task[task]} for task in tasks]
        for group, belongs in GROUPS.items():
            members = [task for task in tasks if belongs(task) and task not in LOSSES]
            if members:
                titles = per_task[members[0]]
                rows.append(
                    {
                        "task": group,
                        "columns": {t: mean([per_task[m][t] for m in members]) for t in titles},
                    }
                )
        shares = [task for task in tasks if task not in (*LOSSES, CONTROL)]
        judged = shares or tasks
        draws = []
        for name, variant in variants.items():
            if variant["kind"] not in ("table", "random", "all-but") or name not in present:
                continue
            values = [score(name, task) for task in judged]
            draws.append(
                {
                    "variant": name,
                    "full": variant["full"],
                    "held": variant["held"],
                    "mean": mean(values),
                    "multivalue": mean([score(name, task) for task in tasks if task in HARDEST]),
                }
            )
        result.append(
            {
                "length": length,
                "prompts": len(complete),
                "left_out": len(cases) - len(complete),
                "kv_share": {
                    title: mean([variants[n]["kv_share"].get(str(length)) or 0 for n in members])
                    for title, members in columns
                    if members[0] in present
                },
                "rows": rows,
                "draws": draws,
            }
        )
    return result


def print_markdown(result, seconds):
    for part in result:
        length = part["length"]
        titles = list(part["kv_share"])
        print(f"### {length} tokens, {part['prompts']} prompts", end="")
        print(f" ({part['left_out']} not answered by all yet)\n" if part["left_out"] else "\n")
        rows = [["task", *titles]]
        for row in part["rows"]:
            rows.append([row["task"], *(show(row["columns"].get(t), row["task"]) for t in titles)])
        rows.append(["KV bytes, % of dense", *(f"{100 * part['kv_share'][t]:.1f}" for t in titles)])
        print(table(rows) + "\n")
        if part["draws"]:
            is_loss = all(row["task"] in LOSSES for row in part["rows"])
            rows = [["heads that keep all", "how many", "of the table's", "mean", "multivalue"]]
            for draw in part["draws"]:
                rows.append(
                    [
                        draw["variant"],
                        draw["full"],
                        draw["held"],
                        show(draw["mean"], LOSSES[0] if is_loss else ""),
                        show(draw["multivalue"], ""),
                    ]
                )
            print(table(rows) + "\n")
        times = {path: s for (path, at), s in seconds.items() if at == length}
        print("Seconds per prompt:", ", ".join(f"{p} {statistics.fmean(s):.1f}" for p, s in times.items()))
        print()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    variants, scores, seconds = read(args.files)
    if not scores:
        sys.exit("no results in " + ", ".join(args.files))
    result = evaluate(variants, scores)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_markdown(result, seconds)


if __name__ == "__main__":
    main()
