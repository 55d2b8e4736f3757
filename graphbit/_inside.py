"""A run as its own nodes know it: values and errors by number, what became of others, attempts, events.

    run.value(3)    run.part(3, "points.0")    run.error_of(2)    run.outcomes_before(5)    run.emit(5, "log", {...})

run.py has the other side: how a run starts, how it is waited for and what its result is.
"""

from __future__ import annotations

from graphbit._ffi import check, ffi, lib
from graphbit._lane import ActiveRun
from graphbit._steps import UNREAD
from graphbit._values import NONE, NUMBER, decode, pick
from graphbit.errors import TemplateError, add_note
from graphbit.result import Report, native_error, read_reports, read_waits, state_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from graphbit._composite import Steps
    from graphbit._events import EventSink
    from graphbit._lower import Lowered
    from graphbit._queue import Core
    from graphbit.context import Outcome


class RunInside(ActiveRun):
    """See above."""

    __slots__ = (
        "_parent",
        "choices",
        "inputs",
        "lowered",
        "stops",
        "suspended",
        "timeout_seconds",
        "within",
        "workflow_name",
    )

    core: Core
    names: list[str]
    lowered: Lowered
    inputs: dict[str, Any]
    choices: dict[str, tuple[str, ...]]
    """By condition, the names of what it chose."""
    stops: dict[int, tuple[str, int]]
    """Of loops: why they stopped, and after how many iterations."""
    suspended: dict[tuple[int, int], Steps]
    """Composite nodes that wait for runs they started, by node and attempt: what goes on."""
    sink: EventSink | None
    timeout_seconds: float | None
    within: int  # the node of the outermost run that this one is a part of, else -1
    workflow_name: str
    _parent: tuple[RunInside, int] | None  # the run and node that this one is part of, until that needs it no more

    def value(self, number: int) -> Any:
        """Value `number` as Python knows it: a node's output, None where it has none, or an input."""
        value = self.values[number]
        if value is UNREAD:
            if number in self.lowered.passing:  # a delay
                return self.passed_on(number) if self._has_succeeded(number) else None
            out = ffi.new("gb_value *")
            check(lib.gb_run_value(self.handle, number, out), "reading an output")
            if out.kind == NONE:
                return None  # not remembered: it may be there later
            if number in self.lowered.raw:
                return self._view(out.ptr, out.len)  # not remembered: it holds the run
            data = b"" if out.kind == NUMBER else ffi.buffer(out.ptr, out.len)
            value = self.values[number] = decode(out.kind, data, out.len)
        return value

    def _view(self, ptr: Any, length: int) -> memoryview:
        """The core's own bytes, which stay as long as the run: so whoever has the view has the run."""

        def keep(_: Any, run: Any = self) -> None:
            pass

        held = ffi.gc(ffi.cast("uint8_t *", ptr), keep) if length else ffi.new("uint8_t[1]")
        return memoryview(ffi.buffer(held, length)).toreadonly()

    def _has_succeeded(self, node: int) -> bool:
        report = ffi.new("gb_node_report *")
        check(lib.gb_run_reports(self.handle, node, 1, report), "reading a report")
        return bool(report.state == lib.GB_SUCCEEDED)

    def passed_on(self, number: int) -> Any:
        """The output of a condition or delay: its predecessor's, or those of several by name."""
        origins = self.lowered.passing[number]
        reached = self._reached(number)
        if len(origins) == 1:
            return self.value(origins[0]) if origins[0] in reached else None
        return {self.names[it]: self.value(it) if it in reached else None for it in origins} if origins else None

    def brings(self, number: int) -> bool:
        """Whether a condition or delay has anything to pass on: something before it succeeded."""
        return any(self._has_succeeded(it) for it in self._reached(number))

    def _reached(self, number: int) -> set[int]:
        """What stands before `number`, through conditions and delays that have succeeded: the others brought nothing."""
        found: set[int] = set()
        stack = list(self.lowered.before[number])
        while stack:
            it = stack.pop()
            if it not in self.lowered.passing:
                found.add(it)
            elif self._has_succeeded(it):
                stack += self.lowered.before[it]
        return found

    def part(self, number: int, path: str) -> Any:
        """What `path` finds in value `number`."""
        value = self.value(number)
        if not path or value is None:
            return value
        try:
            return pick(value, path)
        except LookupError as error:
            raise TemplateError(f"{self.value_name(number)}: {error}") from None

    def value_name(self, number: int) -> str:
        if number < len(self.names):
            return f"node {self.names[number]!r}"
        return f"input {self.lowered.inputs[number - len(self.names)]!r}"

    def _visible(self, reports: list[Report]) -> zip[tuple[str, Report]]:
        return zip(self.lowered.names[: self.lowered.visible], reports[: self.lowered.visible], strict=True)

    def outputs(self) -> dict[str, Any]:
        """Outputs of the nodes that have succeeded so far."""
        succeeded = lib.GB_SUCCEEDED
        return {
            name: self.value(i)
            for i, (name, report) in enumerate(self._visible(read_reports(self)))
            if report.state == succeeded
        }

    def part_if_succeeded(self, number: int, path: str) -> Any:
        """What `path` finds in value `number`; None where that is the output of a node that has not succeeded."""
        origins = self.lowered.passing.get(number)
        if number < len(self.names) and not self._has_succeeded(number):
            return None
        if origins is not None and len(origins) == 1 and not self._has_succeeded(origins[0]):
            return None
        return self.part(number, path)

    def error_of(self, node: int) -> BaseException:
        """What a node's last attempt failed with. Made once: it is the same object every time."""
        error = self.errors.get(node)
        if error is None or node in self.lowered.timed:
            found = native_error(self, node, error)
            if found is not error:
                add_note(found, f"raised by node {self.names[node]!r}")
                error = self.errors[node] = found
        assert error is not None
        return error

    # ------------------------------------------------------------------------------------------- what nodes ask for

    def seconds_left(self, node: int) -> float | None:
        """To the run, or to the attempt that `node` is at, whichever is less."""
        now = lib.gb_runtime_now(self.core.handle)
        left: list[float] = []
        if self.timeout_seconds is not None:
            summary = ffi.new("gb_run_summary *")
            lib.gb_run_summary_read(self.handle, summary)
            left.append(self.timeout_seconds - (now - summary.started_ns) / 1e9)
        timeout = self.lowered.nodes[node].options.timeout
        if timeout is not None:
            started = read_waits(self, node, 1)[0].last_started_ns or read_reports(self)[node].started_ns
            left.append(timeout - (now - started) / 1e9)
        parent = self._parent
        outer = parent[0].seconds_left(parent[1]) if parent is not None else None
        if outer is not None:
            left.append(outer)
        return max(0.0, min(left)) if left else None

    def outcomes_before(self, node: int) -> dict[str, Outcome]:
        """What became of a node's predecessors, by name."""
        from graphbit.context import Outcome

        reports = read_reports(self)
        before = self.lowered.before[node] if self.lowered.before else []
        if not before:
            edges = self.lowered.edges
            before = [edges[i] for i in range(0, len(edges), 2) if edges[i + 1] == node]
        found: dict[str, Outcome] = {}
        for it in before:
            state = reports[it].state
            value = self.value(it) if state == lib.GB_SUCCEEDED else None
            error = self.error_of(it) if state == lib.GB_FAILED else None
            found[self.names[it]] = Outcome(state_name(state), value, error)
        return found

    def emit(self, node: int, kind: str, value: Any) -> None:
        """Puts something into the event stream, if there is one."""
        if self.sink is not None:
            self.sink.emit(self.visible_as(node), kind, value)

    def visible_as(self, node: int) -> int:
        """The node of the outermost run that `node` of this one is, or is a part of."""
        return node if self.within < 0 else self.within
