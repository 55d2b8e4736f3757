//! One libcurl easy handle with what belongs to it, used for one transfer after the other. What is the same for every transfer
//! is set once; `prepare` changes only what differs from the transfer before. One thread, the engine's.

const std = @import("std");
const os = @import("../base/os.zig");
const clock_file = @import("../base/clock.zig");
const sync = @import("../base/sync.zig");
const guard = @import("guard.zig");
const curl = @import("curl.zig");
const transfer_file = @import("transfer.zig");
const origins_file = @import("origins.zig");
const Headers = @import("headers.zig").Headers;
const Shard = @import("shard.zig").Shard;
const Sockets = @import("sockets.zig").Sockets;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Lane = origins_file.Lane;
const Origin = origins_file.Origin;
const Option = curl.Option;
const Route = @import("../base/route.zig").Route;
const Transfer = transfer_file.Transfer;

/// What the handles and shards of one engine share.
pub const Common = struct {
    gpa: Allocator,
    clock: *const clock_file.Clock,
    table: *const curl.Table,
    sockets: Sockets,
    /// Addresses and TLS sessions, for all shards. Without locks: there is one thread.
    share: ?*curl.Share,
    ca_file: ?[:0]const u8,
    ca_path: ?[:0]const u8,
    /// As the environment had them when the runtime started: libcurl is not to look there itself, while other threads may
    /// change it. Empty: none.
    http_proxy: [:0]const u8,
    https_proxy: [:0]const u8,
    no_proxy: [:0]const u8,
    connections_open: *sync.Atomic(u64),
    /// The monotonic time at which this turn of the loop began.
    now_ns: u64,
    /// Transfers in all shards' hands.
    running: u32 = 0,
    /// Of these, those that are taken as they come.
    streams: u32 = 0,
    /// Shards whose timer is due at once.
    due: ?*Shard = null,
    /// Origins whose address has become known.
    known: ?*Origin = null,
};

/// A null pointer would mean that the body is to be read from somewhere.
const empty: [:0]const u8 = "";

/// Each transfer has a buffer of its own for what it reads at a time. A few read large bodies quickly; thousands wait most of the
/// time, for replies of some kilobytes, and their buffers are half of the memory they take: with 16 kB each 10,000 calls in flight
/// take 260 MB, with 2 kB 193, and no more CPU. A handle keeps the size it was made with: libcurl 7.88 writes behind the buffer
/// of one whose size was changed after an HTTP/2 transfer.
pub const Size = enum {
    large,
    small,

    /// For one more transfer where so many are running.
    pub fn among(running: u32) Size {
        return if (running < 64) .large else .small;
    }

    fn bytes(size: Size) c_long {
        return switch (size) {
            .large => 64 << 10,
            .small => 2 << 10,
        };
    }
};

/// At most so much of a body libcurl sends together with the head.
const small_body_bytes = 64 << 10;

const Verb = enum { get, head, post };

pub const Handle = struct {
    common: *Common,
    easy: *curl.Easy,
    /// Of the shard's running handles; `next` also links free ones.
    next: ?*Handle = null,
    previous: ?*Handle = null,
    transfer: *Transfer = undefined,
    lane: *Lane = undefined,
    /// Counts against the shard's connections (with HTTP/2 it may share one).
    counted: bool = false,
    /// The lane had an idle connection when the transfer began.
    expects_reuse: bool = false,
    /// Sockets made where a connection should have been used again: that one had died, and libcurl tried anew. Some
    /// libcurls (7.88 is one) count these tries over the whole life of a handle and fail the transfer with the sixth.
    retries: u8 = 0,
    /// Sockets this transfer made: mostly none or one.
    opened: std.ArrayList(Opened) = .empty,
    headers: Headers = .{},
    /// The shard's `acts` then.
    added_at: u32 = 0,
    /// Bytes moved when somebody last looked.
    moved: u64 = 0,

    size: Size,

    /// How the easy handle is set.
    verb: Verb = .get,
    custom: bool = false,
    verify_tls: bool = true,
    tls: ?bool = null,
    routed: bool = false,
    is_raw: bool = false,
    has_target: bool = false,
    /// Its trust cannot be set back, see `trust`.
    is_spoiled: bool = false,
    /// An address was no public one, and the transfer wanted that.
    is_refused: bool = false,
    closing_lane: ?*Lane = null,

    method_text: [transfer_file.method_bytes_max + 1]u8 = undefined,
    error_text: [256]u8 = undefined,

    const Opened = struct { socket: os.Socket, generation: u32 };

    pub fn create(common: *Common, size: Size) Allocator.Error!*Handle {
        const handle = try common.gpa.create(Handle);
        errdefer common.gpa.destroy(handle);
        handle.* = .{ .common = common, .size = size, .easy = common.table.curl_easy_init() orelse return error.OutOfMemory };
        errdefer common.table.curl_easy_cleanup(handle.easy);
        if (!handle.setConstants()) return error.OutOfMemory;
        return handle;
    }

    pub fn destroy(handle: *Handle) void {
        const gpa = handle.common.gpa;
        handle.common.table.curl_easy_cleanup(handle.easy);
        handle.opened.deinit(gpa);
        handle.headers.deinit(gpa);
        gpa.destroy(handle);
    }

    fn setConstants(handle: *Handle) bool {
        const common = handle.common;
        const table = common.table;
        const easy = handle.easy;
        // libcurl before 7.87 does not know this one, and then waits for a lookup that was cancelled.
        _ = table.setNumber(easy, Option.quick_exit, 1);
        handle.trust(common.ca_file, common.ca_path);
        if (common.share) |share| _ = table.setPointer(easy, Option.share, share);
        return table.setNumber(easy, Option.nosignal, 1) and
            table.setNumber(easy, Option.buffersize, handle.size.bytes()) and
            table.setNumber(easy, Option.tcp_nodelay, 1) and
            table.setNumber(easy, Option.tcp_keepalive, 1) and
            table.setNumber(easy, Option.pipewait, 1) and
            table.setNumber(easy, Option.suppress_connect_headers, 1) and
            table.setNumber(easy, Option.protocols, curl.protocols_http_https) and
            table.setNumber(easy, Option.sslversion, curl.tls_1_2) and
            table.setText(easy, Option.noproxy, common.no_proxy.ptr) and
            table.setPointer(easy, Option.opensocketdata, handle) and
            table.setText(easy, Option.accept_encoding, "") and
            table.setText(easy, Option.useragent, "graphbit") and
            table.setPointer(easy, Option.errorbuffer, &handle.error_text) and
            table.setPointer(easy, Option.private, handle) and
            table.setPointer(easy, Option.writefunction, @ptrCast(&onBody)) and
            table.setPointer(easy, Option.writedata, handle) and
            table.setPointer(easy, Option.headerfunction, @ptrCast(&onHead)) and
            table.setPointer(easy, Option.headerdata, handle) and
            // Without a way to seek libcurl does not send a body a second time.
            table.setPointer(easy, Option.readfunction, @ptrCast(&onRead)) and
            table.setPointer(easy, Option.readdata, handle) and
            table.setPointer(easy, Option.sockoptfunction, @ptrCast(&onOpen)) and
            table.setPointer(easy, Option.sockoptdata, handle) and
            table.setPointer(easy, Option.closesocketfunction, @ptrCast(&onClose));
    }

    /// Where neither is given libcurl knows a place of its own, which it does not find again once it was told another.
    /// Not every libcurl has every kind of TLS store.
    fn trust(handle: *Handle, ca_file: ?[:0]const u8, ca_path: ?[:0]const u8) void {
        if (ca_file == null and ca_path == null) return;
        const table = handle.common.table;
        const easy = handle.easy;
        for ([_]c_int{ Option.capath, Option.proxy_capath }) |option| _ = table.setText(easy, option, textOf(ca_path));
        for ([_]c_int{ Option.cainfo, Option.proxy_cainfo }) |option| _ = table.setText(easy, option, textOf(ca_file));
    }

    /// Null: the runtime's way again.
    fn setRoute(handle: *Handle, route: ?*const Route, tls: bool) bool {
        const common = handle.common;
        const table = common.table;
        const easy = handle.easy;
        const usual: Route = .{};
        const it = route orelse &usual;
        const proxy = it.texts.proxy orelse if (tls) common.https_proxy else common.http_proxy;
        if (!table.setText(easy, Option.proxy, proxy.ptr)) return false;
        if (route == null and !handle.routed) return true;
        handle.routed = route != null;
        if (it.trusts()) handle.trust(it.texts.ca_file, it.texts.ca_path) else handle.trust(common.ca_file, common.ca_path);
        handle.is_spoiled = it.trusts() and common.ca_file == null and common.ca_path == null;
        const guarded = it.public_only;
        // A connection that others made may lead anywhere, so one is made, looked at, and not left to others.
        return table.setNumber(easy, Option.fresh_connect, @intFromBool(guarded)) and
            table.setNumber(easy, Option.forbid_reuse, @intFromBool(guarded)) and
            table.setPointer(easy, Option.opensocketfunction, if (guarded) @ptrCast(&onSocket) else null) and
            table.setText(easy, Option.noproxy, (it.texts.no_proxy orelse common.no_proxy).ptr) and
            table.setText(easy, Option.sslcert, textOf(it.texts.client_cert)) and
            table.setText(easy, Option.sslkey, textOf(it.texts.client_key)) and
            table.setText(easy, Option.keypasswd, textOf(it.texts.client_key_password));
    }

    fn textOf(text: ?[:0]const u8) ?[*:0]const u8 {
        return if (text) |it| it.ptr else null;
    }

    /// Ready to be added to the lane's shard.
    pub fn prepare(handle: *Handle, transfer: *Transfer, lane: *Lane) Allocator.Error!void {
        const table = handle.common.table;
        const easy = handle.easy;
        handle.transfer = transfer;
        handle.lane = lane;
        handle.opened.clearRetainingCapacity();
        handle.expects_reuse = lane.idle() > 0 or lane.origin.home != null;
        handle.moved = 0;
        handle.is_refused = false;
        handle.error_text[0] = 0;
        var fine = table.setText(easy, Option.url, transfer.url.ptr);
        if (handle.closing_lane != lane) {
            fine = fine and table.setPointer(easy, Option.closesocketdata, lane);
            handle.closing_lane = lane;
        }
        // Plain HTTP has no negotiation: with HTTP/2 allowed, transfers would wait for the first reply to learn what it speaks.
        if (handle.tls != lane.origin.tls or handle.routed or transfer.route != null) {
            fine = fine and handle.setRoute(transfer.route, lane.origin.tls);
        }
        if (handle.tls != lane.origin.tls) {
            fine = fine and table.setNumber(easy, Option.http_version, if (lane.origin.tls) curl.http_2_tls else curl.http_1_1);
            handle.tls = lane.origin.tls;
        }
        if (handle.verify_tls != transfer.verify_tls) {
            fine = fine and table.setNumber(easy, Option.ssl_verifypeer, @intFromBool(transfer.verify_tls)) and
                table.setNumber(easy, Option.ssl_verifyhost, if (transfer.verify_tls) 2 else 0);
            handle.verify_tls = transfer.verify_tls;
        }
        if (handle.is_raw != transfer.is_raw) {
            fine = fine and table.setNumber(easy, Option.http_content_decoding, @intFromBool(!transfer.is_raw)) and
                table.setNumber(easy, Option.path_as_is, @intFromBool(transfer.is_raw));
            handle.is_raw = transfer.is_raw;
        }
        if (handle.has_target or transfer.request_target.len > 0) {
            handle.has_target = transfer.request_target.len > 0;
            fine = fine and table.setText(easy, Option.request_target, if (handle.has_target) transfer.request_target.ptr else null);
        }
        fine = fine and handle.setMethod(transfer);
        const first_line = try handle.headers.write(handle.common.gpa, transfer);
        fine = fine and table.setPointer(easy, Option.httpheader, first_line);
        if (!fine) return error.OutOfMemory;
    }

    fn setMethod(handle: *Handle, transfer: *const Transfer) bool {
        const table = handle.common.table;
        const easy = handle.easy;
        const is = std.mem.eql;
        const method = transfer.method;
        // Methods that are about a body have one, if an empty one: the server must be told its length.
        const with_body = transfer.body != null or transfer.on_upload != null or is(u8, method, "POST") or is(u8, method, "PUT") or is(u8, method, "PATCH");
        const verb: Verb = if (with_body) .post else if (is(u8, method, "HEAD")) .head else .get;
        const plain = switch (verb) {
            .get => "GET",
            .head => "HEAD",
            .post => "POST",
        };
        var fine = true;
        if (handle.verb != verb) {
            fine = switch (verb) {
                .get => table.setNumber(easy, Option.httpget, 1),
                .head => table.setNumber(easy, Option.nobody, 1),
                .post => (handle.verb != .head or table.setNumber(easy, Option.nobody, 0)) and table.setNumber(easy, Option.post, 1),
            };
            handle.verb = verb;
        }
        if (!is(u8, method, plain)) {
            @memcpy(handle.method_text[0..method.len], method);
            handle.method_text[method.len] = 0;
            fine = fine and table.setText(easy, Option.customrequest, handle.method_text[0..method.len :0].ptr);
            handle.custom = true;
        } else if (handle.custom) {
            fine = fine and table.setText(easy, Option.customrequest, null);
            handle.custom = false;
        }
        if (verb != .post) return fine;
        if (transfer.on_upload != null) {
            const size: i64 = if (transfer.upload_bytes) |bytes| @intCast(bytes) else -1;
            return fine and table.setSize(easy, Option.postfieldsize_large, size) and table.setPointer(easy, Option.postfields, null);
        }
        const body: []const u8 = transfer.body orelse "";
        // The size first: libcurl would measure a text of unknown size.
        return fine and table.setSize(easy, Option.postfieldsize_large, @intCast(body.len)) and
            table.setPointer(easy, Option.postfields, @ptrCast(if (body.len > 0) body.ptr else empty.ptr));
    }

    // ------------------------------------------------------------------------------------------ how it stands

    /// Before that, what libcurl says of a handle is about the transfer before.
    fn hasBegun(handle: *const Handle) bool {
        return handle.lane.shard.acts != handle.added_at;
    }

    /// When the connection was there; null: not yet.
    pub fn connectedNs(handle: *const Handle) ?u64 {
        if (!handle.hasBegun()) return null;
        const us = handle.common.table.size(handle.easy, curl.Info.pretransfer_time);
        return if (us == 0) null else handle.transfer.began_ns + us * std.time.ns_per_us;
    }

    /// Bytes that were sent, or that came and made neither a line nor a piece of a body, count as a sign of life when somebody
    /// looks.
    pub fn noteProgress(handle: *Handle) void {
        if (!handle.hasBegun()) return;
        const table = handle.common.table;
        const moved = table.size(handle.easy, curl.Info.size_upload) + table.size(handle.easy, curl.Info.size_download);
        if (moved != handle.moved) handle.transfer.active_ns = handle.common.now_ns;
        handle.moved = moved;
        handle.noteSending();
    }

    /// A small body goes with the head, and older libcurls do not count it apart.
    fn noteSending(handle: *Handle) void {
        const transfer = handle.transfer;
        if (!transfer.is_raw) return;
        transfer.is_sending = !transfer.is_heard and if (transfer.on_upload != null)
            !transfer.is_uploaded
        else if (transfer.body) |body|
            body.len > small_body_bytes and handle.common.table.size(handle.easy, curl.Info.size_upload) < body.len
        else
            false;
    }

    pub fn notePhase(handle: *Handle) void {
        const transfer = handle.transfer;
        const is_connected = handle.connectedNs() != null;
        if (is_connected) handle.noteSending();
        transfer.phase = if (!is_connected) .connecting else if (transfer.is_sending) .sending else .receiving;
    }

    /// Of the reply's body, as they came.
    pub fn wireBytes(handle: *const Handle) u64 {
        return handle.common.table.size(handle.easy, curl.Info.size_download);
    }

    pub fn countBytes(handle: *const Handle) void {
        if (!handle.hasBegun()) return;
        const table = handle.common.table;
        const transfer = handle.transfer;
        // Older libcurls count a body under 64 kB with the head, a larger one apart; no head is larger than such a body.
        const request = table.number(handle.easy, curl.Info.request_size);
        const upload = table.size(handle.easy, curl.Info.size_upload);
        transfer.bytes_sent = if (request > upload) request else request + upload;
        transfer.bytes_received = table.number(handle.easy, curl.Info.header_size) + table.size(handle.easy, curl.Info.size_download);
    }

    /// Of its connection, on this side; 0: it had none.
    pub fn localPort(handle: *const Handle) u16 {
        return std.math.cast(u16, handle.common.table.number(handle.easy, curl.Info.local_port)) orelse 0;
    }

    pub fn usedHttp2(handle: *const Handle) bool {
        return handle.common.table.number(handle.easy, curl.Info.http_version) == curl.http_2;
    }

    /// What libcurl says went wrong.
    pub fn errorText(handle: *const Handle, code: c_int) []const u8 {
        const text = std.mem.sliceTo(&handle.error_text, 0);
        return if (text.len > 0) text else std.mem.span(handle.common.table.curl_easy_strerror(code));
    }

    // --------------------------------------------------------------------------- called by libcurl, from inside

    fn onHead(bytes: [*]const u8, _: usize, count: usize, context: *anyopaque) callconv(.c) usize {
        const handle: *Handle = @ptrCast(@alignCast(context));
        const transfer = handle.transfer;
        transfer.active_ns = handle.common.now_ns;
        if (transfer.first_byte_ns == 0) transfer.first_byte_ns = handle.common.clock.now();
        return if (transfer.takeHead(handle.common.gpa, bytes[0..count])) count else 0;
    }

    fn onBody(bytes: [*]const u8, _: usize, count: usize, context: *anyopaque) callconv(.c) usize {
        const handle: *Handle = @ptrCast(@alignCast(context));
        const transfer = handle.transfer;
        transfer.active_ns = handle.common.now_ns;
        // Without an encoding both are the same, but for what libcurl has read ahead.
        const wire = if (transfer.is_encoded) handle.wireBytes() else transfer.body_bytes + count;
        return switch (transfer.takeBody(handle.common.gpa, bytes[0..count], wire)) {
            .taken => count,
            .full => full: {
                handle.lane.paused += 1;
                break :full curl.write_pause;
            },
            .failed => curl.write_error,
        };
    }

    /// Its transfer was paused: its owner has room again. Its body may come from inside of this, and be refused there: see
    /// Engine.proceed.
    pub fn proceed(handle: *Handle) void {
        const transfer = handle.transfer;
        handle.endPause();
        transfer.active_ns = handle.common.now_ns;
        const left = if (transfer.is_starved) curl.pause_send else curl.pause_none;
        _ = handle.common.table.curl_easy_pause(handle.easy, left); // what failed stands in the transfer
    }

    /// Its owner had nothing to send, and has now.
    pub fn sendOn(handle: *Handle) void {
        const transfer = handle.transfer;
        transfer.is_starved = false;
        transfer.active_ns = handle.common.now_ns;
        handle.noteSending();
        const left = if (transfer.is_paused) curl.pause_receive else curl.pause_none;
        _ = handle.common.table.curl_easy_pause(handle.easy, left);
    }

    fn onRead(into: [*]u8, size: usize, count: usize, context: *anyopaque) callconv(.c) usize {
        const handle: *Handle = @ptrCast(@alignCast(context));
        const transfer = handle.transfer;
        const ask = transfer.on_upload orelse return curl.read_abort;
        transfer.active_ns = handle.common.now_ns;
        const taken = ask(transfer, into[0 .. size * count]) orelse {
            transfer.is_starved = true;
            return curl.read_pause;
        };
        transfer.uploaded += taken;
        transfer.is_uploaded = taken == 0 or transfer.uploaded == transfer.upload_bytes;
        return taken;
    }

    /// The connection of a transfer that is over is not to be used again.
    pub fn cut(handle: *Handle) void {
        const socket = handle.common.table.activeSocket(handle.easy);
        if (socket != curl.socket_none) os.cutSocket(socket, !handle.lane.origin.tls);
    }

    pub fn endPause(handle: *Handle) void {
        if (handle.transfer.is_paused) handle.lane.paused -= 1;
        handle.transfer.is_paused = false;
    }

    /// Set for transfers that must reach a public address.
    fn onSocket(context: *anyopaque, _: c_int, given: *curl.SocketAddress) callconv(.c) os.Socket {
        const handle: *Handle = @ptrCast(@alignCast(context));
        const public = switch (os.peerOf(&given.address)) {
            .v4 => |it| guard.isPublic(.{ .v4 = it }),
            .v6 => |it| guard.isPublic(.{ .v6 = it }),
            .other => false,
        };
        if (!public) {
            handle.is_refused = true;
            return curl.socket_none;
        }
        return os.openSocket(given.family, given.kind, given.protocol) orelse curl.socket_none;
    }

    fn onOpen(context: *anyopaque, socket: os.Socket, _: c_int) callconv(.c) c_int {
        const handle: *Handle = @ptrCast(@alignCast(context));
        const common = handle.common;
        const lane = handle.lane;
        handle.opened.ensureUnusedCapacity(common.gpa, 1) catch return curl.sockopt_error;
        const generation = common.sockets.opened(socket, lane.shard, lane, common.now_ns) catch return curl.sockopt_error;
        handle.opened.appendAssumeCapacity(.{ .socket = socket, .generation = generation });
        lane.open += 1;
        lane.shard.open += 1;
        _ = common.connections_open.fetchAdd(1, .monotonic);
        const origin = lane.origin;
        origin.becomeKnown(common.now_ns);
        if (!origin.is_known_listed and origin.held.first != null) {
            origin.is_known_listed = true;
            origin.next_known = common.known;
            common.known = origin;
        }
        return curl.ok;
    }

    /// The lane is the one of the handle that opened the socket.
    fn onClose(context: *anyopaque, socket: os.Socket) callconv(.c) c_int {
        noteClosed(@ptrCast(@alignCast(context)), socket);
        return os.closeSocket(socket);
    }

    fn noteClosed(lane: *Lane, socket: os.Socket) void {
        if (!lane.shard.common.sockets.closed(socket)) return;
        lane.open -= 1;
        lane.shard.open -= 1;
        _ = lane.shard.common.connections_open.fetchSub(1, .monotonic);
    }

    /// Of the sockets this transfer made, the one that became a connection and outlived it. Before it leaves its multi.
    pub fn survivor(handle: *const Handle) os.Socket {
        return if (handle.opened.items.len == 0) curl.socket_none else handle.common.table.activeSocket(handle.easy);
    }

    /// See `retries`. Asked once after each transfer.
    pub fn isWornOut(handle: *Handle) bool {
        if (handle.expects_reuse) handle.retries +|= @intCast(@min(handle.opened.items.len, 255));
        if (handle.lane.origin.home != null) handle.retries +|= 1; // tries over connections of others are not seen
        return handle.is_spoiled or handle.retries >= 3;
    }

    /// Some libcurls (7.88 is one) close a socket that never became a connection without telling: one whose transfer was
    /// stopped while it connected, or that lost against another address. After it left its multi.
    pub fn buryUntold(handle: *Handle, alive: os.Socket) void {
        for (handle.opened.items) |it| {
            if (it.socket != alive and handle.common.sockets.isResting(it.socket, it.generation)) noteClosed(handle.lane, it.socket);
        }
    }
};
