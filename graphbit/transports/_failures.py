"""What httpx calls a failure. Two tables: by gb_failure, and by what the words below HTTP tell apart."""

from __future__ import annotations

from graphbit._ffi import lib
from graphbit._reply import CLASSES
from graphbit.errors import CircuitOpenError, RequestError, RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from graphbit.transports._exchange import Exchange

NAMES: dict[int, str] = {
    lib.GB_FAILURE_CANCELLED: "ReadError",
    lib.GB_FAILURE_REFUSED: "LocalProtocolError",
    lib.GB_FAILURE_NO_LIBCURL: "ConnectError",
    lib.GB_FAILURE_RESOLVE: "ConnectError",
    lib.GB_FAILURE_CONNECT: "ConnectError",
    lib.GB_FAILURE_TLS: "ConnectError",
    lib.GB_FAILURE_CONNECT_TIMEOUT: "ConnectTimeout",
    lib.GB_FAILURE_IDLE_TIMEOUT: "ReadTimeout",
    lib.GB_FAILURE_FIRST_BYTE_TIMEOUT: "ReadTimeout",
    lib.GB_FAILURE_TOTAL_TIMEOUT: "ReadTimeout",
    lib.GB_FAILURE_CLOSED: "RemoteProtocolError",
    lib.GB_FAILURE_TOO_LARGE: "RemoteProtocolError",
    lib.GB_FAILURE_PROTOCOL: "RemoteProtocolError",
    lib.GB_FAILURE_NOT_PUBLIC: "ConnectError",
    lib.GB_FAILURE_CIRCUIT_OPEN: "ConnectError",
    lib.GB_FAILURE_QUEUE_TIMEOUT: "PoolTimeout",
    lib.GB_FAILURE_SHUTDOWN: "ReadError",
    lib.GB_FAILURE_OTHER: "ReadError",
}
"""httpx's class for what an exchange may end with. Out of memory is MemoryError, and no exchange's affair."""

EXCEPTIONS = (
    "ConnectError",
    "ConnectTimeout",
    "LocalProtocolError",
    "PoolTimeout",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
)

_WAITING: int = lib.GB_PHASE_WAITING
_SENDING: int = lib.GB_PHASE_SENDING
_RECEIVING: int = lib.GB_PHASE_RECEIVING
_CONNECT_TIMEOUT: int = lib.GB_FAILURE_CONNECT_TIMEOUT
_IDLE_TIMEOUT: int = lib.GB_FAILURE_IDLE_TIMEOUT
_CIRCUIT_OPEN: int = lib.GB_FAILURE_CIRCUIT_OPEN
_CLOSED: int = lib.GB_FAILURE_CLOSED
_OUT_OF_MEMORY: int = lib.GB_FAILURE_OUT_OF_MEMORY
_ENDED = (lib.GB_FAILURE_CANCELLED, lib.GB_FAILURE_SHUTDOWN)
_MAYBE_PROXY = (lib.GB_FAILURE_CONNECT, lib.GB_FAILURE_CLOSED, lib.GB_FAILURE_OTHER)


def name_of(failure: int, phase: int, detail: str) -> str:
    """`name_of(lib.GB_FAILURE_RESOLVE, …) == "ConnectError"`."""
    if failure == _CONNECT_TIMEOUT and phase == _WAITING:
        return "PoolTimeout"
    if failure == _IDLE_TIMEOUT and phase == _SENDING:
        return "WriteTimeout"
    if failure in _MAYBE_PROXY and (
        "from proxy after CONNECT" in detail or "CONNECT tunnel failed" in detail or "SOCKS" in detail
    ):
        return "ProxyError"
    if failure == _CLOSED:
        if phase < _SENDING:
            return "ConnectError"
        if phase == _SENDING or "Send failure" in detail:
            return "WriteError"
        # Somebody's FIN is a server that broke off; anything harder is the network's.
        return "ReadError" if "Recv failure" in detail or "reset" in detail or "SSL" in detail else NAMES[_CLOSED]
    return NAMES.get(failure, "ReadError") if phase == _RECEIVING or failure in NAMES else "ConnectError"


def cause_of(exchange: Exchange) -> BaseException:
    """What graphbit calls it."""
    if exchange.cause is not None:
        return exchange.cause
    if exchange.failure in _ENDED:
        return RuntimeClosedError("the request was given up: the graphbit runtime was shut down")
    kind = CLASSES[exchange.failure]
    words = exchange.detail or "the request failed"
    if exchange.failure == _CIRCUIT_OPEN:
        return CircuitOpenError(
            f"the request was not sent: {words}; the next one may go in {exchange.retry_after:.1f} s",
            retry_after=exchange.retry_after,
        )
    if issubclass(kind, RequestError):
        return kind(words, status=exchange.status or None)
    return kind(words)


def is_out_of_memory(exchange: Exchange) -> bool:
    return exchange.failure == _OUT_OF_MEMORY
