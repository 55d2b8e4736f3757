"""Functions for worker processes. A file of their own: what the workers import should be small."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
kept: list[Any] = []


def add(a: int, b: int = 0) -> int:
    return a + b


def process_id() -> int:
    return os.getpid()


def modules() -> set[str]:
    return set(sys.modules)


def text(length: int) -> str:
    return "x" * length


def identity(value: Any) -> Any:
    return value


def begin(fifo: str) -> None:
    """Tells whoever reads `fifo` which process this is."""
    with open(fifo, "w") as file:
        file.write(str(os.getpid()))


def begin_and_wait(fifo: str, until: str) -> int:
    """Returns when something is written to `until`."""
    begin(fifo)
    with open(until) as file:
        file.read()
    return os.getpid()


def begin_and_hang(fifo: str) -> None:
    begin(fifo)
    while True:
        signal.pause()


def hold(fifo: str) -> int:
    """Keeps `fifo` open as long as this process lives."""
    kept.append(open(fifo, "w"))  # noqa: SIM115
    return os.getpid()


def touch(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def note(path: str, word: str) -> None:
    with open(path, "a") as file:
        file.write(word)


def die(how: int) -> None:
    """By the signal -how, or with the exit code `how`."""
    if how < 0:
        os.kill(os.getpid(), -how)
        signal.pause()
    os._exit(how)


# ------------------------------------------------------------------------------------------------------------ failures


class PlainError(Exception):
    pass


class TellingError(Exception):
    """Its constructor takes something else than its args."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what} failed with {code}")
        self.code = code


class WrappingError(Exception):
    """Made again from its args, its message would be wrapped twice."""

    def __init__(self, what: str) -> None:
        super().__init__(f"<{what}>")


class HoldingError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.lock = threading.Lock()


def raise_plain(message: str) -> None:
    error = PlainError(message)
    error.detail = {"at": 3}  # type: ignore[attr-defined]
    raise error


def raise_from(message: str) -> None:
    try:
        {}["missing"]
    except KeyError as error:
        raise PlainError(message) from error


def raise_while_handling(message: str) -> None:
    try:
        {}["missing"]
    except KeyError:
        raise PlainError(message)  # noqa: B904


def raise_in_a_circle() -> None:
    first, second = PlainError("first"), PlainError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def raise_telling() -> None:
    raise TellingError(7, "it")


def raise_wrapping() -> None:
    raise WrappingError("it")


def raise_holding() -> None:
    raise HoldingError("it")


def raise_local() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("nobody knows it")


def raise_os_error() -> None:
    open("/no/such/file")  # noqa: SIM115


# -------------------------------------------------------------------------------------- what can and cannot be sent


class Adder:
    def __init__(self, a: int, extra: Any = None) -> None:
        self.a = a
        self.extra = extra

    def add(self, b: int) -> int:
        return self.a + b

    def __call__(self, b: int) -> int:
        return self.a + b

    @staticmethod
    def plain(b: int) -> int:
        return b

    @classmethod
    def made(cls, b: int) -> int:
        return cls(b).a


class OnlyHere:
    """Can be pickled, and be rebuilt in the process `home` only."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.getpid() != self.home:
            raise PlainError("not at home")


def only_there() -> OnlyHere:
    return OnlyHere(os.getpid())


def generator() -> Iterator[int]:
    yield 1


def nested() -> Callable[[], None]:
    def inner() -> None:
        pass

    return inner


def logged(function: F) -> F:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper  # type: ignore[return-value]


@logged
def decorated(a: int) -> int:
    return a + 1


def replaced(a: int) -> int:
    return a


original_of_replaced = replaced


def replaced(a: int) -> int:  # type: ignore[no-redef]
    return a + 1


async def waiting() -> None:
    pass


nameless = lambda: None  # noqa: E731
