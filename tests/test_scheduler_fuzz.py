"""Random graphs against the reference scheduler: every node's fate, its order, its count and its value."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from hypothesis import given, note
from hypothesis import strategies as st
from reference_scheduler import Outcome, outcomes

from graphbit import Executor, Node, Workflow, WorkflowResult

NODES_MAX = 24


class Failure(Exception):
    pass


class Graph:
    """A random graph: node i depends on smaller numbers only; names are shuffled when it is built."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        number = draw(st.integers(1, NODES_MAX))
        self.before: list[list[int]] = []
        self.by_reference: list[list[int]] = []
        for node in range(number):
            sources = draw(st.lists(st.integers(0, node - 1), max_size=4, unique=True)) if node else []
            self.before.append(sources)
            self.by_reference.append([it for it in sources if draw(st.booleans())])
        self.after = [[it for it in range(number) if node in self.before[it]] for node in range(number)]
        kinds = st.sampled_from(["plain"] * 6 + ["fails", "condition", "condition", "text", "delay", "async"])
        self.kind = [draw(kinds) for _ in range(number)]
        for node, kind in enumerate(self.kind):
            # A delay's own output is nothing where several nodes lead to it: nobody may refer to it then.
            if kind in ("delay", "condition"):
                for it in self.after[node]:
                    self.by_reference[it] = [source for source in self.by_reference[it] if source != node]
        self.chosen = [
            set(draw(st.lists(st.sampled_from(self.after[node]), unique=True))) if self.after[node] else set()
            for node in range(number)
        ]
        self.order_added = draw(st.permutations(range(number)))

    def outcome(self, node: int) -> Outcome:
        """What the node does when it runs; of a node that is skipped (-node - 1) only that it is a condition."""
        if node < 0:
            return "", set() if self.kind[-node - 1] == "condition" else None
        if self.kind[node] == "fails":
            return "failed", None
        return "succeeded", self.chosen[node] if self.kind[node] == "condition" else None

    def value(self, node: int, states: list[str]) -> Any:
        """What a node returns: itself and what it was given."""
        given = [self.value(it, states) if states[it] == "succeeded" else None for it in self.by_reference[node]]
        if self.kind[node] == "text":
            return f"n{node}" + "".join(f"({'' if it is None else rendered(it)})" for it in given)
        return [node, *given]


def rendered(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@st.composite
def graphs(draw: Any) -> Graph:
    return Graph(draw)


class Recorder:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[tuple[str, int]] = []

    def write(self, event: str, node: int) -> None:
        with self.lock:
            self.events.append((event, node))


def built(graph: Graph, recorder: Recorder) -> Workflow:
    made = Workflow("fuzz")
    for node in graph.order_added:
        made.add(node_of(graph, node, recorder))
    for node in graph.order_added:
        for source in graph.before[node]:
            if source not in graph.by_reference[node]:
                made.connect(f"n{source}", f"n{node}")
    return made


def node_of(graph: Graph, node: int, recorder: Recorder) -> Node:
    name, kind = f"n{node}", graph.kind[node]
    given = graph.by_reference[node]
    bind = {f"p{i}": f"n{source}" for i, source in enumerate(given)}
    if kind == "text":
        return Node.transform(name, name + "".join(f"({{n{source}}})" for source in given))
    if kind == "delay":
        graph.by_reference[node] = []
        return Node.delay(name, 0.0001 * (node % 3))

    def function(**values: Any) -> Any:
        recorder.write("start", node)
        try:
            if kind == "fails":
                raise Failure(node)
            if kind == "condition":
                return [f"n{it}" for it in graph.chosen[node]]
            return [node, *[values[f"p{i}"] for i in range(len(given))]]
        finally:
            recorder.write("end", node)

    async def later(**values: Any) -> Any:
        return function(**values)

    if kind == "condition":
        return Node.condition(name, function, bind=bind)
    return Node.function(later if kind == "async" else function, name, bind=bind)


def check_order(graph: Graph, recorder: Recorder, states: list[str]) -> None:
    """Each node ran at most once, those that ran are those that say so, and nobody before what it depends on."""
    begun = [node for event, node in recorder.events if event == "start"]
    assert len(begun) == len(set(begun))
    at = {event: place for place, event in enumerate(recorder.events)}
    for node in begun:
        for source in graph.before[node]:
            if ("start", source) in at:
                assert at["end", source] < at["start", node]
    silent = {"text", "delay"}
    for node, state in enumerate(states):
        if graph.kind[node] not in silent:
            if state in ("succeeded", "failed"):
                assert node in begun
            elif state == "skipped":
                assert node not in begun


def states_of(result: WorkflowResult, number: int) -> list[str]:
    found = result.states
    return [found[f"n{i}"] for i in range(number)]


def check_values(graph: Graph, result: WorkflowResult, states: list[str]) -> None:
    for node, state in enumerate(states):
        if state == "succeeded" and graph.kind[node] not in ("delay", "condition"):
            assert result[f"n{node}"] == graph.value(node, states), node


def described(graph: Graph) -> str:
    return "\n".join(
        f"n{i} {graph.kind[i]} after {graph.before[i]}, refers to {graph.by_reference[i]}"
        + (f", chooses {sorted(graph.chosen[i])}" if graph.kind[i] == "condition" else "")
        for i in range(len(graph.before))
    )


@given(graphs(), st.booleans())
def test_with_continue_every_node_fares_as_in_the_reference(graph: Graph, started: bool) -> None:
    recorder = Recorder()
    made = built(graph, recorder)
    note(described(graph))
    executor = Executor(on_error="continue")
    result = executor.start(made).wait() if started else executor.execute(made)
    expected = outcomes(graph.before, graph.outcome)
    assert states_of(result, len(expected)) == expected
    check_order(graph, recorder, expected)
    check_values(graph, result, expected)
    assert set(result.errors) == {f"n{i}" for i, state in enumerate(expected) if state == "failed"}
    assert result.is_success() == ("failed" not in expected)


@given(graphs(), st.booleans())
def test_with_fail_fast_what_did_end_ended_as_in_the_reference(graph: Graph, started: bool) -> None:
    recorder = Recorder()
    made = built(graph, recorder)
    note(described(graph))
    result = Executor().start(made).wait() if started else Executor().execute(made)
    expected = outcomes(graph.before, graph.outcome)
    states = states_of(result, len(expected))
    check_order(graph, recorder, states)
    if "failed" not in expected:
        assert states == expected
    else:
        assert "failed" in states
        for node, state in enumerate(states):
            if state == "cancelled":  # it might have ended in any way, had it been let
                continue
            if state == "skipped" and expected[node] != "skipped":
                raise AssertionError(f"n{node} was skipped, the reference says {expected[node]}")
            assert state == expected[node], node
        for node, sources in enumerate(graph.before):
            if any(states[it] == "failed" for it in sources):
                assert states[node] == "skipped", node
    check_values(graph, result, states)


@given(graphs(), st.integers(2, 4))
def test_runs_of_one_graph_at_the_same_time_fare_alike(graph: Graph, number: int) -> None:
    made = built(graph, Recorder())
    note(described(graph))
    runs = [Executor(on_error="continue").start(made) for _ in range(number)]
    expected = outcomes(graph.before, graph.outcome)
    for run in runs:
        result = run.wait()
        assert states_of(result, len(expected)) == expected
        check_values(graph, result, expected)
