"""The runtime as Python holds it: its threads that pull callbacks, its runs on their way, its beginning and end.

Three kinds of threads wait in the core, each on a lane of its own (see _lane.py): callers, callback threads, event loops.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import count
from os import getpid
from time import monotonic_ns, sleep
from weakref import WeakKeyDictionary

from graphbit._ffi import BATCH_MAX, INTERRUPTED, NULL, SHUTDOWN, TIMED_OUT, check, ffi, lib
from graphbit._lane import ActiveRun, Lane
from graphbit._surroundings import proxies, trust_store
from graphbit.errors import ConfigurationError, RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_THREAD: int = lib.GB_QUEUE_THREAD
_CALLER: int = lib.GB_QUEUE_CALLER
_RUN_OVER: int = lib.GB_ITEM_RUN_OVER

# Callback threads keep the interpreter's own stack size: a recursive key function at the default recursion limit needs it.
_THREAD_NAME = "graphbit-callback"


class Core:
    """The process's runtime, as Python holds it. One at a time; made by the first use, gone with `shutdown`."""

    def __init__(
        self,
        worker_threads: int,
        callback_threads: int,
        stack_bytes: int,
        connections: int,
        connections_per_origin: int,
    ) -> None:
        self._tokens = count(1)
        self.lanes: dict[int, Lane] = {}
        self.runs: dict[int, ActiveRun] = {}
        self.closed = False
        self.retired: list[Any] = []  # queues of lanes that ended with the runtime
        self.abandoned = False  # it is the parent process's
        self._process = getpid()
        self.virtual = False  # testing.virtual_time() is on
        self._janitor: Lane | None = None
        self.loops: WeakKeyDictionary[Any, Lane] = WeakKeyDictionary()  # _loop.py's lanes, by loop
        self.private_loop: Any = None
        self._local = threading.local()
        self.lock = threading.Lock()
        self.loops_lock = threading.Lock()
        options = ffi.new("gb_runtime_options *")
        options.worker_count = worker_threads
        options.callback_thread_max = callback_threads
        options.worker_stack_bytes = stack_bytes
        keep = []
        options.connections_max = connections
        options.connections_per_origin = connections_per_origin
        fields = options.ca_file, options.ca_path, options.http_proxy, options.https_proxy, options.no_proxy
        for field, text in zip(fields, (*trust_store(), *proxies()), strict=True):
            view = ffi.from_buffer("uint8_t[]", text.encode())
            keep.append(view)
            field.ptr, field.len = view, len(text.encode())
        handle = ffi.new("gb_runtime **")
        check(lib.gb_runtime_create(options, handle), "starting the runtime")
        self.handle: Any = handle[0]
        # Linux: none. Elsewhere Python's monotonic clock may count from another moment than the core's.
        self.skew_ns: int = 0 if sys.platform == "linux" else lib.gb_runtime_now(self.handle) - monotonic_ns()

    def is_foreign(self) -> bool:
        """Whether it is the parent process's. What `__del__` methods ask: in a forked child Python drops the locals of other
        threads before any hook of ours has run, and a lock of the core's may have been held at that moment."""
        return self.abandoned or getpid() != self._process

    def new_token(self) -> int:
        """Names a lane, a run, or whoever waits."""
        return next(self._tokens)

    # ---------------------------------------------------------------------------------------------- callback threads

    def start_thread(self, is_janitor: bool = False) -> Lane | None:
        """One more callback thread, as the core asked."""
        try:
            lane = self._listed(_THREAD)
        except RuntimeClosedError:
            return None  # whoever waits is told so by its own call
        if is_janitor:
            self._janitor = lane  # before it runs: the janitor is not told to end
        thread = threading.Thread(target=self._pull, args=(lane,), name=_THREAD_NAME, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads; those that there are go on
            if is_janitor:
                self._janitor = None
            lane.close()
            sleep(0.01)  # the core asks again as long as it needs one
            return None
        return lane

    def janitor(self) -> Lane:
        """The first callback thread's lane. There is one from here on; it is told of the ends of runs that nobody waits for."""
        with self.lock:
            if self._janitor is None:
                self.start_thread(is_janitor=True)
        if self._janitor is None:
            raise RuntimeClosedError("the graphbit runtime was shut down while a run was started")
        return self._janitor

    def _listed(self, kind: int) -> Lane:
        lane = Lane(self, kind)
        self.lanes[lane.token] = lane
        return lane

    def lend(self, lane: Lane, lender: int) -> None:
        queue = lane.queue
        if queue is not None and lib.gb_queue_lend(queue, lender):
            self.start_thread()

    def _pull(self, lane: Lane) -> None:
        news, queue = lane.news, lane.queue
        self._local.lane = lane
        while True:
            status = lib.gb_wait(queue, NULL, -1, news)
            if status == SHUTDOWN:
                break
            if status == INTERRUPTED:
                continue
            check(status, "waiting for callbacks")
            if news.start_thread:
                self.start_thread()
            for i in range(news.item_count):  # of runs that nobody waited for, see `janitor`
                gone = self.runs.pop(news.items[i].token, None)
                if gone is not None:
                    gone.over()
                gone = None
            if news.lender:
                lane.help(news.lender)
            if news.node_count:
                run = self.run_of(news.run_token)
                if run is not None:
                    lane.execute(run, lane.take_batch())
                    lane.work = None
                    # Before the next wait, not with it: while results go in somebody must hold the run, and a thread that
                    # waits must not.
                    lane.settle(run)
                    run = None
            if news.retire and lane is not self._janitor:
                break
        lane.close()

    def results(self, lane: Lane, run: ActiveRun) -> Any:
        """What the next gb_wait takes in."""
        lane.work = None
        with lane.sending:
            while len(lane.done) > BATCH_MAX:
                check(lib.gb_settle(lane.queue, lane.pack(run)), "taking in results")
            return lane.pack(run)

    # ------------------------------------------------------------------------------------------------------- callers

    def caller(self) -> Lane:
        """A lane for the calling thread to wait on; give it back with `done_waiting`. Nested waits have one each."""
        free: list[Lane] | None = getattr(self._local, "free", None)
        if free:
            return free.pop()
        lane = self._listed(_CALLER)
        outer = getattr(self._local, "lane", None)
        if outer is not None:
            lib.gb_queue_within(lane.queue, outer.queue)
        return lane

    def done_waiting(self, lane: Lane) -> None:
        if self.closed or lane.done:
            lane.close()
            return
        free = getattr(self._local, "free", None)
        if free is None:
            free = self._local.free = _Lanes()
        free.append(lane)

    def on_callback_thread(self) -> bool:
        """Whether this is a thread that others may wait for: one of those that run callbacks of any run."""
        return getattr(self._local, "lane", None) is not None

    def wait_over(
        self, lane: Lane, run: ActiveRun, timeout_ns: int, until: Callable[[Any], bool] | None = None
    ) -> bool:
        """Runs callbacks of `run` until it is over; False when the time was up first.

        The run was started with, or attached to, the lane's queue. With `until` it returns when that, called with each gb_item
        that arrives, returns True.
        """
        news, queue = lane.news, lane.queue
        finished = NULL
        deadline = None if timeout_ns < 0 else monotonic_ns() + timeout_ns
        try:
            while True:
                left = -1 if deadline is None else max(0, deadline - monotonic_ns())
                status = lib.gb_wait(queue, finished, left, news)
                finished = NULL
                if status == INTERRUPTED:
                    continue
                if status == TIMED_OUT:
                    return False
                if status != SHUTDOWN:
                    check(status, "waiting for a run")
                if news.start_thread:
                    self.start_thread()
                    news.start_thread = 0
                if news.node_count:
                    # Of the run itself, or of one that a node of it has started.
                    found = run if news.run_token == run.token else self.run_of(news.run_token)
                    if found is not None:
                        lane.execute(found, lane.take_batch())
                        if found is run:
                            finished = self.results(lane, run)
                        else:  # before the next wait: somebody must hold the run while results go in
                            lane.work = None
                            lane.settle(found)
                        interrupted = found.interrupted
                        found = None
                        if interrupted is not None:
                            if finished != NULL:
                                check(lib.gb_settle(queue, finished), "taking in results")
                            raise interrupted
                for i in range(news.item_count):
                    item = news.items[i]
                    if item.kind == _RUN_OVER and item.token == run.token if until is None else until(item):
                        if finished != NULL:
                            check(lib.gb_settle(queue, finished), "taking in results")
                        return True
                if status == SHUTDOWN:
                    raise RuntimeClosedError("the graphbit runtime was shut down while a run was waited for")
        finally:
            if news.start_thread:  # Ctrl-C came between: the core counts on it
                self.start_thread()
                news.start_thread = 0
            del run  # the error of a failed node holds the frames that were below it; they must not hold the run

    def wait_items(self, lane: Lane, on_item: Callable[[Any], bool]) -> None:
        """Waits until `on_item`, called with each gb_item that arrives on the lane's queue, returns True."""
        news, queue = lane.news, lane.queue
        while True:
            status = lib.gb_wait(queue, NULL, -1, news)
            if status == INTERRUPTED:
                continue
            if status == SHUTDOWN:
                raise RuntimeClosedError("the graphbit runtime was shut down while a call was waited for")
            check(status, "waiting for a call")
            over = False
            for i in range(news.item_count):
                over = on_item(news.items[i]) or over
            if over:
                return

    # ---------------------------------------------------------------------------------------------------------- runs

    def register(self, run: ActiveRun) -> None:
        """Keeps a run alive while it is on its way, whether or not anybody waits for it."""
        self.runs[run.token] = run

    def run_of(self, token: int) -> ActiveRun | None:
        run = self.runs.get(token)
        if run is not None and run.handle is None:
            run.open()
        return run

    # ------------------------------------------------------------------------------------------------------ the end

    def shutdown(self) -> None:
        if self.closed:
            return
        self.closed = True
        lib.gb_runtime_shutdown(self.handle)
        self.runs.clear()
        with self.lock:  # one that is being made is stopped too
            private_loop = self.private_loop
        if private_loop is not None:
            private_loop.stop()

    def abandon(self) -> None:
        """The process was forked and this is the child: nothing of the parent's runtime may be touched."""
        self.abandoned = self.closed = True
        self.lock = threading.Lock()  # another thread may have held it as the process was forked
        self.lanes.clear()
        self.runs.clear()

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None and self.closed and not self.is_foreign():
            for queue in self.retired:
                lib.gb_queue_destroy(queue)
            lib.gb_runtime_destroy(handle)


class _Lanes(list["Lane"]):
    """A thread's free lanes; closed when the thread ends."""

    def __del__(self) -> None:
        for lane in self:
            lane.close()


_current: Core | None = None
_make_lock = threading.Lock()
_settings = {
    "worker_threads": 0,
    "callback_threads": 0,
    "stack_bytes": 0,
    "connections": 0,
    "connections_per_origin": 0,
}
_hooked = False


def current() -> Core | None:
    """The runtime, if there is one."""
    return _current


def core() -> Core:
    """The runtime; the first use makes it."""
    found = _current
    return found if found is not None else _make()


def _make() -> Core:
    global _current, _hooked
    with _make_lock:
        if _current is None:
            made = Core(**_settings)
            if not _hooked:
                import atexit

                atexit.register(shutdown)
                _hooked = True
            _current = made
        return _current


def shutdown() -> None:
    """Stops the runtime; the next use makes a fresh one."""
    global _current
    with _make_lock:
        gone, _current = _current, None
    if gone is not None:
        gone.shutdown()
    processes = sys.modules.get("graphbit._process")
    if processes is not None:
        processes.shutdown()


def _forget() -> None:
    """In a forked child: the parent's threads are not there. Its runtime is left alone, the next use makes a new one."""
    global _current, _make_lock
    _make_lock = threading.Lock()
    gone, _current = _current, None
    if gone is not None:
        gone.abandon()


# Not with the first use: another thread may be at that, and hold the lock, as the process is forked.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def settings() -> dict[str, int]:
    """What `configure` was given; 0: the default."""
    return dict(_settings)


def configure(settings: dict[str, int]) -> None:
    """For the next runtime.

    Raises:
        ConfigurationError: there is one already.
    """
    with _make_lock:
        if _current is not None:
            raise ConfigurationError(
                "the runtime has started and its threads are made; call configure_runtime() before the first use, "
                "or after graphbit.shutdown()"
            )
        _settings.update(settings)
