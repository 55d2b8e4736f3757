"""graphbit's transports under other clients, beside what these clients have by default: httpx as it is, and the openai SDK.

Everything above the transport is the same on both sides, and all of it is in the numbers: what a ratio says of the SDK is how much
of its time its transport took.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench._harness import raise_descriptor_limit
from bench._native import MockServer
from bench._options import Options
from bench._table import Table, outcome_row
from bench.batch import COLUMNS, numbers_of, row_of

# client, completions, in flight, warm rounds
SIZES = (("openai", 2_000, 500, 3), ("openai", 4_000, 2_000, 1), ("httpx", 1_000, 1_000, 3))
SMOKE = (("openai", 40, 20, 1), ("httpx", 40, 20, 1))


def run(options: Options) -> Iterator[Table]:
    raise_descriptor_limit()
    for client, count, concurrency, repeats in SMOKE if options.smoke else SIZES:
        yield one(options, client, count, concurrency, min(options.repeats, repeats))


def one(options: Options, client: str, count: int, concurrency: int, repeats: int) -> Table:
    table = Table(
        f"transports: {client}, {count:,} completions, {concurrency:,} in flight, {options.latency_ms} ms",
        COLUMNS,
        "cpu_ms_per_1k",
        (client,),
    )
    with MockServer(latency_ms=options.latency_ms) as mock:
        for peer in filter(options.wants, (client, f"{client}-graphbit")):
            numbers = numbers_of(mock, peer, count, concurrency, repeats, head=count, gap_rounds=0)
            if not outcome_row(peer, numbers, table):
                table.add(row_of(peer, numbers, count))
    table.finish()
    return table
