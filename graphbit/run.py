"""A run: one execution of a workflow, from start to result."""

from __future__ import annotations

import sys
from contextvars import copy_context
from weakref import ref

from graphbit._ffi import check, ffi, lib
from graphbit._here import here
from graphbit._inside import RunInside
from graphbit._spread import Spread
from graphbit._values import encode
from graphbit.errors import InputError, RuntimeClosedError, RunTimeoutError
from graphbit.result import WorkflowResult, read_reports, state_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any

    from graphbit._composite import MapNode
    from graphbit._events import EventSink
    from graphbit._lane import Lane
    from graphbit._loop import LoopLane
    from graphbit._lower import Lowered
    from graphbit._queue import Core

_CONTINUE: int = lib.GB_RUN_CONTINUE
_CALLER_PULLS: int = lib.GB_RUN_CALLER_PULLS


class Run(RunInside):
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
        "_told",
        "keep_going",
    )

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
        self.stops = {}
        self.suspended = {}
        self.interrupted = None
        self.item_count = 0
        self._parent = parent
        self.context = copy_context() if parent is None else parent[0].context
        if parent is None and here.get() is not None:
            self.context.run(here.set, None)  # started inside of an async node: its nodes are not that one
        self.keep_going = keep_going
        self.sink = sink if parent is None else parent[0].sink
        self.within = -1 if parent is None else parent[0].visible_as(parent[1])
        self._limits = limits
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
            core = self.core
            if core.abandoned:  # in a forked child: it is over, and the parent's locks are not to be touched
                return self._finished()
            self._check_not_on_loop()
            lane, self._caller = self._caller, None
            if lane is None:
                lane = core.caller()
                check(lib.gb_run_attach(self.handle, lane.queue, self.token, 1), "waiting for a run")
            over = left = False
            try:
                over = core.wait_over(lane, self, -1 if timeout is None else max(0, int(timeout * 1e9)))
            except RuntimeClosedError:
                raise
            except BaseException:
                self.cancel()  # Ctrl-C, or an exit from inside a node
                left = True
                raise
            finally:
                if not over and not core.closed:
                    lib.gb_run_detach(self.handle, lane.queue)
                if left:
                    self._keep_until_over()
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
                if self.core.abandoned:
                    return self._finished()
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
        return {name: state_name(it.state) for name, it in self._visible(read_reports(self))}

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
        lowered = self.lowered
        return any(not report.is_final() and lowered.needs_loop(i) for i, report in enumerate(read_reports(self)))

    def _finished(self) -> WorkflowResult:
        # The result holds the run; the other way round there is only a weak hold, so that a result goes when its last user
        # does, and says so if it held a failure.
        result = self._result() if self._result is not None else None
        if result is None:
            result = WorkflowResult(self)
            self._result = ref(result)
        with self.core.lock:  # several threads may wait for one run: it is counted once
            first, self._told = not self._told, True
        self.close_suspended()  # afterwards: who puts something there looks whether the run was told of
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
        return Spread(self, node, it, items, given, live_max, self._loop)

    def leave(self) -> None:
        """Whoever started this run as a part of another needs it no more."""
        self._parent = None
        if self.done():
            self.core.runs.pop(self.token, None)
        else:
            self.cancel()
            self._keep_until_over()
        self._told = True
        self.close_suspended()

    def _keep_until_over(self) -> None:
        """Nobody waits any more: the run is kept until the core is through with it."""
        core = self.core
        if core.closed:
            core.runs.pop(self.token, None)
        else:
            check(lib.gb_run_attach(self.handle, core.janitor().queue, self.token, 0), "leaving a run")

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
                _, work = self.suspended.popitem()
            except KeyError:
                break
            work.close()

    def drop_suspended(self, key: tuple[int, int]) -> None:
        """This attempt of a composite does not go on."""
        work = self.suspended.pop(key, None)
        if work is not None:
            work.close()

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
    own: LoopLane | None = None  # of the event loop that runs in this thread
    if not pull and "asyncio" in sys.modules:
        from graphbit._loop import running_lane

        own = running_lane(core)
    loop: LoopLane | None = None
    if lowered.has_async:
        from graphbit._loop import private_lane

        loop = own if own is not None else private_lane(core)
    # Somebody is told of the end in any case: the run is kept until then, and no longer.
    teller: Lane = core.caller() if pull else own if own is not None else core.janitor()
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
