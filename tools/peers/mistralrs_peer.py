"""Times mistral.rs: one JSON line per request.

    python mistralrs_peer.py MODEL.gguf THREADS NEW_TOKENS PROMPT_TOKENS...
"""

import os
import sys
from pathlib import Path

import turn


def main() -> None:
    model, threads, new, *prompts = sys.argv[1:]
    # Both are read when the library starts.
    os.environ["RAYON_NUM_THREADS"] = os.environ["CANDLE_NUM_THREADS"] = threads
    import mistralrs

    path = Path(model).resolve()
    which = mistralrs.Which.GGUF(
        quantized_model_id=str(path.parent), quantized_filename=path.name
    )
    # What a request has in common with an earlier one is to be read again.
    runner = mistralrs.Runner(which, max_seqs=1, prefix_cache_n=0, token_source="none")
    # One token per letter for a vocabulary of bytes; real vocabularies have words like these.
    text = " a b c d e f g h i j k l m n o p q r s t u v w x y z" * 1000
    tokens = runner.tokenize_text(text, False, None)

    def request(prompt: int, new: int) -> tuple[float, float]:
        asked = runner.detokenize_text(tokens[:prompt], False)
        usage = runner.send_completion_request(
            mistralrs.CompletionRequest(
                prompt=asked, model="default", max_tokens=new, temperature=0.0, ignore_eos=True
            )
        ).usage
        # The vocabulary may add a token of its own in front.
        if abs(usage.prompt_tokens - prompt) > 1 or usage.completion_tokens != new:
            found = f"{usage.prompt_tokens} + {usage.completion_tokens}"
            raise ValueError(f"asked for {prompt} + {new} tokens, ran {found}")
        return usage.total_prompt_time_sec, (new - 1) / usage.total_completion_time_sec

    turn.take(request, new, prompts)


if __name__ == "__main__":
    main()
