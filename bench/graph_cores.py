"""Fork and join over two cores: how many times faster than one core in a plain loop, beside threads or processes by hand."""

from __future__ import annotations

from collections.abc import Iterator

from bench._harness import run_peer, warm
from bench._options import Options
from bench._table import Column, Table, outcome_row

# kind -> (what it is, how many pieces, how many in a smoke test)
KINDS = {
    "hash": ("Python functions that hash 200 kB", 1_000, 20),
    "native": ("native nodes that compute for 3 ms", 100, 10),
    "process": ("Python loops of 50 ms in worker processes", 32, 4),
}
PEERS = ("one-core", "by-hand", "graphbit")

COLUMNS = (
    Column("group", "work"),
    Column("peer", "peer"),
    Column("wall_ms", "wall ms", "{:.1f}"),
    Column("speed_up", "times one core", "{:.2f}"),
    Column("cpu_ms", "CPU ms", "{:.1f}"),
)


def run(options: Options) -> Iterator[Table]:
    table = Table("graph: fork -> pieces -> join on two cores", COLUMNS)
    for kind, (what, many, few) in KINDS.items():
        pieces = few if options.smoke else many
        title = f"{pieces:,} {what}"
        found: dict[str, float] = {}
        for peer in filter(options.wants, PEERS):
            spec = {
                "kind": kind,
                "pieces": pieces,
                "scale": 0.05 if options.smoke else 1,
                "repeats": options.repeats,
            }
            numbers = run_peer("cores", peer, spec)
            if outcome_row(peer, numbers, table, title):
                continue
            found[peer] = warm(numbers, "wall_s")
            row = {
                "group": title,
                "peer": peer,
                "wall_ms": found[peer] * 1e3,
                "checksum": numbers["checksum"],
                "rounds": numbers["rounds"],
            }
            if kind != "process":  # this process's CPU is not that of the workers
                row["cpu_ms"] = warm(numbers, "cpu_s") * 1e3
            if "one-core" in found:
                row["speed_up"] = found["one-core"] / found[peer]
            table.add(row)
    table.finish()
    yield table
