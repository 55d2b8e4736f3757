"""LangGraph: a StateGraph of the same no-op nodes, compiled once; what they return is added up in one reducer channel."""

from __future__ import annotations

import operator
from importlib import import_module
from typing import Annotated, Any, TypedDict

from bench import _work
from bench._harness import Numbers, measure, timed


class State(TypedDict):
    total: Annotated[int, operator.add]


def node(state: State) -> dict[str, int]:
    return {"total": _work.noop()}


def run_graph(peer: str, spec: Numbers) -> Numbers:
    library = import_module("langgraph.graph")  # by name: it need not be installed where types are checked
    parents = _work.make_graph(spec["shape"], spec["smoke"]).parents

    def build() -> Any:
        builder = library.StateGraph(State)
        for i in range(len(parents)):
            builder.add_node(f"n{i}", node)
        for i, of in enumerate(parents):
            if of:
                builder.add_edge([f"n{parent}" for parent in of], f"n{i}")  # a list: waits for all of them
            else:
                builder.add_edge(library.START, f"n{i}")
        return builder.compile()

    graph, _, build_s = timed(build)
    settings = {"recursion_limit": len(parents) + 10}
    return {
        # The sum is that of all results, as graph_checksum makes it.
        **measure(lambda: graph.invoke({"total": 0}, settings), spec["repeats"], lambda state: int(state["total"])),
        "build_s": build_s,
    }
