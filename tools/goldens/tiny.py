"""Makes tiny random models of every architecture, with the logits that transformers computes.

    python tools/goldens/tiny.py crates/device/tests/fixtures

Writes one folder per variant: config.json and model.safetensors (bf16), golden.json (token ids and
the rows whose logits are kept, per run) and logits.f32 (those rows, little-endian f32, one run
after the other). Some variants get a model.gguf with the same weights, laid out as llama.cpp's converter
does. Seeds are fixed: running it again writes the same weights.

Needs torch, transformers and gguf.
"""

import json
import math
import struct
import sys
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 256
TOKENS = 48
ROWS = [0, 1, 7, 12, 15, 16, 17, 31, 32, 47]

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LONGROPE = dict(
    type="longrope",
    short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8, 2.0],
    long_factor=[1.1, 1.4, 2.0, 3.5, 5.0, 8.0, 11.0, 16.0],
)

# Variant: the keys of its config.json besides COMMON.
VARIANTS = {
    "llama-tied": dict(model_type="llama", tie_word_embeddings=True, rope_theta=10000.0),
    "llama-biases": dict(
        model_type="llama",
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling=dict(rope_type="linear", factor=4.0),
        rope_theta=10000.0,
    ),
    "llama3-rope": dict(model_type="llama", rope_scaling=LLAMA3, rope_theta=500.0),
    "mistral-window": dict(model_type="mistral", sliding_window=16, rope_theta=10000.0),
    "mistral-head-dim": dict(
        model_type="mistral",
        head_dim=24,
        sliding_window=None,
        tie_word_embeddings=True,
        rope_theta=1000.0,
    ),
    "qwen2": dict(model_type="qwen2", rope_theta=1000000.0, rms_norm_eps=1e-6),
    "qwen2-window": dict(
        model_type="qwen2",
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        tie_word_embeddings=True,
        rope_theta=10000.0,
    ),
    "phi3-window": dict(
        model_type="phi3",
        sliding_window=12,
        original_max_position_embeddings=128,
        partial_rotary_factor=0.75,
        rope_theta=10000.0,
    ),
    "phi3-longrope": dict(
        model_type="phi3",
        num_key_value_heads=4,
        rope_scaling=LONGROPE,
        original_max_position_embeddings=32,
        rope_theta=10000.0,
    ),
}
WITH_GGUF = ["llama3-rope", "llama-biases", "qwen2", "phi3-longrope"]


def build(name, seed):
    """The variant's config.json and its weights, rounded to bf16."""
    config = dict(COMMON, rms_norm_eps=1e-5, tie_word_embeddings=False) | VARIANTS[name]
    hf = AutoConfig.for_model(**json.loads(json.dumps(config)))
    hf._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(hf, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if key.endswith("bias"):
            values = 0.3 * noise
        elif parameter.dim() == 1:
            values = 1 + 0.2 * noise
        elif "embed_tokens" in key:
            values = noise
        else:
            values = noise * 1.2 / math.sqrt(parameter.shape[1])
        parameter.data = values.to(torch.bfloat16).float()
    model.tie_weights()
    return config, model


def runs(config, seed):
    """Token ids of each run: LongRoPE changes with the length of a sequence."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (TOKENS,), generator=generator).tolist()
    limit = config.get("original_max_position_embeddings")
    lengths = [limit, limit + 1, TOKENS] if "rope_scaling" in config and limit else [TOKENS]
    return [tokens[:length] for length in lengths]


def write_goldens(folder, config, model, seed):
    golden, logits = [], []
    with torch.no_grad():
        for tokens in runs(config, seed):
            rows = [row for row in ROWS if row < len(tokens)]
            output = model(torch.tensor([tokens])).logits[0]
            golden.append(dict(tokens=tokens, rows=rows))
            logits += output[rows].flatten().tolist()
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    (folder / "logits.f32").write_bytes(struct.pack(f"<{len(logits)}f", *logits))


def permute(weight, heads):
    """The order of q and k rows (or biases) in llama.cpp's files of the llama family."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(config, state):
    """GGUF names and values of a model's weights."""
    arch = gguf.MODEL_ARCH[config["model_type"].upper()]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for key, value in state.items():
        if key == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if config["model_type"] == "llama" and ".q_proj." in key:
            value = permute(value, config["num_attention_heads"])
        if config["model_type"] == "llama" and ".k_proj." in key:
            value = permute(value, config["num_key_value_heads"])
        yield names.get_name(key, try_suffixes=(".weight", ".bias")), value


def fuse_qkv(tensors):
    """q, k and v as one tensor, as the converter's --fuse-qkv writes them."""
    tensors = dict(tensors)
    for name in [name for name in tensors if ".attn_q." in name]:
        names = [name.replace("attn_q", part) for part in ("attn_q", "attn_k", "attn_v")]
        parts = [tensors.pop(name) for name in names]
        tensors[name.replace("attn_q", "attn_qkv")] = torch.cat(parts)
    return tensors.items()


def rope_tensors(config):
    """Scaling factors, which GGUF stores as tensors."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        dim = config["hidden_size"] // config["num_attention_heads"]
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        factors = []
        for i in range(0, dim, 2):
            wavelength = 2 * math.pi * config["rope_theta"] ** (i / dim)
            if wavelength < original / high:
                factors.append(1.0)
            elif wavelength > original / low:
                factors.append(scaling["factor"])
            else:
                smooth = (original / wavelength - low) / (high - low)
                factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
        yield "rope_freqs.weight", torch.tensor(factors)
    if scaling.get("type") == "longrope":
        yield "rope_factors_long.weight", torch.tensor(scaling["long_factor"])
        yield "rope_factors_short.weight", torch.tensor(scaling["short_factor"])


def write_gguf(path, config, state, fused):
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if config["model_type"] == "phi3":
        original = config["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        writer.add_sliding_window(config.get("sliding_window") or 0)
    tensors = gguf_tensors(config, state)
    for name, value in [*(fuse_qkv(tensors) if fused else tensors), *rope_tensors(config)]:
        if value.dim() == 1:
            writer.add_tensor(name, value.float().numpy())
        else:
            raw = value.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, raw.view("uint8"), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder):
    torch.set_num_threads(1)
    for seed, name in enumerate(VARIANTS):
        config, model = build(name, seed)
        out = Path(folder) / name
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
        if config["tie_word_embeddings"]:
            del state["lm_head.weight"]
        save_file(state, out / "model.safetensors", metadata={"format": "pt"})
        write_goldens(out, config, model, seed)
        if name in WITH_GGUF:
            write_gguf(out / "model.gguf", config, state, fused=name == "llama-biases")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
