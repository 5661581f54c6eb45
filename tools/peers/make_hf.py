"""Writes a Hugging Face folder in bf16: a GGUF file dequantised, or a shape with random weights.

    python make_hf.py MODEL.gguf|CONFIG_JSON OUT_FOLDER [--through float32]

Weights of a GGUF file become numbers of the type `--through`, bfloat16 unless something else is
named, and then bf16.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


def from_gguf(gguf: Path, out: Path, through: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, through))
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # A model loaded from GGUF refuses to be saved; a plain one with the same weights does not.
    config = type(loaded.config)(**loaded.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))


def from_shape(config: dict, out: Path) -> None:
    """Random weights, written one by one: the model never is in memory as a whole."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.pop("model_type")
    config = AutoConfig.for_model(kind, **config, dtype="bfloat16")
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = config.tie_word_embeddings
    tensors = {n: t for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}
    write_random(tensors, out / "model.safetensors")
    config.save_pretrained(str(out))
    byte_tokenizer().save_pretrained(str(out))


def write_random(tensors: dict, path: Path) -> None:
    """A safetensors file: matrices by size near 1/sqrt(columns), vectors of ones."""
    import torch

    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = dict(dtype="BF16", shape=list(tensor.shape), data_offsets=[begin, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(1)
    # What long matrices repeat, each from another place, so that no two are the same.
    pattern = torch.randn(1 << 22, generator=generator)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for index, tensor in enumerate(tensors.values()):
            vector = tensor.dim() < 2
            values = pattern.roll(4099 * index) / tensor.shape[-1] ** 0.5
            values = torch.ones(tensor.numel()) if vector else values
            data = memoryview(values.bfloat16().view(torch.uint8).numpy())
            left = 2 * tensor.numel()
            while left > 0:
                left -= file.write(data[:left])


def byte_tokenizer():
    """One token per byte: tools that copy a tokenizer need one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write(source: str, out: Path, through: str = "bfloat16") -> None:
    """Makes the folder, whole or not at all."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if source.lstrip().startswith("{"):
        from_shape(json.loads(source), part)
    else:
        from_gguf(Path(source), part, through)
    os.replace(part, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a Hugging Face folder in bf16.")
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--through", default="bfloat16")
    args = parser.parse_args()
    write(args.source, args.out, args.through)


if __name__ == "__main__":
    main()
