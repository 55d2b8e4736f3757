//! Tests of the watchdog; and of the lobby as a whole, with threads that take everything exactly once.

const std = @import("std");
const sync = @import("base/sync.zig");
const lobby_file = @import("lobby.zig");
const lobby_test = @import("lobby_test.zig");
const queue_file = @import("queue.zig");
const watch_file = @import("watch.zig");

const testing = std.testing;
const Letter = queue_file.Letter;
const Lobby = lobby_file.Lobby;
const News = queue_file.News;
const Queue = queue_file.Queue;
const Room = lobby_test.Room;
const Source = queue_file.Source;

test "a thread that is out for long is helped, and its helper counts as out with the same run" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const caller = try room.queue(.caller);
    const helper = try room.queue(.thread);
    var source = try room.source(1, 8, &.{});
    room.lobby.setCaller(&source, caller);
    room.lobby.offer(&source, &.{ 0, 1, 2 }, caller);
    room.park(helper);
    try room.expectTaken(caller, 1, &.{ 0, 1, 2 });
    try testing.expectEqual(0, room.news.start_thread);
    try testing.expect(watch_file.watch(&room.lobby)); // it has just left
    try testing.expect(helper.parked);
    Room.heldUp(caller);
    try testing.expect(watch_file.watch(&room.lobby));
    try testing.expect(!helper.parked);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(helper));
    try testing.expectEqual(caller.token, room.news.lender);
    try testing.expectEqual(1, room.news.start_thread); // the next helper
    try testing.expect(helper.out.source == &source and source.out == 2);
    room.lobby.noteProgress(helper, .{ .count = 2, .busy_ns = 2 * std.time.ns_per_ms });
    try testing.expectEqual(std.time.ns_per_ms, source.average_ns);
    // The helper asks for the next before it starts, when none is parked: the next to come takes it.
    room.lobby.crew.coming = 0;
    try testing.expect(room.lobby.lend(helper.token));
    const second = try room.queue(.thread);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(second));
    try testing.expectEqual(helper.token, room.news.lender);
    room.lobby.forget(&source, null);
    try testing.expectEqual(2, room.lobby.threadCounts().abandoned); // the helpers; a caller is no thread of ours
}

test "work behind a thread that is out for long goes to a parked one, of whatever run it is" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const busy = try room.queue(.thread);
    const idle = try room.queue(.thread);
    var alone = try room.source(1, 8, &.{});
    var other = try room.source(2, 8, &.{});
    alone.alone = true;
    room.lobby.offer(&alone, &.{0}, null);
    try room.expectTaken(busy, 1, &.{0});
    room.park(idle);
    Room.heldUp(busy);
    try testing.expect(watch_file.watch(&room.lobby));
    try testing.expect(idle.parked); // nothing is behind it
    room.lobby.offer(&other, &.{3}, busy); // as if it were about to take it
    try testing.expect(idle.parked);
    try testing.expect(watch_file.watch(&room.lobby));
    try testing.expect(!idle.parked);
    try room.expectTaken(idle, 2, &.{3});
    room.lobby.forget(&alone, null);
    room.lobby.forget(&other, null);
}

test "the watchdog lies down when nobody has been out for a while" {
    var room: Room = undefined;
    room.init(4);
    defer room.deinit();
    const thread = try room.queue(.thread);
    var source = try room.source(1, 8, &.{});
    room.lobby.offer(&source, &.{0}, null);
    try room.expectTaken(thread, 1, &.{0});
    for (0..100) |_| try testing.expect(watch_file.watch(&room.lobby));
    try room.expectNothing(thread);
    var ticks: u32 = 0;
    while (watch_file.watch(&room.lobby)) ticks += 1;
    try testing.expect(ticks > 0 and ticks < 100);
    room.lobby.forget(&source, null);
}

test "a callback that waits for a run that needs a thread gives up its place for one" {
    var room: Room = undefined;
    room.init(1);
    defer room.deinit();
    const outer = try room.queue(.thread);
    const inner = try room.queue(.caller);
    room.lobby.within(inner, outer);
    var first = try room.source(1, 4, &.{});
    var nested = try room.source(2, 4, &.{});
    var alone = try room.source(2, 4, &.{});
    alone.root = &nested;
    alone.alone = true;
    room.lobby.offer(&first, &.{0}, null);
    try room.expectTaken(outer, 1, &.{0}); // its callback executes another workflow:
    room.lobby.setCaller(&nested, inner);
    room.lobby.offer(&alone, &.{3}, inner);
    try room.expectNothing(inner);
    room.park(inner);
    try testing.expect(watch_file.watch(&room.lobby)); // it has just begun
    try testing.expect(inner.parked);
    Room.heldUp(outer);
    try testing.expect(watch_file.watch(&room.lobby));
    try testing.expect(!inner.parked);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(inner));
    try testing.expectEqual(1, room.news.start_thread);
    const thread = try room.queue(.thread);
    try room.expectNothing(thread); // it came before the other waited again
    room.park(thread);
    room.park(inner);
    try testing.expect(watch_file.watch(&room.lobby));
    try testing.expect(!thread.parked and inner.parked);
    try room.expectTaken(thread, 2, &.{3});
    try room.expectNothing(thread);
    room.lobby.forget(&alone, null);
    room.lobby.forget(&nested, null);
    room.lobby.wake(inner); // the nested run is over
    try testing.expectEqual(.counted, outer.standing);
    room.park(thread);
    try testing.expectEqualSlices(u32, &.{}, try room.taken(outer));
    try testing.expectEqual(1, room.news.retire);
    room.lobby.forget(&first, null);
}

// ------------------------------------------------------------------------------------------------ threads

/// Runs with nodes that make others ready, taken by callback threads, a caller and whoever else comes.
const Mill = struct {
    const node_count = 3_000;
    const source_count = 6;

    lobby: Lobby,
    sources: [source_count]Source = undefined,
    ran: [source_count][node_count]sync.Atomic(u32) = undefined,
    claimed: [source_count]u32 = @splat(0), // under the lobby's mutex
    left: sync.Atomic(u32) = .init(source_count * node_count),
    live: sync.Atomic(u32) = .init(0),
    live_most: sync.Atomic(u32) = .init(0),
    seed: u64,

    /// The last one is a spread.
    const spread = source_count - 1;
    const live_max = 7;

    fn arm(_: *anyopaque) void {}

    fn claim(source: *Source, nodes: []u32) usize {
        const all: *[source_count]Source = @ptrFromInt(@intFromPtr(source) - source.token * @sizeOf(Source));
        const mill: *Mill = @fieldParentPtr("sources", all);
        mill.claimed[source.token] += @intCast(nodes.len);
        return nodes.len;
    }

    fn serve(mill: *Mill, queue: *Queue, number: u64) void {
        var prng: std.Random.DefaultPrng = .init(mill.seed +% number);
        const dice = prng.random();
        var news: News = .{};
        var done: lobby_file.Done = .{};
        while (true) {
            mill.lobby.wait(queue, done, null, &news) catch |err| switch (err) {
                error.Shutdown => return,
                error.Interrupted => continue,
                error.TimedOut => unreachable,
            };
            if (news.item_count > 0) return; // the caller's: all is over
            done = .{ .count = news.node_count, .busy_ns = news.node_count * dice.uintLessThan(u64, 200_000) };
            if (news.node_count == 0) continue;
            mill.run(queue, &news, dice);
        }
    }

    fn run(mill: *Mill, queue: *Queue, news: *const News, dice: std.Random) void {
        const at: usize = @intCast(news.run_token);
        const source = &mill.sources[at];
        const nodes = news.nodes[0..news.node_count];
        for (nodes) |node| _ = mill.ran[at][node].fetchAdd(1, .monotonic);
        if (at == spread) {
            const live = mill.live.fetchAdd(news.node_count, .monotonic) + news.node_count;
            _ = mill.live_most.fetchMax(live, .monotonic);
            if (dice.boolean()) sync.yield();
            _ = mill.live.fetchSub(news.node_count, .monotonic);
            mill.lobby.itemsOver(source, news.node_count, if (dice.boolean()) queue else null);
        } else {
            // Node n makes 2n + 1 and 2n + 2 ready.
            var offers: [2 * queue_file.batch_max]u32 = undefined;
            var count: usize = 0;
            for (nodes) |node| for ([_]u32{ 2 * node + 1, 2 * node + 2 }) |next| if (next < node_count) {
                offers[count] = next;
                count += 1;
            };
            mill.lobby.offer(source, offers[0..count], if (dice.boolean()) queue else null);
            if (dice.uintLessThan(u32, 50) == 0) mill.lobby.noteProgress(queue, .{ .count = 1, .busy_ns = 1000 });
            if (source.alone and dice.uintLessThan(u32, 20) == 0) mill.lobby.abandon(source, nodes[0]);
        }
        _ = mill.left.fetchSub(news.node_count, .release); // pairs with the test's acquire
    }

    fn serveAndClose(mill: *Mill, queue: *Queue, number: u64) void {
        mill.serve(queue, number);
        mill.lobby.destroyQueue(queue);
    }
};

test "threads, callers and those who are given up run each callback exactly once" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const mill = try arena.allocator().create(Mill);
    mill.* = .{ .lobby = .{ .gpa = testing.allocator, .crew = .init(2, 0), .arm = Mill.arm, .arm_context = mill }, .seed = seed };
    const ranks = try arena.allocator().alloc(u16, Mill.node_count);
    for (ranks, 0..) |*rank, i| rank.* = @intCast(i % 8);
    for (&mill.sources, &mill.ran, 0..) |*source, *ran, i| {
        for (ran) |*times| times.* = .init(0);
        source.* = .{ .token = i, .claim = Mill.claim };
        if (i == Mill.spread) {
            source.spread = .{ .end = Mill.node_count, .live_max = Mill.live_max };
            continue;
        }
        source.link = try arena.allocator().alloc(u32, Mill.node_count);
        source.ready = try .init(arena.allocator(), 8);
        if (i % 2 == 0) source.ranks = ranks;
    }
    mill.sources[1].root = &mill.sources[0]; // a family, with a caller
    mill.sources[2].root = &mill.sources[0];
    mill.sources[2].alone = true;
    mill.sources[3].alone = true;
    const lobby = &mill.lobby;
    const caller = try lobby.createQueue(.caller, 100);
    lobby.setCaller(&mill.sources[0], caller);
    var threads: [4]sync.Thread = undefined; // of which two may run callbacks at once, but for those given up
    for (&threads, 0..) |*thread, i| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Mill.serveAndClose, .{ mill, try lobby.createQueue(.thread, 1 + i), i });
    const waiter = try sync.Thread.spawn(.{ .name = "test" }, Mill.serveAndClose, .{ mill, caller, 99 });
    for (mill.sources[0..Mill.spread]) |*source| lobby.offer(source, &.{0}, null);
    lobby.offerItems(&mill.sources[Mill.spread], null);
    while (mill.left.load(.acquire) > 0) { // pairs with `run`
        _ = watch_file.watch(lobby);
        sync.yield();
    }
    var over: Letter = .{ .item = .{ .token = 1 } };
    for (&mill.sources) |*source| lobby.forget(source, null);
    lobby.post(caller, &over);
    waiter.join();
    lobby.mutex.lock();
    lobby.crew.assertCounts();
    lobby.mutex.unlock();
    lobby.close();
    for (threads) |thread| thread.join();
    lobby.deinit();
    for (&mill.ran, &mill.claimed) |*ran, claimed| {
        try testing.expectEqual(Mill.node_count, claimed);
        for (ran) |*times| try testing.expectEqual(1, times.load(.monotonic));
    }
    try testing.expect(mill.live_most.raw <= Mill.live_max);
    try testing.expectEqual(0, lobby.crew.total());
}
