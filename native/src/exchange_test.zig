//! Exchanges against a server on loopback: what goes out is what was given, bodies as they come, and every way to end.

const std = @import("std");
const context_file = @import("context.zig");
const exchange_file = @import("exchange.zig");
const gates_file = @import("gates.zig");
const loopback = @import("http/loopback.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const runtime_file = @import("runtime.zig");
const test_room = @import("http/test_room.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Bytes = plan_file.Bytes;
const Exchange = exchange_file.Exchange;
const Report = exchange_file.Report;
const Runtime = runtime_file.Runtime;
const Spec = exchange_file.Spec;
const contains = test_room.contains;
const lacks = test_room.lacks;

const Room = struct {
    runtime: *Runtime,
    queue: *queue_file.Queue,
    server: *loopback.Server,
    url: ?[:0]u8 = null,
    body: std.ArrayList(u8) = .empty,
    is_shut: bool = false,

    fn open() !Room {
        const runtime = try Runtime.create(gpa, .{ .worker_count = 1 });
        return .{ .runtime = runtime, .queue = try runtime.createQueue(.caller, 1), .server = try .start(gpa) };
    }

    fn close(room: *Room) void {
        room.shutdown();
        Runtime.destroyQueue(room.queue);
        room.runtime.release();
        room.server.stop();
        if (room.url) |url| gpa.free(url);
        room.body.deinit(gpa);
    }

    fn shutdown(room: *Room) void {
        if (!room.is_shut) room.runtime.shutdown();
        room.is_shut = true;
    }

    fn to(room: *Room, method: []const u8, path: []const u8) !Spec {
        if (room.url) |url| gpa.free(url);
        room.url = null;
        room.url = try room.server.url(gpa, path);
        return .{ .method = .from(method), .url = .from(room.url.?), .headers = .from("Host: here\x00X-Twice: 1\x00x-twice: 2\x00"), .header_count = 3 };
    }

    fn start(room: *Room, spec: *const Spec) !*Exchange {
        return room.runtime.exchanges.start(spec, room.queue, 7);
    }

    /// Waits for news.
    fn wait(room: *Room) !void {
        var news: queue_file.News = .{};
        try room.runtime.lobby.wait(room.queue, .{}, null, &news);
        try testing.expectEqual(1, news.item_count);
        try testing.expectEqual(@backingInt(queue_file.ItemKind.exchange), news.items[0].kind);
        try testing.expectEqual(7, news.items[0].token);
    }

    /// Reads until it is over; the body is in `body`.
    fn finish(room: *Room, exchange: *Exchange) !Report {
        room.body.clearRetainingCapacity();
        while (true) {
            try room.wait();
            const report = exchange.read();
            try room.body.appendSlice(gpa, report.body.items());
            if (report.over != 0) return report;
        }
    }
};

test "what is given goes out as it is, and nothing else" {
    var room: Room = try .open();
    defer room.close();
    for ([_]struct { []const u8, ?[]const u8, []const u8 }{
        .{ "GET", null, "GET /echo HTTP/1.1\r\nHost: here\r\nX-Twice: 1\r\nx-twice: 2\r\n\r\n" },
        .{ "POST", "body", "POST /echo HTTP/1.1\r\nHost: here\r\nX-Twice: 1\r\nx-twice: 2\r\nContent-Length: 4\r\n\r\nbody" },
        .{ "GET", "body", "\r\nContent-Length: 4\r\n\r\nbody" },
        .{ "DELETE", null, "DELETE /echo HTTP/1.1\r\nHost: here\r\nX-Twice: 1\r\nx-twice: 2\r\n\r\n" },
        .{ "PUT", "", "\r\nContent-Length: 0\r\n\r\n" },
        .{ "HEAD", null, "" },
    }) |case| {
        var spec = try room.to(case[0], "/echo");
        if (case[1]) |body| {
            spec.flags.body = true;
            spec.body = .from(body);
        }
        const exchange = try room.start(&spec);
        defer exchange.release();
        const report = try room.finish(exchange);
        try testing.expectEqual(0, report.failure);
        try testing.expectEqual(200, report.status);
        try testing.expect(std.mem.startsWith(u8, report.head.items(), "HTTP/1.1 200 OK\r\nContent-Length: "));
        try contains(room.body.items, case[2]);
        for ([_][]const u8{ "User-Agent", "Accept", "Expect", "Content-Type" }) |name| try lacks(room.body.items, name);
    }
    try testing.expectEqual(1, room.server.accepted.get());
    try testing.expectEqual(0, room.runtime.exchanges.count());
}

test "a target and a path that is not tidied up go out as they are, and the next request is none the worse" {
    var room: Room = try .open();
    defer room.close();
    var spec = try room.to("OPTIONS", "/a/../echo");
    const untidy = try room.start(&spec);
    defer untidy.release();
    try testing.expectEqual(200, (try room.finish(untidy)).status); // the server has not that path, and says hello
    try testing.expectEqualStrings("hello", room.body.items);
    spec = try room.to("OPTIONS", "/hello");
    spec.target = .from("/echo");
    const other = try room.start(&spec);
    defer other.release();
    _ = try room.finish(other);
    try contains(room.body.items, "OPTIONS /echo HTTP/1.1\r\n");
    spec = try room.to("GET", "/hello");
    const plain = try room.start(&spec);
    defer plain.release();
    _ = try room.finish(plain);
    try testing.expectEqualStrings("hello", room.body.items);
}

test "a reply's body is not decoded, and its chunks are put together" {
    var room: Room = try .open();
    defer room.close();
    var spec = try room.to("GET", "/gzip");
    const packed_ = try room.start(&spec);
    defer packed_.release();
    _ = try room.finish(packed_);
    try testing.expect(std.mem.startsWith(u8, room.body.items, "\x1f\x8b\x08"));
    spec = try room.to("GET", "/split");
    const split = try room.start(&spec);
    defer split.release();
    _ = try room.finish(split);
    try testing.expectEqualStrings("bit by bit", room.body.items);
}

test "a body is sent as it comes, and its writer is held up" {
    var room: Room = try .open();
    defer room.close();
    const piece: [50_000]u8 = @splat('p');
    var spec = try room.to("POST", "/echo");
    spec.flags.body_follows = true;
    spec.body_bytes = 40 * piece.len;
    const exchange = try room.start(&spec);
    defer exchange.release();
    for (0..40) |i| if (!try exchange.write(&piece, i == 39)) {
        while (exchange.read().room == 0) try room.wait();
    };
    const report = try room.finish(exchange);
    try testing.expectEqual(0, report.failure);
    try testing.expect(std.mem.endsWith(u8, room.body.items, &piece));
    try contains(room.body.items, "\r\nContent-Length: 2000000\r\n");
    try testing.expectError(error.InvalidArgument, exchange.write("x", false));
}

test "a writer may be slow: the transfer stands still and goes on" {
    var room: Room = try .open();
    defer room.close();
    var spec = try room.to("POST", "/echo");
    spec.flags.body_follows = true;
    spec.body_bytes = 6;
    const exchange = try room.start(&spec);
    defer exchange.release();
    room.server.accepted.waitFor(1);
    for ([_][]const u8{ "a", "b", "", "c", "d", "e" }) |it| try testing.expect(try exchange.write(it, false));
    try testing.expectError(error.InvalidArgument, exchange.write("", true));
    try testing.expect(try exchange.write("f", true));
    _ = try room.finish(exchange);
    try testing.expect(std.mem.endsWith(u8, room.body.items, "\r\n\r\nabcdef"));
}

test "a reader who is late holds the transfer up, and gets all of it" {
    var room: Room = try .open();
    defer room.close();
    const big = try gpa.alloc(u8, 4 << 20);
    defer gpa.free(big);
    @memset(big, 'b');
    var spec = try room.to("POST", "/echo");
    spec.flags.body = true;
    spec.body = .from(big);
    const exchange = try room.start(&spec);
    defer exchange.release();
    try room.wait();
    const first = exchange.read();
    try testing.expectEqual(200, first.status);
    try testing.expect(first.body.len < 1 << 20 and first.over == 0);
    const before = first.body.len;
    const report = try room.finish(exchange);
    try testing.expectEqual(0, report.failure);
    try testing.expect(before + room.body.items.len > big.len);
}

test "each failure says how far it had come" {
    var room: Room = try .open();
    defer room.close();
    inline for (.{
        .{ "/nothing", .closed, .receiving, 0 },
        .{ "/early", .closed, .receiving, 200 },
        .{ "/never", .idle_timeout, .receiving, 0 },
        .{ "/half", .idle_timeout, .receiving, 200 },
    }) |case| {
        var spec = try room.to("GET", case[0]);
        spec.read_timeout_ms = 50;
        const exchange = try room.start(&spec);
        defer exchange.release();
        const report = try room.finish(exchange);
        try testing.expectEqual(@backingInt(@as(exchange_file.Failure, case[1])), report.failure);
        try testing.expectEqual(@backingInt(@as(exchange_file.Phase, case[2])), report.phase);
        try testing.expectEqual(case[3], report.status);
        try testing.expect(report.detail.len > 0);
    }
}

test "a cancel, a release and a shutdown close the socket, whenever they come" {
    var room: Room = try .open();
    defer room.close();
    var spec = try room.to("GET", "/half");
    const cancelled = try room.start(&spec);
    try room.wait();
    cancelled.cancel();
    cancelled.cancel();
    try testing.expectEqual(@backingInt(exchange_file.Failure.cancelled), (try room.finish(cancelled)).failure);
    cancelled.release();
    const at_once = try room.start(&spec);
    at_once.release();
    const later = try room.start(&spec);
    try room.wait();
    later.release();
    room.server.closed.waitFor(2);
    const shut = try room.start(&spec);
    try room.wait();
    room.shutdown();
    try room.wait();
    try testing.expect(shut.read().over == 1);
    shut.release();
    try testing.expectError(error.Shutdown, room.start(&spec));
    try testing.expectEqual(0, room.runtime.exchanges.count());
}

test "a header that hides another one is refused, and how a body is framed is not the caller's to say" {
    var room: Room = try .open();
    defer room.close();
    var spec = try room.to("GET", "/echo");
    spec.headers = .from("A: 1\x00B: 2\x00");
    spec.header_count = 1;
    try testing.expectError(error.InvalidArgument, room.start(&spec));
    spec.header_count = 3;
    try testing.expectError(error.InvalidArgument, room.start(&spec));
    spec.headers = .from("A: 1\r\nB: 2\x00");
    spec.header_count = 1;
    const smuggled = try room.start(&spec);
    defer smuggled.release();
    try testing.expectEqual(@backingInt(exchange_file.Failure.refused), (try room.finish(smuggled)).failure);
    spec.headers = .from("Transfer-Encoding: chunked\x00Content-Length: 99\x00A: 1\x00");
    spec.header_count = 3;
    const framed = try room.start(&spec);
    defer framed.release();
    _ = try room.finish(framed);
    for ([_][]const u8{ "Transfer-Encoding", "Content-Length" }) |name| try lacks(room.body.items, name);
}

test "no memory starts nothing" {
    var room: Room = try .open();
    defer room.close();
    var spec = try room.to("POST", "/hello");
    spec.flags = .{ .body = true, .proxy = true };
    spec.target = .from("/x");
    spec.body = .from("body");
    spec.ca_file = .from("ca.pem");
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(failing: std.mem.Allocator, from: *Room, it: *const Spec) !void {
            var context: context_file.Context = from.runtime.context;
            context.gpa = failing;
            var exchanges: exchange_file.Exchanges = .{ .context = &context, .closed = true };
            if (exchanges.start(it, from.queue, 1)) |_| return error.TestUnexpectedResult else |err| if (err != error.Shutdown) return err;
        }
    }.run, .{ &room, &spec });
}

test "a cancel that is looked at before the start ends it, also where it would have waited" {
    var room: Room = try .open();
    defer room.close();
    const services = &room.runtime.services;
    var seat: gates_file.Seat = .{ .on_turn = undefined };
    const gate = try room.runtime.gates.find("key");
    try testing.expectEqual(.go, seat.ask(gate, &.{ .concurrency = 1 }, 1, 0));
    defer seat.settle(&.{ .ending = .unknown }) catch {};
    var spec = try room.to("GET", "/hello");
    spec.admission_key = .from("key");
    const exchanges = &room.runtime.exchanges;
    const exchange: *Exchange = try .create(exchanges, &spec, room.queue, 7);
    defer exchange.release();
    exchange.references.raw = 2;
    exchanges.first = exchange; // as `start` does it
    exchanges.active += 1;
    exchange.cancel(); // as a shutdown by another thread does it, before `start` goes on
    services.engine.post(&exchange.start_message);
    while (!exchange.ended.load(.acquire)) try room.wait(); // pairs with the store in `over`
    try testing.expectEqual(.cancelled, exchange.failure);
}
