"""/v1/completions, /tokenize and /detokenize."""

import pytest

PROMPT = "The capital of France is"


def complete(client, model, **options):
    options = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, **options}
    return client.completions.create(model=model, **options)


def tokenize(server, text):
    reply = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    return reply.json()["tokens"]


@pytest.fixture(scope="module")
def greedy(client, model):
    return complete(client, model).choices[0].text


def test_text(client, model, greedy):
    reply = complete(client, model)
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-")
    assert "Paris" in greedy
    assert reply.choices[0].finish_reason == "length"


def test_default_is_sixteen_tokens(client, model):
    reply = client.completions.create(
        model=model, prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert reply.usage.completion_tokens == 16


def test_stream(client, model, greedy):
    chunks = list(complete(client, model, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == greedy
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8


def test_token_ids_and_lists(client, model, server, greedy):
    ids = tokenize(server, PROMPT)
    assert complete(client, model, prompt=ids).choices[0].text == greedy
    other = complete(client, model, prompt="Water is").choices[0].text
    for prompt in (["Water is", PROMPT], [tokenize(server, "Water is"), ids]):
        reply = complete(client, model, prompt=prompt)
        assert [(c.index, c.text) for c in reply.choices] == [(0, other), (1, greedy)]
        assert reply.usage.completion_tokens == 16


def test_choices_are_numbered_prompt_major(client, model):
    reply = complete(client, model, prompt=[PROMPT, "Water is"], n=2)
    texts = [c.text for c in sorted(reply.choices, key=lambda c: c.index)]
    assert len(texts) == 4 and texts[0] == texts[1] != texts[2] == texts[3]


def test_logprobs(client, model, greedy):
    reply = complete(client, model, logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert "".join(logprobs.tokens) == greedy
    sizes = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.text_offset)}
    assert sizes == {8} and len(logprobs.top_logprobs) == 8
    offset = logprobs.text_offset[0]
    for token, start, chosen, top in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.token_logprobs, logprobs.top_logprobs
    ):
        assert start == offset
        offset += len(token)
        assert top[token] == chosen == max(top.values())


def test_echo_scores_the_prompt(client, model, server, greedy):
    """The prompt's logprobs are those that generating the same tokens gave."""
    generated = complete(client, model, logprobs=1).choices[0]
    scored = complete(client, model, prompt=PROMPT + greedy, echo=True, logprobs=1, max_tokens=1)
    logprobs = scored.choices[0].logprobs
    assert scored.choices[0].text.startswith(PROMPT + greedy)
    assert logprobs.token_logprobs[0] is None
    ids = tokenize(server, PROMPT + greedy)
    assert len(logprobs.tokens) == len(ids) + 1
    assert "".join(logprobs.tokens) == scored.choices[0].text
    first = len(tokenize(server, PROMPT))
    assert ids[:first] == tokenize(server, PROMPT), "the prompt ends on a token border"
    again = logprobs.token_logprobs[first:len(ids)]
    assert again == pytest.approx(generated.logprobs.token_logprobs, abs=2e-3)


def test_echo_without_generating(server, model):
    """As lm-evaluation-harness asks: token ids, no output."""
    ids = tokenize(server, PROMPT)
    body = {"model": model, "prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": 0,
            "temperature": 0, "seed": 1234}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids)
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(lp < 0 for lp in choice["logprobs"]["token_logprobs"][1:])
    assert all(choice["logprobs"]["top_logprobs"][1:])


def test_echo_does_not_depend_on_the_cache(client, model):
    prompt = "A sentence that is scored twice, the second time with its pages cached. " * 5
    first, second = (
        complete(client, model, prompt=prompt, echo=True, logprobs=1, max_tokens=1).choices[0]
        for _ in range(2)
    )
    assert first.logprobs.token_logprobs == second.logprobs.token_logprobs


def test_stop_token_ids(client, model, server, greedy):
    ids = tokenize(server, greedy)
    reply = server.post("/v1/completions", {
        "model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8,
        "stop_token_ids": [ids[2]]}).json()
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == ids[2]
    assert greedy.startswith(choice["text"]) and len(choice["text"]) < len(greedy)


@pytest.mark.parametrize("prompt", [[], "", [[]], [-1], [10**9], [1.5], {"x": 1}, None, [["a"]]])
def test_bad_prompts(server, prompt):
    reply = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "prompt"


def test_too_many_logprobs(server):
    reply = server.post("/v1/completions", {"prompt": PROMPT, "logprobs": 100000})
    assert reply.status == 400 and reply.json()["error"]["param"] == "logprobs"


TEXTS = [PROMPT, "naïve café — 東京 🌊\n\ttabs", "<|im_start|>user", " leading", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_tokenize_and_back(server, text):
    vllm = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert vllm["count"] == len(vllm["tokens"]) and vllm["max_model_len"] == 8192
    llama = server.post("/tokenize", {"content": text}).json()
    assert llama["tokens"] == vllm["tokens"]
    back = server.post("/detokenize", {"tokens": vllm["tokens"]}).json()
    assert back["prompt"] == back["content"] == text


def test_tokenize_pieces(server):
    reply = server.post("/tokenize", {"content": PROMPT, "with_pieces": True}).json()
    assert "".join(t["piece"] for t in reply["tokens"]) == PROMPT
    assert [t["id"] for t in reply["tokens"]] == tokenize(server, PROMPT)


def test_tokenize_messages_counts_as_chat_does(client, model, server):
    messages = [{"role": "user", "content": "Hello there"}]
    count = server.post("/tokenize", {"messages": messages}).json()["count"]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=1)
    assert reply.usage.prompt_tokens == count


def test_detokenize_refuses_ids_outside_the_vocabulary(server):
    for tokens in ([10**6], [-1], ["a"]):
        reply = server.post("/detokenize", {"tokens": tokens})
        assert reply.status == 400 and reply.json()["error"]["param"] == "tokens"
