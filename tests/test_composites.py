"""Nodes that start runs of their own: `workflow`, `loop`, and one workflow run many times."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from flows import HOUR, PATIENCE, Held, double_later, good, linked, opened, run_by, until

from graphbit import (
    ConfigurationError,
    CycleError,
    Executor,
    InputError,
    Node,
    RetryPolicy,
    UnknownNameError,
    Workflow,
    WorkflowError,
)
from graphbit.runtime import stats
from graphbit.testing import virtual_time

# -------------------------------------------------------------------------------------------------------------- workflow


def test_a_workflow_is_a_node_and_gets_inputs_of_the_same_name() -> None:
    inner = linked([Node.function(lambda topic, outline: f"{topic}/{outline}", name="text")])
    nodes = [good("outline"), Node.workflow("report", inner), Node.transform("end", "<{report}>")]
    result = Executor().execute(linked(nodes), {"topic": "bees"}).raise_for_failure()
    assert result["end"] == "<bees/outline>"
    assert set(result.states) == {"outline", "report", "end"}


def test_inputs_may_be_named_otherwise_and_be_parts() -> None:
    inner = linked([Node.function(lambda topic, n: (topic, n), name="text")])
    nodes = [
        Node.function(lambda: {"a": [5]}, name="given"),
        Node.workflow("report", inner, {"topic": "subject", "n": "given.a.0"}),
    ]
    assert Executor().execute(linked(nodes), {"subject": "bees"})["report"] == ("bees", 5)
    given = nodes[0]
    other = Node.workflow("report", inner, {"topic": given, "n": given})
    assert Executor().execute(linked([given, other]))["report"] == ({"a": [5]}, {"a": [5]})


def test_a_workflow_brings_its_last_node_or_all_of_them_or_the_one_that_is_named() -> None:
    one = linked([good("a"), Node.function(lambda a: a + "!", name="b")])
    several = linked([good("a"), good("b"), *[Node.condition("route", lambda a: [])], good("c")], [("route", "c")])
    nodes = [Node.workflow("one", one), Node.workflow("named", one, output="a"), Node.workflow("several", several)]
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert result["one"] == "a!"
    assert result["named"] == "a"
    assert result["several"] == {"b": "b"}  # "c" was skipped
    skipped = Node.workflow("skipped", several, output="c")
    assert Executor().execute(linked([skipped]))["skipped"] is None


def test_a_workflow_that_fails_fails_its_node_with_the_error_itself() -> None:
    error = LookupError("mine")

    def fails() -> None:
        raise error

    deep = linked([Node.function(fails)])
    for depth in range(5):
        deep = linked([Node.workflow(f"level{depth}", deep)])
    result = Executor().execute(deep)
    assert result.errors["level4"] is error
    notes = "".join(getattr(error, "__notes__", []))
    assert "'fails'" in notes and "'level4'" in notes


def test_a_failure_that_the_inner_workflow_handles_is_none() -> None:
    def fails() -> None:
        raise LookupError

    inner = linked([Node.function(fails), Node.function(lambda fails: fails, name="last", join="all_done")])
    result = Executor().execute(linked([Node.workflow("inner", inner)]))
    assert result.is_success()
    assert result["inner"] is None


def test_the_same_workflow_may_be_several_nodes_and_be_run_alone() -> None:
    inner = linked([Node.function(lambda x: x + 1, name="n")])
    nodes = [
        Node.workflow("first", inner),
        Node.workflow("second", inner, {"x": "first"}),
        Node.workflow("third", inner, {"x": "second"}),
    ]
    assert Executor().execute(linked(nodes), {"x": 1})["third"] == 4
    assert Executor().execute(inner, {"x": 1})["n"] == 2


def test_workflows_nest_a_hundred_deep() -> None:
    made = linked([Node.function(lambda x: x, name="innermost")])
    for depth in range(100):
        made = linked([Node.workflow(f"level{depth}", made)])
    for way in ("execute", "run_async"):
        assert run_by(way, made, {"x": 5})["level99"] == 5


def test_a_run_that_is_cancelled_cancels_a_hundred_levels() -> None:
    made = linked([Node.delay("innermost", HOUR)])
    for depth in range(100):
        made = linked([Node.workflow(f"level{depth}", made)])
    run = Executor().start(made)
    until(lambda: stats()["runs_active"] == 101)
    run.cancel()
    assert run.wait(PATIENCE).states == {"level99": "cancelled"}
    until(lambda: stats()["runs_active"] == 0)


def test_many_nested_workflows_run_at_once() -> None:
    inner = linked([Node.delay("pause", 10), good("text")], [("pause", "text")])
    with virtual_time() as clock:
        result = Executor().execute(linked([Node.workflow(f"n{i}", inner) for i in range(200)]))
        assert clock.now() == 10
    assert result.outputs == {f"n{i}": "text" for i in range(200)}


def test_a_nested_workflow_with_async_nodes_runs_on_the_loop_that_awaits() -> None:
    seen: list[asyncio.AbstractEventLoop] = []

    async def look() -> None:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())

    inner = linked([Node.workflow("inner", linked([Node.function(look)]))])

    async def main() -> None:
        (await Executor().run_async(inner)).raise_for_failure()
        assert seen == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_on_error_is_that_of_the_executor() -> None:
    ran: list[str] = []

    def fails() -> None:
        raise LookupError

    inner = linked(
        [Node.function(fails), Node.delay("pause", 5), Node.function(lambda: ran.append("other"), name="other")],
        [("pause", "other")],
    )
    with virtual_time():
        Executor(on_error="continue").execute(linked([Node.workflow("inner", inner)])).is_success()
        assert ran == ["other"]
        Executor().execute(linked([Node.workflow("inner", inner)])).is_success()
        assert ran == ["other"]


# ------------------------------------------------------------------------------------------------------------------ loop


LOOP_BODIES: dict[str, Callable[[], Any]] = {
    "callable": lambda: lambda previous: previous + 1,
    "async": lambda: later_plus_one,
    "node": lambda: Node.function(lambda previous: previous + 1, name="n"),
    "workflow": lambda: linked([Node.function(lambda previous: previous, name="a"), Node.function(lambda a: a + 1, name="b")]),
}  # fmt: skip


async def later_plus_one(previous: int) -> int:
    await asyncio.sleep(0)
    return previous + 1


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
@pytest.mark.parametrize("body", list(LOOP_BODIES))
def test_a_loop_repeats_until_it_is_good_and_says_so(body: str, way: str) -> None:
    made = linked(
        [
            Node.loop("l", LOOP_BODIES[body](), lambda it: it >= 5, 100, initial="start"),
            Node.function(lambda value: value, name="after", bind={"value": "l"}),
        ]
    )
    result = run_by(way, made, {"start": 0})
    assert result.is_success(), result.errors
    assert result["l"] == result["after"] == 5
    assert (result.nodes["l"].stopped, result.nodes["l"].iterations) == ("until", 5)
    assert (result.nodes["after"].stopped, result.nodes["after"].iterations) == (None, None)


@pytest.mark.parametrize("body", list(LOOP_BODIES))
def test_a_loop_ends_after_so_many_iterations_and_says_so(body: str) -> None:
    made = linked([Node.loop("l", LOOP_BODIES[body](), ("", ">", 100), 7, initial="start")])
    result = Executor().execute(made, {"start": 0}).raise_for_failure()
    assert result["l"] == 7
    assert (result.nodes["l"].stopped, result.nodes["l"].iterations) == ("max_iterations", 7)


def test_until_counts_where_both_would_end_the_loop() -> None:
    result = Executor().execute(linked([Node.loop("l", lambda previous: 1, ("", 1), 1)]))
    assert result.nodes["l"].stopped == "until"


def test_without_an_initial_value_the_first_iteration_gets_none() -> None:
    seen: list[Any] = []
    Executor().execute(linked([Node.loop("l", lambda previous: (seen.append(previous), 1)[1], lambda _: False, 2)]))
    assert seen == [None, 1]


def test_a_loops_node_sees_previous_iteration_and_names_outside() -> None:
    body = Node.transform("body", "{previous}{iteration}{x}")
    made = linked([good("start"), Node.loop("l", body, lambda _: False, 3, initial="start")])
    assert Executor().execute(made, {"x": "-"})["l"] == "start0-1-2-"


def test_a_loop_may_begin_with_a_part_and_take_other_values() -> None:
    made = linked(
        [
            Node.loop(
                "l",
                lambda previous, step, by=1: previous + step * by,
                ("", ">=", 10),
                50,
                initial="given.at",
                bind={"step": "given.step"},
            )
        ]
    )
    result = Executor().execute(made, {"given": {"at": 4, "step": 3}})
    assert result["l"] == 10
    assert result.nodes["l"].iterations == 2


def test_a_loop_whose_body_or_until_fails_fails_with_that() -> None:
    for body, ends in ((lambda previous: 1 / 0, lambda _: True), (lambda previous: 1, lambda _: 1 / 0)):
        result = Executor().execute(linked([Node.loop("l", body, ends, 3)]))
        assert isinstance(result.errors["l"], ZeroDivisionError)
        assert (result.nodes["l"].stopped, result.nodes["l"].iterations) == (None, None)


def test_a_loop_that_is_cancelled_stops_in_the_middle(held: Held) -> None:
    for body in (Node.function(held, name="n", bind={"item": "previous"}), held):
        held.inside.clear(), held.gate.clear(), held.over.clear()
        run = Executor().start(linked([Node.loop("l", body, lambda _: False, 1000)]))
        opened(held.inside)
        run.cancel()
        assert run.wait(PATIENCE).states == {"l": "cancelled"}
        held.gate.set()
        opened(held.over)
        until(lambda: stats()["runs_active"] == 0)


def test_a_loop_of_functions_that_is_cancelled_does_not_go_on() -> None:
    entered = threading.Event()
    gate = threading.Event()
    count = [0]

    def body(previous: Any) -> int:
        count[0] += 1
        entered.set()
        opened(gate)
        return 1

    run = Executor().start(linked([Node.loop("l", body, lambda _: False, 1_000_000)]))
    opened(entered)
    run.cancel()
    assert run.wait(PATIENCE).state() == "Cancelled"
    gate.set()
    until(lambda: stats()["callback_threads_abandoned"] == 0)
    assert count == [1]


def test_ten_thousand_iterations_of_a_node_keep_no_memory_and_no_depth() -> None:
    made = linked(
        [Node.loop("l", Node.function(lambda previous: previous + 1, name="n"), lambda _: False, 3000, initial="x")]
    )
    assert Executor().execute(made, {"x": 0})["l"] == 3000


def test_a_loop_is_tried_again_from_its_beginning() -> None:
    seen: list[Any] = []

    def body(previous: int) -> int:
        seen.append(previous)
        if len(seen) == 3:
            raise LookupError
        return previous + 1

    made = linked([Node.loop("l", body, lambda _: False, 3, initial="x", retry=RetryPolicy(2, backoff=0))])
    assert Executor().execute(made, {"x": 0})["l"] == 3
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_loop_that_stands_in_says_why_it_stopped() -> None:
    loop = Node.loop("instead", lambda previous: 1, lambda _: True, 3)
    result = Executor().execute(linked([Node.loop("l", lambda previous: 1 / 0, lambda _: True, 3, fallback=loop)]))
    assert result["l"] == 1
    assert result.nodes["l"].fallback


def test_composites_hold_no_thread_while_they_wait() -> None:
    inner = linked([Node.delay("hour", HOUR)])
    nodes = [Node.workflow(f"w{i}", inner) for i in range(100)]
    nodes += [Node.loop(f"l{i}", inner, lambda _: False, 2) for i in range(100)]
    run = Executor().start(linked(nodes))
    until(lambda: set(run.states().values()) == {"waiting"})
    assert stats()["callback_threads"] - stats()["callback_threads_parked"] <= 1
    run.cancel()
    assert set(run.wait(PATIENCE).states.values()) == {"cancelled"}


# ------------------------------------------------------------------------------------------------------------- many runs


def many(way: str, executor: Executor, made: Workflow, inputs: Any, limit: int | None = None) -> list[Any]:
    if way == "sync":
        return executor.execute_many(made, inputs, limit)
    return asyncio.run(executor.run_many_async(made, inputs, limit))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_one_workflow_runs_many_times_and_results_stand_in_order(way: str) -> None:
    made = linked(
        [
            Node.function(lambda x: x + 1, name="n"),
            Node.transform("t", "{n}"),
            Node.function(double_later, "d", {"item": "x"}),
        ]
    )
    results = many(way, Executor(), made, [{"x": i} for i in range(500)])
    assert [it["n"] for it in results] == list(range(1, 501))
    assert [it["t"] for it in results] == [str(i) for i in range(1, 501)]
    assert [it["d"] for it in results] == [2 * i for i in range(500)]


@pytest.mark.parametrize("way", ["sync", "async"])
def test_runs_that_fail_are_among_the_results(way: str, caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor()
    made = linked([Node.function(lambda x: 1 / x, name="n")])
    results = many(way, executor, made, [{"x": i % 2} for i in range(10)])
    assert [it.is_success() for it in results] == [False, True] * 5
    assert isinstance(results[0].errors["n"], ZeroDivisionError)
    counted = executor.get_stats()
    assert (counted["successful_executions"], counted["failed_executions"]) == (5, 5)
    del results
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_failed_run_that_nobody_looks_at_is_logged(way: str, caplog: pytest.LogCaptureFixture) -> None:
    made = linked([Node.function(lambda x: 1 / x, name="n")])
    results = many(way, Executor(), made, [{"x": 0}, {"x": 1}])
    del results
    until(lambda: gc.collect() >= 0 and len(caplog.records) == 1)
    assert "nobody looked" in caplog.text


@pytest.mark.parametrize("way", ["sync", "async"])
def test_no_more_runs_than_the_limit_are_on_their_way(way: str) -> None:
    made = linked([Node.delay("pause", 10)])
    with virtual_time() as clock:
        many(way, Executor(), made, [{}] * 12, 3)
        assert clock.now() == 40
        many(way, Executor(), made, [{}] * 12)
        assert clock.now() == 50


def test_each_of_many_runs_has_its_own_time() -> None:
    with virtual_time() as clock:
        made = linked([Node.delay("pause", 10)])
        results = Executor(timeout_seconds=15).execute_many(made, [{}] * 4, 1)
        assert clock.now() == 40
        assert all(it.is_success() for it in results)
        results = Executor(timeout_seconds=5).execute_many(made, [{}] * 4, 1)
        assert [it.state() for it in results] == ["TimedOut"] * 4


def test_no_runs_are_no_results() -> None:
    assert Executor().execute_many(linked([good("a")]), []) == []
    assert asyncio.run(Executor().run_many_async(linked([good("a")]), [])) == []


def test_inputs_are_checked_before_anything_starts() -> None:
    ran: list[Any] = []
    made = linked([Node.function(lambda x: ran.append(x), name="n")])
    for inputs in ([{"x": 1}, {"y": 1}], [{"x": 1}, {}], [{"x": 1}, 5]):
        with pytest.raises(InputError):
            Executor().execute_many(made, inputs)  # type: ignore[arg-type]
    for bad in (5, {"x": 1}, "text", None):
        with pytest.raises(InputError):
            Executor().execute_many(made, bad)  # type: ignore[arg-type]
    for limit in (0, -1, 1.5, True):
        with pytest.raises(ConfigurationError, match="limit"):
            Executor().execute_many(made, [{"x": 1}], limit)  # type: ignore[arg-type]
    assert ran == []


def test_ctrl_c_in_one_of_many_runs_ends_all_of_them() -> None:
    ran: list[int] = []

    def stop(x: int) -> None:
        ran.append(x)
        if x == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Executor().execute_many(linked([Node.function(stop)]), [{"x": i} for i in range(1000)], 1)
    assert ran == [0, 1, 2, 3]
    until(lambda: stats()["runs_active"] == 0)


def test_many_runs_that_asyncio_cancels_are_cancelled() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(Executor().run_many_async(linked([Node.delay("hour", HOUR)]), [{}] * 100))
        while stats().get("runs_active", 0) < 101:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: stats()["runs_active"] == 0)


# -------------------------------------------------------------------------------------------------------- what is kept


class Payload:
    pass


@pytest.mark.parametrize("body", ["callable", "async", "node", "workflow"])
def test_what_items_brought_goes_with_the_result(body: str) -> None:
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()

    def make(item: Any) -> Payload:
        it = Payload()
        alive.add(it)
        if item == 3:
            raise LookupError(it)
        return it

    async def awaits(item: Any) -> Payload:
        await asyncio.sleep(0)
        return make(item)

    made = {"callable": make, "async": awaits, "node": Node.function(make), "workflow": linked([Node.function(make)])}[
        body
    ]
    for on_error in ("fail", "collect"):
        workflow = linked([Node.map("m", "items", made, on_error=on_error)])  # type: ignore[arg-type]
        result = Executor().execute(workflow, {"items": [Payload(), 1, 2, 3]})
        result.is_success()
        assert alive
        del result
        until(lambda: gc.collect() >= 0 and not alive)


# -------------------------------------------------------------------------------------------------------------- bad input


def test_bodies_that_cannot_be_are_refused_with_the_node_named() -> None:
    makers: list[Callable[[Any], Node]] = [
        lambda body: Node.map("m", "items", body), lambda body: Node.loop("m", body, lambda _: True, 3),
    ]  # fmt: skip
    for make in makers:
        for body in (5, None, "text", [], lambda: 1, Workflow("empty")):
            with pytest.raises(ConfigurationError, match="'m'"):
                make(body)
        with pytest.raises(WorkflowError):
            make(str)  # does not say which parameters it has


def test_options_that_cannot_be_are_refused_with_the_node_named() -> None:
    def body(item: Any) -> Any:
        return item

    for limit in (0, -1, 1.5, True, "3", 1 << 31):
        with pytest.raises(ConfigurationError, match="'m'"):
            Node.map("m", "items", body, limit)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="on_error"):
        Node.map("m", "items", body, on_error="ignore")  # type: ignore[arg-type]
    for over in (5, None, "", ["items"]):
        with pytest.raises(InputError, match="over"):
            Node.map("m", over, body)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="itm"):
        Node.map("m", "items", body, bind={"itm": "x"})
    for most in (0, -1, 1.5, True, None):
        with pytest.raises(ConfigurationError, match="max_iterations"):
            Node.loop("m", body, lambda _: True, most)  # type: ignore[arg-type]
    for ends in (5, None, ("x", "~", 1), ()):
        with pytest.raises(ConfigurationError, match="until"):
            Node.loop("m", body, ends, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="initial"):
        Node.loop("m", body, lambda _: True, 3, initial=5)  # type: ignore[arg-type]


def test_an_async_until_is_refused() -> None:
    async def ends(_: Any) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="async"):
        Node.loop("m", lambda previous: 1, ends, 3)


def test_workflows_that_cannot_be_are_refused_with_the_node_named() -> None:
    inner = linked([Node.transform("text", "{topic}")])
    for workflow in (5, None, lambda: 1, good("a"), Workflow("empty")):
        with pytest.raises(ConfigurationError, match="'n'"):
            Node.workflow("n", workflow)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'topic'"):
        Node.workflow("n", inner, {"topik": "x"})
    with pytest.raises(UnknownNameError, match="did you mean 'text'"):
        Node.workflow("n", inner, output="txt")
    with pytest.raises(CycleError):
        Node.workflow("n", linked([good("a"), good("b")], [("a", "b"), ("b", "a")]))


def test_a_workflow_within_itself_is_refused() -> None:
    made = linked([good("a")])
    made.add(Node.workflow("again", made))
    with pytest.raises(WorkflowError, match="again"):
        Executor().execute(made)
    first, second = linked([good("a")]), linked([good("b")])
    first.add(Node.workflow("second", second))
    second.add(Node.workflow("first", first))
    with pytest.raises(WorkflowError):
        Executor().execute(first)


def test_a_workflow_that_is_changed_after_it_became_a_node_runs_as_it_is_or_says_what_is_missing() -> None:
    inner = linked([good("a")])
    outer = linked([Node.workflow("n", inner)])
    assert Executor().execute(outer)["n"] == "a"
    inner.add(Node.function(lambda a, new: (a, new), name="b"))
    try:
        result = Executor().execute(outer)
    except WorkflowError:
        return
    assert (result.is_failed() and isinstance(result.errors["n"], WorkflowError)) or result["n"] == "a"
