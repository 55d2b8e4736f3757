//! The parts of the runtime that executions and tickets work with, and the count of who still uses them. The runtime owns
//! them all; what it is made of stands in runtime.zig.

const std = @import("std");
const sync = @import("base/sync.zig");
const call_file = @import("call/call.zig");
const clock_file = @import("base/clock.zig");
const lobby_file = @import("lobby.zig");
const pool_file = @import("pool/pool.zig");
const timers_file = @import("timers.zig");

pub const Context = struct {
    gpa: std.mem.Allocator,
    clock: *clock_file.Clock,
    timers: *timers_file.Timers,
    pool: *pool_file.Pool,
    lobby: *lobby_file.Lobby,
    services: *call_file.Services,
    nodes_settled: sync.Atomic(u64) = .init(0),
    /// The runtime's handle, queues, executions and tickets. Whoever brings it to zero frees the runtime.
    references: sync.Atomic(u32) = .init(1),
    on_unreferenced: *const fn (*Context) void,

    pub fn retain(context: *Context) void {
        _ = context.references.fetchAdd(1, .monotonic);
    }

    pub fn release(context: *Context) void {
        // Acquire-release: the last one out sees everybody's last access to the runtime.
        if (context.references.fetchSub(1, .acq_rel) == 1) context.on_unreferenced(context);
    }
};
