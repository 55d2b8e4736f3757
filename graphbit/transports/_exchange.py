"""One gb_exchange as Python holds it: started, told of news, read, given back. Knows nothing of httpx.

    exchange = Exchange(core)
    exchange.start(spec, lane=core.caller())          # or loop_lane=running_lane(core)
    while not exchange.status and not exchange.is_over:
        exchange.wait()                                 # or: await exchange.arrives()
    exchange.take()                                     # pieces of the body so far

Whoever is told of news looks (`look`): what the core has goes into this object, and an exchange that is over gives its handle and
its lane back at once. News that was told and brings nothing is harmless.

A handle may be given back by any thread, at any moment: whoever is about to use it holds `_lock`, and whoever waits on the lane has
said so in `_is_waited_for` under that lock. Such a one is told by the core that the exchange was cancelled, and gives back himself.
"""

from __future__ import annotations

from threading import RLock, get_ident
from weakref import ref

from graphbit._ffi import OK, check, ffi, lib
from graphbit.errors import RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from graphbit._lane import Lane
    from graphbit._loop import LoopLane
    from graphbit._queue import Core

_BYTES = ffi.typeof("uint8_t[]")
_CELL = ffi.typeof("gb_exchange **")
_REPORT = ffi.typeof("gb_exchange_report *")
_NUMBER = ffi.typeof("uint32_t *")
_INVALID: int = lib.GB_INVALID_ARGUMENT
_CANCELLED: int = lib.GB_FAILURE_CANCELLED
_CLOSED = "the response was closed before it was read"
_new, _from, _buffer = ffi.new, ffi.from_buffer, ffi.buffer
_start, _report_of, _write, _release, _cancel = (
    lib.gb_exchange_start,
    lib.gb_exchange_read,
    lib.gb_exchange_write,
    lib.gb_exchange_release,
    lib.gb_exchange_cancel,
)


class WrongLengthError(Exception):
    """A body that is longer, or shorter, than was announced."""


class Exchange:
    """One HTTP exchange. Used by one thread or one event loop at a time; closed and collected by any."""

    __slots__ = (
        "__weakref__",
        "_cell",
        "_core",
        "_future",
        "_has_news",
        "_is_busy",
        "_is_closed",
        "_is_waited_for",
        "_lane",
        "_left",
        "_lock",
        "_loop_lane",
        "_pieces",
        "_report",
        "_thread",
        "_token",
        "_waiter",
        "cause",
        "detail",
        "failure",
        "has_room",
        "head",
        "is_over",
        "phase",
        "retry_after",
        "status",
    )

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = RLock()  # a signal handler may close what its thread is looking at
        self._is_busy = False
        self._token = core.new_token()
        self._cell: Any = _new(_CELL)  # the core writes the handle there: wherever Ctrl-C strikes, it is found
        self._report: Any = _new(_REPORT)
        self._lane: Lane | None = None
        self._loop_lane: LoopLane | None = None
        self._thread = 0
        self._future: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._left = -1  # of a body of known length, what is still to be written
        self._has_news = False
        self._is_waited_for = False
        self._is_closed = False
        self.status = 0
        """Once the head is there."""
        self.head = b""
        self.has_room = True
        self.is_over = False
        self.failure = 0
        self.phase = 0
        self.detail = ""
        self.retry_after = 0.0
        """Seconds until the circuit breaker lets the next request try."""
        self.cause: BaseException | None = None
        """Why it is over, where the core has nothing to do with it."""

    # ------------------------------------------------------------------------------------------------------ the start

    def start(self, spec: Any, *, lane: Lane | None = None, loop_lane: LoopLane | None = None) -> None:
        """Sends it. News comes to one of the lanes.

        Raises:
            ValueError: a header or the target is none.
        """
        core = self._core
        self._left = spec.body_bytes
        if loop_lane is not None:
            self._loop_lane = loop_lane
            queue = loop_lane.queue
            loop_lane.listeners[self._token] = ref(self)
        else:
            assert lane is not None
            self._lane, self._thread = lane, get_ident()
            queue = lane.queue
        if queue is None:
            raise RuntimeClosedError("the graphbit runtime was shut down while a request was started")
        status = _start(core.handle, spec, queue, self._token, self._cell)
        if status != OK:
            self._leave()
            if status == _INVALID:
                raise ValueError("a header or the request target contains NUL")
            check(status, "starting a request")

    def write(self, piece: bytes, last: bool = False) -> None:
        """The next piece of the body; then see `has_room`.

        Raises:
            WrongLengthError: the body is longer, or ends shorter, than was announced.
        """
        if self._left >= 0:
            self._left -= len(piece)
            if self._left < 0 or (last and self._left):
                raise WrongLengthError(f"Too {'much' if self._left < 0 else 'little'} data for declared Content-Length")
        with self._lock:
            handle = self._cell[0]
            if not handle:
                return
            room = _new(_NUMBER)
            check(_write(handle, (_from(_BYTES, piece), len(piece)), last, room), "sending a body")
            self.has_room = bool(room[0])
            self.look()

    def wants_body(self) -> bool:
        """Whether more of the request's body is of use: a server that has refused it is not sent the rest. One who has all of
        it already is no reason to leave its iterator where it stands."""
        return self.status < 300 and not self.failure and self.cause is None

    # ------------------------------------------------------------------------------------------------------- the news

    def look(self) -> None:
        """Takes over what there is."""
        self._has_news = False
        with self._lock:
            handle = self._cell[0]
            if not handle or self._is_busy:
                return
            self._is_busy = True
            try:
                self._read(handle)
            finally:
                self._is_busy = False
            if self._is_closed and (not self.is_over or self.failure == _CANCELLED):
                self._end(RuntimeError(_CLOSED))
            elif self.is_over:
                self._leave()

    def _read(self, handle: Any) -> None:
        report = self._report
        _report_of(handle, report)
        body = report.body
        length = body.len
        if length:
            self._pieces.append(_buffer(body.ptr, length)[:])
        if not self.status:
            self.status = report.status
            if self.status:
                head = report.head
                self.head = _buffer(head.ptr, head.len)[:]
        self.has_room = report.room != 0
        if report.over:
            self.failure = report.failure
            if self.failure:
                self.phase = report.phase
                detail = report.detail
                self.detail = _buffer(detail.ptr, detail.len)[:].decode("utf-8", "replace") if detail.len else ""
                self.retry_after = report.retry_after_ms / 1000
            self.is_over = True

    def take(self) -> list[bytes]:
        """The pieces of the body that have come since the last time."""
        if self._has_news:
            self.look()
        pieces, self._pieces = self._pieces, []
        return pieces

    def told(self, is_last: bool = False) -> None:
        """On the loop: there is news; `is_last`: the runtime is gone."""
        self._has_news = True
        if is_last and not self.is_over:
            self.look()
            self._give_up("the graphbit runtime was shut down while a request was waited for")
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def _give_up(self, words: str) -> None:
        with self._lock:
            if not self.is_over:
                self._end(RuntimeClosedError(words))

    def _on_item(self, item: Any) -> bool:
        return bool(item.token == self._token)

    def _check_here(self) -> None:
        if self._core.is_foreign():
            self.is_over = True
            self.cause = RuntimeClosedError("this exchange belongs to the parent process; begin a new one here")

    def wait(self) -> None:
        """This thread waits for news, and looks."""
        self._check_here()
        if self.is_over:
            return
        waits = False
        try:
            with self._lock:
                lane = self._lane
                if self.is_over:
                    return
                if lane is None:
                    raise RuntimeError("a response of an AsyncClient is read on its event loop")
                if self._is_waited_for:
                    raise RuntimeError("two threads cannot read one response")
                waits = self._is_waited_for = True
            self._core.wait_items(lane, self._on_item)
        except RuntimeClosedError as error:
            self._is_waited_for = waits = False
            self.look()
            self._give_up(str(error))
        finally:
            if waits:
                self._is_waited_for = False
        self.look()

    async def arrives(self) -> None:
        """The task waits for news, and looks."""
        self._check_here()
        if self.is_over:
            return
        lane = self._loop_lane
        if lane is None:
            raise RuntimeError("a response of a Client is read by plain code")
        if not self._has_news:
            if self._future is not None:
                raise RuntimeError("two tasks cannot read one response")
            from asyncio import get_running_loop

            loop = get_running_loop()
            if lane.is_gone() or lane.loop is not loop:
                raise RuntimeError("this response belongs to another event loop: what is left of it is read there")
            future = self._future = loop.create_future()
            try:
                await future
            finally:
                self._future = None
        self.look()

    # -------------------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """Closes the connection, unless all has come. Any thread, any number of times."""
        self._is_closed = True
        if self.is_over or self._core.is_foreign():
            return
        with self._lock:
            if self._is_waited_for:
                if self._cell[0]:
                    _cancel(self._cell[0])  # whoever waits is told, and gives back what there is
            elif not self._is_busy and not self.is_over:
                self._end(RuntimeError(_CLOSED))

    def _end(self, cause: Exception) -> None:
        self.failure = 0
        self.cause = cause
        self.is_over = True
        self._leave()

    def _leave(self) -> None:
        """Gives the handle and the lane back; under the lock, or before anybody else knows of them."""
        core, cell = self._core, self._cell
        if core.is_foreign():
            return  # all of it is the parent process's, locks included
        loop_lane, self._loop_lane = self._loop_lane, None
        if loop_lane is not None:
            loop_lane.listeners.pop(self._token, None)
        handle = cell[0]
        if handle:
            cell[0] = ffi.NULL
            _release(handle)
        lane, self._lane = self._lane, None
        if lane is not None:
            if self._thread == get_ident():
                core.done_waiting(lane)
            else:  # closed by another thread, whose lane it must not become
                lane.close()
        future = self._future
        if future is not None and loop_lane is not None and not loop_lane.is_gone() and not future.done():
            try:
                loop_lane.loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:
                pass  # the loop was closed meanwhile

    def __del__(self) -> None:
        if not getattr(self, "is_over", True):
            self.close()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
