#!/usr/bin/env python3
"""Small checkpoints packed as AWQ, GPTQ and Quark pack them, with the weights they stand for.

usage: quant_packed.py OUT     (needs numpy and safetensors; OUT as crates/formats/tests/goldens)

One folder per variant: config.json, model.safetensors with the linear "l" (and a plain
"plain.weight"), expected.f32: `(outputs, inputs)`, little-endian.
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

K, N = 64, 24  # inputs, outputs
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]  # column of the code at each position of a word
BASE = {
    "model_type": "llama", "hidden_size": K, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "vocab_size": 32,
}
rng = np.random.default_rng(4)


def pack(codes, bits, columns=None):
    """Packs neighbours along the last axis into int32 words."""
    per_word = 32 // bits
    codes = np.asarray(codes, dtype=np.uint64).reshape(*codes.shape[:-1], -1, per_word)
    columns = columns or list(range(per_word))
    words = np.zeros(codes.shape[:-1], dtype=np.uint64)
    for position, column in enumerate(columns):
        words |= (codes[..., column] & (2**bits - 1)) << np.uint64(bits * position)
    return words.astype(np.uint32).view(np.int32)


def weights(codes, zeros, scales, group):
    """codes (K, N), zeros (K/g, N), scales (K/g, N) to (N, K)."""
    rows = np.arange(codes.shape[0]) // group
    diff = codes.astype(np.float32) - zeros.astype(np.float32)[rows]
    return (diff * scales.astype(np.float32)[rows]).T


def write(out, name, quantization, arrays, expected):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    arrays["plain.weight"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()},
              folder / "model.safetensors")
    config = BASE | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "expected.f32").write_bytes(np.ascontiguousarray(expected, "<f4").tobytes())


def parts(group, bits=4, zero_range=None):
    groups = K // group
    codes = rng.integers(0, 2**bits, (K, N))
    zeros = rng.integers(*(zero_range or (0, 2**bits)), (groups, N))
    scales = (rng.random((groups, N)) * 0.1 + 1e-3).astype(np.float16)
    return codes, zeros, scales


def awq(out, name, group):
    codes, zeros, scales = parts(group if group > 0 else K)
    write(out, name,
          {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True,
           "version": "gemm"},
          {"l.qweight": pack(codes, 4, AWQ_COLUMNS), "l.qzeros": pack(zeros, 4, AWQ_COLUMNS),
           "l.scales": scales, "l.bias": np.zeros(N, np.float16)},
          weights(codes, zeros, scales, group if group > 0 else K))


def gptq(out, name, group, bits, less_one, zero_range, index):
    codes, zeros, scales = parts(group, bits, zero_range)
    arrays = {"l.qweight": pack(codes.T, bits).T, "l.qzeros": pack(zeros - less_one, bits),
              "l.scales": scales}
    if index:
        arrays["l.g_idx"] = (np.arange(K) // group).astype(np.int32)
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False}
    quantization["checkpoint_format"] = "gptq" if less_one else "gptq_v2"
    write(out, name, quantization, arrays, weights(codes, zeros, scales, group))


def quark(out, name, signed, reorder, symmetric, legacy):
    group = 32
    codes, zeros, scales = parts(group)
    if symmetric:
        zeros[:] = 8
    shift = 8 if signed else 0
    columns = AWQ_COLUMNS if reorder else None
    arrays = {"l.weight": pack((codes - shift) % 16, 4, columns),
              "l.weight_scale": scales.T if legacy else scales}
    if not symmetric:
        arrays["l.weight_zero_point"] = pack((zeros - shift) % 16, 4, columns)
    weight = {"dtype": "int4" if signed else "uint4", "qscheme": "per_group", "group_size": group,
              "ch_axis": -1, "symmetric": symmetric}
    write(out, name,
          {"quant_method": "quark", "global_quant_config": {"weight": weight},
           "export": {"pack_method": "reorder" if reorder else "order"}},
          arrays, weights(codes, zeros, scales, group))


def main(out):
    awq(out, "awq", 32)
    awq(out, "awq_per_output", -1)
    gptq(out, "gptq", 32, 4, 1, (1, 16), True)
    gptq(out, "gptq_zero_16", 16, 4, 1, (9, 17), False)
    gptq(out, "gptq_middle", 64, 4, 1, (8, 9), True)
    gptq(out, "gptq_v2", 32, 4, 0, (0, 16), False)
    gptq(out, "gptq_8bit", 32, 8, 1, (1, 256), True)
    quark(out, "quark", False, True, False, False)
    quark(out, "quark_order", False, False, False, False)
    quark(out, "quark_int4", True, True, False, False)
    quark(out, "quark_symmetric", True, True, True, False)
    quark(out, "quark_legacy", False, True, False, True)


main(Path(sys.argv[1]))
