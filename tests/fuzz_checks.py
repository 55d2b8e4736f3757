"""What must hold of the run of a random workflow: of every run, and of those whose end the reference scheduler knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import fuzz_program
from fuzz_graphs import FUNCTIONS, Graph, Spec
from fuzz_program import PATIENCE_S, Recorder
from reference_scheduler import Reference, Task, deciding_edges

import graphbit
from graphbit import Executor, Run, Workflow, WorkflowResult
from graphbit.runtime import stats

TOLD = {it: getattr(fuzz_program, it) for it in ("Failure", "Other")} | {
    it: getattr(graphbit, it, None) for it in ("Node", "Workflow", "RetryPolicy")
}


def built(graph: Graph, recorder: Recorder, unit: float = 1.0) -> Workflow:
    """The workflow that `graph.program()` prints."""
    names: dict[str, Any] = {"r": recorder, **TOLD}
    exec("\n".join(graph.lines(unit)), names)
    made: Workflow = names["made"]
    return made


def bounded(
    on_error: Literal["fail_fast", "continue"] = "continue", limits: Mapping[str, int] | None = None
) -> Executor:
    """An executor with these limits; "*" is the one for all. Those that nodes name are there in any case."""
    known = {"db": 1000, "net": 1000, **(limits or {})}
    everything: Any = known.pop("*", None)
    return Executor(on_error=on_error, max_concurrency=everything, limits=known)


def over(run: Run) -> WorkflowResult:
    try:
        return run.wait(PATIENCE_S)
    except TimeoutError:
        states = run.states()
        run.cancel()
        raise AssertionError(f"the run does not end: {states}") from None


def states_of(graph: Graph, result: WorkflowResult) -> list[str]:
    found = result.states
    return [found[name] for name in graph.names]


class Check:
    """What holds of every run, however it ended. `stopped`: by a failure or a cancel."""

    def __init__(
        self, graph: Graph, result: WorkflowResult, recorder: Recorder, *, stopped: bool = False, virtual: bool = False
    ) -> None:
        self.graph = graph
        self.result = result
        self.recorder = recorder
        self.stopped = stopped
        self.virtual = virtual
        self.states = states_of(graph, result)
        nodes = result.nodes
        self.reports = [nodes[name] for name in graph.names]
        self.deciding = deciding_edges(graph.tasks)[1]
        self.broken: list[bool] = []
        self.known: dict[int, Any] = {}
        with recorder.lock:
            self.events = list(recorder.events)

    def all(self) -> None:
        counts = self.result.counts
        assert sum(counts) == len(self.states), counts
        assert not any(counts[:3]) and not any(counts[7:]), "nobody is blocked, ready, running or waiting"
        for node, spec in enumerate(self.graph.specs):
            self.node(node, spec)
            self.order(node, spec)
        failed = [i for i, state in enumerate(self.states) if state == "failed"]
        assert set(self.result.errors) == {self.graph.names[i] for i in failed}
        unhandled = any(not self.graph.handled(i) for i in failed)
        assert self.result.is_success() == (not self.stopped and not unhandled)

    def node(self, node: int, spec: Spec) -> None:
        state, report, sources = self.states[node], self.reports[node], spec.before
        where = (self.graph.names[node], state, report.attempts, spec)
        live = {it for it in sources if self.states[it] == "succeeded" and self.graph.followed(it, node)}
        broken = any(self.broken[it] for it in sources)
        self.broken.append(state == "failed" or (state == "skipped" and spec.join == "all" and broken))
        runs, unreached = True, False
        if sources and spec.join == "any":
            runs, unreached = bool(live), not live and broken
        elif sources and spec.join == "all":
            cut = any(self.states[it] == "cancelled" for it in sources)
            runs = not broken and not cut and (not self.deciding[node] or bool(live & self.deciding[node]))
        good, attempts, fell_back = self.graph.fate(node)
        if unreached:
            good, attempts, fell_back = bool(spec.fallback) and good_fallback(spec), 0, bool(spec.fallback)
        if state == "cancelled":
            assert self.stopped or self.is_unneeded(node), where
            if spec.join == "all":
                assert not broken or self.is_unneeded(node), where
            assert report.attempts <= attempts, where
        elif not runs and not unreached:
            assert state == "skipped", where
            assert report.attempts == 0, where
            assert report.started is None, where
        elif self.stopped and state == "failed" and 0 < report.attempts < attempts:
            pass  # the stop came between two attempts
        elif spec.inner is None or not (spec.inner.has_any() or self.graph.racy_inside):
            assert state == ("succeeded" if good else "failed"), where
            assert report.attempts == attempts, where
            assert report.fallback == (fell_back and good), where
        if runs and state in ("succeeded", "failed"):
            self.times(node, spec, live)
            self.values(node, spec, fell_back)
        elif unreached and state == "succeeded":
            self.known[node] = self.result[self.graph.names[node]]

    def is_unneeded(self, node: int) -> bool:
        """A join that fired no longer needs it, and nobody else does."""
        after, specs = self.graph.after[node], self.graph.specs

        def needs(it: int) -> bool:
            if specs[it].join == "any" and self.states[it] != "skipped":
                return False
            return self.states[it] != "cancelled" and not (self.states[it] == "skipped" and self.is_unneeded(it))

        return bool(after) and not any(needs(it) for it in after)

    def times(self, node: int, spec: Spec, live: set[int]) -> None:
        mine = self.reports[node]
        assert mine.ready is not None
        assert mine.started is not None
        assert mine.ended is not None
        assert mine.ready <= mine.started <= mine.ended, mine
        ended = {it: self.reports[it].ended for it in spec.before}
        assert None not in ended.values() or spec.join == "any"
        if spec.join == "any" and spec.before:
            first = min(it for source in live if (it := ended[source]) is not None)
            assert first == mine.ready if self.virtual else first <= mine.ready, (mine, mine.ready, mine.started, ended)
        else:
            last = max((it for it in ended.values() if it is not None), default=0.0)
            assert last == mine.ready if self.virtual else last <= mine.started, (mine, mine.ready, mine.started, ended)

    def values(self, node: int, spec: Spec, fell_back: bool) -> None:
        name = self.graph.names[node]
        there = {it for it in spec.before if self.known.get(it) is not None}
        seen = [it for it in spec.before if self.states[it] == "succeeded"]
        if spec.kind in FUNCTIONS and spec.refers and name in self.recorder.given:
            given = {it for it, there in zip(spec.refers, self.recorder.given[name], strict=True) if there}
            if spec.join == "any":
                assert given <= there, (name, given, there)
                if self.virtual:
                    ready, ended = self.reports[node].ready, {it: self.reports[it].ended for it in there}
                    assert given >= {it for it in spec.refers if it in there and ended[it] < ready}, (name, given)  # type: ignore[operator]
            else:
                assert given == there & set(spec.refers), (name, given, there)
                told = self.recorder.outcomes[name]
                assert told == {self.graph.names[it]: self.states[it] for it in spec.before}, (name, told)
            seen = sorted(given)
        if self.states[node] != "succeeded" or not self.graph.can_be_read(node):
            return
        value = self.result[name]
        self.known[node] = value
        if spec.kind == "loop" and not fell_back:
            stopped: Any = self.result.nodes[name]
            assert (stopped.stopped, stopped.iterations) == (
                "until" if spec.until <= spec.turns else "max_iterations",
                min(spec.until, spec.turns),
            ), name
        if spec.kind == "workflow" and not fell_back:
            self.inner_value(spec, value)
            return
        possible = [seen, []] if spec.kind == "text" and spec.join == "any" else [seen]
        instead = {node} if fell_back else set()
        wanted = [self.graph.value(node, {node: it}, instead, self.known) for it in possible]
        assert value in wanted, (name, value, wanted)

    def inner_value(self, spec: Spec, value: Any) -> None:
        assert spec.inner is not None
        inner = spec.inner
        reference = Reference(inner.tasks, keep_going=inner.keep_going).run()
        if not reference.racy and not inner.racy_inside and not inner.has_any():
            assert value == expected(inner, reference).get(spec.out), (spec.out, value)

    def order(self, node: int, spec: Spec) -> None:
        """Each function began once for an attempt, after all that it waited for."""
        name, kind, specs = self.graph.names[node], spec.kind, self.graph.specs
        if kind not in FUNCTIONS:
            return
        begun = [at for at, (event, who, _) in enumerate(self.events) if who == name and event == "start"]
        if self.states[node] == "cancelled":
            # One that had begun as the continuation of another before the core knew.
            assert len(begun) <= self.reports[node].attempts + 1 or self.stopped, name
        else:
            assert len(begun) == self.reports[node].attempts, (name, begun)
        sources = {self.graph.names[it] for it in spec.before if self.states[it] != "cancelled" and not specs[it].hangs}
        ends = [at for at, (event, who, _) in enumerate(self.events) if who in sources and event == "end"]
        if begun and ends and (spec.join != "any"):
            assert max(ends) < begun[0], name
        stand_ins = [who for event, who, _ in self.events if who.startswith(f"{name}!") and event == "start"]
        assert len(stand_ins) <= 1, stand_ins


def good_fallback(spec: Spec) -> bool:
    return not spec.fallback.endswith("fails")


def nothing_runs() -> None:
    """A child of a run that was stopped may end a moment after it."""
    patience = time.monotonic() + PATIENCE_S
    while active := stats()["runs_active"]:
        assert time.monotonic() < patience, f"{active} runs are left"
        time.sleep(0.0005)


def check(graph: Graph, result: WorkflowResult, recorder: Recorder, *, alone: bool = True, **how: bool) -> list[str]:
    found = Check(graph, result, recorder, **how)
    found.all()
    if alone:
        nothing_runs()
    return found.states


def expected(graph: Graph, reference: Reference) -> dict[int, Any]:
    """The outputs that a run as in the reference has."""
    found: dict[int, Any] = {}
    fell_back = {i for i, it in enumerate(reference.fell_back) if it}
    for node, state in enumerate(reference.state):
        if state == "succeeded" and graph.can_be_read(node):
            spec = graph.specs[node]
            if spec.kind == "workflow" and node not in fell_back:
                assert spec.inner is not None
                inner = Reference(spec.inner.tasks, keep_going=graph.keep_going).run()
                found[node] = expected(spec.inner, inner).get(spec.out)
            else:
                found[node] = graph.value(node, dict(enumerate(reference.seen)), fell_back, found)
    return found


def check_exact(graph: Graph, result: WorkflowResult, reference: Reference) -> None:
    """A run that can only have gone as in the reference did."""
    states, nodes = states_of(graph, result), result.nodes
    told = result.state(), nodes, result.errors
    for node, name in enumerate(graph.names):
        report = nodes[name]
        if reference.cut_off[node]:  # it may have been decided when its last predecessor ended
            assert states[node] in ("cancelled", "skipped"), (name, states[node])
            assert report.attempts == 0, name
            continue
        assert states[node] == reference.state[node], (name, reference.state[node], told)
        if reference.just_begun[node]:
            assert report.attempts in (reference.attempts[node], reference.attempts[node] - 1), (name, report)
            continue
        assert report.attempts == reference.attempts[node], (name, report)
        mine = report.ready, report.started, report.ended
        theirs = reference.ready[node], reference.started[node], reference.ended[node]
        assert mine == theirs, (name, mine, theirs)
    values = expected(graph, reference)
    for node, value in values.items():
        got = result[graph.names[node]]
        assert got == value, (graph.names[node], got, value)
    if not any(reference.cut_off):
        assert result.duration == reference.now


def check_limits(limits: dict[str, int], recorder: Recorder) -> None:
    for limit, most in limits.items():
        assert recorder.most[limit] <= most, (limit, recorder.most)


def check_waits(
    tasks: Sequence[Task], runs: Sequence[WorkflowResult], limits: dict[str, int], names: Sequence[str]
) -> None:
    """From the times of delays: no limit was exceeded, and nobody waited who did not have to. In virtual time, without retries."""
    began = [min(result.started_ns for result in runs)] * len(runs)
    held: list[tuple[float, float, float, frozenset[str]]] = []
    for result, start in zip(runs, began, strict=True):
        offset = (result.started_ns - start) / 1e9
        for task, name in zip(tasks, names, strict=True):
            it = result.nodes[name]
            if it.started is not None and it.ready is not None and it.ended is not None:
                held.append((it.ready + offset, it.started + offset, it.ended + offset, frozenset(task.limits)))
    moments = sorted({time for it in held for time in it[:3]})
    for now in moments:
        inside = [it for it in held if it[1] <= now < it[2]]
        full = {limit for limit, most in limits.items() if sum(limit in it[3] for it in inside) >= most}
        for limit, most in limits.items():
            assert sum(limit in it[3] for it in inside) <= most, (limit, now)
        for ready, started, _, mine in held:
            assert not ready <= now < started or mine & full, (now, mine, ready, started)


def in_threads(number: int, work: Any) -> list[Any]:
    """What `work(i)` returns, run at once in so many threads."""
    from concurrent.futures import ThreadPoolExecutor

    gate = threading.Barrier(number)

    def begin(at: int) -> Any:
        gate.wait(PATIENCE_S)
        return work(at)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(begin, range(number)))
