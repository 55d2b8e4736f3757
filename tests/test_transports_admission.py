"""A provider's limits for other clients: calls of models that httpx and SDKs send pass the same controllers as our own."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import threading
from collections import Counter
from typing import Any

import httpx
import httpx2
import openai
import pytest
from flows import until

import graphbit
from graphbit import Admission, CircuitOpenError, LlmClient, LlmConfig, QueueTimeoutError
from graphbit.testing import FakeProvider, Reply, virtual_time
from graphbit.transports import AsyncHttpx2Transport, AsyncHttpxTransport, Httpx2Transport, HttpxTransport

KEY = "secret-key"


def sdk(provider: FakeProvider, **options: Any) -> openai.OpenAI:
    transport = Httpx2Transport(**options)
    return openai.OpenAI(
        api_key=KEY, base_url=provider.base_url, max_retries=0, http_client=httpx2.Client(transport=transport)
    )


def ask(client: openai.OpenAI, prompt: str = "hello", model: str = "fake-model") -> str | None:
    made = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
    return made.choices[0].message.content


def body(prompt: str = "hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "model": "fake-model", **more}


def rows(provider: FakeProvider) -> list[dict[str, Any]]:
    return [it for it in graphbit.http_stats()["admission"] if it["base_url"].startswith(provider.url)]


def row(provider: FakeProvider) -> dict[str, Any]:
    [found] = rows(provider)
    return found


def test_an_sdk_and_a_client_of_ours_pass_one_controller(provider: FakeProvider) -> None:
    assert ask(sdk(provider))
    assert LlmClient(LlmConfig.openai_compatible(provider.base_url, "fake-model", KEY)).complete("hello")
    assert (row(provider)["admitted"], row(provider)["model"]) == (2, "fake-model")
    assert ask(sdk(provider), model="another")
    assert len(rows(provider)) == 2 and KEY not in repr(graphbit.http_stats())


def test_what_is_no_call_of_a_model_passes(provider: FakeProvider) -> None:
    with httpx.Client(transport=HttpxTransport()) as client:
        assert client.get(f"{provider.base_url}/models").status_code == 200
        client.post(f"{provider.base_url}/chat/completions", content=b"no JSON")
        client.post(f"{provider.base_url}/chat/completions", json={"messages": [{"content": '"model":"text"'}]})
    assert rows(provider) == []


def test_without_admission_nothing_is_counted(provider: FakeProvider) -> None:
    assert ask(sdk(provider, admission=False))
    assert rows(provider) == []


def test_after_a_refusal_all_wait_and_the_sdk_sees_an_answer(provider: FakeProvider) -> None:
    with virtual_time() as clock:
        client = sdk(provider)
        provider.fail(429, retry_after=20)
        with pytest.raises(openai.RateLimitError):
            ask(client)
        assert ask(client)
        assert 20 <= clock.now() <= 22
        assert row(provider)["rate_limited"] == 1


def test_an_open_breaker_is_a_connection_error_that_knows_when_it_goes_on(provider: FakeProvider) -> None:
    with virtual_time():
        client = sdk(provider)
        provider.fail(500, times=32)
        errors: list[Exception] = []
        for _ in range(32):
            with pytest.raises(openai.APIError) as caught:
                ask(client)
            errors.append(caught.value)
        assert isinstance(errors[0], openai.InternalServerError) and isinstance(errors[-1], openai.APIConnectionError)
        cause = errors[-1].__cause__
        assert isinstance(cause, httpx2.ConnectError) and isinstance(cause.__cause__, CircuitOpenError)
        assert 0 < cause.__cause__.next_probe <= 1.1 and "may go in" in str(cause)


def test_a_probe_that_streams_closes_the_breaker_when_it_is_answered(provider: FakeProvider) -> None:
    client = sdk(provider)
    provider.fail(500, times=32)
    for _ in range(32):
        with pytest.raises(openai.APIError):
            ask(client)
    provider.clear()
    until(lambda: row(provider)["next_probe_seconds"] == 0)
    provider.stall(after="body", text="one two three four five six seven eight")
    with client.chat.completions.create(
        model="fake-model", messages=[{"role": "user", "content": "hello"}], stream=True
    ) as stream:
        next(iter(stream))
        assert row(provider)["breaker"] == "closed"
        assert ask(client)


def test_a_server_that_boasts_of_its_tokens_harms_nobody(provider: FakeProvider) -> None:
    usage = {"prompt_tokens": 2**63 - 1, "completion_tokens": 2**63 - 1, "total_tokens": 2**63 - 1}
    client = LlmClient(LlmConfig.openai_compatible(provider.base_url, "fake-model", KEY))
    for _ in range(3):
        provider.reply(Reply("fine", usage=usage))
        assert client.complete("hello") == "fine"


def test_a_carriage_return_makes_no_header(provider: FakeProvider) -> None:
    provider.reply_raw(b"HTTP/1.1 200 OK\r\nX-A: a\rSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n", times=1)
    with httpx.Client(transport=HttpxTransport()) as client, pytest.raises(httpx.RemoteProtocolError):
        client.post(f"{provider.base_url}/chat/completions", json=body())


def test_limits_of_its_own_and_the_end_of_a_wait(provider: FakeProvider) -> None:
    with (
        virtual_time() as clock,
        httpx.Client(
            transport=HttpxTransport(admission=Admission(requests_per_minute=1, queue_timeout=5)), timeout=0.5
        ) as client,
    ):
        url = f"{provider.base_url}/chat/completions"
        assert client.post(url, json=body()).status_code == 200
        with pytest.raises(httpx.PoolTimeout) as caught:
            client.post(url, json=body())
        assert isinstance(caught.value.__cause__, QueueTimeoutError) and clock.now() == pytest.approx(5)
        assert row(provider)["queue_timeouts"] == 1 and len(provider.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tokens_are_read_from_what_passes_through(provider: FakeProvider, stream: bool) -> None:
    usage = {"prompt_tokens": 400, "completion_tokens": 600, "total_tokens": 1_000}
    provider.reply(Reply("fine", usage=usage))
    with httpx.Client(transport=HttpxTransport(admission=Admission(tokens_per_minute=100_000))) as client:
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        client.post(f"{provider.base_url}/chat/completions", json=body(**more))
    assert row(provider)["limits"]["tokens"]["used"] == 1_000


@pytest.mark.parametrize(
    ("packed", "used"),
    [
        (lambda data: gzip.compress(data), 1_000),
        (lambda data: gzip.compress(data)[:40], None),
        (lambda data: b"no gzip at all", None),
        (lambda data: gzip.compress(data + os.urandom(200_000)), None),  # more than is kept of it
    ],
    ids=["whole", "cut", "none", "large"],
)
def test_tokens_are_read_from_what_gzip_has_packed_as_well(
    provider: FakeProvider, packed: Any, used: int | None
) -> None:
    """Where they cannot be, the estimate stays; and the body is the client's as it came."""
    data = json.dumps({"usage": {"prompt_tokens": 400, "completion_tokens": 600}}).encode()
    sent = packed(data)
    provider.reply(Reply(body=sent, headers={"Content-Encoding": "gzip"}))
    transport = HttpxTransport(admission=Admission(tokens_per_minute=100_000))
    with httpx.Client(transport=transport) as client:
        url = f"{provider.base_url}/chat/completions"
        with client.stream("POST", url, json=body()) as response:
            assert b"".join(response.iter_raw()) == sent
    assert (row(provider)["limits"]["tokens"]["used"] == 1_000) == (used == 1_000)
    assert row(provider)["limits"]["tokens"]["used"] > 0


def test_loops_threads_and_families_share_one_bound(provider: FakeProvider) -> None:
    admission = Admission(max_concurrency=3)
    provider.hold()
    answers: list[int] = []
    url = f"{provider.base_url}/chat/completions"

    def plain() -> None:
        with httpx.Client(transport=HttpxTransport(admission=admission), timeout=None) as client:
            answers.append(client.post(url, json=body()).status_code)

    async def several(client: Any) -> None:
        async with client:
            found = await asyncio.gather(*[client.post(url, json=body()) for _ in range(4)])
            answers.extend(it.status_code for it in found)

    def looped(module: Any, transport: Any) -> None:
        asyncio.run(several(module.AsyncClient(transport=transport, timeout=None)))

    threads = [threading.Thread(target=plain) for _ in range(4)]
    threads.append(threading.Thread(target=looped, args=(httpx, AsyncHttpxTransport(admission=admission))))
    threads.append(threading.Thread(target=looped, args=(httpx2, AsyncHttpx2Transport(admission=admission))))
    for thread in threads:
        thread.start()
    provider.wait_for_requests(3)
    until(lambda: row(provider)["queued"] == 9)
    assert row(provider)["in_flight"] == 3 and len(provider.requests) == 3
    provider.release()
    for thread in threads:
        thread.join()
    assert Counter(answers) == {200: 12}
    assert (row(provider)["in_flight"], row(provider)["queued"]) == (0, 0)


def test_a_request_that_waits_can_be_cancelled(provider: FakeProvider) -> None:
    provider.hold()

    async def main() -> None:
        transport = AsyncHttpxTransport(admission=Admission(max_concurrency=1))
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            url = f"{provider.base_url}/chat/completions"
            first = asyncio.create_task(client.post(url, json=body()))
            await asyncio.to_thread(provider.wait_for_requests, 1)
            waiting = [asyncio.create_task(client.post(url, json=body())) for _ in range(3)]
            while row(provider)["queued"] < 3:
                await asyncio.sleep(0)
            waiting[0].cancel()
            waiting[2].cancel()
            while row(provider)["queued"] > 1:
                await asyncio.sleep(0)
            provider.release()
            assert [(await it).status_code for it in (first, waiting[1])] == [200, 200]

    asyncio.run(main())
    assert len(provider.requests) == 2
    until(lambda: row(provider)["in_flight"] == 0)


def test_a_stream_holds_its_permit_until_it_is_closed(provider: FakeProvider) -> None:
    provider.stall(after="body", text="one two three four five six seven eight")
    client = sdk(provider, admission=Admission(max_concurrency=1))
    stream = client.chat.completions.create(
        model="fake-model", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    next(iter(stream))
    assert row(provider)["in_flight"] == 1
    stream.close()
    until(lambda: row(provider)["in_flight"] == 0)
