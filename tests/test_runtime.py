"""The runtime as programs see it: sizes, validation, and numbers that are measured."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import graphbit
from graphbit import ConfigurationError, Executor, LlmClient, LlmConfig, Node, Workflow, configure_runtime, runtime
from graphbit.testing import FakeProvider

PATIENCE = 20.0

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture
def fresh() -> Iterator[None]:
    """No runtime before the test, and none after it."""
    graphbit.shutdown()
    yield
    graphbit.shutdown()


def prints(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def of_texts(count: int) -> Workflow:
    """Native nodes alone."""
    made = Workflow("texts")
    made.add(*[Node.transform(f"n{i}", "text") for i in range(count)])
    return made


def heavy_texts() -> tuple[Workflow, dict[str, Any]]:
    """Native work for longer than a calling thread takes upon itself: it goes to the workers."""
    made = Workflow("heavy", inputs=["text"])
    made.add(*[Node.transform(f"n{i}", "{text}" * 10) for i in range(200)])
    return made, {"text": "x" * 20_000}


# --------------------------------------------------------------------------------------------------------------- init


@pytest.mark.usefixtures("fresh")
def test_init_starts_the_runtime_and_once_more_does_nothing() -> None:
    assert runtime.stats() == {}
    graphbit.init()
    assert graphbit.get_system_info()["runtime_initialized"] is True
    Executor().execute(of_texts(1))
    graphbit.init()
    assert runtime.stats()["runs_started"] == 1  # still the same


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("graphbit")
    level = logger.level
    yield logger
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({"log_level": "trace"}, logging.DEBUG),
        ({"log_level": "debug"}, logging.DEBUG),
        ({"log_level": "info"}, logging.INFO),
        ({"log_level": "warn"}, logging.WARNING),
        ({"log_level": "error"}, logging.ERROR),
        ({"enable_tracing": True}, logging.DEBUG),
        ({"debug": True}, logging.DEBUG),
        ({"log_level": "error", "debug": True}, logging.ERROR),
        ({"debug": False, "enable_tracing": False}, logging.CRITICAL),
        ({}, logging.CRITICAL),
    ],
)
def test_init_sets_the_level_of_the_logger_and_adds_no_handler(
    logger: logging.Logger, given: dict[str, Any], level: int
) -> None:
    logger.setLevel(logging.CRITICAL)  # what it is left at where nothing is asked for
    handlers, root = list(logger.handlers), list(logging.getLogger().handlers)
    graphbit.init(**given)
    assert logger.level == level
    assert (logger.handlers, logging.getLogger().handlers) == (handlers, root)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("level", ["loud", "DEBUG", "warning"])
def test_init_refuses_unknown_levels_and_starts_nothing(level: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        graphbit.init(level)
    assert str(caught.value) == f"log_level must be one of trace, debug, info, warn, error, got {level!r}"
    assert graphbit.get_system_info()["runtime_initialized"] is False


# -------------------------------------------------------------------------------------------------- configure_runtime

SIZES = ["worker_threads", "max_blocking_threads", "thread_stack_size_mb"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, False, [], float("nan")])
def test_a_size_that_is_no_positive_number_is_refused(name: str, value: Any) -> None:
    before = runtime._queue.settings()
    with pytest.raises(ConfigurationError) as caught:
        configure_runtime(**{name: value})
    assert str(caught.value) == f"{name} must be positive, got: {value!r}"
    assert runtime._queue.settings() == before


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [10_001, 1 << 32, 1 << 70])
def test_a_size_that_is_far_too_large_is_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure_runtime(**{name: value})
    assert str(caught.value) == f"{name} is out of range, got: {value}"


@pytest.mark.usefixtures("fresh")
def test_one_bad_size_leaves_the_good_ones_unset() -> None:
    before = runtime._queue.settings()
    with pytest.raises(ConfigurationError, match="max_blocking_threads"):
        configure_runtime(worker_threads=3, max_blocking_threads=0)
    assert runtime._queue.settings() == before


@pytest.mark.usefixtures("fresh")
def test_nothing_asked_for_changes_nothing() -> None:
    before = runtime._queue.settings()
    configure_runtime()
    configure_runtime(None, None, None)
    assert runtime._queue.settings() == before


def test_a_started_runtime_is_not_configured_and_the_message_says_what_to_do() -> None:
    graphbit.init()
    with pytest.raises(ConfigurationError) as caught:
        configure_runtime(worker_threads=3)
    assert str(caught.value) == (
        "the runtime has started and its threads are made; call configure_runtime() before the first use, "
        "or after graphbit.shutdown()"
    )


@linux_only
@pytest.mark.parametrize("count", [1, 3, 7])
def test_there_are_as_many_worker_threads_as_configured(count: int) -> None:
    found = prints(f"""
        import os, threading
        import graphbit
        from graphbit import Executor, Node, Workflow, runtime

        graphbit.configure_runtime(worker_threads={count}, thread_stack_size_mb=2)
        executor = Executor()
        light = Workflow("light")
        light.add(Node.transform("a", "text"))
        executor.execute(light)
        before = set(os.listdir("/proc/self/task"))
        print(runtime.stats()["worker_threads"])            # nobody needed them yet
        heavy = Workflow("heavy", inputs=["text"])
        heavy.add(*[Node.transform(f"n{{i}}", "{{text}}" * 10) for i in range(200)])
        result = executor.execute(heavy, {{"text": "x" * 20_000}})
        assert result["n199"] == "x" * 200_000
        info = graphbit.get_system_info()
        print(info["runtime_worker_threads"], info["runtime_max_worker_threads"], runtime.stats()["tasks_executed"] > 0)
        print(len(set(os.listdir("/proc/self/task")) - before))
        graphbit.shutdown()
        print(len(set(os.listdir("/proc/self/task")) - before))
    """)
    assert found == f"0\n{count} {count} True\n{count}\n0\n"


def test_there_are_no_more_callback_threads_than_configured() -> None:
    found = prints("""
        import threading
        import graphbit
        from graphbit import Executor, Node, Workflow

        graphbit.configure_runtime(max_blocking_threads=3)
        lock, inside, most = threading.Lock(), 0, 0
        three = threading.Event()

        def blocks():
            global inside, most
            with lock:
                inside += 1
                most = max(most, inside)
                if inside == 3:
                    three.set()
            assert three.wait(20)
            with lock:
                inside -= 1

        wf = Workflow("w")
        wf.add(*[Node.function(blocks, f"n{i}") for i in range(30)])
        Executor().start(wf)
        assert three.wait(20)
        graphbit.Executor().start(wf)
        run = Executor().start(wf)
        while not run.done():
            three.wait(0.001)
        run.wait().raise_for_failure()
        for _ in range(20_000):  # one may be on its way out, or in: known to one side and not yet to the other
            info = graphbit.get_system_info()
            threads = sum(it.name == "graphbit-callback" for it in threading.enumerate())
            if info["runtime_callback_threads"] == threads:
                break
            threading.Event().wait(0.001)
        print(most, info["runtime_max_blocking_threads"], info["runtime_callback_threads"], threads)
    """)
    most, maximum, counted, threads = map(int, found.split())
    assert maximum == 3
    assert most == 3
    assert counted == threads <= 3 + 1  # one is parked


# -------------------------------------------------------------------------------------------- what the system says of itself


@pytest.mark.usefixtures("fresh")
def test_system_info_does_not_start_the_runtime() -> None:
    info = graphbit.get_system_info()
    assert info == {
        "version": graphbit.__version__,
        "core_version": graphbit.__version__,
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "platform": sys.platform,
        "cpu_count": os.cpu_count() or 1,
        "runtime_initialized": False,
    }
    assert runtime.stats() == {}


@pytest.mark.usefixtures("fresh")
def test_system_info_of_a_runtime_has_what_it_promises() -> None:
    graphbit.init()
    info = graphbit.get_system_info()
    promised = graphbit.get_system_info.__doc__ or ""
    for name in info:
        assert name in promised or name in runtime.stats(), name
    assert info["runtime_initialized"] is True
    assert info["runtime_max_worker_threads"] == min(32, 2 * (os.cpu_count() or 1))
    assert info["runtime_max_blocking_threads"] == 16
    assert info["runtime_worker_threads"] == info["runtime_callback_threads"] == info["runtime_http_threads"] == 0


def test_version_is_the_packages() -> None:
    assert graphbit.version() == graphbit.__version__ == graphbit.get_system_info()["version"]


@pytest.mark.usefixtures("fresh")
def test_uptime_grows_and_begins_anew_with_the_runtime() -> None:
    began = time.monotonic()
    graphbit.init()
    first = graphbit.get_system_info()["runtime_uptime_seconds"]
    second = graphbit.get_system_info()["runtime_uptime_seconds"]
    assert 0 <= first < second <= time.monotonic() - began
    graphbit.shutdown()
    began = time.monotonic()
    graphbit.init()
    assert 0 <= runtime.stats()["uptime_seconds"] <= time.monotonic() - began


@pytest.mark.usefixtures("fresh")
def test_runs_and_nodes_are_counted() -> None:
    executor = Executor()
    for i in range(1, 4):
        executor.execute(of_texts(10))
        counts = runtime.stats()
        assert (counts["runs_started"], counts["nodes_settled"], counts["runs_active"]) == (i, 10 * i, 0)
    mixed = Workflow("mixed")
    mixed.add(Node.function(lambda: 1, "a"), Node.transform("b", "{a}"), Node.delay("c", 0.001))
    mixed.connect("b", "c")
    asyncio.run(executor.run_async(mixed))
    assert runtime.stats()["nodes_settled"] == 33


@pytest.mark.usefixtures("fresh")
def test_active_runs_are_those_on_their_way() -> None:
    inside, gate = threading.Semaphore(0), threading.Event()

    def held() -> None:
        inside.release()
        if not gate.wait(PATIENCE):
            raise TimeoutError

    wf = Workflow("w")
    wf.add(Node.function(held))
    runs = [Executor().start(wf) for _ in range(5)]
    for _ in runs:
        assert inside.acquire(timeout=PATIENCE)
    info = graphbit.get_system_info()
    assert info["runs_active"] == graphbit.health_check()["runs_active"] == 5
    assert info["runtime_callback_threads"] >= 5
    gate.set()
    for it in runs:
        it.wait(PATIENCE).raise_for_failure()
    assert runtime.stats()["runs_active"] == 0


@pytest.mark.usefixtures("fresh")
def test_requests_connections_and_bytes_are_counted(provider: FakeProvider) -> None:
    provider.default = "x" * 1000
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model", max_retries=2)
    client = LlmClient(config)
    assert runtime.stats().get("requests_started", 0) == 0
    client.complete("hi")
    first = runtime.stats()
    assert (first["requests_started"], first["connections_opened"], first["connections_reused"]) == (1, 1, 0)
    assert first["bytes_received"] > 1000
    assert first["bytes_sent"] > 50
    assert first["http_threads"] == 1
    client.complete("y" * 5000)
    second = runtime.stats()
    assert (second["requests_started"], second["connections_opened"], second["connections_reused"]) == (2, 1, 1)
    assert second["bytes_received"] > first["bytes_received"] + 1000
    assert second["bytes_sent"] > first["bytes_sent"] + 5000
    assert (second["requests_in_flight"], second["requests_retried"], second["calls_active"]) == (0, 0, 0)
    provider.fail(503, retry_after=0.001)
    client.complete("again")
    third = runtime.stats()
    assert third["requests_retried"] == 1
    assert third["requests_started"] in (3, 4)  # attempts may count as requests of their own


@pytest.mark.usefixtures("fresh")
def test_requests_in_flight_are_seen_while_they_are(provider: FakeProvider) -> None:
    provider.default = "fine"
    provider.hold()
    wf = Workflow("w")
    wf.add(*[Node.agent(f"n{i}", "hi") for i in range(3)])
    run = Executor(LlmConfig.openai_compatible(provider.base_url, "fake-model")).start(wf)
    provider.wait_for_requests(3)
    assert runtime.stats()["requests_in_flight"] == 3
    provider.release()
    run.wait(PATIENCE).raise_for_failure()
    counts = runtime.stats()
    assert (counts["requests_in_flight"], counts["requests_queued"], counts["runs_active"]) == (0, 0, 0)


@pytest.mark.usefixtures("fresh")
def test_tasks_of_workers_are_counted() -> None:
    wf, inputs = heavy_texts()
    Executor().execute(wf, inputs).raise_for_failure()
    counts = runtime.stats()
    assert 0 < counts["tasks_executed"] <= 200
    assert counts["tasks_stolen"] <= counts["tasks_executed"]
    assert 0 < counts["worker_threads"] <= min(32, 2 * (os.cpu_count() or 1))


# ------------------------------------------------------------------------------------------------------- health, libcurl


@pytest.mark.usefixtures("fresh")
def test_the_health_check_uses_the_runtime_and_reports_on_it() -> None:
    before = time.time()
    health = graphbit.health_check()
    assert health["overall_healthy"] is True
    assert health["runtime_healthy"] is True
    assert runtime.stats()["runs_started"] == 1
    assert health["runs_active"] == health["calls_active"] == 0
    assert before <= health["timestamp"] <= time.time()
    assert 0 < health["runtime_uptime_seconds"] <= runtime.stats()["uptime_seconds"]


@linux_only
def test_memory_is_measured() -> None:
    with open("/proc/meminfo") as file:
        machine = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in file}
    before = graphbit.health_check()
    assert before["total_memory_mb"] == machine["MemTotal"]
    assert 0 < before["available_memory_mb"] <= before["total_memory_mb"]
    assert before["memory_healthy"] is (before["available_memory_mb"] > 100)
    ballast = b"x" * (64 << 20)
    after = graphbit.health_check()
    assert after["resident_memory_mb"] >= before["resident_memory_mb"] + 60
    del ballast


def test_the_libcurl_in_use_is_named() -> None:
    found = runtime.curl_version()
    if found is None:
        pytest.skip("there is no libcurl")
    assert [it.isdigit() for it in found.split(".")] == [True, True, True]
    assert graphbit.get_system_info()["runtime_initialized"] is True
