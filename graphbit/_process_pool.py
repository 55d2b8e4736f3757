"""The worker processes behind _process.py, and the tasks that wait for one.

The processes are pebble's, one `ProcessPool` of one worker for each. A pool of many would do until something goes wrong:
its workers share a pipe and two locks, so that a process which dies while it reads or answers leaves a lock held and half
a message behind for the others; one that dies idle breaks the pool for whatever was being handed out; one that ends with
exit code 0 is replaced without a word, and its task waits forever; a task that was cancelled while it lay in the pipe is
begun, then killed. With a pipe to itself a process can hurt nobody else. Which leaves three rules:

- A task is put into the pipe of an idle worker that is alive, never behind another task. Until then it waits here, in the
  order of arrival, and a cancelled one is never begun.
- Whatever goes wrong in a pool ends it, and a new one takes its place when there is work for it. For this `_Context` gives
  a pool one process and refuses the second; pebble then calls the pool broken, which ends its task if nothing else has.
- A worker says hello before it is given work. One that dies before that could not import the main module, which is another
  error than dying of a task.

Processes are spawned. A fork would copy the locks of native threads without the threads; a fork server imports the main
module once for all (from Python 3.14 on it really does) and forks from there, which is a fork with threads where that
module starts some. The 20 ms it would save are paid once for each worker.

A slot's life: `_start` makes it, `_began` hears its hello, then `_hand_out` and `_ended` in turn, until `_lose` takes it out
of the books. Only who took it out settles its task, under no lock; `_retire` sees to the process.

Any thread may enter. The lock is held for looking and deciding; processes are started and stopped outside of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess

from graphbit._process_worker import described, run
from graphbit.errors import ConfigurationError, NodeError, RuntimeClosedError, WorkerDiedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any, TypeAlias

    from pebble import ProcessPool

    from graphbit._process import Task

    HandedOut: TypeAlias = "list[tuple[_Slot, Task, Future[Any]]]"

_CLOSE_SECONDS = 5.0

GUARD = (
    "a script that runs workflows with process=True must do so under `if __name__ == '__main__':`, "
    "because every worker process imports it"
)


class _Process(SpawnProcess):
    """A worker process. A forked child's copy of it does nothing: multiprocessing and pebble end what they take for children
    when an interpreter exits, and there it is the parent's."""

    def start(self) -> None:
        self._owner = os.getpid()
        super().start()

    def _is_ours(self) -> bool:
        return self._owner == os.getpid()

    def is_alive(self) -> bool:
        return self._is_ours() and super().is_alive()

    def terminate(self) -> None:
        if self._is_ours():
            super().terminate()

    def kill(self) -> None:
        if self._is_ours():
            super().kill()

    def join(self, timeout: float | None = None) -> None:
        if self._is_ours():
            super().join(timeout)


class _Context(SpawnContext):
    """Where a pool gets its process from. It gets one."""

    def __init__(self) -> None:
        self.process: _Process | None = None

    def Process(self, *args: Any, **kwargs: Any) -> _Process:  # type: ignore[override]
        if self.process is not None:
            raise OSError("the pool's process has ended, and the pool with it")
        self.process = _Process(*args, **kwargs)
        return self.process


class _Slot:
    """A worker process, and the pool around it."""

    __slots__ = ("context", "pool", "task")

    def __init__(self, kind: type[ProcessPool]) -> None:
        self.task: Task | None = None
        self.context = _Context()
        self.pool = kind(max_workers=1, context=self.context)

    def is_alive(self) -> bool:
        process = self.context.process
        return process is not None and process.is_alive() and self.pool.active

    def exit_code(self) -> int | None:
        return self.context.process.exitcode if self.context.process is not None else None

    def stop(self) -> None:
        """Ends the process, without a question where it is at work: inside a C function it would not hear one. Does not wait."""
        self.pool.stop()  # type: ignore[no-untyped-call]
        process = self.context.process
        if process is not None and process.pid is not None:
            if self.task is not None:
                process.kill()
            else:
                process.terminate()

    def join(self) -> None:
        self.pool.join()


_asked_while_imported = False
"""In a worker process: the main module, while it was imported, wanted worker processes of its own."""


def _hello() -> bool:
    return _asked_while_imported


class Workers:
    """The slots, and the tasks that wait for one.

    Raises:
        ImportError: pebble is not installed.
    """

    def __init__(self, limit: int) -> None:
        from pebble import ProcessPool

        self._kind = ProcessPool
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._slots: set[_Slot] = set()
        self._idle: list[_Slot] = []
        self._lost: list[_Slot] = []
        """Taken out of the books by `_hand_out`, to be retired."""
        self._total = 0
        """Slots, and those that are being made."""
        self._starting = 0
        """Those of them that have not said hello."""
        self._retiring: set[threading.Thread] = set()
        self._retiring_lock = threading.Lock()
        """For `_retiring`, whose threads have all started; may be taken under the other lock, not the other way round."""
        self._closed = False
        self._refusal: str | None = None

    # ------------------------------------------------------------------------------------------------ tasks come and go

    def submit(self, task: Task) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeClosedError("the graphbit runtime was shut down while a worker process was needed")
            if self._refusal is not None:
                raise ConfigurationError(f"node {task.node!r}: {self._refusal}")
            self._waiting.append(task)
            handed_out = self._hand_out()
            start = self._wants_more()
        self._watch(handed_out)
        if start:
            self._start()

    def give_up(self, task: Task, error: BaseException) -> bool:
        """Takes a task from wherever it is and settles it with `error`. False: it is over, or about to be."""
        with self._lock:
            slot = task.slot
            if slot is not None:
                if slot.task is not task or not self._lose(slot):
                    return False
            elif task in self._waiting:
                self._waiting.remove(task)
            else:
                return False
        if slot is not None:
            self._retire(slot)
        task.settle(error=error)
        return True

    def _hand_out(self) -> HandedOut:
        """Under the lock: waiting tasks to idle workers, the one that rested least first: its memory is warm."""
        handed_out: HandedOut = []
        while self._waiting and self._idle:
            slot = self._idle.pop()
            try:
                if not slot.is_alive():
                    raise RuntimeError
                future = slot.pool.schedule(run, args=(self._waiting[0].payload,))
            except RuntimeError:  # it died while it had nothing to do, and took nothing along
                self._lose(slot)
                self._lost.append(slot)
                continue
            slot.task = task = self._waiting.popleft()
            task.slot = slot
            handed_out.append((slot, task, future))
        return handed_out

    def _watch(self, handed_out: HandedOut) -> None:
        """What `_hand_out` leaves to be done without the lock: the callback of a future that is done already runs at once."""
        for slot, task, future in handed_out:
            future.add_done_callback(partial(self._ended, slot, task))
        while self._lost:
            try:
                slot = self._lost.pop()
            except IndexError:  # another thread took it
                return
            self._retire(slot)

    def _ended(self, slot: _Slot, task: Task, future: Future[Any]) -> None:
        """On a thread of pebble's: the worker has answered, or is no more."""
        died = future.exception() is not None
        with self._lock:
            if slot not in self._slots:
                return  # whoever took it out settles the task
            handed_out: HandedOut = []
            slot.task = None
            if died:
                self._lose(slot)
            else:
                self._idle.append(slot)
                handed_out = self._hand_out()  # first of all: the worker need not wait for what follows here
        self._watch(handed_out)
        if died:
            self._retire(slot)
            task.settle(error=_death(task.node, slot.exit_code(), began=True))
        else:
            task.settle(future.result())

    # ------------------------------------------------------------------------------------------------ slots come and go

    def _wants_more(self) -> bool:
        """Under the lock: whether another slot is needed. If so it is in the books already, and the caller has to `_start` it."""
        if self._closed or self._starting >= len(self._waiting) or self._total >= self._limit:
            return False
        self._starting += 1
        self._total += 1
        return True

    def _lose(self, slot: _Slot) -> bool:
        """Under the lock: takes a slot out of the books. False: somebody else has."""
        if slot not in self._slots:
            return False
        self._slots.discard(slot)
        self._total -= 1
        return True

    def _start(self) -> None:
        while True:
            try:
                slot = _Slot(self._kind)
                hello = slot.pool.schedule(_hello)
            except (OSError, RuntimeError) as error:
                with self._lock:
                    self._starting -= 1
                    self._total -= 1
                self._could_not_start(*_why_not(error))
                with self._lock:
                    if not self._wants_more():  # for the next in the row
                        return
                continue
            break
        with self._lock:
            closed = self._closed
            if closed:
                self._starting -= 1
                self._total -= 1
            else:
                self._slots.add(slot)
        if closed:
            self._retire(slot)
        else:
            hello.add_done_callback(partial(self._began, slot))

    def _began(self, slot: _Slot, hello: Future[Any]) -> None:
        """On a thread of pebble's: a new worker said hello, or died over the main module."""
        died = hello.exception()
        fine = died is None and not hello.result()
        with self._lock:
            self._starting -= 1
            if slot not in self._slots:
                return  # closed meanwhile
            handed_out: HandedOut = []
            if fine:
                self._idle.append(slot)
                handed_out = self._hand_out()
            else:
                self._lose(slot)
        self._watch(handed_out)
        if fine:
            return
        if died is None:
            self._could_not_start(ConfigurationError(GUARD), None, for_all=True)
        else:
            self._could_not_start(_death("", slot.exit_code(), began=False), died)
        self._retire(slot)

    def _could_not_start(self, error: Exception, cause: BaseException | None, for_all: bool = False) -> None:
        """The task that has waited longest fails, or all do where it would be the same with each."""
        with self._lock:
            if for_all:
                self._refusal = str(error)
            count = len(self._waiting) if for_all else min(1, len(self._waiting))
            failed = [self._waiting.popleft() for _ in range(count)]
        for task in failed:
            its = type(error)(f"node {task.node!r}: {error}")
            its.__dict__.update(error.__dict__, node=task.node)
            its.__cause__ = cause
            task.settle(error=its)

    def _retire(self, slot: _Slot) -> None:
        """Stops a slot that is in the books no more, has another started if one is wanted, clears up. Does not wait."""
        slot.stop()
        thread = threading.Thread(target=self._clear_up, args=(slot,), name="graphbit-process", daemon=True)
        with self._retiring_lock:
            try:
                thread.start()
                self._retiring.add(thread)
                return
            except RuntimeError:
                pass
        # The system has no more threads, or the interpreter is ending. The process is stopped; nobody clears up after it.
        self._replace()

    def _replace(self) -> None:
        with self._lock:
            start = self._wants_more()
        if start:
            self._start()

    def _clear_up(self, slot: _Slot) -> None:
        try:
            self._replace()
            slot.join()
        finally:
            with self._retiring_lock:
                self._retiring.discard(threading.current_thread())

    def close(self) -> None:
        """Stops everything; what was on its way ends with RuntimeClosedError. No process is left when it returns."""
        with self._lock:
            self._closed = True
            slots = list(self._slots)
            tasks = [*self._waiting, *(it.task for it in slots if it.task is not None)]
            self._slots.clear()
            self._idle.clear()
            self._waiting.clear()
        for slot in slots:
            slot.stop()
        for task in tasks:
            task.settle(
                error=RuntimeClosedError(f"node {task.node!r}: the graphbit runtime was shut down before it ended")
            )
        for slot in slots:
            slot.join()
        with self._retiring_lock:
            retiring = list(self._retiring)
        for thread in retiring:
            thread.join(_CLOSE_SECONDS)


def _why_not(error: Exception) -> tuple[Exception, BaseException | None, bool]:
    """Why no process could be started, what caused it, whether every task will meet the same."""
    global _asked_while_imported
    if "bootstrapping phase" in str(error):  # says multiprocessing in a child that is importing its main module
        _asked_while_imported = True
        return ConfigurationError(GUARD), error, True
    return NodeError(f"no worker process could be started: {described(error.__cause__ or error)}"), error, False


def _death(node: str, exit_code: int | None, began: bool) -> WorkerDiedError:
    how = "ended" if exit_code is None else f"ended with exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        import signal

        try:
            how = f"was killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            how = f"was killed by signal {-exit_code}"
        if exit_code == -9:
            how += " (is the system short of memory?)"
    if began:
        message = f"node {node!r}: its worker process {how} while it ran the function"
    else:
        message = f"its worker process {how} while it imported the main module (stderr may say why); {GUARD}"
    error = WorkerDiedError(message)
    error.__dict__.update(node=node, exit_code=exit_code)
    return error
