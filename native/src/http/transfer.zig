//! A transfer: one HTTP exchange, what is sent and what came back. Owned by whoever submits it; what is to be sent is
//! borrowed until `on_done`. Between `submit` and `on_done` only the engine's thread touches it.
//!
//! This file decides, without libcurl, socket or thread: what a reply's head says, how much of head and body is taken, and which
//! timeout is due when. What may be sent at all decides target.zig.
//!
//! ## Taking a body as it comes
//!
//! With `on_body` the owner gets the bytes from inside libcurl, and may say that it is full: then the transfer stands still, the
//! same bytes come again after `Engine.proceed`, and the server's window fills up. What came of them the owner tells others from
//! `on_news`, which is called outside of libcurl, once for all that came in one turn of the engine.
//!
//! ## Sending a body as it comes
//!
//! With `on_upload` the owner is asked for the next bytes from inside libcurl. Where it has none yet the transfer sends nothing and
//! no timeout counts, until `Engine.sendOn`. What was sent is gone: such a body cannot be sent again.

const std = @import("std");
const failure_file = @import("../base/failure.zig");
const os = @import("../base/os.zig");
const announced_file = @import("announced.zig");
const head = @import("head.zig");
const deadlines = @import("deadlines.zig");
const Handle = @import("handle.zig").Handle;
const List = @import("origins.zig").List;
const Origin = @import("origins.zig").Origin;
const Route = @import("../base/route.zig").Route;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const ns_per_ms: u64 = std.time.ns_per_ms;

pub const Failure = failure_file.Failure;

/// Of a reply, where the transfer sets no bound of its own.
pub const body_bytes_default: u64 = 64 << 20;
pub const wire_bytes_default: u64 = 64 << 20;
pub const head_bytes_default: u32 = 256 << 10;
/// Room made at once for a body of announced length; beyond that it grows as it comes.
const reserve_bytes_max: u64 = 1 << 20;
pub const request_id_bytes_max = 96;
pub const method_bytes_max = 24;

pub const Transfer = struct {
    // What to send, and how long to wait. 0 ms: as long as it takes.
    method: []const u8 = "GET",
    url: [:0]const u8 = "",
    /// Lines "Name: value".
    headers: []const [:0]const u8 = &.{},
    /// Null: no body, which is not the same as an empty one.
    body: ?[]const u8 = null,
    connect_timeout_ms: u32 = 0,
    /// From when the connection was there to the first byte of the reply.
    first_byte_timeout_ms: u32 = 0,
    /// Between one byte and the next, in either direction, once connected. Not while the owner is full.
    idle_timeout_ms: u32 = 0,
    /// From `submit` on, waiting for a free connection included.
    total_timeout_ms: u32 = 0,
    /// Of the reply's body, decoded; 0: `body_bytes_default`.
    body_bytes_max: u64 = 0,
    /// The same before it is decoded; 0: `wire_bytes_default`.
    wire_bytes_max: u64 = 0,
    /// Of all heads of the reply together; 0: `head_bytes_default`.
    head_bytes_max: u32 = 0,
    verify_tls: bool = true,
    /// What the server announces of its limits is wanted.
    learns: bool = false,
    /// Null: the runtime's way.
    route: ?*const Route = null,
    /// For another HTTP client: no header is added, nothing is decoded, no path tidied up. `idle_timeout_ms` counts once the request
    /// was sent, `write_timeout_ms` until then.
    is_raw: bool = false,
    /// In place of the URL's path; empty: none.
    request_target: [:0]const u8 = "",
    write_timeout_ms: u32 = 0,
    /// While it waits for a connection to be free.
    pool_timeout_ms: u32 = 0,
    /// See the top. 0: the body has ended; null: nothing is there yet.
    on_upload: ?*const fn (*Transfer, []u8) ?usize = null,
    /// How much of it there is; null: not known.
    upload_bytes: ?u64 = null,
    /// Each line of a head, none of a trailer.
    on_head: ?*const fn (*Transfer, []const u8) void = null,
    /// On the engine's thread, once per `submit`. The transfer may be freed or submitted again from there.
    on_done: *const fn (*Transfer) void,
    /// See the top. Null: the body is kept until the transfer is over.
    on_body: ?*const fn (*Transfer, []const u8) Taken = null,
    on_news: ?*const fn (*Transfer) void = null,
    /// Called once if no byte of a reply has come so long after `submit`; not from inside libcurl. It may submit and cancel.
    on_silence: ?*const fn (*Transfer) void = null,
    silence_ns: u64 = 0,

    // What came of it. `failure` tells how it ended; the status, where one arrived, stands beside it.
    failure: Failure = .none,
    status: u16 = 0,
    /// What the server asked for; -1: nothing.
    retry_after_ms: i64 = -1,
    /// x-request-id or request-id, cut to `request_id_bytes_max`.
    request_id: []const u8 = "",
    media: head.Media = .other,
    /// Where a redirect leads, as the server wrote it.
    location: []const u8 = "",
    announced: announced_file.Announced = .{},
    started_ns: u64 = 0,
    first_byte_ns: u64 = 0,
    ended_ns: u64 = 0,
    bytes_sent: u64 = 0,
    bytes_received: u64 = 0,
    /// Of one that libcurl gave up: its connection's port on this side, by which those that shared it know each other; 0: it had none.
    broken_port: u16 = 0,

    body_received: std.ArrayList(u8) = .empty,
    location_text: std.ArrayList(u8) = .empty,
    failure_words: std.ArrayList(u8) = .empty,
    request_id_buffer: [request_id_bytes_max]u8 = undefined,
    /// Retry-After was given in milliseconds, which is more exact than the other header.
    retry_after_exact: bool = false,
    content_length: ?u64 = null,
    /// What comes over the wire is not yet what is in it.
    is_encoded: bool = false,
    /// By gzip alone.
    is_gzip: bool = false,
    head_bytes: u32 = 0,
    /// The empty line behind a head has come.
    head_is_whole: bool = false,
    body_bytes: u64 = 0,

    // The engine's.
    state: State = .outside,
    next: ?*Transfer = null,
    previous: ?*Transfer = null,
    handle: ?*Handle = null,
    origin: ?*Origin = null,
    /// In which it waits: for any connection, for its origin's address, or until its origin has fewer.
    line: ?*List = null,
    deadline: deadlines.Entry = .{},
    submitted_ns: u64 = 0,
    /// When it began to connect, or to look for a connection.
    began_ns: u64 = 0,
    active_ns: u64 = 0,
    /// The reply has begun.
    is_heard: bool = false,
    /// Its owner was full.
    is_paused: bool = false,
    /// On the engine's list of those whose `on_news` is to be called.
    has_news: bool = false,
    next_news: ?*Transfer = null,
    /// Its owner had nothing to send.
    is_starved: bool = false,
    uploaded: u64 = 0,
    /// All of it was taken from `on_upload`.
    is_uploaded: bool = false,
    /// Part of the request is still to be sent, as far as is known.
    is_sending: bool = false,
    /// How far it had come when it was last taken out of a line or out of libcurl.
    phase: Phase = .waiting,

    pub const Taken = enum { taken, full, failed };

    /// C: gb_phase
    pub const Phase = enum(u32) { waiting = 0, connecting = 1, sending = 2, receiving = 3 };

    pub const State = enum {
        /// Belongs to its owner.
        outside,
        /// Waits for a connection.
        waiting,
        running,
        /// Over; `on_done` will be called.
        ended,
    };

    pub fn assertState(transfer: *const Transfer, expected: State) void {
        assert(transfer.state == expected);
        switch (expected) {
            .outside, .ended => assert(transfer.handle == null and transfer.deadline.place == (deadlines.Entry{}).place),
            .waiting => assert(transfer.handle == null and transfer.origin != null and transfer.line != null),
            .running => assert(transfer.handle != null and transfer.origin != null),
        }
    }

    /// Forgets request and reply, keeps buffers. What is to be sent is set anew.
    pub fn reset(transfer: *Transfer) void {
        transfer.assertState(.outside);
        const body = transfer.body_received;
        const text = transfer.failure_words;
        const location = transfer.location_text;
        transfer.* = .{ .on_done = transfer.on_done, .body_received = body, .failure_words = text, .location_text = location };
        transfer.forgetReply();
    }

    /// Each has what the other had, but for whom it belongs to.
    pub fn exchange(transfer: *Transfer, other: *Transfer) void {
        transfer.assertState(.outside);
        other.assertState(.outside);
        std.mem.swap(Transfer, transfer, other);
        std.mem.swap(*const fn (*Transfer) void, &transfer.on_done, &other.on_done);
        for ([_]*Transfer{ transfer, other }) |it| it.request_id = it.request_id_buffer[0..it.request_id.len];
    }

    pub fn deinit(transfer: *Transfer, gpa: Allocator) void {
        transfer.assertState(.outside);
        transfer.body_received.deinit(gpa);
        transfer.location_text.deinit(gpa);
        transfer.failure_words.deinit(gpa);
    }

    /// Until the transfer is submitted again, reset or freed.
    pub fn responseBody(transfer: *const Transfer) []const u8 {
        return transfer.body_received.items;
    }

    /// For people: what went wrong. Empty if nothing did.
    pub fn failureText(transfer: *const Transfer) []const u8 {
        if (transfer.failure == .none) return "";
        return if (transfer.failure_words.items.len > 0) transfer.failure_words.items else usualWords(transfer.failure);
    }

    fn forgetReply(transfer: *Transfer) void {
        transfer.body_received.clearRetainingCapacity();
        transfer.failure_words.clearRetainingCapacity();
    }

    pub fn begin(transfer: *Transfer, clock_ns: u64, now_ns: u64) void {
        transfer.assertState(.outside);
        transfer.forgetReply();
        transfer.failure = .none;
        transfer.forgetHead();
        transfer.head_bytes = 0;
        transfer.body_bytes = 0;
        transfer.is_heard = false;
        transfer.is_paused = false;
        transfer.is_starved = false;
        transfer.uploaded = 0;
        transfer.is_uploaded = false;
        transfer.is_sending = false;
        transfer.phase = .waiting;
        transfer.started_ns = clock_ns;
        transfer.submitted_ns = now_ns;
        transfer.first_byte_ns = 0;
        transfer.ended_ns = 0;
        transfer.bytes_sent = 0;
        transfer.bytes_received = 0;
        transfer.broken_port = 0;
    }

    /// The first failure counts: what libcurl says of a transfer that was stopped is of no interest.
    /// Out of memory loses the words, not the failure.
    pub fn fail(transfer: *Transfer, gpa: Allocator, failure: Failure, comptime format: []const u8, args: anytype) void {
        assert(failure != .none);
        if (transfer.failure != .none) return;
        transfer.failure = failure;
        const text = gpa.print(format, args) catch return;
        transfer.failure_words.deinit(gpa);
        transfer.failure_words = .fromOwnedSlice(text);
    }

    // ------------------------------------------------------------------------------------------------- the reply

    fn forgetHead(transfer: *Transfer) void {
        transfer.status = 0;
        transfer.retry_after_ms = -1;
        transfer.retry_after_exact = false;
        transfer.request_id = "";
        transfer.content_length = null;
        transfer.media = .other;
        transfer.is_encoded = false;
        transfer.is_gzip = false;
        transfer.head_is_whole = false;
        transfer.location = "";
        if (transfer.announced.any) transfer.announced = .{};
    }

    /// False: the transfer has failed, its connection should be closed.
    pub fn takeHead(transfer: *Transfer, gpa: Allocator, line: []const u8) bool {
        const most = if (transfer.head_bytes_max == 0) head_bytes_default else transfer.head_bytes_max;
        if (line.len > most - transfer.head_bytes) {
            transfer.fail(gpa, .too_large, "the reply's head is larger than {d} bytes", .{most});
            return false;
        }
        transfer.head_bytes += @intCast(line.len);
        transfer.is_heard = true;
        const is_trailer = transfer.head_is_whole and head.status(line) == null;
        transfer.takeHeadLine(gpa, line);
        if (transfer.failure != .none) return false;
        if (transfer.on_head) |tell| if (!is_trailer) tell(transfer, line);
        return transfer.failure == .none;
    }

    pub fn takeHeadLine(transfer: *Transfer, gpa: Allocator, line: []const u8) void {
        if (line.len < 5) {
            if (std.mem.trim(u8, line, "\r\n").len == 0) transfer.head_is_whole = true;
            return;
        }
        switch (line[0]) {
            'H' => if (head.status(line)) |status| { // also after a "100 Continue": the last head counts
                transfer.forgetHead();
                transfer.status = status;
                // libcurl asks again by itself where a server takes an HTTP/2 request back: what came of the first reply is void.
                if (transfer.body_bytes > 0 and transfer.on_body != null) {
                    return transfer.fail(gpa, .closed, "the server took its reply back", .{});
                }
                transfer.body_bytes = 0;
                transfer.body_received.clearRetainingCapacity();
                const is_plain = std.ascii.startsWithIgnoreCase(transfer.url, "http:");
                if (is_plain and !std.mem.startsWith(u8, line, "HTTP/1.")) transfer.fail(gpa, .protocol, "a version of HTTP that was not asked for", .{});
            },
            'a', 'A', 'c', 'C', 'l', 'L', 'r', 'R', 'x', 'X' => if (head.field(line)) |field| transfer.takeField(gpa, field),
            else => {},
        }
    }

    fn takeField(transfer: *Transfer, gpa: Allocator, field: head.Field) void {
        const is = std.ascii.eqlIgnoreCase;
        if (is(field.name, "content-length")) {
            const length = head.decimal(field.value) orelse return transfer.fail(gpa, .protocol, "Content-Length is no number", .{});
            if (transfer.content_length) |other| if (other != length) return transfer.fail(gpa, .protocol, "Content-Length says two things", .{});
            transfer.content_length = length;
        } else if (is(field.name, "content-type")) {
            transfer.media = .of(field.value);
        } else if (is(field.name, "content-encoding")) {
            // A second line adds another one.
            transfer.is_gzip = !transfer.is_encoded and (is(field.value, "gzip") or is(field.value, "x-gzip"));
            transfer.is_encoded = field.value.len > 0 and !is(field.value, "identity");
        } else if (is(field.name, "location")) {
            transfer.location_text.clearRetainingCapacity();
            transfer.location_text.appendSlice(gpa, field.value) catch return; // then it is a reply like any other
            transfer.location = transfer.location_text.items;
        } else if (is(field.name, "x-request-id") or is(field.name, "request-id")) {
            if (transfer.request_id.len > 0) return;
            const id = field.value[0..@min(field.value.len, request_id_bytes_max)];
            @memcpy(transfer.request_id_buffer[0..id.len], id);
            transfer.request_id = transfer.request_id_buffer[0..id.len];
        } else if (is(field.name, "retry-after-ms")) {
            transfer.retry_after_ms = head.milliseconds(field.value, 1) orelse return;
            transfer.retry_after_exact = true;
        } else if (is(field.name, "retry-after") and !transfer.retry_after_exact) {
            transfer.retry_after_ms = head.retryAfterMs(field.value, os.unixSeconds()) orelse return;
        } else if (transfer.learns) transfer.announced.take(field, os.unixSeconds());
    }

    /// `failed`: the transfer has, its connection should be closed. `full`: the same bytes are to come again. `wire_bytes`: of the
    /// body, so far, as they came.
    pub fn takeBody(transfer: *Transfer, gpa: Allocator, bytes: []const u8, wire_bytes: u64) Taken {
        const wire_most = if (transfer.wire_bytes_max == 0) wire_bytes_default else transfer.wire_bytes_max;
        const most = if (transfer.body_bytes_max == 0) body_bytes_default else transfer.body_bytes_max;
        const announced = transfer.content_length orelse 0;
        const first = transfer.body_bytes == 0;
        if (wire_bytes > wire_most or (first and announced > wire_most)) {
            transfer.fail(gpa, .too_large, "the reply is larger than {d} bytes on the wire", .{wire_most});
            return .failed;
        }
        if (bytes.len > most - transfer.body_bytes or (first and !transfer.is_encoded and announced > most)) {
            transfer.fail(gpa, .too_large, "the reply is larger than {d} bytes", .{most});
            return .failed;
        }
        const taken = if (transfer.on_body) |take| take(transfer, bytes) else transfer.keepBody(gpa, bytes);
        switch (taken) {
            .taken => transfer.body_bytes += bytes.len,
            .full => transfer.is_paused = true,
            .failed => {},
        }
        return taken;
    }

    /// What becomes of a body that nobody takes as it comes.
    pub fn keepBody(transfer: *Transfer, gpa: Allocator, bytes: []const u8) Taken {
        const body = &transfer.body_received;
        const announced = if (transfer.is_encoded) 0 else transfer.content_length orelse 0;
        if (body.capacity == 0) body.ensureTotalCapacityPrecise(gpa, @intCast(@max(bytes.len, @min(announced, reserve_bytes_max)))) catch {};
        body.appendSlice(gpa, bytes) catch {
            transfer.fail(gpa, .out_of_memory, "no memory for the reply", .{});
            return .failed;
        };
        return .taken;
    }

    /// libcurl is content with the reply. Is it whole? `wire_bytes`: of the body, as they came.
    pub fn checkWhole(transfer: *Transfer, gpa: Allocator, wire_bytes: u64) void {
        if (transfer.failure != .none) return;
        if (!transfer.head_is_whole) return transfer.fail(gpa, .closed, "the reply's head broke off", .{});
        const has_body = transfer.status >= 200 and transfer.status != 204 and transfer.status != 304 and !std.mem.eql(u8, transfer.method, "HEAD");
        const announced = transfer.content_length orelse return;
        if (has_body and wire_bytes < announced) {
            transfer.fail(gpa, .closed, "{d} of {d} bytes of the reply came", .{ wire_bytes, announced });
        }
    }

    // -------------------------------------------------------------------------------------------------- timeouts

    pub const Due = struct { at_ns: u64, failure: Failure, ms: u32 };

    /// The timeout that comes first. `connected_ns`: when the connection was there, null if it is not yet.
    pub fn due(transfer: *const Transfer, connected_ns: ?u64) ?Due {
        var first: ?Due = null;
        if (transfer.total_timeout_ms != 0) first = .{
            .at_ns = transfer.submitted_ns + transfer.total_timeout_ms * ns_per_ms,
            .failure = .total_timeout,
            .ms = transfer.total_timeout_ms,
        };
        if (transfer.state == .waiting and transfer.is_raw) {
            first = earlier(first, transfer.submitted_ns, if (transfer.isHeld()) transfer.connect_timeout_ms else transfer.pool_timeout_ms, .connect_timeout);
        }
        if (transfer.state != .running) return first;
        if (connected_ns) |ns| {
            if (!transfer.is_heard) first = earlier(first, ns, transfer.first_byte_timeout_ms, .first_byte_timeout);
            const idle_ms = if (transfer.is_raw and transfer.is_sending) transfer.write_timeout_ms else transfer.idle_timeout_ms;
            if (!transfer.is_paused and !transfer.is_starved) first = earlier(first, @max(ns, transfer.active_ns), idle_ms, .idle_timeout);
        } else first = earlier(first, transfer.began_ns, transfer.connect_timeout_ms, .connect_timeout);
        return first;
    }

    /// Whom to tell that no reply has begun; once.
    pub fn takeSilence(transfer: *Transfer, now_ns: u64) ?*const fn (*Transfer) void {
        if (transfer.is_heard or transfer.submitted_ns + transfer.silence_ns > now_ns) return null;
        defer transfer.on_silence = null;
        return transfer.on_silence;
    }

    fn earlier(first: ?Due, since_ns: u64, ms: u32, failure: Failure) ?Due {
        const at_ns = since_ns + ms * ns_per_ms;
        if (ms == 0 or (first != null and first.?.at_ns <= at_ns)) return first;
        return .{ .at_ns = at_ns, .failure = failure, .ms = ms };
    }

    /// It waits for its host's address.
    pub fn isHeld(transfer: *const Transfer) bool {
        return transfer.line != null and transfer.line == &transfer.origin.?.held;
    }

    /// When to look again. A connection that is made meanwhile tells nobody, so what counts from then on is looked for even before.
    pub fn lookAgainNs(transfer: *const Transfer, connected_ns: ?u64, now_ns: u64) u64 {
        var at_ns = if (transfer.due(connected_ns)) |it| it.at_ns else deadlines.never;
        if (transfer.on_silence != null and !transfer.is_heard) at_ns = @min(at_ns, transfer.submitted_ns + transfer.silence_ns);
        if (transfer.state == .running and connected_ns == null) {
            for ([_]u32{ transfer.idle_timeout_ms, transfer.first_byte_timeout_ms, transfer.write_timeout_ms }) |ms| {
                if (ms != 0) at_ns = @min(at_ns, now_ns + ms * ns_per_ms);
            }
        }
        // Nor does the end of sending.
        if (transfer.is_sending and !transfer.is_starved and transfer.idle_timeout_ms != 0) at_ns = @min(at_ns, now_ns + transfer.idle_timeout_ms * ns_per_ms);
        return at_ns;
    }
};

/// Where nothing more exact is known, or there was no memory for it.
fn usualWords(failure: Failure) []const u8 {
    return switch (failure) {
        .none => "",
        .cancelled => "cancelled",
        .refused => "the request cannot be sent",
        .no_libcurl => "libcurl is missing",
        .resolve => "the host name could not be resolved",
        .connect => "no connection could be made",
        .tls => "TLS failed",
        .connect_timeout => "no connection in time",
        .first_byte_timeout => "no reply in time",
        .idle_timeout => "the server fell silent",
        .total_timeout => "not finished in time",
        .closed => "the connection broke before the reply was whole",
        .too_large => "the reply is too large",
        .protocol => "the reply is not HTTP",
        .status => "the server reported an error",
        .bad_reply => "the reply is not what was promised",
        .provider => "the provider reported an error",
        .template => "a placeholder's path leads nowhere",
        .out_of_memory => "out of memory",
        .shutdown => "the runtime was shut down",
        .redirect => "a redirect that is not followed",
        .not_public => "the address is not a public one",
        .circuit_open => "the server has failed too often",
        .queue_timeout => "it waited too long for the provider's limits",
        .other, .node_timeout, .none_left, .native => "failed",
    };
}

test {
    _ = @import("transfer_test.zig");
}
