"""What tests make workflows of: nodes that do little, ways to run them, and how to wait for something without sleeping."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from graphbit import Executor, Node, Workflow

PATIENCE = 20.0
"""Seconds until a wait that should end at once counts as a deadlock."""

HOUR = 3600.0

WAYS = pytest.mark.parametrize("way", ["execute", "start", "run_async"])


def linked(
    nodes: Sequence[Node], edges: Sequence[tuple[Any, ...]] | None = None, inputs: list[str] | None = None
) -> Workflow:
    made = Workflow("w", inputs=inputs) if inputs is not None else Workflow("w")
    made.add(*nodes)
    for edge in edges or ():
        made.connect(*edge)
    return made


def good(name: str, **options: Any) -> Node:
    """Returns its own name."""
    return Node.function(lambda: name, name=name, **options)


def bad(name: str, **options: Any) -> Node:
    """Raises LookupError."""

    def fails() -> None:
        raise LookupError(f"{name} failed")

    return Node.function(fails, name=name, **options)


def run_by(way: str, made: Workflow, inputs: dict[str, Any] | None = None, executor: Executor | None = None) -> Any:
    executor = executor or Executor()
    if way == "execute":
        return executor.execute(made, inputs)
    if way == "start":
        return executor.start(made, inputs).wait(PATIENCE)
    return asyncio.run(executor.run_async(made, inputs))


def opened(event: threading.Event) -> None:
    """Waits for it; a test that is broken ends with an error and not with a hang."""
    if not event.wait(PATIENCE):
        raise TimeoutError("the event was never set")


def until(condition: Callable[[], bool]) -> None:
    """Waits for what sets no event."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to be so"
        threading.Event().wait(0.0005)


class Held:
    """A function that runs until it is let go."""

    def __init__(self) -> None:
        self.inside, self.gate, self.over = threading.Event(), threading.Event(), threading.Event()
        self.entered = 0

    def __call__(self, item: Any = "too late") -> Any:
        self.entered += 1
        self.inside.set()
        try:
            opened(self.gate)
        finally:
            self.over.set()
        return item
