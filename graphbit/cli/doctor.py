"""`graphbit doctor`: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import sys

from graphbit._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from graphbit.cli.screen import Screen

LIBCURL_REMEDY = (
    "install libcurl 7.76 or newer: `apt install libcurl4` on Debian and Ubuntu, `dnf install libcurl` on Fedora, "
    "`apk add libcurl` on Alpine"
)


class Check:
    """One line of the examination. `remedy` is empty where nothing is wrong; a `missing` thing makes the command fail."""

    __slots__ = ("found", "missing", "name", "remedy")

    def __init__(self, name: str, found: str, remedy: str = "", *, missing: bool = False) -> None:
        self.name = name
        self.found = found
        self.remedy = remedy
        self.missing = missing


def examine() -> Iterator[Check]:
    """The checks, in an order in which the later ones need the earlier ones."""
    implementation = platform.python_implementation()
    yield Check("Python", f"{implementation} {platform.python_version()}, {sys.executable}")
    yield Check("platform", platform.platform())
    yield Check("graphbit", f"{__version__}, {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}")
    try:
        from graphbit import runtime
        from graphbit.health import health_check
    except (ImportError, OSError) as error:
        said = " ".join(str(error).split())
        remedy = (
            "install cffi: pip install cffi"
            if isinstance(error, ModuleNotFoundError) and error.name in ("cffi", "_cffi_backend")
            else "install graphbit again, or build the core in a source checkout: python build.py"
        )
        yield Check("core", f"cannot be loaded: {said}", remedy, missing=True)
        return
    core = runtime.get_system_info()["core_version"]
    if core == __version__:
        yield Check("core", core)
    else:
        yield Check(
            "core", f"{core}, but the package is {__version__}", "build the core anew: python build.py", missing=True
        )
    libcurl = runtime.curl_version()
    if libcurl is None:
        yield Check("libcurl", "not found; models and HTTP nodes cannot be reached", LIBCURL_REMEDY, missing=True)
    else:
        yield Check("libcurl", libcurl)
    yield trust()
    yield keys()
    try:
        health = health_check()
    except Exception as error:
        yield Check("health", f"a workflow of one node failed: {error}", "please report this", missing=True)
        return
    info = runtime.get_system_info()
    yield Check("processors", str(info["cpu_count"]))
    yield Check(
        "threads",
        f"{info['runtime_worker_threads']} of at most {info['runtime_max_worker_threads']} native workers, "
        f"{info['runtime_callback_threads']} of {info['runtime_max_blocking_threads']} for Python callbacks, "
        f"{info['runtime_http_threads']} for HTTP, {info['runtime_timer_threads']} for timers",
    )
    yield from healthy(health)


def trust() -> Check:
    """The certificates that servers are checked against."""
    from graphbit._surroundings import trust_store

    file, directory = trust_store()
    store = file or directory
    if not store:
        remedy = "if HTTPS fails: pip install certifi, or name a file of certificates in SSL_CERT_FILE"
        return Check("certificates", "none of our own finding, libcurl uses its built-in place", remedy)
    lost = [path for path in (file, directory) if path and not os.access(path, os.R_OK)]
    if lost:
        variable = "SSL_CERT_FILE" if lost[0] == file else "SSL_CERT_DIR"
        return Check("certificates", f"{lost[0]} cannot be read", f"correct or unset {variable}", missing=True)
    return Check("certificates", ", ".join(path for path in (file, directory) if path))


def keys() -> Check:
    """Which providers have their key in the environment. The keys themselves are nobody's business."""
    from graphbit.llm.providers import PROVIDERS

    variables = dict.fromkeys(row.key_variable for row in PROVIDERS.values() if row.key_variable)
    found = [name for name in variables if os.environ.get(name)]
    return Check("API keys", ", ".join(found) if found else f"none of {', '.join(variables)} is set")


def healthy(health: dict[str, Any]) -> Iterator[Check]:
    if not health["runtime_healthy"]:
        yield Check("runtime", "a workflow of one node did not end as it should", "please report this", missing=True)
    memory = f"{health['available_memory_mb']:,} of {health['total_memory_mb']:,} MiB available"
    if health["memory_healthy"]:
        yield Check("memory", memory)
    else:
        yield Check("memory", memory, "close other programs; runs may fail for want of memory", missing=True)
    if health["overall_healthy"]:
        yield Check("health", "a workflow ran as it should")


def run(screen: Screen) -> bool:
    """Shows all checks. False: something is missing."""
    sound = True
    for check in examine():
        sign, style = ("ok", "green") if not check.remedy else ("missing" if check.missing else "note", "bold red")
        if check.remedy and not check.missing:
            style = "yellow"
        screen.line((f"{sign:8}", style), f"{check.name:13} {check.found}")
        if check.remedy:
            screen.line(f"{'':22}", (check.remedy, style))
        sound &= not check.missing
    return sound
