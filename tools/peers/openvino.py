"""Times OpenVINO GenAI: one JSON line per request.

    python openvino.py MODEL.gguf THREADS NEW_TOKENS PROMPT_TOKENS...

It reads the GGUF file itself. The first request warms up and is not printed.
"""

import json
import sys


def main() -> None:
    model, threads, new, *prompts = sys.argv[1:]
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=int(threads))
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = int(new)
    config.ignore_eos = True
    config.do_sample = False
    random = numpy.random.default_rng(1)
    for turn, prompt in enumerate([prompts[0], *prompts]):
        tokens = random.integers(3, 200, (1, int(prompt)), dtype=numpy.int64)
        metrics = pipeline.generate(openvino.Tensor(tokens), config).perf_metrics
        if turn > 0:
            line = {
                "prompt": int(prompt),
                "ttft_s": metrics.get_ttft().mean / 1e3,
                "decode_tps": 1e3 / metrics.get_tpot().mean,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
