//! Quotas whose limits change, are met, or were expected to be used otherwise than they were.

const std = @import("std");
const quota_file = @import("quota.zig");

const testing = std.testing;
const Quota = quota_file.Quota;
const slot_count = quota_file.slot_count;
const minute_ns = quota_file.minute_ns;
const ns_per_ms = std.time.ns_per_ms;
const ns_per_s = std.time.ns_per_s;

test "what was used under an earlier limit counts in proportion, one by one as well, and in full where the server counts so" {
    var quota: Quota = .{};
    defer quota.deinit(testing.allocator);
    try quota.hear(testing.allocator, 0, 1, .{ .limit = 60 });
    for (0..60) |i| quota.take(i * ns_per_s, 1);
    const now = 59 * ns_per_s + ns_per_s / 2;
    try testing.expectEqual(60, quota.used(now));
    try quota.hear(testing.allocator, now, 2, .{ .limit = 30 });
    try testing.expectEqual(30, quota.used(now));
    for ([_]u32{ 15, 600, 300 }, [_]u64{ 15, 15, 7 }, 3..) |limit, counts, number| {
        try quota.hear(testing.allocator, now, number, .{ .limit = limit });
        try testing.expectEqual(counts, quota.used(now));
    }
    quota.unhear();
    try quota.hear(testing.allocator, now, 6, .{ .limit = 30 });
    for (0..60) |i| quota.take((100 + i) * ns_per_s, 1);
    const later = now + 100 * ns_per_s;
    try quota.hear(testing.allocator, later, 7, .{ .limit = 20 });
    try testing.expectEqual(40, quota.used(later));
    quota.countInFull();
    try testing.expectEqual(60, quota.used(later));
    // 41 of them have to leave before one may be taken.
    try testing.expectApproxEqAbs(@as(f64, 200.1), @as(f64, @floatFromInt(quota.freeAt(later, 1))) / ns_per_s, 0.11);
    quota.take(later, 1);
    try testing.expectEqual(61, quota.used(later));
    try quota.hear(testing.allocator, later, 8, .{ .limit = 40 });
    try testing.expectEqual(61, quota.used(later));
}

fn expectConsistent(quota: *const Quota) !void {
    var sum: u64 = 0;
    var earlier_sum: u64 = 0;
    for (quota.newest -| slot_count..quota.newest + 1) |number| {
        const amount = quota.slots.?[number % (slot_count + 1)];
        sum += amount;
        earlier_sum += quota.earlier.part(number, amount);
    }
    try testing.expectEqual(sum, quota.sum);
    try testing.expectEqual(earlier_sum, quota.earlier.sum);
}

test "whatever changes when, what is used is what was taken in its proportion" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const Taken = struct { at_ns: u64, slot: u64, amount: u64, counts: f64, before: f64 };
    for (0..40) |_| {
        var quota: Quota = .{};
        defer quota.deinit(testing.allocator);
        var limit = random.intRangeAtMost(u32, 1_000, 3_000);
        try quota.hear(testing.allocator, 0, 0, .{ .limit = limit });
        var taken: std.ArrayList(Taken) = .empty;
        defer taken.deinit(testing.allocator);
        var is_lowered = false;
        var changed_count: usize = 0;
        var raw_from: usize = 0;
        var now: u64 = random.int(u32);
        for (1..2_000) |number| {
            now += random.uintLessThan(u64, ns_per_s / 2);
            switch (random.uintLessThan(u8, 100)) {
                0 => { // mostly once a minute, at times twice
                    const to = random.intRangeAtMost(u32, 1_000, 3_000);
                    if (to == limit) continue;
                    quota.advance(now);
                    try quota.hear(testing.allocator, now, number, .{ .limit = to });
                    for (taken.items) |*it| {
                        it.before = it.counts;
                        if (to < limit) it.counts *= @as(f64, @floatFromInt(to)) / @as(f64, @floatFromInt(limit));
                    }
                    is_lowered = to < limit;
                    if (random.boolean()) now += 1; // or in the same moment
                    raw_from = changed_count;
                    changed_count = taken.items.len;
                    limit = to;
                },
                1 => if (is_lowered and quota.earlier.limit != 0) {
                    quota.countInFull();
                    for (taken.items[0..changed_count]) |*it| it.counts = it.before;
                    is_lowered = false;
                },
                else => {
                    quota.advance(now);
                    const amount = random.intRangeAtMost(u64, 1, 9);
                    quota.take(now, amount);
                    try taken.append(testing.allocator, .{ .at_ns = now, .slot = quota.newest, .amount = amount, .counts = @floatFromInt(amount), .before = @floatFromInt(amount) });
                },
            }
            const known = taken.items[raw_from..]; // what was scaled is not known so well any more
            if (known.len > 0 and random.uintLessThan(u8, 4) == 0) {
                const it = &known[random.uintLessThan(usize, known.len)];
                const amount = random.intRangeAtMost(u64, 1, 9);
                quota.correct(now, it.at_ns, it.amount, amount);
                // As much as is left of it where it was used under an earlier limit.
                const part = @as(f64, @floatFromInt(amount)) / @as(f64, @floatFromInt(it.amount));
                it.* = .{ .at_ns = it.at_ns, .slot = it.slot, .amount = amount, .counts = it.counts * part, .before = it.before * part };
            }
            try expectConsistent(&quota);
            var sum: f64 = 0;
            quota.advance(now);
            for (taken.items) |it| sum += if (it.slot + slot_count >= quota.newest) it.counts else 0;
            const used: f64 = @floatFromInt(quota.used(now));
            try testing.expectApproxEqAbs(sum, used, 3); // parts of one are lost
        }
    }
}

test "a limit that is met is spread as a whole, for a while" {
    var quota: Quota = .{};
    defer quota.deinit(testing.allocator);
    try quota.hear(testing.allocator, 0, 1, .{ .limit = 60 });
    quota.take(0, 1);
    try testing.expectEqual(0, quota.freeAt(0, 1));
    quota.noteUsedUp(0);
    quota.take(0, 1);
    try testing.expectEqual(1_005 * ns_per_ms, quota.freeAt(0, 1));
    const idle = 5 * minute_ns;
    try testing.expectEqual(idle, quota.freeAt(idle, 1));
    quota.take(idle, 1);
    try testing.expectEqual(idle + 1_005 * ns_per_ms, quota.freeAt(idle, 1)); // who was idle saves nothing up
    const over = quota_file.strict_ns + ns_per_s;
    for (0..32) |_| {
        try testing.expectEqual(over, quota.freeAt(over, 1));
        quota.take(over, 1);
    }
    try testing.expect(quota.freeAt(over, 1) > over);
}

test "what is taken in the moment of a change counts by the new limit" {
    for ([_][3]u32{ .{ 100, 50, 25 }, .{ 6_000, 60, 30 }, .{ 1_000, 3, 1 }, .{ 3, 500, 300 }, .{ 1, 1_000, 600 } }) |case| {
        const before, const after, const least = case;
        var quota: Quota = .{};
        defer quota.deinit(testing.allocator);
        const now = 100 * ns_per_s + ns_per_ms;
        try quota.hear(testing.allocator, now, 1, .{ .limit = before });
        for (0..@min(before / 3 + 1, before)) |_| quota.take(now, 1);
        try quota.hear(testing.allocator, now, 2, .{ .limit = after });
        var sent: u32 = 0;
        while (quota.freeAt(now, 1) == now) : (sent += 1) quota.take(now, 1);
        try testing.expect(sent <= after / 2 + 1);
        var at: u64 = now;
        while (true) : (sent += 1) {
            at = quota.freeAt(at, 1);
            if (at > now + 40 * ns_per_s) break;
            quota.take(at, 1);
        }
        try testing.expect(sent >= least);
    }
}

test "what was expected and not used holds nobody back" {
    for ([_]bool{ false, true }) |is_strict| {
        var quota: Quota = .{};
        defer quota.deinit(testing.allocator);
        try quota.hear(testing.allocator, 0, 1, .{ .limit = 150_000 });
        if (is_strict) quota.noteUsedUp(0);
        var now: u64 = ns_per_s;
        for (0..60) |_| { // pictures: much is expected, and a thirtieth is used
            now = quota.freeAt(now, 33_000);
            quota.take(now, 33_000);
            now += ns_per_s;
            quota.correct(now, now - ns_per_s, 33_000, 1_000);
            quota.repace(now, 33_000, 1_000);
        }
        try testing.expect(now < 90 * ns_per_s);
        quota.noteUsedUp(now);
        try testing.expect(quota.freeAt(now, 1_000) < now + 14 * ns_per_s);
        for (0..100) |_| quota.take(now, 1_000);
        for (0..100) |_| quota.repace(now, 1_000, 33_000); // and the other way round
        try testing.expectEqual(now + minute_ns, quota.next_ns);
    }
}
