"""What a running function can know and say of itself: `graphbit.current()`; and context variables, each node's own."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from typing import Any

import pytest
from flows import PATIENCE, WAYS, good, linked, opened, run_by, until

import graphbit
from graphbit import Executor, Node, NodeContext, RetryPolicy
from graphbit.runtime import stats
from graphbit.testing import virtual_time

# --------------------------------------------------------------------------------------------------------- where it stands


def test_outside_of_a_node_there_is_no_current() -> None:
    with pytest.raises(RuntimeError, match="inside of a node's function only"):
        graphbit.current()
    Executor().execute(linked([Node.function(graphbit.current, name="n")])).raise_for_failure()
    with pytest.raises(RuntimeError):
        graphbit.current()


@WAYS
def test_a_function_knows_its_node_and_its_run(way: str) -> None:
    def look() -> tuple[str, Any, int]:
        here = graphbit.current()
        return here.node, here.run, here.attempt

    async def looks_later() -> tuple[str, Any, int]:
        before = graphbit.current()
        await asyncio.sleep(0)
        here = graphbit.current()
        assert (before.node, before.run) == (here.node, here.run)
        return here.node, here.run, here.attempt

    nodes = [Node.function(look, name=f"n{i}") for i in range(5)] + [
        Node.function(looks_later, name=f"a{i}") for i in range(5)
    ]
    edges = [("n0", "n1"), ("n1", "n2"), ("n2", "a0"), ("a0", "a1"), ("a1", "n3")]
    result = run_by(way, linked(nodes, edges))
    assert result.is_success(), result.errors
    assert {name: it[0] for name, it in result.outputs.items()} == {name: name for name in result.outputs}
    assert len({id(it[1]) for it in result.outputs.values()}) == 1
    assert {it[2] for it in result.outputs.values()} == {1}


def test_every_kind_of_function_has_a_current() -> None:
    seen: dict[str, NodeContext] = {}

    def note(name: str, value: Any = None) -> Any:
        seen[name] = graphbit.current()
        return value

    def fails() -> None:
        raise LookupError

    nodes = [
        Node.condition("condition", lambda: note("condition", ["next"])), good("next"),
        Node.map("map", "items", lambda item: note("item", item)), Node.map("map of node", "items", Node.function(lambda item: note("body"), name="body")),
        Node.loop("loop", lambda previous: note("loop"), lambda _: note("until", True), 3),
        Node.function(lambda: note("timed"), name="timed", timeout=PATIENCE),
        Node.function(fails, fallback=lambda _: note("fallback")),
        Node.function(lambda: note("cached"), name="cached", cache=True),
    ]  # fmt: skip
    made = linked(nodes, [("condition", "next")])
    made.connect("next", "timed", when=lambda _: note("when", True))
    Executor().execute(made, {"items": [1]}).raise_for_failure()
    names = {name: it.node for name, it in seen.items()}
    assert names == {
        "condition": "condition", "item": "map[0]", "body": "body", "loop": "loop", "until": "loop", "timed": "timed",
        "fallback": "fails (fallback)", "cached": "cached", "when": "next -> timed",
    }  # fmt: skip
    for it in seen.values():
        assert it.attempt == 1
        assert (it.deadline is None) == (it.node != "timed")
        repr(it)


def test_attempts_are_counted() -> None:
    seen: list[int] = []

    def flaky() -> None:
        seen.append(graphbit.current().attempt)
        if len(seen) < 4:
            raise LookupError

    for options in ({}, {"timeout": PATIENCE}):
        seen.clear()
        Executor().execute(
            linked([Node.function(flaky, retry=RetryPolicy(4, backoff=0), **options)])
        ).raise_for_failure()  # type: ignore[arg-type]
        assert seen == [1, 2, 3, 4]


def test_a_thread_of_ones_own_has_no_current_unless_it_is_given_one() -> None:
    found: list[Any] = []

    def work() -> None:
        here = graphbit.current()

        def inner() -> None:
            try:
                graphbit.current()
            except RuntimeError as error:
                found.append(error)
            found.append(here.node)
            here.log("from a thread")

        thread = threading.Thread(target=inner)
        thread.start()
        thread.join(PATIENCE)

    Executor().execute(linked([Node.function(work)])).raise_for_failure()
    assert isinstance(found[0], RuntimeError)
    assert found[1] == "work"


def test_a_context_may_be_kept_longer_than_its_run() -> None:
    kept: list[NodeContext] = []
    result = Executor().execute(linked([Node.function(lambda: kept.append(graphbit.current()), name="n")]))
    here = kept[0]
    assert here.node == "n"
    assert here.attempt == 1
    assert here.cancelled  # nobody waits for it any more
    assert here.outcomes == {}
    here.log("late")
    here.emit("late")
    here.progress(1.0)
    assert result.is_success()


def test_a_run_inside_of_a_node_has_a_current_of_its_own_and_then_it_is_the_outer_one_again() -> None:
    inner = linked([Node.function(lambda: graphbit.current().node, name="inner")])

    def outer() -> tuple[str, str, str]:
        before = graphbit.current().node
        between = Executor().execute(inner)["inner"]
        return before, between, graphbit.current().node

    async def outer_async() -> tuple[str, str, str]:
        before = graphbit.current().node
        between = (await Executor().run_async(inner))["inner"]
        return before, between, graphbit.current().node

    result = Executor().execute(linked([Node.function(outer), Node.function(outer_async)])).raise_for_failure()
    assert result["outer"] == ("outer", "inner", "outer")
    assert result["outer_async"] == ("outer_async", "inner", "outer_async")


def test_an_item_of_a_map_knows_the_run_that_it_is_part_of() -> None:
    made = linked(
        [
            Node.map("m", "items", lambda item: graphbit.current().run, 1),
            Node.function(lambda: graphbit.current().run, name="n"),
        ]
    )
    result = Executor().execute(made, {"items": [1, 2]}).raise_for_failure()
    assert result["m"] == [result["n"]] * 2


@pytest.mark.parametrize("kind", ["function", "item", "nested"])
def test_a_node_may_cancel_the_run_that_it_is_part_of(kind: str) -> None:
    def stop(item: Any = None) -> None:
        graphbit.current().run.cancel()

    node = {
        "function": Node.function(stop),
        "item": Node.map("m", "items", stop),
        "nested": Node.workflow("n", linked([Node.function(stop)])),
    }[kind]
    result = Executor().execute(linked([node]), {"items": [1]} if kind == "item" else None)
    if kind == "nested":  # the inner run was cancelled; to the outer one that is a failure of its node
        assert isinstance(result.errors["n"], graphbit.RunCancelledError)
    else:
        assert result.state() == "Cancelled"


# --------------------------------------------------------------------------------------------------------------- deadline


def test_the_deadline_is_what_is_left_to_the_run() -> None:
    with virtual_time():
        nodes = [Node.delay("pause", 40), Node.function(lambda: graphbit.current().deadline, name="n")]
        result = Executor(timeout_seconds=100).execute(linked(nodes, [("pause", "n")])).raise_for_failure()
        assert result["n"] == 60


def test_the_deadline_is_what_is_left_to_the_attempt_if_that_is_less() -> None:
    def look() -> float | None:
        return graphbit.current().deadline

    with virtual_time():
        nodes = [
            Node.delay("pause", 40), Node.function(look, name="less", timeout=10), Node.function(look, name="more", timeout=1000),
        ]  # fmt: skip
        result = (
            Executor(timeout_seconds=100)
            .execute(linked(nodes, [("pause", "less"), ("pause", "more")]))
            .raise_for_failure()
        )
        assert (result["less"], result["more"]) == (10, 60)
        assert Executor().execute(linked([Node.function(look, timeout=10)]))["look"] == 10
        assert Executor().execute(linked([Node.function(look)]))["look"] is None


def test_a_deadline_reaches_into_nested_runs() -> None:
    def look(item: Any = None) -> float | None:
        return graphbit.current().deadline

    inner = linked([Node.delay("pause", 10), Node.function(look)], [("pause", "look")])
    with virtual_time():
        nodes = [
            Node.workflow("nested", inner, timeout=50), Node.map("map", "items", look, timeout=30),
            Node.map("nodes", "items", Node.function(look)), Node.loop("loop", lambda previous: look(), lambda _: True, 1),
        ]  # fmt: skip
        result = Executor(timeout_seconds=100).execute(linked(nodes), {"items": [1]}).raise_for_failure()
    assert result.outputs == {"nested": 40, "map": [30], "nodes": [100], "loop": 100}


def test_an_expired_deadline_is_zero() -> None:
    gate, inside = threading.Event(), threading.Event()
    found: list[float | None] = []

    def work() -> None:
        here = graphbit.current()
        inside.set()
        opened(gate)
        found.append(here.deadline)

    Executor().execute(linked([Node.function(work, timeout=0.05, fallback=None)])).raise_for_failure()
    gate.set()
    until(lambda: bool(found))
    assert found == [0.0]
    until(lambda: stats()["callback_threads_abandoned"] == 0)


# -------------------------------------------------------------------------------------------------------------- cancelled


@pytest.mark.parametrize("kind", ["function", "map", "nested", "loop", "timed", "fallback"])
def test_a_function_sees_that_its_run_was_cancelled(kind: str) -> None:
    inside = threading.Event()
    seen: list[bool] = []

    def work(item: Any = None) -> None:
        here = graphbit.current()
        seen.append(here.cancelled)
        inside.set()
        until(lambda: here.cancelled)
        seen.append(here.cancelled)

    def fails() -> None:
        raise LookupError

    node = {
        "function": Node.function(work), "map": Node.map("m", "items", work, 1),
        "nested": Node.workflow("n", linked([Node.workflow("n", linked([Node.function(work)]))])),
        "loop": Node.loop("l", lambda previous: work(), lambda _: True, 5), "timed": Node.function(work, timeout=1000),
        "fallback": Node.function(fails, fallback=lambda _: work()),
    }[kind]  # fmt: skip
    run = Executor().start(linked([node]), {"items": [1, 2]} if kind == "map" else None)
    opened(inside)
    run.cancel()
    assert run.wait(PATIENCE).state() == "Cancelled"
    until(lambda: len(seen) == 2)
    assert seen == [False, True]
    until(lambda: stats()["callback_threads_abandoned"] == 0)


def test_a_function_whose_time_is_up_sees_it() -> None:
    seen: list[bool] = []

    def work() -> None:
        here = graphbit.current()
        until(lambda: here.cancelled)
        seen.append(True)

    result = Executor().execute(linked([Node.function(work, timeout=0.05, fallback="late")]))
    assert result["work"] == "late"
    until(lambda: seen == [True])
    until(lambda: stats()["callback_threads_abandoned"] == 0)


@WAYS
def test_in_a_chain_no_node_is_cancelled_and_each_sees_the_one_before_it(way: str) -> None:
    def look() -> tuple[bool, dict[str, str]]:
        here = graphbit.current()
        return here.cancelled, {name: it.state for name, it in here.outcomes.items()}

    nodes = [Node.function(look, name=f"n{i}") for i in range(20)]
    result = run_by(way, linked(nodes, [(f"n{i}", f"n{i + 1}") for i in range(19)]))
    for i in range(20):
        assert result[f"n{i}"] == (False, {f"n{i - 1}": "succeeded"} if i else {})


# --------------------------------------------------------------------------------------------- what it says: logs and more


def test_what_a_node_logs_goes_to_the_log_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        graphbit.current().log("three pages")
        graphbit.current().progress(0.5, "half of it")

    with caplog.at_level(logging.DEBUG, logger="graphbit"):
        Executor().execute(linked([Node.function(work)])).raise_for_failure()
    assert "node 'work': three pages" in caplog.text
    assert "node 'work': 50 % half of it" in caplog.text


def test_what_a_node_emits_goes_to_the_stream_also_from_items_and_nested_runs() -> None:
    def emit(item: Any = 0) -> None:
        graphbit.current().emit({"item": item})

    inner = linked([Node.function(emit)])
    made = linked([Node.function(emit, name="plain"), Node.map("m", "items", emit, 1), Node.workflow("n", inner)])
    values: dict[str, list[Any]] = {}
    for event in Executor().execute_streaming(made, {"items": [1, 2]}):
        if event["event"] == "value":
            values.setdefault(event["node_name"], []).append(event["value"])
    assert values == {"plain": [{"item": 0}], "m": [{"item": 1}, {"item": 2}], "n": [{"item": 0}]}


# -------------------------------------------------------------------------------------------------------- context variables

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


@WAYS
def test_context_variables_flow_into_nodes_and_what_nodes_set_is_their_own(way: str) -> None:
    def work() -> str:
        found = VARIABLE.get()
        VARIABLE.set("set by a node")
        return found

    async def later() -> tuple[str, str]:
        found = VARIABLE.get()
        VARIABLE.set("set by an async node")
        await asyncio.sleep(0)
        return found, VARIABLE.get()

    nodes = [Node.function(work, name=f"n{i}") for i in range(10)] + [
        Node.function(later, name=f"a{i}") for i in range(10)
    ]
    edges = [(f"n{i}", f"n{i + 1}") for i in range(4)] + [(f"a{i}", f"a{i + 1}") for i in range(4)] + [("n4", "a0")]
    token = VARIABLE.set("of the caller")
    try:
        result = run_by(way, linked(nodes, edges))
        assert VARIABLE.get() == "of the caller"
    finally:
        VARIABLE.reset(token)
    for i in range(10):
        assert result[f"n{i}"] == "of the caller"
        assert result[f"a{i}"] == ("of the caller", "set by an async node")


def test_every_kind_of_function_sees_the_callers_variables_and_keeps_its_own() -> None:
    seen: dict[str, list[str]] = {}

    def note(name: str, value: Any = None) -> Any:
        seen.setdefault(name, []).append(VARIABLE.get())
        VARIABLE.set(name)
        return value

    async def item_later(item: int) -> None:
        note("async item")
        await asyncio.sleep(0)

    def fails() -> None:
        note("attempt")
        raise LookupError

    nodes = [
        Node.map("m", "items", lambda item: note("item")), Node.map("m2", "items", item_later),
        Node.map("m3", "items", Node.function(lambda item: note("node of item"), name="body")),
        Node.workflow("nested", linked([Node.function(lambda: note("nested"), name="x")])),
        Node.condition("route", lambda: note("condition", [])), Node.function(lambda: note("timed"), name="timed", timeout=PATIENCE),
        Node.function(fails, retry=RetryPolicy(3, backoff=0), fallback=lambda _: note("fallback")),
        good("a"), good("b"),
    ]  # fmt: skip
    made = linked(nodes)
    made.connect("a", "b", when=lambda _: note("when", True))
    token = VARIABLE.set("of the caller")
    try:
        Executor().execute(made, {"items": [1, 2, 3]}).raise_for_failure()
    finally:
        VARIABLE.reset(token)
    for name, values in seen.items():
        assert set(values) == {"of the caller"}, (name, values)
    assert {name: len(values) for name, values in seen.items()} == {
        "item": 3, "async item": 3, "node of item": 3, "nested": 1, "condition": 1, "timed": 1, "attempt": 3, "fallback": 1, "when": 1,
    }  # fmt: skip


def test_runs_that_are_started_with_other_variables_do_not_mix() -> None:
    made = linked(
        [
            Node.function(lambda: VARIABLE.get(), name="n"),
            Node.delay("d", 0.001),
            Node.function(lambda: VARIABLE.get(), name="late"),
        ],
        [("d", "late")],
    )
    executor = Executor()

    def begin(i: int) -> Any:
        VARIABLE.set(str(i))
        return executor.start(made)

    runs = [contextvars.copy_context().run(begin, i) for i in range(50)]
    for i, run in enumerate(runs):
        result = run.wait(PATIENCE)
        assert (result["n"], result["late"]) == (str(i), str(i))


def test_many_runs_at_once_each_see_their_own_context_on_a_loop() -> None:
    async def look() -> str:
        await asyncio.sleep(0)
        return VARIABLE.get()

    made = linked([Node.function(look), Node.function(lambda: VARIABLE.get(), name="plain")])

    async def one(i: int) -> None:
        VARIABLE.set(str(i))
        result = await Executor().run_async(made)
        assert result.outputs == {"look": str(i), "plain": str(i)}

    async def main() -> None:
        await asyncio.gather(*(one(i) for i in range(50)))

    asyncio.run(main())


def test_variables_hold_nothing_alive_when_the_run_is_gone() -> None:
    import gc
    import weakref

    class Payload:
        pass

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("payload")
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()

    def work() -> None:
        it = Payload()
        alive.add(it)
        variable.set(it)

    async def later() -> None:
        work()
        await asyncio.sleep(0)

    result = Executor().execute(linked([Node.function(work), Node.function(later)]))
    assert result.is_success()
    del result
    until(lambda: gc.collect() >= 0 and not alive)
