"""What the command line decides for every bench."""

from __future__ import annotations


class Options:
    __slots__ = ("big", "latency_ms", "peers", "repeats", "smoke")

    def __init__(
        self,
        *,
        smoke: bool = False,
        repeats: int | None = None,
        peers: frozenset[str] = frozenset(),
        latency_ms: int | None = None,
        big: bool = False,
    ) -> None:
        self.smoke = smoke
        self.repeats = repeats if repeats is not None else (1 if smoke else 5)
        self.peers = peers  # empty: all
        self.latency_ms = latency_ms if latency_ms is not None else (5 if smoke else 50)
        self.big = big

    def wants(self, peer: str) -> bool:
        return not self.peers or peer in self.peers
