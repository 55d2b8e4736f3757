"""Runs async functions on an event loop, without a task for each.

An async function mostly comes to its end, or to its first wait, within a microsecond, and a task for each would be most of
what it costs. So nodes share a task for as long as nobody can tell. What was handed out stands in the lane's `_backlog`;
*runners* work it off, each of them a task:

1. A runner takes the next node and calls its function, in a copy of the run's context, and drives it to its first wait.
2. The function has returned by then: the runner takes the next node.
3. It waits: this task is the node's own from now on, listed in `_tasks` to be cancelled with the run. Fresh runners take the
   rest of the backlog, two for one that leaves, so that many nodes that wait are on their way after a few turns of the loop.
4. It has returned and left something in the task: a cancellation that has not arrived yet, or somebody who holds the task and
   may cancel it, or keep things by it. The next node must not meet that: the runner ends, and fresh ones take the rest.
5. Nothing is left: results go in, and what they made ready is taken at once. A chain of nodes needs no turn of the loop.

After a millisecond of this the loop has its turn. Whenever anything happens in a turn of the loop, `_next_turn` is called at
the beginning of the next one: it sends the results of nodes that had waited, and with it the next millisecond begins.
Runners count as `_standing` from when they are made until they end or become a node's own. While the backlog is not empty
there is one at least.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections import deque
from sys import getrefcount
from time import monotonic_ns
from types import CoroutineType, coroutine
from weakref import getweakrefcount

from graphbit._ffi import lib
from graphbit._here import enter_node
from graphbit._lane import FAILURE, GIVEN_UP, RETRY, ActiveRun, Lane, Settled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context
    from typing import Any

    from graphbit._lane import Home

_SUCCESS = Settled(lib.GB_SUCCEEDED)
# For so long nodes are begun in one turn of the loop.
_TURN_NS = 1_000_000
# So many stand at once at most: what that many begin in a turn outweighs the turn.
_RUNNERS_MAX = 64
_PAUSE = object()


class Runners(Lane):
    """A lane whose callbacks are async functions. All methods run on its loop."""

    __slots__ = ("_backlog", "_results", "_standing", "_tasks", "_turn_ends", "_turning")

    def __init__(self, core: Home, kind: int) -> None:
        super().__init__(core, kind)
        self._backlog: deque[tuple[ActiveRun, list[int], int]] = deque()
        """What was handed out and has not begun: run, nodes (last first, never empty), attempt where the core named one."""
        self._standing = 0
        """Runners that will look at the backlog before they end."""
        self._tasks: dict[int, dict[int, asyncio.Task[None]]] = {}
        """The tasks of nodes that wait, by run and node."""
        self._results: dict[ActiveRun, _Results] = {}
        self._turning = False
        """Whether `_next_turn` is going to be called."""
        self._turn_ends = 0
        """When it is the loop's turn."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    def is_gone(self) -> bool:
        raise NotImplementedError

    def take_news(self) -> None:
        """Takes whatever is there for this lane."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------- orders

    def begin(self, run: ActiveRun, nodes: list[int], attempt: int) -> None:
        self._backlog.append((run, nodes, attempt))
        if not self._standing:
            self._add_runner()

    def cancel_tasks(self, run_token: int) -> None:
        for task in list(self._tasks.get(run_token, {}).values()):
            task.cancel()

    def give_up(self, run_token: int, node: int) -> None:
        """The core does not want this node any more: its time is up, or what waited for it goes on without."""
        task = self._tasks.get(run_token, {}).get(node)
        if task is not None:
            self._forget(run_token, node, task)
            task.cancel()
            return
        for i, (run, batch, attempt) in enumerate(self._backlog):
            if run.token == run_token and node in batch:
                batch.remove(node)
                if not batch:
                    del self._backlog[i]
                self._end(run, node, GIVEN_UP, attempt, monotonic_ns())
                return

    # ------------------------------------------------------------------------------------------------------- runners

    def _add_runner(self) -> None:
        self._standing += 1
        loop = self.loop
        if loop.get_task_factory() is None:
            self._start_runner(loop)
        else:  # one that begins tasks at once would begin this one inside the last
            loop.call_soon(self._start_runner, loop)

    def _start_runner(self, loop: asyncio.AbstractEventLoop) -> None:
        runner = self._runner(loop)
        runner.send(None)  # to its first pause: a task that is cancelled before its first step would not get there
        loop.create_task(runner)

    def _hand_over(self) -> None:
        """A runner leaves the backlog to others, which become more as long as there is use for them."""
        self._standing = standing = self._standing - 1
        backlog = self._backlog
        if backlog:
            left = len(backlog) - 1 + len(backlog[0][1])  # at least: the others are not empty
            for _ in range(min(left, standing + 2, _RUNNERS_MAX) - standing):
                self._add_runner()

    async def _runner(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = None
        try:
            while True:
                await _pause()
                waiting = self._begin_nodes(loop)
                if waiting is _PAUSE:
                    continue
                if waiting is not None:
                    await self._go_on(*waiting)
                return
        except CancelledError:  # in the pause: somebody cancels whatever tasks there are
            self._standing -= 1
            self._fail_backlog()
        except GeneratorExit:
            self._standing -= 1
            raise
        finally:
            waiting = None  # see _begin_nodes

    def _begin_nodes(self, loop: asyncio.AbstractEventLoop) -> Any:
        """A runner at work. It returns what `_go_on` takes: a node waits, the task is its own; `_PAUSE`: it is the loop's turn;
        None: it is not needed any more."""
        task: Any = asyncio.current_task(loop)
        if not self._turning:
            self._expect_turn()
        turn_ends, clock, backlog = self._turn_ends, monotonic_ns, self._backlog
        ended = clock()
        if ended > turn_ends and self._standing > 1:
            self._standing -= 1
            return None
        holders, watchers = getrefcount(task), getweakrefcount(task)
        run: Any
        run = context = steps = values = results = function = sources = finish = waiting = value = None
        try:
            while True:
                if not backlog:
                    self._exchange()
                    if not backlog:
                        self._standing -= 1
                        return None
                    ended = clock()
                run, batch, attempt = backlog[0]
                steps, values, stop = run.steps, run.values, run.stop
                while batch:
                    node = batch.pop()
                    if not batch:
                        backlog.popleft()
                    began = ended
                    settled: Settled | None = None
                    if stop[0]:
                        settled = GIVEN_UP
                    else:
                        function, sources, finish = steps[node]
                        context = run.context.copy()
                        try:
                            waiting, value = context.run(_first_step, run, node, attempt, function, sources)
                            if waiting is not None:
                                self._tasks.setdefault(run.token, {})[node] = task
                                self._hand_over()
                                return task, run, node, attempt, finish, began, context, waiting, value
                            if attempt and run.has_given_up(node, attempt):
                                settled = GIVEN_UP
                            elif finish is None:
                                values[node] = value
                            else:
                                settled = finish(run, node, value)
                        except BaseException as error:
                            settled = self._failed(run, node, attempt, error)
                            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                                self._end(run, node, settled, attempt, began)
                                task.add_done_callback(_look_at)
                                raise
                    ended = clock()
                    if attempt:
                        settled = _of_attempt(settled, attempt)
                    # Looked up each time: a node may have run the loop from inside (nest_asyncio), and results were sent.
                    results = self._results.get(run)
                    if results is None:
                        results = self._results[run] = _Results()
                    results.done.append(node if settled is None else (node, settled))
                    results.begins.append(began)
                    results.times.append(ended)
                    if (
                        getrefcount(task) != holders
                        or getweakrefcount(task) != watchers
                        or getattr(task, "_must_cancel", True)
                    ):
                        self._hand_over()
                        return None
                    if ended > turn_ends:
                        if self._standing == 1:
                            return _PAUSE
                        self._standing -= 1
                        return None
        except BaseException:
            self._hand_over()
            raise
        finally:
            # A failed node's error holds its frames, and since Python 3.12 those of coroutines hold their callers', this one and
            # the runner's. They must not hold the run, which holds the error.
            run = context = steps = values = results = function = sources = finish = waiting = value = task = None

    async def _go_on(
        self,
        task: Any,
        run: ActiveRun,
        node: int,
        attempt: int,
        finish: Callable[..., Settled] | None,
        began: int,
        context: Context,
        waiting: Coroutine[Any, Any, Any],
        waits_for: Any,
    ) -> None:
        """The rest of a node that waits, in what is its own task."""
        settled: Settled | None = None
        wanted = False
        try:
            try:
                value = await _further_steps(context, waiting, waits_for)
            finally:
                wanted = self._forget(run.token, node, task)
            if not wanted or (attempt and run.has_given_up(node, attempt)):
                settled = GIVEN_UP
            elif finish is None:
                run.values[node] = value
            else:
                settled = finish(run, node, value)
        except BaseException as error:
            if isinstance(error, GeneratorExit) and self.is_gone():
                raise  # nobody is left to send what became of it
            settled = self._failed(run, node, attempt, error, wanted)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                self._end(run, node, settled, attempt, began)
                task.add_done_callback(_look_at)
                raise
        finally:
            del context, waiting, waits_for, finish, task  # see _begin_nodes
            value = None
        self._end(run, node, settled, attempt, began)
        del run

    def _failed(self, run: ActiveRun, node: int, attempt: int, error: BaseException, wanted: bool = True) -> Settled:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            # Not the node's failure: the program is to end. The run is cancelled, its waiter gets the exception.
            run.interrupt(error)
            return GIVEN_UP
        if not wanted or (run.stop[0] and isinstance(error, CancelledError)):
            return GIVEN_UP
        if attempt and run.has_given_up(node, attempt):
            return GIVEN_UP
        run.fail(node, error)  # a cancellation that was somebody else's is a failure of its own
        policy = run.policies.get(node)
        return RETRY if policy is not None and policy.matches(error) else FAILURE

    def _forget(self, run_token: int, node: int, task: asyncio.Task[None]) -> bool:
        """Takes a task from the list. False: its node was given up, and may be on its way again as another task."""
        tasks = self._tasks.get(run_token)
        if tasks is None or tasks.get(node) is not task:
            return False
        del tasks[node]
        if not tasks:
            del self._tasks[run_token]
        return True

    def _fail_backlog(self) -> None:
        backlog = self._backlog
        while backlog:
            run, batch, attempt = backlog.popleft()
            while batch:
                node = batch.pop()
                settled = GIVEN_UP if run.stop[0] else self._failed(run, node, attempt, CancelledError())
                self._end(run, node, settled, attempt, monotonic_ns())

    # ---------------------------------------------------------------------------------------------------- results in

    def _end(self, run: ActiveRun, node: int, settled: Settled | None, attempt: int, began: int) -> None:
        if attempt:
            settled = _of_attempt(settled, attempt)
        results = self._results.get(run)
        if results is None:
            results = self._results[run] = _Results()
        results.done.append(node if settled is None else (node, settled))
        results.begins.append(began)
        results.times.append(monotonic_ns())
        if not self._turning:
            self._expect_turn()

    def _expect_turn(self) -> None:
        self._turning = True
        self._turn_ends = monotonic_ns() + _TURN_NS
        self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turning = False
        self._exchange()

    def _exchange(self) -> None:
        """Sends what has ended and takes what that made ready."""
        results, self._results = self._results, {}
        for run, it in results.items():
            self.done, self.begins, self.times = it.done, it.begins, it.times
            self.settle(run)
        self.take_news()


class _Results:
    """What ended in one run and was not sent yet."""

    __slots__ = ("begins", "done", "times")

    def __init__(self) -> None:
        self.done: list[tuple[int, Settled] | int] = []
        self.begins: list[int] = []
        self.times: list[int] = []


def _of_attempt(settled: Settled | None, attempt: int) -> Settled:
    """The same, told apart from results of the node's other attempts."""
    it = _SUCCESS if settled is None else settled
    return Settled(it.state, it.kind, it.data, it.chosen, attempt, it.retry)


@coroutine
def _pause() -> Generator[None, None, None]:
    """Lets the loop have its turn."""
    yield


async def _awaited(it: Awaitable[Any]) -> Any:
    return await it


def _first_step(run: Any, node: int, attempt: int, function: Any, sources: Any) -> tuple[Any, Any]:
    """Calls an async function, up to its first wait. In the node's context.

    Returns the coroutine and what it waits for; or None and its value.
    """
    awaitable = arguments = waiting = None
    try:
        enter_node(run, node, attempt)
        if sources is None:
            awaitable = function()
        elif sources.__class__ is tuple:
            values = run.values
            awaitable = function(*[values[i] for i in sources])
        else:
            arguments, keywords = sources(run)
            awaitable = function(*arguments, **keywords)
        waiting = awaitable if awaitable.__class__ is CoroutineType else _awaited(awaitable)
        try:
            return waiting, waiting.send(None)
        except StopIteration as over:
            return None, over.value
    finally:
        run = function = sources = awaitable = arguments = keywords = values = waiting = None  # see _begin_nodes


@coroutine
def _further_steps(context: Context, waiting: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """What `await waiting` would do, had it begun here; in a context of its own."""
    step: Any
    step = value = None
    try:
        while True:
            try:
                value = yield waits_for
                step = waiting.send
            except GeneratorExit:
                context.run(waiting.close)
                raise
            except BaseException as error:
                trace = error.__traceback__
                value = error.with_traceback(trace and trace.tb_next)  # without this frame
                step = waiting.throw
                trace = None
            try:
                waits_for = context.run(step, value)
            except StopIteration as over:
                return over.value
            step = value = None
    finally:
        del context, waiting
        step = value = waits_for = None  # see _begin_nodes


def _look_at(task: asyncio.Task[None]) -> None:
    task.exception()  # it has come out of the loop; asyncio need not log it
