"""Virtual time: what waits for hours in a program is over at once in a test, in the right order and at the right moment.

Real functions and real sockets keep the clock still; a test that is wrong about that would wait for hours, and ends by
pytest's timeout.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest
from flows import HOUR, PATIENCE, linked, opened

import graphbit
from graphbit import Executor, LlmClient, LlmConfig, Node, RateLimitError, RunTimeoutError, Workflow, WorkflowResult
from graphbit.testing import FakeProvider, virtual_time

DAY = 24 * HOUR


def agent_of(provider: FakeProvider, name: str = "agent", *, retries: int = 3, timeout: float | None = 60.0) -> Node:
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=retries, timeout=timeout)
    return Node.agent(name, "Say something.", llm_config=config)


def run_by(way: str, executor: Executor, made: Workflow) -> WorkflowResult:
    if way == "execute":
        return executor.execute(made)
    if way == "start":
        return executor.start(made).wait(PATIENCE)
    return asyncio.run(executor.run_async(made))


# ------------------------------------------------------------------------------------------------------------- delays


def test_a_year_of_delays_in_a_row_takes_no_real_time_and_ends_at_the_right_moment() -> None:
    made = linked([Node.delay(f"d{i}", DAY) for i in range(365)], [(f"d{i}", f"d{i + 1}") for i in range(364)])
    real = time.monotonic()
    with virtual_time() as clock:
        result = Executor().execute(made).raise_for_failure()
        assert clock.now() == 365 * DAY
    assert result.duration == 365 * DAY
    assert result.nodes["d364"].started == 364 * DAY
    assert result.nodes["d364"].ended == 365 * DAY
    assert time.monotonic() - real < PATIENCE


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
def test_delays_end_in_the_order_of_their_due_times_whatever_order_they_begin_in(way: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    seconds = random.Random(seed).sample(range(1, 100_000), 200)
    order: list[tuple[int, float]] = []
    executor = Executor()
    with virtual_time() as clock:

        def noted(due: int) -> None:
            order.append((due, clock.now()))

        nodes = [Node.delay(f"d{s}", s) for s in seconds]
        nodes += [Node.function(lambda s=s: noted(s), name=f"n{s}") for s in seconds]
        made = linked(nodes, [(f"d{s}", f"n{s}") for s in seconds])
        run_by(way, executor, made).raise_for_failure()
    assert order == [(s, float(s)) for s in sorted(seconds)]


def test_functions_after_delays_of_the_same_due_time_see_the_same_time() -> None:
    with virtual_time() as clock:
        nodes = [Node.delay(f"d{i}", 60) for i in range(100)]
        nodes += [Node.function(lambda: clock.now(), name=f"n{i}") for i in range(100)]
        result = Executor().execute(linked(nodes, [(f"d{i}", f"n{i}") for i in range(100)])).raise_for_failure()
        assert {result[f"n{i}"] for i in range(100)} == {60.0}


def test_a_delay_after_a_join_begins_when_the_last_predecessor_ended() -> None:
    nodes = [Node.delay("short", 10), Node.delay("long", 1000), Node.delay("after", 5.5)]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, [("short", "after"), ("long", "after")]))
        assert clock.now() == 1005.5
    assert result.nodes["after"].started == 1000
    assert result.nodes["after"].duration == 5.5


def test_small_delays_keep_their_exact_length() -> None:
    with virtual_time() as clock:
        result = Executor().execute(linked([Node.delay("d", 0.000_001)]))
        assert clock.now() == pytest.approx(0.000_001)
    assert result.nodes["d"].duration == pytest.approx(0.000_001)


def test_runs_in_a_row_go_on_from_where_the_clock_stands() -> None:
    executor = Executor()
    with virtual_time() as clock:
        for i in range(1, 6):
            result = executor.execute(linked([Node.delay("hour", HOUR)]))
            assert clock.now() == i * HOUR
            assert result.duration == HOUR


def test_runs_at_once_share_the_clock() -> None:
    executor = Executor()
    inside = threading.Event()
    with virtual_time() as clock:
        gate = threading.Event()

        def held() -> None:
            inside.set()
            opened(gate)

        # While one is held the clock stands, so the others begin at the same moment.
        first = executor.start(linked([Node.function(held)]))
        opened(inside)
        runs = [executor.start(linked([Node.delay("d", HOUR * (i + 1))])) for i in range(10)]
        assert clock.now() == 0
        assert not any(run.done() for run in runs)
        gate.set()
        first.wait(PATIENCE)
        assert [run.wait(PATIENCE).duration for run in runs] == [HOUR * (i + 1) for i in range(10)]
        assert clock.now() == 10 * HOUR


# --------------------------------------------------------------------------------------------------------- run timeouts


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
def test_a_runs_timeout_is_virtual_too(way: str) -> None:
    executor = Executor(timeout_seconds=HOUR)
    made = linked(
        [Node.delay("minute", 60), Node.function(lambda: 1, name="a"), Node.delay("day", DAY)],
        [("minute", "a"), ("a", "day")],
    )
    with virtual_time() as clock:
        with pytest.raises(RunTimeoutError, match=r"was not over within 3600\.0 s") as caught:
            run_by(way, executor, made)
        assert clock.now() == HOUR
    result = caught.value.result
    assert result["a"] == 1
    assert result.states == {"minute": "succeeded", "a": "succeeded", "day": "cancelled"}
    assert result.duration == HOUR


def test_what_is_due_a_moment_before_the_timeout_still_happens() -> None:
    with virtual_time() as clock:
        result = Executor(timeout_seconds=HOUR).execute(linked([Node.delay("d", HOUR - 0.001)]))
        assert result.is_success()
        assert clock.now() == pytest.approx(HOUR - 0.001)


def test_a_timeout_that_was_not_needed_does_not_move_the_clock() -> None:
    executor = Executor(timeout_seconds=HOUR)
    with virtual_time() as clock:
        for _ in range(10):
            executor.execute(linked([Node.function(lambda: 1, name="a")])).raise_for_failure()
        assert clock.now() == 0


def test_a_function_cannot_be_too_slow_in_virtual_time() -> None:
    real = time.monotonic()

    def slow() -> str:
        while time.monotonic() - real < 0.02:  # longer than the run may take
            threading.Event().wait(0.001)
        return "in time"

    with virtual_time() as clock:
        assert Executor(timeout_seconds=0.01).execute(linked([Node.function(slow)]))["slow"] == "in time"
        assert clock.now() == 0


def test_the_time_of_wait_is_real() -> None:
    gate, inside = threading.Event(), threading.Event()

    def held() -> bool:
        inside.set()
        return gate.wait(PATIENCE)

    with virtual_time() as clock:
        run = Executor().start(linked([Node.function(held)]))
        opened(inside)
        try:
            with pytest.raises(TimeoutError):
                run.wait(0.01)
            assert clock.now() == 0
        finally:
            gate.set()
        assert run.wait(PATIENCE)["held"] is True


# ------------------------------------------------------------------------------------------------------------ retries


def test_a_backoff_takes_no_real_time(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=30)
    provider.reply("at last")
    real = time.monotonic()
    with virtual_time() as clock:
        result = Executor().execute(linked([agent_of(provider)]))
        # Never earlier than asked; a spread on top so that not everybody comes back at once.
        assert 30 <= clock.now() < 60
    assert result["agent"] == "at last"
    assert result.nodes["agent"].attempts == 2
    assert result.get_node_response_metadata("agent")["attempts"] == 2  # type: ignore[index]
    assert len(provider.requests) == 2
    assert time.monotonic() - real < PATIENCE


def test_backoffs_of_many_nodes_end_in_their_order(provider: FakeProvider) -> None:
    for i in range(10):
        provider.fail(503, retry_after=10 * (10 - i), when=f"<{i}>")
    provider.default = lambda request: request.prompt
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=1, admission=False)
    ended: list[int] = []
    nodes = [Node.agent(f"a{i}", f"<{i}>", llm_config=config) for i in range(10)]
    nodes += [Node.function(lambda _value, i=i: ended.append(i), f"n{i}", bind={"_value": f"a{i}"}) for i in range(10)]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes)).raise_for_failure()
        assert 100 <= clock.now() < 110
    assert {result.nodes[f"a{i}"].attempts for i in range(10)} == {2}
    assert ended == list(reversed(range(10)))


def test_retries_that_are_used_up_fail_at_once(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=100, times=4)
    with virtual_time() as clock:
        result = Executor().execute(linked([agent_of(provider, retries=3, timeout=None)]))
        assert 300 <= clock.now() < 400
    with pytest.raises(RateLimitError) as caught:
        result["agent"]
    assert caught.value.attempts == 4
    assert caught.value.retry_after == 100


def test_a_clients_backoff_is_virtual_too(provider: FakeProvider) -> None:
    provider.fail(503, retry_after=30)
    provider.reply("hello")
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model")
    with virtual_time() as clock:
        assert LlmClient(config).complete("hi") == "hello"
        assert 30 <= clock.now() < 60
    assert len(provider.requests) == 2


def test_a_run_whose_time_is_up_during_a_backoff_sends_nothing_more(provider: FakeProvider) -> None:
    provider.fail(429, retry_after=30, times=None)
    with virtual_time() as clock:
        with pytest.raises(RunTimeoutError) as caught:
            Executor(timeout_seconds=10).execute(linked([agent_of(provider)]))
        assert clock.now() == 10  # and the clock does not run on to the end of the backoff
    assert caught.value.result.duration == 10
    assert caught.value.result.states == {"agent": "cancelled"}
    assert len(provider.requests) == 1


# ------------------------------------------------------------------------------------- what keeps the clock still


@pytest.mark.parametrize("kind", ["function", "async function"])
def test_a_function_that_runs_keeps_the_clock_still(kind: str) -> None:
    inside, gate = threading.Event(), threading.Event()
    executor = Executor()

    def plain() -> None:
        inside.set()
        opened(gate)

    async def asynchronous() -> None:
        inside.set()
        await asyncio.get_running_loop().run_in_executor(None, opened, gate)

    with virtual_time() as clock:
        node = Node.function(plain if kind == "function" else asynchronous, name="held")
        run = executor.start(linked([node, Node.delay("hour", HOUR), Node.delay("second", 1)]))
        opened(inside)
        try:
            with pytest.raises(TimeoutError):
                run.wait(0.02)  # real time in which the clock could have moved
            assert clock.now() == 0
            assert run.states() == {"held": "running", "hour": "running", "second": "running"}
        finally:
            gate.set()
        result = run.wait(PATIENCE)
        assert clock.now() == HOUR
    assert result.nodes["held"].ended == 0
    assert result.nodes["held"].duration == 0


def test_a_request_on_its_way_keeps_the_clock_still(provider: FakeProvider) -> None:
    provider.hold()
    provider.default = "hello"
    with virtual_time() as clock:
        run = Executor().start(linked([agent_of(provider, timeout=None), Node.delay("hour", HOUR)]))
        provider.wait_for_requests(1)
        with pytest.raises(TimeoutError):
            run.wait(0.02)
        assert clock.now() == 0
        assert run.states()["hour"] == "running"
        provider.release()
        assert run.wait(PATIENCE)["agent"] == "hello"
        assert clock.now() == HOUR


def test_work_between_timers_happens_before_the_clock_moves_on() -> None:
    log: list[Any] = []
    with virtual_time() as clock:
        nodes = [Node.delay("d1", 1), Node.delay("d2", 2)]
        edges = []
        for number in (1, 2):  # chains of templates and functions
            before = f"d{number}"
            for i in range(20):
                name = f"s{number}_{i}"
                if i % 3 == 1:
                    nodes.append(Node.transform(name, "{" + before + "}x"))
                else:
                    nodes.append(Node.function(lambda n=number: log.append((n, clock.now())) or "", name=name))
                edges.append((before, name))
                before = name
        Executor().execute(linked(nodes, edges)).raise_for_failure()
    assert log == [(1, 1.0)] * 13 + [(2, 2.0)] * 13


def test_a_cancelled_run_lets_the_clock_go_on_for_the_others() -> None:
    inside, gate, over = threading.Event(), threading.Event(), threading.Event()

    def held() -> None:
        inside.set()
        opened(gate)
        over.set()

    executor = Executor()
    with virtual_time() as clock:
        stuck = executor.start(linked([Node.function(held)]))
        opened(inside)
        other = executor.start(linked([Node.delay("hour", HOUR)]))
        assert clock.now() == 0
        stuck.cancel()  # its function goes on, but nobody waits for it any more
        assert other.wait(PATIENCE).is_success()
        assert clock.now() == HOUR
        gate.set()
        opened(over)
        assert stuck.wait(PATIENCE).state() == "Cancelled"


# --------------------------------------------------------------------------------------------- entering and leaving


def test_it_cannot_be_entered_while_a_run_is_on_its_way_and_can_when_that_is_over() -> None:
    run = Executor().start(linked([Node.delay("hour", HOUR)]))
    with pytest.raises(RuntimeError, match="while nothing runs"), virtual_time():
        pass
    assert run.states() == {"hour": "running"}
    run.cancel()
    run.wait(PATIENCE)
    with virtual_time() as clock:
        assert clock.now() == 0


def test_it_cannot_be_entered_while_a_request_is_on_its_way(provider: FakeProvider) -> None:
    provider.hold()
    provider.default = "hello"
    run = Executor().start(linked([agent_of(provider)]))
    provider.wait_for_requests(1)
    with pytest.raises(RuntimeError, match="while nothing runs"), virtual_time():
        pass
    provider.release()
    assert run.wait(PATIENCE)["agent"] == "hello"


def test_leaving_restores_real_time() -> None:
    made = linked([Node.delay("d", 0.02)])
    with virtual_time():
        Executor().execute(linked([Node.delay("day", DAY)]))
    real = time.monotonic()
    result = Executor().execute(made)
    assert time.monotonic() - real >= 0.02
    assert 0.02 <= result.duration < PATIENCE
    with pytest.raises(RunTimeoutError):
        Executor(timeout_seconds=0.01).execute(linked([Node.delay("day", DAY)]))


def test_real_time_goes_on_from_before_and_does_not_keep_the_virtual_lead() -> None:
    made = linked([Node.delay("d", 0.005)])
    for _ in range(5):
        with virtual_time() as clock:
            assert clock.now() == 0
            Executor().execute(linked([Node.delay("day", DAY)]))
            assert clock.now() == DAY
        before = graphbit.runtime.stats()["uptime_seconds"]
        Executor().execute(made)
        assert 0.005 <= graphbit.runtime.stats()["uptime_seconds"] - before < PATIENCE
    assert graphbit.runtime.stats()["uptime_seconds"] < DAY


def test_an_exception_inside_leaves_it() -> None:
    def leaves() -> None:
        with virtual_time():
            Executor().execute(linked([Node.delay("day", DAY)]))
            raise LookupError

    with pytest.raises(LookupError):
        leaves()
    real = time.monotonic()
    Executor().execute(linked([Node.delay("d", 0.01)]))
    assert time.monotonic() - real >= 0.01


def test_it_begins_at_zero_each_time_and_may_be_used_again_and_again() -> None:
    executor = Executor()
    for i in range(20):
        with virtual_time() as clock:
            assert clock.now() == 0
            executor.execute(linked([Node.delay("d", i + 1)]))
            assert clock.now() == i + 1


def test_nested_use_stays_virtual_until_the_outermost_ends() -> None:
    executor = Executor()
    with virtual_time() as outer:
        executor.execute(linked([Node.delay("hour", HOUR)]))
        with virtual_time() as inner:
            assert inner.now() == 0
            executor.execute(linked([Node.delay("hour", HOUR)]))
            assert inner.now() == HOUR
        assert outer.now() == 2 * HOUR
        executor.execute(linked([Node.delay("hour", HOUR)]))  # would take an hour in real time
        assert outer.now() == 3 * HOUR
    real = time.monotonic()
    executor.execute(linked([Node.delay("d", 0.01)]))
    assert time.monotonic() - real >= 0.01


def test_a_shutdown_inside_leaves_a_fresh_runtime_in_real_time() -> None:
    with virtual_time():
        Executor().execute(linked([Node.delay("day", DAY)]))
        graphbit.shutdown()
    real = time.monotonic()
    Executor().execute(linked([Node.delay("d", 0.01)]))
    assert time.monotonic() - real >= 0.01
