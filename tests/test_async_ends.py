"""Async nodes that are cancelled or fail, and whoever waits for them."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from flows import PATIENCE, awaited, opened, patiently, workflow

import graphbit
from graphbit import Executor, Node, Run, Workflow

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
