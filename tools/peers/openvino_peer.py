"""Times OpenVINO GenAI: one JSON line per request.

    python openvino_peer.py MODEL.gguf THREADS NEW_TOKENS PROMPT_TOKENS...

It reads the GGUF file itself.
"""

import sys

import numpy
import openvino
import openvino_genai
import turn


def main() -> None:
    model, threads, new, *prompts = sys.argv[1:]
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=int(threads))
    random = numpy.random.default_rng(1)

    def request(prompt: int, new: int) -> tuple[float, float]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new
        config.ignore_eos = True
        config.do_sample = False
        tokens = random.integers(3, 200, (1, prompt), dtype=numpy.int64)
        metrics = pipeline.generate(openvino.Tensor(tokens), config).perf_metrics
        return metrics.get_ttft().mean / 1e3, 1e3 / metrics.get_tpot().mean

    turn.take(request, new, prompts)


if __name__ == "__main__":
    main()
