"""What nodes are: one class for each kind, with the checks of what it is given. Users make them with `Node.agent(…)` and so on.

Some are hidden: nobody added them, they stand in a plan beside the user's (FallbackNode, WhenNode).
"""

from __future__ import annotations

import re

from graphbit._options import PLAIN, checked_name, is_number, is_whole, new_id
from graphbit._signature import Parameter, is_async, parameters
from graphbit._template import Group, split
from graphbit.errors import ConfigurationError, InputError, UnknownNameError, nearest
from graphbit.http import checked_http

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from graphbit._options import Options
    from graphbit.http import HttpOptions
    from graphbit.llm.config import LlmConfig

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2


class BaseNode:
    """What all nodes have. `Node` is the same with factories; what users make is that too."""

    __slots__ = ("_id", "_name", "options")

    kind: str
    _name: str
    _id: str
    options: Options

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


class NotCallableError(ConfigurationError, TypeError):
    """The original raised a TypeError here."""


class AgentNode(BaseNode):
    __slots__ = ("context", "llm_config", "max_tokens", "prompt", "system", "temperature")
    kind = "agent"
    prompt: list[str | Group]
    context: list[str | Group]
    system: list[str | Group]
    llm_config: LlmConfig | None
    temperature: float | None
    max_tokens: int | None

    def set_up(
        self,
        prompt: str,
        context: str | None,
        agent_id: str | None,
        system_prompt: str | None,
        llm_config: LlmConfig | None,
        temperature: float | None,
        max_tokens: int | None,
    ) -> None:
        name = self._name
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigurationError(f"Prompt cannot be empty (agent node {name!r})")
        for what, text in (("context", context), ("system_prompt", system_prompt), ("agent_id", agent_id)):
            if text is not None and (not isinstance(text, str) or (what == "agent_id" and not text)):
                raise ConfigurationError(f"{what} must be a string, got {text!r} (node {name!r})")
        if llm_config is not None and not hasattr(llm_config, "chat_request"):
            raise ConfigurationError(f"llm_config must be an LlmConfig, got {llm_config!r} (node {name!r})")
        if temperature is not None and not (is_number(temperature) and 0.0 <= temperature <= 2.0):
            raise ConfigurationError(f"Temperature must be between 0.0 and 2.0, got {temperature!r} (node {name!r})")
        if max_tokens is not None and not (is_whole(max_tokens) and max_tokens > 0):
            raise ConfigurationError(f"max_tokens must be greater than 0, got {max_tokens!r} (node {name!r})")
        self._id = agent_id if agent_id is not None else new_id()
        self.prompt = split(prompt)
        self.context = split(context) if context else []
        self.system = split(system_prompt) if system_prompt else []
        self.llm_config = llm_config
        self.temperature = temperature
        self.max_tokens = None if max_tokens is None else int(max_tokens)


class FunctionNode(BaseNode):
    __slots__ = ("bind", "fn", "is_async", "parameters", "process")
    kind = "function"
    process: bool
    fn: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    bind: dict[str, str] | None
    is_async: bool

    def set_function(self, fn: Callable[..., Any], name: str | None, bind: Mapping[str, str | BaseNode] | None) -> None:
        if not callable(fn):
            raise ConfigurationError(f"a function node needs something that can be called, got {fn!r}")
        if name is None:
            name = getattr(fn, "__name__", None) or type(fn).__name__
            if name == "<lambda>":
                raise ConfigurationError("a lambda has no name of its own; give the node one: Node.function(…, name=…)")
        self._name = checked_name(name, "Name")
        self._id = new_id()
        self.fn = fn
        self.is_async = is_async(fn)
        self.parameters, any_keyword = parameters(fn)
        self.bind_names(bind, any_keyword)

    def bind_names(self, bind: Mapping[str, str | BaseNode] | None, any_keyword: bool) -> None:
        name = self._name
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
                if isinstance(source, BaseNode):
                    source = source.name()
                if not isinstance(source, str) or not source:
                    raise InputError(
                        f"node {name!r}: bind[{parameter!r}] must be the name of a node or an input, got {source!r}"
                    )
                self.bind[parameter] = source


def function_node(fn: Callable[..., Any], name: str, bind: Mapping[str, str | BaseNode] | None) -> FunctionNode:
    """One without options, for a plan that nobody sees."""
    made = FunctionNode.__new__(FunctionNode)
    made.set_function(fn, name, bind)
    made.options, made.process = PLAIN, False
    return made


class ConditionNode(FunctionNode):
    __slots__ = ()
    kind = "condition"


class FallbackNode(FunctionNode):
    """Stands in for a node that has failed: calls a function with its error, or brings a value."""

    __slots__ = ()
    kind = "fallback"

    @staticmethod
    def of(node: BaseNode) -> BaseNode:
        fallback = node.options.fallback
        if isinstance(fallback, BaseNode):
            return fallback
        made = FallbackNode.__new__(FallbackNode)
        made._name = f"{node._name} (fallback)"
        made._id = f"{node._id}-fallback"
        made.options = PLAIN
        made.fn = fallback if callable(fallback) else lambda _: fallback
        made.is_async = is_async(made.fn)
        made.parameters, made.bind, made.process = (), None, False
        return made


class WhenNode(ConditionNode):
    """Asks a function whether an edge is followed; stands between the edge's two ends."""

    __slots__ = ("source",)
    kind = "when"
    source: str

    @staticmethod
    def of(source: BaseNode, target: str, ask: Callable[[Any], Any]) -> WhenNode:
        made = WhenNode.__new__(WhenNode)
        made._name = f"{source._name} -> {target}"
        made._id = f"{source._id}-when-{target}"
        made.options = PLAIN
        made.source = source._name
        made.fn = ask
        made.is_async = made.process = False
        made.parameters, made.bind = (), None
        return made


class NativeNode(BaseNode):
    __slots__ = ("arguments", "gives", "keep", "output_bytes", "pointer", "takes")
    kind = "native"
    pointer: int
    gives: str  # "void", "double" or "bytes"
    takes: list[str]
    arguments: list[str]
    output_bytes: int
    keep: Any  # whatever the pointer was taken from must outlive the node

    def set_up(self, pointer: Any, signature: str, arguments: Sequence[str | BaseNode], output_bytes: int) -> None:
        name = self._name
        self.keep = pointer
        self.pointer = _address(pointer, name)
        found = (
            re.fullmatch(r"\s*(void|double|bytes)\s*\(\s*(.*?)\s*\)\s*", signature)
            if isinstance(signature, str)
            else None
        )
        self.takes = (
            [it.strip() for it in found[2].split(",")] if found is not None and found[2] not in ("", "void") else []
        )
        self.gives = found[1] if found is not None else ""
        sound = {
            "void": not self.takes,
            "double": len(self.takes) <= 8 and all(it == "double" for it in self.takes),
            "bytes": self.takes in ([], ["bytes"]),
        }.get(self.gives, False)
        if not sound:
            raise ConfigurationError(
                f"node {name!r}: a native signature is 'void()', 'double(double, …)' with up to 8 arguments, 'bytes(bytes)' or "
                f"'bytes()', got {signature!r}"
            )
        if isinstance(arguments, (str, BaseNode)) or not hasattr(arguments, "__iter__"):
            raise ConfigurationError(f"node {name!r}: arguments is a list of names, got {arguments!r}")
        self.arguments = [it._name if isinstance(it, BaseNode) else it for it in arguments]
        if len(self.arguments) != len(self.takes) or not all(isinstance(it, str) and it for it in self.arguments):
            raise ConfigurationError(
                f"node {name!r}: {signature!r} takes {len(self.takes)} arguments, and these are to be passed: {arguments!r}"
            )
        if not is_whole(output_bytes) or not 0 < output_bytes <= 1 << 40:
            raise ConfigurationError(f"node {name!r}: output_bytes is a number above 0, got {output_bytes!r}")
        self.output_bytes = int(output_bytes)


class TransformNode(BaseNode):
    __slots__ = ("text",)
    kind = "transform"
    text: list[str | Group]


class DelayNode(BaseNode):
    __slots__ = ("delay_ns",)
    kind = "delay"
    delay_ns: int


class HttpNode(BaseNode):
    __slots__ = (
        "body",
        "connect_timeout",
        "headers",
        "http_options",
        "json_path",
        "max_retries",
        "method",
        "output",
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
    http_options: HttpOptions
    output: str

    def set_up(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: str | None,
        json_path: str | None,
        timeout: float,
        connect_timeout: float,
        max_retries: int,
        verify: bool,
        http: HttpOptions | None,
        output: str,
    ) -> None:
        name = self._name
        method = method.upper() if isinstance(method, str) else ""
        if not method.isascii() or not method.isalpha():
            raise ConfigurationError(f"an HTTP method is a word such as 'GET', got {method!r} (node {name!r})")
        if not isinstance(url, str) or not url.strip():
            raise ConfigurationError(f"URL cannot be empty (node {name!r})")
        if "{" not in url.split("://", 1)[0] and not url.lower().startswith(("http://", "https://")):
            raise ConfigurationError(f"only http and https URLs can be used, got {url!r} (node {name!r})")
        for what, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not is_number(seconds) or not 0 < seconds < 1e6:
                raise ConfigurationError(f"{what} is a number of seconds above 0, got {seconds!r} (node {name!r})")
        if not is_whole(max_retries) or not 0 <= max_retries <= 100:
            raise ConfigurationError(f"max_retries must be between 0 and 100, got {max_retries!r} (node {name!r})")
        if headers is not None and not hasattr(headers, "items"):
            raise ConfigurationError(f"headers map names to texts, got {headers!r} (node {name!r})")
        for key, text in (headers or {}).items():
            if not isinstance(key, str) or _HEADER_NAME.fullmatch(key) is None or not isinstance(text, str):
                raise ConfigurationError(f"a header is a name and a text, got {key!r}: {text!r} (node {name!r})")
        if body is not None and not isinstance(body, str):
            raise ConfigurationError(f"body is a text with placeholders, got {body!r} (node {name!r})")
        self._id = new_id()
        self.method = method
        self.url = split(url)
        self.headers = [(key, split(text)) for key, text in (headers or {}).items()]
        self.body = split(body) if body is not None else None
        self.http_options = checked_http(http, f"node {name!r}")
        if output not in ("text", "bytes"):
            raise ConfigurationError(f"output is 'text' or 'bytes', got {output!r} (node {name!r})")
        if output == "bytes" and json_path is not None:
            raise ConfigurationError(f"what json_path finds is no bytes: leave one of the two out (node {name!r})")
        self.output = output
        self.json_path = None if json_path is None else _dotted(json_path, name)
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.max_retries = int(max_retries)
        self.verify = verify


def _address(pointer: Any, name: str) -> int:
    """The address that a function pointer of cffi, ctypes or numba holds."""
    address: Any = getattr(pointer, "address", pointer)  # numba's cfunc
    if not isinstance(address, int):
        from graphbit._ffi import address_of

        address = address_of(pointer)
    if not isinstance(address, int) or isinstance(address, bool) or not 0 < address < 1 << 64:
        raise ConfigurationError(
            f"node {name!r}: the pointer of a native node is a cffi or ctypes function pointer, a numba cfunc, or an address, "
            f"got {pointer!r}"
        )
    return address


def _dotted(path: str, node: str) -> str:
    """`$.items[0].name` and `items.0.name` -> `items.0.name`."""
    if isinstance(path, str):
        plain = path[1:] if path.startswith("$") else path
        plain = plain.replace("[", ".").replace("]", "").strip(".")
        if plain and "*" not in plain and ".." not in plain and plain.strip() == plain:
            return plain
    raise ConfigurationError(f"node {node!r}: json_path is a path to one value such as 'items.0.name', got {path!r}")
