//! Together: who of those that want the same goes for it, and who waits for what he brings. Pure; one thread.
//!
//! A `Member` that finds nobody under its key leads, and those that come later follow. In the end the leader either `disband`s
//! the party, for all have what they wanted, or `cede`s: then the first of its followers leads the others.

const std = @import("std");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const Key = [32]u8;

/// The caller's; it does not move while it is in a party.
pub const Member = struct {
    party: ?*Party = null,
    next: ?*Member = null,
    previous: ?*Member = null,

    pub fn leads(member: *const Member) bool {
        const party = member.party orelse return false;
        return party.leader == member;
    }
};

pub const Party = struct {
    key: Key,
    leader: *Member,
    first: ?*Member = null,
    last: ?*Member = null,
    /// Followers.
    count: u32 = 0,

    fn remove(party: *Party, member: *Member) void {
        if (member.previous) |previous| previous.next = member.next else party.first = member.next;
        if (member.next) |next| next.previous = member.previous else party.last = member.previous;
        party.count -= 1;
        member.* = .{};
    }
};

pub const Together = struct {
    gpa: Allocator,
    parties: std.HashMapUnmanaged(Key, *Party, KeyContext, std.hash_map.default_max_load_percentage) = .empty,

    pub fn deinit(together: *Together) void {
        assert(together.parties.count() == 0);
        together.parties.deinit(together.gpa);
    }

    /// True: it follows, else it leads.
    pub fn join(together: *Together, member: *Member, key: *const Key) Allocator.Error!bool {
        assert(member.party == null);
        const place = try together.parties.getOrPut(together.gpa, key.*);
        if (place.found_existing) {
            const party = place.value_ptr.*;
            member.* = .{ .party = party, .previous = party.last };
            if (party.last) |last| last.next = member else party.first = member;
            party.last = member;
            party.count += 1;
            return true;
        }
        errdefer together.parties.removeByPtr(place.key_ptr);
        const party = try together.gpa.create(Party);
        party.* = .{ .key = key.*, .leader = member };
        place.value_ptr.* = party;
        member.* = .{ .party = party };
        return false;
    }

    /// Of a follower.
    pub fn leave(_: *Together, member: *Member) void {
        assert(!member.leads());
        member.party.?.remove(member);
    }

    /// The leader leaves. Who leads now; null: there was nobody else.
    pub fn cede(together: *Together, leader: *Member) ?*Member {
        assert(leader.leads());
        const party = leader.party.?;
        const next = party.first orelse {
            _ = together.disband(leader);
            return null;
        };
        party.remove(next);
        party.leader = next;
        next.party = party;
        leader.* = .{};
        return next;
    }

    /// There is no party any more. Its followers, linked by `next`.
    pub fn disband(together: *Together, leader: *Member) ?*Member {
        assert(leader.leads());
        const party = leader.party.?;
        const found = together.parties.remove(party.key);
        assert(found);
        const first = party.first;
        var at = first;
        while (at) |member| : (at = member.next) member.party = null;
        leader.* = .{};
        together.gpa.destroy(party);
        return first;
    }
};

/// A digest needs no more hashing.
const KeyContext = struct {
    pub fn hash(_: KeyContext, key: Key) u64 {
        return std.mem.readInt(u64, key[0..8], .little);
    }
    pub fn eql(_: KeyContext, a: Key, b: Key) bool {
        return std.mem.eql(u8, &a, &b);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn keyOf(number: u8) Key {
    return @splat(number);
}

test "the first leads, the others follow in the order in which they came" {
    var together: Together = .{ .gpa = testing.allocator };
    defer together.deinit();
    var members: [4]Member = @splat(.{});
    for (&members, 0..) |*member, i| try testing.expectEqual(i > 0, try together.join(member, &keyOf(1)));
    var stranger: Member = .{};
    try testing.expect(!try together.join(&stranger, &keyOf(2)));
    together.leave(&members[1]);
    try testing.expectEqual(&members[2], together.cede(&members[0]));
    try testing.expect(members[2].leads() and members[0].party == null);
    try testing.expect(try together.join(&members[0], &keyOf(1))); // again, behind the others
    var at = together.disband(&members[2]);
    for ([_]usize{ 3, 0 }) |i| {
        try testing.expectEqual(&members[i], at);
        try testing.expectEqual(null, at.?.party);
        at = at.?.next;
    }
    try testing.expectEqual(null, at);
    try testing.expectEqual(null, together.cede(&stranger));
}

test "random parties hold whom a list of lists holds" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const gpa = testing.allocator;
    var together: Together = .{ .gpa = gpa };
    defer together.deinit();
    var members: [12]Member = @splat(.{});
    var lists: [3]std.ArrayList(usize) = @splat(.empty); // the leader first
    defer for (&lists) |*list| list.deinit(gpa);
    for (0..20_000) |_| {
        const i = random.uintLessThan(usize, members.len);
        const member = &members[i];
        for (&lists) |*list| {
            const at = std.mem.findScalar(usize, list.items, i) orelse continue;
            if (at > 0) {
                together.leave(member);
                _ = list.orderedRemove(at);
            } else if (random.boolean()) {
                const next = together.cede(member);
                _ = list.orderedRemove(0);
                try testing.expectEqual(if (list.items.len > 0) &members[list.items[0]] else null, next);
            } else {
                var follower = together.disband(member);
                for (list.items[1..]) |other| {
                    try testing.expectEqual(&members[other], follower);
                    follower = follower.?.next;
                    members[other] = .{};
                }
                try testing.expectEqual(null, follower);
                list.clearRetainingCapacity();
            }
            break;
        } else {
            const number = random.uintLessThan(u8, lists.len);
            const list = &lists[number];
            try testing.expectEqual(list.items.len > 0, try together.join(member, &keyOf(number)));
            try list.append(gpa, i);
        }
        for (&lists) |*list| if (list.items.len > 0) {
            try testing.expect(members[list.items[0]].leads());
            try testing.expectEqual(list.items.len - 1, members[list.items[0]].party.?.count);
        };
    }
    for (&lists) |*list| if (list.items.len > 0) {
        _ = together.disband(&members[list.items[0]]);
    };
}

test "without memory nobody leads" {
    for (0..2) |index| {
        var failing: testing.FailingAllocator = .init(testing.allocator, .{ .fail_index = index });
        var together: Together = .{ .gpa = failing.allocator() };
        defer together.deinit();
        var member: Member = .{};
        try testing.expectError(error.OutOfMemory, together.join(&member, &keyOf(1)));
        try testing.expectEqual(null, member.party);
    }
}
