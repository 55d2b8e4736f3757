"""The scheduler that the real one is compared with: one node after the other, nothing clever."""

from __future__ import annotations

from collections.abc import Callable

Outcome = tuple[str, set[int] | None]  # "succeeded" or "failed", and what a condition chose


def outcomes(before: list[list[int]], run: Callable[[int], Outcome]) -> list[str]:
    """Every node's state when failures stop nothing but what depends on them. `before[i]` are smaller than i."""
    states: list[str] = []
    ancestors: list[set[int]] = []
    chosen: dict[int, set[int]] = {}
    conditional: list[bool] = []
    broken: list[bool] = []
    for node, sources in enumerate(before):
        ancestors.append(set(sources).union(*(ancestors[it] for it in sources)))
        ways = [it for it in sources if it in chosen or conditional[it]]  # some of these may not have been taken
        deciding = [it for it in ways if it in chosen or not any(it in ancestors[other] for other in ways)]
        taken = [it for it in deciding if states[it] == "succeeded" and node in chosen.get(it, {node})]
        conditional.append(bool(ways))
        broken.append(any(broken[it] for it in sources))
        if broken[node] or (ways and not taken):
            states.append("skipped")
            # A condition that was not asked is a condition all the same: its ways were not taken.
            state, choice = run(-node - 1)
        else:
            state, choice = run(node)
            states.append(state)
            broken[node] = state == "failed"
        if choice is not None:
            chosen[node] = choice
    return states
