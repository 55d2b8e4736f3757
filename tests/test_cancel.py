"""Runs that end before they are over: cancelled, timed out, interrupted with Ctrl-C, or left by an exit inside a node."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import graphbit
from graphbit import Executor, LlmConfig, Node, NodeNotRunError, Run, RunCancelledError, RunTimeoutError, Workflow
from graphbit.testing import FakeProvider

PATIENCE = 20.0

# Before Python 3.11 an interrupted asyncio.run left through another door; plain scripts have always died by their signal.
INTERRUPTED = {-signal.SIGINT, 130}


def workflow(*nodes: Node | Callable[..., Any], edges: str = "") -> Workflow:
    made = Workflow("w")
    made.add(*[it if isinstance(it, Node) else Node.function(it) for it in nodes])
    for pair in edges.split():
        made.connect(*pair.split(">"))
    return made


def hour(name: str = "hour") -> Node:
    return Node.delay(name, 3600)


def opened(event: threading.Event) -> None:
    if not event.wait(PATIENCE):
        raise TimeoutError("the event was never set")


class Held:
    """A function that waits until it is let go."""

    __name__ = "held"

    def __init__(self) -> None:
        self.inside, self.gate, self.left = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.inside.set()
        opened(self.gate)
        self.left.set()
        return "late"


# ------------------------------------------------------------------------------------------------------------ run.cancel()


def test_a_run_can_be_cancelled_from_another_thread() -> None:
    run = Executor().start(workflow(hour()))
    thread = threading.Thread(target=run.cancel)
    thread.start()
    result = run.wait(PATIENCE)
    thread.join()
    assert result.state() == "Cancelled"
    assert not result.is_success()
    assert result.states == {"hour": "cancelled"}


def test_execute_returns_when_its_run_is_cancelled_from_elsewhere() -> None:
    executor = Executor()
    runs: list[Run] = []

    def inner() -> str:  # the run around is waited for in this very thread
        run = executor.start(workflow(hour()))
        runs.append(run)
        threading.Thread(target=run.cancel).start()
        return run.wait(PATIENCE).state()

    assert executor.execute(workflow(inner))["inner"] == "Cancelled"


def test_a_node_may_cancel_its_own_run() -> None:
    runs: list[Run] = []
    started = threading.Event()

    def cancels() -> str:
        opened(started)
        runs[0].cancel()
        return "dropped"

    run = Executor().start(workflow(cancels, Node.function(lambda cancels: 1, "after"), hour()))
    runs.append(run)
    started.set()
    result = run.wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert result.states == {"cancels": "cancelled", "after": "cancelled", "hour": "cancelled"}
    with pytest.raises(NodeNotRunError, match="cancelled"):
        result["after"]


def test_cancel_ends_a_run_while_its_node_still_runs_and_drops_what_that_returns() -> None:
    held = Held()
    executor = Executor()
    run = executor.start(workflow(Node.function(held), Node.function(lambda held: 1, "after")))
    opened(held.inside)
    run.cancel()
    # `wait` in a thread that does not run the node: it returns although the node does not.
    result = run.wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert not held.left.is_set()
    held.gate.set()
    opened(held.left)
    assert executor.execute(workflow(lambda_node()))["one"] == 1  # the thread is of use again
    assert result.states == {"held": "cancelled", "after": "cancelled"}
    assert result.get("held") is None


def lambda_node() -> Node:
    return Node.function(lambda: 1, "one")


def test_cancelling_twice_is_cancelling_once() -> None:
    run = Executor().start(workflow(hour()))
    run.cancel()
    run.cancel()
    assert run.wait(PATIENCE).state() == "Cancelled"
    run.cancel()
    assert run.wait().state() == "Cancelled"


def test_cancelling_a_run_that_is_over_changes_nothing() -> None:
    run = Executor().start(workflow(lambda_node()))
    assert run.wait(PATIENCE)["one"] == 1
    run.cancel()
    assert run.done()
    assert run.wait().is_success()


def test_many_threads_may_cancel_at_once_while_the_run_ends() -> None:
    executor = Executor()
    wf = workflow(*[Node.function(lambda i=i: i, f"n{i}") for i in range(20)])
    for _ in range(50):
        run = executor.start(wf)
        line = threading.Barrier(4)

        def cancel(run: Run = run, line: threading.Barrier = line) -> None:
            line.wait(PATIENCE)
            run.cancel()

        threads = [threading.Thread(target=cancel) for _ in range(3)]
        for it in threads:
            it.start()
        line.wait(PATIENCE)
        result = run.wait(PATIENCE)
        for it in threads:
            it.join()
        assert set(result.states.values()) <= {"succeeded", "cancelled"}
        assert (result.state() == "Completed") == (set(result.states.values()) == {"succeeded"})
        for name, state in result.states.items():
            if state == "succeeded":
                assert result[name] == int(name[1:])


def test_what_was_finished_before_the_cancel_stays_readable() -> None:
    done = threading.Event()
    wf = workflow(
        Node.function(lambda: [1, 2], "first"),
        Node.transform("second", "{first}"),
        Node.function(lambda second: done.set(), "third"),
        hour(),
        edges="third>hour",
    )
    run = Executor().start(wf)
    opened(done)
    while run.states()["hour"] != "running":
        threading.Event().wait(0)
    run.cancel()
    result = run.wait(PATIENCE)
    assert result["first"] == [1, 2]
    assert result["second"] == "[1,2]"
    assert result.states["hour"] == "cancelled"
    with pytest.raises(RunCancelledError) as caught:
        result.raise_for_failure()
    assert caught.value.result is result


def test_delays_end_at_once() -> None:
    run = Executor().start(workflow(*[hour(f"d{i}") for i in range(200)]))
    run.cancel()
    result = run.wait(PATIENCE)
    assert set(result.states.values()) == {"cancelled"}
    assert result.duration < 3600


def test_a_thousand_runs_can_be_cancelled() -> None:
    executor, wf = Executor(), workflow(hour(), Node.function(lambda: 1, "after"), edges="hour>after")
    runs = [executor.start(wf) for _ in range(1000)]
    for run in runs:
        run.cancel()
    assert {run.wait(PATIENCE).state() for run in runs} == {"Cancelled"}
    assert executor.get_stats()["failed_executions"] == 1000


@pytest.mark.parametrize("kind", ["http", "agent"])
def test_requests_on_their_way_have_their_connections_closed_at_once(provider: FakeProvider, kind: str) -> None:
    provider.route("GET", "/page", text="hello")
    provider.hold()
    if kind == "http":
        nodes = [Node.http(f"n{i}", "GET", provider.url + "/page") for i in range(3)]
    else:
        nodes = [Node.agent(f"n{i}", "Hello.") for i in range(3)]
    executor = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model"))
    run = executor.start(workflow(*nodes))
    provider.wait_for_requests(3)
    run.cancel()
    provider.wait_for_disconnects(3)
    result = run.wait(PATIENCE)
    assert set(result.states.values()) == {"cancelled"}
    provider.release()
    assert executor.execute(workflow(Node.http("again", "GET", provider.url + "/page")))["again"] == "hello"


def test_a_backoff_ends_at_once(provider: FakeProvider) -> None:
    provider.route("GET", "/page", text="hello")
    provider.fail(429, retry_after=30, path="/page")
    run = Executor().start(workflow(Node.http("page", "GET", provider.url + "/page", max_retries=3)))
    provider.wait_for_requests(1)
    provider.wait_until_idle()
    run.cancel()
    assert run.wait(PATIENCE).states == {"page": "cancelled"}
    assert len(provider.requests) == 1


# --------------------------------------------------------------------------------------------------------------- timeouts


def test_a_runs_timeout_carries_what_was_finished() -> None:
    wf = workflow(Node.function(lambda: 42, "quick"), Node.transform("text", "{quick}!"), hour())
    with pytest.raises(RunTimeoutError, match=r"'w' was not over within 0\.05 s") as caught:
        Executor(timeout_seconds=0.05).execute(wf)
    result = caught.value.result
    assert result["quick"] == 42
    assert result["text"] == "42!"
    assert result.state() == "TimedOut"
    assert result.states["hour"] == "cancelled"
    assert isinstance(caught.value, TimeoutError)


def test_a_runs_timeout_does_not_wait_for_a_node_that_another_thread_runs() -> None:
    held = Held()
    run = Executor(timeout_seconds=0.05).start(workflow(Node.function(held)))
    opened(held.inside)
    try:
        with pytest.raises(RunTimeoutError):
            run.wait(PATIENCE)
        assert not held.left.is_set()
    finally:
        held.gate.set()
        opened(held.left)


def test_a_runs_timeout_closes_connections(provider: FakeProvider) -> None:
    provider.route("GET", "/page", text="hello")
    provider.hold()
    with pytest.raises(RunTimeoutError):
        Executor(timeout_seconds=0.1).execute(workflow(Node.http("page", "GET", provider.url + "/page")))
    if provider.connections_opened:  # it may have been over before the connection stood
        provider.wait_for_disconnects(1)


def test_a_timed_out_run_says_so_to_everybody_who_asks() -> None:
    run = Executor(timeout_seconds=0.02).start(workflow(hour()))
    for _ in range(3):
        with pytest.raises(RunTimeoutError):
            run.wait(PATIENCE)


def test_a_timeout_of_wait_lets_the_run_go_on() -> None:
    held = Held()
    run = Executor().start(workflow(Node.function(held), Node.function(lambda held: held + "r", "after")))
    opened(held.inside)
    for patience in (0, 0.01):
        with pytest.raises(TimeoutError, match="it goes on"):
            run.wait(timeout=patience)
    assert not run.done()
    held.gate.set()
    assert run.wait(PATIENCE)["after"] == "later"


def test_a_run_that_nobody_waits_for_any_more_goes_on_by_itself() -> None:
    held, over = Held(), threading.Event()
    run = Executor().start(workflow(Node.function(held), Node.function(lambda held: over.set(), "after")))
    opened(held.inside)
    with pytest.raises(TimeoutError):
        run.wait(timeout=0)
    held.gate.set()
    opened(over)
    assert run.wait(PATIENCE).is_success()


# ----------------------------------------------------------------------------------------------------- exits inside nodes


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("way", ["execute", "start"])
@pytest.mark.parametrize("place", ["alone", "first", "last", "chain"])
def test_an_exit_inside_a_node_is_no_failure_but_comes_out_of_the_wait(
    kind: type[BaseException], way: str, place: str
) -> None:
    def exits() -> None:
        raise kind("enough")

    others = [Node.function(lambda i=i: i, f"n{i}") for i in range(10)]
    nodes = {
        "alone": [Node.function(exits)],
        "first": [Node.function(exits), *others, hour()],
        "last": [*others, hour(), Node.function(exits)],
        "chain": [*others, Node.function(lambda n9: exits(), "exits"), Node.function(lambda exits: 1, "after"), hour()],
    }[place]
    executor = Executor()
    run = executor.start(workflow(*nodes)) if way == "start" else None
    with pytest.raises(kind, match="enough"):
        if run is None:
            executor.execute(workflow(*nodes))
        else:
            run.wait(PATIENCE)
    if run is not None:
        assert run.done()
        assert run.states()["exits"] == "cancelled"
    assert executor.execute(workflow(lambda_node()))["one"] == 1


def test_an_exit_on_a_callback_thread_reaches_the_one_who_waits() -> None:
    over = threading.Event()
    names: list[str] = []

    def exits() -> None:
        names.append(threading.current_thread().name)
        over.set()
        raise SystemExit(3)

    run = Executor().start(workflow(exits))
    opened(over)
    with pytest.raises(SystemExit) as caught:
        run.wait(PATIENCE)
    assert caught.value.code == 3
    assert names == ["graphbit-callback"]
    with pytest.raises(SystemExit):  # whoever asks is told
        run.wait(PATIENCE)


def test_callback_threads_survive_an_exit_inside_a_node() -> None:
    executor = Executor()

    def exits() -> None:
        raise SystemExit

    for _ in range(20):
        run = executor.start(workflow(exits))
        with pytest.raises(SystemExit):
            run.wait(PATIENCE)
    done = threading.Event()
    run = executor.start(workflow(Node.function(done.set, "set")))
    opened(done)
    assert run.wait(PATIENCE).is_success()


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

PRELUDE = """
import asyncio, sys, threading, time
import graphbit
from graphbit import Executor, Node, Workflow
def ready(): print("ready", flush=True)
def hang(): threading.Event().wait(60)
wf = Workflow("w")
executor = Executor()
"""

INTERRUPTIBLE = {
    "a node in the calling thread": """
wf.add(Node.function(lambda: (ready(), hang()), "n"))
executor.execute(wf)
""",
    "a node in the calling thread that sleeps": """
wf.add(Node.function(lambda: (ready(), time.sleep(60)), "n"))
executor.execute(wf)
""",
    "nodes in many threads": """
meeting = threading.Barrier(6, action=ready)
wf.add(*[Node.function(lambda: (meeting.wait(), hang()), f"n{i}") for i in range(6)])
executor.execute(wf)
""",
    "a node in another thread": """
wf.add(Node.function(lambda: (ready(), hang()), "n"))
executor.start(wf).wait()
""",
    "delays": """
wf.add(Node.function(ready, "n"), Node.delay("d", 60), Node.delay("e", 60))
wf.connect("n", "d")
executor.execute(wf)
""",
    "a run that others started": """
wf.add(Node.delay("d", 60))
run = executor.start(wf)
threading.Thread(target=lambda: (ready(), hang()), daemon=True).start()
run.wait()
""",
    "an async node": """
async def n():
    ready()
    await asyncio.Event().wait()
wf.add(Node.function(n))
executor.execute(wf)
""",
    "asyncio": """
async def n():
    ready()
    await asyncio.Event().wait()
wf.add(Node.function(n), Node.delay("d", 60))
asyncio.run(executor.run_async(wf))
""",
    "asyncio with a plain node": """
wf.add(Node.function(lambda: (ready(), hang()), "n"))
asyncio.run(executor.run_async(wf))
""",
    "a nested run": """
inner = Workflow("inner")
inner.add(Node.function(lambda: (ready(), hang()), "n"))
wf.add(Node.function(lambda: executor.execute(inner), "outer"), Node.delay("d", 60))
executor.execute(wf)
""",
}


def interrupt(child: subprocess.Popen[str]) -> tuple[float, str]:
    """Ctrl-C; returns the seconds until the end, and what it said."""
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    try:
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
    return time.monotonic() - began, said


def spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # our own Ctrl-C is ours
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("what", INTERRUPTIBLE)
def test_ctrl_c_ends_a_program_that_waits_for(what: str) -> None:
    child = spawn(INTERRUPTIBLE[what])
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    seconds, said = interrupt(child)
    assert child.returncode in INTERRUPTED
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert seconds < 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("way", ["execute", "asyncio"])
def test_ctrl_c_ends_a_program_that_waits_for_a_server(provider: FakeProvider, way: str) -> None:
    provider.route("GET", "/page", text="hello")
    provider.hold()
    call = "executor.execute(wf)" if way == "execute" else "asyncio.run(executor.run_async(wf))"
    child = spawn(f"wf.add(Node.http('page', 'GET', sys.argv[1]))\n{call}\n", provider.url + "/page")
    provider.wait_for_requests(1)
    seconds, said = interrupt(child)
    assert child.returncode in INTERRUPTED
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert seconds < 2
    provider.wait_for_disconnects(1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_program_may_go_on_after_ctrl_c() -> None:
    child = spawn("""
wf.add(Node.function(lambda: (ready(), hang()), "n"), Node.delay("d", 60))
try:
    executor.execute(wf)
except KeyboardInterrupt:
    pass
fine = Workflow("fine")
fine.add(Node.function(lambda: 1, "one"), Node.transform("two", "{one}"))
assert executor.execute(fine)["two"] == "1"
from graphbit.runtime import stats
stats = stats()
assert stats["runs_active"] == 0, stats
print("went on")
""")
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    out, said = child.communicate(timeout=30)
    assert (child.returncode, out, said) == (0, "went on\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_handler_that_returns_does_not_disturb_a_run() -> None:
    child = spawn("""
import os, signal
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
def disturb():
    for _ in range(50):
        os.kill(os.getpid(), signal.SIGUSR1)
gate = threading.Event()
wf.add(Node.function(lambda: gate.wait(20), "held"), Node.function(lambda held: 5, "five"), Node.delay("d", 0.05))
run = executor.start(wf)
thread = threading.Thread(target=lambda: (disturb(), gate.set()))
thread.start()
assert run.wait()["five"] == 5
thread.join()
assert handled
print("undisturbed")
""")
    out, said = child.communicate(timeout=30)
    assert (child.returncode, out, said) == (0, "undisturbed\n", "")


def test_shutdown_ends_a_run_in_flight_for_good() -> None:
    run = Executor().start(workflow(hour()))
    graphbit.shutdown()
    with pytest.raises(graphbit.RuntimeClosedError):
        run.wait(PATIENCE)
    run.cancel()  # nothing to do, and no error
    assert run.done()
