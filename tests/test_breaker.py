"""The circuit breaker: when it opens and for whom, what is said meanwhile, and its one probe. Through the public door."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from admitted import client_for, row_of, wait
from flows import until

from graphbit import Admission, CircuitOpenError, LlmClient, ServerError
from graphbit.testing import FakeProvider, virtual_time


def broken(provider: FakeProvider, client: LlmClient) -> None:
    provider.fail(500, times=None)
    client.complete_batch_sync(["hello"] * 32, max_concurrency=1, return_exceptions=True)
    assert client.get_stats()["circuit_breaker_state"] == "open"


def test_an_open_breaker_fails_at_once_and_says_when_it_tries_again(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        client = client_for(provider, max_retries=3)
        provider.fail(500, times=None)
        provider.hold()  # else time goes on as soon as the first ones wait for their next attempt, however few are sent
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.extend(client.complete_batch_sync(["hello"] * 32, return_exceptions=True))
        )
        thread.start()
        provider.wait_for_requests(32)
        provider.release()
        thread.join()
        provider.clear()
        assert {type(it) for it in answers} == {ServerError, CircuitOpenError} or {type(it) for it in answers} == {
            CircuitOpenError
        }
        again = [it for it in answers if isinstance(it, CircuitOpenError) and it.attempts]
        assert again
        for it in again:  # what became of it before is told as well
            assert it.status == 500 and it.attempts == 1
            assert "was not sent again (500 Internal Server Error), 1 attempt: too many of its last" in str(it)
        sent, at = len(provider.requests), clock.now()
        with pytest.raises(CircuitOpenError, match="was not sent: .*asked again in") as caught:
            client.complete("hello")
        assert clock.now() == at and len(provider.requests) == sent
        assert 0 < caught.value.next_probe <= 1.1
        wait(clock, 1.2)
        assert client.complete("hello")
        row = row_of(client)
        assert row["breaker"] == "closed" and row["next_probe_seconds"] is None
        assert [it["state"] for it in row["breaker_history"]] == ["open", "half_open", "closed"]
        assert row["refused"] >= 1


def test_of_a_thousand_callers_exactly_one_is_the_probe(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        client = client_for(provider)
        broken(provider, client)
        wait(clock, 1.2)
        provider.clear()
        sent, refused = len(provider.requests), row_of(client)["refused"]
        provider.hold()
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.extend(
                client.complete_batch_sync(["hello"] * 1_000, max_concurrency=1_000, return_exceptions=True)
            )
        )
        thread.start()
        until(lambda: row_of(client)["refused"] == refused + 999)
        assert client.get_stats()["circuit_breaker_state"] == "half_open"
        provider.release()
        thread.join()
        assert len(provider.requests) == sent + 1
        assert Counter(type(it) for it in answers) == {CircuitOpenError: 999, str: 1}


def test_whoever_waits_when_the_breaker_opens_is_told_at_once(provider: FakeProvider) -> None:
    provider.fail(500, times=None)
    client = client_for(provider, admission=Admission(max_concurrency=1))
    answers = client.complete_batch_sync(["hello"] * 200, max_concurrency=200, return_exceptions=True)
    assert Counter(type(it) for it in answers)[CircuitOpenError] >= 150
    assert row_of(client)["queued"] == 0


@pytest.mark.parametrize("status", [400, 401, 404, 429])
def test_faults_of_the_caller_open_nothing(provider: FakeProvider, status: int) -> None:
    with virtual_time():
        client = client_for(provider)
        provider.fail(status, times=None)
        client.complete_batch_sync(["hello"] * 100, return_exceptions=True)
        assert client.get_stats()["circuit_breaker_state"] == "closed"


def test_a_server_that_is_not_there_opens_the_breaker(provider: FakeProvider) -> None:
    client = client_for(provider, admission=Admission())
    provider.stop()
    answers = client.complete_batch_sync(["hello"] * 100, max_concurrency=10, return_exceptions=True)
    assert isinstance(answers[-1], CircuitOpenError)


def test_without_a_breaker_it_is_asked_all_the_time(provider: FakeProvider) -> None:
    client = client_for(provider, admission=Admission(breaker=False))
    provider.fail(500, times=100)
    answers = client.complete_batch_sync(["hello"] * 100, return_exceptions=True)
    assert {type(it) for it in answers} == {ServerError}
    assert client.get_stats()["circuit_breaker_state"] == "disabled"


def test_the_breaker_of_one_is_not_that_of_another_who_wants_none(provider: FakeProvider) -> None:
    with virtual_time():
        client, other = client_for(provider), client_for(provider, admission=Admission(breaker=False))
        broken(provider, client)
        for _ in range(3):
            with pytest.raises(ServerError):
                other.complete("hello")
            with pytest.raises(CircuitOpenError):
                client.complete("hello")
        provider.clear()
        assert other.complete("hello")  # that is as good as a probe
        assert client.complete("hello")
        assert [it["state"] for it in row_of(client)["breaker_history"]] == ["open", "closed"]


def test_nobody_waits_in_line_to_hear_that_the_breaker_is_open(provider: FakeProvider) -> None:
    with virtual_time():
        client = client_for(provider, admission=Admission(max_concurrency=1))
        other = client_for(provider, admission=Admission(max_concurrency=1, breaker=False))
        provider.fail(500, times=15)
        client.complete_batch_sync(["hello"] * 15, max_concurrency=15, return_exceptions=True)
        assert row_of(client)["breaker"] == "closed"
        provider.hold()
        provider.fail(500)
        answers: dict[LlmClient, list[Any]] = {client: [], other: []}

        def ask(asked: LlmClient) -> None:
            answers[asked] += asked.complete_batch_sync(["hello"] * 5, max_concurrency=5, return_exceptions=True)

        threads = [threading.Thread(target=ask, args=[it]) for it in (other, client)]
        threads[0].start()
        until(lambda: row_of(client)["queued"] == 4)
        threads[1].start()
        until(lambda: row_of(client)["queued"] == 9)
        provider.release(1)  # it opens the breaker, and four of the other's wait one after the other
        threads[1].join()
        assert {type(it) for it in answers[client]} == {CircuitOpenError} and row_of(client)["queued"] == 3
        with pytest.raises(CircuitOpenError):
            client.complete("hello")
        provider.release()
        threads[0].join()
        assert Counter(type(it) for it in answers[other]) == {ServerError: 1, str: 4}
