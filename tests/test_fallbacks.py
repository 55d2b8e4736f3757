"""What takes a failed node's place: `fallback=`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flows import HOUR, PATIENCE, Flaky, Held, bad, good, linked, opened, steady, until

import graphbit
from graphbit import (
    Executor,
    Node,
    NodeTimeoutError,
    RuntimeClosedError,
    WorkflowError,
)
from graphbit.testing import virtual_time


@pytest.mark.parametrize("value", [None, 0, "", "text", [], {"x": 1}, False])
def test_a_value_takes_the_place_of_a_failed_node(value: Any) -> None:
    nodes = [bad("b", fallback=value), Node.function(lambda b: (b,), name="after")]
    result = Executor().execute(linked(nodes))
    assert result.is_success()
    assert result["b"] == value
    assert result["after"] == (value,)
    assert result.errors == {}
    assert result.states == {"b": "succeeded", "after": "succeeded"}
    assert result.nodes["b"].fallback
    assert not result.nodes["after"].fallback
    assert result.nodes["b"].attempts == 1


def test_a_fallback_is_not_used_where_the_node_succeeds() -> None:
    called: list[object] = []
    result = Executor().execute(linked([good("a", fallback=called.append)]))
    assert (result["a"], called, result.nodes["a"].fallback) == ("a", [], False)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_is_called_with_the_error(is_async: bool) -> None:
    seen: list[BaseException] = []

    def plain(error: BaseException) -> str:
        seen.append(error)
        return f"after {error}"

    async def awaits(error: BaseException) -> str:
        await asyncio.sleep(0)
        return plain(error)

    error = ValueError("mine")
    flaky = Flaky(error)
    result = Executor().execute(linked([flaky.node(fallback=awaits if is_async else plain)])).raise_for_failure()
    assert result["flaky"] == "after mine"
    assert seen == [error]


def test_a_fallback_comes_after_the_last_attempt() -> None:
    with virtual_time() as clock:
        flaky = Flaky(ValueError("1"), ValueError("2"), ValueError("3"), clock=clock)
        when: list[tuple[float, str]] = []
        node = flaky.node(retry=steady(3), fallback=lambda error: when.append((clock.now(), str(error))))
        result = Executor().execute(linked([node]))
    assert when == [(30, "3")]
    assert result.nodes["flaky"].attempts == 3


def test_a_fallback_gets_the_timeout_of_the_last_attempt(held: Held) -> None:
    result = Executor().execute(linked([Node.function(held, name="held", timeout=0.05, fallback=lambda error: error)]))
    assert isinstance(result["held"], NodeTimeoutError)


def test_a_fallback_that_fails_too_is_the_nodes_failure_and_the_first_one_its_cause() -> None:
    first = ValueError("first")

    def also_fails(_: BaseException) -> None:
        raise LookupError("second")

    result = Executor().execute(linked([Flaky(first).node(fallback=also_fails), good("after")], [("flaky", "after")]))
    assert result.states == {"flaky": "failed", "after": "skipped"}
    error = result.errors["flaky"]
    assert isinstance(error, LookupError) and str(error) == "second"
    assert error.__cause__ is first
    assert list(result.errors) == ["flaky"]
    with pytest.raises(LookupError, match="second"):
        result.raise_for_failure()


def test_a_node_takes_the_place_of_another_and_reads_what_it_refers_to() -> None:
    nodes = [
        good("a"),
        bad("b", fallback=Node.function(lambda a, x: (a, x), name="instead")),
        Node.transform("text", "{b}"),
    ]
    result = Executor().execute(linked(nodes), {"x": 5}).raise_for_failure()
    assert result["b"] == ("a", 5)
    assert result["text"] == '["a",5]'
    assert set(result.states) == {"a", "b", "text"}
    assert "instead" not in result


@pytest.mark.parametrize("kind", ["transform", "workflow", "map", "loop", "async", "native"])
def test_a_node_of_any_kind_may_stand_in(kind: str) -> None:
    import ctypes

    async def awaits() -> float:
        await asyncio.sleep(0)
        return 3.0

    made: dict[str, tuple[Node, Any]] = {
        "transform": (Node.transform("instead", "text {x}"), "text 4"),
        "workflow": (Node.workflow("instead", linked([Node.function(lambda x: x + 1, name="inner")])), 5),
        "map": (Node.map("instead", "xs", lambda item: item + 1), [2, 3]),
        "loop": (Node.loop("instead", lambda previous: previous + 1, lambda it: it > 6, 10, initial="x"), 7),
        "async": (Node.function(awaits), 3.0),
        "native": (Node.native("instead", ctypes.CDLL("libm.so.6").sqrt, "double(double)", ["x"]), 2.0),
    }
    node, expected = made[kind]
    nodes = [
        bad("b", fallback=node),
        Node.function(lambda b: b, name="python"),
        Node.transform("text", "{b}"),
        good("other"),
    ]
    inputs = {name: value for name, value in (("x", 4), ("xs", [1, 2])) if name in linked(nodes).inputs}
    result = Executor().execute(linked(nodes), inputs).raise_for_failure()
    assert result["b"] == result["python"] == expected
    assert result.nodes["b"].fallback


def test_a_stand_in_may_be_tried_again() -> None:
    with virtual_time() as clock:
        flaky = Flaky(ValueError(), clock=clock)
        result = Executor().execute(linked([bad("b", fallback=flaky.node(retry=steady(2)))])).raise_for_failure()
    assert result["b"] == "done"
    assert flaky.calls == [0, 10]


def test_a_fallback_keeps_a_failure_from_stopping_the_run() -> None:
    with virtual_time():
        nodes = [bad("b", fallback="x"), Node.delay("pause", 60), good("after")]
        result = Executor().execute(linked(nodes, [("b", "after")]))
    assert result.is_success()
    assert set(result.states.values()) == {"succeeded"}
    assert sum(result.counts) == 3


def test_a_native_node_falls_back() -> None:
    nodes = [
        Node.function(lambda: "text", name="a"),
        Node.transform("t", "{a.key}", fallback=lambda error: type(error).__name__),
        Node.transform("u", "[{t}]"),
    ]
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert (result["t"], result["u"]) == ("TemplateError", "[TemplateError]")


def test_a_condition_falls_back_to_a_choice_and_passes_on_what_came_before_it() -> None:
    def choose(a: str) -> str:
        raise ValueError(a)

    nodes = [
        good("a"),
        Node.condition("route", choose, fallback="x"),
        Node.function(lambda route: route, name="x"),
        good("y"),
    ]
    result = Executor().execute(linked(nodes, [("route", "x"), ("route", "y")]))
    assert result.is_success(), result.errors
    assert result.states == {"a": "succeeded", "route": "succeeded", "x": "succeeded", "y": "skipped"}
    assert result.choices == {"route": ("x",)}
    assert result["x"] == "a"


def test_a_conditions_fallback_that_is_no_choice_fails_it() -> None:
    nodes = [Node.condition("route", lambda: 1 / 0, fallback="nobody"), good("x")]  # type: ignore[arg-type, return-value]
    result = Executor().execute(linked(nodes, [("route", "x")]))
    assert isinstance(result.errors["route"], graphbit.UnknownNameError)
    assert isinstance(result.errors["route"].__cause__, ZeroDivisionError)


def test_a_run_that_is_cancelled_while_something_stands_in_is_cancelled(held: Held) -> None:
    run = Executor().start(linked([bad("b", fallback=lambda _: held()), good("after")], [("b", "after")]))
    opened(held.inside)
    assert run.states()["b"] == "waiting"
    run.cancel()
    result = run.wait(PATIENCE)
    assert result.states == {"b": "cancelled", "after": "cancelled"}
    assert result.errors == {}


def test_a_run_that_is_cancelled_falls_back_nowhere() -> None:
    called: list[object] = []
    run = Executor().start(linked([bad("b", retry=steady(2, HOUR), fallback=called.append)]))
    until(lambda: run.states()["b"] == "waiting")
    run.cancel()
    assert run.wait(PATIENCE).states == {"b": "cancelled"}
    assert called == []


def test_ctrl_c_in_a_fallback_ends_the_run() -> None:
    def stop(_: BaseException) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Executor().execute(linked([bad("b", fallback=stop)]))


def test_shutdown_ends_a_run_while_something_stands_in() -> None:
    inner = Node.delay("hour", HOUR)
    run = Executor().start(linked([bad("b", fallback=Node.workflow("instead", linked([inner])))]))
    until(lambda: run.states()["b"] == "waiting")
    graphbit.shutdown()
    with pytest.raises(RuntimeClosedError):
        run.wait(PATIENCE)


def test_a_fallback_of_a_fallback_is_used() -> None:
    result = Executor().execute(linked([bad("a", fallback=bad("b", fallback=7))]))
    assert result.get("a") == 7


def test_a_fallback_must_not_be_in_the_workflow() -> None:
    other = good("other")
    with pytest.raises(WorkflowError, match="other"):
        linked([other, bad("b", fallback=other)]).validate()
