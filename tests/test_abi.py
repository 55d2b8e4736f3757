"""The border: Python's view of graphbit.h, the compiler's and the library's are one, and what breaks its contract is refused."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from graphbit import RuntimeClosedError
from graphbit._ffi import _PATH, EXTRA, NONE, NULL, CoreError, check, ffi, lib

HEADER = Path(__file__).parents[1] / "native" / "include" / "graphbit.h"
NOT_A_NUMBER = 0xFFFFFFFE


def declarations() -> str:
    """What cffi reads, without comments."""
    text = HEADER.read_text().split("/* ---- cffi reads from here ---- */")[1].split("/* ---- to here ---- */")[0]
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def kinds(kind: str) -> dict[str, Any]:
    """Structs that are more than a handle, or enums, of the binding by name."""
    found = {name: ffi.typeof(name) for name in ffi.list_types()[0]}
    return {name: it for name, it in found.items() if it.kind == kind and not is_handle(name)}


def is_handle(name: str) -> bool:
    try:
        ffi.sizeof(name)
    except (ffi.error, TypeError, ValueError):
        return True
    return False


# ---------------------------------------------------------------- layout


def compiler() -> list[str]:
    cc = shutil.which("cc")
    if cc:
        return [cc]
    pytest.importorskip("ziglang", reason="neither cc nor ziglang is there")
    return [sys.executable, "-m", "ziglang", "cc"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset and enumerator as a C compiler sees it."""
    expressions = {}
    for name, it in kinds("struct").items():
        expressions[name] = f"sizeof({name})"
        for field, _ in it.fields:
            expressions[f"{name}.{field}"] = f"offsetof({name}, {field})"
            expressions[f"{name}.{field} size"] = f"sizeof((({name} *)0)->{field})"
    for name, it in kinds("enum").items():
        expressions[f"{name} size"] = f"sizeof({name})"
        expressions |= {value: value for value in it.relements}
    lines = [f'    printf("%s=%lld\\n", "{name}", (long long)({code}));' for name, code in expressions.items()]
    folder = tmp_path_factory.mktemp("abi")
    source, program = folder / "abi.c", folder / ("abi.exe" if sys.platform == "win32" else "abi")
    body = "\n".join(lines)
    source.write_text(f'#include <stdio.h>\n#include "graphbit.h"\nint main(void) {{\n{body}\n    return 0;\n}}\n')
    command = [*compiler(), "-Wall", "-Werror", "-I", str(HEADER.parent), "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, _, value in (line.rpartition("=") for line in printed.splitlines())}


def test_structs_have_the_size_and_offsets_that_a_c_compiler_gives_them(compiled: dict[str, int]) -> None:
    for name, it in kinds("struct").items():
        assert ffi.sizeof(name) == compiled[name], name
        for field, found in it.fields:
            assert found.offset == compiled[f"{name}.{field}"], f"{name}.{field}"
            assert ffi.sizeof(found.type) == compiled[f"{name}.{field} size"], f"{name}.{field}"


def test_enumerators_have_the_numbers_that_a_c_compiler_gives_them(compiled: dict[str, int]) -> None:
    for name, it in kinds("enum").items():
        assert ffi.sizeof(name) == compiled[f"{name} size"]
        for value, number in it.relements.items():
            assert number == compiled[value] == getattr(lib, value)


def test_the_binding_knows_all_that_the_header_declares_and_no_more() -> None:
    text = declarations()
    assert set(kinds("struct")) == set(re.findall(r"typedef struct (gb_\w+)\s*\{", text))
    assert set(kinds("enum")) == set(re.findall(r"typedef enum (gb_\w+)\s*\{", text))
    numbers = {name: int(value) for name, value in re.findall(r"\b(GB_\w+) = (\d+)", text)}
    assert {name: number for it in kinds("enum").values() for name, number in it.relements.items()} == numbers


# ---------------------------------------------------------------- symbols


def exported(path: str) -> set[str]:
    """Names in the dynamic symbol table that the file defines. ELF, 64 bits, little-endian."""
    data = Path(path).read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    sections_at, size, count = (
        *struct.unpack_from("<Q", data, 0x28),
        *struct.unpack_from("<HH", data, 0x3A),
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * size) for i in range(count)]
    found = set()
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind != 11:  # SHT_DYNSYM
            continue
        names_at = sections[link][4]
        for at in range(offset, offset + length, entry):
            name, _, _, section = struct.unpack_from("<IBBH", data, at)
            if section and name:
                end = data.index(b"\0", names_at + name)
                found.add(data[names_at + name : end].decode())
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF")
def test_the_library_exports_what_the_header_declares_and_nothing_else() -> None:
    declared = set(re.findall(r"\b(gb_\w+)\s*\(", declarations()))
    assert len(declared) > 30
    assert exported(_PATH) == declared


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("nm"), reason="needs nm")
def test_nm_sees_the_same_symbols() -> None:
    printed = subprocess.run(["nm", "-D", "--defined-only", _PATH], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in printed.splitlines()} == exported(_PATH)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF")
def test_every_declared_function_is_callable_through_the_binding() -> None:
    for name in exported(_PATH):
        assert ffi.typeof(getattr(lib, name)).kind == "function"


# ---------------------------------------------------------------- statuses

RAISES: dict[str, type[BaseException] | None] = {
    "GB_OK": None,
    "GB_OUT_OF_MEMORY": MemoryError,
    "GB_INVALID_ARGUMENT": CoreError,
    "GB_CYCLE": CoreError,  # who makes plans looks at it first
    "GB_SHUTDOWN": RuntimeClosedError,
    "GB_INTERRUPTED": CoreError,  # who waits looks at these first
    "GB_TIMED_OUT": CoreError,
    "GB_NO_THREAD": OSError,
}


def test_every_status_means_one_exception() -> None:
    assert set(RAISES) == set(ffi.typeof("gb_status").relements)


@pytest.mark.parametrize("name", RAISES)
def test_check_raises_what_a_status_means(name: str) -> None:
    expected = RAISES[name]
    if expected is None:
        check(getattr(lib, name), "testing")
        return
    with pytest.raises(expected, match="testing") as caught:
        check(getattr(lib, name), "testing")
    assert type(caught.value) is expected


def test_a_status_of_a_newer_core_is_an_error_too() -> None:
    with pytest.raises(CoreError, match="99"):
        check(99, "testing")


# ---------------------------------------------------------------- plans


class Spec:
    """Two callbacks, a template and a request, all in order; tests spoil one thing."""

    def __init__(self) -> None:
        text = b"GETurlpath"
        self.text = ffi.from_buffer("uint8_t[]", text)
        self.nodes = ffi.new("gb_node[4]")
        self.nodes[0].kind = self.nodes[1].kind = lib.GB_NODE_CALLBACK
        self.nodes[2].kind = lib.GB_NODE_TEMPLATE
        self.nodes[3].kind = lib.GB_NODE_REQUEST
        self.edges = ffi.new("uint32_t[]", [0, 1, 1, 2, 2, 3])
        self.segments = ffi.new("gb_segment[2]")
        self.segments[0].text.length = 3
        self.segments[1].kind, self.segments[1].source = lib.GB_SEGMENT_SLOT, 4
        self.templates = ffi.new("gb_range[1]", [(0, 2)])
        self.headers = ffi.new("gb_header[1]", [((0, 3), 0)])
        self.rules = ffi.new("gb_rule[1]")
        self.rules[0].take = (6, 4)
        self.requests = ffi.new("gb_request[1]")
        it = self.requests[0]
        it.method = (0, 3)
        it.headers, it.rules = (0, 1), (0, 1)
        it.retry.attempts_max = 1
        self.it = ffi.new("gb_plan_spec *")
        self.it.node_count, self.it.edge_count, self.it.input_count = 4, 3, 1
        self.it.segment_count, self.it.template_count = 2, 1
        self.it.header_count = self.it.rule_count = self.it.request_count = 1
        for name in ("nodes", "edges", "segments", "templates", "headers", "rules", "requests"):
            setattr(self.it, name, getattr(self, name))
        self.it.text.ptr, self.it.text.len = self.text, len(text)

    def create(self) -> tuple[int, Any, Any]:
        cycle, plan = ffi.new("gb_cycle *"), ffi.new("gb_plan **")
        return lib.gb_plan_create(self.it, cycle, plan), plan[0], cycle


SPOILED = {
    "a node of an unknown kind": "s.nodes[0].kind = 4",
    "a node of a kind far out": "s.nodes[0].kind = NOT_A_NUMBER",
    "a template that is not there": "s.nodes[2].body = 1",
    "a request that is not there": "s.nodes[3].body = 1",
    "an edge from a node that is not there": "s.edges[0] = 4",
    "an edge to a node that is not there": "s.edges[5] = NOT_A_NUMBER",
    "a segment of an unknown kind": "s.segments[0].kind = 3",
    "an unknown escape": "s.segments[1].escape = 4",
    "a slot for a value that is not there": "s.segments[1].source = 5",
    "a literal behind the text": "s.segments[0].text.length = 11",
    "a literal that starts at the end of numbers": "s.segments[0].text = (0xFFFFFFFF, 0xFFFFFFFF)",
    "a template of more segments than there are": "s.templates[0].count = 3",
    "a template at the end of numbers": "s.templates[0] = (0xFFFFFFFF, 2)",
    "a header whose name is not there": "s.headers[0].name.offset = 8",
    "a header whose value is not there": "s.headers[0].value = 1",
    "a rule into an unknown field": "s.rules[0].into = 18",
    "an unknown fold": "s.rules[0].fold = 4",
    "a rule whose path is not there": "s.rules[0].take = (10, 1)",
    "a method that is not there": "s.requests[0].method.offset = 8",
    "a URL that is not there": "s.requests[0].url = 1",
    "a body that is not there": "s.requests[0].flags = lib.GB_REQUEST_BODY; s.requests[0].body = 1",
    "headers that are not there": "s.requests[0].headers.count = 2",
    "rules that are not there": "s.requests[0].rules = (1, 1)",
    "a request that is never tried": "s.requests[0].retry.attempts_max = 0",
    "nodes that are nowhere": "s.it.nodes = NULL",
    "edges that are nowhere": "s.it.edges = NULL",
    "rules that are nowhere": "s.it.rules = NULL",
    "more values than numbers": "s.it.input_count = 0xFFFFFFFF",
}


def test_the_plan_that_the_next_tests_spoil_is_sound() -> None:
    status, plan, _ = Spec().create()
    assert status == lib.GB_OK
    lib.gb_plan_destroy(plan)


@pytest.mark.parametrize("what", SPOILED)
def test_a_plan_is_refused_for(what: str) -> None:
    s = Spec()
    exec(SPOILED[what], {"s": s, "lib": lib, "NULL": NULL, "NOT_A_NUMBER": NOT_A_NUMBER})
    status, plan, _ = s.create()
    assert status == lib.GB_INVALID_ARGUMENT
    assert plan == NULL


def cycle_of(count: int, edges: list[tuple[int, int]]) -> tuple[int, list[int]]:
    spec = ffi.new("gb_plan_spec *")
    nodes = ffi.new("gb_node[]", count)
    flat = ffi.new("uint32_t[]", [end for pair in edges for end in pair])
    spec.node_count, spec.edge_count, spec.nodes, spec.edges = count, len(edges), nodes, flat
    cycle, plan = ffi.new("gb_cycle *"), ffi.new("gb_plan **")
    assert lib.gb_plan_create(spec, cycle, plan) == lib.GB_CYCLE
    assert plan[0] == NULL
    return cycle.count, list(cycle.nodes[0 : min(cycle.count, 64)])


def test_a_cycle_is_named_along_its_edges() -> None:
    # A way in, the cycle 1 -> 4 -> 2 -> 1, and a way out.
    edges = [(0, 1), (1, 4), (4, 2), (2, 1), (4, 3), (3, 5)]
    count, nodes = cycle_of(6, edges)
    assert count == 3
    assert sorted(nodes) == [1, 2, 4]
    assert all((nodes[i], nodes[(i + 1) % 3]) in edges for i in range(3))


def test_a_node_that_waits_for_itself_is_a_cycle_of_one() -> None:
    assert cycle_of(3, [(0, 1), (1, 1), (1, 2)]) == (1, [1])


def test_a_cycle_longer_than_its_room_is_cut() -> None:
    ring = [(i, (i + 1) % 100) for i in range(100)]
    count, nodes = cycle_of(100, ring)
    assert count == len(nodes) == 64
    assert all((a, b) in ring for a, b in pairwise(nodes))


# ---------------------------------------------------------------- runs


class Bare:
    """A runtime of its own, driven as the binding would."""

    def __init__(self) -> None:
        out = ffi.new("gb_runtime **")
        assert lib.gb_runtime_create(ffi.new("gb_runtime_options *"), out) == lib.GB_OK
        self.runtime = out[0]
        queue = ffi.new("gb_queue **")
        assert lib.gb_queue_create(self.runtime, lib.GB_QUEUE_CALLER, 1, queue) == lib.GB_OK
        self.queue = queue[0]
        self.spec = Spec()
        status, self.plan, _ = self.spec.create()
        assert status == lib.GB_OK
        calls = Spec()  # a plan for calls has no nodes
        calls.it.node_count = calls.it.edge_count = 0
        calls.segments[1].source = 0
        status, self.calls, _ = calls.create()
        assert status == lib.GB_OK
        self.values = ffi.new("gb_value[1]")
        self.options = ffi.new("gb_run_options *")
        self.options.queue, self.options.token = self.queue, 7
        self.options.flags = lib.GB_RUN_CALLER_PULLS
        self.options.input_count, self.options.inputs = 1, self.values
        self.news = ffi.new("gb_news *")
        self.finished = ffi.new("gb_finished *")
        self.run = NULL

    def start(self) -> int:
        run = ffi.new("gb_run **")
        status: int = lib.gb_run_start(self.runtime, self.plan, self.options, run)
        self.run = run[0]
        return status

    def take(self) -> None:
        """Starts the run and is handed its first callback."""
        assert self.start() == lib.GB_OK
        assert lib.gb_wait(self.queue, NULL, -1, self.news) == lib.GB_OK
        assert (self.news.run_token, list(self.news.nodes[0 : self.news.node_count])) == (7, [0])
        self.finished.run, self.finished.count = self.run, 1

    def picture(self) -> list[tuple[int, int, int]]:
        reports = ffi.new("gb_node_report[4]")
        assert lib.gb_run_reports(self.run, 0, 4, reports) == lib.GB_OK
        return [(it.state, it.attempts, it.ended_ns) for it in reports]

    def stats(self) -> Any:
        found = ffi.new("gb_runtime_stats *")
        lib.gb_runtime_stats_read(self.runtime, found)
        return found

    def close(self) -> None:
        lib.gb_runtime_shutdown(self.runtime)
        if self.run != NULL:
            lib.gb_run_release(self.run)
        lib.gb_plan_destroy(self.plan)
        lib.gb_plan_destroy(self.calls)
        lib.gb_queue_destroy(self.queue)
        lib.gb_runtime_destroy(self.runtime)


@pytest.fixture
def bare() -> Iterator[Bare]:
    it = Bare()
    yield it
    it.close()


def test_an_unknown_kind_of_queue_is_refused(bare: Bare) -> None:
    queue = ffi.new("gb_queue **")
    for kind in (3, NOT_A_NUMBER):
        assert lib.gb_queue_create(bare.runtime, kind, 1, queue) == lib.GB_INVALID_ARGUMENT
        assert queue[0] == NULL


def spoil_start(bare: Bare, what: str) -> None:
    if what == "too few inputs":
        bare.options.input_count = 0
    elif what == "too many inputs":
        bare.values = bare.options.inputs = ffi.new("gb_value[2]")
        bare.options.input_count = 2
    elif what == "inputs that are nowhere":
        bare.options.inputs = NULL
    elif what == "an input of an unknown kind":
        bare.values[0].kind = 99
    else:
        lib.gb_plan_destroy(bare.plan)
        bare.spec.nodes[0].flags = lib.GB_NODE_LOOP
        _, bare.plan, _ = bare.spec.create()


@pytest.mark.parametrize(
    "what",
    [
        "too few inputs",
        "too many inputs",
        "inputs that are nowhere",
        "an input of an unknown kind",
        "no queue for a loop",
    ],
)
def test_a_run_does_not_start_with(what: str, bare: Bare) -> None:
    spoil_start(bare, what)
    assert bare.start() == lib.GB_INVALID_ARGUMENT
    assert bare.run == NULL
    assert (bare.stats().runs_active, bare.stats().runs_started) == (0, 0)


RESULTS = {
    "a node that is not there": "f.nodes[0] = 4",
    "no node at all": "f.nodes[0] = NONE",
    "a node that is no callback": "f.nodes[0] = 2",
    "a second node that is not there": "f.count = 2; f.nodes[1] = 4",
    "more results than there is room for": "f.count = 257",
    "more extras than there is room for": "f.settled_count = 257",
    "an extra that no node announces": "f.settled_count = 1",
    "an extra that was announced and is not there": "f.nodes[0] = EXTRA",
    "a value of an unknown kind": "f.nodes[0] = EXTRA; f.settled_count = 1; s.state = 3; s.value.kind = 99",
    "an unknown state": "f.nodes[0] = EXTRA; f.settled_count = 1; s.state = 7",
    "a state that is no end": "f.nodes[0] = EXTRA; f.settled_count = 1; s.state = lib.GB_RUNNING",
    "results of no run": "f.run = NULL",
}


@pytest.mark.parametrize("what", RESULTS)
@pytest.mark.parametrize("waiting", [False, True], ids=["settle", "wait"])
def test_results_are_refused_whole_for(what: str, waiting: bool, bare: Bare) -> None:
    bare.take()
    before = bare.picture()
    names = {"f": bare.finished, "s": bare.finished.settled[0], "lib": lib, "NULL": NULL, "NONE": NONE, "EXTRA": EXTRA}
    exec(RESULTS[what], names)
    if waiting:
        assert lib.gb_wait(bare.queue, bare.finished, 0, bare.news) == lib.GB_INVALID_ARGUMENT
    else:
        assert lib.gb_settle(bare.queue, bare.finished) == lib.GB_INVALID_ARGUMENT
    assert bare.picture() == before
    # The run goes on as if nothing had been said.
    bare.finished = ffi.new("gb_finished *", {"run": bare.run, "count": 1})
    assert lib.gb_settle(bare.queue, bare.finished) == lib.GB_OK
    assert bare.picture()[0][0] == lib.GB_SUCCEEDED


def test_a_failure_beside_the_result_that_made_a_template_ready_does_not_lose_the_template(bare: Bare) -> None:
    lib.gb_plan_destroy(bare.plan)
    bare.spec.edges[0:2] = [0, 2]  # 0 -> 2, 1 -> 2 -> 3 becomes: 0 -> 2 -> 3, and 1 on its own
    bare.spec.edges[2:4] = [2, 3]
    bare.spec.it.edge_count = 2
    status, bare.plan, _ = bare.spec.create()
    assert status == lib.GB_OK
    assert bare.start() == lib.GB_OK
    taken: list[int] = []
    while len(taken) < 2:
        assert lib.gb_wait(bare.queue, NULL, -1, bare.news) == lib.GB_OK
        taken += list(bare.news.nodes[0 : bare.news.node_count])
    assert sorted(taken) == [0, 1]
    both = bare.finished
    both.run, both.count, both.settled_count = bare.run, 2, 1
    both.nodes[1] = 1 | EXTRA
    both.settled[0].state = lib.GB_FAILED
    assert lib.gb_settle(bare.queue, both) == lib.GB_OK
    assert lib.gb_run_is_over(bare.run), bare.picture()
    assert [it[0] for it in bare.picture()] == [lib.GB_SUCCEEDED, lib.GB_FAILED, lib.GB_CANCELLED, lib.GB_CANCELLED]


def test_reports_and_values_of_nodes_that_are_not_there_are_refused(bare: Bare) -> None:
    bare.take()
    reports = ffi.new("gb_node_report[4]")
    for first, count in ((0, 5), (4, 1), (3, 2), (0xFFFFFFFF, 0xFFFFFFFF)):
        assert lib.gb_run_reports(bare.run, first, count, reports) == lib.GB_INVALID_ARGUMENT
    assert bytes(ffi.buffer(reports)) == bytes(ffi.sizeof(reports))
    assert lib.gb_run_reports(bare.run, 4, 0, reports) == lib.GB_OK
    value = ffi.new("gb_value *", {"kind": 99})
    assert lib.gb_run_value(bare.run, 4, value) == lib.GB_INVALID_ARGUMENT
    assert value.kind == 99


def test_only_a_native_node_that_ended_has_a_reply(bare: Bare) -> None:
    bare.take()
    reply = ffi.new("gb_reply *", {"failure": 99})
    for node in (0, 2, 3, 4, NONE):  # a callback, a template and a request that have not begun, and nobody
        assert lib.gb_run_reply(bare.run, node, reply) == lib.GB_INVALID_ARGUMENT, node
    assert reply.failure == 99


def call(bare: Bare, number: int, values: Any, count: int) -> None:
    """One that is refused, and nothing has begun."""
    out = ffi.new("gb_call **")
    status = lib.gb_call_start(bare.runtime, bare.calls, number, values, count, 0, 0, bare.queue, 9, out)
    assert status == lib.GB_INVALID_ARGUMENT
    assert out[0] == NULL
    assert (bare.stats().calls_active, bare.stats().requests_started) == (0, 0)


def test_calls_of_requests_that_are_not_there_are_refused(bare: Bare) -> None:
    out, body = ffi.new("gb_call **"), ffi.new("gb_bytes *")[0]
    for number in (1, NONE):
        call(bare, number, bare.values, 1)
        assert lib.gb_extract(bare.runtime, bare.calls, number, body, 0, out) == lib.GB_INVALID_ARGUMENT
    assert out[0] == NULL


def test_a_call_with_values_that_are_not_those_of_its_plan_is_refused(bare: Bare) -> None:
    two = ffi.new("gb_value[2]")
    call(bare, 0, two, 0)
    call(bare, 0, two, 2)
    call(bare, 0, NULL, 1)
    two[0].kind = NOT_A_NUMBER
    call(bare, 0, two, 1)
