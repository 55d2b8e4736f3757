"""Native no-op nodes, straight through the C ABI: flat arrays in, a run, its end. No Python object stands for a node, so what is
measured is the core.

    by-hand             a loop in C over counters, one thread: the least that can be
    graphbit-caller     the thread that waits for the run does all of it, as `execute` does with little native work
    graphbit-1, -2      so many workers do it while the caller sleeps

A round is gb_run_start until the news of the run's end. Outside the clock the same graph runs once with a function that counts.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from typing import Any

from bench import _work
from bench._harness import Numbers, measure, timed
from bench._native import library

_NODE = 6  # 64-bit words of a gb_node


def run_flat(peer: str, spec: Numbers) -> Numbers:
    edges = _work.flat_edges(spec["shape"], spec["nodes"])
    if peer == "by-hand":
        return by_hand(spec["nodes"], edges, spec["repeats"])
    core = Core(2 if peer == "graphbit-2" else 1, caller_pulls=peer == "graphbit-caller")
    try:
        return core.measure(spec["nodes"], edges, spec["repeats"])
    finally:
        core.close()


class Core:
    """A runtime of its own: the package's has as many workers as it likes."""

    def __init__(self, workers: int, caller_pulls: bool) -> None:
        from graphbit._ffi import check, ffi, lib

        self.ffi, self.lib, self.check = ffi, lib, check
        options = ffi.new("gb_runtime_options *")
        options.worker_count = workers
        runtime, queue = ffi.new("gb_runtime **"), ffi.new("gb_queue **")
        check(lib.gb_runtime_create(options, runtime), "making a runtime")
        self.runtime = runtime[0]
        check(lib.gb_queue_create(self.runtime, lib.GB_QUEUE_CALLER, 1, queue), "making a queue")
        self.queue = queue[0]
        self.options = ffi.new("gb_run_options *")
        self.options.queue = self.queue
        self.options.token = 1
        self.options.flags = lib.GB_RUN_CALLER_PULLS if caller_pulls else 0

    def close(self) -> None:
        self.lib.gb_runtime_shutdown(self.runtime)
        self.lib.gb_queue_destroy(self.queue)
        self.lib.gb_runtime_destroy(self.runtime)

    def resident(self) -> int:
        memory = self.ffi.new("gb_memory *")
        self.lib.gb_memory_read(memory)
        return int(memory.resident)

    def plan(self, nodes: int, edges: array[int], function: int) -> Any:
        from graphbit._plan import PlanBuilder

        builder = PlanBuilder(nodes)
        body = builder.native(function, "void", (), 0)
        builder._nodes = array("Q", (self.lib.GB_NODE_NATIVE, body, 0, 0, 0, 0)) * nodes
        builder._edges = edges
        assert len(builder._nodes) == _NODE * nodes
        return builder

    def run(self, plan: Any) -> Any:
        cell, news = self.ffi.new("gb_run **"), self.ffi.new("gb_news *")
        self.check(self.lib.gb_run_start(self.runtime, plan.handle, self.options, cell), "starting a run")
        while not news.item_count:
            self.check(self.lib.gb_wait(self.queue, self.ffi.NULL, -1, news), "waiting")
        return cell[0]

    def measure(self, nodes: int, edges: array[int], repeats: int) -> Numbers:
        work = library("work")
        work.take_tally.restype = ctypes.c_uint64
        builder = self.plan(nodes, edges, address(work.noop))
        bare = self.resident()  # before any other plan: memory that one gave back would not show
        plan, _, build_s = timed(builder.build)
        planned = self.resident()
        held: list[Any] = []
        found: Numbers = {"plan_bytes": planned - bare, "plan_s": build_s}

        def once() -> Any:
            held.append(self.run(plan))
            return held[-1]

        def succeeded(run: Any) -> int:
            summary = self.ffi.new("gb_run_summary *")
            self.lib.gb_run_summary_read(run, summary)
            found.setdefault("run_bytes", self.resident() - planned)
            self.lib.gb_run_release(held.pop())
            return int(summary.counts[self.lib.GB_SUCCEEDED])

        numbers = measure(once, repeats, succeeded)
        self.lib.gb_run_release(self.run(self.plan(nodes, edges, address(work.tally)).build()))
        ran = int(work.take_tally())
        if ran != numbers["checksum"]:
            raise AssertionError(f"{ran} of {nodes} nodes ran, {numbers['checksum']} succeeded")
        return {**numbers, **found}


def address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


def by_hand(nodes: int, edges: array[int], repeats: int) -> Numbers:
    work = library("work")
    numbers = ctypes.c_uint32 * nodes
    waits, missing, ready = numbers(), numbers(), numbers()
    first, targets = (ctypes.c_uint32 * (nodes + 1))(), (ctypes.c_uint32 * (len(edges) // 2))()
    for source in edges[::2]:
        first[source + 1] += 1
    for node in range(nodes):
        first[node + 1] += first[node]
    place = array("I", first)
    for source, target in zip(edges[::2], edges[1::2], strict=True):
        targets[place[source]] = target
        place[source] += 1
        waits[target] += 1
    once: Callable[[], int] = lambda: int(  # noqa: E731
        work.by_hand(work.noop, nodes, first, targets, waits, missing, ready)
    )
    return measure(once, repeats, lambda ran: ran)
