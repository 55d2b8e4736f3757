"""The fake provider's model as tests ask it: its configuration, workflows of agents, and batches awaited to the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphbit import Executor, LlmClient, LlmConfig, Node, Workflow, WorkflowResult
from graphbit.testing import FakeProvider

KEY = "sk-0123456789abcdefghij"

Ask = Callable[..., Any]


def config_for(provider: FakeProvider, model: str = "fake-model", **options: Any) -> LlmConfig:
    return LlmConfig.openai_compatible(provider.base_url, model, **{"max_retries": 0, **options})


async def batch_async(client: LlmClient, *args: Any, **options: Any) -> list[Any]:
    answers: list[Any] = await client.complete_batch(*args, **options)
    return answers


def workflow(nodes: list[Node], edges: str = "") -> Workflow:
    """Nodes joined as in "a-b b-c", in that order."""
    made = Workflow("w")
    made.add(*nodes)
    for edge in edges.split():
        made.connect(*edge.split("-"))
    return made


def executed(config: LlmConfig | None, nodes: list[Node], edges: str = "", **inputs: Any) -> WorkflowResult:
    return Executor(config).execute(workflow(nodes, edges), inputs)
