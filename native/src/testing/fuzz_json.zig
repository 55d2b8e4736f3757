//! Random documents, mostly damaged: accepted as std.json does, and what is found in them is the very slice that stands there.

const std = @import("std");
const paths_file = @import("../json/paths.zig");
const reader_file = @import("../json/reader.zig");
const spans = @import("spans.zig");
const trial_file = @import("trial.zig");

const Allocator = std.mem.Allocator;
const Document = spans.Document;
const Error = trial_file.Error;
const Kind = trial_file.Kind;
const Reader = reader_file.Reader;
const Trial = trial_file.Trial;
const pick = trial_file.pick;
const quoted = std.zig.fmtString;

pub const kinds = [_]Kind{
    .{ .name = "JSON: accepted as std.json does", .write = writeDocument, .check = checkAcceptance },
    .{ .name = "JSON: paths lead where they should", .write = writeDocument, .check = checkPaths },
};

// -------------------------------------------------------------------------------------------------------- documents

const scalars = [_][]const u8{
    "null", "true", "false", "0", "-0", "17", "-0.5e3", "1E+9", "2.50", "1e-7", "9007199254740993", "123456789012345678901234567890", "1e999", "\"\"", "\"x\"",
};
const string_parts = [_][]const u8{
    "a",              "b",              "0",                "*",                                  "key",
    "é",
    "😀",
    "\u{2028}",       "\x7f",           " ",                ".",                                  "/",
    "{",              "]",              ",",                "\\n",                                "\\\"",
    "\\\\",           "\\/",            "\\b\\f\\r\\t",     "\\u0041",                            "\\u00e9",
    "\\u0000",        "\\uffff",        "\\ud83d\\u0041",   "\\ud83d\\\\",                        "\\ud83d",
    "\\uD83D",        "\\udE00",        "\\ud83d\\ude00",   "\\udbff\\udfff",                     "\\ud800\\udc00",
    "\\udbff\\udbff", "\\ud800\\ue000", "sixteen bytes...", "quite a long stretch of plain text",
};
const keys = [_][]const u8{ "a", "a", "b", "0", "1", "", "*", "\\u0061", "k\\u0065y", "key", "\\ud800", "long key of many bytes", "a.b" };
const spaces = [_][]const u8{ "", "", "", "", " ", "\n", "\t", "\r\n", "  " };
const json_words = scalars ++ string_parts ++ spaces ++ .{
    "{",    "}",    "[",    "]",    ",",    ":",    "\"",           "\\",   "\\u",          "\\u00", "\\ud8", "e",   "E",        ".",  "-", "+",    "1",    "00", "[[[[[[[[", "]]]]", ",]", ",}", "1.", "01",
    "\x00", "\x1f", "\x1f", "\x1f", "\xff", "\xc3", "\xed\xa0\x80", "\xf0", "\xef\xbb\xbf", "tru",   "nul",   "NaN", "Infinity", "//", "'", "\x0b", "\xa0",
};

pub fn writeValue(random: std.Random, arena: Allocator, out: *std.ArrayList(u8), depth: u32) Allocator.Error!void {
    switch (random.uintLessThan(u8, if (depth > 5) 4 else 8)) {
        0, 1 => try out.appendSlice(arena, pick(random, &scalars)),
        2, 3 => {
            try out.append(arena, '"');
            for (0..random.uintLessThan(usize, 5)) |_| try out.appendSlice(arena, pick(random, &string_parts));
            try out.append(arena, '"');
        },
        4, 5 => {
            try out.append(arena, '[');
            for (0..random.uintLessThan(usize, 4)) |n| {
                try out.appendSlice(arena, if (n > 0) "," else "");
                try writeSpaced(random, arena, out, depth);
            }
            try out.appendSlice(arena, pick(random, &spaces));
            try out.append(arena, ']');
        },
        else => {
            try out.append(arena, '{');
            for (0..random.uintLessThan(usize, 5)) |n| {
                try out.appendSlice(arena, if (n > 0) "," else "");
                try out.appendSlice(arena, pick(random, &spaces));
                for ([_][]const u8{ "\"", pick(random, &keys), "\"", pick(random, &spaces), ":" }) |part| try out.appendSlice(arena, part);
                try writeSpaced(random, arena, out, depth);
            }
            try out.appendSlice(arena, pick(random, &spaces));
            try out.append(arena, '}');
        },
    }
}

fn writeSpaced(random: std.Random, arena: Allocator, out: *std.ArrayList(u8), depth: u32) Allocator.Error!void {
    try out.appendSlice(arena, pick(random, &spaces));
    try writeValue(random, arena, out, depth + 1);
    try out.appendSlice(arena, pick(random, &spaces));
}

fn writeDocument(random: std.Random, arena: Allocator, out: *std.ArrayList(u8)) Allocator.Error!void {
    const is_deep = random.uintLessThan(u8, 40) == 0;
    const depth = if (is_deep) random.intRangeAtMost(usize, 120, 131) else 0;
    const is_object = random.boolean();
    for (0..depth) |_| try out.appendSlice(arena, if (is_object) "{\"a\":" else "[");
    try writeSpaced(random, arena, out, if (is_deep) random.uintLessThan(u32, 8) else 0);
    for (0..depth) |_| try out.append(arena, if (is_object) '}' else ']');
    if (random.uintLessThan(u8, 3) != 0) try trial_file.mutate(random, arena, out, &json_words);
}

/// As std.json sees it, or null where that refuses it.
pub fn seen(arena: Allocator, bytes: []const u8) error{OutOfMemory}!?Document {
    return seenTo(arena, bytes, reader_file.depth_max_default);
}

pub fn seenTo(arena: Allocator, bytes: []const u8, depth_max: u32) error{OutOfMemory}!?Document {
    return Document.read(arena, bytes, depth_max) catch |err| switch (err) {
        error.Refused => null,
        error.OutOfMemory => error.OutOfMemory,
    };
}

// ------------------------------------------------------------------------------------------------------- acceptance

fn checkAcceptance(trial: *Trial) Error!void {
    const expected = try seen(trial.arena, trial.input);
    const skipped = passOver(trial.input) catch null;
    if ((skipped == null) != (expected == null)) {
        return trial.wrong("std.json {s} it, the reader does not", .{if (expected == null) "refuses" else "accepts"});
    }
    var prng = trial.dice();
    const document = &(expected orelse return);
    if (!isSlice(trial.input, document, 0, skipped.?)) return trial.wrong("skip returned \"{f}\"", .{quoted(skipped.?)});
    var reader = Reader.init(trial.input) catch unreachable; // it did so above
    walk(trial, document, 0, &reader, prng.random()) catch |err| switch (err) {
        error.BadJson => return trial.wrong("refused at {d} when entered", .{reader.at}),
        else => |other| return other,
    };
    reader.finish() catch return trial.wrong("not at its end after a walk, but at {d}", .{reader.at});
    if (reader.depth_left != reader_file.depth_max_default) return trial.wrong("depth is {d} after a walk", .{reader.depth_left});
    try checkStrings(trial, document);
}

fn passOver(bytes: []const u8) reader_file.Error![]const u8 {
    var reader: Reader = try .init(bytes);
    const value = try reader.skip();
    try reader.finish();
    return value;
}

/// The slice itself, not one that looks like it.
fn isSlice(bytes: []const u8, document: *const Document, at: usize, found: []const u8) bool {
    const value = &document.values[at];
    return isSame(found, bytes[value.start..value.end]);
}

fn isSame(a: []const u8, b: []const u8) bool {
    return a.ptr == b.ptr and a.len == b.len;
}

/// Into some values, over others.
fn walk(trial: *Trial, document: *const Document, at: usize, reader: *Reader, random: std.Random) (Error || reader_file.Error)!void {
    const value = &document.values[at];
    if (reader.at != value.start) return trial.wrong("value {d} begins at {d}, not at {d}", .{ at, value.start, reader.at });
    if (random.uintLessThan(u8, 4) == 0) {
        if (!isSlice(trial.input, document, at, try reader.skip())) return trial.wrong("value {d} was passed over wrongly", .{at});
        return;
    }
    const is_kind = switch (try reader.peek()) {
        .object => value.kind == .object,
        .array => value.kind == .array,
        .string => value.kind == .string,
        .number, .true, .false, .null => value.kind == .scalar,
    };
    if (!is_kind) return trial.wrong("value {d} is not what peek says", .{at});
    var inside = value.first;
    switch (value.kind) {
        .object => {
            var members = try reader.enterObject();
            while (try members.next()) |key| : (inside = document.values[inside.?].next) {
                const expected = document.values[inside orelse return trial.wrong("a member too many in value {d}", .{at})].key;
                if (!isSame(key, expected)) return trial.wrong("the key \"{f}\" is not where it stands", .{quoted(expected)});
                try walk(trial, document, inside.?, reader, random);
            }
        },
        .array => {
            var elements = try reader.enterArray();
            while (try elements.next()) : (inside = document.values[inside.?].next) {
                try walk(trial, document, inside orelse return trial.wrong("an element too many in value {d}", .{at}), reader, random);
            }
        },
        .string => {
            const content = try reader.string();
            if (!isSame(content, trial.input[value.start + 1 .. value.end - 1])) return trial.wrong("string {d} is not where it stands", .{at});
        },
        .scalar => _ = try reader.skip(),
    }
    if (inside != null) return trial.wrong("something is missing in value {d}", .{at});
}

/// What strings and keys say.
fn checkStrings(trial: *Trial, document: *const Document) Error!void {
    var out: std.ArrayList(u8) = .empty;
    defer out.deinit(trial.gpa);
    for (document.values, 0..) |*value, at| {
        const text = document.text(at);
        for ([_][]const u8{ if (value.kind == .string) text[1 .. text.len - 1] else "", value.key }) |raw| {
            const expected = try spans.says(trial.arena, raw);
            out.clearRetainingCapacity();
            try reader_file.unescape(trial.gpa, &out, raw);
            try trial.expectBytes("unescaped", expected, out.items);
            if (!reader_file.keyIs(raw, expected)) return trial.wrong("keyIs does not know \"{f}\"", .{quoted(raw)});
            const longer = try std.mem.concat(trial.arena, u8, &.{ expected, "x" });
            for ([_][]const u8{ "a", "key", "", "\u{fffd}", longer, expected[0 .. expected.len / 2] }) |name| if (reader_file.keyIs(raw, name) != std.mem.eql(u8, expected, name)) {
                return trial.wrong("keyIs takes \"{f}\" for {s}", .{ quoted(raw), name });
            };
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ paths

const paths_count = 6;

fn checkPaths(trial: *Trial) Error!void {
    var prng = trial.dice();
    const random = prng.random();
    const expected = try seen(trial.arena, trial.input);
    var texts: [paths_count][]const u8 = undefined;
    for (&texts) |*text| text.* = try randomPath(random, trial.arena, if (expected) |*it| it else null);
    for (texts) |text| try checkFind(trial, if (expected) |*it| it else null, text);

    var arena: std.heap.ArenaAllocator = .init(trial.gpa);
    defer arena.deinit();
    var builder: paths_file.Builder = .{ .arena = arena.allocator() };
    var ids: [paths_count]paths_file.PathId = undefined;
    for (texts, &ids) |text, *id| id.* = try built(trial, builder.add(text));
    const paths = try built(trial, builder.finish());
    const document = &(expected orelse {
        if (search(trial, &paths)) |found| {
            var it = found;
            it.deinit();
            return trial.wrong("std.json refuses it, a search does not", .{});
        } else |err| return if (err == error.BadJson) {} else error.OutOfMemory;
    });
    var it = search(trial, &paths) catch |err| switch (err) {
        error.BadJson => return trial.wrong("std.json accepts it, a search does not", .{}),
        error.OutOfMemory => return error.OutOfMemory,
    };
    defer it.deinit();
    for (texts, ids) |text, id| {
        var at = it.first(id);
        for (try document.follow(trial.arena, text, .search)) |one| {
            if (at == paths_file.none) return trial.wrong("{s} finds too little", .{text});
            const finding = &it.findings.items[at];
            const positions = finding.positions[0..paths.starCount(id)];
            if (!isSlice(trial.input, document, one.value, finding.raw)) return trial.wrong("{s} finds \"{f}\"", .{ text, quoted(finding.raw) });
            if (!std.mem.eql(u32, one.positions, positions)) return trial.wrong("{s}: its stars stand for {any}", .{ text, positions });
            at = finding.next;
        }
        if (at != paths_file.none) return trial.wrong("{s} finds too much", .{text});
    }
}

fn built(trial: *Trial, result: anytype) Error!@typeInfo(@TypeOf(result)).error_union.payload {
    return result catch |err| switch (err) {
        error.OutOfMemory => error.OutOfMemory,
        error.TooComplex => trial.wrong("paths are too complex", .{}),
    };
}

fn search(trial: *Trial, paths: *const paths_file.Paths) error{ OutOfMemory, BadJson }!paths_file.Search {
    var it: paths_file.Search = try .init(paths, trial.gpa, trial.input);
    errdefer it.deinit();
    try it.run();
    return it;
}

/// In a document that is none it may find what stands before the fault; that is a value.
fn checkFind(trial: *Trial, expected: ?*const Document, path: []const u8) Error!void {
    const found = reader_file.find(trial.input, path) catch {
        return if (expected == null) {} else trial.wrong("find {s} refuses a document", .{path});
    };
    const agrees = if (expected) |document| blk: {
        const all = try document.follow(trial.arena, path, .find);
        const raw = found orelse break :blk all.len == 0;
        break :blk all.len > 0 and isSlice(trial.input, document, all[0].value, raw);
    } else blk: {
        const raw = found orelse break :blk true;
        const offset = @intFromPtr(raw.ptr) -% @intFromPtr(trial.input.ptr);
        if (offset > trial.input.len or raw.len > trial.input.len - offset) break :blk false;
        const value = try seen(trial.arena, raw) orelse break :blk false;
        break :blk isSlice(raw, &value, 0, raw);
    };
    if (!agrees) return trial.wrong("find {s} returned \"{f}\"", .{ path, quoted(found orelse "nothing") });
}

/// To some value, or almost.
fn randomPath(random: std.Random, arena: Allocator, document: ?*const Document) Allocator.Error![]const u8 {
    var parts: std.ArrayList([]const u8) = .empty;
    var stars: usize = 0;
    if (document) |it| {
        var at: usize = random.uintLessThan(usize, it.values.len);
        while (it.values[at].parent) |parent| : (at = parent) {
            const in_array = it.values[parent].kind == .array;
            if (in_array and stars < 4 and random.boolean()) {
                try parts.insert(arena, 0, "*");
                stars += 1;
            } else {
                const part = if (in_array) try arena.print("{d}", .{it.values[at].index}) else try spans.says(arena, it.values[at].key);
                if (std.mem.eql(u8, part, "*")) stars += 1;
                try parts.insert(arena, 0, part);
            }
        }
    }
    if (random.uintLessThan(u8, 3) == 0) for (0..random.uintLessThan(usize, 3)) |_| {
        const part = pick(random, &.{ "a", "b", "0", "1", "2", "00", "key", "", "-1", "99999999999", "missing" });
        try parts.insert(arena, random.uintAtMost(usize, parts.items.len), part);
    };
    // As many as a path may have: a key may have dots of its own.
    const path = try std.mem.join(arena, ".", parts.items);
    return if (std.mem.countScalar(u8, path, '.') < 32 and std.mem.count(u8, path, "*") <= 4) path else "";
}
