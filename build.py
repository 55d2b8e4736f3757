"""Builds the native core into the package.

    python build.py                       compiles into graphbit/, only what changed: the everyday command
    python build.py --test [--tsan]       runs the core's own tests, under ThreadSanitizer if asked
                    [--seed N]            as a failed run did, which prints its seed
                    [--nodes N]           with so many nodes through pool and graph instead of a million
    python build.py --sim N [--seed S]    N seeded simulations of the core's concurrent parts, from seed S on
    python build.py --interleave          every interleaving of small programs over them [--path P: one again]
                                          --filter WORDS picks among either, and among the runs of --fuzz
    python build.py --fuzz N [--seed S]   N random runs over the decoders and the JSON reader, from seed S on
    python build.py --bench-pool          what a task costs
    python build.py --targets all         compiles for every platform, to see that it still can be done

pip and its like come in through `Hook`, which pyproject.toml names. Two things make one wheel serve every Python:
the library is a plain shared object that cffi opens, and cffi's knowledge of the header is a generated Python file.

GRAPHBIT_PLATFORM=manylinux2014_aarch64 makes a wheel for another platform (a row of PLATFORMS).
GRAPHBIT_ZIG=/somewhere/zig uses a compiler other than the one from PyPI; it must be of the same version.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    HookBase = BuildHookInterface[Any]
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface as HookBase
    except ModuleNotFoundError:  # `python build.py` does without it
        HookBase = object

ROOT = Path(__file__).resolve().parent
NATIVE = ROOT / "native"
PACKAGE = ROOT / "graphbit"

# Wheel platform -> zig target. A target is always named, also for this machine: without one zig compiles for this very
# processor, and pip caches wheels. The glibc version is the oldest that manylinux2014 promises.
PLATFORMS = {
    "manylinux2014_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux2014_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
    "macosx_15_0_arm64": "aarch64-macos",
    "win_amd64": "x86_64-windows-gnu",
}


def host() -> str:
    """The row of PLATFORMS that is this machine."""
    machine = platform.machine().lower()
    if sys.platform == "linux":
        libc = "manylinux2014" if platform.libc_ver()[0] == "glibc" else "musllinux_1_2"
        return known(f"{libc}_{machine}")
    return known(f"macosx_15_0_{machine}" if sys.platform == "darwin" else f"win_{machine}")


def known(name: str) -> str:
    if name not in PLATFORMS:
        sys.exit(f"graphbit cannot be built for {name!r}; it can for {', '.join(PLATFORMS)}")
    return name


def wheel_platform(name: str) -> str:
    """What a wheel made on and for this machine calls itself: only GRAPHBIT_PLATFORM promises more than `linux`."""
    if sys.platform == "linux" and not os.environ.get("GRAPHBIT_PLATFORM"):
        return re.sub(r"[-.]", "_", sysconfig.get_platform())
    return name


def version() -> str:
    """The version stands in graphbit/_version.py; the core is told, for gb_version()."""
    return found(r'__version__ = "([^"]+)"', PACKAGE / "_version.py")


def found(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"))
    if match is None:
        sys.exit(f"{path}: nothing in it matches {pattern}")
    return match[1]


# ---------------------------------------------------------------- the compiler


def compiler() -> str:
    """The path of zig. Zig changes with every release: exactly the one that pyproject.toml pins, or none."""
    wanted = found(r"ziglang==([\w.]+)", ROOT / "pyproject.toml")
    remedy = f"get it with\n    {sys.executable} -m pip install ziglang=={wanted}"
    path = os.environ.get("GRAPHBIT_ZIG", "")
    if not path:
        spec = importlib.util.find_spec("ziglang")
        if spec is None or spec.origin is None:
            sys.exit(f"graphbit's core is written in Zig, and the compiler is not installed: {remedy}")
        path = str(Path(spec.origin).with_name("zig"))
    try:
        is_version = subprocess.run([path, "version"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the Zig compiler {path} does not run ({error}): {remedy}")
    if is_version != wanted:
        sys.exit(f"graphbit's core needs Zig {wanted}, and {path} is {is_version}: {remedy}")
    return path


def zig(*arguments: str) -> None:
    # ZIG_DEBUG_CMD: a machine's first build compiles zig's build runner, in 12 s instead of 94; the core is not affected.
    environment = {**os.environ, "ZIG_DEBUG_CMD": "1"}
    code = subprocess.run([compiler(), *arguments], cwd=NATIVE, env=environment).returncode
    if code != 0:
        sys.exit(f"zig {' '.join(arguments)} failed (exit code {code}); its messages are above")


def compile_core(name: str) -> Path:
    """Compiles the core for one platform and returns the library. Zig itself sees what is out of date."""
    target = PLATFORMS[name]
    prefix = NATIVE / "zig-out" / target
    zig("build", "--release=safe", f"-Dtarget={target}", f"-Dversion={version()}", "--prefix", str(prefix))
    return (
        prefix
        / {
            "linux": "lib/libgraphbit.so",
            "macos": "lib/libgraphbit.dylib",
            "windows": "bin/graphbit.dll",
        }[target.split("-")[1]]
    )


def generate_cdef(path: Path) -> None:
    """Writes what cffi reads out of the header as a Python module. Leaves an equal file alone."""
    try:
        from cffi import FFI
    except ModuleNotFoundError:
        sys.exit(f"cffi is not installed: get it with\n    {sys.executable} -m pip install cffi")
    header = (NATIVE / "include" / "graphbit.h").read_text(encoding="utf-8")
    ffi = FFI()
    ffi.cdef(header.split("/* ---- cffi reads from here ---- */")[1].split("/* ---- to here ---- */")[0])
    ffi.set_source("graphbit._native_cdef", None)
    ffi.emit_python_code(str(path))


# ---------------------------------------------------------------- the ways in


def build_in_place() -> None:
    """Into graphbit/, for this machine."""
    library = compile_core(host())
    generate_cdef(PACKAGE / "_native_cdef.py")
    installed = PACKAGE / f"_graphbit{library.suffix}"
    if not installed.exists() or not filecmp.cmp(library, installed, shallow=False):
        # Replaced, never written over: a running process may have the old one mapped.
        fresh = installed.with_name(installed.name + ".new")
        shutil.copyfile(library, fresh)
        fresh.replace(installed)


class Hook(HookBase):
    """Called by hatchling for each wheel; an editable one is a pointer at this tree, so the tree is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_in_place()
            return
        name = known(os.environ.get("GRAPHBIT_PLATFORM") or host())
        library = compile_core(name)
        cdef = NATIVE / "zig-out" / "_native_cdef.py"
        generate_cdef(cdef)
        # Straight out of zig-out: what lies in graphbit/ is this machine's, and may be older.
        build_data["force_include"][str(library)] = f"graphbit/_graphbit{library.suffix}"
        build_data["force_include"][str(cdef)] = "graphbit/_native_cdef.py"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{wheel_platform(name)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true", help="run the core's own tests")
    parser.add_argument("--tsan", action="store_true", help="with --test: under ThreadSanitizer")
    parser.add_argument("--filter", metavar="WORDS", help="--test, --sim, --interleave, --fuzz: only what is called so")
    parser.add_argument("--seed", metavar="N", help="with --test, --sim, --fuzz: the number random tests start from")
    parser.add_argument("--nodes", metavar="N", help="with --test: how many nodes go through pool and graph")
    parser.add_argument("--sim", metavar="N", help="run N seeded simulations")
    parser.add_argument("--interleave", action="store_true", help="run every interleaving of small programs")
    parser.add_argument("--path", metavar="P", help="with --interleave: only the one that a failure printed")
    parser.add_argument("--fuzz", metavar="N", help="make N random runs over the decoders")
    parser.add_argument("--bench-pool", action="store_true", help="measure what a task costs")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help=f"all, or some of: {', '.join(PLATFORMS)}")
    options = parser.parse_args()
    if options.test:
        chosen = ["-Dtsan"] if options.tsan else []
        chosen += [f"-Dfilter={options.filter}"] if options.filter else []
        chosen += [f"--seed={options.seed}"] if options.seed else []
        chosen += [f"-Dnodes={options.nodes}"] if options.nodes else []
        zig("build", "test", "--summary", "all", *chosen)
    elif options.sim or options.interleave:
        chosen = ["--filter", options.filter] if options.filter else []
        if options.sim:
            zig("build", "sim", "--", "--seeds", options.sim, "--seed", options.seed or "1", *chosen)
        if options.interleave:
            zig("build", "sim", "--", "--catch")
            zig("build", "sim", "--", "--interleave", *chosen, *(["--path", options.path] if options.path else []))
    elif options.fuzz:
        chosen = ["--filter", options.filter] if options.filter else []
        zig("build", "fuzz", "--", "--seeds", options.fuzz, "--seed", options.seed or "1", *chosen)
    elif options.bench_pool:
        zig("build", "pool-bench")
    elif options.targets:
        for name in PLATFORMS if options.targets == ["all"] else map(known, options.targets):
            library = compile_core(name)
            print(f"{name:22} {library.stat().st_size / 1e6:5.2f} MB  {library.relative_to(ROOT)}")
    else:
        build_in_place()


def step_aside() -> None:
    """`python -m build`, said in this directory, finds this file and means PyPA's build: run that."""
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    sys.modules.pop("build", None)
    runpy.run_module("build", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if __spec__ is None:
        main()
    else:
        step_aside()
