"""The fake provider's sockets: one daemon thread with one event loop, connections, the gate, and what is counted.

Every connection is a `Connection` fed by the loop. Its requests are answered in order, one at a time; what arrives
meanwhile waits in the parser's buffer. `FakeServer.answer`, said by a subclass, turns a request into an `Answer`, and
the connection carries it out.

Threads: a `Connection` lives in the server's thread. Everything public on `FakeServer` may be used from any thread;
one condition guards what both sides touch, and every change a test could wait for notifies it, so that tests wait for
events and never sleep.

asyncio costs 50 ms to import, hence it is imported in `start`; protocols need no base class to work.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque

from ._fake_http import Answer, Headers, Malformed, Request, RequestParser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from asyncio import Protocol as _Protocol
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self
else:
    _Protocol = object

BACKLOG = 4096
PORTS_TRIED_MAX = 100
RESET_POLL_SECONDS = 0.001
PIPELINE_BYTES_MAX = 16 * 1024 * 1024  # what a connection may send ahead while its request is being answered


class Connection(_Protocol):
    """One accepted socket. At most one request at a time is being answered; `request` is that one."""

    __slots__ = (
        "_advancing",
        "_over",
        "_parser",
        "_server",
        "_timer",
        "_transport",
        "id",
        "request",
    )

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._parser = RequestParser()
        self._timer: asyncio.TimerHandle | None = None
        self._advancing = False
        self._over = False
        self.id = 0
        self.request: Request | None = None

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if TYPE_CHECKING:
            assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server._opened(self)

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._parser.feed(data)
        if self.request is None:
            self._advance()
        elif len(self._parser.buffer) > PIPELINE_BYTES_MAX:
            self.abort()

    def eof_received(self) -> bool:
        return False  # a client that closes its side is gone: this is how a cancelled call looks from here

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._server._lost(self)
        self.request = None

    def pause_writing(self) -> None:
        pass  # a reply is in memory anyway; the transport may hold it

    def resume_writing(self) -> None:
        pass

    # The way of one request.

    def _advance(self) -> None:
        if self._advancing:  # a reply that is written at once comes back here from below
            return
        self._advancing = True
        try:
            while self.request is None and not self._over:
                request = self._parser.next()
                if request is None:
                    if self._parser.continue_due():
                        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    return
                request.connection = self.id
                self.request = request
                self._server._arrived(self, request)
        except Malformed as problem:
            self._refuse(problem)
        finally:
            self._advancing = False

    def _refuse(self, problem: Malformed) -> None:
        self._over = True
        refusal = Request("", "", "HTTP/1.1", Headers({"connection": "close"}), b"")
        for data in self._server.failure(problem.status, str(problem)).wire(refusal)[0]:
            self._transport.write(data)
        self._transport.close()

    def serve(self) -> None:
        """Choose the answer and begin it. Called when the request arrived, or when the gate let it through."""
        if self.request is None or self._over:
            return
        answer = self._server._choose(self.request)
        if answer.latency > 0:
            self._later(answer.latency, self._begin, answer)
        else:
            self._begin(answer)

    def _later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self._timer = self._server._running_loop().call_later(delay, call, *args)

    def _begin(self, answer: Answer) -> None:
        assert self.request is not None
        writes, keep = answer.wire(self.request)
        self._write_next(deque(writes), answer, keep)

    def _write_next(self, writes: deque[bytes], answer: Answer, keep: bool) -> None:
        data = writes.popleft() if writes else b""
        if writes:
            self._transport.write(data)
            self._later(answer.gap, self._write_next, writes, answer, keep)
            return
        if answer.then == "stall":  # in flight until the client goes
            self._transport.write(data)
            return
        # Counted before it is written: a test that has read the reply must not find its request still in flight.
        self._server._finished(self)
        self._transport.write(data)
        self.request = None
        self._over = not keep
        if keep:
            self._advance()
        elif answer.then != "reset":
            self._transport.close()
        else:
            self._reset()

    def _reset(self) -> None:
        """RST instead of FIN: closing with a linger time of zero, which throws away what has not reached the client."""
        if self._transport.is_closing():  # the client was faster
            return
        raw = self._transport.get_extra_info("socket")
        if self._transport.get_write_buffer_size() or _unsent_bytes(raw.fileno()):
            self._later(RESET_POLL_SECONDS, self._reset)  # nobody tells us when the kernel has sent it
            return
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def abort(self) -> None:
        self._over = True
        self._transport.abort()


def _unsent_bytes(fd: int) -> int:
    """What the kernel holds of what we wrote and the client's side has not taken yet; 0 where that cannot be asked."""
    try:
        from fcntl import ioctl
        from termios import TIOCOUTQ

        return int(struct.unpack("i", ioctl(fd, TIOCOUTQ, bytes(4)))[0])
    except (ImportError, OSError):
        return 0


_ports_used: set[int] = set()


def listen(port: int = 0, backlog: int = BACKLOG) -> socket.socket:
    """A socket that listens on 127.0.0.1; where no port is wanted, at one that this function has not given before, if it finds one.

    The system gives the same one again after some hundred, and what the process knows of an address (a provider's limits,
    that its breaker is open, what it answered and a cache has kept) would be taken for true of another server.
    """
    taken: list[socket.socket] = []
    try:
        while True:
            listener = socket.create_server(("127.0.0.1", port), backlog=backlog)
            found = listener.getsockname()[1]
            if port or found not in _ports_used or len(taken) == PORTS_TRIED_MAX:
                _ports_used.add(found)
                return listener
            taken.append(listener)
    finally:
        for it in taken:
            it.close()


class FakeServer:
    """A server on 127.0.0.1 in a thread of its own. Subclasses say in `answer` what it replies."""

    def __init__(self, *, port: int = 0) -> None:
        self._wanted_port = port
        self._port: int | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()  # guards all below, and whatever a subclass scripts
        self._connections: set[Connection] = set()
        self._opened_count = 0
        self._closed_count = 0
        self._requests: list[Request] = []
        self._in_flight = 0
        self._max_in_flight = 0
        self._held = False
        self._passes = 0
        self._parked: dict[Connection, None] = {}  # in order of arrival
        self._errors: list[BaseException] = []

    # To be said by a subclass, in the server's thread.

    def answer(self, request: Request) -> Answer:
        raise NotImplementedError

    def failure(self, status: int, message: str) -> Answer:
        raise NotImplementedError

    # Life.

    def start(self) -> Self:
        """`provider = FakeProvider().start()`: listen and serve. Starting twice is once."""
        if self._thread is not None:
            return self
        import asyncio

        listener = listen(self._wanted_port)
        self._port = listener.getsockname()[1]
        loop = self._loop = asyncio.SelectorEventLoop()
        loop.set_exception_handler(self._report)
        ready: list[BaseException | None] = []
        serving = threading.Event()

        def serve() -> None:
            try:
                server = loop.run_until_complete(
                    loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
                )
            except BaseException as error:
                ready.append(error)
                return
            finally:
                serving.set()
            loop.run_forever()
            server.close()
            for connection in list(self._connections):
                connection.abort()
            # asyncio accepts in tasks of its own: a connection may be half way in. And connection_lost is yet to be called.
            for _ in range(10):
                loop.call_soon(loop.stop)
                loop.run_forever()
                if not asyncio.all_tasks(loop):
                    break

        self._thread = threading.Thread(target=serve, name="graphbit-fake-provider", daemon=True)
        self._thread.start()
        serving.wait()
        if ready:
            self._close_loop()
            listener.close()
            raise ready[0] or RuntimeError("the server did not start")
        return self

    def stop(self) -> None:
        """`provider.stop()`: drop every connection and end the thread; stopping twice is once.

        An error that a scripted function raised is raised again here, so that a broken fake does not go unnoticed.
        """
        if self._thread is threading.current_thread():
            raise RuntimeError("stop() cannot be called from a scripted function: it would wait for itself")
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._close_loop()
        with self._changed:
            errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    def _close_loop(self) -> None:
        assert self._thread is not None
        assert self._loop is not None
        self._thread.join()
        self._loop.close()
        self._thread = self._loop = self._port = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # If the body failed too, Python shows its error and ours as cause and effect; ours usually is the cause.
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._port is None:
            raise RuntimeError("the server is not running: call start(), or use it in a with statement")
        return self._port

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, for routes of your own."""
        return f"http://127.0.0.1:{self.port}"

    # What has happened.

    @property
    def requests(self) -> list[Request]:
        """`provider.requests[-1].prompt`: every request so far, in order of arrival (a new list each time)."""
        with self._changed:
            return list(self._requests)

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and whose reply has not been written yet."""
        return self._in_flight

    @property
    def max_in_flight(self) -> int:
        """The most there were of them at one moment."""
        return self._max_in_flight

    @property
    def connections_opened(self) -> int:
        """Connections accepted so far."""
        return self._opened_count

    @property
    def connections_closed(self) -> int:
        """Connections closed so far, by either side."""
        return self._closed_count

    def wait_for_requests(self, count: int, timeout: float = 10.0) -> list[Request]:
        """`provider.wait_for_requests(3)[2].prompt`: wait until so many have arrived; TimeoutError if they do not."""
        self._wait(lambda: len(self._requests), count, timeout, "requests arrived")
        return self.requests

    def wait_for_disconnects(self, count: int, timeout: float = 10.0) -> None:
        """`provider.wait_for_disconnects(1)`: wait until so many connections have been closed; TimeoutError if not."""
        self._wait(lambda: self._closed_count, count, timeout, "connections were closed")

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """`provider.wait_until_idle()`: wait until nothing is in flight; TimeoutError if something stays."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_flight == 0, timeout):
                raise TimeoutError(f"{self._in_flight} requests still in flight after {timeout:g} s")

    def _wait(self, value: Callable[[], int], count: int, timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: value() >= count, timeout):
                raise TimeoutError(f"{value()} of {count} {what} within {timeout:g} s")

    # The gate.

    def hold(self) -> None:
        """`provider.hold()`: requests from now on wait for `release`; what is being answered goes on."""
        with self._changed:
            self._held = True
            self._passes = 0

    def release(self, count: int | None = None) -> None:
        """`provider.release()`: open the gate. `release(2)` lets two through, in order of arrival, and stays shut.

        The reply is chosen when a request passes, so it can still be scripted while the request is held.
        """
        with self._changed:
            parked = list(self._parked) if count is None else list(self._parked)[:count]
            if count is None:
                self._held = False
            else:
                self._passes += count - len(parked)
            for connection in parked:
                del self._parked[connection]
            if parked and self._loop is not None:
                self._loop.call_soon_threadsafe(self._serve_all, parked)

    def _serve_all(self, connections: list[Connection]) -> None:
        for connection in connections:
            connection.serve()

    # What connections tell us, in the server's thread.

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    def _opened(self, connection: Connection) -> None:
        with self._changed:
            self._opened_count += 1
            connection.id = self._opened_count
            self._connections.add(connection)
            self._changed.notify_all()

    def _arrived(self, connection: Connection, request: Request) -> None:
        with self._changed:
            request.index = len(self._requests)
            request.started = time.monotonic()
            self._requests.append(request)
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            self._changed.notify_all()
            if self._held:
                if self._passes == 0:
                    self._parked[connection] = None
                    return
                self._passes -= 1
        connection.serve()

    def _choose(self, request: Request) -> Answer:
        try:
            return self.answer(request)
        except BaseException as error:  # a scripted function's own error, pytest.fail and the like included
            import traceback

            with self._changed:
                self._errors.append(error)
            return self.failure(500, traceback.format_exc())

    def _finished(self, connection: Connection) -> None:
        with self._changed:
            self._in_flight -= 1
            if connection.request is not None:
                connection.request.finished = time.monotonic()
            self._changed.notify_all()

    def _lost(self, connection: Connection) -> None:
        with self._changed:
            self._closed_count += 1
            self._connections.discard(connection)
            self._parked.pop(connection, None)
            if connection.request is not None:
                self._in_flight -= 1
                connection.request.aborted = True
            self._changed.notify_all()

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the loop could not handle: out of descriptors, say. Raised again from `stop`."""
        if "task" in context and "exception" not in context:
            return  # asyncio holds its accepting tasks weakly; one that the garbage collector found has done its work
        with self._changed:
            self._errors.append(context.get("exception") or RuntimeError(context["message"]))
