"""The official SDKs of OpenAI and Anthropic over the transports: what programs do with them, plain and async."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from clients import assert_no_request_left

import graphbit
from graphbit.testing import FakeProvider
from graphbit.transports import AsyncHttpx2Transport, Httpx2Transport

ASKED: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as it:
        yield it
        assert_no_request_left()


async def _all(it: Any) -> Any:
    return [piece async for piece in await it]


def talk(client: Any, ask: Callable[[Any], Any], *, stream: bool = False) -> Any:
    """What `ask(client)` comes to, awaited where the client is async; of a stream all its pieces."""
    if isinstance(client, (openai.OpenAI, anthropic.Anthropic)):
        with client:
            found = ask(client)
            return list(found) if stream else found

    async def main() -> Any:
        async with client:
            return await _all(ask(client)) if stream else await ask(client)

    return asyncio.run(main())


def openai_of(provider: FakeProvider, is_async: bool, **options: Any) -> Any:
    options = {"base_url": provider.base_url, "api_key": "k", "max_retries": 0, **options}
    if is_async:
        return openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=AsyncHttpx2Transport()), **options)
    return openai.OpenAI(http_client=httpx2.Client(transport=Httpx2Transport()), **options)


def anthropic_of(provider: FakeProvider, is_async: bool, **options: Any) -> Any:
    options = {"base_url": provider.url, "api_key": "k", "max_retries": 0, **options}
    if is_async:
        return anthropic.AsyncAnthropic(http_client=httpx2.AsyncClient(transport=AsyncHttpx2Transport()), **options)
    return anthropic.Anthropic(http_client=httpx2.Client(transport=Httpx2Transport()), **options)


def chat(client: Any, **more: Any) -> Any:
    return client.chat.completions.create(**{**ASKED, **more})


def message(client: Any, **more: Any) -> Any:
    return client.messages.create(**{**ASKED, "max_tokens": 10, **more})


# ------------------------------------------------------------------------------------------------------------- openai


@BOTH
def test_openai_chat(provider: FakeProvider, is_async: bool) -> None:
    provider.reply("hello there")
    answer = talk(openai_of(provider, is_async), chat)
    assert answer.choices[0].message.content == "hello there"
    assert answer.usage.total_tokens > 0
    (request,) = provider.requests
    assert request.headers["authorization"] == "Bearer k"
    assert "OpenAI" in request.headers["user-agent"]


@BOTH
def test_openai_streaming(provider: FakeProvider, is_async: bool) -> None:
    words = ["Grü", "ße ", "aus ", "Oslo"]
    provider.reply("".join(words), stream_chunks=words, split=3)
    chunks = talk(openai_of(provider, is_async), lambda it: chat(it, stream=True), stream=True)
    assert [it.choices[0].delta.content for it in chunks if it.choices and it.choices[0].delta.content] == words


@BOTH
def test_openai_a_stream_that_is_left_early(provider: FakeProvider, is_async: bool) -> None:
    provider.reply("a b c d e f", stream_chunks=6, chunk_latency=0.05)
    client = openai_of(provider, is_async)

    async def main() -> None:
        async with await chat(client, stream=True) as stream:
            async for _ in stream:
                break

    if is_async:
        asyncio.run(main())
    else:
        with chat(client, stream=True) as stream:
            next(iter(stream))


@BOTH
def test_openai_tool_calls(provider: FakeProvider, is_async: bool) -> None:
    provider.reply(tool_calls=[("weather", {"city": "Oslo"})])
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    (call,) = talk(openai_of(provider, is_async), lambda it: chat(it, tools=tools)).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    assert json.loads(provider.requests[0].body)["tools"] == tools


@BOTH
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, openai.BadRequestError), (401, openai.AuthenticationError), (404, openai.NotFoundError), (429, openai.RateLimitError), (500, openai.InternalServerError)],
)  # fmt: skip
def test_openai_errors(provider: FakeProvider, is_async: bool, status: int, kind: type[openai.APIStatusError]) -> None:
    provider.fail(status, message="no, because", headers={"x-request-id": "r-1"})
    with pytest.raises(kind, match="no, because") as caught:
        talk(openai_of(provider, is_async), chat)
    assert (caught.value.status_code, caught.value.request_id) == (status, "r-1")


@BOTH
def test_openai_timeouts_and_broken_connections(provider: FakeProvider, is_async: bool) -> None:
    provider.stall()
    with pytest.raises(openai.APITimeoutError):
        talk(openai_of(provider, is_async, timeout=0.1), chat)
    provider.cut("headers")
    with pytest.raises(openai.APIConnectionError):
        talk(openai_of(provider, is_async), chat)
    provider.cut("body", text="one two three")
    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        talk(openai_of(provider, is_async), lambda it: chat(it, stream=True), stream=True)


@BOTH
def test_openai_retries_are_the_sdks(provider: FakeProvider, is_async: bool) -> None:
    provider.fail(429, retry_after=0.01)
    provider.fail(503, retry_after=0.01)
    provider.cut("headers")
    provider.reply("at last")
    client = openai_of(provider, is_async, max_retries=3)
    assert talk(client, chat).choices[0].message.content == "at last"
    assert [it.headers["x-stainless-retry-count"] for it in provider.requests] == ["0", "1", "2", "3"]


@BOTH
def test_openai_uploads(provider: FakeProvider, is_async: bool) -> None:
    made = {
        "id": "f",
        "object": "file",
        "bytes": 1,
        "created_at": 1,
        "filename": "a",
        "purpose": "batch",
        "status": "processed",
    }
    provider.route("POST", "/v1/files", json=made)
    data = b"line\n" * 200_000
    found = talk(openai_of(provider, is_async), lambda it: it.files.create(file=("a.jsonl", data), purpose="batch"))
    assert found.id == "f"
    assert data in provider.requests[0].body
    provider.route("GET", "/v1/files/f/content", body=data)
    if not is_async:
        with openai_of(provider, False) as client, client.files.with_streaming_response.content("f") as response:
            assert b"".join(response.iter_bytes()) == data


@BOTH
def test_openai_embeddings_and_raw_responses(provider: FakeProvider, is_async: bool) -> None:
    found = talk(
        openai_of(provider, is_async),
        lambda it: it.embeddings.create(model="m", input=["a", "b"], encoding_format="float"),
    )
    assert len(found.data) == 2
    provider.reply("raw")
    raw = talk(openai_of(provider, is_async), lambda it: it.chat.completions.with_raw_response.create(**ASKED))
    assert raw.http_response.http_version == "HTTP/1.1"
    assert raw.parse().choices[0].message.content == "raw"


def test_openai_two_hundred_at_once(provider: FakeProvider) -> None:
    provider.default = lambda request: request.prompt.upper()

    async def main() -> list[str]:
        async with openai_of(provider, True) as client:

            async def one(number: int) -> str:
                answer = await chat(client, messages=[{"role": "user", "content": f"prompt {number}"}])
                return str(answer.choices[0].message.content)

            return await asyncio.gather(*(one(number) for number in range(200)))

    assert asyncio.run(main()) == [f"PROMPT {number}" for number in range(200)]
    assert graphbit.http_stats()["in_flight"] == 0


def test_openai_from_many_threads(provider: FakeProvider) -> None:
    provider.default = lambda request: request.prompt.upper()
    found: dict[int, str] = {}
    with openai_of(provider, False) as client:

        def one(number: int) -> None:
            answer = chat(client, messages=[{"role": "user", "content": f"p{number}"}])
            found[number] = answer.choices[0].message.content

        threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == {number: f"P{number}" for number in range(40)}


# ---------------------------------------------------------------------------------------------------------- anthropic


SAID = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "hello there"}], "usage": {"input_tokens": 1, "output_tokens": 2},
}  # fmt: skip


def events(*pieces: str) -> str:
    begin = {**SAID, "content": [], "stop_reason": None}
    found = [
        {"type": "message_start", "message": begin},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": it}} for it in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return "".join(f"event: {it['type']}\ndata: {json.dumps(it)}\n\n" for it in found)


@BOTH
def test_anthropic_messages(provider: FakeProvider, is_async: bool) -> None:
    provider.route("POST", "/v1/messages", json=SAID)
    answer = talk(anthropic_of(provider, is_async), message)
    assert answer.content[0].text == "hello there"
    assert json.loads(provider.requests[0].body) == {**ASKED, "max_tokens": 10}
    assert provider.requests[0].headers["anthropic-version"]


@BOTH
def test_anthropic_streaming(provider: FakeProvider, is_async: bool) -> None:
    provider.route("POST", "/v1/messages", body=events("Grü", "ße").encode(), content_type="text/event-stream")
    found = talk(anthropic_of(provider, is_async), lambda it: message(it, stream=True), stream=True)
    assert [it.delta.text for it in found if it.type == "content_block_delta"] == ["Grü", "ße"]
    if not is_async:
        with anthropic_of(provider, False) as client, client.messages.stream(**ASKED, max_tokens=10) as stream:
            assert "".join(stream.text_stream) == "Grüße"


@BOTH
def test_anthropic_tool_use_and_images(provider: FakeProvider, is_async: bool) -> None:
    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Oslo"}}
    provider.route("POST", "/v1/messages", json={**SAID, "content": [use], "stop_reason": "tool_use"})
    picture = base64.b64encode(bytes(range(256)) * 2000).decode()
    source = {"type": "base64", "media_type": "image/png", "data": picture}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]
    answer = talk(
        anthropic_of(provider, is_async), lambda it: message(it, messages=[{"role": "user", "content": content}])
    )
    assert answer.content[0].input == {"city": "Oslo"}
    assert json.loads(provider.requests[0].body)["messages"][0]["content"] == content


@BOTH
@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, anthropic.BadRequestError), (429, anthropic.RateLimitError), (529, anthropic.InternalServerError)],
)
def test_anthropic_errors(
    provider: FakeProvider, is_async: bool, status: int, kind: type[anthropic.APIStatusError]
) -> None:
    body = {"type": "error", "error": {"type": "x", "message": "no, because"}}
    provider.route("POST", "/v1/messages", json=body, status=status)
    with pytest.raises(kind, match="no, because"):
        talk(anthropic_of(provider, is_async), message)


@BOTH
def test_anthropic_timeouts_and_retries(provider: FakeProvider, is_async: bool) -> None:
    provider.route("POST", "/v1/messages", json=SAID)
    provider.stall(path="/v1/messages")
    with pytest.raises(anthropic.APITimeoutError):
        talk(anthropic_of(provider, is_async, timeout=0.1), message)
    provider.fail(503, retry_after=0.01, path="/v1/messages")
    provider.cut(path="/v1/messages")
    assert talk(anthropic_of(provider, is_async, max_retries=2), message).content[0].text == "hello there"
    assert len(provider.requests) == 4


def test_anthropic_two_hundred_at_once(provider: FakeProvider) -> None:
    provider.route("POST", "/v1/messages", json=SAID)

    async def main() -> int:
        async with anthropic_of(provider, True) as client:
            answers = await asyncio.gather(*(message(client) for _ in range(200)))
            return sum(it.content[0].text == "hello there" for it in answers)

    assert asyncio.run(main()) == 200
