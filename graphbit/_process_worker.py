"""What happens inside a worker process: unpack, call, pack; and what both sides know about packing.

Everything crosses as bytes that this module made, so that the pool between sees nothing it could stumble over: an
argument that cannot be rebuilt, a result that cannot be pickled and an exception class with a constructor of its own are
answers like any other. Worker processes import this and what it imports, not the native core.
"""

from __future__ import annotations

import pickle

from graphbit.errors import NodeError, add_note, message_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VALUE = 0
"""(VALUE, the pickled value)"""
ERROR = 1
"""(ERROR, what `pack_error` made, traceback)"""
UNREADABLE = 2
"""(UNREADABLE, why the function or its arguments could not be rebuilt)"""
UNSENDABLE = 3
"""(UNSENDABLE, type of the value, why it cannot be pickled)"""

_CHAIN_MAX = 32


def run(payload: bytes) -> tuple[Any, ...]:
    """Calls the function in `payload`, a pickled (function, arguments, keywords). Raises nothing."""
    try:
        function, arguments, keywords = pickle.loads(payload)
    except BaseException as error:
        return UNREADABLE, described(error)
    try:
        value = function(*arguments, **keywords)
    except BaseException as error:
        inner = error.__traceback__.tb_next if error.__traceback__ else None  # this frame is nobody's business
        return ERROR, pack_error(error), _traceback_text(error.with_traceback(inner))
    try:
        return VALUE, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return UNSENDABLE, type(value).__name__, described(error)


def described(error: BaseException) -> str:
    """`"KeyError: 'x'"`"""
    text = message_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _traceback_text(error: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception as broken:  # an exception class with a __str__ or __cause__ of its own
        return f"<no traceback: {described(broken)}>"


# ------------------------------------------------------------------------------------------- exceptions on their way
#
# pickle keeps of an exception what its __reduce__ gives: class, args and attributes. It loses cause and context; it calls
# the constructor with `args`, which fails, or writes the message anew, where the constructor takes something else. So
# causes travel beside it, and what does not come back alike is rebuilt without its constructor.


def pack_error(error: BaseException) -> list[tuple[Any, ...]]:
    """The exception and all it was caused by, each as (bytes or None, description, cause, context, suppress_context);
    cause and context are places in the list, -1: none."""
    packed: list[tuple[Any, ...]] = []
    places: dict[int, int] = {}

    def place(it: BaseException | None) -> int:
        if it is None or (len(packed) >= _CHAIN_MAX and id(it) not in places):
            return -1
        if id(it) not in places:
            at = places[id(it)] = len(packed)
            packed.append(())
            cause, context = place(it.__cause__), place(it.__context__)
            packed[at] = (_exception_bytes(it), described(it), cause, context, it.__suppress_context__)
        return places[id(it)]

    place(error)
    return packed


def unpack_error(packed: list[tuple[Any, ...]], traceback: str, where: str) -> BaseException:
    """The exception again; the traceback it had over there is a note on it."""
    found: list[BaseException] = []
    for data, description, _, _, _ in packed:
        try:
            it = pickle.loads(data)
            if not isinstance(it, BaseException):
                raise TypeError
        except Exception:  # its class cannot be sent, or not be found here
            it = NodeError(f"{where} raised {description}")
        found.append(it)
    for it, (_, _, cause, context, suppress) in zip(found, packed, strict=True):
        if cause >= 0:
            it.__cause__ = found[cause]
        if context >= 0:
            it.__context__ = found[context]
        it.__suppress_context__ = suppress
    add_note(found[0], f"raised in a worker process:\n{traceback.rstrip()}")
    return found[0]


def _exception_bytes(error: BaseException) -> bytes | None:
    state = error.__dict__
    candidates: tuple[Callable[[], Any], ...] = (
        lambda: error,
        lambda: _Rebuilt(type(error), error.args, state),
        lambda: _Rebuilt(type(error), tuple(map(_sendable, error.args)), {k: _sendable(v) for k, v in state.items()}),
    )
    for candidate in candidates:
        try:
            data = pickle.dumps(candidate(), pickle.HIGHEST_PROTOCOL)
            back = pickle.loads(data)
            if type(back) is type(error) and message_of(back) == message_of(error):
                return data
        except Exception:
            continue
    return None


class _Rebuilt:
    """Unpickles to an exception that was made without its constructor."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> Any:
        return _rebuild, self._parts


def _rebuild(kind: type[BaseException], arguments: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


def _sendable(value: Any) -> Any:
    """The value, or how it looks where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return repr(value)
    return value
