"""Beginning and end: import, exit with work in flight, shutdown."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from flows import PATIENCE, linux_only, opened, prints, python, workflow

import graphbit
from graphbit import (
    ConfigurationError,
    Executor,
    LlmConfig,
    Node,
    RuntimeClosedError,
    Workflow,
    configure_runtime,
    runtime,
)
from graphbit.testing import FakeProvider

pytestmark = pytest.mark.usefixtures("afterwards")


TIMES = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 5


def long_wait() -> Workflow:
    made = Workflow("w")
    made.add(Node.delay("hours", 10_000))
    return made


# ------------------------------------------------------------------------------------------------------------- import


@linux_only
def test_importing_starts_no_thread_and_opens_nothing() -> None:
    assert (
        prints("""
        import os

        def seen():
            return len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd"))

        before = seen()
        import graphbit
        assert seen() == before, seen()
        for name in graphbit.__all__:
            getattr(graphbit, name)
        wf = graphbit.Workflow("w")
        wf.add(graphbit.Node.function(lambda: 1, "a"), graphbit.Node.transform("b", "{a}"))
        wf.validate()
        graphbit.Executor(graphbit.LlmConfig.openai_compatible("http://127.0.0.1:1/v1", "m"))
        assert graphbit.get_system_info()["runtime_initialized"] is False
        assert seen() == before, seen()
        graphbit.shutdown()
        assert seen() == before, seen()
        print("nothing")
    """)
        == "nothing\n"
    )


def test_importing_does_not_import_asyncio_or_logging() -> None:
    assert (
        prints("""
        import sys
        import graphbit
        graphbit.Executor, graphbit.Workflow, graphbit.Node, graphbit.LlmConfig
        print([it for it in ("asyncio", "logging") if it in sys.modules])
    """)
        == "[]\n"
    )


# --------------------------------------------------------------------------------------------------------------- exit

PRELUDE = """
import asyncio, threading, time
from graphbit import Executor, LlmConfig, Node, RuntimeClosedError, Workflow
from graphbit.testing import FakeProvider

wf, inside = Workflow("w"), threading.Semaphore(0)

def entered(count):
    for _ in range(count):
        assert inside.acquire(timeout=20)
"""

IN_FLIGHT = {
    "functions that block": """
        def blocks():
            inside.release()
            time.sleep(1000)
        wf.add(*[Node.function(blocks, f"n{i}") for i in range(4)])
        run = Executor().start(wf)
        entered(4)
    """,
    "requests": """
        provider = FakeProvider().start()
        provider.hold()
        wf.add(*[Node.agent(f"n{i}", "hi") for i in range(4)])
        run = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).start(wf)
        provider.wait_for_requests(4)
    """,
    "delays": """
        wf.add(*[Node.delay(f"n{i}", 1000) for i in range(4)])
        run = Executor().start(wf)
    """,
    "async functions": """
        async def sleeps():
            inside.release()
            await asyncio.sleep(1000)
        wf.add(*[Node.function(sleeps, f"n{i}") for i in range(4)])
        run = Executor().start(wf)
        entered(4)
    """,
    "async functions of a loop that is gone": """
        async def sleeps():
            inside.release()
            await asyncio.sleep(1000)
        wf.add(*[Node.function(sleeps, f"n{i}") for i in range(4)])
        async def main():
            global run
            run = Executor().start(wf)
            while not inside.acquire(blocking=False):
                await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "a thread that waits": """
        wf.add(Node.function(inside.release, "a"), Node.delay("b", 1000))
        def waits():
            try:
                Executor().execute(wf)
            except RuntimeClosedError:
                pass
        threading.Thread(target=waits, daemon=True).start()
        entered(1)
    """,
    "runs that nobody holds": """
        wf.add(Node.function(inside.release, "a"), Node.delay("b", 1000))
        for _ in range(20):
            Executor().start(wf)
        entered(20)
    """,
}


@pytest.mark.parametrize("kind", IN_FLIGHT)
def test_a_program_may_end_with_work_in_flight(kind: str) -> None:
    code = PRELUDE + textwrap.dedent(IN_FLIGHT[kind])
    for _ in range(TIMES):
        done = python(code)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    done = python(code + "raise SystemExit(3)\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_shutdown_before_the_end_is_fine_with_every_kind_in_flight() -> None:
    for kind, code in IN_FLIGHT.items():
        done = python(PRELUDE + textwrap.dedent(code) + "import graphbit\ngraphbit.shutdown()\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), kind


def test_the_cleanup_of_an_async_node_runs_when_the_program_ends() -> None:
    code = PRELUDE + textwrap.dedent("""
        async def sleeps():
            try:
                inside.release()
                await asyncio.sleep(1000)
            finally:
                print("cleaned up", flush=True)
        wf.add(Node.function(sleeps))
        run = Executor().start(wf)
        entered(1)
    """)
    assert prints(code) == "cleaned up\n"


def test_a_cleanup_that_awaits_several_times_runs_to_its_end_when_the_program_ends() -> None:
    code = PRELUDE + textwrap.dedent("""
        done = []
        async def held():
            inside.release()
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(5):
                    await asyncio.sleep(0)
                done.append(1)
                if len(done) == 20:
                    print("all of them", flush=True)
        wf.add(*[Node.function(held, f"held{i}") for i in range(20)])
        run = Executor().start(wf)
        entered(20)
    """)
    assert prints(code) == "all of them\n"


def test_a_workflow_may_run_at_exit_before_the_runtime_stops() -> None:
    assert (
        prints("""
        import graphbit, atexit
        wf = graphbit.Workflow("w")
        wf.add(graphbit.Node.function(lambda: "late", "a"))
        graphbit.Executor().execute(wf)
        atexit.register(lambda: print(graphbit.Executor().execute(wf)["a"]))
    """)
        == "late\n"
    )


# ----------------------------------------------------------------------------------------------------------- shutdown


def test_after_a_shutdown_the_next_use_starts_afresh() -> None:
    async def later() -> int:
        await asyncio.sleep(0)
        return 2

    graphbit.shutdown()
    executor, wf = Executor(), workflow(later, now=lambda: 1)
    wf.add(Node.transform("text", "{now}{later}"))
    for _ in range(10):
        assert executor.execute(wf)["text"] == "12"
        assert asyncio.run(executor.run_async(wf))["text"] == "12"
        assert executor.start(wf).wait(PATIENCE)["text"] == "12"
        assert runtime.stats()["runs_started"] == 3
        graphbit.shutdown()
        assert runtime.stats() == {}


def test_shutdown_where_nothing_runs_and_twice_does_nothing() -> None:
    graphbit.shutdown()
    graphbit.shutdown()
    assert graphbit.get_system_info()["runtime_initialized"] is False


@linux_only
def test_native_threads_are_gone_when_shutdown_returns(provider: FakeProvider) -> None:
    def native() -> set[int]:
        """Threads that Python does not know."""
        known = {it.native_id for it in threading.enumerate()}
        return {int(it) for it in os.listdir("/proc/self/task")} - known

    graphbit.shutdown()
    wf = Workflow("w")
    wf.add(Node.agent("a", "hi"), Node.delay("b", 0.001))
    Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).execute(wf).raise_for_failure()
    assert len(native()) >= 2  # the engine's, the timekeeper's
    graphbit.shutdown()
    assert native() == set()


def test_a_waiter_in_another_thread_is_told_of_the_shutdown() -> None:
    started = Executor().start(long_wait())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(started.wait)
        graphbit.shutdown()
        with pytest.raises(RuntimeClosedError, match="shut down"):
            waiting.result(PATIENCE)
    with pytest.raises(RuntimeClosedError, match="shut down"):
        started.wait(PATIENCE)
    assert started.done()


def test_a_thread_in_a_node_is_told_of_the_shutdown_when_it_comes_out() -> None:
    inside, gate = threading.Event(), threading.Event()

    def held() -> None:
        inside.set()
        opened(gate)

    with ThreadPoolExecutor(1) as pool:
        executing = pool.submit(Executor().execute, workflow(held, after=lambda held: 1))
        opened(inside)
        graphbit.shutdown()
        gate.set()
        with pytest.raises(RuntimeClosedError, match="shut down"):
            executing.result(PATIENCE)


def test_a_node_may_shut_the_runtime_down() -> None:
    with pytest.raises(RuntimeClosedError):
        Executor().execute(workflow(graphbit.shutdown))
    started = Executor().start(workflow(graphbit.shutdown))
    with pytest.raises(RuntimeClosedError):
        started.wait(PATIENCE)


def test_an_async_node_may_shut_the_runtime_down() -> None:
    async def ends() -> None:
        graphbit.shutdown()

    with pytest.raises(RuntimeClosedError):
        Executor().execute(workflow(ends))
    with pytest.raises(RuntimeClosedError):
        asyncio.run(Executor().run_async(workflow(ends)))


def test_many_threads_may_shut_down_at_once() -> None:
    line = threading.Barrier(8)

    def one(_: int) -> None:
        line.wait(PATIENCE)
        graphbit.shutdown()

    Executor().start(long_wait())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert runtime.stats() == {}


@pytest.mark.parametrize("way", ["execute", "start"])
def test_many_threads_may_use_the_runtime_while_another_shuts_it_down(way: str) -> None:
    # In a process of its own: what goes wrong here hangs, or breaks the heap.
    code = """
        import asyncio, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        import graphbit
        from graphbit import Executor, Node, RuntimeClosedError, Workflow

        async def two(one):
            await asyncio.sleep(0)
            return one + 1

        wf = Workflow("w")
        wf.add(Node.function(lambda: 1, "one"), Node.function(two), Node.transform("text", "{two}"))
        wf.add(Node.delay("pause", 0.0005), Node.function(lambda text: text + "!", "end"))
        executor, line = Executor(), threading.Barrier(6)

        def use():
            line.wait(20)
            for _ in range(60):
                try:
                    result = executor.execute(wf) if sys.argv[1] == "execute" else executor.start(wf).wait(20)
                    assert result["end"] == "2!"
                except RuntimeClosedError:
                    pass

        def end():
            line.wait(20)
            for _ in range(40):
                graphbit.shutdown()

        with ThreadPoolExecutor(6) as pool:
            for it in [pool.submit(end), *[pool.submit(use) for _ in range(5)]]:
                it.result(20)
        assert executor.execute(wf)["end"] == "2!"
        graphbit.shutdown()
        for it in [it for it in threading.enumerate() if it.name.startswith("graphbit-")]:
            it.join(5)
            assert not it.is_alive(), it
        print("all over")
    """
    for _ in range(TIMES):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), way], capture_output=True, text=True, timeout=20
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "all over\n", "")


def test_results_stay_readable_after_a_shutdown() -> None:
    def fails() -> None:
        raise ValueError("no")

    wf = workflow(fails, a=lambda: {"x": [1]})
    wf.add(Node.transform("b", "<{a.x}>"))
    executor = Executor(on_error="continue")
    started = executor.start(wf)
    result = started.wait(PATIENCE)
    half = executor.start(long_wait())
    graphbit.shutdown()
    assert result["a"] == {"x": [1]}
    assert result["b"] == "<[1]>"
    assert result.states == {"fails": "failed", "a": "succeeded", "b": "succeeded"}
    assert isinstance(result.errors["fails"], ValueError)
    assert "Failed" in repr(result)
    assert started.wait() is result
    assert started.states()["b"] == "succeeded"
    assert half.done()
    assert half.states() == {"hours": "cancelled"}
    half.cancel()
    executor.execute(workflow(one=lambda: 1))  # and under the next runtime
    assert result["b"] == "<[1]>"


def test_the_runtime_cannot_be_configured_once_it_has_started() -> None:
    graphbit.init()
    with pytest.raises(ConfigurationError, match="before the first use"):
        configure_runtime(worker_threads=2)
    graphbit.shutdown()
    settings = runtime._queue.settings()
    configure_runtime(worker_threads=2)
    try:
        assert Executor().execute(workflow(one=lambda: 1))["one"] == 1
        assert graphbit.get_system_info()["runtime_max_worker_threads"] == 2
    finally:
        graphbit.shutdown()
        runtime._queue.configure(settings)
