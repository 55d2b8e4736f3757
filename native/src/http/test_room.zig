//! What the engine's tests stand on: an engine, a server on loopback, and requests that are sent from outside and waited for.

const std = @import("std");
const clock_file = @import("../base/clock.zig");
const engine_file = @import("engine.zig");
const loopback = @import("loopback.zig");
const transfer_file = @import("transfer.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Count = loopback.Count;
const Engine = engine_file.Engine;
const Failure = transfer_file.Failure;
const Message = engine_file.Message;
const Server = loopback.Server;
const Transfer = transfer_file.Transfer;

/// One transfer as a test sees it: submitted from outside, waited for.
pub const Request = struct {
    engine: *Engine,
    transfer: Transfer,
    submit_message: Message = .{ .run = onSubmit },
    cancel_message: Message = .{ .run = onCancel },
    /// So many more are sent, one after the other, each from the end of the one before.
    repeats: u32 = 0,
    done: *Count,
    own_done: Count = .{},
    /// Cancels that the engine has looked at; a transfer may be touched from outside only after that.
    cancels: Count = .{},

    pub fn init(engine: *Engine, done: *Count, url: [:0]const u8) Request {
        return .{ .engine = engine, .done = done, .transfer = .{ .on_done = onDone, .url = url } };
    }

    fn onSubmit(message: *Message) void {
        const request: *Request = @fieldParentPtr("submit_message", message);
        request.engine.submit(&request.transfer);
    }

    fn onCancel(message: *Message) void {
        const request: *Request = @fieldParentPtr("cancel_message", message);
        request.engine.cancel(&request.transfer);
        request.cancels.add();
    }

    fn onDone(transfer: *Transfer) void {
        const request: *Request = @fieldParentPtr("transfer", transfer);
        std.debug.assert(request.engine.onEngineThread());
        if (request.repeats > 0 and transfer.failure == .none) {
            request.repeats -= 1;
            return request.engine.submit(transfer);
        }
        request.own_done.add();
        request.done.add();
    }

    pub fn start(request: *Request) void {
        request.engine.post(&request.submit_message);
    }

    pub fn cancel(request: *Request) void {
        request.engine.post(&request.cancel_message);
    }
};

/// A server, an engine, and one request at a time.
pub const Room = struct {
    server: *Server,
    clock: *clock_file.Clock,
    engine: *Engine,
    done: Count = .{},
    request: Request,
    url: ?[:0]const u8 = null,

    pub fn open(options: engine_file.Options) !*Room {
        const room = try gpa.create(Room);
        const clock = try gpa.create(clock_file.Clock);
        clock.* = .init;
        const engine = try gpa.create(Engine);
        engine.* = try .init(gpa, clock, options);
        room.* = .{ .server = try .start(gpa), .clock = clock, .engine = engine, .request = undefined };
        room.request = .init(engine, &room.done, "");
        return room;
    }

    pub fn close(room: *Room) void {
        room.engine.shutdown();
        room.engine.deinit();
        room.server.stop();
        room.request.transfer.deinit(gpa);
        if (room.url) |url| gpa.free(url);
        gpa.destroy(room.engine);
        gpa.destroy(room.clock);
        gpa.destroy(room);
    }

    pub fn to(room: *Room, path: []const u8) !*Transfer {
        if (room.url) |url| gpa.free(url);
        room.url = try room.server.url(gpa, path);
        room.request.transfer.reset();
        room.request.transfer.url = room.url.?;
        return &room.request.transfer;
    }

    pub fn send(room: *Room) void {
        const before = room.done.get();
        room.request.start();
        room.done.waitFor(before + 1);
    }

    pub fn expectFailure(room: *Room, failure: Failure, words: []const u8) !void {
        const transfer = &room.request.transfer;
        errdefer std.debug.print("{s}: {s}\n", .{ @tagName(transfer.failure), transfer.failureText() });
        try testing.expectEqual(failure, transfer.failure);
        try testing.expect(std.mem.find(u8, transfer.failureText(), words) != null);
    }

    pub fn expectBody(room: *Room, body: []const u8) !void {
        const transfer = &room.request.transfer;
        errdefer std.debug.print("{s}: {s}\n", .{ @tagName(transfer.failure), transfer.failureText() });
        try testing.expectEqual(.none, transfer.failure);
        try testing.expectEqualStrings(body, transfer.responseBody());
    }
};

pub fn contains(text: []const u8, part: []const u8) !void {
    if (std.mem.find(u8, text, part) != null) return;
    std.debug.print("'{s}' is not in:\n{s}\n", .{ part, text });
    return error.TestUnexpectedResult;
}

pub fn lacks(text: []const u8, part: []const u8) !void {
    if (std.ascii.findIgnoreCase(text, part) == null) return;
    std.debug.print("'{s}' is in:\n{s}\n", .{ part, text });
    return error.TestUnexpectedResult;
}
