//! Root of the program that proves the core's concurrency: simulation by seed and interleavings, over the seam.
//!
//!     sim --seeds 10000 --seed 1 [--filter words]            seeded: each seed is a scenario, its parameters and an interleaving
//!     sim --interleave [--filter words] [--path 1,17:1]      exhaustive: every interleaving of small programs
//!     sim --catch                                            whether faults put into toys are caught at all

const std = @import("std");
const sim = @import("testing/sim.zig");
const report = @import("testing/report.zig");

/// What base/sync.zig takes instead of the real ones.
pub const graphbit_sync = @import("testing/seam.zig");

pub const std_options: std.Options = .{ .signal_stack_size = null };
pub const panic = std.debug.FullPanic(onPanic);

fn onPanic(message: []const u8, first: ?usize) noreturn {
    if (sim.the.current != null) sim.failAt(message, first);
    std.debug.defaultPanic(message, first);
}

pub fn main(init: std.process.Init) !u8 {
    return report.main(init.gpa, init.io, try init.minimal.args.toSlice(init.arena.allocator()));
}
