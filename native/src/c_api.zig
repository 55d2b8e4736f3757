//! The C ABI: the functions of include/graphbit.h, in its order. Translates arguments and errors, decides nothing. Structs that
//! are not some room's own stand in c_structs.zig; c_api_test.zig holds every enumerator and struct against the header.

const std = @import("std");
const build_options = @import("build_options");
const admission = @import("http/admission.zig");
const told = @import("http/told.zig");
const cache_file = @import("cache.zig");
const structs = @import("c_structs.zig");
const deltas_file = @import("deltas.zig");
const events_file = @import("events.zig");
const exchange_file = @import("exchange.zig");
const execution_file = @import("execution.zig");
const intake_file = @import("intake.zig");
const limits_file = @import("limits.zig");
const lobby_file = @import("lobby.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const runtime_file = @import("runtime.zig");
const template = @import("graph/template.zig");
const ticket_file = @import("ticket.zig");
const work_file = @import("work.zig");

const Bytes = plan_file.Bytes;
const Cache = cache_file.Cache;
const Controller = admission.Controller;
const Exchange = exchange_file.Exchange;
const Execution = execution_file.Execution;
const Limits = limits_file.Limits;
const Plan = plan_file.Plan;
const Queue = queue_file.Queue;
const Runtime = runtime_file.Runtime;
const Ticket = ticket_file.Ticket;
const Value = template.Value;

const gpa = std.heap.c_allocator;

/// C: gb_status
pub const Status = enum(c_uint) {
    ok = 0,
    out_of_memory = 1,
    invalid_argument = 2,
    cycle = 3,
    shutdown = 4,
    interrupted = 5,
    timed_out = 6,
    no_thread = 7,

    const Error = error{ OutOfMemory, InvalidArgument, Cycle, Shutdown, Interrupted, TimedOut, NoThread, NoDescriptor };

    fn from(err: Error) Status {
        return switch (err) {
            error.OutOfMemory => .out_of_memory,
            error.InvalidArgument => .invalid_argument,
            error.Cycle => .cycle,
            error.Shutdown => .shutdown,
            error.Interrupted => .interrupted,
            error.TimedOut => .timed_out,
            error.NoThread, error.NoDescriptor => .no_thread,
        };
    }
};

// ------------------------------------------------------------------------------------------------------------- plan

/// C: gb_plan_create
export fn gb_plan_create(spec: *const plan_file.Spec, cycle: *plan_file.Cycle, plan: **Plan) Status {
    plan.* = Plan.create(gpa, spec, cycle) catch |err| return .from(err);
    return .ok;
}

/// C: gb_plan_destroy
export fn gb_plan_destroy(plan: *Plan) void {
    plan.release();
}

/// C: gb_plan_continuations
export fn gb_plan_continuations(plan: *const Plan, continuations: [*]u32) void {
    @memcpy(continuations, plan.continuation);
}

// ---------------------------------------------------------------------------------------------------------- runtime

/// C: gb_runtime_create
export fn gb_runtime_create(options: *const structs.RuntimeOptions, runtime: **Runtime) Status {
    runtime.* = Runtime.create(gpa, .{
        .worker_count = options.worker_count,
        .callback_thread_max = options.callback_thread_max,
        .worker_stack_bytes = options.worker_stack_bytes,
        .ca_file = options.ca_file.items(),
        .ca_path = options.ca_path.items(),
        .http_proxy = options.http_proxy.items(),
        .https_proxy = options.https_proxy.items(),
        .no_proxy = options.no_proxy.items(),
        .connections_max = options.connections_max,
        .connections_per_origin = options.connections_per_origin,
    }) catch |err| return .from(err);
    return .ok;
}

/// C: gb_runtime_shutdown
export fn gb_runtime_shutdown(runtime: *Runtime) void {
    runtime.shutdown();
}

/// C: gb_runtime_destroy
export fn gb_runtime_destroy(runtime: *Runtime) void {
    runtime.release();
}

/// C: gb_runtime_stats_read
export fn gb_runtime_stats_read(runtime: *Runtime, stats: *structs.RuntimeStats) void {
    stats.* = .of(runtime);
}

/// C: gb_http_stats_read
export fn gb_http_stats_read(runtime: *Runtime, stats: *structs.HttpStats) void {
    stats.* = .of(runtime);
}

/// C: gb_runtime_now
export fn gb_runtime_now(runtime: *Runtime) u64 {
    return runtime.clock.now();
}

/// C: gb_runtime_set_virtual
export fn gb_runtime_set_virtual(runtime: *Runtime, on: i32) void {
    runtime.timers.setVirtual(on != 0);
}

/// C: gb_version
export fn gb_version() [*:0]const u8 {
    return build_options.version;
}

/// C: gb_curl_version
export fn gb_curl_version(runtime: *Runtime) ?[*:0]const u8 {
    return runtime.engine.curlVersion();
}

/// C: gb_memory_read
export fn gb_memory_read(memory: *structs.Memory) void {
    memory.* = .read();
}

// ------------------------------------------------------------------------------------------------------------ queue

/// C: gb_queue_create
export fn gb_queue_create(runtime: *Runtime, kind: u32, token: u64, queue: **Queue) Status {
    const known = std.enums.fromInt(queue_file.Kind, kind) orelse return .invalid_argument;
    queue.* = runtime.createQueue(known, token) catch |err| return .from(err);
    return .ok;
}

/// C: gb_queue_destroy
export fn gb_queue_destroy(queue: *Queue) void {
    Runtime.destroyQueue(queue);
}

/// C: gb_queue_descriptor
export fn gb_queue_descriptor(queue: *Queue) i64 {
    return queue.descriptor();
}

/// C: gb_queue_within
export fn gb_queue_within(queue: *Queue, outer: *Queue) void {
    lobby_file.Lobby.of(queue).within(queue, outer);
}

/// C: gb_queue_wake
export fn gb_queue_wake(queue: *Queue) void {
    lobby_file.Lobby.of(queue).wake(queue);
}

fn runtimeOf(queue: *Queue) *Runtime {
    return @fieldParentPtr("lobby", lobby_file.Lobby.of(queue));
}

/// C: gb_wait
export fn gb_wait(queue: *Queue, finished: ?*const intake_file.Finished, timeout_ns: i64, news: *queue_file.News) Status {
    const runtime = runtimeOf(queue);
    var done: lobby_file.Done = .{};
    if (finished) |it| {
        intake_file.takeIn(&runtime.dispatcher, it, queue) catch |err| return .from(err);
        done = it.done();
    }
    const limit: ?u64 = if (timeout_ns < 0) null else @intCast(timeout_ns);
    runtime.lobby.wait(queue, done, limit, news) catch |err| return .from(err);
    return .ok;
}

/// C: gb_settle
export fn gb_settle(queue: *Queue, finished: *const intake_file.Finished) Status {
    const runtime = runtimeOf(queue);
    intake_file.takeIn(&runtime.dispatcher, finished, queue) catch |err| return .from(err);
    runtime.lobby.noteProgress(queue, finished.done());
    return .ok;
}

/// C: gb_queue_lend
export fn gb_queue_lend(queue: *Queue, lender: u64) i32 {
    return @intFromBool(lobby_file.Lobby.of(queue).lend(lender));
}

// -------------------------------------------------------------------------------------------------------------- run

/// C: gb_run_start
export fn gb_run_start(runtime: *Runtime, plan: *Plan, options: *const structs.RunOptions, run: **Execution) Status {
    const inputs = values(options.inputs, options.input_count) catch |err| return .from(err);
    if (options.event_capacity > events_file.Log.capacity_max) return .invalid_argument;
    runtime.dispatcher.start(plan, .{
        .queue = options.queue,
        .loop_queue = options.loop_queue,
        .token = options.token,
        .timeout_ns = options.timeout_ns,
        .keep_going = options.flags.keep_going,
        .caller_pulls = options.flags.caller_pulls,
        .inputs = inputs,
        .parent = options.parent,
        .parent_node = options.parent_node,
        .item_count = options.item_count,
        .item_live_max = options.item_live_max,
        .limits = options.limits,
        .event_capacity = options.event_capacity,
    }, run) catch |err| return .from(err);
    return .ok;
}

fn values(ptr: ?[*]const Value, count: u32) error{InvalidArgument}![]const Value {
    if (count == 0) return &.{};
    const all = (ptr orelse return error.InvalidArgument)[0..count];
    for (all) |value| _ = std.enums.fromInt(template.ValueKind, @as(u32, @bitCast(value.kind))) orelse return error.InvalidArgument;
    return all;
}

/// C: gb_run_cancel
export fn gb_run_cancel(run: *Execution) void {
    work_file.cancel(run, .cancel);
}

/// C: gb_run_attach
export fn gb_run_attach(run: *Execution, queue: *Queue, token: u64, pulls: i32) Status {
    run.audience.attach(&run.source, queue, token, pulls != 0) catch |err| return .from(err);
    return .ok;
}

/// C: gb_run_detach
export fn gb_run_detach(run: *Execution, queue: *Queue) void {
    run.audience.detach(&run.source, queue);
}

/// C: gb_run_stop_flag
export fn gb_run_stop_flag(run: *const Execution) *const u8 {
    return &run.run.stop_flag.raw;
}

/// C: gb_run_remaining
export fn gb_run_remaining(run: *const Execution) *const u32 {
    return &run.run.remaining.raw;
}

/// C: gb_run_is_over
export fn gb_run_is_over(run: *const Execution) i32 {
    return @intFromBool(run.run.isOver());
}

/// C: gb_run_summary_read
export fn gb_run_summary_read(run: *const Execution, summary: *structs.RunSummary) void {
    summary.* = .of(run);
}

/// C: gb_run_reports
export fn gb_run_reports(run: *const Execution, first: u32, count: u32, reports: [*]structs.NodeReport) Status {
    if (@as(u64, first) + count > run.run.nodes.len) return .invalid_argument;
    for (reports[0..count], first..) |*report, node| report.* = .of(run, @intCast(node));
    return .ok;
}

/// C: gb_run_waits
export fn gb_run_waits(run: *const Execution, first: u32, count: u32, waits: [*]execution_file.Waits) Status {
    if (@as(u64, first) + count > run.plan.nodes.len) return .invalid_argument;
    if (run.waits.len > 0) @memcpy(waits, run.waits[first..][0..count]) else @memset(waits[0..count], .{});
    return .ok;
}

/// C: gb_run_value
export fn gb_run_value(run: *const Execution, node: u32, value: *Value) Status {
    if (node >= run.plan.nodes.len) return .invalid_argument;
    value.* = if (run.run.stateOf(node) == .succeeded) run.outputs.values[node] else .{};
    return .ok;
}

/// C: gb_run_reply
export fn gb_run_reply(run: *const Execution, node: u32, reply: *structs.Reply) Status {
    if (node >= run.plan.nodes.len) return .invalid_argument;
    const state = run.run.stateOf(node);
    const falls_back = state == .waiting and run.plan.nodes[node].stand_in != 0; // its stand-in may ask why
    if (!state.final() and !falls_back) return .invalid_argument;
    const kind = run.plan.kind(node);
    if (kind == .request or kind == .delay) {
        if (run.operations[run.plan.place[node]].call.load(.acquire)) |call| { // pairs with the dispatcher's store
            reply.* = .of(call);
            return .ok;
        }
    } else if (kind == .callback and state != .failed and !falls_back) return .invalid_argument;
    // It never came to a call: a template failed, an attempt took too long, or memory ran out.
    const note = @constCast(run).noteOf(node) orelse return .invalid_argument;
    reply.* = .ofNote(&note);
    return .ok;
}

/// C: gb_run_release
export fn gb_run_release(run: *Execution) void {
    run.release();
}

// ----------------------------------------------------------------------------------------- events, limits, caches

/// C: gb_run_events
export fn gb_run_events(run: *Execution, events: [*]events_file.Event, capacity: u32, count: *u32, dropped: *u64) Status {
    const log = run.audience.log orelse return .invalid_argument;
    if (capacity == 0) return .invalid_argument;
    count.* = @intCast(log.take(events[0..capacity], dropped));
    return .ok;
}

/// C: gb_run_listen
export fn gb_run_listen(run: *Execution, queue: ?*Queue, token: u64) Status {
    run.audience.listen(queue, token) catch |err| return .from(err);
    return .ok;
}

/// C: gb_run_emit
export fn gb_run_emit(run: *Execution, node: u32, value: u64) i32 {
    return @intFromBool(run.audience.tell(.{ .time_ns = run.context.clock.now(), .value = value, .kind = .value, .node = node }));
}

/// C: gb_limits_create
export fn gb_limits_create(capacities: [*]const u32, count: u32, limits: **Limits) Status {
    limits.* = Limits.create(gpa, capacities[0..count]) catch |err| return .from(err);
    return .ok;
}

/// C: gb_limits_read
export fn gb_limits_read(limits: *Limits, stats: [*]limits_file.Counts, count: u32) void {
    for (stats[0..count], 0..) |*it, index| it.* = limits.read(@intCast(index));
}

/// C: gb_limits_destroy
export fn gb_limits_destroy(limits: *Limits) void {
    limits.release();
}

/// C: gb_cache_create
export fn gb_cache_create(entries_max: u32, ttl_ns: u64, cache: **Cache) Status {
    cache.* = Cache.create(gpa, entries_max, ttl_ns) catch |err| return .from(err);
    return .ok;
}

/// C: gb_cache_clear
export fn gb_cache_clear(cache: *Cache) void {
    cache.clear();
}

/// C: gb_cache_read
export fn gb_cache_read(cache: *Cache, stats: *cache_file.Stats) void {
    stats.* = cache.stats();
}

/// C: gb_cache_destroy
export fn gb_cache_destroy(cache: *Cache) void {
    cache.release();
}

// -------------------------------------------------------------------------------------------------------- admission

/// C: gb_admission_read
export fn gb_admission_read(runtime: *Runtime, index: u32, stats: *told.Stats, key: ?[*]u8, capacity: u32, length: *u32) Status {
    const room: []u8 = if (key) |it| it[0..capacity] else &.{};
    length.* = @intCast(runtime.gates.read(index, stats, room) orelse return .invalid_argument);
    return .ok;
}

/// C: gb_controller_create
export fn gb_controller_create(options: *const plan_file.Admission, controller: **Controller) Status {
    controller.* = structs.createController(gpa, options) catch |err| return .from(err);
    return .ok;
}

/// C: gb_controller_ask
export fn gb_controller_ask(controller: *Controller, now_ns: u64, body_bytes: u64, permit: *admission.Permit, until_ns: *u64) structs.Verdict {
    switch (controller.ask(now_ns, body_bytes)) {
        .go => |it| {
            permit.* = it;
            return .go;
        },
        .wait => |it| {
            until_ns.* = it;
            return .wait;
        },
        .open => |it| {
            until_ns.* = it;
            return .open;
        },
    }
}

/// C: gb_controller_settle
export fn gb_controller_settle(controller: *Controller, now_ns: u64, permit: *const admission.Permit, result: *const structs.PermitResult) Status {
    result.settle(controller, now_ns, permit) catch |err| return .from(err);
    return .ok;
}

/// C: gb_controller_read
export fn gb_controller_read(controller: *Controller, now_ns: u64, stats: *told.Stats) void {
    stats.* = told.read(controller, now_ns);
}

/// C: gb_controller_destroy
export fn gb_controller_destroy(controller: *Controller) void {
    structs.destroyController(controller);
}

// ------------------------------------------------------------------------------------------------------------- call

/// C: gb_call_start
export fn gb_call_start(
    runtime: *Runtime,
    plan: *Plan,
    request: u32,
    inputs: ?[*]const Value,
    input_count: u32,
    timeout_ns: u64,
    group: u64,
    queue: *Queue,
    token: u64,
    call: **Ticket,
) Status {
    const all = values(inputs, input_count) catch |err| return .from(err);
    call.* = runtime.tickets.start(plan, request, all, timeout_ns, group, queue, token) catch |err| return .from(err);
    return .ok;
}

/// C: gb_call_read
export fn gb_call_read(call: *Ticket, deltas: [*]deltas_file.Delta, capacity: u32, count: *u32, more: *u32) Status {
    const taken = call.take(deltas[0..capacity]) catch |err| return .from(err);
    count.* = taken.count;
    more.* = @intFromBool(taken.more);
    return .ok;
}

/// C: gb_call_cancel
export fn gb_call_cancel(call: *Ticket) void {
    call.cancel();
}

/// C: gb_call_reply
export fn gb_call_reply(call: *const Ticket, reply: *structs.Reply) Status {
    reply.* = .of(call.call);
    return .ok;
}

/// C: gb_call_release
export fn gb_call_release(call: *Ticket) void {
    call.release();
}

/// C: gb_extract
export fn gb_extract(runtime: *Runtime, plan: *Plan, request: u32, body: Bytes, stream: i32, call: **Ticket) Status {
    call.* = Ticket.read(&runtime.context, plan, request, body.items(), stream != 0) catch |err| return .from(err);
    return .ok;
}

// --------------------------------------------------------------------------------------------------------- exchange

/// C: gb_exchange_start
export fn gb_exchange_start(runtime: *Runtime, spec: *const exchange_file.Spec, queue: *Queue, token: u64, exchange: **Exchange) Status {
    exchange.* = runtime.exchanges.start(spec, queue, token) catch |err| return .from(err);
    return .ok;
}

/// C: gb_exchange_read
export fn gb_exchange_read(exchange: *Exchange, report: *exchange_file.Report) void {
    report.* = exchange.read();
}

/// C: gb_exchange_write
export fn gb_exchange_write(exchange: *Exchange, bytes: Bytes, last: i32, room: *u32) Status {
    room.* = @intFromBool(exchange.write(bytes.items(), last != 0) catch |err| return .from(err));
    return .ok;
}

/// C: gb_exchange_cancel
export fn gb_exchange_cancel(exchange: *Exchange) void {
    exchange.cancel();
}

/// C: gb_exchange_release
export fn gb_exchange_release(exchange: *Exchange) void {
    exchange.release();
}
