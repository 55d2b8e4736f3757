//! Tests of the lobby: who is handed what, who is woken, who counts. In one thread: `Room.park` stands for a wait.

const std = @import("std");
const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");
const ranked = @import("base/ranked.zig");
const watch_file = @import("watch.zig");

const testing = std.testing;
const Kind = queue_file.Kind;
const Letter = queue_file.Letter;
const Lobby = lobby_file.Lobby;
const News = queue_file.News;
const Queue = queue_file.Queue;
const Source = queue_file.Source;

/// A lobby, the queues a test made in it, and a news to be filled.
pub const Room = struct {
    lobby: Lobby,
    arena: std.heap.ArenaAllocator,
    armed: u32 = 0,
    tokens: u64 = 0,
    news: News = .{},

    pub fn init(room: *Room, threads_max: u32) void {
        room.* = .{
            .lobby = .{ .gpa = testing.allocator, .crew = .init(threads_max, 0), .arm = arm, .arm_context = room },
            .arena = .init(testing.allocator),
        };
    }

    pub fn deinit(room: *Room) void {
        room.lobby.crew.assertCounts();
        room.lobby.close();
        for (0..room.lobby.queues.items.len) |_| {
            const first = room.lobby.queues.items[0];
            room.lobby.crew.unpark(first);
            room.lobby.destroyQueue(first);
        }
        testing.expectEqual(0, room.lobby.crew.total()) catch @panic("threads are left");
        room.lobby.deinit();
        room.arena.deinit();
    }

    fn arm(context: *anyopaque) void {
        const room: *Room = @ptrCast(@alignCast(context));
        room.armed += 1;
    }

    pub fn queue(room: *Room, kind: Kind) !*Queue {
        room.tokens += 1;
        return room.lobby.createQueue(kind, room.tokens);
    }

    pub fn source(room: *Room, token: u64, nodes: u32, ranks: []const u16) !Source {
        const arena = room.arena.allocator();
        return .{
            .token = token,
            .claim = claimAll,
            .link = try arena.alloc(u32, nodes),
            .ready = try ranked.Ranked.init(arena, 8),
            .ranks = ranks,
        };
    }

    /// What the queue is handed now, empty where it would wait.
    pub fn taken(room: *Room, queue_: *Queue) ![]const u32 {
        room.lobby.wait(queue_, .{}, 0, &room.news) catch |err| {
            try testing.expectEqual(error.TimedOut, err);
            return &.{};
        };
        return room.news.nodes[0..room.news.node_count];
    }

    pub fn expectTaken(room: *Room, queue_: *Queue, token: u64, nodes: []const u32) !void {
        try testing.expectEqualSlices(u32, nodes, try room.taken(queue_));
        try testing.expectEqual(token, room.news.run_token);
    }

    pub fn expectNothing(room: *Room, queue_: *Queue) !void {
        try testing.expectError(error.TimedOut, room.lobby.wait(queue_, .{}, 0, &room.news));
    }

    /// As if its thread waited.
    pub fn park(room: *Room, queue_: *Queue) void {
        room.lobby.mutex.lock();
        defer room.lobby.mutex.unlock();
        room.lobby.backIn(queue_, .{});
        room.lobby.crew.park(queue_);
    }

    /// As if it had been out for that long.
    pub fn heldUp(queue_: *Queue) void {
        queue_.out.since_ns = 0;
    }
};

fn claimAll(_: *Source, nodes: []u32) usize {
    return nodes.len;
}

fn claimNone(_: *Source, _: []u32) usize {
    return 0;
}

fn attemptOf(_: *Source, node: u32) u32 {
    return node + 100;
}

// ------------------------------------------------------------------------------------------------ who takes what

test "a caller takes the callbacks of its own family in turn, and nobody else's" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const caller = try room.queue(.caller);
    var root = try room.source(1, 8, &.{});
    var child = try room.source(2, 8, &.{});
    var grandchild = try room.source(3, 8, &.{});
    var other = try room.source(4, 8, &.{});
    var alone = try room.source(1, 8, &.{});
    child.root = root.head();
    grandchild.root = child.head();
    alone.root = &root;
    alone.alone = true;
    for ([_]*Source{ &root, &child, &grandchild }) |it| it.average_ns = 100_000; // two at a time
    room.lobby.setCaller(&grandchild, caller);
    try testing.expectEqual(caller, root.caller.?);
    room.lobby.offer(&other, &.{0}, null);
    room.lobby.offer(&alone, &.{7}, null);
    room.lobby.offer(&child, &.{ 1, 2, 3 }, caller);
    room.lobby.offer(&grandchild, &.{4}, caller);
    room.lobby.offer(&root, &.{ 5, 6, 0 }, caller);
    try room.expectTaken(caller, 2, &.{ 1, 2 });
    try room.expectTaken(caller, 3, &.{4});
    try room.expectTaken(caller, 1, &.{ 5, 6 });
    try room.expectTaken(caller, 2, &.{3});
    try room.expectTaken(caller, 1, &.{0});
    room.lobby.crew.coming = 1; // a thread will come for the others
    try room.expectNothing(caller);
    for ([_]*Source{ &grandchild, &child, &alone, &other, &root }) |it| room.lobby.forget(it, null);
    try testing.expectEqual(null, caller.pulls);
}

test "a thread takes from all runs in turn, and the highest rank of each first" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    const caller = try room.queue(.caller);
    var a = try room.source(1, 4, &.{ 2, 7, 0, 2 });
    var b = try room.source(2, 4, &.{});
    for ([_]*Source{ &a, &b }) |it| it.average_ns = 100_000;
    room.lobby.setCaller(&b, caller);
    room.lobby.offer(&a, &.{ 0, 1, 2, 3 }, null);
    room.lobby.offer(&b, &.{ 3, 1, 2 }, null);
    try room.expectTaken(thread, 1, &.{ 1, 0 });
    try room.expectTaken(thread, 2, &.{ 3, 1 });
    try room.expectTaken(thread, 1, &.{ 3, 2 });
    try room.expectTaken(thread, 2, &.{2});
    try room.expectNothing(thread);
    try testing.expectEqual(4, room.armed);
    room.lobby.forget(&a, null);
    room.lobby.forget(&b, null);
}

test "callbacks that may no longer run are left out, and the next run's are taken" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    var a = try room.source(1, 300, &.{});
    var b = try room.source(2, 4, &.{});
    a.claim = claimNone;
    room.lobby.offer(&a, &.{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }, null);
    room.lobby.offer(&b, &.{3}, null);
    try room.expectTaken(thread, 2, &.{3});
    try room.expectNothing(thread);
    try testing.expect(!a.listed and a.out == 0);
    room.lobby.forget(&a, null);
    room.lobby.forget(&b, null);
}

test "a run of a family whose head is over is the threads'" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    const caller = try room.queue(.caller);
    var root = try room.source(1, 4, &.{});
    var child = try room.source(2, 4, &.{});
    child.root = &root;
    room.lobby.setCaller(&root, caller);
    room.park(thread);
    room.lobby.offer(&child, &.{ 0, 1 }, caller);
    try testing.expect(thread.parked); // the caller will take them
    room.lobby.forget(&root, null);
    try testing.expect(!thread.parked);
    try testing.expectEqual(null, caller.pulls);
    try room.expectNothing(caller);
    try room.expectTaken(thread, 2, &.{ 0, 1 });
    room.park(thread);
    room.lobby.offer(&child, &.{2}, null);
    try testing.expect(!thread.parked);
    room.lobby.forget(&child, null);
    try testing.expectEqual(null, root.family.first);
    try room.expectNothing(thread);
}

test "a loop starts whatever there is, and is told to come again for what is handed out alone" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const loop = try room.queue(.loop);
    var plain = try room.source(1, 300, &.{});
    var alone = try room.source(1, 4, &.{});
    plain.loop = loop;
    plain.average_ns = std.time.ns_per_s;
    alone.loop = loop;
    alone.alone = true;
    alone.attempt_of = attemptOf;
    var nodes: [40]u32 = undefined;
    for (&nodes, 0..) |*node, i| node.* = @intCast(i);
    room.lobby.offer(&plain, &nodes, null);
    room.lobby.offer(&alone, &.{ 2, 3 }, null);
    try testing.expect(loop.signalled);
    try room.expectTaken(loop, 1, &nodes);
    try testing.expectEqual(0, room.news.attempt);
    try testing.expectEqual(1, room.news.more);
    try room.expectTaken(loop, 1, &.{2});
    try testing.expectEqual(102, room.news.attempt);
    try testing.expectEqual(1, room.news.more);
    try room.expectTaken(loop, 1, &.{3});
    try testing.expectEqual(0, room.news.more);
    try testing.expect(!loop.signalled);
    try testing.expectEqual(0, room.armed);
    room.lobby.offer(&plain, &.{7}, null);
    room.lobby.destroyQueue(loop); // the loop was closed; its runs are not over
    room.lobby.offer(&alone, &.{1}, null);
    var into: [4]u32 = undefined;
    try testing.expectEqualSlices(u32, &.{7}, room.lobby.drain(&plain, &into));
    room.lobby.forget(&plain, null);
    room.lobby.forget(&alone, null);
}

const Poster = struct {
    source: Source,
    lobby: *Lobby,
    queue: *Queue,
    letter: Letter = .{ .item = .{ .token = 77 } },

    fn claim(source: *Source, nodes: []u32) usize {
        const poster: *Poster = @fieldParentPtr("source", source);
        poster.lobby.postHeld(poster.queue, &poster.letter);
        return nodes.len;
    }
};

test "a letter that claiming posts to the loop that is being served is not forgotten" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const loop = try room.queue(.loop);
    var poster: Poster = .{ .source = try room.source(1, 4, &.{}), .lobby = &room.lobby, .queue = loop };
    poster.source.claim = Poster.claim;
    poster.source.loop = loop;
    room.lobby.offer(&poster.source, &.{1}, null);
    try room.expectTaken(loop, 1, &.{1});
    try testing.expect(room.news.more == 1 or loop.signalled);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(loop));
    try testing.expectEqual(1, room.news.item_count);
    try testing.expectEqual(77, room.news.items[0].token);
    try testing.expectEqual(0, room.news.more);
    try testing.expect(!loop.signalled);
    room.lobby.forget(&poster.source, null);
}

// ------------------------------------------------------------------------------------------------ spreads

test "a spread is listed while items are left and not too many are out" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    var spread: Source = .{ .token = 9, .claim = claimAll, .spread = .{ .end = 5, .live_max = 3 } };
    room.lobby.offerItems(&spread, null);
    try room.expectTaken(thread, 9, &.{ 0, 1, 2 });
    try testing.expect(!spread.listed);
    try room.expectNothing(thread);
    room.park(thread);
    room.lobby.itemsOver(&spread, 1, null);
    try testing.expect(spread.listed and !thread.parked);
    try room.expectTaken(thread, 9, &.{3});
    try room.expectNothing(thread);
    room.lobby.itemsOver(&spread, 3, null);
    try room.expectTaken(thread, 9, &.{4});
    room.lobby.itemsOver(&spread, 1, null);
    try testing.expect(!spread.listed);
    room.lobby.offerItems(&spread, null);
    try room.expectNothing(thread);
    room.lobby.forget(&spread, null);
}

test "what is taken back is no longer handed out" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    var nodes = try room.source(1, 4, &.{ 0, 1, 2, 3 });
    var spread: Source = .{ .token = 2, .claim = claimAll, .average_ns = 100_000, .spread = .{ .end = 500 } };
    room.lobby.offer(&nodes, &.{ 0, 1, 2, 3 }, null);
    room.lobby.offerItems(&spread, null);
    var into: [3]u32 = undefined;
    try testing.expectEqualSlices(u32, &.{ 3, 2, 1 }, room.lobby.drain(&nodes, &into));
    try testing.expectEqualSlices(u32, &.{0}, room.lobby.drain(&nodes, &into));
    try testing.expect(!nodes.listed);
    try room.expectTaken(thread, 2, &.{ 0, 1 });
    try testing.expectEqual(queue_file.Items{ .first = 2, .end = 500 }, room.lobby.drainItems(&spread));
    try room.expectNothing(thread);
    room.lobby.forget(&spread, null);
}

// ------------------------------------------------------------------------------------------------ who is woken

test "a parked caller is woken for its family, a thread where no caller takes, and nobody where the offerer does" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    const caller = try room.queue(.caller);
    var root = try room.source(1, 8, &.{});
    var child = try room.source(2, 8, &.{});
    child.root = &root;
    room.park(thread);
    room.lobby.setCaller(&root, caller);
    room.lobby.offer(&child, &.{0}, caller);
    try testing.expect(thread.parked);
    room.park(caller);
    const word = caller.word.raw;
    room.lobby.offer(&child, &.{1}, null);
    try testing.expect(!caller.parked and thread.parked and caller.word.raw != word);
    room.lobby.offer(&root, &.{0}, null); // it will be back
    try testing.expect(thread.parked);
    child.average_ns = std.time.ns_per_ms;
    room.lobby.offer(&child, &.{2}, null); // slow: a thread helps
    try testing.expect(!thread.parked);
    room.park(thread);
    room.lobby.unsetCaller(&child, caller);
    try testing.expect(!thread.parked); // what is left is now the threads'
    room.lobby.forget(&child, null);
    room.lobby.forget(&root, null);
}

test "callbacks that are handed out alone go to one thread after the other, each with its attempt" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const first = try room.queue(.thread);
    const second = try room.queue(.thread);
    const caller = try room.queue(.caller);
    var root = try room.source(1, 4, &.{});
    var alone = try room.source(1, 4, &.{});
    alone.root = &root;
    alone.alone = true;
    alone.attempt_of = attemptOf;
    room.lobby.setCaller(&root, caller);
    room.park(first);
    room.park(second);
    room.lobby.offer(&alone, &.{ 0, 1, 2 }, caller);
    try testing.expect(!first.parked and second.parked);
    try room.expectTaken(first, 1, &.{0});
    try testing.expectEqual(100, room.news.attempt);
    try testing.expect(!second.parked); // the next goes on at once
    try room.expectTaken(second, 1, &.{1});
    try testing.expectEqual(101, room.news.attempt);
    try testing.expectEqual(1, room.news.start_thread);
    try room.expectNothing(caller);
    try testing.expectEqual(1, alone.count());
    room.lobby.forget(&alone, null);
    room.lobby.forget(&root, null);
}

test "a caller has a thread started for what only threads may take" {
    var room: Room = undefined;
    room.init(1);
    defer room.deinit();
    const caller = try room.queue(.caller);
    var root = try room.source(1, 4, &.{});
    var alone = try room.source(1, 4, &.{});
    alone.root = &root;
    alone.alone = true;
    room.lobby.setCaller(&root, caller);
    room.park(caller);
    room.lobby.offer(&alone, &.{0}, null); // it waits already
    try testing.expect(!caller.parked);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(caller));
    try testing.expectEqual(1, room.news.start_thread);
    try room.expectNothing(caller); // one is coming
    const thread = try room.queue(.thread);
    try room.expectTaken(thread, 1, &.{0});
    try testing.expectEqual(1, room.news.start_thread); // one on call, for this callback may be given up
    room.lobby.crew.coming = 0;
    room.lobby.abandon(&alone, 0);
    room.lobby.offer(&alone, &.{1}, caller); // about to wait
    try testing.expectEqualSlices(u32, &.{}, try room.taken(caller));
    try testing.expectEqual(1, room.news.start_thread);
    room.lobby.forget(&alone, null);
    room.lobby.forget(&root, null);
}

// ------------------------------------------------------------------------------------------------ given up

test "a thread that is given up makes room, and is told to end when it is back and not needed" {
    var room: Room = undefined;
    room.init(1);
    defer room.deinit();
    const stuck = try room.queue(.thread);
    const on_call = try room.queue(.thread);
    var alone = try room.source(1, 4, &.{});
    alone.alone = true;
    room.lobby.offer(&alone, &.{ 0, 1 }, null);
    try room.expectTaken(stuck, 1, &.{0});
    try room.expectNothing(on_call); // as many run as may
    room.park(on_call);
    room.lobby.abandon(&alone, 3); // nobody is out with that one
    try testing.expect(on_call.parked);
    room.lobby.abandon(&alone, 0);
    try testing.expect(!on_call.parked);
    try testing.expectEqual(@TypeOf(room.lobby.crew).Counts{ .threads = 1, .parked = 0, .abandoned = 1, .hard_max = 65 }, room.lobby.threadCounts());
    room.lobby.abandon(&alone, 0);
    try room.expectTaken(on_call, 1, &.{1});
    try testing.expectEqual(1, room.news.start_thread);
    const third = try room.queue(.thread);
    room.park(third);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(stuck)); // it is back, and nobody needs it
    try testing.expectEqual(1, room.news.retire);
    try testing.expectEqual(0, room.lobby.threadCounts().abandoned);
    try room.expectNothing(stuck); // told once: it has a reason to stay, and another is to go
    try testing.expect(!third.parked);
    room.park(stuck);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(third));
    try testing.expectEqual(1, room.news.retire);
    room.lobby.destroyQueue(third);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(on_call)); // nothing is out that may be given up
    try testing.expectEqual(1, room.news.retire);
    room.lobby.destroyQueue(on_call);
    try testing.expectEqual(1, room.lobby.threadCounts().threads);
    room.lobby.forget(&alone, null);
}

test "a run that is over gives up the threads that are out with it, but not the one that ended it" {
    var room: Room = undefined;
    room.init(2);
    defer room.deinit();
    const ender = try room.queue(.thread);
    const stuck = try room.queue(.thread);
    const loop = try room.queue(.loop);
    var source = try room.source(1, 8, &.{});
    var other = try room.source(2, 8, &.{});
    source.average_ns = std.time.ns_per_ms;
    room.lobby.offer(&source, &.{ 0, 1 }, null);
    try room.expectTaken(ender, 1, &.{0});
    try room.expectTaken(stuck, 1, &.{1});
    room.lobby.offer(&other, &.{5}, null); // no thread is left for it
    room.lobby.forget(&source, ender);
    try testing.expectEqual(1, room.lobby.threadCounts().abandoned);
    // Nobody in here can start a thread but the loop.
    try testing.expect(loop.signalled);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(loop));
    try testing.expectEqual(1, room.news.start_thread);
    // Had the ender been in a callback all the while, the watchdog would notice.
    Room.heldUp(ender);
    try testing.expect(watch_file.watch(&room.lobby));
    try testing.expectEqual(2, room.lobby.threadCounts().abandoned);
    try room.expectTaken(ender, 2, &.{5});
    try testing.expectEqual(1, room.lobby.threadCounts().abandoned);
    room.lobby.forget(&other, null);
}

test "there are never more threads than the hard limit, however many are given up" {
    var room: Room = undefined;
    room.init(1);
    defer room.deinit();
    room.lobby.crew.threads_hard_max = 3;
    var alone = try room.source(1, 8, &.{});
    alone.alone = true;
    for (0..3) |i| {
        const thread = try room.queue(.thread);
        room.lobby.offer(&alone, &.{@intCast(i)}, null);
        try room.expectTaken(thread, 1, &.{@intCast(i)});
        try testing.expectEqual(@intFromBool(i < 2), room.news.start_thread);
        room.lobby.abandon(&alone, @intCast(i));
    }
    try testing.expectEqual(3, room.lobby.threadCounts().abandoned);
    try testing.expect(!room.lobby.crew.ask());
    room.lobby.forget(&alone, null);
}
