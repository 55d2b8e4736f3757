//! Upload: a request's body on its way from one writer, who brings it piece by piece, to the engine's thread, which sends it.
//!
//! ## Holding the writer up, and the transfer
//!
//! `put` says whether there is room for more; a writer who was told that there is none is told once there is (`take` says so).
//! `take` finds nothing: the transfer stands still, and that is remembered, in the same step; the `put` that brings something
//! says so, once, and the writer has the transfer go on. Both are steps under the mutex, so neither waits for the other in vain.

const std = @import("std");
const sync = @import("base/sync.zig");

const Allocator = std.mem.Allocator;

/// The writer is held up once so much is unsent, and told to go on at half of it.
pub const bytes_unsent_max = 256 << 10;

pub const Upload = struct {
    gpa: Allocator,
    /// Null: not known before its end.
    length: ?u64,
    mutex: sync.Mutex = .init, // guards what follows
    bytes: std.ArrayList(u8) = .empty,
    /// So many of them were sent.
    sent: usize = 0,
    /// Of all that was put in.
    count: u64 = 0,
    is_whole: bool = false,
    /// The transfer stands still.
    starved: bool = false,
    /// The writer was told that there is no room.
    held_up: bool = false,
    /// Nobody will send any more.
    is_over: bool = false,

    pub fn init(gpa: Allocator, length: ?u64) Upload {
        return .{ .gpa = gpa, .length = length };
    }

    pub fn deinit(upload: *Upload) void {
        upload.bytes.deinit(upload.gpa);
    }

    pub const Put = struct {
        room: bool,
        /// The transfer stood still, and is to go on.
        proceed: bool,
    };

    /// Copies. `InvalidArgument`: more or less than was announced, or something behind the last piece.
    pub fn put(upload: *Upload, bytes: []const u8, last: bool) error{ OutOfMemory, InvalidArgument }!Put {
        upload.mutex.lock();
        defer upload.mutex.unlock();
        if (upload.is_whole) return error.InvalidArgument;
        const count = upload.count + bytes.len;
        if (upload.length) |length| if (count > length or (last and count < length)) return error.InvalidArgument;
        if (upload.is_over) return .{ .room = true, .proceed = false };
        if (upload.sent > 0 and upload.sent >= upload.bytes.items.len / 2) upload.shift();
        try upload.bytes.appendSlice(upload.gpa, bytes);
        upload.count = count;
        upload.is_whole = last;
        const proceed = upload.starved and (bytes.len > 0 or last);
        if (proceed) upload.starved = false;
        upload.held_up = upload.unsent() >= bytes_unsent_max and !last;
        return .{ .room = !upload.held_up, .proceed = proceed };
    }

    pub const Taken = struct {
        /// Null: nothing is there yet. 0: it has ended.
        count: ?usize,
        /// The writer is to be told that there is room.
        tell: bool = false,
    };

    pub fn take(upload: *Upload, into: []u8) Taken {
        upload.mutex.lock();
        defer upload.mutex.unlock();
        const count = @min(into.len, upload.unsent());
        if (count == 0) {
            const has_ended = upload.is_whole or upload.is_over;
            upload.starved = !has_ended;
            return .{ .count = if (has_ended) 0 else null };
        }
        @memcpy(into[0..count], upload.bytes.items[upload.sent..][0..count]);
        upload.sent += count;
        return .{ .count = count, .tell = upload.letGo() };
    }

    /// Nothing is sent any more; what is put in is dropped.
    pub fn end(upload: *Upload) void {
        upload.mutex.lock();
        defer upload.mutex.unlock();
        upload.is_over = true;
        upload.held_up = false;
        upload.bytes.clearAndFree(upload.gpa);
        upload.sent = 0;
    }

    pub fn hasRoom(upload: *Upload) bool {
        upload.mutex.lock();
        defer upload.mutex.unlock();
        return !upload.held_up;
    }

    fn unsent(upload: *const Upload) usize {
        return upload.bytes.items.len - upload.sent;
    }

    fn letGo(upload: *Upload) bool {
        if (!upload.held_up or upload.unsent() > bytes_unsent_max / 2) return false;
        upload.held_up = false;
        return true;
    }

    fn shift(upload: *Upload) void {
        const left = upload.unsent();
        std.mem.copyForwards(u8, upload.bytes.items[0..left], upload.bytes.items[upload.sent..]);
        upload.bytes.shrinkRetainingCapacity(left);
        upload.sent = 0;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "what is put in is sent in order, and who finds nothing is told of the next" {
    var upload: Upload = .init(testing.allocator, null);
    defer upload.deinit();
    var into: [4]u8 = undefined;
    try testing.expectEqual(null, upload.take(&into).count);
    try testing.expectEqual(Upload.Put{ .room = true, .proceed = false }, try upload.put("", false));
    try testing.expectEqual(Upload.Put{ .room = true, .proceed = true }, try upload.put("abcdef", false));
    try testing.expectEqual(Upload.Put{ .room = true, .proceed = false }, try upload.put("g", false));
    try testing.expectEqual(4, upload.take(&into).count);
    try testing.expectEqualStrings("abcd", &into);
    _ = try upload.put("h", true);
    try testing.expectEqual(4, upload.take(&into).count);
    try testing.expectEqualStrings("efgh", &into);
    try testing.expectEqual(0, upload.take(&into).count);
    try testing.expectError(error.InvalidArgument, upload.put("i", true));
}

test "a body has the length that was announced" {
    var upload: Upload = .init(testing.allocator, 3);
    defer upload.deinit();
    try testing.expectError(error.InvalidArgument, upload.put("abcd", false));
    try testing.expectError(error.InvalidArgument, upload.put("ab", true));
    _ = try upload.put("ab", false);
    _ = try upload.put("c", true);
}

test "a writer is held up, told once, and let go for good when nothing is sent any more" {
    var upload: Upload = .init(testing.allocator, null);
    defer upload.deinit();
    const much: [bytes_unsent_max]u8 = @splat('x');
    try testing.expect(!(try upload.put(&much, false)).room);
    try testing.expect(!upload.hasRoom());
    var into: [bytes_unsent_max / 4]u8 = undefined;
    try testing.expect(!upload.take(&into).tell);
    try testing.expect(upload.take(&into).tell);
    try testing.expect(!upload.take(&into).tell);
    try testing.expect(upload.hasRoom());
    try testing.expect(!(try upload.put(&much, false)).room);
    upload.end();
    try testing.expect(upload.hasRoom());
    try testing.expect((try upload.put(&much, false)).room);
    try testing.expectEqual(0, upload.bytes.items.len);
}

test "no memory leaves what was there" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var upload: Upload = .init(gpa, null);
            defer upload.deinit();
            for (0..40) |i| _ = upload.put("piece", false) catch |err| {
                try testing.expectEqual(5 * i, upload.count);
                return err;
            };
        }
    }.run, .{});
}

test "a writer and the transfer on two threads lose nothing and wait for nothing that is there" {
    const count = 20_000;
    const Room = struct {
        upload: Upload,
        go_on: sync.Atomic(u32) = .init(0),
        has_room: sync.Atomic(u32) = .init(0),

        fn write(room: *@This()) void {
            var number: [8]u8 = undefined;
            for (0..count) |i| {
                std.mem.writeInt(u64, &number, i, .little);
                const done = room.upload.put(&number, i == count - 1) catch unreachable;
                if (done.proceed) _ = room.go_on.store(1, .release);
                if (!done.room) while (room.has_room.swap(0, .acquire) == 0) sync.yield();
            }
        }
    };
    var room: Room = .{ .upload = .init(testing.allocator, 8 * count) };
    defer room.upload.deinit();
    const writer = try sync.Thread.spawn(.{ .name = "writer" }, Room.write, .{&room});
    var next: u64 = 0;
    while (true) {
        var into: [64]u8 = undefined;
        const taken = room.upload.take(&into);
        if (taken.tell) room.has_room.store(1, .release);
        const bytes = taken.count orelse {
            while (room.go_on.swap(0, .acquire) == 0) sync.yield();
            continue;
        };
        if (bytes == 0) break;
        try testing.expectEqual(0, bytes % 8);
        for (0..bytes / 8) |i| {
            try testing.expectEqual(next, std.mem.readInt(u64, into[8 * i ..][0..8], .little));
            next += 1;
        }
    }
    writer.join();
    try testing.expectEqual(count, next);
}
