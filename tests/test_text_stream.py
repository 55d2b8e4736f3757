"""TextStream: an answer while it is written, its end, its failures, and leaving early."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from flows import until

import graphbit
from graphbit import (
    AuthenticationError,
    ConnectError,
    HttpOptions,
    InputError,
    LlmClient,
    LlmConfig,
    RateLimitError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    RuntimeClosedError,
    ServerError,
    TextStream,
)
from graphbit.testing import FakeProvider

WORDS = ["Grü", "ße ", "aus ", "Mün", "chen ", "😀", "\u2028", '\\n"{}', "\n"]


def client_of(provider: FakeProvider, **options: Any) -> LlmClient:
    return LlmClient(LlmConfig.openai_compatible(provider.base_url, "m", **{"max_retries": 0, **options}))


def read(stream: TextStream, way: str) -> list[str]:
    if way == "for":
        return list(stream)

    async def all_of() -> list[str]:
        return [piece async for piece in stream]

    return asyncio.run(all_of())


WAYS = pytest.mark.parametrize("way", ["for", "async for"])


def sse(*events: Any, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {it if isinstance(it, str) else json.dumps(it)}\n\n" for it in events) + end


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": text}, **more}]}


def never_ends(provider: FakeProvider) -> None:
    """One piece, and then nothing more."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n"
    provider.reply_raw(head + sse(said("a"), end="").encode(), close=False)


FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def in_flight() -> tuple[int, int]:
    stats = graphbit.http_stats()
    return stats["in_flight"], stats["queued"]


# ---------------------------------------------------------------------------------------------------- as it should go


@WAYS
@pytest.mark.parametrize("split", [None, 1, 3, 50])
def test_pieces_come_as_the_model_wrote_them(provider: FakeProvider, way: str, split: int | None) -> None:
    provider.reply("".join(WORDS), stream_chunks=WORDS, split=split)
    client = client_of(provider)
    stream = client.stream("hi", max_tokens=7, temperature=0.5)
    assert read(stream, way) == WORDS
    assert stream.text == stream.response.content == "".join(WORDS)
    usage = stream.usage
    assert usage == stream.response.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    assert str(stream.response.finish_reason) == "stop"
    assert stream.response.model == "m"
    body = json.loads(provider.requests[0].body)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["temperature"]) == (7, 0.5)
    assert client.get_stats()["successful_requests"] == 1
    assert in_flight() == (0, 0)


def test_each_piece_is_there_before_the_next_was_written(provider: FakeProvider) -> None:
    gate = threading.Event()
    provider.reply("a b", stream_chunks=["a ", "b"])
    provider.hold()
    stream = client_of(provider).stream("hi")
    threading.Thread(target=lambda: (provider.wait_for_requests(1), provider.release(1), gate.set())).start()
    assert next(stream) == "a "
    assert gate.wait(10)
    assert list(stream) == ["b"]
    provider.release()


@WAYS
def test_a_conversation_can_be_streamed(provider: FakeProvider, way: str) -> None:
    provider.reply("well")
    assert read(client_of(provider).stream([("system", "Be brief."), ("user", "hi")]), way) == ["well"]
    assert [it["role"] for it in json.loads(provider.requests[0].body)["messages"]] == ["system", "user"]


def test_nothing_is_sent_before_a_piece_is_asked_for(provider: FakeProvider) -> None:
    stream = client_of(provider).stream("hi")
    assert repr(stream) == "<TextStream new, 0 characters>"
    with pytest.raises(RuntimeError, match="read the stream to its end"):
        _ = stream.response
    stream.close()
    assert list(stream) == []
    assert provider.requests == []


def test_the_whole_answer_is_printed_and_returned(provider: FakeProvider, capsys: pytest.CaptureFixture[str]) -> None:
    provider.reply("one two three")
    stream = client_of(provider).complete_stream("hi")
    assert asyncio.run(stream.streaming_response()) == "one two three"
    assert capsys.readouterr().out == "one two three"


def test_reasoning_is_no_text_and_tool_calls_are_in_the_response(provider: FakeProvider) -> None:
    provider.reply("so", reasoning="let me think", tool_calls=[("weather", {"city": "Oslo"})])
    stream = client_of(provider).stream("hi")
    assert "".join(stream) == "so"
    (call,) = stream.response.tool_calls
    assert (call.name, json.loads(call.parameters)) == ("weather", {"city": "Oslo"})


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/jsonl; charset=utf-8"])
def test_a_server_may_send_a_line_for_each_event(provider: FakeProvider, kind: str) -> None:
    lines = "\r\n".join(json.dumps(it) for it in (said("a"), said("b"), FINISH))
    provider.reply_body(lines, content_type=kind, split=2)
    stream = client_of(provider).stream("hi")
    assert list(stream) == ["a", "b"]


def test_a_server_that_does_not_stream_answers_in_one_piece(provider: FakeProvider) -> None:
    provider.reply_body(
        {
            "model": "m",
            "choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}],
            "usage": {"total_tokens": 9},
        }
    )
    stream = client_of(provider).stream("hi")
    assert list(stream) == ["all at once"]
    assert stream.response.usage.total_tokens == 9


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_any_line_ending_comments_and_a_byte_order_mark_will_do(provider: FakeProvider, ending: str) -> None:
    text = "\ufeff: hello\n\nretry: 10\nevent: x\nid: 1\n" + sse(said("a")) + ":\n" + sse(FINISH)
    provider.reply_body(text.replace("\n", ending), content_type="text/event-stream", split=1)
    assert list(client_of(provider).stream("hi")) == ["a"]


# --------------------------------------------------------------------------------------------------------- failures


@WAYS
@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (429, RateLimitError), (500, ServerError)])
def test_an_error_instead_of_a_stream_is_that_error(
    provider: FakeProvider, way: str, status: int, kind: type[Exception]
) -> None:
    provider.fail(status, message="no, because")
    stream = client_of(provider).stream("hi")
    with pytest.raises(kind, match="no, because"):
        read(stream, way)
    assert list(stream) == []  # it is told once
    assert in_flight() == (0, 0)


def test_what_fails_before_the_first_piece_is_tried_again(provider: FakeProvider) -> None:
    provider.fail(503, retry_after=0)
    provider.cut("headers")
    provider.reply("at last")
    client = client_of(provider, max_retries=2)
    assert "".join(client.stream("hi")) == "at last"
    assert len(provider.requests) == 3
    retries = graphbit.http_stats()["retries"]
    assert retries["status_5xx"] >= 1
    assert retries["closed"] >= 1


def test_nothing_is_tried_again_after_the_first_piece(provider: FakeProvider) -> None:
    body = sse(said("one "), said("two "), end="")
    provider.reply_raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n" + body.encode()
    )
    stream = client_of(provider, max_retries=5).stream("hi")
    pieces: list[str] = []
    with pytest.raises(ConnectError, match="before the reply was whole"):
        pieces.extend(stream)
    assert pieces == ["one ", "two "]
    assert stream.text == "one two "
    assert len(provider.requests) == 1


@WAYS
def test_an_answer_cut_off_politely_is_cut_off_all_the_same(provider: FakeProvider, way: str) -> None:
    provider.reply_body(sse(said("half"), end=""), content_type="text/event-stream")
    with pytest.raises(ConnectError, match="the stream ended before the answer did"):
        read(client_of(provider).stream("hi"), way)


def test_an_error_object_in_the_middle_is_an_error(provider: FakeProvider) -> None:
    body = sse(said("a"), {"error": {"message": "overloaded", "code": "503", "type": "server_error"}}, said("b"))
    provider.reply_body(body, content_type="text/event-stream")
    pieces: list[str] = []
    with pytest.raises(ServerError, match="overloaded"):
        pieces.extend(client_of(provider).stream("hi"))
    assert len(provider.requests) == 1


def test_an_error_object_before_the_first_piece_is_tried_again(provider: FakeProvider) -> None:
    busy = sse({"error": {"message": "slow down", "code": "429"}})
    provider.reply_body(busy, content_type="text/event-stream", headers={"retry-after-ms": "1"})
    provider.reply("at last")
    assert "".join(client_of(provider, max_retries=1).stream("hi")) == "at last"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (sse(said("a"), '{"choices": [', said("b")), "not valid JSON"),
        (sse(said("a"), "x" * 3000), "event of the stream is larger than 2000 bytes"),
        ("<html>not a stream</html>", "ended before the answer did"),
        ("", "ended before the answer did"),
    ],
    ids=["bad-json", "large-event", "html", "empty"],
)
def test_what_is_no_stream_of_answers_is_an_error(provider: FakeProvider, body: str, words: str) -> None:
    provider.reply_body(body, content_type="text/event-stream")
    with pytest.raises((ReplyError, ConnectError), match=words):
        list(client_of(provider, http=HttpOptions(max_event_bytes=2000)).stream("hi"))


@WAYS
def test_silence_in_the_middle_is_a_timeout(provider: FakeProvider, way: str) -> None:
    provider.stall(30, text="a long answer that never comes")
    with pytest.raises(RequestTimeoutError):
        read(client_of(provider, timeout=0.2).stream("hi"), way)
    provider.wait_for_disconnects(1)


def test_the_first_byte_may_have_a_time_of_its_own(provider: FakeProvider) -> None:
    provider.stall()
    client = client_of(provider, timeout=60, http=HttpOptions(first_byte_timeout=0.1))
    with pytest.raises(RequestTimeoutError, match="first_byte_timeout"):
        list(client.stream("hi"))


def test_a_long_answer_outlasts_the_timeout_that_bounds_silence(provider: FakeProvider) -> None:
    provider.reply("a b c d e f g h", chunk_latency=0.06)
    assert len(list(client_of(provider, timeout=0.3).stream("hi"))) == 8


@pytest.mark.parametrize("prompt", ["", 5, None, [], [("user", "")]])
def test_a_prompt_that_cannot_be_is_refused_at_once(provider: FakeProvider, prompt: Any) -> None:
    with pytest.raises((InputError, TypeError)):
        client_of(provider).stream(prompt)
    with pytest.raises(ValueError, match="max_tokens"):
        client_of(provider).stream("hi", max_tokens=0)


# ---------------------------------------------------------------------------------------------------- leaving early


def leave_by_close(stream: TextStream) -> None:
    next(stream)
    stream.close()


def leave_by_with(stream: TextStream) -> None:
    with stream:
        next(stream)


def leave_by_dropping(stream: TextStream) -> None:
    next(stream)


async def first_piece(stream: TextStream) -> str:
    return await anext(aiter(stream))


def leave_async(stream: TextStream) -> None:
    async def go() -> None:
        async with stream:
            await first_piece(stream)

    asyncio.run(go())


def leave_cancelled(stream: TextStream) -> None:
    async def go() -> None:
        first = asyncio.Event()

        async def reads() -> None:
            async for _ in stream:
                first.set()

        task = asyncio.create_task(reads())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())


def leave_async_by_dropping(stream: TextStream) -> None:
    async def go() -> None:
        await first_piece(stream)

    asyncio.run(go())


@pytest.mark.parametrize(
    "leave",
    [leave_by_close, leave_by_with, leave_by_dropping, leave_async, leave_cancelled, leave_async_by_dropping],
)
def test_leaving_early_closes_the_connection(provider: FakeProvider, leave: Callable[[TextStream], None]) -> None:
    never_ends(provider)
    client = client_of(provider)
    leave(client.stream("hi"))
    gc.collect()
    provider.wait_for_disconnects(1)
    until(lambda: in_flight() == (0, 0))
    stats = client.get_stats()
    assert (stats["cancelled_requests"], stats["total_requests"]) == (1, 1)
    provider.reply("fine")
    assert client.complete("again") == "fine"


def test_one_stream_is_read_one_way(provider: FakeProvider) -> None:
    provider.reply("a b c", chunk_latency=0.01)
    stream = client_of(provider).stream("hi")
    next(stream)
    with pytest.raises(RuntimeError, match="'async for'"):
        asyncio.run(first_piece_of(stream))
    assert "".join(stream) == "b c"


async def first_piece_of(stream: AsyncIterator[str]) -> list[str]:
    found = [await anext(stream)]
    return found + [it async for it in stream]


def test_shutting_down_ends_a_stream(provider: FakeProvider) -> None:
    never_ends(provider)
    stream = client_of(provider).stream("hi")
    next(stream)
    graphbit.shutdown()
    with pytest.raises(RuntimeClosedError):
        next(stream)
    assert list(stream) == []


# ------------------------------------------------------------------------------------------------- many, and slow ones


def test_two_hundred_streams_at_once_get_their_own_pieces(provider: FakeProvider) -> None:
    provider.default = lambda request: f"{request.prompt} one two three four five six seven eight nine ten"
    client = client_of(provider)

    async def one(number: int) -> str:
        return "".join([piece async for piece in client.stream(f"p{number}")])

    async def all_of() -> list[str]:
        return await asyncio.gather(*[one(number) for number in range(200)])

    found = asyncio.run(all_of())
    assert found == [f"p{number} one two three four five six seven eight nine ten" for number in range(200)]


def test_streams_are_read_by_many_threads(provider: FakeProvider) -> None:
    provider.default = lambda request: f"{request.prompt} " + "x " * 50
    client = client_of(provider)
    found: dict[int, str] = {}

    def reads(number: int) -> None:
        found[number] = "".join(client.stream(f"p{number}"))

    readers = [threading.Thread(target=reads, args=(number,)) for number in range(16)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(20)
    assert {number: text.split()[0] for number, text in found.items()} == {n: f"p{n}" for n in range(16)}


def test_who_reads_slowly_slows_the_server_down() -> None:
    """The server finds no room for more, for longer than the client's timeout, and all arrives once it is read."""
    piece = "x" * 4000
    body = memoryview(sse(*[said(piece)] * 8000, FINISH).encode())
    held_up = threading.Event()
    sent_when_held_up = 0

    def serve(listener: socket.socket) -> None:
        nonlocal sent_when_held_up
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            connection.settimeout(1.0)
            sent = 0
            while sent < len(body):
                try:
                    sent += connection.send(body[sent : sent + 65536])
                except TimeoutError:
                    connection.settimeout(20)
                    sent_when_held_up = sent
                    held_up.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        config = LlmConfig.openai_compatible(
            f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "m", timeout=0.3, max_retries=0
        )
        stream = LlmClient(config).stream("hi")
        assert next(stream) == piece
        assert held_up.wait(20)
        assert len(body) > 2 * sent_when_held_up > 0
        assert sum(map(len, stream)) == 7999 * len(piece)
        server.join(20)


def test_an_error_names_the_model_and_hides_the_key(provider: FakeProvider) -> None:
    provider.fail(401, message="bad key sk-very-secret-key-123456")
    client = client_of(provider, api_key="sk-very-secret-key-123456")
    with pytest.raises(RequestError) as caught:
        list(client.stream("hi"))
    assert "model 'm'" in str(caught.value)
    assert "very-secret" not in str(caught.value)
