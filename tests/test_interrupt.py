"""Ctrl-C: it reaches whoever waits, wherever the program is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from graphbit.testing import FakeProvider

# The child says "ready" when what is to be interrupted is under way and its main thread sleeps; it says "caught" when the
# KeyboardInterrupt has come out, and ends when it is told to.
CHILD = """
import asyncio, os, sys, threading, time
from graphbit import Executor, LlmConfig, Node, Workflow
from graphbit.runtime import stats

def workflow(*nodes):
    made = Workflow("w")
    made.add(*nodes)
    return made

def asleep():
    try:
        with open(f"/proc/self/task/{threading.main_thread().native_id}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "S"
    except FileNotFoundError:
        return True

def announce(condition=lambda: True):
    def look():
        seen = 0
        while seen < 20:  # it may have waited for the GIL only
            seen = seen + 1 if condition() and asleep() else 0
            threading.Event().wait(0.001)
        print("ready", flush=True)
    threading.Thread(target=look, daemon=True).start()

def catches(function):
    try:
        function()
    except KeyboardInterrupt:
        while stats()["runs_active"] or stats()["calls_active"]:
            threading.Event().wait(0.001)
        print("caught", flush=True)
        sys.stdin.readline()
        raise
    print("not interrupted", flush=True)

executor = Executor()
inside = threading.Event()
def sleeps():
    inside.set()
    time.sleep(600)
"""


@contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs CHILD and `code`, at the point where it has said "ready"."""
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", CHILD + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadman = threading.Timer(30, process.send_signal, [signal.SIGABRT])  # faulthandler tells where it hangs
        deadman.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "ready\n", (line, process.communicate()[1])
            yield process
        finally:
            deadman.cancel()
            process.kill()


def interrupt(process: subprocess.Popen[str], before_end: Callable[[], Any] = lambda: None) -> None:
    """Ctrl-C: the child catches it, has nothing left under way, and ends by it."""
    assert process.stdout is not None
    assert process.stdin is not None
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    line = process.stdout.readline()
    before_end()
    if line != "caught\n":
        process.kill()
        pytest.fail(f"{line!r} instead of 'caught'; {process.communicate()[1]}")
    out, err = process.communicate("go\n", timeout=30)
    assert time.monotonic() - sent < 5
    assert out == ""
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT, err


needs_signals = pytest.mark.skipif(os.name != "posix", reason="a child cannot be sent a Ctrl-C of its own")


@needs_signals
@pytest.mark.parametrize(
    "code",
    [
        "announce(inside.is_set); catches(lambda: executor.execute(workflow(Node.function(sleeps))))",
        """
wf = workflow(Node.function(sleeps), *[Node.function(lambda: 1, f"n{i}") for i in range(50)], Node.delay("hour", 3600))
announce(inside.is_set); catches(lambda: executor.execute(wf))
""",
        """
def nested(): executor.execute(workflow(Node.function(sleeps)))
announce(inside.is_set); catches(lambda: executor.execute(workflow(Node.function(nested))))
""",
    ],
    ids=["alone", "beside others", "nested"],
)
def test_ctrl_c_interrupts_a_node_that_blocks_in_the_main_thread(code: str) -> None:
    with child(code) as process:
        interrupt(process)


@needs_signals
def test_ctrl_c_interrupts_the_wait_for_a_node_that_blocks_in_another_thread() -> None:
    code = """
run = executor.start(workflow(Node.function(sleeps)))
inside.wait()
announce(); catches(run.wait)
"""
    with child(code) as process:
        interrupt(process)


@needs_signals
@pytest.mark.parametrize(
    "wait",
    ["executor.execute(wf)", "executor.start(wf).wait()", "executor.start(wf).wait(600)"],
    ids=["execute", "wait", "wait with a timeout"],
)
def test_ctrl_c_interrupts_delays(wait: str) -> None:
    code = f"""
wf = workflow(Node.delay("hour", 3600), Node.delay("day", 86400))
announce(lambda: stats().get("runs_active") == 1); catches(lambda: {wait})
"""
    with child(code) as process:
        interrupt(process)


AGENT = """
config = LlmConfig.openai_compatible(sys.argv[1], "fake-model")
wf = workflow(Node.agent("agent", "Hi.", llm_config=config))
announce(lambda: stats().get("runs_active") == 1)
"""


@needs_signals
@pytest.mark.parametrize(
    "wait",
    ["executor.execute(wf)", "executor.start(wf).wait()", "asyncio.run(executor.run_async(wf))"],
    ids=["execute", "wait", "run_async"],
)
def test_ctrl_c_interrupts_the_wait_for_a_reply_and_closes_the_connection(provider: FakeProvider, wait: str) -> None:
    provider.hold()
    with child(AGENT + f"catches(lambda: {wait})", provider.base_url) as process:
        provider.wait_for_requests(1)
        interrupt(process, before_end=lambda: provider.wait_for_disconnects(1))


@needs_signals
@pytest.mark.parametrize("node", ['Node.delay("hour", 3600)', "Node.function(awaits)", "Node.function(sleeps)"])
def test_ctrl_c_interrupts_an_event_loop_that_awaits_a_run(node: str) -> None:
    code = f"""
async def awaits(): await asyncio.sleep(600)
wf = workflow({node})
announce(lambda: stats().get("runs_active") == 1); catches(lambda: asyncio.run(executor.run_async(wf)))
"""
    with child(code) as process:
        interrupt(process)


@needs_signals
def test_ctrl_c_interrupts_an_async_node_on_the_private_loop() -> None:
    code = """
async def awaits(): await asyncio.sleep(600)
announce(lambda: stats().get("runs_active") == 1); catches(lambda: executor.execute(workflow(Node.function(awaits))))
"""
    with child(code) as process:
        interrupt(process)


@needs_signals
def test_a_program_goes_on_after_ctrl_c_and_can_be_interrupted_again() -> None:
    code = """
for i in range(5):
    announce(lambda: stats().get("runs_active") == 1)
    try:
        executor.execute(workflow(Node.delay("hour", 3600)))
    except KeyboardInterrupt:
        assert executor.execute(workflow(Node.function(lambda: 1, "a")))["a"] == 1
        while stats()["runs_active"]:
            threading.Event().wait(0.001)
print("done", flush=True)
"""
    with child(code) as process:
        assert process.stdout is not None
        for i in range(5):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == ("ready\n" if i < 4 else "done\n")
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


@needs_signals
def test_a_signal_handler_may_cancel_the_run_that_is_waited_for() -> None:
    code = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: run.cancel())
run = executor.start(workflow(Node.delay("hour", 3600)))
announce()
print(run.wait().state(), flush=True)
"""
    with child(code) as process:
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "Cancelled\n", "")


@needs_signals
def test_a_signal_whose_handler_returns_disturbs_nothing() -> None:
    code = """
import signal
got = []
signal.signal(signal.SIGUSR1, lambda *_: (got.append(1), gate.set()))
gate = threading.Event()
def waits(): return gate.wait(600)
run = executor.start(workflow(Node.function(waits)))
announce()
assert run.wait()["waits"] is True
assert got
print("done", flush=True)
"""
    with child(code) as process:
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "done\n", "")
