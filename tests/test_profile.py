"""Where a run's time went: the arithmetic against runs that were made up, then the same of real ones."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from graphbit import Executor, Node, RetryPolicy, Workflow
from graphbit.profile import Profile, profile
from graphbit.testing import virtual_time

S = 1_000_000_000
START = 50 * S  # the runtime's clock, not the run's


class Report:
    """What the core would tell; seconds since the run's start."""

    def __init__(
        self,
        ready: float | None,
        started: float | None = None,
        ended: float | None = None,
        *,
        limit: float = 0,
        backoff: float = 0,
        earlier: float = 0,
        attempts: int | None = None,
    ) -> None:
        def at(second: float | None) -> int:
            return 0 if second is None else START + round(second * S)

        self.ready_ns, self.started_ns, self.ended_ns = at(ready), at(started), at(ended)
        self.limit_ns, self.backoff_ns, self.earlier_ns = round(limit * S), round(backoff * S), round(earlier * S)
        self.attempts = attempts if attempts is not None else int(started is not None)
        self.state = 3


def made(edges: dict[str, str], end: float, /, **reports: Report) -> Profile:
    """`made({"c": "ab"}, 3.0, a=…, b=…, c=…)`: what each node waits for, when the run was over, one-letter nodes."""
    names = list(reports)
    pairs = [names.index(it) for target, sources in edges.items() for source in sources for it in (source, target)]
    return profile(names, pairs, list(reports.values()), START, START + round(end * S))


def split(it: Profile, name: str) -> tuple[float, float, float, float]:
    node = it.nodes[name]
    return node.run_seconds, node.queue_seconds, node.limit_seconds, node.backoff_seconds


# -------------------------------------------------------------------------------------------------------- one node


def test_a_nodes_time_is_split_into_running_and_what_it_waited_for() -> None:
    it = made({}, 10, a=Report(1, 6, 9, limit=2, backoff=1, earlier=1.5, attempts=2))
    assert split(it, "a") == (4.5, 0.5, 2, 1)
    assert it.nodes["a"].attempts == 2
    assert it.nodes["a"].name == "a"


def test_a_node_that_never_started_only_waited() -> None:
    it = made({}, 5, a=Report(1, None, 5, limit=3), b=Report(None), c=Report(None, None, 2))
    assert split(it, "a") == (0, 1, 3, 0)
    assert split(it, "b") == split(it, "c") == (0, 0, 0, 0)
    assert it.work_seconds == 0


def test_parts_that_were_measured_longer_than_the_whole_are_cut() -> None:
    it = made({}, 5, a=Report(1, 2, 4, limit=3, backoff=5, earlier=0.5, attempts=2))
    assert split(it, "a") == (2.5, 0, 0, 0.5)


# ---------------------------------------------------------------------------------------------------- critical path


def test_the_critical_path_leads_through_the_predecessors_that_ended_last() -> None:
    it = made(
        {"c": "ab", "d": "c", "e": "b"},
        9,
        a=Report(0, 0, 3),
        b=Report(0, 0, 2),
        c=Report(3, 3, 5),
        d=Report(5, 5, 9),
        e=Report(2, 2, 8),
    )
    assert it.critical_path == ["a", "c", "d"]
    assert it.path_seconds == {"run": 9, "queue": 0, "limit": 0, "backoff": 0, "gaps": 0}


def test_a_predecessor_that_went_on_after_a_join_had_fired_is_not_on_the_path() -> None:
    it = made({"c": "ab"}, 5, a=Report(0, 0, 1), b=Report(0, 0, 4), c=Report(1, 1, 5))
    assert it.critical_path == ["a", "c"]


def test_a_skipped_node_passes_on_what_came_before_it_and_is_not_listed() -> None:
    it = made({"b": "a", "c": "b"}, 5, a=Report(0, 0, 2), b=Report(None, None, 2), c=Report(2, 2, 5))
    assert it.critical_path == ["a", "c"]
    assert it.path_seconds["run"] == 5


def test_of_nodes_that_took_no_time_the_last_in_the_graph_ends_the_path() -> None:
    still = Report(0, 0, 0)
    assert made({"b": "c", "a": "b"}, 0, a=still, b=still, c=still).critical_path == ["c", "b", "a"]


def test_a_run_without_nodes_or_without_time_has_a_profile_too() -> None:
    empty = profile([], [], [], START, START)
    assert (empty.critical_path, empty.nodes, empty.timeline(), empty.parallelism) == ([], {}, [], 0)
    assert "no node ran" in str(empty)
    nothing_ran = made({}, 2, a=Report(None))
    assert nothing_ran.path_seconds == {"run": 0, "queue": 0, "limit": 0, "backoff": 0, "gaps": 2}


def test_the_wall_time_along_the_path_is_split_whole() -> None:
    it = made(
        {"b": "a"},
        20,
        a=Report(1, 4, 6, limit=2),
        b=Report(7, 15, 18, backoff=1, limit=0.5, earlier=4, attempts=2),
    )
    assert it.path_seconds == {"run": 9, "queue": 3.5, "limit": 2.5, "backoff": 1, "gaps": 4}
    assert sum(it.path_seconds.values()) == it.wall_seconds == 20


def test_clocks_that_disagree_a_little_leave_the_sum_whole() -> None:
    it = made(
        {"b": "a"}, 5, a=Report(0, 0, 3.5), b=Report(3, 3, 5.5)
    )  # b was ready before a had ended, ended after the run
    assert it.critical_path == ["a", "b"]
    assert it.path_seconds == {"run": 5, "queue": 0, "limit": 0, "backoff": 0, "gaps": 0}


# ------------------------------------------------------------------------------------------------ parallelism, timeline


def test_the_timeline_tells_how_many_nodes_executed_when() -> None:
    it = made({"c": "a"}, 6, a=Report(0, 0, 2), b=Report(0, 1, 5), c=Report(2, 2, 4))
    assert it.timeline() == [(0, 1), (1, 2), (4, 1), (5, 0)]
    assert it.work_seconds == 8
    assert it.parallelism == 8 / 6


def test_earlier_attempts_are_drawn_before_the_backoff() -> None:
    it = made({}, 6, a=Report(0, 4, 6, backoff=1, earlier=3, attempts=2))
    assert it.timeline() == [(0, 1), (3, 0), (4, 1), (6, 0)]


# ---------------------------------------------------------------------------------------------------------- in words


def test_a_profile_in_words_names_the_path_and_the_nodes_that_took_longest() -> None:
    names = [f"node {i}" for i in range(30)]
    reports = [Report(i, i, i + 1) for i in range(29)] + [Report(0, 10, 29, limit=10)]
    edges = [it for i in range(28) for it in (i, i + 1)]
    told = str(profile(names, edges, reports, START, START + 29 * S))
    assert told.splitlines()[0] == "29.000 s, 48.000 s of work, 1.66 nodes at a time"
    assert "critical path: node 0 -> node 1 -> node 2 -> … 23 more … -> node 26" in told
    assert "  run 29.000, queue 0.000, limit 0.000, backoff 0.000, gaps 0.000 s" in told
    assert "  node 29     19.000      0.000     10.000      0.000         1" in told.splitlines()
    assert "* node 0       1.000      0.000      0.000      0.000         1" in told.splitlines()
    assert told.endswith("and 18 more")


def test_long_names_do_not_break_the_table() -> None:
    told = str(made({}, 1, **{"x" * 100: Report(0, 0, 0.012345)}))
    assert "x" * 31 + "…" in told and "x" * 32 not in told
    assert "0.012345" in told
    assert (
        repr(made({}, 1, a=Report(0, 0, 1))) == "Profile(1 nodes, wall=1.000000 s, work=1.000000 s, parallelism=1.00)"
    )


# ----------------------------------------------------------------------------------------------- runs of every shape


class Drawn:
    """A run as a dumb scheduler would report it: every node waits for all its predecessors, one of them at a time with a
    limit; without one each starts at once."""

    def __init__(self, dice: random.Random, count: int, workers: int) -> None:
        self.names = [f"n{i}" for i in range(count)]
        before = [[j for j in range(i) if dice.random() < 2 / count] for i in range(count)]
        self.edges = [it for i, sources in enumerate(before) for j in sources for it in (j, i)]
        self.before = before
        self.durations = [dice.choice([0, 1, dice.randrange(1, 1000)]) for _ in range(count)]
        self.reports: list[Any] = []
        free = [START] * workers
        for i in range(count):
            it = Report(None)
            it.attempts = dice.choice([1, 1, 1, 2, 3]) if workers else 1
            it.ready_ns = max([START, *(self.reports[j].ended_ns for j in before[i])]) + (
                dice.randrange(5) if workers else 0
            )
            at = it.ready_ns
            if workers:
                place = free.index(min(free))
                it.limit_ns = dice.randrange(20)
                it.backoff_ns = dice.randrange(100) if it.attempts > 1 else 0
                it.earlier_ns = dice.randrange(100) if it.attempts > 1 else 0
                at = max(at + it.limit_ns + it.backoff_ns + it.earlier_ns, free[place])
                free[place] = at + self.durations[i]
            it.started_ns, it.ended_ns = at, at + self.durations[i]
            self.reports.append(it)
        self.end_ns = max([START, *(it.ended_ns for it in self.reports)]) + (dice.randrange(5) if workers else 0)

    def profile(self) -> Profile:
        return profile(self.names, self.edges, self.reports, START, self.end_ns)


def area(steps: Sequence[tuple[float, int]]) -> float:
    return sum((after - at) * running for (at, running), (after, _) in pairwise(steps))


@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(1, 4))
def test_the_sums_are_whole_whatever_the_run(seed: int, count: int, workers: int) -> None:
    drawn = Drawn(random.Random(seed), count, workers)
    it = drawn.profile()
    assert sum(it.path_seconds.values()) == pytest.approx(it.wall_seconds, abs=1e-12)
    for name, report in zip(drawn.names, drawn.reports, strict=True):
        assert sum(split(it, name)) == pytest.approx((report.ended_ns - report.ready_ns) / 1e9, abs=1e-12)
    assert area(it.timeline()) == pytest.approx(it.work_seconds, abs=1e-12)
    assert all(running >= 0 for _, running in it.timeline())
    assert it.parallelism * it.wall_seconds == pytest.approx(it.work_seconds)
    path = [drawn.names.index(name) for name in it.critical_path]
    assert all(a in drawn.before[b] for a, b in pairwise(path))
    assert max(report.ended_ns for report in drawn.reports) == drawn.reports[path[-1]].ended_ns
    assert not drawn.before[path[0]]
    assert str(it).startswith(f"{it.wall_seconds:.6f} s" if it.wall_seconds else "0.000 s")


@given(st.integers(0, 2**32), st.integers(1, 25))
def test_without_waits_the_critical_path_is_the_longest_path(seed: int, count: int) -> None:
    drawn = Drawn(random.Random(seed), count, workers=0)
    it = drawn.profile()
    assert it.path_seconds["run"] == pytest.approx(it.wall_seconds, abs=1e-12)
    longest: list[int] = []
    for i in range(count):
        longest.append(drawn.durations[i] + max([0, *(longest[j] for j in drawn.before[i])]))
    assert sum(drawn.durations[drawn.names.index(name)] for name in it.critical_path) == max(longest)


# ---------------------------------------------------------------------------------------------------- the public door


def flow(*nodes: Node, edges: str = "") -> Workflow:
    made = Workflow("w")
    made.add(*nodes)
    for pair in edges.split():
        made.connect(*pair.split("-"))
    return made


def test_a_runs_critical_path_and_times_are_those_of_its_delays() -> None:
    workflow = flow(Node.delay("a", 3), Node.delay("b", 2), Node.delay("c", 2), Node.delay("d", 4), edges="a-c b-c b-d")
    with virtual_time():
        it = Executor().execute(workflow).profile()
    assert it.critical_path == ["b", "d"]
    assert it.wall_seconds == pytest.approx(6)
    assert it.path_seconds["run"] == pytest.approx(6)
    assert it.work_seconds == pytest.approx(11)
    assert [running for _, running in it.timeline()] == [2, 1, 0]
    assert [at for at, _ in it.timeline()] == pytest.approx([0, 5, 6])


def test_the_parts_of_a_real_run_agree_with_its_wall_time() -> None:
    work = b"x" * 200_000

    def digest(**given: Any) -> str:
        import hashlib

        return hashlib.sha256(work + repr(sorted(given)).encode()).hexdigest()

    nodes = [Node.function(lambda i=i: digest(i=i), f"n{i}") for i in range(40)]
    pairs = " ".join(f"n{i}-n{j}" for i in range(40) for j in range(i + 1, min(40, i + 8), 3))
    result = Executor().execute(flow(*nodes, edges=pairs))
    it = result.profile()
    assert it.wall_seconds == pytest.approx(result.duration)
    assert sum(it.path_seconds.values()) == pytest.approx(it.wall_seconds, rel=1e-6)
    for name, node in it.nodes.items():
        report = result.nodes[name]
        assert report.ended is not None and report.ready is not None
        assert node.run_seconds + node.queue_seconds + node.limit_seconds + node.backoff_seconds == pytest.approx(
            report.ended - report.ready, abs=1e-9
        )
    assert it.parallelism <= (os.cpu_count() or 1) + 16
    assert it.critical_path[0] == "n0"


def test_backoffs_and_limits_show_in_the_profile() -> None:
    tries = iter([ValueError("once"), None])

    def flaky() -> int:
        error = next(tries)
        if error:
            raise error
        return 1

    workflow = flow(
        Node.function(flaky, retry=RetryPolicy(2, backoff=10, jitter=False)),
        Node.delay("first", 5, limit="one"),
        Node.delay("second", 5, limit="one"),
    )
    with virtual_time():
        it = Executor(limits={"one": 1}).execute(workflow).profile()
    assert it.nodes["flaky"].backoff_seconds == pytest.approx(10, abs=0.1)
    assert it.nodes["flaky"].attempts == 2
    waited = sorted(it.nodes[name].limit_seconds for name in ("first", "second"))
    assert waited == [pytest.approx(0, abs=0.1), pytest.approx(5, abs=0.1)]
    assert sum(it.path_seconds.values()) == pytest.approx(it.wall_seconds)
