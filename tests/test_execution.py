"""Runs that succeed: order, counts, shapes, times, the ways to wait, and what a result tells."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flows import linked

from graphbit import Executor, Node, NodeNotRunError, RunCancelledError, RunTimeoutError, UnknownNameError, Workflow
from graphbit.runtime import stats
from graphbit.testing import virtual_time


class Recorder:
    """Makes function nodes that write down when they run."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def node(self, name: str, value: Any = None) -> Node:
        def function() -> Any:
            self.order.append(name)
            return name if value is None else value

        return Node.function(function, name=name)


# ---------------------------------------------------------------- order and counts


def test_nodes_run_in_the_order_of_their_edges() -> None:
    it = Recorder()
    result = Executor().execute(linked([it.node(name) for name in "dcba"], [("a", "b"), ("b", "c"), ("c", "d")]))
    assert it.order == ["a", "b", "c", "d"]
    assert result.outputs == {name: name for name in "abcd"}


def test_a_diamond_joins_once_after_both_sides() -> None:
    it = Recorder()
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    Executor().execute(linked([it.node(name) for name in "abcd"], edges)).raise_for_failure()
    assert it.order[0] == "a"
    assert it.order[3] == "d"
    assert sorted(it.order) == ["a", "b", "c", "d"]


def test_fan_out_and_fan_in() -> None:
    number = 500
    it = Recorder()
    middle = [it.node(f"m{i}") for i in range(number)]
    edges = [("first", f"m{i}") for i in range(number)] + [(f"m{i}", "last") for i in range(number)]
    Executor().execute(linked([it.node("first"), *middle, it.node("last")], edges)).raise_for_failure()
    assert (it.order[0], it.order[-1]) == ("first", "last")
    assert Counter(it.order) == Counter(["first", "last", *[f"m{i}" for i in range(number)]])


def test_a_long_chain_hands_a_value_on() -> None:
    number = 5_000
    made = Workflow("chain")
    made.add(Node.function(lambda x: x, name="n0"))
    for i in range(1, number):
        made.add(Node.function(lambda x: x + 1, name=f"n{i}", bind={"x": f"n{i - 1}"}))
    assert Executor().execute(made, {"x": 0})[f"n{number - 1}"] == number - 1


def test_a_wide_graph_runs_each_node_exactly_once() -> None:
    number = 5_000
    counts = [0] * number

    def at(i: int) -> Callable[[], int]:
        def function() -> int:
            counts[i] += 1
            return i

        return function

    made = Workflow("wide")
    made.add(*[Node.function(at(i), name=f"n{i}") for i in range(number)])
    result = Executor().execute(made).raise_for_failure()
    assert counts == [1] * number
    assert [result[f"n{i}"] for i in range(number)] == list(range(number))


def test_a_grid_where_every_node_joins_two() -> None:
    side = 40
    made = Workflow("grid")
    for row in range(side):
        for column in range(side):
            bind = {}
            if row:
                bind["up"] = f"{row - 1} {column}"
            if column:
                bind["left"] = f"{row} {column - 1}"
            made.add(Node.function(lambda up=0, left=0: up + left or 1, name=f"{row} {column}", bind=bind))
    paths: list[list[int]] = [[1] * side for _ in range(side)]
    for row in range(1, side):
        for column in range(1, side):
            paths[row][column] = paths[row - 1][column] + paths[row][column - 1]
    assert Executor().execute(made)[f"{side - 1} {side - 1}"] == paths[-1][-1]


def test_layers_where_every_node_waits_for_all_of_the_layer_before() -> None:
    it = Recorder()
    layers, width = 10, 20
    nodes = [it.node(f"{layer}.{i}") for layer in range(layers) for i in range(width)]
    edges = [(f"{k}.{i}", f"{k + 1}.{j}") for k in range(layers - 1) for i in range(width) for j in range(width)]
    Executor().execute(linked(nodes, edges)).raise_for_failure()
    assert [int(name.split(".")[0]) for name in it.order] == sorted(int(node.name().split(".")[0]) for node in nodes)
    assert len(it.order) == layers * width


def test_the_order_in_which_nodes_were_added_says_nothing() -> None:
    made = Workflow("w")
    made.add(*[Node.function(lambda x: x + 1, name=f"n{i}", bind={"x": f"n{i - 1}"}) for i in range(50, 0, -1)])
    made.add(Node.function(lambda: 0, name="n0"))
    assert Executor().execute(made)["n50"] == 50


async def double(x: int) -> int:
    await asyncio.sleep(0)
    return x * 2


def mixed() -> Workflow:
    """All kinds of nodes that need no server."""
    made = Workflow("mixed", inputs=["x"])
    made.add(
        Node.function(double),
        Node.transform("text", "{double}!"),
        Node.delay("pause", 0.001),
        Node.function(lambda pause: pause + "?", "after"),
        Node.condition("route", lambda after: "left" if after == "8!?" else "right"),
        Node.transform("left", "L{route}"),
        Node.transform("right", "R{route}"),
        Node.function(lambda left, right: (left, right), "join"),
    )
    made.connect("text", "pause")
    return made


def test_nodes_of_all_kinds_in_one_graph() -> None:
    result = Executor().execute(mixed(), {"x": 4})
    assert result["join"] == ("L8!?", None)
    assert result.states["right"] == "skipped"
    assert Executor().execute(mixed(), {"x": 5})["join"] == (None, "R10!?")


def test_natively_made_texts_run_wide_and_deep() -> None:
    made = Workflow("w", inputs=["x"])
    made.add(Node.transform("n0", "{x}"))
    for i in range(1, 300):
        made.add(Node.transform(f"n{i}", f"{{n{i - 1}}}."))
        made.add(Node.transform(f"w{i}", "<{x}>"))
    made.add(Node.transform("all", "".join(f"{{w{i}}}" for i in range(1, 300))))
    result = Executor().execute(made, {"x": "a"})
    assert result["n299"] == "a" + "." * 299
    assert result["all"] == "<a>" * 299


def test_async_nodes_run_side_by_side() -> None:
    number = 50
    arrived = 0
    everybody = asyncio.Event()

    async def meet() -> int:
        nonlocal arrived
        arrived += 1
        if arrived == number:
            everybody.set()
        await everybody.wait()  # alone it would wait for ever
        return arrived

    made = Workflow("w")
    made.add(*[Node.function(meet, name=f"n{i}") for i in range(number)])
    assert set(Executor().execute(made).outputs.values()) == {number}


def test_two_blocking_functions_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=20)  # alone each would wait for ever
    made = Workflow("w")
    made.add(Node.function(meeting.wait, name="a"), Node.function(lambda: meeting.wait(), name="b"))
    assert sorted(Executor().execute(made).raise_for_failure().outputs.values()) == [0, 1]


def test_a_blocking_function_does_not_hold_up_the_ready_ones_behind_it() -> None:
    others = 200
    done = threading.Event()
    left = others
    lock = threading.Lock()

    def other() -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0:
                done.set()

    made = Workflow("w")
    made.add(
        Node.function(lambda: done.wait(20), name="slow"), *[Node.function(other, name=f"n{i}") for i in range(others)]
    )
    assert Executor().execute(made)["slow"] is True


def test_a_node_may_execute_another_workflow() -> None:
    inner = Workflow("inner")
    inner.add(Node.function(lambda x: x + 1, name="plus"))
    executor = Executor()

    def outer(x: int) -> int:
        found: int = executor.execute(inner, {"x": x})["plus"]
        return found

    made = Workflow("outer")
    made.add(Node.function(outer), *[Node.function(outer, name=f"n{i}", bind={"x": "outer"}) for i in range(20)])
    assert set(Executor().execute(made, {"x": 1}).outputs.values()) == {2, 3}


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


def test_functions_see_the_context_of_whoever_started_the_run() -> None:
    async def later() -> str:
        return variable.get()

    made = Workflow("w")
    made.add(Node.function(lambda: variable.get(), name="now"), Node.function(later))
    token = variable.set("caller")
    try:
        for result in (Executor().execute(made), Executor().start(made).wait()):
            assert result.outputs == {"now": "caller", "later": "caller"}
    finally:
        variable.reset(token)


def test_what_a_function_sets_in_its_context_stays_there() -> None:
    made = Workflow("w")
    made.add(Node.function(lambda: variable.set("node") and None, name="a"))
    Executor().execute(made).raise_for_failure()
    assert variable.get() == "none"


# ---------------------------------------------------------------- delays


def test_delays_take_their_time_one_after_the_other_and_side_by_side() -> None:
    made = linked(
        [Node.delay("hour", 3600), Node.delay("day", 86_400), Node.delay("then", 1.5)],
        [("hour", "then"), ("day", "then")],
    )
    with virtual_time() as clock:
        result = Executor().execute(made).raise_for_failure()
        assert clock.now() == pytest.approx(86_401.5)
    assert result.duration == pytest.approx(86_401.5)
    assert result.execution_time_ms() == 86_401_500
    reports = result.nodes
    assert reports["hour"].duration == pytest.approx(3600)
    assert reports["then"].started == pytest.approx(86_400)


def test_delays_end_in_the_order_of_their_due_times() -> None:
    it = Recorder()
    seconds = [5, 1, 4, 2, 3]
    nodes = [node for i in seconds for node in (Node.delay(f"d{i}", i), it.node(f"n{i}"))]
    with virtual_time():
        Executor().execute(linked(nodes, [(f"d{i}", f"n{i}") for i in seconds])).raise_for_failure()
    assert it.order == ["n1", "n2", "n3", "n4", "n5"]


def test_a_delay_of_nothing_ends_at_once() -> None:
    with virtual_time() as clock:
        assert Executor().execute(linked([Node.delay("d", 0)], [])).is_success()
        assert clock.now() == 0


def test_a_run_whose_time_is_up_raises_and_keeps_what_was_finished() -> None:
    it = Recorder()
    made = linked([it.node("a"), Node.delay("hour", 3600), it.node("b")], [("a", "hour"), ("hour", "b")])
    with virtual_time() as clock:
        with pytest.raises(RunTimeoutError, match=r"'w' was not over within 60.0 s.*\.result") as caught:
            Executor(timeout_seconds=60).execute(made)
        assert clock.now() == pytest.approx(60)
    result = caught.value.result
    assert result["a"] == "a"
    assert result.states == {"a": "succeeded", "hour": "cancelled", "b": "cancelled"}
    assert result.state() == "TimedOut"
    assert result.is_failed()
    with pytest.raises(NodeNotRunError, match="'b' was cancelled because the run's time was up"):
        result["b"]
    assert isinstance(caught.value, TimeoutError)


def test_a_run_that_ends_in_time_is_not_disturbed_by_its_timeout() -> None:
    with virtual_time():
        assert Executor(timeout_seconds=60).execute(linked([Node.delay("d", 59.9)], [])).is_success()


def test_configure_changes_the_timeout_of_later_runs() -> None:
    executor = Executor()
    executor.configure(timeout_seconds=1)
    assert executor.get_stats()["timeout_seconds"] == 1
    with virtual_time(), pytest.raises(RunTimeoutError):
        executor.execute(linked([Node.delay("d", 2)], []))


def test_virtual_time_cannot_begin_while_a_run_is_on_its_way() -> None:
    gate = threading.Event()
    made = Workflow("w")
    made.add(Node.function(lambda: gate.wait(20), name="a"))
    run = Executor().start(made)
    try:
        with pytest.raises(RuntimeError, match="while nothing runs"), virtual_time():
            pass
    finally:
        gate.set()
    assert run.wait()["a"] is True


# ---------------------------------------------------------------- start, wait, await


def test_start_returns_before_the_run_is_over_and_states_tell_where_it_is() -> None:
    started, gate = threading.Event(), threading.Event()

    def hold() -> str:
        started.set()
        gate.wait(20)
        return "held"

    made = linked([Node.function(hold), Recorder().node("after")], [("hold", "after")])
    run = Executor().start(made)
    assert started.wait(20)
    assert not run.done()
    assert run.states() == {"hold": "running", "after": "blocked"}
    assert "running" in repr(run)
    gate.set()
    result = run.wait()
    assert run.done()
    assert run.states() == {"hold": "succeeded", "after": "succeeded"}
    assert repr(run) == "Run(workflow='w', over)"
    assert result["hold"] == "held"


def test_waiting_twice_gives_the_same_result() -> None:
    run = Executor().start(linked([Recorder().node("a")], []))
    first = run.wait()
    assert run.wait() is first


def test_waiting_for_a_limited_time_raises_and_the_run_goes_on() -> None:
    gate = threading.Event()
    made = Workflow("w")
    made.add(Node.function(lambda: gate.wait(20), name="a"))
    executor = Executor()
    run = executor.start(made)
    while run.states()["a"] != "running":  # on a callback thread, not on the one that is going to wait
        pass
    with pytest.raises(TimeoutError, match="'w' was not over within 0.01 s; it goes on"):
        run.wait(timeout=0.01)
    assert not run.done()
    gate.set()
    assert run.wait(timeout=20)["a"] is True


def test_several_threads_wait_for_one_run() -> None:
    gate = threading.Event()
    made = Workflow("w")
    made.add(Node.function(lambda: gate.wait(20), name="a"))
    executor = Executor()
    run = executor.start(made)
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(run.wait) for _ in range(4)]
        gate.set()
        results = [wait.result(20) for wait in waits]
    assert all(result["a"] is True for result in results)
    assert executor.get_stats()["total_executions"] == 1


def test_a_run_nobody_waits_for_runs_all_the_same() -> None:
    ran = threading.Event()
    made = Workflow("w")
    made.add(Node.delay("d", 0.001), Node.function(ran.set, name="a"))
    made.connect("d", "a")
    Executor().start(made)
    assert ran.wait(20)


def test_run_async_and_await_give_the_result() -> None:
    async def main() -> list[Any]:
        executor = Executor()
        run = executor.start(mixed(), {"x": 4})
        first = await run
        assert run.done()
        return [first["join"], (await run)["join"], (await executor.run_async(mixed(), {"x": 4}))["join"]]

    assert asyncio.run(main()) == [("L8!?", None)] * 3


def test_async_functions_run_on_the_loop_that_started_the_run() -> None:
    async def where() -> Any:
        return asyncio.get_running_loop()

    made = Workflow("w")
    made.add(Node.function(where))

    async def main() -> bool:
        return (await Executor().run_async(made))["where"] is asyncio.get_running_loop()

    assert asyncio.run(main())


def test_many_runs_on_one_loop() -> None:
    async def main() -> list[Any]:
        executor = Executor()
        results = await asyncio.gather(*[executor.run_async(mixed(), {"x": i}) for i in range(50)])
        return [result["double"] for result in results]

    assert asyncio.run(main()) == [2 * i for i in range(50)]


def test_cancelling_the_task_cancels_the_run() -> None:
    async def main() -> str:
        begun = asyncio.Event()
        ended = asyncio.Event()

        async def hold() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        made = Workflow("w")
        made.add(Node.function(hold))
        run = Executor().start(made)

        async def wait() -> None:
            await run

        task = asyncio.create_task(wait())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ended.wait()
        return (await run).state()

    assert asyncio.run(main()) == "Cancelled"


def test_waiting_on_the_loop_that_runs_the_functions_is_refused() -> None:
    async def main() -> None:
        run = Executor().start(mixed(), {"x": 1})
        with pytest.raises(RuntimeError, match="use `await run`"):
            run.wait()
        await run

    asyncio.run(main())


def test_execute_on_a_loop_brings_a_loop_of_its_own() -> None:
    async def main() -> Any:
        return Executor().execute(mixed(), {"x": 4})["join"]

    assert asyncio.run(main()) == ("L8!?", None)


def test_a_cancelled_run_says_so_and_keeps_what_was_finished() -> None:
    it = Recorder()
    made = linked([it.node("a"), Node.delay("hour", 3600), it.node("b")], [("a", "hour"), ("hour", "b")])
    run = Executor().start(made)
    while run.states()["a"] != "succeeded":
        pass
    run.cancel()
    result = run.wait()
    assert result.state() == "Cancelled"
    assert result.is_failed()
    assert result["a"] == "a"
    assert result.states == {"a": "succeeded", "hour": "cancelled", "b": "cancelled"}
    with pytest.raises(RunCancelledError, match="the run of workflow 'w' was cancelled") as caught:
        result.raise_for_failure()
    assert caught.value.result is result
    with pytest.raises(NodeNotRunError, match="'b' was cancelled with its run"):
        result["b"]
    run.cancel()  # once more does nothing
    assert it.order == ["a"]


def test_cancelling_a_run_that_is_over_changes_nothing() -> None:
    run = Executor().start(linked([Recorder().node("a")], []))
    result = run.wait()
    run.cancel()
    assert result.state() == "Completed"
    assert run.wait()["a"] == "a"


# ---------------------------------------------------------------- what a result tells


def test_the_originals_accessors() -> None:
    a = Node.function(lambda x: x + 1, name="a")
    result = Executor().execute(linked([a, Node.transform("t", "<{a}>")], []), {"x": 1})
    assert result.is_success()
    assert not result.is_failed()
    assert result.state() == "Completed"
    assert isinstance(result.execution_time_ms(), int)
    assert result.get_node_output("t") == "<2>"
    assert result.get_node_output(a.id()) == 2
    assert result.get_node_output("unknown") is None
    assert result.get_all_node_outputs() == result.outputs == {"a": 2, "t": "<2>"}
    assert result.get_variable("x") == 1
    assert result.get_variable("a") == 2
    assert result.get_variable("unknown") is None
    assert result.get_all_variables() == {"x": 1, "a": 2, "t": "<2>"}
    assert result.variables() == [("x", 1), ("a", 2), ("t", "<2>")]
    metadata = result.get_node_response_metadata("a")
    assert metadata is not None
    assert metadata["node_id"] == a.id()
    assert {key: metadata[key] for key in ("node_name", "node_type", "state", "attempts", "success", "error")} == {
        "node_name": "a",
        "node_type": "function",
        "state": "succeeded",
        "attempts": 1,
        "success": True,
        "error": None,
    }
    assert metadata["duration_ms"] >= 0
    assert result.get_node_response_metadata("unknown") is None
    assert result.get_all_node_response_metadata().keys() == {"a", "t"}


def test_a_result_by_name() -> None:
    result = Executor().execute(linked([Recorder().node("a")], []))
    assert result["a"] == "a"
    assert "a" in result
    assert "b" not in result
    assert result.get("a") == "a"
    assert result.errors == {}
    assert result.choices == {}
    assert result.raise_for_failure() is result
    with pytest.raises(UnknownNameError, match="workflow 'w' has no node 'aa'"):
        result["aa"]
    with pytest.raises(UnknownNameError, match="no node 'aa'"):
        result.get("aa")
    assert repr(result).startswith("WorkflowResult(Completed, 1 succeeded, ")


def test_none_is_an_output_like_any_other() -> None:
    result = Executor().execute(linked([Node.function(lambda: None, name="a")], []))
    assert result.outputs == {"a": None}
    assert result["a"] is None


def test_times_of_reports_fit_the_graph_and_the_run() -> None:
    edges = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "t"), ("t", "p")]
    it = Recorder()
    nodes = [*[it.node(name) for name in "abcd"], Node.transform("t", "text"), Node.delay("p", 0.001)]
    result = Executor().execute(linked(nodes, edges))
    reports = result.nodes
    assert list(reports) == ["a", "b", "c", "d", "t", "p"]
    for name, report in reports.items():
        assert report.name == name
        assert (report.state, report.attempts) == ("succeeded", 1)
        assert report.ready is not None
        assert report.started is not None
        assert report.ended is not None
        assert report.duration is not None
        assert 0 <= report.ready <= report.started <= report.ended <= result.duration
        assert report.duration == pytest.approx(report.ended - report.started)
        assert name in repr(report)
    for before, after in edges:
        assert reports[before].ended <= reports[after].ready  # type: ignore[operator]
    assert reports["p"].duration >= 0.001  # type: ignore[operator]


def test_a_node_that_never_started_has_no_attempts_and_no_times() -> None:
    made = linked([Node.condition("c", lambda context: []), Recorder().node("a")], [("c", "a")])
    report = Executor().execute(made).nodes["a"]
    assert (report.state, report.attempts, report.ready, report.started, report.duration) == (
        "skipped",
        0,
        None,
        None,
        None,
    )


# ---------------------------------------------------------------- again and again


def test_one_workflow_runs_many_times() -> None:
    calls: list[int] = []
    made = Workflow("w")
    made.add(Node.function(lambda x: calls.append(x) or x * x, name="square"), Node.transform("t", "{square}"))
    executor = Executor()
    assert [executor.execute(made, {"x": i})["t"] for i in range(300)] == [str(i * i) for i in range(300)]
    assert calls == list(range(300))


def test_one_workflow_runs_in_several_executors_and_threads_at_once() -> None:
    made = mixed()
    executors = [Executor(), Executor(on_error="continue"), Executor(timeout_seconds=60)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: executors[i % 3].execute(made, {"x": i})["double"], range(120)))
    assert found == [2 * i for i in range(120)]
    assert sum(executor.get_stats()["successful_executions"] for executor in executors) == 120


def test_runs_started_together_do_not_mix() -> None:
    made = mixed()
    runs = [Executor().start(made, {"x": i}) for i in range(100)]
    assert [run.wait()["double"] for run in runs] == [2 * i for i in range(100)]


def test_a_workflow_may_grow_after_a_run() -> None:
    executor = Executor()
    made = Workflow("w")
    made.add(Node.function(lambda: 1, name="a"))
    first = executor.execute(made)
    made.add(Node.function(lambda a: a + 1, name="b"))
    second = executor.execute(made)
    made.connect("b", made.add_node(Node.function(lambda: 3, name="c")))
    third = executor.execute(made)
    assert (first.outputs, second.outputs, third.outputs) == ({"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3})
    with pytest.raises(UnknownNameError):
        first["b"]


def test_a_workflow_that_grows_during_a_run_does_not_disturb_it() -> None:
    gate = threading.Event()
    made = Workflow("w")
    made.add(Node.function(lambda: gate.wait(20), name="a"))
    run = Executor().start(made)
    made.add(Recorder().node("b"))
    gate.set()
    assert run.wait().outputs == {"a": True}


def test_a_changed_dict_of_inputs_does_not_change_a_run() -> None:
    gate = threading.Event()
    made = Workflow("w")
    made.add(Node.function(lambda: gate.wait(20), name="a"), Node.function(lambda a, x: x, "b"))
    inputs = {"x": 1}
    run = Executor().start(made, inputs)
    inputs["x"] = 2
    gate.set()
    assert run.wait()["b"] == 1


def test_an_executor_counts_its_runs() -> None:
    executor = Executor()
    assert executor.get_stats()["total_executions"] == 0
    assert executor.get_stats()["success_rate"] == 0
    good = linked([Recorder().node("a")], [])
    bad = linked([Node.function(lambda: 1 / 0, name="a")], [])
    for made in (good, good, good, bad):
        executor.execute(made).is_success()
    executor.start(good).wait()
    asyncio.run(executor.run_async(good))
    found = executor.get_stats()
    assert (found["total_executions"], found["successful_executions"], found["failed_executions"]) == (6, 5, 1)
    assert found["success_rate"] == pytest.approx(5 / 6)
    assert found["average_duration_ms"] == pytest.approx(found["total_duration_ms"] / 6)
    assert found["uptime_seconds"] > 0
    executor.reset_stats()
    assert executor.get_stats()["total_executions"] == 0


def test_a_run_that_nobody_waited_for_is_counted_too() -> None:
    executor = Executor()
    executor.start(linked([Recorder().node("a")], []))
    while not executor.get_stats()["total_executions"]:  # the thread that is told of its end counts it
        threading.Event().wait(0.001)
    assert executor.get_stats()["total_executions"] == 1


def test_the_runtime_counts_what_it_did() -> None:
    Executor().execute(linked([Recorder().node("warm")], []))
    before = stats()
    Executor().execute(linked([Recorder().node(f"n{i}") for i in range(10)], []))
    after = stats()
    assert after["runs_started"] - before["runs_started"] == 1
    assert after["nodes_settled"] - before["nodes_settled"] == 10
    assert after["runs_active"] == 0
