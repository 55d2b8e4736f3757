"""`graphbit demo`: whom it asks, what it shows of a text, and that the times it tells add up."""

from __future__ import annotations

import re

import pytest
from command import Write, begin, ended, said
from hypothesis import given, strategies as st

from graphbit import Executor, LlmConfig, Node, Workflow
from graphbit.cli import demo, report
from graphbit.testing import FakeProvider

pytestmark = pytest.mark.usefixtures("alone")


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
