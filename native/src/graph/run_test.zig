//! What a run decides: joins, conditions and edge rules, failures and who handles them, early ends, and who is told. What
//! else may become of a node, attempts and stand-ins, stands in attempts_test.zig.

const std = @import("std");
const sync = @import("../base/sync.zig");
const alone = @import("alone.zig");
const plan_file = @import("plan.zig");
const predicate = @import("predicate.zig");
const run_file = @import("run.zig");

const assert = std.debug.assert;
const testing = std.testing;
const Cause = run_file.Cause;
const Frontier = run_file.Frontier;
const Node = plan_file.Node;
const Outcome = run_file.Outcome;
const Plan = plan_file.Plan;
const Run = run_file.Run;
const State = run_file.State;
const none = plan_file.none;

pub const Fixture = struct {
    plan: *Plan,
    arena: std.heap.ArenaAllocator,
    run: Run,
    frontier: Frontier = .{},

    pub fn init(fixture: *Fixture, nodes: []const Node, edges: []const [2]u32, keep_going: bool) !void {
        try fixture.initWithRules(nodes, edges, &.{}, keep_going);
    }

    /// `rules` beside `edges`; what they ask is the judge's affair.
    fn initWithRules(fixture: *Fixture, nodes: []const Node, edges: []const [2]u32, rules: []const u32, keep_going: bool) !void {
        var cycle: plan_file.Cycle = .{};
        const predicates: [2]predicate.Predicate = @splat(.{ .compare = @backingInt(predicate.Compare.exists) });
        fixture.plan = try Plan.create(testing.allocator, &.{
            .node_count = @intCast(nodes.len),
            .edge_count = @intCast(edges.len),
            .predicate_count = predicates.len,
            .nodes = nodes.ptr,
            .edges = @ptrCast(edges.ptr),
            .edge_rules = if (rules.len > 0) rules.ptr else null,
            .predicates = &predicates,
        }, &cycle);
        fixture.arena = .init(testing.allocator);
        fixture.frontier = .{};
        try fixture.run.init(fixture.arena.allocator(), fixture.plan, keep_going, 1);
        fixture.run.begin(1, &fixture.frontier);
    }

    pub fn deinit(fixture: *Fixture) void {
        fixture.arena.deinit();
        fixture.plan.release();
    }

    /// Runs everything that is ready, `outcome` by node, and returns the order.
    fn drain(fixture: *Fixture, outcomes: anytype, order: *std.ArrayList(u32)) !void {
        while (fixture.frontier.pop(&fixture.run)) |node| {
            if (!fixture.run.enter(node, 2)) {
                const state = fixture.run.stateOf(node);
                _ = fixture.run.settle(node, state, .cancelled, 3, &fixture.frontier);
                continue;
            }
            try order.append(testing.allocator, node);
            try testing.expect(fixture.run.settle(node, .running, outcomes.of(node), 3, &fixture.frontier));
        }
    }

    /// The next ready node is `node`; it begins.
    pub fn start(fixture: *Fixture, node: u32) !void {
        try testing.expectEqual(node, fixture.frontier.pop(&fixture.run));
        try testing.expectEqual(.running, fixture.run.start(node, 2));
    }

    pub fn end(fixture: *Fixture, node: u32, outcome: Outcome) !void {
        try testing.expect(fixture.run.settle(node, .running, outcome, 3, &fixture.frontier));
    }

    pub fn expectStates(fixture: *Fixture, expected: []const State) !void {
        for (expected, 0..) |state, node| try testing.expectEqual(state, fixture.run.stateOf(@intCast(node)));
    }
};
const Succeed = struct {
    pub fn of(_: @This(), _: u32) Outcome {
        return .succeeded;
    }
};
const FailAt = struct {
    node: u32,
    pub fn of(f: @This(), node: u32) Outcome {
        return if (node == f.node) .failed else .succeeded;
    }
};
const FailAll = struct {
    pub fn of(_: @This(), _: u32) Outcome {
        return .failed;
    }
};
const ChooseAt = struct {
    node: u32,
    chosen: []const u32,
    pub fn of(c: @This(), node: u32) Outcome {
        return if (node == c.node) .{ .chose = c.chosen } else .succeeded;
    }
};

const callbacks_4: [4]plan_file.Node = @splat(plan_file.test_callback);
const diamond = [_][2]u32{ .{ 0, 1 }, .{ 0, 2 }, .{ 1, 3 }, .{ 2, 3 } };

test "a diamond joins once" {
    var f: Fixture = undefined;
    try f.init(&callbacks_4, &diamond, false);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(Succeed{}, &order);
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3 }, order.items);
    try testing.expect(f.frontier.over and f.run.isOver());
}

test "a failure skips descendants and cancels independent work" {
    var f: Fixture = undefined;
    try f.init(&callbacks_4, &.{ .{ 0, 1 }, .{ 2, 3 } }, false);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(FailAt{ .node = 0 }, &order);
    try f.expectStates(&.{ .failed, .skipped, .cancelled, .cancelled });
    try testing.expect(f.frontier.over and f.frontier.stopped);
    try testing.expectEqual(Cause.failure, f.run.cause.load(.monotonic));
}

test "with keep_going independent work finishes" {
    var f: Fixture = undefined;
    try f.init(&callbacks_4, &.{ .{ 0, 1 }, .{ 2, 3 } }, true);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(FailAt{ .node = 0 }, &order);
    try f.expectStates(&.{ .failed, .skipped, .succeeded, .succeeded });
    try testing.expect(f.frontier.over and !f.frontier.stopped);
}

test "a way not taken is skipped and the join still runs" {
    var f: Fixture = undefined;
    var nodes = callbacks_4;
    nodes[0] = plan_file.test_condition;
    try f.init(&nodes, &diamond, false);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(ChooseAt{ .node = 0, .chosen = &.{2} }, &order);
    try f.expectStates(&.{ .succeeded, .skipped, .succeeded, .succeeded });
}

test "a condition that chooses nothing skips everything below" {
    var f: Fixture = undefined;
    var nodes = callbacks_4;
    nodes[0] = plan_file.test_condition;
    try f.init(&nodes, &diamond, false);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(ChooseAt{ .node = 0, .chosen = &.{} }, &order);
    try f.expectStates(&.{ .succeeded, .skipped, .skipped, .skipped });
    try testing.expect(f.frontier.over);
    try testing.expectEqual(Cause.none, f.run.cause.load(.monotonic));
}

test "only one of two who end a node wins" {
    var f: Fixture = undefined;
    try f.init(callbacks_4[0..1], &.{}, false);
    defer f.deinit();
    const node = f.frontier.pop(&f.run).?;
    try testing.expect(f.run.enter(node, 2));
    try testing.expect(f.run.stop(.cancel));
    try testing.expect(!f.run.stop(.timeout));
    try testing.expect(f.run.settle(node, .running, .cancelled, 3, &f.frontier));
    try testing.expect(!f.run.settle(node, .running, .succeeded, 4, &f.frontier));
    try testing.expectEqual(State.cancelled, f.run.stateOf(node));
    try testing.expectEqual(Cause.cancel, f.run.cause.load(.monotonic));
}

test "who is alone with its nodes moves them without asking, and counts them at the end" {
    var f: Fixture = undefined;
    try f.init(&callbacks_4, &.{ .{ 0, 1 }, .{ 0, 2 }, .{ 1, 3 }, .{ 2, 3 } }, false);
    defer f.deinit();
    const run = &f.run;
    for ([_]u32{ 0, 1, 2 }) |node| {
        try testing.expectEqual(node, f.frontier.pop(run).?);
        try testing.expectEqual(run_file.Run.Entered.running, alone.start(run, node, 2));
        alone.succeed(run, node, 3, &f.frontier);
    }
    try testing.expectEqual(3, f.frontier.pop(run).?);
    try testing.expect(run.stop(.cancel));
    try testing.expectEqual(run_file.Run.Entered.stopping, alone.start(run, 3, 5));
    try testing.expect(run.settleUncounted(3, .running, 0, .cancelled, 6, 6, &f.frontier));
    try testing.expect(!run.isOver());
    try testing.expect(run.countSettled(&f.frontier) and run.isOver());
    try f.expectStates(&.{ .succeeded, .succeeded, .succeeded, .cancelled });
}

test "threads that settle a layered graph at once run each node exactly once" {
    const width = 16;
    const layers = 32;
    const nodes: [width * layers]plan_file.Node = @splat(plan_file.test_callback);
    var edges: [(layers - 1) * width * width][2]u32 = undefined;
    for (0..layers - 1) |layer| for (0..width) |a| for (0..width) |b| {
        edges[(layer * width + a) * width + b] = .{ @intCast(layer * width + a), @intCast((layer + 1) * width + b) };
    };
    var f: Fixture = undefined;
    try f.init(&nodes, &edges, false);
    defer f.deinit();

    const Shared = struct {
        run: *Run,
        mutex: sync.Mutex = .init,
        ready: Frontier,
        executed: [width * layers]sync.Atomic(u32) = @splat(.init(0)),

        fn work(shared: *@This()) void {
            while (!shared.run.isOver()) {
                shared.mutex.lock();
                const popped = shared.ready.pop(shared.run);
                shared.mutex.unlock();
                const node = popped orelse {
                    sync.spinHint();
                    continue;
                };
                assert(shared.run.enter(node, 2));
                _ = shared.executed[node].fetchAdd(1, .monotonic);
                var mine: Frontier = .{};
                assert(shared.run.settle(node, .running, .succeeded, 3, &mine));
                shared.mutex.lock();
                while (mine.pop(shared.run)) |next| shared.ready.push(shared.run, next);
                shared.mutex.unlock();
            }
        }
    };
    var shared: Shared = .{ .run = &f.run, .ready = f.frontier };
    var threads: [3]sync.Thread = undefined;
    for (&threads) |*thread| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.work, .{&shared});
    for (threads) |thread| thread.join();
    for (&shared.executed) |*times| try testing.expectEqual(1, times.load(.monotonic));
}

// ---------------------------------------------------------------------------------------------------------- joins

fn joining(join: plan_file.Join) Node {
    var node = plan_file.test_callback;
    node.join = @backingInt(join);
    return node;
}

const handled: Node = .{ .kind = @backingInt(plan_file.NodeKind.callback), .flags = .{ .handled = true } };
const two_into_one = [_][2]u32{ .{ 0, 2 }, .{ 1, 2 } };

test "a join of kind any is ready at its first live predecessor, and once" {
    var f: Fixture = undefined;
    try f.init(&.{ plan_file.test_callback, plan_file.test_callback, joining(.any) }, &two_into_one, false);
    defer f.deinit();
    try f.start(0);
    try f.start(1);
    try f.end(1, .succeeded);
    try f.expectStates(&.{ .running, .succeeded, .ready });
    try f.start(2);
    try f.end(0, .succeeded);
    try testing.expectEqual(null, f.frontier.pop(&f.run));
    try f.end(2, .succeeded);
    try testing.expect(f.frontier.over);
}

test "a join of kind any waits for the others while predecessors fail" {
    var f: Fixture = undefined;
    try f.init(&.{ handled, handled, joining(.any) }, &two_into_one, false);
    defer f.deinit();
    try f.start(0);
    try f.start(1);
    try f.end(0, .failed);
    try testing.expectEqual(.blocked, f.run.stateOf(2));
    try f.end(1, .succeeded);
    try testing.expectEqual(.ready, f.run.stateOf(2));
}

test "a join of kind any fails when nothing succeeded and something failed" {
    var f: Fixture = undefined;
    try f.init(&.{ handled, handled, joining(.any) }, &two_into_one, false);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(FailAll{}, &order);
    try f.expectStates(&.{ .failed, .failed, .failed });
    try testing.expectEqual(0, f.run.attemptOf(2)); // it never ran
    try testing.expectEqual(2, f.run.first_failed.load(.monotonic)); // the others' failures were handled
    try testing.expectEqual(Cause.failure, f.run.cause.load(.monotonic));
}

test "a join of kind any that no way taken leads to is skipped" {
    var f: Fixture = undefined;
    try f.init(&.{ plan_file.test_condition, plan_file.test_condition, joining(.any) }, &two_into_one, false);
    defer f.deinit();
    try f.start(0);
    try f.start(1);
    try f.end(0, .{ .chose = &.{} });
    try f.end(1, .{ .chose = &.{} });
    try f.expectStates(&.{ .succeeded, .succeeded, .skipped });
    try testing.expectEqual(Cause.none, f.run.cause.load(.monotonic));
}

test "a join of kind any in a run that is stopping is cancelled by its last arrival" {
    var f: Fixture = undefined;
    try f.init(&.{ plan_file.test_callback, plan_file.test_callback, joining(.any) }, &two_into_one, false);
    defer f.deinit();
    try f.start(0);
    try f.start(1);
    try testing.expect(f.run.stop(.cancel));
    try f.end(0, .succeeded);
    try testing.expectEqual(.blocked, f.run.stateOf(2));
    try f.end(1, .cancelled);
    try f.expectStates(&.{ .succeeded, .cancelled, .cancelled });
    try testing.expect(f.frontier.over);
}

test "a join of kind all_done runs whatever became of its predecessors" {
    // 0 fails, 1 hangs below it, 2 below both.
    var f: Fixture = undefined;
    try f.init(&.{ handled, plan_file.test_callback, joining(.all_done) }, &.{ .{ 0, 1 }, .{ 0, 2 }, .{ 1, 2 } }, false);
    defer f.deinit();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(FailAt{ .node = 0 }, &order);
    try f.expectStates(&.{ .failed, .skipped, .succeeded });
    try testing.expect(f.frontier.over and !f.frontier.stopped);
}

test "only a stop keeps a join of kind all_done from running" {
    var f: Fixture = undefined;
    try f.init(&.{ plan_file.test_callback, plan_file.test_callback, joining(.all_done) }, &two_into_one, false);
    defer f.deinit();
    try f.start(0);
    try f.start(1);
    try f.end(0, .succeeded);
    try testing.expect(f.run.stop(.timeout));
    try f.end(1, .cancelled);
    try f.expectStates(&.{ .succeeded, .cancelled, .cancelled });
}

test "a handled failure stops nothing and is no cause" {
    var f: Fixture = undefined;
    try f.init(&.{ handled, plan_file.test_callback, joining(.any) }, &two_into_one, false);
    defer f.deinit();
    try f.start(0);
    try f.end(0, .failed);
    try testing.expect(!f.frontier.stopped and !f.run.stopping());
    try testing.expectEqual(Cause.none, f.run.cause.load(.monotonic));
    try testing.expectEqual(none, f.run.first_failed.load(.monotonic));
    try f.start(1);
}

test "a blocked node that nobody needs is cancelled by its last arrival" {
    var f: Fixture = undefined;
    try f.init(&.{ plan_file.test_callback, plan_file.test_callback, joining(.any) }, &.{ .{ 0, 1 }, .{ 1, 2 } }, false);
    defer f.deinit();
    try f.start(0);
    try testing.expectEqual(.blocked, f.run.dropBlocked(1));
    try testing.expectEqual(.blocked, f.run.dropBlocked(2));
    try testing.expectEqual(.running, f.run.dropBlocked(0)); // for the caller to end
    try f.end(0, .succeeded);
    try f.expectStates(&.{ .succeeded, .cancelled, .cancelled });
    try testing.expect(f.frontier.over and !f.frontier.stopped);
    try testing.expectEqual(Cause.none, f.run.cause.load(.monotonic));
}

// ----------------------------------------------------------------------------------------------------------- edge rules

/// Of the two predicates the second holds.
const SecondHolds = struct {
    asked: u32 = 0,

    fn judge(it: *SecondHolds) run_file.Judge {
        return .{ .context = it, .holds = holds };
    }

    fn holds(context: *anyopaque, node: u32, rule: u32) bool {
        const it: *SecondHolds = @ptrCast(@alignCast(context));
        assert(node == 0);
        it.asked += 1;
        return rule == 2;
    }
};

test "an edge with a rule is followed where the rule holds, and the join below still runs" {
    var f: Fixture = undefined;
    try f.initWithRules(&callbacks_4, &diamond, &.{ 1, 2, 0, 0 }, false);
    defer f.deinit();
    var rules: SecondHolds = .{};
    f.run.judge = rules.judge();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(Succeed{}, &order);
    try f.expectStates(&.{ .succeeded, .skipped, .succeeded, .succeeded });
    try testing.expectEqual(2, rules.asked);
}

test "of an output that is not there no rule is asked" {
    var f: Fixture = undefined;
    try f.initWithRules(&callbacks_4, &diamond, &.{ 1, 2, 0, 0 }, true);
    defer f.deinit();
    var rules: SecondHolds = .{};
    f.run.judge = rules.judge();
    var order: std.ArrayList(u32) = .empty;
    defer order.deinit(testing.allocator);
    try f.drain(FailAt{ .node = 0 }, &order);
    try f.expectStates(&.{ .failed, .skipped, .skipped, .skipped });
    try testing.expectEqual(0, rules.asked);
}

// ------------------------------------------------------------------------------------------------------------- watching

test "the end of a node is told before that of any it ends" {
    const Log = struct {
        nodes: std.ArrayList(u32) = .empty,
        states: std.ArrayList(State) = .empty,

        fn saw(context: *anyopaque, node: u32, state: State, _: u64) void {
            const log: *@This() = @ptrCast(@alignCast(context));
            log.nodes.append(testing.allocator, node) catch unreachable;
            log.states.append(testing.allocator, state) catch unreachable;
        }
    };
    var log: Log = .{};
    defer log.nodes.deinit(testing.allocator);
    defer log.states.deinit(testing.allocator);
    var f: Fixture = undefined;
    try f.init(&callbacks_4, &diamond, false);
    defer f.deinit();
    f.run.watcher = .{ .context = &log, .saw = Log.saw };
    try f.start(0);
    try f.end(0, .failed);
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3 }, log.nodes.items);
    try testing.expectEqualSlices(State, &.{ .failed, .skipped, .skipped, .skipped }, log.states.items);
}
