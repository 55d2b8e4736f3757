"""How a node looks at its predecessors: join by "all", "any" and "all_done", and which failures are handled by that."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from flows import HOUR, PATIENCE, bad, good, linked, opened, until

import graphbit
from graphbit import ConfigurationError, Executor, JoinError, Node, NodeNotRunError, Run
from graphbit.testing import virtual_time


def skipped(*names: str) -> list[Node]:
    """A condition "none" that chooses nothing; connect it to whatever is to be skipped."""
    return [Node.condition("none", lambda _: []), *(good(name) for name in names)]


def outcomes(name: str, join: str = "all_done") -> Node:
    """A node that returns (state, value, error) of each of its predecessors."""

    def look() -> dict[str, Any]:
        seen = graphbit.current().outcomes
        return {it: (seen[it].state, seen[it].value, seen[it].error) for it in seen}

    return Node.function(look, name=name, join=join)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------ all


def test_without_a_join_a_node_waits_for_all_and_is_skipped_below_a_failure() -> None:
    nodes = [good("a"), bad("b"), good("c", join="all"), good("d")]
    made = linked(nodes, [("a", "c"), ("b", "c"), ("c", "d")])
    result = Executor(on_error="continue").execute(made)
    assert result.states == {"a": "succeeded", "b": "failed", "c": "skipped", "d": "skipped"}
    assert set(result.errors) == {"b"}
    assert result.is_failed()
    with pytest.raises(NodeNotRunError, match="'d' was skipped because node 'b' failed"):
        result["d"]


def test_a_node_below_a_failure_is_skipped_when_its_last_predecessor_has_ended() -> None:
    nodes = [bad("b"), Node.delay("hour", HOUR), good("c")]
    with virtual_time():
        result = Executor(on_error="continue").execute(linked(nodes, [("b", "c"), ("hour", "c")]))
    assert result.states == {"b": "failed", "hour": "succeeded", "c": "skipped"}
    assert result.nodes["c"].ended == HOUR


# ------------------------------------------------------------------------------------------------------------------ any


def test_any_fires_with_the_first_success_and_reads_the_others_as_none() -> None:
    nodes = [
        Node.delay("slow", HOUR), Node.delay("quick", 1), good("late"), good("early"),
        Node.function(lambda late, early: (late, early), name="race", join="any"),
    ]  # fmt: skip
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, [("slow", "late"), ("quick", "early")]))
        assert clock.now() == 1
    assert result["race"] == (None, "early")
    assert result.states == {
        "slow": "cancelled", "quick": "succeeded", "late": "cancelled", "early": "succeeded", "race": "succeeded",
    }  # fmt: skip
    assert result.is_success()
    assert result.state() == "Completed"
    with pytest.raises(NodeNotRunError, match="'late' was cancelled because the nodes behind it went on without it"):
        result["late"]


def test_any_cancels_only_what_feeds_nothing_else() -> None:
    nodes = [
        Node.delay("first", 1),
        Node.delay("needed", 60),
        Node.delay("not needed", 60),
        good("other"),
        good("race", join="any"),
    ]
    edges = [("first", "race"), ("needed", "race"), ("needed", "other"), ("not needed", "race")]
    with virtual_time():
        result = Executor().execute(linked(nodes, edges))
    assert result.states["needed"] == "succeeded"
    assert result.states["not needed"] == "cancelled"
    assert result.states["other"] == "succeeded"
    assert (result.nodes["race"].started, result.nodes["other"].started) == (1, 60)


def test_any_cancels_what_leads_to_nothing_else_all_the_way_up() -> None:
    chain = [Node.delay(f"d{i}", HOUR) for i in range(20)]
    nodes = [*chain, Node.delay("first", 1), good("race", join="any")]
    edges = [(f"d{i}", f"d{i + 1}") for i in range(19)] + [("d19", "race"), ("first", "race")]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, edges))
        assert clock.now() == 1
    assert {result.states[f"d{i}"] for i in range(20)} == {"cancelled"}
    assert result.is_success()


def test_any_goes_on_while_a_failure_can_still_be_made_good() -> None:
    nodes = [bad("a"), Node.delay("pause", 5), good("b"), good("race", join="any")]
    with virtual_time():
        result = Executor().execute(linked(nodes, [("a", "race"), ("pause", "b"), ("b", "race")]))
    assert result.states == {"a": "failed", "pause": "succeeded", "b": "succeeded", "race": "succeeded"}
    assert result.is_success()
    assert str(result.errors["a"]) == "a failed"


def test_any_fails_when_none_of_its_predecessors_succeeded() -> None:
    made = linked(
        [bad("a"), bad("b"), good("race", join="any"), good("after")], [("a", "race"), ("b", "race"), ("race", "after")]
    )
    result = Executor().execute(made)
    assert result.states == {"a": "failed", "b": "failed", "race": "failed", "after": "skipped"}
    assert result.is_failed()
    assert result.nodes["race"].attempts == 0
    with pytest.raises(JoinError, match="node 'race' joins by 'any', and none of its predecessors succeeded"):
        result.raise_for_failure()


def test_any_is_skipped_when_nobody_failed_and_nobody_succeeded() -> None:
    nodes = [good("a"), *skipped("x", "y"), good("race", join="any")]
    result = Executor().execute(
        linked(nodes, [("a", "none"), ("none", "x"), ("none", "y"), ("x", "race"), ("y", "race")])
    )
    assert result.states["race"] == "skipped"
    assert result.is_success()


def test_any_of_a_failed_and_a_skipped_predecessor_fails() -> None:
    nodes = [good("a"), *skipped("x"), bad("b"), good("race", join="any")]
    result = Executor().execute(linked(nodes, [("a", "none"), ("none", "x"), ("x", "race"), ("b", "race")]))
    assert result.states["race"] == "failed"
    assert isinstance(result.errors["race"], JoinError)


def test_any_of_one_that_succeeded_and_one_that_was_not_chosen_fires() -> None:
    nodes = [good("a"), Node.condition("route", lambda a: "x"), good("x"), good("y"), good("race", join="any")]
    edges = [("route", "x"), ("route", "y"), ("x", "race"), ("y", "race")]
    result = Executor().execute(linked(nodes, edges))
    assert result.states == {
        "a": "succeeded", "route": "succeeded", "x": "succeeded", "y": "skipped", "race": "succeeded",
    }  # fmt: skip


def test_a_node_without_predecessors_runs_whatever_its_join() -> None:
    result = Executor().execute(linked([good("a", join="any"), good("b", join="all_done")]))
    assert result.outputs == {"a": "a", "b": "b"}


def test_any_runs_once_when_many_predecessors_succeed_together() -> None:
    count, line = [0], threading.Barrier(8)

    def arrives() -> None:
        line.wait(PATIENCE)

    def race() -> None:
        count[0] += 1

    nodes = [Node.function(arrives, name=f"n{i}") for i in range(8)] + [Node.function(race, join="any")]
    made = linked(nodes, [(f"n{i}", "race") for i in range(8)])
    for i in range(1, 21):
        result = Executor().execute(made)
        assert result.is_success(), result.errors
        assert result.states["race"] == "succeeded"
        assert count == [i]
        assert set(result.states.values()) <= {"succeeded", "cancelled"}


def test_a_function_that_any_no_longer_needs_is_told_and_what_it_brings_is_dropped() -> None:
    inside, left = threading.Event(), threading.Event()
    seen: list[bool] = []

    def slow() -> str:
        here = graphbit.current()
        inside.set()
        until(lambda: here.cancelled)
        seen.append(here.cancelled)
        left.set()
        return "too late"

    def quick() -> str:
        opened(inside)
        return "quick"

    nodes = [
        Node.function(slow),
        Node.function(quick),
        Node.function(lambda slow, quick: (slow, quick), name="race", join="any"),
    ]
    result = Executor().execute(linked(nodes))
    opened(left)
    assert result["race"] == (None, "quick")
    assert seen == [True]
    assert result.states["slow"] == "cancelled"
    assert "slow" not in result.outputs


def test_an_async_function_that_any_no_longer_needs_is_cancelled() -> None:
    inside, ended = threading.Event(), threading.Event()

    async def slow() -> None:
        try:
            inside.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    def quick() -> None:
        opened(inside)

    nodes = [Node.function(slow), Node.function(quick), good("race", join="any")]
    result = Executor().execute(linked(nodes, [("slow", "race"), ("quick", "race")]))
    opened(ended)
    assert result.states == {"slow": "cancelled", "quick": "succeeded", "race": "succeeded"}


def test_a_request_that_any_no_longer_needs_is_closed(provider: Any) -> None:
    provider.hold()
    provider.route("GET", "/page", text="hello")

    def quick() -> str:
        provider.wait_for_requests(1)
        return "quick"

    page = Node.http("page", "GET", provider.url + "/page")
    result = Executor().execute(
        linked([page, Node.function(quick), good("race", join="any")], [("page", "race"), ("quick", "race")])
    )
    provider.wait_for_disconnects(1)
    assert result.states == {"page": "cancelled", "quick": "succeeded", "race": "succeeded"}


def test_a_composite_that_any_no_longer_needs_takes_its_runs_with_it() -> None:
    inner = linked([Node.delay("hour", HOUR)])
    nodes = [Node.workflow("slow", inner), Node.delay("quick", 1), good("race", join="any")]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, [("slow", "race"), ("quick", "race")]))
        assert clock.now() == 1
    assert result.states == {"slow": "cancelled", "quick": "succeeded", "race": "succeeded"}


def test_a_backoff_that_any_no_longer_needs_is_cancelled() -> None:
    again = graphbit.RetryPolicy(3, backoff=HOUR, max_backoff=HOUR)
    nodes = [bad("slow", retry=again), Node.delay("quick", 1), good("race", join="any")]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, [("slow", "race"), ("quick", "race")]))
        assert clock.now() == 1
    assert result.states == {"slow": "cancelled", "quick": "succeeded", "race": "succeeded"}
    assert result.nodes["slow"].attempts == 1
    assert result.errors == {}
    assert result.is_success()


def test_races_may_follow_races() -> None:
    nodes = [Node.delay(f"d{i}", 10 + i) for i in range(4)]
    nodes += [
        good("left", join="any"),
        good("right", join="any"),
        Node.function(lambda left, right: (left, right), name="last", join="any"),
    ]
    edges = [("d0", "left"), ("d1", "left"), ("d2", "right"), ("d3", "right")]
    with virtual_time():
        result = Executor().execute(linked(nodes, edges))
    assert result["last"] == ("left", None)
    assert result.states == {
        "d0": "succeeded", "d1": "cancelled", "d2": "cancelled", "d3": "cancelled", "left": "succeeded", "right": "cancelled",
        "last": "succeeded",
    }  # fmt: skip


@pytest.mark.parametrize("between", [False, True])
def test_what_several_races_wait_for_goes_with_the_last_of_them(between: bool) -> None:
    nodes = [
        Node.delay("slow", HOUR),
        Node.delay("d1", 1),
        Node.delay("d2", 2),
        good("first", join="any"),
        good("second", join="any"),
    ]
    edges = [("d1", "first"), ("d2", "second")]
    if between:
        nodes.append(good("mid"))
        edges.append(("slow", "mid"))
    last = "mid" if between else "slow"
    edges += [(last, "first"), (last, "second")]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, edges))
        assert clock.now() == 2
    assert result.states["slow"] == "cancelled"
    assert result.is_success()


def test_a_thousand_predecessors_may_race() -> None:
    nodes = [Node.delay(f"d{i}", 1000 - i) for i in range(1000)] + [good("race", join="any")]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, [(f"d{i}", "race") for i in range(1000)]))
        assert clock.now() == 1
    assert result.counts[3] == 2  # succeeded
    assert result.counts[6] == 999  # cancelled


# ------------------------------------------------------------------------------------------------------------- all_done


def test_all_done_runs_whatever_became_of_its_predecessors_and_sees_it() -> None:
    nodes = [good("a"), bad("b"), *skipped("c"), outcomes("last")]
    result = Executor().execute(
        linked(nodes, [("a", "none"), ("none", "c"), ("a", "last"), ("b", "last"), ("c", "last")])
    )
    assert result.is_success()
    seen = result["last"]
    assert seen["a"] == ("succeeded", "a", None)
    assert seen["b"][:2] == ("failed", None)
    assert isinstance(seen["b"][2], LookupError)
    assert seen["b"][2] is result.errors["b"]
    assert seen["c"] == ("skipped", None, None)


def test_all_done_reads_none_where_there_is_no_output() -> None:
    nodes = [good("a"), bad("b"), Node.function(lambda a, b: (a, b), name="last", join="all_done")]
    assert Executor().execute(linked(nodes))["last"] == ("a", None)


def test_all_done_reads_none_for_a_part_of_what_is_not_there() -> None:
    nodes = [bad("b"), Node.function(lambda x: x, name="last", bind={"x": "b.key.0"}, join="all_done")]
    assert Executor().execute(linked(nodes))["last"] is None


def test_all_done_sees_what_a_race_cancelled() -> None:
    nodes = [Node.delay("slow", HOUR), Node.delay("quick", 1), good("race", join="any"), outcomes("last")]
    # `slow` feeds `last` as well, so it is needed; `slower` feeds the race alone.
    nodes.append(Node.delay("slower", 2 * HOUR))
    edges = [("slow", "race"), ("slower", "race"), ("quick", "race"), ("slow", "last"), ("race", "last")]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, edges))
        assert clock.now() == HOUR
    assert result.states["slower"] == "cancelled"
    assert {name: it[0] for name, it in result["last"].items()} == {"slow": "succeeded", "race": "succeeded"}


def test_all_done_waits_for_the_last_one_even_after_a_failure() -> None:
    nodes = [bad("b"), Node.delay("hour", HOUR), outcomes("last")]
    with virtual_time():
        result = Executor().execute(linked(nodes, [("b", "last"), ("hour", "last")]))
    assert result.nodes["last"].started == HOUR
    assert result["last"]["hour"][0] == "succeeded"


def test_all_done_runs_behind_a_skipped_chain() -> None:
    nodes = [good("a"), *skipped("x", "y", "z"), outcomes("last")]
    result = Executor().execute(linked(nodes, [("a", "none"), ("none", "x"), ("x", "y"), ("y", "z"), ("z", "last")]))
    assert result["last"] == {"z": ("skipped", None, None)}


def test_all_done_renders_texts_with_nothing_where_there_is_no_output() -> None:
    nodes = [good("a"), bad("b"), Node.transform("text", "[{a}|{b}]", join="all_done")]
    assert Executor().execute(linked(nodes))["text"] == "[a|]"


def test_all_done_does_not_run_in_a_run_that_was_stopped() -> None:
    run = Executor().start(linked([Node.delay("hour", HOUR), good("last", join="all_done")], [("hour", "last")]))
    run.cancel()
    assert run.wait(PATIENCE).states == {"hour": "cancelled", "last": "cancelled"}


# -------------------------------------------------------------------------------------------------- which failure is handled


@pytest.mark.parametrize("on_error", ["fail_fast", "continue"])
@pytest.mark.parametrize("join", ["any", "all_done"])
def test_a_failure_is_handled_when_all_that_follows_can_do_without(on_error: Any, join: Any) -> None:
    nodes = [bad("b"), good("a"), good("last", join=join), Node.delay("pause", 60)]
    with virtual_time():
        result = Executor(on_error=on_error).execute(linked(nodes, [("b", "last"), ("a", "last")]))
    assert result.is_success()
    assert result.state() == "Completed"
    assert result.states == {"b": "failed", "a": "succeeded", "last": "succeeded", "pause": "succeeded"}
    assert set(result.errors) == {"b"}
    assert result.raise_for_failure() is result


def test_a_failure_with_one_successor_that_needs_it_is_not_handled() -> None:
    nodes = [bad("b"), outcomes("tolerant"), good("strict"), Node.delay("pause", 60)]
    with virtual_time() as clock:
        result = Executor().execute(linked(nodes, [("b", "tolerant"), ("b", "strict")]))
        assert clock.now() == 0
    assert result.is_failed()
    assert result.states["strict"] == "skipped"
    assert result.states["pause"] == "cancelled"
    with pytest.raises(LookupError, match="b failed"):
        result.raise_for_failure()


def test_a_failure_without_successors_is_not_handled() -> None:
    result = Executor().execute(linked([bad("b")]))
    assert result.is_failed()


def test_a_failure_that_is_handled_is_not_the_first_failure() -> None:
    nodes = [bad("handled"), outcomes("last"), bad("not handled")]
    made = linked(nodes, [("handled", "last"), ("last", "not handled")])
    result = Executor().execute(made)
    with pytest.raises(LookupError, match="not handled failed"):
        result.raise_for_failure()
    assert set(result.errors) == {"handled", "not handled"}


def test_a_failed_race_is_handled_by_what_follows_it() -> None:
    nodes = [bad("a"), bad("b"), good("race", join="any"), outcomes("last")]
    result = Executor().execute(linked(nodes, [("a", "race"), ("b", "race"), ("race", "last")]))
    assert result.is_success()
    assert result["last"]["race"][0] == "failed"
    assert isinstance(result["last"]["race"][2], JoinError)


def test_what_is_skipped_below_a_failure_reaches_a_tolerant_node_further_down_and_the_run_has_failed() -> None:
    nodes = [bad("b"), good("middle"), outcomes("last")]
    result = Executor(on_error="continue").execute(linked(nodes, [("b", "middle"), ("middle", "last")]))
    assert result.states == {"b": "failed", "middle": "skipped", "last": "succeeded"}
    assert result["last"] == {"middle": ("skipped", None, None)}
    assert result.is_failed()


def test_a_failed_race_falls_back() -> None:
    nodes = [bad("a"), good("race", join="any", fallback="nobody came"), good("after")]
    result = Executor().execute(linked(nodes, [("a", "race"), ("race", "after")]))
    assert result.is_success()
    assert result["race"] == "nobody came"
    assert result.nodes["race"].fallback
    assert result.states["after"] == "succeeded"


# ----------------------------------------------------------------------------------------------------- joins of other kinds


def test_every_kind_of_node_may_join_by_any(provider: Any) -> None:
    provider.route("GET", "/page", text="hello")
    inner = linked([good("inner")])
    made = [
        Node.transform("node", "text", join="any"),
        Node.delay("node", 0, join="any"),
        Node.condition("node", lambda _: [], join="any"),
        Node.http("node", "GET", provider.url + "/page", join="any"),
        Node.workflow("node", inner, join="any"),
        Node.loop("node", lambda previous: 1, lambda _: True, 3, join="any"),
        Node.map("node", "items", lambda item: item, join="any"),
    ]
    for node in made:
        nodes = [bad("b"), good("a"), Node.function(lambda: [1], name="items"), node]
        result = Executor().execute(linked(nodes, [("b", "node"), ("a", "node")]))
        assert result.states["node"] == "succeeded", (node, result.errors)
        assert result.is_success()


def test_a_map_that_joins_by_all_done_fails_where_its_list_is_not_there() -> None:
    nodes = [bad("b"), Node.map("m", "b", lambda item: item, join="all_done")]
    result = Executor().execute(linked(nodes))
    assert isinstance(result.errors["m"], graphbit.OutputError)


def test_a_join_is_one_of_three_words() -> None:
    for join in ("some", "ANY", None, 1, ["any"]):
        with pytest.raises(ConfigurationError, match="join is 'all', 'any' or 'all_done'"):
            good("a", join=join)


# ---------------------------------------------------------------------------------------------------------- the way out


def test_a_cancelled_race_is_cancelled_not_failed() -> None:
    run: Run = Executor().start(
        linked([Node.delay("a", HOUR), Node.delay("b", HOUR), good("race", join="any")], [("a", "race"), ("b", "race")])
    )
    run.cancel()
    result = run.wait(PATIENCE)
    assert set(result.states.values()) == {"cancelled"}
    assert result.errors == {}


def test_diamonds_of_joins_settle_every_node_once() -> None:
    counts: dict[str, int] = {}

    def noted(name: str, **options: Any) -> Node:
        def run() -> str:
            counts[name] = counts.get(name, 0) + 1
            return name

        return Node.function(run, name=name, **options)

    nodes = [noted("top")]
    edges = []
    joins = ("all", "any", "all_done")
    for i in range(30):
        above = "top" if i == 0 else f"join{i - 1}"
        nodes += [noted(f"left{i}"), noted(f"right{i}"), noted(f"join{i}", join=joins[i % 3])]
        edges += [(above, f"left{i}"), (above, f"right{i}"), (f"left{i}", f"join{i}"), (f"right{i}", f"join{i}")]
    result = Executor().execute(linked(nodes, edges))
    assert result.is_success()
    assert all(result.states[f"join{i}"] == "succeeded" for i in range(30))
    assert all(count == 1 for count in counts.values())
