//! The pool: native workers that steal from each other. Tasks are intrusive and the owner's until `run` begins.
//!
//! `submit` from a worker goes to its own deque, from any other thread to the injector. Workers start with the first task.
//! What a task hands to `follow` as the last thing it does is run by the same worker next, past the deque: a chain costs no
//! atomic operation and wakes nobody.
//! `shutdown` lets running tasks end, joins, and calls `drop` of what was queued: nothing is lost silently.

const std = @import("std");
const sync = @import("../base/sync.zig");
const clock_file = @import("../base/clock.zig");
const deque_file = @import("deque.zig");
const idle_file = @import("idle.zig");
const injector_file = @import("injector.zig");

const Allocator = std.mem.Allocator;

pub const Task = struct {
    next: ?*Task = null,
    run: *const fn (*Task, *Worker) void,
    /// Instead of `run`: the pool was shut down first, or no worker could be started.
    drop: *const fn (*Task) void,
};

pub const Options = struct {
    worker_count: u32,
    stack_size: usize = 1 << 20,
};

pub const Stats = struct { threads: u32, executed: u64, stolen: u64 };

const Deque = deque_file.Deque(Task, 256);
const loot_max = 32;
/// Every so many tasks a worker looks into the injector first, so that busy deques cannot starve it.
const injector_every = 61;
/// One worker in so many may spin before it sleeps: by default there are two to a core, and half of the cores do something else.
const workers_a_searcher = 4;

const Current = sync.Local(Pool, *Worker);

/// The worker this thread is, if it is one.
pub fn current() ?*Worker {
    return Current.get();
}

pub const Worker = struct {
    pool: *Pool,
    index: u32,
    deque: Deque,
    bed: idle_file.Bed = .{},
    thread: sync.Thread = undefined,
    executed: sync.Atomic(u64) = .init(0),
    stolen: sync.Atomic(u64) = .init(0),
    random: u64,

    /// What it runs next, ahead of its deque. Nobody else can see it.
    next: ?*Task = null,

    /// For its tasks: when they began and ended.
    watch: clock_file.Stopwatch = .{},

    /// On this worker's thread only.
    pub fn spawn(worker: *Worker, task: *Task) void {
        task.next = null;
        worker.deque.push(task) catch return worker.pool.inject(task); // the deque could not grow
        _ = worker.pool.idle.notify();
    }

    /// As `spawn` of each, at the price of one.
    pub fn spawnMany(worker: *Worker, tasks: []*Task) void {
        for (tasks) |task| task.next = null;
        worker.deque.pushMany(tasks) catch return for (tasks) |task| worker.pool.inject(task);
        _ = worker.pool.idle.notify();
    }

    /// On this worker's thread only, for the last thing that a task does: this one is run next, right here. Nobody can steal it
    /// meanwhile, so a task that goes on working calls `spawn`.
    pub fn follow(worker: *Worker, task: *Task) void {
        if (worker.next) |before| worker.spawn(before);
        task.next = null;
        worker.next = task;
    }

    fn work(worker: *Worker) void {
        Current.set(worker);
        const pool = worker.pool;
        while (worker.findWork() orelse worker.await()) |task| {
            const executed = worker.executed.load(.monotonic);
            worker.executed.store(executed + 1, .monotonic);
            task.run(task, worker);
            if (pool.stopping.load(.monotonic)) break;
        }
    }

    /// What follows, the own deque; the injector now and then.
    fn findWork(worker: *Worker) ?*Task {
        if (worker.executed.load(.monotonic) % injector_every == 0 and !worker.pool.injector.isEmpty()) {
            // Others may want what would have followed: it must not wait here for what comes from outside.
            if (worker.next) |task| {
                worker.next = null;
                worker.spawn(task);
            }
            if (worker.fromInjector()) |task| return task;
        }
        if (worker.next) |task| {
            worker.next = null;
            return task;
        }
        return worker.deque.pop();
    }

    fn fromInjector(worker: *Worker) ?*Task {
        const injector = &worker.pool.injector;
        if (injector.isEmpty()) return null;
        var loot: [loot_max]*Task = undefined;
        // A fair share, so that one worker does not walk off with everything.
        const share = @min(loot.len, injector.count.load(.monotonic) / worker.pool.workers.len + 1);
        return worker.keep(loot[0..injector.take(loot[0..share])]);
    }

    fn fromOthers(worker: *Worker) ?*Task {
        const workers = worker.pool.workers;
        worker.random = worker.random *% 6364136223846793005 +% 1442695040888963407; // Knuth's MMIX generator
        const start = (worker.random >> 33) % workers.len;
        for (0..workers.len) |i| {
            const victim = &workers[(start + i) % workers.len];
            if (victim == worker) continue;
            var loot: [loot_max]*Task = undefined;
            const count = victim.deque.stealHalf(&loot);
            if (count == 0) continue;
            _ = worker.stolen.fetchAdd(count, .monotonic);
            return worker.keep(loot[0..count]);
        }
        return null;
    }

    /// The first task is run now, the rest goes to the own deque, for others to steal.
    fn keep(worker: *Worker, tasks: []*Task) ?*Task {
        if (tasks.len <= 1) return if (tasks.len == 1) tasks[0] else null;
        // Turned round, so that the deque's owner takes them in their order.
        std.mem.reverse(*Task, tasks[1..]);
        if (worker.deque.pushMany(tasks[1..])) {
            _ = worker.pool.idle.notify(); // those who went to sleep have looked where these tasks were before, maybe
        } else |_| for (tasks[1..]) |task| worker.pool.inject(task);
        return tasks[0];
    }

    /// Searches, spins a little, sleeps; see idle.zig. Null: the pool is stopping.
    fn await(worker: *Worker) ?*Task {
        const pool = worker.pool;
        const idle = &pool.idle;
        const searching = idle.beginSearch();
        var looks = if (searching < pool.searchers_max) sync.spins(idle_file.spins) else 0;
        while (true) : (looks = sync.spins(idle_file.spins)) {
            for (0..looks) |_| {
                if (pool.stopping.load(.monotonic)) return null;
                if (worker.fromInjector() orelse worker.fromOthers()) |task| {
                    if (idle.found() and pool.hasWork()) _ = idle.notify();
                    return task;
                }
                sync.spinHint();
            }
            idle.lieDown(&worker.bed);
            if (pool.hasWork() or pool.stopping.load(.seq_cst)) idle.stayUp(&worker.bed) else idle.sleep(&worker.bed); // pairs with shutdown
        }
    }
};

pub const Pool = struct {
    gpa: Allocator,
    options: Options,
    workers: []Worker = &.{},
    injector: injector_file.Injector(Task) = .{},
    idle: idle_file.Idle = .{},
    stopping: sync.Atomic(bool) = .init(false),
    started: sync.Atomic(bool) = .init(false),
    mutex: sync.Mutex = .init, // starting and stopping
    /// Workers whose thread was started.
    running: u32 = 0,
    /// So many spin at a time.
    searchers_max: u32,

    pub fn init(gpa: Allocator, options: Options) Pool {
        return .{ .gpa = gpa, .options = options, .searchers_max = @max(1, options.worker_count / workers_a_searcher) };
    }

    pub fn deinit(pool: *Pool) void {
        for (pool.workers) |*worker| worker.deque.deinit();
        pool.gpa.free(pool.workers);
    }

    /// Any thread.
    pub fn submit(pool: *Pool, task: *Task) void {
        task.next = null;
        if (current()) |worker| if (worker.pool == pool) return worker.spawn(task);
        pool.inject(task);
    }

    /// Any thread; a list linked by `next`.
    pub fn submitList(pool: *Pool, first: *Task) void {
        if (current()) |worker| if (worker.pool == pool) {
            var at: ?*Task = first;
            while (at) |task| {
                at = task.next;
                worker.spawn(task);
            }
            return;
        };
        pool.inject(first);
    }

    fn inject(pool: *Pool, first: *Task) void {
        pool.injector.push(first);
        // Acquire: pairs with start's store, the workers are whole.
        if (!pool.started.load(.acquire)) pool.start() catch return pool.dropAll();
        if (pool.stopping.load(.seq_cst)) return pool.dropAll(); // pairs with shutdown: one of the two empties the injector
        _ = pool.idle.notify();
    }

    fn start(pool: *Pool) error{ OutOfMemory, ThreadUnavailable }!void {
        pool.mutex.lock();
        defer pool.mutex.unlock();
        if (pool.started.raw or pool.stopping.raw) return;
        const count = @max(1, pool.options.worker_count);
        const workers = try pool.gpa.alloc(Worker, count);
        var made: usize = 0;
        errdefer {
            for (workers[0..made]) |*worker| worker.deque.deinit();
            pool.gpa.free(workers);
        }
        for (workers, 0..) |*worker, index| {
            worker.* = .{ .pool = pool, .index = @intCast(index), .deque = try .init(pool.gpa), .random = index *% 0x9e3779b97f4a7c15 + 1 };
            made += 1;
        }
        // Workers see all of `workers` from their first look on; those whose thread is refused have an empty deque for ever.
        pool.workers = workers;
        errdefer pool.workers = &.{};
        var running: usize = 0;
        for (workers) |*worker| {
            worker.thread = sync.Thread.spawn(.{ .stack_size = pool.options.stack_size, .name = "gb-worker" }, Worker.work, .{worker}) catch break;
            running += 1;
        }
        if (running == 0) return error.ThreadUnavailable;
        pool.running = @intCast(running);
        pool.started.store(true, .release); // pairs with inject's load
    }

    /// Once, not from a worker.
    pub fn shutdown(pool: *Pool) void {
        pool.mutex.lock();
        pool.stopping.store(true, .seq_cst); // pairs with await's look before sleeping, and with inject
        pool.mutex.unlock();
        for (0..pool.running) |_| _ = pool.idle.wakeOne();
        for (pool.workers[0..pool.running]) |*worker| {
            // A worker that lay down after the wakes above has looked at `stopping` since.
            worker.thread.join();
        }
        pool.dropAll();
        for (pool.workers) |*worker| {
            if (worker.next) |task| task.drop(task);
            worker.next = null;
            while (worker.deque.pop()) |task| task.drop(task);
        }
    }

    fn dropAll(pool: *Pool) void {
        var tasks: [loot_max]*Task = undefined;
        while (true) {
            const count = pool.injector.take(&tasks);
            if (count == 0) return;
            for (tasks[0..count]) |task| task.drop(task);
        }
    }

    fn hasWork(pool: *Pool) bool {
        if (!pool.injector.isEmpty()) return true;
        for (pool.workers) |*worker| if (!worker.deque.isEmpty()) return true;
        return false;
    }

    pub fn stats(pool: *Pool) Stats {
        pool.mutex.lock();
        defer pool.mutex.unlock();
        var result: Stats = .{ .threads = pool.running, .executed = 0, .stolen = 0 };
        for (pool.workers) |*worker| {
            result.executed += worker.executed.load(.monotonic);
            result.stolen += worker.stolen.load(.monotonic);
        }
        return result;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const Counted = struct {
    task: Task = .{ .run = run, .drop = mustNotDrop },
    children: []Counted = &.{},
    times: sync.Atomic(u32) = .init(0),
    left: *sync.Atomic(u32),

    fn run(task: *Task, worker: *Worker) void {
        const it: *Counted = @fieldParentPtr("task", task);
        _ = it.times.fetchAdd(1, .monotonic);
        for (it.children) |*child| worker.spawn(&child.task);
        const left = it.left;
        if (left.fetchSub(1, .release) == 1) sync.futex.wake(left, 1); // pairs with waitForZero
    }

    fn waitForZero(left: *sync.Atomic(u32)) void {
        while (true) {
            const seen = left.load(.acquire); // pairs with run
            if (seen == 0) return;
            sync.futex.wait(left, seen, null) catch {};
        }
    }

    fn mustNotDrop(_: *Task) void {
        unreachable;
    }
};

test "every task runs exactly once, spawned from inside and from outside" {
    const parents = 200;
    const each = 50;
    var left: sync.Atomic(u32) = .init(parents * (each + 1));
    const children = try testing.allocator.alloc(Counted, parents * each);
    defer testing.allocator.free(children);
    for (children) |*child| child.* = .{ .left = &left };
    var roots: [parents]Counted = undefined;
    for (&roots, 0..) |*root, i| root.* = .{ .left = &left, .children = children[i * each ..][0..each] };

    var pool: Pool = .init(testing.allocator, .{ .worker_count = 3 });
    defer pool.deinit();
    for (&roots) |*root| pool.submit(&root.task);
    Counted.waitForZero(&left);
    pool.shutdown();
    for (&roots) |*root| try testing.expectEqual(1, root.times.load(.monotonic));
    for (children) |*child| try testing.expectEqual(1, child.times.load(.monotonic));
    try testing.expectEqual(parents * (each + 1), pool.stats().executed);
}

test "tasks submitted after shutdown are dropped, not lost" {
    const Dropper = struct {
        var dropped: u32 = 0;
        fn drop(_: *Task) void {
            dropped += 1;
        }
    };
    var left: sync.Atomic(u32) = .init(1);
    var pool: Pool = .init(testing.allocator, .{ .worker_count = 1 });
    defer pool.deinit();
    pool.shutdown();
    var task: Counted = .{ .left = &left };
    task.task.drop = Dropper.drop;
    pool.submit(&task.task);
    try testing.expectEqual(1, Dropper.dropped);
}

test "an idle pool comes back for one task after another" {
    var pool: Pool = .init(testing.allocator, .{ .worker_count = 2 });
    defer pool.deinit();
    for (0..300) |_| {
        var left: sync.Atomic(u32) = .init(1);
        var task: Counted = .{ .left = &left };
        pool.submit(&task.task);
        Counted.waitForZero(&left);
    }
    pool.shutdown();
}

test "what follows runs next on the same worker, past the deque" {
    const Link = struct {
        task: Task = .{ .run = run, .drop = Counted.mustNotDrop },
        after: ?*@This() = null,
        aside: ?*Counted = null,
        on: ?*Worker = null,
        left: *sync.Atomic(u32),

        fn run(task: *Task, worker: *Worker) void {
            const it: *@This() = @fieldParentPtr("task", task);
            it.on = worker;
            if (it.aside) |aside| worker.spawn(&aside.task);
            if (it.after) |after| worker.follow(&after.task);
            const left = it.left;
            if (left.fetchSub(1, .release) == 1) sync.futex.wake(left, 1); // pairs with waitForZero
        }
    };
    var left: sync.Atomic(u32) = .init(4);
    var aside: Counted = .{ .left = &left };
    var links: [3]Link = @splat(.{ .left = &left });
    links[0].after = &links[1];
    links[1].after = &links[2];
    links[1].aside = &aside;
    var pool: Pool = .init(testing.allocator, .{ .worker_count = 3 });
    defer pool.deinit();
    pool.submit(&links[0].task);
    Counted.waitForZero(&left);
    pool.shutdown();
    try testing.expect(links[0].on != null and links[0].on == links[1].on and links[1].on == links[2].on);
    try testing.expectEqual(1, aside.times.load(.monotonic));
}
