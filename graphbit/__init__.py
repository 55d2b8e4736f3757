"""graphbit runs workflows of LLM calls, HTTP calls and Python functions as a graph, on a native core.

```python
from graphbit import Executor, LlmConfig, Node, Workflow

wf = Workflow("brief", inputs=["topic"])
wf.add(Node.agent("outline", "Outline a brief on {topic}."), Node.agent("draft", "Write it.\\n{outline}"))
print(Executor(LlmConfig.openai()).execute(wf, {"topic": "bees"})["draft"])
```

Names are imported when they are first used; importing the package starts nothing.
"""

from graphbit._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from graphbit.admission import Admission
    from graphbit.context import NodeContext, Outcome, current
    from graphbit.errors import (
        AuthenticationError,
        BadRequestError,
        CircuitOpenError,
        ConfigurationError,
        ConnectError,
        CycleError,
        GraphbitError,
        InputError,
        JoinError,
        LibcurlMissingError,
        NativeFunctionError,
        NodeError,
        NodeNotRunError,
        NodeTimeoutError,
        NotFoundError,
        OutputError,
        QueueTimeoutError,
        RateLimitError,
        RefusedError,
        ReplyError,
        RequestError,
        RequestTimeoutError,
        RunCancelledError,
        RuntimeClosedError,
        RunTimeoutError,
        ServerError,
        StatusError,
        TemplateError,
        TlsError,
        UnknownNameError,
        WorkerDiedError,
        WorkflowError,
    )
    from graphbit.executor import Executor
    from graphbit.health import health_check
    from graphbit.http import HttpOptions
    from graphbit.llm.client import LlmClient
    from graphbit.llm.config import LlmConfig
    from graphbit.llm.messages import FinishReason, LlmResponse, LlmToolCall, LlmUsage
    from graphbit.llm.streaming import TextStream
    from graphbit.node import Node
    from graphbit.policy import Cache, RetryPolicy
    from graphbit.profile import NodeProfile, Profile
    from graphbit.result import NodeReport, WorkflowResult
    from graphbit.run import Run
    from graphbit.runtime import configure_runtime, get_system_info, http_stats, init, shutdown, version
    from graphbit.stream import RunStream
    from graphbit.workflow import Workflow

_WHERE = {
    "Admission": "admission",
    "Cache": "policy",
    "Executor": "executor",
    "FinishReason": "llm.messages",
    "HttpOptions": "http",
    "LlmClient": "llm.client",
    "LlmConfig": "llm.config",
    "LlmResponse": "llm.messages",
    "LlmToolCall": "llm.messages",
    "LlmUsage": "llm.messages",
    "Node": "node",
    "NodeContext": "context",
    "NodeProfile": "profile",
    "NodeReport": "result",
    "Outcome": "context",
    "Profile": "profile",
    "RetryPolicy": "policy",
    "Run": "run",
    "RunStream": "stream",
    "TextStream": "llm.streaming",
    "Workflow": "workflow",
    "WorkflowResult": "result",
    "configure_runtime": "runtime",
    "current": "context",
    "get_system_info": "runtime",
    "health_check": "health",
    "http_stats": "runtime",
    "init": "runtime",
    "shutdown": "runtime",
    "version": "runtime",
    "AuthenticationError": "errors",
    "BadRequestError": "errors",
    "CircuitOpenError": "errors",
    "ConfigurationError": "errors",
    "ConnectError": "errors",
    "CycleError": "errors",
    "GraphbitError": "errors",
    "InputError": "errors",
    "JoinError": "errors",
    "LibcurlMissingError": "errors",
    "NativeFunctionError": "errors",
    "NodeError": "errors",
    "NodeNotRunError": "errors",
    "NodeTimeoutError": "errors",
    "NotFoundError": "errors",
    "OutputError": "errors",
    "QueueTimeoutError": "errors",
    "RateLimitError": "errors",
    "RefusedError": "errors",
    "ReplyError": "errors",
    "RequestError": "errors",
    "RequestTimeoutError": "errors",
    "RunCancelledError": "errors",
    "RunTimeoutError": "errors",
    "RuntimeClosedError": "errors",
    "ServerError": "errors",
    "StatusError": "errors",
    "TemplateError": "errors",
    "TlsError": "errors",
    "UnknownNameError": "errors",
    "WorkerDiedError": "errors",
    "WorkflowError": "errors",
}

__all__ = [
    "Admission",
    "AuthenticationError",
    "BadRequestError",
    "Cache",
    "CircuitOpenError",
    "ConfigurationError",
    "ConnectError",
    "CycleError",
    "Executor",
    "FinishReason",
    "GraphbitError",
    "HttpOptions",
    "InputError",
    "JoinError",
    "LibcurlMissingError",
    "LlmClient",
    "LlmConfig",
    "LlmResponse",
    "LlmToolCall",
    "LlmUsage",
    "NativeFunctionError",
    "Node",
    "NodeContext",
    "NodeError",
    "NodeNotRunError",
    "NodeProfile",
    "NodeReport",
    "NodeTimeoutError",
    "NotFoundError",
    "Outcome",
    "OutputError",
    "Profile",
    "QueueTimeoutError",
    "RateLimitError",
    "RefusedError",
    "ReplyError",
    "RequestError",
    "RequestTimeoutError",
    "RetryPolicy",
    "Run",
    "RunCancelledError",
    "RunStream",
    "RunTimeoutError",
    "RuntimeClosedError",
    "ServerError",
    "StatusError",
    "TemplateError",
    "TextStream",
    "TlsError",
    "UnknownNameError",
    "WorkerDiedError",
    "Workflow",
    "WorkflowError",
    "WorkflowResult",
    "__version__",
    "configure_runtime",
    "current",
    "get_system_info",
    "health_check",
    "http_stats",
    "init",
    "shutdown",
    "version",
]


def __getattr__(name: str) -> object:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'graphbit' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"graphbit.{where}"), name)
    globals()[name] = value  # the next look finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
