"""Work for two cores: independent pieces that compute, between a fork and a join.

    hash        a Python function that hashes 200 kB (hashlib lets the GIL go)
    native      a C function that computes for about 3 ms
    process     a Python function that computes for about 50 ms and holds the GIL

Peers: `one-core` is a plain loop; `by-hand` two threads of concurrent.futures, or two processes for `process`; `graphbit` a
workflow fork -> pieces -> join. What starts once (threads, worker processes) stands before the clock starts.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from typing import Any

from bench import _work
from bench._harness import Numbers, measure
from bench._native import library

CORES = 2
BURN_ROUNDS = 2_000_000
LOOP_ROUNDS = 1_200_000


def run_cores(peer: str, spec: Numbers) -> Numbers:
    kind, pieces, repeats = spec["kind"], spec["pieces"], spec["repeats"]
    scale = spec["scale"]
    if peer == "graphbit":
        return by_graphbit(kind, pieces, scale, repeats)
    work = pieces_of(kind, scale)
    if peer == "one-core":
        return measure(lambda: [work(i) for i in range(pieces)], repeats, checksum)
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    if kind == "process":
        import multiprocessing

        with ProcessPoolExecutor(CORES, multiprocessing.get_context("forkserver")) as pool:
            list(pool.map(loop, [1] * 2 * CORES))
            rounds = int(LOOP_ROUNDS * scale)
            return measure(lambda: list(pool.map(loop, [rounds + i for i in range(pieces)])), repeats, checksum)
    with ThreadPoolExecutor(CORES) as threads:
        return measure(lambda: list(threads.map(work, range(pieces))), repeats, checksum)


def checksum(values: list[Any]) -> int:
    return sum(int(value * (1 << 30)) for value in values) % (1 << 32)


# ------------------------------------------------------------------ the work

_data = bytes(range(250)) * 800


def digest(piece: int) -> int:
    seen = hashlib.sha256(_data)
    seen.update(piece.to_bytes(4, "big"))
    return int.from_bytes(seen.digest()[:4], "big")


def loop(rounds: int) -> int:
    total = 0
    for i in range(rounds):
        total = (total * 31 + i) % 1_000_003
    return total


def burn() -> Any:
    function = library("work").burn
    function.restype, function.argtypes = ctypes.c_double, (ctypes.c_double,)
    return function


def pieces_of(kind: str, scale: float) -> Callable[[int], float]:
    if kind == "hash":
        return digest
    if kind == "process":
        rounds = int(LOOP_ROUNDS * scale)
        return lambda piece: loop(rounds + piece)
    function = burn()
    rounds = int(BURN_ROUNDS * scale)
    return lambda piece: float(function(rounds + piece))


# ------------------------------------------------------------------ as a workflow


def by_graphbit(kind: str, pieces: int, scale: float, repeats: int) -> Numbers:
    from graphbit import Executor, Node, Workflow, configure_runtime

    configure_runtime(worker_threads=CORES)
    workflow = Workflow("cores", inputs=[f"in{i}" for i in range(pieces)])
    workflow.add(Node.function(_work.noop, name="fork"))
    names = [f"piece{i}" for i in range(pieces)]
    inputs: dict[str, Any] = {f"in{i}": i for i in range(pieces)}
    if kind == "hash":
        workflow.add(*(Node.function(digest, name, bind={"piece": f"in{i}"}) for i, name in enumerate(names)))
    elif kind == "process":
        rounds = int(LOOP_ROUNDS * scale)
        inputs = {f"in{i}": rounds + i for i in range(pieces)}
        workflow.add(
            *(Node.function(loop, name, bind={"rounds": f"in{i}"}, process=True) for i, name in enumerate(names))
        )
    else:
        rounds = int(BURN_ROUNDS * scale)
        inputs = {f"in{i}": float(rounds + i) for i in range(pieces)}
        pointer = ctypes.cast(burn(), ctypes.c_void_p).value
        workflow.add(*(Node.native(name, pointer, "double(double)", [f"in{i}"]) for i, name in enumerate(names)))
    workflow.add(Node.function(_work.noop, name="join"))
    for name in names:
        workflow.connect("fork", name)
        workflow.connect(name, "join")
    executor = Executor()

    def once() -> list[Any]:
        result = executor.execute(workflow, inputs)
        result.raise_for_failure()
        return [result[name] for name in names]

    once()
    return measure(once, repeats, checksum)
