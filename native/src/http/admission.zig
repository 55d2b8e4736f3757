//! Admission: whether one more request may be sent to a provider now. One Controller for each base URL, key and model. Pure: it
//! knows no socket, thread or clock; time, dice and outcomes come in as arguments.
//!
//!     ask      -> go, with a Permit      sent at once, and settled exactly once
//!              -> wait                   ask again then, or when anything was settled
//!              -> open                   the circuit breaker lets nothing through
//!     askHedge -> a Permit for what is sent a second time (hedging.zig), or nothing; it never waits
//!     settle   what came of a permit's request
//!
//! What holds a request back, in this order: the breaker (breaker.zig), a pause that a refusal has brought, how many the user allows
//! at once (terms.zig), what the server bears (congestion.zig), and the quotas of requests and tokens (quota.zig), the user's and those the
//! server announces (announced.zig). Tokens are not known before the reply: an estimate is reserved, and corrected by what
//! the reply says was used. The estimate itself is learned.
//!
//! Whoever waits for a permit holds none: a permit belongs to one transfer, from before it is submitted until it is over. So
//! nobody can wait in a circle. Who of those that wait is next, is turns.zig's.

const std = @import("std");
const announced_file = @import("announced.zig");
const breaker_file = @import("breaker.zig");
const congestion_file = @import("congestion.zig");
const hedging_file = @import("hedging.zig");
const permit_file = @import("permit.zig");
const quota_file = @import("quota.zig");
const row_file = @import("row.zig");
const terms_file = @import("terms.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
pub const Announced = announced_file.Announced;
const Kind = announced_file.Kind;
const Quota = quota_file.Quota;

pub const Flags = terms_file.Flags;
pub const Options = terms_file.Options;
pub const terms_last_ns = terms_file.lasts_ns;
pub const never = quota_file.never;
pub const kind_count = announced_file.kind_count;

pub const Permit = permit_file.Permit;
pub const Ending = permit_file.Ending;
pub const Result = permit_file.Result;

pub const Answer = union(enum) {
    go: Permit,
    /// Not before then; `never`: not before something is settled.
    wait: u64,
    /// The next probe may go then.
    open: u64,
};

/// Spread over all that wait after a pause: its last part, at most so long.
const spread_max_ns = 2 * std.time.ns_per_s;
/// Nobody waits longer because a server says so, as with retries; it may say so again.
const pause_max_ms: u64 = 2 * std.time.ms_per_min;
const bytes_per_token = 4.0;
const output_tokens_first = 256.0;
/// What is larger carries pictures or sound, whose bytes say little about tokens.
const input_tokens_max = 1 << 15;
/// Whatever a reply says.
const used_tokens_max = 1 << 30;

pub const Controller = struct {
    gpa: Allocator,
    terms: terms_file.Terms = .{},
    in_flight: u32 = 0,
    last_number: u64 = 0,
    cooled_until_ns: u64 = 0,
    latest_ns: u64 = 0,
    explained: row_file.Explained = .{},
    /// Of the last fault.
    broken_port: u16 = 0,
    /// What it was that held back whoever asked last.
    held: congestion_file.Held = .nothing,
    breaker: breaker_file.Breaker = .{},
    /// The number of the first request after it last opened.
    opened_number: u64 = 0,
    congestion: congestion_file.Congestion = .{},
    hedging: hedging_file.Hedging = .{},
    /// The server's.
    quotas: [kind_count]Quota = @splat(.{}),
    /// The user's. Apart: of a limit of a day and one of a minute neither holds what the other does.
    given: [kind_count]Quota = @splat(.{}),
    tokens_per_byte: f64 = 1.0 / bytes_per_token,
    output_tokens: f64 = output_tokens_first,
    counts: Counts = .{},

    const Counts = struct { admitted: u64 = 0, limited: u64 = 0, overloaded: u64 = 0, cool_downs: u64 = 0, refused: u64 = 0, hedged: u64 = 0 };

    pub fn deinit(controller: *Controller) void {
        for (&controller.quotas) |*quota| quota.deinit(controller.gpa);
        for (&controller.given) |*quota| quota.deinit(controller.gpa);
    }

    /// Before each `ask`: what its request's user allows, see terms.zig. True: something is different, and others that wait may ask again.
    pub fn configure(controller: *Controller, given_ns: u64, options: *const Options) Allocator.Error!bool {
        const now_ns = controller.noteTime(given_ns);
        const before = controller.terms.heard.flags;
        if (!controller.terms.hear(now_ns, options)) return false;
        errdefer controller.terms = .{}; // the next one says it anew
        const terms = &controller.terms;
        if (terms.flags.learn) for (&controller.quotas) |*quota| try quota.watch(controller.gpa);
        try controller.given[@backingInt(Kind.requests)].give(controller.gpa, terms.requests_per_minute.value());
        try controller.given[@backingInt(Kind.tokens)].give(controller.gpa, terms.tokens_per_minute.value());
        // What nobody wants any more is not to hold anything back.
        if (before.adaptive and !terms.flags.adaptive) controller.congestion = .{};
        if (before.learn and !terms.flags.learn) for (&controller.quotas) |*quota| quota.unhear();
        return true;
    }

    fn quotaOf(controller: *Controller, kind: Kind) *Quota {
        return &controller.quotas[@backingInt(kind)];
    }

    /// May a request of `body_bytes` be sent?
    pub fn ask(controller: *Controller, given_ns: u64, body_bytes: u64) Answer {
        const now_ns = controller.noteTime(given_ns);
        if (!controller.terms.flags.breaker) controller.breaker.release(now_ns);
        var is_probe = false;
        if (controller.terms.last.flags.breaker) {
            if (controller.refusesUntil(now_ns)) |until_ns| return .{ .open = until_ns };
            if (controller.breaker.isDue(now_ns)) {
                if (controller.probeWaits(now_ns, body_bytes)) |until_ns| return .{ .wait = until_ns };
                is_probe = controller.breaker.ask(now_ns) == .probe;
            }
        }
        const permit = controller.permitFor(now_ns, body_bytes, is_probe);
        const held = controller.held;
        // The breaker's probe finds out; nothing of what was learned before need be right.
        if (!is_probe) if (controller.waits(now_ns, &permit)) |until_ns| return .{ .wait = until_ns };
        controller.hedging.noteAdmitted();
        controller.admit(now_ns, &permit, held);
        return .{ .go = permit };
    }

    /// Of somebody who wants a breaker: it lets nothing through until then; nobody waits in line to hear it. It is counted.
    pub fn refusesUntil(controller: *Controller, given_ns: u64) ?u64 {
        const until_ns = controller.breaker.shutUntil(controller.noteTime(given_ns)) orelse return null;
        controller.counts.refused += 1;
        return until_ns;
    }

    /// May what is on its way be sent a second time? Null: not now; nothing is noted of it.
    pub fn askHedge(controller: *Controller, given_ns: u64, body_bytes: u64) ?Permit {
        const now_ns = controller.noteTime(given_ns);
        if (controller.breaker.state != .closed or !controller.hedging.canAfford()) return null;
        const permit = controller.permitFor(now_ns, body_bytes, false);
        const held = controller.held;
        defer controller.held = held;
        if (controller.waits(now_ns, &permit) != null) return null;
        controller.hedging.spend();
        controller.counts.hedged += 1;
        controller.admit(now_ns, &permit, .nothing);
        return permit;
    }

    fn permitFor(controller: *const Controller, now_ns: u64, body_bytes: u64, is_probe: bool) Permit {
        return .{
            .sent_ns = now_ns,
            .number = controller.last_number + 1,
            .input_tokens = @min(tokens(@as(f64, @floatFromInt(body_bytes)) * controller.tokens_per_byte), input_tokens_max),
            .output_tokens = tokens(controller.output_tokens),
            .in_flight = controller.in_flight + 1,
            .is_probe = @intFromBool(is_probe),
        };
    }

    fn admit(controller: *Controller, now_ns: u64, permit: *const Permit, held: congestion_file.Held) void {
        controller.last_number += 1;
        controller.explained.noteSent(now_ns, controller.last_number);
        controller.in_flight += 1;
        controller.counts.admitted += 1;
        controller.congestion.noteSent(now_ns, controller.in_flight, held);
        for (&controller.quotas, &controller.given, 0..) |*quota, *own, i| {
            const amount = amountOf(@fromBackingInt(@as(u2, @intCast(i))), permit.input_tokens, permit.output_tokens);
            quota.take(now_ns, amount);
            own.take(now_ns, amount);
        }
    }

    fn waits(controller: *Controller, now_ns: u64, permit: *const Permit) ?u64 {
        controller.held = .nothing;
        if (controller.isFull()) return controller.terms.lapseAt(now_ns) orelse never;
        if (now_ns < controller.cooled_until_ns) return controller.cooled_until_ns;
        const tried_until_ns = controller.explained.triedUntil(controller.last_number);
        if (now_ns < tried_until_ns) return tried_until_ns;
        if (controller.congestion.fullUntil(now_ns, controller.in_flight)) |until_ns| {
            controller.held = .window;
            return until_ns;
        }
        const hold = controller.congestion.sendAt(now_ns);
        controller.held = hold.by;
        if (hold.until_ns > now_ns) return hold.until_ns;
        var free_ns = controller.givenAt(now_ns, permit);
        for (&controller.quotas, 0..) |*quota, i| {
            const heard_ns = quota.freeAt(now_ns, amountOf(@fromBackingInt(@as(u2, @intCast(i))), permit.input_tokens, permit.output_tokens));
            // Nobody is kept waiting for tomorrow's quota: the server says itself that today's is used up.
            if (heard_ns - now_ns <= pause_max_ms * std.time.ns_per_ms) free_ns = @max(free_ns, heard_ns);
        }
        return if (free_ns > now_ns) free_ns else null;
    }

    /// When what users allow in a minute has room: `now_ns` or later.
    fn givenAt(controller: *Controller, now_ns: u64, permit: *const Permit) u64 {
        var free_ns = now_ns;
        for (&controller.given, 0..) |*quota, i| {
            free_ns = @max(free_ns, quota.freeAt(now_ns, amountOf(@fromBackingInt(@as(u2, @intCast(i))), permit.input_tokens, permit.output_tokens)));
        }
        return if (free_ns > now_ns) @min(free_ns, controller.terms.lapseAt(now_ns) orelse never) else now_ns;
    }

    /// As many are on their way as the user allows.
    fn isFull(controller: *const Controller) bool {
        const most = controller.terms.concurrency.value();
        return most != 0 and controller.in_flight >= most;
    }

    /// The breaker's probe finds out; nothing of what was learned need be right. But what the user allows and what the server has
    /// asked for hold for it as well.
    fn probeWaits(controller: *Controller, now_ns: u64, body_bytes: u64) ?u64 {
        if (controller.isFull()) return controller.terms.lapseAt(now_ns) orelse never;
        if (now_ns < controller.cooled_until_ns) return controller.cooled_until_ns;
        const permit = controller.permitFor(now_ns, body_bytes, true);
        const free_ns = controller.givenAt(now_ns, &permit);
        return if (free_ns > now_ns) free_ns else null;
    }

    fn amountOf(kind: Kind, input: u64, output: u64) u64 {
        return switch (kind) {
            .requests => 1,
            .tokens => input + output,
            .input_tokens => input,
            .output_tokens => output,
        };
    }

    fn tokens(estimate: f64) u32 {
        return @intFromFloat(std.math.clamp(@ceil(estimate), 1, 1e9));
    }

    /// The request of a permit is over. True: the breaker has opened or closed.
    pub fn settle(controller: *Controller, given_ns: u64, permit: *const Permit, result: *const Result) Allocator.Error!bool {
        const now_ns = controller.noteTime(given_ns);
        assert(controller.in_flight > 0);
        controller.in_flight -= 1;
        controller.correctQuotas(now_ns, permit, result);
        if (result.first_byte_ns != 0) controller.hedging.noteFirstByte(result.first_byte_ns);
        const congestion = &controller.congestion;
        switch (result.ending) {
            .answered => {
                congestion.noteSuccess(now_ns, permit.number, now_ns -| permit.sent_ns);
                controller.explained.noteTaken(permit.number);
            },
            .limited, .overloaded => |ending| {
                (if (ending == .limited) &controller.counts.limited else &controller.counts.overloaded).* += 1;
                controller.coolDown(now_ns, permit, result);
            },
            .fault, .unknown => congestion.noteVoid(permit.sent_ns),
        }
        var turned = false;
        if (controller.terms.flags.breaker or permit.is_probe != 0) {
            const outcome: breaker_file.Outcome = switch (result.ending) {
                .answered, .limited => .success,
                .overloaded => .fault,
                // What shared a connection that broke is one fault, however many streams it had.
                .fault => if (result.broken_port != 0 and result.broken_port == controller.broken_port) .unknown else .fault,
                .unknown => .unknown,
            };
            if (result.ending == .fault) controller.broken_port = result.broken_port;
            turned = controller.breaker.note(now_ns, outcome, permit.is_probe != 0, result.dice);
            if (turned and controller.breaker.state == .open) controller.opened_number = controller.last_number + 1;
            if (turned and controller.breaker.state == .closed and outcome == .success) congestion.restart(now_ns, controller.last_number + 1);
            // Then the others are being served, and nothing begins anew.
            if (result.ending == .answered and permit.number >= controller.opened_number and controller.breaker.noteAnswered(now_ns)) turned = true;
        }
        // Last, for it may fail, and everything else is done.
        if (result.announced) |announced| if (controller.terms.flags.learn) {
            for (&controller.quotas, &announced.limits) |*quota, said| try quota.hear(controller.gpa, now_ns, permit.number, said);
        };
        return turned;
    }

    /// The reply of a permit's request has begun, with that status. Where it is the breaker's probe and the server is well again, nobody
    /// need wait for the rest of it. True: the breaker has closed.
    pub fn noteHead(controller: *Controller, given_ns: u64, permit: *Permit, status: u16) bool {
        if (permit.is_probe == 0 or Ending.ofStatus(status) != .answered) return false;
        const now_ns = controller.noteTime(given_ns);
        permit.is_probe = 0;
        _ = controller.breaker.note(now_ns, .success, true, 0);
        controller.congestion.restart(now_ns, controller.last_number + 1);
        return true;
    }

    fn correctQuotas(controller: *Controller, now_ns: u64, permit: *const Permit, result: *const Result) void {
        var input: u64 = permit.input_tokens;
        var output: u64 = permit.output_tokens;
        const is_refused = result.ending == .limited or result.ending == .overloaded;
        if (result.unsent) {
            controller.congestion.minutes.remove(now_ns, permit.sent_ns);
            input = 0;
            output = 0;
            controller.quotaOf(.requests).correct(now_ns, permit.sent_ns, 1, 0);
            controller.given[@backingInt(Kind.requests)].correct(now_ns, permit.sent_ns, 1, 0);
        } else if (is_refused) {
            output = 0; // nothing was written, and what was not taken in is mostly not counted
            input = 0;
            // The user's own limit is of what is sent; the server says itself what it counts.
            if (controller.terms.flags.learn) controller.quotaOf(.requests).correct(now_ns, permit.sent_ns, 1, 0);
        } else {
            if (result.input_tokens >= 0) {
                input = @intCast(@min(result.input_tokens, used_tokens_max));
                if (result.body_bytes > 0 and permit.input_tokens < input_tokens_max) {
                    const ratio = @as(f64, @floatFromInt(input)) / @as(f64, @floatFromInt(result.body_bytes));
                    controller.tokens_per_byte += (ratio - controller.tokens_per_byte) / 8;
                }
            }
            if (result.output_tokens >= 0) {
                output = @intCast(@min(result.output_tokens, used_tokens_max));
                controller.output_tokens += (@as(f64, @floatFromInt(output)) - controller.output_tokens) / 8;
            }
        }
        inline for (.{ Kind.tokens, Kind.input_tokens, Kind.output_tokens }) |kind| {
            const before = amountOf(kind, permit.input_tokens, permit.output_tokens);
            const after = amountOf(kind, input, output);
            controller.quotaOf(kind).correct(now_ns, permit.sent_ns, before, after);
            controller.given[@backingInt(kind)].correct(now_ns, permit.sent_ns, before, after);
            if (!is_refused) controller.quotaOf(kind).repace(now_ns, before, after);
        }
        if (result.unsent) controller.quotaOf(.requests).repace(now_ns, 1, 0);
    }

    /// `reset_ms`: until it is as new; `each_ns`: so long takes one that it allows.
    const Explanation = struct { quota: *Quota, reset_ms: u32, each_ns: u64 };

    /// The server says itself that a quota is used up, and by our count it nearly is. What is used up is spread evenly from here on.
    /// An estimate of ours may be far too high: what remains is too little only where it is a small part of the limit as well.
    fn explains(controller: *Controller, now_ns: u64, permit: *const Permit, result: *const Result) ?Explanation {
        const announced = result.announced orelse return null;
        if (!controller.terms.flags.learn or result.ending != .limited) return null;
        var explanation: ?Explanation = null;
        for (&announced.limits, 0..) |*said, i| {
            if (said.limit == announced_file.Limit.unsaid or said.remaining == announced_file.Limit.unsaid) continue;
            const expected = amountOf(@fromBackingInt(@as(u2, @intCast(i))), permit.input_tokens, permit.output_tokens);
            const amount = @min(expected, @max(1, said.limit / 8));
            if (said.remaining >= amount) continue;
            const quota = &controller.quotas[i];
            quota.noteUsedUp(now_ns);
            // Or it is heard for the first time, or was another one before.
            if (quota.limit == 0 or now_ns < quota.scaled_until_ns or quota.used(now_ns) + amount >= quota.limit / 4 * 3) {
                explanation = explanation orelse .{
                    .quota = quota,
                    .reset_ms = if (said.reset_ms == announced_file.Limit.unsaid) 0 else said.reset_ms,
                    .each_ns = if (quota.period_ns == quota_file.minute_ns) quota.paceNs(amount) else 0,
                };
            }
        }
        return explanation;
    }

    /// Everybody waits; and those that wait do not come back all at once: from then on there is a window, and with it a pace.
    fn coolDown(controller: *Controller, now_ns: u64, permit: *const Permit, result: *const Result) void {
        var pause_ns: u64 = 0;
        if (controller.explains(now_ns, permit, result)) |it| {
            pause_ns = controller.explained.noteRefused(now_ns, permit.number, controller.last_number + 1, it.reset_ms, it.each_ns);
            if (controller.explained.hasWaited(permit.sent_ns, it.each_ns)) it.quota.countInFull();
            controller.congestion.noteExplained(now_ns, permit.sent_ns);
        } else if (controller.terms.flags.adaptive) {
            pause_ns = controller.congestion.noteRefused(now_ns, permit.sent_ns, permit.number, controller.last_number + 1, permit.in_flight, result.ending == .overloaded) orelse 0;
        } else controller.congestion.noteExplained(now_ns, permit.sent_ns); // nobody wants to know
        if (result.retry_after_ms >= 0) {
            const asked_ns = @as(u64, @intCast(@min(result.retry_after_ms, pause_max_ms))) * std.time.ns_per_ms;
            // Where one such pause after the other was too short, our own are longer ones.
            pause_ns = if (controller.congestion.row.tries()) @max(asked_ns, pause_ns) else asked_ns;
        }
        if (pause_ns == 0) return;
        const spread_ns: u64 = @intCast(@as(u128, @min(pause_ns / 10, spread_max_ns)) * result.dice >> 64);
        if (now_ns >= controller.cooled_until_ns) controller.counts.cool_downs += 1;
        controller.cooled_until_ns = @max(controller.cooled_until_ns, now_ns + pause_ns + spread_ns);
    }

    /// When the clock has gone backwards (virtual time has ended) what was noted by it is void.
    pub fn noteTime(controller: *Controller, now_ns: u64) u64 {
        if (now_ns + std.time.ns_per_s < controller.latest_ns) {
            controller.cooled_until_ns = 0;
            controller.explained.rewind();
            controller.breaker.rewind(now_ns);
            controller.congestion.rewind(now_ns);
            controller.terms.rewind(now_ns);
            for (&controller.quotas) |*quota| quota.forget();
            for (&controller.given) |*quota| quota.forget();
            controller.latest_ns = now_ns;
        }
        controller.latest_ns = @max(controller.latest_ns, now_ns); // threads look at the clock before they come here
        return controller.latest_ns;
    }

    pub fn countsTokens(controller: *const Controller) bool {
        for ([_]Kind{ .tokens, .input_tokens, .output_tokens }) |kind| {
            const i = @backingInt(kind);
            if (controller.quotas[i].limit != 0 or controller.given[i].limit != 0) return true;
        }
        return false;
    }

    /// Nothing is on its way, and nothing holds the next request back: to forget it would lose no more than what was learned.
    pub fn isIdle(controller: *Controller, now_ns: u64) bool {
        if (controller.in_flight != 0 or !controller.breaker.isQuiet(now_ns) or now_ns < controller.cooled_until_ns) return false;
        // What the user allows in a minute is a promise.
        for (&controller.given) |*quota| if (quota.limit != 0 and quota.used(now_ns) > 0) return false;
        return true;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "a second permit is given out of what was saved, and only where nothing holds it back" {
    const ms = std.time.ns_per_ms;
    var controller: Controller = .{ .gpa = testing.allocator };
    defer controller.deinit();
    _ = try controller.configure(0, &.{ .flags = .{ .breaker = true }, .concurrency = 2 });
    for (0..20) |i| {
        try testing.expectEqual(null, controller.askHedge(i * ms, 100));
        const permit = controller.ask(i * ms, 100).go;
        _ = try controller.settle(i * ms, &permit, &.{ .ending = .answered, .first_byte_ns = i * ms + 1 });
    }
    try testing.expectEqual(18 * ms + 1, controller.hedging.patienceNs().?);
    const first = controller.ask(100 * ms, 100).go;
    const other = controller.ask(100 * ms, 100).go;
    try testing.expectEqual(null, controller.askHedge(100 * ms, 100)); // no more at once
    _ = try controller.settle(101 * ms, &other, &.{ .ending = .unknown });
    const second = controller.askHedge(101 * ms, 100).?;
    try testing.expectEqual(null, controller.askHedge(101 * ms, 100));
    try testing.expectEqual(2, controller.in_flight);
    try testing.expectEqual(1, controller.counts.hedged);
    for ([_]Permit{ first, second }) |permit| _ = try controller.settle(102 * ms, &permit, &.{ .ending = .answered });
    // What was saved since is not for a server in trouble, nor for one that has asked for a pause.
    var now_ns: u64 = 200 * ms;
    while (!controller.hedging.canAfford()) : (now_ns += ms) {
        const permit = controller.ask(now_ns, 100).go;
        _ = try controller.settle(now_ns, &permit, &.{ .ending = .answered });
    }
    const refused = controller.ask(now_ns, 100).go;
    _ = try controller.settle(now_ns, &refused, &.{ .ending = .limited, .retry_after_ms = 50 });
    try testing.expectEqual(null, controller.askHedge(now_ns + 10 * ms, 100));
    now_ns += 100 * ms;
    while (controller.breaker.state == .closed) : (now_ns += ms) {
        const permit = controller.ask(now_ns, 100).go;
        _ = try controller.settle(now_ns, &permit, &.{ .ending = .fault });
    }
    try testing.expectEqual(null, controller.askHedge(now_ns, 100));
    try testing.expectEqual(.nothing, controller.held);
}

test "a connection that breaks is one fault of the server, whatever it carried" {
    for ([_]bool{ true, false }) |shared| {
        var controller: Controller = .{ .gpa = testing.allocator };
        defer controller.deinit();
        _ = try controller.configure(0, &.{ .flags = .{ .breaker = true } });
        var permits: [40]Permit = undefined;
        for (&permits) |*permit| permit.* = controller.ask(0, 100).go;
        for (&permits, 1..) |*permit, i| _ = try controller.settle(0, permit, &.{ .ending = .fault, .broken_port = if (shared) 7 else @intCast(i) });
        try testing.expectEqual(shared, controller.ask(0, 100) == .go);
    }
}

test "an answer to somebody who wants no breaker closes it for the others, and holds nobody back" {
    var controller: Controller = .{ .gpa = testing.allocator };
    defer controller.deinit();
    const wary: Options = .{ .flags = .{ .breaker = true, .adaptive = true } };
    _ = try controller.configure(0, &wary);
    var permits: [20]Permit = undefined;
    for (&permits) |*permit| permit.* = controller.ask(0, 100).go;
    for (permits[1..]) |*permit| _ = try controller.settle(0, permit, &.{ .ending = .fault });
    try testing.expect(controller.ask(0, 100) == .open);
    _ = try controller.settle(0, &permits[0], &.{ .ending = .answered }); // that was sent before it opened
    try testing.expect(controller.ask(0, 100) == .open);
    _ = try controller.configure(0, &.{});
    for (&permits) |*permit| permit.* = controller.ask(0, 100).go;
    try testing.expect(try controller.settle(0, &permits[0], &.{ .ending = .answered }));
    _ = try controller.configure(0, &wary);
    const permit = controller.ask(0, 100).go;
    try testing.expectEqual(0, permit.is_probe);
    try testing.expectEqual(null, controller.congestion.window);
}

test "what came to nothing was not taken, and what an announced limit accounts for is not counted" {
    var controller: Controller = .{ .gpa = testing.allocator };
    defer controller.deinit();
    _ = try controller.configure(0, &.{ .flags = .{ .adaptive = true, .learn = true } });
    const congestion = &controller.congestion;
    var now_ns: u64 = 0;
    for (0..3) |_| {
        now_ns = @max(now_ns, controller.cooled_until_ns, congestion.next_send_ns);
        const permit = controller.ask(now_ns, 100).go;
        _ = try controller.settle(now_ns, &permit, &.{ .ending = .limited });
    }
    try testing.expectEqual(3, congestion.row.count);
    for (0..3) |_| { // long after each other
        now_ns += std.time.ns_per_min;
        const permit = controller.ask(now_ns, 100).go;
        _ = try controller.settle(now_ns, &permit, &.{ .ending = .fault });
    }
    try testing.expectEqual(3, congestion.row.count);
    var announced: Announced = .{};
    announced.take(.{ .name = "x-ratelimit-limit-requests", .value = "1" }, 0);
    announced.take(.{ .name = "x-ratelimit-remaining-requests", .value = "0" }, 0);
    now_ns += std.time.ns_per_min;
    const sum = congestion.minutes.used(now_ns);
    const permit = controller.ask(now_ns, 100).go;
    _ = try controller.settle(now_ns, &permit, &.{ .ending = .limited, .announced = &announced });
    try testing.expectEqual(sum, congestion.minutes.used(now_ns));
    try testing.expectEqual(3, congestion.row.count);
}
