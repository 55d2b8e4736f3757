"""`python -m bench`: every bench, or those that are named. See README.md for how to read what it prints."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import (
    admission_cost,
    batch,
    fanout,
    flight,
    graph_cores,
    graph_forms,
    graph_native,
    graph_overhead,
    hangups,
    import_cost,
    mock_speed,
    streams,
    tls_cost,
    transports,
)
from bench._native import CannotBuild, build
from bench._options import Options

BENCHES = {
    "graph": graph_overhead.run,
    "import": import_cost.run,
    "fan": fanout.run,
    "batch": batch.run,
    "flight": flight.run,
    "streams": streams.run,
    "cancel": hangups.run,
    "tls": tls_cost.run,
    "admission": admission_cost.run,
    "transports": transports.run,
    "mock": mock_speed.run,
}
# Parts of `graph` by themselves.
PARTS = {
    "graph-native": graph_native.run,
    "graph-forms": graph_forms.run,
    "graph-cores": graph_cores.run,
}
PACKAGES = ("graphbit", "pycurl", "aiohttp", "httpx", "openai", "langgraph", "dask")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What graphbit costs, beside its peers.")
    parser.add_argument(
        "bench",
        nargs="*",
        choices=[*BENCHES, *PARTS, "serve", []],  # the empty list: argparse checks the default as well
        metavar="BENCH",
        help=f"{', '.join(BENCHES)} (default: all of them); parts of graph: {', '.join(PARTS)}; "
        "serve: run the mock provider alone",
    )
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that everything still runs")
    parser.add_argument("--repeats", type=int, help="warm rounds per row (default 5)")
    parser.add_argument("--peers", default="", help="only these rows, by comma")
    parser.add_argument("--latency", type=int, metavar="MS", help="of the mock provider (default 50)")
    parser.add_argument("--big", action="store_true", help="batch: also 10,000 completions, 1,000 in flight")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--port", type=int, default=0, help="serve: where to listen")
    return parser


def machine() -> dict[str, Any]:
    def version_of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            if package != "graphbit":
                return None
        import graphbit  # from the source checkout

        return graphbit.__version__

    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def serve(port: int, latency_ms: int) -> None:
    """Runs the mock provider in this process's place until its input closes."""
    program = str(build("mock_server"))
    os.execv(program, [program, "--port", str(port), "--latency", str(latency_ms)])


def main() -> int:
    given = arguments().parse_args()
    options = Options(
        smoke=given.smoke,
        repeats=given.repeats,
        latency_ms=given.latency,
        big=given.big,
        peers=frozenset(filter(None, given.peers.split(","))),
    )
    if "serve" in given.bench:
        serve(given.port, options.latency_ms)
    about = machine()
    print(
        f"# Python {about['python']}, {about['cores']} cores, load {about['load'][0]}; "
        + ", ".join(f"{name} {number or '-'}" for name, number in about["versions"].items())
        + "\n",
        flush=True,
    )
    began = time.monotonic()
    tables = []
    for name in given.bench or BENCHES:
        for table in {**BENCHES, **PARTS}[name](options):
            tables.append(table)
            print(table.text(), flush=True)
    print(f"# {time.monotonic() - began:.0f} s")
    problems = [problem for table in tables for problem in table.problems]
    if given.json:
        given.json.write_text(
            json.dumps({"machine": about, "tables": [t.data() for t in tables], "problems": problems}, indent=1)
        )
    for problem in problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotBuild as error:
        sys.exit(f"bench: {error}")
