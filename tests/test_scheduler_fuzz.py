"""Random graphs against the reference scheduler: every node's fate, its order, its count, its times and its value.

A failing example comes with its workflow as a program: what stands under "Falsifying example" can be pasted and run.
"""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given, note, strategies as st
from reference_scheduler import outcomes

from graphbit import Executor, Node, Run, Workflow, WorkflowResult
from graphbit.runtime import stats
from graphbit.testing import virtual_time

NODES_MAX = 40
PATIENCE_S = 3.0  # for a run that takes milliseconds
NATIVE = ("text", "delay")
PASSES_ON = ("delay", "condition")


class Failure(Exception):
    pass


class Graph:
    """Node i depends on smaller numbers only; the order in which nodes are added is another."""

    def __init__(
        self,
        kinds: list[str],
        before: list[list[int]],
        refers: list[list[int]],
        chosen: list[set[int]],
        order: list[int],
    ) -> None:
        self.kinds = kinds
        self.before = before
        self.chosen = chosen
        self.order = order
        self.conditions = {i for i, kind in enumerate(kinds) if kind == "condition"}
        self.refers = [[it for it in found if self.can_be_read(it)] for found in refers]
        for i, kind in enumerate(kinds):
            if kind == "delay":
                self.refers[i] = []
            elif kind == "text":  # what texts insert into texts would double with each
                del self.refers[i][1:]
        self.states = outcomes(before, self.conditions, self.outcome)
        # What a skipped delay or condition hands on has a test of its own.
        mute = {i for i, state in enumerate(self.states) if state == "skipped" and kinds[i] in PASSES_ON}
        self.refers = [[it for it in found if it not in mute] for found in self.refers]
        self.values = [self.value(i) for i in range(len(kinds))]

    def can_be_read(self, node: int) -> bool:
        """Conditions and delays have no output where several nodes lead to them, or none does."""
        return self.kinds[node] not in PASSES_ON or (
            len(self.before[node]) == 1 and self.can_be_read(self.before[node][0])
        )

    def outcome(self, node: int) -> tuple[str, Set[int]]:
        return "failed" if self.kinds[node] == "fails" else "succeeded", self.chosen[node]

    def value(self, node: int) -> Any:
        """Nodes come in order: those before it are known."""
        if self.states[node] != "succeeded" or not self.can_be_read(node):
            return None
        if self.kinds[node] in PASSES_ON:
            return self.value(self.before[node][0])
        given = [self.value(it) for it in self.refers[node]]
        if self.kinds[node] == "text":
            return f"n{node}" + "".join(f"({'' if it is None else it})" for it in given)
        return output(node, given)

    def downstream(self, start: Set[int]) -> set[int]:
        found = set(start)
        for node, sources in enumerate(self.before):
            if found.intersection(sources):
                found.add(node)
        return found - start

    def program(self, on_error: str) -> str:
        """The workflow as code, for whoever has to find out."""
        lines = ["from graphbit import Executor, Node, Workflow", "", "def fails(**given): raise ValueError"]
        lines += ["async def later(**given): return given", 'made = Workflow("fuzz")']
        for i in self.order:
            kind, name = self.kinds[i], f"n{i}"
            bind = {f"p{at}": f"n{it}" for at, it in enumerate(self.refers[i])}
            if kind == "text":
                made = f'Node.transform("{name}", "{name}{"".join(f"({{n{it}}})" for it in self.refers[i])}")'
            elif kind == "delay":
                made = f'Node.delay("{name}", {seconds(i)})'
            elif kind == "condition":
                chosen = [f"n{it}" for it in sorted(self.chosen[i])]
                made = f'Node.condition("{name}", lambda **given: {chosen}, bind={bind})'
            else:
                function = {"fails": "fails", "async": "later"}.get(kind, "lambda **given: given")
                made = f'Node.function({function}, name="{name}", bind={bind})'
            lines.append(f"made.add({made})")
        lines += [f'made.connect("n{source}", "n{target}")' for source, target in self.by_hand()]
        lines.append(f'print(Executor(on_error="{on_error}").execute(made).states)')
        return "\n".join(lines)

    def by_hand(self) -> list[tuple[int, int]]:
        return [(it, i) for i in self.order for it in self.before[i] if it not in self.refers[i]]


def output(node: int, given: list[Any]) -> str:
    """What a function node returns: short, and another for other arguments."""
    return f"n{node}:{zlib.crc32(repr(given).encode()):08x}"


def seconds(node: int) -> float:
    return node % 3 * 0.0001


@st.composite
def graphs(draw: Callable[[Any], Any], kinds: str = "plain*6 fails condition*2 text delay async") -> Graph:
    number = draw(st.integers(1, NODES_MAX))
    shape = draw(st.sampled_from(["random", "near", "near", "chain", "fan", "layers"]))
    width = draw(st.integers(1, 6)) if shape == "layers" else 0
    weights = [entry.partition("*") for entry in kinds.split()]
    kind_of = st.sampled_from([kind for kind, _, times in weights for _ in range(int(times or 1))])
    before: list[list[int]] = []
    for node in range(number):
        if node == 0:
            sources: list[int] = []
        elif shape == "chain":
            sources = [node - 1]
        elif shape == "fan":  # out of the first, into the last
            sources = [0] if node < number - 1 or number == 2 else list(range(1, node))
        elif shape == "layers":
            first = max(0, node // width - 1) * width
            sources = list(range(first, first + width)) if node >= width else []
        else:
            nearest = max(0, node - 5) if shape == "near" else 0  # deep, with ways that meet again
            sources = draw(st.lists(st.integers(nearest, node - 1), max_size=4, unique=True))
        before.append(sources)
    chosen: list[set[int]] = [set() for _ in range(number)]
    found = [draw(kind_of) for _ in range(number)]
    for node in range(number):
        after = [it for it in range(number) if node in before[it]]
        if found[node] == "condition" and after:
            chosen[node] = draw(st.sets(st.sampled_from(after)))
    refers = [[it for it in sources[:6] if draw(st.booleans())] for sources in before]
    return Graph(found, before, refers, chosen, list(draw(st.permutations(range(number)))))


class Recorder:
    """Who began and ended, in one order for all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[tuple[str, int]] = []

    def write(self, event: str, node: int) -> None:
        with self.lock:
            self.events.append((event, node))


class Canceller:
    """The node that cancels the run from inside, once it knows the run."""

    def __init__(self, node: int = -1) -> None:
        self.node = node
        self.known = threading.Event()
        self.run: Run | None = None

    def tell(self, run: Run) -> None:
        self.run = run
        self.known.set()

    def cancel(self) -> None:
        assert self.known.wait(PATIENCE_S)
        assert self.run is not None
        self.run.cancel()


def built(graph: Graph, recorder: Recorder, canceller: Canceller, delay: Callable[[int], float] = seconds) -> Workflow:
    def node_of(node: int) -> Node:
        name, kind = f"n{node}", graph.kinds[node]
        bind = {f"p{at}": f"n{it}" for at, it in enumerate(graph.refers[node])}
        if kind == "text":
            return Node.transform(name, name + "".join(f"({{{it}}})" for it in bind.values()))
        if kind == "delay":
            return Node.delay(name, delay(node))

        def function(**values: Any) -> Any:
            recorder.write("start", node)
            try:
                if node == canceller.node:
                    canceller.cancel()
                if kind == "fails":
                    raise Failure(node)
                if kind == "condition":
                    return [f"n{it}" for it in sorted(graph.chosen[node])]
                return output(node, [values[it] for it in bind])
            finally:
                recorder.write("end", node)

        async def later(**values: Any) -> Any:
            await asyncio.sleep(0)
            return function(**values)

        if kind == "condition":
            return Node.condition(name, function, bind=bind)
        return Node.function(later if kind == "async" else function, name, bind=bind)

    made = Workflow("fuzz")
    for node in graph.order:
        made.add(node_of(node))
    for source, target in graph.by_hand():
        made.connect(f"n{source}", f"n{target}")
    return made


def over(run: Run) -> WorkflowResult:
    try:
        return run.wait(PATIENCE_S)
    except TimeoutError:
        run.cancel()
        raise AssertionError(f"the run does not end: {run.states()}") from None


def states_of(result: WorkflowResult) -> list[str]:
    found = result.states
    return [found[f"n{i}"] for i in range(len(found))]


def check(graph: Graph, result: WorkflowResult, recorder: Recorder, *, alone: bool = True) -> None:
    """What holds of every run, however it ended."""
    states = states_of(result)
    assert sum(result.counts) == len(states)
    assert result.counts[:3] == [0, 0, 0]  # nobody is blocked, ready or running
    if alone:
        assert stats()["runs_active"] == 0
    with recorder.lock:
        events = list(recorder.events)
    begun = [node for event, node in events if event == "start"]
    assert len(begun) == len(set(begun)), "a node ran twice"
    at = {event: place for place, event in enumerate(events)}
    times = [result.nodes[f"n{i}"] for i in range(len(states))]
    for node, state in enumerate(states):
        if state in ("succeeded", "failed"):
            mine = times[node]
            assert graph.kinds[node] in NATIVE or node in begun
            assert mine.attempts == 1
            assert mine.started is not None
            assert mine.ended is not None
            assert mine.started <= mine.ended, mine
            for source in graph.before[node]:
                assert (ended := times[source].ended) is not None
                assert ended <= mine.started, (source, node)
        elif state == "skipped":
            assert node not in begun
            assert times[node].attempts == 0
        if state == "succeeded" and graph.can_be_read(node):
            assert result[f"n{node}"] == graph.values[node], node
        for source in graph.before[node]:
            if node in begun and graph.kinds[source] not in NATIVE and graph.states[source] != "skipped":
                assert at["end", source] < at["start", node], (source, node)
    assert set(result.errors) == {f"n{i}" for i, state in enumerate(states) if state == "failed"}


def check_stopped(graph: Graph, states: list[str]) -> None:
    """A run that was stopped: what ended did so as in the reference, the rest was skipped for a failure or cancelled."""
    failed = {i for i, state in enumerate(states) if state == "failed"}
    below = graph.downstream(failed)
    for node, state in enumerate(states):
        assert state in (graph.states[node], "cancelled"), (node, state, graph.states[node])
        if node in below:
            assert state == "skipped", node


@given(graphs())
def test_with_continue_every_node_fares_as_in_the_reference(graph: Graph) -> None:
    note(graph.program("continue"))
    recorder = Recorder()
    result = over(Executor(on_error="continue").start(built(graph, recorder, Canceller())))
    assert states_of(result) == graph.states
    check(graph, result, recorder)
    assert result.is_success() == ("failed" not in graph.states)


def test_a_delay_that_was_skipped_hands_nothing_on() -> None:
    made = Workflow("skipped delay")
    made.add(
        Node.function(lambda: "A", name="a"),
        Node.condition("route", lambda a: "other"),
        Node.delay("pause", 0),
        Node.function(lambda: "B", name="other"),
        Node.function(lambda pause, other: (pause, other), name="join"),
        Node.transform("text", "[{pause}][{other}]"),
    )
    made.connect("route", "pause")
    made.connect("route", "other")
    result = Executor().execute(made)
    assert result.states["pause"] == "skipped"
    assert result["join"] == (None, "B")
    assert result["text"] == "[][B]"


@given(st.integers(0, 6), st.booleans())
def test_a_later_condition_decides_over_an_early_join_at_any_distance(distance: int, follow: bool) -> None:
    # route -> a -> join -> … -> check -> (k | other), and k reads join as well.
    check_at = 3 + distance
    k, other = check_at + 1, check_at + 2
    kinds = ["condition", "plain", "plain", *["plain"] * distance, "condition", "plain", "plain"]
    before = [[], *([i] for i in range(check_at)), [2, check_at], [check_at]]
    chosen: list[set[int]] = [set() for _ in kinds]
    chosen[0], chosen[check_at] = {1}, {k if follow else other}
    graph = Graph(kinds, before, [[] for _ in kinds], chosen, list(range(len(kinds))))
    assert graph.states[k:] == (["succeeded", "skipped"] if follow else ["skipped", "succeeded"])
    note(graph.program("continue"))
    result = over(Executor(on_error="continue").start(built(graph, Recorder(), Canceller())))
    assert states_of(result) == graph.states


@given(graphs())
def test_the_calling_thread_runs_a_graph_as_the_reference_does(graph: Graph) -> None:
    note(graph.program("continue"))
    recorder = Recorder()
    result = Executor(on_error="continue").execute(built(graph, recorder, Canceller()))
    assert states_of(result) == graph.states
    check(graph, result, recorder)


@given(graphs())
def test_nodes_are_ready_before_they_start_and_after_what_they_depend_on(graph: Graph) -> None:
    note(graph.program("continue"))
    result = over(Executor(on_error="continue").start(built(graph, Recorder(), Canceller())))
    for node, sources in enumerate(graph.before):
        mine = result.nodes[f"n{node}"]
        if mine.started is not None:
            assert mine.ready is not None
            assert mine.ready <= mine.started, mine
            for source in sources:
                assert (ended := result.nodes[f"n{source}"].ended) is not None
                assert ended <= mine.ready, (source, node)


@given(graphs("plain*6 fails*2 condition*2 text delay async"))
def test_with_fail_fast_a_failure_skips_what_is_below_and_cancels_the_rest(graph: Graph) -> None:
    note(graph.program("fail_fast"))
    recorder = Recorder()
    result = over(Executor().start(built(graph, recorder, Canceller())))
    states = states_of(result)
    if "failed" in graph.states:
        assert "failed" in states
        check_stopped(graph, states)
        assert result.state() == "Failed"
    else:
        assert states == graph.states
    check(graph, result, recorder)


@given(graphs("plain*6 fails condition text delay async"), st.data())
def test_a_run_that_a_node_cancels_ends_with_what_was_done(graph: Graph, data: Any) -> None:
    functions = [i for i, kind in enumerate(graph.kinds) if kind not in (*NATIVE, "async")]
    canceller = Canceller(data.draw(st.sampled_from(functions or [-1])))
    note(f"# node {canceller.node} cancels the run\n{graph.program('continue')}")
    recorder = Recorder()
    run = Executor(on_error="continue").start(built(graph, recorder, canceller))
    canceller.tell(run)
    result = over(run)
    states = states_of(result)
    if canceller.node < 0 or graph.states[canceller.node] == "skipped":
        assert states == graph.states
    else:
        assert states[canceller.node] == "cancelled"
        assert result.state() == "Cancelled"
        check_stopped(graph, states)
        for node in graph.downstream({canceller.node}):
            assert states[node] in ("cancelled", "skipped"), node
    check(graph, result, recorder)


@given(graphs("plain*3 fails condition text delay*3"))
def test_in_virtual_time_every_node_ends_when_the_reference_says(graph: Graph) -> None:
    note(graph.program("continue"))
    recorder = Recorder()
    with virtual_time():
        waits = [10.0 * (i % 7) for i in range(len(graph.kinds))]
        result = over(Executor(on_error="continue").start(built(graph, recorder, Canceller(), waits.__getitem__)))
    assert states_of(result) == graph.states
    check(graph, result, recorder)
    ended: list[float] = []
    for node, sources in enumerate(graph.before):
        waited = waits[node] if graph.kinds[node] == "delay" and graph.states[node] == "succeeded" else 0.0
        ended.append(max((ended[it] for it in sources), default=0.0) + waited)
    assert [result.nodes[f"n{i}"].ended for i in range(len(ended))] == ended


@given(st.lists(graphs(), min_size=2, max_size=4), st.booleans())
def test_runs_in_several_threads_fare_as_if_alone(found: list[Graph], same: bool) -> None:
    found = found[:1] * len(found) if same else found
    for graph in found:
        note(graph.program("continue"))
    recorders = [Recorder() for _ in found]
    gate = threading.Barrier(len(found))
    executor = Executor(on_error="continue")

    def execute(at: int) -> WorkflowResult:
        made = built(found[at], recorders[at], Canceller())
        gate.wait(PATIENCE_S)
        return executor.execute(made)

    with ThreadPoolExecutor(len(found)) as threads:
        results = list(threads.map(execute, range(len(found))))
    for graph, result, recorder in zip(found, results, recorders, strict=True):
        assert states_of(result) == graph.states
        check(graph, result, recorder, alone=False)
    assert stats()["runs_active"] == 0


@given(graphs(), st.integers(2, 5))
def test_runs_of_one_workflow_at_the_same_time_share_nothing_but_the_plan(graph: Graph, number: int) -> None:
    note(graph.program("continue"))
    made = built(graph, Recorder(), Canceller())
    executor = Executor(on_error="continue")
    for run in [executor.start(made) for _ in range(number)]:
        result = over(run)
        assert states_of(result) == graph.states
        for node, state in enumerate(graph.states):
            if state == "succeeded" and graph.can_be_read(node):
                assert result[f"n{node}"] == graph.values[node], node
    assert stats()["runs_active"] == 0
