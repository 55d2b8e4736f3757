"""A run: one execution of a workflow, from start to result."""

from __future__ import annotations

import sys
from contextvars import copy_context
from weakref import ref

from graphbit._ffi import check, ffi, lib
from graphbit._lane import ActiveRun
from graphbit._lower import UNREAD
from graphbit._values import NONE, decode, encode, pick
from graphbit.errors import InputError, RuntimeClosedError, RunTimeoutError, TemplateError
from graphbit.result import WorkflowResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any

    from graphbit._lane import Lane
    from graphbit._loop import LoopLane
    from graphbit._lower import Lowered
    from graphbit._queue import Core

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
        "_loop",
        "_on_over",
        "_result",
        "_told",
        "choices",
        "inputs",
        "lowered",
        "timeout_seconds",
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
        teller: Lane,
        pull: bool,
        loop: LoopLane | None,
        on_over: Callable[[WorkflowResult], None],
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
        self.values = lowered.initial + [inputs[name] for name in lowered.inputs]
        self.errors = {}
        self.choices = {}
        self.interrupted = None
        self.context = copy_context()
        self._caller = teller if pull else None
        self._loop = loop
        self._on_over = on_over
        self._told = False
        self._result: Callable[[], WorkflowResult | None] | None = None
        self._start(teller, keep_going)

    def _start(self, teller: Lane, keep_going: bool) -> None:
        core, lowered = self.core, self.lowered
        options = ffi.new("gb_run_options *")
        options.token = self.token
        options.flags = (_CONTINUE if keep_going else 0) | (_CALLER_PULLS if self._caller is not None else 0)
        queues = [teller.queue] if self._loop is None else [teller.queue, self._loop.queue]
        if None in queues:
            raise RuntimeClosedError("the graphbit runtime was shut down while a run was started")
        options.queue = queues[0]
        if self._loop is not None:
            options.loop_queue = queues[1]
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
                    kind, data = encode(self.inputs[name])
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
        if not self._told and lib.gb_run_is_over(self.handle):
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
        from graphbit.result import read_reports, state_name

        return {name: state_name(it.state) for name, it in zip(self.names, read_reports(self), strict=True)}

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
        from graphbit.result import read_reports

        return any(
            report.state < lib.GB_SUCCEEDED and isinstance(node, FunctionNode) and node.is_async
            for node, report in zip(self.lowered.nodes, read_reports(self), strict=True)
        )

    def _finished(self) -> WorkflowResult:
        # The result holds the run; the other way round there is only a weak hold, so that a result goes when its last user
        # does, and says so if it held a failure.
        result = self._result() if self._result is not None else None
        if result is None:
            result = WorkflowResult(self)
            self._result = ref(result)
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
            origins = self.lowered.passing.get(number)
            if origins is not None:  # a delay
                return self.passed_on(origins) if self._has_succeeded(number) else None
            out = ffi.new("gb_value *")
            check(lib.gb_run_value(self.handle, number, out), "reading an output")
            if out.kind == NONE:
                return None  # not remembered: it may be there later
            value = self.values[number] = decode(out.kind, bytes(ffi.buffer(out.ptr, out.len)))
        return value

    def _has_succeeded(self, node: int) -> bool:
        report = ffi.new("gb_node_report *")
        check(lib.gb_run_reports(self.handle, node, 1, report), "reading a report")
        return bool(report.state == lib.GB_SUCCEEDED)

    def passed_on(self, origins: list[int]) -> Any:
        """The output of a condition or delay: its predecessor's, or those of several by name."""
        if len(origins) == 1:
            return self.value(origins[0])
        return {self.names[it]: self.value(it) for it in origins} if origins else None

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
        from graphbit.result import read_reports

        succeeded = lib.GB_SUCCEEDED
        return {
            name: self.value(i)
            for i, (name, report) in enumerate(zip(self.names, read_reports(self), strict=True))
            if report.state == succeeded
        }

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
    if not pull and lowered.has_callbacks:
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
        )
    except BaseException:
        if pull:
            core.done_waiting(teller)
        raise
