"""What comes back from a model: LlmResponse and its parts. Values: they do not change, and equal content is equal."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

__all__ = ["FinishReason", "LlmResponse", "LlmToolCall", "LlmUsage"]


class _Value:
    """Equality, hash and copying for classes whose slots say everything."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self.__slots__])

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        assert isinstance(other, _Value)
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __copy__(self) -> _Value:
        return self

    def __deepcopy__(self, memo: object) -> _Value:
        return self


class LlmUsage(_Value):
    """`LlmUsage(12, 30).total_tokens == 42`: tokens that calls took.

    Counts that a server did not give are None for the details (`cache_read_tokens`, `cache_creation_tokens`,
    `reasoning_tokens`); `reported` is False where it gave none at all, and the zeros mean nothing then.

    `a + b` sums, `sum(usages, LlmUsage.empty())` sums many.
    """

    __slots__ = ("_cache_creation", "_cache_read", "_completion", "_prompt", "_reasoning", "_reported", "_total")

    def __init__(self, prompt_tokens: int, completion_tokens: int) -> None:
        for name, count in (("prompt_tokens", prompt_tokens), ("completion_tokens", completion_tokens)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} must be an int, got {count!r}")
            if count < 0:
                raise ValueError(f"{name} must not be negative, got {count}")
        self._set(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, None, None, None, True)

    def _set(
        self,
        prompt: int,
        completion: int,
        total: int,
        cache_read: int | None,
        cache_creation: int | None,
        reasoning: int | None,
        reported: bool,
    ) -> LlmUsage:
        self._prompt = prompt
        self._completion = completion
        self._total = total
        self._cache_read = cache_read
        self._cache_creation = cache_creation
        self._reasoning = reasoning
        self._reported = reported
        return self

    @staticmethod
    def empty() -> LlmUsage:
        """`LlmUsage.empty()`: of no call at all."""
        return LlmUsage(0, 0)

    @property
    def prompt_tokens(self) -> int:
        return self._prompt

    @property
    def completion_tokens(self) -> int:
        return self._completion

    @property
    def total_tokens(self) -> int:
        """The server's own total; where it gave none, the sum of the two others."""
        return self._total

    @property
    def cache_read_tokens(self) -> int | None:
        """Tokens of the prompt that came from the provider's cache."""
        return self._cache_read

    @property
    def cache_creation_tokens(self) -> int | None:
        """Tokens of the prompt that were put into the provider's cache."""
        return self._cache_creation

    @property
    def reasoning_tokens(self) -> int | None:
        """Tokens of the completion that were spent on thinking."""
        return self._reasoning

    @property
    def reported(self) -> bool:
        """Whether the server counted."""
        return self._reported

    def add(self, other: LlmUsage) -> LlmUsage:
        """`total = total.add(usage)`: the sum, as a new value."""
        return self + other

    def __add__(self, other: LlmUsage) -> LlmUsage:
        if not isinstance(other, LlmUsage):
            return NotImplemented
        return LlmUsage.__new__(LlmUsage)._set(
            self._prompt + other._prompt,
            self._completion + other._completion,
            self._total + other._total,
            _sum(self._cache_read, other._cache_read),
            _sum(self._cache_creation, other._cache_creation),
            _sum(self._reasoning, other._reasoning),
            self._reported and other._reported,
        )

    def __radd__(self, other: object) -> LlmUsage:
        return self if other == 0 else NotImplemented  # sum() starts with 0

    def to_dict(self) -> dict[str, int]:
        """`usage.to_dict()["total_tokens"]`: the counts that are known; `from_dict` takes it back."""
        found = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._total,
        }
        details = (
            ("cache_read_tokens", self._cache_read),
            ("cache_creation_tokens", self._cache_creation),
            ("reasoning_tokens", self._reasoning),
        )
        found.update((name, count) for name, count in details if count is not None)
        return found

    @staticmethod
    def from_dict(data: Mapping[str, int]) -> LlmUsage:
        """`LlmUsage.from_dict({"prompt_tokens": 12, "completion_tokens": 30})`.

        Raises:
            KeyError: one of these two is missing.
        """
        usage = LlmUsage(data["prompt_tokens"], data["completion_tokens"])
        return usage._set(
            usage._prompt,
            usage._completion,
            data.get("total_tokens", usage._total),
            data.get("cache_read_tokens"),
            data.get("cache_creation_tokens"),
            data.get("reasoning_tokens"),
            True,
        )

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={count}" for name, count in self.to_dict().items())
        return f"LlmUsage({counts})" if self._reported else "LlmUsage(not reported)"


class FinishReason(_Value):
    """`response.finish_reason == FinishReason.stop()`: why a model ended its answer."""

    __slots__ = ("_word",)

    _word: str

    def __init__(self) -> None:
        raise TypeError("FinishReason has no constructor; use FinishReason.stop(), FinishReason.other('…'), …")

    @staticmethod
    def _of(word: str) -> FinishReason:
        made = FinishReason.__new__(FinishReason)
        made._word = word
        return made

    @staticmethod
    def stop() -> FinishReason:
        """It had said what it had to say."""
        return FinishReason._of("stop")

    @staticmethod
    def length() -> FinishReason:
        """max_tokens, or the model's own limit, cut it off."""
        return FinishReason._of("length")

    @staticmethod
    def tool_calls() -> FinishReason:
        """It waits for the results of tools."""
        return FinishReason._of("tool_calls")

    @staticmethod
    def content_filter() -> FinishReason:
        """The provider withheld the rest."""
        return FinishReason._of("content_filter")

    @staticmethod
    def error() -> FinishReason:
        """The provider failed in the middle."""
        return FinishReason._of("error")

    @staticmethod
    def other(reason: str) -> FinishReason:
        """Whatever else a provider says, in its own word."""
        return FinishReason._of(reason)

    def is_natural_stop(self) -> bool:
        """`stop` or `tool_calls`."""
        return self._word in ("stop", "tool_calls")

    def is_truncated(self) -> bool:
        """`length`."""
        return self._word == "length"

    def is_error(self) -> bool:
        """`content_filter` or `error`."""
        return self._word in ("content_filter", "error")

    def to_string(self) -> str:
        return self._word

    def __str__(self) -> str:
        return self._word

    def __repr__(self) -> str:
        return f"FinishReason({self._word})"


class LlmToolCall(_Value):
    """`LlmToolCall("call_1", "weather", '{"city":"Oslo"}')`: a tool the model wants to be called.

    `parameters` is JSON text. From a model it is what the model wrote, which need not be valid.

    Raises:
        ValueError: `parameters` is not JSON.
    """

    __slots__ = ("_id", "_name", "_parameters")

    def __init__(self, id: str, name: str, parameters: str) -> None:
        import json

        try:
            json.loads(parameters)
        except ValueError as error:
            raise ValueError(f"Invalid JSON parameters: {error}") from None
        self._id, self._name, self._parameters = id, name, parameters

    @staticmethod
    def _from_model(id: str, name: str, parameters: str) -> LlmToolCall:
        made = LlmToolCall.__new__(LlmToolCall)
        made._id, made._name, made._parameters = id, name, parameters or "{}"
        return made

    @property
    def id(self) -> str:
        return self._id

    @property
    def name(self) -> str:
        return self._name

    @property
    def parameters(self) -> str:
        return self._parameters

    def to_dict(self) -> dict[str, str]:
        """`call.to_dict()["parameters"]`: JSON text there too."""
        return {"id": self._id, "name": self._name, "parameters": self._parameters}

    def __repr__(self) -> str:
        return f"LlmToolCall(id={self._id!r}, name={self._name!r}, parameters={self._parameters})"


class LlmResponse(_Value):
    """`response = client.complete_full("Hi"); print(response.content, response.usage)`: an answer and what is known about it.

    Beside the answer: `reasoning` (what the model thought aloud, or ""), `attempts` (1: no retry), `request_id` (the server's
    name for the exchange), `duration_ms` and `first_byte_ms` of the last attempt. Those four are None, like `id`, where not
    known.

    `with_usage`, `with_tool_calls`, `with_finish_reason`, `with_id` and `with_metadata` return a changed copy.
    """

    __slots__ = (
        "_attempts",
        "_content",
        "_duration_ms",
        "_extra",
        "_finish",
        "_first_byte_ms",
        "_id",
        "_model",
        "_reasoning",
        "_request_id",
        "_tool_calls",
        "_usage",
    )

    def __init__(self, content: str, model: str) -> None:
        self._content = content
        self._model = model
        self._usage = LlmUsage.empty()
        self._finish = FinishReason.stop()
        self._tool_calls: tuple[LlmToolCall, ...] = ()
        self._id: str | None = None
        self._reasoning = ""
        self._attempts: int | None = None
        self._request_id: str | None = None
        self._duration_ms: float | None = None
        self._first_byte_ms: float | None = None
        self._extra: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> str:
        return self._content

    @property
    def model(self) -> str:
        """The model that answered, in the server's words."""
        return self._model

    @property
    def usage(self) -> LlmUsage:
        return self._usage

    @property
    def finish_reason(self) -> FinishReason:
        return self._finish

    @property
    def tool_calls(self) -> list[LlmToolCall]:
        return list(self._tool_calls)

    @property
    def id(self) -> str | None:
        return self._id

    @property
    def reasoning(self) -> str:
        return self._reasoning

    @property
    def attempts(self) -> int | None:
        return self._attempts

    @property
    def request_id(self) -> str | None:
        return self._request_id

    @property
    def duration_ms(self) -> float | None:
        return self._duration_ms

    @property
    def first_byte_ms(self) -> float | None:
        return self._first_byte_ms

    @property
    def metadata(self) -> dict[str, str]:
        """`json.loads(response.metadata["attempts"])`: what is known beside the answer, each value as JSON text."""
        from json import dumps

        known: dict[str, Any] = {
            "attempts": self._attempts,
            "request_id": self._request_id,
            "duration_ms": self._duration_ms,
            "first_byte_ms": self._first_byte_ms,
            "reasoning": self._reasoning or None,
        }
        found = {key: dumps(value) for key, value in known.items() if value is not None}
        found.update(self._extra)
        return found

    def has_tool_calls(self) -> bool:
        return bool(self._tool_calls)

    def is_truncated(self) -> bool:
        """Whether a limit on tokens cut the answer off."""
        return self._finish.is_truncated()

    def total_tokens(self) -> int:
        return self._usage.total_tokens

    def to_dict(self) -> dict[str, Any]:
        """`json.dumps(response.to_dict())`."""
        return {
            "content": self._content,
            "model": self._model,
            "id": self._id,
            "tool_calls": [call.to_dict() for call in self._tool_calls],
            "usage": self._usage.to_dict(),
            "finish_reason": self._finish.to_string(),
            "metadata": self.metadata,
        }

    def with_usage(self, usage: LlmUsage) -> LlmResponse:
        return self._with("_usage", usage)

    def with_tool_calls(self, tool_calls: Iterable[LlmToolCall]) -> LlmResponse:
        return self._with("_tool_calls", tuple(tool_calls))

    def with_finish_reason(self, finish_reason: FinishReason) -> LlmResponse:
        return self._with("_finish", finish_reason)

    def with_id(self, id: str) -> LlmResponse:
        return self._with("_id", id)

    def with_metadata(self, key: str, value: str) -> LlmResponse:
        """`response.with_metadata("topic", '"bees"')`: `value` is JSON text.

        Raises:
            ValueError: it is not JSON.
        """
        from json import loads

        try:
            loads(value)
        except ValueError as error:
            raise ValueError(f"Invalid JSON value: {error}") from None
        return self._with("_extra", (*(pair for pair in self._extra if pair[0] != key), (key, value)))

    def _with(self, slot: str, value: object) -> LlmResponse:
        made = LlmResponse.__new__(LlmResponse)
        for name in LlmResponse.__slots__:
            setattr(made, name, getattr(self, name))
        setattr(made, slot, value)
        return made

    def __repr__(self) -> str:
        content = self._content if len(self._content) <= 50 else self._content[:50] + "…"
        return f"LlmResponse(content={content!r}, model={self._model!r}, usage={self._usage}, finish_reason={self._finish})"


_KNOWN = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "error": "error",
}
"""Finish reasons as wire formats write them, and what they are called here."""


def finish_reason(word: str) -> FinishReason:
    """`finish_reason("function_call") == FinishReason.tool_calls()`: from a wire format's word."""
    return FinishReason._of(_KNOWN.get(word, word or "unknown"))


def response_from(reply: Any) -> LlmResponse:
    """`response_from(reply).usage`: a gb_reply pointer as a value of its own; the reply may go afterwards."""
    from graphbit._ffi import optional_text, text

    made = LlmResponse(text(reply.text), text(reply.model))
    made._usage = usage_from(reply)
    made._finish = finish_reason(text(reply.finish))
    if reply.tool_call_count:
        calls = [reply.tool_calls[i] for i in range(reply.tool_call_count)]
        made._tool_calls = tuple(
            [LlmToolCall._from_model(text(call.id), text(call.name), text(call.arguments)) for call in calls]
        )
    made._id = optional_text(reply.id)
    made._reasoning = text(reply.reasoning)
    made._attempts = reply.attempts or None
    made._request_id = optional_text(reply.request_id)
    started: int = reply.started_ns
    if started:
        if reply.ended_ns:
            made._duration_ms = (reply.ended_ns - started) / 1e6
        if reply.first_byte_ns:
            made._first_byte_ms = (reply.first_byte_ns - started) / 1e6
    return made


def usage_from(reply: Any) -> LlmUsage:
    """The token counts of a gb_reply."""
    prompt: int = reply.prompt_tokens
    completion: int = reply.completion_tokens
    total: int = reply.total_tokens
    reported = prompt >= 0 or completion >= 0 or total >= 0
    prompt, completion = max(prompt, 0), max(completion, 0)
    return LlmUsage.__new__(LlmUsage)._set(
        prompt,
        completion,
        total if total >= 0 else prompt + completion,
        _count(reply.cache_read_tokens),
        _count(reply.cache_creation_tokens),
        _count(reply.reasoning_tokens),
        reported,
    )


def _count(value: int) -> int | None:
    return value if value >= 0 else None


def _sum(one: int | None, other: int | None) -> int | None:
    if one is None:
        return other
    return one if other is None else one + other
