"""What the forms of a graph cost: a map over many items, async functions, describing a workflow and running it for the first
time, cancelling, and how good a schedule of timed nodes under a limit is."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median, quantiles

from bench._harness import Numbers, cold, run_peer, warm
from bench._options import Options
from bench._table import Column, Row, Table, outcome_row

SUSPENDS = {False: "async functions that never suspend", True: "async functions that suspend once"}
PENDING = {"blocked": "functions behind a delay", "waiting": "delays"}


def run(options: Options) -> Iterator[Table]:
    yield mapped(options)
    yield async_nodes(options)
    yield building(options)
    yield cancelling(options)
    yield makespans(options)


def times_of(numbers: Numbers, count: int) -> Row:
    return {
        "cpu_us": warm(numbers, "cpu_s") / count * 1e6,
        "wall_us": warm(numbers, "wall_s") / count * 1e6,
        "cold_us": cold(numbers, "wall_s") / count * 1e6,
        "checksum": numbers["checksum"],
        "rounds": numbers["rounds"],
    }


def mapped(options: Options) -> Table:
    items = 2_000 if options.smoke else 100_000
    columns = (
        Column("peer", "peer"),
        Column("cpu_us", "CPU us/item", "{:.3f}"),
        Column("wall_us", "wall us/item", "{:.3f}"),
        Column("cold_us", "first run, wall us/item", "{:.3f}"),
        Column("bytes", "bytes/item", "{:.0f}"),
    )
    table = Table(f"graph: a map of {items:,} items over a Python function", columns, "wall_us", ("loop",))
    for peer in filter(options.wants, ("loop", "graphbit")):
        numbers = run_peer("map", peer, {"items": items, "repeats": options.repeats})
        if outcome_row(peer, numbers, table):
            continue
        row = {"peer": peer, **times_of(numbers, items)}
        if "grown_bytes" in numbers and not options.smoke:
            row["bytes"] = numbers["grown_bytes"] / items  # the results as well, 36 of them
        table.add(row)
    table.finish()
    return table


def async_nodes(options: Options) -> Table:
    nodes = 100 if options.smoke else 2_000
    columns = (
        Column("group", "nodes"),
        Column("peer", "peer"),
        Column("cpu_us", "CPU us/node", "{:.3f}"),
        Column("wall_us", "wall us/node", "{:.3f}"),
        Column("cold_us", "first run, wall us/node", "{:.3f}"),
    )
    table = Table(f"graph: {nodes:,} async functions", columns, "wall_us", ("asyncio",))
    for suspends, title in SUSPENDS.items():
        for peer in filter(options.wants, ("asyncio", "graphbit", "graphbit-async")):
            numbers = run_peer("async", peer, {"nodes": nodes, "suspends": suspends, "repeats": options.repeats})
            if not outcome_row(peer, numbers, table, title):
                table.add({"group": title, "peer": peer, **times_of(numbers, nodes)})
    table.finish()
    return table


def building(options: Options) -> Table:
    columns = (
        Column("peer", "fan"),
        Column("nodes_us", "build us/node", "{:.2f}"),
        Column("edges_us", "connect us/edge", "{:.2f}"),
        Column("freeze_us", "check and freeze us/node", "{:.2f}"),
        Column("again_us", "a run, wall us/node", "{:.3f}"),
        Column("whole_ms", "from nothing to results ms", "{:.2f}"),
        Column("x_small", "x the small one", "{:.1f}"),
    )
    sizes = (100, 1_000) if options.smoke else (1_000, 10_000)
    table = Table("graph: a fan described and run for the first time, small and ten times as large", columns)
    small = None
    for nodes in sizes if options.wants("graphbit") else ():
        numbers = run_peer("build", "graphbit", {"nodes": nodes, "repeats": options.repeats})
        name = f"graphbit {nodes:,}"
        if outcome_row(name, numbers, table):
            continue
        whole_s = warm(numbers, "wall_s")
        small = small or whole_s
        table.add(
            {
                "peer": name,
                "group": nodes,
                "nodes_us": warm(numbers, "nodes_s") / nodes * 1e6,
                "edges_us": warm(numbers, "edges_s") / numbers["edge_count"] * 1e6,
                "freeze_us": warm(numbers, "freeze_s") / nodes * 1e6,
                "again_us": warm(numbers, "again_s") / nodes * 1e6,
                "whole_ms": whole_s * 1e3,
                "x_small": whole_s / small,
                "checksum": numbers["checksum"],
                "rounds": numbers["rounds"],
            }
        )
    table.finish()
    return table


def cancelling(options: Options) -> Table:
    nodes = 500 if options.smoke else 10_000
    columns = (
        Column("group", "pending"),
        Column("peer", "peer"),
        Column("cpu_ms", "CPU ms", "{:.2f}"),
        Column("wall_ms", "wall ms", "{:.2f}"),
        Column("worst_ms", "worst ms", "{:.2f}"),
    )
    table = Table(f"graph: a run of {nodes:,} pending nodes is cancelled, until it is over", columns)
    for kind, title in PENDING.items():
        for peer in filter(options.wants, ("asyncio", "graphbit") if kind == "waiting" else ("graphbit",)):
            numbers = run_peer("cancel", peer, {"nodes": nodes, "kind": kind, "repeats": max(2, options.repeats)})
            if outcome_row(peer, numbers, table, title):
                continue
            table.add(
                {
                    "group": title,
                    "peer": peer,
                    "cpu_ms": warm(numbers, "cpu_s") * 1e3,
                    "wall_ms": warm(numbers, "wall_s") * 1e3,
                    "worst_ms": max(r["wall_s"] for r in numbers["rounds"]) * 1e3,
                    "checksum": numbers["checksum"],
                    "rounds": numbers["rounds"],
                }
            )
    table.finish()
    return table


def makespans(options: Options) -> Table:
    graphs, nodes = (5, 50) if options.smoke else (50, 200)
    columns = (
        Column("peer", "scheduler"),
        Column("median", "median", "{:.3f}"),
        Column("p90", "p90", "{:.3f}"),
        Column("worst", "worst", "{:.3f}"),
        Column("wall_s", "took s", "{:.2f}"),
    )
    table = Table(
        f"graph: makespan over max(critical path, work / limit), {graphs} random graphs of {nodes} timed nodes", columns
    )
    runs = {
        "first-come": ("first come, first served",),
        "graphbit": ("graphbit, first run", "graphbit, durations known"),
    }
    for peer in filter(options.wants, runs):
        numbers = run_peer("makespan", peer, {"graphs": graphs, "nodes": nodes})
        if outcome_row(peer, numbers, table):
            continue
        for name, ratios in zip(runs[peer], numbers["ratios"], strict=True):
            table.add(
                {
                    "peer": name,
                    "median": median(ratios),
                    "p90": quantiles(ratios, n=10, method="inclusive")[-1],
                    "worst": max(ratios),
                    "wall_s": warm(numbers, "wall_s"),
                    "checksum": numbers["checksum"],
                    "ratios": ratios,
                }
            )
    table.finish()
    return table
