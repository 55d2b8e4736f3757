"""What every peer of the completion benches shares: the rounds. A peer brings a `Client` with `complete` and `close`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bench import _work
from bench._harness import Numbers, gaps_ms, measure, mock_counters


class Client(Protocol):
    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        """The answers in prompt order, at most `concurrency` requests in flight."""
        ...

    def close(self) -> None: ...


def body_of(prompt: str) -> dict[str, object]:
    return {"model": _work.MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": _work.MAX_TOKENS}


def run_batch(client: Client, spec: Numbers) -> Numbers:
    """`head`: so many of the answers get a checksum of their own, for peers that do no more than those. `gap_rounds`: more
    rounds, outside the clock, beside a thread that sleeps."""
    prompts = _work.batch_prompts(spec["count"])
    head = 0

    def once() -> list[str]:
        return client.complete(prompts, spec["concurrency"])

    def checksum(answers: list[str]) -> int:
        nonlocal head
        _work.check_answers(prompts, answers)
        head = _work.texts_checksum(answers[: spec["head"]])
        return _work.texts_checksum(answers)

    try:
        numbers = measure(once, spec["repeats"], checksum, mock_counters(spec["port"]))
        numbers["checksum_head"] = head
        if spec["gap_rounds"]:
            numbers["gaps_ms"] = gaps_ms(once, spec["gap_rounds"])
        return numbers
    finally:
        client.close()


def run_fan(client: Client, spec: Numbers) -> Numbers:
    width = spec["width"]

    def once() -> list[str]:
        [outline] = client.complete([_work.FAN_ROOT], 1)
        sections = client.complete([_work.fan_leaf(i, outline) for i in range(width)], width)
        [joined] = client.complete([_work.fan_join(sections)], 1)
        return [outline, *sections, joined]

    try:
        return measure(once, spec["repeats"], _work.texts_checksum, mock_counters(spec["port"]))
    finally:
        client.close()


def run_tls(make: Callable[[], Client], spec: Numbers) -> Numbers:
    """All prompts in flight at once. The client is made inside the cold round: it reads whom to trust."""
    prompts = _work.batch_prompts(spec["count"])
    made: list[Client] = []

    def once() -> list[str]:
        if not made:
            made.append(make())
        return made[0].complete(prompts, len(prompts))

    def checksum(answers: list[str]) -> int:
        _work.check_answers(prompts, answers)
        return _work.texts_checksum(answers)

    try:
        return measure(once, spec["repeats"], checksum, mock_counters(spec["port"]))
    finally:
        for client in made:
            client.close()
