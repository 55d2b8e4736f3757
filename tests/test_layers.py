"""The floor plan (ARCHITECTURE.md), held: who may import whom, in both languages; what `import graphbit` may load; how
large a room may grow; and that the public names are the same for dir(), for `import *` and for a type checker."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import graphbit

ROOT = Path(__file__).resolve().parent.parent
ZIG = ROOT / "native" / "src"
PYTHON = ROOT / "graphbit"
ROOM_LINES_MAX = 560


def assert_none(found: list[str]) -> None:
    """Nothing was found that should not be; else all of it is shown, a line each."""
    assert not found, "\n" + "\n".join(found)


# ---------------------------------------------------------------- Zig

# What knows (graph, json) imports nothing that does (pool, http, queue, timers), and the other way round. They meet in
# call, execution and what follows in MEETING: from there on each may import all that stands before it.
BELOW = {
    "base",
    "json",
    "graph",
    "pool",
    "http",
    "timers",
    "queue",
    "crew",
    "lobby",
    "listening",
    "watch",
    "limits",
    "events",
    "native",
    "turns",
    "together",
}
MEETING = (
    "deltas",
    "reading",
    "hops",
    "gates",
    "services",
    "outgoing",
    "call",
    "cache",
    "context",
    "notes",
    "outputs",
    "telling",
    "execution",
    "ticket",
    "upload",
    "entry",
    "entry",
    "exchange",
    "work",
    "items",
    "children",
    "attempts",
    "stopping",
    "operations",
    "dispatcher",
    "intake",
    "runtime",
    "c_structs",
    "c_api",
)
ZIG_MAY_IMPORT = {
    "base": set(),
    "json": {"base"},
    "graph": {"json", "base"},
    "pool": {"base"},
    "http": {"json", "base"},
    "timers": {"base"},
    "limits": {"base"},
    "turns": set(),
    "together": set(),
    "events": {"base"},
    "native": {"graph", "json"},
    "queue": {"base"},
    "crew": {"queue"},
    "lobby": {"base", "queue", "crew"},
    "listening": {"queue", "lobby"},
    "watch": {"base", "queue", "lobby"},
    **{room: BELOW | set(MEETING[:i]) for i, room in enumerate(MEETING)},
    # For tests, and programs that no library contains: the simulator, random runs, and what a task costs.
    "lobby_test": BELOW,
    "watch_test": BELOW | {"lobby_test"},
    "limits_test": BELOW,
    "call_test": BELOW | {"call", "cache", "gates"},
    "gates_test": BELOW | {"gates"},
    "exchange_test": BELOW | set(MEETING),
    "call_together_test": BELOW | {"call", "call_test"},
    "c_api_test": BELOW | set(MEETING),
    "testing": BELOW | set(MEETING),
    "sim_main": {"testing"},
    "fuzz_main": {"testing"},
    "pool_bench": {"base", "graph", "pool", "testing"},
}
ZIG_MAY_IMPORT["root"] = ZIG_MAY_IMPORT.keys() - {"sim_main", "fuzz_main", "pool_bench"}


def zig_room(path: Path) -> str:
    return path.relative_to(ZIG).parts[0].removesuffix(".zig")


def zig_files() -> list[Path]:
    return sorted(ZIG.rglob("*.zig"))


def without_comments(path: Path) -> str:
    return re.sub(r"//.*", "", path.read_text(encoding="utf-8"))


def is_for_tests(path: Path) -> bool:
    """Files that no library contains: testing/ and its programs may look anywhere, a *_test.zig and what it stands on beside
    what it tests."""
    return (
        zig_room(path) in ("testing", "sim_main", "fuzz_main", "pool_bench")
        or path.name.endswith("_test.zig")
        or path.name in ("loopback.zig", "test_room.zig")
    )


def test_every_zig_file_stands_on_the_floor_plan() -> None:
    assert_none(sorted({zig_room(path) for path in zig_files()} - ZIG_MAY_IMPORT.keys()))


def test_zig_rooms_import_only_what_the_floor_plan_allows() -> None:
    wrong = []
    for path in zig_files():
        room = zig_room(path)
        for target in re.findall(r'@import\("([^"]+\.zig)"\)', without_comments(path)):
            other = zig_room((path.parent / target).resolve())
            if other != room and other not in ZIG_MAY_IMPORT.get(room, set()):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert_none(wrong)


def test_nothing_that_ships_imports_a_file_for_tests() -> None:
    wrong = []
    for path in zig_files():
        if is_for_tests(path):
            continue
        ships = re.split(r"^test\b", without_comments(path), maxsplit=1, flags=re.MULTILINE)[0]  # Tests come last.
        for target in re.findall(r'@import\("([^"]+\.zig)"\)', ships):
            if is_for_tests((path.parent / target).resolve()):
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert_none(wrong)


def test_every_zig_file_with_tests_is_named_in_root() -> None:
    """Zig runs the tests of those files only that it was led to."""
    with_tests = {
        path.relative_to(ZIG).as_posix()
        for path in zig_files()
        if re.search(r"^test\b", path.read_text(encoding="utf-8"), re.MULTILINE) and path.name != "root.zig"
    }
    named = set(re.findall(r'@import\("([^"]+)"\)', without_comments(ZIG / "root.zig")))
    assert_none(sorted(with_tests - named))


@pytest.mark.parametrize(
    ("forbidden", "where"),
    [
        (r"std\.(os|posix|c|Io|process|fs|net)\b", {"base/os.zig"}),
        (r'@import\("builtin"\)', {"base/os.zig", "base/sync.zig", "root.zig"}),
        (r"std\.(atomic|Thread)\b", {"base/os.zig", "base/sync.zig"}),
        # Everybody else calls through the table of functions.
        (r"(?<!table\.)\bcurl_(easy|multi|global|slist|url)_\w+|dlopen|dlsym", {"http/curl.zig", "base/os.zig"}),
    ],
    ids=["the operating system", "the target", "atomics and threads", "libcurl"],
)
def test_one_zig_file_alone_names(forbidden: str, where: set[str]) -> None:
    found = []
    for path in zig_files():
        if is_for_tests(path) or path.relative_to(ZIG).as_posix() in where:
            continue
        for number, line in enumerate(without_comments(path).splitlines(), start=1):
            if re.search(forbidden, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert_none(found)


def test_the_core_exports_the_functions_of_the_header_in_its_order() -> None:
    header = (ROOT / "native" / "include" / "graphbit.h").read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    declared = re.findall(r"^\w[\w ]*[ *](gb_\w+)\([^;{}]*\);", code, flags=re.MULTILINE)
    exported = re.findall(r"export fn (gb_\w+)\(", (ZIG / "c_api.zig").read_text(encoding="utf-8"))
    assert declared, "no function was found in the header"
    assert exported == declared


# ---------------------------------------------------------------- Python

# Floors, top first. A module imports from floors below its own and from its own; never upwards.
FLOORS: list[set[str]] = [
    {"__init__", "__main__", "cli"},
    {"testing", "transports", "embeddings", "health", "documents", "splitting", "memory", "guardrails", "reports"},
    {"executor"},
    {"stream"},
    # What users describe, what is made of it, and what comes of that. Nodes and runs are on one floor: a composite node
    # starts runs, and a run looks at its nodes. No circle is allowed within a floor either.
    {"node", "_composite", "workflow", "_structure", "_kinds", "_options", "llm", "tools"}
    | {"_lower", "_steps", "_limits", "run", "_inside", "_spread", "result", "profile", "context", "_events", "_reply"},
    {"runtime"},
    {"_controllers"},
    {"_queue", "_loop", "_runners", "_lane", "_here"},
    {"_plan", "_values", "_compare", "policy", "_process", "_process_pool", "_process_worker"},
    {"_ffi", "_surroundings"},
    {"_native_cdef", "_fake"},
]
FOR_ALL = {
    "admission",
    "errors",
    "http",
    "_schema",
    "_signature",
    "_template",
    "_version",
}  # Everybody may import them; they import only each other.
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor}


class Import(NamedTuple):
    path: Path
    module: str  # its room: "llm" for graphbit/llm/client.py
    target: str  # what it imports, whole: "graphbit.runtime" or "asyncio"
    line: int
    typing_only: bool
    lazy: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.target}"


def python_room(path: Path) -> str:
    """The module or package a file belongs to; the files of the fake provider, `_fake_*`, are one room."""
    room = path.relative_to(PYTHON).parts[0].removesuffix(".py")
    return "_fake" if room.startswith("_fake_") else room


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in a file: at the top, under TYPE_CHECKING, inside functions."""
    package = ["graphbit", *path.relative_to(PYTHON).parts[:-1]]

    def walk(node: ast.AST, typing_only: bool, lazy: bool) -> Iterator[Import]:
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module
            )
            base = (base or "").rstrip(".")
            # `from graphbit import runtime` imports that module; `from graphbit import Workflow` the front door.
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if base.startswith("graphbit") and is_module(name) else base for name in names]
        for target in dict.fromkeys(targets):
            yield Import(path, python_room(path), target, node.lineno, typing_only, lazy)  # type: ignore[attr-defined]
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and is_type_checking(node):
            for child in node.body:
                yield from walk(child, True, lazy)
            for child in node.orelse:
                yield from walk(child, typing_only, lazy)
        else:
            for each in ast.iter_child_nodes(node):
                yield from walk(each, typing_only, lazy)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def all_imports() -> list[Import]:
    return [found for path in sorted(PYTHON.rglob("*.py")) for found in imports_of(path)]


def own_room(target: str) -> str | None:
    """The room that an import leads to, None where it leads out of the package."""
    parts = target.split(".")
    if parts[0] != "graphbit":
        return None
    return python_room(PYTHON / parts[1]) if len(parts) > 1 else "__init__"


def test_every_python_module_stands_on_the_floor_plan() -> None:
    rooms = {python_room(path) for path in PYTHON.rglob("*.py")}
    assert_none(sorted(rooms - FLOOR_OF.keys() - FOR_ALL))


def test_python_modules_import_only_from_their_own_floor_and_below() -> None:
    wrong = []
    for found in all_imports():
        other = own_room(found.target)
        if other is None or other in FOR_ALL or other == found.module:
            continue
        if found.module in FOR_ALL or FLOOR_OF.get(other, 0) < FLOOR_OF.get(found.module, 0):
            wrong.append(str(found))
    assert_none(wrong)


def test_only_ffi_imports_the_compiled_library() -> None:
    users = {found.module for found in all_imports() if own_room(found.target) == "_native_cdef"}
    assert users == {"_ffi"}
    assert not [
        str(found)
        for found in all_imports()
        if found.target.split(".")[0] in ("ctypes", "_cffi_backend", "cffi")
        and found.module not in ("_ffi", "_native_cdef")
    ]


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in PYTHON.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        edges[name] = {found.target for found in imports_of(path) if not found.typing_only}
    edges.pop("graphbit", None)  # The front door names everybody.

    def reaches(start: str) -> list[str] | None:
        """The way from a module back to itself."""
        ways, seen = [[start]], {start}
        while ways:
            way = ways.pop()
            for target in edges.get(way[-1], ()):
                if target == start:
                    return [*way, start]
                if target in edges and target not in seen:
                    seen.add(target)
                    ways.append([*way, target])
        return None

    circles = [" -> ".join(way) for name in sorted(edges) if (way := reaches(name))]
    assert_none(circles)


# ---------------------------------------------------------------- what an import costs

# Each of these costs milliseconds (asyncio 48, importlib.metadata 40, dataclasses 14), and a first workflow needs none.
HEAVY = {
    "asyncio",
    "dataclasses",
    "email",
    "http.client",
    "importlib.metadata",
    "logging.config",
    "ssl",
    "typing",
    "unittest",
    "urllib.request",
}
HEAVY_AT_FIRST = HEAVY | {"_cffi_backend", "cffi", "json", "logging", "threading"}


def loaded_by(program: str) -> set[str]:
    """Modules that `program` loads into a bare interpreter (no site: what is installed here must not matter)."""
    code = f"import sys; sys.path[:] = {sys.path!r}; before = set(sys.modules)\n{program}\n"
    code += "print('loaded:', *sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.rsplit("loaded:", 1)[1].split())


def test_import_graphbit_loads_nothing_heavy_and_no_native_code() -> None:
    loaded = loaded_by("import graphbit")
    assert_none(sorted(loaded & HEAVY_AT_FIRST))
    assert {name for name in loaded if name.startswith("graphbit")} <= {"graphbit", "graphbit._version"}


def test_a_first_workflow_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "from graphbit import Executor, Node, Workflow\n"
        "workflow = Workflow('first')\n"
        "workflow.add(Node.function(lambda: 1, name='one'))\n"
        "assert Executor().execute(workflow)['one'] == 1"
    )
    assert_none(sorted(loaded & HEAVY))


# ---------------------------------------------------------------- sizes and names


def test_no_room_is_larger_than_a_reader_can_hold() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in [*ZIG.rglob("*.zig"), *PYTHON.rglob("*.py")]
        if path.name != "_native_cdef.py"
    }
    assert_none([f"{name}: {lines} lines" for name, lines in sorted(sizes.items()) if lines > ROOM_LINES_MAX])


def names_a_type_checker_sees() -> set[str]:
    """What graphbit/__init__.py exports to those who only read it: `import X as X`, or a name in a literal __all__."""
    names: set[str] = set()
    body = list(ast.parse((PYTHON / "__init__.py").read_text(encoding="utf-8")).body)
    while body:
        node = body.pop()
        if isinstance(node, ast.If) and is_type_checking(node):
            body += node.body
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "__all__"
            and isinstance(node.value, ast.List)
        ):
            names |= {name.value for name in node.value.elts if isinstance(name, ast.Constant)}
    return {name for name in names if not name.startswith("_")}


def test_the_public_names_are_the_same_for_everybody() -> None:
    public = {name for name in graphbit.__all__ if not name.startswith("_")}
    assert len(set(graphbit.__all__)) == len(graphbit.__all__)
    assert_none(sorted(public ^ names_a_type_checker_sees()))
    assert set(graphbit.__all__) <= set(dir(graphbit))


@pytest.mark.parametrize("name", sorted(graphbit.__all__))
def test_a_public_name_is_what_the_type_checker_was_told(name: str) -> None:
    value = getattr(graphbit, name)
    for found in ast.walk(ast.parse((PYTHON / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(found, ast.ImportFrom):
            for alias in found.names:
                if (alias.asname or alias.name) == name and found.module:
                    source = found.module if found.level == 0 else f"graphbit.{found.module}"
                    assert value is getattr(importlib.import_module(source), alias.name)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        graphbit.no_such_thing  # noqa: B018
