"""Workflows: nodes and the edges between them. Describes and checks; runs nothing."""

from __future__ import annotations

from graphbit._compare import Comparison
from graphbit._kinds import BaseNode
from graphbit._signature import is_async
from graphbit._structure import Structure
from graphbit.errors import ConfigurationError, InputError, UnknownNameError, WorkflowError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from graphbit.node import Node

    When = Callable[[Any], Any] | Comparison


class Workflow:
    """A graph of nodes.

    ```python
    wf = Workflow("brief", inputs=["topic"])
    wf.add(
        Node.agent("outline", "Outline a brief on {topic}."),
        Node.agent("draft", "Write it.\\n{outline}"),
    )
    result = Executor(config).execute(wf, {"topic": "bees"})
    ```

    **Edges follow data.** A placeholder or a function's parameter that names a node makes an edge from it. `connect` adds an
    edge by hand.

    **Inputs.** With `inputs=[…]` a name that is neither a node nor one of these is an error, found by `validate`. Without, every
    name that is no node is a required input; `wf.inputs` lists them.

    **Names** of nodes are unique in a workflow, and no name is both a node's and an input's.

    Args:
        name: for people.
        inputs: the names of what a run must be given.

    Raises:
        ConfigurationError: the name is no string, or an input is named twice.
    """

    def __init__(self, name: str, inputs: Sequence[str] | None = None) -> None:
        if not isinstance(name, str):
            raise ConfigurationError(f"a workflow's name is a string, got {name!r}")
        self._name = name
        self._declared = None if inputs is None else _checked_inputs(inputs)
        self._nodes: dict[str, BaseNode] = {}
        self._ids: dict[str, str] = {}
        self._edges: dict[tuple[str, str], When | None] = {}
        self._structure: Structure | None = None
        self._lowered: Any = None  # _lower.py's: the plan made last

    def add(self, *nodes: BaseNode) -> None:
        """`wf.add(node, other)`: adds nodes. Nothing is added when one of them cannot be.

        Raises:
            WorkflowError: a node of that name is there already, or an input has it.
        """
        known = self._nodes
        if len(nodes) == 1:
            self._check(nodes[0], known)
        else:
            fresh: dict[str, BaseNode] = {}
            for node in nodes:
                self._check(node, known)
                if node._name in fresh:
                    raise WorkflowError(f"two of the nodes are named {node._name!r}; names are unique in a workflow")
                fresh[node._name] = node
        for node in nodes:
            known[node._name] = node
            self._ids[node._id] = node._name
        self._structure = None

    def add_node(self, node: BaseNode) -> str:
        """`node_id = wf.add_node(node)`: adds one node and returns its id."""
        self.add(node)
        return node.id()

    def _check(self, node: BaseNode, known: dict[str, BaseNode]) -> None:
        if not isinstance(node, BaseNode):
            raise ConfigurationError(
                f"a workflow is made of nodes, got {node!r}; Node.function({node!r}) makes one of it"
            )
        other = known.get(node._name)
        if other is not None:
            if other is node:
                raise _DuplicateError(f"Node already exists: {node!r} was added to workflow {self._name!r} before")
            raise _DuplicateError(
                f"workflow {self._name!r} has a node named {node._name!r} already; give this one another name"
            )
        if node._id in self._ids:
            raise _DuplicateError(
                f"nodes {self._ids[node._id]!r} and {node._name!r} have the same id {node._id!r}; give one another agent_id"
            )
        if self._declared is not None and node._name in self._declared:
            raise WorkflowError(f"{node._name!r} is an input of workflow {self._name!r}; a node needs another name")

    def connect(
        self,
        from_node: str | BaseNode,
        to_node: str | BaseNode,
        when: Callable[[Any], Any] | tuple[Any, ...] | None = None,
    ) -> None:
        """`wf.connect("outline", "draft")`: adds an edge between two nodes, given as node, name or id.

        An agent that does not refer to a predecessor by name gets its output put before the prompt.

        Args:
            when: the edge is followed only if this holds of the first node's output: a function of it, or a comparison that is
                made natively, `("score", ">=", 0.5)`: a path into the output ("" for all of it), one of == != < <= > >= in exists
                absent, and a value; `("lang", "en")` is short for ==. A node with such edges runs when at least one of them (or
                of a condition's choices that lead to it) is followed.

        Raises:
            UnknownNameError: there is no such node.
            ConfigurationError: `when` is neither a function nor such a comparison.
        """
        pair = self._known(from_node, "Source"), self._known(to_node, "Target")
        if when is not None and callable(when) and is_async(when):
            raise ConfigurationError(
                f"the edge {pair[0]!r} -> {pair[1]!r}: when must be a plain function, not `async def`"
            )
        asked: When | None = None
        if when is not None:
            asked = when if callable(when) else Comparison.of(when, f"the edge {pair[0]!r} -> {pair[1]!r}")
        if pair not in self._edges or asked is not None:
            self._edges[pair] = asked
            self._structure = None

    def _known(self, node: str | BaseNode, role: str) -> str:
        name = node._name if isinstance(node, BaseNode) else node
        if isinstance(name, str):
            found = name if name in self._nodes else self._ids.get(name)
            if found is not None and (not isinstance(node, BaseNode) or self._nodes[found] is node):
                return found
        raise UnknownNameError(
            f"{role} node {name} not found in workflow {self._name!r}{nearest(str(name), self._nodes)}; "
            "add nodes before connecting them"
        )

    def name(self) -> str:
        """`wf.name()`"""
        return self._name

    def node_count(self) -> int:
        """`wf.node_count()`"""
        return len(self._nodes)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in the order in which they were added."""
        return tuple(self._nodes.values())  # type: ignore[arg-type]  # whatever users add was made by Node

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """`(("outline", "draft"), …)`: all edges, those that follow from references included.

        Raises:
            WorkflowError: the workflow is not sound, as `validate` would say.
        """
        structure = self.structure()
        names = structure.names
        return tuple((names[source], names[target]) for source, target in structure.visible_edges())

    @property
    def inputs(self) -> tuple[str, ...]:
        """`("topic",)`: what a run must be given. Declared, or found in references that are no node's name.

        Raises:
            WorkflowError: the workflow is not sound, as `validate` would say.
        """
        return tuple(self.structure().inputs)

    def validate(self) -> None:
        """`wf.validate()`: checks names, references and edges. Runs call it too; nothing has started when it raises.

        Raises:
            UnknownNameError: a reference to neither a node nor an input, with the nearest name.
            WorkflowError: a name is both a node's and an input's.
            CycleError: nodes wait for each other; it names them.
        """
        self.structure().check_cycles()

    def structure(self) -> Structure:
        found = self._structure
        if found is None:
            found = self._structure = Structure(self._nodes, self._declared, self._edges)
        return found

    def check_inputs(self, inputs: dict[str, Any]) -> None:
        """Raises InputError unless `inputs` are exactly those of the workflow."""
        wanted = self.structure().inputs
        missing = [name for name in wanted if name not in inputs]
        if missing:
            given = [name for name in inputs if name not in wanted]
            hint = next((near for name in missing if (near := nearest(name, given))), "")
            raise InputError(
                f"workflow {self._name!r} needs the input{'s' if len(missing) > 1 else ''} "
                f"{', '.join(map(repr, missing))}{hint}; pass execute(workflow, {{{missing[0]!r}: …}})"
            )
        for name in inputs:
            if name not in wanted:
                known = ", ".join(map(repr, wanted)) or "none"
                raise InputError(
                    f"workflow {self._name!r} has no input {name!r}{nearest(str(name), wanted)}; its inputs: {known}"
                )

    def __repr__(self) -> str:
        return f"Workflow(name={self._name!r}, nodes={len(self._nodes)})"


def _checked_inputs(inputs: Sequence[str]) -> tuple[str, ...]:
    if isinstance(inputs, str):
        raise ConfigurationError(f"inputs is a list of names, got the string {inputs!r}")
    try:
        names = tuple(inputs)
    except TypeError:
        raise ConfigurationError(f"inputs is a list of names, got {inputs!r}") from None
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"inputs is a list of names, and {name!r} is none")
    if len(set(names)) < len(names):
        raise ConfigurationError(f"an input is named twice: {', '.join(map(repr, names))}")
    return names


class _DuplicateError(WorkflowError, RuntimeError):
    """The original raised a RuntimeError here."""
