//! All the shards and easy handles of one engine: which shard a transfer goes to, and how many connections there may be.
//! One thread.

const std = @import("std");
const os = @import("../base/os.zig");
const handle_file = @import("handle.zig");
const origins_file = @import("origins.zig");
const Shard = @import("shard.zig").Shard;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Common = handle_file.Common;
const Handle = handle_file.Handle;
const Lane = origins_file.Lane;
const Origin = origins_file.Origin;
const Transfer = @import("transfer.zig").Transfer;

/// Easy handles kept for later while fewer than that are in use.
const handles_kept = 256;
/// Descriptors left to the rest of the process.
const descriptors_spared = 256;
const exhausted_ns = 50 * std.time.ns_per_ms;

pub const Fleet = struct {
    common: *Common,
    /// 0: as many as the process may have descriptors, with some left for others.
    connections_max: u32,
    connections_per_shard: u32,
    shards: std.ArrayList(*Shard) = .empty,
    /// Shards to look into for transfers that are over.
    touched: ?*Shard = null,
    free: std.EnumArray(handle_file.Size, Free) = .initFill(.{}),
    /// Of all shards: what they may have, and the transfers that count against it.
    connections_allowed: u32 = 0,
    load: u32 = 0,
    /// No more shards were to be had; until then nobody asks again. Those that there are may have room meanwhile.
    full_until_ns: u64 = 0,
    /// The process had no descriptor left: until then no connection is tried.
    exhausted_until_ns: u64 = 0,

    const Free = struct { first: ?*Handle = null, count: u32 = 0 };

    /// Closes all connections. No transfer is running.
    pub fn deinit(fleet: *Fleet) void {
        assert(fleet.common.running == 0);
        for (fleet.shards.items) |shard| shard.destroy();
        fleet.shards.deinit(fleet.common.gpa);
        for (&fleet.free.values) |*free| while (free.first) |handle| {
            free.first = handle.next;
            handle.destroy();
        };
    }

    /// A new connection is needed. Null: there are as many as may be.
    pub fn shardFor(fleet: *Fleet, origin: *const Origin) Allocator.Error!?*Shard {
        if (fleet.common.now_ns < fleet.exhausted_until_ns) return null;
        var best: ?*Shard = null;
        if (fleet.load < fleet.connections_allowed) for (fleet.shards.items) |shard| {
            if (!shard.hasRoom()) continue;
            // Connections of HTTP/2 can be shared, within a shard: as long as that is possible, keep together.
            if (origin.tls) if (origin.laneIn(shard)) |lane| if (lane.active > 0) return shard;
            if (best == null or isBetter(shard, best.?)) best = shard;
        };
        return best orelse fleet.addShard();
    }

    /// First those that need not close an idle connection for a new one.
    fn isBetter(a: *const Shard, b: *const Shard) bool {
        const a_full = a.open >= a.limit;
        const b_full = b.open >= b.limit;
        return if (a_full != b_full) b_full else a.load < b.load;
    }

    /// The process has no descriptor left: others took what was spared. A moment later there may be one again.
    pub fn noteExhausted(fleet: *Fleet) void {
        fleet.exhausted_until_ns = fleet.common.now_ns + exhausted_ns;
    }

    fn addShard(fleet: *Fleet) Allocator.Error!?*Shard {
        const gpa = fleet.common.gpa;
        if (fleet.common.now_ns < fleet.full_until_ns) return null;
        const have = fleet.connections_allowed;
        // Raised step by step, as needed: with numbers above 1023 about, a select() elsewhere in the process would fail.
        const descriptors = os.raiseDescriptorLimit(have + fleet.connections_per_shard + descriptors_spared);
        const usable = descriptors - @min(descriptors / 4, descriptors_spared);
        const most = if (fleet.connections_max == 0) usable else @min(usable, fleet.connections_max);
        // At least one, or nothing would ever be sent.
        const limit: u32 = @intCast(@min(fleet.connections_per_shard, @max(most, 1) -| have));
        if (limit == 0) {
            fleet.full_until_ns = fleet.common.now_ns + std.time.ns_per_s;
            return null;
        }
        try fleet.shards.ensureUnusedCapacity(gpa, 1);
        const shard = try Shard.create(fleet.common, @intCast(fleet.shards.items.len), limit);
        fleet.shards.appendAssumeCapacity(shard);
        fleet.connections_allowed += limit;
        return shard;
    }

    /// Hands a transfer to libcurl. `counted`: it may need a connection of its own.
    pub fn begin(fleet: *Fleet, transfer: *Transfer, shard: *Shard, counted: bool) Allocator.Error!void {
        const lane = try transfer.origin.?.laneFor(fleet.common.gpa, shard);
        const handle = try fleet.takeHandle();
        errdefer fleet.giveBack(handle);
        try handle.prepare(transfer, lane);
        try shard.add(handle);
        transfer.handle = handle;
        handle.counted = counted;
        lane.active += 1;
        lane.origin.running += 1;
        shard.load += @intFromBool(counted);
        fleet.load += @intFromBool(counted);
        fleet.common.running += 1;
        fleet.common.streams += @intFromBool(transfer.on_body != null);
    }

    /// libcurl is done with a transfer, or is to be.
    pub fn takeOut(fleet: *Fleet, handle: *Handle) void {
        const lane = handle.lane;
        const shard = lane.shard;
        handle.endPause();
        const alive = handle.survivor();
        shard.remove(handle);
        handle.buryUntold(alive);
        shard.load -= @intFromBool(handle.counted);
        fleet.load -= @intFromBool(handle.counted);
        fleet.common.running -= 1;
        fleet.common.streams -= @intFromBool(handle.transfer.on_body != null);
        lane.active -= 1;
        lane.origin.running -= 1;
        lane.offer();
        handle.transfer.handle = null;
        if (handle.isWornOut()) handle.destroy() else fleet.giveBack(handle);
    }

    fn takeHandle(fleet: *Fleet) Allocator.Error!*Handle {
        const size: handle_file.Size = .among(fleet.common.running);
        const free = fleet.free.getPtr(size);
        const handle = free.first orelse return Handle.create(fleet.common, size);
        free.first = handle.next;
        free.count -= 1;
        handle.next = null;
        return handle;
    }

    fn giveBack(fleet: *Fleet, handle: *Handle) void {
        const free = fleet.free.getPtr(handle.size);
        if (free.count >= handles_kept and free.count > fleet.common.running) return handle.destroy();
        handle.next = free.first;
        free.first = handle;
        free.count += 1;
    }

    pub fn touch(fleet: *Fleet, shard: *Shard) void {
        if (shard.is_touched) return;
        shard.is_touched = true;
        shard.next_touched = fleet.touched;
        fleet.touched = shard;
    }

    /// Its transfers have been taken out.
    pub fn renew(fleet: *Fleet, shard: *Shard) void {
        fleet.connections_allowed -= shard.limit;
        shard.renew();
        fleet.connections_allowed += shard.limit;
    }

    pub fn nextTouched(fleet: *Fleet) ?*Shard {
        const shard = fleet.touched orelse return null;
        fleet.touched = shard.next_touched;
        shard.is_touched = false;
        return shard;
    }

    /// Calls libcurl for the timers that ran out by now.
    pub fn runTimers(fleet: *Fleet) void {
        for (fleet.shards.items) |shard| if (shard.due_ns <= fleet.common.now_ns) {
            shard.timeOver();
            fleet.touch(shard);
        };
    }

    /// The same, for those that were due at once: what was just added, mostly.
    pub fn runDue(fleet: *Fleet) void {
        while (fleet.common.due) |shard| {
            fleet.common.due = shard.next_due;
            shard.is_due = false;
            shard.timeOver();
            fleet.touch(shard);
        }
    }

    /// When whoever waits for a connection may ask again; never: when one is free.
    pub fn nextRoomNs(fleet: *const Fleet) u64 {
        var at_ns: u64 = std.math.maxInt(u64);
        for ([_]u64{ fleet.full_until_ns, fleet.exhausted_until_ns }) |until_ns| {
            if (until_ns > fleet.common.now_ns) at_ns = @min(at_ns, until_ns);
        }
        return at_ns;
    }

    pub fn nextTimerNs(fleet: *const Fleet) u64 {
        var at_ns: u64 = std.math.maxInt(u64);
        for (fleet.shards.items) |shard| at_ns = @min(at_ns, shard.due_ns);
        return at_ns;
    }
};
