"""aiohttp by hand: one session without a limit of its own, `concurrency` coroutines that take prompt after prompt."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable

import aiohttp

from bench._harness import Numbers
from bench.peers import _completions, _hangups, _streams
from bench.peers._streams import Heard


class Client:
    def __init__(self, base_url: str, trust: ssl.SSLContext | None = None) -> None:
        self.url = f"{base_url}/chat/completions"
        self.loop = asyncio.new_event_loop()
        self.session = self.loop.run_until_complete(self.open(trust))

    async def open(self, trust: ssl.SSLContext | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=trust or True),
            headers={"Authorization": "Bearer bench-key"},
        )

    async def call(self, prompt: str) -> str:
        async with self.session.post(self.url, json=_completions.body_of(prompt)) as reply:
            reply.raise_for_status()
            text: str = (await reply.json())["choices"][0]["message"]["content"]
            return text

    async def work(self, prompts: list[str], concurrency: int) -> list[str]:
        answers = [""] * len(prompts)
        waiting = iter(enumerate(prompts))

        async def worker() -> None:
            for index, prompt in waiting:
                answers[index] = await self.call(prompt)

        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
        return answers

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        return self.loop.run_until_complete(self.work(prompts, concurrency))

    async def stream(self, prompt: str, heard: Heard) -> Heard:
        """The least that understands these events: whatever has arrived, cut at empty lines."""
        body = {**_completions.body_of(prompt), "stream": True}
        rest = b""
        async with self.session.post(self.url, json=body) as reply:
            reply.raise_for_status()
            async for data in reply.content.iter_any():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    if event != b"data: [DONE]":
                        text = json.loads(event[6:])["choices"][0]["delta"].get("content")
                        if text:
                            heard.hear(text)
        return heard

    def read(self, prompts: list[str], heard: Callable[[], Heard]) -> list[Heard]:
        async def all_of_them() -> list[Heard]:
            return await asyncio.gather(*(self.stream(prompt, heard()) for prompt in prompts))

        return self.loop.run_until_complete(all_of_them())

    def close(self) -> None:
        self.loop.run_until_complete(self.session.close())
        self.loop.close()


def run_batch(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_batch(Client(spec["base_url"]), spec)


def run_fan(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_fan(Client(spec["base_url"]), spec)


def run_tls(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_tls(lambda: Client(spec["base_url"], ssl.create_default_context()), spec)


def run_streams(peer: str, spec: Numbers) -> Numbers:
    client = Client(spec["base_url"])
    try:
        return _streams.run(client.read, spec)
    finally:
        client.close()


def run_hangups(peer: str, spec: Numbers) -> Numbers:
    client = Client(spec["base_url"])
    try:
        return _hangups.run(client.loop, client.call, spec)
    finally:
        client.close()
