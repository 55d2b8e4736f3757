"""Dialects: wire formats, as data. Each module has RULES that read replies, and two functions that build requests:

- `chat_request(config, messages, *, max_tokens=None, temperature=None) -> Request`
- `models_request(config) -> Request`: asks what models there are, which costs nothing and opens a connection
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def dialect(name: str) -> ModuleType:
    """`dialect("openai").chat_request(config, …)`: the module of that name, loaded when it is first needed."""
    from importlib import import_module

    return import_module(f"graphbit.llm.dialects.{name}")
