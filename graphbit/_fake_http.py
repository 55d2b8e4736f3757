"""What the fake provider reads and writes: HTTP/1.1 requests out of bytes, replies into bytes. No socket, no thread.

A `RequestParser` turns the bytes of a connection into `Request`s. An `Answer` says what to do with one, faults
included, and `Answer.wire` makes of it the writes that do it. What a server must refuse is refused here (`Malformed`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Then = Literal["keep", "close", "reset", "stall"]

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
CHUNK_LINE_BYTES_MAX = 1024
STAGES = ("nothing", "headers", "body", "reply")

_HEX = frozenset(b"0123456789abcdefABCDEF")
_HTTP_STATUS_PHRASES: dict[int, str] = {}


def phrase(status: int) -> str:
    """The reason phrase of a status, empty if it has none."""
    if not _HTTP_STATUS_PHRASES:
        from http import HTTPStatus

        _HTTP_STATUS_PHRASES.update((int(known), known.phrase) for known in HTTPStatus)
    return _HTTP_STATUS_PHRASES.get(status, "")


class Headers(Mapping[str, str]):
    """`request.headers["Authorization"]`: looked up in any case, listed in lower case, repeated ones joined by a comma."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"


class Request:
    """`provider.requests[0].prompt`: one request as it arrived.

    `index` counts from 0 in order of arrival; `connection` is the number of its connection, from 1; `started` and
    `finished` are `time.monotonic()` when it had arrived whole and when its reply had been written (None until then);
    `aborted` is true if the client went away before that.
    """

    __slots__ = ("_json", "aborted", "body", "connection", "finished", "headers", "index", "method", "path", "query",
                 "started", "target", "version")  # fmt: skip

    def __init__(self, method: str, target: str, version: str, headers: Headers, body: bytes) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.body = body
        if target.startswith(("http://", "https://")):  # as clients write it to a proxy
            target = "/" + target.split("/", 3)[3] if target.count("/") > 2 else "/"
        self.path, _, self.query = target.partition("?")
        self.index = -1
        self.connection = 0
        self.started = 0.0
        self.finished: float | None = None
        self.aborted = False
        self._json: Any = _UNREAD

    @property
    def json(self) -> Any:
        """`request.json["model"]`: the body read as JSON, None if it is no JSON."""
        if self._json is _UNREAD:
            try:
                self._json = json.loads(self.body)
            except (ValueError, RecursionError):
                self._json = None
        return self._json

    @property
    def model(self) -> str | None:
        """The model the request asks for."""
        model = self.json.get("model") if isinstance(self.json, dict) else None
        return model if isinstance(model, str) else None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of a chat request, as they came; empty for other requests."""
        messages = self.json.get("messages") if isinstance(self.json, dict) else None
        return [one for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []

    @property
    def prompt(self) -> str:
        """The text of the last user message; the input of an embeddings request; else an empty string."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return text_of(message.get("content"))
        return text_of(self.json.get("input")) if isinstance(self.json, dict) else ""

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to send more on this connection."""
        words = [word.strip().lower() for word in self.headers.get("connection", "").split(",")]
        return "keep-alive" in words if self.version == "HTTP/1.0" else "close" not in words

    def __repr__(self) -> str:
        return f"<Request {self.index}: {self.method} {self.target} on connection {self.connection}>"


_UNREAD = object()


def text_of(content: object) -> str:
    """The text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


class Malformed(Exception):
    """What arrived is no HTTP request we take; the connection gets this status and is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestParser:
    """Bytes in with `feed`, whole requests out of `next`. Takes each byte once, whatever pieces they come in."""

    __slots__ = ("_body", "_chunked", "_continued", "_head", "_need", "_trailers", "buffer")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._head: tuple[str, str, str, dict[str, str]] | None = None
        self._body = bytearray()
        self._need = 0  # bytes of the body, or of the current chunk; -1 where a chunk's size line comes next
        self._chunked = False
        self._trailers = False
        self._continued = False

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def next(self) -> Request | None:
        """The next whole request, or None until more has arrived."""
        if self._head is None and not self._read_head():
            return None
        if not (self._read_chunks() if self._chunked else self._read_body()):
            return None
        assert self._head is not None
        method, target, version, headers = self._head
        request = Request(method, target, version, Headers(headers), bytes(self._body))
        self._head = None
        self._body = bytearray()
        return request

    def continue_due(self) -> bool:
        """True once for a request that waits for `100 Continue` before it sends its body."""
        if self._head is None or self._continued or self._body or self.buffer:
            return False
        self._continued = True
        return self._head[2] != "HTTP/1.0" and self._head[3].get("expect", "").lower() == "100-continue"

    def _read_head(self) -> bool:
        while self.buffer.startswith(b"\r\n"):  # some clients send one too many after a body
            del self.buffer[:2]
        end = self.buffer.find(b"\r\n\r\n")
        if end > HEAD_BYTES_MAX or (end < 0 and len(self.buffer) > HEAD_BYTES_MAX):
            raise Malformed(431, f"the request's head is larger than {HEAD_BYTES_MAX} bytes")
        if end < 0:
            return False
        head = self.buffer[:end].decode("latin-1")
        del self.buffer[: end + 4]
        lines = head.split("\r\n")
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise Malformed(400, "a line of the request's head ends without CRLF")
        start = lines[0].split(" ")
        if len(start) != 3 or not start[0] or not start[1] or not start[2].startswith("HTTP/"):
            raise Malformed(400, f"this is no request line: {lines[0][:200]!r}")
        if start[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise Malformed(505, f"{start[2]} is not spoken here")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise Malformed(400, f"this is no header: {line[:200]!r}")
            name = name.lower()
            value = value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if start[2] == "HTTP/1.1" and "host" not in headers:
            raise Malformed(400, "an HTTP/1.1 request must have a Host header")
        if headers.get("expect", "100-continue").lower() != "100-continue":
            raise Malformed(417, f"cannot meet the expectation {headers['expect']!r}")
        self._frame(headers)
        self._head = (start[0], start[1], start[2], headers)
        self._continued = False
        return True

    def _frame(self, headers: dict[str, str]) -> None:
        """How the body is delimited. Two answers to that question are the start of request smuggling: refused."""
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        self._chunked = coding is not None
        self._trailers = False
        if coding is not None:
            if length is not None:
                raise Malformed(400, "a request has either Content-Length or Transfer-Encoding, not both")
            if coding.lower() != "chunked":
                raise Malformed(501, f"the transfer coding {coding!r} is not known here")
            self._need = -1
        elif length is None:
            self._need = 0
        elif not (length.isascii() and length.isdigit()):
            raise Malformed(400, f"Content-Length is {length[:50]!r}, not a number")
        else:
            self._need = int(length) if len(length) < 16 else BODY_BYTES_MAX + 1
            self._check_size(self._need)

    def _check_size(self, size: int) -> None:
        if size > BODY_BYTES_MAX:
            raise Malformed(413, f"the request's body is larger than {BODY_BYTES_MAX} bytes")

    def _read_body(self) -> bool:
        if len(self.buffer) < self._need:
            return False
        if self._need:
            self._body = self.buffer[: self._need]
            del self.buffer[: self._need]
        return True

    def _read_chunks(self) -> bool:
        while True:
            if self._need >= 0:
                if len(self.buffer) < self._need + 2:
                    return False
                if self.buffer[self._need : self._need + 2] != b"\r\n":
                    raise Malformed(400, "a chunk is longer than its size says")
                self._body += self.buffer[: self._need]
                del self.buffer[: self._need + 2]
                self._need = -1
            end = self.buffer.find(b"\r\n")
            if end > CHUNK_LINE_BYTES_MAX or (end < 0 and len(self.buffer) > CHUNK_LINE_BYTES_MAX):
                raise Malformed(400, "a chunk's size line is too long")
            if end < 0:
                return False
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 2]
            if self._trailers:
                if not line:
                    return True
                continue  # a trailer: read past
            size = line.split(b";")[0].strip()
            if not size or len(size) > 15 or not _HEX.issuperset(size):
                raise Malformed(400, f"{line[:50]!r} is no chunk size")
            if (need := int(size, 16)) == 0:
                self._trailers = True
            else:
                self._check_size(len(self._body) + need)
                self._need = need


class Answer:
    """What to do with a request: the reply, when, in which pieces, how much of it, and what becomes of the connection.

    `after` cuts the reply short: "nothing", "headers", "body" (half of the body), "reply" (all of it) or a number of
    bytes of the body. Then `then`: "keep" the connection, "close" it, "reset" it, or "stall" until the client goes.
    With `raw` these exact bytes are the reply; they count as body.
    """

    __slots__ = ("after", "chunked", "gap", "headers", "latency", "pieces", "raw", "split", "status", "then")

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        pieces: list[bytes] | None = None,
        *,
        chunked: bool = False,
        raw: bool = False,
        latency: float = 0.0,
        gap: float = 0.0,
        split: int | None = None,
        after: str | int | None = None,
        then: Then = "keep",
    ) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()} if headers else {}
        self.pieces = pieces or []
        self.chunked = chunked
        self.raw = raw
        self.latency = latency
        self.gap = gap
        self.split = split
        self.after = after
        self.then = then

    def wire(self, request: Request) -> tuple[list[bytes], bool]:
        """The writes that make the reply, and whether the connection can carry another request."""
        keep = request.keep_alive and self.then == "keep"
        if self.raw:
            return self._writes(b"", self.pieces, framed=False), keep
        headers = dict(self.headers)
        bodyless = request.method == "HEAD" or self.status in (204, 304) or self.status < 200
        framed = False
        if self.chunked and "content-length" not in headers and "transfer-encoding" not in headers:
            framed = request.version != "HTTP/1.0" and not bodyless
            if framed:
                headers["transfer-encoding"] = "chunked"
            elif not bodyless:
                keep = False  # the end of the connection is the end of the body
        elif self.status not in (204, 304):
            headers.setdefault("content-length", str(sum(map(len, self.pieces))))
        if "close" in headers.get("connection", "").lower():
            keep = False
        elif not request.keep_alive:
            headers["connection"] = "close"
        elif request.version == "HTTP/1.0" and keep:
            headers["connection"] = "keep-alive"
        lines = [f"HTTP/1.1 {self.status} {phrase(self.status)}", *(f"{name}: {headers[name]}" for name in headers)]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return self._writes(head, [] if bodyless else self.pieces, framed=framed), keep

    def _writes(self, head: bytes, pieces: list[bytes], *, framed: bool) -> list[bytes]:
        body_bytes = sum(map(len, pieces))
        limit: int | None = None
        if self.after == "nothing":
            return []
        if self.after == "headers":
            limit = 0
        elif self.after == "body":
            limit = body_bytes // 2
        elif isinstance(self.after, int):
            limit = self.after
        if limit is not None:
            framed_end = False
            pieces = _first_bytes(pieces, limit)
        else:
            framed_end = framed
        if self.split:
            body, step = b"".join(pieces), self.split
            pieces = [body[at : at + step] for at in range(0, len(body), step)]
        if framed:
            pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece]
            if framed_end:
                pieces.append(b"0\r\n\r\n")
        if not self.gap and not self.split:
            return [b"".join([head, *pieces])]
        return [head + pieces[0], *pieces[1:]] if pieces else [head]


def _first_bytes(pieces: list[bytes], limit: int) -> list[bytes]:
    kept = []
    for piece in pieces:
        if limit <= 0:
            break
        kept.append(piece[:limit])
        limit -= len(piece)
    return kept
