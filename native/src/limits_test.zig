//! Limits, tried: who goes next, by hand, at random against a list that is searched from end to end, and by threads at once.

const std = @import("std");
const sync = @import("base/sync.zig");
const limits_file = @import("limits.zig");

const testing = std.testing;
const Allocator = std.mem.Allocator;
const Bits = limits_file.Bits;
const Counts = limits_file.Counts;
const Granted = limits_file.Granted;
const Limits = limits_file.Limits;
const Line = limits_file.Line;
const none = std.math.maxInt(u32);

const Room = struct {
    arena: std.heap.ArenaAllocator,
    limits: *Limits,
    lines: [4]Line = undefined,

    const nodes_max = 256;
    const ranks = 8;

    fn init(room: *Room, capacities: []const u32, masks: []const u32) !void {
        room.* = .{ .arena = .init(testing.allocator), .limits = try .create(testing.allocator, capacities) };
        const arena = room.arena.allocator();
        for (&room.lines) |*line| try line.init(arena, room.limits, try arena.alloc(u32, nodes_max), masks, ranks);
    }

    fn deinit(room: *Room) void {
        for (&room.lines) |*line| line.deinit();
        room.limits.release();
        room.arena.deinit();
    }

    fn enter(room: *Room, line: usize, node: u32, mask: u32, rank: u32) bool {
        return room.limits.tryEnter(&room.lines[line], node, mask, rank);
    }

    fn leave(room: *Room, mask: u32) Granted {
        var granted: Granted = .{};
        room.limits.leave(mask, &granted);
        return granted;
    }

    fn expectNext(room: *Room, granted: *Granted, line: usize, node: u32) !void {
        const pair = granted.next() orelse return error.NobodyWent;
        try testing.expectEqual(line, room.index(pair.line));
        try testing.expectEqual(node, pair.node);
    }

    fn index(room: *const Room, line: *const Line) usize {
        return (@intFromPtr(line) - @intFromPtr(&room.lines)) / @sizeOf(Line);
    }
};

test "no more go than there are permits, the others in the order of rank and arrival" {
    var room: Room = undefined;
    try room.init(&.{2}, &.{ 1, 0, 1 });
    defer room.deinit();
    try testing.expect(room.enter(0, 0, 1, 0));
    try testing.expect(room.enter(0, 1, 1, 0));
    try testing.expect(room.enter(0, 9, 0, 0)); // needs nothing
    for ([_]u32{ 1, 5, 1, 5 }, 2..) |rank, node| try testing.expect(!room.enter(0, @intCast(node), 1, rank));
    try testing.expectEqual(Counts{ .capacity = 2, .in_use = 2, .waiting = 4, .peak = 2 }, room.limits.read(0));
    for ([_]u32{ 3, 5, 2, 4 }) |node| {
        var granted = room.leave(1);
        try room.expectNext(&granted, 0, node);
        try testing.expectEqual(null, granted.next());
    }
    for (0..2) |_| {
        var granted = room.leave(1);
        try testing.expectEqual(null, granted.next());
    }
    try testing.expectEqual(Counts{ .capacity = 2, .in_use = 0, .waiting = 0, .peak = 2 }, room.limits.read(0));
}

test "runs take turns, whatever their ranks and however many wait" {
    var room: Room = undefined;
    try room.init(&.{1}, &.{1});
    defer room.deinit();
    try testing.expect(room.enter(0, 0, 1, 0));
    for (1..5) |node| try testing.expect(!room.enter(0, @intCast(node), 1, 7));
    for (1..3) |node| try testing.expect(!room.enter(1, @intCast(node), 1, 0));
    try testing.expect(!room.enter(2, 1, 1, 3));
    for ([_]struct { usize, u32 }{ .{ 0, 1 }, .{ 1, 1 }, .{ 2, 1 }, .{ 0, 2 }, .{ 1, 2 }, .{ 0, 3 }, .{ 0, 4 } }) |expected| {
        var granted = room.leave(1);
        try room.expectNext(&granted, expected[0], expected[1]);
        try testing.expectEqual(null, granted.next());
    }
    _ = room.leave(1);
}

test "who lacks something else is passed" {
    var room: Room = undefined;
    try room.init(&.{ 1, 1 }, &.{ 1, 2, 3 });
    defer room.deinit();
    try testing.expect(room.enter(0, 0, 2, 0));
    try testing.expect(!room.enter(0, 1, 3, 7)); // lacks the second
    try testing.expect(room.enter(0, 2, 1, 0));
    try testing.expect(!room.enter(0, 3, 1, 0));
    var granted = room.leave(1);
    try room.expectNext(&granted, 0, 3);
    room.limits.leave(2, &granted);
    try testing.expectEqual(null, granted.next()); // now it lacks the first
    room.limits.leave(1, &granted);
    try room.expectNext(&granted, 0, 1);
    _ = room.leave(3);
}

test "a node that needs several is not passed for ever" {
    var room: Room = undefined;
    try room.init(&.{ 2, 2 }, &.{ 1, 2, 3 });
    defer room.deinit();
    // Two streams, each of which keeps its limit full at any time.
    for (0..2) |_| {
        try testing.expect(room.enter(0, 0, 1, 0));
        try testing.expect(room.enter(1, 0, 2, 0));
    }
    try testing.expect(!room.enter(2, 0, 3, 0));
    var passed: u32 = 0;
    var went = false;
    while (!went) : (passed += 1) for ([_]u32{ 1, 2 }, 0..) |mask, line| {
        if (room.limits.read(@intCast(line)).waiting < 2) _ = room.enter(line, passed, mask, 7);
        if (room.limits.read(@intCast(line)).in_use == 0) continue;
        var granted = room.leave(mask);
        while (granted.next()) |pair| if (pair.line == &room.lines[2]) {
            went = true;
        };
    };
    try testing.expect(passed <= limits_file.patience_default + 2);
    try testing.expectEqual(null, room.limits.reserved);
    // What was kept is free again.
    for ([_]u32{ 0, 1 }) |limit| while (room.limits.read(limit).in_use > 0) {
        var granted = room.leave(@as(u32, 1) << @intCast(limit));
        while (granted.next()) |_| {}
    };
    try testing.expectEqual(0, room.limits.waiting);
}

test "more may go at once than a list has room for, and none is lost" {
    var room: Room = undefined;
    try room.init(&.{ 200, 1 }, &.{ 1, 2, 3 });
    defer room.deinit();
    room.limits.patience = 1;
    try testing.expect(room.enter(0, 0, 2, 0));
    try testing.expect(!room.enter(1, 0, 3, 0));
    try testing.expect(room.enter(2, 0, 1, 0)); // passes it
    for (1..150) |node| try testing.expect(!room.enter(2, @intCast(node), 1, 0)); // kept
    var taken: [4]u32 = undefined;
    var granted: Granted = .{};
    try testing.expectEqualSlices(u32, &.{0}, room.limits.drain(&room.lines[1], &taken, &granted));
    try testing.expect(!room.enter(2, 150, 1, 7)); // behind those who are owed
    try room.expectNext(&granted, 2, 1);
    for (2..Granted.room + 1) |node| try room.expectNext(&granted, 2, @intCast(node));
    try room.expectNext(&granted, 2, 150); // of higher rank than the rest
    for (Granted.room + 1..150) |node| try room.expectNext(&granted, 2, @intCast(node));
    try testing.expectEqual(null, granted.next());
    try testing.expect(room.enter(2, 151, 1, 0));
    for (0..152) |_| _ = room.leave(1);
    _ = room.leave(2);
}

test "what is drained goes nowhere else" {
    var room: Room = undefined;
    try room.init(&.{ 1, 1 }, &.{ 1, 2 });
    defer room.deinit();
    try testing.expect(room.enter(0, 0, 1, 0));
    try testing.expect(room.enter(0, 1, 2, 0));
    for (2..6) |node| try testing.expect(!room.enter(0, @intCast(node), if (node % 2 == 0) 1 else 2, 0));
    var into: [3]u32 = undefined;
    var granted: Granted = .{};
    try testing.expectEqualSlices(u32, &.{ 2, 4, 3 }, room.limits.drain(&room.lines[0], &into, &granted));
    try testing.expectEqualSlices(u32, &.{5}, room.limits.drain(&room.lines[0], &into, &granted));
    try testing.expectEqual(null, granted.next());
    var after = room.leave(1);
    try testing.expectEqual(null, after.next());
    _ = room.leave(2);
}

test "whoever carries out what was granted finds its run held, once for each node" {
    const Held = struct {
        line: Line,
        times: u32 = 0,
        fn hold(line: *Line) void {
            const held: *@This() = @fieldParentPtr("line", line);
            held.times += 1;
        }
    };
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const limits: *Limits = try .create(testing.allocator, &.{2});
    defer limits.release();
    var link: [8]u32 = undefined;
    var held: Held = .{ .line = undefined };
    try held.line.init(arena.allocator(), limits, &link, &.{1}, 1);
    defer held.line.deinit();
    held.line.on_grant = Held.hold;
    for (0..5) |node| _ = limits.tryEnter(&held.line, @intCast(node), 1, 0);
    var granted: Granted = .{};
    for (0..2) |_| limits.leave(1, &granted);
    try testing.expectEqual(2, held.times);
    var into: [8]u32 = undefined;
    try testing.expectEqual(1, limits.drain(&held.line, &into, &granted).len);
    try testing.expectEqual(2, held.times); // what is drained is the run's own
    while (granted.next()) |_| limits.leave(1, &granted);
    try testing.expectEqual(0, limits.read(0).in_use);
}

test "limits that let nobody in are refused" {
    try testing.expectError(error.InvalidArgument, Limits.create(testing.allocator, &.{ 1, 0 }));
    try testing.expectError(error.InvalidArgument, Limits.create(testing.allocator, &@as([33]u32, @splat(1))));
    const limits: *Limits = try .create(testing.allocator, &@as([32]u32, @splat(1)));
    defer limits.release();
    try testing.expect(limits.knows(~@as(u32, 0)));
}

test "every allocation of a line may fail" {
    const run = struct {
        fn all(gpa: Allocator) !void {
            const limits: *Limits = try .create(gpa, &.{ 1, 2, 3 });
            defer limits.release();
            var arena: std.heap.ArenaAllocator = .init(gpa);
            defer arena.deinit();
            var link: [4]u32 = undefined;
            var lines: [2]Line = undefined;
            try lines[0].init(arena.allocator(), limits, &link, &.{ 1, 3 }, 5);
            defer lines[0].deinit();
            try lines[1].init(arena.allocator(), limits, &link, &.{ 3, 5, 7 }, 5);
            lines[1].deinit();
        }
    };
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{});
}

/// A list that is searched from end to end.
const Model = struct {
    capacities: []const u32,
    in_use: [3]u32 = @splat(0),
    waiters: std.ArrayList(Waiter) = .empty,
    running: std.ArrayList(u32) = .empty, // masks
    arrivals: u64 = 0,
    turns: [4]u64 = @splat(0), // when a run was last served

    const Waiter = struct { line: usize, node: u32, mask: u32, rank: u32, arrival: u64 };

    fn fits(model: *const Model, mask: u32) bool {
        var bits: Bits = .{ .left = mask };
        while (bits.next()) |bit| if (model.in_use[bit] == model.capacities[bit]) return false;
        return true;
    }

    fn take(model: *Model, mask: u32) !void {
        try testing.expect(model.fits(mask));
        var bits: Bits = .{ .left = mask };
        while (bits.next()) |bit| model.in_use[bit] += 1;
        try model.running.append(testing.allocator, mask);
    }

    fn give(model: *Model, random: std.Random) u32 {
        const mask = model.running.swapRemove(random.uintLessThan(usize, model.running.items.len));
        var bits: Bits = .{ .left = mask };
        while (bits.next()) |bit| model.in_use[bit] -= 1;
        return mask;
    }

    /// Somebody was let in: nobody should have been before.
    fn grant(model: *Model, line: usize, node: u32, strict: bool) !void {
        const at = for (model.waiters.items, 0..) |waiter, at| {
            if (waiter.line == line and waiter.node == node) break at;
        } else return error.DoesNotWait;
        const chosen = model.waiters.items[at];
        for (model.waiters.items) |waiter| {
            const of_class = waiter.line == line and waiter.mask == chosen.mask;
            if (of_class) try testing.expect(waiter.rank < chosen.rank or (waiter.rank == chosen.rank and waiter.arrival >= chosen.arrival));
            if (!strict or !model.fits(waiter.mask)) continue;
            if (waiter.line == line) try testing.expect(waiter.rank <= chosen.rank);
        }
        _ = model.waiters.orderedRemove(at);
        try model.take(chosen.mask);
    }

    fn check(model: *const Model, limits: *Limits) !void {
        for (model.capacities, 0..) |capacity, bit| {
            const counts = limits.read(@intCast(bit));
            try testing.expectEqual(model.in_use[bit], counts.in_use);
            try testing.expect(counts.in_use <= capacity and counts.peak <= capacity);
            var waiting: u32 = 0;
            for (model.waiters.items) |waiter| waiting += @intFromBool(waiter.mask & (@as(u32, 1) << @intCast(bit)) != 0);
            try testing.expectEqual(waiting, counts.waiting);
        }
        // Nobody waits who could go.
        for (model.waiters.items) |waiter| if (model.fits(waiter.mask)) {
            const reserved = limits.reserved orelse return error.LeftWaiting;
            try testing.expect(waiter.mask & reserved.mask != 0 and waiter.mask != reserved.mask);
        };
    }
};

test "random comings and goings are what a searched list allows" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    for (0..60) |round| {
        const capacities = [_]u32{ random.intRangeAtMost(u32, 1, 4), random.intRangeAtMost(u32, 1, 4), random.intRangeAtMost(u32, 1, 2) };
        const strict = round % 2 == 0;
        var room: Room = undefined;
        try room.init(&capacities, &.{ 1, 2, 3, 4, 5, 6, 7 });
        defer room.deinit();
        room.limits.patience = if (strict) none else random.intRangeAtMost(u32, 1, 5);
        var model: Model = .{ .capacities = &capacities };
        defer model.waiters.deinit(testing.allocator);
        defer model.running.deinit(testing.allocator);
        var next: [4]u32 = @splat(0);
        for (0..600) |_| {
            var granted: Granted = .{};
            const line = random.uintLessThan(usize, 4);
            switch (random.uintLessThan(u32, 32)) {
                0 => {
                    var into: [3]u32 = undefined;
                    for (room.limits.drain(&room.lines[line], &into, &granted)) |node| {
                        const at = for (model.waiters.items, 0..) |waiter, at| {
                            if (waiter.line == line and waiter.node == node) break at;
                        } else return error.DidNotWait;
                        _ = model.waiters.orderedRemove(at);
                    }
                },
                1...15 => if (next[line] < Room.nodes_max) {
                    const mask = random.intRangeAtMost(u32, 1, 7);
                    const rank = random.uintLessThan(u32, 4);
                    const node = next[line];
                    next[line] += 1;
                    if (room.enter(line, node, mask, rank)) {
                        try model.take(mask);
                    } else {
                        model.arrivals += 1;
                        try model.waiters.append(testing.allocator, .{ .line = line, .node = node, .mask = mask, .rank = rank, .arrival = model.arrivals });
                    }
                },
                else => if (model.running.items.len > 0) room.limits.leave(model.give(random), &granted),
            }
            while (granted.next()) |pair| try model.grant(room.index(pair.line), pair.node, strict);
            try model.check(room.limits);
        }
        while (model.running.items.len > 0) {
            var granted = room.leave(model.give(random));
            while (granted.next()) |pair| try model.grant(room.index(pair.line), pair.node, strict);
        }
        try testing.expectEqual(0, model.waiters.items.len); // nobody was lost
        try testing.expectEqual(null, room.limits.reserved);
    }
}

test "threads that share limits never exceed them, and every node goes once" {
    const threads_count = 4;
    const nodes_count = 3_000;
    const Shared = struct {
        room: Room = undefined,
        in_use: [2]sync.Atomic(u32) = @splat(.init(0)),
        times: [threads_count][nodes_count]sync.Atomic(u32) = @splat(@splat(.init(0))),
        excess: sync.Atomic(u32) = .init(0),
        masks: [nodes_count]u32 = undefined,

        const capacities = [_]u32{ 2, 3 };

        fn begin(shared: *@This(), line: usize, node: u32) void {
            var bits: Bits = .{ .left = shared.masks[node] };
            while (bits.next()) |bit| {
                if (shared.in_use[bit].fetchAdd(1, .monotonic) >= capacities[bit]) _ = shared.excess.fetchAdd(1, .monotonic);
            }
            _ = shared.times[line][node].fetchAdd(1, .monotonic);
        }

        fn end(shared: *@This(), node: u32, granted: *Granted) void {
            var bits: Bits = .{ .left = shared.masks[node] };
            while (bits.next()) |bit| _ = shared.in_use[bit].fetchSub(1, .monotonic);
            shared.room.limits.leave(shared.masks[node], granted);
        }

        fn work(shared: *@This(), line: usize) void {
            var granted: Granted = .{};
            var held: ?u32 = null; // so that permits are in use while others come
            for (0..nodes_count) |n| {
                const node: u32 = @intCast(n);
                if (shared.room.enter(line, node, shared.masks[node], node % Room.ranks)) {
                    shared.begin(line, node);
                    if (held) |it| shared.end(it, &granted);
                    held = node;
                }
                while (granted.next()) |pair| {
                    shared.begin(shared.room.index(pair.line), pair.node);
                    if (pair.node % 8 == 0) sync.yield();
                    shared.end(pair.node, &granted);
                }
            }
            if (held) |it| shared.end(it, &granted);
            while (granted.next()) |pair| {
                shared.begin(shared.room.index(pair.line), pair.node);
                shared.end(pair.node, &granted);
            }
        }
    };
    const shared = try testing.allocator.create(Shared);
    defer testing.allocator.destroy(shared);
    shared.* = .{};
    shared.room = .{ .arena = .init(testing.allocator), .limits = try .create(testing.allocator, &Shared.capacities) };
    const arena = shared.room.arena.allocator();
    for (&shared.room.lines) |*line| try line.init(arena, shared.room.limits, try arena.alloc(u32, nodes_count), &.{ 1, 2, 3 }, Room.ranks);
    defer shared.room.deinit();
    for (&shared.masks, 0..) |*mask, n| mask.* = 1 + @as(u32, @intCast(n * 7 % 3));
    var threads: [threads_count]sync.Thread = undefined;
    for (&threads, 0..) |*thread, line| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.work, .{ shared, line });
    for (threads) |thread| thread.join();
    try testing.expectEqual(0, shared.excess.load(.monotonic));
    for (&shared.times) |*line| for (line) |*times| try testing.expectEqual(1, times.load(.monotonic));
    try testing.expectEqual(0, shared.room.limits.waiting);
}
