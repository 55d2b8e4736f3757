//! A queue of numbers in order of rank: the highest rank first, and of equal ranks the first to come. One list for each
//! rank, linked through an array that the caller owns and several queues may share (a number is in one of them at a time),
//! so nothing is allocated by a push. Two levels of bits tell the highest rank that has anybody: a push and a pop look at
//! two words each, however many ranks there are. No lock in here.

const std = @import("std");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const ranks_max = words_max * 64;
const words_max = 16;

pub const Ranked = struct {
    /// Meaningless where the rank's bit is not set.
    lines: []Line,
    /// Bit i of word w: somebody of rank 64 * w + i waits. Bit w of `any`: the word is not 0.
    words: [words_max]u64,
    any: u32,
    len: u32,

    const Line = struct { head: u32, tail: u32 };

    /// Takes nobody in.
    pub const empty: Ranked = .{ .lines = &.{}, .words = @splat(0), .any = 0, .len = 0 };

    /// Ranks 0 to rank_count - 1. With one rank it is a plain queue.
    pub fn init(arena: Allocator, rank_count: usize) error{OutOfMemory}!Ranked {
        assert(rank_count >= 1 and rank_count <= ranks_max);
        var queue: Ranked = .empty;
        queue.lines = try arena.alloc(Line, rank_count);
        return queue;
    }

    /// The last of a line has no link: what its place in `link` holds is never looked at.
    pub fn push(queue: *Ranked, link: []u32, number: u32, rank: u32) void {
        const line = &queue.lines[rank];
        const word = &queue.words[rank / 64];
        const bit = @as(u64, 1) << @intCast(rank % 64);
        if (word.* & bit != 0) {
            link[line.tail] = number;
        } else {
            line.head = number;
            word.* |= bit;
            queue.any |= @as(u32, 1) << @intCast(rank / 64);
        }
        line.tail = number;
        queue.len += 1;
    }

    pub fn pop(queue: *Ranked, link: []const u32) ?u32 {
        if (queue.len == 0) return null;
        const at = 31 - @clz(queue.any);
        const word = &queue.words[at];
        const bit: u6 = @intCast(63 - @clz(word.*));
        const line = &queue.lines[@as(usize, at) * 64 + bit];
        const number = line.head;
        if (number == line.tail) {
            word.* &= ~(@as(u64, 1) << bit);
            if (word.* == 0) queue.any &= ~(@as(u32, 1) << @intCast(at));
        } else line.head = link[number];
        queue.len -= 1;
        return number;
    }

    pub fn clear(queue: *Ranked) void {
        queue.words = @splat(0);
        queue.any = 0;
        queue.len = 0;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn expectPops(queue: *Ranked, link: []const u32, expected: []const u32) !void {
    for (expected) |number| try testing.expectEqual(number, queue.pop(link));
}

test "one rank is first in, first out" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var link: [5]u32 = undefined;
    var queue = try Ranked.init(arena.allocator(), 1);
    try testing.expectEqual(null, queue.pop(&link));
    for ([_]u32{ 3, 0, 4 }) |number| queue.push(&link, number, 0);
    try expectPops(&queue, &link, &.{3});
    queue.push(&link, 3, 0);
    queue.push(&link, 1, 0);
    try testing.expectEqual(4, queue.len);
    try expectPops(&queue, &link, &.{ 0, 4, 3, 1 });
    try testing.expectEqual(null, queue.pop(&link));
    try testing.expectEqual(0, queue.len);
}

test "the highest rank goes first, and equal ranks in the order in which they came" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var link: [10]u32 = undefined;
    var queue = try Ranked.init(arena.allocator(), ranks_max);
    const ranks = [_]u32{ 0, 63, 64, 1023, 0, 64, 1023, 65, 1, 0 };
    for (ranks, 0..) |rank, number| queue.push(&link, @intCast(number), rank);
    try expectPops(&queue, &link, &.{ 3, 6, 7, 2, 5, 1 });
    queue.push(&link, 3, 512);
    try expectPops(&queue, &link, &.{ 3, 8, 0, 4, 9 });
    try testing.expectEqual(null, queue.pop(&link));
    queue.push(&link, 3, 512);
    queue.push(&link, 2, 7);
    queue.clear();
    queue.push(&link, 3, 100);
    try expectPops(&queue, &link, &.{3});
    try testing.expectEqual(null, queue.pop(&link));
}

test "queues may share an array of links" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var link: [8]u32 = undefined;
    var queues = [_]Ranked{ try .init(arena.allocator(), 1), try .init(arena.allocator(), 3) };
    for (0..8) |number| queues[number % 2].push(&link, @intCast(number), if (number % 2 == 0) 0 else @intCast(number % 3));
    try expectPops(&queues[0], &link, &.{ 0, 2 });
    queues[1].push(&link, 0, 1);
    try expectPops(&queues[1], &link, &.{ 5, 1, 7, 0, 3 });
    try expectPops(&queues[0], &link, &.{ 4, 6 });
}

test "random pushes and pops agree with looking through a list" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng: std.Random.DefaultPrng = .init(seed);
    const dice = prng.random();
    for ([_]u32{ 1, 2, 64, 65, 300, ranks_max }) |rank_count| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        const Entry = struct { number: u32, rank: u32 };
        var model: std.ArrayList(Entry) = .empty;
        defer model.deinit(testing.allocator);
        var link: [200]u32 = undefined;
        var free: std.ArrayList(u32) = .empty;
        defer free.deinit(testing.allocator);
        for (0..link.len) |number| try free.append(testing.allocator, @intCast(number));
        var queue = try Ranked.init(arena.allocator(), rank_count);
        for (0..5_000) |_| {
            if (free.items.len > 0 and dice.uintLessThan(u32, 100) < 52) {
                const number = free.swapRemove(dice.uintLessThan(usize, free.items.len));
                const rank = dice.uintLessThan(u32, rank_count);
                queue.push(&link, number, rank);
                try model.append(testing.allocator, .{ .number = number, .rank = rank });
            } else if (model.items.len > 0) {
                var best: usize = 0;
                for (model.items, 0..) |entry, i| if (entry.rank > model.items[best].rank) {
                    best = i;
                };
                const expected = model.orderedRemove(best).number;
                try testing.expectEqual(expected, queue.pop(&link));
                try free.append(testing.allocator, expected);
            } else try testing.expectEqual(null, queue.pop(&link));
            try testing.expectEqual(model.items.len, queue.len);
        }
    }
}
