"""What every peer of the completion benches shares: the rounds. A peer brings a `Client` with `complete` and `close`."""

from __future__ import annotations

from typing import Protocol

from bench import _work
from bench._harness import Numbers, measure, mock_counters


class Client(Protocol):
    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        """The answers in prompt order, at most `concurrency` requests in flight."""
        ...

    def close(self) -> None: ...


def body_of(prompt: str) -> dict[str, object]:
    return {"model": _work.MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": _work.MAX_TOKENS}


def run_batch(client: Client, spec: Numbers) -> Numbers:
    prompts = _work.batch_prompts(spec["count"])

    def checksum(answers: list[str]) -> int:
        _work.check_answers(prompts, answers)
        return _work.texts_checksum(answers)

    try:
        return measure(
            lambda: client.complete(prompts, spec["concurrency"]),
            spec["repeats"],
            checksum,
            mock_counters(spec["port"]),
        )
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
