"""One run and its result: the ways to wait for it, what may cancel it, and what the result tells."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flows import Recorder, linked, mixed

from graphbit import Executor, Node, NodeNotRunError, RunCancelledError, UnknownNameError, Workflow

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
