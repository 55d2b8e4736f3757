"""dask: the same functions as a task graph, on its threaded scheduler; all results are kept."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from bench import _work
from bench._harness import Numbers, measure, timed


def after(function: Any, *values: Any) -> Any:
    """Bare edges: the predecessors' values are waited for and not passed."""
    return function()


def run_graph(peer: str, spec: Numbers) -> Numbers:
    get = import_module("dask.threaded").get  # by name: it need not be installed where types are checked
    graph = _work.make_graph(spec["shape"], spec["smoke"])
    functions = _work.functions(graph, spec["series"])
    names = [f"n{i}" for i in range(len(graph.parents))]

    def build() -> dict[str, Any]:
        tasks: dict[str, Any] = {}
        for i, of in enumerate(graph.parents):
            values = [names[parent] for parent in of]
            tasks[names[i]] = (functions[i], *values) if spec["series"] == "values" else (after, functions[i], *values)
        return tasks

    tasks, _, build_s = timed(build)
    return {
        **measure(lambda: get(tasks, names), spec["repeats"], lambda values: _work.graph_checksum(list(values))),
        "build_s": build_s,
    }
