//! What the core carries out itself: templates and native functions, requests, delays. How each begins, on the thread that
//! carries on, and where it ends, on any thread: a worker's, the http engine's, the timekeeper's. Whoever ends a node carries on.
//!
//! An operation holds a reference to its run from before it starts until whoever ended it is done with what follows. A task
//! mostly needs none: its run is not over before it has ended.

const std = @import("std");
const alone = @import("graph/alone.zig");
const attempts = @import("attempts.zig");
const cache_file = @import("cache.zig");
const call_file = @import("call/call.zig");
const clock_file = @import("base/clock.zig");
const execution_file = @import("execution.zig");
const native_file = @import("native.zig");
const pool_file = @import("pool/pool.zig");
const run_file = @import("graph/run.zig");
const stopping = @import("stopping.zig");
const template = @import("graph/template.zig");
const timers_file = @import("timers.zig");
const work_file = @import("work.zig");

const Call = call_file.Call;
const Execution = execution_file.Execution;
const Operation = execution_file.Operation;
const Outcome = run_file.Outcome;
const Stopwatch = clock_file.Stopwatch;
const Work = work_file.Work;

pub const hooks: execution_file.Hooks = .{
    .on_task = onTask,
    .on_task_dropped = onTaskDropped,
    .on_timer = onTimer,
    .on_timeout = onTimeout,
    .on_deadline = onDeadline,
};

// ------------------------------------------------------------------------------------------------- native nodes

/// Renders or calls a node that begins `now`; returns when it ended.
pub fn runTask(x: *Execution, node: u32, now: u64, watch: *Stopwatch, work: *Work) u64 {
    const is_alone = x.plan.tasks_are_alone;
    switch (if (is_alone) alone.start(&x.run, node, now) else x.run.start(node, now)) {
        .running, .resumed => {},
        .gone => return now, // nobody needs it any more
        .stopping => {
            _ = work.settle(x, node, .running, .cancelled, now);
            return now;
        },
    }
    x.began(node, now);
    const outcome: Outcome = if (x.plan.kind(node) == .native) callNative(x, node) else render(x, node);
    const ended = watch.now(x.context.clock);
    if (is_alone and outcome == .succeeded) {
        alone.succeed(&x.run, node, ended, &work.frontier);
    } else _ = work.settle(x, node, .running, outcome, ended);
    return ended;
}

fn callNative(x: *Execution, node: u32) Outcome {
    const native = &x.plan.natives[x.plan.nodes[node].body];
    var diagnostics: native_file.Diagnostics = .{};
    const values = x.outputs.seenBy(node) catch {
        x.notes.outOfMemory(node);
        return .failed;
    };
    defer x.outputs.done(values);
    const value = native_file.call(x.context.gpa, native, values, &diagnostics) catch |err| {
        switch (err) {
            error.OutOfMemory => x.notes.outOfMemory(node),
            error.NotANumber => x.notes.nativeFailed(node, "argument {d} is not a number", diagnostics.argument),
            error.Failed => x.notes.nativeFailed(node, "the function returned {d}", diagnostics.code),
            error.NeverEnough => x.notes.nativeFailed(node, "the function wanted more room again: {d} bytes were not enough", diagnostics.code),
        }
        return .failed;
    };
    if (value.kind != .none) x.outputs.set(node, value);
    return .succeeded;
}

fn render(x: *Execution, node: u32) Outcome {
    const gpa = x.context.gpa;
    const plan = x.plan;
    var out: std.ArrayList(u8) = .empty;
    var diagnostics: template.Diagnostics = .{};
    const values = x.outputs.seenBy(node) catch {
        x.notes.outOfMemory(node);
        return .failed;
    };
    defer x.outputs.done(values);
    template.render(plan.template_(plan.nodes[node].body), plan.text, values, gpa, &out, &diagnostics) catch |err| {
        out.deinit(gpa);
        x.notes.templateFailed(node, err, diagnostics);
        return .failed;
    };
    // Mostly the room was reserved exactly.
    const text = if (out.items.len == out.capacity) out.items else out.toOwnedSlice(gpa) catch {
        out.deinit(gpa);
        x.notes.outOfMemory(node);
        return .failed;
    };
    x.outputs.set(node, .of(.text, text));
    return .succeeded;
}

/// The task's node has not ended: so the execution is there, until `carry` has counted it.
fn onTask(task: *pool_file.Task, worker: *pool_file.Worker) void {
    const it: *execution_file.TaskNode = @fieldParentPtr("task", task);
    const x = it.execution;
    const holds = x.tasksHold();
    @setRuntimeSafety(false); // the room for grants is not filled with a pattern first
    var work: Work = undefined;
    work.begin();
    work.now = runTask(x, it.node, worker.watch.now(x.context.clock), &worker.watch, &work);
    work.carry(x, worker);
    if (holds) leave(x);
}

/// The pool was shut down before the task's turn came.
fn onTaskDropped(task: *pool_file.Task) void {
    const it: *execution_file.TaskNode = @fieldParentPtr("task", task);
    const x = it.execution;
    const holds = x.tasksHold();
    var work: Work = .{};
    _ = work.settle(x, it.node, .ready, .cancelled, x.context.clock.now());
    work.carry(x, null);
    if (holds) leave(x);
}

fn leave(x: *Execution) void {
    x.idle(1);
    x.release();
}

// ----------------------------------------------------------------------------------------------------- requests

pub fn request(x: *Execution, node: u32, now: u64, work: *Work) void {
    const operation = x.operationOf(node);
    x.busy();
    switch (x.run.start(node, now)) {
        .running, .resumed => {},
        .gone => return x.idle(1),
        .stopping => {
            _ = work.settle(x, node, .running, .cancelled, now);
            return x.idle(1);
        },
    }
    x.began(node, now);
    const call = makeCall(x, node) catch {
        x.notes.outOfMemory(node);
        _ = work.settle(x, node, .running, .failed, now);
        return x.idle(1);
    };
    if (fromCache(x, node, call)) |known| {
        call.release();
        operation.call.store(known, .seq_cst);
        x.outputs.set(node, known.value());
        _ = work.settle(x, node, .running, .succeeded, x.context.clock.now());
        return x.idle(1);
    }
    call.owner = operation;
    call.group = @intFromPtr(x.source.head()); // a run with all that its nodes start
    if (x.limits != null) {
        call.on_pause = onCallPaused;
        call.on_resume = onCallResumed;
    }
    if (x.audience.log != null) call.on_retry = onCallRetried;
    x.retain();
    operation.call.store(call, .seq_cst); // pairs with the sweep's load
    call.start(0);
    if (x.isUnwanted(node)) call.cancel();
}

fn makeCall(x: *Execution, node: u32) error{OutOfMemory}!*Call {
    const values = try x.outputs.seenBy(node);
    defer x.outputs.done(values);
    return Call.create(x.context.services, x.plan, x.plan.nodes[node].body, values, onCallOver);
}

fn cacheOf(x: *Execution, node: u32) ?*cache_file.Cache {
    return @ptrCast(@alignCast(x.plan.requests[x.plan.nodes[node].body].cache orelse return null));
}

/// A finished call that sent the same, retained.
fn fromCache(x: *Execution, node: u32, call: *Call) ?*Call {
    const cache = cacheOf(x, node) orelse return null;
    return cache.findFor(call, x.context.clock.now());
}

fn operationOf(call: *Call) *Operation {
    return @ptrCast(@alignCast(call.owner.?));
}

fn onCallOver(call: *Call) void {
    const operation = operationOf(call);
    const x = operation.execution;
    const node = operation.node;
    var work: Work = .{};
    var outcome: Outcome = .failed;
    if (call.failure == .none) {
        x.outputs.set(node, call.value());
        outcome = .succeeded;
        if (cacheOf(x, node)) |cache| cache.putFor(call, x.context.clock.now());
    } else if (call.failure == .cancelled or call.failure == .shutdown) outcome = .cancelled;
    _ = work.settle(x, node, .running, outcome, x.context.clock.now());
    work.carry(x, null);
    x.idle(1);
    x.release();
}

fn onCallRetried(call: *Call) void {
    const operation = operationOf(call);
    const x = operation.execution;
    _ = x.audience.tell(.{
        .time_ns = x.context.clock.now(),
        .node = operation.node,
        .attempt = call.attempts,
        .kind = .node_retried,
        .value = call.pause_ms * std.time.ns_per_ms,
    });
}

/// Its permits are for others while it waits for its next attempt.
fn onCallPaused(call: *Call) void {
    const operation = operationOf(call);
    const x = operation.execution;
    const waits = &x.waits[operation.node];
    waits.earlier_ns += x.context.clock.now() -| waits.last_started_ns;
    waits.backoff_ns += call.pause_ms * std.time.ns_per_ms;
    var work: Work = .{};
    work.giveBackPermits(x, operation.node);
    work.carry(x, null);
}

fn onCallResumed(call: *Call) bool {
    const operation = operationOf(call);
    const x = operation.execution;
    const node = operation.node;
    if (!work_file.admit(x, node)) {
        if (x.run.stopping() or x.run.stateOf(node) != .running) {
            var work: Work = .{};
            stopping.takeBack(x, &work);
            work.carry(x, null);
        }
        return false;
    }
    x.waits[node].last_started_ns = x.context.clock.now();
    return true;
}

// ------------------------------------------------------------------------------------------------------- timers

pub fn delay(x: *Execution, node: u32, now: u64, work: *Work) void {
    const timers = x.context.timers;
    const operation = x.operationOf(node);
    switch (x.run.start(node, now)) {
        .running, .resumed => {},
        .gone => return,
        .stopping => {
            _ = work.settle(x, node, .running, .cancelled, now);
            return;
        },
    }
    x.began(node, now);
    x.retain();
    timers.add(&operation.timer, now +| x.plan.nodes[node].delay_ns) catch {
        x.notes.outOfMemory(node);
        _ = work.settle(x, node, .running, .failed, now);
        x.release();
        return;
    };
    if (x.isUnwanted(node) and timers.cancel(&operation.timer)) {
        _ = work.settle(x, node, .running, .cancelled, now);
        x.release();
    }
}

/// A delay is over, or a callback's pause before its next attempt.
fn onTimer(timer: *timers_file.Timer) void {
    const operation: *Operation = @fieldParentPtr("timer", timer);
    const x = operation.execution;
    const node = operation.node;
    var work: Work = .{};
    if (x.plan.kind(node) == .delay) {
        const passes_on = x.plan.nodes[node].body;
        // A late timer of a delay that was given up must not touch the value slot.
        if (passes_on != 0 and x.run.stateOf(node) == .running) x.outputs.set(node, x.outputs.values[passes_on - 1]);
        _ = work.settle(x, node, .running, .succeeded, x.context.clock.now());
    } else _ = x.run.unpause(node, .backoff, &work.frontier);
    work.carry(x, null);
    x.release();
}

/// A callback's attempt has taken too long.
fn onTimeout(timer: *timers_file.Timer) void {
    const operation: *Operation = @fieldParentPtr("timeout", timer);
    const x = operation.execution;
    const now = x.context.clock.now();
    // Fired late, while the next attempt runs already: that one has a timer of its own.
    if (now >= operation.timeout_ns.load(.acquire)) attempts.timeOut(x, operation.node, now); // pairs with the store in Execution.enter
    x.release();
}

fn onDeadline(timer: *timers_file.Timer) void {
    const x: *Execution = @fieldParentPtr("deadline", timer);
    work_file.cancel(x, .timeout);
    x.release();
}
