"""A server that does wrong in HTTP/2: `faults`, with frames instead of lines.

    with Http2Server() as server:
        server.script(begin, rst(ErrorCodes.INTERNAL_ERROR))
        ...

Steps are functions of the connection, whose `stream` is the request that the script is for. What is sent goes past the h2
package's ideas of what may be sent: it keeps the state of what the client says, and its header compression.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hyperframe.frame as frames
from faults import FaultServer, Peer, Request, Step, completion, reset, tls_context, whole
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

Frame = frames.Frame


class Http2Peer(Peer):
    server: Http2Server

    def serve(self) -> None:
        assert isinstance(self.socket, ssl.SSLSocket)
        self.stream = 0
        if self.socket.selected_alpn_protocol() != "h2":
            return super().serve()
        self.asked: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.state = h2.connection.H2Connection(config)
        self.state.initiate_connection()
        self.flush()
        if self.server.window is not None:
            self.send_frame(frames.SettingsFrame(0, {SettingCodes.INITIAL_WINDOW_SIZE: self.server.window}))
        while not self.is_over and (data := self.socket.recv(65536)):
            try:
                events = self.state.receive_data(data)
            except h2.exceptions.ProtocolError as wrong:
                raise ConnectionError(f"no HTTP/2: {wrong}") from wrong
            for event in events:
                self.take(event)
            if not self.is_over:
                self.flush()

    def flush(self) -> None:
        if data := self.state.data_to_send():
            self.socket.sendall(data)

    def take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.asked[event.stream_id] = {str(name): str(value) for name, value in event.headers}
            self.bodies[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            self.server.pieces.append(len(event.data))
            if self.server.window is None:
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif event.data:
                self.send_frame(frames.WindowUpdateFrame(event.stream_id, window_increment=len(event.data)))
        elif isinstance(event, h2.events.StreamEnded):
            asked = self.asked.pop(event.stream_id)
            body = self.bodies.pop(event.stream_id)
            request = Request(asked[":method"], asked[":path"], asked, body, self.number)
            self.stream = event.stream_id
            self.flush()
            self.play(self.server.arrived(request))

    def send_frame(self, frame: Frame) -> None:
        self.socket.sendall(frame.serialize())

    def send_head(self, fields: Mapping[str, str], *, ends: bool = False) -> None:
        frame = frames.HeadersFrame(self.stream, self.state.encoder.encode(list(fields.items())))
        frame.flags.add("END_HEADERS")
        if ends:
            frame.flags.add("END_STREAM")
        self.send_frame(frame)

    def send_data(self, data: bytes, *, ends: bool = True) -> None:
        frame = frames.DataFrame(self.stream, data)
        if ends:
            frame.flags.add("END_STREAM")
        self.send_frame(frame)


class Http2Server(FaultServer):
    peer_class = Http2Peer

    def __init__(self, *, window: int | None = None) -> None:
        """`Http2Server(window=1)`: that many bytes of a request may be under way."""
        super().__init__(tls=http2_context())
        self.window = window
        self.pieces: list[int] = []
        """Sizes of the DATA frames that came."""
        self.otherwise(answer)


def http2_context() -> ssl.SSLContext:
    context = tls_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


# -------------------------------------------------------------------------------------------------------------------- steps

HEAD = {":status": "200", "content-type": "application/json"}


def over_http2(step: Callable[[Http2Peer], Any]) -> Step:
    """On a connection that did not agree on HTTP/2 it is a RST."""

    def taken(peer: Peer) -> None:
        assert isinstance(peer, Http2Peer)
        if peer.stream:
            step(peer)
        else:
            reset(peer)

    return taken


def answer(peer: Peer) -> None:
    """As it should be, in the version of HTTP that was agreed upon."""
    assert isinstance(peer, Http2Peer)
    if peer.stream == 0:
        return peer.socket.sendall(whole())
    peer.send_head(HEAD)
    peer.send_data(completion())


@over_http2
def begin(peer: Http2Peer) -> None:
    """The head and half of the body."""
    peer.send_head(HEAD)
    peer.send_data(completion()[:50], ends=False)


def rst(code: ErrorCodes) -> Step:
    return over_http2(lambda peer: peer.send_frame(frames.RstStreamFrame(peer.stream, error_code=code)))


def goaway(last: int | None = None, code: ErrorCodes = ErrorCodes.NO_ERROR) -> Step:
    """No stream above `last` (None: this one) was looked at."""

    def step(peer: Http2Peer) -> None:
        peer.send_frame(frames.GoAwayFrame(0, last_stream_id=peer.stream if last is None else last, error_code=code))

    return over_http2(step)


def frame(make: Callable[[int], Frame | bytes]) -> Step:
    """Whatever frame, made for this stream."""

    def step(peer: Http2Peer) -> None:
        made = make(peer.stream)
        peer.socket.sendall(made if isinstance(made, bytes) else made.serialize())

    return over_http2(step)


def reply(fields: Mapping[str, str], body: bytes = b"") -> Step:
    def step(peer: Http2Peer) -> None:
        peer.send_head({**HEAD, **fields}, ends=not body)
        if body:
            peer.send_data(body)

    return over_http2(step)
