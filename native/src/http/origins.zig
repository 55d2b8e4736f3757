//! Where requests go: one Origin for each scheme, host, port and route, and one Lane for each pair of an origin and a shard, which
//! counts the connections and transfers of that origin there. Connections that are open and not in use are idle; a stack of
//! lanes that may have one is kept for each origin, so that finding one costs the same for two shards and for two hundred.
//! One thread.

const std = @import("std");
const target_file = @import("target.zig");
const transfer_file = @import("transfer.zig");
const Shard = @import("shard.zig").Shard;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Transfer = transfer_file.Transfer;

pub const Lane = struct {
    origin: *Origin,
    shard: *Shard,
    open: u32 = 0,
    active: u32 = 0,
    /// Of these, those whose owners are full: what comes for them comes unasked.
    paused: u32 = 0,
    /// On the origin's stack.
    listed: bool = false,
    below: ?*Lane = null,

    /// With HTTP/2 a connection carries many transfers and there may be more of these.
    pub fn idle(lane: *const Lane) u32 {
        return lane.open -| lane.active;
    }

    /// A transfer is over: its connection may be idle now.
    pub fn offer(lane: *Lane) void {
        if (lane.listed or lane.idle() == 0) return;
        lane.listed = true;
        lane.below = lane.origin.idle_lanes;
        lane.origin.idle_lanes = lane;
    }
};

pub const Origin = struct {
    key: []const u8,
    /// The part of it that people know.
    name: []const u8,
    tls: bool,
    /// Transfers to it that are waiting or running.
    users: u32 = 0,
    /// Those that run, and those that wait because no more may.
    running: u32 = 0,
    crowd: List = .{},
    /// By the shard's index.
    lanes: std.ArrayList(?*Lane) = .empty,
    idle_lanes: ?*Lane = null,
    /// It is known to speak HTTP/1; without TLS nothing else is spoken.
    is_http_1: bool,
    /// It speaks HTTP/2: all transfers go here, so that they share connections.
    home: ?*Shard = null,

    // A name is looked up once, not by each of a thousand transfers that begin together: libcurl starts a thread for each lookup.
    // One of them goes ahead; the others wait until it has opened a socket, and then find the address in the shared cache.
    has_name: bool,
    known_until_ns: u64 = 0,
    scout: ?*Transfer = null,
    held: List = .{},
    /// On the engine's list of origins whose address has just become known.
    next_known: ?*Origin = null,
    is_known_listed: bool = false,

    /// Shorter than libcurl keeps an address (60 s).
    const known_ns = 50 * std.time.ns_per_s;

    pub fn idleLane(origin: *Origin) ?*Lane {
        while (origin.idle_lanes) |lane| {
            if (lane.idle() > 0) return lane;
            origin.idle_lanes = lane.below;
            lane.listed = false;
        }
        return null;
    }

    pub fn isKnown(origin: *const Origin, now_ns: u64) bool {
        return !origin.has_name or now_ns < origin.known_until_ns;
    }

    /// A socket to it is being opened.
    pub fn becomeKnown(origin: *Origin, now_ns: u64) void {
        if (!origin.isKnown(now_ns)) origin.known_until_ns = now_ns + known_ns;
    }

    pub fn laneIn(origin: *const Origin, shard: *const Shard) ?*Lane {
        return if (shard.index < origin.lanes.items.len) origin.lanes.items[shard.index] else null;
    }

    pub fn laneFor(origin: *Origin, gpa: Allocator, shard: *Shard) Allocator.Error!*Lane {
        if (origin.laneIn(shard)) |lane| return lane;
        while (origin.lanes.items.len <= shard.index) try origin.lanes.append(gpa, null);
        const lane = try gpa.create(Lane);
        lane.* = .{ .origin = origin, .shard = shard };
        origin.lanes.items[shard.index] = lane;
        return lane;
    }

    fn create(gpa: Allocator, key: []const u8, name_length: usize, tls: bool) Allocator.Error!*Origin {
        const origin = try gpa.create(Origin);
        errdefer gpa.destroy(origin);
        const copy = try gpa.dupe(u8, key);
        const name = copy[0..name_length];
        origin.* = .{ .key = copy, .name = name, .tls = tls, .is_http_1 = !tls, .has_name = needsLookup(name) };
        return origin;
    }

    fn destroy(origin: *Origin, gpa: Allocator) void {
        for (origin.lanes.items) |slot| if (slot) |lane| gpa.destroy(lane);
        origin.lanes.deinit(gpa);
        gpa.free(origin.key);
        gpa.destroy(origin);
    }

    fn isUnused(origin: *const Origin) bool {
        if (origin.users > 0 or origin.is_known_listed) return false;
        for (origin.lanes.items) |slot| if (slot) |lane| if (lane.open > 0 or lane.active > 0) return false;
        return true;
    }
};

/// Addresses need no lookup, and libcurl knows localhost by itself.
fn needsLookup(name: []const u8) bool {
    const host = name[std.mem.find(u8, name, "://").? + 3 ..];
    if (host[0] == '[') return false;
    const bare = if (std.mem.findScalar(u8, host, ':')) |colon| host[0..colon] else host;
    if (std.mem.eql(u8, bare, "localhost") or std.mem.endsWith(u8, bare, ".localhost")) return false;
    for (bare) |byte| if (byte != '.' and !std.ascii.isDigit(byte)) return true;
    return false;
}

pub const Origins = struct {
    gpa: Allocator,
    map: std.StringHashMapUnmanaged(*Origin) = .empty,
    sweep_at: u32 = sweep_least,

    const sweep_least = 256;

    pub fn deinit(origins: *Origins) void {
        var all = origins.map.valueIterator();
        while (all.next()) |origin| origin.*.destroy(origins.gpa);
        origins.map.deinit(origins.gpa);
    }

    /// `route`: the key of the transfer's route, 0 where it has none.
    pub fn find(origins: *Origins, target: target_file.Target, route: u64) Allocator.Error!*Origin {
        var buffer: [target_file.bytes_max + @sizeOf(u64)]u8 = undefined;
        @memcpy(buffer[0..target.origin.len], target.origin);
        std.mem.writeInt(u64, buffer[target.origin.len..][0..@sizeOf(u64)], route, .little);
        const key = buffer[0 .. target.origin.len + @sizeOf(u64)];
        if (origins.map.get(key)) |origin| return origin;
        if (origins.map.count() >= origins.sweep_at) origins.sweep();
        const origin = try Origin.create(origins.gpa, key, target.origin.len, target.tls);
        errdefer origin.destroy(origins.gpa);
        try origins.map.put(origins.gpa, origin.key, origin);
        return origin;
    }

    /// Forgets origins that nothing leads to any more; so many different ones do not fill the memory.
    fn sweep(origins: *Origins) void {
        var all = origins.map.iterator();
        while (all.next()) |entry| {
            const origin = entry.value_ptr.*;
            if (!origin.isUnused()) continue;
            origins.map.removeByPtr(entry.key_ptr);
            origin.destroy(origins.gpa);
        }
        origins.sweep_at = @max(sweep_least, 2 * origins.map.count());
    }
};

/// Transfers in the order in which they came.
pub const List = struct {
    first: ?*Transfer = null,
    last: ?*Transfer = null,
    count: u32 = 0,

    pub fn push(list: *List, transfer: *Transfer) void {
        transfer.next = null;
        transfer.previous = list.last;
        if (list.last) |last| last.next = transfer else list.first = transfer;
        list.last = transfer;
        list.count += 1;
    }

    pub fn remove(list: *List, transfer: *Transfer) void {
        if (transfer.previous) |previous| previous.next = transfer.next else list.first = transfer.next;
        if (transfer.next) |next| next.previous = transfer.previous else list.last = transfer.previous;
        transfer.next = null;
        transfer.previous = null;
        list.count -= 1;
    }

    pub fn pop(list: *List) ?*Transfer {
        const transfer = list.first orelse return null;
        list.remove(transfer);
        return transfer;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn testShard(index: u32) Shard {
    var shard: Shard = undefined;
    shard.index = index;
    return shard;
}

test "the lane with an idle connection is found, and given up when the connection is gone" {
    var origins: Origins = .{ .gpa = testing.allocator };
    defer origins.deinit();
    var shards = [_]Shard{ testShard(0), testShard(1), testShard(2) };
    const origin = try origins.find(.{ .tls = false, .origin = "http://a" }, 0);
    try testing.expectEqual(origin, try origins.find(.{ .tls = false, .origin = "http://a" }, 0));
    try testing.expect(origin != try origins.find(.{ .tls = false, .origin = "http://a" }, 7)); // by another way
    const lane = try origin.laneFor(testing.allocator, &shards[2]);
    try testing.expectEqual(lane, try origin.laneFor(testing.allocator, &shards[2]));
    try testing.expectEqual(null, origin.laneIn(&shards[1]));
    try testing.expectEqual(null, origin.idleLane());
    lane.open = 1;
    lane.offer();
    lane.offer(); // once is enough
    try testing.expectEqual(lane, origin.idleLane().?);
    lane.active = 1;
    try testing.expectEqual(null, origin.idleLane());
    lane.active = 0;
    lane.offer();
    const other = try origin.laneFor(testing.allocator, &shards[0]);
    other.open = 1;
    other.offer();
    try testing.expectEqual(other, origin.idleLane().?);
    other.open = 0;
    try testing.expectEqual(lane, origin.idleLane().?);
}

test "origins out of use are forgotten, those with a connection are not" {
    var origins: Origins = .{ .gpa = testing.allocator };
    defer origins.deinit();
    var shard = testShard(0);
    const kept = try origins.find(.{ .tls = false, .origin = "http://kept" }, 0);
    (try kept.laneFor(testing.allocator, &shard)).open = 1;
    var name: [32]u8 = undefined;
    for (0..2000) |i| {
        const text = try std.fmt.bufPrint(&name, "http://host{d}", .{i});
        const origin = try origins.find(.{ .tls = false, .origin = text }, 0);
        try testing.expectEqualStrings(text, origin.name);
    }
    try testing.expect(origins.map.count() <= Origins.sweep_least);
    try testing.expectEqual(kept, try origins.find(.{ .tls = false, .origin = "http://kept" }, 0));
}

test "a name needs a lookup, an address and localhost do not" {
    for ([_][]const u8{ "http://example.com", "https://a1:80", "http://1.2.3.4.example" }) |it| try testing.expect(needsLookup(it));
    for ([_][]const u8{ "http://127.0.0.1:80", "https://[::1]", "http://localhost:1", "http://a.localhost" }) |it| try testing.expect(!needsLookup(it));
}

test "no memory leaves no trace" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var origins: Origins = .{ .gpa = gpa };
            defer origins.deinit();
            var shard = testShard(3);
            const origin = try origins.find(.{ .tls = true, .origin = "https://a" }, 0);
            _ = try origin.laneFor(gpa, &shard);
        }
    }.run, .{});
}
