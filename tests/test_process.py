"""Functions in worker processes: what comes back, what cannot be sent, and that whoever dies harms nobody else."""

from __future__ import annotations

import functools
import gc
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import process_work as work
import pytest
from flows import PATIENCE, is_gone, until, wait_until_gone

from graphbit import ConfigurationError, Executor, Node, NodeError, OutputError, RuntimeClosedError, Workflow, _process
from graphbit._process import call, prepare, start
from graphbit.errors import NodeTimeoutError, WorkerDiedError

pytest.importorskip("pebble")


@pytest.fixture(scope="module", autouse=True)
def _stop() -> Iterator[None]:
    yield
    _process.shutdown()


@contextmanager
def workers(count: int) -> Iterator[None]:
    """`count` fresh ones."""
    _process.shutdown()
    _process.configure(count)
    try:
        yield
    finally:
        _process.shutdown()
        _process._limit = 0


class Pipes:
    """Named pipes between a test and its workers: reading blocks until somebody writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def new(self, name: str) -> str:
        path = self.directory / name
        os.mkfifo(path)
        return str(path)


@pytest.fixture
def pipes(tmp_path: Path) -> Pipes:
    return Pipes(tmp_path)


def begun(fifo: str) -> int:
    """Waits until a worker has begun; its process id."""
    return int(Path(fifo).read_text())


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


# --------------------------------------------------------------------------------------------------- what comes back


def test_a_function_runs_in_another_process_and_its_value_comes_back() -> None:
    assert call(work.add, (1,), {"b": 2}) == 3
    assert call(work.process_id) != os.getpid()


def test_an_idle_worker_is_used_again() -> None:
    with workers(1):
        assert len({call(work.process_id) for _ in range(5)}) == 1


def test_no_worker_starts_before_one_is_needed_nor_beside_an_idle_one() -> None:
    with workers(4):
        call(work.add, (1,))
        call(work.add, (1,))
        assert _process._current is not None and len(_process._current._slots) == 1


def test_workers_run_at_the_same_time(pipes: Pipes) -> None:
    with workers(2):
        fifos, until = [pipes.new("a"), pipes.new("b")], [pipes.new("c"), pipes.new("d")]
        tasks = [start(work.begin_and_wait, pair) for pair in zip(fifos, until, strict=True)]
        pids = [begun(fifo) for fifo in fifos]  # the first is still waiting when the second begins
        for path in until:
            Path(path).write_text("go")
        assert [task.result(PATIENCE) for task in tasks] == pids
        assert len(set(pids)) == 2


def test_tasks_begin_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    with workers(1):
        path = str(tmp_path / "order")
        tasks = [start(work.note, (path, letter)) for letter in "abcdefgh"]
        for task in tasks:
            task.result(PATIENCE)
        assert Path(path).read_text() == "abcdefgh"


def test_a_worker_does_without_the_native_core() -> None:
    loaded = call(work.modules)
    assert "graphbit._process_worker" in loaded
    assert not {"graphbit._ffi", "graphbit._queue", "_cffi_backend"} & loaded


@pytest.mark.parametrize("size", [0, 60_000, 70_000, 5_000_000])
def test_values_of_any_size_go_there_and_back(size: int) -> None:
    assert call(work.identity, (b"y" * size,)) == b"y" * size
    assert call(work.text, (size,)) == "x" * size


def test_a_result_can_be_asked_for_twice_and_waited_for_in_vain(pipes: Pipes) -> None:
    fifo, until = pipes.new("a"), pipes.new("b")
    task = start(work.begin_and_wait, (fifo, until), node="slow")
    pid = begun(fifo)
    with pytest.raises(NodeTimeoutError, match="node 'slow' did not end within 0.001 s"):
        task.result(0.001)
    assert not task.wait(0)
    Path(until).write_text("go")
    assert (task.result(PATIENCE), task.result(PATIENCE)) == (pid, pid)
    assert task.wait(0)


# ---------------------------------------------------------------------------------------------------- its exceptions


def test_an_exception_comes_back_as_itself_with_its_attributes_and_its_traceback_as_a_note() -> None:
    with pytest.raises(work.PlainError, match="^broken\n") as caught:
        call(work.raise_plain, ("broken",))
    assert caught.value.detail == {"at": 3}  # type: ignore[attr-defined]
    assert caught.value.__cause__ is None
    assert "raised in a worker process:\nTraceback" in notes(caught.value)
    assert "in raise_plain" in notes(caught.value)
    assert "_process_worker.py" not in notes(caught.value)


def test_an_exception_keeps_its_cause_and_its_context() -> None:
    with pytest.raises(work.PlainError) as caught:
        call(work.raise_from, ("broken",))
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__cause__.args == ("missing",)
    assert caught.value.__suppress_context__
    with pytest.raises(work.PlainError) as caught:
        call(work.raise_while_handling, ("broken",))
    assert caught.value.__cause__ is None
    assert isinstance(caught.value.__context__, KeyError)


def test_exceptions_that_caused_each_other_come_back_as_they_were() -> None:
    with pytest.raises(work.PlainError, match="^first\n") as caught:
        call(work.raise_in_a_circle)
    assert str(caught.value.__cause__) == "second"
    assert caught.value.__cause__ is not None and caught.value.__cause__.__cause__ is caught.value


def test_an_exception_comes_back_whatever_its_constructor_takes() -> None:
    with pytest.raises(work.TellingError, match="^it failed with 7\n") as telling:
        call(work.raise_telling)
    assert telling.value.code == 7
    with pytest.raises(work.WrappingError, match="^<it>\n"):
        call(work.raise_wrapping)
    with pytest.raises(work.HoldingError, match="^it\n") as holding:
        call(work.raise_holding)
    assert "lock" in str(holding.value.lock)
    with pytest.raises(FileNotFoundError) as os_error:
        call(work.raise_os_error)
    assert os_error.value.filename == "/no/such/file"


def test_an_exception_of_a_class_that_cannot_be_sent_is_told_in_words() -> None:
    with pytest.raises(NodeError, match="node 'n': its function raised LocalError: nobody knows it") as caught:
        call(work.raise_local, node="n")
    assert "in raise_local" in notes(caught.value)


def test_a_function_that_exits_raises_what_it_would_have_raised_here() -> None:
    with workers(1):
        pid = call(work.process_id)
        with pytest.raises(SystemExit) as caught:
            call(sys.exit, (3,))
        assert caught.value.code == 3
        assert call(work.process_id) == pid


# ---------------------------------------------------------------------------------------------- what cannot be sent


def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(OutputError, match="node 'n': argument 'b' \\(a lock\\) cannot be sent") as caught:
        call(work.add, (1, lock), node="n")
    assert caught.value.node == "n"
    with pytest.raises(OutputError, match="argument 'b' \\(a lock\\).*pass what it is made from"):
        call(work.add, (1,), {"b": lock}, node="n")
    with pytest.raises(OutputError, match="argument '#1'"):
        call(print, (lock,), node="n")


def test_a_result_that_cannot_be_pickled_is_an_error_of_its_own() -> None:
    with pytest.raises(OutputError, match="node 'n': its result \\(a generator\\) cannot be sent back") as caught:
        call(work.generator, node="n")
    assert caught.value.node == "n"


def test_what_cannot_be_rebuilt_on_the_other_side_fails_its_task_and_no_worker() -> None:
    with workers(1):
        pid = call(work.process_id)
        with pytest.raises(
            OutputError, match="node 'n'.*cannot be rebuilt in a worker process: PlainError: not at home"
        ):
            call(work.identity, (work.OnlyHere(os.getpid()),), node="n")
        with pytest.raises(OutputError, match="node 'n': its result cannot be rebuilt here: PlainError: not at home"):
            call(work.only_there, node="n")
        assert call(work.process_id) == pid


@pytest.mark.parametrize(
    "function",
    [
        work.add,
        math.factorial,
        dict,
        work.Adder,
        work.Adder.plain,
        work.Adder.made,
        work.Adder(1).add,
        work.Adder(1),
        functools.partial(work.add, 1),
        work.decorated,
    ],
    ids=repr,
)
def test_functions_that_can_be_sent_pass(function: Callable[..., Any]) -> None:
    prepare(function)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (work.nameless, "process_work.<lambda> cannot be sent.*is a lambda.*define it with `def`"),
        (work.nested(), "process_work.nested.<locals>.inner .*inside another function; move it to the top level"),
        (functools.partial(work.nested(), 1), "inside another function"),
        (work.original_of_replaced, "is not what process_work.replaced stands for now.*a later definition"),
        (work.waiting, "process_work.waiting is async.*make it a plain function"),
        (
            work.Adder(1, threading.Lock()).add,
            "cannot pickle '_thread.lock' object.*give it what it needs as arguments",
        ),
        (functools.partial(work.add, threading.Lock()), "cannot pickle '_thread.lock' object"),
    ],
    ids=["lambda", "nested", "partial of nested", "replaced", "async", "method of a holder", "partial with a lock"],
)
def test_functions_that_cannot_be_sent_are_refused_with_a_reason(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        prepare(function)


def test_without_pebble_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(1):
        monkeypatch.setitem(sys.modules, "pebble", None)
        with pytest.raises(ConfigurationError, match="pip install graphbit\\[process\\]"):
            call(work.add, (1,))


# --------------------------------------------------------------------------------------------------- workers that die


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (1, "ended with exit code 1"),
        (0, "ended with exit code 0"),
    ],
    ids=["SIGKILL", "SIGSEGV", "exit 1", "exit 0"],
)
def test_a_worker_that_dies_fails_its_own_task_only(how: int, told: str, pipes: Pipes) -> None:
    with workers(2):
        fifo, until = pipes.new("a"), pipes.new("b")
        other = start(work.begin_and_wait, (fifo, until))
        pid = begun(fifo)
        dying = start(work.die, (how,), node="n")
        behind = [start(work.add, (i, 1)) for i in range(5)]
        with pytest.raises(WorkerDiedError, match=f"node 'n': its worker process {told}") as caught:
            dying.result(PATIENCE)
        assert (caught.value.exit_code, caught.value.node) == (how, "n")
        assert [task.result(PATIENCE) for task in behind] == [1, 2, 3, 4, 5]
        Path(until).write_text("go")
        assert other.result(PATIENCE) == pid


def test_an_idle_worker_that_was_killed_is_replaced_and_harms_nobody() -> None:
    with workers(1):
        pid = call(work.process_id)
        for _ in range(3):
            os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid)
            before, pid = pid, call(work.process_id)
            assert pid != before


def test_many_tasks_of_every_kind_each_end_as_they_should() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with workers(3):
        tasks: list[tuple[str, int, _process.Task]] = []
        for i in range(120):
            kind = dice.choices(["value", "raise", "die", "cancel"], [80, 10, 5, 5])[0]
            function: Callable[..., Any] = {"raise": work.raise_plain, "die": work.die}.get(kind, work.add)
            argument: Any = {"raise": str(i), "die": dice.choice([0, 1, -9])}.get(kind, i)
            task = start(function, (argument,), node=str(i))
            if kind == "cancel" and not task.cancel():
                kind = "value"
            tasks.append((kind, i, task))
        for kind, i, task in tasks:
            try:
                assert (task.result(PATIENCE), kind) == (i, "value")
                found = "value"
            except work.PlainError as error:
                found = f"raise {error}"
            except WorkerDiedError as error:
                found = f"die {error.node}"
            except CancelledError:
                found = "cancel"
            assert found == (f"{kind} {i}" if kind in ("raise", "die") else kind)
        pool = _process._current
        assert pool is not None
        until(lambda: not pool._starting)  # one that was started for a task which another has done since
        assert not pool._waiting
        assert pool._total == len(pool._slots) <= 3


# ------------------------------------------------------------------------------------------------------- being stopped


def test_cancelling_a_running_task_stops_its_worker_and_another_takes_its_place(pipes: Pipes) -> None:
    with workers(1):
        fifo = pipes.new("a")
        task = start(work.begin_and_hang, (fifo,), node="n")
        pid = begun(fifo)
        behind = start(work.process_id)
        slot = task.slot
        assert task.cancel()
        with pytest.raises(CancelledError, match="node 'n' was cancelled"):
            task.result(PATIENCE)
        assert behind.result(PATIENCE) != pid
        wait_until_gone(pid)
        assert slot is not None
        until(lambda: slot.exit_code() is not None)
        assert slot.exit_code() == -signal.SIGKILL  # not asked: inside a long C function it would not hear
        assert not task.cancel()


def test_a_task_that_was_cancelled_while_it_waited_is_never_begun(pipes: Pipes, tmp_path: Path) -> None:
    with workers(1):
        fifo, until = pipes.new("a"), pipes.new("b")
        running = start(work.begin_and_wait, (fifo, until))
        begun(fifo)
        waiting = [start(work.touch, (str(tmp_path / str(i)),)) for i in range(4)]
        assert waiting[0].cancel() and waiting[2].cancel()
        Path(until).write_text("go")
        running.result(PATIENCE)
        for task in (waiting[1], waiting[3]):
            task.result(PATIENCE)
        assert [(tmp_path / str(i)).exists() for i in range(4)] == [False, True, False, True]


def test_a_task_that_is_over_cannot_be_cancelled() -> None:
    task = start(work.add, (1, 2))
    assert task.result(PATIENCE) == 3
    assert not task.cancel()
    assert task.result() == 3


def test_cancelling_from_another_thread_wakes_the_one_that_waits(pipes: Pipes) -> None:
    fifo = pipes.new("a")
    task = start(work.begin_and_hang, (fifo,))
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            task.result()
        except CancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    begun(fifo)
    task.cancel()
    thread.join(PATIENCE)
    assert len(raised) == 1


def test_a_call_that_takes_too_long_is_stopped(pipes: Pipes) -> None:
    with workers(1):
        fifo, pids = pipes.new("a"), []
        reader = threading.Thread(target=lambda: pids.append(begun(fifo)))
        reader.start()
        call(work.add, (1,))  # the worker is there
        with pytest.raises(NodeTimeoutError, match="node 'n' did not end within 0.5 s"):
            call(work.begin_and_hang, (fifo,), node="n", timeout=0.5)
        reader.join(PATIENCE)
        wait_until_gone(pids[0])
        assert call(work.add, (1,)) == 1


def test_shutdown_ends_what_runs_and_what_waits_and_leaves_no_process(pipes: Pipes) -> None:
    with workers(1):
        fifo = pipes.new("a")
        running = start(work.begin_and_hang, (fifo,), node="running")
        pid = begun(fifo)
        waiting = start(work.add, (1,), node="waiting")
        _process.shutdown()
        assert is_gone(pid)
        for task in (running, waiting):
            with pytest.raises(RuntimeClosedError, match=f"node '{task.node}': the graphbit runtime was shut down"):
                task.result(PATIENCE)
        assert call(work.process_id) != pid  # the next use starts afresh


def test_threads_and_descriptors_are_back_where_they_were_after_shutdown() -> None:
    def counts() -> tuple[int, int]:
        gc.collect()  # pebble's objects refer to each other in circles
        threads = sum("loop" in it.name or it.name == "graphbit-process" for it in threading.enumerate())
        return threads, len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    with workers(2):  # whatever starts once and stays, has
        call(work.add, (1,))
    before = counts()
    with workers(2):
        for how in (0, -9, 1):
            with pytest.raises(WorkerDiedError):
                call(work.die, (how,))
        call(work.add, (1,))
    assert counts() == before


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2", 100_000])
def test_a_number_of_workers_that_cannot_be_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="process_workers must be between 1 and"):
        _process.configure(wrong)


def test_the_number_of_workers_is_settled_once_they_have_started() -> None:
    with workers(2):
        call(work.add, (1,))
        with pytest.raises(ConfigurationError, match="worker processes have started; .* after graphbit.shutdown"):
            _process.configure(3)
        assert _process.worker_count_max() == 2


# ---------------------------------------------------------------------------------------------------- the public door


def flow(*nodes: Node) -> Workflow:
    made = Workflow("w")
    made.add(*nodes)
    return made


def process_node(function: Callable[..., Any], name: str, **options: Any) -> Node:
    made: Node = Node.function(function, name, process=True, **options)
    return made


def test_a_node_runs_its_function_in_a_worker_process_and_passes_values_on() -> None:
    result = Executor().execute(
        flow(
            process_node(work.process_id, "pid"),
            process_node(work.add, "sum", bind={"a": "pid"}),
            Node.function(lambda sum: sum - os.getpid(), "difference"),
        )
    )
    assert result["pid"] != os.getpid()
    assert result["sum"] == result["pid"]
    assert result["difference"] == result["pid"] - os.getpid()


def test_a_node_whose_function_cannot_be_sent_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="n.*is a lambda"):
        process_node(lambda: 1, "n")


def test_a_node_whose_worker_died_fails_alone() -> None:
    executor = Executor(on_error="continue")
    result = executor.execute(
        flow(process_node(functools.partial(work.die, -9), "dies"), process_node(work.process_id, "fine"))
    )
    assert result.states == {"dies": "failed", "fine": "succeeded"}
    with pytest.raises(WorkerDiedError, match="node 'dies': its worker process was killed by SIGKILL"):
        result.raise_for_failure()


def test_a_failed_nodes_own_exception_comes_back_from_its_worker() -> None:
    result = Executor().execute(flow(process_node(functools.partial(work.raise_from, "broken"), "n")))
    with pytest.raises(work.PlainError, match="broken") as caught:
        result.raise_for_failure()
    assert isinstance(caught.value.__cause__, KeyError)
    assert "raised by node 'n'" in notes(caught.value)


def test_cancelling_a_run_stops_its_worker(pipes: Pipes) -> None:
    fifo = pipes.new("a")
    run = Executor().start(flow(process_node(functools.partial(work.begin_and_hang, fifo), "n")))
    pid = begun(fifo)
    run.cancel()
    wait_until_gone(pid)
    assert run.wait().state() == "Cancelled"


def test_a_node_that_takes_too_long_is_stopped_and_its_worker_with_it(pipes: Pipes) -> None:
    fifo = pipes.new("a")
    run = Executor().start(flow(process_node(functools.partial(work.begin_and_hang, fifo), "n", timeout=1.0)))
    pid = begun(fifo)
    with pytest.raises(TimeoutError):
        run.wait().raise_for_failure()
    wait_until_gone(pid)
