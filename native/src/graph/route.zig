//! Routes as they arrive through the C ABI: texts of the plan become texts of libcurl's kind.

const std = @import("std");
const extract = @import("../json/extract.zig");
const route_file = @import("../base/route.zig");

const Allocator = std.mem.Allocator;
const Route = route_file.Route;
const Span = extract.Span;
const Texts = route_file.Texts;

pub const Flags = packed struct(u32) {
    /// `proxy` counts, also where it is empty: then there is none.
    proxy: bool = false,
    public_only: bool = false,
    _: u30 = 0,
};

/// C: gb_route
pub const Spec = extern struct {
    proxy: Span = .{},
    no_proxy: Span = .{},
    ca_file: Span = .{},
    ca_path: Span = .{},
    client_cert: Span = .{},
    client_key: Span = .{},
    client_key_password: Span = .{},
    flags: Flags = .{},
    reserved: u32 = 0,

    /// The texts are copied.
    pub fn read(spec: *const Spec, arena: Allocator, text: []const u8) error{ OutOfMemory, InvalidArgument }!Route {
        var texts: Texts = .{};
        inline for (Texts.names) |name| {
            const span: Span = @field(spec, name);
            if (@as(u64, span.offset) + span.length > text.len) return error.InvalidArgument;
            const value = span.of(text);
            if (std.mem.findScalar(u8, value, 0) != null) return error.InvalidArgument;
            const counts = value.len > 0 or (comptime std.mem.eql(u8, name, "proxy")) and spec.flags.proxy;
            if (counts) @field(texts, name) = try arena.dupeSentinel(u8, value, 0);
        }
        return .of(texts, spec.flags.public_only);
    }
};

test "a route's texts are read where they stand, and nowhere else" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    const text = "http://p:1ca.pem";
    var spec: Spec = .{ .ca_file = .{ .offset = 10, .length = 6 } };
    const route = try spec.read(arena.allocator(), text);
    try std.testing.expectEqualStrings("ca.pem", route.texts.ca_file.?);
    try std.testing.expectEqual(null, route.texts.proxy);
    spec.flags.proxy = true;
    try std.testing.expectEqualStrings("", (try spec.read(arena.allocator(), text)).texts.proxy.?);
    spec.ca_file.length = 7;
    try std.testing.expectError(error.InvalidArgument, spec.read(arena.allocator(), text));
}
