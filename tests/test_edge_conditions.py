"""Edges that are followed only sometimes: `connect(a, b, when=…)` with a comparison or a function, beside conditions."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from flows import PATIENCE, good, linked

import graphbit
from graphbit import ConfigurationError, Executor, Node, UnknownNameError
from graphbit.runtime import stats
from graphbit.testing import FakeProvider


def gives(value: Any, name: str = "a", **options: Any) -> Node:
    return Node.function(lambda: value, name=name, **options)


def follows(value: Any, when: Any) -> bool:
    result = Executor().execute(linked([gives(value), good("b")], [("a", "b", when)]))
    assert result.is_success(), result.errors
    state = result.states["b"]
    assert state in ("succeeded", "skipped")
    return state == "succeeded"


# ------------------------------------------------------------------------------------------------------------ comparisons


@pytest.mark.parametrize(
    ("value", "when", "expected"),
    [
        ({"score": 0.7}, ("score", ">=", 0.5), True),
        ({"score": 0.5}, ("score", ">=", 0.5), True),
        ({"score": 0.4}, ("score", ">=", 0.5), False),
        ({"score": 0.5}, ("score", ">", 0.5), False),
        ({"score": 1}, ("score", "<", 2), True),
        ({"score": 2}, ("score", "<", 2), False),
        ({"score": 2}, ("score", "<=", 2.0), True),
        ({"score": -3}, ("score", "<", 0), True),
        ({"lang": "en"}, ("lang", "en"), True),
        ({"lang": "de"}, ("lang", "en"), False),
        ({"lang": "de"}, ("lang", "!=", "en"), True),
        ({"lang": "de"}, ("lang", "<", "en"), True),
        ({"lang": "ä"}, ("lang", "ä"), True),
        ({"lang": '"\\\n'}, ("lang", '"\\\n'), True),
        ("yes", ("", "yes"), True),
        ("yes", ("", "==", "no"), False),
        (3, ("", ">", 2), True),
        (3, ("", 3.0), True),
        (True, ("", True), True),
        (True, ("", 1), False),
        (1, ("", True), False),
        (0, ("", False), False),
        (None, ("", None), True),
        ({"x": None}, ("x", None), True),
        ({"x": None}, ("x", "exists"), True),
        ({"x": None}, ("y", "exists"), False),
        ({"x": None}, ("y", "absent"), True),
        ({}, ("x", None), False),
        ({}, ("x", "!=", 1), True),
        ({}, ("x", "==", 1), False),
        ({}, ("x", "<", 1), False),
        ({"x": "2"}, ("x", ">", 1), False),
        ({"x": 2}, ("x", ">", "1"), False),
        ({"x": [1, 2]}, ("x", [1, 2]), True),
        ({"x": [1, 2]}, ("x", [2, 1]), False),
        ({"x": {"a": 1, "b": 2}}, ("x", {"b": 2, "a": 1}), True),
        ({"x": [True]}, ("x", [1]), False),
        ({"x": {"a": 1}}, ("x", {"a": True}), False),
        ({"x": "b"}, ("x", "in", ["a", "b"]), True),
        ({"x": "c"}, ("x", "in", ["a", "b"]), False),
        ({"x": 1}, ("x", "in", [True]), False),
        ({"a": [{"b": 5}]}, ("a.0.b", 5), True),
        ({"a": [{"b": 5}]}, ("$.a[0].b", 5), True),
        ({"a": [{"b": 5}]}, ("a.1.b", 5), False),
        ("text", ("key", 5), False),
        ({"n": 2**53 + 1}, ("n", 2**53 + 1), True),
        ({"n": 2**53 + 1}, ("n", 2**53), False),
        ({"n": 1e300}, ("n", ">", 1e299), True),
    ],
)  # fmt: skip
def test_a_comparison_decides_whether_an_edge_is_followed(value: Any, when: Any, expected: bool) -> None:
    assert follows(value, when) is expected


@pytest.mark.parametrize(
    "value", [0, 1, -1, 0.5, True, False, None, "", "a", "1", [], [1], {}, {"x": 1}, {"x": [1, {"y": None}]}, 2**53 + 1]
)
def test_the_core_and_python_compare_alike(value: Any) -> None:
    """A loop's comparison is made by Python, an edge's by the core."""
    whens: list[Any] = [
        (path, operator, other)
        for path in ("", "x", "x.1.y")
        for operator in ("==", "!=", "<", "<=", ">", ">=")
        for other in (0, 1, 0.5, True, None, "a", "1", [1], {"x": 1}, 2**53)
    ]
    targets = [good(f"t{i}") for i in range(len(whens))]
    made = linked([gives(value), *targets], [("a", f"t{i}", when) for i, when in enumerate(whens)])
    states = Executor().execute(made).states
    loops = [
        Node.loop(f"l{i}", lambda _: value, when, 2)  # type: ignore[misc]
        for i, when in enumerate(whens)
    ]
    reports = Executor().execute(linked(loops)).nodes
    for i, when in enumerate(whens):
        assert (states[f"t{i}"] == "succeeded") == (reports[f"l{i}"].stopped == "until"), when


def test_a_comparison_reads_the_output_of_every_kind_of_node(provider: FakeProvider) -> None:
    provider.route("GET", "/page", json={"name": "bees", "n": 3})
    nodes = [
        Node.http("page", "GET", provider.url + "/page"), Node.http("n", "GET", provider.url + "/page", json_path="n"),
        Node.transform("text", "hello"), Node.delay("pause", 0), gives({"x": 1}),
        *(good(f"yes{i}") for i in range(4)), *(good(f"no{i}") for i in range(4)),
    ]  # fmt: skip
    edges = [
        ("page", "yes0", ("name", "bees")), ("page", "no0", ("name", "ants")),
        ("n", "yes1", ("", 3)), ("n", "no1", ("", 4)),
        ("text", "yes2", ("", "hello")), ("text", "no2", ("", "!=", "hello")),
        ("a", "pause"), ("pause", "yes3", ("x", 1)), ("pause", "no3", ("x", 2)),
    ]  # fmt: skip
    result = Executor().execute(linked(nodes, edges)).raise_for_failure()
    assert {result.states[f"yes{i}"] for i in range(4)} == {"succeeded"}, result.states
    assert {result.states[f"no{i}"] for i in range(4)} == {"skipped"}


def test_a_comparison_reads_what_a_fallback_brought() -> None:
    def fails() -> None:
        raise LookupError

    nodes = [Node.function(fails, name="a", fallback={"x": 1}), good("yes"), good("no")]
    result = Executor().execute(linked(nodes, [("a", "yes", ("x", 1)), ("a", "no", ("x", 2))]))
    assert (result.states["yes"], result.states["no"]) == ("succeeded", "skipped")


def test_comparisons_need_no_callback_thread() -> None:
    graphbit.init()
    threads = stats()["callback_threads"]
    nodes = [Node.transform("a", "hello"), *(Node.transform(f"t{i}", "x") for i in range(20))]
    made = linked(nodes, [("a", f"t{i}", ("", "hello" if i % 2 else "bye")) for i in range(20)])
    result = Executor().execute(made)
    assert [result.states[f"t{i}"] for i in range(20)] == ["skipped", "succeeded"] * 10
    assert stats()["callback_threads"] == threads


def test_an_output_without_a_json_form_cannot_be_compared() -> None:
    result = Executor().execute(linked([gives(object()), good("b")], [("a", "b", ("x", 1))]))
    assert isinstance(result.errors["a"], graphbit.OutputError)


# -------------------------------------------------------------------------------------------------------------- functions


def test_a_function_decides_whether_an_edge_is_followed() -> None:
    marker = object()
    seen: list[Any] = []

    def ask(value: Any) -> bool:
        seen.append(value)
        return True

    made = linked([gives(marker), good("b"), good("c")], [("a", "b", ask), ("a", "c", lambda _: False)])
    result = Executor().execute(made)
    assert seen == [marker]  # the object itself, whatever it is
    assert (result.states["b"], result.states["c"]) == ("succeeded", "skipped")


@pytest.mark.parametrize(
    ("says", "followed"), [("text", True), ("", False), ([], False), ([0], True), (None, False), (0, False)]
)
def test_what_a_function_returns_counts_as_true_or_false(says: Any, followed: bool) -> None:
    assert follows(1, lambda _: says) is followed


def test_a_function_on_an_edge_is_seen_nowhere() -> None:
    made = linked([gives(1), good("b")], [("a", "b", lambda _: True)])
    assert made.edges == (("a", "b"),)
    result = Executor().execute(made)
    assert set(result.states) == set(result.nodes) == set(result.outputs) == {"a", "b"}
    assert sum(result.counts) == 2
    assert "a -> b" not in result.get_all_node_response_metadata()


def test_a_function_on_an_edge_that_raises_is_the_failure_of_the_edge() -> None:
    def ask(_: Any) -> bool:
        raise LookupError("mine")

    result = Executor(on_error="continue").execute(
        linked([gives(1), good("b"), good("c")], [("a", "b", ask), ("a", "c")])
    )
    assert result.states == {"a": "succeeded", "b": "skipped", "c": "succeeded"}
    assert list(result.errors) == ["a -> b"]
    assert result.is_failed()
    with pytest.raises(LookupError, match="mine"):
        result.raise_for_failure()


def test_a_function_on_an_edge_to_a_race_that_raises_is_not_live() -> None:
    def ask(_: Any) -> bool:
        raise LookupError("mine")

    nodes = [gives(1), good("c"), good("race", join="any")]
    result = Executor(on_error="continue").execute(linked(nodes, [("a", "race", ask), ("c", "race")]))
    assert result.states["race"] == "succeeded"


def test_an_edge_may_ask_beside_a_reference_and_there_is_one_edge() -> None:
    target = Node.function(lambda a: a, name="b")
    for when in (lambda value: value > 2, ("", ">", 2)):
        made = linked([gives(3), target], [("a", "b", when)])
        assert made.edges == (("a", "b"),)
        assert Executor().execute(made)["b"] == 3
        made = linked([gives(1), target], [("a", "b", when)])
        assert Executor().execute(made).states["b"] == "skipped"


def test_the_last_of_two_conditions_on_an_edge_counts() -> None:
    made = linked([gives(3), good("b")], [("a", "b", ("", 4)), ("a", "b", ("", 3))])
    assert Executor().execute(made).states["b"] == "succeeded"
    made.connect("a", "b")  # takes nothing away
    made.connect("a", "b", when=lambda _: False)
    assert Executor().execute(made).states["b"] == "skipped"


# ------------------------------------------------------------------------------------------------------------ with others


def test_a_node_runs_when_one_of_its_conditional_edges_is_followed() -> None:
    nodes = [gives(1), gives(2, "b"), Node.function(lambda a, b: (a, b), name="c")]
    for when_a, when_b, expected in ((1, 2, "succeeded"), (1, 0, "succeeded"), (0, 2, "succeeded"), (0, 0, "skipped")):
        result = Executor().execute(linked(nodes, [("a", "c", ("", when_a)), ("b", "c", ("", when_b))]))
        assert result.states["c"] == expected
        if expected == "succeeded":
            assert result["c"] == (1, 2)


def test_a_skip_by_an_edge_propagates_and_diamonds_rejoin() -> None:
    nodes = [
        gives("left"),
        good("left"),
        good("right"),
        good("deeper"),
        Node.function(lambda left, deeper: (left, deeper), name="end"),
    ]
    edges = [
        ("a", "left", ("", "left")),
        ("a", "right", ("", "right")),
        ("right", "deeper"),
        ("left", "end"),
        ("deeper", "end"),
    ]
    result = Executor().execute(linked(nodes, edges))
    assert result.states == {
        "a": "succeeded",
        "left": "succeeded",
        "right": "skipped",
        "deeper": "skipped",
        "end": "succeeded",
    }
    assert result["end"] == ("left", None)


def test_an_edge_of_a_condition_may_ask_as_well() -> None:
    for chosen, holds, expected in (("x", True, "succeeded"), ("x", False, "skipped"), ("y", True, "skipped")):
        nodes = [gives(1), Node.condition("route", lambda a, chosen=chosen: chosen), good("x"), good("y")]
        for when in (lambda value, holds=holds: holds and value == 1, ("", "==" if holds else "!=", 1)):
            result = Executor().execute(linked(nodes, [("route", "x", when), ("route", "y")]))
            assert result.is_success(), result.errors
            assert result.states["x"] == expected, (chosen, holds, when)


def test_a_condition_may_choose_several_or_none_of_its_successors() -> None:
    for chosen in (["x", "z"], ["y"], [], ["x", "y", "z"]):
        nodes = [gives(chosen), Node.condition("route", lambda a: a), good("x"), good("y"), good("z")]
        states = Executor().execute(linked(nodes, [("route", it) for it in "xyz"])).states
        assert {it for it in "xyz" if states[it] == "succeeded"} == set(chosen)


def test_all_done_runs_behind_an_edge_that_is_not_followed() -> None:
    result = Executor().execute(linked([gives(1), good("b", join="all_done")], [("a", "b", ("", 2))]))
    assert result.states["b"] == "succeeded"


def test_any_takes_an_edge_that_is_followed() -> None:
    nodes = [gives(1), gives(2, "b"), Node.function(lambda a, b: (a, b), name="race", join="any")]
    result = Executor().execute(linked(nodes, [("a", "race", ("", 0)), ("b", "race", lambda value: value == 2)]))
    assert result.is_success()
    assert result["race"][1] == 2
    result = Executor().execute(linked(nodes, [("a", "race", ("", 0)), ("b", "race", lambda value: value == 0)]))
    assert result.states["race"] == "skipped"


def test_a_handled_failure_is_handled_through_an_edge_that_asks() -> None:
    def fails() -> None:
        raise LookupError

    for when in (lambda _: True, ("x", 1)):
        nodes = [Node.function(fails, name="a"), good("last", join="all_done")]
        result = Executor().execute(linked(nodes, [("a", "last", when)]))
        assert result.is_success(), when
        assert result.states == {"a": "failed", "last": "succeeded"}


def test_a_node_between_two_edges_that_ask_sees_both() -> None:
    seen: list[tuple[str, str]] = []

    def look() -> None:
        seen.extend((name, it.state) for name, it in graphbit.current().outcomes.items())

    nodes = [gives(1), gives(2, "b"), Node.function(look, name="last", join="all_done")]
    Executor().execute(linked(nodes, [("a", "last", lambda _: True), ("b", "last", ("", 3))])).raise_for_failure()
    assert sorted(seen) == [("a", "succeeded"), ("b", "succeeded")]


def test_edges_that_ask_work_on_an_event_loop() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 3

    made = linked(
        [Node.function(answer, name="a"), good("b"), good("c")], [("a", "b", lambda it: it == 3), ("a", "c", ("", 4))]
    )
    result = asyncio.run(Executor().run_async(made))
    assert (result.states["b"], result.states["c"]) == ("succeeded", "skipped")


def test_a_run_that_is_cancelled_in_an_edges_function_leaves_nothing_behind() -> None:
    inside, gate = threading.Event(), threading.Event()

    def ask(_: Any) -> bool:
        inside.set()
        gate.wait(PATIENCE)
        return True

    run = Executor().start(linked([gives(1), good("b")], [("a", "b", ask)]))
    assert inside.wait(PATIENCE)
    run.cancel()
    result = run.wait(PATIENCE)
    gate.set()
    assert result.state() == "Cancelled"
    assert result.states == {"a": "succeeded", "b": "cancelled"}


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "when",
    [0, "x", (), ("x",), ("x", "~", 1), ("x", "==", 1, 2), (1, "==", 2), ("x", [1], 2), ("x", "==", object()), ("x", float("nan")),
     ("x", "in", "abc"), ("x", "in", 5), {"x": 1}],
)  # fmt: skip
def test_what_is_no_comparison_is_refused_with_the_edge_named(when: Any) -> None:
    made = linked([gives(1), good("b")])
    with pytest.raises(ConfigurationError, match="the edge 'a' -> 'b'"):
        made.connect("a", "b", when=when)
    assert made.edges == ()


def test_an_edge_cannot_ask_an_async_function() -> None:
    async def ask(_: Any) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="async"):
        linked([gives(1), good("b")], [("a", "b", ask)])


def test_an_edge_to_nowhere_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'b'|not found"):
        linked([gives(1), good("b")], [("a", "bb", ("", 1))])
