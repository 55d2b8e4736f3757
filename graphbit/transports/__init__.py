"""Transports for httpx and httpx2: what these clients send goes through graphbit's HTTP engine.

```python
from graphbit.transports import AsyncHttpx2Transport, Httpx2Transport, HttpxTransport

client = httpx.Client(transport=HttpxTransport())
llm = openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=AsyncHttpx2Transport()))
```

`HttpxTransport` and `AsyncHttpxTransport` are for httpx (`pip install graphbit[httpx]`), `Httpx2Transport` and
`AsyncHttpx2Transport` for httpx2 (`graphbit[httpx2]`), which the SDKs of OpenAI and Anthropic use. Each package is imported when
its transport is first asked for, and neither needs the other.

Above a transport everything is the client's: redirects, cookies, authentication, event hooks, decoding, retries of an SDK. Below it
are the engine's connections, shared by the whole process and kept from one event loop to the next.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from graphbit.transports._httpx import (
        AsyncHttpxTransport as AsyncHttpxTransport,
        HttpxTransport as HttpxTransport,
    )
    from graphbit.transports._httpx2 import (
        AsyncHttpx2Transport as AsyncHttpx2Transport,
        Httpx2Transport as Httpx2Transport,
    )

__all__ = ["AsyncHttpx2Transport", "AsyncHttpxTransport", "Httpx2Transport", "HttpxTransport"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    package = "httpx2" if "Httpx2" in name else "httpx"
    try:
        module = import_module(f"graphbit.transports._{package}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ImportError(f"{name} needs {package}: pip install 'graphbit[{package}]'") from error
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
