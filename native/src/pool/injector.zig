//! The injector: where threads that are no workers put tasks. A locked intrusive list: outsiders come rarely and bring
//! many at once, workers look only when their own deque is empty (and now and then, so that nothing waits for ever).

const std = @import("std");
const sync = @import("../base/sync.zig");

pub fn Injector(comptime T: type) type {
    return struct {
        mutex: sync.Mutex = .init,
        first: ?*T = null,
        last: ?*T = null,
        /// Read without the lock, to pass by an empty injector cheaply.
        count: sync.Atomic(usize) = .init(0),

        /// A list linked by `next`, in order.
        pub fn push(injector: *@This(), first: *T) void {
            var last = first;
            var added: usize = 1;
            while (last.next) |next| : (added += 1) last = next;
            injector.mutex.lock();
            defer injector.mutex.unlock();
            if (injector.last) |before| before.next = first else injector.first = first;
            injector.last = last;
            // Sequentially consistent: pairs with a worker's look before it sleeps, see idle.zig.
            _ = injector.count.fetchAdd(added, .seq_cst);
        }

        /// Up to `into.len` tasks, oldest first.
        pub fn take(injector: *@This(), into: []*T) usize {
            if (injector.isEmpty()) return 0;
            injector.mutex.lock();
            defer injector.mutex.unlock();
            var taken: usize = 0;
            while (taken < into.len) : (taken += 1) {
                const task = injector.first orelse break;
                injector.first = task.next;
                if (injector.first == null) injector.last = null;
                task.next = null;
                into[taken] = task;
            }
            _ = injector.count.fetchSub(taken, .monotonic);
            return taken;
        }

        pub fn isEmpty(injector: *const @This()) bool {
            return injector.count.load(.seq_cst) == 0; // pairs with push
        }
    };
}

test "tasks come out oldest first, in portions" {
    const Item = struct { id: u32, next: ?*@This() = null };
    var items = [_]Item{ .{ .id = 0 }, .{ .id = 1 }, .{ .id = 2 } };
    items[0].next = &items[1];
    var injector: Injector(Item) = .{};
    injector.push(&items[0]);
    injector.push(&items[2]);
    var out: [2]*Item = undefined;
    try std.testing.expectEqual(2, injector.take(&out));
    try std.testing.expectEqual(0, out[0].id);
    try std.testing.expectEqual(1, out[1].id);
    try std.testing.expectEqual(1, injector.take(&out));
    try std.testing.expectEqual(2, out[0].id);
    try std.testing.expect(injector.isEmpty());
}
