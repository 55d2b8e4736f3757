"""The transports for httpx."""

from __future__ import annotations

import httpx

from graphbit.transports._shared import AsyncStream, AsyncTransport, Family, Stream, Transport


class _Stream(Stream, httpx.SyncByteStream):
    __slots__ = ()


class _AsyncStream(AsyncStream, httpx.AsyncByteStream):
    __slots__ = ()


_FAMILY = Family(httpx, _Stream, _AsyncStream)


class HttpxTransport(Transport, httpx.BaseTransport):
    """`httpx.Client(transport=HttpxTransport())`: httpx on graphbit's HTTP engine.

    Any thread may use it, several at once. Connections are the engine's: closing the client leaves them to others.
    `client.timeout` counts as httpx says: `connect` until the connection stands, `read` and `write` between one byte and the next,
    `pool` while connections are limited (`graphbit.configure_runtime(max_connections=…)`) and all are in use.

    Args:
        admission: an Admission, or True: calls of models (a POST whose JSON body names a "model") respect their provider's limits,
            together with all of the process's other calls with that base URL, key and model. While they wait no timeout of the
            client runs; a breaker that is open is a ConnectError, a queue timeout a PoolTimeout. Everything else passes. False
            leaves limits to the client.
        verify: whether TLS certificates are checked; for authorities of your own see `HttpOptions.ca_file`.
        http: proxy, trust, client certificate, bounds. Redirects stay httpx's. Without it nothing is bounded but a reply's head.

    Raises:
        httpx.TransportError: and its kinds, as httpx's own transport does; what graphbit has to say of it is the `__cause__`.
    """

    _family = _FAMILY


class AsyncHttpxTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """`httpx.AsyncClient(transport=AsyncHttpxTransport())`: the same for asyncio.

    One transport serves any number of event loops, one after the other or at once; no connection belongs to a loop. Under
    trio it raises RuntimeError.
    """

    _family = _FAMILY
