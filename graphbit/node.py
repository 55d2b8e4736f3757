"""Nodes: what a workflow is made of. Made by the factories of `Node`, immutable, usable in any number of workflows.

A kind of node is a class in _kinds.py or _composite.py; the classes at the end of this file make nodes of those kinds.
"""

from __future__ import annotations

from graphbit._composite import LoopNode, MapNode, WorkflowNode
from graphbit._kinds import (
    AgentNode,
    BaseNode,
    ConditionNode,
    DelayNode,
    FunctionNode,
    HttpNode,
    NativeNode,
    NotCallableError,
    TransformNode,
)
from graphbit._options import NO_FALLBACK, checked_name, checked_options, is_number, new_id
from graphbit._template import split
from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal

    from graphbit._options import Join
    from graphbit.http import HttpOptions
    from graphbit.llm.config import LlmConfig
    from graphbit.policy import Cache, RetryPolicy
    from graphbit.workflow import Workflow


class Node(BaseNode):
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

    __slots__ = ()

    kind: str
    """"agent", "function", "transform", "condition", "delay", "http", "map", "workflow", "loop" or "native"."""

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
        fallback: Any = NO_FALLBACK,
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
        node = _Agent.__new__(_Agent)
        node._name = checked_name(name, "Name")
        node.options = checked_options(name, join, retry, timeout, fallback, cache, limit, by_status=True)
        node.set_up(prompt, context, agent_id, system_prompt, llm_config, temperature, max_tokens)
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
        fallback: Any = NO_FALLBACK,
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
        node = _Function.__new__(_Function)
        node.set_function(fn, name, bind)
        node.options = checked_options(node._name, join, retry, timeout, fallback, cache, limit)
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
        fallback: Any = NO_FALLBACK,
        limit: str | Sequence[str] | None = None,
    ) -> Node:
        """`Node.transform("title", "Brief on {topic}: {outline}")`: a text with placeholders, rendered natively."""
        node = _Transform.__new__(_Transform)
        node._name = checked_name(name, "Transform name")
        node.options = checked_options(name, join, None, None, fallback, False, limit)
        if not isinstance(transformation, str) or not transformation.strip():
            raise ConfigurationError(f"Transform transformation cannot be empty (node {name!r})")
        node._id = new_id()
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
        fallback: Any = NO_FALLBACK,
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
        node = _Condition.__new__(_Condition)
        checked_name(name, "Condition name")
        if not callable(handler):
            raise NotCallableError(f"Condition handler must be callable, got {handler!r} (node {name!r})")
        node.set_function(handler, name, bind)
        node.options = checked_options(name, join, retry, timeout, fallback, False, limit)
        node.process = False
        if node.is_async:
            raise ConfigurationError(f"condition {name!r}: the handler must be a plain function, not `async def`")
        return node

    @staticmethod
    def delay(name: str, seconds: float, *, join: Join = "all", limit: str | Sequence[str] | None = None) -> Node:
        """`Node.delay("pause", 0.5)`: waits, natively, and passes the output of its predecessor on."""
        node = _Delay.__new__(_Delay)
        node._name = checked_name(name, "Delay name")
        node.options = checked_options(name, join, None, None, NO_FALLBACK, False, limit)
        if not is_number(seconds) or not 0 <= seconds < 1e9:
            raise ConfigurationError(f"a delay is a number of seconds from 0 on, got {seconds!r} (node {name!r})")
        node._id = new_id()
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
        output: Literal["text", "bytes"] = "text",
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        max_retries: int = 0,
        verify: bool = True,
        http: HttpOptions | None = None,
        join: Join = "all",
        retry: RetryPolicy | None = None,
        fallback: Any = NO_FALLBACK,
        cache: bool | Cache = False,
        limit: str | Sequence[str] | None = None,
    ) -> Node:
        """`Node.http("stars", "GET", "https://api.example.org/repos/{repo}", json_path="stars")`: an HTTP exchange.

        URL, headers and body are texts with placeholders; in the URL what is inserted is percent-encoded, in a body that
        looks like JSON what stands between quotes is escaped. The output is the body as text, or the JSON value at
        `json_path` ("items.0.name"). A status of 400 or above fails the node.

        Args:
            output: "bytes": the output is a read-only memoryview of the body as it came, decoded from gzip and the like and not copied.
            timeout: seconds for one attempt as a whole.
            connect_timeout: seconds to reach the server.
            max_retries: more attempts after failures that may pass (connection, 408, 409, 429, 5xx), with backoff; they
                follow Retry-After.
            verify: False lets any certificate pass.
            http: caps, redirects, proxies, trust, and whether only public addresses are good enough: HttpOptions.
            join, retry, fallback, cache, limit: see `Node`.

        Raises:
            ConfigurationError: something of that cannot be right.
        """
        node = _Http.__new__(_Http)
        node._name = checked_name(name, "HTTP node name")
        node.options = checked_options(name, join, retry, None, fallback, cache, limit, by_status=True)
        node.set_up(method, url, headers, body, json_path, timeout, connect_timeout, max_retries, verify, http, output)
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
        fallback: Any = NO_FALLBACK,
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
        node = _Native.__new__(_Native)
        node._name = checked_name(name, "Native node name")
        node.options = checked_options(name, join, None, None, fallback, False, limit)
        node._id = new_id()
        node.set_up(pointer, signature, arguments, output_bytes)
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
        fallback: Any = NO_FALLBACK,
    ) -> Node:
        """`Node.map("summaries", "pages", summarize)`: does something with every item of a list that is known when it runs.

        The output is a list of what the items brought, in their order.

        Args:
            over: the node or input whose output is the list, or a part of it ("fetched.pages").
            body: a function, whose first parameter is the item and whose others are bound as in `Node.function`; a node, which
                refers to the item as `item` and to its place as `index`; or a workflow with such inputs. Other names are those
                of the workflow that this node is in.
            limit: so many items are on their way at once. Without it as many as there are threads for (functions), or 64.
                An executor's limits hold for every item.
            bind: for names of the body, as in `Node.function`.
            on_error: "fail": the first item that fails fails the node with its error, items on their way are cancelled.
                "collect": errors stand in the list, in the place of what the item would have brought.
            join, retry, timeout, fallback: see `Node`; they are about the map as a whole. For single items give them to a body
                that is a node.

        Raises:
            ConfigurationError: the body is none of these, or an option cannot be right.
            UnknownNameError: `bind` names what the body does not have.
        """
        node = _Map.__new__(_Map)
        node._name = checked_name(name, "Map name")
        node._id = new_id()
        node.options = checked_options(name, join, retry, timeout, fallback, False, None)
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
        fallback: Any = NO_FALLBACK,
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
        node = _Workflow.__new__(_Workflow)
        node._name = checked_name(name, "Workflow node name")
        node._id = new_id()
        node.options = checked_options(name, join, retry, timeout, fallback, False, None)
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
        fallback: Any = NO_FALLBACK,
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
        node = _Loop.__new__(_Loop)
        node._name = checked_name(name, "Loop name")
        node._id = new_id()
        node.options = checked_options(name, join, retry, timeout, fallback, False, None)
        node.set_up(body, until, max_iterations, initial, bind)
        return node


# What the factories make: nodes of the kinds, which are `Node`s as well. The kinds themselves cannot be, for they stand below it.


class _Agent(AgentNode, Node):
    __slots__ = ()


class _Function(FunctionNode, Node):
    __slots__ = ()


class _Condition(ConditionNode, Node):
    __slots__ = ()


class _Transform(TransformNode, Node):
    __slots__ = ()


class _Delay(DelayNode, Node):
    __slots__ = ()


class _Http(HttpNode, Node):
    __slots__ = ()


class _Native(NativeNode, Node):
    __slots__ = ()


class _Map(MapNode, Node):
    __slots__ = ()


class _Workflow(WorkflowNode, Node):
    __slots__ = ()


class _Loop(LoopNode, Node):
    __slots__ = ()
