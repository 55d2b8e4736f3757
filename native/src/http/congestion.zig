//! How many requests at once a server bears, where nobody says: learned from its refusals (429, 503, 529). Pure.
//!
//! ## One number
//!
//! The *window* is how many may be on their way. With the time a request takes it is a pace too: `window / duration` a second, and
//! requests are sent at that pace, one after the other. So it stands for a limit of either kind, so many at once or so many a
//! minute, and for fractions: a window of 0.2 is a request of a second every five seconds. As long as nobody refuses
//! there is no window.
//!
//! ## Up and down
//!
//! A refusal sets the window to `backed_off` of what was borne: what was on its way when it was sent, or what the server took a
//! second of late, times a request's duration, whichever is less. Of the refusals of requests that were sent before that, no
//! more is made. Then it grows along a cubic curve (CUBIC: Ha, Rhee, Xu, "CUBIC: a new TCP-friendly high-speed TCP variant",
//! 2008; RFC 9438): soon back near the mark, long around it, and beyond it ever faster, in case the server has been given more
//! room. The flat part takes at least `flat_ns`, and as long as `flat_requests` take, so that of a hundred requests at most
//! about one meets a refusal, however slow they are. It grows only while it is what holds requests back.
//!
//! Where nothing at all is taken for some seconds, the server counts by the minute, and what there was is used up. Then the average over the
//! whole round, of having and of having no more, is the pace that lasts; what is too much shows late there, so it grows slowly.
//!
//! Without a Retry-After a refusal stops everything for a moment, the next one, if none succeeded in between, for twice as long.

const std = @import("std");

const ns_per_ms: f64 = std.time.ns_per_ms;
const ns_per_s: f64 = std.time.ns_per_s;

const backed_off = 0.93;
const backed_off_minutes = 0.98;
const backed_off_overload = 0.7;
const flat_ns = 6 * ns_per_s;
const flat_ns_max = 120 * ns_per_s;
const flat_requests = 160;
const pause_first_ns = 200 * std.time.ns_per_ms;
const pause_max_ns = 4 * std.time.ns_per_s;
/// After so many refusals in a row, some seconds, what there was is used up.
const in_a_row_max = 5;
/// What a server that counts minutes thinks of a pace shows late.
const flat_exhausted_ns = 45 * ns_per_s;
/// A window so much wider than the mark is none any more.
const forgotten = 4.0;

/// How many requests a second succeeded of late: in the last `slot_count` slots.
fn Meter(comptime slot_ns: u64) type {
    return struct {
        slots: [slot_count]u32 = @splat(0),
        newest: u64 = 0,
        since_ns: ?u64 = null,

        const Self = @This();
        const slot_count = 16;

        fn note(meter: *Self, now_ns: u64) void {
            if (meter.since_ns == null) meter.since_ns = now_ns;
            meter.advance(now_ns);
            meter.slots[meter.newest % slot_count] += 1;
        }

        fn advance(meter: *Self, now_ns: u64) void {
            const number = now_ns / slot_ns;
            if (number > meter.newest + slot_count) {
                meter.slots = @splat(0);
            } else if (number > meter.newest) {
                for (meter.newest + 1..number + 1) |it| meter.slots[it % slot_count] = 0;
            } else return;
            meter.newest = number;
        }

        /// Null: too few to say.
        fn perSecond(meter: *Self, now_ns: u64, at_least: u32) ?f64 {
            meter.advance(now_ns);
            var count: u32 = 0;
            for (meter.slots) |it| count += it;
            if (count < at_least) return null;
            const long_ns = @min(now_ns -| (meter.since_ns orelse return null), slot_count * slot_ns - (slot_ns - now_ns % slot_ns));
            return count / (@as(f64, @floatFromInt(@max(long_ns, slot_ns))) / ns_per_s);
        }
    };
}

pub const Congestion = struct {
    /// Null: no bound.
    window: ?f64 = null,
    /// What was borne when it last grew too wide.
    mark: f64 = 0,
    /// Of the mark, where the curve begins.
    low: f64 = backed_off,
    /// When it began. Moved on while nothing is held back.
    epoch_ns: u64 = 0,
    looked_ns: u64 = 0,
    flat: f64 = flat_ns,
    /// The mean of the last ones, about.
    duration_ns: f64 = 0,
    durations: u8 = 0,
    of_late: Meter(std.time.ns_per_s / 4) = .{},
    /// Since when, and how many succeeded, on average: over a whole round of having and having no more.
    round_ns: ?u64 = null,
    round_count: u64 = 0,
    exhausted: bool = false,
    /// Requests with lower numbers were sent before the window was last narrowed.
    decided_at: u64 = 0,
    /// And before the time before that.
    decided_before: u64 = 0,
    next_send_ns: u64 = 0,
    /// Refusals since the last success.
    in_a_row: u5 = 0,
    slow_until_ns: u64 = 0,
    peak: u32 = 0,

    /// How many may be on their way.
    pub fn atOnce(congestion: *const Congestion) u32 {
        const window = congestion.window orelse return std.math.maxInt(u32);
        return @intFromFloat(@max(1, @ceil(@min(window, 1e9))));
    }

    /// When the next request may be sent: `now_ns` or later.
    pub fn sendAt(congestion: *const Congestion, now_ns: u64) u64 {
        return if (congestion.window == null) now_ns else @max(now_ns, congestion.next_send_ns);
    }

    /// A request is sent. `in_flight`: with it.
    pub fn noteSent(congestion: *Congestion, now_ns: u64, in_flight: u32) void {
        congestion.peak = @max(congestion.peak, in_flight);
        const window = congestion.window orelse return;
        // The more there are, the more their durations even out, and the window itself is pace enough.
        const loose = 1 + 0.25 * std.math.clamp((window - 2) / 14, 0, 1);
        const pace_ns = @min(@max(congestion.duration_ns, ns_per_ms) / window / loose, 600 * ns_per_s);
        // Where the last ones were refused one after the other, one at a time tries whether that is over.
        const interval: u64 = @intFromFloat(if (congestion.in_a_row >= 2) @max(pace_ns, ns_per_s) else pace_ns);
        // Timers are late: what was missed by a little may be made up for.
        const slack = if (congestion.in_a_row >= 2) 0 else @max(interval, 10 * std.time.ns_per_ms);
        congestion.next_send_ns = @max(congestion.next_send_ns, now_ns -| slack) + interval;
    }

    /// `number`: of the request, counted from 1.
    pub fn noteSuccess(congestion: *Congestion, now_ns: u64, number: u64, duration_ns: u64, in_flight: u32, held_back: bool) void {
        const took: f64 = @floatFromInt(duration_ns);
        // Of those that are left after a refusal the slow ones come last.
        if (number >= congestion.decided_at or congestion.durations < 64) {
            congestion.durations = @min(congestion.durations + 1, 64);
            congestion.duration_ns += (took - congestion.duration_ns) / @as(f64, @floatFromInt(congestion.durations));
        }
        congestion.of_late.note(now_ns);
        if (congestion.round_ns == null) congestion.round_ns = now_ns -| duration_ns;
        congestion.round_count += 1;
        if (number >= congestion.decided_before) { // sent after the last refusal but one, so some were taken with the last one
            congestion.in_a_row = 0;
            if (congestion.exhausted) congestion.endRound(now_ns);
        }
        if (congestion.window == null) return;
        const is_limiting = held_back or in_flight >= congestion.atOnce();
        const since_ns = now_ns -| congestion.looked_ns;
        congestion.looked_ns = @max(congestion.looked_ns, now_ns);
        // Time in which nothing was tried proves nothing.
        const counts_ns = if (is_limiting) @min(since_ns, std.time.ns_per_s + duration_ns) else 0;
        congestion.epoch_ns += since_ns - counts_ns;
        const x = @as(f64, @floatFromInt(now_ns -| congestion.epoch_ns)) / congestion.flat;
        const curve = 1 + (1 - congestion.low) * (x - 1) * (x - 1) * (x - 1);
        congestion.window = congestion.mark * curve;
        if (curve > forgotten) congestion.window = null;
    }

    /// A refusal. `number`: of the request, counted from 1; `in_flight`: when it was sent, with it. The pause it asks for where the server
    /// names none, in nanoseconds; null: it is part of one that was noted already.
    pub fn noteRefused(congestion: *Congestion, now_ns: u64, number: u64, next_number: u64, in_flight: u32, is_overload: bool) ?u64 {
        if (number < congestion.decided_at) return null;
        const pause_ns = @min(@as(u64, pause_first_ns) << congestion.in_a_row, pause_max_ns);
        congestion.decided_before = congestion.decided_at;
        congestion.decided_at = next_number;
        congestion.in_a_row +|= 1;
        if (congestion.in_a_row > in_a_row_max and congestion.round_count > 0) {
            congestion.exhausted = true; // what there was for a minute is used up: there is nothing to learn before it is over
            return pause_ns;
        }
        // Where minutes are counted one step is enough for what shows so late; the next ones in a row only say that it is not over.
        if (congestion.in_a_row > 1 and now_ns < congestion.slow_until_ns) return pause_ns;
        // Of a second one in a row: it was sent after a pause, in which there was less of everything.
        const is_first = congestion.in_a_row == 1;
        const rate = if (is_first or congestion.window == null) congestion.of_late.perSecond(now_ns, 8) else null;
        var borne: f64 = @floatFromInt(@max(in_flight, 1));
        if (congestion.window) |window| borne = if (window < 1 or !is_first) window else @min(borne, window);
        if (rate) |it| {
            if (congestion.duration_ns > 0) borne = @min(borne, it * congestion.duration_ns / ns_per_s);
        } else if (congestion.window == null) {
            borne /= 2; // nothing says how much of it was too much
        }
        // One bad moment is not the end; least of all where the server counts by the minute.
        if (congestion.window) |window| borne = @max(borne, window * @as(f64, if (now_ns < congestion.slow_until_ns) 0.97 else 0.5));
        // A server in trouble is not helped by one request less than one.
        if (is_overload) borne = @max(borne, 1.0 / backed_off_overload);
        congestion.start(now_ns, borne, if (is_overload) backed_off_overload else backed_off, rate);
        return pause_ns;
    }

    /// For a while nothing was taken at all, and now something is: the server counts by the minute. The average over both times is the
    /// pace that lasts.
    fn endRound(congestion: *Congestion, now_ns: u64) void {
        congestion.exhausted = false;
        const long_ns: f64 = @floatFromInt(@max(now_ns -| congestion.round_ns.?, 1));
        const rate = @as(f64, @floatFromInt(congestion.round_count)) / long_ns * ns_per_s;
        congestion.slow_until_ns = now_ns + 10 * std.time.ns_per_min;
        congestion.start(now_ns, rate * congestion.duration_ns / ns_per_s, backed_off_minutes, rate);
        congestion.round_ns = now_ns;
        congestion.round_count = 0;
    }

    /// The server is back after it was not to be had: from little to what it bore before.
    pub fn restart(congestion: *Congestion, now_ns: u64, next_number: u64) void {
        congestion.start(now_ns, @max(congestion.window orelse 0, @as(f64, @floatFromInt(congestion.peak)), 1), 0.1, null);
        congestion.decided_at = next_number;
        congestion.in_a_row = 0;
    }

    fn start(congestion: *Congestion, now_ns: u64, mark: f64, low: f64, per_second: ?f64) void {
        congestion.mark = @max(mark, 0.001);
        congestion.low = low;
        congestion.window = congestion.mark * low;
        congestion.epoch_ns = now_ns;
        congestion.looked_ns = now_ns;
        const many = if (per_second) |it| flat_requests / it * ns_per_s else 0;
        congestion.flat = std.math.clamp(many, if (now_ns < congestion.slow_until_ns) flat_exhausted_ns else flat_ns, flat_ns_max);
        congestion.peak = 0;
    }

    pub fn rewind(congestion: *Congestion, now_ns: u64) void {
        congestion.* = .{ .window = congestion.window, .mark = congestion.mark, .low = congestion.low, .duration_ns = congestion.duration_ns, .durations = congestion.durations, .peak = congestion.peak, .epoch_ns = now_ns, .looked_ns = now_ns };
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const second = std.time.ns_per_s;

test "nothing is held back before somebody refuses; then it narrows once, and grows back to the mark and beyond" {
    var congestion: Congestion = .{};
    for (0..100) |i| congestion.noteSuccess(i * second / 100, i + 1, second, 100, false);
    try testing.expectEqual(std.math.maxInt(u32), congestion.atOnce());
    try testing.expect(congestion.noteRefused(second, 101, 150, 100, false) != null);
    const narrow = congestion.window.?;
    try testing.expect(narrow <= 100 and narrow > 80);
    try testing.expectEqual(null, congestion.noteRefused(second, 149, 160, 100, false));
    const mark = congestion.mark;
    var widest: f64 = 0;
    for (4..80) |half| { // every half second one succeeds
        congestion.noteSuccess(half * second / 2, 200 + half, second, congestion.atOnce(), true);
        const window = congestion.window orelse break;
        try testing.expect(window >= widest);
        widest = window;
        if (half * second / 2 == 7 * second) try testing.expectApproxEqAbs(mark, window, 0.01);
    } else return error.StillHeldBack;
    try testing.expect(widest > 2 * mark);
}

test "it does not grow while it holds nobody back" {
    var congestion: Congestion = .{};
    _ = congestion.noteRefused(0, 1, 2, 40, true);
    const narrow = congestion.window.?;
    for (1..100) |i| congestion.noteSuccess(i * second, i + 2, second, 1, false);
    try testing.expectApproxEqAbs(narrow, congestion.window.?, 0.001);
}

test "a window below one is a pace" {
    var congestion: Congestion = .{ .window = 0.2, .mark = 0.2, .duration_ns = ns_per_s };
    try testing.expectEqual(1, congestion.atOnce());
    try testing.expectEqual(second, congestion.sendAt(second));
    congestion.noteSent(10 * second, 1);
    const next = congestion.sendAt(10 * second);
    try testing.expect(next > 9 * second);
    congestion.noteSent(next, 1);
    try testing.expect(congestion.sendAt(next) >= next + 4 * second);
}

test "one pause after the other is twice as long, up to a bound" {
    var congestion: Congestion = .{};
    try testing.expectEqual(pause_first_ns, congestion.noteRefused(0, 1, 2, 1, false));
    try testing.expectEqual(2 * pause_first_ns, congestion.noteRefused(0, 2, 3, 1, false));
    for (3..20) |i| _ = congestion.noteRefused(0, i, i + 1, 1, false);
    try testing.expectEqual(pause_max_ns, congestion.noteRefused(0, 20, 21, 1, false));
    congestion.noteSuccess(0, 30, 1, 1, false);
    try testing.expectEqual(pause_first_ns, congestion.noteRefused(0, 21, 22, 1, false));
}
