#!/usr/bin/env python3
"""Makes tests/data/text/tokenizers.json: small tokenizers of every shape that tokenizer_json.h takes, trained
on the texts below by the `tokenizers` package, and the ids it gives.

usage: make_tokenizer_goldens.py [--out tests/data/text]
"""

import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from make_text_goldens import CORPUS

TRAINING = CORPUS + [
    "the cat sat on the mat and the dog ran after the cat", "a cat, a dog; two cats & three dogs!", "low lower lowest",
    "new newer newest wide wider widest", "1 12 123 1234", "caf\u00e9 na\u00efve \u00e9t\u00e9", "CamelCase snake_case",
] * 3
TEXTS = CORPUS + [
    "the cats  are lower", " the", "the ", "<mask>", "a <mask> b", "a  <mask>  b", "<tool>x", "x<tool>y", "word", "sword word",
    "\u00e9\u0301 \ufb01ve \u212b \u2460", "NEW<s>new</s>", "a-b_c", "\u2581\u2581a\u2581", "a\u00adb", "\u4f60\u597d\u4f60\u597d",
]
SPECIALS = [
    AddedToken("<s>", special=True, normalized=False), AddedToken("</s>", special=True, normalized=False),
    AddedToken("<mask>", special=True, lstrip=True, normalized=False),
    AddedToken("<tool>", special=False, rstrip=True, normalized=False),
    AddedToken("word", special=False, single_word=True, normalized=False),
    AddedToken("New", special=False, normalized=True),
]
SIZE = 120


def ends(tokenizer, single="<s> $A </s>"):
    ids = [(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")]
    return processors.TemplateProcessing(single=single, special_tokens=ids)


def finish(tokenizer, template=None):
    tokenizer.add_special_tokens([t for t in SPECIALS if t.special])
    tokenizer.add_tokens([t for t in SPECIALS if not t.special])
    if template:
        tokenizer.post_processor = ends(tokenizer, template)
    return tokenizer


def bpe(pre, decoder, normalizer=None, template=None, alphabet=(), **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoder
    if normalizer:
        tokenizer.normalizer = normalizer
    unknown = [model["unk_token"]] if "unk_token" in model else []
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)] if model.get("byte_fallback") else []
    trainer = trainers.BpeTrainer(vocab_size=SIZE + len(byte_tokens) + len(alphabet), show_progress=False,
                                  special_tokens=unknown + byte_tokens, initial_alphabet=list(alphabet),
                                  limit_alphabet=max(60, len(alphabet)))
    tokenizer.train_from_iterator(TRAINING, trainer)
    if byte_tokens:  # trained as special tokens, which they are not
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return finish(tokenizer, template)


def unigram(pre, decoder, normalizer=None, template=None, byte_fallback=False):
    tokenizer = Tokenizer(models.Unigram())
    if pre:
        tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder
    plain = [text for text in TRAINING if text.isascii()]  # every character of them gets a token
    tokenizer.train_from_iterator(plain, trainers.UnigramTrainer(
        vocab_size=SIZE, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]))
    if byte_fallback:
        data = json.loads(tokenizer.to_str())
        data["model"]["byte_fallback"] = True
        data["model"]["vocab"] += [[f"<0x{b:02X}>", 0.0] for b in range(256)]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return finish(tokenizer, template)


def all_of():
    meta = lambda scheme, split=True: pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    pieces = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                decoders.Strip(" ", 1, 0)])
    byte_level = pre_tokenizers.ByteLevel
    letters = byte_level.alphabet()
    split = lambda pattern, behavior, invert=False: pre_tokenizers.Split(pattern, behavior, invert)
    sequence = pre_tokenizers.Sequence
    return {
        "sentencepiece_bpe": bpe(
            None, pieces, normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
            "<s> $A", unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        "metaspace_first": bpe(meta("first", False), decoders.Metaspace(prepend_scheme="first"), unk_token="<unk>",
                               fuse_unk=True),
        "metaspace_never": bpe(meta("never"), decoders.Metaspace(prepend_scheme="never"), unk_token="<unk>"),
        "gemma": bpe(split(" ", "merged_with_previous"), pieces, normalizers.Replace(" ", "\u2581"), "<s> $A",
                     unk_token="<unk>", byte_fallback=True, fuse_unk=True, ignore_merges=True),
        "byte_level": bpe(byte_level(add_prefix_space=True), decoders.ByteLevel(), alphabet=letters),
        "roberta": bpe(byte_level(add_prefix_space=False), decoders.ByteLevel(), normalizers.NFC(), "<s> $A </s>",
                       alphabet=letters),
        "accents": bpe(sequence([pre_tokenizers.Whitespace(), byte_level(add_prefix_space=False)]), decoders.ByteLevel(),
                       normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                             normalizers.Strip()]), alphabet=letters),
        "splits": bpe(sequence([
            split(Regex(r"\p{N}{1,3}"), "isolated"), split(Regex(r"[\p{L}\p{M}]+"), "merged_with_next"),
            split(Regex(r"\s+$|^\s"), "contiguous"), byte_level(add_prefix_space=False, use_regex=False)]),
            decoders.ByteLevel(), normalizers.NFKC(), alphabet=letters),
        "regexes": bpe(sequence([
            split(Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}+| ?[^\s\p{L}\p{N}]++[\r\n]*"
                        r"|\s*[\r\n]|\s+(?!\S)|\s+"), "removed", True),
            split(Regex(r" ?[^(\s|[.,!?\u2026\u3002])]+"), "isolated"), split(Regex(r"(?=\w{4})"), "isolated"),
            byte_level(add_prefix_space=False, use_regex=False)]), decoders.ByteLevel(), alphabet=letters),
        "digits_punctuation": bpe(sequence([
            pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Punctuation("merged_with_previous"), byte_level(add_prefix_space=False, use_regex=False)]),
            decoders.ByteLevel(), normalizers.NFKD(), alphabet=letters),
        "bert_pieces": bpe(sequence([
            pre_tokenizers.CharDelimiterSplit("-"), pre_tokenizers.BertPreTokenizer(),
            byte_level(add_prefix_space=False, use_regex=False)]), decoders.ByteLevel(), alphabet=letters),
        "unigram": unigram(meta("always"), decoders.Metaspace(), normalizers.NFKC(), "$A </s>"),
        "unigram_bytes": unigram(meta("first", False), pieces, normalizers.Replace(Regex(" {2,}"), " "), "<s> $A </s>",
                                 byte_fallback=True),
    }


def cases_of(tokenizer):
    out = []
    for text in TEXTS:
        both = []
        for parse in (False, True):
            tokenizer.encode_special_tokens = not parse
            both.append(tokenizer.encode(text, add_special_tokens=parse).ids)
        out.append([text, *both])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "data" / "text")
    args = parser.parse_args()
    goldens = {name: {"tokenizer": json.loads(t.to_str()), "cases": cases_of(t)} for name, t in all_of().items()}
    path = args.out / "tokenizers.json"
    path.write_text(json.dumps(goldens, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, sum(len(g["cases"]) for g in goldens.values()), "texts")


if __name__ == "__main__":
    main()
