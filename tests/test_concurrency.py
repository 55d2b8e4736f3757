"""Many runs and many threads at once: nobody gets another's values or context, runs may be inside of runs, nothing piles up.

Nodes that must overlap meet at a `threading.Barrier`; nodes that must be slow wait for an event. Nothing here depends on how
long something takes, but for the one test of an idle runtime.  (test_concurrency_blocked.py: nodes that block others.)
"""

from __future__ import annotations

import os
import queue
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from flows import PATIENCE, in_threads, opened, prints as run_python, workflow

from graphbit import Executor, Node, Workflow, _queue as runtime_queue

marker: ContextVar[str] = ContextVar("marker", default="unset")


def callback_threads() -> int:
    return sum(it.name == "graphbit-callback" for it in threading.enumerate())


# ------------------------------------------------------------------------------------------------ one executor, many threads


def test_many_threads_share_one_executor_and_each_gets_its_own_result() -> None:
    def double(number: int) -> int:
        return 2 * number

    def both(double: int, text: str) -> str:
        return f"{double}/{text}"

    wf = Workflow("w", inputs=["number"])
    wf.add(Node.function(double), Node.transform("text", "<{number}>"), Node.function(both))
    executor = Executor()

    def work(thread: int) -> list[str]:
        return [executor.execute(wf, {"number": 1000 * thread + i})["both"] for i in range(40)]

    results = in_threads(16, work)
    for thread, got in enumerate(results):
        assert got == [f"{2 * n}/<{n}>" for n in range(1000 * thread, 1000 * thread + 40)]
    assert executor.get_stats()["total_executions"] == 16 * 40
    assert executor.get_stats()["successful_executions"] == 16 * 40


def test_execute_start_and_wait_may_be_mixed_in_any_threads() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    ran = 0
    lock = threading.Lock()

    def step(number: int) -> int:
        nonlocal ran
        with lock:
            ran += 1
        return number + 1

    wf = Workflow("w", inputs=["number"])
    wf.add(
        Node.function(step, "first"),
        *[Node.function(step, f"s{i}", bind={"number": "first"}) for i in range(5)],
        Node.function(lambda **values: sum(values.values()), "end", bind={f"p{i}": f"s{i}" for i in range(5)}),
    )
    executor = Executor()
    handed_on: queue.Queue[tuple[Any, int]] = queue.Queue()

    def check(run: Any, number: int) -> None:
        assert run.wait(PATIENCE)["end"] == 5 * (number + 2)

    def work(thread: int) -> int:
        dice = random.Random(seed + thread)
        for i in range(30):
            number = 100 * thread + i
            way = dice.randrange(4)
            if way == 0:
                assert executor.execute(wf, {"number": number})["end"] == 5 * (number + 2)
                continue
            run = executor.start(wf, {"number": number})
            if way == 1:
                check(run, number)
            elif way == 2:  # whoever comes next waits for it
                handed_on.put((run, number))
            else:
                try:
                    run.wait(timeout=0)
                except TimeoutError:
                    pass
                check(run, number)
            try:
                other, its_number = handed_on.get_nowait()
            except queue.Empty:
                continue
            check(other, its_number)
        return 30

    in_threads(8, work)
    while not handed_on.empty():
        check(*handed_on.get())
    assert ran == 8 * 30 * 6  # every node once


def test_one_run_may_be_waited_for_by_many_threads() -> None:
    inside, gate = threading.Event(), threading.Event()

    def held() -> int:
        inside.set()
        opened(gate)
        return 7

    executor = Executor()
    run = executor.start(workflow(held))
    line = threading.Barrier(9)

    def waiter(_: int) -> int:
        line.wait(PATIENCE)
        return int(run.wait(PATIENCE)["held"])

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(waiter, i) for i in range(8)]
        opened(inside)
        line.wait(PATIENCE)
        gate.set()
        assert [it.result(PATIENCE) for it in futures] == [7] * 8
    assert executor.get_stats()["total_executions"] == 1


# ------------------------------------------------------------------------------------------------------------- nested runs


def nest(executor: Executor, depth: int, width: int, leaves: list[int], lock: threading.Lock) -> Workflow:
    """Each node runs a workflow of `width` nodes, each of which runs one, and so on."""

    def node() -> int:
        if depth == 1:
            with lock:
                leaves.append(1)
            return 1
        return sum(
            executor.execute(nest(executor, depth - 1, width, leaves, lock)).raise_for_failure().outputs.values()
        )

    return workflow(**{f"n{i}": node for i in range(width)})


@pytest.mark.parametrize("way", ["execute", "start"])
@pytest.mark.parametrize(("depth", "width"), [(2, 1), (3, 3), (3, 4), (5, 1), (2, 20)])
def test_execute_inside_a_node_does_not_deadlock(way: str, depth: int, width: int) -> None:
    executor, leaves = Executor(), []
    wf = nest(executor, depth, width, leaves, threading.Lock())
    result = executor.execute(wf) if way == "execute" else executor.start(wf).wait(PATIENCE)
    assert sum(result.raise_for_failure().outputs.values()) == width**depth == len(leaves)


def test_execute_inside_nodes_on_callback_threads_does_not_deadlock() -> None:
    executor = Executor()
    names: list[str] = []
    over = threading.Event()

    def inner() -> str:
        return threading.current_thread().name

    def middle() -> str:
        return str(executor.execute(workflow(inner))["inner"])

    def outer() -> str:
        found = str(executor.execute(workflow(middle))["middle"])
        names.append(threading.current_thread().name)
        over.set()
        return found

    run = executor.start(workflow(outer))
    opened(over)  # this thread does not pull: everything above ran elsewhere
    assert run.wait(PATIENCE)["outer"] == "graphbit-callback"
    assert names == ["graphbit-callback"]


def test_a_nested_run_whose_nodes_block_gets_threads_of_its_own() -> None:
    executor = Executor()
    meeting = threading.Barrier(6)

    def outer() -> int:
        result = executor.execute(workflow(**{f"n{i}": lambda: meeting.wait(PATIENCE) for i in range(3)}))
        return len(result.raise_for_failure().outputs)

    result = executor.execute(workflow(a=outer, b=outer))  # 2 x 3 nodes meet
    assert result.raise_for_failure().outputs == {"a": 3, "b": 3}


# --------------------------------------------------------------------------------------------------------------- context


@pytest.mark.parametrize("way", ["execute", "start"])
def test_context_variables_are_seen_in_nodes(way: str) -> None:
    meeting = threading.Barrier(3)  # three threads

    def read() -> str:
        meeting.wait(PATIENCE)
        return marker.get()

    token = marker.set("mine")
    try:
        wf, executor = workflow(a=read, b=read, c=read), Executor()
        run = None if way == "execute" else executor.start(wf)
        marker.set("later")  # a run has the context it was started in
        if run is None:
            marker.set("mine")
            result = executor.execute(wf)
        else:
            result = run.wait(PATIENCE)
        assert result.outputs == {"a": "mine", "b": "mine", "c": "mine"}
    finally:
        marker.reset(token)


def test_a_nodes_changes_of_context_do_not_reach_the_caller() -> None:
    def change() -> str:
        marker.set("changed")
        return marker.get()

    executor = Executor()
    assert executor.execute(workflow(change))["change"] == "changed"
    assert marker.get() == "unset"
    assert executor.execute(workflow(read=lambda: marker.get()))["read"] == "unset"


def test_a_nodes_changes_of_context_do_not_reach_other_runs_on_the_same_thread() -> None:
    executor = Executor()
    over = threading.Event()

    def on_a_callback_thread(function: Callable[[], str]) -> str:
        over.clear()

        def node() -> tuple[str, str]:
            found = function(), threading.current_thread().name
            over.set()
            return found

        run = executor.start(workflow(node=node))
        opened(over)  # this thread does not pull
        value, thread = run.wait(PATIENCE)["node"]
        assert thread == "graphbit-callback"
        return str(value)

    for _ in range(20):
        on_a_callback_thread(lambda: str(marker.set("changed")))
    assert [on_a_callback_thread(marker.get) for _ in range(20)] == ["unset"] * 20


@pytest.mark.parametrize("way", ["execute", "start"])
def test_threads_with_different_contexts_do_not_see_each_others(way: str) -> None:
    executor = Executor()
    wf = workflow(**{f"n{i}": lambda: marker.get() for i in range(8)})

    def work(thread: int) -> set[str]:
        found: set[str] = set()
        for i in range(30):
            marker.set(f"{thread}.{i}")
            run = executor.start(wf) if way == "start" else None
            result = executor.execute(wf) if run is None else run.wait(PATIENCE)
            if set(result.outputs.values()) != {f"{thread}.{i}"}:
                found |= {f"{thread}.{i}", *result.outputs.values()}
        return found

    assert in_threads(8, work) == [set()] * 8


def test_a_nested_run_sees_what_the_node_around_it_set() -> None:
    executor = Executor()

    def outer() -> str:
        marker.set("from the node")
        return str(executor.execute(workflow(inner=lambda: marker.get()))["inner"])

    assert executor.execute(workflow(outer))["outer"] == "from the node"


# ------------------------------------------------------------------------------------------------------- nothing piles up


def test_threads_do_not_pile_up_over_200_runs() -> None:
    executor = Executor()
    most = 0

    def run_once() -> None:
        nonlocal most
        meeting = threading.Barrier(4)
        wf = workflow(**{f"n{i}": lambda: meeting.wait(PATIENCE) for i in range(4)})
        executor.execute(wf).raise_for_failure()
        most = max(most, callback_threads())
        assert {it.name for it in threading.enumerate()} - names <= {"graphbit-callback"}

    names = {it.name for it in threading.enumerate()}
    for _ in range(20):
        run_once()
    tasks_before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    for _ in range(200):
        run_once()
    assert most <= 16
    if tasks_before:
        # Callback threads may still come to their number; everything else is there.
        assert len(os.listdir("/proc/self/task")) <= tasks_before + 16


class Fan:
    """200 nodes into one; some of them are over when all the others are."""

    def __init__(self, blocking: set[int]) -> None:
        self.blocking = blocking
        self.gate, self.lock = threading.Event(), threading.Lock()
        self.quick_left = 200 - len(blocking)
        self.counts = [0] * 201

    def node(self, number: int) -> int:
        if number in self.blocking:
            opened(self.gate)
        with self.lock:
            self.counts[number] += 1
            if number not in self.blocking:
                self.quick_left -= 1
                if self.quick_left == 0:
                    self.gate.set()
        return number

    def end(self, **values: int) -> int:
        self.counts[200] += 1
        return sum(values.values())

    def workflow(self) -> Workflow:
        made = workflow(**{f"n{i}": partial(self.node, i) for i in range(200)})
        made.add(Node.function(self.end, "end", bind={f"p{i}": f"n{i}" for i in range(200)}))
        return made


@pytest.mark.parametrize("way", ["execute", "start"])
def test_each_node_of_a_fan_of_quick_and_blocking_ones_runs_exactly_once(way: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    executor = Executor()
    for _ in range(30):
        fan = Fan(set(dice.sample(range(200), dice.choice([1, 3, 10]))))
        wf = fan.workflow()
        result = executor.execute(wf) if way == "execute" else executor.start(wf).wait(PATIENCE)
        assert result.raise_for_failure()["end"] == sum(range(200))
        assert fan.counts == [1] * 201


def test_threads_that_end_give_back_what_they_waited_on() -> None:
    executor, wf = Executor(), workflow(one=lambda: 1)
    core = runtime_queue.core()
    in_threads(8, lambda _: executor.execute(wf))
    before = len(core.lanes)
    for _ in range(20):
        in_threads(8, lambda _: executor.execute(wf))
    assert len(core.lanes) <= before + 16  # callback threads that came meanwhile


def test_an_idle_runtime_uses_no_cpu() -> None:
    # The one wait for time to pass: idleness is nothing else.
    out = run_python("""
import asyncio, threading, time
from graphbit import Executor, Node, Workflow
from graphbit.testing import FakeProvider
async def later(a): return a
with FakeProvider() as provider:
    provider.route("GET", "/page", text="hello")
    wf = Workflow("w")
    meeting = threading.Barrier(3)
    wf.add(Node.function(lambda: 1, "a"), Node.function(later), Node.delay("pause", 0.001), Node.transform("t", "{a}"),
           Node.http("page", "GET", provider.url + "/page"), *[Node.function(meeting.wait, f"b{i}") for i in range(3)])
    executor = Executor()
    for _ in range(10):
        executor.execute(wf).raise_for_failure()
used = time.process_time()
time.sleep(0.5)
print(time.process_time() - used)
""")
    assert float(out) < 0.005
