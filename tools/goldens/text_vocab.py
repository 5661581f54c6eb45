#!/usr/bin/env python3
"""Cuts llama.cpp's test vocabularies down to what their token vectors need.

    text_vocab.py MODELS_DIR crates/text/tests/goldens/vectors.json

Reads `ggml-vocab-NAME.gguf` with its `.inp` and `.out`. A token can take part in the tokenization
of a text only if it is a substring of the text (as the vocabulary spells it), so all others are
left out and the rest is numbered anew: the vectors stay exactly as hard. Control tokens are kept
up to 24, and so are the byte tokens.
"""

import argparse
import json
import pathlib

from gguf import GGUFReader

NAMES = [
    "llama-bpe", "llama-spm", "phi-3", "qwen2", "gpt-2", "deepseek-llm", "deepseek-coder",
    "starcoder", "refact", "mpt", "falcon", "command-r", "qwen35", "gemma-4",
]
SEPARATOR = "\n__ggml_vocab_test__\n"


def byte_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(moved)}}


def read_cases(path):
    inputs = pathlib.Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    if inputs[-1] == "":
        inputs.pop()
    outputs = [
        [int(i) for i in line.split()]
        for line in pathlib.Path(f"{path}.out").read_text().splitlines()
    ]
    assert len(inputs) == len(outputs), path
    return list(zip(inputs, outputs))


def reduce(path):
    fields = GGUFReader(path).fields

    def value(key, default=None):
        return fields[key].contents() if key in fields else default

    prefix = "tokenizer.ggml."
    tokens = value(prefix + "tokens")
    types = value(prefix + "token_type")
    scores = value(prefix + "scores", [])
    model = value(prefix + "model")
    cases = read_cases(path)
    if model == "gpt2":
        table = byte_characters()
        spelled = ["".join(table[b] for b in text.encode()) for text, _ in cases]
    else:
        spelled = ["▁" + text.replace(" ", "▁") for text, _ in cases]
    raw = [text for text, _ in cases]
    longest = max(len(token) for token in tokens)

    def substrings(texts):
        found = set()
        for text in texts:
            for start in range(len(text)):
                for end in range(start + 1, min(len(text), start + longest) + 1):
                    found.add(text[start:end])
        return found

    as_spelled, as_written = substrings(spelled), substrings(raw)
    used = {i for _, ids in cases for i in ids}
    ends = {value(prefix + key) for key in ("bos_token_id", "eos_token_id", "unknown_token_id")}
    keep, controls = [], 0
    for i, (token, kind) in enumerate(zip(tokens, types)):
        is_control = kind in (2, 3)
        controls += is_control
        wanted = token in (as_spelled if kind == 1 else as_written)
        if wanted or i in used or i in ends or kind == 6 or (is_control and controls <= 24):
            keep.append(i)
    new = {old: i for i, old in enumerate(keep)}
    kept = {tokens[i] for i in keep}
    merges = []
    for merge in value(prefix + "merges", []):
        at = merge.find(" ", 1)
        first, second = merge[:at], merge[at + 1 :]
        if first in kept and second in kept and first + second in kept:
            merges.append(merge)
    number = lambda key: new.get(value(prefix + key))
    return {
        "name": value("general.name"),
        "model": model,
        "pre": value(prefix + "pre"),
        "tokens": [tokens[i] for i in keep],
        "scores": [scores[i] for i in keep] if scores else [],
        "types": [types[i] for i in keep],
        "merges": merges,
        "bos": number("bos_token_id"),
        "eos": number("eos_token_id"),
        "unk": number("unknown_token_id"),
        "add_bos": value(prefix + "add_bos_token"),
        "add_space_prefix": value(prefix + "add_space_prefix"),
        "cases": [[text, [new[i] for i in ids]] for text, ids in cases],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    document = {name: reduce(args.models / f"ggml-vocab-{name}.gguf") for name in NAMES}
    lines = (
        f"{json.dumps(name)}:{json.dumps(vocab, ensure_ascii=False, separators=(',', ':'))}"
        for name, vocab in document.items()
    )
    args.output.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    for name, vocab in document.items():
        print(f"{name}: {len(vocab['tokens'])} tokens, {len(vocab['merges'])} merges")


if __name__ == "__main__":
    main()
