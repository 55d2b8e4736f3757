//! A quota: so many requests or tokens in any period, as the user has given it, or as the server announces it. Pure: time is an argument; memory is
//! fixed from when somebody wants to know.
//!
//! ## Never more than the limit in any window
//!
//! The period is cut into `slot_count` equal slots. What is taken is written into the slot of its moment, and stays counted
//! until that slot lies a whole period back: for a window that ends now, the slot it begins in counts as a whole. So the count
//! is never lower than what a window of one period holds, and at most a slot's worth higher: the price is one part in 600.
//! That is right whichever way a server counts: by the last minute, by the minute on its clock, or by a bucket that is
//! refilled all the time and holds a minute's worth.
//!
//! ## Bursts, and none
//!
//! The first half of a limit may be taken at once: a few requests do not wait. The rest is paced, a little faster than the limit
//! lasts; so a busy client does not send a minute's requests in a second to be idle for the rest of the minute, for ever.
//!
//! What is corrected later (the tokens a reply has really used) is written into the slot in which it was taken.
//!
//! ## What others use
//!
//! A server says how much is left. What it counts beyond what we have used was somebody else's, with the same key. It is
//! counted as well, less and less until the moment at which the server said it would be forgotten.
//!
//! A new limit scales the past: after a halving, what fitted into the old limit fits into the new one, so that the next
//! request goes at the new pace and not after a pause.

const std = @import("std");
const announced_file = @import("announced.zig");

const Allocator = std.mem.Allocator;
const ns_per_ms = std.time.ns_per_ms;
const ns_per_s = std.time.ns_per_s;

pub const slot_count = 600;
pub const minute_ns: u64 = std.time.ns_per_min;
/// A server that says "in more than this" does not mean a minute.
const minutes_reset_ms = 2 * std.time.ms_per_min;
pub const never = std.math.maxInt(u64);

pub const Quota = struct {
    /// 0: none.
    limit: u64 = 0,
    period_ns: u64 = minute_ns,

    /// Amounts by slot, in a ring; null as long as nobody wants to know.
    slots: ?*[slot_count + 1]u64 = null,
    /// Number of the newest slot, counted from time 0.
    newest: u64 = 0,
    sum: u64 = 0,
    /// Beyond half of the limit, when the next may be taken.
    next_ns: u64 = 0,

    others: u64 = 0,
    others_from_ns: u64 = 0,
    others_until_ns: u64 = 0,
    /// Until a period after it changed what was used before was scaled with it: the server may count it in full.
    scaled_until_ns: u64 = 0,

    pub fn deinit(quota: *Quota, gpa: Allocator) void {
        if (quota.slots) |slots| gpa.destroy(slots);
        quota.slots = null;
    }

    /// Counts from here on, so that a limit that is heard later knows what was used before.
    pub fn watch(quota: *Quota, gpa: Allocator) Allocator.Error!void {
        if (quota.slots != null) return;
        quota.slots = try gpa.create([slot_count + 1]u64);
        quota.forget();
    }

    /// The user's; 0: none. What was used before is not scaled: never more than the limit in any minute.
    pub fn give(quota: *Quota, gpa: Allocator, per_minute: u64) Allocator.Error!void {
        if (per_minute != 0) try quota.watch(gpa);
        quota.limit = per_minute;
    }

    fn mul(a: u64, b: u64) u128 {
        return @as(u128, a) * b;
    }

    fn scale(quota: *Quota, to: u64, from: u64) void {
        if (from == 0) return;
        quota.sum = 0;
        for (quota.slots.?) |*slot| {
            slot.* = @intCast(@min(mul(slot.*, to) / from, to)); // what fills the limit by itself need not be known better
            quota.sum += slot.*;
        }
        quota.others = @intCast(@min(mul(quota.others, to) / from, to));
    }

    /// Nothing was used.
    pub fn forget(quota: *Quota) void {
        if (quota.slots) |slots| slots.* = @splat(0);
        quota.sum = 0;
        quota.newest = 0;
        quota.others = 0;
        quota.next_ns = 0;
        quota.scaled_until_ns = 0;
    }

    /// What the server has said counts no more.
    pub fn unhear(quota: *Quota) void {
        quota.forget();
        quota.limit = 0;
    }

    fn slotOf(quota: *const Quota, ns: u64) u64 {
        return ns / (quota.period_ns / slot_count);
    }

    fn advance(quota: *Quota, now_ns: u64) void {
        const slots = quota.slots orelse return;
        const now_slot = quota.slotOf(now_ns);
        if (now_slot <= quota.newest) return;
        const passed = now_slot - quota.newest;
        if (passed > slot_count) {
            slots.* = @splat(0);
            quota.sum = 0;
        } else for (quota.newest + 1..now_slot + 1) |number| {
            const slot = &slots[number % slots.len];
            quota.sum -= slot.*;
            slot.* = 0;
        }
        quota.newest = now_slot;
    }

    /// Of others, what still counts.
    fn othersNow(quota: *const Quota, now_ns: u64) u64 {
        if (quota.others == 0 or now_ns >= quota.others_until_ns) return 0;
        const left = quota.others_until_ns - @max(now_ns, quota.others_from_ns);
        const whole = quota.others_until_ns - quota.others_from_ns;
        return @intCast((mul(quota.others, left) + whole - 1) / whole);
    }

    pub fn used(quota: *Quota, now_ns: u64) u64 {
        quota.advance(now_ns);
        return quota.sum + quota.othersNow(now_ns);
    }

    /// When `amount` may be taken, if nothing else is taken until then: `now_ns` or later.
    pub fn freeAt(quota: *Quota, now_ns: u64, amount: u64) u64 {
        if (quota.limit == 0) return now_ns;
        const room = quota.limit - @min(quota.limit, amount); // what is larger than the limit goes when nothing else counts
        const is_paced = quota.used(now_ns) >= quota.limit / 2 and quota.sum > 0;
        return @max(quota.roomAt(now_ns, room), if (is_paced) @min(quota.next_ns, now_ns + quota.period_ns) else 0);
    }

    fn roomAt(quota: *Quota, now_ns: u64, room: u64) u64 {
        if (quota.used(now_ns) <= room) return now_ns;
        const slot_ns = quota.period_ns / slot_count;
        // Slots leave one by one, the oldest first; others' use fades meanwhile.
        var sum = quota.sum;
        for (1..slot_count + 2) |step| {
            const leaving = quota.newest + step;
            const at_ns = leaving * slot_ns;
            sum -= if (step <= slot_count + 1) quota.slots.?[leaving % (slot_count + 1)] else 0;
            if (sum + quota.othersNow(at_ns) <= room) return @max(at_ns, now_ns);
        }
        return @max(quota.others_until_ns, now_ns);
    }

    pub fn take(quota: *Quota, now_ns: u64, amount: u64) void {
        const slots = quota.slots orelse return;
        quota.advance(now_ns);
        slots[quota.newest % slots.len] += amount;
        quota.sum += amount;
        if (quota.limit == 0 or quota.sum <= quota.limit / 2) return;
        const lasts_ns: u64 = @intCast(@min(mul(amount, quota.period_ns) * 20 / quota.limit / 21, quota.period_ns)); // see freeAt
        // Timers are late: what was missed by a little may be made up for.
        quota.next_ns = @max(quota.next_ns, now_ns -| @max(lasts_ns, 20 * ns_per_ms)) + lasts_ns;
    }

    /// Of what was taken at `taken_ns`, `before` turned out to be `after`.
    pub fn correct(quota: *Quota, now_ns: u64, taken_ns: u64, before: u64, after: u64) void {
        const slots = quota.slots orelse return;
        quota.advance(now_ns);
        const number = quota.slotOf(taken_ns);
        if (number > quota.newest or number + slot_count < quota.newest) return; // it counts no more
        const slot = &slots[number % slots.len];
        const corrected = (slot.* -| before) + after; // a new limit may have scaled it
        quota.sum = quota.sum - slot.* + corrected;
        slot.* = corrected;
    }

    /// What the server says now.
    pub fn hear(quota: *Quota, gpa: Allocator, now_ns: u64, said: announced_file.Limit) Allocator.Error!void {
        const unsaid = announced_file.Limit.unsaid;
        if (said.limit != unsaid and said.limit != 0) {
            try quota.watch(gpa);
            const period_ns = periodOf(said) orelse quota.period_ns;
            if (period_ns != quota.period_ns) {
                quota.forget(); // its slots are of another length
            } else if (said.limit != quota.limit) {
                if (quota.limit != 0) quota.scaled_until_ns = now_ns + period_ns;
                quota.scale(said.limit, quota.limit);
            }
            quota.limit = said.limit;
            quota.period_ns = period_ns;
        }
        if (said.remaining == unsaid or said.limit == unsaid or said.reset_ms == unsaid) return;
        quota.advance(now_ns);
        // A bucket that holds less than a minute's worth never has its limit left; but soon it will have what it holds.
        const refilled: u64 = @intCast(@min(mul(said.reset_ms * @as(u64, ns_per_ms), said.limit) / quota.period_ns + 1, said.limit));
        const theirs = @min(said.limit -| said.remaining, refilled);
        quota.others = theirs -| quota.sum;
        quota.others_from_ns = now_ns;
        quota.others_until_ns = now_ns + @min(@as(u64, said.reset_ms) * ns_per_ms, quota.period_ns);
        if (quota.others_until_ns == now_ns) quota.others = 0;
    }

    /// Where it is not said. A bucket that is refilled all the time has a period of reset * limit / used; for a window of a minute
    /// that formula says nothing, but its reset is short.
    fn periodOf(said: announced_file.Limit) ?u64 {
        if (said.period_s != 0) return @as(u64, said.period_s) * ns_per_s;
        const unsaid = announced_file.Limit.unsaid;
        if (said.reset_ms == unsaid or said.remaining == unsaid or said.reset_ms <= minutes_reset_ms) return null;
        const gone: u64 = @max(1, said.limit -| said.remaining);
        const estimate_s = mul(said.reset_ms, said.limit) / gone / std.time.ms_per_s;
        return if (estimate_s > 6 * std.time.s_per_hour) std.time.s_per_day * ns_per_s else if (estimate_s > 600) std.time.s_per_hour * ns_per_s else null;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "in no window is there more than the limit, and no time is lost" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    const random = prng.random();
    for (0..60) |_| {
        var quota: Quota = .{};
        defer quota.deinit(testing.allocator);
        const limit = random.intRangeAtMost(u64, 1, 400);
        try quota.give(testing.allocator, limit);
        var now: u64 = random.int(u32);
        const start = now;
        const Taken = struct { at: u64, amount: u64 };
        var taken: std.ArrayList(Taken) = .empty;
        defer taken.deinit(testing.allocator);
        var in_all: u64 = 0;
        for (0..400) |_| {
            const amount = random.intRangeAtMost(u64, 1, @max(1, limit / 10));
            now = quota.freeAt(now, amount);
            try testing.expectEqual(now, quota.freeAt(now, amount));
            quota.take(now, amount);
            try taken.append(testing.allocator, .{ .at = now, .amount = amount });
            in_all += amount;
            if (random.uintLessThan(u8, 8) == 0) now += random.uintLessThan(u64, minute_ns / 50);
            var window: u64 = 0;
            for (taken.items) |it| window += if (it.at + minute_ns > now) it.amount else 0;
            try testing.expect(window <= limit);
        }
        // A busy client gets what the limit allows, but for what one request more would have needed.
        const minutes = @as(f64, @floatFromInt(now - start)) / minute_ns;
        const allowed = minutes * @as(f64, @floatFromInt(limit));
        if (minutes > 2) try testing.expect(@as(f64, @floatFromInt(in_all)) >= allowed * 0.80 - @as(f64, @floatFromInt(limit)));
    }
}

test "what turns out to be more or less is counted where it was taken" {
    var quota: Quota = .{};
    defer quota.deinit(testing.allocator);
    try quota.give(testing.allocator, 100);
    quota.take(0, 60);
    quota.correct(ns_per_s, 0, 60, 90);
    try testing.expectEqual(90, quota.used(ns_per_s));
    try testing.expect(quota.freeAt(ns_per_s, 20) > minute_ns);
    quota.correct(2 * ns_per_s, 0, 90, 10);
    try testing.expectEqual(3 * ns_per_s, quota.freeAt(3 * ns_per_s, 90));
    quota.correct(3 * minute_ns, 0, 10, 99); // long ago
    try testing.expectEqual(0, quota.used(3 * minute_ns));
    try testing.expectEqual(3 * minute_ns, quota.freeAt(3 * minute_ns, 1_000)); // larger than the limit: alone
}

test "the server's new limit counts at once, and others' use fades" {
    var quota: Quota = .{};
    defer quota.deinit(testing.allocator);
    try quota.hear(testing.allocator, 0, .{ .limit = 100, .remaining = 40, .reset_ms = 36_000 });
    try testing.expectEqual(100, quota.limit);
    try testing.expectEqual(60, quota.used(0));
    try testing.expectEqual(30, quota.used(18 * ns_per_s));
    try testing.expectEqual(0, quota.used(36 * ns_per_s));
    quota.take(40 * ns_per_s, 80);
    try quota.hear(testing.allocator, 41 * ns_per_s, .{ .limit = 50, .remaining = 10, .reset_ms = 30_000 });
    try testing.expectEqual(40, quota.used(41 * ns_per_s));
    try quota.hear(testing.allocator, 42 * ns_per_s, .{ .limit = 5_000 });
    try testing.expectEqual(5_000, quota.limit);
    quota.unhear();
    try testing.expectEqual(43 * ns_per_s, quota.freeAt(43 * ns_per_s, 1_000_000));
}

test "a limit of a day is not taken for one of a minute" {
    var quota: Quota = .{};
    defer quota.deinit(testing.allocator);
    try quota.hear(testing.allocator, 0, .{ .limit = 10_000, .remaining = 9_999, .reset_ms = 8_640 });
    try testing.expectEqual(minute_ns, quota.period_ns);
    try quota.hear(testing.allocator, 0, .{ .limit = 10_000, .remaining = 9_900, .reset_ms = 864_000 });
    try testing.expectEqual(24 * 60 * minute_ns, quota.period_ns);
}
