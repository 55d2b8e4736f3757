"""What tests make workflows of: nodes that do little, ways to run them, and how to wait for something without sleeping."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import graphbit
from graphbit import Executor, Node, RetryPolicy, Run, Workflow, WorkflowResult

PATIENCE = 20.0
"""Seconds until a wait that should end at once counts as a deadlock."""

HOUR = 3600.0

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

WAYS = pytest.mark.parametrize("way", ["execute", "start", "run_async"])


# -------------------------------------------------------------------------------------------------- workflows and nodes


def linked(
    nodes: Sequence[Node], edges: Sequence[tuple[Any, ...]] | None = None, inputs: list[str] | None = None
) -> Workflow:
    made = Workflow("w", inputs=inputs) if inputs is not None else Workflow("w")
    made.add(*nodes)
    for edge in edges or ():
        made.connect(*edge)
    return made


def workflow(*functions: Callable[..., Any], **named: Callable[..., Any]) -> Workflow:
    made = Workflow("w")
    made.add(*[Node.function(it) for it in functions], *[Node.function(it, name) for name, it in named.items()])
    return made


def good(name: str, **options: Any) -> Node:
    """Returns its own name."""
    return Node.function(lambda: name, name=name, **options)


def bad(name: str, **options: Any) -> Node:
    """Raises LookupError."""

    def fails() -> None:
        raise LookupError(f"{name} failed")

    return Node.function(fails, name=name, **options)


def const(name: str, value: Any) -> Node:
    return Node.function(lambda: value, name=name)


async def double_later(item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


async def double(x: int) -> int:
    await asyncio.sleep(0)
    return x * 2


def mixed() -> Workflow:
    """All kinds of nodes that need no server."""
    made = Workflow("mixed", inputs=["x"])
    made.add(
        Node.function(double),
        Node.transform("text", "{double}!"),
        Node.delay("pause", 0.001),
        Node.function(lambda pause: pause + "?", "after"),
        Node.condition("route", lambda after: "left" if after == "8!?" else "right"),
        Node.transform("left", "L{route}"),
        Node.transform("right", "R{route}"),
        Node.function(lambda left, right: (left, right), "join"),
    )
    made.connect("text", "pause")
    return made


def steady(attempts: int = 3, backoff: float = 10.0, **more: Any) -> RetryPolicy:
    return RetryPolicy(attempts, backoff=backoff, jitter=False, max_backoff=more.pop("max_backoff", 1e6), **more)


class Flaky:
    """Fails so many times with what it is given, then succeeds; notes when it was called."""

    def __init__(self, *errors: BaseException, clock: Any = None) -> None:
        self.errors = list(errors)
        self.clock = clock
        self.calls: list[float] = []
        self.attempts: list[int] = []

    def __call__(self) -> str:
        self.calls.append(self.clock.now() if self.clock is not None else 0)
        self.attempts.append(graphbit.current().attempt)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def node(self, **options: Any) -> Node:
        return Node.function(self, name="flaky", **options)

    def async_node(self, **options: Any) -> Node:
        async def flaky() -> str:
            await asyncio.sleep(0)
            return self()

        return Node.function(flaky, **options)


class Recorder:
    """Makes function nodes that write down when they run."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def node(self, name: str, value: Any = None) -> Node:
        def function() -> Any:
            self.order.append(name)
            return name if value is None else value

        return Node.function(function, name=name)


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


# -------------------------------------------------------------------------------------------------- running and waiting


def run_by(way: str, made: Workflow, inputs: dict[str, Any] | None = None, executor: Executor | None = None) -> Any:
    executor = executor or Executor()
    if way == "execute":
        return executor.execute(made, inputs)
    if way == "start":
        return executor.start(made, inputs).wait(PATIENCE)
    return asyncio.run(executor.run_async(made, inputs))


def outputs_of(*nodes: Node, inputs: dict[str, Any] | None = None, edges: list[tuple[str, str]] | None = None) -> Any:
    """The result of a workflow of these nodes; a failure raises."""
    return Executor().execute(linked(nodes, edges), inputs).raise_for_failure()


async def awaited(it: Run) -> WorkflowResult:
    return await it


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


async def patiently(it: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(it, PATIENCE)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(0) … work(count - 1)`, all begun at the same moment."""
    line = threading.Barrier(count)

    def one(number: int) -> Any:
        line.wait(PATIENCE)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [it.result(PATIENCE * 3) for it in [pool.submit(one, number) for number in range(count)]]


class Unwatching(asyncio.SelectorEventLoop):
    """A loop like Windows' proactor: it cannot watch descriptors for others."""

    def add_reader(self, *args: Any) -> None:
        raise NotImplementedError

    def remove_reader(self, *args: Any) -> bool:
        raise NotImplementedError


def run_on(loop: asyncio.AbstractEventLoop, main: Awaitable[Any]) -> Any:
    try:
        return loop.run_until_complete(patiently(main))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


# ------------------------------------------------------------------------------------------------ programs of their own


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30
    )


def prints(code: str, *options: str) -> str:
    """What a program prints that has to end well and say nothing on stderr."""
    done = python(code, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    until(lambda: is_gone(pid))
