//! Memory that mremap moves, hidden from nobody. ThreadSanitizer looks on while memory is mapped and unmapped, but knows nothing of
//! mremap: what another thread once wrote at the new address looks like a race to it (seen with std.testing.allocator, whose large
//! blocks grow that way). So in tests under it there is no mremap: the allocator copies.

const std = @import("std");
const builtin = @import("builtin");

comptime {
    if (builtin.is_test and builtin.sanitize_thread and builtin.os.tag == .linux) @export(&mremap, .{ .name = "mremap" });
}

fn mremap(_: ?*const anyopaque, _: usize, _: usize, _: c_int) callconv(.c) *anyopaque {
    std.c._errno().* = @backingInt(std.c.E.NOMEM);
    return std.c.MAP_FAILED;
}

test "under ThreadSanitizer large blocks grow by being copied" {
    if (!builtin.sanitize_thread) return;
    const page_allocator = std.heap.page_allocator;
    const block = try page_allocator.alloc(u8, 1 << 20);
    defer page_allocator.free(block);
    try std.testing.expectEqual(null, page_allocator.remap(block, 1 << 21));
}
