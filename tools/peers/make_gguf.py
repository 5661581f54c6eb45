"""Writes a GGUF file of a model's shape with random weights.

    python make_gguf.py CONFIG_JSON q4_0|q4_k_m OUT.gguf

CONFIG_JSON is the text of a config.json of the architectures llama, mistral, qwen2 or phi3. With
q4_0 every matrix is Q4_0; q4_k_m is llama.cpp's mixture. The vocabulary holds the 256 bytes and
fillers: enough for programs that are fed token ids or plain ASCII.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy

ARCHS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "phi3": "phi3"}


@dataclass(frozen=True)
class Format:
    """A block format: its size, and which of its bytes are not random.

    `deviation` is that of a weight whose block has a scale of one and is otherwise random, and
    whose minimum, if it has one, is `scale` times what `fields` says.
    """

    weights: int
    bytes: int
    deviation: float
    fields: dict[int, float]


FORMATS = {
    "Q4_0": Format(32, 18, 4.6, {0: 1.0}),
    "Q5_0": Format(32, 22, 9.2, {0: 1.0}),
    "Q8_0": Format(32, 34, 74.0, {0: 1.0}),
    "Q4_K": Format(256, 144, 256.0, {0: 1.0, 2: 7.5}),
    "Q5_K": Format(256, 176, 521.0, {0: 1.0, 2: 15.5}),
    "Q6_K": Format(256, 210, 1366.0, {208: 1.0}),
}
# What stands in for a format whose blocks are longer than the rows allow.
SHORTER = {"Q4_K": "Q5_0", "Q5_K": "Q5_0", "Q6_K": "Q8_0"}
# Random blocks that long matrices repeat.
PATTERN = 1 << 16


def mixture(name: str, layer: int, layers: int) -> str:
    """The format that Q4_K_M has for a matrix."""
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    if name == "output" or (name in ("attn_v", "ffn_down") and more):
        return "Q6_K"
    return "Q5_K" if name == "attn_qkv" else "Q4_K"


def vocabulary(size: int) -> list[str]:
    """The printable stand-ins for bytes of GPT-2, then fillers."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (code for code in range(0x100, 0x200))
    bytes_ = [chr(b) if b in printable else chr(next(others)) for b in range(256)]
    fillers = [f"filler{i}" for i in range(size - len(bytes_) - 3)]
    return [*bytes_, "tt", *fillers, "<|begin|>", "<|end|>"]


class Writer:
    """A GGUF file that is filled with random matrices, one after the other."""

    def __init__(self, config: dict, weights: str, out: Path) -> None:
        self.config = config
        self.weights = weights
        self.arch = ARCHS[config["model_type"]]
        self.file = gguf.GGUFWriter(str(out), self.arch)
        self.random = numpy.random.default_rng(1)
        # Makers of the tensors' bytes, in the order of the file.
        self.make = []

    def metadata(self) -> None:
        config, file = self.config, self.file
        file.add_name("random weights")
        file.add_context_length(config["max_position_embeddings"])
        file.add_embedding_length(config["hidden_size"])
        file.add_block_count(config["num_hidden_layers"])
        file.add_feed_forward_length(config["intermediate_size"])
        file.add_head_count(config["num_attention_heads"])
        file.add_head_count_kv(config["num_key_value_heads"])
        file.add_key_length(config["head_dim"])
        file.add_value_length(config["head_dim"])
        file.add_rope_dimension_count(config["head_dim"])
        file.add_layer_norm_rms_eps(config["rms_norm_eps"])
        file.add_rope_freq_base(config["rope_theta"])
        file.add_vocab_size(config["vocab_size"])
        if self.arch == "phi3" and config.get("sliding_window"):
            file.add_sliding_window(config["sliding_window"])
        types = gguf.LlamaFileType
        q4_0 = self.weights == "q4_0"
        file.add_file_type(types.MOSTLY_Q4_0 if q4_0 else types.MOSTLY_Q4_K_M)
        file.add_quantization_version(gguf.GGML_QUANT_VERSION)
        file.add_tokenizer_model("gpt2")
        file.add_tokenizer_pre("gpt-2")
        tokens = vocabulary(config["vocab_size"])
        file.add_token_list(tokens)
        normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
        file.add_token_types([control if t.startswith("<|") else normal for t in tokens])
        file.add_token_merges(["t t"])
        file.add_bos_token_id(len(tokens) - 2)
        file.add_eos_token_id(len(tokens) - 1)

    def matrix(self, name: str, rows: int, cols: int, layer: int = 0) -> None:
        """A random matrix, by size near 1/sqrt(cols)."""
        kind = "Q4_0"
        if self.weights == "q4_k_m":
            part = "output" if self.is_head(name) else name.split(".")[-1]
            kind = mixture(part, layer, self.config["num_hidden_layers"])
            if cols % FORMATS[kind].weights:
                kind = SHORTER[kind]
        form = FORMATS[kind]
        row = cols // form.weights * form.bytes
        raw = gguf.GGMLQuantizationType[kind]
        dtype = numpy.dtype(numpy.uint8)
        self.file.add_tensor_info(name + ".weight", (rows, row), dtype, rows * row, raw)
        self.make.append(lambda: self.blocks(form, rows * cols // form.weights, cols))

    def is_head(self, name: str) -> bool:
        tied = self.config["tie_word_embeddings"]
        return name == ("token_embd" if tied else "output")

    def blocks(self, form: Format, count: int, cols: int) -> numpy.ndarray:
        pattern = self.random.integers(0, 256, (min(count, PATTERN), form.bytes), numpy.uint8)
        for at, factor in form.fields.items():
            value = numpy.float16(factor / (form.deviation * cols**0.5))
            pattern[:, at : at + 2] = numpy.frombuffer(value.tobytes(), numpy.uint8)
        return numpy.resize(pattern, (count, form.bytes))

    def vector(self, name: str, size: int, value: float) -> None:
        dtype = numpy.dtype(numpy.float32)
        self.file.add_tensor_info(name, (size,), dtype, 4 * size)
        self.make.append(lambda: numpy.full(size, value, numpy.float32))

    def layer(self, index: int) -> None:
        config, name = self.config, f"blk.{index}."
        hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
        self.vector(name + "attn_norm.weight", hidden, 1.0)
        self.vector(name + "ffn_norm.weight", hidden, 1.0)
        if self.arch == "phi3":
            self.matrix(name + "attn_qkv", q + 2 * kv, hidden, index)
            self.matrix(name + "ffn_up", 2 * ffn, hidden, index)
        else:
            for part, rows in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)]:
                self.matrix(name + part, rows, hidden, index)
                if self.arch == "qwen2":
                    self.vector(f"{name}{part}.bias", rows, 0.0)
            self.matrix(name + "ffn_gate", ffn, hidden, index)
            self.matrix(name + "ffn_up", ffn, hidden, index)
        self.matrix(name + "attn_output", hidden, q, index)
        self.matrix(name + "ffn_down", hidden, ffn, index)

    def write(self) -> None:
        config = self.config
        self.metadata()
        self.matrix("token_embd", config["vocab_size"], config["hidden_size"])
        self.vector("output_norm.weight", config["hidden_size"], 1.0)
        if not config["tie_word_embeddings"]:
            self.matrix("output", config["vocab_size"], config["hidden_size"])
        for index in range(config["num_hidden_layers"]):
            self.layer(index)
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_ti_data_to_file()
        for make in self.make:
            self.file.write_tensor_data(make())
        self.file.close()


def main() -> None:
    config, weights, out = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    Writer(config, weights, part).write()
    os.replace(part, out)


if __name__ == "__main__":
    main()
