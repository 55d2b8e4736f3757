//! Timers: what is to happen later, without libcurl. A binary heap and one thread, the timekeeper, started by the first
//! timer; delays of nodes, backoff of calls, deadlines of runs, and the tick of the callback watchdog.
//!
//! Timers are the caller's and intrusive. `fire` runs on the timekeeper, outside the lock, and may add, cancel or free any
//! timer, its own included. `cancel` returns true to exactly one caller per `add`, and only if the timer will not fire; false
//! means it has fired, is firing right now, or was not waiting.
//!
//! ## Virtual time
//!
//! In virtual mode real time fires nothing. Whoever has work under way counts as busy (`enter`, `leave`); when nobody is, the
//! timekeeper moves the clock to the earliest timer and fires all that are due, being busy itself meanwhile. So a run in
//! virtual time takes as long as its own work, and timers fire in the order of their deadlines, then of their addition.
//!
//! ## Waking
//!
//! The timekeeper decides under the lock how long to sleep, reads `word` there, and futex-waits on that value. Whoever
//! changes what it decided by (an earlier timer, the tick, the busy count reaching zero, stop) steps `word` under the lock or,
//! for the busy count, before the wake; so the wait is refused or woken.

const std = @import("std");
const sync = @import("base/sync.zig");
const clock_file = @import("base/clock.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const Timer = struct {
    deadline_ns: u64 = 0,
    fire: *const fn (*Timer) void,
    place: u32 = nowhere,
    /// Orders timers of the same deadline.
    number: u64 = 0,

    const nowhere = std.math.maxInt(u32);
};

/// Called every period while armed; false lies down.
pub const Tick = struct {
    context: *anyopaque,
    call: *const fn (*anyopaque) bool,
    period_ns: u64,
};

pub const AddError = error{ OutOfMemory, ThreadUnavailable };

pub const Timers = struct {
    gpa: Allocator,
    clock: *clock_file.Clock,
    mutex: sync.Mutex = .init,
    heap: std.ArrayList(*Timer) = .empty,
    added: u64 = 0,
    thread: ?sync.Thread = null,
    stopping: bool = false,
    word: sync.Atomic(u32) = .init(0),
    busy: sync.Atomic(u32) = .init(0),
    tick: ?Tick = null,
    armed: sync.Atomic(bool) = .init(false),

    pub fn init(gpa: Allocator, clock: *clock_file.Clock) Timers {
        return .{ .gpa = gpa, .clock = clock };
    }

    /// Joins the timekeeper. Timers that have not fired never will.
    pub fn stop(timers: *Timers) void {
        timers.mutex.lock();
        timers.stopping = true;
        const thread = timers.thread;
        timers.thread = null;
        timers.mutex.unlock();
        timers.rouse();
        if (thread) |it| it.join();
    }

    pub fn deinit(timers: *Timers) void {
        assert(timers.thread == null);
        timers.heap.deinit(timers.gpa);
    }

    pub fn threadCount(timers: *Timers) u32 {
        timers.mutex.lock();
        defer timers.mutex.unlock();
        return @intFromBool(timers.thread != null);
    }

    /// The timer must not be waiting. On failure nothing is left behind.
    pub fn add(timers: *Timers, timer: *Timer, deadline_ns: u64) AddError!void {
        timers.mutex.lock();
        assert(timer.place == Timer.nowhere);
        timers.startThread() catch |err| {
            timers.mutex.unlock();
            return err;
        };
        timers.heap.append(timers.gpa, timer) catch |err| {
            timers.mutex.unlock();
            return err;
        };
        timers.added += 1;
        timer.number = timers.added;
        timer.deadline_ns = deadline_ns;
        timers.siftUp(timers.heap.items.len - 1);
        const earliest = timer.place == 0;
        timers.mutex.unlock();
        if (earliest) timers.rouse();
    }

    pub fn cancel(timers: *Timers, timer: *Timer) bool {
        timers.mutex.lock();
        defer timers.mutex.unlock();
        if (timer.place == Timer.nowhere) return false;
        timers.removeAt(timer.place);
        return true;
    }

    pub fn setTick(timers: *Timers, tick: Tick) void {
        timers.mutex.lock();
        defer timers.mutex.unlock();
        timers.tick = tick;
    }

    /// Makes the tick go. One load when it goes already.
    pub fn arm(timers: *Timers) void {
        if (timers.armed.load(.monotonic)) return;
        if (timers.armed.swap(true, .monotonic)) return;
        timers.mutex.lock();
        const started = timers.startThread();
        timers.mutex.unlock();
        if (started) timers.rouse() else |_| timers.armed.store(false, .monotonic); // tried again at the next batch
    }

    // ---------------------------------------------------------------------------------------------- virtual time

    pub fn isVirtual(timers: *const Timers) bool {
        return timers.clock.isVirtual();
    }

    /// What deadlines are measured by.
    pub fn now(timers: *const Timers) u64 {
        return if (timers.isVirtual()) timers.clock.now() else sync.now();
    }

    /// While nothing runs: a run lives in one kind of time.
    pub fn setVirtual(timers: *Timers, on: bool) void {
        timers.mutex.lock();
        timers.clock.setVirtual(on);
        timers.mutex.unlock();
        timers.rouse();
    }

    /// Time stands still from here until `leave`. In virtual time under the lock, or a thread that comes in while the timekeeper
    /// moves the clock could still read the old time, and a timer it adds would be late from the start.
    pub fn enter(timers: *Timers) void {
        if (!timers.isVirtual()) {
            _ = timers.busy.fetchAdd(1, .acq_rel); // pairs with leave's fetchSub
            return;
        }
        timers.mutex.lock();
        defer timers.mutex.unlock();
        _ = timers.busy.fetchAdd(1, .acq_rel);
    }

    pub fn leave(timers: *Timers) void {
        const before = timers.busy.fetchSub(1, .acq_rel); // pairs with the timekeeper's load: it sees what the work added
        assert(before > 0);
        if (before == 1 and timers.isVirtual()) timers.rouse();
    }

    // ---------------------------------------------------------------------------------------------- the timekeeper

    fn startThread(timers: *Timers) AddError!void {
        if (timers.thread != null or timers.stopping) return;
        timers.thread = try sync.Thread.spawn(.{ .name = "gb-timers" }, keep, .{timers});
    }

    fn rouse(timers: *Timers) void {
        _ = timers.word.fetchAdd(1, .release); // pairs with the load in `keep`
        sync.futex.wake(&timers.word, 1);
    }

    fn keep(timers: *Timers) void {
        var next_tick_ns: u64 = 0;
        timers.mutex.lock();
        while (!timers.stopping) {
            const seen = timers.word.load(.acquire); // pairs with rouse: what was changed before it is seen below
            if (timers.due()) |timer| {
                timers.removeAt(0);
                const virtual = timers.isVirtual();
                timers.mutex.unlock();
                timer.fire(timer);
                if (virtual) timers.leave();
                timers.mutex.lock();
                continue;
            }
            const real_ns = sync.now();
            if (timers.armed.load(.monotonic)) if (timers.tick) |tick| {
                if (next_tick_ns == 0) next_tick_ns = real_ns + tick.period_ns;
                if (real_ns >= next_tick_ns) {
                    // Lowered before the look: who arms it after that has something the look did not see.
                    timers.armed.store(false, .monotonic);
                    timers.mutex.unlock();
                    if (tick.call(tick.context)) timers.armed.store(true, .monotonic);
                    timers.mutex.lock();
                    next_tick_ns = if (timers.armed.load(.monotonic)) sync.now() + tick.period_ns else 0;
                    continue;
                }
            };
            var wait_ns: ?u64 = if (next_tick_ns != 0) next_tick_ns - real_ns else null;
            if (!timers.isVirtual() and timers.heap.items.len > 0) {
                const until = timers.heap.items[0].deadline_ns -| real_ns;
                wait_ns = @min(until, wait_ns orelse until);
            }
            timers.mutex.unlock();
            sync.futex.wait(&timers.word, seen, wait_ns) catch {};
            timers.mutex.lock();
        }
        timers.mutex.unlock();
    }

    /// The timer to fire now, if there is one. In virtual time it counts as busy from here on.
    fn due(timers: *Timers) ?*Timer {
        if (timers.heap.items.len == 0) return null;
        const first = timers.heap.items[0];
        if (timers.isVirtual()) {
            // Nobody busy: nothing can happen before the first timer. Only timers make work out of nothing, and only here.
            if (timers.busy.cmpxchgStrong(0, 1, .acq_rel, .monotonic) != null) return null; // pairs with leave
            timers.clock.advanceTo(first.deadline_ns);
            return first;
        }
        return if (first.deadline_ns <= sync.now()) first else null;
    }

    // ---------------------------------------------------------------------------------------------- the heap

    fn isBefore(a: *const Timer, b: *const Timer) bool {
        return a.deadline_ns < b.deadline_ns or (a.deadline_ns == b.deadline_ns and a.number < b.number);
    }

    fn put(timers: *Timers, place: usize, timer: *Timer) void {
        timers.heap.items[place] = timer;
        timer.place = @intCast(place);
    }

    fn siftUp(timers: *Timers, start: usize) void {
        var at = start;
        const timer = timers.heap.items[at];
        while (at > 0) {
            const parent = (at - 1) / 2;
            if (!isBefore(timer, timers.heap.items[parent])) break;
            timers.put(at, timers.heap.items[parent]);
            at = parent;
        }
        timers.put(at, timer);
    }

    fn siftDown(timers: *Timers, start: usize) void {
        var at = start;
        const timer = timers.heap.items[at];
        const count = timers.heap.items.len;
        while (true) {
            var child = 2 * at + 1;
            if (child >= count) break;
            if (child + 1 < count and isBefore(timers.heap.items[child + 1], timers.heap.items[child])) child += 1;
            if (!isBefore(timers.heap.items[child], timer)) break;
            timers.put(at, timers.heap.items[child]);
            at = child;
        }
        timers.put(at, timer);
    }

    fn removeAt(timers: *Timers, place: u32) void {
        const removed = timers.heap.items[place];
        const last = timers.heap.pop().?;
        if (last != removed) {
            timers.put(place, last);
            timers.siftUp(place);
            timers.siftDown(last.place);
        }
        removed.place = Timer.nowhere;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const Recorder = struct {
    timer: Timer = .{ .fire = fired },
    list: *Fired,
    id: u32,

    const Fired = struct { ids: [64]u32 = undefined, times: [64]u64 = undefined, count: sync.Atomic(u32) = .init(0), timers: *Timers };

    fn fired(timer: *Timer) void {
        const recorder: *Recorder = @fieldParentPtr("timer", timer);
        const list = recorder.list;
        const at = list.count.load(.monotonic);
        list.ids[at] = recorder.id;
        list.times[at] = list.timers.clock.now();
        list.count.store(at + 1, .release); // pairs with waitFor
        sync.futex.wake(&list.count, 1);
    }

    fn waitFor(list: *Fired, count: u32) void {
        while (true) {
            const seen = list.count.load(.acquire); // pairs with fired
            if (seen >= count) return;
            sync.futex.wait(&list.count, seen, null) catch {};
        }
    }
};

test "virtual time jumps from timer to timer and only when nobody is busy" {
    var clock: clock_file.Clock = .init;
    var timers: Timers = .init(testing.allocator, &clock);
    defer timers.deinit();
    defer timers.stop();
    timers.setVirtual(true);
    var fired: Recorder.Fired = .{ .timers = &timers };
    var recorders: [4]Recorder = undefined;
    const start = clock.now();
    timers.enter();
    const hour = 3600 * std.time.ns_per_s;
    for (&recorders, [_]u64{ 3, 1, 2, 1 }, 0..) |*recorder, hours, id| {
        recorder.* = .{ .list = &fired, .id = @intCast(id) };
        try timers.add(&recorder.timer, start + hours * hour);
    }
    try testing.expectEqual(0, fired.count.load(.monotonic));
    try testing.expect(timers.cancel(&recorders[2].timer));
    try testing.expect(!timers.cancel(&recorders[2].timer));
    timers.leave();
    Recorder.waitFor(&fired, 3);
    try testing.expectEqualSlices(u32, &.{ 1, 3, 0 }, fired.ids[0..3]);
    try testing.expectEqual(start + hour, fired.times[0]);
    try testing.expectEqual(start + 3 * hour, fired.times[2]);
}

test "a real timer fires, not before its time" {
    var clock: clock_file.Clock = .init;
    var timers: Timers = .init(testing.allocator, &clock);
    defer timers.deinit();
    defer timers.stop();
    var fired: Recorder.Fired = .{ .timers = &timers };
    var recorder: Recorder = .{ .list = &fired, .id = 1 };
    const deadline = clock.now() + 2 * std.time.ns_per_ms;
    try timers.add(&recorder.timer, deadline);
    Recorder.waitFor(&fired, 1);
    try testing.expect(fired.times[0] >= deadline);
}

test "the heap agrees with a sorted list under random additions and cancellations" {
    const seed = std.testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var clock: clock_file.Clock = .init;
    var timers: Timers = .init(testing.allocator, &clock);
    defer timers.deinit();
    timers.stopping = true; // no thread: the heap alone
    var all: [100]Timer = @splat(.{ .fire = undefined });
    for (0..5_000) |_| {
        const timer = &all[random.uintLessThan(usize, all.len)];
        if (timer.place == Timer.nowhere) {
            try timers.add(timer, random.uintLessThan(u64, 50));
        } else {
            try testing.expect(timers.cancel(timer));
        }
        var earliest: ?*Timer = null;
        var waiting: usize = 0;
        for (&all) |*it| if (it.place != Timer.nowhere) {
            waiting += 1;
            try testing.expectEqual(it, timers.heap.items[it.place]);
            if (earliest == null or Timers.isBefore(it, earliest.?)) earliest = it;
        };
        try testing.expectEqual(waiting, timers.heap.items.len);
        if (waiting > 0) try testing.expectEqual(earliest.?, timers.heap.items[0]);
    }
}
