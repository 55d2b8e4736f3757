"""Nodes that block: nobody waits for another's slow node, whether behind it, in its batch, or in another run.

Nodes that must overlap meet at a `threading.Barrier`; nodes that must be slow wait for an event. Nothing here depends on how
long something takes.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flows import PATIENCE, in_threads, opened, prints as run_python, workflow

from graphbit import Executor, Node, Workflow, _queue as runtime_queue

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
