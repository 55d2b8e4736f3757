"""Every example in the documents runs, each block of README.md as a program of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphbit.testing import FakeProvider

ROOT = Path(__file__).resolve().parent.parent


def blocks(document: str) -> list[tuple[int, str]]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match.group(1))
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(("line", "source"), [pytest.param(*it, id=f"line {it[0]}") for it in blocks("README.md")])
def test_every_example_of_the_readme_runs(line: int, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProvider() as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key-but-long-enough")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        program = compile("\n" * (line - 1) + source, str(ROOT / "README.md"), "exec")
        exec(program, {"__name__": "__readme__"})


def test_there_are_examples() -> None:
    assert len(blocks("README.md")) >= 5


def test_links_between_documents_lead_somewhere() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"):
        path = ROOT / document
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{document} links to {target}, which is not there"
