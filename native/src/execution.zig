//! An execution: a run with hands. The Run in graph/ decides; this holds what carrying it out needs: values, operations
//! on their way, ready callbacks, who wants to be told. What is done with it stands in dispatcher.zig.
//!
//! `references` counts who keeps it alive: the handle that gb_run_start returned; the run itself, until it is over; every
//! operation on its way (a call, a timer, a task in the pool), from before it starts until whoever ended it is done with
//! what follows; every run that one of its nodes started, until that is over. Python holds its handle while it is in gb_wait
//! with results.
//!
//! A run of items (map over a callable) has no nodes: `items` counts what came back, under a lock of its own, and numbers of
//! items are handed out as if they were nodes.

const std = @import("std");
const sync = @import("base/sync.zig");
const call_file = @import("call.zig");
const clock_file = @import("base/clock.zig");
const events_file = @import("events.zig");
const limits_file = @import("limits.zig");
const pace_file = @import("graph/pace.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");
const ranked_file = @import("base/ranked.zig");
const run_file = @import("graph/run.zig");
const predicate = @import("graph/predicate.zig");
const template = @import("graph/template.zig");
const timers_file = @import("timers.zig");

const Allocator = std.mem.Allocator;
const Call = call_file.Call;
const Plan = plan_file.Plan;
const Queue = queue_file.Queue;
const Source = queue_file.Source;
const Value = template.Value;

/// The parts of the runtime that executions and tickets work with.
pub const Context = struct {
    gpa: Allocator,
    clock: *clock_file.Clock,
    timers: *timers_file.Timers,
    pool: *pool_file.Pool,
    lobby: *lobby_file.Lobby,
    services: *call_file.Services,
    nodes_settled: sync.Atomic(u64) = .init(0),
    /// The runtime's handle, queues, executions and tickets. Whoever brings it to zero frees the runtime.
    references: sync.Atomic(u32) = .init(1),
    on_unreferenced: *const fn (*Context) void,

    pub fn retain(context: *Context) void {
        _ = context.references.fetchAdd(1, .monotonic);
    }

    pub fn release(context: *Context) void {
        // Acquire-release: the last one out sees everybody's last access to the runtime.
        if (context.references.fetchSub(1, .acq_rel) == 1) context.on_unreferenced(context);
    }
};

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
    /// What a callback in state waiting waits for.
    waits_for: sync.Atomic(enum(u8) { nothing, backoff, runs }) = .init(.nothing),
    /// A run it started has ended since it last looked. Sequentially consistent with `waits_for` and the state.
    news: sync.Atomic(bool) = .init(false),
    /// It goes on with its attempt when it is handed out next.
    goes_on: sync.Atomic(bool) = .init(false),
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
    succeeded: u32 = 0,
    failed: u32 = 0,
    total: u32 = 0,
};

/// What there is to say about a node that failed before anything was sent.
pub const Note = struct { node: u32, attempt: u32 = 0, failure: call_file.Failure, text: []const u8 = &.{} };

const Attachment = struct {
    queue: *Queue,
    letter: queue_file.Letter,
    next: ?*Attachment = null,
};

pub const Execution = struct {
    context: *Context,
    /// Who carries it out; untyped, for this file knows no dispatcher.
    dispatcher: ?*anyopaque = null,
    references: sync.Atomic(u32),
    arena: std.heap.ArenaAllocator,
    plan: *Plan,
    run: run_file.Run,
    token: u64,
    /// Outputs of nodes, then inputs. Written before the node is settled, read after.
    values: []Value,
    tasks: []TaskNode,
    operations: []Operation,
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
    attach_mutex: sync.Mutex = .init,
    attachments: ?*Attachment = null,
    told: bool = false, // under attach_mutex: the end was announced
    /// Why templates failed, by node; few, so a list.
    notes: std.ArrayList(Note) = .empty, // under attach_mutex

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
    children: ?*Execution = null, // under attach_mutex
    next_child: ?*Execution = null, // under the parent's
    previous_child: ?*Execution = null,

    items: Items = .{},
    events: ?*events_file.Log = null,
    ear: queue_file.Ear = .{},

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
            .values = &.{},
            .tasks = &.{},
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
            .parent = options.parent,
            .parent_node = options.parent_node,
        };
        errdefer x.arena.deinit();
        const arena = x.arena.allocator();
        const now = context.clock.now();
        try x.run.init(arena, plan, options.keep_going, now);
        x.run.judge = .{ .context = x, .holds = holds };
        x.values = try arena.alloc(Value, plan.nodes.len + options.inputs.len);
        @memset(x.values, .{});
        for (x.values[plan.nodes.len..], options.inputs) |*value, input| {
            value.* = .{ .ptr = input.ptr, .len = input.len, .kind = input.kind };
            if (input.kind != .number) value.* = .of(input.kind, try arena.dupe(u8, input.bytes()));
        }
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
            const log = try gpa.create(events_file.Log);
            errdefer gpa.destroy(log);
            log.* = try events_file.Log.init(gpa, options.event_capacity);
            x.events = log;
            x.run.watcher = .{ .context = x, .saw = saw };
            x.source.watched = true;
        }
        errdefer x.endEvents();
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
        if (options.queue) |queue| {
            x.attachments = try gpa.create(Attachment);
            x.attachments.?.* = .{ .queue = queue.retain(), .letter = overLetter(token) };
        }
        if (options.loop_queue) |queue| _ = queue.retain();
        if (options.parent) |parent| parent.retain();
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
        x.tasks = try arena.alloc(TaskNode, plan.task_count);
        x.operations = try arena.alloc(Operation, plan.operation_count);
        for (plan.place, 0..) |place, index| if (place != plan_file.none) {
            const node: u32 = @intCast(index);
            switch (plan.kind(node)) {
                .template, .native => x.tasks[place] = .{
                    .execution = x,
                    .node = node,
                    .task = .{ .run = hooks.on_task, .drop = hooks.on_task_dropped },
                },
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
        x.endEvents();
        if (x.limits != null) x.line.deinit();
        while (x.attachments) |attachment| {
            x.attachments = attachment.next;
            context.lobby.withdraw(&attachment.letter);
            attachment.queue.release();
            gpa.destroy(attachment);
        }
        if (x.loop_queue) |queue| queue.release();
        // A request's value lies in its call, a delay's is another's; every other output is the execution's own, unless it is
        // that of the node's stand-in.
        for (x.plan.nodes, x.values[0..x.plan.nodes.len]) |*node, value| {
            switch (@as(plan_file.NodeKind, @fromBackingInt(node.kind))) {
                .request, .delay => {},
                .callback, .template, .native => {
                    if (node.stand_in != 0 and x.run.stateOf(node.stand_in - 1) == .succeeded) continue;
                    gpa.free(value.bytes());
                },
            }
        }
        for (x.operations) |*operation| if (operation.call.raw) |call| call.release();
        for (x.notes.items) |it| gpa.free(it.text);
        x.notes.deinit(gpa);
        if (x.parent) |parent| parent.release();
        x.plan.release();
        x.arena.deinit();
        gpa.destroy(x);
        context.release();
    }

    fn forgetSources(x: *Execution, by: ?*Queue) void {
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

    pub fn taskOf(x: *Execution, node: u32) *TaskNode {
        return &x.tasks[x.plan.place[node]];
    }

    pub fn sourceOf(x: *Execution, node: u32) *Source {
        const it = &x.plan.nodes[node];
        if (plan_file.Plan.isAlone(it)) return if (it.flags.loop) &x.alone_loop_source else &x.alone_source;
        return if (it.flags.loop) &x.loop_source else &x.source;
    }

    pub fn rankOf(x: *const Execution, node: u32) u32 {
        return if (x.ranks.of.len == 0) 0 else x.ranks.of[node];
    }

    /// A node's output; that of a stand-in is the output of the node it stands in for as well.
    pub fn setValue(x: *Execution, node: u32, value: Value) void {
        x.values[node] = value;
        const stands_for = x.plan.stands_for;
        if (stands_for.len > 0 and stands_for[node] != plan_file.none) x.values[stands_for[node]] = value;
    }

    /// The values that a node may look at: all, or, for a join of kind "any", those of nodes that have succeeded. What is
    /// returned is the caller's to free if it is not `values`.
    pub fn valuesFor(x: *Execution, node: u32) error{OutOfMemory}![]const Value {
        if (x.plan.joinOf(node) != .any) return x.values;
        const seen = try x.context.gpa.alloc(Value, x.values.len);
        @memset(seen, .{});
        @memcpy(seen[x.plan.nodes.len..], x.values[x.plan.nodes.len..]);
        for (x.plan.predecessorsOf(node)) |source| {
            if (x.run.stateOf(source) == .succeeded) seen[source] = x.values[source];
        }
        return seen;
    }

    pub fn freeValues(x: *Execution, seen: []const Value) void {
        if (seen.ptr != x.values.ptr) x.context.gpa.free(seen);
    }

    fn holds(context: *anyopaque, node: u32, rule: u32) bool {
        const x: *Execution = @ptrCast(@alignCast(context));
        return predicate.holds(x.plan.predicates[rule - 1], x.plan.text, x.values[node]);
    }

    // ----------------------------------------------------------------------------------------------------- events

    fn saw(context: *anyopaque, node: u32, state: run_file.State, now: u64) void {
        const x: *Execution = @ptrCast(@alignCast(context));
        _ = x.tellEvent(.{
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

    /// Adds to the log, if there is one, and tells the reader. False: it will never be read.
    pub fn tellEvent(x: *Execution, event: events_file.Event) bool {
        const log = x.events orelse return false;
        const added = log.add(event);
        if (added.tell) x.context.lobby.ring(&x.ear);
        return added.kept;
    }

    /// A node has begun. Under the lobby's mutex where it was claimed.
    pub fn tellStart(x: *Execution, node: u32, now: u64, comptime is_lobby_held: bool) void {
        const log = x.events orelse return;
        const event: events_file.Event = .{ .time_ns = now, .node = node, .attempt = x.run.attemptOf(node), .kind = .node_started };
        if (!log.add(event).tell) return;
        if (is_lobby_held) {
            x.context.lobby.ringHeld(&x.ear);
        } else x.context.lobby.ring(&x.ear);
    }

    /// `queue` is told once of events to take, see gb_run_listen.
    pub fn listen(x: *Execution, queue: ?*Queue, token: u64) error{InvalidArgument}!void {
        const log = x.events orelse return error.InvalidArgument;
        log.disarm();
        x.context.lobby.listen(&x.ear, queue, .{ .token = token, .kind = @backingInt(queue_file.ItemKind.events) });
        if (queue != null and !log.arm()) x.context.lobby.ring(&x.ear);
    }

    fn endEvents(x: *Execution) void {
        const log = x.events orelse return;
        x.context.lobby.listen(&x.ear, null, .{});
        log.deinit(x.context.gpa);
        x.context.gpa.destroy(log);
        x.events = null;
    }

    /// As Run.counts, of a run of items: those that did not come back are cancelled, or blocked while it goes on.
    pub fn itemCounts(x: *const Execution) [8]u32 {
        const items = @constCast(&x.items);
        items.mutex.lock();
        defer items.mutex.unlock();
        var counts: [8]u32 = @splat(0);
        counts[@backingInt(run_file.State.succeeded)] = items.succeeded;
        counts[@backingInt(run_file.State.failed)] = items.failed;
        const rest: run_file.State = if (items.closed) .cancelled else .blocked;
        counts[@backingInt(rest)] = items.total - items.succeeded - items.failed;
        return counts;
    }

    // --------------------------------------------------------------------------------------------------- children

    pub fn adopt(x: *Execution, child: *Execution) void {
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        child.next_child = x.children;
        if (x.children) |first| first.previous_child = child;
        x.children = child;
    }

    pub fn disown(x: *Execution, child: *Execution) void {
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        if (child.previous_child) |previous| previous.next_child = child.next_child else x.children = child.next_child;
        if (child.next_child) |next| next.previous_child = child.previous_child;
        child.next_child = null;
        child.previous_child = null;
    }

    /// A run that `node` (null: any node) started and that is not stopping; retained.
    pub fn liveChild(x: *Execution, node: ?u32) ?*Execution {
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        var at = x.children;
        while (at) |child| : (at = child.next_child) {
            if (node != null and child.parent_node != node.?) continue;
            if (child.run.stopping() or child.run.isOver()) continue;
            child.retain();
            return child;
        }
        return null;
    }

    // -------------------------------------------------------------------------------------- failures without a call

    pub fn noteTemplateFailure(x: *Execution, node: u32, err: template.RenderError, diagnostics: template.Diagnostics) void {
        if (err == error.OutOfMemory) return x.noteOutOfMemory(node);
        const text = call_file.describeTemplate(x.context.gpa, err, diagnostics) catch return x.noteOutOfMemory(node);
        x.note(.{ .node = node, .failure = .template, .text = text });
    }

    pub fn noteOutOfMemory(x: *Execution, node: u32) void {
        x.note(.{ .node = node, .failure = .out_of_memory });
    }

    /// The attempt that `node` is at takes too long.
    pub fn noteTimeout(x: *Execution, node: u32) void {
        x.note(.{ .node = node, .attempt = x.run.attemptOf(node), .failure = .node_timeout });
    }

    pub fn noteNativeFailure(x: *Execution, node: u32, comptime format: []const u8, number: i64) void {
        const text = x.context.gpa.print(format, .{number}) catch return x.noteOutOfMemory(node);
        x.note(.{ .node = node, .failure = .native, .text = text });
    }

    fn note(x: *Execution, it: Note) void {
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        // No memory even for the note: the node has failed all the same, `noteOf` says why.
        x.notes.append(x.context.gpa, it) catch x.context.gpa.free(it.text);
    }

    /// What there is to say of a node that failed without a call; null: of a callback whose failure is the binding's own.
    pub fn noteOf(x: *Execution, node: u32) ?Note {
        const attempt = x.run.attemptOf(node);
        if (attempt == 0) return .{ .node = node, .failure = .none_left };
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        for (x.notes.items) |it| if (it.node == node and (it.attempt == 0 or it.attempt == attempt)) return it;
        return if (x.plan.kind(node) == .callback) null else .{ .node = node, .failure = .out_of_memory };
    }

    // ------------------------------------------------------------------------------------------ virtual time

    pub fn busy(x: *Execution) void {
        if (x.is_virtual) x.context.timers.enter();
    }

    pub fn idle(x: *Execution, count: u32) void {
        if (x.is_virtual) for (0..count) |_| x.context.timers.leave();
    }

    // ---------------------------------------------------------------------------------------- who is told

    pub fn attach(x: *Execution, queue: *Queue, token: u64, pulls: bool) error{OutOfMemory}!void {
        const lobby = x.context.lobby;
        const attachment = try x.context.gpa.create(Attachment);
        attachment.* = .{ .queue = queue.retain(), .letter = overLetter(token) };
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        attachment.next = x.attachments;
        x.attachments = attachment;
        if (x.told) lobby.post(queue, &attachment.letter) else if (pulls) lobby.setCaller(&x.source, queue);
    }

    pub fn detach(x: *Execution, queue: *Queue) void {
        const lobby = x.context.lobby;
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        lobby.unsetCaller(&x.source, queue);
        var place = &x.attachments;
        while (place.*) |attachment| {
            if (attachment.queue == queue) {
                place.* = attachment.next;
                lobby.withdraw(&attachment.letter);
                attachment.queue.release();
                x.context.gpa.destroy(attachment);
            } else place = &attachment.next;
        }
    }

    /// The run is over: everybody who asked is told, and who asks later is told at once.
    pub fn tell(x: *Execution, by: ?*Queue) void {
        const lobby = x.context.lobby;
        x.forgetSources(by);
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        x.told = true;
        var at = x.attachments;
        while (at) |attachment| : (at = attachment.next) lobby.post(attachment.queue, &attachment.letter);
    }

    fn overLetter(token: u64) queue_file.Letter {
        return .{ .item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.run_over) } };
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
            if (x.events != null and x.run.attemptOf(node) != first) x.tellStart(node, now, true);
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
        operation.waits_for.store(.nothing, .seq_cst);
        operation.news.store(false, .seq_cst);
        if (operation.goes_on.swap(false, .acq_rel)) return x.run.goOn(node); // pairs with the dispatcher's store
        const timeout_ns = x.plan.nodes[node].timeout_ns;
        if (timeout_ns != 0) operation.timeout_ns.store(now +| timeout_ns, .release); // pairs with the load as it fires
        const entered = x.run.start(node, now);
        if (x.waits.len > 0) x.waits[node].last_started_ns = now;
        if (entered == .running and timeout_ns != 0) {
            x.retain();
            // No memory for a timer: this attempt has no other bound than its run's deadline.
            x.context.timers.add(&operation.timeout, now +| timeout_ns) catch x.release();
        }
        return entered;
    }
};
