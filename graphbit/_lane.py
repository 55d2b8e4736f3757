"""Lanes: how callbacks get to Python threads, and how their results get back.

The core calls nothing back. Threads wait in it with the GIL released and come out with a batch of callbacks to run; their
results go in with the next call, or before it. Three kinds of threads wait, each on a queue of its own (a *lane*):

- a caller, in `run.wait()`: it runs callbacks of its own run meanwhile, so a chain needs no hand-over between threads;
- a callback thread: runs callbacks of any run. There are as many as blocked callbacks make necessary;
- an event loop, for `async def` functions and for whoever awaits: see _loop.py.

A batch on its way, in steps:

1. `gb_wait` hands out node numbers; they become a Python list, last first, and `work` is set to (run, list).
2. The thread pops a number (atomic, with the GIL and without), runs the function, keeps its value in `run.values` and
   appends what the core must know to `done`.
3. A node may have a continuation: the next callback of a linear segment. It is run at once; the core enters it when it takes
   in the result of the first. That is why results of one lane must go in in order: whoever sends them holds `sending`.
4. When the list is empty, or `done` is long, the results go in.

A slow callback must not hold up what was claimed behind it, nor the results before it. The core sees a thread that has been
out for too long and wakes one parked callback thread with the lane's token (`gb_news.lender`): that thread sends the
lender's results, then pops from its list, and, before it starts a callback, asks for the next helper if more is left.
"""

from __future__ import annotations

import threading
from array import array
from time import monotonic_ns
from types import CoroutineType

from graphbit._ffi import BATCH_MAX, EXTRA, NONE, NULL, check, ffi, lib
from graphbit._here import enter, leave
from graphbit.errors import add_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from typing import Any, Protocol, TypeVar

    from graphbit.policy import RetryPolicy

    # function, where its arguments come from, what to make of its value. Arguments: none, or the numbers of values, or a
    # function that gathers them; an unremarkable value is kept in `values` and nothing more.
    Step = tuple[Callable[..., Any], Any, Callable[..., "Settled"] | None]
    Of = TypeVar("Of", covariant=True)

    class Row(Protocol[Of]):
        """One of something for each node: a list, or what makes it when it is asked for."""

        def __getitem__(self, node: int, /) -> Of: ...

    class Home(Protocol):
        """What lanes and runs need of the runtime."""

        handle: Any
        abandoned: bool
        closed: bool
        retired: list[Any]
        skew_ns: int
        lanes: dict[int, Lane]

        def new_token(self) -> int: ...
        def is_foreign(self) -> bool: ...
        def lend(self, lane: Lane, lender: int) -> None: ...


_SUCCEEDED: int = lib.GB_SUCCEEDED
_FAILED: int = lib.GB_FAILED
_CANCELLED: int = lib.GB_CANCELLED
_READY: int = lib.GB_READY
_VALUE_NONE: int = lib.GB_VALUE_NONE


class Settled:
    """What the core must know of a callback beyond "it succeeded"."""

    __slots__ = ("attempt", "chosen", "data", "kind", "retry", "state")

    def __init__(
        self,
        state: int,
        kind: int = _VALUE_NONE,
        data: bytes = b"",
        chosen: list[int] | None = None,
        attempt: int = 0,
        retry: bool = False,
    ) -> None:
        self.state = state
        self.kind = kind
        self.data = data
        self.chosen = chosen
        self.attempt = attempt
        """Of a node that was handed out alone: a result that comes too late is dropped by it."""
        self.retry = retry
        """A failure that the node's policy tries again, if any attempts are left."""


FAILURE = Settled(_FAILED)
RETRY = Settled(_FAILED, retry=True)
GIVEN_UP = Settled(_CANCELLED)
_TAKE_BACK = Settled(_READY)


class ActiveRun:
    """A run as far as pulling needs to know it. run.Run is what users see of it."""

    __slots__ = (
        "__weakref__",
        "cell",
        "context",
        "continuations",
        "core",
        "errors",
        "handle",
        "interrupted",
        "item_count",
        "names",
        "policies",
        "sink",
        "steps",
        "stop",
        "token",
        "values",
    )

    core: Home
    cell: Any  # gb_run **, filled by gb_run_start before anything starts
    handle: Any  # gb_run, or None until `open`
    token: int
    context: Context
    names: Row[str]
    steps: Row[Step]
    continuations: Row[int]
    values: list[Any]  # outputs of nodes, then inputs, as Python objects
    errors: dict[int, BaseException]
    policies: dict[int, RetryPolicy]  # of callbacks that may be tried again
    sink: Any  # stream.EventSink where somebody watches the run, else None
    stop: memoryview  # not 0: no further callback begins
    interrupted: BaseException | None
    item_count: int  # of a map over a function: its items are handed out as if they were nodes; else 0

    def open(self) -> None:
        """Takes the handle from its cell. A puller may come to this before the thread that starts the run has returned."""
        handle = self.cell[0]
        self.stop = memoryview(ffi.buffer(lib.gb_run_stop_flag(handle), 1)).cast("B")
        self.handle = handle

    def fail(self, node: int, error: BaseException) -> None:
        # Our own frames would be noise to the reader.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("graphbit."):
            trace = trace.tb_next
        BaseException.with_traceback(error, trace)
        add_note(error, f"raised by node {self.names[node]!r}")
        self.errors[node] = error

    def over(self) -> None:
        """The run has ended, and nobody waits for it who would see to what is left."""

    def has_given_up(self, node: int, attempt: int) -> bool:
        """Whether the core no longer waits for this attempt of `node`."""
        report = ffi.new("gb_node_report *")
        check(lib.gb_run_reports(self.handle, node, 1, report), "reading a report")
        return bool(report.state != lib.GB_RUNNING or report.attempts != attempt)

    def interrupt(self, error: BaseException) -> None:
        """The program is to end: stops the run; whoever waits for it gets `error`."""
        self.interrupted = error
        lib.gb_run_cancel(self.handle)


class Lane:
    """One thread's side of a queue."""

    __slots__ = (
        "__weakref__",
        "at",
        "attempt",
        "begins",
        "begins_in",
        "core",
        "done",
        "finished",
        "kept",
        "news",
        "nodes_in",
        "nodes_out",
        "queue",
        "running",
        "sending",
        "since",
        "times",
        "times_in",
        "token",
        "work",
    )

    def __init__(self, core: Home, kind: int) -> None:
        self.core = core
        self.token = core.new_token()
        self.queue: Any = None
        handle = ffi.new("gb_queue **")
        check(lib.gb_queue_create(core.handle, kind, self.token, handle), "making a queue")
        self.queue = handle[0]
        self.news: Any = ffi.new("gb_news *")
        self.finished: Any = ffi.new("gb_finished *")
        self.nodes_out = memoryview(ffi.buffer(self.news.nodes)).cast("I")
        self.nodes_in = memoryview(ffi.buffer(self.finished.nodes)).cast("I")
        self.begins_in = memoryview(ffi.buffer(self.finished.began_ns)).cast("Q")
        self.times_in = memoryview(ffi.buffer(self.finished.ended_ns)).cast("Q")
        self.finished.skew_ns = core.skew_ns
        self.done: list[tuple[int, Settled] | int] = []
        self.times: list[int] = []
        """When each of `done` ended. Appended to before `done` is, so that it is never the shorter one."""
        self.since = 0
        """When the first of them began; each other began when the one before it ended, unless `begins` tells otherwise."""
        self.begins: list[int] | None = None
        self.sending = threading.Lock()
        self.work: tuple[ActiveRun, list[int]] | None = None
        self.kept: list[Any] = []
        self.running: ActiveRun | None = None
        self.at = -1
        """The node whose function this thread is in, and which run's."""
        self.attempt = 0
        """Which attempt that is, where it was handed out alone."""

    def close(self) -> None:
        self.core.lanes.pop(self.token, None)
        queue, self.queue = self.queue, None
        if queue is None or self.core.is_foreign():
            return
        if self.core.closed:
            self.core.retired.append(queue)  # somebody may be about to name it to the core; it goes with the runtime
        else:
            lib.gb_queue_destroy(queue)

    # ------------------------------------------------------------------------------------------ results on their way in

    def pack(self, run: ActiveRun) -> Any:
        """`done` as a gb_finished, or NULL; under `sending`, at most one batch at a time."""
        done = self.done
        if not done:
            return NULL
        number = min(len(done), BATCH_MAX)
        batch, times = done[:number], self.times[:number]
        del done[:number], self.times[:number]
        finished = self.finished
        finished.run = run.handle
        finished.count = number
        extras = 0
        keep: list[Any] = []
        plain: list[int] = []
        for entry in batch:
            if isinstance(entry, int):
                plain.append(entry)
                continue
            node, settled = entry
            plain.append(node | EXTRA)
            out = finished.settled[extras]
            extras += 1
            out.state = settled.state
            out.retry = settled.retry
            out.attempt = settled.attempt
            out.value.kind = settled.kind
            if settled.kind != _VALUE_NONE:
                view = ffi.from_buffer("uint8_t[]", settled.data)
                keep.append(view)
                out.value.ptr = view
                out.value.len = len(settled.data)
            chosen = settled.chosen
            out.chosen_count = len(chosen) if chosen else 0
            if chosen:
                numbers = ffi.new("uint32_t[]", chosen)
                keep.append(numbers)
                out.chosen = numbers
        self.nodes_in[:number] = array("I", plain)
        self.times_in[:number] = array("Q", times)
        if self.begins is None:
            self.begins_in[0] = self.since
            self.begins_in[1:number] = self.times_in[: number - 1]
            self.since = times[-1]
        else:
            self.begins_in[:number] = array("Q", self.begins[:number])
            del self.begins[:number]
        finished.settled_count = extras
        self.kept = keep  # until the next pack: the core copies what it keeps
        return finished

    def settle(self, run: ActiveRun) -> None:
        """Sends everything in `done`. Any thread."""
        with self.sending:
            while self.done and (queue := self.queue) is not None:  # None: the runtime has ended, and the run with it
                check(lib.gb_settle(queue, self.pack(run)), "taking in results")

    def send_of(self, work: tuple[ActiveRun, list[int]]) -> None:
        """Sends everything in `done` if it is still of this batch; under `sending`. Any other thread."""
        while self.done and self.work is work and (queue := self.queue) is not None:
            check(lib.gb_settle(queue, self.pack(work[0])), "taking in results")

    # ------------------------------------------------------------------------------------------------------- running

    def take_batch(self) -> list[int]:
        """The batch that gb_wait handed out, last first."""
        batch: list[int] = self.nodes_out[: self.news.node_count].tolist()
        batch.reverse()
        return batch

    def execute(self, run: ActiveRun, batch: list[int]) -> None:
        """Runs a batch; results stand in `done`, or are sent already."""
        with self.sending:  # `done` is of the run in `work`: a helper that comes late must not send it as another's
            self.work = run, batch
        self.attempt = self.news.attempt
        self.since = monotonic_ns()
        enter(self)
        try:
            if self.attempt:
                self.run_alone(run, batch.pop(), self.attempt)
            elif run.item_count and run.sink is None:
                self.run_items(run, batch)
            else:
                self.run_callbacks(run, batch, 0)
        finally:
            leave()
            del run  # see run_callbacks

    def run_items(self, run: ActiveRun, batch: list[int]) -> None:
        """The same for the items of a map over a function: one function, one argument, nothing behind it."""
        function: Any = run.steps[0][0]
        values, stop, count = run.values, run.stop, run.item_count
        append, ended, clock = self.done.append, self.times.append, monotonic_ns
        copy, pop = run.context.copy, batch.pop
        outer, self.running = self.running, run
        try:
            while batch:
                try:
                    item = pop()
                except IndexError:  # a helper took the last one
                    return
                if stop[0]:
                    ended(clock())
                    append((item, _TAKE_BACK))
                    continue
                self.at = item
                try:
                    value = copy().run(function, values[count + item])
                    if value.__class__ is CoroutineType:
                        raise _never_awaited(value)
                    values[item] = value
                    ended(clock())
                    append(item)
                except BaseException as error:
                    ended(clock())
                    if isinstance(error, (KeyboardInterrupt, SystemExit)):
                        self.settle(run)
                        append((item, GIVEN_UP))
                        run.interrupt(error)
                        return
                    run.fail(item, error)
                    append((item, FAILURE))
        finally:
            self.at, self.running = -1, outer
            function = value = None
            del run, values, outer  # see run_callbacks

    def run_callbacks(self, run: ActiveRun, batch: list[int], lender: int) -> None:
        """Pops and runs until the batch is empty. For a helper, `lender` is the token of the lane whose batch it is."""
        steps, values, stop, after, policies = run.steps, run.values, run.stop, run.continuations, run.policies
        done = self.done
        append, ended, clock = done.append, self.times.append, monotonic_ns
        copy = run.context.copy  # each node gets the run's context for itself
        pop = batch.pop
        watched = run.sink is not None  # what has ended is told before anything else begins
        outer, self.running = self.running, run
        asked = False
        function: Any
        value: Any
        arguments: Any
        function = value = arguments = finish = settled = None
        try:
            while True:
                try:
                    node = pop()
                except IndexError:
                    return
                if lender and batch and not asked:
                    asked = True  # that one asks for the one after it
                    self.core.lend(self, lender)
                while True:
                    if stop[0]:
                        ended(clock())
                        append((node, _TAKE_BACK))
                        break
                    function, arguments, finish = steps[node]
                    self.at = node
                    try:
                        if arguments is None:
                            value = copy().run(function)
                        elif arguments.__class__ is tuple:
                            if len(arguments) == 1:
                                value = copy().run(function, values[arguments[0]])
                            else:
                                value = copy().run(function, *[values[i] for i in arguments])
                        else:
                            arguments, keywords = arguments(run)
                            value = copy().run(function, *arguments, **keywords)
                        if value.__class__ is CoroutineType:
                            raise _never_awaited(value)
                        if finish is None:
                            values[node] = value
                            ended(clock())
                            append(node)
                        else:
                            settled = finish(run, node, value)
                            ended(clock())
                            append((node, settled))
                    except BaseException as error:
                        ended(clock())
                        if isinstance(error, (KeyboardInterrupt, SystemExit)):
                            # Not the node's failure: the program is to end. The run is cancelled, its waiter gets the exception.
                            self.settle(run)  # what ended before it has ended
                            append((node, GIVEN_UP))
                            run.interrupt(error)
                            return
                        run.fail(node, error)
                        append((node, RETRY if node in policies and policies[node].matches(error) else FAILURE))
                        break
                    if lender or watched or len(done) >= BATCH_MAX:
                        self.settle(run)
                    node = after[node]
                    if node == NONE:
                        break
                if lender:
                    self.settle(run)
        finally:
            self.at, self.running = -1, outer
            # A failed node's error holds its frames, and through them this one: it must not hold the run, which holds the error.
            del run, steps, values, outer
            function = value = arguments = finish = settled = None

    def run_alone(self, run: ActiveRun, node: int, attempt: int) -> None:
        """A callback that was handed out by itself: it may be given up in the middle, and then what it brings is dropped."""
        function, arguments, finish = run.steps[node]
        outer, self.running, self.at = self.running, run, node
        value: Any = None
        settled: Settled | None = None
        given: list[Any] = []
        keywords: dict[str, Any] = {}
        try:
            if run.stop[0]:
                settled = Settled(_READY, attempt=attempt)
                return
            if arguments.__class__ is tuple:
                given = [run.values[i] for i in arguments]
            elif arguments is not None:
                given, keywords = arguments(run)
            value = run.context.copy().run(function, *given, **keywords)
            if value.__class__ is CoroutineType:
                raise _never_awaited(value)
            if run.has_given_up(node, attempt):
                settled = Settled(_CANCELLED, attempt=attempt)
            elif finish is None:
                run.values[node] = value
                settled = Settled(_SUCCEEDED, attempt=attempt)
            else:
                settled = finish(run, node, value)
                settled.attempt = attempt
        except (KeyboardInterrupt, SystemExit) as error:
            settled = Settled(_CANCELLED, attempt=attempt)
            run.interrupt(error)
        except BaseException as error:
            policy = run.policies.get(node)
            settled = Settled(_FAILED, attempt=attempt, retry=policy is not None and policy.matches(error))
            if not run.has_given_up(node, attempt):
                run.fail(node, error)
        finally:
            assert settled is not None
            self.times.append(monotonic_ns())
            self.done.append((node, settled))
            self.at, self.running = -1, outer
            del run, function, arguments, finish, value, outer, given, keywords  # see run_callbacks

    def help(self, lender: int) -> None:
        """Runs what is left of another lane's batch."""
        lane = self.core.lanes.get(lender)
        work = lane.work if lane is not None else None
        if lane is None or work is None:
            return
        run, batch = work
        enter(self)
        try:
            with lane.sending:
                lane.send_of(work)
            self.since = monotonic_ns()
            self.attempt = 0
            self.run_callbacks(run, batch, lender)
            self.settle(run)
        finally:
            leave()
            del run, work  # see run_callbacks


def _never_awaited(value: Any) -> TypeError:
    value.close()
    return TypeError(
        f"{value.__qualname__}() returned a coroutine although its node was made from a plain function; "
        "make the node from the `async def` function itself"
    )
