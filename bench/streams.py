"""Server-sent events, OpenAI's chunks: what one costs in CPU until Python has its text, and how long it is on its way.

In bursts a client is handed many events at once; paced it wakes for nearly each one, which is how models answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench._harness import cold, run_peer, warm
from bench._native import StreamServer
from bench._options import Options
from bench._table import Column, Table, outcome_row

PEERS = ("aiohttp", "graphbit-threads", "graphbit-async", "openai")
SLOW = frozenset({"openai"})  # one warm round

COLUMNS = (
    Column("peer", "peer"),
    Column("cpu_us", "CPU us/event", "{:.2f}"),
    Column("per_s", "events/s", "{:,.0f}"),
    Column("p50_ms", "on its way p50 ms", "{:.2f}"),
    Column("p99_ms", "p99 ms", "{:.2f}"),
    Column("max_ms", "max ms", "{:.1f}"),
    Column("cold_cpu_us", "cold CPU us/event", "{:.2f}"),
    Column("per_piece", "events/piece", "{:.2f}"),
    Column("server_us", "server CPU us/event", "{:.2f}"),
    Column("connections", "connections cold / warm"),
    Column("in_flight", "streams at once"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
)


def run(options: Options) -> Iterator[Table]:
    streams, events, few = (20, 20, 3) if options.smoke else (200, 200, 10)
    yield one(options, "in bursts", streams, events, 0)
    yield one(options, "one every 20 ms in each", streams, events, 20_000)
    yield one(options, "one every 20 ms in each", few, events, 20_000)


def one(options: Options, how: str, streams: int, events: int, interval_us: int) -> Table:
    table = Table(f"streams: {streams} at once, {events} events each, {how}", COLUMNS, "cpu_us", ("aiohttp", "openai"))
    total = streams * events
    # 50 ms before the first event, so that all streams are open when the bursts come.
    with StreamServer(events, interval_us, latency_ms=50) as server:
        for peer in filter(options.wants, PEERS):
            spec = {
                "base_url": server.base_url,
                "port": server.port,
                "streams": streams,
                "events": events,
                "timed": interval_us > 0,
                "repeats": min(options.repeats, 1 if peer in SLOW else 3),
            }
            numbers = run_peer("streams", peer, spec)
            if outcome_row(peer, numbers, table):
                continue
            rounds = numbers["rounds"]
            row = {
                "peer": peer,
                "cpu_us": warm(numbers, "cpu_s") / total * 1e6,
                "per_s": total / warm(numbers, "wall_s"),
                "cold_cpu_us": cold(numbers, "cpu_s") / total * 1e6,
                "per_piece": total / warm(numbers, "pieces"),
                "server_us": warm(numbers, "server_cpu_s") / total * 1e6,
                "connections": f"{cold(numbers, 'connections'):.0f} / {warm(numbers, 'connections'):.0f}",
                "in_flight": max(r["max_in_flight"] for r in rounds),
                "rss_mib": numbers["rss_peak_kib"] / 1024,
                "checksum": numbers["checksum"],
                "rounds": rounds,
            }
            if interval_us:
                row |= {key: warm(numbers, key) for key in ("p50_ms", "p99_ms", "max_ms")}
            table.add(row)
    table.finish()
    return table
