"""What the fake provider answers: scripted, by default, in streams, and to what is wrong with a request or a script."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from typing import Any

import pytest
from asking import CHAT, ask, chat_body, text

from graphbit._fake_openai import default_text, embedding, parts_of, summarize, words_of
from graphbit._fake_provider import FakeProvider
from graphbit._fake_script import Reply


def error(reply: tuple[int, Any, bytes]) -> tuple[int, dict[str, Any]]:
    return reply[0], json.loads(reply[2])["error"]


def events(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream; checks its frame."""
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


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
