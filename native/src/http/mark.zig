//! The byte order mark that a stream of text may begin with, and that is no part of it. It may be cut anywhere.

const std = @import("std");

pub const Mark = struct {
    /// How much of it has been seen; null once the question is settled.
    seen: ?u2 = 0,

    const whole = "\xef\xbb\xbf";

    pub const Skipped = struct {
        /// What looked like the mark in earlier pieces and was none: it comes first.
        held: []const u8 = "",
        rest: []const u8,
    };

    /// The next bytes of the stream without the mark.
    pub fn skip(mark: *Mark, bytes: []const u8) Skipped {
        const before = mark.seen orelse return .{ .rest = bytes };
        const length = @min(bytes.len, whole.len - before);
        if (!std.mem.eql(u8, bytes[0..length], whole[before..][0..length])) {
            mark.seen = null;
            return .{ .held = whole[0..before], .rest = bytes };
        }
        const seen = before + length;
        mark.seen = if (seen == whole.len) null else @intCast(seen);
        return .{ .rest = bytes[length..] };
    }

    /// The stream has ended: what looked like a mark and was none.
    pub fn finish(mark: *Mark) []const u8 {
        defer mark.seen = null;
        return whole[0 .. mark.seen orelse 0];
    }
};

test "a mark is skipped wherever it is cut, and what is none is kept" {
    const testing = std.testing;
    for ([_][2][]const u8{
        .{ "\xef\xbb\xbfab", "ab" },
        .{ "\xef\xbb\xbf", "" },
        .{ "\xef\xbb", "\xef\xbb" },
        .{ "\xef\xbbx", "\xef\xbbx" },
        .{ "\xef\xef\xbb\xbf", "\xef\xef\xbb\xbf" },
        .{ "a\xef\xbb\xbf", "a\xef\xbb\xbf" },
        .{ "", "" },
    }) |case| for (1..6) |piece| {
        var mark: Mark = .{};
        var text: [16]u8 = undefined;
        var found: std.ArrayList(u8) = .initBuffer(&text);
        var at: usize = 0;
        while (at < case[0].len) : (at += piece) {
            const skipped = mark.skip(case[0][at..@min(at + piece, case[0].len)]);
            found.appendSliceAssumeCapacity(skipped.held);
            found.appendSliceAssumeCapacity(skipped.rest);
        }
        found.appendSliceAssumeCapacity(mark.finish());
        try testing.expectEqualStrings(case[1], found.items);
    };
}
