"""Compares what Tangor computes on real checkpoints with what their own libraries compute.

The same model as GGUF, as a Hugging Face bf16 folder and as an int4 folder of onnxruntime-genai is
loaded by Tangor in exact mode, which records its best token at every position of a text. Here the same
tokens run through transformers (float32; for the int4 folder over the weights that its own packing
stands for) and through onnxruntime-genai, and the best tokens are compared.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime_genai as og
import torch
from onnx import numpy_helper
from transformers import AutoModelForCausalLM


def tangor_record(tangor, model, context, tokens):
    """Windows of token ids and, for each position, Tangor's best next token."""
    with tempfile.TemporaryDirectory() as folder:
        record = pathlib.Path(folder) / "record.json"
        command = [tangor, "eval", "perplexity", str(model), "--activations", "f32"]
        command += ["--window", str(context), "--stride", str(context)]
        command += ["--tokens", str(tokens), "--record", str(record)]
        subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL)
        return json.loads(record.read_text())["windows"]


def tangor_says(tangor, model):
    """The answer to the question that every checkpoint has to answer sensibly."""
    command = [tangor, "run", str(model), "-p", "What is the capital of France?", "-n", "32"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def torch_top1(model, window):
    with torch.no_grad():
        logits = model(torch.tensor([window["tokens"]])).logits[0]
    return logits.argmax(-1).tolist()


def agreement(windows, top1_of):
    same = total = 0
    for window in windows:
        pairs = list(zip(window["top1"], top1_of(window), strict=False))
        same += sum(a == b for a, b in pairs)
        total += len(pairs)
    return same / total, total


def dequantised(folder, hf):
    """The transformers model with the weights that the folder's packed ones stand for."""
    graph = onnx.load(folder / "model.onnx").graph
    tensors = {t.name: t for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}

    def array(name):
        """An initializer, seen through a reshape: embeddings may share the weights of lm_head."""
        while name not in tensors:
            assert made_by[name].op_type == "Reshape", f"{name} is no weight"
            name = made_by[name].input[0]
        return numpy_helper.to_array(tensors[name])

    state = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            state[weight_name(node.name)] = unpack(node, array)
        elif node.op_type == "Add" and node.input[1] in tensors:
            state[module_name(node.name.strip("/").replace("/Add", "")) + ".bias"] = array(node.input[1])
        elif node.op_type == "GatherBlockQuantized":
            state["model.embed_tokens.weight"] = unpack_gather(node, array)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight") or name == "model.embed_tokens.weight":
            state[name] = numpy_helper.to_array(tensor)
    layers = hf.config.num_hidden_layers
    final = f"model.layers.{layers}.final_norm_layernorm.weight"
    state["model.norm.weight"] = state.pop(final)
    heads, kv, dim = hf.config.num_attention_heads, hf.config.num_key_value_heads, hf.config.head_dim
    for name in [n for n in state if "qkv_proj" in n]:
        q, k, v = np.split(state.pop(name), [heads * dim, (heads + kv) * dim])
        for part, rows in zip("qkv", (q, k, v), strict=True):
            state[name.replace("qkv_proj", f"{part}_proj")] = rows
    own = hf.state_dict()
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    hf.lm_head.weight = torch.nn.Parameter(torch.tensor(state["lm_head.weight"]).float())
    missing = [name for name in own if name not in state]
    assert not missing, f"the folder holds no {missing[:3]}"
    hf.load_state_dict({n: torch.tensor(np.ascontiguousarray(w)).float() for n, w in state.items()})
    return hf


def weight_name(node):
    """`/model/layers.0/attn/q_proj/MatMul_Q4` holds `model.layers.0.self_attn.q_proj.weight`."""
    return module_name(node.strip("/").split("/MatMul")[0]) + ".weight"


def module_name(path):
    """The transformers name of what the builder calls `model/layers.0/attn/q_proj`."""
    return path.replace("/", ".").replace(".attn.", ".self_attn.")


def unpack(node, array):
    attributes = {a.name: a.i for a in node.attribute}
    n, k, block = attributes["N"], attributes["K"], attributes["block_size"]
    bits = attributes.get("bits", 4)
    zeros = array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    return blocks(array(node.input[1]), array(node.input[2]), zeros, (n, k, block, bits))


def unpack_gather(node, array):
    attributes = {a.name: a.i for a in node.attribute}
    data, scales = array(node.input[0]), array(node.input[2])
    zeros = array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    bits = attributes.get("bits", 4)
    n, k = data.shape[0], data.size // data.shape[0] * 8 // bits
    return blocks(data, scales, zeros, (n, k, attributes["block_size"], bits))


def blocks(codes, scales, zeros, shape):
    n, k, block, bits = shape
    groups = -(-k // block)
    codes = codes.reshape(n, -1)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(n, -1)
    if zeros is None:
        zeros = np.full((n, groups), 1 << (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        zeros = zeros.reshape(n, -1)
        if bits == 4:
            zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(n, -1)[:, :groups]
    weight = codes.astype(np.float32).reshape(n, groups, block)
    weight = (weight - zeros.reshape(n, groups, 1).astype(np.float32)) * scales.reshape(n, groups, 1).astype(np.float32)
    return weight.reshape(n, -1)[:, :k]


def genai_top1(folder):
    model = og.Model(str(folder))

    def top1(window):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(window["tokens"]) + 1)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(window["tokens"], dtype=np.int32))
        return generator.get_output("logits")[0].argmax(-1).tolist()

    return top1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tangor", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--hf", required=True, type=pathlib.Path)
    parser.add_argument("--oga", required=True, type=pathlib.Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=3000)
    args = parser.parse_args()
    torch.set_grad_enabled(False)

    failed = False
    for model in (args.gguf, args.hf, args.oga):
        answer = tangor_says(args.tangor, model)
        print(f"{model}: {answer!r}")
        failed |= "Paris" not in answer

    def row(what, windows, top1_of, bar):
        nonlocal failed
        share, total = agreement(windows, top1_of)
        verdict = "ok" if share >= bar else "BELOW"
        failed |= share < bar
        print(f"{what}: {100 * share:.3f} % of {total} tokens (bar {100 * bar:.1f} %) {verdict}")

    hf = AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32)
    windows = tangor_record(args.tangor, args.hf, args.context, args.tokens)
    row("safetensors, exact against transformers f32", windows, lambda w: torch_top1(hf, w), 0.999)
    windows = tangor_record(args.tangor, args.oga, args.context, args.tokens)
    plain = dequantised(args.oga, hf)
    row("OGA int4, exact against torch", windows, lambda w: torch_top1(plain, w), 0.999)
    row("OGA int4, exact against onnxruntime-genai", windows, genai_top1(args.oga), 0.94)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
