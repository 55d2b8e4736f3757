"""Streams: a run's events in order and as they happen, who leaves a loop, readers that are late, everything that can end it.

Nodes that must wait for the reader wait for a `threading.Event` that it sets; nothing here depends on how long something takes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from flows import PATIENCE, opened
from hypothesis import given, strategies as st

import graphbit
from graphbit import Executor, LlmConfig, Node, RetryPolicy, Workflow, _queue as runtime_queue
from graphbit.errors import ConfigurationError, InputError, RunTimeoutError, WorkflowError
from graphbit.stream import RunStream
from graphbit.testing import FakeProvider

Event = dict[str, Any]


def linked(*nodes: Node, edges: str = "") -> Workflow:
    """`linked(a, b, edges="a-b")`"""
    made = Workflow("w")
    made.add(*nodes)
    for edge in edges.split():
        before, after = edge.split("-")
        made.connect(before, after)
    return made


def told(events: Iterator[Event] | list[Event]) -> list[str]:
    """`["workflow_started", "node_started a", …]`"""
    return [it["event"] + (f" {it['node_name']}" if "node_name" in it else "") for it in events]


def of(kind: str, events: list[Event]) -> list[Event]:
    return [it for it in events if it["event"] == kind]


def one(kind: str, events: list[Event]) -> Event:
    (found,) = of(kind, events)
    return found


async def collect(stream: RunStream) -> list[Event]:
    return [event async for event in stream]


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Callable[[RunStream], list[Event]]:
    """All events of a stream, read in a `for` loop or in an `async for` loop."""
    return list if request.param == "sync" else lambda stream: asyncio.run(collect(stream))


class Gate:
    """A node that says it began and then waits for whoever may let it go on."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.open = threading.Event()

    def node(self, name: str = "gate") -> Node:
        def wait() -> str:
            self.began.set()
            opened(self.open)
            return "through"

        return Node.function(wait, name)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many callback threads there may be."""
    before = runtime_queue.settings()

    def limit(count: int) -> None:
        graphbit.shutdown()
        graphbit.configure_runtime(max_blocking_threads=count)

    yield limit
    graphbit.shutdown()
    runtime_queue.configure(before)


# ------------------------------------------------------------------------------------------------------ what is told


def test_a_stream_tells_a_run_from_start_to_end(read: Callable[[RunStream], list[Event]]) -> None:
    wf = linked(Node.function(lambda: 1, "a"), Node.function(lambda a: a + 1, "b"), Node.transform("c", "<{b}>"))
    stream = Executor().execute_streaming(wf)
    events = read(stream)
    assert told(events) == [
        "workflow_started",
        "node_started a",
        "node_completed a",
        "node_started b",
        "node_completed b",
        "node_started c",
        "node_completed c",
        "workflow_completed",
    ]
    assert [it["output"] for it in of("node_completed", events)] == [1, 2, "<2>"]
    assert events[0]["workflow_name"] == "w"
    assert events[0]["total_nodes"] == 3
    assert events[-1]["outputs"] == {"a": 1, "b": 2, "c": "<2>"}
    assert events[-1]["result"] is stream.result
    assert stream.result.is_success()


def test_every_event_says_what_it_is_about_and_when_it_happened() -> None:
    begun = datetime.now(timezone.utc)
    node = Node.function(lambda: 1, "a")
    events = list(Executor().execute_streaming(linked(node)))
    dimensions = [(it["category"], it["phase"]) for it in events]
    assert dimensions == [
        ("workflow", "started"),
        ("node", "started"),
        ("node", "completed"),
        ("workflow", "completed"),
    ]
    assert {it["node_id"] for it in events if it["category"] == "node"} == {node.id()}
    times = [datetime.fromisoformat(it["time"]) for it in events]
    assert times == sorted(times)
    assert begun - timedelta(seconds=1) <= times[0] <= times[-1] <= datetime.now(timezone.utc) + timedelta(seconds=1)
    assert one("node_completed", events)["duration_ms"] >= 0


def test_outputs_are_the_objects_themselves() -> None:
    made = object()
    events = list(Executor().execute_streaming(linked(Node.function(lambda: made, "a"))))
    assert one("node_completed", events)["output"] is made
    assert events[-1]["outputs"]["a"] is made


def test_an_agents_output_is_its_text(provider: FakeProvider) -> None:
    provider.reply("hello")
    wf = linked(Node.agent("greeter", "Say hello."))
    events = list(Executor(config_of(provider)).execute_streaming(wf))
    assert told(events)[1:3] == ["node_started greeter", "node_completed greeter"]
    assert one("node_completed", events)["output"] == "hello"


def config_of(provider: FakeProvider) -> LlmConfig:
    return LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)


def test_inputs_reach_the_run_and_bad_ones_are_refused_before_it_starts() -> None:
    wf = linked(Node.function(lambda topic: topic, "a"))
    assert list(Executor().execute_streaming(wf, {"topic": "bees"}))[-1]["outputs"] == {"a": "bees"}
    with pytest.raises(InputError):
        Executor().execute_streaming(wf)
    with pytest.raises(WorkflowError):
        Executor().execute_streaming(Workflow("empty"))


def test_a_failure_is_told_with_what_it_skips_and_fails_the_workflow(read: Callable[[RunStream], list[Event]]) -> None:
    def breaks() -> None:
        raise ValueError("no bees")

    wf = linked(
        Node.function(breaks, "a"),
        Node.function(lambda a: a, "b"),
        Node.function(lambda b: b, "c"),
    )
    stream = Executor().execute_streaming(wf)
    events = read(stream)
    assert told(events) == [
        "workflow_started",
        "node_started a",
        "node_failed a",
        "node_skipped b",
        "node_skipped c",
        "workflow_failed",
    ]
    for event in (events[2], events[-1]):
        assert (event["error"], event["error_type"]) == ("no bees", "ValueError")
    assert [it["reason"] for it in of("node_skipped", events)] == ["node 'a' failed"] * 2
    assert stream.result.is_failed()
    assert stream.result.states == {"a": "failed", "b": "skipped", "c": "skipped"}


def test_a_failed_request_is_told_with_its_error(provider: FakeProvider) -> None:
    provider.fail(401)
    wf = linked(Node.agent("greeter", "Say hello."))
    stream = Executor(config_of(provider)).execute_streaming(wf)
    events = list(stream)
    assert one("node_failed", events)["error_type"] == "AuthenticationError"
    assert events[-1]["error"] == str(stream.result.errors["greeter"])


def test_a_failure_that_was_told_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    def breaks() -> None:
        raise ValueError

    for _ in Executor().execute_streaming(linked(Node.function(breaks, "a"))):
        pass
    gc.collect()
    assert caplog.records == []


def test_a_failure_is_not_logged_for_a_reader_who_has_left(caplog: pytest.LogCaptureFixture, gate: Gate) -> None:
    def breaks() -> None:
        raise ValueError

    stream = Executor(on_error="continue").execute_streaming(linked(Node.function(breaks, "a"), gate.node()))
    for event in stream:
        if event["event"] == "node_failed":
            break
    run = weakref.ref(stream.run)
    del stream
    gate.open.set()  # the thread in it holds the run
    while run() is not None:
        gc.collect()
    assert caplog.records == []


def test_a_way_not_taken_is_told_with_the_reason() -> None:
    wf = linked(
        Node.condition("route", lambda: "left"),
        Node.function(lambda: 1, "left"),
        Node.function(lambda: 2, "right"),
        edges="route-left route-right",
    )
    events = list(Executor().execute_streaming(wf))
    assert one("node_skipped", events)["node_name"] == "right"
    assert one("node_skipped", events)["reason"] == "no condition chose a way that leads to it"
    assert events[-1]["event"] == "workflow_completed"


def test_a_retry_is_told_with_the_error_of_the_attempt_that_failed(gate: Gate) -> None:
    tries: list[int] = []

    def tries_twice() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("no answer")
        opened(gate.open)
        return "at last"

    wf = linked(Node.function(tries_twice, "a", retry=RetryPolicy(3, backoff=0.2, jitter=False)))
    events = []
    for event in Executor().execute_streaming(wf):
        events.append(event)
        if event["event"] == "node_retried":
            gate.open.set()
    assert told(events)[1:-1] == ["node_started a", "node_retried a", "node_started a", "node_completed a"]
    retried = one("node_retried", events)
    assert (retried["attempt"], retried["delay"], retried["category"]) == (1, 0.2, "node")
    assert (retried["error"], retried["error_type"]) == ("no answer", "ConnectionError")
    assert [it["attempt"] for it in of("node_started", events)] == [1, 2]
    assert one("node_completed", events)["duration_ms"] < 200  # the last attempt's, without the pause before it


def test_a_requests_retries_are_told(provider: FakeProvider) -> None:
    provider.fail(503)
    provider.reply("hello")
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=2)
    events = list(Executor(config).execute_streaming(linked(Node.agent("greeter", "Say hello."))))
    assert told(events)[1:-1] == ["node_started greeter", "node_retried greeter", "node_completed greeter"]
    assert one("node_retried", events)["attempt"] == 1
    assert one("node_retried", events)["delay"] > 0


def test_a_fallback_is_told_as_the_node_it_stands_in_for() -> None:
    def breaks() -> None:
        raise ValueError

    wf = linked(
        Node.function(breaks, "a", fallback=lambda error: "instead"),
        Node.function(breaks, "b", fallback=Node.transform("plain", "text")),
        Node.function(breaks, "c", fallback=7),
    )
    stream = Executor().execute_streaming(wf)
    events = list(stream)
    assert events[0]["total_nodes"] == 3
    assert sorted(told(events)[1:-1]) == sorted(
        f"node_{verb} {node}" for verb in ("started", "completed") for node in "abc"
    )
    assert {it["node_name"]: it["output"] for it in of("node_completed", events)} == {
        "a": "instead",
        "b": "text",
        "c": 7,
    }
    assert events[-1]["event"] == "workflow_completed"


def test_a_node_that_nobody_needs_any_more_is_told_as_cancelled(gate: Gate) -> None:
    wf = linked(
        Node.function(lambda: 1, "quick"),
        gate.node("slow"),
        Node.function(lambda quick: quick, "first", join="any"),
        edges="quick-first slow-first",
    )
    events = list(Executor().execute_streaming(wf))
    assert one("node_cancelled", events)["node_name"] == "slow"
    assert events[-1]["event"] == "workflow_completed"


def test_an_attempt_that_took_too_long_is_told_as_a_timeout(gate: Gate) -> None:
    def waits() -> None:
        opened(gate.open)

    events = list(Executor().execute_streaming(linked(Node.function(waits, "a", timeout=0.05))))
    assert one("node_failed", events)["error_type"] == "NodeTimeoutError"


def test_a_timeout_is_told_as_the_failure_and_raised_by_result(gate: Gate) -> None:
    stream = Executor(timeout_seconds=0.05).execute_streaming(linked(gate.node()))
    events = list(stream)
    assert told(events)[-2:] == ["node_cancelled gate", "workflow_failed"]
    assert events[-1]["error_type"] == "RunTimeoutError"
    with pytest.raises(RunTimeoutError):
        _ = stream.result


def test_a_run_cancelled_from_elsewhere_is_told_as_cancelled(gate: Gate) -> None:
    stream = Executor().execute_streaming(linked(gate.node()))
    opened(gate.began)
    stream.run.cancel()
    events = list(stream)
    assert told(events)[-2:] == ["node_cancelled gate", "workflow_failed"]
    assert events[-1]["error_type"] == "RunCancelledError"
    assert stream.result.state() == "Cancelled"


def test_an_exit_inside_a_node_comes_out_of_the_stream() -> None:
    def leaves() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(Executor().execute_streaming(linked(Node.function(leaves, "a"))))


def test_the_executor_counts_streamed_runs() -> None:
    executor = Executor()
    list(executor.execute_streaming(linked(Node.function(lambda: 1, "a"))))
    assert executor.get_stats()["successful_executions"] == 1


# ----------------------------------------------------------------------------------------------------- modes and schema


@pytest.mark.parametrize("mode", ["updates", "Updates", "MESSAGES", "all", None])
def test_modes_are_known_in_any_case_and_none_is_updates(mode: str | None) -> None:
    events = list(Executor().execute_streaming(linked(Node.function(lambda: 1, "a")), None, mode))
    assert events[-1]["event"] == "workflow_completed"
    assert ("node_started a" in told(events)) == (mode != "MESSAGES")


@pytest.mark.parametrize(
    ("mode", "near"), [("update", "did you mean 'updates'"), ("tokens", "got 'tokens'"), (7, "got 7")]
)
def test_an_unknown_mode_is_refused_with_the_nearest_name(mode: Any, near: str) -> None:
    with pytest.raises(ConfigurationError, match=near):
        Executor().execute_streaming(linked(Node.function(lambda: 1, "a")), stream_mode=mode)


def test_messages_are_what_nodes_emit_and_how_it_ended() -> None:
    wf = linked(Node.function(lambda: graphbit.current().emit("hi"), "a"))
    assert told(Executor().execute_streaming(wf, stream_mode="messages")) == ["value a", "workflow_completed"]
    assert "value a" in told(Executor().execute_streaming(wf, stream_mode="updates"))
    assert "value a" in told(Executor().execute_streaming(wf, stream_mode="all"))


def test_the_schema_is_plain_data_and_names_modes_groups_and_events() -> None:
    schema = Executor.get_stream_event_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema) >= {"description", "version", "generic_dimensions", "stream_modes", "event_groups", "events"}
    assert set(schema["stream_modes"]) == {"updates", "messages", "all"}
    names = [it["event"] for it in schema["events"]]
    assert sorted(names) == sorted(name for group in schema["event_groups"].values() for name in group)
    schema["events"].clear()
    assert Executor.get_stream_event_schema()["events"]


def test_events_have_the_fields_that_the_schema_promises() -> None:
    fields = {
        it["event"]: {field["name"] for field in it["fields"]} for it in Executor.get_stream_event_schema()["events"]
    }

    def speaks() -> None:
        context = graphbit.current()
        context.emit(1)
        context.log("half way")
        context.progress(0.5)

    def breaks() -> None:
        raise ValueError

    ways = [
        linked(Node.function(speaks, "a")),
        linked(Node.function(breaks, "a"), Node.function(lambda a: a, "b")),
        linked(Node.function(breaks, "a"), *[Node.delay(f"d{i}", 60) for i in range(3)]),
    ]
    seen: dict[str, set[str]] = {}
    for wf in ways:
        for event in Executor().execute_streaming(wf, stream_mode="all"):
            seen.setdefault(event["event"], set()).update(event)
    assert seen.keys() >= fields.keys() - {"node_retried", "events_dropped"}
    for name, keys in seen.items():
        assert keys == fields[name] | {"event", "time", "category", "phase"}, name


# ------------------------------------------------------------------------------------------------------ as they happen


def test_an_event_is_there_while_the_run_goes_on(gate: Gate) -> None:
    seen = []
    for event in Executor().execute_streaming(linked(gate.node("a"), Node.function(lambda a: a, "b"))):
        seen.append(told([event])[0])
        if seen[-1] == "node_started a":
            gate.open.set()
    assert seen[-1] == "workflow_completed"


def test_a_node_that_ended_is_told_before_the_next_of_its_chain_ends(gate: Gate) -> None:
    """Both are one segment, run by one thread without going back to the core in between."""
    wf = linked(Node.function(lambda: 1, "a"), gate.node("b"), edges="a-b")
    for event in Executor().execute_streaming(wf):
        if told([event]) == ["node_completed a"]:
            gate.open.set()


def test_what_a_node_emits_is_there_while_it_runs_and_in_its_place(gate: Gate) -> None:
    def speaks() -> str:
        graphbit.current().emit({"part": 1})
        opened(gate.open)
        graphbit.current().emit({"part": 2})
        return "done"

    seen = []
    for event in Executor().execute_streaming(
        linked(Node.function(lambda: 0, "first"), Node.function(speaks, "a"), edges="first-a")
    ):
        seen.append(event)
        if event["event"] == "value":
            gate.open.set()
    assert told(seen)[3:7] == ["node_started a", "value a", "value a", "node_completed a"]
    assert [it["value"] for it in of("value", seen)] == [{"part": 1}, {"part": 2}]


def test_async_nodes_emit_too() -> None:
    async def speaks() -> None:
        graphbit.current().emit(1)
        await asyncio.sleep(0)
        graphbit.current().emit(2)

    async def main() -> list[Event]:
        return await collect(Executor().execute_streaming(linked(Node.function(speaks, "a"))))

    for events in (asyncio.run(main()), list(Executor().execute_streaming(linked(Node.function(speaks, "a"))))):
        assert [it["value"] for it in of("value", events)] == [1, 2]


def test_values_of_many_threads_keep_the_order_of_each_node() -> None:
    line = threading.Barrier(4)

    def speaks() -> None:
        line.wait(PATIENCE)
        for i in range(200):
            graphbit.current().emit(i)

    wf = linked(*[Node.function(speaks, f"n{i}") for i in range(4)])
    values = of("value", list(Executor().execute_streaming(wf)))
    for i in range(4):
        assert [it["value"] for it in values if it["node_name"] == f"n{i}"] == list(range(200))


def test_a_node_is_told_as_started_when_a_thread_takes_it(threads: Callable[[int], None]) -> None:
    threads(2)
    go_on = threading.Event()
    line = threading.Barrier(3)

    def work() -> None:
        if not go_on.is_set():
            line.wait(PATIENCE)
            opened(go_on)

    stream = Executor().execute_streaming(linked(*[Node.function(work, f"n{i}") for i in range(6)]))
    line.wait(PATIENCE)
    assert list(stream.run.states().values()).count("running") == 2
    go_on.set()
    assert len(of("node_started", list(stream))) == 6


def test_items_of_a_map_and_nested_workflows_speak_as_their_node() -> None:
    inner = linked(Node.function(lambda x: graphbit.current().emit(x), "speaks"))
    wf = Workflow("w")
    wf.add(
        Node.function(lambda: [1, 2, 3], "list"),
        Node.function(lambda: 7, "number"),
        Node.function(lambda: [8], "short"),
        Node.map("each", "list", lambda item: graphbit.current().emit(item)),
        Node.workflow("nested", inner, {"x": "number"}),
        Node.workflow("deep", linked(Node.map("m", "x", lambda item: graphbit.current().emit(item))), {"x": "short"}),
    )
    values = of("value", list(Executor().execute_streaming(wf, stream_mode="messages")))
    assert sorted((it["node_name"], it["value"]) for it in values) == [
        ("deep", 8),
        ("each", 1),
        ("each", 2),
        ("each", 3),
        ("nested", 7),
    ]


def test_composites_start_and_end_once() -> None:
    wf = linked(
        Node.function(lambda: list(range(20)), "list"),
        Node.function(lambda: 0, "zero"),
        Node.map("each", "list", linked(Node.function(lambda item: item, "one")), limit=3),
        Node.loop("again", lambda state: state + 1, until=lambda state: state >= 5, max_iterations=10, initial="zero"),
    )
    names = told(Executor().execute_streaming(wf))
    for node in ("each", "again"):
        assert names.count(f"node_started {node}") == names.count(f"node_completed {node}") == 1
    assert len(names) == 10


def test_emitting_without_a_stream_does_nothing() -> None:
    wf = linked(Node.function(lambda: graphbit.current().emit(1), "a"))
    assert Executor().execute(wf).is_success()


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
