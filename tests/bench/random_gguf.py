#!/usr/bin/env python3
"""Writes a GGUF file of Llama-3-8B's shape (or a smaller one) with random F16 weights: right for the
time that loading takes, meaningless for answers. Standard library only.

    python3 tests/bench/random_gguf.py /dev/shm/random-8b.gguf
    headwater serve --model /dev/shm/random-8b.gguf
"""

import argparse
import itertools
import os
import struct

SHAPES = {  # layers, hidden, ffn, heads, kv heads, head size, vocabulary
    "llama3-8b": (32, 4096, 14336, 32, 8, 128, 128256),
    "smollm2-135m": (30, 576, 1536, 9, 3, 64, 49152),
}
U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
TYPE_F32, TYPE_F16 = 0, 1
ALIGNMENT = 32
BLOCK = 64 << 20


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def strings(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def byte_characters():
    """The printable character that byte-level BPE writes for each byte."""
    extra = itertools.count(0x100)
    printable = lambda b: 0x21 <= b <= 0x7E or (b >= 0xA1 and b != 0xAD)  # noqa: E731
    return [chr(b) if printable(b) else chr(next(extra)) for b in range(256)]


def vocabulary(size):
    """Bytes, 256 control tokens, then words that merges of two or three bytes make."""
    letters = byte_characters()
    control = [f"<|control_{i}|>" for i in range(256)]
    merges = [f"{a} {b}" for a in letters for b in letters]
    merges += [f"{a}{b} {c}" for a in letters[97:123] for b in letters for c in letters]
    merges = merges[: size - 512]
    tokens = letters + control + [merge.replace(" ", "") for merge in merges]
    return tokens, [1] * 256 + [3] * 256 + [1] * len(merges), merges


def metadata(shape):
    layers, hidden, ffn, heads, kv_heads, head_dim, vocab = shape
    tokens, kinds, merges = vocabulary(vocab)
    numbers = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": hidden,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
    }
    pairs = [pair(f"llama.{key}", U32, struct.pack("<I", value)) for key, value in numbers.items()]
    pairs += [
        pair("general.architecture", STRING, text("llama")),
        pair("general.name", STRING, text("random")),
        pair("llama.rope.freq_base", F32, struct.pack("<f", 500000.0)),
        pair("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        pair("tokenizer.ggml.model", STRING, text("gpt2")),
        pair("tokenizer.ggml.pre", STRING, text("llama-bpe")),
        pair("tokenizer.ggml.tokens", ARRAY, strings(tokens)),
        pair("tokenizer.ggml.merges", ARRAY, strings(merges)),
        pair("tokenizer.ggml.token_type", ARRAY, struct.pack(f"<IQ{vocab}i", 5, vocab, *kinds)),
        pair("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 256)),
        pair("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 257)),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
    ]
    return pairs


def tensors(shape):
    """(name, sizes with the fastest first, type) in the order of the file."""
    layers, hidden, ffn, heads, kv_heads, head_dim, vocab = shape
    q, kv = heads * head_dim, kv_heads * head_dim
    yield "token_embd.weight", (hidden, vocab), TYPE_F16
    for i in range(layers):
        for name, sizes in (
            ("attn_q", (hidden, q)),
            ("attn_k", (hidden, kv)),
            ("attn_v", (hidden, kv)),
            ("attn_output", (q, hidden)),
            ("ffn_gate", (hidden, ffn)),
            ("ffn_up", (hidden, ffn)),
            ("ffn_down", (ffn, hidden)),
        ):
            yield f"blk.{i}.{name}.weight", sizes, TYPE_F16
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", (hidden,), TYPE_F32
    yield "output_norm.weight", (hidden,), TYPE_F32
    yield "output.weight", (hidden, vocab), TYPE_F16


def num_bytes(sizes, kind):
    count = 1
    for size in sizes:
        count *= size
    return count * (4 if kind == TYPE_F32 else 2)


def padded(size):
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def random_halves(count):
    """F16 of either sign between 2^-6 and 2^-5."""
    numbers = int.from_bytes(os.urandom(2 * count), "little")
    keep = int.from_bytes(b"\xff\x83" * count, "little")
    exponent = int.from_bytes(b"\x00\x24" * count, "little")
    return (numbers & keep | exponent).to_bytes(2 * count, "little")


def write(path, shape):
    pairs, listed = metadata(shape), list(tensors(shape))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, sizes, kind in listed:
        dims = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header += text(name) + dims + struct.pack("<IQ", kind, offset)
        offset += padded(num_bytes(sizes, kind))
    halves = memoryview(random_halves(BLOCK // 2))
    ones = struct.pack("<f", 1.0)
    with open(path, "wb", buffering=0) as file:
        file.write(header.ljust(padded(len(header)), b"\0"))
        for _, sizes, kind in listed:
            size = num_bytes(sizes, kind)
            if kind == TYPE_F32:
                file.write((ones * (size // 4)).ljust(padded(size), b"\0"))
                continue
            for at in range(0, padded(size), BLOCK):
                file.write(halves[: min(BLOCK, padded(size) - at)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    args = parser.parse_args()
    write(args.path, SHAPES[args.shape])
    print(f"{args.path}: {os.path.getsize(args.path) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
