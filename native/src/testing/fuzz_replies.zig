//! Replies and streams as vendors send them, damaged: read by the programs of golden.zig into replies, twice and more, and by
//! somebody dumb who applies the rules one by one to the tree; and taken as they come, in pieces, by a reader who is told now and then.

const std = @import("std");
const deltas_file = @import("../deltas.zig");
const extract = @import("../json/extract.zig");
const fuzz_json = @import("fuzz_json.zig");
const golden = @import("golden.zig");
const head = @import("../http/head.zig");
const reader_file = @import("../json/reader.zig");
const reading_file = @import("../reading.zig");
const rules_dumb = @import("dumb_rules.zig");
const spans = @import("spans.zig");
const streams = @import("fuzz_streams.zig");
const trial_file = @import("trial.zig");

const Allocator = std.mem.Allocator;
const Cuts = trial_file.Cuts;
const Delta = deltas_file.Kind;
const Error = trial_file.Error;
const Journal = streams.Journal;
const Kind = trial_file.Kind;
const Program = extract.Program;
const Reading = reading_file.Reading;
const Reply = extract.Reply;
const RuleText = extract.RuleText;
const Trial = trial_file.Trial;
const pick = trial_file.pick;

pub const kinds = [_]Kind{
    .{ .name = "replies: documents read by rules", .write = writeDocuments, .check = checkExtraction },
    .{ .name = "replies: streams read as they come", .write = writeStream, .check = checkReading },
};

const mark = "\xef\xbb\xbf";

/// Where the golden ones have no rule: whole documents, arrays of what was found, counts that add up, numbers by path.
const odd = [_]RuleText{
    .{ .into = .value, .fold = .append },
    .{ .take = "id", .into = .value, .fold = .append },
    .{ .take = "choices.*.delta.content", .into = .text, .fold = .append },
    .{ .when = "choices.*.index", .is = "0", .take = "choices.*.delta", .into = .reasoning, .fold = .append },
    .{ .when = "usage", .is = "null", .take = "model", .into = .finish, .fold = .last },
    .{ .take = "usage.total_tokens", .into = .total_tokens, .fold = .add },
    .{ .take = "choices.*.delta.tool_calls.*.id", .index = "choices.*.index", .into = .tool_id },
    .{ .take = "choices.*.delta.tool_calls.*.function.arguments", .into = .tool_arguments, .fold = .append },
    .{ .when = "choices.*.delta.tool_calls.*.index", .is = "1.0", .take = "choices.*.delta.tool_calls.*.function", .into = .tool_name, .fold = .last },
};
const last_value = [_]RuleText{
    .{ .take = "choices.0.delta", .into = .value },
    .{ .take = "choices.0.message", .into = .value, .fold = .append },
    .{ .take = "usage", .into = .value, .fold = .last },
    .{ .take = "choices.0.finish_reason", .into = .text, .fold = .last },
};
/// For each dialect, told by a word; the last two are for the first dialect's documents.
const programs = [_][]const RuleText{ &golden.openai, &golden.anthropic, &golden.gemini, &odd, &last_value };

/// Mostly one that fits.
fn programFor(random: std.Random, input: []const u8) []const RuleText {
    if (random.uintLessThan(u8, 8) == 0) return programs[random.uintLessThan(usize, programs.len)];
    if (std.mem.indexOf(u8, input, "\"candidates\"") != null) return &golden.gemini;
    if (std.mem.indexOf(u8, input, "\"choices\"") == null) return &golden.anthropic;
    return if (random.boolean()) &golden.openai else programs[random.intRangeAtMost(usize, 3, 4)];
}

// ------------------------------------------------------------------------------------------------------------ inputs

const whole = [_][]const u8{
    @embedFile("golden/openai_chat.json"),       @embedFile("golden/openai_tools.json"),    @embedFile("golden/openai_error.json"),
    @embedFile("golden/anthropic_message.json"), @embedFile("golden/anthropic_error.json"), @embedFile("golden/gemini_generate.json"),
    @embedFile("golden/gemini_error.json"),
};
const streamed = [_][]const u8{
    @embedFile("golden/openai_text.sse"),       @embedFile("golden/openai_tools.sse"),      @embedFile("golden/openai_error.sse"),
    @embedFile("golden/openai_text.sse"),       @embedFile("golden/openai_tools.sse"),      @embedFile("golden/gemini_error.sse"),
    @embedFile("golden/anthropic_message.sse"), @embedFile("golden/anthropic_message.sse"), @embedFile("golden/anthropic_error.sse"),
    @embedFile("golden/gemini_generate.sse"),
};
/// For values of these documents.
const replacements = [_][]const u8{
    "null",      "null",        "true",               "false",        "0",                   "1",                          "-1",
    "1.0",       "7e0",         "1.5",                "99999999999",  "{}",                  "[]",                         "[1]",
    "\"\"",      "\"x\"",       "\"text\"",           "\"tool_use\"", "\"stop\"",            "\"\\u0074ext\"",
    "\"é\"",
    "\"a\\nb\"", "\"\\ud83d\"", "\"\\ud83d\\ude00\"", "{\"a\":[1]}",  "{\"message\":\"m\"}", "{\"index\":1,\"id\":\"c\"}",
};

/// A document on one line; some of its values replaced by others, some of its elements doubled.
fn writeSpliced(random: std.Random, arena: Allocator, out: *std.ArrayList(u8), document: []const u8) Allocator.Error!void {
    var text: []u8 = try arena.dupe(u8, document);
    std.mem.replaceScalar(u8, text, '\n', ' ');
    for (0..random.uintLessThan(usize, 4)) |_| {
        const it = try fuzz_json.seen(arena, text) orelse break;
        const at = random.uintLessThan(usize, it.values.len);
        const value = &it.values[at];
        const in_array = if (value.parent) |parent| it.values[parent].kind == .array else false;
        const other = switch (random.uintLessThan(u8, 4)) {
            0 => it.text(random.uintLessThan(usize, it.values.len)),
            1 => if (in_array) try severalTimes(random, arena, it.text(at)) else "null",
            else => pick(random, &replacements),
        };
        text = try std.mem.concat(arena, u8, &.{ text[0..value.start], other, text[value.end..] });
        if (text.len > 4096) break;
    }
    try out.appendSlice(arena, text);
}

/// Mostly twice, sometimes more often than a reading of documents has room for at first.
fn severalTimes(random: std.Random, arena: Allocator, element: []const u8) Allocator.Error![]const u8 {
    var all: std.ArrayList(u8) = .empty;
    try all.appendSlice(arena, element);
    const times: usize = if (random.uintLessThan(u8, 20) == 0) 100 else 1;
    for (0..times) |_| {
        try all.append(arena, ',');
        try all.appendSlice(arena, element);
    }
    return all.items;
}

/// The data of some events of a golden stream, "[DONE]" among them; or a golden reply, or a random document.
fn someDocuments(random: std.Random, arena: Allocator) Allocator.Error![]const []const u8 {
    var all: std.ArrayList([]const u8) = .empty;
    if (random.uintLessThan(u8, 4) == 0) {
        try all.append(arena, whole[random.uintLessThan(usize, whole.len)]);
    } else if (random.uintLessThan(u8, 10) == 0) {
        var document: std.ArrayList(u8) = .empty;
        try fuzz_json.writeValue(random, arena, &document, 0);
        try all.append(arena, document.items);
    } else {
        const stream = streamed[random.uintLessThan(usize, streamed.len)];
        var lines = std.mem.splitScalar(u8, stream, '\n');
        while (lines.next()) |line| if (std.mem.startsWith(u8, line, "data: ")) try all.append(arena, line["data: ".len..]);
        const first = if (random.boolean()) 0 else random.uintLessThan(usize, all.items.len);
        const count = @min(1 + random.uintLessThan(usize, 12), all.items.len - first);
        // The end of a stream matters: half of them have it.
        return if (random.boolean()) all.items[all.items.len - count ..] else all.items[first..][0..count];
    }
    return all.items;
}

const json_words = [_][]const u8{ "{", "}", "[", "]", ",", "\"", ":", "\\", "null", "0", "\x00", "\xff", " ", "\"index\":1,", "\n" };

/// A document on each line.
fn writeDocuments(random: std.Random, arena: Allocator, out: *std.ArrayList(u8)) Allocator.Error!void {
    if (random.uintLessThan(u8, 250) == 0) {
        const depth = random.intRangeAtMost(usize, extract.depth_most - 2, extract.depth_most + 2);
        const is_object = random.boolean();
        for (0..depth) |_| try out.appendSlice(arena, if (is_object) "{\"\":" else "[");
        try out.append(arena, '0');
        for (0..depth) |_| try out.append(arena, if (is_object) '}' else ']');
        try out.append(arena, '\n');
    }
    for (try someDocuments(random, arena)) |document| {
        if (random.uintLessThan(u8, 30) == 0) try out.appendSlice(arena, mark);
        try writeSpliced(random, arena, out, document);
        try out.append(arena, '\n');
    }
    if (random.uintLessThan(u8, 3) == 0) try trial_file.mutate(random, arena, out, &json_words);
}

/// Events, or lines of JSON; which it is follows from the choices, so either may be read as the other.
fn writeStream(random: std.Random, arena: Allocator, out: *std.ArrayList(u8)) Allocator.Error!void {
    const is_lines = random.uintLessThan(u8, 3) == 0;
    const line_end = pick(random, &.{ "\n", "\n", "\n", "\r\n", "\r" });
    if (random.uintLessThan(u8, 10) == 0) try out.appendSlice(arena, mark);
    for (try someDocuments(random, arena)) |document| {
        if (is_lines) {
            try writeSpliced(random, arena, out, document);
            try out.appendSlice(arena, pick(random, &.{ "\n", "\n", "\r\n", "\n\n" }));
            continue;
        }
        try out.appendSlice(arena, pick(random, &.{ "", "", "", ": a comment\n", "event: delta\n", "id: 1\n" }));
        try out.appendSlice(arena, pick(random, &.{ "data: ", "data: ", "data:" }));
        try writeSpliced(random, arena, out, document);
        try out.appendSlice(arena, line_end);
        try out.appendSlice(arena, line_end);
    }
    if (random.boolean()) try out.appendSlice(arena, if (is_lines) "[DONE]\n" else "data: [DONE]\n\n");
    const words = json_words ++ .{ "\n\n", "\r", "data", "data: ", ":", "[DONE]" };
    if (random.uintLessThan(u8, 3) == 0) try trial_file.mutate(random, arena, out, &words);
}

// -------------------------------------------------------------------------------------------------------- extraction

/// Everything a reply says, as text.
fn said(arena: Allocator, reply: *const Reply) error{OutOfMemory}![]const u8 {
    var it: rules_dumb.Said = .{ .arena = arena };
    inline for (rules_dumb.text_fields) |name| try it.text(name, @field(reply, name).items());
    inline for (rules_dumb.count_fields) |name| try it.count(name, @field(reply, name));
    for (reply.toolCalls()) |call| try it.tool(call.id.items(), call.name.items(), call.arguments.items());
    try it.end(reply.isEmpty());
    return it.out.items;
}

/// With its program and its memory.
const Case = struct {
    arena: std.heap.ArenaAllocator,
    program: Program,

    fn init(trial: *Trial, rows: []const RuleText) Error!Case {
        var arena: std.heap.ArenaAllocator = .init(trial.gpa);
        errdefer arena.deinit();
        const program = extract.compileText(arena.allocator(), rows) catch |err| return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            error.InvalidRule => trial.wrong("rules were refused", .{}),
        };
        return .{ .arena = arena, .program = program };
    }
};

fn checkExtraction(trial: *Trial) Error!void {
    var prng = trial.dice();
    const random = prng.random();
    const rows = programFor(random, trial.input);
    var case: Case = try .init(trial, rows);
    defer case.arena.deinit();
    const program = &case.program;
    if (random.uintLessThan(u8, 8) == 0) program.depth_max = if (random.boolean()) extract.depth_most else random.uintLessThan(u32, 9);
    // One borrows from documents, one is given them for the time of the call only, one has been used before.
    var replies: [3]Reply = @splat(.init(trial.gpa));
    defer for (&replies) |*reply| reply.deinit();
    var lines = std.mem.splitScalar(u8, trial.input, '\n');
    const first = lines.next().?;
    feed(program, &replies[2], first, .ends_with_call, trial.arena) catch |err| if (err == error.OutOfMemory) {
        replies[2].clear();
        feed(program, &replies[2], first, .ends_with_call, trial.arena) catch {};
        return error.OutOfMemory;
    };
    replies[2].clear();
    try expectEmpty(trial, &replies[2]);
    lines.reset();
    var dumb: rules_dumb.Reply = .{ .arena = trial.arena, .rows = rows };
    while (lines.next()) |line| {
        const before = try said(trial.arena, &replies[0]);
        const document = try fuzz_json.seenTo(trial.arena, if (std.mem.startsWith(u8, line, mark)) line[mark.len..] else line, program.depth_max);
        if (document) |*it| try dumb.feed(it);
        for (&replies, [_]extract.Lifetime{ .outlives_reply, .ends_with_call, .ends_with_call }) |*reply, lifetime| {
            if (feed(program, reply, line, lifetime, trial.arena)) {
                if (document == null) return trial.wrong("accepted: {s}", .{line});
                try trial.expectBytes(@tagName(lifetime), try dumb.said(), try said(trial.arena, reply));
            } else |err| switch (err) {
                error.BadJson => {
                    if (document != null) return trial.wrong("refused: {s}", .{line});
                    if (lifetime == .outlives_reply) try trial.expectBytes("after a bad document", before, try said(trial.arena, reply));
                    reply.clear();
                    try expectEmpty(trial, reply);
                },
                error.OutOfMemory => {
                    reply.clear();
                    try expectEmpty(trial, reply);
                    var again: rules_dumb.Reply = .{ .arena = trial.arena, .rows = rows };
                    if (document) |*it| try again.feed(it);
                    feed(program, reply, line, lifetime, trial.arena) catch {
                        if (document != null) return trial.wrong("refused after it was cleared: {s}", .{line});
                        reply.clear();
                    };
                    try trial.expectBytes("after a refused allocation", try again.said(), try said(trial.arena, reply));
                    return error.OutOfMemory;
                },
            }
        }
        if (document == null) dumb = .{ .arena = trial.arena, .rows = rows };
    }
}

/// A document that is not to outlive the call is gone after it.
fn feed(
    program: *const Program,
    reply: *Reply,
    line: []const u8,
    lifetime: extract.Lifetime,
    arena: Allocator,
) error{ OutOfMemory, BadJson }!void {
    if (lifetime == .outlives_reply) return program.feed(reply, line, lifetime);
    const copy = try arena.dupe(u8, line);
    defer @memset(copy, 0xaa);
    return program.feed(reply, copy, lifetime);
}

fn expectEmpty(trial: *Trial, reply: *const Reply) Error!void {
    const fresh: Reply = .init(trial.gpa);
    try trial.expectBytes("a cleared reply", try said(trial.arena, &fresh), try said(trial.arena, reply));
}

// ----------------------------------------------------------------------------------------------------------- reading

const End = enum { well, whole, cut_off, bad_json, provider, too_large };

/// What came of a stream.
const Outcome = struct {
    end: End,
    /// What the reader was given: pieces joined, events each with its length.
    given: [4][]const u8,
    reply: []const u8,
};

fn checkReading(trial: *Trial) Error!void {
    var prng = trial.dice();
    const random = prng.random();
    const fitting = programFor(random, trial.input);
    const rows = if (fitting.ptr == &last_value) &golden.openai else fitting; // a text that is replaced is none that grows
    const how: reading_file.How = if (random.boolean()) .deltas else random.enumValue(reading_file.How);
    const media: head.Media = if (random.uintLessThan(u8, 8) == 0)
        random.enumValue(head.Media)
    else if (std.mem.startsWith(u8, trial.input, "{")) .lines else pickMedia(random);
    const bytes_max: usize = if (random.uintLessThan(u8, 4) == 0) random.uintLessThan(usize, 600) + 1 else 0;
    var case: Case = try .init(trial, rows);
    defer case.arena.deinit();
    var cuts: Cuts = .init(random);
    const all = try readAs(trial, &case.program, how, media, bytes_max, &cuts, null);
    const pieces = try readAs(trial, &case.program, how, media, bytes_max, &cuts, random);
    const expected = try readDumbly(trial, rows, how, media);
    for ([_]*const Outcome{ &all, &pieces }) |found| {
        if (found.end == .too_large) {
            if (bytes_max == 0 or how == .bytes) return trial.wrong("too large: {d} bytes", .{trial.input.len});
            for (expected.given, found.given) |a, b| if (!std.mem.startsWith(u8, a, b)) return trial.wrong("given something else before the bound", .{});
        } else try expectSame(trial, &expected, found);
    }
    if ((all.end == .too_large) == (pieces.end == .too_large)) return;
    return trial.wrong("the whole ended as {t}, in pieces as {t}", .{ all.end, pieces.end });
}

fn expectSame(trial: *Trial, expected: *const Outcome, found: *const Outcome) Error!void {
    if (found.end != expected.end) return trial.wrong("ended as {t}, not as {t}", .{ found.end, expected.end });
    for (expected.given, found.given, std.enums.values(Delta)) |a, b, kind| try trial.expectBytes(@tagName(kind), a, b);
    try trial.expectBytes("the reply", expected.reply, found.reply);
}

/// What is to come of a stream without a bound: by one who has it all before him.
fn readDumbly(trial: *Trial, rows: []const RuleText, how: reading_file.How, media: head.Media) Error!Outcome {
    const arena = trial.arena;
    var dumb: rules_dumb.Reply = .{ .arena = arena, .rows = rows };
    var outcome: Outcome = .{ .end = .well, .given = @splat(""), .reply = try dumb.said() };
    if (how == .bytes) {
        outcome.given[@backingInt(Delta.bytes)] = trial.input;
        return outcome;
    }
    if (media == .json and trial.input.len > 0) {
        outcome.end = .whole;
        return outcome;
    }
    var events: Journal = .{ .gpa = arena };
    var is_done = false;
    for (try dataOf(arena, trial.input, media)) |data| {
        if (how == .events) {
            try events.part(data);
        } else if (std.mem.eql(u8, data, "[DONE]")) {
            is_done = true;
        } else if (try fuzz_json.seen(arena, if (std.mem.startsWith(u8, data, mark)) data[mark.len..] else data)) |document| {
            try dumb.feed(&document);
            if (dumb.texts[@backingInt(extract.Into.error_message)].len > 0) {
                outcome.end = .provider; // the words of such an event stay in the reply: nobody is given them
                break;
            }
            if (how == .deltas) for ([_]extract.Into{ .text, .reasoning }, [_]Delta{ .text, .reasoning }) |field, kind| {
                outcome.given[@backingInt(kind)] = dumb.texts[@backingInt(field)];
            };
        } else {
            outcome.end = .bad_json;
            break;
        }
    }
    outcome.given[@backingInt(Delta.event)] = events.text.items;
    outcome.reply = try dumb.said();
    const is_finished = is_done or dumb.texts[@backingInt(extract.Into.finish)].len > 0;
    if (how == .deltas and outcome.end == .well and !is_finished) outcome.end = .cut_off;
    return outcome;
}

fn dataOf(arena: Allocator, stream: []const u8, media: head.Media) Error![]const []const u8 {
    if (media != .lines) return (try streams.Reference.read(arena, stream, std.math.maxInt(usize))).data_of_all.items;
    var lines: streams.Journal = .{ .gpa = arena };
    _ = try streams.splitDumbly(stream, std.math.maxInt(usize), &lines);
    return try lines.parts();
}

fn pickMedia(random: std.Random) head.Media {
    return if (random.boolean()) .event_stream else .other;
}

/// `random`: cuts the stream, and takes what has come in its own time; without it is one piece, and all is taken at once.
fn readAs(
    trial: *Trial,
    program: *const Program,
    how: reading_file.How,
    media: head.Media,
    bytes_max: usize,
    cuts: *Cuts,
    random: ?std.Random,
) Error!Outcome {
    var reply: Reply = .init(trial.gpa);
    defer reply.deinit();
    var reading: Reading = .init(trial.gpa, how, program, &reply, bytes_max);
    defer reading.deinit();
    var taker: Taker = .{ .trial = trial, .reading = &reading, .random = random };
    const end: End = blk: {
        var rest = trial.input;
        while (rest.len > 0) {
            const piece = if (random == null) try cuts.take(trial.arena, &rest, rest.len) else try cuts.next(trial.arena, &rest);
            if (piece.len == 0) continue;
            const told = reading.take(media, piece) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.TooLarge => break :blk .too_large,
                error.BadJson => break :blk .bad_json,
                error.Provider => break :blk .provider,
                error.Whole => break :blk .whole,
            };
            cuts.forget();
            try taker.tell(told);
        }
        const told = reading.finish() catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.TooLarge => break :blk .too_large,
            error.BadJson => break :blk .bad_json,
            error.Provider => break :blk .provider,
            error.CutOff => break :blk .cut_off,
        };
        try taker.tell(told);
        break :blk .well;
    };
    try taker.take(null);
    for ([_]Delta{ .text, .reasoning }, [_][]const u8{ reply.text.items(), reply.reasoning.items() }) |kind, text| {
        const given = taker.given[@backingInt(kind)].items;
        if (how != .deltas or end == .provider or std.mem.eql(u8, text, given)) continue;
        return trial.wrong("{t}: the reply has \"{s}\", given was \"{s}\"", .{ kind, text, given });
    }
    var given: [4][]const u8 = undefined;
    for (&given, &taker.given) |*to, *from| to.* = from.items;
    return .{ .end = end, .given = given, .reply = try said(trial.arena, &reply) };
}

/// A reader that takes what has come once it was told, at once or later.
const Taker = struct {
    trial: *Trial,
    reading: *Reading,
    random: ?std.Random,
    is_told: bool = false,
    given: [4]std.ArrayList(u8) = @splat(.empty),

    fn tell(taker: *Taker, told: bool) Error!void {
        if (told and taker.is_told) return taker.trial.wrong("told twice", .{});
        taker.is_told = taker.is_told or told;
        const has_come = taker.reading.deltas.filling.pieces.items.len > 0;
        if (has_come and !taker.is_told) return taker.trial.wrong("something has come, and the reader was not told", .{});
        const now = if (taker.random) |random| random.uintLessThan(u8, 3) == 0 else true;
        if (taker.is_told and now) try taker.take(taker.random);
    }

    /// `pause`: leaves some for later, perhaps, when more has come behind them.
    fn take(taker: *Taker, pause: ?std.Random) Error!void {
        var into: [5]deltas_file.Delta = undefined;
        while (true) {
            const room = if (taker.random) |random| 1 + random.uintLessThan(usize, into.len) else into.len;
            const taken = taker.reading.deltas.take(into[0..room]);
            for (into[0..taken.count]) |delta| {
                const bytes = delta.bytes.items();
                var journal: Journal = .{ .gpa = taker.trial.arena, .text = taker.given[@backingInt(delta.kind)] };
                if (delta.kind == .event) try journal.part(bytes) else try journal.text.appendSlice(journal.gpa, bytes);
                taker.given[@backingInt(delta.kind)] = journal.text;
            }
            if (taken.proceed) return taker.trial.wrong("held up by {d} bytes", .{taker.trial.input.len});
            if (!taken.more) break;
            if (pause) |random| if (random.boolean()) return;
        }
        taker.is_told = false;
    }
};
