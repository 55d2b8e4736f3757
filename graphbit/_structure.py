"""A workflow's graph worked out: which references mean what, which edges there are, which inputs a run needs.

Made from a workflow when it is first asked for, thrown away when the workflow changes. It knows names and numbers; models and
requests come in with _lower.py. Values are numbered as in a plan: nodes in the order in which they were added, hidden nodes, then
inputs. Hidden nodes are what stands in for others when they fail, and functions that are asked whether an edge is followed.
"""

from __future__ import annotations

from graphbit._compare import Comparison
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
from graphbit._options import PLAIN
from graphbit._template import Group, Names
from graphbit.errors import CycleError, WorkflowError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from graphbit._signature import Parameter
    from graphbit.workflow import When

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
        self,
        nodes: dict[str, BaseNode],
        declared: tuple[str, ...] | None,
        manual: Mapping[tuple[str, str], When | None],
    ) -> None:
        self.nodes: list[BaseNode] = list(nodes.values())
        self.names: list[str] = list(nodes)
        self.visible = len(self.names)
        """How many of the nodes are the user's; hidden ones follow."""
        self.number: dict[str, int] = {name: i for i, name in enumerate(self.names)}
        self.stand_ins: dict[int, int] = {}
        """By node, which hidden one takes its place when it has failed."""
        self.whens: dict[tuple[int, int], int] = {}
        """By edge, the hidden node that stands in it."""
        self.targets: dict[int, int] = {}
        """Of those hidden nodes: where their edges lead."""
        self.rules: dict[int, Comparison] = {}
        """By number of an edge in `edges`, what it asks of its source's output."""
        self._owners: dict[int, int] = {}  # a stand-in's references are made for the node it stands in for
        self._add_hidden(manual)
        self.arguments: dict[int, list[Argument]] = {}
        """Of functions and conditions that have any."""
        self.texts: dict[int, dict[str, Text]] = {}
        """Of agents, transforms and HTTP nodes, by what they are for."""
        self.natives: dict[int, list[int]] = {}
        """Of native nodes: the values they are given."""
        self.preamble: dict[int, list[int]] = {}
        """Agents' predecessors that were connected by hand and are not referred to, in that order."""
        self.wants_context: set[int] = set()
        """Conditions whose handler gets a dict of everything."""
        self._sources: dict[int, dict[int, None]] = {}
        self._names = Names(self.number, declared, len(self.nodes))
        self._unbound: list[tuple[int, Parameter]] = []
        for i, node in enumerate(self.nodes):
            if isinstance(node, FunctionNode):
                if node.parameters:
                    self._bind(i, node)
            elif isinstance(node, NativeNode):
                self._resolve_native(i, node)
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

    def _add_hidden(self, manual: Mapping[tuple[str, str], When | None]) -> None:
        i = 0
        while i < len(self.nodes):  # a fallback may have one of its own
            node = self.nodes[i]
            if node.options is not PLAIN and node.options.has_fallback:
                stand_in = FallbackNode.of(node)
                if any(it is stand_in for it in self.nodes):
                    raise WorkflowError(
                        f"node {node._name!r}: its fallback {stand_in._name!r} is in the workflow already; "
                        "a fallback runs when it is needed, and is not added"
                    )
                self._owners[len(self.nodes)] = self._owners.get(i, i)
                self.stand_ins[i] = len(self.nodes)
                self.nodes.append(stand_in)
                self.names.append(f"{self.names[i]} (fallback)")
            i += 1
        for (source, target), when in manual.items():
            if when is None or isinstance(when, Comparison):
                continue
            at = len(self.nodes)
            self.whens[self.number[source], self.number[target]] = at
            self.targets[at] = self.number[target]
            self.nodes.append(WhenNode.of(self.nodes[self.number[source]], target, when))
            self.names.append(f"{source} -> {target}")

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
        self._depends(i, source)

    def _depends(self, i: int, source: int) -> None:
        if source < len(self.names):
            self._sources.setdefault(self._owners.get(i, i) if self._owners else i, {})[source] = None

    def _resolve_native(self, i: int, node: NativeNode) -> None:
        found: list[int] = []
        for at, name in enumerate(node.arguments):
            where = f"node {node._name!r}: argument {at + 1}"
            reference = self._names.resolve(Group(name), where, "") or (self._names.input(name, where), "")
            if reference[1]:
                raise WorkflowError(f"{where}: a native function is given whole outputs, not a part such as {name!r}")
            found.append(reference[0])
            self._depends(i, reference[0])
        self.natives[i] = found

    def _resolve_texts(self, i: int, node: BaseNode) -> None:
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
            self._depends(i, reference[0])
        return parts

    # ---------------------------------------------------------------------------------------------------------- edges

    def _join(self, manual: Mapping[tuple[str, str], When | None]) -> None:
        sources, edges, whens = self._sources, self.edges, self.whens
        for target, found in sources.items():
            for source in found:
                if not whens or (source, target) not in whens:
                    edges += source, target
        for (source_name, target_name), when in manual.items():
            source, target = self.number[source_name], self.number[target_name]
            referred = source in sources.get(target, ())
            if when is not None and not isinstance(when, Comparison):
                hidden = whens[source, target]
                edges += source, hidden, hidden, target
            elif not referred:
                if when is not None:
                    self.rules[len(edges) // 2] = when
                edges += source, target
            elif when is not None:
                self.rules[self._edge(source, target)] = when
            if not referred and isinstance(self.nodes[target], AgentNode):
                self.preamble.setdefault(target, []).append(source)

    def _edge(self, source: int, target: int) -> int:
        edges = self.edges
        return next(i // 2 for i in range(0, len(edges), 2) if edges[i] == source and edges[i + 1] == target)

    def visible_edges(self) -> Iterator[tuple[int, int]]:
        """Pairs of the user's nodes; a hidden node in an edge is not seen."""
        edges, targets = self.edges, self.targets
        for i in range(0, len(edges), 2):
            target = edges[i + 1]
            if edges[i] < self.visible:
                yield edges[i], targets.get(target, target)

    def predecessors(self) -> list[list[int]]:
        """By node, in the order of the edges; through hidden ones."""
        found: list[list[int]] = [[] for _ in self.names]
        for source, target in self.visible_edges():
            found[target].append(source)
        for (source, _), hidden in self.whens.items():
            found[hidden].append(source)
        return found

    def successors(self, node: int) -> list[int]:
        """The user's nodes that `node` leads to."""
        return [target for source, target in self.visible_edges() if source == node]

    def handled(self) -> set[int]:
        """Nodes whose failure neither stops nor fails the run: all their successors can do without them."""
        joins = [node.options.join for node in self.nodes]
        if all(join == "all" for join in joins):
            return set()
        found: dict[int, bool] = {}
        for source, target in self.visible_edges():
            found[source] = found.get(source, True) and joins[target] != "all"
        return {node for node, handled in found.items() if handled}

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
