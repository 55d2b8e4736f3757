"""The fixed work of every bench and its checksum, so that all peers do the same and none can leave it out.

Imports next to nothing: it is loaded into each peer's process, whose memory is measured.
"""

from __future__ import annotations

import random
import zlib
from array import array

MODEL = "mock"
MAX_TOKENS = 64
MODULUS = 1_000_003


# ------------------------------------------------------------------ completions


def batch_prompts(count: int) -> list[str]:
    return [f"Item {i:05d}: write one line about bee number {i}." for i in range(count)]


FAN_ROOT = "Outline a report about bees."


def fan_leaf(index: int, outline: str) -> str:
    return f"Section {index} of: {outline}"


def fan_join(sections: list[str]) -> str:
    return "Join: " + " | ".join(sections)


def texts_checksum(texts: list[str]) -> int:
    """CRC-32 of the answers in prompt order. The mock's answers carry the beginning, length and CRC of their prompts, so a
    swapped, lost or altered prompt shows here."""
    return zlib.crc32("\n".join(texts).encode())


def check_answers(prompts: list[str], answers: list[str]) -> None:
    for prompt, answer in zip(prompts, answers, strict=True):
        if not answer.startswith("re: " + prompt[:40]):
            raise AssertionError(f"the answer to {prompt[:40]!r} is {answer[:60]!r}")


def streamed_text(prompt: str, events: int) -> str:
    """All that a stream of native/stream_server.c says, without its stamps."""
    return f"re: {prompt}" + "".join(f" w{i}" for i in range(1, events))


# ------------------------------------------------------------------ graphs


class Graph:
    """Nodes 0..n-1 in an order that respects the edges; `parents[i]` are i's predecessors."""

    __slots__ = ("name", "parents")

    def __init__(self, name: str, parents: list[list[int]]) -> None:
        self.name = name
        self.parents = parents

    @property
    def edge_count(self) -> int:
        return sum(map(len, self.parents))


def chain(n: int) -> Graph:
    return Graph("chain", [[i - 1] if i else [] for i in range(n)])


def fan(width: int) -> Graph:
    return Graph("fan", [[], *([0] for _ in range(width)), list(range(1, width + 1))])


def layers(depth: int, width: int) -> Graph:
    return Graph(
        "layers",
        [
            [(layer - 1) * width + i for i in range(width)] if layer else []
            for layer in range(depth)
            for _ in range(width)
        ],
    )


def scattered(n: int, degree: int, seed: int = 20261124) -> Graph:
    dice = random.Random(seed)
    return Graph("random", [sorted(dice.sample(range(i), min(degree, i))) for i in range(n)])


def make_graph(shape: str, smoke: bool = False) -> Graph:
    if shape == "chain":
        return chain(50 if smoke else 1000)
    if shape == "fan":
        return fan(50 if smoke else 1000)
    if shape == "layers":
        return layers(5, 10) if smoke else layers(50, 20)
    if shape == "random":
        return scattered(100 if smoke else 5000, 3)
    raise ValueError(f"no graph is called {shape!r}")


def flat_edges(shape: str, nodes: int) -> array[int]:
    """from, to, from, to, … for graphs too large for lists of lists; each node's edges lie behind those of the nodes before it,
    by their second node. `random` draws up to three predecessors for each."""
    if shape == "chain":
        return array("I", [n for i in range(1, nodes) for n in (i - 1, i)])
    if shape == "fan":
        out = [n for i in range(1, nodes - 1) for n in (0, i)]
        return array("I", out + [n for i in range(1, nodes - 1) for n in (i, nodes - 1)])
    if shape == "layers":
        width = 20
        edges = array("I")
        for node in range(width, nodes):
            start = (node // width - 1) * width
            edges.extend(n for parent in range(start, start + width) for n in (parent, node))
        return edges
    if shape == "random":
        dice = random.Random(20261124).random
        edges = array("I")
        for node in range(1, nodes):
            edges.extend(n for parent in {int(dice() * node) for _ in range(3)} for n in (parent, node))
        return edges
    raise ValueError(f"no graph is called {shape!r}")


SHAPES = ("chain", "fan", "layers", "random")


def noop() -> int:
    return 1


_adders: dict[int, object] = {}


def adder(degree: int):  # type: ignore[no-untyped-def]
    """`def add(a0, a1, ...)`: one more than the sum of its arguments, modulo a prime. Along the edges of a graph it counts
    paths, so a lost or doubled edge shows in the sum. A named parameter for each argument, as users write functions."""
    found = _adders.get(degree)
    if found is None:
        names = [f"a{i}" for i in range(degree)]
        space: dict[str, object] = {}
        exec(f"def add({', '.join(names)}):\n    return (1 + {' + '.join(names) or '0'}) % {MODULUS}", space)
        found = _adders[degree] = space["add"]
    return found


def functions(graph: Graph, series: str) -> list:  # type: ignore[type-arg]
    """What each node runs. `edges`: nothing, the edges only order; `values`: results travel along the edges."""
    if series == "edges":
        return [noop] * len(graph.parents)
    if series == "values":
        return [adder(len(parents)) for parents in graph.parents]
    raise ValueError(f"no series is called {series!r}")


def graph_checksum(results: list[int]) -> int:
    return sum(results) % (1 << 32)


def templates(graph: Graph, series: str) -> list[tuple[int | None, str]]:
    """A text for each node that native code renders: (the node inserted or None, text with "{}" for it). `values` inserts the
    first predecessor; the other edges only order."""
    if series == "edges":
        return [(None, "x")] * len(graph.parents)
    if series == "values":
        return [(parents[0], "{}") if parents else (None, "x") for parents in graph.parents]
    raise ValueError(f"no series is called {series!r}")


# The workflow whose description and check is timed: a report with four researched parts. Name -> predecessors.
TEN_NODES: dict[str, tuple[str, ...]] = {
    "topic": (),
    "outline": ("topic",),
    "facts_a": ("outline",),
    "facts_b": ("outline",),
    "facts_c": ("outline",),
    "facts_d": ("outline",),
    "merged": ("facts_a", "facts_b", "facts_c", "facts_d"),
    "draft": ("outline", "merged"),
    "review": ("draft",),
    "final": ("draft", "review"),
}
