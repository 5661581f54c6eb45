"""Makes the acceptance checkpoints from one real GGUF file.

    python make_real_checkpoints.py model.gguf --hf HF_DIR --oga OGA_DIR [--oga-dml OGA_DML_DIR]

HF_DIR becomes the model dequantised to bf16 safetensors with its tokenizer; every OGA folder is
made from HF_DIR by the model builder of onnxruntime-genai: int4 for the CPU, and int4 for DirectML
(fp16 activations, separate q, k and v: the input of AMD's hybrid tool chain).

Needs torch, transformers, gguf and onnxruntime-genai. Uses no network.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def make_hf(gguf: Path, out: Path) -> None:
    """Dequantises a GGUF file into a Hugging Face folder, by way of f32."""
    script = Path(__file__).parents[1] / "peers" / "make_hf.py"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), str(gguf), str(out), "--through", "float32"]
    subprocess.run(command, check=True)


def make_oga(hf: Path, out: Path, provider: str, *options: str) -> None:
    """Runs the model builder: int4 weights, everything else as the provider likes it."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(hf), "-o", str(out), "-p", "int4", "-e", provider, "-c", cache]
        if options:
            command += ["--extra_options", *options]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--oga", type=Path)
    parser.add_argument("--oga-dml", type=Path)
    args = parser.parse_args()
    if not (args.hf / "model.safetensors").exists():
        make_hf(args.gguf, args.hf)
    if args.oga:
        make_oga(args.hf, args.oga, "cpu")
    if args.oga_dml:
        make_oga(args.hf, args.oga_dml, "dml")


if __name__ == "__main__":
    main()
