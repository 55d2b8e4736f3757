//! The engine against a real server on loopback, with small shards so that there are many.

const std = @import("std");
const sync = @import("../base/sync.zig");
const clock_file = @import("../base/clock.zig");
const curl = @import("curl.zig");
const engine_file = @import("engine.zig");
const loopback = @import("loopback.zig");
const transfer_file = @import("transfer.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Count = loopback.Count;
const Engine = engine_file.Engine;
const Failure = transfer_file.Failure;
const Message = engine_file.Message;
const Server = loopback.Server;
const Transfer = transfer_file.Transfer;

/// One transfer as a test sees it: submitted from outside, waited for.
const Request = struct {
    engine: *Engine,
    transfer: Transfer,
    submit_message: Message = .{ .run = onSubmit },
    cancel_message: Message = .{ .run = onCancel },
    /// So many more are sent, one after the other, each from the end of the one before.
    repeats: u32 = 0,
    done: *Count,
    own_done: Count = .{},

    fn init(engine: *Engine, done: *Count, url: [:0]const u8) Request {
        return .{ .engine = engine, .done = done, .transfer = .{ .on_done = onDone, .url = url } };
    }

    fn onSubmit(message: *Message) void {
        const request: *Request = @fieldParentPtr("submit_message", message);
        request.engine.submit(&request.transfer);
    }

    fn onCancel(message: *Message) void {
        const request: *Request = @fieldParentPtr("cancel_message", message);
        request.engine.cancel(&request.transfer);
    }

    fn onDone(transfer: *Transfer) void {
        const request: *Request = @fieldParentPtr("transfer", transfer);
        std.debug.assert(request.engine.onEngineThread());
        if (request.repeats > 0 and transfer.failure == .none) {
            request.repeats -= 1;
            return request.engine.submit(transfer);
        }
        request.own_done.add();
        request.done.add();
    }

    fn start(request: *Request) void {
        request.engine.post(&request.submit_message);
    }

    fn cancel(request: *Request) void {
        request.engine.post(&request.cancel_message);
    }
};

/// A server, an engine, and one request at a time.
const Room = struct {
    server: *Server,
    clock: *clock_file.Clock,
    engine: *Engine,
    done: Count = .{},
    request: Request,
    url: ?[:0]const u8 = null,

    fn open(options: engine_file.Options) !*Room {
        const room = try gpa.create(Room);
        const clock = try gpa.create(clock_file.Clock);
        clock.* = .init;
        const engine = try gpa.create(Engine);
        engine.* = try .init(gpa, clock, options);
        room.* = .{ .server = try .start(gpa), .clock = clock, .engine = engine, .request = undefined };
        room.request = .init(engine, &room.done, "");
        return room;
    }

    fn close(room: *Room) void {
        room.engine.shutdown();
        room.engine.deinit();
        room.server.stop();
        room.request.transfer.deinit(gpa);
        if (room.url) |url| gpa.free(url);
        gpa.destroy(room.engine);
        gpa.destroy(room.clock);
        gpa.destroy(room);
    }

    fn to(room: *Room, path: []const u8) !*Transfer {
        if (room.url) |url| gpa.free(url);
        room.url = try room.server.url(gpa, path);
        room.request.transfer.reset();
        room.request.transfer.url = room.url.?;
        return &room.request.transfer;
    }

    fn send(room: *Room) void {
        const before = room.done.get();
        room.request.start();
        room.done.waitFor(before + 1);
    }

    fn expectFailure(room: *Room, failure: Failure, words: []const u8) !void {
        const transfer = &room.request.transfer;
        errdefer std.debug.print("{s}: {s}\n", .{ @tagName(transfer.failure), transfer.failureText() });
        try testing.expectEqual(failure, transfer.failure);
        try testing.expect(std.mem.find(u8, transfer.failureText(), words) != null);
    }

    fn expectBody(room: *Room, body: []const u8) !void {
        const transfer = &room.request.transfer;
        errdefer std.debug.print("{s}: {s}\n", .{ @tagName(transfer.failure), transfer.failureText() });
        try testing.expectEqual(.none, transfer.failure);
        try testing.expectEqualStrings(body, transfer.responseBody());
    }
};

fn contains(text: []const u8, part: []const u8) !void {
    if (std.mem.find(u8, text, part) != null) return;
    std.debug.print("'{s}' is not in:\n{s}\n", .{ part, text });
    return error.TestUnexpectedResult;
}

fn lacks(text: []const u8, part: []const u8) !void {
    if (std.ascii.findIgnoreCase(text, part) == null) return;
    std.debug.print("'{s}' is in:\n{s}\n", .{ part, text });
    return error.TestUnexpectedResult;
}

test "requests one after the other share a connection" {
    const room = try Room.open(.{});
    defer room.close();
    for (0..10) |_| {
        _ = try room.to("/hello");
        room.send();
        try room.expectBody("hello");
    }
    const stats = room.engine.readStats();
    try testing.expectEqual(1, room.server.accepted.get());
    try testing.expectEqual(1, stats.connections_opened);
    try testing.expectEqual(9, stats.connections_reused);
    try testing.expectEqual(10, stats.started);
    try testing.expectEqual(0, stats.in_flight + stats.queued);
    try testing.expectEqual(1, room.engine.threadCount());
}

test "what is sent arrives as it is, with nothing added that nobody asked for" {
    const room = try Room.open(.{});
    defer room.close();
    var transfer = try room.to("/echo");
    transfer.method = "POST";
    transfer.headers = &.{ "X-One: 1", "X-Empty: ", "Content-Length: 99", "Expect: 100-continue", "authorization: Bearer abc" };
    transfer.body = "{\"a\":1}";
    room.send();
    try testing.expectEqual(200, transfer.status);
    for ([_][]const u8{
        "POST /echo HTTP/1.1\r\n",           "\r\nX-One: 1\r\n",             "\r\nX-Empty:\r\n",  "\r\nContent-Length: 7\r\n",
        "\r\nauthorization: Bearer abc\r\n", "\r\nUser-Agent: graphbit\r\n", "\r\n\r\n{\"a\":1}", "\r\nAccept-Encoding: ",
    }) |part| try contains(transfer.responseBody(), part);
    for ([_][]const u8{ "Expect", "Content-Type", "Content-Length: 99" }) |part| try lacks(transfer.responseBody(), part);

    // The same handle, another kind of request each time.
    for ([_]struct { []const u8, ?[]const u8, []const u8 }{
        .{ "GET", null, "GET /echo HTTP/1.1\r\n" },
        .{ "DELETE", null, "DELETE /echo HTTP/1.1\r\n" },
        .{ "GET", "body", "\r\n\r\nbody" },
        .{ "PUT", null, "\r\nContent-Length: 0\r\n" },
        .{ "HEAD", null, "" },
        .{ "PATCH", "x\x00y", "\r\n\r\nx\x00y" },
        .{ "HEAD", null, "" },
        .{ "GET", null, "GET /echo HTTP/1.1\r\n" },
        .{ "POST", "", "\r\nContent-Length: 0\r\n" },
    }) |case| {
        transfer = try room.to("/echo");
        transfer.method, transfer.body, const expected = case;
        room.send();
        try testing.expectEqual(.none, transfer.failure);
        try contains(transfer.responseBody(), expected);
        if (case[1] == null and expected.len > 0 and case[0][0] != 'P') try lacks(transfer.responseBody(), "Content-Length");
        if (expected.len > 0) try contains(transfer.responseBody(), case[0]);
        if (expected.len == 0) try testing.expectEqual(0, transfer.responseBody().len);
    }
    try testing.expectEqual(1, room.server.accepted.get());
}

test "a large body is sent whole and its bytes are counted" {
    const room = try Room.open(.{});
    defer room.close();
    const body = try gpa.alloc(u8, 3 << 20);
    defer gpa.free(body);
    @memset(body, 'b');
    const transfer = try room.to("/echo");
    transfer.method = "POST";
    transfer.body = body;
    room.send();
    try testing.expectEqual(.none, transfer.failure);
    try testing.expect(std.mem.endsWith(u8, transfer.responseBody(), body));
    // The server echoed what it got, so its reply tells what was sent.
    try testing.expectEqual(transfer.responseBody().len, transfer.bytes_sent);
    try testing.expect(transfer.bytes_received > transfer.responseBody().len);
    try testing.expectEqual(transfer.bytes_sent, room.engine.readStats().bytes_sent);
}

test "replies in pieces, chunked or compressed, are put together" {
    const room = try Room.open(.{});
    defer room.close();
    const transfer = try room.to("/split");
    room.send();
    try room.expectBody("bit by bit");
    _ = try room.to("/gzip");
    room.send();
    try room.expectBody("hello");
    try testing.expect(transfer.first_byte_ns >= transfer.started_ns and transfer.started_ns > 0);
    try testing.expect(transfer.ended_ns >= transfer.first_byte_ns);
}

test "status, Retry-After and request id stand beside the reply" {
    const room = try Room.open(.{});
    defer room.close();
    const transfer = try room.to("/limited");
    room.send();
    try room.expectBody("wait");
    try testing.expectEqual(429, transfer.status);
    try testing.expectEqual(3000, transfer.retry_after_ms);
    try testing.expectEqualStrings("req_42", transfer.request_id);
    _ = try room.to("/hello");
    room.send();
    try testing.expectEqual(-1, transfer.retry_after_ms);
    try testing.expectEqualStrings("", transfer.request_id);
}

test "two hundred at once, over shards of four, all answered and all in flight together; a second batch opens nothing" {
    const room = try Room.open(.{ .connections_per_shard = 4 });
    defer room.close();
    const count = 200;
    const url = try room.server.url(gpa, "/gate");
    defer gpa.free(url);
    const requests = try gpa.alloc(Request, count);
    defer gpa.free(requests);
    defer for (requests) |*request| request.transfer.deinit(gpa);
    for (requests) |*request| request.* = .init(room.engine, &room.done, url);
    for (1..3) |batch| {
        room.server.gate.store(@intCast(count * batch), .release); // none is answered before all have arrived
        for (requests) |*request| request.start();
        room.done.waitFor(@intCast(count * batch));
        for (requests) |*request| try testing.expectEqualStrings("hello", request.transfer.responseBody());
        try testing.expectEqual(count, room.server.accepted.get());
    }
    const stats = room.engine.readStats();
    try testing.expectEqual(count, stats.connections_opened);
    try testing.expectEqual(count, stats.connections_reused);
    try testing.expectEqual(count / 4, room.engine.fleet.shards.items.len);
}

test "more than may be connected wait their turn" {
    const room = try Room.open(.{ .connections_per_shard = 4, .connections_max = 10 });
    defer room.close();
    const url = try room.server.url(gpa, "/gate");
    defer gpa.free(url);
    room.server.gate.store(10, .release);
    const requests = try gpa.alloc(Request, 100);
    defer gpa.free(requests);
    defer for (requests) |*request| request.transfer.deinit(gpa);
    for (requests) |*request| {
        request.* = .init(room.engine, &room.done, url);
        request.start();
    }
    room.done.waitFor(100);
    try testing.expectEqual(10, room.server.accepted.get());
    for (requests) |*request| try testing.expectEqual(.none, request.transfer.failure);
    try testing.expectEqual(0, room.engine.readStats().queued);
}

test "idle connections to one origin make way for another" {
    const room = try Room.open(.{ .connections_per_shard = 2, .connections_max = 2 });
    defer room.close();
    const other = try Server.start(gpa);
    defer other.stop();
    for (0..3) |_| {
        _ = try room.to("/hello");
        room.send();
        try room.expectBody("hello");
        const url = try other.url(gpa, "/hello");
        defer gpa.free(url);
        var requests: [2]Request = undefined;
        const before = room.done.get();
        for (&requests) |*request| {
            request.* = .init(room.engine, &room.done, url);
            request.start();
        }
        room.done.waitFor(before + 2);
        for (&requests) |*request| {
            try testing.expectEqualStrings("hello", request.transfer.responseBody());
            request.transfer.deinit(gpa);
        }
    }
}

test "whoever finishes a transfer carries on from there" {
    const room = try Room.open(.{});
    defer room.close();
    _ = try room.to("/hello");
    room.request.repeats = 500;
    room.send();
    try room.expectBody("hello");
    try testing.expectEqual(501, room.server.requests.get());
    try testing.expectEqual(1, room.server.accepted.get());
}

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

test "a refused port, a broken reply and a reply that is no HTTP each have their name" {
    const room = try Room.open(.{});
    defer room.close();
    const listener = try loopback.listen(1);
    _ = std.c.close(listener.socket);
    const text = try gpa.print("http://127.0.0.1:{d}/\x00", .{listener.port});
    defer gpa.free(text);
    const transfer = try room.to("/");
    transfer.url = text[0 .. text.len - 1 :0];
    room.send();
    try room.expectFailure(.connect, "http://127.0.0.1:");
    try testing.expectEqual(0, transfer.status);
    _ = try room.to("/early");
    room.send();
    try room.expectFailure(.closed, "127.0.0.1");
    _ = try room.to("/nothing");
    room.send();
    try room.expectFailure(.closed, "127.0.0.1");
    _ = try room.to("/garbage");
    room.send();
    try room.expectFailure(.protocol, "127.0.0.1");
    _ = try room.to("/hello");
    room.request.transfer.url = "http://no-such-host.invalid/";
    room.send();
    try room.expectFailure(.resolve, "no-such-host.invalid");
    _ = try room.to("/hello");
    room.send();
    try room.expectBody("hello");
}

test "those who wait for a name's address share its outcome" {
    const room = try Room.open(.{ .connections_per_shard = 4 });
    defer room.close();
    var requests: [20]Request = undefined;
    for (&requests) |*request| {
        request.* = .init(room.engine, &room.done, "http://no-such-host.invalid/");
        request.start();
    }
    requests[0].cancel(); // most likely the one that looks it up
    room.done.waitFor(requests.len);
    for (&requests) |*request| {
        try testing.expect(request.transfer.failure == .resolve or request.transfer.failure == .cancelled);
        request.transfer.deinit(gpa);
    }
    try testing.expectEqual(0, room.engine.readStats().queued);
}

test "a reply that is too large is cut off" {
    const room = try Room.open(.{});
    defer room.close();
    const transfer = try room.to("/big");
    transfer.body_bytes_max = 50_000;
    room.send();
    try room.expectFailure(.too_large, "larger than 50000 bytes");
    try testing.expect(transfer.responseBody().len <= 50_000);
    const again = try room.to("/big");
    again.body_bytes_max = 100_000;
    room.send();
    try testing.expectEqual(.none, again.failure);
    try testing.expectEqual(100_000, again.responseBody().len);
}

test "what is refused is never sent" {
    const room = try Room.open(.{});
    defer room.close();
    var transfer = try room.to("/hello");
    transfer.headers = &.{"X: a\r\nY: b"};
    room.send();
    try room.expectFailure(.refused, "line break");
    transfer = try room.to("/hello");
    transfer.url = "gopher://127.0.0.1/";
    room.send();
    try room.expectFailure(.refused, "http://");
    try testing.expectEqual(0, room.server.accepted.get());
}

test "a connection the server closed meanwhile is replaced without a word" {
    const room = try Room.open(.{});
    defer room.close();
    for (0..50) |_| {
        _ = try room.to("/close");
        room.send();
        try room.expectBody("hello");
    }
    try testing.expectEqual(50, room.server.accepted.get());
}

test "without libcurl every transfer says what to install" {
    const room = try Room.open(.{ .load = struct {
        fn load() curl.Table.LoadError!*const curl.Table {
            return error.NotFound;
        }
    }.load });
    defer room.close();
    _ = try room.to("/hello");
    room.send();
    try room.expectFailure(.no_libcurl, "libcurl4");
    try testing.expectEqual(null, room.engine.curlVersion());
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
    try testing.expectEqual(0, engine.fleet.load + engine.fleet.running_count);
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
