"""Values on their way between Python and the core.

Python functions give and take objects as they are. Only what a native node inserts into a text is handed over: a string as
it is, anything else as compact JSON.
"""

from __future__ import annotations

# At the top, not at first use: a process that is forked while another thread imports would wait for that for ever.
import json
import struct

from graphbit._ffi import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEXT: int = lib.GB_VALUE_TEXT
JSON: int = lib.GB_VALUE_JSON
NONE: int = lib.GB_VALUE_NONE
NUMBER: int = lib.GB_VALUE_NUMBER
BYTES: int = lib.GB_VALUE_BYTES


def encode(value: Any, raw: bool = False) -> tuple[int, bytes]:
    """The value's kind and bytes. With `raw` it may be bytes itself: it goes into no text.

    Raises:
        TypeError, ValueError: it is neither text nor expressible as JSON.
    """
    if value.__class__ is str:
        return TEXT, value.encode()
    if raw and isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES, bytes(value)
    if isinstance(value, str):
        return TEXT, str.__str__(value).encode()  # a subclass, an enum's member say, as the text it is
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    return JSON, text.encode()


def _plain(value: Any) -> Any:
    """What json does not know by itself: pydantic models and dataclasses."""
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return {name: getattr(value, name) for name in fields}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode(kind: int, data: Any, bits: int = 0) -> Any:
    """The object a native output stands for; None where there is none. `data` is any buffer; a number lies in `bits`."""
    if kind == NUMBER:
        return struct.unpack("=d", struct.pack("=Q", bits))[0]
    if kind == BYTES:
        return bytes(data)
    if kind == TEXT:
        return str(data, "utf-8", "replace")
    if kind == JSON:
        return json.loads(bytes(data))
    return None


def pick(value: Any, path: str) -> Any:
    """`pick({"points": ["a"]}, "points.0")` -> `"a"`. A string is looked into as JSON, an object by its attributes.

    Raises:
        LookupError: the path leads nowhere.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise LookupError(f"the value is a text that is not JSON, so it has no {path!r}") from None
    for part in path.split("."):
        try:
            if isinstance(value, (list, tuple)):
                value = value[int(part)]
            elif isinstance(value, dict):
                value = value[part]
            else:
                value = getattr(value, part)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise LookupError(f"the value has no {part!r} (of {path!r})") from None
    return value
