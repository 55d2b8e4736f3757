"""The forms a graph can take: a map, async functions, a description, a cancel, timed nodes under a limit. One function for each
of the tables in bench/graph_forms.py; graphbit and what is written by hand beside it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from bench import _work
from bench._harness import Numbers, measure, peak_kib, timed

# ------------------------------------------------------------------ map


def step(item: int) -> int:
    return item + 1


def run_map(peer: str, spec: Numbers) -> Numbers:
    items = list(range(spec["items"]))
    if peer == "loop":
        return measure(lambda: [step(item) for item in items], spec["repeats"], _work.graph_checksum)
    from graphbit import Executor, Node, Workflow

    workflow = Workflow("map", inputs=["items"])
    workflow.add(Node.map("mapped", "items", step))
    executor = Executor()
    executor.execute(workflow, {"items": items[:100]})
    before_kib = peak_kib()
    numbers = measure(
        lambda: executor.execute(workflow, {"items": items})["mapped"], spec["repeats"], _work.graph_checksum
    )
    return {**numbers, "grown_bytes": (peak_kib() - before_kib) * 1024}


# ------------------------------------------------------------------ async functions


async def at_once() -> int:
    return 1


async def later() -> int:
    import asyncio

    await asyncio.sleep(0)
    return 1


def run_async(peer: str, spec: Numbers) -> Numbers:
    import asyncio

    function = later if spec["suspends"] else at_once
    loop = asyncio.new_event_loop()
    if peer == "asyncio":

        async def gathered() -> list[int]:
            return list(await asyncio.gather(*(function() for _ in range(spec["nodes"]))))

        return measure(lambda: loop.run_until_complete(gathered()), spec["repeats"], _work.graph_checksum)
    from graphbit import Executor, Node, Workflow

    workflow = Workflow("async")
    names = [f"n{i}" for i in range(spec["nodes"])]
    workflow.add(*(Node.function(function, name) for name in names))
    executor = Executor()

    def values(result: Any) -> int:
        return _work.graph_checksum([result[name] for name in names])

    if peer == "graphbit":
        return measure(lambda: executor.execute(workflow), spec["repeats"], values)

    async def once() -> Any:
        return await executor.run_async(workflow)

    return measure(lambda: loop.run_until_complete(once()), spec["repeats"], values)


# ------------------------------------------------------------------ building, and small beside large


def run_build(peer: str, spec: Numbers) -> Numbers:
    """A fan described, lowered and run: the whole way from nothing to results, and its parts. Medians over fresh workflows."""
    from graphbit import Executor, Node, Workflow

    parents = _work.fan(spec["nodes"] - 2).parents
    names = [f"n{i}" for i in range(len(parents))]
    edges = [(names[parent], names[node]) for node, of in enumerate(parents) for parent in of]

    def add(workflow: Workflow) -> None:
        for name in names:
            workflow.add(Node.function(_work.noop, name))

    def connect(workflow: Workflow) -> None:
        for source, target in edges:
            workflow.connect(source, target)

    rounds = []
    sums = set()
    for _ in range(1 + spec["repeats"]):
        workflow, executor = Workflow("build"), Executor()
        _, _, nodes_s = timed(lambda workflow=workflow: add(workflow))  # type: ignore[misc]
        _, _, edges_s = timed(lambda workflow=workflow: connect(workflow))  # type: ignore[misc]
        result, cpu_s, first_s = timed(lambda workflow=workflow, executor=executor: executor.execute(workflow))  # type: ignore[misc]
        _, _, again_s = timed(lambda workflow=workflow, executor=executor: executor.execute(workflow))  # type: ignore[misc]
        sums.add(_work.graph_checksum([result[name] for name in names]))
        wall_s = nodes_s + edges_s + first_s
        rounds.append(
            {
                "cpu_s": cpu_s,
                "wall_s": wall_s,
                "nodes_s": nodes_s,
                "edges_s": edges_s,
                "freeze_s": max(0.0, first_s - again_s),
                "again_s": again_s,
            }
        )
    assert len(sums) == 1, sums
    return {"rounds": rounds, "checksum": sums.pop(), "rss_peak_kib": peak_kib(), "edge_count": len(edges)}


# ------------------------------------------------------------------ cancel


def run_cancel(peer: str, spec: Numbers) -> Numbers:
    """From cancel() until the run is over with all its nodes cancelled."""
    count = spec["nodes"]
    if peer == "asyncio":
        import asyncio

        loop = asyncio.new_event_loop()

        async def cancelled() -> tuple[int, float]:
            tasks = [loop.create_task(asyncio.sleep(3600)) for _ in range(count)]
            await asyncio.sleep(0)

            def stop() -> None:
                for task in tasks:
                    task.cancel()

            from time import perf_counter

            began = perf_counter()
            stop()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            return sum(isinstance(it, asyncio.CancelledError) for it in ended), perf_counter() - began

        rounds, sums = [], set()
        for _ in range(1 + spec["repeats"]):
            (total, wall_s), cpu_s, _ = timed(lambda: loop.run_until_complete(cancelled()))
            rounds.append({"wall_s": wall_s, "cpu_s": cpu_s})
            sums.add(total)
        return {"rounds": rounds, "checksum": sums.pop(), "rss_peak_kib": peak_kib()}

    from graphbit import Executor, Node, Workflow

    workflow = Workflow("cancel")
    if spec["kind"] == "waiting":
        workflow.add(*(Node.delay(f"n{i}", 3600) for i in range(count)))
    else:
        workflow.add(Node.delay("n0", 3600), *(Node.function(_work.noop, f"n{i}") for i in range(1, count)))
        for i in range(1, count):
            workflow.connect("n0", f"n{i}")
    executor = Executor()
    rounds, sums = [], set()
    for _ in range(1 + spec["repeats"]):
        run = executor.start(workflow)

        def cancel(run: Any = run) -> Any:
            run.cancel()
            return run.wait()

        result, cpu_s, wall_s = timed(cancel)
        rounds.append({"wall_s": wall_s, "cpu_s": cpu_s})
        sums.add(sum(node.state == "cancelled" for node in result.nodes.values()))
    return {"rounds": rounds, "checksum": sums.pop(), "rss_peak_kib": peak_kib()}


# ------------------------------------------------------------------ makespan


class Timed:
    """A random graph of timed nodes; milliseconds. Every peer is given the same ones."""

    __slots__ = ("durations", "limit", "parents")

    def __init__(self, seed: int, nodes: int) -> None:
        dice = random.Random(seed)
        self.limit = dice.choice((2, 4, 8, 16))
        # Uneven, so that the order matters: most are short, some long.
        self.durations = [max(1, int(dice.lognormvariate(3, 1))) for _ in range(nodes)]
        self.parents = [sorted(dice.sample(range(i), min(i, dice.choice((0, 1, 1, 2, 3))))) for i in range(nodes)]

    def bound(self) -> float:
        """No schedule is shorter: the critical path, and the work shared out evenly."""
        ends: list[int] = []
        for parents, duration in zip(self.parents, self.durations, strict=True):
            ends.append(duration + max((ends[parent] for parent in parents), default=0))
        return max(float(max(ends)), sum(self.durations) / self.limit)


def run_makespan(peer: str, spec: Numbers) -> Numbers:
    graphs = [Timed(seed, spec["nodes"]) for seed in range(1, spec["graphs"] + 1)]
    run: Callable[[Timed], list[float]] = in_order if peer == "first-come" else by_graphbit
    found, cpu_s, wall_s = timed(lambda: [run(graph) for graph in graphs])
    # The same work done, whatever the schedule: what all nodes of all graphs took together.
    return {
        "rounds": [{"cpu_s": cpu_s, "wall_s": wall_s}],
        "checksum": sum(sum(graph.durations) for graph in graphs),
        "rss_peak_kib": peak_kib(),
        "ratios": [
            [makespans[which] / graph.bound() for makespans, graph in zip(found, graphs, strict=True)]
            for which in range(len(found[0]))
        ],
    }


def in_order(graph: Timed) -> list[float]:
    """What a scheduler without priorities comes to: of what is ready the first to become so goes first."""
    children: list[list[int]] = [[] for _ in graph.parents]
    missing = [len(parents) for parents in graph.parents]
    for node, parents in enumerate(graph.parents):
        for parent in parents:
            children[parent].append(node)
    ready = [node for node, count in enumerate(missing) if not count]
    running: list[tuple[int, int]] = []
    now = at = 0
    while at < len(ready) or running:
        while at < len(ready) and len(running) < graph.limit:
            heapq.heappush(running, (now + graph.durations[ready[at]], ready[at]))
            at += 1
        now, node = heapq.heappop(running)
        for child in children[node]:
            missing[child] -= 1
            if not missing[child]:
                ready.append(child)
    return [float(now)]


def by_graphbit(graph: Timed) -> list[float]:
    """In virtual time: the first run knows no durations, the second those of the first."""
    from graphbit import Executor, Node, Workflow
    from graphbit.testing import virtual_time

    workflow = Workflow("timed")
    workflow.add(*(Node.delay(f"n{i}", duration / 1e3) for i, duration in enumerate(graph.durations)))
    for node, parents in enumerate(graph.parents):
        for parent in parents:
            workflow.connect(f"n{parent}", f"n{node}")
    executor = Executor(max_concurrency=graph.limit)
    makespans = []
    with virtual_time() as clock:
        for _ in range(2):
            began = clock.now()
            result = executor.execute(workflow)
            makespans.append((clock.now() - began) * 1e3)
            took = sum(node.duration or 0.0 for node in result.nodes.values())
            if abs(took * 1e3 - sum(graph.durations)) > 1:
                raise AssertionError(f"the nodes took {took} s together, not {sum(graph.durations) / 1e3}")
    return makespans
