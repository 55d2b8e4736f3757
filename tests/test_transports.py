"""The transports under httpx and httpx2: a response is the same whichever transport brought it, and so is whatever the client makes of it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from clients import OURS, WAYS, ChunkPeer, Way, assert_no_request_left
from faults import FaultServer, chunked, dribble, head, pause, send, tls_context, whole

import graphbit
from graphbit import ConfigurationError, HttpOptions, transports

TEXT = "Grüße, ".encode() * 200


class Server(FaultServer):
    peer_class = ChunkPeer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        yield it
        assert_no_request_left()


def reply(status: str, *lines: str, body: bytes = b"") -> bytes:
    text = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}", ""))
    return text.encode("latin-1") + body


# --------------------------------------------------------------------------------------------------- what goes out


@WAYS
@pytest.mark.parametrize(
    ("method", "more", "body"),
    [
        ("GET", {}, b""),
        ("GET", {"params": {"q": "a b/ü", "r": ["1", "2"]}}, b""),
        ("GET", {"content": b"a body"}, b"a body"),
        ("POST", {"json": {"a": 1}}, b'{"a":1}'),
        ("POST", {"data": {"a": "1", "b": "ü"}}, b"a=1&b=%C3%BC"),
        ("POST", {}, b""),
        ("POST", {"content": b"x" * 300_000}, b"x" * 300_000),
        ("PUT", {"content": b""}, b""),
        ("PATCH", {"content": b"p"}, b"p"),
        ("DELETE", {}, b""),
        ("DELETE", {"content": b"d"}, b"d"),
        ("OPTIONS", {}, b""),
        ("PROPFIND", {"content": b"<x/>"}, b"<x/>"),
    ],
    ids=lambda it: it if isinstance(it, str) else None,
)
def test_a_request_goes_out_as_the_client_made_it(
    way: Way, server: Server, method: str, more: dict[str, Any], body: bytes
) -> None:
    with way.talk() as talk:
        response = talk.request(
            method, f"{server.url}/a/../b//c?x=%2F#no", headers=[("X-Two", "1"), ("x-two", "2")], **more
        )
    sent, (got,) = response.request, server.requests
    assert (got.method, got.target, got.body) == (method, sent.url.raw_path.decode(), body)
    assert got.headers == {**dict(sent.headers.items()), "x-two": "2"}  # the server keeps the last of two
    assert response.status_code == 200


@WAYS
def test_no_header_is_added(way: Way, server: Server) -> None:
    with way.talk() as talk:
        request = way.module.Request("POST", server.url, headers={"Host": "there"}, content=b"x")
        talk.do(talk.client.send(request))
        talk.request("GET", server.url, headers={"User-Agent": "mine", "Accept": "", "Host": "elsewhere"})
    assert server.requests[0].headers == {"host": "there", "content-length": "1"}
    assert server.requests[1].headers["user-agent"] == "mine"
    assert (server.requests[1].headers["accept"], server.requests[1].headers["host"]) == ("", "elsewhere")


@WAYS
def test_a_target_takes_the_paths_place(way: Way, server: Server) -> None:
    with way.talk() as talk:
        talk.request("OPTIONS", f"{server.url}/x", extensions={"target": b"*"})
        talk.request("GET", f"{server.url}/x")
    assert [it.target for it in server.requests] == ["*", "/x"]


# ----------------------------------------------------------------------------------------------------- what comes back


@WAYS
def test_a_response_is_what_the_server_said(way: Way, server: Server) -> None:
    server.script(send(reply("418 I'm a  teapot", "X-Two: a", "x-Two:  b ", "Empty:", "Latin: é", body=TEXT)))
    with way.talk() as talk:
        response = talk.request("GET", server.url)
    assert (response.status_code, response.reason_phrase, response.http_version) == (418, "I'm a  teapot", "HTTP/1.1")
    assert response.headers.raw == [
        (b"X-Two", b"a"), (b"x-Two", b"b"), (b"Empty", b""), (b"Latin", "é".encode("latin-1")),
        (b"Content-Length", b"%d" % len(TEXT)),
    ]  # fmt: skip
    assert (response.content, response.text) == (TEXT, TEXT.decode())
    assert response.is_closed
    assert response.is_stream_consumed
    assert response.elapsed.total_seconds() > 0


@WAYS
@pytest.mark.parametrize("how", ["length", "chunked", "until closed", "byte by byte"])
def test_a_body_may_be_framed_in_any_way(way: Way, server: Server, how: str) -> None:
    from faults import close

    steps = {
        "length": [send(reply("200 OK", body=TEXT))],
        "chunked": [send(head("200 OK", "Transfer-Encoding: chunked") + chunked(TEXT, 100))],
        "until closed": [send(head("200 OK", "Connection: close") + TEXT), close],
        "byte by byte": [dribble(reply("200 OK", body=TEXT[:70]), 0)],
    }[how]
    server.script(*steps)
    with way.talk() as talk:
        response, pieces = talk.pieces("GET", server.url)
        assert b"".join(pieces) == TEXT[: 70 if how == "byte by byte" else None]
        assert response.status_code == 200
        assert talk.request("GET", server.url).status_code == 200


@WAYS
@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")]
)
def test_a_reply_without_a_body_ends_with_its_head(way: Way, server: Server, method: str, status: str) -> None:
    lines = [] if status.startswith("204") else ["Content-Length: 1000"]
    server.script(send(head(status, *lines)))
    with way.talk() as talk:
        response = talk.request(method, server.url)
        assert (response.status_code, response.content) == (int(status[:3]), b"")
        assert talk.request("GET", server.url).status_code == 200
    assert server.connections == 1


@WAYS
def test_heads_that_only_inform_are_passed_over(way: Way, server: Server) -> None:
    server.script(send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + reply("200 OK", "X: 1", body=b"ok")))
    with way.talk() as talk:
        response = talk.request("GET", server.url)
    assert (response.status_code, response.content, "link" in response.headers) == (200, b"ok", False)


@WAYS
def test_what_is_encoded_is_decoded_by_the_client_alone(way: Way, server: Server) -> None:
    body = gzip.compress(TEXT)
    server.otherwise(send(reply("200 OK", "Content-Encoding: gzip", body=body)))
    with way.talk() as talk:
        response = talk.request("GET", server.url)
        assert response.content == TEXT
        assert response.headers["content-encoding"] == "gzip"
        assert response.num_bytes_downloaded == len(body)
        assert b"".join(talk.pieces("GET", server.url)[1]) == body


@OURS
def test_graphbits_own_requests_are_none_the_worse(way: Way, server: Server) -> None:
    """They use the same connections and handles, and are decoded."""
    from graphbit import Executor, Node, Workflow

    server.otherwise(send(reply("200 OK", "Content-Encoding: gzip", body=gzip.compress(b"page"))))
    page = Workflow("page")
    page.add(Node.http("page", "GET", f"{server.url}/a/../b"))
    for _ in range(3):
        with way.talk() as talk:
            talk.request("POST", f"{server.url}/a/../b", content=way.body([b"x"]), extensions={"target": b"/target"})
        assert Executor().execute(page).raise_for_failure()["page"] == "page"
    assert server.connections == 1
    assert [it.target for it in server.requests] == ["/target", "/b"] * 3
    assert [it.headers.get("user-agent") for it in server.requests][1::2] == ["graphbit"] * 3


@WAYS
def test_each_piece_is_there_before_the_next_was_sent(way: Way, server: Server) -> None:
    gates = [threading.Event() for _ in range(3)]
    steps = [step for number, gate in enumerate(gates) for step in (send(b"1\r\n%d\r\n" % number), pause(gate))]
    server.script(send(head("200 OK", "Transfer-Encoding: chunked")), *steps, send(b"0\r\n\r\n"))
    with way.talk() as talk:
        _, pieces = talk.pieces("GET", server.url, lambda piece: gates[int(piece)].set())
    assert pieces == [b"0", b"1", b"2"]


@WAYS
def test_trailers_are_no_part_of_the_head(way: Way, server: Server) -> None:
    server.script(send(head("200 OK", "Transfer-Encoding: chunked") + chunked(b"abc", last=b"0\r\nX-Late: 1\r\n\r\n")))
    with way.talk() as talk:
        response = talk.request("GET", server.url)
    assert (response.content, "x-late" in response.headers) == (b"abc", False)


@OURS
def test_it_speaks_tls_and_trusts_whom_it_is_told_to(way: Way) -> None:
    from faults import TLS

    with Server(tls=tls_context("signed")) as server:
        with way.talk() as talk, pytest.raises(way.error("ConnectError"), match="certificate"):
            talk.request("GET", server.url)
        with way.talk(way.transport(http=HttpOptions(ca_file=str(TLS / "authority.pem")))) as talk:
            assert talk.request("GET", server.url.replace("127.0.0.1", "localhost")).status_code == 200
        with way.talk(way.transport(verify=False)) as talk:
            assert talk.request("GET", server.url).http_version == "HTTP/1.1"


@OURS
def test_it_speaks_http2_where_the_server_does(way: Way) -> None:
    from http2_faults import Http2Server

    with Http2Server() as server, way.talk(way.transport(verify=False)) as talk:
        for content in (b"", b"x" * 200_000, way.body([b"a" * 50_000, b"b"])):
            response = talk.request("POST", f"{server.url}/path?q", content=content, headers={"X-One": "1"})
            assert (response.http_version, response.status_code, response.reason_phrase) == ("HTTP/2", 200, "OK")
            assert response.json()["choices"]
        assert [len(it.body) for it in server.requests] == [0, 200_000, 50_001]
        for it in server.requests:
            assert (it.target, it.headers["x-one"]) == ("/path?q", "1")
            assert it.headers[":authority"] == server.url.partition("//")[2]
            assert "transfer-encoding" not in it.headers
        assert server.connections == 1


# ------------------------------------------------------------------------------------------------------ above the transport


@WAYS
def test_redirects_cookies_and_history_are_the_clients(way: Way, server: Server) -> None:
    server.script(send(reply("302 Found", "Location: /next", "Set-Cookie: k=v; Path=/")))
    server.script(send(reply("307 Temporary Redirect", "Location: last")))
    with way.talk(follow_redirects=True) as talk:
        response = talk.request("POST", f"{server.url}/first", content=b"body")
        assert [it.status_code for it in response.history] == [302, 307]
        assert talk.client.cookies["k"] == "v"
    assert [(it.method, it.target, it.body) for it in server.requests] == [
        ("POST", "/first", b"body"), ("GET", "/next", b""), ("GET", "/last", b""),
    ]  # fmt: skip
    assert server.requests[1].headers["cookie"] == "k=v"
    server.script(send(reply("302 Found", "Location: /next")))
    with way.talk() as talk:
        assert talk.request("GET", server.url).next_request.url.path == "/next"


@WAYS
def test_digest_authentication_goes_its_two_rounds(way: Way, server: Server) -> None:
    challenge = 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
    server.script(send(reply("401 Unauthorized", challenge, body=b"who?")))
    with way.talk(auth=way.module.DigestAuth("user", "pass")) as talk:
        assert talk.request("GET", f"{server.url}/secret").status_code == 200
    assert "authorization" not in server.requests[0].headers
    assert server.requests[1].headers["authorization"].startswith("Digest ")


@WAYS
def test_a_password_in_the_url_is_the_clients_affair(way: Way, server: Server) -> None:
    with way.talk() as talk:
        talk.request("GET", server.url.replace("://", "://user:p%40ss@"))
    assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"


@WAYS
def test_event_hooks_see_requests_and_responses(way: Way, server: Server) -> None:
    seen: list[Any] = []

    def plain(it: Any) -> None:
        seen.append(type(it).__name__)

    async def on_loop(it: Any) -> None:
        seen.append(type(it).__name__)

    hook = on_loop if way.is_async else plain
    with way.talk(event_hooks={"request": [hook], "response": [hook]}) as talk:
        talk.request("GET", server.url)
    assert seen == ["Request", "Response"]


@WAYS
def test_a_response_can_be_left_unread_and_the_next_request_is_answered(way: Way, server: Server) -> None:
    server.script(send(head("200 OK", "Content-Length: 100") + b"some"), lambda peer: peer.socket.recv(1))
    with way.talk() as talk:
        for _ in range(2):
            response = talk.do(talk.client.send(talk.client.build_request("GET", server.url), stream=True))
            talk.do(response.aclose() if way.is_async else response.close())
            assert response.is_closed
            with pytest.raises(way.error("StreamClosed")):
                talk.do(response.aread() if way.is_async else response.read())


# -------------------------------------------------------------------------------------------------------- the transports


@OURS
def test_connections_are_used_again_from_client_to_client(way: Way, server: Server) -> None:
    for _ in range(5):
        with way.talk() as talk:
            assert talk.request("GET", server.url).json()
    assert server.connections == 1


@OURS
def test_bounds_of_a_reply_are_those_that_were_given(way: Way, server: Server) -> None:
    server.otherwise(send(whole(b"x" * 2000)))
    with way.talk(way.transport(http=HttpOptions(max_body_bytes=1000))) as talk:
        with pytest.raises(way.error("RemoteProtocolError"), match="larger than 1000 bytes") as caught:
            talk.request("GET", server.url)
        assert isinstance(caught.value.__cause__, graphbit.ReplyError)
    with way.talk() as talk:
        assert len(talk.request("GET", server.url).content) == 2000


@OURS
def test_a_proxy_is_asked_where_there_is_one(way: Way, server: Server) -> None:
    with way.talk(way.transport(http=HttpOptions(proxy=server.url))) as talk:
        assert talk.request("GET", "http://nowhere.example/x").status_code == 200
    assert server.requests[0].target == "http://nowhere.example/x"
    server.script(send(reply("403 Forbidden")))
    with way.talk(way.transport(http=HttpOptions(proxy=server.url))) as talk, pytest.raises(way.error("ProxyError")):
        talk.request("GET", "https://nowhere.example/x")


@OURS
def test_public_only_lets_nothing_else_pass(way: Way, server: Server) -> None:
    refusing = way.transport(http=HttpOptions(public_only=True))
    with way.talk(refusing) as talk, pytest.raises(way.error("ConnectError"), match="not a public one") as caught:
        talk.request("GET", server.url)
    assert isinstance(caught.value.__cause__, graphbit.RefusedError)
    assert not server.requests


@OURS
def test_options_that_cannot_be_right_are_refused(way: Way) -> None:
    with pytest.raises(ConfigurationError, match="ca_file"):
        way.transport(verify="/etc/ssl/ours.pem")
    with pytest.raises(TypeError, match=r"^(Async)?Httpx2?Transport\(\) .*'proxy': http=HttpOptions\(proxy="):
        way.transport(proxy="http://127.0.0.1:3128")
    with pytest.raises(TypeError, match="'verfy': it takes admission, verify and http"):
        way.transport(verfy=False)
    with pytest.raises(TypeError, match="admission"):
        way.transport(admission=1)
    with pytest.raises(TypeError, match="HttpOptions"):
        way.transport(http={})
    with pytest.raises(TypeError):
        way.transport(False)
    made = way.transport(admission=False, verify=False, http=HttpOptions(proxy=""))
    assert (made.admission, made.verify) == (None, False)
    assert repr(made) == f"{type(made).__name__}(admission=False, verify=False, http=HttpOptions(proxy=''))"


def test_every_failure_of_an_exchange_has_a_name_in_httpx() -> None:
    import httpx

    from graphbit.transports import _failures

    assert set(_failures.NAMES.values()) <= set(_failures.EXCEPTIONS)
    assert all(issubclass(getattr(httpx, name), httpx.TransportError) for name in _failures.EXCEPTIONS)


def test_the_names_are_what_they_say() -> None:
    assert set(transports.__all__) <= set(dir(transports))
    with pytest.raises(AttributeError, match="no_such_thing"):
        transports.no_such_thing  # noqa: B018
    for name in transports.__all__:
        assert "transport=" in (getattr(transports, name).__doc__ or "")


@pytest.mark.parametrize(("family", "name"), [("httpx", "HttpxTransport"), ("httpx2", "AsyncHttpx2Transport")])
def test_one_family_does_not_need_the_other_and_a_missing_one_is_named(family: str, name: str) -> None:
    other = "httpx2" if family == "httpx" else "httpx"
    program = (
        "import sys\n"
        "import graphbit\n"
        "sys.modules[MISSING] = None\n"
        "from graphbit import transports\n"
        "assert not {'httpx', 'httpx2', 'asyncio'} & {name for name, it in sys.modules.items() if it}\n"
        f"try: print(transports.{name}.__name__)\n"
        "except ImportError as error: print(error)\n"
    )
    for missing, expected in ((other, name), (family, f"pip install 'graphbit[{family}]'")):
        done = subprocess.run(
            [sys.executable, "-c", program.replace("MISSING", repr(missing))],
            capture_output=True,
            text=True,
            check=False,
        )
        assert expected in done.stdout, done.stderr


@OURS
def test_a_thousand_requests_leave_nothing_behind(way: Way, server: Server) -> None:
    before = graphbit.http_stats()
    with way.talk() as talk:
        for number in range(250):
            assert json.loads(talk.request("POST", server.url, json=number).content)
    after = graphbit.http_stats()
    assert after["in_flight"] == after["queued"] == 0
    assert after["requests_succeeded"] - before["requests_succeeded"] == 250
