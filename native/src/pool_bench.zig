//! What a task costs: tasks and nodes that do nothing, spawned from inside the pool, on one worker and on two.
//!
//!     zig build pool-bench [-- tasks]         nanoseconds, median and least of some rounds

const std = @import("std");
const os = @import("base/os.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const storm_file = @import("testing/storm.zig");
const sync = @import("base/sync.zig");

pub const std_options: std.Options = .{ .signal_stack_size = null };

const Pool = pool_file.Pool;
const Task = pool_file.Task;
const Worker = pool_file.Worker;
const rounds = 7;

const Shape = enum {
    /// One task spawns all the others.
    flat,
    /// Each spawns two, down to the leaves.
    tree,
    /// Each spawns two, the second to be run next.
    tree_follow,
    /// Each is followed by one.
    chain,
};

const Bench = struct {
    pool: Pool,
    shape: Shape,
    jobs: []Job,
    left: sync.Atomic(usize) align(sync.cache_line),
    over: sync.Atomic(u32) align(sync.cache_line) = .init(0),

    const Job = struct {
        task: Task = .{ .run = ran, .drop = dropped },
        bench: *Bench,
        times: u32 = 0,

        fn ran(task: *Task, worker: *Worker) void {
            const job: *Job = @fieldParentPtr("task", task);
            const bench = job.bench;
            job.times += 1;
            const number = job - bench.jobs.ptr;
            switch (bench.shape) {
                .flat => if (number == 0) for (bench.jobs[1..]) |*other| worker.spawn(&other.task),
                .chain => if (number + 1 < bench.jobs.len) worker.follow(&bench.jobs[number + 1].task) else bench.end(),
                .tree => {
                    if (2 * number + 1 < bench.jobs.len) worker.spawn(&bench.jobs[2 * number + 1].task);
                    if (2 * number + 2 < bench.jobs.len) worker.spawn(&bench.jobs[2 * number + 2].task);
                },
                .tree_follow => {
                    if (2 * number + 1 < bench.jobs.len) worker.spawn(&bench.jobs[2 * number + 1].task);
                    if (2 * number + 2 < bench.jobs.len) worker.follow(&bench.jobs[2 * number + 2].task);
                },
            }
        }

        fn dropped(_: *Task) void {
            unreachable;
        }
    };

    fn end(bench: *Bench) void {
        bench.over.store(1, .release);
        sync.futex.wake(&bench.over, 1);
    }
};

fn measure(gpa: std.mem.Allocator, shape: Shape, workers: u32, count: usize) !Figures {
    const jobs = try gpa.alloc(Bench.Job, count);
    defer gpa.free(jobs);
    var bench: Bench = .{ .pool = .init(gpa, .{ .worker_count = workers }), .shape = shape, .jobs = jobs, .left = .init(0) };
    defer bench.pool.deinit();
    defer bench.pool.shutdown();
    var times: [rounds]u64 = undefined;
    for (&times) |*time| {
        for (jobs) |*job| job.* = .{ .bench = &bench };
        const executed = bench.pool.stats().executed;
        bench.over.store(0, .monotonic);
        const start = os.monotonicNs();
        bench.pool.submit(&jobs[0].task);
        // The tasks count nothing, so that what is measured is the pool. The chain's last says so; of the others the pool knows.
        if (shape == .chain) {
            while (bench.over.load(.acquire) == 0) sync.futex.wait(&bench.over, 0, null) catch {};
        } else while (bench.pool.stats().executed < executed + count) sync.futex.wait(&bench.over, bench.over.raw, 50_000) catch {};
        time.* = os.monotonicNs() - start;
    }
    var sum: u64 = 0;
    for (jobs) |*job| sum += job.times;
    if (sum != count) return error.NotAllDone;
    return .of(&times, count);
}

fn measureNodes(gpa: std.mem.Allocator, workers: u32, layers: u32, width: u32) !Figures {
    var pool: Pool = .init(gpa, .{ .worker_count = workers });
    defer pool.deinit();
    defer pool.shutdown();
    var storm: storm_file.Storm = undefined;
    try storm.init(gpa, layers, width);
    defer storm.deinit(gpa);
    var times: [rounds]u64 = undefined;
    for (&times) |*time| time.* = try storm.run(gpa, &pool);
    try storm.verify();
    return .of(&times, layers * width);
}

/// From a submission until the submitter knows that the task ran, `pause_ns` after the one before: the worker still spins, or sleeps.
/// The submitter spins, so that only one wake is measured.
fn measureTrips(gpa: std.mem.Allocator, workers: u32, pause_ns: u64) Figures {
    const Trip = struct {
        task: Task = .{ .run = ran, .drop = Bench.Job.dropped },
        done: sync.Atomic(bool) = .init(false),

        fn ran(task: *Task, _: *Worker) void {
            const trip: *@This() = @fieldParentPtr("task", task);
            trip.done.store(true, .release);
        }
    };
    var pool: Pool = .init(gpa, .{ .worker_count = workers });
    defer pool.deinit();
    defer pool.shutdown();
    const trips = 200;
    var times: [rounds]u64 = undefined;
    for (&times) |*time| {
        time.* = 0;
        for (0..trips) |_| {
            const until = os.monotonicNs() + pause_ns;
            while (os.monotonicNs() < until) sync.spinHint();
            var trip: Trip = .{};
            const start = os.monotonicNs();
            pool.submit(&trip.task);
            while (!trip.done.load(.acquire)) sync.spinHint(); // pairs with ran
            time.* += os.monotonicNs() - start;
        }
    }
    return .of(&times, trips);
}

const Figures = struct {
    median: f64,
    least: f64,

    fn of(times: *[rounds]u64, count: usize) Figures {
        std.mem.sort(u64, times, {}, std.sort.asc(u64));
        const each = @as(f64, @floatFromInt(count));
        return .{ .median = @as(f64, @floatFromInt(times[rounds / 2])) / each, .least = @as(f64, @floatFromInt(times[0])) / each };
    }

    fn print(figures: Figures, workers: u32, what: []const u8) void {
        std.debug.print("{d} worker(s)  {s:<12} {d:>6.1} ns  ({d:.1})\n", .{ workers, what, figures.median, figures.least });
    }
};

pub fn main(init: std.process.Init) !void {
    const args = try init.minimal.args.toSlice(init.arena.allocator());
    const count = if (args.len > 1) try std.fmt.parseInt(u32, args[1], 10) else 1_000_000;
    const gpa = std.heap.c_allocator;
    for ([_]u32{ 1, 2 }) |workers| {
        for (std.enums.values(Shape)) |shape| (try measure(gpa, shape, workers, count)).print(workers, @tagName(shape));
        (try measureNodes(gpa, workers, count, 1)).print(workers, "node chain");
        (try measureNodes(gpa, workers, @max(1, count / 1000), 1000)).print(workers, "node layers");
        measureTrips(gpa, workers, 1_000).print(workers, "trip, awake");
        measureTrips(gpa, workers, 300_000).print(workers, "trip, asleep");
    }
}
