//! Whose turn it is among those that wait for the same thing: groups (runs) one after the other, within a group first come,
//! first served. Links lie in what waits; only a group that has somebody waiting takes memory. No lock of its own.

const std = @import("std");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const Turn = struct {
    group: ?*Group = null,
    next: ?*Turn = null,
    previous: ?*Turn = null,
};

const Group = struct {
    key: u64,
    first: ?*Turn = null,
    last: ?*Turn = null,
    /// In the ring of groups.
    next: *Group = undefined,
    previous: *Group = undefined,
};

pub const Turns = struct {
    gpa: Allocator,
    groups: std.AutoHashMapUnmanaged(u64, *Group) = .empty,
    /// Whose turn it is; the one before it in the ring is the last to come.
    current: ?*Group = null,
    count: u32 = 0,

    pub fn deinit(turns: *Turns) void {
        assert(turns.count == 0);
        turns.groups.deinit(turns.gpa);
    }

    pub fn push(turns: *Turns, turn: *Turn, key: u64) Allocator.Error!void {
        assert(turn.group == null);
        const group = turns.groups.get(key) orelse try turns.addGroup(key);
        turn.* = .{ .group = group, .previous = group.last };
        if (group.last) |last| last.next = turn else group.first = turn;
        group.last = turn;
        turns.count += 1;
    }

    fn addGroup(turns: *Turns, key: u64) Allocator.Error!*Group {
        const group = try turns.gpa.create(Group);
        errdefer turns.gpa.destroy(group);
        group.* = .{ .key = key };
        try turns.groups.put(turns.gpa, key, group);
        if (turns.current) |current| {
            group.next = current;
            group.previous = current.previous;
            current.previous.next = group;
            current.previous = group;
        } else {
            group.next = group;
            group.previous = group;
            turns.current = group;
        }
        return group;
    }

    /// Who is next.
    pub fn peek(turns: *const Turns) ?*Turn {
        return if (turns.current) |group| group.first else null;
    }

    /// The one behind that one, group by group: from `peek` on, all of them.
    pub fn after(turns: *const Turns, turn: *const Turn) ?*Turn {
        const group = turn.group.?;
        return turn.next orelse if (group.next == turns.current) null else group.next.first;
    }

    /// It is the next group's turn.
    pub fn pop(turns: *Turns) ?*Turn {
        const turn = turns.peek() orelse return null;
        turns.current = turn.group.?.next;
        turns.remove(turn);
        return turn;
    }

    pub fn remove(turns: *Turns, turn: *Turn) void {
        const group = turn.group.?;
        if (turn.previous) |previous| previous.next = turn.next else group.first = turn.next;
        if (turn.next) |next| next.previous = turn.previous else group.last = turn.previous;
        turn.* = .{};
        turns.count -= 1;
        if (group.first != null) return;
        if (turns.current == group) turns.current = if (group.next == group) null else group.next;
        group.next.previous = group.previous;
        group.previous.next = group.next;
        assert(turns.groups.remove(group.key));
        turns.gpa.destroy(group);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "groups take turns, and within one it is first come, first served" {
    var turns: Turns = .{ .gpa = testing.allocator };
    defer turns.deinit();
    var of: [8]Turn = @splat(.{});
    for ([_]u64{ 1, 1, 1, 1, 2, 2, 3, 3 }, &of) |key, *turn| try turns.push(turn, key);
    turns.remove(&of[6]);
    var seen = turns.peek();
    for ([_]usize{ 0, 1, 2, 3, 4, 5, 7 }) |expected| {
        try testing.expectEqual(&of[expected], seen.?);
        seen = turns.after(seen.?);
    }
    try testing.expectEqual(null, seen);
    for ([_]usize{ 0, 4, 7, 1, 5, 2, 3 }) |expected| {
        try testing.expectEqual(&of[expected], turns.peek().?);
        try testing.expectEqual(&of[expected], turns.pop().?);
    }
    try testing.expectEqual(null, turns.pop());
}

test "whatever comes and goes, nobody is lost and nobody waits for more than one turn of each other group" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    const random = prng.random();
    const Waiter = struct { turn: Turn = .{}, key: u64 = 0, number: u32 = 0, passed: u32 = 0 };
    var turns: Turns = .{ .gpa = testing.allocator };
    defer turns.deinit();
    var waiters: [60]Waiter = @splat(.{});
    var number: u32 = 0;
    for (0..5_000) |_| {
        const it = &waiters[random.uintLessThan(usize, waiters.len)];
        if (it.turn.group == null) {
            number += 1;
            it.* = .{ .key = random.uintLessThan(u64, 6), .number = number };
            try turns.push(&it.turn, it.key);
        } else if (random.uintLessThan(u8, 5) == 0) {
            turns.remove(&it.turn);
        } else {
            const next: *Waiter = @fieldParentPtr("turn", turns.pop().?);
            for (&waiters) |*other| if (other.turn.group != null) {
                if (other.key == next.key) {
                    try testing.expect(other.number > next.number);
                    other.passed = 0;
                } else if (isFirst(&waiters, other)) {
                    other.passed += 1;
                    try testing.expect(other.passed < 6);
                }
            };
        }
    }
    while (turns.pop()) |_| {}
    for (&waiters) |*it| try testing.expectEqual(null, it.turn.group);
}

fn isFirst(waiters: anytype, it: anytype) bool {
    for (waiters) |*other| if (other.turn.group != null and other.key == it.key and other.number < it.number) return false;
    return true;
}

test "no memory leaves nobody in line" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var turns: Turns = .{ .gpa = gpa };
            defer turns.deinit();
            var turn: Turn = .{};
            try turns.push(&turn, 1);
            _ = turns.pop();
        }
    }.run, .{});
}
