//! An execution: a run with hands. The Run in graph/ decides; this holds what carrying it out needs: outputs
//! (outputs.zig), operations on their way, ready callbacks, who wants to be told (telling.zig), why nodes failed (notes.zig). It says how long all of
//! that lives, and lets callbacks in. What else is done with it stands in the rooms from work.zig to dispatcher.zig.
//!
//! `references` counts who keeps it alive: the handle that gb_run_start returned; the run itself, until it is over; every
//! operation on its way (a call, a timer, a task in the pool), from before it starts until whoever ended it is done with
//! what follows; every run that one of its nodes started, until that is over. Python holds its handle while it is in gb_wait
//! with results.
//!
//! A run of items (map over a callable) has no nodes: `items` counts what came back, under a lock of its own, and numbers of
//! items are handed out as if they were nodes (items.zig).

const std = @import("std");
const sync = @import("base/sync.zig");
const cache_file = @import("cache.zig");
const call_file = @import("call/call.zig");
const context_file = @import("context.zig");
const events_file = @import("events.zig");
const memory = @import("base/memory.zig");
const limits_file = @import("limits.zig");
const notes_file = @import("notes.zig");
const outputs_file = @import("outputs.zig");
const pace_file = @import("graph/pace.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const queue_file = @import("queue.zig");
const ranked_file = @import("base/ranked.zig");
const run_file = @import("graph/run.zig");
const predicate = @import("graph/predicate.zig");
const telling = @import("telling.zig");
const template = @import("graph/template.zig");
const timers_file = @import("timers.zig");

const Allocator = std.mem.Allocator;
const Call = call_file.Call;
const Outputs = outputs_file.Outputs;
const Plan = plan_file.Plan;
const Queue = queue_file.Queue;
const Source = queue_file.Source;
const Value = template.Value;

pub const Context = context_file.Context;

pub const Options = struct {
    queue: ?*Queue = null,
    loop_queue: ?*Queue = null,
    token: u64 = 0,
    timeout_ns: u64 = 0,
    keep_going: bool = false,
    caller_pulls: bool = false,
    inputs: []const Value = &.{},
    parent: ?*Execution = null,
    parent_node: u32 = 0,
    item_count: u32 = 0,
    item_live_max: u32 = 0,
    limits: ?*limits_file.Limits = null,
    event_capacity: u32 = 0,
};

/// What to call when the core has carried out a node, set by the dispatcher.
pub const Hooks = struct {
    on_task: *const fn (*pool_file.Task, *pool_file.Worker) void,
    on_task_dropped: *const fn (*pool_file.Task) void,
    on_timer: *const fn (*timers_file.Timer) void,
    on_timeout: *const fn (*timers_file.Timer) void,
    on_deadline: *const fn (*timers_file.Timer) void,
};

/// A node that workers carry out: a template or a native function.
pub const TaskNode = struct {
    task: pool_file.Task,
    execution: *Execution,
    node: u32,
};

/// A node that waits for something: a request, a delay, a callback with a timeout, retries or runs of its own.
pub const Operation = struct {
    execution: *Execution,
    node: u32,
    /// A delay, or the pause before a callback's next attempt.
    timer: timers_file.Timer,
    timeout: timers_file.Timer,
    /// Of the attempt that `timeout` was set for. Whoever finds it later than now looks at a timer of an attempt before.
    timeout_ns: sync.Atomic(u64) = .init(0),
    /// Sequentially consistent with the run's stop flag: the sweep finds the call, or the starter sees the stop.
    call: sync.Atomic(?*Call) = .init(null),
    /// A run it started has ended since it last looked. Sequentially consistent with the node's word.
    news: sync.Atomic(bool) = .init(false),
    /// The time of its attempt was up while it lay ready to go on: it ends with its next pause.
    overdue: sync.Atomic(bool) = .init(false),
    /// To the event loop: its task is not wanted any more.
    over_letter: queue_file.Letter,
};

/// What a node waited for. Written by whoever moves the node, read once it has ended.
/// C: gb_node_waits
pub const Waits = extern struct { limit_ns: u64 = 0, backoff_ns: u64 = 0, earlier_ns: u64 = 0, last_started_ns: u64 = 0 };

/// A run of items: what came back.
pub const Items = struct {
    mutex: sync.Mutex = .init, // guards what follows, and Run.remaining of such a run
    closed: bool = false,
    /// It was handed to the lobby. Sequentially consistent with the stop flag: who stops it before that leaves its end to the starter.
    begun: sync.Atomic(bool) = .init(false),
    succeeded: u32 = 0,
    failed: u32 = 0,
    total: u32 = 0,
};

pub const Execution = struct {
    context: *Context,
    /// Who carries it out, a work.Carrier; untyped, for this file knows none.
    carrier: ?*anyopaque = null,
    references: sync.Atomic(u32),
    arena: std.heap.ArenaAllocator,
    plan: *Plan,
    run: run_file.Run,
    token: u64,
    outputs: Outputs,
    /// Filled when a node goes to the pool.
    tasks: []TaskNode,
    on_task: *const fn (*pool_file.Task, *pool_file.Worker) void,
    on_task_dropped: *const fn (*pool_file.Task) void,
    operations: []Operation,
    /// Callbacks with a timeout succeed, and are timed out, under it: between an output and the success that it belongs to nobody
    /// begins another attempt, or goes on without the node.
    timed_ends: sync.Mutex = .init,
    ranks: pace_file.Ranks,
    /// Callbacks for the caller and any thread; for the event loop; one at a time, for threads; one at a time, for the loop.
    source: Source,
    loop_source: Source,
    alone_source: Source,
    alone_loop_source: Source,
    loop_queue: ?*Queue,
    deadline: timers_file.Timer,
    has_deadline: bool = false,
    /// Its nodes count towards virtual time's notion of being busy.
    is_virtual: bool,
    stopping_letter: queue_file.Letter,
    audience: telling.Audience,
    /// Why nodes failed that made no call and were no callback's own doing.
    notes: notes_file.Notes,

    /// Null unless nodes of the plan need permits.
    limits: ?*limits_file.Limits = null,
    line: limits_file.Line = undefined,
    /// By node: it holds its permits. Exchanged, so that they are given back once. Empty without limits.
    admitted: []sync.Atomic(bool) = &.{},
    /// By node; empty where no node can have waited.
    waits: []Waits = &.{},

    parent: ?*Execution = null,
    parent_node: u32 = 0,
    /// Runs that nodes of this one have started and that are not over.
    children: ?*Execution = null, // under children_mutex, see children.zig
    children_mutex: sync.Mutex = .init,
    next_child: ?*Execution = null, // under the parent's
    previous_child: ?*Execution = null,

    items: Items = .{},

    next: ?*Execution = null, // in the dispatcher's list
    previous: ?*Execution = null,

    /// Two references: the caller's handle, and the run's own.
    pub fn create(context: *Context, plan: *Plan, options: Options, hooks: Hooks) error{OutOfMemory}!*Execution {
        const gpa = context.gpa;
        const x = try gpa.create(Execution);
        errdefer gpa.destroy(x);
        const token = options.token;
        x.* = .{
            .context = context,
            .references = .init(2),
            .arena = .init(gpa),
            .plan = plan,
            .run = undefined,
            .token = token,
            .outputs = undefined,
            .tasks = &.{},
            .on_task = hooks.on_task,
            .on_task_dropped = hooks.on_task_dropped,
            .operations = &.{},
            .ranks = .{},
            .source = .{ .token = token, .claim = claimPlain },
            .loop_source = .{ .token = token, .claim = claimOnLoop, .loop = options.loop_queue },
            .alone_source = .{ .token = token, .claim = claimAlone, .attempt_of = attemptAlone, .alone = true },
            .alone_loop_source = .{
                .token = token,
                .claim = claimAloneOnLoop,
                .attempt_of = attemptAloneOnLoop,
                .alone = true,
                .loop = options.loop_queue,
            },
            .loop_queue = options.loop_queue,
            .deadline = .{ .fire = hooks.on_deadline },
            .is_virtual = context.timers.isVirtual(),
            .stopping_letter = .{ .item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.run_stopping) } },
            .audience = .{ .gpa = gpa, .lobby = context.lobby },
            .notes = .{ .gpa = gpa },
            .parent = options.parent,
            .parent_node = options.parent_node,
        };
        errdefer x.arena.deinit();
        const arena = x.arena.allocator();
        const now = context.clock.now();
        try x.run.init(arena, plan, options.keep_going, now);
        x.run.judge = .{ .context = x, .holds = holds };
        try x.outputs.init(arena, gpa, &x.run, options.inputs);
        try x.placeNodes(arena, hooks);
        x.ranks = try plan.pace.current(arena);
        if (plan.has_plain) try x.ready(arena, &x.source);
        if (plan.has_loop) try x.ready(arena, &x.loop_source);
        if (plan.has_alone) try x.ready(arena, &x.alone_source);
        if (plan.has_alone_loop) try x.ready(arena, &x.alone_loop_source);
        x.source.average_ns = plan.callback_ns.load(.monotonic);
        x.source.root = if (options.parent) |parent| parent.source.head() else null;
        x.alone_source.root = x.source.head();
        if (options.item_count > 0) {
            const source = x.itemSource();
            source.spread = .{ .end = options.item_count, .live_max = options.item_live_max };
            x.items.total = options.item_count;
            x.run.remaining = .init(options.item_count);
        }
        if (plan.has_waits) {
            x.waits = try arena.alloc(Waits, plan.nodes.len);
            @memset(x.waits, .{});
        }
        if (options.event_capacity > 0) {
            try x.audience.openLog(options.event_capacity);
            x.run.watcher = .{ .context = x, .saw = saw };
            x.source.watched = true;
        }
        errdefer x.audience.endLog();
        if (options.limits) |limits| if (plan.has_limits) {
            const masks = try arena.alloc(u32, plan.nodes.len);
            for (masks, plan.nodes) |*mask, *node| mask.* = node.limits;
            x.admitted = try arena.alloc(sync.Atomic(bool), plan.nodes.len);
            for (x.admitted) |*it| it.* = .init(false);
            try x.line.init(arena, limits, x.run.link, masks, x.ranks.count);
            x.line.on_grant = holdGranted;
            x.limits = limits;
        };
        errdefer if (x.limits != null) x.line.deinit();
        if (options.queue) |queue| try x.audience.attach(&x.source, queue, token, false);
        if (options.loop_queue) |queue| _ = queue.retain();
        if (options.parent) |parent| parent.retain();
        for (plan.requests) |*request| if (request.cache) |cache| {
            _ = @as(*cache_file.Cache, @ptrCast(@alignCast(cache))).retain(); // the binding may let go of a run that still ends
        };
        _ = plan.retain();
        context.retain();
        return x;
    }

    /// Under the limits' mutex: between its being granted and its being carried out a node may end, and its run with it.
    fn holdGranted(line: *limits_file.Line) void {
        const x: *Execution = @fieldParentPtr("line", line);
        x.retain();
    }

    fn placeNodes(x: *Execution, arena: Allocator, hooks: Hooks) error{OutOfMemory}!void {
        const plan = x.plan;
        x.tasks = try memory.alloc(TaskNode, arena, plan.task_count);
        x.operations = try memory.alloc(Operation, arena, plan.operation_count);
        if (plan.operation_count > 0) for (plan.place, 0..) |place, index| if (place != plan_file.none) {
            const node: u32 = @intCast(index);
            switch (plan.kind(node)) {
                .template, .native => {}, // see taskFor
                .request, .delay, .callback => x.operations[place] = .{
                    .execution = x,
                    .node = node,
                    .timer = .{ .fire = hooks.on_timer },
                    .timeout = .{ .fire = hooks.on_timeout },
                    .over_letter = .{ .item = .{
                        .token = x.token,
                        .kind = @backingInt(queue_file.ItemKind.node_over),
                        .failure = node,
                    } },
                },
            }
        };
    }

    fn ready(x: *Execution, arena: Allocator, source: *Source) error{OutOfMemory}!void {
        source.ready = try ranked_file.Ranked.init(arena, x.ranks.count);
        source.ranks = x.ranks.of;
        source.link = x.run.link;
    }

    /// Where the items of a run of items come from.
    pub fn itemSource(x: *Execution) *Source {
        return if (x.loop_queue != null) &x.loop_source else &x.source;
    }

    pub fn retain(x: *Execution) void {
        _ = x.references.fetchAdd(1, .monotonic);
    }

    pub fn release(x: *Execution) void {
        // Acquire-release: the last one out sees every other holder's last write.
        if (x.references.fetchSub(1, .acq_rel) != 1) return;
        const context = x.context;
        const gpa = context.gpa;
        x.forgetSources(null);
        context.lobby.withdraw(&x.stopping_letter);
        if (x.plan.has_loop or x.plan.has_alone_loop) for (x.operations) |*operation| context.lobby.withdraw(&operation.over_letter);
        x.audience.deinit();
        if (x.limits != null) x.line.deinit();
        if (x.loop_queue) |queue| queue.release();
        x.outputs.deinit();
        for (x.operations) |*operation| if (operation.call.raw) |call| call.release();
        x.notes.deinit();
        if (x.parent) |parent| parent.release();
        for (x.plan.requests) |*request| if (request.cache) |cache| @as(*cache_file.Cache, @ptrCast(@alignCast(cache))).release();
        x.plan.release();
        x.arena.deinit();
        gpa.destroy(x);
        context.release();
    }

    /// Nothing is handed out any more.
    pub fn forgetSources(x: *Execution, by: ?*Queue) void {
        const lobby = x.context.lobby;
        lobby.forget(&x.alone_source, by);
        lobby.forget(&x.source, by);
        if (x.loop_queue == null) return;
        lobby.forget(&x.loop_source, by);
        lobby.forget(&x.alone_loop_source, by);
    }

    pub fn operationOf(x: *Execution, node: u32) *Operation {
        return &x.operations[x.plan.place[node]];
    }

    /// Tasks need not hold it, for it is not over before they have ended. Yet in virtual time they keep the clock until what
    /// follows from them is carried out, and permits that they give back may start others even later.
    pub fn tasksHold(x: *const Execution) bool {
        return x.is_virtual or x.limits != null;
    }

    /// For the pool.
    pub fn taskFor(x: *Execution, node: u32) *pool_file.Task {
        if (x.tasksHold()) x.retain();
        const it = &x.tasks[x.plan.place[node]];
        it.* = .{ .execution = x, .node = node, .task = .{ .run = x.on_task, .drop = x.on_task_dropped } };
        return &it.task;
    }

    pub fn sourceOf(x: *Execution, node: u32) *Source {
        const it = &x.plan.nodes[node];
        if (plan_file.Plan.isAlone(it)) return if (it.flags.loop) &x.alone_loop_source else &x.alone_source;
        return if (it.flags.loop) &x.loop_source else &x.source;
    }

    /// Its run is stopping, or a join of kind "any" went on without it: what `node` has just begun is to end. Asked after it has put
    /// itself where whoever wants to end it would find it.
    pub fn isUnwanted(x: *const Execution, node: u32) bool {
        return x.run.stopping() or x.run.nodes[node].unneeded.load(.seq_cst); // pairs with Run.dropBlocked
    }

    pub fn rankOf(x: *const Execution, node: u32) u32 {
        return if (x.ranks.of.len == 0) 0 else x.ranks.of[node];
    }

    fn holds(context: *anyopaque, node: u32, rule: u32) bool {
        const x: *Execution = @ptrCast(@alignCast(context));
        return predicate.holds(x.plan.predicates[rule - 1], x.plan.text, x.outputs.values[node]);
    }

    // ----------------------------------------------------------------------------------------------------- events

    fn saw(context: *anyopaque, node: u32, state: run_file.State, now: u64) void {
        const x: *Execution = @ptrCast(@alignCast(context));
        _ = x.audience.tell(.{
            .time_ns = now,
            .node = node,
            .attempt = x.run.attemptOf(node),
            .kind = switch (state) {
                .succeeded => .node_completed,
                .failed => .node_failed,
                .skipped => .node_skipped,
                .cancelled => .node_cancelled,
                .blocked, .ready, .running, .waiting => return,
            },
        });
    }

    fn startOf(x: *const Execution, node: u32, now: u64) events_file.Event {
        return .{ .time_ns = now, .node = node, .attempt = x.run.attemptOf(node), .kind = .node_started };
    }

    pub fn tellStart(x: *Execution, node: u32, now: u64) void {
        if (x.audience.log != null) _ = x.audience.tell(x.startOf(node, now));
    }

    /// A node that the core carries out itself has begun.
    pub fn began(x: *Execution, node: u32, now: u64) void {
        if (x.waits.len > 0) x.waits[node].last_started_ns = now;
        x.tellStart(node, now);
    }

    /// What there is to say of a node that failed without a call; null: of a callback whose failure is the binding's own.
    pub fn noteOf(x: *Execution, node: u32) ?notes_file.Note {
        const attempt = x.run.attemptOf(node);
        if (attempt == 0) return .{ .node = node, .failure = .none_left };
        if (x.notes.find(node, attempt)) |note| return note;
        return if (x.plan.kind(node) == .callback) null else .{ .node = node, .failure = .out_of_memory };
    }

    // ------------------------------------------------------------------------------------------ virtual time

    pub fn busy(x: *Execution) void {
        if (x.is_virtual) x.context.timers.enter();
    }

    pub fn idle(x: *Execution, count: u32) void {
        if (x.is_virtual) for (0..count) |_| x.context.timers.leave();
    }

    // -------------------------------------------------------------------------- under the lobby's mutex

    fn claimPlain(source: *Source, nodes: []u32) usize {
        const x: *Execution = @fieldParentPtr("source", source);
        return x.claim(nodes);
    }

    fn claimOnLoop(source: *Source, nodes: []u32) usize {
        const x: *Execution = @fieldParentPtr("loop_source", source);
        return x.claim(nodes);
    }

    fn claimAlone(source: *Source, nodes: []u32) usize {
        const x: *Execution = @fieldParentPtr("alone_source", source);
        return x.claim(nodes);
    }

    fn claimAloneOnLoop(source: *Source, nodes: []u32) usize {
        const x: *Execution = @fieldParentPtr("alone_loop_source", source);
        return x.claim(nodes);
    }

    fn attemptAlone(source: *Source, node: u32) u32 {
        const x: *Execution = @fieldParentPtr("alone_source", source);
        return x.run.attemptOf(node);
    }

    fn attemptAloneOnLoop(source: *Source, node: u32) u32 {
        const x: *Execution = @fieldParentPtr("alone_loop_source", source);
        return x.run.attemptOf(node);
    }

    /// A node claimed while the run is being stopped comes back unstarted: the binding looks at the stop flag first. One that
    /// is not ready any more is left out.
    fn claim(x: *Execution, nodes: []u32) usize {
        if (x.items.total > 0) return nodes.len;
        const now = x.context.clock.now();
        var kept: usize = 0;
        for (nodes) |node| {
            const first = x.run.attemptOf(node);
            if (x.enter(node, now) == .gone) {
                x.idle(1);
                continue;
            }
            if (x.audience.log != null and x.run.attemptOf(node) != first) x.audience.tellHeld(x.startOf(node, now));
            nodes[kept] = node;
            kept += 1;
        }
        return kept;
    }

    /// ready -> running for a callback, or any other node of which `waits` tells; with its timeout.
    pub fn enter(x: *Execution, node: u32, now: u64) run_file.Run.Entered {
        if (x.plan.place[node] == plan_file.none) {
            const entered = x.run.start(node, now);
            if (x.waits.len > 0) x.waits[node].last_started_ns = now;
            return entered;
        }
        const operation = x.operationOf(node);
        operation.news.store(false, .seq_cst);
        const timeout_ns = x.plan.nodes[node].timeout_ns;
        const begins = x.run.nodes[node].read().waits_for != .runs;
        if (timeout_ns != 0 and begins) operation.timeout_ns.store(now +| timeout_ns, .release); // pairs with the load as it fires
        const entered = x.run.start(node, now);
        if (entered != .running) return entered;
        if (x.waits.len > 0) x.waits[node].last_started_ns = now;
        if (timeout_ns != 0) {
            operation.overdue.store(false, .monotonic);
            x.retain();
            // No memory for a timer: this attempt has no other bound than its run's deadline.
            x.context.timers.add(&operation.timeout, now +| timeout_ns) catch {
                x.release();
                return entered;
            };
            // Given up before there was a timer to stop. Not the last reference: the end of the run needs the lobby's mutex.
            if (x.run.stateOf(node) != .running and x.context.timers.cancel(&operation.timeout)) x.release();
        }
        return entered;
    }
};
