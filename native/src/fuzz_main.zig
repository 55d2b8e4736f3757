//! Root of the program that makes random runs over the decoders and the JSON reader, each compared with somebody dumb.
//!
//!     fuzz --seeds 300000 --seed 1 [--filter words]          each seed is a kind of run, an input and how it is cut

const std = @import("std");
const fuzz = @import("testing/fuzz.zig");

pub const panic = std.debug.FullPanic(onPanic);
pub const debug = struct {
    pub fn handleSegfault(address: ?usize, name: []const u8, context: ?std.debug.CpuContextPtr) noreturn {
        sayWhichSeed(name);
        std.debug.defaultHandleSegfault(address, name, context);
    }
};

const hang_s = 60;

fn onPanic(message: []const u8, first: ?usize) noreturn {
    sayWhichSeed(message);
    std.debug.defaultPanic(message, first);
}

fn sayWhichSeed(message: []const u8) void {
    var buffer: [1024]u8 = undefined;
    const out = std.debug.lockStderr(&buffer).terminal().writer;
    defer std.debug.unlockStderr();
    const seed = fuzz.now.seed.load(.monotonic);
    out.print("\nseed {d} crashes: {s}\n{s}\n", .{ seed, fuzz.now.kind, message }) catch return;
    fuzz.writeAgain(out, seed, fuzz.now.filter) catch return;
}

/// Ends a run that does not end. A thread of its own.
fn watch(io: std.Io) void {
    var before: u64 = 0;
    while (true) {
        io.sleep(.fromSeconds(hang_s), .awake) catch return;
        const seed = fuzz.now.seed.load(.monotonic);
        if (seed == before) {
            sayWhichSeed("it does not end");
            std.process.exit(1);
        }
        before = seed;
    }
}

pub fn main(init: std.process.Init) !u8 {
    const watcher = try std.Thread.spawn(.{}, watch, .{init.io});
    watcher.detach();
    return fuzz.main(init.gpa, init.io, try init.minimal.args.toSlice(init.arena.allocator()));
}
