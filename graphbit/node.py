"""Nodes: what a workflow is made of. Made by the factories of `Node`, immutable, usable in any number of workflows."""

from __future__ import annotations

import re
from itertools import count

from graphbit._signature import Parameter, is_async, parameters
from graphbit._template import Group, split
from graphbit.errors import ConfigurationError, InputError, UnknownNameError, WorkflowError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal

    from graphbit.llm.config import LlmConfig
    from graphbit.policy import Cache, RetryPolicy
    from graphbit.workflow import Workflow

    Join = Literal["all", "any", "all_done"]

_ids = count(1)
_JOINS = ("all", "any", "all_done")


class _NoFallback:
    def __repr__(self) -> str:
        return "<none>"


_NO_FALLBACK: Any = _NoFallback()
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
    Node.map("summaries", "pages", summarize)
    Node.workflow("report", inner)
    Node.loop("polished", polish, until=good_enough, max_iterations=5)
    Node.native("norm", function_pointer, "double(double, double)", ["x", "y"])
    ```

    `{name}` in a text refers to a node's output or an input of the run, `{name.key.0}` to a part of it; each reference makes
    an edge. See `Workflow` for what a name may mean.

    Options that several kinds of nodes take:

    - `join`: how the node looks at its predecessors. "all": it runs when all have succeeded. "any": with the first that succeeds;
      what leads to nothing else is cancelled then; it fails when none succeeds. "all_done": when all have ended, whatever
      became of them; what brought nothing is None, and `graphbit.current().outcomes` tells more.
    - `retry`: a `RetryPolicy`. On an agent or HTTP node it takes the place of its `max_retries`.
    - `timeout`: seconds for one attempt. A Python function cannot be stopped; what it brings later is dropped.
    - `fallback`: what takes the node's place when it has failed for good: a value, a function that is called with the error, or
      another node, which must not be in the workflow. Its output becomes the node's.
    - `cache`: True, or a `Cache`: what it returned before for the same arguments is used again.
    - `limit`: the name of a limit, or several: `Executor(limits={"db": 4})` lets four such nodes execute at once.

    A failure is *handled* when the node has successors and all of them join by "any" or "all_done"; then it neither stops nor
    fails the run.
    """

    __slots__ = ("_id", "_name", "options")

    kind: str
    """"agent", "function", "transform", "condition", "delay", "http", "map", "workflow", "loop" or "native"."""
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
        join: Join = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
        cache: bool | Cache = False,
        limit: str | Sequence[str] | None = None,
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
            join, retry, timeout, fallback, cache, limit: see `Node`.

        Raises:
            ConfigurationError: a blank name or prompt, a temperature or max_tokens out of range.
        """
        node = AgentNode.__new__(AgentNode)
        node._name = _checked_name(name, "Name")
        node.options = _options(name, join, retry, timeout, fallback, cache, limit)
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
    def function(
        fn: Callable[..., Any],
        name: str | None = None,
        bind: Mapping[str, str | Node] | None = None,
        *,
        join: Join = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
        cache: bool | Cache = False,
        limit: str | Sequence[str] | None = None,
        process: bool = False,
    ) -> Node:
        """`Node.function(shorten, bind={"text": "outline"})`: calls a Python function, plain or `async def`.

        Each parameter is given the output of the node, or the input of the run, that has its name, unless `bind` names
        another (`"outline"`, or a part of it, `"outline.points.0"`). Parameters with defaults may stay unbound. Outputs are
        passed as they are, not copied. Where the named node was skipped, the function gets None.

        Plain functions run on the thread that called `execute`, and on callback threads where they would keep others
        waiting; `async def` functions run on the event loop that awaits the run, or on a private one.

        Args:
            process: True runs the function in a worker process, for pure Python that computes: `pip install graphbit[process]`.
                The function must be importable by name, arguments and result must be picklable.
            join, retry, timeout, fallback, cache, limit: see `Node`.

        Raises:
            ConfigurationError: `fn` cannot be called, or with `process=True` cannot be sent to another process.
            UnknownNameError: `bind` names a parameter that `fn` does not have.
        """
        node = FunctionNode.__new__(FunctionNode)
        node._bind_function(fn, name, bind)
        node.options = _options(node._name, join, retry, timeout, fallback, cache, limit)
        node.process = process
        if process:
            if node.is_async:
                raise ConfigurationError(f"node {node._name!r}: an `async def` function cannot run in a worker process")
            from graphbit._process import prepare

            prepare(fn)
        return node

    @staticmethod
    def transform(
        name: str,
        transformation: str,
        *,
        join: Join = "all",
        fallback: Any = _NO_FALLBACK,
        limit: str | Sequence[str] | None = None,
    ) -> Node:
        """`Node.transform("title", "Brief on {topic}: {outline}")`: a text with placeholders, rendered natively."""
        node = TransformNode.__new__(TransformNode)
        node._name = _checked_name(name, "Transform name")
        node.options = _options(name, join, None, None, fallback, False, limit)
        if not isinstance(transformation, str) or not transformation.strip():
            raise ConfigurationError(f"Transform transformation cannot be empty (node {name!r})")
        node._id = _new_id()
        node.text = split(transformation)
        return node

    @staticmethod
    def condition(
        name: str,
        handler: Callable[..., Any],
        bind: Mapping[str, str | Node] | None = None,
        *,
        join: Join = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
        limit: str | Sequence[str] | None = None,
    ) -> Node:
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
        node.options = _options(name, join, retry, timeout, fallback, False, limit)
        node.process = False
        if node.is_async:
            raise ConfigurationError(f"condition {name!r}: the handler must be a plain function, not `async def`")
        return node

    @staticmethod
    def delay(
        name: str, seconds: float, *, join: Join = "all", limit: str | Sequence[str] | None = None
    ) -> Node:
        """`Node.delay("pause", 0.5)`: waits, natively, and passes the output of its predecessor on."""
        node = DelayNode.__new__(DelayNode)
        node._name = _checked_name(name, "Delay name")
        node.options = _options(name, join, None, None, _NO_FALLBACK, False, limit)
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
        join: Join = "all",
        retry: RetryPolicy | None = None,
        fallback: Any = _NO_FALLBACK,
        cache: bool | Cache = False,
        limit: str | Sequence[str] | None = None,
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
            join, retry, fallback, cache, limit: see `Node`.

        Raises:
            ConfigurationError: something of that cannot be right.
        """
        node = HttpNode.__new__(HttpNode)
        node._name = _checked_name(name, "HTTP node name")
        node.options = _options(name, join, retry, None, fallback, cache, limit)
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

    @staticmethod
    def native(
        name: str,
        pointer: Any,
        signature: str,
        arguments: Sequence[str | Node] = (),
        *,
        output_bytes: int = 4096,
        join: Join = "all",
        fallback: Any = _NO_FALLBACK,
        limit: str | Sequence[str] | None = None,
    ) -> Node:
        """`Node.native("norm", pointer, "double(double, double)", ["x", "y"])`: calls a C function, without the GIL.

        The core's workers call it, on as many cores as there are. It must be safe to call from any thread.

        Args:
            pointer: a cffi or ctypes function pointer, a numba `cfunc` (or its `.address`), or the address as a number.
            signature: "void()"; "double(double, …)" with up to 8 arguments; or "bytes(bytes)", "bytes()": in C
                `int64_t f(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_capacity)`, which returns how many bytes
                the output has (if that is more than `out_capacity` it is called once more with so much room), or a negative code
                when it fails.
            arguments: the nodes or inputs that are passed, in order. A double may also come as a text or JSON number; for bytes a
                text is passed as UTF-8.
            output_bytes: room for the output of a "bytes" function at the first call.
            join, fallback, limit: see `Node`.

        Raises:
            ConfigurationError: the pointer is none, or the signature is another, or does not fit the arguments.
        """
        node = NativeNode.__new__(NativeNode)
        node._name = _checked_name(name, "Native node name")
        node.options = _options(name, join, None, None, fallback, False, limit)
        node._id = _new_id()
        node._bind_native(pointer, signature, arguments, output_bytes)
        return node

    @staticmethod
    def map(
        name: str,
        over: str | Node,
        body: Callable[..., Any] | Node | Workflow,
        limit: int | None = None,
        *,
        bind: Mapping[str, str | Node] | None = None,
        on_error: Literal["fail", "collect"] = "fail",
        join: Join = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
    ) -> Node:
        """`Node.map("summaries", "pages", summarize)`: does something with every item of a list that is known when it runs.

        The output is a list of what the items brought, in their order.

        Args:
            over: the node or input whose output is the list, or a part of it ("fetched.pages").
            body: a function, whose first parameter is the item and whose others are bound as in `Node.function`; a node, which
                refers to the item as `item` and to its place as `index`; or a workflow with such inputs. Other names are those
                of the workflow that this node is in.
            limit: so many items are on their way at once. Without it as many as there are threads for (functions), or 64.
            bind: for names of the body, as in `Node.function`.
            on_error: "fail": the first item that fails fails the node with its error, items on their way are cancelled.
                "collect": errors stand in the list, in the place of what the item would have brought.
            join, retry, timeout, fallback: see `Node`; they are about the map as a whole. For single items give them to a body
                that is a node.

        Raises:
            ConfigurationError: the body is none of these, or an option cannot be right.
            UnknownNameError: `bind` names what the body does not have.
        """
        from graphbit._composite import MapNode

        node = MapNode.__new__(MapNode)
        node._name = _checked_name(name, "Map name")
        node._id = _new_id()
        node.options = _options(name, join, retry, timeout, fallback, False, None)
        node.set_up(over, body, limit, bind, on_error)
        return node

    @staticmethod
    def workflow(
        name: str,
        workflow: Workflow,
        inputs: Mapping[str, str | Node] | None = None,
        *,
        output: str | None = None,
        join: Join = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
    ) -> Node:
        """`Node.workflow("report", inner, inputs={"topic": "outline"})`: runs a workflow as one node of another.

        Args:
            inputs: which node or input of this workflow each input of the inner one is; those that are not named are the ones of
                the same name.
            output: the inner node whose output is this node's. Without it that of the only last node, or a dict of all last
                nodes' outputs by name.
            join, retry, timeout, fallback: see `Node`.

        Raises:
            ConfigurationError: it is no workflow, or has no nodes.
            UnknownNameError: `inputs` or `output` names what the inner workflow does not have.
            WorkflowError: the inner workflow is not sound.
        """
        from graphbit._composite import WorkflowNode

        node = WorkflowNode.__new__(WorkflowNode)
        node._name = _checked_name(name, "Workflow node name")
        node._id = _new_id()
        node.options = _options(name, join, retry, timeout, fallback, False, None)
        node.set_up(workflow, inputs, output)
        return node

    @staticmethod
    def loop(
        name: str,
        body: Callable[..., Any] | Node | Workflow,
        until: Callable[[Any], Any] | tuple[Any, ...],
        max_iterations: int,
        *,
        initial: str | Node | None = None,
        bind: Mapping[str, str | Node] | None = None,
        join: Join = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
    ) -> Node:
        """`Node.loop("polished", polish, until=good_enough, max_iterations=5, initial="draft")`: repeats something.

        The output is what the last iteration brought; `result.nodes["polished"].stopped` says why it was the last:
        "until" or "max_iterations", and `.iterations` how many there were.

        Args:
            body: a function, whose first parameter is what the iteration before brought and whose others are bound as in
                `Node.function`; a node or workflow, which refers to that as `previous` and to the number of the iteration, from
                0, as `iteration`.
            until: is asked after each iteration with its output: a function, or a comparison as in `Workflow.connect`.
            max_iterations: at least 1.
            initial: the node or input that the first iteration gets as `previous`; None without.
            bind, join, retry, timeout, fallback: as for `Node.map`.

        Raises:
            ConfigurationError: the body is none of these, or an option cannot be right.
        """
        from graphbit._composite import LoopNode

        node = LoopNode.__new__(LoopNode)
        node._name = _checked_name(name, "Loop name")
        node._id = _new_id()
        node.options = _options(name, join, retry, timeout, fallback, False, None)
        node.set_up(body, until, max_iterations, initial, bind)
        return node


class Options:
    """What several kinds of nodes can be given; see `Node`."""

    __slots__ = ("cache", "fallback", "join", "limits", "retry", "timeout")

    def __init__(
        self,
        join: str = "all",
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        fallback: Any = _NO_FALLBACK,
        cache: Cache | None = None,
        limits: tuple[str, ...] = (),
    ) -> None:
        self.join = join
        self.retry = retry
        self.timeout = timeout
        self.fallback = fallback
        self.cache = cache
        self.limits = limits

    @property
    def has_fallback(self) -> bool:
        return self.fallback is not _NO_FALLBACK


PLAIN = Options()
"""Of most nodes; one object, so that they are told apart quickly."""


def _options(
    name: str,
    join: str,
    retry: RetryPolicy | None,
    timeout: float | None,
    fallback: Any,
    cache: bool | Cache,
    limit: str | Sequence[str] | None,
) -> Options:
    if (
        join == "all"
        and retry is None
        and timeout is None
        and fallback is _NO_FALLBACK
        and cache is False
        and limit is None
    ):
        return PLAIN
    if join not in _JOINS:
        raise ConfigurationError(f"join is 'all', 'any' or 'all_done', got {join!r} (node {name!r})")
    if retry is not None and not hasattr(retry, "matches"):
        raise ConfigurationError(f"retry is a RetryPolicy such as RetryPolicy(3), got {retry!r} (node {name!r})")
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < 1e9):
        raise ConfigurationError(f"timeout is a number of seconds above 0, got {timeout!r} (node {name!r})")
    limits: tuple[str, ...] = (limit,) if isinstance(limit, str) else tuple(limit or ())
    for it in limits:
        if not isinstance(it, str) or not it:
            raise ConfigurationError(f"limit is the name of a limit, or several, got {limit!r} (node {name!r})")
    kept: Cache | None = None
    if cache is True:
        from graphbit.policy import Cache

        kept = Cache()
    elif cache is not False and cache is not None:
        if not hasattr(cache, "find"):
            raise ConfigurationError(f"cache is True, False or a Cache, got {cache!r} (node {name!r})")
        kept = cache
    return Options(join, retry, timeout, fallback, kept, limits)


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
    __slots__ = ("bind", "fn", "is_async", "parameters", "process")
    kind = "function"
    process: bool
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
        self._bind_names(bind, any_keyword)

    def _bind_names(self, bind: Mapping[str, str | Node] | None, any_keyword: bool) -> None:
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


class FallbackNode(FunctionNode):
    """Stands in for a node that has failed: calls a function with its error, or brings a value."""

    __slots__ = ("stands_for",)
    kind = "fallback"
    stands_for: Node

    @staticmethod
    def of(node: Node) -> Node:
        fallback = node.options.fallback
        if isinstance(fallback, Node):
            return fallback
        made = FallbackNode.__new__(FallbackNode)
        made._name = f"{node._name} (fallback)"
        made._id = f"{node._id}-fallback"
        made.options = PLAIN
        made.stands_for = node
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
    def of(source: Node, target: str, ask: Callable[[Any], Any]) -> WhenNode:
        made = WhenNode.__new__(WhenNode)
        made._name = f"{source._name} -> {target}"
        made._id = f"{source._id}-when-{target}"
        made.options = PLAIN
        made.source = source._name
        made.fn = ask
        made.is_async = made.process = False
        made.parameters, made.bind = (), None
        return made


class NativeNode(Node):
    __slots__ = ("arguments", "gives", "keep", "output_bytes", "pointer", "takes")
    kind = "native"
    pointer: int
    gives: str  # "void", "double" or "bytes"
    takes: list[str]
    arguments: list[str]
    output_bytes: int
    keep: Any  # whatever the pointer was taken from must outlive the node

    def _bind_native(self, pointer: Any, signature: str, arguments: Sequence[str | Node], output_bytes: int) -> None:
        name = self._name
        self.keep = pointer
        self.pointer = _address(pointer, name)
        found = re.fullmatch(r"\s*(void|double|bytes)\s*\(\s*(.*?)\s*\)\s*", signature) if isinstance(signature, str) else None
        self.takes = [it.strip() for it in found[2].split(",")] if found is not None and found[2] not in ("", "void") else []
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
        if isinstance(arguments, (str, Node)) or not hasattr(arguments, "__iter__"):
            raise ConfigurationError(f"node {name!r}: arguments is a list of names, got {arguments!r}")
        self.arguments = [it._name if isinstance(it, Node) else it for it in arguments]
        if len(self.arguments) != len(self.takes) or not all(isinstance(it, str) and it for it in self.arguments):
            raise ConfigurationError(
                f"node {name!r}: {signature!r} takes {len(self.takes)} arguments, and these are to be passed: {arguments!r}"
            )
        if not _is_whole(output_bytes) or not 0 < output_bytes <= 1 << 40:
            raise ConfigurationError(f"node {name!r}: output_bytes is a number above 0, got {output_bytes!r}")
        self.output_bytes = int(output_bytes)


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


def _address(pointer: Any, name: str) -> int:
    """The address that a function pointer of cffi, ctypes or numba holds."""
    address: Any = getattr(pointer, "address", pointer)  # numba's cfunc
    if not isinstance(address, int):
        module = type(pointer).__module__
        if module.startswith("_cffi_backend"):
            from graphbit._ffi import ffi

            try:
                address = int(ffi.cast("uintptr_t", pointer))
            except TypeError:
                address = None
        elif module.startswith(("ctypes", "_ctypes")):
            import ctypes

            address = ctypes.cast(pointer, ctypes.c_void_p).value
        elif hasattr(pointer, "__ctypes_from_outparam__") or hasattr(pointer, "argtypes"):
            import ctypes

            address = ctypes.cast(pointer, ctypes.c_void_p).value
        else:
            address = None
    if not isinstance(address, int) or isinstance(address, bool) or address <= 0:
        raise ConfigurationError(
            f"node {name!r}: the pointer of a native node is a cffi or ctypes function pointer, a numba cfunc, or an address, "
            f"got {pointer!r}"
        )
    return address


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
