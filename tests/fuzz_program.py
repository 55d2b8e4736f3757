"""What the nodes of random workflows do. Their programs, as a failing example prints them, begin with `r = Recorder()`."""

from __future__ import annotations

import asyncio
import threading
import weakref
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import graphbit
from graphbit import Executor, Node, Run, Workflow, WorkflowResult
from graphbit.context import NodeContext

PATIENCE_S = 5.0  # for a run that takes milliseconds
ALWAYS = 99


class Failure(Exception):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Failure) and self.args == other.args

    __hash__ = Exception.__hash__


class Other(Exception):
    pass


class Output(dict[str, Any]):
    """What a node returns: short, another for other arguments, with something to compare and something to map over.

    Of a class of its own, so that a test can hold it weakly.
    """

    def __init__(self, name: str, given: list[Any]) -> None:
        tag = f"{name}:{zlib.crc32(repr(given).encode()):08x}"
        super().__init__(tag=tag, k=weight(name), items=[0, 1, 2, 3, 4], few=[0, 1], none=[])


def weight(name: str) -> int:
    """A number that edges compare: the same for what a node and its stand-in return."""
    return len(name.partition("!")[0])


def attempt() -> int:
    """The number of the attempt that calls."""
    return graphbit.current().attempt


class Recorder:
    """Makes the functions of one workflow, and writes down what happens in them, in one order for all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[tuple[str, str, float]] = []
        """("start" or "end", node, when in virtual time)"""
        self.given: dict[str, tuple[bool, ...]] = {}
        """Of a node's last attempt: which parameters were not None."""
        self.outcomes: dict[str, dict[str, str]] = {}
        """Of a node's last attempt: what it was told of its predecessors."""
        self.inside: dict[str, list[NodeContext]] = defaultdict(list)
        self.most: Counter[str] = Counter()
        """By limit: how many of its nodes were inside of their functions at once, those not counted that were given up there."""
        self.calls: Counter[str] = Counter()
        self.made: list[weakref.ref[Output]] = []
        self.gate = threading.Event()
        """For whoever hangs."""
        self.clock: Callable[[], float] = lambda: 0.0
        self.known = threading.Event()
        self.run: Run | None = None

    def write(self, event: str, node: str) -> None:
        with self.lock:
            self.events.append((event, node, self.clock()))

    def tell(self, run: Run) -> None:
        """The run, for a node that cancels it."""
        self.run = run
        self.known.set()

    def alive(self) -> int:
        return sum(it() is not None for it in self.made)

    @contextmanager
    def noted(self, name: str, limits: tuple[str, ...] = (), given: tuple[bool, ...] = ()) -> Iterator[None]:
        here = graphbit.current()
        with self.lock:
            self.given[name] = given
            self.events.append(("start", name, self.clock()))
            for limit in limits:
                self.inside[limit].append(here)
                self.most[limit] = max(self.most[limit], sum(not it.cancelled for it in self.inside[limit]))
        try:
            yield
        finally:
            with self.lock:
                self.events.append(("end", name, self.clock()))
                for limit in limits:
                    self.inside[limit].remove(here)

    def told(self, name: str) -> None:
        here = graphbit.current()
        assert here.node == name
        self.outcomes[name] = {node: it.state for node, it in here.outcomes.items()}

    def output(self, name: str, given: list[Any]) -> Output:
        found = Output(name, given)
        self.made.append(weakref.ref(found))
        return found

    # ------------------------------------------------------------------------------------------------ functions of nodes

    def does(
        self,
        name: str,
        fails: int = 0,
        error: type[Exception] = Failure,
        limit: str = "",
        cancels: bool = False,
        hangs: bool = False,
    ) -> Callable[..., Any]:
        """A function that fails `fails` times before it succeeds."""

        def function(**parameters: Any) -> Any:
            given = [parameters[f"p{at}"] for at in range(len(parameters))]
            self.told(name)
            with self.noted(name, ("*", "function", limit), tuple(it is not None for it in given)):
                if cancels:
                    assert self.known.wait(PATIENCE_S)
                    assert self.run is not None
                    self.run.cancel()
                if hangs:
                    self.gate.wait(PATIENCE_S)
                if attempt() <= fails:
                    raise error(name)
                return self.output(name, given)

        return function

    def later(
        self, name: str, fails: int = 0, error: type[Exception] = Failure, limit: str = "", hangs: bool = False
    ) -> Callable[..., Any]:
        function = self.does(name, fails, error, limit)

        async def later(**parameters: Any) -> Any:
            await asyncio.sleep(0)
            if hangs:
                self.write("start", name)
                await asyncio.sleep(PATIENCE_S)
            return function(**parameters)

        return later

    def chooses(
        self, name: str, chosen: list[str], fails: int = 0, error: type[Exception] = Failure, limit: str = ""
    ) -> Callable[..., Any]:
        def handler(**parameters: Any) -> Any:
            self.told(name)
            with self.noted(name, ("*", "condition", limit), tuple(it is not None for it in parameters.values())):
                if attempt() <= fails:
                    raise error(name)
                return chosen

        return handler

    def holds(self, truth: bool) -> Callable[[Any], bool]:
        return lambda value: truth

    # ---------------------------------------------------------------------------------------------------------- stand-ins

    def value(self, name: str) -> Output:
        return self.output(f"{name}!value", [])

    def rescue(self, name: str, fails: bool = False) -> Callable[[BaseException], Any]:
        def fallback(error: BaseException) -> Any:
            with self.noted(f"{name}!call"):
                if fails:
                    raise Other(name)
                return self.output(f"{name}!call", [])

        return fallback

    def spare(self, name: str, fails: bool = False) -> Node:
        def function() -> Any:
            with self.noted(f"{name}!node"):
                if fails:
                    raise Other(name)
                return self.output(f"{name}!node", [])

        return Node.function(function, name=f"{name}!node")

    # --------------------------------------------------------------------------------------------------------- composites

    def timed(
        self, name: str, spans: list[float], fails: int = 0, error: type[Exception] = Failure, limit: str = ""
    ) -> Workflow:
        """A workflow that takes spans[0] seconds the first time, spans[1] the second, and fails `fails` times at the end."""

        def pick() -> str:
            self.calls[name] += 1
            return f"d{min(self.calls[name], len(spans)) - 1}"

        def out() -> Any:
            with self.noted(f"{name}.out", ("*", "function")):
                if self.calls[name] <= fails:
                    raise error(name)
                return self.output(name, [])

        return _picking(name, pick, spans, out, None)

    def item(self, name: str, bad: list[int]) -> Callable[[int], Any]:
        def body(item: int) -> Any:
            with self.noted(f"{name}.{item}"):
                if item in bad:
                    raise Failure(item)
                return self.output(f"{name}.{item}", [])

        return body

    def timed_item(self, name: str, spans: list[float], bad: list[int]) -> Workflow:
        """The same as a workflow that takes spans[item] seconds."""
        return _picking(name, lambda item: f"d{item}", spans, self.item(name, bad), ["item"])

    def turn(self, name: str, fails_at: int = 0) -> Callable[[Any], int]:
        """The body of a loop: counts its turns."""

        def body(previous: Any) -> int:
            number = (previous or 0) + 1
            with self.noted(f"{name}.turn"):
                if number == fails_at:
                    raise Failure(name)
                return number

        return body

    def timed_turn(self, name: str, seconds: float, fails_at: int = 0) -> Workflow:
        made = Workflow(name, inputs=["previous"])
        made.add(Node.delay("d", seconds), Node.function(self.turn(name, fails_at), name="out"))
        made.connect("d", "out")
        return made


def _picking(
    name: str, pick: Callable[..., str], spans: list[float], out: Callable[..., Any], inputs: list[str] | None
) -> Workflow:
    made = Workflow(name, inputs=inputs)
    made.add(Node.condition("pick", pick))
    for at, seconds in enumerate(spans):
        made.add(Node.delay(f"d{at}", seconds))
    made.add(Node.function(out, name="out"))
    for at in range(len(spans)):
        made.connect("pick", f"d{at}")
        made.connect(f"d{at}", "out")
    return made


def run(r: Recorder, made: Workflow, executor: Executor) -> WorkflowResult:
    """How a printed program ends."""
    it = executor.start(made)
    r.tell(it)
    return it.wait(PATIENCE_S)
