//! Refusals that do not depend on how much is sent: a server short of machines may refuse one request in ten, whoever sends
//! how many. To narrow for them helps nobody: less and less is sent, and as many of it are refused. Pure.
//!
//! ## How they are told apart
//!
//! By what a fifth does. If of what was sent with a *wide* window less than a third was refused, then a fifth of that window is below
//! any limit there may be, and nothing would be refused any more. If not much less is, it is noise: the window is nearly as wide again,
//! and refusals narrow it no more. That holds as long as no more is refused than the noise accounts for, and something is: else all of
//! this begins anew, from the window there is. So a limit that passed for noise is found with the next few refusals, and one that the
//! server has besides the noise as well.
//!
//! How much was refused with the wide window is said by all of it, and by the last refusals and what was sent from the first of them on:
//! a limit that was lowered is not hidden by all that was taken before. Nor does a window count as wide that held nothing back. Where refusals are as rare as they are at a limit that is kept
//! to, all of this begins anew, too.

const std = @import("std");

/// One in so many is what keeping to a limit costs.
const rare: f64 = 160;
/// Refusals that are so few are the first ones of what comes now.
const excess_first = 0.25;
const narrow = 0.2;
/// Of what was sent with a wide window: beyond that a fifth may not be below the limit.
const share_max = 0.3;
const share_min = 0.012;
const sigmas = 1.5;
/// Of so many sent.
const sample = 400;
const share_usual = 0.009;
/// Noise accounts for twice its share, and so much more.
const step = 0.05;
const refused_min = 6;
/// Noise is over when so many were to be refused, and none was.
const silent = 10;
/// Of the last ones, about.
const of_late: f64 = 64;

pub const Noise = struct {
    /// Refusals beyond the rare ones.
    excess: f64 = 0,
    wide: f64 = 0,
    at_wide: Count = .{},
    at_narrow: Count = .{},
    /// What share of refusals is noise. Null: none is known to be.
    share: ?f64 = null,
    share_of_late: f64 = 0,
    sent_since: u32 = 0,

    const Count = struct {
        sent: u32 = 0,
        refused: u32 = 0,
        /// What was sent when each of the last ones was refused, in a ring.
        at: [refused_min]u32 = @splat(0),

        fn noteRefused(count: *Count) void {
            count.at[count.refused % refused_min] = count.sent;
            count.refused +|= 1;
        }

        /// From the first of the last refusals on.
        fn ofLate(count: *const Count) Count {
            if (count.refused == 0) return count.*;
            const first = if (count.refused < refused_min) 0 else count.refused % refused_min;
            return .{ .sent = count.sent - count.at[first] + 1, .refused = @min(count.refused, refused_min) };
        }

        /// By more than chance.
        fn isAbove(count: Count, part: f64) bool {
            const sent: f64 = @floatFromInt(count.sent);
            return @as(f64, @floatFromInt(count.refused)) > sent * part + sigmas * @sqrt(sent * part * (1 - part));
        }

        fn share(count: Count) f64 {
            return @as(f64, @floatFromInt(count.refused)) / @as(f64, @floatFromInt(@max(count.sent, 1)));
        }
    };

    fn begin(noise: *Noise, window: f64) void {
        noise.* = .{ .wide = window, .share_of_late = noise.share_of_late };
    }

    /// One is sent, while the window is as wide as that. `in_use`: as many were on their way at once since it was set.
    pub fn noteSent(noise: *Noise, window: f64, in_use: f64) void {
        noise.share_of_late -= noise.share_of_late / of_late;
        noise.excess = @max(0, noise.excess - 1 / rare);
        if (noise.share) |share| {
            noise.sent_since +|= 1;
            if (@as(f64, @floatFromInt(noise.sent_since)) * share > silent) noise.begin(window);
            return;
        }
        if (noise.excess == 0) return noise.begin(@min(window, in_use));
        const count = noise.countAt(window);
        count.sent +|= 1;
        if (count.sent >= sample and count.share() < share_usual) noise.begin(window);
    }

    /// One of those was refused; `counts`: it would narrow the window. False: it is noise, and is not to.
    pub fn noteRefused(noise: *Noise, window: f64, counts: bool) bool {
        noise.share_of_late += 1 / of_late;
        noise.sent_since = 0;
        if (noise.share) |share| {
            if (noise.share_of_late <= 2 * share + step) return false;
            noise.begin(window);
        }
        if (noise.wide == 0) noise.begin(window) else if (noise.excess < excess_first) noise.begin(@min(window, noise.wide));
        if (counts) noise.excess += 1;
        noise.countAt(window).noteRefused();
        return true;
    }

    fn countAt(noise: *Noise, window: f64) *Count {
        return if (window > noise.wide * narrow) &noise.at_wide else &noise.at_narrow;
    }

    /// After it was narrowed. The window it is to have instead, if what was refused turns out to be noise.
    pub fn judge(noise: *Noise, window: f64) ?f64 {
        if (window > noise.wide * narrow) return null;
        if (noise.at_wide.isAbove(share_max) or noise.at_wide.ofLate().isAbove(share_max) or noise.at_narrow.isAbove(share_max)) {
            noise.begin(window);
            return null;
        }
        const share = noise.at_narrow.share();
        if (noise.at_narrow.refused < refused_min or @min(share, noise.at_wide.share()) < share_min) return null;
        const is_noise = share >= noise.at_wide.share() / 4;
        const wide = noise.wide * 0.8; // there may be a limit as well
        noise.begin(window);
        if (!is_noise) return null;
        noise.share = share;
        noise.share_of_late = noise.share.?;
        return wide;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// What comes of a thousand requests to a server that refuses `part` of all and whatever is more than `limit`, where each refusal
/// narrows to 0.93: the window.
fn windowAfter(noise: *Noise, random: std.Random, part: f64, limit: f64) f64 {
    var window: f64 = 100;
    for (0..2000) |_| {
        noise.noteSent(window, window);
        if (random.float(f64) >= part and random.float(f64) * window < limit) continue;
        if (!noise.noteRefused(window, true)) continue;
        window *= 0.93;
        if (noise.judge(window)) |wide| window = wide;
    }
    return window;
}

test "noise narrows it little, and a limit as far as it must" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    for ([_]f64{ 0.05, 0.1, 0.2 }) |part| {
        var sum: f64 = 0;
        for (0..40) |_| { // a single one may be unlucky
            var noise: Noise = .{};
            sum += windowAfter(&noise, prng.random(), part, 1000);
        }
        try testing.expect(sum / 40 > 30);
    }
    for ([_]f64{ 1, 10, 60 }) |limit| for (0..10) |_| {
        var noise: Noise = .{};
        try testing.expect(windowAfter(&noise, prng.random(), 0, limit) < limit * 1.5);
        try testing.expectEqual(null, noise.share);
    };
}

test "noise ends when nothing is refused for long, or more than it accounts for" {
    var noise: Noise = .{ .share = 0.1, .share_of_late = 0.1 };
    try testing.expect(!noise.noteRefused(50, true));
    for (0..101) |_| noise.noteSent(50, 50);
    try testing.expectEqual(null, noise.share);

    noise = .{ .share = 0.1, .share_of_late = 0.1 };
    var borne: usize = 0;
    while (noise.share != null) : (borne += 1) {
        noise.noteSent(50, 50);
        try testing.expectEqual(noise.share_of_late + 1 / of_late > 0.25, noise.noteRefused(50, true));
    }
    try testing.expect(borne > 5 and borne < 20);
}

test "what was taken long before does not make a limit that was lowered pass for noise" {
    var noise: Noise = .{};
    for (0..390) |i| { // one refusal in a hundred, as it may be at times where a limit is kept to
        noise.noteSent(20, 20);
        if (i % 100 == 99) try testing.expect(noise.noteRefused(20, true));
    }
    var window: f64 = 20;
    for (0..60) |_| {
        noise.noteSent(window, window);
        try testing.expect(noise.noteRefused(window, true));
        window = @max(2, window * 0.85);
        try testing.expectEqual(null, noise.judge(window));
        for (0..if (window < 4) 4 else 0) |_| noise.noteSent(window, window);
    }
}

test "a window that holds nothing back is not wide" {
    var noise: Noise = .{};
    noise.noteSent(400, 10);
    try testing.expectEqual(10, noise.wide);
    try testing.expect(noise.noteRefused(400, true));
    try testing.expectEqual(10, noise.wide);
}

test "refusals that come in crowds are counted with all that was sent" {
    var noise: Noise = .{};
    var window: f64 = 12;
    noise.noteSent(window, window);
    for (0..60) |_| { // half of what is sent is refused, and the last six of them are half a minute's
        for (0..8) |_| noise.noteSent(window, window);
        for (0..4) |i| try testing.expect(noise.noteRefused(window, i == 0));
        for (0..if (window < 3) 8 else 0) |_| noise.noteSent(window, window);
        window = @max(1.9, window * 0.93);
        try testing.expectEqual(null, noise.judge(window));
    }
}
