"""A server that does wrong: what it says, and when it falls silent or goes away, is a script.

    with FaultServer() as server:
        server.script(send(HEAD), reset)
        with pytest.raises(ConnectError):
            client_of(server).complete("hello")
        assert client_of(server).complete("hello") == "fine"        # a script is used once; then it answers well again

A script is a list of steps, and a step is a function of the connection: `send(data)`, `dribble(data)`, `flood(data)`,
`pause(event)`, `hear`, `fin`, `reset`, `stall`, or one of the test's own. `script` is what happens once the next request has arrived
whole; `greet` what happens to the next connection before anything is read from it, and before TLS. After its last step the
connection is served on, as far as the client wants to.

Every connection has a thread of its own. A connection counts as open until both sides are done with it: `fin` goes on reading
until the client has gone too, so `wait_until_closed` sees whether the client lets go of what it cannot use again.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from flows import until

import graphbit
from graphbit import LlmClient, LlmConfig, RequestError
from graphbit._fake_server import listen
from graphbit.runtime import stats

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

TLS = Path(__file__).resolve().parent / "tls"

PATIENCE = 10.0
"""Seconds for what should happen at once."""

GRACE = 3.0
"""Seconds that a timeout may be late on a busy machine."""

GONE = (OSError, ssl.SSLError)
"""What a socket raises whose other side has gone."""


# -------------------------------------------------------------------------------------------------- what goes over the wire


def completion(text: str = "fine", **more: Any) -> bytes:
    """The body of a good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {"id": "c-1", "object": "chat.completion", "model": "m", "choices": [choice], **more}, ensure_ascii=False
    ).encode()


def head(status: str = "200 OK", *lines: str) -> bytes:
    """`head("200 OK", "Content-Length: 5")`, with the empty line at its end."""
    return "".join(
        f"{line}\r\n" for line in (f"HTTP/1.1 {status}", "Content-Type: application/json", *lines, "")
    ).encode("latin-1")


def whole(body: bytes | None = None, status: str = "200 OK", *lines: str) -> bytes:
    """A reply as it should be."""
    body = completion() if body is None else body
    return head(status, f"Content-Length: {len(body)}", *lines) + body


def chunked(body: bytes, size: int = 16, last: bytes = b"0\r\n\r\n") -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + last


class Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


# -------------------------------------------------------------------------------------------------------------------- steps

Step = Callable[["Peer"], None]


def send(data: bytes) -> Step:
    return lambda peer: peer.socket.sendall(data)


def dribble(data: bytes, every: float = 0.0005) -> Step:
    """One byte at a time, with so many seconds between."""

    def step(peer: Peer) -> None:
        for i in range(len(data)):
            peer.socket.sendall(data[i : i + 1])
            time.sleep(every)

    return step


def flood(data: bytes, every: float = 0.0) -> Step:
    """Again and again until the client goes."""

    def step(peer: Peer) -> None:
        while not peer.server.over.wait(every) if every else not peer.server.over.is_set():
            peer.socket.sendall(data)

    return step


def pause(event: threading.Event) -> Step:
    """Until the test sets it."""

    def step(_: Peer) -> None:
        if not event.wait(PATIENCE):
            raise AssertionError("nobody let the server go on")

    return step


def hear(peer: Peer) -> None:
    """Waits for the client's first words."""
    peer.socket.recv(65536)


def stall(peer: Peer) -> None:
    """Says nothing more, until the client goes."""
    while peer.socket.recv(65536):
        pass
    peer.is_over = True


def fin(peer: Peer) -> None:
    """Says that it is done, and waits for the client to go."""
    peer.socket.shutdown(socket.SHUT_WR)
    stall(peer)


def close(peer: Peer) -> None:
    """Goes without waiting for anybody."""
    peer.is_over = True


def reset(peer: Peer) -> None:
    """RST instead of FIN."""
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.is_over = True


# --------------------------------------------------------------------------------------------------------------- the server


class Peer:
    """One connection, seen from the server, in a thread of its own."""

    def __init__(self, server: FaultServer, accepted: socket.socket, number: int) -> None:
        self.server = server
        self.socket = accepted
        self.number = number
        self.is_over = False
        self.buffer = b""

    def run(self) -> None:
        try:
            self.play(self.server.next_greeting())
            if self.server.tls is not None and not self.is_over:
                # Not at once: whoever stops the server must find the socket here while hands are shaken.
                self.socket = encrypted = self.server.tls.wrap_socket(
                    self.socket, server_side=True, do_handshake_on_connect=False
                )
                encrypted.do_handshake()
            if not self.is_over:
                self.serve()
        except GONE as gone:
            self.server.note(gone)
        finally:
            self.socket.close()

    def serve(self) -> None:
        while not self.is_over and (request := self.read()) is not None:
            self.play(self.server.arrived(request))

    def play(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if not self.is_over:
                step(self)

    def read(self) -> Request | None:
        """The next request, whole; None: the client went."""
        if (top := self.read_until(b"\r\n\r\n")) is None:
            return None
        lines = top.decode("latin-1").split("\r\n")
        if lines[0].count(" ") != 2:
            raise ConnectionError(f"no HTTP: {lines[0][:80]!r}")
        method, target, _ = lines[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = self.read_bytes(int(headers.get("content-length", 0)))
        return None if body is None else Request(method, target, headers, body, self.number)

    def read_until(self, mark: bytes) -> bytes | None:
        while mark not in self.buffer:
            if not self.more():
                return None
        found, self.buffer = self.buffer.split(mark, 1)
        return found

    def read_bytes(self, count: int) -> bytes | None:
        while len(self.buffer) < count:
            if not self.more():
                return None
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def more(self) -> bool:
        data = self.socket.recv(1 << 20)
        self.buffer += data
        return bool(data)


class FaultServer:
    """Listens on 127.0.0.1. With `tls` it speaks TLS."""

    peer_class: type[Peer] = Peer

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.over = threading.Event()
        self._listener = listen(backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="faults", daemon=True)
        self._changed = threading.Condition()  # guards all below
        self._peers: dict[Peer, threading.Thread] = {}
        self._scripts: deque[Sequence[Step]] = deque()
        self._greetings: deque[Sequence[Step]] = deque()
        self._otherwise: Sequence[Step] = [send(whole())]
        self._errors: list[BaseException] = []
        self.requests: list[Request] = []
        self.gone: list[OSError] = []
        """How clients went, and TLS connections that never became one."""
        self.connections = 0
        """Accepted so far."""

    # ------------------------------------------------------------------------------------------------------- for tests

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def script(self, *steps: Step, times: int = 1) -> None:
        """What the next requests get."""
        with self._changed:
            self._scripts.extend([steps] * times)

    def otherwise(self, *steps: Step) -> None:
        """What requests get that have no script."""
        with self._changed:
            self._otherwise = steps

    def greet(self, *steps: Step, times: int = 1) -> None:
        """What happens to the next connections before anything is read."""
        with self._changed:
            self._greetings.extend([steps] * times)

    @property
    def open(self) -> int:
        """Connections of which not both sides are done."""
        with self._changed:
            return len(self._peers)

    def drop(self) -> None:
        """Ends every connection; whoever speaks is cut short."""
        with self._changed:
            peers = list(self._peers)
        for peer in peers:
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended meanwhile
        self.wait_until_closed()

    def wait_until_closed(self, timeout: float = PATIENCE) -> None:
        self._wait(lambda: not self._peers, timeout, "connections are still open")

    def wait_for_requests(self, count: int, timeout: float = PATIENCE) -> list[Request]:
        self._wait(lambda: len(self.requests) >= count, timeout, "requests have not arrived")
        return list(self.requests)

    def _wait(self, condition: Callable[[], bool], timeout: float, words: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError(f"{words}: {len(self._peers)} open, {len(self.requests)} requests")

    # ------------------------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # whoever waits in accept wakes up
        self._accepting.join()
        self._listener.close()
        self.drop()
        if self._errors:
            raise self._errors[0]

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self.connections += 1
                peer = self.peer_class(self, accepted, self.connections)
                thread = threading.Thread(target=self._serve, args=(peer,), name=f"peer {peer.number}", daemon=True)
                self._peers[peer] = thread
                self._changed.notify_all()
            thread.start()

    def _serve(self, peer: Peer) -> None:
        try:
            peer.run()
        except BaseException as error:
            self._errors.append(error)
        finally:
            with self._changed:
                del self._peers[peer]
                self._changed.notify_all()

    # ---------------------------------------------------------------------------------------- what connections ask and tell

    def arrived(self, request: Request) -> Sequence[Step]:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            return self._scripts.popleft() if self._scripts else self._otherwise

    def next_greeting(self) -> Sequence[Step]:
        with self._changed:
            return self._greetings.popleft() if self._greetings else ()

    def note(self, gone: OSError) -> None:
        with self._changed:
            self.gone.append(gone)


def tls_context(certificate: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem", TLS / "localhost.key")
    return context


# ------------------------------------------------------------------------------------------------------ what tests ask of us


def config_of(server: FaultServer | str, **options: Any) -> LlmConfig:
    url = server if isinstance(server, str) else server.url
    return LlmConfig.openai_compatible(
        f"{url}/v1", "m", **{"max_retries": 0, "timeout": 5.0, "connect_timeout": 5.0, **options}
    )


def client_of(server: FaultServer | str, **options: Any) -> LlmClient:
    return LlmClient(config_of(server, **options))


def assert_idle() -> None:
    counts = stats()
    assert (counts["requests_in_flight"], counts["requests_queued"]) == (0, 0)


def assert_nothing_left(server: FaultServer) -> None:
    """Both sides are done with every connection, and the engine with every request."""
    assert_idle()
    server.wait_until_closed()
    until(lambda: sockets_to(server.port) == 0)


def sockets_to(port: int) -> int:
    """This process's sockets that are connected to a port of 127.0.0.1, or were until the other side closed."""
    if not sys.platform.startswith("linux"):
        return 0
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    established, close_wait = "01", "08"
    return sum(row[2] == f"0100007F:{port:04X}" and row[3] in (established, close_wait) for row in rows)


def descriptors() -> int:
    """How many this process has open. Linux only."""
    return len(os.listdir("/proc/self/fd"))


def error_of(
    server: FaultServer | str, error: type[RequestError], words: str, *, within: float = 5.0, **options: Any
) -> RequestError:
    """The error of one call: of this class and no other, with these words, and in time."""
    began = time.monotonic()
    with pytest.raises(error, match=re.escape(words)) as caught:
        client_of(server, timeout=within, **{"connect_timeout": within, **options}).complete("hello")
    took = time.monotonic() - began
    assert type(caught.value) is error
    assert took < within + GRACE, f"it took {took:.3f} s"
    assert_idle()
    return caught.value


def assert_fails(
    server: FaultServer,
    error: type[RequestError],
    words: str,
    *,
    within: float = 5.0,
    keeps_connection: bool = False,
    **options: Any,
) -> RequestError:
    """One call fails like that and leaves nothing behind, except for a connection that can be used again; the next one works."""
    found = error_of(server, error, words, within=within, **options)
    if not keeps_connection:
        assert_nothing_left(server)
    assert_answers(server, **options)
    if keeps_connection:
        assert server.connections == 1
    return found


def assert_answers(server: FaultServer | str, text: str = "fine", **options: Any) -> None:
    """A call works."""
    assert client_of(server, **options).complete("hello") == text
    assert_idle()


# A table of faults is a list of these: `@pytest.mark.parametrize(("steps", …), [case("what is wrong", [send(…)], …)])`


def case(name: str, *values: Any, xfail: str = "") -> Any:
    """`xfail` says what graphbit does instead."""
    marks = [pytest.mark.xfail(strict=True, reason=xfail)] if xfail else []
    return pytest.param(*values, id=name, marks=marks)


@contextmanager
def trusting(certificates: Path) -> Iterator[None]:
    """The runtime trusts these and nobody else: a fresh one before, and after."""
    before = os.environ.get("SSL_CERT_FILE")
    graphbit.shutdown()
    os.environ["SSL_CERT_FILE"] = str(certificates)
    try:
        yield
    finally:
        graphbit.shutdown()
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before
