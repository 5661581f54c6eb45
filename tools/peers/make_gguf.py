"""Writes a GGUF file of a model's shape with random Q4_0 weights.

    python make_gguf.py CONFIG_JSON OUT.gguf

CONFIG_JSON is the text of a config.json of the architectures llama, mistral, qwen2 or phi3. The
vocabulary holds the 256 bytes and fillers: enough for programs that are fed token ids.
"""

import json
import os
import sys
from pathlib import Path

import gguf
import numpy

ARCHS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "phi3": "phi3"}


def vocabulary(size: int) -> list[str]:
    """The printable stand-ins for bytes of GPT-2, then fillers."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (code for code in range(0x100, 0x200))
    bytes_ = [chr(b) if b in printable else chr(next(others)) for b in range(256)]
    return (bytes_ + ["tt"] + [f"<|filler {i}|>" for i in range(size)])[:size]


class Writer:
    """A GGUF file that is filled with random matrices."""

    def __init__(self, config: dict, out: Path) -> None:
        self.config = config
        self.arch = ARCHS[config["model_type"]]
        self.file = gguf.GGUFWriter(str(out), self.arch)
        self.random = numpy.random.default_rng(1)

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
        file.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
        file.add_tokenizer_model("gpt2")
        file.add_tokenizer_pre("gpt-2")
        tokens = vocabulary(config["vocab_size"])
        file.add_token_list(tokens)
        normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
        file.add_token_types([control if t.startswith("<|") else normal for t in tokens])
        file.add_token_merges(["t t"])
        file.add_bos_token_id(len(tokens) - 2)
        file.add_eos_token_id(len(tokens) - 1)

    def matrix(self, name: str, rows: int, cols: int) -> None:
        """A random Q4_0 matrix: blocks of an f16 scale and 32 nibbles, by size near 1/sqrt(cols)."""
        count = rows * cols // 32
        blocks = numpy.empty((count, 18), numpy.uint8)
        scale = numpy.float16(1 / (4.6 * cols**0.5))
        blocks[:, :2] = numpy.frombuffer(scale.tobytes(), numpy.uint8)
        blocks[:, 2:] = self.random.integers(0, 256, (count, 16), dtype=numpy.uint8)
        q4_0 = gguf.GGMLQuantizationType.Q4_0
        self.file.add_tensor(name + ".weight", blocks.reshape(rows, -1), raw_dtype=q4_0)

    def vector(self, name: str, size: int, value: float) -> None:
        self.file.add_tensor(name, numpy.full(size, value, numpy.float32))

    def layer(self, index: int) -> None:
        config, name = self.config, f"blk.{index}."
        hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
        self.vector(name + "attn_norm.weight", hidden, 1.0)
        self.vector(name + "ffn_norm.weight", hidden, 1.0)
        if self.arch == "phi3":
            self.matrix(name + "attn_qkv", q + 2 * kv, hidden)
            self.matrix(name + "ffn_up", 2 * ffn, hidden)
        else:
            for part, rows in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)]:
                self.matrix(name + part, rows, hidden)
                if self.arch == "qwen2":
                    self.vector(f"{name}{part}.bias", rows, 0.0)
            self.matrix(name + "ffn_gate", ffn, hidden)
            self.matrix(name + "ffn_up", ffn, hidden)
        self.matrix(name + "attn_output", hidden, q)
        self.matrix(name + "ffn_down", hidden, ffn)

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
        self.file.write_tensors_to_file()
        self.file.close()


def main() -> None:
    config, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    Writer(config, part).write()
    os.replace(part, out)


if __name__ == "__main__":
    main()
