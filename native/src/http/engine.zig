//! The HTTP engine: one thread, started by the first request, that runs all transfers through libcurl.
//!
//! `submit` and `cancel` belong to the engine's thread; other threads get there with a message (`post`). A transfer's end is
//! told by `on_done`, on that thread and never from inside libcurl or from inside `submit` or `cancel`; it may submit the next one.
//!
//! A transfer goes to a shard with an idle connection to its origin, else to the least loaded one, else to a new one; when no
//! more may be opened (descriptors, `connections_max`) it waits its turn, and in a line of its origin where that has as many as it
//! may (`connections_per_origin`). A process out of descriptors fails no transfer either: it waits until there is one again.
//! Timeouts run on real time, whatever the clock says.
//!
//! After `shutdown` messages are still run, one at a time, by whoever posts them (inbox.zig has the argument), and what is
//! submitted from there ends as `shutdown`.

const std = @import("std");
const os = @import("../base/os.zig");
const sync = @import("../base/sync.zig");
const clock_file = @import("../base/clock.zig");
const curl = @import("curl.zig");
const deadlines_file = @import("deadlines.zig");
const fleet_file = @import("fleet.zig");
const handle_file = @import("handle.zig");
const inbox_file = @import("inbox.zig");
const lines = @import("lines.zig");
const options_file = @import("options.zig");
const origins_file = @import("origins.zig");
const outcome = @import("outcome.zig");
const stats_file = @import("stats.zig");
const target_file = @import("target.zig");
const transfer_file = @import("transfer.zig");
const Shard = @import("shard.zig").Shard;
const Sockets = @import("sockets.zig").Sockets;

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Failure = transfer_file.Failure;
const Origin = origins_file.Origin;
const Transfer = transfer_file.Transfer;

pub const Message = inbox_file.Message;

pub const Options = options_file.Options;

/// How often what `on_done` submits is started before the sockets have their turn.
const rounds_max = 8;
/// See Engine.isHectic. A piece of a stream is at most so much later; a millisecond is what its reader would notice.
const nap_ns = 700 * std.time.ns_per_us;
const hectic_events_max = 16;
const hectic_streams_min = 64;
const wakeup_data: u64 = std.math.maxInt(u64);

threadlocal var current: ?*const Engine = null;

pub const Engine = struct {
    gpa: Allocator,
    clock: *const clock_file.Clock,
    options: Options,
    texts: options_file.Texts,
    stats: stats_file.Counters = .{},

    inbox: inbox_file.Inbox = .{},
    closing: sync.Atomic(bool) = .init(false),
    /// The thread runs, or it never will.
    started: sync.Atomic(bool) = .init(false),
    mutex: sync.Mutex = .init, // thread
    thread: ?sync.Thread = null,
    /// Neither a thread nor a descriptor could be had.
    unable: bool = false,

    // The thread's.
    is_open: bool = false,
    common: handle_file.Common = undefined,
    missing: ?curl.Table.LoadError = null,
    origins: origins_file.Origins,
    fleet: fleet_file.Fleet = undefined,
    waiting: origins_file.List = .{},
    ended: origins_file.List = .{},
    news: ?*Transfer = null,
    woke_ns: u64 = 0,
    deadlines: deadlines_file.Deadlines = .{},

    /// Does not move once something was posted.
    pub fn init(gpa: Allocator, clock: *const clock_file.Clock, options: Options) Allocator.Error!Engine {
        return .{ .gpa = gpa, .clock = clock, .options = options, .texts = try .create(gpa, &options), .origins = .{ .gpa = gpa } };
    }

    /// After `shutdown`.
    pub fn deinit(engine: *Engine) void {
        assert(engine.thread == null);
        assert(engine.inbox.isClosedAndDone());
        if (engine.inbox.wakeup) |*wakeup| wakeup.deinit();
        engine.texts.deinit(engine.gpa);
    }

    // --------------------------------------------------------------------------------------------- any thread

    pub fn onEngineThread(engine: *const Engine) bool {
        return current == engine;
    }

    pub fn post(engine: *Engine, message: *Message) void {
        engine.ensureStarted();
        if (!engine.inbox.post(message)) return;
        const outer = current;
        current = engine;
        defer current = outer;
        engine.inbox.runLast(engine, deliver);
    }

    /// Every transfer ends as `shutdown`; returns when the thread is gone. Not from the engine's thread. Again does nothing.
    pub fn shutdown(engine: *Engine) void {
        assert(!engine.onEngineThread());
        engine.mutex.lock();
        const thread = engine.thread;
        engine.thread = null;
        if (!engine.started.load(.monotonic)) engine.neverStart();
        engine.mutex.unlock();
        engine.closing.store(true, .release); // pairs with the loads of the thread
        engine.inbox.wake();
        if (thread) |it| it.join();
    }

    pub fn readStats(engine: *const Engine) stats_file.Stats {
        return engine.stats.read();
    }

    pub fn threadCount(engine: *Engine) u32 {
        engine.mutex.lock();
        defer engine.mutex.unlock();
        return @intFromBool(engine.thread != null);
    }

    /// Loads libcurl if need be. Static; null where none can be had.
    pub fn curlVersion(engine: *const Engine) ?[*:0]const u8 {
        const table = engine.options.load() catch return null;
        return table.version();
    }

    fn ensureStarted(engine: *Engine) void {
        if (engine.started.load(.acquire)) return; // pairs with the stores below
        engine.mutex.lock();
        defer engine.mutex.unlock();
        if (engine.started.load(.monotonic)) return;
        engine.start() catch {
            engine.unable = true;
            return engine.neverStart();
        };
        engine.started.store(true, .release); // pairs with the load above
    }

    /// Under the mutex. Nobody has announced a message yet: that comes after `started`.
    fn neverStart(engine: *Engine) void {
        engine.inbox.closeUnused();
        engine.started.store(true, .release); // pairs with ensureStarted's load
    }

    fn start(engine: *Engine) error{ SystemResources, ThreadUnavailable }!void {
        var sockets = try Sockets.init(engine.gpa);
        errdefer sockets.deinit();
        var wakeup: os.Wakeup = try .init();
        errdefer wakeup.deinit();
        try sockets.poller.add(wakeup.fd(), .{ .readable = true }, wakeup_data);
        engine.common = .{
            .gpa = engine.gpa,
            .clock = engine.clock,
            .table = undefined, // by the thread: loading takes a while
            .sockets = sockets,
            .share = null,
            .ca_file = if (engine.texts.ca_file.len > 0) engine.texts.ca_file else null,
            .ca_path = if (engine.texts.ca_path.len > 0) engine.texts.ca_path else null,
            .http_proxy = engine.texts.http_proxy,
            .https_proxy = engine.texts.https_proxy,
            .no_proxy = engine.texts.no_proxy,
            .connections_open = &engine.stats.connections_open,
            .now_ns = os.monotonicNs(),
        };
        engine.fleet = .{
            .common = &engine.common,
            .connections_max = engine.options.connections_max,
            .connections_per_shard = engine.options.connections_per_shard,
        };
        engine.inbox.wakeup = wakeup;
        errdefer engine.inbox.wakeup = null;
        engine.thread = try sync.Thread.spawn(.{ .name = "graphbit-http" }, run, .{engine});
    }

    // ------------------------------------------------------------------------------------- on the engine's thread

    /// `transfer.on_done` will be called, whatever happens.
    pub fn submit(engine: *Engine, transfer: *Transfer) void {
        assert(engine.onEngineThread());
        const now_ns = os.monotonicNs();
        transfer.begin(if (engine.clock.isVirtual()) engine.clock.now() else now_ns, now_ns);
        _ = engine.stats.started.fetchAdd(1, .monotonic);
        engine.accept(transfer) catch transfer.fail(engine.gpa, .out_of_memory, "no memory for the request", .{});
        // If it got further than this, its end has been seen to.
        if (transfer.failure != .none and transfer.state == .outside) engine.end(transfer);
    }

    fn accept(engine: *Engine, transfer: *Transfer) Allocator.Error!void {
        const gpa = engine.gpa;
        var buffer: [target_file.bytes_max]u8 = undefined;
        const target = target_file.check(transfer, gpa, &buffer) orelse return;
        if (engine.unable) return transfer.fail(gpa, .other, "the operating system refused a thread or a descriptor", .{});
        if (!engine.is_open) return transfer.fail(gpa, .shutdown, "the runtime was shut down", .{});
        if (engine.missing) |err| return transfer.fail(gpa, .no_libcurl, "{s}", .{outcome.missingText(err)});
        const origin = try engine.origins.find(target, if (transfer.route) |route| route.key else 0);
        origin.users += 1;
        transfer.origin = origin;
        lines.place(engine, transfer);
    }

    /// Does nothing to a transfer that is over or was never submitted.
    pub fn cancel(engine: *Engine, transfer: *Transfer) void {
        assert(engine.onEngineThread());
        switch (transfer.state) {
            .outside, .ended => {},
            .waiting, .running => engine.stop(transfer, .cancelled, "cancelled", .{}),
        }
    }

    /// After `on_body` has said that its owner is full: it has room again.
    pub fn proceed(engine: *Engine, transfer: *Transfer) void {
        assert(engine.onEngineThread());
        if (transfer.state != .running or !transfer.is_paused) return;
        transfer.handle.?.proceed();
        engine.lookAgain(transfer);
    }

    /// After `on_upload` had nothing: there is something to send, or its end is known.
    pub fn sendOn(engine: *Engine, transfer: *Transfer) void {
        assert(engine.onEngineThread());
        if (transfer.state != .running or !transfer.is_starved) return;
        transfer.handle.?.sendOn();
        engine.lookAgain(transfer);
    }

    fn lookAgain(engine: *Engine, transfer: *Transfer) void {
        // libcurl drops what its callback refused in there, and goes on.
        if (transfer.failure != .none) return engine.stop(transfer, transfer.failure, "", .{});
        const at_ns = transfer.lookAgainNs(transfer.handle.?.connectedNs(), engine.common.now_ns);
        engine.deadlines.set(engine.gpa, &transfer.deadline, at_ns) catch
            engine.stop(transfer, .out_of_memory, "no memory for the request", .{});
    }

    /// From `on_body`: `on_news` is called once libcurl has been left.
    pub fn noteNews(engine: *Engine, transfer: *Transfer) void {
        if (transfer.has_news) return;
        transfer.has_news = true;
        transfer.next_news = engine.news;
        engine.news = transfer;
    }

    fn tellNews(engine: *Engine) void {
        while (engine.news) |transfer| {
            engine.news = transfer.next_news;
            transfer.has_news = false;
            transfer.on_news.?(transfer);
        }
    }

    pub fn begin(engine: *Engine, transfer: *Transfer, shard: *Shard, counted: bool) void {
        engine.tryBegin(transfer, shard, counted) catch engine.failForMemory(transfer);
    }

    pub fn failForMemory(engine: *Engine, transfer: *Transfer) void {
        transfer.fail(engine.gpa, .out_of_memory, "no memory for the request", .{});
        engine.end(transfer);
    }

    fn tryBegin(engine: *Engine, transfer: *Transfer, shard: *Shard, counted: bool) Allocator.Error!void {
        transfer.began_ns = os.monotonicNs();
        transfer.active_ns = 0;
        transfer.state = .running;
        errdefer transfer.state = .outside;
        try engine.deadlines.set(engine.gpa, &transfer.deadline, transfer.lookAgainNs(null, transfer.began_ns));
        try engine.fleet.begin(transfer, shard, counted);
        _ = engine.stats.in_flight.fetchAdd(1, .monotonic);
    }

    pub fn takeOut(engine: *Engine, transfer: *Transfer) void {
        transfer.assertState(.running);
        const handle = transfer.handle.?;
        handle.notePhase();
        handle.countBytes();
        const stats = &engine.stats;
        _ = stats.bytes_sent.fetchAdd(transfer.bytes_sent, .monotonic);
        _ = stats.bytes_received.fetchAdd(transfer.bytes_received, .monotonic);
        if (transfer.bytes_sent > 0) {
            const connections = if (handle.opened.items.len > 0) &stats.connections_opened else &stats.connections_reused;
            _ = connections.fetchAdd(1, .monotonic);
        }
        _ = stats.in_flight.fetchSub(1, .monotonic);
        engine.fleet.takeOut(handle);
        transfer.state = .outside;
    }

    pub fn stop(engine: *Engine, transfer: *Transfer, failure: Failure, comptime format: []const u8, args: anytype) void {
        transfer.fail(engine.gpa, failure, format, args);
        if (transfer.state == .running) engine.takeOut(transfer) else lines.stopWaiting(engine, transfer);
        engine.end(transfer);
    }

    fn finish(engine: *Engine, over: Shard.Over) void {
        const handle = over.handle;
        const transfer = handle.transfer;
        const origin = transfer.origin.?;
        if (over.code != curl.ok and lines.isExhausted(engine, over)) return lines.waitForDescriptor(engine, transfer);
        if (over.code != curl.ok and handle.is_refused) {
            transfer.fail(engine.gpa, .not_public, "{s}: the address is not a public one", .{origin.name});
        } else if (over.code != curl.ok) {
            const words = handle.errorText(over.code);
            transfer.broken_port = handle.localPort();
            transfer.fail(engine.gpa, outcome.failureOf(over.code, words, transfer.is_heard and !transfer.head_is_whole), "{s}: {s}", .{ origin.name, words });
        } else {
            transfer.checkWhole(engine.gpa, handle.wireBytes());
            // libcurl is content, and keeps the connection.
            if (transfer.failure != .none and !handle.usedHttp2()) handle.cut();
        }
        // A connection that is not shared teaches nothing; a transfer that failed may have got as far as HTTP/2.
        const is_shared = transfer.route == null or !transfer.route.?.public_only;
        if (origin.tls and is_shared) {
            if (handle.usedHttp2()) {
                origin.is_http_1 = false;
                if (origin.home == null) origin.home = handle.lane.shard;
            } else if (over.code == curl.ok) {
                origin.is_http_1 = true;
                origin.home = null;
            }
        }
        engine.takeOut(transfer);
        engine.end(transfer);
    }

    /// From here on the transfer only waits for its `on_done`.
    pub fn end(engine: *Engine, transfer: *Transfer) void {
        engine.deadlines.remove(&transfer.deadline);
        transfer.ended_ns = engine.clock.now();
        engine.stats.noteEnd(transfer.failure, transfer.first_byte_ns -| transfer.started_ns, transfer.ended_ns -| transfer.started_ns);
        transfer.state = .ended;
        if (transfer.origin) |origin| {
            transfer.origin = null;
            if (origin.scout == transfer) {
                origin.scout = null;
                // They waited for this lookup, so its outcome is theirs.
                if (transfer.failure == .resolve) while (origin.held.first) |held| {
                    engine.stop(held, .resolve, "{s}", .{transfer.failureText()});
                };
                lines.noteKnown(engine, origin);
            }
            origin.users -= 1;
            if (engine.is_open and origin.crowd.first != null) lines.admit(engine, origin);
        }
        engine.ended.push(transfer);
        transfer.assertState(.ended);
    }

    // --------------------------------------------------------------------------------------------------- the loop

    fn run(engine: *Engine) void {
        current = engine;
        defer current = null;
        engine.open();
        while (!engine.closing.load(.acquire)) engine.turn(); // pairs with the store in shutdown
        engine.close();
        engine.inbox.close(engine, deliver);
    }

    fn open(engine: *Engine) void {
        engine.is_open = true;
        const table = engine.options.load() catch |err| {
            engine.missing = err;
            return;
        };
        engine.common.table = table;
        const share = table.curl_share_init() orelse return; // each multi has its own cache then
        _ = table.curl_share_setopt(share, curl.ShareOption.share, curl.ShareOption.data_dns);
        _ = table.curl_share_setopt(share, curl.ShareOption.share, curl.ShareOption.data_ssl_session);
        engine.common.share = share;
    }

    fn close(engine: *Engine) void {
        engine.is_open = false;
        while (engine.waiting.first) |transfer| engine.stop(transfer, .shutdown, "the runtime was shut down", .{});
        var origins = engine.origins.map.valueIterator();
        while (origins.next()) |origin| for ([_]*origins_file.List{ &origin.*.held, &origin.*.crowd }) |line| while (line.first) |transfer| {
            engine.stop(transfer, .shutdown, "the runtime was shut down", .{});
        };
        for (engine.fleet.shards.items) |shard| while (shard.running) |handle| {
            engine.stop(handle.transfer, .shutdown, "the runtime was shut down", .{});
        };
        engine.deliver();
        engine.fleet.deinit();
        if (engine.common.share) |share| _ = engine.common.table.curl_share_cleanup(share);
        engine.origins.deinit();
        engine.deadlines.deinit(engine.gpa);
        engine.common.sockets.deinit();
    }

    fn turn(engine: *Engine) void {
        const common = &engine.common;
        var events: [256]os.Event = undefined;
        var count = common.sockets.poller.wait(&events, engine.sleepMs());
        engine.inbox.getUp();
        common.now_ns = os.monotonicNs();
        if (engine.isHectic(count)) {
            var nobodys: sync.Atomic(u32) = .init(0);
            sync.futex.wait(&nobodys, 0, nap_ns) catch {};
            count = common.sockets.poller.wait(&events, 0); // what there was is told again
            common.now_ns = os.monotonicNs();
        }
        for (events[0..count]) |event| {
            if (event.data == wakeup_data) {
                engine.inbox.wakeup.?.drain();
            } else switch (common.sockets.ready(event, common.now_ns)) {
                .nothing => {},
                .ready => |ready| {
                    const shard: *Shard = @ptrCast(@alignCast(ready.owner));
                    shard.socketReady(ready);
                    engine.fleet.touch(shard);
                },
                // What a server says on an idle HTTP/1 connection would be taken for the reply to the next request.
                .stray => |stray| {
                    const lane: *origins_file.Lane = @ptrCast(@alignCast(stray.lane));
                    if (lane.origin.is_http_1 and lane.paused == 0 and os.hasInput(stray.socket)) os.cutSocket(stray.socket, !lane.origin.tls);
                },
            }
        }
        engine.reap();
        engine.fleet.runTimers();
        engine.reap();
        engine.inbox.run();
        engine.checkDeadlines();
        engine.settle();
    }

    /// Many streams, and little each time the thread wakes: where each of hundreds brings an event now and then, waking for it costs
    /// more than the event, here and in whoever reads it. A moment later there are several. Measured with 200 streams of one
    /// event every 20 ms: 29 us of CPU an event without a nap, 22 with one of 0.3 ms, 14 of 0.7.
    fn isHectic(engine: *Engine, count: usize) bool {
        const since_ns = engine.common.now_ns -| engine.woke_ns;
        engine.woke_ns = engine.common.now_ns;
        return count > 0 and count < hectic_events_max and engine.common.streams >= hectic_streams_min and since_ns < 2 * nap_ns;
    }

    /// -1: until something happens.
    fn sleepMs(engine: *Engine) i32 {
        if (engine.common.due != null or engine.common.known != null or engine.ended.first != null or engine.news != null) return 0;
        if (!engine.inbox.lieDown() or engine.closing.load(.acquire)) return 0; // pairs with the store in shutdown
        const deadline_ns = if (engine.deadlines.first()) |entry| entry.at_ns else deadlines_file.never;
        const room_ns = if (engine.waiting.first != null) engine.fleet.nextRoomNs() else deadlines_file.never;
        const at_ns = @min(deadline_ns, engine.fleet.nextTimerNs(), room_ns);
        if (at_ns == deadlines_file.never) return -1;
        const ms = (at_ns -| os.monotonicNs() + std.time.ns_per_ms - 1) / std.time.ns_per_ms;
        return @intCast(@min(ms, std.math.maxInt(i32)));
    }

    /// Tells whose transfer is over, and starts what follows from it.
    fn settle(engine: *Engine) void {
        const common = &engine.common;
        for (0..rounds_max) |_| {
            engine.deliver();
            while (common.known) |origin| {
                common.known = origin.next_known;
                origin.is_known_listed = false;
                lines.release(engine, origin);
            }
            lines.startWaiting(
                engine,
            );
            engine.fleet.runDue();
            engine.reap();
            if (engine.ended.first == null and engine.news == null and common.due == null and common.known == null) return;
        }
    }

    fn deliver(engine: *Engine) void {
        engine.tellNews(); // before its end is told
        while (engine.ended.pop()) |transfer| {
            transfer.assertState(.ended);
            transfer.state = .outside;
            transfer.on_done(transfer);
        }
    }

    fn reap(engine: *Engine) void {
        while (engine.fleet.nextTouched()) |shard| {
            while (shard.nextOver()) |over| engine.finish(over);
            if (!shard.is_broken) continue;
            while (shard.running) |handle| engine.stop(handle.transfer, .other, "libcurl gave up on its connections", .{});
            engine.fleet.renew(shard);
        }
    }

    fn checkDeadlines(engine: *Engine) void {
        const common = &engine.common;
        const now_ns = common.now_ns;
        while (engine.deadlines.first()) |entry| {
            if (entry.at_ns > now_ns) return;
            const transfer: *Transfer = @fieldParentPtr("deadline", entry);
            var connected_ns: ?u64 = null;
            if (transfer.handle) |handle| {
                connected_ns = handle.connectedNs();
                handle.noteProgress();
            }
            const due = transfer.due(connected_ns);
            if (due == null or due.?.at_ns > now_ns) {
                const tell = transfer.takeSilence(now_ns);
                const at_ns = transfer.lookAgainNs(connected_ns, now_ns);
                engine.deadlines.set(engine.gpa, entry, at_ns) catch unreachable; // it is only moved
                if (tell) |it| it(transfer);
                continue;
            }
            const name = transfer.origin.?.name;
            // An HTTP/2 connection is used again by whoever comes: one that has fallen silent would be the end of them all. Not while
            // others wait for theirs on it: a model may think for long.
            if (transfer.handle) |handle| {
                const lane = handle.lane;
                const since_ns = transfer.began_ns + (now_ns -| transfer.began_ns) / 4; // by then hands were shaken
                if (lane.origin.tls and !lane.origin.is_http_1 and lane.active == 1) common.sockets.cutSilent(lane, since_ns);
            }
            switch (due.?.failure) {
                .first_byte_timeout => engine.stop(transfer, .first_byte_timeout, "{s}: no reply within {d} ms", .{ name, due.?.ms }),
                .connect_timeout => engine.stop(transfer, .connect_timeout, "{s}: no connection within {d} ms", .{ name, due.?.ms }),
                .idle_timeout => engine.stop(transfer, .idle_timeout, "{s}: silent for {d} ms", .{ name, due.?.ms }),
                .total_timeout => engine.stop(transfer, .total_timeout, "{s}: not finished within {d} ms", .{ name, due.?.ms }),
                else => unreachable,
            }
        }
    }
};

test {
    _ = @import("engine_test.zig");
    _ = @import("engine_end_test.zig");
}
