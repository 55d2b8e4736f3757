//! The clock: monotonic nanoseconds, the operating system's or a virtual one that stands still until it is moved.
//! Any thread may read; `setVirtual` and `advanceTo` belong to whoever keeps the timers.

const std = @import("std");
const os = @import("os.zig");
const sync = @import("sync.zig");

pub const Clock = struct {
    /// 0: real time.
    virtual_ns: sync.Atomic(u64),
    /// Nanoseconds to a tick, times 2^24; 0: not known yet, or ticks are not to be relied on.
    rate: sync.Atomic(u64) = .init(0),
    basis: sync.Atomic(enum(u8) { none, claimed, there, unsteady }) = .init(.none),
    basis_ns: u64 = 0,
    basis_ticks: u64 = 0,

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

/// For a thread that looks at the clock after every little piece of work: between two looks at the operating system's it goes by
/// the processor's counter, whose pace was measured against that clock. The two are at most `ticks_max` apart, a fraction
/// of a millisecond, in which even a clock that is being set right strays by less than a microsecond.
pub const Stopwatch = struct {
    ns: u64 = 0,
    ticks: u64 = 0,
    latest: u64 = 0,

    const ticks_max = 1 << 20;
    /// Two looks at the counter with one at the clock between them: what took longer was interrupted.
    const apart_max = 512;
    const basis_ns_min = 2 * std.time.ns_per_ms;

    pub inline fn now(watch: *Stopwatch, clock: *Clock) u64 {
        if (!os.has_ticks or sync.is_replaced) return clock.now();
        const passed = os.ticks() -% watch.ticks;
        const rate = clock.rate.load(.monotonic);
        if (passed > ticks_max or rate == 0 or clock.isVirtual()) return watch.look(clock);
        watch.latest = watch.ns + (passed * rate >> 24);
        return watch.latest;
    }

    fn look(watch: *Stopwatch, clock: *Clock) u64 {
        if (clock.isVirtual()) return clock.now();
        const before = os.ticks();
        const ns = clock.now();
        const after = os.ticks();
        watch.latest = @max(watch.latest, ns); // by the counter it may have been some nanoseconds more
        if (after -% before > apart_max) return watch.latest;
        watch.ns = watch.latest;
        watch.ticks = after;
        if (clock.rate.load(.monotonic) == 0) learn(clock, ns, after);
        return watch.latest;
    }

    fn learn(clock: *Clock, ns: u64, ticks: u64) void {
        switch (clock.basis.load(.acquire)) { // pairs with the store
            .none => {
                if (clock.basis.cmpxchgStrong(.none, .claimed, .monotonic, .monotonic) != null) return;
                clock.basis_ns = ns;
                clock.basis_ticks = ticks;
                clock.basis.store(if (os.ticksAreSteady()) .there else .unsteady, .release);
            },
            .claimed, .unsteady => {},
            .there => {
                if (ns < clock.basis_ns + basis_ns_min or ticks <= clock.basis_ticks) return;
                clock.rate.store(((ns - clock.basis_ns) << 24) / (ticks - clock.basis_ticks), .monotonic);
            },
        }
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

test "a stopwatch goes with the clock" {
    var clock: Clock = .init;
    var watch: Stopwatch = .{};
    const end = os.monotonicNs() + 60 * std.time.ns_per_ms;
    var before: u64 = 0;
    while (os.monotonicNs() < end) {
        const early = os.monotonicNs();
        const seen = watch.now(&clock);
        const late = os.monotonicNs();
        try std.testing.expect(seen >= before);
        try std.testing.expect(seen + 2 * std.time.ns_per_us >= early and seen <= late + 2 * std.time.ns_per_us);
        before = seen;
    }
    if (os.ticksAreSteady()) try std.testing.expect(clock.rate.load(.monotonic) != 0);
}

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
