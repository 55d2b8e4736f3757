//! What a Python thread brings back: results of callbacks, as they come in with gb_wait and gb_settle. They are checked as a
//! whole, then settled one by one in the order in which they ended; what follows from them is the dispatcher's to carry out.

const std = @import("std");
const attempts = @import("attempts.zig");
const children = @import("children.zig");
const dispatcher_file = @import("dispatcher.zig");
const execution_file = @import("execution.zig");
const lobby_file = @import("lobby.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
const template = @import("graph/template.zig");
const work_file = @import("work.zig");

const assert = std.debug.assert;
const Dispatcher = dispatcher_file.Dispatcher;
const Execution = execution_file.Execution;
const Frontier = run_file.Frontier;
const Outcome = run_file.Outcome;
const Queue = queue_file.Queue;
const Value = template.Value;
const Work = work_file.Work;
const none = plan_file.none;

/// C: gb_settled
pub const Settled = extern struct {
    state: u32,
    chosen_count: u32,
    chosen: ?[*]const u32,
    value: Value,
    retry: u32,
    attempt: u32,
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
    // The binding may give its handle back as soon as the run is over, and what follows may make it so.
    x.retain();
    defer x.release();
    if (finished.count > finished.nodes.len or finished.settled_count > finished.settled.len) return error.InvalidArgument;
    var extras: u32 = 0;
    for (finished.nodes[0..finished.count]) |entry| {
        const node = entry & ~Finished.extra_bit;
        if (x.items.total > 0) {
            if (node >= x.items.total) return error.InvalidArgument;
        } else if (node >= x.plan.nodes.len or x.plan.kind(node) != .callback) return error.InvalidArgument;
        extras += @intFromBool(entry & Finished.extra_bit != 0);
    }
    if (extras != finished.settled_count) return error.InvalidArgument;
    var next_extra: usize = 0;
    for (finished.nodes[0..finished.count]) |entry| if (entry & Finished.extra_bit != 0) {
        const it = &finished.settled[next_extra];
        next_extra += 1;
        _ = std.enums.fromInt(template.ValueKind, @as(u32, @backingInt(it.value.kind))) orelse return error.InvalidArgument;
        if (it.state > @backingInt(run_file.State.waiting)) return error.InvalidArgument;
        switch (stateOf(it)) {
            .ready, .succeeded, .failed, .cancelled => {},
            .waiting => {
                if (x.items.total > 0 or !x.plan.nodes[entry & ~Finished.extra_bit].flags.composite) return error.InvalidArgument;
            },
            .blocked, .running, .skipped => return error.InvalidArgument,
        }
    };
    if (x.items.total > 0) return takeInItems(d, x, finished, by);

    const now = d.context.clock.now();
    var work: Work = .{};
    var ended: u32 = 0;
    next_extra = 0;
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
        ended += @intFromBool(takeInOne(x, entry & ~Finished.extra_bit, extra, span, now, &work));
    }
    x.plan.callback_ns.store(x.source.average_ns, .monotonic); // a hint: a stale value does no harm
    d.carry(x, &work, by, null);
    x.idle(ended);
}

/// A failed item is told apart; what became of the others is the binding's to know.
fn takeInItems(d: *Dispatcher, x: *Execution, finished: *const Finished, by: *Queue) void {
    var failed: u32 = 0;
    var first_failed: u32 = none;
    var next_extra: usize = 0;
    for (finished.nodes[0..finished.count]) |entry| {
        if (entry & Finished.extra_bit == 0) continue;
        const state = stateOf(&finished.settled[next_extra]);
        next_extra += 1;
        if (state == .succeeded) continue;
        // One that was not started, or given up: its run is stopping, and has ended or is about to.
        failed += 1;
        if (first_failed == none and state == .failed) first_failed = entry & ~Finished.extra_bit;
    }
    d.itemsOver(x, finished.count - failed, failed, first_failed, by);
}

/// True: this call ended the node, put it aside or took it back.
fn takeInOne(x: *Execution, node: u32, extra: ?*const Settled, span: Span, now: u64, work: *Work) bool {
    var outcome: Outcome = .succeeded;
    var attempt: u32 = 0;
    var holds = false;
    defer if (holds) x.timed_ends.unlock();
    if (extra) |it| {
        attempt = it.attempt;
        switch (stateOf(it)) {
            .ready => {
                if (attempt != 0 and attempt != x.run.attemptOf(node)) return false;
                if (!x.run.stopping()) {
                    attempts.stopTimeout(x, node);
                    return x.run.giveBack(node, &work.frontier);
                }
                // It was handed out and never began, whoever cancelled it.
                attempt = 0;
                x.run.forgetAttempt(node);
                outcome = .cancelled;
            },
            .succeeded => {
                if (x.plan.nodes[node].flags.condition) {
                    outcome = .{ .chose = if (it.chosen) |chosen| chosen[0..it.chosen_count] else &.{} };
                }
                if (it.value.kind != .none) {
                    holds = x.plan.nodes[node].timeout_ns != 0;
                    if (holds) x.timed_ends.lock();
                    keep(x, node, attempt, it.value) catch {
                        x.notes.outOfMemory(node);
                        outcome = .failed;
                    };
                }
            },
            .cancelled => outcome = .cancelled,
            .failed => {
                startedAt(x, node, attempt, span.started_ns);
                const won = attempts.fail(x, node, attempt, it.retry != 0, span.ended_ns, now, work);
                if (won) attempts.stopTimeout(x, node);
                return won;
            },
            .waiting => return children.waitForRuns(x, node, attempt, now, work, attempts.timeOutNow),
            .blocked, .running, .skipped => unreachable, // refused by takeIn
        }
    }
    startedAt(x, node, attempt, span.started_ns);
    const after = x.plan.continuation[node];
    if (after == none) {
        const won = work.settleAt(x, node, .running, attempt, outcome, span.ended_ns, now);
        if (won) attempts.stopTimeout(x, node);
        return won;
    }

    // The rest of a segment stays with the thread that runs it: its next node is entered here, not offered.
    var segment: Frontier = .{};
    const won = x.run.settleAt(node, .running, 0, outcome, span.ended_ns, now, &segment);
    while (segment.pop(&x.run)) |next| {
        assert(next == after);
        x.run.nodes[next].ready_ns = span.ended_ns; // the thread went on with it there and then
        x.busy();
        switch (x.enter(next, now)) {
            .running, .resumed => x.tellStart(next, now),
            .stopping => if (x.run.settle(next, .running, .cancelled, now, &work.frontier)) x.idle(1),
            .gone => x.idle(1),
        }
    }
    work.frontier.stopped = work.frontier.stopped or segment.stopped;
    work.frontier.over = work.frontier.over or segment.over;
    return won;
}

/// The binding knows better when a callback began than the moment of its being handed out. A late result must not touch
/// the times of a node that was given up, nor one of a later attempt the first one's.
fn startedAt(x: *Execution, node: u32, attempt: u32, started_ns: u64) void {
    const word = x.run.nodes[node].read();
    if (word.state != .running or (attempt != 0 and attempt != word.attempt)) return;
    if (x.plan.nodes[node].flags.composite) return; // it was handed out more than once
    if (word.attempt == 1) x.run.nodes[node].started_ns = started_ns;
    if (x.waits.len > 0) x.waits[node].last_started_ns = started_ns;
}

fn keep(x: *Execution, node: u32, attempt: u32, value: Value) error{OutOfMemory}!void {
    // A late result of a node that was given up must not touch the value slot. Where that may happen without the run's being
    // stopped nobody gives it up meanwhile, see Execution.timed_ends.
    const word = x.run.nodes[node].read();
    if (word.state != .running or (attempt != 0 and attempt != word.attempt)) return;
    if (value.kind == .number) return x.outputs.set(node, .number(value.asNumber()));
    x.outputs.set(node, .of(value.kind, try x.context.gpa.dupe(u8, value.bytes())));
}

fn stateOf(settled: *const Settled) run_file.State {
    return @fromBackingInt(@as(u8, @intCast(settled.state)));
}
