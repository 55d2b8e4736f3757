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
    "graphbit": ("http_graphbit", "graphbit"),
    "graphbit-async": ("http_graphbit", "graphbit"),
    "graphbit-each": ("http_graphbit", "graphbit"),
}
GRAPHS: dict[str, tuple[str, str | None]] = {
    "graphlib": ("graph_by_hand", None),
    "asyncio": ("graph_by_hand", None),
    "threads": ("graph_by_hand", None),
    "graphbit": ("graph_graphbit", "graphbit"),
}
BENCHES = {"batch": COMPLETIONS, "fan": COMPLETIONS, "graph": GRAPHS, "native": GRAPHS, "describe": GRAPHS}


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
