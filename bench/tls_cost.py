"""TLS connections: what a new one costs in CPU, the trust store included, and that later calls open none.

Whom to trust is the system's store and the server's certificate beside it, as large as a program's store is. All calls of a
round are in flight at once, so the cold round opens a connection for each. Cold numbers are single samples: every peer runs
in several processes, and with one call alone to tell what comes once from what each connection costs.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench._harness import Numbers, cold, run_peer, warm
from bench._native import HERE, TlsServer
from bench._options import Options
from bench._table import Column, Table, outcome_row
from bench.batch import run_c

PEERS = ("c-libcurl", "pycurl", "graphbit", "graphbit-async", "aiohttp", "httpx")

COLUMNS = (
    Column("peer", "peer"),
    Column("cpu_ms", "CPU ms/connection", "{:.2f}"),
    Column("more_ms", "without what comes once", "{:.2f}"),
    Column("first_ms", "the first alone ms", "{:.1f}"),
    Column("later_ms", "later call ms", "{:.3f}"),
    Column("connections", "connections cold / warm"),
    Column("in_flight", "in flight max"),
    Column("server_ms", "server CPU ms/connection", "{:.2f}"),
    Column("rss_mib", "peak RSS MiB", "{:.0f}"),
)


def trust_store() -> tuple[str, int]:
    """The system's certificates and the server's, in one text; how many."""
    text = ""
    if (system := ssl.get_default_verify_paths().cafile) and Path(system).exists():
        text = Path(system).read_text()
    else:
        try:
            import certifi
        except ImportError:
            pass
        else:
            text = Path(certifi.where()).read_text()
    text += (HERE.parent / "tests" / "tls" / "localhost.pem").read_text()
    return text, text.count("BEGIN CERTIFICATE")


def run(options: Options) -> Iterator[Table]:
    connections, latency_ms, processes = (20, 200, 1) if options.smoke else (200, 1_000, 3)
    text, certificates = trust_store()
    table = Table(
        f"tls: {connections} new connections, a trust store of {certificates} certificates",
        COLUMNS,
        "cpu_ms",
        ("c-libcurl", "pycurl"),
    )
    with TlsServer(latency_ms) as server, tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "trusted.pem"
        store.write_text(text)
        for peer in filter(options.wants, PEERS):
            many = [numbers_of(server, peer, connections, store) for _ in range(processes)]
            alone = [numbers_of(server, peer, 1, store) for _ in range(processes)]
            if any(outcome_row(peer, numbers, table) for numbers in (*many, *alone) if "rounds" not in numbers):
                continue
            whole_s, first_s = (median(cold(n, "cpu_s") for n in runs) for runs in (many, alone))
            row = {
                "peer": peer,
                "cpu_ms": whole_s / connections * 1e3,
                "more_ms": (whole_s - first_s) / (connections - 1) * 1e3,
                "first_ms": first_s * 1e3,
                "later_ms": median(warm(n, "cpu_s") for n in many) / connections * 1e3,
                "connections": f"{median(cold(n, 'connections') for n in many):.0f} / "
                f"{max(warm(n, 'connections') for n in many):.0f}",
                "in_flight": max(n["max_in_flight"] for n in many),
                "rss_mib": max(n["rss_peak_kib"] for n in many) / 1024,
                "checksum": many[0]["checksum"],
                "rounds": [n["rounds"] for n in many],
                "alone": [n["rounds"] for n in alone],
            }
            if "server_cpu_s" in many[0]["rounds"][0]:
                row["server_ms"] = median(cold(n, "server_cpu_s") for n in many) / connections * 1e3
            table.add(row)
    table.finish()
    yield table


def numbers_of(server: TlsServer, peer: str, count: int, store: Path) -> Numbers:
    # No directory beside the file: libcurl then keeps the parsed store, and parses it for each connection otherwise.
    environment = {"SSL_CERT_FILE": str(store), "SSL_CERT_DIR": ""}
    if peer == "c-libcurl":
        url = f"{server.base_url}/chat/completions"
        return run_c(server, ["batch", url, str(count), str(count), "1"], environment)
    spec = {"base_url": server.base_url, "port": server.port, "count": count, "repeats": 1}
    numbers = run_peer("tls", peer, spec, environment)
    if "rounds" in numbers:
        numbers["max_in_flight"] = max(r["max_in_flight"] for r in numbers["rounds"])
    return numbers
