//! An exchange: one HTTP exchange as it is, for other HTTP clients. No template, no retry, no redirect, no decoding, and no header
//! that its owner has not given: what libcurl would add is left out (`Transfer.is_raw`). From gb_exchange_start to
//! gb_exchange_release.
//!
//! What is sent is copied by `create`; `send` hands it to the engine, `over` is its one end. In between everything happens on
//! the engine's thread. The owner is told by one letter whenever there is something to look at: the head is whole, bytes of the body
//! have come where he had taken all, there is room for more of his own body, it is over. A head and a body that come together with the
//! end are told together: most replies are one letter.
//!
//! ## What the reader may look at
//!
//! `head` once `status` is there: the engine's thread stores it when the head is whole, and does not touch the head any more.
//! `failure` and `detail` once `ended` is there. The body by way of `deltas`; whoever reads `ended` first and takes the body then
//! has all of it.
//!
//! ## Admission
//!
//! With a key it passes its provider's gate like a call (entry.zig): it may wait before it is sent, or not be sent at all.
//!
//! ## Lifetime
//!
//! It is counted: the handle, the engine until `over`, and each message that was posted. Giving the handle back early cancels.

const std = @import("std");
const sync = @import("base/sync.zig");
const context_file = @import("context.zig");
const deltas_file = @import("deltas.zig");
const engine_file = @import("http/engine.zig");
const entry_file = @import("entry.zig");
const head_file = @import("http/head.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const route_file = @import("base/route.zig");
const transfer_file = @import("http/transfer.zig");
const upload_file = @import("upload.zig");

const Allocator = std.mem.Allocator;
const Bytes = plan_file.Bytes;
const Context = context_file.Context;
const Deltas = deltas_file.Deltas;
const Message = engine_file.Message;
const Queue = queue_file.Queue;
const Route = route_file.Route;
pub const Failure = transfer_file.Failure;
pub const Phase = Transfer.Phase;
const Transfer = transfer_file.Transfer;
const Upload = upload_file.Upload;

pub const Flags = packed struct(u32) {
    body: bool = false,
    body_follows: bool = false,
    insecure: bool = false,
    proxy: bool = false,
    public_only: bool = false,
    _: u27 = 0,
};

/// C: gb_exchange_spec
pub const Spec = extern struct {
    method: Bytes = .{},
    url: Bytes = .{},
    target: Bytes = .{},
    headers: Bytes = .{},
    header_count: u32 = 0,
    flags: Flags = .{},
    body: Bytes = .{},
    body_bytes: i64 = -1,
    connect_timeout_ms: u32 = 0,
    read_timeout_ms: u32 = 0,
    write_timeout_ms: u32 = 0,
    pool_timeout_ms: u32 = 0,
    first_byte_timeout_ms: u32 = 0,
    head_bytes_max: u32 = 0,
    body_bytes_max: u64 = 0,
    wire_bytes_max: u64 = 0,
    proxy: Bytes = .{},
    no_proxy: Bytes = .{},
    ca_file: Bytes = .{},
    client_cert: Bytes = .{},
    client_key: Bytes = .{},
    client_key_password: Bytes = .{},
    admission_key: Bytes = .{},
    admission_flags: u32 = 0,
    concurrency: u32 = 0,
    requests_per_minute: u32 = 0,
    queue_timeout_ms: u32 = 0,
    tokens_per_minute: u64 = 0,
    group: u64 = 0,

    const route_names = .{ "proxy", "no_proxy", "ca_file", "client_cert", "client_key", "client_key_password" };

    fn hasRoute(spec: *const Spec) bool {
        inline for (route_names) |name| if (@field(spec, name).len > 0) return true;
        return spec.flags.proxy or spec.flags.public_only;
    }
};

/// C: gb_exchange_report
pub const Report = extern struct {
    status: u32 = 0,
    over: u32 = 0,
    failure: u32 = 0,
    phase: u32 = 0,
    room: u32 = 0,
    retry_after_ms: u32 = 0,
    head: Bytes = .{},
    body: Bytes = .{},
    detail: Bytes = .{},
};

/// The exchanges on their way, so that a shutdown can end them.
pub const Exchanges = struct {
    context: *Context,
    mutex: sync.Mutex = .init,
    closed: bool = false,
    first: ?*Exchange = null,
    active: u32 = 0,

    pub fn start(exchanges: *Exchanges, spec: *const Spec, queue: *Queue, token: u64) error{ OutOfMemory, InvalidArgument, Shutdown }!*Exchange {
        const exchange = try Exchange.create(exchanges, spec, queue, token);
        exchange.references.raw = 2; // before others can find it: the handle's, and the engine's until it is over
        exchanges.mutex.lock();
        if (exchanges.closed) {
            exchanges.mutex.unlock();
            exchange.destroy();
            return error.Shutdown;
        }
        exchange.next = exchanges.first;
        if (exchanges.first) |first| first.previous = exchange;
        exchanges.first = exchange;
        exchanges.active += 1;
        exchanges.mutex.unlock();
        if (exchange.is_virtual) exchanges.context.timers.enter();
        exchanges.context.services.engine.post(&exchange.start_message);
        return exchange;
    }

    /// Nothing starts any more; what is on its way is cancelled.
    pub fn close(exchanges: *Exchanges) void {
        exchanges.mutex.lock();
        exchanges.closed = true;
        exchanges.mutex.unlock();
        while (true) {
            exchanges.mutex.lock();
            var at = exchanges.first;
            while (at) |exchange| : (at = exchange.next) if (!exchange.cancel_asked.load(.monotonic)) break;
            if (at) |exchange| exchange.retain();
            exchanges.mutex.unlock();
            // Outside the lock: where the engine never got a thread, a cancel ends the exchange then and there.
            const exchange = at orelse return;
            exchange.cancel();
            exchange.letGo();
        }
    }

    pub fn count(exchanges: *Exchanges) u32 {
        exchanges.mutex.lock();
        defer exchanges.mutex.unlock();
        return exchanges.active;
    }

    fn remove(exchanges: *Exchanges, exchange: *Exchange) void {
        exchanges.mutex.lock();
        defer exchanges.mutex.unlock();
        if (exchange.previous) |previous| previous.next = exchange.next else exchanges.first = exchange.next;
        if (exchange.next) |next| next.previous = exchange.previous;
        exchanges.active -= 1;
    }
};

pub const Exchange = struct {
    context: *Context,
    exchanges: *Exchanges,
    queue: *Queue,
    /// What is sent.
    texts: std.heap.ArenaAllocator,
    route: Route = .{},
    transfer: Transfer,
    upload: ?Upload = null,
    entry: entry_file.Entry = .{ .on_verdict = onVerdict },

    // What comes back.
    head: std.ArrayList(u8) = .empty,
    /// Of the head that counts, once it is whole; 0 before.
    status: sync.Atomic(u32) = .init(0),
    deltas: Deltas,
    failure: Failure = .none,
    ended: sync.Atomic(bool) = .init(false),

    start_message: Message = .{ .run = onStart },
    cancel_message: Message = .{ .run = onCancel },
    go_on_message: Message = .{ .run = onGoOn },
    cancel_asked: sync.Atomic(bool) = .init(false),
    /// The message is on its way; and what it is to say.
    go_on_asked: sync.Atomic(bool) = .init(false),
    read_on: sync.Atomic(bool) = .init(false),
    send_on: sync.Atomic(bool) = .init(false),

    letter: queue_file.Letter = .{},
    references: sync.Atomic(u32) = .init(1),
    /// The handle was given back: nobody wants to be told.
    dropped: sync.Atomic(bool) = .init(false),
    is_virtual: bool,
    next: ?*Exchange = null,
    previous: ?*Exchange = null,

    pub fn create(exchanges: *Exchanges, spec: *const Spec, queue: *Queue, token: u64) error{ OutOfMemory, InvalidArgument }!*Exchange {
        const context = exchanges.context;
        const gpa = context.gpa;
        const exchange = try gpa.create(Exchange);
        errdefer gpa.destroy(exchange);
        exchange.* = .{
            .context = context,
            .exchanges = exchanges,
            .queue = queue,
            .texts = .init(gpa),
            .transfer = .{ .on_done = onDone, .on_body = onBody, .on_news = onNews, .on_head = onHead, .is_raw = true },
            .deltas = .init(gpa),
            .is_virtual = context.timers.isVirtual(),
        };
        errdefer exchange.texts.deinit();
        try exchange.copy(spec);
        exchange.letter.item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.exchange) };
        _ = queue.retain();
        context.retain();
        return exchange;
    }

    fn copy(exchange: *Exchange, spec: *const Spec) error{ OutOfMemory, InvalidArgument }!void {
        const arena = exchange.texts.allocator();
        const transfer = &exchange.transfer;
        transfer.method = try arena.dupe(u8, spec.method.items());
        transfer.url = try arena.dupeSentinel(u8, spec.url.items(), 0);
        if (spec.target.len > 0) transfer.request_target = try arena.dupeSentinel(u8, spec.target.items(), 0);
        for (transfer.request_target) |byte| if (byte <= ' ' or byte == 0x7f) return error.InvalidArgument;
        transfer.headers = try readHeaders(arena, spec);
        transfer.verify_tls = !spec.flags.insecure;
        transfer.connect_timeout_ms = spec.connect_timeout_ms;
        transfer.idle_timeout_ms = spec.read_timeout_ms;
        transfer.write_timeout_ms = spec.write_timeout_ms;
        transfer.pool_timeout_ms = spec.pool_timeout_ms;
        transfer.first_byte_timeout_ms = spec.first_byte_timeout_ms;
        transfer.head_bytes_max = spec.head_bytes_max;
        transfer.body_bytes_max = if (spec.body_bytes_max == 0) std.math.maxInt(u64) else spec.body_bytes_max;
        transfer.wire_bytes_max = if (spec.wire_bytes_max == 0) std.math.maxInt(u64) else spec.wire_bytes_max;
        try exchange.entry.describe(arena, spec, transfer);
        if (spec.hasRoute()) {
            exchange.route = try readRoute(arena, spec);
            transfer.route = &exchange.route;
        }
        if (spec.flags.body_follows) {
            const length: ?u64 = if (spec.body_bytes < 0) null else @intCast(spec.body_bytes);
            exchange.upload = .init(exchange.context.gpa, length);
            transfer.on_upload = onUpload;
            transfer.upload_bytes = length;
        } else if (spec.flags.body) transfer.body = try arena.dupe(u8, spec.body.items());
    }

    /// Each line ends with NUL, in the text and in the copy. How the body is framed is libcurl's to say.
    fn readHeaders(arena: Allocator, spec: *const Spec) error{ OutOfMemory, InvalidArgument }![]const [:0]const u8 {
        const text = try arena.dupe(u8, spec.headers.items());
        const lines = try arena.alloc([:0]const u8, spec.header_count);
        var kept: usize = 0;
        var rest = text;
        for (0..spec.header_count) |_| {
            const end = std.mem.findScalar(u8, rest, 0) orelse return error.InvalidArgument;
            const line = rest[0..end :0];
            rest = rest[end + 1 ..];
            const colon = std.mem.findScalar(u8, line, ':') orelse line.len;
            if (std.ascii.eqlIgnoreCase(line[0..colon], "transfer-encoding")) continue;
            lines[kept] = line;
            kept += 1;
        }
        // A NUL inside of a line would make another one of what is behind it.
        if (rest.len > 0) return error.InvalidArgument;
        return lines[0..kept];
    }

    fn readRoute(arena: Allocator, spec: *const Spec) error{ OutOfMemory, InvalidArgument }!Route {
        var texts: route_file.Texts = .{};
        inline for (Spec.route_names) |name| {
            const value = @field(spec, name).items();
            if (std.mem.findScalar(u8, value, 0) != null) return error.InvalidArgument;
            const counts = value.len > 0 or (comptime std.mem.eql(u8, name, "proxy")) and spec.flags.proxy;
            if (counts) @field(texts, name) = try arena.dupeSentinel(u8, value, 0);
        }
        return .of(texts, spec.flags.public_only);
    }

    // --------------------------------------------------------------------------------------------- any thread

    fn retain(exchange: *Exchange) void {
        _ = exchange.references.fetchAdd(1, .monotonic);
    }

    fn letGo(exchange: *Exchange) void {
        // Acquire-release: the last one out sees every other holder's last write.
        if (exchange.references.fetchSub(1, .acq_rel) == 1) exchange.destroy();
    }

    fn destroy(exchange: *Exchange) void {
        const context = exchange.context;
        const gpa = context.gpa;
        context.lobby.withdraw(&exchange.letter);
        exchange.transfer.deinit(gpa);
        exchange.deltas.deinit();
        if (exchange.upload) |*upload| upload.deinit();
        exchange.head.deinit(gpa);
        exchange.texts.deinit();
        exchange.queue.release();
        gpa.destroy(exchange);
        context.release();
    }

    pub fn cancel(exchange: *Exchange) void {
        if (exchange.ended.load(.acquire)) return; // pairs with the store in `over`
        if (exchange.cancel_asked.swap(true, .acq_rel)) return; // pairs with the load in onStart: at most one message
        exchange.retain();
        exchange.context.services.engine.post(&exchange.cancel_message);
    }

    /// The handle goes back.
    pub fn release(exchange: *Exchange) void {
        exchange.dropped.store(true, .release); // pairs with the load in `tell`: at worst a letter is posted, and withdrawn
        exchange.cancel();
        exchange.letGo();
    }

    /// What there is, and what has come of the body since the last time. One thread at a time.
    pub fn read(exchange: *Exchange) Report {
        const is_over = exchange.ended.load(.acquire); // pairs with the store in `over`; before the body is taken
        var report: Report = .{ .status = exchange.status.load(.acquire), .over = @intFromBool(is_over) }; // pairs with the store in onHead
        if (report.status != 0) report.head = .from(exchange.head.items);
        if (is_over) {
            report.failure = @backingInt(exchange.failure);
            report.phase = @backingInt(exchange.transfer.phase);
            if (exchange.failure == .circuit_open) report.retry_after_ms = exchange.entry.retryAfterMs();
            if (exchange.failure != .none) report.detail = .from(exchange.transfer.failureText());
        }
        const taken = exchange.deltas.takeAll();
        report.body = .from(taken.bytes);
        if (taken.proceed) exchange.goOn(&exchange.read_on);
        report.room = if (exchange.upload) |*upload| @intFromBool(upload.hasRoom()) else 1;
        return report;
    }

    /// The next piece of the body that is sent. True: there is room for more.
    pub fn write(exchange: *Exchange, bytes: []const u8, last: bool) error{ OutOfMemory, InvalidArgument }!bool {
        const upload = if (exchange.upload) |*it| it else return error.InvalidArgument;
        const put = try upload.put(bytes, last);
        if (put.proceed) exchange.goOn(&exchange.send_on);
        return put.room;
    }

    fn goOn(exchange: *Exchange, what: *sync.Atomic(bool)) void {
        what.store(true, .release); // pairs with the swaps in onGoOn
        if (exchange.ended.load(.acquire)) return; // pairs with the store in `over`
        if (exchange.go_on_asked.swap(true, .acq_rel)) return; // pairs with the swap in onGoOn: at most one message
        exchange.retain();
        exchange.context.services.engine.post(&exchange.go_on_message);
    }

    // ------------------------------------------------------------------------------- on the engine's thread

    fn onStart(message: *Message) void {
        const exchange: *Exchange = @fieldParentPtr("start_message", message);
        // A shutdown may have asked before this message was posted: then nobody would end a wait.
        if (exchange.cancel_asked.load(.acquire)) return onVerdict(&exchange.entry, .too_late); // pairs with the swap in cancel
        exchange.entry.ask(exchange.context.services);
    }

    /// The provider's limits let it through, or not.
    fn onVerdict(entry: *entry_file.Entry, verdict: entry_file.Verdict) void {
        const exchange: *Exchange = @fieldParentPtr("entry", entry);
        const failure: Failure = if (exchange.cancel_asked.load(.acquire)) .cancelled else switch (verdict) { // pairs with the swap in cancel
            .go => return exchange.context.services.engine.submit(&exchange.transfer),
            .refused => .circuit_open,
            .too_late => .queue_timeout,
            .no_memory => .out_of_memory,
        };
        exchange.transfer.fail(exchange.context.gpa, failure, "", .{});
        exchange.over(failure);
    }

    fn onCancel(message: *Message) void {
        const exchange: *Exchange = @fieldParentPtr("cancel_message", message);
        defer exchange.letGo();
        exchange.entry.cancel();
        exchange.context.services.engine.cancel(&exchange.transfer);
    }

    fn onGoOn(message: *Message) void {
        const exchange: *Exchange = @fieldParentPtr("go_on_message", message);
        defer exchange.letGo();
        const engine = exchange.context.services.engine;
        _ = exchange.go_on_asked.swap(false, .acq_rel); // pairs with the swap in goOn
        if (exchange.read_on.swap(false, .acq_rel)) engine.proceed(&exchange.transfer);
        if (exchange.send_on.swap(false, .acq_rel)) engine.sendOn(&exchange.transfer);
    }

    /// From inside libcurl, as all three.
    fn onHead(transfer: *Transfer, line: []const u8) void {
        const exchange: *Exchange = @fieldParentPtr("transfer", transfer);
        const gpa = exchange.context.gpa;
        if (exchange.status.raw != 0) return transfer.fail(gpa, .closed, "the server took its reply back", .{});
        if (head_file.status(line) != null) exchange.head.clearRetainingCapacity();
        exchange.head.appendSlice(gpa, line) catch return transfer.fail(gpa, .out_of_memory, "no memory for the reply", .{});
        if (!transfer.head_is_whole or transfer.status < 200) return;
        // libcurl stops sending then, and is not to wait for a writer who has fallen silent.
        if (transfer.status >= 300) if (exchange.upload) |*upload| upload.end();
        exchange.status.store(transfer.status, .release); // pairs with the load in `read`
        exchange.context.services.engine.noteNews(transfer);
    }

    fn onBody(transfer: *Transfer, bytes: []const u8) Transfer.Taken {
        const exchange: *Exchange = @fieldParentPtr("transfer", transfer);
        if (exchange.deltas.isFull()) return .full;
        exchange.entry.noteBody(transfer, bytes);
        const tell_reader = exchange.deltas.put(.bytes, bytes) catch {
            transfer.fail(exchange.context.gpa, .out_of_memory, "no memory for the reply", .{});
            return .failed;
        };
        if (tell_reader) exchange.context.services.engine.noteNews(transfer);
        return .taken;
    }

    fn onUpload(transfer: *Transfer, into: []u8) ?usize {
        const exchange: *Exchange = @fieldParentPtr("transfer", transfer);
        const taken = exchange.upload.?.take(into);
        if (taken.tell) exchange.context.services.engine.noteNews(transfer);
        return taken.count;
    }

    fn onNews(transfer: *Transfer) void {
        const exchange: *Exchange = @fieldParentPtr("transfer", transfer);
        if (transfer.state == .ended) return; // its end will tell
        if (exchange.status.raw != 0) exchange.entry.seat.noteHead(@intCast(exchange.status.raw));
        if (exchange.status.raw >= 300) exchange.context.services.engine.sendOn(transfer);
        exchange.tell();
    }

    fn tell(exchange: *Exchange) void {
        if (exchange.dropped.load(.acquire)) return; // pairs with the store in release
        exchange.context.lobby.postOnce(exchange.queue, &exchange.letter);
    }

    fn onDone(transfer: *Transfer) void {
        const exchange: *Exchange = @fieldParentPtr("transfer", transfer);
        // A server that has answered and goes while it is still being sent to: the answer is what counts.
        const is_answered = transfer.failure == .closed and transfer.body_bytes == transfer.content_length and exchange.status.raw != 0;
        exchange.over(if (is_answered) .none else transfer.failure);
    }

    /// The one end.
    fn over(exchange: *Exchange, failure: Failure) void {
        const context = exchange.context;
        if (exchange.upload) |*upload| upload.end();
        exchange.failure = failure;
        exchange.entry.settle(failure, &exchange.transfer);
        exchange.exchanges.remove(exchange);
        exchange.ended.store(true, .release); // pairs with the loads in read, cancel and goOn
        exchange.tell();
        if (exchange.is_virtual) context.timers.leave();
        exchange.letGo();
    }
};
