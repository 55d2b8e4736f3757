//! A circuit breaker: when a server fails again and again, asking it is stopped for a while. Pure: time and dice are arguments.
//!
//!     closed ── too many faults ──▶ open ── its time is over: one probe ──▶ half open ── it succeeded ──▶ closed
//!                                     ▲                                         │
//!                                     └───────────── it failed: twice as long ──┘
//!
//! Faults are the server's (5xx) and the connection's. What the caller did wrong (4xx) proves that the server is alive; so does a
//! rate limit. A connection that breaks is one fault, however many requests it carried (admission.zig sees to that). Of the last
//! `recent` outcomes at least `faults_min` and half must be faults: a single caller in trouble, or a server that fails now and
//! then, opens nothing.
//!
//! Exactly one request is the probe: `ask` lets it through and remembers so until its outcome is noted, or it was given up. Who wants no
//! breaker does not ask; an answer to one of those, sent while it is open, closes it as the probe's would.

const std = @import("std");

const assert = std.debug.assert;
const ns_per_s = std.time.ns_per_s;

/// Outcomes that are looked at.
pub const recent = 32;
/// Fewer faults than that open nothing.
pub const faults_min = 16;
/// Older outcomes say nothing about now.
const memory_ns: u64 = 60 * ns_per_s;
pub const open_first_ns: u64 = 1 * ns_per_s;
pub const open_max_ns: u64 = 30 * ns_per_s;
const probing_ns: u64 = ns_per_s / 4;
pub const history_max = 16;

/// C: gb_breaker_state
pub const State = enum(u32) { closed = 0, open = 1, half_open = 2 };

/// C: gb_breaker_change
pub const Change = extern struct { at_ns: u64 = 0, state: State = .closed, reserved: u32 = 0 };

pub const Outcome = enum { success, fault, unknown };

pub const Answer = union(enum) {
    go,
    /// It is the probe.
    probe,
    /// No request goes; the next probe may at that time.
    open: u64,
};

pub const Breaker = struct {
    state: State = .closed,
    /// Bit i: the outcome before the last i was a fault.
    outcomes: u32 = 0,
    count: u8 = 0,
    last_ns: u64 = 0,
    until_ns: u64 = 0,
    /// Times it opened since it was closed for good.
    opened: u8 = 0,
    changes: [history_max]Change = @splat(.{}),
    change_count: u32 = 0,

    pub fn ask(breaker: *Breaker, now_ns: u64) Answer {
        if (breaker.state == .closed) return .go;
        if (breaker.shutUntil(now_ns)) |until_ns| return .{ .open = until_ns };
        breaker.change(.half_open, now_ns);
        return .probe;
    }

    /// Null: whoever asks is sent, be it as the probe.
    pub fn shutUntil(breaker: *const Breaker, now_ns: u64) ?u64 {
        return switch (breaker.state) {
            .closed => null,
            .open => if (now_ns < breaker.until_ns) breaker.until_ns else null,
            // When the probe will be over nobody knows; soon.
            .half_open => now_ns + probing_ns,
        };
    }

    /// The next to ask is the probe.
    pub fn isDue(breaker: *const Breaker, now_ns: u64) bool {
        return breaker.state == .open and now_ns >= breaker.until_ns;
    }

    /// Nobody wants it: it is closed. But a probe that is on its way stays the probe.
    pub fn release(breaker: *Breaker, now_ns: u64) void {
        if (breaker.state == .open) breaker.close(now_ns);
    }

    /// A request was answered that was sent since it opened, by somebody who wants no breaker: that is as good as a probe. True: it has
    /// closed. Not while a probe is on its way, which decides.
    pub fn noteAnswered(breaker: *Breaker, now_ns: u64) bool {
        if (breaker.state != .open) return false;
        breaker.close(now_ns);
        return true;
    }

    /// To forget it would let nothing through that it would not.
    pub fn isQuiet(breaker: *const Breaker, now_ns: u64) bool {
        return breaker.state == .closed or (breaker.state == .open and now_ns > breaker.until_ns + memory_ns);
    }

    fn close(breaker: *Breaker, now_ns: u64) void {
        breaker.opened = 0;
        breaker.outcomes = 0;
        breaker.count = 0;
        breaker.change(.closed, now_ns);
    }

    /// True: it has opened, or closed.
    pub fn note(breaker: *Breaker, now_ns: u64, outcome: Outcome, is_probe: bool, dice: u64) bool {
        if (is_probe) {
            assert(breaker.state == .half_open);
            switch (outcome) {
                .success => breaker.close(now_ns),
                .fault => breaker.open(now_ns, dice),
                .unknown => { // the next one to come is the probe
                    breaker.until_ns = now_ns;
                    breaker.change(.open, now_ns);
                },
            }
            return true;
        }
        if (outcome == .unknown or breaker.state != .closed) return false; // of what was sent before it opened
        if (now_ns -| breaker.last_ns > memory_ns) breaker.count = 0;
        breaker.last_ns = now_ns;
        breaker.outcomes = breaker.outcomes << 1 | @intFromBool(outcome == .fault);
        breaker.count = @min(breaker.count + 1, recent);
        const looked_at: u32 = if (breaker.count == recent) std.math.maxInt(u32) else (@as(u32, 1) << @intCast(breaker.count)) - 1;
        const faults = @popCount(breaker.outcomes & looked_at);
        if (outcome != .fault or faults < faults_min or 2 * faults < breaker.count) return false;
        breaker.open(now_ns, dice);
        return true;
    }

    fn open(breaker: *Breaker, now_ns: u64, dice: u64) void {
        const doubled = open_first_ns << @min(breaker.opened, 10);
        const long_ns = @min(doubled, open_max_ns);
        // Up to a tenth more, so that many processes do not probe in the same instant.
        breaker.until_ns = now_ns + long_ns + @as(u64, @intCast(@as(u128, long_ns / 10) * dice >> 64));
        breaker.opened +|= 1;
        breaker.change(.open, now_ns);
    }

    fn change(breaker: *Breaker, state: State, now_ns: u64) void {
        breaker.state = state;
        breaker.changes[breaker.change_count % history_max] = .{ .at_ns = now_ns, .state = state };
        breaker.change_count += 1;
    }

    /// The last changes, the oldest first.
    pub fn history(breaker: *const Breaker, into: *[history_max]Change) u32 {
        const count = @min(breaker.change_count, history_max);
        for (into[0..count], breaker.change_count - count..) |*to, number| to.* = breaker.changes[number % history_max];
        return count;
    }

    /// Time has gone backwards: what it was measured by is another clock.
    pub fn rewind(breaker: *Breaker, now_ns: u64) void {
        breaker.until_ns = @min(breaker.until_ns, now_ns);
        breaker.last_ns = @min(breaker.last_ns, now_ns);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "half of the last outcomes are faults: it opens, one probe goes, and twice as long after it failed" {
    var breaker: Breaker = .{};
    for (0..faults_min - 1) |_| try testing.expect(!breaker.note(0, .fault, false, 0));
    try testing.expectEqual(Answer.go, breaker.ask(0));
    try testing.expect(breaker.note(0, .fault, false, 0));
    try testing.expectEqual(Answer{ .open = open_first_ns }, breaker.ask(0));
    try testing.expectEqual(Answer.probe, breaker.ask(open_first_ns));
    for (0..1000) |_| try testing.expectEqual(Answer{ .open = open_first_ns + probing_ns }, breaker.ask(open_first_ns));
    try testing.expect(!breaker.note(open_first_ns, .success, false, 0)); // of one that was on its way before
    try testing.expect(breaker.note(open_first_ns, .fault, true, 0));
    try testing.expectEqual(Answer{ .open = 3 * open_first_ns }, breaker.ask(open_first_ns));
    try testing.expectEqual(Answer.probe, breaker.ask(3 * open_first_ns));
    try testing.expect(breaker.note(3 * open_first_ns, .unknown, true, 0)); // given up: somebody else probes
    try testing.expectEqual(Answer.probe, breaker.ask(3 * open_first_ns));
    try testing.expect(breaker.note(3 * open_first_ns, .success, true, 0));
    try testing.expectEqual(Answer.go, breaker.ask(3 * open_first_ns));
    var changes: [history_max]Change = undefined;
    try testing.expectEqual(7, breaker.history(&changes));
    try testing.expectEqual(State.open, changes[0].state);
    try testing.expectEqual(State.closed, changes[6].state);
}

test "nobody wants it any more" {
    var breaker: Breaker = .{};
    for (0..2 * faults_min) |_| _ = breaker.note(0, .fault, false, 0);
    try testing.expect(!breaker.isQuiet(open_first_ns));
    try testing.expect(breaker.isQuiet(open_first_ns + memory_ns + 1));
    try testing.expectEqual(Answer.probe, breaker.ask(open_first_ns));
    breaker.release(open_first_ns);
    try testing.expect(breaker.note(open_first_ns, .fault, true, 0));
    breaker.release(open_first_ns);
    try testing.expectEqual(Answer.go, breaker.ask(open_first_ns));
    for (0..faults_min - 1) |_| try testing.expect(!breaker.note(open_first_ns, .fault, false, 0));
}

test "faults now and then, or long ago, open nothing" {
    var breaker: Breaker = .{};
    for (0..10_000) |i| try testing.expect(!breaker.note(0, if (i % 5 < 2) .fault else .success, false, 0));
    for (0..faults_min - 1) |_| _ = breaker.note(0, .fault, false, 0);
    breaker = .{};
    for (0..faults_min - 1) |_| _ = breaker.note(0, .fault, false, 0);
    try testing.expect(!breaker.note(memory_ns + 1, .fault, false, 0));
}
