"""What nodes remember: `cache=` on functions, agents and HTTP nodes."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from flows import PATIENCE, linked

from graphbit import (
    Cache,
    ConfigurationError,
    Executor,
    HttpOptions,
    LlmConfig,
    Node,
    RefusedError,
    RetryPolicy,
    Workflow,
)
from graphbit.testing import FakeProvider


def run(node: Node, executor: Executor | None = None, **inputs: Any) -> Any:
    return (executor or Executor()).execute(linked([node]), inputs).raise_for_failure()[node.name()]


class Counted:
    """A function of x that counts its calls."""

    def __init__(self, work: Callable[[Any], Any] = lambda x: (x,)) -> None:
        self.calls: list[Any] = []
        self.work = work

    def __call__(self, x: Any) -> Any:
        self.calls.append(x)
        return self.work(x)


def test_without_a_cache_a_function_is_called_each_time() -> None:
    counted = Counted()
    node = Node.function(counted, "n")
    assert run(node, x=1) == run(node, x=1) == (1,)
    assert counted.calls == [1, 1]


def test_a_function_is_called_once_for_the_same_arguments() -> None:
    counted = Counted()
    node = Node.function(counted, "n", cache=True)
    first = run(node, x=1)
    assert run(node, x=1) is first
    assert run(node, x=2) == (2,)
    assert run(node, x=1) is first
    assert counted.calls == [1, 2]


def test_an_async_function_is_remembered_too() -> None:
    counted = Counted()

    async def later(x: int) -> Any:
        await asyncio.sleep(0)
        return counted(x)

    node = Node.function(later, cache=True)
    assert run(node, x=1) == run(node, x=1) == (1,)
    assert asyncio.run(Executor().run_async(linked([node]), {"x": 1}))["later"] == (1,)
    assert counted.calls == [1]


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_whatever_was_returned_is_remembered(value: Any) -> None:
    counted = Counted(lambda _: value)
    node = Node.function(counted, "n", cache=True)
    assert run(node, x=1) == run(node, x=1) == value
    assert counted.calls == [1]


def test_failures_are_not_remembered() -> None:
    def work(x: int) -> int:
        if len(counted.calls) < 3:
            raise LookupError(x)
        return x

    counted = Counted(work)
    node = Node.function(counted, "n", cache=True)
    assert isinstance(Executor().execute(linked([node]), {"x": 1}).errors["n"], LookupError)
    assert isinstance(Executor().execute(linked([node]), {"x": 1}).errors["n"], LookupError)
    assert run(node, x=1) == run(node, x=1) == 1
    assert counted.calls == [1, 1, 1]


def test_a_node_that_is_tried_again_remembers_what_it_brought_in_the_end() -> None:
    def work(x: int) -> int:
        if len(counted.calls) < 3:
            raise LookupError(x)
        return x

    counted = Counted(work)
    node = Node.function(counted, "n", cache=True, retry=RetryPolicy(3, backoff=0))
    assert run(node, x=1) == run(node, x=1) == 1
    assert len(counted.calls) == 3


def test_a_fallback_is_not_remembered() -> None:
    counted = Counted(lambda x: 1 / x)
    node = Node.function(counted, "n", cache=True, fallback="nothing")
    assert run(node, x=0) == run(node, x=0) == "nothing"
    assert counted.calls == [0, 0]


@pytest.mark.parametrize("x", [[1, [2]], {"a": [1]}, {1, 2}, bytearray(b"x")])
def test_arguments_that_cannot_be_hashed_are_found_by_what_they_hold(x: Any) -> None:
    import copy

    counted = Counted(lambda it: str(it))
    node = Node.function(counted, "n", cache=True)
    assert run(node, x=x) == run(node, x=copy.deepcopy(x))
    assert len(counted.calls) == 1


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), (0, False), ("1", 1), ([1], [True]), ((1,), (True,))])
def test_arguments_of_other_types_are_other_arguments(a: Any, b: Any) -> None:
    node = Node.function(lambda x: repr(x), "n", cache=True)
    assert run(node, x=a) == repr(a)
    assert run(node, x=b) == repr(b)


def test_arguments_that_can_be_neither_hashed_nor_pickled_fail_the_node_and_name_the_remedy() -> None:
    node = Node.function(lambda x: 1, "n", cache=True)
    result = Executor().execute(linked([node]), {"x": [lambda: 1]})
    assert isinstance(result.errors["n"], ConfigurationError)
    assert "Cache(key=" in str(result.errors["n"])


def test_a_key_may_be_made_of_the_arguments() -> None:
    counted = Counted(lambda x: len(x))
    node = Node.function(counted, "n", cache=Cache(key=lambda x: len(x)))
    assert run(node, x=[lambda: 1]) == run(node, x="a") == 1
    assert run(node, x="ab") == 2
    assert len(counted.calls) == 2


def test_a_key_that_cannot_be_made_fails_the_node() -> None:
    result = Executor().execute(linked([Node.function(lambda x: 1, "n", cache=Cache(key=lambda x: 1 / x))]), {"x": 0})
    assert isinstance(result.errors["n"], ZeroDivisionError)
    result = Executor().execute(linked([Node.function(lambda x: 1, "n", cache=Cache(key=lambda x: [x]))]), {"x": 0})
    assert result.is_failed()


def test_nodes_share_a_cache_and_functions_are_told_apart() -> None:
    cache = Cache()
    one, other = Counted(lambda x: "one"), Counted(lambda x: "other")
    assert run(Node.function(one, "a", cache=cache), x=1) == "one"
    assert run(Node.function(other, "a", cache=cache), x=1) == "other"
    assert run(Node.function(one, "b", cache=cache), x=1) == "one"
    assert (len(one.calls), len(other.calls)) == (1, 1)
    assert (cache.hits, cache.misses) == (1, 2)


def test_nodes_with_cache_true_do_not_share() -> None:
    counted = Counted()
    run(Node.function(counted, "a", cache=True), x=1)
    run(Node.function(counted, "b", cache=True), x=1)
    assert len(counted.calls) == 2


def test_the_least_recently_used_goes_first() -> None:
    counted = Counted()
    node = Node.function(counted, "n", cache=Cache(2))
    for x in (1, 2, 1, 3, 1, 2):
        run(node, x=x)
    assert counted.calls == [1, 2, 3, 2]


def test_an_entry_that_is_too_old_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counted = Counted()
    cache = Cache(ttl=60)

    def call() -> None:
        key, _, known = cache.find(counted, (1,), {})
        if not known:
            cache.keep(key, counted(1))

    call()
    now[0] += 59
    call()
    assert len(counted.calls) == 1
    now[0] += 2
    call()
    assert len(counted.calls) == 2


def test_a_cache_may_be_cleared() -> None:
    counted, cache = Counted(), Cache()
    node = Node.function(counted, "n", cache=cache)
    run(node, x=1)
    cache.clear()
    run(node, x=1)
    assert counted.calls == [1, 1]


def test_keywords_and_defaults_belong_to_the_arguments() -> None:
    calls: list[tuple[Any, ...]] = []

    def work(x: int, *, y: int, z: int = 3) -> tuple[int, int, int]:
        calls.append((x, y, z))
        return x, y, z

    node = Node.function(work, cache=True)
    assert run(node, x=1, y=2) == run(node, x=1, y=2) == (1, 2, 3)
    assert run(node, x=2, y=1) == (2, 1, 3)
    assert calls == [(1, 2, 3), (2, 1, 3)]


def test_many_threads_may_use_a_cache_at_once() -> None:
    cache = Cache(50)
    node = Node.function(lambda x: x * 2, "n", cache=cache)
    executor = Executor()
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for i in range(200):
            x = (i * seed) % 97
            if run(node, executor, x=x) != 2 * x:
                wrong.append(x)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for it in threads:
        it.start()
    for it in threads:
        it.join(PATIENCE)
    assert wrong == []
    assert cache.hits + cache.misses == 800


def test_bodies_of_maps_remember() -> None:
    counted = Counted()
    body = Node.function(counted, "n", bind={"x": "item"}, cache=True)
    made = linked([Node.map("m", "items", body, 1)])
    assert Executor().execute(made, {"items": [1, 2, 1, 2]})["m"] == [(1,), (2,), (1,), (2,)]
    assert counted.calls == [1, 2]


def test_what_a_cache_holds_goes_with_it() -> None:
    class Payload:
        pass

    alive: weakref.WeakSet[Payload] = weakref.WeakSet()

    def make(x: int) -> Payload:
        it = Payload()
        alive.add(it)
        return it

    node: Any = Node.function(make, cache=True)
    run(node, x=1)
    gc.collect()
    assert len(alive) == 1
    del node
    gc.collect()
    assert len(alive) == 0


# ---------------------------------------------------------------------------------------------------- agents and HTTP nodes


def test_an_agent_asks_once_for_the_same_request(provider: FakeProvider) -> None:
    provider.reply("one")
    provider.reply("two")
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model")
    node = Node.agent("agent", "Sum up {x}.", llm_config=config, cache=True)
    assert run(node, x="a") == "one"
    assert run(node, x="b") == "two"
    assert run(node, x="a") == "one"
    assert asyncio.run(Executor().run_async(linked([node]), {"x": "b"}))["agent"] == "two"
    assert len(provider.requests) == 2


def test_agents_share_a_cache_but_not_across_models_temperatures_and_accounts(provider: FakeProvider) -> None:
    for name in ("one", "two", "three", "four"):
        provider.reply(name)
    cache = Cache()
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", api_key="first")
    account = LlmConfig.openai_compatible(provider.base_url, "fake-model", api_key="second")
    model = LlmConfig.openai_compatible(provider.base_url, "other-model", api_key="first")
    assert run(Node.agent("agent", "Hi.", llm_config=config, cache=cache)) == "one"
    assert run(Node.agent("again", "Hi.", llm_config=config, cache=cache)) == "one"
    assert run(Node.agent("agent", "Hi.", llm_config=model, cache=cache)) == "two"
    assert run(Node.agent("agent", "Hi.", llm_config=config, cache=cache, temperature=1.0)) == "three"
    assert run(Node.agent("agent", "Hi.", llm_config=account, cache=cache)) == "four"
    assert len(provider.requests) == 4


def test_failed_requests_are_not_remembered(provider: FakeProvider) -> None:
    provider.fail(429)
    provider.reply("hello")
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0)
    node = Node.agent("agent", "Hi.", llm_config=config, cache=True)
    assert Executor().execute(linked([node])).is_failed()
    assert run(node) == run(node) == "hello"
    assert len(provider.requests) == 2


def test_a_page_is_fetched_once(provider: FakeProvider) -> None:
    provider.route("GET", "/page/a", json={"n": 1})
    provider.route("GET", "/page/b", json={"n": 2})
    node = Node.http("page", "GET", provider.url + "/page/{x}", json_path="n", cache=True)
    assert [run(node, x=it) for it in "abab"] == [1, 2, 1, 2]
    assert len(provider.requests) == 2


def test_a_cache_of_requests_may_be_cleared_and_forgets_the_oldest(provider: FakeProvider) -> None:
    provider.route("GET", "/page/a", text="a")
    provider.route("GET", "/page/b", text="b")
    cache = Cache(1)
    node = Node.http("page", "GET", provider.url + "/page/{x}", cache=cache)
    for x in "aab":
        run(node, x=x)
    assert len(provider.requests) == 2
    run(node, x="a")
    assert len(provider.requests) == 3
    cache.clear()
    run(node, x="a")
    assert len(provider.requests) == 4


def test_a_cache_may_hold_functions_and_requests_together(provider: FakeProvider) -> None:
    provider.route("GET", "/page", text="page")
    cache, counted = Cache(), Counted()
    nodes = [
        Node.http("page", "GET", provider.url + "/page", cache=cache),
        Node.function(counted, "n", {"x": "page"}, cache=cache),
    ]
    for _ in range(3):
        assert Executor().execute(linked(nodes)).outputs == {"page": "page", "n": ("page",)}
    assert (len(provider.requests), counted.calls) == (1, ["page"])


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments",
    [{"max_entries": 0}, {"max_entries": -1}, {"max_entries": 1.5}, {"max_entries": True}, {"max_entries": 1 << 32}, {"ttl": 0},
     {"ttl": -1}, {"ttl": "60"}, {"ttl": True}, {"ttl": float("nan")}, {"key": 3}],
)  # fmt: skip
def test_a_cache_that_makes_no_sense_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Cache(**arguments)


def test_what_is_no_cache_is_refused_with_the_node_named() -> None:
    for cache in (1, "yes", {}, Cache):
        with pytest.raises(ConfigurationError, match="node 'n'"):
            Node.function(lambda: 1, "n", cache=cache)  # type: ignore[arg-type]


def test_a_key_of_idempotency_is_no_difference(provider: FakeProvider) -> None:
    provider.default = "fine"
    config = LlmConfig.openai("sk-" + "x" * 40, "m", provider.base_url)
    cache = Cache()
    for _ in range(3):
        made = Workflow("w")
        made.add(Node.agent("a", "hi", cache=cache))
        assert Executor(config).execute(made)["a"] == "fine"
    assert len(provider.requests) == 1


def test_what_one_way_brought_is_not_given_to_another(provider: FakeProvider) -> None:
    provider.route("GET", "/secret", text="inside")
    cache = Cache()

    def fetched(**options: Any) -> Any:
        made = Workflow("w")
        made.add(Node.http("page", "GET", provider.url + "/secret", cache=cache, **options))
        return Executor().execute(made)["page"]

    assert fetched() == fetched() == "inside"
    assert len(provider.requests) == 1
    with pytest.raises(RefusedError):
        fetched(http=HttpOptions(public_only=True))
