"""A machine without libcurl: everything that needs no network works, and the first request names the package to install.

The machine is played by a shim of dlopen that does not find libcurl.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
void *dlopen(const char *name, int flags) {
    static void *(*real)(const char *, int);
    if (name && strstr(name, "libcurl")) return 0;
    if (!real) real = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    return real(name, flags);
}
"""

PROGRAM = """
from graphbit.runtime import curl_version
from graphbit import Executor, LibcurlMissingError, LlmClient, LlmConfig, Node, Workflow

wf = Workflow("offline")
wf.add(Node.function(lambda: 2, name="two"), Node.transform("t", "{two} and {two}"), Node.delay("d", 0.001))
assert Executor().execute(wf).raise_for_failure()["t"] == "2 and 2"
assert curl_version() is None

wf = Workflow("online")
wf.add(Node.http("page", "GET", "http://127.0.0.1:9/"))
result = Executor().execute(wf)
error = result.errors["page"]
assert isinstance(error, LibcurlMissingError) and isinstance(error, ImportError), repr(error)
print(error)
try:
    LlmClient(LlmConfig.openai_compatible("http://127.0.0.1:9/v1", "m")).complete("hello")
except LibcurlMissingError as error:
    print(error)

import httpx
from graphbit.transports import HttpxTransport
try:
    httpx.Client(transport=HttpxTransport()).get("http://127.0.0.1:9/")
except httpx.ConnectError as error:
    assert isinstance(error.__cause__, LibcurlMissingError), repr(error.__cause__)
else:
    raise AssertionError
"""


def test_without_libcurl_only_requests_fail_and_name_the_package(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([*command, "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "libcurl4" in line


if sys.platform != "linux":
    pytestmark = pytest.mark.skip(reason="LD_PRELOAD is Linux's; the core is run nowhere else")
