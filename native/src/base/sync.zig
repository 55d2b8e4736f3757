//! The seam: every atomic, lock, wait and thread of the core goes through here, so that a test build can put its own in
//! place. A root file that declares `pub const graphbit_sync` gets that instead of the real `Atomic`, `futex`, `Thread`, `Local`,
//! `now`, `spinHint` and `yield`: see testing/sim.zig. The library's root declares none, and pays nothing.

const std = @import("std");
const os = @import("os.zig");
const root = @import("root");

const replaced = @hasDecl(root, "graphbit_sync");
pub const is_replaced = replaced;

pub const cache_line = std.atomic.cache_line;

/// std.atomic.Value, or the test build's.
pub const Atomic = if (replaced) root.graphbit_sync.Atomic else std.atomic.Value;

pub const futex = if (replaced) root.graphbit_sync.futex else struct {
    /// Returns when woken, when the word no longer is `expect`, or for no reason at all: the caller looks again.
    pub fn wait(word: *const Atomic(u32), expect: u32, timeout_ns: ?u64) os.FutexError!void {
        return os.futexWait(&word.raw, expect, timeout_ns);
    }
    pub fn wake(word: *const Atomic(u32), count: u32) void {
        os.futexWake(&word.raw, count);
    }
};

/// Monotonic nanoseconds. Deadlines of waits are measured by it.
pub inline fn now() u64 {
    return if (replaced) root.graphbit_sync.now() else os.monotonicNs();
}

pub inline fn spinHint() void {
    if (replaced) root.graphbit_sync.giveWay() else std.atomic.spinLoopHint();
}

/// Lets others run first.
pub fn yield() void {
    if (replaced) return root.graphbit_sync.giveWay();
    std.Thread.yield() catch {}; // a system that cannot: the caller looks again all the sooner
}

/// How often to look before sleeping: `count` times, or as few as a test build asks for, where a look more is a state more.
pub inline fn spins(comptime count: usize) usize {
    return if (replaced) root.graphbit_sync.spins else count;
}

/// One variable for each thread; `Owner` tells it from others of the same type.
pub fn Local(comptime Owner: type, comptime T: type) type {
    return if (replaced) root.graphbit_sync.Local(Owner, T) else struct {
        pub const owner = Owner; // makes it a type of its own
        threadlocal var value: ?T = null;

        pub inline fn get() ?T {
            return value;
        }
        pub inline fn set(to: ?T) void {
            value = to;
        }
    };
}

/// A lock of one word: 0 free, 1 held, 2 held and somebody may be asleep (Drepper, "Futexes are tricky", mutex 2).
pub const Mutex = struct {
    word: Atomic(u32),

    pub const init: Mutex = .{ .word = .init(0) };

    pub fn tryLock(mutex: *Mutex) bool {
        return mutex.word.cmpxchgStrong(0, 1, .acquire, .monotonic) == null; // pairs with unlock's swap
    }

    pub fn lock(mutex: *Mutex) void {
        if (mutex.word.cmpxchgWeak(0, 1, .acquire, .monotonic) == null) return; // pairs with unlock's swap
        mutex.lockSlow();
    }

    fn lockSlow(mutex: *Mutex) void {
        for (0..spins(40)) |_| {
            if (mutex.word.load(.monotonic) == 0 and mutex.tryLock()) return;
            spinHint();
        }
        // Pairs with unlock's swap. Whoever gets the lock here leaves a 2 behind: at worst one wake too many.
        while (mutex.word.swap(2, .acquire) != 0) futex.wait(&mutex.word, 2, null) catch {};
    }

    pub fn unlock(mutex: *Mutex) void {
        // Release: what was written under the lock is there for the next holder's acquire.
        if (mutex.word.swap(0, .release) == 2) futex.wake(&mutex.word, 1);
    }
};

pub const Thread = if (replaced) root.graphbit_sync.Thread else struct {
    handle: std.Thread,

    pub const Options = struct { stack_size: usize = 1 << 20, name: []const u8 };

    /// The thread runs with every signal blocked: signals are the interpreter's.
    pub fn spawn(options: Options, comptime function: anytype, args: anytype) error{ThreadUnavailable}!Thread {
        const mask = os.blockSignals();
        defer os.restoreSignals(mask);
        const handle = std.Thread.spawn(.{ .stack_size = options.stack_size }, function, args) catch return error.ThreadUnavailable;
        return .{ .handle = handle };
    }

    pub fn join(thread: Thread) void {
        thread.handle.join();
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "a mutex lets one thread in at a time" {
    const Shared = struct {
        mutex: Mutex = .init,
        count: u64 = 0,
        fn work(shared: *@This()) void {
            for (0..20_000) |_| {
                shared.mutex.lock();
                defer shared.mutex.unlock();
                shared.count += 1;
            }
        }
    };
    var shared: Shared = .{};
    var threads: [4]Thread = undefined;
    for (&threads) |*thread| thread.* = try Thread.spawn(.{ .name = "test" }, Shared.work, .{&shared});
    for (threads) |thread| thread.join();
    try testing.expectEqual(80_000, shared.count);
    try testing.expect(shared.mutex.tryLock());
    try testing.expect(!shared.mutex.tryLock());
    shared.mutex.unlock();
}
