"""Thousands of calls in flight and nobody wants them any more: when the server sees their connections closed.

First some are cancelled one at a time, then all the rest at once. Times are from `task.cancel()` to the end of the connection
at the server, whose answers would take ten minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from bench._harness import percentile, raise_descriptor_limit, run_peer
from bench._native import MockServer
from bench._options import Options
from bench._table import Column, Table, outcome_row

PEERS = ("aiohttp", "graphbit")

COLUMNS = (
    Column("peer", "peer"),
    Column("p50_ms", "one: p50 ms", "{:.2f}"),
    Column("p99_ms", "p99 ms", "{:.2f}"),
    Column("max_ms", "max ms", "{:.2f}"),
    Column("all_ms", "all: closed ms", "{:.0f}"),
    Column("back_ms", "all: tasks over ms", "{:.0f}"),
    Column("cpu_us", "all: CPU us/call", "{:.1f}"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
)


def run(options: Options) -> Iterator[Table]:
    raise_descriptor_limit()
    count, singles = (200, 20) if options.smoke else (5_000, 100)
    table = Table(
        f"cancel: {count:,} calls in flight, {singles} cancelled one by one, then all", COLUMNS, "cpu_us", ("aiohttp",)
    )
    with MockServer(latency_ms=600_000) as mock:
        for peer in filter(options.wants, PEERS):
            spec = {
                "base_url": mock.base_url,
                "port": mock.port,
                "count": count,
                "singles": singles,
                "repeats": min(options.repeats, 3),
            }
            numbers = run_peer("hangups", peer, spec)
            if outcome_row(peer, numbers, table):
                continue
            rounds = numbers["rounds"]
            each_ms = [ms for r in rounds for ms in r["each_ms"]]
            table.add(
                {
                    "peer": peer,
                    "p50_ms": percentile(each_ms, 50),
                    "p99_ms": percentile(each_ms, 99),
                    "max_ms": max(each_ms),
                    "all_ms": median(r["all_ms"] for r in rounds),
                    "back_ms": median(r["back_ms"] for r in rounds),
                    "cpu_us": median(r["all_cpu_s"] for r in rounds) / (count - singles) * 1e6,
                    "rss_mib": numbers["rss_peak_kib"] / 1024,
                    "checksum": numbers["checksum"],
                    "rounds": rounds,
                }
            )
    table.finish()
    yield table
