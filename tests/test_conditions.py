"""Conditions: which ways are followed, what is skipped, where ways meet again, and what a handler is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from flows import good

from graphbit import (
    ConfigurationError,
    Executor,
    LlmConfig,
    Node,
    NodeNotRunError,
    OutputError,
    UnknownNameError,
    Workflow,
    WorkflowError,
    WorkflowResult,
)
from graphbit.testing import FakeProvider


def choosing(name: str, *chosen: str) -> Node:
    return Node.condition(name, lambda context: list(chosen))


def executed(nodes: list[Node], edges: str, **inputs: Any) -> WorkflowResult:
    """Runs nodes joined as in "a-b b-c"."""
    made = Workflow("w")
    made.add(*nodes)
    for edge in edges.split():
        made.connect(*edge.split("-"))
    result = Executor().execute(made, inputs)
    assert result.errors == {}
    return result


def ran(result: WorkflowResult) -> str:
    """The names of the nodes that ran, in the order of the workflow."""
    assert set(result.states.values()) <= {"succeeded", "skipped"}
    return "".join(name for name, state in result.states.items() if state == "succeeded")


# ---------------------------------------------------------------- which ways


@pytest.mark.parametrize(
    ("returned", "expected", "choice"),
    [
        ("a", "ra", ("a",)),
        ("b", "rb", ("b",)),
        (["a"], "ra", ("a",)),
        (("a", "b"), "rab", ("a", "b")),
        (["b", "a"], "rab", ("b", "a")),
        ([], "r", ()),
        ((), "r", ()),
        (set(), "r", ()),
        ({"b"}, "rb", ("b",)),
        (frozenset({"a"}), "ra", ("a",)),
        (["a", "a"], "ra", ("a",)),
    ],
)
def test_what_the_handler_names_is_followed_and_the_rest_skipped(
    returned: Any, expected: str, choice: tuple[str, ...]
) -> None:
    result = executed([Node.condition("r", lambda context: returned), good("a"), good("b")], "r-a r-b")
    assert ran(result) == expected
    assert result.choices == {"r": choice}
    assert result.is_success()


def test_a_handler_may_return_the_node_itself() -> None:
    a, b = good("a"), good("b")
    assert ran(executed([Node.condition("r", lambda context: b), a, b], "r-a r-b")) == "rb"
    assert ran(executed([Node.condition("r", lambda context: [a, b]), a, b], "r-a r-b")) == "rab"


def test_a_skipped_node_says_that_no_condition_led_to_it() -> None:
    result = executed([choosing("r", "a"), good("a"), good("b"), good("c")], "r-a r-b b-c")
    for name in "bc":
        with pytest.raises(NodeNotRunError, match=f"'{name}' was skipped: no condition chose a way that leads to it"):
            result[name]
        assert result.get(name, 5) == 5
    assert result.outputs.keys() == {"r", "a"}


def test_skips_go_down_the_whole_way_not_taken() -> None:
    result = executed([choosing("r", "z"), *map(good, "abcdz")], "r-a a-b b-c a-d c-d r-z")
    assert ran(result) == "rz"


def test_a_condition_without_successors_may_choose_nothing() -> None:
    assert ran(executed([choosing("r")], "")) == "r"


def test_successors_by_reference_are_successors() -> None:
    nodes = [good("a"), Node.condition("r", lambda a: "t"), Node.transform("t", "<{r}>"), Node.transform("u", "{r}")]
    result = executed(nodes, "")
    assert ran(result) == "art"
    assert result["t"] == "<a>"


# ---------------------------------------------------------------- where ways meet


@pytest.mark.parametrize(("chosen", "expected"), [("a", "raj"), ("b", "rbj"), ("ab", "rabj"), ("", "r")])
def test_a_join_runs_when_one_of_its_ways_was_taken(chosen: str, expected: str) -> None:
    assert ran(executed([choosing("r", *chosen), *map(good, "abj")], "r-a r-b a-j b-j")) == expected


def test_a_join_that_the_condition_leads_to_directly_runs_by_either_way() -> None:
    assert ran(executed([choosing("r", "a"), good("a"), good("j")], "r-a r-j a-j")) == "raj"
    assert ran(executed([choosing("r", "j"), good("a"), good("j")], "r-a r-j a-j")) == "rj"


def test_a_join_with_a_node_outside_runs_only_when_its_way_was_taken() -> None:
    for chosen, expected in (("a", "oraj"), ("b", "orb")):
        assert ran(executed([good("o"), choosing("r", chosen), *map(good, "abj")], "r-a r-b a-j o-j")) == expected


def test_what_stands_outside_is_not_touched() -> None:
    assert ran(executed([good("o"), good("p"), choosing("r"), good("a")], "o-p r-a")) == "opr"


def test_data_that_a_branch_reads_does_not_decide_whether_it_runs() -> None:
    result = executed([good("s"), choosing("r", "b"), good("a"), good("b")], "s-r s-a s-b r-a r-b")
    assert ran(result) == "srb"


def test_nested_conditions_each_decide_for_themselves() -> None:
    nodes = [choosing("r", "q"), choosing("q", "c"), *map(good, "abcj")]
    edges = "r-q r-a q-b q-c a-j b-j c-j"
    assert ran(executed(nodes, edges)) == "rqcj"
    assert ran(executed([choosing("r", "a"), choosing("q", "c"), *map(good, "abcj")], edges)) == "raj"
    assert ran(executed([choosing("r", "q"), choosing("q"), *map(good, "abcj")], edges)) == "rq"


def test_a_condition_on_a_way_not_taken_is_not_asked() -> None:
    asked: list[str] = []

    def handler(context: Any) -> list[str]:
        asked.append("q")
        return []

    result = executed([choosing("r", "a"), Node.condition("q", handler), *map(good, "ab")], "r-a r-q q-b")
    assert (ran(result), asked) == ("ra", [])
    assert result.choices == {"r": ("a",)}


@pytest.mark.parametrize(("later", "expected"), [("k", "rajck"), ("l", "rajcl")])
def test_an_early_join_read_below_a_later_condition_does_not_decide(later: str, expected: str) -> None:
    nodes = [choosing("r", "a"), good("a"), good("b"), good("j"), choosing("c", later), good("k"), good("l")]
    assert ran(executed(nodes, "r-a r-b a-j b-j j-c c-k c-l j-k j-l")) == expected


def test_two_conditions_that_lead_to_one_node_need_only_one_of_them() -> None:
    for first, second, expected in (("j", "a", "rqaj"), ("b", "j", "rqbj"), ("b", "a", "rqab"), ("j", "j", "rqj")):
        nodes = [choosing("r", first), choosing("q", second), *map(good, "abj")]
        assert ran(executed(nodes, "r-b r-j q-a q-j")) == expected


def test_a_chain_of_conditions_leads_through() -> None:
    number = 200
    nodes = [choosing(f"c{i}", f"c{i + 1}") for i in range(number)]
    result = executed(
        [*nodes, good(f"c{number}"), good("off")], " ".join(f"c{i}-c{i + 1}" for i in range(number)) + " c0-off"
    )
    assert result[f"c{number}"] == f"c{number}"
    assert result.states["off"] == "skipped"
    assert len(result.choices) == number


def test_a_function_after_a_skipped_node_gets_none_from_it() -> None:
    nodes = [choosing("r", "a"), good("a"), good("b"), Node.function(lambda a, b: (a, b), "j")]
    assert executed(nodes, "r-a r-b")["j"] == ("a", None)


def test_a_path_into_a_skipped_nodes_output_is_none_and_inserts_nothing() -> None:
    nodes = [
        choosing("r", "a"),
        good("a"),
        good("b"),
        Node.transform("t", "<{a}|{b}|{b.k}>"),
        Node.function(lambda x, a: x, "f", bind={"x": "b.k"}),
    ]
    result = executed(nodes, "r-a r-b")
    assert result["t"] == "<a||>"
    assert result["f"] is None


# ---------------------------------------------------------------- what a handler is given


def test_a_handlers_parameters_are_bound_as_a_functions() -> None:
    def handler(a: str, x: int, limit: int = 3) -> str:
        return "b" if (a, x, limit) == ("a", 7, 3) else "c"

    assert ran(executed([good("a"), Node.condition("r", handler), *map(good, "bc")], "r-b r-c", x=7)) == "arb"


def test_a_handlers_bind_names_nodes_inputs_and_paths() -> None:
    seen: list[Any] = []

    def handler(p: Any, q: Any) -> list[str]:
        seen.append((p, q))
        return []

    executed(
        [Node.function(lambda: {"k": [5]}, name="a"), Node.condition("r", handler, bind={"p": "a.k.0", "q": "x"})],
        "",
        x=7,
    )
    assert seen == [(5, 7)]


def test_a_handler_may_be_anything_that_can_be_called() -> None:
    class Router:
        def __call__(self, a: str) -> str:
            return "b"

        def method(self, a: str) -> str:
            return "b"

    for handler in (Router(), Router().method, functools.partial(lambda word, a: word, "b")):
        assert ran(executed([good("a"), Node.condition("r", handler), *map(good, "bc")], "r-b r-c")) == "arb"


def test_a_handler_without_parameters_is_just_called() -> None:
    assert ran(executed([Node.condition("r", lambda: "a"), good("a")], "r-a")) == "ra"


def context_of(nodes: list[Node], edges: str, **inputs: Any) -> dict[str, Any]:
    """What the condition "r" was given; it chooses nothing."""
    seen: list[dict[str, Any]] = []

    def handler(context: dict[str, Any]) -> list[str]:
        seen.append(context)
        return []

    executed([*nodes, Node.condition("r", handler)], edges, **inputs)
    assert len(seen) == 1
    return seen[0]


def test_a_handler_of_the_originals_kind_gets_a_dict_of_everything() -> None:
    a = Node.function(lambda x: {"k": x}, name="a")
    found = context_of([a, Node.transform("t", "<{x}>")], "t-a a-r", x=1)
    assert found.keys() == {"parent_node_id", "parent_output", "variables", "node_outputs", "metadata"}
    assert found["parent_node_id"] == a.id()
    assert found["parent_output"] == {"k": 1}
    assert found["node_outputs"].items() >= {"a": {"k": 1}, "t": "<1>"}.items()
    assert found["variables"].items() >= {"x": 1, "a": {"k": 1}, "t": "<1>"}.items()
    assert found["metadata"]["workflow_name"] == "w"


def test_with_several_predecessors_the_parents_output_is_a_dict_of_theirs() -> None:
    found = context_of([good("a"), good("b")], "a-r b-r")
    assert found["parent_node_id"] is None
    assert found["parent_output"] == {"a": "a", "b": "b"}


def test_without_predecessors_there_is_no_parent() -> None:
    found = context_of([], "")
    assert found["parent_node_id"] is None
    assert not found["parent_output"]


@pytest.mark.parametrize("first", [True, False])
def test_a_lone_parameter_that_is_a_declared_input_is_bound_to_it(first: bool) -> None:
    made = Workflow("w", inputs=["x"])
    nodes = [Node.condition("r", lambda x: "t" if x == 5 else []), Node.transform("t", "{x}")]
    made.add(*(nodes if first else nodes[::-1]))
    made.connect("r", "t")
    assert Executor().execute(made, {"x": 5})["t"] == "5"


@pytest.mark.parametrize("first", [True, False])
def test_what_a_lone_parameter_means_does_not_depend_on_the_order_of_the_nodes(first: bool) -> None:
    seen: list[Any] = []

    def handler(x: Any) -> list[str]:
        seen.append(x)
        return []

    made = Workflow("w")
    nodes = [Node.condition("r", handler), Node.transform("t", "{x}")]
    made.add(*(nodes if first else nodes[::-1]))
    Executor().execute(made, {"x": 5}).raise_for_failure()
    assert isinstance(seen[0], dict)  # neither a node nor a declared input has that name


def test_a_lone_parameter_with_the_name_of_a_node_is_that_nodes_output() -> None:
    seen: list[Any] = []

    def handler(a: Any) -> list[str]:
        seen.append(a)
        return []

    executed([good("a"), Node.condition("r", handler)], "")
    assert seen == ["a"]


@pytest.mark.parametrize("parallel", [1, 50])
def test_choices_of_many_conditions_do_not_mix(parallel: int) -> None:
    def to(name: str) -> Callable[[], str]:
        return lambda: name

    nodes = [
        it
        for i in range(parallel)
        for it in (Node.condition(f"c{i}", to(f"a{i}" if i % 2 else f"b{i}")), good(f"a{i}"), good(f"b{i}"))
    ]
    result = executed(nodes, " ".join(f"c{i}-a{i} c{i}-b{i}" for i in range(parallel)))
    assert result.choices == {f"c{i}": (f"a{i}" if i % 2 else f"b{i}",) for i in range(parallel)}
    assert all((result.states[f"a{i}"] == "succeeded") == bool(i % 2) for i in range(parallel))


# ---------------------------------------------------------------- handlers that do wrong


@pytest.mark.parametrize(
    ("returned", "kind", "words"),
    [
        ("alpa", UnknownNameError, r"chose 'alpa', which is none of its successors \(did you mean 'alpha'\?\)"),
        ("below", UnknownNameError, "chose 'below', which is none of its successors.*'alpha', 'beta'"),
        ("before", UnknownNameError, "chose 'before', which is none of its successors"),
        (["alpha", "nothing"], UnknownNameError, "chose 'nothing'"),
        (good("alfa"), UnknownNameError, "chose 'alfa'"),
        (None, OutputError, "returned None; its handler must return the name of a successor"),
        (5, OutputError, "returned 5"),
        ([None], OutputError, "chose None"),
    ],
)
def test_a_choice_of_what_is_no_successor_fails_and_nothing_below_runs(
    returned: Any, kind: type[Exception], words: str
) -> None:
    made = Workflow("w")
    made.add(good("before"), Node.condition("r", lambda before: returned), *map(good, ("alpha", "beta", "below")))
    for pair in (("r", "alpha"), ("r", "beta"), ("alpha", "below")):
        made.connect(*pair)
    result = Executor().execute(made)
    with pytest.raises(kind, match=f"condition 'r' {words}"):
        result["r"]
    assert result.choices == {}
    assert list(result.states.values()) == ["succeeded", "failed", "skipped", "skipped", "skipped"]


def test_a_handler_that_cannot_be_called_or_awaits_is_refused_where_it_is_given() -> None:
    async def later(a: Any) -> str:
        return "b"

    with pytest.raises(TypeError, match="handler must be callable.*'r'"):
        Node.condition("r", "b")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'r'.*must be a plain function"):
        Node.condition("r", later)


def test_the_node_a_handler_returns_goes_by_its_name() -> None:
    assert ran(executed([Node.condition("r", lambda: good("a")), good("a"), good("b")], "r-a r-b")) == "ra"


def test_two_conditions_may_decide_differently_in_each_run() -> None:
    made = Workflow("w", inputs=["x"])
    made.add(Node.condition("r", lambda x: "even" if x % 2 == 0 else "odd"), good("even"), good("odd"))
    made.connect("r", "even")
    made.connect("r", "odd")
    executor = Executor()
    runs = [executor.start(made, {"x": i}) for i in range(40)]
    assert [run.wait().choices["r"] for run in runs] == [("even",), ("odd",)] * 20


@pytest.mark.parametrize("chosen", [0, 57, 99])
def test_one_of_a_hundred_successors(chosen: int) -> None:
    names = [f"n{i}" for i in range(100)]
    result = executed([choosing("r", names[chosen]), *map(good, names)], " ".join(f"r-{name}" for name in names))
    assert result.outputs.keys() == {"r", names[chosen]}


# ---------------------------------------------------------------- what a condition passes on


def test_a_condition_passes_what_came_to_it_on_to_nodes_of_every_kind(provider: FakeProvider) -> None:
    async def waits(r: Any) -> Any:
        return r

    provider.default = lambda request: request.prompt
    provider.route("GET", "/v", text="found")
    value = {"k": 'q"'}
    made = Workflow("w")
    made.add(
        Node.function(lambda: value, name="a"),
        Node.condition("r", lambda a: ["t", "f", "waits", "ask", "page", "q"]),
        Node.transform("t", "{r} {r.k}"),
        Node.function(lambda x: x, "f", bind={"x": "r"}),
        Node.function(waits),
        Node.agent("ask", "On {r.k}.", system_prompt="{r}"),
        Node.http("page", "GET", provider.url + "/v", headers={"X-K": "{r.k}"}),
        Node.condition("q", lambda r: "last" if r is value else []),
        Node.function(lambda q: q, "last"),
    )
    result = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).execute(made)
    assert result.errors == {}
    assert result["t"] == '{"k":"q\\""} q"'
    for name in ("r", "f", "waits", "q", "last"):
        assert result[name] is value
        assert result.get_node_output(name) is value
    assert result["ask"] == 'On q".'
    by_path = {request.path: request for request in provider.requests}
    assert by_path["/v1/chat/completions"].messages[0]["content"] == '{"k":"q\\""}'
    assert by_path["/v"].headers["x-k"] == 'q"'


def test_a_condition_passes_an_agents_answer_on(provider: FakeProvider) -> None:
    provider.reply("yes")
    made = Workflow("w")
    made.add(
        Node.agent("ask", "Well?"),
        Node.condition("r", lambda context: "t" if context["parent_output"] == "yes" else []),
        Node.transform("t", "it said {r}"),
        Node.transform("u", "no: {r}"),
    )
    made.connect("ask", "r")
    result = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).execute(made)
    assert (result["r"], result["t"]) == ("yes", "it said yes")
    assert result.states["u"] == "skipped"


def test_after_several_predecessors_a_condition_passes_all_of_them_on_by_name() -> None:
    result = executed([*map(good, "ab"), choosing("r", "f"), Node.function(lambda r: r, "f")], "a-r b-r")
    assert result["r"] == result["f"] == {"a": "a", "b": "b"}


def test_of_predecessors_that_were_skipped_a_condition_passes_none_on() -> None:
    nodes = [choosing("r", "a"), *map(good, "ab"), choosing("q", "f"), Node.function(lambda q: q, "f")]
    assert executed(nodes, "r-a r-b a-q b-q")["f"] == {"a": "a", "b": None}


def test_a_text_cannot_insert_a_condition_after_several_or_no_predecessors() -> None:
    for edges, words in (([("a", "r"), ("b", "r")], "several predecessors.*'a', 'b'"), ([], "no predecessor")):
        made = Workflow("w")
        made.add(good("a"), good("b"), choosing("r", "t"), Node.transform("t", "{r}"))
        for pair in edges:
            made.connect(*pair)
        with pytest.raises(WorkflowError, match=f"'t' refers to condition 'r', which has {words}"):
            Executor().execute(made)
