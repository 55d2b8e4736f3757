"""HttpOptions: caps, public addresses only, proxies, trust and client certificates; limits of connections; http_stats."""

from __future__ import annotations

import copy
import gzip
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flows import linked, prints
from hello_tls import CERTIFICATE as CA, KEY, serving

import graphbit
from graphbit import (
    ConfigurationError,
    ConnectError,
    Executor,
    HttpOptions,
    LlmClient,
    LlmConfig,
    Node,
    RefusedError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    TlsError,
)
from graphbit.testing import FakeProvider


def fetched(url: str, http: HttpOptions | None = None, **options: Any) -> Any:
    options.setdefault("timeout", 20)
    return Executor().execute(linked([Node.http("page", "GET", url, http=http, **options)]))["page"]


# ------------------------------------------------------------------------------------------------------------- the value


def test_options_are_a_value() -> None:
    one = HttpOptions(
        proxy="http://u:secret@p.example:3128", idle_timeout=2, client_cert=CA, client_key=KEY, client_key_password="pw"
    )
    assert one == HttpOptions(
        proxy="http://u:secret@p.example:3128",
        idle_timeout=2.0,
        client_cert=CA,
        client_key=KEY,
        client_key_password="pw",
    )
    assert one != HttpOptions()
    assert len({one, copy.deepcopy(one), pickle.loads(pickle.dumps(one))}) == 1
    assert "secret" not in repr(one)
    assert "pw" not in repr(one)
    assert repr(HttpOptions(max_redirects=1)) == "HttpOptions(max_redirects=1)"
    with pytest.raises(AttributeError, match="do not change"):
        one.proxy = None
    config = LlmConfig.openai_compatible("http://x/v1", "m", http=one)
    assert config == LlmConfig.openai_compatible("http://x/v1", "m", http=one)
    assert config != LlmConfig.openai_compatible("http://x/v1", "m")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_body_bytes": 0},
        {"max_header_bytes": -1},
        {"max_event_bytes": True},
        {"max_json_depth": 5000},
        {"max_redirects": 1.5},
        {"first_byte_timeout": 0},
        {"idle_timeout": float("nan")},
        {"proxy": "p.example:3128"},
        {"proxy": "ftp://p.example"},
        {"proxy": "http://p.example/\r\nX: y"},
        {"ca_file": "/no/such/file.pem"},
        {"client_key": KEY},
        {"no_proxy": 5},
        {"public_only": 1},
        {"public_only": True, "proxy": "http://p.example:3128"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        HttpOptions(**wrong)


def test_http_takes_options_and_nothing_else() -> None:
    with pytest.raises(TypeError, match="HttpOptions"):
        Node.http("n", "GET", "http://x/", http={"proxy": ""})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="HttpOptions"):
        LlmConfig.openai_compatible("http://x/v1", "m", http="proxy")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------ caps


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_bounded(provider: FakeProvider, announced: bool) -> None:
    head = f"content-length: {20_001}" if announced else "connection: close"
    raw = f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + b"x" * 20_001
    provider.route("GET", "/big", text="")
    provider.reply_raw(raw, path="/big")
    with pytest.raises(ReplyError, match="larger than 20000 bytes.*HttpOptions"):
        fetched(provider.url + "/big", HttpOptions(max_body_bytes=20_000))
    provider.reply_raw(raw, path="/big")
    assert len(fetched(provider.url + "/big", HttpOptions(max_body_bytes=20_001))) == 20_001


def test_a_small_reply_that_unpacks_to_much_is_bounded_and_so_is_what_comes_over_the_wire(
    provider: FakeProvider,
) -> None:
    packed = gzip.compress(bytes(50 << 20))
    provider.route("GET", "/bomb", body=packed, headers={"content-encoding": "gzip"})
    with pytest.raises(ReplyError, match="larger than 1048576 bytes"):
        fetched(provider.url + "/bomb", HttpOptions(max_body_bytes=1 << 20))
    noise = os.urandom(100_000)
    provider.route("GET", "/noise", body=gzip.compress(noise), headers={"content-encoding": "gzip"})
    with pytest.raises(ReplyError, match="on the wire"):
        fetched(provider.url + "/noise", HttpOptions(max_wire_bytes=50_000))


@pytest.mark.parametrize("lines", [1, 100])
def test_a_head_is_bounded(provider: FakeProvider, lines: int) -> None:
    many = "".join(f"x-{i}: {'y' * (20_000 // lines)}\r\n" for i in range(lines))
    raw = f"HTTP/1.1 200 OK\r\n{many}content-length: 2\r\n\r\nok".encode()
    provider.route("GET", "/head", text="")
    provider.reply_raw(raw, path="/head")
    with pytest.raises(ReplyError, match="head is larger than 10000 bytes"):
        fetched(provider.url + "/head", HttpOptions(max_header_bytes=10_000))
    provider.reply_raw(raw, path="/head")
    assert fetched(provider.url + "/head") == "ok"


def test_json_is_read_as_deep_as_was_agreed(provider: FakeProvider) -> None:
    for depth, bound, fine in ((50, 128, True), (200, 128, False), (200, 250, True), (1020, 1024, True)):
        provider.route("GET", "/deep", body=b'{"a":1,"b":' + b"[" * depth + b"]" * depth + b"}")
        node = Node.http("page", "GET", provider.url + "/deep", json_path="a", http=HttpOptions(max_json_depth=bound))
        result = Executor().execute(linked([node]))
        assert result.is_success() is fine, depth


def test_silence_has_a_time_of_its_own(provider: FakeProvider) -> None:
    provider.route("GET", "/slow", text="")
    provider.stall("headers", path="/slow", text="x" * 100)
    with pytest.raises(RequestTimeoutError, match="silent"):
        fetched(provider.url + "/slow", HttpOptions(idle_timeout=0.1))
    provider.stall(path="/slow")
    with pytest.raises(RequestTimeoutError, match="no reply within 100 ms"):
        fetched(provider.url + "/slow", HttpOptions(first_byte_timeout=0.1))


# ------------------------------------------------------------------------------------------------ public addresses only


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f000001", "017700000001", "127.1", "[::ffff:127.0.0.1]",
     "10.0.0.1", "169.254.169.254", "192.168.1.1", "[fe80::1]", "[fd00::1]", "100.64.0.1"],
)  # fmt: skip
def test_private_addresses_are_not_connected_to(provider: FakeProvider, host: str) -> None:
    port = provider.url.rpartition(":")[2]
    with pytest.raises(RefusedError, match="not a public one.*public_only"):
        fetched(f"http://{host}:{port}/data", HttpOptions(public_only=True), connect_timeout=5)
    assert provider.requests == []
    assert provider.connections_opened == 0


def test_a_connection_that_others_made_is_no_way_in(provider: FakeProvider) -> None:
    provider.route("GET", "/data", text="fine")
    assert fetched(provider.url + "/data") == "fine"
    with pytest.raises(RefusedError):
        fetched(provider.url + "/data", HttpOptions(public_only=True))
    assert fetched(provider.url + "/data") == "fine"
    assert provider.connections_opened == 1


def test_a_public_address_is_connected_to() -> None:
    """Who answers there on this machine, if anybody does, is of no interest; it was tried."""
    with pytest.raises(RequestError) as caught:
        fetched("http://8.8.8.8:9/", HttpOptions(public_only=True), connect_timeout=0.2, timeout=2)
    assert not isinstance(caught.value, RefusedError)


def test_no_proxy_is_asked_where_only_public_addresses_are_good_enough(provider: FakeProvider) -> None:
    code = """
        from graphbit import Executor, HttpOptions, Node, Workflow
        made = Workflow("w")
        made.add(Node.http("page", "GET", "http://127.0.0.1:9/data", http=HttpOptions(public_only=True), timeout=5))
        print(type(Executor().execute(made).errors["page"]).__name__)
    """
    assert in_environment(code, http_proxy=provider.url) == "RefusedError"
    assert provider.requests == []


# --------------------------------------------------------------------------------------------------------------- proxies


def in_environment(code: str, **environment: str) -> str:
    import textwrap

    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FETCH = """
    import sys
    from graphbit import Executor, Node, Workflow
    made = Workflow("w")
    made.add(Node.http("page", "GET", "http://somewhere.invalid/data", timeout=5))
    result = Executor().execute(made)
    print(result["page"] if result.is_success() else type(result.errors["page"]).__name__)
"""


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"http_proxy": "{url}"}, "proxied"),
        ({"HTTP_PROXY": "{url}"}, "proxied"),
        ({"ALL_PROXY": "{url}"}, "proxied"),
        ({"HTTP_PROXY": "{url}", "REQUEST_METHOD": "GET"}, "ConnectError"),  # whoever sends a header Proxy sets it
        ({"https_proxy": "{url}"}, "ConnectError"),
        ({"http_proxy": "{url}", "NO_PROXY": "other.invalid,somewhere.invalid"}, "ConnectError"),
        ({"http_proxy": "{url}", "no_proxy": ".invalid"}, "ConnectError"),
        ({"http_proxy": "{url}", "no_proxy": "*"}, "ConnectError"),
        ({"http_proxy": "http://127.0.0.1:1"}, "ConnectError"),
        ({}, "ConnectError"),
    ],
    ids=str,
)
def test_the_environment_names_proxies(provider: FakeProvider, environment: dict[str, str], found: str) -> None:
    provider.route("GET", "/data", text="proxied")
    assert (
        in_environment(FETCH, **{name: value.format(url=provider.url) for name, value in environment.items()}) == found
    )
    if found == "proxied":
        assert provider.requests[0].target == "http://somewhere.invalid/data"


def test_options_name_a_proxy_or_none(provider: FakeProvider) -> None:
    provider.route("GET", "/data", text="proxied")
    with_password = provider.url.replace("http://", "http://user:pass@")
    assert fetched("http://somewhere.invalid/data", HttpOptions(proxy=with_password)) == "proxied"
    assert provider.requests[0].headers["proxy-authorization"].startswith("Basic ")
    with pytest.raises(ConnectError):
        fetched("http://somewhere.invalid/data", HttpOptions(proxy=""))
    with pytest.raises(ConnectError):
        fetched("http://somewhere.invalid/data", HttpOptions(proxy=provider.url, no_proxy="somewhere.invalid"))
    with pytest.raises(ConnectError):
        fetched("http://somewhere.invalid/data", HttpOptions(proxy="http://127.0.0.1:1"))
    with pytest.raises(ConnectError):  # what one request asked for is not kept for the next
        fetched("http://somewhere.invalid/data")


class Tunnel:
    """A proxy that knows CONNECT alone, and sends whoever asks to one port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                here, _ = self.listener.accept()
            except OSError:
                return
            self.asked.append(here.recv(65536).split(b"\r\n")[0].decode())
            there = socket.create_connection(("127.0.0.1", self.port))
            here.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self.pipe, args=(source, sink), daemon=True).start()

    @staticmethod
    def pipe(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def test_https_goes_through_a_tunnel_and_is_still_checked(tls_port: int) -> None:
    with Tunnel(tls_port) as tunnel:
        assert fetched("https://localhost/x", HttpOptions(proxy=tunnel.url, ca_file=CA)) == "hello"
        assert tunnel.asked == ["CONNECT localhost:443 HTTP/1.1"]
        with pytest.raises(TlsError):
            fetched("https://localhost/x", HttpOptions(proxy=tunnel.url))


# ------------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def tls_port() -> Iterator[int]:
    yield from serving()


@pytest.fixture(scope="module")
def strict_port() -> Iterator[int]:
    """Whoever comes must show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(CA)
    yield from serving(context)


def test_an_authority_of_ones_own_is_trusted_by_whom_it_was_given_to(tls_port: int) -> None:
    url = f"https://localhost:{tls_port}/"
    for _ in range(3):
        assert fetched(url, HttpOptions(ca_file=CA)) == "hello"
        with pytest.raises(TlsError, match="ca_file"):
            fetched(url)


def test_a_client_certificate_is_shown_where_it_was_given(strict_port: int) -> None:
    url = f"https://localhost:{strict_port}/"
    for _ in range(2):
        assert fetched(url, HttpOptions(ca_file=CA, client_cert=CA, client_key=KEY)) == "hello"
        with pytest.raises((TlsError, ConnectError)):
            fetched(url, HttpOptions(ca_file=CA))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_tls_1_2_replaced_is_not_spoken() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    server = serving(context)
    port = next(server)
    with pytest.raises((TlsError, ConnectError)):
        fetched(f"https://localhost:{port}/", HttpOptions(ca_file=CA))
    server.close()


def test_connections_are_shared_by_equal_options_only(tls_port: int) -> None:
    before = graphbit.http_stats().get("connections_opened", 0)
    url = f"https://localhost:{tls_port}/"
    for _ in range(3):
        fetched(url, HttpOptions(ca_file=CA, max_redirects=3))
    assert graphbit.http_stats()["connections_opened"] - before <= 1


# ------------------------------------------------------------------------------------------------- limits and numbers


def test_so_many_connections_at_once_and_the_rest_waits(provider: FakeProvider) -> None:
    code = f"""
        import graphbit
        from graphbit import LlmClient, LlmConfig
        graphbit.configure_runtime(max_connections=5, max_connections_per_host=LIMIT)
        client = LlmClient(LlmConfig.openai_compatible({provider.base_url!r}, "m", max_retries=0))
        answers = client.complete_batch_sync([f"p{{i}}" for i in range(60)], max_concurrency=60)
        assert len(answers) == 60
        stats = graphbit.http_stats()
        print(stats["connections_opened"], stats["in_flight"], stats["queued"], stats["requests_succeeded"])
    """
    provider.default = lambda request: request.prompt
    assert prints(code.replace("LIMIT", "100")).split() == ["5", "0", "0", "60"]
    assert provider.max_in_flight <= 5
    assert prints(code.replace("LIMIT", "2")).split() == ["2", "0", "0", "60"]


def test_hosts_take_turns_on_few_connections_without_waiting_for_nothing(provider: FakeProvider) -> None:
    """Where no connection is kept, each that ends makes room at once."""
    with FakeProvider() as other:
        for it in (provider, other):
            it.route("GET", "/page", text="fine", headers={"connection": "close"})
        code = f"""
            import graphbit
            from graphbit import Executor, Node, Workflow
            graphbit.configure_runtime(max_connections=2)
            made = Workflow("w")
            for i in range(40):
                made.add(Node.http(f"n{{i}}", "GET", ({provider.url!r}, {other.url!r})[i % 2] + "/page", timeout=8))
            result = Executor().execute(made).raise_for_failure()
            print(len(result.errors), result.duration < 8)
        """
        assert prints(code).split() == ["0", "True"]


def test_a_host_at_its_limit_does_not_hold_up_another(provider: FakeProvider) -> None:
    with FakeProvider() as other:
        code = f"""
            import graphbit, threading
            from graphbit import LlmClient, LlmConfig
            graphbit.configure_runtime(max_connections_per_host=1)
            slow = LlmClient(LlmConfig.openai_compatible({provider.base_url!r}, "m"))
            quick = LlmClient(LlmConfig.openai_compatible({other.base_url!r}, "m"))
            thread = threading.Thread(target=slow.complete_batch_sync, args=(["a", "b", "c"],))
            thread.start()
            print(quick.complete("hi"), flush=True)
            input()
            thread.join()
            print(graphbit.http_stats()["connections_opened"])
        """
        import textwrap

        provider.default = "slow"
        provider.hold()
        other.default = "quick"
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "quick\n"
            provider.release()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "2\n"
        assert provider.max_in_flight == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors are counted in /proc")
def test_a_process_out_of_descriptors_waits_instead_of_failing(provider: FakeProvider) -> None:
    code = f"""
        import os, resource, threading
        import graphbit
        from graphbit import LlmClient, LlmConfig
        client = LlmClient(LlmConfig.openai_compatible({provider.base_url!r}, "m", max_retries=0))
        client.complete("warm")
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(4):
            os.close(held.pop())
        answers = client.complete_batch_sync([f"p{{i}}" for i in range(100)], max_concurrency=100)
        assert answers == [f"p{{i}}" for i in range(100)], answers
        # None at all is left for the first connection to another server: it waits until there is one.
        other = LlmClient(LlmConfig.openai_compatible({provider.base_url!r}.replace("127.0.0.1", "127.0.0.2"), "m", max_retries=0))
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        threading.Timer(0.3, lambda: [os.close(it) for it in held]).start()
        try:
            other.complete("later")
        except graphbit.ConnectError as error:  # where nobody listens on that address
            assert "refused" in str(error).lower() or "connect" in str(error).lower(), error
        print(graphbit.http_stats()["queued"], graphbit.http_stats()["in_flight"])
    """
    provider.default = lambda request: request.prompt
    assert prints(code).split() == ["0", "0"]


def test_statistics_say_what_was(provider: FakeProvider) -> None:
    provider.default = "fine"
    code = f"""
        import graphbit
        assert graphbit.http_stats() == {{}}
        client = graphbit.LlmClient(graphbit.LlmConfig.openai_compatible({provider.base_url!r}, "m", max_retries=3))
        for _ in range(10):
            client.complete("hi")
        it = graphbit.http_stats()
        retries = it.pop("retries")
        assert {{name: count for name, count in retries.items() if count}} == {{"status_429": 1, "status_5xx": 1, "closed": 1}}, retries
        for kind in ("first_byte", "total"):
            times = it.pop(kind)
            assert times.pop("count") == 12
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"] <= times["max_ms"] < 60_000, times
        assert it.pop("bytes_sent") > 1000 and it.pop("bytes_received") > 1000
        opened, reused = it.pop("connections_opened"), it.pop("connections_reused")
        assert opened + reused == 13 and opened <= 3, (opened, reused)
        [controller] = it.pop("admission")
        assert controller["admitted"] == 13 and controller["rate_limited"] == controller["overloaded"] == 1, controller
        assert it == {{"requests_started": 13, "requests_succeeded": 12, "requests_failed": 1, "requests_cancelled": 0,
                      "in_flight": 0, "queued": 0, "connections_open": 1}}, it
        print("good")
    """
    provider.fail(429, retry_after=0)
    provider.fail(529, retry_after=0)
    provider.cut("headers")
    assert prints(code).strip() == "good"


def test_a_key_of_idempotency_is_one_for_all_attempts(provider: FakeProvider) -> None:
    provider.fail(500, retry_after=0, times=2)
    provider.default = "fine"
    client = LlmClient(LlmConfig.openai("sk-" + "x" * 40, "m", provider.base_url, max_retries=2))
    client.complete("hi")
    client.complete("hi")
    keys = [it.headers.get("idempotency-key", "") for it in provider.requests]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert all(len(it) >= 32 for it in keys)
