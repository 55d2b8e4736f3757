//! The event log of a run: what happens in it, in order, for one reader who may be late. Any thread writes, one reads.
//!
//! A writer never waits for the reader and never allocates. There is room for `capacity` records; while they fill it, the
//! newest are dropped and counted where they would have stood. Two more places are kept: one for such a gap, one for the end,
//! which always gets in. A run that nobody watches has no log, and pays one branch for it.
//!
//! ## Waking the reader
//!
//! The reader takes until nothing is left, and then asks to be told (`arm`). Both are steps under the mutex, as `add` is:
//! either `arm` finds the record, or `add` finds the log armed; so no record lies there untold. An armed log is told of once.
//! The telling itself is left to the caller of `add`, for it takes other locks than this one, which is the innermost of all.
//!
//! ## Order
//!
//! The order of the log is the order in which writers got the mutex. Whoever ends a node adds that before its successors
//! start, and whoever ends the run does so after every node's end was added; so the log never tells an effect before its cause.

const std = @import("std");
const sync = @import("base/sync.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

/// C: gb_event_kind
pub const Kind = enum(u32) {
    node_started = 1,
    node_completed = 2,
    node_failed = 3,
    node_retried = 4,
    node_skipped = 5,
    node_cancelled = 6,
    value = 7,
    run_over = 8,
};

/// C: gb_event
pub const Event = extern struct {
    time_ns: u64 = 0,
    value: u64 = 0,
    kind: Kind,
    node: u32 = 0,
    attempt: u32 = 0,
    /// Not 0 inside the log: no record but a gap, where `value` of them were dropped.
    reserved: u32 = 0,

    fn isGap(event: Event) bool {
        return event.reserved != 0;
    }
};

/// What became of a record, and what its writer owes the reader.
pub const Added = struct {
    /// False: dropped.
    kept: bool,
    /// The reader waits: tell it.
    tell: bool,
};

pub const Log = struct {
    mutex: sync.Mutex = .init,
    ring: []Event,
    head: usize = 0,
    count: usize = 0,
    /// The reader wants to be told of the next record.
    armed: bool = false,
    /// The end is in the log: nothing comes after it.
    over: bool = false,

    pub const capacity_max = 1 << 24;
    const kept_free = 2;

    /// Not 0, and at most `capacity_max`.
    pub fn init(gpa: Allocator, capacity: u32) error{OutOfMemory}!Log {
        assert(capacity > 0 and capacity <= capacity_max);
        return .{ .ring = try gpa.alloc(Event, capacity + kept_free) };
    }

    pub fn deinit(log: *Log, gpa: Allocator) void {
        gpa.free(log.ring);
        log.* = undefined;
    }

    pub fn add(log: *Log, event: Event) Added {
        assert(!event.isGap());
        log.mutex.lock();
        defer log.mutex.unlock();
        if (log.over) return .{ .kept = false, .tell = false };
        if (event.kind == .run_over) {
            log.over = true;
        } else if (log.count >= log.ring.len - kept_free) {
            log.drop();
            return .{ .kept = false, .tell = false }; // who is that late has been told long ago
        }
        log.append(event);
        const tell = log.armed;
        log.armed = false;
        return .{ .kept = true, .tell = tell };
    }

    /// Takes out the oldest records. `dropped`: so many are missing right after the last of them. None are taken: the log
    /// is empty.
    pub fn take(log: *Log, into: []Event, dropped: *u64) usize {
        dropped.* = 0;
        log.mutex.lock();
        defer log.mutex.unlock();
        assert(into.len > 0);
        var taken: usize = 0;
        while (log.count > 0) {
            const event = log.ring[log.head];
            if (event.isGap()) {
                assert(taken > 0); // a gap goes with the record before it
                dropped.* = event.value;
                log.removeFirst();
                break;
            }
            if (taken == into.len) break;
            into[taken] = event;
            taken += 1;
            log.removeFirst();
        }
        return taken;
    }

    /// Asks to be told of the next record, once. False: there are some already, or nothing is to come; nobody will be told.
    pub fn arm(log: *Log) bool {
        log.mutex.lock();
        defer log.mutex.unlock();
        log.armed = log.count == 0 and !log.over;
        return log.armed;
    }

    /// Takes the wish back.
    pub fn disarm(log: *Log) void {
        log.mutex.lock();
        defer log.mutex.unlock();
        log.armed = false;
    }

    fn drop(log: *Log) void {
        const last = &log.ring[(log.head + log.count - 1) % log.ring.len];
        if (last.isGap()) {
            last.value += 1;
        } else {
            log.append(.{ .kind = .value, .value = 1, .reserved = 1 });
        }
    }

    fn append(log: *Log, event: Event) void {
        assert(log.count < log.ring.len);
        const at = log.head + log.count;
        log.ring[if (at >= log.ring.len) at - log.ring.len else at] = event;
        log.count += 1;
    }

    fn removeFirst(log: *Log) void {
        log.head = if (log.head + 1 == log.ring.len) 0 else log.head + 1;
        log.count -= 1;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn started(node: u32) Event {
    return .{ .kind = .node_started, .node = node };
}

const Reader = struct {
    nodes: [64]u32 = undefined,
    count: usize = 0,
    dropped: u64 = 0,
    over: bool = false,

    /// One call of `take` into room for `room` records.
    fn read(reader: *Reader, log: *Log, room: usize) void {
        var into: [64]Event = undefined;
        const taken = log.take(into[0..room], &reader.dropped);
        reader.count = 0;
        for (into[0..taken]) |event| {
            if (event.kind == .run_over) reader.over = true else {
                reader.nodes[reader.count] = event.node;
                reader.count += 1;
            }
        }
    }

    fn expect(reader: *const Reader, nodes: []const u32, dropped: u64) !void {
        try testing.expectEqualSlices(u32, nodes, reader.nodes[0..reader.count]);
        try testing.expectEqual(dropped, reader.dropped);
    }
};

test "records come out in the order they went in, and several calls may be needed" {
    var log: Log = try .init(testing.allocator, 8);
    defer log.deinit(testing.allocator);
    for (0..5) |node| try testing.expect(log.add(started(@intCast(node))).kept);
    var reader: Reader = .{};
    reader.read(&log, 3);
    try reader.expect(&.{ 0, 1, 2 }, 0);
    reader.read(&log, 3);
    try reader.expect(&.{ 3, 4 }, 0);
    reader.read(&log, 3);
    try reader.expect(&.{}, 0);
}

test "a full log drops the newest and counts them where they would have stood" {
    var log: Log = try .init(testing.allocator, 3);
    defer log.deinit(testing.allocator);
    for (0..3) |node| try testing.expect(log.add(started(@intCast(node))).kept);
    for (3..7) |node| try testing.expect(!log.add(started(@intCast(node))).kept);
    var reader: Reader = .{};
    reader.read(&log, 2);
    try reader.expect(&.{ 0, 1 }, 0);
    try testing.expect(log.add(started(7)).kept); // behind the gap
    reader.read(&log, 8);
    try reader.expect(&.{2}, 4);
    reader.read(&log, 8);
    try reader.expect(&.{7}, 0);
}

test "a gap at the very end of what was asked for comes along" {
    var log: Log = try .init(testing.allocator, 1);
    defer log.deinit(testing.allocator);
    _ = log.add(started(0));
    _ = log.add(started(1));
    var reader: Reader = .{};
    reader.read(&log, 1);
    try reader.expect(&.{0}, 1);
    reader.read(&log, 1);
    try reader.expect(&.{}, 0);
}

test "the end always gets in, and nothing after it" {
    var log: Log = try .init(testing.allocator, 1);
    defer log.deinit(testing.allocator);
    _ = log.add(started(0));
    _ = log.add(started(1));
    try testing.expect(log.add(.{ .kind = .run_over }).kept);
    try testing.expect(!log.add(.{ .kind = .run_over }).kept);
    try testing.expect(!log.add(started(2)).kept);
    var reader: Reader = .{};
    reader.read(&log, 8);
    try reader.expect(&.{0}, 1);
    try testing.expect(!reader.over);
    reader.read(&log, 8);
    try reader.expect(&.{}, 0);
    try testing.expect(reader.over);
    try testing.expect(!log.arm()); // nobody is left to tell
}

test "the reader is told once of what comes after it has asked" {
    var log: Log = try .init(testing.allocator, 4);
    defer log.deinit(testing.allocator);
    try testing.expect(!log.add(started(0)).tell); // nobody has asked
    try testing.expect(!log.arm()); // it is there: take it
    var reader: Reader = .{};
    reader.read(&log, 4);
    try testing.expect(log.arm());
    try testing.expect(log.add(started(1)).tell);
    try testing.expect(!log.add(started(2)).tell);
    reader.read(&log, 4);
    try testing.expect(log.arm());
    log.disarm();
    try testing.expect(!log.add(started(3)).tell);
}

test "a log that there is no memory for is not made" {
    var failing: testing.FailingAllocator = .init(testing.allocator, .{ .fail_index = 0 });
    try testing.expectError(error.OutOfMemory, Log.init(failing.allocator(), 4));
}

/// What the log promises, in the plainest words: a list of records and gaps that is as long as it likes.
const Model = struct {
    const Entry = union(enum) { node: u32, gap: u64 };
    entries: [4096]Entry = undefined,
    first: usize = 0,
    end: usize = 0,

    fn add(model: *Model, node: u32, capacity: usize) bool {
        if (model.end - model.first >= capacity) {
            const last = &model.entries[model.end - 1];
            if (last.* == .gap) last.gap += 1 else model.push(.{ .gap = 1 });
            return false;
        }
        model.push(.{ .node = node });
        return true;
    }

    fn push(model: *Model, entry: Entry) void {
        model.entries[model.end] = entry;
        model.end += 1;
    }

    fn take(model: *Model, into: []u32, dropped: *u64) usize {
        dropped.* = 0;
        var taken: usize = 0;
        while (model.first < model.end) switch (model.entries[model.first]) {
            .gap => |count| {
                dropped.* = count;
                model.first += 1;
                return taken;
            },
            .node => |node| {
                if (taken == into.len) return taken;
                into[taken] = node;
                taken += 1;
                model.first += 1;
            },
        };
        return taken;
    }
};

test "random writing and reading agrees with a list" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng: std.Random.DefaultPrng = .init(seed);
    const random = prng.random();
    const model = try testing.allocator.create(Model);
    defer testing.allocator.destroy(model);
    for (0..50) |_| {
        const capacity = random.intRangeAtMost(u32, 1, 6);
        var log: Log = try .init(testing.allocator, capacity);
        defer log.deinit(testing.allocator);
        model.* = .{};
        for (0..2000) |step| {
            if (random.uintLessThan(u32, 5) < 3) {
                const node: u32 = @intCast(step);
                try testing.expectEqual(model.add(node, capacity), log.add(started(node)).kept);
                continue;
            }
            const room = random.intRangeAtMost(usize, 1, 4);
            var expected: [4]u32 = undefined;
            var expected_dropped: u64 = 0;
            const count = model.take(expected[0..room], &expected_dropped);
            var reader: Reader = .{};
            reader.read(&log, room);
            try reader.expect(expected[0..count], expected_dropped);
        }
    }
}

test "between threads nothing is lost uncounted, every writer's records keep their order, and the reader is never left waiting" {
    const writers = 3;
    const each = 20_000;
    const Shared = struct {
        log: Log,
        /// The letter: stepped and woken when the log says so.
        word: sync.Atomic(u32) = .init(0),
        dropped: sync.Atomic(u64) = .init(0),
        left: sync.Atomic(u32) = .init(writers),

        fn add(shared: *@This(), event: Event) void {
            const added = shared.log.add(event);
            if (!added.kept) _ = shared.dropped.fetchAdd(1, .monotonic);
            if (added.tell) {
                _ = shared.word.fetchAdd(1, .release); // pairs with the reader's acquire load
                sync.futex.wake(&shared.word, 1);
            }
        }

        fn write(shared: *@This(), which: u32) void {
            for (0..each) |i| shared.add(.{ .kind = .value, .node = which, .value = i });
            // Acquire-release: the last one adds the end after everybody's last record.
            if (shared.left.fetchSub(1, .acq_rel) == 1) shared.add(.{ .kind = .run_over });
        }
    };
    var shared: Shared = .{ .log = try .init(testing.allocator, 64) };
    defer shared.log.deinit(testing.allocator);
    var threads: [writers]sync.Thread = undefined;
    for (&threads, 0..) |*thread, which| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.write, .{ &shared, @as(u32, @intCast(which)) });

    var next: [writers]u64 = @splat(0);
    var read: u64 = 0;
    var missing: u64 = 0;
    var over = false;
    var into: [16]Event = undefined;
    while (!over) {
        var dropped: u64 = 0;
        const taken = shared.log.take(&into, &dropped);
        missing += dropped;
        for (into[0..taken]) |event| {
            try testing.expect(!over);
            if (event.kind == .run_over) {
                over = true;
                continue;
            }
            try testing.expect(event.value >= next[event.node]);
            next[event.node] = event.value + 1;
            read += 1;
        }
        if (taken > 0) continue;
        const seen = shared.word.load(.acquire); // pairs with the writer's release
        if (shared.log.arm()) while (shared.word.load(.acquire) == seen) { // pairs as above
            sync.futex.wait(&shared.word, seen, null) catch {};
        };
    }
    for (threads) |thread| thread.join();
    try testing.expectEqual(writers * each, read + missing);
    try testing.expectEqual(shared.dropped.load(.monotonic), missing);
}
