"""The fake provider, through its socket: http.client where HTTP is spoken properly, raw sockets where it is not."""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from graphbit._fake_http import Malformed, RequestParser
from graphbit._fake_openai import default_text, embedding, parts_of, summarize, words_of
from graphbit._fake_provider import FakeProvider
from graphbit._fake_script import Reply

CHAT = "/v1/chat/completions"


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as provider:
        yield provider


def chat_body(prompt: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": prompt}], **more}


def connect(provider: FakeProvider) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)


def ask(
    provider: FakeProvider,
    path: str = CHAT,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own."""
    connection = connect(provider)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
    response = connection.getresponse()
    try:
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def text(provider: FakeProvider, prompt: str = "Hello.", **more: Any) -> Any:
    status, _, body = ask(provider, body=chat_body(prompt, **more))
    assert status == 200, body
    return json.loads(body)["choices"][0]["message"]["content"]


def error(reply: tuple[int, Any, bytes]) -> tuple[int, dict[str, Any]]:
    return reply[0], json.loads(reply[2])["error"]


def events(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream; checks its frame."""
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def raw_request(prompt: str = "Hello.", extra: str = "", **more: Any) -> bytes:
    body = json.dumps(chat_body(prompt, **more)).encode()
    return f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def dial(provider: FakeProvider) -> socket.socket:
    return socket.create_connection(("127.0.0.1", provider.port), timeout=10)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def is_gone(sock: socket.socket) -> bool:
    """Whether the other side has closed or reset the connection, as the system likes it."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# ---- what it says


def test_a_scripted_reply_is_given_once_and_then_the_default_speaks(provider: FakeProvider) -> None:
    provider.default = "by default"
    provider.reply("hello")
    status, headers, body = ask(provider, body=chat_body("What is the answer?"))
    reply = json.loads(body)
    assert (status, headers["content-type"], headers["x-request-id"]) == (200, "application/json", "req-1")
    assert (reply["id"], reply["object"], reply["model"]) == ("chatcmpl-1", "chat.completion", "fake-model")
    assert reply["choices"][0]["message"]["content"] == "hello"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
    assert text(provider) == "by default"


def test_replies_are_consumed_in_order_and_those_with_when_by_matching_requests_only(provider: FakeProvider) -> None:
    provider.reply("bees", when="bee", times=2)
    provider.reply("first")
    provider.reply("long", when=lambda request: len(request.prompt) > 20)
    provider.reply("never", when="no such words")
    provider.reply("rest", times=None)
    prompts = ["a wasp", "a bee", "a wasp", "a bee", "a bee", "a prompt of more than twenty characters"]
    assert [text(provider, prompt) for prompt in prompts] == ["first", "bees", "rest", "bees", "rest", "long"]
    assert provider.unused == 1
    provider.clear()
    assert (provider.unused, provider.requests) == (0, [])


def test_the_default_may_be_a_function_that_returns_text_values_replies_or_nothing(provider: FakeProvider) -> None:
    answers: list[Any] = ["said", {"a": 1}, Reply(status=429, retry_after=2), None]
    provider.default = lambda request: answers[request.index]
    assert text(provider) == "said"
    assert text(provider) == '{"a":1}'
    status, headers, _ = ask(provider, body=chat_body())
    assert (status, headers["retry-after"]) == (429, "2")
    assert text(provider, "One sentence only.") == "One sentence only."


def test_unscripted_prompts_are_summarized_and_the_same_one_always_gets_the_same_reply(provider: FakeProvider) -> None:
    prompt = (
        "Thank you. Bees dance to tell other bees where the flowers are. It was a Tuesday. "
        "A dance of the bees gives direction and distance of flowers. Nobody came."
    )
    summary = text(provider, prompt)
    assert summary == (
        "Bees dance to tell other bees where the flowers are. A dance of the bees gives direction and distance of flowers."
    )
    assert text(provider, prompt) == summary
    assert len(summarize("word " * 5000)) <= 400
    assert summarize(" \n ") == "There is nothing to summarize."
    assert summarize("蜂が踊る。花を示す。") == "蜂が踊る。"


def test_an_unscripted_request_for_json_gets_json_that_meets_the_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 4},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
            "size": {"type": "integer", "minimum": 3},
            "owner": {"$ref": "#/$defs/Owner"},
            "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
        "$defs": {"Owner": {"type": "object", "properties": {"ok": {"type": "boolean"}}}},
    }
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    made = json.loads(default_text(wanted, "Bees dance."))
    assert made == {"title": "Bees", "tags": ["a", "a"], "size": 3, "owner": {"ok": True}, "note": None}
    endless = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}
    assert json.loads(default_text(endless, "x")) is None
    assert json.loads(default_text({"response_format": {"type": "json_object"}}, "Bees.")) == {"summary": "Bees."}


def test_streams_arrive_as_events_with_the_usage_at_the_end_if_asked_for(provider: FakeProvider) -> None:
    provider.reply("Bees dance well.", times=2)
    status, headers, body = ask(provider, body=chat_body(stream=True, stream_options={"include_usage": True}))
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    chunks = events(body)
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-1"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert [delta.get("content") for delta in deltas] == ["", "Bees ", "dance ", "well.", None]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert "usage" not in events(ask(provider, body=chat_body(stream=True))[2])[-1]


def test_the_pieces_of_a_stream_can_be_given_or_counted_and_cut_apart_on_the_wire(provider: FakeProvider) -> None:
    def contents(body: bytes) -> list[str]:
        deltas = [chunk["choices"][0]["delta"] for chunk in events(body)]
        return [delta["content"] for delta in deltas if delta.get("content")]

    provider.reply(stream_chunks=["hé", "llo €", "🐝"], split=1)
    assert contents(ask(provider, body=chat_body(stream=True))[2]) == ["hé", "llo €", "🐝"]
    provider.reply("abcdefg", stream_chunks=3, chunk_latency=0.001)
    assert contents(ask(provider, body=chat_body(stream=True))[2]) == ["ab", "cd", "efg"]
    provider.reply(stream_chunks=["a", "b"])
    assert text(provider) == "ab"
    for sample in ("", " ", "a", "  a  b\n\nc  ", "a b "):
        assert "".join(words_of(sample)) == sample
        assert "".join(parts_of(sample, 3)) == sample


def test_tool_calls_come_whole_or_in_pieces_that_join_to_the_same(provider: FakeProvider) -> None:
    calls: list[Any] = [("weather", {"city": "Reykjavík"}), {"name": "time", "arguments": "{not json", "id": "own"}]
    provider.reply(tool_calls=calls, times=2)
    choice = json.loads(ask(provider, body=chat_body())[2])["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    whole = choice["message"]["tool_calls"]
    assert [call["id"] for call in whole] == ["call_1_0", "own"]
    assert json.loads(whole[0]["function"]["arguments"]) == {"city": "Reykjavík"}
    assert whole[1]["function"] == {"name": "time", "arguments": "{not json"}

    joined: dict[int, dict[str, str]] = {}
    for chunk in events(ask(provider, body=chat_body(stream=True))[2]):
        for call in chunk["choices"][0]["delta"].get("tool_calls", ()):
            one = joined.setdefault(call["index"], {"name": "", "arguments": ""})
            one["name"] += call["function"].get("name", "")
            one["arguments"] += call["function"]["arguments"]
    assert [joined[0], joined[1]] == [call["function"] for call in whole]


def test_after_tool_results_the_default_reply_is_about_them(provider: FakeProvider) -> None:
    asked = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny."},
    ]
    status, _, body = ask(provider, body={"model": "m", "messages": messages})
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "Sunny.")
    assert provider.requests[0].prompt == "Weather?"
    assert [message["role"] for message in provider.requests[0].messages] == ["user", "assistant", "tool"]
    status, problem = error(ask(provider, body={"model": "m", "messages": messages[:2]}))
    assert status == 400
    assert "c1" in problem["message"]
    assert error(ask(provider, body={"model": "m", "messages": [messages[0], messages[2]]}))[0] == 400


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{oops", None, None),
        (b"[" * 100_000, None, None),
        ({"messages": []}, None, None),
        ({"model": "m"}, "missing_required_parameter", "messages"),
        ({"model": "m", "messages": []}, "empty_array", "messages"),
        ({"model": "m", "messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
        ({"model": "m", "messages": [{"role": "boss", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"model": "m", "messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"model": "m", "messages": [{"role": "user", "content": None}]}, "invalid_type", "messages[0].content"),
        (chat_body(temperature=2.5), "decimal_above_max_value", "temperature"),
        (chat_body(max_tokens=0), "integer_below_min_value", "max_tokens"),
        (chat_body(stream_options={}), None, "stream_options"),
        (chat_body(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].function.name"),
    ],
)
def test_a_bad_request_gets_a_400_that_names_the_field_and_consumes_no_script(
    provider: FakeProvider, body: Any, code: str | None, param: str | None
) -> None:
    provider.reply("still there")
    status, problem = error(ask(provider, body=body))
    assert (status, problem["code"], problem["param"]) == (400, code, param)
    assert problem["type"] == "invalid_request_error"
    assert text(provider) == "still there"


def test_embeddings_are_unit_vectors_and_nearer_for_texts_that_share_words(provider: FakeProvider) -> None:
    body = {"model": "e", "input": ["bees dance in the sun", "bees dance at noon", "tax law"]}
    reply = json.loads(ask(provider, "/v1/embeddings", body)[2])
    bees, noon, law = (item["embedding"] for item in reply["data"])
    assert [item["index"] for item in reply["data"]] == [0, 1, 2]
    assert reply["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert bees == embedding("bees dance in the sun")

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(bees, bees) == pytest.approx(1, abs=1e-4)
    assert near(bees, noon) > 0.3 > near(bees, law)
    small = {"model": "e", "input": "bees", "dimensions": 8, "encoding_format": "base64"}
    packed = json.loads(ask(provider, "/v1/embeddings", small)[2])["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(embedding("bees", 8))
    assert len(json.loads(ask(provider, "/v1/embeddings", {"model": "e", "input": [1, 2]})[2])["data"]) == 1
    assert error(ask(provider, "/v1/embeddings", {"model": "e", "input": ""}))[0] == 400
    provider.reply("for chat only")
    provider.fail(503)
    assert error(ask(provider, "/v1/embeddings", {"model": "e", "input": "x"}))[0] == 503
    assert text(provider) == "for chat only"


def test_models_are_listed_and_unknown_paths_and_methods_are_turned_down(provider: FakeProvider) -> None:
    assert [one["id"] for one in json.loads(ask(provider, "/v1/models")[2])["data"]] == ["fake-model"]
    assert json.loads(ask(provider, "/v1/models/fake-model")[2])["object"] == "model"
    assert error(ask(provider, "/v1/models/other"))[1]["code"] == "model_not_found"
    status, problem = error(ask(provider, "/v2/nothing"))
    assert (status, problem["message"]) == (404, "Invalid URL (GET /v2/nothing)")
    assert error(ask(provider, CHAT))[0] == 405


def test_with_an_api_key_other_keys_get_a_401(provider: FakeProvider) -> None:
    provider.api_key = "sk-right"
    assert error(ask(provider, body=chat_body()))[0] == 401
    status, problem = error(ask(provider, body=chat_body(), headers={"Authorization": "Bearer sk-wrong"}))
    assert (status, problem["code"]) == (401, "invalid_api_key")
    assert "sk-wrong" not in problem["message"]
    assert ask(provider, body=chat_body(), headers={"Authorization": "Bearer sk-right"})[0] == 200
    assert provider.requests[2].headers["AUTHORIZATION"] == "Bearer sk-right"


def test_routes_serve_any_path_and_method_and_can_be_used_up(provider: FakeProvider) -> None:
    provider.route("GET", "/data", json={"a": None})
    provider.route("POST", "/echo", handler=lambda request: {"got": request.json, "query": request.query})
    provider.route("DELETE", "/gone", status=204)
    provider.route("GET", "/twice", text="one", times=1)
    provider.route("GET", "/twice", text="two", status=201, headers={"X-Count": "2"}, times=1)
    assert json.loads(ask(provider, "/data?x=1")[2]) == {"a": None}
    assert json.loads(ask(provider, "/echo?q=%20", [1])[2]) == {"got": [1], "query": "q=%20"}
    assert ask(provider, "/gone", method="DELETE")[::2] == (204, b"")
    status, headers, body = ask(provider, "/data", method="HEAD")
    assert (status, headers["content-length"], body) == (200, "10", b"")
    replies = [ask(provider, "/twice") for _ in range(3)]
    assert [(status, body) for status, _, body in replies[:2]] == [(200, b"one"), (201, b"two")]
    assert replies[1][1]["x-count"] == "2"
    assert replies[2][0] == 404
    provider.fail(503, path="/data")
    assert [ask(provider, "/data")[0] for _ in range(2)] == [503, 200]
    provider.route("GET", "/data", text="replaced")
    assert ask(provider, "/data")[2] == b"replaced"


# ---- faults


def test_failures_carry_status_retry_after_and_an_error_object(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=1.5, times=2)
    provider.fail(400, message="too long", code="context_length_exceeded", headers={"X-A": "b"})
    for _ in range(2):
        status, headers, body = ask(provider, body=chat_body())
        assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "1.5", "1500")
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    reply = ask(provider, body=chat_body())
    assert reply[1]["x-a"] == "b"
    assert error(reply)[1] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }
    assert ask(provider, body=chat_body())[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", ["nothing", "headers", "body", 5, "reply"])
def test_a_connection_is_cut_at_the_stage_asked_for(provider: FakeProvider, after: Any, stream: bool) -> None:
    with dial(provider) as sock:
        provider.reply("x" * 100)
        sock.sendall(raw_request(extra="Connection: close\r\n", stream=stream))
        whole = read_all(sock)
    head, _, body = whole.partition(b"\r\n\r\n")
    with dial(provider) as sock:
        provider.cut(after=after, text="x" * 100)
        sock.sendall(raw_request(stream=stream))
        got_head, separator, got = read_all(sock).partition(b"\r\n\r\n")
    assert (got_head.startswith(b"HTTP/1.1 200 OK\r\n"), bool(separator)) == ((after != "nothing"),) * 2
    if after in ("nothing", "headers"):
        assert got == b""
    elif after == "reply":
        assert len(got) == len(body)
        assert len(got_head) < len(head)  # no "connection: close": it comes without notice
    elif not stream:
        assert got == body.replace(b"chatcmpl-1", b"chatcmpl-2")[: 5 if after == 5 else len(body) // 2]
    else:
        assert not got.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in got
        assert got.startswith(b"5\r\ndata:") == (after == 5)


def test_a_cut_can_reset_the_connection(provider: FakeProvider) -> None:
    provider.cut(reset=True)
    with dial(provider) as sock:
        sock.sendall(raw_request())
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    provider.wait_for_disconnects(1)


def test_a_reset_waits_until_what_goes_before_it_has_been_sent(provider: FakeProvider) -> None:
    provider.route("GET", "/big", body=b"x" * 20_000_000)
    provider.cut(after="reply", reset=True, path="/big")
    with dial(provider) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        with sock.makefile("rb") as file:
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            while file.readline() != b"\r\n":
                pass
            assert file.read(20_000_000) == b"x" * 20_000_000
            with pytest.raises(ConnectionResetError):
                file.read(1)


def test_a_stalled_request_stays_in_flight_until_the_client_goes(provider: FakeProvider) -> None:
    provider.stall()
    provider.stall(after="headers")
    silent, headed = dial(provider), dial(provider)
    silent.sendall(raw_request())
    provider.wait_for_requests(1)
    headed.sendall(raw_request())
    assert headed.recv(65536).endswith(b"\r\n\r\n")
    assert provider.in_flight == 2
    silent.close()
    provider.wait_for_disconnects(1)
    assert (provider.in_flight, provider.connections_closed) == (1, 1)
    assert [request.aborted for request in provider.requests] == [True, False]
    headed.close()
    provider.wait_until_idle()
    assert [request.finished for request in provider.requests] == [None, None]


def test_exact_bytes_and_broken_bodies_reach_the_client_as_given(provider: FakeProvider) -> None:
    provider.reply_body(b"{oops")
    provider.reply_body({"whole": "body"}, status=418, content_type="x/y")
    provider.reply_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort")
    provider.reply_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", close=False)
    status, headers, body = ask(provider, body=chat_body())
    assert (status, headers["content-type"], body) == (200, "application/json", b"{oops")
    status, headers, body = ask(provider, body=chat_body())
    assert (status, headers["content-type"], body) == (418, "x/y", b'{"whole":"body"}')
    with pytest.raises(http.client.IncompleteRead):
        ask(provider, body=chat_body())
    connection = connect(provider)
    for expected in (b"ok", b"Hello."):
        connection.request("POST", CHAT, json.dumps(chat_body()))
        assert expected in connection.getresponse().read()
    connection.close()
    assert len({request.connection for request in provider.requests[3:]}) == 1


@pytest.mark.parametrize(
    "broken",
    [
        lambda provider: setattr(provider, "default", lambda request: 1 / 0),
        lambda provider: provider.reply("never", when=lambda request: 1 / 0),
        lambda provider: provider.reply(lambda request: 1 / 0),
    ],
)
def test_a_scripted_function_that_raises_gives_a_500_and_raises_again_from_stop(broken: Any) -> None:
    provider = FakeProvider().start()
    broken(provider)
    status, problem = error(ask(provider, body=chat_body()))
    assert status == 500
    assert "ZeroDivisionError" in problem["message"]
    assert "test_fake_provider.py" in problem["message"]
    with pytest.raises(ZeroDivisionError):
        provider.stop()
    provider.close()


# ---- the wire


def test_pipelined_requests_are_answered_in_order_on_one_connection(provider: FakeProvider) -> None:
    provider.default = lambda request: request.prompt
    provider.reply("slow", latency=0.01)
    prompts = [f"request {number}" for number in range(500)]
    with dial(provider) as sock:
        sock.sendall(b"".join(map(raw_request, prompts)) + b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = read_all(sock)
    places = [received.index(f'"{text}"'.encode()) for text in ["slow", *prompts[1:]]]
    assert places == sorted(places)
    assert received.count(b"HTTP/1.1 200 OK") == 500
    assert received.endswith(b'"code":null}}')
    assert provider.connections_opened == 1
    assert provider.max_in_flight == 1


def test_requests_are_read_whatever_pieces_they_arrive_in() -> None:
    chunked = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1F;ext=1\r\n" + b"y" * 31
    chunked += b"\r\n0\r\nTrailer: t\r\n\r\n"
    stream = (
        raw_request("one")
        + b"\r\n"
        + chunked
        + b"GET http://h/p?q HTTP/1.0\r\nA: 1\r\na:2 \r\n\r\n"
        + raw_request("two")
    )
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for largest in [1, 2, 3, 7, 50, 1000, *(dice.randrange(1, 100) for _ in range(20))]:
        parser, requests, rest = RequestParser(), [], stream
        while rest:
            size = dice.randrange(1, largest + 1)
            parser.feed(rest[:size])
            rest = rest[size:]
            while request := parser.next():
                requests.append(request)
        assert [request.prompt for request in requests] == ["one", "", "", "two"]
        assert [request.body for request in requests[1:3]] == [b"abc" + b"y" * 31, b""]
        assert (requests[2].path, requests[2].query, dict(requests[2].headers)) == ("/p", "q", {"a": "1, 2"})
        assert [request.keep_alive for request in requests] == [True, True, False, True]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, 431),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(
    provider: FakeProvider, data: bytes, status: int
) -> None:
    parser = RequestParser()
    parser.feed(data)
    with pytest.raises(Malformed):
        parser.next()
    with dial(provider) as sock:
        sock.sendall(data)
        reply = read_all(sock)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in reply
    assert "message" in json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
    assert provider.requests == []


def test_a_client_that_expects_100_continue_is_told_to_go_on(provider: FakeProvider) -> None:
    head, _, body = raw_request(extra="Expect: 100-continue\r\nConnection: close\r\n").partition(b"\r\n\r\n")
    with dial(provider) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")
    parser = RequestParser()
    parser.feed(head + b"\r\n\r\n")
    assert parser.next() is None
    assert [parser.continue_due(), parser.continue_due()] == [True, False]
    with dial(provider) as sock:
        sock.sendall(head + b"\r\n\r\n" + body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")


def test_connections_are_kept_unless_the_client_or_a_header_says_close(provider: FakeProvider) -> None:
    def reply_to(head: bytes) -> bytes:
        with dial(provider) as sock:
            sock.sendall(head)
            return read_all(sock)

    assert b"connection: close" in reply_to(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Close, x\r\n\r\n")
    assert b"connection: close" in reply_to(b"GET /v1/models HTTP/1.0\r\n\r\n")
    body = json.dumps(chat_body(stream=True)).encode()
    stream = reply_to(b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
    assert b"transfer-encoding" not in stream
    assert stream.endswith(b"data: [DONE]\n\n")
    provider.fail(500, headers={"Connection": "close"})
    connection = connect(provider)
    for _ in range(2):
        connection.request("POST", CHAT, json.dumps(chat_body()))
        connection.getresponse().read()
    connection.close()
    assert provider.requests[-1].connection == provider.requests[-2].connection + 1
    count = len(provider.requests)
    assert reply_to(raw_request("last", extra="Connection: close\r\n") + raw_request("too late")).count(b"200 OK") == 1
    assert [request.prompt for request in provider.requests[count:]] == ["last"]


# ---- counting, waiting, holding


def test_held_requests_pass_in_order_of_arrival_as_they_are_released(provider: FakeProvider) -> None:
    provider.hold()
    socks = []
    for number in range(4):
        sock = dial(provider)
        sock.sendall(raw_request(f"prompt {number}", extra="Connection: close\r\n"))
        provider.wait_for_requests(number + 1)
        socks.append(sock)
    assert (provider.in_flight, provider.max_in_flight) == (4, 4)
    provider.reply("scripted while held")
    socks[1].close()
    provider.wait_for_disconnects(1)
    provider.release(2)
    assert b"scripted while held" in read_all(socks[0])
    assert b"prompt 2" in read_all(socks[2])
    assert [request.finished is None for request in provider.requests] == [False, True, False, True]
    provider.release(2)
    assert b"prompt 3" in read_all(socks[3])
    assert text(provider, "uses the second pass") == "uses the second pass"
    sock = dial(provider)
    sock.sendall(raw_request("last", extra="Connection: close\r\n"))
    assert provider.wait_for_requests(6)[5].prompt == "last"
    assert provider.in_flight == 1
    provider.release()
    assert b"last" in read_all(sock)
    provider.wait_until_idle()
    sock.close()
    for sock in socks:
        sock.close()


def test_waiting_for_what_does_not_come_says_what_is_missing(provider: FakeProvider) -> None:
    text(provider)
    with pytest.raises(TimeoutError, match="1 of 2 requests arrived"):
        provider.wait_for_requests(2, timeout=0)
    with pytest.raises(TimeoutError, match="of 5 connections were closed"):
        provider.wait_for_disconnects(5, timeout=0)
    provider.stall()
    with dial(provider) as sock:
        sock.sendall(raw_request())
        provider.wait_for_requests(2)
        with pytest.raises(TimeoutError, match="1 requests still in flight"):
            provider.wait_until_idle(timeout=0)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Both ends of a thousand connections are ours; some systems allow 1,024 descriptors unless asked."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 4096) if hard == resource.RLIM_INFINITY else min(max(soft, 4096), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_kept_connections_at_once_each_get_their_own_reply(provider: FakeProvider) -> None:
    provider.default = lambda request: f"<{request.prompt}>"
    provider.hold()
    connections = 1000
    socks = [dial(provider) for _ in range(connections)]
    for turn in range(2):
        for number, sock in enumerate(socks):
            sock.sendall(raw_request(f"{turn}/{number}"))
        provider.wait_for_requests((turn + 1) * connections, timeout=60)
        assert provider.in_flight == connections
        provider.release(connections)
        for number, sock in enumerate(socks):
            assert f'"<{turn}/{number}>"'.encode() in sock.recv(65536)
    assert (provider.max_in_flight, provider.connections_opened) == (connections, connections)
    for sock in socks:
        sock.close()
    provider.wait_for_disconnects(connections, timeout=60)


def test_many_threads_may_script_and_ask_at_once_and_nothing_is_lost(provider: FakeProvider) -> None:
    def one(number: int) -> str:
        provider.reply(f"reply {number}", when=f"prompt {number}.")
        return str(text(provider, f"prompt {number}."))

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(one, range(200)))
    assert replies == [f"reply {number}" for number in range(200)]
    assert sorted(request.index for request in provider.requests) == list(range(200))
    assert provider.unused == 0


def test_latency_delays_the_reply_and_not_the_others(provider: FakeProvider) -> None:
    provider.reply("late", when="slow", latency=30.0)
    with dial(provider) as slow:
        slow.sendall(raw_request("slow"))
        provider.wait_for_requests(1)
        assert text(provider, "quick") == "quick"
        assert provider.in_flight == 1
    provider.wait_until_idle()
    provider.latency = 0.02
    assert text(provider) == "Hello."
    last = provider.requests[-1]
    assert last.finished is not None
    assert last.finished - last.started >= 0.02


def test_a_client_that_leaves_during_the_latency_or_between_the_pieces_is_forgotten(provider: FakeProvider) -> None:
    provider.reply("never read", latency=0.002)
    with dial(provider) as sock:
        sock.sendall(raw_request())
        provider.wait_for_requests(1)
    provider.reply("never read either", chunk_latency=0.002)
    with dial(provider) as sock:
        sock.sendall(raw_request(stream=True))
        assert sock.recv(1).startswith(b"H")
    provider.wait_for_disconnects(2)
    provider.reply("later", latency=0.02)
    assert text(provider) == "later"
    provider.stop()  # would raise what a timer left behind had done
    assert [request.aborted for request in provider.requests[1:]] == [True, False]


def test_stopping_ends_the_thread_and_every_connection_and_may_be_done_twice() -> None:
    provider = FakeProvider()
    with pytest.raises(RuntimeError, match="call start"):
        _ = provider.base_url
    provider.start()
    assert provider.start() is provider
    assert provider.base_url == f"http://127.0.0.1:{provider.port}/v1"
    provider.hold()
    with dial(provider) as sock:
        sock.sendall(raw_request())
        provider.wait_for_requests(1)
        provider.stop()
        provider.stop()
        assert is_gone(sock)
    assert (provider.in_flight, provider.connections_closed) == (0, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "graphbit-fake-provider"]
    with provider:
        provider.release()
        assert text(provider) == "Hello."


def test_wrong_options_are_refused_when_they_are_scripted(provider: FakeProvider) -> None:
    wrong: list[Any] = [
        lambda: provider.fail(200),
        lambda: provider.reply("x", times=0),
        lambda: provider.reply("x", latency=-1),
        lambda: provider.cut(after="soon"),  # type: ignore[arg-type]
        lambda: provider.reply("x", headers={"A": "b\r\nc: d"}),
        lambda: provider.route("GET", "/", text="x", json=1),
        lambda: provider.reply("x", split=0),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            call()
    with pytest.raises(TypeError):
        provider.default = 5  # type: ignore[assignment]
    assert provider.unused == 0


def test_importing_it_loads_no_asyncio_and_no_http() -> None:
    code = (
        "import sys, graphbit._fake_provider\n"
        "print(sorted({'asyncio', 'http', 'typing', 'dataclasses', 'ssl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
