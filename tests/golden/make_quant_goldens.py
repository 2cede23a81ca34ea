#!/usr/bin/env python3
"""Makes tests/data/golden/quant_blocks.json: blocks of every block format with random codes and
scales of any fp16 value, and what they decode to by the `gguf` package (its numpy decoders, made
apart from ours). Hexadecimal bytes; values are fp32, little endian.

  pip install gguf==0.19.0
  python tests/golden/make_quant_goldens.py > tests/data/golden/quant_blocks.json
"""

import json

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

# Where a block's fp16 numbers lie.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2],
    Type.Q6_K: [208], Type.IQ4_NL: [0], Type.IQ4_XS: [0],
}
ELEMENTS = 512


def golden(quant_type, random):
    elements, size = GGML_QUANT_SIZES[quant_type]
    blocks = random.integers(0, 256, (ELEMENTS // elements, size), dtype=np.uint8)
    for at in SCALES[quant_type]:
        scales = random.normal(0, 0.05, len(blocks)).astype(np.float16)
        scales[0] = np.float16(2e-6)  # below the normal numbers
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
    values = dequantize(blocks, quant_type).astype("<f4")
    return {"blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()}


def main():
    random = np.random.default_rng(6)
    rows = {quant_type.name: golden(quant_type, random) for quant_type in SCALES}
    print(json.dumps(rows, indent=0))


if __name__ == "__main__":
    main()
