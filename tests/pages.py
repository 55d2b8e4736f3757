"""One HTTP node and what becomes of it: the result of its workflow, its output, its error."""

from __future__ import annotations

from typing import Any

from graphbit import Executor, Node, RequestError, Workflow, WorkflowResult


def executed(*nodes: Node, **inputs: Any) -> WorkflowResult:
    made = Workflow("w")
    made.add(*nodes)
    return Executor().execute(made, inputs)


def fetched(method: str, url: str, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
    """The output of one HTTP node; its error is raised."""
    return executed(Node.http("page", method, url, **options), **(inputs or {}))["page"]


def error_of(method: str, url: str, inputs: dict[str, Any] | None = None, **options: Any) -> RequestError:
    """The error of one HTTP node, which names it."""
    result = executed(Node.http("page", method, url, **options), **(inputs or {}))
    assert result.states == {"page": "failed"}
    error = result.errors["page"]
    assert isinstance(error, RequestError)
    assert str(error).startswith("node 'page' ")
    assert error.node == "page"
    assert getattr(error, "__notes__", None) == ["raised by node 'page'"]
    return error
