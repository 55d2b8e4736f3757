"""What programs that use graphbit can test themselves with: a provider that answers, and time that does not pass.

```python
from graphbit.testing import FakeProvider, virtual_time

with FakeProvider() as provider:
    config = LlmConfig.openai_compatible(provider.base_url, "fake-model")
    provider.reply("hello")
    assert LlmClient(config).complete("hi") == "hello"

with virtual_time():
    executor.execute(workflow_that_waits_for_an_hour)       # at once
```
"""

from __future__ import annotations

from contextlib import contextmanager

from graphbit._fake_http import Request
from graphbit._fake_provider import FakeProvider
from graphbit._fake_script import Reply
from graphbit._ffi import lib
from graphbit._queue import core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphbit._queue import Core

__all__ = ["FakeProvider", "Reply", "Request", "VirtualClock", "virtual_time"]


class VirtualClock:
    """The runtime's clock while it is virtual."""

    __slots__ = ("_core", "_start_ns")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._start_ns: int = lib.gb_runtime_now(core.handle)

    def now(self) -> float:
        """`clock.now()`: virtual seconds since the clock became virtual."""
        return float(lib.gb_runtime_now(self._core.handle) - self._start_ns) / 1e9


@contextmanager
def virtual_time() -> Iterator[VirtualClock]:
    """`with virtual_time() as clock:` the runtime's clock stands still and jumps to the next timer when nothing else can happen.

    Delays, backoffs and deadlines of runs take no real time, and come in the order of their due times. Python functions and
    HTTP exchanges run in real time, which the virtual clock does not see: while one of them is on its way the clock stands.

    Raises:
        RuntimeError: a run or call is on its way; a run lives in one kind of time.
    """
    from graphbit.runtime import stats

    it = core()
    counts = stats()
    if counts["runs_active"] or counts["calls_active"]:
        raise RuntimeError("virtual_time() begins and ends while nothing runs; wait for runs and calls first")
    nested = it.virtual
    if not nested:
        it.virtual = True
        lib.gb_runtime_set_virtual(it.handle, 1)
    try:
        yield VirtualClock(it)
    finally:
        if not nested:  # the outermost brings real time back
            it.virtual = False
            if not it.closed:
                lib.gb_runtime_set_virtual(it.handle, 0)
