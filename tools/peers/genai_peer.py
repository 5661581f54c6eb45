"""Times onnxruntime-genai: one JSON line per request.

    python genai_peer.py OGA_FOLDER THREADS NEW_TOKENS PROMPT_TOKENS...
"""

import json
import sys

import numpy
import onnxruntime_genai as og
import turn


def main() -> None:
    folder, threads, new, *prompts = sys.argv[1:]
    config = og.Config(folder)
    # Left alone, it takes half of the processors.
    session = {"intra_op_num_threads": int(threads)}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    random = numpy.random.default_rng(1)

    def request(prompt: int, new: int) -> tuple[float, float]:
        params = og.GeneratorParams(model)
        # The least length keeps it from stopping at an end token.
        length = prompt + new
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=1
        )
        generator = og.Generator(model, params)
        tokens = random.integers(3, 200, prompt, dtype=numpy.int32)

        def first() -> None:
            generator.append_tokens(tokens)
            generator.generate_next_token()

        return turn.timed(first, generator.generate_next_token, new)

    turn.take(request, new, prompts)


if __name__ == "__main__":
    main()
