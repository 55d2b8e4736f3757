"""Agents against a provider on loopback: what a model is asked, how the graph waits for it, what its failures are called."""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
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
    Workflow,
    WorkflowResult,
)
from graphbit.testing import FakeProvider, virtual_time

KEY = "sk-0123456789abcdefghij"


def config_for(provider: FakeProvider, **options: Any) -> LlmConfig:
    return LlmConfig.openai_compatible(provider.base_url, "fake-model", **{"max_retries": 0, **options})


@pytest.fixture
def config(provider: FakeProvider) -> LlmConfig:
    return config_for(provider)


def workflow(nodes: list[Node], edges: str = "") -> Workflow:
    """Nodes joined as in "a-b b-c", in that order."""
    made = Workflow("w")
    made.add(*nodes)
    for edge in edges.split():
        made.connect(*edge.split("-"))
    return made


def executed(config: LlmConfig | None, nodes: list[Node], edges: str = "", **inputs: Any) -> WorkflowResult:
    return Executor(config).execute(workflow(nodes, edges), inputs)


def const(name: str, value: Any) -> Node:
    return Node.function(lambda: value, name=name)


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


# ---------------------------------------------------------------- what a model is asked


def test_a_prompt_is_sent_as_written_and_the_answer_is_the_output(provider: FakeProvider, config: LlmConfig) -> None:
    provider.reply("Honey.")
    result = executed(config, [Node.agent("ask", "What do bees make?")])
    assert result["ask"] == "Honey."
    assert [request.path for request in provider.requests] == ["/v1/chat/completions"]
    assert provider.requests[0].json == {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "What do bees make?"}],
    }
    assert "authorization" not in provider.requests[0].headers


def test_all_of_an_agents_texts_have_placeholders_and_their_places(provider: FakeProvider, config: LlmConfig) -> None:
    nodes = [
        const("a", {"k": ["A"]}),
        const("b", "B"),
        Node.agent("ask", "Write {n} words on {a.k.0}.", "About {topic}.", system_prompt="Be {tone} and {b}."),
    ]
    assert executed(config, nodes, n=5, topic="bees", tone="kind").is_success()
    assert provider.requests[0].messages == [
        {"role": "system", "content": "Be kind and B."},
        {"role": "user", "content": "About bees.\n\nWrite 5 words on A."},
    ]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"temperature": 2}, {"temperature": 2}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 7.0}, {"max_tokens": 7}),
        ({"temperature": 0.7, "max_tokens": 1}, {"temperature": 0.7, "max_tokens": 1}),
    ],
    ids=str,
)
def test_options_are_sent_as_given_and_only_then(
    provider: FakeProvider, config: LlmConfig, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert executed(config, [Node.agent("ask", "Hello.", **options)]).is_success()
    found = {key: value for key, value in provider.requests[0].json.items() if key not in ("model", "messages")}
    assert found == sent
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in sent.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"temperature": "1"},
        {"temperature": True},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": float("inf")},
        {"max_tokens": float("nan")},
        {"max_tokens": "5"},
        {"max_tokens": True},
        {"llm_config": "gpt"},
        {"context": 5},
        {"system_prompt": 5},
        {"agent_id": ""},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_right_is_refused_where_it_is_given(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="'ask'"):
        Node.agent("ask", "Hello.", **options)


def test_openai_itself_gets_its_key_and_its_name_for_the_limit(provider: FakeProvider) -> None:
    config = LlmConfig.openai(KEY, "gpt-x", provider.base_url, organization="org-1", headers={"X-Own": "1"})
    assert executed(config, [Node.agent("ask", "Hello.", max_tokens=3)]).is_success()
    request = provider.requests[0]
    assert (request.model, request.json["max_completion_tokens"]) == ("gpt-x", 3)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (request.headers["openai-organization"], request.headers["x-own"]) == ("org-1", "1")


def test_a_nodes_own_configuration_goes_before_the_executors(provider: FakeProvider, config: LlmConfig) -> None:
    with FakeProvider(default="from the other", api_key=KEY) as other:
        provider.default = "from the one"
        own = LlmConfig.openai_compatible(other.base_url, "other-model", KEY)
        nodes = [Node.agent("a", "Hello."), Node.agent("b", "{a}", llm_config=own), Node.agent("c", "{b}")]
        result = executed(config, nodes)
        assert result.errors == {}
        assert result.outputs == {"a": "from the one", "b": "from the other", "c": "from the one"}
        assert [request.model for request in provider.requests] == ["fake-model", "fake-model"]
        assert [(request.model, request.prompt) for request in other.requests] == [("other-model", "from the one")]
        assert executed(None, [Node.agent("b", "Hello.", llm_config=own)])["b"] == "from the other"


def test_an_agent_without_a_model_is_an_error_before_anything_runs() -> None:
    ran: list[str] = []
    made = workflow([Node.function(lambda: ran.append("first"), name="first"), Node.agent("ask", "{first}")])
    for start in (Executor().execute, Executor().start):
        with pytest.raises(ConfigurationError, match="agent node 'ask' has no model to ask.*llm_config="):
            start(made)
    assert ran == []


AWKWARD = [
    'say "hi"',
    "back\\slash \\n \\u0041",
    "line\nbreak\r\n\ttab",
    "größe 🐝 \u2028 \u200d",
    "\x00\x01\x1f\x7f",
    "{topic} {{a}} {nothing}",
    '{"json": ["]"]}',
    "</script><!--",
    " ",
    "",
]


@pytest.mark.parametrize("value", AWKWARD)
def test_any_text_comes_through_prompts_and_answers_unchanged(
    provider: FakeProvider, config: LlmConfig, value: str
) -> None:
    provider.default = lambda request: request.prompt
    nodes = [
        const("made", value),
        Node.transform("t", "{made}"),
        Node.agent("first", "<{made}|{t}|{x}>", "<{x}>", system_prompt="<{made}>"),
        Node.agent("second", "{first}"),
        Node.function(lambda second: second, "last"),
    ]
    result = executed(config, nodes, x=value)
    expected = f"<{value}>\n\n<{value}|{value}|{value}>"
    assert result.errors == {}
    assert provider.requests[0].messages == [
        {"role": "system", "content": f"<{value}>"},
        {"role": "user", "content": expected},
    ]
    assert (result["first"], result["second"], result["last"]) == (expected, expected, expected)


@pytest.mark.parametrize("prompt", [text for text in AWKWARD if text.strip()])
def test_any_text_may_be_written_in_a_prompt_itself(provider: FakeProvider, config: LlmConfig, prompt: str) -> None:
    inputs = {name: "{" + name + "}" for name in ("topic", "nothing") if name in prompt}
    assert executed(config, [Node.agent("ask", "<" + prompt + ">")], **inputs).is_success()
    assert provider.requests[0].prompt == "<" + prompt.replace("{{a}}", "{a}") + ">"


def test_values_that_are_no_texts_go_into_prompts_as_json(provider: FakeProvider, config: LlmConfig) -> None:
    nodes = [const("a", {"k": [1, None, 'q"']}), Node.agent("ask", "{a} {n} {yes} {a.k.2}")]
    assert executed(config, nodes, n=2**70, yes=True).is_success()
    assert provider.requests[0].prompt == '{"k":[1,null,"q\\""]} ' + str(2**70) + ' true q"'


def test_a_large_prompt_and_a_large_answer_come_through_whole(provider: FakeProvider, config: LlmConfig) -> None:
    provider.default = lambda request: request.prompt
    text = 'größe "🐝"\n' * 20_000
    assert executed(config, [Node.agent("ask", "<{x}>")], x=text)["ask"] == f"<{text}>"


def test_an_empty_answer_is_an_answer(provider: FakeProvider, config: LlmConfig) -> None:
    provider.reply("")
    assert executed(config, [Node.agent("ask", "Hello.")])["ask"] == ""


# ---------------------------------------------------------------- predecessors


def test_unreferenced_predecessors_come_before_the_prompt_under_their_names_in_connect_order(
    provider: FakeProvider, config: LlmConfig
) -> None:
    provider.default = lambda request: f"on {request.prompt}"
    nodes = [
        const("f", {"k": 'q"'}),
        Node.transform("t", "text {x}"),
        Node.agent("first", "first"),
        const("named", "N"),
        Node.agent("ask", "Sum up {named}.", "The matter: {x}."),
    ]
    result = executed(config, nodes, "first-ask named-ask t-ask f-ask", x=1)
    assert result.errors == {}
    assert provider.requests[1].prompt == (
        'The matter: 1.\n\nfirst:\non first\n\nt:\ntext 1\n\nf:\n{"k":"q\\""}\n\nSum up N.'
    )


@pytest.mark.parametrize(("chosen", "expected"), [("a", "a:\nA\n\nGo."), ("b", "b:\nB\n\nGo.")])
def test_what_was_skipped_is_left_out(provider: FakeProvider, config: LlmConfig, chosen: str, expected: str) -> None:
    nodes = [Node.condition("r", lambda c: chosen), const("a", "A"), const("b", "B"), Node.agent("ask", "Go.")]
    assert executed(config, nodes, "r-a r-b b-ask a-ask").is_success()
    assert provider.requests[0].prompt == expected


def test_an_empty_output_keeps_its_name(provider: FakeProvider, config: LlmConfig) -> None:
    assert executed(config, [const("a", ""), Node.agent("ask", "Go.")], "a-ask").is_success()
    assert provider.requests[0].prompt == "a:\n\n\nGo."


def test_an_agent_a_condition_chose_sees_what_the_condition_saw(provider: FakeProvider, config: LlmConfig) -> None:
    provider.default = lambda request: "long answer" if request.prompt == "Ask." else request.prompt
    nodes = [
        Node.agent("first", "Ask."),
        Node.condition("r", lambda first: "shorten" if first.startswith("long") else "done"),
        Node.agent("shorten", "Shorten: {r}"),
        Node.agent("done", "Done: {r}"),
    ]
    result = executed(config, nodes)
    assert result.errors == {}
    assert result.outputs == {"first": "long answer", "r": "long answer", "shorten": "Shorten: long answer"}
    assert len(provider.requests) == 2


# ---------------------------------------------------------------- at once, and in a row


def test_agents_that_do_not_wait_for_each_other_are_on_their_way_at_once(
    provider: FakeProvider, config: LlmConfig
) -> None:
    number = 200
    provider.default = lambda request: request.prompt.upper()
    provider.hold()
    run = Executor(config).start(workflow([Node.agent(f"n{i}", f"ask {i}") for i in range(number)]))
    provider.wait_for_requests(number)
    assert provider.in_flight == provider.max_in_flight == number
    assert set(run.states().values()) == {"running"}
    provider.release()
    assert run.wait().outputs == {f"n{i}": f"ASK {i}" for i in range(number)}


def test_a_node_starts_when_its_last_predecessor_ends_and_waits_for_no_other(
    provider: FakeProvider, config: LlmConfig
) -> None:
    provider.hold()
    made = workflow([Node.agent("a", "ask a"), Node.agent("b", "ask b"), Node.agent("c", "then {a}")])
    run = Executor(config).start(made)
    first = [request.prompt for request in provider.wait_for_requests(2)]
    provider.release(1)  # the other one stays behind
    if first[0] == "ask a":
        assert provider.wait_for_requests(3)[2].prompt.startswith("then ")
    provider.release()
    assert run.wait().is_success()
    assert len(provider.requests) == 3


def test_a_chain_of_agents_hands_the_answers_on(provider: FakeProvider, config: LlmConfig) -> None:
    number = 50
    provider.default = lambda request: str(int(request.prompt) + 1)
    nodes = [Node.agent("n0", "0"), *[Node.agent(f"n{i}", f"{{n{i - 1}}}") for i in range(1, number)]]
    result = executed(config, nodes)
    assert result[f"n{number - 1}"] == str(number)
    assert provider.max_in_flight == 1
    assert [request.prompt for request in provider.requests] == [str(i) for i in range(number)]


def test_one_then_a_hundred_then_one(provider: FakeProvider, config: LlmConfig) -> None:
    number = 100
    provider.default = lambda request: request.prompt
    provider.reply("seed", when="Begin.")
    nodes = [
        Node.agent("first", "Begin."),
        *[Node.agent(f"n{i}", f"{i} of {{first}}") for i in range(number)],
        Node.agent("last", "".join(f"<{{n{i}}}>" for i in range(number))),
    ]
    run = Executor(config).start(workflow(nodes))
    result = run.wait()
    assert result["last"] == "".join(f"<{i} of seed>" for i in range(number))
    assert len(provider.requests) == number + 2
    assert provider.requests[0].prompt == "Begin." and provider.requests[-1].prompt == result["last"]
    last = result.nodes["last"]
    assert last.started is not None
    for i in range(number):
        ended = result.nodes[f"n{i}"].ended
        assert ended is not None and ended <= last.started


def test_agents_functions_and_texts_take_turns(provider: FakeProvider, config: LlmConfig) -> None:
    async def shout(ask: str) -> str:
        return ask.upper()

    provider.default = lambda request: f"re {request.prompt}"
    nodes = [
        Node.transform("t", "text {x}"),
        Node.agent("ask", "{t}"),
        Node.function(shout),
        Node.delay("pause", 0),
        Node.agent("again", "{pause} {count}"),
        Node.function(len, "count", bind={"obj": "ask"}),
    ]
    assert executed(config, nodes, "shout-pause", x=1)["again"] == "re RE TEXT 1 9"


def test_runs_at_once_do_not_mix(provider: FakeProvider, config: LlmConfig) -> None:
    provider.default = lambda request: request.prompt
    made = workflow([Node.agent("a", "{x}"), Node.agent("b", "{a}{a}")])
    executor = Executor(config)
    runs = [executor.start(made, {"x": i}) for i in range(50)]
    assert [run.wait()["b"] for run in runs] == [f"{i}{i}" for i in range(50)]


# ---------------------------------------------------------------- what is told besides the answer


def test_metadata_tell_what_the_provider_told(provider: FakeProvider, config: LlmConfig) -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    provider.reply("42", finish="length", usage=usage, headers={"x-request-id": "r-7"})
    result = executed(config, [Node.agent("ask", "Hello.")])
    found = result.get_node_response_metadata("ask")
    assert found is not None
    assert (found["node_name"], found["node_type"], found["state"]) == ("ask", "agent", "succeeded")
    assert (found["success"], found["error"], found["attempts"]) == (True, None, 1)
    assert (found["model"], found["finish_reason"]) == ("fake-model", "length")
    assert found["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "total_tokens": 11,
        "cache_read_tokens": 2,
        "reasoning_tokens": 3,
    }
    assert (found["http_status"], found["request_id"]) == (200, "r-7")
    assert found["response_id"].startswith("chatcmpl-")
    assert 0 < found["first_byte_ms"] <= found["duration_ms"]
    assert found["bytes_sent"] > 0 and found["bytes_received"] > 0
    json.dumps(found)


def test_metadata_of_a_failed_agent_tell_the_failure(provider: FakeProvider, config: LlmConfig) -> None:
    provider.fail(400, message="no such thing")
    result = executed(config, [Node.agent("ask", "Hello."), Node.agent("then", "{ask}")])
    found = result.get_all_node_response_metadata()
    assert (found["ask"]["state"], found["ask"]["success"], found["ask"]["http_status"]) == ("failed", False, 400)
    assert found["ask"]["error"] == str(result.errors["ask"])
    assert (found["then"]["state"], found["then"]["attempts"], found["then"]["error"]) == ("skipped", 0, None)
    assert "http_status" not in found["then"]


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
