"""What leaves the workshop: one sdist and one wheel, built once here from the tree as `python -m build` does it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import graphbit

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = {"linux": "_graphbit.so", "darwin": "_graphbit.dylib", "win32": "_graphbit.dll"}[sys.platform]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    ended = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel made from that sdist alone."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory))
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    [path] = built.glob("*.tar.gz")
    return path


def test_python_m_build_said_in_the_tree_runs_the_front_end_of_that_name() -> None:
    assert re.match(r"build \d", run(sys.executable, "-m", "build", "--version"))


def test_the_version_stands_in_one_place() -> None:
    assert f'__version__ = "{graphbit.__version__}"' in (ROOT / "graphbit" / "_version.py").read_text(encoding="utf-8")
    # Zig wants one in its own manifest, and gb_version reports it where build.py did not pass ours.
    assert f'.version = "{graphbit.__version__}"' in (ROOT / "native" / "build.zig.zon").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project
    assert len(set(re.findall(r"ziglang==([\w.]+)", project))) == 1, "the compiler is pinned twice, differently"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_wheel_serves_every_python_of_a_platform(wheel: Path) -> None:
    local = re.sub(r"[-.]", "_", sysconfig.get_platform()) if sys.platform == "linux" else ""
    assert re.fullmatch(rf"graphbit-{re.escape(graphbit.__version__)}-py3-none-{local or '.+'}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"graphbit-{graphbit.__version__}.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: false" in metadata


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"graphbit-{graphbit.__version__}.dist-info"
    sources = {
        str(path.relative_to(ROOT).as_posix())
        for path in (ROOT / "graphbit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("_graphbit.")
    }
    assert names == sources | {
        f"graphbit/{LIBRARY}",
        "graphbit/_native_cdef.py",
        "graphbit/py.typed",
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sdist_holds_the_sources_and_nothing_that_was_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    wanted = {"pyproject.toml", "build.py", "LICENSE", "README.md", "native/build.zig", "native/build.zig.zon"}
    assert wanted | {"native/include/graphbit.h", "native/src/root.zig", "graphbit/py.typed"} <= names
    junk = re.compile(r"_native_cdef|\.(so|dylib|dll|pyc)$|zig-out|zig-cache|/\.build/|__pycache__|\.new$")
    assert not {name for name in names if junk.search(name)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_installed_wheel_runs_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    program = (
        "import graphbit; from graphbit import Executor, Node, Workflow, _ffi\n"
        "workflow = Workflow('w'); workflow.add(Node.function(lambda: 6 * 7, name='answer'))\n"
        "print(graphbit.__file__, _ffi.ffi.string(_ffi.lib.gb_version()).decode())\n"
        "print(Executor().execute(workflow)['answer'])\n"
    )
    printed = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).split()
    assert printed == [str(tmp_path / "site" / "graphbit" / "__init__.py"), graphbit.__version__, "42"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file")
def test_the_library_needs_only_the_c_library() -> None:
    """Whatever else it uses (libcurl) it looks for at run time: the wheel installs anywhere."""
    content = (ROOT / "graphbit" / LIBRARY).read_bytes()
    needed = set(re.findall(rb"\x00(lib[\w+-]+\.so(?:\.\d+)*)(?=\x00)", content))
    glibc = [
        tuple(map(int, number.split(b"."))) for number in re.findall(rb"\x00GLIBC_(\d+(?:\.\d+)+)(?=\x00)", content)
    ]
    assert {name.split(b".")[0] for name in needed} <= {
        b"libc",
        b"libpthread",
        b"libm",
        b"libdl",
        b"librt",
        b"libcurl",
        b"libcurl-gnutls",
        b"libgraphbit",
    }
    assert max(glibc, default=(2, 0)) <= (2, 17)
