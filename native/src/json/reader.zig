//! JSON read without building a tree: a cursor over a whole document in memory (RFC 8259). It checks what it passes over,
//! so a document that was read to its end was valid JSON. Depth is bounded; nothing is allocated except by `unescape`.

const std = @import("std");

const Allocator = std.mem.Allocator;

pub const depth_max_default = 128;

pub const Error = error{BadJson};

pub const Kind = enum { object, array, string, number, true, false, null };

pub const Reader = struct {
    bytes: []const u8,
    at: usize = 0,
    depth_left: u32 = depth_max_default,

    /// The document must be UTF-8: checked here, once.
    pub fn init(bytes: []const u8) Error!Reader {
        var reader: Reader = .{ .bytes = bytes };
        if (!std.unicode.utf8ValidateSlice(bytes)) return error.BadJson;
        reader.skipSpace();
        return reader;
    }

    /// Nothing but white space may follow the document.
    pub fn finish(reader: *Reader) Error!void {
        reader.skipSpace();
        if (reader.at != reader.bytes.len) return error.BadJson;
    }

    pub fn peek(reader: *const Reader) Error!Kind {
        if (reader.at == reader.bytes.len) return error.BadJson;
        return switch (reader.bytes[reader.at]) {
            '{' => .object,
            '[' => .array,
            '"' => .string,
            '-', '0'...'9' => .number,
            't' => .true,
            'f' => .false,
            'n' => .null,
            else => error.BadJson,
        };
    }

    /// Passes over one value and returns it as it stands.
    pub fn skip(reader: *Reader) Error![]const u8 {
        const start = reader.at;
        switch (try reader.peek()) {
            .object => {
                var members = try reader.enterObject();
                while (try members.next()) |_| _ = try reader.skip();
            },
            .array => {
                var elements = try reader.enterArray();
                while (try elements.next()) _ = try reader.skip();
            },
            .string => _ = try reader.string(),
            .number => try reader.number(),
            .true => try reader.literal("true"),
            .false => try reader.literal("false"),
            .null => try reader.literal("null"),
        }
        return reader.bytes[start..reader.at];
    }

    pub const Members = struct {
        reader: *Reader,
        first: bool = true,

        /// The next member's key, between its quotes, as it stands; the reader is at its value. Null: the object ended.
        pub fn next(members: *Members) Error!?[]const u8 {
            const reader = members.reader;
            reader.skipSpace();
            if (reader.take('}')) {
                reader.depth_left += 1;
                return null;
            }
            if (!members.first) {
                if (!reader.take(',')) return error.BadJson;
                reader.skipSpace();
            }
            members.first = false;
            const key = try reader.string();
            reader.skipSpace();
            if (!reader.take(':')) return error.BadJson;
            reader.skipSpace();
            return key;
        }
    };

    pub fn enterObject(reader: *Reader) Error!Members {
        try reader.descend('{');
        return .{ .reader = reader };
    }

    pub const Elements = struct {
        reader: *Reader,
        first: bool = true,

        /// False: the array ended.
        pub fn next(elements: *Elements) Error!bool {
            const reader = elements.reader;
            reader.skipSpace();
            if (reader.take(']')) {
                reader.depth_left += 1;
                return false;
            }
            if (!elements.first) {
                if (!reader.take(',')) return error.BadJson;
                reader.skipSpace();
            }
            elements.first = false;
            return true;
        }
    };

    pub fn enterArray(reader: *Reader) Error!Elements {
        try reader.descend('[');
        return .{ .reader = reader };
    }

    /// What stands between the quotes, escapes and all.
    pub fn string(reader: *Reader) Error![]const u8 {
        if (!reader.take('"')) return error.BadJson;
        const start = reader.at;
        while (true) {
            reader.at = findSpecial(reader.bytes, reader.at);
            if (reader.at == reader.bytes.len) return error.BadJson;
            switch (reader.bytes[reader.at]) {
                '"' => {
                    reader.at += 1;
                    return reader.bytes[start .. reader.at - 1];
                },
                '\\' => try reader.escape(),
                else => return error.BadJson, // a control character
            }
        }
    }

    fn escape(reader: *Reader) Error!void {
        const rest = reader.bytes[reader.at + 1 ..];
        if (rest.len == 0) return error.BadJson;
        switch (rest[0]) {
            '"', '\\', '/', 'b', 'f', 'n', 'r', 't' => reader.at += 2,
            'u' => {
                if (rest.len < 5) return error.BadJson;
                for (rest[1..5]) |digit| if (!std.ascii.isHex(digit)) return error.BadJson;
                reader.at += 6;
            },
            else => return error.BadJson,
        }
    }

    fn number(reader: *Reader) Error!void {
        _ = reader.take('-');
        if (!reader.take('0')) try reader.digits();
        if (reader.take('.')) try reader.digits();
        if (reader.take('e') or reader.take('E')) {
            if (!reader.take('+')) _ = reader.take('-');
            try reader.digits();
        }
    }

    fn digits(reader: *Reader) Error!void {
        const start = reader.at;
        while (reader.at < reader.bytes.len and std.ascii.isDigit(reader.bytes[reader.at])) reader.at += 1;
        if (reader.at == start) return error.BadJson;
    }

    fn literal(reader: *Reader, comptime text: []const u8) Error!void {
        if (!std.mem.startsWith(u8, reader.bytes[reader.at..], text)) return error.BadJson;
        reader.at += text.len;
    }

    fn descend(reader: *Reader, comptime open: u8) Error!void {
        if (!reader.take(open) or reader.depth_left == 0) return error.BadJson;
        reader.depth_left -= 1;
    }

    fn take(reader: *Reader, byte: u8) bool {
        if (reader.at == reader.bytes.len or reader.bytes[reader.at] != byte) return false;
        reader.at += 1;
        return true;
    }

    pub fn skipSpace(reader: *Reader) void {
        while (reader.at < reader.bytes.len) : (reader.at += 1) switch (reader.bytes[reader.at]) {
            ' ', '\t', '\n', '\r' => {},
            else => return,
        };
    }
};

/// Where the next quote, backslash or control character stands, or the end.
pub fn findSpecial(bytes: []const u8, from: usize) usize {
    const width = 16;
    const V = @Vector(width, u8);
    var at = from;
    while (at + width <= bytes.len) : (at += width) {
        const chunk: V = bytes[at..][0..width].*;
        const quote = chunk == @as(V, @splat('"'));
        const slash = chunk == @as(V, @splat('\\'));
        const control = chunk < @as(V, @splat(0x20));
        const mask = @as(u16, @bitCast(quote)) | @as(u16, @bitCast(slash)) | @as(u16, @bitCast(control));
        if (mask != 0) return at + @ctz(mask);
    }
    while (at < bytes.len) : (at += 1) switch (bytes[at]) {
        '"', '\\', 0...0x1f => return at,
        else => {},
    };
    return at;
}

/// Appends a string's content with its escapes resolved. A lone surrogate becomes U+FFFD. `raw` was passed by a Reader.
pub fn unescape(gpa: Allocator, out: *std.ArrayList(u8), raw: []const u8) Allocator.Error!void {
    try out.ensureUnusedCapacity(gpa, raw.len); // no escape grows
    var pieces: Pieces = .{ .raw = raw };
    while (pieces.next()) |piece| out.appendSliceAssumeCapacity(piece);
}

/// A string's content piece by piece: stretches as they stand, and escapes resolved.
const Pieces = struct {
    raw: []const u8,
    at: usize = 0,
    encoded: [4]u8 = undefined,

    fn next(pieces: *Pieces) ?[]const u8 {
        const rest = pieces.raw[pieces.at..];
        if (rest.len == 0) return null;
        if (rest[0] != '\\') {
            const length = std.mem.findScalar(u8, rest, '\\') orelse rest.len;
            pieces.at += length;
            return rest[0..length];
        }
        pieces.at += 2;
        return switch (rest[1]) {
            'b' => "\x08",
            'f' => "\x0c",
            'n' => "\n",
            'r' => "\r",
            't' => "\t",
            'u' => pieces.codePoint(hex4(rest[2..])),
            else => rest[1..2],
        };
    }

    fn codePoint(pieces: *Pieces, unit: u21) []const u8 {
        pieces.at += 4;
        var code = unit;
        if (std.unicode.isSurrogateCodepoint(unit)) {
            code = std.unicode.replacement_character;
            if (unit < 0xdc00) if (lowSurrogate(pieces.raw[pieces.at..])) |low| {
                pieces.at += 6;
                code = 0x10000 + ((unit & 0x3ff) << 10) + (low & 0x3ff);
            };
        }
        const length = std.unicode.utf8Encode(code, &pieces.encoded) catch unreachable; // surrogates are gone
        return pieces.encoded[0..length];
    }
};

fn hex4(text: []const u8) u21 {
    return std.fmt.parseInt(u16, text[0..4], 16) catch unreachable; // the Reader checked the digits
}

fn lowSurrogate(rest: []const u8) ?u21 {
    if (rest.len < 6 or rest[0] != '\\' or rest[1] != 'u') return null;
    const code = hex4(rest[2..]);
    return if (code >= 0xdc00 and code <= 0xdfff) code else null;
}

/// Whether a key or string, as it stands between its quotes, says `name`.
pub fn keyIs(raw: []const u8, name: []const u8) bool {
    if (std.mem.eql(u8, raw, name)) return std.mem.findScalar(u8, raw, '\\') == null;
    if (raw.len < name.len or std.mem.findScalar(u8, raw, '\\') == null) return false;
    var pieces: Pieces = .{ .raw = raw };
    var left = name;
    while (pieces.next()) |piece| {
        if (!std.mem.startsWith(u8, left, piece)) return false;
        left = left[piece.len..];
    }
    return left.len == 0;
}

/// The value at "key.0.name" as it stands, or null. A part of digits is an array's index, or a key. Of equal keys the
/// first counts. Nothing behind the value is looked at.
pub fn find(document: []const u8, path: []const u8) Error!?[]const u8 {
    var reader: Reader = .{ .bytes = document };
    reader.skipSpace();
    var parts = std.mem.splitScalar(u8, path, '.');
    while (parts.next()) |part| switch (try reader.peek()) {
        .object => {
            var members = try reader.enterObject();
            while (try members.next()) |key| {
                if (keyIs(key, part)) break;
                _ = try reader.skip();
            } else return null;
        },
        .array => {
            const index = arrayIndex(part) orelse return null;
            var elements = try reader.enterArray();
            var at: u32 = 0;
            while (try elements.next()) : (at += 1) {
                if (at == index) break;
                _ = try reader.skip();
            } else return null;
        },
        else => return null,
    };
    const value = try reader.skip();
    return if (std.unicode.utf8ValidateSlice(value)) value else error.BadJson;
}

/// The number a path's part stands for in an array: digits alone, without leading zeros.
pub fn arrayIndex(part: []const u8) ?u32 {
    if (part.len == 0 or (part.len > 1 and part[0] == '0')) return null;
    for (part) |digit| if (!std.ascii.isDigit(digit)) return null;
    return std.fmt.parseInt(u32, part, 10) catch null;
}

/// A whole number, or null where the value is something else.
pub fn integer(raw: []const u8) ?i64 {
    if (std.fmt.parseInt(i64, raw, 10)) |value| return value else |_| {}
    const float = std.fmt.parseFloat(f64, raw) catch return null;
    if (float != @trunc(float) or @abs(float) > 9e15) return null;
    return @intFromFloat(float);
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn accepts(bytes: []const u8) bool {
    var reader = Reader.init(bytes) catch return false;
    _ = reader.skip() catch return false;
    reader.finish() catch return false;
    return true;
}

test "documents are accepted and refused as RFC 8259 says" {
    for ([_][]const u8{
        "{}",                                                                  "[]", " [1, 2.5e-3 , -0, true,false,null] ", "{\"a\":{\"b\":[\"\\u00e9\\n\"]}}", "\"\"", "0", "-1.5E+9",
        "[\"\\ud83d\\ude00\", \"plain text that is longer than one vector\"]",
    }) |good| try testing.expect(accepts(good));
    for ([_][]const u8{
        "",         "{",       "[1,]",        "{\"a\":1,}", "{\"a\" 1}", "01",    "1.",  ".5",    "+1",   "1e",
        "\"\x01\"", "\"\\x\"", "\"\\u12g4\"", "tru",        "[1 2]",     "{a:1}", "[]]", "\"abc", "\xff", "[,1]",
        "nul",      "-",       "{\"a\":}",    "{,}",        "[1}",
    }) |bad| {
        errdefer std.debug.print("accepted: {s}\n", .{bad});
        try testing.expect(!accepts(bad));
    }
}

test "depth is bounded" {
    const deep: [depth_max_default + 1]u8 = @splat('[');
    const shut: [depth_max_default + 1]u8 = @splat(']');
    try testing.expect(accepts(deep[1..] ++ shut[1..]));
    try testing.expect(!accepts(&(deep ++ shut)));
}

test "escapes are resolved, lone surrogates replaced" {
    var out: std.ArrayList(u8) = .empty;
    defer out.deinit(testing.allocator);
    try unescape(testing.allocator, &out, "a\\n\\\"\\u00e9\\ud83d\\ude00\\ud83dx\\ude00\\/");
    try testing.expectEqualStrings("a\n\"é😀\u{fffd}x\u{fffd}/", out.items);
}

test "paths find values as they stand" {
    const document = "{\"a\": [10, {\"b\": \"x\"}], \"k\\u0065y\": {\"0\": true}}";
    try testing.expectEqualStrings("\"x\"", (try find(document, "a.1.b")).?);
    try testing.expectEqualStrings("true", (try find(document, "key.0")).?);
    try testing.expectEqual(null, try find(document, "a.7"));
    try testing.expectEqual(null, try find(document, "a.0.b"));
    try testing.expectEqual(null, try find(document, "a.01"));
    try testing.expectEqual(null, try find(document, "a.+1"));
    try testing.expectError(error.BadJson, find("{\"a\"", "a"));
    try testing.expectError(error.BadJson, find("", "a"));
}

test "what stands behind a found value is not looked at" {
    try testing.expectEqualStrings("1", (try find("{\"a\": 1, oh no", "a")).?);
    try testing.expectEqualStrings("[2]", (try find("{\"b\": 0, \"a\": [2]} and words \xff", "a")).?);
    try testing.expectError(error.BadJson, find("{\"b\": oh, \"a\": 1}", "a"));
    try testing.expectError(error.BadJson, find("{\"a\": \"\xff\"}", "a"));
}

test "keys are compared by what they say, however long and however written" {
    try testing.expect(keyIs("plain", "plain"));
    try testing.expect(!keyIs("plain", "plai"));
    try testing.expect(keyIs("\\u0070lain\\n", "plain\n"));
    try testing.expect(!keyIs("a\\n", "a\\n")); // the name has a backslash, the key a line break
    const long: [2_000]u8 = @splat('x');
    try testing.expect(keyIs(long ++ "\\t", long ++ "\t"));
    try testing.expect(!keyIs(long ++ "\\t", long ++ "\n"));
}

test "only whole numbers are integers" {
    try testing.expectEqual(12, integer("12"));
    try testing.expectEqual(1_000, integer("1e3"));
    try testing.expectEqual(-3, integer("-3.0"));
    for ([_][]const u8{ "1.5", "\"12\"", "null", "[1]", "1e300", "1e999" }) |other| try testing.expectEqual(null, integer(other));
}

test "random documents are read as std.json reads them, and mutated ones never crash" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var text: std.ArrayList(u8) = .empty;
    defer text.deinit(testing.allocator);
    for (0..2_000) |_| {
        text.clearRetainingCapacity();
        try randomValue(random, &text, 0);
        try testing.expect(accepts(text.items));
        for (0..random.uintLessThan(usize, 4)) |_| {
            if (text.items.len > 0) text.items[random.uintLessThan(usize, text.items.len)] = random.intRangeAtMost(u8, 0x20, 0x7e);
        }
        const expected = if (std.json.parseFromSlice(std.json.Value, testing.allocator, text.items, .{ .parse_numbers = false })) |parsed| blk: {
            parsed.deinit();
            break :blk true;
        } else |err| if (err == error.DuplicateField or hasSurrogate(text.items)) continue else false;
        errdefer std.debug.print("document: {s}\n", .{text.items});
        try testing.expectEqual(expected, accepts(text.items));
    }
}

/// An escape that names half of a pair: a lone one is replaced here, and an error there.
fn hasSurrogate(text: []const u8) bool {
    var rest = text;
    while (std.ascii.findIgnoreCase(rest, "\\ud")) |at| {
        rest = rest[at + 3 ..];
        if (rest.len > 0 and rest[0] >= '8') return true;
    }
    return false;
}

fn randomValue(random: std.Random, out: *std.ArrayList(u8), depth: u32) !void {
    const gpa = testing.allocator;
    switch (random.uintLessThan(u8, if (depth > 4) 4 else 6)) {
        0 => try out.appendSlice(gpa, ([_][]const u8{ "null", "true", "false", "-0.5e3", "17" })[random.uintLessThan(usize, 5)]),
        1, 2, 3 => {
            try out.append(gpa, '"');
            for (0..random.uintLessThan(usize, 30)) |_| try out.appendSlice(gpa, ([_][]const u8{ "a", "é", "\\n", "\\u0041", "😀", " " })[random.uintLessThan(usize, 6)]);
            try out.append(gpa, '"');
        },
        4 => {
            try out.append(gpa, '[');
            const count = random.uintLessThan(usize, 4);
            for (0..count) |i| {
                if (i > 0) try out.appendSlice(gpa, " , ");
                try randomValue(random, out, depth + 1);
            }
            try out.append(gpa, ']');
        },
        else => {
            try out.append(gpa, '{');
            const count = random.uintLessThan(usize, 4);
            for (0..count) |i| {
                if (i > 0) try out.append(gpa, ',');
                const key = try gpa.print("\"k{d}\": ", .{i});
                defer gpa.free(key);
                try out.appendSlice(gpa, key);
                try randomValue(random, out, depth + 1);
            }
            try out.append(gpa, '}');
        },
    }
}
