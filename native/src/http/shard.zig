//! One curl_multi: a share of the engine's connections. What a call costs grows with the connections of its multi (libcurl
//! looks through them), so there are many, all on one poller and one thread.

const std = @import("std");
const os = @import("../base/os.zig");
const curl = @import("curl.zig");
const deadlines = @import("deadlines.zig");
const Common = @import("handle.zig").Common;
const Handle = @import("handle.zig").Handle;
const Sockets = @import("sockets.zig").Sockets;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const Shard = struct {
    common: *Common,
    multi: *curl.Multi,
    index: u32,
    /// Connections, in use or idle.
    limit: u32,
    open: u32 = 0,
    /// Transfers that may need a connection of their own.
    load: u32 = 0,
    running: ?*Handle = null,
    /// When libcurl wants to be called for its timers.
    due_ns: u64 = deadlines.never,
    is_due: bool = false,
    next_due: ?*Shard = null,
    /// How often libcurl was called: a transfer added since the last time has not begun.
    acts: u32 = 0,
    /// libcurl gave the multi up.
    is_broken: bool = false,
    /// On the engine's list of shards to look for transfers that are over.
    is_touched: bool = false,
    next_touched: ?*Shard = null,

    pub fn create(common: *Common, index: u32, limit: u32) Allocator.Error!*Shard {
        const shard = try common.gpa.create(Shard);
        errdefer common.gpa.destroy(shard);
        shard.* = .{ .common = common, .multi = undefined, .index = index, .limit = limit };
        shard.multi = try shard.openMulti();
        return shard;
    }

    fn openMulti(shard: *Shard) Allocator.Error!*curl.Multi {
        const table = shard.common.table;
        const multi = table.curl_multi_init() orelse return error.OutOfMemory;
        errdefer _ = table.curl_multi_cleanup(multi);
        // libcurl before 8.17 does not know this one.
        _ = table.curl_multi_setopt(multi, curl.MultiOption.quick_exit, @as(c_long, 1));
        // Both: the first bounds the idle ones, so that none is closed for want of room; the second bounds all of them.
        const set = curl.MultiOption;
        const limit: c_long = @intCast(shard.limit);
        if (table.curl_multi_setopt(multi, set.maxconnects, limit) != curl.ok or
            table.curl_multi_setopt(multi, set.max_total_connections, limit) != curl.ok or
            table.curl_multi_setopt(multi, set.socketfunction, @as(*const curl.SocketFunction, &onSocket)) != curl.ok or
            table.curl_multi_setopt(multi, set.socketdata, shard) != curl.ok or
            table.curl_multi_setopt(multi, set.timerfunction, @as(*const curl.TimerFunction, &onTimer)) != curl.ok or
            table.curl_multi_setopt(multi, set.timerdata, shard) != curl.ok) return error.OutOfMemory;
        return multi;
    }

    /// Closes all connections.
    pub fn destroy(shard: *Shard) void {
        assert(shard.running == null);
        _ = shard.common.table.curl_multi_cleanup(shard.multi);
        shard.common.gpa.destroy(shard);
    }

    /// Instead of a broken multi a new one. Its transfers have been taken out.
    pub fn renew(shard: *Shard) void {
        assert(shard.running == null);
        const fresh = shard.openMulti() catch {
            shard.limit = 0; // no room: nothing comes here any more
            return;
        };
        _ = shard.common.table.curl_multi_cleanup(shard.multi);
        shard.multi = fresh;
        shard.due_ns = deadlines.never;
        shard.is_broken = false;
    }

    pub fn hasRoom(shard: *const Shard) bool {
        return shard.load < shard.limit;
    }

    pub fn add(shard: *Shard, handle: *Handle) Allocator.Error!void {
        if (shard.common.table.curl_multi_add_handle(shard.multi, handle.easy) != curl.ok) return error.OutOfMemory;
        handle.added_at = shard.acts;
        handle.next = shard.running;
        handle.previous = null;
        if (shard.running) |first| first.previous = handle;
        shard.running = handle;
    }

    /// A transfer that is not over is cut off, and an HTTP/1 connection with it.
    pub fn remove(shard: *Shard, handle: *Handle) void {
        if (handle.previous) |previous| previous.next = handle.next else shard.running = handle.next;
        if (handle.next) |next| next.previous = handle.previous;
        handle.next = null;
        handle.previous = null;
        _ = shard.common.table.curl_multi_remove_handle(shard.multi, handle.easy);
    }

    pub fn socketReady(shard: *Shard, ready: Sockets.Ready) void {
        var mask: c_int = 0;
        if (ready.readable) mask |= curl.select_in;
        if (ready.writable) mask |= curl.select_out;
        shard.act(ready.socket, mask);
    }

    /// The timer libcurl asked for has run out.
    pub fn timeOver(shard: *Shard) void {
        shard.due_ns = deadlines.never; // libcurl says anew if there is more
        shard.act(curl.socket_none, 0);
    }

    fn act(shard: *Shard, socket: os.Socket, mask: c_int) void {
        var running: c_int = 0;
        shard.acts +%= 1;
        if (shard.common.table.curl_multi_socket_action(shard.multi, socket, mask, &running) != curl.ok) shard.is_broken = true;
    }

    pub const Over = struct { handle: *Handle, code: c_int };

    /// The next transfer that is over. It is still in the multi.
    pub fn nextOver(shard: *Shard) ?Over {
        const table = shard.common.table;
        var left: c_int = 0;
        while (table.curl_multi_info_read(shard.multi, &left)) |message| {
            if (message.kind != curl.message_done) continue;
            return .{ .handle = @ptrCast(@alignCast(table.private(message.easy).?)), .code = message.data.code };
        }
        return null;
    }

    // --------------------------------------------------------------------------- called by libcurl, from inside

    fn onSocket(_: *curl.Easy, socket: os.Socket, what: c_int, context: *anyopaque, _: ?*anyopaque) callconv(.c) c_int {
        const shard: *Shard = @ptrCast(@alignCast(context));
        const sockets = &shard.common.sockets;
        if (what == curl.poll_remove) {
            sockets.rest(socket);
            return curl.ok;
        }
        sockets.want(socket, .{ .readable = what & curl.poll_in != 0, .writable = what & curl.poll_out != 0 }, shard) catch {
            shard.is_broken = true;
            return -1;
        };
        return curl.ok;
    }

    fn onTimer(_: *curl.Multi, timeout_ms: c_long, context: *anyopaque) callconv(.c) c_int {
        const shard: *Shard = @ptrCast(@alignCast(context));
        const common = shard.common;
        if (timeout_ms < 0) {
            shard.due_ns = deadlines.never;
            return curl.ok;
        }
        shard.due_ns = common.now_ns + @as(u64, @intCast(timeout_ms)) * std.time.ns_per_ms;
        if (timeout_ms == 0 and !shard.is_due) {
            shard.is_due = true;
            shard.next_due = common.due;
            common.due = shard;
        }
        return curl.ok;
    }
};
