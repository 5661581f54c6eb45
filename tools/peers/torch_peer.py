"""Times transformers on the CPU in bf16: one JSON line per request.

    python torch_peer.py HF_FOLDER THREADS NEW_TOKENS PROMPT_TOKENS...
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import turn
from transformers import AutoModelForCausalLM


def main() -> None:
    folder, threads, new, *prompts = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def request(prompt: int, new: int) -> tuple[float, float]:
        state = {"tokens": torch.randint(3, 200, (1, prompt)), "cache": None}

        def step() -> None:
            out = model(
                state["tokens"],
                past_key_values=state["cache"],
                use_cache=True,
                logits_to_keep=1,
            )
            state["tokens"] = out.logits[:, -1:].argmax(-1)
            state["cache"] = out.past_key_values

        return turn.timed(step, step, new)

    turn.take(request, new, prompts)


if __name__ == "__main__":
    main()
