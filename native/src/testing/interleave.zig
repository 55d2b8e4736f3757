//! Every interleaving of a small program, up to a number of preemptions: stateless model checking with context bounding
//! (Musuvathi and Qadeer, "Iterative context bounding for systematic testing of multithreaded programs", 2007).
//!
//! A run is a path through choices. The first run takes the first option everywhere: the fibre that runs goes on. After each
//! run the last choice that has an option left takes it, and what came before is repeated as it was; when none is left, all have
//! been seen. Choosing another fibre while the running one could go on is a preemption and costs one; where it waits, ends or
//! gives way, choosing is free. Programs with concurrency faults nearly always show them with two preemptions.
//!
//! What is not explored here: exchanges and waits that fail for no reason, and time; the dice do that (dice.zig).

const std = @import("std");
const sim_file = @import("sim.zig");

const Sim = sim_file.Sim;

pub const Program = struct { name: []const u8, run: *const fn () void, bound: u8 = 3, steps_max: u64 = 5_000 };

pub const Result = struct { interleavings: u64, steps: u64, failed: bool, bound: u8 };

const Choice = struct { options: u8, chosen: u8, free: bool, preemptions_before: u8 };

pub const Explorer = struct {
    chooser: sim_file.Chooser = .{ .pick = pick, .pickWaiter = firstWaiter, .chance = never, .pause = noTime },
    path: std.ArrayList(Choice) = .empty,
    gpa: std.mem.Allocator,
    at: usize = 0,
    preemptions: u8 = 0,
    bound: u8 = 0,

    pub fn deinit(explorer: *Explorer) void {
        explorer.path.deinit(explorer.gpa);
    }

    /// With one preemption more at a time, so that what fails first is as simple as can be.
    pub fn explore(explorer: *Explorer, sim: *Sim, program: Program, bound: u8, counts: []u64) Result {
        var result: Result = .{ .interleavings = 0, .steps = 0, .failed = false, .bound = 0 };
        for (0..bound + 1) |allowed| {
            explorer.bound = @intCast(allowed);
            result.bound = explorer.bound;
            explorer.path.clearRetainingCapacity();
            counts[allowed] = 0;
            while (true) {
                result.failed = !explorer.once(sim, program);
                counts[allowed] += 1;
                result.interleavings += 1;
                result.steps += sim.steps;
                if (result.failed) return result;
                if (!explorer.next()) break;
            }
        }
        return result;
    }

    pub fn once(explorer: *Explorer, sim: *Sim, program: Program) bool {
        explorer.at = 0;
        explorer.preemptions = 0;
        return sim.run(&explorer.chooser, program.run, program.steps_max);
    }

    /// The next path. False: all have been seen.
    fn next(explorer: *Explorer) bool {
        while (explorer.path.pop()) |last| {
            if (last.chosen + 1 == last.options) continue;
            if (!last.free and last.preemptions_before == explorer.bound) continue;
            var other = last;
            other.chosen += 1;
            explorer.path.append(explorer.gpa, other) catch @panic("out of memory");
            return true;
        }
        return false;
    }

    fn pick(chooser: *sim_file.Chooser, options: []const u8, free: bool) usize {
        const explorer: *Explorer = @fieldParentPtr("chooser", chooser);
        // Nothing to choose: not worth remembering either.
        if (!free and explorer.preemptions == explorer.bound) return 0;
        if (explorer.at == explorer.path.items.len) explorer.path.append(explorer.gpa, .{
            .options = @intCast(options.len),
            .chosen = 0,
            .free = free,
            .preemptions_before = explorer.preemptions,
        }) catch @panic("out of memory");
        const choice = explorer.path.items[explorer.at];
        explorer.at += 1;
        sim_file.check(choice.options == options.len and choice.free == free, "the program does not do the same when it is run again");
        if (!free and choice.chosen != 0) explorer.preemptions += 1;
        return choice.chosen;
    }

    /// The choices of the last run that were not the first option, as `readPath` takes them.
    pub fn writePath(explorer: *const Explorer, writer: *std.Io.Writer) std.Io.Writer.Error!void {
        try writer.print("{d}", .{explorer.bound});
        for (explorer.path.items, 0..) |choice, i| if (choice.chosen != 0) try writer.print(",{d}:{d}", .{ i, choice.chosen });
    }

    /// A run that was written down. Its choices are filled in as the program comes to them.
    pub const Replay = struct {
        chooser: sim_file.Chooser = .{ .pick = Replay.pick, .pickWaiter = firstWaiter, .chance = never, .pause = noTime },
        text: []const u8,
        bound: u8 = 0,
        at: usize = 0,
        preemptions: u8 = 0,

        pub fn init(text: []const u8) !Replay {
            var parts = std.mem.splitScalar(u8, text, ',');
            const bound = try std.fmt.parseInt(u8, parts.next().?, 10);
            return .{ .text = parts.rest(), .bound = bound };
        }

        fn pick(chooser: *sim_file.Chooser, options: []const u8, free: bool) usize {
            const replay: *Replay = @fieldParentPtr("chooser", chooser);
            if (!free and replay.preemptions == replay.bound) return 0;
            defer replay.at += 1;
            var parts = std.mem.splitScalar(u8, replay.text, ',');
            while (parts.next()) |part| {
                var two = std.mem.splitScalar(u8, part, ':');
                const place = std.fmt.parseInt(usize, two.next().?, 10) catch continue;
                if (place != replay.at) continue;
                const chosen = std.fmt.parseInt(usize, two.rest(), 10) catch continue;
                if (!free and chosen != 0) replay.preemptions += 1;
                return @min(chosen, options.len - 1);
            }
            return 0;
        }
    };
};

fn firstWaiter(_: *sim_file.Chooser, _: usize) usize {
    return 0;
}
fn never(_: *sim_file.Chooser, _: u32) bool {
    return false;
}
fn noTime(_: *sim_file.Chooser) u64 {
    return 0;
}
