//! Refusals that do not depend on how much is sent: a server short of machines may refuse one request in ten, whoever sends
//! how many. To narrow for them helps nobody: less and less is sent, and as many of it are refused. Pure.
//!
//! ## How they are told apart
//!
//! By what a third does. If of what was sent with a *wide* window less than a third was refused, then less than a third of that
//! window is far below any limit there may be, and nothing would be refused any more. If about as many are, it is noise: the
//! window is nearly as wide again, and from then on it is narrowed only when more than the noise is refused, and then once for
//! each step. That holds until nearly all are, which is the end of the server, or none, so that the noise is over.
//!
//! Where refusals are as rare as they are at a limit that is kept to, all of this begins anew.

const std = @import("std");

/// One in so many is what keeping to a limit costs.
const rare: f64 = 160;
const narrow = 0.3;
/// Of what was sent with a wide window: beyond that a third may not be far below the limit.
const share_max = 0.3;
const share_min = 0.018;
/// Of so many sent.
const sample = 400;
const share_usual = 0.012;
/// With noise a window is narrowed once for each step that the share of late rises above twice the noise; and beyond that share it is no
/// noise any more.
const step = 0.05;
const share_lost = 0.6;
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
    /// In noise: the share at which it is narrowed once more.
    level: f64 = 0,

    const Count = struct {
        sent: u32 = 0,
        refused: u32 = 0,

        fn share(count: Count) f64 {
            return @as(f64, @floatFromInt(count.refused)) / @as(f64, @floatFromInt(@max(count.sent, 1)));
        }
    };

    fn begin(noise: *Noise, window: f64) void {
        noise.* = .{ .wide = window, .share_of_late = noise.share_of_late };
    }

    /// One is sent, while the window is as wide as that.
    pub fn noteSent(noise: *Noise, window: f64) void {
        noise.share_of_late -= noise.share_of_late / of_late;
        noise.excess = @max(0, noise.excess - 1 / rare);
        if (noise.share) |share| {
            noise.sent_since +|= 1;
            if (noise.share_of_late <= 2 * share + step) noise.level = 0;
            if (@as(f64, @floatFromInt(noise.sent_since)) * share > silent) noise.begin(window);
            return;
        }
        if (noise.excess == 0) return noise.begin(window);
        const count = noise.countAt(window);
        count.sent +|= 1;
        if (count.sent >= sample and count.share() < share_usual) noise.begin(window);
    }

    /// One of those was refused; `counts`: it would narrow the window. False: it is noise, and is not to.
    pub fn noteRefused(noise: *Noise, window: f64, counts: bool) bool {
        noise.share_of_late += 1 / of_late;
        noise.sent_since = 0;
        if (noise.share) |share| {
            if (noise.share_of_late <= @max(noise.level, 2 * share + step)) return false;
            if (noise.share_of_late < share_lost) {
                noise.level = noise.share_of_late + step;
                return counts;
            }
            noise.begin(window);
        }
        if (counts) noise.excess += 1;
        noise.countAt(window).refused +|= 1;
        return true;
    }

    fn countAt(noise: *Noise, window: f64) *Count {
        return if (window > noise.wide * narrow) &noise.at_wide else &noise.at_narrow;
    }

    /// After it was narrowed. The window it is to have instead, if what was refused turns out to be noise.
    pub fn judge(noise: *Noise, window: f64) ?f64 {
        if (window > noise.wide * narrow) return null;
        if (noise.at_wide.share() > share_max) {
            noise.begin(window);
            return null;
        }
        if (noise.at_narrow.refused < refused_min) return null;
        const share = noise.at_narrow.share();
        const is_noise = share <= share_max and @min(share, noise.at_wide.share()) >= share_min and share >= noise.at_wide.share() / 2;
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
        noise.noteSent(window);
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

test "noise ends when nothing is refused for long, or nearly everything" {
    var noise: Noise = .{ .share = 0.1, .share_of_late = 0.1 };
    try testing.expect(!noise.noteRefused(50, true));
    for (0..101) |_| noise.noteSent(50);
    try testing.expectEqual(null, noise.share);

    noise = .{ .share = 0.1, .share_of_late = 0.1 };
    var narrowed: usize = 0;
    for (0..100) |_| {
        noise.noteSent(50);
        narrowed += @intFromBool(noise.noteRefused(50, true));
        if (noise.share == null) break;
    } else return error.StillNoise;
    try testing.expect(narrowed > 3 and narrowed < 15);
}
