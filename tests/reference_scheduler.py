"""The scheduler that the real one is compared with: one node after the other, nothing clever."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set


def outcomes(
    before: Sequence[Sequence[int]], conditions: Set[int], run: Callable[[int], tuple[str, Set[int]]]
) -> list[str]:
    """Every node's state when a failure stops nothing but what depends on it.

    `before[i]` are smaller than i. `run` is asked about nodes that run: "succeeded" or "failed", and what a condition chose.
    """
    states: list[str] = []
    chosen: list[Set[int]] = []
    ancestors: list[set[int]] = []
    conditional: list[bool] = []  # it lies, at some distance, below a condition
    broken: list[bool] = []  # it failed, or was skipped because of a failure
    for node, sources in enumerate(before):
        ancestors.append({*sources, *(far for source in sources for far in ancestors[source])})
        ways = [source for source in sources if source in conditions or conditional[source]]
        decide = [it for it in ways if it in conditions or not any(it in ancestors[other] for other in ways)]
        live = [it for it in decide if states[it] == "succeeded" and (it not in conditions or node in chosen[it])]
        conditional.append(bool(ways))
        state: str = "skipped"
        choice: Set[int] = set()
        below_broken = any(broken[source] for source in sources)
        if not below_broken and (live or not decide):
            state, choice = run(node)
        states.append(state)
        chosen.append(choice)
        broken.append(below_broken or state == "failed")
    return states
