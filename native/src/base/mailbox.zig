//! A mailbox: many threads push, one owner takes everything at once. Intrusive: what is pushed carries its own link, so
//! pushing cannot fail. `push` tells whether the box was empty, for the one wake that is needed.
//!
//! A Treiber stack that is only ever emptied whole, which is why it has no ABA problem; the owner turns it round, so letters
//! come out in the order in which they went in.

const std = @import("std");
const sync = @import("sync.zig");

pub fn Mailbox(comptime T: type, comptime link: []const u8) type {
    return struct {
        newest: sync.Atomic(?*T) = .init(null),

        /// True: it was empty, the owner may be asleep.
        pub fn push(box: *@This(), item: *T) bool {
            var seen = box.newest.load(.monotonic);
            while (true) {
                @field(item, link) = seen;
                // Release: the item's fields are there for takeAll's acquire.
                seen = box.newest.cmpxchgWeak(seen, item, .release, .monotonic) orelse return seen == null;
            }
        }

        /// Everything pushed so far, oldest first, linked.
        pub fn takeAll(box: *@This()) ?*T {
            var at = box.newest.swap(null, .acquire); // pairs with push's exchange
            var oldest: ?*T = null;
            while (at) |item| {
                at = @field(item, link);
                @field(item, link) = oldest;
                oldest = item;
            }
            return oldest;
        }

        pub fn isEmpty(box: *const @This()) bool {
            return box.newest.load(.monotonic) == null;
        }
    };
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const Item = struct { value: u32, next: ?*Item = null };

test "items come out in the order they went in, and only the first push says empty" {
    var box: Mailbox(Item, "next") = .{};
    var items = [_]Item{ .{ .value = 0 }, .{ .value = 1 }, .{ .value = 2 } };
    for (&items, 0..) |*item, i| try testing.expectEqual(i == 0, box.push(item));
    var at = box.takeAll();
    var expected: u32 = 0;
    while (at) |item| : (at = item.next) {
        try testing.expectEqual(expected, item.value);
        expected += 1;
    }
    try testing.expectEqual(3, expected);
    try testing.expect(box.isEmpty());
}

test "nothing is lost or doubled between threads, and every thread's items keep their order" {
    const count = 5_000;
    const Shared = struct {
        box: Mailbox(Item, "next") = .{},
        items: [3][count]Item = undefined,
        fn push(shared: *@This(), which: usize) void {
            for (&shared.items[which], 0..) |*item, i| {
                item.* = .{ .value = @intCast(which * count + i) };
                _ = shared.box.push(item);
            }
        }
    };
    const shared = try testing.allocator.create(Shared);
    defer testing.allocator.destroy(shared);
    shared.* = .{};
    var threads: [3]sync.Thread = undefined;
    for (&threads, 0..) |*thread, which| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.push, .{ shared, which });
    var next: [3]u32 = @splat(0);
    var taken: usize = 0;
    while (taken < 3 * count) {
        var at = shared.box.takeAll();
        while (at) |item| {
            at = item.next;
            const which = item.value / count;
            try testing.expectEqual(next[which], item.value % count);
            next[which] += 1;
            taken += 1;
        }
    }
    for (threads) |thread| thread.join();
}
