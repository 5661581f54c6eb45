"""Rewrites a DirectML int4 graph of the model builder as AMD's hybrid tool chain does.

Follows the passes of `quark/contrib/onnx_utils` in amd/Quark that `hybrid_llm.yaml` lists:
normalize_matmulnbits (zero points and a bias for every linear), hybrid_llm_ssmlp, hybrid_llm_gqa
(rotary embedding into attention), hybrid_llm_gqo, hybrid_llm_matmulnbits, add_npu_weights (here
empty, as with npu_jit), and the casts to bf16 around what is left.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "com.ryzenai"


class Rewriter:
    def __init__(self, model):
        self.graph = model.graph
        self.constants = {t.name: t for t in self.graph.initializer}
        self.nodes = list(self.graph.node)

    def writer(self, name):
        return next((n for n in self.nodes if name in n.output), None)

    def readers(self, name):
        return [n for n in self.nodes if name in n.input]

    def add(self, name, array):
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        self.constants[name] = self.graph.initializer[-1]
        return name

    def replace(self, old, new):
        """Puts node `new` where the last of the nodes `old` was."""
        at = max(self.nodes.index(n) for n in old)
        self.nodes.insert(at, new)
        self.nodes = [n for n in self.nodes if n not in old]

    def attributes(self, node, prefix=""):
        return {prefix + a.name: helper.get_attribute_value(a) for a in node.attribute}

    def normalize_matmuls(self):
        """MatMulNBits with all six inputs; an Add of a constant becomes its bias."""
        for node in [n for n in self.nodes if n.op_type == "MatMulNBits"]:
            form = self.attributes(node)
            inputs, old, outputs = list(node.input), [node], list(node.output)
            if len(inputs) == 3:
                groups = -(-form["K"] // form["block_size"])
                size = form["N"] * -(-groups // 2)
                inputs.append(self.add(node.name + ".qzeros", np.full(size, 0x88, np.uint8)))
            add = next(iter(self.readers(node.output[0])), None)
            if add is not None and add.op_type == "Add" and add.input[1] in self.constants:
                bias, outputs, old = add.input[1], list(add.output), [node, add]
            else:
                bias = self.add(node.name + ".bias", np.zeros(form["N"], np.float16))
            inputs += ["", bias]
            new = helper.make_node(
                "MatMulNBits", inputs, outputs, node.name, domain=node.domain, **form
            )
            self.replace(old, new)

    def fuse_ssmlp(self):
        for first in [n for n in self.nodes if n.op_type == "SkipSimplifiedLayerNormalization"]:
            gate = [n for n in self.readers(first.output[0]) if "gate_proj" in n.name]
            if not gate:
                continue
            gate = gate[0]
            up = next(n for n in self.readers(first.output[0]) if "up_proj" in n.name)
            sigmoid = next(n for n in self.readers(gate.output[0]) if n.op_type == "Sigmoid")
            silu = self.readers(sigmoid.output[0])[0]
            product = self.readers(silu.output[0])[0]
            down = self.readers(product.output[0])[0]
            last = self.readers(down.output[0])[0]
            packed = [self.add(f"{n.name}.packed", np.zeros(0, np.uint8)) for n in (gate, up, down)]
            inputs = [*first.input, *gate.input[1:4], *up.input[1:4], *down.input[1:4]]
            inputs += [last.input[2], *packed]
            outputs = [last.output[0], *last.output[3:4]]
            form = self.attributes(gate, "gate_") | self.attributes(up, "up_")
            form |= self.attributes(down, "down_") | self.attributes(first)
            name = first.name.replace("post_attention_layernorm/SkipLayerNorm", "ssmlp")
            new = helper.make_node("SSMLP", inputs, outputs, name, domain=DOMAIN, **form)
            self.replace([first, gate, up, sigmoid, silu, product, down, last], new)

    def fuse_gqo(self):
        for gqa in [n for n in self.nodes if n.op_type == "GroupQueryAttention"]:
            q, k = self.writer(gqa.input[0]), self.writer(gqa.input[1])
            o_proj = self.readers(gqa.output[0])[0]
            inputs = [q.input[0], k.input[0], *gqa.input[2:7], q.input[2], q.input[3]]
            inputs += ["", "", "", *o_proj.input[1:4], o_proj.input[5]]
            inputs.append(self.add(f"{o_proj.name}.packed", np.zeros(0, np.uint8)))
            form = self.attributes(gqa) | self.attributes(o_proj, "o_proj_")
            form |= {"do_rotary": 1, "head_size": 2 * self.constants[q.input[2]].dims[1]}
            outputs = [gqa.output[1], gqa.output[2], o_proj.output[0]]
            new = helper.make_node("GQO", inputs, outputs, gqa.name, domain=DOMAIN, **form)
            self.replace([q, k, gqa, o_proj], new)

    def rename_matmuls(self):
        """What is left of MatMulNBits, with casts to bf16 around it."""
        for node in [n for n in self.nodes if n.op_type == "MatMulNBits"]:
            packed = self.add(f"{node.name}.packed", np.zeros(0, np.uint8))
            before, after = node.name + ".in_bf16", node.name + ".out_bf16"
            cast = helper.make_node(
                "Cast", [node.input[0]], [before], before, domain=DOMAIN, to=16
            )
            new = helper.make_node(
                "MatMulNBits",
                [before, *node.input[1:4], node.input[5], packed],
                [after],
                node.name,
                domain=DOMAIN,
                **self.attributes(node),
            )
            back = helper.make_node("Cast", [after], node.output, after, domain=DOMAIN, to=10)
            at = self.nodes.index(node)
            self.nodes[at : at + 1] = [cast, new, back]


def rewrite(folder: Path) -> None:
    """Rewrites `model.onnx` and `genai_config.json` of a folder in place."""
    model = onnx.load(folder / "model.onnx")
    rewriter = Rewriter(model)
    rewriter.normalize_matmuls()
    rewriter.fuse_ssmlp()
    rewriter.fuse_gqo()
    rewriter.rename_matmuls()
    read = {name for node in rewriter.nodes for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(rewriter.nodes)
    model.graph.initializer.extend(kept)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    for path in folder.glob("model.onnx*"):
        path.unlink()
    onnx.save(
        model,
        folder / "model_jit.onnx",
        save_as_external_data=True,
        location="model_jit.onnx.data",
        size_threshold=64,
    )
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    decoder = config["model"]["decoder"]
    decoder["filename"] = "model_jit.onnx"
    decoder["session_options"] = {
        "log_id": "onnxruntime-genai",
        "custom_ops_library": "onnx_custom_ops.dll",
        "config_entries": {"hybrid_opt_token_backend": "gpu"},
        "provider_options": [
            {
                "RyzenAI": {
                    "external_data_file": "model_jit.pb.bin",
                    "hybrid_opt_free_after_prefill": "1",
                    "hybrid_opt_max_seq_length": "4096",
                    "hybrid_opt_chunk_context": "1",
                }
            }
        ],
    }
    path.write_text(json.dumps(config, indent=4))
