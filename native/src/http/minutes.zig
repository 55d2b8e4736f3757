//! A limit of requests in a minute that the server does not tell: learned from its refusals. Pure.
//!
//! A server that counts by the minute takes what it takes in a moment, and then for a long while nothing at all, even where nothing
//! else is on its way. That gives it away: a limit of so many at once takes the next one as soon as one has ended, and a bucket
//! fills up all the time. From then on the limit is held here as the server holds it, by counting.
//!
//! ## What a refusal tells
//!
//! Where the last minute counts, what was taken in the minute before a refused request was sent *is* the limit. Where the minute
//! of the server's clock counts it may be more, by what was taken in the end of the minute before; but of the last refusal
//! in a row it is not, for that one was sent just before the new minute began. So the limit is learned when a row is over,
//! from its last refusal, and every later one may only lower it: by about half in a row at most, for one bad moment is not the
//! end. A limit that was halved is found as soon as the server takes something again.
//!
//! ## What a refusal is about
//!
//! There may be a limit of another kind as well. A refusal is about this one if nearly as much was used as a row has told that there is;
//! else congestion.zig learns from it, and the limit stays what it is. One that is lowered by much brings a long row with it, and
//! that is learned when it is over.
//!
//! ## Up again
//!
//! Slowly to what was counted, and then faster and faster, see curve.zig. One request too many is
//! refused at once where the last minute counts, so that little is risked; after a long row, which a minute of the clock brings each
//! time, the curve takes its time.
//!
//! A few requests do not wait: only from half of the limit on, and in the minute after a refusal, they go one after the other, at a pace
//! a little faster than the limit lasts.
//!
//! ## What only looks like one
//!
//! A server in trouble may refuse for some seconds as well. Of one that counts the last minute, the count stays what it is throughout a
//! row, and with the first that is forgotten the row is over. Where that was otherwise the limit is only suspected, until a second
//! row ends at about the same count.

const std = @import("std");
const curve_file = @import("curve.zig");

const ns_per_s: f64 = std.time.ns_per_s;

const slot_ns = std.time.ns_per_s / 10;
/// The slot in which the last minute began counts as a whole.
const minute_slots = 601;
/// More than a minute's: a refusal may be long in coming.
const slot_count = 1024;

const kept_below = 0.99;
const least_of_row = 0.45;
/// A refusal is about the limit where at least so much was used of what a row has told. Of a limit by the minute that was lowered the
/// row is a long one.
const met_at = 0.9;
const suspected_for_ns = 10 * std.time.ns_per_min;
const steepness = 1.5;
const steepness_long = 0.3;
const flat_requests = 160;
const flat_requests_long = 700;
const flat_ns_min = 6 * ns_per_s;
const flat_ns_max = 120 * ns_per_s;
/// Of what was taken in the last minute: what is more was never tried.
const tried = 2.0;

pub const Minutes = struct {
    /// Null: none is known.
    limit: ?f64 = null,
    /// Its mark: what was counted at the last refusal.
    curve: curve_file.Curve = .{},
    /// It is not lowered below this in the present row of refusals.
    least: f64 = 0,
    flat: f64 = flat_ns_min,
    refused_ns: u64 = 0,
    next_send_ns: u64 = 0,
    /// What was sent and not refused, by slot; in a ring.
    slots: [slot_count]u32 = @splat(0),
    newest: u64 = 0,
    /// The first one in which anything was sent.
    oldest: u64 = std.math.maxInt(u64),
    /// Of the last minute.
    sum: u64 = 0,
    /// What the last refusal told, and the most that one told in the present row.
    counted: u64 = 0,
    counted_max: u64 = 0,
    /// What a row told that might have been something else, and when it ended.
    suspected: u64 = 0,
    suspected_ns: u64 = 0,
    /// The present row, or the last one, is about this limit.
    is_met: bool = false,
    /// What the last row has told.
    learned: f64 = 0,

    fn advance(minutes: *Minutes, now_ns: u64) void {
        const now_slot = now_ns / slot_ns;
        if (now_slot <= minutes.newest) return;
        if (now_slot - minutes.newest >= slot_count) {
            minutes.slots = @splat(0);
            minutes.sum = 0;
        } else for (minutes.newest + 1..now_slot + 1) |number| {
            minutes.sum -= minutes.at(number -% minute_slots).*;
            minutes.at(number).* = 0;
        }
        minutes.newest = now_slot;
    }

    fn at(minutes: *Minutes, number: u64) *u32 {
        return &minutes.slots[number % slot_count];
    }

    /// `is_limiting`: it was held back, and nothing was refused of late.
    pub fn noteSent(minutes: *Minutes, now_ns: u64, is_limiting: bool) void {
        minutes.advance(now_ns);
        minutes.at(minutes.newest).* += 1;
        minutes.sum += 1;
        minutes.oldest = @min(minutes.oldest, minutes.newest);
        if (minutes.limit == null) return;
        minutes.grow(now_ns, is_limiting);
        if (!minutes.isPaced(now_ns)) return;
        // Timers are late, and what was missed by a little may be made up for.
        const interval: u64 = @intFromFloat(60 * ns_per_s / minutes.limit.? / 1.05);
        // Whoever went before his time, as the breaker's probe does, delays nobody by more than one interval.
        minutes.next_send_ns = @min(@max(minutes.next_send_ns, now_ns -| @max(interval, 20 * std.time.ns_per_ms)), now_ns) + interval;
    }

    fn isPaced(minutes: *const Minutes, now_ns: u64) bool {
        return now_ns -| minutes.refused_ns < std.time.ns_per_min or @as(f64, @floatFromInt(minutes.sum)) * 2 >= minutes.limit.?;
    }

    /// It counts no more: it was refused, or never sent.
    pub fn remove(minutes: *Minutes, now_ns: u64, sent_ns: u64) void {
        minutes.advance(now_ns);
        const number = sent_ns / slot_ns;
        if (number > minutes.newest or number + slot_count <= minutes.newest) return;
        const slot = minutes.at(number);
        if (slot.* == 0) return; // what was noted is void, see rewind
        slot.* -= 1;
        if (number + minute_slots > minutes.newest) minutes.sum -= 1;
    }

    /// When the next request may be sent: `now_ns` or later.
    pub fn sendAt(minutes: *Minutes, now_ns: u64) u64 {
        const limit = minutes.limit orelse return now_ns;
        minutes.advance(now_ns);
        const room: u64 = @intFromFloat(@max(limit, 1) - 1);
        const next_ns = if (minutes.isPaced(now_ns)) @min(minutes.next_send_ns, now_ns + std.time.ns_per_min) else now_ns;
        var sum = minutes.sum;
        var number = minutes.newest;
        while (sum > room) { // slots leave one by one, the oldest first
            number += 1;
            sum -= minutes.at(number -% minute_slots).*;
        }
        return @max(now_ns, next_ns, if (number == minutes.newest) 0 else number * slot_ns);
    }

    pub const Place = enum {
        /// The first of a row.
        first,
        /// Sent with that one, or before it was refused: some of what was sent together will be refused as well.
        crowd,
        later,
        /// Nothing was taken for seconds.
        late,
    };

    /// A refusal, because of what was used, of what was sent then. Where in its row?
    pub fn noteRefused(minutes: *Minutes, now_ns: u64, sent_ns: u64, place: Place) void {
        minutes.remove(now_ns, sent_ns);
        minutes.counted = 0;
        const until = @min(sent_ns / slot_ns, minutes.newest);
        for (@max(until + 1, minute_slots) - minute_slots..until + 1) |number| {
            if (number + slot_count > minutes.newest) minutes.counted += minutes.at(number).*;
        }
        switch (place) {
            .first => minutes.counted_max = 0,
            .crowd => {},
            .later, .late => minutes.counted_max = @max(minutes.counted_max, minutes.counted),
        }
        const limit = minutes.limit orelse return;
        const told: f64 = @floatFromInt(minutes.counted);
        if (place == .first) {
            minutes.is_met = told >= @min(met_at * minutes.learned, minutes.learned - 1);
            minutes.least = least_of_row * limit;
        }
        if (!minutes.is_met) return;
        minutes.start(now_ns, @max(@min(limit / kept_below, told), minutes.least), place == .late);
        if (place == .late) minutes.learned = minutes.limit.?;
    }

    /// A row is over that was about this limit, and so short that it is hardly less than what was counted.
    pub fn keep(minutes: *Minutes) void {
        minutes.learned = @max(minutes.learned, minutes.limit.?);
    }

    /// A refusal that is not about what was used: nothing is to be learned of its row.
    pub fn noteOverload(minutes: *Minutes, now_ns: u64, sent_ns: u64) void {
        minutes.remove(now_ns, sent_ns);
        minutes.counted = 0;
        minutes.is_met = false;
    }

    /// A long row of refusals is over, in which what had ended made no room; so many were sent since the last one. False: what was used
    /// up need not have been a minute's.
    pub fn learn(minutes: *Minutes, now_ns: u64, sent_since: u32) bool {
        const counted = minutes.counted;
        if (counted == 0) return false;
        const is_forgotten = minutes.used(now_ns) < counted + sent_since;
        const stayed = counted * 100 >= minutes.counted_max * 97;
        const is_again = now_ns -| minutes.suspected_ns < suspected_for_ns and counted * 5 >= minutes.suspected * 4 and counted * 4 <= minutes.suspected * 5;
        minutes.suspected = counted;
        minutes.suspected_ns = now_ns;
        if (!(stayed and is_forgotten) and !is_again) return false;
        minutes.start(now_ns, @floatFromInt(counted), true);
        minutes.learned = minutes.limit.?;
        return true;
    }

    fn start(minutes: *Minutes, now_ns: u64, mark: f64, row_is_long: bool) void {
        minutes.curve = .begin(now_ns, @max(mark, 1), 1 - kept_below, if (row_is_long) steepness_long else steepness);
        minutes.limit = @max(mark * kept_below, 1);
        minutes.refused_ns = now_ns;
        const many: f64 = if (row_is_long) flat_requests_long else flat_requests;
        minutes.flat = std.math.clamp(many / minutes.curve.mark * 60 * ns_per_s, flat_ns_min, flat_ns_max);
    }

    pub fn used(minutes: *Minutes, now_ns: u64) u64 {
        minutes.advance(now_ns);
        return minutes.sum;
    }

    fn grow(minutes: *Minutes, now_ns: u64, is_limiting: bool) void {
        const limit = minutes.limit.?;
        const counting_ns: u64 = if (is_limiting) @intFromFloat(ns_per_s + 60 * ns_per_s / limit) else 0;
        const most = @max(limit, minutes.curve.mark, tried * @as(f64, @floatFromInt(minutes.sum)));
        minutes.limit = @max(limit, minutes.curve.advance(now_ns, minutes.flat, counting_ns, most));
    }

    /// How many a second were sent of late and not refused; null: fewer than `at_least`.
    pub fn perSecond(minutes: *Minutes, now_ns: u64, of_late_ns: u64, at_least: u64) ?f64 {
        minutes.advance(now_ns);
        if (minutes.oldest > minutes.newest) return null;
        const many = @min(of_late_ns / slot_ns, minutes.newest - minutes.oldest + 1);
        var count: u64 = 0;
        for (0..many) |back| count += minutes.at(minutes.newest - back).*;
        if (count < at_least) return null;
        const long_ns = (many - 1) * slot_ns + @max(now_ns % slot_ns, slot_ns / 2);
        return @as(f64, @floatFromInt(count)) / (@as(f64, @floatFromInt(long_ns)) / ns_per_s);
    }

    pub fn rewind(minutes: *Minutes, now_ns: u64) void {
        minutes.* = .{ .limit = minutes.limit, .curve = minutes.curve, .flat = minutes.flat, .learned = minutes.learned, .refused_ns = now_ns };
        minutes.curve.rewind(now_ns);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const second = std.time.ns_per_s;
const minute = 60 * second;

/// What a server would say that takes so many in the last minute.
const Server = struct {
    limit: usize,
    taken: std.ArrayList(u64) = .empty,

    fn takes(server: *Server, now_ns: u64) !bool {
        var count: usize = 0;
        for (server.taken.items) |at_ns| count += @intFromBool(at_ns + minute > now_ns);
        if (count >= server.limit) return false;
        try server.taken.append(testing.allocator, now_ns);
        return true;
    }

    fn deinit(server: *Server) void {
        server.taken.deinit(testing.allocator);
    }
};

test "a limit is what was counted when one was refused; then it is used up and hardly overstepped, and followed when it grows" {
    var server: Server = .{ .limit = 100 };
    defer server.deinit();
    var minutes: Minutes = .{};
    for (0..130) |_| {
        minutes.noteSent(second, false);
        if (!try server.takes(second)) minutes.noteRefused(second, second, .crowd);
    }
    try testing.expectEqual(100, minutes.counted);
    try testing.expectEqual(null, minutes.limit);
    minutes.noteSent(60 * second, false);
    minutes.noteRefused(60 * second, 60 * second, .late);
    var now_ns: u64 = 61 * second + 2 * slot_ns;
    minutes.noteSent(now_ns, false);
    try testing.expect(try server.takes(now_ns));
    try testing.expect(minutes.learn(now_ns, 1));
    try testing.expectApproxEqAbs(99, minutes.limit.?, 0.01);

    var refused: usize = 0;
    const before = server.taken.items.len;
    while (now_ns < 11 * minute + second) {
        now_ns = @max(now_ns, minutes.sendAt(now_ns));
        minutes.noteSent(now_ns, true);
        if (try server.takes(now_ns)) continue;
        refused += 1;
        minutes.noteRefused(now_ns, now_ns, .first);
        now_ns += second / 5;
    }
    try testing.expect(server.taken.items.len - before > 950); // of 1,000 in ten minutes
    try testing.expect(refused < 20);

    server.limit = 200;
    while (now_ns < 14 * minute) {
        now_ns = @max(now_ns, minutes.sendAt(now_ns));
        minutes.noteSent(now_ns, true);
        if (try server.takes(now_ns)) continue;
        minutes.noteRefused(now_ns, now_ns, .first);
        now_ns += second / 5;
    }
    try testing.expect(minutes.limit.? > 150);
}

test "one bad moment takes half at most, and what was refused or never sent does not count" {
    var minutes: Minutes = .{};
    minutes.start(second, 100, false);
    const limit = minutes.limit.?;
    for (0..5) |i| minutes.noteRefused(5 * minute, 5 * minute, if (i == 0) .first else .later); // when nothing was used
    try testing.expectApproxEqRel(limit * least_of_row, minutes.limit.?, 0.02);
    minutes.noteSent(6 * minute, false);
    minutes.noteSent(6 * minute, false);
    minutes.remove(6 * minute, 6 * minute);
    try testing.expectEqual(1, minutes.sum);
    minutes.remove(6 * minute, 6 * minute);
    minutes.remove(6 * minute, 6 * minute); // noted twice: no harm
    try testing.expectEqual(0, minutes.sum);
}

test "of what was used up an hour ago nothing is learned, nor from a row throughout which the count sank" {
    var minutes: Minutes = .{};
    minutes.noteSent(second, false);
    minutes.noteRefused(60 * minute, 60 * minute, .late);
    try testing.expect(!minutes.learn(60 * minute, 0));
    for (0..60) |i| minutes.noteSent(61 * minute + i * second, false);
    for (0..20) |i| minutes.noteRefused(62 * minute + i * second, 62 * minute + i * second, .late);
    try testing.expect(minutes.counted < 50);
    try testing.expect(!minutes.learn(62 * minute + 30 * second, 0));
    try testing.expectEqual(minutes.counted, minutes.suspected);
    try testing.expectEqual(90 * minute, minutes.sendAt(90 * minute));
}

test "after a quiet time a few do not wait, up to half of the limit" {
    var minutes: Minutes = .{};
    minutes.start(second, 100, false);
    for (0..2) |_| minutes.noteSent(2 * second, false); // the first of those that are paced may have been late
    try testing.expect(minutes.sendAt(2 * second) > 2 * second);
    for (0..49) |_| {
        try testing.expectEqual(10 * minute, minutes.sendAt(10 * minute));
        minutes.noteSent(10 * minute, false);
    }
    for (0..2) |_| minutes.noteSent(10 * minute, false);
    const next_ns = minutes.sendAt(10 * minute);
    try testing.expect(next_ns > 10 * minute and next_ns < 10 * minute + second);
}

test "whoever goes before his time delays nobody for ever" {
    var minutes: Minutes = .{};
    minutes.start(second, 2, false);
    for (0..100) |_| minutes.noteSent(2 * second, false);
    var now_ns: u64 = 2 * minute;
    var sent: usize = 0;
    while (now_ns < 12 * minute) : (sent += 1) {
        now_ns = @max(now_ns, minutes.sendAt(now_ns));
        minutes.noteSent(now_ns, true);
    }
    try testing.expect(sent > 25);
}

test "it grows no further than to what was tried, and not while it holds nobody back" {
    var minutes: Minutes = .{};
    minutes.start(second, 100, false);
    const limit = minutes.limit.?;
    for (0..1000) |i| minutes.noteSent(2 * minute + i * second, false);
    try testing.expectEqual(limit, minutes.limit.?);
    for (0..5000) |i| minutes.noteSent(20 * minute + i * second, true); // sixty a minute
    try testing.expect(minutes.limit.? <= tried * 62);
    minutes.rewind(second);
    try testing.expectEqual(second, minutes.sendAt(second));
    try testing.expectEqual(null, minutes.perSecond(second, 4 * second, 1));
}
