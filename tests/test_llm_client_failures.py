"""LlmClient where calls fail: what failures are called, what is tried again, cancelling, and that calls are given back."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import weakref
from typing import Any

import pytest
from models import KEY, Ask, config_for

import graphbit
from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConnectError,
    LlmClient,
    LlmConfig,
    NotFoundError,
    RateLimitError,
    ReplyError,
    RequestError,
    RequestTimeoutError,
    RuntimeClosedError,
    ServerError,
)
from graphbit._ffi import ffi, lib as native
from graphbit._loop import running_lane
from graphbit._queue import Core, core
from graphbit.llm import _pump
from graphbit.testing import FakeProvider

# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, NotFoundError),
        (422, BadRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
    ],
)
def test_a_status_is_an_exception_of_its_kind(
    client: LlmClient, provider: FakeProvider, complete: Ask, status: int, cls: type[RequestError]
) -> None:
    provider.fail(status, message="The message.", code="the_code", type="the_type")
    with pytest.raises(cls, match=r"the call to model 'fake-model' failed .*: The message") as caught:
        complete(client, "x")
    error = caught.value
    assert type(error) is cls and isinstance(error, RuntimeError)
    assert (error.status, error.code, error.type, error.attempts) == (status, "the_code", "the_type", 1)
    assert error.request_id == "req-1" and json.loads(error.body)["error"]["message"] == "The message."


def test_a_refused_key_names_its_variable_and_not_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProvider(api_key="another") as provider:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        provider.reply_body({"error": {"message": f"Bad key {KEY}"}}, status=401)
        client = LlmClient(LlmConfig.openai(base_url=provider.base_url))
        for _ in range(2):  # first the provider's own refusal, then one that repeats the key
            with pytest.raises(AuthenticationError, match="check the API key in OPENAI_API_KEY") as caught:
                client.complete("x")
            assert KEY not in str(caught.value) + caught.value.body
            provider.api_key = None


def test_an_error_page_is_shown_and_not_taken_for_an_answer(client: LlmClient, provider: FakeProvider) -> None:
    provider.reply_body("<html>\n<h1>Bad gateway</h1>", status=502, content_type="text/html")
    with pytest.raises(ServerError, match=r"502 Bad Gateway.*<html> <h1>Bad gateway") as caught:
        client.complete("x")
    assert caught.value.body == "<html>\n<h1>Bad gateway</h1>"


@pytest.mark.parametrize("body", [b"{oops", b"", b'{"choices":[]}', b"<html>hello</html>"])
def test_a_reply_that_is_no_completion_is_a_reply_error(
    client: LlmClient, provider: FakeProvider, complete: Ask, body: bytes
) -> None:
    provider.reply_body(body)
    with pytest.raises(ReplyError, match="the call to model 'fake-model' got a reply of another kind") as caught:
        complete(client, "x")
    assert caught.value.status == 200 and caught.value.body == body.decode()


def test_nobody_listening_is_a_connect_error(complete: Ask) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        client = LlmClient(LlmConfig.openai_compatible(url, "m", max_retries=0))
        with pytest.raises(ConnectError, match="got no connection") as caught:
            complete(client, "x")
    assert isinstance(caught.value, ConnectionError) and caught.value.status is None


def test_an_unknown_host_is_a_connect_error(complete: Ask) -> None:
    client = LlmClient(LlmConfig.openai_compatible("http://no-such-host.invalid/v1", "m", max_retries=0))
    with pytest.raises(ConnectError, match=r"found no such host.*check the host name"):
        complete(client, "x")


def test_a_reply_cut_in_the_middle_is_a_connect_error(client: LlmClient, provider: FakeProvider, complete: Ask) -> None:
    provider.cut(after="body")
    with pytest.raises(ConnectError, match="lost its connection before the reply was whole"):
        complete(client, "x")


def test_a_server_that_never_answers_is_a_timeout(provider: FakeProvider, complete: Ask) -> None:
    provider.stall()
    client = LlmClient(config_for(provider, timeout=0.05))
    with pytest.raises(RequestTimeoutError, match=r"took too long.*raise timeout") as caught:
        complete(client, "x")
    assert isinstance(caught.value, TimeoutError)
    provider.wait_for_disconnects(1)


# ---------------------------------------------------------------- retries


def test_what_may_pass_is_tried_again_not_sooner_than_the_server_asks(provider: FakeProvider, complete: Ask) -> None:
    provider.fail(429, retry_after=0.6)
    provider.reply("at last")
    assert complete(LlmClient(config_for(provider, max_retries=1)), "x") == "at last"
    first, second = provider.requests
    assert first.finished is not None and second.started - first.finished >= 0.6


def test_attempts_are_counted_and_end(provider: FakeProvider) -> None:
    provider.fail(503, times=2, retry_after=0.01)
    client = LlmClient(config_for(provider, max_retries=1))
    with pytest.raises(ServerError, match="2 attempts") as caught:
        client.complete("x")
    assert caught.value.attempts == 2 and caught.value.retry_after == 0.01 and provider.unused == 0
    provider.fail(503)
    assert client.complete_full("x").attempts == 2
    assert client.get_stats()["total_requests"] == 2


def test_what_stays_wrong_is_not_tried_again(provider: FakeProvider) -> None:
    provider.fail(400, times=2)
    with pytest.raises(BadRequestError):
        LlmClient(config_for(provider, max_retries=3)).complete("x")
    assert len(provider.requests) == 1


# ---------------------------------------------------------------- cancelling


def test_cancelling_the_awaiting_task_closes_the_connection(client: LlmClient, provider: FakeProvider) -> None:
    provider.stall(times=None)

    async def main() -> None:
        tasks = [
            asyncio.create_task(client.complete_async("one")),
            asyncio.create_task(client.complete_full_async("two")),
            asyncio.create_task(client.chat_optimized([("user", "three")])),
            asyncio.create_task(client.complete_batch(["four", "five"])),
        ]
        await asyncio.to_thread(provider.wait_for_requests, 5)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.to_thread(provider.wait_for_disconnects, 5)
        lane = running_lane(core())
        assert lane is not None and not lane.waiters

    asyncio.run(main())
    assert all(request.aborted for request in provider.requests)
    assert client.get_stats()["cancelled_requests"] == 5


def test_a_timeout_around_a_call_closes_the_connection(client: LlmClient, provider: FakeProvider) -> None:
    provider.stall()

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.complete_async("x"), 0.05)

    asyncio.run(main())
    provider.wait_for_disconnects(1)
    assert client.complete("next") == "NEXT"


def test_cancelling_during_a_backoff_sends_nothing_more(provider: FakeProvider) -> None:
    provider.fail(503, retry_after=60)
    client = LlmClient(config_for(provider, max_retries=1))

    async def main() -> None:
        task = asyncio.create_task(client.complete_async("x"))
        await asyncio.to_thread(provider.wait_for_requests, 1)
        await asyncio.to_thread(provider.wait_until_idle)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(provider.requests) == 1


def test_a_shutdown_tells_whoever_waits(provider: FakeProvider, complete: Ask) -> None:
    provider.stall(times=None)
    client = LlmClient(config_for(provider))

    def stop() -> None:
        provider.wait_for_requests(1)
        graphbit.shutdown()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(RuntimeClosedError):
        complete(client, "x")
    stopper.join()
    provider.clear()
    provider.default = "again"
    assert complete(client, "x") == "again"


# ---------------------------------------------------------------- handles


class Counting:
    """The library, counting the calls that were started and given back."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.started: list[Any] = []
        self.released: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def gb_call_start(self, *args: Any) -> int:
        status: int = self._real.gb_call_start(*args)
        if status == 0:
            self.started.append(int(ffi.cast("uintptr_t", args[-1][0])))
        return status

    def gb_call_release(self, handle: Any) -> None:
        self.released.append(int(ffi.cast("uintptr_t", handle)))
        self._real.gb_call_release(handle)


def test_each_call_is_given_back_exactly_once(
    client: LlmClient, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = Counting(native)
    monkeypatch.setattr(_pump, "lib", lib)
    provider.fail(500, when="bad", times=None)
    client.complete("a")
    with pytest.raises(ServerError):
        client.complete_full("bad")
    client.complete_batch_sync([f"p{i}" for i in range(30)], max_concurrency=7)
    with pytest.raises(ServerError):
        client.complete_batch_sync(["a", "bad"] * 10, max_concurrency=7)
    client.complete_batch_sync(["a", "bad"] * 10, max_concurrency=7, return_exceptions=True)

    async def main() -> None:
        await client.complete_batch(["a"] * 10, max_concurrency=3)
        provider.stall(times=None)
        for delay in (0.001, 0.01):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.complete_batch(["a"] * 5), delay)

    asyncio.run(main())
    assert len(lib.started) == len(lib.released) >= 75
    assert sorted(lib.started) == sorted(lib.released)


def test_a_call_that_cannot_start_ends_the_batch(
    client: LlmClient, provider: FakeProvider, batch: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = Counting(native)
    start = lib.gb_call_start

    def refusing(*args: Any) -> int:
        return int(lib.GB_OUT_OF_MEMORY) if len(lib.started) == 3 else start(*args)

    lib.gb_call_start = refusing  # type: ignore[method-assign]
    monkeypatch.setattr(_pump, "lib", lib)
    for limit in (2, 10):
        with pytest.raises(MemoryError):
            batch(client, ["x"] * 6, max_concurrency=limit)
        assert sorted(lib.started) == sorted(lib.released) and len(lib.started) == 3
        lib.started.clear()
        lib.released.clear()


def test_an_interrupted_batch_gives_back_its_calls(
    client: LlmClient, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.stall(times=None)
    real = Core.wait_items

    def interrupted(self: Any, lane: Any, on_item: Any) -> None:
        provider.wait_for_requests(4)
        raise KeyboardInterrupt

    monkeypatch.setattr(Core, "wait_items", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.complete_batch_sync(["x"] * 4)
    provider.wait_for_disconnects(4)
    monkeypatch.setattr(Core, "wait_items", real)
    provider.clear()
    assert client.complete("next") == "NEXT"  # on the same lane


def test_an_error_and_its_batch_go_without_the_garbage_collector(client: LlmClient, provider: FakeProvider) -> None:
    provider.fail(500, times=2)
    gc.collect()
    gc.disable()
    try:
        for run in (lambda: client.complete("x"), lambda: client.complete_batch_sync(["x"])):
            try:
                run()
            except ServerError as error:
                reference = weakref.ref(error)
            assert reference() is None
    finally:
        gc.enable()
