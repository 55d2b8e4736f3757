//! Random streams of events and of lines, decoded whole and in pieces, and by somebody dumb who has the whole stream before him.

const std = @import("std");
const ndjson = @import("../http/ndjson.zig");
const sse = @import("../http/sse.zig");
const trial_file = @import("trial.zig");

const Allocator = std.mem.Allocator;
const Cuts = trial_file.Cuts;
const Error = trial_file.Error;
const Kind = trial_file.Kind;
const Trial = trial_file.Trial;
const pick = trial_file.pick;

pub const kinds = [_]Kind{
    .{ .name = "server-sent events, cut anywhere", .write = writeEvents, .check = checkEvents },
    .{ .name = "lines of JSON, cut anywhere", .write = writeLines, .check = checkLines },
};

const mark = "\xef\xbb\xbf";
const anything = std.math.maxInt(usize);

/// What came out of a stream, part by part, each with its length so that none can pass for another.
pub const Journal = struct {
    gpa: Allocator,
    text: std.ArrayList(u8) = .empty,
    count: usize = 0,

    pub fn deinit(journal: *Journal) void {
        journal.text.deinit(journal.gpa);
    }

    pub fn clear(journal: *Journal) void {
        journal.text.clearRetainingCapacity();
        journal.count = 0;
    }

    pub fn part(journal: *Journal, bytes: []const u8) error{OutOfMemory}!void {
        var length: [4]u8 = undefined;
        std.mem.writeInt(u32, &length, @intCast(bytes.len), .little);
        try journal.text.appendSlice(journal.gpa, &length);
        try journal.text.appendSlice(journal.gpa, bytes);
    }

    /// As they were written down.
    pub fn parts(journal: *const Journal) error{OutOfMemory}![]const []const u8 {
        var all: std.ArrayList([]const u8) = .empty;
        var rest: []const u8 = journal.text.items;
        while (rest.len > 0) {
            const length = std.mem.readInt(u32, rest[0..4], .little);
            try all.append(journal.gpa, rest[4..][0..length]);
            rest = rest[4 + length ..];
        }
        return all.items;
    }

    pub fn onEvent(journal: *Journal, event: sse.Event) error{OutOfMemory}!void {
        for ([_][]const u8{ event.name, event.data, event.id }) |bytes| try journal.part(bytes);
        journal.count += 1;
    }

    pub fn onLine(journal: *Journal, line: []const u8) error{OutOfMemory}!void {
        try journal.part(line);
        journal.count += 1;
    }
};

const End = enum { whole, too_large };

fn fed(result: sse.Error!void) error{OutOfMemory}!End {
    result catch |err| switch (err) {
        error.TooLarge => return .too_large,
        error.OutOfMemory => return error.OutOfMemory,
    };
    return .whole;
}

/// A stream through a decoder in pieces, or, without cuts, in one.
fn decode(trial: *Trial, decoder: anytype, journal: *Journal, cuts: *Cuts, whole: bool) error{OutOfMemory}!End {
    const callback = if (@TypeOf(decoder) == *sse.Decoder) Journal.onEvent else Journal.onLine;
    var rest = trial.input;
    while (rest.len > 0) {
        const piece = if (whole) try cuts.take(trial.arena, &rest, anything) else try cuts.next(trial.arena, &rest);
        const end = try fed(decoder.feed(piece, journal, callback));
        cuts.forget();
        if (end == .too_large) return end;
    }
    return fed(decoder.finish(journal, callback));
}

// ------------------------------------------------------------------------------------------------ server-sent events

/// The WHATWG standard, 9.2.5 and 9.2.6, for a stream that is all there. As sse.zig says, two things differ: what the stream
/// ends in counts as an event, and bytes stay what they are. A time to reconnect beyond 64 bits is none.
pub const Reference = struct {
    arena: Allocator,
    events: Journal,
    /// Of each event.
    data_of_all: std.ArrayList([]const u8) = .empty,
    data: std.ArrayList(u8) = .empty,
    name: []const u8 = "",
    id: []const u8 = "",
    retry_ms: ?u64 = null,
    /// What an event may hold. How many events there are before a line that is, with what its event holds already, larger than
    /// that; and before a line whose data alone makes its event so.
    bytes_max: usize = anything,
    before_large_line: ?usize = null,
    before_large_data: ?usize = null,

    pub fn read(arena: Allocator, stream: []const u8, bytes_max: usize) error{OutOfMemory}!Reference {
        var it: Reference = .{ .arena = arena, .events = .{ .gpa = arena }, .bytes_max = bytes_max };
        var rest = if (std.mem.startsWith(u8, stream, mark)) stream[mark.len..] else stream;
        while (rest.len > 0) {
            const end = std.mem.indexOfAny(u8, rest, "\r\n") orelse rest.len;
            try it.line(rest[0..end]);
            rest = rest[end..];
            rest = rest[if (std.mem.startsWith(u8, rest, "\r\n")) 2 else @min(1, rest.len)..];
        }
        try it.dispatch(); // a deviation
        return it;
    }

    fn line(it: *Reference, text: []const u8) error{OutOfMemory}!void {
        const held = it.data.items.len -| 1;
        if (held + text.len > it.bytes_max and it.before_large_line == null) it.before_large_line = it.events.count;
        if (text.len == 0) return it.dispatch();
        const colon = std.mem.indexOfScalar(u8, text, ':') orelse return it.field(text, "");
        if (colon == 0) return;
        const value = text[colon + 1 ..];
        try it.field(text[0..colon], if (std.mem.startsWith(u8, value, " ")) value[1..] else value);
    }

    fn field(it: *Reference, name: []const u8, value: []const u8) error{OutOfMemory}!void {
        if (std.mem.eql(u8, name, "event")) it.name = value;
        if (std.mem.eql(u8, name, "data")) {
            const held = it.data.items.len -| 1;
            if (held + value.len > it.bytes_max and it.before_large_data == null) it.before_large_data = it.events.count;
            try it.data.appendSlice(it.arena, value);
            try it.data.append(it.arena, '\n');
        }
        if (std.mem.eql(u8, name, "id")) {
            if (std.mem.indexOfScalar(u8, value, 0) == null) it.id = value;
        }
        if (std.mem.eql(u8, name, "retry")) {
            for (value) |digit| if (digit < '0' or digit > '9') return;
            it.retry_ms = std.fmt.parseInt(u64, value, 10) catch return;
        }
    }

    fn dispatch(it: *Reference) error{OutOfMemory}!void {
        if (it.data.items.len > 0) {
            const name = if (it.name.len > 0) it.name else "message";
            const data = it.data.items[0 .. it.data.items.len - 1];
            try it.events.onEvent(.{ .name = name, .data = data, .id = it.id });
            try it.data_of_all.append(it.arena, data);
        }
        it.data = .empty;
        it.name = "";
    }
};

fn checkEvents(trial: *Trial) Error!void {
    var prng = trial.dice();
    const random = prng.random();
    const bytes_max = random.uintLessThan(usize, if (random.boolean()) 24 else 300);
    const expected: Reference = try .read(trial.arena, trial.input, anything);
    const bounded: Reference = try .read(trial.arena, trial.input, bytes_max);

    var decoder: sse.Decoder = .init(trial.gpa);
    defer decoder.deinit();
    var journal: Journal = .{ .gpa = trial.gpa };
    defer journal.deinit();
    var cuts: Cuts = .init(random);
    decodeEvents(trial, &decoder, &journal, &cuts, &expected, &bounded) catch |err| switch (err) {
        error.Wrong => return error.Wrong,
        error.OutOfMemory => { // refused once: another stream finds the decoder as good as new
            decoder.reset();
            journal.clear();
            decoder.event_bytes_max = sse.event_bytes_max_default;
            _ = try decode(trial, &decoder, &journal, &cuts, random.boolean());
            try trial.expectBytes("events after a refused allocation", expected.events.text.items, journal.text.items);
            return error.OutOfMemory;
        },
    };
}

fn decodeEvents(
    trial: *Trial,
    decoder: *sse.Decoder,
    journal: *Journal,
    cuts: *Cuts,
    expected: *const Reference,
    bounded: *const Reference,
) Error!void {
    for ([_]bool{ true, false }) |whole| {
        journal.clear();
        decoder.reset();
        decoder.event_bytes_max = sse.event_bytes_max_default;
        const end = try decode(trial, decoder, journal, cuts, whole);
        if (end == .too_large) return trial.wrong("too large: a stream of {d} bytes", .{trial.input.len});
        try trial.expectBytes(if (whole) "events of the whole" else "events of pieces", expected.events.text.items, journal.text.items);
        if (decoder.retry_ms != expected.retry_ms) return trial.wrong("retry: expected {?d}, found {?d}", .{ expected.retry_ms, decoder.retry_ms });
    }
    var ends: [2]End = undefined;
    for (&ends, [_]bool{ true, false }) |*end, whole| {
        journal.clear();
        decoder.reset();
        decoder.event_bytes_max = bounded.bytes_max;
        end.* = try decode(trial, decoder, journal, cuts, whole);
        const count = journal.count;
        const is_start = std.mem.startsWith(u8, expected.events.text.items, journal.text.items);
        if (!is_start) return trial.wrong("other events with a bound of {d}", .{bounded.bytes_max});
        switch (end.*) {
            .whole => if (bounded.before_large_data != null or count != expected.events.count) {
                return trial.wrong("not too large for {d}, whole: {}", .{ bounded.bytes_max, whole });
            },
            .too_large => {
                const at_least = bounded.before_large_line orelse return trial.wrong("too large for {d}, whole: {}", .{ bounded.bytes_max, whole });
                const at_most = bounded.before_large_data orelse expected.events.count;
                if (count < at_least or count > at_most) return trial.wrong("too large for {d} after {d} events", .{ bounded.bytes_max, count });
            },
        }
    }
    if (ends[0] != ends[1]) {
        return trial.wrong("with a bound of {d}: the whole is {t}, in pieces it is {t}", .{ bounded.bytes_max, ends[0], ends[1] });
    }
}

const field_names = [_][]const u8{
    "data", "data", "data", "data", "event", "id", "retry", "", "Data", "datax", " data", "unknown", mark ++ "data", "x",
};
const separators = [_][]const u8{ ": ", ":", ": ", ":", ":  ", "", " :", "::", ":\t" };
const values = [_][]const u8{
    "",                    "x",        "{\"a\": \"b: c\"}",                                               "[DONE]",              "12",
    "007",                 "1x",       "-1",                                                              "184467440737095516",  "18446744073709551616",
    "\x00",                "a\x00b",
    "é 漢 😀",
    "\xff\xc3",            mark,       " ",                                                               "longer than sixteen", ": :",
    "data: nested: data",  "name",     "a line that is longer than two vectors of sixteen bytes, by far", "\t",                  "0123456789abcde",
    "0123456789abcdef012", "\u{2028}",
};
const line_ends = [_][]const u8{ "\n", "\n", "\r\n", "\r", "\n\n", "\n\n", "\r\r", "\r\n\r\n", "\n\r", "\r\n\n", "\r\r\n", "" };
const stream_words = line_ends ++ field_names ++ separators ++ .{ "\n", "\r", mark, "\xef", "\xbb", "\xef\xbb", "\x00" };

fn writeEvents(random: std.Random, arena: Allocator, out: *std.ArrayList(u8)) Allocator.Error!void {
    if (random.uintLessThan(u8, 4) == 0) try out.appendSlice(arena, pick(random, &.{ mark, mark, "\xef", "\xef\xbb", mark ++ mark, "\xef\xbb\n" }));
    for (0..random.uintLessThan(usize, if (random.uintLessThan(u8, 20) == 0) 200 else 14)) |_| {
        try out.appendSlice(arena, pick(random, &field_names));
        try out.appendSlice(arena, pick(random, &separators));
        try out.appendSlice(arena, pick(random, &values));
        try out.appendSlice(arena, pick(random, &line_ends));
    }
    if (random.boolean()) try trial_file.mutate(random, arena, out, &stream_words);
}

// ---------------------------------------------------------------------------------------------------- lines of JSON

/// Split at each LF; a CR before it does not count, nor do lines of white space. All before the LF counts for the bound.
pub fn splitDumbly(stream: []const u8, bytes_max: usize, journal: *Journal) error{OutOfMemory}!End {
    var lines = std.mem.splitScalar(u8, if (std.mem.startsWith(u8, stream, mark)) stream[mark.len..] else stream, '\n');
    while (lines.next()) |line| {
        if (line.len > bytes_max) return .too_large;
        if (std.mem.trim(u8, line, " \t\r").len == 0) continue;
        try journal.onLine(if (std.mem.endsWith(u8, line, "\r")) line[0 .. line.len - 1] else line);
    }
    return .whole;
}

fn checkLines(trial: *Trial) Error!void {
    var prng = trial.dice();
    const random = prng.random();
    const bytes_max = random.uintLessThan(usize, if (random.boolean()) 24 else 200);
    var decoder: ndjson.Decoder = .init(trial.gpa);
    defer decoder.deinit();
    var journal: Journal = .{ .gpa = trial.gpa };
    defer journal.deinit();
    var cuts: Cuts = .init(random);
    for ([_]usize{ ndjson.event_bytes_max_default, bytes_max }) |most| {
        var expected: Journal = .{ .gpa = trial.arena };
        const expected_end = try splitDumbly(trial.input, most, &expected);
        for ([_]bool{ true, false }) |whole| {
            var refused = false;
            const end = for (0..2) |_| {
                journal.clear();
                decoder.reset();
                decoder.event_bytes_max = most;
                break decode(trial, &decoder, &journal, &cuts, whole) catch {
                    refused = true; // once: the next time finds the decoder as good as new
                    continue;
                };
            } else return error.OutOfMemory;
            try trial.expectBytes(if (whole) "lines of the whole" else "lines of pieces", expected.text.items, journal.text.items);
            if (end != expected_end) return trial.wrong("with a bound of {d}: {t}, not {t}; whole: {}", .{ most, end, expected_end, whole });
            if (refused) return error.OutOfMemory;
        }
    }
}

const line_words = [_][]const u8{
    "{\"a\": 1}",   "[1, 2]",                         "12",
    "\"é 漢 😀\"",
    " ",            "\t",                             "\r",
    "\xff",         "\x00",                           "{\"a\"",
    "[DONE]",       "a line longer than any of them", mark,
    "\xef\xbb",     "\xef",                           "\u{85}",
    "data: {\"a\"", "{}",                             "null",
    "\x0b",
};
const lines_ends = [_][]const u8{ "\n", "\n", "\n", "\r\n", "\r\n", "\n\n", "\r", " \n", "\r\r\n", "\n\r" };

fn writeLines(random: std.Random, arena: Allocator, out: *std.ArrayList(u8)) Allocator.Error!void {
    if (random.uintLessThan(u8, 4) == 0) try out.appendSlice(arena, pick(random, &.{ mark, mark, "\xef", "\xef\xbb", mark ++ mark, "\xef\n" }));
    for (0..random.uintLessThan(usize, if (random.uintLessThan(u8, 20) == 0) 200 else 14)) |_| {
        for (0..random.uintLessThan(usize, 4)) |_| try out.appendSlice(arena, pick(random, &line_words));
        try out.appendSlice(arena, pick(random, &lines_ends));
    }
    if (random.boolean()) try trial_file.mutate(random, arena, out, &(line_words ++ lines_ends));
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "the dumb reader of events reads the standard's own examples" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    for ([_]struct { []const u8, []const [3][]const u8 }{
        .{ "data: YHOO\ndata: +2\ndata: 10\n\n", &.{.{ "message", "YHOO\n+2\n10", "" }} },
        .{
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            &.{ .{ "message", "first event", "1" }, .{ "message", "second event", "" }, .{ "message", " third event", "" } },
        },
        .{ "data\n\ndata\ndata\n\n", &.{ .{ "message", "", "" }, .{ "message", "\n", "" } } },
        .{ "data:test\n\ndata: test\n\n", &.{ .{ "message", "test", "" }, .{ "message", "test", "" } } },
        .{ "event: add\r\ndata: 1\r\n\r\nevent: lost\r\r\ndata: 2\r\r", &.{ .{ "add", "1", "" }, .{ "message", "2", "" } } },
        .{ mark ++ "data: a\rid: 7\r\n\nid: a\x00\ndata: left", &.{ .{ "message", "a", "7" }, .{ "message", "left", "7" } } },
    }) |sample| {
        var expected: Journal = .{ .gpa = arena.allocator() };
        for (sample[1]) |event| try expected.onEvent(.{ .name = event[0], .data = event[1], .id = event[2] });
        const found: Reference = try .read(arena.allocator(), sample[0], anything);
        try testing.expectEqualStrings(expected.text.items, found.events.text.items);
    }
    try testing.expectEqual(1500, (try Reference.read(arena.allocator(), "retry: 1500\nretry: 12x\nretry: -1\n", anything)).retry_ms);
}
