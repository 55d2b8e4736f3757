"""The progress of a run while it runs: a table that changes on a terminal, a line for each node that ended elsewhere.

    with Watch(run, screen):
        result = run.wait()

A thread of its own looks at the run's reports some times a second. The caller is free to run the workflow's Python
functions meanwhile, and however long they take, what is shown goes on.
"""

from __future__ import annotations

import sys
import threading

from graphbit._ffi import lib
from graphbit.cli.screen import counted, cut, is_terminal, seconds
from graphbit.result import read_reports, state_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType
    from rich.live import Live

    from graphbit.cli.screen import Line, Screen
    from graphbit.result import Report
    from graphbit.run import Run

_LOOK_SECONDS = 0.1
_NODES_PER_SECOND = 10_000  # looking at more of them would cost more than a few per cent of a processor
_LINES_MAX = 60  # of plain progress, for larger workflows only failures are told one by one

STYLES = {
    "blocked": "dim",
    "ready": "dim",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "skipped": "yellow",
    "cancelled": "yellow",
}
_MARKS = {
    "blocked": ("·", "."),
    "ready": ("·", "."),
    "running": ("▶", ">"),
    "succeeded": ("✓", "+"),
    "failed": ("✗", "x"),
    "skipped": ("–", "-"),
    "cancelled": ("–", "-"),
}
_OVER = ("succeeded", "failed", "skipped", "cancelled")


def mark(state: str, unicode: bool) -> str:
    return _MARKS[state][0 if unicode else 1]


class Watch:
    """Shows a run's progress from entering to leaving."""

    __slots__ = ("_began_ns", "_live", "_run", "_screen", "_stop", "_thread", "_told")

    def __init__(self, run: Run, screen: Screen) -> None:
        self._run = run
        self._screen = screen
        self._began_ns = self._now()
        self._told: set[int] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    def __enter__(self) -> Watch:
        console = self._screen.console
        interval = max(_LOOK_SECONDS, len(self._run.names) / _NODES_PER_SECOND)
        if console is not None:
            from rich.live import Live

            # What the workflow prints goes above the table, if the terminal would show it anyway.
            self._live = Live(
                get_renderable=self._table,
                console=console,
                refresh_per_second=1 / interval,
                transient=True,
                redirect_stdout=is_terminal(sys.stdout),
            )
            self._live.start()
        else:
            self._thread = threading.Thread(
                target=self._tell_lines, args=(interval,), name="graphbit progress", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()
            if error is None or self._run.done():
                self._tell()

    def _now(self) -> int:
        return int(lib.gb_runtime_now(self._run.core.handle)) if not self._run.core.closed else 0

    # --------------------------------------------------------------------------------------------------- plain lines

    def _tell_lines(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._tell()

    def _tell(self) -> None:
        """A line for every node that has ended since the last look, in the order in which they ended."""
        names = self._run.names
        ended = [
            (report.ended_ns, i, report)
            for i, report in enumerate(read_reports(self._run))
            if i not in self._told and state_name(report.state) in _OVER
        ]
        for _, i, report in sorted(ended, key=lambda it: it[:2]):
            self._told.add(i)
            state = state_name(report.state)
            if len(names) > _LINES_MAX and state != "failed":
                continue
            took = f" after {seconds(_duration(report, 0))}" if report.attempts and report.ended_ns else ""
            tries = f", {report.attempts} attempts" if report.attempts > 1 else ""
            self._screen.line(f"{mark(state, self._screen.unicode)} {names[i]} {state}{took}{tries}")

    # ------------------------------------------------------------------------------------------------------ the table

    def _table(self) -> RenderableType:
        from rich.text import Text

        console = self._screen.console
        rows = (console.height if console is not None else 24) - 3
        return Text("\n").join([Text.assemble(*line) for line in self._rows(max(4, rows))])

    def _rows(self, height: int) -> list[Line]:
        """At most so many lines: where there are more nodes than that, those that matter most at this moment."""
        now = self._now()
        reports = read_reports(self._run)
        states = [state_name(it.state) for it in reports]
        shown = list(range(len(reports)))
        if len(shown) >= height:
            rank = {"failed": 0, "running": 1, "ready": 2, "blocked": 3}
            # The longest on their way first; of the others those that ended last.
            shown.sort(key=lambda i: (rank.get(states[i], 4), reports[i].started_ns or 0, -reports[i].ended_ns))
            shown = sorted(shown[: height - 1])
        width = min(40, max((len(self._run.names[i]) for i in shown), default=0))
        lines: list[Line] = []
        for i in shown:
            state, report = states[i], reports[i]
            style = STYLES[state]
            name = cut(self._run.names[i], width)
            line: Line = [(f" {mark(state, self._screen.unicode)} ", style), f"{name:{width}}  ", (f"{state:9}", style)]
            if report.attempts and (report.ended_ns or state == "running"):
                line.append(f" {seconds(_duration(report, now)):>8}")
            if report.attempts > 1:
                line.append((f"  attempt {report.attempts}", "yellow"))
            lines.append(line)
        over = sum(state in _OVER for state in states)
        running = states.count("running")
        elapsed = seconds((now - self._began_ns) / 1e9)
        lines.append([(f"   {over} of {counted(len(states), 'node')}, {running} running, {elapsed}", "dim")])
        return lines


def _duration(report: Report, now: int) -> float | None:
    end = report.ended_ns or now
    return max(0, end - report.started_ns) / 1e9 if report.started_ns else None
