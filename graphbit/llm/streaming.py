"""TextStream: a model's answer while it is written."""

from __future__ import annotations

from collections import deque
from threading import get_ident
from time import monotonic_ns
from weakref import ref

from graphbit._ffi import check, ffi, lib
from graphbit._queue import core as current_core
from graphbit.errors import RuntimeClosedError
from graphbit.llm._pump import call_error, call_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterator, Sequence
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from graphbit._lane import Lane
    from graphbit._loop import LoopLane
    from graphbit._plan import Plan
    from graphbit._queue import Core
    from graphbit.llm._pump import Stats
    from graphbit.llm.config import LlmConfig
    from graphbit.llm.messages import LlmResponse, LlmUsage

_TEXT: int = lib.GB_DELTA_TEXT
_CALL_OVER: int = lib.GB_ITEM_CALL_OVER
_AT_ONCE = 256  # pieces that are taken from the core in one go


class TextStream:
    """The pieces of an answer, as they come.

    ```python
    for piece in client.stream("Why is the sky blue?"):
        print(piece, end="", flush=True)

    async with client.stream("Why is the sky blue?") as stream:
        async for piece in stream:
            print(piece, end="", flush=True)
    print(stream.response.usage.total_tokens)
    ```

    The request is sent with the first piece that is asked for. Waiting costs no thread but the one that waits, and none on an
    event loop. Who reads slowly slows the server down: what it has sent and nobody has taken is bounded. Leaving early
    (`close`, the end of `with`, or dropping the stream) closes the connection at once. A stream is read once, by one thread or one
    event loop.

    Raises:
        RequestError: and its kinds, as `LlmClient` says; from whichever piece it happens at. What came before was delivered, and
            stands in `text`. Nothing is tried again once a piece was delivered. An answer that ends before the model said that
            it was done is an error, however politely the connection was closed.
    """

    def __init__(
        self,
        config: LlmConfig,
        plan: Plan,
        request: int,
        kind: int,
        payload: bytes,
        options: Sequence[bytes | None],
        name: str,
        stats: Stats,
    ) -> None:
        self._config = config
        self._plan = plan
        self._request = request
        self._name = name
        self._stats = stats
        self._values, buffers = call_values(kind, options)
        buffer = ffi.from_buffer("uint8_t[]", payload)
        self._values[0].ptr, self._values[0].len = buffer, len(payload)
        self._buffers = [*buffers, buffer]  # until it is sent
        self._core: Core | None = None  # once it was sent
        self._cell: Any = None
        self._token = 0
        self._started_ns = 0
        self._lane: Lane | None = None
        self._thread = 0
        self._loop_lane: LoopLane | None = None
        self._future: asyncio.Future[None] | None = None
        self._deltas: Any = None
        self._numbers: Any = None
        self._pieces: deque[str] = deque()
        self._so_far: list[str] = []
        self._has_news = False
        self._is_over = False  # the core has said so
        self._is_read = False  # and what it brought was read
        self._is_closed = False
        self._error: Exception | None = None
        self._response: LlmResponse | None = None

    # ----------------------------------------------------------------------------------------------------- what there is

    @property
    def text(self) -> str:
        """`stream.text`: all pieces that were taken so far, joined."""
        return "".join(self._so_far)

    @property
    def response(self) -> LlmResponse:
        """`stream.response.usage`: the answer as a whole, with what is known about it: usage, finish reason, tool calls.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        if self._response is None:
            raise RuntimeError("the answer is not whole: read the stream to its end first")
        return self._response

    @property
    def usage(self) -> LlmUsage:
        """`stream.usage.total_tokens`: `response.usage`, once the stream was read to its end."""
        return self.response.usage

    def __repr__(self) -> str:
        state = (
            "failed" if self._error is not None
            else "whole" if self._response is not None
            else "closed" if self._is_closed
            else "new" if self._core is None
            else "on its way"
        )  # fmt: skip
        return f"<TextStream {state}, {sum(map(len, self._so_far))} characters>"

    # ---------------------------------------------------------------------------------------------------------- reading

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        pieces = self._pieces
        while not pieces:
            if not self._take():
                self._end(StopIteration)
            if not pieces and not self._is_over and not self._has_news:
                self._wait()
        piece = pieces.popleft()
        self._so_far.append(piece)
        return piece

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        pieces = self._pieces
        while not pieces:
            if not self._take(on_loop=True):
                self._end(StopAsyncIteration)
            if not pieces and not self._is_over and not self._has_news:
                await self._wait_on_loop()
        piece = pieces.popleft()
        self._so_far.append(piece)
        return piece

    async def streaming_response(self) -> str:
        """`text = await client.stream("…").streaming_response()`: prints the pieces as they come, and returns all of them."""
        async for piece in self:
            print(piece, end="", flush=True)
        return self.text

    def _take(self, on_loop: bool = False) -> bool:
        """Takes pieces that are there. False: there are none, and none will come."""
        if self._core is None:
            self._start(on_loop)
        if self._is_read:
            return False
        if self._core is not None and self._core.is_foreign():
            raise RuntimeClosedError("this stream belongs to the parent process; begin a new one here")
        if (self._loop_lane is not None) is not on_loop:
            raise RuntimeError(
                "a stream that was begun with 'for' is not read with 'async for', nor the other way round"
            )
        if not self._has_news and not self._is_over:
            return True
        was_over = self._is_over  # before the look: what is put in later is seen by the next
        self._has_news = False
        deltas, numbers, pieces = self._deltas, self._numbers, self._pieces
        check(lib.gb_call_read(self._cell[0], deltas, _AT_ONCE, numbers, numbers + 1), "reading a stream")
        for i in range(numbers[0]):
            delta = deltas[i]
            if delta.kind == _TEXT:
                pieces.append(str(ffi.buffer(delta.bytes.ptr, delta.bytes.len), "utf-8", "replace"))
        if numbers[1]:
            self._has_news = True
        elif was_over:
            self._read_end()
        return True

    def _start(self, on_loop: bool) -> None:
        if self._is_closed:
            return
        core = current_core()
        if on_loop:
            from graphbit._loop import running_lane

            self._loop_lane = running_lane(core)
            assert self._loop_lane is not None
            queue = self._loop_lane.queue
        else:
            self._lane = core.caller()
            self._thread = get_ident()
            queue = self._lane.queue
        self._core = core
        self._token = core.new_token()
        self._deltas = ffi.new("gb_delta[]", _AT_ONCE)
        self._numbers = ffi.new("uint32_t[2]")
        self._cell = ffi.new("gb_call **")
        self._started_ns = monotonic_ns()
        self._listen()
        values = self._values
        try:
            check(
                lib.gb_call_start(
                    core.handle,
                    self._plan.handle,
                    self._request,
                    values,
                    len(values),
                    0,
                    self._token,
                    queue,
                    self._token,
                    self._cell,
                ),
                "starting a call",
            )
        except BaseException:
            self._is_read = self._is_closed = True
            self._leave()
            raise
        self._buffers.clear()

    def _on_item(self, item: Any) -> bool:
        """News on the queue. True: of this stream."""
        if item.token != self._token:
            return False
        if item.kind == _CALL_OVER:
            self._is_over = True
        else:
            self._has_news = True
        return True

    def _wait(self) -> None:
        assert self._core is not None and self._lane is not None
        self._core.wait_items(self._lane, self._on_item)

    def _listen(self) -> None:
        """For one item. A stream that its program drops is not to be held by the loop."""
        if self._loop_lane is None:
            return
        this = ref(self)

        def arrived(item: Any) -> None:
            stream = this()
            if stream is not None:
                stream._on_loop_item(item)

        self._loop_lane.waiters[self._token] = arrived

    def _on_loop_item(self, item: Any) -> None:
        if item is None:
            self._fail(RuntimeClosedError("the graphbit runtime was shut down while a stream was read"))
        elif self._on_item(item) and not self._is_over and self._loop_lane is not None:
            self._listen()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def _wait_on_loop(self) -> None:
        assert self._loop_lane is not None
        if self._future is not None:
            raise RuntimeError("two tasks cannot read one stream")
        self._future = self._loop_lane.loop.create_future()
        try:
            await self._future
        except BaseException:  # the task was cancelled: nobody will go on
            self.close()
            raise
        finally:
            self._future = None

    # ---------------------------------------------------------------------------------------------------------- the end

    def _read_end(self) -> None:
        reply = ffi.new("gb_reply *")
        check(lib.gb_call_reply(self._cell[0], reply), "reading a reply")
        if reply.failure == 0:
            from graphbit.llm.messages import response_from

            self._response = response_from(reply)
        else:
            self._error = call_error(self._config, reply, self._name)
        self._stats.ended(self._error is None, monotonic_ns() - self._started_ns)
        self._is_read = True
        self._leave()

    def _fail(self, error: Exception) -> None:
        if not self._is_read:
            self._error = error
            self._is_read = self._is_over = True
            self._leave()

    def _end(self, stop: type[Exception]) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        raise stop

    def close(self) -> None:
        """`stream.close()`: closes the connection, unless all of the answer was read. Again does nothing."""
        self._is_closed = True
        if self._core is not None and self._core.is_foreign():
            return  # all of it is the parent process's, locks included
        if self._core is not None and not self._is_read:
            self._stats.given_up(1)
        self._is_read = True
        self._pieces.clear()
        self._leave()

    async def aclose(self) -> None:
        """`await stream.aclose()`: the same."""
        self.close()

    def _leave(self) -> None:
        """Gives the call and the lane back."""
        core, cell = self._core, self._cell
        if core is None or core.is_foreign():
            return  # the handle is the parent process's
        loop_lane, self._loop_lane = self._loop_lane, None
        if loop_lane is not None:
            loop_lane.waiters.pop(self._token, None)
        if cell is not None and cell[0]:
            handle, cell[0] = cell[0], ffi.NULL
            lib.gb_call_release(handle)
        lane, self._lane = self._lane, None
        if lane is not None and self._thread == get_ident():
            core.done_waiting(lane)
        elif lane is not None:  # closed by another thread, whose lane it must not become
            lane.close()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _exc_type: type[BaseException] | None,
        _exc_val: BaseException | None,
        _exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _exc_type: type[BaseException] | None,
        _exc_val: BaseException | None,
        _exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_core", None) is not None and not self._is_read:
            self.close()
