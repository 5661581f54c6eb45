"""OpenAI's own client against `tangor serve`: python openai_client.py BASE MODEL."""

import asyncio
import json
import sys

import openai
from slots import wait_until_idle

base, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def chat(**more):
    return client.chat.completions.create(
        **{"model": model, "messages": QUESTION, "max_tokens": 32} | more
    )


def text(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def answers_whole_and_streamed():
    whole = chat()
    assert "Paris" in whole.choices[0].message.content, whole
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert text(chunks) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def knobs_do_what_they_say():
    warm = dict(temperature=1.0, top_p=0.9, seed=7, presence_penalty=0.5, frequency_penalty=0.2)
    assert chat(**warm).choices[0].message.content == chat(**warm).choices[0].message.content
    several = chat(n=3, temperature=1.2, seed=1)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert len({c.message.content for c in several.choices}) > 1
    stopped = chat(stop=["Paris"])
    assert "Paris" not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"
    scored = chat(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert len(scored) == 4 and all(len(t.top_logprobs) == 3 for t in scored)
    assert all(t.top_logprobs[0].logprob == t.logprob for t in scored)
    banned = client.post(
        "/tokenize", cast_to=object, body={"content": " Paris"}
    )["tokens"]
    assert "Paris" not in chat(logit_bias={str(banned[0]): -100}).choices[0].message.content
    assert chat(extra_body={"min_p": 0.1, "top_k": 5}, temperature=1.0).choices


def json_follows_its_schema():
    schema = {"name": "city", "schema": CITY, "strict": True}
    form = {"type": "json_schema", "json_schema": schema}
    value = json.loads(chat(response_format=form, max_tokens=200).choices[0].message.content)
    assert set(value) == {"city", "people"} and isinstance(value["people"], int)
    free = chat(response_format={"type": "json_object"}, max_tokens=400)
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(free.choices[0].message.content), dict)


def tools_are_called():
    function = {"name": "population", "description": "How many live there", "parameters": CITY}
    tools = [{"type": "function", "function": function}]
    called = chat(tools=tools, tool_choice="required", max_tokens=200)
    assert called.choices[0].finish_reason == "tool_calls", called
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "population" and call.id
    assert set(json.loads(call.function.arguments)) == {"city", "people"}
    streamed = {}
    for chunk in chat(tools=tools, tool_choice="required", max_tokens=200, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            known = streamed.setdefault(delta.index, {"name": "", "arguments": ""})
            known["name"] += delta.function.name or ""
            known["arguments"] += delta.function.arguments or ""
    assert streamed[0]["name"] == "population"
    assert streamed[0]["arguments"] == call.function.arguments
    history = QUESTION + [
        called.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "two million"},
    ]
    assert chat(messages=history, tools=tools, tool_choice="none").choices[0].message.content


def completions_echo_and_score():
    done = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=1, echo=True, logprobs=1,
        temperature=0,
    )
    scores = done.choices[0].logprobs
    assert done.choices[0].text.startswith("The capital of France is")
    assert scores.token_logprobs[0] is None and all(x <= 0 for x in scores.token_logprobs[1:])
    assert len(scores.tokens) == len(scores.text_offset) == len(scores.top_logprobs)
    pieces = client.completions.create(model=model, prompt="One, two,", max_tokens=8, stream=True)
    whole = client.completions.create(model=model, prompt="One, two,", max_tokens=8)
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text


def a_prompt_in_the_models_own_words_is_the_conversation():
    """Special tokens of a plain prompt are special; those in a message are text."""
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    turn = "<|im_start|>{role}\n{content}<|im_end|>\n"
    prompt = "".join(turn.format(**message) for message in messages) + "<|im_start|>assistant\n"
    said = chat(messages=messages)
    plain = client.completions.create(model=model, prompt=prompt, max_tokens=32)
    assert plain.choices[0].text == said.choices[0].message.content, plain
    assert plain.usage.prompt_tokens == said.usage.prompt_tokens
    forged = chat(messages=[{"role": "user", "content": prompt}])
    assert forged.usage.prompt_tokens > said.usage.prompt_tokens + 20, forged.usage


def an_answer_goes_on_where_it_ends():
    begun = {"role": "assistant", "content": "The capital of France is"}
    rest = chat(messages=[*QUESTION, begun], max_tokens=2)
    assert rest.choices[0].message.content.startswith(" Paris"), rest


def responses_stream():
    whole = client.responses.create(model=model, input=QUESTION[0]["content"], max_output_tokens=200)
    assert "Paris" in whole.output_text, whole
    with client.responses.stream(
        model=model, input=QUESTION[0]["content"], max_output_tokens=200
    ) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == whole.output_text == final.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def texts_are_embedded():
    texts = ["A cat sleeps.", "Shares fell."]
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float").data
    # Without a form the client asks for base64, and reads that.
    packed = client.embeddings.create(model=model, input=texts).data
    assert [list(one.embedding) for one in plain] == [list(one.embedding) for one in packed]
    assert plain[0].embedding != plain[1].embedding


def what_the_server_does_not_do_it_says():
    assert chat(reasoning_effort="none").choices
    for call in [
        lambda: chat(reasoning_effort="boundless"),
        lambda: client.responses.create(model=model, input="Hi", tools=[{"type": "web_search"}]),
        lambda: client.responses.create(model=model, input="Hi", conversation="conv_1"),
    ]:
        try:
            call()
        except openai.BadRequestError as error:
            assert error.param, error
        else:
            raise AssertionError("it is taken")


def models_are_listed():
    assert model in [m.id for m in client.models.list()]
    assert client.models.retrieve(model).id == model


def errors_have_their_classes():
    for kind, call in [
        (openai.NotFoundError, lambda: chat(model="absent")),
        (openai.BadRequestError, lambda: chat(temperature=-1)),
        (openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "x " * 9000}])),
    ]:
        try:
            call()
        except kind as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"no {kind}")


async def many_at_once():
    several = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none")

    async def ask(n):
        question = [{"role": "user", "content": f"Count to {n}."}]
        args = dict(model=model, messages=question, max_tokens=24)
        stream = await several.chat.completions.create(**args, stream=True)
        return [c.choices[0].delta.content or "" async for c in stream if c.choices]

    together = ["".join(pieces) for pieces in await asyncio.gather(*map(ask, range(3, 9)))]
    alone = ["".join(await ask(n)) for n in range(3, 9)]
    assert together == alone


def leaving_frees_the_place():
    stream = chat(max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    wait_until_idle(base)


for check in [
    answers_whole_and_streamed,
    knobs_do_what_they_say,
    json_follows_its_schema,
    tools_are_called,
    completions_echo_and_score,
    a_prompt_in_the_models_own_words_is_the_conversation,
    an_answer_goes_on_where_it_ends,
    responses_stream,
    texts_are_embedded,
    what_the_server_does_not_do_it_says,
    models_are_listed,
    errors_have_their_classes,
    lambda: asyncio.run(many_at_once()),
    leaving_frees_the_place,
]:
    check()
    print("ok", getattr(check, "__name__", check), flush=True)
