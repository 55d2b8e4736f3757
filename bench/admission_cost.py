"""What it costs that a provider's limits are respected: the controller by itself, and completions with all limits on beside the same
without. Rounds of both take turns in one process, so that the machine's moods meet both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench._harness import run_program, timed
from bench._native import MockServer, build
from bench._options import Options
from bench._table import Column, Table

COLUMNS = (
    Column("peer", "peer"),
    Column("cpu_us", "CPU us / call", "{:.2f}"),
    Column("more_us", "of it admission", "{:+.2f}"),
    Column("quartiles", "quartiles of that"),
)


def run(options: Options) -> Iterator[Table]:
    import graphbit
    from graphbit import Admission, LlmClient, LlmConfig

    count, rounds = (300, 2) if options.smoke else (10_000, 4 * options.repeats)
    table = Table(f"admission: {count:,} completions, 200 in flight, all limits on", COLUMNS, "cpu_us", ("graphbit",))
    with MockServer(latency_ms=0) as mock:
        all_on = Admission(
            max_concurrency=100_000, requests_per_minute=1 << 31, tokens_per_minute=1 << 50, queue_timeout=3_600
        )
        clients = {
            "graphbit": LlmClient(LlmConfig.openai_compatible(mock.base_url, "bench", admission=False)),
            "graphbit, all limits": LlmClient(LlmConfig.openai_compatible(mock.base_url, "bench", admission=all_on)),
        }
        prompts = [f"prompt {i}" for i in range(count)]
        times: dict[str, list[float]] = {name: [] for name in clients}
        for each in range(1 + rounds):
            for name in sorted(clients, reverse=bool(each % 2)):
                _, cpu_s, _ = timed(lambda name=name: clients[name].complete_batch_sync(prompts, max_concurrency=200))  # type: ignore[misc]
                if each:
                    times[name].append(cpu_s / count * 1e6)
    plain, limited = times.values()
    more = sorted(a - b for a, b in zip(limited, plain, strict=True))
    table.add({"peer": "graphbit", "cpu_us": median(plain)})
    table.add(
        {
            "peer": "graphbit, all limits",
            "cpu_us": median(limited),
            "more_us": median(more),
            "quartiles": f"{more[len(more) // 4]:+.2f} … {more[3 * len(more) // 4]:+.2f}",
        }
    )
    library = next(Path(graphbit.__file__).parent.glob("_graphbit.*"))
    sizes = ("20000", "1") if options.smoke else ("2000000", "7")
    numbers = run_program([str(build("admission")), str(library), *sizes])
    table.add({"peer": "the controller alone (C)", "cpu_us": numbers["ns"] / 1000, "more_us": numbers["ns"] / 1000})
    table.finish()
    yield table
