"""What the core's scheduler costs by itself: native no-op nodes in plans of ten thousand and of a million, no Python between them."""

from __future__ import annotations

from collections.abc import Iterator

from bench._harness import cold, run_peer, warm
from bench._options import Options
from bench._table import Column, Table, outcome_row

PEERS = ("by-hand", "graphbit-caller", "graphbit-1", "graphbit-2")
SHAPES = ("chain", "fan", "random", "layers")

COLUMNS = (
    Column("group", "graph"),
    Column("peer", "peer"),
    Column("wall_ns", "wall ns/node", "{:.1f}"),
    Column("cpu_ns", "CPU ns/node", "{:.1f}"),
    Column("edge_ns", "wall ns/edge", "{:.1f}"),
    Column("cold_ns", "first run, wall ns/node", "{:.1f}"),
    Column("plan_ns", "plan ns/node", "{:.0f}"),
    Column("plan_bytes", "plan bytes/node", "{:.0f}"),
    Column("run_bytes", "run bytes/node", "{:.0f}"),
    Column("bytes", "together", "{:.0f}"),
)


def run(options: Options) -> Iterator[Table]:
    small, large = (1_000, 10_000) if options.smoke else (10_000, 1_000_000)
    yield one_size(options, small, SHAPES, 3 if options.smoke else max(options.repeats, 25))
    # Without the full layers: their edges alone, twenty to a node, would be most of it.
    yield one_size(options, large, SHAPES[:3], min(options.repeats, 3))


def one_size(options: Options, nodes: int, shapes: tuple[str, ...], repeats: int) -> Table:
    table = Table(f"graph: {nodes:,} native no-op nodes", COLUMNS, "wall_ns", ("by-hand",))
    for shape in shapes:
        edges = edge_count(shape, nodes)
        for peer in filter(options.wants, PEERS):
            numbers = run_peer("flat", peer, {"shape": shape, "nodes": nodes, "repeats": repeats})
            if outcome_row(peer, numbers, table, shape):
                continue
            row = {
                "group": shape,
                "peer": peer,
                "wall_ns": warm(numbers, "wall_s") / nodes * 1e9,
                "cpu_ns": warm(numbers, "cpu_s") / nodes * 1e9,
                "edge_ns": warm(numbers, "wall_s") / edges * 1e9,
                "cold_ns": cold(numbers, "wall_s") / nodes * 1e9,
                "checksum": numbers["checksum"],
                "rounds": numbers["rounds"],
            }
            if "plan_s" in numbers:
                row["plan_ns"] = numbers["plan_s"] / nodes * 1e9
            # Pages that the allocator had at hand already cannot be seen in a small plan's memory.
            if "plan_bytes" in numbers and nodes >= 100_000:
                row["plan_bytes"] = numbers["plan_bytes"] / nodes
                row["run_bytes"] = numbers["run_bytes"] / nodes
                row["bytes"] = row["plan_bytes"] + row["run_bytes"]
            table.add(row)
    table.finish()
    return table


def edge_count(shape: str, nodes: int) -> int:
    """How many there are, for `random` nearly."""
    return {"chain": nodes - 1, "fan": 2 * (nodes - 2), "random": 3 * nodes, "layers": 20 * (nodes - 20)}[shape]
