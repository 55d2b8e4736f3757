"""Placeholders in prompts, URLs and bodies.

    split("Draft on {topic}: {outline.points.0} and {{braces}}")
    -> ["Draft on ", Group("topic"), ": ", Group("outline.points.0"), " and {braces}"]

`{name}` and `{name.key.0}` refer to a node or an input; whether a group of braces really is a reference is decided where
the names are known (`Names.resolve`). `{{x}}` is a literal `{x}`, except `{{node.NAME.path}}`, an older way to write a reference
to a node. What does not look like a reference (JSON, code) stays as it is.
"""

from __future__ import annotations

import re

from graphbit.errors import UnknownNameError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_GROUPS = re.compile(r"\{\{([^{}]*)\}\}|\{([^{}]*)\}")
_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
_NODE = "node."


class Group:
    """What stands between braces, and whether it must be a node."""

    __slots__ = ("must_be_node", "text")

    def __init__(self, text: str, must_be_node: bool = False) -> None:
        self.text = text
        self.must_be_node = must_be_node

    @property
    def source(self) -> str:
        """As it was written."""
        return "{{node." + self.text + "}}" if self.must_be_node else "{" + self.text + "}"


def split(text: str) -> list[str | Group]:
    """The text cut into literals and groups."""
    parts: list[str | Group] = []
    literal = ""
    at = 0
    for match in _GROUPS.finditer(text):
        literal += text[at : match.start()]
        at = match.end()
        doubled, single = match.groups()
        if doubled is not None and not doubled.startswith(_NODE):
            literal += "{" + doubled + "}"
            continue
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(Group(doubled[len(_NODE) :], True) if doubled is not None else Group(single))
    literal += text[at:]
    if literal:
        parts.append(literal)
    return parts


class Names:
    """The names that references can mean, as numbers of values: nodes, then inputs.

    With `declared` None every unknown name is an input and gets the next number.
    """

    def __init__(
        self, nodes: Mapping[str, int], declared: Sequence[str] | None, first_input: int | None = None
    ) -> None:
        self.nodes = nodes
        self.declared = declared
        self._first = len(nodes) if first_input is None else first_input
        self.inputs: dict[str, int] = {name: self._first + i for i, name in enumerate(declared or ())}

    def resolve(self, group: Group, where: str, remedy: str | None = None) -> tuple[int, str] | None:
        """The value and the path into it that a group refers to; None: it is no reference, it stays as it is.

        Raises:
            UnknownNameError: it looks like a reference, and there is no such name. `where` begins the message.
        """
        text = group.text
        found = self.known(text)
        if found is not None:
            return found
        if group.must_be_node:
            name = text.split(".")[0]
            raise UnknownNameError(f"{where} refers to unknown node {name!r}{nearest(name, self.nodes)}")
        if _REFERENCE.fullmatch(text) is None:
            return None
        name, _, path = text.partition(".")
        return self.input(
            name, where, f"; write {{{group.source}}} for literal braces" if remedy is None else remedy
        ), path

    def known(self, text: str) -> tuple[int, str] | None:
        """`text` as a node and a path into its output. The longest name wins: names may hold dots and spaces."""
        nodes = self.nodes
        if text in nodes:
            return nodes[text], ""
        at = text.rfind(".")
        while at > 0:
            if text[:at] in nodes:
                return nodes[text[:at]], text[at + 1 :]
            at = text.rfind(".", 0, at)
        return None

    def input(self, name: str, where: str, remedy: str = "") -> int:
        """The number of the input `name`.

        Raises:
            UnknownNameError: the inputs are declared, and it is none of them.
        """
        number = self.inputs.get(name)
        if number is None:
            if self.declared is not None:
                near = nearest(name, [*self.nodes, *self.declared])
                raise UnknownNameError(
                    f"{where} refers to {name!r}, which is neither a node nor an input{near}{remedy}"
                )
            number = self.inputs[name] = self._first + len(self.inputs)
        return number
