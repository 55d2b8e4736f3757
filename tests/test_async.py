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
from flows import PATIENCE, opened

import graphbit
from graphbit import Executor, Node, Run, Workflow, WorkflowResult

marker: ContextVar[str] = ContextVar("marker", default="unset")


def workflow(*functions: Callable[..., Any], **named: Callable[..., Any]) -> Workflow:
    made = Workflow("w")
    made.add(*[Node.function(it) for it in functions], *[Node.function(it, name) for name, it in named.items()])
    return made


async def patiently(it: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(it, PATIENCE)


class Unwatching(asyncio.SelectorEventLoop):
    """A loop like Windows' proactor: it cannot watch descriptors for others."""

    def add_reader(self, *args: Any) -> None:
        raise NotImplementedError

    def remove_reader(self, *args: Any) -> bool:
        raise NotImplementedError


def run_on(loop: asyncio.AbstractEventLoop, main: Awaitable[Any]) -> Any:
    try:
        return loop.run_until_complete(patiently(main))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture(params=["watching", "unwatching"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """asyncio.run, on a loop of either kind."""
    kind = asyncio.SelectorEventLoop if request.param == "watching" else Unwatching
    return lambda main: run_on(kind(), main)


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


async def awaited(it: Run) -> WorkflowResult:
    return await it


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


# ---------------------------------------------------------------------------------------------------------- cancelling


def test_cancelling_the_task_cancels_the_run_and_its_nodes(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def main() -> None:
        inside, cleaned = asyncio.Event(), asyncio.Event()

        async def held() -> None:
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # cleaning up may take a while
                cleaned.set()
                raise

        wf = workflow(held, after=lambda held: 1)
        wf.add(Node.delay("hour", 3600))
        started = Executor().start(wf)
        task = asyncio.create_task(awaited(started))
        await patiently(inside.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = await patiently(started)
        assert result.state() == "Cancelled"
        assert result.states == {"held": "cancelled", "after": "cancelled", "hour": "cancelled"}
        await patiently(cleaned.wait())

    run(main())


def test_wait_for_around_a_run_cancels_it() -> None:
    async def main() -> None:
        wf = Workflow("w")
        wf.add(Node.delay("hour", 3600))
        executor = Executor()
        started = executor.start(wf)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(awaited(started), 0.001)
        assert (await patiently(started)).state() == "Cancelled"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(executor.run_async(wf), 0.001)

    asyncio.run(main())


def test_a_run_cancelled_from_another_thread_cancels_async_nodes(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def main() -> None:
        inside, cancelled = threading.Event(), asyncio.Event()

        async def held() -> None:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        started = Executor().start(workflow(held))

        def canceller() -> None:
            opened(inside)
            started.cancel()

        await asyncio.gather(asyncio.to_thread(canceller), patiently(started))
        await patiently(cancelled.wait())
        assert (await started).state() == "Cancelled"

    run(main())


def test_a_cancelled_run_may_still_be_awaited_by_others(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def main() -> None:
        wf = Workflow("w")
        wf.add(Node.delay("hour", 3600))
        started = Executor().start(wf)
        tasks = [asyncio.create_task(awaited(started)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = await patiently(asyncio.gather(*tasks, return_exceptions=True))
        assert isinstance(results[0], asyncio.CancelledError)
        assert [it.state() for it in results[1:]] == ["Cancelled"] * 2

    run(main())


def test_a_failure_cancels_async_nodes_beside_it() -> None:
    async def main() -> None:
        inside = asyncio.Event()
        cancelled = asyncio.Event()

        async def held() -> None:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async def fails() -> None:
            await inside.wait()
            raise ValueError("no")

        result = await patiently(Executor().run_async(workflow(held, fails)))
        assert isinstance(result.errors["fails"], ValueError)
        assert result.states == {"held": "cancelled", "fails": "failed"}
        await patiently(cancelled.wait())

    asyncio.run(main())


def test_a_run_timeout_cancels_async_nodes(run: Callable[[Awaitable[Any]], Any]) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def held() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        with pytest.raises(graphbit.RunTimeoutError) as caught:
            await patiently(Executor(timeout_seconds=0.02).run_async(workflow(held, quick=lambda: 1)))
        assert caught.value.result["quick"] == 1
        await patiently(cancelled.wait())

    run(main())


def test_a_run_whose_loop_is_gone_can_be_cancelled() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def main() -> Run:
        return Executor().start(workflow(never, after=lambda never: 1))  # asyncio.run ends before it began

    started = asyncio.run(main())
    gc.collect()
    started.cancel()
    assert started.wait(PATIENCE).is_failed()


@pytest.mark.parametrize("what", ["node", "map", "inner workflow"])
def test_waiting_for_a_run_whose_loop_is_gone_does_not_wait_for_ever(what: str) -> None:
    async def never(item: Any = None) -> None:
        await asyncio.Event().wait()

    made = Workflow("left", inputs=["items"])
    if what == "map":
        made.add(Node.map("never", "items", never))
    elif what == "inner workflow":
        made.add(Node.workflow("never", workflow(never)))
    else:
        made.add(Node.function(never))

    async def main() -> Run:
        return Executor().start(made, {"items": [1, 2]})  # asyncio.run ends before it began

    started = asyncio.run(main())
    gc.collect()
    assert started.wait(PATIENCE).is_failed()


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("way", ["execute", "run_async"])
def test_an_async_nodes_error_comes_back_as_itself(way: str) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("no such thing")

    async def after(fails: Any) -> None:
        raise AssertionError("never runs")

    wf, executor = workflow(fails, after), Executor()
    result = executor.execute(wf) if way == "execute" else asyncio.run(executor.run_async(wf))
    error = result.errors["fails"]
    assert type(error) is LookupError
    assert "raised by node 'fails'" in "".join(getattr(error, "__notes__", []))
    with pytest.raises(LookupError, match="no such thing"):
        result.raise_for_failure()
    trace, functions = error.__traceback__, []
    while trace is not None:
        functions.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "fails" in functions
    assert result.states["after"] == "skipped"


def test_an_async_error_in_a_run_that_was_awaited_by_many_is_the_same_for_all() -> None:
    error = LookupError("one")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        started = Executor().start(workflow(fails))
        results = await asyncio.gather(*[awaited(started) for _ in range(5)])
        assert all(it.errors["fails"] is error for it in results)

    asyncio.run(main())
    assert getattr(error, "__notes__", ["raised by node 'fails'"]) == ["raised by node 'fails'"]


def test_a_node_that_cancels_itself_has_failed() -> None:
    async def cancels() -> None:
        raise asyncio.CancelledError("of my own")

    for result in (Executor().execute(workflow(cancels)), asyncio.run(Executor().run_async(workflow(cancels)))):
        assert result.states == {"cancels": "failed"}
        assert isinstance(result.errors["cancels"], asyncio.CancelledError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_raised_in_an_async_node_comes_out_of_execute_and_the_next_run_works(kind: type[BaseException]) -> None:
    async def exits() -> None:
        await asyncio.sleep(0)
        raise kind("enough")

    async def fine() -> int:
        await asyncio.sleep(0)
        return 1

    executor = Executor()
    with pytest.raises(kind, match="enough"):
        executor.execute(workflow(exits, after=lambda exits: 1))
    assert executor.start(workflow(fine)).wait(PATIENCE)["fine"] == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_raised_in_an_async_node_ends_the_callers_loop(kind: type[BaseException]) -> None:
    async def exits() -> None:
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        asyncio.run(Executor().run_async(workflow(exits)))


def test_wait_on_the_loop_that_runs_the_nodes_is_refused() -> None:
    async def one() -> int:
        return 1

    async def main() -> None:
        started = Executor().start(workflow(one))
        with pytest.raises(RuntimeError, match="await run"):
            started.wait()
        assert (await patiently(started))["one"] == 1
        assert started.wait()["one"] == 1  # it is over: nothing to wait for

    asyncio.run(main())


def test_wait_on_a_loop_works_for_runs_that_do_not_need_it() -> None:
    async def main() -> None:
        started = Executor().start(workflow(plain=lambda: 1))
        assert started.wait(PATIENCE)["plain"] == 1

    asyncio.run(main())


def test_execute_of_async_nodes_inside_an_async_node_is_refused_on_the_private_loop_and_leaves_nothing() -> None:
    executor = Executor()

    async def inner() -> int:
        return 1

    async def outer() -> Any:
        return executor.execute(workflow(inner))["inner"]  # the private loop would wait for itself

    result = executor.start(workflow(outer)).wait(PATIENCE)
    assert isinstance(result.errors["outer"], RuntimeError)
    assert "await" in str(result.errors["outer"])


def test_run_async_inside_an_async_node_works(run: Callable[[Awaitable[Any]], Any]) -> None:
    executor = Executor()

    async def inner() -> int:
        return 1

    async def middle() -> Any:
        return (await executor.run_async(workflow(inner)))["inner"]

    async def outer() -> Any:
        return (await executor.run_async(workflow(middle)))["middle"]

    assert run(executor.run_async(workflow(outer)))["outer"] == 1
    assert executor.execute(workflow(outer))["outer"] == 1


def test_it_works_in_asyncios_debug_mode() -> None:
    async def one() -> int:
        await asyncio.sleep(0)
        return 1

    assert asyncio.run(Executor().run_async(workflow(one)), debug=True)["one"] == 1


def test_a_shutdown_tells_those_who_await() -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def held() -> None:
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(Executor().run_async(workflow(held)))
        await patiently(inside.wait())
        await asyncio.to_thread(graphbit.shutdown)
        with pytest.raises(graphbit.RuntimeClosedError):
            await patiently(task)
        # And the same loop may go on with a fresh runtime.
        assert (await patiently(Executor().run_async(workflow(one=lambda: 1))))["one"] == 1

    asyncio.run(main())


def test_an_async_node_whose_task_is_cancelled_before_its_first_step_has_failed() -> None:
    async def later() -> int:
        return 1

    async def main() -> Any:
        made = Workflow("w")
        made.add(Node.function(later))
        run = Executor().start(made)
        mine = asyncio.current_task()
        while not (others := asyncio.all_tasks() - {mine}):
            await asyncio.sleep(0)
        for task in others:
            task.cancel()
        return await asyncio.wait_for(run._await_over(), 20)

    result = asyncio.run(main())
    assert result.is_failed()


def test_a_run_whose_loop_ended_before_it_does_not_keep_its_waiter() -> None:
    def early() -> int:
        return 1

    async def late(early: int) -> int:
        return early

    made = Workflow("w")
    made.add(Node.delay("pause", 0.01), Node.function(early), Node.function(late))
    made.connect("pause", "early")

    async def main() -> Any:
        return Executor().start(made)

    run = asyncio.run(main())
    assert not run.wait(20).is_success()
