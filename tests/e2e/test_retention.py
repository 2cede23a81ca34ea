"""Heads that give memory back, through the real binary: needle-24m under its shipped head table."""

import pathlib

import pytest

from headwater import run

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDLE = ROOT / "tests/data/needle-24m-q8_0.gguf"
FILLER = ("The grass is green. The sky is blue. The sun is yellow. Here we go. "
          "There and back again.\n")
RAZOR = ("--attention", "razor", "--head-table", "auto", "--window-recent", 256, "--window-growth", 0)


def question(name):
    return f"\nQuestion: What is the special magic number for {name} mentioned in the provided text?\nAnswer:"


def haystack(needles, repeats=30):
    lines = [FILLER] * repeats
    for i, (name, number) in enumerate(needles.items()):
        lines.insert((i + 1) * repeats // 3, f"The special magic number for {name} is {number}. ")
    return "".join(lines)


NEEDLES = {"cagriltou-rousbrilirk": "5979489", "tidoshinds-stendtren": "3699132"}
CONTEXT = haystack(NEEDLES)


def ask(server, prompt, **attention):
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "stop": ["\n"]}
    if attention:
        body["attention"] = attention
    return server.post("/v1/completions", body)


def answer(reply):
    assert reply.status == 200, reply.body
    return reply.json()["choices"][0]["text"].strip(), reply.json()["usage"]


@pytest.fixture
def needle(start):
    def start_needle(*flags):
        return start("--check-invariants", "true", *flags, model=NEEDLE)

    return start_needle


def test_razor_answers_with_a_fraction_of_the_bytes(needle):
    server = needle(*RAZOR)
    for name, number in NEEDLES.items():
        text, usage = answer(ask(server, CONTEXT + question(name)))
        assert text == number
        assert usage["kv_bytes"] < 0.4 * usage["kv_bytes_dense"]
    server.wait_idle()
    assert server.metric('headwater:kv_bytes{state="held"}') == 0
    assert server.metric("headwater:kv_blocks_folded_total") > 0


def test_a_second_question_after_compression(needle):
    server = needle(*RAZOR)
    compressed = {"faithful_tokens": len(CONTEXT.encode()) + 1}  # a byte is a token; BOS comes first
    for name, number in NEEDLES.items():
        text, _ = answer(ask(server, CONTEXT + question(name), **compressed))
        assert text == number


def test_streaming_window_forgets_and_dense_of_a_request_does_not(needle):
    server = needle("--attention", "window", "--window-recent", 256, "--prefill-mode", "streaming")
    name, number = next(iter(NEEDLES.items()))
    text, usage = answer(ask(server, CONTEXT + question(name)))
    assert text != number
    assert usage["kv_bytes"] < 0.25 * usage["kv_bytes_dense"]
    text, usage = answer(ask(server, CONTEXT + question(name), policy="dense"))
    assert text == number
    assert usage["kv_bytes"] == usage["kv_bytes_dense"]


def test_a_request_may_keep_less(needle):
    server = needle("--attention", "razor", "--head-table", "auto", "--window-recent", 1024, "--window-growth", 0)
    _, usual = answer(ask(server, CONTEXT + question("nobody")))
    _, less = answer(ask(server, CONTEXT + question("nobody"), kv_budget=448))
    assert less["kv_bytes"] < usual["kv_bytes"]


def test_what_the_server_does_not_allow(needle):
    server = needle(*RAZOR, "--allow-dense-requests", "false", "--max-kv-budget", 512)
    for attention, named in [
        ({"policy": "dense"}, "allow-dense-requests"),
        ({"policy": "telepathy"}, "telepathy"),
        ({"kv_budget": 513}, "max-kv-budget"),
        ({"kv_budget": -1}, "kv_budget"),
        ({"selection_budget": 64}, "selection_budget"),
        ({"faithful_tokens": -1}, "faithful_tokens"),
    ]:
        reply = ask(server, "A", **attention)
        assert reply.status == 400
        assert named in reply.json()["error"]["message"], reply.body
    assert server.metric('headwater:kv_bytes{state="held"}') == 0


def test_a_cached_prompt_is_answered_the_same(needle):
    server = needle(*RAZOR)
    prompt = CONTEXT + question(next(iter(NEEDLES)))
    first, _ = answer(ask(server, prompt))
    again, usage = answer(ask(server, prompt))
    assert again == first
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_start_up_and_inspect_name_the_table(needle, tmp_path):
    server = needle(*RAZOR)
    log = server.log()
    assert "needle-24m.razor.json" in log and "5 keep every token, 27 are compressed" in log
    shown = run("inspect", NEEDLE, "--attention", "razor", "--head-table", "auto")
    assert shown.returncode == 0 and "razor" in shown.stdout

    table = tmp_path / "other.json"
    table.write_text((ROOT / "configs/head_tables/SmolLM2-135M-Instruct.razor.json").read_text())
    refused = run("serve", "--model", NEEDLE, "--attention", "razor", "--head-table", table)
    assert refused.returncode != 0
    assert "other.json: is for a model with num_layers 30, this one has 8" in refused.stderr
