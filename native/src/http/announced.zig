//! What a server says of its limits in the heads of its replies. Pure functions.
//!
//!     x-ratelimit-limit-requests: 500                             anthropic-ratelimit-requests-limit: 1000
//!     x-ratelimit-remaining-tokens: 149984                        anthropic-ratelimit-input-tokens-remaining: 79000
//!     x-ratelimit-reset-tokens: 6m0s                              anthropic-ratelimit-tokens-reset: 2026-01-01T12:00:07Z
//!
//! OpenAI's names are spoken by most servers, some put "-minute" or "-day" behind them, or leave "-requests" out. A reset is a
//! duration ("1s", "120ms", "1h2m3.5s"), a number of seconds, a time since 1970 in seconds or milliseconds, or a date (RFC 3339).
//!
//! Sources: platform.openai.com/docs/guides/rate-limits, docs.anthropic.com/en/api/rate-limits.

const std = @import("std");
const head = @import("head.zig");

const is = std.ascii.eqlIgnoreCase;

pub const Kind = enum(u2) { requests, tokens, input_tokens, output_tokens };
pub const kind_count = @typeInfo(Kind).@"enum".field_names.len;

pub const Limit = struct {
    limit: u32 = unsaid,
    remaining: u32 = unsaid,
    /// Until it is as if nothing had been used, or until a new period begins: servers differ.
    reset_ms: u32 = unsaid,
    /// Of the limit, where the name says it; 0: it does not.
    period_s: u32 = 0,

    pub const unsaid = std.math.maxInt(u32);
};

pub const Announced = struct {
    limits: [kind_count]Limit = @splat(.{}),
    any: bool = false,

    /// One field of a head; others than those above are not looked at. `now_s`: since 1970.
    pub fn take(announced: *Announced, field: head.Field, now_s: i64) void {
        const said = parseName(field.name) orelse return;
        const limit = &announced.limits[@backingInt(said.kind)];
        if (said.period_s == period_day and limit.limit != Limit.unsaid and limit.period_s != period_day) return; // the minute's counts
        switch (said.what) {
            .limit => limit.limit = count(field.value) orelse return,
            .remaining => limit.remaining = count(field.value) orelse return,
            .reset => limit.reset_ms = resetMs(field.value, now_s) orelse return,
        }
        if (said.period_s != 0) limit.period_s = said.period_s;
        announced.any = true;
    }
};

const period_day = std.time.s_per_day;
const What = enum { limit, remaining, reset };
const Said = struct { kind: Kind, what: What, period_s: u32 = 0 };

fn parseName(name: []const u8) ?Said {
    if (cutPrefix(name, "anthropic-ratelimit-")) |rest| {
        const dash = std.mem.findScalarLast(u8, rest, '-') orelse return null;
        return .{ .kind = kindOf(rest[0..dash]) orelse return null, .what = whatOf(rest[dash + 1 ..]) orelse return null };
    }
    const rest = cutPrefix(name, "x-ratelimit-") orelse return null;
    var parts = std.mem.splitScalar(u8, rest, '-');
    var said: Said = .{ .kind = .requests, .what = whatOf(parts.first()) orelse return null };
    const which = parts.next() orelse return said;
    said.kind = kindOf(which) orelse return null;
    const period = parts.next() orelse return said;
    said.period_s = if (is(period, "minute")) 60 else if (is(period, "hour")) 3600 else if (is(period, "day")) period_day else return null;
    return if (parts.next() == null) said else null;
}

fn cutPrefix(text: []const u8, prefix: []const u8) ?[]const u8 {
    return if (std.ascii.startsWithIgnoreCase(text, prefix)) text[prefix.len..] else null;
}

fn whatOf(text: []const u8) ?What {
    return if (is(text, "limit")) .limit else if (is(text, "remaining")) .remaining else if (is(text, "reset")) .reset else null;
}

fn kindOf(text: []const u8) ?Kind {
    if (is(text, "requests")) return .requests;
    if (is(text, "tokens")) return .tokens;
    if (is(text, "input-tokens")) return .input_tokens;
    return if (is(text, "output-tokens")) .output_tokens else null;
}

fn count(value: []const u8) ?u32 {
    const whole = value[0 .. std.mem.findScalar(u8, value, '.') orelse value.len];
    const number = head.decimal(whole) orelse return null;
    return @intCast(@min(number, Limit.unsaid - 1));
}

fn resetMs(value: []const u8, now_s: i64) ?u32 {
    const ms = durationMs(value) orelse if (secondsOf(value)) |at_s| (at_s -| now_s) *| std.time.ms_per_s else return null;
    return @intCast(std.math.clamp(ms, 0, Limit.unsaid - 1));
}

/// "1h2m3.5s", "120ms", "7" (seconds). Null: none, or a time since 1970.
fn durationMs(value: []const u8) ?i64 {
    var ms: i64 = 0;
    var rest = value;
    if (rest.len == 0) return null;
    while (rest.len > 0) {
        const end = std.mem.findNone(u8, rest, "0123456789.") orelse rest.len;
        const number = rest[0..end];
        rest = rest[end..];
        const letters = rest[0 .. std.mem.findAny(u8, rest, "0123456789") orelse rest.len];
        rest = rest[letters.len..];
        const unit_ms: u32 = if (letters.len == 0 or is(letters, "s"))
            std.time.ms_per_s
        else if (is(letters, "ms"))
            1
        else if (is(letters, "m"))
            std.time.ms_per_min
        else if (is(letters, "h"))
            std.time.ms_per_hour
        else if (is(letters, "d"))
            std.time.ms_per_day
        else
            return null;
        ms +|= head.milliseconds(number, unit_ms) orelse return null;
        if (letters.len == 0 and number.len > 8) return null;
    }
    return ms;
}

/// Seconds since 1970 of a date, or of a number of seconds or milliseconds.
fn secondsOf(value: []const u8) ?i64 {
    if (head.decimal(value)) |number| {
        const seconds = if (number > 100_000_000_000) number / std.time.ms_per_s else number;
        return @intCast(@min(seconds, std.math.maxInt(i32)));
    }
    return head.dateOfRfc3339(value);
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn takeAll(lines: []const []const u8, now_s: i64) Announced {
    var announced: Announced = .{};
    for (lines) |line| announced.take(head.field(line).?, now_s);
    return announced;
}

test "what the two families of names say" {
    const openai = takeAll(&.{
        "x-ratelimit-limit-requests: 500",   "X-RateLimit-Remaining-Requests: 499", "x-ratelimit-reset-requests: 120ms",
        "x-ratelimit-limit-tokens: 30000.0", "x-ratelimit-remaining-tokens: 0",     "x-ratelimit-reset-tokens: 1h2m3.5s",
        "x-ratelimit-limit-kittens: 7",      "x-ratelimit: 9",                      "x-request-id: 5",
    }, 0);
    try testing.expectEqual(Limit{ .limit = 500, .remaining = 499, .reset_ms = 120 }, openai.limits[0]);
    try testing.expectEqual(Limit{ .limit = 30_000, .remaining = 0, .reset_ms = 3_723_500 }, openai.limits[1]);
    try testing.expectEqual(Limit{}, openai.limits[2]);
    const anthropic = takeAll(&.{
        "anthropic-ratelimit-requests-limit: 1000",           "anthropic-ratelimit-input-tokens-limit: 80000",
        "anthropic-ratelimit-output-tokens-remaining: 16000", "anthropic-ratelimit-tokens-reset: 2026-01-01T00:00:07Z",
        "anthropic-ratelimit-unified-status: allowed",
    }, 1_767_225_600);
    try testing.expectEqual(1000, anthropic.limits[@backingInt(Kind.requests)].limit);
    try testing.expectEqual(80_000, anthropic.limits[@backingInt(Kind.input_tokens)].limit);
    try testing.expectEqual(16_000, anthropic.limits[@backingInt(Kind.output_tokens)].remaining);
    try testing.expectEqual(7_000, anthropic.limits[@backingInt(Kind.tokens)].reset_ms);
    try testing.expect(!takeAll(&.{"content-length: 5"}, 0).any);
}

test "the minute's limit counts where the day's stands beside it" {
    const both = [_][]const u8{ "x-ratelimit-limit-requests-minute: 30", "x-ratelimit-limit-requests-day: 14400" };
    try testing.expectEqual(Limit{ .limit = 30, .period_s = 60 }, takeAll(&both, 0).limits[0]);
    try testing.expectEqual(Limit{ .limit = 14_400, .period_s = 86_400 }, takeAll(both[1..], 0).limits[0]);
    try testing.expectEqual(60, takeAll(&.{"x-ratelimit-limit: 60"}, 0).limits[0].limit);
}

test "a reset is a duration, seconds, or a moment" {
    const now = 1_767_225_600;
    const cases = [_]struct { []const u8, ?u32 }{
        .{ "1s", 1_000 },     .{ "6m0s", 360_000 },                .{ "120ms", 120 },                          .{ "8.64s", 8_640 },
        .{ "59.7", 59_700 },  .{ "0", 0 },                         .{ "1767225610", 10_000 },                  .{ "1767225610000", 10_000 },
        .{ "1767225599", 0 }, .{ "2026-01-01T00:01:00Z", 60_000 }, .{ "2026-01-01T01:01:00.5+01:00", 60_000 }, .{ "soon", null },
        .{ "", null },        .{ "1x", null },                     .{ "2026-13-01T00:00:00Z", null },
    };
    for (cases) |case| {
        errdefer std.debug.print("'{s}'\n", .{case[0]});
        try testing.expectEqual(case[1], resetMs(case[0], now));
    }
}

test "whatever a server says does no harm" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    const alphabet = "0123456789.hmsdTZ:-+ x";
    var text: [24]u8 = undefined;
    for (0..20_000) |_| {
        const value = text[0..prng.random().uintAtMost(usize, text.len)];
        for (value) |*byte| byte.* = alphabet[prng.random().uintLessThan(usize, alphabet.len)];
        _ = resetMs(value, prng.random().int(u32));
        _ = count(value);
    }
}
