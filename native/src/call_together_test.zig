//! Calls with more or less than one transfer: those that follow another, in virtual time, and those that are sent twice, in real
//! time. Everybody ends once, whoever cancels when; permits, parties and the count of the busy come out even.

const std = @import("std");
const sync = @import("base/sync.zig");
const admission = @import("http/admission.zig");
const told = @import("http/told.zig");
const call_file = @import("call/call.zig");
const loopback = @import("http/loopback.zig");
const plan_file = @import("graph/plan.zig");
const rooms = @import("call_test.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Call = call_file.Call;
const Count = loopback.Count;
const Plan = plan_file.Plan;
const Room = rooms.Room;

fn planOf(room: *Room, path: []const u8, attempts_max: u32, flags: admission.Flags) !*Plan {
    // The key: any text of the plan's.
    return rooms.makePlanFor(room, path, attempts_max, "", .{ .key = .{ .offset = 0, .length = 3 }, .flags = @bitCast(flags) });
}

const Owner = struct {
    room: *Room,
    call: *Call,
    overs: Count = .{},

    fn make(owner: *Owner, room: *Room, plan: *Plan) !void {
        owner.* = .{ .room = room, .call = try .create(&room.services, plan, 0, .{ .all = &.{ .of(.text, "key"), .of(.text, "body") } }, onOver) };
        owner.call.owner = owner;
    }

    fn start(owner: *Owner, timeout_ns: u64) void {
        owner.room.timers.enter();
        owner.call.start(timeout_ns);
    }

    fn onOver(call: *Call) void {
        const owner: *Owner = @ptrCast(@alignCast(call.owner.?));
        std.debug.assert(call.hedge == null and call.member.party == null and call.seat.state == .none);
        owner.room.timers.leave();
        owner.overs.add();
    }
};

fn statsOf(room: *Room) told.Stats {
    var stats: told.Stats = .{};
    var key: [8]u8 = undefined;
    _ = room.gates.read(0, &stats, &key);
    return stats;
}

/// For what no count tells.
fn until(room: *Room, field: enum { queued, coalesced, in_flight }, wanted: u64) !void {
    for (0..100_000_000) |_| {
        const stats = statsOf(room);
        const is: u64 = switch (field) {
            .queued => stats.queued,
            .coalesced => stats.coalesced,
            .in_flight => stats.in_flight,
        };
        if (is == wanted) return;
        sync.yield();
    }
    return error.NeverSo;
}

test "those that follow end with what the leader was told, and keep it" {
    const room = try Room.open();
    defer room.close();
    const plan = try planOf(room, "/gate", 1, .{ .coalesce = true });
    defer plan.release();
    room.server.gate.store(2, .release); // pairs with the server's load: held until there is another request
    var owners: [5]Owner = undefined;
    for (&owners) |*owner| {
        try owner.make(room, plan);
        owner.start(0);
    }
    try until(room, .coalesced, 4);
    const other = try planOf(room, "/hello", 1, .{});
    defer other.release();
    var opener: Owner = undefined;
    try opener.make(room, other);
    defer opener.call.release();
    opener.start(0);
    for (&owners) |*owner| owner.overs.waitFor(1);
    opener.overs.waitFor(1);
    owners[0].call.release(); // the leader's owner goes first
    for (owners[1..]) |*owner| {
        try testing.expectEqual(.none, owner.call.failure);
        try testing.expectEqualStrings("hello", owner.call.value().bytes());
        owner.call.release();
    }
    try testing.expectEqual(2, room.server.requests.get());
    try room.expectIdle();
}

test "a deadline in virtual time ends whoever follows a leader that backs off" {
    const room = try Room.open();
    defer room.close();
    const plan = try planOf(room, "/limited", 2, .{ .coalesce = true }); // Retry-After: 3
    defer plan.release();
    var owners: [3]Owner = undefined;
    for (&owners) |*owner| try owner.make(room, plan);
    defer for (&owners) |*owner| owner.call.release();
    const began = room.clock.now();
    room.timers.enter(); // the clock stands until all have started
    owners[0].start(0);
    owners[1].start(std.time.ns_per_s);
    owners[2].start(0);
    try until(room, .coalesced, 2);
    room.timers.leave();
    owners[1].overs.waitFor(1);
    try testing.expectEqual(.total_timeout, owners[1].call.failure);
    for (&owners) |*owner| owner.overs.waitFor(1);
    try testing.expectEqual(.status, owners[0].call.failure);
    try testing.expectEqual(.status, owners[2].call.failure);
    try testing.expectEqual(2, owners[2].call.attempts); // its own
    try testing.expect(room.clock.now() - began >= 6 * std.time.ns_per_s);
    try testing.expectEqual(4, room.server.requests.get());
    try room.expectIdle();
}

test "cancels, deadlines, failures and answers in any order: everybody ends once, and nobody stays busy" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const room = try Room.open();
    const flags: admission.Flags = .{ .coalesce = true };
    const plans = [_]*Plan{
        try planOf(room, "/echo", 1, flags),    try planOf(room, "/limited", 2, flags),
        try planOf(room, "/nothing", 1, flags), try planOf(room, "/big", 1, flags),
    };
    defer for (plans) |plan| plan.release();
    for (0..150) |_| {
        const plan = plans[random.uintLessThan(usize, plans.len)];
        var owners: [6]Owner = undefined;
        for (&owners) |*owner| try owner.make(room, plan);
        defer for (&owners) |*owner| owner.call.release();
        const cancelled = random.int(u6);
        const Canceller = struct {
            fn work(all: *[6]Owner, which: u6, pauses: u8) void {
                for (all, 0..) |*owner, i| {
                    for (0..pauses) |_| sync.yield();
                    if (which >> @intCast(i) & 1 == 1) owner.call.cancel();
                }
            }
        };
        for (&owners) |*owner| owner.start(if (random.uintLessThan(u8, 4) == 0) random.uintLessThan(u64, 5 * std.time.ns_per_s) + 1 else 0);
        const other = try sync.Thread.spawn(.{ .name = "test" }, Canceller.work, .{ &owners, cancelled, random.uintLessThan(u8, 8) });
        other.join();
        for (&owners) |*owner| {
            owner.overs.waitFor(1);
            if (owner.call.failure == .none) try testing.expect(owner.call.value().bytes().len > 0);
        }
        for (&owners) |*owner| try testing.expectEqual(1, owner.overs.get());
        try room.expectIdle();
    }
    room.close(); // asserts that there is no party left
}

test "a runtime that is shut down while some follow lets all of them end" {
    const room = try Room.open();
    const plan = try planOf(room, "/never", 3, .{ .coalesce = true });
    defer plan.release();
    var owners: [4]Owner = undefined;
    for (&owners) |*owner| {
        try owner.make(room, plan);
        owner.start(0);
    }
    try until(room, .coalesced, 3);
    room.engine.shutdown();
    for (&owners) |*owner| {
        owner.overs.waitFor(1);
        try testing.expectEqual(.shutdown, owner.call.failure);
        owner.call.release();
    }
    try room.expectIdle();
    room.close();
}

const lessons = 20;

/// After so many answers it is known what is slow.
fn teach(room: *Room, plan: *Plan) !void {
    room.timers.setVirtual(false);
    room.server.gate.store(0, .release); // pairs with the server's load
    for (0..lessons) |_| {
        var owner: Owner = undefined;
        try owner.make(room, plan);
        defer owner.call.release();
        owner.start(0);
        owner.overs.waitFor(1);
        try testing.expectEqual(.none, owner.call.failure);
    }
}

test "the same is sent again, and whichever reply is first counts" {
    const room = try Room.open();
    defer room.close();
    const plan = try planOf(room, "/gate", 1, .{ .hedge = true });
    defer plan.release();
    try teach(room, plan);
    room.server.gate.store(lessons + 2, .release); // pairs with the server's load: the first is answered when there are two
    var owner: Owner = undefined;
    try owner.make(room, plan);
    defer owner.call.release();
    owner.start(0);
    owner.overs.waitFor(1);
    try testing.expectEqual(.none, owner.call.failure);
    try testing.expectEqualStrings("hello", owner.call.value().bytes());
    try testing.expectEqual(1, owner.call.attempts);
    try testing.expectEqual(lessons + 2, room.server.requests.get());
    const stats = statsOf(room);
    try testing.expectEqual(1, stats.hedged);
    try testing.expectEqual(0, stats.in_flight);
    try room.expectIdle();
}

test "a cancel at any moment ends both, and every permit is given back" {
    const room = try Room.open();
    defer room.close();
    const taught = try planOf(room, "/gate", 1, .{ .hedge = true });
    defer taught.release();
    try teach(room, taught);
    const never = try planOf(room, "/never", 1, .{ .hedge = true });
    defer never.release();
    const plain = try planOf(room, "/gate", 1, .{}); // not sent twice when it is slow, so that what it saves is there
    defer plain.release();
    var hedged: u64 = 0;
    for (0..40) |round| {
        for (0..lessons) |_| { // as many as a second attempt costs
            var other: Owner = undefined;
            try other.make(room, plain);
            defer other.call.release();
            other.start(0);
            other.overs.waitFor(1);
        }
        var owner: Owner = undefined;
        try owner.make(room, never);
        defer owner.call.release();
        owner.start(0);
        if (round % 2 == 0) try until(room, .in_flight, 2) else for (0..round * 20) |_| sync.yield();
        owner.call.cancel();
        owner.overs.waitFor(1);
        try testing.expectEqual(.cancelled, owner.call.failure);
        try testing.expectEqual(0, statsOf(room).in_flight);
        hedged = statsOf(room).hedged;
    }
    try testing.expect(hedged >= 20);
    try testing.expect(hedged * 20 <= statsOf(room).admitted - hedged);
    try room.expectIdle();
}
