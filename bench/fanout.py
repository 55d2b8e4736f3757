"""1 -> N -> 1 model calls: an outline, N sections that quote it, one text that quotes them all. The ideal is three latencies.

The peers are the same fan written by hand on their HTTP client; graphbit runs it as a workflow of agents.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench._harness import Numbers, cold, run_peer, warm
from bench._native import MockServer
from bench._options import Options
from bench._table import Column, Table, outcome_row
from bench.batch import run_c

PEERS = ("c-libcurl", "pycurl", "graphbit", "graphbit-async", "aiohttp", "httpx")

COLUMNS = (
    Column("peer", "peer"),
    Column("cpu_ms", "CPU ms", "{:.2f}"),
    Column("wall_ms", "wall ms", "{:.1f}"),
    Column("over_ms", "over the ideal ms", "{:.1f}"),
    Column("cold_cpu_ms", "cold CPU ms", "{:.1f}"),
    Column("cold_ms", "cold wall ms", "{:.1f}"),
    Column("build_ms", "build CPU ms", "{:.2f}"),
    Column("connections", "connections cold / warm"),
    Column("in_flight", "in flight max"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
)


def run(options: Options) -> Iterator[Table]:
    width = 10 if options.smoke else 100
    ideal_ms = 3 * options.latency_ms
    table = Table(
        f"fan: 1 -> {width} -> 1 calls, {options.latency_ms} ms (ideal {ideal_ms} ms)",
        COLUMNS,
        "cpu_ms",
        ("c-libcurl", "pycurl"),
    )
    with MockServer(latency_ms=options.latency_ms) as mock:
        for peer in filter(options.wants, PEERS):
            numbers = numbers_of(mock, peer, width, options.repeats)
            if outcome_row(peer, numbers, table):
                continue
            row = {
                "peer": peer,
                "cpu_ms": warm(numbers, "cpu_s") * 1e3,
                "wall_ms": warm(numbers, "wall_s") * 1e3,
                "over_ms": warm(numbers, "wall_s") * 1e3 - ideal_ms,
                "cold_cpu_ms": cold(numbers, "cpu_s") * 1e3,
                "cold_ms": cold(numbers, "wall_s") * 1e3,
                "connections": f"{cold(numbers, 'connections'):.0f} / {warm(numbers, 'connections'):.0f}",
                "in_flight": numbers["max_in_flight"],
                "rss_mib": numbers["rss_peak_kib"] / 1024,
                "checksum": numbers["checksum"],
                "rounds": numbers["rounds"],
            }
            if "build_cpu_s" in numbers:
                row["build_ms"] = numbers["build_cpu_s"] * 1e3
            table.add(row)
    table.finish()
    yield table


def numbers_of(mock: MockServer, peer: str, width: int, repeats: int) -> Numbers:
    if peer == "c-libcurl":
        return run_c(mock, ["fan", f"{mock.base_url}/chat/completions", str(width), str(repeats)])
    spec = {"base_url": mock.base_url, "port": mock.port, "width": width, "repeats": repeats}
    numbers = run_peer("fan", peer, spec)
    if "rounds" in numbers:
        numbers["max_in_flight"] = max(r["max_in_flight"] for r in numbers["rounds"])
    return numbers
