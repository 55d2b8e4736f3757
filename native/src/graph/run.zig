//! One execution of a plan: who is ready, who is skipped, when it is over. It decides and never does: no thread,
//! socket or clock in here, the time is an argument. Whoever calls carries out what lands in the `Frontier`.
//!
//! ## The protocol
//!
//! Any number of threads settle nodes at once. A node moves
//!
//!     blocked -> ready -> running -> succeeded | failed | cancelled
//!        `-----------------------------> skipped | cancelled        (decided by its last arrival)
//!
//! and every move but the first is a compare-and-swap on `state`, so exactly one caller wins each: a callback that ends
//! while its run is being cancelled is either settled by the callback or cancelled by the sweep, never both.
//!
//! 1. Arrival. Whoever settles a node arrives at each successor: it notes what kind of arrival it is (broken, deciding)
//!    with plain counters and then takes one from `pending`, acquire-release. The one who takes the last sees all the notes
//!    and all the outputs of the other predecessors, and alone decides the successor's fate.
//! 2. Stopping. A stop is a store to `stop_flag` followed by a sweep over the states (by the caller, `sweep`). A node that
//!    starts running stores its state and then looks at `stop_flag`. All four accesses are sequentially consistent: either the
//!    sweep sees the node running, or the node sees the stop. Both may; the compare-and-swap on `state` lets one of them win.
//! 3. The end. `remaining` counts nodes that are not final. It is lowered once for each, after the node's arrivals, and
//!    the one who takes it to zero ends the run. A ready node is not final, so nothing is in anybody's frontier by then.

const std = @import("std");
const sync = @import("../base/sync.zig");
const plan_file = @import("plan.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Plan = plan_file.Plan;
const none = plan_file.none;

/// C: gb_state
pub const State = enum(u8) {
    blocked = 0,
    ready = 1,
    running = 2,
    succeeded = 3,
    failed = 4,
    skipped = 5,
    cancelled = 6,

    pub fn final(state: State) bool {
        return @backingInt(state) >= @backingInt(State.succeeded);
    }
};

/// C: gb_cause
pub const Cause = enum(u8) { none = 0, failure = 1, cancel = 2, timeout = 3, shutdown = 4 };

pub const NodeRun = struct {
    /// Predecessors that have not arrived.
    pending: sync.Atomic(u32),
    /// Deciding arrivals that were live.
    deciding_live: sync.Atomic(u32) = .init(0),
    state: sync.Atomic(State) = .init(.blocked),
    /// A predecessor failed, or was skipped because one did.
    broken: sync.Atomic(bool) = .init(false),
    /// A predecessor was cancelled.
    cut: sync.Atomic(bool) = .init(false),
    attempts: u32 = 0,
    ready_ns: u64 = 0,
    started_ns: u64 = 0,
    ended_ns: u64 = 0,
};

/// Nodes that became ready and wait to be carried out by the thread that holds this list. No allocation: linked
/// through the run's `link` array, where a node is in one list at a time.
pub const Frontier = struct {
    head: u32 = none,
    tail: u32 = none,
    /// This call stopped the run: the caller now sweeps.
    stopped: bool = false,
    /// This call settled the last node: the caller now ends the run.
    over: bool = false,

    pub fn push(list: *Frontier, run: *Run, node: u32) void {
        run.link[node] = none;
        if (list.tail == none) list.head = node else run.link[list.tail] = node;
        list.tail = node;
    }

    pub fn pop(list: *Frontier, run: *Run) ?u32 {
        if (list.head == none) return null;
        const node = list.head;
        list.head = run.link[node];
        if (list.head == none) list.tail = none;
        return node;
    }
};

pub const Outcome = union(enum) {
    succeeded,
    /// A condition: only these successors are followed.
    chose: []const u32,
    failed,
    cancelled,
};

pub const Run = struct {
    plan: *const Plan,
    nodes: []NodeRun,
    link: []u32,
    /// Whether a failure leaves independent nodes alone.
    keep_going: bool,
    /// Sequentially consistent, see protocol 2. A byte of its own: the binding reads it through a pointer.
    stop_flag: sync.Atomic(u8) = .init(0),
    cause: sync.Atomic(Cause) = .init(.none),
    first_failed: sync.Atomic(u32) = .init(none),
    remaining: sync.Atomic(u32),
    started_ns: u64,
    ended_ns: u64 = 0,

    pub fn init(run: *Run, arena: Allocator, plan: *const Plan, keep_going: bool, now: u64) Allocator.Error!void {
        const count = plan.nodes.len;
        const nodes = try arena.alloc(NodeRun, count);
        for (nodes, plan.predecessor_count) |*node, pending| node.* = .{ .pending = .init(pending) };
        run.* = .{
            .plan = plan,
            .nodes = nodes,
            .link = try arena.alloc(u32, count),
            .keep_going = keep_going,
            .remaining = .init(@intCast(count)),
            .started_ns = now,
        };
    }

    /// Puts the roots into the frontier. A plan without nodes is over at once.
    pub fn begin(run: *Run, now: u64, frontier: *Frontier) void {
        for (run.plan.roots) |node| {
            run.nodes[node].ready_ns = now;
            run.nodes[node].state.store(.ready, .release); // pairs with stateOf's acquire in reports
            frontier.push(run, node);
        }
        if (run.nodes.len == 0) run.end(now, frontier);
    }

    pub fn stateOf(run: *const Run, node: u32) State {
        return run.nodes[node].state.load(.acquire);
    }

    pub fn stopping(run: *const Run) bool {
        return run.stop_flag.load(.seq_cst) != 0; // pairs with the store in `stop`, protocol 2
    }

    pub fn isOver(run: *const Run) bool {
        return run.remaining.load(.acquire) == 0; // pairs with the fetchSub in `settle`
    }

    /// ready -> running. False: the run is stopping (or the node was swept); the caller settles it as cancelled.
    pub fn enter(run: *Run, node: u32, now: u64) bool {
        const it = &run.nodes[node];
        it.started_ns = now;
        it.attempts += 1;
        if (it.state.cmpxchgStrong(.ready, .running, .seq_cst, .monotonic) != null) return false; // protocol 2
        return !run.stopping();
    }

    /// running -> ready: it was handed out and not started after all. False: somebody ended it meanwhile.
    pub fn giveBack(run: *Run, node: u32, frontier: *Frontier) bool {
        const it = &run.nodes[node];
        if (it.state.cmpxchgStrong(.running, .ready, .seq_cst, .monotonic) != null) return false;
        it.attempts -|= 1; // a ready node is ours alone until the frontier is carried out
        frontier.push(run, node);
        return true;
    }

    pub fn settle(run: *Run, node: u32, from: State, outcome: Outcome, now: u64, frontier: *Frontier) bool {
        return run.settleAt(node, from, outcome, now, now, frontier);
    }

    /// Ends a node in state `from` and does everything that follows from it. False: somebody else had ended it; nothing
    /// was changed, the outcome is to be dropped. `ended_ns`: a callback may have ended some time before that is known here.
    pub fn settleAt(run: *Run, node: u32, from: State, outcome: Outcome, ended_ns: u64, now: u64, frontier: *Frontier) bool {
        const final: State = switch (outcome) {
            .succeeded, .chose => .succeeded,
            .failed => .failed,
            .cancelled => .cancelled,
        };
        const it = &run.nodes[node];
        // Release: the node's times and output are visible to who reads the state. The winner alone writes ended_ns,
        // but a reader may see the final state before it: reports are exact once the run is over.
        if (it.state.cmpxchgStrong(from, final, .seq_cst, .monotonic) != null) return false;
        it.ended_ns = ended_ns;
        if (final == .failed) run.noteFailure(node, frontier);

        var settled: u32 = 1;
        var cascade: Frontier = .{};
        run.arriveAtSuccessors(node, if (outcome == .chose) outcome.chose else null, now, frontier, &cascade);
        while (cascade.pop(run)) |ended| {
            settled += 1;
            run.arriveAtSuccessors(ended, null, now, frontier, &cascade);
        }
        // Acquire-release: the last one must see every node's final state and times.
        const before = run.remaining.fetchSub(settled, .acq_rel);
        assert(before >= settled);
        if (before == settled) run.end(now, frontier);
        return true;
    }

    /// Asks for an early end. True for exactly one caller, who then sweeps. False: it was asked before, or is over.
    pub fn stop(run: *Run, cause: Cause) bool {
        if (run.isOver()) return false;
        // A failure noted under keep_going does not stop, so a later cancel may still take its place.
        var seen = run.cause.load(.monotonic);
        while (true) {
            if (run.stop_flag.load(.seq_cst) != 0) return false;
            if (seen != .none and !(seen == .failure and run.keep_going)) return false;
            seen = run.cause.cmpxchgWeak(seen, cause, .acq_rel, .monotonic) orelse break;
        }
        return run.stop_flag.swap(1, .seq_cst) == 0; // pairs with `stopping`, protocol 2
    }

    fn end(run: *Run, now: u64, frontier: *Frontier) void {
        run.ended_ns = now;
        frontier.over = true;
    }

    fn noteFailure(run: *Run, node: u32, frontier: *Frontier) void {
        _ = run.first_failed.cmpxchgStrong(none, node, .monotonic, .monotonic);
        if (run.keep_going) {
            _ = run.cause.cmpxchgStrong(.none, .failure, .monotonic, .monotonic);
        } else if (run.cause.cmpxchgStrong(.none, .failure, .acq_rel, .monotonic) == null) {
            // A swap: between the two lines `stop` may have set it, and then it is the one who sweeps.
            if (run.stop_flag.swap(1, .seq_cst) == 0) frontier.stopped = true; // pairs with `stopping`, protocol 2
        }
    }

    fn arriveAtSuccessors(run: *Run, node: u32, chosen: ?[]const u32, now: u64, frontier: *Frontier, cascade: *Frontier) void {
        const it = &run.nodes[node];
        const state = it.state.load(.monotonic);
        const broken = state == .failed or (state == .skipped and it.broken.load(.monotonic));
        for (run.plan.successorsOf(node)) |edge| {
            const target = &run.nodes[edge.node];
            const followed = state == .succeeded and
                (chosen == null or std.mem.indexOfScalar(u32, chosen.?, edge.node) != null);
            if (broken) target.broken.store(true, .monotonic);
            if (state == .cancelled) target.cut.store(true, .monotonic);
            if (edge.deciding and followed) _ = target.deciding_live.fetchAdd(1, .monotonic);
            // Acquire-release: makes the notes above and the node's output visible to the last arrival (protocol 1).
            const before = target.pending.fetchSub(1, .acq_rel);
            assert(before > 0);
            if (before == 1) run.decide(edge.node, now, frontier, cascade);
        }
    }

    /// All predecessors of `node` have ended: it is ready, or ends here without having run.
    fn decide(run: *Run, node: u32, now: u64, frontier: *Frontier, cascade: *Frontier) void {
        const it = &run.nodes[node];
        const untaken = run.plan.deciding_count[node] != 0 and it.deciding_live.load(.monotonic) == 0;
        const fate: State = if (it.broken.load(.monotonic))
            .skipped
        else if (it.cut.load(.monotonic))
            .cancelled
        else if (untaken)
            .skipped
        else if (run.stopping())
            .cancelled
        else
            .ready;
        if (fate == .ready) {
            it.ready_ns = now;
            it.state.store(.ready, .release); // pairs with stateOf's acquire
            frontier.push(run, node);
        } else {
            it.ended_ns = now;
            it.state.store(fate, .release);
            cascade.push(run, node);
        }
    }

    pub fn counts(run: *const Run) [7]u32 {
        var result: [7]u32 = @splat(0);
        for (0..run.nodes.len) |node| result[@backingInt(run.stateOf(@intCast(node)))] += 1;
        return result;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const Fixture = struct {
    plan: *Plan,
    arena: std.heap.ArenaAllocator,
    run: Run,
    frontier: Frontier = .{},

    fn init(fixture: *Fixture, nodes: []const plan_file.Node, edges: []const [2]u32, keep_going: bool) !void {
        var cycle: plan_file.Cycle = .{};
        fixture.plan = try plan_file.testPlan(testing.allocator, nodes, edges, &cycle);
        fixture.arena = .init(testing.allocator);
        fixture.frontier = .{};
        try fixture.run.init(fixture.arena.allocator(), fixture.plan, keep_going, 1);
        fixture.run.begin(1, &fixture.frontier);
    }

    fn deinit(fixture: *Fixture) void {
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

    fn expectStates(fixture: *Fixture, expected: []const State) !void {
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
