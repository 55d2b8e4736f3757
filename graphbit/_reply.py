"""Reads a gb_reply: what failed becomes an exception that names the thing, the server's own words and the remedy.

    lib.gb_call_reply(call, reply)
    raise request_error(reply, "the call to model 'gpt-4o-mini'", key_variable="OPENAI_API_KEY", secret=key)

Two tables decide which class it is: `CLASSES` by gb_failure, and `status_class` where a status arrived.
"""

from __future__ import annotations

from graphbit._ffi import lib, text
from graphbit.errors import (
    AuthenticationError,
    BadRequestError,
    CircuitOpenError,
    ConnectError,
    JoinError,
    LibcurlMissingError,
    NativeFunctionError,
    NodeTimeoutError,
    NotFoundError,
    QueueTimeoutError,
    RateLimitError,
    RefusedError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    RunCancelledError,
    RuntimeClosedError,
    ServerError,
    StatusError,
    TemplateError,
    TlsError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_EXCERPT_CHARS = 200  # of a body that is no error object

_STATUS: int = lib.GB_FAILURE_STATUS
_PROVIDER: int = lib.GB_FAILURE_PROVIDER
_BAD_REPLY: int = lib.GB_FAILURE_BAD_REPLY
_CIRCUIT_OPEN: int = lib.GB_FAILURE_CIRCUIT_OPEN

CLASSES: dict[int, type[Exception]] = {
    lib.GB_FAILURE_CANCELLED: RunCancelledError,
    lib.GB_FAILURE_REFUSED: RefusedError,
    lib.GB_FAILURE_NO_LIBCURL: LibcurlMissingError,
    lib.GB_FAILURE_RESOLVE: ConnectError,
    lib.GB_FAILURE_CONNECT: ConnectError,
    lib.GB_FAILURE_TLS: TlsError,
    lib.GB_FAILURE_CONNECT_TIMEOUT: RequestTimeoutError,
    lib.GB_FAILURE_IDLE_TIMEOUT: RequestTimeoutError,
    lib.GB_FAILURE_TOTAL_TIMEOUT: RequestTimeoutError,
    lib.GB_FAILURE_CLOSED: ConnectError,
    lib.GB_FAILURE_TOO_LARGE: ReplyError,
    lib.GB_FAILURE_PROTOCOL: ReplyError,
    lib.GB_FAILURE_STATUS: StatusError,  # or what status_class says
    lib.GB_FAILURE_BAD_REPLY: ReplyError,
    lib.GB_FAILURE_PROVIDER: StatusError,  # likewise
    lib.GB_FAILURE_TEMPLATE: TemplateError,
    lib.GB_FAILURE_OUT_OF_MEMORY: MemoryError,
    lib.GB_FAILURE_SHUTDOWN: RuntimeClosedError,
    lib.GB_FAILURE_OTHER: RequestError,
    # Of nodes rather than requests: result.py has their words.
    lib.GB_FAILURE_NODE_TIMEOUT: NodeTimeoutError,
    lib.GB_FAILURE_NONE_LEFT: JoinError,
    lib.GB_FAILURE_NATIVE: NativeFunctionError,
    # Of requests again.
    lib.GB_FAILURE_FIRST_BYTE_TIMEOUT: RequestTimeoutError,
    lib.GB_FAILURE_REDIRECT: ReplyError,
    lib.GB_FAILURE_NOT_PUBLIC: RefusedError,
    lib.GB_FAILURE_CIRCUIT_OPEN: CircuitOpenError,
    lib.GB_FAILURE_QUEUE_TIMEOUT: QueueTimeoutError,
}
"""For every failure there is. GB_FAILURE_NONE is none."""

# What happened, and what to do about it where there is something. Without words of its own a failure has the core's only.
_WORDS: dict[int, tuple[str, str]] = {
    lib.GB_FAILURE_CANCELLED: ("was cancelled", ""),
    lib.GB_FAILURE_REFUSED: ("was not sent", "correct the URL or the header"),
    # The core's detail names the package for libcurl.
    lib.GB_FAILURE_NO_LIBCURL: ("was not sent", ""),
    lib.GB_FAILURE_RESOLVE: ("found no such host", "check the host name in the URL, and the network"),
    lib.GB_FAILURE_CONNECT: ("got no connection", "check that the server runs and listens at this address and port"),
    lib.GB_FAILURE_TLS: (
        "cannot trust the server",
        "if it has a certificate of your own authority, name that authority's file: HttpOptions(ca_file=…), or SSL_CERT_FILE "
        "before the first call; "
        "verify=False trusts anybody",
    ),
    lib.GB_FAILURE_CONNECT_TIMEOUT: (
        "got no connection in time",
        "check that the server can be reached, or raise connect_timeout (seconds)",
    ),
    lib.GB_FAILURE_IDLE_TIMEOUT: ("waited in vain for the server's next byte", "raise timeout (seconds)"),
    lib.GB_FAILURE_TOTAL_TIMEOUT: ("took too long", "raise timeout (seconds for one attempt as a whole)"),
    lib.GB_FAILURE_CLOSED: ("lost its connection before the reply was whole", "try again, or raise max_retries"),
    lib.GB_FAILURE_TOO_LARGE: ("got too large a reply", "ask for less, or raise the bound in HttpOptions"),
    lib.GB_FAILURE_PROTOCOL: ("got a reply that is not HTTP", "check the URL's scheme and port"),
    lib.GB_FAILURE_STATUS: ("failed", ""),
    lib.GB_FAILURE_BAD_REPLY: ("got a reply of another kind", "check that the URL is that of an API of this kind"),
    lib.GB_FAILURE_PROVIDER: ("failed", ""),
    lib.GB_FAILURE_TEMPLATE: ("could not be made", ""),
    lib.GB_FAILURE_OUT_OF_MEMORY: ("ran out of memory", ""),
    lib.GB_FAILURE_SHUTDOWN: ("was given up: the runtime was shut down", "its next use starts a fresh one"),
    lib.GB_FAILURE_OTHER: ("failed", ""),
    lib.GB_FAILURE_NODE_TIMEOUT: ("took longer than its timeout", ""),
    lib.GB_FAILURE_NONE_LEFT: ("has no predecessor that succeeded", ""),
    lib.GB_FAILURE_NATIVE: ("reported a failure", ""),
    lib.GB_FAILURE_FIRST_BYTE_TIMEOUT: ("got no reply in time", "raise first_byte_timeout (seconds)"),
    lib.GB_FAILURE_REDIRECT: ("was redirected", "use the URL that it leads to, or raise max_redirects"),
    lib.GB_FAILURE_CIRCUIT_OPEN: ("was not sent", ""),
    lib.GB_FAILURE_QUEUE_TIMEOUT: (
        "was not sent",
        "send less at once, raise queue_timeout (seconds), or the limits, where they are yours",
    ),
    lib.GB_FAILURE_NOT_PUBLIC: ("was not sent", "public_only lets nothing else pass; use a URL of a public host"),
}


def status_class(status: int) -> type[StatusError]:
    """`status_class(429) is RateLimitError`: for a status of 400 or above; StatusError for any other."""
    if status in (401, 403):
        return AuthenticationError
    if status == 404:
        return NotFoundError
    if status == 429:
        return RateLimitError
    if 400 <= status < 500:
        return BadRequestError
    return ServerError if status >= 500 else StatusError


def request_error(
    reply: Any, what: str, *, key_variable: str = "", secret: str = "", is_model: bool = True
) -> Exception:
    """`raise request_error(reply, "node 'draft'")`: the exception for a failed reply (`reply` is a gb_reply pointer).

    A `RequestError`, except where no exchange is to blame: RunCancelledError, RuntimeClosedError, TemplateError, MemoryError.

    Args:
        what: the thing that failed, as the message's first words.
        key_variable: the environment variable that holds the key, for the remedy.
        secret: the key; should a server repeat it, the exception does not.
        is_model: whether a model was asked; it decides what to advise.
    """
    failure: int = reply.failure
    words, remedy = _WORDS[failure]
    cls = CLASSES[failure]
    if not issubclass(cls, RequestError):
        detail = text(reply.detail)
        return cls(_sentence(what, words, detail, remedy))

    def said(value: Any) -> str:
        found = text(value)
        return found.replace(secret, "***") if secret else found

    status: int = reply.http_status
    code, kind = said(reply.error_code), said(reply.error_type)
    message, body = said(reply.error_message), said(reply.body)
    retry_after = reply.retry_after_ms / 1000 if reply.retry_after_ms >= 0 else None
    if failure in (_STATUS, _PROVIDER):
        # An error object inside a good reply may name the status that the server did not dare to send.
        named = int(code) if failure == _PROVIDER and code.isascii() and code.isdigit() and len(code) == 3 else status
        cls = status_class(named)
        detail = message or _excerpt(body)
        words = f"{words} ({_status_words(named)})" if named >= 400 else words
        remedy = (
            _status_remedy(named, code, key_variable, retry_after) if is_model else _page_remedy(named, retry_after)
        )
    else:
        detail = message or said(reply.detail)
        if failure == _BAD_REPLY:
            if 300 <= status < 400 and status != 304:
                words, remedy = f"was redirected (status {status})", "use the URL that it leads to"
            excerpt = _excerpt(body)
            detail = f"{detail}: {excerpt}" if excerpt else detail
        if failure == _CIRCUIT_OPEN:
            remedy = (
                f"the server is asked again in {retry_after or 0:.1f} s (Admission(breaker=False) asks it all the time)"
            )
            if reply.attempts:  # what the reply holds is the last attempt's
                words = f"was not sent again ({_status_words(status) if status else 'no reply'})"
                detail = f"{said(reply.detail)}; it said {message!r}" if message else said(reply.detail)
    attempts: int = reply.attempts
    if attempts > 1 or (attempts and failure == _CIRCUIT_OPEN):
        words = f"{words}, {attempts} {'attempt' if attempts == 1 else 'attempts'}"
    return cls(
        _sentence(what, words, detail, remedy),
        status=status or None,
        body=body,
        code=code or None,
        type=kind or None,
        attempts=attempts,
        request_id=said(reply.request_id) or None,
        retry_after=retry_after,
    )


def template_message(detail: str, names: Sequence[str]) -> str:
    """`template_message("value 3 has no 'a.b'", names)` -> "node 'x' has no 'a.b'".

    Values have numbers in the core; `names` says what they are called, as in a sentence: "node 'x'", "input 'y'".
    """
    word, _, rest = detail.partition(" ")
    number, _, complaint = rest.partition(" ")
    if word != "value" or not number.isdigit() or int(number) >= len(names):
        return detail
    return f"{names[int(number)]} {complaint}"


def _sentence(what: str, words: str, detail: str, remedy: str) -> str:
    found = f"{what} {words}"
    if detail:
        found += f": {detail.strip().rstrip('.')}"
    return f"{found}; {remedy}" if remedy else found


def _status_words(status: int) -> str:
    from http import HTTPStatus

    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"


def _status_remedy(status: int, code: str, key_variable: str, retry_after: float | None) -> str:
    if status == 401:
        return f"check the API key{f' in {key_variable}' if key_variable else ''}"
    if status == 403:
        return f"check what the API key{f' in {key_variable}' if key_variable else ''} is allowed to do"
    if status == 404:
        return "check the model's name and the base URL"
    if code == "insufficient_quota":
        return "the account's quota is used up: check its plan and billing"
    if status == 429:
        asked = "" if retry_after is None else f"the server asks to wait {retry_after:g} s; "
        return f"{asked}send less at once, or raise max_retries"
    return ""


def _page_remedy(status: int, retry_after: float | None) -> str:
    if status in (401, 403):
        return "check the credentials in its headers"
    if status == 404:
        return "check the URL"
    return _status_remedy(status, "", "", retry_after)


def _excerpt(body: str) -> str:
    """The beginning of a body on one line."""
    line = " ".join(body[: 4 * _EXCERPT_CHARS].split())
    return line if len(line) <= _EXCERPT_CHARS else line[:_EXCERPT_CHARS] + "…"
