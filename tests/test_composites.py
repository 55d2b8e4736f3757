"""Nodes that start runs of their own: `map`, `workflow`, `loop`, and one workflow run many times."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flows import HOUR, PATIENCE, Held, good, linked, opened, run_by, until

import graphbit
from graphbit import (
    ConfigurationError,
    CycleError,
    Executor,
    InputError,
    LlmConfig,
    Node,
    OutputError,
    RetryPolicy,
    RuntimeClosedError,
    RunTimeoutError,
    UnknownNameError,
    Workflow,
    WorkflowError,
)
from graphbit.runtime import stats
from graphbit.testing import FakeProvider, virtual_time


def mapped(body: Any, items: Any, **options: Any) -> Any:
    result = Executor().execute(linked([Node.map("m", "items", body, **options)]), {"items": items})
    return result.raise_for_failure()["m"]


async def double_later(item: int) -> int:
    await asyncio.sleep(0)
    return 2 * item


async def double_at_once(item: int) -> int:
    return 2 * item


BODIES: dict[str, Callable[[], Any]] = {
    "callable": lambda: lambda item: 2 * item,
    "async": lambda: double_later,
    "async that never waits": lambda: double_at_once,
    "node": lambda: Node.function(lambda item: 2 * item, name="double"),
    "async node": lambda: Node.function(double_later),
    "workflow": lambda: linked([Node.function(lambda item: item, name="a"), Node.function(lambda a: 2 * a, name="b")]),
    "nested map": lambda: linked([Node.function(lambda item: [item], name="a"), Node.map("b", "a", lambda it: 2 * it), Node.function(lambda b: b[0], name="c")]),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------- map


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
@pytest.mark.parametrize("body", list(BODIES))
def test_a_map_brings_what_its_items_brought_in_their_order(body: str, way: str) -> None:
    made = linked([Node.map("m", "items", BODIES[body]()), Node.function(lambda m: sum(m), name="sum")])
    result = run_by(way, made, {"items": list(range(300))})
    assert result.is_success(), result.errors
    assert result["m"] == [2 * i for i in range(300)]
    assert result["sum"] == 2 * sum(range(300))
    assert set(result.states) == {"m", "sum"}


@pytest.mark.parametrize("body", list(BODIES))
def test_a_map_over_nothing_brings_nothing(body: str) -> None:
    assert mapped(BODIES[body](), []) == []


@pytest.mark.parametrize("items", [(1, 2), {1: 0, 2: 0}.keys(), range(1, 3), iter([1, 2]), (it for it in (1, 2))])
def test_a_map_takes_anything_that_can_be_listed(items: Any) -> None:
    assert mapped(lambda item: item, items) == [1, 2]


@pytest.mark.parametrize("items", [None, 5, "text", b"bytes", {"a": 1}, object()])
def test_a_map_over_something_else_fails_and_says_so(items: Any) -> None:
    with pytest.raises(OutputError, match="map node 'm' maps over"):
        mapped(lambda item: item, items)


def test_a_map_over_a_list_that_breaks_off_fails_with_what_broke_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        mapped(lambda item: item, items())


def test_a_map_takes_a_part_of_an_output_and_a_reply(provider: FakeProvider) -> None:
    provider.route("GET", "/page", json={"names": ["a", "b"]})
    nodes = [
        Node.http("page", "GET", provider.url + "/page"),
        Node.map("m", "page.names", lambda item: item.upper()),
        Node.transform("text", "{m}"),
    ]
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert result["m"] == ["A", "B"]
    assert result["text"] == '["A","B"]'


def test_a_maps_body_takes_other_values_beside_the_item() -> None:
    nodes = [
        good("prefix"),
        Node.map("m", "items", lambda item, prefix, end, x="!": prefix + item + end + x, bind={"end": "tail.0"}),
    ]
    result = Executor().execute(linked(nodes), {"items": ["a", "b"], "tail": ["?"]}).raise_for_failure()
    assert result["m"] == ["prefixa?!", "prefixb?!"]


def test_a_node_as_body_refers_to_item_index_and_names_outside() -> None:
    nodes = [good("name"), Node.map("m", "items", Node.transform("body", "{index}: {item.x} {name} {topic}"))]
    result = Executor().execute(linked(nodes), {"items": [{"x": 1}, {"x": "y"}], "topic": "bees"}).raise_for_failure()
    assert result["m"] == ["0: 1 name bees", "1: y name bees"]


def test_an_agent_may_be_the_body_of_a_map(provider: FakeProvider) -> None:
    for name in ("one", "two", "three"):
        provider.reply(name)
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model")
    made = linked([Node.map("m", "items", Node.agent("agent", "Sum up {item}."), 1)])
    result = Executor(config).execute(made, {"items": ["a", "b", "c"]}).raise_for_failure()
    assert result["m"] == ["one", "two", "three"]
    assert [it.json["messages"][0]["content"] for it in provider.requests] == ["Sum up a.", "Sum up b.", "Sum up c."]


@pytest.mark.parametrize("body", ["callable", "async", "node", "workflow"])
@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_items_than_the_limit_are_on_their_way(body: str, limit: int) -> None:
    lock = threading.Lock()
    now = [0, 0]

    def enter() -> None:
        with lock:
            now[0] += 1
            now[1] = max(now)

    def leave() -> None:
        with lock:
            now[0] -= 1

    def plain(item: int) -> int:
        enter()
        leave()
        return item

    async def awaits(item: int) -> int:
        enter()
        for _ in range(3):
            await asyncio.sleep(0)
        leave()
        return item

    whole = linked([
        Node.function(lambda item: (enter(), item)[1], name="first"), Node.delay("pause", 0.0001),
        Node.function(lambda first, pause: (leave(), first)[1], name="last"),
    ], [("first", "pause")])  # fmt: skip
    made = {"callable": plain, "async": awaits, "node": Node.function(plain), "workflow": whole}[body]
    assert mapped(made, list(range(40)), limit=limit) == list(range(40))
    assert now == [0, now[1]]
    assert now[1] <= limit


def test_items_that_wait_for_each_other_run_together() -> None:
    line = threading.Barrier(4)
    assert mapped(lambda item: line.wait(PATIENCE) >= 0, range(8), limit=4) == [True] * 8
    assert mapped(Node.function(lambda item: line.wait(PATIENCE) >= 0, name="n"), range(4)) == [True] * 4


def test_a_hundred_thousand_items_work() -> None:
    assert mapped(lambda item: -item, range(100_000)) == [-i for i in range(100_000)]


def test_ten_thousand_items_whose_body_is_a_node_are_never_all_alive() -> None:
    most = [0]

    def look(item: int) -> int:
        most[0] = max(most[0], stats()["runs_active"])
        return item

    assert mapped(Node.function(look), range(3000)) == list(range(3000))
    assert most[0] <= 70


@pytest.mark.parametrize("body", ["callable", "async", "node", "workflow"])
@pytest.mark.parametrize("way", ["execute", "run_async"])
def test_the_first_item_that_fails_fails_the_map_with_its_own_error(body: str, way: str) -> None:
    error = LookupError("item 3")

    def plain(item: int) -> int:
        if item == 3:
            raise error
        return item

    async def awaits(item: int) -> int:
        await asyncio.sleep(0)
        return plain(item)

    made = {
        "callable": plain, "async": awaits, "node": Node.function(plain),
        "workflow": linked([Node.function(plain), good("other")]),
    }[body]  # fmt: skip
    result = run_by(way, linked([Node.map("m", "items", made), good("after")], [("m", "after")]), {"items": range(20)})
    assert result.states == {"m": "failed", "after": "skipped"}
    assert result.errors["m"] is error
    assert [it.name for it in traceback.extract_tb(error.__traceback__)][-1] == "plain"


@pytest.mark.parametrize("body", ["callable", "async", "node", "workflow"])
def test_errors_may_be_collected_in_the_place_of_what_items_bring(body: str) -> None:
    def plain(item: int) -> int:
        if item % 3 == 0:
            raise LookupError(item)
        return item

    async def awaits(item: int) -> int:
        await asyncio.sleep(0)
        return plain(item)

    made = {
        "callable": plain,
        "async": awaits,
        "node": Node.function(plain),
        "workflow": linked([Node.function(plain)]),
    }[body]
    found = mapped(made, range(30), on_error="collect")
    assert [it if isinstance(it, int) else it.args[0] for it in found] == list(range(30))
    assert [isinstance(it, LookupError) for it in found] == [i % 3 == 0 for i in range(30)]


def test_when_all_items_fail_and_are_collected_the_map_succeeds() -> None:
    found = mapped(lambda item: 1 / 0, range(5), on_error="collect")
    assert [type(it) for it in found] == [ZeroDivisionError] * 5


def test_a_map_is_tried_again_as_a_whole_and_its_items_on_their_own() -> None:
    calls: list[int] = []

    def flaky(item: int) -> int:
        calls.append(item)
        if calls.count(item) < 3:
            raise LookupError
        return item

    assert mapped(Node.function(flaky, retry=RetryPolicy(3, backoff=0)), range(4)) == [0, 1, 2, 3]
    assert sorted(calls) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    calls.clear()
    assert mapped(flaky, [7], retry=RetryPolicy(3, backoff=0)) == [7]
    assert calls == [7, 7, 7]


def test_a_map_falls_back() -> None:
    assert mapped(lambda item: 1 / 0, range(4), fallback="nothing") == "nothing"
    assert (
        mapped(Node.function(lambda item: 1 / 0, name="n"), range(4), fallback=lambda error: type(error))
        is ZeroDivisionError
    )


def test_maps_nest() -> None:
    inner = linked([Node.map("row", "item", lambda it, factor: it * factor, bind=None)])
    made = linked([Node.map("m", "items", inner)])
    result = Executor().execute(made, {"items": [[1, 2], [], [3]], "factor": 10}).raise_for_failure()
    assert result["m"] == [[10, 20], [], [30]]


def test_an_item_may_run_a_workflow_of_its_own() -> None:
    executor = Executor()
    inner = linked([Node.function(lambda x: x + 1, name="n")])
    assert mapped(lambda item: executor.execute(inner, {"x": item})["n"], range(20)) == list(range(1, 21))


def test_ctrl_c_in_an_item_ends_the_run() -> None:
    for body in (lambda item: stop(item), Node.function(lambda item: stop(item), name="n")):
        calls: list[int] = []

        def stop(item: int) -> None:
            calls.append(item)  # noqa: B023 - it is called before the loop goes on
            if item == 2:
                raise KeyboardInterrupt

        executor = Executor()
        with pytest.raises(KeyboardInterrupt):
            executor.execute(
                linked([Node.map("m", "items", body), good("after")], [("m", "after")]), {"items": range(1000)}
            )
        until(lambda: stats()["runs_active"] == 0)
        assert len(calls) < 1000


def test_ctrl_c_in_an_async_item_ends_the_run() -> None:
    async def stop(item: int) -> None:
        await asyncio.sleep(0)
        if item == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Executor().execute(linked([Node.map("m", "items", stop)]), {"items": range(100)})
    until(lambda: stats()["runs_active"] == 0)


@pytest.mark.parametrize("body", ["callable", "async", "node", "workflow"])
@pytest.mark.parametrize("how", ["cancel", "shutdown", "deadline", "failure"])
def test_a_map_ends_with_its_run_and_its_items_with_it(held: Held, body: str, how: str) -> None:
    ended = threading.Event()

    async def awaits(item: int) -> None:
        try:
            held.inside.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    def fails() -> None:
        opened(held.inside)
        raise LookupError("other")

    made = {
        "callable": held,
        "async": awaits,
        "node": Node.function(held, name="n"),
        "workflow": linked([Node.function(held, name="n")]),
    }[body]
    nodes = [Node.map("m", "items", made, 1), good("after")] + ([Node.function(fails)] if how == "failure" else [])
    executor = Executor(timeout_seconds=0.2 if how == "deadline" else None)
    run = executor.start(linked(nodes, [("m", "after")]), {"items": range(10)})
    opened(held.inside)
    if how == "cancel":
        run.cancel()
        result = run.wait(PATIENCE)
    elif how == "shutdown":
        graphbit.shutdown()
        with pytest.raises(RuntimeClosedError):
            run.wait(PATIENCE)
        result = None
    elif how == "deadline":
        with pytest.raises(RunTimeoutError) as caught:
            run.wait(PATIENCE)
        result = caught.value.result
    else:
        result = run.wait(PATIENCE)
    if body == "async":
        opened(ended)
        held.over.set()
    if result is not None:
        assert (result.states["m"], result.states["after"]) == ("cancelled", "cancelled")
        assert set(result.errors) == ({"fails"} if how == "failure" else set())
    until(lambda: stats().get("runs_active", 0) == 0)


def test_a_map_that_asyncio_cancels_is_cancelled() -> None:
    inside = threading.Event()
    seen: list[str] = []

    async def item_body(item: int) -> None:
        try:
            inside.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        task = asyncio.ensure_future(Executor().run_async(linked([Node.map("m", "items", item_body)]), {"items": [1]}))
        while not inside.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not seen:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_the_items_of_a_map_that_failed_are_given_up() -> None:
    ended = threading.Event()
    inside = threading.Event()

    async def body(item: int) -> None:
        if item == 1:
            while not inside.is_set():
                await asyncio.sleep(0)
            raise LookupError("mine")
        try:
            inside.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(LookupError, match="mine"):
        mapped(body, range(2))
    opened(ended)


# -------------------------------------------------------------------------------------------------------------- workflow


def test_a_workflow_is_a_node_and_gets_inputs_of_the_same_name() -> None:
    inner = linked([Node.function(lambda topic, outline: f"{topic}/{outline}", name="text")])
    nodes = [good("outline"), Node.workflow("report", inner), Node.transform("end", "<{report}>")]
    result = Executor().execute(linked(nodes), {"topic": "bees"}).raise_for_failure()
    assert result["end"] == "<bees/outline>"
    assert set(result.states) == {"outline", "report", "end"}


def test_inputs_may_be_named_otherwise_and_be_parts() -> None:
    inner = linked([Node.function(lambda topic, n: (topic, n), name="text")])
    nodes = [
        Node.function(lambda: {"a": [5]}, name="given"),
        Node.workflow("report", inner, {"topic": "subject", "n": "given.a.0"}),
    ]
    assert Executor().execute(linked(nodes), {"subject": "bees"})["report"] == ("bees", 5)
    given = nodes[0]
    other = Node.workflow("report", inner, {"topic": given, "n": given})
    assert Executor().execute(linked([given, other]))["report"] == ({"a": [5]}, {"a": [5]})


def test_a_workflow_brings_its_last_node_or_all_of_them_or_the_one_that_is_named() -> None:
    one = linked([good("a"), Node.function(lambda a: a + "!", name="b")])
    several = linked([good("a"), good("b"), *[Node.condition("route", lambda a: [])], good("c")], [("route", "c")])
    nodes = [Node.workflow("one", one), Node.workflow("named", one, output="a"), Node.workflow("several", several)]
    result = Executor().execute(linked(nodes)).raise_for_failure()
    assert result["one"] == "a!"
    assert result["named"] == "a"
    assert result["several"] == {"b": "b"}  # "c" was skipped
    skipped = Node.workflow("skipped", several, output="c")
    assert Executor().execute(linked([skipped]))["skipped"] is None


def test_a_workflow_that_fails_fails_its_node_with_the_error_itself() -> None:
    error = LookupError("mine")

    def fails() -> None:
        raise error

    deep = linked([Node.function(fails)])
    for depth in range(5):
        deep = linked([Node.workflow(f"level{depth}", deep)])
    result = Executor().execute(deep)
    assert result.errors["level4"] is error
    notes = "".join(getattr(error, "__notes__", []))
    assert "'fails'" in notes and "'level4'" in notes


def test_a_failure_that_the_inner_workflow_handles_is_none() -> None:
    def fails() -> None:
        raise LookupError

    inner = linked([Node.function(fails), Node.function(lambda fails: fails, name="last", join="all_done")])
    result = Executor().execute(linked([Node.workflow("inner", inner)]))
    assert result.is_success()
    assert result["inner"] is None


def test_the_same_workflow_may_be_several_nodes_and_be_run_alone() -> None:
    inner = linked([Node.function(lambda x: x + 1, name="n")])
    nodes = [
        Node.workflow("first", inner),
        Node.workflow("second", inner, {"x": "first"}),
        Node.workflow("third", inner, {"x": "second"}),
    ]
    assert Executor().execute(linked(nodes), {"x": 1})["third"] == 4
    assert Executor().execute(inner, {"x": 1})["n"] == 2


def test_workflows_nest_a_hundred_deep() -> None:
    made = linked([Node.function(lambda x: x, name="innermost")])
    for depth in range(100):
        made = linked([Node.workflow(f"level{depth}", made)])
    for way in ("execute", "run_async"):
        assert run_by(way, made, {"x": 5})["level99"] == 5


def test_a_run_that_is_cancelled_cancels_a_hundred_levels() -> None:
    made = linked([Node.delay("innermost", HOUR)])
    for depth in range(100):
        made = linked([Node.workflow(f"level{depth}", made)])
    run = Executor().start(made)
    until(lambda: stats()["runs_active"] == 101)
    run.cancel()
    assert run.wait(PATIENCE).states == {"level99": "cancelled"}
    until(lambda: stats()["runs_active"] == 0)


def test_many_nested_workflows_run_at_once() -> None:
    inner = linked([Node.delay("pause", 10), good("text")], [("pause", "text")])
    with virtual_time() as clock:
        result = Executor().execute(linked([Node.workflow(f"n{i}", inner) for i in range(200)]))
        assert clock.now() == 10
    assert result.outputs == {f"n{i}": "text" for i in range(200)}


def test_a_nested_workflow_with_async_nodes_runs_on_the_loop_that_awaits() -> None:
    seen: list[asyncio.AbstractEventLoop] = []

    async def look() -> None:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())

    inner = linked([Node.workflow("inner", linked([Node.function(look)]))])

    async def main() -> None:
        (await Executor().run_async(inner)).raise_for_failure()
        assert seen == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_on_error_is_that_of_the_executor() -> None:
    ran: list[str] = []

    def fails() -> None:
        raise LookupError

    inner = linked(
        [Node.function(fails), Node.delay("pause", 5), Node.function(lambda: ran.append("other"), name="other")],
        [("pause", "other")],
    )
    with virtual_time():
        Executor(on_error="continue").execute(linked([Node.workflow("inner", inner)])).is_success()
        assert ran == ["other"]
        Executor().execute(linked([Node.workflow("inner", inner)])).is_success()
        assert ran == ["other"]


# ------------------------------------------------------------------------------------------------------------------ loop


LOOP_BODIES: dict[str, Callable[[], Any]] = {
    "callable": lambda: lambda previous: previous + 1,
    "async": lambda: later_plus_one,
    "node": lambda: Node.function(lambda previous: previous + 1, name="n"),
    "workflow": lambda: linked([Node.function(lambda previous: previous, name="a"), Node.function(lambda a: a + 1, name="b")]),
}  # fmt: skip


async def later_plus_one(previous: int) -> int:
    await asyncio.sleep(0)
    return previous + 1


@pytest.mark.parametrize("way", ["execute", "start", "run_async"])
@pytest.mark.parametrize("body", list(LOOP_BODIES))
def test_a_loop_repeats_until_it_is_good_and_says_so(body: str, way: str) -> None:
    made = linked(
        [
            Node.loop("l", LOOP_BODIES[body](), lambda it: it >= 5, 100, initial="start"),
            Node.function(lambda value: value, name="after", bind={"value": "l"}),
        ]
    )
    result = run_by(way, made, {"start": 0})
    assert result.is_success(), result.errors
    assert result["l"] == result["after"] == 5
    assert (result.nodes["l"].stopped, result.nodes["l"].iterations) == ("until", 5)
    assert (result.nodes["after"].stopped, result.nodes["after"].iterations) == (None, None)


@pytest.mark.parametrize("body", list(LOOP_BODIES))
def test_a_loop_ends_after_so_many_iterations_and_says_so(body: str) -> None:
    made = linked([Node.loop("l", LOOP_BODIES[body](), ("", ">", 100), 7, initial="start")])
    result = Executor().execute(made, {"start": 0}).raise_for_failure()
    assert result["l"] == 7
    assert (result.nodes["l"].stopped, result.nodes["l"].iterations) == ("max_iterations", 7)


def test_until_counts_where_both_would_end_the_loop() -> None:
    result = Executor().execute(linked([Node.loop("l", lambda previous: 1, ("", 1), 1)]))
    assert result.nodes["l"].stopped == "until"


def test_without_an_initial_value_the_first_iteration_gets_none() -> None:
    seen: list[Any] = []
    Executor().execute(linked([Node.loop("l", lambda previous: (seen.append(previous), 1)[1], lambda _: False, 2)]))
    assert seen == [None, 1]


def test_a_loops_node_sees_previous_iteration_and_names_outside() -> None:
    body = Node.transform("body", "{previous}{iteration}{x}")
    made = linked([good("start"), Node.loop("l", body, lambda _: False, 3, initial="start")])
    assert Executor().execute(made, {"x": "-"})["l"] == "start0-1-2-"


def test_a_loop_may_begin_with_a_part_and_take_other_values() -> None:
    made = linked(
        [
            Node.loop(
                "l",
                lambda previous, step, by=1: previous + step * by,
                ("", ">=", 10),
                50,
                initial="given.at",
                bind={"step": "given.step"},
            )
        ]
    )
    result = Executor().execute(made, {"given": {"at": 4, "step": 3}})
    assert result["l"] == 10
    assert result.nodes["l"].iterations == 2


def test_a_loop_whose_body_or_until_fails_fails_with_that() -> None:
    for body, ends in ((lambda previous: 1 / 0, lambda _: True), (lambda previous: 1, lambda _: 1 / 0)):
        result = Executor().execute(linked([Node.loop("l", body, ends, 3)]))
        assert isinstance(result.errors["l"], ZeroDivisionError)
        assert (result.nodes["l"].stopped, result.nodes["l"].iterations) == (None, None)


def test_a_loop_that_is_cancelled_stops_in_the_middle(held: Held) -> None:
    for body in (Node.function(held, name="n", bind={"item": "previous"}), held):
        held.inside.clear(), held.gate.clear(), held.over.clear()
        run = Executor().start(linked([Node.loop("l", body, lambda _: False, 1000)]))
        opened(held.inside)
        run.cancel()
        assert run.wait(PATIENCE).states == {"l": "cancelled"}
        held.gate.set()
        opened(held.over)
        until(lambda: stats()["runs_active"] == 0)


def test_a_loop_of_functions_that_is_cancelled_does_not_go_on() -> None:
    entered = threading.Event()
    gate = threading.Event()
    count = [0]

    def body(previous: Any) -> int:
        count[0] += 1
        entered.set()
        opened(gate)
        return 1

    run = Executor().start(linked([Node.loop("l", body, lambda _: False, 1_000_000)]))
    opened(entered)
    run.cancel()
    assert run.wait(PATIENCE).state() == "Cancelled"
    gate.set()
    until(lambda: stats()["callback_threads_abandoned"] == 0)
    assert count == [1]


def test_ten_thousand_iterations_of_a_node_keep_no_memory_and_no_depth() -> None:
    made = linked(
        [Node.loop("l", Node.function(lambda previous: previous + 1, name="n"), lambda _: False, 3000, initial="x")]
    )
    assert Executor().execute(made, {"x": 0})["l"] == 3000


def test_a_loop_is_tried_again_from_its_beginning() -> None:
    seen: list[Any] = []

    def body(previous: int) -> int:
        seen.append(previous)
        if len(seen) == 3:
            raise LookupError
        return previous + 1

    made = linked([Node.loop("l", body, lambda _: False, 3, initial="x", retry=RetryPolicy(2, backoff=0))])
    assert Executor().execute(made, {"x": 0})["l"] == 3
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_loop_that_stands_in_says_why_it_stopped() -> None:
    loop = Node.loop("instead", lambda previous: 1, lambda _: True, 3)
    result = Executor().execute(linked([Node.loop("l", lambda previous: 1 / 0, lambda _: True, 3, fallback=loop)]))
    assert result["l"] == 1
    assert result.nodes["l"].fallback


def test_composites_hold_no_thread_while_they_wait() -> None:
    inner = linked([Node.delay("hour", HOUR)])
    nodes = [Node.workflow(f"w{i}", inner) for i in range(100)]
    nodes += [Node.loop(f"l{i}", inner, lambda _: False, 2) for i in range(100)]
    run = Executor().start(linked(nodes))
    until(lambda: set(run.states().values()) == {"waiting"})
    assert stats()["callback_threads"] - stats()["callback_threads_parked"] <= 1
    run.cancel()
    assert set(run.wait(PATIENCE).states.values()) == {"cancelled"}


# ------------------------------------------------------------------------------------------------------------- many runs


def many(way: str, executor: Executor, made: Workflow, inputs: Any, limit: int | None = None) -> list[Any]:
    if way == "sync":
        return executor.execute_many(made, inputs, limit)
    return asyncio.run(executor.run_many_async(made, inputs, limit))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_one_workflow_runs_many_times_and_results_stand_in_order(way: str) -> None:
    made = linked(
        [
            Node.function(lambda x: x + 1, name="n"),
            Node.transform("t", "{n}"),
            Node.function(double_later, "d", {"item": "x"}),
        ]
    )
    results = many(way, Executor(), made, [{"x": i} for i in range(500)])
    assert [it["n"] for it in results] == list(range(1, 501))
    assert [it["t"] for it in results] == [str(i) for i in range(1, 501)]
    assert [it["d"] for it in results] == [2 * i for i in range(500)]


@pytest.mark.parametrize("way", ["sync", "async"])
def test_runs_that_fail_are_among_the_results(way: str, caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor()
    made = linked([Node.function(lambda x: 1 / x, name="n")])
    results = many(way, executor, made, [{"x": i % 2} for i in range(10)])
    assert [it.is_success() for it in results] == [False, True] * 5
    assert isinstance(results[0].errors["n"], ZeroDivisionError)
    counted = executor.get_stats()
    assert (counted["successful_executions"], counted["failed_executions"]) == (5, 5)
    del results
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_failed_run_that_nobody_looks_at_is_logged(way: str, caplog: pytest.LogCaptureFixture) -> None:
    made = linked([Node.function(lambda x: 1 / x, name="n")])
    results = many(way, Executor(), made, [{"x": 0}, {"x": 1}])
    del results
    until(lambda: gc.collect() >= 0 and len(caplog.records) == 1)
    assert "nobody looked" in caplog.text


@pytest.mark.parametrize("way", ["sync", "async"])
def test_no_more_runs_than_the_limit_are_on_their_way(way: str) -> None:
    made = linked([Node.delay("pause", 10)])
    with virtual_time() as clock:
        many(way, Executor(), made, [{}] * 12, 3)
        assert clock.now() == 40
        many(way, Executor(), made, [{}] * 12)
        assert clock.now() == 50


def test_each_of_many_runs_has_its_own_time() -> None:
    with virtual_time() as clock:
        made = linked([Node.delay("pause", 10)])
        results = Executor(timeout_seconds=15).execute_many(made, [{}] * 4, 1)
        assert clock.now() == 40
        assert all(it.is_success() for it in results)
        results = Executor(timeout_seconds=5).execute_many(made, [{}] * 4, 1)
        assert [it.state() for it in results] == ["TimedOut"] * 4


def test_no_runs_are_no_results() -> None:
    assert Executor().execute_many(linked([good("a")]), []) == []
    assert asyncio.run(Executor().run_many_async(linked([good("a")]), [])) == []


def test_inputs_are_checked_before_anything_starts() -> None:
    ran: list[Any] = []
    made = linked([Node.function(lambda x: ran.append(x), name="n")])
    for inputs in ([{"x": 1}, {"y": 1}], [{"x": 1}, {}], [{"x": 1}, 5]):
        with pytest.raises(InputError):
            Executor().execute_many(made, inputs)  # type: ignore[arg-type]
    for bad in (5, {"x": 1}, "text", None):
        with pytest.raises(InputError):
            Executor().execute_many(made, bad)  # type: ignore[arg-type]
    for limit in (0, -1, 1.5, True):
        with pytest.raises(ConfigurationError, match="limit"):
            Executor().execute_many(made, [{"x": 1}], limit)  # type: ignore[arg-type]
    assert ran == []


def test_ctrl_c_in_one_of_many_runs_ends_all_of_them() -> None:
    ran: list[int] = []

    def stop(x: int) -> None:
        ran.append(x)
        if x == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Executor().execute_many(linked([Node.function(stop)]), [{"x": i} for i in range(1000)], 1)
    assert ran == [0, 1, 2, 3]
    until(lambda: stats()["runs_active"] == 0)


def test_many_runs_that_asyncio_cancels_are_cancelled() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(Executor().run_many_async(linked([Node.delay("hour", HOUR)]), [{}] * 100))
        while stats().get("runs_active", 0) < 101:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: stats()["runs_active"] == 0)


# -------------------------------------------------------------------------------------------------------- what is kept


class Payload:
    pass


@pytest.mark.parametrize("body", ["callable", "async", "node", "workflow"])
def test_what_items_brought_goes_with_the_result(body: str) -> None:
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()

    def make(item: Any) -> Payload:
        it = Payload()
        alive.add(it)
        if item == 3:
            raise LookupError(it)
        return it

    async def awaits(item: Any) -> Payload:
        await asyncio.sleep(0)
        return make(item)

    made = {"callable": make, "async": awaits, "node": Node.function(make), "workflow": linked([Node.function(make)])}[
        body
    ]
    for on_error in ("fail", "collect"):
        workflow = linked([Node.map("m", "items", made, on_error=on_error)])  # type: ignore[arg-type]
        result = Executor().execute(workflow, {"items": [Payload(), 1, 2, 3]})
        result.is_success()
        assert alive
        del result
        until(lambda: gc.collect() >= 0 and not alive)


# -------------------------------------------------------------------------------------------------------------- bad input


def test_bodies_that_cannot_be_are_refused_with_the_node_named() -> None:
    makers: list[Callable[[Any], Node]] = [
        lambda body: Node.map("m", "items", body), lambda body: Node.loop("m", body, lambda _: True, 3),
    ]  # fmt: skip
    for make in makers:
        for body in (5, None, "text", [], lambda: 1, Workflow("empty")):
            with pytest.raises(ConfigurationError, match="'m'"):
                make(body)
        with pytest.raises(WorkflowError):
            make(str)  # does not say which parameters it has


def test_options_that_cannot_be_are_refused_with_the_node_named() -> None:
    def body(item: Any) -> Any:
        return item

    for limit in (0, -1, 1.5, True, "3", 1 << 31):
        with pytest.raises(ConfigurationError, match="'m'"):
            Node.map("m", "items", body, limit)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="on_error"):
        Node.map("m", "items", body, on_error="ignore")  # type: ignore[arg-type]
    for over in (5, None, "", ["items"]):
        with pytest.raises(InputError, match="over"):
            Node.map("m", over, body)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="itm"):
        Node.map("m", "items", body, bind={"itm": "x"})
    for most in (0, -1, 1.5, True, None):
        with pytest.raises(ConfigurationError, match="max_iterations"):
            Node.loop("m", body, lambda _: True, most)  # type: ignore[arg-type]
    for ends in (5, None, ("x", "~", 1), ()):
        with pytest.raises(ConfigurationError, match="until"):
            Node.loop("m", body, ends, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="initial"):
        Node.loop("m", body, lambda _: True, 3, initial=5)  # type: ignore[arg-type]


def test_an_async_until_is_refused() -> None:
    async def ends(_: Any) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="async"):
        Node.loop("m", lambda previous: 1, ends, 3)


def test_workflows_that_cannot_be_are_refused_with_the_node_named() -> None:
    inner = linked([Node.transform("text", "{topic}")])
    for workflow in (5, None, lambda: 1, good("a"), Workflow("empty")):
        with pytest.raises(ConfigurationError, match="'n'"):
            Node.workflow("n", workflow)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'topic'"):
        Node.workflow("n", inner, {"topik": "x"})
    with pytest.raises(UnknownNameError, match="did you mean 'text'"):
        Node.workflow("n", inner, output="txt")
    with pytest.raises(CycleError):
        Node.workflow("n", linked([good("a"), good("b")], [("a", "b"), ("b", "a")]))


def test_a_workflow_within_itself_is_refused() -> None:
    made = linked([good("a")])
    made.add(Node.workflow("again", made))
    with pytest.raises(WorkflowError, match="again"):
        Executor().execute(made)
    first, second = linked([good("a")]), linked([good("b")])
    first.add(Node.workflow("second", second))
    second.add(Node.workflow("first", first))
    with pytest.raises(WorkflowError):
        Executor().execute(first)


def test_a_workflow_that_is_changed_after_it_became_a_node_runs_as_it_is_or_says_what_is_missing() -> None:
    inner = linked([good("a")])
    outer = linked([Node.workflow("n", inner)])
    assert Executor().execute(outer)["n"] == "a"
    inner.add(Node.function(lambda a, new: (a, new), name="b"))
    try:
        result = Executor().execute(outer)
    except WorkflowError:
        return
    assert (result.is_failed() and isinstance(result.errors["n"], WorkflowError)) or result["n"] == "a"
