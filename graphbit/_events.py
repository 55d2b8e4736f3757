"""The events of a run: their names and fields, and which of them each stream mode shows. One table serves the streams and
the schema that programs can ask for. And the place where what nodes emit waits for the stream: stream.py."""

from __future__ import annotations

from itertools import count
from weakref import ref

from graphbit._ffi import lib
from graphbit.errors import ConfigurationError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from graphbit.result import WorkflowResult
    from graphbit.run import Run

MODES = ("updates", "messages", "all")
BUFFER_MAX = 1_000_000
_BUFFER = 4096

_UPDATES, _ALWAYS = ("updates", "all"), MODES
_NODE = {
    "node_id": ("str", "the node's id, as Node.id() gives it"),
    "node_name": ("str", "the node's name"),
}
_ERROR = {
    "error": ("str", "what the exception says"),
    "error_type": ("str", "the exception's class, such as 'RateLimitError'"),
}
_DURATION = {"duration_ms": ("float", "how long the last attempt took")}

# name: category, phase, modes, what it means, its fields besides event, time, category and phase
EVENTS: dict[str, tuple[str, str, tuple[str, ...], str, dict[str, tuple[str, str]]]] = {
    "workflow_started": (
        "workflow",
        "started",
        _UPDATES,
        "The run began. Always first.",
        {
            "workflow_id": ("str", "the same for every workflow of this name"),
            "workflow_name": ("str", "the workflow's name"),
            "total_nodes": ("int", "how many nodes it has"),
        },
    ),
    "node_started": (
        "node",
        "started",
        _UPDATES,
        "An attempt at a node began.",
        {**_NODE, "attempt": ("int", "1 for the first")},
    ),
    "node_completed": (
        "node",
        "completed",
        _UPDATES,
        "A node succeeded.",
        {**_NODE, "output": ("any", "its output, the object itself; of an agent the text"), **_DURATION},
    ),
    "node_failed": (
        "node",
        "failed",
        _UPDATES,
        "A node failed for good. Whether that fails the run depends on its successors.",
        {**_NODE, **_ERROR, **_DURATION},
    ),
    "node_retried": (
        "node",
        "retried",
        _UPDATES,
        "An attempt at a node failed; there will be another. error and error_type are there where they are still known.",
        {
            **_NODE,
            "attempt": ("int", "the one that failed"),
            "delay": ("float", "seconds until the next one"),
            **_ERROR,
        },
    ),
    "node_skipped": (
        "node",
        "skipped",
        _UPDATES,
        "A node will not run.",
        {**_NODE, "reason": ("str", "why, for people: which node failed, or that no condition chose this way")},
    ),
    "node_cancelled": (
        "node",
        "cancelled",
        _UPDATES,
        "A node was stopped, or its run was before its turn came.",
        _NODE,
    ),
    "value": (
        "node",
        "value",
        _ALWAYS,
        "A node called graphbit.current().emit(value).",
        {**_NODE, "value": ("any", "the object itself")},
    ),
    "log": (
        "node",
        "log",
        _UPDATES,
        "A node called graphbit.current().log(message).",
        {**_NODE, "message": ("str", "the message")},
    ),
    "progress": (
        "node",
        "progress",
        _UPDATES,
        "A node called graphbit.current().progress(fraction).",
        {
            **_NODE,
            "progress": ("float", "how much of it is done, from 0 to 1"),
            "message": ("str or None", "what is being done"),
        },
    ),
    "events_dropped": (
        "stream",
        "dropped",
        _ALWAYS,
        "The reader was late by more than the buffer; the events that would have stood here were dropped.",
        {"count": ("int", "how many, before any is left out by the mode")},
    ),
    "workflow_completed": (
        "workflow",
        "completed",
        _ALWAYS,
        "The run succeeded. Always last.",
        {
            "result": ("WorkflowResult", "as Executor.execute() returns it"),
            "outputs": ("dict", "outputs of the nodes that succeeded, by name, the objects themselves"),
        },
    ),
    "workflow_failed": (
        "workflow",
        "failed",
        _ALWAYS,
        "The run failed, was cancelled or had no time left. Always last.",
        _ERROR,
    ),
}


def checked_mode(mode: str | None) -> str:
    """The mode in small letters; None is "updates".

    Raises:
        ConfigurationError: it is none of these.
    """
    if mode is None:
        return "updates"
    wanted = mode.lower() if isinstance(mode, str) else ""
    if wanted not in MODES:
        near = nearest(wanted, MODES)
        raise ConfigurationError(f"stream_mode is 'updates', 'messages' or 'all', got {mode!r}{near}")
    return wanted


def event_schema() -> dict[str, Any]:
    """What `Executor.get_stream_event_schema()` returns: plain data, made anew by every call."""
    groups: dict[str, list[str]] = {}
    for name, (category, *_) in EVENTS.items():
        groups.setdefault(category, []).append(name)
    return {
        "description": "Events of Executor.execute_streaming(): one dict each, in the order in which things happened.",
        "version": 1,
        "generic_dimensions": {
            "category": list(groups),
            "phase": list(dict.fromkeys(phase for _, phase, *_ in EVENTS.values())),
        },
        "stream_modes": {
            "updates": "how the workflow and its nodes fare, and what nodes emit, log and report as progress",
            "messages": "what nodes emit while they run, and how the workflow ended",
            "all": "everything",
        },
        "event_groups": groups,
        "common_fields": [
            _field("event", "str", "the event's name"),
            _field("time", "str", "when it happened: RFC 3339, UTC, microseconds"),
            _field("category", "str", "what it is about"),
            _field("phase", "str", "what happened to that"),
        ],
        "events": [
            {
                "event": name,
                "category": category,
                "phase": phase,
                "stream_modes": list(modes),
                "description": description,
                "fields": [_field(field, *about) for field, about in fields.items()],
            }
            for name, (category, phase, modes, description, fields) in EVENTS.items()
        ],
    }


def _field(name: str, kind: str, description: str) -> dict[str, str]:
    return {"name": name, "type": kind, "description": description}


# --------------------------------------------------------------------------------------------------- what nodes emit


class EventSink:
    """What the nodes of one run emit, kept here by number until the stream reads it: the core's log holds the number.

    So there is one order for everything, and one bound: the log refuses what it has no room for.
    """

    __slots__ = ("_capacity", "_kept", "_numbers", "_run", "closed")

    def __init__(self, buffer: int | None, node_count: int) -> None:
        if buffer is None:  # room for the start and the end of every node, though nobody reads meanwhile
            buffer = min(max(_BUFFER, 2 * node_count + _BUFFER // 4), BUFFER_MAX)
        elif isinstance(buffer, bool) or not isinstance(buffer, int) or not 1 <= buffer <= BUFFER_MAX:
            raise ConfigurationError(f"buffer is a number of events from 1 to {BUFFER_MAX:,}, got {buffer!r}")
        self._capacity = buffer
        self._run: Callable[[], Run | None] = _nobody
        self._kept: dict[int, tuple[str, dict[str, Any]]] = {}
        self._numbers = count(1)
        self.closed = False

    def open(self, run: Run) -> int:
        """It is `run` that is watched, and is about to start. Returns how much room its log must have."""
        self._run = ref(run)
        return self._capacity

    def over(self, then: Callable[[WorkflowResult], None]) -> Callable[[WorkflowResult], None]:
        """What the run calls with its result: a reader who has left does not want to hear of failures either."""

        def on_over(result: WorkflowResult) -> None:
            if self.closed:
                result.looked_at()
            then(result)

        return on_over

    def emit(self, node: int, event: str, value: Any) -> None:
        """Adds an event of node `node` of the watched run: a "value", or "log" or "progress" with its fields. Any thread; never
        waits."""
        run = self._run()
        if self.closed or run is None:
            return
        number = next(self._numbers)
        # First: it may be read before the next line ends.
        self._kept[number] = event, {"value": value} if event == "value" else value
        if not lib.gb_run_emit(run.handle, node, number):
            self._kept.pop(number, None)

    def take(self, number: int) -> tuple[str, dict[str, Any]] | None:
        """What was emitted under this number; None once the sink was closed."""
        return self._kept.pop(number, None)

    def close(self) -> None:
        """Nobody reads any more."""
        self.closed = True
        self._kept.clear()


def _nobody() -> None:
    return None
