"""Where the command writes: styled by rich on a terminal that has it, as plain lines everywhere else.

    screen = Screen(sys.stdout)
    screen.line("part 1", (" succeeded", "green"))

A line is made of pieces: a text, or a text and its style. Plain lines are the same without the styles.
"""

from __future__ import annotations

import os
import shutil
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO, TypeAlias

    from rich.console import Console

    Piece: TypeAlias = str | tuple[str, str]
    Line: TypeAlias = list[Piece]

_WIDTH_MAX = 110  # longer lines are hard to read
_WIDTH_MIN = 40


class Screen:
    """One of the process's streams."""

    __slots__ = ("_stream", "console", "unicode", "width")

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.console: Console | None = _console(stream)
        """rich's, where lines are styled."""
        self.unicode = _can_show(stream, "█▒✓…–")
        columns = self.console.width if self.console is not None else shutil.get_terminal_size().columns
        self.width = max(_WIDTH_MIN, min(columns, _WIDTH_MAX))

    def line(self, *pieces: Piece) -> None:
        if self.console is None:
            self._stream.write(plain(pieces) + "\n")
            self._stream.flush()
            return
        from rich.text import Text

        self.console.print(Text.assemble(*pieces), soft_wrap=True)

    def lines(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self.line(*line)

    def heading(self, title: str) -> None:
        self.line()
        self.line((title, "bold"))

    def prose(self, text: str) -> None:
        """A text, wrapped; its paragraphs stay."""
        from textwrap import wrap

        for paragraph in text.splitlines():
            for line in wrap(paragraph, self.width - 2) or [""]:
                self.line("  ", line)


def plain(pieces: Iterable[Piece]) -> str:
    return "".join([piece if isinstance(piece, str) else piece[0] for piece in pieces])


def standard_output() -> Screen:
    return Screen(sys.stdout)


def standard_error() -> Screen:
    return Screen(sys.stderr)


def is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # closed, or not much of a file
        return False


def cut(text: str, width: int, ellipsis: str = "…") -> str:
    """The text, at most so long."""
    return text if len(text) <= width else text[: max(0, width - len(ellipsis))] + ellipsis


def seconds(value: float | None) -> str:
    """`0.3 ms`, `153 ms`, `2.41 s`, `3 min 20 s`"""
    if value is None:
        return "-"
    if value < 0.01:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.2f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def counted(count: int, noun: str) -> str:
    """`counted(2, "node") == "2 nodes"`"""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _console(stream: IO[str]) -> Console | None:
    if not is_terminal(stream) or os.environ.get("TERM") in ("dumb", "unknown"):
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _can_show(stream: IO[str], characters: str) -> bool:
    try:
        characters.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
