"""What a running function can know and say of itself: `graphbit.current()`."""

from __future__ import annotations

from graphbit._ffi import check, ffi, lib
from graphbit._here import here, innermost_lane

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from graphbit._lane import Lane
    from graphbit.run import Run


class Outcome:
    """What became of a predecessor: `graphbit.current().outcomes["fetch"]`.

    Attributes:
        state: "succeeded", "failed", "skipped", "cancelled"; "running", … where a join by "any" did not wait for it.
        value: its output, None where it has none.
        error: what it failed with, else None.
    """

    __slots__ = ("error", "state", "value")

    def __init__(self, state: str, value: Any, error: BaseException | None) -> None:
        self.state = state
        self.value = value
        self.error = error

    def __repr__(self) -> str:
        return f"Outcome({self.state!r}, {self.value!r}, {self.error!r})"


class NodeContext:
    """Where the running function stands.

    ```python
    def work(item):
        here = graphbit.current()
        for step in range(100):
            if here.cancelled:
                return None          # the run was stopped: what this returns is dropped
            here.progress(step / 100)
    ```

    Attributes:
        run: the `Run` it is part of.
        node: the node's name.
    """

    __slots__ = ("_attempt", "_lane", "_number", "_of", "node", "run")

    def __init__(self, run: Run, number: int, attempt: int = 0, lane: Lane | None = None) -> None:
        self._of = run
        seen_as = getattr(run, "seen_as", None)  # an item of a map
        self.run: Run = run if seen_as is None else seen_as()
        self._lane = lane
        self.node: str = run.names[number]
        self._number = number
        self._attempt = attempt

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        if self._attempt:
            return self._attempt
        if not hasattr(self._of, "lowered"):
            return 1  # an item of a map
        return max(1, int(self._report().attempts))

    @property
    def deadline(self) -> float | None:
        """Seconds that are left to the run, or to this attempt where its node has a timeout; None: no bound."""
        return self._of.seconds_left(self._number)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this function any more: its run was stopped, or its time was up."""
        if self._of.stop[0]:
            return True
        if not hasattr(self._of, "lowered"):
            return False
        report = self._report()
        # A node that is part of a linear segment may run before the core has heard of it: final is what counts.
        given_up = lib.GB_SUCCEEDED <= report.state <= lib.GB_CANCELLED
        return given_up or (self._attempt != 0 and (report.state != lib.GB_RUNNING or report.attempts != self._attempt))

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """What became of the node's predecessors, by name."""
        if self._lane is not None:
            self._lane.settle(self._of)  # what has ended has ended, also where it was not sent yet
        return self._of.outcomes_before(self._number)

    def emit(self, value: Any) -> None:
        """`graphbit.current().emit({"row": 3})`: puts a value into the run's event stream (`Executor.execute_streaming`)."""
        self._of.emit(self._number, "value", value)

    def progress(self, fraction: float, message: str | None = None) -> None:
        """`graphbit.current().progress(0.5, "half of it")`: tells the event stream, and the log at level debug."""
        self._of.emit(self._number, "progress", {"progress": float(fraction), "message": message})
        _logger().debug("node %r: %.0f %% %s", self.node, fraction * 100, message or "")

    def log(self, message: str) -> None:
        """`graphbit.current().log("three pages")`: a line for the event stream, and the log at level info."""
        self._of.emit(self._number, "log", {"message": message})
        _logger().info("node %r: %s", self.node, message)

    def _report(self) -> Any:
        report = ffi.new("gb_node_report *")
        check(lib.gb_run_reports(self._of.handle, self._number, 1, report), "reading a report")
        return report

    def __repr__(self) -> str:
        return f"NodeContext(node={self.node!r}, attempt={self.attempt})"


def _logger() -> Any:
    import logging

    return logging.getLogger("graphbit")


def current() -> NodeContext:
    """`graphbit.current()`: where the function that calls it stands; only inside of a node.

    Raises:
        RuntimeError: the caller does not run as part of a node.
    """
    found = here.get()
    if found is not None:
        return NodeContext(*found)
    lane = innermost_lane()
    if lane is not None and lane.at >= 0 and lane.running is not None:
        return NodeContext(lane.running, lane.at, lane.attempt, lane)  # type: ignore[arg-type]
    raise RuntimeError("graphbit.current() is known inside of a node's function only")
