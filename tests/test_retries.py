"""Trying again, giving up in time, and what takes a failed node's place: `retry=`, `timeout=`, `fallback=`."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from typing import Any

import pytest
from flows import HOUR, PATIENCE, Held, bad, good, linked, opened, until

import graphbit
from graphbit import (
    ConfigurationError,
    Executor,
    LlmConfig,
    Node,
    NodeTimeoutError,
    RateLimitError,
    RetryPolicy,
    Run,
    RuntimeClosedError,
    RunTimeoutError,
    WorkflowError,
)
from graphbit.runtime import stats
from graphbit.testing import FakeProvider, virtual_time


def steady(attempts: int = 3, backoff: float = 10.0, **more: Any) -> RetryPolicy:
    return RetryPolicy(attempts, backoff=backoff, jitter=False, max_backoff=more.pop("max_backoff", 1e6), **more)


class Flaky:
    """Fails so many times with what it is given, then succeeds; notes when it was called."""

    def __init__(self, *errors: BaseException, clock: Any = None) -> None:
        self.errors = list(errors)
        self.clock = clock
        self.calls: list[float] = []
        self.attempts: list[int] = []

    def __call__(self) -> str:
        self.calls.append(self.clock.now() if self.clock is not None else 0)
        self.attempts.append(graphbit.current().attempt)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def node(self, **options: Any) -> Node:
        return Node.function(self, name="flaky", **options)

    def async_node(self, **options: Any) -> Node:
        async def flaky() -> str:
            await asyncio.sleep(0)
            return self()

        return Node.function(flaky, **options)


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


# -------------------------------------------------------------------------------------------------------------- timeouts


def test_a_function_that_takes_too_long_fails_and_what_it_brings_is_dropped(held: Held) -> None:
    result = Executor().execute(
        linked([Node.function(held, name="held", timeout=0.05), good("after")], [("held", "after")])
    )
    assert result.states == {"held": "failed", "after": "skipped"}
    error = result.errors["held"]
    assert isinstance(error, NodeTimeoutError) and isinstance(error, TimeoutError)
    assert "'held' took longer than its timeout of 0.05 s" in str(error)
    assert error.node == "held"
    held.gate.set()
    opened(held.over)
    assert result.get("held") is None
    assert "held" not in result.outputs


def test_a_thread_that_was_given_up_is_abandoned_until_its_function_returns(held: Held) -> None:
    Executor().execute(linked([Node.function(held, name="held", timeout=0.05)]))
    assert stats()["callback_threads_abandoned"] == 1
    assert stats()["callback_threads_hard_max"] > 1
    held.gate.set()
    until(lambda: stats()["callback_threads_abandoned"] == 0)


def test_an_async_function_that_takes_too_long_is_cancelled() -> None:
    ended = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    result = Executor().execute(linked([Node.function(slow, timeout=0.05)]))
    assert isinstance(result.errors["slow"], NodeTimeoutError)
    opened(ended)
    result = asyncio.run(Executor().run_async(linked([Node.function(slow, timeout=0.05)])))
    assert isinstance(result.errors["slow"], NodeTimeoutError)


def test_an_async_function_that_swallows_its_cancellation_has_still_failed() -> None:
    ended = threading.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        ended.set()
        return "too late"

    result = Executor().execute(linked([Node.function(stubborn, timeout=0.05)]))
    opened(ended)
    assert isinstance(result.errors["stubborn"], NodeTimeoutError)
    assert result.outputs == {}


def test_an_attempt_that_took_too_long_is_tried_again_while_the_old_one_still_runs(held: Held) -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(graphbit.current().attempt)
        if len(calls) == 1:
            return held()
        return "second"

    result = Executor().execute(linked([Node.function(work, timeout=0.2, retry=RetryPolicy(2, backoff=0))]))
    assert result["work"] == "second"
    assert calls == [1, 2]
    held.gate.set()
    opened(held.over)
    assert result["work"] == "second"


def test_a_timeout_is_tried_again_only_where_the_policy_names_it(held: Held) -> None:
    policy = RetryPolicy(3, backoff=0, on=ValueError)
    result = Executor().execute(linked([Node.function(held, name="held", timeout=0.05, retry=policy)]))
    assert isinstance(result.errors["held"], NodeTimeoutError)
    assert result.nodes["held"].attempts == 1


@pytest.mark.parametrize("on", [TimeoutError, NodeTimeoutError, Exception])
def test_a_timeout_is_tried_again_where_the_policy_names_it(on: type[Exception]) -> None:
    calls = []

    async def slow() -> str:
        calls.append(1)
        if len(calls) < 3:
            await asyncio.Event().wait()
        return "done"

    result = Executor().execute(linked([Node.function(slow, timeout=0.05, retry=RetryPolicy(3, backoff=0, on=on))]))
    assert result["slow"] == "done"


def test_a_function_within_its_time_is_not_disturbed() -> None:
    nodes = [good(f"n{i}", timeout=60) for i in range(100)]
    result = Executor().execute(linked(nodes))
    assert result.outputs == {f"n{i}": f"n{i}" for i in range(100)}
    until(lambda: stats()["callback_threads_abandoned"] == 0)  # one may be on its way back


def test_a_nested_workflow_that_takes_too_long_is_cancelled_with_all_it_started() -> None:
    inner = linked([Node.delay("hour", HOUR)])
    deep = linked([Node.workflow("inner", inner)])
    with virtual_time() as clock:
        result = Executor().execute(linked([Node.workflow("deep", deep, timeout=60)]))
        assert clock.now() == 60
    assert isinstance(result.errors["deep"], NodeTimeoutError)
    until(lambda: stats()["runs_active"] == 0)


def test_a_nested_workflow_is_tried_again_after_its_time_was_up() -> None:
    with virtual_time() as clock:
        inner = linked([Node.delay("hour", HOUR)])
        node = Node.workflow("node", inner, timeout=60, retry=steady(3, 1, factor=1))
        result = Executor().execute(linked([node]))
        assert clock.now() == 3 * 60 + 2
    assert isinstance(result.errors["node"], NodeTimeoutError)
    assert result.nodes["node"].attempts == 3


def test_maps_and_loops_have_their_time_too() -> None:
    pause = Node.delay("pause", HOUR)
    with virtual_time():
        nodes = [Node.map("m", "items", pause, timeout=60, fallback="late")]
        result = Executor().execute(linked(nodes), {"items": [1, 2, 3]}).raise_for_failure()
        assert result["m"] == "late"
        result = Executor().execute(linked([Node.loop("l", pause, lambda _: False, 100, timeout=1.5 * HOUR)]))
        assert isinstance(result.errors["l"], NodeTimeoutError)
        assert result.nodes["l"].duration == 1.5 * HOUR


def test_a_run_that_is_cancelled_while_a_timed_function_runs_does_not_wait_for_it(held: Held) -> None:
    run = Executor().start(linked([Node.function(held, name="held", timeout=HOUR)]))
    opened(held.inside)
    run.cancel()
    assert run.wait(PATIENCE).states == {"held": "cancelled"}


def test_many_functions_that_hang_do_not_use_up_the_threads() -> None:
    gate = threading.Event()
    try:
        hanging = [Node.function(lambda: gate.wait(PATIENCE), name=f"hangs{i}", timeout=0.05) for i in range(40)]
        result = Executor(on_error="continue").execute(linked(hanging))
        assert all(isinstance(it, NodeTimeoutError) for it in result.errors.values())
        assert len(result.errors) == 40
        assert stats()["callback_threads_abandoned"] == 40
        result = Executor().execute(linked([good(f"n{i}", timeout=PATIENCE) for i in range(40)]))
        assert result.is_success()
    finally:
        gate.set()
    until(lambda: stats()["callback_threads_abandoned"] == 0)


# -------------------------------------------------------------------------------------------------------------- fallbacks


@pytest.mark.parametrize("value", [None, 0, "", "text", [], {"x": 1}, False])
def test_a_value_takes_the_place_of_a_failed_node(value: Any) -> None:
    nodes = [bad("b", fallback=value), Node.function(lambda b: (b,), name="after")]
    result = Executor().execute(linked(nodes))
    assert result.is_success()
    assert result["b"] == value
    assert result["after"] == (value,)
    assert result.errors == {}
    assert result.states == {"b": "succeeded", "after": "succeeded"}
    assert result.nodes["b"].fallback
    assert not result.nodes["after"].fallback
    assert result.nodes["b"].attempts == 1


def test_a_fallback_is_not_used_where_the_node_succeeds() -> None:
    called: list[object] = []
    result = Executor().execute(linked([good("a", fallback=called.append)]))
    assert (result["a"], called, result.nodes["a"].fallback) == ("a", [], False)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_is_called_with_the_error(is_async: bool) -> None:
    seen: list[BaseException] = []

    def plain(error: BaseException) -> str:
        seen.append(error)
        return f"after {error}"

    async def awaits(error: BaseException) -> str:
        await asyncio.sleep(0)
        return plain(error)

    error = ValueError("mine")
    flaky = Flaky(error)
    result = Executor().execute(linked([flaky.node(fallback=awaits if is_async else plain)])).raise_for_failure()
    assert result["flaky"] == "after mine"
    assert seen == [error]


def test_a_fallback_comes_after_the_last_attempt() -> None:
    with virtual_time() as clock:
        flaky = Flaky(ValueError("1"), ValueError("2"), ValueError("3"), clock=clock)
        when: list[tuple[float, str]] = []
        node = flaky.node(retry=steady(3), fallback=lambda error: when.append((clock.now(), str(error))))
        result = Executor().execute(linked([node]))
    assert when == [(30, "3")]
    assert result.nodes["flaky"].attempts == 3


def test_a_fallback_gets_the_timeout_of_the_last_attempt(held: Held) -> None:
    result = Executor().execute(linked([Node.function(held, name="held", timeout=0.05, fallback=lambda error: error)]))
    assert isinstance(result["held"], NodeTimeoutError)


def test_a_fallback_that_fails_too_is_the_nodes_failure_and_the_first_one_its_cause() -> None:
    first = ValueError("first")

    def also_fails(_: BaseException) -> None:
        raise LookupError("second")

    result = Executor().execute(linked([Flaky(first).node(fallback=also_fails), good("after")], [("flaky", "after")]))
    assert result.states == {"flaky": "failed", "after": "skipped"}
    error = result.errors["flaky"]
    assert isinstance(error, LookupError) and str(error) == "second"
    assert error.__cause__ is first
    assert list(result.errors) == ["flaky"]
    with pytest.raises(LookupError, match="second"):
        result.raise_for_failure()


def test_a_node_takes_the_place_of_another_and_reads_what_it_refers_to() -> None:
    nodes = [
        good("a"),
        bad("b", fallback=Node.function(lambda a, x: (a, x), name="instead")),
        Node.transform("text", "{b}"),
    ]
    result = Executor().execute(linked(nodes), {"x": 5}).raise_for_failure()
    assert result["b"] == ("a", 5)
    assert result["text"] == '["a",5]'
    assert set(result.states) == {"a", "b", "text"}
    assert "instead" not in result


@pytest.mark.parametrize("kind", ["transform", "workflow", "map", "loop", "async", "native"])
def test_a_node_of_any_kind_may_stand_in(kind: str) -> None:
    import ctypes

    async def awaits() -> float:
        await asyncio.sleep(0)
        return 3.0

    made: dict[str, tuple[Node, Any]] = {
        "transform": (Node.transform("instead", "text {x}"), "text 4"),
        "workflow": (Node.workflow("instead", linked([Node.function(lambda x: x + 1, name="inner")])), 5),
        "map": (Node.map("instead", "xs", lambda item: item + 1), [2, 3]),
        "loop": (Node.loop("instead", lambda previous: previous + 1, lambda it: it > 6, 10, initial="x"), 7),
        "async": (Node.function(awaits), 3.0),
        "native": (Node.native("instead", ctypes.CDLL("libm.so.6").sqrt, "double(double)", ["x"]), 2.0),
    }
    node, expected = made[kind]
    nodes = [
        bad("b", fallback=node),
        Node.function(lambda b: b, name="python"),
        Node.transform("text", "{b}"),
        good("other"),
    ]
    inputs = {name: value for name, value in (("x", 4), ("xs", [1, 2])) if name in linked(nodes).inputs}
    result = Executor().execute(linked(nodes), inputs).raise_for_failure()
    assert result["b"] == result["python"] == expected
    assert result.nodes["b"].fallback


def test_a_stand_in_may_be_tried_again() -> None:
    with virtual_time() as clock:
        flaky = Flaky(ValueError(), clock=clock)
        result = Executor().execute(linked([bad("b", fallback=flaky.node(retry=steady(2)))])).raise_for_failure()
    assert result["b"] == "done"
    assert flaky.calls == [0, 10]


def test_a_fallback_keeps_a_failure_from_stopping_the_run() -> None:
    with virtual_time():
        nodes = [bad("b", fallback="x"), Node.delay("pause", 60), good("after")]
        result = Executor().execute(linked(nodes, [("b", "after")]))
    assert result.is_success()
    assert set(result.states.values()) == {"succeeded"}
    assert sum(result.counts) == 3


def test_a_native_node_falls_back() -> None:
    nodes = [
        Node.function(lambda: "text", name="a"),
        Node.transform("t", "{a.key}", fallback=lambda error: type(error).__name__),
        Node.transform("u", "[{t}]"),
    ]
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert (result["t"], result["u"]) == ("TemplateError", "[TemplateError]")


def test_a_condition_falls_back_to_a_choice_and_passes_on_what_came_before_it() -> None:
    def choose(a: str) -> str:
        raise ValueError(a)

    nodes = [
        good("a"),
        Node.condition("route", choose, fallback="x"),
        Node.function(lambda route: route, name="x"),
        good("y"),
    ]
    result = Executor().execute(linked(nodes, [("route", "x"), ("route", "y")]))
    assert result.is_success(), result.errors
    assert result.states == {"a": "succeeded", "route": "succeeded", "x": "succeeded", "y": "skipped"}
    assert result.choices == {"route": ("x",)}
    assert result["x"] == "a"


def test_a_conditions_fallback_that_is_no_choice_fails_it() -> None:
    nodes = [Node.condition("route", lambda: 1 / 0, fallback="nobody"), good("x")]  # type: ignore[arg-type, return-value]
    result = Executor().execute(linked(nodes, [("route", "x")]))
    assert isinstance(result.errors["route"], graphbit.UnknownNameError)
    assert isinstance(result.errors["route"].__cause__, ZeroDivisionError)


def test_a_run_that_is_cancelled_while_something_stands_in_is_cancelled(held: Held) -> None:
    run = Executor().start(linked([bad("b", fallback=lambda _: held()), good("after")], [("b", "after")]))
    opened(held.inside)
    assert run.states()["b"] == "waiting"
    run.cancel()
    result = run.wait(PATIENCE)
    assert result.states == {"b": "cancelled", "after": "cancelled"}
    assert result.errors == {}


def test_a_run_that_is_cancelled_falls_back_nowhere() -> None:
    called: list[object] = []
    run = Executor().start(linked([bad("b", retry=steady(2, HOUR), fallback=called.append)]))
    until(lambda: run.states()["b"] == "waiting")
    run.cancel()
    assert run.wait(PATIENCE).states == {"b": "cancelled"}
    assert called == []


def test_ctrl_c_in_a_fallback_ends_the_run() -> None:
    def stop(_: BaseException) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Executor().execute(linked([bad("b", fallback=stop)]))


def test_shutdown_ends_a_run_while_something_stands_in() -> None:
    inner = Node.delay("hour", HOUR)
    run = Executor().start(linked([bad("b", fallback=Node.workflow("instead", linked([inner])))]))
    until(lambda: run.states()["b"] == "waiting")
    graphbit.shutdown()
    with pytest.raises(RuntimeClosedError):
        run.wait(PATIENCE)


def test_a_fallback_of_a_fallback_is_used() -> None:
    result = Executor().execute(linked([bad("a", fallback=bad("b", fallback=7))]))
    assert result.get("a") == 7


def test_a_fallback_must_not_be_in_the_workflow() -> None:
    other = good("other")
    with pytest.raises(WorkflowError, match="other"):
        linked([other, bad("b", fallback=other)]).validate()


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
