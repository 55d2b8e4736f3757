"""Hedging: a request that is slow to begin is sent a second time, the first good reply counts, and it costs little.

Twenty requests that took a while teach what is slow; the next one is held for as long as a test likes.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from admitted import row_of
from faults import (
    FaultServer,
    assert_idle,
    client_of,
    close,
    completion,
    config_of,
    head,
    pause,
    reset,
    send,
    stall,
    whole,
)
from flows import linked, until

import graphbit
from graphbit import Admission, Executor, LlmClient, LlmConfig, Node, RequestTimeoutError, ServerError
from graphbit.testing import FakeProvider, Reply, virtual_time

HEDGE = Admission(hedge=True)
LESSONS = 20
USUAL = 0.1
"""Seconds that a lesson takes, so that a busy machine makes nothing slow that is not held."""
ERROR = b'{"error": {"message": "not now"}}'
BROKEN = (send(head("200 OK", "Content-Length: 100")), reset)
FAULTS = [
    BROKEN,
    (send(whole(ERROR, "500 Broken")),),
    (send(whole(ERROR, "503 Busy")),),
    (send(whole(ERROR, "429 Slow")),),
]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server
        graphbit.shutdown()


@pytest.fixture
def slow() -> Iterator[threading.Event]:
    """Set to let the server go on."""
    event = threading.Event()
    yield event
    event.set()


def taught(client: LlmClient, server: FaultServer) -> LlmClient:
    over = threading.Event()
    server.script(pause(over), send(whole()), times=LESSONS)
    lessons = in_background(lambda: client.complete_batch_sync(["hello"] * LESSONS))
    server.wait_for_requests(LESSONS)
    over.wait(USUAL)
    over.set()
    assert lessons.result(20) == ["fine"] * LESSONS
    return client


def hedged(client: LlmClient) -> int:
    return int(row_of(client)["hedged"])


def in_background(call: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def asked(client: LlmClient) -> Future[str]:
    """A call in a thread of its own."""
    return in_background(lambda: client.complete("hello"))


def let_it_be_slow() -> None:
    """So long that a second attempt would have been sent."""
    threading.Event().wait(2 * USUAL)


def say(text: str) -> bytes:
    return whole(completion(text))


def test_a_second_attempt_answers_for_one_that_is_slow_to_begin_and_the_first_is_cut_off(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(stall)
    server.script(send(say("second")))
    answer = client.complete_full("hello")
    assert (answer.content, answer.attempts) == ("second", 1)
    row = row_of(client)
    assert (row["hedged"], row["in_flight"], row["admitted"]) == (1, 0, LESSONS + 2)
    until(lambda: server.open == LESSONS - 1)  # the stalled one was closed, the other is kept
    assert graphbit.http_stats()["requests_cancelled"] >= 1
    assert_idle()
    graphbit.shutdown()
    server.wait_until_closed()


def test_both_attempts_are_the_same_request_with_the_same_key_to_know_it_by(server: FaultServer) -> None:
    config = LlmConfig.openai("sk-0123456789abcdefghij", "gpt-4o-mini", base_url=f"{server.url}/v1", admission=HEDGE)
    client = taught(LlmClient(config), server)
    server.script(stall)
    client.complete("the one that counts")
    first, second = server.requests[LESSONS:]
    assert json.loads(first.body)["messages"][0]["content"] == "the one that counts"
    assert first._replace(connection=0) == second._replace(connection=0)
    assert first.connection != second.connection and re.fullmatch("[0-9a-f]{32}", first.headers["idempotency-key"])
    assert len({request.headers["idempotency-key"] for request in server.requests}) == LESSONS + 1


def test_the_first_may_still_be_the_first(server: FaultServer, slow: threading.Event) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(pause(slow), send(say("first")))
    server.script(stall)
    future = asked(client)
    server.wait_for_requests(LESSONS + 2)
    slow.set()
    assert future.result(20) == "first"
    assert hedged(client) == 1 and row_of(client)["in_flight"] == 0
    until(lambda: server.open == LESSONS - 1)


def test_a_reply_that_has_begun_is_waited_for(server: FaultServer, slow: threading.Event) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    reply = say("late")
    server.script(send(reply[:-20]), pause(slow), send(reply[-20:]))
    future = asked(client)
    server.wait_for_requests(LESSONS + 1)
    let_it_be_slow()
    slow.set()
    assert future.result(20) == "late" and hedged(client) == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_second_attempt_that_fails_leaves_it_to_the_first(
    server: FaultServer, slow: threading.Event, fault: Any
) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(pause(slow), send(say("first")))
    server.script(*fault)
    future = asked(client)
    server.wait_for_requests(LESSONS + 2)
    until(lambda: row_of(client)["in_flight"] == 1)  # the failed one has given its permit back
    slow.set()
    assert future.result(20) == "first"
    assert len(server.requests) == LESSONS + 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_first_attempt_that_fails_late_leaves_it_to_the_second(
    server: FaultServer, slow: threading.Event, fault: Any
) -> None:
    client = taught(client_of(server, admission=HEDGE, max_retries=3), server)
    last = threading.Event()
    server.script(pause(slow), *fault)
    server.script(pause(last), send(say("second")))
    future = asked(client)
    server.wait_for_requests(LESSONS + 2)
    slow.set()
    until(lambda: row_of(client)["in_flight"] == 1)
    last.set()
    assert future.result(20) == "second"
    assert len(server.requests) == LESSONS + 2  # nothing was tried again


@pytest.mark.parametrize("order", ["first", "second"])
def test_when_both_fail_the_first_ones_failure_counts(server: FaultServer, slow: threading.Event, order: str) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    other = threading.Event()
    server.script(pause(slow), send(whole(b'{"error": {"message": "the first"}}', "500 Broken", "x-request-id: one")))
    server.script(pause(other), send(whole(b'{"error": {"message": "the second"}}', "429 Slow", "x-request-id: two")))
    future = asked(client)
    server.wait_for_requests(LESSONS + 2)
    ahead, behind = (slow, other) if order == "first" else (other, slow)
    ahead.set()
    until(lambda: row_of(client)["in_flight"] == 1)
    behind.set()
    with pytest.raises(ServerError, match="the first") as caught:
        future.result(20)
    assert (caught.value.status, caught.value.request_id) == (500, "one")
    assert row_of(client)["in_flight"] == 0


def test_when_both_fail_the_call_is_tried_again_as_without_hedging(server: FaultServer, slow: threading.Event) -> None:
    client = taught(client_of(server, admission=HEDGE, max_retries=1), server)
    server.script(pause(slow), *BROKEN)
    server.script(*BROKEN)
    server.script(send(say("third")))
    future = asked(client)
    server.wait_for_requests(LESSONS + 2)
    slow.set()
    assert future.result(20) == "third"
    assert len(server.requests) == LESSONS + 3


def test_a_reply_that_would_not_get_better_counts_at_once(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(stall)
    server.script(send(whole(ERROR, "400 Bad Request")))
    with pytest.raises(graphbit.BadRequestError):
        client.complete("hello")
    until(lambda: server.open == LESSONS - 1)


def test_the_timeout_bounds_the_attempt_with_both_its_transfers(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE, timeout=0.3), server)
    server.script(stall, times=2)
    with pytest.raises(RequestTimeoutError):
        client.complete("hello")
    assert len(server.requests) == LESSONS + 2
    assert row_of(client)["in_flight"] == 0
    until(lambda: server.open == LESSONS - 2)


def test_a_cancel_ends_both(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(stall, times=2)
    run = Executor().start(linked([Node.agent("a", "hello", llm_config=config_of(server, admission=HEDGE))]))
    server.wait_for_requests(LESSONS + 2)
    run.cancel()
    assert run.wait(20).nodes["a"].state == "cancelled"
    until(lambda: server.open == LESSONS - 2)
    assert row_of(client)["in_flight"] == 0 and hedged(client) == 1


def test_a_cancel_ends_the_one_that_is_left(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    slow = threading.Event()
    server.script(pause(slow), *BROKEN)
    server.script(stall)
    run = Executor().start(linked([Node.agent("a", "hello", llm_config=config_of(server, admission=HEDGE))]))
    server.wait_for_requests(LESSONS + 2)
    slow.set()
    until(lambda: row_of(client)["in_flight"] == 1)
    run.cancel()
    assert run.wait(20).nodes["a"].state == "cancelled"
    until(lambda: server.open == LESSONS - 2)


def test_a_shutdown_ends_both(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(stall, times=2)
    future = asked(client)
    server.wait_for_requests(LESSONS + 2)
    graphbit.shutdown()
    with pytest.raises(graphbit.RuntimeClosedError):
        future.result(20)
    server.wait_until_closed()


def test_whoever_did_not_ask_for_it_and_streams_are_not_sent_twice(server: FaultServer, slow: threading.Event) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    plain = client_of(server)
    server.script(pause(slow), send(say("fine")))
    future = asked(plain)
    server.wait_for_requests(LESSONS + 1)
    event = (
        b'data: {"choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    )
    server.script(
        pause(slow),
        send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + event),
        close,
    )
    pieces: list[str] = []

    def read() -> None:
        pieces.extend(client.stream("hello"))

    reader = threading.Thread(target=read)
    reader.start()
    server.wait_for_requests(LESSONS + 2)
    let_it_be_slow()
    slow.set()
    assert future.result(20) == "fine"
    reader.join(20)
    assert pieces == ["fine"]
    assert len(server.requests) == LESSONS + 2 and hedged(client) == 0


def test_a_second_attempt_is_not_sent_where_the_first_has_the_only_permit(
    server: FaultServer, slow: threading.Event
) -> None:
    taught(client_of(server, admission=HEDGE), server)
    client = client_of(server, admission=Admission(hedge=True, max_concurrency=1))
    server.script(pause(slow), send(say("first")))
    future = asked(client)
    server.wait_for_requests(LESSONS + 1)
    waits = asked(client)
    until(lambda: row_of(client)["queued"] == 1)
    let_it_be_slow()
    slow.set()
    assert (future.result(20), waits.result(20)) == ("first", "fine")
    assert hedged(client) == 0 and len(server.requests) == LESSONS + 2


def test_what_was_saved_is_spent(server: FaultServer, slow: threading.Event) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(stall)
    client.complete("hello")
    assert hedged(client) == 1
    server.script(pause(slow), send(say("not again")))
    future = asked(client)
    server.wait_for_requests(LESSONS + 3)
    let_it_be_slow()
    assert hedged(client) == 1
    slow.set()
    assert future.result(20) == "not again"


def test_there_are_never_more_than_five_in_a_hundred(provider: FakeProvider) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    provider.default = lambda request: Reply("fine", latency=dice.choice((0.0, 0.0, 0.0, 0.03)))
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0, admission=HEDGE)
    client = LlmClient(config)
    for _ in range(6):
        assert client.complete_batch_sync(["hello"] * 100, max_concurrency=10) == ["fine"] * 100
        row = row_of(client)
        assert row["hedged"] * 20 <= row["admitted"] - row["hedged"]
    assert row["hedged"] > 0 and row["in_flight"] == 0


def test_an_agent_in_a_workflow_is_hedged_too(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    server.script(stall)
    server.script(send(say("second")))
    made = linked([Node.agent("a", "hello", llm_config=config_of(server, admission=HEDGE))])
    result = Executor().execute(made).raise_for_failure()
    assert result["a"] == "second" and result.nodes["a"].attempts == 1 and hedged(client) == 1


def test_a_large_reply_of_the_second_attempt_is_read_like_any_other(server: FaultServer) -> None:
    client = taught(client_of(server, admission=HEDGE), server)
    text = "x" * 300_000
    server.script(stall)
    server.script(send(say(text)))
    assert client.complete("hello") == text
    assert row_of(client)["in_flight"] == 0


def test_in_virtual_time_no_reply_is_late(provider: FakeProvider) -> None:
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=0, admission=HEDGE)
    made = linked([Node.agent("a", "hello", llm_config=config)])
    with virtual_time():
        for _ in range(LESSONS + 1):
            Executor().execute(made).raise_for_failure()
        provider.hold()
        run = Executor().start(made)
        provider.wait_for_requests(LESSONS + 2)
        provider.release()
        run.wait(20).raise_for_failure()
    assert len(provider.requests) == LESSONS + 2
