"""httpx and httpx2, plain and async, over their own transport and over ours: one way to talk to all of them.

    def test_…(way: Way, server: FaultServer) -> None:
        with way.talk(timeout=5) as talk:
            assert talk.request("GET", server.url).status_code == 200

`WAYS` are all eight, `OURS` the four over graphbit's transports, of which two are `ASYNC` and two `PLAIN`. A test that runs over both says that they behave the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
from faults import Peer, Request
from flows import until

import graphbit
from graphbit import transports

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

MODULES: dict[str, Any] = {"httpx": httpx, "httpx2": httpx2}


class Way:
    """A family, plain or async, over which transport."""

    def __init__(self, family: str, is_async: bool, is_ours: bool) -> None:
        self.module = MODULES[family]
        self.is_async = is_async
        self.is_ours = is_ours
        self.name = f"{family}-{'async' if is_async else 'plain'}-{'graphbit' if is_ours else 'default'}"

    def transport(self, **options: Any) -> Any:
        if self.is_ours:
            stem = "Httpx2Transport" if self.module is httpx2 else "HttpxTransport"
            return getattr(transports, f"{'Async' if self.is_async else ''}{stem}")(**options)
        return (self.module.AsyncHTTPTransport if self.is_async else self.module.HTTPTransport)(**options)

    def talk(self, transport: Any = None, **options: Any) -> Talk:
        return Talk(self, transport, options)

    def body(self, pieces: Iterable[bytes]) -> Any:
        """An iterator of the kind that the client wants."""
        if not self.is_async:
            return (piece for piece in pieces)

        async def given() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return given()

    def error(self, name: str) -> type[Exception]:
        found: type[Exception] = getattr(self.module, name)
        return found


class Talk:
    """A client. An async one has an event loop of its own."""

    def __init__(self, way: Way, transport: Any, options: dict[str, Any]) -> None:
        self.way = way
        self.loop = asyncio.new_event_loop() if way.is_async else None
        kind = way.module.AsyncClient if way.is_async else way.module.Client
        options = {"timeout": 10, "trust_env": False, **options}
        self.client = kind(transport=way.transport() if transport is None else transport, **options)

    def do(self, awaitable: Any) -> Any:
        return awaitable if self.loop is None else self.loop.run_until_complete(awaitable)

    def request(self, method: str, url: str, **more: Any) -> Any:
        return self.do(self.client.request(method, url, **more))

    def pieces(self, method: str, url: str, each: Callable[[bytes], object] = lambda _: None, **more: Any) -> Any:
        """The response, and its raw body piece by piece."""
        if self.loop is None:
            with self.client.stream(method, url, **more) as response:
                found = []
                for piece in response.iter_raw():
                    each(piece)
                    found.append(piece)
                return response, found

        async def all_of() -> Any:
            async with self.client.stream(method, url, **more) as response:
                found = []
                async for piece in response.aiter_raw():
                    each(piece)
                    found.append(piece)
                return response, found

        return self.do(all_of())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.loop is None:
            self.client.close()
        else:
            self.loop.run_until_complete(self.client.aclose())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


ALL = [Way(family, is_async, is_ours) for family in MODULES for is_async in (False, True) for is_ours in (False, True)]
WAYS = pytest.mark.parametrize("way", ALL, ids=lambda way: way.name)
OURS = pytest.mark.parametrize("way", [way for way in ALL if way.is_ours], ids=lambda way: way.name)
ASYNC = pytest.mark.parametrize("way", [way for way in ALL if way.is_ours and way.is_async], ids=lambda way: way.name)
PLAIN = pytest.mark.parametrize(
    "way", [way for way in ALL if way.is_ours and not way.is_async], ids=lambda way: way.name
)


class ChunkPeer(Peer):
    """A connection of a FaultServer that reads chunked bodies as well."""

    def read(self) -> Request | None:
        request = super().read()
        if request is None or "chunked" not in request.headers.get("transfer-encoding", ""):
            return request
        pieces = []
        while (line := self.read_until(b"\r\n")) is not None:
            piece = self.read_bytes(int(line, 16) + 2)
            if piece is None:
                return None
            if piece == b"\r\n":
                return request._replace(body=b"".join(pieces))
            pieces.append(piece[:-2])
        return None


def assert_no_request_left() -> None:
    """What was cancelled may take a moment to end."""

    def is_idle() -> bool:
        counts = graphbit.http_stats()
        return (counts.get("in_flight", 0), counts.get("queued", 0)) == (0, 0)

    until(is_idle)


def numbered(count: int, size: int) -> Iterator[bytes]:
    """Pieces that are told apart."""
    for number in range(count):
        yield b"%08d" % number * (size // 8)
