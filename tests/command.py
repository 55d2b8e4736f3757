"""The command `graphbit`: said to it in-process, where that is enough, or to a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from click.testing import CliRunner, Result

from graphbit.cli.commands import graphbit as command

Write = Callable[..., str]
"""`write("flow.py", "…")` -> its path."""


def said(*arguments: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(command, list(arguments), input=stdin)
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    assert "Traceback" not in result.stderr
    return result


def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A real process that runs the command."""
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "graphbit", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def ended(asked: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, output and errors."""
    out, err = asked.communicate(timeout=60)
    return asked.returncode, out, err
