"""Executors: run workflows."""

from __future__ import annotations

import threading
from time import monotonic

from graphbit._ffi import NONE
from graphbit._limits import Limits
from graphbit._lower import Lowered, lower
from graphbit._queue import core
from graphbit.errors import ConfigurationError, InputError, WorkflowError
from graphbit.run import Run, start
from graphbit.workflow import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Literal

    from graphbit._events import EventSink
    from graphbit.llm.config import LlmConfig
    from graphbit.result import WorkflowResult
    from graphbit.stream import RunStream


class Executor:
    """Runs workflows.

    ```python
    executor = Executor(LlmConfig.openai())
    result = executor.execute(workflow, {"topic": "bees"})          # waits here
    result = await executor.run_async(workflow, {"topic": "bees"})  # waits on the event loop
    run = executor.start(workflow, {"topic": "bees"})               # does not wait
    ```

    One executor serves any number of threads and event loops at once; its runs share connections, threads and nothing else.

    Args:
        config: the model for agents that name none of their own. A workflow without agents needs none.
        lightweight_mode: accepted for older programs; there is one mode.
        timeout_seconds: for a whole run; none by default.
        debug: accepted for older programs.
        on_error: "fail_fast": a failed node stops the run; its dependents are skipped, independent work is cancelled.
            "continue": independent work finishes. Either way the run has failed, and finished outputs stay readable.
        max_concurrency: so many nodes of this executor's runs execute at once; no bound by default.
        limits: `{"db": 4, "agent": 10}`: so many nodes that name the limit "db", and so many agents, execute at once. A kind of
            node ("agent", "http", "function", …) is limited by its name. A node that waits for its next attempt, or for runs it
            started, does not count; nor does a function that was given up (its time was up, a join went on without it) and that
            Python cannot stop. Nodes with more work behind them go first, runs take turns.

    Raises:
        ConfigurationError: an option that cannot be right.
    """

    def __init__(
        self,
        config: LlmConfig | None = None,
        lightweight_mode: bool | None = None,
        timeout_seconds: float | None = None,
        debug: bool | None = None,
        *,
        on_error: Literal["fail_fast", "continue"] = "fail_fast",
        max_concurrency: int | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        if config is not None and not hasattr(config, "chat_request"):
            raise _ConfigTypeError(
                f"argument 'config': an executor needs an LlmConfig such as LlmConfig.openai(), or None, got {config!r}"
            )
        if on_error not in ("fail_fast", "continue"):
            raise ConfigurationError(f"on_error must be 'fail_fast' or 'continue', got {on_error!r}")
        self.config = config
        self._on_error = on_error
        self._limits = Limits(max_concurrency, limits)
        self._timeout = _checked_timeout(timeout_seconds)
        self._lock = threading.Lock()
        self.reset_stats()

    # ------------------------------------------------------------------------------------------------------- running

    def start(self, workflow: Workflow, inputs: Mapping[str, Any] | None = None) -> Run:
        """`run = executor.start(workflow, {"topic": "bees"})`: starts a run and returns at once.

        Called on an event loop, the workflow's `async def` functions run there; elsewhere they run on a private loop.

        Raises:
            WorkflowError: the workflow is not sound, or `inputs` are not what it needs. Nothing has started.
            ConfigurationError: an agent has no model to ask.
            RuntimeClosedError: the runtime is shutting down.
        """
        return self._start(workflow, inputs, pull=False)

    def execute(self, workflow: Workflow, inputs: Mapping[str, Any] | None = None) -> WorkflowResult:
        """`result = executor.execute(workflow, {"topic": "bees"})`: runs a workflow and waits for its end.

        The calling thread runs Python nodes of this run meanwhile. A failed node does not raise here: it is in the result.

        Raises:
            WorkflowError, ConfigurationError, RuntimeClosedError: as `start`.
            RunTimeoutError: the run's time was up; `.result` holds what was finished.
            KeyboardInterrupt: Ctrl-C, also inside a node; the run was cancelled.
        """
        return self._start(workflow, inputs, pull=True).wait()

    async def run_async(self, workflow: Workflow, inputs: Mapping[str, Any] | None = None) -> WorkflowResult:
        """`result = await executor.run_async(workflow, {"topic": "bees"})`: the same on an event loop.

        Cancelling the task cancels the run.

        Raises:
            WorkflowError, ConfigurationError, RuntimeClosedError, RunTimeoutError: as `execute`.
        """
        return await self.start(workflow, inputs)

    def execute_streaming(
        self,
        workflow: Workflow,
        inputs: Mapping[str, Any] | None = None,
        stream_mode: str | None = "updates",
        *,
        buffer: int | None = None,
    ) -> RunStream:
        """`for event in executor.execute_streaming(workflow, {"topic": "bees"}): …`: a run's events as they happen.

        Starts the run and returns an iterator of dicts, for `for` and for `async for`. Leaving the loop cancels the run. A
        failure is an event too, `workflow_failed`, and raises nothing; `stream.result` is what `execute` would have returned.
        `get_stream_event_schema` lists all events.

        The order of the arguments is the original's; where that took a policy, and mostly None, stand the inputs.

        Args:
            stream_mode: "updates": how the workflow and its nodes fare, and what nodes emit, log and report as progress;
                "messages": what nodes emit, and how it ended; "all": everything. In small or capital letters.
            buffer: how many events are kept for a reader that is late; the run never waits for it. When there is no room
                the newest are dropped, and one `events_dropped` tells how many. Without it 4,096, or enough for the start and
                the end of every node.

        Raises:
            WorkflowError, ConfigurationError, RuntimeClosedError: as `start`; also an unknown mode or a buffer without sense.
        """
        from graphbit._events import EventSink, checked_mode
        from graphbit.stream import RunStream

        mode = checked_mode(stream_mode)
        self._check_workflow(workflow)
        sink = EventSink(buffer, workflow.node_count())
        return RunStream(self._start(workflow, inputs, pull=False, sink=sink), sink, mode)

    @staticmethod
    def get_stream_event_schema() -> dict[str, Any]:
        """`Executor.get_stream_event_schema()`: every event of `execute_streaming`, its fields, groups and modes. Plain data."""
        from graphbit._events import event_schema

        return event_schema()

    def _start(
        self, workflow: Workflow, inputs: Mapping[str, Any] | None, pull: bool, sink: EventSink | None = None
    ) -> Run:
        self._check_workflow(workflow)
        given = self._given(inputs)
        lowered = self._lowered(workflow)
        workflow.check_inputs(given)
        return start(
            core(),
            lowered,
            given,
            workflow_name=workflow.name(),
            keep_going=self._on_error == "continue",
            timeout_seconds=self._timeout,
            pull=pull,
            on_over=self._count if sink is None else sink.over(self._count),
            limits=self._limits.handle,
            sink=sink,
        )

    def execute_many(
        self, workflow: Workflow, inputs: Iterable[Mapping[str, Any]], limit: int | None = None
    ) -> list[WorkflowResult]:
        """`results = executor.execute_many(workflow, [{"topic": "bees"}, {"topic": "ants"}])`: one workflow, many runs.

        Results stand in the order of the inputs; a run that failed is among them like any other. Inputs are checked before
        anything starts.

        Args:
            limit: so many runs are on their way at once; 1,000 without it.

        Raises:
            WorkflowError, ConfigurationError, RuntimeClosedError: as `start`.
            KeyboardInterrupt: Ctrl-C; all runs were cancelled.
        """
        return list(self._many(workflow, inputs, limit, pull=True).wait().raise_for_failure()["runs"])

    async def run_many_async(
        self, workflow: Workflow, inputs: Iterable[Mapping[str, Any]], limit: int | None = None
    ) -> list[WorkflowResult]:
        """`results = await executor.run_many_async(workflow, [{"topic": "bees"}, …])`: the same on an event loop.

        Raises:
            WorkflowError, ConfigurationError, RuntimeClosedError: as `start`.
        """
        return list((await self._many(workflow, inputs, limit, pull=False)).raise_for_failure()["runs"])

    def _many(self, workflow: Workflow, inputs: Iterable[Mapping[str, Any]], limit: int | None, pull: bool) -> Run:
        from graphbit._composite import ManyNode

        if hasattr(inputs, "keys") or not hasattr(inputs, "__iter__") or isinstance(inputs, str):
            raise InputError(f"inputs is a list of mappings, one for each run, got {inputs!r:.80}")
        all_given = [self._given(it) for it in inputs]
        self._check_workflow(workflow)
        self._lowered(workflow)
        for given in all_given:
            workflow.check_inputs(given)
        many = Workflow(workflow.name(), inputs=["inputs"])
        many.add(ManyNode.of(workflow, limit, self._timeout, self._count))
        lowered = lower(many.structure(), self.config, self._limits.numbers)
        return start(
            core(),
            lowered,
            {"inputs": all_given},
            workflow_name=workflow.name(),
            keep_going=self._on_error == "continue",
            timeout_seconds=None,
            pull=pull,
            on_over=lambda _: None,
            limits=self._limits.handle,
        )

    @staticmethod
    def _check_workflow(workflow: Workflow) -> None:
        if not isinstance(workflow, Workflow):
            raise ConfigurationError(f"an executor runs a Workflow, got {workflow!r}")
        if not workflow.node_count():
            raise WorkflowError(
                f"Validation error for field 'workflow': Workflow cannot be empty ({workflow.name()!r} has no nodes)"
            )

    @staticmethod
    def _given(inputs: Mapping[str, Any] | None) -> dict[str, Any]:
        if inputs is None:
            return {}
        if isinstance(inputs, dict) or hasattr(inputs, "keys"):
            return dict(inputs)
        raise InputError(f"inputs are a mapping such as {{'topic': 'bees'}}, got {inputs!r}")

    def _lowered(self, workflow: Workflow) -> Lowered:
        """The workflow's plan with this executor's model; the one made last is kept."""
        structure = workflow.structure()
        kept = workflow._lowered
        numbers = self._limits.numbers
        if kept is not None and kept[0] is structure and kept[1] == self.config and kept[2] == numbers:
            found: Lowered = kept[3]
            return found
        lowered = lower(structure, self.config, numbers)
        workflow._lowered = structure, self.config, numbers, lowered
        return lowered

    # ---------------------------------------------------------------------------------------------------- book-keeping

    def configure(
        self,
        timeout_seconds: float | None = None,
        max_retries: int | None = None,
        enable_metrics: bool | None = None,
        debug: bool | None = None,
    ) -> None:
        """`executor.configure(timeout_seconds=60)`: changes what later runs are given.

        Raises:
            ConfigurationError: a timeout that is not above 0; `max_retries`, which belongs to the model's configuration:
                `LlmConfig.openai(max_retries=5)`.
        """
        if max_retries is not None:
            raise ConfigurationError("retries belong to the model's configuration: LlmConfig.openai(max_retries=…)")
        if timeout_seconds is not None:
            self._timeout = _checked_timeout(timeout_seconds)

    def get_stats(self) -> dict[str, Any]:
        """`executor.get_stats()`: runs that are over, counted and timed."""
        with self._lock:
            total = self._succeeded + self._failed
            return {
                "total_executions": total,
                "successful_executions": self._succeeded,
                "failed_executions": self._failed,
                "success_rate": self._succeeded / total if total else 0.0,
                "average_duration_ms": self._seconds * 1000 / total if total else 0.0,
                "total_duration_ms": self._seconds * 1000,
                "uptime_seconds": monotonic() - self._since,
                "timeout_seconds": self._timeout,
                "limits": self._limits.stats(),
            }

    def reset_stats(self) -> None:
        """`executor.reset_stats()`: counts from here on."""
        with self._lock:
            self._succeeded = self._failed = 0
            self._seconds = 0.0
            self._since = monotonic()

    def _count(self, result: WorkflowResult) -> None:
        with self._lock:
            if result.cause == 0 and result.first_failed == NONE:
                self._succeeded += 1
            else:
                self._failed += 1
            self._seconds += result.duration

    def __repr__(self) -> str:
        return f"Executor({self.config!r}, on_error={self._on_error!r}, timeout_seconds={self._timeout!r})"


class _ConfigTypeError(ConfigurationError, TypeError):
    """The original raised a TypeError here."""


def _checked_timeout(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise ConfigurationError(f"timeout_seconds is a number of seconds above 0, or None, got {seconds!r}")
    return float(seconds)
