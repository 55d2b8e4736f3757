"""What every peer of the streams bench shares: the rounds, and what the stamps say of a piece's way.

A piece is whatever the client hands out at once; an event's text begins with a stamp, the server's clock just before it sent
it. Peers keep the pieces and, where the round is timed, when each was seen; everything else happens outside the clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic_ns

from bench import _work
from bench._harness import Numbers, measure, mock_counters, percentile

STAMP = re.compile(r"@(\d{13})")


class Heard:
    """One stream's pieces; `hear` is what a peer does with a piece."""

    __slots__ = ("hear", "pieces", "seen_ns")

    def __init__(self, timed: bool) -> None:
        self.pieces: list[str] = []
        self.seen_ns: list[int] = []
        self.hear: Callable[[str], None] = self.note if timed else self.pieces.append

    def note(self, piece: str) -> None:
        self.seen_ns.append(monotonic_ns())
        self.pieces.append(piece)


def delays_ms(streams: list[Heard]) -> list[float]:
    return [
        seen_ns / 1e6 - int(stamp) / 1e3
        for heard in streams
        for piece, seen_ns in zip(heard.pieces, heard.seen_ns, strict=True)
        for stamp in STAMP.findall(piece)
    ]


def run(read: Callable[[list[str], Callable[[], Heard]], list[Heard]], spec: Numbers) -> Numbers:
    """`read(prompts, heard)` reads one stream for each prompt, all at once, each into a `heard()` of its own."""
    prompts = _work.batch_prompts(spec["streams"])
    expected = [_work.streamed_text(prompt, spec["events"]) for prompt in prompts]
    more: list[Numbers] = []

    def checksum(streams: list[Heard]) -> int:
        texts = [STAMP.sub("", "".join(heard.pieces)) for heard in streams]
        for text, wanted in zip(texts, expected, strict=True):
            if text != wanted:
                raise AssertionError(f"a stream said {text[:80]!r}… ({len(text)} characters, not {len(wanted)})")
        numbers: Numbers = {"pieces": sum(len(heard.pieces) for heard in streams)}
        if spec["timed"]:
            delays = delays_ms(streams)
            numbers |= {"p50_ms": percentile(delays, 50), "p99_ms": percentile(delays, 99), "max_ms": max(delays)}
        more.append(numbers)
        return _work.texts_checksum(texts)

    def once() -> list[Heard]:
        return read(prompts, lambda: Heard(spec["timed"]))

    numbers = measure(once, spec["repeats"], checksum, mock_counters(spec["port"]))
    for round_, found in zip(numbers["rounds"], more, strict=True):
        round_ |= found
    return numbers
