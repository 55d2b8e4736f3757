"""Event streams and who reads them: late, early gone, from event loops, from inside."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from flows import PATIENCE, opened
from hypothesis import given, strategies as st
from streams import Event, Gate, collect, linked, of, one, told

import graphbit
from graphbit import Executor, Node
from graphbit.errors import ConfigurationError

# ------------------------------------------------------------------------------------------------- late readers


@pytest.mark.parametrize("buffer", [1, 5, 64])
def test_a_late_reader_loses_the_newest_and_is_told_how_many(buffer: int) -> None:
    wf = linked(*[Node.function(lambda: 1, f"n{i}") for i in range(100)])
    stream = Executor().execute_streaming(wf, buffer=buffer)
    stream.run.wait(PATIENCE)
    events = list(stream)
    assert [it["event"] for it in events[-2:]] == ["events_dropped", "workflow_completed"]
    assert len(events) == 1 + buffer + 2
    assert one("events_dropped", events)["count"] == 200 - buffer
    assert len(events[-1]["outputs"]) == 100


def test_what_is_dropped_is_counted_where_it_would_have_stood() -> None:
    go_on = threading.Event()

    def speaks() -> None:
        for i in range(10):
            graphbit.current().emit(i)
        opened(go_on)
        for i in range(10, 20):
            graphbit.current().emit(i)

    stream = Executor().execute_streaming(linked(Node.function(speaks, "a")), stream_mode="messages", buffer=4)
    first: list[Any] = []
    for event in stream:
        first.append(event.get("value", event.get("count")))
        if event["event"] == "events_dropped" and not go_on.is_set():
            go_on.set()
            stream.run.wait(PATIENCE)
    assert sum(1 for it in first if it is not None) >= 2
    seen = [it for it in first if it is not None]
    assert seen[:3] == [0, 1, 2]  # the fourth place was the node's start
    assert 10 in seen


def test_by_default_every_nodes_start_and_end_has_room() -> None:
    wf = linked(*[Node.function(lambda: 1, f"n{i}") for i in range(3000)])
    stream = Executor().execute_streaming(wf)
    stream.run.wait(PATIENCE)
    assert len(list(stream)) == 6002


def test_objects_that_nobody_will_read_are_not_kept() -> None:
    class Thing:
        pass

    things: list[weakref.ref[Thing]] = []

    def speaks() -> None:
        for _ in range(50):
            thing = Thing()
            things.append(weakref.ref(thing))
            graphbit.current().emit(thing)

    stream = Executor().execute_streaming(linked(Node.function(speaks, "a")), buffer=8)
    stream.run.wait(PATIENCE)
    gc.collect()
    assert sum(it() is not None for it in things) == 7  # and the node's start
    list(stream)
    gc.collect()
    assert all(it() is None for it in things)


@pytest.mark.parametrize("buffer", [0, -1, 1_000_001, True, 2.5, "4"])
def test_a_buffer_without_sense_is_refused(buffer: Any) -> None:
    with pytest.raises(ConfigurationError, match="buffer is a number of events"):
        Executor().execute_streaming(linked(Node.function(lambda: 1, "a")), buffer=buffer)


# ----------------------------------------------------------------------------------------------------------- leaving


def test_leaving_the_loop_cancels_the_run_though_the_stream_is_kept(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    for event in stream:
        if event["event"] == "node_started":
            break
    assert stream.run.wait(PATIENCE).state() == "Cancelled"
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="closed before its run was over"):
        _ = stream.result


def test_an_exception_in_the_loop_cancels_the_run(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))

    def fails() -> None:
        for event in stream:
            if event["event"] == "node_started":
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert stream.run.wait(PATIENCE).state() == "Cancelled"


def test_a_stream_that_is_dropped_cancels_its_run(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    run = stream.run
    opened(gate.began)
    del stream
    gc.collect()
    assert run.wait(PATIENCE).state() == "Cancelled"


def test_close_and_with_cancel_the_run(gate: Gate) -> None:
    with Executor().execute_streaming(linked(gate.node())) as stream:
        opened(gate.began)
    assert stream.run.wait(PATIENCE).state() == "Cancelled"
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_a_run_that_is_over_is_not_touched_by_leaving() -> None:
    with Executor().execute_streaming(linked(Node.function(lambda: 1, "a"))) as stream:
        list(stream)
    assert stream.result["a"] == 1


def test_single_events_may_be_taken_and_the_run_goes_on(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    assert next(stream)["event"] == "workflow_started"
    assert next(stream)["event"] == "node_started"
    gate.open.set()
    assert told(stream) == ["node_completed gate", "workflow_completed"]
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.result["gate"] == "through"


def test_closing_from_another_thread_ends_a_waiting_loop(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))

    def close() -> None:
        opened(gate.began)
        stream.close()

    closer = threading.Thread(target=close)
    closer.start()
    seen = told(stream)
    assert seen == ["workflow_started", "node_started gate"][: len(seen)]
    closer.join(PATIENCE)
    assert stream.run.wait(PATIENCE).state() == "Cancelled"


def test_a_stream_says_whether_it_is_active() -> None:
    stream = Executor().execute_streaming(linked(Node.function(lambda: 1, "a")))
    assert "active" in repr(stream)
    list(stream)
    assert "exhausted" in repr(stream)


def test_a_second_reader_is_refused(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    next(stream)
    next(stream)
    reader = threading.Thread(target=lambda: next(stream))
    reader.start()
    while not stream._guard.locked():
        reader.join(0.001)
    with pytest.raises(RuntimeError, match="one reader"):
        next(stream)
    gate.open.set()
    reader.join(PATIENCE)


# -------------------------------------------------------------------------------------------------------- event loops


def test_a_stream_may_be_made_outside_a_loop_and_read_on_one(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))

    async def main() -> list[Event]:
        events = []
        async for event in stream:
            events.append(event)
            gate.open.set()
        return events

    assert told(asyncio.run(main()))[-1] == "workflow_completed"


def test_a_stream_may_be_read_by_turns_on_two_loops_and_a_thread(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    seen = [asyncio.run(stream.__anext__()), next(stream)]
    gate.open.set()
    seen += [asyncio.run(stream.__anext__()), next(stream)]
    assert told(seen)[1:] == ["node_started gate", "node_completed gate", "workflow_completed"]


def test_the_loop_goes_on_while_a_task_waits_for_events() -> None:
    begun = asyncio.Event()
    go_on = asyncio.Event()

    async def waits() -> None:
        begun.set()
        await go_on.wait()

    async def main() -> list[Event]:
        stream = Executor().execute_streaming(linked(Node.function(waits, "a")))
        task = asyncio.create_task(collect(stream))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        go_on.set()
        return await asyncio.wait_for(task, PATIENCE)

    assert told(asyncio.run(main()))[-1] == "workflow_completed"


def test_leaving_an_async_loop_cancels_the_run(gate: Gate) -> None:
    async def main() -> None:
        stream = Executor().execute_streaming(linked(gate.node()))
        async for event in stream:
            if event["event"] == "node_started":
                break
        assert (await stream.run).state() == "Cancelled"

    asyncio.run(main())


def test_cancelling_the_task_that_reads_cancels_the_run(gate: Gate) -> None:
    async def main() -> None:
        stream = Executor().execute_streaming(linked(gate.node()))
        task = asyncio.create_task(collect(stream))
        await asyncio.to_thread(opened, gate.began)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await stream.run).state() == "Cancelled"

    asyncio.run(main())


def test_a_wait_for_one_event_may_time_out_and_be_repeated(gate: Gate) -> None:
    async def main() -> list[Event]:
        stream = Executor().execute_streaming(linked(gate.node()))
        events = [await stream.__anext__(), await stream.__anext__()]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.01)
        gate.open.set()
        return events + [event async for event in stream]

    assert told(asyncio.run(main()))[-2:] == ["node_completed gate", "workflow_completed"]


def test_async_with_and_aclose_cancel_the_run(gate: Gate) -> None:
    async def main() -> None:
        async with Executor().execute_streaming(linked(gate.node())) as stream:
            await stream.__anext__()
        assert (await stream.run).state() == "Cancelled"
        await stream.aclose()

    asyncio.run(main())


def test_many_streams_share_a_loop() -> None:
    async def one_of(number: int) -> list[Event]:
        wf = linked(Node.function(lambda: number, "a"), Node.function(lambda a: a, "b"))
        return await collect(Executor().execute_streaming(wf))

    async def main() -> list[list[Event]]:
        return await asyncio.gather(*[one_of(i) for i in range(50)])

    for number, events in enumerate(asyncio.run(main())):
        assert len(events) == 6
        assert events[-1]["outputs"] == {"a": number, "b": number}


def test_a_sync_loop_on_the_event_loop_that_must_run_the_nodes_is_refused() -> None:
    async def later() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            list(Executor().execute_streaming(linked(Node.function(later, "a"))))

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------- inside and at the end


def test_a_node_may_stream_a_workflow_of_its_own() -> None:
    inner = linked(Node.function(lambda: 1, "x"), Node.function(lambda x: x, "y"))

    def streams() -> list[str]:
        return told(Executor().execute_streaming(inner))

    wf = linked(*[Node.function(streams, f"n{i}") for i in range(40)])
    outputs = Executor().execute(wf).outputs
    assert all(len(it) == 6 for it in outputs.values())
    assert len(outputs) == 40


def test_callback_threads_that_all_read_streams_run_the_nodes_of_these_themselves(
    threads: Callable[[int], None],
) -> None:
    threads(3)
    line = threading.Barrier(3)
    inner = linked(Node.function(lambda: 1, "x"), Node.function(lambda x: x, "y"))

    def streams() -> list[str]:
        line.wait(PATIENCE)
        return told(Executor().execute_streaming(inner))

    outer = linked(*[Node.function(streams, f"n{i}") for i in range(3)])
    events = list(Executor().execute_streaming(outer))
    assert [it["output"][-1] for it in of("node_completed", events)] == ["workflow_completed"] * 3


def test_shutting_down_ends_a_stream_that_waits(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    opened(gate.began)
    closer = threading.Thread(target=graphbit.shutdown)
    events = []
    try:
        for event in stream:
            events.append(event)
            if event["event"] == "node_started":
                closer.start()
    except graphbit.RuntimeClosedError:
        pass  # the end came before it could be told
    else:
        assert events[-1]["error_type"] == "RuntimeClosedError"
    closer.join(PATIENCE)


@st.composite
def graphs(draw: Callable[[Any], Any]) -> tuple[list[list[int]], list[bool]]:
    number = draw(st.integers(1, 12))
    before = [sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(number)]
    fails = [draw(st.integers(0, 7)) == 0 for _ in range(number)]
    return before, fails


@given(graphs(), st.booleans())
def test_events_agree_with_the_result_and_never_tell_an_effect_before_its_cause(
    graph: tuple[list[list[int]], list[bool]], keep_going: bool
) -> None:
    before, fails = graph

    def work(fail: bool) -> Callable[[], int]:
        def node() -> int:
            if fail:
                raise ValueError
            return 1

        return node

    wf = linked(
        *[Node.function(work(fail), f"n{i}") for i, fail in enumerate(fails)],
        edges=" ".join(f"n{a}-n{b}" for b, sources in enumerate(before) for a in sources),
    )
    stream = Executor(on_error="continue" if keep_going else "fail_fast").execute_streaming(wf)
    names = told(stream)
    assert names[0] == "workflow_started"
    assert names[-1] == ("workflow_completed" if stream.result.is_success() else "workflow_failed")
    verbs = {"succeeded": "completed"}
    for i, sources in enumerate(before):
        state = stream.result.states[f"n{i}"]
        mine = [it for it in names if it.endswith(f" n{i}")]
        assert mine[-1] == f"node_{verbs.get(state, state)} n{i}"
        assert mine[:-1] in ([f"node_started n{i}"], []) and (len(mine) == 2 or state in ("skipped", "cancelled"))
        for source in sources if mine[:-1] else ():
            assert names.index(f"node_completed n{source}") < names.index(mine[0])
