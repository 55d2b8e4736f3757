"""The reference scheduler itself, on cases small enough to be seen through."""

from __future__ import annotations

import pytest
from reference_scheduler import Reference, Task, Try, deciding_edges

FAILS = Try(0, False)


def after(seconds: float, *before: int, **options: object) -> Task:
    return Task(before, tries=(Try(seconds),), **options)  # type: ignore[arg-type]


def test_a_failure_breaks_what_is_below_and_nothing_else() -> None:
    it = Reference([Task(tries=(FAILS,)), Task(), Task([0]), Task([2, 1]), Task([1])]).run()
    assert it.state == ["failed", "succeeded", "skipped", "skipped", "succeeded"]
    assert it.first_failed == 0
    assert not it.stopped


def test_fail_fast_cancels_what_has_not_ended() -> None:
    tasks = [after(5), Task([0], tries=(FAILS,)), Task([1]), after(9), Task([3])]
    it = Reference(tasks, keep_going=False).run()
    assert it.state == ["succeeded", "failed", "skipped", "cancelled", "cancelled"]
    assert it.now == 5
    assert not it.racy


def test_any_takes_the_first_and_cancels_who_feeds_nobody_else() -> None:
    #     0 (5 s) ── 4 any            1 feeds 5 as well, 3 hangs below 2 and feeds the join alone
    tasks = [after(5), after(9), after(7), after(1, 2), Task([0, 1, 3], "any"), Task([1])]
    it = Reference(tasks).run()
    assert it.state == ["succeeded", "succeeded", "cancelled", "cancelled", "succeeded", "succeeded"]
    assert it.ready[4] == 5
    assert it.seen[4] == [0]
    assert it.cut_off[3]
    assert not it.racy


def test_any_without_a_success_fails_and_its_stand_in_may_help() -> None:
    failing = Task(tries=(FAILS,))
    it = Reference([failing, failing, Task([0, 1], "any"), Task([2])]).run()
    assert it.state == ["failed", "failed", "failed", "skipped"]
    assert it.first_failed == 2  # the other two are handled
    it = Reference([failing, Task([0], "any", fallback=Try(2)), Task([1])]).run()
    assert it.state == ["failed", "succeeded", "succeeded"]
    assert it.attempts == [1, 0, 1]
    assert it.first_failed is None


def test_any_below_ways_not_taken_is_skipped() -> None:
    it = Reference([Task(chosen={2}), Task([0]), Task([0]), Task([1], "any"), Task([1, 2], "any")]).run()
    assert it.state == ["succeeded", "skipped", "succeeded", "skipped", "succeeded"]


def test_all_done_runs_whatever_became_of_its_predecessors() -> None:
    it = Reference([Task(tries=(FAILS,)), Task([0]), Task(chosen=set()), Task([2]), Task([0, 1, 3], "all_done")]).run()
    assert it.state == ["failed", "skipped", "succeeded", "skipped", "succeeded"]
    assert it.first_failed == 0  # 1 needs it


def test_what_happens_at_the_same_moment_is_called_a_race() -> None:
    assert Reference([after(5), after(5), Task([0, 1], "any")]).run().racy
    assert not Reference([after(5), after(6), Task([0, 1], "any")]).run().racy
    assert not Reference([after(5), after(5), Task([0, 1])]).run().racy


def test_retries_wait_and_a_timeout_is_a_failure() -> None:
    task = Task(tries=(Try(9), Try(1, False), Try(2)), attempts=3, backoff=lambda n: 10.0 * n, timeout=4.5)
    it = Reference([task]).run()
    assert it.state == ["succeeded"]
    assert it.attempts == [3]
    assert it.ended == [4.5 + 10 + 1 + 20 + 2]
    assert Reference([task._replace(timeout_again=False)]).run().state == ["failed"]
    assert Reference([task._replace(attempts=2, fallback=Try(1))]).run().fell_back == [True]


def test_an_edge_that_is_not_followed_skips_like_a_way_not_taken() -> None:
    it = Reference([Task(), Task([0], when={0: False}), Task([0], when={0: True}), Task([1, 2])]).run()
    assert it.state == ["succeeded", "skipped", "succeeded", "succeeded"]


def test_a_later_condition_decides_over_an_early_join_also_through_all_done() -> None:
    # route -> a -> D -> check -> (k | l), and k reads a as well
    route, a, d, check, k = Task(chosen={1}), Task([0]), Task([1], "all_done"), Task([2], chosen=set()), Task([1, 3])
    assert deciding_edges([route, a, d, check, k])[1][4] == {3}
    assert Reference([route, a, d, check, k]).run().state[4] == "skipped"


def test_what_always_runs_is_not_conditional() -> None:
    # route chooses nothing; D always runs; k hangs below D and below a way that check does not take.
    tasks = [Task(chosen=set()), Task([0]), Task([1], "all_done"), Task(chosen=set()), Task([2, 3])]
    assert deciding_edges(tasks) == ([False, True, False, False, True], [set(), {0}, {1}, set(), {3}])
    assert Reference(tasks).run().state[4] == "skipped"


@pytest.mark.parametrize(("most", "ended"), [(1, [2, 7, 11, 4]), (2, [2, 3, 7, 4])])
def test_permits_go_by_rank_and_then_first_come_first_served(most: int, ended: list[float]) -> None:
    tasks = [after(seconds, limits=frozenset({"db"})) for seconds in (2, 3, 4)]
    tasks.append(after(2, 0, limits=frozenset({"db"})))
    it = Reference(tasks, limits={"db": most}, rank=[2, 1, 1, 1.5]).run()
    assert it.ended == ended


def test_a_node_that_cancels_the_run_is_cancelled_itself() -> None:
    it = Reference([after(3), Task([0], cancels=True), Task([1]), after(9)]).run()
    assert it.state == ["succeeded", "cancelled", "cancelled", "cancelled"]
    assert it.stopped == "cancel"
    assert it.now == 3
