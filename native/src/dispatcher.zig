//! The dispatcher carries out what runs decide, and brings the outcomes back. The only place where the half that knows
//! what to do (graph/) meets the half that can do it (pool, http, timers, queues, limits).
//!
//! Whoever ends a node carries on: the thread that settles it also starts what became ready, be it the http engine's thread,
//! the timekeeper, a pool worker or a Python thread in gb_wait. `carry` is that loop. It works off a frontier without
//! recursion: templates and native functions run right here for a moment, what is left then goes to the pool; requests go to
//! the engine, delays to the timekeeper, callbacks to the lobby, in batches. Permits that an ended node gave back may start
//! nodes of other runs: these are worked off behind the first run's, in the same loop.
//!
//! ## Permits
//!
//! A node takes its permits when it is popped from a frontier, or waits in its run's line for them. `admitted` says who has some;
//! whoever ends the node, or puts it aside (a pause before the next attempt), exchanges that and gives them back.
//!
//! ## Stopping
//!
//! A stop sets the run's flag; then one thread sweeps: what is ready is taken back from the lobby and the line, calls and delays
//! are cancelled and settle by themselves, running callbacks are given up: whatever they bring later is dropped; runs that nodes
//! started are stopped. A node that starts running or waiting while the sweep goes on looks at the flag after it has put itself
//! where the sweep would find it; so either the sweep finds it, or it cancels itself. Both may, and both ways are idempotent.
//!
//! What a join of kind "any" does not need any more goes the same way, node by node (`giveUp`).

const std = @import("std");
const os = @import("base/os.zig");
const sync = @import("base/sync.zig");
const call_file = @import("call.zig");
const cache_file = @import("cache.zig");
const execution_file = @import("execution.zig");
const limits_file = @import("limits.zig");
const native_file = @import("native.zig");
const pace_file = @import("graph/pace.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const queue_file = @import("queue.zig");
const retry = @import("graph/retry.zig");
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
    .on_timer = onTimer,
    .on_timeout = onTimeout,
    .on_deadline = onDeadline,
};

/// One run's nodes to start, and what permits given back on the way have started elsewhere.
pub const Work = struct {
    frontier: Frontier = .{},
    granted: limits_file.Granted = .{},
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
        if (options.loop_queue == null and (plan.has_loop or plan.has_alone_loop)) return error.InvalidArgument;
        if (options.item_count > 0 and plan.nodes.len > 0) return error.InvalidArgument;
        if (options.parent) |parent| {
            if (options.parent_node >= parent.plan.nodes.len or !parent.plan.nodes[options.parent_node].flags.composite) return error.InvalidArgument;
        }
        if (options.limits) |limits| for (plan.nodes) |*node| {
            if (!limits.knows(node.limits)) return error.InvalidArgument;
        };
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
        if (options.parent) |parent| parent.adopt(x);
        const by: ?*Queue = if (options.caller_pulls) options.queue else null;
        var work: Work = .{};
        if (options.item_count > 0) {
            x.busy(); // until it is over
            context.lobby.offerItems(x.itemSource(), by);
        } else {
            x.run.begin(x.run.started_ns, &work.frontier);
            d.carry(x, &work, by, null);
        }
        // Whoever stops the parent looks for its children after that: one of the two sees the other.
        if (options.parent) |parent| if (parent.run.stopping() or parent.run.stateOf(options.parent_node).final()) d.cancel(x, .cancel);
    }

    pub fn cancel(d: *Dispatcher, x: *Execution, cause: run_file.Cause) void {
        if (!x.run.stop(cause)) return;
        if (x.items.total > 0) return d.endItems(x, null);
        var work: Work = .{ .frontier = .{ .stopped = true } };
        d.carry(x, &work, null, null);
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
    pub fn carry(d: *Dispatcher, x: *Execution, work: *Work, by: ?*Queue, worker: ?*pool_file.Worker) void {
        d.carryOne(x, work, by, worker);
        if (x.limits == null) return;
        while (work.granted.next()) |pair| {
            const y: *Execution = @fieldParentPtr("line", pair.line); // held since the grant, see Execution.holdGranted
            d.carryGranted(y, pair.node, work, by, worker);
            y.release();
        }
    }

    /// A node that waited has its permits now.
    fn carryGranted(d: *Dispatcher, y: *Execution, node: u32, work: *Work, by: ?*Queue, worker: ?*pool_file.Worker) void {
        // Sequentially consistent, as is who ends the node meanwhile: it moves the state and then exchanges. One of the two
        // sees the other, and gives the permits back.
        y.admitted[node].store(true, .seq_cst);
        if (y.waits.len > 0) y.waits[node].limit_ns += d.context.clock.now() -| y.waits[node].last_started_ns;
        switch (y.run.stateOf(node)) {
            .ready => {
                work.frontier.push(&y.run, node);
                d.carryOne(y, work, by, worker);
            },
            // A request that was put aside for its backoff.
            .running => if (y.operationOf(node).call.load(.acquire)) |call| call.proceed(),
            .blocked, .waiting, .succeeded, .failed, .skipped, .cancelled => d.giveBackPermits(y, node, work), // it ended while it waited
        }
    }

    /// True: the node has the permits it needs. False: it waits in line for them.
    fn admit(d: *Dispatcher, x: *Execution, node: u32) bool {
        const mask = x.plan.nodes[node].limits;
        if (mask == 0 or x.admitted[node].load(.acquire)) return true;
        // When it began to wait, until it is known when it starts: whoever grants the permits reads it.
        x.waits[node].last_started_ns = d.context.clock.now();
        if (!x.limits.?.tryEnter(&x.line, node, mask, x.rankOf(node))) return false;
        x.admitted[node].store(true, .seq_cst);
        return true;
    }

    fn giveBackPermits(d: *Dispatcher, x: *Execution, node: u32, work: *Work) void {
        _ = d;
        const limits = x.limits orelse return;
        if (x.admitted[node].swap(false, .seq_cst)) limits.leave(x.plan.nodes[node].limits, &work.granted); // see carryGranted
    }

    fn carryOne(d: *Dispatcher, x: *Execution, work: *Work, by: ?*Queue, worker: ?*pool_file.Worker) void {
        const context = d.context;
        const run = &x.run;
        const frontier = &work.frontier;
        var offers: Offers = .{ .x = x, .by = by };
        var mine: Frontier = .{}; // tasks to run right here
        var lined_up = false;
        var now = context.clock.now(); // read again where time passes: a read costs as much as settling a node
        const until = (if (x.is_virtual) sync.now() else now) + (if (by == null) inline_ns_max else inline_ns_max_waiting);
        while (true) {
            while (frontier.pop(run)) |node| {
                if (x.plan.joinOf(node) == .any) d.dropTheRest(x, node, work);
                if (x.limits != null and !d.admit(x, node)) {
                    lined_up = true;
                    continue;
                }
                switch (x.plan.kind(node)) {
                    .callback => {
                        x.busy();
                        if (run.stopping()) d.refuse(x, node, now, work) else offers.add(node);
                    },
                    .template, .native => {
                        x.busy();
                        if (worker == null or mine.head == none) {
                            mine.push(run, node);
                        } else {
                            x.retain();
                            worker.?.spawn(&x.taskOf(node).task);
                        }
                    },
                    .request => d.request(x, node, context.clock.now(), work),
                    .delay => d.delay(x, node, context.clock.now(), work),
                }
            }
            if (frontier.stopped) {
                frontier.stopped = false;
                offers.flush();
                d.sweep(x, work);
                continue;
            }
            if (worker == null and mine.head != none and (if (x.is_virtual) sync.now() else now) > until) d.handOver(x, &mine);
            const node = mine.pop(run) orelse break;
            now = d.runTask(x, node, now, work);
            x.idle(1);
        }
        offers.flush();
        if ((offers.any or lined_up) and run.stopping()) {
            // A stop may have swept before these were where it looks. Taking them back twice does no harm.
            d.takeBack(x, work);
            if (frontier.head != none or frontier.stopped) return d.carryOne(x, work, by, worker);
        }
        if (frontier.over) {
            frontier.over = false;
            d.end(x, by);
        } else if (offers.any and x.plan.predecessor_first.len > 0 and run.isOver()) d.clearAway(x);
    }

    /// Nodes that a join of kind "any" did without, and that still lie where they were offered when the run is over.
    fn clearAway(d: *Dispatcher, x: *Execution) void {
        var nodes: [offer_max]u32 = undefined;
        for ([_]*queue_file.Source{ &x.source, &x.loop_source, &x.alone_source, &x.alone_loop_source }) |source| while (true) {
            const taken = d.context.lobby.drain(source, &nodes);
            x.idle(@intCast(taken.len));
            if (taken.len < nodes.len) break;
        };
    }

    /// The rest is the pool's, in one go: an outsider's submission takes a lock.
    fn handOver(d: *Dispatcher, x: *Execution, tasks: *Frontier) void {
        var first: ?*pool_file.Task = null;
        var place = &first;
        while (tasks.pop(&x.run)) |node| {
            x.retain();
            const task = &x.taskOf(node).task;
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
        plain: Batch = .{},
        loop: Batch = .{},

        const Batch = struct { nodes: [offer_max]u32 = undefined, count: usize = 0 };

        fn add(offers: *Offers, node: u32) void {
            const x = offers.x;
            offers.any = true;
            if (plan_file.Plan.isAlone(&x.plan.nodes[node])) {
                return x.context.lobby.offer(x.sourceOf(node), &.{node}, offers.by);
            }
            const batch = if (x.plan.nodes[node].flags.loop) &offers.loop else &offers.plain;
            if (batch.count == offer_max) offers.flush();
            batch.nodes[batch.count] = node;
            batch.count += 1;
        }

        fn flush(offers: *Offers) void {
            const lobby = offers.x.context.lobby;
            lobby.offer(&offers.x.source, offers.plain.nodes[0..offers.plain.count], offers.by);
            lobby.offer(&offers.x.loop_source, offers.loop.nodes[0..offers.loop.count], offers.by);
            offers.plain.count = 0;
            offers.loop.count = 0;
        }
    };

    // ---------------------------------------------------------------------------------------- settling, with permits

    /// As Run.settleAt; who ends a node gives its permits back.
    pub fn settleAt(
        d: *Dispatcher,
        x: *Execution,
        node: u32,
        from: run_file.State,
        attempt: u32,
        outcome: Outcome,
        ended_ns: u64,
        now: u64,
        work: *Work,
    ) bool {
        if (!x.run.settleAt(node, from, attempt, outcome, ended_ns, now, &work.frontier)) return false;
        if (x.limits != null) d.giveBackPermits(x, node, work);
        return true;
    }

    pub fn settle(d: *Dispatcher, x: *Execution, node: u32, from: run_file.State, outcome: Outcome, now: u64, work: *Work) bool {
        return d.settleAt(x, node, from, 0, outcome, now, now, work);
    }

    /// A running callback's attempt has failed: the next one is put on a timer, or the node has failed. False: it did not run
    /// any more, or another attempt does.
    pub fn fail(d: *Dispatcher, x: *Execution, node: u32, attempt: u32, may_retry: bool, ended_ns: u64, now: u64, work: *Work) bool {
        const policy = x.plan.nodes[node].retry;
        if (may_retry and policy != 0) {
            // Its failure was not its last word, and there will be no other.
            if (x.run.stopping()) return d.settleAt(x, node, .running, attempt, .cancelled, ended_ns, now, work);
            const left_ms: ?u64 = if (x.has_deadline) (x.deadline.deadline_ns -| now) / std.time.ns_per_ms else null;
            const failed: retry.Failed = .{ .attempt = x.run.attemptOf(node), .failure = .other, .retryable = true };
            if (retry.delayMs(x.plan.retries[policy - 1].policy(), failed, left_ms, d.context.services.roll())) |ms| {
                return d.tryAgain(x, node, attempt, ms * std.time.ns_per_ms, ended_ns, now, work);
            }
        }
        return d.settleAt(x, node, .running, attempt, .failed, ended_ns, now, work);
    }

    fn tryAgain(d: *Dispatcher, x: *Execution, node: u32, attempt: u32, pause_ns: u64, ended_ns: u64, now: u64, work: *Work) bool {
        const operation = x.operationOf(node);
        operation.waits_for.store(.backoff, .seq_cst);
        const paused = x.run.pause(node, attempt);
        if (paused == .gone) return false;
        d.stopTimeout(x, node);
        const waits = &x.waits[node];
        waits.earlier_ns += ended_ns -| waits.last_started_ns;
        waits.backoff_ns += pause_ns;
        d.giveBackPermits(x, node, work);
        if (paused == .stopping) {
            _ = d.settle(x, node, .waiting, .cancelled, now, work);
            return true;
        }
        _ = x.tellEvent(.{ .time_ns = now, .node = node, .attempt = x.run.attemptOf(node), .kind = .node_retried, .value = pause_ns });
        x.retain();
        d.context.timers.add(&operation.timer, now +| pause_ns) catch {
            x.noteOutOfMemory(node);
            _ = d.settle(x, node, .waiting, .failed, now, work);
            x.release();
            return true;
        };
        if (x.run.stopping() and d.context.timers.cancel(&operation.timer)) {
            _ = d.settle(x, node, .waiting, .cancelled, now, work);
            x.release();
        }
        return true;
    }

    /// A callback waits for the runs it started. False: it did not run any more.
    pub fn waitForRuns(d: *Dispatcher, x: *Execution, node: u32, attempt: u32, now: u64, work: *Work) bool {
        const operation = x.operationOf(node);
        operation.waits_for.store(.runs, .seq_cst); // before the pause: who ends a run looks at both the other way round
        switch (x.run.pause(node, attempt)) {
            .gone => return false,
            .stopping => {
                _ = d.settle(x, node, .waiting, .cancelled, now, work);
                d.cancelChildren(x, node);
            },
            .waiting => if (operation.news.load(.seq_cst)) d.wakeComposite(x, node, work),
        }
        return true;
    }

    fn wakeComposite(d: *Dispatcher, x: *Execution, node: u32, work: *Work) void {
        _ = d;
        const operation = x.operationOf(node);
        operation.goes_on.store(true, .release); // pairs with the swap in Execution.enter
        _ = x.run.unpause(node, &work.frontier);
    }

    /// A run that `node` started is over.
    fn childOver(d: *Dispatcher, x: *Execution, node: u32) void {
        const operation = x.operationOf(node);
        operation.news.store(true, .seq_cst); // before the look: who pauses looks at both the other way round
        if (x.run.stateOf(node) != .waiting or operation.waits_for.load(.seq_cst) != .runs) return;
        var work: Work = .{};
        d.wakeComposite(x, node, &work);
        d.carry(x, &work, null, null);
    }

    fn cancelChildren(d: *Dispatcher, x: *Execution, node: ?u32) void {
        while (x.liveChild(node)) |child| {
            d.cancel(child, .cancel);
            child.release();
        }
    }

    pub fn stopTimeout(d: *Dispatcher, x: *Execution, node: u32) void {
        if (x.plan.nodes[node].timeout_ns == 0) return;
        if (d.context.timers.cancel(&x.operationOf(node).timeout)) x.release();
    }

    fn timeOut(d: *Dispatcher, x: *Execution, node: u32, now: u64) void {
        var work: Work = .{};
        while (true) switch (x.run.stateOf(node)) {
            .running => {
                const attempt = x.run.attemptOf(node);
                x.noteTimeout(node);
                if (!d.fail(x, node, attempt, true, now, now, &work)) continue;
                d.callOff(x, node);
                break;
            },
            // A composite whose runs take too long: it runs again, for this moment.
            .waiting => {
                if (x.operationOf(node).waits_for.load(.seq_cst) != .runs) return;
                if (x.run.wakeUp(node)) x.busy();
            },
            // Handed back by its runs and not taken up again yet.
            .ready => {
                if (!x.operationOf(node).goes_on.load(.acquire)) return;
                if (x.run.wakeUp(node)) x.busy();
            },
            else => return,
        };
        d.carry(x, &work, null, null);
        x.idle(1);
    }

    /// A ready node of a run that is stopping: it never runs.
    fn refuse(d: *Dispatcher, x: *Execution, node: u32, now: u64, work: *Work) void {
        _ = d.settle(x, node, .ready, .cancelled, now, work);
        x.idle(1);
    }

    // ------------------------------------------------------------------------------------------------- native nodes

    /// Renders or calls a node that begins `now`; returns when it ended.
    fn runTask(d: *Dispatcher, x: *Execution, node: u32, now: u64, work: *Work) u64 {
        switch (x.run.start(node, now)) {
            .running => {},
            .gone => return now, // nobody needs it any more
            .stopping => {
                _ = d.settle(x, node, .running, .cancelled, now, work);
                return now;
            },
        }
        if (x.waits.len > 0) x.waits[node].last_started_ns = now;
        if (x.events != null) x.tellStart(node, now, false);
        const outcome: Outcome = if (x.plan.kind(node) == .native) d.callNative(x, node) else d.render(x, node);
        const ended = d.context.clock.now();
        _ = d.settle(x, node, .running, outcome, ended, work);
        return ended;
    }

    fn callNative(d: *Dispatcher, x: *Execution, node: u32) Outcome {
        const native = &x.plan.natives[x.plan.nodes[node].body];
        var diagnostics: native_file.Diagnostics = .{};
        const values = x.valuesFor(node) catch {
            x.noteOutOfMemory(node);
            return .failed;
        };
        defer x.freeValues(values);
        const value = native_file.call(d.context.gpa, native, values, &diagnostics) catch |err| {
            switch (err) {
                error.OutOfMemory => x.noteOutOfMemory(node),
                error.NotANumber => x.noteNativeFailure(node, "argument {d} is not a number", diagnostics.argument),
                error.Failed => x.noteNativeFailure(node, "the function returned {d}", diagnostics.code),
            }
            return .failed;
        };
        if (value.kind != .none) x.setValue(node, value);
        return .succeeded;
    }

    fn render(d: *Dispatcher, x: *Execution, node: u32) Outcome {
        const gpa = d.context.gpa;
        const plan = x.plan;
        var out: std.ArrayList(u8) = .empty;
        var diagnostics: template.Diagnostics = .{};
        const values = x.valuesFor(node) catch {
            x.noteOutOfMemory(node);
            return .failed;
        };
        defer x.freeValues(values);
        template.render(plan.template_(plan.nodes[node].body), plan.text, values, gpa, &out, &diagnostics) catch |err| {
            out.deinit(gpa);
            x.noteTemplateFailure(node, err, diagnostics);
            return .failed;
        };
        // Mostly the room was reserved exactly.
        const text = if (out.items.len == out.capacity) out.items else out.toOwnedSlice(gpa) catch {
            out.deinit(gpa);
            x.noteOutOfMemory(node);
            return .failed;
        };
        x.setValue(node, .of(.text, text));
        return .succeeded;
    }

    fn request(d: *Dispatcher, x: *Execution, node: u32, now: u64, work: *Work) void {
        const context = d.context;
        const operation = x.operationOf(node);
        x.busy();
        switch (x.run.start(node, now)) {
            .running => {},
            .gone => return x.idle(1),
            .stopping => {
                _ = d.settle(x, node, .running, .cancelled, now, work);
                return x.idle(1);
            },
        }
        if (x.waits.len > 0) x.waits[node].last_started_ns = now;
        if (x.events != null) x.tellStart(node, now, false);
        const call = d.makeCall(x, node) catch {
            x.noteOutOfMemory(node);
            _ = d.settle(x, node, .running, .failed, now, work);
            return x.idle(1);
        };
        if (d.fromCache(x, node, call)) |known| {
            call.release();
            operation.call.store(known, .seq_cst);
            x.setValue(node, known.value());
            _ = d.settle(x, node, .running, .succeeded, context.clock.now(), work);
            return x.idle(1);
        }
        call.owner = operation;
        if (x.limits != null) {
            call.on_pause = onCallPaused;
            call.on_resume = onCallResumed;
        }
        if (x.events != null) call.on_retry = onCallRetried;
        x.retain();
        operation.call.store(call, .seq_cst); // pairs with the sweep's load
        call.start(0);
        if (x.run.stopping()) call.cancel();
    }

    fn makeCall(d: *Dispatcher, x: *Execution, node: u32) error{OutOfMemory}!*Call {
        const values = try x.valuesFor(node);
        defer x.freeValues(values);
        return Call.create(d.context.services, x.plan, x.plan.nodes[node].body, values, onCallOver);
    }

    /// A finished call that sent the same, retained.
    fn fromCache(d: *Dispatcher, x: *Execution, node: u32, call: *Call) ?*Call {
        const cache: *cache_file.Cache = @ptrCast(@alignCast(x.plan.requests[x.plan.nodes[node].body].cache orelse return null));
        return cache.findFor(call, d.context.clock.now());
    }

    fn delay(d: *Dispatcher, x: *Execution, node: u32, now: u64, work: *Work) void {
        const timers = d.context.timers;
        const operation = x.operationOf(node);
        switch (x.run.start(node, now)) {
            .running => {},
            .gone => return,
            .stopping => {
                _ = d.settle(x, node, .running, .cancelled, now, work);
                return;
            },
        }
        if (x.waits.len > 0) x.waits[node].last_started_ns = now;
        if (x.events != null) x.tellStart(node, now, false);
        x.retain();
        timers.add(&operation.timer, now +| x.plan.nodes[node].delay_ns) catch {
            x.noteOutOfMemory(node);
            _ = d.settle(x, node, .running, .failed, now, work);
            x.release();
            return;
        };
        if (x.run.stopping() and timers.cancel(&operation.timer)) {
            _ = d.settle(x, node, .running, .cancelled, now, work);
            x.release();
        }
    }

    // ---------------------------------------------------------------------------------------------- stopping

    fn takeBack(d: *Dispatcher, x: *Execution, work: *Work) void {
        const now = d.context.clock.now();
        var nodes: [offer_max]u32 = undefined;
        for ([_]*queue_file.Source{ &x.source, &x.loop_source, &x.alone_source, &x.alone_loop_source }) |source| while (true) {
            const taken = d.context.lobby.drain(source, &nodes);
            for (taken) |node| d.refuse(x, node, now, work);
            if (taken.len < nodes.len) break;
        };
        const limits = x.limits orelse return;
        while (true) {
            const taken = limits.drain(&x.line, &nodes, &work.granted);
            for (taken) |node| switch (x.run.stateOf(node)) {
                .ready => _ = d.settle(x, node, .ready, .cancelled, now, work),
                .running => if (x.operationOf(node).call.load(.acquire)) |call| call.cancel(),
                else => {},
            };
            if (taken.len < nodes.len) break;
        }
    }

    fn sweep(d: *Dispatcher, x: *Execution, work: *Work) void {
        d.takeBack(x, work);
        for (0..x.run.nodes.len) |index| {
            const node: u32 = @intCast(index);
            const word: run_file.Word = @bitCast(x.run.nodes[node].word.load(.seq_cst)); // pairs with Run's moves, see its protocol 2
            if (word.state == .running or word.state == .waiting) d.giveUp(x, node, word.state, work);
        }
        if (x.loop_queue) |queue| d.context.lobby.postOnce(queue, &x.stopping_letter);
        d.cancelChildren(x, null);
    }

    /// Ends a node that runs or waits before its time. What cannot be stopped ends by itself.
    fn giveUp(d: *Dispatcher, x: *Execution, node: u32, state: run_file.State, work: *Work) void {
        const context = d.context;
        const now = context.clock.now();
        switch (x.plan.kind(node)) {
            .template, .native => {}, // over in a moment
            .request => if (x.operationOf(node).call.load(.seq_cst)) |call| call.cancel(), // pairs with `request`
            .delay => if (context.timers.cancel(&x.operationOf(node).timer)) {
                _ = d.settle(x, node, .running, .cancelled, now, work);
                x.release(); // the timer's; the caller holds another
            },
            .callback => if (state == .running) {
                if (!d.settle(x, node, .running, .cancelled, now, work)) return;
                d.stopTimeout(x, node);
                d.callOff(x, node);
                x.idle(1);
            } else {
                if (x.plan.place[node] == none) return; // it waits for its stand-in
                const operation = x.operationOf(node);
                switch (operation.waits_for.load(.seq_cst)) {
                    .nothing => return, // likewise
                    .backoff => if (context.timers.cancel(&operation.timer)) {
                        _ = d.settle(x, node, .waiting, .cancelled, now, work);
                        x.release();
                    },
                    .runs => if (d.settle(x, node, .waiting, .cancelled, now, work)) {
                        d.stopTimeout(x, node);
                        d.cancelChildren(x, node);
                    },
                }
            },
        }
    }

    /// Nobody waits any more for what the callback of `node` is doing.
    fn callOff(d: *Dispatcher, x: *Execution, node: u32) void {
        const it = &x.plan.nodes[node];
        if (it.flags.composite) d.cancelChildren(x, node);
        if (it.flags.loop) {
            if (x.plan.place[node] != none) d.context.lobby.postOnce(x.loop_queue.?, &x.operationOf(node).over_letter);
        } else if (plan_file.Plan.isAlone(it)) d.context.lobby.abandon(&x.alone_source, node);
    }

    /// A join of kind "any" is ready: what leads only to it, and to nothing else that still wants it, is not needed any more.
    fn dropTheRest(d: *Dispatcher, x: *Execution, join: u32, work: *Work) void {
        const run = &x.run;
        if (run.attemptOf(join) != 0) return; // it has been here
        var unneeded: std.ArrayList(u32) = .empty;
        defer unneeded.deinit(d.context.gpa);
        unneeded.append(d.context.gpa, join) catch return; // they run for nothing, and that is all
        while (unneeded.pop()) |target| for (x.plan.predecessorsOf(target)) |node| {
            const state = run.stateOf(node);
            if (state.final() or run.nodes[node].unneeded.load(.monotonic)) continue;
            const wanted = for (x.plan.successorsOf(node)) |edge| {
                if (edge.node != join and !run.nodes[edge.node].unneeded.load(.monotonic)) break true;
            } else false;
            if (wanted) continue;
            d.drop(x, node, run.dropBlocked(node), work);
            unneeded.append(d.context.gpa, node) catch return;
        };
    }

    fn drop(d: *Dispatcher, x: *Execution, node: u32, state: run_file.State, work: *Work) void {
        switch (state) {
            .blocked, .succeeded, .failed, .skipped, .cancelled => {},
            // Where it lies it is found to be gone.
            .ready => _ = d.settle(x, node, .ready, .cancelled, d.context.clock.now(), work),
            .running, .waiting => {
                const stand_in = x.plan.nodes[node].stand_in;
                const stands_in = state == .waiting and stand_in != 0 and !x.run.stateOf(stand_in - 1).final() and x.run.stateOf(stand_in - 1) != .blocked;
                if (stands_in) d.drop(x, stand_in - 1, x.run.stateOf(stand_in - 1), work) else d.giveUp(x, node, state, work);
            },
        }
    }

    // ------------------------------------------------------------------------------------------- runs of items

    /// Takes in what became of `ended` items. Late ones, of a run that is over, change nothing.
    pub fn itemsOver(d: *Dispatcher, x: *Execution, succeeded: u32, failed: u32, first_failed: u32, by: *Queue) void {
        const items = &x.items;
        items.mutex.lock();
        if (items.closed) return items.mutex.unlock();
        items.succeeded += succeeded;
        items.failed += failed;
        const left = x.run.remaining.raw - succeeded - failed;
        if (left > 0) x.run.remaining.store(left, .monotonic);
        items.mutex.unlock();
        if (failed > 0) {
            _ = x.run.first_failed.cmpxchgStrong(none, first_failed, .monotonic, .monotonic);
            if (x.run.keep_going) {
                _ = x.run.cause.cmpxchgStrong(.none, .failure, .monotonic, .monotonic);
            } else if (x.run.stop(.failure)) return d.endItems(x, by);
        }
        if (left == 0) return d.endItems(x, by);
        d.context.lobby.itemsOver(x.itemSource(), succeeded + failed, by);
    }

    /// Nothing more is handed out, and what is out is given up.
    fn endItems(d: *Dispatcher, x: *Execution, by: ?*Queue) void {
        x.items.mutex.lock();
        const closed = x.items.closed;
        x.items.closed = true;
        x.items.mutex.unlock();
        if (closed) return;
        _ = d.context.lobby.drainItems(x.itemSource());
        if (x.run.stopping()) if (x.loop_queue) |queue| d.context.lobby.postOnce(queue, &x.stopping_letter);
        x.run.ended_ns = d.context.clock.now();
        x.run.remaining.store(0, .release); // pairs with isOver
        d.end(x, by);
        x.idle(1);
    }

    fn end(d: *Dispatcher, x: *Execution, by: ?*Queue) void {
        _ = d.context.nodes_settled.fetchAdd(x.run.nodes.len + x.items.succeeded + x.items.failed, .monotonic);
        if (x.has_deadline and d.context.timers.cancel(&x.deadline)) x.release();
        d.learn(x);
        if (x.plan.predecessor_first.len > 0) d.clearAway(x);
        if (x.limits != null) d.leaveLine(x);
        d.unlist(x);
        _ = x.tellEvent(.{ .time_ns = x.run.ended_ns, .kind = .run_over, .node = none });
        x.tell(by);
        if (x.parent) |parent| {
            parent.disown(x);
            d.childOver(parent, x.parent_node);
        }
        x.release(); // the run's own
    }

    /// Nodes that ended while they stood in line for permits.
    fn leaveLine(d: *Dispatcher, x: *Execution) void {
        var work: Work = .{};
        var nodes: [offer_max]u32 = undefined;
        while (x.limits.?.drain(&x.line, &nodes, &work.granted).len == nodes.len) {}
        d.carry(x, &work, null, null);
    }

    /// How long the nodes took orders the next run's.
    fn learn(d: *Dispatcher, x: *Execution) void {
        const took = x.run.ended_ns -| x.run.started_ns;
        if (x.run.nodes.len < 2 or took < x.run.nodes.len * pace_file.worth_learning_ns) return;
        x.plan.pace.learn(d.context.gpa, x, durationOf);
    }

    fn durationOf(x: *Execution, node: u32) ?u64 {
        if (x.run.stateOf(node) != .succeeded) return null;
        const it = &x.run.nodes[node];
        const began = if (x.waits.len > 0 and x.waits[node].last_started_ns != 0) x.waits[node].last_started_ns else it.started_ns;
        return it.ended_ns -| began;
    }
};

// ---------------------------------------------------------------------- where operations end, on any thread

fn dispatcherOf(x: *Execution) *Dispatcher {
    return @ptrCast(@alignCast(x.dispatcher.?));
}

fn onCallOver(call: *Call) void {
    const operation: *Operation = @ptrCast(@alignCast(call.owner.?));
    const x = operation.execution;
    const d = dispatcherOf(x);
    const node = operation.node;
    var work: Work = .{};
    var outcome: Outcome = .failed;
    if (call.failure == .none) {
        x.setValue(node, call.value());
        outcome = .succeeded;
        if (x.plan.requests[x.plan.nodes[node].body].cache) |cache| {
            @as(*cache_file.Cache, @ptrCast(@alignCast(cache))).putFor(call, d.context.clock.now());
        }
    } else if (call.failure == .cancelled or call.failure == .shutdown) outcome = .cancelled;
    _ = d.settle(x, node, .running, outcome, d.context.clock.now(), &work);
    d.carry(x, &work, null, null);
    x.idle(1);
    x.release();
}

fn onCallRetried(call: *Call) void {
    const operation: *Operation = @ptrCast(@alignCast(call.owner.?));
    const x = operation.execution;
    _ = x.tellEvent(.{
        .time_ns = x.context.clock.now(),
        .node = operation.node,
        .attempt = call.attempts,
        .kind = .node_retried,
        .value = call.pause_ms * std.time.ns_per_ms,
    });
}

/// Its permits are for others while it waits for its next attempt.
fn onCallPaused(call: *Call) void {
    const operation: *Operation = @ptrCast(@alignCast(call.owner.?));
    const x = operation.execution;
    const d = dispatcherOf(x);
    const waits = &x.waits[operation.node];
    const now = d.context.clock.now();
    waits.earlier_ns += now -| waits.last_started_ns;
    waits.backoff_ns += call.pause_ms * std.time.ns_per_ms;
    var work: Work = .{};
    d.giveBackPermits(x, operation.node, &work);
    d.carry(x, &work, null, null);
}

fn onCallResumed(call: *Call) bool {
    const operation: *Operation = @ptrCast(@alignCast(call.owner.?));
    const x = operation.execution;
    const d = dispatcherOf(x);
    if (!d.admit(x, operation.node)) {
        if (x.run.stopping() or x.run.stateOf(operation.node) != .running) {
            var work: Work = .{};
            d.takeBack(x, &work);
            d.carry(x, &work, null, null);
        }
        return false;
    }
    x.waits[operation.node].last_started_ns = d.context.clock.now();
    return true;
}

fn onTask(task: *pool_file.Task, worker: *pool_file.Worker) void {
    const it: *execution_file.TaskNode = @fieldParentPtr("task", task);
    const x = it.execution;
    const d = dispatcherOf(x);
    var work: Work = .{};
    _ = d.runTask(x, it.node, d.context.clock.now(), &work);
    d.carry(x, &work, null, worker);
    x.idle(1);
    x.release();
}

/// The pool was shut down before the task's turn came.
fn onTaskDropped(task: *pool_file.Task) void {
    const it: *execution_file.TaskNode = @fieldParentPtr("task", task);
    const x = it.execution;
    const d = dispatcherOf(x);
    var work: Work = .{};
    _ = d.settle(x, it.node, .ready, .cancelled, d.context.clock.now(), &work);
    d.carry(x, &work, null, null);
    x.idle(1);
    x.release();
}

/// A delay is over, or a callback's pause before its next attempt.
fn onTimer(timer: *timers_file.Timer) void {
    const operation: *Operation = @fieldParentPtr("timer", timer);
    const x = operation.execution;
    const d = dispatcherOf(x);
    const node = operation.node;
    var work: Work = .{};
    if (x.plan.kind(node) == .delay) {
        const passes_on = x.plan.nodes[node].body;
        // A late timer of a delay that was given up must not touch the value slot.
        if (passes_on != 0 and x.run.stateOf(node) == .running) x.setValue(node, x.values[passes_on - 1]);
        _ = d.settle(x, node, .running, .succeeded, d.context.clock.now(), &work);
    } else _ = x.run.unpause(node, &work.frontier);
    d.carry(x, &work, null, null);
    x.release();
}

/// A callback's attempt has taken too long.
fn onTimeout(timer: *timers_file.Timer) void {
    const operation: *Operation = @fieldParentPtr("timeout", timer);
    const x = operation.execution;
    const d = dispatcherOf(x);
    const node = operation.node;
    const now = d.context.clock.now();
    // Fired late, while the next attempt runs already: that one has a timer of its own.
    if (now >= operation.timeout_ns.load(.acquire)) d.timeOut(x, node, now); // pairs with the store in Execution.enter
    x.release();
}

fn onDeadline(timer: *timers_file.Timer) void {
    const x: *Execution = @fieldParentPtr("deadline", timer);
    dispatcherOf(x).cancel(x, .timeout);
    x.release();
}
