"""Maps: one body for each item of a list."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flows import PATIENCE, Held, double_later, good, linked, opened, run_by, until

import graphbit
from graphbit import (
    Executor,
    LlmConfig,
    Node,
    OutputError,
    RetryPolicy,
    RuntimeClosedError,
    RunTimeoutError,
)
from graphbit.runtime import stats
from graphbit.testing import FakeProvider


def mapped(body: Any, items: Any, **options: Any) -> Any:
    result = Executor().execute(linked([Node.map("m", "items", body, **options)]), {"items": items})
    return result.raise_for_failure()["m"]


BODIES: dict[str, Callable[[], Any]] = {
    "callable": lambda: lambda item: 2 * item,
    "async": lambda: double_later,
    "async that never waits": lambda: double_at_once,
    "node": lambda: Node.function(lambda item: 2 * item, name="double"),
    "async node": lambda: Node.function(double_later),
    "workflow": lambda: linked([Node.function(lambda item: item, name="a"), Node.function(lambda a: 2 * a, name="b")]),
    "nested map": lambda: linked([Node.function(lambda item: [item], name="a"), Node.map("b", "a", lambda it: 2 * it), Node.function(lambda b: b[0], name="c")]),
}  # fmt: skip


async def double_at_once(item: int) -> int:
    return 2 * item


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
