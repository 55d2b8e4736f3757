//! Memory for one random run: it counts what is asked for, can fail at one place, and knows afterwards whether all of it came
//! back, once each and with its length, whether anybody wrote behind an end, or into what had been given back.
//!
//! Nothing grows where it lies and nothing is used twice: so every growth moves, and who kept a pointer reads nonsense.
//! One thread.

const std = @import("std");

const Allocator = std.mem.Allocator;
const Alignment = std.mem.Alignment;

const room_bytes = 64 << 20;
const poison = 0xaa;
const guard: [guard_bytes]u8 = @splat(0xc5);
const guard_bytes = 16;
/// In front of each block: its number.
const head_bytes = 16;

pub const Meter = struct {
    room: []align(4096) u8,
    used: usize = 0,
    blocks: std.ArrayList(Block) = .empty,
    live: usize = 0,
    /// How often somebody asked.
    asked: u64 = 0,
    /// The one of them that is refused.
    refuse: ?u64 = null,
    has_refused: bool = false,
    fault: ?[]const u8 = null,

    const Block = struct { start: usize, length: usize, is_live: bool };

    pub fn init() Allocator.Error!Meter {
        return .{ .room = try std.heap.page_allocator.alignedAlloc(u8, .fromByteUnits(4096), room_bytes) };
    }

    pub fn deinit(meter: *Meter) void {
        std.heap.page_allocator.free(meter.room);
        meter.blocks.deinit(std.heap.page_allocator);
        meter.* = undefined;
    }

    pub fn allocator(meter: *Meter) Allocator {
        return .{ .ptr = meter, .vtable = &.{ .alloc = alloc, .resize = resize, .remap = remap, .free = free } };
    }

    /// For the next run. Whatever is left of the one before is gone.
    pub fn reset(meter: *Meter, refuse: ?u64) void {
        meter.used = 0;
        meter.blocks.clearRetainingCapacity();
        meter.live = 0;
        meter.asked = 0;
        meter.refuse = refuse;
        meter.has_refused = false;
        meter.fault = null;
    }

    /// What was wrong with the run's memory, now that it is over.
    pub fn verdict(meter: *const Meter) ?[]const u8 {
        if (meter.fault) |fault| return fault;
        if (meter.live > 0) return "memory was kept";
        for (meter.blocks.items) |block| if (!isPoison(meter.room[block.start..][0..block.length])) {
            return "memory was written to after it had been given back";
        };
        return null;
    }

    fn alloc(context: *anyopaque, length: usize, alignment: Alignment, _: usize) ?[*]u8 {
        const meter: *Meter = @ptrCast(@alignCast(context));
        defer meter.asked += 1;
        if (meter.refuse == meter.asked) {
            meter.has_refused = true;
            return null;
        }
        const start = alignment.max(.@"16").forward(meter.used + head_bytes);
        if (start + length + guard_bytes > meter.room.len) @panic("the room of a random run is full");
        const number: u32 = @intCast(meter.blocks.items.len);
        meter.blocks.append(std.heap.page_allocator, .{ .start = start, .length = length, .is_live = true }) catch @panic("out of memory");
        std.mem.writeInt(u32, meter.room[start - head_bytes ..][0..4], number, .little);
        @memset(meter.room[start..][0..length], poison);
        meter.room[start + length ..][0..guard_bytes].* = guard;
        meter.used = start + length + guard_bytes;
        meter.live += 1;
        return meter.room[start..].ptr;
    }

    fn resize(_: *anyopaque, _: []u8, _: Alignment, _: usize, _: usize) bool {
        return false;
    }

    fn remap(_: *anyopaque, _: []u8, _: Alignment, _: usize, _: usize) ?[*]u8 {
        return null;
    }

    fn free(context: *anyopaque, bytes: []u8, _: Alignment, _: usize) void {
        const meter: *Meter = @ptrCast(@alignCast(context));
        const start = @intFromPtr(bytes.ptr) -% @intFromPtr(meter.room.ptr);
        const block = meter.blockAt(start) orelse return meter.blame("memory was given back that nobody was given");
        if (!block.is_live) return meter.blame("memory was given back twice");
        if (block.length != bytes.len) return meter.blame("memory was given back with another length");
        if (!std.mem.eql(u8, meter.room[start + bytes.len ..][0..guard_bytes], &guard)) return meter.blame("memory was written to behind its end");
        @memset(bytes, poison);
        block.is_live = false;
        meter.live -= 1;
    }

    fn blockAt(meter: *Meter, start: usize) ?*Block {
        if (start < head_bytes or start > meter.room.len) return null;
        const number = std.mem.readInt(u32, meter.room[start - head_bytes ..][0..4], .little);
        if (number >= meter.blocks.items.len) return null;
        const block = &meter.blocks.items[number];
        return if (block.start == start) block else null;
    }

    fn blame(meter: *Meter, fault: []const u8) void {
        if (meter.fault == null) meter.fault = fault;
    }
};

/// Eight at a time: this is asked of everything that every run was given.
fn isPoison(bytes: []const u8) bool {
    const word: u64 = @bitCast(@as([8]u8, @splat(poison)));
    var rest = bytes;
    while (rest.len >= 8) : (rest = rest[8..]) if (std.mem.readInt(u64, rest[0..8], .little) != word) return false;
    return std.mem.allEqual(u8, rest, poison);
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "what is wrong with memory is seen" {
    var meter: Meter = try .init();
    defer meter.deinit();
    const gpa = meter.allocator();
    const Wrong = struct {
        fn nothing(it: Allocator) Allocator.Error!void {
            it.free(try it.alloc(u64, 100));
        }
        fn keep(it: Allocator) Allocator.Error!void {
            _ = try it.alloc(u8, 3);
        }
        fn writeLate(it: Allocator) Allocator.Error!void {
            const bytes = try it.alloc(u8, 13);
            const last = &bytes[12];
            it.free(bytes);
            last.* = 0;
        }
        fn writeBehind(it: Allocator) Allocator.Error!void {
            const bytes = try it.alloc(u8, 3);
            bytes.ptr[3] = 0;
            it.free(bytes);
        }
        fn shorten(it: Allocator) Allocator.Error!void {
            const bytes = try it.alloc(u8, 3);
            it.free(bytes[0..2]);
        }
        fn twice(it: Allocator) Allocator.Error!void {
            const bytes = try it.alloc(u8, 3);
            it.free(bytes);
            it.free(bytes);
        }
        fn inside(it: Allocator) Allocator.Error!void {
            const bytes = try it.alloc(u8, 300);
            it.free(bytes[100..]);
        }
    };
    const Case = struct { @TypeOf(&Wrong.nothing), ?[]const u8 };
    for ([_]Case{
        .{ Wrong.nothing, null },
        .{ Wrong.keep, "memory was kept" },
        .{ Wrong.writeLate, "memory was written to after it had been given back" },
        .{ Wrong.writeBehind, "memory was written to behind its end" },
        .{ Wrong.shorten, "memory was given back with another length" },
        .{ Wrong.twice, "memory was given back twice" },
        .{ Wrong.inside, "memory was given back that nobody was given" },
    }) |case| {
        meter.reset(null);
        try case[0](gpa);
        if (case[1]) |words| try testing.expectEqualStrings(words, meter.verdict().?) else try testing.expectEqual(null, meter.verdict());
        meter.reset(0);
        try testing.expectError(error.OutOfMemory, case[0](gpa));
        try testing.expect(meter.has_refused);
        try testing.expectEqual(null, meter.verdict());
    }
}
