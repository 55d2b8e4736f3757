"""Parameters of functions: what they are bound to."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from flows import const, outputs_of

from graphbit import (
    ConfigurationError,
    Executor,
    Node,
    UnknownNameError,
    Workflow,
    WorkflowError,
)


def test_a_parameter_is_given_the_node_or_input_of_its_name() -> None:
    def both(a: str, x: str) -> str:
        return a + x

    assert outputs_of(const("a", "A"), Node.function(both), inputs={"x": "X"})["both"] == "AX"


def test_bind_names_a_node_an_input_a_path_or_a_node_object() -> None:
    a = const("a", {"k": ["A"]})

    def f(p: Any, q: Any, r: Any, s: Any) -> Any:
        return p, q, r, s

    found = outputs_of(a, Node.function(f, bind={"p": "a", "q": "x", "r": "a.k.0", "s": a}), inputs={"x": "X"})
    assert found["f"] == ({"k": ["A"]}, "X", "A", {"k": ["A"]})


def test_bind_takes_precedence_over_the_parameters_own_name() -> None:
    assert outputs_of(const("a", 1), const("b", 2), Node.function(lambda a: a, "f", bind={"a": "b"}))["f"] == 2


def test_bind_reaches_names_that_are_no_identifiers() -> None:
    found = outputs_of(
        const("my node", [7]), Node.function(lambda a, b: (a, b), "f", bind={"a": "my node", "b": "my node.0"})
    )
    assert found["f"] == ([7], 7)


def test_one_source_may_be_bound_to_several_parameters() -> None:
    assert outputs_of(const("a", 3), Node.function(lambda x, y: x * y, "f", bind={"x": "a", "y": "a"}))["f"] == 9


def test_a_parameter_with_a_default_stays_unbound_where_nothing_has_its_name() -> None:
    def f(a: int, limit: int = 3) -> tuple[int, int]:
        return a, limit

    made = Workflow("w")
    made.add(const("a", 1), Node.function(f))
    assert made.inputs == ()
    assert Executor().execute(made)["f"] == (1, 3)


def test_a_parameter_with_a_default_binds_to_a_node_or_input_that_there_is() -> None:
    def f(a: int = 0, b: int = 0, c: int = 0) -> tuple[int, int, int]:
        return a, b, c

    assert outputs_of(const("b", 5), Node.function(f))["f"] == (0, 5, 0)
    made = Workflow("w", inputs=["c"])
    made.add(const("b", 5), Node.function(f))
    assert Executor().execute(made, {"c": 7})["f"] == (0, 5, 7)


def test_a_default_binds_to_an_input_found_elsewhere_in_whatever_order() -> None:
    def f(x: int = 0) -> int:
        return x

    for nodes in ([Node.function(f), Node.transform("t", "{x}")], [Node.transform("t", "{x}"), Node.function(f)]):
        assert outputs_of(*nodes, inputs={"x": 4})["f"] == 4


def test_parameters_of_every_kind_are_filled() -> None:
    def f(a: int, /, b: int, *rest: int, c: int, d: int = 4, **more: int) -> tuple[Any, ...]:
        return a, b, rest, c, d, more

    nodes = [const(name, i + 1) for i, name in enumerate("abc")]
    assert outputs_of(*nodes, Node.function(f))["f"] == (1, 2, (), 3, 4, {})
    assert outputs_of(*nodes, Node.function(f, bind={"e": "a", "rest": "b"}))["f"] == (
        1,
        2,
        (),
        3,
        4,
        {"e": 1, "rest": 2},
    )


def test_keyword_only_and_defaults_between_are_called_by_name() -> None:
    def f(a: int = 1, b: int = 2, c: int = 3, *, d: int) -> tuple[int, ...]:
        return a, b, c, d

    assert outputs_of(const("b", 20), const("d", 40), Node.function(f))["f"] == (1, 20, 3, 40)


def test_a_positional_only_parameter_behind_an_unbound_one_is_an_error_before_anything_runs() -> None:
    ran: list[int] = []

    def f(a: int = 1, b: int = 2, /) -> int:
        return a + b

    made = Workflow("w")
    made.add(Node.function(lambda: ran.append(1), name="first"), const("b", 20), Node.function(f))
    with pytest.raises(ConfigurationError, match="'f'.*positional-only parameter 'b'"):
        Executor().execute(made)
    assert ran == []


def test_a_function_without_parameters_is_just_called() -> None:
    assert outputs_of(Node.function(lambda: 5, name="f"))["f"] == 5


def test_star_args_alone_ask_for_nothing() -> None:
    assert outputs_of(Node.function(lambda *a, **k: (a, k), "f"))["f"] == ((), {})


class Shop:
    def __init__(self, price: int) -> None:
        self.price = price

    def total(self, count: int) -> int:
        return self.price * count

    def __call__(self, count: int) -> int:
        return self.price * count + 1

    @classmethod
    def made(cls, count: int) -> int:
        return count + 100

    @staticmethod
    def doubled(count: int) -> int:
        return count * 2


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (Shop(2).total, "total", 6),
        (Shop(2), "Shop", 7),
        (Shop.made, "made", 103),
        (Shop.doubled, "doubled", 6),
        (Shop, "Shop", None),
        (functools.partial(lambda a, count: a + count, 10), "partial", 13),
        (functools.partial(Shop(2).total), "partial", 6),
    ],
)
def test_anything_that_can_be_called_makes_a_node(function: Any, name: str, expected: Any) -> None:
    node = Node.function(function, bind={"price": "count"} if function is Shop else None)
    assert node.name() == name
    found = outputs_of(const("count", 3), node)[name]
    assert found.price == 3 if expected is None else found == expected


def test_a_partial_keeps_what_it_was_given_unless_a_node_has_the_name() -> None:
    def f(a: int, b: int, c: int) -> tuple[int, int, int]:
        return a, b, c

    assert outputs_of(const("b", 2), Node.function(functools.partial(f, 1, c=3), "f"))["f"] == (1, 2, 3)


def test_a_decorated_function_is_read_through_its_wrapper() -> None:
    def plain(count: int) -> int:
        return count + 1

    @functools.wraps(plain)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) * 10

    assert outputs_of(const("count", 3), Node.function(wrapper))["plain"] == 40


def test_a_builtin_that_tells_its_parameters_makes_a_node() -> None:
    assert outputs_of(const("obj", [1, 2, 3]), Node.function(len))["len"] == 3


def test_a_builtin_that_does_not_tell_its_parameters_says_to_wrap_it() -> None:
    with pytest.raises(WorkflowError, match="wrap it in a function"):
        Node.function(min)


def test_a_lambda_needs_a_name() -> None:
    assert outputs_of(Node.function(lambda: 1, name="one"))["one"] == 1
    with pytest.raises(ConfigurationError, match="lambda"):
        Node.function(lambda: 1)


def test_async_functions_take_their_parameters_the_same_way() -> None:
    async def f(a: int, *, x: int, d: int = 9) -> tuple[int, int, int]:
        return a, x, d

    assert outputs_of(const("a", {"k": 1}), Node.function(f, bind={"a": "a.k"}), inputs={"x": 2})["f"] == (1, 2, 9)


def test_a_function_gets_a_native_nodes_text() -> None:
    assert (
        outputs_of(Node.transform("t", "hello {x}"), Node.function(lambda t: t.upper(), "f"), inputs={"x": "you"})["f"]
        == "HELLO YOU"
    )


class Attributes:
    inner = {"k": ["deep"]}  # noqa: RUF012


def test_a_bound_path_looks_into_attributes_keys_and_places() -> None:
    found = outputs_of(const("a", Attributes()), Node.function(lambda x: x, "f", bind={"x": "a.inner.k.0"}))
    assert found["f"] == "deep"


def test_a_bound_path_gives_the_object_itself() -> None:
    value = {"k": object()}
    assert outputs_of(const("a", value), Node.function(lambda x: x, "f", bind={"x": "a.k"}))["f"] is value["k"]


def test_bind_to_an_unknown_node_is_an_input_that_is_asked_for() -> None:
    made = Workflow("w")
    made.add(Node.function(lambda x: x, "f", bind={"x": "topic.k"}))
    assert made.inputs == ("topic",)
    assert Executor().execute(made, {"topic": {"k": 1}})["f"] == 1
    strict = Workflow("w", inputs=["topic"])
    strict.add(Node.function(lambda x: x, "f", bind={"x": "topik.k"}))
    with pytest.raises(UnknownNameError, match="did you mean 'topic'"):
        strict.validate()
