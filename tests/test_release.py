"""What a run held is gone with its last user."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from flows import PATIENCE, awaited, linux_only, opened, workflow

import graphbit
from graphbit import (
    Executor,
    Node,
    Run,
    Workflow,
    WorkflowResult,
)

pytestmark = pytest.mark.usefixtures("afterwards")


def test_a_run_that_nobody_holds_finishes() -> None:
    finished: list[int] = []
    over = threading.Event()

    def first() -> int:
        return 1

    def last(middle: str) -> None:
        finished.append(int(middle))
        if len(finished) == 50:
            over.set()

    executor = Executor()
    wf = workflow(first)
    wf.add(Node.transform("middle", "{first}"), Node.delay("pause", 0.001), Node.function(last))
    wf.connect("first", "pause")
    wf.connect("pause", "last")
    for _ in range(50):
        executor.start(wf)
    opened(over)
    assert finished == [1] * 50


def test_a_run_that_nobody_holds_finishes_on_its_loop() -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def last() -> None:
            await asyncio.sleep(0)
            over.set()

        Executor().start(workflow(last))
        gc.collect()
        await asyncio.wait_for(over.wait(), PATIENCE)

    asyncio.run(main())


class Output:
    """What a weak reference can be had of."""


class OwnError(Exception):
    """The same."""


def make(kind: str) -> Workflow:
    def plain() -> Output:
        return Output()

    async def later() -> Output:
        await asyncio.sleep(0)
        return Output()

    def fails() -> None:
        raise OwnError

    async def fails_later() -> None:
        await asyncio.sleep(0)
        raise OwnError

    node = {
        "plain": lambda: Node.function(plain, "it"),
        "async": lambda: Node.function(later, "it"),
        "failing": lambda: Node.function(fails, "it"),
        "async failing": lambda: Node.function(fails_later, "it"),
        "native": lambda: Node.transform("it", "text"),
        "cancelled": lambda: Node.delay("it", 10_000),
        "timed out": lambda: Node.delay("it", 10_000),
    }[kind]()
    made = Workflow("w")
    made.add(node, Node.function(lambda: Output(), "after"))
    made.connect("it", "after")
    return made


WAYS = ("execute", "start", "run_async", "await", "task cancelled")


def use(way: str, kind: str) -> list[weakref.ref[Any]]:
    """Runs a workflow and looks at its result; returns weak references to all there was.

    A failed node's error holds the frames below it, this one too, so this one lets go of what it had before it returns.
    """
    wf, executor = make(kind), Executor(timeout_seconds=0.01 if kind == "timed out" else None)
    refs: list[weakref.ref[Any]] = [weakref.ref(wf), weakref.ref(executor)]
    run: Run | None = None
    result: WorkflowResult | None = None
    timed_out: graphbit.RunTimeoutError | None = None

    async def main(executor: Executor, wf: Workflow) -> WorkflowResult:
        if way == "run_async":
            return await executor.run_async(wf)
        started = executor.start(wf)
        refs.append(weakref.ref(started))
        if way == "task cancelled":
            task = asyncio.create_task(awaited(started))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            del task
        elif kind == "cancelled":
            started.cancel()
        try:
            return await started
        finally:
            del started

    try:
        if way == "execute":
            result = executor.execute(wf)
        elif way == "start":
            run = executor.start(wf)
            refs.append(weakref.ref(run))
            if kind == "cancelled":
                run.cancel()
            result = run.wait(PATIENCE)
        else:
            result = asyncio.run(main(executor, wf))
    except graphbit.RunTimeoutError as error:
        timed_out = error
        result = timed_out.result
    assert result is not None
    refs.append(weakref.ref(result))
    refs += [weakref.ref(it) for it in result.outputs.values() if isinstance(it, Output)]
    refs += [weakref.ref(it) for it in result.errors.values()]
    repr(result), result.states
    if timed_out is not None:
        timed_out.__traceback__ = None
    del wf, executor, run, result, timed_out, main
    return refs


def wait_for_other_threads() -> None:
    """Callback threads and the private loop let go of what they ran a moment after whoever waited is told."""
    done = threading.Event()

    async def later() -> None:
        await asyncio.sleep(0)

    Executor().start(workflow(later, a=lambda: 1, b=done.set)).wait(PATIENCE)
    opened(done)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "async", "failing", "async failing", "native", "cancelled", "timed out"])
def test_everything_is_freed_without_the_garbage_collector(way: str, kind: str) -> None:
    if kind == "cancelled" and way in ("execute", "run_async"):
        pytest.skip("nobody has the run, so nobody cancels it")
    refs = use(way, kind)
    for _ in range(200):
        left = [it for it in refs if it() is not None]
        if not left:
            break
        wait_for_other_threads()
    assert [it() for it in left] == []


@pytest.mark.usefixtures("no_collector")
def test_a_run_that_nobody_waited_for_is_freed_when_it_is_over() -> None:
    for kind in ("plain", "async", "native"):
        wf = make(kind)
        run = weakref.ref(Executor().start(wf))
        for _ in range(200):
            if run() is None:
                break
            wait_for_other_threads()
        assert run() is None, kind


@linux_only
@pytest.mark.parametrize("kind", ["plain", "async", "failing", "native"])
def test_descriptors_and_threads_stay_as_many_over_two_hundred_loops(kind: str) -> None:
    executor, wf = Executor(), make(kind)

    async def main() -> None:
        repr((await executor.run_async(wf)).errors)

    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for _ in range(20):
        asyncio.run(main())
    gc.collect()
    before = counts()
    for _ in range(200):
        asyncio.run(main())
    gc.collect()
    after = counts()
    assert after[0] == before[0]
    assert after[1] <= before[1] + 2  # callback threads may still be on their way to enough


@linux_only
def test_descriptors_and_threads_stay_as_many_over_shutdowns() -> None:
    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def once() -> None:
        for kind in ("plain", "async", "native"):
            Executor().start(make(kind)).wait(PATIENCE)
        graphbit.shutdown()
        for it in threading.enumerate():
            if it.name.startswith("graphbit"):
                it.join(PATIENCE)

    once()
    gc.collect()
    before = counts()
    for _ in range(20):
        once()
    gc.collect()
    assert counts() == before
