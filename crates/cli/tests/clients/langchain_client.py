"""LangChain's OpenAI classes against `tangor serve`: python langchain_client.py BASE MODEL."""

import asyncio
import json
import math
import sys

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

base, model = sys.argv[1] + "/v1", sys.argv[2]
SERVER = dict(base_url=base, api_key="none", model=model, max_retries=0)
chat = ChatOpenAI(**SERVER, max_tokens=200, temperature=0)
QUESTION = [SystemMessage("Be brief."), HumanMessage("What is the capital of France?")]


class City(BaseModel):
    """A city."""

    name: str
    people: int


@tool
def population(city: str) -> int:
    """How many people live in a city."""
    return 2_000_000


def answers_whole_and_streamed():
    whole = chat.invoke(QUESTION)
    assert "Paris" in whole.content, whole
    used = whole.usage_metadata
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"] > 0
    pieces = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(piece.content for piece in pieces) == whole.content
    total = sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata)
    assert total == used["output_tokens"], pieces[-3:]


def answers_many_at_once():
    questions = [[HumanMessage(f"Count to {n}.")] for n in range(3, 7)]

    async def ask():
        together = await chat.abatch(questions)
        alone = [await chat.ainvoke(question) for question in questions]
        assert [one.content for one in together] == [one.content for one in alone]
        pieces = [piece.content async for piece in chat.astream(questions[0])]
        assert "".join(pieces) == alone[0].content

    asyncio.run(ask())


def tools_are_called_and_answered():
    bound = chat.bind_tools(
        [population], tool_choice="population", parallel_tool_calls=False
    )
    called = bound.invoke(QUESTION)
    (call,) = called.tool_calls
    assert call["name"] == "population" and set(call["args"]) == {"city"}, called
    gathered = None
    for piece in bound.stream(QUESTION):
        gathered = piece if gathered is None else gathered + piece
    assert gathered.tool_calls[0]["args"] == call["args"]
    result = ToolMessage(str(population.invoke(call["args"])), tool_call_id=call["id"])
    after = chat.bind_tools([population], tool_choice="none").invoke(QUESTION + [called, result])
    assert isinstance(after, AIMessage) and after.content


def answers_have_the_form_that_is_asked_for():
    for method in ["json_schema", "function_calling"]:
        city = chat.with_structured_output(City, method=method).invoke(QUESTION)
        assert isinstance(city, City), (method, city)
    free = chat.with_structured_output(None, method="json_mode", include_raw=True).invoke(QUESTION)
    if free["raw"].response_metadata["finish_reason"] == "stop":
        assert isinstance(json.loads(free["raw"].content), dict)


def texts_are_continued_and_scored():
    plain = OpenAI(**SERVER, max_tokens=8, temperature=0)
    assert plain.invoke("One, two,") == "".join(plain.stream("One, two,"))
    scored = chat.bind(logprobs=True, top_logprobs=2, max_tokens=4).invoke(QUESTION)
    tokens = scored.response_metadata["logprobs"]["content"]
    assert len(tokens) == 4 and all(len(token["top_logprobs"]) == 2 for token in tokens)


def texts_are_embedded():
    # Otherwise it cuts texts into tokens of OpenAI's, which it fetches first.
    embeddings = OpenAIEmbeddings(**SERVER, check_embedding_ctx_length=False)
    one = embeddings.embed_query("A cat sleeps.")
    first, second = embeddings.embed_documents(["A cat sleeps.", "Shares fell."])
    assert first == one != second
    assert math.isclose(sum(x * x for x in one), 1, rel_tol=1e-3)


def errors_have_their_classes():
    absent = ChatOpenAI(**SERVER | {"model": "absent"})
    long = [HumanMessage("x " * 9000)]
    for kind, call in [
        (openai.NotFoundError, lambda: absent.invoke(QUESTION)),
        (openai.BadRequestError, lambda: chat.invoke(long)),
    ]:
        try:
            call()
        except kind:
            pass
        else:
            raise AssertionError(f"no {kind}")


for check in [
    answers_whole_and_streamed,
    answers_many_at_once,
    tools_are_called_and_answered,
    answers_have_the_form_that_is_asked_for,
    texts_are_continued_and_scored,
    texts_are_embedded,
    errors_have_their_classes,
]:
    check()
    print("ok", check.__name__, flush=True)
