"""Compiles the C programs of bench/native when their source is newer than what stands in the cache, and runs them."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bench._harness import read_stats

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("GRAPHBIT_BENCH_CACHE", HERE / ".build"))


S = TypeVar("S", bound="Server")


class CannotBuild(RuntimeError):
    pass


def compiler() -> list[str]:
    """The machine's C compiler, else the one inside the ziglang package."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CannotBuild("no C compiler: install gcc, or `pip install ziglang`")


def build(name: str, *flags: str) -> Path:
    source = HERE / "native" / f"{name}.c"
    program = CACHE / name
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = CACHE / f"{name}.{os.getpid()}"  # renamed when whole: two benches may start at once
    command = [*compiler(), "-O2", *flags, "-o", str(fresh), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotBuild(f"{' '.join(command)}\n{done.stderr}")
    fresh.replace(program)
    return program


def library(name: str) -> ctypes.CDLL:
    """A C file of bench/native as a shared library."""
    return ctypes.CDLL(str(build(name, "-shared", "-fPIC")))


def libcurl() -> str | None:
    """The name of a libcurl that dlopen finds; GRAPHBIT_BENCH_LIBCURL names another."""
    return os.environ.get("GRAPHBIT_BENCH_LIBCURL") or ctypes.util.find_library("curl")


class Server:
    """A server as a child process: it prints its ports, and ends with its standard input, so it cannot outlive this one.

    with MockServer(latency_ms=50) as mock:
        mock.base_url, mock.stats()
    """

    scheme = "http"

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{Path(command[0]).name} did not start")
        ports = [int(word) for word in line.split()]
        self.port = ports[-1]  # where it is asked about itself, in plain HTTP
        self.base_url = f"{self.scheme}://127.0.0.1:{ports[0]}/v1"

    def stats(self, reset: bool = False) -> dict[str, Any]:
        return read_stats(self.port, reset)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def flags_of(**numbers: int) -> list[str]:
    return [word for name, number in numbers.items() for word in (f"--{name}", str(number))]


class MockServer(Server):
    """The mock provider, native/mock_server.c."""

    def __init__(self, latency_ms: int = 0, chunks: int = 20, interval_ms: int = 0) -> None:
        flags = flags_of(latency=latency_ms, chunks=chunks, interval=interval_ms)
        super().__init__([str(build("mock_server")), *flags])


class StreamServer(Server):
    """The provider that streams, native/stream_server.c."""

    def __init__(self, events: int, interval_us: int, latency_ms: int) -> None:
        flags = flags_of(events=events, interval=interval_us, latency=latency_ms)
        super().__init__([str(build("stream_server")), *flags])


class TlsServer(Server):
    """The provider behind TLS, _tls_server.py, with the certificate of tests/tls."""

    scheme = "https"

    def __init__(self, latency_ms: int) -> None:
        super().__init__([sys.executable, "-m", "bench._tls_server", str(latency_ms)])
