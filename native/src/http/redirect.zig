//! Whether a redirect is followed, and what goes along. Pure functions: where it leads, the `Location` resolved against the
//! request's URL (RFC 3986, 5.2), is found out elsewhere, and whoever sends the next request checks its URL as any other.
//!
//! Followed is what can be asked again without harm: GET and HEAD without a body, and these as they are, whatever the status. So
//! the question whether a POST becomes a GET (301, 302, 303; RFC 9110, 15.4) does not come up: for every other request the reply
//! that redirects is the result.

const std = @import("std");

pub const Request = struct {
    /// As it is sent: methods have their letters in one case (RFC 9110, 9.1).
    method: []const u8,
    has_body: bool,
    is_tls: bool,
    /// How many redirects may still be followed.
    left: u32,
};

pub const Verdict = union(enum) {
    go,
    /// In words for people.
    refused: []const u8,
    /// The reply itself is the result.
    stays,
};

/// Whether a reply with this status leads elsewhere. Not 300, which offers a choice, nor 304, which has no other place.
pub fn follows(status: u16) bool {
    return switch (status) {
        301, 302, 303, 307, 308 => true,
        else => false,
    };
}

/// Of a reply whose status `follows`. `target_url` is absolute.
pub fn verdict(request: Request, target_url: []const u8) Verdict {
    const is_safe = std.mem.eql(u8, request.method, "GET") or std.mem.eql(u8, request.method, "HEAD");
    if (!is_safe or request.has_body) return .stays;
    if (request.left == 0) return .{ .refused = "redirected too often" };
    if (std.ascii.startsWithIgnoreCase(target_url, "https://")) return .go;
    if (!std.ascii.startsWithIgnoreCase(target_url, "http://")) return .{ .refused = "a redirect to another scheme is not followed" };
    if (request.is_tls) return .{ .refused = "a redirect from https to http is not followed" };
    return .go;
}

/// Whether one of the caller's header lines goes along to another origin. Only what says nothing of the caller's rights does:
/// any other header, whatever its name, may be a credential ("x-api-key", "api-key", "X-Auth-Token" ...).
pub fn travels(header_line: []const u8) bool {
    const name, _ = std.mem.cutScalar(u8, header_line, ':') orelse return false;
    for ([_][]const u8{ "Accept", "Accept-Language", "User-Agent" }) |harmless| {
        if (std.ascii.eqlIgnoreCase(name, harmless)) return true;
    }
    return false;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "five statuses lead elsewhere" {
    for (0..1000) |status| {
        const expected = std.mem.findScalar(usize, &.{ 301, 302, 303, 307, 308 }, status) != null;
        try testing.expectEqual(expected, follows(@intCast(status)));
    }
}

test "a redirect is followed, is refused in words, or is the result" {
    const often = "redirected too often";
    const down = "a redirect from https to http is not followed";
    const scheme = "a redirect to another scheme is not followed";
    const get: Request = .{ .method = "GET", .has_body = false, .is_tls = true, .left = 1 };
    const head: Request = .{ .method = "HEAD", .has_body = false, .is_tls = true, .left = 10 };
    const plain: Request = .{ .method = "GET", .has_body = false, .is_tls = false, .left = 1 };
    const last: Request = .{ .method = "GET", .has_body = false, .is_tls = false, .left = 0 };
    const cases = [_]struct { Request, []const u8, Verdict }{
        .{ get, "https://a/b", .go },
        .{ get, "HTTPS://a", .go },
        .{ head, "https://a/", .go },
        .{ plain, "http://a/", .go },
        .{ plain, "Http://a/", .go },
        .{ plain, "https://a/", .go }, // to something better
        .{ get, "http://a/", .{ .refused = down } },
        .{ get, "hTTp://a/", .{ .refused = down } },
        .{ head, "http://a/", .{ .refused = down } },
        .{ get, "ftp://a/", .{ .refused = scheme } },
        .{ plain, "file:///etc/passwd", .{ .refused = scheme } },
        .{ plain, "gopher://a/", .{ .refused = scheme } },
        .{ plain, "httpx://a/", .{ .refused = scheme } },
        .{ plain, "https:a", .{ .refused = scheme } },
        .{ plain, " http://a", .{ .refused = scheme } },
        .{ plain, "javascript:http://a", .{ .refused = scheme } },
        .{ plain, "//a/", .{ .refused = scheme } },
        .{ plain, "", .{ .refused = scheme } },
        .{ last, "http://a/", .{ .refused = often } },
        .{ last, "ftp://a/", .{ .refused = often } },
        .{ .{ .method = "GET", .has_body = true, .is_tls = true, .left = 1 }, "https://a/", .stays },
        .{ .{ .method = "POST", .has_body = true, .is_tls = true, .left = 1 }, "https://a/", .stays },
        .{ .{ .method = "POST", .has_body = false, .is_tls = true, .left = 1 }, "https://a/", .stays },
        // What is not followed anyway is not refused either.
        .{ .{ .method = "DELETE", .has_body = false, .is_tls = true, .left = 0 }, "http://a/", .stays },
        .{ .{ .method = "OPTIONS", .has_body = false, .is_tls = false, .left = 1 }, "ftp://a/", .stays },
        .{ .{ .method = "get", .has_body = false, .is_tls = true, .left = 1 }, "https://a/", .stays },
        .{ .{ .method = "", .has_body = false, .is_tls = true, .left = 1 }, "https://a/", .stays },
    };
    for (cases) |case| {
        const request, const url, const expected = case;
        errdefer std.debug.print("{s} '{s}'\n", .{ request.method, url });
        try testing.expectEqualDeep(expected, verdict(request, url));
    }
}

test "nothing that may be a credential travels to another origin" {
    for ([_][]const u8{ "Accept: */*", "accept:text/html", "ACCEPT-LANGUAGE: en", "User-Agent: graphbit", "user-agent:", "Accept: a:b" }) |line| {
        errdefer std.debug.print("'{s}'\n", .{line});
        try testing.expect(travels(line));
    }
    for ([_][]const u8{
        "Authorization: Bearer x", "Cookie: a=b",         "x-api-key: x", "api-key: x",              "X-Accept: x", "Accept-Encoding: gzip",
        "Accept-Charset: utf-8",   "User-Agent-Token: x", "Accept : x",   " Accept: x",              "Accept",      "Accept;",
        "",                        ":",                   ": Accept",     "Referer: https://a/?k=1", "Host: a",     "Proxy-Authorization: x",
    }) |line| {
        errdefer std.debug.print("'{s}'\n", .{line});
        try testing.expect(!travels(line));
    }
}
