"""How fast the mock provider itself is, so that nobody takes its limit for a client's: wrk where installed, else curl_multi."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

from bench._native import CACHE, MockServer
from bench._options import Options
from bench._table import Column, Row, Table, outcome_row
from bench.batch import run_c

COLUMNS = (
    Column("peer", "client"),
    Column("connections", "connections"),
    Column("latency_ms", "latency ms"),
    Column("per_s", "req/s", "{:,.0f}"),
    Column("mock_us", "mock CPU us/req", "{:.1f}"),
    Column("client_us", "client CPU us/req", "{:.1f}"),
)

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"mock","messages":[{"role":"user","content":"Item 00001: write one line about bee number 1."}],"max_tokens":64}'
"""


def run(options: Options) -> Iterator[Table]:
    table = Table("mock: the provider's own speed", COLUMNS)
    settings = [(100, 0)] if options.smoke else [(1, 0), (100, 0), (1_000, 0), (1_000, 50)]
    for connections, latency_ms in settings:
        with MockServer(latency_ms=latency_ms) as mock:
            if shutil.which("wrk"):
                table.add(by_wrk(mock, connections, 1 if options.smoke else 4) | {"latency_ms": latency_ms})
            else:
                by_libcurl(mock, connections, latency_ms, table, 2_000 if options.smoke else 40_000)
    table.finish()
    yield table


def client_cpu_s() -> float:
    usage = getrusage(RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def by_wrk(mock: MockServer, connections: int, seconds: int) -> Row:
    CACHE.mkdir(parents=True, exist_ok=True)
    script = CACHE / "wrk.lua"
    script.write_text(SCRIPT)
    before, cpu_s = mock.stats(), client_cpu_s()
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"{mock.base_url}/chat/completions"],
        capture_output=True,
        text=True,
        check=True,
    )
    cpu_s = client_cpu_s() - cpu_s
    found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
    assert found, done.stdout
    return row_of("wrk", connections, float(found[1]), before, mock.stats(), cpu_s)


def by_libcurl(mock: MockServer, connections: int, latency_ms: int, table: Table, count: int) -> None:
    before, cpu_s = mock.stats(), client_cpu_s()
    numbers = run_c(mock, ["batch", f"{mock.base_url}/chat/completions", str(count), str(connections), "0"])
    if not outcome_row("c-libcurl", numbers, table):
        per_s = count / numbers["rounds"][0]["wall_s"]
        after = {"requests": before["requests"] + count, "cpu_s": mock.stats()["cpu_s"]}
        table.add(
            row_of("c-libcurl", connections, per_s, before, after, client_cpu_s() - cpu_s) | {"latency_ms": latency_ms}
        )


def row_of(
    client: str, connections: int, per_s: float, before: dict[str, Any], after: dict[str, Any], cpu_s: float
) -> Row:
    requests = after["requests"] - before["requests"]
    return {
        "peer": client,
        "connections": connections,
        "per_s": per_s,
        "mock_us": (after["cpu_s"] - before["cpu_s"]) / requests * 1e6,
        "client_us": cpu_s / requests * 1e6,
    }
