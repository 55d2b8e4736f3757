//! A scheduler of chance: the seed chooses the manner, and in that manner every step.
//!
//! Three manners, since each finds what the others miss: anybody at every step; the same fibre for a while; priorities with a
//! few moments at which the highest falls to the bottom (Burckhardt et al., "A randomized scheduler with probabilistic guarantees
//! of finding bugs", 2010), which finds what needs one fibre to be delayed for very long.

const std = @import("std");
const sim_file = @import("sim.zig");

const Manner = union(enum) {
    anybody,
    /// Another one in so many steps.
    sticky: u32,
    priorities: struct { of: [sim_file.fibres_max]u32, falls: [3]u64, fallen: u32 },
};

pub const Dice = struct {
    chooser: sim_file.Chooser = .{ .pick = pick, .pickWaiter = pickWaiter, .chance = chance, .pause = pause },
    prng: std.Random.DefaultPrng,
    manner: Manner,
    step: u64 = 0,
    /// Some runs have none of what happens for no reason, and none in which time passes.
    quirks: bool,
    time: bool,

    pub fn init(seed: u64) Dice {
        var prng = std.Random.DefaultPrng.init(seed);
        const random = prng.random();
        const manner: Manner = switch (random.uintLessThan(u8, 4)) {
            0 => .anybody,
            1 => .{ .sticky = random.intRangeAtMost(u32, 3, 60) },
            else => blk: {
                var of: [sim_file.fibres_max]u32 = undefined;
                for (&of, 0..) |*one, i| one.* = @intCast((1 << 21) + i);
                random.shuffle(u32, &of);
                const length = ([_]u64{ 50, 300, 2_000 })[random.uintLessThan(usize, 3)];
                var falls: [3]u64 = undefined;
                for (&falls) |*fall| fall.* = random.uintLessThan(u64, length);
                break :blk .{ .priorities = .{ .of = of, .falls = falls, .fallen = 1 << 20 } };
            },
        };
        return .{ .prng = prng, .manner = manner, .quirks = random.boolean(), .time = random.boolean() };
    }

    fn pick(chooser: *sim_file.Chooser, options: []const u8, free: bool) usize {
        const dice: *Dice = @fieldParentPtr("chooser", chooser);
        const random = dice.prng.random();
        switch (dice.manner) {
            .anybody => return random.uintLessThan(usize, options.len),
            .sticky => |one_in| return if (!free and random.uintLessThan(u32, one_in) != 0) 0 else random.uintLessThan(usize, options.len),
            .priorities => |*p| {
                dice.step += 1;
                const current = sim_file.the.current.?;
                const gives_way = free and sim_file.the.isRunnable(current);
                if (gives_way or std.mem.indexOfScalar(u64, &p.falls, dice.step) != null) {
                    p.of[current] = p.fallen;
                    p.fallen -|= 1;
                }
                var best: usize = 0;
                for (options, 0..) |id, i| if (p.of[id] > p.of[options[best]]) {
                    best = i;
                };
                return best;
            },
        }
    }

    fn pickWaiter(chooser: *sim_file.Chooser, count: usize) usize {
        const dice: *Dice = @fieldParentPtr("chooser", chooser);
        return dice.prng.random().uintLessThan(usize, count);
    }

    fn chance(chooser: *sim_file.Chooser, one_in: u32) bool {
        const dice: *Dice = @fieldParentPtr("chooser", chooser);
        return dice.quirks and dice.prng.random().uintLessThan(u32, one_in) == 0;
    }

    fn pause(chooser: *sim_file.Chooser) u64 {
        const dice: *Dice = @fieldParentPtr("chooser", chooser);
        if (!dice.time) return 0;
        const random = dice.prng.random();
        return if (random.uintLessThan(u8, 64) == 0) random.uintLessThan(u64, 1 << 22) else random.uintLessThan(u64, 64);
    }
};
