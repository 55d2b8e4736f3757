//! When to try again: a pure function of what failed, how often, what the server asked for, what time is left, and dice.
//!
//! ## How long
//!
//!     ceiling = min(backoff_max, backoff_first * factor^(attempt - 1))
//!     delay   = max(ceiling * (1 - jitter), what Retry-After asks) + dice * ceiling * jitter,     0 <= dice < 1
//!
//! With a jitter of one half that is "equal jitter" (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
//! 2015): half of the wait is certain, so a server in trouble gets its pause, the other half is spread, so that those who
//! failed together do not come back together. With Retry-After the wait is never shorter than asked, and the spread goes on
//! top: otherwise everybody who was told "10 seconds" would return in the same instant. Without jitter it is the ceiling.
//!
//! ## Whether
//!
//! What may be different next time: no connection, one that broke, a timeout; statuses 408, 409 (a lock the provider could not
//! get), 429 and 5xx, or those that the policy lists. Not what stays the same: a wrong request, a key without rights, a
//! certificate, a reply too large or not the promised JSON, a quota that is used up. What was cancelled stays cancelled. Of a
//! callback's failure the core knows nothing: the binding says whether it may pass.

const std = @import("std");
const failure_file = @import("../base/failure.zig");

pub const Failure = failure_file.Failure;

/// C: gb_retry
pub const Retry = extern struct {
    attempts_max: u32 = 1,
    backoff_first_ms: u32 = 0,
    backoff_max_ms: u32 = 0,
    factor_permille: u32 = 2000,
    jitter_permille: u32 = 500,
    status_count: u32 = 0,
    statuses: [statuses_max]u16 = @splat(0),

    const statuses_max = 12;

    pub fn isSound(retry: *const Retry) bool {
        return retry.attempts_max > 0 and retry.jitter_permille <= 1000 and retry.status_count <= statuses_max;
    }

    /// Borrows the statuses.
    pub fn policy(retry: *const Retry) Policy {
        return .{
            .attempts_max = retry.attempts_max,
            .backoff_first_ms = retry.backoff_first_ms,
            .backoff_max_ms = retry.backoff_max_ms,
            .factor_permille = retry.factor_permille,
            .jitter_permille = retry.jitter_permille,
            .statuses = retry.statuses[0..retry.status_count],
        };
    }
};

pub const Policy = struct {
    /// All tries together; 1: no retry.
    attempts_max: u32,
    backoff_first_ms: u32,
    backoff_max_ms: u32,
    /// Of one pause to the one before, in thousandths.
    factor_permille: u32 = 2000,
    /// How much of a pause is spread; at most 1000.
    jitter_permille: u32 = 500,
    /// Of replies that are worth another try; empty: the usual ones.
    statuses: []const u16 = &.{},
};

pub const Failed = struct {
    /// How many tries there were, from 1.
    attempt: u32,
    failure: Failure,
    /// Of the reply, or, for an error object inside a good reply, the status it names; 0: none.
    status: u16 = 0,
    /// What the server asked for; -1: nothing.
    retry_after_ms: i64 = -1,
    quota_exhausted: bool = false,
    /// Somebody who knows the failure better has decided; null: it is judged here.
    retryable: ?bool = null,
};

/// Where no deadline says how long is too long, a server that asks for more than this is not waited for.
pub const retry_after_max_ms = 120_000;

/// How long to wait before the next try; null: give up now. `left_ms`: until the deadline, null without one.
pub fn delayMs(policy: Policy, failed: Failed, left_ms: ?u64, dice: u64) ?u64 {
    if (failed.attempt >= policy.attempts_max) return null;
    if (!(failed.retryable orelse mayPass(policy, failed))) return null;
    const asked: u64 = @intCast(@max(failed.retry_after_ms, 0));
    if (left_ms == null and asked > retry_after_max_ms) return null;
    const ceiling = ceilingMs(policy, failed.attempt);
    const spread = ceiling * @min(policy.jitter_permille, 1000) / 1000;
    const delay = @max(ceiling - spread, asked) +| share(spread, dice);
    // A try that would begin at the deadline cannot succeed: better the failure now than a timeout later.
    if (left_ms) |left| if (delay >= left) return null;
    return delay;
}

/// Whether the same request may fare better next time.
fn mayPass(policy: Policy, failed: Failed) bool {
    if (failed.quota_exhausted) return false;
    return switch (failed.failure) {
        .resolve, .connect, .closed => true,
        .connect_timeout, .first_byte_timeout, .idle_timeout, .total_timeout => true,
        .status, .provider => mayStatusPass(policy, failed.status),
        .none, .cancelled, .shutdown => false,
        .refused, .template, .tls, .no_libcurl, .redirect, .not_public => false,
        .circuit_open, .queue_timeout => false, // it was for waiting
        .too_large, .protocol, .bad_reply => false,
        .out_of_memory, .other => false,
        .node_timeout, .none_left, .native => false, // of nodes, not of requests
    };
}

/// A reply with that status is worth another try.
pub fn mayStatusPass(policy: Policy, status: u16) bool {
    if (policy.statuses.len > 0) return std.mem.findScalar(u16, policy.statuses, status) != null;
    return switch (status) {
        408, 409, 429, 500...599 => true,
        else => false,
    };
}

/// What another attempt was for, as it is counted.
pub const Reason = enum(u8) {
    no_connection,
    closed,
    timeout,
    request_timeout,
    conflict,
    rate_limit,
    server_error,
    other,
};
pub const reason_count = @typeInfo(Reason).@"enum".field_names.len;

pub fn reasonOf(failed: Failed) Reason {
    return switch (failed.failure) {
        .resolve, .connect => .no_connection,
        .closed => .closed,
        .connect_timeout, .first_byte_timeout, .idle_timeout, .total_timeout => .timeout,
        .status, .provider => switch (failed.status) {
            408 => .request_timeout,
            409 => .conflict,
            429 => .rate_limit,
            500...599 => .server_error,
            else => .other,
        },
        else => .other,
    };
}

fn ceilingMs(policy: Policy, attempt: u32) u64 {
    if (policy.backoff_first_ms == 0) return 0;
    const factor = @as(f64, @floatFromInt(policy.factor_permille)) / 1000;
    const grown = @as(f64, @floatFromInt(policy.backoff_first_ms)) * std.math.pow(f64, factor, @floatFromInt(attempt -| 1));
    return @intFromFloat(@round(@min(grown, @as(f64, @floatFromInt(policy.backoff_max_ms)))));
}

/// A fraction of `whole` that the dice choose: dice / 2^64 of it.
fn share(whole: u64, dice: u64) u64 {
    return @intCast((@as(u128, whole) * dice) >> 64);
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const six: Policy = .{ .attempts_max = 6, .backoff_first_ms = 500, .backoff_max_ms = 5_000 };
const low = 0;
const high = std.math.maxInt(u64);

fn overloaded(attempt: u32) Failed {
    return .{ .attempt = attempt, .failure = .status, .status = 503 };
}

test "the wait doubles from the first to the cap, and the dice spread its upper half" {
    for ([_]u64{ 250, 500, 1_000, 2_000, 2_500 }, 1..) |half, attempt| {
        try testing.expectEqual(half, delayMs(six, overloaded(@intCast(attempt)), null, low));
        try testing.expectEqual(half + half - 1, delayMs(six, overloaded(@intCast(attempt)), null, high));
        try testing.expectEqual(half + half / 2, delayMs(six, overloaded(@intCast(attempt)), null, high / 2 + 1));
    }
}

test "a pause grows by the factor, to the nearest millisecond and no further than the cap" {
    var policy = six;
    policy.jitter_permille = 0;
    policy.attempts_max = 100;
    for ([_]struct { u32, [5]u64 }{
        .{ 1000, .{ 500, 500, 500, 500, 500 } },
        .{ 1500, .{ 500, 750, 1_125, 1_688, 2_531 } },
        .{ 3000, .{ 500, 1_500, 4_500, 5_000, 5_000 } },
        .{ 500, .{ 500, 250, 125, 63, 31 } },
        .{ 0, .{ 500, 0, 0, 0, 0 } },
    }) |it| {
        policy.factor_permille = it[0];
        for (it[1], 1..) |expected, attempt| try testing.expectEqual(expected, delayMs(policy, overloaded(@intCast(attempt)), null, high));
    }
    policy.backoff_first_ms = 0;
    policy.factor_permille = std.math.maxInt(u32);
    try testing.expectEqual(0, delayMs(policy, overloaded(99), null, high));
}

test "without jitter the wait is the ceiling, with all of it anything below" {
    var policy = six;
    policy.jitter_permille = 0;
    for ([_]u64{ low, high }) |dice| try testing.expectEqual(1_000, delayMs(policy, overloaded(2), null, dice));
    policy.jitter_permille = 1000;
    try testing.expectEqual(0, delayMs(policy, overloaded(2), null, low));
    try testing.expectEqual(999, delayMs(policy, overloaded(2), null, high));
    var failed = overloaded(2);
    failed.retry_after_ms = 700;
    try testing.expectEqual(700, delayMs(policy, failed, null, low));
}

test "a policy's own statuses take the place of the usual ones, for replies alone" {
    const own: Retry = .{ .attempts_max = 2, .status_count = 2, .statuses = .{ 404, 418 } ++ @as([10]u16, @splat(503)) };
    try testing.expect(own.isSound());
    for ([_]u16{ 404, 418 }) |status| {
        try testing.expect(delayMs(own.policy(), .{ .attempt = 1, .failure = .status, .status = status }, null, low) != null);
        try testing.expect(delayMs(own.policy(), .{ .attempt = 1, .failure = .provider, .status = status }, null, low) != null);
    }
    try testing.expectEqual(null, delayMs(own.policy(), overloaded(1), null, low));
    try testing.expect(delayMs(own.policy(), .{ .attempt = 1, .failure = .connect }, null, low) != null);
}

test "who knows a failure better decides, but not about the number of tries" {
    try testing.expect(delayMs(six, .{ .attempt = 1, .failure = .other, .retryable = true }, null, low) != null);
    try testing.expectEqual(null, delayMs(six, .{ .attempt = 1, .failure = .connect, .retryable = false }, null, low));
    try testing.expectEqual(null, delayMs(six, .{ .attempt = 6, .failure = .other, .retryable = true }, null, low));
}

test "policies that make no sense are not sound" {
    try testing.expect((Retry{}).isSound());
    try testing.expect(!(Retry{ .attempts_max = 0 }).isSound());
    try testing.expect(!(Retry{ .jitter_permille = 1001 }).isSound());
    try testing.expect(!(Retry{ .status_count = 13 }).isSound());
}

test "there is an end to trying" {
    try testing.expectEqual(null, delayMs(six, overloaded(6), null, low));
    const once: Policy = .{ .attempts_max = 1, .backoff_first_ms = 0, .backoff_max_ms = 0 };
    try testing.expectEqual(null, delayMs(once, overloaded(1), null, low));
}

test "a server's wish is never undercut, and those who share it are spread" {
    var failed = overloaded(1);
    failed.retry_after_ms = 10_000;
    try testing.expectEqual(10_000, delayMs(six, failed, null, low));
    try testing.expectEqual(10_249, delayMs(six, failed, null, high));
    failed.retry_after_ms = 100; // less than the backoff
    try testing.expectEqual(250, delayMs(six, failed, null, low));
    failed.retry_after_ms = 0;
    try testing.expectEqual(250, delayMs(six, failed, null, low));
}

test "a wait that does not fit before the deadline fails at once" {
    try testing.expectEqual(250, delayMs(six, overloaded(1), 251, low));
    try testing.expectEqual(null, delayMs(six, overloaded(1), 250, low));
    try testing.expectEqual(null, delayMs(six, overloaded(1), 0, low));
    var failed = overloaded(1);
    failed.retry_after_ms = 60_000;
    try testing.expectEqual(null, delayMs(six, failed, 30_000, low));
}

test "without a deadline nobody waits an hour because a server says so" {
    var failed = overloaded(1);
    failed.retry_after_ms = retry_after_max_ms;
    try testing.expectEqual(retry_after_max_ms, delayMs(six, failed, null, low));
    failed.retry_after_ms = 3_600_000;
    try testing.expectEqual(null, delayMs(six, failed, null, low));
    try testing.expectEqual(3_600_000, delayMs(six, failed, 4_000_000, low));
    failed.retry_after_ms = std.math.maxInt(i64);
    try testing.expectEqual(null, delayMs(six, failed, 4_000_000, high));
}

test "statuses that may pass are retried, the caller's faults are not" {
    for ([_]u16{ 408, 409, 429, 500, 502, 503, 504, 520, 529 }) |status| {
        try testing.expect(delayMs(six, .{ .attempt = 1, .failure = .status, .status = status }, null, low) != null);
    }
    for ([_]u16{ 400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 451, 600 }) |status| {
        try testing.expectEqual(null, delayMs(six, .{ .attempt = 1, .failure = .status, .status = status }, null, low));
    }
}

test "every failure has its answer" {
    for (std.enums.values(Failure)) |failure| {
        const expected = switch (failure) {
            .resolve, .connect, .closed, .connect_timeout, .first_byte_timeout, .idle_timeout, .total_timeout => true,
            else => false,
        };
        const failed: Failed = .{ .attempt = 1, .failure = failure, .status = 200 };
        try testing.expectEqual(expected, delayMs(six, failed, null, low) != null);
    }
    // An error object inside a good reply: its own number decides.
    try testing.expect(delayMs(six, .{ .attempt = 1, .failure = .provider, .status = 429 }, null, low) != null);
    try testing.expectEqual(null, delayMs(six, .{ .attempt = 1, .failure = .provider, .status = 0 }, null, low));
}

test "a used-up quota is no rate limit" {
    const failed: Failed = .{ .attempt = 1, .failure = .status, .status = 429, .retry_after_ms = 1, .quota_exhausted = true };
    try testing.expectEqual(null, delayMs(six, failed, null, low));
}

test "no policy and no dice overflow" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    for (0..10_000) |_| {
        const policy: Policy = .{
            .attempts_max = random.int(u32),
            .backoff_first_ms = random.int(u32) >> random.int(u5),
            .backoff_max_ms = random.int(u32) >> random.int(u5),
            .factor_permille = random.int(u32) >> random.int(u5),
            .jitter_permille = random.uintAtMost(u32, 1000),
        };
        const failed: Failed = .{
            .attempt = @max(1, random.int(u32) >> random.int(u5)),
            .failure = .status,
            .status = 429,
            .retry_after_ms = random.int(i64) >> random.int(u6),
        };
        const left: ?u64 = if (random.boolean()) random.int(u64) >> random.int(u6) else null;
        const delay = delayMs(policy, failed, left, random.int(u64)) orelse continue;
        if (left) |it| try testing.expect(delay < it);
        try testing.expect(delay >= @max(failed.retry_after_ms, 0));
        try testing.expect(delay <= @max(failed.retry_after_ms, 0) +| policy.backoff_max_ms);
    }
}
