//! The runtime: owns the clock, the timekeeper, the pool, the http engine, the lobby and the dispatcher, and takes them down
//! in order. Nothing in here starts a thread; each part starts its own with the first thing it has to do.
//!
//! ## Shutdown, in numbered steps
//!
//!  1. The dispatcher, the tickets and the exchanges refuse what is new and cancel what runs. Ready callbacks are taken back, running ones
//!     given up; transfers and backoffs are asked to end through messages to the engine.
//!  2. The engine works off its messages, ends every transfer that is left, and is joined. Messages posted later run on the
//!     thread that posts them, one at a time.
//!  3. The timekeeper is joined. Delays were cancelled in step 1, and so was every backoff; what fired meanwhile found its run
//!     stopping.
//!  4. The pool lets running tasks end, is joined, and drops what is queued: those nodes end as cancelled.
//!  5. The lobby closes: every wait delivers what is left for it and then says Shutdown.
//!
//! Each step only makes work for later ones. After step 4 every run and call is over, and has posted its news before step 5.
//!
//! ## Lifetime
//!
//! `context.references` counts the handle, every queue, execution, ticket and exchange. Whoever gives the last one back frees the
//! runtime, for a program may well keep a run's handle longer than the runtime it ran on.

const std = @import("std");
const sync = @import("base/sync.zig");
const os = @import("base/os.zig");
const call_file = @import("call/call.zig");
const clock_file = @import("base/clock.zig");
const dispatcher_file = @import("dispatcher.zig");
const engine_file = @import("http/engine.zig");
const exchange_file = @import("exchange.zig");
const execution_file = @import("execution.zig");
const gates_file = @import("gates.zig");
const pool_file = @import("pool/pool.zig");
const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");
const ticket_file = @import("ticket.zig");
const timers_file = @import("timers.zig");
const watch_file = @import("watch.zig");

const Allocator = std.mem.Allocator;

pub const Options = struct {
    worker_count: u32 = 0,
    callback_thread_max: u32 = 0,
    worker_stack_bytes: usize = 0,
    ca_file: []const u8 = &.{},
    ca_path: []const u8 = &.{},
    http_proxy: []const u8 = &.{},
    https_proxy: []const u8 = &.{},
    no_proxy: []const u8 = &.{},
    connections_max: u32 = 0,
    connections_per_origin: u32 = 0,
};

const workers_max_default = 32;
const callback_threads_default = 16;
const stack_bytes_default = 1 << 20;

pub const Runtime = struct {
    gpa: Allocator,
    clock: clock_file.Clock,
    timers: timers_file.Timers,
    pool: pool_file.Pool,
    engine: engine_file.Engine,
    lobby: lobby_file.Lobby,
    gates: gates_file.Gates,
    services: call_file.Services,
    context: execution_file.Context,
    dispatcher: dispatcher_file.Dispatcher,
    tickets: ticket_file.Tickets,
    exchanges: exchange_file.Exchanges,
    started_ns: u64,
    is_shut: sync.Atomic(bool) = .init(false),

    pub fn create(gpa: Allocator, options: Options) error{OutOfMemory}!*Runtime {
        const runtime = try gpa.create(Runtime);
        errdefer gpa.destroy(runtime);
        const workers = if (options.worker_count != 0) options.worker_count else @min(2 * os.cpuCount(), workers_max_default);
        runtime.* = .{
            .gpa = gpa,
            .clock = .init,
            .timers = .init(gpa, &runtime.clock),
            .pool = .init(gpa, .{
                .worker_count = workers,
                .stack_size = if (options.worker_stack_bytes != 0) options.worker_stack_bytes else stack_bytes_default,
            }),
            .engine = try .init(gpa, &runtime.clock, .{
                .ca_file = options.ca_file,
                .ca_path = options.ca_path,
                .http_proxy = options.http_proxy,
                .https_proxy = options.https_proxy,
                .no_proxy = options.no_proxy,
                .connections_max = options.connections_max,
                .connections_per_origin = options.connections_per_origin,
            }),
            .lobby = .{
                .gpa = gpa,
                .crew = .init(if (options.callback_thread_max != 0) options.callback_thread_max else callback_threads_default, 0),
                .arm = arm,
                .arm_context = &runtime.timers,
            },
            .gates = .{ .gpa = gpa, .timers = &runtime.timers, .engine = &runtime.engine },
            .services = .{
                .gpa = gpa,
                .clock = &runtime.clock,
                .timers = &runtime.timers,
                .engine = &runtime.engine,
                .pool = &runtime.pool,
                .gates = &runtime.gates,
                .together = .{ .gpa = gpa },
                .dice = .init(os.monotonicNs() ^ (@as(u64, os.processId()) << 32)),
            },
            .context = .{
                .gpa = gpa,
                .clock = &runtime.clock,
                .timers = &runtime.timers,
                .pool = &runtime.pool,
                .lobby = &runtime.lobby,
                .services = &runtime.services,
                .on_unreferenced = onUnreferenced,
            },
            .dispatcher = .{ .context = &runtime.context },
            .tickets = .{ .context = &runtime.context },
            .exchanges = .{ .context = &runtime.context },
            .started_ns = os.monotonicNs(),
        };
        runtime.timers.setTick(.{ .context = &runtime.lobby, .call = onTick, .period_ns = watch_file.tick_ns });
        return runtime;
    }

    /// Once, from a thread that is not waiting on a queue.
    pub fn shutdown(runtime: *Runtime) void {
        if (runtime.is_shut.swap(true, .acq_rel)) return; // pairs with itself: one caller goes on
        runtime.dispatcher.close(); // 1
        runtime.tickets.close();
        runtime.exchanges.close();
        runtime.engine.shutdown(); // 2
        runtime.timers.stop(); // 3
        runtime.pool.shutdown(); // 4
        runtime.lobby.close(); // 5
    }

    pub fn release(runtime: *Runtime) void {
        runtime.context.release();
    }

    fn onUnreferenced(context: *execution_file.Context) void {
        const runtime: *Runtime = @fieldParentPtr("context", context);
        const gpa = runtime.gpa;
        runtime.shutdown();
        runtime.lobby.deinit();
        runtime.engine.deinit();
        runtime.pool.deinit();
        runtime.timers.deinit();
        runtime.gates.deinit();
        runtime.services.together.deinit();
        gpa.destroy(runtime);
    }

    fn arm(context: *anyopaque) void {
        const timers: *timers_file.Timers = @ptrCast(@alignCast(context));
        timers.arm();
    }

    fn onTick(context: *anyopaque) bool {
        const lobby: *lobby_file.Lobby = @ptrCast(@alignCast(context));
        return watch_file.watch(lobby);
    }

    pub fn createQueue(runtime: *Runtime, kind: queue_file.Kind, token: u64) error{ OutOfMemory, Shutdown, NoDescriptor }!*queue_file.Queue {
        const queue = try runtime.lobby.createQueue(kind, token);
        runtime.context.retain();
        return queue;
    }

    /// Executions may hold the queue a little longer; they hold the runtime too.
    pub fn destroyQueue(queue: *queue_file.Queue) void {
        const runtime: *Runtime = @fieldParentPtr("lobby", lobby_file.Lobby.of(queue));
        runtime.lobby.destroyQueue(queue);
        runtime.release();
    }
};
