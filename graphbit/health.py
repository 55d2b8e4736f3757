"""Whether the runtime works, found out by using it."""

from __future__ import annotations

from time import time

from graphbit._ffi import ffi, lib
from graphbit.executor import Executor
from graphbit.node import Node
from graphbit.runtime import stats
from graphbit.workflow import Workflow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def health_check() -> dict[str, Any]:
    """`graphbit.health_check()`: whether the runtime works, and the memory there is. Starts the runtime.

    A workflow of one native node is run to its end; `overall_healthy` says that this worked and that memory is left.
    """
    probe = Workflow("health check")
    probe.add(Node.transform("probe", "ok"))
    works = Executor(timeout_seconds=10).execute(probe).get("probe") == "ok"
    memory = ffi.new("gb_memory *")
    lib.gb_memory_read(memory)
    counts = stats()
    mebibyte = 1 << 20
    enough = memory.available == 0 or memory.available > 100 * mebibyte
    return {
        "runtime_healthy": works,
        "runtime_uptime_seconds": counts["uptime_seconds"],
        "worker_threads": counts["worker_threads"],
        "runs_active": counts["runs_active"],
        "calls_active": counts["calls_active"],
        "total_memory_mb": memory.total // mebibyte,
        "available_memory_mb": memory.available // mebibyte,
        "resident_memory_mb": memory.resident // mebibyte,
        "memory_healthy": enough,
        "overall_healthy": works and enough,
        "timestamp": time(),
    }
