"""Coalescing: of equal requests on their way one is sent and all get its answer; one that fails does not fail the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from flows import linked, patiently, until

import graphbit
from graphbit import (
    Admission,
    AuthenticationError,
    BadRequestError,
    Cache,
    Executor,
    LlmClient,
    LlmConfig,
    Node,
    RateLimitError,
    RequestTimeoutError,
    RuntimeClosedError,
    ServerError,
)
from graphbit.runtime import stats
from graphbit.testing import FakeProvider, virtual_time

COALESCE = Admission(coalesce=True)


def config_for(provider: FakeProvider, model: str = "fake-model", **options: Any) -> LlmConfig:
    made: dict[str, Any] = {"max_retries": 0, "admission": COALESCE, **options}
    return LlmConfig.openai_compatible(provider.base_url, model, **made)


@pytest.fixture
def client(provider: FakeProvider) -> LlmClient:
    provider.default = lambda request: request.prompt.upper()
    return LlmClient(config_for(provider))


def row_of(client: LlmClient) -> Any:
    return client.get_stats()["admission"] or {"coalesced": 0}


def followers(client: LlmClient, count: int) -> None:
    """Waits until so many have followed."""
    until(lambda: row_of(client)["coalesced"] >= count)


def in_background(call: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def asked(client: LlmClient, prompt: str = "hello") -> Future[str]:
    return in_background(lambda: client.complete(prompt))


def assert_idle() -> None:
    counts = stats()
    assert (counts["calls_active"], counts["requests_in_flight"], counts["requests_queued"]) == (0, 0, 0)


def test_a_hundred_equal_calls_are_one_request_and_a_hundred_answers(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()
    batch = in_background(lambda: client.complete_batch_sync(["hello"] * 100))
    followers(client, 99)
    provider.release()
    assert batch.result(20) == ["HELLO"] * 100
    assert len(provider.requests) == 1
    row = row_of(client)
    assert (row["coalesced"], row["admitted"], row["in_flight"]) == (99, 1, 0)
    assert client.complete("hello") == "HELLO" and len(provider.requests) == 2  # nothing is kept


def test_threads_and_loops_share_as_well(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()
    calls = [asked(client) for _ in range(4)]
    calls += [in_background(lambda: asyncio.run(client.complete_async("hello"))) for _ in range(4)]
    followers(client, 7)
    provider.release()
    assert [call.result(20) for call in calls] == ["HELLO"] * 8
    assert len(provider.requests) == 1


def test_followers_are_told_all_that_the_leader_is(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()
    provider.reply("hi", tool_calls=[("weather", {"city": "Oslo"})], usage={"prompt_tokens": 3, "completion_tokens": 4})
    calls = [in_background(lambda: client.complete_full("hello")) for _ in range(5)]
    followers(client, 4)
    provider.release()
    first, *others = [call.result(20) for call in calls]
    assert first.usage.total_tokens == 7 and first.tool_calls[0].name == "weather" and first.id
    for other in others:
        assert (other.content, other.id, other.model, other.finish_reason, other.attempts) == (
            first.content,
            first.id,
            first.model,
            first.finish_reason,
            1,
        )
        assert other.usage == first.usage and other.tool_calls == first.tool_calls


def test_what_differs_is_not_shared(provider: FakeProvider) -> None:
    provider.default = lambda request: f"{request.model} {request.headers['authorization']} {request.prompt}"
    base = config_for(provider, api_key="sk-one")
    others = [
        config_for(provider, "other-model", api_key="sk-one"),
        config_for(provider, api_key="sk-two"),
        config_for(provider, api_key="sk-one", headers={"x-tenant": "other"}),
        config_for(provider, api_key="sk-one", timeout=17.0),
        config_for(provider, api_key="sk-one", admission=True),
    ]
    provider.models = ("fake-model", "other-model")
    provider.hold()
    calls = [asked(LlmClient(config)) for config in [base, *others]] + [asked(LlmClient(base), "another prompt")]
    provider.wait_for_requests(len(calls))
    provider.release()
    answers = [call.result(20) for call in calls]
    assert answers[0] == "fake-model Bearer sk-one hello"
    assert answers[1] == "other-model Bearer sk-one hello"
    assert answers[2] == "fake-model Bearer sk-two hello"
    assert answers[-1] == "fake-model Bearer sk-one another prompt"
    assert (
        sum(row["coalesced"] for row in graphbit.http_stats()["admission"] if row["base_url"] == provider.base_url) == 0
    )


def test_the_random_key_of_a_request_makes_no_difference(provider: FakeProvider) -> None:
    provider.default = "fine"
    client = LlmClient(LlmConfig.openai("sk-0123456789abcdefghij", base_url=provider.base_url, admission=COALESCE))
    provider.hold()
    calls = [asked(client) for _ in range(3)]
    followers(client, 2)
    provider.release()
    assert [call.result(20) for call in calls] == ["fine"] * 3
    assert len(provider.requests) == 1 and "idempotency-key" in provider.requests[0].headers


@pytest.mark.parametrize(
    ("status", "error"), [(500, ServerError), (429, RateLimitError), (400, BadRequestError), (401, AuthenticationError)]
)
def test_a_leader_that_fails_does_not_fail_its_followers(
    client: LlmClient, provider: FakeProvider, status: int, error: type[Exception]
) -> None:
    provider.hold()
    provider.fail(status, retry_after=0.01 if status == 429 else None)
    leader = asked(client)
    provider.wait_for_requests(1)
    calls = [asked(client) for _ in range(10)]
    followers(client, 10)
    provider.release()
    with pytest.raises(error):
        leader.result(20)
    assert [call.result(20) for call in calls] == ["HELLO"] * 10
    assert len(provider.requests) == 2  # the first of them led the others
    assert_idle()


def test_when_all_fail_each_has_tried(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()
    provider.fail(400, times=None)
    calls = [asked(client) for _ in range(5)]
    followers(client, 4)
    provider.release()
    for call in calls:
        with pytest.raises(BadRequestError):
            call.result(20)
    assert len(provider.requests) == 5
    assert_idle()


def test_a_leader_that_is_cancelled_does_not_fail_its_followers(client: LlmClient, provider: FakeProvider) -> None:
    async def main() -> list[str]:
        provider.hold()
        leader = asyncio.ensure_future(client.complete_async("hello"))
        await asyncio.to_thread(provider.wait_for_requests, 1)
        others = [asyncio.ensure_future(client.complete_async("hello")) for _ in range(10)]
        await asyncio.to_thread(followers, client, 10)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        await asyncio.to_thread(provider.wait_for_requests, 2)
        provider.release()
        return list(await patiently(asyncio.gather(*others)))

    assert asyncio.run(main()) == ["HELLO"] * 10
    assert len(provider.requests) == 2 and provider.requests[0].aborted
    assert_idle()


def test_a_follower_that_is_cancelled_leaves_the_others_alone(client: LlmClient, provider: FakeProvider) -> None:
    async def main() -> list[str]:
        provider.hold()
        calls = [asyncio.ensure_future(client.complete_async("hello")) for _ in range(10)]
        await asyncio.to_thread(followers, client, 9)
        gone = [calls.pop(4), calls.pop()]  # one of them the last
        for call in gone:
            call.cancel()
        for call in gone:
            with pytest.raises(asyncio.CancelledError):
                await call
        until(lambda: stats()["calls_active"] == 8)
        provider.release()
        return list(await patiently(asyncio.gather(*calls)))

    assert asyncio.run(main()) == ["HELLO"] * 8
    assert len(provider.requests) == 1 and not provider.requests[0].aborted
    assert_idle()


def test_a_leader_that_takes_too_long_does_not_fail_its_followers(provider: FakeProvider) -> None:
    provider.default = "fine"
    provider.stall()
    config = config_for(provider, timeout=0.3)
    client = LlmClient(config)
    leader = asked(client)
    provider.wait_for_requests(1)
    calls = [asked(client) for _ in range(5)]
    followers(client, 5)
    with pytest.raises(RequestTimeoutError):
        leader.result(20)
    assert [call.result(20) for call in calls] == ["fine"] * 5
    assert len(provider.requests) == 2


def test_a_leader_that_is_tried_again_takes_its_followers_along(provider: FakeProvider) -> None:
    provider.default = "fine"
    provider.hold()
    provider.fail(500)
    client = LlmClient(config_for(provider, max_retries=2))
    calls = [in_background(lambda: client.complete_full("hello")) for _ in range(5)]
    followers(client, 4)
    provider.release()
    assert [(call.result(20).content, call.result(20).attempts) for call in calls] == [("fine", 2)] * 5
    assert len(provider.requests) == 2


def test_streams_are_not_shared(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()
    leader = asked(client)
    streams = [in_background(lambda: "".join(client.stream("hello"))) for _ in range(2)]
    provider.wait_for_requests(3)
    provider.release()
    assert [call.result(20) for call in [leader, *streams]] == ["HELLO"] * 3
    assert row_of(client)["coalesced"] == 0


def test_agents_of_one_run_and_of_many_share(provider: FakeProvider) -> None:
    provider.default = "fine"
    client = LlmClient(config_for(provider))
    made = linked([Node.agent(f"a{i}", "hello", llm_config=config_for(provider)) for i in range(10)])
    provider.hold()
    runs = [Executor().start(made) for _ in range(5)]
    followers(client, 49)
    runs.pop().cancel()
    provider.release()
    for run in runs:
        result = run.wait(20).raise_for_failure()
        assert [result[f"a{i}"] for i in range(10)] == ["fine"] * 10
    assert len(provider.requests) == 1


def test_a_run_that_is_stopped_while_it_leads_leaves_the_others_to_themselves(provider: FakeProvider) -> None:
    provider.default = "fine"
    client = LlmClient(config_for(provider))
    made = linked([Node.agent("a", "hello", llm_config=config_for(provider))])
    provider.hold()
    first = Executor().start(made)
    provider.wait_for_requests(1)
    others = [Executor().start(made) for _ in range(3)]
    followers(client, 3)
    first.cancel()
    assert first.wait(20).nodes["a"].state == "cancelled"
    provider.wait_for_requests(2)
    provider.release()
    assert [run.wait(20).raise_for_failure()["a"] for run in others] == ["fine"] * 3
    assert len(provider.requests) == 2


def test_a_run_without_time_left_does_not_wait_for_its_leader(provider: FakeProvider) -> None:
    client = LlmClient(config_for(provider))
    provider.default = "fine"
    provider.hold()
    leader = asked(client)
    provider.wait_for_requests(1)
    made = linked([Node.agent("a", "hello", llm_config=config_for(provider))])
    with pytest.raises(graphbit.RunTimeoutError):
        Executor(timeout_seconds=0.2).execute(made)
    assert row_of(client)["coalesced"] == 1
    provider.release()
    assert leader.result(20) == "fine" and len(provider.requests) == 1


def test_who_comes_back_from_a_pause_does_not_wait_for_a_permit_of_those_that_follow(provider: FakeProvider) -> None:
    """The leader backs off and gives its permit of "agent" to a follower, which waits for the leader's answer."""
    provider.default = "fine"
    provider.fail(500)
    config = config_for(provider, max_retries=3)
    made = linked([Node.agent(f"a{i}", "hello", llm_config=config) for i in range(4)])
    result = Executor(limits={"agent": 1}).start(made).wait(20).raise_for_failure()
    assert [result[f"a{i}"] for i in range(4)] == ["fine"] * 4


def test_an_answer_that_was_shared_is_kept_in_the_cache_of_each(provider: FakeProvider) -> None:
    provider.default = "fine"
    client = LlmClient(config_for(provider))
    caches = [Cache(), Cache()]
    made = [linked([Node.agent("a", "hello", llm_config=config_for(provider), cache=cache)]) for cache in caches]
    provider.hold()
    runs = [Executor().start(one) for one in made]
    followers(client, 1)
    provider.release()
    assert [run.wait(20).raise_for_failure()["a"] for run in runs] == ["fine"] * 2
    graphbit.shutdown()
    assert [Executor().execute(one)["a"] for one in made] == ["fine"] * 2
    assert len(provider.requests) == 1


def test_a_large_answer_is_shared_too(provider: FakeProvider) -> None:
    text = "x" * 300_000
    provider.default = text
    client = LlmClient(config_for(provider))
    provider.hold()
    calls = [asked(client) for _ in range(10)]
    followers(client, 9)
    provider.release()
    assert [call.result(20) == text for call in calls] == [True] * 10
    assert len(provider.requests) == 1
    assert_idle()


def test_a_shutdown_ends_leader_and_followers(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()
    calls = [asked(client) for _ in range(20)]
    followers(client, 19)
    graphbit.shutdown()
    for call in calls:
        with pytest.raises(RuntimeClosedError):
            call.result(20)
    assert len(provider.requests) == 1


def test_in_virtual_time_the_clock_moves_while_others_follow(provider: FakeProvider) -> None:
    """A leader backs off for as long as the server says; its followers do not keep the clock from moving."""
    provider.default = "fine"
    provider.fail(503, retry_after=100)
    made = linked([Node.agent(f"a{i}", "hello", llm_config=config_for(provider, max_retries=2)) for i in range(5)])
    with virtual_time() as clock:
        result = Executor().execute(made).raise_for_failure()
        assert [result[f"a{i}"] for i in range(5)] == ["fine"] * 5
        assert 100 <= clock.now() < 300
        assert Executor().execute(linked([Node.delay("d", 3600)])).duration == 3600  # nobody was left busy
    assert len(provider.requests) == 2


def test_a_runs_deadline_comes_in_virtual_time_too(provider: FakeProvider) -> None:
    provider.hold()
    provider.fail(503, retry_after=100)
    provider.default = "fine"
    config = config_for(provider, max_retries=2)
    made = linked([Node.agent("a", "hello", llm_config=config)])
    with virtual_time():
        leader = Executor().start(made)
        provider.wait_for_requests(1)
        late = Executor(timeout_seconds=50).start(made)
        followers(LlmClient(config), 1)
        provider.release()
        with pytest.raises(graphbit.RunTimeoutError) as caught:
            late.wait(20)
        assert caught.value.result.duration == 50
        assert leader.wait(20).raise_for_failure()["a"] == "fine"


def test_hedging_and_coalescing_go_together(provider: FakeProvider) -> None:
    provider.default = "fine"
    both = Admission(hedge=True, coalesce=True)
    client = LlmClient(config_for(provider, admission=both))
    for _ in range(25):
        assert client.complete_batch_sync(["hello"] * 8) == ["fine"] * 8
    row = row_of(client)
    assert row["admitted"] - row["hedged"] + row["coalesced"] == 200 and row["in_flight"] == 0
    assert row["hedged"] * 20 <= row["admitted"]


def test_whatever_is_cancelled_and_fails_everybody_ends_once(provider: FakeProvider) -> None:
    """Many tasks, few prompts: cancels, failures and answers in any order."""
    client = LlmClient(config_for(provider, admission=Admission(coalesce=True, breaker=False)))
    import random

    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    provider.default = lambda request: request.prompt.upper()
    for _ in range(40):
        provider.fail(500, when=lambda _: dice.random() < 0.3)

    async def one(prompt: str, patience: int) -> str:
        task = asyncio.ensure_future(client.complete_async(prompt))
        for _ in range(patience):
            await asyncio.sleep(0)
            if task.done():
                break
        else:
            if patience < 40:
                task.cancel()
        try:
            answer = await task
        except asyncio.CancelledError:
            return "cancelled"
        except ServerError:
            return "failed"
        assert answer == prompt.upper()
        return "answered"

    async def main() -> list[str]:
        return await asyncio.gather(*[one(f"prompt {dice.randrange(5)}", dice.randrange(60)) for _ in range(600)])

    ends = asyncio.run(patiently_long(main()))
    assert len(ends) == 600 and {"answered"} <= set(ends)
    until(lambda: stats()["calls_active"] == 0)
    row = row_of(client)
    assert row["in_flight"] == 0 and row["queued"] == 0
    assert threading.active_count() < 50


async def patiently_long(it: Any) -> Any:
    return await asyncio.wait_for(it, 60)
