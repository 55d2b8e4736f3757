"""Many runs and many threads at once: nobody gets another's values, nobody waits for another's slow node, nothing piles up.

Nodes that must overlap meet at a `threading.Barrier`; nodes that must be slow wait for an event. Nothing here depends on how
long something takes, but for the one test of an idle runtime.
"""

from __future__ import annotations

import os
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from flows import PATIENCE, opened

from graphbit import Executor, Node, Workflow, _queue as runtime_queue

marker: ContextVar[str] = ContextVar("marker", default="unset")


def workflow(*functions: Callable[..., Any], **named: Callable[..., Any]) -> Workflow:
    made = Workflow("w")
    made.add(*[Node.function(it) for it in functions], *[Node.function(it, name) for name, it in named.items()])
    return made


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(0) … work(count - 1)`, all begun at the same moment."""
    line = threading.Barrier(count)

    def one(number: int) -> Any:
        line.wait(PATIENCE)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [it.result(PATIENCE * 3) for it in [pool.submit(one, number) for number in range(count)]]


def callback_threads() -> int:
    return sum(it.name == "graphbit-callback" for it in threading.enumerate())


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


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


# ------------------------------------------------------------------------------------------------------------ blocked nodes


@pytest.mark.parametrize("way", ["start", "execute"])
def test_a_run_with_a_blocked_node_does_not_hold_up_another(way: str) -> None:
    inside, gate = threading.Event(), threading.Event()

    def held() -> str:
        inside.set()
        opened(gate)
        return "late"

    executor = Executor()
    with ThreadPoolExecutor(1) as pool:
        if way == "start":
            run = executor.start(workflow(held))
            wait = run.wait
        else:
            wait = pool.submit(executor.execute, workflow(held)).result
        try:
            opened(inside)
            quick = Workflow("quick")
            quick.add(Node.function(lambda: 1, "a"), Node.function(lambda a: a + 1, "b"), Node.transform("c", "{b}"))
            assert executor.execute(quick)["c"] == "2"
            assert executor.start(quick).wait(PATIENCE)["c"] == "2"
        finally:
            gate.set()
        assert wait(PATIENCE)["held"] == "late"


@pytest.mark.parametrize("way", ["start", "execute"])
@pytest.mark.parametrize("place", [0, 31, 63])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_blocked_node_does_not_hold_up_the_ready_ones_behind_it(way: str, place: int, warm: bool) -> None:
    inside, gate, others_done = threading.Event(), threading.Event(), threading.Event()
    lock = threading.Lock()
    count = 0

    def held() -> None:
        inside.set()
        opened(gate)

    def quick() -> None:
        nonlocal count
        with lock:
            count += 1
            if count == 63:
                others_done.set()

    wf = workflow(**{f"n{i}": held if i == place else quick for i in range(64)})
    executor = Executor()
    if warm:  # the plan remembers how quick its callbacks were, and batches are as large as they get
        gate.set()
        for _ in range(5):
            count = 0
            assert executor.execute(wf).is_success()
        count = 0
        for event in (inside, gate, others_done):
            event.clear()
    with ThreadPoolExecutor(1) as pool:
        wait = executor.start(wf).wait if way == "start" else pool.submit(executor.execute, wf).result
        try:
            opened(inside)
            opened(others_done)
            assert not gate.is_set()
        finally:
            gate.set()
        assert wait(PATIENCE).is_success()
    assert count == 63


# 16 callback threads, and the caller where it has the batch: as many as there may be.
@pytest.mark.parametrize(
    ("way", "nodes"), [*((way, nodes) for way in ("start", "execute") for nodes in (2, 8, 16)), ("execute", 17)]
)
def test_blocked_nodes_run_all_at_once(way: str, nodes: int) -> None:
    meeting = threading.Barrier(nodes)
    wf = workflow(**{f"n{i}": lambda: meeting.wait(PATIENCE) for i in range(nodes)})
    executor = Executor()
    if way == "execute":
        result = executor.execute(wf)
    else:
        result = executor.start(wf).wait(PATIENCE)
    assert sorted(result.raise_for_failure().outputs.values()) == list(range(nodes))


@pytest.mark.parametrize("way", ["start", "execute"])
@pytest.mark.parametrize("place", [0, 13, 31])
def test_successors_of_quick_nodes_run_while_a_node_of_the_same_batch_blocks(way: str, place: int) -> None:
    inside, gate, joined = threading.Event(), threading.Event(), threading.Event()
    lock = threading.Lock()
    joins = 0

    def held() -> None:
        inside.set()
        opened(gate)

    def join(left: int, right: int) -> None:  # of two nodes, so that it is nobody's continuation
        nonlocal joins
        with lock:
            joins += 1
            if joins == 15:
                joined.set()

    wf = workflow(**{f"n{i}": held if i == place else lambda: 1 for i in range(32)})
    quick = [f"n{i}" for i in range(32) if i != place]
    pairs = zip(quick[0:30:2], quick[1:30:2], strict=True)
    wf.add(*[Node.function(join, f"j{i}", bind={"left": a, "right": b}) for i, (a, b) in enumerate(pairs)])
    executor = Executor()
    gate.set()
    for _ in range(5):  # batches grow to their full size
        joins = 0
        assert executor.execute(wf).is_success()
    joins = 0
    for event in (inside, gate, joined):
        event.clear()
    with ThreadPoolExecutor(1) as pool:
        wait = executor.start(wf).wait if way == "start" else pool.submit(executor.execute, wf).result
        try:
            opened(inside)
            opened(joined)
        finally:
            gate.set()
        assert wait(PATIENCE).is_success()
    assert joins == 15


def test_batches_of_several_callers_that_block_at_once_are_all_helped() -> None:
    # Each caller's batch blocks twice before its quick nodes, so each needs two helpers, and all need them at the same time.
    callers, executor = 5, Executor()

    class Gate:
        def __init__(self) -> None:
            self.event = threading.Event()
            self.left = 20
            self.lock = threading.Lock()

        def quick(self) -> None:
            with self.lock:
                self.left -= 1
                if self.left == 0:
                    self.event.set()

        def held(self) -> None:
            opened(self.event)

    gates = [Gate() for _ in range(callers)]
    flows = [workflow(**{f"n{i}": gate.held if i < 2 else gate.quick for i in range(22)}) for gate in gates]
    for wf, gate in zip(flows, gates, strict=True):
        gate.event.set()
        for _ in range(3):
            assert executor.execute(wf).is_success()
    for _ in range(20):
        for gate in gates:
            gate.left = 20
            gate.event.clear()
        for result in in_threads(callers, lambda i: executor.execute(flows[i])):
            result.raise_for_failure()


class SlowDoor:
    """A lane's lock at which the first other thread that comes is kept waiting until it is let in."""

    def __init__(self, lock: Any) -> None:
        self.lock, self.owner = lock, threading.current_thread()
        self.there, self.open, self.through = threading.Event(), threading.Event(), threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread() is not self.owner and not self.there.is_set():
            self.there.set()
            opened(self.open)
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        if threading.current_thread() is not self.owner:
            self.through.set()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return bool(self.lock.acquire(blocking, timeout))

    def release(self) -> None:
        self.lock.release()


def test_a_helper_that_comes_late_leaves_the_results_of_the_next_run_alone() -> None:
    gate = threading.Event()
    executor, first = Executor(), workflow(**{f"n{i}": lambda: opened(gate) for i in range(8)})
    gate.set()
    for _ in range(5):  # the batch holds all of them
        executor.execute(first)
    gate.clear()
    lane = runtime_queue.core()._local.free[-1]  # this thread's; the next execute takes it
    lane.sending = door = SlowDoor(lane.sending)
    try:
        # A helper comes for the blocked batch and is stopped at the door; this thread ends the batch, and the run, alone.
        opener = threading.Thread(target=lambda: opened(door.there) or gate.set())
        opener.start()
        executor.execute(first).raise_for_failure()
        opener.join(PATIENCE)

        def second() -> None:  # the result of the node before is in the lane, not sent yet
            door.open.set()
            opened(door.through)

        result = Executor(timeout_seconds=5).execute(workflow(one=lambda: 1, two=second))
        assert result.states == {"one": "succeeded", "two": "succeeded"}
    finally:
        door.open.set()
        lane.sending = door.lock


def test_blocked_nodes_of_different_runs_run_all_at_once() -> None:
    meeting = threading.Barrier(12)

    def meet() -> int:
        return meeting.wait(PATIENCE)

    executor, wf = Executor(), workflow(meet)
    runs = [executor.start(wf) for _ in range(12)]
    assert sorted(run.wait(PATIENCE)["meet"] for run in runs) == list(range(12))


def test_chains_behind_blocked_nodes_go_on_as_each_is_released() -> None:
    gates = [threading.Event() for _ in range(6)]
    ended = [threading.Event() for _ in range(6)]
    wf = Workflow("w")
    for i in range(6):
        wf.add(
            Node.function(lambda i=i: opened(gates[i]), f"held{i}"),
            Node.function(lambda value, i=i: ended[i].set(), f"after{i}", bind={"value": f"held{i}"}),
        )
    run = Executor().start(wf)
    for i in (3, 0, 5, 1, 4, 2):  # the order is ours
        gates[i].set()
        opened(ended[i])
    assert run.wait(PATIENCE).is_success()


def test_nodes_that_release_the_gil_run_in_parallel_in_one_run() -> None:
    meeting = threading.Barrier(2)

    def left() -> int:
        meeting.wait(PATIENCE)
        return threading.get_ident()

    def right() -> int:
        meeting.wait(PATIENCE)
        return threading.get_ident()

    result = Executor().execute(workflow(left, right))
    assert result["left"] != result["right"]


def test_no_more_callback_threads_than_configured_and_all_of_them() -> None:
    out = run_python("""
import threading
import graphbit
from graphbit import Executor, Node, Workflow
graphbit.configure_runtime(max_blocking_threads=4)
meeting, lock, active, most, finished = threading.Barrier(4), threading.Lock(), 0, 0, threading.Event()
done = 0
def node():
    global active, most, done
    with lock:
        active += 1
        most = max(most, active)
    meeting.wait(20)
    with lock:
        active -= 1
        done += 1
        if done == 12:
            finished.set()
wf = Workflow("w")
wf.add(*[Node.function(node, f"n{i}") for i in range(12)])
run = Executor().start(wf)
assert finished.wait(20)  # this thread does not help
assert run.wait(20).is_success()
print(most, sum(it.name == "graphbit-callback" for it in threading.enumerate()))
""")
    assert out == "4 4\n"


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
