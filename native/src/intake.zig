//! What a Python thread brings back: results of callbacks, as they come in with gb_wait and gb_settle. They are checked as a
//! whole, then settled one by one in the order in which they ended; what follows from them is the dispatcher's to carry out.

const std = @import("std");
const dispatcher_file = @import("dispatcher.zig");
const execution_file = @import("execution.zig");
const lobby_file = @import("lobby.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
const template = @import("graph/template.zig");

const assert = std.debug.assert;
const Dispatcher = dispatcher_file.Dispatcher;
const Execution = execution_file.Execution;
const Frontier = run_file.Frontier;
const Outcome = run_file.Outcome;
const Queue = queue_file.Queue;
const Value = template.Value;
const none = plan_file.none;

/// C: gb_settled
pub const Settled = extern struct {
    state: u32,
    chosen_count: u32,
    chosen: ?[*]const u32,
    value: Value,
};

/// C: gb_finished
pub const Finished = extern struct {
    run: ?*Execution,
    count: u32,
    settled_count: u32,
    skew_ns: i64,
    nodes: [queue_file.batch_max]u32,
    began_ns: [queue_file.batch_max]u64,
    ended_ns: [queue_file.batch_max]u64,
    settled: [queue_file.batch_max]Settled,

    pub fn done(finished: *const Finished) lobby_file.Done {
        var busy_ns: u64 = 0;
        for (finished.began_ns[0..finished.count], finished.ended_ns[0..finished.count]) |began, ended| busy_ns +|= ended -| began;
        return .{ .count = finished.count, .busy_ns = busy_ns };
    }

    /// In `nodes`: the next of `settled` tells.
    const extra_bit: u32 = 1 << 31;
};

/// When a callback ran.
const Span = struct {
    started_ns: u64,
    ended_ns: u64,

    /// The binding's clock as the core's. A clock that is ahead must not put an end into the future.
    fn own(binding_ns: u64, skew_ns: i64, now: u64) u64 {
        const ns = @as(i64, @intCast(binding_ns)) +% skew_ns;
        return @min(now, @as(u64, @intCast(@max(0, ns))));
    }
};

/// Takes in what a Python thread brings. Unknown nodes are refused before anything is changed.
pub fn takeIn(d: *Dispatcher, finished: *const Finished, by: *Queue) error{InvalidArgument}!void {
    const x = finished.run orelse return if (finished.count == 0) {} else error.InvalidArgument;
    if (finished.count > finished.nodes.len or finished.settled_count > finished.settled.len) return error.InvalidArgument;
    var extras: u32 = 0;
    for (finished.nodes[0..finished.count]) |entry| {
        const node = entry & ~Finished.extra_bit;
        if (node >= x.plan.nodes.len or x.plan.kind(node) != .callback) return error.InvalidArgument;
        extras += @intFromBool(entry & Finished.extra_bit != 0);
    }
    if (extras != finished.settled_count) return error.InvalidArgument;
    for (finished.settled[0..extras]) |*it| {
        _ = std.enums.fromInt(template.ValueKind, @as(u32, @backingInt(it.value.kind))) orelse return error.InvalidArgument;
        if (it.state > @backingInt(run_file.State.cancelled)) return error.InvalidArgument;
        switch (stateOf(it)) {
            .ready, .succeeded, .failed, .cancelled => {},
            .blocked, .running, .skipped => return error.InvalidArgument,
        }
    }

    const now = d.context.clock.now();
    var frontier: Frontier = .{};
    var ended: u32 = 0;
    var next_extra: usize = 0;
    for (finished.nodes[0..finished.count], 0..) |entry, i| {
        const span: Span = if (x.is_virtual) .{ .started_ns = now, .ended_ns = now } else .{
            .started_ns = Span.own(finished.began_ns[i], finished.skew_ns, now),
            .ended_ns = Span.own(finished.ended_ns[i], finished.skew_ns, now),
        };
        var extra: ?*const Settled = null;
        if (entry & Finished.extra_bit != 0) {
            extra = &finished.settled[next_extra];
            next_extra += 1;
        }
        ended += @intFromBool(takeInOne(d, x, entry & ~Finished.extra_bit, extra, span, now, &frontier));
    }
    x.plan.callback_ns.store(x.source.average_ns, .monotonic); // a hint: a stale value does no harm
    d.carry(x, &frontier, by, null);
    x.idle(ended);
}

/// True: this call ended the node, or took it back.
fn takeInOne(d: *Dispatcher, x: *Execution, node: u32, extra: ?*const Settled, span: Span, now: u64, frontier: *Frontier) bool {
    var outcome: Outcome = .succeeded;
    if (extra) |it| switch (stateOf(it)) {
        .ready => {
            if (!x.run.stopping()) return x.run.giveBack(node, frontier);
            // It was handed out and never began, whoever cancelled it.
            x.run.nodes[node].attempts -|= 1;
            outcome = .cancelled;
        },
        .succeeded => {
            if (x.plan.nodes[node].flags.condition) {
                outcome = .{ .chose = if (it.chosen) |chosen| chosen[0..it.chosen_count] else &.{} };
            }
            if (it.value.kind != .none) keep(d, x, node, it.value) catch {
                outcome = .failed; // the binding still has the value; the run tells the failure
            };
        },
        .cancelled => outcome = .cancelled,
        .failed => outcome = .failed,
        .blocked, .running, .skipped => unreachable, // refused by takeIn
    };
    // A late result must not touch the times of a node that was given up.
    if (x.run.stateOf(node) == .running) x.run.nodes[node].started_ns = span.started_ns;
    const after = x.plan.continuation[node];
    if (after == none) return x.run.settleAt(node, .running, outcome, span.ended_ns, now, frontier);

    // The rest of a segment stays with the thread that runs it: its next node is entered here, not offered.
    var segment: Frontier = .{};
    const won = x.run.settleAt(node, .running, outcome, span.ended_ns, now, &segment);
    while (segment.pop(&x.run)) |next| {
        assert(next == after);
        x.run.nodes[next].ready_ns = span.ended_ns; // the thread went on with it there and then
        x.busy();
        if (x.run.enter(next, now)) continue;
        if (x.run.settle(next, .running, .cancelled, now, frontier)) x.idle(1);
    }
    frontier.stopped = frontier.stopped or segment.stopped;
    frontier.over = frontier.over or segment.over;
    return won;
}

fn keep(d: *Dispatcher, x: *Execution, node: u32, value: Value) error{OutOfMemory}!void {
    // A late result of a node that was given up must not touch the value slot.
    if (x.run.stateOf(node) != .running or x.values[node].kind != .none) return;
    x.values[node] = .of(value.kind, try d.context.gpa.dupe(u8, value.bytes()));
}

fn stateOf(settled: *const Settled) run_file.State {
    return @fromBackingInt(@as(u8, @intCast(settled.state)));
}
