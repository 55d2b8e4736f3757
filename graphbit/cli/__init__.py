"""The command `graphbit`. It needs click, which comes with the extra `cli`; importing this module does not.

commands    what can be said, and how it ends: exit codes, errors in one line
loading     a workflow out of a Python file, inputs out of arguments
demo        a text, summarised in parallel
doctor      what is there and what is missing
screen      styled where a person looks, plain where a program reads
watch       the progress of a run while it runs
report      a finished run: outputs, errors, timeline, where the time went
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`graphbit …`: runs the command with these arguments, by default the process's own, and exits."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("error: the command needs click: pip install 'graphbit[cli]'\n")
        sys.exit(2)
    from graphbit.cli.commands import graphbit

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows few characters is no reason to fail
    graphbit.main(arguments, prog_name="graphbit")
    raise AssertionError("click's main exits")
