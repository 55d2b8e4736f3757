"""Schedulers a program writes by hand: a serial loop over graphlib, asyncio with counters, a thread pool with counters.

Each starts a node when its last predecessor has ended and keeps every result; what they are handed is the graph as
plain lists, so building costs them nothing and each run takes a fresh set of counters. graphlib's sorter serves once and is
made in each run. What one peer imports must not show in another's memory, so imports stand where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from bench import _work
from bench._harness import Numbers, measure, per_call, timed

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

Function = Callable[..., Any]


class Plan:
    __slots__ = ("arguments", "children", "functions", "parents")

    def __init__(self, graph: _work.Graph, series: str) -> None:
        self.parents = graph.parents
        self.children: list[list[int]] = [[] for _ in graph.parents]
        for node, parents in enumerate(graph.parents):
            for parent in parents:
                self.children[parent].append(node)
        self.functions: list[Function] = _work.functions(graph, series)
        # What a node passes to its function: along bare edges nothing.
        self.arguments = graph.parents if series == "values" else [[]] * len(graph.parents)


def by_graphlib(plan: Plan) -> list[Any]:
    results: list[Any] = [None] * len(plan.parents)
    sorter = TopologicalSorter(dict(enumerate(plan.parents)))
    sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        for node in ready:
            results[node] = plan.functions[node](*[results[parent] for parent in plan.arguments[node]])
        sorter.done(*ready)
    return results


async def by_asyncio(plan: Plan) -> list[Any]:
    import asyncio

    results: list[Any] = [None] * len(plan.parents)
    missing = [len(parents) for parents in plan.parents]
    left = len(missing)
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    tasks: set[asyncio.Task[None]] = set()

    def start(node: int) -> None:
        task = loop.create_task(run(node))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def run(node: int) -> None:
        nonlocal left
        try:
            results[node] = plan.functions[node](*[results[parent] for parent in plan.arguments[node]])
        except BaseException as error:
            if not over.done():
                over.set_exception(error)
            return
        for child in plan.children[node]:
            missing[child] -= 1
            if not missing[child]:
                start(child)
        left -= 1
        if not left:
            over.set_result(None)

    for node, count in enumerate(missing.copy()):
        if not count:
            start(node)
    await over
    return results


def by_threads(plan: Plan, pool: ThreadPoolExecutor) -> list[Any]:
    import threading

    results: list[Any] = [None] * len(plan.parents)
    missing = [len(parents) for parents in plan.parents]
    left = len(missing)
    lock = threading.Lock()
    over = threading.Event()
    errors: list[BaseException] = []

    def run(node: int) -> None:
        nonlocal left
        try:
            results[node] = plan.functions[node](*[results[parent] for parent in plan.arguments[node]])
        except BaseException as error:
            errors.append(error)
            over.set()
            return
        ready = []
        with lock:
            for child in plan.children[node]:
                missing[child] -= 1
                if not missing[child]:
                    ready.append(child)
            left -= 1
            done = not left
        for child in ready:
            pool.submit(run, child)
        if done:
            over.set()

    for node, count in enumerate(missing.copy()):
        if not count:
            pool.submit(run, node)
    over.wait()
    if errors:
        raise errors[0]
    return results


def run_graph(peer: str, spec: Numbers) -> Numbers:
    graph = _work.make_graph(spec["shape"], spec["smoke"])
    plan = Plan(graph, spec["series"])
    if peer == "graphlib":
        return measure(lambda: by_graphlib(plan), spec["repeats"], _work.graph_checksum)
    if peer == "asyncio":
        import asyncio

        loop = asyncio.new_event_loop()
        return measure(lambda: loop.run_until_complete(by_asyncio(plan)), spec["repeats"], _work.graph_checksum)
    import os
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4)) as pool:
        return measure(lambda: by_threads(plan, pool), spec["repeats"], _work.graph_checksum)


def run_native(peer: str, spec: Numbers) -> Numbers:
    """The serial loop over graphlib with text for values, as a template node does it: beside graphbit's native nodes."""
    graph = _work.make_graph(spec["shape"], spec["smoke"])
    templates = _work.templates(graph, spec["series"])

    def once() -> list[str]:
        results = [""] * len(graph.parents)
        sorter = TopologicalSorter(dict(enumerate(graph.parents)))
        sorter.prepare()
        while sorter.is_active():
            ready = sorter.get_ready()
            for node in ready:
                source, text = templates[node]
                results[node] = text if source is None else text.format(results[source])
            sorter.done(*ready)
        return results

    return measure(once, spec["repeats"], _work.texts_checksum)


def run_describe(peer: str, spec: Numbers) -> Numbers:
    """A workflow of ten nodes described and checked: for graphlib, the edges added and the order prepared."""

    def once() -> None:
        sorter: TopologicalSorter[str] = TopologicalSorter()
        for name, parents in _work.TEN_NODES.items():
            sorter.add(name, *parents)
        sorter.prepare()

    _, _, first_s = timed(once)
    return {**per_call(once, spec["number"], spec["repeats"]), "first_us": first_s * 1e6}
