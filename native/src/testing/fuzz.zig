//! The program around random runs over the decoders and the JSON reader: which to make, how often, and what to say of one that
//! fails. A run is a seed: a kind, an input and the choices of whoever looks at what the core makes of it. One in eight is made
//! again with an allocation refused somewhere, which must be told as error.OutOfMemory, and cost nothing but that.
//!
//! An input that fails is made smaller for as long as it fails, then printed with the line that makes the run again.

const std = @import("std");
const json = @import("fuzz_json.zig");
const meter_file = @import("meter.zig");
const replies = @import("fuzz_replies.zig");
const streams = @import("fuzz_streams.zig");
const trial_file = @import("trial.zig");

const Allocator = std.mem.Allocator;
const Kind = trial_file.Kind;
const Meter = meter_file.Meter;
const Trial = trial_file.Trial;
const Writer = std.Io.Writer;

pub const kinds = streams.kinds ++ json.kinds ++ replies.kinds;

const Options = struct { seeds: u64 = 10_000, seed: u64 = 1, filter: []const u8 = "" };

/// What is being run, for whoever reports a crash.
pub var now: struct { seed: std.atomic.Value(u64) = .init(0), kind: []const u8 = "", filter: []const u8 = "" } = .{};

pub fn main(gpa: Allocator, io: std.Io, args: []const [:0]const u8) !u8 {
    var buffer: [4096]u8 = undefined;
    var file = std.Io.File.stdout().writerStreaming(io, &buffer);
    const out = &file.interface;
    defer out.flush() catch {};
    const options = read(args) catch {
        try out.writeAll("fuzz: an argument was not understood; see native/src/fuzz_main.zig\n");
        return 2;
    };
    var session: Session = try .init(gpa, options.filter);
    defer session.deinit();
    if (session.count == 0) {
        try out.print("no kind of run is called {s}\n", .{options.filter});
        return 2;
    }
    now.filter = options.filter;
    const began = std.Io.Timestamp.now(io, .awake);
    for (options.seed..options.seed +| options.seeds) |seed| if (!try session.run(seed)) {
        try session.explain(out, seed);
        try writeAgain(out, seed, options.filter);
        return 1;
    };
    for (session.tallies[0..session.count], session.chosen[0..session.count]) |tally, kind| {
        const counts = .{ kind.name, tally.runs, tally.bytes, tally.refused };
        try out.print("{s:<44} {d:>9} runs {d:>12} bytes {d:>8} with memory refused\n", counts);
    }
    const seconds = @as(f64, @floatFromInt(began.untilNow(io, .awake).nanoseconds)) / 1e9;
    try out.print("{d} runs from {d} on, {d:.1} s: all agree, and no memory was kept\n", .{ options.seeds, options.seed, seconds });
    return 0;
}

fn read(args: []const [:0]const u8) !Options {
    var options: Options = .{};
    var i: usize = 1;
    while (i + 1 < args.len) : (i += 2) {
        const name, const value = .{ args[i], args[i + 1] };
        if (std.mem.eql(u8, name, "--seeds")) {
            options.seeds = try std.fmt.parseInt(u64, value, 0);
        } else if (std.mem.eql(u8, name, "--seed")) {
            options.seed = try std.fmt.parseInt(u64, value, 0);
        } else if (std.mem.eql(u8, name, "--filter")) {
            options.filter = value;
        } else return error.Unknown;
    }
    return if (i == args.len) options else error.Missing;
}

pub fn writeAgain(out: *Writer, seed: u64, filter: []const u8) Writer.Error!void {
    try out.print("\nonce more:  python build.py --fuzz 1 --seed {d}", .{seed});
    if (filter.len > 0) try out.print(" --filter '{s}'", .{filter});
    try out.writeAll("\n");
}

const Session = struct {
    chosen: [kinds.len]Kind = undefined,
    tallies: [kinds.len]Tally = @splat(.{}),
    count: usize = 0,
    meter: Meter,
    /// Of one run.
    arena: std.heap.ArenaAllocator,
    failure: Failure = .{},

    const lengths_tried = 64;
    const Tally = struct { runs: u64 = 0, bytes: u64 = 0, refused: u64 = 0 };

    const Failure = struct {
        kind: []const u8 = "",
        words: []const u8 = "",
        input: []const u8 = "",
        input_bytes: usize = 0, // before it was made smaller
        refused: ?u64 = null,
    };

    fn init(gpa: Allocator, filter: []const u8) Allocator.Error!Session {
        var session: Session = .{ .meter = try .init(), .arena = .init(gpa) };
        for (kinds) |kind| if (std.mem.indexOf(u8, kind.name, filter) != null) {
            session.chosen[session.count] = kind;
            session.count += 1;
        };
        return session;
    }

    fn deinit(session: *Session) void {
        session.meter.deinit();
        session.arena.deinit();
    }

    /// False: it failed, see `failure`.
    fn run(session: *Session, seed: u64) Allocator.Error!bool {
        var prng: std.Random.DefaultPrng = .init(seed);
        const random = prng.random();
        const which = random.uintLessThan(usize, session.count);
        const kind = &session.chosen[which];
        now.seed.store(seed, .monotonic);
        now.kind = kind.name;
        _ = session.arena.reset(.retain_capacity);
        const arena = session.arena.allocator();
        var input: std.ArrayList(u8) = .empty;
        try kind.write(random, arena, &input);
        const choices = random.int(u64);
        const tally = &session.tallies[which];
        tally.runs += 1;
        tally.bytes += input.items.len;
        if (try session.attempt(kind, input.items, choices, null)) |words| {
            try session.shrink(kind, &input, choices, words);
            return false;
        }
        if (session.meter.asked == 0 or random.uintLessThan(u8, 8) != 0) return true;
        tally.refused += 1;
        const refused = random.uintLessThan(u64, session.meter.asked);
        const words = try session.attempt(kind, input.items, choices, refused) orelse return true;
        session.failure = .{ .kind = kind.name, .words = words, .input = input.items, .input_bytes = input.items.len, .refused = refused };
        return false;
    }

    /// What was wrong, or null. `refuse`: an allocation that fails.
    fn attempt(session: *Session, kind: *const Kind, input: []const u8, choices: u64, refuse: ?u64) Allocator.Error!?[]const u8 {
        session.meter.reset(refuse);
        var trial: Trial = .{ .input = input, .choices = choices, .gpa = session.meter.allocator(), .arena = session.arena.allocator() };
        const ended = kind.check(&trial);
        if (session.meter.verdict()) |words| return words;
        if (ended) {
            return if (session.meter.has_refused) "an allocation was refused, and nobody said so" else null;
        } else |err| switch (err) {
            error.Wrong => return trial.words.items,
            error.OutOfMemory => return if (session.meter.has_refused) null else "out of memory, though nothing was refused",
        }
    }

    /// Takes away what the failure does not need. What belongs together and goes only together is mostly short.
    fn shrink(session: *Session, kind: *const Kind, input: *std.ArrayList(u8), choices: u64, first: []const u8) Allocator.Error!void {
        const arena = session.arena.allocator();
        var words = first;
        const bytes_before = input.items.len;
        var length = input.items.len;
        while (length > 0) : (length = if (length > lengths_tried) length / 2 else length - 1) {
            var at: usize = 0;
            while (at + length <= input.items.len) {
                var fewer: std.ArrayList(u8) = .empty;
                try fewer.appendSlice(arena, input.items[0..at]);
                try fewer.appendSlice(arena, input.items[at + length ..]);
                if (try session.attempt(kind, fewer.items, choices, null)) |found| {
                    words = found;
                    input.* = fewer;
                } else at += if (length > lengths_tried) length / 2 else 1;
            }
        }
        session.failure = .{ .kind = kind.name, .words = words, .input = input.items, .input_bytes = bytes_before };
    }

    fn explain(session: *const Session, out: *Writer, seed: u64) Writer.Error!void {
        const failure = &session.failure;
        try out.print("\nseed {d} fails: {s}\n{s}\n", .{ seed, failure.kind, failure.words });
        if (failure.refused) |number| try out.print("when allocation {d} was refused\n", .{number});
        try out.print("input, {d} bytes left of {d}:\n", .{ failure.input.len, failure.input_bytes });
        try out.print("    \"{f}\"\n", .{std.zig.fmtString(failure.input)});
    }
};

test "a few random runs of each kind" {
    const seed = std.testing.random_seed;
    for (kinds) |kind| {
        var session: Session = try .init(std.testing.allocator, kind.name);
        defer session.deinit();
        for (0..300) |n| if (!try session.run(seed + n)) {
            std.debug.print("{s}: {s}\n", .{ kind.name, session.failure.words });
            std.debug.print("\nonce more:  python build.py --fuzz 1 --seed {d} --filter '{s}'\n", .{ seed + n, kind.name });
            return error.Wrong;
        };
    }
}
