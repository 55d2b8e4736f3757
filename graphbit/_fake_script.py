"""The fake provider's script: what a reply is, which requests it is for, and how often.

A `Reply` is a bag of options, so that one can be laid over another: a cut over whatever the request would have got.
"""

from __future__ import annotations

from . import _fake_openai as openai
from ._fake_http import STAGES, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal, TypeAlias

    from ._fake_http import Then

    Stage: TypeAlias = Literal["nothing", "headers", "body", "reply"] | int
    When: TypeAlias = str | Callable[[Request], bool] | None
    ToolCall: TypeAlias = tuple[str, Mapping[str, Any] | str] | Mapping[str, Any]
    # What a scripted function may return: text, a value to be sent as JSON, a Reply, None for what comes of itself.
    Said: TypeAlias = "str | bytes | Mapping[str, Any] | list[Any] | Reply | None"

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

_SPOKEN = frozenset(("make", "text", "tool_calls"))
_WRITTEN = frozenset(("body", "raw", "status"))


class Reply:
    """`provider.default = lambda request: Reply(status=429, retry_after=1)`: one reply, as a scripted function may return it.

    The options are those of `FakeProvider.reply`, `fail`, `reply_body` and `cut`. A status from 400 on without a body
    gets an error object. An option that is None is left open, and filled from what the request would get otherwise.
    """

    __slots__ = ("options",)

    def __init__(
        self,
        text: str | None = None,
        *,
        status: int | None = None,
        message: str | None = None,
        code: str | None = None,
        type: str | None = None,
        retry_after: float | str | None = None,
        body: bytes | None = None,
        content_type: str | None = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        latency: float | None = None,
        stream_chunks: int | Sequence[str] | None = None,
        chunk_latency: float | None = None,
        split: int | None = None,
        tool_calls: Sequence[ToolCall] | None = None,
        reasoning: str | None = None,
        finish: str | None = None,
        usage: Mapping[str, Any] | None = None,
        make: Callable[[Request], Said] | None = None,
        after: Stage | None = None,
        then: Then | None = None,
    ) -> None:
        given = dict(locals())
        self.options: dict[str, Any] = {
            name: given[name] for name in given if given[name] is not None and name != "self"
        }
        if status is not None and not 200 <= status <= 599:
            raise ValueError(f"status must be from 200 to 599, got: {status}")
        for name in ("latency", "chunk_latency"):
            if self.options.get(name, 0) < 0:
                raise ValueError(f"{name} must not be negative, got: {self.options[name]}")
        if split is not None and split < 1:
            raise ValueError(f"split must be at least 1 byte, got: {split}")
        if after is not None and after not in STAGES and (not isinstance(after, int) or after < 0):
            raise ValueError(f"after must be one of {', '.join(STAGES)} or a number of bytes, got: {after!r}")
        for name, value in (headers or {}).items():
            if "\n" in name + value or "\r" in name + value:
                raise ValueError(f"the header {name!r} has a line break in it")

    @property
    def is_spoken(self) -> bool:
        """Whether it is something a model says."""
        pieces = self.options.get("stream_chunks", 0)
        return not _SPOKEN.isdisjoint(self.options) or not isinstance(pieces, int)

    @property
    def has_content(self) -> bool:
        """Whether it says something itself; what does not is laid over what does."""
        return self.is_spoken or not _WRITTEN.isdisjoint(self.options)

    def over(self, other: Reply) -> Reply:
        """This reply, with the other's options where it leaves them open."""
        merged = Reply()
        merged.options = {**other.options, **self.options}
        return merged

    def __repr__(self) -> str:
        return f"Reply({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


class Scripted:
    """A reply that waits for its requests."""

    __slots__ = ("path", "reply", "times", "when")

    def __init__(self, reply: Reply, when: When, times: int | None, path: str | None) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for always, got: {times}")
        self.reply = reply
        self.when = when
        self.times = times
        self.path = path

    def fits(self, request: Request, *, is_route: bool) -> bool:
        if self.path is not None:
            if self.path != request.path:
                return False
        elif is_route or (request.path != CHAT and (request.path != EMBEDDINGS or self.reply.is_spoken)):
            return False
        if self.when is None:
            return True
        return self.when in request.prompt if isinstance(self.when, str) else bool(self.when(request))


def use(scripted: list[Scripted], fits: Callable[[Scripted], bool]) -> Reply | None:
    """Take the first that fits, and strike it from the list when it is used up."""
    for at, one in enumerate(scripted):
        if fits(one):
            if one.times is not None:
                one.times -= 1
                if one.times == 0:
                    del scripted[at]
            return one.reply
    return None


def made_reply(reply: Reply, request: Request, *, is_chat: bool) -> Reply:
    """What the reply's function returns, in place of the function."""
    said = reply.options["make"](request)
    rest = Reply()
    rest.options = {name: value for name, value in reply.options.items() if name != "make"}
    if isinstance(said, Reply):
        return (made_reply(said, request, is_chat=is_chat) if "make" in said.options else said).over(rest)
    if said is None and is_chat:
        return rest
    if is_chat and not isinstance(said, bytes):
        return rest.over(text_reply(said))
    plain = "text/plain; charset=utf-8" if isinstance(said, str) else "application/json"
    return rest.over(Reply(body=bytes_of(said), content_type=plain))


def text_reply(text: object) -> Reply:
    if isinstance(text, Reply):
        return text
    return Reply(text if isinstance(text, str) else openai.dump(text).decode())


def bytes_of(body: object) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else openai.dump(body)


def tool_call(call: ToolCall, identifier: str) -> dict[str, Any]:
    if not isinstance(call, tuple):
        identifier = call.get("id", identifier)
        call = (call["name"], call.get("arguments", {}))
    name, arguments = call
    if not isinstance(arguments, str):
        arguments = openai.dump(arguments).decode()
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
