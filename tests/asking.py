"""Plain requests to the fake provider, one on each connection, through http.client."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphbit.testing import FakeProvider

CHAT = "/v1/chat/completions"


def chat_body(prompt: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": prompt}], **more}


def connect(provider: FakeProvider) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)


def ask(
    provider: FakeProvider,
    path: str = CHAT,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own."""
    connection = connect(provider)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
    response = connection.getresponse()
    try:
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def text(provider: FakeProvider, prompt: str = "Hello.", **more: Any) -> Any:
    status, _, body = ask(provider, body=chat_body(prompt, **more))
    assert status == 200, body
    return json.loads(body)["choices"][0]["message"]["content"]
