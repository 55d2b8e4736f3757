"""Describing a workflow: what can be added and connected, what `validate` finds, and what its messages say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graphbit import (
    ConfigurationError,
    CycleError,
    Executor,
    GraphbitError,
    InputError,
    Node,
    UnknownNameError,
    Workflow,
    WorkflowError,
)


def step(name: str, *parameters: str) -> Node:
    """A function node with these parameters; it returns its name."""
    made: dict[str, Any] = {}
    exec(f"def function({', '.join(parameters)}): return {name!r}", made)
    return Node.function(made["function"], name=name)


def workflow(*nodes: Node, inputs: list[str] | None = None) -> Workflow:
    made = Workflow("w", inputs)
    made.add(*nodes)
    return made


# ---------------------------------------------------------------- what it says of itself


def test_a_workflow_tells_its_name_its_nodes_and_how_many() -> None:
    a, b = step("a"), step("b")
    it = workflow(b, a)
    assert (it.name(), it.node_count(), it.nodes) == ("w", 2, (b, a))
    assert repr(it) == "Workflow(name='w', nodes=2)"


def test_nodes_come_in_the_order_in_which_they_were_added() -> None:
    names = [f"n{i}" for i in range(20)][::-1]
    it = Workflow("w")
    for name in names:
        it.add(step(name))
    assert [node.name() for node in it.nodes] == names


def test_add_node_returns_the_id_and_connect_takes_it() -> None:
    it = Workflow("w")
    first, second = it.add_node(step("a")), it.add_node(step("b"))
    it.connect(first, second)
    assert it.edges == (("a", "b"),)


def test_connect_takes_nodes_names_and_ids() -> None:
    a, b, c = step("a"), step("b"), step("c")
    it = workflow(a, b, c)
    it.connect(a, "b")
    it.connect("b", c.id())
    assert it.edges == (("a", "b"), ("b", "c"))


def test_connecting_twice_makes_one_edge() -> None:
    it = workflow(step("a"), step("b"))
    it.connect("a", "b")
    it.connect("a", "b")
    assert it.edges == (("a", "b"),)


def test_an_edge_made_by_hand_and_by_reference_is_one_edge() -> None:
    it = workflow(step("a"), step("b", "a"))
    it.connect("a", "b")
    assert it.edges == (("a", "b"),)


def test_a_parameter_and_a_placeholder_each_make_an_edge() -> None:
    it = workflow(step("a"), step("b", "a"), Node.transform("c", "{a} and {b.x.0} and {{node.a}}"))
    assert set(it.edges) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert len(it.edges) == 3


def test_references_may_come_before_what_they_refer_to() -> None:
    it = workflow(step("b", "a"), step("a"))
    assert it.edges == (("a", "b"),)


def test_ids_are_unique_and_an_agent_may_bring_its_own() -> None:
    assert step("a").id() != step("a").id()
    assert Node.agent("x", "prompt", agent_id="mine").id() == "mine"


def test_a_node_tells_its_name_its_id_and_its_kind() -> None:
    node = step("a")
    assert repr(node) == f"Node(id={node.id()!r}, name='a', type='Function')"


def test_one_node_serves_several_workflows() -> None:
    node = step("a")
    assert [Executor().execute(workflow(node))["a"] for _ in range(2)] == ["a", "a"]


# ---------------------------------------------------------------- adding what cannot be added


def test_a_second_node_of_a_name_is_refused() -> None:
    it = workflow(step("a"))
    with pytest.raises(WorkflowError, match="'w' has a node named 'a' already; give this one another name"):
        it.add(step("a"))
    assert it.node_count() == 1


def test_adding_the_same_node_twice_is_refused_as_the_original_did() -> None:
    node = step("a")
    it = workflow(node)
    with pytest.raises(RuntimeError, match="already exists.*'a'"):
        it.add(node)
    with pytest.raises(WorkflowError, match="already exists"):
        it.add_node(node)


def test_two_nodes_of_one_name_in_one_call_are_refused() -> None:
    it = Workflow("w")
    with pytest.raises(WorkflowError, match="two of the nodes are named 'a'"):
        it.add(step("a"), step("a"))
    assert it.node_count() == 0


def test_nothing_is_added_when_one_of_the_nodes_cannot_be() -> None:
    it = workflow(step("a"))
    with pytest.raises(WorkflowError):
        it.add(step("b"), step("c"), step("a"))
    with pytest.raises(ConfigurationError):
        it.add(step("b"), "c")  # type: ignore[arg-type]
    assert [node.name() for node in it.nodes] == ["a"]


@pytest.mark.parametrize("thing", [None, "a", 5, len, object, step])
def test_what_is_no_node_is_refused_with_the_remedy(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"made of nodes, got .*Node\.function"):
        Workflow("w").add(thing)


@pytest.mark.parametrize("name", [None, 5, b"w", ["w"]])
def test_a_workflows_name_is_a_string(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name is a string, got"):
        Workflow(name)


def test_inputs_given_as_one_string_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="inputs is a list of names, got the string 'topic'"):
        Workflow("w", inputs="topic")


def test_an_input_named_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="an input is named twice: 'a', 'a'"):
        Workflow("w", inputs=["a", "a"])


@pytest.mark.parametrize("inputs", [5, [5], [None], ["a", b"b"], [["a"]], [""]])
def test_inputs_are_a_list_of_names(inputs: Any) -> None:
    with pytest.raises((ConfigurationError, TypeError), match="input"):
        Workflow("w", inputs=inputs)


def test_two_nodes_with_one_id_are_refused() -> None:
    it = workflow(Node.agent("a", "one", agent_id="same"))
    with pytest.raises(WorkflowError, match="'same'"):
        it.add(Node.agent("b", "two", agent_id="same"))


@pytest.mark.parametrize("agent_id", [5, "", ["x"]])
def test_an_agents_id_is_a_string(agent_id: Any) -> None:
    with pytest.raises(ConfigurationError, match="agent_id"):
        Node.agent("a", "prompt", agent_id=agent_id)


def test_a_node_has_no_constructor() -> None:
    with pytest.raises(TypeError, match=r"Node\.agent, Node\.function"):
        Node()


FACTORIES: dict[str, Callable[[Any], Node]] = {
    "agent": lambda name: Node.agent(name, "prompt"),
    "function": lambda name: Node.function(len, name=name),
    "transform": lambda name: Node.transform(name, "text"),
    "condition": lambda name: Node.condition(name, lambda c: "x"),
    "delay": lambda name: Node.delay(name, 1),
    "http": lambda name: Node.http(name, "GET", "http://127.0.0.1/"),
}


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("name", ["", "  ", "\n\t"])
def test_a_nodes_name_is_not_blank(kind: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be empty"):
        FACTORIES[kind](name)


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("name", [5, b"a", ["a"]])
def test_a_nodes_name_is_a_string(kind: str, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a string, got"):
        FACTORIES[kind](name)


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("name", ["{a}", "a{", "}"])
def test_a_nodes_name_holds_no_braces(kind: str, name: str) -> None:
    with pytest.raises(WorkflowError, match="cannot hold braces, got"):
        FACTORIES[kind](name)


@pytest.mark.parametrize("kind", ["agent", "transform", "condition", "delay", "http"])
def test_only_a_function_can_give_a_node_its_name(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a string, got None"):
        FACTORIES[kind](None)


BAD_OPTIONS: dict[str, tuple[Callable[[], Node], str]] = {
    "blank prompt": (lambda: Node.agent("x", " "), "Prompt cannot be empty.*'x'"),
    "prompt of bytes": (lambda: Node.agent("x", b"p"), "Prompt.*'x'"),  # type: ignore[arg-type]
    "context that is no text": (lambda: Node.agent("x", "p", context=5), "context.*'x'"),  # type: ignore[arg-type]
    "system prompt that is no text": (lambda: Node.agent("x", "p", system_prompt=5), "system_prompt.*'x'"),  # type: ignore[arg-type]
    "llm_config that is none": (lambda: Node.agent("x", "p", llm_config="gpt"), "llm_config.*'x'"),  # type: ignore[arg-type]
    "temperature below": (lambda: Node.agent("x", "p", temperature=-0.1), "Temperature.*got -0.1.*'x'"),
    "temperature above": (lambda: Node.agent("x", "p", temperature=2.1), "Temperature.*got 2.1.*'x'"),
    "temperature nan": (lambda: Node.agent("x", "p", temperature=float("nan")), "Temperature.*got nan.*'x'"),
    "temperature of text": (lambda: Node.agent("x", "p", temperature="1"), "Temperature.*got '1'.*'x'"),  # type: ignore[arg-type]
    "temperature of bool": (lambda: Node.agent("x", "p", temperature=True), "Temperature.*got True.*'x'"),
    "max_tokens zero": (lambda: Node.agent("x", "p", max_tokens=0), "max_tokens.*got 0.*'x'"),
    "max_tokens of float": (lambda: Node.agent("x", "p", max_tokens=1.5), "max_tokens.*got 1.5.*'x'"),  # type: ignore[arg-type]
    "max_tokens of bool": (lambda: Node.agent("x", "p", max_tokens=True), "max_tokens.*got True.*'x'"),
    "nothing to call": (lambda: Node.function(5, name="x"), "can be called, got 5"),  # type: ignore[arg-type]
    "lambda without name": (lambda: Node.function(lambda: 1), r"lambda has no name.*name="),
    "bind that is no mapping": (lambda: Node.function(abs, "x", bind=["x"]), "bind.*'x'|'x'.*bind"),  # type: ignore[arg-type]
    "bind to a number": (lambda: Node.function(lambda a: a, "x", bind={"a": 5}), r"'x'.*bind\['a'\].*got 5"),  # type: ignore[dict-item]
    "bind to nothing": (lambda: Node.function(lambda a: a, "x", bind={"a": ""}), r"'x'.*bind\['a'\].*got ''"),
    "blank transform": (lambda: Node.transform("x", ""), "cannot be empty.*'x'"),
    "transform of None": (lambda: Node.transform("x", None), "transformation.*'x'"),  # type: ignore[arg-type]
    "handler not callable": (lambda: Node.condition("x", "h"), "must be callable, got 'h'.*'x'"),  # type: ignore[arg-type]
    "negative delay": (lambda: Node.delay("x", -1), "from 0 on, got -1.*'x'"),
    "delay nan": (lambda: Node.delay("x", float("nan")), "got nan.*'x'"),
    "endless delay": (lambda: Node.delay("x", float("inf")), "got inf.*'x'"),
    "delay of text": (lambda: Node.delay("x", "1"), "got '1'.*'x'"),  # type: ignore[arg-type]
    "delay of bool": (lambda: Node.delay("x", True), "got True.*'x'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_an_option_that_cannot_be_right_is_refused_naming_it_and_the_node(case: str) -> None:
    make, message = BAD_OPTIONS[case]
    with pytest.raises((ConfigurationError, WorkflowError, TypeError), match=message):
        make()


def test_the_handler_of_a_condition_is_no_async_function() -> None:
    async def handler(c: Any) -> str:
        return "x"

    with pytest.raises(ConfigurationError, match="'route'.*not `async def`"):
        Node.condition("route", handler)


def test_a_handler_that_cannot_be_called_is_a_type_error_too() -> None:
    with pytest.raises(TypeError):
        Node.condition("route", "handler")  # type: ignore[arg-type]


def test_bind_of_a_parameter_that_the_function_does_not_have_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'f'.*'texts'.*no parameter.*did you mean 'text'"):
        Node.function(lambda text: text, "f", bind={"texts": "a"})


# ---------------------------------------------------------------- connecting what is not there


@pytest.mark.parametrize(("pair", "role"), [(("outlin", "draft"), "Source"), (("draft", "outlin"), "Target")])
def test_connecting_an_unknown_node_offers_the_nearest_name(pair: tuple[str, str], role: str) -> None:
    it = workflow(step("outline"), step("draft"))
    with pytest.raises(
        UnknownNameError, match=rf"{role} node outlin not found in workflow 'w' \(did you mean 'outline'"
    ):
        it.connect(*pair)


def test_connecting_a_node_that_was_not_added_says_to_add_it_first() -> None:
    it = workflow(step("a"))
    with pytest.raises(UnknownNameError, match="add nodes before connecting them"):
        it.connect("a", step("other"))


def test_another_workflows_node_of_the_same_name_is_not_ours() -> None:
    it = workflow(step("a"), step("b"))
    with pytest.raises(WorkflowError):
        it.connect(step("a"), "b")


@pytest.mark.parametrize("thing", [None, 5, ["a"], {"a": 1}])
def test_connecting_what_is_no_node_is_refused(thing: Any) -> None:
    it = workflow(step("a"))
    with pytest.raises(WorkflowError, match="not found"):
        it.connect("a", thing)
    with pytest.raises(WorkflowError, match="not found"):
        it.connect(thing, "a")


# ---------------------------------------------------------------- cycles


def test_a_cycle_is_named_node_by_node() -> None:
    it = workflow(step("a"), step("b"), step("c"), step("outside"))
    for pair in (("outside", "a"), ("a", "b"), ("b", "c"), ("c", "a")):
        it.connect(*pair)
    with pytest.raises(CycleError) as caught:
        it.validate()
    way = caught.value.nodes
    assert sorted(way) == ["a", "b", "c"]
    assert {(way[i], way[(i + 1) % 3]) for i in range(3)} == {("a", "b"), ("b", "c"), ("c", "a")}
    assert " -> ".join(map(repr, (*way, way[0]))) in str(caught.value)
    assert "remove one of these edges" in str(caught.value)


def test_a_node_connected_to_itself_is_a_cycle() -> None:
    it = workflow(step("a"), step("b"))
    it.connect("a", "a")
    with pytest.raises(CycleError, match="'a' -> 'a'") as caught:
        it.validate()
    assert caught.value.nodes == ("a",)


def test_a_node_that_refers_to_itself_is_a_cycle() -> None:
    with pytest.raises(CycleError, match="'a' -> 'a'"):
        workflow(Node.transform("a", "again {a}")).validate()


def test_references_alone_can_make_a_cycle() -> None:
    with pytest.raises(CycleError) as caught:
        workflow(step("a", "b"), Node.transform("b", "{a}")).validate()
    assert sorted(caught.value.nodes) == ["a", "b"]


def test_a_reference_and_an_edge_by_hand_can_make_a_cycle() -> None:
    it = workflow(step("a"), step("b", "a"))
    it.connect("b", "a")
    with pytest.raises(CycleError):
        it.validate()


def test_a_cycle_of_conditions_and_delays_is_a_cycle() -> None:
    it = workflow(Node.condition("c", lambda context: "d"), Node.delay("d", 0))
    it.connect("c", "d")
    it.connect("d", "c")
    with pytest.raises(CycleError):
        it.validate()
    with pytest.raises(CycleError):
        Executor().execute(it)


def test_executing_a_cycle_raises_as_a_runtime_error_too_and_nothing_runs() -> None:
    ran: list[int] = []
    it = workflow(Node.function(lambda: ran.append(1), name="first"), step("a", "b"), step("b", "a"))
    with pytest.raises(RuntimeError, match="contains a cycle"):
        Executor().execute(it)
    assert ran == []


def test_a_cycle_of_many_nodes_is_found() -> None:
    number = 3000
    it = workflow(*[step(f"n{i}") for i in range(number)])
    for i in range(number):
        it.connect(f"n{i}", f"n{(i + 1) % number}")
    with pytest.raises(CycleError):
        it.validate()


def test_a_sound_workflow_can_be_repaired_and_validated_again() -> None:
    it = workflow(step("a", "b"))
    assert it.inputs == ("b",)
    it.add(step("b"))
    it.validate()
    assert it.inputs == ()
    it.connect("a", "b")
    with pytest.raises(CycleError):
        it.validate()


# ---------------------------------------------------------------- inputs and references


def test_without_declared_inputs_unknown_names_are_collected() -> None:
    it = workflow(
        step("a", "first"),
        Node.transform("b", "{second.x} {a} {first}"),
        Node.agent("c", "{third}", context="{fourth}"),
    )
    assert it.inputs == ("first", "second", "third", "fourth")
    it.validate()


def test_declared_inputs_are_the_inputs_used_or_not() -> None:
    it = workflow(step("a", "x"), inputs=["y", "x"])
    assert it.inputs == ("y", "x")


@pytest.mark.parametrize(
    "node",
    [
        Node.transform("t", "see {topik}"),
        Node.transform("t", "see {topik.part}"),
        Node.agent("t", "see {topik}"),
        Node.agent("t", "see", context="{topik}"),
        Node.agent("t", "see", system_prompt="{topik}"),
        Node.http("t", "GET", "http://127.0.0.1/{topik}"),
        Node.http("t", "GET", "http://127.0.0.1/", headers={"X-A": "{topik}"}),
        Node.http("t", "POST", "http://127.0.0.1/", body="{topik}"),
        step("t", "topik"),
        Node.function(lambda x: x, "t", bind={"x": "topik"}),
        Node.function(lambda x: x, "t", bind={"x": "topik.0"}),
        Node.condition("t", lambda x: [], bind={"x": "topik"}),
    ],
)
def test_with_declared_inputs_an_unknown_name_is_an_error_that_offers_the_nearest(node: Node) -> None:
    it = workflow(step("outline"), node, inputs=["topic"])
    with pytest.raises(UnknownNameError, match=r"'t'.*'topik'.*neither a node nor an input \(did you mean 'topic'\?\)"):
        it.validate()
    with pytest.raises(UnknownNameError):
        Executor().execute(it, {"topic": 1})


def test_the_nearest_name_may_be_a_node() -> None:
    it = workflow(step("outline"), Node.transform("t", "{outlin}"), inputs=[])
    with pytest.raises(UnknownNameError, match="did you mean 'outline'"):
        it.validate()


def test_the_remedy_fits_the_kind_of_reference() -> None:
    with pytest.raises(UnknownNameError, match=r"write \{\{topik\}\} for literal braces"):
        workflow(Node.transform("t", "{topik}"), inputs=[]).validate()
    with pytest.raises(UnknownNameError, match=r"bind= can name another"):
        workflow(step("t", "topik"), inputs=[]).validate()
    with pytest.raises(UnknownNameError) as caught:
        workflow(Node.function(lambda x: x, "t", bind={"x": "topik"}), inputs=[]).validate()
    assert "braces" not in str(caught.value)  # there are none in a bind


def test_the_originals_reference_must_name_a_node() -> None:
    it = workflow(step("outline"), Node.transform("t", "{{node.outlin}}"))
    with pytest.raises(UnknownNameError, match="'t'.*unknown node 'outlin'.*did you mean 'outline'"):
        it.validate()


def test_a_name_is_not_both_an_input_and_a_node() -> None:
    it = Workflow("w", inputs=["topic"])
    with pytest.raises(WorkflowError, match="'topic' is an input of workflow 'w'; a node needs another name"):
        it.add(step("topic"))


def test_a_missing_input_is_named_and_nothing_runs() -> None:
    ran: list[int] = []
    it = workflow(Node.function(lambda: ran.append(1), name="first"), step("a", "topic"), step("b", "tone"))
    with pytest.raises(InputError, match=r"'w' needs the input 'tone'; pass execute\(workflow, \{'tone': …\}\)"):
        Executor().execute(it, {"topic": 1})
    with pytest.raises(InputError, match="needs the inputs 'topic', 'tone'"):
        Executor().execute(it)
    assert ran == []


def test_a_missing_input_that_was_misspelt_offers_what_was_given() -> None:
    with pytest.raises(InputError, match=r"needs the input 'topic' \(did you mean 'topik'\?\)"):
        Executor().execute(workflow(step("a", "topic")), {"topik": 1})


def test_an_input_too_many_is_named_with_the_nearest() -> None:
    ran: list[int] = []
    it = workflow(Node.function(lambda: ran.append(1), name="first"), step("a", "topic"))
    with pytest.raises(InputError, match=r"no input 'topics' \(did you mean 'topic'\?\); its inputs: 'topic'"):
        Executor().execute(it, {"topic": 1, "topics": 2})
    with pytest.raises(InputError, match="no input 'x'; its inputs: none"):
        Executor().execute(workflow(step("a")), {"x": 1})
    assert ran == []


def test_an_input_that_is_a_node_is_refused() -> None:
    with pytest.raises(InputError, match="no input 'a'"):
        Executor().execute(workflow(step("a")), {"a": 1})


@pytest.mark.parametrize("inputs", [5, "topic", ["topic"], [("topic",)], object()])
def test_inputs_of_a_run_are_a_mapping(inputs: Any) -> None:
    with pytest.raises((InputError, TypeError), match="inputs"):
        Executor().execute(workflow(step("a", "topic")), inputs)


def test_an_input_is_named_by_a_string() -> None:
    with pytest.raises(InputError, match="no input 5"):
        Executor().execute(workflow(step("a", "topic")), {"topic": 1, 5: 2})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), {("a",): 1}, b"bytes", "\ud800"])
def test_an_input_that_has_no_json_form_cannot_be_inserted_and_nothing_runs(value: Any) -> None:
    ran: list[int] = []
    it = workflow(Node.function(lambda: ran.append(1), name="first"), Node.transform("t", "{topic}"))
    with pytest.raises(InputError, match=rf"'topic' is inserted into a text.*{type(value).__name__}"):
        Executor().execute(it, {"topic": value})
    assert ran == []


def test_an_input_without_a_json_form_goes_to_functions() -> None:
    value = object()
    assert Executor().execute(workflow(Node.function(lambda x: x, name="f")), {"x": value})["f"] is value


def test_an_empty_workflow_does_not_run_and_its_description_is_sound() -> None:
    it = Workflow("w")
    it.validate()
    assert (it.edges, it.inputs, it.nodes, it.node_count()) == ((), (), (), 0)
    with pytest.raises(WorkflowError, match="Workflow cannot be empty.*'w'"):
        Executor().execute(it)


def test_an_unsound_workflow_has_no_edges_and_no_inputs_to_tell() -> None:
    it = workflow(Node.transform("t", "{x}"), inputs=[])
    for ask in (lambda: it.edges, lambda: it.inputs, it.validate):
        with pytest.raises(UnknownNameError):
            ask()


def test_every_error_here_is_ours_and_a_value_error() -> None:
    for kind in (ConfigurationError, WorkflowError, CycleError, UnknownNameError, InputError):
        assert issubclass(kind, GraphbitError)
        assert issubclass(kind, ValueError)
    assert issubclass(UnknownNameError, LookupError)
    assert issubclass(CycleError, RuntimeError)


# ---------------------------------------------------------------- the executor's own options


@pytest.mark.parametrize("thing", [None, "w", 5, step("a")])
def test_an_executor_runs_workflows_only(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="runs a Workflow, got"):
        Executor().execute(thing)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_timeout_is_a_number_of_seconds_above_0(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_seconds is a number of seconds above 0.*got"):
        Executor(timeout_seconds=seconds)
    with pytest.raises(ConfigurationError):
        Executor().configure(timeout_seconds=seconds)


@pytest.mark.parametrize("mode", ["stop", None, 5, ["continue"]])
def test_on_error_is_one_of_two_words(mode: Any) -> None:
    with pytest.raises(ConfigurationError, match="on_error must be 'fail_fast' or 'continue', got"):
        Executor(on_error=mode)


def test_retries_are_not_the_executors_affair() -> None:
    with pytest.raises(ConfigurationError, match=r"LlmConfig\.openai\(max_retries="):
        Executor().configure(max_retries=3)


@pytest.mark.parametrize("config", ["gpt-4o", 5, {"model": "x"}])
def test_an_executors_config_is_an_llm_config(config: Any) -> None:
    with pytest.raises(TypeError, match=r"LlmConfig\.openai\(\), or None, got"):
        Executor(config)
