//! What the engine has done and is doing, in numbers. The engine's thread writes, any thread reads.

const sync = @import("../base/sync.zig");

pub const Stats = struct {
    started: sync.Atomic(u64) = .init(0),
    in_flight: sync.Atomic(u64) = .init(0),
    queued: sync.Atomic(u64) = .init(0),
    // Of transfers that were sent: each opened a connection or used one that was there.
    connections_opened: sync.Atomic(u64) = .init(0),
    connections_reused: sync.Atomic(u64) = .init(0),
    bytes_sent: sync.Atomic(u64) = .init(0),
    bytes_received: sync.Atomic(u64) = .init(0),
};
