//! The program around the simulator: what to run, how often, and what to say when it fails.

const std = @import("std");
const dice_file = @import("dice.zig");
const interleave = @import("interleave.zig");
const scenarios = @import("scenarios.zig");
const sim = @import("sim.zig");
const small = @import("small.zig");
const small_graph = @import("small_graph.zig");
const toys = @import("toys.zig");

const Writer = std.Io.Writer;

const Options = struct {
    mode: enum { seeds, interleave, toys } = .seeds,
    seeds: u64 = 10_000,
    seed: u64 = 1,
    filter: []const u8 = "",
    path: ?[]const u8 = null,
};

const programs = small.programs ++ small_graph.programs;
const sim_steps_max = 400_000;

pub fn main(gpa: std.mem.Allocator, io: std.Io, args: []const [:0]const u8) !u8 {
    var buffer: [4096]u8 = undefined;
    var file = std.Io.File.stdout().writerStreaming(io, &buffer);
    const out = &file.interface;
    defer out.flush() catch {};
    const options = read(args) catch {
        try out.writeAll("sim: an argument was not understood; see native/src/sim_main.zig\n");
        return 2;
    };
    return switch (options.mode) {
        .seeds => simulate(gpa, out, options),
        .interleave => explore(gpa, out, options),
        .toys => toys.main(gpa, out),
    };
}

fn read(args: []const [:0]const u8) !Options {
    var options: Options = .{};
    var i: usize = 1;
    while (i < args.len) : (i += 1) {
        const name = args[i];
        if (std.mem.eql(u8, name, "--interleave")) {
            options.mode = .interleave;
            continue;
        }
        if (std.mem.eql(u8, name, "--catch")) {
            options.mode = .toys;
            continue;
        }
        i += 1;
        if (i == args.len) return error.Missing;
        if (std.mem.eql(u8, name, "--seeds")) {
            options.seeds = try std.fmt.parseInt(u64, args[i], 0);
        } else if (std.mem.eql(u8, name, "--seed")) {
            options.seed = try std.fmt.parseInt(u64, args[i], 0);
        } else if (std.mem.eql(u8, name, "--filter")) {
            options.filter = args[i];
        } else if (std.mem.eql(u8, name, "--path")) {
            options.path = args[i];
        } else return error.Unknown;
    }
    return options;
}

// ----------------------------------------------------------------------------------------------------- simulation

fn simulate(gpa: std.mem.Allocator, out: *Writer, options: Options) !u8 {
    var chosen: [scenarios.all.len]scenarios.Scenario = undefined;
    var runs: [scenarios.all.len]u64 = @splat(0);
    var steps: [scenarios.all.len]u64 = @splat(0);
    var count: usize = 0;
    for (scenarios.all) |scenario| if (std.mem.indexOf(u8, scenario.name, options.filter) != null) {
        chosen[count] = scenario;
        count += 1;
    };
    if (count == 0) {
        try out.print("no scenario is called {s}\n", .{options.filter});
        return 2;
    }
    for (options.seed..options.seed +| options.seeds) |seed| {
        var prng = std.Random.DefaultPrng.init(seed);
        const which = prng.random().uintLessThan(usize, count);
        var dice: dice_file.Dice = .init(prng.random().int(u64));
        scenarios.parameters = .init(prng.random().int(u64));
        runs[which] += 1;
        const passed = sim.the.run(&dice.chooser, chosen[which].run, sim_steps_max);
        steps[which] += sim.the.steps;
        if (passed) continue;
        try out.print("\nseed {d} fails: {s}\n", .{ seed, chosen[which].name });
        try explain(gpa, out);
        try out.print("\nonce more:  python build.py --sim 1 --seed {d}", .{seed});
        if (options.filter.len > 0) try out.print(" --filter '{s}'", .{options.filter});
        try out.writeAll("\n");
        return 1;
    }
    var total: u64 = 0;
    for (chosen[0..count], runs[0..count], steps[0..count]) |scenario, times, taken| {
        try out.print("{s:<44} {d:>7} seeds {d:>12} steps\n", .{ scenario.name, times, taken });
        total += taken;
    }
    try out.print("{d} seeds from {d} on, {d} steps: nothing lost, doubled or misordered\n", .{ options.seeds, options.seed, total });
    return 0;
}

// ---------------------------------------------------------------------------------------------------- interleavings

fn explore(gpa: std.mem.Allocator, out: *Writer, options: Options) !u8 {
    var explorer: interleave.Explorer = .{ .gpa = gpa };
    defer explorer.deinit();
    var total: u64 = 0;
    var found: usize = 0;
    for (programs) |program| if (std.mem.indexOf(u8, program.name, options.filter) != null) {
        found += 1;
        if (options.path) |path| {
            var replay: interleave.Explorer.Replay = try .init(path);
            const passed = sim.the.run(&replay.chooser, program.run, program.steps_max);
            try out.print("{s}\n", .{program.name});
            try explain(gpa, out);
            return @intFromBool(!passed);
        }
        try out.print("{s:<48}", .{program.name});
        try out.flush();
        var counts: [8]u64 = undefined;
        const result = explorer.explore(&sim.the, program, program.bound, &counts);
        total += result.interleavings;
        if (result.failed) {
            try out.print("\n{s} fails with {d} preemptions, after {d} interleavings\n", .{ program.name, result.bound, result.interleavings });
            try explain(gpa, out);
            try out.print("\nonce more:  python build.py --interleave --filter '{s}' --path ", .{program.name});
            try explorer.writePath(out);
            try out.writeAll("\n");
            return 1;
        }
        for (counts[0 .. program.bound + 1]) |count| try out.print(" {d:>8}", .{count});
        try out.writeAll("\n");
    };
    if (found == 0) {
        try out.print("no program is called {s}\n", .{options.filter});
        return 2;
    }
    try out.print("{d} interleavings of {d} programs (columns: with 0, 1, 2, ... preemptions): all hold\n", .{ total, found });
    return 0;
}

// ------------------------------------------------------------------------------------------------------- a failure

fn explain(gpa: std.mem.Allocator, out: *Writer) !void {
    const it = &sim.the;
    if (it.failed) try out.print("{s}: {s}\n", .{ it.fibres[it.failure.fibre].name, it.failure.text() });
    try out.writeAll("\nthe last steps\n");
    var steps: [sim.trace_max]sim.Step = undefined;
    for (it.lastSteps(&steps)) |*step| {
        try out.print("{d:>7}  {s:<10} {d} ", .{ step.number, it.fibres[step.fibre].name, step.fibre });
        switch (step.kind) {
            .load => try out.print("{s:<9} ..{x:0>6} is {x}", .{ "load", step.address & 0xffffff, step.before }),
            .give_way, .end => try out.print("{t:<9}", .{step.kind}),
            .spawn, .join => try out.print("{t:<9} {d}", .{ step.kind, step.after }),
            .wake => try out.print("{s:<9} ..{x:0>6} woke {d}", .{ "wake", step.address & 0xffffff, step.after }),
            .wait, .woken, .timed_out => try out.print("{t:<9} ..{x:0>6} is {x}, waits on {x}", .{ step.kind, step.address & 0xffffff, step.before, step.after }),
            .refused => try out.print("{s:<9} ..{x:0>6} is {x}, not made {x}", .{ "refused", step.address & 0xffffff, step.before, step.after }),
            else => try out.print("{t:<9} ..{x:0>6} {x} -> {x}", .{ step.kind, step.address & 0xffffff, step.before, step.after }),
        }
        if (step.at != 0) {
            try out.writeAll("   ");
            try place(gpa, out, step.at);
        }
        try out.writeAll("\n");
    }
    if (!it.failed) return;
    try out.writeAll("\nwhere everybody stands\n");
    for (it.fibres[0..it.count], 0..) |*fibre, id| {
        try out.print("         {s:<10} {d} {t:<9} ", .{ fibre.name, id, fibre.state });
        if (fibre.state == .waiting or fibre.state == .joining) try place(gpa, out, fibre.at);
        try out.writeAll("\n");
    }
    if (it.failure.trace_length > 0) {
        try out.writeAll("\nwhere it was seen\n");
        for (it.failure.trace[0..it.failure.trace_length]) |address| {
            try out.writeAll("         ");
            try place(gpa, out, address);
            try out.writeAll("\n");
        }
    }
}

/// "pool/deque.zig:87 pop": the first line of what the standard library would print of an address, shortened.
fn place(gpa: std.mem.Allocator, out: *Writer, address: usize) !void {
    var text: Writer.Allocating = .init(gpa);
    defer text.deinit();
    var addresses = [_]usize{address};
    const trace: std.debug.StackTrace = .{ .return_addresses = &addresses, .skipped = .none };
    std.debug.writeStackTrace(&trace, .{ .writer = &text.writer, .mode = .no_color }) catch return;
    const line = std.mem.sliceTo(text.written(), '\n');
    const file_end = std.mem.indexOf(u8, line, ": 0x") orelse return;
    const file = line[0..file_end];
    const from = if (std.mem.indexOf(u8, file, "/src/")) |at| at + "/src/".len else 0;
    const column = std.mem.lastIndexOfScalar(u8, file, ':') orelse file.len;
    try out.writeAll(file[from..@max(from, column)]);
    if (std.mem.indexOf(u8, line, " in ")) |at| try out.print(" {s}", .{std.mem.sliceTo(line[at + 4 ..], ' ')});
}
