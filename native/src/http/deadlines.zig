//! When to look at a transfer next: a binary heap of intrusive entries. One thread.
//!
//! A transfer has one entry, not one per timeout, and bytes that arrive do not move it: whoever is called looks at what is
//! really due and comes back later if nothing is. So a byte costs nothing and a transfer one insertion and one removal.

const std = @import("std");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const never: u64 = std.math.maxInt(u64);

pub const Entry = struct {
    at_ns: u64 = never,
    place: u32 = nowhere,

    const nowhere = std.math.maxInt(u32);
};

pub const Deadlines = struct {
    heap: std.ArrayList(*Entry) = .empty,

    pub fn deinit(deadlines: *Deadlines, gpa: Allocator) void {
        deadlines.heap.deinit(gpa);
    }

    /// Adds the entry or moves it. `never` takes it out. Only adding may fail.
    pub fn set(deadlines: *Deadlines, gpa: Allocator, entry: *Entry, at_ns: u64) Allocator.Error!void {
        if (at_ns == never) return deadlines.remove(entry);
        if (entry.place == Entry.nowhere) {
            try deadlines.heap.append(gpa, entry);
            entry.place = @intCast(deadlines.heap.items.len - 1);
        }
        entry.at_ns = at_ns;
        deadlines.settle(entry);
    }

    pub fn remove(deadlines: *Deadlines, entry: *Entry) void {
        if (entry.place == Entry.nowhere) return;
        const last = deadlines.heap.pop().?;
        if (last != entry) {
            last.place = entry.place;
            deadlines.heap.items[last.place] = last;
            deadlines.settle(last);
        }
        entry.place = Entry.nowhere;
    }

    /// The entry that is due first.
    pub fn first(deadlines: *const Deadlines) ?*Entry {
        return if (deadlines.heap.items.len == 0) null else deadlines.heap.items[0];
    }

    fn settle(deadlines: *Deadlines, entry: *Entry) void {
        const heap = deadlines.heap.items;
        while (entry.place > 0) {
            const parent = (entry.place - 1) / 2;
            if (heap[parent].at_ns <= entry.at_ns) break;
            deadlines.exchange(parent, entry.place);
        }
        while (true) {
            var child: usize = 2 * @as(usize, entry.place) + 1;
            if (child >= heap.len) break;
            if (child + 1 < heap.len and heap[child + 1].at_ns < heap[child].at_ns) child += 1;
            if (heap[child].at_ns >= entry.at_ns) break;
            deadlines.exchange(@intCast(child), entry.place);
        }
    }

    fn exchange(deadlines: *Deadlines, a: u32, b: u32) void {
        const heap = deadlines.heap.items;
        std.mem.swap(*Entry, &heap[a], &heap[b]);
        heap[a].place = a;
        heap[b].place = b;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "the first entry is the earliest, whatever was added, moved and removed" {
    const random = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{random});
    var prng = std.Random.DefaultPrng.init(random);
    var entries: [17]Entry = @splat(.{});
    var deadlines: Deadlines = .{};
    defer deadlines.deinit(testing.allocator);
    for (0..20_000) |_| {
        const entry = &entries[prng.random().uintLessThan(usize, entries.len)];
        switch (prng.random().uintLessThan(u8, 4)) {
            0 => deadlines.remove(entry),
            1 => try deadlines.set(testing.allocator, entry, never),
            else => try deadlines.set(testing.allocator, entry, prng.random().uintLessThan(u64, 50)),
        }
        var earliest: ?u64 = null;
        for (entries) |one| if (one.place != Entry.nowhere) {
            earliest = @min(earliest orelse never, one.at_ns);
        };
        try testing.expectEqual(earliest, if (deadlines.first()) |it| it.at_ns else null);
    }
}
