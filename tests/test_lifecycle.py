"""Beginning and end: import, shutdown, exit with work in flight, fork, and that nothing outlives its last user."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flows import PATIENCE, opened

import graphbit
from graphbit import (
    ConfigurationError,
    Executor,
    LlmConfig,
    Node,
    Run,
    RuntimeClosedError,
    Workflow,
    WorkflowResult,
    configure_runtime,
    runtime,
)
from graphbit.testing import FakeProvider

TIMES = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 5

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def workflow(*functions: Callable[..., Any], **named: Callable[..., Any]) -> Workflow:
    made = Workflow("w")
    made.add(*[Node.function(it) for it in functions], *[Node.function(it, name) for name, it in named.items()])
    return made


def long_wait() -> Workflow:
    made = Workflow("w")
    made.add(Node.delay("hours", 10_000))
    return made


async def awaited(it: Run) -> WorkflowResult:
    return await it


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30
    )


def prints(code: str, *options: str) -> str:
    """What a program prints that has to end well and say nothing on stderr."""
    done = python(code, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


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


@pytest.fixture
def afterwards() -> Iterator[None]:
    """Whatever the test did to the runtime: the next one finds it working."""
    yield
    assert Executor().execute(workflow(one=lambda: 1))["one"] == 1


pytestmark = pytest.mark.usefixtures("afterwards")


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


# --------------------------------------------------------------------------------------------------------------- fork

FORKING = """
import asyncio, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)     # of a fork with threads, since 3.12
import graphbit
from graphbit import Executor, Node, RuntimeClosedError, Workflow
from graphbit.testing import FakeProvider

async def double(start):
    await asyncio.sleep(0)
    return 2 * start

work = Workflow("work", inputs=["start"])
work.add(Node.function(double), Node.function(lambda double: double + 1, "plus"), Node.transform("text", "<{plus}>"))
work.add(Node.delay("pause", 0.001))
work.connect("plus", "pause")
long_wait = Workflow("long")
long_wait.add(Node.delay("hours", 10_000))

def works():
    executor = Executor()
    assert executor.execute(work, {"start": 5})["text"] == "<11>"
    assert executor.start(work, {"start": 6}).wait(20)["text"] == "<13>"
    assert asyncio.run(executor.run_async(work, {"start": 7}))["text"] == "<15>"

def in_child(function, code=0):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(8)                                 # a hang ends, and shows in the status
        function()
        sys.exit(code)                                  # through atexit, as programs end
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == code, status
"""


def forking(code: str) -> None:
    assert prints(FORKING + textwrap.dedent(code) + "print('over')\n").endswith("over\n")


@needs_fork
def test_a_child_runs_workflows_where_its_parent_has_not() -> None:
    forking("in_child(works)\nworks()\n")


@needs_fork
def test_a_child_runs_workflows_after_its_idle_parent_has() -> None:
    forking("""
        works()
        in_child(works)
        in_child(lambda: in_child(works, 4) or works(), 3)    # and grandchildren
        in_child(lambda: None)
        in_child(graphbit.shutdown)
        works()
    """)


@needs_fork
def test_a_child_runs_workflows_while_its_parent_is_busy() -> None:
    forking("""
        inside, gate = threading.Semaphore(0), threading.Event()
        def held():
            inside.release()
            assert gate.wait(20)
        async def held_too():
            inside.release()
            await asyncio.to_thread(gate.wait, 20)
        busy = Workflow("busy")
        busy.add(*[Node.function(held, f"n{i}") for i in range(3)], Node.function(held_too), Node.delay("d", 0.01))
        runs = [Executor().start(busy) for _ in range(3)]
        for _ in range(12):
            assert inside.acquire(timeout=20)
        stop = []
        def churn():
            while not stop:
                Executor().execute(work, {"start": 5})
        threads = [threading.Thread(target=churn) for _ in range(3)]
        for it in threads: it.start()
        for _ in range(5):
            in_child(works)
        in_child(lambda: None)
        stop.append(1)
        for it in threads: it.join()
        gate.set()
        for it in runs:
            assert it.wait(20).state() == "Completed", it.states()
    """)


@needs_fork
def test_a_child_runs_workflows_while_its_parent_has_requests_in_flight() -> None:
    forking("""
        from graphbit import LlmConfig
        provider = FakeProvider(default="fine").start()
        provider.hold()
        asking = Workflow("asking")
        asking.add(Node.agent("a", "hi"))
        run = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).start(asking)
        provider.wait_for_requests(1)
        in_child(works)
        def drops():
            global run
            del run
        in_child(drops)
        provider.release()
        assert run.wait(20)["a"] == "fine"
        assert provider.connections_closed == 0
        provider.stop()
    """)


@needs_fork
def test_a_fork_on_a_running_loop_leaves_both_working() -> None:
    forking("""
        async def main():
            executor = Executor()
            assert (await executor.run_async(work, {"start": 5}))["text"] == "<11>"
            child = os.fork()
            if child == 0:
                signal.alarm(8)
                asyncio._set_running_loop(None)
                asyncio.set_event_loop(None)
                works()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert (await executor.run_async(work, {"start": 5}))["text"] == "<11>"
        asyncio.run(main())
    """)


@needs_fork
def test_a_child_leaves_the_queues_of_its_parents_threads_alone() -> None:
    # Python drops the locals of other threads in the child before any hook of ours runs; the core's locks may be held.
    assert (
        prints("""
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from graphbit import Executor, Node, Workflow, _lane

        wf = Workflow("w")
        wf.add(Node.function(lambda: 1, "one"))
        used, over = threading.Barrier(5), threading.Event()

        def user():
            Executor().execute(wf)
            used.wait(20)
            over.wait(20)

        threads = [threading.Thread(target=user) for _ in range(4)]
        for it in threads:
            it.start()
        used.wait(20)

        class Library:
            def __getattr__(self, name):
                if os.getpid() != parent:
                    calls.append(name)
                return getattr(real, name)

        real, calls, parent = _lane.lib, [], os.getpid()
        _lane.lib = Library()
        pid = os.fork()
        if pid == 0:
            os._exit(len(calls))
        assert os.waitpid(pid, 0)[1] == 0
        over.set()
        for it in threads:
            it.join()
        print("alone")
    """)
        == "alone\n"
    )


@needs_fork
def test_forks_beside_busy_threads_give_sound_children() -> None:
    assert (
        prints("""
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from graphbit import Executor, Node, Workflow

        wf, stop = Workflow("w"), threading.Event()
        wf.add(Node.function(lambda: 1, "a"), Node.transform("b", "{a}"), Node.function(lambda b: b, "c"))

        def busy():
            while not stop.is_set():
                Executor().execute(wf).raise_for_failure()

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for it in threads:
            it.start()
        hung = 0
        for _ in range(50):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if Executor().execute(wf)["c"] == "1" else 1)
            killer = threading.Timer(5, os.kill, (pid, 9))
            killer.start()
            hung += os.waitpid(pid, 0)[1] != 0
            killer.cancel()
            if hung:
                break
        stop.set()
        for it in threads:
            it.join()
        print(hung)
    """)
        == "0\n"
    )


@needs_fork
def test_a_node_may_fork() -> None:
    forking("""
        def forks():
            child = os.fork()
            if child == 0:
                signal.alarm(8)
                try:
                    works()
                finally:
                    os._exit(0 if sys.exc_info()[0] is None else 1)
            return os.waitpid(child, 0)[1]
        wf = Workflow("w")
        wf.add(Node.function(forks), Node.function(lambda forks: forks, "after"))
        assert Executor().execute(wf)["after"] == 0
        assert Executor().start(wf).wait(20)["after"] == 0
    """)


@needs_fork
@pytest.mark.parametrize("way", ["run.wait()", "run.wait(5)", "asyncio.run(awaited(run))"])
def test_a_parents_run_cannot_be_waited_for_in_the_child(way: str) -> None:
    forking(f"""
        async def awaited(it):
            return await it
        run = Executor().start(long_wait)
        def waits():
            try:
                {way}
            except RuntimeClosedError:
                works()
            else:
                sys.exit(9)
        in_child(waits)
        assert not run.done()
        run.cancel()
        assert run.wait(20).state() == "Cancelled"
    """)


@needs_fork
def test_a_parents_runs_and_results_may_be_looked_at_in_the_child() -> None:
    forking("""
        run = Executor().start(long_wait)
        result = Executor().execute(work, {"start": 5})
        finished = Executor().start(work, {"start": 6})
        while not finished.done(): time.sleep(0.001)
        def looks():
            global run, result, finished
            assert result["text"] == "<11>"
            assert result.outputs["plus"] == 11
            assert finished.wait()["text"] == "<13>"
            assert not run.done()
            run.cancel()
            repr(run), run.states(), repr(result)
            del run, result, finished
            works()
        in_child(looks)
        assert not run.done()
        assert finished.wait()["text"] == "<13>"
        run.cancel()
        assert run.wait(20).state() == "Cancelled"
    """)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works(tmp_path: Path, method: str) -> None:
    if sys.platform == "win32" and method != "spawn":
        pytest.skip("Windows has spawn alone")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from graphbit import Executor, Node, Workflow

        def square(number):
            wf = Workflow("w", inputs=["number"])
            wf.add(Node.function(lambda number: number ** 2, "square"), Node.transform("text", "<{{square}}>"))
            wf.add(Node.delay("pause", 0.001))
            return Executor().start(wf, {{"number": number}}).wait(20)["text"]

        if __name__ == "__main__":
            assert square(3) == "<9>"
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                print(pool.map_async(square, range(6)).get(25))
                pool.close()
                pool.join()
            assert square(3) == "<9>"
        """)
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(Path(graphbit.__file__).parents[1])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['<0>', '<1>', '<4>', '<9>', '<16>', '<25>']\n"


# -------------------------------------------------------------------------------------------- nothing outlives its user


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
