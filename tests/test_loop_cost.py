"""Async nodes share tasks: what that saves is counted, and that no node can tell."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import inspect
import sys
import weakref
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any

import pytest

from graphbit import Executor, Node, Run, Workflow, WorkflowResult, _runners

PATIENCE = 20.0

marker: ContextVar[Any] = ContextVar("marker", default="unset")


def fan(*functions: Callable[..., Any], count: int) -> Workflow:
    """`count` independent nodes, n0 and so on, that run the functions in turn."""
    made = Workflow("w")
    made.add(*[Node.function(functions[i % len(functions)], f"n{i}") for i in range(count)])
    return made


async def patiently(it: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(it, PATIENCE)


class Counting(asyncio.SelectorEventLoop):
    """A loop that counts the tasks it makes, and its turns."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = 0
        self.turns = 0

    def create_task(self, *args: Any, **keywords: Any) -> Any:
        self.tasks += 1
        return super().create_task(*args, **keywords)

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


def on(loop: asyncio.AbstractEventLoop, main: Awaitable[Any]) -> Any:
    try:
        return loop.run_until_complete(patiently(main))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def of_its_own_kind() -> asyncio.AbstractEventLoop:
    """A loop whose tasks are not asyncio's own."""

    class Task(asyncio.tasks._PyTask):  # type: ignore[name-defined, misc]
        pass

    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(lambda loop, coro, **keywords: Task(coro, loop=loop, **keywords))
    return loop


def eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


def uvloop() -> asyncio.AbstractEventLoop:
    import uvloop  # type: ignore[import-not-found, unused-ignore]

    made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return made


LOOPS: list[Any] = [asyncio.SelectorEventLoop, of_its_own_kind]
if sys.version_info >= (3, 12):
    LOOPS.append(eager)
if importlib.util.find_spec("uvloop"):
    LOOPS.append(uvloop)


def execute(wf: Workflow) -> WorkflowResult:
    return Executor().start(wf).wait(PATIENCE)


def run_async(make: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[Workflow], WorkflowResult]:
    return lambda wf: on(make(), Executor().run_async(wf))


@pytest.fixture(params=["private", *[it.__name__ for it in LOOPS]])
def run(request: pytest.FixtureRequest) -> Callable[[Workflow], WorkflowResult]:
    """Runs a workflow on a loop of each kind."""
    return next((run_async(it) for it in LOOPS if it.__name__ == request.param), execute)


# -------------------------------------------------------------------------------------------------------------- counted


def test_a_thousand_nodes_that_never_wait_make_hardly_a_task() -> None:
    async def one() -> int:
        return 1

    loop = Counting()
    result = on(loop, Executor().run_async(fan(one, count=1000)))
    assert sum(result.outputs.values()) == 1000
    assert loop.tasks < 100


def test_a_chain_of_nodes_that_never_wait_makes_hardly_a_task_and_hardly_a_turn() -> None:
    async def step(value: int) -> int:
        return value + 1

    wf = Workflow("w", inputs=["start"])
    for i in range(200):
        wf.add(Node.function(step, f"n{i}", bind={"value": f"n{i - 1}" if i else "start"}))
    loop = Counting()
    result = on(loop, Executor().run_async(wf, {"start": 0}))
    assert result["n199"] == 200
    assert loop.tasks < 50
    assert loop.turns < 100


def test_nodes_that_wait_are_on_their_way_after_a_few_turns() -> None:
    loop = Counting()
    turns: list[int] = []

    async def waits() -> None:
        turns.append(loop.turns)
        await asyncio.sleep(0)

    on(loop, Executor().run_async(fan(waits, count=500)))
    assert len(turns) == 500
    assert turns[-1] - turns[0] < 250  # a turn for each would be 499


def test_the_loop_has_its_turns_between_nodes_that_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runners, "_TURN_NS", 0)
    loop = Counting()
    turns: list[int] = []

    async def one() -> None:
        turns.append(loop.turns)

    on(loop, Executor().run_async(fan(one, count=300)))
    assert len(set(turns)) == 300


def test_a_chain_that_never_waits_leaves_the_loop_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runners, "_TURN_NS", 0)
    loop = Counting()
    turns: list[int] = []

    async def step() -> None:
        turns.append(loop.turns)

    wf = fan(step, count=100)
    for i in range(99):
        wf.connect(f"n{i}", f"n{i + 1}")
    on(loop, Executor().run_async(wf))
    assert len(set(turns)) == 100


# ------------------------------------------------------------------------------------------------- no node can tell


def test_every_node_has_a_task_of_its_own_as_far_as_it_can_tell(run: Callable[[Workflow], WorkflowResult]) -> None:
    async def keeps() -> Any:
        return asyncio.current_task()

    async def waits() -> Any:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        assert asyncio.current_task() is before
        return before

    async def neither() -> None:
        assert asyncio.current_task() is not None

    result = run(fan(keeps, waits, neither, count=300)).raise_for_failure()
    tasks = [it for it in result.outputs.values() if it is not None]
    assert len(set(tasks)) == len(tasks) == 200
    assert all(asyncio.isfuture(it) for it in tasks)


def test_what_is_kept_by_task_is_not_found_by_another_node(run: Callable[[Workflow], WorkflowResult]) -> None:
    weakly: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    async def keeps() -> bool:
        task = asyncio.current_task()
        found = task in weakly
        weakly[task] = 1
        return found

    assert not any(run(fan(keeps, count=100)).raise_for_failure().outputs.values())


def test_a_node_that_cancels_its_task_and_returns_does_not_hurt_the_next(
    run: Callable[[Workflow], WorkflowResult],
) -> None:
    async def cancels() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "cancelled"

    async def takes_back() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if sys.version_info >= (3, 11):
            task.uncancel()
        return "taken back"

    async def waits() -> str:
        await asyncio.sleep(0)
        return "waited"

    async def passes() -> str:
        return "passed"

    result = run(fan(cancels, waits, takes_back, waits, passes, count=200))
    assert set(result.states.values()) == {"succeeded"}


def test_a_node_that_cancels_its_task_and_waits_is_cancelled_there(run: Callable[[Workflow], WorkflowResult]) -> None:
    async def cancels() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("of my own")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            return str(error)
        return "never"

    assert set(run(fan(cancels, count=30)).outputs.values()) == {"of my own"}


def test_a_task_cancelled_long_after_its_node_hurts_no_other(run: Callable[[Workflow], WorkflowResult]) -> None:
    async def leaves_a_trap() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)

    async def waits() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    result = run(fan(leaves_a_trap, waits, count=100))
    assert set(result.states.values()) == {"succeeded"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="timeout and TaskGroup are Python 3.11's")
def test_timeouts_and_task_groups_work_in_every_node(run: Callable[[Workflow], WorkflowResult]) -> None:
    async def timed_out() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    async def in_time() -> str:
        async with asyncio.timeout(PATIENCE):
            return "in time"

    async def grouped() -> str:
        async def echo(value: str) -> str:
            await asyncio.sleep(0)
            return value

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(echo(it)) for it in "abc"]
        return "".join(it.result() for it in tasks)

    async def group_failed() -> str:
        async def fails() -> None:
            raise LookupError

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asyncio.Event().wait()
        except BaseException as error:
            return type(error).__name__
        return "never"

    async def waited_for() -> str:
        return await asyncio.wait_for(grouped(), PATIENCE)

    functions = (timed_out, in_time, grouped, group_failed, waited_for)
    result = run(fan(*functions, count=100)).raise_for_failure()
    assert [result[f"n{i}"] for i in range(100)] == ["timed out", "in time", "abc", "ExceptionGroup", "abc"] * 20


def test_context_variables_are_each_nodes_own_whether_it_waits_or_not(
    run: Callable[[Workflow], WorkflowResult],
) -> None:
    async def changes() -> Any:
        found = marker.get()
        marker.set("changed")
        return found

    async def changes_and_waits() -> Any:
        found = marker.get()
        marker.set(found + "1")
        await asyncio.sleep(0)
        marker.set(marker.get() + "2")
        await asyncio.gather(seen := child(), return_exceptions=True)
        del seen
        return found + "/" + marker.get()

    async def child() -> None:
        assert marker.get() == "mine12"
        marker.set("a child's")

    marker.set("mine")
    try:
        result = run(fan(changes, changes_and_waits, count=100)).raise_for_failure()
    finally:
        marker.set("unset")
    assert [result[f"n{i}"] for i in range(4)] == ["mine", "mine/mine12"] * 2
    assert set(result.outputs.values()) == {"mine", "mine/mine12"}


def test_many_nodes_may_wait_for_one_future(run: Callable[[Workflow], WorkflowResult]) -> None:
    shared: list[asyncio.Future[int]] = []

    async def waits() -> int:
        if not shared:
            shared.append(asyncio.get_running_loop().create_future())
        elif len(shared) < 99:
            shared.append(shared[0])
        else:
            shared[0].set_result(5)
        return await shared[0]

    assert set(run(fan(waits, count=100)).raise_for_failure().outputs.values()) == {5}


def test_generators_of_a_node_are_closed_where_they_were_opened() -> None:
    async def numbers() -> Any:
        token = marker.set("inside")
        try:
            for i in range(3):
                await asyncio.sleep(0)
                yield i
        finally:
            marker.reset(token)  # fails in another context

    async def sums() -> int:
        total = 0
        async for number in numbers():
            total += number
        return total

    result = on(asyncio.SelectorEventLoop(), Executor().run_async(fan(sums, count=20)))
    assert set(result.raise_for_failure().outputs.values()) == {3}


# ------------------------------------------------------------------------------------------------------------ failures


class Refused(Exception):
    pass


async def fails_at_once() -> None:
    raise Refused


async def fails_later() -> None:
    await asyncio.sleep(0)
    raise Refused


async def fails_while_cancelled() -> None:
    asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError as error:
        raise Refused from error


def fails_before_it_is_awaited() -> None:
    raise Refused


def test_failures_are_the_nodes_own_and_others_go_on(run: Callable[[Workflow], WorkflowResult]) -> None:
    async def stops() -> None:
        raise StopIteration  # a RuntimeError, as everywhere in coroutines

    async def passes() -> int:
        return 1

    wf = fan(fails_at_once, fails_later, stops, passes, count=100)

    async def main() -> WorkflowResult:
        return await Executor(on_error="continue").run_async(wf)

    result = on(asyncio.SelectorEventLoop(), main())
    for i in range(0, 100, 4):
        assert isinstance(result.errors[f"n{i}"], Refused)
        assert isinstance(result.errors[f"n{i + 1}"], Refused)
        assert isinstance(result.errors[f"n{i + 2}"], RuntimeError)
        assert result[f"n{i + 3}"] == 1
    assert run(fan(fails_at_once, count=1)).is_failed()


FAILING = [fails_at_once, fails_later, fails_while_cancelled]
if sys.version_info >= (3, 12):
    FAILING.append(inspect.markcoroutinefunction(fails_before_it_is_awaited))  # type: ignore[attr-defined, unused-ignore]


@pytest.mark.parametrize("way", ["execute", "run_async"])
@pytest.mark.parametrize("fails", FAILING)
def test_a_failed_async_node_does_not_keep_its_run(fails: Callable[[], Any], way: str) -> None:

    async def passes() -> None:
        pass

    async def main() -> tuple[Any, Any]:
        result = await Executor().run_async(fan(fails, count=1))
        return weakref.ref(result._run), result.errors["n0"]  # type: ignore[attr-defined, unused-ignore]

    gc.collect()
    gc.disable()
    try:
        if way == "run_async":
            run, error = on(asyncio.SelectorEventLoop(), main())
        else:
            result = execute(fan(fails, count=1))
            run, error = weakref.ref(result._run), result.errors["n0"]  # type: ignore[attr-defined, unused-ignore]
            del result
            execute(fan(passes, count=1))  # the loop has left the run behind
        assert isinstance(error, Refused)
        assert error.__traceback__ is not None
        assert error.__traceback__.tb_frame.f_code is fails.__code__
        assert run() is None
    finally:
        gc.enable()


def test_a_cancelled_nodes_traceback_shows_the_node_and_nothing_of_ours() -> None:
    async def cancels() -> None:
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
        await asyncio.get_running_loop().create_future()

    result = on(asyncio.SelectorEventLoop(), Executor().run_async(fan(cancels, count=1)))
    trace, names = result.errors["n0"].__traceback__, []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names == ["cancels"]


def test_a_node_sees_no_error_that_is_being_handled() -> None:
    async def looks() -> Any:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            seen = error.__context__
        await asyncio.sleep(0)
        return seen, sys.exc_info()

    assert on(asyncio.SelectorEventLoop(), Executor().run_async(fan(looks, count=1)))["n0"] == (None, (None,) * 3)


def test_all_tasks_cancelled_before_they_began_fail_all_nodes() -> None:
    began: list[int] = []

    async def never() -> None:
        began.append(1)

    async def main() -> Any:
        started = Executor(on_error="continue").start(fan(never, count=50))
        mine = asyncio.current_task()
        while not (others := asyncio.all_tasks() - {mine}):
            await asyncio.sleep(0)
        for task in others:
            task.cancel()
        return await started

    result = asyncio.run(main())
    assert set(result.states.values()) == {"failed"}
    assert not began


def test_a_run_cancelled_among_nodes_that_wait_cancels_them_and_begins_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_runners, "_TURN_NS", 0)
    began: list[int] = []
    ended: list[int] = []
    runs: list[Run] = []

    async def waits() -> None:
        began.append(1)
        if len(began) == 20:
            runs[0].cancel()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def main() -> WorkflowResult:
        runs.append(Executor().start(fan(waits, count=100)))
        result = await runs[0]
        while asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.sleep(0)
        return result

    result = asyncio.run(main())
    assert set(result.states.values()) == {"cancelled"}
    assert len(began) == len(ended) == 20


def test_an_exit_in_one_node_leaves_the_nodes_of_other_runs_to_the_private_loop() -> None:
    async def exits() -> None:
        raise KeyboardInterrupt("enough")

    async def waits() -> int:
        for _ in range(10):
            await asyncio.sleep(0)
        return 1

    executor = Executor()
    others = [executor.start(fan(waits, count=50)) for _ in range(5)]
    with pytest.raises(KeyboardInterrupt, match="enough"):
        executor.execute(fan(waits, exits, count=20))
    for it in others:
        assert sum(it.wait(PATIENCE).outputs.values()) == 50


# ------------------------------------------------------------------------------------------------ unusual awaitables


class Later:
    """Awaitable, but no coroutine."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, int]:
        yield from asyncio.sleep(0).__await__()
        return self.value


@pytest.mark.skipif(sys.version_info < (3, 12), reason="markcoroutinefunction is Python 3.12's")
def test_a_marked_function_may_return_whatever_can_be_awaited(run: Callable[[Workflow], WorkflowResult]) -> None:
    mark = inspect.markcoroutinefunction  # type: ignore[attr-defined, unused-ignore]

    def later() -> Any:
        marker.set("seen by none but me")
        return Later(7)

    def future() -> Any:
        made = asyncio.get_running_loop().create_future()
        made.set_result(8)
        return made

    def nothing() -> Any:
        return 9

    functions = [mark(it) for it in (later, future)]
    assert [run(fan(*functions, count=2))[f"n{i}"] for i in range(2)] == [7, 8]
    assert isinstance(run(fan(mark(nothing), count=1)).errors["n0"], TypeError)
