//! How many requests at once a server bears, where nobody says: learned from its refusals (429, 503, 529). Pure.
//!
//! ## One number
//!
//! The *window* is how many may be on their way. With the time a request takes it is a pace too: `window / duration` a second, and
//! requests are sent at that pace, one after the other. So it stands for a limit of either kind, so many at once or so many a
//! second, and for fractions: a window of 0.2 is a request of a second every five seconds. As long as nobody refuses
//! there is no window. What counts by the minute is minutes.zig's.
//!
//! ## What was taken
//!
//! A refusal comes within a moment, an answer perhaps after a minute. So nobody waits for the answer: what was sent some time ago,
//! by the time that refusals take, and was not refused has been taken.
//!
//! ## Up and down
//!
//! A refusal sets the window to `backed_off` of what was borne: what was on its way when it was sent, or what the server took a
//! second of late, times a request's duration, whichever is less. Of the refusals of requests that were sent before that, no
//! more is made. Then it grows along a curve, see curve.zig. The flat part takes at least `flat_ns`, and as long as `flat_requests` take,
//! so that of a hundred requests at most about one meets a refusal, however slow they are. It grows only while it is what holds
//! requests back: also while as many as it allows are on their way and somebody waits, who is sent as soon as it is wide enough.
//!
//! ## Rows
//!
//! Without a Retry-After a refusal stops everything for a moment, the next one, if nothing was taken in between, for twice as long.
//! After some of them in a *row* one request at a time tries whether it is over. It is when one was taken that was sent with the last
//! one that was refused, or later: an answer to what was sent before says nothing about now. A long row says what kind of limit it
//! was: if some of what was on its way ended meanwhile and made no room, the server counts by the minute, or was in trouble; if not,
//! what was on its way is what it bears. After trouble (503, 529) it is soon as before. What refuses a part of all, however little is
//! sent, is noise.zig's.

const std = @import("std");
const curve_file = @import("curve.zig");
const minutes_file = @import("minutes.zig");
const noise_file = @import("noise.zig");
const quota_file = @import("quota.zig");
const row_file = @import("row.zig");

const Minutes = minutes_file.Minutes;
const never = quota_file.never;

const ns_per_ms: f64 = std.time.ns_per_ms;
const ns_per_s: f64 = std.time.ns_per_s;

const backed_off = 0.93;
const backed_off_overload = 0.7;
const backed_off_trouble = 0.5;
const restarted = 0.1;
const flat_ns = 6 * ns_per_s;
/// Whoever sends little meets more refusals for it, but does not wait for hours once there is room.
const flat_ns_max = 300 * ns_per_s;
/// Of a window below one.
const flat_ns_max_narrow = 60 * ns_per_s;
const flat_requests = 220;
/// Beyond the mark it grows at least so fast.
const steepness_min = 0.25;
/// A window that nobody has run into for so long is none any more.
const forgotten_ns = 60 * std.time.ns_per_min;
/// However narrow it is: nobody waits for minutes to see whether there is room again.
const pace_ns_max = 30 * ns_per_s;
/// Nor for long where it was trouble, and no limit by time.
const pace_ns_max_trouble = ns_per_s;
/// What was sent so long ago and not refused has been taken: so many times as long as a refusal takes, and
const patience = 4;
const patience_ns_min = ns_per_s;
const patience_ns_max = 30 * ns_per_s;
/// Whoever waits because the window is full has it looked at again after at least, and at most
const look_ns_min = ns_per_s / 20;
const look_ns_max = ns_per_s;
/// The rate is that of so long.
const of_late_ns = 4 * std.time.ns_per_s;
/// Too few to say.
const of_late_min = 8;

/// What a request had to wait for.
pub const Held = enum { nothing, window, minutes };

pub const Congestion = struct {
    /// Null: no bound.
    window: ?f64 = null,
    curve: curve_file.Curve = .{},
    /// What the server took a second, where that is known.
    rate: ?f64 = null,
    /// The mark is that of a first crowd, a rough guess; and of that crowd more may be refused.
    is_rough: bool = false,
    /// What was refused last was so because of trouble (503, 529), or the breaker has been open.
    is_trouble: bool = false,
    is_crowd: bool = false,
    /// Requests with lower numbers were sent without a window.
    windowed_from: u64 = 0,
    refused_ns: u64 = 0,
    /// When somebody last had to wait because as many as the window allows were on their way.
    full_ns: ?u64 = null,
    /// The mean of the last ones, about.
    duration_ns: f64 = 0,
    durations: u8 = 0,
    /// Of a refusal, the same.
    refusal_ns: f64 = 0,
    next_send_ns: u64 = 0,
    peak: u32 = 0,
    minutes: Minutes = .{},
    noise: noise_file.Noise = .{},
    row: row_file.Row = .{},

    /// How many may be on their way.
    pub fn atOnce(congestion: *const Congestion) u32 {
        const window = congestion.window orelse return std.math.maxInt(u32);
        return @intFromFloat(@max(1, @ceil(@min(window, 1e9))));
    }

    /// For somebody who waits: null: there is room for one more beside those that are `running`. Else when there will be if none of them
    /// ends before, or it is worth another look; `never`: not before.
    pub fn fullUntil(congestion: *Congestion, now_ns: u64, running: u32) ?u64 {
        congestion.lookAtRow(now_ns);
        congestion.lookAtCrowd(now_ns, running);
        if (running < congestion.atOnce()) return null;
        congestion.full_ns = now_ns;
        if (congestion.row.count > 0) return if (congestion.row.tried_ns) |tried_ns| @max(tried_ns + congestion.tookNs(), now_ns + 1) else never;
        congestion.grow(now_ns, true);
        if (running < congestion.atOnce()) return null;
        const until_ns = congestion.curve.reachesAt(congestion.flatNs(), @floatFromInt(running));
        const from_ns: f64 = @floatFromInt(now_ns);
        return @intFromFloat(std.math.clamp(until_ns, from_ns + look_ns_min, from_ns + look_ns_max));
    }

    pub const Hold = struct { until_ns: u64, by: Held };

    /// When the next request may be sent, `now_ns` or later, and because of what.
    pub fn sendAt(congestion: *Congestion, now_ns: u64) Hold {
        const minutes_ns = congestion.minutes.sendAt(now_ns);
        const window_ns = if (congestion.window != null or congestion.row.tries()) congestion.next_send_ns else now_ns;
        if (@max(minutes_ns, window_ns) <= now_ns) return .{ .until_ns = now_ns, .by = .nothing };
        return if (minutes_ns >= window_ns) .{ .until_ns = minutes_ns, .by = .minutes } else .{ .until_ns = window_ns, .by = .window };
    }

    /// A request is sent. `in_flight`: with it.
    pub fn noteSent(congestion: *Congestion, now_ns: u64, in_flight: u32, held: Held) void {
        congestion.peak = @max(congestion.peak, in_flight);
        congestion.lookAtRow(now_ns);
        congestion.row.noteSent(now_ns);
        const held_by: Held = if (congestion.row.count == 0) held else .nothing;
        congestion.minutes.noteSent(now_ns, held_by == .minutes);
        // The more there are, the more their durations even out, and the window itself is pace enough.
        const window = congestion.window orelse if (congestion.row.tries()) 1e9 else return;
        const pace_ns = congestion.paceNs(window);
        if (congestion.window) |it| {
            congestion.noise.noteSent(it, @floatFromInt(congestion.peak));
            congestion.grow(now_ns, held_by == .window);
        }
        // Where the last ones were refused one after the other, one at a time tries whether that is over.
        const interval: u64 = @intFromFloat(if (congestion.row.tries()) @max(pace_ns, ns_per_s) else pace_ns);
        // Timers are late: what was missed by a little may be made up for.
        const slack = if (congestion.row.tries()) 0 else @max(interval, 10 * std.time.ns_per_ms);
        congestion.next_send_ns = @min(@max(congestion.next_send_ns, now_ns -| slack), now_ns) + interval;
    }

    fn paceNs(congestion: *const Congestion, window: f64) f64 {
        const loose = 1 + 0.25 * std.math.clamp((window - 2) / 14, 0, 1);
        const most_ns: f64 = if (congestion.is_trouble and window >= 1) pace_ns_max_trouble else pace_ns_max;
        return @min(@max(congestion.duration_ns, ns_per_ms) / window / loose, most_ns);
    }

    fn lookAtRow(congestion: *Congestion, now_ns: u64) void {
        if (congestion.row.isOver(now_ns, congestion.tookNs())) congestion.endRow(now_ns);
    }

    fn tookNs(congestion: *const Congestion) u64 {
        return @intFromFloat(std.math.clamp(congestion.refusal_ns * patience, patience_ns_min, patience_ns_max));
    }

    /// The pause after a refusal is over. Had the server refused one of a first crowd by chance, most of those that came behind it were
    /// taken all the same, and are running.
    fn lookAtCrowd(congestion: *Congestion, now_ns: u64, running: u32) void {
        if (!congestion.is_crowd) return;
        congestion.is_crowd = false;
        const taken: f64 = @floatFromInt(running);
        if (congestion.window != null and congestion.curve.mark < taken / 4) congestion.start(now_ns, taken / 2, backed_off, congestion.rate);
    }

    fn grow(congestion: *Congestion, now_ns: u64, is_limiting: bool) void {
        const flat = congestion.flatNs();
        // Of a time in which nobody came to wait nothing is known.
        const counting_ns: u64 = if (is_limiting) @intFromFloat(@min(ns_per_s + congestion.paceNs(congestion.window.?), flat / 2)) else 0;
        congestion.window = congestion.curve.advance(now_ns, flat, counting_ns, std.math.inf(f64));
        if (now_ns -| congestion.refused_ns > forgotten_ns) congestion.window = null;
    }

    fn flatNs(congestion: *const Congestion) f64 {
        if (congestion.is_rough) return flat_ns;
        const rate = congestion.rate orelse if (congestion.duration_ns > 0) congestion.curve.mark / congestion.duration_ns * ns_per_s else 1e9;
        return std.math.clamp(flat_requests / rate * ns_per_s, flat_ns, @as(f64, if (congestion.curve.mark < 1) flat_ns_max_narrow else flat_ns_max));
    }

    /// `number`: of the request, counted from 1.
    pub fn noteSuccess(congestion: *Congestion, now_ns: u64, number: u64, duration_ns: u64) void {
        const took: f64 = @floatFromInt(duration_ns);
        // Of those that are left after a refusal the slow ones come last.
        if (congestion.row.counts(number) or congestion.durations < 64) {
            congestion.durations = @min(congestion.durations + 1, 64);
            congestion.duration_ns += (took - congestion.duration_ns) / @as(f64, @floatFromInt(congestion.durations));
        }
        // Taken when the last one was refused, or later.
        if (now_ns -| duration_ns >= congestion.row.refused_sent_ns) congestion.endRow(now_ns);
    }

    /// What came of the request that was sent then does not tell whether it was taken.
    pub fn noteVoid(congestion: *Congestion, sent_ns: u64) void {
        congestion.row.noteVoid(sent_ns);
    }

    /// A refusal that something else accounts for: another limit, one that the server announces.
    pub fn noteExplained(congestion: *Congestion, now_ns: u64, sent_ns: u64) void {
        congestion.noteVoid(sent_ns);
        congestion.minutes.remove(now_ns, sent_ns);
    }

    /// A refusal. `number`: of the request, counted from 1; `in_flight`: when it was sent, with it. The pause it asks for where the server
    /// names none, in nanoseconds; null: it is part of one that was noted already.
    pub fn noteRefused(congestion: *Congestion, now_ns: u64, sent_ns: u64, number: u64, next_number: u64, in_flight: u32, is_overload: bool) ?u64 {
        const took: f64 = @floatFromInt(now_ns -| sent_ns);
        congestion.refusal_ns = if (congestion.refusal_ns == 0) took else congestion.refusal_ns + (took - congestion.refusal_ns) / 8;
        const row = &congestion.row;
        const is_long = row.isLong();
        const counts = row.counts(number);
        if (is_overload) congestion.minutes.noteOverload(now_ns, sent_ns) else congestion.minutes.noteRefused(now_ns, sent_ns, place: {
            if (row.count == 0) break :place .first;
            if (!counts or !row.tries()) break :place .crowd;
            break :place if (is_long) .late else .later;
        });
        if (congestion.window) |window| if (number >= congestion.windowed_from) {
            if (!congestion.noise.noteRefused(window, counts)) {
                congestion.noteVoid(sent_ns);
                return null;
            }
        };
        if (!counts) return null;
        const is_first = row.count == 0;
        const pause_ns = row.noteRefused(sent_ns, next_number, in_flight);
        congestion.is_trouble = is_overload;
        if (is_long or (congestion.minutes.is_met and !is_overload)) return pause_ns; // when it is over more is known
        // Of a second one in a row: it was sent after a pause, in which there was less of everything; as there is after a wait for others.
        const was_full = if (congestion.full_ns) |full_ns| now_ns -| full_ns < of_late_ns else false;
        const is_told = (is_first and !was_full) or congestion.window == null;
        const rate = if (is_told) congestion.minutes.perSecond(now_ns, of_late_ns, of_late_min) else null;
        if (congestion.window == null) {
            congestion.is_crowd = true;
            congestion.windowed_from = next_number;
        }
        var borne: f64 = @floatFromInt(@max(in_flight, 1));
        if (congestion.window) |window| borne = if (window < 1 or !is_first) window else @min(borne, window);
        if (rate) |it| {
            if (congestion.duration_ns > 0) borne = @min(borne, it * congestion.duration_ns / ns_per_s);
        } else if (congestion.window == null) {
            borne /= 2; // nothing says how much of it was too much
        }
        // One bad moment is not the end.
        if (congestion.window) |window| borne = @max(borne, window / 2);
        // A server in trouble is not helped by one request less than one.
        if (is_overload) borne = @max(borne, 1.0 / backed_off_overload);
        var low: f64 = if (is_overload) backed_off_overload else backed_off;
        // What it bore before the trouble it will bear again: more refusals in a row narrow it further, and the mark stays.
        if (is_overload and !is_first and row.borne > borne) {
            low = @max(low * borne / row.borne, restarted, 1 / row.borne);
            borne = row.borne;
        }
        congestion.start(now_ns, borne, low, rate);
        if (is_first) row.borne = borne;
        if (congestion.noise.judge(congestion.window.?)) |wide| congestion.start(now_ns, wide, backed_off, null);
        if (congestion.noise.share != null) return null;
        return pause_ns;
    }

    /// Something was taken again.
    fn endRow(congestion: *Congestion, now_ns: u64) void {
        const row = congestion.row;
        if (row.count == 0) return;
        congestion.row.end();
        if (!row.wasLong(congestion.is_trouble)) return if (congestion.minutes.is_met) congestion.minutes.keep();
        congestion.noise = .{}; // it lets something through all the time
        congestion.next_send_ns = @min(congestion.next_send_ns, now_ns);
        if (congestion.minutes.is_met) return;
        const running: f64 = @floatFromInt(row.running);
        if (!row.is_by_time and !congestion.is_trouble) {
            congestion.start(now_ns, running, backed_off, null);
        } else if (congestion.minutes.learn(now_ns, row.sent_since)) {
            congestion.window = null;
        } else { // it was something else, and is over: soon as before
            const before = @max(row.borne, running, 0.001);
            congestion.start(now_ns, before, std.math.clamp(backed_off * running / before, backed_off_trouble, backed_off), null);
            congestion.is_rough = true;
        }
    }

    /// The server is back after it was not to be had: from little to what it bore before.
    pub fn restart(congestion: *Congestion, now_ns: u64, next_number: u64) void {
        const before = if (congestion.row.count > 0) congestion.row.borne else @max(congestion.window orelse 0, @as(f64, @floatFromInt(congestion.peak)));
        const mark = @max(before, 1);
        congestion.start(now_ns, mark, @max(restarted, 1 / mark), null);
        congestion.is_rough = true;
        congestion.is_trouble = true;
        congestion.next_send_ns = @min(congestion.next_send_ns, now_ns);
        congestion.row.forget(next_number);
    }

    fn start(congestion: *Congestion, now_ns: u64, mark: f64, low: f64, per_second: ?f64) void {
        congestion.is_rough = congestion.window == null or (congestion.is_rough and congestion.row.tries());
        congestion.curve = .begin(now_ns, @max(mark, 0.001), 1 - low, @max(1 - low, steepness_min));
        congestion.window = congestion.curve.mark * low;
        congestion.refused_ns = now_ns;
        congestion.rate = per_second;
        congestion.peak = 0;
    }

    pub fn rewind(congestion: *Congestion, now_ns: u64) void {
        congestion.* = .{ .window = congestion.window, .curve = congestion.curve, .rate = congestion.rate, .is_rough = congestion.is_rough, .is_trouble = congestion.is_trouble, .refused_ns = now_ns, .duration_ns = congestion.duration_ns, .durations = congestion.durations, .refusal_ns = congestion.refusal_ns, .peak = congestion.peak, .minutes = congestion.minutes, .noise = congestion.noise };
        congestion.curve.rewind(now_ns);
        congestion.minutes.rewind(now_ns);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const second = std.time.ns_per_s;

test "nothing is held back before somebody refuses; then it narrows once, and grows back to the mark and beyond" {
    var congestion: Congestion = .{};
    for (0..100) |i| congestion.noteSent(i * second / 100, @intCast(i + 1), .nothing);
    for (0..100) |i| congestion.noteSuccess(i * second / 100 + second, i + 1, second);
    try testing.expectEqual(std.math.maxInt(u32), congestion.atOnce());
    try testing.expect(congestion.noteRefused(second, second, 101, 150, 100, false) != null);
    const narrow = congestion.window.?;
    try testing.expect(narrow <= 100 and narrow > 80);
    try testing.expectEqual(null, congestion.noteRefused(second, second, 149, 160, 100, false));
    const mark = congestion.curve.mark;
    var widest: f64 = 0;
    for (4..80) |half| { // every half second one is sent that had to wait
        congestion.noteSent(half * second / 2, congestion.atOnce(), .window);
        try testing.expect(congestion.window.? >= widest);
        widest = congestion.window.?;
        if (half * second / 2 == 7 * second) try testing.expectApproxEqRel(mark, widest, 0.01);
    }
    try testing.expect(widest > 2 * mark);
}

test "it does not grow while it holds nobody back, nor in a row of refusals" {
    var congestion: Congestion = .{};
    _ = congestion.noteRefused(0, 0, 1, 2, 40, true);
    const narrow = congestion.window.?;
    for (1..100) |i| congestion.noteSent(i * second, 1, .nothing);
    try testing.expectApproxEqAbs(narrow, congestion.window.?, 0.001);
    for (0..10) |i| {
        _ = congestion.noteRefused((100 + i) * second, (100 + i) * second, 100 + i, 101 + i, 40, true);
        const narrowed = congestion.window.?;
        congestion.noteSent((100 + i) * second, 40, .window);
        try testing.expectApproxEqAbs(narrowed, congestion.window.?, 0.001);
    }
}

test "what nobody has run into for an hour is forgotten" {
    var congestion: Congestion = .{};
    _ = congestion.noteRefused(0, 0, 1, 2, 40, false);
    congestion.noteSent(forgotten_ns, 1, .nothing);
    try testing.expect(congestion.window != null);
    congestion.noteSent(forgotten_ns + 1, 1, .nothing);
    try testing.expectEqual(null, congestion.window);
}

test "a window below one is a pace" {
    var congestion: Congestion = .{ .window = 0.2, .curve = .begin(0, 0.2, 0, 0), .duration_ns = ns_per_s };
    try testing.expectEqual(1, congestion.atOnce());
    try testing.expectEqual(second, congestion.sendAt(second).until_ns);
    congestion.noteSent(10 * second, 1, .nothing);
    const next = congestion.sendAt(10 * second).until_ns;
    try testing.expect(next > 9 * second);
    congestion.noteSent(next, 1, .nothing);
    try testing.expect(congestion.sendAt(next).until_ns >= next + 4 * second);
}

test "an answer ends the row, and with it the long pauses" {
    var congestion: Congestion = .{};
    const first_ns = congestion.noteRefused(0, 0, 1, 2, 1, false).?;
    for (2..20) |i| try testing.expect(congestion.noteRefused(0, 0, i, i + 1, 1, false).? > first_ns);
    congestion.noteSuccess(0, 30, 1);
    try testing.expectEqual(first_ns, congestion.noteRefused(0, 0, 21, 22, 1, false));
}

test "nobody waits for an answer to learn that a request was taken: only as long as refusals take" {
    var congestion: Congestion = .{};
    // A refusal comes after half a second here.
    for (1..4) |i| _ = congestion.noteRefused(i * second, i * second - second / 2, i, i + 1, 1, false);
    try testing.expectEqual(3, congestion.row.count);
    congestion.noteSent(10 * second, 1, .window);
    congestion.noteSent(11 * second, 2, .window);
    try testing.expectEqual(3, congestion.row.count);
    congestion.noteSent(12 * second, 3, .window);
    try testing.expectEqual(0, congestion.row.count);
}

test "whoever waits is sent when the window has grown, though none of those that are on their way has ended" {
    var congestion: Congestion = .{ .duration_ns = 100 * ns_per_s, .peak = 10 };
    congestion.restart(second, 2);
    try testing.expectEqual(1, congestion.atOnce());
    congestion.noteSent(second, 1, .nothing);
    var now_ns: u64 = second;
    for (1..10) |running| {
        while (congestion.fullUntil(now_ns, @intCast(running))) |until_ns| {
            try testing.expect(until_ns > now_ns and until_ns < 15 * second);
            now_ns = until_ns;
        }
        now_ns = @max(now_ns, congestion.sendAt(now_ns).until_ns);
        congestion.noteSent(now_ns, @intCast(running + 1), .window);
    }
}

test "what was on its way as a row began is what it begins with again, also where the first refusal was about the minute" {
    var congestion: Congestion = .{ .minutes = .{ .limit = 10, .learned = 1 } };
    for (0..10) |i| congestion.noteSent(second, @intCast(i + 1), .nothing);
    _ = congestion.noteRefused(second, second, 10, 11, 10, false);
    try testing.expect(congestion.minutes.is_met);
    for (11..30) |i| _ = congestion.noteRefused(i * second, i * second, i, i + 1, 1, true);
    congestion.restart(40 * second, 40);
    try testing.expectApproxEqAbs(10, congestion.curve.mark, 0.001);
}

/// Twenty are sent at once; then one each second, refused; `ends`: of the twenty two have ended each time. At last one is taken.
fn longRow(congestion: *Congestion, from_ns: u64, first: u64, ends: bool) void {
    for (0..20) |i| congestion.noteSent(from_ns, @intCast(i + 1), .nothing);
    for (1..11) |i| {
        const now_ns = from_ns + i * second;
        const running: u32 = if (ends) @intCast(20 - 2 * i) else 20;
        const number = first + 19 + i;
        congestion.noteSent(now_ns, running + 1, .window);
        _ = congestion.noteRefused(now_ns, now_ns, number, number + 1, running + 1, false);
    }
    congestion.noteSent(from_ns + 15 * second, 1, .window);
    congestion.noteSuccess(from_ns + 16 * second, first + 30, second);
}

test "a long row in which nothing ends is about what is on its way" {
    var congestion: Congestion = .{};
    longRow(&congestion, second, 1, false);
    try testing.expectApproxEqRel(20, congestion.curve.mark, 0.001);
    try testing.expectEqual(null, congestion.minutes.limit);
}

test "one in which what ends makes no room is about time, or it was trouble: then it is soon as before, and the second time it counts" {
    var congestion: Congestion = .{};
    longRow(&congestion, second, 1, true);
    try testing.expectEqual(null, congestion.minutes.limit);
    try testing.expectApproxEqRel(congestion.row.borne * backed_off_trouble, congestion.window.?, 0.001);
    longRow(&congestion, 100 * second, 40, true);
    try testing.expectEqual(null, congestion.window);
    try testing.expectApproxEqRel(20, congestion.minutes.limit.?, 0.02);
}

test "of a long row of overload no limit is learned, whatever was refused before" {
    var congestion: Congestion = .{};
    longRow(&congestion, second, 1, true);
    for (0..2) |times| {
        const from_ns = (1000 + 100 * times) * second;
        for (0..10) |i| {
            const number = 100 + 20 * times + i;
            congestion.noteSent(from_ns + i * second, 1, .window);
            _ = congestion.noteRefused(from_ns + i * second, from_ns + i * second, number, number + 1, 1, true);
        }
        congestion.noteSent(from_ns + 20 * second, 1, .window);
        congestion.noteSuccess(from_ns + 21 * second, 110 + 20 * times, second);
        try testing.expectEqual(0, congestion.row.count);
        try testing.expectEqual(null, congestion.minutes.limit);
    }
}
