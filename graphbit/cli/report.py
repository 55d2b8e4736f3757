"""A finished run for people and programs: outputs, errors, a timeline of its nodes, and where the time went."""

from __future__ import annotations

from graphbit._values import _plain as plain_value
from graphbit.cli.screen import counted, cut, seconds
from graphbit.cli.watch import STYLES, mark
from graphbit.errors import GraphbitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from graphbit.cli.screen import Line, Screen
    from graphbit.result import NodeReport, WorkflowResult
    from graphbit.workflow import Workflow

_ROWS_MAX = 40  # of a timeline
_NAME_MAX = 28

MODEL, HTTP, PYTHON, DELAY, OWN = (
    "waiting for the model",
    "waiting for HTTP",
    "Python functions",
    "delays",
    "graphbit itself",
)
_BUSY_WITH = {
    "agent": MODEL,
    "http": HTTP,
    "function": PYTHON,
    "condition": PYTHON,
    "delay": DELAY,
    "transform": OWN,
}
_COLOURS = {MODEL: "cyan", HTTP: "blue", PYTHON: "yellow", DELAY: "dim", OWN: "magenta"}
# In a timeline without colours: what a model or server does, what Python does, the rest.
_FILLS = {MODEL: "█#", HTTP: "█#", PYTHON: "▒=", DELAY: "░.", OWN: "░."}


# ------------------------------------------------------------------------------------------------------ outputs, errors


def sinks(workflow: Workflow) -> list[str]:
    """The nodes that nobody follows: their outputs are what a workflow is for."""
    followed = {source for source, _ in workflow.edges}
    return [node.name() for node in workflow.nodes if node.name() not in followed]


def as_text(value: Any) -> str:
    """A string as it is, anything else as JSON, or as Python shows it where it has no JSON form."""
    if isinstance(value, str):
        return value
    import json

    try:
        return json.dumps(value, ensure_ascii=False, indent=2, default=plain_value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def as_json(workflow: Workflow, result: WorkflowResult) -> str:
    """All that the run brought, for programs. What has no JSON form is a string: as Python shows it."""
    import json

    def told(value: Any) -> Any:
        try:
            json.dumps(value, default=plain_value)
        except (TypeError, ValueError, RecursionError):
            return repr(value)
        return value

    found = {
        "workflow": workflow.name(),
        "state": result.state(),
        "seconds": result.duration,
        "states": result.states,
        "outputs": {name: told(value) for name, value in result.outputs.items()},
        "errors": {name: error_text(name, error) for name, error in result.errors.items()},
    }
    return json.dumps(found, ensure_ascii=False, indent=2, default=plain_value)


def error_text(node: str, error: BaseException) -> str:
    """`"node 'sum': ZeroDivisionError: division by zero"`, in one line."""
    said = " ".join(str(error).split())
    if not isinstance(error, GraphbitError):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    where = f"node {node!r}"
    return said if said.startswith(where) else f"{where}: {said}"


def summary(result: WorkflowResult) -> str:
    """`"3 nodes succeeded, 1 failed, in 0.36 s"`"""
    states = list(result.states.values())
    counts = [(states.count(state), state) for state in ("succeeded", "failed", "skipped", "cancelled")]
    said = [f"{count} {state}" for count, state in counts if count]
    return f"{counted(len(states), 'node')}: {', '.join(said)} in {seconds(result.duration)}"


# ------------------------------------------------------------------------------------------------------------- timeline


def timeline(workflow: Workflow, result: WorkflowResult, screen: Screen) -> list[Line]:
    """A bar for each node, from its start to its end, and which bar means what."""
    kinds = {node.name(): _BUSY_WITH[node.kind] for node in workflow.nodes}
    nodes = sorted(result.nodes.values(), key=lambda it: (it.started is None, it.started or 0.0))
    rows: Sequence[NodeReport | None] = nodes
    if len(nodes) > _ROWS_MAX:
        half = _ROWS_MAX // 2
        rows = [*nodes[:half], None, *nodes[-half:]]
    name_width = min(_NAME_MAX, max(len(node.name) for node in nodes))
    times_width = 21
    width = max(10, screen.width - name_width - times_width - 6)
    whole = max(result.duration, 1e-9)
    lines: list[Line] = []
    for node in rows:
        if node is None:
            lines.append([f"    {len(nodes) - _ROWS_MAX:,} more"])
            continue
        kind = kinds[node.name]
        name = cut(node.name, name_width, "…" if screen.unicode else "~")
        line: Line = [(f"{mark(node.state, screen.unicode)} ", STYLES[node.state]), f"{name:{name_width}} "]
        if node.started is None or node.ended is None:
            line += [" " * width, (f"  {node.state}", STYLES[node.state])]
        else:
            bar = _bar(node.started / whole, node.ended / whole, width, _FILLS[kind][0 if screen.unicode else 1])
            times = f"{seconds(node.started):>8} → {seconds(node.ended)}"
            line += [(bar, _COLOURS[kind]), f"  {times if screen.unicode else times.replace('→', '-')}"]
        lines.append(line)
    shown = [kind for kind in _COLOURS if kind in kinds.values()]
    legend: Line = [" " * (name_width + 3)]
    for kind in shown:
        legend += [(_FILLS[kind][0 if screen.unicode else 1], _COLOURS[kind]), f" {kind}  "]
    lines.append(legend)
    return lines


def _bar(start: float, end: float, width: int, fill: str) -> str:
    """Where from 0 to 1 it lies, at least one character wide."""
    first = min(width - 1, int(start * width))
    last = min(width, max(first + 1, round(end * width)))
    return f"{' ' * first}{fill * (last - first)}{' ' * (width - last)}"


# -------------------------------------------------------------------------------------------------- where the time went


def time_spent(workflow: Workflow, result: WorkflowResult) -> dict[str, float]:
    """`{"waiting for the model": 0.31, "Python functions": 0.002, "graphbit itself": 0.0004}`: seconds that add up to the run's.

    Each moment counts once: as waiting for a model while any agent is on its way, else as the next of `MODEL`, `HTTP`,
    `PYTHON` and `DELAY` that holds, else as graphbit's own: from one node's end to the next one's start.
    """
    order = (MODEL, HTTP, PYTHON, DELAY)
    nodes = result.nodes
    moments: list[tuple[float, int, str]] = []
    for node in workflow.nodes:
        kind, report = _BUSY_WITH[node.kind], nodes[node.name()]
        if kind is OWN or report.started is None or report.ended is None:
            continue
        moments += [(report.started, 1, kind), (min(report.ended, result.duration), -1, kind)]
    moments.sort()
    spent = dict.fromkeys(order, 0.0)
    active = dict.fromkeys(order, 0)
    before = 0.0
    for moment, change, kind in moments:
        busy = next((it for it in order if active[it]), None)
        if busy is not None:
            spent[busy] += max(0.0, moment - before)
        active[kind] += change
        before = max(before, moment)
    found = {kind: spent[kind] for kind in order if any(it == kind for _, _, it in moments)}
    found[OWN] = max(0.0, result.duration - sum(found.values()))
    return found


def time_lines(workflow: Workflow, result: WorkflowResult) -> list[Line]:
    """The same as a table whose rounded numbers add up too."""
    spent = time_spent(workflow, result)
    unit, places, name = (1e-4, 1, "ms") if result.duration < 10 else (1e-2, 2, "s")
    steps = rounded(list(spent.values()), unit)
    per = 10**places
    whole = sum(steps)
    lines: list[Line] = []
    for kind, step in zip(spent, steps, strict=True):
        share = step / whole if whole else 0.0
        lines.append([f"  {kind:24}", f"{step / per:10,.{places}f} {name}", f"{share:8.1%}"])
    lines.append([(f"  {'the run':24}{whole / per:10,.{places}f} {name}", "bold")])
    if MODEL in spent:
        lines.append(
            ["  Each moment counts once: while a call is on its way it counts as waiting, whatever else goes on."]
        )
    calls = [it.duration for it in _agents(workflow, result) if it.duration is not None]
    if len(calls) > 1 and spent.get(MODEL):
        together = sum(calls)
        lines.append(
            [
                f"  One after the other the {len(calls):,} calls would have taken {seconds(together)}: "
                f"on average {together / spent[MODEL]:.1f} were on their way at once."
            ]
        )
    return lines


def rounded(values: Sequence[float], unit: float) -> list[int]:
    """In whole units, and still adding up to the rounded sum: what is left over goes to the largest fractions."""
    exact = [value / unit for value in values]
    whole = [int(it) for it in exact]
    left = round(sum(exact)) - sum(whole)
    for i in sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])[:left]:
        whole[i] += 1
    return whole


def _agents(workflow: Workflow, result: WorkflowResult) -> Iterable[NodeReport]:
    nodes = result.nodes
    return [nodes[node.name()] for node in workflow.nodes if node.kind == "agent"]


# ------------------------------------------------------------------------------------------------------ calls and tokens


def call_lines(
    workflow: Workflow, result: WorkflowResult, counted_by: str = "as the server reported them"
) -> list[Line]:
    """How many calls were made, and the tokens of those for which there is a count."""
    calls = attempts = told = prompt = completion = 0
    models: dict[str, None] = {}
    for node in workflow.nodes:
        if node.kind != "agent":
            continue
        found = result.get_node_response_metadata(node.name()) or {}
        if "http_status" not in found:
            continue  # it never came to a request
        calls += 1
        attempts += found["attempts"]
        if found.get("model"):
            models[found["model"]] = None
        usage = found.get("usage") or {}
        if usage:
            told += 1
            prompt += usage.get("prompt_tokens", 0)
            completion += usage.get("completion_tokens", 0)
    again = f", {counted(attempts, 'attempt')}" if attempts > calls else ""
    lines: list[Line] = [[f"  {counted(calls, 'call')}{again}{' to ' + ', '.join(models) if models else ''}"]]
    if told:
        some = "" if told == calls else f", for {told} of {calls} calls"
        lines.append([f"  {prompt:,} tokens sent, {completion:,} received ({counted_by}{some})"])
    elif calls:
        lines.append(["  tokens: the server did not say"])
    return lines
