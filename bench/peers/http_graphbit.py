"""graphbit: `LlmClient.complete_batch` in both its forms, single calls awaited, streams read in threads and in tasks, and the
fan as a workflow of agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench import _work
from bench._harness import Numbers, measure, mock_counters, timed
from bench.peers import _completions, _hangups, _streams
from bench.peers._streams import Heard
from graphbit import Executor, LlmClient, LlmConfig, Node, Workflow


def config(spec: Numbers) -> LlmConfig:
    return LlmConfig.openai_compatible(spec["base_url"], _work.MODEL, api_key="bench-key")


class SyncClient:
    def __init__(self, spec: Numbers) -> None:
        self.client = LlmClient(config(spec))

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        return list(self.client.complete_batch_sync(prompts, max_tokens=_work.MAX_TOKENS, max_concurrency=concurrency))

    def read(self, prompts: list[str], heard: Callable[[], Heard]) -> list[Heard]:
        """A thread for each stream, as a program without an event loop has them."""

        def stream(prompt: str) -> Heard:
            one = heard()
            hear = one.hear
            with self.client.stream(prompt, max_tokens=_work.MAX_TOKENS) as pieces:
                for piece in pieces:
                    hear(piece)
            return one

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(stream, prompts))

    def close(self) -> None: ...


class AsyncClient(SyncClient):
    def __init__(self, spec: Numbers) -> None:
        super().__init__(spec)
        self.loop = asyncio.new_event_loop()

    async def work(self, prompts: list[str], concurrency: int) -> list[str]:
        return list(await self.client.complete_batch(prompts, max_tokens=_work.MAX_TOKENS, max_concurrency=concurrency))

    def complete(self, prompts: list[str], concurrency: int) -> list[str]:
        return self.loop.run_until_complete(self.work(prompts, concurrency))

    def read(self, prompts: list[str], heard: Callable[[], Heard]) -> list[Heard]:
        async def stream(prompt: str) -> Heard:
            one = heard()
            hear = one.hear
            async with self.client.stream(prompt, max_tokens=_work.MAX_TOKENS) as pieces:
                async for piece in pieces:
                    hear(piece)
            return one

        async def all_of_them() -> list[Heard]:
            return await asyncio.gather(*map(stream, prompts))

        return self.loop.run_until_complete(all_of_them())

    def close(self) -> None:
        self.loop.close()


class EachClient(AsyncClient):
    """Every call awaited on its own, as a program with an event loop does: beside the peers on asyncio."""

    async def work(self, prompts: list[str], concurrency: int) -> list[str]:
        answers = [""] * len(prompts)
        waiting = iter(enumerate(prompts))

        async def worker() -> None:
            for index, prompt in waiting:
                answers[index] = await self.client.complete_async(prompt, max_tokens=_work.MAX_TOKENS)

        await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
        return answers


CLIENTS = {
    "graphbit": SyncClient,
    "graphbit-threads": SyncClient,
    "graphbit-async": AsyncClient,
    "graphbit-each": EachClient,
}


def run_batch(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_batch(CLIENTS[peer](spec), spec)


def run_tls(peer: str, spec: Numbers) -> Numbers:
    return _completions.run_tls(lambda: CLIENTS[peer](spec), spec)


def run_streams(peer: str, spec: Numbers) -> Numbers:
    client = CLIENTS[peer](spec)
    try:
        return _streams.run(client.read, spec)
    finally:
        client.close()


def run_hangups(peer: str, spec: Numbers) -> Numbers:
    client = EachClient(spec)
    try:
        return _hangups.run(
            client.loop, lambda prompt: client.client.complete_async(prompt, max_tokens=_work.MAX_TOKENS), spec
        )
    finally:
        client.close()


def fan_workflow(width: int) -> Workflow:
    workflow = Workflow("fan")
    workflow.add(
        Node.agent("outline", _work.FAN_ROOT, max_tokens=_work.MAX_TOKENS),
        *(
            Node.agent(f"section_{i}", _work.fan_leaf(i, "{outline}"), max_tokens=_work.MAX_TOKENS)
            for i in range(width)
        ),
        Node.agent("join", _work.fan_join([f"{{section_{i}}}" for i in range(width)]), max_tokens=_work.MAX_TOKENS),
    )
    return workflow


def run_fan(peer: str, spec: Numbers) -> Numbers:
    width = spec["width"]
    workflow, build_cpu_s, _ = timed(lambda: fan_workflow(width))
    names = ["outline", *(f"section_{i}" for i in range(width)), "join"]
    executor = Executor(config(spec))
    loop = asyncio.new_event_loop()

    def once() -> list[str]:
        result = (
            loop.run_until_complete(executor.run_async(workflow))
            if peer == "graphbit-async"
            else executor.execute(workflow)
        )
        result.raise_for_failure()
        return [result[name] for name in names]

    numbers = measure(once, spec["repeats"], _work.texts_checksum, mock_counters(spec["port"]))
    loop.close()
    return {**numbers, "build_cpu_s": build_cpu_s}
