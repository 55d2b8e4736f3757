"""Where a run's time went: `result.profile()`.

A pure function of what the core reports about each node, so that it can be asked about any run, a made-up one too.

    ready_ns                                                   started_ns      ended_ns
       │ queue, limit, earlier attempts, backoffs (totals known)  │ last attempt  │

What a node spent between being ready and being over is split so that the parts are the whole: attempts, waits for permits
and backoffs as they were measured, and the rest is `queue`: the wait for a thread, a worker or a connection.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    class Times(Protocol):
        """What the core tells about a node. Nanoseconds of the runtime's clock; 0: never."""

        ready_ns: int
        started_ns: int
        """Of the last attempt."""
        ended_ns: int
        limit_ns: int
        """Waiting for permits, all attempts together."""
        backoff_ns: int
        """Between attempts, all together."""
        earlier_ns: int
        """Executing, all attempts but the last."""
        attempts: int


_ROWS = 12
_NAME_WIDTH = 32
_PARTS = ("run", "queue", "limit", "backoff", "gaps")


class NodeProfile:
    """A node's time: `result.profile().nodes["draft"].run_seconds`.

    Attributes:
        name: the node's.
        run_seconds: executing, earlier attempts included; for a map, loop or nested workflow its children's time too.
        queue_seconds: ready, and waiting for a thread, a worker process or a connection.
        limit_seconds: ready, and waiting for permits of its limits.
        backoff_seconds: waiting between attempts.
        attempts: how often it was tried; 0 where it never started.
    """

    __slots__ = ("attempts", "backoff_seconds", "limit_seconds", "name", "queue_seconds", "run_seconds")

    def __init__(self, name: str, split: _Split, attempts: int) -> None:
        self.name = name
        self.attempts = attempts
        self.run_seconds = split.run_ns / 1e9
        self.queue_seconds = split.queue_ns / 1e9
        self.limit_seconds = split.limit_ns / 1e9
        self.backoff_seconds = split.backoff_ns / 1e9

    def __repr__(self) -> str:
        return (
            f"NodeProfile({self.name!r}, run={self.run_seconds:.6f}, queue={self.queue_seconds:.6f}, "
            f"limit={self.limit_seconds:.6f}, backoff={self.backoff_seconds:.6f}, attempts={self.attempts})"
        )


class Profile:
    """Where a run's time went.

    ```python
    profile = result.profile()
    print(profile)                         # a table
    profile.critical_path                  # ["outline", "facts", "draft"]: speed up one of these
    profile.path_seconds                   # {"run": 2.1, "queue": 0.0, "limit": 0.4, "backoff": 0.0, "gaps": 0.0}
    profile.nodes["draft"].limit_seconds   # 0.4
    profile.parallelism                    # 1.8 nodes at a time, on average
    profile.timeline()                     # [(0.0, 1), (0.7, 2), …, (2.5, 0)]
    ```

    Attributes:
        critical_path: the nodes that determined the end, first to last: from the node that ended last back to the
            predecessor whose end made it ready, and so on. A skipped node that only passed that on is not listed.
        path_seconds: the wall time, split along the critical path. "gaps" is what lies between the end of one of its nodes
            and the next being ready, before the first and after the last: what the scheduler took. The parts sum up to
            `wall_seconds`.
        nodes: every node's time, by name.
        wall_seconds: from the run's start to its end.
        work_seconds: the run times of all nodes, summed up.
    """

    __slots__ = ("_spans", "critical_path", "nodes", "path_seconds", "wall_seconds", "work_seconds")

    def __init__(
        self,
        nodes: dict[str, NodeProfile],
        critical_path: list[str],
        path_ns: dict[str, int],
        wall_ns: int,
        work_ns: int,
        spans: list[tuple[int, int]],
    ) -> None:
        self.nodes = nodes
        self.critical_path = critical_path
        self.path_seconds = {part: path_ns[part] / 1e9 for part in _PARTS}
        self.wall_seconds = wall_ns / 1e9
        self.work_seconds = work_ns / 1e9
        self._spans = spans

    @property
    def parallelism(self) -> float:
        """`profile.parallelism`: how many nodes were executing at a time, on average over the run."""
        return self.work_seconds / self.wall_seconds if self.wall_seconds else 0.0

    def timeline(self) -> list[tuple[float, int]]:
        """`profile.timeline()`: steps (second, nodes that execute from then on), the last one to zero.

        Earlier attempts are drawn as one, right before the backoff: of them only the sum is known.
        """
        changes: dict[int, int] = {}
        for start, end in self._spans:
            changes[start] = changes.get(start, 0) + 1
            changes[end] = changes.get(end, 0) - 1
        steps: list[tuple[float, int]] = []
        running = 0
        for at in sorted(changes):
            if changes[at]:
                running += changes[at]
                steps.append((at / 1e9, running))
        return steps

    def __repr__(self) -> str:
        return (
            f"Profile({len(self.nodes)} nodes, wall={self.wall_seconds:.6f} s, work={self.work_seconds:.6f} s, "
            f"parallelism={self.parallelism:.2f})"
        )

    def __str__(self) -> str:
        """`print(profile)`: the whole, the critical path, and the nodes that took longest; those on the path with a `*`."""
        lines = [
            f"{_short(self.wall_seconds)} s, {_short(self.work_seconds)} s of work, {self.parallelism:.2f} nodes at a time",
            f"critical path: {self._way()}",
            "  " + ", ".join(f"{part} {_short(self.path_seconds[part])}" for part in _PARTS) + " s",
            "",
        ]
        on_path = set(self.critical_path)
        order = sorted(self.nodes.values(), key=lambda it: (-_total(it), it.name not in on_path))
        shown = [it for it in order if it.attempts or _total(it)][:_ROWS]
        width = max([4, *(min(len(it.name), _NAME_WIDTH) for it in shown)])
        lines.append(f"  {'node':{width}} {'run':>10} {'queue':>10} {'limit':>10} {'backoff':>10} {'attempts':>9}")
        for it in shown:
            times = (it.run_seconds, it.queue_seconds, it.limit_seconds, it.backoff_seconds)
            columns = " ".join(f"{_short(seconds):>10}" for seconds in times)
            mark = "*" if it.name in on_path else " "
            lines.append(f"{mark} {_fitted(it.name, width):{width}} {columns} {it.attempts:>9}")
        if len(shown) < len(self.nodes):
            lines.append(f"  and {len(self.nodes) - len(shown)} more")
        return "\n".join(lines)

    def _way(self) -> str:
        names = [_fitted(name, _NAME_WIDTH) for name in self.critical_path]
        if len(names) > 8:
            names[3:-3] = [f"… {len(names) - 6} more …"]
        return " -> ".join(names) or "no node ran"


def profile(
    names: Sequence[str], edges: Sequence[int], reports: Sequence[Times], started_ns: int, ended_ns: int
) -> Profile:
    """`profile(["a", "b"], [0, 1], reports, run_started, run_ended)`: what the reports say about where the time went.

    Args:
        names: of the nodes.
        edges: source and target of each edge, as places in `names`, one after the other.
        reports: one for each node.
        started_ns, ended_ns: of the run.
    """
    ended_ns = max(started_ns, ended_ns)
    splits = [_Split(it) for it in reports]
    path = _critical_path(edges, reports)
    return Profile(
        {name: NodeProfile(name, split, it.attempts) for name, split, it in zip(names, splits, reports, strict=True)},
        [names[node] for node in path],
        _along([(reports[node], splits[node]) for node in path], started_ns, ended_ns),
        ended_ns - started_ns,
        sum(split.run_ns for split in splits),
        [span for it, split in zip(reports, splits, strict=True) for span in _executing(it, split, started_ns)],
    )


class _Split:
    """What a node did between being ready and being over. The parts sum up to exactly that time."""

    __slots__ = ("backoff_ns", "limit_ns", "queue_ns", "run_ns")

    def __init__(self, it: Times) -> None:
        left = it.ended_ns - it.ready_ns if it.ready_ns and it.ended_ns > it.ready_ns else 0
        ran = it.earlier_ns + max(0, it.ended_ns - it.started_ns) if it.attempts and it.started_ns else 0
        # Clocks are read at different places: where the measured parts are more than the whole, the whole is right.
        self.run_ns = min(ran, left)
        left -= self.run_ns
        self.backoff_ns = min(it.backoff_ns, left)
        left -= self.backoff_ns
        self.limit_ns = min(it.limit_ns, left)
        self.queue_ns = left - self.limit_ns


def _critical_path(edges: Sequence[int], reports: Sequence[Times]) -> list[int]:
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for i in range(0, len(edges), 2):
        before.setdefault(edges[i + 1], []).append(edges[i])
        after.setdefault(edges[i], []).append(edges[i + 1])

    ready = [i for i, it in enumerate(reports) if it.ready_ns and it.ended_ns]
    if not ready:
        return []
    node = max(ready, key=lambda i: (reports[i].ended_ns, reports[i].ready_ns))
    last_ns = reports[node].ended_ns
    while True:  # of nodes that ended at the same time, one that no other of them waited for
        later = next((i for i in after.get(node, ()) if reports[i].ready_ns and reports[i].ended_ns == last_ns), None)
        if later is None:
            break
        node = later

    path: list[int] = []
    at_ns = reports[node].ready_ns
    found: int | None = node
    while found is not None:
        it = reports[found]
        if it.ready_ns:
            path.append(found)
            at_ns = it.ready_ns
        else:  # skipped: it passed on what its own predecessors did
            at_ns = it.ended_ns
        found = _decider(before.get(found, ()), reports, at_ns)
    path.reverse()
    return path


def _decider(candidates: Iterable[int], reports: Sequence[Times], at_ns: int) -> int | None:
    """The predecessor that ended last before `at_ns`; one that went on (a join of kind any) decided nothing."""
    found, found_ns = None, -1
    early, early_ns = None, 0
    for i in candidates:
        it = reports[i]
        if not it.ended_ns:
            continue
        if it.ended_ns <= at_ns:
            # At the same time: rather one that ran than one that was skipped.
            if it.ended_ns > found_ns or (
                it.ended_ns == found_ns and it.ready_ns and found is not None and not reports[found].ready_ns
            ):
                found, found_ns = i, it.ended_ns
        elif early is None or it.ended_ns < early_ns:
            early, early_ns = i, it.ended_ns
    return found if found is not None else early  # early: none of them did, by clocks that were read elsewhere


def _along(path: list[tuple[Times, _Split]], started_ns: int, ended_ns: int) -> dict[str, int]:
    """The time from start to end, split along the path; to the nanosecond, whatever overlaps."""
    parts = dict.fromkeys(_PARTS, 0)
    at = started_ns
    for it, split in path:
        begin = min(max(it.ready_ns, at), ended_ns)
        parts["gaps"] += begin - at
        at = begin
        over = max(at, min(it.ended_ns, ended_ns))
        left = over - at
        # What lies before `at` is the predecessor's already: that much is missing from the beginning, from the waits.
        for part, ns in (
            ("run", split.run_ns),
            ("backoff", split.backoff_ns),
            ("limit", split.limit_ns),
            ("queue", split.queue_ns),
        ):
            took = min(ns, left)
            parts[part] += took
            left -= took
        parts["gaps"] += left
        at = over
    parts["gaps"] += ended_ns - at
    return parts


def _executing(it: Times, split: _Split, started_ns: int) -> list[tuple[int, int]]:
    """When it executed, counted from the run's start."""
    if not split.run_ns:
        return []
    last_ns = min(it.ended_ns - max(it.started_ns, it.ready_ns), split.run_ns)
    spans = [(it.ended_ns - last_ns - started_ns, it.ended_ns - started_ns)]
    earlier_ns = split.run_ns - last_ns
    if earlier_ns:
        begin = max(it.ready_ns, it.ended_ns - last_ns - split.backoff_ns - earlier_ns) - started_ns
        spans.append((begin, begin + earlier_ns))
    return [(max(0, begin), max(0, end)) for begin, end in spans]


def _total(it: NodeProfile) -> float:
    return it.run_seconds + it.queue_seconds + it.limit_seconds + it.backoff_seconds


def _short(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds >= 0.0995 or not seconds else f"{seconds:.6f}"


def _fitted(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
