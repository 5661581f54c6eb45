"""Ollama's own client against `tangor serve`: python ollama_client.py BASE MODEL."""

import asyncio
import json
import sys

import ollama
from slots import wait_until_idle

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

# Names have a tag, and digests can be cut: other clients take both for granted.
for known in [client.list().models, client.ps().models]:
    (one,) = [one for one in known if one.model == model + ":latest"]
    assert len(one.digest) == 64 and one.details.family == "llama", one
    assert one.details.parameter_size.startswith("13") and one.details.quantization_level, one
shown = client.show(model)
assert shown.template and shown.modelinfo["llama.context_length"] > 0
assert shown.capabilities[0] == "completion"
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
# What a tool said is read.
called = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
history = QUESTION + [
    {"role": "assistant", "content": "", "tool_calls": [called]},
    {"role": "tool", "content": "sunny in Paris", "tool_name": "weather"},
]
short = {"num_predict": 16}
assert client.chat(model=model, messages=history, tools=[weather], options=short).message.content

# Choice, stops, and how long a model stays
warm = {"temperature": 1.0, "seed": 5, "num_predict": 16, "top_k": 40, "min_p": 0.05}
first, second = (client.chat(model=model, messages=QUESTION, options=warm) for _ in range(2))
assert first.message.content == second.message.content
stopped = client.chat(model=model, messages=QUESTION, options={"stop": ["Paris"]})
assert "Paris" not in stopped.message.content and stopped.done_reason == "stop"
assert client.generate(model=model, prompt="Hi", keep_alive="5m", options=short).response

# Thinking has levels; what is not done here is said.
assert client.chat(model=model, messages=QUESTION, think="low", options=short).message.content
for status, call in [
    (400, lambda: client.generate(model=model, prompt="Hi", context=[1, 2])),
    (501, lambda: client.copy(model, "mine")),
    (501, lambda: client.create("mine", from_=model)),
]:
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status and error.error, error
    else:
        raise AssertionError("it is done")

vectors = client.embed(model=model, input=["A cat sleeps.", "Shares fell."]).embeddings
assert len(vectors) == 2 and vectors[0] != vectors[1]
assert list(client.embeddings(model=model, prompt="A cat sleeps.").embedding) != []


async def at_once():
    several = ollama.AsyncClient(host=base)
    ask = dict(model=model, messages=QUESTION, options=short)
    together = await asyncio.gather(*(several.chat(**ask) for _ in range(3)))
    streamed = [part.message.content async for part in await several.chat(**ask, stream=True)]
    assert {one.message.content for one in together} == {"".join(streamed)}


asyncio.run(at_once())

# A client that leaves frees its place.
endless = client.generate(model=model, prompt="Count:", stream=True, options={"num_predict": 4000})
next(endless)
endless.close()
wait_until_idle(base)

for wrong in [{"temperature": -1}, {"num_predict": "many"}]:
    try:
        client.chat(model=model, messages=QUESTION, options=wrong)
    except (ollama.ResponseError, ValueError):
        pass
    else:
        raise AssertionError(f"{wrong} is taken")
print("ok")
