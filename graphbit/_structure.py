"""A workflow's graph worked out: which references mean what, which edges there are, which inputs a run needs.

Made from a workflow when it is first asked for, thrown away when the workflow changes. It knows names and numbers; models and
requests come in with _lower.py. Values are numbered as in a plan: nodes in the order in which they were added, then inputs.
"""

from __future__ import annotations

from graphbit._template import Group, Names
from graphbit.errors import CycleError, WorkflowError
from graphbit.node import AgentNode, ConditionNode, DelayNode, FunctionNode, HttpNode, Node, TransformNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from graphbit._signature import Parameter

    Text = list[str | tuple[int, str]]
    """A text whose groups are resolved: literals, and (value, path into it)."""


class Argument:
    """A parameter and what it is given: value number `source`, or what `path` finds in it."""

    __slots__ = ("parameter", "path", "source")

    def __init__(self, parameter: Parameter, source: int, path: str) -> None:
        self.parameter = parameter
        self.source = source
        self.path = path


class Structure:
    """See above."""

    def __init__(
        self, nodes: dict[str, Node], declared: tuple[str, ...] | None, manual: Iterable[tuple[str, str]]
    ) -> None:
        self.nodes: list[Node] = list(nodes.values())
        self.names: list[str] = list(nodes)
        self.number: dict[str, int] = {name: i for i, name in enumerate(self.names)}
        self.arguments: dict[int, list[Argument]] = {}
        """Of functions and conditions that have any."""
        self.texts: dict[int, dict[str, Text]] = {}
        """Of agents, transforms and HTTP nodes, by what they are for."""
        self.preamble: dict[int, list[int]] = {}
        """Agents' predecessors that were connected by hand and are not referred to, in that order."""
        self.wants_context: set[int] = set()
        """Conditions whose handler gets a dict of everything."""
        self._sources: dict[int, dict[int, None]] = {}
        self._names = Names(self.number, declared)
        self._unbound: list[tuple[int, Parameter]] = []
        for i, node in enumerate(self.nodes):
            if isinstance(node, FunctionNode):
                if node.parameters:
                    self._bind(i, node)
            elif not isinstance(node, DelayNode):
                self._resolve_texts(i, node)
        for i, parameter in self._unbound:  # a parameter with a default binds to an input that there is anyway
            number = self._names.inputs.get(parameter.name)
            if number is not None:
                self._argument(i, parameter, number, "")
        self.inputs: list[str] = list(self._names.inputs)
        self.edges: list[int] = []
        """from, to, from, to, …"""
        self._join(manual)
        self._checked = False

    # ---------------------------------------------------------------------------------------------------- references

    def _bind(self, i: int, node: FunctionNode) -> None:
        names = self._names
        where = f"node {node._name!r}"
        for parameter in node.parameters:
            name = parameter.name
            source = node.bind.get(name) if node.bind is not None else None
            if source is not None:
                reference = names.resolve(Group(source), f"{where}: bind[{name!r}]", "")
                if reference is None:  # no identifier, yet a name that inputs= may hold
                    reference = names.input(source, f"{where}: bind[{name!r}]"), ""
                self._argument(i, parameter, *reference)
            elif name in names.nodes:
                self._argument(i, parameter, names.nodes[name], "")
            elif parameter.optional:
                self._unbound.append((i, parameter))
            elif (
                isinstance(node, ConditionNode)
                and len(node.parameters) == 1
                and (names.declared is None or name not in names.declared)
            ):
                self.wants_context.add(i)
            else:
                number = names.input(name, f"{where}: its function's parameter {name!r}", "; bind= can name another")
                self._argument(i, parameter, number, "")

    def _argument(self, i: int, parameter: Parameter, source: int, path: str) -> None:
        self.arguments.setdefault(i, []).append(Argument(parameter, source, path))
        if source < len(self.names):
            self._sources.setdefault(i, {})[source] = None

    def _resolve_texts(self, i: int, node: Node) -> None:
        texts: dict[str, list[str | Group]]
        if isinstance(node, AgentNode):
            texts = {"prompt": node.prompt, "context": node.context, "system": node.system}
        elif isinstance(node, TransformNode):
            texts = {"text": node.text}
        else:
            assert isinstance(node, HttpNode)
            texts = {"url": node.url, **{f"header {k}": v for k, v in node.headers}}
            if node.body is not None:
                texts["body"] = node.body
        self.texts[i] = {
            what: self._resolve(i, f"node {node._name!r}: its {what}", text) for what, text in texts.items()
        }

    def _resolve(self, i: int, where: str, text: Sequence[str | Group]) -> Text:
        parts: Text = []
        for part in text:
            if isinstance(part, str):
                parts.append(part)
                continue
            reference = self._names.resolve(part, where)
            if reference is None:
                parts.append(part.source)
                continue
            parts.append(reference)
            if reference[0] < len(self.names):
                self._sources.setdefault(i, {})[reference[0]] = None
        return parts

    # ---------------------------------------------------------------------------------------------------------- edges

    def _join(self, manual: Iterable[tuple[str, str]]) -> None:
        sources, edges = self._sources, self.edges
        for target, found in sources.items():
            for source in found:
                edges += source, target
        for source_name, target_name in manual:
            source, target = self.number[source_name], self.number[target_name]
            if source in sources.get(target, ()):
                continue
            edges += source, target
            if isinstance(self.nodes[target], AgentNode):
                self.preamble.setdefault(target, []).append(source)

    def predecessors(self) -> list[list[int]]:
        """By node, in the order of the edges."""
        found: list[list[int]] = [[] for _ in self.names]
        for i in range(0, len(self.edges), 2):
            found[self.edges[i + 1]].append(self.edges[i])
        return found

    def successors(self, node: int) -> list[int]:
        return [self.edges[i + 1] for i in range(0, len(self.edges), 2) if self.edges[i] == node]

    def pass_through(self) -> dict[int, list[int]]:
        """What conditions and delays pass on: the nodes whose outputs their own output stands for."""
        passing = [i for i, node in enumerate(self.nodes) if isinstance(node, (ConditionNode, DelayNode))]
        if not passing:
            return {}
        before = self.predecessors()
        found: dict[int, list[int]] = {}

        def resolve(node: int, seen: frozenset[int]) -> list[int]:
            if node in seen or not isinstance(self.nodes[node], (ConditionNode, DelayNode)):
                return [] if node in seen else [node]
            known = found.get(node)
            if known is None:
                origins = (origin for source in before[node] for origin in resolve(source, seen | {node}))
                known = found[node] = list(dict.fromkeys(origins))
            return known

        for node in passing:
            resolve(node, frozenset())
        return found

    def check_cycles(self) -> None:
        """Raises CycleError where there is a cycle. The core looks; once for each structure."""
        if self._checked:
            return
        from graphbit._plan import Cycle, PlanBuilder

        builder = PlanBuilder()
        builder.callbacks(len(self.names))
        builder.edges(self.edges)
        try:
            builder.build()
        except Cycle as cycle:
            raise self.cycle_error(cycle.nodes) from None
        self._checked = True

    def cycle_error(self, nodes: Sequence[int]) -> CycleError:
        return CycleError([self.names[node] for node in nodes])

    def must_pass_one(self, node: int, origins: Sequence[int], user: str) -> None:
        """Raises unless `node`, a condition or delay that `user` refers to, has one output to pass on."""
        if len(origins) == 1:
            return
        kind, name = self.nodes[node].kind, self.names[node]
        if not origins:
            raise WorkflowError(
                f"node {user!r} refers to {kind} {name!r}, which has no predecessor whose output it could pass on"
            )
        several = ", ".join(repr(self.names[it]) for it in origins)
        raise WorkflowError(
            f"node {user!r} refers to {kind} {name!r}, which has several predecessors; refer to one of them: {several}"
        )
