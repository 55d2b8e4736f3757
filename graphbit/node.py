"""Nodes: what a workflow is made of. Made by the factories of `Node`, immutable, usable in any number of workflows."""

from __future__ import annotations

import re
from itertools import count

from graphbit._signature import Parameter, is_async, parameters
from graphbit._template import Group, split
from graphbit.errors import ConfigurationError, InputError, UnknownNameError, WorkflowError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from graphbit.llm.config import LlmConfig

_ids = count(1)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2


class Node:
    """A step of a workflow. Use one of the factories:

    ```python
    Node.agent("outline", "Outline a brief on {topic}.")
    Node.function(fetch_facts)
    Node.transform("title", "Brief: {outline}")
    Node.condition("route", choose)
    Node.delay("pause", 0.5)
    Node.http("page", "GET", "https://example.org/{topic}")
    ```

    `{name}` in a text refers to a node's output or an input of the run, `{name.key.0}` to a part of it; each reference makes
    an edge. See `Workflow` for what a name may mean.
    """

    __slots__ = ("_id", "_name")

    kind: str
    """"agent", "function", "transform", "condition", "delay" or "http"."""
    _name: str
    _id: str

    def __init__(self) -> None:
        raise TypeError("Node has no constructor; use Node.agent, Node.function, Node.transform, Node.condition, …")

    def name(self) -> str:
        """`node.name()`: the name by which results and references know it."""
        return self._name

    def id(self) -> str:
        """`node.id()`: unique in this process; `Workflow.connect` takes it in place of the name."""
        return self._id

    def __repr__(self) -> str:
        return f"Node(id={self._id!r}, name={self._name!r}, type={self.kind.capitalize()!r})"

    # ---------------------------------------------------------------------------------------------------- factories

    @staticmethod
    def agent(
        name: str,
        prompt: str,
        context: str | None = None,
        agent_id: str | None = None,
        *,
        system_prompt: str | None = None,
        llm_config: LlmConfig | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Node:
        """`Node.agent("draft", "Write it.\\n{outline}")`: a model answers a prompt. The output is its text.

        The whole exchange is native: the prompt is rendered, sent, retried and read without Python.

        Args:
            prompt: with placeholders. Predecessors that were joined by `connect` and are not referred to come before it.
            context: a text before all of that, with placeholders.
            agent_id: taken for the node's id.
            system_prompt: the system message, with placeholders.
            llm_config: in place of the executor's.
            temperature: 0.0 to 2.0; the provider's default without it.
            max_tokens: of the answer.

        Raises:
            ConfigurationError: a blank name or prompt, a temperature or max_tokens out of range.
        """
        node = AgentNode.__new__(AgentNode)
        node._name = _checked_name(name, "Name")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigurationError(f"Prompt cannot be empty (agent node {name!r})")
        for what, text in (("context", context), ("system_prompt", system_prompt), ("agent_id", agent_id)):
            if text is not None and (not isinstance(text, str) or (what == "agent_id" and not text)):
                raise ConfigurationError(f"{what} must be a string, got {text!r} (node {name!r})")
        if llm_config is not None and not hasattr(llm_config, "chat_request"):
            raise ConfigurationError(f"llm_config must be an LlmConfig, got {llm_config!r} (node {name!r})")
        if temperature is not None and not (_is_number(temperature) and 0.0 <= temperature <= 2.0):
            raise ConfigurationError(f"Temperature must be between 0.0 and 2.0, got {temperature!r} (node {name!r})")
        if max_tokens is not None and not (_is_whole(max_tokens) and max_tokens > 0):
            raise ConfigurationError(f"max_tokens must be greater than 0, got {max_tokens!r} (node {name!r})")
        node._id = agent_id if agent_id is not None else _new_id()
        node.prompt = split(prompt)
        node.context = split(context) if context else []
        node.system = split(system_prompt) if system_prompt else []
        node.llm_config = llm_config
        node.temperature = temperature
        node.max_tokens = None if max_tokens is None else int(max_tokens)
        return node

    @staticmethod
    def function(fn: Callable[..., Any], name: str | None = None, bind: Mapping[str, str | Node] | None = None) -> Node:
        """`Node.function(shorten, bind={"text": "outline"})`: calls a Python function, plain or `async def`.

        Each parameter is given the output of the node, or the input of the run, that has its name, unless `bind` names
        another (`"outline"`, or a part of it, `"outline.points.0"`). Parameters with defaults may stay unbound. Outputs are
        passed as they are, not copied. Where the named node was skipped, the function gets None.

        Plain functions run on the thread that called `execute`, and on callback threads where they would keep others
        waiting; `async def` functions run on the event loop that awaits the run, or on a private one.

        Raises:
            ConfigurationError: `fn` cannot be called.
            UnknownNameError: `bind` names a parameter that `fn` does not have.
        """
        node = FunctionNode.__new__(FunctionNode)
        node._bind_function(fn, name, bind)
        return node

    @staticmethod
    def transform(name: str, transformation: str) -> Node:
        """`Node.transform("title", "Brief on {topic}: {outline}")`: a text with placeholders, rendered natively."""
        node = TransformNode.__new__(TransformNode)
        node._name = _checked_name(name, "Transform name")
        if not isinstance(transformation, str) or not transformation.strip():
            raise ConfigurationError(f"Transform transformation cannot be empty (node {name!r})")
        node._id = _new_id()
        node.text = split(transformation)
        return node

    @staticmethod
    def condition(name: str, handler: Callable[..., Any], bind: Mapping[str, str | Node] | None = None) -> Node:
        """`Node.condition("route", lambda outline: "short" if len(outline) < 99 else "long")`: chooses what follows.

        The handler returns the name of one of the condition's successors, or several names (an empty list: none). What is
        not chosen is skipped. Parameters are bound as in `Node.function`; a handler whose only parameter names neither a
        node nor a declared input gets a dict with `parent_node_id`, `parent_output`, `variables`, `node_outputs` and
        `metadata`. The condition passes the output of its own predecessor on.

        Raises:
            TypeError: the handler cannot be called.
        """
        node = ConditionNode.__new__(ConditionNode)
        _checked_name(name, "Condition name")
        if not callable(handler):
            raise _NotCallableError(f"Condition handler must be callable, got {handler!r} (node {name!r})")
        node._bind_function(handler, name, bind)
        if node.is_async:
            raise ConfigurationError(f"condition {name!r}: the handler must be a plain function, not `async def`")
        return node

    @staticmethod
    def delay(name: str, seconds: float) -> Node:
        """`Node.delay("pause", 0.5)`: waits, natively, and passes the output of its predecessor on."""
        node = DelayNode.__new__(DelayNode)
        node._name = _checked_name(name, "Delay name")
        if not _is_number(seconds) or not 0 <= seconds < 1e9:
            raise ConfigurationError(f"a delay is a number of seconds from 0 on, got {seconds!r} (node {name!r})")
        node._id = _new_id()
        node.delay_ns = int(seconds * 1e9)
        return node

    @staticmethod
    def http(
        name: str,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        json_path: str | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        max_retries: int = 0,
        verify: bool = True,
    ) -> Node:
        """`Node.http("stars", "GET", "https://api.example.org/repos/{repo}", json_path="stars")`: an HTTP exchange.

        URL, headers and body are texts with placeholders; in the URL what is inserted is percent-encoded, in a body that
        looks like JSON what stands between quotes is escaped. The output is the body as text, or the JSON value at
        `json_path` ("items.0.name"). A status of 400 or above fails the node.

        Args:
            timeout: seconds for one attempt as a whole.
            connect_timeout: seconds to reach the server.
            max_retries: more attempts after failures that may pass (connection, 408, 409, 429, 5xx), with backoff; they
                follow Retry-After.
            verify: False lets any certificate pass.

        Raises:
            ConfigurationError: something of that cannot be right.
        """
        node = HttpNode.__new__(HttpNode)
        node._name = _checked_name(name, "HTTP node name")
        method = method.upper() if isinstance(method, str) else ""
        if not method.isascii() or not method.isalpha():
            raise ConfigurationError(f"an HTTP method is a word such as 'GET', got {method!r} (node {name!r})")
        if not isinstance(url, str) or not url.strip():
            raise ConfigurationError(f"URL cannot be empty (node {name!r})")
        if "{" not in url.split("://", 1)[0] and not url.lower().startswith(("http://", "https://")):
            raise ConfigurationError(f"only http and https URLs can be used, got {url!r} (node {name!r})")
        for limit, value in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not _is_number(value) or not 0 < value < 1e6:
                raise ConfigurationError(f"{limit} is a number of seconds above 0, got {value!r} (node {name!r})")
        if not _is_whole(max_retries) or not 0 <= max_retries <= 100:
            raise ConfigurationError(f"max_retries must be between 0 and 100, got {max_retries!r} (node {name!r})")
        if headers is not None and not hasattr(headers, "items"):
            raise ConfigurationError(f"headers map names to texts, got {headers!r} (node {name!r})")
        for key, text in (headers or {}).items():
            if not isinstance(key, str) or _HEADER_NAME.fullmatch(key) is None or not isinstance(text, str):
                raise ConfigurationError(f"a header is a name and a text, got {key!r}: {text!r} (node {name!r})")
        if body is not None and not isinstance(body, str):
            raise ConfigurationError(f"body is a text with placeholders, got {body!r} (node {name!r})")
        node._id = _new_id()
        node.method = method
        node.url = split(url)
        node.headers = [(key, split(text)) for key, text in (headers or {}).items()]
        node.body = split(body) if body is not None else None
        node.json_path = None if json_path is None else _dotted(json_path, name)
        node.timeout = timeout
        node.connect_timeout = connect_timeout
        node.max_retries = int(max_retries)
        node.verify = verify
        return node


class _NotCallableError(ConfigurationError, TypeError):
    """The original raised a TypeError here."""


class AgentNode(Node):
    __slots__ = ("context", "llm_config", "max_tokens", "prompt", "system", "temperature")
    kind = "agent"
    prompt: list[str | Group]
    context: list[str | Group]
    system: list[str | Group]
    llm_config: LlmConfig | None
    temperature: float | None
    max_tokens: int | None


class FunctionNode(Node):
    __slots__ = ("bind", "fn", "is_async", "parameters")
    kind = "function"
    fn: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    bind: dict[str, str] | None
    is_async: bool

    def _bind_function(self, fn: Callable[..., Any], name: str | None, bind: Mapping[str, str | Node] | None) -> None:
        if not callable(fn):
            raise ConfigurationError(f"a function node needs something that can be called, got {fn!r}")
        if name is None:
            name = getattr(fn, "__name__", None) or type(fn).__name__
            if name == "<lambda>":
                raise ConfigurationError("a lambda has no name of its own; give the node one: Node.function(…, name=…)")
        self._name = _checked_name(name, "Name")
        self._id = _new_id()
        self.fn = fn
        self.is_async = is_async(fn)
        self.parameters, any_keyword = parameters(fn)
        self.bind = None
        if bind is not None and not hasattr(bind, "items"):
            raise ConfigurationError(f"bind maps parameters to names, got {bind!r} (node {name!r})")
        if bind:
            known = {it.name for it in self.parameters}
            extra = tuple(Parameter(it, True, True) for it in bind if it not in known)
            if extra and not any_keyword:
                raise UnknownNameError(
                    f"node {name!r}: bind names {extra[0].name!r}, which is no parameter of its function"
                    f"{nearest(extra[0].name, known)}"
                )
            self.parameters += extra
            self.bind = {}
            for parameter, source in bind.items():
                if isinstance(source, Node):
                    source = source.name()
                if not isinstance(source, str) or not source:
                    raise InputError(
                        f"node {name!r}: bind[{parameter!r}] must be the name of a node or an input, got {source!r}"
                    )
                self.bind[parameter] = source


class ConditionNode(FunctionNode):
    __slots__ = ()
    kind = "condition"


class TransformNode(Node):
    __slots__ = ("text",)
    kind = "transform"
    text: list[str | Group]


class DelayNode(Node):
    __slots__ = ("delay_ns",)
    kind = "delay"
    delay_ns: int


class HttpNode(Node):
    __slots__ = (
        "body",
        "connect_timeout",
        "headers",
        "json_path",
        "max_retries",
        "method",
        "timeout",
        "url",
        "verify",
    )
    kind = "http"
    method: str
    url: list[str | Group]
    headers: list[tuple[str, list[str | Group]]]
    body: list[str | Group] | None
    json_path: str | None
    timeout: float
    connect_timeout: float
    max_retries: int
    verify: bool


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _new_id() -> str:
    return f"node-{next(_ids)}"


def _dotted(path: str, node: str) -> str:
    """`$.items[0].name` and `items.0.name` -> `items.0.name`."""
    if isinstance(path, str):
        plain = path[1:] if path.startswith("$") else path
        plain = plain.replace("[", ".").replace("]", "").strip(".")
        if plain and "*" not in plain and ".." not in plain and plain.strip() == plain:
            return plain
    raise ConfigurationError(f"node {node!r}: json_path is a path to one value such as 'items.0.name', got {path!r}")


def _checked_name(name: str, what: str) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"{what} must be a string, got {name!r}")
    if not name or name.isspace():
        raise ConfigurationError(f"{what} cannot be empty")
    if "{" in name or "}" in name:
        raise WorkflowError(f"{what} cannot hold braces, got {name!r}")
    return name
