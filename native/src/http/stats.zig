//! What the engine has done and is doing, in numbers. The engine's thread writes, any thread reads.

const sync = @import("../base/sync.zig");

pub const Stats = struct {
    started: u64,
    in_flight: u64,
    /// Waiting for a connection, or for their host's address.
    queued: u64,
    // Of transfers that were sent and are over: each opened a connection or used one that was there.
    connections_opened: u64,
    connections_reused: u64,
    bytes_sent: u64,
    bytes_received: u64,
};

pub const Counters = struct {
    started: sync.Atomic(u64) = .init(0),
    in_flight: sync.Atomic(u64) = .init(0),
    queued: sync.Atomic(u64) = .init(0),
    connections_opened: sync.Atomic(u64) = .init(0),
    connections_reused: sync.Atomic(u64) = .init(0),
    bytes_sent: sync.Atomic(u64) = .init(0),
    bytes_received: sync.Atomic(u64) = .init(0),

    /// Each number as it is; they are not all of one moment.
    pub fn read(counters: *const Counters) Stats {
        var stats: Stats = undefined;
        inline for (@typeInfo(Stats).@"struct".field_names) |name| @field(stats, name) = @field(counters, name).load(.monotonic);
        return stats;
    }
};
