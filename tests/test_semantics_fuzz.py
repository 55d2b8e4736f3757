"""Random workflows with everything in them, in virtual time: who runs, how often, from when to when, and with what result.

The reference scheduler says what must come out. Where things that happen at the same moment could come out differently
(`Reference.racy`) the run must still obey the rules that fuzz_checks.Check knows.
"""

from __future__ import annotations

import gc
import random
import time
from typing import Any

import pytest
from fuzz_checks import bounded, built, check, check_exact, check_limits, check_waits, nothing_runs, over, states_of
from fuzz_graphs import FEATURES, Graph, Spec, graphs
from fuzz_program import PATIENCE_S, Recorder
from hypothesis import given, note, strategies as st
from reference_scheduler import Reference

from graphbit import Executor, WorkflowResult
from graphbit.testing import virtual_time

EVERYTHING = "plain*4 fails condition text delay*4 async timed*3 workflow map loop"
UNLIMITED = FEATURES - {"limit"}
LIMITS = {"db": 2, "net": 1, "delay": 3, "*": 4}


def run_virtually(graph: Graph, recorder: Recorder, executor: Executor) -> WorkflowResult:
    with virtual_time() as clock:
        recorder.clock = clock.now
        run = executor.start(built(graph, recorder))
        recorder.tell(run)
        return over(run)


def compare(graph: Graph, *, keep_going: bool) -> None:
    options = 'on_error="continue"' if keep_going else ""
    note(graph.program(options, virtual=True))
    graph.keep_going = keep_going
    reference = Reference(graph.tasks, keep_going=keep_going).run()
    recorder = Recorder()
    result = run_virtually(graph, recorder, Executor(on_error="continue" if keep_going else "fail_fast"))
    if not reference.racy and not graph.racy_inside:
        check(graph, result, recorder, stopped=bool(reference.stopped), virtual=True)
        check_exact(graph, result, reference)
        return
    states = states_of(graph, result)
    failed = any(state == "failed" and not graph.handled(i) for i, state in enumerate(states))
    cancelled = result.state() == "Cancelled"
    check(graph, result, recorder, stopped=cancelled or (failed and not keep_going), virtual=True)


@given(graphs(EVERYTHING, UNLIMITED, 16))
def test_with_continue_every_node_fares_as_in_the_reference_to_the_moment(graph: Graph) -> None:
    compare(graph, keep_going=True)


@given(graphs(EVERYTHING, UNLIMITED, 16))
def test_with_fail_fast_a_run_stops_at_the_moment_of_its_first_unhandled_failure(graph: Graph) -> None:
    compare(graph, keep_going=False)


@given(graphs("plain fails delay*3", UNLIMITED, 30))
def test_large_graphs_of_delays_and_joins_end_when_the_reference_says(graph: Graph) -> None:
    compare(graph, keep_going=True)


@given(graphs("plain*6 fails condition*3 delay*3", UNLIMITED, 12), st.data())
def test_a_run_that_a_node_cancels_stops_at_that_moment(graph: Graph, data: Any) -> None:
    functions = [i for i, spec in enumerate(graph.specs) if spec.kind == "plain"]
    if functions:
        graph.specs[data.draw(st.sampled_from(functions))].cancels = True
    compare(graph, keep_going=True)


# ------------------------------------------------------------------------------------------------------------------ limits


limits_of_all_kinds = st.fixed_dictionaries(
    {}, optional={"db": st.integers(1, 3), "net": st.integers(1, 2), "delay": st.integers(1, 4), "*": st.integers(1, 5)}
)


@pytest.mark.skipif("limit" not in FEATURES, reason="switched off")
@given(
    st.lists(graphs("plain delay*4", {"limit", "all_done"}, 16), min_size=1, max_size=3),
    limits_of_all_kinds,
)
def test_no_limit_is_exceeded_and_nobody_waits_who_need_not(found: list[Graph], limits: dict[str, int]) -> None:
    executor = bounded(limits=limits)
    recorders = [Recorder() for _ in found]
    for graph in found:
        note(graph.program(f'on_error="continue", limits={limits}', virtual=True))
    with virtual_time():
        runs = [executor.start(built(graph, recorder)) for graph, recorder in zip(found, recorders, strict=True)]
        results = [over(run) for run in runs]
    for graph, result, recorder in zip(found, results, recorders, strict=True):
        assert check(graph, result, recorder) == Reference(graph.tasks).run().state
        check_limits(limits, recorder)
    if len(found) == 1:
        check_waits(found[0].tasks, results, limits, found[0].names)


@pytest.mark.skipif("limit" not in FEATURES, reason="switched off")
@given(graphs(EVERYTHING, FEATURES - {"timeout"}, 16), limits_of_all_kinds)
def test_with_limits_on_everything_a_run_ends_and_obeys_the_rules(graph: Graph, limits: dict[str, int]) -> None:
    note(graph.program(f'on_error="continue", limits={limits}', virtual=True))
    recorder = Recorder()
    result = run_virtually(graph, recorder, bounded(limits=limits))
    check(graph, result, recorder)
    check_limits(limits, recorder)


@pytest.mark.skipif("limit" not in FEATURES, reason="switched off")
@given(graphs("delay", {"limit"}, 16), st.integers(1, 3))
def test_permits_go_to_the_longest_way_ahead_and_then_to_who_came_first(graph: Graph, most: int) -> None:
    ahead = [0.0] * len(graph.specs)
    for node in reversed(range(len(graph.specs))):
        ahead[node] = 1 + max((ahead[it] for it in graph.after[node]), default=0.0)
    note(graph.program(f"max_concurrency={most}", virtual=True))
    recorder = Recorder()
    result = run_virtually(graph, recorder, bounded(limits={"*": most}))
    nodes = [result.nodes[name] for name in graph.names]
    for one, mine in enumerate(nodes):
        for other, theirs in enumerate(nodes):
            assert None not in (mine.ready, mine.started, theirs.ready, theirs.started)
            overtaken = theirs.ready < mine.started < theirs.started  # type: ignore[operator]
            if overtaken and graph.specs[one].limit == graph.specs[other].limit:
                assert (ahead[one], -mine.ready) >= (ahead[other], -theirs.ready), (mine, theirs)  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------------- runs at once


@given(st.lists(graphs(EVERYTHING, UNLIMITED, 10), min_size=2, max_size=4), st.booleans())
def test_runs_at_once_fare_as_if_alone(found: list[Graph], several: bool) -> None:
    one = Executor(on_error="continue")
    executors = [Executor(on_error="continue") if several else one for _ in found]
    recorders = [Recorder() for _ in found]
    for graph in found:
        note(graph.program(virtual=True))
    with virtual_time():
        runs = [it.start(built(g, r)) for it, g, r in zip(executors, found, recorders, strict=True)]
        results = [over(run) for run in runs]
    for graph, result, recorder in zip(found, results, recorders, strict=True):
        states = check(graph, result, recorder)
        reference = Reference(graph.tasks).run()
        if not reference.racy and not graph.racy_inside and not any(reference.cut_off):
            assert states == reference.state
            assert result.duration == reference.now
    nothing_runs()


# --------------------------------------------------------------------------------------------------------------- memory


@given(graphs(EVERYTHING, FEATURES - {"timeout"}, 12), st.booleans())
def test_what_nodes_returned_goes_with_the_result(graph: Graph, fail_fast: bool) -> None:
    note(graph.program("" if fail_fast else 'on_error="continue"', virtual=True))
    recorder = Recorder()
    result = run_virtually(graph, recorder, bounded("fail_fast" if fail_fast else "continue"))
    result.is_success()
    held = len(recorder.made)
    note(f"# {held} outputs")
    del result
    recorder.run = None
    end = time.monotonic() + PATIENCE_S
    while recorder.alive():  # a thread may be on its way out of the last callback
        gc.collect()
        assert time.monotonic() < end, f"{recorder.alive()} of {held} outputs are still held"


def test_a_hundred_runs_leave_nothing_behind() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    made: list[Any] = []
    for _ in range(100):
        specs = [
            Spec(dice.choice(["plain", "delay", "plain"]), sorted(dice.sample(range(i), min(i, dice.randrange(3)))))
            for i in range(20)
        ]
        for spec in specs:
            spec.refers = list(spec.before)
            spec.fails = dice.choice([0, 0, 0, 99])
        graph = Graph(specs)
        recorder = Recorder()
        run_virtually(graph, recorder, Executor(on_error="continue")).is_success()
        recorder.run = None
        made += recorder.made
    end = time.monotonic() + PATIENCE_S
    while alive := sum(it() is not None for it in made):
        gc.collect()
        assert time.monotonic() < end, f"{alive} of {len(made)} outputs are still held"
    nothing_runs()
