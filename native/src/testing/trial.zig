//! A trial: one random run, as its kind sees it. The kind writes an input, and looks at what the core makes of it; all else that
//! is chosen follows from `choices`, so that an input can be made smaller and looked at again.

const std = @import("std");

const Allocator = std.mem.Allocator;

/// A sort of trial.
pub const Kind = struct {
    name: []const u8,
    write: *const fn (random: std.Random, arena: Allocator, out: *std.ArrayList(u8)) Allocator.Error!void,
    /// error.OutOfMemory: passed on, once whoever was refused has been seen to recover.
    check: *const fn (trial: *Trial) Error!void,
};

pub const Error = error{ OutOfMemory, Wrong };

pub const Trial = struct {
    input: []const u8,
    choices: u64,
    /// For what is tried: it may refuse.
    gpa: Allocator,
    /// For who looks on.
    arena: Allocator,
    /// What was wrong.
    words: std.ArrayList(u8) = .empty,

    pub fn dice(trial: *const Trial) std.Random.DefaultPrng {
        return .init(trial.choices);
    }

    pub fn wrong(trial: *Trial, comptime format: []const u8, arguments: anytype) Error {
        @branchHint(.cold);
        trial.words.clearRetainingCapacity();
        try trial.words.print(trial.arena, format, arguments);
        return error.Wrong;
    }

    /// As bytes, not as text: the difference may be a CR.
    pub fn expectBytes(trial: *Trial, what: []const u8, expected: []const u8, found: []const u8) Error!void {
        if (std.mem.eql(u8, expected, found)) return;
        return trial.wrong("{s}: expected \"{f}\", found \"{f}\"", .{ what, std.zig.fmtString(expected), std.zig.fmtString(found) });
    }
};

/// Where a stream is cut, in one of several manners.
pub const Cuts = struct {
    random: std.Random,
    manner: enum { bytes, crumbs, pieces, once, mixed },
    /// The piece at hand, gone with the next: whatever still points into it reads nonsense.
    piece: std.ArrayList(u8) = .empty,

    pub fn init(random: std.Random) Cuts {
        return .{ .random = random, .manner = random.enumValue(@FieldType(Cuts, "manner")) };
    }

    /// A copy of what comes next.
    pub fn next(cuts: *Cuts, arena: Allocator, rest: *[]const u8) Allocator.Error![]const u8 {
        const random = cuts.random;
        const wanted = switch (cuts.manner) {
            .bytes => 1,
            .crumbs => random.uintLessThan(usize, 6),
            .pieces => random.uintLessThan(usize, 60),
            .once => random.uintAtMost(usize, rest.len),
            .mixed => random.uintLessThan(usize, if (random.boolean()) 3 else 200),
        };
        return cuts.take(arena, rest, wanted);
    }

    pub fn take(cuts: *Cuts, arena: Allocator, rest: *[]const u8, wanted: usize) Allocator.Error![]const u8 {
        const length = @min(wanted, rest.len);
        cuts.forget();
        try cuts.piece.appendSlice(arena, rest.*[0..length]);
        rest.* = rest.*[length..];
        return cuts.piece.items;
    }

    /// The piece at hand is used up.
    pub fn forget(cuts: *Cuts) void {
        @memset(cuts.piece.items, 0xaa);
        cuts.piece.clearRetainingCapacity();
    }
};

/// One of several, anything that coerces to a string.
pub fn pick(random: std.Random, comptime words: []const []const u8) []const u8 {
    return words[random.uintLessThan(usize, words.len)];
}

/// Damages bytes in a few places. `words` are what the format is made of.
pub fn mutate(random: std.Random, arena: Allocator, out: *std.ArrayList(u8), comptime words: []const []const u8) Allocator.Error!void {
    for (0..1 + random.uintLessThan(usize, 3)) |_| {
        const at = random.uintAtMost(usize, out.items.len);
        const length = @min(random.uintLessThan(usize, if (random.boolean()) 3 else 40), out.items.len - at);
        switch (random.uintLessThan(u8, 7)) {
            0 => if (at < out.items.len) {
                out.items[at] = random.int(u8);
            },
            1 => if (at < out.items.len) {
                out.items[at] ^= @as(u8, 1) << random.int(u3);
            },
            2 => try out.insertSlice(arena, at, pick(random, words)),
            3 => try out.replaceRange(arena, at, length, pick(random, words)),
            4 => try out.replaceRange(arena, at, length, ""),
            5 => try out.insertSlice(arena, at, try arena.dupe(u8, out.items[at..][0..length])),
            else => if (random.uintLessThan(u8, 4) == 0) out.shrinkRetainingCapacity(at),
        }
    }
}
