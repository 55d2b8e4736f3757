"""Event loops: `async def` nodes, awaiting runs, cancelled tasks, many loops, loops that cannot watch a descriptor."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from flows import PATIENCE, Unwatching, awaited, opened, patiently, run_on, workflow

from graphbit import Executor, Node, Workflow, WorkflowResult

marker: ContextVar[str] = ContextVar("marker", default="unset")


# -------------------------------------------------------------------------------------------------- where nodes run


def test_async_functions_run_on_the_callers_loop(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def where() -> tuple[Any, int, Any]:
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), threading.get_ident(), asyncio.current_task()

    async def main() -> None:
        for _ in range(3):
            loop, thread, task = (await Executor().run_async(workflow(where)))["where"]
            assert loop is asyncio.get_running_loop()
            assert thread == threading.get_ident()
            assert isinstance(task, asyncio.Task)
            assert task is not asyncio.current_task()

    run(main())


def test_asyncio_works_as_usual_inside_a_node(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def inside() -> list[Any]:
        async def echo(value: int) -> int:
            await asyncio.sleep(0)
            return value

        found: list[Any] = await asyncio.gather(*[echo(i) for i in range(5)])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)
        found.append(await asyncio.to_thread(lambda: 99))
        return found

    assert run(Executor().run_async(workflow(inside)))["inside"] == [0, 1, 2, 3, 4, 99]


@pytest.mark.skipif(not hasattr(asyncio, "timeout"), reason="asyncio.timeout is Python 3.11's")
def test_asyncio_timeout_works_inside_a_node() -> None:
    async def inside() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    assert asyncio.run(Executor().run_async(workflow(inside)))["inside"] == "timed out"
    assert Executor().execute(workflow(inside))["inside"] == "timed out"


def test_execute_runs_async_functions_on_one_private_loop() -> None:
    async def where() -> tuple[Any, str]:
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), threading.current_thread().name

    executor = Executor()
    first, second = (executor.execute(workflow(where))["where"] for _ in range(2))
    third = executor.start(workflow(where)).wait(PATIENCE)["where"]
    assert first == second == third
    assert first[1] == "graphbit-loop"


def test_execute_on_a_loop_runs_async_functions_elsewhere() -> None:
    async def where() -> Any:
        return asyncio.get_running_loop()

    async def main() -> None:
        assert Executor().execute(workflow(where))["where"] is not asyncio.get_running_loop()

    asyncio.run(main())


def test_async_nodes_of_one_run_are_on_their_way_at_once(run: Callable[[Awaitable[Any]], Any]) -> None:
    def meeting() -> Workflow:
        arrived = 0
        everybody = asyncio.Event()

        async def meet() -> int:
            nonlocal arrived
            arrived += 1
            if arrived == 200:
                everybody.set()
            await patiently(everybody.wait())
            return arrived

        return workflow(**{f"n{i}": meet for i in range(200)})

    async def main() -> None:
        result = await Executor().run_async(meeting())
        assert set(result.raise_for_failure().outputs.values()) == {200}

    run(main())


@pytest.mark.parametrize("way", ["execute", "run_async"])
def test_plain_async_and_native_nodes_may_follow_each_other(way: str) -> None:
    async def a(start: int) -> int:
        await asyncio.sleep(0)
        return start + 1

    def b(a: int) -> int:
        return a * 10

    async def c(b: int) -> int:
        return b + 2

    async def d(c: int) -> int:
        await asyncio.sleep(0)
        return c * 2

    def f(e: str, d: int) -> str:
        return f"{e}:{d}"

    async def g(f: str) -> str:
        return f + "!"

    wf = Workflow("w", inputs=["start"])
    wf.add(*[Node.function(it) for it in (a, b, c, d)], Node.transform("e", "<{d}>"), Node.delay("pause", 0.001))
    wf.add(Node.function(f), Node.function(g))
    wf.connect("d", "pause")
    wf.connect("pause", "f")
    executor = Executor()
    for start in range(20):
        if way == "execute":
            result = executor.execute(wf, {"start": start})
        else:
            result = asyncio.run(executor.run_async(wf, {"start": start}))
        value = 2 * (10 * (start + 1) + 2)
        assert result["g"] == f"<{value}>:{value}!"


@pytest.mark.parametrize("way", ["execute", "run_async"])
def test_plain_and_async_nodes_fan_out_and_in(way: str) -> None:
    async def start() -> int:
        return 1

    async def later(start: int, number: int) -> int:
        for _ in range(number % 3):
            await asyncio.sleep(0)
        return start + number

    def now(start: int, number: int) -> int:
        return start + number

    wf = workflow(start)
    names = [f"n{i}" for i in range(60)]
    for i, name in enumerate(names):
        wf.add(Node.function(functools.partial(later if i % 2 else now, number=i), name))
    wf.add(Node.transform("texts", "".join(f"{{{it}}}," for it in names)))

    async def total(texts: str) -> int:
        return sum(int(it) for it in texts.split(",") if it)

    wf.add(Node.function(total))
    executor = Executor()
    for _ in range(5):
        result = executor.execute(wf) if way == "execute" else asyncio.run(executor.run_async(wf))
        assert result["total"] == sum(range(1, 61))


class Caller:
    """Whatever can be awaited when called."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def __call__(self, a: int) -> int:
        await asyncio.sleep(0)
        return a + self.number

    async def method(self, a: int) -> int:
        await asyncio.sleep(0)
        return a + self.number

    @classmethod
    async def of_the_class(cls, a: int) -> int:
        await asyncio.sleep(0)
        return a + 3

    @staticmethod
    async def of_nobody(a: int) -> int:
        await asyncio.sleep(0)
        return a + 4


async def added(number: int, a: int) -> int:
    await asyncio.sleep(0)
    return a + number


CALLABLES: dict[str, Callable[..., Any]] = {
    "object": Caller(1),
    "method": Caller(2).method,
    "class method": Caller.of_the_class,
    "static method": Caller.of_nobody,
    "partial": functools.partial(added, 5),
    "partial of a partial": functools.partial(functools.partial(added), number=6),
    "partial of a method": functools.partial(Caller(7).method),
    "partial of an object": functools.partial(Caller(8)),
}


@pytest.mark.parametrize("started", ["execute", "run_async"])
@pytest.mark.parametrize("kind", CALLABLES)
def test_async_callables_of_every_kind_are_awaited(kind: str, started: str) -> None:
    wf = workflow(a=lambda: 10)
    wf.add(Node.function(CALLABLES[kind], "it"), Node.transform("text", "<{it}>"))
    result = Executor().execute(wf) if started == "execute" else asyncio.run(Executor().run_async(wf))
    assert result.raise_for_failure()["text"] == f"<{11 + list(CALLABLES).index(kind)}>"


def test_execute_on_a_running_loop_works_as_in_a_notebook(run: Callable[[Awaitable[Any]], Any]) -> None:
    def plain(start: int) -> int:
        return start + 1

    async def later(plain: int) -> int:
        await asyncio.sleep(0)
        return plain + 1

    wf = Workflow("w", inputs=["start"])
    wf.add(Node.function(plain), Node.function(later), Node.transform("text", "<{later}>"), Node.delay("d", 0.001))
    executor = Executor()

    async def main() -> None:
        for i in range(10):
            assert executor.execute(wf, {"start": i})["text"] == f"<{i + 2}>"
            await asyncio.sleep(0)
            assert (await executor.run_async(wf, {"start": i}))["text"] == f"<{i + 2}>"

    run(main())


def test_a_plain_function_that_blocks_does_not_block_the_loop(run: Callable[[Awaitable[Any]], Any]) -> None:
    gate = threading.Event()

    def blocks() -> int:
        opened(gate)
        return threading.get_ident()

    async def opens() -> None:
        await asyncio.sleep(0)
        gate.set()

    async def main() -> None:
        result = await Executor().run_async(workflow(blocks, opens))
        assert result["blocks"] != threading.get_ident()

    run(main())


def test_context_variables_are_seen_in_async_nodes_and_do_not_leak(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def reads_and_changes() -> str:
        found = marker.get()
        marker.set("changed")
        await asyncio.sleep(0)
        return found + "/" + marker.get()

    async def main() -> None:
        marker.set("mine")
        result = await Executor().run_async(workflow(a=reads_and_changes, b=reads_and_changes))
        assert result.outputs == {"a": "mine/changed", "b": "mine/changed"}
        assert marker.get() == "mine"

    run(main())


# ------------------------------------------------------------------------------------------------------- several loops


def test_asyncio_run_may_be_called_again_and_again(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def one() -> int:
        return 1

    executor, wf = Executor(), workflow(one)
    for _ in range(20):
        assert run(executor.run_async(wf))["one"] == 1
        assert asyncio.run(executor.run_async(wf))["one"] == 1


def test_two_loops_in_two_threads_run_at_once() -> None:
    meeting = threading.Barrier(2)
    executor = Executor()

    async def meet() -> tuple[Any, int]:
        await asyncio.to_thread(meeting.wait, PATIENCE)  # both loops are inside a node now
        return asyncio.get_running_loop(), threading.get_ident()

    async def main() -> None:
        for _ in range(20):
            loop, thread = (await patiently(executor.run_async(workflow(meet))))["meet"]
            assert loop is asyncio.get_running_loop()
            assert thread == threading.get_ident()

    with ThreadPoolExecutor(2) as pool:
        for it in [pool.submit(asyncio.run, main()) for _ in range(2)]:
            it.result(PATIENCE)


def test_many_loops_one_after_another_in_many_threads() -> None:
    executor = Executor()

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    wf = Workflow("w", inputs=["number"])
    wf.add(Node.function(double))

    async def main(number: int) -> int:
        return int((await patiently(executor.run_async(wf, {"number": number})))["double"])

    def thread(first: int) -> list[int]:
        return [asyncio.run(main(first + i)) for i in range(15)]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(thread, range(0, 600, 100))) == [
            [2 * (first + i) for i in range(15)] for first in range(0, 600, 100)
        ]


def test_a_run_started_outside_any_loop_can_be_awaited(run: Callable[[Awaitable[Any]], Any]) -> None:
    gate = threading.Event()

    async def held() -> str:
        await asyncio.to_thread(opened, gate)
        return threading.current_thread().name

    started = Executor().start(workflow(held))

    async def main() -> WorkflowResult:
        asyncio.get_running_loop().call_soon(gate.set)
        return await started

    assert run(main())["held"] == "graphbit-loop"
    assert started.wait()["held"] == "graphbit-loop"
    assert run(awaited(started))["held"] == "graphbit-loop"  # and again, long after its end


def test_a_run_started_on_one_loop_can_be_awaited_on_another_and_waited_for_in_threads() -> None:
    executor = Executor()
    elsewhere: list[Any] = []

    async def main() -> None:
        gate = asyncio.Event()

        async def held() -> Any:
            await gate.wait()
            return asyncio.get_running_loop()

        started = executor.start(workflow(held))
        line = threading.Barrier(3)

        def other_loop() -> None:
            line.wait(PATIENCE)
            elsewhere.append(asyncio.run(awaited(started)))

        def waiting_thread() -> None:
            line.wait(PATIENCE)
            elsewhere.append(started.wait(PATIENCE))

        both = [asyncio.create_task(asyncio.to_thread(it)) for it in (other_loop, waiting_thread)]
        await asyncio.to_thread(line.wait, PATIENCE)
        gate.set()
        await patiently(asyncio.gather(*both))
        assert [it["held"] for it in elsewhere] == [asyncio.get_running_loop()] * 2
        assert (await started)["held"] is asyncio.get_running_loop()

    asyncio.run(main())


def test_several_tasks_may_await_one_run(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def held() -> int:
            await gate.wait()
            return 5

        executor = Executor()
        started = executor.start(workflow(held))
        tasks = [asyncio.create_task(awaited(started)) for _ in range(10)]
        await asyncio.sleep(0)  # they are all waiting
        gate.set()
        assert [it["held"] for it in await asyncio.gather(*tasks)] == [5] * 10
        assert executor.get_stats()["total_executions"] == 1

    run(main())


def test_a_thousand_runs_at_once_on_one_loop(run: Callable[[Awaitable[Any]], Any]) -> None:
    executor = Executor()

    async def first(number: int) -> int:
        await asyncio.sleep(0)
        return number

    wf = Workflow("w", inputs=["number"])
    wf.add(
        Node.function(first),
        Node.function(lambda first: first + 1, "second"),
        Node.transform("third", "{second}"),
    )

    async def main() -> None:
        results = await asyncio.gather(*[executor.run_async(wf, {"number": i}) for i in range(1000)])
        assert [it["third"] for it in results] == [str(i + 1) for i in range(1000)]

    run(main())


def test_a_loop_without_add_reader_leaves_no_thread_behind() -> None:
    async def one() -> int:
        return 1

    executor, wf = Executor(), workflow(one)
    for _ in range(5):
        run_on(Unwatching(), executor.run_async(wf))
    gc.collect()
    left = [it for it in threading.enumerate() if it.name == "graphbit-loop-waiter"]
    for it in left:
        it.join(PATIENCE)
        assert not it.is_alive()


def test_a_closed_loop_gives_back_its_descriptors() -> None:
    async def one() -> int:
        return 1

    executor, wf = Executor(), workflow(one)
    executor.execute(wf)
    asyncio.run(executor.run_async(wf))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        asyncio.run(executor.run_async(wf))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
