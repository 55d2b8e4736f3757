"""What `import graphbit` costs over a bare interpreter: many fresh interpreters in turn, medians, the bare one subtracted."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from statistics import median
from time import perf_counter

from bench._harness import run_program
from bench._options import Options
from bench._table import Column, Row, Table, outcome_row

PUBLIC = "from graphbit import Executor, LlmClient, LlmConfig, Node, Workflow"
FIRST_RUN = f"""{PUBLIC}
def one(): return 1
workflow = Workflow("first")
workflow.add(Node.function(one))
result = Executor().execute(workflow)
assert result["one"] == 1"""

# name -> (the package it needs, the program)
PROGRAMS = {
    "bare": (None, ""),
    "graphbit": ("graphbit", "import graphbit"),
    "graphbit, names": ("graphbit", PUBLIC),
    "graphbit, first run": ("graphbit", FIRST_RUN),
    "asyncio": ("asyncio", "import asyncio"),
    "pycurl": ("pycurl", "import pycurl"),
    "httpx": ("httpx", "import httpx"),
    "aiohttp": ("aiohttp", "import aiohttp"),
}

# Reports on itself last: CPU since it was started, and the high-water mark of its memory.
REPORT = """
import time as _time
_cpu = _time.process_time()
_peak = next((int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")), 0)
print('{"cpu_s": %f, "peak_kib": %d}' % (_cpu, _peak))
"""

COLUMNS = (
    Column("peer", "import"),
    Column("cpu_ms", "CPU ms", "{:.1f}"),
    Column("wall_ms", "wall ms", "{:.1f}"),
    Column("rss_mib", "memory MiB", "{:.1f}"),
)


def run(options: Options) -> Iterator[Table]:
    import sys

    table = Table("import: over a bare interpreter", COLUMNS, "cpu_ms", ("httpx",))
    samples: dict[str, list[tuple[float, float, float]]] = {}
    for turn in range(1 + (2 if options.smoke else 21)):  # the first writes the bytecode and does not count
        for name, (package, program) in PROGRAMS.items():
            if not options.wants(name.partition(",")[0]) and name != "bare":
                continue
            if turn == 0:
                if package and importlib.util.find_spec(package) is None:
                    outcome_row(name, {"absent": package}, table)
                    continue
                samples[name] = []
            if name not in samples:
                continue
            began = perf_counter()
            numbers = run_program([sys.executable, "-c", program + REPORT])
            wall_s = perf_counter() - began
            if outcome_row(name, numbers, table):
                del samples[name]
            elif turn:
                samples[name].append((numbers["cpu_s"] * 1e3, wall_s * 1e3, numbers["peak_kib"] / 1024))
    middle = {name: [median(column) for column in zip(*found, strict=True)] for name, found in samples.items()}
    for name, numbers_of in middle.items():
        row: Row = {"peer": name}
        for key, here, bare in zip(("cpu_ms", "wall_ms", "rss_mib"), numbers_of, middle["bare"], strict=True):
            row[key] = here if name == "bare" else here - bare
        if name == "bare":
            row["peer"] = "bare (whole)"
        table.add(row)
    table.finish()
    yield table
