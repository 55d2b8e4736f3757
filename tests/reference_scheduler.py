"""The scheduler that the real one is compared with: one thread, time that jumps, and everything worked out anew at each step.

A node is described by what it depends on and by what becomes of each of its attempts; nothing is run. `Reference.run` goes
from moment to moment, and at each moment does one thing after the other until nothing is left to do. What several things that
happen at the same moment lead to may depend on their order, which the real one does not promise: where that could
be, `racy` is set, and the caller must ask less of the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

FINAL = ("succeeded", "failed", "skipped", "cancelled")


class Try(NamedTuple):
    """What becomes of an attempt if nothing cuts it short."""

    seconds: float = 0.0
    succeeds: bool = True
    again: bool = True
    """A retry policy that has attempts left retries this failure."""


class Task(NamedTuple):
    """A node. Sources are smaller numbers; the last of `tries` stands for all that follow."""

    before: Sequence[int] = ()
    join: str = "all"
    chosen: Set[int] | None = None
    """Of a condition: the successors it follows."""
    when: Mapping[int, bool] = {}
    """By source: whether what stands on the edge from it is true."""
    tries: Sequence[Try] = (Try(),)
    attempts: int = 1
    backoff: Callable[[int], float] = lambda failures: 0.0
    timeout: float | None = None
    timeout_again: bool = True
    fallback: Try | None = None
    limits: Set[str] = frozenset()
    composite: bool = False
    """It holds no permit while its children run."""
    cancels: bool = False
    """It cancels the run as it begins."""


class Reference:
    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        keep_going: bool = True,
        limits: Mapping[str, int] | None = None,
        rank: Sequence[float] | None = None,
    ) -> None:
        self.tasks = tasks
        self.keep_going = keep_going
        self.limits = limits or {}
        self.rank = rank or [0.0] * len(tasks)
        self.after = [[t for t, task in enumerate(tasks) if node in task.before] for node in range(len(tasks))]
        self.certain = certain(tasks)
        self.conditional, self.deciding = deciding_edges(tasks)
        self.now = 0.0
        self.state = ["blocked"] * len(tasks)  # then ready, running, backoff, standing_in, and one of FINAL
        self.attempts = [0] * len(tasks)
        self.due: dict[int, float] = {}
        """Of nodes that run or wait: when that is over."""
        self.ready: list[float | None] = [None] * len(tasks)
        self.started: list[float | None] = [None] * len(tasks)
        """The first attempt."""
        self.ended: list[float | None] = [None] * len(tasks)
        self.seen: list[list[int]] = [[] for _ in tasks]
        """The predecessors whose output was there when the node became ready."""
        self.fell_back = [False] * len(tasks)
        self.began: list[float | None] = [None] * len(tasks)
        """The last attempt."""
        self.just_begun = [False] * len(tasks)
        """Cancelled at the moment at which its last attempt began: that may not have come about."""
        self.cut_off = [False] * len(tasks)
        """Cancelled by a join of kind "any" before it was ready."""
        self.line: list[int] = []
        """The ready nodes, first come first."""
        self.stopped = ""
        self.first_failed: int | None = None
        self.racy = False

    def run(self) -> Reference:
        while True:
            while self.step():
                pass
            if not self.due:
                assert all(state in FINAL for state in self.state), self.state
                return self
            self.now = min(self.due.values())

    def step(self) -> bool:
        """Does the first thing that is to be done at this moment. False: there is none."""
        for node, state in enumerate(self.state):
            if state == "blocked" and (fate := self.fate(node)) is not None:
                self.decide(node, fate)
                return True
        for node in sorted(self.line, key=lambda it: -self.rank[it]):
            if all(self.holding(limit) < self.limits.get(limit, 1 << 30) for limit in self.tasks[node].limits):
                self.start(node)
                return True
        for node in sorted(self.due):
            if self.due[node] <= self.now:
                del self.due[node]
                self.wake(node)
                return True
        return False

    # ---------------------------------------------------------------------------------------------------------- joins

    def live(self, source: int, node: int) -> bool:
        """`source` succeeded and the edge from it is followed."""
        chosen = self.tasks[source].chosen
        followed = (chosen is None or node in chosen) and self.tasks[node].when.get(source, True)
        return self.state[source] == "succeeded" and followed

    def broken(self, node: int) -> bool:
        """It failed, or was skipped because of a failure."""
        if self.state[node] == "skipped" and self.tasks[node].join == "all":
            return any(self.broken(source) for source in self.tasks[node].before)
        return self.state[node] == "failed"

    def fate(self, node: int) -> str | None:
        """What is to become of a blocked node; None: that is not known yet."""
        task = self.tasks[node]
        over = all(self.state[source] in FINAL for source in task.before)
        live = {source for source in task.before if self.live(source, node)}
        broken = any(self.broken(source) for source in task.before)
        if not task.before:
            return "ready"
        if task.join == "any":
            return "ready" if live else None if not over else "failed" if broken else "skipped"
        if not over:
            return None
        if task.join == "all_done":
            return "ready"
        return "skipped" if broken or (self.deciding[node] and not live & self.deciding[node]) else "ready"

    def decide(self, node: int, fate: str) -> None:
        if fate == "failed" and self.tasks[node].fallback is not None:
            self.stand_in(node)
            return
        if fate != "ready":
            self.end(node, fate)
            return
        self.get_ready(node)
        self.ready[node] = self.now
        before = self.tasks[node].before
        self.seen[node] = [source for source in before if self.state[source] == "succeeded"]
        if self.tasks[node].join == "any" and before:
            trigger = next(source for source in before if self.live(source, node))
            self.racy |= any(not self.settled_apart(source, trigger) for source in before if source != trigger)
            for source in reversed(range(node)):  # the rest, as far as nobody else wants it
                if not self.after[source] or source == trigger:
                    continue
                wanted = [it for it in self.after[source] if it != node and self.state[it] != "cancelled"]
                if not wanted:
                    self.racy |= not self.settled_apart(source, trigger)
                if self.state[source] in FINAL:
                    continue
                if not wanted:
                    self.cut_off[source] = self.state[source] == "blocked"
                    self.end(source, "cancelled")
                elif all(self.ready[it] is not None for it in wanted):
                    self.racy = True  # whether joins that have their first already still count is not promised

    # ------------------------------------------------------------------------------------------------------- attempts

    def get_ready(self, node: int) -> None:
        self.state[node] = "ready"
        self.line.append(node)

    def holding(self, limit: str) -> int:
        return sum(
            limit in task.limits and not task.composite
            for task, state in zip(self.tasks, self.state, strict=True)
            if state == "running"
        )

    def next_try(self, node: int) -> Try:
        task = self.tasks[node]
        found = task.tries[min(self.attempts[node], len(task.tries)) - 1]
        if task.timeout is not None and found.seconds >= task.timeout:
            self.racy |= found.seconds == task.timeout
            return Try(task.timeout, False, task.timeout_again)
        return found

    def start(self, node: int) -> None:
        self.line.remove(node)
        self.state[node] = "running"
        self.attempts[node] += 1
        self.began[node] = self.now
        if self.started[node] is None:
            self.started[node] = self.now
        self.due[node] = self.now + self.next_try(node).seconds
        if self.tasks[node].cancels:
            self.stop("cancel", node)

    def wake(self, node: int) -> None:
        """An attempt, a backoff or a stand-in is over."""
        task = self.tasks[node]
        if self.state[node] == "backoff":
            self.get_ready(node)
        elif self.state[node] == "standing_in":
            assert task.fallback is not None
            self.end(node, "succeeded" if task.fallback.succeeds else "failed")
        elif (found := self.next_try(node)).succeeds:
            self.end(node, "succeeded")
        elif found.again and self.attempts[node] < task.attempts:
            self.state[node] = "backoff"
            self.due[node] = self.now + task.backoff(self.attempts[node])
        elif task.fallback is not None:
            self.stand_in(node)
        else:
            self.end(node, "failed")

    def stand_in(self, node: int) -> None:
        found = self.tasks[node].fallback
        assert found is not None
        self.state[node] = "standing_in"
        self.fell_back[node] = True
        self.due[node] = self.now + found.seconds

    # ------------------------------------------------------------------------------------------------------------ ends

    def end(self, node: int, state: str) -> None:
        self.state[node] = state
        self.ended[node] = self.now
        self.just_begun[node] = state == "cancelled" and self.began[node] == self.now
        self.due.pop(node, None)
        self.line = [it for it in self.line if it != node]
        if state == "failed" and not self.handled(node):
            if self.first_failed is None:
                self.first_failed = node
            if not self.keep_going:
                self.stop("failure", node)

    def handled(self, node: int) -> bool:
        return bool(self.after[node]) and all(self.tasks[it].join != "all" for it in self.after[node])

    def stop(self, cause: str, by: int) -> None:
        if self.stopped:
            return
        self.stopped = cause
        left = [node for node, state in enumerate(self.state) if state not in FINAL]
        below: set[int] = set()  # skipped in any case
        for node in left:
            if self.tasks[node].join == "all" and any(it in below or self.broken(it) for it in self.tasks[node].before):
                below.add(node)
        self.racy |= any(
            not self.settled_apart(node, by) for node in range(len(self.tasks)) if node not in below | {by}
        )
        for node in left:
            broken = self.tasks[node].join == "all" and any(self.broken(it) for it in self.tasks[node].before)
            self.end(node, "skipped" if broken else "cancelled")

    def settled_apart(self, node: int, by: int) -> bool:
        """What happens to it does not depend on the order of this moment: it ended before, or before `by` could, or cannot now."""
        ended = self.ended[node]
        return ended < self.now or node in self.certain[by] if ended is not None else self.ends_later(node)

    def ends_later(self, node: int) -> bool:
        if node in self.due:
            return self.due[node] > self.now
        waits_for = [self.ends_later(it) for it in self.tasks[node].before if self.state[it] not in FINAL]
        if self.state[node] != "blocked" or not waits_for:
            return False
        return all(waits_for) if self.tasks[node].join == "any" else any(waits_for)


def ancestors(tasks: Sequence[Task]) -> list[set[int]]:
    found: list[set[int]] = []
    for task in tasks:
        found.append({*task.before, *(far for source in task.before for far in found[source])})
    return found


def certain(tasks: Sequence[Task]) -> list[set[int]]:
    """By node: who has ended before it begins, whatever happens."""
    found: list[set[int]] = []
    for task in tasks:
        ways = [{source, *found[source]} for source in task.before]
        found.append(set.intersection(*ways) if ways and task.join == "any" else set().union(*ways))
    return found


def deciding_edges(tasks: Sequence[Task]) -> tuple[list[bool], list[set[int]]]:
    """Which nodes run only if something is chosen, and the sources whose edges decide about a node: see graph/topology.zig."""
    conditional: list[bool] = []
    deciding: list[set[int]] = []
    above = ancestors(tasks)
    for task in tasks:
        choices = {it for it in task.before if tasks[it].chosen is not None or it in task.when}
        ways = {it for it in task.before if it in choices or conditional[it]}
        early = {it for it in ways if any(it in above[other] for other in ways)}
        deciding.append(choices | (ways - early))
        runs_anyway = task.join == "all_done" or (task.join == "any" and ways != set(task.before))
        conditional.append(bool(ways) and not runs_anyway)
    return conditional, deciding
