//! What users allow a provider to be sent, where several say it. Pure.
//!
//! A limit is a promise to the provider, and the controller is one for all: so the strictest of each number counts, and what one of
//! them leaves on is on for all; but the breaker promises the provider nothing, and turns nobody away who does not want it. Each time
//! one of theirs is to be sent they say it again. What nobody has said for `lasts_ns` counts no more: a minute after its last request
//! a promise about any minute is kept.

const std = @import("std");

pub const lasts_ns: u64 = std.time.ns_per_min;
/// So many different values of a number are remembered.
const said_max = 4;

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
    /// What counted when `hear` was last called, and what it was called with.
    heard: Options = .{},
    last: Options = .{},
    /// When each flag was last said.
    flag_said_ns: [flag_names.len]u64 = @splat(0),

    const flag_names = [_][]const u8{ "adaptive", "learn", "breaker", "hedge", "coalesce" };

    /// Somebody allows that, and what has not been said for long counts no more. True: what counts is different from what it was at the
    /// last call.
    pub fn hear(terms: *Terms, now_ns: u64, options: *const Options) bool {
        terms.last = options.*;
        terms.say(now_ns, options);
        for (terms.all()) |term| term.lapse(now_ns);
        inline for (flag_names, 0..) |name, i| {
            if (now_ns -| terms.flag_said_ns[i] > lasts_ns) @field(terms.flags, name) = false;
        }
        const counting = terms.counts();
        if (std.meta.eql(terms.heard, counting)) return false;
        terms.heard = counting;
        return true;
    }

    /// Of somebody who was heard and still waits: he has not forgotten it.
    pub fn say(terms: *Terms, now_ns: u64, options: *const Options) void {
        terms.concurrency.say(now_ns, options.concurrency);
        terms.requests_per_minute.say(now_ns, options.requests_per_minute);
        terms.tokens_per_minute.say(now_ns, options.tokens_per_minute);
        inline for (flag_names, 0..) |name, i| if (@field(options.flags, name)) {
            @field(terms.flags, name) = true;
            terms.flag_said_ns[i] = now_ns;
        };
    }

    fn counts(terms: *const Terms) Options {
        return .{
            .flags = terms.flags,
            .concurrency = @intCast(terms.concurrency.value()),
            .requests_per_minute = @intCast(terms.requests_per_minute.value()),
            .tokens_per_minute = terms.tokens_per_minute.value(),
        };
    }

    fn all(terms: *Terms) [3]*Term {
        return .{ &terms.concurrency, &terms.requests_per_minute, &terms.tokens_per_minute };
    }

    /// When the first of the limits that bind whoever was heard last will do so no more, unless somebody says it again. Null: he has
    /// said himself all that do.
    pub fn lapseAt(terms: *Terms, now_ns: u64) ?u64 {
        const own = [_]u64{ terms.last.concurrency, terms.last.requests_per_minute, terms.last.tokens_per_minute };
        var first_ns: ?u64 = null;
        for (terms.all(), own) |term, his| if (term.value() != 0 and term.value() != his) {
            const at_ns = @max(term.said[0].at_ns + lasts_ns, now_ns) + 1;
            first_ns = @min(first_ns orelse at_ns, at_ns);
        };
        return first_ns;
    }

    /// The clock has gone backwards.
    pub fn rewind(terms: *Terms, now_ns: u64) void {
        for (terms.all()) |term| for (&term.said) |*said| {
            said.at_ns = now_ns;
        };
        terms.flag_said_ns = @splat(now_ns);
    }
};

/// One number, as it was said of late by those who say different ones.
const Term = struct {
    /// The strictest first.
    said: [said_max]Said = @splat(.{}),
    count: u8 = 0,

    const Said = struct { value: u64 = 0, at_ns: u64 = 0 };

    /// The strictest. 0: no bound.
    pub fn value(term: *const Term) u64 {
        return if (term.count > 0) term.said[0].value else 0;
    }

    fn say(term: *Term, now_ns: u64, said: u64) void {
        if (said == 0) return;
        const at = for (term.said[0..term.count], 0..) |it, i| {
            if (it.value >= said) break i;
        } else term.count;
        if (at < term.count and term.said[at].value == said) {
            term.said[at].at_ns = now_ns;
            return;
        }
        if (term.count == said_max) {
            // There is no room: the two loosest count as one that is no looser.
            const last = &term.said[said_max - 1];
            if (at == said_max) {
                last.at_ns = now_ns;
                return;
            }
            if (at < said_max - 1) term.said[said_max - 2].at_ns = @max(term.said[said_max - 2].at_ns, last.at_ns);
            if (at == said_max - 1) {
                last.* = .{ .value = said, .at_ns = now_ns };
                return;
            }
            term.count -= 1;
        }
        @memmove(term.said[at + 1 .. term.count + 1], term.said[at..term.count]);
        term.said[at] = .{ .value = said, .at_ns = now_ns };
        term.count += 1;
    }

    fn lapse(term: *Term, now_ns: u64) void {
        var left: u8 = 0;
        for (term.said[0..term.count]) |it| if (now_ns -| it.at_ns <= lasts_ns) {
            term.said[left] = it;
            left += 1;
        };
        term.count = left;
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
        try testing.expectEqual(2, terms.concurrency.value());
        try testing.expectEqual(60, terms.requests_per_minute.value());
        try testing.expectEqual(Flags{ .breaker = true, .hedge = true }, terms.flags);
    }
    try testing.expect(terms.hear(62 * second, &.{ .concurrency = 50, .flags = .{ .breaker = true } }));
    try testing.expectEqual(50, terms.concurrency.value());
    try testing.expectEqual(0, terms.requests_per_minute.value());
    try testing.expectEqual(Flags{ .breaker = true }, terms.flags);
    try testing.expect(!terms.hear(63 * second, &.{ .concurrency = 60, .flags = .{ .breaker = true } }));
    try testing.expect(terms.hear(63 * second, &.{ .concurrency = 49 }));
}

test "who is less strict counts from when the strictest does not, if he has said so within the minute himself" {
    var terms: Terms = .{};
    for ([_]u32{ 2, 10, 1000 }, [_]u64{ 0, 59, 61 }) |said, at| _ = terms.hear(at * second, &.{ .requests_per_minute = said });
    try testing.expectEqual(10, terms.requests_per_minute.value());
    try testing.expectEqual(119 * second + 1, terms.lapseAt(61 * second));
    try testing.expect(terms.hear(119 * second + 1, &.{}));
    try testing.expectEqual(1000, terms.requests_per_minute.value());
    try testing.expect(terms.hear(121 * second + 1, &.{}));
    try testing.expectEqual(0, terms.requests_per_minute.value());
    try testing.expectEqual(null, terms.lapseAt(121 * second + 1));
}

test "of many different ones none counts for less than the minute, and the strictest not for more" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    var terms: Terms = .{};
    var at_ns: [20]?u64 = @splat(null);
    for (0..5000) |i| {
        const now_ns = i * 3 * second;
        const said = prng.random().uintLessThan(u32, at_ns.len);
        at_ns[said] = now_ns;
        _ = terms.hear(now_ns, &.{ .concurrency = said });
        const value = terms.concurrency.value();
        for (at_ns[1..], 1..) |last_ns, other| {
            const counts = if (last_ns) |it| now_ns - it <= lasts_ns else false;
            if (counts) try testing.expect(value != 0 and value <= other);
        }
    }
    try testing.expect(terms.hear((5000 * 3 + 120) * second, &.{}));
    try testing.expectEqual(0, terms.concurrency.value());
}

test "what somebody who waits has said does not lapse, nor does anything change when he says it again" {
    var terms: Terms = .{};
    const strict: Options = .{ .concurrency = 2, .flags = .{ .adaptive = true } };
    _ = terms.hear(0, &strict);
    terms.say(100 * second, &strict);
    try testing.expect(!terms.hear(100 * second, &.{ .concurrency = 50 }));
    try testing.expectEqual(2, terms.concurrency.value());
    try testing.expect(terms.flags.adaptive);
}

test "when the clock goes backwards a promise holds for a minute from then on" {
    var terms: Terms = .{};
    _ = terms.hear(1000 * second, &.{ .concurrency = 2 });
    terms.rewind(second);
    try testing.expect(!terms.hear(61 * second, &.{}));
    try testing.expect(terms.hear(62 * second, &.{}));
}
