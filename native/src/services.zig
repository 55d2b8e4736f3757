//! What calls need of the runtime.

const std = @import("std");
const sync = @import("base/sync.zig");
const clock_file = @import("base/clock.zig");
const engine_file = @import("http/engine.zig");
const gates_file = @import("gates.zig");
const pool_file = @import("pool/pool.zig");
const retry = @import("graph/retry.zig");
const timers_file = @import("timers.zig");
const together_file = @import("together.zig");

const Allocator = std.mem.Allocator;

pub const Services = struct {
    gpa: Allocator,
    clock: *clock_file.Clock,
    timers: *timers_file.Timers,
    engine: *engine_file.Engine,
    pool: *pool_file.Pool,
    gates: *gates_file.Gates,
    /// The engine's thread's.
    together: together_file.Together,
    /// By retry.Reason.
    retried: [retry.reason_count]sync.Atomic(u64) = @splat(.init(0)),
    dice: sync.Atomic(u64),

    pub fn retriedInAll(services: *const Services) u64 {
        var all: u64 = 0;
        for (&services.retried) |*reason| all += reason.load(.monotonic);
        return all;
    }

    /// A fresh pseudo-random number (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    pub fn roll(services: *Services) u64 {
        var z = services.dice.fetchAdd(0x9e3779b97f4a7c15, .monotonic) +% 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) *% 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) *% 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
};
