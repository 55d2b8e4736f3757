"""Runs one peer on one piece of work and prints its numbers as the last line of its output, in JSON."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys

# peer -> (module in this package, the package it needs)
COMPLETIONS: dict[str, tuple[str, str | None]] = {
    "pycurl": ("http_pycurl", "pycurl"),
    "aiohttp": ("http_aiohttp", "aiohttp"),
    "httpx": ("http_httpx", "httpx"),
    "httpx-graphbit": ("http_httpx", "httpx"),
    "openai": ("http_openai", "openai"),
    "openai-graphbit": ("http_openai", "openai"),
    "graphbit": ("http_graphbit", "graphbit"),
    "graphbit-async": ("http_graphbit", "graphbit"),
    "graphbit-each": ("http_graphbit", "graphbit"),
    "graphbit-threads": ("http_graphbit", "graphbit"),
}
GRAPHS: dict[str, tuple[str, str | None]] = {
    "graphlib": ("graph_by_hand", None),
    "asyncio": ("graph_by_hand", None),
    "threads": ("graph_by_hand", None),
    "langgraph": ("graph_langgraph", "langgraph"),
    "dask": ("graph_dask", "dask"),
    "graphbit": ("graph_graphbit", "graphbit"),
}
FLAT: dict[str, tuple[str, str | None]] = {
    "by-hand": ("graph_native", None),
    "graphbit-caller": ("graph_native", "graphbit"),
    "graphbit-1": ("graph_native", "graphbit"),
    "graphbit-2": ("graph_native", "graphbit"),
}
CORES: dict[str, tuple[str, str | None]] = {
    "one-core": ("graph_cores", None),
    "by-hand": ("graph_cores", None),
    "graphbit": ("graph_cores", "graphbit"),
}
FORMS: dict[str, tuple[str, str | None]] = {
    "loop": ("graph_forms", None),
    "asyncio": ("graph_forms", None),
    "first-come": ("graph_forms", None),
    "graphbit": ("graph_forms", "graphbit"),
    "graphbit-async": ("graph_forms", "graphbit"),
}
BENCHES = {
    "batch": COMPLETIONS,
    "fan": COMPLETIONS,
    "streams": COMPLETIONS,
    "hangups": COMPLETIONS,
    "tls": COMPLETIONS,
    "graph": GRAPHS,
    "native": GRAPHS,
    "describe": GRAPHS,
    "flat": FLAT,
    "cores": CORES,
    "map": FORMS,
    "async": FORMS,
    "build": FORMS,
    "cancel": FORMS,
    "makespan": FORMS,
}


def main() -> None:
    bench, peer, spec = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    module, package = BENCHES[bench][peer]
    if package and importlib.util.find_spec(package) is None:
        print(json.dumps({"absent": package}))
        return
    run = getattr(importlib.import_module(f"bench.peers.{module}"), f"run_{bench}")
    print(json.dumps(run(peer, spec)))


if __name__ == "__main__":
    main()
