"""What the transports of all families share: from a request to an exchange, from an exchange to a response.

A *family* is httpx or httpx2: same shapes, different classes. Requests and responses are `Any` in here.

A request whose body is known goes to the core in one call, and most replies come back with one item: then waiting for the head is
all the waiting there is. A body that is not known goes piece by piece, as the core has room, until the server has refused it.
"""

from __future__ import annotations

from asyncio import _get_running_loop

from graphbit._ffi import ffi, lib
from graphbit._loop import running_lane
from graphbit._queue import core as current_core
from graphbit.admission import checked_admission
from graphbit.errors import ConfigurationError, RuntimeClosedError
from graphbit.http import checked_http
from graphbit.transports._admission import admit
from graphbit.transports._exchange import Exchange, WrongLengthError
from graphbit.transports._failures import EXCEPTIONS, cause_of, is_out_of_memory, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, NoReturn

    from typing_extensions import Never, Self

    from graphbit.admission import Admission
    from graphbit.http import HttpOptions

_BYTES = ffi.typeof("uint8_t[]")
_SPEC = ffi.typeof("gb_exchange_spec *")
_BODY: int = lib.GB_EXCHANGE_BODY
_BODY_FOLLOWS: int = lib.GB_EXCHANGE_BODY_FOLLOWS
_INSECURE: int = lib.GB_EXCHANGE_INSECURE
_MS_MAX = 0xFFFFFFFF
_SCHEMES = (b"http", b"https")
# What the transports of httpx itself take.
_ELSEWHERE = {
    "cert": "http=HttpOptions(client_cert=…, client_key=…)",
    "http1": "the engine and the server agree on the protocol",
    "http2": "the engine and the server agree on the protocol, HTTP/2 where TLS offers it",
    "limits": "graphbit.configure_runtime(max_connections=…, max_connections_per_host=…), for the whole process",
    "proxy": "http=HttpOptions(proxy=…)",
    "retries": "a transport sends once; an SDK retries, or a node of a workflow",
    "trust_env": "the environment's proxies count unless http=HttpOptions(proxy=…) names one, or proxy='' none",
}


class Family:
    """httpx or httpx2: the classes that differ."""

    __slots__ = ("async_stream", "errors", "not_read", "response", "stream")

    def __init__(self, module: Any, stream: type[Stream], async_stream: type[AsyncStream]) -> None:
        self.stream = stream
        self.async_stream = async_stream
        self.response = module.Response
        self.not_read: type[Exception] = module.RequestNotRead
        self.errors: dict[str, type[Exception]] = {name: getattr(module, name) for name in EXCEPTIONS}

    def raise_for(self, exchange: Exchange) -> None:
        """Raises what ended the exchange, if it did not end well."""
        if not exchange.failure and exchange.cause is None:
            return
        cause = cause_of(exchange)
        if is_out_of_memory(exchange):
            raise cause
        if exchange.cause is None:
            name = name_of(exchange.failure, exchange.phase, exchange.detail)
        else:
            name = "ReadError"
        if name == "ReadError" and not exchange.status and isinstance(cause, RuntimeClosedError):
            name = "ConnectError"
        raise self.errors[name](str(cause)) from cause


# ------------------------------------------------------------------------------------------------------- bodies of replies


class Stream:
    """The body of a reply, as it comes."""

    __slots__ = ("_exchange", "_family")

    def __init__(self, exchange: Exchange, family: Family) -> None:
        self._exchange = exchange
        self._family = family

    def __iter__(self) -> Any:
        exchange = self._exchange
        try:
            while True:
                yield from exchange.take()
                if exchange.is_over:
                    break
                exchange.wait()
            yield from exchange.take()
        except BaseException:
            exchange.close()
            raise
        self._family.raise_for(exchange)

    def close(self) -> None:
        self._exchange.close()


class AsyncStream:
    """The same on an event loop. No generator: those have a loop of their own to be ended on."""

    __slots__ = ("_exchange", "_family", "_pieces")

    def __init__(self, exchange: Exchange, family: Family) -> None:
        self._exchange = exchange
        self._family = family
        self._pieces: list[bytes] = []

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        while True:
            if self._pieces:
                return self._pieces.pop(0)
            was_over = exchange.is_over
            self._pieces = exchange.take()
            if self._pieces:
                continue
            if was_over:
                self._family.raise_for(exchange)
                raise StopAsyncIteration
            if not exchange.is_over:
                try:
                    await exchange.arrives()
                except BaseException:
                    exchange.close()
                    raise

    async def aclose(self) -> None:
        self._exchange.close()


# ------------------------------------------------------------------------------------------------------------- transports


class _Base:
    """What a transport knows, and how a request becomes a gb_exchange_spec."""

    _family: Family

    def __init__(
        self,
        *,
        admission: Admission | bool = True,
        verify: bool = True,
        http: HttpOptions | None = None,
        **unknown: Never,
    ) -> None:
        for name in unknown:
            remedy = _ELSEWHERE.get(name, "it takes admission, verify and http")
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}: {remedy}")
        self.admission = checked_admission(admission)
        if not isinstance(verify, bool):
            raise ConfigurationError(
                f"verify must be True or False, got {type(verify).__name__}; authorities of your own go into "
                "HttpOptions(ca_file=…)"
            )
        self.verify = verify
        self.http = checked_http(http, type(self).__name__) if http is not None else None
        self._read_ms = 0
        self._kept: list[Any] = []
        self._usual = self._make_usual()

    def __repr__(self) -> str:
        more = "" if self.http is None else f", http={self.http!r}"
        return f"{type(self).__name__}(admission={self.admission or False}, verify={self.verify}{more})"

    def _make_usual(self) -> Any:
        """What is the same for every request."""
        spec = ffi.new(_SPEC)
        spec.flags = 0 if self.verify else _INSECURE
        spec.body_bytes = -1
        http = self.http
        if http is None:
            return spec
        spec.head_bytes_max = http.max_header_bytes
        spec.body_bytes_max = http.max_body_bytes
        spec.wire_bytes_max = http.max_wire_bytes
        spec.first_byte_timeout_ms = _ms(http.first_byte_timeout)
        self._read_ms = _ms(http.idle_timeout)
        route = http.route()
        if route is not None:
            *texts, flags = route
            fields = (
                spec.proxy,
                spec.no_proxy,
                spec.ca_file,
                spec.client_cert,
                spec.client_key,
                spec.client_key_password,
            )
            for field, text in zip(fields, texts, strict=True):
                view = ffi.from_buffer(_BYTES, text.encode())
                self._kept.append(view)
                field.ptr, field.len = view, len(view)
            spec.flags |= flags * lib.GB_EXCHANGE_PROXY
        return spec

    def _describe(self, request: Any, keep: list[Any]) -> tuple[Any, bool]:
        """The request as a gb_exchange_spec, and whether its body follows. `keep` must live until the exchange was started."""
        url = request.url
        scheme = url.raw_scheme
        if scheme not in _SCHEMES:
            shown = scheme.decode("ascii", "replace")
            raise self._family.errors["UnsupportedProtocol"](
                f"Request URL has an unsupported protocol '{shown}://'."
                if shown
                else "Request URL is missing an 'http://' or 'https://' protocol."
            )
        spec = ffi.new(_SPEC)
        spec[0] = self._usual[0]
        method = request.method.encode("ascii", "replace")
        address = b"%b://%b%b" % (scheme, url.netloc, url.raw_path)
        raw = request.headers.raw
        lines = b"".join([b"%b: %b\0" % line for line in raw])
        view = ffi.from_buffer
        views = view(_BYTES, method), view(_BYTES, address), view(_BYTES, lines)
        keep.append(views)
        spec.method = views[0], len(method)
        spec.url = views[1], len(address)
        spec.headers = views[2], len(lines)
        spec.header_count = len(raw)
        extensions = request.extensions
        timeouts = extensions.get("timeout")
        if timeouts:
            get = timeouts.get
            spec.connect_timeout_ms = _ms(get("connect"))
            spec.read_timeout_ms = _ms(get("read")) or self._read_ms
            spec.write_timeout_ms = _ms(get("write"))
            spec.pool_timeout_ms = _ms(get("pool"))
        else:
            spec.read_timeout_ms = self._read_ms
        target = extensions.get("target")
        if target:
            keep.append(view(_BYTES, target))
            spec.target = keep[-1], len(target)
        try:
            body = request.content
        except self._family.not_read:
            spec.flags |= _BODY_FOLLOWS
            spec.body_bytes = _length(request.headers.get("content-length"))
            if spec.body_bytes:
                return spec, True
            body = b""
            spec.flags ^= _BODY_FOLLOWS | _BODY
        if body or "content-length" in request.headers:
            spec.flags |= _BODY
            if body:
                keep.append(view(_BYTES, body))
                spec.body = keep[-1], len(body)
                if self.admission is not None:
                    admit(spec, self.admission, request, body, id(self), keep)
        return spec, False

    def _answer(self, exchange: Exchange, stream: Any) -> Any:
        """The response whose head has come."""
        first, *lines = [line.removesuffix(b"\r") for line in exchange.head.split(b"\n")]
        if any(b"\r" in line for line in lines):  # a line break to some, a character to others
            exchange.close()
            raise self._family.errors["RemoteProtocolError"]("a header of the reply contains a carriage return")
        version, _, rest = first.partition(b" ")
        headers: list[tuple[bytes, bytes]] = []
        for line in lines:
            if line[:1] in b" \t":  # empty, or the line before goes on
                if headers and line.strip():
                    name, value = headers[-1]
                    headers[-1] = name, value + b" " + line.strip()
                continue
            name, _, value = line.partition(b":")
            headers.append((name, value.strip()))
        extensions = {"http_version": version}
        if version.startswith(b"HTTP/1"):  # later ones have none
            extensions["reason_phrase"] = rest[4:]
        return self._family.response(exchange.status, headers=headers, stream=stream, extensions=extensions)

    def _refused(self, words: str) -> Exception:
        return self._family.errors["LocalProtocolError"](words)


class Transport(_Base):
    """handle_request for plain code. Any thread, several at once."""

    def handle_request(self, request: Any) -> Any:
        """Sends the request and returns its response, whose body is still to be read."""
        family = self._family
        keep: list[Any] = []
        spec, follows = self._describe(request, keep)
        core = current_core()
        exchange = Exchange(core)
        try:
            try:
                exchange.start(spec, lane=core.caller())
            except RuntimeClosedError as error:
                raise family.errors["ConnectError"](str(error)) from error
            except ValueError as error:
                raise self._refused(str(error)) from None
            if follows:
                self._feed(exchange, request.stream)
            while not exchange.status and not exchange.is_over:
                exchange.wait()
            if not exchange.status:
                family.raise_for(exchange)
        except BaseException:
            exchange.close()
            raise
        return self._answer(exchange, family.stream(exchange, family))

    def _feed(self, exchange: Exchange, stream: Any) -> None:
        try:
            for piece in stream:
                exchange.write(piece)
                while not exchange.has_room and exchange.wants_body():
                    exchange.wait()
                if not exchange.wants_body():
                    return
            exchange.write(b"", True)
        except WrongLengthError as error:
            raise self._refused(str(error)) from None

    async def handle_async_request(self, request: Any) -> NoReturn:
        """Raises TypeError: an AsyncClient was given it."""
        raise TypeError(f"{type(self).__name__} is for a Client; an AsyncClient takes Async{type(self).__name__}()")

    async def __aenter__(self) -> NoReturn:
        await self.handle_async_request(None)

    def close(self) -> None:
        """Does nothing: connections are the engine's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _exc_type: type[BaseException] | None = None,
        _exc_value: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None:
        self.close()


class AsyncTransport(_Base):
    """handle_async_request for asyncio. Any loop, several one after the other or at once."""

    async def handle_async_request(self, request: Any) -> Any:
        """Sends the request and returns its response, whose body is still to be read."""
        if _get_running_loop() is None:
            raise RuntimeError(
                f"{type(self).__name__} needs a running asyncio event loop; under trio use httpx's own transport, or the sync "
                "one in a thread"
            )
        family = self._family
        keep: list[Any] = []
        spec, follows = self._describe(request, keep)
        core = current_core()
        exchange = Exchange(core)
        try:
            try:
                exchange.start(spec, loop_lane=running_lane(core))
            except RuntimeClosedError as error:
                raise family.errors["ConnectError"](str(error)) from error
            except ValueError as error:
                raise self._refused(str(error)) from None
            if follows:
                await self._feed(exchange, request.stream)
            while not exchange.status and not exchange.is_over:
                await exchange.arrives()
            if not exchange.status:
                family.raise_for(exchange)
        except BaseException:
            exchange.close()
            raise
        return self._answer(exchange, family.async_stream(exchange, family))

    async def _feed(self, exchange: Exchange, stream: Any) -> None:
        try:
            async for piece in stream:
                exchange.write(piece)
                while not exchange.has_room and exchange.wants_body():
                    await exchange.arrives()
                if not exchange.wants_body():
                    return
            exchange.write(b"", True)
        except WrongLengthError as error:
            raise self._refused(str(error)) from None

    def handle_request(self, request: Any) -> NoReturn:
        """Raises TypeError: a Client was given it."""
        name = type(self).__name__
        raise TypeError(f"{name} is for an AsyncClient; a Client takes {name.removeprefix('Async')}()")

    def __enter__(self) -> NoReturn:
        self.handle_request(None)

    async def aclose(self) -> None:
        """Does nothing: connections are the engine's."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _exc_type: type[BaseException] | None = None,
        _exc_value: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


def _ms(seconds: float | None) -> int:
    """A timeout for the core; 0: none. At least a millisecond, for httpx's 0 is a short one."""
    return 0 if seconds is None else min(max(1, int(seconds * 1000)), _MS_MAX)


def _length(value: str | None) -> int:
    return int(value) if value is not None and value.isdecimal() else -1
