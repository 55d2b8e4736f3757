"""Trying again: `retry=` of nodes and of requests, and what errors and runs keep of it."""

from __future__ import annotations

import gc
import traceback
import weakref
from typing import Any

import pytest
from flows import HOUR, PATIENCE, Flaky, bad, good, linked, steady, until

import graphbit
from graphbit import (
    ConfigurationError,
    Executor,
    LlmConfig,
    Node,
    RateLimitError,
    RetryPolicy,
    Run,
    RuntimeClosedError,
    RunTimeoutError,
)
from graphbit.testing import FakeProvider, virtual_time

# ---------------------------------------------------------------------------------------------------------------- retry


@pytest.mark.parametrize("kind", ["function", "async"])
def test_a_node_is_tried_again_after_its_backoff(kind: str) -> None:
    with virtual_time() as clock:
        flaky = Flaky(ValueError(), LookupError(), clock=clock)
        node = flaky.node(retry=steady(3)) if kind == "function" else flaky.async_node(retry=steady(3))
        result = Executor().execute(linked([node, good("after")], [("flaky", "after")]))
    assert result.is_success()
    assert result["flaky"] == "done"
    assert result.states["after"] == "succeeded"
    assert flaky.calls == [0, 10, 30]
    assert flaky.attempts == [1, 2, 3]
    assert result.nodes["flaky"].attempts == 3
    assert (result.nodes["flaky"].started, result.nodes["flaky"].ended) == (0, 30)
    assert result.errors == {}


def test_backoffs_grow_by_the_factor_up_to_their_maximum() -> None:
    with virtual_time() as clock:
        flaky = Flaky(*[ValueError() for _ in range(6)], clock=clock)
        Executor().execute(linked([flaky.node(retry=steady(7, 1, factor=3, max_backoff=20))])).raise_for_failure()
    assert [b - a for a, b in zip(flaky.calls, flaky.calls[1:], strict=False)] == [1, 3, 9, 20, 20, 20]


def test_a_factor_of_one_keeps_the_backoff() -> None:
    with virtual_time() as clock:
        flaky = Flaky(*[ValueError() for _ in range(3)], clock=clock)
        Executor().execute(linked([flaky.node(retry=steady(4, 2, factor=1))])).raise_for_failure()
    assert flaky.calls == [0, 2, 4, 6]


def test_jitter_takes_up_to_half_of_a_backoff_away() -> None:
    with virtual_time() as clock:
        waits = []
        for _ in range(50):
            flaky = Flaky(ValueError(), clock=clock)
            Executor().execute(linked([flaky.node(retry=RetryPolicy(2, backoff=10))])).raise_for_failure()
            waits.append(flaky.calls[1] - flaky.calls[0])
    assert min(waits) >= 5 and max(waits) <= 15
    assert len(set(waits)) > 10


def test_no_backoff_is_no_wait() -> None:
    with virtual_time() as clock:
        flaky = Flaky(*[ValueError() for _ in range(99)], clock=clock)
        Executor().execute(linked([flaky.node(retry=RetryPolicy(100, backoff=0))])).raise_for_failure()
        assert clock.now() == 0
    assert len(flaky.calls) == 100


@pytest.mark.parametrize("kind", ["function", "async"])
def test_a_node_fails_with_its_last_error_when_all_attempts_are_used(kind: str) -> None:
    last = ValueError("last")
    flaky = Flaky(ValueError("first"), LookupError("second"), last)
    policy = RetryPolicy(3, backoff=0)
    result = Executor().execute(
        linked([flaky.node(retry=policy) if kind == "function" else flaky.async_node(retry=policy)])
    )
    assert result.errors == {"flaky": last}
    assert result.nodes["flaky"].attempts == 3


def test_one_attempt_is_no_retry() -> None:
    flaky = Flaky(ValueError("once"))
    result = Executor().execute(linked([flaky.node(retry=RetryPolicy(1))]))
    assert result.is_failed()
    assert len(flaky.calls) == 1


@pytest.mark.parametrize("on", [ConnectionError, [ConnectionError, KeyError], (OSError,), {ConnectionError}])
def test_only_what_the_policy_names_is_tried_again(on: Any) -> None:
    flaky = Flaky(ConnectionResetError(), ZeroDivisionError("no"), ValueError("never reached"))
    result = Executor().execute(linked([flaky.node(retry=RetryPolicy(5, backoff=0, on=on))]))
    assert isinstance(result.errors["flaky"], ZeroDivisionError)
    assert result.nodes["flaky"].attempts == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_and_exits_are_never_tried_again(stop: type[BaseException]) -> None:
    flaky = Flaky(stop(), stop())
    with pytest.raises(stop):
        Executor().execute(linked([flaky.node(retry=RetryPolicy(5, backoff=0, on=BaseException))]))
    assert len(flaky.calls) == 1


def test_a_condition_is_tried_again_after_an_error_and_after_a_choice_that_is_none() -> None:
    calls = []

    def choose() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return "nobody" if len(calls) == 2 else "x"

    nodes = [Node.condition("route", choose, retry=RetryPolicy(3, backoff=0)), good("x"), good("y")]
    result = Executor().execute(linked(nodes, [("route", "x"), ("route", "y")]))
    assert result.is_success(), result.errors
    assert result.states == {"route": "succeeded", "x": "succeeded", "y": "skipped"}


def test_others_run_while_a_node_waits_to_be_tried_again() -> None:
    with virtual_time() as clock:
        flaky = Flaky(ValueError(), clock=clock)
        nodes = [flaky.node(retry=steady(2, 100)), Node.delay("pause", 50), good("other")]
        result = Executor().execute(linked(nodes, [("pause", "other")]))
    assert result.nodes["other"].started == 50
    assert result.nodes["flaky"].ended == 100


def test_a_node_that_waits_to_be_tried_again_is_waiting() -> None:
    run = Executor().start(linked([bad("b", retry=steady(2, HOUR))]))
    until(lambda: run.states()["b"] == "waiting")
    run.cancel()
    result = run.wait(PATIENCE)
    assert result.states == {"b": "cancelled"}
    assert result.nodes["b"].attempts == 1
    assert result.errors == {}


def test_a_failure_elsewhere_cancels_a_node_that_waits_to_be_tried_again() -> None:
    with virtual_time() as clock:
        nodes = [bad("b", retry=steady(2, HOUR)), Node.delay("pause", 1), bad("last")]
        result = Executor().execute(linked(nodes, [("pause", "last")]))
        assert clock.now() == 1
    assert result.states == {"b": "cancelled", "pause": "succeeded", "last": "failed"}
    assert set(result.errors) == {"last"}


def test_a_deadline_that_comes_before_the_next_attempt_is_not_waited_for() -> None:
    with virtual_time() as clock:
        result = Executor(timeout_seconds=60).execute(linked([bad("b", retry=steady(3, 50))]))
        assert clock.now() == 50  # the third attempt would be due at 150
    assert result.nodes["b"].attempts == 2
    assert isinstance(result.errors["b"], LookupError)


def test_a_deadline_stops_a_node_that_is_tried_again_and_again() -> None:
    body = linked([Node.delay("pause", 7), bad("late")], [("pause", "late")])
    with virtual_time() as clock:
        with pytest.raises(RunTimeoutError) as caught:
            Executor(timeout_seconds=60).execute(linked([Node.workflow("b", body, retry=steady(1000, 0))]))
        assert clock.now() == 60
    assert caught.value.result.states == {"b": "cancelled"}
    assert caught.value.result.nodes["b"].attempts == 9


def test_shutdown_ends_a_run_whose_node_waits_to_be_tried_again() -> None:
    run = Executor().start(linked([bad("b", retry=steady(2, HOUR))]))
    until(lambda: run.states()["b"] == "waiting")
    graphbit.shutdown()
    with pytest.raises(RuntimeClosedError):
        run.wait(PATIENCE)


def test_a_thousand_nodes_wait_to_be_tried_again_without_threads() -> None:
    with virtual_time() as clock:
        flakies = [Flaky(ValueError(), clock=clock) for _ in range(1000)]
        made = linked([Node.function(it, name=f"n{i}", retry=steady(2, HOUR)) for i, it in enumerate(flakies)])
        result = Executor().execute(made)
        assert clock.now() == HOUR
    assert result.counts[3] == 1000
    assert all(it.attempts == [1, 2] for it in flakies)


# ----------------------------------------------------------------------------------------------- requests that are tried again


def test_an_agents_retry_takes_the_place_of_its_models(provider: FakeProvider) -> None:
    for _ in range(10):
        provider.fail(503)
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=5)
    with virtual_time():
        result = Executor(config).execute(linked([Node.agent("agent", "Hi.", retry=steady(3, 1))]))
    assert result.is_failed()
    assert len(provider.requests) == 3
    assert result.nodes["agent"].attempts == 3


@pytest.mark.parametrize("kind", ["agent", "http"])
def test_requests_are_tried_again_for_the_statuses_of_their_policy_alone(provider: FakeProvider, kind: str) -> None:
    policy = RetryPolicy(4, backoff=0, on=[418])
    if kind == "agent":
        provider.fail(418)
        provider.fail(503)
        config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=5)
        node = Node.agent("node", "Hi.", llm_config=config, retry=policy)
    else:
        provider.route("GET", "/page", status=418, text="teapot")
        node = Node.http("node", "GET", provider.url + "/page", retry=policy, max_retries=7)
    result = Executor().execute(linked([node]))
    assert result.is_failed()
    assert result.nodes["node"].attempts == (2 if kind == "agent" else 4)
    assert getattr(result.errors["node"], "status", None) == (503 if kind == "agent" else 418)


def test_an_agent_waits_for_retry_after_whatever_its_policy_says(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=100)
    provider.reply("hello")
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)
    with virtual_time() as clock:
        result = Executor(config).execute(linked([Node.agent("agent", "Hi.", retry=steady(2, 1))]))
        assert result["agent"] == "hello"
        assert clock.now() >= 100


def test_an_agents_timeout_is_one_attempts(provider: FakeProvider) -> None:
    provider.hold()
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)
    result = Executor(config).execute(linked([Node.agent("agent", "Hi.", timeout=0.05)]))
    assert isinstance(result.errors["agent"], TimeoutError)
    assert result.nodes["agent"].attempts == 1
    provider.wait_for_disconnects(1)


def test_an_agents_fallback_takes_its_place(provider: FakeProvider) -> None:
    provider.fail(429)
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)
    nodes = [
        Node.agent("agent", "Hi.", llm_config=config, fallback=lambda error: f"sorry: {type(error).__name__}"),
        Node.transform("text", "[{agent}]"), Node.function(lambda agent: agent, name="python"),
    ]  # fmt: skip
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert result["agent"] == result["python"] == "sorry: RateLimitError"
    assert result["text"] == "[sorry: RateLimitError]"


def test_an_agent_falls_back_to_another_agent(provider: FakeProvider) -> None:
    provider.fail(429)
    provider.reply("from the second")
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)
    second = Node.agent("second", "Hello {topic}.")
    made = linked([Node.agent("agent", "Hi {topic}.", fallback=second), Node.transform("text", "[{agent}]")])
    result = Executor(config).execute(made, {"topic": "bees"}).raise_for_failure()
    assert result["agent"] == "from the second"
    assert result["text"] == "[from the second]"
    assert set(result.states) == {"agent", "text"}
    assert [it.json["messages"][0]["content"] for it in provider.requests] == ["Hi bees.", "Hello bees."]


def test_a_handled_agent_does_not_fail_the_run(provider: FakeProvider) -> None:
    provider.fail(429)
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)
    nodes = [Node.agent("agent", "Hi."), Node.function(lambda agent: agent, name="last", join="all_done")]
    result = Executor(config).execute(linked(nodes))
    assert result.is_success()
    assert result["last"] is None
    assert isinstance(result.errors["agent"], RateLimitError)


# ----------------------------------------------------------------------------------------------- what errors and runs keep


def test_an_error_keeps_its_type_its_traceback_and_its_cause_over_all_attempts() -> None:
    class MyError(Exception):
        pass

    def deep() -> None:
        raise MyError("deep") from KeyError("cause")

    def work() -> None:
        deep()

    for options in ({}, {"retry": RetryPolicy(3, backoff=0)}, {"timeout": PATIENCE}, {"cache": True}):
        result = Executor().execute(linked([Node.function(work, **options)]))  # type: ignore[arg-type]
        error = result.errors["work"]
        assert type(error) is MyError
        assert isinstance(error.__cause__, KeyError)
        frames = [it.name for it in traceback.extract_tb(error.__traceback__)]
        assert frames == ["work", "deep"], (options, frames)
        assert "raised by node 'work'" in "".join(getattr(error, "__notes__", []))


class Payload:
    pass


@pytest.mark.parametrize("what", ["retry", "timeout", "fallback", "any", "when", "map", "workflow", "loop"])
def test_nothing_is_kept_when_a_run_is_over_and_its_result_is_gone(what: str) -> None:
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()

    def make() -> Payload:
        it = Payload()
        alive.add(it)
        return it

    def fails() -> Payload:
        make()
        held = make()
        raise LookupError(held)

    inner = linked([Node.function(make, name="inner")])
    made = {
        "retry": lambda: [Node.function(fails, name="n", retry=RetryPolicy(3, backoff=0))],
        "timeout": lambda: [Node.function(make, name="n", timeout=PATIENCE)],
        "fallback": lambda: [Node.function(fails, name="n", fallback=lambda error: (error, make()))],
        "any": lambda: [Node.function(make, name="a"), Node.function(make, name="b"), Node.function(lambda a, b: (a, b), name="n", join="any")],
        "when": lambda: [Node.function(make, name="a"), Node.function(lambda a: (a, make()), name="n")],
        "map": lambda: [Node.map("n", "items", lambda item: make(), on_error="collect")],
        "workflow": lambda: [Node.workflow("n", inner)],
        "loop": lambda: [Node.loop("n", lambda previous: make(), lambda _: False, 5)],
    }[what]()  # fmt: skip
    workflow = linked(made)
    if what == "when":
        workflow.connect("a", "n", when=lambda it: it is not None)
    executor = Executor()
    for _ in range(3):
        result = executor.execute(workflow, {"items": [1, 2, 3]} if what == "map" else None)
        result.is_success()
        assert alive
        del result
    gc.collect()
    # A callback thread may still be on its way back from its last batch.
    until(lambda: gc.collect() >= 0 and not alive)


def test_a_run_that_was_cancelled_while_it_waited_keeps_nothing() -> None:
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()

    def make() -> Payload:
        it = Payload()
        alive.add(it)
        return it

    def fails(a: Payload) -> None:
        raise LookupError(a)

    inner = linked([Node.delay("hour", HOUR)])
    nodes = [
        Node.function(make, name="a"), Node.function(fails, name="b", retry=steady(2, HOUR)), Node.workflow("c", inner),
        Node.map("d", "items", Node.delay("pause", HOUR)), Node.loop("e", inner, lambda _: False, 5),
    ]  # fmt: skip
    run: Run | None = Executor().start(linked(nodes), {"items": [Payload(), Payload()]})
    assert run is not None
    until(lambda: [run.states()[it] for it in "bcde"] == ["waiting"] * 4)  # type: ignore[union-attr]
    run.cancel()
    result: Any = run.wait(PATIENCE)
    assert result.states == {"a": "succeeded", "b": "cancelled", "c": "cancelled", "d": "cancelled", "e": "cancelled"}
    run = result = None
    until(lambda: gc.collect() >= 0 and not alive)


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments",
    [{"attempts": 0}, {"attempts": -1}, {"attempts": 2.0}, {"attempts": True}, {"attempts": "3"}, {"attempts": 1001},
     {"backoff": -1}, {"backoff": float("nan")}, {"backoff": float("inf")}, {"backoff": "1"}, {"factor": 0.5}, {"factor": None},
     {"max_backoff": -1}, {"on": []}, {"on": "ValueError"}, {"on": ValueError("x")}, {"on": 200}, {"on": 600}, {"on": True},
     {"on": [ValueError, "x"]}, {"on": list(range(400, 420))}],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RetryPolicy(**arguments)


def test_options_that_make_no_sense_are_refused_with_the_node_named() -> None:
    bad_options: list[dict[str, Any]] = [
        {"retry": 3}, {"retry": "always"}, {"timeout": 0}, {"timeout": -1}, {"timeout": "1"}, {"timeout": float("nan")},
        {"timeout": True}, {"timeout": float("inf")}, {"cache": 3}, {"limit": ""}, {"limit": [""]}, {"limit": [1]},
    ]  # fmt: skip
    for options in bad_options:
        with pytest.raises(ConfigurationError, match="node 'a'"):
            good("a", **options)


def test_a_limit_that_is_no_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="node 'a'"):
        good("a", limit=5)


def test_a_policy_that_can_never_apply_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        good("a", retry=RetryPolicy(3, on=429))
    with pytest.raises(ConfigurationError):
        Node.agent("a", "Hi.", retry=RetryPolicy(3, on=ValueError))


def test_an_error_may_fail_to_be_told_and_the_run_ends_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    flaky = Flaky(Silent(), Silent())
    result = Executor().execute(linked([flaky.node(retry=RetryPolicy(2, backoff=0))]))
    assert isinstance(result.errors["flaky"], Silent)
