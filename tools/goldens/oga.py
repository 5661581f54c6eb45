"""Makes the tiny OGA folders under crates/model/tests/fixtures/oga, with the logits they must give.

    python oga.py OUT_DIR [VARIANT ...]

Every variant is a tiny random model of one architecture, exported by the real model builder of
onnxruntime-genai in one of its flavours. Beside the graph lies `expected.json`: token ids and the
logits that the graph computes by its operators' definitions in float64 (`onnx_eval.py`), which
this script first checks against onnxruntime itself.

Needs torch, transformers, onnx, onnxruntime and onnxruntime-genai. Uses no network.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import oga_ryzenai

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

VOCAB = 80
BASE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
SMALL = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
LONGROPE = dict(
    type="longrope",
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    long_factor=[1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
    original_max_position_embeddings=16,
)
LONG = dict(max_position_embeddings=64, original_max_position_embeddings=16)

# name: (architecture, changes to the config, precision, provider, builder options)
VARIANTS = {
    "llama-cpu": ("llama", {}, "int4", "cpu", []),
    "llama-cpu-asym128": (
        "llama",
        dict(rope_parameters=LLAMA3, hidden_size=128, num_hidden_layers=1, rms_norm_eps=1e-5),
        "int4",
        "cpu",
        ["accuracy_level=0", "block_size=128", "is_symmetric=false"],
    ),
    "llama-cpu-kquant": (
        "llama",
        dict(num_hidden_layers=3, intermediate_size=128),
        "int4",
        "cpu",
        ["accuracy_level=0", "algo_config=k_quant_mixed"],
    ),
    "llama-cpu-tied": (
        "llama",
        dict(tie_word_embeddings=True, intermediate_size=128),
        "int4",
        "cpu",
        ["accuracy_level=0", "algo_config=rtn", "shared_embeddings=true"],
    ),
    "llama-cpu-qdq": ("llama", {}, "int4", "cpu", ["use_qdq=true"]),
    "llama-cpu-f32": ("llama", dict(SMALL, tie_word_embeddings=True), "fp32", "cpu", []),
    "llama-dml": ("llama", dict(rope_parameters=LLAMA3), "int4", "dml", ["is_symmetric=false"]),
    "llama-dml-f16": ("llama", SMALL, "fp16", "dml", []),
    "mistral-cpu": (
        "mistral",
        dict(sliding_window=8),
        "int4",
        "cpu",
        ["accuracy_level=0", "prune_lm_head=true"],
    ),
    "qwen2-cpu": (
        "qwen2",
        dict(intermediate_size=128),
        "int4",
        "cpu",
        ["accuracy_level=0", "algo_config=k_quant"],
    ),
    "qwen2-dml": ("qwen2", dict(tie_word_embeddings=True), "int4", "dml", ["block_size=32"]),
    "qwen3-cpu": ("qwen3", dict(SMALL, head_dim=16), "int4", "cpu", ["accuracy_level=0"]),
    "phi3-cpu": (
        "phi3",
        dict(original_max_position_embeddings=64),
        "int4",
        "cpu",
        ["accuracy_level=0", "fuse_mlp_gate_up=true"],
    ),
    "phi3-cpu-long": (
        "phi3",
        dict(LONG, rope_parameters=LONGROPE),
        "int4",
        "cpu",
        ["accuracy_level=0"],
    ),
    "phi3-dml-long": ("phi3", dict(LONG, rope_parameters=LONGROPE), "int4", "dml", []),
    # Rewritten by oga_ryzenai.py after the builder.
    "ryzenai-hybrid": ("qwen2", {}, "int4", "dml", ["is_symmetric=false"]),
}

# Logits of every token of these sequences; the long one is past LongRoPE's switch and the window.
SEQUENCES = [[(7 * i * i + 3 * i + 1) % VOCAB for i in range(n)] for n in (10, 22)]


def make_hf(arch: str, changes: dict, out: Path) -> None:
    """A random model of `arch` with a tokenizer of `VOCAB` words."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(1)
    config = AutoConfig.for_model(arch, **{**BASE, **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.randn_like(weight) * 0.2 + ("norm" in name))
            else:
                weight.copy_(torch.randn_like(weight) * 0.15)
    model.save_pretrained(out)
    vocab = {f"w{i}": i for i in range(VOCAB)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(out)


def build(hf: Path, out: Path, precision: str, provider: str, options: list) -> None:
    """Runs the model builder and drops what is not the graph."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(hf), "-o", str(out), "-p", precision, "-e", provider, "-c", cache]
        if options:
            command += ["--extra_options", *options]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stdout[-2000:] + run.stderr[-4000:])
    for path in out.iterdir():
        if path.name not in ("genai_config.json", "model.onnx", "model.onnx.data"):
            path.unlink()


def expected(folder: Path, name: str, options: list) -> list:
    """Logits by the operators' definitions, checked against onnxruntime where it can run them."""
    import numpy as np
    from onnx_eval import Evaluator

    config = json.loads((folder / "genai_config.json").read_text())["model"]
    path = folder / config["decoder"]["filename"]
    window = config["decoder"].get("sliding_window", {}).get("window_size")
    cases = []
    for tokens in SEQUENCES:
        if "com.ryzenai" not in str(Evaluator(path).model.opset_import):
            runtime = run_onnxruntime(path, config["decoder"], tokens)
            plain = Evaluator(path).logits(tokens)[-len(runtime) :]
            # fp16 graphs, and weights or activations that onnxruntime rounds to int8.
            exact = "accuracy_level=0" in options or name.endswith("-f32")
            error = np.abs(plain - runtime).max() / np.abs(plain).max()
            if error > (2e-6 if exact else 5e-2 if "-cpu" in name else 3e-3):
                raise SystemExit(f"{name}: differs from onnxruntime by {error}")
        logits = Evaluator(path, window).logits(tokens)
        rounded = [float(f"{value:.7g}") for value in logits.ravel()]
        cases.append({"tokens": tokens, "logits": rounded})
    return cases


def rewrite_checked(folder: Path) -> None:
    """Rewrites a folder into AMD's operators, and checks that it still computes the same."""
    import numpy as np
    from onnx_eval import Evaluator

    before = Evaluator(folder / "model.onnx").logits(SEQUENCES[1])
    oga_ryzenai.rewrite(folder)
    after = Evaluator(folder / "model_jit.onnx").logits(SEQUENCES[1])
    if np.abs(before - after).max() > 1e-12:
        raise SystemExit(f"{folder.name}: the rewritten graph computes something else")


def run_onnxruntime(path: Path, decoder: dict, tokens: list):
    """Logits of one sequence from its beginning, of as many of its last tokens as there are."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.array([tokens])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feed["position_ids"] = np.arange(len(tokens))[None]
    inputs = {}
    for value in session.get_inputs():
        if value.name in feed:
            inputs[value.name] = feed[value.name]
        else:
            dtype = np.float16 if "float16" in value.type else np.float32
            shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
            inputs[value.name] = np.zeros(shape, dtype)
    return session.run(["logits"], inputs)[0][0].astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*")
    args = parser.parse_args()
    for name in args.variants or VARIANTS:
        arch, changes, precision, provider, options = VARIANTS[name]
        out = args.out / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as hf:
            make_hf(arch, changes, Path(hf))
            build(Path(hf), out, precision, provider, options)
        if name.startswith("ryzenai"):
            rewrite_checked(out)
        cases = json.dumps({"cases": expected(out, name, options)}, separators=(",", ":"))
        (out / "expected.json").write_text(cases + "\n")
        print(name, sum(p.stat().st_size for p in out.iterdir()))


if __name__ == "__main__":
    main()
