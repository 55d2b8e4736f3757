"""The fake provider's connections, through raw sockets: cut, stalled, pipelined, kept, held, counted, and closed."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asking import CHAT, ask, chat_body, connect, text

from graphbit import _fake_server
from graphbit._fake_http import Malformed, RequestParser
from graphbit._fake_provider import FakeProvider


def raw_request(prompt: str = "Hello.", extra: str = "", **more: Any) -> bytes:
    body = json.dumps(chat_body(prompt, **more)).encode()
    return f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def dial(provider: FakeProvider) -> socket.socket:
    return socket.create_connection(("127.0.0.1", provider.port), timeout=10)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def is_gone(sock: socket.socket) -> bool:
    """Whether the other side has closed or reset the connection, as the system likes it."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# ---- faults


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", ["nothing", "headers", "body", 5, "reply"])
def test_a_connection_is_cut_at_the_stage_asked_for(provider: FakeProvider, after: Any, stream: bool) -> None:
    with dial(provider) as sock:
        provider.reply("x" * 100)
        sock.sendall(raw_request(extra="Connection: close\r\n", stream=stream))
        whole = read_all(sock)
    head, _, body = whole.partition(b"\r\n\r\n")
    with dial(provider) as sock:
        provider.cut(after=after, text="x" * 100)
        sock.sendall(raw_request(stream=stream))
        got_head, separator, got = read_all(sock).partition(b"\r\n\r\n")
    assert (got_head.startswith(b"HTTP/1.1 200 OK\r\n"), bool(separator)) == ((after != "nothing"),) * 2
    if after in ("nothing", "headers"):
        assert got == b""
    elif after == "reply":
        assert len(got) == len(body)
        assert len(got_head) < len(head)  # no "connection: close": it comes without notice
    elif not stream:
        assert got == body.replace(b"chatcmpl-1", b"chatcmpl-2")[: 5 if after == 5 else len(body) // 2]
    else:
        assert not got.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in got
        assert got.startswith(b"5\r\ndata:") == (after == 5)


def test_a_cut_can_reset_the_connection(provider: FakeProvider) -> None:
    provider.cut(reset=True)
    with dial(provider) as sock:
        sock.sendall(raw_request())
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    provider.wait_for_disconnects(1)


def test_a_reset_waits_until_what_goes_before_it_has_been_sent(provider: FakeProvider) -> None:
    provider.route("GET", "/big", body=b"x" * 20_000_000)
    provider.cut(after="reply", reset=True, path="/big")
    with dial(provider) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        with sock.makefile("rb") as file:
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            while file.readline() != b"\r\n":
                pass
            assert file.read(20_000_000) == b"x" * 20_000_000
            with pytest.raises(ConnectionResetError):
                file.read(1)


def test_a_stalled_request_stays_in_flight_until_the_client_goes(provider: FakeProvider) -> None:
    provider.stall()
    provider.stall(after="headers")
    silent, headed = dial(provider), dial(provider)
    silent.sendall(raw_request())
    provider.wait_for_requests(1)
    headed.sendall(raw_request())
    assert headed.recv(65536).endswith(b"\r\n\r\n")
    assert provider.in_flight == 2
    silent.close()
    provider.wait_for_disconnects(1)
    assert (provider.in_flight, provider.connections_closed) == (1, 1)
    assert [request.aborted for request in provider.requests] == [True, False]
    headed.close()
    provider.wait_until_idle()
    assert [request.finished for request in provider.requests] == [None, None]


def test_exact_bytes_and_broken_bodies_reach_the_client_as_given(provider: FakeProvider) -> None:
    provider.reply_body(b"{oops")
    provider.reply_body({"whole": "body"}, status=418, content_type="x/y")
    provider.reply_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort")
    provider.reply_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", close=False)
    status, headers, body = ask(provider, body=chat_body())
    assert (status, headers["content-type"], body) == (200, "application/json", b"{oops")
    status, headers, body = ask(provider, body=chat_body())
    assert (status, headers["content-type"], body) == (418, "x/y", b'{"whole":"body"}')
    with pytest.raises(http.client.IncompleteRead):
        ask(provider, body=chat_body())
    connection = connect(provider)
    for expected in (b"ok", b"Hello."):
        connection.request("POST", CHAT, json.dumps(chat_body()))
        assert expected in connection.getresponse().read()
    connection.close()
    assert len({request.connection for request in provider.requests[3:]}) == 1


# ---- the wire


def test_pipelined_requests_are_answered_in_order_on_one_connection(provider: FakeProvider) -> None:
    provider.default = lambda request: request.prompt
    provider.reply("slow", latency=0.01)
    prompts = [f"request {number}" for number in range(500)]
    with dial(provider) as sock:
        sock.sendall(b"".join(map(raw_request, prompts)) + b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = read_all(sock)
    places = [received.index(f'"{text}"'.encode()) for text in ["slow", *prompts[1:]]]
    assert places == sorted(places)
    assert received.count(b"HTTP/1.1 200 OK") == 500
    assert received.endswith(b'"code":null}}')
    assert provider.connections_opened == 1
    assert provider.max_in_flight == 1


def test_requests_are_read_whatever_pieces_they_arrive_in() -> None:
    chunked = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1F;ext=1\r\n" + b"y" * 31
    chunked += b"\r\n0\r\nTrailer: t\r\n\r\n"
    stream = (
        raw_request("one")
        + b"\r\n"
        + chunked
        + b"GET http://h/p?q HTTP/1.0\r\nA: 1\r\na:2 \r\n\r\n"
        + raw_request("two")
    )
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for largest in [1, 2, 3, 7, 50, 1000, *(dice.randrange(1, 100) for _ in range(20))]:
        parser, requests, rest = RequestParser(), [], stream
        while rest:
            size = dice.randrange(1, largest + 1)
            parser.feed(rest[:size])
            rest = rest[size:]
            while request := parser.next():
                requests.append(request)
        assert [request.prompt for request in requests] == ["one", "", "", "two"]
        assert [request.body for request in requests[1:3]] == [b"abc" + b"y" * 31, b""]
        assert (requests[2].path, requests[2].query, dict(requests[2].headers)) == ("/p", "q", {"a": "1, 2"})
        assert [request.keep_alive for request in requests] == [True, True, False, True]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, 431),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(
    provider: FakeProvider, data: bytes, status: int
) -> None:
    parser = RequestParser()
    parser.feed(data)
    with pytest.raises(Malformed):
        parser.next()
    with dial(provider) as sock:
        sock.sendall(data)
        reply = read_all(sock)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in reply
    assert "message" in json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
    assert provider.requests == []


def test_a_client_that_expects_100_continue_is_told_to_go_on(provider: FakeProvider) -> None:
    head, _, body = raw_request(extra="Expect: 100-continue\r\nConnection: close\r\n").partition(b"\r\n\r\n")
    with dial(provider) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")
    parser = RequestParser()
    parser.feed(head + b"\r\n\r\n")
    assert parser.next() is None
    assert [parser.continue_due(), parser.continue_due()] == [True, False]
    with dial(provider) as sock:
        sock.sendall(head + b"\r\n\r\n" + body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")


def test_connections_are_kept_unless_the_client_or_a_header_says_close(provider: FakeProvider) -> None:
    def reply_to(head: bytes) -> bytes:
        with dial(provider) as sock:
            sock.sendall(head)
            return read_all(sock)

    assert b"connection: close" in reply_to(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Close, x\r\n\r\n")
    assert b"connection: close" in reply_to(b"GET /v1/models HTTP/1.0\r\n\r\n")
    body = json.dumps(chat_body(stream=True)).encode()
    stream = reply_to(b"POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
    assert b"transfer-encoding" not in stream
    assert stream.endswith(b"data: [DONE]\n\n")
    provider.fail(500, headers={"Connection": "close"})
    connection = connect(provider)
    for _ in range(2):
        connection.request("POST", CHAT, json.dumps(chat_body()))
        connection.getresponse().read()
    connection.close()
    assert provider.requests[-1].connection == provider.requests[-2].connection + 1
    count = len(provider.requests)
    assert reply_to(raw_request("last", extra="Connection: close\r\n") + raw_request("too late")).count(b"200 OK") == 1
    assert [request.prompt for request in provider.requests[count:]] == ["last"]


# ---- counting, waiting, holding


def test_held_requests_pass_in_order_of_arrival_as_they_are_released(provider: FakeProvider) -> None:
    provider.hold()
    socks = []
    for number in range(4):
        sock = dial(provider)
        sock.sendall(raw_request(f"prompt {number}", extra="Connection: close\r\n"))
        provider.wait_for_requests(number + 1)
        socks.append(sock)
    assert (provider.in_flight, provider.max_in_flight) == (4, 4)
    provider.reply("scripted while held")
    socks[1].close()
    provider.wait_for_disconnects(1)
    provider.release(2)
    assert b"scripted while held" in read_all(socks[0])
    assert b"prompt 2" in read_all(socks[2])
    assert [request.finished is None for request in provider.requests] == [False, True, False, True]
    provider.release(2)
    assert b"prompt 3" in read_all(socks[3])
    assert text(provider, "uses the second pass") == "uses the second pass"
    sock = dial(provider)
    sock.sendall(raw_request("last", extra="Connection: close\r\n"))
    assert provider.wait_for_requests(6)[5].prompt == "last"
    assert provider.in_flight == 1
    provider.release()
    assert b"last" in read_all(sock)
    provider.wait_until_idle()
    sock.close()
    for sock in socks:
        sock.close()


def test_waiting_for_what_does_not_come_says_what_is_missing(provider: FakeProvider) -> None:
    text(provider)
    with pytest.raises(TimeoutError, match="1 of 2 requests arrived"):
        provider.wait_for_requests(2, timeout=0)
    with pytest.raises(TimeoutError, match="of 5 connections were closed"):
        provider.wait_for_disconnects(5, timeout=0)
    provider.stall()
    with dial(provider) as sock:
        sock.sendall(raw_request())
        provider.wait_for_requests(2)
        with pytest.raises(TimeoutError, match="1 requests still in flight"):
            provider.wait_until_idle(timeout=0)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Both ends of a thousand connections are ours; some systems allow 1,024 descriptors unless asked."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 4096) if hard == resource.RLIM_INFINITY else min(max(soft, 4096), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_kept_connections_at_once_each_get_their_own_reply(provider: FakeProvider) -> None:
    provider.default = lambda request: f"<{request.prompt}>"
    provider.hold()
    connections = 1000
    socks = [dial(provider) for _ in range(connections)]
    for turn in range(2):
        for number, sock in enumerate(socks):
            sock.sendall(raw_request(f"{turn}/{number}"))
        provider.wait_for_requests((turn + 1) * connections, timeout=60)
        assert provider.in_flight == connections
        provider.release(connections)
        for number, sock in enumerate(socks):
            assert f'"<{turn}/{number}>"'.encode() in sock.recv(65536)
    assert (provider.max_in_flight, provider.connections_opened) == (connections, connections)
    for sock in socks:
        sock.close()
    provider.wait_for_disconnects(connections, timeout=60)


def test_many_threads_may_script_and_ask_at_once_and_nothing_is_lost(provider: FakeProvider) -> None:
    def one(number: int) -> str:
        provider.reply(f"reply {number}", when=f"prompt {number}.")
        return str(text(provider, f"prompt {number}."))

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(one, range(200)))
    assert replies == [f"reply {number}" for number in range(200)]
    assert sorted(request.index for request in provider.requests) == list(range(200))
    assert provider.unused == 0


def test_latency_delays_the_reply_and_not_the_others(provider: FakeProvider) -> None:
    provider.reply("late", when="slow", latency=30.0)
    with dial(provider) as slow:
        slow.sendall(raw_request("slow"))
        provider.wait_for_requests(1)
        assert text(provider, "quick") == "quick"
        assert provider.in_flight == 1
    provider.wait_until_idle()
    provider.latency = 0.02
    assert text(provider) == "Hello."
    last = provider.requests[-1]
    assert last.finished is not None
    assert last.finished - last.started >= 0.02


def test_a_client_that_leaves_during_the_latency_or_between_the_pieces_is_forgotten(provider: FakeProvider) -> None:
    provider.reply("never read", latency=0.002)
    with dial(provider) as sock:
        sock.sendall(raw_request())
        provider.wait_for_requests(1)
    provider.reply("never read either", chunk_latency=0.002)
    with dial(provider) as sock:
        sock.sendall(raw_request(stream=True))
        assert sock.recv(1).startswith(b"H")
    provider.wait_for_disconnects(2)
    provider.reply("later", latency=0.02)
    assert text(provider) == "later"
    provider.stop()  # would raise what a timer left behind had done
    assert [request.aborted for request in provider.requests[1:]] == [True, False]


def test_no_other_provider_is_where_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process knows of an address would be taken for true of it. The system gives one again after some hundred."""
    ports = set()
    for _ in range(300):
        with FakeProvider() as provider:
            ports.add(provider.port)
    assert len(ports) == 300
    monkeypatch.setattr(_fake_server, "_ports_used", set(range(1 << 16)))
    with FakeProvider() as provider, FakeProvider(port=min(ports)) as other:  # but one that is used is better than none
        assert text(provider, "here") and text(other, "there")


def test_stopping_ends_the_thread_and_every_connection_and_may_be_done_twice() -> None:
    provider = FakeProvider()
    with pytest.raises(RuntimeError, match="call start"):
        _ = provider.base_url
    provider.start()
    assert provider.start() is provider
    assert provider.base_url == f"http://127.0.0.1:{provider.port}/v1"
    provider.hold()
    with dial(provider) as sock:
        sock.sendall(raw_request())
        provider.wait_for_requests(1)
        provider.stop()
        provider.stop()
        assert is_gone(sock)
    assert (provider.in_flight, provider.connections_closed) == (0, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "graphbit-fake-provider"]
    with provider:
        provider.release()
        assert text(provider) == "Hello."
