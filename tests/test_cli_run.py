"""`graphbit run` and `graphbit validate`: files that are loaded, inputs, what is printed and where, and the exit codes."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import Write, begin, ended, said

from graphbit.cli.commands import graphbit as command
from graphbit.cli.loading import UsageError, parse_inputs
from graphbit.testing import FakeProvider

pytestmark = pytest.mark.usefixtures("alone")

FLOW = """
from graphbit import Node, Workflow

def count(text: str, limit=None) -> dict:
    return {"words": len(text.split()), "limit": limit}

flow = Workflow("flow", inputs=["text", "limit"])
flow.add(Node.function(count), Node.transform("say", "{count.words} of {limit}: {text}"))

if __name__ == "__main__":
    raise SystemExit("this is not the way to run it")
"""
FAILS = """
from graphbit import Node, Workflow

def broken() -> str:
    raise ValueError("no\\nsuch bee")

flow = Workflow("fails")
flow.add(
    Node.function(broken),
    Node.transform("after", "{broken}"),
    Node.transform("aside", "all is well"),
)
"""
TWO = """
from graphbit import Node, Workflow

first, second = Workflow("one"), Workflow("two")
first.add(Node.transform("a", "this is one"))
second.add(Node.transform("a", "this is two"))
same = first

def made():
    workflow = Workflow("made")
    workflow.add(Node.transform("a", "this was made"))
    return workflow
"""
ASKS = """
from graphbit import Node, Workflow

flow = Workflow("asks")
flow.add(Node.agent("answer", "Why do bees dance?"))
"""


# -------------------------------------------------------------------------------------------------------------- run


def test_run_prints_the_output_of_the_last_node_and_nothing_else(write: Write) -> None:
    result = said("run", write("flow.py", FLOW), "-i", "text=zwei Bienen 🐝", "-i", "limit:=3")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "3 of 3: zwei Bienen 🐝\n"
    assert "✓ count succeeded" in result.stderr
    assert "flow: 2 nodes: 2 succeeded in" in result.stderr
    assert said("run", write("flow.py", FLOW), "-q", "-i", "text=a", "-i", "limit=b").stderr == ""


def test_run_reads_inputs_from_files_and_from_the_standard_input(write: Write) -> None:
    flow, notes = write("flow.py", FLOW), write("notes.txt", "\ufefföffnet = die Tür")
    assert said("run", flow, "-i", f"text=@{notes}", "-i", "limit=x=y").stdout == "4 of x=y: öffnet = die Tür\n"
    assert said("run", flow, "-i", "text=@-", "-i", "limit:=null", stdin="a b").stdout.startswith("2 of ")


def test_run_prints_everything_as_json(write: Write) -> None:
    result = said("run", write("flow.py", FLOW), "-i", "text=a b", "-i", 'limit:={"most": 2}', "--json")
    found = json.loads(result.stdout)
    assert found.pop("seconds") > 0
    assert found == {
        "workflow": "flow",
        "state": "Completed",
        "states": {"count": "succeeded", "say": "succeeded"},
        "outputs": {"count": {"words": 2, "limit": {"most": 2}}, "say": '2 of {"most":2}: a b'},
        "errors": {},
    }


def test_what_has_no_json_form_is_shown_as_python_shows_it(write: Write) -> None:
    flow = write(
        "odd.py",
        "from graphbit import Node, Workflow\n"
        "flow = Workflow('odd')\n"
        "flow.add(Node.function(lambda: {1, 1}, name='set'), Node.function(lambda: [1, {'ü': None}], name='list'))\n"
        "flow.add(Node.function(lambda: None, name='nothing'))",
    )
    assert said("run", flow).stdout == '== set ==\n{1}\n\n== list ==\n[\n  1,\n  {\n    "ü": null\n  }\n]\n'
    assert json.loads(said("run", flow, "--json").stdout)["outputs"] == {
        "set": "{1}",
        "list": [1, {"ü": None}],
        "nothing": None,
    }


def test_a_failed_node_is_one_line_and_exit_code_1(write: Write) -> None:
    result = said("run", write("fails.py", FAILS), "-q")
    assert result.exit_code == 1
    assert result.stderr == "error: node 'broken': ValueError: no such bee\n"


def test_with_continue_the_rest_is_finished_and_printed(write: Write) -> None:
    result = said("run", write("fails.py", FAILS), "--continue")
    assert result.exit_code == 1
    assert result.stdout == "== aside ==\nall is well\n"
    assert "✗ broken failed" in result.stderr
    assert "– after skipped" in result.stderr
    assert "fails: 3 nodes: 1 succeeded, 1 failed, 1 skipped in " in result.stderr
    found = json.loads(said("run", write("fails.py", FAILS), "--continue", "--json").stdout)
    assert found["state"] == "Failed"
    assert found["errors"] == {"broken": "node 'broken': ValueError: no such bee"}


@pytest.mark.parametrize("where", [0, 2])
def test_with_debug_the_traceback_is_shown(write: Write, where: int) -> None:
    arguments = ["run", write("fails.py", FAILS)]
    arguments.insert(where, "--debug")
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert 'raise ValueError("no\\nsuch bee")' in result.stderr


def test_a_run_that_takes_too_long_exits_with_1_and_keeps_what_was_finished(write: Write) -> None:
    flow = write(
        "slow.py",
        "from graphbit import Node, Workflow\n"
        "flow = Workflow('slow')\n"
        "flow.add(Node.transform('quick', 'here'), Node.delay('long', 100))",
    )
    result = said("run", flow, "--timeout", "0.2")
    assert result.exit_code == 1
    assert result.stdout == "== quick ==\nhere\n"
    assert "error: workflow 'slow' was not over within 0.2 s\n" in result.stderr


def test_run_asks_the_model_that_is_named(write: Write, provider: FakeProvider) -> None:
    provider.reply("to tell where")
    flow = write("asks.py", ASKS)
    assert said("run", flow, "--base-url", provider.base_url, "--model", "fake-model").stdout == "to tell where\n"
    result = said("run", flow)
    assert result.exit_code == 1
    assert result.stderr == "error: workflow 'asks' asks a model: set OPENAI_API_KEY, or pass --base-url and --model\n"


def test_run_shows_a_timeline_beside_the_output(write: Write, provider: FakeProvider) -> None:
    provider.reply("yes", usage={"prompt_tokens": 1234, "completion_tokens": 5})
    result = said(
        "run", write("asks.py", ASKS), "--timeline", "-q", "--base-url", provider.base_url, "--model", "fake-model"
    )
    assert result.stdout == "yes\n"
    assert re.search(r"^✓ answer █+ ", result.stderr, re.MULTILINE)
    assert "1 call to fake-model\n  1,234 tokens sent, 5 received (as the server reported them)" in result.stderr


def test_of_several_workflows_one_must_be_named(write: Write) -> None:
    two = write("two.py", TWO)
    result = said("run", two)
    assert result.exit_code == 2
    assert f"{two} has 2 workflows, name one of them: {two}:first ('one', 1 nodes), {two}:second" in result.stderr
    assert said("run", f"{two}:second").stdout == "this is two\n"
    assert said("run", f"{two}:one").stdout == "this is one\n"
    assert said("run", f"{two}:made").stdout == "this was made\n"
    wrong = said("run", f"{two}:secnd")
    assert wrong.exit_code == 2
    assert "(did you mean 'second'?)" in wrong.stderr


def test_a_file_runs_as_a_script_does_with_its_neighbours_in_reach(write: Write) -> None:
    write("bee_neighbour.py", "NAME = 'next door'")
    flow = write(
        "uses.py",
        "from __future__ import annotations\n"
        "import sys\n"
        "from dataclasses import dataclass, KW_ONLY\n"
        "from graphbit import Node, Workflow\n"
        "import bee_neighbour\n"
        "@dataclass\n"
        "class Bee:\n"
        "    name: str\n"
        "    _: KW_ONLY\n"
        "    legs: int = 6\n"
        "flow = Workflow('uses')\n"
        "def bee(): return Bee(bee_neighbour.NAME)\n"
        "flow.add(Node.function(bee), Node.transform('say', '{bee.name} ' + sys.argv[0]))",
    )
    assert said("run", flow, "-q").stdout == f"next door {flow}\n"
    assert sys.argv[0] != flow


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (", "flow.py, line 1: SyntaxError: '(' was never closed"),
        ("import sys\n\nsys.nothing", "flow.py, line 3: AttributeError: module 'sys' has no attribute 'nothing'"),
        ("import no_such_module", "flow.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(7)", "flow.py exited while it was loaded: sys.exit(7)"),
        ("x = 1", "flow.py has no Workflow at its top level"),
        (
            "from graphbit import Node, Workflow\nw = Workflow('w')\nw.connect('a', 'b')",
            "line 3: UnknownNameError: Source node a",
        ),
    ],
)
def test_a_file_that_gives_no_workflow_is_one_line_and_exit_code_1(write: Write, source: str, message: str) -> None:
    for verb in ("run", "validate"):
        result = said(verb, write("flow.py", source))
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_exit_code_2(tmp_path: Path) -> None:
    for verb in ("run", "validate"):
        result = said(verb, str(tmp_path / "flow.py:name"))
        assert (result.exit_code, result.stderr) == (2, f"error: there is no file {tmp_path / 'flow.py'}\n")
        assert said(verb, str(tmp_path)).exit_code == 2


def test_inputs_must_be_those_of_the_workflow(write: Write) -> None:
    flow = write("flow.py", FLOW)
    missing = said("run", flow, "-i", "text=a")
    assert (missing.exit_code, missing.stderr) == (2, "error: workflow 'flow' needs --input limit=…\n")
    wrong = said("run", flow, "-i", "text=a", "-i", "limt=1")
    assert wrong.exit_code == 2
    assert "has no input 'limt' (did you mean 'limit'?); its inputs: text, limit" in wrong.stderr


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["text"], "name=text"),
        (["=x"], "name=text"),
        (["a=1", "a:=2"], "'a' is given twice"),
        (["a:={"], "'a' is not JSON"),
        (["a=@/no/such/file"], "cannot be read"),
    ],
)
def test_an_input_that_cannot_be_read_says_how_it_is_written(pairs: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_inputs(pairs)


def test_inputs_may_be_anything() -> None:
    assert parse_inputs(["a=", "b=c=:=d", "e f=1", "g:=[1]"]) == {"a": "", "b": "c=:=d", "e f": "1", "g": [1]}


# ------------------------------------------------------------------------------------------------------------- validate


def test_validate_shows_a_sound_workflow(write: Write) -> None:
    result = said("validate", write("flow.py", FLOW))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "workflow 'flow' is sound",
        "",
        "2 nodes",
        "  count  function ",
        "  say    transform  after count",
        "",
        "1 edge",
        "  count -> say",
        "",
        "2 inputs",
        "  text",
        "  limit",
    ]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("Node.transform('a', '{b}'), Node.transform('b', '{a}')", "contains a cycle: 'a' -> 'b' -> 'a'"),
        ("Node.transform('a', '{topc}')", "did you mean 'topic'?"),
        ("", "workflow 'w' has no nodes"),
        ("Node.delay('a', 1), Node.transform('b', '{a}')", "has no predecessor whose output it could pass on"),
    ],
)
def test_validate_says_why_a_workflow_is_not_sound(write: Write, nodes: str, message: str) -> None:
    flow = write("w.py", f"from graphbit import *\nw = Workflow('w', inputs=['topic'])\nw.add({nodes})")
    result = said("validate", flow)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert said("run", flow, "-i", "topic=a").exit_code == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_exits_with_130_and_closes_the_connection(write: Write, provider: FakeProvider) -> None:
    provider.stall()
    asked = begin("run", write("asks.py", ASKS), "--base-url", provider.base_url, "--model", "fake-model")
    provider.wait_for_requests(1)
    asked.send_signal(signal.SIGINT)
    code, out, err = ended(asked)
    assert code == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("cancelled\n")
    provider.wait_for_disconnects(1)
