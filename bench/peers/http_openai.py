"""The openai package: one AsyncOpenAI with its own limits, coroutines that take prompt after prompt, or read a stream
each. `openai-graphbit`: the same client over graphbit's transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from openai import AsyncOpenAI

from bench import _work
from bench._harness import Numbers
from bench.peers import _completions, _streams
from bench.peers._streams import Heard


class Client:
    def __init__(self, base_url: str, over_graphbit: bool = False) -> None:
        self.loop = asyncio.new_event_loop()
        http_client = None
        if over_graphbit:
            import httpx2

            from graphbit.transports import AsyncHttpx2Transport

            http_client = httpx2.AsyncClient(transport=AsyncHttpx2Transport())
        self.client = AsyncOpenAI(
            base_url=base_url, api_key="bench-key", max_retries=0, timeout=300, http_client=http_client
        )

    async def work(self, prompts: list[str], concurrency: int) -> list[str]:
        answers = [""] * len(prompts)
        waiting = iter(enumerate(prompts))

        async def worker() -> None:
            for index, prompt in waiting:
                reply = await self.client.chat.completions.create(
                    model=_work.MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=_work.MAX_TOKENS
                )
                answers[index] = reply.choices[0].message.content or ""

        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
        return answers

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        return self.loop.run_until_complete(self.work(prompts, concurrency))

    async def stream(self, prompt: str, heard: Heard) -> Heard:
        stream = await self.client.chat.completions.create(
            model=_work.MODEL,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=_work.MAX_TOKENS,
            stream=True,
        )
        async for chunk in stream:
            text = chunk.choices[0].delta.content
            if text:
                heard.hear(text)
        return heard

    def read(self, prompts: list[str], heard: Callable[[], Heard]) -> list[Heard]:
        async def all_of_them() -> list[Heard]:
            return await asyncio.gather(*(self.stream(prompt, heard()) for prompt in prompts))

        return self.loop.run_until_complete(all_of_them())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


def run_batch(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_batch(Client(spec["base_url"], peer == "openai-graphbit"), spec)


def run_streams(peer: str, spec: Numbers) -> Numbers:
    client = Client(spec["base_url"])
    try:
        return _streams.run(client.read, spec)
    finally:
        client.close()
