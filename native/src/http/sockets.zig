//! Which sockets are polled, and for what. One thread.
//!
//! libcurl says for each transfer what it wants to know of its socket: readable when the request is sent, nothing when the
//! reply is there, readable again with the next request. Obeyed to the letter that is two system calls a request. So a
//! connection that wants nothing stays polled for reading: mostly nothing comes before the next request, which then finds
//! everything in place. If something does come (the server closes the connection), only then is it taken out.
//!
//! That works for sockets whose closing we are told of, which are the connections. Others (a resolver's wake-up pipe) are
//! taken out as soon as libcurl says so; their number may come back as another socket.

const std = @import("std");
const os = @import("../base/os.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Interest = os.Interest;

pub const Sockets = struct {
    gpa: Allocator,
    poller: os.Poller,
    entries: std.AutoHashMapUnmanaged(os.Socket, Entry) = .empty,
    generation: u32 = 0,

    const Entry = struct {
        owner: *anyopaque,
        /// Of a connection: whose it is, see `Meaning.stray` and `cutSilent`.
        lane: ?*anyopaque = null,
        /// When something last came.
        heard_ns: u64 = 0,
        wanted: Interest = .{},
        polled: Interest = .{},
        in_poller: bool = false,
        connection: bool,
        /// An event that was fetched before its socket was closed must not reach the next socket of that number.
        generation: u32,
    };

    pub fn init(gpa: Allocator) error{SystemResources}!Sockets {
        return .{ .gpa = gpa, .poller = try .init(gpa) };
    }

    pub fn deinit(sockets: *Sockets) void {
        sockets.entries.deinit(sockets.gpa);
        sockets.poller.deinit();
    }

    /// A connection's socket was made. `closed` will follow. Returns what tells it from others of its number.
    pub fn opened(sockets: *Sockets, socket: os.Socket, owner: *anyopaque, lane: *anyopaque, now_ns: u64) Allocator.Error!u32 {
        sockets.generation +%= 1;
        try sockets.entries.put(sockets.gpa, socket, .{ .owner = owner, .lane = lane, .heard_ns = now_ns, .connection = true, .generation = sockets.generation });
        return sockets.generation;
    }

    /// Before the socket is closed. False: it was not known as a connection.
    pub fn closed(sockets: *Sockets, socket: os.Socket) bool {
        const removed = sockets.entries.fetchRemove(socket) orelse return false;
        if (removed.value.in_poller) sockets.poller.remove(socket);
        return removed.value.connection;
    }

    /// Is it there, and does nobody want to know anything of it?
    pub fn isResting(sockets: *const Sockets, socket: os.Socket, generation: u32) bool {
        const entry = sockets.entries.get(socket) orelse return false;
        return entry.generation == generation and !entry.wanted.readable and !entry.wanted.writable;
    }

    pub fn want(sockets: *Sockets, socket: os.Socket, wanted: Interest, owner: *anyopaque) error{ OutOfMemory, SystemResources }!void {
        const found = try sockets.entries.getOrPut(sockets.gpa, socket);
        const entry = found.value_ptr;
        if (!found.found_existing) {
            sockets.generation +%= 1;
            entry.* = .{ .owner = owner, .connection = false, .generation = sockets.generation };
        }
        entry.owner = owner;
        entry.wanted = wanted;
        const missing = (wanted.readable and !entry.polled.readable) or (wanted.writable and !entry.polled.writable);
        // A socket is nearly always writable: that interest must go at once.
        const too_much = entry.polled.writable and !wanted.writable;
        if (!missing and !too_much) return;
        const polled: Interest = .{ .readable = wanted.readable or entry.polled.readable, .writable = wanted.writable };
        try if (entry.in_poller)
            sockets.poller.set(socket, polled, data(socket, entry.generation))
        else
            sockets.poller.add(socket, polled, data(socket, entry.generation));
        entry.polled = polled;
        entry.in_poller = true;
    }

    /// libcurl is done with the socket for now.
    pub fn rest(sockets: *Sockets, socket: os.Socket) void {
        const entry = sockets.entries.getPtr(socket) orelse return;
        entry.wanted = .{};
        if (!entry.connection) {
            _ = sockets.closed(socket);
            return;
        }
        if (entry.polled.writable) sockets.silence(socket, entry);
    }

    fn silence(sockets: *Sockets, socket: os.Socket, entry: *Entry) void {
        sockets.poller.remove(socket);
        entry.in_poller = false;
        entry.polled = .{};
    }

    /// Connections of `lane` on which nothing has come since then, and nobody closed them: cut, so that libcurl finds them dead.
    pub fn cutSilent(sockets: *Sockets, lane: *anyopaque, since_ns: u64) void {
        var all = sockets.entries.iterator();
        while (all.next()) |it| {
            if (it.value_ptr.lane == lane and it.value_ptr.heard_ns < since_ns) os.cutSocket(it.key_ptr.*, false);
        }
    }

    pub const Ready = struct { socket: os.Socket, owner: *anyopaque, readable: bool, writable: bool };
    pub const Meaning = union(enum) {
        /// Nothing any more.
        nothing,
        ready: Ready,
        /// Something came on a connection where nobody had asked for anything.
        stray: struct { socket: os.Socket, lane: *anyopaque },
    };

    /// What an event means.
    pub fn ready(sockets: *Sockets, event: os.Event, now_ns: u64) Meaning {
        const socket = socketOf(event.data);
        const entry = sockets.entries.getPtr(socket) orelse return .nothing;
        if (entry.generation != generationOf(event.data)) return .nothing;
        if (event.readable) entry.heard_ns = now_ns;
        if (!entry.wanted.readable and !entry.wanted.writable) {
            sockets.silence(socket, entry);
            return if (entry.lane) |lane| .{ .stray = .{ .socket = socket, .lane = lane } } else .nothing;
        }
        // A failed socket is both: reading or writing tells libcurl what happened to it.
        return .{ .ready = .{
            .socket = socket,
            .owner = entry.owner,
            .readable = entry.wanted.readable and (event.readable or event.failed),
            .writable = entry.wanted.writable and (event.writable or event.failed),
        } };
    }

    // On every system a socket's number fits in 32 bits.

    fn data(socket: os.Socket, generation: u32) u64 {
        return @as(u64, generation) << 32 | @as(u32, @intCast(socket));
    }

    fn socketOf(bits: u64) os.Socket {
        return @intCast(@as(u32, @truncate(bits)));
    }

    fn generationOf(bits: u64) u32 {
        return @intCast(bits >> 32);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn signalled() !os.Wakeup {
    var wakeup = try os.Wakeup.init();
    wakeup.signal();
    return wakeup;
}

test "a resting connection stays polled until something comes for nobody" {
    var sockets = try Sockets.init(testing.allocator);
    defer sockets.deinit();
    var wakeup = try os.Wakeup.init();
    defer wakeup.deinit();
    var owner: u32 = 0;
    _ = try sockets.opened(wakeup.fd(), &owner, &owner, 0);
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    sockets.rest(wakeup.fd());
    try testing.expect(sockets.entries.get(wakeup.fd()).?.in_poller);
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    wakeup.signal();
    var events: [4]os.Event = undefined;
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
    const ready = sockets.ready(events[0], 1).ready;
    try testing.expect(ready.readable and !ready.writable and ready.socket == wakeup.fd());
    try testing.expectEqual(@as(*anyopaque, &owner), ready.owner);

    sockets.rest(wakeup.fd());
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
    try testing.expectEqual(@as(*anyopaque, &owner), sockets.ready(events[0], 1).stray.lane);
    try testing.expectEqual(0, sockets.poller.wait(&events, 0));
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
}

test "writable is asked for no longer than it is wanted" {
    var sockets = try Sockets.init(testing.allocator);
    defer sockets.deinit();
    var wakeup = try signalled();
    defer wakeup.deinit();
    var owner: u32 = 0;
    var events: [4]os.Event = undefined;
    _ = try sockets.opened(wakeup.fd(), &owner, &owner, 0);
    try sockets.want(wakeup.fd(), .{ .writable = true }, &owner);
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
    try testing.expect(sockets.ready(events[0], 1).ready.writable);
    wakeup.drain();
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    try testing.expectEqual(0, sockets.poller.wait(&events, 0));
    try sockets.want(wakeup.fd(), .{ .readable = true, .writable = true }, &owner);
    sockets.rest(wakeup.fd());
    try testing.expectEqual(0, sockets.poller.wait(&events, 0));
}

test "an event of a socket that was closed meanwhile does not reach the next one of that number" {
    var sockets = try Sockets.init(testing.allocator);
    defer sockets.deinit();
    var wakeup = try signalled();
    defer wakeup.deinit();
    var owner: u32 = 0;
    var events: [4]os.Event = undefined;
    _ = try sockets.opened(wakeup.fd(), &owner, &owner, 0);
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
    try testing.expect(sockets.closed(wakeup.fd()));
    _ = try sockets.opened(wakeup.fd(), &owner, &owner, 0);
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    try testing.expectEqual(.nothing, sockets.ready(events[0], 1));
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
    try testing.expect(sockets.ready(events[0], 1) == .ready);
}

test "a socket that is no connection leaves at once" {
    var sockets = try Sockets.init(testing.allocator);
    defer sockets.deinit();
    var wakeup = try signalled();
    defer wakeup.deinit();
    var owner: u32 = 0;
    var events: [4]os.Event = undefined;
    try sockets.want(wakeup.fd(), .{ .readable = true }, &owner);
    try testing.expectEqual(1, sockets.poller.wait(&events, 0));
    sockets.rest(wakeup.fd());
    try testing.expectEqual(0, sockets.entries.count());
    try testing.expectEqual(0, sockets.poller.wait(&events, 0));
}
