"""Event loops as pullers: the callbacks that are `async def`, and whoever awaits a run or a call.

One lane for each loop: the loop watches the queue's descriptor, which is readable while there is news, and takes everything
at once. A loop without `add_reader` (Windows' proactor) gets a thread that waits in its place. `execute` outside any loop uses
a private loop on a thread of its own, made for the first `async def` node.

How the functions are run: _runners.py.
"""

from __future__ import annotations

import asyncio
import threading
import weakref

from graphbit._ffi import INTERRUPTED, NULL, OK, SHUTDOWN, check, lib
from graphbit._lane import ActiveRun
from graphbit._queue import Core
from graphbit._runners import Runners
from graphbit.errors import RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LOOP: int = lib.GB_QUEUE_LOOP
# Seconds that cancelled async functions have for their cleanup when the runtime ends.
_PATIENCE = 3
_RUN_STOPPING: int = lib.GB_ITEM_RUN_STOPPING
_NODE_OVER: int = lib.GB_ITEM_NODE_OVER
_EXCHANGE: int = lib.GB_ITEM_EXCHANGE


class LoopLane(Runners):
    """An event loop's side of its queue. All methods run on the loop, unless they say otherwise."""

    __slots__ = ("_loop", "_thread", "listeners", "waiters")

    core: Core

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(core, _LOOP)
        self._loop = weakref.ref(loop)  # the loop holds the lane; the other way round neither would ever go
        self.waiters: dict[int, Callable[[Any], None]] = {}
        """By token: what to call with the gb_item that carries it, once."""
        self.listeners: dict[int, weakref.ref[Any]] = {}
        """By token: whose `told` to call for each item that carries it. Whoever is in here takes himself out."""
        self._thread: threading.Thread | None = None
        try:
            loop.add_reader(lib.gb_queue_descriptor(self.queue), self.on_readable)
        except NotImplementedError:
            self._thread = threading.Thread(
                target=_wait_for, args=(weakref.ref(self), loop), name="graphbit-loop-waiter", daemon=True
            )
            self._thread.start()

    def __del__(self) -> None:
        self.close()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop()
        assert loop is not None, "a lane is used on its own loop"
        return loop

    def is_gone(self) -> bool:
        """Whether the loop was closed: nothing will run on it any more. Any thread."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    # ------------------------------------------------------------------------------------------------------ news out

    def on_readable(self) -> None:
        news = self.news
        while self.queue is not None:
            status = lib.gb_wait(self.queue, NULL, 0, news)
            if status == SHUTDOWN:
                return self._shut_down()
            if status != OK:
                return  # nothing there, or a signal: the descriptor stays readable while there is news
            if news.start_thread:
                self.core.start_thread()
            more = news.more
            items = [_copy(news.items[i]) for i in range(news.item_count)]
            self.take(news.run_token, self.take_batch(), news.attempt, items)
            if not more:
                return

    def take(self, run_token: int, nodes: list[int], attempt: int, items: list[Any]) -> None:
        for item in items:
            if item.kind == _RUN_STOPPING:
                self.cancel_tasks(item.token)
                continue
            if item.kind == _NODE_OVER:
                self.give_up(item.token, item.failure)
                continue
            if item.kind == _EXCHANGE:
                listener = self.listeners.get(item.token)
                exchange = None if listener is None else listener()
                if exchange is not None:
                    exchange.told()
                continue
            waiter = self.waiters.pop(item.token, None)
            if waiter is not None:
                waiter(item)
            else:
                gone = self.core.runs.pop(
                    item.token, None
                )  # a run that was started here, whether or not anybody waits for it
                if gone is not None:
                    gone.over()
                gone = None
        if nodes:
            run = self.core.run_of(run_token)
            if run is not None:
                self.begin(run, nodes, attempt)

    def take_news(self) -> None:
        if self._thread is None:
            self.on_readable()

    def _shut_down(self) -> None:
        if self._thread is None:
            self.loop.remove_reader(lib.gb_queue_descriptor(self.queue))
        waiters, self.waiters = self.waiters, {}
        for waiter in waiters.values():
            waiter(None)
        listeners, self.listeners = self.listeners, {}
        for listener in listeners.values():
            exchange = listener()
            if exchange is not None:
                exchange.told(is_last=True)
        self.close()

    # ------------------------------------------------------------------------------------------------------- waiting

    def expect(self, token: int) -> asyncio.Future[Any]:
        """A future for the gb_item that will carry `token`."""
        future: asyncio.Future[Any] = self.loop.create_future()

        def arrived(item: Any) -> None:
            if future.done():
                return
            if item is None:
                future.set_exception(RuntimeClosedError("the graphbit runtime was shut down while it was waited for"))
            else:
                future.set_result(item)

        self.waiters[token] = arrived
        return future

    async def run_over(self, run: ActiveRun) -> None:
        """Returns when the run is over."""
        if self.queue is None:
            raise RuntimeClosedError("the graphbit runtime was shut down while a run was waited for")
        token = self.core.new_token()
        future = self.expect(token)
        check(lib.gb_run_attach(run.handle, self.queue, token, 0), "waiting for a run")
        await future


class _Item:
    """A gb_item that outlives the next gb_wait. `text` stays the call's."""

    __slots__ = ("failure", "kind", "length", "ptr", "token")

    def __init__(self, item: Any) -> None:
        self.kind: int = item.kind
        self.token: int = item.token
        self.failure: int = item.failure
        self.ptr = item.text.ptr
        self.length: int = item.text.len


_copy = _Item


def lane_of(core: Core, loop: asyncio.AbstractEventLoop) -> LoopLane:
    """The loop's lane; made at its first use. On the loop's thread."""
    lane = core.loops.get(loop)
    if lane is None:
        with core.loops_lock:  # other loops' threads may be here too
            core.loops[loop] = lane = LoopLane(core, loop)
    assert isinstance(lane, LoopLane)
    return lane


def running_lane(core: Core) -> LoopLane | None:
    """The lane of the event loop that runs in this thread, if one does."""
    loop = asyncio._get_running_loop()
    return None if loop is None else lane_of(core, loop)


class PrivateLoop:
    """A loop on a thread of its own, for `async def` nodes of runs that no loop waits for."""

    def __init__(self, core: Core) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = False
        try:
            self.lane = lane_of(core, self._loop)  # the loop does not run yet: this thread may touch it
        except BaseException:
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="graphbit-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            while not self._stopped:
                try:
                    self._loop.run_forever()
                except (KeyboardInterrupt, SystemExit):
                    pass  # of a node: whoever waits for its run gets it; the loop goes on for the others
        finally:
            pending = asyncio.all_tasks(self._loop)
            if pending:  # cancelled with their runs; what they clean up is theirs to finish
                self._loop.run_until_complete(asyncio.wait(pending, timeout=_PATIENCE))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _end(self) -> None:
        self._stopped = True
        self._loop.stop()

    def stop(self) -> None:
        if threading.current_thread() is self._thread:
            self._end()
            return
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(timeout=5)


def private_lane(core: Core) -> LoopLane:
    """The private loop's lane; its thread is started by the first use."""
    with core.lock:
        if core.private_loop is None:
            if core.closed:
                raise RuntimeClosedError("the graphbit runtime was shut down while a run was started")
            core.private_loop = PrivateLoop(core)
    lane: LoopLane = core.private_loop.lane
    return lane


def _wait_for(lane_ref: weakref.ref[LoopLane], loop: asyncio.AbstractEventLoop) -> None:
    """On a thread of its own: waits where the loop cannot."""
    lane = lane_ref()
    while lane is not None and lane.queue is not None and not loop.is_closed():
        news = lane.news
        status = lib.gb_wait(lane.queue, NULL, 200_000_000, news)
        if status == SHUTDOWN:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lane._shut_down)
            return
        if status == OK:
            if news.start_thread:
                lane.core.start_thread()
            items = [_copy(news.items[i]) for i in range(news.item_count)]
            token, nodes, attempt = news.run_token, lane.take_batch(), news.attempt
            try:
                loop.call_soon_threadsafe(lane.take, token, nodes, attempt, items)
            except RuntimeError:
                return  # closed meanwhile: nobody is there to be told
        elif status != INTERRUPTED and status != lib.GB_TIMED_OUT:
            check(status, "waiting for callbacks")
        lane = None  # the lane goes when its loop does
        lane = lane_ref()
