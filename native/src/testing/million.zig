//! A million nodes and a million tasks between a few real threads: what ThreadSanitizer looks at, for the memory orders that a
//! simulation of one order cannot see. -Dnodes=10000000 for ten.

const std = @import("std");
const pool_file = @import("../pool/pool.zig");
const storm_file = @import("storm.zig");
const sync = @import("../base/sync.zig");

const gpa = std.heap.c_allocator; // not the testing one, which is slow; leaks are looked for elsewhere
const nodes = @import("test_options").nodes;
const nodes_a_run = 100_000;

test "a million nodes run once each, and read what was there before them" {
    var left: u64 = nodes;
    var workers: u32 = 2;
    while (left > 0) : (left -|= nodes_a_run) {
        var pool: pool_file.Pool = .init(gpa, .{ .worker_count = workers });
        defer pool.deinit();
        defer pool.shutdown();
        const count: u32 = @intCast(@min(left, nodes_a_run));
        // Long and narrow as well as short and wide: there is more to wait for, there is more to steal.
        const width: u32 = if (workers == 3) 4 else 500;
        var storm: storm_file.Storm = undefined;
        try storm.init(gpa, @max(1, count / width), width);
        defer storm.deinit(gpa);
        _ = try storm.run(gpa, &pool);
        try storm.verify();
        workers = if (workers == 4) 2 else workers + 1;
    }
}

test "a million tasks run once each, from inside and from outside, and see what their parents wrote" {
    const Leaf = struct {
        task: pool_file.Task = .{ .run = ran, .drop = dropped },
        shared: *Shared,
        first: u32 = 0,
        count: u32 = 0,
        times: u32 = 0,

        const Shared = struct { leaves: []Self, left: sync.Atomic(u32) };
        const Self = @This();

        /// Its range in halves, one spawned, one to follow; a leaf of one ends.
        fn ran(task: *pool_file.Task, worker: *pool_file.Worker) void {
            const it: *Self = @fieldParentPtr("task", task);
            const shared = it.shared;
            if (it.count == 1) {
                it.times += 1;
                if (shared.left.fetchSub(1, .acq_rel) == 1) sync.futex.wake(&shared.left, 1); // pairs with the load below
                return;
            }
            const half = it.count / 2;
            const other = &shared.leaves[it.first + half];
            other.first = it.first + half;
            other.count = it.count - half;
            it.count = half;
            worker.spawn(&other.task);
            worker.follow(task);
        }

        fn dropped(_: *pool_file.Task) void {
            unreachable;
        }
    };
    const parts = 10;
    const each = nodes / parts;
    if (each == 0) return;
    const leaves = try gpa.alloc(Leaf, parts * each);
    defer gpa.free(leaves);
    var shared: Leaf.Shared = .{ .leaves = leaves, .left = .init(parts * each) };
    for (leaves) |*leaf| leaf.* = .{ .shared = &shared };
    var pool: pool_file.Pool = .init(gpa, .{ .worker_count = 4 });
    defer pool.deinit();
    const Outside = struct {
        fn submit(to: *pool_file.Pool, all: []Leaf, from: usize, until: usize) void {
            for (from..until) |part| {
                const leaf = &all[part * each];
                leaf.first = @intCast(part * each);
                leaf.count = each;
                to.submit(&leaf.task);
            }
        }
    };
    const other = try sync.Thread.spawn(.{ .name = "test" }, Outside.submit, .{ &pool, leaves, 0, parts / 2 });
    Outside.submit(&pool, leaves, parts / 2, parts);
    while (true) {
        const left = shared.left.load(.acquire); // pairs with ran
        if (left == 0) break;
        sync.futex.wait(&shared.left, left, null) catch {};
    }
    other.join();
    pool.shutdown();
    for (leaves) |*leaf| try std.testing.expectEqual(1, leaf.times);
}
