//! Small programs for interleave.zig: each as little as shows the race it is about. They say what must hold afterwards; that
//! nobody waits for ever and no memory is kept is asked of every program.

const std = @import("std");
const deque_file = @import("../pool/deque.zig");
const idle_file = @import("../pool/idle.zig");
const injector_file = @import("../pool/injector.zig");
const mailbox_file = @import("../base/mailbox.zig");
const memory = @import("memory.zig");
const pool_file = @import("../pool/pool.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");
const timers_file = @import("../timers.zig");
const clock_file = @import("../base/clock.zig");
const Program = @import("interleave.zig").Program;

const check = sim.check;
const checkEqual = sim.checkEqual;
const gpa = memory.gpa;

pub const programs = [_]Program{
    .{ .name = "deque: the last task, owner and thief", .run = Deques(4, 1, 1).run },
    .{ .name = "deque: the last task, owner and two thieves", .run = Deques(4, 1, 2).run },
    .{ .name = "deque: two tasks, owner and thief", .run = Deques(4, 2, 1).run },
    .{ .name = "deque: two tasks, owner and two thieves", .run = Deques(4, 2, 2).run },
    .{ .name = "deque: growth under a thief", .run = Deques(2, 3, 1).run },
    .{ .name = "deque: a slot used again under a thief", .run = reusedSlot },
    .{ .name = "mutex: two threads", .run = Mutexes(2, 1).run },
    .{ .name = "mutex: two threads, twice each", .run = Mutexes(2, 2).run },
    .{ .name = "mutex: three threads", .run = Mutexes(3, 1).run },
    .{ .name = "mailbox: two senders and a sleeping owner", .run = letters },
    .{ .name = "sleep: one worker, one submitter", .run = Sleepers(1, 1).run },
    .{ .name = "sleep: one worker, two submitters", .run = Sleepers(1, 2).run },
    .{ .name = "sleep: two workers, one submitter", .run = Sleepers(2, 1).run, .bound = 2 },
    .{ .name = "sleep: two workers, two submitters", .run = Sleepers(2, 2).run, .bound = 2 },
    .{ .name = "pool: one worker, a task, shutdown", .run = Pools(1, 1, 0).run },
    .{ .name = "pool: one worker, a task that spawns one, shutdown", .run = Pools(1, 1, 1).run },
    .{ .name = "pool: two workers, two tasks, shutdown", .run = Pools(2, 2, 0).run, .bound = 2 },
    .{ .name = "pool: shutdown against submit", .run = shutdownAgainstSubmit },
    .{ .name = "pool: a spawned task finds a sleeping worker", .run = spawnWakes, .bound = 2 },
    .{ .name = "timers: cancel against fire", .run = cancelAgainstFire },
    .{ .name = "timers: stop against add", .run = stopAgainstAdd },
};

fn spawn(name: []const u8, comptime function: anytype, args: anytype) sync.Thread {
    return sync.Thread.spawn(.{ .name = name }, function, args) catch sim.fail("a thread could not be had");
}

// --------------------------------------------------------------------------------------------------------- deque

const Item = struct { taken: u32 = 0 };

fn Deques(comptime capacity: usize, comptime count: usize, comptime thieves: usize) type {
    return struct {
        const Deque = deque_file.Deque(Item, capacity);

        fn thief(deque: *Deque) void {
            for (0..count) |_| {
                var loot: [2]*Item = undefined;
                for (loot[0..deque.stealHalf(&loot)]) |item| item.taken += 1;
            }
        }

        fn run() void {
            var items: [count]Item = @splat(.{});
            var deque = Deque.init(gpa) catch sim.fail("out of memory");
            defer deque.deinit();
            const before = @min(count, capacity);
            for (items[0..before]) |*item| deque.push(item) catch sim.fail("out of memory");
            var threads: [thieves]sync.Thread = undefined;
            for (&threads) |*thread| thread.* = spawn("thief", thief, .{&deque});
            for (items[before..]) |*item| deque.push(item) catch sim.fail("out of memory");
            while (deque.pop()) |item| item.taken += 1;
            for (threads) |thread| thread.join();
            for (&items) |*item| checkEqual(@as(u32, 1), item.taken, "times a task was taken");
        }
    };
}

/// The ring goes round while a thief has read `top` but not yet the slot: what it read there must not be taken.
fn reusedSlot() void {
    const Deque = deque_file.Deque(Item, 2);
    const Thief = struct {
        fn steal(deque: *Deque) void {
            if (deque.steal()) |item| item.taken += 1;
        }
    };
    var items: [4]Item = @splat(.{});
    var deque = Deque.init(gpa) catch sim.fail("out of memory");
    defer deque.deinit();
    deque.push(&items[0]) catch sim.fail("out of memory");
    const thread = spawn("thief", Thief.steal, .{&deque});
    for (items[1..]) |*item| {
        deque.push(item) catch sim.fail("out of memory");
        if (deque.pop()) |mine| mine.taken += 1;
        if (deque.steal()) |mine| mine.taken += 1;
    }
    while (deque.pop()) |item| item.taken += 1;
    thread.join();
    for (&items) |*item| checkEqual(@as(u32, 1), item.taken, "times a task was taken");
}

// ------------------------------------------------------------------------------------------------ mutex, mailbox

fn Mutexes(comptime threads_count: usize, comptime times: usize) type {
    return struct {
        mutex: sync.Mutex = .init,
        inside: sync.Atomic(u32) = .init(0),
        count: u32 = 0,

        fn work(it: *@This()) void {
            for (0..times) |_| {
                it.mutex.lock();
                defer it.mutex.unlock();
                checkEqual(@as(u32, 0), it.inside.swap(1, .monotonic), "threads under the lock");
                it.count += 1;
                it.inside.store(0, .monotonic);
            }
        }

        fn run() void {
            var it: @This() = .{};
            var threads: [threads_count - 1]sync.Thread = undefined;
            for (&threads) |*thread| thread.* = spawn("other", work, .{&it});
            it.work();
            for (threads) |thread| thread.join();
            checkEqual(@as(u32, threads_count * times), it.count, "entries");
            check(it.mutex.tryLock(), "the lock is free at the end");
        }
    };
}

fn letters() void {
    const Letter = struct { number: u32, next: ?*@This() = null };
    const Shared = struct {
        box: mailbox_file.Mailbox(Letter, "next") = .{},
        word: sync.Atomic(u32) = .init(0),
        letters: [3]Letter = .{ .{ .number = 0 }, .{ .number = 1 }, .{ .number = 2 } },

        fn send(shared: *@This(), from: usize, to: usize) void {
            for (shared.letters[from..to]) |*letter| if (shared.box.push(letter)) {
                _ = shared.word.fetchAdd(1, .release);
                sync.futex.wake(&shared.word, 1);
            };
        }
    };
    var shared: Shared = .{};
    const one = spawn("sender", Shared.send, .{ &shared, 0, 2 });
    const two = spawn("sender", Shared.send, .{ &shared, 2, 3 });
    var seen: [3]bool = @splat(false);
    var count: u32 = 0;
    while (count < 3) {
        const word = shared.word.load(.acquire);
        var at = shared.box.takeAll();
        if (at == null) sync.futex.wait(&shared.word, word, null) catch {};
        while (at) |letter| : (at = letter.next) {
            check(!seen[letter.number], "a letter came twice");
            check(letter.number != 1 or seen[0], "letters of one sender keep their order");
            seen[letter.number] = true;
            count += 1;
        }
    }
    one.join();
    two.join();
}

// ------------------------------------------------------------------------------------------------ the sleep protocol

fn Sleepers(comptime workers: usize, comptime submitters: usize) type {
    return struct {
        idle: idle_file.Idle = .{},
        injector: injector_file.Injector(Work) = .{},
        done: sync.Atomic(u32) = .init(0),
        stopping: sync.Atomic(bool) = .init(false),

        const Work = struct { times: u32 = 0, next: ?*Work = null };

        fn work(it: *@This()) void {
            var bed: idle_file.Bed = .{};
            _ = it.idle.beginSearch();
            while (true) {
                var work_found: [1]*Work = undefined;
                if (it.injector.take(&work_found) == 1) {
                    if (it.idle.found() and !it.injector.isEmpty()) _ = it.idle.notify();
                    work_found[0].times += 1;
                    _ = it.done.fetchAdd(1, .release);
                    sync.futex.wake(&it.done, 1);
                    _ = it.idle.beginSearch();
                    continue;
                }
                if (it.stopping.load(.seq_cst)) return;
                it.idle.lieDown(&bed);
                if (!it.injector.isEmpty() or it.stopping.load(.seq_cst)) it.idle.stayUp(&bed) else it.idle.sleep(&bed);
            }
        }

        fn submit(it: *@This(), one: *Work) void {
            it.injector.push(one);
            _ = it.idle.notify();
        }

        fn run() void {
            var it: @This() = .{};
            var tasks: [submitters]Work = @splat(.{});
            var threads: [workers]sync.Thread = undefined;
            for (&threads) |*thread| thread.* = spawn("worker", work, .{&it});
            var others: [submitters - 1]sync.Thread = undefined;
            for (&others, tasks[1..]) |*thread, *task| thread.* = spawn("submitter", submit, .{ &it, task });
            it.submit(&tasks[0]);
            while (true) {
                const seen = it.done.load(.acquire);
                if (seen == submitters) break;
                sync.futex.wait(&it.done, seen, null) catch {};
            }
            it.stopping.store(true, .seq_cst);
            for (0..workers) |_| _ = it.idle.wakeOne();
            for (threads) |thread| thread.join();
            for (others) |thread| thread.join();
            for (&tasks) |*task| checkEqual(@as(u32, 1), task.times, "times a task ran");
        }
    };
}

// ----------------------------------------------------------------------------------------------------------- pool

const Job = struct {
    task: pool_file.Task = .{ .run = ran, .drop = dropped },
    child: ?*Job = null,
    times: u32 = 0,
    drops: u32 = 0,
    left: *sync.Atomic(u32),
    /// Waits until this job has run.
    needs: ?*Job = null,

    fn ran(task: *pool_file.Task, worker: *pool_file.Worker) void {
        const job: *Job = @fieldParentPtr("task", task);
        job.times += 1;
        if (job.child) |child| worker.spawn(&child.task);
        if (job.needs) |needed| while (true) {
            const left = job.left.load(.acquire);
            if (needed.times == 1) break;
            sync.futex.wait(job.left, left, null) catch {};
        };
        job.end();
    }

    fn dropped(task: *pool_file.Task) void {
        const job: *Job = @fieldParentPtr("task", task);
        job.drops += 1;
        job.end();
    }

    fn end(job: *Job) void {
        _ = job.left.fetchSub(1, .release);
        sync.futex.wake(job.left, std.math.maxInt(u32));
    }

    fn waitForAll(left: *sync.Atomic(u32)) void {
        while (true) {
            const seen = left.load(.acquire);
            if (seen == 0) return;
            sync.futex.wait(left, seen, null) catch {};
        }
    }
};

fn Pools(comptime workers: u32, comptime jobs_count: u32, comptime children: u32) type {
    return struct {
        fn run() void {
            var left: sync.Atomic(u32) = .init(jobs_count + children);
            var child: Job = .{ .left = &left };
            var jobs: [jobs_count]Job = @splat(.{ .left = &left, .child = if (children > 0) &child else null });
            var pool: pool_file.Pool = .init(gpa, .{ .worker_count = workers });
            defer pool.deinit();
            for (&jobs) |*job| pool.submit(&job.task);
            Job.waitForAll(&left);
            pool.shutdown();
            for (&jobs) |*job| checkEqual(@as(u32, 1), job.times, "times a job ran");
            checkEqual(@as(u32, children), child.times, "times the child ran");
        }
    };
}

fn shutdownAgainstSubmit() void {
    const Other = struct {
        fn submit(pool: *pool_file.Pool, job: *Job) void {
            pool.submit(&job.task);
        }
    };
    var left: sync.Atomic(u32) = .init(1);
    var job: Job = .{ .left = &left };
    var pool: pool_file.Pool = .init(gpa, .{ .worker_count = 1 });
    defer pool.deinit();
    const other = spawn("submitter", Other.submit, .{ &pool, &job });
    pool.shutdown();
    other.join();
    checkEqual(@as(u32, 1), job.times + job.drops, "times a job ran or was dropped");
}

/// The first job waits for the second, which it spawned: only another worker can run that.
fn spawnWakes() void {
    var left: sync.Atomic(u32) = .init(2);
    var second: Job = .{ .left = &left };
    var first: Job = .{ .left = &left, .child = &second, .needs = &second };
    var pool: pool_file.Pool = .init(gpa, .{ .worker_count = 2 });
    defer pool.deinit();
    pool.submit(&first.task);
    Job.waitForAll(&left);
    pool.shutdown();
}

// --------------------------------------------------------------------------------------------------------- timers

const Alarm = struct {
    timer: timers_file.Timer = .{ .fire = fired },
    times: sync.Atomic(u32) = .init(0),

    fn fired(timer: *timers_file.Timer) void {
        const alarm: *Alarm = @fieldParentPtr("timer", timer);
        _ = alarm.times.fetchAdd(1, .release);
        sync.futex.wake(&alarm.times, 1);
    }
};

fn cancelAgainstFire() void {
    var clock: clock_file.Clock = .{ .virtual_ns = .init(1) };
    var timers: timers_file.Timers = .init(gpa, &clock);
    defer timers.deinit();
    var alarm: Alarm = .{};
    timers.add(&alarm.timer, 5) catch sim.fail("no timer");
    const cancelled = timers.cancel(&alarm.timer);
    if (!cancelled) while (alarm.times.load(.acquire) == 0) sync.futex.wait(&alarm.times, 0, null) catch {};
    timers.stop();
    checkEqual(@as(u32, if (cancelled) 0 else 1), alarm.times.load(.monotonic), "times a timer fired");
}

fn stopAgainstAdd() void {
    const Other = struct {
        fn add(timers: *timers_file.Timers, alarm: *Alarm) void {
            timers.add(&alarm.timer, 5) catch sim.fail("no timer");
            _ = timers.cancel(&alarm.timer);
        }
    };
    var clock: clock_file.Clock = .{ .virtual_ns = .init(1) };
    var timers: timers_file.Timers = .init(gpa, &clock);
    defer timers.deinit();
    var alarm: Alarm = .{};
    const other = spawn("other", Other.add, .{ &timers, &alarm });
    timers.stop();
    other.join();
    check(alarm.times.load(.monotonic) <= 1, "a timer fires once at most");
}
