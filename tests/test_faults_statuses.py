"""What a server says is wrong, in a status or beside one, when it asks to come back, and what becomes of its connection."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from email.utils import formatdate
from time import time
from typing import Any

import pytest
from faults import (
    FaultServer,
    Peer,
    Step,
    assert_answers,
    assert_fails,
    assert_nothing_left,
    case,
    chunked,
    client_of,
    completion,
    error_of,
    fin,
    head,
    reset,
    send,
    whole,
)

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConnectError,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestError,
    ServerError,
    StatusError,
)
from graphbit.testing import VirtualClock, virtual_time

# ---------------------------------------------------------------- statuses

STATUSES: dict[int, tuple[type[StatusError], str]] = {
    400: (BadRequestError, "400 Bad Request"),
    401: (AuthenticationError, "401 Unauthorized"),
    403: (AuthenticationError, "403 Forbidden"),
    404: (NotFoundError, "404 Not Found"),
    408: (BadRequestError, "408 Request Timeout"),
    409: (BadRequestError, "409 Conflict"),
    413: (BadRequestError, "413 "),  # Python 3.13 calls it Content Too Large
    422: (BadRequestError, "422 "),
    429: (RateLimitError, "429 Too Many Requests"),
    500: (ServerError, "500 Internal Server Error"),
    502: (ServerError, "502 Bad Gateway"),
    503: (ServerError, "503 Service Unavailable"),
    504: (ServerError, "504 Gateway Timeout"),
    529: (ServerError, "status 529"),
}
MAY_PASS = {408, 409, 429, 500, 502, 503, 504, 529}

BODIES = {
    "an error object": b'{"error": {"message": "The reason.", "type": "the_type", "code": "the_code"}}',
    "a page": b"<html>\n<h1>The reason.</h1>\n</html>",
    "half an error object": b'{"error": {"message": "The reason.',
    "bytes": b"The reason.\xff\xfe\x00",
}


def refusal(status: int, *lines: str, body: bytes = b'{"error": {"message": "The reason."}}') -> bytes:
    return whole(body, f"{status} Whatever", *lines)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", BODIES)
def test_a_status_is_an_error_of_its_kind_whatever_the_body_is(status: int, body: str) -> None:
    kind, words = STATUSES[status]
    with FaultServer() as server:
        server.script(send(refusal(status, "X-Request-Id: r-5", body=BODIES[body])))
        error = assert_fails(server, kind, f"failed ({words}", keeps_connection=True)
        assert "The reason" in str(error) and "\n" not in str(error)
        assert (error.status, error.attempts, error.request_id) == (status, 1, "r-5")
        assert error.body == BODIES[body].decode(errors="replace")
        assert (error.type, error.code) == (("the_type", "the_code") if body == "an error object" else (None, None))


@pytest.mark.parametrize("status", sorted(MAY_PASS))
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    with FaultServer() as server, virtual_time() as clock:
        server.script(send(refusal(status)))
        answer = client_of(server, max_retries=1).complete_full("hello")
        assert (answer.content, answer.attempts) == ("fine", 2)
        assert (len(server.requests), server.connections) == (2, 1)
        assert server.requests[0] == server.requests[1]
        assert 0.2 < clock.now() < 1


@pytest.mark.parametrize("status", sorted(STATUSES.keys() - MAY_PASS))
def test_a_status_that_stays_is_not_tried_again(status: int) -> None:
    with FaultServer() as server:
        server.script(send(refusal(status)))
        assert error_of(server, STATUSES[status][0], "The reason", max_retries=3).attempts == 1
        assert len(server.requests) == 1
        assert_answers(server)


@pytest.mark.parametrize(
    "steps",
    [
        case("without a body", [send(head("500 Oops", "Content-Length: 0"))]),
        case("in chunks", [send(head("500 Oops", "Transfer-Encoding: chunked") + chunked(b"{}"))]),
        case("to the end", [send(head("500 Oops") + b"{}"), fin]),
        case("and RST", [send(refusal(500)), reset]),
    ],
)
def test_a_status_is_the_error_however_its_reply_ends(steps: Sequence[Step]) -> None:
    with FaultServer() as server:
        server.script(*steps)
        error_of(server, ServerError, "failed (500 Internal Server Error)")
        assert_answers(server)


def test_a_status_whose_body_breaks_off_is_a_broken_connection() -> None:
    with FaultServer() as server:
        server.script(send(head("400 Bad Request", "Content-Length: 500") + b"{"), fin)
        assert_fails(server, ConnectError, "lost its connection before the reply was whole")


# ---------------------------------------------------------------- when to come back

YEAR = 365 * 24 * 3600.0
BACKOFF = (0.25, 0.5)


def later(seconds: float) -> str:
    return formatdate(time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("lines", "asked", "least", "most"),
    [
        case("seconds", ["Retry-After: 7"], 7, 7, 7.5),
        case("a fraction", ["Retry-After: 1.5"], 1.5, 1.5, 2),
        case("milliseconds", ["retry-after-ms: 1500"], 1.5, 1.5, 2),
        case("both", ["Retry-After: 60", "retry-after-ms: 1500"], 1.5, 1.5, 2),
        case("both, the other way round", ["retry-after-ms: 1500", "Retry-After: 60"], 1.5, 1.5, 2),
        case("nothing", [], None, *BACKOFF),
        case("no time", ["Retry-After: 0"], 0, *BACKOFF),
        case("a date that has been", ["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT"], 0, *BACKOFF),
        case("a negative number", ["Retry-After: -7"], None, *BACKOFF),
        case("negative milliseconds", ["retry-after-ms: -7"], None, *BACKOFF),
        case("negative milliseconds beside seconds", ["retry-after-ms: -7", "Retry-After: 7"], 7, 7, 7.5),
        case("a word", ["Retry-After: soon"], None, *BACKOFF),
        case("an empty one", ["Retry-After:"], None, *BACKOFF),
        case("a hexadecimal number", ["Retry-After: 0x10"], None, *BACKOFF),
        case("half a date", ["Retry-After: Sun, 06 Nov"], None, *BACKOFF),
    ],
)
def test_nobody_comes_back_sooner_than_the_server_asks(
    lines: list[str], asked: float | None, least: float, most: float
) -> None:
    with FaultServer() as server, virtual_time() as clock:
        server.script(send(refusal(429, *lines)))
        assert error_of(server, RateLimitError, "429").retry_after == asked
        server.script(send(refusal(429, *lines)))
        assert_waits(server, clock, least, most)


def test_nobody_comes_back_before_the_date_that_the_server_names() -> None:
    with FaultServer() as server, virtual_time() as clock:
        server.script(send(refusal(429, f"Retry-After: {later(60)}")))
        assert_waits(server, clock, 55, 61)  # the date's seconds and ours need not begin together


def assert_waits(server: FaultServer, clock: VirtualClock, least: float, most: float) -> None:
    before = clock.now()
    assert_answers(server, max_retries=1, admission=False)  # which would have everybody wait, and a little longer
    assert least <= clock.now() - before <= most + 0.01
    assert server.requests[-1].body == server.requests[-2].body


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("Retry-After: 3600", 3600),
        ("Retry-After: 99999999999999999999999999", YEAR),
        ("retry-after-ms: 99999999999999999999999999", YEAR),
        ("Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", YEAR),
    ],
)
def test_a_server_that_asks_for_too_much_is_not_waited_for(line: str, asked: float) -> None:
    with FaultServer() as server:
        server.script(send(refusal(429, line)))
        error = error_of(server, RateLimitError, f"the server asks to wait {asked:g} s", max_retries=3)
        assert (error.retry_after, error.attempts, len(server.requests)) == (asked, 1, 1)


# ---------------------------------------------------------------- errors with a good status


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        case("429", {"message": "Slow down.", "code": 429}, RateLimitError, "(429 Too Many Requests): Slow down"),
        case("503", {"message": "No.", "code": "503"}, ServerError, "(503 Service Unavailable): No"),
        case("401", {"message": "Who?", "code": 401}, AuthenticationError, "(401 Unauthorized): Who?"),
        case("400", {"message": "What?", "code": 400}, BadRequestError, "(400 Bad Request): What?"),
        case("a word", {"message": "Bad key.", "code": "invalid_api_key"}, StatusError, "failed: Bad key"),
        case("no code", {"message": "Something."}, StatusError, "failed: Something"),
        case("a text", "Bad thing.", StatusError, "failed: Bad thing"),
    ],
)
@pytest.mark.parametrize("beside", [b"{}", completion()], ids=["alone", "beside an answer"])
def test_an_error_object_in_a_good_reply_is_an_error(
    error: object, kind: type[StatusError], words: str, beside: bytes
) -> None:
    body = json.dumps({"error": error, **json.loads(beside)}).encode()
    with FaultServer() as server:
        server.script(send(whole(body)))
        assert assert_fails(server, kind, words, keeps_connection=True).status == 200


def test_an_error_object_in_a_good_reply_is_tried_again_where_its_status_would_be() -> None:
    with FaultServer() as server, virtual_time():
        server.script(send(whole(b'{"error": {"message": "Slow down.", "code": 429}}')))
        assert_answers(server, max_retries=1)
        assert len(server.requests) == 2
        server.script(send(whole(b'{"error": {"message": "Slow down.", "code": "other"}}')))
        assert error_of(server, StatusError, "Slow down", max_retries=3).attempts == 1


# ---------------------------------------------------------------- replies without an answer


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        case("200", whole(b""), "got a reply of another kind"),
        case("204", b"HTTP/1.1 204 No Content\r\n\r\n", "got a reply of another kind"),
        case("205", whole(b"", "205 Reset Content"), "got a reply of another kind"),
        case("304", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', "got a reply of another kind"),
    ],
)  # fmt: skip
def test_a_reply_without_a_body_is_no_answer(reply: bytes, words: str) -> None:
    with FaultServer() as server:
        server.script(send(reply))
        error = assert_fails(server, ReplyError, words, keeps_connection=True)
        assert error.status == int(reply.split()[1]) and error.body == ""


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with FaultServer() as elsewhere, FaultServer() as server:
        server.script(send(whole(b"moved", f"{status} Elsewhere", f"Location: {elsewhere.url}/v1/chat/completions")))
        error = assert_fails(server, ReplyError, f"was redirected (status {status})", keeps_connection=True)
        assert "use the URL that it leads to" in str(error) and error.attempts == 1
        assert (len(server.requests), elsewhere.connections) == (2, 0)


# ---------------------------------------------------------------- connections that are used again


def test_calls_use_one_connection_as_long_as_it_is_there() -> None:
    with FaultServer() as server:
        for _ in range(20):
            assert_answers(server)
        assert server.connections == 1


@pytest.mark.parametrize("end", [fin, reset])
@pytest.mark.parametrize("said", ["", "Connection: close"])
def test_a_server_that_goes_after_every_reply_loses_no_call(end: Step, said: str) -> None:
    with FaultServer() as server:
        server.otherwise(send(whole(None, "200 OK", *([said] if said else []))), end)
        for _ in range(20):
            assert_answers(server)
        assert (server.connections, len(server.requests)) == (20, 20)


class Later:
    """A step that says something once its reply has been read, as a server does that shuts down an idle connection."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.go, self.gone = threading.Event(), threading.Event()

    def __call__(self, peer: Peer) -> None:
        send(whole())(peer)
        assert self.go.wait(10)
        for step in self.steps:
            step(peer)
        self.gone.set()

    def now(self) -> None:
        self.go.set()
        assert self.gone.wait(10)


def half_close(peer: Peer) -> None:
    peer.socket.shutdown(socket.SHUT_WR)


TAKEN_FOR_THE_NEXT = "what came while nobody asked is taken for the reply to the next request"


@pytest.mark.parametrize(
    "steps",
    [
        case("FIN", [half_close]),
        case("goodbye", [send(refusal(408, "Connection: close")), half_close]),
        case("an empty line", [send(b"\r\n")]),
        case("garbage", [send(b"\x00" * 20)]),
        case("another reply", [send(whole(completion("not yours")))]),
    ],
)
def test_what_a_server_says_on_an_idle_connection_is_not_the_next_reply(steps: Sequence[Step]) -> None:
    with FaultServer() as server:
        idle = Later(*steps)
        server.script(idle)
        assert_answers(server)
        idle.now()
        assert_answers(server)
        assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("more", [b"junk", b"\r\n", whole(completion("not yours")), whole(b"", "500 Oops")])
@pytest.mark.parametrize(
    "reply",
    [
        whole(),
        head("200 OK", "Transfer-Encoding: chunked") + chunked(completion()),
    ],
    ids=["length", "chunks"],
)
def test_what_comes_behind_a_reply_is_not_the_next_one(reply: bytes, more: bytes) -> None:
    with FaultServer() as server:
        server.script(send(reply + more))
        assert_answers(server)
        assert_answers(server)
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_body_where_there_can_be_none_is_not_the_next_reply(status: str) -> None:
    with FaultServer() as server:
        server.script(send(whole(completion("not yours"), status)))
        error_of(server, ReplyError, "is not valid JSON")
        assert_answers(server)


@pytest.mark.parametrize("steps", [[fin], [reset], [send(b"HTTP/1.1 200"), reset]], ids=["FIN", "RST", "RST, later"])
def test_a_connection_that_was_idle_and_breaks_is_replaced_without_counting_as_an_attempt(
    steps: Sequence[Step],
) -> None:
    """libcurl sends the request again: the server may have closed before it came. It may also have begun to work on it."""
    with FaultServer() as server:
        assert_answers(server)
        server.script(*steps)
        answer = client_of(server).complete_full("hello")
        assert (answer.content, answer.attempts) == ("fine", 1)
        assert (server.connections, len(server.requests)) == (2, 3)


def test_a_reply_that_comes_before_the_request_is_whole_is_the_reply() -> None:
    def refuse(peer: Peer) -> None:
        peer.read_until(b"\r\n\r\n")
        send(refusal(413, "Connection: close"))(peer)
        fin(peer)

    with FaultServer() as server:
        server.greet(refuse)
        with pytest.raises(BadRequestError, match="413 .*The reason"):
            client_of(server).complete("x" * (8 << 20))
        assert_nothing_left(server)
        assert_answers(server)


@pytest.mark.parametrize("retries", [0, 3])
def test_one_fault_among_many_calls_is_the_fault_of_one(retries: int) -> None:
    with FaultServer() as server, virtual_time():
        server.script(send(refusal(500)))
        answers: list[Any] = client_of(server, max_retries=retries).complete_batch_sync(
            ["hello"] * 50, max_concurrency=50, return_exceptions=True
        )
        failed = [it for it in answers if isinstance(it, RequestError)]
        assert answers.count("fine") == 50 - len(failed)
        assert [type(it) for it in failed] == ([] if retries else [ServerError])
