"""Times transformers on the CPU in bf16: one JSON line per request.

    python torch_peer.py HF_FOLDER THREADS NEW_TOKENS PROMPT_TOKENS...

The first request warms up and is not printed.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    folder, threads, new, *prompts = sys.argv[1:]
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def request(prompt: int, new: int) -> tuple[float, float]:
        tokens = torch.randint(3, 200, (1, prompt))
        begin = time.perf_counter()
        out = model(tokens, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(new - 1):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return first - begin, (new - 1) / (time.perf_counter() - first)

    request(8, 4)
    for prompt in prompts:
        ttft, decode = request(int(prompt), int(new))
        line = {"prompt": int(prompt), "ttft_s": ttft, "decode_tps": decode}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
