//! Server-sent events, decoded as they arrive (WHATWG HTML standard, 9.2.6 "Interpreting an event stream").
//!
//! Bytes may be cut anywhere: between CR and LF, inside the byte order mark, inside a character. What arrived whole is not
//! copied: a line is looked at where it lies, and an event whose data is one line within one `feed` is handed on from there.
//! Only what is cut is kept until its rest comes.
//!
//! Two things differ from the standard. An event the stream ends in without an empty line is delivered by `finish`: the
//! standard drops it, but there are providers that end this way, and the last event is the one with the finish reason. And
//! bytes are handed on as they are, without replacing what is not UTF-8; who reads the JSON in them finds out.
//!
//! One thread at a time. What ends a stream of events ("[DONE]" for some) is not known here: it is data like any other.

const std = @import("std");

const Allocator = std.mem.Allocator;
const Mark = @import("mark.zig").Mark;

/// What one event may hold, unless told otherwise.
pub const event_bytes_max_default = 16 * 1024 * 1024;

/// Slices are valid during `onEvent` only.
pub const Event = struct {
    /// "message" where the stream does not say.
    name: []const u8,
    data: []const u8,
    /// The last id the stream gave, be it with this event or an earlier one.
    id: []const u8,
};

pub const Error = error{ OutOfMemory, TooLarge };

pub const Decoder = struct {
    gpa: Allocator,
    event_bytes_max: usize = event_bytes_max_default,
    /// What the stream said about reconnecting; nobody here does.
    retry_ms: ?u64 = null,

    /// The start of a line whose end has not come.
    line: std.ArrayList(u8) = .empty,
    name: std.ArrayList(u8) = .empty,
    id: std.ArrayList(u8) = .empty,
    /// Lines of data of the event at hand: a single one where it lies, or all of them joined.
    data: Data = .none,
    joined: std.ArrayList(u8) = .empty,
    /// The last line ended in a CR: a LF that follows belongs to it.
    after_cr: bool = false,
    mark: Mark = .{},

    const Data = union(enum) { none, in_place: []const u8, joined };

    pub fn init(gpa: Allocator) Decoder {
        return .{ .gpa = gpa };
    }

    pub fn deinit(decoder: *Decoder) void {
        decoder.line.deinit(decoder.gpa);
        decoder.name.deinit(decoder.gpa);
        decoder.id.deinit(decoder.gpa);
        decoder.joined.deinit(decoder.gpa);
        decoder.* = undefined;
    }

    /// Ready for another stream; buffers are kept.
    pub fn reset(decoder: *Decoder) void {
        decoder.line.clearRetainingCapacity();
        decoder.id.clearRetainingCapacity();
        decoder.endEvent();
        decoder.after_cr = false;
        decoder.mark = .{};
        decoder.retry_ms = null;
    }

    /// Takes the next bytes and calls `onEvent(context, event)`, which may fail with error.OutOfMemory, for each event that
    /// they complete. After a failure the decoder is to be reset.
    pub fn feed(decoder: *Decoder, bytes: []const u8, context: anytype, comptime onEvent: anytype) Error!void {
        const skipped = decoder.mark.skip(bytes);
        try decoder.line.appendSlice(decoder.gpa, skipped.held);
        var rest = skipped.rest;
        if (rest.len > 0 and decoder.after_cr) {
            decoder.after_cr = false;
            if (rest[0] == '\n') rest = rest[1..];
        }
        while (rest.len > 0) {
            const length = findLineEnd(rest);
            if (length == rest.len) {
                try decoder.keepLine(rest);
                break;
            }
            try decoder.endLine(rest[0..length], context, onEvent);
            const was_cr = rest[length] == '\r';
            rest = rest[length + 1 ..];
            if (!was_cr) continue;
            if (rest.len == 0) decoder.after_cr = true else if (rest[0] == '\n') rest = rest[1..];
        }
        // The bytes go away: an event that is not complete takes its data along.
        switch (decoder.data) {
            .in_place => |first| {
                try decoder.joined.appendSlice(decoder.gpa, first);
                decoder.data = .joined;
            },
            .none, .joined => {},
        }
    }

    /// The stream has ended. What has begun counts as complete.
    pub fn finish(decoder: *Decoder, context: anytype, comptime onEvent: anytype) Error!void {
        try decoder.line.appendSlice(decoder.gpa, decoder.mark.finish());
        if (decoder.line.items.len > 0) try decoder.endLine("", context, onEvent);
        try decoder.dispatch(context, onEvent);
    }

    fn keepLine(decoder: *Decoder, piece: []const u8) Error!void {
        if (decoder.size() + piece.len > decoder.event_bytes_max) return error.TooLarge;
        try decoder.line.appendSlice(decoder.gpa, piece);
    }

    fn size(decoder: *const Decoder) usize {
        return decoder.line.items.len + switch (decoder.data) {
            .none => 0,
            .in_place => |first| first.len,
            .joined => decoder.joined.items.len,
        };
    }

    fn endLine(decoder: *Decoder, piece: []const u8, context: anytype, comptime onEvent: anytype) Error!void {
        if (decoder.line.items.len == 0) {
            if (piece.len == 0) return decoder.dispatch(context, onEvent);
            // As `keepLine` measures it: where a line is cut must not decide.
            if (decoder.size() + piece.len > decoder.event_bytes_max) return error.TooLarge;
            return decoder.field(piece, .in_place);
        }
        try decoder.keepLine(piece);
        try decoder.field(decoder.line.items, .kept);
        decoder.line.clearRetainingCapacity();
    }

    fn field(decoder: *Decoder, line: []const u8, comptime where: enum { in_place, kept }) Error!void {
        const gpa = decoder.gpa;
        const colon = std.mem.findScalar(u8, line, ':') orelse line.len;
        if (colon == 0) return; // a comment
        const key = line[0..colon];
        var value = line[@min(colon + 1, line.len)..];
        if (value.len > 0 and value[0] == ' ') value = value[1..];
        if (std.mem.eql(u8, key, "data")) {
            const line_bytes = if (where == .kept) 0 else value.len; // a kept line is in `size` already
            if (decoder.size() + line_bytes > decoder.event_bytes_max) return error.TooLarge;
            switch (decoder.data) {
                .none => if (where == .in_place) {
                    decoder.data = .{ .in_place = value };
                    return;
                },
                .in_place => |first| {
                    try decoder.joined.appendSlice(gpa, first);
                    try decoder.joined.append(gpa, '\n');
                },
                .joined => try decoder.joined.append(gpa, '\n'),
            }
            try decoder.joined.appendSlice(gpa, value);
            decoder.data = .joined;
        } else if (std.mem.eql(u8, key, "event")) {
            decoder.name.clearRetainingCapacity();
            try decoder.name.appendSlice(gpa, value);
        } else if (std.mem.eql(u8, key, "id")) {
            if (std.mem.findScalar(u8, value, 0) != null) return;
            decoder.id.clearRetainingCapacity();
            try decoder.id.appendSlice(gpa, value);
        } else if (std.mem.eql(u8, key, "retry")) {
            if (value.len == 0) return;
            for (value) |digit| if (!std.ascii.isDigit(digit)) return;
            decoder.retry_ms = std.fmt.parseInt(u64, value, 10) catch return;
        }
    }

    /// An empty line. Without data there is no event, whatever else was said.
    fn dispatch(decoder: *Decoder, context: anytype, comptime onEvent: anytype) Error!void {
        const data = switch (decoder.data) {
            .none => return decoder.endEvent(),
            .in_place => |first| first,
            .joined => decoder.joined.items,
        };
        try onEvent(context, Event{
            .name = if (decoder.name.items.len > 0) decoder.name.items else "message",
            .data = data,
            .id = decoder.id.items,
        });
        decoder.endEvent();
    }

    fn endEvent(decoder: *Decoder) void {
        decoder.data = .none;
        decoder.joined.clearRetainingCapacity();
        decoder.name.clearRetainingCapacity();
    }
};

/// Where the next CR or LF stands, or the end.
fn findLineEnd(bytes: []const u8) usize {
    const width = 16;
    const V = @Vector(width, u8);
    var at: usize = 0;
    while (at + width <= bytes.len) : (at += width) {
        const chunk: V = bytes[at..][0..width].*;
        const feeds = @as(u16, @bitCast(chunk == @as(V, @splat('\n'))));
        const returns = @as(u16, @bitCast(chunk == @as(V, @splat('\r'))));
        if (feeds | returns != 0) return at + @ctz(feeds | returns);
    }
    while (at < bytes.len) : (at += 1) if (bytes[at] == '\n' or bytes[at] == '\r') return at;
    return at;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// Writes events down, so that they can be compared.
const Journal = struct {
    gpa: Allocator = testing.allocator,
    text: std.ArrayList(u8) = .empty,

    fn deinit(journal: *Journal) void {
        journal.text.deinit(journal.gpa);
    }

    fn onEvent(journal: *Journal, event: Event) error{OutOfMemory}!void {
        for ([_][]const u8{ event.name, "|", event.data, "|", event.id, ";" }) |part| try journal.text.appendSlice(journal.gpa, part);
    }
};

/// The events of a stream that comes in pieces of `piece` bytes.
fn expectEvents(expected: []const u8, stream: []const u8, piece: usize) !void {
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    var at: usize = 0;
    while (at < stream.len) : (at += piece) {
        // A copy that is freed at once: whatever still pointed into it would be seen.
        const bytes = try testing.allocator.dupe(u8, stream[at..@min(at + piece, stream.len)]);
        defer testing.allocator.free(bytes);
        try decoder.feed(bytes, &journal, Journal.onEvent);
    }
    try decoder.finish(&journal, Journal.onEvent);
    try testing.expectEqualStrings(expected, journal.text.items);
}

const samples = [_]struct { []const u8, []const u8 }{
    // The standard's own examples.
    .{ "message|YHOO\n+2\n10|;", "data: YHOO\ndata: +2\ndata: 10\n\n" },
    .{ "message|first event|1;message|second event|;message| third event|;", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n" },
    .{ "message||;message|\n|;", "data\n\ndata\ndata\n\n" },
    .{ "message|test|;message|test|;", "data:test\n\ndata: test\n\n" },
    // Names, ids that stay, an event without data that is none.
    .{ "add|1|;remove|2|;message|3|;", "event: add\ndata: 1\n\nevent: remove\ndata: 2\n\nevent: lost\n\ndata: 3\n\n" },
    .{ "message|a|7;message|b|7;message|c|7;", "id: 7\ndata: a\n\ndata: b\n\nid: with\x00nul\ndata: c\n\n" },
    .{ "last|x|;", "event: first\nevent: last\ndata: x\n\n" },
    // Line ends of all kinds, also mixed, and a byte order mark.
    .{ "message|a\nb|;message|c|;", "data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n" },
    .{ "message|a\nb|;message|c|;", "data: a\rdata: b\r\rdata: c\r\r" },
    .{ "message|a\nb|;message|c|;", "\xef\xbb\xbfdata: a\rdata: b\r\n\ndata: c\n\r" },
    .{ "message|kept|;", "\xef\xbb\xbf\xef\xbb\xbfdata: not a field\ndata: kept\n\n" },
    .{ "message|kept|;", "\xef\xbbdata: not a field\ndata: kept\n\n" },
    // Comments, unknown fields, colons in values, characters of several bytes, no data at all.
    .{ "message|{\"a\": \"b: c\"}|;", ":\n: ping\nunknown: x\ndata : y\nDATA: z\nretry: 10\ndata: {\"a\": \"b: c\"}\n\n" },
    .{ "message|é 漢 😀|;", "data: é 漢 😀\n\n" },
    .{ "", "" },
    .{ "", "\n\n\r\r\n: only comments\n\n" },
    // No final newline: `finish` delivers what has begun.
    .{ "message|a|;message|[DONE]|;", "data: a\n\ndata: [DONE]" },
    .{ "message|a|;end|b|;", "data: a\n\nevent: end\ndata: b\n" },
    .{ "message|a|;", "data: a\n\nevent: nothing" },
};

test "streams are read as the standard says, wherever they are cut" {
    for (samples) |sample| {
        const expected, const stream = sample;
        errdefer std.debug.print("stream: {s}\n", .{stream});
        for (1..stream.len + 2) |piece| try expectEvents(expected, stream, piece);
    }
}

test "two cuts at any two places change nothing" {
    for (samples) |sample| {
        const expected, const stream = sample;
        for (0..stream.len) |first| for (first..stream.len) |second| {
            errdefer std.debug.print("stream: {s}\ncut at {d} and {d}\n", .{ stream, first, second });
            var journal: Journal = .{};
            defer journal.deinit();
            var decoder: Decoder = .init(testing.allocator);
            defer decoder.deinit();
            for ([_][]const u8{ stream[0..first], stream[first..second], stream[second..] }) |piece| {
                try decoder.feed(piece, &journal, Journal.onEvent);
            }
            try decoder.finish(&journal, Journal.onEvent);
            try testing.expectEqualStrings(expected, journal.text.items);
        };
    }
}

test "an event is delivered with the CR that ends it, not with the LF that may follow" {
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    try decoder.feed("data: a\r\n\r", &journal, Journal.onEvent);
    try testing.expectEqualStrings("message|a|;", journal.text.items);
    try decoder.feed("\ndata: b\r\n\r\n", &journal, Journal.onEvent);
    try testing.expectEqualStrings("message|a|;message|b|;", journal.text.items);
}

test "data within one feed is handed on from where it lies" {
    const stream = "data: {\"a\": 1}\n\n";
    const check = struct {
        fn onEvent(seen: *?[*]const u8, event: Event) error{OutOfMemory}!void {
            seen.* = event.data.ptr;
        }
    };
    var seen: ?[*]const u8 = null;
    var decoder: Decoder = .init(testing.failing_allocator);
    defer decoder.deinit();
    try decoder.feed(stream, &seen, check.onEvent);
    try testing.expectEqual(stream[6..].ptr, seen.?);
}

test "only digits set the time to reconnect" {
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    try decoder.feed("retry: 1500\nretry: 12x\nretry:\nretry: -1\n", &journal, Journal.onEvent);
    try testing.expectEqual(1500, decoder.retry_ms);
}

test "an event has a largest size, however it is cut" {
    const line: [100]u8 = @splat('x');
    const stream = "data: " ++ line ++ "\ndata: " ++ line ++ "\n\n";
    for ([_]usize{ 1, 7, 150, stream.len }) |piece| for ([_]usize{ 50, 150, 400 }) |limit| {
        var journal: Journal = .{};
        defer journal.deinit();
        var decoder: Decoder = .init(testing.allocator);
        defer decoder.deinit();
        decoder.event_bytes_max = limit;
        var at: usize = 0;
        const result = while (at < stream.len) : (at += piece) {
            decoder.feed(stream[at..@min(at + piece, stream.len)], &journal, Journal.onEvent) catch |err| break err;
        } else {};
        if (limit == 400) try result else try testing.expectError(error.TooLarge, result);
    };
    // Many small events are no large one.
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    decoder.event_bytes_max = 50;
    for (0..100) |_| try decoder.feed("data: 0123456789\ndata: 0123456789\n\n: a comment of some length\n", &journal, Journal.onEvent);
}

test "a decoder can be used for another stream" {
    var journal: Journal = .{};
    defer journal.deinit();
    var decoder: Decoder = .init(testing.allocator);
    defer decoder.deinit();
    try decoder.feed("\xef\xbb\xbfid: 1\nevent: e\ndata: half\r", &journal, Journal.onEvent);
    decoder.reset();
    try decoder.feed("\xef\xbb\xbf\ndata: whole\n\n", &journal, Journal.onEvent);
    try testing.expectEqualStrings("message|whole|;", journal.text.items);
}

test "random streams in random pieces read as a whole one" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const words = [_][]const u8{ "data", "event", "id", "retry", ":", ": ", "x", "\xef\xbb\xbf", "é", "12", "\n", "\r", "\r\n", "\n\n", "\x00" };
    var stream: std.ArrayList(u8) = .empty;
    defer stream.deinit(testing.allocator);
    for (0..1_000) |_| {
        stream.clearRetainingCapacity();
        for (0..random.uintLessThan(usize, 40)) |_| {
            try stream.appendSlice(testing.allocator, words[random.uintLessThan(usize, words.len)]);
        }
        var whole: Journal = .{};
        defer whole.deinit();
        var decoder: Decoder = .init(testing.allocator);
        defer decoder.deinit();
        try decoder.feed(stream.items, &whole, Journal.onEvent);
        try decoder.finish(&whole, Journal.onEvent);

        var pieces: Journal = .{};
        defer pieces.deinit();
        decoder.reset();
        var at: usize = 0;
        while (at < stream.items.len) {
            const length = @min(random.uintLessThan(usize, 6), stream.items.len - at);
            try decoder.feed(stream.items[at..][0..length], &pieces, Journal.onEvent);
            at += length;
        }
        try decoder.finish(&pieces, Journal.onEvent);
        try testing.expectEqualStrings(whole.text.items, pieces.text.items);
    }
}

test "every allocation of a decoding may fail" {
    const run = struct {
        fn all(gpa: Allocator) !void {
            var journal: Journal = .{ .gpa = gpa };
            defer journal.deinit();
            var decoder: Decoder = .init(gpa);
            defer decoder.deinit();
            for ([_][]const u8{ "\xef", "\xbbid: 1\nev", "ent: name\ndata: a\nda", "ta: b\n\nda", "ta: c" }) |piece| {
                try decoder.feed(piece, &journal, Journal.onEvent);
            }
            try decoder.finish(&journal, Journal.onEvent);
        }
    };
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{});
}
