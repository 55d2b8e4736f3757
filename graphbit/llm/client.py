"""LlmClient: asks a model, one prompt or thousands, from a thread or an event loop."""

from __future__ import annotations

import threading
from time import monotonic

from graphbit._controllers import rows
from graphbit._ffi import lib
from graphbit._plan import PlanBuilder, Slot
from graphbit._queue import current as current_core
from graphbit.errors import AuthenticationError, ConfigurationError, InputError, RuntimeClosedError, StatusError
from graphbit.llm._pump import Pump, Stats
from graphbit.llm.config import LlmConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Literal, overload

    from graphbit._plan import Plan
    from graphbit.llm._pump import Read
    from graphbit.llm.messages import LlmResponse
    from graphbit.llm.streaming import TextStream

    Message = tuple[str, str] | Mapping[str, Any]
else:

    def overload(function: Any) -> Any:
        return function


CONCURRENCY = 100
"""So many calls of a batch are on their way at once, unless max_concurrency says otherwise: what HTTP clients allow."""

_TOKENS_MAX = 2**32 - 1
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# The client's plan: its values, and its requests by number.
_PAYLOAD, _MAX_TOKENS, _TEMPERATURE = range(3)
_PROMPT, _MESSAGES, _MODELS, _PROMPT_STREAM, _MESSAGES_STREAM = range(5)


class LlmClient:
    """Asks a model.

    ```python
    client = LlmClient(LlmConfig.openai())
    client.complete("Why is the sky blue?")
    await client.complete_async("Why is the sky blue?")
    await client.complete_batch(prompts, max_concurrency=500)
    ```

    One client serves any number of threads and event loops at once. Calls are made by the native core: connections are kept and
    shared with all other clients and workflows of the process, and waiting costs no thread. Cancelling the task that awaits a
    call, or Ctrl-C in one that waits, closes the connection at once.

    Failures are `RequestError` and its kinds: AuthenticationError, RateLimitError, ServerError, RequestTimeoutError and so on.
    What may pass is tried again first, see `LlmConfig`.

    Options of all methods:

    Args:
        max_tokens: of the answer, at least 1.
        temperature: 0.0 to 2.0, sent as it is; without it the provider's default.
        enable_prompt_caching: for providers that must be asked to cache prompts. OpenAI's servers do so by themselves.

    Raises:
        ValueError: an argument is out of range (InputError, ConfigurationError); raised at once, also by what is awaited.
    """

    def __init__(self, config: LlmConfig, debug: bool | None = None) -> None:
        """`LlmClient(config)`. With `debug` each call's end is logged to "graphbit.llm" at level DEBUG, without its texts."""
        if not isinstance(config, LlmConfig):
            raise TypeError(
                f"config must be an LlmConfig, got {type(config).__name__}; make one with LlmConfig.openai(…)"
            )
        self._config = config
        self._debug = bool(debug)
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._closed = False
        self._stats = Stats()
        self._since = monotonic()

    @property
    def config(self) -> LlmConfig:
        return self._config

    def __repr__(self) -> str:
        return f"LlmClient({self._config!r})"

    # ---------------------------------------------------------------------------------------------------- one prompt

    def complete(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        enable_prompt_caching: bool = False,
    ) -> str:
        """`client.complete("Why is the sky blue?")`: the answer's text."""
        answer: str = self._one(prompt, max_tokens, temperature).wait()[0]
        return answer

    def complete_async(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        enable_prompt_caching: bool = False,
    ) -> Coroutine[Any, Any, str]:
        """`await client.complete_async("Why is the sky blue?")`: the answer's text."""
        return _first(self._one(prompt, max_tokens, temperature))

    def complete_full(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        enable_prompt_caching: bool = False,
    ) -> LlmResponse:
        """`client.complete_full("Why is the sky blue?").usage`: the answer and what is known about it."""
        answer: LlmResponse = self._one(prompt, max_tokens, temperature, full=True).wait()[0]
        return answer

    def complete_full_async(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        enable_prompt_caching: bool = False,
    ) -> Coroutine[Any, Any, LlmResponse]:
        """`(await client.complete_full_async("Why is the sky blue?")).usage`: the answer and what is known about it."""
        return _first(self._one(prompt, max_tokens, temperature, full=True))

    def chat_optimized(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        temperature: float | None = None,
        enable_prompt_caching: bool = False,
    ) -> Coroutine[Any, Any, str]:
        """`await client.chat_optimized([("system", "Be brief."), ("user", "Hello!")])`: the answer to a conversation.

        A message is (role, content), or a dict as the provider wants it: `{"role": "user", "content": […]}`. All are sent as
        they are. Roles of tuples are system, developer, user, assistant, tool.
        """
        return _first(self._pump(_MESSAGES, [_conversation(messages)], max_tokens, temperature))

    # --------------------------------------------------------------------------------------------------- while it is written

    def stream(
        self,
        prompt: str | Sequence[Message],
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> TextStream:
        """`for piece in client.stream("Why is the sky blue?"): …`, or `async for`: the answer's text as the model writes it.

        The prompt is a text, or a conversation as for `chat_optimized`. Usage and all else stands in `stream.response` after the
        last piece. Leaving early closes the connection. See TextStream.
        """
        from graphbit.llm.streaming import TextStream

        options = (_tokens(max_tokens), _temperature(temperature))
        if isinstance(prompt, (str, bytes)) or not hasattr(prompt, "__iter__"):
            _check_prompt(prompt)
            request, kind, payload = _PROMPT_STREAM, lib.GB_VALUE_TEXT, str(prompt).encode()
        else:
            request, kind, payload = _MESSAGES_STREAM, lib.GB_VALUE_JSON, _conversation(prompt)
        plan = self._plan or self._made_plan()
        return TextStream(self._config, plan, request, kind, payload, options, self._named(0), self._stats)

    def complete_stream(
        self, prompt: str, max_tokens: int | None = None, temperature: float | None = None
    ) -> TextStream:
        """`client.complete_stream("Why is the sky blue?")`: the same as `stream`."""
        return self.stream(prompt, max_tokens, temperature)

    # ---------------------------------------------------------------------------------------------------- many prompts

    @overload
    def complete_batch(
        self,
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_concurrency: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> Coroutine[Any, Any, list[str]]: ...

    @overload
    def complete_batch(  # noqa: F811
        self,
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_concurrency: int | None = None,
        *,
        return_exceptions: bool,
    ) -> Coroutine[Any, Any, list[str | Exception]]: ...

    def complete_batch(  # noqa: F811
        self,
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_concurrency: int | None = None,
        *,
        return_exceptions: bool = False,
    ) -> Coroutine[Any, Any, Any]:
        """`answers = await client.complete_batch(prompts)`: the answers, in the order of the prompts.

        At most `max_concurrency` calls are on their way at once (100 unless you say otherwise). When one fails for good the
        others are cancelled and its error is raised; with `return_exceptions=True` each error stands in its prompt's place
        instead.
        """
        return _all(self._batch(prompts, max_tokens, temperature, max_concurrency, return_exceptions))

    @overload
    def complete_batch_sync(
        self,
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_concurrency: int | None = None,
        *,
        return_exceptions: Literal[False] = False,
    ) -> list[str]: ...

    @overload
    def complete_batch_sync(  # noqa: F811
        self,
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_concurrency: int | None = None,
        *,
        return_exceptions: bool,
    ) -> list[str | Exception]: ...

    def complete_batch_sync(  # noqa: F811
        self,
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        max_concurrency: int | None = None,
        *,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """`answers = client.complete_batch_sync(prompts)`: as `complete_batch`, without an event loop."""
        return self._batch(prompts, max_tokens, temperature, max_concurrency, return_exceptions).wait()

    # ---------------------------------------------------------------------------------------------------- the client itself

    def get_stats(self) -> dict[str, Any]:
        """`client.get_stats()["success_rate"]`: what became of this client's calls, since it was made or `reset_stats`.

        A call counts when it has ended; its retries are part of it. `cancelled_requests` were given up by us, and are neither
        successes nor failures. `average_response_time_ms` is measured from the start of a call to its end, retries included.
        `admission` is what `http_stats()` says of the controller that this client shares with all others of its base URL, key and
        model, or None: `queued`, `in_flight`, `limits`, `breaker_history` and more. `circuit_breaker_state` is "closed", "open"
        or "half_open", and "disabled" where the configuration wants none.
        """
        succeeded, failed, cancelled, duration_ns = self._stats.read()
        ended = succeeded + failed
        row = self._admission_row()
        return {
            "total_requests": ended + cancelled,
            "successful_requests": succeeded,
            "failed_requests": failed,
            "cancelled_requests": cancelled,
            "success_rate": succeeded / ended if ended else 0.0,
            "average_response_time_ms": duration_ns / ended / 1e6 if ended else 0.0,
            "circuit_breaker_state": self._breaker_state(row),
            "admission": row,
            "uptime_seconds": monotonic() - self._since,
        }

    def _admission_row(self) -> dict[str, Any] | None:
        admission, running = self._config.admission(), current_core()
        if admission is None or running is None:
            return None
        found = rows(running, admission[0])
        return found[0] if found else None

    def _breaker_state(self, row: dict[str, Any] | None) -> str:
        admission = self._config.admission()
        if admission is None or not admission[1].breaker:
            return "disabled"
        return "closed" if row is None else str(row["breaker"])

    def reset_stats(self) -> None:
        """`client.reset_stats()`: counts from 0 again. Uptime goes on."""
        self._stats.reset()

    def warmup(self) -> Coroutine[Any, Any, str]:
        """`await client.warmup()`: starts the core and opens a connection, so that the first call need not.

        It asks the server which models there are: that costs nothing. A server that knows no such list is warm all the same.

        Raises:
            AuthenticationError: the server does not take the key.
            ConnectError, RequestTimeoutError: it cannot be reached.
        """
        names = f"warming up for model {self._config.model()!r}"
        pump = self._pump(_MODELS, [b""], None, None, names=lambda _: names, counted=False)
        return _warm(pump)

    def close(self) -> None:
        """`client.close()`: takes no more calls. Those on their way go on; connections are the process's and stay.

        Nothing leaks without it.
        """
        self._closed = True
        self._plan = None

    def __enter__(self) -> LlmClient:
        return self

    def __exit__(
        self,
        _exc_type: type[BaseException] | None,
        _exc_val: BaseException | None,
        _exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------------- inside

    def _one(self, prompt: str, max_tokens: int | None, temperature: float | None, full: bool = False) -> Pump:
        _check_prompt(prompt)
        read: Read | None = None
        if full:
            from graphbit.llm.messages import response_from as read
        return self._pump(_PROMPT, [prompt], max_tokens, temperature, read=read)

    def _batch(
        self,
        prompts: Sequence[str],
        max_tokens: int | None,
        temperature: float | None,
        max_concurrency: int | None,
        return_exceptions: bool,
    ) -> Pump:
        if isinstance(prompts, (str, bytes)):
            raise TypeError(f"prompts must be a list of strings, got one {type(prompts).__name__}")
        prompts = list(prompts)
        if not prompts:
            raise InputError("Validation error for field 'prompts' with value '[]': Prompts list cannot be empty")
        for i, prompt in enumerate(prompts):
            if prompt.__class__ is not str or not prompt or not prompt.isascii():
                _check_prompt(prompt, i)
        if max_concurrency is None:
            max_concurrency = CONCURRENCY
        elif isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int):
            raise TypeError(f"max_concurrency must be an int, got {max_concurrency!r}")
        elif max_concurrency < 1:
            raise _wrong("max_concurrency", max_concurrency, "max_concurrency must be greater than 0")
        model = self._config.model()
        return self._pump(
            _PROMPT,
            prompts,
            max_tokens,
            temperature,
            limit=max_concurrency,
            names=lambda i: f"the call to model {model!r} for prompt {i} of the batch",
            keep_errors=return_exceptions,
        )

    def _pump(
        self,
        request: int,
        payloads: Sequence[str | bytes],
        max_tokens: int | None,
        temperature: float | None,
        *,
        limit: int = 1,
        read: Read | None = None,
        names: Any = None,
        keep_errors: bool = False,
        counted: bool = True,
    ) -> Pump:
        options = (_tokens(max_tokens), _temperature(temperature))
        return Pump(
            self._config,
            self._plan or self._made_plan(),
            request,
            payloads,
            kind=lib.GB_VALUE_TEXT if request == _PROMPT else lib.GB_VALUE_JSON,
            options=options,
            limit=limit,
            read=read,
            names=names or self._named,
            stats=self._stats if counted else None,
            keep_errors=keep_errors,
            log=self._debug,
        )

    def _named(self, _: int) -> str:
        return f"the call to model {self._config.model()!r}"

    def _made_plan(self) -> Plan:
        """The plan: five requests, no nodes. Made by the first call, and kept."""
        with self._lock:
            if self._closed:
                raise RuntimeClosedError("this LlmClient was closed; make a new one")
            if self._plan is None:
                config = self._config
                builder = PlanBuilder(input_count=3)
                options: Any = {"max_tokens": Slot(_MAX_TOKENS), "temperature": Slot(_TEMPERATURE)}
                builder.request(config.chat_request([("user", [Slot(_PAYLOAD)])], **options))
                builder.request(config.chat_request(Slot(_PAYLOAD), **options))
                builder.request(config.models_request())
                builder.request(config.chat_request([("user", [Slot(_PAYLOAD)])], **options, stream=True))
                builder.request(config.chat_request(Slot(_PAYLOAD), **options, stream=True))
                self._plan = builder.build()
            return self._plan


async def _first(pump: Pump) -> Any:
    return (await pump)[0]


async def _all(pump: Pump) -> Any:
    return await pump


async def _warm(pump: Pump) -> str:
    try:
        await pump
    except AuthenticationError:
        raise
    except StatusError:
        pass  # whatever it said, it said it over an open connection
    return "Client warmed up successfully"


# -------------------------------------------------------------------------------------------------------------- checks


def _wrong(field: str, value: object, message: str) -> ConfigurationError:
    return ConfigurationError(f"Validation error for field {field!r} with value '{value}': {message}")


def _check_prompt(prompt: object, index: int | None = None) -> None:
    which = "prompt" if index is None else f"prompt {index} of the batch"
    if not isinstance(prompt, str):
        raise TypeError(f"{which} must be a string, got {type(prompt).__name__}")
    if not prompt:
        said = "Prompt cannot be empty" if index is None else f"Prompt cannot be empty ({which})"
        raise InputError(f"Validation error for field 'prompt' with value '': {said}")
    if not prompt.isascii():
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{which} cannot be sent: it holds half a surrogate pair, {prompt[error.start]!r} at position {error.start}"
            ) from None


def _tokens(value: int | None) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_tokens must be an int, got {value!r}")
    if value < 1:
        raise _wrong("max_tokens", value, "max_tokens must be greater than 0")
    if value > _TOKENS_MAX:
        raise _wrong("max_tokens", value, "max_tokens is too large")
    return b"%d" % value


def _temperature(value: float | None) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"temperature must be a number, got {value!r}")
    if not 0.0 <= value <= 2.0:  # not a number is not in between either
        raise _wrong("temperature", value, "temperature must be between 0.0 and 2.0")
    return repr(value if isinstance(value, int) else float(value)).encode()


def _conversation(messages: Sequence[Message]) -> bytes:
    """The messages as a JSON array."""
    from json import dumps

    if isinstance(messages, (str, bytes)):
        raise TypeError(f"messages must be a list of (role, content), got one {type(messages).__name__}")
    found: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if isinstance(message, (tuple, list)):
            if len(message) != 2 or not isinstance(message[0], str) or not isinstance(message[1], str):
                raise TypeError(f"message {i} must be (role, content), two strings, got {message!r}")
            role, content = message
            if role not in _ROLES:
                raise InputError(f"message {i} has the unknown role {role!r}; roles are {', '.join(_ROLES)}")
            found.append({"role": role, "content": content})
        elif hasattr(message, "keys"):
            if not isinstance(message.get("role"), str):
                raise InputError(f"message {i} has no 'role': {message!r}")
            found.append(dict(message))
        else:
            raise TypeError(f"message {i} must be (role, content) or a dict, got {type(message).__name__}")
    if not any(len(message) > 2 or message.get("content") for message in found):
        raise InputError(
            "Validation error for field 'messages' with value '[]': Messages cannot be empty"
            if not found
            else "Validation error for field 'messages': none of them has content"
        )
    text = dumps(found, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can carry it
        return dumps(found).encode()
