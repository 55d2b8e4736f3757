//! Large arrays: memory that is written before it is read and need not be filled with a pattern first, in large pages where
//! the system has some. A run of a million nodes is a hundred megabytes, and touching them for the first time a page at a time
//! costs as much as running the nodes.

const std = @import("std");
const os = @import("os.zig");

const Allocator = std.mem.Allocator;

/// As `Allocator.alloc`; the caller writes everything before it reads it.
pub fn alloc(comptime T: type, arena: Allocator, count: usize) error{OutOfMemory}![]T {
    if (count == 0) return &.{};
    const bytes = std.math.mul(usize, count, @sizeOf(T)) catch return error.OutOfMemory;
    const start = arena.rawAlloc(bytes, .of(T), @returnAddress()) orelse return error.OutOfMemory;
    os.wantLargePages(start[0..bytes]);
    return @as([*]T, @ptrCast(@alignCast(start)))[0..count];
}

test "an array is as long as was asked, and empty ones cost nothing" {
    var arena: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena.deinit();
    const large = try alloc(u64, arena.allocator(), 1 << 20);
    @memset(large, 7);
    try std.testing.expectEqual(1 << 20, large.len);
    try std.testing.expectEqual(0, (try alloc(u64, arena.allocator(), 0)).len);
    try std.testing.expectError(error.OutOfMemory, alloc(u64, arena.allocator(), std.math.maxInt(usize) / 4));
}
