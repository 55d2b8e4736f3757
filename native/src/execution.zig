//! An execution: a run with hands. The Run in graph/ decides; this holds what carrying it out needs: values, operations
//! on their way, ready callbacks, who wants to be told. What is done with it stands in dispatcher.zig.
//!
//! `references` counts who keeps it alive: the handle that gb_run_start returned; the run itself, until it is over; every
//! operation on its way (a call, a timer, a task in the pool), from before it starts until whoever ended it is done with
//! what follows. Python holds its handle while it is in gb_wait with results.

const std = @import("std");
const sync = @import("base/sync.zig");
const call_file = @import("call.zig");
const clock_file = @import("base/clock.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
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
};

/// What to call when the core has carried out a node, set by the dispatcher.
pub const Hooks = struct {
    on_task: *const fn (*pool_file.Task, *pool_file.Worker) void,
    on_task_dropped: *const fn (*pool_file.Task) void,
    on_delay_over: *const fn (*timers_file.Timer) void,
    on_deadline: *const fn (*timers_file.Timer) void,
};

/// A node the core carries out itself.
pub const Operation = struct {
    execution: *Execution,
    node: u32,
    task: pool_file.Task,
    timer: timers_file.Timer,
    /// Sequentially consistent with the run's stop flag: the sweep finds the call, or the starter sees the stop.
    call: sync.Atomic(?*Call) = .init(null),
};

/// What there is to say about a node that failed before anything was sent.
pub const Note = struct { node: u32, failure: call_file.Failure, text: []const u8 };

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
    operations: []Operation,
    source: Source,
    loop_source: Source,
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
            .operations = &.{},
            .source = .{ .token = token, .ring = &.{}, .claim = claim },
            .loop_source = .{ .token = token, .ring = &.{}, .claim = claimOnLoop, .loop = options.loop_queue },
            .loop_queue = options.loop_queue,
            .deadline = .{ .fire = hooks.on_deadline },
            .is_virtual = context.timers.isVirtual(),
            .stopping_letter = .{ .item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.run_stopping) } },
        };
        errdefer x.arena.deinit();
        const arena = x.arena.allocator();
        try x.run.init(arena, plan, options.keep_going, context.clock.now());
        x.values = try arena.alloc(Value, plan.nodes.len + options.inputs.len);
        @memset(x.values, .{});
        for (x.values[plan.nodes.len..], options.inputs) |*value, input| {
            value.* = .of(input.kind, try arena.dupe(u8, input.bytes()));
        }
        x.operations = try arena.alloc(Operation, plan.operation_count);
        for (plan.operation, 0..) |place, node| if (place != plan_file.none) {
            x.operations[place] = .{
                .execution = x,
                .node = @intCast(node),
                .task = .{ .run = hooks.on_task, .drop = hooks.on_task_dropped },
                .timer = .{ .fire = hooks.on_delay_over },
            };
        };
        x.source.ring = try arena.alloc(u32, plan.callback_count);
        x.source.average_ns = plan.callback_ns.load(.monotonic);
        if (options.loop_queue != null) x.loop_source.ring = try arena.alloc(u32, plan.callback_count);
        if (options.queue) |queue| {
            x.attachments = try gpa.create(Attachment);
            x.attachments.?.* = .{ .queue = queue.retain(), .letter = overLetter(token) };
        }
        if (options.loop_queue) |queue| _ = queue.retain();
        _ = plan.retain();
        context.retain();
        return x;
    }

    pub fn retain(x: *Execution) void {
        _ = x.references.fetchAdd(1, .monotonic);
    }

    pub fn release(x: *Execution) void {
        // Acquire-release: the last one out sees every other holder's last write.
        if (x.references.fetchSub(1, .acq_rel) != 1) return;
        const context = x.context;
        const gpa = context.gpa;
        context.lobby.forget(&x.source);
        context.lobby.forget(&x.loop_source);
        context.lobby.withdraw(&x.stopping_letter);
        while (x.attachments) |attachment| {
            x.attachments = attachment.next;
            context.lobby.withdraw(&attachment.letter);
            attachment.queue.release();
            gpa.destroy(attachment);
        }
        if (x.loop_queue) |queue| queue.release();
        // A request's value lies in its call, a delay's is another's; every other output is the execution's own.
        for (x.plan.nodes, x.values[0..x.plan.nodes.len]) |node, value| {
            switch (@as(plan_file.NodeKind, @fromBackingInt(node.kind))) {
                .request, .delay => {},
                .callback, .template => gpa.free(value.bytes()),
            }
        }
        for (x.operations) |*operation| if (operation.call.raw) |call| call.release();
        for (x.notes.items) |it| gpa.free(it.text);
        x.notes.deinit(gpa);
        x.plan.release();
        x.arena.deinit();
        gpa.destroy(x);
        context.release();
    }

    pub fn operationOf(x: *Execution, node: u32) *Operation {
        return &x.operations[x.plan.operation[node]];
    }

    pub fn sourceOf(x: *Execution, node: u32) *Source {
        return if (x.plan.nodes[node].flags.loop) &x.loop_source else &x.source;
    }

    // -------------------------------------------------------------------------------------- failures without a call

    pub fn noteTemplateFailure(x: *Execution, node: u32, err: template.RenderError, diagnostics: template.Diagnostics) void {
        if (err == error.OutOfMemory) return x.noteOutOfMemory(node);
        const text = call_file.describeTemplate(x.context.gpa, err, diagnostics) catch return x.noteOutOfMemory(node);
        x.note(.{ .node = node, .failure = .template, .text = text });
    }

    pub fn noteOutOfMemory(x: *Execution, node: u32) void {
        x.note(.{ .node = node, .failure = .out_of_memory, .text = &.{} });
    }

    fn note(x: *Execution, it: Note) void {
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        // No memory even for the note: the node has failed all the same, `noteOf` says why.
        x.notes.append(x.context.gpa, it) catch x.context.gpa.free(it.text);
    }

    pub fn noteOf(x: *Execution, node: u32) Note {
        x.attach_mutex.lock();
        defer x.attach_mutex.unlock();
        for (x.notes.items) |it| if (it.node == node) return it;
        return .{ .node = node, .failure = .out_of_memory, .text = &.{} };
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
    pub fn tell(x: *Execution) void {
        const lobby = x.context.lobby;
        lobby.forget(&x.source);
        lobby.forget(&x.loop_source);
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

    fn claim(source: *Source, nodes: []const u32) void {
        const x: *Execution = @fieldParentPtr("source", source);
        x.claimNodes(nodes);
    }

    fn claimOnLoop(source: *Source, nodes: []const u32) void {
        const x: *Execution = @fieldParentPtr("loop_source", source);
        x.claimNodes(nodes);
    }

    /// A node claimed while the run is being stopped comes back unstarted: the binding looks at the stop flag first.
    fn claimNodes(x: *Execution, nodes: []const u32) void {
        const now = x.context.clock.now();
        for (nodes) |node| _ = x.run.enter(node, now);
    }
};
