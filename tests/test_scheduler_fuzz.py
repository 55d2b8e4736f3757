"""Random graphs in real time: every node's fate, its order, its count and its value, however the threads come to run.

What can be told in advance is compared with the reference scheduler; where a run is a race (a join takes the first, a failure or
a cancel stops it) every node must still fare as its predecessors let it. test_semantics_fuzz.py does the same in virtual time.

A failing example comes with its workflow as a program: what stands under "Falsifying example" can be pasted and run in this
directory.
"""

from __future__ import annotations

from typing import Any

import pytest
from fuzz_checks import Check, bounded, built, check, check_limits, in_threads, nothing_runs, over, states_of
from fuzz_graphs import FEATURES, Graph, Spec, graphs
from fuzz_program import Recorder
from hypothesis import given, note, settings, strategies as st
from reference_scheduler import Reference

from graphbit import Executor, Node, Workflow, WorkflowResult

MILLI = 1e-3 / 1000  # a unit of the graphs' times: the longest delay takes a millisecond
CERTAIN = FEATURES - {"any", "timeout", "limit"}  # in real time these are races
FEW = {"db": 2, "net": 1, "condition": 3, "delay": 4, "*": 6} if "limit" in FEATURES else {}
STEADY = "plain*6 fails condition*2 text delay async map loop timed workflow"


def graph_of(kinds: list[str], before: list[list[int]], chosen: list[set[int]]) -> Graph:
    return Graph([Spec(kind, sources, chosen=set(to)) for kind, sources, to in zip(kinds, before, chosen, strict=True)])


def told(graph: Graph, executor: str = 'on_error="continue"') -> Recorder:
    note(graph.program(executor, MILLI))
    return Recorder()


def states_in_reference(graph: Graph) -> list[str]:
    return Reference(graph.tasks).run().state


@given(graphs(STEADY, CERTAIN))
def test_with_continue_every_node_fares_as_in_the_reference(graph: Graph) -> None:
    recorder = told(graph)
    result = over(Executor(on_error="continue").start(built(graph, recorder, MILLI)))
    assert check(graph, result, recorder) == states_in_reference(graph)


@given(graphs(STEADY, CERTAIN))
def test_the_calling_thread_runs_a_graph_as_the_reference_does(graph: Graph) -> None:
    recorder = told(graph)
    result = Executor(on_error="continue").execute(built(graph, recorder, MILLI))
    assert check(graph, result, recorder) == states_in_reference(graph)


@given(graphs(STEADY, FEATURES - {"timeout"}))
def test_joins_that_take_the_first_to_come_leave_every_node_with_a_fate_that_fits(graph: Graph) -> None:
    recorder = told(graph)
    result = over(bounded("continue", FEW).start(built(graph, recorder, MILLI)))
    check(graph, result, recorder)
    check_limits(FEW, recorder)


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


def test_a_text_that_takes_the_first_to_come_through_an_edge_that_is_asked_about_has_its_value() -> None:
    made = Workflow("asked")
    made.add(Node.function(lambda: "A", name="a"), Node.transform("text", "[{a}]", join="any"))
    made.connect("a", "text", when=lambda value: value == "A")
    assert Executor().execute(made)["text"] == "[A]"


@given(st.integers(0, 6), st.booleans())
def test_a_later_condition_decides_over_an_early_join_at_any_distance(distance: int, follow: bool) -> None:
    # route -> a -> join -> … -> check -> (k | other), and k reads join as well.
    check_at = 3 + distance
    k, other = check_at + 1, check_at + 2
    kinds = ["condition", "plain", "plain", *["plain"] * distance, "condition", "plain", "plain"]
    before = [[], *([i] for i in range(check_at)), [2, check_at], [check_at]]
    chosen: list[set[int]] = [set() for _ in kinds]
    chosen[0], chosen[check_at] = {1}, {k if follow else other}
    graph = graph_of(kinds, before, chosen)
    recorder = told(graph)
    result = over(Executor(on_error="continue").start(built(graph, recorder)))
    states = check(graph, result, recorder)
    assert states[k:] == (["succeeded", "skipped"] if follow else ["skipped", "succeeded"])


@given(graphs("plain*6 fails*2 condition*2 text delay async timed workflow map loop", FEATURES - {"timeout"}))
def test_with_fail_fast_a_failure_skips_what_is_below_and_cancels_the_rest(graph: Graph) -> None:
    recorder = told(graph, "")
    graph.keep_going = False
    result = over(bounded("fail_fast", FEW).start(built(graph, recorder, MILLI)))
    states = states_of(graph, result)
    unhandled = [i for i, state in enumerate(states) if state == "failed" and not graph.handled(i)]
    check(graph, result, recorder, stopped=bool(unhandled))
    assert result.state() == ("Failed" if "failed" in states else "Completed") or not unhandled
    for node in graph.below({i for i in unhandled if all(graph.specs[it].join == "all" for it in graph.below({i}))}):
        assert states[node] == "skipped", node
    if not graph.has_any() and not unhandled:
        assert states == states_in_reference(graph)


@given(graphs("plain*6 fails condition text delay async timed workflow", FEATURES - {"timeout"}), st.data())
def test_a_run_that_a_node_cancels_ends_with_what_was_done(graph: Graph, data: Any) -> None:
    functions = [i for i, spec in enumerate(graph.specs) if spec.kind == "plain"]
    by = data.draw(st.sampled_from(functions or [-1]))
    if by >= 0:
        graph.specs[by].cancels = True
    recorder = told(graph)
    run = bounded("continue", FEW).start(built(graph, recorder, MILLI))
    recorder.tell(run)
    result = over(run)
    began = any(event == "start" and by >= 0 and who == graph.names[by] for event, who, _ in recorder.events)
    cancelled = result.state() == "Cancelled"
    assert cancelled == began or (
        began and graph.has_any()
    )  # a join may have gone on without it, to the end of the run
    states = check(graph, result, recorder, stopped=cancelled)
    if cancelled:
        assert states[by] == "cancelled"
        below = graph.below({by})
        for node in below:
            if all(graph.specs[it].join == "all" for it in below):
                assert states[node] in ("cancelled", "skipped"), node
    elif not graph.has_any():
        assert states == states_in_reference(graph)


@pytest.mark.skipif("timeout" not in FEATURES, reason="switched off")
@settings(max_examples=max(10, settings().max_examples // 6))
@given(graphs("plain*6 fails async*2 condition text", CERTAIN, 12), st.data())
def test_functions_that_hang_fail_when_their_time_is_up(graph: Graph, data: Any) -> None:
    functions = [i for i, spec in enumerate(graph.specs) if spec.kind in ("plain", "async")]
    for node in data.draw(st.sets(st.sampled_from(functions or [-1]), max_size=3)) - {-1}:
        spec = graph.specs[node]
        spec.hangs, spec.fails, spec.timeout, spec.attempts = True, 0, 10_000.5, min(2, spec.attempts)
    recorder = told(graph)
    try:
        result = over(Executor(on_error="continue").start(built(graph, recorder, MILLI)))
        assert check(graph, result, recorder) == states_in_reference(graph)
        for node, spec in enumerate(graph.specs):
            if spec.hangs and result.states[graph.names[node]] == "failed" and not spec.fallback:
                assert isinstance(result.errors[graph.names[node]], TimeoutError)
    finally:
        recorder.gate.set()


@given(st.lists(graphs(STEADY, CERTAIN), min_size=2, max_size=4), st.booleans(), st.booleans())
def test_runs_in_several_threads_fare_as_if_alone(found: list[Graph], same: bool, several_executors: bool) -> None:
    found = found[:1] * len(found) if same else found
    recorders = [told(graph) for graph in found]
    executors = [Executor(on_error="continue") for _ in found]

    def execute(at: int) -> WorkflowResult:
        return executors[at * several_executors].execute(built(found[at], recorders[at], MILLI))

    results = in_threads(len(found), execute)
    for graph, result, recorder in zip(found, results, recorders, strict=True):
        assert check(graph, result, recorder, alone=False) == states_in_reference(graph)
    nothing_runs()


@given(graphs("plain*6 fails condition*2 text delay async map loop", CERTAIN), st.integers(2, 5))
def test_runs_of_one_workflow_at_the_same_time_share_nothing_but_the_plan(graph: Graph, number: int) -> None:
    recorder = told(graph)
    made = built(graph, recorder, MILLI)
    executor = Executor(on_error="continue")
    wanted = states_in_reference(graph)
    for run in [executor.start(made) for _ in range(number)]:
        found = Check(graph, over(run), recorder)
        assert found.states == wanted
        found.events.clear()  # of all the runs together
        for node, spec in enumerate(graph.specs):
            found.node(node, spec)
    nothing_runs()
