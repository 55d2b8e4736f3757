"""Agents against a provider on loopback: what a model is asked, how the graph waits for it, what is told of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flows import const
from models import KEY, executed, workflow

from graphbit import ConfigurationError, Executor, LlmConfig, Node
from graphbit.testing import FakeProvider

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
