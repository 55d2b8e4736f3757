"""`graphbit demo`: a text is summarised in parallel, and the summaries become one brief.

    parts (input) ──▶ part 1 … part n (agents) ──▶ statistics (Python function) ──▶ brief (agent)

Splitting keeps to sentences and paragraphs; everything that is shown was measured.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from contextlib import nullcontext
from math import ceil
from pathlib import Path

from graphbit.cli import report
from graphbit.cli.screen import counted, seconds
from graphbit.cli.watch import Watch
from graphbit.executor import Executor
from graphbit.llm.config import LlmConfig
from graphbit.node import Node
from graphbit.workflow import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from graphbit.cli.screen import Screen
    from graphbit.result import WorkflowResult
    from graphbit.testing import FakeProvider

SAMPLE = Path(__file__).parent.parent / "samples" / "honey-bees.txt"
PARTS_MAX = 1000

_PART_CHARS = 1000  # two paragraphs or so
_DEFAULT_PARTS_MAX = 24  # a long text must not cost hundreds of calls that nobody asked for
_TERMS = 8

_SUMMARISE = (
    "You summarise one part of a longer text in two or three sentences. Keep the facts and figures; no preamble."
)
_MERGE = (
    "Below are notes on the parts of one text, in their order. Write one brief of at most 120 words from them, as "
    "continuous prose without a heading. These terms matter most: {statistics.terms}."
)
_STOP_WORDS = frozenset(
    """
    about above after again all also and another any are because been before being below between both but can could
    did does doing down during each every few for from further had has have having her here him his how into its
    itself just less let like many may might more most much must near nearly never not now off often once one ones
    only other others our out over own same several she should some such than that the their them then there these
    they this those though three through too two under until very was well were what when where which while who whom
    why will with without would you your
    """.split()  # noqa: SIM905
)


# -------------------------------------------------------------------------------------------------------- the workflow


def build(parts: Sequence[str]) -> Workflow:
    """The workflow for a text in so many parts. Its input is `parts`, a list; each agent takes one item of it."""
    workflow = Workflow("brief", inputs=["parts"])
    names = [f"part {i + 1}" for i in range(len(parts))]
    workflow.add(
        *[Node.agent(name, f"{{parts.{i}}}", system_prompt=_SUMMARISE) for i, name in enumerate(names)],
        Node.function(statistics, bind={f"summary_{i + 1}": name for i, name in enumerate(names)}),
        Node.agent("brief", "{statistics.notes}", system_prompt=_MERGE),
    )
    return workflow


def statistics(parts: Sequence[str], **summaries: str) -> dict[str, Any]:
    """What Python makes of the summaries: words counted, key terms, the notes in order."""
    notes = [summaries[f"summary_{i + 1}"].strip() for i in range(len(parts))]
    return {
        "words": sum(len(part.split()) for part in parts),
        "summary_words": sum(len(note.split()) for note in notes),
        "terms": ", ".join(key_terms(notes)),
        "notes": "\n\n".join(notes),
    }


def key_terms(texts: Sequence[str], count: int = _TERMS) -> list[str]:
    """The words that most of the texts share; singular and plural are one, in the form that is more frequent."""
    words = [
        [word for word in re.findall(r"[^\W\d_]+", text.lower()) if len(word) > 2 and word not in _STOP_WORDS]
        for text in texts
    ]
    often = Counter(word for some in words for word in some)
    form = {}
    for word in often:
        plural = f"{word}s"
        if plural in often:
            form[word] = form[plural] = max(word, plural, key=lambda it: often[it])
    spread: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for some in words:
        forms = [form.get(word, word) for word in some]
        total.update(forms)
        spread.update(set(forms))
    return sorted(total, key=lambda it: (-spread[it], -total[it], it))[:count]


# ------------------------------------------------------------------------------------------------------------- the text


def split_text(text: str, count: int | None = None) -> list[str]:
    """`split_text(text, 6)`: the text in so many parts of about equal size, fewer if it has fewer sentences.

    A part ends where a paragraph does if one ends close by, else where a sentence does. Without `count` parts have some 1,000
    characters, in a long text more, and none is twice as long.
    """
    total = len(text)
    wanted = count or max(1, min(_DEFAULT_PARTS_MAX, round(total / _PART_CHARS)))
    pieces, ends_paragraph = _sentences(text, max(_PART_CHARS, ceil(total / wanted)))
    wanted = min(wanted, len(pieces))
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    paragraphs = [i + 1 for i, ends_one in enumerate(ends_paragraph) if ends_one]
    size = ends[-1] / max(1, wanted)
    parts, first = [], 0
    for number in range(1, wanted + 1):
        ideal = number * size
        last = _nearest(ends, ideal)
        at = _nearest([ends[i] for i in paragraphs], ideal) if paragraphs else 0
        if paragraphs and abs(ends[paragraphs[at]] - ideal) <= size / 4:
            last = paragraphs[at]
        last = len(pieces) if number == wanted else min(max(last, first + 1), len(pieces) - (wanted - number))
        joined = "".join(
            piece + ("\n\n" if end else " ")
            for piece, end in zip(pieces[first:last], ends_paragraph[first:last], strict=True)
        )
        parts.append(joined.strip())
        first = last
    return parts


def _nearest(numbers: Sequence[int], wanted: float) -> int:
    """The index of the number, of ascending ones, that is nearest."""
    after = min(bisect_left(numbers, wanted), len(numbers) - 1)
    return after - 1 if after and wanted - numbers[after - 1] <= numbers[after] - wanted else after


def _sentences(text: str, length_max: int) -> tuple[list[str], list[bool]]:
    """Sentences, none longer than that, and whether a paragraph ends with them."""
    pieces: list[str] = []
    ends: list[bool] = []
    for paragraph in re.split(r"\n\s*\n", text):
        before = len(pieces)
        for sentence in re.split(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])", " ".join(paragraph.split())):
            rest = sentence.strip()
            while len(rest) > length_max:
                space = rest.rfind(" ", 1, length_max)
                end = space if space > 0 else length_max
                pieces.append(rest[:end])
                rest = rest[end:].strip()
            if rest:
                pieces.append(rest)
        if len(pieces) > before:
            ends += [False] * (len(pieces) - before - 1) + [True]
    return pieces, ends


# --------------------------------------------------------------------------------------------------------------- the run


def run(
    text: str,
    title: str,
    *,
    config: LlmConfig | None,
    count: int | None,
    latency: float,
    screen: Screen,
    progress: Screen | None,
) -> tuple[Workflow, WorkflowResult]:
    """Runs the demo and shows what came of it. Without `config` a provider inside this process answers."""
    parts = split_text(text, count)
    if not parts:
        raise ValueError(f"{title} has no text in it")
    workflow = build(parts)
    words = len(text.split())
    screen.line((title, "bold"), f": {counted(words, 'word')} in {counted(len(parts), 'part')}")
    if count and len(parts) < count:
        screen.line((f"(it has too few sentences for {count} parts)", "dim"))
    if config is None:
        screen.line(
            ("Offline: ", "yellow"),
            f"a fake provider in this process answers each call after {seconds(latency)}, with sentences picked from the "
            "text. It is not a language model: set OPENAI_API_KEY, or pass --base-url and --model, to ask one.",
        )
    else:
        screen.line(f"Asking {config.model()} at {config.base_url()}.")
    with _answering(config, latency) as provider:
        if config is None:
            assert provider is not None
            asked = LlmConfig.openai_compatible(provider.base_url, "fake-model", "offline")
        else:
            asked = config
        started = Executor(asked).start(workflow, {"parts": parts})
        with Watch(started, progress) if progress is not None else nullcontext():
            result = started.wait()
    _show(workflow, result, screen, offline=config is None)
    return workflow, result


def _answering(config: LlmConfig | None, latency: float) -> AbstractContextManager[FakeProvider | None]:
    if config is not None:
        return nullcontext()
    from graphbit.testing import FakeProvider

    return FakeProvider(latency=latency)


def _show(workflow: Workflow, result: WorkflowResult, screen: Screen, *, offline: bool) -> None:
    if result.is_success():
        found = result["statistics"]
        screen.heading("The brief")
        screen.prose(result["brief"])
        screen.heading("What Python made of the summaries")
        screen.line(
            f"  {found['words']:,} words became {found['summary_words']:,}, and these the {len(result['brief'].split()):,} of the brief"
        )
        screen.line(f"  key terms: {found['terms']}")
    screen.heading("Nodes, from start to end")
    screen.lines(report.timeline(workflow, result, screen))
    screen.heading("Calls")
    by = "as the fake provider estimates them, one a word" if offline else "as the server reported them"
    screen.lines(report.call_lines(workflow, result, by))
    screen.heading("Where the time went")
    screen.lines(report.time_lines(workflow, result))
