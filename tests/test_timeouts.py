"""Giving up in time: `timeout=` of nodes."""

from __future__ import annotations

import asyncio
import threading

import pytest
from flows import HOUR, PATIENCE, Held, good, linked, opened, steady, until

import graphbit
from graphbit import (
    Executor,
    Node,
    NodeTimeoutError,
    RetryPolicy,
)
from graphbit.runtime import stats
from graphbit.testing import virtual_time


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
