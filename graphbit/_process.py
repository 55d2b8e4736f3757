"""Python functions in worker processes: `Node.function(fn, process=True)`.

    prepare(fn)                                    when the node is made: can it be sent at all?
    call(fn, args, kwargs, node="n", timeout=5)    on a callback thread: its value, or its own exception
    start(fn, args, kwargs, node="n")              the same in two steps: task.result(), and task.cancel() from any thread

Three files: this one is the door, _process_pool.py has the processes, _process_worker.py is what runs in them.
Any thread may enter.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from types import FunctionType, MethodType

from graphbit._process_pool import Workers
from graphbit._process_worker import ERROR, UNREADABLE, UNSENDABLE, VALUE, described, unpack_error
from graphbit._signature import is_async, parameters
from graphbit.errors import ConfigurationError, NodeError, NodeTimeoutError, OutputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from graphbit._process_pool import _Slot

_WORKERS_MAX = 1024


# ---------------------------------------------------------------------------------------------- what can be transferred


def prepare(fn: Callable[..., Any]) -> None:
    """Checks, when a node is made, that a worker process can be given `fn`.

    Raises:
        ConfigurationError: it cannot, or pebble is not installed.
    """
    from importlib.util import find_spec

    if "pebble" not in sys.modules and find_spec("pebble") is None:
        _without_pebble(None)
    if is_async(fn):
        raise ConfigurationError(
            f"{_called(fn)} is async, and process=True runs plain functions; make it a plain function, "
            "or leave process=True out: an async function that waits needs no process"
        )
    _check_main()
    _check_by_name(fn)
    found = _MainFinder()
    try:
        found.dump(fn)
    except Exception as error:
        raise ConfigurationError(
            f"{_called(fn)} cannot be sent to a worker process: {described(error)}; use a function that is defined with "
            "`def` at the top level of a module, and give it what it needs as arguments"
        ) from error
    if found.main is not None and not _main_can_be_imported():
        raise ConfigurationError(
            f"{_called(found.main)} is defined in a program that worker processes cannot import (an interactive session, "
            "`python -c`, a notebook, a package's __main__); move it into a module and import it from there"
        )


def _check_by_name(fn: Any) -> None:
    """The ways in which a function is not what its name stands for, each with its remedy."""
    while True:
        if fn.__class__.__name__ == "partial" and hasattr(fn, "func"):
            fn = fn.func
        elif fn.__class__ is MethodType:
            fn = fn.__func__
        else:
            break
    if fn.__class__ is not FunctionType:
        return
    if fn.__name__ == "<lambda>":
        why = "is a lambda, which has no name to import it by; define it with `def` at the top level of a module"
    elif "<locals>" in fn.__qualname__:
        why = "is defined inside another function; move it to the top level of its module"
    else:
        found: Any = sys.modules.get(fn.__module__)
        for name in fn.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is fn or (found.__class__ is MethodType and found.__func__ is fn):
            return
        why = f"is not what {fn.__module__}.{fn.__qualname__} stands for now"
        why += (
            "; give it a name in its module that stays"
            if found is None
            else f" ({found!r}, put there by a decorator or a later definition); give the decorated function itself a name"
        )
    raise ConfigurationError(f"{_called(fn)} cannot be sent to a worker process: it {why}")


class _MainFinder(pickle.Pickler):
    """Pickles into nowhere; `main` is a function or class of the main module that it met, if it met one."""

    def __init__(self) -> None:
        super().__init__(_Nowhere(), pickle.HIGHEST_PROTOCOL)
        self.main: Any = None

    def persistent_id(self, it: Any) -> None:
        if isinstance(it, (type, FunctionType)) and it.__module__ == "__main__":
            self.main = it


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


def _main_can_be_imported() -> bool:
    """What multiprocessing.spawn will find of the main module."""
    main = sys.modules.get("__main__")
    spec_name = getattr(getattr(main, "__spec__", None), "name", None)
    if spec_name is not None:
        return spec_name != "__main__" and not spec_name.endswith(".__main__")
    return getattr(main, "__file__", None) is not None


def _check_main() -> None:
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and path is not None and not os.path.exists(path):
        raise ConfigurationError(
            f"worker processes import the main module, and this one cannot be read again ({path}); "
            "put the program into a file and run that"
        )


def _called(fn: Any) -> str:
    name = getattr(fn, "__qualname__", None)
    return f"{fn.__module__}.{name}" if isinstance(name, str) else repr(fn)


def _without_pebble(cause: ImportError | None) -> NoReturn:
    raise ConfigurationError(
        "process=True runs functions in worker processes of pebble, which is not installed; pip install graphbit[process]"
    ) from cause


def _packed(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], node: str) -> bytes:
    """What `run` unpacks.

    Raises:
        OutputError: an argument cannot be pickled.
    """
    try:
        return pickle.dumps((fn, tuple(args), dict(kwargs)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        for name, value in [*zip(_names(fn, len(args)), args, strict=True), *kwargs.items()]:
            try:
                pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
            except Exception as its:
                raise _of(
                    node,
                    OutputError,
                    f"node {node!r}: argument {name!r} (a {type(value).__name__}) cannot be sent to a worker process: "
                    f"{described(its)}; pass what it is made from, or leave process=True out",
                ) from its
        raise _of(
            node, OutputError, f"node {node!r}: {_called(fn)} cannot be sent to a worker process: {described(error)}"
        ) from error


def _names(fn: Callable[..., Any], count: int) -> list[str]:
    """Names of the first `count` parameters."""
    try:
        names = [it.name for it in parameters(fn)[0] if not it.keyword_only]
    except Exception:  # a builtin that does not tell
        names = []
    return [*names[:count], *(f"#{i + 1}" for i in range(len(names), count))]


def _of(node: str, kind: type[NodeError], message: str) -> NodeError:
    error = kind(message)
    error.node = node
    return error


# ------------------------------------------------------------------------------------------------------------- tasks


def call(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    node: str = "",
    timeout: float | None = None,
) -> Any:
    """`call(render, (page,), node="render")`: `render(page)` in a worker process; waits for it without the GIL.

    An exception of the function comes back as itself, with its cause, and with its traceback over there as a note.
    Whatever ends the wait early, Ctrl-C included, stops the worker too.

    Raises:
        NodeTimeoutError: `timeout` seconds were not enough.
        OutputError: an argument or the result cannot be pickled.
        WorkerDiedError: the process ended.
        RuntimeClosedError: `shutdown` was called meanwhile.
    """
    task = start(fn, args, kwargs, node=node)
    try:
        return task.result(timeout)
    except BaseException:
        task.cancel()  # too late where it ended by itself
        raise


def start(
    fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, node: str = ""
) -> Task:
    """`task = start(render, (page,), node="render")`: begins without waiting, as soon as a worker is free.

    Raises:
        OutputError: an argument cannot be pickled.
        ConfigurationError: pebble is missing, or the main module would start this in every worker.
    """
    payload = _packed(fn, args, kwargs or {}, node)
    workers = _workers()
    task = Task(workers, payload, node)
    workers.submit(task)
    return task


class Task:
    """A function on its way through a worker process."""

    __slots__ = ("_answer", "_error", "_over", "_workers", "node", "payload", "slot")

    def __init__(self, workers: Workers, payload: bytes, node: str) -> None:
        self.node = node
        self.payload = payload
        self.slot: _Slot | None = None
        self._workers = workers
        self._over = threading.Event()
        self._answer: tuple[Any, ...] = ()
        self._error: BaseException | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """`task.wait(0.05)`: whether it is over, after at most `timeout` seconds."""
        return self._over.wait(timeout)

    def result(self, timeout: float | None = None) -> Any:
        """`task.result()`: waits, then gives the function's value or raises its exception.

        Raises:
            NodeTimeoutError: `timeout` seconds were not enough; the task goes on.
            concurrent.futures.CancelledError: `cancel` was called.
        """
        if not self.wait(timeout):
            raise _of(self.node, NodeTimeoutError, f"node {self.node!r} did not end within {timeout} s")
        if self._error is not None:
            raise self._error
        kind, data, *more = self._answer
        if kind == VALUE:
            try:
                return pickle.loads(data)
            except Exception as error:
                raise self._failed(f"its result cannot be rebuilt here: {described(error)}") from error
        if kind == ERROR:
            raise unpack_error(data, more[0], f"node {self.node!r}: its function")
        if kind == UNREADABLE:
            raise self._failed(
                f"its function or an argument cannot be rebuilt in a worker process: {data}; what they are made of must "
                "be importable there by the same names"
            )
        assert kind == UNSENDABLE
        raise self._failed(
            f"its result (a {data}) cannot be sent back from its worker process: {more[0]}; return plain values, "
            "or leave process=True out"
        )

    def cancel(self) -> bool:
        """`task.cancel()`, from any thread: stops its worker, or keeps it from being begun. False: it was over before.

        Does not wait: a thread in `result` gets CancelledError, another process takes the worker's place.
        """
        from concurrent.futures import CancelledError

        return self._workers.give_up(self, CancelledError(f"node {self.node!r} was cancelled"))

    def settle(self, answer: tuple[Any, ...] = (), error: BaseException | None = None) -> None:
        """Once, by whoever took the task from its slot or from the queue."""
        self._answer, self._error = answer, error
        self.payload = b""
        self._over.set()

    def _failed(self, why: str) -> NodeError:
        return _of(self.node, OutputError, f"node {self.node!r}: {why}")


# --------------------------------------------------------------------------------------------- one for the whole process

_current: Workers | None = None
_make_lock = threading.Lock()
_limit = 0
_hooked = False


def configure(workers: int) -> None:
    """`configure(4)`: at most four worker processes, from the next use on; as many as this process may use cores by default.

    Raises:
        ConfigurationError: not a positive number, or there are workers already.
    """
    global _limit
    if isinstance(workers, bool) or not isinstance(workers, int) or not 0 < workers <= _WORKERS_MAX:
        raise ConfigurationError(f"process_workers must be between 1 and {_WORKERS_MAX}, got: {workers!r}")
    with _make_lock:
        if _current is not None:
            raise ConfigurationError(
                "worker processes have started; call configure_runtime() before the first use, or after graphbit.shutdown()"
            )
        _limit = workers


def worker_count_max() -> int:
    """How many worker processes there may be: more tasks than that at a time wait."""
    if _limit:
        return _limit
    try:
        return min(len(os.sched_getaffinity(0)), _WORKERS_MAX)
    except (AttributeError, OSError):
        return min(os.cpu_count() or 1, _WORKERS_MAX)


def _workers() -> Workers:
    global _current, _hooked
    found = _current
    if found is not None:
        return found
    with _make_lock:
        if _current is None:
            _check_main()
            try:
                made = Workers(worker_count_max())
            except ImportError as error:
                _without_pebble(error)
            if not _hooked:
                import atexit

                atexit.register(shutdown)
                _hooked = True
            _current = made
        return _current


def shutdown() -> None:
    """Stops the worker processes; the next use starts fresh ones."""
    global _current
    with _make_lock:
        gone, _current = _current, None
    if gone is not None:
        gone.close()


def _forget() -> None:
    """In a forked child: the workers are the parent's. The next use starts some of its own."""
    global _current, _make_lock
    _make_lock = threading.Lock()
    _current = None


# Not with the first use: another thread may be at that, and hold the lock, as the process is forked.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
