//! What an engine is made with.

const std = @import("std");
const curl = @import("curl.zig");

const Allocator = std.mem.Allocator;

pub const Options = struct {
    /// Trust store for TLS; both empty: libcurl's own. Copied.
    ca_file: []const u8 = "",
    ca_path: []const u8 = "",
    /// As environments have them; empty: none. Copied.
    http_proxy: []const u8 = "",
    https_proxy: []const u8 = "",
    no_proxy: []const u8 = "",
    /// Of those at once to one scheme, host and port, by one route; 0: any number.
    connections_per_origin: u32 = 0,
    /// 0: as many as the process may have descriptors, with some left for others.
    connections_max: u32 = 0,
    /// Measured at 1,000 connections: with libcurl 8.21 a call costs 33 us in shards of 256, 30 of 128, 27 of 64; smaller
    /// ones gain nothing. With 7.88 it is 25 for all.
    connections_per_shard: u32 = 64,
    /// Where libcurl comes from.
    load: *const fn () curl.Table.LoadError!*const curl.Table = curl.Table.shared,
};

/// What was given as slices, as libcurl wants it.
pub const Texts = struct {
    ca_file: [:0]const u8 = "",
    ca_path: [:0]const u8 = "",
    http_proxy: [:0]const u8 = "",
    https_proxy: [:0]const u8 = "",
    no_proxy: [:0]const u8 = "",

    const names = @typeInfo(Texts).@"struct".field_names;

    pub fn create(gpa: Allocator, options: *const Options) Allocator.Error!Texts {
        var texts: Texts = .{};
        errdefer texts.deinit(gpa);
        inline for (names) |name| {
            const given = @field(options, name);
            if (given.len > 0) @field(texts, name) = try gpa.dupeSentinel(u8, given, 0);
        }
        return texts;
    }

    pub fn deinit(texts: *const Texts, gpa: Allocator) void {
        inline for (names) |name| if (@field(texts, name).len > 0) gpa.free(@field(texts, name));
    }
};
