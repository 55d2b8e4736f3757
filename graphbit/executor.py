"""Executors: run workflows."""

from __future__ import annotations

import threading
from time import monotonic

from graphbit._ffi import NONE
from graphbit._lower import Lowered, lower
from graphbit._queue import core
from graphbit.errors import ConfigurationError, InputError, WorkflowError
from graphbit.run import Run, start
from graphbit.workflow import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Literal

    from graphbit.llm.config import LlmConfig
    from graphbit.result import WorkflowResult


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
    ) -> None:
        if config is not None and not hasattr(config, "chat_request"):
            raise _ConfigTypeError(
                f"argument 'config': an executor needs an LlmConfig such as LlmConfig.openai(), or None, got {config!r}"
            )
        if on_error not in ("fail_fast", "continue"):
            raise ConfigurationError(f"on_error must be 'fail_fast' or 'continue', got {on_error!r}")
        self.config = config
        self._on_error = on_error
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

    def _start(self, workflow: Workflow, inputs: Mapping[str, Any] | None, pull: bool) -> Run:
        if not isinstance(workflow, Workflow):
            raise ConfigurationError(f"an executor runs a Workflow, got {workflow!r}")
        if not workflow.node_count():
            raise WorkflowError(
                f"Validation error for field 'workflow': Workflow cannot be empty ({workflow.name()!r} has no nodes)"
            )
        if inputs is None:
            given: dict[str, Any] = {}
        elif isinstance(inputs, dict) or hasattr(inputs, "keys"):
            given = dict(inputs)
        else:
            raise InputError(f"inputs are a mapping such as {{'topic': 'bees'}}, got {inputs!r}")
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
            on_over=self._count,
        )

    def _lowered(self, workflow: Workflow) -> Lowered:
        """The workflow's plan with this executor's model; the one made last is kept."""
        structure = workflow.structure()
        kept = workflow._lowered
        if kept is not None and kept[0] is structure and kept[1] == self.config:
            found: Lowered = kept[2]
            return found
        lowered = lower(structure, self.config)
        workflow._lowered = structure, self.config, lowered
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
