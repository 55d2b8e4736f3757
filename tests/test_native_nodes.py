"""C functions as nodes: found through cffi and ctypes, given numbers or bytes, called by the workers without the GIL."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from flows import PATIENCE, linked

import graphbit
from graphbit import ConfigurationError, Executor, InputError, NativeFunctionError, Node, WorkflowError

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

static volatile int64_t count;
void bump(void) { __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST); }
int64_t bumped(void) { return __atomic_load_n(&count, __ATOMIC_SEQ_CST); }
double seven(void) { return 7.0; }
double weigh(double a, double b, double c, double d, double e, double f, double g, double h) {
    return a + 10 * b + 100 * c + 1e3 * d + 1e4 * e + 1e5 * f + 1e6 * g + 1e7 * h;
}
double not_a_number(double x) { return 0.0 * x / 0.0; }
double endless(double x) { return x / 0.0; }
int64_t reverse(const uint8_t *in, size_t length, uint8_t *out, size_t capacity) {
    if (length > capacity) return (int64_t)length;
    for (size_t i = 0; i < length; i++) out[i] = in[length - 1 - i];
    return (int64_t)length;
}
int64_t refuse(const uint8_t *in, size_t length, uint8_t *out, size_t capacity) { return -42; }
static int64_t asked;
int64_t times_asked(void) { return asked; }
int64_t greedy(const uint8_t *in, size_t length, uint8_t *out, size_t capacity) {
    return ++asked < 50 ? (int64_t)capacity + 1 : -1;
}
int64_t hello(const uint8_t *in, size_t length, uint8_t *out, size_t capacity) {
    if (capacity < 5) return 5;
    memcpy(out, "hello", 5);
    return 5;
}
int64_t nothing(const uint8_t *in, size_t length, uint8_t *out, size_t capacity) { return 0; }
static volatile int32_t opened;
void open_gate(void) { __atomic_store_n(&opened, 1, __ATOMIC_SEQ_CST); }
void close_gate(void) { __atomic_store_n(&opened, 0, __ATOMIC_SEQ_CST); }
static volatile int32_t inside;
int32_t is_inside(void) { return __atomic_load_n(&inside, __ATOMIC_SEQ_CST); }
double wait_for_gate(void) { /* 1: it was opened; 0: nobody came for five seconds */
    struct timespec from, now;
    clock_gettime(CLOCK_MONOTONIC, &from);
    __atomic_fetch_add(&inside, 1, __ATOMIC_SEQ_CST);
    double found = 0;
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
        found = __atomic_load_n(&opened, __ATOMIC_SEQ_CST);
    } while (!found && now.tv_sec - from.tv_sec < 5);
    __atomic_fetch_sub(&inside, 1, __ATOMIC_SEQ_CST);
    return found;
}
"""


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    where = tmp_path_factory.mktemp("native")
    source, library = where / "work.c", where / "work.so"
    source.write_text(SOURCE)
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run([*command, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source)], check=True, timeout=60)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def path(lib: ctypes.CDLL) -> Path:
    return Path(lib._name)


def run(node: Node, **inputs: Any) -> Any:
    return Executor().execute(linked([node]), inputs).raise_for_failure()[node.name()]


# --------------------------------------------------------------------------------------------------------------- pointers


def test_a_pointer_may_come_from_ctypes_cffi_or_be_an_address(lib: ctypes.CDLL, path: Path) -> None:
    ffi = cffi.FFI()
    ffi.cdef("double seven(void);")
    opened = ffi.dlopen(str(path))
    typed = ctypes.CFUNCTYPE(ctypes.c_double)(("seven", lib))
    address = ctypes.cast(lib.seven, ctypes.c_void_p).value
    pointers = [
        lib.seven, typed, ctypes.cast(lib.seven, ctypes.c_void_p), address, opened.seven, ffi.addressof(opened, "seven"),
        ffi.cast("void *", address),
    ]  # fmt: skip
    for pointer in pointers:
        assert run(Node.native("n", pointer, "double()")) == 7.0, pointer


def test_a_pointer_may_be_numbas() -> None:
    class CFunc:  # as numba.cfunc makes them
        address = ctypes.cast(ctypes.CDLL("libm.so.6").sqrt, ctypes.c_void_p).value

    assert run(Node.native("n", CFunc(), "double(double)", ["x"]), x=9) == 3.0


def test_a_python_function_behind_a_c_pointer_is_called_on_a_worker_and_kept_alive() -> None:
    import gc

    threads: list[int] = []

    def work(x: float) -> float:
        threads.append(threading.get_ident())
        return x * 2

    node = Node.native("n", ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(work), "double(double)", ["x"])
    gc.collect()
    assert run(node, x=21) == 42.0
    assert len(threads) == 1


# ---------------------------------------------------------------------------------------------------------------- numbers


def test_numbers_go_in_and_a_number_comes_out(lib: ctypes.CDLL) -> None:
    libm = ctypes.CDLL("libm.so.6")
    assert run(Node.native("n", libm.hypot, "double(double, double)", ["x", "y"]), x=3, y=4.0) == 5.0
    names = list("abcdefgh")
    eight = Node.native("n", lib.weigh, f"double({', '.join(['double'] * 8)})", names)
    assert run(eight, **{name: i + 1 for i, name in enumerate(names)}) == 87654321.0


@pytest.mark.parametrize(
    "signature", ["double(double,double)", "  double ( double ,  double ) ", "double(double, double)"]
)
def test_spaces_in_a_signature_mean_nothing(signature: str) -> None:
    assert run(Node.native("n", ctypes.CDLL("libm.so.6").hypot, signature, ["x", "y"]), x=3, y=4) == 5.0


@pytest.mark.parametrize(
    ("x", "expected"), [(4, 2.0), (4.0, 2.0), ("4", 2.0), (" 4e0 ", 2.0), ("6.25", 2.5), (2**60, 2.0**30)]
)
def test_a_number_may_also_be_a_text(x: Any, expected: float) -> None:
    assert run(Node.native("n", ctypes.CDLL("libm.so.6").sqrt, "double(double)", ["x"]), x=x) == expected


@pytest.mark.parametrize("x", ["four", "", "4 5", [4], {"x": 4}, None, True, "0x", "nan?"])
def test_what_is_no_number_fails_the_node_and_says_so(x: Any) -> None:
    result = Executor().execute(
        linked([Node.native("n", ctypes.CDLL("libm.so.6").sqrt, "double(double)", ["x"])]), {"x": x}
    )
    error = result.errors["n"]
    assert isinstance(error, NativeFunctionError), error
    assert "'n'" in str(error)
    assert error.node == "n"


def test_values_come_from_nodes_of_every_kind(provider: Any) -> None:
    provider.route("GET", "/page", json={"n": 16})
    sqrt = ctypes.CDLL("libm.so.6").sqrt
    nodes = [
        Node.function(lambda: 16, name="function"), Node.transform("text", "1{six}"), Node.http("page", "GET", provider.url + "/page", json_path="n"),
        Node.native("other", ctypes.CDLL("libm.so.6").pow, "double(double, double)", ["function", "six"]), Node.delay("pause", 0),
    ]  # fmt: skip
    nodes += [
        Node.native(f"root of {it}", sqrt, "double(double)", [it])
        for it in ("function", "text", "page", "other", "pause")
    ]
    result = Executor().execute(linked(nodes, [("function", "pause")]), {"six": 6}).raise_for_failure()
    assert [result[f"root of {it}"] for it in ("function", "text", "page", "pause")] == [4.0] * 4
    assert result["root of other"] == 4.0**6


def test_a_number_is_inserted_into_texts_and_given_to_functions_and_compared() -> None:
    libm = ctypes.CDLL("libm.so.6")
    nodes = [
        Node.native("whole", libm.sqrt, "double(double)", ["x"]), Node.native("half", libm.sqrt, "double(double)", ["y"]),
        Node.transform("text", "{whole} and {half}"), Node.function(lambda whole, half: (whole, half), name="python"),
        Node.function(lambda: 1, name="yes"), Node.function(lambda: 1, name="no"),
    ]  # fmt: skip
    made = linked(nodes)
    made.connect("half", "yes", when=("", ">", 2.4))
    made.connect("half", "no", when=("", "==", 2.4))
    result = Executor().execute(made, {"x": 4, "y": 6.25}).raise_for_failure()
    assert result["python"] == (2.0, 2.5)
    assert result["text"] in ("2 and 2.5", "2.0 and 2.5")
    assert (result.states["yes"], result.states["no"]) == ("succeeded", "skipped")


def test_a_number_is_kept_to_the_last_bit() -> None:
    values = [0.1, 1 / 3, 1e-300, 1.7976931348623157e308, 5e-324, -0.0, 123456789.123456789]
    identity = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: x)
    for value in values:
        nodes = [
            Node.native("a", identity, "double(double)", ["x"]),
            Node.native("b", identity, "double(double)", ["a"]),
            Node.transform("t", "{b}"),
        ]
        result = Executor().execute(linked(nodes), {"x": value}).raise_for_failure()
        assert struct.pack("d", result["b"]) == struct.pack("d", value)
        assert float(result["t"]) == value


def test_numbers_that_json_does_not_have_reach_python_and_fail_a_text(lib: ctypes.CDLL) -> None:
    for name in ("not_a_number", "endless"):
        nodes = [
            Node.native("n", getattr(lib, name), "double(double)", ["x"]),
            Node.function(lambda n: n, name="python"),
        ]
        result = Executor().execute(linked(nodes), {"x": 1}).raise_for_failure()
        assert result["python"] != result["python"] or result["python"] == float("inf")
        text = Executor().execute(linked([*nodes, Node.transform("t", '{{"x": {n}}}')]), {"x": 1})
        assert "t" in text.errors or text["t"]  # whatever is said, the run ends


# ------------------------------------------------------------------------------------------------------------------ bytes


@pytest.mark.parametrize("given", [b"", b"abc", bytes(range(256)), b"\xff\x00" * 5000])
def test_bytes_go_in_and_come_out(lib: ctypes.CDLL, given: bytes) -> None:
    assert run(Node.native("n", lib.reverse, "bytes(bytes)", ["x"]), x=given) == given[::-1]


def test_a_text_is_passed_as_utf_8(lib: ctypes.CDLL) -> None:
    assert run(Node.native("n", lib.reverse, "bytes(bytes)", ["x"]), x="aé") == "aé".encode()[::-1]


def test_an_output_that_needs_more_room_gets_it(lib: ctypes.CDLL) -> None:
    given = bytes(i % 251 for i in range(1_000_000))
    for room in (1, 4096, 2_000_000):
        assert run(Node.native("n", lib.reverse, "bytes(bytes)", ["x"], output_bytes=room), x=given) == given[::-1]
    assert run(Node.native("n", lib.hello, "bytes()", output_bytes=1)) == b"hello"


def test_no_output_is_an_empty_one(lib: ctypes.CDLL) -> None:
    assert run(Node.native("n", lib.nothing, "bytes(bytes)", ["x"]), x=b"abc") == b""


def test_bytes_pass_from_node_to_node_and_into_python(lib: ctypes.CDLL) -> None:
    nodes = [
        Node.function(lambda: b"\x00abc\xff", name="a"), Node.native("b", lib.reverse, "bytes(bytes)", ["a"]),
        Node.native("c", lib.reverse, "bytes(bytes)", ["b"]), Node.function(lambda a, b, c: (a, b, c), name="python"),
    ]  # fmt: skip
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert result["python"] == (b"\x00abc\xff", b"\xffcba\x00", b"\x00abc\xff")


def test_a_function_that_reports_a_failure_fails_its_node_with_its_code(lib: ctypes.CDLL) -> None:
    result = Executor().execute(linked([Node.native("n", lib.refuse, "bytes(bytes)", ["x"])]), {"x": b""})
    assert isinstance(result.errors["n"], NativeFunctionError)
    assert "-42" in str(result.errors["n"])


def test_a_function_that_wants_more_room_again_fails_its_node(lib: ctypes.CDLL) -> None:
    result = Executor().execute(linked([Node.native("n", lib.greedy, "bytes(bytes)", ["x"])]), {"x": b"abc"})
    assert isinstance(result.errors["n"], NativeFunctionError)
    assert lib.times_asked() == 2


def test_a_failed_function_falls_back_and_is_handled(lib: ctypes.CDLL) -> None:
    nodes = [
        Node.native("n", lib.refuse, "bytes(bytes)", ["x"], fallback=lambda error: type(error).__name__),
        Node.native("m", lib.refuse, "bytes(bytes)", ["x"]), Node.function(lambda m: m, name="last", join="all_done"),
    ]  # fmt: skip
    result = Executor().execute(linked(nodes), {"x": b""}).raise_for_failure()
    assert (result["n"], result["last"]) == ("NativeFunctionError", None)


# ------------------------------------------------------------------------------------------------------------- in a graph


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
def test_each_node_is_called_once(lib: ctypes.CDLL, way: str) -> None:
    lib.bumped.restype = ctypes.c_int64
    before = lib.bumped()
    nodes = [Node.native(f"n{i}", lib.bump, "void()") for i in range(2000)]
    edges = [(f"n{i}", f"n{i + 1}") for i in range(0, 1999, 2)]
    executor, made = Executor(), linked(nodes, edges)
    if way == "execute":
        result = executor.execute(made)
    elif way == "start":
        result = executor.start(made).wait(PATIENCE)
    else:
        result = asyncio.run(executor.run_async(made))
    assert result.is_success()
    assert lib.bumped() - before == 2000
    assert result["n0"] is None
    assert result.nodes["n1"].started >= result.nodes["n0"].ended


@pytest.fixture
def gate(lib: ctypes.CDLL) -> Iterator[Node]:
    """A native node that waits until `lib.open_gate` is called; its output is 1, or 0 where nobody came."""
    lib.close_gate()
    yield Node.native("waits", lib.wait_for_gate, "double()")
    lib.open_gate()
    while lib.is_inside():
        pass


def test_a_function_runs_without_the_gil(lib: ctypes.CDLL, gate: Node) -> None:
    """It waits for a gate that Python opens, from a node of the same run."""
    result = Executor().execute(linked([gate, Node.function(lambda: lib.open_gate(), name="opens")]))
    assert result["waits"] == 1


def test_starting_a_run_does_not_wait_for_its_native_functions(lib: ctypes.CDLL, gate: Node) -> None:
    run = Executor().start(linked([gate]))
    lib.open_gate()
    assert run.wait(PATIENCE)["waits"] == 1


def test_an_event_loop_goes_on_while_native_functions_run(lib: ctypes.CDLL, gate: Node) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(Executor().run_async(linked([gate])))
        await asyncio.sleep(0)
        lib.open_gate()
        assert (await waiting)["waits"] == 1

    asyncio.run(main())


def test_native_functions_run_together(lib: ctypes.CDLL) -> None:
    """One waits for what the other does."""
    lib.close_gate()
    nodes = [Node.native("waits", lib.wait_for_gate, "double()"), Node.native("opens", lib.open_gate, "void()")]
    if (os.cpu_count() or 1) > 1:
        assert Executor().execute(linked(nodes))["waits"] == 1


def test_a_native_function_that_is_cancelled_goes_on_and_what_it_brings_is_dropped(
    lib: ctypes.CDLL, gate: Node
) -> None:
    nodes = [Node.delay("first", 0), gate, Node.native("after", lib.bump, "void()")]
    run = Executor().start(linked(nodes, [("first", "waits"), ("waits", "after")]))
    while not lib.is_inside():
        pass
    run.cancel()
    lib.open_gate()
    result = run.wait(PATIENCE)
    assert result.state() == "Cancelled"
    assert result.states["after"] == "cancelled"


def test_native_nodes_join_race_and_are_limited(lib: ctypes.CDLL) -> None:
    nodes = [
        Node.delay("slow", 3600), Node.native("quick", lib.seven, "double()", limit="cpu"), Node.native("race", lib.seven, "double()", join="any"),
        Node.native("last", lib.seven, "double()", join="all_done"),
    ]  # fmt: skip
    result = Executor(limits={"cpu": 1, "native": 1}).execute(
        linked(nodes, [("slow", "race"), ("quick", "race"), ("race", "last")])
    )
    assert result.states == {"slow": "cancelled", "quick": "succeeded", "race": "succeeded", "last": "succeeded"}


def test_a_native_node_may_be_the_body_of_a_map_and_of_a_loop() -> None:
    sqrt = ctypes.CDLL("libm.so.6").sqrt
    nodes = [
        Node.map("m", "xs", Node.native("n", sqrt, "double(double)", ["item"])),
        Node.loop("l", Node.native("n", sqrt, "double(double)", ["previous"]), ("", "<", 1.5), 20, initial="x"),
    ]  # fmt: skip
    result = Executor().execute(linked(nodes), {"xs": [1, 4, 9], "x": 256}).raise_for_failure()
    assert result["m"] == [1.0, 2.0, 3.0]
    assert result["l"] == pytest.approx(256 ** (1 / 16))
    assert result.nodes["l"].iterations == 4


def test_the_library_may_be_forgotten_while_the_node_lives(path: Path) -> None:
    import gc

    node = Node.native("n", ctypes.CDLL(str(path)).seven, "double()")
    gc.collect()
    assert run(node) == 7.0


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "pointer",
    [
        None,
        0,
        -1,
        True,
        1.5,
        "sqrt",
        b"sqrt",
        lambda: 1,
        ctypes.c_int(5),
        ctypes.c_void_p(0),
        1 << 64,
        cffi.FFI().NULL,
        object(),
    ],
)
def test_what_is_no_pointer_is_refused_with_the_node_named(pointer: Any) -> None:
    with pytest.raises(ConfigurationError, match="node 'n'"):
        Node.native("n", pointer, "void()")


@pytest.mark.parametrize(
    "signature", ["", "int(int)", "double(int)", "double", "void(double)", "bytes(double)", "bytes(bytes, bytes)", "double(bytes)",
                  "double(" + ", ".join(["double"] * 9) + ")", "double(double", None, 5, "double(double,)"],
)  # fmt: skip
def test_a_signature_of_another_kind_is_refused_with_the_node_named(signature: Any) -> None:
    with pytest.raises(ConfigurationError, match="node 'n'"):
        Node.native("n", 4096, signature, ["x"])


def test_arguments_that_do_not_fit_are_refused_with_the_node_named() -> None:
    for arguments in ([], ["x", "y"], "x", 5, [5], [""], None):
        with pytest.raises((ConfigurationError, InputError), match="'n'"):
            Node.native("n", 4096, "double(double)", arguments)  # type: ignore[arg-type]
    for room in (0, -1, 1.5, True, "4096", 1 << 50):
        with pytest.raises(ConfigurationError, match="output_bytes"):
            Node.native("n", 4096, "bytes()", output_bytes=room)  # type: ignore[arg-type]
    with pytest.raises(WorkflowError, match="whole outputs"):
        linked([Node.native("n", 4096, "double(double)", ["x.y"])]).validate()


def test_a_value_without_a_native_form_fails_its_node_or_is_refused(lib: ctypes.CDLL) -> None:
    node = Node.native("n", lib.reverse, "bytes(bytes)", ["x"])
    with pytest.raises(InputError, match="'x'"):
        Executor().execute(linked([node]), {"x": object()})
    result = Executor().execute(linked([Node.function(object, name="x"), node]))
    assert isinstance(result.errors["x"], graphbit.OutputError)
