"""The process's runtime: start, stop, sizes, and what it measures of itself."""

from __future__ import annotations

import os
import sys

from graphbit import _controllers, _queue
from graphbit._ffi import ffi, lib
from graphbit._version import __version__
from graphbit.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RETRY_REASONS = (
    "no_connection",
    "closed",
    "timeout",
    "status_408",
    "status_409",
    "status_429",
    "status_5xx",
    "other",
)
_WORKERS_MAX = 32
_CALLBACK_THREADS = 16


def init(log_level: str | None = None, enable_tracing: bool | None = None, debug: bool | None = None) -> None:
    """`graphbit.init()`: starts the runtime now. Not needed: the first use starts it.

    Args:
        log_level: "trace", "debug", "info", "warn" or "error", for the logger "graphbit" of Python's logging. Handlers are the
            program's own affair.
        enable_tracing, debug: with either, the level is "debug" where `log_level` does not say.

    Raises:
        ConfigurationError: an unknown level.
    """
    level = log_level or ("debug" if enable_tracing or debug else None)
    if level is not None:
        import logging

        levels = {
            "trace": logging.DEBUG,
            "debug": logging.DEBUG,
            "info": logging.INFO,
            "warn": logging.WARNING,
            "error": logging.ERROR,
        }
        if level not in levels:
            raise ConfigurationError(f"log_level must be one of {', '.join(levels)}, got {level!r}")
        logging.getLogger("graphbit").setLevel(levels[level])
    _queue.core()


def configure_runtime(
    worker_threads: int | None = None,
    max_blocking_threads: int | None = None,
    thread_stack_size_mb: int | None = None,
    process_workers: int | None = None,
    max_connections: int | None = None,
    max_connections_per_host: int | None = None,
) -> None:
    """`graphbit.configure_runtime(worker_threads=4)`: sizes of the runtime, before its first use.

    Args:
        worker_threads: native workers; 2 x cores, at most 32, by default. They start when there is native work.
        max_blocking_threads: threads for Python callbacks that would otherwise keep others waiting; 16 by default.
        thread_stack_size_mb: of native workers; 1 by default. Callback threads have the interpreter's own stack size.
        max_connections: of HTTP, all together; as many as the process may have descriptors, with some left for others, by default.
            Requests beyond that wait.
        max_connections_per_host: of HTTP to one scheme, host and port; no bound of its own by default.
        process_workers: processes for `Node.function(…, process=True)`; one for each core by default.

    Raises:
        ConfigurationError: a number that is not positive, or the runtime has started.
    """
    settings = {}
    for name, key, value, factor in (
        ("worker_threads", "worker_threads", worker_threads, 1),
        ("max_blocking_threads", "callback_threads", max_blocking_threads, 1),
        ("thread_stack_size_mb", "stack_bytes", thread_stack_size_mb, 1 << 20),
        ("max_connections", "connections", max_connections, 1),
        ("max_connections_per_host", "connections_per_origin", max_connections_per_host, 1),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ConfigurationError(f"{name} must be positive, got: {value!r}")
        if value > (1_000_000 if "connections" in name else 10_000):
            raise ConfigurationError(f"{name} is out of range, got: {value!r}")
        settings[key] = value * factor
    if process_workers is not None:
        if isinstance(process_workers, bool) or not isinstance(process_workers, int) or not 0 < process_workers <= 1024:
            raise ConfigurationError(f"process_workers is a number from 1 to 1024, got: {process_workers!r}")
        from graphbit import _process

        _process.configure(process_workers)
    _queue.configure(settings)


def shutdown() -> None:
    """`graphbit.shutdown()`: stops the runtime: runs and calls end as cancelled, native threads are gone when it returns.

    The next use starts a fresh runtime. Nothing happens where none has started.
    """
    _queue.shutdown()


def version() -> str:
    """`graphbit.version()`"""
    return __version__


def curl_version() -> str | None:
    """`from graphbit.runtime import curl_version; curl_version()`: the libcurl in use, "7.88.1"; None where none can be had. Starts the runtime."""
    found = lib.gb_curl_version(_queue.core().handle)
    return None if found == ffi.NULL else str(ffi.string(found).decode())


def get_system_info() -> dict[str, Any]:
    """`graphbit.get_system_info()`: versions and sizes. Does not start the runtime.

    Keys: version, core_version, python_version, platform, cpu_count, runtime_initialized; with a runtime also
    runtime_uptime_seconds, runtime_worker_threads, runtime_callback_threads, runtime_http_threads, runtime_timer_threads (all of
    them threads that exist at this moment), runtime_max_worker_threads, runtime_max_blocking_threads, and the counts of
    `stats()`.
    """
    running = _queue.current()
    info: dict[str, Any] = {
        "version": __version__,
        "core_version": ffi.string(lib.gb_version()).decode(),
        "python_version": sys.version.split()[0],
        "platform": sys.platform,
        "cpu_count": os.cpu_count() or 1,
        "runtime_initialized": running is not None,
    }
    if running is not None:
        counts = stats()
        settings = _queue.settings()
        info |= {
            "runtime_uptime_seconds": counts.pop("uptime_seconds"),
            "runtime_worker_threads": counts.pop("worker_threads"),
            "runtime_callback_threads": counts.pop("callback_threads"),
            "runtime_http_threads": counts.pop("http_threads"),
            "runtime_timer_threads": counts.pop("timer_threads"),
            "runtime_max_worker_threads": settings["worker_threads"] or min(2 * (os.cpu_count() or 1), _WORKERS_MAX),
            "runtime_max_blocking_threads": settings["callback_threads"] or _CALLBACK_THREADS,
            **counts,
        }
    return info


def stats() -> dict[str, Any]:
    """`from graphbit.runtime import stats; stats()`: what the runtime has counted since it started; {} where there is none."""
    running = _queue.current()
    if running is None:
        return {}
    out = ffi.new("gb_runtime_stats *")
    lib.gb_runtime_stats_read(running.handle, out)
    found = {name: getattr(out, name) for name, _ in ffi.typeof("gb_runtime_stats").fields if name != "started_ns"}
    found["uptime_seconds"] = (lib.gb_runtime_now(running.handle) - out.started_ns) / 1e9
    return found


def http_stats() -> dict[str, Any]:
    """`graphbit.http_stats()["connections_open"]`: what the process's HTTP engine does and has done; {} where no runtime has started.

    Every attempt counts as a request, and every hop of a redirect.

    Keys:
        requests_started, requests_succeeded (with a reply, whatever its status), requests_failed, requests_cancelled
        in_flight, queued: requests at this moment; queued ones wait for a connection or for their host's address
        connections_open, connections_opened, connections_reused
        bytes_sent, bytes_received: heads and bodies as they were sent, encoded ones before they are decoded; TLS's own not counted
        retries: by reason: no_connection, closed, timeout, status_408, status_409, status_429, status_5xx, other
        first_byte, total: of requests that succeeded, a dict of count, p50_ms, p90_ms, p99_ms, max_ms from submission on;
            percentiles are right within 4 %
        admission: a list, for each controller (a base URL, a key, a model) a dict of
            base_url, model
            in_flight, queued: permits out, and requests that wait for one
            max_concurrency, learned_concurrency: the user's bound; what refusals have taught; None: none
            limits: of requests, tokens, input_tokens and output_tokens, where there is one: limit, used, period_seconds, what
                the server announced, and what its refusals have taught
            admitted; rate_limited (429), overloaded (503, 529), cool_downs, cooling_seconds (until it goes on)
            breaker ("closed", "open", "half_open"), next_probe_seconds, breaker_history, refused by it
            queue_timeouts; hedged: second attempts; coalesced: requests that waited for the answer of an equal one
    """
    running = _queue.current()
    if running is None:
        return {}
    out = ffi.new("gb_http_stats *")
    lib.gb_http_stats_read(running.handle, out)

    def latency(it: Any) -> dict[str, Any]:
        return {
            "count": it.count,
            "p50_ms": it.p50_ns / 1e6,
            "p90_ms": it.p90_ns / 1e6,
            "p99_ms": it.p99_ns / 1e6,
            "max_ms": it.max_ns / 1e6,
        }

    return {
        "requests_started": out.started,
        "requests_succeeded": out.succeeded,
        "requests_failed": out.failed,
        "requests_cancelled": out.cancelled,
        "in_flight": out.in_flight,
        "queued": out.queued,
        "connections_open": out.connections_open,
        "connections_opened": out.connections_opened,
        "connections_reused": out.connections_reused,
        "bytes_sent": out.bytes_sent,
        "bytes_received": out.bytes_received,
        "retries": {name: out.retries[i] for i, name in enumerate(_RETRY_REASONS)},
        "first_byte": latency(out.first_byte),
        "total": latency(out.total),
        "admission": _controllers.rows(running),
    }
