//! A small HTTP server on loopback for the engine's tests: a thread for each connection, replies chosen by the path.
//! It counts what it sees, and tests wait for those counts instead of sleeping.

const std = @import("std");
const sync = @import("../base/sync.zig");

const c = std.c;
const Allocator = std.mem.Allocator;

/// libc's, of which ThreadSanitizer knows: large pieces of the test allocator are the kernel's, and what one thread has given back another
/// may get at the same address.
const buffers = std.heap.c_allocator;

/// A number that grows and can be waited for.
pub const Count = struct {
    word: sync.Atomic(u32) = .init(0),

    pub fn add(count: *Count) void {
        _ = count.word.fetchAdd(1, .acq_rel); // pairs with the load in waitFor
        sync.futex.wake(&count.word, std.math.maxInt(u32));
    }

    pub fn get(count: *const Count) u32 {
        return count.word.load(.acquire); // pairs with add
    }

    pub fn waitFor(count: *const Count, wanted: u32) void {
        while (true) {
            const seen = count.get();
            if (seen >= wanted) return;
            sync.futex.wait(&count.word, seen, null) catch {};
        }
    }
};

pub const Server = struct {
    gpa: Allocator,
    listener: c_int,
    port: u16,
    acceptor: sync.Thread,
    mutex: sync.Mutex = .init,
    connections: std.ArrayList(*Connection) = .empty,

    accepted: Count = .{},
    requests: Count = .{},
    /// Connections that the client closed.
    closed: Count = .{},
    /// "/gate" answers once so many requests have arrived.
    gate: sync.Atomic(u32) = .init(0),

    const Connection = struct {
        server: *Server,
        socket: c_int,
        thread: sync.Thread,
        buffer: std.ArrayList(u8) = .empty,
    };

    pub fn start(gpa: Allocator) !*Server {
        const server = try gpa.create(Server);
        errdefer gpa.destroy(server);
        const listener = try listen(1024);
        server.* = .{ .gpa = gpa, .listener = listener.socket, .port = listener.port, .acceptor = undefined };
        server.acceptor = try sync.Thread.spawn(.{ .name = "test" }, accept, .{server});
        return server;
    }

    pub fn stop(server: *Server) void {
        _ = c.shutdown(server.listener, 2);
        server.acceptor.join();
        _ = c.close(server.listener);
        for (server.connections.items) |connection| {
            _ = c.shutdown(connection.socket, 2);
            connection.thread.join();
            _ = c.close(connection.socket);
            connection.buffer.deinit(buffers);
            server.gpa.destroy(connection);
        }
        server.connections.deinit(server.gpa);
        server.gpa.destroy(server);
    }

    pub fn url(server: *const Server, gpa: Allocator, path: []const u8) ![:0]u8 {
        const text = try gpa.print("http://127.0.0.1:{d}{s}", .{ server.port, path });
        defer gpa.free(text);
        return gpa.dupeSentinel(u8, text, 0);
    }

    fn accept(server: *Server) void {
        while (true) {
            const socket = c.accept(server.listener, null, null);
            if (socket < 0) return;
            const connection = server.gpa.create(Connection) catch unreachable;
            connection.* = .{ .server = server, .socket = socket, .thread = undefined };
            server.connections.append(server.gpa, connection) catch unreachable;
            server.accepted.add();
            connection.thread = sync.Thread.spawn(.{ .name = "test" }, serve, .{connection}) catch unreachable;
        }
    }

    fn serve(connection: *Connection) void {
        const server = connection.server;
        while (readRequest(connection)) |request| {
            server.requests.add();
            if (!answer(connection, request)) {
                _ = c.shutdown(connection.socket, 2);
                return;
            }
            connection.buffer.replaceRange(buffers, 0, request.len, "") catch unreachable;
        }
        server.closed.add();
    }

    /// A whole request, head and body; null when the client has gone.
    fn readRequest(connection: *Connection) ?[]const u8 {
        while (true) {
            const have = connection.buffer.items;
            if (std.mem.find(u8, have, "\r\n\r\n")) |end| {
                const key = "Content-Length: ";
                var length: usize = 0;
                if (std.mem.find(u8, have[0..end], key)) |at| {
                    const rest = have[at + key.len .. end];
                    length = std.fmt.parseInt(usize, rest[0 .. std.mem.findScalar(u8, rest, '\r') orelse rest.len], 10) catch unreachable;
                }
                if (have.len >= end + 4 + length) return have[0 .. end + 4 + length];
            }
            var bytes: [16 * 1024]u8 = undefined;
            const count = c.recv(connection.socket, &bytes, bytes.len, 0);
            if (count <= 0) return null;
            connection.buffer.appendSlice(buffers, bytes[0..@intCast(count)]) catch unreachable;
        }
    }

    /// False: the server closes the connection.
    fn answer(connection: *Connection, request: []const u8) bool {
        const server = connection.server;
        const socket = connection.socket;
        var words = std.mem.tokenizeScalar(u8, request, ' ');
        const method = words.next().?;
        const path = words.next().?;
        const is = std.mem.eql;
        if (is(u8, path, "/echo")) {
            var head: [128]u8 = undefined;
            send(socket, std.fmt.bufPrint(&head, "HTTP/1.1 200 OK\r\nContent-Length: {d}\r\n\r\n", .{request.len}) catch unreachable);
            if (!is(u8, method, "HEAD")) send(socket, request);
        } else if (is(u8, path, "/never")) {
            _ = readMore(connection);
        } else if (is(u8, path, "/half")) { // a part of a reply, and then silence
            send(socket, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.");
            _ = readMore(connection);
        } else if (is(u8, path, "/early")) {
            send(socket, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.");
            return false;
        } else if (is(u8, path, "/nothing")) {
            return false;
        } else if (is(u8, path, "/garbage")) {
            send(socket, "SSH-2.0-OpenSSH_9.2\r\n\r\n");
            return false;
        } else if (is(u8, path, "/split")) {
            for ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbit \r\n6\r\nby bit\r\n0\r\n\r\n") |*byte| send(socket, byte[0..1]);
        } else if (is(u8, path, "/gzip")) {
            send(socket, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 25\r\n\r\n" ++
                "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00\x00\x00");
        } else if (is(u8, path, "/big")) { // 100,000 bytes of unannounced length
            send(socket, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            const block: [1000]u8 = @splat('x');
            for (0..100) |_| send(socket, &block);
            return false;
        } else if (is(u8, path, "/limited")) {
            send(socket, "HTTP/1.1 429 Slow Down\r\nRetry-After: 3\r\nX-Request-Id: req_42\r\nContent-Length: 4\r\n\r\nwait");
        } else if (is(u8, path, "/close")) { // a whole reply, and then the server closes
            send(socket, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
            return false;
        } else {
            if (is(u8, path, "/gate")) server.requests.waitFor(server.gate.load(.acquire)); // pairs with the test's store
            send(socket, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        }
        return true;
    }

    fn readMore(connection: *Connection) bool {
        var byte: [1]u8 = undefined;
        return c.recv(connection.socket, &byte, 1, 0) > 0;
    }

    fn send(socket: c_int, bytes: []const u8) void {
        const no_signal = 0x4000;
        var left = bytes;
        while (left.len > 0) {
            const count = c.send(socket, left.ptr, left.len, no_signal);
            if (count <= 0) return;
            left = left[@intCast(count)..];
        }
    }
};

pub const Listener = struct { socket: c_int, port: u16 };

pub fn listen(backlog: c_uint) !Listener {
    const socket = c.socket(c.AF.INET, c.SOCK.STREAM | c.SOCK.CLOEXEC, 0);
    if (socket < 0) return error.NoSocket;
    errdefer _ = c.close(socket);
    var address: c.sockaddr.in = .{ .port = 0, .addr = std.mem.nativeToBig(u32, 0x7f000001) };
    var length: c.socklen_t = @sizeOf(c.sockaddr.in);
    if (c.bind(socket, @ptrCast(&address), length) != 0) return error.NoPort;
    if (c.listen(socket, backlog) != 0) return error.NoPort;
    if (c.getsockname(socket, @ptrCast(&address), &length) != 0) return error.NoPort;
    return .{ .socket = socket, .port = std.mem.bigToNative(u16, address.port) };
}

/// A port that takes no connection: its queue is full. Connecting to it takes for ever.
pub const Deaf = struct {
    listener: Listener,
    fillers: [8]c_int,

    pub fn start() !Deaf {
        var deaf: Deaf = .{ .listener = try listen(0), .fillers = undefined };
        const address: c.sockaddr.in = .{ .port = std.mem.nativeToBig(u16, deaf.listener.port), .addr = std.mem.nativeToBig(u32, 0x7f000001) };
        for (&deaf.fillers) |*filler| {
            filler.* = c.socket(c.AF.INET, c.SOCK.STREAM | c.SOCK.CLOEXEC | c.SOCK.NONBLOCK, 0);
            _ = c.connect(filler.*, @ptrCast(&address), @sizeOf(c.sockaddr.in));
        }
        return deaf;
    }

    pub fn stop(deaf: *Deaf) void {
        for (deaf.fillers) |filler| _ = c.close(filler);
        _ = c.close(deaf.listener.socket);
    }
};
