#!/usr/bin/env python3
"""Makes tests/data/text/*.json: token ids by `tokenizers`, chat texts by jinja2.

usage: make_text_goldens.py --smollm2 SmolLM2.gguf --needle NEEDLE_HF_FOLDER [--templates FOLDER]
                            [--out tests/data/text]
       make_text_goldens.py --language    renders chat.json anew, with the templates it holds
--templates writes templates.json as well: renderings of published templates, by file name. It is
for a check against a folder that is at hand, too large to keep.
"""

import argparse
import copy
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

CORPUS = [
    "",
    " ",
    "Hello, world!",
    "The quick brown fox doesn't jump; they'll've said it's I'M done.",
    "  leading and trailing  ",
    "a  b   c    d\te\t\tf\n\n\ng\r\nh \n i",
    "\n \n  \n\t \n x",
    "        \u00a0\u2003\u3000wide spaces\u180e\u200b\u2028",
    "def f(x: int) -> str:\n    return f'{x!r:>8}'  # ok\n\n\nif __name__ == \"__main__\":\n\tprint(f(1))",
    "for (int i = 0; i < 1000000; ++i) { a[i] += 0x1F ^ ~b[i]; }",
    "3.14159 1,234,567 2024-01-02T03:04:05Z \u0661\u0662\u0663 \u00bd \u2167 12345678901234567890",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u061f \u05e9\u05dc\u05d5\u05dd",
    "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343\u036a\u0302 \u00e9 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "control \x00\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m \x7f\x80\x9f",
    "\u017f's 'S 'LL 'Re \u212a K \u00df \u0130\u0131",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "not <|im_start|special|> <|im_end|><|endoftext|> <|bos|><|user|>x<|end|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft",
    "================================================================================",
    "\ufeffBOM \ufffd \ue000 \U0010ffff \U000e0001",
    "https://example.com/a/b?c=d&e=%20f#g me@example.org C:\\path\\to\\file",
    "\u0441\u044a\u0435\u0448\u044c \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0391\u03b8\u03ae\u03bd\u03b1",
]

NOW = 1767182400  # 2025-12-31 12:00:00 UTC


def tokenizer_of_gguf(path):
    import gguf
    import tokenizers
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields["tokenizer." + key].contents()
    tokens, merges, kinds = field("ggml.tokens"), field("ggml.merges"), field("ggml.token_type")
    if field("ggml.pre") != "smollm":
        raise SystemExit("expected a file with the smollm pre-tokenizer")
    model = tokenizers.models.BPE(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=[tuple(m.split(" ")) for m in merges])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
    plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(control)
    return tokenizer, plain, field("chat_template")


def ids_of(tokenizer, plain):
    """With and without special tokens parsed."""
    return [{
        "text": text,
        "special": tokenizer.encode(text, add_special_tokens=False).ids,
        "plain": plain.encode(text, add_special_tokens=False).ids,
    } for text in CORPUS]


def call(name, arguments, call_id="call00001"):
    return {"id": call_id, "type": "function",
            "function": {"name": name, "arguments": arguments}}


TOOLS = [{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city: \"now\" & later <b>\u00e9\u4f60\U0001f600</b>.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "City's name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "ratio": {"type": "number", "maximum": 1e-7},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}, {
    "type": "function",
    "function": {"name": "stop", "description": "Stops.",
                 "parameters": {"type": "object", "properties": {}}},
}]

user = lambda text: {"role": "user", "content": text}
assistant = lambda text, **more: {"role": "assistant", "content": text, **more}
system = lambda text: {"role": "system", "content": text}

CONVERSATIONS = {
    "one": {"messages": [user("Hi there")], "add_generation_prompt": True},
    "no_prompt": {"messages": [user("Hi"), assistant("Hello.")], "add_generation_prompt": False},
    "system": {"messages": [system("  Be brief.\n"), user("Hi"), assistant("Hello!  "),
                            user("\u4f60\u597d \U0001f600 <|im_end|> 'q' \"d\" \\n")],
               "add_generation_prompt": True},
    "thinking": {"messages": [user("2+2?"), assistant("<think>\nadd\n</think>\n\n4"), user("+1?")],
                 "add_generation_prompt": True, "enable_thinking": False},
    "parts": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "Part one."}, {"type": "text", "text": " Part two."}]}],
        "add_generation_prompt": True},
    "tools": {"messages": [system("Use tools."), user("Weather in Paris?")], "tools": TOOLS,
              "add_generation_prompt": True},
    "tool_result": {"messages": [
        user("Weather in Paris?"),
        assistant(None, tool_calls=[call("get_weather", {"city": "Paris", "days": 2,
                                                         "tags": ["a", "\u00e9"], "deep": {"x": None, "y": [True, 1.5]}})]),
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather",
         "content": "{\"temp\": 21.5}"},
        assistant("It is 21.5 degrees."), user("Thanks")], "tools": TOOLS,
        "add_generation_prompt": True},
    "tool_text": {"messages": [
        user("Weather?"),
        assistant("", tool_calls=[call("get_weather", "{\"city\": \"Rome\"}", "abcdefghi"),
                                  call("stop", "{}", "ihgfedcba")]),
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "rain"},
        {"role": "tool", "tool_call_id": "ihgfedcba", "name": "stop", "content": "ok"}],
        "tools": TOOLS, "add_generation_prompt": True},
    "system_twice": {"messages": [user("a"), system("b"), user("c")],
                     "add_generation_prompt": True},
    "empty": {"messages": [], "add_generation_prompt": True},
}

# Small templates for the language itself: white space, scopes, filters, tests, methods, errors.
LANGUAGE = json.loads((pathlib.Path(__file__).parent / "jinja_cases.json").read_text())


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

        def _render(self, caller):
            return caller()

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW).strftime(f)
    return env


def render(source, variables):
    """The text, or null where the template or one of its values is refused."""
    try:
        return environment().from_string(source).render(**copy.deepcopy(variables))
    except Exception:
        return None


def conversations(source, bos, eos):
    out = {}
    for name, variables in CONVERSATIONS.items():
        out[name] = render(source, {**variables, "bos_token": bos, "eos_token": eos})
    return out


def language():
    return [{"source": source, "text": render(source, LANGUAGE["variables"])}
            for source in LANGUAGE["sources"]]


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2")
    parser.add_argument("--needle", type=pathlib.Path)
    parser.add_argument("--language", action="store_true")
    parser.add_argument("--templates", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).parent.parent / "data" / "text")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    if args.language:
        chat = json.loads((args.out / "chat.json").read_text())
        chat.update(conversations=CONVERSATIONS, language=language(), variables=LANGUAGE["variables"])
        for model in chat["templates"].values():
            model["texts"] = conversations(model["source"], model["bos"], model["eos"])
        write(args.out / "chat.json", chat)
        return
    import tokenizers
    smol, smol_plain, smol_template = tokenizer_of_gguf(args.smollm2)
    write(args.out / "smollm2_ids.json", ids_of(smol, smol_plain))

    needle_json = (args.needle / "tokenizer.json").read_text()
    needle = tokenizers.Tokenizer.from_str(needle_json)
    without = json.loads(needle_json)
    without["added_tokens"], without["post_processor"] = [], None
    write(args.out / "needle_ids.json",
          ids_of(needle, tokenizers.Tokenizer.from_str(json.dumps(without))))
    needle_template = json.loads(
        (args.needle / "tokenizer_config.json").read_text())["chat_template"]

    write(args.out / "chat.json", {
        "now": NOW,
        "conversations": CONVERSATIONS,
        "templates": {
            "smollm2": {"source": smol_template, "bos": "<|im_start|>", "eos": "<|im_end|>",
                        "texts": conversations(smol_template, "<|im_start|>", "<|im_end|>")},
            "needle": {"source": needle_template, "bos": "<|bos|>", "eos": "<|eos|>",
                       "texts": conversations(needle_template, "<|bos|>", "<|eos|>")},
        },
        "language": language(),
        "variables": LANGUAGE["variables"],
    })
    if args.templates:
        write(args.out / "templates.json", {
            file.name: conversations(file.read_text(), "<s>", "</s>")
            for file in sorted(args.templates.glob("*.jinja"))})


if __name__ == "__main__":
    main()
