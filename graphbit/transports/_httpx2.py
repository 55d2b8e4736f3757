"""The transports for httpx2."""

from __future__ import annotations

import httpx2

from graphbit.transports._shared import AsyncStream, AsyncTransport, Family, Stream, Transport


class _Stream(Stream, httpx2.SyncByteStream):
    __slots__ = ()


class _AsyncStream(AsyncStream, httpx2.AsyncByteStream):
    __slots__ = ()


_FAMILY = Family(httpx2, _Stream, _AsyncStream)


class Httpx2Transport(Transport, httpx2.BaseTransport):
    """`httpx2.Client(transport=Httpx2Transport())`: httpx2 on graphbit's HTTP engine.

    Any thread may use it, several at once. Connections are the engine's: closing the client leaves them to others.
    `client.timeout` counts as httpx2 says: `connect` until the connection stands, `read` and `write` between one byte and the next,
    `pool` while connections are limited (`graphbit.configure_runtime(max_connections=…)`) and all are in use.

    Args:
        admission: an Admission, or True: calls of models (a POST whose JSON body names a "model") respect their provider's limits,
            together with all of the process's other calls with that base URL, key and model. While they wait no timeout of the
            client runs; a breaker that is open is a ConnectError, a queue timeout a PoolTimeout. Everything else passes. False
            leaves limits to the client.
        verify: whether TLS certificates are checked; for authorities of your own see `HttpOptions.ca_file`.
        http: proxy, trust, client certificate, bounds. Redirects stay httpx2's. Without it nothing is bounded but a reply's head.

    Raises:
        httpx2.TransportError: and its kinds, as httpx2's own transport does; what graphbit has to say of it is the `__cause__`.
    """

    _family = _FAMILY


class AsyncHttpx2Transport(AsyncTransport, httpx2.AsyncBaseTransport):
    """`httpx2.AsyncClient(transport=AsyncHttpx2Transport())`: the same for asyncio.

    One transport serves any number of event loops, one after the other or at once; no connection belongs to a loop. Under
    trio it raises RuntimeError.
    """

    _family = _FAMILY
