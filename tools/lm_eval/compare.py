"""Has lm-eval score sentences by `tangor serve`, with echo and log-probabilities, and compares every
score with what `tangor eval perplexity` says of the same sentence: python compare.py TANGOR MODEL.

The first word of each sentence is one token. lm-eval scores what follows it, and so does `tangor
eval`. Tokens come from the server: lm-eval has no tokenizer of its own here.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import lm_eval
from lm_eval.tasks import TaskManager

TOLERANCE = 1e-4
HERE = pathlib.Path(__file__).parent
tangor, model = sys.argv[1], sys.argv[2]


def served():
    """A server, and where it is."""
    command = [tangor, "serve", model, "--port", "0", "--log", "off"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if "http://" in line:
            return server, line[line.index("http://") :].strip()
    sys.exit("the server ended")


def by_lm_eval(url, folder):
    """Sums of log-probabilities, by sentence."""
    task = (HERE / "sentences.yaml").read_text()
    sentences = json.dumps(str(HERE / "sentences.jsonl"))
    (folder / "sentences.yaml").write_text(task.replace("SENTENCES", sentences))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    arguments = f"model={model},base_url={url}/v1/completions,num_concurrent=4"
    result = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=["tangor_sentences"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = result["samples"]["tangor_sentences"]
    return {one["doc"]["first"] + one["doc"]["rest"]: one["resps"][0][0][0] for one in samples}


def by_tangor(text, folder):
    """Sum of log-probabilities of all but the first token."""
    path = folder / "sentence.txt"
    path.write_text(text)
    command = [tangor, "eval", "perplexity", model, "--text", str(path), "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return -told["nll"] * told["tokens"]


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    server, url = served()
    try:
        scores = by_lm_eval(url, folder)
    finally:
        server.terminate()
    worst = 0.0
    print(f"{'lm-eval':>12} {'tangor eval':>12}")
    for text, score in scores.items():
        own = by_tangor(text, folder)
        worst = max(worst, abs(score - own) / abs(own))
        print(f"{score:12.5f} {own:12.5f}  {text[:60]}")
    print(f"{len(scores)} sentences; worst difference {worst:.1e}")
    if len(scores) < 8 or worst > TOLERANCE:
        sys.exit(f"scores differ by more than {TOLERANCE}")
