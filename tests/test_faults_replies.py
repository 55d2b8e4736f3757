"""What can go wrong with a reply: it breaks off, it comes too slowly, it is too large, it is no HTTP, no JSON or no answer."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
import time
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from faults import (
    GRACE,
    FaultServer,
    Step,
    assert_answers,
    assert_fails,
    assert_idle,
    assert_nothing_left,
    case,
    chunked,
    client_of,
    completion,
    descriptors,
    dribble,
    fin,
    flood,
    head,
    pause,
    reset,
    send,
    stall,
    whole,
)
from flows import linux_only, patiently

import graphbit
from graphbit import (
    Admission,
    ConnectError,
    Executor,
    Node,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    Workflow,
)
from graphbit.testing import virtual_time

GOOD = completion()
CHUNKED = head("200 OK", "Transfer-Encoding: chunked")

NOT_HTTP = "got a reply that is not HTTP"
NOT_WHOLE = "lost its connection before the reply was whole"
TOO_LARGE = "got too large a reply"


def of_length(length: object, body: bytes = GOOD) -> bytes:
    return head("200 OK", f"Content-Length: {length}") + body


def encoded(body: bytes, encoding: str = "gzip") -> bytes:
    return whole(body, "200 OK", f"Content-Encoding: {encoding}")


def page_of(server: FaultServer) -> Any:
    """What an HTTP node makes of the reply: its output, or its error is raised."""
    made = Workflow("w")
    made.add(Node.http("page", "GET", server.url, timeout=5))
    return Executor().execute(made)["page"]


# ---------------------------------------------------------------- a reply that breaks off

CUTS = {
    "before the reply": b"",
    "in the status line": b"HTTP/1.1 200",
    "in a header": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "between headers": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
    "after the head": head("200 OK", "Content-Length: 500"),
    "in the body": of_length(500),
    "in a chunk's size": CHUNKED + b"f",
    "in a chunk": CHUNKED + b"ff\r\n" + GOOD,
    "before the last chunk": CHUNKED + chunked(GOOD, last=b""),
    "in the trailer": CHUNKED + chunked(GOOD, last=b"0\r\n"),
}
TAKEN_FOR_WHOLE = "a head that breaks off is taken for a reply without a body, and the connection is kept"


@pytest.mark.parametrize(
    ("cut", "end"),
    [
        case(
            f"{cut}, {end.__name__}",
            CUTS[cut],
            end,
        )
        for cut in CUTS
        for end in (fin, reset)
    ],
)
def test_a_reply_that_breaks_off_is_a_broken_connection_and_tried_again(cut: bytes, end: Step) -> None:
    with FaultServer() as server, virtual_time():
        server.script(send(cut), end)
        error = assert_fails(server, ConnectError, NOT_WHOLE)
        assert (type(error), error.attempts, len(server.requests)) == (ConnectError, 1, 2)
    with FaultServer() as server, virtual_time():
        server.script(send(cut), end)
        assert_answers(server, max_retries=1)
        assert (len(server.requests), server.connections) == (2, 2)


@pytest.mark.parametrize("cut", CUTS)
def test_a_reply_that_stops_coming_is_a_timeout(cut: str) -> None:
    with FaultServer() as server:
        server.script(send(CUTS[cut]), stall)
        began = time.monotonic()
        assert_fails(server, RequestTimeoutError, "took too long", within=0.2)
        assert 0.2 <= time.monotonic() - began < 0.2 + GRACE


@pytest.mark.parametrize("cut", CUTS)
def test_cancelling_whoever_waits_for_the_rest_closes_the_connection(cut: str) -> None:
    with FaultServer() as server:
        begun = threading.Event()
        server.script(send(CUTS[cut]), lambda _: begun.set(), stall)

        async def main() -> None:
            task = asyncio.ensure_future(client_of(server).complete_async("hello"))
            await patiently(asyncio.to_thread(begun.wait))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await patiently(task)

        asyncio.run(main())
        server.wait_until_closed()
        assert_idle()
        assert_answers(server)


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        case("FIN after 100", [send(b"HTTP/1.1 100 Continue\r\n\r\n"), fin], ConnectError, NOT_WHOLE),
        case("FIN after 101", [send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), fin], ConnectError, NOT_WHOLE),
        case("too long a length", [send(of_length(len(GOOD) + 5)), fin], ConnectError, NOT_WHOLE),
        case("too short a length", [send(of_length(len(GOOD) - 5))], ReplyError, "is not valid JSON"),
        case("JSON to the end", [send(head() + GOOD[:-4]), fin], ReplyError, "is not valid JSON"),
        case("gzip to the end", [send(head("200 OK", "Content-Encoding: gzip") + gzip.compress(GOOD)[:60]), fin],
             ReplyError, "is not valid JSON"),
    ],
)  # fmt: skip
def test_a_reply_that_is_not_whole(steps: Sequence[Step], error: type[RequestError], words: str) -> None:
    with FaultServer() as server:
        server.script(*steps)
        assert_fails(server, error, words)


@pytest.mark.parametrize(
    "steps",
    [
        case("a head", [send(CUTS["in a header"]), fin]),
        case("a length", [send(b"HTTP/1.1 200 OK\r\nContent-Length: 5"), fin]),
        case("a body", [send(of_length(500)), fin]),
        case("a chunk", [send(CUTS["in a chunk"]), fin]),
        case("gzip", [send(encoded(gzip.compress(b"hello " * 100)[:-20]))], xfail="what was decoded so far is the output"),
    ],
)  # fmt: skip
def test_half_a_page_is_not_taken_for_the_whole(steps: Sequence[Step]) -> None:
    with FaultServer() as server:
        server.script(*steps)
        with pytest.raises(RequestError):
            page_of(server)
        assert_nothing_left(server)


# ---------------------------------------------------------------- a reply that is no HTTP

LENIENT = "libcurl takes it for a number, or the last of two"
CHUNK_IS_BROKEN = "ConnectError 'lost its connection', tried again: libcurl's code 56 stands for both"


@pytest.mark.parametrize(
    "reply",
    [
        case("garbage", b"\x00\x01\x02\xff" * 100),
        case("a mail server", b"220 mail.example.org ESMTP\r\n"),
        case("HTTP/0.9", GOOD),
        case("HTTP/9.9", whole().replace(b"1.1", b"9.9", 1)),
        case("HTTP/2 unasked", whole().replace(b"1.1", b"2", 1)),
        case("frames of HTTP/2", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        case("an empty line first", b"\r\n" + whole()),
        case("no status", whole().replace(b"200 OK", b"", 1)),
        case("a word for a status", whole().replace(b"200", b"abc", 1)),
        case("status 099", whole().replace(b"200", b"099", 1)),
        case("status 1000", whole().replace(b"200", b"1000", 1)),
        case("a NUL in a header", whole(None, "200 OK", "X: a\0b")),
        case("a header without colon", whole(None, "200 OK", "no colon here")),
        case("a negative length", of_length(-1)),
        case("a word for a length", of_length("many")),
        case("an empty length", of_length("")),
        case("a length with a word behind", of_length(f"{len(GOOD)}abc")),
        case("a length with a sign", of_length(f"+{len(GOOD)}")),
        case("a hexadecimal length", of_length(hex(len(GOOD)))),
        case("a length beyond numbers", of_length(10**30)),
        case("two lengths", of_length(f"5\r\nContent-Length: {len(GOOD)}")),
        case("a wrong length last", of_length(f"{len(GOOD)}\r\nContent-Length: 5")),
        case("an unknown transfer encoding", head("200 OK", "Transfer-Encoding: mystery") + GOOD),
        case("a chunk of zz bytes", CHUNKED + b"zz\r\n" + GOOD),
        case("a chunk of -5 bytes", CHUNKED + b"-5\r\n" + GOOD),
        case("a chunk of 2^64 bytes", CHUNKED + b"ffffffffffffffff\r\n" + GOOD),
        case("a chunk of 2^160 bytes", CHUNKED + b"f" * 40 + b"\r\n" + GOOD),
        case("a chunk longer than it says", CHUNKED + b"5\r\n" + GOOD + b"\r\n0\r\n\r\n"),
        case("an unknown encoding", encoded(GOOD, "mystery")),
        case("gzip that is none", encoded(GOOD)),
        case("gzip with a wrong byte", encoded(gzip.compress(GOOD)[:20] + b"\xff\xff\xff" + gzip.compress(GOOD)[23:])),
        case("gzip with a wrong sum", encoded(gzip.compress(GOOD)[:-8] + b"12345678")),
        case("gzip and more", encoded(gzip.compress(GOOD) + b"junk")),
        case("nine encodings", encoded(GOOD, ", ".join(["gzip"] * 9))),
    ],
)  # fmt: skip
def test_a_reply_that_is_no_http_is_a_reply_error_and_not_tried_again(reply: bytes) -> None:
    with FaultServer() as server:
        server.script(send(reply), stall)
        assert_fails(server, ReplyError, NOT_HTTP, within=1)
        assert len(server.requests) == 2
    with FaultServer() as server, virtual_time():
        server.script(send(reply), stall)
        with pytest.raises(ReplyError):
            client_of(server, max_retries=3, timeout=1).complete("hello")
        assert len(server.requests) == 1


# ---------------------------------------------------------------- a reply without end

BLANK = b" " * 65536
MEGABYTES = 1 << 20


def bomb(size: int) -> bytes:
    """So many blanks, as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * MEGABYTES
    return b"".join([packer.compress(block) for _ in range(size // MEGABYTES)]) + packer.flush()


BOMB = bomb(200 * MEGABYTES)
LINES_ARE_BROKEN = "ConnectError 'lost its connection', tried again: libcurl's code 56 stands for both"


@pytest.mark.parametrize(
    "steps",
    [
        case("a body as announced", [send(head("200 OK", f"Content-Length: {65 * MEGABYTES}")), flood(BLANK)]),
        case("an announcement", [send(of_length(2**63 - 1)), stall]),
        case("chunks", [send(CHUNKED), flood(b"10000\r\n" + BLANK + b"\r\n")]),
        case("a body", [send(head()), flood(BLANK)]),
        case("gzip", [send(encoded(BOMB))]),
        case("gzip in gzip", [send(encoded(gzip.compress(BOMB), "gzip, gzip"))]),
        case("a header line", [send(b"HTTP/1.1 200 OK\r\nX: "), flood(BLANK)]),
        case("a long header", [send(whole(None, "200 OK", "X: " + "x" * MEGABYTES))]),
        case("a status line", [send(b"HTTP/1.1 200 "), flood(b"O" * 65536)], xfail="MemoryError"),
        case("headers", [send(b"HTTP/1.1 200 OK\r\n"), flood(b"X-More: 1234567890\r\n" * 100)]),
        case("100 Continue", [flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)]),
    ],
)  # fmt: skip
def test_a_reply_without_end_is_too_large(steps: Sequence[Step]) -> None:
    assert len(BOMB) < MEGABYTES
    with FaultServer() as server:
        server.script(*steps)
        assert_fails(server, ReplyError, TOO_LARGE, within=10)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "steps",
    [
        case("a header", [send(b"HTTP/1.1 200 OK\r\nX: "), flood(b"x", every=0.02)]),
        case("a body", [send(head()), flood(b" ", every=0.02)]),
        case("chunks", [send(CHUNKED), flood(b"1\r\n \r\n", every=0.02)]),
        case("100 Continue", [flood(b"HTTP/1.1 100 Continue\r\n\r\n", every=0.02)]),
    ],
)
def test_a_reply_that_comes_for_ever_in_drops_is_a_timeout(steps: Sequence[Step]) -> None:
    with FaultServer() as server:
        server.script(*steps)
        assert_fails(server, RequestTimeoutError, "took too long", within=0.3)


# ---------------------------------------------------------------- what is unusual, and has to be understood

WORDS = "größe 🐝 – ​ 漢字"
UTF8 = whole(completion(WORDS))


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        case("byte by byte", [dribble(whole())], "fine"),
        case("chunks byte by byte", [dribble(CHUNKED + chunked(GOOD, 3))], "fine"),
        case("gzip byte by byte", [dribble(encoded(gzip.compress(GOOD)))], "fine"),
        case("characters byte by byte", [dribble(UTF8)], WORDS),
        case("characters in chunks of one byte", [send(CHUNKED + chunked(completion(WORDS), 1))], WORDS),
        case("gzip", [send(encoded(gzip.compress(GOOD)))], "fine"),
        case("deflate", [send(encoded(zlib.compress(GOOD), "deflate"))], "fine"),
        case("gzip in gzip", [send(encoded(gzip.compress(gzip.compress(GOOD)), "gzip, gzip"))], "fine"),
        case("no encoding by name", [send(encoded(GOOD, "identity"))], "fine"),
        case("a chunk with an extension", [send(CHUNKED + b'%x;a="b"\r\n%b\r\n0\r\n\r\n' % (len(GOOD), GOOD))], "fine"),
        case("chunks with a trailer", [send(CHUNKED + chunked(GOOD, last=b"0\r\nX-Sum: 5\r\n\r\n"))], "fine"),
        case("chunks and a length", [send(head("200 OK", "Content-Length: 5", "Transfer-Encoding: chunked") + chunked(GOOD))], "fine"),
        case("the same length twice", [send(of_length(f"{len(GOOD)}\r\nContent-Length: {len(GOOD)}"))], "fine"),
        case("no length", [send(head() + GOOD), fin], "fine"),
        case("HTTP/1.0", [send(whole().replace(b"1.1", b"1.0", 1)), fin], "fine"),
        case("lines without CR", [send(whole().replace(b"\r\n", b"\n"))], "fine"),
        case("a folded header", [send(whole(None, "200 OK", "X: a", "  b"))], "fine"),
        case("a header of 90 kB", [send(whole(None, "200 OK", "X: " + "x" * 90_000))], "fine"),
        case("1000 headers", [send(whole(None, "200 OK", *["X: " + "x" * 100] * 1000))], "fine"),
        case("100 Continue", [send(b"HTTP/1.1 100 Continue\r\n\r\n" + whole())], "fine"),
        case("100 Continue, and a pause", [send(b"HTTP/1.1 100 Continue\r\n\r\n"), dribble(whole())], "fine"),
        case("100 Continue 1000 times", [send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + whole())], "fine"),
        case("103 Early Hints", [send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole())], "fine"),
        case("a byte order mark", [send(whole(b"\xef\xbb\xbf" + GOOD))], "fine"),
        case("an error that is null", [send(whole(completion(error=None)))], "fine"),
        case("JSON 100 deep", [send(whole(b'{"x":' + b"[" * 100 + b"]" * 100 + b"," + GOOD[1:]))], "fine"),
        case("a number beyond numbers", [send(whole(completion(usage={"prompt_tokens": 10**40})))], "fine"),
        case("half a surrogate pair", [send(whole(GOOD.replace(b"fine", b"\\ud83d")))], "�"),
    ],
)  # fmt: skip
def test_a_reply_that_is_unusual_is_understood(steps: Sequence[Step], text: str) -> None:
    with FaultServer() as server:
        server.script(*steps)
        assert_answers(server, text)
        assert len(server.requests) == 1
        assert_answers(server)


# ---------------------------------------------------------------- a reply that is no answer

DEEP = 100_000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        case("nothing", b"", "is not valid JSON"),
        case("no JSON", b'{"choices": oops}', "is not valid JSON: {"),
        case("half of it", GOOD[:-4], "is not valid JSON: {"),
        case("more than it", GOOD + b"junk", "is not valid JSON: {"),
        case("two of it", GOOD + GOOD, "is not valid JSON: {"),
        case("deep beside the answer", b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"," + GOOD[1:], "is not valid JSON: {"),
        case("deep lists", b"[" * DEEP + b"]" * DEEP, "is not valid JSON: ["),
        case("deep lists, open", b"[" * DEEP, "is not valid JSON: ["),
        case("deep objects", b'{"a":' * DEEP + b"1" + b"}" * DEEP, "is not valid JSON: {"),
        case("UTF-16", GOOD.decode().encode("utf-16"), "is not valid JSON"),
        case("half a character", completion("ä").replace(b"\xc3\xa4", b"\xc3"), "is not valid JSON"),
        case("no character", GOOD.replace(b"fine", b"\xff\xfe"), "is not valid JSON"),
        case("a character too long", GOOD.replace(b"fine", b"\xc0\xaf"), "is not valid JSON"),
        case("half a surrogate pair in bytes", GOOD.replace(b"fine", b"\xed\xa0\x80"), "is not valid JSON"),
        case("a control character", GOOD.replace(b"fine", b"\x00"), "is not valid JSON"),
        case("NaN", completion(usage={"prompt_tokens": float("nan")}), "is not valid JSON"),
        case("another kind of JSON", b'{"models": []}', "holds nothing that was asked for"),
        case("a list", b"[]", "holds nothing that was asked for"),
        case("a page", b"<html>hello</html>", "is not valid JSON: <html>hello</html>"),
    ],
)
def test_a_body_that_is_no_answer_is_a_reply_error_that_shows_it(body: bytes, words: str) -> None:
    with FaultServer() as server:
        server.script(send(whole(body)))
        error = assert_fails(server, ReplyError, words, keeps_connection=True, max_retries=3)
        assert "got a reply of another kind" in str(error) and len(str(error)) < 500
        assert (error.status, error.attempts, error.body) == (200, 1, body.decode(errors="replace"))


# ---------------------------------------------------------------- many at once

STORM: Sequence[Sequence[Step]] = (
    *[[send(cut), fin] for cut in CUTS.values() if cut != CUTS["in a header"]],  # taken for whole, see above
    *[[send(cut), reset] for cut in CUTS.values()],
    [send(whole(b"{}", "503 Service Unavailable", "Retry-After: 100"))],
    [send(whole(b"{}", "500 Internal Server Error")), fin],
    [send(whole()), reset],
    [dribble(whole())],
)


def test_in_a_storm_every_call_gets_its_answer_in_the_end() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with FaultServer() as server, virtual_time():
        for _ in range(200):
            server.script(*dice.choice(STORM))
        client = client_of(server, max_retries=100, admission=Admission(breaker=False))
        answers = client.complete_batch_sync(["hello"] * 100, max_concurrency=40)
        assert answers == ["fine"] * 100
        assert_idle()
        server.drop()


@linux_only
def test_no_fault_costs_a_descriptor() -> None:
    graphbit.shutdown()  # what other tests left idle would be closed in the meantime
    with FaultServer() as server:
        client = client_of(server, timeout=2, admission=False)
        counts = []
        for _ in range(2):
            for steps in [*STORM[:-4]] * 3:
                server.script(*steps)
                with pytest.raises(ConnectError):
                    client.complete("hello")
                server.wait_until_closed()
            counts.append(descriptors())
        assert counts[1] <= counts[0]


def test_a_request_that_the_server_does_not_read_is_a_timeout() -> None:
    with FaultServer() as server:
        let_go = threading.Event()
        server.greet(pause(let_go), stall)
        with pytest.raises(RequestTimeoutError, match="took too long"):
            client_of(server, timeout=0.3).complete("x" * (32 * MEGABYTES))
        let_go.set()
        assert_nothing_left(server)
        assert_answers(server)
