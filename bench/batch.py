"""Completions in a batch: what one costs in CPU, how near the ideal rate the batch comes, how many connections it opens, and
for how long it keeps the program's other threads from running.

The ideal rate is concurrency / latency. The first round is cold: it opens the connections and pays every first time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench._harness import Numbers, cold, percentile, run_peer, run_program, warm
from bench._native import MockServer, Server, build, libcurl
from bench._options import Options
from bench._table import Column, Row, Table, outcome_row

PEERS = ("c-libcurl", "pycurl", "graphbit", "graphbit-async", "graphbit-each", "aiohttp", "openai", "httpx")
SLOW = {"openai": 2_000, "httpx": 0}  # seconds a round: one warm round, and so many completions of the big size
GAP_ROUNDS = 3

COLUMNS = (
    Column("peer", "peer"),
    Column("cpu_ms_per_1k", "CPU ms / 1k", "{:.1f}"),
    Column("per_s", "req/s", "{:,.0f}"),
    Column("cold_cpu_ms", "cold CPU ms / 1k", "{:.1f}"),
    Column("cold_s", "cold batch s", "{:.3f}"),
    Column("wall_s", "batch s", "{:.3f}"),
    Column("connections", "connections cold / warm"),
    Column("in_flight", "in flight max"),
    Column("gap_ms", "gap p99 ms", "{:.1f}"),
    Column("gap_max_ms", "gap max ms", "{:.1f}"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
)


def run(options: Options) -> Iterator[Table]:
    sizes = [(200, 50)] if options.smoke else [(2_000, 100), (2_000, 1_000)]
    if options.big:
        sizes.append((10_000, 1_000))
    for count, concurrency in sizes:
        yield one_size(options, count, concurrency)


def one_size(options: Options, count: int, concurrency: int) -> Table:
    ideal = f"ideal {concurrency * 1000 // options.latency_ms:,} req/s" if options.latency_ms else "no latency"
    table = Table(
        f"batch: {count:,} completions, {concurrency:,} in flight, {options.latency_ms} ms ({ideal})",
        COLUMNS,
        "cpu_ms_per_1k",
        ("c-libcurl", "pycurl"),
    )
    head = min(count, *filter(None, SLOW.values()))
    with MockServer(latency_ms=options.latency_ms) as mock:
        for peer in filter(options.wants, PEERS):
            mine = min(count, SLOW[peer]) if peer in SLOW and count > 2_000 else count
            if not mine:
                continue
            repeats = min(options.repeats, 1) if peer in SLOW else options.repeats
            gap_rounds = 1 if peer in SLOW else GAP_ROUNDS
            numbers = numbers_of(mock, peer, mine, concurrency, repeats, head=head, gap_rounds=gap_rounds)
            if outcome_row(peer, numbers, table):
                continue
            row = row_of(peer, numbers, mine)
            if mine < count:
                del row["checksum"]  # that of the beginning is compared
                row["note"] = f"{mine:,} of them"
            table.add(row)
    table.finish()
    return table


def row_of(peer: str, numbers: Numbers, count: int) -> Row:
    row = {
        "peer": peer,
        "cpu_ms_per_1k": warm(numbers, "cpu_s") / count * 1e6,
        "per_s": count / warm(numbers, "wall_s"),
        "cold_cpu_ms": cold(numbers, "cpu_s") / count * 1e6,
        "cold_s": cold(numbers, "wall_s"),
        "wall_s": warm(numbers, "wall_s"),
        "connections": f"{cold(numbers, 'connections'):.0f} / {warm(numbers, 'connections'):.0f}",
        "in_flight": numbers["max_in_flight"],
        "rss_mib": numbers["rss_peak_kib"] / 1024,
        "checksum": numbers["checksum"],
        "rounds": numbers["rounds"],
    }
    if "checksum_head" in numbers:
        row["checksum_head"] = numbers["checksum_head"]
    if gaps := numbers.get("gaps_ms"):
        row |= {"gap_ms": percentile(gaps, 99), "gap_max_ms": max(gaps), "gaps": len(gaps)}
    return row


def numbers_of(
    mock: MockServer, peer: str, count: int, concurrency: int, repeats: int, *, head: int, gap_rounds: int
) -> Numbers:
    if peer == "c-libcurl":
        return run_c(mock, ["batch", f"{mock.base_url}/chat/completions", str(count), str(concurrency), str(repeats)])
    numbers = run_peer(
        "batch",
        peer,
        {
            "base_url": mock.base_url,
            "port": mock.port,
            "count": count,
            "concurrency": concurrency,
            "repeats": repeats,
            "head": head,
            "gap_rounds": gap_rounds,
        },
    )
    if "rounds" in numbers:
        numbers["max_in_flight"] = max(r["max_in_flight"] for r in numbers["rounds"])
    return numbers


def run_c(mock: Server, arguments: Sequence[str], environment: dict[str, str] | None = None) -> Numbers:
    """The C baseline counts its own connections; the mock says how many of its requests were in flight at once."""
    library = libcurl()
    if library is None:
        return {"absent": "libcurl.so.4"}
    mock.stats(reset=True)
    numbers = run_program([str(build("curl_multi")), library, *arguments], environment)
    return {**numbers, "max_in_flight": mock.stats(reset=True)["max_in_flight"]}
