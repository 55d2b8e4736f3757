"""What became of a run."""

from __future__ import annotations

import sys
from array import array

from graphbit._ffi import NONE, check, ffi, lib, optional_text, text
from graphbit.errors import (
    JoinError,
    NativeFunctionError,
    NodeError,
    NodeNotRunError,
    NodeTimeoutError,
    RunCancelledError,
    UnknownNameError,
    message_of,
    nearest,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from graphbit._inside import RunInside
    from graphbit.profile import Profile
    from graphbit.run import Run

_STATES = ("blocked", "ready", "running", "succeeded", "failed", "skipped", "cancelled", "waiting")
_SUCCEEDED: int = lib.GB_SUCCEEDED
_FAILED: int = lib.GB_FAILED
_SKIPPED: int = lib.GB_SKIPPED
_CANCELLED: int = lib.GB_CANCELLED


class Report:
    """A node's part in a run, as the core tells it. Times in nanoseconds of the runtime's clock; 0: never."""

    __slots__ = ("attempts", "ended_ns", "ready_ns", "started_ns", "state")

    def __init__(self, ready_ns: int, started_ns: int, ended_ns: int, state: int, attempts: int) -> None:
        self.ready_ns = ready_ns
        self.started_ns = started_ns
        self.ended_ns = ended_ns
        self.state = state
        self.attempts = attempts

    def is_final(self) -> bool:
        return _SUCCEEDED <= self.state <= _CANCELLED


class Waits:
    """What a node waited for, in nanoseconds."""

    __slots__ = ("backoff_ns", "earlier_ns", "last_started_ns", "limit_ns")

    def __init__(self, limit_ns: int, backoff_ns: int, earlier_ns: int, last_started_ns: int) -> None:
        self.limit_ns = limit_ns
        self.backoff_ns = backoff_ns
        self.earlier_ns = earlier_ns
        self.last_started_ns = last_started_ns


class Times:
    """A node's times, as profile.py wants them."""

    __slots__ = ("attempts", "backoff_ns", "earlier_ns", "ended_ns", "limit_ns", "ready_ns", "started_ns")

    def __init__(self, report: Report, waits: Waits) -> None:
        self.ready_ns = report.ready_ns
        self.started_ns = waits.last_started_ns or report.started_ns
        self.ended_ns = report.ended_ns
        self.limit_ns = waits.limit_ns
        self.backoff_ns = waits.backoff_ns
        self.earlier_ns = waits.earlier_ns
        self.attempts = report.attempts


def read_waits(run: RunInside, first: int, count: int) -> list[Waits]:
    words = array("Q", bytes(32 * count))
    if count:
        check(lib.gb_run_waits(run.handle, first, count, ffi.from_buffer("gb_node_waits[]", words)), "reading waits")
    return [Waits(*words[i : i + 4]) for i in range(0, 4 * count, 4)]


def read_reports(run: RunInside) -> list[Report]:
    count = len(run.names)
    words = array("Q", bytes(32 * count))  # three times, then state and attempts in one word
    if count:
        check(lib.gb_run_reports(run.handle, 0, count, ffi.from_buffer("gb_node_report[]", words)), "reading reports")
    return [
        Report(words[i], words[i + 1], words[i + 2], words[i + 3] & 0xFFFFFFFF, words[i + 3] >> 32)
        for i in range(0, 4 * count, 4)
    ]


def state_name(state: int) -> str:
    return _STATES[state]


class NodeReport:
    """How a node fared: `result.nodes["draft"]`.

    Attributes:
        name: the node's.
        state: "succeeded", "failed", "skipped" (a predecessor failed, or a condition chose another way), "cancelled".
        attempts: how often it was tried; 0 where it never started. A function that a thread had in hand in the moment in which
            its run was stopped counts as tried, even if that thread is about to find out and not to call it.
        ready, started, ended: seconds since the run began; None where it never came to that. With several attempts: from the
            first's start to the last one's end.
        fallback: whether its output is its fallback's.
        stopped, iterations: of a loop, why it stopped ("until" or "max_iterations") and after how many iterations.
    """

    __slots__ = ("attempts", "ended", "fallback", "iterations", "name", "ready", "started", "state", "stopped")

    def __init__(
        self,
        name: str,
        report: Report,
        run_started_ns: int,
        fallback: bool = False,
        stopped: tuple[str | None, int | None] = (None, None),
    ) -> None:
        def seconds(ns: int) -> float | None:
            return (ns - run_started_ns) / 1e9 if ns else None

        self.name = name
        self.fallback = fallback
        self.stopped, self.iterations = stopped
        self.state = _STATES[report.state]
        self.attempts = report.attempts
        self.ready = seconds(report.ready_ns)
        self.started = seconds(report.started_ns) if report.attempts else None
        self.ended = seconds(report.ended_ns)

    @property
    def duration(self) -> float | None:
        """Seconds from start to end; None where it did not start."""
        return self.ended - self.started if self.started is not None and self.ended is not None else None

    def __repr__(self) -> str:
        return f"NodeReport({self.name!r}, {self.state}, attempts={self.attempts}, duration={self.duration})"


class WorkflowResult:
    """What a run brought.

    ```python
    result = executor.execute(workflow, {"topic": "bees"})
    result["draft"]                # a node's output; raises the node's error if it failed
    result.outputs                 # {"outline": …, "draft": …}
    result.errors                  # {} or {"draft": RateLimitError(…)}
    result.raise_for_failure()     # the first failure, if there was one
    ```

    A result that holds a failure and was never looked at logs an error when it is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_errors",
        "_ids",
        "_looked_at",
        "_reports",
        "_run",
        "cause",
        "counts",
        "ended_ns",
        "first_failed",
        "started_ns",
    )

    def __init__(self, run: Run) -> None:
        summary = ffi.new("gb_run_summary *")
        lib.gb_run_summary_read(run.handle, summary)
        self._run = run
        self.cause: int = summary.cause
        self.first_failed: int = summary.first_failed
        self.counts: list[int] = list(summary.counts)
        self.started_ns: int = summary.started_ns
        self.ended_ns: int = summary.ended_ns
        self._reports: list[Report] | None = None
        self._errors: dict[str, BaseException] | None = None
        self._ids: dict[str, int] | None = None
        self._looked_at = False
        if run.lowered.visible < len(run.names):  # hidden nodes are not counted
            self.counts = [0] * len(_STATES)
            for report in self._all_reports()[: run.lowered.visible]:
                self.counts[report.state] += 1
        if self.first_failed != NONE:
            self._error(self.first_failed)  # while the core can be asked: this result may go together with its run

    def looked_at(self) -> None:
        """Whoever has the failure in hand need not be told of it again."""
        self._looked_at = True

    # --------------------------------------------------------------------------------------------------- the whole run

    def is_success(self) -> bool:
        """`result.is_success()`: every node succeeded, was rightly skipped, or failed where the nodes behind it can do without."""
        self._looked_at = True
        return bool(self.cause == lib.GB_CAUSE_NONE and self.first_failed == NONE)

    def is_failed(self) -> bool:
        """`result.is_failed()`: a node failed, or the run was stopped before it was over."""
        return not self.is_success()

    def state(self) -> str:
        """`result.state()`: "Completed", "Failed", "Cancelled" or "TimedOut"."""
        self._looked_at = True
        if self.cause == lib.GB_CAUSE_TIMEOUT:
            return "TimedOut"
        if self.cause in (lib.GB_CAUSE_CANCEL, lib.GB_CAUSE_SHUTDOWN):
            return "Cancelled"
        return "Failed" if self.first_failed != NONE else "Completed"

    def execution_time_ms(self) -> int:
        """`result.execution_time_ms()`: from start to end, in whole milliseconds."""
        return round(self.duration * 1000)

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return (self.ended_ns - self.started_ns) / 1e9

    def raise_for_failure(self) -> WorkflowResult:
        """`executor.execute(wf).raise_for_failure()`: raises the error of the node that failed first, else returns the result.

        Raises:
            RunCancelledError: no node failed, yet the run was cancelled.
        """
        self._looked_at = True
        if self.first_failed != NONE:
            raise self._error(self.first_failed)
        if self.cause != lib.GB_CAUSE_NONE:
            raise RunCancelledError(f"the run of workflow {self._run.workflow_name!r} was cancelled", self)
        return self

    # ----------------------------------------------------------------------------------------------------------- nodes

    def __getitem__(self, node: str) -> Any:
        self._looked_at = True
        number = self._number(node)
        state = self._report(number).state
        if state == _SUCCEEDED:
            return self._run.value(number)
        if state == _FAILED:
            raise self._error(number)
        raise NodeNotRunError(self._why_not(number, state))

    def __contains__(self, node: object) -> bool:
        return node in self._run.lowered.number

    def get(self, node: str, default: Any = None) -> Any:
        """`result.get("draft", "")`: a node's output, or `default` where it has none."""
        number = self._number(node)
        return self._run.value(number) if self._report(number).state == _SUCCEEDED else default

    @property
    def outputs(self) -> dict[str, Any]:
        """Outputs of the nodes that succeeded, by name."""
        return self._run.outputs()

    @property
    def errors(self) -> dict[str, BaseException]:
        """Errors of the nodes that failed, by name; of a function that was asked whether to follow an edge as "a -> b"."""
        self._looked_at = True
        if self._errors is None:
            hidden = set(
                self._run.lowered.stand_ins.values()
            )  # their failure is told as that of the node they stand in for
            self._errors = {
                self._run.names[i]: self._error(i)
                for i, it in enumerate(self._all_reports())
                if it.state == _FAILED and i not in hidden
            }
        return self._errors

    @property
    def states(self) -> dict[str, str]:
        """`{"outline": "succeeded", "draft": "failed", …}`"""
        self._looked_at = True
        names = self._run.names[: self._run.lowered.visible]
        return {name: _STATES[it.state] for name, it in zip(names, self._all_reports(), strict=False)}

    @property
    def nodes(self) -> dict[str, NodeReport]:
        """Every node's state, attempts and times, by name."""
        self._looked_at = True
        return {name: self._node(i) for i, name in enumerate(self._run.names[: self._run.lowered.visible])}

    def _node(self, number: int) -> NodeReport:
        run, reports = self._run, self._all_reports()
        stand_in = run.lowered.stand_ins.get(number)
        fell_back = stand_in is not None and reports[stand_in].state == _SUCCEEDED
        stopped = run.stops.get(number, (None, None))
        return NodeReport(run.names[number], reports[number], self.started_ns, fell_back, stopped)

    def profile(self) -> Profile:
        """`print(result.profile())`: where the time went: the critical path, and what each node waited for."""
        from graphbit.profile import profile

        self._looked_at = True
        run = self._run
        count = run.lowered.visible
        times = [
            Times(report, waits) for report, waits in zip(self._all_reports(), read_waits(run, 0, count), strict=False)
        ]
        edges = [end for edge in run.lowered.visible_edges() for end in edge]
        return profile(run.names[:count], edges, times, self.started_ns, self.ended_ns)

    @property
    def choices(self) -> Mapping[str, tuple[str, ...]]:
        """`{"route": ("refund",)}`: the successors that conditions chose."""
        return dict(self._run.choices)

    # -------------------------------------------------------------------------------------- the original's accessors

    def get_node_output(self, node: str) -> Any:
        """`result.get_node_output("draft")`: by name or id; None where the node has no output."""
        number = self._run.lowered.number.get(node)
        if number is None:
            if self._ids is None:
                self._ids = {it.id(): i for i, it in enumerate(self._run.lowered.nodes)}
            number = self._ids.get(node)
        if number is None or self._report(number).state != _SUCCEEDED:
            return None
        return self._run.value(number)

    def get_all_node_outputs(self) -> dict[str, Any]:
        """`result.get_all_node_outputs()`: as `outputs`."""
        return self.outputs

    def get_variable(self, key: str) -> Any:
        """`result.get_variable("topic")`: an input, or a node's output; None where there is neither."""
        return self.get_all_variables().get(key)

    def get_all_variables(self) -> dict[str, Any]:
        """`result.get_all_variables()`: inputs and outputs."""
        return {**self._run.inputs, **self.outputs}

    def variables(self) -> list[tuple[str, Any]]:
        """`result.variables()`: the same, as pairs."""
        return list(self.get_all_variables().items())

    def get_node_response_metadata(self, node: str) -> dict[str, Any] | None:
        """`result.get_node_response_metadata("draft")`: how a node fared, and what the server told besides its answer.

        Keys: node_name, node_type, state, attempts, duration_ms, success, error; for agents and HTTP nodes that sent a request
        also http_status, request_id, bytes_sent, bytes_received, first_byte_ms; for agents also model, finish_reason,
        response_id and usage (prompt_tokens, completion_tokens, total_tokens, …). None for an unknown node.
        """
        number = self._run.lowered.number.get(node)
        if number is None:
            return None
        self._looked_at = True
        report = self._report(number)
        it = self._node(number)
        found: dict[str, Any] = {
            "node_id": self._run.lowered.nodes[number].id(),
            "node_name": node,
            "node_type": self._run.lowered.nodes[number].kind,
            "state": it.state,
            "attempts": it.attempts,
            "duration_ms": None if it.duration is None else it.duration * 1000,
            "success": report.state == _SUCCEEDED,
            "error": message_of(self._error(number)) if report.state == _FAILED else None,
        }
        if number in self._run.lowered.requests:
            reply = ffi.new("gb_reply *")
            if lib.gb_run_reply(self._run.handle, number, reply) == 0 and reply.attempts:
                found.update(_exchange(reply))
        return found

    def get_all_node_response_metadata(self) -> dict[str, dict[str, Any]]:
        """`result.get_all_node_response_metadata()`: for every node, by name."""
        names = self._run.names[: self._run.lowered.visible]
        return {name: self.get_node_response_metadata(name) or {} for name in names}

    # ------------------------------------------------------------------------------------------------------- inside

    def _number(self, node: str) -> int:
        number = self._run.lowered.number.get(node)
        if number is None:
            raise UnknownNameError(
                f"workflow {self._run.workflow_name!r} has no node {node!r}{nearest(str(node), self._run.names)}"
            )
        return number

    def _all_reports(self) -> list[Report]:
        if self._reports is None:
            self._reports = read_reports(self._run)
        return self._reports

    def _report(self, number: int) -> Report:
        return self._all_reports()[number]

    def _error(self, number: int) -> BaseException:
        """A failed node's error. Made once: it is the same object every time."""
        run = self._run
        stand_in = run.lowered.stand_ins.get(number)
        if stand_in is not None and self._report(stand_in).state == _FAILED:
            error, cause = self._error(stand_in), run.error_of(number)
            if error.__cause__ is None and error is not cause:
                error.__cause__ = cause
            return error
        return run.error_of(number)

    def _why_not(self, number: int, state: int) -> str:
        name = self._run.names[number]
        if state == _SKIPPED:
            broken = self._broken_by(number)
            if broken is None:
                return f"node {name!r} was skipped: no condition chose a way that leads to it, and no edge to it was followed"
            return f"node {name!r} was skipped because node {broken!r} failed; result.errors has its error"
        cause = {
            lib.GB_CAUSE_FAILURE: "because another node failed",
            lib.GB_CAUSE_TIMEOUT: "because the run's time was up",
            lib.GB_CAUSE_NONE: "because the nodes behind it went on without it",
        }.get(self.cause, "with its run")
        return f"node {name!r} was cancelled {cause}"

    def _broken_by(self, number: int) -> str | None:
        """A failed ancestor."""
        before: dict[int, list[int]] = {}
        edges = self._run.lowered.edges
        for i in range(0, len(edges), 2):
            before.setdefault(edges[i + 1], []).append(edges[i])
        seen, stack = set(), [number]
        while stack:
            for source in before.get(stack.pop(), ()):
                if source in seen:
                    continue
                seen.add(source)
                state = self._report(source).state
                if state == _FAILED:
                    return self._run.names[source]
                if state == _SKIPPED:
                    stack.append(source)
        return None

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {_STATES[i]}" for i, count in enumerate(self.counts) if count)
        looked_at = self._looked_at
        state = self.state()
        self._looked_at = looked_at
        return f"WorkflowResult({state}, {counts or 'no nodes'}, {self.duration:.3f} s)"

    def __del__(self) -> None:
        if sys is None or sys.is_finalizing() or getattr(self, "_looked_at", True) or self.first_failed == NONE:
            return  # while the interpreter ends nothing can be imported any more, and our own names may be gone
        import logging

        self._looked_at = True
        error = self._error(self.first_failed)
        logging.getLogger("graphbit").error(
            "workflow %r failed and nobody looked: node %r: %s: %s",
            self._run.workflow_name,
            self._run.names[self.first_failed],
            type(error).__name__,
            message_of(error),
        )


def native_error(run: RunInside, number: int, known: BaseException | None = None) -> BaseException:
    """What the core tells of a failed node; of a callback that is `known` unless its last attempt took too long."""
    name = run.names[number]
    from graphbit._kinds import AgentNode
    from graphbit._reply import request_error, template_message

    node = run.lowered.nodes[number]
    reply = ffi.new("gb_reply *")
    status = lib.gb_run_reply(run.handle, number, reply)
    if run.lowered.steps[number] is not None and status != 0:
        return known or NodeError(f"node {name!r} failed, and its error was lost: out of memory")
    check(status, "reading a reply")
    error: BaseException
    if reply.failure == lib.GB_FAILURE_NODE_TIMEOUT:
        timed_out = NodeTimeoutError(f"node {name!r} took longer than its timeout of {node.options.timeout:g} s")
        timed_out.node = name
        return timed_out
    if reply.failure == lib.GB_FAILURE_NONE_LEFT:
        joined = JoinError(f"node {name!r} joins by 'any', and none of its predecessors succeeded")
        joined.node = name
        return joined
    if reply.failure == lib.GB_FAILURE_NATIVE:
        failed = NativeFunctionError(f"native node {name!r}: {text(reply.detail)}")
        failed.node = name
        return failed
    if reply.failure == lib.GB_FAILURE_TEMPLATE:
        from graphbit.errors import TemplateError

        names = [run.value_name(i) for i in range(len(run.values))]
        error = TemplateError(f"node {name!r}: {template_message(text(reply.detail), names)}")
    elif reply.failure == lib.GB_FAILURE_OUT_OF_MEMORY:
        return MemoryError(f"out of memory in node {name!r}")
    else:
        config = (node.llm_config or run.lowered.config) if isinstance(node, AgentNode) else None
        if config is None:
            error = request_error(reply, f"node {name!r}", is_model=False)
        else:
            error = request_error(
                reply, f"node {name!r}", key_variable=config.row().key_variable, secret=config.secret()
            )
    error.node = name  # type: ignore[attr-defined]
    return error


def _exchange(reply: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http_status": reply.http_status or None,
        "request_id": optional_text(reply.request_id),
        "bytes_sent": reply.bytes_sent,
        "bytes_received": reply.bytes_received,
        "first_byte_ms": (reply.first_byte_ns - reply.started_ns) / 1e6 if reply.first_byte_ns else None,
    }
    if reply.model.len or reply.total_tokens >= 0:
        usage = {
            key: getattr(reply, key)
            for key in (
                "prompt_tokens",
                "completion_tokens",
                "total_tokens",
                "cache_read_tokens",
                "cache_creation_tokens",
                "reasoning_tokens",
            )
            if getattr(reply, key) >= 0
        }
        found |= {
            "model": optional_text(reply.model),
            "response_id": optional_text(reply.id),
            "finish_reason": optional_text(reply.finish),
            "usage": usage,
        }
    return found
