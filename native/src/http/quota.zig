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
//! Where the server has refused something and said that the limit is used up, all of it is paced for a while, and nothing is made up
//! for: 60 a minute may be enforced as one a second.
//!
//! What is corrected later (the tokens a reply has really used) is written into the slot in which it was taken.
//!
//! ## What others use
//!
//! A server says how much is left. What it counts beyond what we have used was somebody else's, with the same key. It is
//! counted as well, less and less until the moment at which the server said it would be forgotten.
//!
//! What was used under a higher limit counts by the new one in proportion: after a halving, what fitted into the old limit fits into
//! the new one, so that the next request goes at the new pace and not after a pause. A bucket takes it; a server that counts the last
//! minute takes nothing before enough of what it has taken lies a minute back. Where it refuses one although nothing was taken for so
//! long that the new limit allows one, that is how it counts, and from then on so do we.

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
const timers_late_ns: u64 = 20 * ns_per_ms;
/// Announced limits that were met: nothing goes ahead of their pace.
pub const strict_ns = 10 * std.time.ns_per_min;
/// Whatever is said of limits that change: sums of it are numbers still.
const amount_max = 1 << 50;

pub const Quota = struct {
    /// 0: none.
    limit: u64 = 0,
    period_ns: u64 = minute_ns,
    /// The newest of the requests whose replies said it.
    heard_number: u64 = 0,

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
    /// Until then, a period after the limit changed, the server may count what was used before otherwise than we do.
    scaled_until_ns: u64 = 0,
    /// Until then it is spread as a whole.
    strict_until_ns: u64 = 0,
    earlier: Earlier = .{},

    /// What was used under a higher limit.
    const Earlier = struct {
        /// 0: there was none, or what was used counts in full.
        limit: u64 = 0,
        /// In the slots up to that one; of its amount that much was used since.
        slot: u64 = 0,
        since: u64 = 0,
        sum: u64 = 0,
        changed_ns: u64 = 0,

        /// Of what the slot with that number holds.
        pub fn part(earlier: *const Earlier, number: u64, amount: u64) u64 {
            if (earlier.limit == 0 or number > earlier.slot) return 0;
            return if (number < earlier.slot) amount else amount - earlier.since;
        }

        /// The same of what makes room for the slot with that number.
        fn partBefore(earlier: *const Earlier, number: u64, amount: u64) u64 {
            return if (number > slot_count) earlier.part(number - slot_count - 1, amount) else 0;
        }
    };

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

    fn inProportion(amount: u64, to: u64, from: u64) u64 {
        return @intCast(@min(mul(amount, to) / from, amount_max));
    }

    /// The limit changes. After a lower one what was used so far was used under the earlier limit.
    fn scale(quota: *Quota, now_ns: u64, to: u64) void {
        if (quota.limit == 0) return;
        quota.advance(now_ns);
        if (quota.earlier.limit != 0) {
            const slots = quota.slots.?;
            const oldest = quota.newest -| slot_count;
            var rest: u64 = 0; // what one slot is short of goes into the next: slots may hold one request each
            for (oldest..@max(oldest, quota.earlier.slot + 1)) |number| {
                const slot = &slots[number % slots.len];
                const part = quota.earlier.part(number, slot.*);
                const exact = mul(part, quota.limit) + rest;
                rest = @intCast(exact % quota.earlier.limit);
                const counts: u64 = @intCast(@min(exact / quota.earlier.limit, amount_max));
                quota.sum = quota.sum - part + counts;
                slot.* = slot.* - part + counts;
            }
        }
        quota.earlier = if (to < quota.limit) .{ .limit = quota.limit, .slot = quota.newest, .sum = quota.sum, .changed_ns = now_ns } else .{};
        quota.others = inProportion(quota.others, to, quota.limit);
    }

    /// The server counts what was used under the higher limit in full.
    pub fn countInFull(quota: *Quota) void {
        quota.earlier = .{};
    }

    /// The server has said that it is used up, and refused something: for a while nothing is sent ahead of the pace.
    pub fn noteUsedUp(quota: *Quota, now_ns: u64) void {
        if (quota.period_ns > minute_ns) return; // nobody waits for his part of a day
        quota.strict_until_ns = now_ns + strict_ns;
    }

    /// Of so much in all, so much of it under an earlier limit: what counts.
    fn counted(quota: *const Quota, sum: u64, earlier_sum: u64) u64 {
        if (quota.earlier.limit == 0) return sum;
        return sum - earlier_sum + inProportion(earlier_sum, quota.limit, quota.earlier.limit);
    }

    fn own(quota: *const Quota) u64 {
        return quota.counted(quota.sum, quota.earlier.sum);
    }

    /// Nothing was used.
    pub fn forget(quota: *Quota) void {
        if (quota.slots) |slots| slots.* = @splat(0);
        quota.sum = 0;
        quota.newest = 0;
        quota.others = 0;
        quota.next_ns = 0;
        quota.scaled_until_ns = 0;
        quota.strict_until_ns = 0;
        quota.earlier = .{};
    }

    /// What the server has said counts no more.
    pub fn unhear(quota: *Quota) void {
        quota.forget();
        quota.limit = 0;
    }

    fn slotOf(quota: *const Quota, ns: u64) u64 {
        return ns / (quota.period_ns / slot_count);
    }

    pub fn advance(quota: *Quota, now_ns: u64) void {
        const slots = quota.slots orelse return;
        const now_slot = quota.slotOf(now_ns);
        if (now_slot <= quota.newest) return;
        const passed = now_slot - quota.newest;
        if (passed > slot_count) {
            slots.* = @splat(0);
            quota.sum = 0;
            quota.earlier = .{};
        } else for (quota.newest + 1..now_slot + 1) |number| {
            const slot = &slots[number % slots.len];
            quota.sum -= slot.*;
            quota.earlier.sum -= quota.earlier.partBefore(number, slot.*);
            slot.* = 0;
        }
        quota.newest = now_slot;
        if (now_slot > quota.earlier.slot + slot_count) quota.earlier = .{};
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
        return quota.own() + quota.othersNow(now_ns);
    }

    /// When `amount` may be taken, if nothing else is taken until then: `now_ns` or later.
    pub fn freeAt(quota: *Quota, now_ns: u64, amount: u64) u64 {
        if (quota.limit == 0) return now_ns;
        const room = quota.limit - @min(quota.limit, amount); // what is larger than the limit goes when nothing else counts
        const is_paced = (quota.used(now_ns) >= quota.limit / 2 and quota.sum > 0) or now_ns < quota.strict_until_ns;
        return @max(quota.roomAt(now_ns, room), if (is_paced) @min(quota.next_ns, now_ns + quota.period_ns) else 0);
    }

    fn roomAt(quota: *Quota, now_ns: u64, room: u64) u64 {
        if (quota.used(now_ns) <= room) return now_ns;
        const slot_ns = quota.period_ns / slot_count;
        // Slots leave one by one, the oldest first; others' use fades meanwhile.
        var sum = quota.sum;
        var earlier_sum = quota.earlier.sum;
        for (1..slot_count + 2) |step| {
            const leaving = quota.newest + step;
            const at_ns = leaving * slot_ns;
            const amount = quota.slots.?[leaving % (slot_count + 1)];
            sum -= amount;
            earlier_sum -= quota.earlier.partBefore(leaving, amount);
            if (quota.counted(sum, earlier_sum) + quota.othersNow(at_ns) <= room) return @max(at_ns, now_ns);
        }
        return @max(quota.others_until_ns, now_ns);
    }

    /// So long a part of the limit takes, evenly spread.
    pub fn paceNs(quota: *const Quota, amount: u64) u64 {
        if (quota.limit == 0) return 0;
        return @intCast(@min(mul(amount, quota.period_ns) / quota.limit, quota.period_ns));
    }

    pub fn take(quota: *Quota, now_ns: u64, amount: u64) void {
        const slots = quota.slots orelse return;
        quota.advance(now_ns);
        slots[quota.newest % slots.len] += amount;
        quota.sum += amount;
        if (quota.newest == quota.earlier.slot) quota.earlier.since += amount;
        const is_strict = now_ns < quota.strict_until_ns;
        if (quota.limit == 0 or (quota.own() <= quota.limit / 2 and !is_strict)) return;
        const pace_ns = quota.paceNs(amount);
        const lasts_ns = if (is_strict) pace_ns + pace_ns / 200 else pace_ns - pace_ns / 21; // see freeAt
        // Timers are late: what was missed by a little may be made up for. Not where it is strict, but for a pace at which that would tell.
        const slack_ns = if (!is_strict) @max(lasts_ns, timers_late_ns) else if (lasts_ns < 10 * timers_late_ns) timers_late_ns else 0;
        quota.next_ns = @min(@max(quota.next_ns, now_ns -| slack_ns), now_ns) + lasts_ns;
    }

    /// Of what was taken at `taken_ns`, `before` turned out to be `after`.
    pub fn correct(quota: *Quota, now_ns: u64, taken_ns: u64, before: u64, after: u64) void {
        const slots = quota.slots orelse return;
        quota.advance(now_ns);
        const number = quota.slotOf(taken_ns);
        if (number > quota.newest or number + slot_count < quota.newest) return; // it counts no more
        const slot = &slots[number % slots.len];
        const earlier = &quota.earlier;
        const part = earlier.part(number, slot.*);
        const is_earlier = part > 0 and (number < earlier.slot or taken_ns < earlier.changed_ns);
        const other = if (is_earlier) slot.* - part else part;
        const corrected = (slot.* - other -| before) + after; // a second new limit may have scaled it
        if (is_earlier) {
            earlier.sum = earlier.sum - part + corrected;
        } else if (number == earlier.slot) earlier.since = corrected;
        quota.sum = quota.sum - slot.* + other + corrected;
        slot.* = other + corrected;
    }

    /// What was paced was what was expected: `before`.
    pub fn repace(quota: *Quota, now_ns: u64, before: u64, after: u64) void {
        if (now_ns >= quota.strict_until_ns) return;
        const next_ns = quota.next_ns -| quota.paceNs(before -| after) + quota.paceNs(after -| before);
        quota.next_ns = @min(next_ns, now_ns + quota.period_ns); // after a period it is forgotten, however much it was
    }

    /// What the server says in the reply to the request with that number. Replies overtake each other, refusals all others: an older one
    /// does not bring a limit back.
    pub fn hear(quota: *Quota, gpa: Allocator, now_ns: u64, number: u64, said: announced_file.Limit) Allocator.Error!void {
        const unsaid = announced_file.Limit.unsaid;
        if (said.limit != quota.limit and number < quota.heard_number) return;
        if (said.limit != unsaid) quota.heard_number = @max(quota.heard_number, number);
        if (said.limit != unsaid and said.limit != 0) {
            try quota.watch(gpa);
            const period_ns = periodOf(said) orelse quota.period_ns;
            if (period_ns != quota.period_ns) {
                quota.forget(); // its slots are of another length
            } else if (said.limit != quota.limit) {
                if (quota.limit != 0) quota.scaled_until_ns = now_ns + period_ns;
                quota.scale(now_ns, said.limit);
            }
            quota.limit = said.limit;
            quota.period_ns = period_ns;
        }
        if (said.remaining == unsaid or said.limit == unsaid or said.reset_ms == unsaid) return;
        quota.advance(now_ns);
        // A bucket that holds less than a minute's worth never has its limit left; but soon it will have what it holds.
        const refilled: u64 = @intCast(@min(mul(said.reset_ms * @as(u64, ns_per_ms), said.limit) / quota.period_ns + 1, said.limit));
        const theirs = @min(said.limit -| said.remaining, refilled);
        quota.others = theirs -| quota.own();
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
    try quota.hear(testing.allocator, 0, 1, .{ .limit = 100, .remaining = 40, .reset_ms = 36_000 });
    try testing.expectEqual(100, quota.limit);
    try testing.expectEqual(60, quota.used(0));
    try testing.expectEqual(30, quota.used(18 * ns_per_s));
    try testing.expectEqual(0, quota.used(36 * ns_per_s));
    quota.take(40 * ns_per_s, 80);
    try quota.hear(testing.allocator, 41 * ns_per_s, 2, .{ .limit = 50, .remaining = 10, .reset_ms = 30_000 });
    try testing.expectEqual(40, quota.used(41 * ns_per_s));
    try quota.hear(testing.allocator, 42 * ns_per_s, 3, .{ .limit = 5_000 });
    try testing.expectEqual(5_000, quota.limit);
    quota.unhear();
    try testing.expectEqual(43 * ns_per_s, quota.freeAt(43 * ns_per_s, 1_000_000));
}

test "a limit of a day is not taken for one of a minute" {
    var quota: Quota = .{};
    defer quota.deinit(testing.allocator);
    try quota.hear(testing.allocator, 0, 4, .{ .limit = 10_000, .remaining = 9_999, .reset_ms = 8_640 });
    try testing.expectEqual(minute_ns, quota.period_ns);
    try quota.hear(testing.allocator, 0, 5, .{ .limit = 10_000, .remaining = 9_900, .reset_ms = 864_000 });
    try testing.expectEqual(24 * 60 * minute_ns, quota.period_ns);
}
