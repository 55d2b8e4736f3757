"""What tests of event streams share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from flows import opened

from graphbit import Node, Workflow
from graphbit.stream import RunStream

Event = dict[str, Any]


def linked(*nodes: Node, edges: str = "") -> Workflow:
    """`linked(a, b, edges="a-b")`"""
    made = Workflow("w")
    made.add(*nodes)
    for edge in edges.split():
        before, after = edge.split("-")
        made.connect(before, after)
    return made


def told(events: Iterator[Event] | list[Event]) -> list[str]:
    """`["workflow_started", "node_started a", …]`"""
    return [it["event"] + (f" {it['node_name']}" if "node_name" in it else "") for it in events]


def of(kind: str, events: list[Event]) -> list[Event]:
    return [it for it in events if it["event"] == kind]


def one(kind: str, events: list[Event]) -> Event:
    (found,) = of(kind, events)
    return found


async def collect(stream: RunStream) -> list[Event]:
    return [event async for event in stream]


class Gate:
    """A node that says it began and then waits for whoever may let it go on."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.open = threading.Event()

    def node(self, name: str = "gate") -> Node:
        def wait() -> str:
            self.began.set()
            opened(self.open)
            return "through"

        return Node.function(wait, name)
