"""What a node may be given beside its work: when to try again, what to remember."""

from __future__ import annotations

from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Trigger = type[BaseException] | int

_ATTEMPTS_MAX = 1000
_SECONDS_MAX = 1_000_000.0
_STATUSES_MAX = 12


class RetryPolicy:
    """When to try again, and how long to wait before that.

    ```python
    Node.function(fetch, retry=RetryPolicy(5, on=ConnectionError))
    Node.agent("draft", "…", retry=RetryPolicy(4, backoff=1.0, on=[429, 503]))
    ```

    Before attempt n+1 a node waits `backoff * factor ** (n - 1)` seconds, at most `max_backoff`; with `jitter` half of that is
    spread at random, so that those who failed together do not come back together. Meanwhile it holds no thread and no permit.
    An agent or HTTP node is never tried again before the server's Retry-After.

    Args:
        attempts: all tries together; 1: no retry.
        backoff: seconds before the second attempt.
        factor: each wait is so many times the one before.
        max_backoff: seconds; no wait is longer.
        jitter: whether to spread the waits.
        on: what is tried again: exception classes for Python functions, HTTP statuses for agents and HTTP nodes, or a list of
            such. Without it: every exception (but no exit and no Ctrl-C); failures that may pass (no connection, timeouts, 408,
            409, 429, 5xx).

    Raises:
        ConfigurationError: a number that cannot be right, or `on` holds something else.
    """

    __slots__ = ("attempts", "backoff", "factor", "jitter", "max_backoff", "on")

    def __init__(
        self,
        attempts: int = 3,
        *,
        backoff: float = 0.5,
        factor: float = 2.0,
        max_backoff: float = 30.0,
        jitter: bool = True,
        on: Trigger | Sequence[Trigger] | None = None,
    ) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or not 1 <= attempts <= _ATTEMPTS_MAX:
            raise ConfigurationError(f"attempts is a number from 1 to {_ATTEMPTS_MAX}, got {attempts!r}")
        for name, value, least in (
            ("backoff", backoff, 0.0),
            ("factor", factor, 1.0),
            ("max_backoff", max_backoff, 0.0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= _SECONDS_MAX:
                raise ConfigurationError(f"{name} is a number from {least:g} on, got {value!r}")
        triggers: tuple[Trigger, ...] = ()
        if on is not None:
            triggers = tuple(on) if isinstance(on, (list, tuple, set, frozenset)) else (on,)  # type: ignore[assignment]
            if not triggers:
                raise ConfigurationError("on is empty: nothing would ever be tried again; use attempts=1 for that")
        statuses = 0
        for it in triggers:
            if isinstance(it, int) and not isinstance(it, bool) and 400 <= it <= 599:
                statuses += 1
            elif not (isinstance(it, type) and issubclass(it, BaseException)):
                raise ConfigurationError(f"on holds exception classes and HTTP statuses from 400 to 599, got {it!r}")
        if statuses > _STATUSES_MAX:
            raise ConfigurationError(f"on holds at most {_STATUSES_MAX} statuses, got {statuses}")
        self.attempts = attempts
        self.backoff = float(backoff)
        self.factor = float(factor)
        self.max_backoff = float(max_backoff)
        self.jitter = bool(jitter)
        self.on = triggers if on is not None else None

    @property
    def statuses(self) -> list[int]:
        """The HTTP statuses in `on`."""
        return [it for it in self.on or () if isinstance(it, int)]

    def matches(self, error: BaseException) -> bool:
        """`policy.matches(ValueError())`: whether a Python function that raised this is tried again."""
        if not isinstance(error, Exception):
            return False
        if self.on is None:
            return True
        return isinstance(error, tuple(it for it in self.on if isinstance(it, type)))

    def __repr__(self) -> str:
        return (
            f"RetryPolicy({self.attempts}, backoff={self.backoff}, factor={self.factor}, "
            f"max_backoff={self.max_backoff}, jitter={self.jitter}, on={self.on!r})"
        )


class Cache:
    """Remembers what nodes returned, in this process's memory.

    ```python
    cache = Cache(ttl=600)
    Node.function(fetch, cache=cache)
    Node.agent("summary", "Sum up {page}", cache=cache)
    ```

    A function is found again by its arguments (1 and True are two), an agent or HTTP node by the request as it would be sent, its
    account included: what one was told is not for another. Only successes are kept. Nodes may share a cache; functions are told apart.

    Args:
        max_entries: the least recently used goes first when there are more.
        ttl: seconds after which an entry is no longer used; None: it does not age.
        key: makes something hashable of a function's arguments, for arguments that cannot be hashed and not be pickled.

    Raises:
        ConfigurationError: a number that is not positive.
    """

    __slots__ = (
        "__weakref__",
        "_destroy",
        "_entries",
        "_handle",
        "_lock",
        "hits",
        "key",
        "max_entries",
        "misses",
        "ttl",
    )

    def __init__(
        self, max_entries: int = 1000, *, ttl: float | None = None, key: Callable[..., Any] | None = None
    ) -> None:
        if isinstance(max_entries, bool) or not isinstance(max_entries, int) or not 0 < max_entries < 1 << 32:
            raise ConfigurationError(f"max_entries is a number above 0, got {max_entries!r}")
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl < 1e9):
            raise ConfigurationError(f"ttl is a number of seconds above 0, or None, got {ttl!r}")
        if key is not None and not callable(key):
            raise ConfigurationError(f"key makes a key of a function's arguments, got {key!r}")
        from threading import Lock

        self.max_entries = max_entries
        self.ttl = ttl
        self.key = key
        self.hits = 0
        """Of functions."""
        self.misses = 0
        self._entries: dict[Any, tuple[float, Any]] = {}
        self._lock = Lock()
        self._handle: Any = None

    def find(self, function: object, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any, bool]:
        """The key of such a call, what is known of it, and whether anything is."""
        from time import monotonic

        key: Any
        if self.key is not None:
            key = self.key(*arguments, **keywords)
        else:
            key = _typed(arguments), tuple((name, _typed(value)) for name, value in sorted(keywords.items()))
            try:
                hash(key)
            except TypeError:
                import pickle

                try:
                    key = pickle.dumps(key)
                except Exception as error:
                    raise ConfigurationError(
                        f"the arguments of {function!r} can be neither hashed nor pickled ({error}); "
                        "give its cache a key function: Cache(key=…)"
                    ) from error
        key = function, key
        with self._lock:
            found = self._entries.get(key)
            if found is not None and (self.ttl is None or monotonic() - found[0] < self.ttl):
                self._entries[key] = self._entries.pop(key)  # the last one used stands last
                self.hits += 1
                return key, found[1], True
            self.misses += 1
        return key, None, False

    def keep(self, key: Any, value: Any) -> None:
        """Remembers a call under the key that `find` gave."""
        from time import monotonic

        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = monotonic(), value
            while len(self._entries) > self.max_entries:
                del self._entries[next(iter(self._entries))]

    def handle(self) -> Any:
        """The core's cache, for agents and HTTP nodes."""
        from graphbit._ffi import check, ffi, lib

        with self._lock:
            if self._handle is None:
                out = ffi.new("gb_cache **")
                check(lib.gb_cache_create(self.max_entries, int((self.ttl or 0) * 1e9), out), "making a cache")
                self._destroy = lib.gb_cache_destroy  # at the interpreter's end nothing can be imported any more
                self._handle = out[0]
        return self._handle

    def clear(self) -> None:
        """`cache.clear()`: forgets everything."""
        with self._lock:
            self._entries.clear()
        if self._handle is not None:
            from graphbit._ffi import lib

            lib.gb_cache_clear(self._handle)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            self._destroy(handle)

    def __repr__(self) -> str:
        return f"Cache({self.max_entries}, ttl={self.ttl})"


def _typed(value: Any) -> Any:
    """The value together with its type, for equal ones are not always the same: 1, 1.0 and True."""
    if value.__class__ is tuple:
        return tuple, tuple(map(_typed, value))
    return value.__class__, value
