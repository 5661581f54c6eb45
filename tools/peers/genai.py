"""Times onnxruntime-genai: one JSON line per request.

    python genai.py OGA_FOLDER THREADS NEW_TOKENS PROMPT_TOKENS...

The first request warms up and is not printed.
"""

import json
import sys
import time


def main() -> None:
    folder, threads, new, *prompts = sys.argv[1:]
    import numpy
    import onnxruntime_genai as og

    config = og.Config(folder)
    session = {"intra_op_num_threads": int(threads)}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    random = numpy.random.default_rng(1)

    def request(prompt: int, new: int) -> tuple[float, float]:
        params = og.GeneratorParams(model)
        params.set_search_options(
            max_length=prompt + new, min_length=prompt + new, do_sample=False, batch_size=1
        )
        generator = og.Generator(model, params)
        tokens = random.integers(3, 200, prompt, dtype=numpy.int32)
        begin = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(new - 1):
            generator.generate_next_token()
        return first - begin, (new - 1) / (time.perf_counter() - first)

    request(8, 4)
    for prompt in prompts:
        ttft, decode = request(int(prompt), int(new))
        line = {"prompt": int(prompt), "ttft_s": ttft, "decode_tps": decode}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
