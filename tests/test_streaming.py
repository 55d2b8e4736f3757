"""Streams: a run's events, in order and as they happen.  (test_streaming_readers.py: who reads them.)

Nodes that must wait for the reader wait for a `threading.Event` that it sets; nothing here depends on how long something takes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from flows import PATIENCE, opened
from streams import Event, Gate, collect, linked, of, one, told

import graphbit
from graphbit import Executor, LlmConfig, Node, RetryPolicy, Workflow
from graphbit.errors import ConfigurationError, InputError, RunTimeoutError, WorkflowError
from graphbit.stream import RunStream
from graphbit.testing import FakeProvider


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Callable[[RunStream], list[Event]]:
    """All events of a stream, read in a `for` loop or in an `async for` loop."""
    return list if request.param == "sync" else lambda stream: asyncio.run(collect(stream))


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
