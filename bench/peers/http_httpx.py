"""httpx by hand: one AsyncClient whose limits allow the concurrency, coroutines that take prompt after prompt. `httpx-graphbit`:
the same client over graphbit's transport."""

from __future__ import annotations

import asyncio
import ssl

import httpx

from bench._harness import Numbers
from bench.peers import _completions


class Client:
    def __init__(
        self, base_url: str, concurrency: int, trust: ssl.SSLContext | None = None, over_graphbit: bool = False
    ) -> None:
        self.url = f"{base_url}/chat/completions"
        self.loop = asyncio.new_event_loop()
        transport: httpx.AsyncBaseTransport | None = None
        if over_graphbit:
            from graphbit.transports import AsyncHttpxTransport

            transport = AsyncHttpxTransport()
        self.client = httpx.AsyncClient(
            transport=transport,
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            headers={"Authorization": "Bearer bench-key"},
            timeout=300,
            trust_env=False,
            verify=trust or True,
        )

    async def work(self, prompts: list[str], concurrency: int) -> list[str]:
        answers = [""] * len(prompts)
        waiting = iter(enumerate(prompts))

        async def worker() -> None:
            for index, prompt in waiting:
                reply = await self.client.post(self.url, json=_completions.body_of(prompt))
                reply.raise_for_status()
                answers[index] = reply.json()["choices"][0]["message"]["content"]

        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
        return answers

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        return self.loop.run_until_complete(self.work(prompts, concurrency))

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


def run_batch(peer: str, spec: Numbers) -> Numbers:
    over_graphbit = peer == "httpx-graphbit"
    return _completions.run_batch(Client(spec["base_url"], spec["concurrency"], over_graphbit=over_graphbit), spec)


def run_fan(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_fan(Client(spec["base_url"], spec["width"]), spec)


def run_tls(peer: str, spec: Numbers) -> Numbers:
    def make() -> Client:
        return Client(spec["base_url"], spec["count"], ssl.create_default_context())

    return _completions.run_tls(make, spec)
