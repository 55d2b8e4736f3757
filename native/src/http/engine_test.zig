//! The engine against a real server on loopback, with small shards so that there are many: what is sent, what comes back, and
//! everything that can go wrong on the way. How transfers and the engine end is in engine_end_test.zig.

const std = @import("std");
const curl = @import("curl.zig");
const engine_file = @import("engine.zig");
const loopback = @import("loopback.zig");
const test_room = @import("test_room.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Message = engine_file.Message;
const Request = test_room.Request;
const Room = test_room.Room;
const Server = loopback.Server;
const contains = test_room.contains;
const lacks = test_room.lacks;

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
