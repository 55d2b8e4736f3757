"""Streams: what happens in a run, as dicts, while it happens.

The core keeps a log of a run that is watched: nodes that start and end, values that nodes emit, the end. A stream takes
records out and makes an event of each. It waits in the core until there is one: a thread on a lane of its own, a task through
its event loop's lane. The run never waits for its reader: what the log has no room for is dropped and counted.

Whoever waits here runs no callbacks of the run: callback threads do, so an event is never late for a slow node. A callback
thread that reads a stream itself does run them, for there may be no other thread left that could.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from struct import Struct
from time import gmtime, strftime, time_ns

from graphbit._events import EVENTS, EventSink
from graphbit._ffi import NONE, NULL, check, ffi, lib
from graphbit.errors import (
    RunCancelledError,
    RuntimeClosedError,
    RunTimeoutError,
    message_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from graphbit.result import WorkflowResult
    from graphbit.run import Run

    Event = dict[str, Any]
    Record = tuple[int, int, int, int, int, int]


_ITEM_EVENTS: int = lib.GB_ITEM_EVENTS
_VALUE: int = lib.GB_EVENT_VALUE
_OVER: int = lib.GB_EVENT_RUN_OVER
_GAP = 0  # ours: so many records were dropped here
_NAMES: dict[int, str] = {
    lib.GB_EVENT_NODE_STARTED: "node_started",
    lib.GB_EVENT_NODE_COMPLETED: "node_completed",
    lib.GB_EVENT_NODE_FAILED: "node_failed",
    lib.GB_EVENT_NODE_RETRIED: "node_retried",
    lib.GB_EVENT_NODE_SKIPPED: "node_skipped",
    lib.GB_EVENT_NODE_CANCELLED: "node_cancelled",
    _GAP: "events_dropped",
}
_BATCH = 64
_RECORD = Struct("=QQIIII")  # gb_event: time, value, kind, node, attempt, reserved

# ------------------------------------------------------------------------------------------------------- the stream


class RunStream:
    """A run's events, as `Executor.execute_streaming` returns it.

    ```python
    for event in executor.execute_streaming(workflow, {"topic": "bees"}):
        if event["event"] == "node_completed":
            print(event["node_name"], event["output"])

    async for event in executor.execute_streaming(workflow, {"topic": "bees"}): ...

    with executor.execute_streaming(workflow) as stream:    # also `async with`
        for event in stream: ...
    result = stream.result
    ```

    Leaving the loop ends the stream: `break`, an exception, cancelling the task and dropping the stream cancel the run, as
    `close` does. `next(stream)` and `anext(stream)` take single events and leave the run alone.

    The run never waits for its reader. Up to `buffer` events are kept; when there is no room the newest are dropped, and one
    `events_dropped` with their `count` stands in their place. The end is never dropped.

    Events are dicts: `Executor.get_stream_event_schema()` lists them all. Outputs and emitted values are the objects
    themselves; the rest is plain data.
    """

    __slots__ = (
        "__weakref__",
        "_broken",
        "_closed",
        "_count",
        "_dropped",
        "_guard",
        "_mode",
        "_offset_ns",
        "_outcome",
        "_over",
        "_pending",
        "_predecessors",
        "_records",
        "_report",
        "_run",
        "_second",
        "_sink",
        "_text",
        "_view",
    )

    def __init__(self, run: Run, sink: EventSink, mode: str) -> None:
        self._run = run
        self._sink = sink
        self._mode = mode
        self._closed = False
        self._over = False
        self._outcome: WorkflowResult | BaseException | None = None
        self._guard = threading.Lock()  # held by whoever takes the next event
        self._broken: dict[int, int] = {}  # nodes that failed or were skipped for it: the node that failed
        self._predecessors: dict[int, list[int]] | None = None
        self._records: Any = ffi.new("gb_event[]", _BATCH)
        self._view = ffi.buffer(self._records)
        self._count: Any = ffi.new("uint32_t *")
        self._dropped: Any = ffi.new("uint64_t *")
        self._report: Any = ffi.new("gb_node_report *")
        self._offset_ns = time_ns() - lib.gb_runtime_now(run.core.handle)
        self._second, self._text = -1, ""
        self._pending: deque[Record | Event] = deque()
        if _wanted("workflow_started", mode):
            self._pending.append(self._first())

    @property
    def run(self) -> Run:
        """`stream.run.states()`: the run behind the stream."""
        return self._run

    @property
    def result(self) -> WorkflowResult:
        """`stream.result`, after the last event: what `Executor.execute` would have returned.

        Raises:
            RunTimeoutError, RuntimeClosedError: what `execute` would have raised.
            RuntimeError: the last event was not taken yet, or the stream was closed before.
        """
        if self._outcome is None:
            why = "was closed before its run was over" if self._closed else "has events left; take them first"
            raise RuntimeError(f"the stream of workflow {self._run.workflow_name!r} {why}")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def close(self) -> None:
        """`stream.close()`: cancels the run unless it is over. What was not taken is gone. From any thread."""
        if self._closed or self._over:
            return
        self._closed = True
        self._sink.close()
        if not self._run.core.is_foreign():
            self._run.cancel()

    async def aclose(self) -> None:
        """`await stream.aclose()`: the same."""
        self.close()

    # ---------------------------------------------------------------------------------------------------- iteration

    def __iter__(self) -> _Loop:
        return _Loop(self)

    def __aiter__(self) -> _Loop:
        return _Loop(self)

    def __next__(self) -> Event:
        event = self._next()
        if event is None:
            raise StopIteration
        return event

    async def __anext__(self) -> Event:
        event = await self._anext()
        if event is None:
            raise StopAsyncIteration
        return event

    def _next(self) -> Event | None:
        """The next event, None after the last."""
        self._begin()
        try:
            while not self._ended():
                event = self._ready()
                if event is not None:
                    return event
                if not self._ended():
                    self._wait()
            return None
        finally:
            self._guard.release()

    async def _anext(self) -> Event | None:
        self._begin()
        try:
            while not self._ended():
                event = self._ready()
                if event is not None:
                    return event
                if not self._ended():
                    await self._await()
            return None
        finally:
            self._guard.release()

    def _begin(self) -> None:
        if not self._guard.acquire(blocking=False):
            raise RuntimeError("a stream has one reader: another thread or task is waiting for its next event")

    def _ended(self) -> bool:
        return self._closed or (self._over and not self._pending)

    # ------------------------------------------------------------------------------------------------------ waiting

    def _wait(self) -> None:
        """Until there are events to take, or the runtime has ended."""
        run, core = self._run, self._run.core
        run._check_not_forked()
        run._check_not_on_loop()
        token = core.new_token()
        told = False

        def on_item(item: Any) -> bool:
            nonlocal told
            told = told or (item.kind == _ITEM_EVENTS and item.token == token)
            return told

        pulls = core.on_callback_thread()
        try:
            lane = core.caller()
            try:
                if pulls:
                    check(lib.gb_run_attach(run.handle, lane.queue, run.token, 1), "waiting for events")
                check(lib.gb_run_listen(run.handle, lane.queue, token), "waiting for events")
                if pulls:
                    core.wait_over(lane, run, -1, on_item)
                else:
                    core.wait_items(lane, on_item)
            finally:
                if not core.closed:
                    if not told:
                        lib.gb_run_listen(run.handle, NULL, 0)
                    if pulls:
                        lib.gb_run_detach(run.handle, lane.queue)
                core.done_waiting(lane)
        except RuntimeClosedError:
            self._after_shutdown()

    async def _await(self) -> None:
        """The same on an event loop."""
        from graphbit._loop import running_lane

        run, core = self._run, self._run.core
        run._check_not_forked()
        try:
            lane = running_lane(core)
            assert lane is not None
            if lane.queue is None:
                raise RuntimeClosedError("the graphbit runtime was shut down while events were waited for")
            token = core.new_token()
            future = lane.expect(token)
            try:
                check(lib.gb_run_listen(run.handle, lane.queue, token), "waiting for events")
                await future
            finally:
                if lane.waiters.pop(token, None) is not None and not core.closed:
                    lib.gb_run_listen(run.handle, NULL, 0)
        except RuntimeClosedError:
            self._after_shutdown()

    def _after_shutdown(self) -> None:
        """The runtime has ended. The run has too, and mostly its end is in the log."""
        if not self._take():
            self._closed = True
            self._sink.close()
            raise

    def _ready(self) -> Event | None:
        """The next event if there is one already."""
        pending = self._pending
        while True:
            while pending:
                record = pending.popleft()
                event = record if isinstance(record, dict) else self._event(record)
                if event is not None:
                    return event
            if self._over or not self._take():
                return None

    def _take(self) -> bool:
        """Takes records out of the log; False where there are none."""
        check(lib.gb_run_events(self._run.handle, self._records, _BATCH, self._count, self._dropped), "reading events")
        number = self._count[0]
        if not number:
            return False
        self._pending.extend(_RECORD.iter_unpack(self._view[: number * _RECORD.size]))
        if self._dropped[0]:
            last = self._pending[-1]
            assert isinstance(last, tuple)
            self._pending.append((last[0], self._dropped[0], _GAP, 0, 0, 0))
        return True

    # ------------------------------------------------------------------------------------------- records into events

    def _first(self) -> Event:
        from uuid import NAMESPACE_URL, uuid5

        run = self._run
        summary = ffi.new("gb_run_summary *")
        lib.gb_run_summary_read(run.handle, summary)
        return self._made(
            "workflow_started",
            summary.started_ns,
            {
                "workflow_id": str(uuid5(NAMESPACE_URL, f"graphbit:workflow:{run.workflow_name}")),
                "workflow_name": run.workflow_name,
                "total_nodes": run.lowered.visible,
            },
        )

    def _event(self, record: Record) -> Event | None:
        """What a record tells; None where the mode leaves it out."""
        time, value, kind, node, attempt, _ = record
        if kind == _OVER:
            return self._last(time)
        fields: dict[str, Any] = {}
        if kind == _VALUE:
            emitted = self._sink.take(value)
            if emitted is None:
                return None
            name, fields = emitted
        else:
            name = _NAMES[kind]
        if not _wanted(name, self._mode):
            return None
        if kind == _GAP:
            return self._made(name, time, {"count": value})
        if node >= self._run.lowered.visible:
            return None  # it stands in for another, whose events these are as well
        about: dict[str, Any] = {"node_id": self._run.lowered.nodes[node].id(), "node_name": self._run.names[node]}
        if kind == lib.GB_EVENT_NODE_STARTED:
            about["attempt"] = attempt
        elif kind == lib.GB_EVENT_NODE_COMPLETED:
            about["output"] = self._run.value(node)
            about["duration_ms"] = self._duration_ms(node)
        elif kind == lib.GB_EVENT_NODE_FAILED:
            self._broken[node] = node
            about.update(_told(self._run.error_of(node)), duration_ms=self._duration_ms(node))
        elif kind == lib.GB_EVENT_NODE_RETRIED:
            about.update(attempt=attempt, delay=value / 1e9)
            error = self._run.errors.get(node)
            if error is not None and self._read(node).attempts == attempt:  # else it may be a later attempt's
                about.update(_told(error))
        elif kind == lib.GB_EVENT_NODE_SKIPPED:
            about["reason"] = self._reason(node)
        return self._made(name, time, {**about, **fields})

    def _last(self, time: int) -> Event:
        run = self._run
        self._over = True
        failure: BaseException
        try:
            result = run._finished()
        except (RunTimeoutError, RuntimeClosedError) as error:
            self._outcome = failure = error
        except BaseException as error:  # Ctrl-C or an exit, inside a node
            self._outcome = error
            raise
        else:
            self._outcome = result
            if result.is_success():
                return self._made("workflow_completed", time, {"result": result, "outputs": result.outputs})
            failure = (
                run.error_of(result.first_failed)
                if result.first_failed != NONE
                else RunCancelledError(f"the run of workflow {run.workflow_name!r} was cancelled", result)
            )
        finally:
            self._sink.close()
        return self._made("workflow_failed", time, _told(failure))

    def _made(self, name: str, time: int, fields: dict[str, Any]) -> Event:
        category, phase, *_ = EVENTS[name]
        second, rest = divmod(time + self._offset_ns, 1_000_000_000)
        if second != self._second:  # a second's text is made once: it costs as much as the rest of an event
            self._second, self._text = second, strftime("%Y-%m-%dT%H:%M:%S.", gmtime(second))
        stamp = f"{self._text}{rest // 1000:06d}+00:00"
        return {"event": name, "time": stamp, "category": category, "phase": phase, **fields}

    def _read(self, node: int) -> Any:
        check(lib.gb_run_reports(self._run.handle, node, 1, self._report), "reading a report")
        return self._report

    def _duration_ms(self, node: int) -> float:
        report = self._read(node)
        started = report.started_ns
        if report.attempts > 1:
            from graphbit.result import read_waits

            started = read_waits(self._run, node, 1)[0].last_started_ns or started
        return max(0, report.ended_ns - started) / 1e6 if started else 0.0

    def _reason(self, node: int) -> str:
        before = self._predecessors
        if before is None:
            edges = self._run.lowered.edges
            before = self._predecessors = {}
            for i in range(0, len(edges), 2):
                before.setdefault(edges[i + 1], []).append(edges[i])
        for source in before.get(node, ()):
            failed = self._broken.get(source)
            if failed is not None:
                self._broken[node] = failed
                return f"node {self._run.names[failed]!r} failed"
        return "no condition chose a way that leads to it"

    # ------------------------------------------------------------------------------------------------------- leaving

    def __enter__(self) -> RunStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> RunStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "exhausted" if self._ended() else "active"
        return f"RunStream(workflow={self._run.workflow_name!r}, mode={self._mode!r}, {state})"

    def __del__(self) -> None:
        if sys is None or sys.is_finalizing() or getattr(self, "_pending", None) is None:
            return
        self.close()


class _Loop:
    """What a `for` or `async for` holds of a stream. It goes when the loop is left, in whatever way, and closes the stream."""

    __slots__ = ("_stream",)

    def __init__(self, stream: RunStream) -> None:
        self._stream = stream

    def __iter__(self) -> _Loop:
        return self

    def __aiter__(self) -> _Loop:
        return self

    def __next__(self) -> Event:
        try:
            event = self._stream._next()
        except BaseException:
            self._stream.close()  # Ctrl-C: the traceback holds this frame, and with it the stream
            raise
        if event is None:
            raise StopIteration
        return event

    async def __anext__(self) -> Event:
        try:
            event = await self._stream._anext()
        except BaseException:
            self._stream.close()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        if sys is not None and not sys.is_finalizing():
            self._stream.close()


def _wanted(name: str, mode: str) -> bool:
    return mode in EVENTS[name][2]


def _told(error: BaseException) -> dict[str, Any]:
    return {"error": message_of(error), "error_type": type(error).__name__}
