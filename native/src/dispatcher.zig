//! The dispatcher carries out what runs decide: it starts runs, hands out what is ready, and ends them. The only place where
//! the half that knows what to do (graph/) meets the half that can do it (pool, http, timers, queues, limits).
//!
//! Whoever ends a node carries on: the thread that settles it also starts what became ready, be it the http engine's thread,
//! the timekeeper, a pool worker or a Python thread in gb_wait. `carry` is that loop. It works off a frontier without
//! recursion: templates and native functions run right here for a moment, what is left then goes to the pool; requests go to
//! the engine, delays to the timekeeper, callbacks to the lobby, in batches. Permits that an ended node gave back may start
//! nodes of other runs: these are worked off behind the first run's, in the same loop.
//!
//! The rooms below do one job each, and know none that comes after them: what follows from the end of a node, permits included
//! (work.zig), runs that nodes start (children.zig), runs of items (items.zig), attempts of callbacks (attempts.zig), early ends
//! (stopping.zig), and what the core does itself (operations.zig). They come back here through `Carrier`.

const std = @import("std");
const sync = @import("base/sync.zig");
const clock_file = @import("base/clock.zig");
const children = @import("children.zig");
const context_file = @import("context.zig");
const execution_file = @import("execution.zig");
const items = @import("items.zig");
const operations = @import("operations.zig");
const pace_file = @import("graph/pace.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
const stopping = @import("stopping.zig");
const work_file = @import("work.zig");

const Carrier = work_file.Carrier;
const Execution = execution_file.Execution;
const Frontier = run_file.Frontier;
const Queue = queue_file.Queue;
const Work = work_file.Work;
const none = plan_file.none;

/// So long a thread that is not a pool worker renders templates itself before it hands what is left to the pool: twice what
/// waking a worker costs. A Python thread that waits for its run has nothing better to do, and two threads that share small
/// work are slower than one (0.34 us a node against 0.12 in a random graph of 5,000).
const inline_ns_max: u64 = 100 * std.time.ns_per_us;
const inline_ns_max_waiting: u64 = std.time.ns_per_ms;
/// Callbacks are offered to the lobby so many at a time.
const offer_max = 128;

pub const Dispatcher = struct {
    context: *context_file.Context,
    carrier: Carrier = .{ .carry = carryFor, .cancel = cancelFor },
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
        // From before the run reads the clock: virtual time does not move on until it has begun.
        const is_virtual = context.timers.isVirtual();
        if (is_virtual) context.timers.enter();
        defer if (is_virtual) context.timers.leave();
        const x = try Execution.create(context, plan, options, operations.hooks);
        x.carrier = &d.carrier;
        d.list(x) catch |err| {
            x.release();
            x.release();
            return err;
        };
        if (options.timeout_ns != 0) {
            x.retain();
            x.has_deadline = true;
            context.timers.add(&x.deadline, x.run.started_ns +| options.timeout_ns) catch |err| {
                x.release();
                d.unlist(x);
                x.release();
                x.release();
                return if (err == error.OutOfMemory) error.OutOfMemory else error.NoThread;
            };
        }
        if (options.caller_pulls) if (options.queue) |queue| context.lobby.setCaller(&x.source, queue);
        out.* = x; // before anything starts: whoever is handed a callback may look there
        if (options.parent) |parent| children.adopt(parent, x);
        const by: ?*Queue = if (options.caller_pulls) options.queue else null;
        var work: Work = .{};
        if (options.item_count > 0) {
            items.begin(x, by);
            x.items.begun.store(true, .seq_cst);
            if (x.run.stopping()) d.endItems(x, by);
        } else {
            x.run.begin(x.run.started_ns, &work.frontier);
            d.carry(x, &work, by, null);
        }
        // Whoever stops the parent looks for its children after that: one of the two sees the other.
        if (options.parent) |parent| if (parent.run.stopping() or parent.run.stateOf(options.parent_node).final()) d.cancel(x, .cancel);
    }

    pub fn cancel(d: *Dispatcher, x: *Execution, cause: run_file.Cause) void {
        x.busy(); // else virtual time could go on in the middle of the sweep
        defer x.idle(1);
        if (!x.run.stop(cause)) return;
        if (x.items.total > 0) {
            if (x.items.begun.load(.seq_cst)) d.endItems(x, null); // else whoever starts it ends it
            return;
        }
        var work: Work = .{ .frontier = .{ .stopped = true } };
        d.carry(x, &work, null, null);
    }

    fn cancelFor(carrier: *Carrier, x: *Execution, cause: run_file.Cause) void {
        const d: *Dispatcher = @fieldParentPtr("carrier", carrier);
        d.cancel(x, cause);
    }

    /// Nothing starts any more; what runs is cancelled.
    pub fn close(d: *Dispatcher) void {
        d.mutex.lock();
        d.closed = true;
        d.mutex.unlock();
        while (true) {
            d.mutex.lock();
            // Runs that nobody's node has started first, and these take theirs along: a composite must not go on with the news
            // that its run was cancelled.
            var at = d.first;
            while (at) |x| : (at = x.next) if (x.parent == null and !x.run.stopping() and !x.run.isOver()) break;
            if (at == null) at = d.first;
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
        if (d.closed) return error.Shutdown;
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
        const has_limits = x.limits; // without any it may be gone afterwards
        d.carryOne(x, work, by, worker);
        const limits = has_limits orelse return;
        while (true) {
            work.leave(limits);
            const pair = work.granted.next() orelse break;
            const y: *Execution = @fieldParentPtr("line", pair.line); // held since the grant, see Execution.holdGranted
            if (work.takePermits(y, pair.node)) d.carryOne(y, work, by, worker);
            y.release();
        }
    }

    fn carryFor(carrier: *Carrier, x: *Execution, work: *Work, worker: ?*pool_file.Worker) void {
        const d: *Dispatcher = @fieldParentPtr("carrier", carrier);
        d.carry(x, work, null, worker);
    }

    fn carryOne(d: *Dispatcher, x: *Execution, work: *Work, by: ?*Queue, worker: ?*pool_file.Worker) void {
        if (work.frontier.head == none and !work.frontier.stopped) return d.conclude(x, work, by, false);
        @setRuntimeSafety(false); // rooms for many, of which mostly few come: they are not filled with a pattern first
        var offers: Offers = undefined;
        offers.begin(x, by);
        var spawns: Spawns = undefined;
        spawns.count = 0;
        d.carryOff(x, work, by, worker, &offers, &spawns);
    }

    fn carryOff(
        d: *Dispatcher,
        x: *Execution,
        work: *Work,
        by: ?*Queue,
        worker: ?*pool_file.Worker,
        offers: *Offers,
        spawns: *Spawns,
    ) void {
        const context = d.context;
        const run = &x.run;
        const frontier = &work.frontier;
        var mine: Frontier = .{}; // tasks to run right here
        var theirs: Frontier = .{}; // a native function may take any time: workers call it, and nobody else
        var own_watch: clock_file.Stopwatch = .{};
        const watch = if (worker) |it| &it.watch else &own_watch;
        var lined_up = false;
        var now = if (work.now != 0) work.now else context.clock.now(); // read again where time passes: a read costs as much as settling a node
        work.now = 0;
        var counted_ns = now;
        const until = (if (x.is_virtual) sync.now() else now) + (if (by == null) inline_ns_max else inline_ns_max_waiting);
        while (true) {
            while (frontier.pop(run)) |node| {
                if (x.plan.joinOf(node) == .any) stopping.dropTheRest(x, node, work);
                if (x.limits != null) {
                    if (run.stateOf(node) != .ready) continue; // a join of kind "any" has gone on without it
                    if (!work_file.admit(x, node)) {
                        lined_up = true;
                        continue;
                    }
                    // Whoever ends it moves the state and then takes the permits back: one of the two sees the other.
                    if (run.nodes[node].look().state.final()) {
                        work.giveBackPermits(x, node);
                        continue;
                    }
                }
                switch (x.plan.kind(node)) {
                    .callback => {
                        x.busy();
                        if (run.stopping()) stopping.refuse(x, node, now, work) else offers.add(node);
                    },
                    .template, .native => {
                        x.busy();
                        if (worker == null) {
                            const tasks = if (x.plan.kind(node) == .native) &theirs else &mine;
                            tasks.push(run, node);
                        } else if (mine.head == none) {
                            mine.push(run, node);
                        } else spawns.add(x.taskFor(node), worker.?);
                    },
                    .request => operations.request(x, node, context.clock.now(), work),
                    .delay => operations.delay(x, node, context.clock.now(), work),
                }
            }
            if (spawns.count > 0) spawns.flush(worker.?);
            if (frontier.stopped) {
                frontier.stopped = false;
                offers.flush();
                stopping.sweep(x, work);
                continue;
            }
            if (worker == null and mine.head != none and (if (x.is_virtual) sync.now() else now) > until) d.handOver(x, &mine);
            if (theirs.head != none) d.handOver(x, &theirs);
            const node = mine.pop(run) orelse break;
            if (worker != null and x.plan.kind(node) == .native) offers.flush(); // what waits for threads is not to wait for it
            now = operations.runTask(x, node, now, watch, work);
            x.idle(1);
            // Whoever asks how much is left is told now and then. Not that nothing is: a node of ours is.
            if (now -| counted_ns > inline_ns_max and (frontier.head != none or mine.head != none)) {
                _ = run.countSettled(frontier);
                counted_ns = now;
            }
        }
        offers.flush();
        if ((offers.any or lined_up) and run.stopping()) {
            // A stop may have swept before these were where it looks, and some may have been handed out since, to a binding that
            // does not know the run any more.
            stopping.sweepNodes(x, work);
            if (frontier.head != none or frontier.stopped) return d.carryOne(x, work, by, worker);
        }
        d.conclude(x, work, by, offers.any or lined_up);
    }

    /// Counts what has ended. The execution may be gone afterwards.
    fn conclude(d: *Dispatcher, x: *Execution, work: *Work, by: ?*Queue, has_left_some: bool) void {
        const frontier = &work.frontier;
        const looks_back = has_left_some and x.plan.predecessor_first.len > 0;
        if (looks_back) x.retain();
        if (x.limits) |limits| work.leave(limits); // before anybody hears that it is over
        if (x.run.countSettled(frontier)) {
            x.run.ended_ns = d.context.clock.now();
            frontier.over = true;
        }
        if (frontier.over) {
            frontier.over = false;
            d.end(x, by);
        } else if (looks_back and x.run.isOver()) {
            stopping.clearAway(x);
            stopping.leaveLine(x);
        }
        if (looks_back) x.release();
    }

    /// The rest is the pool's, in one go: an outsider's submission takes a lock.
    fn handOver(d: *Dispatcher, x: *Execution, tasks: *Frontier) void {
        var first: ?*pool_file.Task = null;
        var place = &first;
        while (tasks.pop(&x.run)) |node| {
            const task = x.taskFor(node);
            place.* = task;
            place = &task.next;
        }
        d.context.pool.submitList(first.?);
    }

    /// Tasks for this worker and whoever steals from it.
    const Spawns = struct {
        tasks: [32]*pool_file.Task,
        count: usize,

        fn add(spawns: *Spawns, task: *pool_file.Task, worker: *pool_file.Worker) void {
            if (spawns.count == spawns.tasks.len) spawns.flush(worker);
            spawns.tasks[spawns.count] = task;
            spawns.count += 1;
        }

        fn flush(spawns: *Spawns, worker: *pool_file.Worker) void {
            worker.spawnMany(spawns.tasks[0..spawns.count]);
            spawns.count = 0;
        }
    };

    const Offers = struct {
        x: *Execution,
        by: ?*Queue,
        any: bool,
        plain: Batch,
        loop: Batch,

        const Batch = struct { nodes: [offer_max]u32, count: usize };

        fn begin(offers: *Offers, x: *Execution, by: ?*Queue) void {
            offers.x = x;
            offers.by = by;
            offers.any = false;
            offers.plain.count = 0;
            offers.loop.count = 0;
        }

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

    // -------------------------------------------------------------------------------------------------- the end

    fn end(d: *Dispatcher, x: *Execution, by: ?*Queue) void {
        _ = d.context.nodes_settled.fetchAdd(x.run.nodes.len + x.items.succeeded + x.items.failed, .monotonic);
        if (x.has_deadline and d.context.timers.cancel(&x.deadline)) x.release();
        d.learn(x);
        if (x.plan.predecessor_first.len > 0) stopping.clearAway(x);
        stopping.leaveLine(x);
        d.unlist(x);
        _ = x.audience.tell(.{ .time_ns = x.run.ended_ns, .kind = .run_over, .node = none });
        x.forgetSources(by);
        x.audience.tellEnd();
        if (x.parent) |parent| {
            children.disown(parent, x);
            children.ended(parent, x.parent_node);
        }
        x.release(); // the run's own
    }

    /// Takes in what became of items of a run of items.
    pub fn itemsOver(d: *Dispatcher, x: *Execution, succeeded: u32, failed: u32, first_failed: u32, by: *Queue) void {
        if (items.takeIn(x, succeeded, failed, first_failed, by)) d.endItems(x, by);
    }

    fn endItems(d: *Dispatcher, x: *Execution, by: ?*Queue) void {
        if (!items.close(x)) return;
        d.end(x, by);
        x.idle(1);
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
