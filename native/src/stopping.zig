//! How nodes end before their time: with their run when that is stopped, or by themselves when nobody needs them any more.
//!
//! A stop sets the run's flag; then one thread sweeps: what is ready is taken back from the lobby and the line, calls and delays
//! are cancelled and settle by themselves, running callbacks are given up: whatever they bring later is dropped; runs that nodes
//! started are stopped. A node that starts running or waiting while the sweep goes on looks at the flag after it has put itself
//! where the sweep would find it; so either the sweep finds it, or it cancels itself. Both may, and both ways are idempotent.
//!
//! What a join of kind "any" does not need any more goes the same way, node by node (`giveUp`).

const std = @import("std");
const attempts = @import("attempts.zig");
const children = @import("children.zig");
const execution_file = @import("execution.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
const work_file = @import("work.zig");

const Execution = execution_file.Execution;
const Source = queue_file.Source;
const Work = work_file.Work;
const none = plan_file.none;

/// So many nodes are taken back at a time.
const drain_max = 128;

/// A ready node of a run that is stopping: it never runs.
pub fn refuse(x: *Execution, node: u32, now: u64, work: *Work) void {
    _ = work.settle(x, node, .ready, .cancelled, now);
    x.idle(1);
}

pub fn takeBack(x: *Execution, work: *Work) void {
    const now = x.context.clock.now();
    var nodes: [drain_max]u32 = undefined;
    for ([_]*Source{ &x.source, &x.loop_source, &x.alone_source, &x.alone_loop_source }) |source| while (true) {
        const taken = x.context.lobby.drain(source, &nodes);
        for (taken) |node| refuse(x, node, now, work);
        if (taken.len < nodes.len) break;
    };
    const limits = x.limits orelse return;
    while (true) {
        const taken = limits.drain(&x.line, &nodes, &work.granted);
        for (taken) |node| switch (x.run.stateOf(node)) {
            .ready => _ = work.settle(x, node, .ready, .cancelled, now),
            .running => if (x.operationOf(node).call.load(.acquire)) |call| call.cancel(),
            else => {},
        };
        if (taken.len < nodes.len) break;
    }
}

pub fn sweep(x: *Execution, work: *Work) void {
    sweepNodes(x, work);
    if (x.loop_queue) |queue| x.context.lobby.postOnce(queue, &x.stopping_letter);
    children.cancel(x, null);
}

/// Ends what is ready, running or waiting. Twice does no harm.
pub fn sweepNodes(x: *Execution, work: *Work) void {
    takeBack(x, work);
    for (0..x.run.nodes.len) |index| {
        const node: u32 = @intCast(index);
        const state = x.run.nodes[node].look().state; // after the stop flag, see Run's protocol 2
        if (state == .running or state == .waiting) giveUp(x, node, state, work);
    }
}

/// Ends a node that runs or waits before its time. What cannot be stopped ends by itself.
fn giveUp(x: *Execution, node: u32, state: run_file.State, work: *Work) void {
    const timers = x.context.timers;
    const now = x.context.clock.now();
    switch (x.plan.kind(node)) {
        .template, .native => {}, // over in a moment
        .request => if (x.operationOf(node).call.load(.seq_cst)) |call| call.cancel(), // pairs with the store in operations.zig
        .delay => if (timers.cancel(&x.operationOf(node).timer)) {
            _ = work.settle(x, node, .running, .cancelled, now);
            x.release(); // the timer's; the caller holds another
        },
        .callback => if (state == .running) {
            if (!work.settle(x, node, .running, .cancelled, now)) return;
            attempts.stopTimeout(x, node);
            attempts.callOff(x, node);
            x.idle(1);
        } else {
            switch (x.run.nodes[node].read().waits_for) {
                .nothing => {}, // it moved meanwhile
                .stand_in => {}, // that one ends it
                .backoff => if (timers.cancel(&x.operationOf(node).timer)) {
                    _ = work.settle(x, node, .waiting, .cancelled, now);
                    x.release();
                },
                .runs => if (work.settle(x, node, .waiting, .cancelled, now)) {
                    attempts.stopTimeout(x, node);
                    children.cancel(x, node);
                },
            }
        },
    }
}

// ------------------------------------------------------------------------------------------------- what "any" goes without

/// A join of kind "any" is ready: what leads only to it, and to nothing else that still wants it, is not needed any more.
pub fn dropTheRest(x: *Execution, join: u32, work: *Work) void {
    const run = &x.run;
    const gpa = x.context.gpa;
    if (run.attemptOf(join) != 0) return; // it has been here
    var unneeded: std.ArrayList(u32) = .empty;
    defer unneeded.deinit(gpa);
    unneeded.append(gpa, join) catch return; // they run for nothing, and that is all
    while (unneeded.pop()) |target| for (x.plan.predecessorsOf(target)) |node| {
        const state = run.stateOf(node);
        if (state.final() or run.nodes[node].unneeded.load(.monotonic)) continue;
        const wanted = for (x.plan.successorsOf(node)) |edge| {
            if (edge.node != join and isWanting(x, edge.node)) break true;
        } else false;
        if (wanted) continue;
        drop(x, node, run.dropBlocked(node), work);
        unneeded.append(gpa, node) catch return;
    };
}

/// Whether `node` still waits for those that lead to it.
fn isWanting(x: *const Execution, node: u32) bool {
    if (x.run.nodes[node].unneeded.load(.monotonic)) return false;
    return x.plan.joinOf(node) != .any or x.run.stateOf(node) == .blocked;
}

fn drop(x: *Execution, node: u32, state: run_file.State, work: *Work) void {
    switch (state) {
        .blocked, .succeeded, .failed, .skipped, .cancelled => {},
        // Where it lies it is found to be gone.
        .ready => if (!work.settle(x, node, .ready, .cancelled, x.context.clock.now())) drop(x, node, x.run.stateOf(node), work), // it began
        .running, .waiting => {
            const stand_in = x.plan.nodes[node].stand_in;
            const stands_in = state == .waiting and stand_in != 0 and !x.run.stateOf(stand_in - 1).final() and x.run.stateOf(stand_in - 1) != .blocked;
            if (stands_in) drop(x, stand_in - 1, x.run.stateOf(stand_in - 1), work) else giveUp(x, node, state, work);
        },
    }
}

// -------------------------------------------------------------------------------------------------------- when a run is over

/// Nodes that a join of kind "any" did without, and that still lie where they were offered when the run is over.
pub fn clearAway(x: *Execution) void {
    var nodes: [drain_max]u32 = undefined;
    for ([_]*Source{ &x.source, &x.loop_source, &x.alone_source, &x.alone_loop_source }) |source| while (true) {
        const taken = x.context.lobby.drain(source, &nodes);
        x.idle(@intCast(taken.len));
        if (taken.len < nodes.len) break;
    };
}

/// Nodes that ended while they stood in line for permits.
pub fn leaveLine(x: *Execution) void {
    const limits = x.limits orelse return;
    var work: Work = .{};
    var nodes: [drain_max]u32 = undefined;
    while (limits.drain(&x.line, &nodes, &work.granted).len == nodes.len) {}
    work.carry(x, null);
}
