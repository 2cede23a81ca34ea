#!/usr/bin/env python3
"""Writes a GGUF file of Llama-3-8B's shape (or a smaller one) with random weights: right for speed and
for the time that loading takes, meaningless for answers. llama.cpp loads it too. Standard library only.

    python3 tests/bench/random_gguf.py /dev/shm/random-8b.gguf
    headwater serve --model /dev/shm/random-8b.gguf
"""

import argparse
import collections
import concurrent.futures
import itertools
import os
import struct

Shape = collections.namedtuple("Shape", "layers hidden ffn heads kv_heads head_dim vocab tied")
SHAPES = {
    "llama3-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, True),
    "tiny": Shape(4, 256, 768, 8, 4, 64, 8192, False),
}
MIXES = {  # of the matrices, of the output
    "f16": ("F16", "F16"),
    "q8_0": ("Q8_0", "Q8_0"),
    "q4_k": ("Q4_K", "Q6_K"),
}
TYPES = {  # number, weights of a block, its bytes, where its f16 scales are
    "F32": (0, 1, 4, ()),
    "F16": (1, 1, 2, ()),
    "Q8_0": (8, 32, 34, (0,)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)),
}
U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
ALIGNMENT = 32
PERIOD_BLOCKS = (1 << 17) - 1  # odd: no two rows of a matrix are equal, nor two logits
WRITERS = min(16, os.cpu_count())


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
    vocab = shape.vocab
    tokens, kinds, merges = vocabulary(vocab)
    numbers = {
        "block_count": shape.layers,
        "context_length": 131072,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": vocab,
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


def tensors(shape, mix):
    """(name, sizes with the fastest first, type) in the order of the file."""
    layers, hidden, ffn, heads, kv_heads, head_dim, vocab, tied = shape
    matrices, output = MIXES[mix]
    q, kv = heads * head_dim, kv_heads * head_dim
    yield "token_embd.weight", (hidden, vocab), matrices
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
            yield f"blk.{i}.{name}.weight", sizes, matrices
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", (hidden,), "F32"
    yield "output_norm.weight", (hidden,), "F32"
    if not tied:
        yield "output.weight", (hidden, vocab), output


def num_bytes(sizes, kind):
    count = 1
    for size in sizes:
        count *= size
    _, elements, block_bytes, _ = TYPES[kind]
    assert sizes[0] % elements == 0, f"{kind} has blocks of {elements}, a row {sizes[0]} weights"
    return count // elements * block_bytes


def read_bytes(shape, mix):
    """Of weights that one step of decoding reads: all but the embedding, unless it is the output too."""
    read = (num_bytes(sizes, kind) for name, sizes, kind in tensors(shape, mix) if shape.tied or name != "token_embd.weight")
    return sum(read)


def padded(size):
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def random_blocks(kind):
    """Whole blocks: random bits under small scales; of F16, numbers of either sign between 2^-6 and 2^-5."""
    _, _, block_bytes, scales = TYPES[kind]
    if kind == "F32":
        return struct.pack("<f", 1.0) * PERIOD_BLOCKS
    if kind == "F16":
        count = PERIOD_BLOCKS * 64
        numbers = int.from_bytes(os.urandom(2 * count), "little")
        keep = int.from_bytes(b"\xff\x83" * count, "little")
        exponent = int.from_bytes(b"\x00\x24" * count, "little")
        return (numbers & keep | exponent).to_bytes(2 * count, "little")
    blocks = bytearray(os.urandom(PERIOD_BLOCKS * block_bytes))
    for at in scales:  # 2^-11
        blocks[at::block_bytes] = b"\x00" * PERIOD_BLOCKS
        blocks[at + 1 :: block_bytes] = b"\x10" * PERIOD_BLOCKS
    return bytes(blocks)


def write(path, shape, mix):
    pairs, listed = metadata(shape), list(tensors(shape, mix))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(pairs)) + b"".join(pairs)
    offsets, end = [], 0
    for name, sizes, kind in listed:
        dims = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        header += text(name) + dims + struct.pack("<IQ", TYPES[kind][0], end)
        offsets.append(end)
        end += padded(num_bytes(sizes, kind))
    start = padded(len(header))
    periods = {kind: memoryview(random_blocks(kind)) for kind in {kind for _, _, kind in listed}}
    with open(path, "wb", buffering=0) as file, concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        file.write(header)
        file.truncate(start + end)

        def fill(tensor, offset):
            _, sizes, kind = tensor
            period, size = periods[kind], num_bytes(sizes, kind)
            for at in range(0, size, len(period)):
                part, to = period[: size - at], start + offset + at
                while part:
                    done = os.pwrite(file.fileno(), part, to)
                    part, to = part[done:], to + done

        list(pool.map(fill, listed, offsets))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--weights", choices=MIXES, default="f16", help="q4_k has a Q6_K output")
    args = parser.parse_args()
    write(args.path, SHAPES[args.shape], args.weights)
    print(f"{args.path}: {os.path.getsize(args.path) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
