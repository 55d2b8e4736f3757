"""A client behind admission, and what its controller says of itself."""

from __future__ import annotations

from typing import Any

import pytest
from models import config_for

from graphbit import Executor, LlmClient, Node, Workflow
from graphbit.testing import FakeProvider, VirtualClock


def client_for(provider: FakeProvider, model: str = "fake-model", **options: Any) -> LlmClient:
    return LlmClient(config_for(provider, model, **options))


def row_of(client: LlmClient) -> dict[str, Any]:
    row = client.get_stats()["admission"]
    assert isinstance(row, dict)
    return row


def wait(clock: VirtualClock, seconds: float) -> None:
    """Lets virtual time pass."""
    at = clock.now()
    flow = Workflow("pause")
    flow.add(Node.delay("pause", seconds))
    assert Executor().execute(flow).states == {"pause": "succeeded"}
    assert clock.now() == pytest.approx(at + seconds)
