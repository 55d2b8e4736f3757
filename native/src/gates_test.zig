//! Gates between real threads, in virtual time: everybody who asks is let through or turned away exactly once, never more than may be
//! are inside, and afterwards nobody is busy.

const std = @import("std");
const sync = @import("base/sync.zig");
const admission = @import("http/admission.zig");
const told = @import("http/told.zig");
const clock_file = @import("base/clock.zig");
const engine_file = @import("http/engine.zig");
const gates_file = @import("gates.zig");
const loopback = @import("http/loopback.zig");
const timers_file = @import("timers.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Count = loopback.Count;
const Gates = gates_file.Gates;
const Seat = gates_file.Seat;

const Room = struct {
    clock: clock_file.Clock = .init,
    timers: timers_file.Timers,
    engine: engine_file.Engine,
    gates: Gates,

    fn open() !*Room {
        const room = try gpa.create(Room);
        room.* = .{
            .timers = .init(gpa, &room.clock),
            .engine = try .init(gpa, &room.clock, .{}),
            .gates = .{ .gpa = gpa, .timers = &room.timers, .engine = &room.engine },
        };
        room.timers.setVirtual(true);
        return room;
    }

    fn close(room: *Room) void {
        room.engine.shutdown();
        room.timers.stop();
        room.engine.deinit();
        room.timers.deinit();
        room.gates.deinit();
        gpa.destroy(room);
    }

    fn expectIdle(room: *Room) !void {
        for (0..10_000_000) |_| {
            if (room.timers.busy.load(.acquire) == 0) return; // pairs with leave
            sync.yield();
        }
        return error.StillBusy;
    }
};

/// Those that were let through, for whichever thread takes them out again.
const Inside = struct {
    mutex: sync.Mutex = .init,
    first: ?*Visitor = null,
    count: u32 = 0,
    most: u32 = 0,
    word: sync.Atomic(u32) = .init(0),

    fn push(inside: *Inside, visitor: *Visitor) void {
        inside.mutex.lock();
        visitor.next = inside.first;
        inside.first = visitor;
        inside.count += 1;
        inside.most = @max(inside.most, inside.count);
        inside.mutex.unlock();
        inside.wake();
    }

    fn wake(inside: *Inside) void {
        _ = inside.word.fetchAdd(1, .acq_rel); // pairs with the load in takeOut
        sync.futex.wake(&inside.word, std.math.maxInt(u32));
    }

    fn pop(inside: *Inside) ?*Visitor {
        inside.mutex.lock();
        defer inside.mutex.unlock();
        const visitor = inside.first orelse return null;
        inside.first = visitor.next;
        inside.count -= 1;
        return visitor;
    }
};

const Visitor = struct {
    room: *Room,
    inside: *Inside,
    options: admission.Options,
    group: u64,
    leaves: bool,
    /// The engine's thread's.
    waits: bool = false,
    seat: Seat = .{ .on_turn = onTurn },
    message: engine_file.Message = .{ .run = onMessage },
    leave_message: engine_file.Message = .{ .run = onLeave },
    next: ?*Visitor = null,
    overs: *Count,
    ends: u32 = 0,

    fn start(visitor: *Visitor) void {
        visitor.room.timers.enter();
        visitor.room.engine.post(&visitor.message);
    }

    fn onMessage(message: *engine_file.Message) void {
        const visitor: *Visitor = @fieldParentPtr("message", message);
        const gate = visitor.room.gates.find("somebody") catch unreachable;
        switch (visitor.seat.ask(gate, &visitor.options, 100, visitor.group)) {
            .waits => {
                visitor.waits = true;
                if (visitor.leaves) visitor.room.engine.post(&visitor.leave_message);
                visitor.room.timers.leave();
            },
            else => |verdict| onTurn(&visitor.seat, verdict),
        }
    }

    fn onLeave(message: *engine_file.Message) void {
        const visitor: *Visitor = @fieldParentPtr("leave_message", message);
        if (!visitor.waits) return; // it came to its turn before
        visitor.waits = false;
        visitor.seat.leave();
        visitor.over();
    }

    fn onTurn(seat: *Seat, verdict: gates_file.Verdict) void {
        const visitor: *Visitor = @fieldParentPtr("seat", seat);
        visitor.waits = false;
        if (verdict == .go) visitor.inside.push(visitor) else visitor.over();
    }

    fn over(visitor: *Visitor) void {
        visitor.ends += 1;
        visitor.room.timers.leave();
        visitor.overs.add();
    }
};

const Helper = struct {
    inside: *Inside,
    stop: sync.Atomic(bool) = .init(false),
    seed: u64,

    fn run(helper: *Helper) void {
        var prng = std.Random.DefaultPrng.init(helper.seed);
        const random = prng.random();
        while (true) {
            const seen = helper.inside.word.load(.acquire); // pairs with wake
            if (helper.inside.pop()) |visitor| {
                const endings = [_]admission.Ending{ .answered, .answered, .answered, .limited, .unknown, .overloaded, .fault };
                visitor.seat.settle(&.{
                    .ending = endings[random.uintLessThan(usize, endings.len)],
                    .retry_after_ms = if (random.boolean()) -1 else random.uintLessThan(u16, 3_000),
                    .dice = random.int(u64),
                }) catch unreachable;
                visitor.over();
                continue;
            }
            if (helper.stop.load(.acquire)) return; // pairs with the store below
            sync.futex.wait(&helper.inside.word, seen, null) catch {};
        }
    }
};

test "whoever asks comes to an end, once; and no more are inside than may be" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    for (0..12) |_| {
        const room = try Room.open();
        defer room.close();
        var inside: Inside = .{};
        var overs: Count = .{};
        const most = random.intRangeAtMost(u32, 1, 6);
        var visitors: [300]Visitor = undefined;
        for (&visitors) |*it| it.* = .{
            .room = room,
            .inside = &inside,
            .options = .{
                .flags = .{ .adaptive = true, .learn = true, .breaker = random.boolean() },
                .concurrency = most,
                .requests_per_minute = 100,
            },
            .group = random.uintLessThan(u64, 4),
            .leaves = random.uintLessThan(u8, 5) == 0,
            .overs = &overs,
        };
        var helpers: [2]Helper = .{ .{ .inside = &inside, .seed = seed }, .{ .inside = &inside, .seed = seed +% 1 } };
        var threads: [2]sync.Thread = undefined;
        for (&threads, &helpers) |*thread, *helper| thread.* = try .spawn(.{ .name = "test" }, Helper.run, .{helper});
        for (&visitors) |*it| it.start();
        overs.waitFor(visitors.len);
        for (&helpers) |*helper| helper.stop.store(true, .release); // pairs with the load in run
        inside.wake();
        for (threads) |thread| thread.join();
        for (&visitors) |*it| try testing.expectEqual(1, it.ends);
        try testing.expect(inside.most <= most);
        try room.expectIdle();
        var stats: told.Stats = .{};
        var key: [4]u8 = undefined;
        try testing.expectEqual(8, room.gates.read(0, &stats, &key).?);
        try testing.expectEqualStrings("some", &key);
        try testing.expectEqual(0, stats.in_flight + stats.queued);
        try testing.expectEqual(null, room.gates.read(1, &stats, &key));
    }
}

test "gates that nobody uses are forgotten when there are very many" {
    const room = try Room.open();
    defer room.close();
    for (0..4_000) |i| {
        var key: [16]u8 = undefined;
        _ = try room.gates.find(try std.fmt.bufPrint(&key, "key {d}", .{i}));
    }
    try testing.expect(room.gates.count() < 3_000);
}

test "a controller without memory for what it hears loses nothing else" {
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(failing: std.mem.Allocator) !void {
            var controller: admission.Controller = .{ .gpa = failing };
            defer controller.deinit();
            _ = try controller.configure(0, &.{ .flags = .{ .learn = true }, .requests_per_minute = 7, .tokens_per_minute = 1_000 });
            const permit = controller.ask(0, 100).go;
            var announced: admission.Announced = .{};
            announced.take(.{ .name = "x-ratelimit-limit-requests", .value = "5" }, 0);
            defer std.debug.assert(controller.in_flight == 0);
            _ = try controller.settle(0, &permit, &.{ .ending = .answered, .announced = &announced });
        }
    }.run, .{});
}

test "many whose cancel was asked are let through one after the other, not one inside the other" {
    const room = try Room.open();
    defer room.close();
    room.timers.setVirtual(false);
    const Waiter = struct {
        seat: Seat = .{ .on_turn = onTurn },
        message: engine_file.Message = .{ .run = onMessage },
        room: *Room,
        var done: sync.Atomic(u32) = .init(0);
        fn onMessage(message: *engine_file.Message) void {
            const it: *@This() = @fieldParentPtr("message", message);
            const gate = it.room.gates.find("k") catch unreachable;
            _ = it.seat.ask(gate, &.{ .concurrency = 1 }, 1, 0);
        }
        // What queueing.act does with one whose cancel was asked.
        fn onTurn(seat: *Seat, _: gates_file.Verdict) void {
            seat.settle(&.{ .ending = .unknown, .unsent = true }) catch {};
            _ = done.fetchAdd(1, .release); // pairs with the load below
        }
    };
    const all = try gpa.alloc(Waiter, 20_000);
    defer gpa.free(all);
    for (all) |*it| {
        it.* = .{ .room = room };
        room.engine.post(&it.message);
    }
    const First = struct {
        message: engine_file.Message = .{ .run = run },
        seat: *Seat,
        fn run(message: *engine_file.Message) void {
            const it: *@This() = @fieldParentPtr("message", message);
            it.seat.settle(&.{ .ending = .answered }) catch {};
        }
    };
    var first: First = .{ .seat = &all[0].seat };
    room.engine.post(&first.message);
    while (Waiter.done.load(.acquire) < all.len - 1) sync.yield(); // pairs with the add above
}

/// Somebody who comes at a certain time.
const Later = struct {
    timer: timers_file.Timer = .{ .fire = fire },
    visitor: *Visitor,

    fn fire(timer: *timers_file.Timer) void {
        const later: *Later = @fieldParentPtr("timer", timer);
        later.visitor.start();
    }
};

/// At a certain time, which then stands still.
const Alarm = struct {
    timer: timers_file.Timer = .{ .fire = fire },
    timers: *timers_file.Timers,
    rang: Count = .{},

    fn fire(timer: *timers_file.Timer) void {
        const alarm: *Alarm = @fieldParentPtr("timer", timer);
        alarm.timers.enter();
        alarm.rang.add();
    }
};

/// When so many are inside.
fn waitInside(inside: *Inside, count: u32) void {
    while (true) {
        const seen = inside.word.load(.acquire); // pairs with wake
        inside.mutex.lock();
        const enough = inside.count >= count;
        inside.mutex.unlock();
        if (enough) return;
        sync.futex.wait(&inside.word, seen, null) catch {};
    }
}

test "who waits because of what somebody else allows is let through when that lapses, though nothing has ended" {
    const room = try Room.open();
    defer room.close();
    var inside: Inside = .{};
    var overs: Count = .{};
    var strict: Visitor = .{ .room = room, .inside = &inside, .options = .{ .concurrency = 1 }, .group = 1, .leaves = false, .overs = &overs };
    var other = strict;
    other.options.concurrency = 2;
    strict.start();
    waitInside(&inside, 1);
    const before_ns = room.timers.now();
    other.start();
    room.timers.leave(); // the first one's: whatever it waits for, time goes on
    waitInside(&inside, 2);
    room.timers.enter();
    try testing.expectEqual(std.time.ns_per_min + 1, room.timers.now() - before_ns);
    while (inside.pop()) |visitor| {
        try visitor.seat.settle(&.{ .ending = .answered });
        visitor.over();
    }
    try room.expectIdle();
}

test "who waits because of what somebody else wanted heeded is let through when another one comes who does not" {
    const room = try Room.open();
    defer room.close();
    var inside: Inside = .{};
    var overs: Count = .{};
    var learner: Visitor = .{ .room = room, .inside = &inside, .options = .{ .flags = .{ .learn = true } }, .group = 1, .leaves = false, .overs = &overs };
    var visitors: [2]Visitor = @splat(learner);
    for (&visitors) |*it| it.options = .{};
    learner.start();
    waitInside(&inside, 1);
    const before_ns = room.timers.now();
    var announced: admission.Announced = .{};
    for ([_][2][]const u8{ .{ "limit", "1" }, .{ "remaining", "0" }, .{ "reset", "100s" } }) |it| {
        var name: [40]u8 = undefined;
        announced.take(.{ .name = try std.fmt.bufPrint(&name, "x-ratelimit-{s}-requests", .{it[0]}), .value = it[1] }, 0);
    }
    // It takes a while, so that what is announced is waited for longer than what was said before lasts.
    var alarm: Alarm = .{ .timers = &room.timers };
    try room.timers.add(&alarm.timer, before_ns + 40 * std.time.ns_per_s);
    room.timers.leave();
    alarm.rang.waitFor(1);
    try inside.pop().?.seat.settle(&.{ .ending = .limited, .announced = &announced });
    visitors[0].start();
    var later: Later = .{ .visitor = &visitors[1] };
    try room.timers.add(&later.timer, before_ns + 70 * std.time.ns_per_s);
    learner.over();
    waitInside(&inside, 2);
    try testing.expectEqual(70 * std.time.ns_per_s, room.timers.now() - before_ns);
    while (inside.pop()) |visitor| {
        try visitor.seat.settle(&.{ .ending = .answered });
        visitor.over();
    }
    try room.expectIdle();
}
