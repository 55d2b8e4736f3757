"""Random workflows: their shape, what is to become of each node, and the program that builds them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fuzz_program import ALWAYS, Failure, Output, weight
from hypothesis import strategies as st
from reference_scheduler import Reference, Task, Try

FEATURES = frozenset({
    "any", "all_done", "when", "retry", "fallback", "timeout", "limit", "timed", "workflow", "map", "loop", "passing",
}) - set(os.environ.get("FUZZ_WITHOUT", "").split())  # fmt: skip
"""What random graphs have beyond functions, conditions, texts and delays; whoever hunts a fault switches off what is not to blame."""

OWN_VALUE = ("plain", "async", "timed")
"""They return an Output."""
FUNCTIONS = ("plain", "async", "condition")
NATIVE = ("text", "delay")
PASSES_ON = ("delay", "condition")
COMPOSITE = ("timed", "workflow", "map", "loop")
FALLIBLE = (*FUNCTIONS, *COMPOSITE)
LONG = 1e9
LISTS = {"items": 5, "few": 2, "none": 0}


@dataclass
class Spec:
    """A node. Times are in units; a whole number of them is exact as a float, and timeouts lie half between."""

    kind: str = "plain"
    before: list[int] = field(default_factory=list)
    refers: list[int] = field(default_factory=list)
    join: str = "all"
    chosen: set[int] = field(default_factory=set)
    when: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """By source: how it is told ("call" or a number), and whether it holds."""
    seconds: float = 0.0
    fails: int = 0
    error: str = "Failure"
    attempts: int = 1
    backoff: tuple[float, float, float] = (0.0, 1.0, 0.0)
    """first, factor, longest"""
    on: str = ""
    timeout: float | None = None
    fallback: str = ""
    """value, call, node, call_fails, node_fails"""
    limit: str = ""
    cancels: bool = False
    hangs: bool = False
    spans: list[float] = field(default_factory=lambda: [0.0])
    """Seconds of each attempt, of each item of a map; [0] of each turn of a loop."""
    over: str = "items"
    bad: set[int] = field(default_factory=set)
    width: int | None = None
    collect: bool = False
    native_body: bool = False
    """The body of a map or loop is a workflow, and takes time."""
    until: int = 1
    turns: int = 1
    inner: Graph | None = None
    out: int = 0


class Graph:
    """Node i depends on smaller numbers only; the order in which nodes are added is another."""

    def __init__(self, specs: list[Spec], order: Sequence[int] | None = None, prefix: str = "n") -> None:
        self.specs = specs
        self.prefix = prefix
        self.order = list(order if order is not None else range(len(specs)))
        for spec in specs:
            if spec.kind == "map":  # it runs only where there is a list
                spec.before = spec.before[:1]
                if not spec.before or specs[spec.before[0]].kind not in OWN_VALUE:
                    spec.kind = "plain"
        self.after = [[t for t, spec in enumerate(specs) if i in spec.before] for i in range(len(specs))]
        for i, spec in enumerate(specs):
            self.make_sound(i, spec)
        self.names = [self.name(i) for i in range(len(specs))]

    def name(self, node: int) -> str:
        return f"{self.prefix}{node}"

    def make_sound(self, i: int, spec: Spec) -> None:
        """Takes away what the drawn parts do not allow together."""
        spec.when = {
            it: how for it, how in spec.when.items() if it in spec.before and self.specs[it].kind != "condition"
        }
        if spec.kind == "map" or (spec.kind in PASSES_ON and "passing" not in FEATURES):
            spec.join = "all"
        readable = [it for it in spec.refers if it in spec.before and self.can_be_read(it)]
        if spec.kind == "text":  # what texts insert into texts would double with each
            readable = [it for it in readable if self.specs[self.origin(it)].kind in (*OWN_VALUE, "text")][:1]
        spec.refers = readable if spec.kind in (*FUNCTIONS, "text") else []
        spec.chosen = {it for it in spec.chosen if it in self.after[i]}
        if spec.kind not in FALLIBLE:
            spec.fails, spec.attempts, spec.timeout, spec.fallback, spec.cancels = 0, 1, None, "", False
        if spec.kind == "condition" and (spec.fallback not in ("value", "call_fails") or "passing" not in FEATURES):
            spec.fallback = ""
        if spec.kind == "workflow":
            spec.on = ""
        if spec.kind == "timed" and self.prefix != "n":  # its count goes on when what it is in is tried again
            spec.spans, spec.fails = spec.spans[:1], ALWAYS * (spec.fails > 0)
        if spec.kind != "plain":
            spec.cancels = False

    def can_be_read(self, node: int) -> bool:
        """Conditions and delays have no output where several nodes lead to them, or none does."""
        spec = self.specs[node]
        return spec.kind not in PASSES_ON or (len(spec.before) == 1 and self.can_be_read(spec.before[0]))

    def origin(self, node: int) -> int:
        return self.origin(self.specs[node].before[0]) if self.specs[node].kind in PASSES_ON else node

    def below(self, start: Set[int]) -> set[int]:
        found = set(start)
        for node, spec in enumerate(self.specs):
            if found.intersection(spec.before):
                found.add(node)
        return found - start

    def has_any(self) -> bool:
        return any(it.join == "any" or (it.inner is not None and it.inner.has_any()) for it in self.specs)

    # ------------------------------------------------------------------------------------------------ for the reference

    def followed(self, source: int, node: int) -> bool:
        spec = self.specs[source]
        return (spec.kind != "condition" or node in spec.chosen) and self.specs[node].when.get(source, ("", True))[1]

    def handled(self, node: int) -> bool:
        return bool(self.after[node]) and all(self.specs[it].join != "all" for it in self.after[node])

    def fate(self, node: int) -> tuple[bool, int, bool]:
        """If it runs and nothing stops it: whether it succeeds, after how many attempts, and whether by its fallback."""
        task, again = self.tasks[node], True
        done = 0
        found = Try()
        while again:
            found = task.tries[min(done, len(task.tries) - 1)]
            if task.timeout is not None and found.seconds > task.timeout:
                found = Try(0, False, task.timeout_again)
            done += 1
            again = not found.succeeds and found.again and done < task.attempts
        if found.succeeds or task.fallback is None:
            return found.succeeds, done, False
        return task.fallback.succeeds, done, True

    @cached_property
    def tasks(self) -> list[Task]:
        return [self.task(i) for i in range(len(self.specs))]

    keep_going = True
    """Whether children of the workflow's nodes go on after a failure: as the executor does."""
    racy_inside = False

    def task(self, i: int) -> Task:
        spec = self.specs[i]
        first, factor, longest = spec.backoff
        fallback = None
        if spec.fallback:
            fallback = Try(succeeds=not spec.fallback.endswith("fails"))
        return Task(
            before=spec.before,
            join=spec.join,
            chosen=spec.chosen if spec.kind == "condition" else None,
            when={it: holds for it, (_, holds) in spec.when.items()},
            tries=self.tries(i),
            attempts=spec.attempts,
            backoff=lambda failures: min(longest, first * factor ** (failures - 1)),
            timeout=spec.timeout,
            timeout_again=not spec.on,
            fallback=fallback,
            limits=frozenset({spec.limit, spec.kind if spec.kind not in COMPOSITE else "", "*"} - {""}),
            composite=spec.kind in COMPOSITE,
            cancels=spec.cancels,
        )

    def tries(self, i: int) -> list[Try]:
        spec = self.specs[i]
        again = not spec.on or spec.on == spec.error
        if spec.kind == "delay":
            return [Try(spec.seconds)]
        if spec.kind in FUNCTIONS:
            if spec.hangs:
                return [Try(LONG)]
            number = min(spec.fails, spec.attempts)
            return [Try(0, False, again)] * number + [Try()] * (spec.fails < ALWAYS)
        if spec.kind == "timed":
            last = spec.spans[-1]
            spans = spec.spans + [last] * (spec.attempts - len(spec.spans))
            return [Try(it, at >= spec.fails, again) for at, it in enumerate(spans)]
        if spec.kind == "map":
            return [self.map_try(spec)]
        if spec.kind == "loop":
            turns = min(spec.until, spec.turns, spec.fails or ALWAYS)
            return [
                Try(turns * spec.spans[0] * spec.native_body, turns != spec.fails, not spec.on or spec.on == "Failure")
            ]
        if spec.kind == "workflow":
            assert spec.inner is not None
            spec.inner.keep_going = self.keep_going
            inner = Reference(spec.inner.tasks, keep_going=self.keep_going).run()
            self.racy_inside |= inner.racy or spec.inner.racy_inside
            return [Try(inner.now, inner.first_failed is None)]
        return [Try()]

    def map_try(self, spec: Spec) -> Try:
        """Items begin in order, each as soon as there is room for it."""
        again = not spec.on or spec.on == "Failure"
        number = LISTS[spec.over]
        until: list[float] = []
        fails: list[float] = []
        for item in range(number):
            width = spec.width or number
            begun = sorted(until)[len(until) - width] if len(until) >= width else 0.0
            seconds = spec.spans[item % len(spec.spans)] if spec.native_body else 0.0
            until.append(begun + seconds)
            if item in spec.bad:
                fails.append(until[-1])
        if fails and not spec.collect:
            return Try(min(fails), False, again)
        return Try(max(until, default=0.0))

    # ----------------------------------------------------------------------------------------------------------- values

    def value(self, node: int, seen: Mapping[int, Sequence[int]], fell_back: Set[int], known: dict[int, Any]) -> Any:
        """What a node that succeeded returns. `seen`: by node, the sources whose output it was given; `known`: of those before."""
        spec, name = self.specs[node], self.names[node]
        given = [known.get(it) if it in seen[node] else None for it in spec.refers]
        if spec.kind in PASSES_ON:
            source = spec.before[0]
            return known.get(source) if source in seen[node] else None
        if node in fell_back:
            return Output(f"{name}!{spec.fallback}", [])
        if spec.kind == "text":
            return name + "".join(f"({inserted(it)})" for it in given)
        if spec.kind in ("plain", "async"):
            return Output(name, given)
        if spec.kind == "timed":
            return Output(name, [])
        if spec.kind == "map":
            return [Failure(it) if it in spec.bad else Output(f"{name}.{it}", []) for it in range(LISTS[spec.over])]
        if spec.kind == "loop":
            return min(spec.until, spec.turns)
        raise AssertionError(spec.kind)

    # ---------------------------------------------------------------------------------------------------------- program

    def by_hand(self) -> list[tuple[int, int]]:
        def edge(source: int, node: int) -> bool:
            spec = self.specs[node]
            return (source not in spec.refers and spec.kind != "map") or source in spec.when

        return [(it, i) for i in self.order for it in self.specs[i].before if edge(it, i)]

    def lines(self, unit: float, made: str = "made") -> list[str]:
        found = [f"{made} = Workflow({made!r})"]
        for i in self.order:
            inner = self.specs[i].inner
            if self.specs[i].kind == "workflow" and inner is not None:
                found += inner.lines(unit, f"{made}_{i}")
        found += [f"{made}.add({self.node(i, unit, made)})" for i in self.order]
        for source, target in self.by_hand():
            when = self.specs[target].when.get(source)
            told = f", when={self.condition(source, *when)}" if when is not None else ""
            found.append(f'{made}.connect("{self.names[source]}", "{self.names[target]}"{told})')
        return found

    def condition(self, source: int, how: str, holds: bool) -> str:
        if how == "call" or self.specs[source].kind not in OWN_VALUE:
            return f"r.holds({holds})"
        k = weight(self.names[source])
        true = [
            ("k", k),
            ("k", "!=", k + 1),
            ("k", "<", k + 1),
            ("k", ">=", k),
            ("no", "!=", 0),
            ("items.2", "<=", 2.5),
        ]
        false = [("k", k + 1), ("k", "!=", k), ("k", "<", k), ("k", ">=", str(k)), ("no", "==", 0), ("items.5", "<", 9)]
        return repr((true if holds else false)[int(how) % 6])

    def node(self, i: int, unit: float, made: str) -> str:
        spec, name = self.specs[i], self.names[i]
        bind = f", bind={ {f'p{at}': self.names[it] for at, it in enumerate(spec.refers)} }" if spec.refers else ""
        failing = f", fails={spec.fails}" if spec.fails else ""
        if failing and spec.error != "Failure":
            failing += f", error={spec.error}"
        if spec.kind == "condition":
            chosen = [self.names[it] for it in sorted(spec.chosen)]
            part = f'condition("{name}", r.chooses("{name}", {chosen}{failing}{self.limited(spec)}){bind}'
        elif spec.kind == "text":
            part = f'transform("{name}", "{name}{"".join(f"({{{self.names[it]}}})" for it in spec.refers)}"'
        elif spec.kind == "delay":
            part = f'delay("{name}", {spec.seconds * unit}'
        elif spec.kind == "timed":
            spans = [it * unit for it in spec.spans]
            part = f'workflow("{name}", r.timed("{name}", {spans}{failing}), output="out"'
        elif spec.kind == "workflow":
            assert spec.inner is not None
            part = f'workflow("{name}", {made}_{i}, output="{spec.inner.names[spec.out]}"'
        elif spec.kind == "map":
            bad = sorted(spec.bad)
            spans = [it * unit for it in (spec.spans * 5)[:5]]
            body = f'r.timed_item("{name}", {spans}, {bad})' if spec.native_body else f'r.item("{name}", {bad})'
            how = f", limit={spec.width}" * (spec.width is not None) + ', on_error="collect"' * spec.collect
            part = f'map("{name}", "{self.names[spec.before[0]]}.{spec.over}", {body}{how}'
        elif spec.kind == "loop":
            fails_at = f", fails_at={spec.fails}" if spec.fails else ""
            timed = f'r.timed_turn("{name}", {spec.spans[0] * unit}{fails_at})'
            body = timed if spec.native_body else f'r.turn("{name}"{fails_at})'
            part = f'loop("{name}", {body}, lambda it: it >= {spec.until}, {spec.turns}'
        else:
            maker = "later" if spec.kind == "async" else "does"
            cancels = ", cancels=True" * spec.cancels + ", hangs=True" * spec.hangs
            part = f'function(r.{maker}("{name}"{failing}{self.limited(spec)}{cancels}), "{name}"{bind}'
        return f"Node.{part}{self.options(spec, name, unit)})"

    def limited(self, spec: Spec) -> str:
        return f', limit="{spec.limit}"' if spec.limit else ""

    def options(self, spec: Spec, name: str, unit: float) -> str:
        found = f', join="{spec.join}"' if spec.join != "all" else ""
        if spec.attempts > 1:
            first, factor, longest = spec.backoff
            on = f", on={spec.on}" if spec.on else ""
            how = f"backoff={first * unit}, factor={factor}, max_backoff={longest * unit}, jitter=False{on}"
            found += f", retry=RetryPolicy({spec.attempts}, {how})"
        if spec.timeout is not None:
            found += f", timeout={spec.timeout * unit}"
        what, _, fails = spec.fallback.partition("_")
        if what:
            maker = {"value": "value", "call": "rescue", "node": "spare"}[what]
            chosen = [self.names[it] for it in sorted(spec.chosen)]
            by = f'r.{maker}("{name}"{", fails=True" if fails else ""})'
            found += f", fallback={chosen if spec.kind == 'condition' and not fails else by}"
        return found + self.limited(spec) * (spec.kind not in COMPOSITE)

    def program(self, executor: str = 'on_error="continue"', unit: float = 1.0, virtual: bool = False) -> str:
        """The workflow as code, for whoever has to find out. To be run where the tests are."""
        head = ["from fuzz_program import *", "from graphbit import *", "from graphbit.testing import virtual_time"]
        end = f"{'with virtual_time(): ' if virtual else ''}result = run(r, made, Executor({executor}))"
        return "\n".join([*head, "r = Recorder()", *self.lines(unit), end, "print(result.nodes, result.errors)"])


def inserted(value: Any) -> str:
    """A value in a text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


# ------------------------------------------------------------------------------------------------------------ strategies


@st.composite
def graphs(
    draw: Callable[[Any], Any],
    kinds: str = "plain*6 fails condition*2 text delay async",
    features: Set[str] = frozenset(),
    nodes_max: int = 40,
    prefix: str = "n",
) -> Graph:
    """`kinds` with their weights, and which of FEATURES there are."""
    has = FEATURES & set(features)
    number = draw(st.integers(1, nodes_max))
    before = draw(shapes(number))
    weights = [entry.partition("*") for entry in kinds.split()]
    possible = [
        kind for kind, _, times in weights for _ in range(int(times or 1)) if kind in has or kind not in COMPOSITE
    ]
    joins = ["all"] * 6 + ["any", "all_done"] * 2
    specs = []
    for node in range(number):
        kind = draw(st.sampled_from(possible))
        spec = Spec("plain" if kind == "fails" else kind, before[node], fails=ALWAYS * (kind == "fails"))
        if before[node]:
            join = draw(st.sampled_from(joins))
            spec.join = join if join in has else "all"
            spec.refers = [it for it in before[node][:6] if draw(st.booleans())]
        if "when" in has and before[node] and draw(st.integers(0, 3)) == 3:
            source = draw(st.sampled_from(before[node]))
            spec.when = {source: (draw(st.sampled_from(["call", "0", "1", "2", "3", "4", "5"])), draw(st.booleans()))}
        if kind == "delay":
            spec.seconds = float(draw(st.integers(0, 1000)))
        elif kind in COMPOSITE:
            draw_composite(draw, spec, features, f"{prefix}{node}_")
        if kind in FALLIBLE and draw(st.integers(0, 2)) == 2:
            draw_options(draw, spec, has)
        if "limit" in has and kind not in COMPOSITE:
            spec.limit = draw(st.sampled_from(["", "", "db", "net"]))
        specs.append(spec)
    for node, spec in enumerate(specs):
        after = [it for it in range(number) if node in before[it]]
        if spec.kind == "condition" and after:
            spec.chosen = draw(st.sets(st.sampled_from(after)))
    return Graph(specs, draw(st.permutations(range(number))), prefix)


@st.composite
def shapes(draw: Callable[[Any], Any], number: int) -> list[list[int]]:
    """Every node's sources."""
    shape = draw(st.sampled_from(["random", "near", "near", "chain", "fan", "layers"]))
    width = draw(st.integers(1, 6)) if shape == "layers" else 0
    before: list[list[int]] = [[]]
    for node in range(1, number):
        if shape == "chain":
            sources = [node - 1]
        elif shape == "fan":  # out of the first, into the last
            sources = [0] if node < number - 1 or number == 2 else list(range(1, node))
        elif shape == "layers":
            first = max(0, node // width - 1) * width
            sources = list(range(first, first + width)) if node >= width else []
        else:
            nearest = max(0, node - 5) if shape == "near" else 0  # deep, with ways that meet again
            sources = draw(st.lists(st.integers(nearest, node - 1), max_size=4, unique=True))
        before.append(sources)
    return before


def draw_options(draw: Callable[[Any], Any], spec: Spec, has: Set[str]) -> None:
    """What a node does about failures, and what it needs a permit for."""
    if not spec.fails and spec.kind not in ("map", "loop", "workflow"):
        spec.fails = draw(st.sampled_from([0, 1, 2, ALWAYS])) if has & {"retry", "fallback"} else 0
        spec.error = draw(st.sampled_from(["Failure", "Other"]))
    if "retry" in has:
        spec.attempts = draw(st.integers(1, 3))
        spec.backoff = draw(st.sampled_from([(0.0, 1.0, 0.0), (3.0, 2.0, 100.0), (64.0, 4.0, 150.0), (7.0, 1.0, 30.0)]))
        spec.on = draw(st.sampled_from(["", "Failure"]))
    if "timeout" in has and spec.kind != "condition":
        spec.timeout = draw(st.none() | st.integers(0, 80).map(lambda it: it + 0.5))
    if "fallback" in has:
        spec.fallback = draw(st.sampled_from(["", "value", "call", "node", "call_fails", "node_fails"]))


def draw_composite(draw: Callable[[Any], Any], spec: Spec, features: Set[str], prefix: str) -> None:
    spec.spans = [float(it) for it in draw(st.lists(st.integers(0, 60), min_size=1, max_size=3))]
    if spec.kind == "map":
        spec.over = draw(st.sampled_from(["items", "few", "none"]))
        spec.bad = draw(st.sets(st.integers(0, 4), max_size=2)) if draw(st.booleans()) else set()
        spec.width = draw(st.none() | st.integers(1, 3))
        spec.collect = draw(st.booleans())
        spec.native_body = draw(st.booleans())
        spec.bad = {it for it in spec.bad if it < LISTS[spec.over]}
    elif spec.kind == "loop":
        spec.until, spec.turns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        spec.fails = draw(st.sampled_from([0, 0, 0, 1, 2]))
        spec.native_body = draw(st.booleans())
    elif spec.kind == "workflow":
        inside = set(features) - {"workflow", "map", "loop", "limit"}
        spec.inner = draw(graphs("plain*3 fails condition delay timed", inside, 5, prefix))
        spec.out = draw(st.sampled_from([i for i in range(len(spec.inner.specs)) if spec.inner.can_be_read(i)] or [0]))
