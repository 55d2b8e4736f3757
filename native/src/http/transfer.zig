//! A transfer: one HTTP exchange, what is sent and what came back. Owned by whoever submits it; what is to be sent is
//! borrowed until `on_done`. Between `submit` and `on_done` only the engine's thread touches it.
//!
//! This file decides, without libcurl, socket or thread: what may be sent at all, what a reply's head says, how much of a body
//! is taken, and which timeout is due when.

const std = @import("std");
const failure_file = @import("../base/failure.zig");
const os = @import("../base/os.zig");
const head = @import("head.zig");
const deadlines = @import("deadlines.zig");
const Handle = @import("handle.zig").Handle;
const Origin = @import("origins.zig").Origin;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const ns_per_ms: u64 = std.time.ns_per_ms;

pub const Failure = failure_file.Failure;

/// Of a reply, where the transfer sets no bound of its own.
pub const body_bytes_default: u64 = 64 << 20;
/// Room made at once for a body of announced length; beyond that it grows as it comes.
const reserve_bytes_max: u64 = 1 << 20;
const request_id_bytes_max = 96;
pub const method_bytes_max = 24;
pub const origin_bytes_max = 300;

pub const Transfer = struct {
    // What to send, and how long to wait. 0 ms: as long as it takes.
    method: []const u8 = "GET",
    url: [:0]const u8 = "",
    /// Lines "Name: value".
    headers: []const [:0]const u8 = &.{},
    /// Null: no body, which is not the same as an empty one.
    body: ?[]const u8 = null,
    connect_timeout_ms: u32 = 0,
    /// Between one byte and the next, in either direction, once connected.
    idle_timeout_ms: u32 = 0,
    /// From `submit` on, waiting for a free connection included.
    total_timeout_ms: u32 = 0,
    /// Of the reply's body, decoded; 0: `body_bytes_default`.
    body_bytes_max: u64 = 0,
    verify_tls: bool = true,
    /// On the engine's thread, once per `submit`. The transfer may be freed or submitted again from there.
    on_done: *const fn (*Transfer) void,

    // What came of it. `failure` tells how it ended; the status, where one arrived, stands beside it.
    failure: Failure = .none,
    status: u16 = 0,
    /// What the server asked for; -1: nothing.
    retry_after_ms: i64 = -1,
    /// x-request-id or request-id, cut to `request_id_bytes_max`.
    request_id: []const u8 = "",
    started_ns: u64 = 0,
    first_byte_ns: u64 = 0,
    ended_ns: u64 = 0,
    bytes_sent: u64 = 0,
    bytes_received: u64 = 0,

    body_received: std.ArrayList(u8) = .empty,
    failure_words: std.ArrayList(u8) = .empty,
    request_id_buffer: [request_id_bytes_max]u8 = undefined,
    /// Retry-After was given in milliseconds, which is more exact than the other header.
    retry_after_exact: bool = false,
    content_length: ?u64 = null,

    // The engine's.
    state: State = .outside,
    next: ?*Transfer = null,
    previous: ?*Transfer = null,
    handle: ?*Handle = null,
    origin: ?*Origin = null,
    /// Waits for its origin's address, not for a free connection.
    is_held: bool = false,
    deadline: deadlines.Entry = .{},
    submitted_ns: u64 = 0,
    /// When it began to connect, or to look for a connection.
    began_ns: u64 = 0,
    active_ns: u64 = 0,

    pub const State = enum {
        /// Belongs to its owner.
        outside,
        /// Waits for a connection.
        waiting,
        running,
        /// Over; `on_done` will be called.
        ended,
    };

    pub fn assertState(transfer: *const Transfer, expected: State) void {
        assert(transfer.state == expected);
        switch (expected) {
            .outside, .ended => assert(transfer.handle == null and transfer.deadline.place == (deadlines.Entry{}).place),
            .waiting => assert(transfer.handle == null and transfer.origin != null),
            .running => assert(transfer.handle != null and transfer.origin != null),
        }
    }

    /// Forgets request and reply, keeps buffers. What is to be sent is set anew.
    pub fn reset(transfer: *Transfer) void {
        transfer.assertState(.outside);
        const body = transfer.body_received;
        const text = transfer.failure_words;
        transfer.* = .{ .on_done = transfer.on_done, .body_received = body, .failure_words = text };
        transfer.forgetReply();
    }

    pub fn deinit(transfer: *Transfer, gpa: Allocator) void {
        transfer.assertState(.outside);
        transfer.body_received.deinit(gpa);
        transfer.failure_words.deinit(gpa);
    }

    /// Until the transfer is submitted again, reset or freed.
    pub fn responseBody(transfer: *const Transfer) []const u8 {
        return transfer.body_received.items;
    }

    /// For people: what went wrong. Empty if nothing did.
    pub fn failureText(transfer: *const Transfer) []const u8 {
        if (transfer.failure == .none) return "";
        return if (transfer.failure_words.items.len > 0) transfer.failure_words.items else usualWords(transfer.failure);
    }

    fn forgetReply(transfer: *Transfer) void {
        transfer.body_received.clearRetainingCapacity();
        transfer.failure_words.clearRetainingCapacity();
    }

    pub fn begin(transfer: *Transfer, clock_ns: u64, now_ns: u64) void {
        transfer.assertState(.outside);
        transfer.forgetReply();
        transfer.failure = .none;
        transfer.forgetHead();
        transfer.started_ns = clock_ns;
        transfer.submitted_ns = now_ns;
        transfer.first_byte_ns = 0;
        transfer.ended_ns = 0;
        transfer.bytes_sent = 0;
        transfer.bytes_received = 0;
    }

    /// The first failure counts: what libcurl says of a transfer that was stopped is of no interest.
    /// Out of memory loses the words, not the failure.
    pub fn fail(transfer: *Transfer, gpa: Allocator, failure: Failure, comptime format: []const u8, args: anytype) void {
        assert(failure != .none);
        if (transfer.failure != .none) return;
        transfer.failure = failure;
        const text = gpa.print(format, args) catch return;
        transfer.failure_words.deinit(gpa);
        transfer.failure_words = .fromOwnedSlice(text);
    }

    // ------------------------------------------------------------------------------------------------- the reply

    fn forgetHead(transfer: *Transfer) void {
        transfer.status = 0;
        transfer.retry_after_ms = -1;
        transfer.retry_after_exact = false;
        transfer.request_id = "";
        transfer.content_length = null;
    }

    pub fn takeHeadLine(transfer: *Transfer, line: []const u8) void {
        if (line.len < 5) return;
        switch (line[0]) {
            'H' => if (head.status(line)) |status| { // also after a "100 Continue": the last head counts
                transfer.forgetHead();
                transfer.status = status;
            },
            'c', 'C', 'r', 'R', 'x', 'X' => if (head.field(line)) |field| transfer.takeField(field),
            else => {},
        }
    }

    fn takeField(transfer: *Transfer, field: head.Field) void {
        const is = std.ascii.eqlIgnoreCase;
        if (is(field.name, "content-length")) {
            transfer.content_length = std.fmt.parseInt(u64, field.value, 10) catch null;
        } else if (is(field.name, "x-request-id") or is(field.name, "request-id")) {
            if (transfer.request_id.len > 0) return;
            const id = field.value[0..@min(field.value.len, request_id_bytes_max)];
            @memcpy(transfer.request_id_buffer[0..id.len], id);
            transfer.request_id = transfer.request_id_buffer[0..id.len];
        } else if (is(field.name, "retry-after-ms")) {
            transfer.retry_after_ms = head.milliseconds(field.value, 1) orelse return;
            transfer.retry_after_exact = true;
        } else if (is(field.name, "retry-after") and !transfer.retry_after_exact) {
            transfer.retry_after_ms = head.retryAfterMs(field.value, os.unixSeconds()) orelse return;
        }
    }

    /// False: the transfer has failed, its connection should be closed.
    pub fn takeBody(transfer: *Transfer, gpa: Allocator, bytes: []const u8) bool {
        const most = if (transfer.body_bytes_max == 0) body_bytes_default else transfer.body_bytes_max;
        const body = &transfer.body_received;
        const announced = transfer.content_length orelse 0;
        if (bytes.len > most - body.items.len or (body.items.len == 0 and announced > most)) {
            transfer.fail(gpa, .too_large, "the reply is larger than {d} bytes", .{most});
            return false;
        }
        if (body.capacity == 0) body.ensureTotalCapacityPrecise(gpa, @intCast(@max(bytes.len, @min(announced, reserve_bytes_max)))) catch {};
        body.appendSlice(gpa, bytes) catch {
            transfer.fail(gpa, .out_of_memory, "no memory for the reply", .{});
            return false;
        };
        return true;
    }

    // -------------------------------------------------------------------------------------------------- timeouts

    pub const Due = struct { at_ns: u64, failure: Failure };

    /// The timeout that comes first. `connected_ns`: when the connection was there, null if it is not yet.
    pub fn due(transfer: *const Transfer, connected_ns: ?u64) ?Due {
        var first: ?Due = null;
        if (transfer.total_timeout_ms != 0) first = .{
            .at_ns = transfer.submitted_ns + transfer.total_timeout_ms * ns_per_ms,
            .failure = .total_timeout,
        };
        if (transfer.state == .running) {
            const ms = if (connected_ns == null) transfer.connect_timeout_ms else transfer.idle_timeout_ms;
            const since = if (connected_ns) |ns| @max(ns, transfer.active_ns) else transfer.began_ns;
            const at_ns = since + ms * ns_per_ms;
            if (ms != 0 and (first == null or at_ns < first.?.at_ns)) first = .{
                .at_ns = at_ns,
                .failure = if (connected_ns == null) .connect_timeout else .idle_timeout,
            };
        }
        return first;
    }

    /// When to look again. A connection that is made meanwhile tells nobody, so an idle timeout is looked for even before.
    pub fn lookAgainNs(transfer: *const Transfer, connected_ns: ?u64, now_ns: u64) u64 {
        var at_ns = if (transfer.due(connected_ns)) |it| it.at_ns else deadlines.never;
        if (transfer.state == .running and connected_ns == null and transfer.idle_timeout_ms != 0) {
            at_ns = @min(at_ns, now_ns + transfer.idle_timeout_ms * ns_per_ms);
        }
        return at_ns;
    }

    // -------------------------------------------------------------------------------------------- what may be sent

    pub const Target = struct {
        tls: bool,
        /// "https://host:port", in small letters, without user and password. In the caller's buffer.
        origin: []const u8,
    };

    /// Null: the transfer has failed as refused, in words that say why. Nothing is corrected, only refused: a line break in a
    /// header would let whoever wrote its value add requests of his own.
    pub fn check(transfer: *Transfer, gpa: Allocator, buffer: *[origin_bytes_max]u8) ?Target {
        if (complaint(transfer)) |text| {
            transfer.fail(gpa, .refused, "{s}", .{text});
            return null;
        }
        return target(transfer.url, buffer) catch |err| {
            transfer.fail(gpa, .refused, "{s}", .{switch (err) {
                error.Scheme => "the URL must begin with http:// or https://",
                error.Host => "the URL names no host",
                error.TooLong => "the URL's host is too long",
            }});
            return null;
        };
    }

    fn complaint(transfer: *const Transfer) ?[]const u8 {
        if (transfer.method.len == 0 or transfer.method.len > method_bytes_max or !isToken(transfer.method)) {
            return "the method is no HTTP method";
        }
        if (transfer.body != null and std.mem.eql(u8, transfer.method, "HEAD")) return "a HEAD request has no body";
        for (transfer.url) |byte| if (byte <= ' ' or byte == 0x7f) return "the URL contains a space or a control character";
        for (transfer.headers) |line| {
            for (line) |byte| if (byte == '\r' or byte == '\n' or byte == 0) return "a header contains a line break or NUL";
            const colon = std.mem.findScalar(u8, line, ':') orelse return "a header has no colon";
            const name = line[0..colon];
            if (name.len == 0 or !isToken(name)) return "a header's name is no HTTP header name";
            if (std.ascii.eqlIgnoreCase(name, "transfer-encoding")) return "Transfer-Encoding is not the caller's to set";
        }
        return null;
    }

    fn target(url: []const u8, buffer: *[origin_bytes_max]u8) error{ Scheme, Host, TooLong }!Target {
        const tls = std.ascii.startsWithIgnoreCase(url, "https://");
        if (!tls and !std.ascii.startsWithIgnoreCase(url, "http://")) return error.Scheme;
        const scheme = if (tls) "https://" else "http://";
        const rest = url[scheme.len..];
        const authority = rest[0 .. std.mem.findAny(u8, rest, "/?#") orelse rest.len];
        const host = if (std.mem.findScalarLast(u8, authority, '@')) |at| authority[at + 1 ..] else authority;
        if (host.len == 0 or host[0] == ':') return error.Host;
        if (scheme.len + host.len > buffer.len) return error.TooLong;
        @memcpy(buffer[0..scheme.len], scheme);
        _ = std.ascii.lowerString(buffer[scheme.len..], host);
        return .{ .tls = tls, .origin = buffer[0 .. scheme.len + host.len] };
    }
};

fn isToken(text: []const u8) bool {
    for (text) |byte| switch (byte) {
        'a'...'z', 'A'...'Z', '0'...'9', '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~' => {},
        else => return false,
    };
    return true;
}

/// Where nothing more exact is known, or there was no memory for it.
fn usualWords(failure: Failure) []const u8 {
    return switch (failure) {
        .none => "",
        .cancelled => "cancelled",
        .refused => "the request cannot be sent",
        .no_libcurl => "libcurl is missing",
        .resolve => "the host name could not be resolved",
        .connect => "no connection could be made",
        .tls => "TLS failed",
        .connect_timeout => "no connection in time",
        .idle_timeout => "the server fell silent",
        .total_timeout => "not finished in time",
        .closed => "the connection broke before the reply was whole",
        .too_large => "the reply is too large",
        .protocol => "the reply is not HTTP",
        .status => "the server reported an error",
        .bad_reply => "the reply is not what was promised",
        .provider => "the provider reported an error",
        .template => "a placeholder's path leads nowhere",
        .out_of_memory => "out of memory",
        .shutdown => "the runtime was shut down",
        .other, .node_timeout, .none_left, .native => "failed",
    };
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn ignore(_: *Transfer) void {}

fn refusal(transfer: *Transfer) ![]const u8 {
    var buffer: [origin_bytes_max]u8 = undefined;
    transfer.failure = .none;
    try testing.expect(transfer.check(testing.allocator, &buffer) == null);
    try testing.expectEqual(.refused, transfer.failure);
    return transfer.failureText();
}

test "what could smuggle a second request, or is no HTTP, is refused" {
    var transfer: Transfer = .{ .on_done = ignore };
    defer transfer.deinit(testing.allocator);
    inline for (.{
        .{ "ftp://host/", "http:// or" },                        .{ "file:///etc/passwd", "http:// or" }, .{ "host/path", "http:// or" },
        .{ "http://host/a b", "space" },                         .{ "http://host/a\r\nX: y", "control" }, .{ "http://host/\x00", "control" },
        .{ "http:///path", "no host" },                          .{ "http://user@:80/", "no host" },      .{ "", "http:// or" },
        .{ "http://" ++ @as([300]u8, @splat('a')), "too long" },
    }) |case| {
        transfer.url = case[0];
        errdefer std.debug.print("{s}\n", .{transfer.url});
        try testing.expect(std.mem.find(u8, try refusal(&transfer), case[1]) != null);
    }
    transfer.url = "http://host/";
    for ([_][:0]const u8{ "A: b\r\nC: d", "A: b\nC", "A: \x00", "no colon", ": x", "A B: c", "Transfer-Encoding: chunked" }) |line| {
        transfer.headers = &.{ "Accept: */*", line };
        errdefer std.debug.print("{s}\n", .{line});
        try testing.expect(std.mem.find(u8, try refusal(&transfer), "header") != null or line[0] == 'T');
    }
    transfer.headers = &.{};
    for ([_][]const u8{ "", "GET /", "GET\r\n", "AVERYLONGMETHODNAMEINDEED" }) |method| {
        transfer.method = method;
        _ = try refusal(&transfer);
    }
}

test "an origin is scheme, host and port in small letters, and holds no password" {
    var buffer: [origin_bytes_max]u8 = undefined;
    for ([_][2][:0]const u8{
        .{ "HTTP://User:P%40ss@Host.Example:8080/a?b#c", "http://host.example:8080" },
        .{ "https://api.example", "https://api.example" },
        .{ "https://api.example?x=/y", "https://api.example" },
        .{ "http://[::1]:80/", "http://[::1]:80" },
    }) |case| {
        var transfer: Transfer = .{ .on_done = ignore, .url = case[0] };
        const found = transfer.check(testing.allocator, &buffer).?;
        try testing.expectEqualStrings(case[1], found.origin);
        try testing.expectEqual(case[1][4] == 's', found.tls);
    }
}

test "the last head of a reply counts, and milliseconds are more exact than seconds" {
    var transfer: Transfer = .{ .on_done = ignore };
    for ([_][]const u8{
        "HTTP/1.1 100 Continue\r\n",  "Retry-After: 9\r\n",      "X-Request-Id: first\r\n", "\r\n",
        "HTTP/1.1 429 Slow down\r\n", "retry-after-ms: 250\r\n", "Retry-After: 7\r\n",      "request-id: req_1\r\n",
        "x-request-id: other\r\n",    "Content-Length: 12\r\n",  "Content-Type: text\r\n",  "\r\n",
    }) |line| transfer.takeHeadLine(line);
    try testing.expectEqual(429, transfer.status);
    try testing.expectEqual(250, transfer.retry_after_ms);
    try testing.expectEqualStrings("req_1", transfer.request_id);
    try testing.expectEqual(12, transfer.content_length);
    transfer.takeHeadLine("X-Request-Id: " ++ @as([500]u8, @splat('z')));
    transfer.takeHeadLine("HTTP/2 503 \r\n");
    try testing.expectEqual(-1, transfer.retry_after_ms);
    transfer.takeHeadLine("X-Request-Id: " ++ @as([500]u8, @splat('z')));
    try testing.expectEqual(request_id_bytes_max, transfer.request_id.len);
    transfer.takeHeadLine("retry-after: -3\r\n");
    try testing.expectEqual(-1, transfer.retry_after_ms);
}

test "a body is taken up to its bound and not one byte further" {
    var transfer: Transfer = .{ .on_done = ignore, .body_bytes_max = 10 };
    defer transfer.deinit(testing.allocator);
    try testing.expect(transfer.takeBody(testing.allocator, "12345"));
    try testing.expect(transfer.takeBody(testing.allocator, "67890"));
    try testing.expectEqualStrings("1234567890", transfer.responseBody());
    try testing.expect(!transfer.takeBody(testing.allocator, "x"));
    try testing.expectEqual(.too_large, transfer.failure);
    transfer.reset();
    transfer.body_bytes_max = 10;
    transfer.content_length = 11; // announced: the first byte is too much already
    try testing.expect(!transfer.takeBody(testing.allocator, "1"));
}

test "no memory for a body is a failure of its own" {
    var transfer: Transfer = .{ .on_done = ignore };
    try testing.expect(!transfer.takeBody(testing.failing_allocator, "12345"));
    try testing.expectEqual(.out_of_memory, transfer.failure);
    try testing.expectEqualStrings("out of memory", transfer.failureText());
}

test "the earliest timeout is due; silence only counts once connected" {
    const ms = ns_per_ms;
    var transfer: Transfer = .{ .on_done = ignore, .connect_timeout_ms = 10, .idle_timeout_ms = 20, .total_timeout_ms = 100 };
    transfer.submitted_ns = 1000 * ms;
    transfer.state = .waiting;
    try testing.expectEqual(1100 * ms, transfer.due(null).?.at_ns);
    transfer.state = .running;
    transfer.began_ns = 1005 * ms; // it waited five
    try testing.expectEqual(Transfer.Due{ .at_ns = 1015 * ms, .failure = .connect_timeout }, transfer.due(null).?);
    try testing.expectEqual(Transfer.Due{ .at_ns = 1028 * ms, .failure = .idle_timeout }, transfer.due(1008 * ms).?);
    transfer.active_ns = 1090 * ms;
    try testing.expectEqual(Transfer.Due{ .at_ns = 1100 * ms, .failure = .total_timeout }, transfer.due(1008 * ms).?);
    transfer.connect_timeout_ms = 0;
    transfer.total_timeout_ms = 0;
    try testing.expectEqual(null, transfer.due(null));
    try testing.expectEqual(1027 * ms, transfer.lookAgainNs(null, 1007 * ms));
    transfer.idle_timeout_ms = 0;
    try testing.expectEqual(deadlines.never, transfer.lookAgainNs(1008 * ms, 1007 * ms));
}
