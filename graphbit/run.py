"""A run: one execution of a workflow, from start to result."""

from __future__ import annotations

import sys
from contextvars import copy_context
from weakref import ref

from graphbit._ffi import check, ffi, lib
from graphbit._ffi import NONE as NONE_FAILED
from graphbit._lane import ActiveRun
from graphbit._lower import UNREAD
from graphbit._plan import Plan, PlanBuilder
from graphbit._values import NONE, NUMBER, decode, encode, pick
from graphbit.context import _here
from graphbit.errors import (
    InputError,
    RunCancelledError,
    RuntimeClosedError,
    RunTimeoutError,
    TemplateError,
    add_note,
)
from graphbit.result import Report, WorkflowResult, native_error, read_reports, read_waits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any

    from graphbit._composite import MapNode, Steps
    from graphbit._events import EventSink
    from graphbit._lane import Lane, Step
    from graphbit._loop import LoopLane
    from graphbit._lower import Lowered
    from graphbit._process import Task
    from graphbit._queue import Core
    from graphbit.context import Outcome

_CONTINUE: int = lib.GB_RUN_CONTINUE
_CALLER_PULLS: int = lib.GB_RUN_CALLER_PULLS


class Run(ActiveRun):
    """A workflow on its way, as `Executor.start` returns it.

    ```python
    run = executor.start(workflow, {"topic": "bees"})
    result = run.wait()          # or: result = await run
    run.cancel()                 # from any thread
    ```
    """

    __slots__ = (
        "_caller",
        "_limits",
        "_loop",
        "_on_over",
        "_remaining",
        "_result",
        "_tasks",
        "_told",
        "choices",
        "inputs",
        "keep_going",
        "lowered",
        "stops",
        "suspended",
        "timeout_seconds",
        "within",
        "workflow_name",
    )

    core: Core
    lowered: Lowered
    inputs: dict[str, Any]
    choices: dict[str, tuple[str, ...]]

    def __init__(
        self,
        core: Core,
        lowered: Lowered,
        inputs: dict[str, Any],
        *,
        workflow_name: str,
        keep_going: bool,
        timeout_seconds: float | None,
        teller: Lane | None,
        pull: bool,
        loop: LoopLane | None,
        on_over: Callable[[WorkflowResult], None],
        limits: Any = None,
        sink: EventSink | None = None,
        parent: tuple[Run, int] | None = None,
    ) -> None:
        self.core = core
        self.cell = ffi.new("gb_run **")
        self.handle = None
        self.lowered = lowered
        self.inputs = inputs
        self.workflow_name = workflow_name
        self.timeout_seconds = timeout_seconds
        self.token = core.new_token()
        self.names = lowered.names
        self.steps = lowered.steps
        self.continuations = lowered.continuations
        self.policies = lowered.policies
        self.values = lowered.initial + [inputs[name] for name in lowered.inputs]
        self.errors = {}
        self.choices = {}
        self.stops: dict[int, tuple[str, int]] = {}
        """Of loops: why they stopped, and after how many iterations."""
        self.suspended: dict[int, tuple[int, Steps]] = {}
        """Composite nodes that wait for runs they started: which attempt, and what goes on."""
        self.interrupted = None
        self.context = copy_context() if parent is None else parent[0].context
        if parent is None and _here.get() is not None:
            self.context.run(_here.set, None)  # started inside of an async node: its nodes are not that one
        self.keep_going = keep_going
        self.sink = sink if parent is None else parent[0].sink
        self.within = -1 if parent is None else parent[0].visible_as(parent[1])
        self._limits = limits
        self._tasks: set[Task] = set()
        self._caller = teller if pull else None
        self._loop = loop
        self._on_over = on_over
        self._told = False
        self._result: Callable[[], WorkflowResult | None] | None = None
        self._start(teller, parent)

    def _start(self, teller: Lane | None, parent: tuple[Run, int] | None) -> None:
        core, lowered = self.core, self.lowered
        options = ffi.new("gb_run_options *")
        options.token = self.token
        options.flags = (_CONTINUE if self.keep_going else 0) | (_CALLER_PULLS if self._caller is not None else 0)
        for lane, field in ((teller, "queue"), (self._loop, "loop_queue")):
            if lane is not None:
                if lane.queue is None:
                    raise RuntimeClosedError("the graphbit runtime was shut down while a run was started")
                setattr(options, field, lane.queue)
        if parent is not None:
            options.parent, options.parent_node = parent[0].handle, parent[1]
        if self._limits is not None:
            options.limits = self._limits
        if self.sink is not None and parent is None:
            options.event_capacity = self.sink.open(self)
        if self.timeout_seconds is not None:
            options.timeout_ns = max(1, int(self.timeout_seconds * 1e9))
        keep: list[Any] = []
        options.input_count = len(lowered.inputs)
        if lowered.inputs:
            options.inputs = inputs = ffi.new("gb_value[]", len(lowered.inputs))
            keep.append(inputs)
            for i, name in enumerate(lowered.inputs):
                if not lowered.inserted_inputs[i]:
                    continue
                try:
                    kind, data = encode(self.inputs[name], lowered.inserted_inputs[i] == 2)
                except (TypeError, ValueError, RecursionError) as error:
                    raise InputError(
                        f"input {name!r} is inserted into a text, but {type(self.inputs[name]).__name__} "
                        f"is neither a string nor expressible as JSON ({error})"
                    ) from error
                view = ffi.from_buffer("uint8_t[]", data)
                keep.append(view)
                inputs[i].kind, inputs[i].ptr, inputs[i].len = kind, view, len(data)
        core.register(self)
        status = lib.gb_run_start(core.handle, lowered.plan.handle, options, self.cell)
        if status != 0:
            core.runs.pop(self.token, None)
            check(status, "starting a run")
        if self.handle is None:
            self.open()
        self._remaining = memoryview(ffi.buffer(lib.gb_run_remaining(self.handle), 4)).cast("I")

    # -------------------------------------------------------------------------------------------------------- waiting

    def wait(self, timeout: float | None = None) -> WorkflowResult:
        """`result = run.wait()`: returns when the run is over; meanwhile this thread runs callbacks of the run.

        Ctrl-C cancels the run.

        Args:
            timeout: seconds to wait at most. The run goes on when they are up.

        Raises:
            RunTimeoutError: the executor's `timeout_seconds` were up; it carries `.result`.
            TimeoutError: `timeout` was up first.
            RuntimeClosedError: the runtime was shut down meanwhile.
        """
        try:
            if self._told:
                return self._finished()
            self._check_not_forked()
            self._check_not_on_loop()
            core = self.core
            lane, self._caller = self._caller, None
            if lane is None:
                lane = core.caller()
                check(lib.gb_run_attach(self.handle, lane.queue, self.token, 1), "waiting for a run")
            over = False
            try:
                over = core.wait_over(lane, self, -1 if timeout is None else max(0, int(timeout * 1e9)))
            except RuntimeClosedError:
                raise
            except BaseException:
                self.cancel()  # Ctrl-C, or an exit from inside a node
                core.runs.pop(self.token, None)
                raise
            finally:
                if not over and not core.closed:
                    lib.gb_run_detach(self.handle, lane.queue)
                core.done_waiting(lane)
            if not over:
                raise TimeoutError(
                    f"the run of workflow {self.workflow_name!r} was not over within {timeout} s; it goes on"
                )
            return self._finished()
        finally:
            del self  # as wait_over

    def __await__(self) -> Generator[Any, None, WorkflowResult]:
        return self._await_over().__await__()

    async def _await_over(self) -> WorkflowResult:
        try:
            if not self._told:
                self._check_not_forked()
                from graphbit._loop import running_lane

                lane = running_lane(self.core)
                assert lane is not None
                try:
                    await lane.run_over(self)
                except BaseException:
                    self.cancel()  # whoever waited was cancelled; a RuntimeClosedError leaves nothing to cancel
                    raise
            return self._finished()
        finally:
            del self

    def done(self) -> bool:
        """`run.done()`: whether it is over."""
        if not self._told and self._remaining[0] == 0:
            self.core.runs.pop(self.token, None)  # nothing is to come: it goes when its last user does
            return True
        return self._told

    def cancel(self) -> None:
        """`run.cancel()`: stops the run, from any thread. Sockets are closed at once; what waits for the run gets its result.

        Python functions that are running cannot be stopped; what they return is dropped.
        """
        if self.handle is not None and not self.core.closed:
            for lane in list(self.core.lanes.values()):  # what has ended has ended, also where it was not sent yet
                work = lane.work
                # Not waited for: this may be a signal handler's call, on top of the very thread that sends.
                if work is not None and work[0] is self and lane.sending.acquire(blocking=False):
                    try:
                        lane.send_of(work)
                    finally:
                        lane.sending.release()
            lib.gb_run_cancel(self.handle)

    def states(self) -> dict[str, str]:
        """`run.states()`: every node's state at this moment: "blocked", "ready", "running", "succeeded", …"""
        from graphbit.result import state_name

        return {name: state_name(it.state) for name, it in self._visible(read_reports(self))}

    def _visible(self, reports: list[Report]) -> zip[tuple[str, Report]]:
        return zip(self.names[: self.lowered.visible], reports[: self.lowered.visible], strict=True)

    def _check_not_forked(self) -> None:
        if self.core.abandoned and not self.done():
            raise RuntimeClosedError(
                f"the run of workflow {self.workflow_name!r} was started by the process this one was forked from, "
                "and goes on there"
            )

    def _check_not_on_loop(self) -> None:
        if self._loop is None or self.done():
            return
        if self._loop.is_gone() and self._awaits_loop():
            self.cancel()  # what is left of its async functions will never run
            return
        from graphbit._loop import running_lane

        if running_lane(self.core) is self._loop:
            raise RuntimeError(
                "run.wait() on the event loop that runs the workflow's async functions would wait for itself; "
                "use `await run`, or executor.execute(), which brings a loop of its own"
            )

    def _awaits_loop(self) -> bool:
        from graphbit.node import FunctionNode

        return any(
            not report.is_final() and isinstance(node, FunctionNode) and node.is_async
            for node, report in zip(self.lowered.nodes, read_reports(self), strict=True)
        )

    def _finished(self) -> WorkflowResult:
        # The result holds the run; the other way round there is only a weak hold, so that a result goes when its last user
        # does, and says so if it held a failure.
        result = self._result() if self._result is not None else None
        if result is None:
            result = WorkflowResult(self)
            self._result = ref(result)
        self.close_suspended()
        with self.core.lock:  # several threads may wait for one run: it is counted once
            first, self._told = not self._told, True
        if first:
            self.core.runs.pop(self.token, None)
            self._on_over(result)
        if self.interrupted is not None:
            raise self.interrupted
        cause = result.cause
        if cause == lib.GB_CAUSE_TIMEOUT:
            result.looked_at()
            raise RunTimeoutError(
                f"workflow {self.workflow_name!r} was not over within {self.timeout_seconds} s; "
                "what was finished is in the exception's .result",
                result,
            )
        if cause == lib.GB_CAUSE_SHUTDOWN:
            result.looked_at()
            raise RuntimeClosedError(f"the graphbit runtime was shut down while workflow {self.workflow_name!r} ran")
        return result

    # --------------------------------------------------------------------------------------------------------- values

    def value(self, number: int) -> Any:
        """Value `number` as Python knows it: a node's output, None where it has none, or an input."""
        value = self.values[number]
        if value is UNREAD:
            if number in self.lowered.passing:  # a delay
                return self.passed_on(number) if self._has_succeeded(number) else None
            out = ffi.new("gb_value *")
            check(lib.gb_run_value(self.handle, number, out), "reading an output")
            if out.kind == NONE:
                return None  # not remembered: it may be there later
            data = b"" if out.kind == NUMBER else bytes(ffi.buffer(out.ptr, out.len))
            value = self.values[number] = decode(out.kind, data, out.len)
        return value

    def _has_succeeded(self, node: int) -> bool:
        report = ffi.new("gb_node_report *")
        check(lib.gb_run_reports(self.handle, node, 1, report), "reading a report")
        return bool(report.state == lib.GB_SUCCEEDED)

    def passed_on(self, number: int) -> Any:
        """The output of a condition or delay: its predecessor's, or those of several by name."""
        origins = self.lowered.passing[number]
        reached = self._reached(number)
        if len(origins) == 1:
            return self.value(origins[0]) if origins[0] in reached else None
        return {self.names[it]: self.value(it) if it in reached else None for it in origins} if origins else None

    def _reached(self, number: int) -> set[int]:
        """What stands before `number`, through conditions and delays that have succeeded: the others brought nothing."""
        found: set[int] = set()
        stack = list(self.lowered.before[number])
        while stack:
            it = stack.pop()
            if it not in self.lowered.passing:
                found.add(it)
            elif self._has_succeeded(it):
                stack += self.lowered.before[it]
        return found

    def part(self, number: int, path: str) -> Any:
        """What `path` finds in value `number`."""
        value = self.value(number)
        if not path or value is None:
            return value
        try:
            return pick(value, path)
        except LookupError as error:
            raise TemplateError(f"{self.value_name(number)}: {error}") from None

    def value_name(self, number: int) -> str:
        if number < len(self.names):
            return f"node {self.names[number]!r}"
        return f"input {self.lowered.inputs[number - len(self.names)]!r}"

    def outputs(self) -> dict[str, Any]:
        """Outputs of the nodes that have succeeded so far."""
        succeeded = lib.GB_SUCCEEDED
        return {
            name: self.value(i)
            for i, (name, report) in enumerate(self._visible(read_reports(self)))
            if report.state == succeeded
        }

    def part_if_succeeded(self, number: int, path: str) -> Any:
        """What `path` finds in value `number`; None where that is the output of a node that has not succeeded."""
        origins = self.lowered.passing.get(number)
        if number < len(self.names) and not self._has_succeeded(number):
            return None
        if origins is not None and len(origins) == 1 and not self._has_succeeded(origins[0]):
            return None
        return self.part(number, path)

    def error_of(self, node: int) -> BaseException:
        """What a node's last attempt failed with. Made once: it is the same object every time."""
        error = self.errors.get(node)
        if error is None or node in self.lowered.timed:
            found = native_error(self, node, error)
            if found is not error:
                add_note(found, f"raised by node {self.names[node]!r}")
                error = self.errors[node] = found
        assert error is not None
        return error

    # ------------------------------------------------------------------------------------------- what nodes ask for

    def attempt_of(self, node: int) -> int:
        report = ffi.new("gb_node_report *")
        check(lib.gb_run_reports(self.handle, node, 1, report), "reading a report")
        return int(report.attempts)

    def seconds_left(self, node: int) -> float | None:
        """To the run, or to the attempt that `node` is at, whichever is less."""
        now = lib.gb_runtime_now(self.core.handle)
        left: list[float] = []
        if self.timeout_seconds is not None:
            summary = ffi.new("gb_run_summary *")
            lib.gb_run_summary_read(self.handle, summary)
            left.append(self.timeout_seconds - (now - summary.started_ns) / 1e9)
        timeout = self.lowered.nodes[node].options.timeout
        if timeout is not None:
            started = read_waits(self, node, 1)[0].last_started_ns or read_reports(self)[node].started_ns
            left.append(timeout - (now - started) / 1e9)
        return max(0.0, min(left)) if left else None

    def outcomes_before(self, node: int) -> dict[str, Outcome]:
        """What became of a node's predecessors, by name."""
        from graphbit.context import Outcome
        from graphbit.result import state_name

        reports = read_reports(self)
        before = self.lowered.before[node] if self.lowered.before else []
        if not before:
            edges = self.lowered.edges
            before = [edges[i] for i in range(0, len(edges), 2) if edges[i + 1] == node]
        found: dict[str, Outcome] = {}
        for it in before:
            state = reports[it].state
            value = self.value(it) if state == lib.GB_SUCCEEDED else None
            error = self.error_of(it) if state == lib.GB_FAILED else None
            found[self.names[it]] = Outcome(state_name(state), value, error)
        return found

    def emit(self, node: int, kind: str, value: Any) -> None:
        """Puts something into the event stream, if there is one."""
        if self.sink is not None:
            self.sink.emit(self.visible_as(node), kind, value)

    def visible_as(self, node: int) -> int:
        """The node of the outermost run that `node` of this one is, or is a part of."""
        return node if self.within < 0 else self.within

    def wait_for_task(self, task: Task) -> Any:
        """The value of what runs in a worker process; stopped when nobody waits for it any more."""
        self._tasks.add(task)
        try:
            if self.stop[0]:
                task.cancel()
            return task.result()
        finally:
            self._tasks.discard(task)

    # ------------------------------------------------------------------------------------------- runs that nodes start

    def start_child(
        self, node: int, lowered: Lowered, inputs: Mapping[str, Any], name: str, timeout_seconds: float | None = None
    ) -> Run:
        """A run for composite node `node` of this one; it ends with that node."""
        return Run(
            self.core,
            lowered,
            dict(inputs),
            workflow_name=name,
            keep_going=self.keep_going,
            timeout_seconds=timeout_seconds,
            teller=None,
            pull=False,
            loop=self._loop,
            on_over=_nobody_counts,
            limits=self._limits,
            parent=(self, node),
        )

    def start_spread(self, node: int, it: MapNode, items: list[Any], given: dict[str, Any], live_max: int) -> Spread:
        """The items of map `node`, each a call of its body."""
        return Spread(self, node, it, items, given, live_max)

    def leave(self) -> None:
        """Whoever started this run as a part of another needs it no more."""
        self.core.runs.pop(self.token, None)
        if not self.done():
            self.cancel()
        self._told = True
        self.close_suspended()

    def is_left(self) -> bool:
        return self._told

    def result_now(self, looked_at: bool = True) -> WorkflowResult:
        """The result of a run that is over and is part of another, or of many."""
        result = WorkflowResult(self)
        if looked_at:
            result.looked_at()
        return result

    def close_suspended(self) -> None:
        """The run is over: composites that waited do not go on. Any thread, any number of times."""
        while self.suspended:
            try:
                _, (_, work) = self.suspended.popitem()
            except KeyError:
                break
            work.close()
        for task in list(self._tasks):
            task.cancel()

    def over(self) -> None:
        """Nobody waited for the run, and it has ended."""
        self.close_suspended()

    def __repr__(self) -> str:
        return f"Run(workflow={self.workflow_name!r}, {'over' if self.done() else 'running'})"

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is None or self.core.is_foreign():
            return
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.close()
        if not self._told and lib.gb_run_is_over(handle):
            self._told = True
            self._on_over(WorkflowResult(self))  # nobody waited: a failure is logged as the result goes
        self.handle = None
        lib.gb_run_release(handle)


def _nobody_counts(_: WorkflowResult) -> None:
    """Runs that are part of another are not counted by the executor."""


class Spread(ActiveRun):
    """The items of a map over a function: handed out like nodes, without a plan, a report or an edge for each."""

    __slots__ = ("_collect", "_remaining", "_told", "_within", "count", "suspended")

    def __init__(
        self, parent: Run, node: int, it: MapNode, items: list[Any], given: dict[str, Any], live_max: int
    ) -> None:
        assert it.body is not None
        core = parent.core
        self.core = core
        self.cell = ffi.new("gb_run **")
        self.handle = None
        self.token = core.new_token()
        self.count = len(items)
        self.names = _Items(it.name())
        function = it.body
        if given:
            body = function

            def function(item: Any) -> Any:  # type: ignore[misc]
                return body(item, **given)

        self.steps = _Calls(function, self.count)
        self.continuations = _Nowhere()
        self.policies = {}
        self.values = [None] * self.count + items
        self.errors = {}
        self.interrupted = None
        self.context = parent.context
        self._collect = it.collect
        self._told = False
        self.sink = parent.sink
        self._within = parent.visible_as(node)
        options = ffi.new("gb_run_options *")
        options.token = self.token
        options.flags = _CONTINUE if it.collect else 0
        options.parent, options.parent_node = parent.handle, node
        options.item_count, options.item_live_max = self.count, live_max
        if it.item_is_async:
            loop = parent._loop
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
        return None

    def outcomes_before(self, node: int) -> dict[str, Outcome]:
        return {}

    def over(self) -> None:
        """It is waited for by its map."""

    def leave(self) -> None:
        """Its map needs it no more."""
        self.core.runs.pop(self.token, None)
        if not self.done() and not self.core.closed:
            lib.gb_run_cancel(self.handle)

    def outputs(self) -> list[Any]:
        """What the items brought, in their order; raises what the first of those that failed raised."""
        summary = ffi.new("gb_run_summary *")
        lib.gb_run_summary_read(self.handle, summary)
        if self.interrupted is not None:
            raise self.interrupted
        if not self._collect and summary.first_failed != NONE_FAILED:
            raise self.errors[summary.first_failed]
        if summary.cause not in (0, lib.GB_CAUSE_FAILURE):
            raise RunCancelledError("the items of a map were cancelled")
        outputs = self.values[: self.count]
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

    def __len__(self) -> int:
        return 1 << 31


class _Calls:
    """The step of every item: the body, called with the item, which stands `count` places behind its output."""

    __slots__ = ("_count", "_function")

    def __init__(self, function: Callable[..., Any], count: int) -> None:
        self._function = function
        self._count = count

    def __getitem__(self, item: int) -> Step:
        return self._function, (self._count + item,), None

    def __len__(self) -> int:
        return self._count


class _Nowhere:
    """No item has a continuation."""

    __slots__ = ()

    def __getitem__(self, item: int) -> int:
        return NONE_FAILED

    def __len__(self) -> int:
        return 1 << 31


_empty: Plan | None = None


def _no_plan() -> Any:
    """The plan of runs of items: it has no nodes."""
    global _empty
    if _empty is None:
        _empty = PlanBuilder().build()
    return _empty.handle


def start(
    core: Core,
    lowered: Lowered,
    inputs: Mapping[str, Any],
    *,
    workflow_name: str,
    keep_going: bool,
    timeout_seconds: float | None,
    pull: bool,
    on_over: Callable[[WorkflowResult], None],
    limits: Any = None,
    sink: EventSink | None = None,
) -> Run:
    """Starts a run. With `pull` the calling thread is going to wait for it right away."""
    here: LoopLane | None = None  # of the event loop that runs in this thread
    if not pull and "asyncio" in sys.modules:
        from graphbit._loop import running_lane

        here = running_lane(core)
    loop: LoopLane | None = None
    if lowered.has_async:
        from graphbit._loop import private_lane

        loop = here if here is not None else private_lane(core)
    # Somebody is told of the end in any case: the run is kept until then, and no longer.
    teller: Lane = core.caller() if pull else here if here is not None else core.janitor()
    if (not pull and lowered.has_callbacks) or lowered.has_alone:
        core.janitor()  # a callback thread
    try:
        return Run(
            core,
            lowered,
            dict(inputs),
            workflow_name=workflow_name,
            keep_going=keep_going,
            timeout_seconds=timeout_seconds,
            teller=teller,
            pull=pull,
            loop=loop,
            on_over=on_over,
            limits=limits,
            sink=sink,
        )
    except BaseException:
        if pull:
            core.done_waiting(teller)
        raise
