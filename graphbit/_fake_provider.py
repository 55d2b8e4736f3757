"""A provider that runs in your own process: what it says to whom is scripted from the test, and faults too.

`FakeProvider` chooses a `Reply` for a request and lowers it to an `Answer`; sockets are `_fake_server`'s business, wire
shapes `_fake_openai`'s. The choice, in this order:

1. A bad request, a wrong key or a method the path does not know is turned down, and no script is consumed.
2. The first scripted reply, in the order scripted, that fits the request. Those for texts fit chat requests only; the
   others fit chat and embeddings requests, or with `path=` any request to that path.
3. A route, or what the endpoint says of itself; for chat that is `default`, and without one a summary of the prompt.

A scripted reply without content of its own (a cut, a stall, only a latency) changes how 3 is delivered.
"""

from __future__ import annotations

import time

from . import _fake_openai as openai
from ._fake_http import Answer, Request
from ._fake_script import CHAT, EMBEDDINGS, Reply, Scripted, bytes_of, made_reply, text_reply, tool_call, use
from ._fake_server import FakeServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ._fake_script import Said, Stage, ToolCall, When

MODELS = "/v1/models"
METHODS = {CHAT: "POST", EMBEDDINGS: "POST", MODELS: "GET"}

_UNSET: Any = object()


class FakeProvider(FakeServer):
    """An OpenAI-style provider on 127.0.0.1, for tests, examples and the demo. No key, no network, no surprise.

        with FakeProvider() as provider:
            provider.reply("42", when="answer")
            config = LlmConfig.openai_compatible(provider.base_url, "fake-model")
            ...
            assert provider.requests[0].prompt == "What is the answer?"

    It serves POST /v1/chat/completions (streaming too), POST /v1/embeddings, GET /v1/models, and the routes you add.
    Unscripted chat requests get `default`; without one, a summary of their prompt. The same request gets the same reply
    every time; identifiers count up (chatcmpl-1, chatcmpl-2, ...); usage is estimated as one token a word.

    It runs in one daemon thread of this process. Script it and read it from any thread. Functions you script run in the
    server's thread and hold up every other reply meanwhile; if one raises, its request gets a 500 with the traceback
    and `stop` raises the error again.

    `latency` (seconds) delays every reply that has no latency of its own. With `api_key` other keys get a 401.
    """

    def __init__(
        self,
        *,
        default: str | Callable[[Request], Said] | None = None,
        api_key: str | None = None,
        latency: float = 0.0,
        models: Sequence[str] = ("fake-model",),
        port: int = 0,
    ) -> None:
        super().__init__(port=port)
        self.api_key = api_key
        self.latency = latency
        self.models = tuple(models)
        self.default = default
        self._script: list[Scripted] = []
        self._routes: dict[tuple[str, str], list[Scripted]] = {}
        self._completions = 0

    @property
    def base_url(self) -> str:
        """`LlmConfig.openai_compatible(provider.base_url, "fake-model")`: http://127.0.0.1:PORT/v1."""
        return f"{self.url}/v1"

    @property
    def default(self) -> str | Callable[[Request], Said] | None:
        """`provider.default = lambda request: request.prompt.upper()`: what unscripted chat requests get.

        A text, or a function of the request that returns a text, a value sent as JSON text, a `Reply`, or None for the
        summary.
        """
        return self._default

    @default.setter
    def default(self, value: str | Callable[[Request], Said] | None) -> None:
        if value is not None and not isinstance(value, str) and not callable(value):
            raise TypeError(f"default is a text or a function of the request, got: {value!r}")
        self._default = value

    # ---- the script

    def reply(
        self,
        text: str | Mapping[str, Any] | list[Any] | Reply | Callable[[Request], Said] | None = None,
        *,
        when: When = None,
        times: int | None = 1,
        latency: float | None = None,
        stream_chunks: int | Sequence[str] | None = None,
        chunk_latency: float | None = None,
        split: int | None = None,
        tool_calls: Sequence[ToolCall] | None = None,
        reasoning: str | None = None,
        finish: str | None = None,
        usage: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`provider.reply("Hello!", when="greet", times=2)`: what the next chat request is told.

        `text`: a string, a value to be sent as JSON text, a `Reply`, or a function of the request that returns one of them.
        `when`: only requests whose last user message contains this, or for which this function is true.
        `times`: for so many requests; None: for all that follow.
        `latency`: seconds until the reply begins.
        `stream_chunks`: for streams, the text's pieces: how many, or these; else one a word. `chunk_latency`: seconds
        between them. `split`: bytes per write, to cut characters and events apart on the wire.
        `tool_calls`: `[("weather", {"city": "Oslo"})]`, or dicts with name, arguments and id.
        `finish`, `usage`: instead of "stop" and the estimate.
        """
        options = Reply(
            latency=latency, stream_chunks=stream_chunks, chunk_latency=chunk_latency, split=split, headers=headers,
            tool_calls=tool_calls, reasoning=reasoning, finish=finish, usage=usage,
        )  # fmt: skip
        if callable(text):
            options = options.over(Reply(make=text))
        elif text is not None:
            options = options.over(text_reply(text))
        self._add(options, when, times, None)

    def fail(
        self,
        status: int,
        *,
        message: str | None = None,
        code: str | None = None,
        type: str | None = None,
        retry_after: float | str | None = None,
        headers: Mapping[str, str] | None = None,
        when: When = None,
        times: int | None = 1,
        latency: float | None = None,
        path: str | None = None,
    ) -> None:
        """`provider.fail(429, retry_after=1.5, times=2)`: an error object with this status.

        `retry_after`: seconds, sent as they are (and in retry-after-ms where they are no whole number), or a date as text.
        """
        if not 400 <= status <= 599:
            raise ValueError(f"a failure has a status from 400 to 599, got: {status}")
        failure = Reply(
            status=status,
            message=message,
            code=code,
            type=type,
            retry_after=retry_after,
            headers=headers,
            latency=latency,
        )
        self._add(failure, when, times, path)

    def cut(
        self,
        after: Stage = "nothing",
        *,
        text: str | None = None,
        reset: bool = False,
        when: When = None,
        times: int | None = 1,
        latency: float | None = None,
        path: str | None = None,
    ) -> None:
        """`provider.cut(after="headers")`: close the connection in the middle of the reply.

        `after`: "nothing", "headers", "body" (half of the body), a number of bytes of the body, or "reply": all of it
        is sent and the connection closed without notice. `reset=True` sends RST instead of FIN.
        """
        self._add(Reply(text, after=after, then="reset" if reset else "close", latency=latency), when, times, path)

    def stall(
        self,
        after: Stage = "nothing",
        *,
        text: str | None = None,
        when: When = None,
        times: int | None = 1,
        path: str | None = None,
    ) -> None:
        """`provider.stall()`: never answer. `stall(after="headers")` and so on: stop in the middle; see `cut`.

        The connection stays open until the client goes away or the provider stops.
        """
        self._add(Reply(text, after=after, then="stall"), when, times, path)

    def reply_body(
        self,
        body: bytes | str | Mapping[str, Any] | list[Any],
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        when: When = None,
        times: int | None = 1,
        latency: float | None = None,
        split: int | None = None,
        path: str | None = None,
    ) -> None:
        """`provider.reply_body(b"{oops")`: a sound HTTP reply with exactly this body; values are sent as JSON."""
        reply = Reply(
            status=status,
            body=bytes_of(body),
            content_type=content_type,
            headers=headers,
            latency=latency,
            split=split,
        )
        self._add(reply, when, times, path)

    def reply_raw(
        self,
        data: bytes,
        *,
        close: bool = True,
        when: When = None,
        times: int | None = 1,
        latency: float | None = None,
        split: int | None = None,
        path: str | None = None,
    ) -> None:
        """`provider.reply_raw(b"HTTP/1.1 200 OK\\r\\n...")`: exactly these bytes on the wire, then close unless `close=False`."""
        self._add(Reply(raw=data, then="close" if close else None, latency=latency, split=split), when, times, path)

    def route(
        self,
        method: str,
        path: str,
        *,
        json: Any = _UNSET,
        text: str | None = None,
        body: bytes | None = None,
        handler: Callable[[Request], Said] | None = None,
        status: int = 200,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        latency: float | None = None,
        times: int | None = None,
    ) -> None:
        """`provider.route("GET", "/data", json={"a": 1})`: serve another path, as `provider.url + "/data"`.

        The reply is `json`, `text` or `body`, or what `handler(request)` returns: text, bytes, a value sent as JSON, or a
        `Reply`. The query is not part of the path. Routes with `times` are used up in order before the one without; a
        new one without `times` replaces the old. `fail`, `cut` and the like reach a route by `path="/data"`.
        """
        if sum((json is not _UNSET, text is not None, body is not None, handler is not None)) > 1:
            raise ValueError("a route takes one of json, text, body and handler")
        options = Reply(status=status, content_type=content_type, headers=headers, latency=latency)
        if handler is not None:
            reply = options.over(Reply(make=handler))
        elif text is not None:
            reply = options.over(Reply(body=text.encode(), content_type="text/plain; charset=utf-8"))
        elif json is not _UNSET:
            reply = options.over(Reply(body=openai.dump(json), content_type="application/json"))
        else:
            reply = options.over(Reply(body=body or b"", content_type="application/octet-stream"))
        scripted = Scripted(reply, None, times, path)
        with self._changed:
            routes = self._routes.setdefault((method.upper(), path), [])
            last = routes.pop() if routes and routes[-1].times is None else None
            routes.append(scripted)
            if last is not None and times is not None:
                routes.append(last)

    @property
    def unused(self) -> int:
        """`assert provider.unused == 0`: scripted replies no request has taken yet; those for ever do not count."""
        with self._changed:
            return sum(scripted.times or 0 for scripted in self._script)

    def clear(self) -> None:
        """`provider.clear()`: forget what is scripted and the requests so far. Routes, default and counters stay."""
        with self._changed:
            self._script.clear()
            self._requests.clear()

    def _add(self, reply: Reply, when: When, times: int | None, path: str | None) -> None:
        scripted = Scripted(reply, when, times, path)
        with self._changed:
            self._script.append(scripted)

    # ---- the choice, in the server's thread

    def answer(self, request: Request) -> Answer:
        route = self._route_of(request)
        try:
            body = self._check(request) if route is None else None
        except openai.Refusal as refusal:
            return self._lower(Reply(status=refusal.status, body=openai.dump(refusal.body)), request)
        chat = body if request.path == CHAT else None
        with self._changed:
            reply = use(self._script, lambda one: one.fits(request, is_route=route is not None)) or Reply()
        if "make" in reply.options:
            reply = made_reply(reply, request, is_chat=chat is not None)
        if not reply.has_content:
            reply = reply.over(self._unscripted(request, route, body))
        return self._lower(reply, request, chat)

    def failure(self, status: int, message: str) -> Answer:
        return self._lower(Reply(status=status, message=message))

    def _check(self, request: Request) -> dict[str, Any] | None:
        """Turn down what the API would turn down; else the body, where the endpoint has one."""
        path = request.path
        if self.api_key is not None and path.startswith("/v1/"):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not key:
                raise openai.Refusal("You didn't provide an API key.", status=401)
            if key.strip() != self.api_key:
                raise openai.Refusal(f"Incorrect API key provided: {key[:4]}***.", code="invalid_api_key", status=401)
        if path in METHODS and METHODS[path] != request.method:
            message = f"Not allowed to {request.method} on {path}. (HINT: Perhaps you meant to {METHODS[path]}.)"
            raise openai.Refusal(message, code="method_not_supported", status=405)
        if path == CHAT:
            return openai.check_chat(request.json)
        if path == EMBEDDINGS:
            return openai.check_embeddings(request.json)
        return None

    def _route_of(self, request: Request) -> list[Scripted] | None:
        routes = self._routes.get((request.method, request.path))
        return self._routes.get(("GET", request.path)) if routes is None and request.method == "HEAD" else routes

    def _unscripted(self, request: Request, route: list[Scripted] | None, body: dict[str, Any] | None) -> Reply:
        path = request.path
        if route is not None:
            with self._changed:
                reply = use(route, lambda one: True)
            if reply is None:
                return Reply(status=404, message=f"The route {request.method} {path} is used up.")
            return made_reply(reply, request, is_chat=False) if "make" in reply.options else reply
        if path == CHAT:
            assert body is not None
            reply = Reply(self._default) if isinstance(self._default, str) else Reply()
            if callable(self._default):
                reply = made_reply(Reply(make=self._default), request, is_chat=True)
            return reply if reply.has_content else reply.over(Reply(openai.default_text(body, request.prompt)))
        if path == EMBEDDINGS:
            assert body is not None
            return Reply(body=openai.dump(openai.embeddings(body)))
        if path == MODELS:
            return Reply(body=openai.dump(openai.models(self.models)))
        name = path.removeprefix(MODELS + "/")
        if name != path and request.method == "GET":
            if name in self.models:
                return Reply(body=openai.dump(openai.model(name)))
            return Reply(status=404, message=f"The model '{name}' does not exist.", code="model_not_found")
        return Reply(status=404, message=f"Invalid URL ({request.method} {path})", type="invalid_request_error")

    # ---- from a reply to an answer

    def _lower(self, reply: Reply, request: Request | None = None, chat: dict[str, Any] | None = None) -> Answer:
        option = reply.options.get
        status = option("status", 200)
        kind = "application/json"
        chunked = False
        if (raw := option("raw")) is not None:
            pieces = [raw]
        elif (body := option("body")) is not None:
            pieces = [body]
        elif status >= 400:
            pieces = [openai.dump(openai.error(status, option("message"), code=option("code"), kind=option("type")))]
        elif chat is not None:
            pieces = self._chat(reply, chat)
            if chunked := chat.get("stream") is True:
                kind = "text/event-stream; charset=utf-8"
        else:
            kind = "text/plain; charset=utf-8"
            pieces = [option("text", "").encode()]
        headers = {"content-type": option("content_type", kind)}
        wait = option("retry_after")
        if isinstance(wait, (int, float)):
            headers["retry-after"] = f"{wait:g}"
            if wait != int(wait):
                headers["retry-after-ms"] = f"{wait * 1000:.0f}"
        elif wait is not None:
            headers["retry-after"] = wait
        if request is not None:
            headers["x-request-id"] = f"req-{request.index + 1}"
        headers.update((name.lower(), value) for name, value in option("headers", {}).items())
        return Answer(
            status, headers, pieces, chunked=chunked, raw=raw is not None, split=option("split"),
            latency=option("latency", self.latency), gap=option("chunk_latency", 0.0),
            after=option("after"), then=option("then", "keep"),
        )  # fmt: skip

    def _chat(self, reply: Reply, body: dict[str, Any]) -> list[bytes]:
        option = reply.options.get
        self._completions += 1
        number = self._completions
        calls = [tool_call(call, f"call_{number}_{at}") for at, call in enumerate(option("tool_calls", ()))]
        chunks = option("stream_chunks")
        text: str | None = option("text")
        if text is None and not isinstance(chunks, (int, type(None))):
            text = "".join(chunks)
        if text is None and not calls:
            text = ""
        reasoning = option("reasoning")
        functions = [call["function"] for call in calls]
        said = " ".join([text or "", reasoning or "", *(f"{one['name']} {one['arguments']}" for one in functions)])
        counts = {**openai.usage(body, said), **option("usage", {})}
        if "total_tokens" not in option("usage", {}):
            counts["total_tokens"] = counts["prompt_tokens"] + counts["completion_tokens"]
        finish = option("finish", "tool_calls" if calls else "stop")
        created = int(time.time())
        model = body["model"]
        if body.get("stream") is not True:
            return [openai.dump(openai.completion(number, created, model, text, calls, reasoning, finish, counts))]
        if chunks is None:
            pieces = openai.words_of(text or "")
        else:
            pieces = openai.parts_of(text or "", chunks) if isinstance(chunks, int) else list(chunks)
        wants_usage = (body.get("stream_options") or {}).get("include_usage") is True
        return openai.events(number, created, model, pieces, calls, reasoning, finish, counts if wants_usage else None)
