"""Fork: the child has a runtime of its own, and leaves its parent's alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from flows import needs_fork, prints

import graphbit

pytestmark = pytest.mark.usefixtures("afterwards")


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
        bad = 0
        for _ in range(50):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if Executor().execute(wf)["c"] == "1" else 1)
            killer = threading.Timer(5, os.kill, (pid, 9))
            killer.start()
            bad = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            killer.cancel()
            if bad:
                break
        stop.set()
        for it in threads:
            it.join()
        print(bad)
    """)
        == "0\n"
    )


@needs_fork
@pytest.mark.parametrize("what", ["runtime", "worker processes"])
def test_a_fork_while_another_thread_makes_the_first(what: str) -> None:
    forking(f"""
        from graphbit import _process, _queue
        module, name = (_queue, "Core") if {what!r} == "runtime" else (_process, "Workers")
        making, goes_on, real = threading.Event(), threading.Event(), getattr(module, name)
        def slow(*arguments, **named):
            made = real(*arguments, **named)
            making.set()
            goes_on.wait(20)
            return made
        def uses():
            works() if {what!r} == "runtime" else _process._workers()
        setattr(module, name, slow)
        thread = threading.Thread(target=uses)
        thread.start()
        assert making.wait(20)
        setattr(module, name, real)
        in_child(uses)
        goes_on.set()
        thread.join()
        works()
    """)


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
