#!/usr/bin/env python3
"""Blocks of every GGUF format with the weights that gguf-py reads from them, bit for bit.

usage: quant.py OUT     (needs numpy and gguf; OUT as crates/tensor/tests/goldens/quant)

One file per format, little-endian: u32 count; that many blocks; their weights as f32. For the
formats that gguf-py can also write: u32 count; f32 weights; their blocks. Half of the blocks are
random bytes (their scales may be infinite or NaN), half have scales of a usual size.
"""
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

COUNT = 8
# Where each format has its f16 fields.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20)
    for name, halves in HALVES.items():
        kind = T[name]
        length, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (COUNT, size), dtype=np.uint8)
        for block in blocks[COUNT // 2:]:
            for at in halves:
                half = np.float16(rng.normal() * 0.02)
                block[at:at + 2] = np.frombuffer(half.tobytes(), np.uint8)
        with np.errstate(all="ignore"):
            weights = dequantize(blocks, kind).astype("<f4")
        data = struct.pack("<I", COUNT) + blocks.tobytes() + weights.tobytes()
        if name in WRITTEN:
            weights = (rng.normal(size=(COUNT, length)) * 0.05).astype("<f4")
            weights[0] = 0
            weights[1] = 0.25
            packed = quantize(weights, kind)
            data += struct.pack("<I", COUNT) + weights.tobytes() + packed.tobytes()
        (out / f"{name}.bin").write_bytes(data)


main(Path(sys.argv[1]))
