"""Composite nodes: map, workflow, loop. Each starts runs of its own and waits for them, holding neither a thread nor a permit.

What a composite does is a generator. It starts runs, yields, and goes on when one of them is over; its return value is the
node's output. Between two steps the core knows the node as waiting, and hands it out like any callback when a run it started
has ended (`GB_WAITING` in the header). A step may come without need: a generator looks at its runs itself.
"""

from __future__ import annotations

from graphbit._compare import Comparison
from graphbit._kinds import BaseNode, FunctionNode, function_node
from graphbit._options import PLAIN
from graphbit._signature import Parameter, is_async, parameters
from graphbit.errors import ConfigurationError, InputError, OutputError, UnknownNameError, nearest
from graphbit.workflow import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping
    from typing import Any

    from graphbit._lower import Lowered
    from graphbit.run import Run

    Steps = Generator[None, None, Any]

LIVE_RUNS = 64
"""So many runs of a map's body are on their way at once where no limit is given."""
LIVE_COROUTINES = 1000
_OVER = "*over"
_INITIAL = "*initial"
_LIMIT_MAX = 1 << 30


class CompositeNode(FunctionNode):
    """See above."""

    __slots__ = ("inner",)
    inner: Workflow | None
    """What its runs are runs of; None where it calls a function itself."""

    def begin(self, run: Run, number: int, inner: Lowered | None, given: dict[str, Any]) -> Steps:
        """The node's work in `run`, where it is node `number`. `given`: its parameters."""
        raise NotImplementedError

    def _set_parameters(
        self, found: list[Parameter], bind: Mapping[str, str | BaseNode] | None, own: dict[str, str]
    ) -> None:
        """Parameters by name, bound as those of functions are; `own`: what each of the node's own refers to."""
        self.fn = _never
        self.is_async = self.process = False
        self.parameters = tuple(found)
        self.bind_names(bind, False)
        for name, source in own.items():
            self.parameters += (Parameter(name),)
            self.bind = {**(self.bind or {}), name: source}

    def _set_body(
        self, body: Any, own: Collection[str], first: str
    ) -> tuple[Callable[..., Any] | None, list[Parameter]]:
        """A body that is called, or None and `inner` is set; and what it needs besides what the composite gives it."""
        self.inner = None
        if callable(body) and not isinstance(body, (BaseNode, Workflow)):
            found, _ = parameters(body)
            if not found or found[0].keyword_only:
                raise ConfigurationError(
                    f"{self.kind} node {self._name!r}: the body must take a parameter for {first}, and {body!r} takes none"
                )
            return body, list(found[1:])
        if isinstance(body, BaseNode):
            self.inner = Workflow(f"{self._name}: {body.name()}")
            self.inner.add(body)
        elif isinstance(body, Workflow):
            self.inner = body
        else:
            raise ConfigurationError(
                f"{self.kind} node {self._name!r}: a body is a function, a node or a workflow, got {body!r}"
            )
        if not self.inner.node_count():
            raise ConfigurationError(f"{self.kind} node {self._name!r}: workflow {self.inner.name()!r} has no nodes")
        self.inner.validate()
        return None, [Parameter(name) for name in self.inner.inputs if name not in own]


def _never(*_: object) -> None:
    raise AssertionError("a composite node is advanced, not called")


def _reference(source: Any, what: str, name: str) -> str:
    if isinstance(source, BaseNode):
        return source.name()
    if not isinstance(source, str) or not source:
        raise InputError(f"node {name!r}: {what} must be the name of a node or an input, got {source!r}")
    return source


def output_of(child: Run, name: str | None) -> Any:
    """The output of a run that is over; raises what made it fail."""
    if child.interrupted is not None:
        raise child.interrupted
    result = child.result_now()
    result.raise_for_failure()
    if name is not None:
        return result.get(name)
    sinks = child.lowered.sinks
    if len(sinks) == 1:
        return result.get(child.names[sinks[0]])
    states = result.states
    return {child.names[it]: result[child.names[it]] for it in sinks if states[child.names[it]] == "succeeded"}


class WorkflowNode(CompositeNode):
    __slots__ = ("output",)
    kind = "workflow"
    output: str | None

    def set_up(self, workflow: Workflow, inputs: Mapping[str, str | BaseNode] | None, output: str | None) -> None:
        if not isinstance(workflow, Workflow):
            raise ConfigurationError(f"workflow node {self._name!r}: it runs a Workflow, got {workflow!r}")
        _, found = self._set_body(workflow, (), "")
        names = [it.name() for it in workflow.nodes]
        if output is not None and output not in names:
            raise UnknownNameError(
                f"workflow node {self._name!r}: output names {output!r}, which is no node of workflow "
                f"{workflow.name()!r}{nearest(str(output), names)}"
            )
        self.output = output
        self._set_parameters(found, inputs, {})

    def begin(self, run: Run, number: int, inner: Lowered | None, given: dict[str, Any]) -> Steps:
        assert inner is not None
        assert self.inner is not None
        child = run.start_child(number, inner, given, self.inner.name())
        try:
            while not child.done():
                yield
            return output_of(child, self.output)
        finally:
            child.leave()


class LoopNode(CompositeNode):
    __slots__ = ("body", "max_iterations", "until")
    kind = "loop"
    body: Callable[..., Any] | None
    until: Callable[[Any], Any] | Comparison
    max_iterations: int

    def set_up(
        self,
        body: Any,
        until: Any,
        max_iterations: int,
        initial: str | BaseNode | None,
        bind: Mapping[str, str | BaseNode] | None,
    ) -> None:
        if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
            raise ConfigurationError(
                f"loop node {self._name!r}: max_iterations is a number from 1 on, got {max_iterations!r}"
            )
        self.max_iterations = max_iterations
        if callable(until) and is_async(until):
            raise ConfigurationError(f"loop node {self._name!r}: until must be a plain function, not `async def`")
        self.until = until if callable(until) else Comparison.of(until, f"loop node {self._name!r}: until")
        if callable(body) and not isinstance(body, BaseNode) and is_async(body):
            found, _ = parameters(body)
            first = found[0].name if found else ""
            body = function_node(body, "body", {first: "previous"} if first else None)
        self.body, found_list = self._set_body(body, ("previous", "iteration"), "what the iteration before brought")
        own = {} if initial is None else {_INITIAL: _reference(initial, "initial", self._name)}
        self._set_parameters(found_list, bind, own)

    def begin(self, run: Run, number: int, inner: Lowered | None, given: dict[str, Any]) -> Steps:
        value = given.pop(_INITIAL, None)
        until = self.until.holds if isinstance(self.until, Comparison) else self.until
        iteration = 0
        while True:
            if self.body is not None:
                value = self.body(value, **given)
            else:
                assert inner is not None
                assert self.inner is not None
                wanted = {"previous": value, "iteration": iteration, **given}
                inputs = {name: wanted[name] for name in inner.inputs}
                child = run.start_child(number, inner, inputs, self.inner.name())
                try:
                    while not child.done():
                        yield
                    value = output_of(child, None)
                finally:
                    child.leave()
            iteration += 1
            if until(value):
                run.stops[number] = "until", iteration
                return value
            if iteration >= self.max_iterations:
                run.stops[number] = "max_iterations", iteration
                return value
            if run.stop[0]:
                yield  # the run is stopping: this node is not handed out again


class MapNode(CompositeNode):
    __slots__ = ("body", "collect", "item_is_async", "limit")
    kind = "map"
    body: Callable[..., Any] | None
    collect: bool
    item_is_async: bool
    limit: int | None

    def set_up(
        self, over: Any, body: Any, limit: int | None, bind: Mapping[str, str | BaseNode] | None, on_error: str
    ) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= _LIMIT_MAX):
            raise ConfigurationError(f"map node {self._name!r}: limit is a number above 0, or None, got {limit!r}")
        if on_error not in ("fail", "collect"):
            raise ConfigurationError(f"map node {self._name!r}: on_error is 'fail' or 'collect', got {on_error!r}")
        self.limit = limit
        self.collect = on_error == "collect"
        self.body, found = self._set_body(body, ("item", "index"), "the item")
        self.item_is_async = self.body is not None and is_async(self.body)
        self._set_parameters(found, bind, {_OVER: _reference(over, "over", self._name)})

    def one_by_one(self) -> Workflow:
        """The body as a workflow, for executors whose limits hold for every call of a function."""
        if self.inner is not None:
            return self.inner
        assert self.body is not None
        first = parameters(self.body)[0][0].name
        made = Workflow(f"{self._name}: {self._name}")
        made.add(function_node(self.body, "*body", {first: "item"}))
        return made

    def items_of(self, given: dict[str, Any]) -> list[Any]:
        found = given.pop(_OVER)
        if isinstance(found, (list, tuple)):
            return list(found)
        if found is None or isinstance(found, (str, bytes, dict)) or not hasattr(found, "__iter__"):
            raise OutputError(
                f"map node {self._name!r} maps over {found!r:.80}, which is no list; let the node before it return one"
            )
        return list(found)

    def begin(self, run: Run, number: int, inner: Lowered | None, given: dict[str, Any]) -> Steps:
        items = self.items_of(given)
        if not items:
            return []
        if inner is not None:
            return (yield from self._runs(run, number, inner, given, items))
        live = self.limit or (LIVE_COROUTINES if self.item_is_async else 0)
        spread = run.start_spread(number, self, items, given, live)
        try:
            while not spread.done():
                yield
            return spread.outputs()
        finally:
            spread.leave()

    def _runs(self, run: Run, number: int, inner: Lowered, given: dict[str, Any], items: list[Any]) -> Steps:
        outputs: list[Any] = [None] * len(items)
        live: dict[int, Run] = {}
        at, name = 0, self._name
        wants_index = "index" in inner.inputs
        try:
            while at < len(items) or live:
                while at < len(items) and len(live) < (self.limit or LIVE_RUNS) and not run.stop[0]:
                    inputs = {"item": items[at], **given}
                    if wants_index:
                        inputs["index"] = at
                    live[at] = run.start_child(number, inner, inputs, name)
                    at += 1
                over = [i for i, child in live.items() if child.done()]
                for i in over:
                    child = live.pop(i)
                    child.leave()
                    try:
                        outputs[i] = output_of(child, None)
                    except Exception as error:
                        if not self.collect:
                            raise
                        outputs[i] = error
                if not over:
                    yield
            return outputs
        finally:
            for child in live.values():
                child.leave()


class ManyNode(CompositeNode):
    """`Executor.execute_many`: many runs of one workflow. Its output are their results."""

    __slots__ = ("count", "limit", "timeout")
    kind = "map"
    limit: int
    timeout: float | None
    count: Callable[[Any], None]

    @staticmethod
    def of(workflow: Workflow, limit: int | None, timeout: float | None, count: Callable[[Any], None]) -> ManyNode:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= _LIMIT_MAX):
            raise ConfigurationError(f"limit is a number of runs above 0, or None, got {limit!r}")
        node = ManyNode.__new__(ManyNode)
        node._name, node._id, node.options = "runs", "many", PLAIN
        node.inner, node.limit, node.timeout, node.count = workflow, limit or 1000, timeout, count
        node._set_parameters([], None, {_OVER: "inputs"})
        return node

    def begin(self, run: Run, number: int, inner: Lowered | None, given: dict[str, Any]) -> Steps:
        assert inner is not None
        assert self.inner is not None
        items: list[dict[str, Any]] = given[_OVER]
        results: list[Any] = [None] * len(items)
        live: dict[int, Run] = {}
        at = 0
        try:
            while at < len(items) or live:
                while at < len(items) and len(live) < self.limit and not run.stop[0]:
                    live[at] = run.start_child(number, inner, items[at], self.inner.name(), self.timeout)
                    at += 1
                over = [i for i, child in live.items() if child.done()]
                for i in over:
                    child = live.pop(i)
                    child.leave()
                    results[i] = child.result_now(looked_at=False)
                    self.count(results[i])
                if not over:
                    yield
            return results
        finally:
            for child in live.values():
                child.leave()
