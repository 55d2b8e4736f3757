"""Worker processes of programs of all kinds: scripts, modules, stdin, forks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from flows import PATIENCE, needs_fork, wait_until_gone

pytest.importorskip("pebble")


HERE = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """In which a program anywhere finds graphbit and process_work."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def program(code: str, tmp_path: Path, *, how: str = "file") -> subprocess.CompletedProcess[str]:
    """Runs a program: from a file, by -c, from stdin, or as `python -m package`."""
    code = textwrap.dedent(code)
    command, given = [sys.executable], None
    if how == "file":
        (tmp_path / "script.py").write_text(code)
        command.append(str(tmp_path / "script.py"))
    elif how == "-m":
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "__init__.py").touch()
        (tmp_path / "package" / "__main__.py").write_text(code)
        command += ["-m", "package"]
    elif how == "-c":
        command += ["-c", code]
    else:
        command.append("-")
        given = code
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment()
    )


def test_a_script_sends_its_own_functions_and_classes(tmp_path: Path) -> None:
    done = program(
        """
        from graphbit import _process

        class Box:
            def __init__(self, value): self.value = value

        def double(box): return Box(2 * box.value)

        _process.prepare(double)        # nodes are often made while the main module is imported, by the workers too

        if __name__ == "__main__":
            print(_process.call(double, (Box(21),)).value)
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "", 0)


def test_a_script_without_a_guard_gets_an_error_that_tells_about_it(tmp_path: Path) -> None:
    done = program(
        """
        print("imported", flush=True)
        from graphbit import _process

        def one(): return 1

        _process.configure(2)
        for _ in range(3):
            tasks = [_process.start(one, node="n")]
        print(tasks[0].result())
        """,
        tmp_path,
    )
    assert done.returncode == 1
    assert "under `if __name__ == '__main__':`" in done.stderr.strip().splitlines()[-1]
    assert done.stdout.count("imported") <= 4  # this program, and the workers that were started for three tasks


def test_a_script_without_a_guard_that_swallows_the_error_is_told_all_the_same(tmp_path: Path) -> None:
    done = program(
        """
        print("imported", flush=True)
        from graphbit import _process

        def one(): return 1

        for _ in range(3):
            try:
                _process.call(one, node="n")
            except Exception as error:
                if __name__ == "__main__":
                    print(type(error).__name__, error)
        """,
        tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout.count("imported") == 2
    assert done.stdout.count("ConfigurationError node 'n': a script that runs workflows with process=True") == 3


@pytest.mark.parametrize("how", ["-c", "-m"])
def test_a_program_without_a_main_file_sends_functions_of_modules(how: str, tmp_path: Path) -> None:
    done = program(
        """
        import process_work as work
        from graphbit import _process

        if __name__ == "__main__":
            _process.prepare(work.add)
            print(_process.call(work.add, (1, 2)))
        """,
        tmp_path,
        how=how,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


@pytest.mark.parametrize("how", ["-c", "-m"])
@pytest.mark.parametrize("what", ["one", "functools.partial(work.identity, one)", "Box().one"])
def test_a_program_without_a_main_file_cannot_send_its_own_functions(how: str, what: str, tmp_path: Path) -> None:
    done = program(
        f"""
        import functools
        import process_work as work
        from graphbit import ConfigurationError, _process

        class Box:
            def one(self): return 1

        def one(): return 1

        try:
            _process.prepare({what})
        except ConfigurationError as error:
            print(error)
        """,
        tmp_path,
        how=how,
    )
    assert re.search(
        "__main__.* is defined in a program that worker processes cannot import.*move it into a module", done.stdout
    )


def test_a_program_on_stdin_is_refused(tmp_path: Path) -> None:
    done = program(
        """
        import process_work as work
        from graphbit import ConfigurationError, _process
        for attempt in (lambda: _process.prepare(work.add), lambda: _process.call(work.add, (1,))):
            try:
                attempt()
            except ConfigurationError as error:
                print(error)
        """,
        tmp_path,
        how="stdin",
    )
    assert done.stdout.count("this one cannot be read again (<stdin>); put the program into a file and run that") == 2


def test_a_program_ends_while_its_workers_are_busy(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = program(
        f"""
        import process_work as work
        from graphbit import _process

        if __name__ == "__main__":
            _process.configure(2)
            task = _process.start(work.begin_and_hang, ({str(fifo)!r},))
            _process.start(work.begin_and_hang, ({str(fifo)!r},))
            print(open({str(fifo)!r}).read())
        """,
        tmp_path,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    wait_until_gone(int(done.stdout[:20]))


def test_an_interrupt_reaches_the_caller_and_stops_the_worker(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    done = program(
        f"""
        import os, signal, threading
        import process_work as work
        from graphbit import _process

        def interrupt():
            print(open({str(fifo)!r}).read(), flush=True)
            os.kill(os.getpid(), signal.SIGINT)

        if __name__ == "__main__":
            threading.Thread(target=interrupt).start()
            try:
                _process.call(work.begin_and_hang, ({str(fifo)!r},))
            except KeyboardInterrupt:
                print("interrupted", _process.call(work.add, (1, 2)))
        """,
        tmp_path,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    pid, rest = done.stdout.split("\n", 1)
    assert rest == "interrupted 3\n"
    wait_until_gone(int(pid))


def test_idle_workers_end_with_a_program_that_was_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    held: list[str] = []
    reader = threading.Thread(target=lambda: held.append(fifo.read_text()), daemon=True)
    reader.start()
    done = program(
        f"""
        import os, signal
        import process_work as work
        from graphbit import _process

        if __name__ == "__main__":
            _process.call(work.hold, ({str(fifo)!r},))
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    reader.join(PATIENCE)  # it ends when the last process that holds the pipe is gone
    assert held == [""]


@needs_fork
def test_a_forked_child_leaves_the_parents_workers_alone_and_starts_its_own(tmp_path: Path) -> None:
    done = program(
        """
        import os, sys, warnings
        import process_work as work
        from graphbit import _process

        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)     # Python 3.12 warns of every fork with threads
            pid = _process.call(work.process_id)
            child = os.fork()
            if child == 0:
                assert _process.call(work.process_id) != pid
                sys.exit(0)                     # with all that is done at exit
            assert os.waitpid(child, 0)[1] == 0
            child = os.fork()
            if child == 0:
                sys.exit(0)                     # the same without any use
            assert os.waitpid(child, 0)[1] == 0
            assert _process.call(work.process_id) == pid
            print("fine")
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)
