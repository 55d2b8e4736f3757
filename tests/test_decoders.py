"""The core's decoders through the border, compared with Python's json and with a small reader of server-sent events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from graphbit._ffi import check, ffi, lib
from graphbit._plan import Plan, PlanBuilder, Request, Rule
from graphbit._queue import core

BAD_REPLY: int = lib.GB_FAILURE_BAD_REPLY
DEPTH_MAX = 128
MARK = "\ufeff"
# An example costs a millisecond: more than elsewhere.
many = settings(max_examples=10 * settings().max_examples)


# ---------------------------------------------------------------- through the border


class Reply(NamedTuple):
    failure: int
    detail: str
    text: str
    arguments: list[str]


def plan_of(*rules: Rule) -> Plan:
    builder = PlanBuilder()
    builder.request(Request("GET", ["http://host"], rules=rules))
    return builder.build()


def extract(plan: Plan, body: bytes, stream: bool = False) -> Reply:
    """What the plan's rules find in `body`."""
    call = ffi.new("gb_call **")
    view = ffi.from_buffer("uint8_t[]", body)
    check(lib.gb_extract(core().handle, plan.handle, 0, {"ptr": view, "len": len(body)}, stream, call), "reading")
    try:
        it = ffi.new("gb_reply *")
        check(lib.gb_call_reply(call[0], it), "reading")
        arguments = [text(it.tool_calls[n].arguments) for n in range(it.tool_call_count)]
        return Reply(it.failure, text(it.detail), text(it.text), arguments)
    finally:
        lib.gb_call_release(call[0])


def text(span: Any) -> str:
    # Strict: what the core says is UTF-8, whatever it was given.
    return ffi.buffer(span.ptr, span.len)[:].decode() if span.len else ""


# The whole document as it stands; a string as what it says. Null is nothing, so a document that is null has nothing to show.
WHOLE = plan_of(Rule("", "text"))
# Each document of a stream begins a tool call of its own: so they stay apart.
EACH = plan_of(Rule("", "tool_arguments"))


def refused(reply: Reply) -> bool:
    return reply.failure == BAD_REPLY and "not valid JSON" in reply.detail


# ---------------------------------------------------------------- JSON

# What Python accepts and the core refuses, or the other way round. Each document is one that shows it.
EXCEPTIONS = {
    "Python takes numbers that are none": (b"[NaN, Infinity, -Infinity]", "python"),
    "the core takes a byte order mark, Python only when it may guess the encoding": (b"\xef\xbb\xbf[1]", "core"),
    "the core's depth is bounded": (b"[" * 129 + b"]" * 129, "python"),
}
# What both accept and read differently: what each makes of it.
READINGS = {
    "a lone surrogate": (b'"\\ud83d!"', "\ud83d!", "\ufffd!"),
    "a lone surrogate from the second half": (b'"\\udE00\\ud83d"', "\ude00\ud83d", "\ufffd\ufffd"),
    "a string that ends in a backslash, then half a pair": (b'"\\ud83d\\\\"', "\ud83d\\", "\ufffd\\"),
}


class Refused(Exception):
    pass


def no_constant(name: str) -> Any:
    raise Refused(name)


def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of equal keys the first counts, as the core has it; Python takes the last."""
    return dict(reversed(pairs))


class Number(str):
    """A number as it stands: Python's own would be rounded, or too long for int()."""


def depth_of(value: Any) -> int:
    """How deep arrays and objects lie in each other."""
    deepest, level = 0, [value]
    while level := [it for it in level if isinstance(it, (list, dict))]:
        deepest += 1
        level = [inner for it in level for inner in (it.values() if isinstance(it, dict) else it)]
    return deepest


def read_as_python_does(document: bytes) -> Any:
    """Raises ValueError or Refused where it is no JSON: strict UTF-8, and all EXCEPTIONS taken away."""
    characters = document.decode().removeprefix(MARK)  # only one
    options: dict[str, Any] = {"parse_constant": no_constant, "parse_int": Number, "parse_float": Number}
    # The depth counts before equal keys are dropped.
    every = json.loads(characters, object_pairs_hook=lambda pairs: [value for _, value in pairs], **options)
    if depth_of(every) > DEPTH_MAX:
        raise Refused("depth")
    return json.loads(characters, object_pairs_hook=first_wins, **options)


def mended(said: str) -> str:
    """Lone surrogates as the core has them."""
    return re.sub("[\ud800-\udfff]", "\ufffd", said)


def quoted(parts: list[str]) -> str:
    return '"' + "".join(parts) + '"'


ESCAPES = [
    r"\ud83d",
    r"\uDE00",
    r"\udbff",
    r"\ud800",
    r"\udc00",
    r"\udfff",
    r"\ue000",
    r"\/\b\f\n\r\t",
    r"\u0041",
    r"\\",
    "\x7f",
]
WORDS = ["tru", "nulL", "NaN", "-Infinity", "+1", ".5", "0x1", "'a'", "[1", "[1]]", "{1:1}", "//"]

scalars = (
    st.sampled_from(["null", "true", "false", "0", "-0", "1e3", "-2.50E-7", "1e999", "12345678901234567890123", '""'])
    | st.text(max_size=20).map(json.dumps)
    | st.text(max_size=20).map(lambda it: json.dumps(it, ensure_ascii=False))
    | st.lists(st.sampled_from(ESCAPES)).map(quoted)
)
# Mostly none, by one thing.
almost = (
    st.from_regex(r"\A-?[0-9]{0,2}\.?[0-9]{0,2}([eE][+-]?[0-9]{0,2})?\Z")
    | st.from_regex(r'\A"[ab\x1f]{0,20}\\u[0-9a-fA-Fg"]{3,5}[ab]{0,20}"\Z')
    | st.from_regex(r'\A"[a-z]{0,20}(\\[a-z"/]|[\x00-\x1f])[a-z]{0,20}"\Z')
    | st.from_regex(r"\A\[(1,|,1|1 1|,|1){0,3}\]\Z")
    | st.from_regex(r'\A\{("a":1,?|,|"a"|1:1){0,3}\}\Z')
    | st.sampled_from(WORDS)
)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t \r\n"])
keys = st.sampled_from(
    [f'"{it}"' for it in ("a", "b", "0", "1", "", "\\u0061", "é", "\\ud800", "long enough for a vector")]
)
depths = st.sampled_from([1, 120, 126, 127, 128, 129])  # as deep as may be, and deeper


def inside(documents: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.builds("{}{}{}:{}{}".format, spaces, keys, spaces, documents, spaces)
    return st.one_of(
        st.lists(documents, max_size=4).map(lambda it: "[" + ",".join(it) + "]"),
        st.builds("[{}{}{}]".format, spaces, documents, spaces),
        st.lists(members, max_size=4).map(lambda it: "{" + ",".join(it) + "}"),
        st.builds(lambda depth, it: "[" * depth + it + "]" * depth, depths, documents),
    )


def encoded(scalars: st.SearchStrategy[str], leaves: int) -> st.SearchStrategy[bytes]:
    whole = st.recursive(scalars, inside, max_leaves=leaves)
    return st.builds("{}{}{}".format, spaces, whole, spaces).map(str.encode)


documents = encoded(scalars, 12)
crumbs = st.sampled_from(
    [bytes([it]) for it in b',:"\\[]{}0-.eu \x00\x1f\x0b\xff\xc3']
    + [b"\\u", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\xa0"]
    + b"NaN Infinity -Infinity null tru // ' 1,1 00".split()
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A document in which a few bytes were replaced, left out or put in."""
    found = draw(documents)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(found)))
        found = found[:at] + draw(crumbs | st.binary(max_size=2)) + found[at + draw(st.integers(0, 3)) :]
    return found


def assert_read_alike(document: bytes) -> None:
    reply = extract(WHOLE, document)
    try:
        expected = read_as_python_does(document)
    except (ValueError, Refused):
        assert refused(reply), (document, reply)
        return
    assert not refused(reply), document
    whole = document.decode().removeprefix(MARK).strip(" \t\n\r")
    if expected is None:
        assert (reply.failure, reply.text) == (BAD_REPLY, "")  # nothing was found
    elif isinstance(expected, str) and not isinstance(expected, Number):
        assert reply.text == mended(expected)
    else:
        assert reply.text == whole


@many
@given(documents | damaged() | encoded(almost, 1) | encoded(almost | scalars, 4) | st.binary(max_size=12))
def test_json_is_accepted_and_read_as_python_does(document: bytes) -> None:
    assert_read_alike(document)


@pytest.mark.parametrize("what", EXCEPTIONS)
def test_where_acceptance_differs_from_pythons(what: str) -> None:
    document, who_accepts = EXCEPTIONS[what]
    assert refused(extract(WHOLE, document)) == (who_accepts == "python")
    if who_accepts == "python":
        json.loads(document.decode())
    else:
        with pytest.raises(ValueError, match="BOM"):
            json.loads(document.decode())
    assert_read_alike(document)


@pytest.mark.parametrize("what", READINGS)
def test_where_what_a_string_says_differs_from_pythons(what: str) -> None:
    document, in_python, in_the_core = READINGS[what]
    assert json.loads(document) == in_python
    assert extract(WHOLE, document).text == in_the_core
    assert_read_alike(document)


def steps(value: Any) -> Iterator[tuple[str, Any]]:
    """Every path into a value that can be written down, and what it leads to."""
    pairs: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        pairs = ((mended(key), it) for key, it in value.items())
    elif isinstance(value, list):
        pairs = ((str(index), it) for index, it in enumerate(value))
    for part, it in pairs:
        if part == "" or "." in part:
            continue
        yield part, it
        for rest, deeper in steps(it):
            yield f"{part}.{rest}", deeper


def as_written(raw: str) -> Any:
    return json.loads(raw, parse_int=Number, parse_float=Number, object_pairs_hook=first_wins)


@many
@given(documents, st.data())
def test_paths_lead_to_what_they_lead_to_in_python(document: bytes, data: st.DataObject) -> None:
    try:
        value = read_as_python_does(document)
    except (ValueError, Refused):
        return
    known = [it for it in steps(value) if it[0].count(".") < 32]
    path, expected = data.draw(st.sampled_from([*known, ("missing", None), ("a.missing", None)]))
    reply = extract(plan_of(Rule(path, "text")), document)
    if expected is None:
        assert (reply.failure, reply.text) == (BAD_REPLY, "")
    elif isinstance(expected, str) and not isinstance(expected, Number):
        assert reply.text == mended(expected)
    elif isinstance(expected, (list, dict, bool)):
        assert as_written(reply.text) == expected
    else:
        assert reply.text == expected


# ---------------------------------------------------------------- server-sent events


def events_of(stream: bytes) -> list[bytes]:
    """The data of each event (WHATWG HTML, 9.2.6). As the core documents it, what a stream ends in is an event as well."""
    found: list[bytes] = []
    data: list[bytes] = []
    lines = re.split(b"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    for line in [*lines, b""]:
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line and data:
            found.append(b"\n".join(data))
            data = []
    return found


line_ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
odd_lines = st.sampled_from(
    b": a comment|:|event: name|event|id: 7|id: a\x00b|retry: 10|retry: x|unknown: 1|DATA: 1| data: 1|datax: 1|data : 1"
    b"|\xef\xbb\xbfdata: 1|x|\xff: \xff|event: data: 1".split(b"|")
)


marks = st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xef", b"\xef\xbb"])


@st.composite
def streams(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> bytes:
    """Events of any data, put together in any way that is allowed, with odd lines between and within them."""
    parts = [draw(marks)]
    mixed = draw(st.booleans())
    end = draw(line_ends)

    def finish(line: bytes) -> None:
        parts.extend((line, draw(line_ends) if mixed else end))

    for document in draw(st.lists(data, max_size=6)):
        if draw(st.integers(0, 5)) == 0:  # an event without data is none
            finish(draw(odd_lines))
            finish(b"")
        for line in document.split(b"\n"):
            if draw(st.integers(0, 3)) == 0:
                finish(draw(odd_lines))
            finish(b"data:" + (b" " if line.startswith(b" ") else draw(st.sampled_from([b"", b" "]))) + line)
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            finish(b"")
    finished = draw(st.integers(0, 3)) > 0
    whole = b"".join(parts)
    return whole if finished else whole[: draw(st.integers(0, len(whole)))]


def expected_of(stream: bytes) -> tuple[bool, list[str]]:
    """What the rule of EACH makes of a stream: whether all events were JSON, and what was found until one was not."""
    found = []
    for data in events_of(stream):
        if data == b"[DONE]":
            continue
        try:
            value = read_as_python_does(data)
        except (ValueError, Refused):
            return False, found
        if value is None:
            continue  # null is nothing
        is_string = isinstance(value, str) and not isinstance(value, Number)
        found.append(mended(value) if is_string else data.decode().removeprefix(MARK).strip(" \t\n\r"))
    return True, found


def assert_streamed_alike(stream: bytes) -> None:
    all_json, found = expected_of(stream)
    reply = extract(EACH, stream, stream=True)
    assert reply.arguments == found
    if not all_json:
        assert reply.failure == BAD_REPLY
        assert "an event of the stream is not valid JSON" in reply.detail
    else:
        assert reply.failure == (0 if found else BAD_REPLY)


# One that has line feeds in it is data of several lines. A CR would end a line: JSON has it as a space.
spread = documents.map(lambda it: it.replace(b"\r", b" "))
words = b'data|data:|data: |id|:|: | |\n|\r|\r\n|\n\n|\xef\xbb\xbf|\x00|1|[|]|"x"'.split(b"|")


@many
@given(streams(spread | st.just(b"[DONE]")))
def test_events_are_taken_apart_as_by_a_small_reader(stream: bytes) -> None:
    assert_streamed_alike(stream)


@many
@given(streams(spread | damaged().map(lambda it: it.replace(b"\r", b" "))))
def test_an_event_that_is_no_json_ends_a_stream_and_what_came_before_it_counts(stream: bytes) -> None:
    assert_streamed_alike(stream)


@many
@given(st.lists(st.sampled_from(words), max_size=30).map(b"".join))
def test_fields_split_in_odd_places_are_read_alike(stream: bytes) -> None:
    assert_streamed_alike(stream)
