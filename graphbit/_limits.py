"""An executor's limits: names with their numbers, and the core's permits behind them."""

from __future__ import annotations

from os import getpid

from graphbit._ffi import check, ffi, lib
from graphbit._lower import COMPOSITES, EVERYTHING
from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_LIMITS_MAX = 32
_PERMITS_MAX = (1 << 32) - 1


class Limits:
    """What an executor was given as `max_concurrency` and `limits`.

    Attributes:
        numbers: names of limits and kinds of nodes, with their numbers; EVERYTHING for `max_concurrency`. Empty: no limits.
    """

    __slots__ = ("_handle", "_process", "_wanted", "numbers")

    def __init__(self, max_concurrency: int | None, limits: Mapping[str, int] | None) -> None:
        if limits is not None and not hasattr(limits, "items"):
            raise ConfigurationError(f"limits map names to numbers such as {{'db': 4}}, got {limits!r}")
        wanted: dict[str, int] = {}
        if max_concurrency is not None:
            wanted[EVERYTHING] = _permits("max_concurrency", max_concurrency)
        for name, permits in (limits or {}).items():
            if not isinstance(name, str) or not name or name == EVERYTHING:
                raise ConfigurationError(
                    f"a limit has a name, got {name!r}; max_concurrency= limits all nodes together"
                )
            if name in COMPOSITES:
                raise ConfigurationError(
                    f"limits[{name!r}]: a {name} node holds no permits while its runs are on their way; "
                    "limit what they run, or give Node.map its limit="
                )
            wanted[name] = _permits(f"limits[{name!r}]", permits)
        if len(wanted) > _LIMITS_MAX:
            raise ConfigurationError(f"an executor has at most {_LIMITS_MAX} limits, got {len(wanted)}")
        self.numbers = {name: number for number, name in enumerate(wanted)}
        self._wanted = list(wanted.values())
        self._handle: Any = None
        self._process = 0

    @property
    def handle(self) -> Any:
        """The gb_limits, or None where there are none. A forked child has its own: nobody there gives the parent's permits back."""
        if self._wanted and self._process != getpid():
            out = ffi.new("gb_limits **")
            check(lib.gb_limits_create(self._wanted, len(self._wanted), out), "making limits")
            self._handle, self._process = out[0], getpid()
        return self._handle

    def stats(self) -> dict[str, dict[str, int]]:
        """By name: capacity, in_use, waiting, peak."""
        if self.handle is None:
            return {}
        found = ffi.new("gb_limit_stats[]", len(self.numbers))
        lib.gb_limits_read(self.handle, found, len(self.numbers))
        return {
            "max_concurrency" if name == EVERYTHING else name: {
                key: getattr(found[number], key) for key in ("capacity", "in_use", "waiting", "peak")
            }
            for name, number in self.numbers.items()
        }

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and self._process == getpid():
            lib.gb_limits_destroy(handle)


def _permits(what: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= _PERMITS_MAX:
        raise ConfigurationError(f"{what} is a number above 0, got {number!r}")
    return number
