//! Nodes that do nothing, as many as are asked for, through the pool and graph/run.zig: the shortest way from "a node has ended"
//! to "the next one runs". Each leaves a plain number for its successors, so that whoever started one too early reads a wrong
//! one, and ThreadSanitizer sees the race.

const std = @import("std");
const plan_file = @import("../graph/plan.zig");
const pool_file = @import("../pool/pool.zig");
const run_file = @import("../graph/run.zig");
const sync = @import("../base/sync.zig");

const Allocator = std.mem.Allocator;

pub const Storm = struct {
    plan: *plan_file.Plan,
    width: u32,
    tasks: []Node,
    graph: run_file.Run,
    pool: *pool_file.Pool,
    over: sync.Atomic(u32) = .init(0),

    const Node = struct {
        task: pool_file.Task = .{ .run = ran, .drop = dropped },
        storm: *Storm,
        /// How often it ran.
        times: u32 = 0,
        /// One more than the larger of its predecessors': its layer.
        depth: u32 = 0,

        fn ran(task: *pool_file.Task, worker: *pool_file.Worker) void {
            const node: *Node = @fieldParentPtr("task", task);
            node.storm.carry(node, worker);
        }

        fn dropped(_: *pool_file.Task) void {
            unreachable; // the pool outlives every run here
        }
    };

    /// `layers` times `width` nodes; each reads the one above it and that one's neighbour.
    pub fn init(storm: *Storm, gpa: Allocator, layers: u32, width: u32) !void {
        const count = layers * width;
        const nodes = try gpa.alloc(plan_file.Node, count);
        defer gpa.free(nodes);
        @memset(nodes, plan_file.test_callback);
        const each: u32 = if (width > 1) 2 else 1;
        const edges = try gpa.alloc([2]u32, (layers - 1) * width * each);
        defer gpa.free(edges);
        var at: usize = 0;
        for (1..layers) |layer| for (0..width) |i| for (0..each) |k| {
            edges[at] = .{ @intCast((layer - 1) * width + (i + k) % width), @intCast(layer * width + i) };
            at += 1;
        };
        var cycle: plan_file.Cycle = .{};
        storm.* = .{
            .plan = try plan_file.testPlan(gpa, nodes, edges, &cycle),
            .width = width,
            .tasks = &.{},
            .graph = undefined,
            .pool = undefined,
        };
        errdefer storm.plan.release();
        storm.tasks = try gpa.alloc(Node, count);
        for (storm.tasks) |*task| task.* = .{ .storm = storm };
    }

    pub fn deinit(storm: *Storm, gpa: Allocator) void {
        gpa.free(storm.tasks);
        storm.plan.release();
    }

    /// One run of all the nodes. Returns how long it took, from its first submission on.
    pub fn run(storm: *Storm, gpa: Allocator, pool: *pool_file.Pool) !u64 {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        defer arena.deinit();
        storm.pool = pool;
        storm.over.store(0, .monotonic);
        for (storm.tasks) |*task| {
            task.times = 0;
            task.depth = 0;
        }
        try storm.graph.init(arena.allocator(), storm.plan, false, 1);
        const start_ns = sync.now();
        var frontier: run_file.Frontier = .{};
        storm.graph.begin(1, &frontier);
        while (frontier.pop(&storm.graph)) |node| pool.submit(&storm.tasks[node].task);
        while (storm.over.load(.acquire) == 0) sync.futex.wait(&storm.over, 0, null) catch {}; // pairs with carry's store
        return sync.now() - start_ns;
    }

    fn carry(storm: *Storm, node: *Node, worker: *pool_file.Worker) void {
        const run_ = &storm.graph;
        const number: u32 = @intCast(node - storm.tasks.ptr);
        std.debug.assert(run_.enter(number, 2));
        node.times += 1;
        node.depth += 1;
        const layer = number / storm.width;
        if (layer > 0) {
            const above = (layer - 1) * storm.width;
            const column = number % storm.width;
            node.depth += @max(storm.tasks[above + column].depth, storm.tasks[above + (column + 1) % storm.width].depth);
        }
        var frontier: run_file.Frontier = .{};
        std.debug.assert(run_.settle(number, .running, .succeeded, 3, &frontier));
        if (frontier.over) {
            storm.over.store(1, .release); // pairs with run's load
            return sync.futex.wake(&storm.over, 1);
        }
        // The first goes on right here, the others are there to be stolen.
        const first = frontier.pop(run_) orelse return;
        while (frontier.pop(run_)) |next| worker.spawn(&storm.tasks[next].task);
        worker.follow(&storm.tasks[first].task);
    }

    pub fn verify(storm: *const Storm) !void {
        for (storm.tasks, 0..) |*task, number| {
            if (task.times != 1) return error.TimesWrong;
            if (task.depth != number / storm.width + 1) return error.ReadTooEarly;
        }
    }
};
