//! Hedging: when a second attempt of a request that is on its way is worth it. Pure: times come in as arguments.
//!
//! It is when the reply has not begun for longer than 95 % of the last requests took (Dean, Barroso, "The Tail at Scale", 2013),
//! and as long as that costs little: each request that is admitted saves a twentieth of a second attempt. So at no time there
//! were more than 5 % of them, and after a quiet hour there are not all at once.
//!
//! One time is noted for each request, from when it was sent first: where two attempts have run, that until either of them was
//! answered. It is among the longest, as that of the first alone would have been; so hedging does not make the bound creep down.

const std = @import("std");

const assert = std.debug.assert;

/// Of so many last requests.
const kept = 128;
/// With fewer nobody knows what is long.
const samples_min = 20;
/// In admitted requests.
const price = 20;
const saved_max = 4;

pub const Hedging = struct {
    times_ns: [kept]u64 = undefined,
    count: u32 = 0,
    next: u32 = 0,
    saved: u32 = 0,

    pub fn noteAdmitted(hedging: *Hedging) void {
        hedging.saved = @min(hedging.saved + 1, saved_max * price);
    }

    pub fn canAfford(hedging: *const Hedging) bool {
        return hedging.saved >= price;
    }

    pub fn spend(hedging: *Hedging) void {
        assert(hedging.canAfford());
        hedging.saved -= price;
    }

    /// From when a request was sent to the first byte of its reply.
    pub fn noteFirstByte(hedging: *Hedging, ns: u64) void {
        hedging.times_ns[hedging.next] = ns;
        hedging.next = (hedging.next + 1) % kept;
        hedging.count = @min(hedging.count + 1, kept);
    }

    /// How long the reply of a request may be awaited before a second attempt is made; null: it is not known yet.
    pub fn patienceNs(hedging: *const Hedging) ?u64 {
        if (hedging.count < samples_min) return null;
        var longest: [longest_max]u64 = @splat(0); // in descending order
        const rank = hedging.count - (hedging.count * 95 + 99) / 100 + 1; // counted from the longest
        for (hedging.times_ns[0..hedging.count]) |ns| {
            if (ns <= longest[rank - 1]) continue;
            var at = rank - 1;
            while (at > 0 and longest[at - 1] < ns) : (at -= 1) longest[at] = longest[at - 1];
            longest[at] = ns;
        }
        return longest[rank - 1];
    }

    const longest_max = kept / 20 + 1;
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "nobody is impatient before it is known what is long" {
    var hedging: Hedging = .{};
    for (0..samples_min) |_| {
        try testing.expectEqual(null, hedging.patienceNs());
        hedging.noteFirstByte(7);
    }
    try testing.expectEqual(7, hedging.patienceNs());
}

test "patience is the 95th percentile of the last times, and follows them" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var hedging: Hedging = .{};
    var all: std.ArrayList(u64) = .empty;
    defer all.deinit(testing.allocator);
    for (0..1000) |_| {
        const ns = random.uintLessThan(u64, 500);
        hedging.noteFirstByte(ns);
        try all.append(testing.allocator, ns);
        var sorted: [kept]u64 = undefined;
        const last = all.items[all.items.len -| kept..];
        @memcpy(sorted[0..last.len], last);
        std.mem.sort(u64, sorted[0..last.len], {}, std.sort.asc(u64));
        if (last.len < samples_min) continue;
        try testing.expectEqual(sorted[(last.len * 95 + 99) / 100 - 1], hedging.patienceNs().?);
    }
}

test "there are never more than five in a hundred, and few at once after a quiet time" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var hedging: Hedging = .{};
    var spent: u32 = 0;
    for (1..20_000) |admitted| {
        hedging.noteAdmitted();
        const burst = if (random.uintLessThan(u32, 50) == 0) random.uintLessThan(u32, 20) else 0;
        for (0..burst) |_| if (hedging.canAfford()) {
            hedging.spend();
            spent += 1;
        };
        try testing.expect(spent * 20 <= admitted);
    }
    try testing.expect(spent > 200);
    for (0..10_000) |_| hedging.noteAdmitted();
    for (0..saved_max) |_| hedging.spend();
    try testing.expect(!hedging.canAfford());
}
