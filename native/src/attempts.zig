//! A callback's attempts: how one fails, the pause before the next, and how long one may take. Requests retry by themselves,
//! see call.zig.

const std = @import("std");
const children = @import("children.zig");
const execution_file = @import("execution.zig");
const plan_file = @import("graph/plan.zig");
const retry = @import("graph/retry.zig");
const work_file = @import("work.zig");

const Execution = execution_file.Execution;
const Work = work_file.Work;
const none = plan_file.none;

/// A running callback's attempt has failed: the next one is put on a timer, or the node has failed. False: it did not run
/// any more, or another attempt does.
pub fn fail(x: *Execution, node: u32, attempt: u32, may_retry: bool, ended_ns: u64, now: u64, work: *Work) bool {
    const policy = x.plan.nodes[node].retry;
    if (may_retry and policy != 0) {
        // Its failure was not its last word, and there will be no other.
        if (x.run.stopping()) return work.settleAt(x, node, .running, attempt, .cancelled, ended_ns, now);
        const left_ms: ?u64 = if (x.has_deadline) (x.deadline.deadline_ns -| now) / std.time.ns_per_ms else null;
        const failed: retry.Failed = .{ .attempt = x.run.attemptOf(node), .failure = .other, .retryable = true };
        if (retry.delayMs(x.plan.retries[policy - 1].policy(), failed, left_ms, x.context.services.roll())) |ms| {
            return pause(x, node, attempt, ms * std.time.ns_per_ms, ended_ns, now, work);
        }
    }
    return work.settleAt(x, node, .running, attempt, .failed, ended_ns, now);
}

fn pause(x: *Execution, node: u32, attempt: u32, pause_ns: u64, ended_ns: u64, now: u64, work: *Work) bool {
    const timers = x.context.timers;
    const operation = x.operationOf(node);
    const paused = x.run.pause(node, attempt, .backoff);
    if (paused == .gone) return false;
    stopTimeout(x, node);
    const waits = &x.waits[node];
    waits.earlier_ns += ended_ns -| waits.last_started_ns;
    waits.backoff_ns += pause_ns;
    work.giveBackPermits(x, node);
    if (paused == .stopping) {
        _ = work.settle(x, node, .waiting, .cancelled, now);
        return true;
    }
    _ = x.audience.tell(.{ .time_ns = now, .node = node, .attempt = x.run.attemptOf(node), .kind = .node_retried, .value = pause_ns });
    x.retain();
    timers.add(&operation.timer, now +| pause_ns) catch {
        x.notes.outOfMemory(node);
        _ = work.settle(x, node, .waiting, .failed, now);
        x.release();
        return true;
    };
    if (x.isUnwanted(node) and timers.cancel(&operation.timer)) {
        _ = work.settle(x, node, .waiting, .cancelled, now);
        x.release();
    }
    return true;
}

pub fn stopTimeout(x: *Execution, node: u32) void {
    if (x.plan.nodes[node].timeout_ns == 0) return;
    if (x.context.timers.cancel(&x.operationOf(node).timeout)) x.release();
}

pub fn timeOutNow(x: *Execution, node: u32) void {
    timeOut(x, node, x.context.clock.now());
}

/// The attempt that `node` is at has taken too long.
pub fn timeOut(x: *Execution, node: u32, now: u64) void {
    var work: Work = .{};
    while (true) {
        const word = x.run.nodes[node].read();
        switch (word.state) {
            .running => {
                x.notes.timedOut(node, word.attempt);
                x.timed_ends.lock();
                const won = fail(x, node, word.attempt, !x.plan.nodes[node].flags.timeout_is_final, now, now, &work);
                x.timed_ends.unlock();
                if (!won) continue;
                callOff(x, node);
                break;
            },
            // A composite whose runs take too long: it runs again, for this moment.
            .waiting => {
                if (word.waits_for != .runs) return;
                if (x.run.wakeUp(node)) x.busy();
            },
            // It goes on, and lies where only a claim may take it from: its next pause ends it.
            .ready => {
                if (word.waits_for != .runs) return;
                x.operationOf(node).overdue.store(true, .seq_cst); // before the look: waitForRuns looks at both the other way round
                if (x.run.nodes[node].look().state == .ready) return;
            },
            else => return,
        }
    }
    work.carry(x, null);
    x.idle(1);
}

/// Nobody waits any more for what the callback of `node` is doing.
pub fn callOff(x: *Execution, node: u32) void {
    const lobby = x.context.lobby;
    const it = &x.plan.nodes[node];
    if (it.flags.composite) children.cancel(x, node);
    if (it.flags.loop) {
        if (x.plan.place[node] != none) lobby.postOnce(x.loop_queue.?, &x.operationOf(node).over_letter);
    } else if (plan_file.Plan.isAlone(it)) lobby.abandon(&x.alone_source, node);
}
