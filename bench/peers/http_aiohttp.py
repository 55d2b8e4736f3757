"""aiohttp by hand: one session without a limit of its own, `concurrency` coroutines that take prompt after prompt."""

from __future__ import annotations

import asyncio

import aiohttp

from bench._harness import Numbers
from bench.peers import _completions


class Client:
    def __init__(self, base_url: str) -> None:
        self.url = f"{base_url}/chat/completions"
        self.loop = asyncio.new_event_loop()
        self.session = self.loop.run_until_complete(self.open())

    async def open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": "Bearer bench-key"}
        )

    async def work(self, prompts: list[str], concurrency: int) -> list[str]:
        answers = [""] * len(prompts)
        waiting = iter(enumerate(prompts))

        async def worker() -> None:
            for index, prompt in waiting:
                async with self.session.post(self.url, json=_completions.body_of(prompt)) as reply:
                    reply.raise_for_status()
                    answers[index] = (await reply.json())["choices"][0]["message"]["content"]

        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
        return answers

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        return self.loop.run_until_complete(self.work(prompts, concurrency))

    def close(self) -> None:
        self.loop.run_until_complete(self.session.close())
        self.loop.close()


def run_batch(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_batch(Client(spec["base_url"]), spec)


def run_fan(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_fan(Client(spec["base_url"]), spec)
