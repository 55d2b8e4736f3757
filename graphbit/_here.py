"""Which node the running code is in: known by its thread for plain functions, by its context for async ones.

context.py makes of it what users see; here is what those who run nodes write down.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from graphbit._lane import Lane

_lanes = threading.local()  # .stack: the lanes whose callbacks this thread is in, innermost last
here: ContextVar[tuple[Any, int, int] | None] = ContextVar("graphbit_node", default=None)
"""Of an `async def` node: run, node, attempt."""


def enter(lane: Lane) -> None:
    """This thread runs callbacks of `lane` from here on."""
    try:
        _lanes.stack.append(lane)
    except AttributeError:
        _lanes.stack = [lane]


def leave() -> None:
    """It does so no longer."""
    _lanes.stack.pop()


def innermost_lane() -> Lane | None:
    """The lane whose callback this thread is in; `lane.at` tells which."""
    stack: list[Lane] | None = getattr(_lanes, "stack", None)
    return stack[-1] if stack else None


def enter_node(run: Any, node: int, attempt: int) -> None:
    """In an `async def` node's own context, before its first step."""
    here.set((run, node, attempt))
