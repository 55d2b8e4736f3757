//! Refusals in a row: what they say together, and when they are over. Pure.
//!
//! A row begins with a refusal, and ends when something was taken that was sent with the last one that was refused, or later: an answer
//! to what was sent before says nothing about now. Refusals of what was sent before the last one was known are part of that one.
//! As long as a row lasts, each refusal is a longer pause than the one before, and after some of them one request at a time tries
//! whether it is over (congestion.zig sends them).

const std = @import("std");

const pause_first_ns = 200 * std.time.ns_per_ms;
const pause_max_ns = 4 * std.time.ns_per_s;
/// After so many refusals, some seconds, a row is long.
const long = 5;
/// One of overload is so sooner.
const long_overload = 3;
/// Where a tenth of the most that were on their way in a row is missing, some have ended.
const ended_share = 10;

pub const Row = struct {
    /// Refusals since something was last taken.
    count: u5 = 0,
    /// Requests with lower numbers were sent before the last refusal that counted was known.
    decided_at: u64 = 0,
    /// When that one was sent.
    refused_sent_ns: u64 = 0,
    /// When the first one was sent since then.
    tried_ns: ?u64 = null,
    /// How many were on their way when one was refused, at most and at last; the row's first, part of a crowd, does not count.
    running_max: u32 = 0,
    running: u32 = 0,
    /// What has ended made no room.
    is_by_time: bool = false,
    /// Sent since the last refusal that counted.
    sent_since: u32 = 0,
    /// What was borne as it began.
    borne: f64 = 0,

    /// One at a time tries whether it is over.
    pub fn tries(row: *const Row) bool {
        return row.count >= 2;
    }

    pub fn isLong(row: *const Row) bool {
        return row.count >= long;
    }

    /// It was long. A server in trouble is back after seconds as well; and where answers are slow only few tries fit into a minute.
    pub fn wasLong(row: *const Row, is_overload: bool) bool {
        return row.count > long or (row.count >= long_overload and is_overload);
    }

    /// Is a refusal of that request one more, or part of the last one?
    pub fn counts(row: *const Row, number: u64) bool {
        return number >= row.decided_at;
    }

    pub fn noteSent(row: *Row, now_ns: u64) void {
        row.sent_since +|= 1;
        if (row.count > 0 and row.tried_ns == null) row.tried_ns = now_ns;
    }

    /// What came of the request that was sent then does not tell whether it was taken.
    pub fn noteVoid(row: *Row, sent_ns: u64) void {
        if (row.tried_ns == sent_ns) row.tried_ns = null;
    }

    /// What was tried so long ago, and not refused, was taken.
    pub fn isOver(row: *const Row, now_ns: u64, took_ns: u64) bool {
        return if (row.tried_ns) |tried_ns| now_ns -| tried_ns >= took_ns else false;
    }

    /// One that counts. `in_flight`: when it was sent, with it. Returns the pause it is worth where the server names none.
    pub fn noteRefused(row: *Row, sent_ns: u64, next_number: u64, in_flight: u32) u64 {
        const pause_ns = @min(@as(u64, pause_first_ns) << row.count, pause_max_ns);
        row.refused_sent_ns = sent_ns;
        row.decided_at = next_number;
        row.tried_ns = null;
        row.sent_since = 0;
        if (row.count == 0) {
            row.borne = @floatFromInt(@max(in_flight, 1)); // until more is known
        } else {
            row.running = in_flight -| 1;
            if (row.running == 0 or row.running + 1 + @max(1, row.running_max / ended_share) < row.running_max) row.is_by_time = true;
            row.running_max = @max(row.running_max, row.running);
        }
        row.count +|= 1;
        return pause_ns;
    }

    /// What a later one is compared with stays.
    pub fn end(row: *Row) void {
        row.count = 0;
        row.tried_ns = null;
        row.running_max = 0;
        row.is_by_time = false;
    }

    /// Nothing that was sent so far says anything any more.
    pub fn forget(row: *Row, next_number: u64) void {
        row.decided_at = next_number;
        row.count = 0;
        row.tried_ns = null;
    }
};

/// After a refusal by a quota whose counting holds the next ones back anyhow; and of several in a row, doubled with each, at least
const explained_pause_ns: u64 = 50 * std.time.ns_per_ms;
const explained_pause_max_ns = 2 * std.time.ns_per_s;
/// And so long as one takes that the limit allows, at most
const each_max_ns = 10 * std.time.ns_per_s;

/// Refusals that a limit accounts for which the server announces. It holds back what it must by our count; where one such refusal
/// follows the other, the server counts otherwise than we do.
pub const Explained = struct {
    /// Since something was taken.
    count: u8 = 0,
    /// When the first of them was known.
    began_ns: u64 = 0,
    /// The number of the first request after the last of them, and when that was sent.
    decided_at: u64 = 0,
    tried_ns: u64 = 0,

    pub fn noteSent(explained: *Explained, now_ns: u64, number: u64) void {
        if (number == explained.decided_at) explained.tried_ns = now_ns;
    }

    /// After several of them one tries whether it is over: the next one may go then. `last_number`: of what was sent.
    pub fn triedUntil(explained: *const Explained, last_number: u64) u64 {
        return if (explained.count > 1 and last_number >= explained.decided_at) explained.tried_ns + std.time.ns_per_s else 0;
    }

    pub fn noteTaken(explained: *Explained, number: u64) void {
        if (number >= explained.decided_at) explained.count = 0;
    }

    /// `reset_ms`: when the server says that the quota is as new; `each_ns`: so long takes one that it allows. Returns the pause it is worth.
    pub fn noteRefused(explained: *Explained, now_ns: u64, number: u64, next_number: u64, reset_ms: u32, each_ns: u64) u64 {
        // As far as is known: not more than what a bucket gives in a moment is at stake.
        const pause_ns = @min(@as(u64, reset_ms) * std.time.ns_per_ms / 4, explained_pause_max_ns);
        if (explained.count == 0) explained.began_ns = now_ns;
        if (number >= explained.decided_at) explained.count +|= 1;
        explained.decided_at = next_number;
        if (explained.count <= 1) return pause_ns;
        return @max(pause_ns, @min(explained_pause_ns << @min(explained.count, 8), explained_pause_max_ns), @min(each_ns, each_max_ns));
    }

    /// One that was sent then was refused although nothing was taken for so long that the limit allows one.
    pub fn hasWaited(explained: *const Explained, sent_ns: u64, each_ns: u64) bool {
        return explained.count > 1 and sent_ns -| explained.began_ns >= each_ns;
    }

    pub fn rewind(explained: *Explained) void {
        explained.* = .{ .decided_at = explained.decided_at };
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const ms = std.time.ns_per_ms;

test "each refusal of a row is worth twice the pause, and those that were on their way are part of it" {
    var row: Row = .{};
    for ([_]u64{ 200, 400, 800, 1600, 3200, 4000, 4000 }, 1..) |pause_ms, i| {
        try testing.expect(row.counts(i * 10) and !row.counts(i * 10 - 1) or i == 1);
        try testing.expectEqual(pause_ms * ms, row.noteRefused(i * ms, (i + 1) * 10, 5));
        try testing.expectEqual(i >= 2, row.tries());
        try testing.expectEqual(i >= long, row.isLong());
        try testing.expectEqual(i > long, row.wasLong(false));
        try testing.expectEqual(i >= long_overload, row.wasLong(true));
    }
    for (0..100) |_| _ = row.noteRefused(0, 0, 5);
    try testing.expectEqual(std.math.maxInt(u5), row.count);
    row.end();
    try testing.expectEqual(200 * ms, row.noteRefused(0, 0, 5));
}

test "a row is over when the first that was sent after it was not refused for long enough" {
    var row: Row = .{};
    row.noteSent(1);
    try testing.expect(!row.isOver(1000, 10));
    _ = row.noteRefused(1, 2, 1);
    try testing.expect(!row.isOver(1000, 10)); // nothing was tried
    row.noteSent(1000);
    row.noteSent(1005);
    try testing.expect(!row.isOver(1009, 10) and row.isOver(1010, 10));
    row.noteVoid(1005);
    try testing.expect(row.isOver(1010, 10));
    row.noteVoid(1000);
    try testing.expect(!row.isOver(2000, 10));
    row.noteSent(2000);
    try testing.expect(row.isOver(2010, 10));
}

test "what ends and makes no room says that it is by time" {
    for ([_][]const u32{ &.{ 40, 31, 31, 30 }, &.{ 40, 31, 30, 26 }, &.{ 40, 1 } }, [_]bool{ false, true, true }) |in_flight, by_time| {
        var row: Row = .{};
        for (in_flight) |it| _ = row.noteRefused(0, 0, it);
        try testing.expectEqual(by_time, row.is_by_time);
        try testing.expectEqual(40, row.borne);
    }
}

test "of refusals by an announced limit the second one in a row makes one at a time try" {
    var explained: Explained = .{};
    try testing.expectEqual(250 * ms, explained.noteRefused(7 * ms, 1, 10, 1000, 300 * ms));
    try testing.expectEqual(0, explained.triedUntil(100));
    try testing.expectEqual(0, explained.noteRefused(8 * ms, 9, 12, 0, 300 * ms)); // was on its way
    try testing.expect(!explained.hasWaited(500 * ms, 300 * ms));
    try testing.expectEqual(200 * ms, explained.noteRefused(9 * ms, 12, 20, 0, 100 * ms));
    try testing.expect(!explained.hasWaited(306 * ms, 300 * ms) and explained.hasWaited(307 * ms, 300 * ms));
    try testing.expectEqual(0, explained.triedUntil(19)); // none has tried yet
    explained.noteSent(5 * ms, 20);
    try testing.expectEqual(1005 * ms, explained.triedUntil(20));
    explained.noteTaken(19);
    try testing.expectEqual(1005 * ms, explained.triedUntil(20));
    explained.noteTaken(20);
    try testing.expectEqual(0, explained.triedUntil(20));
    for (0..300) |i| try testing.expect(explained.noteRefused(0, 20 + i, 21 + i, 0, 0) <= explained_pause_max_ns);
    try testing.expectEqual(9_000 * ms, explained.noteRefused(0, 400, 401, 0, 9_000 * ms));
    try testing.expectEqual(each_max_ns, explained.noteRefused(0, 401, 402, 0, 20_000 * ms));
}
