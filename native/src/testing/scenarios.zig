//! Scenarios for the dice: rooms of the core with random parameters, all of them drawn from `parameters`. Capacities are
//! tiny, so that what is rare is common. Everything is counted: what went in came out, once.

const std = @import("std");
const deque_file = @import("../pool/deque.zig");
const injector_file = @import("../pool/injector.zig");
const mailbox_file = @import("../base/mailbox.zig");
const memory = @import("memory.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");

const check = sim.check;
const checkEqual = sim.checkEqual;
const gpa = memory.gpa;

pub const Scenario = struct { name: []const u8, run: *const fn () void };

pub const all = [_]Scenario{
    .{ .name = "deque: owner and thieves", .run = deque },
    .{ .name = "injector: submitters and workers", .run = injector },
    .{ .name = "mailbox: senders and a sleeping owner", .run = mailbox },
    .{ .name = "mutex: threads and tries", .run = mutex },
} ++ @import("scenarios_pool.zig").all ++ @import("scenarios_time.zig").all ++ @import("scenarios_graph.zig").all;

/// Parameters of scenarios; the interleaving has dice of its own, so that one can be changed without the other.
pub var parameters: std.Random.DefaultPrng = .init(0);

pub fn between(least: u32, most: u32) u32 {
    return parameters.random().intRangeAtMost(u32, least, most);
}

pub fn oneIn(count: u32) bool {
    return parameters.random().uintLessThan(u32, count) == 0;
}

pub fn spawn(name: []const u8, comptime function: anytype, args: anytype) sync.Thread {
    const fails = sim.the.spawn_fails_one_in;
    sim.the.spawn_fails_one_in = 0;
    defer sim.the.spawn_fails_one_in = fails;
    return sync.Thread.spawn(.{ .name = name }, function, args) catch unreachable;
}

// --------------------------------------------------------------------------------------------------------- deque

const Item = struct { number: u32 = 0, taken: u32 = 0, next: ?*Item = null };

fn deque() void {
    const Deque = deque_file.Deque(Item, 4);
    const Shared = struct {
        deque: Deque,
        done: sync.Atomic(bool) = .init(false),
        portion: u32,

        fn thief(shared: *@This()) void {
            var last: ?u32 = null;
            while (true) {
                const done = shared.done.load(.acquire);
                var loot: [8]*Item = undefined;
                const count: usize = if (shared.portion == 1)
                    if (shared.deque.steal()) |item| blk: {
                        loot[0] = item;
                        break :blk 1;
                    } else 0
                else
                    shared.deque.stealHalf(loot[0..shared.portion]);
                for (loot[0..count]) |item| {
                    item.taken += 1;
                    check(last == null or item.number > last.?, "a thief takes tasks in the order they were pushed");
                    last = item.number;
                }
                if (done and count == 0 and shared.deque.len() == 0) return;
                if (count == 0) sync.spinHint();
            }
        }
    };
    const count = between(1, 24);
    var items: [24]Item = @splat(.{});
    var shared: Shared = .{ .deque = Deque.init(gpa) catch return, .portion = between(1, 8) };
    if (oneIn(3)) memory.fails_one_in = 2;
    var threads: [3]sync.Thread = undefined;
    const thieves = between(1, 3);
    for (threads[0..thieves]) |*thread| thread.* = spawn("thief", Shared.thief, .{&shared});
    const pops = between(1, 5);
    for (items[0..count], 0..) |*item, i| {
        item.number = @intCast(i);
        shared.deque.push(item) catch {
            item.taken += 1; // it is still ours
            continue;
        };
        if (oneIn(pops)) if (shared.deque.pop()) |mine| {
            mine.taken += 1;
        };
    }
    while (shared.deque.pop()) |mine| mine.taken += 1;
    shared.done.store(true, .release);
    for (threads[0..thieves]) |thread| thread.join();
    for (items[0..count]) |*item| checkEqual(@as(u32, 1), item.taken, "times a task was taken");
    shared.deque.deinit();
}

// ------------------------------------------------------------------------------------------------------ injector

fn injector() void {
    const Shared = struct {
        injector: injector_file.Injector(Item) = .{},
        left: sync.Atomic(u32),
        items: [3][12]Item = @splat(@splat(.{})),

        fn submit(shared: *@This(), which: usize, count: usize, portion: usize) void {
            var at: usize = 0;
            while (at < count) {
                const end = @min(count, at + portion);
                for (shared.items[which][at..end], at..) |*item, i| item.* = .{
                    .number = @intCast(which * 100 + i),
                    .next = if (i + 1 < end) &shared.items[which][i + 1] else null,
                };
                shared.injector.push(&shared.items[which][at]);
                at = end;
            }
        }

        fn work(shared: *@This(), portion: usize) void {
            var last: [3]u32 = @splat(0);
            while (shared.left.load(.acquire) > 0) {
                var into: [8]*Item = undefined;
                const count = shared.injector.take(into[0..portion]);
                for (into[0..count]) |item| {
                    item.taken += 1;
                    const which = item.number / 100;
                    check(last[which] <= item.number, "tasks of one submitter come in order");
                    last[which] = item.number;
                    _ = shared.left.fetchSub(1, .acq_rel);
                }
                if (count == 0) sync.spinHint();
            }
        }
    };
    const submitters = between(1, 3);
    const each = between(1, 12);
    var shared: Shared = .{ .left = .init(submitters * each) };
    var threads: [6]sync.Thread = undefined;
    const workers = between(1, 3);
    for (threads[0..workers]) |*thread| thread.* = spawn("worker", Shared.work, .{ &shared, between(1, 8) });
    for (threads[workers..][0..submitters], 0..) |*thread, i| thread.* = spawn("submitter", Shared.submit, .{ &shared, i, each, between(1, 5) });
    for (threads[0 .. workers + submitters]) |thread| thread.join();
    for (0..submitters) |i| for (shared.items[i][0..each]) |*item| checkEqual(@as(u32, 1), item.taken, "times a task was taken");
    check(shared.injector.isEmpty(), "the injector is empty at the end");
}

// ----------------------------------------------------------------------------------------------------- mailbox

fn mailbox() void {
    const Shared = struct {
        box: mailbox_file.Mailbox(Item, "next") = .{},
        word: sync.Atomic(u32) = .init(0),
        items: [3][10]Item = @splat(@splat(.{})),

        fn send(shared: *@This(), which: usize, count: usize) void {
            for (shared.items[which][0..count], 0..) |*item, i| {
                item.number = @intCast(which * 100 + i);
                if (shared.box.push(item)) {
                    _ = shared.word.fetchAdd(1, .release);
                    sync.futex.wake(&shared.word, 1);
                }
            }
        }
    };
    var shared: Shared = .{};
    const senders = between(1, 3);
    const each = between(1, 10);
    var threads: [3]sync.Thread = undefined;
    for (threads[0..senders], 0..) |*thread, i| thread.* = spawn("sender", Shared.send, .{ &shared, i, each });
    var next: [3]u32 = @splat(0);
    var count: u32 = 0;
    while (count < senders * each) {
        const word = shared.word.load(.acquire);
        var at = shared.box.takeAll();
        if (at == null) sync.futex.wait(&shared.word, word, null) catch {};
        while (at) |item| : (at = item.next) {
            checkEqual(next[item.number / 100], item.number % 100, "the order of one sender's letters");
            next[item.number / 100] += 1;
            count += 1;
        }
    }
    for (threads[0..senders]) |thread| thread.join();
    check(shared.box.isEmpty(), "the box is empty at the end");
}

// ------------------------------------------------------------------------------------------------------- mutex

fn mutex() void {
    const Shared = struct {
        mutex: sync.Mutex = .init,
        inside: sync.Atomic(u32) = .init(0),
        count: u32 = 0,

        fn work(shared: *@This(), times: u32, tries: bool) void {
            var left = times;
            while (left > 0) {
                if (!tries) {
                    shared.mutex.lock();
                } else if (!shared.mutex.tryLock()) {
                    sync.yield();
                    continue;
                }
                checkEqual(@as(u32, 0), shared.inside.swap(1, .monotonic), "threads under the lock");
                shared.count += 1;
                shared.inside.store(0, .monotonic);
                shared.mutex.unlock();
                left -= 1;
            }
        }
    };
    var shared: Shared = .{};
    var threads: [4]sync.Thread = undefined;
    const others = between(1, 4);
    const times = between(1, 8);
    for (threads[0..others]) |*thread| thread.* = spawn("other", Shared.work, .{ &shared, times, oneIn(4) });
    shared.work(times, false);
    for (threads[0..others]) |thread| thread.join();
    checkEqual((others + 1) * times, shared.count, "entries");
    check(shared.mutex.tryLock(), "the lock is free at the end");
}
