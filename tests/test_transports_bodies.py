"""Bodies over the transports: requests that are sent as they come, replies that are read as they come, and who waits for whom."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from clients import ASYNC, OURS, WAYS, ChunkPeer, Way, assert_no_request_left, numbered
from faults import FaultServer, Peer, fin, flood, head, reset, send, stall, whole
from flows import opened

import graphbit
from graphbit.transports._exchange import Exchange


class Server(FaultServer):
    peer_class = ChunkPeer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        yield it
        assert_no_request_left()


def echo(peer: Peer) -> None:
    request = peer.server.requests[-1]
    said = {"length": len(request.body), "hash": hashlib.sha256(request.body).hexdigest(), "headers": request.headers}
    peer.socket.sendall(whole(json.dumps(said).encode()))


# ------------------------------------------------------------------------------------------------------------- sent


@WAYS
@pytest.mark.parametrize("announced", [False, True], ids=["chunks", "length"])
@pytest.mark.parametrize(("count", "size"), [(0, 8), (1, 8), (5, 8), (3, 800_000), (2000, 800)])
def test_an_iterators_pieces_arrive_in_order(way: Way, server: Server, announced: bool, count: int, size: int) -> None:
    server.otherwise(echo)
    body = b"".join(numbered(count, size))
    headers = {"Content-Length": str(len(body))} if announced else {}
    with way.talk() as talk:
        for _ in range(2):  # the second time on the same connection
            said = talk.request("POST", server.url, content=way.body(numbered(count, size)), headers=headers).json()
            assert (said["length"], said["hash"]) == (len(body), hashlib.sha256(body).hexdigest())
            assert ("transfer-encoding" in said["headers"]) is not announced
    assert server.connections == 1


@WAYS
def test_plain_requests_after_a_streamed_one_are_plain(way: Way, server: Server) -> None:
    server.otherwise(echo)
    with way.talk() as talk:
        for method, content in (("POST", b"abc"), ("GET", b""), ("PUT", b""), ("POST", b"x" * 100_000)):
            talk.request("POST", server.url, content=way.body([b"streamed"]))
            assert talk.request(method, server.url, content=content).json()["length"] == len(content)
    assert all("transfer-encoding" not in it.headers for it in server.requests[1::2])


@WAYS
def test_files_are_uploaded_as_multipart(way: Way, server: Server) -> None:
    big = b"".join(numbered(1000, 800))
    with way.talk() as talk:
        talk.request("POST", server.url, files={"file": ("a.bin", io.BytesIO(big)), "b": b"small"}, data={"k": "v"})
    (got,) = server.requests
    assert got.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert int(got.headers["content-length"]) == len(got.body)
    assert big in got.body
    assert b'name="k"\r\n\r\nv' in got.body


@OURS
def test_a_writer_who_is_ahead_is_held_up(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    written = written_when_held_up = 0

    def pieces() -> Iterator[bytes]:
        nonlocal written
        for _ in range(800):
            written += 1
            yield b"x" * 50_000

    def spy(name: str) -> None:
        wait = getattr(Exchange, name)

        def waits(exchange: Exchange) -> Any:
            nonlocal written_when_held_up
            if not exchange.has_room and not go.is_set():
                written_when_held_up = written
                go.set()
            return wait(exchange)

        monkeypatch.setattr(Exchange, name, waits)

    class LatePeer(ChunkPeer):
        def read(self) -> Any:
            assert go.wait(10)
            return super().read()

    with FaultServer() as server, way.talk() as talk:
        server.peer_class = LatePeer
        spy("arrives" if way.is_async else "wait")
        talk.request("POST", server.url, content=way.body(pieces()))
        assert 5 <= written_when_held_up < 400
        assert len(server.requests[0].body) == 40_000_000


@OURS
@pytest.mark.parametrize("announced", [False, True], ids=["chunks", "length"])
def test_a_server_that_refuses_a_large_upload_is_heard(way: Way, announced: bool) -> None:
    class RefusingPeer(ChunkPeer):
        def read(self) -> Any:
            if self.read_until(b"\r\n\r\n") is not None:
                self.socket.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\n\r\ntoo much")
                stall(self)

    headers = {"Content-Length": str(50_000 * 2000)} if announced else {}
    with FaultServer() as server, way.talk() as talk:
        server.peer_class = RefusingPeer
        body = way.body(b"x" * 50_000 for _ in range(2000))
        response = talk.request("POST", server.url, content=body, headers=headers)
        assert (response.status_code, response.content) == (413, b"too much")
        response = talk.request("POST", server.url, content=b"x" * 30_000_000)
        assert (response.status_code, response.content) == (413, b"too much")
        server.wait_until_closed()


@WAYS
def test_a_body_that_fails_fails_the_request_as_it_is(way: Way, server: Server) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * 10
        raise KeyError("mine")

    with way.talk() as talk:
        with pytest.raises(KeyError, match="mine"):
            talk.request("POST", server.url, content=way.body(pieces()))
        assert talk.request("GET", server.url).status_code == 200


@OURS
@pytest.mark.parametrize("count", [2, 4])
def test_a_body_of_another_length_than_announced_is_a_protocol_error(way: Way, server: Server, count: int) -> None:
    words = "Too little data" if count < 3 else "Too much data"
    with way.talk() as talk, pytest.raises(way.error("LocalProtocolError"), match=words):
        talk.request("POST", server.url, content=way.body([b"x"] * count), headers={"Content-Length": "3"})


@WAYS
def test_a_body_is_read_once_by_a_redirect(way: Way, server: Server) -> None:
    server.script(send(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"))
    with way.talk(follow_redirects=True) as talk, pytest.raises(way.error("StreamConsumed")):
        talk.request("POST", server.url, content=way.body([b"x"]))


@OURS
def test_a_streamed_body_is_not_sent_twice(way: Way, server: Server) -> None:
    with way.talk() as talk:
        assert talk.request("GET", server.url).status_code == 200
        server.script(reset)
        with pytest.raises((way.error("ReadError"), way.error("RemoteProtocolError"), way.error("WriteError"))):
            talk.request("POST", server.url, content=way.body([b"x"]))
    assert len(server.requests) == 2


@OURS
def test_a_connection_that_died_meanwhile_is_replaced(way: Way, server: Server) -> None:
    server.otherwise(send(whole()), fin)
    with way.talk() as talk:
        for content in (b"x", way.body([b"x", b"y"]), b"x"):
            assert talk.request("POST", server.url, content=content).status_code == 200
            server.wait_until_closed()


# ------------------------------------------------------------------------------------------------------------ read


@OURS
def test_a_reader_who_is_behind_holds_the_server_up(way: Way, server: Server) -> None:
    count = 65_536 * 1000
    held_up = threading.Event()
    sent = sent_when_held_up = 0

    def measured(peer: Peer) -> None:
        nonlocal sent, sent_when_held_up
        piece = b"y" * 65_536
        peer.socket.settimeout(0.5)
        while sent < count:
            try:
                sent += peer.socket.send(piece[: count - sent])
            except TimeoutError:
                peer.socket.settimeout(20)
                sent_when_held_up = sent
                held_up.set()

    server.script(send(head("200 OK", f"Content-Length: {count}")), measured)
    with way.talk(timeout=0.3) as talk:  # who is held up is not late
        _, pieces = talk.pieces("GET", server.url, lambda _: opened(held_up))
    assert sum(map(len, pieces)) == count > 2 * sent_when_held_up > 0


@OURS
def test_leaving_a_stream_early_closes_its_connection(way: Way, server: Server) -> None:
    server.otherwise(send(head("200 OK", "Transfer-Encoding: chunked")), flood(b"3\r\nabc\r\n", 0.001))

    class LeaveError(Exception):
        pass

    def leave(_: bytes) -> None:
        raise LeaveError

    with way.talk() as talk:
        with pytest.raises(LeaveError):
            talk.pieces("GET", server.url, leave)
        server.wait_until_closed()
        assert_no_request_left()


@WAYS
def test_lines_come_as_they_are_written(way: Way, server: Server) -> None:
    server.script(send(head("200 OK", "Transfer-Encoding: chunked") + b"6\r\na\nb\ncc\r\n3\r\nc\nd\r\n0\r\n\r\n"))
    with way.talk() as talk:
        if way.is_async:

            async def lines() -> list[str]:
                async with talk.client.stream("GET", server.url) as response:
                    return [line async for line in response.aiter_lines()]

            found = talk.do(lines())
        else:
            with talk.client.stream("GET", server.url) as response:
                found = list(response.iter_lines())
    assert found == ["a", "b", "ccc", "d"]


@ASYNC
def test_an_async_body_may_wait_for_its_pieces(way: Way, server: Server) -> None:
    server.otherwise(echo)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0)
            yield b"piece"

    with way.talk() as talk:
        for _ in range(20):
            assert talk.request("POST", server.url, content=pieces()).json()["length"] == 100


@OURS
def test_what_was_sent_and_received_is_counted(way: Way, server: Server) -> None:
    before = graphbit.http_stats()
    with way.talk() as talk:
        talk.request("POST", server.url, content=way.body([b"x" * 100_000]))
        talk.request("POST", server.url, content=b"x" * 100_000)
    after = graphbit.http_stats()
    assert 200_000 < after["bytes_sent"] - before.get("bytes_sent", 0) < 202_000
