"""What a pulling thread does with a callback besides calling it: where its arguments come from, what to make of its value.

A step is (function, arguments, finish), see `Step` in _lane.py. What gathers arguments is called with the run; what makes
something of a value with run, node and value. _lower.py puts the steps of a workflow together.
"""

from __future__ import annotations

from graphbit._ffi import NONE, lib
from graphbit._here import innermost_lane
from graphbit._kinds import BaseNode
from graphbit._lane import Settled
from graphbit._values import encode
from graphbit.errors import OutputError, RunCancelledError, UnknownNameError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from graphbit._composite import CompositeNode
    from graphbit.policy import Cache
    from graphbit.run import Run

    Finish = Callable[[Run, int, Any], Settled]

_LOOK_SECONDS = 0.02  # how often a thread that waits for a worker process asks whether anybody still wants the answer
_SUCCEEDED: int = lib.GB_SUCCEEDED
_WAITING: int = lib.GB_WAITING
_CANCELLED: int = lib.GB_CANCELLED


class _Unread:
    """In a run's values: a native node's output that Python has not looked at."""

    def __repr__(self) -> str:
        return "<unread>"


UNREAD = _Unread()


class Gather:
    """Arguments that are not all Python's own values, in order."""

    __slots__ = ("keywords", "positional")

    def __init__(self, positional: list[tuple[int, str]], keywords: list[tuple[str, int, str]]) -> None:
        self.positional = positional
        self.keywords = keywords

    def __call__(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        get = run.part
        return (
            [get(source, path) for source, path in self.positional],
            {name: get(source, path) for name, source, path in self.keywords},
        )


class Late(Gather):
    """The same for a join by "any": what has not succeeded is None."""

    __slots__ = ()

    def __call__(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        get = run.part_if_succeeded
        return (
            [get(source, path) for source, path in self.positional],
            {name: get(source, path) for name, source, path in self.keywords},
        )


class StandIn:
    """The value of a fallback is that of the node it stands in for."""

    __slots__ = ("finish", "nodes")

    def __init__(self, nodes: list[int], finish: Finish | None) -> None:
        self.nodes = nodes
        self.finish = finish

    def __call__(self, run: Run, node: int, value: Any) -> Settled:
        settled = Settled(_SUCCEEDED)
        run.values[node] = value
        if self.finish is not None:
            settled = self.finish(run, node, value)
        for it in self.nodes:
            run.values[it] = run.values[node]
        return settled


class ErrorOf:
    """The argument of a fallback."""

    __slots__ = ("node",)

    def __init__(self, node: int) -> None:
        self.node = node

    def __call__(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        return [run.error_of(self.node)], {}


class Advance:
    """One step of a composite node."""

    __slots__ = ("given", "node", "number")

    def __init__(self, node: CompositeNode, given: dict[str, tuple[int, str]], number: int) -> None:
        self.node = node
        self.given = given
        self.number = number

    def __call__(self, run: Run) -> Any:
        number = self.number
        lane = innermost_lane()
        attempt = lane.attempt if lane is not None else 0  # as it was handed out: the core may be at another one by now
        key = number, attempt
        work = run.suspended.pop(key, None)
        if work is None:
            run.drop_suspended((number, attempt - 1))
            get = run.part_if_succeeded if number in run.lowered.late else run.part
            given = {name: get(source, path) for name, (source, path) in self.given.items()}
            work = self.node.begin(run, number, run.lowered.inner.get(number), given)
        try:
            next(work)
        except StopIteration as stop:
            return stop.value
        except RunCancelledError:
            if not run.stop[0]:
                raise
            return _CUT  # a run it started was stopped with its own, and this step was quicker than who stops
        run.suspended[key] = work
        # Before the looks: who ends the run, or this attempt, looks for it afterwards.
        if run.is_left() or (attempt and run.has_given_up(number, attempt)):
            run.drop_suspended(key)
        return _WAITS


def itself(run: Run) -> tuple[list[Any], dict[str, Any]]:
    """The argument of a composite's step: the run."""
    return [run], {}


class _Waits:
    def __repr__(self) -> str:
        return "<waits for runs it started>"


_WAITS = _Waits()


class _Cut:
    def __repr__(self) -> str:
        return "<was cut off with its run>"


_CUT = _Cut()


class Settle:
    """What a composite's step brought."""

    __slots__ = ("finish",)

    def __init__(self, finish: Finish | None) -> None:
        self.finish = finish

    def __call__(self, run: Run, node: int, value: Any) -> Settled:
        if value is _WAITS:
            return Settled(_WAITING)
        if value is _CUT:
            return Settled(_CANCELLED)
        if self.finish is not None:
            return self.finish(run, node, value)
        run.values[node] = value
        return Settled(_SUCCEEDED)


class Follow:
    """Whether an edge is followed, as its function said."""

    __slots__ = ("target",)

    def __init__(self, target: int) -> None:
        self.target = target

    def __call__(self, run: Run, node: int, value: Any) -> Settled:
        return Settled(_SUCCEEDED, chosen=[self.target] if value else [])


class InProcess:
    """Calls a function in a worker process."""

    __slots__ = ("fn", "name")

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self.fn = fn
        self.name = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from graphbit._process import start
        from graphbit.context import current

        here = current()
        task = start(self.fn, arguments, keywords, node=self.name)
        try:
            while not task.wait(_LOOK_SECONDS):
                if here.cancelled:  # its run was stopped, or this attempt's time was up
                    task.cancel()
            return task.result()
        except BaseException:
            task.cancel()
            raise


def remembering(fn: Callable[..., Any], cache: Cache, call: Callable[..., Any], is_async: bool) -> Callable[..., Any]:
    """Asks the cache before it calls."""

    def cached(*arguments: Any, **keywords: Any) -> Any:
        key, value, known = cache.find(fn, arguments, keywords)
        if not known:
            value = call(*arguments, **keywords)
            cache.keep(key, value)
        return value

    async def cached_async(*arguments: Any, **keywords: Any) -> Any:
        key, value, known = cache.find(fn, arguments, keywords)
        if not known:
            value = await call(*arguments, **keywords)
            cache.keep(key, value)
        return value

    return cached_async if is_async else cached


class Context:
    """The argument of a condition's handler that asks for everything."""

    __slots__ = ("origins",)

    def __init__(self, origins: list[int]) -> None:
        self.origins = origins

    def __call__(self, run: Run) -> tuple[list[Any], dict[str, Any]]:
        outputs = run.outputs()
        parent = self.origins[0] if len(self.origins) == 1 else NONE
        context = {
            "parent_node_id": run.lowered.nodes[parent].id() if parent != NONE else None,
            "parent_output": run.value(parent)
            if parent != NONE
            else {run.names[i]: run.value(i) for i in self.origins},
            "variables": {**run.inputs, **outputs},
            "node_outputs": outputs,
            "metadata": {"workflow_name": run.workflow_name},
        }
        return [context], {}


def insert_raw(run: Run, node: int, value: Any) -> Settled:
    """A function's value that native functions are given."""
    return insert(run, node, value, raw=True)


def insert(run: Run, node: int, value: Any, raw: bool = False) -> Settled:
    """A function's value that a native node inserts."""
    try:
        kind, data = encode(value, raw)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(
            f"node {run.names[node]!r} returned {type(value).__name__}, which another node inserts into a text; "
            f"only strings and what has a JSON form can be inserted ({error})"
        ) from error
    run.values[node] = value
    return Settled(_SUCCEEDED, kind, data)


class Choice:
    """What a condition's handler returned, as successors to follow."""

    __slots__ = ("inserted", "name", "number", "successors")

    def __init__(self, number: int, name: str, successors: dict[str, int], inserted: bool) -> None:
        self.number = number  # the condition's; a fallback may choose in its place
        self.name = name
        self.inserted = inserted
        self.successors = successors

    def __call__(self, run: Run, node: int, value: Any) -> Settled:
        if isinstance(value, (str, BaseNode)):
            value = [value]
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise OutputError(
                f"condition {self.name!r} returned {value!r}; its handler must return the name of a successor, "
                "or a list of names (empty: none)"
            )
        chosen: list[int] = []
        for it in value:
            name = it.name() if isinstance(it, BaseNode) else it
            number = self.successors.get(name) if isinstance(name, str) else None
            if number is None:
                known = ", ".join(map(repr, self.successors)) or "it has none"
                raise _UnknownChoiceError(
                    f"condition {self.name!r} chose {name!r}, which is none of its successors"
                    f"{nearest(str(name), self.successors)}: {known}"
                )
            if number not in chosen:
                chosen.append(number)
        names = {number: name for name, number in self.successors.items()}
        run.choices[self.name] = tuple(names[number] for number in chosen)
        passed_on, brings = None, False
        if self.number in run.lowered.passing:
            passed_on, brings = run.passed_on(self.number), run.brings(self.number)
        settled = insert(run, node, passed_on) if self.inserted and brings else Settled(_SUCCEEDED)
        run.values[node] = passed_on
        settled.chosen = chosen
        return settled


class _UnknownChoiceError(OutputError, UnknownNameError):
    """Both: an output that cannot be used, for it names something that does not exist."""
