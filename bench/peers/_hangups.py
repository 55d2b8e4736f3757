"""What every peer of the cancel bench shares: many calls as tasks of one event loop, some cancelled one by one, then the rest.

The server says when it saw each connection closed, on the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from bench import _work
from bench._harness import Numbers, fetch, peak_kib, read_stats

Call = Callable[[str], Coroutine[Any, Any, object]]


def run(loop: asyncio.AbstractEventLoop, call: Call, spec: Numbers) -> Numbers:
    rounds = [loop.run_until_complete(once(call, spec)) for _ in range(spec["repeats"])]
    checksums = {r.pop("checksum") for r in rounds}
    if len(checksums) != 1:
        raise AssertionError("two rounds cancelled different calls")
    return {"rounds": rounds, "checksum": checksums.pop(), "rss_peak_kib": peak_kib()}


async def once(call: Call, spec: Numbers) -> Numbers:
    port, count = spec["port"], spec["count"]
    prompts = _work.batch_prompts(count)
    tasks = [asyncio.create_task(call(prompt)) for prompt in prompts]
    await until_in_flight(port, count)
    singles = random.Random(20261124).sample(range(count), spec["singles"])
    asked_us = {}
    for index in singles:
        asked_us[prompts[index]] = time.monotonic_ns() / 1e3
        tasks[index].cancel()
        await asyncio.wait([tasks[index]])
        await asyncio.sleep(0.002)
    await until_in_flight(port, count - len(singles))
    first = dict(await closed(port))
    each_ms = [(first[prompt] - asked) / 1e3 for prompt, asked in asked_us.items()]

    cpu_s, began_us = time.process_time(), time.monotonic_ns() / 1e3
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    back_us = time.monotonic_ns() / 1e3
    await until_in_flight(port, 0)
    cpu_s = time.process_time() - cpu_s
    rest = dict(await closed(port))
    if not all(task.cancelled() for task in tasks):
        raise AssertionError("a cancelled call ended otherwise")
    if len(first) + len(rest) != count or len(first) != len(singles):
        raise AssertionError(f"{len(first)} + {len(rest)} connections were closed, not {len(singles)} of {count}")
    return {
        "each_ms": each_ms,
        "all_ms": (max(rest.values()) - began_us) / 1e3,
        "back_ms": (back_us - began_us) / 1e3,
        "all_cpu_s": cpu_s,
        "checksum": zlib.crc32("\n".join([*sorted(first), *sorted(rest)]).encode()),
    }


async def closed(port: int) -> list[tuple[str, int]]:
    return [(prompt, at_us) for at_us, prompt in await asyncio.to_thread(fetch, port, "/closed")]


async def until_in_flight(port: int, count: int) -> None:
    """Until the server has so many requests in hand."""
    deadline = time.monotonic() + 120
    while (found := (await asyncio.to_thread(read_stats, port))["in_flight"]) != count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found} calls are in flight, not {count}")
        await asyncio.sleep(0.02)
