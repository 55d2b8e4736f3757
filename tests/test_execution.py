"""Runs that succeed: order, counts, shapes, delays, and running again and again."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flows import Recorder, linked, mixed

from graphbit import Executor, Node, NodeNotRunError, RunTimeoutError, UnknownNameError, Workflow
from graphbit.runtime import stats
from graphbit.testing import virtual_time

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
