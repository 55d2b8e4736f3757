//! Pace: how long a plan's nodes take, as its runs have shown, and the ranks that follow from it. Of two ready nodes the one with
//! more work behind it goes first (critical path priority: Kohler, "A preliminary evaluation of the critical path method for
//! scheduling tasks on multiprocessor systems", 1975); ties are first come, first served.
//!
//! A rank is the length of the longest way from a node to the end of the graph, in steps of 1/rank_count of the longest of all.
//! Before anything was learned every node counts alike. What was learned counts from the next run on: a run takes its ranks
//! along when it starts, so they do not change under it.

const std = @import("std");
const sync = @import("../base/sync.zig");
const topology = @import("topology.zig");

const Allocator = std.mem.Allocator;

pub const rank_count_max = 1024;
/// Runs whose nodes take less than this on average teach nothing: in which order they go makes no difference, and
/// learning costs some nanoseconds a node.
pub const worth_learning_ns = 20 * std.time.ns_per_us;

/// By node; empty: all are 0.
pub const Ranks = struct { of: []const u16 = &.{}, count: u32 = 1 };

pub const Pace = struct {
    /// Every node after its predecessors.
    order: []const u32,
    successor_first: []const u32,
    successors: []const topology.Successor,
    first_guess: Ranks,
    mutex: sync.Mutex = .init, // guards what follows
    learned: sync.Atomic(bool) = .init(false),
    /// Nanoseconds, an exponential average; 0: never seen.
    durations: []f32 = &.{},
    ranks: []u16 = &.{},

    pub fn init(
        arena: Allocator,
        gpa: Allocator,
        order: []const u32,
        successor_first: []const u32,
        successors: []const topology.Successor,
    ) Allocator.Error!Pace {
        var pace: Pace = .{
            .order = try arena.dupe(u32, order),
            .successor_first = successor_first,
            .successors = successors,
            .first_guess = .{},
        };
        const depth = try gpa.alloc(u32, order.len);
        defer gpa.free(depth);
        var levels: u32 = 0;
        var at = order.len;
        while (at > 0) {
            at -= 1;
            const node = order[at];
            var below: u32 = 0;
            for (pace.successorsOf(node)) |edge| below = @max(below, depth[edge.node]);
            depth[node] = below + 1;
            levels = @max(levels, below + 1);
        }
        if (levels <= 1) return pace;
        const count = @min(levels, rank_count_max);
        const ranks = try arena.alloc(u16, order.len);
        for (ranks, depth) |*rank, it| rank.* = @intCast(@as(u64, it - 1) * (count - 1) / (levels - 1));
        pace.first_guess = .{ .of = ranks, .count = count };
        return pace;
    }

    pub fn deinit(pace: *Pace, gpa: Allocator) void {
        gpa.free(pace.durations);
        gpa.free(pace.ranks);
    }

    /// For one run, which may keep them: what `arena` holds does not change any more.
    pub fn current(pace: *Pace, arena: Allocator) Allocator.Error!Ranks {
        if (!pace.learned.load(.acquire)) return pace.first_guess; // pairs with learn's store
        // Never waited for: it is advice, and in a forked child whoever held the lock is not there.
        if (!pace.mutex.tryLock()) return pace.first_guess;
        defer pace.mutex.unlock();
        return .{ .of = try arena.dupe(u16, pace.ranks), .count = @min(pace.ranks.len, rank_count_max) };
    }

    /// Takes in how long a run's nodes took: `durationOf(context, node)` in nanoseconds, null for those that did not succeed.
    /// Does nothing when another run is at it, or memory is short: it is only advice.
    pub fn learn(pace: *Pace, gpa: Allocator, context: anytype, comptime durationOf: fn (@TypeOf(context), u32) ?u64) void {
        if (!pace.mutex.tryLock()) return;
        defer pace.mutex.unlock();
        const count = pace.order.len;
        if (pace.durations.len == 0) {
            const durations = gpa.alloc(f32, count) catch return;
            pace.ranks = gpa.alloc(u16, count) catch return gpa.free(durations);
            pace.durations = durations;
            @memset(durations, 0);
        }
        var sum: f64 = 0;
        var seen: f64 = 0;
        for (pace.durations, 0..) |*duration, node| {
            if (durationOf(context, @intCast(node))) |ns| {
                const latest: f32 = @max(1, @as(f32, @floatFromInt(ns)));
                duration.* = if (duration.* == 0) latest else 0.75 * duration.* + 0.25 * latest;
            }
            if (duration.* == 0) continue;
            sum += duration.*;
            seen += 1;
        }
        if (seen == 0) return;
        const typical: f64 = sum / seen; // what nodes that were never seen are taken for
        const remaining = gpa.alloc(f64, count) catch return;
        defer gpa.free(remaining);
        var longest: f64 = 0;
        var at = count;
        while (at > 0) {
            at -= 1;
            const node = pace.order[at];
            var below: f64 = 0;
            for (pace.successorsOf(node)) |edge| below = @max(below, remaining[edge.node]);
            const own: f64 = pace.durations[node];
            remaining[node] = below + if (own == 0) typical else own;
            longest = @max(longest, remaining[node]);
        }
        const top: f64 = @floatFromInt(@min(count, rank_count_max) - 1);
        for (pace.ranks, remaining) |*rank, it| rank.* = @intFromFloat(it / longest * top);
        pace.learned.store(true, .release); // pairs with current's load
    }

    fn successorsOf(pace: *const Pace, node: u32) []const topology.Successor {
        return pace.successors[pace.successor_first[node]..pace.successor_first[node + 1]];
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const Fixture = struct {
    arena: std.heap.ArenaAllocator,
    pace: Pace,

    fn init(count: u32, edges: []const [2]u32) !Fixture {
        var fixture: Fixture = .{ .arena = .init(testing.allocator), .pace = undefined };
        errdefer fixture.arena.deinit();
        const arena = fixture.arena.allocator();
        const nodes = try arena.alloc(topology.Node, count);
        @memset(nodes, .{ .kind = 0 });
        var cycle: topology.Cycle = .{};
        const graph = try topology.Graph.build(arena, arena, nodes, edges, &.{}, &cycle);
        fixture.pace = try .init(arena, testing.allocator, graph.order, graph.successor_first, graph.successors);
        return fixture;
    }

    fn deinit(fixture: *Fixture) void {
        fixture.pace.deinit(testing.allocator);
        fixture.arena.deinit();
    }
};

test "at first the longer way goes first" {
    var f: Fixture = try .init(5, &.{ .{ 0, 1 }, .{ 1, 2 }, .{ 0, 3 } });
    defer f.deinit();
    const ranks = try f.pace.current(testing.allocator);
    try testing.expectEqual(3, ranks.count);
    try testing.expectEqualSlices(u16, &.{ 2, 1, 0, 0, 0 }, ranks.of);
}

test "a graph without edges has one rank" {
    var f: Fixture = try .init(100, &.{});
    defer f.deinit();
    try testing.expectEqual(1, (try f.pace.current(testing.allocator)).count);
}

test "what took long before goes first, what was never seen is taken for the average" {
    var f: Fixture = try .init(4, &.{});
    defer f.deinit();
    const durations = [_]?u64{ 100, 900, null, 500 };
    const of = struct {
        fn duration(all: *const [4]?u64, node: u32) ?u64 {
            return all[node];
        }
    };
    f.pace.learn(testing.allocator, &durations, of.duration);
    const ranks = try f.pace.current(testing.allocator);
    defer testing.allocator.free(ranks.of);
    try testing.expectEqual(4, ranks.count);
    try testing.expectEqualSlices(u16, &.{ 0, 3, 1, 1 }, ranks.of);
    f.pace.learn(testing.allocator, &durations, of.duration);
}

test "a chain deeper than there are ranks is ordered from its end" {
    var edges: [2 * rank_count_max][2]u32 = undefined;
    for (&edges, 0..) |*edge, i| edge.* = .{ @intCast(i), @intCast(i + 1) };
    var f: Fixture = try .init(edges.len + 1, &edges);
    defer f.deinit();
    const ranks = try f.pace.current(testing.allocator);
    try testing.expectEqual(rank_count_max, ranks.count);
    try testing.expectEqual(rank_count_max - 1, ranks.of[0]);
    for (ranks.of[1..], ranks.of[0 .. ranks.of.len - 1]) |later, earlier| try testing.expect(later <= earlier);
    try testing.expectEqual(0, ranks.of[ranks.of.len - 1]);
}
