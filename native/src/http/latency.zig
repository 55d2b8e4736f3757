//! How long things took, as a histogram of fixed size. One thread writes, any thread reads.
//!
//! Buckets are log-linear, as in HdrHistogram: each octave, from one power of two to the next, is cut into 32 equal parts, so a
//! bucket is never wider than 1/32 of what is in it. A percentile is the upper edge of the bucket it falls into: it is never too
//! low, and at most 3.2 % too high. Below a microsecond buckets are 32 ns wide. Above 73 minutes all is one bucket, the last.

const std = @import("std");
const sync = @import("../base/sync.zig");

/// C: gb_latency
pub const Snapshot = extern struct {
    count: u64,
    // 0 if there is nothing yet. Never above `max_ns`.
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    /// As it was: neither rounded nor cut.
    max_ns: u64,
};

/// What is longer counts as this in percentiles.
pub const ns_max: u64 = (1 << 42) - 1;

const unit_bits = 5; // durations are counted in units of 32 ns
const part_bits = 5; // and an octave has 32 parts
const parts = 1 << part_bits;
const bucket_count = bucketOf(ns_max) + 1;

pub const Histogram = struct {
    buckets: [bucket_count]sync.Atomic(u64) = @splat(.init(0)),
    max_ns: sync.Atomic(u64) = .init(0),

    /// The one writer's.
    pub fn record(histogram: *Histogram, ns: u64) void {
        _ = histogram.buckets[bucketOf(ns)].fetchAdd(1, .monotonic);
        if (ns > histogram.max_ns.load(.monotonic)) histogram.max_ns.store(ns, .monotonic);
    }

    /// Each number as it is; they are not all of one moment, but they fit together.
    pub fn read(histogram: *const Histogram) Snapshot {
        var counts: [bucket_count]u64 = undefined;
        var count: u64 = 0;
        var highest: usize = 0;
        for (&histogram.buckets, &counts, 0..) |*from, *to, bucket| {
            to.* = from.load(.monotonic);
            count += to.*;
            if (to.* > 0) highest = bucket;
        }
        // A duration may be in its bucket already and not yet be the longest, or the other way round.
        const longest = if (count == 0) 0 else @max(histogram.max_ns.load(.monotonic), firstNs(highest));
        return .{
            .count = count,
            .p50_ns = @min(percentile(&counts, count, 50), longest),
            .p90_ns = @min(percentile(&counts, count, 90), longest),
            .p99_ns = @min(percentile(&counts, count, 99), longest),
            .max_ns = longest,
        };
    }
};

/// The upper edge of the bucket in which, counted from the shortest, that part of the durations is reached (nearest rank).
fn percentile(counts: *const [bucket_count]u64, count: u64, percent: u64) u64 {
    const rank = rankOf(count, percent);
    var passed: u64 = 0;
    for (counts, 0..) |here, bucket| {
        passed += here;
        if (passed >= rank) return firstNs(bucket + 1) - 1;
    }
    unreachable; // there are `count` of them, and rank <= count
}

/// Rounded up: of three durations the second is the median.
fn rankOf(count: u64, percent: u64) u64 {
    return @intCast((@as(u128, count) * percent + 99) / 100);
}

/// Buckets 0 to 63 are one unit wide, the next 32 two, the next 32 four, and so on.
fn bucketOf(ns: u64) usize {
    const units = @min(ns, ns_max) >> unit_bits;
    const widening: u6 = @as(u6, std.math.log2_int(u64, units | 1)) -| part_bits;
    return @intCast(@as(u64, parts) * widening + (units >> widening));
}

/// The shortest duration of a bucket.
fn firstNs(bucket: usize) u64 {
    const widening = (bucket / parts) -| 1;
    return @as(u64, bucket - parts * widening) << @intCast(widening + unit_bits);
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "buckets lie side by side, and none is wider than it may be" {
    try testing.expectEqual(0, firstNs(0));
    try testing.expectEqual(ns_max, firstNs(bucket_count) - 1);
    for (0..bucket_count) |bucket| {
        errdefer std.debug.print("bucket {d}\n", .{bucket});
        const first = firstNs(bucket);
        const last = firstNs(bucket + 1) - 1;
        try testing.expectEqual(bucket, bucketOf(first));
        try testing.expectEqual(bucket, bucketOf(last));
        if (first >= 1024) try testing.expect((last - first) * 32 < first) else try testing.expectEqual(31, last - first);
    }
    try testing.expect(ns_max > std.time.ns_per_hour);
    try testing.expectEqual(bucket_count - 1, bucketOf(ns_max + 1));
    try testing.expectEqual(bucket_count - 1, bucketOf(std.math.maxInt(u64)));
}

test "an empty histogram is all zeros" {
    const histogram: Histogram = .{};
    try testing.expectEqual(Snapshot{ .count = 0, .p50_ns = 0, .p90_ns = 0, .p99_ns = 0, .max_ns = 0 }, histogram.read());
}

test "a single duration is every percentile, exactly" {
    for ([_]u64{ 0, 1, 1_000, 1_234_567, ns_max }) |ns| {
        var histogram: Histogram = .{};
        histogram.record(ns);
        try testing.expectEqual(Snapshot{ .count = 1, .p50_ns = ns, .p90_ns = ns, .p99_ns = ns, .max_ns = ns }, histogram.read());
    }
}

test "what took longer than can be told counts as the longest, but for the maximum" {
    var histogram: Histogram = .{};
    histogram.record(1);
    histogram.record(std.math.maxInt(u64));
    const seen = histogram.read();
    try testing.expectEqual(2, seen.count);
    try testing.expectEqual(31, seen.p50_ns);
    try testing.expectEqual(ns_max, seen.p99_ns);
    try testing.expectEqual(std.math.maxInt(u64), seen.max_ns);
}

test "the ranks of percentiles" {
    for ([_][4]u64{ .{ 1, 1, 1, 1 }, .{ 2, 1, 2, 2 }, .{ 3, 2, 3, 3 }, .{ 10, 5, 9, 10 }, .{ 100, 50, 90, 99 }, .{ 101, 51, 91, 100 } }) |it| {
        for ([_]u64{ 50, 90, 99 }, it[1..]) |percent, rank| try testing.expectEqual(rank, rankOf(it[0], percent));
    }
    try testing.expect(rankOf(std.math.maxInt(u64), 99) < std.math.maxInt(u64));
}

test "a reader who comes between the two writes sees percentiles that fit the maximum" {
    var histogram: Histogram = .{};
    histogram.record(1_000_000);
    _ = histogram.buckets[bucketOf(5_000_000)].fetchAdd(1, .monotonic); // the first half of a record
    const seen = histogram.read();
    try testing.expect(seen.p50_ns >= 1_000_000 and seen.p50_ns < 1_032_000);
    try testing.expectEqual(firstNs(bucketOf(5_000_000)), seen.max_ns);
    try testing.expectEqual(seen.max_ns, seen.p99_ns);
}

test "percentiles are those of a sorted list, rounded up a little" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var list: [400]u64 = undefined;
    for (0..300) |_| {
        const durations = list[0..random.intRangeAtMost(usize, 1, list.len)];
        var histogram: Histogram = .{};
        // Of any size, or all of about one size.
        const shift: ?u6 = if (random.boolean()) random.intRangeAtMost(u6, 22, 60) else null;
        for (durations) |*ns| {
            ns.* = random.int(u64) >> (shift orelse random.intRangeAtMost(u6, 22, 63));
            histogram.record(ns.*);
        }
        std.mem.sort(u64, durations, {}, std.sort.asc(u64));
        const seen = histogram.read();
        try testing.expectEqual(durations.len, seen.count);
        try testing.expectEqual(durations[durations.len - 1], seen.max_ns);
        for ([_]u64{ 50, 90, 99 }, [_]u64{ seen.p50_ns, seen.p90_ns, seen.p99_ns }) |percent, ns| {
            const exact = durations[(durations.len * percent + 99) / 100 - 1];
            try testing.expect(ns >= exact);
            try testing.expect(ns <= exact + @max(31, exact / 32));
            try testing.expect(ns <= seen.max_ns);
        }
    }
}

test "readers see counts that only grow, and in the end all" {
    const Shared = struct {
        histogram: Histogram = .{},
        sound: sync.Atomic(bool) = .init(true),
        const total = 20_000;

        fn look(shared: *@This()) void {
            var before: Snapshot = shared.histogram.read();
            while (before.count < total) {
                const seen = shared.histogram.read();
                const is_sound = seen.count >= before.count and seen.max_ns >= before.max_ns and
                    seen.p50_ns <= seen.p90_ns and seen.p90_ns <= seen.p99_ns and seen.p99_ns <= seen.max_ns;
                if (!is_sound) shared.sound.store(false, .monotonic);
                before = seen;
            }
        }
    };
    var shared: Shared = .{};
    var readers: [2]sync.Thread = undefined;
    for (&readers) |*reader| reader.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.look, .{&shared});
    for (0..Shared.total) |i| shared.histogram.record(1_000 * i);
    for (readers) |reader| reader.join();
    try testing.expect(shared.sound.load(.monotonic));
    const seen = shared.histogram.read();
    try testing.expectEqual(Shared.total, seen.count);
    try testing.expectEqual(1_000 * (Shared.total - 1), seen.max_ns);
}
