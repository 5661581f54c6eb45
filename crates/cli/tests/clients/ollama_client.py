"""Ollama's own client against `tangor serve`: python ollama_client.py BASE MODEL."""

import json
import sys

import ollama

base, model = sys.argv[1], sys.argv[2]
client = ollama.Client(host=base)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}

whole = client.chat(model=model, messages=QUESTION, options={"num_predict": 32})
assert "Paris" in whole.message.content, whole
assert whole.done and whole.eval_count > 0 and whole.prompt_eval_count > 0
assert whole.total_duration > 0 and whole.eval_duration > 0
parts = list(client.chat(model=model, messages=QUESTION, options={"num_predict": 32}, stream=True))
assert "".join(part.message.content or "" for part in parts) == whole.message.content
assert parts[-1].done and parts[-1].done_reason in ("stop", "length")

raw = client.generate(model=model, prompt="One, two,", raw=True, options={"num_predict": 8})
again = client.generate(
    model=model, prompt="One, two,", raw=True, options={"num_predict": 8}, stream=True
)
assert "".join(part.response for part in again) == raw.response
formed = client.chat(model=model, messages=QUESTION, format=SCHEMA, options={"num_predict": 100})
assert set(json.loads(formed.message.content)) == {"city"}, formed

assert model in [listed.model for listed in client.list().models]
assert model in [running.model for running in client.ps().models]
assert client.show(model).template
try:
    client.chat(model="absent", messages=QUESTION)
except ollama.ResponseError as error:
    assert error.status_code == 404
else:
    raise AssertionError("an absent model answers")


def weather(city: str) -> str:
    """The weather in a city.

    Args:
      city: Name of the city
    """
    return "sunny in " + city


offered = client.chat(
    model=model, messages=QUESTION, tools=[weather], options={"num_predict": 32}
)
assert offered.message.content or offered.message.tool_calls
print("ok")
