//! The clock: monotonic nanoseconds, the operating system's or a virtual one that stands still until it is moved.
//! Any thread may read; `setVirtual` and `advanceTo` belong to whoever keeps the timers.

const std = @import("std");
const os = @import("os.zig");
const sync = @import("sync.zig");

pub const Clock = struct {
    /// 0: real time.
    virtual_ns: sync.Atomic(u64),

    pub const init: Clock = .{ .virtual_ns = .init(0) };

    pub fn now(clock: *const Clock) u64 {
        const virtual = clock.virtual_ns.load(.monotonic);
        return if (virtual != 0) virtual else os.monotonicNs();
    }

    pub fn isVirtual(clock: *const Clock) bool {
        return clock.virtual_ns.load(.monotonic) != 0;
    }

    /// Virtual time starts at the real time of this moment, so that time never runs backwards when it is switched on.
    pub fn setVirtual(clock: *Clock, on: bool) void {
        clock.virtual_ns.store(if (on) os.monotonicNs() else 0, .monotonic);
    }

    pub fn advanceTo(clock: *Clock, ns: u64) void {
        std.debug.assert(clock.isVirtual());
        if (ns > clock.virtual_ns.load(.monotonic)) clock.virtual_ns.store(ns, .monotonic);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

test "virtual time stands still until it is moved, and never goes back" {
    var clock: Clock = .init;
    clock.setVirtual(true);
    const start = clock.now();
    try std.testing.expectEqual(start, clock.now());
    clock.advanceTo(start + 5);
    clock.advanceTo(start + 2);
    try std.testing.expectEqual(start + 5, clock.now());
    clock.setVirtual(false);
    try std.testing.expect(clock.now() >= start);
}
