//! Memory for simulated runs: what was given back is overwritten and stays so until the run is over, so that whoever still
//! uses it reads nonsense, and whoever still writes to it is found out. Every run gets the same addresses in the same order.

const std = @import("std");
const sim = @import("sim.zig");

const Allocator = std.mem.Allocator;
const Alignment = std.mem.Alignment;

const room_bytes = 64 << 20;
const poison = 0xaa;

var room: ?[]align(4096) u8 = null;
var used: usize = 0;
var given_back: [1 << 14][]u8 = undefined;
var given_back_count: usize = 0;

pub var live_bytes: usize = 0;
/// One allocation in so many fails; 0: none does.
pub var fails_one_in: u32 = 0;

pub const gpa: Allocator = .{ .ptr = undefined, .vtable = &.{ .alloc = alloc, .resize = resize, .remap = remap, .free = free } };

pub fn reset() void {
    used = 0;
    given_back_count = 0;
    live_bytes = 0;
    fails_one_in = 0;
}

pub fn isIntact() bool {
    for (given_back[0..given_back_count]) |bytes| if (!std.mem.allEqual(u8, bytes, poison)) return false;
    return true;
}

fn alloc(_: *anyopaque, len: usize, alignment: Alignment, _: usize) ?[*]u8 {
    const it = &sim.the;
    if (fails_one_in != 0 and it.current != null and it.chooser.chance(it.chooser, fails_one_in)) return null;
    return take(len, alignment);
}

fn take(len: usize, alignment: Alignment) ?[*]u8 {
    const whole = room orelse blk: {
        room = std.heap.page_allocator.alignedAlloc(u8, .fromByteUnits(4096), room_bytes) catch return null;
        break :blk room.?;
    };
    const start = alignment.forward(used);
    if (start + len > whole.len) return null;
    used = start + len;
    live_bytes += len;
    return whole[start..].ptr;
}

fn resize(_: *anyopaque, _: []u8, _: Alignment, _: usize, _: usize) bool {
    return false;
}

fn remap(_: *anyopaque, _: []u8, _: Alignment, _: usize, _: usize) ?[*]u8 {
    return null;
}

fn free(_: *anyopaque, bytes: []u8, _: Alignment, _: usize) void {
    @memset(bytes, poison);
    live_bytes -= bytes.len;
    if (given_back_count == given_back.len) return;
    given_back[given_back_count] = bytes;
    given_back_count += 1;
}

/// What a new fibre is to be called with, until it has begun. Never fails: that a thread cannot be had is asked elsewhere.
pub fn keepArgument(comptime T: type, value: T) *T {
    const place: *T = @ptrCast(@alignCast(take(@max(1, @sizeOf(T)), .of(T)) orelse @panic("the room of a simulated run is full")));
    place.* = value;
    return place;
}

pub fn freeArgument(argument: anytype) void {
    live_bytes -= @max(1, @sizeOf(@TypeOf(argument.*)));
}
