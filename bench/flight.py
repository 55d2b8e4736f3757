"""Thousands of calls in flight at once: what one costs in CPU and in memory when all are started before the first is answered.

The provider takes two seconds, longer than most clients need to send them all: "in flight max" says whether they did. Each
call has a connection of its own; the cold round opens them.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench._harness import cold, raise_descriptor_limit, warm
from bench._native import MockServer
from bench._options import Options
from bench._table import Column, Table, outcome_row
from bench.batch import numbers_of

PEERS = ("c-libcurl", "graphbit", "graphbit-async", "graphbit-each", "aiohttp")
CALLS = 10_000
DESCRIPTORS_SPARED = 500  # for everything else a process has open

COLUMNS = (
    Column("peer", "peer"),
    Column("cpu_us", "CPU us/call", "{:.1f}"),
    Column("cold_cpu_us", "cold CPU us/call", "{:.1f}"),
    Column("over_s", "over the latency s", "{:.2f}"),
    Column("cold_over_s", "cold over s", "{:.2f}"),
    Column("connections", "connections cold / warm"),
    Column("in_flight", "in flight max"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
    Column("rss_kib", "RSS KiB/call", "{:.1f}"),
)


def run(options: Options) -> Iterator[Table]:
    latency_ms = 300 if options.smoke else 2_000
    calls = min(200 if options.smoke else CALLS, raise_descriptor_limit() - DESCRIPTORS_SPARED)
    table = Table(
        f"flight: {calls:,} calls in flight at once, {latency_ms:,} ms", COLUMNS, "cpu_us", ("c-libcurl", "aiohttp")
    )
    with MockServer(latency_ms=latency_ms) as mock:
        for peer in filter(options.wants, PEERS):
            numbers = numbers_of(mock, peer, calls, calls, min(options.repeats, 3), head=calls, gap_rounds=0)
            if outcome_row(peer, numbers, table):
                continue
            table.add(
                {
                    "peer": peer,
                    "cpu_us": warm(numbers, "cpu_s") / calls * 1e6,
                    "cold_cpu_us": cold(numbers, "cpu_s") / calls * 1e6,
                    "over_s": warm(numbers, "wall_s") - latency_ms / 1e3,
                    "cold_over_s": cold(numbers, "wall_s") - latency_ms / 1e3,
                    "connections": f"{cold(numbers, 'connections'):.0f} / {warm(numbers, 'connections'):.0f}",
                    "in_flight": numbers["max_in_flight"],
                    "rss_mib": numbers["rss_peak_kib"] / 1024,
                    "rss_kib": numbers["rss_peak_kib"] / calls,
                    "checksum": numbers["checksum"],
                    "rounds": numbers["rounds"],
                }
            )
    table.finish()
    yield table
