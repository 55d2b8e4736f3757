//! What users allow a provider to be sent, where several say it. Pure.
//!
//! A limit is a promise to the provider, and the controller is one for all: so the strictest of each number counts, and what one of
//! them leaves on is on for all. Each time one of theirs is to be sent they say it again. What nobody has said for `lasts_ns` counts
//! no more: a minute after its last request a promise about any minute is kept.

const std = @import("std");

pub const lasts_ns: u64 = std.time.ns_per_min;

pub const Flags = packed struct(u32) {
    /// Refusals narrow a window.
    adaptive: bool = false,
    /// What the server announces counts.
    learn: bool = false,
    breaker: bool = false,
    /// A second attempt where the first is slow to begin.
    hedge: bool = false,
    /// Of equal requests on their way one is sent.
    coalesce: bool = false,
    _: u27 = 0,
};

pub const Options = struct {
    flags: Flags = .{},
    // 0: no bound of the user's.
    concurrency: u32 = 0,
    requests_per_minute: u32 = 0,
    tokens_per_minute: u64 = 0,
};

pub const Terms = struct {
    concurrency: Term = .{},
    requests_per_minute: Term = .{},
    tokens_per_minute: Term = .{},
    flags: Flags = .{},
    /// When each flag was last said.
    flag_said_ns: [flag_names.len]u64 = @splat(0),

    const flag_names = [_][]const u8{ "adaptive", "learn", "breaker", "hedge", "coalesce" };

    /// True: something is different now.
    pub fn hear(terms: *Terms, now_ns: u64, options: *const Options) bool {
        var changed = terms.concurrency.hear(now_ns, options.concurrency);
        changed = terms.requests_per_minute.hear(now_ns, options.requests_per_minute) or changed;
        changed = terms.tokens_per_minute.hear(now_ns, options.tokens_per_minute) or changed;
        inline for (flag_names, 0..) |name, i| {
            const on = &@field(terms.flags, name);
            if (@field(options.flags, name)) {
                changed = changed or !on.*;
                on.* = true;
                terms.flag_said_ns[i] = now_ns;
            } else if (on.* and now_ns -| terms.flag_said_ns[i] > lasts_ns) {
                on.* = false;
                changed = true;
            }
        }
        return changed;
    }

    /// The clock has gone backwards.
    pub fn rewind(terms: *Terms, now_ns: u64) void {
        for ([_]*Term{ &terms.concurrency, &terms.requests_per_minute, &terms.tokens_per_minute }) |term| term.said_ns = now_ns;
        terms.flag_said_ns = @splat(now_ns);
    }
};

const Term = struct {
    /// 0: no bound.
    value: u64 = 0,
    said_ns: u64 = 0,

    fn hear(term: *Term, now_ns: u64, said: u64) bool {
        if (said == term.value) {
            term.said_ns = now_ns;
            return false;
        }
        const is_stricter = said != 0 and (term.value == 0 or said < term.value);
        if (!is_stricter and now_ns -| term.said_ns <= lasts_ns) return false;
        term.* = .{ .value = said, .said_ns = now_ns };
        return true;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const second = std.time.ns_per_s;

test "the strictest counts, for a minute after it was last said" {
    var terms: Terms = .{};
    try testing.expect(terms.hear(0, &.{ .concurrency = 50, .flags = .{ .breaker = true } }));
    try testing.expect(terms.hear(second, &.{ .concurrency = 2, .requests_per_minute = 60, .flags = .{ .hedge = true } }));
    for (1..62) |i| {
        try testing.expect(!terms.hear(i * second, &.{ .concurrency = 50, .flags = .{ .breaker = true } }));
        try testing.expectEqual(2, terms.concurrency.value);
        try testing.expectEqual(60, terms.requests_per_minute.value);
        try testing.expectEqual(Flags{ .breaker = true, .hedge = true }, terms.flags);
    }
    try testing.expect(terms.hear(62 * second, &.{ .concurrency = 50, .flags = .{ .breaker = true } }));
    try testing.expectEqual(50, terms.concurrency.value);
    try testing.expectEqual(0, terms.requests_per_minute.value);
    try testing.expectEqual(Flags{ .breaker = true }, terms.flags);
    try testing.expect(!terms.hear(63 * second, &.{ .concurrency = 60, .flags = .{ .breaker = true } }));
    try testing.expect(terms.hear(63 * second, &.{ .concurrency = 49 }));
}

test "when the clock goes backwards a promise holds for a minute from then on" {
    var terms: Terms = .{};
    _ = terms.hear(1000 * second, &.{ .concurrency = 2 });
    terms.rewind(second);
    try testing.expect(!terms.hear(61 * second, &.{}));
    try testing.expect(terms.hear(62 * second, &.{}));
}
