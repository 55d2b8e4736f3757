//! The dispatcher carries out what runs decide, and brings the outcomes back. The only place where the half that knows
//! what to do (graph/) meets the half that can do it (pool, http, timers, queues).
//!
//! Whoever ends a node carries on: the thread that settles it also starts what became ready, be it the http engine's thread,
//! the timekeeper, a pool worker or a Python thread in gb_wait. `carry` is that loop. It works off a frontier without
//! recursion: templates are rendered right here for a moment, what is left then goes to the pool; requests go to the engine, delays to the timekeeper, callbacks to the lobby, in batches.
//!
//! ## Stopping
//!
//! A stop sets the run's flag; then one thread sweeps: ready callbacks are taken back from the lobby, calls and delays are
//! cancelled and settle by themselves, running callbacks are given up: whatever they bring later is dropped. A node that starts running while the sweep goes on looks at the flag after it has put itself where the
//! sweep would find it; so either the sweep finds it, or it cancels itself. Both may, and both ways are idempotent.

const std = @import("std");
const os = @import("base/os.zig");
const sync = @import("base/sync.zig");
const call_file = @import("call.zig");
const execution_file = @import("execution.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
const template = @import("graph/template.zig");
const timers_file = @import("timers.zig");

const assert = std.debug.assert;
const Call = call_file.Call;
const Context = execution_file.Context;
const Execution = execution_file.Execution;
const Frontier = run_file.Frontier;
const Operation = execution_file.Operation;
const Outcome = run_file.Outcome;
const Queue = queue_file.Queue;
const Value = template.Value;
const none = plan_file.none;

/// So long a thread that is not a pool worker renders templates itself before it hands what is left to the pool: twice what
/// waking a worker costs. A Python thread that waits for its run has nothing better to do, and two threads that share small
/// work are slower than one (0.34 us a node against 0.12 in a random graph of 5,000).
const inline_ns_max: u64 = 100 * std.time.ns_per_us;
const inline_ns_max_waiting: u64 = std.time.ns_per_ms;
/// Callbacks are offered to the lobby so many at a time.
const offer_max = 128;

const hooks: execution_file.Hooks = .{
    .on_task = onTask,
    .on_task_dropped = onTaskDropped,
    .on_delay_over = onDelayOver,
    .on_deadline = onDeadline,
};

pub const Dispatcher = struct {
    context: *Context,
    mutex: sync.Mutex = .init, // guards what follows
    closed: bool = false,
    first: ?*Execution = null,
    active: u32 = 0,
    started: u64 = 0,

    /// `out` is written before anything starts.
    pub fn start(
        d: *Dispatcher,
        plan: *plan_file.Plan,
        options: execution_file.Options,
        out: **Execution,
    ) error{ OutOfMemory, InvalidArgument, Shutdown, NoThread }!void {
        if (options.inputs.len != plan.input_count) return error.InvalidArgument;
        for (plan.nodes) |node| if (node.flags.loop and options.loop_queue == null) return error.InvalidArgument;
        const context = d.context;
        const x = try Execution.create(context, plan, options, hooks);
        x.dispatcher = d;
        try d.list(x);
        x.busy();
        if (options.timeout_ns != 0) {
            x.retain();
            x.has_deadline = true;
            context.timers.add(&x.deadline, x.run.started_ns +| options.timeout_ns) catch |err| {
                x.idle(1);
                x.release();
                d.unlist(x);
                x.release();
                x.release();
                return if (err == error.OutOfMemory) error.OutOfMemory else error.NoThread;
            };
        }
        defer x.idle(1); // the caller's handle keeps it alive until then
        if (options.caller_pulls) if (options.queue) |queue| context.lobby.setCaller(&x.source, queue);
        out.* = x; // before anything starts: whoever is handed a callback may look there
        var frontier: Frontier = .{};
        x.run.begin(x.run.started_ns, &frontier);
        d.carry(x, &frontier, if (options.caller_pulls) options.queue else null, null);
    }

    pub fn cancel(d: *Dispatcher, x: *Execution, cause: run_file.Cause) void {
        if (!x.run.stop(cause)) return;
        var frontier: Frontier = .{ .stopped = true };
        d.carry(x, &frontier, null, null);
    }

    /// Nothing starts any more; what runs is cancelled.
    pub fn close(d: *Dispatcher) void {
        d.mutex.lock();
        d.closed = true;
        d.mutex.unlock();
        while (true) {
            d.mutex.lock();
            var at = d.first;
            while (at) |x| : (at = x.next) if (!x.run.stopping() and !x.run.isOver()) break;
            if (at) |x| x.retain();
            d.mutex.unlock();
            const x = at orelse return;
            d.cancel(x, .shutdown);
            x.release();
        }
    }

    pub const Counts = struct { active: u32, started: u64 };

    pub fn counts(d: *Dispatcher) Counts {
        d.mutex.lock();
        defer d.mutex.unlock();
        return .{ .active = d.active, .started = d.started };
    }

    fn list(d: *Dispatcher, x: *Execution) error{Shutdown}!void {
        d.mutex.lock();
        defer d.mutex.unlock();
        if (d.closed) {
            x.release();
            x.release();
            return error.Shutdown;
        }
        x.next = d.first;
        if (d.first) |first| first.previous = x;
        d.first = x;
        d.active += 1;
        d.started += 1;
    }

    fn unlist(d: *Dispatcher, x: *Execution) void {
        d.mutex.lock();
        defer d.mutex.unlock();
        if (x.previous) |previous| previous.next = x.next else d.first = x.next;
        if (x.next) |next| next.previous = x.previous;
        d.active -= 1;
    }

    // ------------------------------------------------------------------------------------------ carrying on

    /// Starts everything in the frontier, and everything that follows from it. `by`: the queue whose thread will take
    /// callbacks when this returns. `worker`: the pool worker this runs on.
    pub fn carry(d: *Dispatcher, x: *Execution, frontier: *Frontier, by: ?*Queue, worker: ?*pool_file.Worker) void {
        const context = d.context;
        const run = &x.run;
        var offers: Offers = .{ .x = x, .by = by };
        var mine: Frontier = .{}; // templates to render right here
        var now = context.clock.now(); // read again where time passes: a read costs as much as settling a node
        const until = (if (x.is_virtual) os.monotonicNs() else now) + (if (by == null) inline_ns_max else inline_ns_max_waiting);
        while (true) {
            while (frontier.pop(run)) |node| switch (x.plan.kind(node)) {
                .callback => {
                    x.busy();
                    if (run.stopping()) d.refuse(x, node, now, frontier) else offers.add(node);
                },
                .template => {
                    x.busy();
                    if (worker == null or mine.head == none) {
                        mine.push(run, node);
                    } else {
                        x.retain();
                        worker.?.spawn(&x.operationOf(node).task);
                    }
                },
                .request => d.request(x, node, context.clock.now(), frontier),
                .delay => d.delay(x, node, context.clock.now(), frontier),
            };
            if (frontier.stopped) {
                frontier.stopped = false;
                offers.flush();
                d.sweep(x, frontier);
                continue;
            }
            if (worker == null and mine.head != none and (if (x.is_virtual) os.monotonicNs() else now) > until) d.handOver(x, &mine);
            const node = mine.pop(run) orelse break;
            now = d.render(x, node, now, frontier);
            x.idle(1);
        }
        offers.flush();
        if (offers.any and run.stopping()) {
            // A stop may have swept before these callbacks were offered. Taking them back twice does no harm.
            d.takeBack(x, frontier);
            if (!frontier.over) return d.carry(x, frontier, by, worker);
        }
        if (frontier.over) {
            frontier.over = false;
            d.end(x);
        }
    }

    /// The rest is the pool's, in one go: an outsider's submission takes a lock.
    fn handOver(d: *Dispatcher, x: *Execution, templates: *Frontier) void {
        var first: ?*pool_file.Task = null;
        var place = &first;
        while (templates.pop(&x.run)) |node| {
            x.retain();
            const task = &x.operationOf(node).task;
            task.next = null;
            place.* = task;
            place = &task.next;
        }
        d.context.pool.submitList(first.?);
    }

    const Offers = struct {
        x: *Execution,
        by: ?*Queue,
        any: bool = false,
        threads: Batch = .{},
        loop: Batch = .{},

        const Batch = struct { nodes: [offer_max]u32 = undefined, count: usize = 0 };

        fn add(offers: *Offers, node: u32) void {
            const batch = if (offers.x.plan.nodes[node].flags.loop) &offers.loop else &offers.threads;
            if (batch.count == offer_max) offers.flush();
            batch.nodes[batch.count] = node;
            batch.count += 1;
            offers.any = true;
        }

        fn flush(offers: *Offers) void {
            const lobby = offers.x.context.lobby;
            lobby.offer(&offers.x.source, offers.threads.nodes[0..offers.threads.count], offers.by);
            lobby.offer(&offers.x.loop_source, offers.loop.nodes[0..offers.loop.count], offers.by);
            offers.threads.count = 0;
            offers.loop.count = 0;
        }
    };

    /// A ready node of a run that is stopping: it never runs.
    fn refuse(d: *Dispatcher, x: *Execution, node: u32, now: u64, frontier: *Frontier) void {
        _ = d;
        if (x.run.settle(node, .ready, .cancelled, now, frontier)) x.idle(1);
    }

    /// Renders a template node that begins `now`; returns when it ended.
    fn render(d: *Dispatcher, x: *Execution, node: u32, now: u64, frontier: *Frontier) u64 {
        const context = d.context;
        const plan = x.plan;
        if (!x.run.enter(node, now)) {
            _ = x.run.settle(node, .running, .cancelled, now, frontier);
            return now;
        }
        var out: std.ArrayList(u8) = .empty;
        var diagnostics: template.Diagnostics = .{};
        const outcome: Outcome = if (template.render(
            plan.template_(plan.nodes[node].body),
            plan.text,
            x.values,
            context.gpa,
            &out,
            &diagnostics,
        )) blk: {
            // Mostly the room was reserved exactly.
            const text = if (out.items.len == out.capacity) out.items else out.toOwnedSlice(context.gpa) catch {
                out.deinit(context.gpa);
                x.noteOutOfMemory(node);
                break :blk .failed;
            };
            x.values[node] = .of(.text, text);
            break :blk .succeeded;
        } else |err| blk: {
            out.deinit(context.gpa);
            x.noteTemplateFailure(node, err, diagnostics);
            break :blk .failed;
        };
        const ended = context.clock.now();
        _ = x.run.settle(node, .running, outcome, ended, frontier);
        return ended;
    }

    fn request(d: *Dispatcher, x: *Execution, node: u32, now: u64, frontier: *Frontier) void {
        const context = d.context;
        const operation = x.operationOf(node);
        x.busy();
        if (!x.run.enter(node, now)) {
            if (x.run.settle(node, .running, .cancelled, now, frontier)) x.idle(1);
            return;
        }
        const call = Call.create(context.services, x.plan, x.plan.nodes[node].body, x.values, onCallOver) catch {
            x.noteOutOfMemory(node);
            if (x.run.settle(node, .running, .failed, now, frontier)) x.idle(1);
            return;
        };
        call.owner = operation;
        x.retain();
        operation.call.store(call, .seq_cst); // pairs with the sweep's load
        call.start(0);
        if (x.run.stopping()) call.cancel();
    }

    fn onCallOver(call: *Call) void {
        const operation: *Operation = @ptrCast(@alignCast(call.owner.?));
        const x = operation.execution;
        const node = operation.node;
        const it = &x.run.nodes[node];
        it.attempts = @max(it.attempts, call.attempts);
        var outcome: Outcome = .failed;
        if (call.failure == .none) {
            x.values[node] = call.value();
            outcome = .succeeded;
        } else if (call.failure == .cancelled or call.failure == .shutdown) outcome = .cancelled;
        finish(x, node, outcome, null);
    }

    fn delay(d: *Dispatcher, x: *Execution, node: u32, now: u64, frontier: *Frontier) void {
        const timers = d.context.timers;
        const operation = x.operationOf(node);
        if (!x.run.enter(node, now)) {
            _ = x.run.settle(node, .running, .cancelled, now, frontier);
            return;
        }
        x.retain();
        timers.add(&operation.timer, now +| x.plan.nodes[node].delay_ns) catch {
            _ = x.run.settle(node, .running, .failed, now, frontier);
            x.noteOutOfMemory(node);
            x.release();
            return;
        };
        if (x.run.stopping() and timers.cancel(&operation.timer)) {
            _ = x.run.settle(node, .running, .cancelled, now, frontier);
            x.release();
        }
    }

    // ---------------------------------------------------------------------------------------------- stopping

    fn takeBack(d: *Dispatcher, x: *Execution, frontier: *Frontier) void {
        const now = d.context.clock.now();
        var nodes: [offer_max]u32 = undefined;
        for ([_]*queue_file.Source{ &x.source, &x.loop_source }) |source| while (true) {
            const taken = d.context.lobby.drain(source, &nodes);
            for (taken) |node| d.refuse(x, node, now, frontier);
            if (taken.len < nodes.len) break;
        };
    }

    fn sweep(d: *Dispatcher, x: *Execution, frontier: *Frontier) void {
        const context = d.context;
        d.takeBack(x, frontier);
        const now = context.clock.now();
        for (x.run.nodes, 0..) |*it, index| {
            const node: u32 = @intCast(index);
            if (it.state.load(.seq_cst) != .running) continue; // pairs with Run.enter, see its protocol 2
            switch (x.plan.kind(node)) {
                .callback => if (x.run.settle(node, .running, .cancelled, now, frontier)) x.idle(1),
                .template => {}, // over in a moment
                .request => if (x.operationOf(node).call.load(.seq_cst)) |call| call.cancel(), // pairs with `request`
                .delay => if (context.timers.cancel(&x.operationOf(node).timer)) {
                    _ = x.run.settle(node, .running, .cancelled, now, frontier);
                    x.release(); // the timer's; the caller holds another
                },
            }
        }
        if (x.loop_queue) |queue| context.lobby.postOnce(queue, &x.stopping_letter);
    }

    fn end(d: *Dispatcher, x: *Execution) void {
        _ = d.context.nodes_settled.fetchAdd(x.run.nodes.len, .monotonic);
        if (x.has_deadline and d.context.timers.cancel(&x.deadline)) x.release();
        d.unlist(x);
        x.tell();
        x.release(); // the run's own
    }
};

// ---------------------------------------------------------------------- where operations end, on any thread

fn finish(x: *Execution, node: u32, outcome: Outcome, worker: ?*pool_file.Worker) void {
    const d: *Dispatcher = @ptrCast(@alignCast(x.dispatcher.?));
    var frontier: Frontier = .{};
    _ = x.run.settle(node, .running, outcome, d.context.clock.now(), &frontier);
    d.carry(x, &frontier, null, worker);
    if (x.plan.kind(node) != .delay) x.idle(1);
    x.release();
}

fn onTask(task: *pool_file.Task, worker: *pool_file.Worker) void {
    const operation: *Operation = @fieldParentPtr("task", task);
    const x = operation.execution;
    const d: *Dispatcher = @ptrCast(@alignCast(x.dispatcher.?));
    var frontier: Frontier = .{};
    _ = d.render(x, operation.node, d.context.clock.now(), &frontier);
    d.carry(x, &frontier, null, worker);
    x.idle(1);
    x.release();
}

/// The pool was shut down before the task's turn came.
fn onTaskDropped(task: *pool_file.Task) void {
    const operation: *Operation = @fieldParentPtr("task", task);
    const x = operation.execution;
    const d: *Dispatcher = @ptrCast(@alignCast(x.dispatcher.?));
    var frontier: Frontier = .{};
    _ = x.run.settle(operation.node, .ready, .cancelled, d.context.clock.now(), &frontier);
    d.carry(x, &frontier, null, null);
    x.idle(1);
    x.release();
}

fn onDelayOver(timer: *timers_file.Timer) void {
    const operation: *Operation = @fieldParentPtr("timer", timer);
    const x = operation.execution;
    const passes_on = x.plan.nodes[operation.node].body;
    // A late timer of a delay that was given up must not touch the value slot.
    if (passes_on != 0 and x.run.stateOf(operation.node) == .running) x.values[operation.node] = x.values[passes_on - 1];
    finish(x, operation.node, .succeeded, null);
}

fn onDeadline(timer: *timers_file.Timer) void {
    const x: *Execution = @fieldParentPtr("deadline", timer);
    const d: *Dispatcher = @ptrCast(@alignCast(x.dispatcher.?));
    d.cancel(x, .timeout);
    x.release();
}
