"""Keeps calls on their way: a few at a time, the next one starts when one ends. No task and no thread for a call.

    pump = Pump(config, plan, request, prompts, …)
    pump.wait()             on this thread
    await pump              on the running event loop

Both ways share all but the waiting. A call sits in a slot from its start to its end; `handles` is an array that the core
itself writes the handle into, so that wherever an exception strikes (Ctrl-C too) `stop` finds what must be given back.
Giving back a call that is on its way closes its socket. Each handle is given back once: its place is cleared first.

What the core says of a call that was given back is not heard: its token is no longer in `active`.
"""

from __future__ import annotations

from time import monotonic_ns

from graphbit._ffi import NULL, check, ffi, lib
from graphbit._queue import core as current_core
from graphbit._reply import request_error
from graphbit.errors import RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Sequence
    from logging import Logger
    from typing import Any

    from graphbit._plan import Plan
    from graphbit._queue import Core
    from graphbit.llm.config import LlmConfig

    Read = Callable[[Any], object]  # makes the result of a gb_reply

_BYTES = ffi.typeof("uint8_t[]")
_TEXT: int = lib.GB_VALUE_TEXT
_JSON: int = lib.GB_VALUE_JSON
_NONE: int = lib.GB_VALUE_NONE
_CANCELLED: int = lib.GB_FAILURE_CANCELLED


class Stats:
    """What has become of a client's calls. Any thread."""

    __slots__ = ("_lock", "cancelled", "duration_ns", "failed", "succeeded")

    def __init__(self) -> None:
        import threading

        self._lock = threading.RLock()  # a stream that the collector finds is counted here, wherever it strikes
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self.succeeded = self.failed = self.cancelled = self.duration_ns = 0

    def ended(self, ok: bool, duration_ns: int) -> None:
        with self._lock:
            if ok:
                self.succeeded += 1
            else:
                self.failed += 1
            self.duration_ns += duration_ns

    def given_up(self, count: int) -> None:
        with self._lock:
            self.cancelled += count

    def read(self) -> tuple[int, int, int, int]:
        """succeeded, failed, cancelled, nanoseconds of those that ended by themselves."""
        with self._lock:
            return self.succeeded, self.failed, self.cancelled, self.duration_ns


def call_values(kind: int, options: Sequence[bytes | None]) -> tuple[Any, list[Any]]:
    """The values of a call, as gb_value[]: the payload's place, of this kind, and the options as JSON, None where absent. And what
    must live as long as they do."""
    values = ffi.new("gb_value[]", 1 + len(options))
    values[0].kind = kind
    buffers: list[Any] = []
    for i, option in enumerate(options, 1):
        if option is None:
            continue  # zeroed: GB_VALUE_NONE
        value, buffer = values[i], ffi.from_buffer(_BYTES, option)
        value.kind, value.ptr, value.len = _JSON, buffer, len(option)
        buffers.append(buffer)
    return values, buffers


def call_error(config: LlmConfig, reply: Any, name: str) -> Exception:
    """What a failed call, of which `reply` is the gb_reply, raises."""
    if reply.failure == _CANCELLED:  # not by us: we give back what we cancel, and hear no more of it
        return RuntimeClosedError(f"{name} was given up: the graphbit runtime was shut down")
    return request_error(reply, name, key_variable=config.row().key_variable, secret=config.secret())


class Pump:
    """Some calls of one kind. Used once, by one thread or loop.

    Args:
        payloads: what differs from call to call, value 0 of the request.
        options: the other values, as JSON; None: absent.
        kind: GB_VALUE_TEXT or GB_VALUE_JSON, of the payloads.
        limit: so many at a time.
        read: makes a result of a reply; None: its text is the result.
        names: what call `i` is called in an error.
        keep_errors: they are results as well; else the first one ends everything.
        log: each call's end is logged.
    """

    __slots__ = (
        "_active",
        "_arrived",
        "_buffers",
        "_config",
        "_core",
        "_error",
        "_future",
        "_group",
        "_handles",
        "_keep_errors",
        "_kind",
        "_left",
        "_log",
        "_names",
        "_next",
        "_out",
        "_payloads",
        "_plan",
        "_queue",
        "_read",
        "_reply",
        "_request",
        "_stats",
        "_values",
        "_waiters",
        "results",
    )

    def __init__(
        self,
        config: LlmConfig,
        plan: Plan,
        request: int,
        payloads: Sequence[str | bytes],
        *,
        kind: int,
        options: Sequence[bytes | None],
        limit: int,
        read: Read | None,
        names: Callable[[int], str],
        stats: Stats | None,
        keep_errors: bool = False,
        log: bool = False,
    ) -> None:
        count = len(payloads)
        slots = min(limit, count)
        self._core: Core | None = None  # that of the moment when it is waited for
        self._config = config
        self._plan = plan
        self._request = request
        self._payloads = payloads
        self._kind = kind
        self._read = read
        self._names = names
        self._stats = stats
        self._keep_errors = keep_errors
        self._log: Logger | None = None
        if log:
            from logging import getLogger

            self._log = getLogger("graphbit.llm")
        self.results: list[Any] = [None] * count
        """In the order of the payloads."""
        self._next = 0
        self._left = count
        self._error: BaseException | None = None
        self._active: dict[int, tuple[int, int, int]] = {}  # token -> slot, index, when it started
        self._handles = ffi.new("gb_call *[]", slots)
        self._out = [self._handles + i for i in range(slots)]
        self._values, self._buffers = call_values(kind, options)
        self._reply: Any = None
        self._group = 0  # what takes turns with other batches where it waits
        self._queue: Any = NULL
        self._waiters: dict[int, Callable[[Any], None]] | None = None
        self._arrived: Callable[[Any], None] | None = None
        self._future: asyncio.Future[None] | None = None

    # -------------------------------------------------------------------------------------------------------- waiting

    def wait(self) -> list[Any]:
        """Runs all calls, on this thread, and returns the results."""
        core = self._core = current_core()
        lane = core.caller()
        ended = self._ended
        try:
            self._queue = lane.queue
            if not self._begin():
                core.wait_items(lane, lambda item: ended(item.token, item.failure, item.text.ptr, item.text.len))
        finally:
            self.stop()
            core.done_waiting(lane)
        return self._finished()

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        from graphbit._loop import running_lane

        core = self._core = current_core()
        lane = running_lane(core)
        if lane is None:
            raise RuntimeError("this needs a running asyncio event loop; without one use the client's plain methods")
        future: asyncio.Future[None] = lane.loop.create_future()
        try:
            self._queue = lane.queue
            self._waiters = lane.waiters
            self._future = future
            self._arrived = self._on_item
            if not self._begin():
                yield from future
        finally:
            self.stop()
        return self._finished()

    def _on_item(self, item: Any) -> None:
        """News of a call, on the loop; None: there will be none any more."""
        if item is None:
            self._fail(RuntimeClosedError("the graphbit runtime was shut down while a call was waited for"))
            over = True
        else:
            over = self._ended(item.token, item.failure, item.ptr, item.length)
        if over and self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _finished(self) -> list[Any]:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback holds this pump
        return self.results

    # ------------------------------------------------------------------------------------------------------- the calls

    def _begin(self) -> bool:
        """Starts as many as may run at once. True: everything is over already."""
        assert self._core is not None
        self._group = self._core.new_token()
        try:
            for slot in range(len(self._out)):
                self._start(slot)
        except Exception as error:
            self._fail(error)
        return self._over()

    def _start(self, slot: int) -> None:
        index = self._next
        self._next = index + 1
        payload = self._payloads[index]
        data = payload.encode() if payload.__class__ is str else payload
        buffer = ffi.from_buffer(_BYTES, data)
        value = self._values[0]
        value.ptr, value.len = buffer, len(data)
        core = self._core
        assert core is not None
        token = core.new_token()
        self._active[token] = (slot, index, monotonic_ns())
        if self._waiters is not None:
            self._waiters[token] = self._arrived  # type: ignore[assignment]
        values = self._values
        status = lib.gb_call_start(
            core.handle,
            self._plan.handle,
            self._request,
            values,
            len(values),
            0,
            self._group,
            self._queue,
            token,
            self._out[slot],
        )
        if status:
            del self._active[token]
            if self._waiters is not None:
                self._waiters.pop(token, None)
            check(status, "starting a call")

    def _ended(self, token: int, failure: int, text: Any, length: int) -> bool:
        """A call is over. True: all of them are."""
        found = self._active.pop(token, None)
        if found is None:
            return self._over()
        slot, index, started = found
        handles = self._handles
        handle = handles[slot]
        try:
            if failure:
                error = call_error(self._config, self._reply_of(handle), self._names(index))
                if self._keep_errors:
                    self.results[index] = error
                else:
                    self._fail(error)
            elif self._read is None:
                self.results[index] = str(ffi.buffer(text, length), "utf-8", "replace") if length else ""
            else:
                self.results[index] = self._read(self._reply_of(handle))
            handles[slot] = NULL
            lib.gb_call_release(handle)
            self._left -= 1
            duration_ns = monotonic_ns() - started
            if self._stats is not None:
                self._stats.ended(not failure, duration_ns)
            if self._log is not None:
                said = f"failed: {error}" if failure else "succeeded"
                self._log.debug("%s %s, %.1f ms", self._names(index), said, duration_ns / 1e6)
            if self._next < len(self._payloads) and self._error is None:
                self._start(slot)
        except Exception as error:  # no memory, or the runtime is closing: told to whoever waits
            self._fail(error)
        return self._over()

    def _over(self) -> bool:
        return self._left == 0 or self._error is not None

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error

    def _reply_of(self, handle: Any) -> Any:
        if self._reply is None:
            self._reply = ffi.new("gb_reply *")
        check(lib.gb_call_reply(handle, self._reply), "reading a reply")
        return self._reply

    def stop(self) -> None:
        """Gives back what is still on its way, and so closes its connections. Any number of times."""
        active, waiters = self._active, self._waiters
        if waiters is not None:
            for token in active:
                waiters.pop(token, None)
        if active and self._stats is not None:
            self._stats.given_up(len(active))
        active.clear()
        self._arrived = self._future = None
        if self._core is None or self._core.is_foreign():
            return  # the handles are the parent process's
        handles = self._handles
        for slot in range(len(handles)):
            handle = handles[slot]
            if handle:
                handles[slot] = NULL
                lib.gb_call_release(handle)
