"""Runs that are stopped: by `cancel`, by their time. Nothing that was under way is left behind, and what was
finished stays readable.

What must be under way when the stop comes says so itself: a function sets an event, a request arrives at the provider, a
process prints a line. Where a test looks for the end of something without being told, it asks again until it is so.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flows import HOUR, PATIENCE, good, linked, opened, until

from graphbit import (
    Executor,
    LlmConfig,
    Node,
    NodeNotRunError,
    Run,
    RunCancelledError,
    RunTimeoutError,
    Workflow,
    WorkflowResult,
)
from graphbit.runtime import stats
from graphbit.testing import FakeProvider


def agent_of(provider: FakeProvider, *, timeout: float | None = 60.0) -> Node:
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", timeout=timeout, max_retries=0)
    return Node.agent("agent", "Say something.", llm_config=config)


def state_of(run: Run, node: str) -> Callable[[], str]:
    return lambda: run.states()[node]


class Held:
    """A function node that runs until it is let go."""

    def __init__(self, name: str = "held") -> None:
        self.inside, self.gate, self.over = threading.Event(), threading.Event(), threading.Event()
        self.node = Node.function(self._run, name=name)

    def _run(self) -> str:
        self.inside.set()
        opened(self.gate)
        self.over.set()
        return "too late"


@pytest.fixture
def held() -> Iterator[Held]:
    it = Held()
    yield it
    it.gate.set()
    if it.inside.is_set():
        opened(it.over)


# ------------------------------------------------------------------------------------------------------- from where and when


def test_a_run_may_be_cancelled_from_another_thread_while_its_node_blocks(held: Held) -> None:
    run = Executor().start(linked([held.node, good("after")], [("held", "after")]))
    opened(held.inside)
    canceller = threading.Thread(target=run.cancel)
    canceller.start()
    canceller.join(PATIENCE)
    result = run.wait(PATIENCE)  # does not wait for the function
    assert not held.over.is_set()
    assert result.state() == "Cancelled"
    assert result.states == {"held": "cancelled", "after": "cancelled"}


def test_a_waiting_thread_is_told_when_its_run_is_cancelled() -> None:
    run = Executor().start(linked([Node.delay("hour", HOUR)]))
    got: list[WorkflowResult] = []
    waiters = [threading.Thread(target=lambda: got.append(run.wait(PATIENCE))) for _ in range(4)]
    for it in waiters:
        it.start()
    run.cancel()
    for it in waiters:
        it.join(PATIENCE)
    assert [it.state() for it in got] == ["Cancelled"] * 4


@pytest.mark.parametrize("where", ["caller", "callback thread"])
def test_a_run_may_be_cancelled_from_inside_a_node(where: str) -> None:
    runs: list[Run] = []
    started, cancelled = threading.Event(), threading.Event()

    def stop() -> str:
        opened(started)
        runs[0].cancel()
        cancelled.set()
        return "still returned"

    made = linked([good("first"), Node.function(stop), good("after")], [("first", "stop"), ("stop", "after")])
    runs.append(Executor().start(made))
    started.set()
    if where == "callback thread":
        opened(cancelled)
    result = runs[0].wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert result["first"] == "first"
    assert result.states == {"first": "succeeded", "stop": "cancelled", "after": "cancelled"}


def test_no_callback_begins_after_a_node_cancelled_the_run() -> None:
    begun: list[int] = []
    runs: list[Run] = []
    started = threading.Event()

    def node(number: int) -> None:
        begun.append(number)
        if number == 0:
            opened(started)
            runs[0].cancel()

    # A chain: what follows is behind the node that cancels, on whatever thread that runs.
    made = Workflow("w")
    made.add(*[Node.function(lambda i=i: node(i), name=f"n{i}") for i in range(50)])
    for i in range(49):
        made.connect(f"n{i}", f"n{i + 1}")
    runs.append(Executor().start(made))
    started.set()
    result = runs[0].wait(PATIENCE)
    assert begun == [0]
    assert set(result.states.values()) == {"cancelled"}


def test_a_run_may_be_cancelled_at_once_and_as_often_as_one_likes() -> None:
    executor = Executor()
    for _ in range(100):
        run = executor.start(linked([good("a"), Node.delay("hour", HOUR), good("b")], [("a", "hour"), ("hour", "b")]))
        for _ in range(3):
            run.cancel()
        result = run.wait(PATIENCE)
        assert result.state() == "Cancelled"
        assert result.states["hour"] == result.states["b"] == "cancelled"
        assert result.states["a"] in ("succeeded", "cancelled")
        run.cancel()
        assert run.wait() is result
    assert executor.get_stats()["failed_executions"] == 100


def test_a_run_that_many_threads_cancel_at_once_ends_once() -> None:
    executor = Executor()
    line = threading.Barrier(8)
    runs: list[Run] = []

    def work() -> None:
        for i in range(50):
            if line.wait(PATIENCE) == 0:
                runs.append(executor.start(linked([good("a"), Node.delay("hour", HOUR)])))
            line.wait(PATIENCE)
            runs[i].cancel()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for it in threads:
        it.start()
    for it in threads:
        it.join(PATIENCE * 2)
    assert [run.wait(PATIENCE).state() for run in runs] == ["Cancelled"] * 50
    assert executor.get_stats()["total_executions"] == 50


def test_cancelling_after_the_end_changes_nothing() -> None:
    executor = Executor()
    run = executor.start(linked([good("a")]))
    until(run.done)
    run.cancel()
    result = run.wait()
    run.cancel()
    assert result.state() == "Completed"
    assert result.is_success()
    assert result["a"] == "a"
    assert executor.get_stats()["successful_executions"] == 1


def test_a_cancel_that_races_with_the_end_is_one_or_the_other() -> None:
    executor = Executor()
    made = linked([good("a"), Node.transform("t", "{a}"), good("b")], [("t", "b")])
    states = []
    for _ in range(300):
        run = executor.start(made)
        run.cancel()
        result = run.wait(PATIENCE)
        states.append(result.state())
        succeeded = set(result.states.values()) == {"succeeded"}
        assert succeeded == (states[-1] == "Completed"), result.states
        assert set(result.states.values()) <= {"succeeded", "cancelled"}
    assert set(states) <= {"Completed", "Cancelled"}


def test_cancelling_one_run_leaves_others_alone(held: Held) -> None:
    executor, made = Executor(), linked([held.node])
    runs = [executor.start(linked([Node.delay("hour", HOUR)])) for _ in range(5)]
    other = executor.start(made)
    opened(held.inside)
    for run in runs:
        run.cancel()
    assert [run.wait(PATIENCE).state() for run in runs] == ["Cancelled"] * 5
    assert not other.done()
    held.gate.set()
    assert other.wait(PATIENCE)["held"] == "too late"


def test_a_cancelled_outer_run_does_not_cancel_the_nested_one_that_a_node_waits_for() -> None:
    executor = Executor()
    inner, outcome = Held("inner"), []
    over = threading.Event()

    def outer() -> None:
        outcome.append(executor.execute(linked([inner.node])).state())
        over.set()

    run = executor.start(linked([Node.function(outer)]))
    opened(inner.inside)
    run.cancel()
    assert run.wait(PATIENCE).state() == "Cancelled"
    inner.gate.set()
    opened(over)
    assert outcome == ["Completed"]


# ------------------------------------------------------------------------------------------------- what is under way


def test_delays_are_cancelled_at_once() -> None:
    run = Executor().start(linked([Node.delay(f"d{i}", HOUR + i) for i in range(1000)]))
    until(lambda: set(run.states().values()) == {"running"})
    run.cancel()
    result = run.wait(PATIENCE)
    assert set(result.states.values()) == {"cancelled"}
    assert all(it.ended is not None and it.ended < PATIENCE for it in result.nodes.values())


@pytest.mark.parametrize("kind", ["agent", "http"])
def test_the_connection_of_a_request_is_closed_at_once(provider: FakeProvider, kind: str) -> None:
    provider.hold()
    provider.route("GET", "/page", text="hello")
    node = agent_of(provider) if kind == "agent" else Node.http("http", "GET", provider.url + "/page")
    run = Executor().start(linked([good("first"), node, good("after")], [("first", kind), (kind, "after")]))
    provider.wait_for_requests(1)
    run.cancel()
    provider.wait_for_disconnects(1)
    result = run.wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert result.states == {"first": "succeeded", kind: "cancelled", "after": "cancelled"}
    assert result.errors == {}
    until(lambda: stats()["calls_active"] == 0)


def test_many_requests_are_cancelled_together(provider: FakeProvider) -> None:
    provider.hold()
    provider.route("GET", "/page", text="hello")
    made = linked([Node.http(f"h{i}", "GET", provider.url + "/page") for i in range(50)])
    run = Executor().start(made)
    provider.wait_for_requests(50)
    run.cancel()
    provider.wait_for_disconnects(50)
    assert set(run.wait(PATIENCE).states.values()) == {"cancelled"}


def test_a_request_that_backs_off_is_cancelled_and_sends_nothing_more(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=100)
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=3)
    retried = stats().get("requests_retried", 0)
    run = Executor().start(linked([Node.agent("agent", "Hi.", llm_config=config)]))
    until(lambda: stats()["requests_retried"] > retried)
    run.cancel()
    assert run.wait(PATIENCE).states == {"agent": "cancelled"}
    assert len(provider.requests) == 1


def test_a_cancelled_request_does_not_disturb_the_next_one(provider: FakeProvider) -> None:
    executor, made = Executor(), linked([agent_of(provider)])
    provider.default = "hello"
    for i in range(10):
        provider.hold()
        run = executor.start(made)
        provider.wait_for_requests(2 * i + 1)
        run.cancel()
        assert run.wait(PATIENCE).state() == "Cancelled"
        provider.release()
        assert executor.execute(made)["agent"] == "hello"


def test_everything_at_once_is_cancelled(provider: FakeProvider, held: Held) -> None:
    provider.hold()
    inside, ended = threading.Event(), threading.Event()

    async def awaits() -> None:
        try:
            inside.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    nodes = [
        held.node, Node.function(awaits), agent_of(provider), Node.delay("hour", HOUR),
        Node.transform("text", "done"), good("quick"),
    ]  # fmt: skip
    run = Executor().start(linked(nodes))
    opened(held.inside)
    opened(inside)
    provider.wait_for_requests(1)
    until(lambda: (run.states()["text"], run.states()["quick"]) == ("succeeded", "succeeded"))
    run.cancel()
    result = run.wait(PATIENCE)
    opened(ended)  # the async function saw its CancelledError
    provider.wait_for_disconnects(1)
    assert result.outputs == {"text": "done", "quick": "quick"}
    assert {name for name, state in result.states.items() if state == "cancelled"} == {
        "held",
        "awaits",
        "agent",
        "hour",
    }


# ------------------------------------------------------------------------------------------------ the result


def test_the_result_of_a_cancelled_run_tells_everything(held: Held) -> None:
    run = Executor().start(linked([good("first"), held.node, good("after")], [("first", "held"), ("held", "after")]))
    opened(held.inside)
    run.cancel()
    result = run.wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert (result.is_success(), result.is_failed()) == (False, True)
    assert result["first"] == "first"
    assert result.outputs == {"first": "first"}
    assert result.errors == {}
    for node in ("held", "after"):
        with pytest.raises(NodeNotRunError, match=f"'{node}' was cancelled with its run"):
            result[node]
        assert result.get(node, "nothing") == "nothing"
    with pytest.raises(RunCancelledError, match="workflow 'w' was cancelled") as caught:
        result.raise_for_failure()
    assert caught.value.result is result
    reports = result.nodes
    assert reports["held"].attempts == 1
    assert reports["held"].started is not None
    assert (reports["after"].attempts, reports["after"].started) == (0, None)
    held.gate.set()
    opened(held.over)
    assert result.states["held"] == "cancelled"  # what it returned too late is nowhere
    assert run.states()["held"] == "cancelled"
    assert "held" not in result.outputs


def test_a_cancelled_run_is_not_logged_as_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    run = Executor().start(linked([Node.delay("hour", HOUR)]))
    run.cancel()
    run.wait(PATIENCE)
    del run
    assert caplog.records == []


def test_a_failure_before_the_cancel_stays_the_failure() -> None:
    def fails() -> None:
        raise LookupError("mine")

    run = Executor(on_error="continue").start(linked([Node.function(fails), Node.delay("hour", HOUR)]))
    until(lambda: run.states()["fails"] == "failed")
    run.cancel()
    result = run.wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert result.states == {"fails": "failed", "hour": "cancelled"}
    with pytest.raises(LookupError, match="mine"):
        result.raise_for_failure()


# ----------------------------------------------------------------------------------------------------- its time is up


def timed_out(action: Callable[[], Any], states: dict[str, str]) -> WorkflowResult:
    with pytest.raises(RunTimeoutError, match=r"'w' was not over within 0\.1 s") as caught:
        action()
    result = caught.value.result
    assert isinstance(result, WorkflowResult)
    assert result.state() == "TimedOut"
    assert result.states == states
    assert result["first"] == "first"
    for node, state in states.items():
        if state == "cancelled":
            with pytest.raises(NodeNotRunError, match=f"'{node}' was cancelled because the run's time was up"):
                result[node]
    return result


def test_a_timeout_does_not_wait_for_a_function_that_blocks_elsewhere(held: Held) -> None:
    run = Executor(timeout_seconds=0.1).start(
        linked([good("first"), held.node, good("after")], [("first", "held"), ("held", "after")])
    )
    opened(held.inside)  # on a callback thread: this one did not pull
    timed_out(lambda: run.wait(PATIENCE), {"first": "succeeded", "held": "cancelled", "after": "cancelled"})
    assert not held.over.is_set()
    with pytest.raises(RunTimeoutError):  # and again
        run.wait()


def test_a_timeout_during_a_function_on_the_callers_thread_is_raised_when_that_returns() -> None:
    def slow() -> str:
        until(lambda: stats()["runs_active"] == 0)  # the run's time is up
        return "too late"

    made = linked([good("first"), Node.function(slow), good("after")], [("first", "slow"), ("slow", "after")])
    timed_out(
        lambda: Executor(timeout_seconds=0.1).execute(made),
        {"first": "succeeded", "slow": "cancelled", "after": "cancelled"},
    )


def test_a_timeout_ends_delays() -> None:
    made = linked([good("first"), Node.delay("hour", HOUR)], [("first", "hour")])
    result = timed_out(lambda: Executor(timeout_seconds=0.1).execute(made), {"first": "succeeded", "hour": "cancelled"})
    assert 0.1 <= result.duration < PATIENCE


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
def test_a_timeout_closes_the_connection_of_a_held_request(provider: FakeProvider, way: str) -> None:
    provider.hold()
    made = linked([good("first"), agent_of(provider)], [("first", "agent")])
    executor = Executor(timeout_seconds=0.1)
    actions: dict[str, Callable[[], Any]] = {
        "execute": lambda: executor.execute(made),
        "start": lambda: executor.start(made).wait(PATIENCE),
        "run_async": lambda: asyncio.run(executor.run_async(made)),
    }
    timed_out(actions[way], {"first": "succeeded", "agent": "cancelled"})
    assert len(provider.requests) <= 1
    if provider.requests:
        provider.wait_for_disconnects(1)


def test_the_time_of_wait_is_not_the_runs_time(held: Held) -> None:
    run = Executor().start(linked([held.node, good("after")], [("held", "after")]))
    opened(held.inside)
    for timeout in (0, 0.01, 0.02):
        with pytest.raises(TimeoutError, match=rf"'w' was not over within {timeout} s; it goes on") as caught:
            run.wait(timeout)
        assert not isinstance(caught.value, RunTimeoutError)
    assert not run.done()
    held.gate.set()
    assert run.wait(PATIENCE).outputs == {"held": "too late", "after": "after"}


def test_wait_may_be_called_again_and_again_while_requests_and_delays_go_on(provider: FakeProvider) -> None:
    provider.hold()
    provider.default = "hello"
    run = Executor().start(linked([agent_of(provider), Node.delay("pause", 0.01)]))
    for _ in range(20):
        with pytest.raises(TimeoutError):
            run.wait(0.001)
    provider.wait_for_requests(1)
    provider.release()
    assert run.wait(PATIENCE)["agent"] == "hello"


# ------------------------------------------------------------------------------------------- exits from inside a node


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("way", ["execute", "start", "callback thread"])
def test_an_exit_inside_a_node_comes_out_of_the_wait_and_is_no_failure(kind: type[BaseException], way: str) -> None:
    error = kind("bye")
    raised = threading.Event()
    held = Held("other")

    def leave() -> None:
        raised.set()
        raise error

    made = linked(
        [good("first"), Node.function(leave), good("after"), Node.delay("hour", HOUR)],
        [("first", "leave"), ("leave", "after")],
    )
    executor = Executor(on_error="continue")
    if way == "execute":
        with pytest.raises(kind) as caught:
            executor.execute(made)
    else:
        run = executor.start(made)
        if way == "callback thread":
            opened(raised)
        with pytest.raises(kind) as caught:
            run.wait(PATIENCE)
        until(run.done)
        states = run.states()
        assert states == {"first": "succeeded", "leave": "cancelled", "after": "cancelled", "hour": "cancelled"}
        with pytest.raises(kind):  # and again
            run.wait(PATIENCE)
    assert caught.value is error
    assert not getattr(error, "__notes__", None)
    until(lambda: stats()["runs_active"] == 0)
    held.gate.set()
    assert executor.execute(linked([held.node]))["other"] == "too late"  # the next run is fine


def test_an_exit_on_a_helping_thread_reaches_the_caller() -> None:
    inside, raised = threading.Event(), threading.Event()

    def held() -> str:
        inside.set()
        opened(raised)
        return threading.current_thread().name

    def leave() -> None:
        opened(inside)
        raised.set()
        raise SystemExit("bye")

    with pytest.raises(SystemExit, match="bye"):
        Executor().execute(linked([Node.function(held), Node.function(leave)]))
    until(lambda: stats()["runs_active"] == 0)


def test_the_threads_that_an_exit_came_through_go_on_working() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    executor, made = Executor(), linked([Node.function(leave)])
    for _ in range(40):  # more than there are callback threads
        run = executor.start(made)
        until(run.done)
        with pytest.raises(KeyboardInterrupt):
            run.wait(PATIENCE)
    meeting = threading.Barrier(8)
    result = executor.start(linked([Node.function(lambda: meeting.wait(PATIENCE), name=f"n{i}") for i in range(8)]))
    assert result.wait(PATIENCE).is_success()
