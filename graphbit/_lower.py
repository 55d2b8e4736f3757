"""From a workflow to a plan: what is native becomes templates and requests, what is Python becomes steps.

    lowered = lower(structure, config)

A step is what a pulling thread needs of a callback: the function, where its arguments come from, what to make of its value.
"""

from __future__ import annotations

from graphbit._ffi import NONE, lib
from graphbit._lane import Settled
from graphbit._plan import JSON, JSON_STRING, PLAIN, URL, Cycle, IfPresent, PlanBuilder, Request, Rule, Slot
from graphbit._values import encode
from graphbit.errors import ConfigurationError, OutputError, UnknownNameError, nearest
from graphbit.node import AgentNode, ConditionNode, DelayNode, FunctionNode, HttpNode, Node, TransformNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from graphbit._lane import Step
    from graphbit._plan import Part, Plan
    from graphbit._structure import Argument, Structure, Text
    from graphbit.llm.config import LlmConfig
    from graphbit.run import Run

_SUCCEEDED: int = lib.GB_SUCCEEDED


class _Unread:
    """In a run's values: a native node's output that Python has not looked at."""

    def __repr__(self) -> str:
        return "<unread>"


UNREAD = _Unread()


class Lowered:
    """A plan and what Python needs beside it. Shared by all runs of a workflow with one configuration."""

    __slots__ = (
        "config",
        "continuations",
        "edges",
        "has_async",
        "has_callbacks",
        "initial",
        "inputs",
        "inserted_inputs",
        "names",
        "nodes",
        "number",
        "passing",
        "plan",
        "requests",
        "steps",
    )

    plan: Plan
    config: LlmConfig | None  # of agents that name none of their own
    edges: list[int]  # from, to, …
    nodes: list[Node]
    names: list[str]
    number: dict[str, int]
    inputs: list[str]
    inserted_inputs: list[bool]  # by input: a native node inserts it
    steps: list[Any]  # a Step, or None for native nodes
    continuations: list[int]
    initial: list[Any]  # of a run's values
    passing: dict[int, list[int]]  # conditions and delays: whose outputs they pass on
    requests: frozenset[int]  # nodes that are requests
    has_callbacks: bool
    has_async: bool


def lower(structure: Structure, config: LlmConfig | None) -> Lowered:
    """Raises ConfigurationError where an agent has no model to ask, CycleError, and what references can be wrong about."""
    return _Lowering(structure, config).lowered()


class _Lowering:
    def __init__(self, structure: Structure, config: LlmConfig | None) -> None:
        self.structure = structure
        self.config = config
        self.count = len(structure.names)
        self.builder = PlanBuilder(self.count, len(structure.inputs))
        self.passing = structure.pass_through()
        self.inserted: set[int] = set()  # values that native nodes insert
        self.choices: dict[int, dict[str, int]] = {}
        self.before: list[list[int]] = structure.predecessors() if self.passing else []

    def lowered(self) -> Lowered:
        structure, builder = self.structure, self.builder
        nodes = structure.nodes
        requests: list[int] = []
        plain = all(node.__class__ is FunctionNode and not node.is_async for node in nodes)
        if plain:
            builder.callbacks(self.count)
        else:
            if any(isinstance(node, ConditionNode) for node in nodes):
                self._find_choices()
            for i, node in enumerate(nodes):
                if self._native(i, node):
                    requests.append(i)
        builder.edges(structure.edges)
        out = Lowered()
        try:
            out.plan = builder.build()
        except Cycle as cycle:
            raise structure.cycle_error(cycle.nodes) from None
        out.config = self.config
        out.edges = structure.edges
        out.nodes = nodes
        out.names = structure.names
        out.number = structure.number
        out.inputs = structure.inputs
        out.inserted_inputs = [self.count + i in self.inserted for i in range(len(structure.inputs))]
        out.steps = [self._step(i, node) if isinstance(node, FunctionNode) else None for i, node in enumerate(nodes)]
        out.continuations = out.plan.continuations()
        out.initial = [None] * self.count if plain else [None if step is not None else UNREAD for step in out.steps]
        out.passing = self.passing
        out.requests = frozenset(requests)
        out.has_callbacks = any(isinstance(node, FunctionNode) and not node.is_async for node in nodes)
        out.has_async = any(isinstance(node, FunctionNode) and node.is_async for node in nodes)
        return out

    # ---------------------------------------------------------------------------------------------------- native nodes

    def _native(self, i: int, node: Node) -> bool:
        """Adds node `i`. True: it is a request."""
        builder = self.builder
        if isinstance(node, FunctionNode):
            flags = lib.GB_NODE_CONDITION if isinstance(node, ConditionNode) else 0
            builder.node(lib.GB_NODE_CALLBACK, flags | (lib.GB_NODE_LOOP if node.is_async else 0))
        elif isinstance(node, DelayNode):
            before = self.before[i]
            builder.node(lib.GB_NODE_DELAY, 0, before[0] + 1 if len(before) == 1 else 0, node.delay_ns)
        elif isinstance(node, TransformNode):
            builder.node(lib.GB_NODE_TEMPLATE, 0, builder.template(self._parts(i, "text", PLAIN)))
        else:
            request = self._agent(i, node) if isinstance(node, AgentNode) else self._http(i, node)  # type: ignore[arg-type]
            builder.node(lib.GB_NODE_REQUEST, 0, builder.request(request))
            return True
        return False

    def _parts(self, i: int, what: str, escape: int) -> list[Part]:
        return self._inserting(i, self.structure.texts[i][what], escape)

    def _inserting(self, i: int, text: Text, escape: int) -> list[Part]:
        parts: list[Part] = []
        for part in text:
            if isinstance(part, str):
                parts.append(part)
            else:
                self._inserted(i, part[0])
                parts.append(Slot(part[0], part[1], escape))
        return parts

    def _inserted(self, i: int, source: int) -> None:
        """Node `i` inserts value `source`."""
        origins = self.passing.get(source)
        if origins is not None:
            self.structure.must_pass_one(source, origins, self.structure.names[i])
        self.inserted.add(source)
        while isinstance(self._node(source), DelayNode) and len(self.before[source]) == 1:
            source = self.before[source][0]  # whose output the delay passes on
            self.inserted.add(source)

    def _agent(self, i: int, node: AgentNode) -> Request:
        config = node.llm_config or self.config
        if config is None:
            raise ConfigurationError(
                f"agent node {node.name()!r} has no model to ask; give the executor one, Executor(LlmConfig.openai(…)), "
                "or the node, Node.agent(…, llm_config=…)"
            )
        prompt: list[Part] = []
        context = self._parts(i, "context", JSON_STRING)
        if context:
            prompt += [*context, "\n\n"]
        for source in self.structure.preamble.get(i, ()):
            origins = self.passing.get(source, [source])
            for origin in origins:
                # One output is passed on by the condition or delay itself, and not where that was skipped.
                value = source if len(origins) == 1 else origin
                self._inserted(i, value)
                name = self.structure.names[origin]
                prompt.append(IfPresent(value, [f"{name}:\n", Slot(value, "", JSON_STRING), "\n\n"]))
        prompt += self._parts(i, "prompt", JSON_STRING)
        messages: list[tuple[str, Sequence[Part]]] = [("user", prompt)]
        system = self._parts(i, "system", JSON_STRING)
        if system:
            messages.insert(0, ("system", system))
        return config.chat_request(messages, max_tokens=node.max_tokens, temperature=node.temperature)

    def _http(self, i: int, node: HttpNode) -> Request:
        texts = self.structure.texts[i]
        url = self._inserting(i, texts["url"], URL)
        if url and isinstance(url[0], Slot):
            url[0].escape = PLAIN  # "{base}/path": the first part of a URL is no component of one
        headers = [(key, self._inserting(i, texts[f"header {key}"], PLAIN)) for key, _ in node.headers]
        body: list[Part] | None = None
        if node.body is not None:
            text = texts["body"]
            is_json = _looks_like_json(text)
            body = self._json_body(i, text) if is_json else self._inserting(i, text, PLAIN)
            if is_json and not any(key.lower() == "content-type" for key, _ in headers):
                headers.append(("Content-Type", ["application/json"]))
        rules: tuple[Rule, ...] = ()
        if node.json_path is not None:
            rules = (Rule(node.json_path, "value"),)
        return Request(
            node.method,
            url,
            headers=headers,
            body=body,
            rules=rules,
            rules_required=bool(rules),
            insecure=not node.verify,
            connect_timeout_ms=max(1, round(node.connect_timeout * 1000)),
            total_timeout_ms=max(1, round(node.timeout * 1000)),
            attempts_max=node.max_retries + 1,
        )

    def _json_body(self, i: int, text: Text) -> list[Part]:
        """Between quotes a value is escaped for there; outside of them it is a JSON value of its own."""
        parts: list[Part] = []
        quoted = False
        for part in text:
            if isinstance(part, str):
                parts.append(part)
                escaped = False
                for character in part:
                    if escaped:
                        escaped = False
                    elif character == "\\":
                        escaped = quoted
                    elif character == '"':
                        quoted = not quoted
            else:
                self._inserted(i, part[0])
                parts.append(Slot(part[0], part[1], JSON_STRING if quoted else JSON))
        return parts

    # ----------------------------------------------------------------------------------------------------------- steps

    def _step(self, i: int, node: FunctionNode) -> Step:
        finish: Callable[[Run, int, Any], Settled] | None = None
        if isinstance(node, ConditionNode):
            finish = _Choice(node.name(), self.choices.get(i, {}), self.passing.get(i, []), i in self.inserted)
        elif i in self.inserted:
            finish = _insert
        if i in self.structure.wants_context:
            return node.fn, _Context(self.passing.get(i, [])), finish
        arguments = self.structure.arguments.get(i)
        if arguments is None:
            return node.fn, None, finish
        return node.fn, self._sources(i, node, arguments), finish

    def _sources(self, i: int, node: FunctionNode, arguments: list[Argument]) -> tuple[int, ...] | _Gather:
        order = {id(parameter): at for at, parameter in enumerate(node.parameters)}
        arguments.sort(key=lambda it: order[id(it.parameter)])
        positional: list[tuple[int, str]] = []
        keywords: list[tuple[str, int, str]] = []
        for at, argument in enumerate(arguments):
            parameter, source = argument.parameter, argument.source
            if isinstance(self._node(source), DelayNode):
                self.structure.must_pass_one(source, self.passing[source], node.name())
            in_place = order[id(parameter)] == at and not parameter.keyword_only and not keywords
            if in_place:
                positional.append((source, argument.path))
            elif parameter.positional_only:
                raise ConfigurationError(
                    f"node {node.name()!r}: the positional-only parameter {parameter.name!r} follows one that is not bound"
                )
            else:
                keywords.append((parameter.name, source, argument.path))
        simple = not keywords and all(not path and self._is_python(source) for source, path in positional)
        if simple:
            return tuple(source for source, _ in positional)
        return _Gather(positional, keywords)

    def _node(self, value: int) -> Node | None:
        return self.structure.nodes[value] if value < self.count else None

    def _is_python(self, value: int) -> bool:
        node = self._node(value)
        return node is None or isinstance(node, FunctionNode)

    def _find_choices(self) -> None:
        nodes, names, edges = self.structure.nodes, self.structure.names, self.structure.edges
        for at in range(0, len(edges), 2):
            if isinstance(nodes[edges[at]], ConditionNode):
                self.choices.setdefault(edges[at], {})[names[edges[at + 1]]] = edges[at + 1]


class _Gather:
    """Arguments that are not all Python's own values, in order."""

    __slots__ = ("keywords", "positional")

    def __init__(self, positional: list[tuple[int, str]], keywords: list[tuple[str, int, str]]) -> None:
        self.positional = positional
        self.keywords = keywords

    def __call__(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        get = run.part
        return (
            [get(source, path) for source, path in self.positional],
            {name: get(source, path) for name, source, path in self.keywords},
        )


class _Context:
    """The argument of a condition's handler that asks for everything."""

    __slots__ = ("origins",)

    def __init__(self, origins: list[int]) -> None:
        self.origins = origins

    def __call__(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        outputs = run.outputs()
        parent = self.origins[0] if len(self.origins) == 1 else NONE
        context = {
            "parent_node_id": run.lowered.nodes[parent].id() if parent != NONE else None,
            "parent_output": run.value(parent)
            if parent != NONE
            else {run.names[i]: run.value(i) for i in self.origins},
            "variables": {**run.inputs, **outputs},
            "node_outputs": outputs,
            "metadata": {"workflow_name": run.workflow_name},
        }
        return [context], {}


def _insert(run: Run, node: int, value: Any) -> Settled:
    """A function's value that a native node inserts."""
    try:
        kind, data = encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(
            f"node {run.names[node]!r} returned {type(value).__name__}, which another node inserts into a text; "
            f"only strings and what has a JSON form can be inserted ({error})"
        ) from error
    run.values[node] = value
    return Settled(_SUCCEEDED, kind, data)


class _Choice:
    """What a condition's handler returned, as successors to follow."""

    __slots__ = ("inserted", "name", "origins", "successors")

    def __init__(self, name: str, successors: dict[str, int], origins: list[int], inserted: bool) -> None:
        self.name = name
        self.inserted = inserted
        self.successors = successors
        self.origins = origins

    def __call__(self, run: Run, node: int, value: Any) -> Settled:
        if isinstance(value, (str, Node)):
            value = [value]
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise OutputError(
                f"condition {self.name!r} returned {value!r}; its handler must return the name of a successor, "
                "or a list of names (empty: none)"
            )
        chosen: list[int] = []
        for it in value:
            name = it.name() if isinstance(it, Node) else it
            number = self.successors.get(name) if isinstance(name, str) else None
            if number is None:
                known = ", ".join(map(repr, self.successors)) or "it has none"
                raise _UnknownChoiceError(
                    f"condition {self.name!r} chose {name!r}, which is none of its successors"
                    f"{nearest(str(name), self.successors)}: {known}"
                )
            if number not in chosen:
                chosen.append(number)
        run.choices[self.name] = tuple(run.names[number] for number in chosen)
        passed_on = run.passed_on(self.origins)
        settled = _insert(run, node, passed_on) if self.inserted else Settled(_SUCCEEDED)
        run.values[node] = passed_on
        settled.chosen = chosen
        return settled


class _UnknownChoiceError(OutputError, UnknownNameError):
    """Both: an output that cannot be used, for it names something that does not exist."""


def _looks_like_json(text: Text) -> bool:
    """Whether it begins as JSON does. A placeholder at the beginning is no sign of it."""
    for part in text:
        if not isinstance(part, str):
            return False
        if part.strip():
            return part.lstrip()[0] in "{["
    return False
