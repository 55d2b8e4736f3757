"""Runs that fail: whose error it is, what becomes of the rest, and that nobody has to find out by chance."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from flows import good, linked

from graphbit import (
    Executor,
    GraphbitError,
    Node,
    NodeNotRunError,
    OutputError,
    TemplateError,
    UnknownNameError,
    Workflow,
)
from graphbit.testing import virtual_time


def failing(name: str, error: BaseException) -> Node:
    def raises() -> None:
        raise error

    return Node.function(raises, name=name)


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


class OwnError(Exception):
    pass


# ---------------------------------------------------------------- whose error it is


def test_a_functions_exception_comes_back_as_itself_with_the_nodes_name_and_its_traceback() -> None:
    def culprit() -> None:
        raise OwnError("mine", 5)

    result = Executor().execute(linked([Node.function(culprit)]))
    with pytest.raises(OwnError) as caught:
        result["culprit"]
    error = caught.value
    assert error.args == ("mine", 5)
    assert notes(error) == ["raised by node 'culprit'"]
    assert "culprit" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert result.errors == {"culprit": error}


def test_the_very_object_comes_back_every_time() -> None:
    error = OwnError()
    result = Executor().execute(linked([failing("a", error)]))
    assert result.errors["a"] is error
    for _ in range(2):
        with pytest.raises(OwnError) as caught:
            result["a"]
        assert caught.value is error
    with pytest.raises(OwnError):
        result.raise_for_failure()
    assert notes(error) == ["raised by node 'a'"]


def test_an_async_functions_exception_comes_back_as_itself() -> None:
    async def culprit() -> None:
        await asyncio.sleep(0)
        raise OwnError

    result = Executor().execute(linked([Node.function(culprit)]))
    error = result.errors["culprit"]
    assert isinstance(error, OwnError)
    assert notes(error) == ["raised by node 'culprit'"]
    assert "culprit" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_the_cause_of_an_exception_is_kept() -> None:
    def culprit() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise OwnError("outer") from error

    error = Executor().execute(linked([Node.function(culprit)])).errors["culprit"]
    assert isinstance(error.__cause__, KeyError)


def test_one_exception_raised_by_two_nodes_names_both() -> None:
    error = OwnError()
    result = Executor(on_error="continue").execute(linked([failing("a", error), failing("b", error)]))
    assert result.errors == {"a": error, "b": error}
    assert sorted(notes(error)) == ["raised by node 'a'", "raised by node 'b'"]


class Base(BaseException):
    """No Exception."""


class Wanting(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Nothing can be written on it, not even a note."""

    code: int = 5


class Sealed(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class OwnNotes(Exception):
    __notes__ = None


class Unhashable(Exception):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)


ODD: dict[str, Callable[[], BaseException]] = {
    "BaseException": Base,
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "wants arguments": lambda: Wanting(5, reason="r"),
    "broken text": BrokenText,
    "frozen": Frozen,
    "sealed": Sealed,
    "own notes": OwnNotes,
    "unhashable": Unhashable,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "TimeoutError": TimeoutError,
    "AssertionError": AssertionError,
    "ours": lambda: OutputError("raised by hand"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("started", [False, True], ids=["execute", "start"])
def test_an_exception_of_an_odd_kind_is_its_nodes_error_and_nothing_else_breaks(kind: str, started: bool) -> None:
    error = ODD[kind]()
    executor = Executor(on_error="continue")
    made = linked([failing("a", error), good("b"), good("c")], [("a", "c")])
    result = executor.start(made).wait(timeout=20) if started else executor.execute(made)
    assert result.errors["a"] is error
    assert result.states == {"a": "failed", "b": "succeeded", "c": "skipped"}
    with pytest.raises(type(error)) as caught:
        result["a"]
    assert caught.value is error
    assert Executor().execute(linked([good("b")]))["b"] == "b"


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in ("StopIteration", "StopAsyncIteration")])
def test_an_exception_of_an_odd_kind_in_an_async_function_is_its_nodes_error(kind: str) -> None:
    error = ODD[kind]()

    async def culprit() -> None:
        raise error

    result = Executor(on_error="continue").execute(linked([Node.function(culprit), good("b")]))
    assert result.errors["culprit"] is error
    assert result["b"] == "b"


def test_stop_iteration_in_an_async_function_is_what_python_makes_of_it() -> None:
    async def culprit() -> None:
        raise StopIteration

    error = Executor().execute(linked([Node.function(culprit)])).errors["culprit"]
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


@pytest.mark.parametrize("kind", ODD)
def test_metadata_of_a_failed_node_can_be_read_whatever_the_exception(kind: str) -> None:
    result = Executor().execute(linked([failing("a", ODD[kind]())]))
    found = result.get_node_response_metadata("a")
    assert found is not None
    assert (found["state"], found["success"]) == ("failed", False)
    assert isinstance(found["error"], str)


def test_runaway_recursion_is_the_nodes_error() -> None:
    def culprit() -> None:
        culprit()

    assert isinstance(Executor().execute(linked([Node.function(culprit)])).errors["culprit"], RecursionError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_from_inside_a_node_ends_the_run_and_comes_out_of_execute(kind: type[BaseException]) -> None:
    ran: list[str] = []
    made = linked([failing("a", kind("bye")), Node.function(lambda: ran.append("b"), name="b")], [("a", "b")])
    with pytest.raises(kind, match="bye"):
        Executor().execute(made)
    with pytest.raises(kind, match="bye"):
        Executor().start(made).wait()
    assert ran == []
    assert Executor().execute(linked([good("a")]))["a"] == "a"


def test_a_plain_function_that_returns_a_coroutine_fails_with_the_remedy() -> None:
    async def work() -> int:
        return 1

    result = Executor().execute(linked([Node.function(lambda: work(), name="a")]))
    with pytest.raises(TypeError, match=r"work\(\) returned a coroutine.*make the node from the `async def`") as caught:
        result["a"]
    assert notes(caught.value) == ["raised by node 'a'"]


def test_a_function_that_is_called_wrongly_fails_as_itself() -> None:
    made = Workflow("w")
    made.add(Node.function(lambda **more: (lambda x: x)(**more), name="a", bind={"y": "z"}))
    assert isinstance(Executor().execute(made, {"z": 1}).errors["a"], TypeError)


def test_a_path_that_leads_nowhere_names_node_and_path() -> None:
    made = Workflow("w")
    made.add(Node.function(lambda: {"k": 1}, name="a"), Node.transform("t", "{a.q.r}"))
    result = Executor().execute(made)
    with pytest.raises(TemplateError, match="node 't': node 'a' has no 'q.r'") as caught:
        result["t"]
    assert isinstance(caught.value, LookupError)
    assert notes(caught.value) == ["raised by node 't'"]
    made = Workflow("w")
    made.add(Node.transform("t", "{topic.q}"))
    with pytest.raises(TemplateError, match="node 't': input 'topic' has no 'q'"):
        Executor().execute(made, {"topic": {}})["t"]


# ---------------------------------------------------------------- what becomes of the rest


def test_a_failed_node_skips_its_descendants() -> None:
    made = linked(
        [failing("a", OwnError()), good("b"), Node.transform("t", "{b}"), Node.delay("d", 1), good("c")],
        [("a", "b"), ("t", "d"), ("d", "c")],
    )
    for mode in ("fail_fast", "continue"):
        result = Executor(on_error=mode).execute(made)  # type: ignore[arg-type]
        assert result.states == {"a": "failed", "b": "skipped", "t": "skipped", "d": "skipped", "c": "skipped"}
        assert list(result.errors) == ["a"]
        for name in "btdc":
            with pytest.raises(
                NodeNotRunError, match=rf"node '{name}' was skipped because node 'a' failed; result\.errors"
            ):
                result[name]
            assert result.get(name, "nothing") == "nothing"
            assert result.get_node_output(name) is None


def test_a_join_of_a_failed_and_a_good_node_is_skipped() -> None:
    made = linked([failing("a", OwnError()), good("b"), good("join")], [("a", "join"), ("b", "join")])
    assert Executor(on_error="continue").execute(made).states == {"a": "failed", "b": "succeeded", "join": "skipped"}


def test_fail_fast_cancels_independent_work() -> None:
    ran: list[str] = []
    made = linked(
        [failing("a", OwnError()), Node.delay("hour", 3600), Node.function(lambda: ran.append("late"), name="late")],
        [("hour", "late")],
    )
    with virtual_time() as clock:
        result = Executor().execute(made)
        assert clock.now() == 0
    assert result.states == {"a": "failed", "hour": "cancelled", "late": "cancelled"}
    assert ran == []
    assert result.state() == "Failed"
    assert result.is_failed()
    with pytest.raises(NodeNotRunError, match="'late' was cancelled because another node failed"):
        result["late"]
    with pytest.raises(OwnError):
        result.raise_for_failure()


def test_fail_fast_cancels_async_functions_that_wait() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fail() -> None:
        raise OwnError

    result = Executor().execute(linked([Node.function(wait), Node.function(fail)]))
    assert result.states == {"wait": "cancelled", "fail": "failed"}


def test_what_a_cancelled_function_returns_is_dropped() -> None:
    running, over = threading.Event(), threading.Event()

    def slow() -> str:
        running.set()
        over.wait(20)
        return "too late"

    def fail() -> None:
        running.wait(20)
        raise OwnError

    run = Executor().start(linked([Node.function(slow), Node.function(fail), good("after")], [("slow", "after")]))
    while not run.done():  # does not wait for what is cancelled
        threading.Event().wait(0.001)
    over.set()
    result = run.wait()
    assert result.states == {"slow": "cancelled", "fail": "failed", "after": "cancelled"}
    assert "slow" not in result.outputs


def test_a_node_that_was_cancelled_before_it_started_has_no_attempts() -> None:
    made = linked(
        [Node.delay("d", 1), Node.delay("late", 60), failing("a", OwnError()), *[good(f"n{i}") for i in range(2000)]],
        [("d", "a"), *[("late", f"n{i}") for i in range(2000)]],
    )
    with virtual_time():
        nodes = Executor().execute(made).nodes
    for report in [nodes[f"n{i}"] for i in range(2000)]:
        assert (report.state, report.attempts, report.started, report.duration) == ("cancelled", 0, None, None)


def test_of_many_ready_nodes_that_were_cancelled_only_what_a_thread_had_in_hand_counts_as_tried() -> None:
    called: set[str] = set()
    names = [f"n{i}" for i in range(20_000)]
    nodes = [Node.function(lambda name=name: called.add(name), name=name) for name in names]
    report = Executor().execute(linked([failing("a", OwnError()), *nodes])).nodes
    in_hand = [it for name in names if (it := report[name]).attempts and it.name not in called]
    assert {it.state for it in in_hand} <= {"cancelled"}
    assert len(in_hand) < len(names) // 2  # a batch of at most 256 for each thread
    for it in [report[name] for name in names]:
        assert it.attempts == 1 or (it.name not in called and it.state == "cancelled")
        assert (it.started is None) == (it.attempts == 0)


def test_continue_finishes_independent_work_and_the_run_has_failed_all_the_same() -> None:
    made = linked([failing("a", OwnError()), good("b"), Node.delay("d", 60), good("c")], [("d", "c")])
    with virtual_time() as clock:
        result = Executor(on_error="continue").execute(made)
        assert clock.now() == pytest.approx(60)
    assert result.states == {"a": "failed", "b": "succeeded", "d": "succeeded", "c": "succeeded"}
    assert result.state() == "Failed"
    assert not result.is_success()
    assert result.outputs.keys() >= {"b", "c"}


def test_finished_results_stay_readable_after_a_failure() -> None:
    value = object()
    made = linked([Node.function(lambda: value, name="before"), failing("a", OwnError())], [("before", "a")])
    result = Executor().execute(made)
    assert result["before"] is value
    assert result.outputs == {"before": value}
    assert result.get_all_variables() == {"before": value}


def test_several_failures_are_all_told_and_the_first_is_raised() -> None:
    first, second = OwnError("first"), OwnError("second")
    made = linked([failing("a", first), Node.delay("d", 1), failing("b", second)], [("d", "b")])
    with virtual_time():
        result = Executor(on_error="continue").execute(made)
    assert result.errors == {"a": first, "b": second}
    with pytest.raises(OwnError, match="first"):
        result.raise_for_failure()


def test_every_one_of_many_failures_is_told() -> None:
    number = 1000
    errors = [OwnError(i) for i in range(number)]
    made = linked([failing(f"n{i}", error) for i, error in enumerate(errors)])
    result = Executor(on_error="continue").execute(made)
    assert result.errors == {f"n{i}": error for i, error in enumerate(errors)}
    assert {report.state for report in result.nodes.values()} == {"failed"}


def test_an_unknown_node_of_a_failed_result_is_still_an_unknown_name() -> None:
    result = Executor().execute(linked([failing("outline", OwnError())]))
    with pytest.raises(UnknownNameError, match="did you mean 'outline'"):
        result["outlin"]


def test_a_failed_run_does_not_disturb_the_next() -> None:
    answers = iter([OwnError(), None, OwnError(), None])

    def moody() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "fine"

    made, executor = linked([Node.function(moody)]), Executor()
    states = [executor.execute(made).state() for _ in range(4)]
    assert states == ["Failed", "Completed", "Failed", "Completed"]


# ---------------------------------------------------------------- faults of conditions


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "'route' returned None; its handler must return the name of a successor"),
        (5, "'route' returned 5"),
        (True, "'route' returned True"),
        ({"a": 1}, "'route' returned"),
        (b"a", "'route' returned b'a'"),
        ([5], r"'route' chose 5, which is none of its successors.*: 'alpha', 'beta'"),
        ([["alpha"]], "'route' chose"),
        ("alpa", r"'route' chose 'alpa', which is none of its successors \(did you mean 'alpha'\?\): 'alpha', 'beta'"),
        (["alpha", "gamma"], "'route' chose 'gamma'"),
        ("below", "'route' chose 'below', which is none of its successors"),
        ("route", "'route' chose 'route'"),
        ("", "'route' chose ''"),
    ],
)
def test_a_condition_that_chooses_what_there_is_not_fails_with_what_there_is(returned: Any, message: str) -> None:
    made = linked(
        [Node.condition("route", lambda context: returned), good("alpha"), good("beta"), good("below")],
        [("route", "alpha"), ("route", "beta"), ("alpha", "below")],
    )
    result = Executor().execute(made)
    with pytest.raises(OutputError, match=message) as caught:
        result["route"]
    assert isinstance(caught.value, GraphbitError)
    assert notes(caught.value) == ["raised by node 'route'"]
    assert result.states == {"route": "failed", "alpha": "skipped", "beta": "skipped", "below": "skipped"}
    assert result.choices == {}


def test_a_condition_without_successors_that_chooses_one_is_told_so() -> None:
    result = Executor().execute(linked([Node.condition("route", lambda context: "a")]))
    with pytest.raises(UnknownNameError, match="chose 'a', which is none of its successors: it has none"):
        result["route"]


def test_a_conditions_own_exception_comes_back_as_itself() -> None:
    def handler(context: Any) -> str:
        raise OwnError

    result = Executor().execute(linked([Node.condition("route", handler), good("a")], [("route", "a")]))
    with pytest.raises(OwnError):
        result["route"]
    assert result.states["a"] == "skipped"


# ---------------------------------------------------------------- a failure nobody looked at


def dropped(result_of: Callable[[], object], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged when the result is dropped."""
    with caplog.at_level(logging.DEBUG, "graphbit"):
        result_of()
        gc.collect()
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_failure_nobody_looked_at_is_logged_when_the_result_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    made = linked([failing("a", OwnError("lost"))])
    assert dropped(lambda: Executor().execute(made) and None, caplog) == [
        "workflow 'w' failed and nobody looked: node 'a': OwnError: lost"
    ]


def test_outputs_alone_do_not_count_as_a_look(caplog: pytest.LogCaptureFixture) -> None:
    made = linked([good("b"), failing("a", OwnError())], [("b", "a")])
    assert len(dropped(lambda: Executor().execute(made).outputs and None, caplog)) == 1
    caplog.clear()
    assert len(dropped(lambda: Executor().execute(made).get("b"), caplog)) == 1
    caplog.clear()
    assert len(dropped(lambda: repr(Executor().execute(made)), caplog)) == 1


@pytest.mark.parametrize(
    "look",
    [
        lambda result: result.errors,
        lambda result: result.is_success(),
        lambda result: result.is_failed(),
        lambda result: result.state(),
        lambda result: result.states,
        lambda result: result.nodes,
        lambda result: result.get_node_response_metadata("a"),
        lambda result: pytest.raises(OwnError, result.raise_for_failure),  # noqa: RUF061
        lambda result: pytest.raises(OwnError, result.__getitem__, "a"),  # noqa: RUF061
    ],
    ids=["errors", "is_success", "is_failed", "state", "states", "nodes", "metadata", "raise_for_failure", "item"],
)
def test_a_failure_somebody_looked_at_is_not_logged(
    look: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = linked([failing("a", OwnError())])
    assert dropped(lambda: look(Executor().execute(made)) and None, caplog) == []


def test_success_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert dropped(lambda: Executor().execute(linked([good("a")])) and None, caplog) == []


def test_a_failure_of_a_run_nobody_waited_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = linked([failing("a", OwnError("alone"))])
    with caplog.at_level(logging.ERROR, "graphbit"):
        Executor().start(made)
        while not caplog.records:  # the last to hold the run is the thread that is told of its end
            threading.Event().wait(0.001)
    assert [it.getMessage() for it in caplog.records] == [
        "workflow 'w' failed and nobody looked: node 'a': OwnError: alone"
    ]


def test_a_failure_with_a_broken_text_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    made = linked([failing("a", BrokenText())])
    found = dropped(lambda: Executor().execute(made) and None, caplog)
    assert len(found) == 1
    assert "BrokenText" in found[0]
