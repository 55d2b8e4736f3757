"""What holds requests back before they are sent: a provider's limits, given or learned. Through the public door,
against a real server that keeps its limits by the virtual clock."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest
from admitted import client_for, row_of, wait
from flows import until
from models import config_for
from provider_models import SECOND, Bucket

import graphbit
from graphbit import (
    Admission,
    ConfigurationError,
    Executor,
    LlmClient,
    LlmConfig,
    Node,
    QueueTimeoutError,
    RateLimitError,
    RuntimeClosedError,
    RunTimeoutError,
    Workflow,
)
from graphbit.testing import FakeProvider, Reply, VirtualClock, virtual_time


class Arrivals:
    """When requests arrived, by the virtual clock, and what each asked."""

    def __init__(self, provider: FakeProvider, clock: VirtualClock) -> None:
        self.times: list[float] = []
        self.prompts: list[str] = []
        self._clock = clock
        provider.default = self._answer

    def _answer(self, request: Any) -> str:
        self.times.append(self._clock.now())
        self.prompts.append(request.prompt)
        return "fine"

    def most_in_a_minute(self) -> int:
        return max(sum(1 for it in self.times if at <= it < at + 60) for at in self.times)


# ---------------------------------------------------------------- limits that are given


def test_requests_a_minute_are_kept_to_and_used(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        arrivals = Arrivals(provider, clock)
        client = client_for(provider, admission=Admission(requests_per_minute=60))
        assert client.complete_batch_sync(["hello"] * 240, max_concurrency=240) == ["fine"] * 240
        assert arrivals.most_in_a_minute() <= 60
        assert 178 <= clock.now() <= 241
        limits = row_of(client)["limits"]["requests"]
        assert (limits["limit"], limits["period_seconds"], limits["announced"]) == (60, 60, None)


def test_tokens_a_minute_are_kept_to_by_what_replies_say(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        times: list[float] = []

        def answer(request: Any) -> Reply:
            times.append(clock.now())
            return Reply("fine", usage={"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100})

        provider.default = answer
        client = client_for(provider, admission=Admission(tokens_per_minute=6_000))
        client.complete_batch_sync(["hello"] * 180, max_concurrency=20)
        # 60 a minute, once it is known how long answers are.
        assert max(sum(1 for it in times if at <= it < at + 60) for at in times) <= 60
        assert 115 <= clock.now() <= 190


def test_so_many_at_once(provider: FakeProvider) -> None:
    provider.hold()
    client = client_for(provider, admission=Admission(max_concurrency=3))
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(client.complete_batch_sync(["hello"] * 20)))
    thread.start()
    provider.wait_for_requests(3)
    until(lambda: row_of(client)["queued"] == 17)
    assert row_of(client)["in_flight"] == 3 and len(provider.requests) == 3
    provider.release()
    thread.join()
    assert len(answers) == 20
    row = row_of(client)
    assert (row["in_flight"], row["queued"], row["admitted"], row["max_concurrency"]) == (0, 0, 20, 3)


def test_within_a_batch_calls_go_in_order(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        arrivals = Arrivals(provider, clock)
        client = client_for(provider, admission=Admission(max_concurrency=1))
        client.complete_batch_sync([f"n{i}" for i in range(50)], max_concurrency=50)
        assert arrivals.prompts == [f"n{i}" for i in range(50)]


def test_batches_take_turns(provider: FakeProvider) -> None:
    """One of 300 is there first; one of 60 does not wait for its end."""
    with virtual_time() as clock:
        arrivals = Arrivals(provider, clock)
        client = client_for(provider, admission=Admission(requests_per_minute=60))

        async def both() -> None:
            provider.hold()  # what is on its way keeps the clock still until both are there
            first = asyncio.create_task(client.complete_batch(["first"] * 300, max_concurrency=300))
            await asyncio.to_thread(provider.wait_for_requests, 1)
            second = asyncio.create_task(client.complete_batch(["second"] * 60, max_concurrency=60))
            while row_of(client)["queued"] + row_of(client)["in_flight"] < 360:
                await asyncio.sleep(0)
            provider.release()
            await asyncio.gather(first, second)

        asyncio.run(both())
        began = arrivals.prompts.index("second")
        counts = Counter(arrivals.prompts[began : began + 110])
        assert began <= 62, "it waits for a turn, not for the end of the other"
        assert jain([counts["first"], counts["second"]]) >= 0.95


def jain(shares: list[int]) -> float:
    """Jain's index of fairness: 1 where all have the same."""
    return sum(shares) ** 2 / (len(shares) * sum(it * it for it in shares))


def test_runs_take_turns_whatever_they_have_waiting(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        arrivals = Arrivals(provider, clock)
        config = config_for(provider, admission=Admission(requests_per_minute=60))
        executor, client = Executor(config), LlmClient(config)

        def flow(name: str, count: int) -> Workflow:
            made = Workflow(name)
            made.add(*[Node.agent(f"n{i}", name) for i in range(count)])
            return made

        provider.hold()  # what is on its way keeps the clock still until both are there
        runs = [executor.start(flow("large", 200))]
        provider.wait_for_requests(1)
        runs.append(executor.start(flow("small", 70)))
        until(lambda: row_of(client)["queued"] + row_of(client)["in_flight"] == 270)
        provider.release()
        for run in runs:
            assert set(run.wait().states.values()) == {"succeeded"}
        began = arrivals.prompts.index("small")
        counts = Counter(arrivals.prompts[began : began + 130])
        assert began <= 62
        assert jain([counts["large"], counts["small"]]) >= 0.95


def test_the_strictest_of_several_configurations_counts(provider: FakeProvider) -> None:
    loose = client_for(provider, admission=Admission(max_concurrency=50))
    strict = client_for(provider, admission=Admission(max_concurrency=2, requests_per_minute=1_000))
    loose.complete("hello")
    strict.complete("hello")
    assert row_of(loose) == row_of(strict)
    assert row_of(loose)["max_concurrency"] == 2 and row_of(loose)["admitted"] == 2


def test_a_limit_counts_for_a_minute_after_it_was_last_asked_for(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        strict = client_for(provider, admission=Admission(max_concurrency=2, requests_per_minute=60))
        loose = client_for(provider, admission=Admission(max_concurrency=50, breaker=False))
        strict.complete("hello")
        loose.complete("hello")
        wait(clock, 59)
        loose.complete("hello")
        row = row_of(loose)
        assert row["max_concurrency"] == 2 and row["limits"]["requests"]["limit"] == 60
        wait(clock, 2)
        loose.complete("hello")
        row = row_of(loose)
        assert row["max_concurrency"] == 50 and row["limits"] == {}
        strict.complete("hello")
        assert row_of(loose)["max_concurrency"] == 2


def test_each_model_and_key_has_its_own_and_nobody_sees_the_key(provider: FakeProvider) -> None:
    for key in ("secret-key-1", "secret-key-2"):
        for model in ("one", "two"):
            client_for(provider, model, api_key=key, admission=Admission(max_concurrency=9)).complete("hello")
    rows = [it for it in graphbit.http_stats()["admission"] if it["base_url"] == provider.base_url]
    assert sorted((it["model"], it["admitted"]) for it in rows) == [("one", 1), ("one", 1), ("two", 1), ("two", 1)]
    assert "secret" not in repr(graphbit.http_stats())


def test_without_admission_nothing_is_held_back_and_nothing_counted(provider: FakeProvider) -> None:
    client = client_for(provider, admission=False)
    provider.fail(429, retry_after=100)
    with pytest.raises(RateLimitError):
        client.complete("hello")
    assert client.complete("hello")
    assert client.get_stats()["admission"] is None
    assert all(it["base_url"] != provider.base_url for it in graphbit.http_stats()["admission"])


# ---------------------------------------------------------------- limits that are learned


def announcing(provider: FakeProvider, clock: VirtualClock, limit: Bucket, counts: Counter[int], family: str) -> None:
    def answer(request: Any) -> Reply:
        status = 200 if limit.take(int(clock.now() * SECOND)) else 429
        counts[status] += 1
        headers = dict(line.split(": ") for line in limit.head("requests").splitlines())
        if family == "anthropic":
            headers = {
                f"anthropic-ratelimit-requests-{name.split('-')[2]}": value
                for name, value in headers.items()
                if "reset" not in name
            }
        elif family == "none":
            headers = {}
        return Reply("fine", status=status, headers=headers)

    provider.default = answer


@pytest.mark.parametrize("family", ["openai", "anthropic"])
def test_announced_limits_are_kept_to_without_a_word_from_the_user(provider: FakeProvider, family: str) -> None:
    with virtual_time() as clock:
        counts: Counter[int] = Counter()
        announcing(provider, clock, Bucket(120), counts, family)
        client = client_for(provider, max_retries=0)
        client.complete("hello")
        answers = client.complete_batch_sync(["hello"] * 480, max_concurrency=60)
        assert answers == ["fine"] * 480
        assert counts[429] == 0
        assert clock.now() <= 245
        assert row_of(client)["limits"]["requests"]["announced"] == 120


def test_a_limit_that_only_refusals_tell_is_learned(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        counts: Counter[int] = Counter()
        announcing(provider, clock, Bucket(1_200, 20), counts, "none")
        client = client_for(provider, max_retries=20)
        client.complete_batch_sync(["hello"] * 2_000, max_concurrency=50)
        first, began = counts.copy(), clock.now()
        client.complete_batch_sync(["hello"] * 2_000, max_concurrency=50)
        refused = counts[429] - first[429]
        assert refused <= 60
        assert clock.now() - began <= 2_000 / 20 / 0.85
        assert row_of(client)["rate_limited"] == counts[429]


def test_a_retry_after_holds_everybody_up(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        arrivals = Arrivals(provider, clock)
        client = client_for(provider)
        provider.fail(429, retry_after=30)
        with pytest.raises(RateLimitError):
            client.complete("hello")
        row = row_of(client)
        assert (row["rate_limited"], row["cool_downs"]) == (1, 1) and 30 <= row["cooling_seconds"] <= 33
        client.complete_batch_sync(["hello"] * 10)
        assert 30 <= min(arrivals.times) <= 33
        assert len(set(arrivals.times)) > 1, "they come back one after the other"


def test_a_quota_that_is_used_up_holds_nobody_up(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        client = client_for(provider)
        provider.fail(429, code="insufficient_quota", retry_after=30)
        with pytest.raises(RateLimitError):
            client.complete("hello")
        assert client.complete("hello") and clock.now() == 0


# ---------------------------------------------------------------- those that wait


def test_a_wait_has_an_end_where_one_is_given(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        client = client_for(provider, admission=Admission(requests_per_minute=1, queue_timeout=5))
        assert client.complete("hello")
        with pytest.raises(QueueTimeoutError, match="provider's limits") as caught:
            client.complete("hello")
        assert clock.now() == pytest.approx(5) and caught.value.attempts == 0
        assert row_of(client)["queue_timeouts"] == 1 and len(provider.requests) == 1
        wait(clock, 60)
        assert client.complete("hello")


def test_the_timeout_of_an_attempt_does_not_begin_before_it_is_sent(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        client = client_for(provider, timeout=2.0, admission=Admission(requests_per_minute=2))
        assert client.complete_batch_sync(["hello"] * 6)
        assert clock.now() > 60


def test_a_call_that_waits_can_be_cancelled(provider: FakeProvider) -> None:
    client = client_for(provider, admission=Admission(max_concurrency=1))
    provider.hold()

    async def main() -> None:
        first = asyncio.create_task(client.complete_async("first"))
        await asyncio.to_thread(provider.wait_for_requests, 1)
        waiting = [asyncio.create_task(client.complete_async("waits")) for _ in range(5)]
        while row_of(client)["queued"] < 5:
            await asyncio.sleep(0)
        for task in waiting[1:]:
            task.cancel()
        while row_of(client)["queued"] > 1:
            await asyncio.sleep(0)
        provider.release()
        assert await first and await waiting[0]

    asyncio.run(main())
    assert len(provider.requests) == 2
    assert (row_of(client)["queued"], row_of(client)["in_flight"]) == (0, 0)


def test_a_run_that_waits_ends_with_its_timeout(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        config = config_for(provider, admission=Admission(requests_per_minute=2))
        executor = Executor(config, timeout_seconds=20)
        flow = Workflow("many")
        flow.add(*[Node.agent(f"n{i}", "hello") for i in range(10)])
        with pytest.raises(RunTimeoutError) as caught:
            executor.execute(flow)
        assert clock.now() == pytest.approx(20)
        states = Counter(caught.value.result.states.values())
        assert states == {"succeeded": 2, "cancelled": 8} and len(provider.requests) == 2


def test_attempts_are_requests_and_each_needs_a_permit(provider: FakeProvider) -> None:
    with virtual_time():
        client = client_for(provider, max_retries=3, admission=Admission(requests_per_minute=100))
        provider.fail(500, times=2)
        assert client.complete("hello")
        assert row_of(client)["admitted"] == 3 and row_of(client)["limits"]["requests"]["used"] == 3


def test_a_stream_holds_its_permit_until_it_is_over(provider: FakeProvider) -> None:
    client = client_for(provider, admission=Admission(max_concurrency=1))
    provider.stall(after="body", text="one two three four five six seven eight")
    with client.stream("hello") as stream:
        assert next(stream)
        assert row_of(client)["in_flight"] == 1
    until(lambda: row_of(client)["in_flight"] == 0)
    provider.reply("one two three")
    assert "".join(client.stream("hello")) == "one two three"
    assert row_of(client)["in_flight"] == 0


def test_a_shutdown_ends_those_that_wait(provider: FakeProvider) -> None:
    client = client_for(provider, admission=Admission(max_concurrency=1))
    provider.hold()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            client.complete_batch_sync(["hello"] * 10, max_concurrency=10)
        except RuntimeClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    provider.wait_for_requests(1)
    until(lambda: row_of(client)["queued"] == 9)
    graphbit.shutdown()
    thread.join()
    assert len(errors) == 1
    provider.release()
    assert client.complete("hello")


def test_a_limit_outlives_any_number_of_other_keys(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        admission = Admission(requests_per_minute=1)
        first = client_for(provider, "one", admission=admission)
        assert first.complete("hello")
        for i in range(1_200):
            client_for(provider, "other", api_key=f"key-{i}", admission=admission).complete("hello")
        assert first.complete("hello")
        assert clock.now() >= 60


def test_threads_share_one_limit(provider: FakeProvider) -> None:
    clients = [client_for(provider, admission=Admission(max_concurrency=4)) for _ in range(8)]
    provider.latency = 0.002
    threads = [threading.Thread(target=lambda it=it: it.complete_batch_sync(["hello"] * 25)) for it in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row = row_of(clients[0])
    assert (row["admitted"], row["in_flight"], row["queued"]) == (200, 0, 0)


# ---------------------------------------------------------------- what is given


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_concurrency": 0},
        {"requests_per_minute": -1},
        {"tokens_per_minute": 1.5},
        {"max_concurrency": True},
        {"queue_timeout": 0},
        {"queue_timeout": "soon"},
        {"breaker": 1},
        {"hedge": None},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Admission(**wrong)


def test_an_admission_is_a_value() -> None:
    import pickle

    it = Admission(requests_per_minute=5, queue_timeout=2)
    assert it == Admission(requests_per_minute=5, queue_timeout=2.0) and hash(it) == hash(
        pickle.loads(pickle.dumps(it))
    )
    assert repr(it) == "Admission(queue_timeout=2.0, requests_per_minute=5)" and it != Admission()
    with pytest.raises(AttributeError, match="does not change"):
        it.breaker = False
    with pytest.raises(TypeError, match="admission must be"):
        LlmConfig.openai_compatible("http://x.example/v1", "m", admission=5)  # type: ignore[arg-type]
