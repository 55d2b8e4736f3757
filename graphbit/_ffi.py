"""The door to the compiled core: the only importer of the library and of what cffi read from the header.

Everything here is mechanical: load the library, turn a status into an exception, put bytes in and take bytes out.
`native/include/graphbit.h` says what the functions do.
"""

from __future__ import annotations

import os
import sys

from graphbit.errors import RuntimeClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_graphbit" + _SUFFIX)

try:
    from graphbit._native_cdef import ffi as _untyped_ffi
except ImportError as error:
    raise ImportError(
        "graphbit's compiled core is missing. In a source checkout build it with `python build.py` (or `pip install -e .`)"
    ) from error

ffi: Any = _untyped_ffi
# Never unloaded: cffi would close the library at exit, under threads that are still in it.
lib: Any = ffi.dlopen(_PATH, ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))


def _realize() -> None:
    """Has cffi work out every type and function now. It does so at first use, and not safely from several threads at once."""
    for name in ffi.list_types()[0]:
        ffi.typeof(name + " *")
        ffi.typeof(name + " **")
    for name in (
        "gb_value[]",
        "gb_node_report[]",
        "gb_node[]",
        "gb_segment[]",
        "gb_range[]",
        "gb_header[]",
        "gb_rule[]",
    ):
        ffi.typeof(name)
    for name in ("uint8_t[]", "uint32_t[]", "gb_request[]"):
        ffi.typeof(name)
    for name in dir(lib):
        getattr(lib, name)


_realize()

NULL: Any = ffi.NULL
NONE = 0xFFFFFFFF
"""No node: UINT32_MAX."""

OK: int = lib.GB_OK
CYCLE: int = lib.GB_CYCLE
SHUTDOWN: int = lib.GB_SHUTDOWN
INTERRUPTED: int = lib.GB_INTERRUPTED
TIMED_OUT: int = lib.GB_TIMED_OUT

BATCH_MAX = 256
EXTRA = 1 << 31
"""Set in `gb_finished.nodes[i]`: the next of `settled` tells."""


class CoreError(RuntimeError):
    """The binding broke the core's contract: a fault of graphbit itself."""


def check(status: int, doing: str) -> None:
    """Raises what `status` means, if it is not GB_OK."""
    if status == OK:
        return
    if status == lib.GB_OUT_OF_MEMORY:
        raise MemoryError(f"out of memory while {doing}")
    if status == SHUTDOWN:
        raise RuntimeClosedError(f"the graphbit runtime was shut down while {doing}; its next use starts a fresh one")
    if status == lib.GB_NO_THREAD:
        raise OSError(f"the operating system refused a thread or a file descriptor while {doing}")
    raise CoreError(f"graphbit's core refused {doing} (status {status}); please report this")


def text(value: Any) -> str:
    """A gb_bytes as text. What is not UTF-8 is shown as U+FFFD."""
    return bytes(ffi.buffer(value.ptr, value.len)).decode("utf-8", "replace") if value.len else ""


def optional_text(value: Any) -> str | None:
    """A gb_bytes as text, None where it is empty."""
    return text(value) if value.len else None


def raw(value: Any) -> bytes:
    """A gb_bytes or gb_value as bytes."""
    return bytes(ffi.buffer(value.ptr, value.len)) if value.len else b""


def address_of(pointer: Any) -> int | None:
    """The address in a function pointer of the user's, of cffi or ctypes; None where it is no pointer.

    Here, for only this file knows of foreign pointers. The core calls the address (native nodes)."""
    if type(pointer).__module__.startswith("_cffi_backend"):
        try:
            return int(ffi.cast("uintptr_t", pointer))
        except TypeError:
            return None
    if hasattr(pointer, "argtypes") or hasattr(pointer, "__ctypes_from_outparam__"):
        import ctypes

        try:
            return ctypes.cast(pointer, ctypes.c_void_p).value
        except ctypes.ArgumentError:
            return None
    return None


def version() -> str:
    """The core's version."""
    return str(ffi.string(lib.gb_version()).decode())
