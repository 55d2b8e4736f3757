"""What all tests share: how hard hypothesis tries, a provider to talk to, and that no test leaves anything running."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pathlib import Path

    from command import Write
    from flows import Held
    from models import Ask
    from streams import Gate

    from graphbit import LlmClient, LlmConfig
    from graphbit.testing import FakeProvider

# quick: what a developer waits for: other examples each time, and a failing one comes with the line that repeats it.
# ci: as many, but always the same ones: a red build says something about the change.
# long: on demand, see .ci/long.
# deep: on demand, for whoever has changed the scheduler: HYPOTHESIS_PROFILE=deep pytest --timeout=0 -k fuzz
COMMON: dict[str, Any] = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=60, **COMMON)
settings.register_profile("ci", max_examples=60, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=5_000, **COMMON)
settings.register_profile("deep", max_examples=10_000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "quick"))

# What is started in a shell's background ignores Ctrl-C, and so does whatever it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A scripted provider on loopback; a reply it could not deliver fails the test."""
    from graphbit.testing import FakeProvider

    with FakeProvider() as provider:
        yield provider


@pytest.fixture
def config(provider: FakeProvider) -> LlmConfig:
    from models import config_for

    return config_for(provider)


@pytest.fixture
def client(provider: FakeProvider) -> LlmClient:
    """Asks the provider, which answers in capitals."""
    from models import config_for

    from graphbit import LlmClient

    provider.default = lambda request: request.prompt.upper()
    return LlmClient(config_for(provider))


@pytest.fixture(params=["thread", "loop"])
def complete(request: pytest.FixtureRequest) -> Ask:
    """complete or complete_async, to the end."""
    import asyncio

    if request.param == "thread":
        return lambda client, *args, **options: client.complete(*args, **options)
    return lambda client, *args, **options: asyncio.run(client.complete_async(*args, **options))


@pytest.fixture(params=["thread", "loop"])
def batch(request: pytest.FixtureRequest) -> Ask:
    """complete_batch_sync or complete_batch, to the end."""
    import asyncio

    from models import batch_async

    if request.param == "thread":
        return lambda client, *args, **options: client.complete_batch_sync(*args, **options)
    return lambda client, *args, **options: asyncio.run(batch_async(client, *args, **options))


@pytest.fixture
def seed() -> int:
    """Printed where a test fails; GRAPHBIT_SEED=… has it again."""
    found = int(os.environ.get("GRAPHBIT_SEED") or random.randrange(2**32))
    print(f"GRAPHBIT_SEED={found}")
    return found


@pytest.fixture
def held() -> Iterator[Held]:
    """A function that runs until it is let go; at the end it is, and its thread is back."""
    from flows import Held, opened, until

    it = Held()
    yield it
    it.gate.set()
    if it.inside.is_set():
        opened(it.over)
    from graphbit.runtime import stats

    until(lambda: stats().get("callback_threads_abandoned", 0) == 0)


@pytest.fixture
def gate() -> Iterator[Gate]:
    from streams import Gate

    made = Gate()
    yield made
    made.open.set()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many callback threads there may be."""
    import graphbit
    from graphbit import _queue as runtime_queue

    before = runtime_queue.settings()

    def limit(count: int) -> None:
        graphbit.shutdown()
        graphbit.configure_runtime(max_blocking_threads=count)

    yield limit
    graphbit.shutdown()
    runtime_queue.configure(before)


@pytest.fixture(params=["watching", "unwatching"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """asyncio.run, on a loop of either kind."""
    import asyncio

    from flows import Unwatching, run_on

    kind = asyncio.SelectorEventLoop if request.param == "watching" else Unwatching
    return lambda main: run_on(kind(), main)


@pytest.fixture
def afterwards() -> Iterator[None]:
    """Whatever the test did to the runtime: the next one finds it working."""
    from flows import workflow

    from graphbit import Executor

    yield
    assert Executor().execute(workflow(one=lambda: 1))["one"] == 1


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no URL of whoever runs the tests."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, no_environment: None) -> Iterator[None]:
    """No key, no URL and no terminal of whoever runs the tests, and nothing left of the files that were loaded."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("graphbit", "rich", "pygments")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("flow.py", "…")` -> its path."""

    def written(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return written


def on_their_way() -> str:
    """What the core is still busy with; empty when it is idle or was never used."""
    queue: Any = sys.modules.get("graphbit._queue")
    core = queue.current() if queue else None
    if core is None:
        return ""
    from graphbit._ffi import ffi, lib

    stats = ffi.new("gb_runtime_stats *")
    lib.gb_runtime_stats_read(core.handle, stats)
    return f"{stats.runs_active} runs, {stats.calls_active} calls" if stats.runs_active or stats.calls_active else ""


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After the fixtures are gone: what was cancelled may take a moment to end, what was forgotten never does."""
    patience = time.monotonic() + 5
    while left := on_their_way():
        if time.monotonic() > patience:
            pytest.fail(f"{item.name} left behind: {left}", pytrace=False)
        time.sleep(0.002)
