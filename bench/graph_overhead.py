"""What the scheduler costs where the nodes cost nothing: Python functions on bare edges and with values along the edges,
native template nodes, and the description of a small workflow; then what stands in files of its own: native no-op nodes
(graph_native.py), maps, async functions, building, cancelling, makespans (graph_forms.py), and two cores (graph_cores.py).

A run is `execute()` until the results stand ready; reading every result and building the workflow are columns of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench import _work, graph_cores, graph_forms, graph_native
from bench._harness import Numbers, cold, run_peer, warm
from bench._options import Options
from bench._table import Column, Row, Table, outcome_row

PEERS = ("graphlib", "asyncio", "threads", "dask", "langgraph", "graphbit")
# Milliseconds a node and more in some shapes: one warm round, and no second series.
SLOW = "langgraph"

COLUMNS = (
    Column("group", "graph"),
    Column("peer", "peer"),
    Column("cpu_us", "CPU us/node", "{:.3f}"),
    Column("wall_us", "wall us/node", "{:.3f}"),
    Column("cold_us", "first run, wall us/node", "{:.3f}"),
    Column("argument_us", "CPU us/argument", "{:.3f}"),
    Column("read_us", "read us/node", "{:.3f}"),
    Column("build_us", "build us/node", "{:.2f}"),
    Column("connect_us", "connect us/edge", "{:.2f}"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
)

SERIES = {
    "edges": "no-op Python nodes joined by bare edges",
    "values": "Python nodes that pass numbers along the edges",
}
NATIVE_SERIES = {
    "edges": "native template nodes joined by bare edges",
    "values": "native template nodes that insert their first predecessor",
}


def run(options: Options) -> Iterator[Table]:
    repeats = options.repeats if options.smoke else max(options.repeats, 9)
    edges = one_series(options, repeats, "graph", "edges", SERIES["edges"], PEERS)
    yield edges
    values = one_series(options, repeats, "graph", "values", SERIES["values"], tuple(p for p in PEERS if p != SLOW))
    add_arguments(edges, values)
    yield values
    for series, title in NATIVE_SERIES.items():
        yield one_series(options, repeats, "native", series, title, ("graphlib", "graphbit"))
    yield describe(options)
    yield from graph_native.run(options)
    yield from graph_forms.run(options)
    yield from graph_cores.run(options)


def one_series(options: Options, repeats: int, bench: str, series: str, title: str, peers: tuple[str, ...]) -> Table:
    table = Table(f"graph: {title}", COLUMNS, "cpu_us", ("graphlib",))
    for shape in _work.SHAPES:
        graph = _work.make_graph(shape, options.smoke)
        group = f"{shape} {len(graph.parents)}/{graph.edge_count}"
        for peer in filter(options.wants, peers):
            rounds = 1 if peer == SLOW else repeats
            spec = {"shape": shape, "series": series, "smoke": options.smoke, "repeats": rounds}
            numbers = run_peer(bench, peer, spec)
            if not outcome_row(peer, numbers, table, group):
                table.add(row_of(peer, group, numbers, graph))
    table.finish()
    return table


def row_of(peer: str, group: str, numbers: Numbers, graph: _work.Graph) -> Row:
    nodes = len(graph.parents)
    row = {
        "group": group,
        "peer": peer,
        "cpu_us": warm(numbers, "cpu_s") / nodes * 1e6,
        "wall_us": warm(numbers, "wall_s") / nodes * 1e6,
        "cold_us": cold(numbers, "wall_s") / nodes * 1e6,
        "rss_mib": numbers["rss_peak_kib"] / 1024,
        "checksum": numbers["checksum"],
        "rounds": numbers["rounds"],
        "edges": graph.edge_count,
        "nodes": nodes,
    }
    if "read_s" in numbers:
        row["read_us"] = numbers["read_s"] / nodes * 1e6
    if "build_s" in numbers:
        row["build_us"] = numbers["build_s"] / nodes * 1e6
    if numbers.get("connect_count"):
        row["connect_us"] = numbers["connect_s"] / numbers["connect_count"] * 1e6
    return row


def add_arguments(edges: Table, values: Table) -> None:
    """What one value along an edge costs, the function's own work with it included: the difference between the two tables."""
    for row in values.rows:
        for bare in edges.rows:
            if (bare["group"], bare["peer"]) == (row["group"], row["peer"]) and "cpu_us" in bare and "cpu_us" in row:
                row["argument_us"] = (row["cpu_us"] - bare["cpu_us"]) * row["nodes"] / row["edges"]


def describe(options: Options) -> Table:
    columns = (
        Column("peer", "peer"),
        Column("cpu_us", "CPU us", "{:.1f}"),
        Column("wall_us", "wall us", "{:.1f}"),
        Column("first_us", "first time us", "{:.0f}"),
    )
    table = Table("graph: a workflow of 10 nodes, built and validated", columns, "cpu_us", ("graphlib",))
    for peer in filter(options.wants, ("graphlib", "graphbit")):
        numbers = run_peer(
            "describe", peer, {"number": 20 if options.smoke else 200, "repeats": 3 if options.smoke else 9}
        )
        if not outcome_row(peer, numbers, table):
            table.add({"peer": peer, **numbers})
    table.finish()
    return table
