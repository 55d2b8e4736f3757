//! How a bound that was too wide is tried again: along a cubic curve through a mark, what was borne when it last was too much. Soon back
//! near the mark, long around it, and beyond it ever faster, in case the server has been given more room (CUBIC: Ha, Rhee, Xu, "CUBIC:
//! a new TCP-friendly high-speed TCP variant", 2008; RFC 9438). Pure.
//!
//! Only time counts in which the bound is what holds requests back: where nothing was tried nothing is proved.

const std = @import("std");

/// So much wider than the mark, it is the mark of a new curve.
const renewed_at = 4.0;

pub const Curve = struct {
    mark: f64 = 0,
    /// So much of the mark lower it begins, and
    below: f64 = 0,
    /// beyond the mark it is as steep as if it had begun so much lower.
    beyond: f64 = 0,
    /// When it began, later by the time that did not count.
    epoch_ns: u64 = 0,
    looked_ns: u64 = 0,

    pub fn begin(now_ns: u64, mark: f64, below: f64, beyond: f64) Curve {
        return .{ .mark = mark, .below = below, .beyond = beyond, .epoch_ns = now_ns, .looked_ns = now_ns };
    }

    /// How wide the bound is now, where it may not be more than `most`. The mark is reached after `flat_ns`. Of the time since it was
    /// last looked at no more than `counting_ns` counts.
    pub fn advance(curve: *Curve, now_ns: u64, flat_ns: f64, counting_ns: u64, most: f64) f64 {
        const since_ns = now_ns -| curve.looked_ns;
        curve.looked_ns = @max(curve.looked_ns, now_ns);
        curve.epoch_ns += since_ns - @min(since_ns, counting_ns);
        const x = @as(f64, @floatFromInt(now_ns -| curve.epoch_ns)) / flat_ns - 1;
        const share = 1 + x * x * x * curve.steepnessAt(x);
        const bound = @min(curve.mark * share, most);
        if (share > renewed_at) {
            curve.mark = bound;
            curve.epoch_ns = now_ns -| @as(u64, @intFromFloat(flat_ns));
        }
        return bound;
    }

    /// When it will be as wide as that, if all time counts.
    pub fn reachesAt(curve: *const Curve, flat_ns: f64, bound: f64) f64 {
        const beyond_mark = bound / curve.mark - 1;
        const x = std.math.cbrt(beyond_mark / @max(curve.steepnessAt(beyond_mark), 0.001));
        return @as(f64, @floatFromInt(curve.epoch_ns)) + flat_ns * (1 + x);
    }

    /// The clock has gone backwards.
    pub fn rewind(curve: *Curve, now_ns: u64) void {
        curve.epoch_ns = now_ns;
        curve.looked_ns = now_ns;
    }

    fn steepnessAt(curve: *const Curve, x: f64) f64 {
        return if (x < 0) curve.below else curve.beyond;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;
const second = std.time.ns_per_s;

test "it begins below the mark, is there after the flat time, and the mark of the next one is where it has grown to" {
    var curve: Curve = .begin(second, 100, 0.2, 0.5);
    const flat_ns = 10 * second;
    const inf = std.math.inf(f64);
    try testing.expectApproxEqAbs(80, curve.advance(second, flat_ns, second, inf), 0.001);
    try testing.expectApproxEqAbs(100, curve.advance(11 * second, flat_ns, 10 * second, inf), 0.001);
    try testing.expectApproxEqAbs(150, curve.advance(21 * second, flat_ns, 10 * second, inf), 0.001);
    try testing.expectApproxEqAbs(120, curve.advance(21 * second, flat_ns, 0, 120), 0.001);
    try testing.expectApproxEqAbs(21 * second, curve.reachesAt(flat_ns, 150), 1000);
    try testing.expectApproxEqAbs(6 * second, curve.reachesAt(flat_ns, 97.5), 1000);
    const wide = curve.advance(41 * second, flat_ns, 20 * second, inf);
    try testing.expectApproxEqAbs(1450, wide, 0.001);
    try testing.expectApproxEqAbs(1450, curve.mark, 0.001);
    try testing.expectApproxEqAbs(1450, curve.advance(41 * second, flat_ns, 0, inf), 0.001);
}

test "time that does not count does not widen it" {
    var curve: Curve = .begin(0, 100, 0.2, 0.5);
    for (1..100) |i| try testing.expectApproxEqAbs(80, curve.advance(i * second, 10 * second, 0, 1000), 0.001);
    try testing.expect(curve.advance(110 * second, 10 * second, second, 1000) < 90);
}
