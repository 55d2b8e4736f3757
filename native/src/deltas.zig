//! Deltas: the pieces of a reply on their way from the engine's thread, which puts them in, to one reader, who takes them out.
//!
//! There are two batches. The writer fills one; the reader is given the other whole and keeps it until he comes again, so a
//! piece is copied once, and neither waits for the other longer than it takes to exchange them.
//!
//! ## Waking the reader
//!
//! A reader who has taken the last piece asks to be told of the next one, in the same step (`take`). `put` says whether somebody
//! has asked. Both are steps under the mutex: either `take` finds the piece, or `put` finds the wish. A wish is for one time.
//!
//! ## Holding the writer up
//!
//! `isFull` says that more is on its way than a reader should have to catch up with, and remembers having said so. The `take` that
//! empties the batch says whether the writer was told so: the reader then lets it go on (`Call.proceed`). So a writer that stands
//! still is let go exactly once, and never while nothing was taken.

const std = @import("std");
const sync = @import("base/sync.zig");
const reply_file = @import("json/reply.zig");

const Allocator = std.mem.Allocator;
const Bytes = reply_file.Bytes;

/// C: gb_delta_kind
pub const Kind = enum(u32) { text = 0, reasoning = 1, event = 2, bytes = 3 };

/// C: gb_delta
pub const Delta = extern struct { kind: Kind, reserved: u32 = 0, bytes: Bytes = .{} };

/// A transfer is held up once so much lies untaken: some seconds of any model's talk, and a few packets of anything else.
pub const bytes_untaken_max = 256 << 10;

pub const Deltas = struct {
    gpa: Allocator,
    mutex: sync.Mutex = .init, // guards what follows but `taken`
    filling: Batch = .{},
    /// The reader's.
    taken: Batch = .{},
    /// The reader wants to be told of the next piece. At first he does.
    wanted: bool = true,
    held_up: bool = false,

    const Piece = struct { kind: Kind, length: u32 };
    const Batch = struct {
        bytes: std.ArrayList(u8) = .empty,
        pieces: std.ArrayList(Piece) = .empty,
        // How far the reader has come.
        next: usize = 0,
        offset: usize = 0,

        fn clear(batch: *Batch) void {
            batch.bytes.clearRetainingCapacity();
            batch.pieces.clearRetainingCapacity();
            batch.next = 0;
            batch.offset = 0;
        }

        fn deinit(batch: *Batch, gpa: Allocator) void {
            batch.bytes.deinit(gpa);
            batch.pieces.deinit(gpa);
        }
    };

    pub fn init(gpa: Allocator) Deltas {
        return .{ .gpa = gpa };
    }

    pub fn deinit(deltas: *Deltas) void {
        deltas.filling.deinit(deltas.gpa);
        deltas.taken.deinit(deltas.gpa);
    }

    /// Copies. True: the reader is to be told.
    pub fn put(deltas: *Deltas, kind: Kind, bytes: []const u8) Allocator.Error!bool {
        deltas.mutex.lock();
        defer deltas.mutex.unlock();
        const batch = &deltas.filling;
        try batch.bytes.ensureUnusedCapacity(deltas.gpa, bytes.len);
        try batch.pieces.append(deltas.gpa, .{ .kind = kind, .length = @intCast(bytes.len) });
        batch.bytes.appendSliceAssumeCapacity(bytes);
        defer deltas.wanted = false;
        return deltas.wanted;
    }

    /// Whether the writer is to stand still until it is let go.
    pub fn isFull(deltas: *Deltas) bool {
        deltas.mutex.lock();
        defer deltas.mutex.unlock();
        if (deltas.filling.bytes.items.len < bytes_untaken_max) return false;
        deltas.held_up = true;
        return true;
    }

    pub const Taken = struct {
        count: u32,
        /// There are more; else the reader will be told of the next.
        more: bool,
        /// The writer stands still, and is to be let go.
        proceed: bool,
    };

    /// The oldest pieces. Their bytes are there until the next call.
    pub fn take(deltas: *Deltas, into: []Delta) Taken {
        const batch = &deltas.taken;
        var proceed = false;
        if (batch.next == batch.pieces.items.len) {
            batch.clear();
            deltas.mutex.lock();
            defer deltas.mutex.unlock();
            std.mem.swap(Batch, batch, &deltas.filling);
            proceed = deltas.held_up;
            deltas.held_up = false;
        }
        const pieces = batch.pieces.items[batch.next..];
        const count = @min(pieces.len, into.len);
        for (into[0..count], pieces[0..count]) |*delta, piece| {
            delta.* = .{ .kind = piece.kind, .bytes = .{ .ptr = batch.bytes.items.ptr + batch.offset, .len = piece.length } };
            batch.offset += piece.length;
        }
        batch.next += count;
        return .{ .count = @intCast(count), .more = batch.next < batch.pieces.items.len or !deltas.want(), .proceed = proceed };
    }

    /// All that is there as one piece, for a writer of one kind, and asks to be told of the next. Its bytes are there until the next
    /// call. Not to be mixed with `take`.
    pub fn takeAll(deltas: *Deltas) struct { bytes: []const u8, proceed: bool } {
        const batch = &deltas.taken;
        batch.clear();
        deltas.mutex.lock();
        defer deltas.mutex.unlock();
        std.mem.swap(Batch, batch, &deltas.filling);
        defer deltas.held_up = false;
        deltas.wanted = true;
        return .{ .bytes = batch.bytes.items, .proceed = deltas.held_up };
    }

    /// Asks to be told of the next piece. False: there is one already.
    fn want(deltas: *Deltas) bool {
        deltas.mutex.lock();
        defer deltas.mutex.unlock();
        deltas.wanted = deltas.filling.pieces.items.len == 0;
        return deltas.wanted;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "pieces come out as they went in, and the reader is told once each time there was nothing left" {
    var deltas: Deltas = .init(testing.allocator);
    defer deltas.deinit();
    try testing.expect(try deltas.put(.text, "ab"));
    try testing.expect(!try deltas.put(.reasoning, ""));
    try testing.expect(!try deltas.put(.text, "c"));
    var into: [2]Delta = undefined;
    var taken = deltas.take(&into);
    try testing.expectEqual(Deltas.Taken{ .count = 2, .more = true, .proceed = false }, taken);
    try testing.expectEqualStrings("ab", into[0].bytes.items());
    try testing.expectEqual(.reasoning, into[1].kind);
    try testing.expect(!try deltas.put(.text, "later")); // he has not come to the end
    taken = deltas.take(&into);
    try testing.expectEqual(Deltas.Taken{ .count = 1, .more = true, .proceed = false }, taken);
    try testing.expectEqualStrings("c", into[0].bytes.items());
    taken = deltas.take(&into);
    try testing.expectEqual(Deltas.Taken{ .count = 1, .more = false, .proceed = false }, taken);
    try testing.expectEqualStrings("later", into[0].bytes.items());
    try testing.expect(try deltas.put(.text, "d"));
}

test "a writer that is full is let go once, by whoever empties the batch" {
    var deltas: Deltas = .init(testing.allocator);
    defer deltas.deinit();
    const much: [bytes_untaken_max / 2]u8 = @splat('x');
    _ = try deltas.put(.bytes, &much);
    try testing.expect(!deltas.isFull());
    _ = try deltas.put(.bytes, &much);
    try testing.expect(deltas.isFull() and deltas.isFull());
    var into: [1]Delta = undefined;
    try testing.expect(deltas.take(&into).proceed);
    try testing.expect(!deltas.isFull());
    try testing.expect(!deltas.take(&into).proceed);
}

test "all that is there is one piece" {
    var deltas: Deltas = .init(testing.allocator);
    defer deltas.deinit();
    try testing.expect(try deltas.put(.bytes, "ab"));
    try testing.expect(!try deltas.put(.bytes, "c"));
    try testing.expectEqualStrings("abc", deltas.takeAll().bytes);
    try testing.expectEqualStrings("", deltas.takeAll().bytes);
    const much: [bytes_untaken_max]u8 = @splat('x');
    try testing.expect(try deltas.put(.bytes, &much));
    try testing.expect(deltas.isFull());
    try testing.expect(deltas.takeAll().proceed);
    try testing.expect(!deltas.takeAll().proceed);
}

test "no memory leaves what was there" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var deltas: Deltas = .init(gpa);
            defer deltas.deinit();
            for (0..40) |i| {
                _ = deltas.put(.text, "piece") catch |err| {
                    try testing.expectEqual(i, deltas.filling.pieces.items.len);
                    try testing.expectEqual(5 * i, deltas.filling.bytes.items.len);
                    return err;
                };
            }
        }
    }.run, .{});
}

test "a writer and a reader on two threads lose nothing and wait for nothing that is there" {
    const count = 20_000;
    const Room = struct {
        deltas: Deltas,
        told: sync.Atomic(u32) = .init(0),
        go_on: sync.Atomic(u32) = .init(0),

        fn write(room: *@This()) void {
            var number: [8]u8 = undefined;
            for (0..count) |i| {
                while (room.deltas.isFull()) {
                    // Let go once for each time it was full.
                    while (room.go_on.swap(0, .acquire) == 0) sync.yield();
                }
                std.mem.writeInt(u64, &number, i, .little);
                if (room.deltas.put(.event, &number) catch unreachable) {
                    _ = room.told.fetchAdd(1, .release);
                    sync.futex.wake(&room.told, 1);
                }
            }
        }
    };
    var room: Room = .{ .deltas = .init(testing.allocator) };
    defer room.deltas.deinit();
    const writer = try sync.Thread.spawn(.{ .name = "writer" }, Room.write, .{&room});
    var next: u64 = 0;
    var seen: u32 = 0;
    while (next < count) {
        while (room.told.load(.acquire) == seen) sync.futex.wait(&room.told, seen, null) catch {};
        seen += 1;
        while (true) {
            var into: [7]Delta = undefined;
            const taken = room.deltas.take(&into);
            for (into[0..taken.count]) |delta| {
                try testing.expectEqual(next, std.mem.readInt(u64, delta.bytes.items()[0..8], .little));
                next += 1;
            }
            if (taken.proceed) room.go_on.store(1, .release);
            if (!taken.more) break;
        }
    }
    writer.join();
}
