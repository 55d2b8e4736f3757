"""How values get from node to node: placeholders in texts, what a text makes of a value, what conditions and delays pass on."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from typing import Any, NamedTuple

import pytest
from flows import const, outputs_of
from hypothesis import given, strategies as st

from graphbit import (
    Executor,
    Node,
    OutputError,
    TemplateError,
    UnknownNameError,
    Workflow,
    WorkflowError,
)
from graphbit.testing import FakeProvider


def rendered(text: str, **values: Any) -> str:
    """The text with these values as outputs of functions."""
    return outputs_of(*[const(name, value) for name, value in values.items()], Node.transform("t", text))["t"]


def from_inputs(text: str, **values: Any) -> str:
    return outputs_of(Node.transform("t", text), inputs=values)["t"]


# ---------------------------------------------------------------- placeholders


def test_a_placeholder_inserts_a_nodes_output_and_an_input() -> None:
    found = outputs_of(const("a", "A"), Node.transform("t", "<{a}|{x}>"), inputs={"x": "X"})
    assert found["t"] == "<A|X>"


def test_one_reference_may_stand_many_times_and_alone() -> None:
    assert rendered("{a}", a="x") == "x"
    assert rendered("{a}{a}{a}", a="xy") == "xyxyxy"


def test_transforms_can_follow_each_other() -> None:
    found = outputs_of(
        Node.transform("a", "1{x}"), Node.transform("b", "2{a}"), Node.transform("c", "{b}{a}"), inputs={"x": "0"}
    )
    assert found["c"] == "21010"


VALUE = {"key": ["zero", {"deep": 1.5}], "0": "digit", "": "empty", "größe": "L", "null": None, "yes": True}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("key.0", "zero"),
        ("key.1", '{"deep":1.5}'),
        ("key.1.deep", "1.5"),
        ("key", '["zero",{"deep":1.5}]'),
        ("0", "digit"),
        ("größe", "L"),
        ("null", "null"),
        ("yes", "true"),
    ],
)
def test_a_path_picks_a_part_of_an_output_and_of_an_input(path: str, expected: str) -> None:
    assert rendered(f"{{a.{path}}}", a=VALUE) == expected
    assert from_inputs(f"{{a.{path}}}", a=VALUE) == expected


def test_a_path_looks_into_a_text_that_is_json() -> None:
    text = '{"points": ["one", "two \\u00e9 \\"q\\""]}'
    assert rendered("{a.points.1}", a=text) == 'two é "q"'
    assert from_inputs("{a.points.1}", a=text) == 'two é "q"'
    assert outputs_of(const("a", text), Node.function(lambda x: x, "f", bind={"x": "a.points.1"}))["f"] == 'two é "q"'


def test_a_path_looks_into_a_natively_made_text() -> None:
    found = outputs_of(
        Node.transform("doc", '{"title": "{x}"}'),
        Node.transform("t", "{doc.title}"),
        Node.function(lambda x: x, "f", bind={"x": "doc.title"}),
        inputs={"x": "bees"},
    )
    assert (found["t"], found["f"]) == ("bees", "bees")


@pytest.mark.parametrize("path", ["absent", "key.7", "key.zero", "key.0.more", "yes.no", "key.1.deep.x"])
def test_a_path_that_leads_nowhere_fails_the_node_naming_both(path: str) -> None:
    made = Workflow("w")
    made.add(
        const("a", VALUE),
        Node.transform("t", f"{{a.{path}}}"),
        Node.function(lambda x: x, "f", bind={"x": f"a.{path}"}),
    )
    result = Executor(on_error="continue").execute(made)
    assert set(result.errors) == {"t", "f"}
    for error in result.errors.values():
        assert isinstance(error, TemplateError)
        assert "node 'a'" in str(error)
        assert path in str(error)
    assert "node 't'" in str(result.errors["t"])
    assert result.errors["t"].node == "t"  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["no JSON", "", "{broken", "[1,"])
def test_a_path_into_a_text_that_is_no_json_fails_the_node(value: str) -> None:
    for make in (lambda: rendered("{a.x}", a=value), lambda: from_inputs("{a.x}", a=value)):
        with pytest.raises(TemplateError, match="node 't'.*(node|input) 'a'.*(JSON|'x')"):
            make()


def test_a_node_whose_name_has_spaces_dots_and_signs_is_referred_to_by_it() -> None:
    found = outputs_of(
        const("my node", {"x": "spaces"}),
        const("v1.2", {"x": "dots"}),
        const("a-b", "dash"),
        const("Grüße 🐝", "bees"),
        const("v1", "short"),
        Node.transform("t", "{my node.x} {v1.2.x} {a-b} {Grüße 🐝} {v1}"),
    )
    assert found["t"] == "spaces dots dash bees short"


def test_the_longest_name_wins() -> None:
    assert outputs_of(const("a", {"b": "path"}), const("a.b", "name"), Node.transform("t", "{a.b}"))["t"] == "name"


def test_doubled_braces_are_literal() -> None:
    assert rendered("{{a}} {{x}} {{}} {a}", a="A") == "{a} {x} {} A"


def test_the_originals_reference_is_one() -> None:
    assert rendered("{{node.a}} {{node.a.x}} {{node.my node.x}}", a={"x": 1}, **{"my node": {"x": 2}}) == '{"x":1} 1 2'


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": {"c": [1, {"d": {}}]}}',
        "{}",
        "{ a }",
        "{a b}",
        "{1}",
        "{a:>10}",
        "{a!r}",
        "{a[0]}",
        "{-a}",
        "if (x) { return y; }",
        "{\n  color: red;\n}",
        "\\frac{1}{2}",
        "{a",
        "a}",
        "}{",
        "{.a}",
        "{a.}",
        "{a..b}",
        "{{a",
        "a}}",
        "100 %s %(x)s ${1}",
    ],
)
def test_what_does_not_look_like_a_reference_stays_as_it_is(text: str) -> None:
    made = Workflow("w", inputs=[])
    made.add(Node.transform("t", text))
    assert Executor().execute(made)["t"] == text


def test_inserted_text_is_not_scanned_again() -> None:
    hostile = "{b} {{b}} {{node.b}} {x} {unknown}"
    assert rendered("{a}|{b}", a=hostile, b="B") == hostile + "|B"
    assert from_inputs("{a}|{b}", a=hostile, b="{a}") == hostile + "|{a}"
    found = outputs_of(
        Node.transform("a", "{x}"), const("b", "B"), Node.transform("t", "{a}{b}"), inputs={"x": hostile}
    )
    assert found["t"] == hostile + "B"


@pytest.mark.parametrize(
    "value", ["größer", "日本語", "🐝🐝", "\x00\x01\x7f", 'q"b\\s/', "\r\n\t", "e\u0301", "\u2028", "\U0010ffff", ""]
)
def test_any_text_comes_through_unchanged(value: str) -> None:
    assert rendered("ä{a}ß", a=value) == f"ä{value}ß"
    assert from_inputs("ä{a}ß", a=value) == f"ä{value}ß"
    assert rendered("{a.x}", a={"x": value}) == value


def test_a_large_value_comes_through_whole() -> None:
    large = "0123456789abcdé\n" * 100_000
    assert rendered("<{a}>", a=large) == f"<{large}>"


# ---------------------------------------------------------------- what a text makes of a value


class Color(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    def __str__(self) -> str:
        return "not this"


class Pair(NamedTuple):
    a: int
    b: str


@dataclasses.dataclass
class Point:
    x: int
    tags: list[Any]


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("x",)
    x: int


class Model:
    """As pydantic's models look from outside."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        return {"mode": mode, "n": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        ('"quoted"', '"quoted"'),
        (1, "1"),
        (1.5, "1.5"),
        (10**30, str(10**30)),
        (True, "true"),
        (None, "null"),
        ([1, "zwei", None], '[1,"zwei",null]'),
        ((1, 2), "[1,2]"),
        ({"a": {"b": "ü"}, "c": []}, '{"a":{"b":"ü"},"c":[]}'),
        ({1: "number keys"}, '{"1":"number keys"}'),
        ([], "[]"),
        ({}, "{}"),
        (Color.RED, "red"),
        (Number.ONE, "1"),
        (Text("this"), "this"),
        (Pair(1, "b"), '[1,"b"]'),
        (Point(1, [Point(2, [])]), '{"x":1,"tags":[{"x":2,"tags":[]}]}'),
        (Slotted(3), '{"x":3}'),
        (Model(), '{"mode":"json","n":1}'),
        ([Model()], '[{"mode":"json","n":1}]'),
    ],
)
def test_a_string_is_inserted_as_it_is_and_anything_else_as_compact_json(value: Any, expected: str) -> None:
    assert rendered("{a}", a=value) == expected
    assert from_inputs("{a}", a=value) == expected


class Recursive:
    pass


endless: list[Any] = []
endless.append(endless)
deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        b"bytes",
        float("nan"),
        float("inf"),
        {("a", "b"): 1},
        endless,
        len,
        Point,
        Model,
        1j,
        "\ud800",
        deep,
    ],
    ids=[
        "object",
        "set",
        "bytes",
        "nan",
        "inf",
        "tuple key",
        "endless",
        "function",
        "class",
        "model class",
        "complex",
        "half",
        "deep",
    ],
)
def test_what_has_no_json_form_fails_the_node_that_returned_it(value: Any) -> None:
    made = Workflow("w")
    made.add(const("maker", value), Node.transform("t", "{maker}"))
    result = Executor().execute(made)
    error = result.errors["maker"]
    assert isinstance(error, OutputError)
    assert "'maker'" in str(error)
    assert type(value).__name__ in str(error)
    assert result.states == {"maker": "failed", "t": "skipped"}


def test_what_no_text_inserts_may_be_anything() -> None:
    value = object()
    found = outputs_of(
        const("a", value), Node.function(lambda a: a, "b"), Node.transform("t", "no reference"), edges=[("a", "t")]
    )
    assert found["a"] is value
    assert found["b"] is value


def test_a_value_both_inserted_and_passed_on_is_passed_by_identity() -> None:
    value = {"k": [1]}
    found = outputs_of(const("a", value), Node.transform("t", "{a.k}"), Node.function(lambda a: a, "f"))
    assert found["a"] is value
    assert found["f"] is value
    assert found["t"] == "[1]"


def test_an_input_is_passed_by_identity() -> None:
    value = {"k": [1]}
    found = outputs_of(Node.function(lambda x: x, "f"), Node.transform("t", "{x}"), inputs={"x": value})
    assert found["f"] is value
    assert found["t"] == '{"k":[1]}'


def test_what_a_text_inserted_is_the_value_at_that_time() -> None:
    def change(a: list[int], t: str) -> str:
        a.append(2)
        return t

    assert outputs_of(const("a", [1]), Node.transform("t", "{a}"), Node.function(change))["change"] == "[1]"


# ---------------------------------------------------------------- conditions and delays pass their input on


def test_a_delay_passes_its_predecessors_output_on() -> None:
    found = outputs_of(
        const("a", {"k": "A"}),
        Node.delay("pause", 0),
        Node.delay("again", 0),
        Node.transform("t", "{again.k} {pause}"),
        Node.function(lambda again: again, "f"),
        edges=[("a", "pause"), ("pause", "again")],
    )
    assert found["t"] == 'A {"k":"A"}'
    assert found["f"] is found["a"]


def test_a_delays_own_output_is_what_it_passed_on() -> None:
    found = outputs_of(const("a", {"k": "A"}), Node.delay("pause", 0), edges=[("a", "pause")])
    assert found["pause"] is found["a"]
    assert found.outputs["pause"] is found["a"]


def test_a_condition_passes_its_input_on() -> None:
    found = outputs_of(
        const("a", {"k": "A"}),
        Node.condition("route", lambda a: ["t", "f"]),
        Node.transform("t", "{route.k}"),
        Node.function(lambda route: route, "f"),
    )
    assert found["t"] == "A"
    assert found["f"] is found["a"]
    assert found["route"] is found["a"]


def test_conditions_and_delays_in_a_row_pass_the_first_output_on() -> None:
    found = outputs_of(
        Node.transform("a", "text {x}"),
        Node.delay("pause", 0),
        Node.condition("route", lambda pause: "t"),
        Node.transform("t", "<{route}>"),
        inputs={"x": 1},
        edges=[("a", "pause")],
    )
    assert found["t"] == "<text 1>"
    assert found["route"] == "text 1"


def test_a_reference_to_a_delay_after_several_nodes_must_choose_one() -> None:
    made = Workflow("w")
    made.add(const("a", 1), const("b", 2), Node.delay("pause", 0), Node.transform("t", "{pause}"))
    made.connect("a", "pause")
    made.connect("b", "pause")
    with pytest.raises(WorkflowError, match="'t' refers to delay 'pause', which has several.*'a', 'b'"):
        Executor().execute(made)


def test_a_reference_to_a_delay_after_nothing_has_nothing_to_insert() -> None:
    made = Workflow("w")
    made.add(Node.delay("pause", 0), Node.function(lambda pause: pause, "f"))
    with pytest.raises(WorkflowError, match="'f' refers to delay 'pause', which has no predecessor"):
        Executor().execute(made)


# ---------------------------------------------------------------- an agent's predecessors


@pytest.fixture
def config(provider: FakeProvider) -> Any:
    from graphbit import LlmConfig

    return LlmConfig.openai_compatible(provider.base_url, "fake-model")


def prompt_of(provider: FakeProvider, config: Any, made: Workflow, inputs: dict[str, Any] | None = None) -> str:
    Executor(config).execute(made, inputs).raise_for_failure()
    return provider.requests[-1].prompt


def test_unreferenced_predecessors_come_before_an_agents_prompt_in_connect_order(
    provider: FakeProvider, config: Any
) -> None:
    made = Workflow("w")
    made.add(const("a", "A"), const("b", {"k": "B"}), const("c", "C"), Node.agent("ask", "Write on {c}."))
    for name in ("b", "c", "a"):
        made.connect(name, "ask")
    assert prompt_of(provider, config, made) == 'b:\n{"k":"B"}\n\na:\nA\n\nWrite on C.'


def test_a_predecessor_that_the_system_prompt_refers_to_is_not_put_before_the_prompt(
    provider: FakeProvider, config: Any
) -> None:
    made = Workflow("w")
    made.add(const("a", "A"), Node.agent("ask", "Go.", system_prompt="Be {a}."))
    made.connect("a", "ask")
    assert prompt_of(provider, config, made) == "Go."
    assert provider.requests[0].messages[0] == {"role": "system", "content": "Be A."}


def test_the_context_stands_before_the_predecessors(provider: FakeProvider, config: Any) -> None:
    made = Workflow("w")
    made.add(const("a", "A"), Node.agent("ask", "Go.", context="On {x}:"))
    made.connect("a", "ask")
    assert prompt_of(provider, config, made, {"x": "bees"}) == "On bees:\n\na:\nA\n\nGo."


def test_what_passed_a_delay_or_condition_is_put_under_its_makers_name(provider: FakeProvider, config: Any) -> None:
    made = Workflow("w")
    made.add(
        const("a", "A"), Node.delay("pause", 0), Node.condition("route", lambda c: "ask"), Node.agent("ask", "Go.")
    )
    made.connect("a", "pause")
    made.connect("pause", "route")
    made.connect("route", "ask")
    assert prompt_of(provider, config, made) == "a:\nA\n\nGo."


def test_a_skipped_predecessor_is_left_out_of_the_prompt(provider: FakeProvider, config: Any) -> None:
    made = Workflow("w")
    made.add(Node.condition("route", lambda c: "a"), const("a", "A"), const("b", "B"), Node.agent("ask", "Go.{b}."))
    made.connect("route", "a")
    made.connect("route", "b")
    made.connect("a", "ask")
    assert prompt_of(provider, config, made) == "a:\nA\n\nGo.."


# ---------------------------------------------------------------- against a reference

ALPHABET = 'ab{}.x0"\\\n é🐝'
names = st.sampled_from(["a", "b", "a b", "x", "größe"])
pieces = st.one_of(
    st.text(ALPHABET, max_size=6),
    names.map(lambda name: f"{{{name}}}"),
    names.map(lambda name: f"{{{{{name}}}}}"),
    names.map(lambda name: f"{{{{node.{name}}}}}"),
    st.sampled_from(["{a.k}", "{b.k.0}", '{"k": {a}}', "{", "}", "{{", "}}", "{}"]),
)
values = st.one_of(
    st.text(max_size=8), st.integers(), st.booleans(), st.none(), st.lists(st.text(ALPHABET, max_size=3), max_size=3)
)
BRACES = re.compile(r"\{\{([^{}]*)\}\}|\{([^{}]*)\}")


def reference(text: str, values: dict[str, Any]) -> str | None:
    """What `text` should become; None where it refers to something that is not there."""

    def insert(found: re.Match[str]) -> str:
        doubled, single = found.groups()
        if doubled is not None and not doubled.startswith("node."):
            return "{" + doubled + "}"
        inner = doubled[5:] if doubled is not None else single
        name = max((n for n in values if inner == n or inner.startswith(n + ".")), key=len, default=None)
        if name is None:
            if doubled is not None or re.fullmatch(r"[^\W\d]\w*(\.\w+)*", inner):
                raise LookupError(inner)
            return found[0]
        value = values[name]
        if path := inner[len(name) + 1 :]:
            if isinstance(value, str):
                value = json.loads(value)
            for part in path.split("."):
                value = value[int(part) if isinstance(value, list) else part]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    try:
        return BRACES.sub(insert, text)
    except (LookupError, ValueError, TypeError):
        return None


@given(st.lists(pieces, min_size=1, max_size=6), values, values, st.lists(st.text(ALPHABET, max_size=4), max_size=2))
def test_rendering_agrees_with_a_reference(parts: list[str], a: Any, plain: Any, k: list[str]) -> None:
    text = "".join(parts)
    if not text.strip():
        return
    outputs = {"a": a, "a b": plain, "b": {"k": k}}
    made = Workflow("w", inputs=[])
    made.add(*[const(name, value) for name, value in outputs.items()], Node.transform("t", text))
    expected = reference(text, outputs)
    try:
        result = Executor().execute(made)
    except UnknownNameError:
        assert expected is None, text
        return
    if expected is None:
        assert isinstance(result.errors["t"], TemplateError), text
    else:
        assert result["t"] == expected, text
