"""The command itself: `doctor`, `version`, help, and real processes for pipes, terminals and missing packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from command import Write, begin, ended, said

import graphbit
from graphbit import runtime
from graphbit.testing import FakeProvider

pytestmark = pytest.mark.usefixtures("alone")


def python(program: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def without(module: str, *arguments: str) -> tuple[int, str, str]:
    """The command in a process that has no such module."""
    return python(
        f"import sys; sys.modules[{module!r}] = None; from graphbit.cli import main; main({list(arguments)!r})"
    )


# --------------------------------------------------------------------------------------------------- doctor, version, help


def test_the_doctor_finds_everything_there(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(runtime, "curl_version", lambda: "8.9.1")
    monkeypatch.setenv("SSL_CERT_FILE", write("certificates.pem", ""))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    result = said("doctor")
    assert result.exit_code == 0, result.stdout
    for name in ("Python", "platform", "graphbit", "core", "libcurl", "certificates", "API keys", "threads", "health"):
        assert re.search(rf"^ok +{name} ", result.stdout, re.MULTILINE), name
    assert "8.9.1" in result.stdout
    assert "OPENAI_API_KEY" in result.stdout
    assert "sk-secret" not in result.output


def test_the_doctor_names_what_is_missing_and_the_remedy(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(runtime, "curl_version", lambda: None)
    result = said("doctor")
    assert result.exit_code == 1
    assert re.search(r"^missing +libcurl .*\n +install libcurl .*apt install libcurl4", result.stdout, re.MULTILINE)
    monkeypatch.setattr(runtime, "curl_version", lambda: "8.9.1")
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    result = said("doctor")
    assert result.exit_code == 1
    assert re.search(
        r"^missing +certificates +/no/such/file cannot be read\n +correct or unset SSL_CERT", result.stdout, re.M
    )


def test_the_doctor_says_so_where_the_core_cannot_be_loaded() -> None:
    code, out, _ = without("graphbit._native_cdef", "doctor")
    assert code == 1
    assert re.search(r"^missing +core +cannot be loaded: .*\n +.*python build.py", out, re.MULTILINE)


def test_the_version_is_told_in_every_way() -> None:
    assert said("version").stdout == said("--version").stdout == f"graphbit {graphbit.__version__}\n"
    assert ended(begin("version")) == (0, f"graphbit {graphbit.__version__}\n", "")


def test_help_names_every_command_and_needs_no_core() -> None:
    result = said("--help")
    assert result.exit_code == 0
    assert result.stdout == said().stdout
    for name in ("demo", "run", "validate", "doctor", "version"):
        assert re.search(rf"^  {name} +\w", result.stdout, re.MULTILINE)
        assert said(name, "--help").stdout.startswith(f"Usage: graphbit {name}")
    assert without("graphbit._native_cdef", "run", "--help")[0] == 0


def test_an_unknown_command_is_exit_code_2() -> None:
    result = said("rnu")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: No such command 'rnu'")


# ------------------------------------------------------------------------------------------------------- real processes


def test_without_click_it_says_what_to_install() -> None:
    code, _, err = without("click", "version")
    assert code == 2
    assert err == "error: the command needs click: pip install 'graphbit[cli]'\n"


def test_piped_output_is_plain_and_apart_from_the_progress() -> None:
    code, out, err = ended(begin("demo", "--latency", "1"))
    assert code == 0, err
    assert "\x1b" not in out + err
    assert "The brief" in out
    assert "succeeded after" not in out
    assert err.count("succeeded after") == 8


def test_where_only_ascii_can_be_shown_the_bars_are_ascii() -> None:
    code, out, err = ended(begin("demo", "--latency", "1", PYTHONIOENCODING="ascii"))
    assert code == 0, err
    assert re.search(r"^\+ part 1 +#+ ", out, re.MULTILINE)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    asked = begin("demo", "--latency", "1")
    assert asked.stdout is not None and asked.stderr is not None
    asked.stdout.close()
    assert "Traceback" not in asked.stderr.read()
    asked.stderr.close()
    assert asked.wait(timeout=30) == 1


def test_rich_is_imported_only_where_it_is_used() -> None:
    program = (
        "import sys; from graphbit.cli import main\n"
        "try: main(['demo', '--latency', '1'])\n"
        "except SystemExit as end: print(end.code, 'rich' in sys.modules)"
    )
    code, out, err = python(program)
    assert (code, out[-8:]) == (0, "0 False\n"), err


def on_a_terminal(*command: str, seen: Callable[[str], None] = lambda text: None) -> str:
    """What a process writes to a terminal; `seen` is told each time there is more, without the styles."""
    import pty

    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    asked = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env)
    os.close(side)
    written = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not piece:
            break
        written += piece
        seen(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode(errors="replace")))
    os.close(main)
    assert asked.wait(timeout=30) == 0, written
    return written.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_it_is_styled_and_the_progress_is_live(provider: FakeProvider) -> None:
    provider.hold()
    steps: list[tuple[str, Callable[[], None]]] = [
        (r"part 3 +running", lambda: provider.release(3)),
        (r"brief +running", lambda: provider.release(1)),
    ]

    def seen(text: str) -> None:
        """Each call is answered once the terminal shows that it is on its way: without live progress this never ends."""
        if steps and re.search(steps[0][0], text):
            steps.pop(0)[1]()

    asks = ("--base-url", provider.base_url, "--model", "fake-model", "--parts", "3")
    written = on_a_terminal(sys.executable, "-m", "graphbit", "demo", *asks, seen=seen)
    assert steps == []
    assert "\x1b[" in written
    assert "The brief" in written
    assert "succeeded after" not in written


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_without_rich_gets_plain_lines() -> None:
    program = "import sys; sys.modules['rich'] = None; sys.modules['rich.console'] = None\n"
    program += "from graphbit.cli import main; main(['demo', '--latency', '1', '--parts', '3'])"
    written = on_a_terminal(sys.executable, "-c", program)
    assert "\x1b" not in written
    assert "part 1 succeeded after" in written
