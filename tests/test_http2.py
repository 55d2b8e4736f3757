"""HTTP/2, and HTTP/1.1 over TLS, against nginx, which many providers stand behind: how connections are shared and used again.

nginx need not be installed, only be there: on Debian `apt-get download nginx && dpkg -x nginx_*.deb somewhere`, and GRAPHBIT_NGINX
names somewhere/usr/sbin/nginx.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import (
    TLS,
    assert_answers,
    assert_idle,
    client_of,
    error_of,
    trusting,
)
from flows import until

from graphbit import ConnectError
from graphbit._fake_server import listen
from graphbit.testing import FakeProvider, virtual_time


@pytest.fixture(scope="module", autouse=True)
def trusted() -> Iterator[None]:
    with trusting(TLS / "localhost.pem"):
        yield


# ---------------------------------------------------------------- nginx

NGINX = os.environ.get("GRAPHBIT_NGINX") or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx: see the top of this file")

CONFIG = """
daemon off;
{user}
pid {here}/pid;
events {{ worker_connections 2048; }}
http {{
    log_format it '$connection $server_protocol $status';
    access_log {here}/log it;
    client_body_temp_path {here}/client; proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
    client_max_body_size 0;
    {options}
    server {{
        listen 127.0.0.1:{port} ssl {http2};
        ssl_certificate {tls}/localhost.pem;
        ssl_certificate_key {tls}/localhost.key;
        location / {{ proxy_pass {upstream}; proxy_http_version 1.1; }}
    }}
}}
"""


class Nginx:
    """In front of a fake provider. It is given a socket that listens already: nobody waits for it, and no port is taken twice."""

    def __init__(self, here: Path, upstream: FakeProvider, http2: bool, options: str) -> None:
        assert NGINX is not None
        self.here = here
        with listen(backlog=511) as listener:
            port = listener.getsockname()[1]
            (here / "nginx.conf").write_text(
                CONFIG.format(
                    here=here,
                    port=port,
                    tls=TLS,
                    upstream=upstream.url,
                    http2="http2" if http2 else "",
                    options=options,
                    user="user root;" if os.geteuid() == 0 else "",  # nobody may not write to our directory
                )
            )
            self.process = subprocess.Popen(
                [NGINX, "-p", str(here), "-c", str(here / "nginx.conf"), "-e", str(here / "errors")],
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=[listener.fileno()],
            )
        self.url = f"https://127.0.0.1:{port}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def log(self, count: int) -> list[list[str]]:
        """Connection, protocol and status of each request, once there are so many."""
        until(lambda: (self.here / "log").read_text().count("\n") >= count)
        return [line.split() for line in (self.here / "log").read_text().splitlines()]

    def connections(self, count: int) -> int:
        return len({line[0] for line in self.log(count)})


@contextmanager
def nginx(here: Path, upstream: FakeProvider, *, http2: bool = True, options: str = "") -> Iterator[Nginx]:
    upstream.default = "fine"
    started = Nginx(here, upstream, http2, options)
    try:
        yield started
    finally:
        started.stop()


def at_once(server: Nginx, provider: FakeProvider, count: int = 200, **options: Any) -> list[Any]:
    """So many calls, all of them on their way before the first is answered."""
    before = len(provider.requests)
    provider.hold()
    answers: list[Any] = []
    client = client_of(server.url, timeout=30, **options)
    batch = threading.Thread(
        target=lambda: answers.extend(
            client.complete_batch_sync(["hello"] * count, max_concurrency=count, return_exceptions=True)
        )
    )
    batch.start()
    provider.wait_for_requests(before + count)
    provider.release()
    batch.join()
    return answers


@needs_nginx
def test_many_calls_at_once_share_few_connections(provider: FakeProvider, tmp_path: Path) -> None:
    with nginx(tmp_path, provider) as server:
        assert at_once(server, provider) == ["fine"] * 200
        assert provider.max_in_flight == 200
        assert server.connections(200) <= 8
        assert {line[1] for line in server.log(200)} == {"HTTP/2.0"}
        assert_idle()


@needs_nginx
@pytest.mark.xfail(strict=True, reason="100 share the first one, and the others open 62 more although two would do")
def test_many_calls_at_once_share_few_connections_also_when_one_is_there(
    provider: FakeProvider, tmp_path: Path
) -> None:
    with nginx(tmp_path, provider) as server:
        assert_answers(server.url)
        assert at_once(server, provider) == ["fine"] * 200
        assert server.connections(201) <= 8


@needs_nginx
def test_many_calls_one_after_another_share_one_connection(provider: FakeProvider, tmp_path: Path) -> None:
    with nginx(tmp_path, provider) as server:
        for _ in range(20):
            assert_answers(server.url)
        assert server.connections(20) == 1


@needs_nginx
def test_http_1_over_tls_uses_its_connections_again(provider: FakeProvider, tmp_path: Path) -> None:
    with nginx(tmp_path, provider, http2=False) as server:
        for _ in range(20):
            assert_answers(server.url)
        assert server.connections(20) == 1
        for _ in range(2):
            assert at_once(server, provider, 100) == ["fine"] * 100
        assert server.connections(220) == 100
        assert {line[1] for line in server.log(220)} == {"HTTP/1.1"}


@needs_nginx
@pytest.mark.parametrize("options", ["http2_max_concurrent_streams 2;", "keepalive_requests 20;"])
def test_a_server_that_takes_few_requests_a_connection_loses_none(
    provider: FakeProvider, tmp_path: Path, options: str
) -> None:
    with nginx(tmp_path, provider, options=options) as server, virtual_time():
        client = client_of(server.url, max_retries=5)
        for _ in range(3):
            assert client.complete_batch_sync(["hello"] * 100, max_concurrency=100) == ["fine"] * 100
        assert_idle()


@needs_nginx
@pytest.mark.parametrize("http2", [True, False])
def test_large_bodies_come_and_go_whole(provider: FakeProvider, tmp_path: Path, http2: bool) -> None:
    with nginx(tmp_path, provider, http2=http2) as server:
        provider.default = lambda request: request.prompt[::-1]
        prompt = "".join(map(str, range(500_000)))
        answers = client_of(server.url, timeout=30).complete_batch_sync([prompt] * 4, max_concurrency=4)
        assert answers == [prompt[::-1]] * 4


@needs_nginx
@pytest.mark.parametrize("http2", [True, False])
def test_a_server_that_is_stopped_breaks_its_connections(provider: FakeProvider, tmp_path: Path, http2: bool) -> None:
    with nginx(tmp_path, provider, http2=http2) as server:
        provider.hold()
        answers: list[Any] = []
        client = client_of(server.url, timeout=30)
        batch = threading.Thread(
            target=lambda: answers.extend(
                client.complete_batch_sync(["hello"] * 50, max_concurrency=50, return_exceptions=True)
            )
        )
        batch.start()
        provider.wait_for_requests(50)
        server.stop()
        batch.join()
        assert [it for it in answers if not isinstance(it, ConnectError)] == [] and len(answers) == 50
        assert_idle()
        error_of(server.url, ConnectError, "got no connection", admission=False)  # the breaker would not ask
