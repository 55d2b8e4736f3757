//! What the engine has done and is doing, in numbers. The engine's thread writes, any thread reads.

const Failure = @import("../base/failure.zig").Failure;
const latency = @import("latency.zig");
const sync = @import("../base/sync.zig");

pub const Stats = struct {
    started: u64,
    in_flight: u64,
    /// Waiting for a connection, or for their host's address.
    queued: u64,
    // How transfers ended: with a reply, whatever it says, or without.
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    connections_open: u64,
    // Of transfers that were sent and are over: each opened a connection or used one that was there.
    connections_opened: u64,
    connections_reused: u64,
    bytes_sent: u64,
    bytes_received: u64,
    // Of those that succeeded, from submit on.
    first_byte: latency.Snapshot,
    total: latency.Snapshot,
};

pub const Counters = struct {
    started: sync.Atomic(u64) = .init(0),
    in_flight: sync.Atomic(u64) = .init(0),
    queued: sync.Atomic(u64) = .init(0),
    succeeded: sync.Atomic(u64) = .init(0),
    failed: sync.Atomic(u64) = .init(0),
    cancelled: sync.Atomic(u64) = .init(0),
    connections_open: sync.Atomic(u64) = .init(0),
    connections_opened: sync.Atomic(u64) = .init(0),
    connections_reused: sync.Atomic(u64) = .init(0),
    bytes_sent: sync.Atomic(u64) = .init(0),
    bytes_received: sync.Atomic(u64) = .init(0),
    first_byte: latency.Histogram = .{},
    total: latency.Histogram = .{},

    /// By the engine's thread.
    pub fn noteEnd(counters: *Counters, failure: Failure, first_byte_ns: u64, total_ns: u64) void {
        const how = switch (failure) {
            .none => &counters.succeeded,
            .cancelled, .shutdown => &counters.cancelled,
            else => &counters.failed,
        };
        _ = how.fetchAdd(1, .monotonic);
        if (failure != .none) return;
        counters.first_byte.record(first_byte_ns);
        counters.total.record(total_ns);
    }

    /// Each number as it is; they are not all of one moment.
    pub fn read(counters: *const Counters) Stats {
        var stats: Stats = undefined;
        inline for (@typeInfo(Stats).@"struct".field_names) |name| {
            const from = &@field(counters, name);
            @field(stats, name) = if (@FieldType(Stats, name) == u64) from.load(.monotonic) else from.read();
        }
        return stats;
    }
};
