//! When to try again: a pure function of what failed, how often, what the server asked for, what time is left, and dice.
//!
//! ## How long
//!
//!     ceiling = min(backoff_max, backoff_first * 2^(attempt - 1))
//!     delay   = max(ceiling / 2, what Retry-After asks) + dice * ceiling / 2,     0 <= dice < 1
//!
//! Without Retry-After that is "equal jitter" (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015):
//! half of the wait is certain, so a server in trouble gets its pause, the other half is spread, so that those who failed
//! together do not come back together. With Retry-After the wait is never shorter than asked, and the spread goes on top:
//! otherwise everybody who was told "10 seconds" would return in the same instant.
//!
//! ## Whether
//!
//! What may be different next time: no connection, one that broke, a timeout; statuses 408, 409 (a lock the provider could not
//! get), 429 and 5xx. Not what stays the same: a wrong request, a key without rights, a certificate, a reply too large or
//! not the promised JSON, a quota that is used up. What was cancelled stays cancelled.

const std = @import("std");
const failure_file = @import("../base/failure.zig");

pub const Failure = failure_file.Failure;

pub const Policy = struct {
    /// All tries together; 1: no retry.
    attempts_max: u32,
    backoff_first_ms: u32,
    backoff_max_ms: u32,
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
};

/// Where no deadline says how long is too long, a server that asks for more than this is not waited for.
pub const retry_after_max_ms = 120_000;

/// How long to wait before the next try; null: give up now. `left_ms`: until the deadline, null without one.
pub fn delayMs(policy: Policy, failed: Failed, left_ms: ?u64, dice: u64) ?u64 {
    if (failed.attempt >= policy.attempts_max) return null;
    if (!mayPass(failed)) return null;
    const asked: u64 = @intCast(@max(failed.retry_after_ms, 0));
    if (left_ms == null and asked > retry_after_max_ms) return null;
    const half = ceilingMs(policy, failed.attempt) / 2;
    const delay = @max(half, asked) +| share(half, dice);
    // A try that would begin at the deadline cannot succeed: better the failure now than a timeout later.
    if (left_ms) |left| if (delay >= left) return null;
    return delay;
}

/// Whether the same request may fare better next time.
fn mayPass(failed: Failed) bool {
    if (failed.quota_exhausted) return false;
    return switch (failed.failure) {
        .resolve, .connect, .closed => true,
        .connect_timeout, .idle_timeout, .total_timeout => true,
        .status, .provider => switch (failed.status) {
            408, 409, 429, 500...599 => true,
            else => false,
        },
        .none, .cancelled, .shutdown => false,
        .refused, .template, .tls, .no_libcurl => false,
        .too_large, .protocol, .bad_reply => false,
        .out_of_memory, .other => false,
    };
}

fn ceilingMs(policy: Policy, attempt: u32) u64 {
    const doublings = @min(attempt -| 1, 32); // 2^32 ms are 50 days
    return @min(policy.backoff_max_ms, @as(u64, policy.backoff_first_ms) << @intCast(doublings));
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
            .resolve, .connect, .closed, .connect_timeout, .idle_timeout, .total_timeout => true,
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
