"""Providers with limits that nobody tells, and a client that learns them: a simulation of both, in time that is a number.

The client is the core's controller (gb_controller_*), asked and settled like by the gates in front of real requests; the
provider is a few lines each. A run of minutes takes a moment, and a seed replays it.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from graphbit._ffi import ffi, lib

SECOND = 1_000_000_000
NEVER = 2**64 - 1
ADAPTIVE, LEARN, BREAKER = lib.GB_ADMISSION_ADAPTIVE, lib.GB_ADMISSION_LEARN, lib.GB_ADMISSION_BREAKER


class Reply(Protocol):
    status: int


@dataclass
class Answer:
    status: int = 200
    head: str = ""
    retry_after_ms: int = -1
    tokens: tuple[int, int] = (-1, -1)


class Controller:
    """`Controller(requests_per_minute=60).ask(0)`: the core's, by itself."""

    def __init__(self, flags: int = ADAPTIVE | LEARN | BREAKER, **limits: int) -> None:
        options = ffi.new("gb_admission *", {"flags": flags, **limits})
        out = ffi.new("gb_controller **")
        assert lib.gb_controller_create(options, out) == 0
        self._handle = ffi.gc(out[0], lib.gb_controller_destroy)
        self._until = ffi.new("uint64_t *")
        self._stats = ffi.new("gb_admission_stats *")

    def ask(self, now: int, body_bytes: int = 400) -> tuple[str, object]:
        """("go", permit), ("wait", until) or ("open", until)."""
        permit = ffi.new("gb_permit *")
        verdict = lib.gb_controller_ask(self._handle, now, body_bytes, permit, self._until)
        if verdict == lib.GB_VERDICT_GO:
            return "go", permit
        return ("wait" if verdict == lib.GB_VERDICT_WAIT else "open"), self._until[0]

    def settle(
        self,
        now: int,
        permit: object,
        status: int = 200,
        *,
        ending: int | None = None,
        retry_after_ms: int = -1,
        tokens: tuple[int, int] = (-1, -1),
        head: str = "",
        body_bytes: int = 400,
        dice: int = 0,
        unsent: bool = False,
    ) -> None:
        if ending is None:
            ending = (
                lib.GB_ENDING_LIMITED if status == 429
                else lib.GB_ENDING_OVERLOADED if status in (503, 529)
                else lib.GB_ENDING_FAULT if status >= 500
                else lib.GB_ENDING_ANSWERED
            )  # fmt: skip
        data = ffi.from_buffer("uint8_t[]", head.encode())
        result = ffi.new(
            "gb_permit_result *",
            {
                "ending": ending,
                "unsent": unsent,
                "retry_after_ms": retry_after_ms,
                "input_tokens": tokens[0],
                "output_tokens": tokens[1],
                "body_bytes": body_bytes,
                "dice": dice,
                "head": {"ptr": data, "len": len(head)},
            },
        )
        assert lib.gb_controller_settle(self._handle, now, permit, result) == 0

    def read(self, now: int) -> object:
        lib.gb_controller_read(self._handle, now, self._stats)
        return self._stats


# ------------------------------------------------------------------------------------------------- hidden limits


class Bucket:
    """So many a minute, refilled all the time, with room for `capacity`."""

    def __init__(self, per_minute: float, capacity: float | None = None) -> None:
        self.per_minute = per_minute
        self.capacity = per_minute if capacity is None else capacity
        self.level = self.capacity
        self.at = 0

    def advance(self, now: int) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) / (60 * SECOND) * self.per_minute)
        self.at = now

    def take(self, now: int, amount: float = 1) -> bool:
        self.advance(now)
        if self.level < amount:
            return False
        self.level -= amount
        return True

    def scale(self, now: int, factor: float) -> None:
        self.advance(now)
        self.per_minute *= factor
        self.capacity *= factor
        self.level = min(self.level, self.capacity)

    def head(self, what: str) -> str:
        reset = (self.capacity - self.level) / self.per_minute * 60
        return (
            f"x-ratelimit-limit-{what}: {round(self.per_minute)}\r\n"
            f"x-ratelimit-remaining-{what}: {int(self.level)}\r\nx-ratelimit-reset-{what}: {reset:.3f}s\r\n"
        )


class Sliding:
    """So many in the last minute."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self.taken: deque[tuple[int, float]] = deque()
        self.sum = 0.0

    def advance(self, now: int) -> None:
        while self.taken and self.taken[0][0] <= now - 60 * SECOND:
            self.sum -= self.taken.popleft()[1]

    def take(self, now: int, amount: float = 1) -> bool:
        self.advance(now)
        if self.sum + amount > self.per_minute:
            return False
        self.taken.append((now, amount))
        self.sum += amount
        return True

    def scale(self, now: int, factor: float) -> None:
        self.per_minute *= factor

    def head(self, what: str) -> str:
        reset = (self.taken[0][0] + 60 * SECOND - self.taken[-1][0]) / SECOND if self.taken else 0
        return (
            f"x-ratelimit-limit-{what}: {round(self.per_minute)}\r\n"
            f"x-ratelimit-remaining-{what}: {max(0, int(self.per_minute - self.sum))}\r\nx-ratelimit-reset-{what}: {reset:.3f}s\r\n"
        )


class Fixed:
    """So many in each minute of the server's clock."""

    def __init__(self, per_minute: float, offset: float = 17) -> None:
        self.per_minute = per_minute
        self.offset = int(offset * SECOND)
        self.minute = 0
        self.sum = 0.0
        self.now = 0

    def take(self, now: int, amount: float = 1) -> bool:
        self.now = now
        minute = (now + self.offset) // (60 * SECOND)
        if minute != self.minute:
            self.minute, self.sum = minute, 0
        if self.sum + amount > self.per_minute:
            return False
        self.sum += amount
        return True

    def scale(self, now: int, factor: float) -> None:
        self.per_minute *= factor

    def head(self, what: str) -> str:
        reset = 60 - (self.now + self.offset) % (60 * SECOND) / SECOND
        return (
            f"x-ratelimit-limit-{what}: {round(self.per_minute)}\r\n"
            f"x-ratelimit-remaining-{what}: {max(0, int(self.per_minute - self.sum))}\r\nx-ratelimit-reset-{what}: {reset:.3f}s\r\n"
        )


KINDS: dict[str, Callable[[float], Bucket | Sliding | Fixed]] = {
    "a bucket": Bucket,
    "a small bucket": lambda per_minute: Bucket(per_minute, per_minute / 30),
    "the last minute": Sliding,
    "a minute of the clock": Fixed,
}


class Trouble:
    """It refuses everything for a while, in seconds."""

    def __init__(self, since: float, until: float, status: int = 429) -> None:
        self.since, self.until, self.status = since * SECOND, until * SECOND, status

    def take(self, now: int, amount: float = 1) -> bool:
        return not self.since <= now < self.until

    def scale(self, now: int, factor: float) -> None:
        raise NotImplementedError

    def head(self, what: str) -> str:
        return ""


class Chance:
    """It refuses a share of all, whoever sends how many."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.dice = share, random.Random(seed)

    def take(self, now: int, amount: float = 1) -> bool:
        return self.dice.random() >= self.share

    def scale(self, now: int, factor: float) -> None:
        raise NotImplementedError

    def head(self, what: str) -> str:
        return ""


class AtOnce:
    """So many at the same time, from a second on."""

    def __init__(self, count: int, since: float = 0) -> None:
        self.count, self.since = float(count), since * SECOND
        self.busy = 0

    def has_room(self, now: int) -> bool:
        return now < self.since or self.busy < self.count

    def scale(self, now: int, factor: float) -> None:
        self.count *= factor


# ---------------------------------------------------------------------------------------------------- the simulation


@dataclass
class Outcome:
    """When requests were accepted and refused."""

    accepted: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    by_group: dict[int, int] = field(default_factory=dict)

    def rate(self, since: float, until: float) -> float:
        """Accepted a minute."""
        count = sum(1 for at in self.accepted if since * SECOND <= at < until * SECOND)
        return count / (until - since) * 60

    def share_refused(self, since: float, until: float) -> float:
        bad = sum(1 for at in self.refused if since * SECOND <= at < until * SECOND)
        good = sum(1 for at in self.accepted if since * SECOND <= at < until * SECOND)
        return bad / max(1, bad + good)


def simulate(
    controller: Controller,
    limits: dict[str, Bucket | Sliding | Fixed | Trouble | Chance],
    *,
    seconds: float,
    seed: int,
    latency: Callable[[random.Random], float] = lambda dice: dice.uniform(0.8, 1.2),
    at_once: AtOnce | None = None,
    announces: bool = False,
    retry_after: bool = False,
    tokens: tuple[int, int] = (100, 100),
    events: list[tuple[float, float]] | None = None,
    demand: int = 1_000,
    refusal_seconds: float = 0.05,
) -> Outcome:
    """A client that always has more to send, for so many seconds. `events`: at a time, all limits times a factor."""
    dice = random.Random(seed)
    out = Outcome()
    pending: list[tuple[int, int, object, Answer]] = []  # when it ends, number, permit, answer
    changes = sorted((int(at * SECOND), factor) for at, factor in events or [])
    now = number = 0
    end = int(seconds * SECOND)
    while now < end:
        while changes and changes[0][0] <= now:
            factor = changes.pop(0)[1]
            for limit in limits.values():
                limit.scale(now, factor)
            if at_once is not None:
                at_once.scale(now, factor)
        until = NEVER
        while len(pending) < demand:
            verdict, got = controller.ask(now, 4 * tokens[0])
            if verdict != "go":
                until = got  # type: ignore[assignment]
                break
            number += 1
            fine = at_once is None or at_once.has_room(now)
            answer = Answer(200 if fine else 429)
            for what, limit in limits.items():
                if fine and not limit.take(now, 1 if what.startswith("requests") else sum(tokens)):
                    fine = False
                    answer.status = getattr(limit, "status", 429)
            if announces:
                answer.head = "".join(limit.head(what) for what, limit in limits.items())
            if fine:
                out.accepted.append(now)
                answer.tokens = tokens
                if at_once is not None:
                    at_once.busy += 1
                took = latency(dice)
            else:
                out.refused.append(now)
                took = refusal_seconds
                if retry_after:
                    answer.retry_after_ms = 1000
            heapq.heappush(pending, (now + int(took * SECOND), number, got, answer))
        step = min(pending[0][0] if pending else NEVER, until, changes[0][0] if changes else NEVER)
        assert step != NEVER, "it waits for nothing"
        now = max(now, step)
        while pending and pending[0][0] <= now:
            _, _, permit, answer = heapq.heappop(pending)
            if answer.status == 200 and at_once is not None:
                at_once.busy -= 1
            controller.settle(
                now,
                permit,
                answer.status,
                head=answer.head,
                retry_after_ms=answer.retry_after_ms,
                tokens=answer.tokens,
                body_bytes=4 * tokens[0],
                dice=dice.getrandbits(64),
            )
    return out
