"""Admission: what holds requests back so that a provider's limits are respected, and what a provider in trouble is spared."""

from __future__ import annotations

from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SECONDS_MAX = 1_000_000


class Admission:
    """How many requests a provider is sent, beyond what it announces and what its refusals teach.

    ```python
    LlmConfig.openai(admission=Admission(requests_per_minute=500, tokens_per_minute=30_000))
    LlmConfig.openai(admission=Admission(hedge=True))
    LlmConfig.openai(admission=False)                     # everything goes out at once
    ```

    Nothing of it need be given: limits are learned from the replies (`x-ratelimit-*`, `anthropic-ratelimit-*`, `Retry-After`). All
    requests of the process with one base URL, key and model share one controller, whatever run, thread or event loop they
    come from. Where they were given different numbers, the strictest of each counts, and where one of them leaves `adaptive` or
    `learn` on it is on for all, until a minute after the last request that asked for it. The other switches are each one's own.
    Runs take turns; within one, calls go in order.

    After a 429 or 503 all wait until the server's Retry-After is over (at most two minutes; without one, a moment), and come back
    one after the other.
    Tokens are reserved by estimate when a request is sent, and corrected by the usage its reply tells.

    A value: it does not change, equal ones are equal, threads share it.

    Args:
        max_concurrency: so many requests at once.
        requests_per_minute, tokens_per_minute: never more than that in any minute; tokens of prompts and answers together. Half of
            it may be used at once, the rest is spread.
        queue_timeout: seconds a request may wait here before each attempt; then it fails with QueueTimeoutError. None: as long as
            its run or call has time. The `timeout` of an attempt does not begin before it is sent.
        adaptive: refusals tell the limits that nobody announces: so many at once, a pace, so many a minute. They narrow what is
            sent, and what is taken after that widens it again.
        learn: limits that replies announce count.
        breaker: when half of the last 32 requests failed by the server's or the connection's fault, nothing is sent for a second
            (then two, at most thirty), requests fail at once with CircuitOpenError, and one probe decides how it goes on. The
            requests that one broken connection carried count as one.
        hedge: a second attempt when no first byte came for longer than 95 % of the last requests took; the first reply counts and
            the other attempt is cancelled. At most 5 % more requests. Of requests whose answers are not streamed.
        coalesce: of equal requests on their way at the same time one is sent, and all get its answer. One that fails does not fail
            the others. Of requests whose answers are not streamed.

    Raises:
        ConfigurationError: one of these cannot be right.
    """

    __slots__ = (
        "adaptive",
        "breaker",
        "coalesce",
        "hedge",
        "learn",
        "max_concurrency",
        "queue_timeout",
        "requests_per_minute",
        "tokens_per_minute",
    )

    max_concurrency: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    queue_timeout: float | None
    adaptive: bool
    learn: bool
    breaker: bool
    hedge: bool
    coalesce: bool

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        queue_timeout: float | None = None,
        adaptive: bool = True,
        learn: bool = True,
        breaker: bool = True,
        hedge: bool = False,
        coalesce: bool = False,
    ) -> None:
        set_ = object.__setattr__
        for name, number, most in (
            ("max_concurrency", max_concurrency, 1 << 31),
            ("requests_per_minute", requests_per_minute, 1 << 31),
            ("tokens_per_minute", tokens_per_minute, 1 << 50),
        ):
            if number is not None and (
                isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= most
            ):
                raise ConfigurationError(f"{name} is a number from 1 to {most}, or None for no limit, got {number!r}")
            set_(self, name, number)
        if queue_timeout is not None and (
            isinstance(queue_timeout, bool)
            or not isinstance(queue_timeout, (int, float))
            or not 0 < queue_timeout <= _SECONDS_MAX
        ):
            raise ConfigurationError(f"queue_timeout is a number of seconds above 0, or None, got {queue_timeout!r}")
        set_(self, "queue_timeout", None if queue_timeout is None else float(queue_timeout))
        for name, flag in (
            ("adaptive", adaptive),
            ("learn", learn),
            ("breaker", breaker),
            ("hedge", hedge),
            ("coalesce", coalesce),
        ):
            if not isinstance(flag, bool):
                raise ConfigurationError(f"{name} must be True or False, got {flag!r}")
            set_(self, name, flag)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Admission does not change; make a new one to set {name!r}")

    def _fields(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in Admission.__slots__])

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, Admission) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> Any:
        return _made, ({name: getattr(self, name) for name in Admission.__slots__},)

    def __repr__(self) -> str:
        shown = [
            f"{name}={getattr(self, name)!r}"
            for name in Admission.__slots__
            if getattr(self, name) != getattr(DEFAULT, name)
        ]
        return f"Admission({', '.join(shown)})"

    def numbers(self) -> tuple[int, int, int, int, int]:
        """gb_admission_flags, concurrency, requests and milliseconds of the queue timeout, tokens: gb_admission without its key."""
        flags = self.adaptive | self.learn << 1 | self.breaker << 2 | self.hedge << 3 | self.coalesce << 4
        wait_ms = 0 if self.queue_timeout is None else min(max(1, round(self.queue_timeout * 1000)), 2**32 - 1)
        return (
            flags,
            self.max_concurrency or 0,
            self.requests_per_minute or 0,
            wait_ms,
            self.tokens_per_minute or 0,
        )


def _made(fields: dict[str, Any]) -> Admission:
    return Admission(**fields)


DEFAULT = Admission()


def checked_admission(value: object) -> Admission | None:
    """`value`, the default where it is None or True; None where it is False.

    Raises:
        TypeError: it is something else.
    """
    if value is None or value is True:
        return DEFAULT
    if value is False:
        return None
    if not isinstance(value, Admission):
        raise TypeError(f"admission must be an Admission, True or False, got {type(value).__name__}")
    return value


def key_of(base_url: str, model: str, credential: str) -> str:
    """What one controller is for. The credential is not in it, only what tells it from others."""
    from hashlib import sha256

    return f"{base_url}\n{model}\n{sha256(credential.encode()).hexdigest()[:16]}"
