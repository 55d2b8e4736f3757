"""graphbit as a scheduler: Python functions joined by bare edges or by values, and native template nodes."""

from __future__ import annotations

from collections.abc import Callable

from bench import _work
from bench._harness import Numbers, measure, per_call, timed
from graphbit import Executor, Node, Workflow


def build_functions(graph: _work.Graph, series: str) -> tuple[Workflow, Numbers]:
    functions = _work.functions(graph, series)
    workflow = Workflow("bench")

    def add() -> None:
        if series == "edges":
            workflow.add(*(Node.function(run, name=f"n{i}") for i, run in enumerate(functions)))
            return
        workflow.add(
            *(
                Node.function(
                    run, name=f"n{i}", bind={f"a{k}": f"n{parent}" for k, parent in enumerate(graph.parents[i])}
                )
                for i, run in enumerate(functions)
            )
        )

    edges = [(f"n{parent}", f"n{node}") for node, parents in enumerate(graph.parents) for parent in parents]
    return workflow, build_times(workflow, add, edges if series == "edges" else [])


def build_templates(graph: _work.Graph, series: str) -> tuple[Workflow, Numbers]:
    templates = _work.templates(graph, series)
    workflow = Workflow("bench")

    def add() -> None:
        workflow.add(
            *(
                Node.transform(f"n{i}", text if source is None else text.replace("{}", f"{{n{source}}}"))
                for i, (source, text) in enumerate(templates)
            )
        )

    edges = [
        (f"n{parent}", f"n{node}")
        for node, parents in enumerate(graph.parents)
        for parent in parents
        if parent != templates[node][0]
    ]
    return workflow, build_times(workflow, add, edges)


def build_times(workflow: Workflow, add: Callable[[], None], edges: list[tuple[str, str]]) -> Numbers:
    """Nodes and edges apart: edges that come from references are part of their nodes' time."""

    def connect() -> None:
        for parent, node in edges:
            workflow.connect(parent, node)

    _, _, build_s = timed(add)
    _, _, connect_s = timed(connect)
    return {"build_s": build_s, "connect_s": connect_s, "connect_count": len(edges)}


def run_workflow(workflow: Workflow, names: list[str], spec: Numbers, checksum: object) -> Numbers:
    """Execution to the moment the results stand ready; reading every one of them is timed apart."""
    executor = Executor()
    read_s: list[float] = []

    def read_all(result: object) -> int:
        values, _, wall_s = timed(lambda: [result[name] for name in names])  # type: ignore[index]
        read_s.append(wall_s)
        found: int = checksum(values)  # type: ignore[operator]
        return found

    def once() -> object:
        result = executor.execute(workflow)
        result.raise_for_failure()
        return result

    numbers = measure(once, spec["repeats"], read_all)
    return {**numbers, "read_s": min(read_s)}


def run_graph(peer: str, spec: Numbers) -> Numbers:
    graph = _work.make_graph(spec["shape"], spec["smoke"])
    names = [f"n{i}" for i in range(len(graph.parents))]
    workflow, times = build_functions(graph, spec["series"])
    return {**run_workflow(workflow, names, spec, _work.graph_checksum), **times}


def run_native(peer: str, spec: Numbers) -> Numbers:
    graph = _work.make_graph(spec["shape"], spec["smoke"])
    names = [f"n{i}" for i in range(len(graph.parents))]
    workflow, times = build_templates(graph, spec["series"])
    return {**run_workflow(workflow, names, spec, _work.texts_checksum), **times}


def ten_nodes() -> Workflow:
    """Of every kind some: an input, two functions, six agents, two templates; the edges come from the references."""
    workflow = Workflow("report", inputs=["subject"])
    workflow.add(
        Node.transform("topic", "A report about {subject}"),
        Node.agent("outline", "Outline: {topic}"),
        *(Node.agent(f"facts_{letter}", f"Facts for part {letter} of {{outline}}") for letter in "abcd"),
        Node.function(merge, name="merged", bind={f"part_{letter}": f"facts_{letter}" for letter in "abcd"}),
        Node.agent("draft", "Write it.\n{outline}\n{merged}"),
        Node.function(review, name="review", bind={"text": "draft"}),
        Node.transform("final", "{draft}\n\nReviewed: {review}"),
    )
    return workflow


def merge(part_a: str, part_b: str, part_c: str, part_d: str) -> str:
    return "\n".join((part_a, part_b, part_c, part_d))


def review(text: str) -> str:
    return f"{len(text)} characters"


def run_describe(peer: str, spec: Numbers) -> Numbers:
    def once() -> None:
        ten_nodes().validate()

    _, _, first_s = timed(once)
    return {**per_call(once, spec["number"], spec["repeats"]), "first_us": first_s * 1e6}
