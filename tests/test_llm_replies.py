"""What a reply of a model becomes: chat completions, whole and in pieces, failures and their words, and the values."""

from __future__ import annotations

import copy
import json
import pickle
import re
from typing import Any

import pytest
from models import KEY

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConnectError,
    FinishReason,
    GraphbitError,
    LibcurlMissingError,
    LlmConfig,
    LlmResponse,
    LlmToolCall,
    LlmUsage,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    RunCancelledError,
    RuntimeClosedError,
    ServerError,
    StatusError,
    TlsError,
)
from graphbit._ffi import NULL, ffi, lib
from graphbit._plan import PlanBuilder
from graphbit._queue import core
from graphbit._reply import CLASSES, request_error, status_class, template_message
from graphbit.llm.messages import finish_reason, response_from

pytestmark = pytest.mark.usefixtures("no_environment")

FAILURES = {
    name: getattr(lib, name) for name in re.findall(r"GB_FAILURE_[A-Z_]+", " ".join(ffi.typeof("gb_failure").relements))
}


# ---------------------------------------------------------------- the dialect: replies


class Extracted:
    """A reply read from `body` by the dialect's rules."""

    def __init__(self, body: str | dict[str, Any] | list[Any], stream: bool = False) -> None:
        builder = PlanBuilder()
        builder.request(LlmConfig.openai(KEY).chat_request([("user", ["x"])]))
        plan = builder.build()
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        view = ffi.from_buffer("uint8_t[]", data)
        call = ffi.new("gb_call **")
        assert lib.gb_extract(core().handle, plan.handle, 0, {"ptr": view, "len": len(data)}, stream, call) == 0
        self.reply = ffi.new("gb_reply *")
        lib.gb_call_reply(call[0], self.reply)
        self.failure: int = self.reply.failure
        self.response = response_from(self.reply)
        self.error = request_error(self.reply, "it") if self.failure else None
        lib.gb_call_release(call[0])


def whole(**message: Any) -> dict[str, Any]:
    return {"id": "c-1", "model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def stream(*deltas: dict[str, Any], **last: Any) -> str:
    chunks: list[dict[str, Any]] = [
        {"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": last.pop("finish", "stop")}]})
    if last:
        chunks.append({"choices": [], **last})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("message", "content", "reasoning"),
    [
        ({"content": 'a "b"\né'}, 'a "b"\né', ""),
        ({"content": ""}, "", ""),
        ({"content": None}, "", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", ""),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "no", ""),
        ({"content": None, "refusal": "I cannot"}, "I cannot", ""),
        ({"content": "a", "reasoning_content": "hm"}, "a", "hm"),
        ({"content": "a", "reasoning": "hm"}, "a", "hm"),
        ({"content": "a", "reasoning": "hm", "reasoning_content": "hm"}, "a", "hm"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "a",
            "hm",
        ),
    ],
    ids=str,
)
def test_what_a_message_says_is_found_whole_and_in_pieces(
    message: dict[str, Any], content: str, reasoning: str
) -> None:
    for found in (Extracted(whole(**message)), Extracted(stream(message), stream=True)):
        assert found.failure == 0
        assert (found.response.content, found.response.reasoning) == (content, reasoning)
        assert (found.response.id, found.response.model) == ("c-1", "m-1")
        assert found.response.finish_reason == FinishReason.stop()


def test_pieces_of_a_stream_are_joined() -> None:
    found = Extracted(stream({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}), stream=True)
    assert found.response.content == "Hello"


def test_tool_calls_are_found_whole_and_in_pieces() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"id": "b", "type": "function", "function": {"name": "time", "arguments": ""}},
    ]
    pieces = (
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "time", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    )
    for found in (
        Extracted(whole(content=None, tool_calls=calls)),
        Extracted(stream(*pieces, finish="tool_calls"), stream=True),
    ):
        assert found.response.tool_calls == [
            LlmToolCall("a", "weather", '{"city":"Oslo"}'),
            LlmToolCall("b", "time", "{}"),
        ]
        assert found.response.has_tool_calls() and found.response.content == ""
    assert found.response.finish_reason == FinishReason.tool_calls()


def test_usage_is_read_with_its_details() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 31,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    for found in (
        Extracted({**whole(content="a"), "usage": usage}),
        Extracted(stream({"content": "a"}, usage=usage), stream=True),
    ):
        got = found.response.usage
        assert (got.prompt_tokens, got.completion_tokens, got.total_tokens, got.reported) == (10, 20, 31, True)
        assert (got.cache_read_tokens, got.reasoning_tokens, got.cache_creation_tokens) == (4, 5, None)
    silent = Extracted(whole(content="a")).response.usage
    assert not silent.reported and silent.total_tokens == 0
    assert not (silent + got).reported and (silent + got).total_tokens == 31


@pytest.mark.parametrize(
    ("body", "message", "cls"),
    [
        ({"error": {"message": "bad", "type": "t", "code": "c"}}, "bad", StatusError),
        ({"error": {"message": "slow down", "code": 429}}, "slow down", RateLimitError),
        ({"error": "just words"}, "just words", StatusError),
        ([{"error": {"message": "in a list", "code": 503, "status": "UNAVAILABLE"}}], "in a list", ServerError),
        ({"object": "error", "message": "flat", "type": "t", "code": 400}, "flat", BadRequestError),
        ({"detail": "Not Found"}, "Not Found", StatusError),
        ({"choices": [{"error": {"message": "upstream", "code": 502}}]}, "upstream", ServerError),
    ],
    ids=str,
)
def test_an_error_object_in_a_good_reply_is_an_error(body: Any, message: str, cls: type[Exception]) -> None:
    found = Extracted(body)
    assert found.failure == lib.GB_FAILURE_PROVIDER
    assert type(found.error) is cls and message in str(found.error)


def test_an_error_in_the_middle_of_a_stream_is_an_error() -> None:
    broken = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"overloaded"}}\n\n'
    found = Extracted(broken, stream=True)
    assert found.failure == lib.GB_FAILURE_PROVIDER and "overloaded" in str(found.error)


@pytest.mark.parametrize("body", ["{oops", "", '{"choices":[]}', "[]", "null"])
def test_a_reply_that_is_no_completion_is_a_reply_error(body: str) -> None:
    found = Extracted(body)
    assert found.failure == lib.GB_FAILURE_BAD_REPLY
    assert isinstance(found.error, ReplyError)


# ---------------------------------------------------------------- failed replies


def failed(failure: int, **fields: Any) -> Any:
    """A gb_reply as the core fills it for a failure."""
    reply = ffi.new("gb_reply *")
    reply.failure = failure
    reply.retry_after_ms = -1
    keep = []
    for name, value in fields.items():
        if isinstance(value, str):
            keep.append(ffi.from_buffer("uint8_t[]", value.encode()))
            value = {"ptr": keep[-1], "len": len(value.encode())}
        setattr(reply, name, value)
    kept.append(keep)
    return reply


kept: list[Any] = []


def test_every_failure_of_the_core_has_its_class_and_words() -> None:
    assert len(FAILURES) >= 20
    for name, number in FAILURES.items():
        if number == lib.GB_FAILURE_NONE:
            assert number not in CLASSES
            continue
        error = request_error(failed(number, detail="the detail", http_status=0), "node 'draft'")
        assert type(error) is CLASSES[number], name
        assert str(error).startswith("node 'draft' "), name
        if number not in (lib.GB_FAILURE_STATUS, lib.GB_FAILURE_PROVIDER):
            assert "the detail" in str(error), name
    assert set(CLASSES) | {lib.GB_FAILURE_NONE} == set(FAILURES.values())


def test_every_status_has_its_class() -> None:
    special = {401: AuthenticationError, 403: AuthenticationError, 404: NotFoundError, 429: RateLimitError}
    for status in range(400, 700):
        expected = special.get(status, BadRequestError if status < 500 else ServerError)
        assert status_class(status) is expected
        error = request_error(failed(lib.GB_FAILURE_STATUS, http_status=status), "it")
        assert type(error) is expected
        assert isinstance(error, RequestError) and error.status == status and str(status) in str(error)


def test_what_is_no_exchange_is_no_request_error() -> None:
    kinds = {
        lib.GB_FAILURE_CANCELLED: RunCancelledError,
        lib.GB_FAILURE_SHUTDOWN: RuntimeClosedError,
        lib.GB_FAILURE_OUT_OF_MEMORY: MemoryError,
    }
    for failure, kind in kinds.items():
        error = request_error(failed(failure), "it")
        assert isinstance(error, kind) and not isinstance(error, RequestError)


def test_an_error_tells_all_that_the_server_said() -> None:
    reply = failed(
        lib.GB_FAILURE_STATUS,
        http_status=429,
        error_message="Rate limit reached.",
        error_type="requests",
        error_code="rate_limit_exceeded",
        body="the body",
        request_id="req-1",
        attempts=4,
        retry_after_ms=1500,
    )
    error = request_error(reply, "node 'draft'")
    assert isinstance(error, RateLimitError)
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert (error.body, error.request_id, error.attempts, error.retry_after) == ("the body", "req-1", 4, 1.5)
    assert str(error) == (
        "node 'draft' failed (429 Too Many Requests), 4 attempts: Rate limit reached; the server asks to wait 1.5 s; "
        "send less at once, or raise max_retries"
    )


@pytest.mark.parametrize(
    ("failure", "status", "remedy", "cls"),
    [
        ("STATUS", 401, "MY_KEY", AuthenticationError),
        ("STATUS", 403, "MY_KEY", AuthenticationError),
        ("STATUS", 404, "the model's name and the base URL", NotFoundError),
        ("RESOLVE", 0, "check the host name", ConnectError),
        ("CONNECT", 0, "address and port", ConnectError),
        ("TLS", 0, "SSL_CERT_FILE", TlsError),
        ("CONNECT_TIMEOUT", 0, "raise connect_timeout", RequestTimeoutError),
        ("TOTAL_TIMEOUT", 0, "raise timeout", RequestTimeoutError),
        ("NO_LIBCURL", 0, "install libcurl4", LibcurlMissingError),
        ("BAD_REPLY", 301, "was redirected", ReplyError),
        ("BAD_REPLY", 200, "<html> oops", ReplyError),
    ],
)
def test_a_message_says_what_to_do(failure: str, status: int, remedy: str, cls: type[Exception]) -> None:
    number = FAILURES["GB_FAILURE_" + failure]
    detail = "install libcurl4" if failure == "NO_LIBCURL" else "detail"
    reply = failed(number, http_status=status, detail=detail, body="<html>\n oops")
    error = request_error(reply, "it", key_variable="MY_KEY")
    assert type(error) is cls and remedy in str(error)


def test_a_used_up_quota_is_told_from_a_rate_limit() -> None:
    error = request_error(failed(lib.GB_FAILURE_STATUS, http_status=429, error_code="insufficient_quota"), "it")
    assert isinstance(error, RateLimitError) and "plan and billing" in str(error)


def test_a_server_that_repeats_the_key_is_not_repeated() -> None:
    reply = failed(lib.GB_FAILURE_STATUS, http_status=401, error_message=f"bad key {KEY}", body=f'{{"key":"{KEY}"}}')
    error = request_error(reply, "it", secret=KEY)
    assert isinstance(error, GraphbitError) and isinstance(error, RequestError)
    assert KEY not in str(error) and KEY not in error.body and "***" in str(error)


def test_values_in_a_template_complaint_get_their_names() -> None:
    names = ["node 'x'", "input 'y'"]
    assert template_message("value 0 has no 'a.b'", names) == "node 'x' has no 'a.b'"
    assert template_message("value 1 is not JSON, so it has no 'a'", names) == "input 'y' is not JSON, so it has no 'a'"
    for other in ("value 2 has no 'a'", "value x", "", "something else"):
        assert template_message(other, names) == other


# ---------------------------------------------------------------- the values


def test_usage_adds_up() -> None:
    one, two = (
        LlmUsage(1, 2),
        LlmUsage.from_dict({"prompt_tokens": 10, "completion_tokens": 20, "cache_read_tokens": 5}),
    )
    total = one + two
    assert (total.prompt_tokens, total.completion_tokens, total.total_tokens) == (11, 22, 33)
    assert (total.cache_read_tokens, total.reasoning_tokens) == (5, None)
    assert one.add(two) == total == sum([one, two]) == sum([one, two], LlmUsage.empty())
    one += two
    assert one == total and hash(one) == hash(total) and one != two
    assert LlmUsage.from_dict(total.to_dict()) == total
    assert repr(LlmUsage(1, 2)) == "LlmUsage(prompt_tokens=1, completion_tokens=2, total_tokens=3)"


def test_usage_wants_counts() -> None:
    with pytest.raises(KeyError):
        LlmUsage.from_dict({"prompt_tokens": 1})
    with pytest.raises(ValueError, match="negative"):
        LlmUsage(-1, 0)
    with pytest.raises(TypeError):
        LlmUsage("1", 0)  # type: ignore[arg-type]


def test_finish_reasons_know_what_they_mean() -> None:
    natural = [FinishReason.stop(), FinishReason.tool_calls()]
    errors = [FinishReason.content_filter(), FinishReason.error()]
    rest = [FinishReason.length(), FinishReason.other("paused")]
    for reason in (*natural, *errors, *rest):
        assert reason.is_natural_stop() == (reason in natural)
        assert reason.is_error() == (reason in errors)
        assert reason.is_truncated() == (reason == FinishReason.length())
    assert repr(FinishReason.stop()) == "FinishReason(stop)" and str(FinishReason.other("paused")) == "paused"
    assert finish_reason("function_call") == FinishReason.tool_calls()
    assert finish_reason("eos") == FinishReason.other("eos") and finish_reason("").to_string() == "unknown"
    with pytest.raises(TypeError, match="no constructor"):
        FinishReason()


def test_a_tool_call_takes_json() -> None:
    call = LlmToolCall("1", "weather", '{"city":"Oslo"}')
    assert call.to_dict() == {"id": "1", "name": "weather", "parameters": '{"city":"Oslo"}'}
    assert call == LlmToolCall("1", "weather", '{"city":"Oslo"}') != LlmToolCall("2", "weather", "{}")
    with pytest.raises(ValueError, match="Invalid JSON parameters"):
        LlmToolCall("1", "weather", "{oops")


def test_with_returns_a_changed_copy() -> None:
    plain = LlmResponse("Hello", "m")
    changed = (
        plain.with_usage(LlmUsage(1, 2))
        .with_tool_calls([LlmToolCall("1", "t", "{}")])
        .with_finish_reason(FinishReason.length())
        .with_id("r-1")
        .with_metadata("topic", '"bees"')
    )
    assert plain == LlmResponse("Hello", "m") != changed
    assert not plain.has_tool_calls() and plain.id is None and plain.metadata == {}
    assert changed.has_tool_calls() and changed.is_truncated() and changed.total_tokens() == 3
    assert changed.to_dict() == {
        "content": "Hello",
        "model": "m",
        "id": "r-1",
        "tool_calls": [{"id": "1", "name": "t", "parameters": "{}"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "finish_reason": "length",
        "metadata": {"topic": '"bees"'},
    }
    assert pickle.loads(pickle.dumps(changed)) == changed and copy.deepcopy(changed) == changed
    with pytest.raises(ValueError, match="Invalid JSON value"):
        plain.with_metadata("topic", "bees")
    with pytest.raises(AttributeError):
        plain.content = "other"  # type: ignore[misc]


def test_a_reply_without_anything_is_an_empty_response() -> None:
    reply = ffi.new("gb_reply *")
    for name in ("prompt", "completion", "total", "cache_read", "cache_creation", "reasoning"):
        setattr(reply, f"{name}_tokens", -1)
    response = response_from(reply)
    assert (response.content, response.id, response.attempts, response.duration_ms) == ("", None, None, None)
    assert response.metadata == {} and response.finish_reason.to_string() == "unknown"
    assert reply.tool_calls == NULL
