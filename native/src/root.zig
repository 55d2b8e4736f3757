//! The core of graphbit: table of contents. What leaves the library stands in include/graphbit.h, and in Zig in c_api.zig.
//!
//!     graph/     knows what to do: plan, run, template, retry. No thread, socket or clock in there
//!     pool/      can run: work-stealing workers and how they sleep
//!     http/      can talk: libcurl on one thread, in shards
//!     json/      reads and writes: documents without trees, extraction programs
//!     timers     what is due later        queue, lobby, crew, watch   how callbacks and news reach Python
//!     limits     permits, shared by runs  cache  finished calls  events  what happens, for a reader  native  C functions
//!     call/      one request, retries included           ticket   a call without a graph
//!     gates      where requests wait until a provider's limits let them through      turns  whose turn it is
//!     exchange   one HTTP exchange as it is              upload   a body that is sent as it comes      entry  how it gets its permit
//!     execution  a run with hands         telling  who is told of it     notes   why nodes failed     outputs  what they brought     context  what all work with
//!     work       what follows from the end of a node     items, children, attempts, stopping, operations  a job of the dispatcher's each
//!     dispatcher carries ready nodes out                 intake   takes results of callbacks in
//!     runtime    owns all of them         c_api, c_structs   the door

const std = @import("std");

/// The defaults reserve a signal stack of 256 kB in thread-local storage and take over segfaults; neither is a library's.
pub const std_options: std.Options = .{ .signal_stack_size = null, .enable_segfault_handler = false };

comptime {
    _ = @import("c_api.zig");
}

test {
    _ = @import("base/clock.zig");
    _ = @import("base/mailbox.zig");
    _ = @import("base/memory.zig");
    _ = @import("base/os.zig");
    _ = @import("base/sync.zig");
    _ = @import("json/reader.zig");
    _ = @import("json/writer.zig");
    _ = @import("json/extract.zig");
    _ = @import("json/paths.zig");
    _ = @import("json/reply.zig");
    _ = @import("graph/alone.zig");
    _ = @import("graph/plan.zig");
    _ = @import("graph/retry.zig");
    _ = @import("graph/run.zig");
    _ = @import("graph/run_test.zig");
    _ = @import("graph/attempts_test.zig");
    _ = @import("graph/template.zig");
    _ = @import("graph/topology.zig");
    _ = @import("pool/deque.zig");
    _ = @import("pool/idle.zig");
    _ = @import("pool/injector.zig");
    _ = @import("pool/pool.zig");
    _ = @import("timers.zig");
    _ = @import("http/curl.zig");
    _ = @import("http/deadlines.zig");
    _ = @import("http/engine.zig");
    _ = @import("http/engine_test.zig");
    _ = @import("http/quota_test.zig");
    _ = @import("http/engine_end_test.zig");
    _ = @import("http/head.zig");
    _ = @import("http/headers.zig");
    _ = @import("http/origins.zig");
    _ = @import("http/outcome.zig");
    _ = @import("http/shard.zig");
    _ = @import("http/sockets.zig");
    _ = @import("http/guard.zig");
    _ = @import("http/latency.zig");
    _ = @import("http/mark.zig");
    _ = @import("http/ndjson.zig");
    _ = @import("http/redirect.zig");
    _ = @import("http/target.zig");
    _ = @import("http/lines.zig");
    _ = @import("http/announced.zig");
    _ = @import("http/quota.zig");
    _ = @import("http/breaker.zig");
    _ = @import("http/congestion.zig");
    _ = @import("http/curve.zig");
    _ = @import("http/minutes.zig");
    _ = @import("http/noise.zig");
    _ = @import("http/terms.zig");
    _ = @import("http/told.zig");
    _ = @import("http/hedging.zig");
    _ = @import("http/admission.zig");
    _ = @import("http/row.zig");
    _ = @import("http/usage.zig");
    _ = @import("graph/request.zig");
    _ = @import("services.zig");
    _ = @import("outgoing.zig");
    _ = @import("http/sse.zig");
    _ = @import("base/route.zig");
    _ = @import("graph/route.zig");
    _ = @import("deltas.zig");
    _ = @import("reading.zig");
    _ = @import("upload.zig");
    _ = @import("exchange.zig");
    _ = @import("exchange_test.zig");
    _ = @import("hops.zig");
    _ = @import("http/transfer.zig");
    _ = @import("http/transfer_test.zig");
    _ = @import("queue.zig");
    _ = @import("crew.zig");
    _ = @import("listening.zig");
    _ = @import("lobby.zig");
    _ = @import("lobby_test.zig");
    _ = @import("watch_test.zig");
    _ = @import("watch.zig");
    _ = @import("base/ranked.zig");
    _ = @import("limits.zig");
    _ = @import("limits_test.zig");
    _ = @import("events.zig");
    _ = @import("native.zig");
    _ = @import("cache.zig");
    _ = @import("graph/pace.zig");
    _ = @import("graph/predicate.zig");
    _ = @import("turns.zig");
    _ = @import("together.zig");
    _ = @import("gates.zig");
    _ = @import("gates_test.zig");
    _ = @import("call/call.zig");
    _ = @import("call_test.zig");
    _ = @import("call_together_test.zig");
    _ = @import("context.zig");
    _ = @import("notes.zig");
    _ = @import("outputs.zig");
    _ = @import("telling.zig");
    _ = @import("execution.zig");
    _ = @import("ticket.zig");
    _ = @import("work.zig");
    _ = @import("items.zig");
    _ = @import("children.zig");
    _ = @import("attempts.zig");
    _ = @import("stopping.zig");
    _ = @import("operations.zig");
    _ = @import("dispatcher.zig");
    _ = @import("intake.zig");
    _ = @import("runtime.zig");
    _ = @import("c_structs.zig");
    _ = @import("c_api.zig");
    _ = @import("c_api_test.zig");
    _ = @import("testing/fuzz.zig");
    _ = @import("testing/fuzz_streams.zig");
    _ = @import("testing/golden.zig");
    _ = @import("testing/meter.zig");
    _ = @import("testing/million.zig");
    _ = @import("testing/moved_memory.zig");
    _ = @import("testing/spans.zig");
}
