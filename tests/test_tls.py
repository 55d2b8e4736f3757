"""Whom TLS connections trust: what is in the store, and nobody else. tests/tls holds a certificate that nobody signed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hello_tls import CERTIFICATE, serving

from graphbit import Executor, Node, TlsError, Workflow


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    yield from serving()


def fetch(url: str, verify: bool = True) -> Workflow:
    made = Workflow("fetch")
    made.add(Node.http("page", "GET", url, verify=verify, timeout=10))
    return made


def test_a_certificate_that_nobody_signed_is_refused_naming_the_remedy(port: int) -> None:
    result = Executor().execute(fetch(f"https://localhost:{port}/"))
    with pytest.raises(TlsError, match=r"'page'") as caught:
        result["page"]
    assert isinstance(caught.value, ConnectionError)
    assert "SSL_CERT_FILE" in str(caught.value)


def test_only_that_node_goes_without_verification(port: int) -> None:
    assert Executor().execute(fetch(f"https://localhost:{port}/", verify=False))["page"] == "hello"
    assert Executor().execute(fetch(f"https://localhost:{port}/")).is_failed()


PROGRAM = """
import sys
from graphbit import Executor, Node, Workflow
wf = Workflow("fetch")
wf.add(Node.http("page", "GET", sys.argv[1], timeout=10))
print(Executor().execute(wf).raise_for_failure()["page"])
"""


def run(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ssl_cert_file_names_whom_to_trust(port: int) -> None:
    trusted = run(f"https://localhost:{port}/", SSL_CERT_FILE=CERTIFICATE)
    assert (trusted.returncode, trusted.stdout) == (0, "hello\n"), trusted.stderr


def test_a_certificate_for_another_name_is_refused(port: int) -> None:
    other = run(f"https://127.0.0.2:{port}/", SSL_CERT_FILE=CERTIFICATE)
    assert other.returncode == 1
    assert "TlsError" in other.stderr or "ConnectError" in other.stderr  # 127.0.0.2 is not listened to everywhere
