"""What `graphbit run` is given: a workflow out of a Python file, inputs out of arguments."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from graphbit.errors import nearest
from graphbit.workflow import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


class UsageError(Exception):
    """What was said on the command line cannot be meant: exit code 2."""


class LoadError(Exception):
    """The file is there, and what it should give is not: exit code 1. The file's own exception is the cause."""


# ------------------------------------------------------------------------------------------------------------ workflows


def load_workflow(target: str) -> Workflow:
    """`load_workflow("flow.py:brief")`: the workflow of that name, or the only one in the file.

    The file runs as a module, so what stands under `if __name__ == "__main__"` does not. `brief` is the name of a variable,
    the workflow's own name, or a function without parameters that makes one.

    Raises:
        UsageError: there is no such file, or the name is missing or wrong.
        LoadError: the file could not be run, or holds no workflow.
    """
    path, name = _split(target)
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory; name a Python file in it")
    if not os.path.exists(path):
        raise UsageError(f"there is no file {path}")
    module = _run(path)
    found = _workflows(module)
    if name:
        return _named(name, module, found, path)
    if not found:
        raise LoadError(
            f"{path} has no Workflow at its top level; make one there, outside of functions and of "
            'if __name__ == "__main__"'
        )
    if len(found) > 1:
        raise UsageError(f"{path} has {len(found)} workflows, name one of them: {_choices(path, found)}")
    return next(iter(found.values()))


def _split(target: str) -> tuple[str, str]:
    """The path and the name behind its last colon. `C:\\flow.py` and a file with a colon in its name have none."""
    path, colon, name = target.rpartition(":")
    if not colon or os.path.exists(target) or "/" in name or "\\" in name or not path:
        return target, ""
    return path, name


def _run(path: str) -> ModuleType:
    """Runs the file as Python runs a script: its directory first in sys.path, itself in sys.argv. Its name is not __main__."""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    stem = os.path.splitext(os.path.basename(path))[0]
    module = ModuleType(stem if stem not in sys.modules else f"{stem} (graphbit)")
    module.__file__ = os.path.abspath(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look for it there
    sys.path.insert(0, os.path.dirname(module.__file__))
    arguments, sys.argv = sys.argv, [path]
    try:
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise LoadError(f"{error.filename or path}{line}: {type(error).__name__}: {error.msg}") from error
    except SystemExit as error:
        raise LoadError(f"{path} exited while it was loaded: sys.exit({error.code!r})") from error
    except Exception as error:
        said = " ".join(str(error).split())
        raise LoadError(f"{path}{_line(error, module.__file__)}: {type(error).__name__}: {said}") from error
    finally:
        sys.argv = arguments
    return module


def _line(error: BaseException, path: str) -> str:
    """`", line 3"`: the last line of this file that led to the error."""
    number = None
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            number = traceback.tb_lineno
        traceback = traceback.tb_next
    return f", line {number}" if number else ""


def _workflows(module: ModuleType) -> dict[str, Workflow]:
    """By variable, each workflow once."""
    found: dict[str, Workflow] = {}
    seen = set()
    for name, value in list(vars(module).items()):
        if isinstance(value, Workflow) and id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found


def _named(name: str, module: ModuleType, found: dict[str, Workflow], path: str) -> Workflow:
    value = getattr(module, name, None)
    if isinstance(value, Workflow):
        return value
    if callable(value) and not isinstance(value, type):
        try:
            made = value()
        except Exception as error:
            said = " ".join(str(error).split())
            raise LoadError(f"{path}: {name}() failed: {type(error).__name__}: {said}") from error
        if isinstance(made, Workflow):
            return made
        raise UsageError(f"{path}: {name}() made {type(made).__name__}, not a Workflow")
    own = [it for it in found.values() if it.name() == name]
    if len(own) == 1:
        return own[0]
    if not found:
        raise UsageError(f"{path} has no workflow {name!r}, nor any other at its top level")
    raise UsageError(f"{path} has no workflow {name!r}{nearest(name, found)}; it has {_choices(path, found)}")


def _choices(path: str, found: dict[str, Workflow]) -> str:
    return ", ".join([f"{path}:{name} ({it.name()!r}, {it.node_count()} nodes)" for name, it in found.items()])


# --------------------------------------------------------------------------------------------------------------- inputs


def parse_inputs(pairs: Iterable[str]) -> dict[str, Any]:
    """`parse_inputs(["topic=bees", "text=@notes.txt", "limit:=3"])`

    `=` gives a string, `=@` the text of a file (`@-`: of the standard input), `:=` the value of a JSON text.

    Raises:
        UsageError: with the argument that cannot be read.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        is_json = name.endswith(":")
        name = name.removesuffix(":").strip()
        if not equals or not name:
            raise UsageError(f"an input is name=text, name=@file or name:=JSON, got {pair!r}")
        if name in found:
            raise UsageError(f"input {name!r} is given twice")
        if is_json:
            import json

            try:
                found[name] = json.loads(value)
            except ValueError as error:
                raise UsageError(f"input {name!r} is not JSON: {error}") from error
        else:
            found[name] = read_text(value[1:]) if value.startswith("@") else value
    return found


def check_inputs(workflow: Workflow, inputs: dict[str, Any]) -> None:
    """Raises UsageError unless the workflow gets what it needs and nothing else."""
    wanted: Sequence[str] = workflow.inputs
    for name in inputs:
        if name not in wanted:
            known = ", ".join(wanted) or "none"
            raise UsageError(
                f"workflow {workflow.name()!r} has no input {name!r}{nearest(name, wanted)}; its inputs: {known}"
            )
    missing = [name for name in wanted if name not in inputs]
    if missing:
        remedy = " ".join([f"--input {name}=…" for name in missing])
        raise UsageError(f"workflow {workflow.name()!r} needs {remedy}")


def read_text(path: str) -> str:
    """A file's text; `-` is the standard input.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
