//! Where a request is to go, and whether it may be sent at all. Nothing is corrected, only refused.

const std = @import("std");
const transfer_file = @import("transfer.zig");

const Allocator = std.mem.Allocator;
const Transfer = transfer_file.Transfer;

/// Of an origin's text.
pub const bytes_max = 300;

pub const Target = struct {
    tls: bool,
    /// "https://host:port", in small letters, without user and password. In the caller's buffer.
    origin: []const u8,
};

/// Null: the transfer has failed as refused, in words that say why. Nothing is corrected, only refused: a line break in a
/// header would let whoever wrote its value add requests of his own.
pub fn check(transfer: *Transfer, gpa: Allocator, buffer: *[bytes_max]u8) ?Target {
    if (complaint(transfer)) |text| {
        transfer.fail(gpa, .refused, "{s}", .{text});
        return null;
    }
    return of(transfer.url, buffer) catch |err| {
        transfer.fail(gpa, .refused, "{s}", .{switch (err) {
            error.Scheme => "the URL must begin with http:// or https://",
            error.Host => "the URL names no host",
            error.TooLong => "the URL's host is too long",
        }});
        return null;
    };
}

fn complaint(transfer: *const Transfer) ?[]const u8 {
    if (transfer.method.len == 0 or transfer.method.len > transfer_file.method_bytes_max or !isToken(transfer.method)) {
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

fn of(url: []const u8, buffer: *[bytes_max]u8) error{ Scheme, Host, TooLong }!Target {
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

/// Whether both lead to the same scheme, host and port. Of what is no URL: no.
pub fn haveOneOrigin(a: []const u8, b: []const u8) bool {
    var buffer_a: [bytes_max]u8 = undefined;
    var buffer_b: [bytes_max]u8 = undefined;
    const of_a = of(a, &buffer_a) catch return false;
    const of_b = of(b, &buffer_b) catch return false;
    return std.mem.eql(u8, withoutPort(of_a), withoutPort(of_b));
}

/// Without the port that the scheme has anyway.
fn withoutPort(it: Target) []const u8 {
    const usual = if (it.tls) ":443" else ":80";
    return if (std.mem.endsWith(u8, it.origin, usual)) it.origin[0 .. it.origin.len - usual.len] else it.origin;
}

fn isToken(text: []const u8) bool {
    for (text) |byte| switch (byte) {
        'a'...'z', 'A'...'Z', '0'...'9', '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~' => {},
        else => return false,
    };
    return true;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn ignore(_: *Transfer) void {}

fn refusal(transfer: *Transfer) ![]const u8 {
    var buffer: [bytes_max]u8 = undefined;
    transfer.failure = .none;
    try testing.expect(check(transfer, testing.allocator, &buffer) == null);
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
    var buffer: [bytes_max]u8 = undefined;
    for ([_][2][:0]const u8{
        .{ "HTTP://User:P%40ss@Host.Example:8080/a?b#c", "http://host.example:8080" },
        .{ "https://api.example", "https://api.example" },
        .{ "https://api.example?x=/y", "https://api.example" },
        .{ "http://[::1]:80/", "http://[::1]:80" },
    }) |case| {
        var transfer: Transfer = .{ .on_done = ignore, .url = case[0] };
        const found = check(&transfer, testing.allocator, &buffer).?;
        try testing.expectEqualStrings(case[1], found.origin);
        try testing.expectEqual(case[1][4] == 's', found.tls);
    }
}

test "one origin is one scheme, host and port" {
    try testing.expect(haveOneOrigin("https://A.example/x", "https://a.example:443/y?z"));
    for ([_][]const u8{ "http://a.example/", "https://a.example:8443/", "https://b.example/", "https://a.example.b/", "nonsense" }) |other| {
        try testing.expect(!haveOneOrigin("https://a.example/", other));
    }
}
