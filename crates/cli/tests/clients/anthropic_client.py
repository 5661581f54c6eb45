"""Anthropic's own client against `tangor serve`: python anthropic_client.py BASE MODEL."""

import asyncio
import sys

import anthropic
from slots import wait_until_idle

base, model = sys.argv[1], sys.argv[2]
client = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
ASK = dict(
    model=model,
    max_tokens=32,
    system="Be brief.",
    messages=[{"role": "user", "content": "What is the capital of France?"}],
)

whole = client.messages.create(**ASK)
assert "Paris" in whole.content[0].text, whole
assert whole.stop_reason in ("end_turn", "max_tokens") and whole.usage.output_tokens > 0
with client.messages.stream(**ASK) as stream:
    assert "".join(stream.text_stream) == whole.content[0].text
    final = stream.get_final_message()
assert final.usage.output_tokens == whole.usage.output_tokens
assert final.stop_reason == whole.stop_reason

counted = client.messages.count_tokens(**{k: ASK[k] for k in ("model", "system", "messages")})
read = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
assert counted.input_tokens == read, (counted, whole.usage)
# Clients count in order to make it fit.
long = [{"role": "user", "content": "x " * 20000}]
assert client.messages.count_tokens(model=model, messages=long).input_tokens > 20000
thinking = {"type": "enabled", "budget_tokens": 1024}
with client.messages.stream(**ASK | {"thinking": thinking}) as stream:
    assert stream.get_final_message().content
stopped = client.messages.create(**ASK | {"stop_sequences": ["Paris"]})
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")

tool = {
    "name": "population",
    "description": "How many live there",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
called = client.messages.create(
    **ASK | {"max_tokens": 200, "tools": [tool], "tool_choice": {"type": "tool", "name": "population"}}
)
use = next(block for block in called.content if block.type == "tool_use")
assert called.stop_reason == "tool_use" and set(use.input) == {"city"}
result = {"type": "tool_result", "tool_use_id": use.id, "content": "two million"}
history = ASK["messages"] + [
    {"role": "assistant", "content": [block.model_dump() for block in called.content]},
    {"role": "user", "content": [result]},
]
assert client.messages.create(**ASK | {"messages": history, "tools": [tool]}).content
with client.messages.stream(
    **ASK | {"max_tokens": 200, "tools": [tool], "tool_choice": {"type": "any"}}
) as stream:
    streamed = stream.get_final_message()
assert any(block.type == "tool_use" for block in streamed.content)

# A call that is cut is none.
cut = ASK | {"max_tokens": 12, "tools": [tool], "tool_choice": {"type": "any"}}
whole = client.messages.create(**cut)
assert whole.stop_reason == "max_tokens", whole
with client.messages.stream(**cut) as stream:
    streamed = stream.get_final_message()
for message in [whole, streamed]:
    assert all(block.type != "tool_use" for block in message.content), message

kinds = [event.type for event in client.messages.create(**ASK, stream=True)]
assert kinds[:2] == ["message_start", "content_block_start"], kinds
assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds


async def at_once():
    several = anthropic.AsyncAnthropic(base_url=base, api_key="none", max_retries=0)
    together = await asyncio.gather(*(several.messages.create(**ASK) for _ in range(3)))
    async with several.messages.stream(**ASK) as stream:
        streamed = "".join([text async for text in stream.text_stream])
    assert {one.content[0].text for one in together} == {streamed}


asyncio.run(at_once())

# A client that leaves frees its place.
endless = ASK | {"max_tokens": 4000, "system": "Count to a thousand."}
with client.messages.stream(**endless) as stream:
    next(iter(stream.text_stream))
wait_until_idle(base)

for kind, change in [
    (anthropic.NotFoundError, {"model": "absent"}),
    (anthropic.BadRequestError, {"extra_body": {"temperature": -1}}),
]:
    try:
        client.messages.create(**ASK | change)
    except kind:
        pass
    else:
        raise AssertionError(f"no {kind}")
print("ok")
