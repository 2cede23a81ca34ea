#!/usr/bin/env python3
"""Makes tests/data/golden/*.json: what llama.cpp computes, for tests that run without it.

Needs `pip install llama-cpp-python gguf numpy`. Run once per change of text or model:

    python3 tests/golden/make_llama_cpp_goldens.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf

The reference ("exact") is llama.cpp on the same weights expanded to F32, with an F32 KV cache: the
text is fed as is (teacher forcing) and for every position but the last the likeliest next token and
log p(the text's next token) are stored. "peer" is how far llama.cpp's own path on the quantised
file, with 8-bit activations, is from that: the distance a fast path of ours may have.
"""
import argparse
import json
import pathlib
import struct
import tempfile

import gguf
import llama_cpp
import numpy as np

REPO = pathlib.Path(__file__).resolve().parents[2]
DATA = REPO / "tests" / "data"
F32 = 0  # GGML_TYPE_F32


def expand_to_f32(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the same model with every tensor as F32. Metadata is copied byte for byte."""
    alignment = 32
    reader = gguf.GGUFReader(source)
    fields = [f for f in reader.fields.values() if not f.name.startswith("GGUF.")]
    with target.open("wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(reader.tensors), len(fields)))
        for field in fields:
            for part in field.parts:
                out.write(part.tobytes())
        offset = 0
        for tensor in reader.tensors:
            name = tensor.name.encode()
            shape = [int(n) for n in tensor.shape]
            out.write(struct.pack(f"<Q{len(name)}sI", len(name), name, len(shape)))
            out.write(struct.pack(f"<{len(shape)}QIQ", *shape, F32, offset))
            offset += -(-4 * tensor.n_elements // alignment) * alignment
        for tensor in reader.tensors:
            out.write(bytes(-out.tell() % alignment))
            out.write(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).tobytes())


def teacher_forced(path: pathlib.Path, ids: list[int], exact: bool, threads: int):
    """Per position but the last: top-1 id, its lead over the second in log p, log p(next)."""
    kv_type = {"type_k": F32, "type_v": F32} if exact else {}
    model = llama_cpp.Llama(str(path), n_ctx=len(ids), n_batch=len(ids), n_ubatch=512, logits_all=True,
                            n_threads=threads, n_threads_batch=threads, verbose=False, **kv_type)
    model.eval(ids)
    top1, lead, logp = [], [], []
    for position in range(len(ids) - 1):
        row = model.scores[position].astype(np.float64)
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        first, second = np.partition(row, -2)[[-1, -2]]
        top1.append(int(row.argmax()))
        lead.append(first - second)
        logp.append(row[ids[position + 1]])
    model.close()
    return np.array(top1), np.array(lead), np.array(logp)


def distance(exact, other) -> dict:
    delta = np.abs(other[2] - exact[2])
    return {
        "top1_equal": round(float((other[0] == exact[0]).mean()), 5),
        "mean_abs_dlogp": round(float(delta.mean()), 6),
        "p99_abs_dlogp": round(float(np.quantile(delta, 0.99)), 5),
        "perplexity_ratio": round(float(np.exp(exact[2].mean() - other[2].mean())), 6),
    }


def golden_of(model: pathlib.Path, f32: pathlib.Path, name: str, text: bytes, bos: bool, threads: int):
    vocabulary = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    ids = vocabulary.tokenize(text, add_bos=bos, special=False)
    exact = teacher_forced(f32, ids, True, threads)
    peer = distance(exact, teacher_forced(model, ids, False, threads))
    perplexity = float(np.exp(-exact[2].mean()))
    print(f"{model.name} {name}: {len(ids)} tokens, perplexity {perplexity:.3f}, peer {peer}")
    return {
        "name": name,
        "ids": ids,
        "perplexity": round(perplexity, 5),
        "top1": exact[0].tolist(),
        "lead": [round(float(x), 4) for x in exact[1]],
        "logp": [round(float(x), 5) for x in exact[2]],
        "peer": peer,
    }


def needle_prompt() -> bytes:
    """About 2,000 bytes of our prose with a needle in the middle, asked for at the end."""
    prose = (DATA / "golden" / "prose.txt").read_text()
    half = prose[:900], prose[900:1800]
    needle = " One of the special magic numbers for senna-harbour is: 4821307. "
    question = "\n\nQuestion: What is the special magic number for senna-harbour?\nAnswer:"
    return (half[0] + needle + half[1] + question).encode()


def write(path: pathlib.Path, model: pathlib.Path, texts: list[dict]) -> None:
    golden = {"made_by": f"make_llama_cpp_goldens.py, llama-cpp-python {llama_cpp.__version__}",
              "model": model.name, "texts": texts}
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--needle", type=pathlib.Path, default=DATA / "needle-24m-q8_0.gguf")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        f32 = pathlib.Path(folder) / "f32.gguf"
        expand_to_f32(args.smollm2, f32)
        texts = [golden_of(args.smollm2, f32, name, (DATA / "golden" / f"{name}.txt").read_bytes(),
                           False, args.threads) for name in ("prose", "code")]
        write(DATA / "golden" / "smollm2-135m.json", args.smollm2, texts)
        expand_to_f32(args.needle, f32)
        texts = [golden_of(args.needle, f32, "needle", needle_prompt(), True, args.threads)]
        write(DATA / "golden" / "needle-24m.json", args.needle, texts)


if __name__ == "__main__":
    main()
