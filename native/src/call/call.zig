//! A call: one request from its template to its reply, retries included.
//!
//! `create` renders the request on the caller's thread, `start` sends it. From then on everything happens on the http
//! engine's thread (other threads post messages to it), so a call needs no lock: the transfer ends, the reply is read, and
//! either the next attempt is put on a timer or `on_over` is called, exactly once. Only bodies above `big_body_bytes` leave
//! that thread: they are read by a pool worker, and `on_over` is called there.
//!
//! ## Pausing
//!
//! What the owner holds for a call (permits) need not be held while it backs off. `on_pause` says that a pause begins; when it
//! is over `on_resume` asks whether the next attempt may begin. On false the call waits until the owner says `proceed`, from any
//! thread, perhaps before `on_resume` has returned: that is a message as well, so it is looked at later. Exactly one `proceed` for each
//! false. A cancel ends the waiting call at once; a `proceed` that comes later finds it over.
//!
//! In virtual time a call's owner counts as busy but while it backs off or waits. `proceed` counts as busy from when it is said, so
//! between whoever gives the permits and the next attempt there is no moment in which nobody is.
//!
//! ## More or less than one transfer
//!
//! Where its request asks for it, an attempt that is slow to begin is given a second transfer (hedge.zig), and a call that wants what
//! another is fetching waits for that one's answer (following.zig).
//!
//! ## Taken as it comes
//!
//! The reply of a request with `stream` is read while it arrives (reading.zig). `on_deltas` says that there are pieces; the owner,
//! or a reader it has told, takes them from `reading.deltas`, and says `readOn` where that asks for it. Once something was
//! delivered there is no other attempt: nobody could take it back.
//!
//! ## Lifetime
//!
//! It is counted: the owner holds one reference, and a call that was started holds one until `on_over` has returned; a posted
//! cancel, `proceed` or `readOn` holds one until it was looked at. A call that is over does not change any more and needs nothing of the
//! runtime, which it may outlive (cache.zig): `release` touches memory and the plan, `cancel` and `proceed` nothing at all.

const std = @import("std");
const os = @import("../base/os.zig");
const sync = @import("../base/sync.zig");
const clock_file = @import("../base/clock.zig");
const answer = @import("answer.zig");
const engine_file = @import("../http/engine.zig");
const following = @import("following.zig");
const transfer_file = @import("../http/transfer.zig");
const extract = @import("../json/extract.zig");
const gates_file = @import("../gates.zig");
const hedge_file = @import("hedge.zig");
const hops_file = @import("../hops.zig");
const outgoing_file = @import("../outgoing.zig");
const reading_file = @import("../reading.zig");
const plan_file = @import("../graph/plan.zig");
const pool_file = @import("../pool/pool.zig");
const retry = @import("../graph/retry.zig");
const queueing = @import("queueing.zig");
const services_file = @import("../services.zig");
const template = @import("../graph/template.zig");
const timers_file = @import("../timers.zig");
const together_file = @import("../together.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Outgoing = outgoing_file.Outgoing;
const Plan = plan_file.Plan;
const Reading = reading_file.Reading;
const Transfer = transfer_file.Transfer;

/// C: gb_failure
pub const Failure = transfer_file.Failure;

const big_body_bytes = 64 * 1024;

pub const Services = services_file.Services;

pub const Call = struct {
    gpa: Allocator,
    /// Not to be touched once the call is over.
    services: *Services,
    plan: *Plan,
    request: *const plan_file.Request,
    program: *const extract.Program,
    references: sync.Atomic(u32) = .init(1),
    /// Called once, when `failure`, `reply` and the rest below are final.
    on_over: *const fn (*Call) void,
    /// Whoever made the call, for its `on_over`.
    owner: ?*anyopaque = null,
    /// Another attempt was decided: `attempts` so far, `failure` of the last one, `pause_ms` until the next.
    on_retry: ?*const fn (*Call) void = null,
    /// A pause begins, and it is over; see the top. Both on the engine's thread, as `on_retry`, which comes first.
    on_pause: ?*const fn (*Call) void = null,
    on_resume: ?*const fn (*Call) bool = null,
    /// There are pieces to take; see the top. On the engine's thread.
    on_deltas: ?*const fn (*Call) void = null,
    reading: ?*Reading = null,

    transfer: Transfer,
    /// Not needed once the reply is there; a graph's replies are kept as long as its run.
    outgoing: Outgoing = .{},
    hops: hops_file.Hops = .{},

    start_message: engine_file.Message,
    cancel_message: engine_file.Message,
    retry_message: engine_file.Message,
    proceed_message: engine_file.Message,
    read_on_message: engine_file.Message,
    over_message: engine_file.Message,
    read_on_asked: sync.Atomic(bool) = .init(false),
    backoff: timers_file.Timer,
    big_body: pool_file.Task,
    deadline_ns: u64 = 0, // 0: none
    phase: Phase = .new, // the engine's thread's
    seat: gates_file.Seat = .{ .on_turn = queueing.onTurn },
    /// Who takes turns with others where it waits.
    group: u64 = 0,
    has_wait_timer: bool = false,
    turn: ?gates_file.Verdict = null,
    /// The attempt's second transfer.
    hedge: ?*hedge_file.Hedge = null,
    member: together_file.Member = .{},
    /// Whose answer is its own as well.
    source: ?*Call = null,
    /// What the call brought is final.
    ended: sync.Atomic(bool) = .init(false),
    /// Its owner counts as busy in virtual time; while it backs off it does not, or the clock would never move.
    is_virtual: bool = false,
    cancel_asked: sync.Atomic(bool) = .init(false),

    /// `body` is what was read, not what is sent.
    read_from: bool = false,
    failure: Failure = .none,
    attempts: u32 = 0,
    /// The last pause between two attempts, as it was decided.
    pause_ms: u64 = 0,
    /// Under which it is looked for in a cache; what it is made of is gone by the time of `on_over`.
    cache_key: ?[32]u8 = null,
    reply: extract.Reply,
    detail: std.ArrayList(u8) = .empty,

    const Phase = enum {
        new,
        /// For another call's answer.
        following,
        /// For a permit of its provider's.
        queued,
        transferring,
        /// The timer runs.
        backing_off,
        /// For the owner's `proceed`.
        waiting,
        reading,
    };

    /// Renders the request. `values` are borrowed for this call. A request that cannot be rendered is made all the same: it
    /// ends at once, with the failure and the reason in `detail`.
    pub fn create(
        services: *Services,
        plan: *Plan,
        request_index: u32,
        values: template.Values,
        on_over: *const fn (*Call) void,
    ) error{OutOfMemory}!*Call {
        const gpa = services.gpa;
        const call = try gpa.create(Call);
        errdefer gpa.destroy(call);
        call.* = .{
            .gpa = gpa,
            .services = services,
            .plan = plan.retain(),
            .request = &plan.requests[request_index],
            .program = &plan.programs[request_index],
            .on_over = on_over,
            .is_virtual = services.timers.isVirtual(), // here: a cancel may come from another thread before `start` is through
            .transfer = .{ .method = plan.string(plan.requests[request_index].method), .on_done = onDone },
            .start_message = .{ .run = onStart },
            .cancel_message = .{ .run = onCancel },
            .retry_message = .{ .run = onRetry },
            .proceed_message = .{ .run = onProceed },
            .read_on_message = .{ .run = onReadOn },
            .over_message = .{ .run = onOverMessage },
            .backoff = .{ .fire = onBackoffOver },
            .big_body = .{ .run = onBigBody, .drop = readBigBody },
            .reply = .init(gpa),
        };
        errdefer call.deinit();
        const how: reading_file.How = @fromBackingInt(call.request.stream); // checked by the plan
        if (how != .none) {
            const reading = try gpa.create(Reading);
            reading.* = .init(gpa, how, call.program, &call.reply, call.request.event_bytes_max);
            call.reading = reading;
        }
        var diagnostics: template.Diagnostics = .{};
        call.outgoing.render(services, plan, call.request, values, &diagnostics) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.PathNotFound, error.NotJson => {
                call.failure = .template;
                const text = try outgoing_file.describeTemplate(gpa, err, diagnostics);
                defer gpa.free(text);
                try call.detail.appendSlice(gpa, text);
            },
        };
        return call;
    }

    fn deinit(call: *Call) void {
        const gpa = call.gpa;
        if (call.source) |source| source.release();
        call.outgoing.deinit(gpa);
        if (call.reading) |reading| {
            reading.deinit();
            gpa.destroy(reading);
        }
        call.hops.deinit(gpa);
        call.transfer.deinit(gpa);
        call.reply.deinit();
        call.detail.deinit(gpa);
        call.plan.release();
    }

    pub fn retain(call: *Call) *Call {
        _ = call.references.fetchAdd(1, .monotonic);
        return call;
    }

    /// Ends a reference. The last one frees the call.
    pub fn release(call: *Call) void {
        // Acquire-release: the last one out sees every other holder's last write.
        if (call.references.fetchSub(1, .acq_rel) != 1) return;
        const gpa = call.gpa;
        call.deinit();
        gpa.destroy(call);
    }

    pub fn start(call: *Call, timeout_ns: u64) void {
        assert(call.phase == .new);
        _ = call.retain();
        call.deadline_ns = if (timeout_ns == 0) 0 else call.services.clock.now() + timeout_ns;
        if (call.services.engine.onEngineThread()) onStart(&call.start_message) else call.services.engine.post(&call.start_message);
    }

    /// Any thread, any number of times. The call still ends through `on_over`.
    pub fn cancel(call: *Call) void {
        if (call.ended.load(.acquire)) return; // pairs with the store in `over`
        if (call.cancel_asked.swap(true, .acq_rel)) return; // pairs with the load in onStart: at most one message
        _ = call.retain();
        // Until the message is looked at something can still happen: virtual time must not jump to the end of a backoff.
        if (call.is_virtual) call.services.timers.enter();
        call.services.engine.post(&call.cancel_message);
    }

    /// After `on_resume` was false: the next attempt may begin. Any thread.
    pub fn proceed(call: *Call) void {
        if (call.ended.load(.acquire)) return; // pairs with the store in `over`
        _ = call.retain();
        if (call.is_virtual) call.services.timers.enter(); // from here on the owner is busy again
        call.services.engine.post(&call.proceed_message);
    }

    /// The reader has taken what held the transfer up. Any thread.
    pub fn readOn(call: *Call) void {
        if (call.ended.load(.acquire)) return; // pairs with the store in `over`
        if (call.read_on_asked.swap(true, .acq_rel)) return; // pairs with the swap in onReadOn: at most one message
        _ = call.retain();
        call.services.engine.post(&call.read_on_message);
    }

    pub fn isCancelAsked(call: *const Call) bool {
        return call.cancel_asked.load(.monotonic);
    }

    // ------------------------------------------------------------------------------- on the engine's thread

    fn onStart(message: *engine_file.Message) void {
        const call: *Call = @fieldParentPtr("start_message", message);
        if (call.failure != .none) return call.over();
        if (call.cancel_asked.load(.acquire)) return call.overAsCancelled(); // pairs with the swap in cancel
        if (!following.follows(call)) queueing.attempt(call);
    }

    fn onCancel(message: *engine_file.Message) void {
        const call: *Call = @fieldParentPtr("cancel_message", message);
        defer call.release();
        defer if (call.is_virtual) call.services.timers.leave();
        if (call.ended.load(.acquire)) return; // pairs with the store in `over`
        switch (call.phase) {
            .new, .reading => {},
            .queued => if (call.turn == null) {
                call.seat.leave();
                queueing.over(call, .refused);
            },
            .following => following.onCancel(call),
            .transferring => hedge_file.cancel(call),
            .backing_off => if (call.services.timers.cancel(&call.backoff)) {
                if (call.is_virtual) call.services.timers.enter();
                call.overAsCancelled();
            },
            .waiting => {
                if (call.is_virtual) call.services.timers.enter();
                call.overAsCancelled();
            },
        }
    }

    fn onReadOn(message: *engine_file.Message) void {
        const call: *Call = @fieldParentPtr("read_on_message", message);
        defer call.release();
        _ = call.read_on_asked.swap(false, .acq_rel); // pairs with the swap in readOn
        if (call.phase == .transferring) call.services.engine.proceed(&call.transfer);
    }

    pub fn attemptNow(call: *Call) void {
        call.attempts += 1;
        call.hops.begin(call.gpa, os.monotonicNs());
        if (call.reading) |reading| reading.reset();
        call.send(call.outgoing.urlText(), call.outgoing.headers);
    }

    fn send(call: *Call, url: [:0]const u8, headers: []const [:0]const u8) void {
        call.phase = .transferring;
        const transfer = &call.transfer;
        transfer.reset(); // keeps its buffers
        call.fill(transfer, url, headers);
        if (call.reading != null) {
            transfer.on_body = onBody;
            transfer.on_news = onNews;
        }
        hedge_file.arm(call);
        call.services.engine.submit(transfer);
    }

    /// What is sent, and what time and room the reply has.
    pub fn fill(call: *Call, transfer: *Transfer, url: [:0]const u8, headers: []const [:0]const u8) void {
        const request = call.request;
        transfer.method = call.plan.string(request.method);
        transfer.url = url;
        transfer.headers = headers;
        transfer.body = if (request.flags.body) call.outgoing.body.items else null;
        transfer.connect_timeout_ms = request.connect_timeout_ms;
        transfer.first_byte_timeout_ms = request.first_byte_timeout_ms;
        transfer.idle_timeout_ms = request.idle_timeout_ms;
        transfer.total_timeout_ms = call.hops.leftMs(request.total_timeout_ms);
        transfer.body_bytes_max = request.body_bytes_max;
        transfer.wire_bytes_max = request.wire_bytes_max;
        transfer.head_bytes_max = request.head_bytes_max;
        transfer.verify_tls = !request.flags.insecure;
        transfer.learns = request.admission != 0;
        transfer.route = call.plan.routeOf(request);
        if (call.leftMs()) |left| {
            const bounded: u32 = @intCast(@min(@max(left, 1), std.math.maxInt(u32)));
            const total = transfer.total_timeout_ms;
            transfer.total_timeout_ms = if (total == 0) bounded else @min(total, bounded);
        }
    }

    /// From inside libcurl.
    fn onBody(transfer: *Transfer, bytes: []const u8) Transfer.Taken {
        const call: *Call = @fieldParentPtr("transfer", transfer);
        const reading = call.reading.?;
        if (!call.isStreamed()) return transfer.keepBody(call.gpa, bytes);
        if (reading.deltas.isFull()) return .full;
        const tell = reading.take(transfer.media, bytes) catch |err| switch (err) {
            error.Whole => return transfer.keepBody(call.gpa, bytes),
            error.OutOfMemory, error.TooLarge, error.BadJson, error.Provider => |fault| {
                answer.noteFault(call, reading, fault);
                return .failed;
            },
        };
        if (tell) call.services.engine.noteNews(transfer);
        return .taken;
    }

    /// Errors and redirects are not for a reader.
    pub fn isStreamed(call: *const Call) bool {
        return call.transfer.status >= 200 and call.transfer.status < 300;
    }

    fn onNews(transfer: *Transfer) void {
        const call: *Call = @fieldParentPtr("transfer", transfer);
        call.seat.noteHead(transfer.status);
        if (call.on_deltas) |tell| tell(call);
    }

    fn leftMs(call: *const Call) ?u64 {
        if (call.deadline_ns == 0) return null;
        return (call.deadline_ns -| call.services.clock.now()) / std.time.ns_per_ms;
    }

    fn onDone(transfer: *Transfer) void {
        const call: *Call = @fieldParentPtr("transfer", transfer);
        if (call.hedge == null or hedge_file.isOver(call, transfer)) call.transferOver();
    }

    pub fn transferOver(call: *Call) void {
        const transfer = &call.transfer;
        if (transfer.failure == .none) switch (call.follow()) {
            .stay => {},
            .go => return call.send(call.hops.url, call.hops.lines.items),
            .refused => |words| transfer.fail(call.gpa, .redirect, "{s}", .{words}),
        };
        call.phase = .reading;
        if (call.reading) |reading| if (transfer.failure == .none and call.isStreamed() and transfer.body_received.items.len == 0) {
            _ = reading.finish() catch |err| answer.noteFault(call, reading, err); // whoever is told of the end takes what there is
        };
        call.failure = transfer.failure;
        if (transfer.failure == .none and transfer.status < 400 and transfer.responseBody().len > big_body_bytes) {
            return call.services.pool.submit(&call.big_body);
        }
        call.conclude();
    }

    fn follow(call: *Call) hops_file.Step {
        if (call.cancel_asked.load(.monotonic)) return .stay; // its end is on its way
        const services = call.services;
        return call.hops.follow(call.gpa, services.engine.common.table, &call.transfer, call.outgoing.headers, call.request.redirects_max) catch {
            call.transfer.fail(call.gpa, .out_of_memory, "no memory for the redirect", .{});
            return .stay;
        };
    }

    fn onBigBody(task: *pool_file.Task, _: *pool_file.Worker) void {
        readBigBody(task);
    }

    fn readBigBody(task: *pool_file.Task) void {
        const call: *Call = @fieldParentPtr("big_body", task);
        answer.read(call);
        queueing.settle(call, false);
        answer.giveWhole(call);
        // A whole reply with a good status is never retried. Those that follow are the engine's thread's.
        if (call.member.party != null) call.services.engine.post(&call.over_message) else call.over();
    }

    fn onOverMessage(message: *engine_file.Message) void {
        const call: *Call = @fieldParentPtr("over_message", message);
        call.over();
    }

    fn conclude(call: *Call) void {
        const transfer = &call.transfer;
        answer.read(call);
        queueing.settle(call, false);
        answer.giveWhole(call);
        if (call.failure == .none or call.cancel_asked.load(.acquire)) return call.over(); // pairs with the swap in cancel
        const policy = call.request.retry.policy();
        const failed: retry.Failed = .{
            .attempt = call.attempts,
            .failure = call.failure,
            .status = queueing.statusOf(call),
            .retry_after_ms = transfer.retry_after_ms,
            .retryable = if (call.reading != null and call.reading.?.has_delivered) false else null,
            .quota_exhausted = queueing.hasNoQuota(call),
        };
        const delay_ms = retry.delayMs(policy, failed, call.leftMs(), call.services.roll()) orelse return call.over();
        _ = call.services.retried[@backingInt(retry.reasonOf(failed))].fetchAdd(1, .monotonic);
        call.phase = .backing_off;
        const due = call.services.clock.now() + delay_ms * std.time.ns_per_ms;
        call.services.timers.add(&call.backoff, due) catch return call.over();
        // The timer may have fired by now; what it posts is looked at when this returns.
        call.pause_ms = delay_ms;
        if (call.on_retry) |tell| tell(call);
        if (call.on_pause) |pause| pause(call);
        if (call.is_virtual) call.services.timers.leave();
    }

    fn onBackoffOver(timer: *timers_file.Timer) void {
        const call: *Call = @fieldParentPtr("backoff", timer);
        if (call.is_virtual) call.services.timers.enter();
        call.services.engine.post(&call.retry_message);
    }

    fn onRetry(message: *engine_file.Message) void {
        const call: *Call = @fieldParentPtr("retry_message", message);
        if (call.phase == .queued) return queueing.onQueueTimer(call);
        if (call.phase == .following) return following.onTimer(call);
        if (call.cancel_asked.load(.acquire)) return call.overAsCancelled(); // pairs with the swap in cancel
        if (call.on_resume) |may| if (!may(call)) {
            call.phase = .waiting;
            following.cede(call); // see there: nobody waits in a circle
            if (call.is_virtual) call.services.timers.leave();
            return;
        };
        call.attemptAgain();
    }

    fn onProceed(message: *engine_file.Message) void {
        const call: *Call = @fieldParentPtr("proceed_message", message);
        defer call.release();
        if (call.ended.load(.acquire)) { // cancelled meanwhile; pairs with the store in `over`
            if (call.is_virtual) call.services.timers.leave();
            return;
        }
        assert(call.phase == .waiting);
        if (call.cancel_asked.load(.acquire)) return call.overAsCancelled(); // pairs with the swap in cancel
        call.attemptAgain();
    }

    fn attemptAgain(call: *Call) void {
        call.reply.clear();
        call.detail.clearRetainingCapacity();
        if (!following.follows(call)) queueing.attempt(call);
    }

    pub fn say(call: *Call, text: []const u8) void {
        call.detail.clearRetainingCapacity();
        // Out of memory loses the words, not the failure.
        call.detail.appendSlice(call.gpa, text) catch {};
    }

    pub fn overAsCancelled(call: *Call) void {
        call.failure = .cancelled;
        call.over();
    }

    pub fn overWith(call: *Call, failure: Failure, words: []const u8) void {
        call.failure = failure;
        call.say(words);
        call.over();
    }

    pub fn over(call: *Call) void {
        call.outgoing.deinit(call.gpa);
        call.ended.store(true, .release); // pairs with the loads in cancel and proceed
        following.onOver(call);
        call.on_over(call);
        call.release();
    }

    // Afterwards.
    pub const told = answer.told;
    pub const value = answer.value;
    pub const receivedBody = answer.receivedBody;
    pub const readFrom = answer.readFrom;
};
