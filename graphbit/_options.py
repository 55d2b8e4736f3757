"""What several kinds of nodes can be given, and the checks that all of them share."""

from __future__ import annotations

from itertools import count

from graphbit.errors import ConfigurationError, WorkflowError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal

    from graphbit.policy import Cache, RetryPolicy

    Join = Literal["all", "any", "all_done"]

_JOINS = ("all", "any", "all_done")
_ids = count(1)


class _NoFallback:
    def __repr__(self) -> str:
        return "<none>"


NO_FALLBACK: Any = _NoFallback()
"""None is a fallback like any other value."""


class Options:
    """What several kinds of nodes can be given; see `Node`."""

    __slots__ = ("cache", "fallback", "join", "limits", "retry", "timeout")

    def __init__(
        self,
        join: str = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = NO_FALLBACK,
        cache: Cache | None = None,
        limits: tuple[str, ...] = (),
    ) -> None:
        self.join = join
        self.retry = retry
        self.timeout = timeout
        self.fallback = fallback
        self.cache = cache
        self.limits = limits

    @property
    def has_fallback(self) -> bool:
        return self.fallback is not NO_FALLBACK


PLAIN = Options()
"""Of most nodes; one object, so that they are told apart quickly."""


def checked_options(
    name: str,
    join: str,
    retry: RetryPolicy | None,
    timeout: float | None,
    fallback: Any,
    cache: bool | Cache,
    limit: str | Sequence[str] | None,
    *,
    by_status: bool = False,
) -> Options:
    """`by_status`: the node's failures have HTTP statuses, and are tried again by these."""
    if (
        join == "all"
        and retry is None
        and timeout is None
        and fallback is NO_FALLBACK
        and cache is False
        and limit is None
    ):
        return PLAIN
    if join not in _JOINS:
        raise ConfigurationError(f"join is 'all', 'any' or 'all_done', got {join!r} (node {name!r})")
    if retry is not None and not hasattr(retry, "matches"):
        raise ConfigurationError(f"retry is a RetryPolicy such as RetryPolicy(3), got {retry!r} (node {name!r})")
    if retry is not None and retry.on is not None:
        statuses = len(retry.statuses)
        if by_status and not statuses:
            raise ConfigurationError(f"an agent or HTTP node is tried again by status: on=[429, 503] (node {name!r})")
        if not by_status and statuses == len(retry.on):
            raise ConfigurationError(
                f"a function is tried again by exception class: on=ConnectionError (node {name!r})"
            )
    if timeout is not None and not (is_number(timeout) and 0 < timeout < 1e9):
        raise ConfigurationError(f"timeout is a number of seconds above 0, got {timeout!r} (node {name!r})")
    limits: tuple[Any, ...] = (limit,)
    if limit is None or isinstance(limit, (list, tuple, set, frozenset)):
        limits = tuple(limit or ())
    for it in limits:
        if not isinstance(it, str) or not it:
            raise ConfigurationError(f"limit is the name of a limit, or several, got {limit!r} (node {name!r})")
    kept: Cache | None = None
    if cache is True:
        from graphbit.policy import Cache

        kept = Cache()
    elif cache is not False and cache is not None:
        if isinstance(cache, type) or not hasattr(cache, "keep"):
            raise ConfigurationError(f"cache is True, False or a Cache, got {cache!r} (node {name!r})")
        kept = cache
    return Options(join, retry, timeout, fallback, kept, limits)


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return is_number(value) and (isinstance(value, int) or value.is_integer())


def new_id() -> str:
    return f"node-{next(_ids)}"


def checked_name(name: str, what: str) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"{what} must be a string, got {name!r}")
    if not name or name.isspace():
        raise ConfigurationError(f"{what} cannot be empty")
    if "{" in name or "}" in name:
        raise WorkflowError(f"{what} cannot hold braces, got {name!r}")
    return name
