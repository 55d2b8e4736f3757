//! A route: how requests get to their servers where that is not the runtime's way. Proxy, trust, client certificate, and whether
//! only public addresses are good enough. A plan holds its routes; transfers and handles borrow them.
//!
//! Two routes with equal contents share connections, others never do: `key` tells them apart in the table of origins.

const std = @import("std");

const Allocator = std.mem.Allocator;

/// Files are PEM.
pub const Texts = struct {
    /// Null: as the environment said when the runtime started. Empty: none.
    proxy: ?[:0]const u8 = null,
    no_proxy: ?[:0]const u8 = null,
    ca_file: ?[:0]const u8 = null,
    ca_path: ?[:0]const u8 = null,
    client_cert: ?[:0]const u8 = null,
    client_key: ?[:0]const u8 = null,
    client_key_password: ?[:0]const u8 = null,

    pub const names = @typeInfo(Texts).@"struct".field_names;
};

pub const Route = struct {
    texts: Texts = .{},
    /// Connects to public addresses only, and through no proxy.
    public_only: bool = false,
    /// Never 0, which stands for no route.
    key: u64 = 1,

    /// Borrows the texts.
    pub fn of(texts: Texts, public_only: bool) Route {
        var hasher: std.hash.XxHash64 = .init(@intFromBool(public_only));
        inline for (Texts.names) |name| if (@field(texts, name)) |text| {
            hasher.update(name);
            hasher.update(text[0 .. text.len + 1]); // with its end, so that two texts are not taken for another two
        };
        var route: Route = .{ .texts = texts, .public_only = public_only, .key = @max(1, hasher.final()) };
        // Whoever connects to a proxy cannot see which address that one connects to.
        if (public_only) route.texts.proxy = "";
        return route;
    }

    pub fn trusts(route: *const Route) bool {
        return route.texts.ca_file != null or route.texts.ca_path != null;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "routes of equal contents have one key, and an empty proxy is not the same as none" {
    const plain: Route = .of(.{ .ca_file = "ca.pem" }, false);
    try testing.expectEqual(plain.key, Route.of(.{ .ca_file = "ca.pem" }, false).key);
    const others = [_]Route{
        .of(.{ .ca_file = "ca.pem", .proxy = "" }, false),
        .of(.{ .ca_file = "ca.pem", .proxy = "http://p:1" }, false),
        .of(.{ .ca_path = "ca.pem" }, false),
        .of(.{ .ca_file = "ca.pem" }, true),
    };
    for (others, 0..) |route, i| {
        try testing.expect(route.key != plain.key and route.key != 0);
        for (others[0..i]) |other| try testing.expect(route.key != other.key);
    }
    try testing.expectEqualStrings("", Route.of(.{ .proxy = "http://p:1" }, true).texts.proxy.?);
    try testing.expect(plain.trusts() and !(Route{}).trusts());
}
