"""LlmClient against a provider on loopback: answers, order, threads and loops, wrong arguments, and what it counts."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import logging
import threading
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest
from models import KEY, Ask, batch_async, config_for

from graphbit import (
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConnectError,
    FinishReason,
    InputError,
    LlmClient,
    LlmConfig,
    LlmToolCall,
    RateLimitError,
    RuntimeClosedError,
    ServerError,
)
from graphbit.testing import FakeProvider

# ---------------------------------------------------------------- one prompt


@pytest.mark.parametrize("prompt", ["hello", 'with "quotes"\n\\ and \t', "größe 🐝", "x" * 200_000, " "])
def test_a_prompt_arrives_as_it_is_and_so_does_the_answer(
    client: LlmClient, provider: FakeProvider, complete: Ask, prompt: str
) -> None:
    provider.default = lambda request: request.prompt
    assert complete(client, prompt) == prompt
    assert provider.requests[0].json == {"model": "fake-model", "messages": [{"role": "user", "content": prompt}]}


def test_options_are_sent_as_given_and_only_then(client: LlmClient, provider: FakeProvider, complete: Ask) -> None:
    complete(client, "a", 7, 0.0)
    complete(client, "a", temperature=2)
    complete(client, "a", enable_prompt_caching=True)
    sent = [
        {key: value for key, value in one.json.items() if key not in ("model", "messages")} for one in provider.requests
    ]
    assert sent == [{"max_tokens": 7, "temperature": 0.0}, {"temperature": 2}, {}]


def test_openai_itself_gets_its_key_and_its_name_for_the_limit(provider: FakeProvider) -> None:
    client = LlmClient(LlmConfig.openai(KEY, base_url=provider.base_url, organization="org-1"))
    client.complete("a", max_tokens=3)
    request = provider.requests[0]
    assert request.json["max_completion_tokens"] == 3 and request.model == "gpt-4o-mini"
    assert request.headers["authorization"] == f"Bearer {KEY}" and request.headers["openai-organization"] == "org-1"


def test_a_full_answer_tells_what_is_known(client: LlmClient, provider: FakeProvider) -> None:
    provider.reply(
        "42",
        reasoning="hm",
        finish="length",
        usage={"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}},
    )
    response = client.complete_full("answer?")
    assert (response.content, response.reasoning, response.model) == ("42", "hm", "fake-model")
    assert response.finish_reason == FinishReason.length() and response.is_truncated()
    assert (response.usage.prompt_tokens, response.total_tokens(), response.usage.cache_read_tokens) == (5, 11, 2)
    assert (response.attempts, response.request_id) == (1, "req-1")
    assert response.id is not None and response.id.startswith("chatcmpl-")
    assert response.duration_ms is not None and response.first_byte_ms is not None
    assert 0 < response.first_byte_ms <= response.duration_ms
    assert json.loads(response.metadata["attempts"]) == 1


def test_a_full_answer_has_the_tool_calls(client: LlmClient, provider: FakeProvider) -> None:
    provider.reply(tool_calls=[{"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}}])
    response = asyncio.run(_awaited(client.complete_full_async("weather?")))
    assert response.tool_calls == [LlmToolCall("c1", "weather", '{"city":"Oslo"}')]
    assert response.content == "" and response.finish_reason == FinishReason.tool_calls()


async def _awaited(what: Coroutine[Any, Any, Any]) -> Any:
    return await what


def test_a_conversation_is_sent_as_it_is(client: LlmClient, provider: FakeProvider) -> None:
    picture = {"role": "user", "content": [{"type": "text", "text": "what is this?"}], "name": "Ann"}
    messages: list[Any] = [("system", ""), ("assistant", "größe\n"), picture]
    assert asyncio.run(_awaited(client.chat_optimized(messages, max_tokens=5))) == "WHAT IS THIS?"
    assert provider.requests[0].json == {
        "model": "fake-model",
        "messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": "größe\n"}, picture],
        "max_tokens": 5,
    }


# ---------------------------------------------------------------- many prompts


def test_a_batch_keeps_the_order_of_its_prompts(client: LlmClient, provider: FakeProvider, batch: Ask) -> None:
    # The later a prompt stands, the sooner its answer comes.
    for i in range(12):
        provider.reply(f"answer {i}", when=f"prompt {i}.", latency=(11 - i) * 0.01)
    assert batch(client, [f"prompt {i}." for i in range(12)]) == [f"answer {i}" for i in range(12)]


def test_a_batch_has_no_more_calls_on_their_way_than_it_may(
    client: LlmClient, provider: FakeProvider, batch: Ask
) -> None:
    provider.latency = 0.005
    prompts = [f"p{i}" for i in range(40)]
    assert batch(client, prompts, max_concurrency=4) == [prompt.upper() for prompt in prompts]
    assert provider.max_in_flight == 4 and len(provider.requests) == 40


def test_a_batch_fills_its_default_concurrency(client: LlmClient, provider: FakeProvider, batch: Ask) -> None:
    provider.hold()

    def open_once_full() -> None:
        provider.wait_for_requests(100)
        provider.release()

    threading.Thread(target=open_once_full).start()
    batch(client, ["x"] * 120)
    assert provider.max_in_flight == 100


def test_more_than_a_thousand_prompts_are_fine(client: LlmClient, batch: Ask) -> None:
    prompts = [f"p{i}" for i in range(1_500)]
    assert batch(client, prompts) == [prompt.upper() for prompt in prompts]


def test_a_failing_prompt_fails_the_batch_and_cancels_the_rest(
    client: LlmClient, provider: FakeProvider, batch: Ask
) -> None:
    provider.stall(when="slow", times=None)
    provider.fail(400, message="No such thing.", when="bad", latency=0.02)
    with pytest.raises(BadRequestError, match=r"prompt 1 of the batch failed \(400 Bad Request\): No such thing;?"):
        batch(client, ["slow", "bad", "slow", "slow", "never sent"], max_concurrency=4)
    provider.wait_for_disconnects(3)
    assert len(provider.requests) == 4
    stats = client.get_stats()
    assert (stats["failed_requests"], stats["cancelled_requests"], stats["total_requests"]) == (1, 3, 4)


def test_errors_can_stand_in_their_prompts_places(client: LlmClient, provider: FakeProvider, batch: Ask) -> None:
    provider.fail(429, when="two")
    provider.fail(500, when="four")
    got = batch(client, ["one", "two", "three", "four", "five"], max_concurrency=2, return_exceptions=True)
    assert [one if isinstance(one, str) else type(one) for one in got] == [
        "ONE", RateLimitError, "THREE", ServerError, "FIVE",
    ]  # fmt: skip
    assert "prompt 1 of the batch" in str(got[1]) and "prompt 3 of the batch" in str(got[3])


def test_options_of_a_batch_go_with_each_prompt(client: LlmClient, provider: FakeProvider, batch: Ask) -> None:
    batch(client, ["a", "b"], 9, 1.5, 2)
    assert [(one.json["max_tokens"], one.json["temperature"]) for one in provider.requests] == [(9, 1.5)] * 2


# ---------------------------------------------------------------- threads and loops


def test_threads_share_a_client(client: LlmClient, provider: FakeProvider) -> None:
    provider.latency = 0.001
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(10):
                assert client.complete(f"t{number}-{i}") == f"T{number}-{i}"
            prompts = [f"b{number}-{i}" for i in range(10)]
            assert client.complete_batch_sync(prompts, max_concurrency=3) == [one.upper() for one in prompts]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert client.get_stats()["successful_requests"] == 320


def test_one_client_serves_two_loops_one_after_another_and_two_at_once(client: LlmClient) -> None:
    async def main(name: str) -> list[str]:
        return list(await asyncio.gather(*(client.complete_async(f"{name}{i}") for i in range(20))))

    for name in ("a", "b"):
        assert asyncio.run(main(name)) == [f"{name.upper()}{i}" for i in range(20)]
    results: dict[str, list[str]] = {}
    threads = [
        threading.Thread(target=lambda name=name: results.update({name: asyncio.run(main(name))})) for name in "cd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [f"{name.upper()}{i}" for i in range(20)] for name in "cd"}


def test_a_loop_goes_on_while_calls_are_on_their_way(client: LlmClient, provider: FakeProvider) -> None:
    provider.hold()

    async def main() -> str:
        task = asyncio.create_task(client.complete_async("x"))
        await asyncio.to_thread(provider.wait_for_requests, 1)
        assert not task.done()
        provider.release()
        return await task

    assert asyncio.run(main()) == "X"


def test_a_plain_call_works_inside_a_running_loop(client: LlmClient) -> None:
    async def main() -> str:
        return client.complete("x") + await client.complete_async("y")

    assert asyncio.run(main()) == "XY"


def test_awaiting_without_asyncio_is_an_error_that_says_so(client: LlmClient) -> None:
    coroutine = client.complete_async("x")
    with pytest.raises(RuntimeError, match="running asyncio event loop"):
        coroutine.send(None)


# ---------------------------------------------------------------- arguments


WRONG: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (("",), InputError, "Validation error for field 'prompt' with value '': Prompt cannot be empty"),
    (("\ud800",), InputError, "half a surrogate pair"),
    ((None,), TypeError, "prompt must be a string"),
    ((b"x",), TypeError, "prompt must be a string"),
    (("x", 0), ConfigurationError, "field 'max_tokens' with value '0': max_tokens must be greater than 0"),
    (("x", -1), ConfigurationError, "max_tokens must be greater than 0"),
    (("x", 2**32), ConfigurationError, "max_tokens is too large"),
    (("x", 1.5), TypeError, "max_tokens must be an int"),
    (("x", True), TypeError, "max_tokens must be an int"),
    (
        ("x", None, 2.1),
        ConfigurationError,
        r"field 'temperature' with value '2\.1': temperature must be between 0\.0 and 2\.0",
    ),
    (("x", None, -0.1), ConfigurationError, "temperature must be between"),
    (("x", None, float("nan")), ConfigurationError, "temperature must be between"),
    (("x", None, "hot"), TypeError, "temperature must be a number"),
]


@pytest.mark.parametrize(("args", "kind", "message"), WRONG)
@pytest.mark.parametrize("method", ["complete", "complete_async", "complete_full", "complete_full_async"])
def test_arguments_are_checked_at_once(
    client: LlmClient, provider: FakeProvider, method: str, args: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        getattr(client, method)(*args)
    assert not provider.requests


@pytest.mark.parametrize(
    ("args", "options", "kind", "message"),
    [
        (([],), {}, InputError, "Prompts list cannot be empty"),
        ((["a", ""],), {}, InputError, r"Prompt cannot be empty \(prompt 1 of the batch\)"),
        ((["a", 5],), {}, TypeError, "prompt 1 of the batch must be a string"),
        ((["a", "\udc00"],), {}, InputError, "prompt 1 of the batch cannot be sent"),
        (("abc",), {}, TypeError, "must be a list of strings"),
        ((["a"],), {"max_concurrency": 0}, ConfigurationError, "max_concurrency must be greater than 0"),
        ((["a"],), {"max_concurrency": "2"}, TypeError, "max_concurrency must be an int"),
        ((["a"],), {"max_tokens": 0}, ConfigurationError, "max_tokens must be greater than 0"),
        ((["a"],), {"temperature": 3}, ConfigurationError, "temperature must be between"),
    ],
)
@pytest.mark.parametrize("method", ["complete_batch", "complete_batch_sync"])
def test_arguments_of_a_batch_are_checked_at_once(
    client: LlmClient,
    provider: FakeProvider,
    method: str,
    args: Any,
    options: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        getattr(client, method)(*args, **options)
    assert not provider.requests


@pytest.mark.parametrize(
    ("messages", "kind", "message"),
    [
        ([], InputError, "Messages cannot be empty"),
        ([("user", "")], InputError, "none of them has content"),
        ([("human", "x")], InputError, "unknown role 'human'"),
        ([("user",)], TypeError, r"must be \(role, content\)"),
        ([("user", None)], TypeError, r"must be \(role, content\)"),
        ([{"content": "x"}], InputError, "has no 'role'"),
        (["x"], TypeError, r"must be \(role, content\) or a dict"),
        ("x", TypeError, "must be a list"),
    ],
)
def test_a_conversation_is_checked_at_once(
    client: LlmClient, messages: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        _ = client.chat_optimized(messages)


def test_a_client_wants_a_configuration() -> None:
    with pytest.raises(TypeError, match="config must be an LlmConfig"):
        LlmClient(None)  # type: ignore[arg-type]


def test_both_batches_take_the_same_arguments() -> None:
    one, other = (inspect.signature(method) for method in (LlmClient.complete_batch, LlmClient.complete_batch_sync))
    assert list(one.parameters.values()) == list(other.parameters.values())


# ---------------------------------------------------------------- the client itself


def test_statistics_are_counted_and_can_begin_again(client: LlmClient, provider: FakeProvider) -> None:
    empty = client.get_stats()
    assert (empty["total_requests"], empty["success_rate"], empty["average_response_time_ms"]) == (0, 0.0, 0.0)
    provider.latency = 0.02
    client.complete_batch_sync(["a", "b", "c"])
    provider.fail(500)
    with pytest.raises(ServerError):
        client.complete("x")
    stats = client.get_stats()
    assert (stats["total_requests"], stats["successful_requests"], stats["failed_requests"]) == (4, 3, 1)
    assert stats["success_rate"] == 0.75 and stats["average_response_time_ms"] >= 20
    assert stats["circuit_breaker_state"] == "closed" and stats["uptime_seconds"] > 0
    assert stats["admission"]["admitted"] == 4 and stats["admission"]["in_flight"] == 0
    client.reset_stats()
    assert client.get_stats()["total_requests"] == 0
    alone = LlmClient(LlmConfig.openai_compatible(provider.base_url, "another", admission=False))
    assert alone.get_stats()["circuit_breaker_state"] == "disabled" and alone.get_stats()["admission"] is None


def test_warming_up_opens_a_connection_and_costs_nothing(client: LlmClient, provider: FakeProvider) -> None:
    assert asyncio.run(_awaited(client.warmup())) == "Client warmed up successfully"
    assert [(one.method, one.path) for one in provider.requests] == [("GET", "/v1/models")]
    client.complete("x")
    assert provider.connections_opened == 1 and client.get_stats()["total_requests"] == 1


def test_warming_up_tells_a_wrong_key_and_no_server_but_not_a_missing_list() -> None:
    with FakeProvider(api_key="right") as provider:
        client = LlmClient(config_for(provider, api_key="wrong"))
        with pytest.raises(AuthenticationError, match="warming up for model 'fake-model'"):
            asyncio.run(_awaited(client.warmup()))
        client = LlmClient(config_for(provider, api_key="right"))
        provider.fail(404, path="/v1/models")
        asyncio.run(_awaited(client.warmup()))
    with pytest.raises(ConnectError):
        asyncio.run(_awaited(client.warmup()))


def test_a_closed_client_takes_no_more_calls(provider: FakeProvider) -> None:
    with LlmClient(config_for(provider)) as client:
        client.complete("x")
    methods: list[Ask] = [client.complete, client.complete_async]
    for method in methods:
        with pytest.raises(RuntimeClosedError, match="this LlmClient was closed"):
            method("x")


def test_debug_logs_how_calls_end_and_no_texts(provider: FakeProvider, caplog: pytest.LogCaptureFixture) -> None:
    client = LlmClient(config_for(provider, api_key=KEY), debug=True)
    provider.reply("secret answer")
    provider.fail(500)
    with caplog.at_level(logging.DEBUG, "graphbit.llm"):
        client.complete("secret question")
        with pytest.raises(ServerError):
            client.complete("secret question")
    lines = [record.getMessage() for record in caplog.records if record.name == "graphbit.llm"]
    assert len(lines) == 2 and "succeeded" in lines[0] and "500" in lines[1]
    assert "secret" not in "".join(lines) and KEY not in "".join(lines)


def test_making_a_client_sends_nothing_and_starts_nothing(provider: FakeProvider) -> None:
    client = LlmClient(config_for(provider))
    assert "fake-model" in repr(client) and client.config.model() == "fake-model"
    assert not provider.connections_opened


def test_a_client_and_its_calls_leave_nothing_behind(provider: FakeProvider) -> None:
    provider.default = "x"
    client = LlmClient(config_for(provider))
    client.complete_batch_sync(["a"] * 10)
    asyncio.run(batch_async(client, ["a"] * 10))
    reference = weakref.ref(client)
    del client
    gc.collect()
    assert reference() is None
