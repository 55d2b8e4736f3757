//! Whether an address belongs to the public internet, or to somewhere a stranger's URL must not lead: this machine, its network,
//! a cloud's metadata service. Pure functions; who resolves names and who connects asks here about each address.
//!
//! The ranges are those of IANA's special-purpose address registries (RFC 6890 and RFC 8190, as of October 2025):
//!
//!     https://www.iana.org/assignments/iana-ipv4-special-registry
//!     https://www.iana.org/assignments/iana-ipv6-special-registry
//!
//! and multicast, which has registries of its own. In IPv4 all is public but what is listed. In IPv6 nothing is but 2000::/3, the
//! part that is given out (RFC 4291, 2.4), without what is listed. In two places this is stricter than the registries: 192.0.0.0/24
//! and 2001::/23 hold anycast addresses that are called globally reachable, but are answered by whatever server of that kind is
//! nearest, which may be one's own router (192.0.0.9, 2001:1::1), and identifiers that no packet should go to (2001:20::/28,
//! 2001:30::/28).
//!
//! An IPv6 address that only wraps an IPv4 address is judged by that one. It can be known for the prefixes that are the same
//! everywhere; a network's own NAT64 prefix (RFC 6052, 2.2) looks like any other address.

const std = @import("std");

/// Bytes as they are sent: the first is the leftmost.
pub const Address = union(enum) { v4: [4]u8, v6: [16]u8 };

pub fn isPublic(address: Address) bool {
    return switch (address) {
        .v4 => |bytes| isPublicV4(bytes),
        .v6 => |bytes| isPublicV6(bytes),
    };
}

const refused_v4 = [_]struct { [4]u8, u6 }{
    .{ .{ 0, 0, 0, 0 }, 8 }, // "this network", RFC 791; on many systems 0.0.0.0 is this machine
    .{ .{ 10, 0, 0, 0 }, 8 }, // private, RFC 1918
    .{ .{ 100, 64, 0, 0 }, 10 }, // shared behind a carrier's NAT, RFC 6598
    .{ .{ 127, 0, 0, 0 }, 8 }, // loopback, RFC 1122
    .{ .{ 169, 254, 0, 0 }, 16 }, // link-local, RFC 3927; clouds have their metadata there
    .{ .{ 172, 16, 0, 0 }, 12 }, // private, RFC 1918
    .{ .{ 192, 0, 0, 0 }, 24 }, // protocol assignments, RFC 6890
    .{ .{ 192, 0, 2, 0 }, 24 }, // documentation, RFC 5737
    .{ .{ 192, 88, 99, 0 }, 24 }, // 6to4 relays, given up by RFC 7526
    .{ .{ 192, 168, 0, 0 }, 16 }, // private, RFC 1918
    .{ .{ 198, 18, 0, 0 }, 15 }, // benchmarks, RFC 2544
    .{ .{ 198, 51, 100, 0 }, 24 }, // documentation, RFC 5737
    .{ .{ 203, 0, 113, 0 }, 24 }, // documentation, RFC 5737
    .{ .{ 224, 0, 0, 0 }, 4 }, // multicast, RFC 5771
    .{ .{ 240, 0, 0, 0 }, 4 }, // reserved, RFC 1112, and broadcast, RFC 919
};

const Verdict = union(enum) {
    public,
    refused,
    /// Where in the address an IPv4 address begins, which decides.
    v4_at: u4,
};

/// The first row that fits counts; an address that none fits is refused.
const rows_v6 = [_]struct { []const u16, u8, Verdict }{
    .{ &.{ 0, 0, 0, 0, 0, 0xffff }, 96, .{ .v4_at = 12 } }, // IPv4-mapped, RFC 4291
    .{ &.{ 0x64, 0xff9b }, 96, .{ .v4_at = 12 } }, // NAT64, RFC 6052
    .{ &.{0x2002}, 16, .{ .v4_at = 2 } }, // 6to4, RFC 3056
    .{ &.{ 0x2001, 0x3 }, 32, .public }, // multicast tunnels, RFC 7450: as 192.52.193.0/24
    .{ &.{ 0x2001, 0x4, 0x112 }, 48, .public }, // AS112, RFC 7535: as 192.31.196.0/24
    .{ &.{0x2001}, 23, .refused }, // protocol assignments, RFC 2928: Teredo, benchmarks, ORCHID and others
    .{ &.{ 0x2001, 0xdb8 }, 32, .refused }, // documentation, RFC 3849
    .{ &.{0x3fff}, 20, .refused }, // documentation, RFC 9637
    .{ &.{0x2000}, 3, .public },
};

fn isPublicV4(bytes: [4]u8) bool {
    for (refused_v4) |row| {
        const prefix, const bits = row;
        if (agree(u32, std.mem.readInt(u32, &bytes, .big), std.mem.readInt(u32, &prefix, .big), bits)) return false;
    }
    return true;
}

fn isPublicV6(bytes: [16]u8) bool {
    for (rows_v6) |row| {
        const groups, const bits, const verdict = row;
        if (!agree(u128, std.mem.readInt(u128, &bytes, .big), number(groups), bits)) continue;
        return switch (verdict) {
            .public => true,
            .refused => false,
            .v4_at => |at| isPublicV4(bytes[at..][0..4].*),
        };
    }
    return false;
}

/// Whether the first `bits` bits are the same; at least one.
fn agree(comptime T: type, a: T, b: T, bits: u8) bool {
    return (a ^ b) >> @intCast(@bitSizeOf(T) - bits) == 0;
}

/// An address of which the first groups are given and the others are 0: "2001:db8::" is { 0x2001, 0xdb8 }.
fn number(groups: []const u16) u128 {
    var whole: u128 = 0;
    for (groups, 1..) |group, count| whole |= @as(u128, group) << @intCast(128 - 16 * count);
    return whole;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// The whole of IPv4: from each of these on, up to the next, addresses are public or are not.
const map_v4 = [_]struct { [4]u8, bool }{
    .{ .{ 0, 0, 0, 0 }, false },      .{ .{ 1, 0, 0, 0 }, true },
    .{ .{ 10, 0, 0, 0 }, false },     .{ .{ 11, 0, 0, 0 }, true },
    .{ .{ 100, 64, 0, 0 }, false },   .{ .{ 100, 128, 0, 0 }, true },
    .{ .{ 127, 0, 0, 0 }, false },    .{ .{ 128, 0, 0, 0 }, true },
    .{ .{ 169, 254, 0, 0 }, false },  .{ .{ 169, 255, 0, 0 }, true },
    .{ .{ 172, 16, 0, 0 }, false },   .{ .{ 172, 32, 0, 0 }, true },
    .{ .{ 192, 0, 0, 0 }, false },    .{ .{ 192, 0, 1, 0 }, true },
    .{ .{ 192, 0, 2, 0 }, false },    .{ .{ 192, 0, 3, 0 }, true },
    .{ .{ 192, 88, 99, 0 }, false },  .{ .{ 192, 88, 100, 0 }, true },
    .{ .{ 192, 168, 0, 0 }, false },  .{ .{ 192, 169, 0, 0 }, true },
    .{ .{ 198, 18, 0, 0 }, false },   .{ .{ 198, 20, 0, 0 }, true },
    .{ .{ 198, 51, 100, 0 }, false }, .{ .{ 198, 51, 101, 0 }, true },
    .{ .{ 203, 0, 113, 0 }, false },  .{ .{ 203, 0, 114, 0 }, true },
    .{ .{ 224, 0, 0, 0 }, false },    .{ .{ 240, 0, 0, 0 }, false },
};

/// The whole of IPv6, but for what wraps an IPv4 address: that has tests of its own. 2002::/16 stands here for its two ends,
/// 0.0.0.0 and 255.255.255.255.
const map_v6 = [_]struct { u128, bool }{
    .{ 0, false },
    .{ 0x0064_ff9b_0001 << 80, false }, // 64:ff9b:1::/48, a network's own NAT64
    .{ 0x0100 << 112, false }, // discarded
    .{ 0x2000 << 112, true },
    .{ 0x2001 << 112, false }, // Teredo
    .{ 0x2001_0001 << 96, false }, // anycast
    .{ 0x2001_0002 << 96, false }, // benchmarks
    .{ 0x2001_0003 << 96, true },
    .{ 0x2001_0004 << 96, false },
    .{ 0x2001_0004_0112 << 80, true },
    .{ 0x2001_0004_0113 << 80, false },
    .{ 0x2001_0010 << 96, false }, // ORCHID
    .{ 0x2001_0020 << 96, false }, // ORCHID, second version
    .{ 0x2001_0030 << 96, false }, // drones
    .{ 0x2001_0040 << 96, false },
    .{ 0x2001_0200 << 96, true },
    .{ 0x2001_0db8 << 96, false },
    .{ 0x2001_0db9 << 96, true },
    .{ 0x2002 << 112, false },
    .{ 0x2003 << 112, true },
    .{ 0x3fff << 112, false },
    .{ 0x3fff_1000 << 96, true },
    .{ 0x4000 << 112, false },
    .{ 0x5f00 << 112, false }, // segment routing
    .{ 0xfc00 << 112, false }, // a site's own
    .{ 0xfe00 << 112, false },
    .{ 0xfe80 << 112, false }, // link-local
    .{ 0xfec0 << 112, false }, // a site's own, given up
    .{ 0xff00 << 112, false }, // multicast
};

fn expectPublic(expected: bool, address: Address) !void {
    errdefer switch (address) {
        .v4 => |bytes| std.debug.print("address {any}\n", .{bytes}),
        .v6 => |bytes| std.debug.print("address {x}\n", .{std.mem.readInt(u128, &bytes, .big)}),
    };
    try testing.expectEqual(expected, isPublic(address));
}

fn v4(value: u32) Address {
    return .{ .v4 = std.mem.toBytes(std.mem.nativeToBig(u32, value)) };
}

fn v6(value: u128) Address {
    return .{ .v6 = std.mem.toBytes(std.mem.nativeToBig(u128, value)) };
}

fn wrapped(inner: [4]u8) [3]Address {
    const value: u128 = std.mem.readInt(u32, &inner, .big);
    return .{ v6(0xffff << 32 | value), v6(0x0064_ff9b << 96 | value), v6(0x2002 << 112 | value << 80 | 0x1234_5678_9abc) };
}

test "every range of IPv4 begins and ends where it should, wrapped in IPv6 or not" {
    for (map_v4, 0..) |row, at| {
        const first = std.mem.readInt(u32, &row[0], .big);
        const last = if (at + 1 == map_v4.len) std.math.maxInt(u32) else std.mem.readInt(u32, &map_v4[at + 1][0], .big) - 1;
        for ([_]u32{ first, last, first + (last - first) / 2 }) |value| {
            try expectPublic(row[1], v4(value));
            for (wrapped(v4(value).v4)) |address| try expectPublic(row[1], address);
        }
    }
}

test "every range of IPv6 begins and ends where it should" {
    for (map_v6, 0..) |row, at| {
        const last = if (at + 1 == map_v6.len) std.math.maxInt(u128) else map_v6[at + 1][0] - 1;
        for ([_]u128{ row[0], last }) |value| try expectPublic(row[1], v6(value));
    }
}

test "an IPv4 address counts only where the prefix before it is whole" {
    const public: u128 = 0x08080808;
    for ([_]u128{
        public, // IPv4-compatible, given up
        0xfffe << 32 | public,
        0x1_ffff << 32 | public,
        0xffff_0000 << 32 | public, // IPv4-translated, RFC 2765
        0x0064_ff9a << 96 | public,
        0x0064_ff9b << 96 | 1 << 32 | public,
        0x0064_ff9b_0001 << 80 | public,
        0x0064_ff9c << 96 | public,
    }) |value| try expectPublic(false, v6(value));
    // Next to 6to4 are addresses like any other: what stands in them is no IPv4 address.
    try expectPublic(true, v6(0x2001_ffff << 96 | 0x7f00_0001 << 80));
    try expectPublic(true, v6(0x2003 << 112 | 0x7f00_0001 << 80));
}

test "addresses that everybody knows" {
    for ([_][4]u8{ .{ 127, 0, 0, 1 }, .{ 0, 0, 0, 0 }, .{ 169, 254, 169, 254 }, .{ 192, 168, 1, 1 }, .{ 10, 0, 0, 1 }, .{ 172, 31, 255, 255 } }) |bytes| {
        try expectPublic(false, .{ .v4 = bytes });
        for (wrapped(bytes)) |address| try expectPublic(false, address);
    }
    for ([_][4]u8{ .{ 8, 8, 8, 8 }, .{ 1, 1, 1, 1 }, .{ 93, 184, 216, 34 }, .{ 172, 217, 0, 1 }, .{ 192, 31, 196, 1 }, .{ 192, 52, 193, 1 } }) |bytes| {
        try expectPublic(true, .{ .v4 = bytes });
        for (wrapped(bytes)) |address| try expectPublic(true, address);
    }
    for ([_]u128{
        0, // ::
        1, // ::1
        0xfd00_0ec2 << 96 | 0x254, // fd00:ec2::254, a cloud's metadata
        0xfe80 << 112 | 1,
        0xff02 << 112 | 1,
    }) |value| try expectPublic(false, v6(value));
    for ([_]u128{
        0x2606_4700_4700 << 80 | 0x1111,
        0x2001_4860_4860 << 80 | 0x8888,
        0x2a00_1450 << 96 | 1,
        0x2620_004f_8000 << 80 | 1, // AS112 again, which the registry calls global
    }) |value| try expectPublic(true, v6(value));
}

test "random addresses are judged as the map says" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    for (0..20_000) |_| {
        // Half of them near a border: some place on the map, and a few bits of it changed.
        const place = map_v4[random.uintLessThan(usize, map_v4.len)][0];
        const value = if (random.boolean()) random.int(u32) else std.mem.readInt(u32, &place, .big) ^ (random.int(u32) >> random.int(u5));
        var expected = false;
        for (map_v4) |row| {
            if (std.mem.readInt(u32, &row[0], .big) <= value) expected = row[1];
        }
        try expectPublic(expected, v4(value));
        for (wrapped(v4(value).v4)) |address| try expectPublic(expected, address);
    }
    for (0..20_000) |_| {
        const place = map_v6[random.uintLessThan(usize, map_v6.len)][0];
        const value = if (random.boolean()) random.int(u128) else place ^ (random.int(u128) >> random.int(u7));
        if (value >> 112 == 0x2002 or value >> 32 == 0xffff or value >> 32 == 0x0064_ff9b << 64) continue; // wraps an IPv4 address
        var expected = false;
        for (map_v6) |row| {
            if (row[0] <= value) expected = row[1];
        }
        try expectPublic(expected, v6(value));
    }
}
