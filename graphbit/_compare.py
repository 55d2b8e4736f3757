"""Comparisons of an output with a value: what an edge asks, and what ends a loop.

    Comparison.of(("score", ">=", 0.5), "the edge")     Comparison.of(("lang", "en"), "the edge")

On edges the core makes them (graph/predicate.zig says what they mean); here is the same for outputs that Python has in hand.
"""

from __future__ import annotations

import json

from graphbit._values import pick
from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "exists", "absent", "in")
_MISSING = object()


class Comparison:
    """`path operator value`."""

    __slots__ = ("number", "operator", "path", "text", "value")

    def __init__(self, path: str, operator: str, value: Any, text: str) -> None:
        self.path = path
        self.operator = operator
        self.value = value
        self.number = _OPERATORS.index(operator)
        """The core's gb_compare."""
        self.text = text
        """The value as JSON."""

    @staticmethod
    def of(given: Any, where: str) -> Comparison:
        """Raises ConfigurationError unless `given` is (path, value), (path, operator, value) or (path, "exists" | "absent")."""
        parts = tuple(given) if isinstance(given, (tuple, list)) else ()
        if len(parts) == 2:
            parts = (parts[0], parts[1], None) if parts[1] in ("exists", "absent") else (parts[0], "==", parts[1])
        if len(parts) != 3 or not isinstance(parts[0], str) or parts[1] not in _OPERATORS:
            raise ConfigurationError(
                f"{where}: a condition is a function, or a comparison such as ('score', '>=', 0.5) with one of "
                f"{' '.join(_OPERATORS)}, got {given!r}"
            )
        path, operator, value = parts
        path = path[1:] if path.startswith("$") else path
        path = path.replace("[", ".").replace("]", "").strip(".")
        if operator == "in":
            if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
                raise ConfigurationError(f"{where}: 'in' compares with a list, got {value!r}")
            value = list(value)
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{where}: {value!r} cannot be compared with: it has no JSON form") from error
        return Comparison(path, operator, value, text)

    def holds(self, output: Any) -> bool:
        """Whether it holds of an output."""
        found: Any = output
        if self.path:
            try:
                found = pick(output, self.path)
            except LookupError:
                found = _MISSING
        operator = self.operator
        if operator in ("exists", "absent"):
            return (found is _MISSING) == (operator == "absent")
        if found is _MISSING:
            return operator == "!="
        if operator == "in":
            return any(_equal(found, it) for it in self.value)
        if operator in ("==", "!="):
            return _equal(found, self.value) == (operator == "==")
        if not _ordered(found, self.value):
            return False
        return bool(
            {"<": found < self.value, "<=": found <= self.value, ">": found > self.value, ">=": found >= self.value}[
                operator
            ]
        )

    def __repr__(self) -> str:
        return f"({self.path!r}, {self.operator!r}, {self.value!r})"


def _equal(a: Any, b: Any) -> bool:
    """As JSON has it: true is not 1."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    return bool(a == b)


def _ordered(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return True
    return all(isinstance(it, (int, float)) and not isinstance(it, bool) for it in (a, b))
