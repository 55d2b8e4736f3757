"""Agents whose calls fail: what is tried again, what failures are called, what becomes of the rest; keys are not shown."""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from models import KEY, config_for, executed, workflow

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConnectError,
    Executor,
    LlmConfig,
    Node,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    StatusError,
)
from graphbit.testing import FakeProvider, virtual_time


def error_of(config: LlmConfig) -> RequestError:
    """The error of one agent, which names it."""
    result = executed(config, [Node.agent("ask", "Hello.")])
    assert result.states == {"ask": "failed"}
    error = result.errors["ask"]
    assert isinstance(error, RequestError)
    assert str(error).startswith("node 'ask' ")
    assert error.node == "ask"
    assert getattr(error, "__notes__", None) == ["raised by node 'ask'"]
    with pytest.raises(type(error)) as caught:
        result["ask"]
    assert caught.value is error
    return error


# ---------------------------------------------------------------- again


def test_a_retry_is_not_sooner_than_the_server_asks(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=30, times=2)
    provider.reply("at last")
    with virtual_time() as clock:
        result = executed(config_for(provider, max_retries=2), [Node.agent("ask", "Hello.")])
        assert 60 <= clock.now() < 70
    assert result["ask"] == "at last"
    assert result.nodes["ask"].attempts == 3
    bodies = [request.body for request in provider.requests]
    assert bodies == [bodies[0]] * 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_failures_that_may_pass_are_tried_again(provider: FakeProvider, status: int) -> None:
    provider.fail(status)
    with virtual_time():
        result = executed(config_for(provider, max_retries=1), [Node.agent("ask", "Hello.")])
    assert result.is_success()
    assert result.nodes["ask"].attempts == 2


@pytest.mark.parametrize("after", ["nothing", "headers", "body", 1])
@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_is_tried_again(provider: FakeProvider, after: Any, reset: bool) -> None:
    provider.default = "at last"
    provider.cut(after, reset=reset)
    with virtual_time():
        result = executed(config_for(provider, max_retries=1), [Node.agent("ask", "Hello.")])
    assert result["ask"] == "at last"
    assert result.nodes["ask"].attempts == 2
    assert len(provider.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_stays_wrong_is_not_tried_again(provider: FakeProvider, status: int) -> None:
    provider.fail(status, times=9)
    error = error_of(config_for(provider, max_retries=5))
    assert (error.status, error.attempts) == (status, 1)
    assert len(provider.requests) == 1


def test_a_quota_that_is_used_up_is_not_tried_again(provider: FakeProvider) -> None:
    provider.fail(429, code="insufficient_quota", times=9)
    error = error_of(config_for(provider, max_retries=5))
    assert isinstance(error, RateLimitError)
    assert (error.code, error.attempts) == ("insufficient_quota", 1)
    assert "quota is used up" in str(error)


def test_attempts_end_and_the_last_failure_is_told(provider: FakeProvider) -> None:
    provider.fail(500, message="first")
    provider.fail(503, message="last", times=3)
    with virtual_time():
        error = error_of(config_for(provider, max_retries=3))
    assert isinstance(error, ServerError)
    assert (error.status, error.attempts) == (503, 4)
    assert "4 attempts" in str(error) and "last" in str(error)
    assert provider.unused == 0 and len(provider.requests) == 4


def test_one_agents_wait_does_not_hold_up_the_others(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=60, when="slow")
    provider.default = lambda request: request.prompt
    nodes = [Node.agent("slow", "slow"), Node.agent("quick", "quick"), Node.agent("after", "{quick}")]
    with virtual_time():
        # With admission a 429 would hold up whoever asks the same model.
        result = executed(config_for(provider, max_retries=1, admission=False), nodes)
    assert result.outputs == {"slow": "slow", "quick": "quick", "after": "quick"}
    slow, after = result.nodes["slow"], result.nodes["after"]
    assert slow.ended is not None and slow.ended >= 60
    assert after.ended is not None and after.ended < 1


# ---------------------------------------------------------------- failures


Script = Callable[[FakeProvider], None]


FAILURES: dict[str, tuple[Script, type[RequestError], int | None, str]] = {
    "400": (lambda it: it.fail(400, message="too long"), BadRequestError, 400, "too long"),
    "401": (lambda it: it.fail(401, message="bad key"), AuthenticationError, 401, "bad key.*check the API key"),
    "403": (lambda it: it.fail(403, message="not you"), AuthenticationError, 403, "not you.*allowed to do"),
    "404": (lambda it: it.fail(404, message="no model"), NotFoundError, 404, "no model.*check the model's name"),
    "422": (lambda it: it.fail(422), BadRequestError, 422, "422"),
    "429": (lambda it: it.fail(429, retry_after=7), RateLimitError, 429, "asks to wait 7 s"),
    "500": (lambda it: it.fail(500, message="oops"), ServerError, 500, "oops"),
    "503, no JSON": (lambda it: it.reply_body("<p>busy</p>", status=503), ServerError, 503, "<p>busy</p>"),
    "cut before the reply": (lambda it: it.cut(), ConnectError, None, "lost its connection"),
    "cut after the headers": (lambda it: it.cut("headers"), ConnectError, 200, "lost its connection"),
    "cut in the body": (lambda it: it.cut("body"), ConnectError, 200, "lost its connection"),
    "reset": (lambda it: it.cut(reset=True), ConnectError, None, "lost its connection"),
    "no JSON": (lambda it: it.reply_body("{oops"), ReplyError, 200, "not valid JSON.*{oops"),
    "half a JSON": (lambda it: it.reply_body('{"choices": [{"message": {"content": "a'), ReplyError, 200, "JSON"),
    "a page": (lambda it: it.reply_body("<html>", content_type="text/html"), ReplyError, 200, "<html>"),
    "an empty body": (lambda it: it.reply_body(b""), ReplyError, 200, "another kind"),
    "another JSON": (lambda it: it.reply_body({"answer": 5}), ReplyError, 200, '{"answer":5}'),
    "no choice": (lambda it: it.reply_body({"choices": []}), ReplyError, 200, "another kind"),
    "no HTTP": (lambda it: it.reply_raw(b"220 ESMTP\r\n"), ReplyError, None, "not HTTP"),
    "an error in a 200": (
        lambda it: it.reply_body({"error": {"message": "overloaded", "type": "busy", "code": "b-1"}}),
        StatusError,
        200,
        "overloaded",
    ),
    "an error in a 200 that names its status": (
        lambda it: it.reply_body({"error": {"message": "slow down", "code": 429}}),
        RateLimitError,
        200,
        "slow down",
    ),
    "an error of bare words": (lambda it: it.reply_body({"error": "model is loading"}), StatusError, 200, "is loading"),
    "a redirect": (
        lambda it: it.reply_body("moved", status=302, headers={"location": "/v2"}),
        ReplyError,
        302,
        "was redirected",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_has_its_class_and_names_the_node(provider: FakeProvider, config: LlmConfig, case: str) -> None:
    script, kind, status, words = FAILURES[case]
    script(provider)
    error = error_of(config)
    assert type(error) is kind
    assert status is None or error.status == status
    assert error.attempts == 1
    with pytest.raises(kind, match=f"node 'ask' .*{words}"):
        raise error
    assert "\n" not in str(error)
    assert provider.unused == 0


def test_a_failure_tells_the_servers_own_words(provider: FakeProvider, config: LlmConfig) -> None:
    provider.fail(429, message="slow down", code="c-1", type="t-1", retry_after=1.5, headers={"x-request-id": "r-9"})
    error = error_of(config)
    assert (error.code, error.type, error.request_id) == ("c-1", "t-1", "r-9")
    assert error.retry_after == pytest.approx(1.5)
    assert json.loads(error.body)["error"]["message"] == "slow down"


@pytest.mark.parametrize("after", ["nothing", "headers", "body"])
def test_a_server_that_stops_in_the_middle_is_a_timeout(provider: FakeProvider, after: Any) -> None:
    provider.stall(after)
    error = error_of(config_for(provider, timeout=0.1))
    assert type(error) is RequestTimeoutError
    assert "raise timeout" in str(error)
    provider.wait_for_disconnects(1)


def test_a_port_that_refuses_is_a_connect_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = error_of(LlmConfig.openai_compatible(f"http://127.0.0.1:{port}/v1", "m", max_retries=0))
    assert type(error) is ConnectError
    assert str(port) in str(error) and "check that the server runs" in str(error)
    assert error.status is None


def test_an_unknown_host_is_a_connect_error() -> None:
    error = error_of(LlmConfig.openai_compatible("http://nowhere.invalid/v1", "m", max_retries=0))
    assert type(error) is ConnectError
    assert "nowhere.invalid" in str(error)


def test_a_failed_agent_skips_what_follows_and_sends_nothing_more(provider: FakeProvider, config: LlmConfig) -> None:
    provider.fail(400)
    result = executed(config, [Node.agent("a", "Hello."), Node.agent("b", "{a}"), Node.transform("t", "{b}")])
    assert result.states == {"a": "failed", "b": "skipped", "t": "skipped"}
    assert len(provider.requests) == 1
    with pytest.raises(BadRequestError):
        result.raise_for_failure()


def test_with_continue_other_agents_finish(provider: FakeProvider, config: LlmConfig) -> None:
    provider.fail(400, when="bad")
    provider.default = lambda request: request.prompt
    made = workflow([Node.agent("a", "bad"), Node.agent("b", "good"), Node.agent("c", "{b} too")])
    result = Executor(config, on_error="continue").execute(made)
    assert result.states == {"a": "failed", "b": "succeeded", "c": "succeeded"}
    assert result["c"] == "good too"


def test_fail_fast_closes_the_connections_of_the_others(provider: FakeProvider, config: LlmConfig) -> None:
    number = 5
    provider.stall(when="slow", times=number)

    def fail() -> None:
        provider.wait_for_requests(number)
        raise ValueError("enough")

    nodes = [Node.function(fail), *[Node.agent(f"n{i}", "slow") for i in range(number)], Node.agent("z", "{n0}")]
    result = executed(config, nodes)
    assert result.states == {"fail": "failed", **{f"n{i}": "cancelled" for i in range(number)}, "z": "cancelled"}
    assert list(result.errors) == ["fail"]
    provider.wait_for_disconnects(number)
    assert len(provider.requests) == number


def test_an_agent_that_fails_closes_the_connections_of_the_others(provider: FakeProvider, config: LlmConfig) -> None:
    provider.hold()
    provider.fail(400, when="bad")
    run = Executor(config).start(workflow([*[Node.agent(f"n{i}", "slow") for i in range(3)], Node.agent("a", "bad")]))
    provider.wait_for_requests(4)
    provider.stall(when="slow", times=3)
    provider.release()
    result = run.wait()
    assert result.states["a"] == "failed"
    assert list(result.states.values())[:3] == ["cancelled"] * 3
    provider.wait_for_disconnects(3)


def test_fail_fast_ends_a_wait_for_another_attempt_and_the_clock_does_not_run_on(provider: FakeProvider) -> None:
    made = workflow([Node.agent("slow", "slow"), Node.delay("pause", 10), Node.agent("bad", "then")], "pause-bad")
    executor = Executor(config_for(provider, max_retries=3, admission=False))  # else "bad" would wait as well
    for _ in range(30):
        provider.clear()
        provider.fail(429, retry_after=100, when="slow")
        provider.fail(400, when="then")
        with virtual_time() as clock:
            result = executor.execute(made)
            assert result.states == {"slow": "cancelled", "pause": "succeeded", "bad": "failed"}
            assert clock.now() == pytest.approx(10)
        assert len(provider.requests) == 2


# ---------------------------------------------------------------- the key


LEAKS: dict[str, Script] = {
    "a message": lambda it: it.fail(401, message=f"Incorrect API key provided: {KEY}."),
    "a code": lambda it: it.fail(403, code=KEY, type=KEY),
    "a page": lambda it: it.reply_body(f"<p>{KEY}</p>", status=500),
    "a long page": lambda it: it.reply_body("x" * 190 + KEY, status=500),
    "no JSON": lambda it: it.reply_body(f"{KEY} {{"),
    "another JSON": lambda it: it.reply_body({"your key": KEY}),
    "an error in a 200": lambda it: it.reply_body({"error": {"message": KEY, "code": KEY}}),
    "a request id": lambda it: it.fail(500, headers={"x-request-id": KEY}),
    "no HTTP": lambda it: it.reply_raw(f"{KEY}\r\n\r\n".encode()),
    "a cut": lambda it: it.cut("headers"),
}


def shown(found: Any) -> Iterator[str]:
    """Whatever of an exception, result or node comes to a log."""
    yield from (str(found), repr(found))
    if isinstance(found, BaseException):
        yield from traceback.format_exception(type(found), found, found.__traceback__)
        yield repr(vars(found))
        yield repr(found.args)


@pytest.mark.parametrize("case", LEAKS)
@pytest.mark.parametrize("own", [False, True], ids=["executor's", "node's own"])
def test_the_key_is_never_shown_whatever_the_server_says(provider: FakeProvider, case: str, own: bool) -> None:
    LEAKS[case](provider)
    config = config_for(provider, api_key=KEY)
    ask = Node.agent("ask", "Hello.", llm_config=config if own else None)
    executor = Executor(None if own else config)
    made = workflow([ask])
    run = executor.start(made)
    result = run.wait()
    with pytest.raises(RequestError) as caught:
        result["ask"]
    metadata = result.get_node_response_metadata("ask")
    assert metadata is not None
    told = metadata["error"]
    for thing in (caught.value, result, run, executor, made, ask, config, result.nodes, result.errors, told):
        for text in shown(thing):
            assert KEY not in text
            assert KEY[:12] not in text
    assert provider.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_refused_key_names_the_variable_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProvider(api_key="sk-another") as provider:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        error = error_of(LlmConfig.openai(base_url=provider.base_url))
        assert type(error) is AuthenticationError
        assert "check the API key in OPENAI_API_KEY" in str(error)
        assert KEY not in str(error)
