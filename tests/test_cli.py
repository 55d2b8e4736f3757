"""The command: what is said to it, what it answers and where, and the exit codes. In-process where that is enough; real
processes for pipes, terminals, Ctrl-C and missing packages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, strategies as st

import graphbit
from graphbit import Executor, LlmConfig, Node, Workflow, runtime
from graphbit.cli import demo, report
from graphbit.cli.commands import graphbit as command
from graphbit.cli.loading import UsageError, parse_inputs
from graphbit.testing import FakeProvider

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key and no URL of whoever runs the tests, and nothing left of the files that were loaded."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("graphbit", "rich", "pygments")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("flow.py", "…")` -> its path."""

    def written(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return written


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


# ------------------------------------------------------------------------------------------------------------------ demo


def test_the_demo_needs_nothing_and_shows_a_brief_a_timeline_and_the_time() -> None:
    result = said("demo", "--latency", "20")
    assert result.exit_code == 0, result.output
    out = result.stdout
    assert "honey-bees.txt: 1,175 words in 6 parts" in out
    assert "It is not a language model" in out
    assert re.search(
        r"7 calls to fake-model\n +[\d,]+ tokens sent, [\d,]+ received \(as the fake provider estimates", out
    )
    for node in [*(f"part {i}" for i in range(1, 7)), "statistics", "brief"]:
        assert re.search(rf"^✓ {node} +[█▒]+ +[\d.]+ m?s → [\d.]+ m?s$", out, re.MULTILINE), node
        assert re.search(rf"^✓ {node} succeeded after [\d.]+ m?s$", result.stderr, re.MULTILINE), node


def test_the_times_of_the_demo_add_up_to_the_run() -> None:
    table = said("demo", "--latency", "20").stdout.split("Where the time went")[1]
    rows = dict(re.findall(r"^  (\w[\w ]*?) {2,}([\d,]+\.\d) ms", table, re.MULTILINE))
    times = {name: round(float(value.replace(",", "")) * 10) for name, value in rows.items()}
    whole = times.pop("the run")
    assert set(times) == {"waiting for the model", "Python functions", "graphbit itself"}
    assert sum(times.values()) == whole
    assert times["waiting for the model"] >= 400  # two calls of 20 ms after each other


def test_the_demo_summarises_a_given_text_in_so_many_parts(write: Write) -> None:
    text = write(
        "essay ü.txt", "\n\n".join(f"Absatz {i} erzählt von Bienen. Sie tanzen — 蜜蜂跳舞。" for i in range(9))
    )
    result = said("demo", text, "--parts", "3", "--latency", "0", "--quiet")
    assert result.exit_code == 0, result.output
    assert "essay ü.txt: 81 words in 3 parts" in result.stdout
    assert "4 calls" in result.stdout
    assert "Bienen" in result.stdout.split("The brief")[1]
    assert result.stderr == ""


def test_the_demo_reads_the_standard_input_and_says_when_there_are_too_few_sentences() -> None:
    result = said("demo", "-", "--parts", "5", "--latency", "0", stdin="One bee. Two bees.")
    assert result.exit_code == 0
    assert "standard input: 4 words in 2 parts\n(it has too few sentences for 5 parts)" in result.stdout


def test_the_demo_asks_the_server_that_is_named_all_parts_at_once(provider: FakeProvider) -> None:
    provider.default = lambda request: f"Note {request.index}: bees dance."
    provider.hold()
    asked = begin(
        *("demo", "--base-url", provider.base_url, "--model", "fake-model", "--api-key-env", "MY_KEY", "--parts", "4"),
        MY_KEY="sesame",
    )
    provider.wait_for_requests(4)  # none is answered before all are there
    provider.release()
    code, out, err = ended(asked)
    assert code == 0, err
    assert f"Asking fake-model at {provider.base_url}." in out
    assert "as the server reported them" in out
    last = provider.requests[4]
    assert sorted(last.prompt.split("\n\n")) == [f"Note {i}: bees dance." for i in range(4)]
    assert "bees, dance" in last.messages[0]["content"]
    assert last.headers["authorization"] == "Bearer sesame"


def test_the_demo_asks_openai_where_its_key_is_set_unless_it_is_to_stay_offline(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789012345678901234567")
    monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
    assert said("demo", "--offline", "--latency", "0").exit_code == 0
    assert provider.requests == []
    provider.models = ("gpt-4o-mini",)
    assert said("demo", "--parts", "2").exit_code == 0
    assert [request.model for request in provider.requests] == ["gpt-4o-mini"] * 3


def test_a_demo_whose_server_refuses_ends_with_one_line(provider: FakeProvider) -> None:
    provider.fail(401, message="who are you?", times=None)
    result = said("demo", "--base-url", provider.base_url, "--model", "fake-model", "--parts", "1", "-q")
    assert result.exit_code == 1
    assert re.fullmatch(r"error: node 'part 1'.*401.*who are you\?.*\n", result.stderr)
    assert "The brief" not in result.stdout
    assert re.search(r"^✗ part 1 +█+", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-file.txt"], "no-such-file.txt cannot be read: No such file"),
        (["--base-url", "http://localhost:1/v1"], "--base-url needs --model"),
        (["--model", "m"], "--model needs --base-url, or the environment variable OPENAI_API_KEY"),
        (["--api-key-env", "NOPE"], "--api-key-env needs --base-url"),
        (["--base-url", "http://h/v1", "--model", "m", "--api-key-env", "NOPE"], "variable NOPE is not set"),
        (["--base-url", "http://h/v1", "--model", "m", "--latency", "1"], "--latency is the fake provider's"),
        (["--base-url", "http://h/v1", "--model", "m", "--offline"], "--offline asks no other model"),
        (["--parts", "0"], "0 is not in the range"),
        (["--parts"], "requires an argument"),
    ],
)
def test_a_demo_that_cannot_be_meant_exits_with_2(arguments: list[str], message: str) -> None:
    result = said("demo", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_a_demo_of_nothing_or_of_no_text_exits_with_2(write: Write) -> None:
    assert said("demo", write("empty.txt", " \n\n")).stderr == "error: empty.txt has no text in it\n"
    assert "is not UTF-8 text (byte 1)" in said("demo", write("binary.txt", b"a\xff\xfe")).stderr


# Any characters, and sentences of very different lengths.
texts = st.text(alphabet="abcé蜜 .!?\n", max_size=400) | st.lists(st.integers(1, 300), max_size=30).map(
    lambda lengths: " ".join("b" * length + "." for length in lengths)
)


@given(texts, st.integers(1, 12))
def test_splitting_loses_nothing_and_keeps_the_order(text: str, count: int) -> None:
    parts = demo.split_text(text, count)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part.strip() for part in parts)
    assert len(parts) <= count
    assert bool(parts) == bool(text.split())


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40))
def test_without_a_number_parts_are_bounded(lengths: list[int]) -> None:
    text = "\n\n".join("b" * length + "." for length in lengths)
    parts = demo.split_text(text)
    assert len(parts) <= 24
    assert max(map(len, parts)) <= 3 * max(1000, len(text) / 20)


def test_parts_end_where_paragraphs_do_if_one_ends_close_by() -> None:
    paragraphs = [f"{'word ' * 20}{i}. {'more ' * 20}{i}." for i in range(4)]
    assert demo.split_text("\n\n".join(paragraphs), 2) == ["\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:])]


def test_key_terms_are_what_most_texts_share_and_plurals_are_one() -> None:
    texts = ["The bee and the comb.", "Bees, bees: combs!", "All bees eat honey, honey, honey."]
    assert demo.key_terms(texts) == ["bees", "comb", "honey", "eat"]


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


# ---------------------------------------------------------------------------------------- where the time went


def test_times_add_up_whatever_runs_beside_whatever(provider: FakeProvider) -> None:
    provider.latency = 0.02
    workflow = Workflow("mixed")
    workflow.add(
        Node.agent("ask", "one"),
        Node.agent("again", "two {ask}"),
        Node.function(lambda: sum(range(200_000)), name="work"),
        Node.function(lambda work: sum(range(work % 100_000)), name="more"),
        Node.delay("pause", 0.03),
        Node.transform("text", "{more}"),
        Node.http("page", "GET", provider.url + "/v1/models"),
    )
    result = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).execute(workflow)
    assert result.is_success(), result.errors
    spent = report.time_spent(workflow, result)
    assert sum(spent.values()) == pytest.approx(result.duration)
    assert min(spent.values()) >= 0
    assert spent[report.MODEL] >= 0.04
    nodes = result.nodes
    calls = [nodes[name].duration or 0 for name in ("ask", "again")]
    assert spent[report.MODEL] == pytest.approx(sum(calls))  # they never overlap
    printed = [
        "".join(it if isinstance(it, str) else it[0] for it in line) for line in report.time_lines(workflow, result)
    ]
    numbers = [float(found[1]) for line in printed if (found := re.search(r"([\d.]+) ms", line[:45]))]
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.001)
    assert numbers[-1] == pytest.approx(result.duration * 1000, abs=0.1)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=6))
def test_rounded_numbers_still_add_up(values: list[float]) -> None:
    whole = report.rounded(values, 1e-4)
    assert sum(whole) == pytest.approx(sum(values) * 1e4, abs=0.51)
    assert all(abs(number - value * 1e4) < 1.001 for number, value in zip(whole, values, strict=True))


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
