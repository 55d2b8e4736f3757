//! Notes: why nodes of a run failed, where no call and no binding could say so. Few, so a list. Any thread.

const std = @import("std");
const sync = @import("base/sync.zig");
const call_file = @import("call/call.zig");
const outgoing_file = @import("outgoing.zig");
const template = @import("graph/template.zig");

/// What there is to say about a node that failed before anything was sent.
pub const Note = struct { node: u32, attempt: u32 = 0, failure: call_file.Failure, text: []const u8 = &.{} };

pub const Notes = struct {
    gpa: std.mem.Allocator,
    mutex: sync.Mutex = .init, // guards what follows
    list: std.ArrayList(Note) = .empty,

    pub fn deinit(notes: *Notes) void {
        for (notes.list.items) |it| notes.gpa.free(it.text);
        notes.list.deinit(notes.gpa);
    }

    pub fn outOfMemory(notes: *Notes, node: u32) void {
        notes.add(.{ .node = node, .failure = .out_of_memory });
    }

    pub fn templateFailed(notes: *Notes, node: u32, err: template.RenderError, diagnostics: template.Diagnostics) void {
        if (err == error.OutOfMemory) return notes.outOfMemory(node);
        const text = outgoing_file.describeTemplate(notes.gpa, err, diagnostics) catch return notes.outOfMemory(node);
        notes.add(.{ .node = node, .failure = .template, .text = text });
    }

    pub fn nativeFailed(notes: *Notes, node: u32, comptime format: []const u8, number: i64) void {
        const text = notes.gpa.print(format, .{number}) catch return notes.outOfMemory(node);
        notes.add(.{ .node = node, .failure = .native, .text = text });
    }

    /// The attempt that `node` is at takes too long.
    pub fn timedOut(notes: *Notes, node: u32, attempt: u32) void {
        notes.add(.{ .node = node, .attempt = attempt, .failure = .node_timeout });
    }

    fn add(notes: *Notes, it: Note) void {
        notes.mutex.lock();
        defer notes.mutex.unlock();
        // No memory even for the note: the node has failed all the same, `Execution.noteOf` says why.
        notes.list.append(notes.gpa, it) catch notes.gpa.free(it.text);
    }

    /// The first that is about this attempt, or about the node whatever its attempt.
    pub fn find(notes: *Notes, node: u32, attempt: u32) ?Note {
        notes.mutex.lock();
        defer notes.mutex.unlock();
        for (notes.list.items) |it| if (it.node == node and (it.attempt == 0 or it.attempt == attempt)) return it;
        return null;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "a note is found by its node and the attempt it is about" {
    var notes: Notes = .{ .gpa = testing.allocator };
    defer notes.deinit();
    notes.nativeFailed(1, "the function returned {d}", -7);
    notes.timedOut(2, 1);
    notes.outOfMemory(3);
    try testing.expectEqualStrings("the function returned -7", notes.find(1, 4).?.text);
    try testing.expectEqual(.node_timeout, notes.find(2, 1).?.failure);
    try testing.expectEqual(null, notes.find(2, 2)); // another attempt ended in another way
    try testing.expectEqual(.out_of_memory, notes.find(3, 1).?.failure);
}
