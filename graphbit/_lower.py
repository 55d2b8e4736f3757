"""From a workflow to a plan: what is native becomes templates and requests, what is Python becomes steps.

    lowered = lower(structure, config)

A step is what a pulling thread needs of a callback: the function, where its arguments come from, what to make of its value
(_steps.py).
"""

from __future__ import annotations

from graphbit._ffi import lib
from graphbit._kinds import (
    AgentNode,
    BaseNode,
    ConditionNode,
    DelayNode,
    FallbackNode,
    FunctionNode,
    HttpNode,
    NativeNode,
    TransformNode,
    WhenNode,
)
from graphbit._options import PLAIN as NO_OPTIONS
from graphbit._plan import (
    JSON,
    JSON_STRING,
    PLAIN,
    URL,
    Cycle,
    IfPresent,
    PlanBuilder,
    Request,
    Retry,
    Rule,
    Slot,
    milliseconds,
)
from graphbit._steps import (
    UNREAD,
    Advance,
    Choice,
    Context,
    ErrorOf,
    Follow,
    Gather,
    InProcess,
    Late,
    Settle,
    StandIn,
    insert,
    insert_raw,
    itself,
    remembering,
)
from graphbit.errors import ConfigurationError, NodeTimeoutError, WorkflowError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from graphbit._lane import Step
    from graphbit._options import Options
    from graphbit._plan import Part, Plan
    from graphbit._steps import Finish
    from graphbit._structure import Argument, Structure, Text
    from graphbit.llm.config import LlmConfig
    from graphbit.policy import RetryPolicy

_JOINS = {"all": lib.GB_JOIN_ALL, "any": lib.GB_JOIN_ANY, "all_done": lib.GB_JOIN_ALL_DONE}
COMPOSITES = ("map", "workflow", "loop")
EVERYTHING = "*"
"""The name of the limit that every node takes a permit of, composites excepted."""


class Lowered:
    """A plan and what Python needs beside it. Shared by all runs of a workflow with one configuration."""

    __slots__ = (
        "before",
        "config",
        "continuations",
        "edges",
        "has_alone",
        "has_async",
        "has_callbacks",
        "initial",
        "inner",
        "inputs",
        "inserted_inputs",
        "keep",
        "late",
        "names",
        "nodes",
        "number",
        "passing",
        "plan",
        "policies",
        "raw",
        "requests",
        "sinks",
        "stand_ins",
        "steps",
        "timed",
        "visible",
        "visible_edges",
    )

    plan: Plan
    config: LlmConfig | None  # of agents that name none of their own
    edges: list[int]  # from, to, …
    nodes: list[BaseNode]
    names: list[str]
    number: dict[str, int]
    inputs: list[str]
    inserted_inputs: list[int]  # by input, see _Lowering._use
    steps: list[Any]  # a Step, or None for native nodes
    continuations: list[int]
    initial: list[Any]  # of a run's values
    passing: dict[int, list[int]]  # conditions and delays: whose outputs they pass on
    requests: frozenset[int]  # nodes that are requests
    raw: frozenset[int]  # those of them whose output is bytes
    has_callbacks: bool
    has_async: bool
    has_alone: bool  # callbacks that only callback threads take
    inner: dict[int, Lowered]  # of composites: what their runs are runs of
    policies: dict[int, RetryPolicy]  # of callbacks
    timed: frozenset[int]  # callbacks with a timeout
    late: frozenset[int]  # nodes that may look at predecessors which have not succeeded
    sinks: list[int]  # nodes that lead nowhere
    before: list[list[int]]  # predecessors; empty lists where nobody asks
    stand_ins: dict[int, int]
    visible_edges: Callable[[], Iterator[tuple[int, int]]]
    visible: int  # so many nodes are the user's, hidden ones follow
    keep: list[Any]  # what the plan points to

    def needs_loop(self, i: int) -> bool:
        """Whether node `i` cannot end without an event loop."""
        node, inner = self.nodes[i], self.inner.get(i)
        return (isinstance(node, FunctionNode) and _is_async(node)) or (inner is not None and inner.has_async)


def _is_async(node: FunctionNode) -> bool:
    return node.is_async or getattr(node, "item_is_async", False)


def lower(structure: Structure, config: LlmConfig | None, limits: Mapping[str, int]) -> Lowered:
    """`limits`: names and kinds of nodes that a limit is for, with its number.

    Raises ConfigurationError where an agent has no model to ask or a limit is unknown, CycleError, and what references can be
    wrong about."""
    return _Lowering(structure, config, limits, ()).lowered()


class _Lowering:
    def __init__(
        self,
        structure: Structure,
        config: LlmConfig | None,
        limits: Mapping[str, int],
        within: tuple[Structure, ...],
    ) -> None:
        self.within = (*within, structure)  # outermost first
        self.structure = structure
        self.config = config
        self.limits = limits
        self.count = len(structure.names)
        self.builder = PlanBuilder(self.count, len(structure.inputs))
        self.passing = structure.pass_through()
        self.inserted: set[int] = set()  # values that native nodes insert, or edges compare
        self.raw: set[int] = set()  # of these, what only native functions are given: bytes may be among them
        self.choices: dict[int, dict[str, int]] = {}
        self.handled: set[int] = set()
        self.inner: dict[int, Lowered] = {}
        self.policies: dict[int, RetryPolicy] = {}
        self.keep: list[Any] = []
        plain_options = all(node.options is NO_OPTIONS for node in structure.nodes)
        self.special = not plain_options or bool(limits)
        self.before: list[list[int]] = structure.predecessors() if self.passing or not plain_options else []

    def lowered(self) -> Lowered:
        structure, builder = self.structure, self.builder
        nodes = structure.nodes
        requests: list[int] = []
        plain = not self.special and all(
            isinstance(node, FunctionNode) and node.kind == "function" and not node.is_async and not node.process
            for node in nodes
        )
        for edge in structure.rules:
            self._inserted(structure.edges[2 * edge + 1], structure.edges[2 * edge])
        if plain:
            builder.callbacks(self.count)
        else:
            self.handled = structure.handled()
            if any(isinstance(node, ConditionNode) for node in nodes):
                self._find_choices()
            for i, node in enumerate(nodes):
                if self._native(i, node):
                    requests.append(i)
        builder.edges(structure.edges)
        if structure.rules:
            rules = {edge: (it.path, it.number, it.text) for edge, it in structure.rules.items()}
            builder.edge_rules(rules, len(structure.edges) // 2)
        out = Lowered()
        try:
            out.plan = builder.build()
        except Cycle as cycle:
            raise structure.cycle_error(cycle.nodes) from None
        functions = [node for node in nodes if isinstance(node, FunctionNode)]
        out.config = self.config
        out.edges = structure.edges
        out.nodes = nodes
        out.names = structure.names
        out.number = structure.number
        out.inputs = structure.inputs
        out.inserted_inputs = [self._use(self.count + i) for i in range(len(structure.inputs))]
        out.late = frozenset(i for i, node in enumerate(nodes) if node.options.join == "any")
        out.steps = [self._step(i, node) if isinstance(node, FunctionNode) else None for i, node in enumerate(nodes)]
        out.continuations = out.plan.continuations()
        out.initial = [None] * self.count if plain else [None if step is not None else UNREAD for step in out.steps]
        for stood_for, stand_in in structure.stand_ins.items():
            if out.steps[stand_in] is None:
                out.initial[stood_for] = UNREAD
        out.passing = self.passing
        out.requests = frozenset(requests)
        out.raw = frozenset([i for i in requests if isinstance(it := self._node(i), HttpNode) and it.output == "bytes"])
        out.has_callbacks = any(not node.is_async for node in functions)
        out.has_alone = any(node.process or node.options.timeout is not None for node in functions)
        out.has_alone = out.has_alone or any(it.has_alone for it in self.inner.values())
        out.inner = self.inner
        out.has_async = any(map(_is_async, functions)) or any(it.has_async for it in self.inner.values())
        out.policies = self.policies
        out.timed = frozenset(
            i for i, node in enumerate(nodes) if isinstance(node, FunctionNode) and node.options.timeout is not None
        )
        led_from = set(structure.edges[::2])
        out.sinks = [i for i in range(structure.visible) if i not in led_from]
        out.before = self.before
        out.stand_ins = structure.stand_ins
        out.visible = structure.visible
        out.visible_edges = structure.visible_edges
        out.keep = self.keep
        return out

    # --------------------------------------------------------------------------------------------------------- options

    def _options(self, i: int, node: BaseNode) -> dict[str, int]:
        """What plan.node is told beside kind, flags and body."""
        options = node.options
        found: dict[str, int] = {"join": _JOINS[options.join]}
        if self.limits or options.limits:
            found["limits"] = self._mask(node)
        stand_in = self.structure.stand_ins.get(i)
        if stand_in is not None:
            found["stand_in"] = stand_in + 1
        if isinstance(node, FunctionNode):
            if options.timeout is not None:
                found["timeout_ns"] = max(1, int(options.timeout * 1e9))
            if options.retry is not None and options.retry.attempts > 1:
                self.policies[i] = options.retry
                found["retry"] = self.builder.retry(Retry.of(options.retry))
        return found

    @staticmethod
    def _timeout_is_final(options: Options) -> bool:
        on = options.retry.on if options.retry is not None else None
        return on is not None and not any(isinstance(it, type) and issubclass(NodeTimeoutError, it) for it in on)

    def _mask(self, node: BaseNode) -> int:
        mask = 0
        for name in node.options.limits:
            number = self.limits.get(name)
            if number is None or name == EVERYTHING:
                known = [it for it in self.limits if it != EVERYTHING]
                raise ConfigurationError(
                    f"node {node.name()!r} needs the limit {name!r}, which the executor does not have{nearest(name, known)}; "
                    f"give it one: Executor(limits={{{name!r}: 4}})"
                )
            mask |= 1 << number
        if node.kind in COMPOSITES or isinstance(node, WhenNode):
            return mask
        kind = self.structure_kind(node)
        for name in (kind, EVERYTHING):
            number = self.limits.get(name)
            if number is not None:
                mask |= 1 << number
        return mask

    @staticmethod
    def structure_kind(node: BaseNode) -> str:
        return "function" if isinstance(node, FallbackNode) else node.kind

    # ---------------------------------------------------------------------------------------------------- native nodes

    def _native(self, i: int, node: BaseNode) -> bool:
        """Adds node `i`. True: it is a request."""
        builder = self.builder
        more = self._options(i, node) if self.special else {}
        flags = lib.GB_NODE_HANDLED if i in self.handled else 0
        if isinstance(node, FunctionNode):
            flags |= self._callback_flags(i, node)
            builder.node(lib.GB_NODE_CALLBACK, flags, **more)
        elif isinstance(node, DelayNode):
            before = self.before[i]
            builder.node(lib.GB_NODE_DELAY, flags, before[0] + 1 if len(before) == 1 else 0, node.delay_ns, **more)
        elif isinstance(node, TransformNode):
            builder.node(lib.GB_NODE_TEMPLATE, flags, builder.template(self._parts(i, "text", PLAIN)), **more)
        elif isinstance(node, NativeNode):
            arguments = self.structure.natives[i]
            for source in arguments:
                in_texts = self.inserted - self.raw
                self._inserted(i, source)
                self.raw = self.inserted - in_texts
            body = builder.native(node.pointer, node.gives, arguments, node.output_bytes)
            self.keep.append(node.keep)
            builder.node(lib.GB_NODE_NATIVE, flags, body, **more)
        else:
            request = self._agent(i, node) if isinstance(node, AgentNode) else self._http(i, node)  # type: ignore[arg-type]
            self._tune(request, node.options)
            builder.node(lib.GB_NODE_REQUEST, flags, builder.request(request), **more)
            return True
        return False

    def _callback_flags(self, i: int, node: FunctionNode) -> int:
        flags: int = lib.GB_NODE_LOOP if node.is_async else 0
        stands_for = self._stands_for(i)
        owner = self.structure.nodes[stands_for[-1]] if stands_for else node
        if isinstance(node, ConditionNode) or isinstance(owner, ConditionNode):
            flags |= lib.GB_NODE_CONDITION
        if node.process:
            flags |= lib.GB_NODE_ALONE
        if self._timeout_is_final(node.options):
            flags |= lib.GB_NODE_TIMEOUT_IS_FINAL
        if node.kind in COMPOSITES:
            flags |= lib.GB_NODE_COMPOSITE
            workflow = node.inner  # type: ignore[attr-defined]
            one_by_one = getattr(node, "one_by_one", None)  # of maps: limits hold for every call of a function
            if one_by_one is not None and (EVERYTHING in self.limits or "function" in self.limits):
                workflow = one_by_one()
            if workflow is not None:
                inner = workflow.structure()
                if inner in self.within:
                    raise WorkflowError(f"node {node.name()!r}: workflow {workflow.name()!r} holds itself")
                self.inner[i] = _Lowering(inner, self.config, self.limits, self.within).lowered()
        return flags

    def _tune(self, request: Request, options: Options) -> None:
        if options.retry is not None:
            request.retry = Retry.of(options.retry)
        if options.timeout is not None:
            limit = milliseconds(options.timeout)
            request.total_timeout_ms = min(request.total_timeout_ms or limit, limit)
        if options.cache is not None:
            request.cache = options.cache.handle()
            self.keep.append(options.cache)

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

    def _use(self, value: int) -> int:
        """0: Python alone reads it; 1: it is inserted into texts; 2: only native functions are given it."""
        return 0 if value not in self.inserted else 2 if value in self.raw else 1

    def _inserted(self, i: int, source: int) -> None:
        """BaseNode `i` inserts value `source`."""
        self.raw.discard(source)
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
            connect_timeout_ms=milliseconds(node.connect_timeout),
            total_timeout_ms=milliseconds(node.timeout),
            attempts_max=node.max_retries + 1,
            http=node.http_options,
            redirects_max=node.http_options.max_redirects,
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
        finish: Finish | None = None
        if isinstance(node, WhenNode):
            source = self.structure.number[node.source]
            return node.fn, Gather([(source, "")], []), Follow(self.structure.targets[i])
        stands_for = self._stands_for(i)
        of = stands_for[-1] if stands_for else i
        owner = self.structure.nodes[of]
        if isinstance(owner, ConditionNode):
            finish = Choice(of, owner.name(), self.choices.get(of, {}), of in self.inserted)
        elif i in self.inserted or of in self.inserted:
            finish = insert_raw if of in self.raw else insert
        if stands_for:
            finish = StandIn(stands_for, finish)
        if isinstance(node, FallbackNode):
            return node.fn, ErrorOf(stands_for[0]), finish
        arguments = self.structure.arguments.get(i)
        if node.kind in COMPOSITES:
            return Advance(node, self._named(arguments or []), i), itself, Settle(finish)  # type: ignore[arg-type]
        function = node.fn
        if node.process:
            function = InProcess(function, node.name())
        if node.options.cache is not None:
            function = remembering(node.fn, node.options.cache, function, node.is_async)
        if i in self.structure.wants_context:
            return function, Context(self.passing.get(i, [])), finish
        if arguments is None:
            return function, None, finish
        return function, self._sources(i, node, arguments), finish

    def _stands_for(self, i: int) -> list[int]:
        """The nodes in whose place node `i` runs when they have failed: the next one first, the user's own last."""
        found: list[int] = []
        of = {hidden: node for node, hidden in self.structure.stand_ins.items()} if i >= self.structure.visible else {}
        while i in of:
            i = of[i]
            found.append(i)
        return found

    @staticmethod
    def _named(arguments: list[Argument]) -> dict[str, tuple[int, str]]:
        return {it.parameter.name: (it.source, it.path) for it in arguments}

    def _sources(self, i: int, node: FunctionNode, arguments: list[Argument]) -> tuple[int, ...] | Gather:
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
        if node.options.join == "any":
            return Late(positional, keywords)
        if simple:
            return tuple(source for source, _ in positional)
        return Gather(positional, keywords)

    def _node(self, value: int) -> BaseNode | None:
        return self.structure.nodes[value] if value < self.count else None

    def _is_python(self, value: int) -> bool:
        node = self._node(value)
        stand_in = self.structure.stand_ins.get(value)
        if stand_in is not None and not isinstance(self.structure.nodes[stand_in], FunctionNode):
            return False
        return node is None or isinstance(node, FunctionNode)

    def _find_choices(self) -> None:
        nodes, names, edges = self.structure.nodes, self.structure.names, self.structure.edges
        for at in range(0, len(edges), 2):
            if isinstance(nodes[edges[at]], ConditionNode):
                # A hidden node in the edge is chosen by the name of where the edge leads.
                target = self.structure.targets.get(edges[at + 1], edges[at + 1])
                self.choices.setdefault(edges[at], {})[names[target]] = edges[at + 1]


def _looks_like_json(text: Text) -> bool:
    """Whether it begins as JSON does. A placeholder at the beginning is no sign of it."""
    for part in text:
        if not isinstance(part, str):
            return False
        if part.strip():
            return part.lstrip()[0] in "{["
    return False
