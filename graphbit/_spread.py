"""The items of a map over a function: a run without a plan. Items are handed out like nodes, and cost less."""

from __future__ import annotations

from graphbit._ffi import NONE, check, ffi, lib
from graphbit._lane import ActiveRun
from graphbit._plan import Plan, PlanBuilder
from graphbit.errors import RunCancelledError, RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from graphbit._composite import MapNode
    from graphbit._inside import RunInside
    from graphbit._lane import Step
    from graphbit._loop import LoopLane
    from graphbit._queue import Core
    from graphbit.context import Outcome

_CONTINUE: int = lib.GB_RUN_CONTINUE


class Spread(ActiveRun):
    """The items of a map over a function: handed out like nodes, without a plan, a report or an edge for each."""

    __slots__ = ("_collect", "_parent", "_remaining", "_within")

    core: Core

    def __init__(
        self,
        parent: RunInside,
        node: int,
        it: MapNode,
        items: list[Any],
        given: dict[str, Any],
        live_max: int,
        loop: LoopLane | None,
    ) -> None:
        assert it.body is not None
        core = parent.core
        self.core = core
        self.cell = ffi.new("gb_run **")
        self.handle = None
        self.token = core.new_token()
        self.item_count = len(items)
        self.names = _Items(it.name())
        body = it.body
        self.steps = _Calls((lambda item: body(item, **given)) if given else body, self.item_count)
        self.continuations = _Nowhere()
        self.policies = {}
        self.values = [None] * self.item_count + items
        self.errors = {}
        self.interrupted = None
        self.context = parent.context
        self._collect = it.collect
        self.sink = parent.sink
        self._within = parent.visible_as(node)
        self._parent: tuple[RunInside, int] | None = (parent, node)
        options = ffi.new("gb_run_options *")
        options.token = self.token
        options.flags = _CONTINUE if it.collect else 0
        options.parent, options.parent_node = parent.handle, node
        options.item_count, options.item_live_max = self.item_count, live_max
        if it.item_is_async:
            if loop is None or loop.queue is None:
                raise RuntimeClosedError("the graphbit runtime was shut down while a run was started")
            options.loop_queue = loop.queue
        core.register(self)
        status = lib.gb_run_start(core.handle, _no_plan(), options, self.cell)
        if status != 0:
            core.runs.pop(self.token, None)
            check(status, "starting the items of a map")
        if self.handle is None:
            self.open()
        self._remaining = memoryview(ffi.buffer(lib.gb_run_remaining(self.handle), 4)).cast("I")

    def done(self) -> bool:
        return self._remaining[0] == 0

    def emit(self, node: int, kind: str, value: Any) -> None:
        """As events of the map's node: items have none of their own."""
        if self.sink is not None:
            self.sink.emit(self._within, kind, value)

    def seconds_left(self, node: int) -> float | None:
        """To the map, and to what that is part of."""
        parent = self._parent
        return parent[0].seconds_left(parent[1]) if parent is not None else None

    def seen_as(self) -> ActiveRun:
        """The run that the map is part of."""
        return self._parent[0] if self._parent is not None else self

    def outcomes_before(self, node: int) -> dict[str, Outcome]:
        return {}

    def over(self) -> None:
        """It is waited for by its map."""

    def leave(self) -> None:
        """Its map needs it no more."""
        self._parent = None
        if not self.done() and not self.core.closed:
            lib.gb_run_cancel(self.handle)  # it is over when that returns: what is out is dropped when it comes
        self.core.runs.pop(self.token, None)

    def outputs(self) -> list[Any]:
        """What the items brought, in their order; raises what the first of those that failed raised."""
        summary = ffi.new("gb_run_summary *")
        lib.gb_run_summary_read(self.handle, summary)
        if self.interrupted is not None:
            raise self.interrupted
        if not self._collect and summary.first_failed != NONE:
            raise self.errors[summary.first_failed]
        if summary.cause not in (0, lib.GB_CAUSE_FAILURE):
            raise RunCancelledError("the items of a map were cancelled")
        outputs = self.values[: self.item_count]
        for item, error in self.errors.items():
            outputs[item] = error
        return outputs

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None and not self.core.is_foreign():
            self.handle = None
            lib.gb_run_release(handle)


class _Items:
    """Names of items: `pages[3]`."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, item: int) -> str:
        return f"{self._name}[{item}]"


class _Calls:
    """The step of every item: the body, called with the item, which stands `count` places behind its output."""

    __slots__ = ("_count", "_function")

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        self._function = function
        self._count = count

    def __getitem__(self, item: int) -> Step:
        return self._function, (self._count + item,), None


class _Nowhere:
    """No item has a continuation."""

    __slots__ = ()

    def __getitem__(self, item: int) -> int:
        return NONE


_empty: Plan | None = None


def _no_plan() -> Any:
    """The plan of runs of items: it has no nodes."""
    global _empty
    if _empty is None:
        _empty = PlanBuilder().build()
    return _empty.handle
