"""Limits: how many nodes execute at once, of all kinds, of one kind, and of those that name a limit."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flows import HOUR, PATIENCE, Held, good, linked, opened, until

import graphbit
from graphbit import ConfigurationError, Executor, LlmConfig, Node, RetryPolicy, Run, RuntimeClosedError, Workflow
from graphbit.testing import FakeProvider, virtual_time


class Meter:
    """Functions that count how many of them run at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.calls = 0

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1

    def node(self, name: str, work: Callable[[], object] = lambda: None, **options: Any) -> Node:
        def run() -> None:
            with self:
                work()

        return Node.function(run, name=name, **options)

    def async_node(self, name: str, **options: Any) -> Node:
        async def run() -> None:
            with self:
                for _ in range(5):
                    await asyncio.sleep(0)

        return Node.function(run, name=name, **options)


def most_at_once(result: Any, names: list[str]) -> int:
    """From the times that are reported."""
    marks = sorted([(result.nodes[it].started, 1) for it in names] + [(result.nodes[it].ended, 0) for it in names])
    now = most = 0
    for _, begins in marks:
        now += 1 if begins else -1
        most = max(most, now)
    return most


# -------------------------------------------------------------------------------------------------------- so many at once


@pytest.mark.parametrize("permits", [1, 2, 5])
def test_no_more_delays_than_the_limit_are_on_their_way(permits: int) -> None:
    names = [f"d{i}" for i in range(20)]
    with virtual_time() as clock:
        result = Executor(limits={"slow": permits}).execute(linked([Node.delay(it, 10, limit="slow") for it in names]))
        assert clock.now() == 10 * 20 / permits
    assert most_at_once(result, names) == permits


def test_a_limit_is_for_those_who_name_it() -> None:
    names = [f"d{i}" for i in range(4)]
    nodes = [Node.delay(it, 10, limit="slow") for it in names] + [Node.delay("free", 10)]
    with virtual_time() as clock:
        result = Executor(limits={"slow": 1}).execute(linked(nodes))
        assert clock.now() == 40
    assert result.nodes["free"].ended == 10


def test_a_kind_of_node_is_limited_by_its_name() -> None:
    nodes = [Node.delay(f"d{i}", 10) for i in range(4)]
    with virtual_time() as clock:
        Executor(limits={"delay": 2}).execute(linked(nodes)).raise_for_failure()
        assert clock.now() == 20


def test_max_concurrency_is_for_all_nodes_together() -> None:
    meter = Meter()
    nodes = [meter.node(f"n{i}") for i in range(30)] + [Node.delay(f"d{i}", 1) for i in range(3)]
    with virtual_time() as clock:
        Executor(max_concurrency=1).execute(linked(nodes)).raise_for_failure()
        assert clock.now() == 3
    assert (meter.most, meter.calls) == (1, 30)


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
@pytest.mark.parametrize("kind", ["function", "async"])
def test_functions_are_limited_whoever_runs_them(way: str, kind: str) -> None:
    meter = Meter()
    make = meter.node if kind == "function" else meter.async_node
    made = linked([make(f"n{i}", limit="db") for i in range(200)])
    executor = Executor(limits={"db": 3})
    if way == "execute":
        result = executor.execute(made)
    elif way == "start":
        result = executor.start(made).wait(PATIENCE)
    else:
        result = asyncio.run(executor.run_async(made))
    assert result.is_success(), result.errors
    assert meter.calls == 200
    assert meter.most <= 3
    stats = executor.get_stats()["limits"]["db"]
    assert (stats["capacity"], stats["in_use"], stats["waiting"]) == (3, 0, 0)
    assert 1 <= stats["peak"] <= 3


def test_as_many_as_there_are_permits_run_together() -> None:
    line = threading.Barrier(4)
    meter = Meter()
    made = linked([meter.node(f"n{i}", lambda: line.wait(PATIENCE), limit="db") for i in range(8)])
    result = Executor(limits={"db": 4}).execute(made)
    assert result.is_success(), result.errors
    assert meter.most == 4


def test_agents_and_pages_are_limited_before_their_requests_go_out(provider: FakeProvider) -> None:
    provider.default = "hello"
    provider.route("GET", "/page", text="page")
    provider.hold()
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model")
    nodes = [Node.agent(f"a{i}", "Hi.") for i in range(6)] + [
        Node.http(f"h{i}", "GET", provider.url + "/page") for i in range(6)
    ]
    executor = Executor(config, limits={"agent": 2, "http": 3})
    run = executor.start(linked(nodes))
    provider.wait_for_requests(5)
    stats = executor.get_stats()["limits"]
    assert (stats["agent"]["in_use"], stats["agent"]["waiting"]) == (2, 4)
    assert (stats["http"]["in_use"], stats["http"]["waiting"]) == (3, 3)
    assert sorted(run.states().values()) == ["ready"] * 7 + ["running"] * 5
    provider.release()
    assert run.wait(PATIENCE).is_success()
    assert executor.get_stats()["limits"]["agent"]["peak"] == 2


def test_native_work_and_texts_are_limited_too() -> None:
    nodes = [Node.transform(f"t{i}", "text", limit="cpu") for i in range(100)]
    result = Executor(limits={"cpu": 1}).execute(linked(nodes))
    assert result.is_success()
    assert len(result.outputs) == 100


def test_a_node_may_name_several_limits_and_holds_all_of_them_or_none() -> None:
    with virtual_time() as clock:
        nodes = [
            Node.delay("both", 10, limit=["a", "b"]), Node.delay("a", 10, limit="a"), Node.delay("b", 10, limit=["b"]),
            Node.delay("both again", 10, limit=("b", "a")),
        ]  # fmt: skip
        result = Executor(limits={"a": 1, "b": 1}).execute(linked(nodes))
        assert clock.now() == 30
    assert result.nodes["a"].started == result.nodes["b"].started


def test_nodes_with_limits_in_every_order_never_wait_for_each_other_for_ever() -> None:
    names = ["a", "b", "c", "d"]
    meter = Meter()
    nodes = []
    for i in range(120):
        wanted = [names[i % 4], names[(i // 4) % 4], names[(i * 7) % 4]]
        nodes.append((meter.node if i % 2 else meter.async_node)(f"n{i}", limit=wanted))
    result = Executor(limits=dict.fromkeys(names, 1)).execute(linked(nodes))
    assert result.is_success()
    assert meter.calls == 120


def test_all_runs_of_an_executor_share_its_limits_and_those_of_others_do_not() -> None:
    made = linked([Node.delay("d", HOUR, limit="slow")])
    one, other = Executor(limits={"slow": 1}), Executor(limits={"slow": 1})
    runs = [one.start(made) for _ in range(3)] + [other.start(made) for _ in range(3)]
    for executor in (one, other):
        stats = executor.get_stats()["limits"]["slow"]
        assert (stats["in_use"], stats["waiting"]) == (1, 2)
    for run in runs:
        run.cancel()
    assert [run.wait(PATIENCE).state() for run in runs] == ["Cancelled"] * 6
    for executor in (one, other):
        stats = executor.get_stats()["limits"]["slow"]
        assert (stats["in_use"], stats["waiting"]) == (0, 0)


def test_runs_take_turns_at_a_limit() -> None:
    order: list[str] = []
    gate, inside = threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        opened(gate)

    executor = Executor(limits={"db": 1})
    blocker = executor.start(linked([Node.function(block, limit="db")]))
    opened(inside)
    runs = [
        executor.start(linked([Node.function(lambda who=who: order.append(who), name=f"n{i}", bind=None, limit="db") for i in range(10)]))
        for who in "ab"
    ]  # fmt: skip
    until(lambda: executor.get_stats()["limits"]["db"]["waiting"] == 20)
    gate.set()
    for run in (blocker, *runs):
        assert run.wait(PATIENCE).is_success()
    assert sorted(order) == ["a"] * 10 + ["b"] * 10
    assert all(a != b for a, b in itertools.pairwise(order)), order


def test_within_a_run_the_nodes_with_more_work_behind_them_go_first() -> None:
    order: list[str] = []

    def noted(name: str) -> Node:
        return Node.function(lambda: order.append(name), name=name, limit="db")

    chain = [noted(f"chain{i}") for i in range(5)]
    single = [noted(f"single{i}") for i in range(5)]
    edges = [(f"chain{i}", f"chain{i + 1}") for i in range(4)]
    # The single ones were added first: in the order of their coming the chain would be last.
    Executor(limits={"db": 1}).execute(linked([*single, *chain], edges)).raise_for_failure()
    # The first to come finds a permit; from then on the longer way counts: a chain's last node has nothing behind it either.
    assert order[1:5] == ["chain0", "chain1", "chain2", "chain3"], order


# ------------------------------------------------------------------------------------------- who holds a permit, and who not


def test_a_node_that_waits_to_be_tried_again_holds_no_permit() -> None:
    def fails() -> None:
        raise LookupError

    policy = RetryPolicy(2, backoff=100, max_backoff=100, jitter=False)
    with virtual_time() as clock:
        nodes = [Node.function(fails, retry=policy, limit="db", fallback=None), Node.delay("d", 50, limit="db")]
        result = Executor(limits={"db": 1}).execute(linked(nodes))
        assert clock.now() == 100
    assert result.is_success()
    assert result.nodes["d"].ended == 50


def test_a_composite_holds_no_permit_while_its_runs_do() -> None:
    inner = linked([Node.delay("inner", 10, limit="db")])
    nodes = [Node.workflow(f"w{i}", inner) for i in range(3)]
    with virtual_time() as clock:
        Executor(limits={"db": 1}, max_concurrency=1).execute(linked(nodes)).raise_for_failure()
        assert clock.now() == 30


def test_the_items_of_a_map_take_permits_of_the_same_limits() -> None:
    meter = Meter()
    with virtual_time() as clock:
        body = linked([Node.delay("pause", 10, limit="db"), meter.node("work", limit="db")])
        made = linked([Node.map("m", "items", body)])
        Executor(limits={"db": 2}).execute(made, {"items": list(range(10))}).raise_for_failure()
        assert clock.now() == 50
    assert meter.calls == 10
    assert meter.most <= 2


def test_a_nested_composite_deep_down_does_not_block_itself() -> None:
    made = linked([good("innermost", limit="db")])
    for depth in range(10):
        made = linked([Node.workflow(f"level{depth}", made)])
    result = Executor(limits={"db": 1}, max_concurrency=1).execute(made)
    assert result["level9"] == "innermost"


def test_a_stand_in_of_a_limited_node_runs_when_the_limit_is_full_otherwise() -> None:
    def fails() -> None:
        raise LookupError

    nodes = [Node.function(fails, name=f"n{i}", limit="db", fallback=i) for i in range(20)]
    result = Executor(limits={"db": 1}, max_concurrency=1).execute(linked(nodes))
    assert result.outputs == {f"n{i}": i for i in range(20)}


def test_a_function_whose_time_is_up_gives_its_permit_back(held: Held) -> None:
    nodes = [Node.function(held, name="held", limit="db", timeout=0.05, fallback="late"), good("other", limit="db")]
    executor = Executor(limits={"db": 1})
    result = executor.execute(linked(nodes))
    assert result["other"] == "other"
    assert executor.get_stats()["limits"]["db"]["in_use"] == 0


def test_what_a_race_cancels_gives_its_permit_back() -> None:
    nodes = [
        Node.delay("slow", HOUR, limit="db"), Node.delay("waits", 1, limit="db"), Node.delay("quick", 5), good("race", join="any"),
    ]  # fmt: skip
    executor = Executor(limits={"db": 1})
    with virtual_time() as clock:
        result = executor.execute(linked(nodes, [("slow", "race"), ("quick", "race")]))
        assert clock.now() <= 6
    assert result.is_success()
    assert result.states["waits"] == "succeeded"
    assert executor.get_stats()["limits"]["db"]["in_use"] == 0


def test_functions_that_decide_edges_take_no_permit() -> None:
    made = linked([good("a"), good("b")])
    made.connect("a", "b", when=lambda it: it == "a")
    executor = Executor(limits={"function": 1})
    assert executor.execute(made).is_success()


# ------------------------------------------------------------------------------------------------------------ the way out


@pytest.mark.parametrize("how", ["cancel", "failure", "deadline"])
def test_nodes_that_wait_for_a_permit_are_cancelled_with_their_run(held: Held, how: str) -> None:
    executor = Executor(limits={"db": 1}, timeout_seconds=0.2 if how == "deadline" else None)

    def fails() -> None:
        opened(held.inside)
        raise LookupError

    # First the one that is held: it is the one that finds a permit.
    nodes = [Node.function(held, name="held", limit="db")] + [good(f"n{i}", limit="db") for i in range(50)]
    if how == "failure":
        nodes.append(Node.function(fails))
    run = executor.start(linked(nodes))
    opened(held.inside)  # in a callback thread: this one is to wait
    if how == "cancel":
        run.cancel()
        result = run.wait(PATIENCE)
    elif how == "failure":
        result = run.wait(PATIENCE)
    else:
        with pytest.raises(graphbit.RunTimeoutError) as caught:
            run.wait(PATIENCE)
        result = caught.value.result
    assert [state for name, state in result.states.items() if name.startswith("n")].count("cancelled") >= 49
    stats = executor.get_stats()["limits"]["db"]
    assert stats["waiting"] == 0
    held.gate.set()
    executor.configure(timeout_seconds=PATIENCE)
    assert executor.execute(linked([good("next", limit="db")]))["next"] == "next"
    until(lambda: executor.get_stats()["limits"]["db"]["in_use"] == 0)


def test_shutdown_ends_runs_that_wait_for_permits(held: Held) -> None:
    executor = Executor(limits={"db": 1})
    run = executor.start(linked([Node.function(held, name="held", limit="db"), good("n", limit="db")]))
    opened(held.inside)
    graphbit.shutdown()
    with pytest.raises(RuntimeClosedError):
        run.wait(PATIENCE)
    held.gate.set()
    opened(held.over)
    assert executor.execute(linked([good("next", limit="db")]))["next"] == "next"


def test_an_executor_may_go_while_its_runs_wait_for_permits() -> None:
    executor = Executor(limits={"db": 1})
    runs = [executor.start(linked([Node.delay("d", 0.001, limit="db")])) for _ in range(20)]
    del executor
    assert all(run.wait(PATIENCE).is_success() for run in runs)


def test_ctrl_c_in_a_node_gives_its_permit_back() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    executor = Executor(limits={"db": 1})
    with pytest.raises(KeyboardInterrupt):
        executor.execute(linked([Node.function(stop, limit="db"), good("n", limit="db")]))
    until(lambda: executor.get_stats()["limits"]["db"]["in_use"] == 0)
    assert executor.execute(linked([good("next", limit="db")]))["next"] == "next"


def test_limits_hold_under_concurrent_runs_with_failures_and_cancels() -> None:
    meter = Meter()

    def fails() -> None:
        with meter:
            raise LookupError

    def made() -> Workflow:
        nodes = [(meter.node if i % 2 else meter.async_node)(f"n{i}", limit="db") for i in range(20)]
        nodes.append(Node.function(fails, limit="db", retry=RetryPolicy(3, backoff=0), fallback=1))
        return linked(nodes)

    executor = Executor(limits={"db": 2, "function": 5})
    workflow = made()
    runs: list[Run] = []
    for i in range(30):
        run = executor.start(workflow)
        if i % 3 == 0:
            run.cancel()
        runs.append(run)
    for run in runs:
        assert run.wait(PATIENCE).state() in ("Completed", "Cancelled")
    assert meter.most <= 2
    until(lambda: executor.get_stats()["limits"]["db"]["in_use"] == 0)
    stats = executor.get_stats()["limits"]
    assert (stats["db"]["waiting"], stats["function"]["waiting"], stats["function"]["in_use"]) == (0, 0, 0)


# --------------------------------------------------------------------------------------------------- nobody holds up others


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
def test_a_slow_function_does_not_hold_up_the_quick_ones_that_came_with_it(held: Held, way: str) -> None:
    """All the others have to be over before the slow one may end."""
    left = [63]
    lock = threading.Lock()

    def quick() -> None:
        with lock:
            left[0] -= 1
            if left[0] == 0:
                held.gate.set()

    for place in (0, 31, 63):
        left[0] = 63
        held.gate.clear()
        nodes = [Node.function(quick, name=f"n{i}") for i in range(63)]
        nodes.insert(place, Node.function(held, name="held"))
        made, executor = linked(nodes), Executor()
        if way == "execute":
            result = executor.execute(made)
        elif way == "start":
            result = executor.start(made).wait(PATIENCE)
        else:
            result = asyncio.run(executor.run_async(made))
        assert result.is_success(), result.errors
        assert left == [0]


def test_a_run_with_ten_thousand_pending_nodes_is_cancelled_at_once() -> None:
    nodes = (
        [Node.delay("hour", HOUR)]
        + [good(f"n{i}") for i in range(5_000)]
        + [Node.delay(f"d{i}", HOUR) for i in range(5_000)]
    )
    run = Executor().start(linked(nodes, [("hour", f"n{i}") for i in range(5_000)]))
    begin = time.monotonic()
    run.cancel()
    until(run.done)
    took = time.monotonic() - begin
    result = run.wait(PATIENCE)
    assert set(result.states.values()) == {"cancelled"}
    assert took < 1.0  # the figure of the benches is a hundredth of it; here other tests may be running


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "limits", [{"db": 0}, {"db": -1}, {"db": 1.5}, {"db": True}, {"db": None}, {"": 1}, {1: 1}, ["db"], "db", {"*": 1}]
)
def test_limits_that_make_no_sense_are_refused(limits: Any) -> None:
    with pytest.raises(ConfigurationError):
        Executor(limits=limits)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "4"])
def test_a_max_concurrency_that_makes_no_sense_is_refused(most: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_concurrency"):
        Executor(max_concurrency=most)


def test_there_may_be_so_many_limits_and_no_more() -> None:
    Executor(limits={f"l{i}": 1 for i in range(32)})
    with pytest.raises(ConfigurationError, match="32"):
        Executor(limits={f"l{i}": 1 for i in range(33)})


def test_a_limit_that_the_executor_does_not_have_is_named_before_anything_starts() -> None:
    made = linked([good("a"), good("b", limit="database")])
    with pytest.raises(ConfigurationError, match="'b' needs the limit 'database'.*did you mean 'databases'"):
        Executor(limits={"databases": 1}).execute(made)
    with pytest.raises(ConfigurationError, match="'b' needs the limit 'database'"):
        Executor().execute(made)
    inner = linked([Node.workflow("outer", made)])
    with pytest.raises(ConfigurationError, match="'b' needs the limit 'database'"):
        Executor().execute(inner)


def test_a_limit_for_composites_is_refused() -> None:
    for kind in ("map", "workflow", "loop"):
        with pytest.raises(ConfigurationError, match=kind):
            Executor(limits={kind: 2})
