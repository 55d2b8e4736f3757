"""What graphbit raises. Every class also derives from the builtin exception that programs of this kind catch.

    GraphbitError
    ├── ConfigurationError (ValueError)         an option, a key, a URL that cannot be right
    ├── WorkflowError (ValueError)              a workflow that cannot run as described
    │   ├── CycleError (RuntimeError)           its nodes wait for each other; `.nodes` names them
    │   ├── UnknownNameError (LookupError)      a reference to something that does not exist
    │   └── InputError                          inputs missing, unknown or of a kind that cannot be used
    ├── NodeError (RuntimeError)                a node failed for a reason of graphbit's own
    │   ├── TemplateError (LookupError)         a placeholder's path leads nowhere in the value it names
    │   ├── OutputError (TypeError)             a node's output cannot be used where it is needed
    │   ├── NodeTimeoutError (TimeoutError)     an attempt of a node took longer than its `timeout`
    │   ├── JoinError                           a node with join="any" none of whose predecessors succeeded
    │   ├── NativeFunctionError                 a native function reported a failure
    │   └── WorkerDiedError                     the process that ran a node's function ended in the middle of it
    ├── NodeNotRunError (LookupError)           a result was asked of a node that did not run
    ├── RunCancelledError (RuntimeError)        the run was cancelled before it was over
    ├── RunTimeoutError (TimeoutError)          the run's time was up; `.result` holds what was finished
    ├── RuntimeClosedError (RuntimeError)       the runtime was shut down, or belongs to a parent process
    └── RequestError (RuntimeError)             an HTTP exchange failed; `.status`, `.body`, `.attempts` tell more
        ├── RefusedError (ValueError)           never sent: its URL or a header is not acceptable
        ├── LibcurlMissingError (ImportError)   libcurl is not installed
        ├── ConnectError (ConnectionError)      no connection: unknown host, refused, broken before the reply was whole
        │   └── TlsError                        the connection could not be trusted
        ├── RequestTimeoutError (TimeoutError)  too slow to connect, to send a byte, or as a whole
        ├── ReplyError (ValueError)             a reply that is not what was promised: not JSON, not HTTP, too large
        └── StatusError                         a reply with a status of 400 or above, or an error object inside a good one
            ├── BadRequestError (ValueError)    400, 413, 422 and the rest of 4xx
            ├── AuthenticationError (PermissionError)   401, 403
            ├── NotFoundError (LookupError)     404
            ├── RateLimitError                  429; `.retry_after` in seconds where the server gave one
            └── ServerError                     5xx

A function's own exception comes back as itself, with a note that names the node.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = [
    "AuthenticationError",
    "BadRequestError",
    "ConfigurationError",
    "ConnectError",
    "CycleError",
    "GraphbitError",
    "InputError",
    "JoinError",
    "LibcurlMissingError",
    "NativeFunctionError",
    "NodeError",
    "NodeNotRunError",
    "NodeTimeoutError",
    "NotFoundError",
    "OutputError",
    "RateLimitError",
    "RefusedError",
    "ReplyError",
    "RequestError",
    "RequestTimeoutError",
    "RunCancelledError",
    "RunTimeoutError",
    "RuntimeClosedError",
    "ServerError",
    "StatusError",
    "TemplateError",
    "TlsError",
    "UnknownNameError",
    "WorkerDiedError",
    "WorkflowError",
]


class GraphbitError(Exception):
    """Base of everything graphbit raises on its own account."""


class ConfigurationError(GraphbitError, ValueError):
    """An option, a key or a URL that cannot be right."""


class WorkflowError(GraphbitError, ValueError):
    """A workflow that cannot run as it is described."""


class CycleError(WorkflowError, RuntimeError):
    """The workflow's nodes wait for each other in a circle.

    Attributes:
        nodes: the names along the cycle; the last one leads back to the first.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = tuple(nodes)
        way = " -> ".join(repr(name) for name in (*self.nodes, self.nodes[0]))
        super().__init__(f"the workflow graph contains a cycle: {way}; remove one of these edges")


class UnknownNameError(WorkflowError, LookupError):
    """A reference to a node or input that does not exist."""


class InputError(WorkflowError):
    """The inputs of a run are missing, unknown, or of a kind that cannot be used."""


class NodeError(GraphbitError, RuntimeError):
    """A node failed for a reason of graphbit's own.

    Attributes:
        node: the node's name, where one is known.
    """

    node: str | None = None


class TemplateError(NodeError, LookupError):
    """A placeholder's path leads nowhere in the value it names."""


class OutputError(NodeError, TypeError):
    """A node's output cannot be used where it is needed."""


class NodeTimeoutError(NodeError, TimeoutError):
    """An attempt of a node took longer than the node's `timeout`."""


class JoinError(NodeError):
    """A node with `join="any"` none of whose predecessors succeeded."""


class NativeFunctionError(NodeError):
    """A native function reported a failure, or was to be given what is no number."""


class WorkerDiedError(NodeError):
    """The process that ran a node's function ended before the function did.

    Attributes:
        exit_code: the process's; negative: the signal that ended it; None where it is not known.
    """

    exit_code: int | None = None


class NodeNotRunError(GraphbitError, LookupError):
    """A result was asked of a node that was skipped or cancelled."""


class RunCancelledError(GraphbitError, RuntimeError):
    """The run was cancelled before it was over.

    Attributes:
        result: what was finished by then, or None.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class RunTimeoutError(GraphbitError, TimeoutError):
    """The run's time was up.

    Attributes:
        result: what was finished by then, a WorkflowResult.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class RuntimeClosedError(GraphbitError, RuntimeError):
    """The runtime was shut down while it was needed, or belongs to the process this one was forked from."""


class RequestError(GraphbitError, RuntimeError):
    """An HTTP exchange failed.

    Attributes:
        node: the node's name, where the exchange was a node's.
        status: the HTTP status, or None where no reply came.
        body: the reply as text, or "".
        code, type: the server's own words for the error, or None.
        attempts: how often it was tried.
        request_id: the server's name for the exchange, or None.
        retry_after: seconds the server asked to wait, or None.
    """

    node: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        body: str = "",
        code: str | None = None,
        type: str | None = None,
        attempts: int = 0,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.code = code
        self.type = type
        self.attempts = attempts
        self.request_id = request_id
        self.retry_after = retry_after


class CircuitOpenError(RequestError):
    """It was not sent: the server's last requests have failed too often, and it is given time.

    Attributes:
        next_probe: seconds until the next request may try whether it is back.
    """

    @property
    def next_probe(self) -> float:
        return self.retry_after or 0.0


class RefusedError(RequestError, ValueError):
    """The request was never sent: its URL or a header is not acceptable."""


class LibcurlMissingError(RequestError, ImportError):
    """libcurl is not installed, or too old."""


class ConnectError(RequestError, ConnectionError):
    """No connection, or one that broke before the reply was whole."""


class TlsError(ConnectError):
    """The connection could not be trusted."""


class RequestTimeoutError(RequestError, TimeoutError):
    """Too slow to connect, to send a byte, or as a whole."""


class QueueTimeoutError(RequestTimeoutError):
    """It was not sent: it waited longer for its provider's limits than its `queue_timeout`, or its call, allows."""


class ReplyError(RequestError, ValueError):
    """A reply that is not what was promised."""


class StatusError(RequestError):
    """A reply with a status of 400 or above, or an error object inside a good one."""


class BadRequestError(StatusError, ValueError):
    """The server found the request wrong (400, 413, 422 and the rest of 4xx)."""


class AuthenticationError(StatusError, PermissionError):
    """The key was refused (401) or does not reach so far (403)."""


class NotFoundError(StatusError, LookupError):
    """No such model or address (404)."""


class RateLimitError(StatusError):
    """Too many requests, or a quota that is used up (429)."""


class ServerError(StatusError):
    """The server failed (5xx)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'outline'?)"`, or "" where nothing is near."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def add_note(error: BaseException, note: str) -> None:
    """BaseException.add_note, which Python 3.10 does not have. An exception that takes no notes goes without."""
    try:
        notes = error.__dict__.setdefault("__notes__", [])
        if note not in notes:
            notes.append(note)
    except (
        Exception
    ):  # somebody's exception class with slots or a __setattr__ of its own: its error counts, not our note
        return


def message_of(error: BaseException) -> str:
    """str(error), also where that raises."""
    try:
        return str(error)
    except Exception as broken:
        return f"<no text: its __str__ raised {type(broken).__name__}>"
