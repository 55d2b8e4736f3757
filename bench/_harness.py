"""Measures. `measure` runs inside a peer's own process, `run_peer` starts that process; nothing here prints a table.

CPU seconds are the whole process's, all threads, user and system (what getrusage(RUSAGE_SELF) counts, by a finer clock).
Peak memory is the kernel's high-water mark of this program alone: ru_maxrss would start at that of the program that
started it. A peer's process loads this module, so its top imports little.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")
Numbers = dict[str, Any]

PEER_TIMEOUT_S = 600


def peak_kib() -> int:
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1])
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What `work` returns, its CPU seconds and its wall seconds."""
    wall = time.perf_counter_ns()
    cpu = time.process_time_ns()
    value = work()
    cpu = time.process_time_ns() - cpu
    wall = time.perf_counter_ns() - wall
    return value, cpu / 1e9, wall / 1e9


def measure(
    work: Callable[[], T],
    repeats: int,
    checksum: Callable[[T], int],
    after: Callable[[], Numbers] | None = None,
) -> Numbers:
    """Runs `work` once cold and `repeats` times warm. `checksum` and `after` (more numbers of the round, say the
    server's counters) run outside the clock. Two rounds that differ in their checksum are an error."""
    rounds: list[Numbers] = []
    sums: set[int] = set()
    for _ in range(1 + repeats):
        value, cpu_s, wall_s = timed(work)
        rounds.append({"cpu_s": cpu_s, "wall_s": wall_s, **(after() if after else {})})
        sums.add(checksum(value))
        del value
    if len(sums) != 1:
        raise AssertionError(f"two rounds of the same work gave different results: {sorted(sums)}")
    return {"rounds": rounds, "checksum": sums.pop(), "rss_peak_kib": peak_kib()}


def per_call(work: Callable[[], object], number: int, repeats: int) -> Numbers:
    """For work of microseconds: `number` calls a round, CPU and wall microseconds of one, medians of the rounds."""

    def many() -> None:
        for _ in range(number):
            work()

    many()
    rounds = [timed(many)[1:] for _ in range(repeats)]
    return {
        "cpu_us": median(cpu for cpu, _ in rounds) / number * 1e6,
        "wall_us": median(wall for _, wall in rounds) / number * 1e6,
    }


def warm(numbers: Numbers, key: str) -> float:
    """The median of a number over the warm rounds; over the cold one where there is no other."""
    rounds = numbers["rounds"]
    return float(median(r[key] for r in (rounds[1:] or rounds)))


def cold(numbers: Numbers, key: str) -> float:
    return float(numbers["rounds"][0][key])


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of the values that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def gaps_ms(work: Callable[[], object], rounds: int) -> list[float]:
    """How long a thread that sleeps a millisecond at a time was away each time, while `work` ran: what a program's other
    threads feel of it. Not inside a measured round: the sleeper costs CPU itself."""
    import threading

    gaps: list[float] = []
    over = threading.Event()

    def sleeper() -> None:
        last = time.perf_counter_ns()
        while not over.is_set():
            time.sleep(0.001)
            now = time.perf_counter_ns()
            gaps.append((now - last) / 1e6)
            last = now

    thread = threading.Thread(target=sleeper, daemon=True)
    thread.start()
    try:
        for _ in range(rounds):
            work()
    finally:
        over.set()
        thread.join()
    return gaps


def fetch(port: int, target: str) -> Any:
    """What a mock server says of itself, over a bare socket: a peer's process must not load an HTTP client for this."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(f"GET {target} HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n\r\n".encode())
        reply = bytearray()
        while piece := link.recv(65536):
            reply += piece
    return json.loads(bytes(reply).partition(b"\r\n\r\n")[2])


def read_stats(port: int, reset: bool = False) -> Numbers:
    found: Numbers = fetch(port, "/stats?reset=1" if reset else "/stats")
    return found


def mock_counters(port: int) -> Callable[[], Numbers]:
    """For `after`: the connections opened, the requests in flight and the server's CPU since the last look."""
    cpu_s = read_stats(port, reset=True)["cpu_s"]

    def after() -> Numbers:
        nonlocal cpu_s
        found = read_stats(port, reset=True)
        used_s, cpu_s = found["cpu_s"] - cpu_s, found["cpu_s"]
        return {
            "connections": found["connections"],
            "max_in_flight": found["max_in_flight"],
            "server_cpu_s": used_s,
        }

    return after


def raise_descriptor_limit() -> int:
    """This process and those it starts may have as many descriptors as the system lets them; how many."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def run_peer(bench: str, peer: str, spec: Numbers, environment: dict[str, str] | None = None) -> Numbers:
    """A peer's numbers, from a process of its own: {"rounds", "checksum", "rss_peak_kib", ...}, or {"absent": which
    package} or {"failed": why}. `environment`: more variables for that process."""
    return run_program([sys.executable, "-m", "bench.peers", bench, peer, json.dumps(spec)], environment)


def run_program(command: list[str], environment: dict[str, str] | None = None) -> Numbers:
    import subprocess
    from pathlib import Path

    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PEER_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {PEER_TIMEOUT_S} s"}
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        if os.environ.get("GRAPHBIT_BENCH_VERBOSE"):
            print(done.stderr, file=sys.stderr)
        return {"failed": f"{how}: {last[:200]}"}
    found: Numbers = json.loads(done.stdout.strip().splitlines()[-1])
    return found
