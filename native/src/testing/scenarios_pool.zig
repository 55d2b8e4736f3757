//! Scenarios about the pool and how its workers sleep. A lost wake shows as a deadlock: whoever waits here sets no deadline.

const std = @import("std");
const memory = @import("memory.zig");
const pool_file = @import("../pool/pool.zig");
const scenarios = @import("scenarios.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");

const Pool = pool_file.Pool;
const Worker = pool_file.Worker;
const between = scenarios.between;
const oneIn = scenarios.oneIn;

pub const all = [_]scenarios.Scenario{
    .{ .name = "pool: trees of tasks, to their end", .run = trees },
    .{ .name = "pool: shut down in the middle", .run = shutDown },
    .{ .name = "pool: no threads, no memory", .run = scarce },
    .{ .name = "pool: tasks that need each other at once", .run = together },
};

const jobs_max = 40;

const Shared = struct {
    pool: Pool,
    jobs: [jobs_max]Job = undefined,
    count: usize,
    left: sync.Atomic(u32),
    inside: u32 = 0,
    inside_max: u32 = 0,

    /// A forest: every job but the first `roots` hangs below an earlier one.
    fn init(shared: *Shared, workers: u32, roots: usize) void {
        shared.* = .{
            .pool = .init(memory.gpa, .{ .worker_count = workers }),
            .count = @max(roots, between(1, jobs_max)),
            .left = .init(0),
        };
        shared.left.raw = @intCast(shared.count);
        const manner = between(0, 3);
        for (shared.jobs[0..shared.count], 0..) |*job, i| {
            job.* = .{ .shared = shared, .follows = oneIn(2) };
            if (i < roots) continue;
            const parent = &shared.jobs[if (manner == 0) i - 1 else between(0, @intCast(i - 1))];
            job.sibling = parent.child;
            parent.child = job;
        }
    }

    fn submit(shared: *Shared, from: usize, to: usize, as_list: bool) void {
        if (!as_list) {
            for (shared.jobs[from..to]) |*job| shared.pool.submit(&job.task);
        } else {
            for (from..to) |i| shared.jobs[i].task.next = if (i + 1 < to) &shared.jobs[i + 1].task else null;
            if (from < to) shared.pool.submitList(&shared.jobs[from].task);
        }
    }

    fn waitForAll(shared: *Shared) void {
        while (true) {
            const seen = shared.left.load(.acquire);
            if (seen == 0) return;
            sync.futex.wait(&shared.left, seen, null) catch {};
        }
    }
};

const Job = struct {
    task: pool_file.Task = .{ .run = ran, .drop = dropped },
    shared: *Shared,
    child: ?*Job = null,
    sibling: ?*Job = null,
    times: u32 = 0,
    drops: u32 = 0,
    /// Its last child is run by the same worker next.
    follows: bool,

    fn ran(task: *pool_file.Task, worker: *Worker) void {
        const job: *Job = @fieldParentPtr("task", task);
        const shared = job.shared;
        sim.check(pool_file.current() == worker, "a worker knows itself");
        job.times += 1;
        shared.inside += 1;
        shared.inside_max = @max(shared.inside_max, shared.inside);
        var at = job.child;
        while (at) |child| {
            at = child.sibling;
            if (at == null and job.follows) {
                worker.follow(&child.task);
            } else if (oneIn(2)) worker.spawn(&child.task) else shared.pool.submit(&child.task);
        }
        sync.yield();
        shared.inside -= 1;
        job.end();
    }

    /// What hangs below it will never be.
    fn dropped(task: *pool_file.Task) void {
        const job: *Job = @fieldParentPtr("task", task);
        job.drops += 1;
        var at = job.child;
        while (at) |child| {
            at = child.sibling;
            dropped(&child.task);
        }
        job.end();
    }

    fn end(job: *Job) void {
        _ = job.shared.left.fetchSub(1, .release);
        sync.futex.wake(&job.shared.left, std.math.maxInt(u32));
    }
};

fn trees() void {
    var shared: Shared = undefined;
    const workers = between(1, 4);
    const roots = between(1, 6);
    shared.init(workers, roots);
    const cut = between(0, roots);
    const other = scenarios.spawn("submitter", Shared.submit, .{ &shared, 0, cut, oneIn(2) });
    shared.submit(cut, roots, oneIn(2));
    shared.waitForAll();
    other.join();
    shared.pool.shutdown();
    for (shared.jobs[0..shared.count]) |*job| sim.check(job.times == 1 and job.drops == 0, "every task runs once");
    sim.checkEqual(@as(u64, shared.count), shared.pool.stats().executed, "tasks executed");
    sim.check(shared.inside_max <= workers, "no more tasks run at once than there are workers");
    shared.pool.deinit();
}

fn shutDown() void {
    var shared: Shared = undefined;
    const roots = between(1, 8);
    shared.init(between(1, 3), roots);
    const cut = between(0, roots);
    const other = scenarios.spawn("submitter", Shared.submit, .{ &shared, 0, cut, oneIn(2) });
    shared.submit(cut, roots, oneIn(2));
    for (0..between(0, 60)) |_| sync.yield();
    shared.pool.shutdown();
    other.join();
    sim.checkEqual(@as(u32, 0), shared.left.load(.acquire), "tasks that neither ran nor were dropped");
    for (shared.jobs[0..shared.count]) |*job| sim.checkEqual(@as(u32, 1), job.times + job.drops, "times a task ran or was dropped");
    shared.pool.deinit();
}

/// Threads that cannot be started and memory that cannot be had: tasks may be dropped, never lost.
fn scarce() void {
    var shared: Shared = undefined;
    const roots = between(1, 4);
    shared.init(between(1, 4), roots);
    if (oneIn(2)) memory.fails_one_in = between(1, 6);
    if (oneIn(2)) sim.the.spawn_fails_one_in = between(1, 3);
    shared.submit(0, roots, false);
    shared.waitForAll();
    shared.pool.shutdown();
    for (shared.jobs[0..shared.count]) |*job| sim.checkEqual(@as(u32, 1), job.times + job.drops, "times a task ran or was dropped");
    shared.pool.deinit();
}

const Meeting = struct {
    guests: [4]Guest = undefined,
    count: u32,
    arrived: sync.Atomic(u32) = .init(0),
    left: sync.Atomic(u32),
};

const Guest = struct {
    task: pool_file.Task = .{ .run = ran, .drop = dropped },
    meeting: *Meeting,
    brings: []Guest = &.{},

    fn ran(task: *pool_file.Task, worker: *Worker) void {
        const guest: *Guest = @fieldParentPtr("task", task);
        const meeting = guest.meeting;
        for (guest.brings) |*other| worker.spawn(&other.task);
        _ = meeting.arrived.fetchAdd(1, .acq_rel);
        sync.futex.wake(&meeting.arrived, std.math.maxInt(u32));
        while (true) {
            const seen = meeting.arrived.load(.acquire);
            if (seen == meeting.count) break;
            sync.futex.wait(&meeting.arrived, seen, null) catch {};
        }
        _ = meeting.left.fetchSub(1, .release);
        sync.futex.wake(&meeting.left, 1);
    }

    fn dropped(_: *pool_file.Task) void {
        sim.fail("a task was dropped by a pool that nobody shut down");
    }
};

/// As many tasks as there are workers, each of which waits until all have begun: one wake too few and they wait for ever.
fn together() void {
    const count = between(2, 4);
    var pool: Pool = .init(memory.gpa, .{ .worker_count = count });
    for (0..between(1, 2)) |_| {
        var meeting: Meeting = .{ .count = count, .left = .init(count) };
        for (meeting.guests[0..count]) |*guest| guest.* = .{ .meeting = &meeting };
        if (oneIn(2)) meeting.guests[0].brings = meeting.guests[1..count];
        const from_outside = if (meeting.guests[0].brings.len > 0) 1 else count;
        for (meeting.guests[0..from_outside]) |*guest| pool.submit(&guest.task);
        while (true) {
            const seen = meeting.left.load(.acquire);
            if (seen == 0) break;
            sync.futex.wait(&meeting.left, seen, null) catch {};
        }
    }
    pool.shutdown();
    pool.deinit();
}
