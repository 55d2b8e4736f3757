//! Structs of include/graphbit.h that no other room has as its own, and what they are filled with. Their functions stand in
//! c_api.zig; c_api_test.zig holds both against the header.

const std = @import("std");
const admission = @import("http/admission.zig");
const call_file = @import("call/call.zig");
const execution_file = @import("execution.zig");
const head = @import("http/head.zig");
const items = @import("items.zig");
const latency = @import("http/latency.zig");
const limits_file = @import("limits.zig");
const notes_file = @import("notes.zig");
const os = @import("base/os.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const retry = @import("graph/retry.zig");
const run_file = @import("graph/run.zig");
const runtime_file = @import("runtime.zig");
const template = @import("graph/template.zig");

const Bytes = plan_file.Bytes;
const Execution = execution_file.Execution;
const Limits = limits_file.Limits;
const Queue = queue_file.Queue;
const Runtime = runtime_file.Runtime;
const Value = template.Value;

/// C: gb_runtime_options
pub const RuntimeOptions = extern struct {
    worker_count: u32,
    callback_thread_max: u32,
    worker_stack_bytes: usize,
    ca_file: Bytes,
    ca_path: Bytes,
    http_proxy: Bytes,
    https_proxy: Bytes,
    no_proxy: Bytes,
    connections_max: u32,
    connections_per_origin: u32,
};

/// C: gb_runtime_stats
pub const RuntimeStats = extern struct {
    worker_threads: u32,
    callback_threads: u32,
    callback_threads_parked: u32,
    http_threads: u32,
    timer_threads: u32,
    callback_threads_abandoned: u32,
    callback_threads_hard_max: u32,
    runs_active: u32,
    calls_active: u32,
    runs_started: u64,
    nodes_settled: u64,
    tasks_executed: u64,
    tasks_stolen: u64,
    requests_started: u64,
    requests_in_flight: u64,
    requests_queued: u64,
    requests_retried: u64,
    connections_opened: u64,
    connections_reused: u64,
    bytes_received: u64,
    bytes_sent: u64,
    started_ns: u64,

    pub fn of(runtime: *Runtime) RuntimeStats {
        const pool = runtime.pool.stats();
        const threads = runtime.lobby.threadCounts();
        const runs = runtime.dispatcher.counts();
        const http = runtime.engine.readStats();
        return .{
            .worker_threads = pool.threads,
            .callback_threads = threads.threads,
            .callback_threads_parked = threads.parked,
            .callback_threads_abandoned = threads.abandoned,
            .callback_threads_hard_max = threads.hard_max,
            .http_threads = runtime.engine.threadCount(),
            .timer_threads = runtime.timers.threadCount(),
            .runs_active = runs.active,
            .calls_active = runtime.tickets.count() + runtime.exchanges.count(),
            .runs_started = runs.started,
            .nodes_settled = runtime.context.nodes_settled.load(.monotonic),
            .tasks_executed = pool.executed,
            .tasks_stolen = pool.stolen,
            .requests_started = http.started,
            .requests_in_flight = http.in_flight,
            .requests_queued = http.queued,
            .requests_retried = runtime.services.retriedInAll(),
            .connections_opened = http.connections_opened,
            .connections_reused = http.connections_reused,
            .bytes_received = http.bytes_received,
            .bytes_sent = http.bytes_sent,
            .started_ns = runtime.started_ns,
        };
    }
};

/// C: gb_http_stats
pub const HttpStats = extern struct {
    started: u64,
    in_flight: u64,
    queued: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    connections_open: u64,
    connections_opened: u64,
    connections_reused: u64,
    bytes_sent: u64,
    bytes_received: u64,
    retries: [retry.reason_count]u64,
    first_byte: Latency,
    total: Latency,

    /// C: gb_latency
    pub const Latency = latency.Snapshot;

    pub fn of(runtime: *Runtime) HttpStats {
        const http = runtime.engine.readStats();
        var stats: HttpStats = undefined;
        inline for (@typeInfo(@TypeOf(http)).@"struct".field_names) |name| @field(stats, name) = @field(http, name);
        for (&stats.retries, &runtime.services.retried) |*to, *from| to.* = from.load(.monotonic);
        return stats;
    }
};

/// C: gb_memory
pub const Memory = extern struct {
    resident: u64,
    available: u64,
    total: u64,

    pub fn read() Memory {
        return .{
            .resident = os.residentBytes(),
            .available = os.availableMemoryBytes(),
            .total = os.totalMemoryBytes(),
        };
    }
};

const RunFlags = packed struct(u32) { keep_going: bool, caller_pulls: bool, _: u30 };

/// C: gb_run_options
pub const RunOptions = extern struct {
    queue: ?*Queue,
    loop_queue: ?*Queue,
    token: u64,
    timeout_ns: u64,
    flags: RunFlags,
    input_count: u32,
    inputs: ?[*]const Value,
    parent: ?*Execution,
    parent_node: u32,
    item_count: u32,
    item_live_max: u32,
    event_capacity: u32,
    limits: ?*Limits,
};

/// C: gb_run_summary
pub const RunSummary = extern struct {
    over: u32,
    cause: u32,
    first_failed: u32,
    counts: [8]u32,
    started_ns: u64,
    ended_ns: u64,

    pub fn of(run: *const Execution) RunSummary {
        const it = &run.run;
        const over = it.isOver();
        return .{
            .over = @intFromBool(over),
            .cause = @backingInt(it.cause.load(.acquire)),
            .first_failed = it.first_failed.load(.monotonic),
            .counts = if (run.items.total > 0) items.counts(run) else it.counts(),
            .started_ns = it.started_ns,
            .ended_ns = if (over) it.ended_ns else 0,
        };
    }
};

/// C: gb_node_report
pub const NodeReport = extern struct {
    ready_ns: u64,
    started_ns: u64,
    ended_ns: u64,
    state: u32,
    attempts: u32,

    pub fn of(run: *const Execution, node: u32) NodeReport {
        const it = &run.run.nodes[node];
        return .{
            .state = @backingInt(it.read().state),
            .attempts = attemptsOf(run, node, it.read()),
            .ready_ns = it.ready_ns,
            .started_ns = it.started_ns,
            .ended_ns = it.ended_ns,
        };
    }

    /// A request's attempts are its call's.
    fn attemptsOf(run: *const Execution, node: u32, word: run_file.Word) u32 {
        if (word.attempt == 0 or run.plan.kind(node) != .request) return word.attempt;
        const call = run.operations[run.plan.place[node]].call.load(.acquire) orelse return word.attempt; // pairs with the store in operations.zig
        return @max(word.attempt, call.attempts);
    }
};

/// C: gb_reply
pub const Reply = extern struct {
    failure: u32,
    http_status: u32,
    attempts: u32,
    tool_call_count: u32,
    text: Bytes,
    reasoning: Bytes,
    model: Bytes,
    id: Bytes,
    finish: Bytes,
    error_message: Bytes,
    error_type: Bytes,
    error_code: Bytes,
    detail: Bytes,
    body: Bytes,
    request_id: Bytes,
    tool_calls: ?[*]const ToolCall,
    prompt_tokens: i64,
    completion_tokens: i64,
    total_tokens: i64,
    cache_read_tokens: i64,
    cache_creation_tokens: i64,
    reasoning_tokens: i64,
    retry_after_ms: i64,
    started_ns: u64,
    first_byte_ns: u64,
    ended_ns: u64,
    bytes_sent: u64,
    bytes_received: u64,

    pub fn of(asked: *const call_file.Call) Reply {
        const call = asked.told();
        const transfer = &call.transfer;
        const reply = &call.reply;
        const keep_body = call.failure != .none or call.request.flags.keep_body;
        const tools = reply.toolCalls();
        return .{
            .failure = @backingInt(call.failure),
            .http_status = transfer.status,
            .attempts = call.attempts,
            .tool_call_count = @intCast(tools.len),
            .text = .from(reply.text.items()),
            .reasoning = .from(reply.reasoning.items()),
            .model = .from(reply.model.items()),
            .id = .from(reply.id.items()),
            .finish = .from(reply.finish.items()),
            .error_message = .from(reply.error_message.items()),
            .error_type = .from(reply.error_type.items()),
            .error_code = .from(reply.error_code.items()),
            .detail = .from(call.detail.items),
            .body = if (keep_body) .from(call.receivedBody()) else .{},
            .request_id = .from(transfer.request_id),
            .tool_calls = @ptrCast(tools.ptr),
            .prompt_tokens = reply.prompt_tokens,
            .completion_tokens = reply.completion_tokens,
            .total_tokens = reply.total_tokens,
            .cache_read_tokens = reply.cache_read_tokens,
            .cache_creation_tokens = reply.cache_creation_tokens,
            .reasoning_tokens = reply.reasoning_tokens,
            .retry_after_ms = transfer.retry_after_ms,
            .started_ns = transfer.started_ns,
            .first_byte_ns = transfer.first_byte_ns,
            .ended_ns = transfer.ended_ns,
            .bytes_sent = transfer.bytes_sent,
            .bytes_received = transfer.bytes_received,
        };
    }

    /// Of a node that never came to a call.
    pub fn ofNote(note: *const notes_file.Note) Reply {
        var reply = std.mem.zeroes(Reply);
        reply.failure = @backingInt(note.failure);
        reply.detail = .from(note.text);
        inline for (.{
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
            "cache_read_tokens",
            "cache_creation_tokens",
            "reasoning_tokens",
            "retry_after_ms",
        }) |name| @field(reply, name) = -1;
        return reply;
    }
};

/// C: gb_tool_call
pub const ToolCall = extern struct { id: Bytes, name: Bytes, arguments: Bytes };

// -------------------------------------------------------------------------------------------------------- admission

/// C: gb_verdict
pub const Verdict = enum(u32) { go = 0, wait = 1, open = 2 };

pub fn createController(gpa: std.mem.Allocator, options: *const plan_file.Admission) error{OutOfMemory}!*admission.Controller {
    const controller = try gpa.create(admission.Controller);
    controller.* = .{ .gpa = gpa };
    errdefer destroyController(controller);
    _ = try controller.configure(0, &.{
        .flags = @bitCast(options.flags),
        .concurrency = options.concurrency,
        .requests_per_minute = options.requests_per_minute,
        .tokens_per_minute = options.tokens_per_minute,
    });
    return controller;
}

pub fn destroyController(controller: *admission.Controller) void {
    const gpa = controller.gpa;
    controller.deinit();
    gpa.destroy(controller);
}

/// C: gb_permit_result
pub const PermitResult = extern struct {
    ending: u32,
    unsent: u32,
    retry_after_ms: i64,
    input_tokens: i64,
    output_tokens: i64,
    body_bytes: u64,
    dice: u64,
    head: Bytes,

    pub fn settle(result: *const PermitResult, controller: *admission.Controller, now_ns: u64, permit: *const admission.Permit) error{ OutOfMemory, InvalidArgument }!void {
        var announced: admission.Announced = .{};
        var lines = std.mem.tokenizeAny(u8, result.head.items(), "\r\n");
        while (lines.next()) |line| announced.take(head.field(line) orelse continue, os.unixSeconds());
        _ = try controller.settle(now_ns, permit, &.{
            .ending = std.enums.fromInt(admission.Ending, result.ending) orelse return error.InvalidArgument,
            .unsent = result.unsent != 0,
            .retry_after_ms = result.retry_after_ms,
            .input_tokens = result.input_tokens,
            .output_tokens = result.output_tokens,
            .body_bytes = result.body_bytes,
            .dice = result.dice,
            .announced = &announced,
        });
    }
};
