#!/usr/bin/env python3
"""Trains tiny tokenizers of the usual kinds and records what Hugging Face's `tokenizers` does.

    text_tokenizers.py crates/text/tests/goldens/tokenizers.json

The file holds, for each kind, its tokenizer.json and, for each text: ids with special tokens
recognised (`ids`), ids with special tokens as text (`plain`), ids with the tokens that frame a
prompt (`framed`), and what the framed ids decode to with and without special tokens.
"""

import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "Hello world! Hello there, how are you today? I'm fine; we'll see.",
    "for (int i = 0; i < n; i++) { sum += a[i] * 3.14159; }",
    "def tokenize(text):\n    return [token for token in text.split()]\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. Äpfel und Öl.",
    "Le garçon a mangé une pêche à l'école l'été dernier.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "今日は天気がいいですね。明日も晴れるでしょう。",
    "1 22 333 4444 55555 666666 7777777",
    "<b>bold</b> & <i>italic</i> [link](https://example.org)",
]
TEXTS = CORPUS + [
    "",
    " ",
    "   ",
    " leading and trailing ",
    "\n\n\t mixed \r\n white\u00a0space  ",
    "emoji 🎉🚀 and family 👨‍👩‍👧",
    "cafe\u0301 \u2126 ﬁ ½",
    "<s>Hello</s> world<s>",
    "a<mask>b  <mask>  c",
    "<think>hmm</think> <think>",
    "day monday day!",
    "<|eot|><|eot|>x <|eot|",
    "\x00\x01\x7f",
    "क्षत्रिय 한국어 עִבְרִית",
    "<s>\n<s>",
]


def trained(model, trainer_kind, pre=None, normalizer=None, size=420, **more):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    trainer = trainer_kind(vocab_size=size, show_progress=False, **more)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def add_tokens(tokenizer, normalized):
    tokenizer.add_special_tokens(
        [
            AddedToken("<s>", normalized=normalized),
            AddedToken("</s>", normalized=normalized),
            AddedToken("<|eot|>", normalized=False),
            AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False),
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken("<think>", normalized=False),
            AddedToken("</think>", normalized=True),
            AddedToken("day", single_word=True, normalized=False),
        ]
    )


def framed(tokenizer, single):
    specials = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>") if name in single]
    return processors.TemplateProcessing(single=single, special_tokens=specials)


def gpt2():
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = trained(models.BPE(), trainers.BpeTrainer, pre, initial_alphabet=alphabet)
    add_tokens(tokenizer, False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3():
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model = models.BPE(ignore_merges=True)
    tokenizer = trained(model, trainers.BpeTrainer, pre, initial_alphabet=alphabet)
    add_tokens(tokenizer, False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), framed(tokenizer, "<s> $A")]
    )
    return tokenizer


def qwen2():
    tokenizer = gpt2()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def llama2(normalized):
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = trained(
        model,
        trainers.BpeTrainer,
        normalizer=normalizer,
        size=700,
        special_tokens=specials,
        max_token_length=12,
    )
    # Byte tokens are no special tokens; the trainer knows no other way to put them first.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    add_tokens(tokenizer, normalized)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = framed(tokenizer, "<s> $A </s>")
    return tokenizer


def mistral():
    tokenizer = llama2(False)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return tokenizer


def unigram():
    tokenizer = trained(
        models.Unigram(),
        trainers.UnigramTrainer,
        pre_tokenizers.Metaspace("▁", prepend_scheme="always"),
        normalizers.NFKC(),
        size=300,
        special_tokens=["<unk>"],
        unk_token="<unk>",
    )
    add_tokens(tokenizer, True)
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path)
    args = parser.parse_args()
    kinds = {
        "gpt2": gpt2(),
        "llama3": llama3(),
        "qwen2": qwen2(),
        "llama2": llama2(False),
        "llama2_normalized": llama2(True),
        "mistral": mistral(),
        "unigram": unigram(),
    }
    document = {}
    for name, tokenizer in kinds.items():
        cases = []
        for text in TEXTS:
            tokenizer.encode_special_tokens = False
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            whole = tokenizer.encode(text, add_special_tokens=True).ids
            tokenizer.encode_special_tokens = True
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append(
                {
                    "text": text,
                    "ids": ids,
                    "plain": plain,
                    "framed": whole,
                    "decoded": tokenizer.decode(whole, skip_special_tokens=False),
                    "skipped": tokenizer.decode(whole, skip_special_tokens=True),
                }
            )
        tokenizer.encode_special_tokens = False
        document[name] = {"tokenizer": json.loads(tokenizer.to_str()), "cases": cases}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    args.output.write_text(text.replace('},{"text"', '},\n{"text"') + "\n", encoding="utf-8")
    print(f"{len(kinds)} tokenizers, {len(text)} characters")


if __name__ == "__main__":
    main()
