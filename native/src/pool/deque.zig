//! A work-stealing deque: its owner pushes and pops at the bottom, anybody steals from the top, half at a time.
//!
//! Chase and Lev, "Dynamic circular work-stealing deque" (2005), with the orders of Lê, Pop, Cohen and Zappa Nardelli,
//! "Correct and efficient work-stealing for weak memory models" (2013). Zig has no fences, so where theirs stand the accesses
//! to `top` and `bottom` on both sides are sequentially consistent.
//!
//! ## Why no task is taken twice
//!
//! `top` only grows; a task at index i belongs to whoever moves `top` from i to i+1, except that the owner may take the bottom
//! task without touching `top` when it is not the last one. The one race is about the last task:
//!   owner:  bottom = b; read top = t          thief: read top = t; read bottom
//! Both sides store or read in one total order: either the thief sees the lowered bottom and leaves, or the owner sees
//! that a thief may be at its task and competes for it with the same compare-and-swap on `top`.
//!
//! Stealing half takes one task per compare-and-swap, for the owner's silent pops are only safe against a thief that
//! claims one index at a time. (One exchange for all would cost the owner a compare-and-swap at every pop from a short
//! deque, and short is what a deque is when work is a tree.) The line of `top` stays with the thief meanwhile, so a task
//! more costs it some nanoseconds; what is saved is the coming back.
//!
//! A full ring is replaced by one twice as large. The old one is kept until `deinit`: a thief may still read from it, and what
//! it reads there is the same pointer (a slot is only overwritten in the new ring); its compare-and-swap decides.

const std = @import("std");
const sync = @import("../base/sync.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub fn Deque(comptime T: type, comptime initial_capacity: usize) type {
    return struct {
        top: sync.Atomic(isize) align(sync.cache_line) = .init(0),
        bottom: sync.Atomic(isize) align(sync.cache_line) = .init(0),
        /// What the owner last saw in `top`: while the ring cannot be full by that, a push leaves the thieves' line alone.
        top_seen: isize = 0,
        ring: sync.Atomic(*Ring),
        gpa: Allocator,

        const Self = @This();

        const Ring = struct {
            slots: []sync.Atomic(?*T),
            previous: ?*Ring,

            fn create(gpa: Allocator, capacity: usize, previous: ?*Ring) Allocator.Error!*Ring {
                const ring = try gpa.create(Ring);
                errdefer gpa.destroy(ring);
                ring.* = .{ .slots = try gpa.alloc(sync.Atomic(?*T), capacity), .previous = previous };
                for (ring.slots) |*slot| slot.* = .init(null);
                return ring;
            }

            fn at(ring: *Ring, index: isize) *sync.Atomic(?*T) {
                return &ring.slots[@as(usize, @intCast(index)) & (ring.slots.len - 1)];
            }
        };

        pub fn init(gpa: Allocator) Allocator.Error!Self {
            comptime assert(std.math.isPowerOfTwo(initial_capacity));
            return .{ .gpa = gpa, .ring = .init(try Ring.create(gpa, initial_capacity, null)) };
        }

        pub fn deinit(deque: *Self) void {
            var at: ?*Ring = deque.ring.raw;
            while (at) |ring| {
                at = ring.previous;
                deque.gpa.free(ring.slots);
                deque.gpa.destroy(ring);
            }
        }

        /// Owner only. Out of memory leaves the deque as it was; the task is still the caller's.
        pub fn push(deque: *Self, task: *T) Allocator.Error!void {
            const bottom = deque.bottom.load(.monotonic);
            const ring = deque.ring.load(.monotonic);
            if (bottom - deque.top_seen >= ring.slots.len) return deque.pushMany(&.{task});
            ring.at(bottom).store(task, .monotonic);
            deque.bottom.store(bottom + 1, .seq_cst); // pairs with steal's load: the slot is filled, its task is whole
        }

        /// Owner only: all of them or none, the last one on top.
        pub fn pushMany(deque: *Self, tasks: []const *T) Allocator.Error!void {
            const bottom = deque.bottom.load(.monotonic);
            const needed = bottom + @as(isize, @intCast(tasks.len));
            var ring = deque.ring.load(.monotonic);
            if (needed - deque.top_seen > ring.slots.len) {
                deque.top_seen = deque.top.load(.acquire); // pairs with the thieves' exchange: their slots are free
                while (needed - deque.top_seen > ring.slots.len) ring = try deque.grow(ring, bottom);
            }
            for (tasks, 0..) |task, i| ring.at(bottom + @as(isize, @intCast(i))).store(task, .monotonic);
            deque.bottom.store(needed, .seq_cst); // pairs with steal's load: the slots are filled, their tasks are whole
        }

        fn grow(deque: *Self, ring: *Ring, bottom: isize) Allocator.Error!*Ring {
            const larger = try Ring.create(deque.gpa, ring.slots.len * 2, ring);
            var index = deque.top_seen;
            while (index < bottom) : (index += 1) larger.at(index).store(ring.at(index).load(.monotonic), .monotonic);
            deque.ring.store(larger, .release); // pairs with steal's load: the slots are filled
            return larger;
        }

        /// Owner only: the task pushed last.
        pub fn pop(deque: *Self) ?*T {
            const bottom = deque.bottom.load(.monotonic) - 1;
            const ring = deque.ring.load(.monotonic);
            deque.bottom.store(bottom, .seq_cst); // one total order with steal's loads, see the top
            const top = deque.top.load(.seq_cst);
            deque.top_seen = top;
            if (top > bottom) {
                deque.bottom.store(bottom + 1, .monotonic);
                return null;
            }
            const task = ring.at(bottom).load(.monotonic);
            if (top < bottom) return task;
            // The last task: a thief may want it as well.
            const won = deque.top.cmpxchgStrong(top, top + 1, .seq_cst, .monotonic) == null;
            deque.bottom.store(bottom + 1, .monotonic);
            return if (won) task else null;
        }

        /// Any thread: the task pushed first; null when there is none, or another thief was quicker.
        pub fn steal(deque: *Self) ?*T {
            const top = deque.top.load(.seq_cst); // one total order with pop, see the top
            const bottom = deque.bottom.load(.seq_cst);
            if (top >= bottom) return null;
            const ring = deque.ring.load(.acquire); // pairs with push's store
            const task = ring.at(top).load(.monotonic);
            if (deque.top.cmpxchgStrong(top, top + 1, .seq_cst, .monotonic) != null) return null;
            return task;
        }

        /// Any thread: up to half of what is there, at most `into.len`.
        pub fn stealHalf(deque: *Self, into: []*T) usize {
            const wanted = @min(into.len, (deque.len() + 1) / 2);
            var count: usize = 0;
            while (count < wanted) : (count += 1) into[count] = deque.steal() orelse break;
            return count;
        }

        /// Whether a worker that is about to sleep may: sequentially consistent, see idle.zig.
        pub fn isEmpty(deque: *const Self) bool {
            const top = deque.top.load(.seq_cst);
            return deque.bottom.load(.seq_cst) <= top;
        }

        /// A guess unless the owner asks.
        pub fn len(deque: *const Self) usize {
            const bottom = deque.bottom.load(.monotonic);
            const top = deque.top.load(.monotonic);
            return @intCast(@max(0, bottom - top));
        }
    };
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const Item = struct { id: usize, taken: sync.Atomic(u32) = .init(0) };

test "random operations by the owner agree with a list" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var deque = try Deque(Item, 4).init(testing.allocator);
    defer deque.deinit();
    var model: std.ArrayList(*Item) = .empty;
    defer model.deinit(testing.allocator);
    var items: [512]Item = undefined;
    var next: usize = 0;
    for (0..5_000) |_| switch (random.uintLessThan(u8, 6)) {
        0, 1 => {
            const item = &items[next % items.len];
            next += 1;
            try deque.push(item);
            try model.append(testing.allocator, item);
        },
        2, 3 => try testing.expectEqual(model.pop(), deque.pop()),
        4 => {
            var several: [6]*Item = undefined;
            const count = random.uintLessThan(usize, several.len + 1);
            for (several[0..count]) |*place| {
                place.* = &items[next % items.len];
                next += 1;
            }
            try deque.pushMany(several[0..count]);
            try model.appendSlice(testing.allocator, several[0..count]);
        },
        else => try testing.expectEqual(if (model.items.len > 0) model.orderedRemove(0) else null, deque.steal()),
    };
    try testing.expectEqual(model.items.len, deque.len());
}

test "owner and thieves together take every task exactly once" {
    const count = 20_000;
    const Shared = struct {
        deque: Deque(Item, 4),
        items: []Item,
        done: sync.Atomic(bool) = .init(false),
        stolen: sync.Atomic(usize) = .init(0),

        fn thief(shared: *@This()) void {
            var loot: [8]*Item = undefined;
            while (true) {
                const done = shared.done.load(.acquire);
                const taken = shared.deque.stealHalf(&loot);
                for (loot[0..taken]) |item| _ = item.taken.fetchAdd(1, .monotonic);
                _ = shared.stolen.fetchAdd(taken, .monotonic);
                if (done and taken == 0 and shared.deque.len() == 0) return;
            }
        }
    };
    var shared: Shared = .{ .deque = try .init(testing.allocator), .items = try testing.allocator.alloc(Item, count) };
    defer testing.allocator.free(shared.items);
    defer shared.deque.deinit();
    var threads: [2]sync.Thread = undefined;
    for (&threads) |*thread| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.thief, .{&shared});
    var popped: usize = 0;
    for (shared.items, 0..) |*item, id| {
        item.* = .{ .id = id };
        try shared.deque.push(item);
        if (id % 3 == 0) if (shared.deque.pop()) |mine| {
            _ = mine.taken.fetchAdd(1, .monotonic);
            popped += 1;
        };
    }
    while (shared.deque.pop()) |mine| {
        _ = mine.taken.fetchAdd(1, .monotonic);
        popped += 1;
    }
    shared.done.store(true, .release); // pairs with thief's load
    for (threads) |thread| thread.join();
    try testing.expectEqual(count, popped + shared.stolen.load(.monotonic));
    for (shared.items) |*item| try testing.expectEqual(1, item.taken.load(.monotonic));
}
