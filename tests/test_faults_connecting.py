"""What can go wrong before a request is sent: addresses, connections, handshakes, certificates, descriptors."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from faults import (
    GRACE,
    TLS,
    FaultServer,
    Step,
    assert_answers,
    assert_fails,
    assert_nothing_left,
    case,
    client_of,
    close,
    descriptors,
    error_of,
    fin,
    hear,
    reset,
    send,
    stall,
    tls_context,
    trusting,
    whole,
)
from flows import linux_only

import graphbit
from graphbit import ConnectError, RequestError, RequestTimeoutError, TlsError
from graphbit.testing import FakeProvider, virtual_time

# ---------------------------------------------------------------- no connection at all


def test_a_port_where_nobody_listens_is_no_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        error = error_of(url, ConnectError, "got no connection")
        assert isinstance(error, ConnectionError) and (error.status, error.attempts) == (None, 1)
        assert "check that the server runs and listens" in str(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unknown_host_is_named(scheme: str) -> None:
    error_of(f"{scheme}://nowhere.invalid", ConnectError, "found no such host", within=10)


def test_a_host_with_two_addresses_of_which_one_refuses_is_reached() -> None:
    with FaultServer() as server:  # it listens on 127.0.0.1; localhost may be ::1 first
        assert_answers(server.url.replace("127.0.0.1", "localhost"))


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A listener whose backlog is full: who wants to connect hears nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for it in waiting:
            it.setblocking(False)
            it.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for it in waiting:
            it.close()


@linux_only
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connect_timeout": 0.3}, "got no connection in time"),
        ({"connect_timeout": 30, "within": 0.3}, "took too long"),
    ],
)
def test_a_black_hole_is_a_timeout(black_hole: str, options: dict[str, Any], words: str) -> None:
    began = time.monotonic()
    error = error_of(black_hole, RequestTimeoutError, words, **options)
    assert 0.3 <= time.monotonic() - began < 0.3 + GRACE
    assert isinstance(error, TimeoutError) and "300 ms" in str(error)


@pytest.mark.parametrize("end", [fin, reset, close])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_connection_that_ends_at_once_is_a_broken_one_and_tried_again(end: Step, retries: int) -> None:
    with FaultServer() as server, virtual_time():
        server.greet(end)
        if retries:
            assert_answers(server, max_retries=retries)
            assert server.connections == 2
        else:
            assert_fails(server, ConnectError, "connection")  # lost, or never there: who is faster decides


def test_a_connection_that_stays_silent_is_a_timeout() -> None:
    with FaultServer() as server:
        server.greet(stall)
        assert_fails(server, RequestTimeoutError, "took too long", within=0.3)


# A proxy that is down: HTTPS_PROXY and http_proxy are not read yet in a way that can be relied upon. The cases belong here.


# ---------------------------------------------------------------- TLS: whom to trust


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All the certificates that are wrong in some other way than that nobody knows who signed them."""
    bundle = tmp_path_factory.mktemp("trust") / "bundle.pem"
    bundle.write_text(
        "".join((TLS / f"{name}.pem").read_text() for name in ("localhost", "elsewhere", "expired", "early"))
    )
    with trusting(bundle):
        yield


BAD_CERTIFICATES = {
    "expired": "certificate has expired",
    "early": "certificate is not yet valid",
    "elsewhere": "127.0.0.1",  # the name that the certificate does not have
    "signed": "unable to get local issuer certificate",
}


@pytest.mark.parametrize("certificate", BAD_CERTIFICATES)
def test_a_certificate_that_cannot_be_trusted_is_refused_saying_why(trusted: None, certificate: str) -> None:
    with FaultServer(tls=tls_context(certificate)) as server:
        for _ in range(2):  # what was refused once is not remembered as good, nor is what was not looked at
            error = error_of(server, TlsError, "cannot trust the server")
            assert isinstance(error, ConnectError) and error.status is None
            assert BAD_CERTIFICATES[certificate] in str(error) and "SSL_CERT_FILE" in str(error)
            assert_nothing_left(server)
            assert server.requests == []
            client_of(server, verify=False).complete("hello")
            server.requests.clear()
            server.drop()


def test_a_certificate_is_trusted_if_somebody_known_has_signed_it() -> None:
    with trusting(TLS / "authority.pem"):
        with FaultServer(tls=tls_context("localhost")) as server:
            error_of(server, TlsError, "cannot trust the server")
            assert_nothing_left(server)
        with FaultServer(tls=tls_context("signed")) as server:
            assert_answers(server)


def test_a_refused_certificate_is_not_tried_again(trusted: None) -> None:
    with FaultServer(tls=tls_context("expired")) as server, virtual_time():
        assert error_of(server, TlsError, "expired", max_retries=3).attempts == 1
        assert server.connections == 1


# ---------------------------------------------------------------- TLS: handshakes

SERVER_HELLO_BEGINS = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"
ALERT = b"\x15\x03\x03\x00\x02\x02"  # and a number
BROKEN_IS_DISTRUST = "TlsError 'cannot trust the server', not tried again: libcurl's code 35 stands for both"


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        case("an alert", [hear, send(ALERT + b"\x28"), fin], TlsError, "handshake failure"),
        case("an internal error", [hear, send(ALERT + b"\x50"), fin], TlsError, "internal error"),
        case("garbage", [hear, send(b"\x00" * 100), stall], TlsError, "cannot trust the server"),
        case("plain HTTP", [hear, send(whole(b"", "400 Bad Request")), fin], TlsError, "cannot trust the server"),
        case(
            "a mail server", [hear, send(b"220 mail.example.org ESMTP\r\n"), stall], TlsError, "cannot trust the server"
        ),
        case("FIN", [hear, fin], ConnectError, "connection"),
        case("RST", [hear, reset], ConnectError, "connection"),
        case("FIN later", [hear, send(SERVER_HELLO_BEGINS), fin], ConnectError, "connection"),
        case("RST later", [hear, send(SERVER_HELLO_BEGINS), reset], ConnectError, "connection"),
    ],
)
def test_a_handshake_that_fails(trusted: None, steps: Sequence[Step], error: type[RequestError], words: str) -> None:
    with FaultServer(tls=tls_context()) as server:
        server.greet(*steps)
        assert_fails(server, error, words)


@pytest.mark.parametrize("end", [fin, reset])
def test_a_handshake_that_breaks_is_tried_again(trusted: None, end: Step) -> None:
    with FaultServer(tls=tls_context()) as server, virtual_time():
        server.greet(hear, end)
        assert_answers(server, max_retries=1)


@pytest.mark.parametrize("said", [b"", SERVER_HELLO_BEGINS], ids=["from the start", "in the middle"])
def test_a_handshake_that_falls_silent_is_a_connect_timeout(trusted: None, said: bytes) -> None:
    with FaultServer(tls=tls_context()) as server:
        server.greet(send(said), stall)
        assert_fails(server, RequestTimeoutError, "got no connection in time", connect_timeout=0.3)


def test_plain_http_to_a_tls_port_is_a_broken_connection(trusted: None) -> None:
    with FaultServer(tls=tls_context()) as server:
        error_of(server.url.replace("https:", "http:"), ConnectError, "lost its connection before the reply was whole")
        assert_nothing_left(server)
        assert_answers(server)


def test_tls_to_a_plain_port_that_waits_for_more_is_a_connect_timeout() -> None:
    with FaultServer() as server:  # one that answers is "plain HTTP" above
        url = server.url.replace("http:", "https:")
        error_of(url, RequestTimeoutError, "got no connection in time", connect_timeout=0.3)
        assert_nothing_left(server)
        assert server.requests == []
        assert_answers(server)


def old_context() -> ssl.SSLContext:
    context = tls_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def without_encryption() -> ssl.SSLContext:
    context = tls_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("NULL:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("context", [old_context, without_encryption])
@pytest.mark.parametrize("verify", [True, False])
def test_a_server_that_only_knows_weak_tls_is_refused(trusted: None, context: Any, verify: bool) -> None:
    with FaultServer(tls=context()) as server:
        error_of(server, TlsError, "cannot trust the server", verify=verify)
        assert_nothing_left(server)


@pytest.mark.parametrize(
    "version",
    [
        case("1.2", ssl.TLSVersion.TLSv1_2),
        case("1.3", ssl.TLSVersion.TLSv1_3),
    ],
)
def test_a_server_that_wants_to_know_who_we_are_is_not_a_broken_connection(
    trusted: None, version: ssl.TLSVersion
) -> None:
    context = tls_context()
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(TLS / "authority.pem")
    with FaultServer(tls=context) as server, pytest.raises(ConnectError) as caught:
        client_of(server).complete("hello")
    # With 1.3 the server says so after hands were shaken, and the end of the connection may overtake it.
    assert isinstance(caught.value, TlsError) or version == ssl.TLSVersion.TLSv1_3


@linux_only
def test_no_handshake_that_fails_costs_a_descriptor(trusted: None) -> None:
    graphbit.shutdown()  # what other tests left idle would be closed in the meantime
    counts = []
    with FaultServer(tls=tls_context("expired")) as server:
        for _ in range(2):
            for steps in ([], [fin], [reset], [hear, reset], [hear, send(ALERT + b"\x28"), fin]) * 5:
                server.greet(*steps)
                with pytest.raises(ConnectError):
                    client_of(server, admission=False).complete("hello")
                server.wait_until_closed()
            counts.append(descriptors())
    assert counts[1] <= counts[0]


# ---------------------------------------------------------------- TLS: afterwards

HALF = whole()[:-20]


def in_plain(data: bytes) -> Step:
    """Past TLS."""
    return lambda peer: send_all(peer.socket, data)


def send_all(encrypted: socket.socket, data: bytes) -> None:
    with socket.socket(fileno=socket.dup(encrypted.fileno())) as plain:
        plain.sendall(data)


@pytest.mark.parametrize(
    "end",
    [
        case("FIN without goodbye", [fin]),
        case("RST", [reset]),
        case("a record that was tampered with", [in_plain(b"\x17\x03\x03\x00\x20" + b"x" * 32), fin]),
        case("plain text", [in_plain(b"HTTP/1.1 200 OK\r\n\r\n"), fin]),
    ],
)
def test_tls_that_breaks_in_the_middle_of_a_reply_is_a_broken_connection(trusted: None, end: Sequence[Step]) -> None:
    with FaultServer(tls=tls_context()) as server:
        server.script(send(HALF), *end)
        assert_fails(server, ConnectError, "lost its connection before the reply was whole")


# ---------------------------------------------------------------- descriptors

EXHAUSTED = """
import json, os, resource, sys
import graphbit
from graphbit import LlmClient, LlmConfig
from graphbit.runtime import stats

url, spare, warm = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "warm"
client = LlmClient(LlmConfig.openai_compatible(url, "m", max_retries=0, timeout=20))
client.complete("whatever has to be imported")
try:
    LlmClient(LlmConfig.openai_compatible("http://127.0.0.1:1", "m", max_retries=0)).complete("also for failures")
except graphbit.ConnectError:
    pass
if not warm:
    graphbit.shutdown()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = []
try:
    while True:
        files.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for _ in range(spare):
    os.close(files.pop())
answers = client.complete_batch_sync(["p"] * 200, max_concurrency=200, return_exceptions=True)
for file in files:
    os.close(file)
try:
    after = client.complete("and now there is room")
except graphbit.RequestError as error:
    after = repr(error)
counts = stats()
print(json.dumps({"errors": sorted({repr(it) for it in answers if it != "fine"})[:3], "after": after,
                  "left": [counts["requests_in_flight"], counts["requests_queued"]]}))
"""


def exhausted(provider: FakeProvider, spare: int, state: str) -> dict[str, Any]:
    provider.default = "fine"
    command = [sys.executable, "-c", textwrap.dedent(EXHAUSTED), provider.base_url, str(spare), state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@linux_only
@pytest.mark.parametrize(
    ("spare", "state"),
    [(30, "warm"), (12, "warm"), (1, "warm"), (12, "cold"), (6, "cold")],
)
def test_with_few_descriptors_left_many_calls_wait_for_each_other(
    provider: FakeProvider, spare: int, state: str
) -> None:
    assert exhausted(provider, spare, state) == {"errors": [], "after": "fine", "left": [0, 0]}


@linux_only
@pytest.mark.parametrize("state", ["warm", case("cold", "cold", xfail="it stays unable until graphbit.shutdown()")])
def test_a_runtime_that_found_no_descriptor_works_once_there_are_some(provider: FakeProvider, state: str) -> None:
    found = exhausted(provider, 0, state)
    assert (found["after"], found["left"]) == ("fine", [0, 0])
