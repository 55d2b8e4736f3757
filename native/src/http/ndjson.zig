//! Newline-delimited JSON (jsonlines.org, ndjson-spec), taken apart as it arrives: one document a line.
//!
//! Bytes may be cut anywhere: between CR and LF, inside the byte order mark, inside a character. What arrived whole is not
//! copied: a line within one `feed` is handed on from where it lies. Only what is cut is kept until its rest comes.
//!
//! More is taken than the format allows: lines of nothing but white space are skipped (servers send them to keep a connection
//! alive), a CR before the LF does not count, and the last line needs no end. What stands in a line is not looked at: who reads
//! the JSON in it finds out.
//!
//! One thread at a time.

const std = @import("std");

const Allocator = std.mem.Allocator;
const Mark = @import("mark.zig").Mark;

/// What one line may hold, unless told otherwise.
pub const event_bytes_max_default = 16 * 1024 * 1024;

pub const Error = error{ OutOfMemory, TooLarge };

pub const Decoder = struct {
    gpa: Allocator,
    /// All that stands before the LF counts, white space too: so it does not matter where a line is cut.
    event_bytes_max: usize = event_bytes_max_default,

    /// The start of a line whose end has not come.
    line: std.ArrayList(u8) = .empty,
    mark: Mark = .{},

    pub fn init(gpa: Allocator) Decoder {
        return .{ .gpa = gpa };
    }

    pub fn deinit(decoder: *Decoder) void {
        decoder.line.deinit(decoder.gpa);
        decoder.* = undefined;
    }

    /// Ready for another stream; the buffer is kept.
    pub fn reset(decoder: *Decoder) void {
        decoder.line.clearRetainingCapacity();
        decoder.mark = .{};
    }

    /// Takes the next bytes and calls `onLine(context, line)`, which may fail with error.OutOfMemory, for each line that they
    /// complete. A line is valid during the call only. After a failure the decoder is to be reset.
    pub fn feed(decoder: *Decoder, bytes: []const u8, context: anytype, comptime onLine: anytype) Error!void {
        const skipped = decoder.mark.skip(bytes);
        try decoder.keep(skipped.held);
        var rest = skipped.rest;
        while (std.mem.findScalar(u8, rest, '\n')) |length| {
            try decoder.endLine(rest[0..length], context, onLine);
            rest = rest[length + 1 ..];
        }
        try decoder.keep(rest);
    }

    /// The stream has ended. What has begun counts as complete.
    pub fn finish(decoder: *Decoder, context: anytype, comptime onLine: anytype) Error!void {
        try decoder.keep(decoder.mark.finish());
        try decoder.endLine("", context, onLine);
    }

    fn keep(decoder: *Decoder, piece: []const u8) Error!void {
        if (decoder.line.items.len + piece.len > decoder.event_bytes_max) return error.TooLarge;
        try decoder.line.appendSlice(decoder.gpa, piece);
    }

    fn endLine(decoder: *Decoder, piece: []const u8, context: anytype, comptime onLine: anytype) Error!void {
        if (decoder.line.items.len == 0) {
            if (piece.len > decoder.event_bytes_max) return error.TooLarge;
            return deliver(piece, context, onLine);
        }
        try decoder.keep(piece);
        try deliver(decoder.line.items, context, onLine);
        decoder.line.clearRetainingCapacity();
    }

    fn deliver(line: []const u8, context: anytype, comptime onLine: anytype) error{OutOfMemory}!void {
        if (std.mem.findNone(u8, line, " \t\r") == null) return;
        try onLine(context, if (line[line.len - 1] == '\r') line[0 .. line.len - 1] else line);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// Writes lines down, each with a LF behind it, so that they can be compared.
const Journal = struct {
    gpa: Allocator = testing.allocator,
    text: std.ArrayList(u8) = .empty,

    fn deinit(journal: *Journal) void {
        journal.text.deinit(journal.gpa);
    }

    fn onLine(journal: *Journal, line: []const u8) error{OutOfMemory}!void {
        try journal.text.appendSlice(journal.gpa, line);
        try journal.text.append(journal.gpa, '\n');
    }
};

/// Feeds a copy that is freed at once: whatever still pointed into it would be seen.
fn feedCopy(decoder: *Decoder, piece: []const u8, journal: *Journal) !void {
    const bytes = try testing.allocator.dupe(u8, piece);
    defer testing.allocator.free(bytes);
    try decoder.feed(bytes, journal, Journal.onLine);
}

/// The same, by somebody simple who has the whole stream before him.
fn splitDumbly(stream: []const u8, bytes_max: usize, journal: *Journal) Error!void {
    const mark = "\xef\xbb\xbf";
    var lines = std.mem.splitScalar(u8, if (std.mem.startsWith(u8, stream, mark)) stream[mark.len..] else stream, '\n');
    while (lines.next()) |line| {
        if (line.len > bytes_max) return error.TooLarge;
        if (std.mem.trim(u8, line, " \t\r").len == 0) continue;
        try journal.onLine(if (std.mem.endsWith(u8, line, "\r")) line[0 .. line.len - 1] else line);
    }
}

const samples = [_]struct { []const u8, []const u8 }{
    .{ "{\"a\": 1}\n{\"b\": 2}\n", "{\"a\": 1}\n{\"b\": 2}\n" },
    .{ "1\n2\n3\n", "1\r\n2\n3\r\n" },
    // No final newline: `finish` delivers what has begun.
    .{ "1\n2\n", "1\n2" },
    .{ "1\n2\n", "1\r\n2\r" },
    // Lines without a document, at the start, between and at the end.
    .{ "1\n2\n", "\n\r\n \t \n1\n\n  \r\n\t\n2\n \n\r\r\n  " },
    .{ "", "" },
    .{ "", "\n\n\r\n" },
    // White space around a document is JSON's, a CR within one is not ours.
    .{ " 1 \n\t2\n", " 1 \r\n\t2\n" },
    .{ "a\rb\nc\r\n", "a\rb\nc\r\r\n" },
    // The byte order mark: one, at the very start, and whole.
    .{ "1\n", "\xef\xbb\xbf1\n" },
    .{ "", "\xef\xbb\xbf" },
    .{ "", "\xef\xbb\xbf\r\n" },
    .{ "\xef\xbb\xbf1\n\xef\xbb\xbf2\n", "\xef\xbb\xbf\xef\xbb\xbf1\n\xef\xbb\xbf2\n" },
    .{ "\xef\xbb1\n", "\xef\xbb1\n" },
    .{ "\xef\xbb\n1\n", "\xef\xbb\n1\n" },
    .{ "\xef\n", "\xef" },
    .{ "é 漢 😀\n\x00\n", "é 漢 😀\n\x00\n" },
};

test "a stream is the same lines, wherever it is cut" {
    for (samples) |sample| {
        const expected, const stream = sample;
        for (0..stream.len + 1) |first| for (first..stream.len + 1) |second| {
            errdefer std.debug.print("stream: {s}\ncut at {d} and {d}\n", .{ stream, first, second });
            var journal: Journal = .{};
            defer journal.deinit();
            var decoder: Decoder = .init(testing.allocator);
            defer decoder.deinit();
            for ([_][]const u8{ stream[0..first], stream[first..second], stream[second..] }) |piece| {
                try feedCopy(&decoder, piece, &journal);
            }
            try decoder.finish(&journal, Journal.onLine);
            try testing.expectEqualStrings(expected, journal.text.items);
        };
    }
}

test "a stream may come byte by byte" {
    for (samples) |sample| {
        const expected, const stream = sample;
        errdefer std.debug.print("stream: {s}\n", .{stream});
        var journal: Journal = .{};
        defer journal.deinit();
        var decoder: Decoder = .init(testing.allocator);
        defer decoder.deinit();
        for (stream) |byte| try feedCopy(&decoder, &.{byte}, &journal);
        try decoder.finish(&journal, Journal.onLine);
        try testing.expectEqualStrings(expected, journal.text.items);
    }
}

test "a line is delivered with the LF that ends it" {
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    try decoder.feed("1\n2", &journal, Journal.onLine);
    try testing.expectEqualStrings("1\n", journal.text.items);
    try decoder.feed("3\r", &journal, Journal.onLine);
    try testing.expectEqualStrings("1\n", journal.text.items);
    try decoder.feed("\n", &journal, Journal.onLine);
    try testing.expectEqualStrings("1\n23\n", journal.text.items);
}

test "lines within one feed are handed on from where they lie" {
    const stream = "\xef\xbb\xbf{\"a\": 1}\r\n\n[2]\n";
    const Seen = struct {
        at: [2]usize = undefined,
        count: usize = 0,
        fn onLine(seen: *@This(), line: []const u8) error{OutOfMemory}!void {
            seen.at[seen.count] = @intFromPtr(line.ptr) - @intFromPtr(stream.ptr);
            seen.count += 1;
        }
    };
    var seen: Seen = .{};
    var decoder: Decoder = .init(testing.failing_allocator);
    defer decoder.deinit();
    try decoder.feed(stream, &seen, Seen.onLine);
    try decoder.finish(&seen, Seen.onLine);
    try testing.expectEqual([_]usize{ 3, 14 }, seen.at);
}

test "a line has a largest size, and it does not matter where it is cut" {
    for ([_][]const u8{ "12345678\n", "12345678", "1\n12345678\n", "\xef\xbb\xbf12345678\n", "        \n", "1234567\r\n" }) |stream| {
        for (1..stream.len + 1) |piece| for ([_]usize{ 7, 8 }) |limit| {
            errdefer std.debug.print("stream: {s}\npieces of {d}\n", .{ stream, piece });
            var journal: Journal = .{};
            defer journal.deinit();
            var decoder: Decoder = .init(testing.allocator);
            defer decoder.deinit();
            decoder.event_bytes_max = limit;
            var at: usize = 0;
            const result = while (at < stream.len) : (at += piece) {
                decoder.feed(stream[at..@min(at + piece, stream.len)], &journal, Journal.onLine) catch |err| break err;
            } else decoder.finish(&journal, Journal.onLine);
            if (limit == 8) try result else try testing.expectError(error.TooLarge, result);
        };
    }
    // Many small lines are no large one.
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    decoder.event_bytes_max = 8;
    for (0..100) |_| try decoder.feed("1234\n12", &journal, Journal.onLine);
    try testing.expectEqual("1234\n".len + 99 * "121234\n".len, journal.text.items.len);
}

test "a decoder can be used for another stream" {
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    try decoder.feed("\xef\xbb\xbf1\nhalf", &journal, Journal.onLine);
    decoder.reset();
    try decoder.feed("\xef\xbb", &journal, Journal.onLine);
    decoder.reset();
    try decoder.feed("\xef\xbb\xbf2", &journal, Journal.onLine);
    try decoder.finish(&journal, Journal.onLine);
    decoder.reset();
    try decoder.feed("\xef\xbb\xbf3\n", &journal, Journal.onLine);
    try decoder.finish(&journal, Journal.onLine);
    try testing.expectEqualStrings("1\n2\n3\n", journal.text.items);
}

test "random streams in random pieces are split as by somebody dumb" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const words = [_][]const u8{ "{}", "12", "é", " ", "\t", "\xef", "\xbb", "\xef\xbb\xbf", "\n", "\n", "\r", "\r\n", "\n\n", "\x00" };
    var stream: std.ArrayList(u8) = .empty;
    defer stream.deinit(testing.allocator);
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    for (0..3_000) |_| {
        stream.clearRetainingCapacity();
        for (0..random.uintLessThan(usize, 30)) |_| {
            try stream.appendSlice(testing.allocator, words[random.uintLessThan(usize, words.len)]);
        }
        decoder.reset();
        decoder.event_bytes_max = random.uintLessThan(usize, 40);

        var expected: Journal = .{};
        defer expected.deinit();
        const expected_end = splitDumbly(stream.items, decoder.event_bytes_max, &expected);

        var pieces: Journal = .{};
        defer pieces.deinit();
        var at: usize = 0;
        const end = while (at < stream.items.len) {
            const length = @min(random.uintLessThan(usize, 6), stream.items.len - at);
            decoder.feed(stream.items[at..][0..length], &pieces, Journal.onLine) catch |err| break err;
            at += length;
        } else decoder.finish(&pieces, Journal.onLine);
        try testing.expectEqualStrings(expected.text.items, pieces.text.items);
        try testing.expectEqual(expected_end, end);
    }
}

test "every allocation of a decoding may fail" {
    const run = struct {
        fn all(gpa: Allocator) !void {
            var journal: Journal = .{ .gpa = gpa };
            defer journal.deinit();
            var decoder: Decoder = .init(gpa);
            defer decoder.deinit();
            for ([_][]const u8{ "\xef\xbb", "not a mark", "\n1\n{\"a\":", " 2}\r\n\r", "\n[3" }) |piece| {
                try decoder.feed(piece, &journal, Journal.onLine);
            }
            try decoder.finish(&journal, Journal.onLine);
            decoder.reset();
            try decoder.feed("\xef\xbb", &journal, Journal.onLine);
            try decoder.finish(&journal, Journal.onLine);
        }
    };
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{});
}
