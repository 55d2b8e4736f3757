"""What the core's admission controllers hold back and have learned, as Python says it."""

from __future__ import annotations

from graphbit._ffi import OK, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from graphbit._queue import Core

_KEY_BYTES = 4096
_BREAKER = {lib.GB_BREAKER_CLOSED: "closed", lib.GB_BREAKER_OPEN: "open", lib.GB_BREAKER_HALF_OPEN: "half_open"}
_QUOTAS = ("requests", "tokens", "input_tokens", "output_tokens")


def rows(core: Core, only: str | None = None) -> list[dict[str, Any]]:
    """One for each controller of the runtime; with `only`, the one of that key."""
    found = []
    stats = ffi.new("gb_admission_stats *")
    room = ffi.new("uint8_t[]", _KEY_BYTES)
    length = ffi.new("uint32_t *")
    index = 0
    while lib.gb_admission_read(core.handle, index, stats, room, _KEY_BYTES, length) == OK:
        index += 1
        key = bytes(ffi.buffer(room, min(length[0], _KEY_BYTES))).decode("utf-8", "replace")
        if only is None or key == only:
            found.append(_row(key, stats, lib.gb_runtime_now(core.handle)))
    return found


def _row(key: str, stats: Any, now_ns: int) -> dict[str, Any]:
    base_url, _, rest = key.partition("\n")
    return {
        "base_url": base_url,
        "model": rest.rpartition("\n")[0],
        "in_flight": stats.in_flight,
        "queued": stats.queued,
        "max_concurrency": stats.concurrency or None,
        "learned_concurrency": round(stats.window, 2) if stats.window else None,
        "limits": {
            name: {
                "limit": quota.limit,
                "used": quota.used,
                "period_seconds": quota.period_ns / 1e9,
                "announced": quota.announced or None,
                "learned": quota.learned or None,
            }
            for name, quota in zip(_QUOTAS, stats.quotas, strict=True)
            if quota.limit
        },
        "admitted": stats.admitted,
        "rate_limited": stats.limited,
        "overloaded": stats.overloaded,
        "cool_downs": stats.cool_downs,
        "cooling_seconds": max(0, stats.cooled_until_ns - now_ns) / 1e9,
        "refused": stats.refused,
        "queue_timeouts": stats.queue_timeouts,
        "hedged": stats.hedged,
        "coalesced": stats.coalesced,
        "breaker": _BREAKER[stats.breaker],
        "next_probe_seconds": max(0, stats.next_probe_ns - now_ns) / 1e9 if stats.next_probe_ns else None,
        "breaker_history": [
            {"state": _BREAKER[it.state], "seconds_ago": max(0, now_ns - it.at_ns) / 1e9}
            for it in stats.history[0 : stats.history_count]
        ],
    }
