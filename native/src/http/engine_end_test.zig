//! How transfers and the engine end: cancelled, timed out, shut down, out of memory, and all of it at random.

const std = @import("std");
const sync = @import("../base/sync.zig");
const clock_file = @import("../base/clock.zig");
const engine_file = @import("engine.zig");
const loopback = @import("loopback.zig");
const test_room = @import("test_room.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Count = loopback.Count;
const Engine = engine_file.Engine;
const Message = engine_file.Message;
const Request = test_room.Request;
const Room = test_room.Room;
const Server = loopback.Server;

test "a cancelled transfer closes its socket, and ends once" {
    const room = try Room.open(.{});
    defer room.close();
    _ = try room.to("/never");
    room.request.start();
    room.server.requests.waitFor(1);
    room.request.cancel();
    room.done.waitFor(1);
    room.server.closed.waitFor(1);
    try room.expectFailure(.cancelled, "cancelled");
    room.request.cancel(); // it is over: nothing happens
    room.request.cancels.waitFor(2);
    _ = try room.to("/half");
    room.request.start();
    room.server.requests.waitFor(2);
    room.request.cancel();
    room.done.waitFor(2);
    room.server.closed.waitFor(2);
    try testing.expectEqual(0, room.engine.readStats().in_flight);
}

test "a transfer that is cancelled before it began has sent nothing" {
    const room = try Room.open(.{});
    defer room.close();
    const transfer = try room.to("/hello"); // its handle is used again
    room.send();
    try testing.expect(transfer.bytes_sent > 0);
    const Both = struct {
        var both: *Room = undefined;
        fn run(_: *Message) void {
            both.engine.submit(&both.request.transfer);
            both.engine.cancel(&both.request.transfer);
        }
    };
    Both.both = room;
    var message: Message = .{ .run = Both.run };
    _ = try room.to("/hello");
    room.engine.post(&message);
    room.done.waitFor(2);
    try room.expectFailure(.cancelled, "cancelled");
    try testing.expectEqual(0, transfer.bytes_sent + transfer.bytes_received);
    try testing.expectEqual(1, room.server.requests.get());
    try testing.expectEqual(0, room.engine.readStats().connections_reused);
}

test "a transfer that waits for a connection can be cancelled, and can run out of time" {
    const room = try Room.open(.{ .connections_max = 1 });
    defer room.close();
    _ = try room.to("/never");
    room.request.start();
    room.server.requests.waitFor(1);
    var second: Request = .init(room.engine, &room.done, room.url.?);
    defer second.transfer.deinit(gpa);
    second.start();
    second.cancel();
    room.done.waitFor(1);
    try testing.expectEqual(.cancelled, second.transfer.failure);
    second.transfer.reset();
    second.transfer.url = room.url.?;
    second.transfer.total_timeout_ms = 20;
    second.start();
    room.done.waitFor(2);
    try testing.expectEqual(.total_timeout, second.transfer.failure);
    try testing.expectEqual(1, room.server.requests.get());
    room.request.cancel();
    room.done.waitFor(3);
}

test "timeouts: connecting, silence, and all together" {
    const room = try Room.open(.{});
    defer room.close();
    _ = try room.to("/hello"); // the handle has connected before
    room.send();
    try room.expectBody("hello");

    var deaf = try loopback.Deaf.start();
    defer deaf.stop();
    const text = try gpa.print("http://127.0.0.1:{d}/\x00", .{deaf.listener.port});
    defer gpa.free(text);
    var transfer = try room.to("/");
    transfer.url = text[0 .. text.len - 1 :0];
    transfer.connect_timeout_ms = 30;
    transfer.idle_timeout_ms = 10; // does not count before there is a connection
    room.send();
    try room.expectFailure(.connect_timeout, "no connection within 30 ms");

    transfer = try room.to("/half");
    transfer.connect_timeout_ms = 10;
    transfer.idle_timeout_ms = 40;
    transfer.total_timeout_ms = 60_000;
    room.send();
    try room.expectFailure(.idle_timeout, "silent for 40 ms");
    try testing.expectEqual(200, transfer.status);
    room.server.closed.waitFor(1);

    transfer = try room.to("/never");
    transfer.idle_timeout_ms = 60_000;
    transfer.total_timeout_ms = 30;
    room.send();
    try room.expectFailure(.total_timeout, "not finished within 30 ms");
    try testing.expect(transfer.ended_ns - transfer.started_ns >= 30 * std.time.ns_per_ms);
}

test "shutdown ends what is running and what waits, and closes the sockets" {
    const room = try Room.open(.{ .connections_per_shard = 2, .connections_max = 6 });
    defer room.close();
    const url = try room.server.url(gpa, "/never");
    defer gpa.free(url);
    var requests: [30]Request = undefined;
    for (&requests) |*request| {
        request.* = .init(room.engine, &room.done, url);
        request.start();
    }
    room.server.requests.waitFor(6);
    room.engine.shutdown();
    try testing.expectEqual(requests.len, room.done.get());
    room.server.closed.waitFor(6);
    for (&requests) |*request| {
        try testing.expectEqual(.shutdown, request.transfer.failure);
        request.transfer.deinit(gpa);
    }
    const stats = room.engine.readStats();
    try testing.expectEqual(0, stats.in_flight + stats.queued);
    try testing.expectEqual(0, room.engine.threadCount());
}

test "whatever happens to them, all transfers end once and nothing stays behind" {
    const random = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{random});
    var prng = std.Random.DefaultPrng.init(random);
    const dice = prng.random();
    const room = try Room.open(.{ .connections_per_shard = 2, .connections_max = 9 });
    defer room.close();
    const paths = [_][]const u8{ "/hello", "/echo", "/split", "/half", "/never", "/early", "/close", "/nothing", "/garbage", "/big" };
    var urls: [paths.len][:0]u8 = undefined;
    for (paths, &urls) |path, *url| url.* = try room.server.url(gpa, path);
    defer for (urls) |url| gpa.free(url);
    const Look = struct {
        message: Message = .{ .run = run },
        engine: *Engine,
        ran: Count = .{},
        open: usize = 0,
        polled: usize = 0,
        too_many: u32 = 0,
        fn run(message: *Message) void { // on the engine's thread, where the numbers stand still
            const it: *@This() = @fieldParentPtr("message", message);
            it.open = 0;
            for (it.engine.fleet.shards.items) |shard| {
                it.open += shard.open;
                it.too_many += shard.open -| shard.limit;
            }
            it.polled = it.engine.common.sockets.entries.count();
            it.ran.add();
        }
    };
    var look: Look = .{ .engine = room.engine };
    var requests: [40]Request = undefined;
    for (&requests) |*request| request.* = .init(room.engine, &room.done, "");
    defer for (&requests) |*request| request.transfer.deinit(gpa);
    for (1..11) |round| {
        var cancelled: std.StaticBitSet(requests.len) = .empty;
        for (&requests) |*request| {
            request.transfer.reset();
            request.transfer.url = urls[dice.uintLessThan(usize, urls.len)];
            request.transfer.body_bytes_max = dice.uintLessThan(u64, 200_000);
            request.transfer.idle_timeout_ms = 1 + dice.uintLessThan(u32, 40);
            request.transfer.total_timeout_ms = 1 + dice.uintLessThan(u32, 80);
            if (dice.boolean()) request.transfer.body = "something";
        }
        for (&requests) |*request| {
            request.start();
            const victim = dice.uintLessThan(usize, requests.len);
            if (dice.boolean() and !cancelled.isSet(victim)) {
                cancelled.set(victim);
                requests[victim].cancel(); // perhaps before it was started
            }
        }
        room.done.waitFor(@intCast(requests.len * round));
        for (&requests) |*request| try testing.expectEqual(@as(u32, @intCast(round)), request.own_done.get());
        // Messages are run in order: this one comes after all cancels.
        room.engine.post(&look.message);
        look.ran.waitFor(@intCast(round));
        try testing.expectEqual(look.open, look.polled);
        try testing.expectEqual(0, look.too_many);
    }
    const engine = room.engine;
    const stats = engine.readStats();
    try testing.expectEqual(10 * requests.len, stats.started);
    try testing.expectEqual(0, stats.in_flight + stats.queued);
    try testing.expectEqual(0, engine.fleet.load + engine.common.running);
    try testing.expectEqual(null, engine.deadlines.first());
}

test "when memory runs out, transfers fail and the engine goes on" {
    var clock: clock_file.Clock = .init;
    const server = try Server.start(gpa);
    defer server.stop();
    const url = try server.url(gpa, "/hello");
    defer gpa.free(url);
    var failed: u32 = 0;
    for (0..60) |allowed| {
        var failing: testing.FailingAllocator = .init(gpa, .{ .fail_index = allowed });
        var done: Count = .{};
        var engine = try Engine.init(failing.allocator(), &clock, .{ .connections_per_shard = 1 });
        defer engine.deinit();
        var requests: [3]Request = undefined;
        for (&requests) |*request| {
            request.* = .init(&engine, &done, url);
            request.start();
        }
        done.waitFor(requests.len);
        engine.shutdown();
        for (&requests) |*request| {
            switch (request.transfer.failure) {
                .none => try testing.expectEqualStrings("hello", request.transfer.responseBody()),
                // The second: libcurl, whose callback had no memory, says that it was stopped.
                .out_of_memory, .other => failed += 1,
                else => |failure| {
                    std.debug.print("{s}\n", .{@tagName(failure)});
                    return error.TestUnexpectedResult;
                },
            }
            request.transfer.deinit(failing.allocator());
        }
    }
    try testing.expect(failed > 20);
}

test "after the shutdown a message is run by whoever posts it" {
    const room = try Room.open(.{});
    defer room.close();
    for ([_]bool{ true, false }) |with_thread| {
        var clock: clock_file.Clock = .init;
        var engine: Engine = try .init(gpa, &clock, .{});
        defer engine.deinit();
        var request: Request = .init(&engine, &room.done, "http://127.0.0.1:1/");
        defer request.transfer.deinit(gpa);
        if (with_thread) {
            request.start();
            request.own_done.waitFor(1);
        }
        engine.shutdown();
        engine.shutdown();
        const before = request.own_done.get();
        request.start();
        try testing.expectEqual(before + 1, request.own_done.get()); // no waiting: it was run in here
        try testing.expectEqual(.shutdown, request.transfer.failure);
        try testing.expect(!engine.onEngineThread());
    }
}

test "no message is lost or run beside another while the engine shuts down" {
    const senders_count = 3;
    const each = 20_000;
    const late = 2_000; // of these, at least so many after the shutdown
    const Shared = struct {
        engine: Engine,
        inside: sync.Atomic(u32) = .init(0),
        overlaps: sync.Atomic(u32) = .init(0),
        ran: Count = .{},
        posted: Count = .{},
        over: Count = .{},

        var self: *@This() = undefined;

        fn run(_: *Message) void {
            if (self.inside.fetchAdd(1, .acq_rel) != 0) _ = self.overlaps.fetchAdd(1, .monotonic); // pairs with the one below
            for (0..100) |_| sync.spinHint(); // room for an overlap
            self.ran.add();
            _ = self.inside.fetchSub(1, .acq_rel);
        }

        fn send(messages: []Message) void {
            for (messages, 0..) |*message, i| {
                if (i == messages.len - late) self.over.waitFor(1);
                self.engine.post(message);
                self.posted.add();
            }
        }
    };
    var clock: clock_file.Clock = .init;
    for (0..5) |round| {
        var shared: Shared = .{ .engine = try .init(gpa, &clock, .{}) };
        Shared.self = &shared;
        const messages = try gpa.alloc(Message, senders_count * each);
        defer gpa.free(messages);
        for (messages) |*message| message.* = .{ .run = Shared.run };
        var threads: [senders_count]sync.Thread = undefined;
        for (&threads, 0..) |*thread, i| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.send, .{messages[i * each ..][0..each]});
        shared.posted.waitFor(@intCast(round * each / 2)); // somewhere in the middle
        shared.engine.shutdown();
        shared.over.add();
        for (threads) |thread| thread.join();
        try testing.expectEqual(senders_count * each, shared.ran.get());
        try testing.expectEqual(0, shared.overlaps.load(.monotonic));
        shared.engine.deinit();
    }
}
