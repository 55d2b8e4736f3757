//! Predicates: what an edge asks of its source's output before it is followed. A path into the value, a comparison, and a JSON
//! value to compare with. Read where they stand: no tree, no allocation, any thread.
//!
//! ## What holds
//!
//! An empty path means the whole value: text is a string then, whatever it looks like; with a path it is read as JSON. A value
//! that is absent or no JSON, and a path that leads nowhere, are *missing*: "absent" and "ne" hold, nothing else does.
//! A null that is there is not missing.
//!
//! Equality is that of JSON: kinds never mix (true is not 1, "1" is not 1), whole numbers are compared exactly however long
//! they are, other numbers as doubles (1 is 1.0), strings by their code points, arrays element by element, objects by their
//! keys in any order (of equal keys in one object the first counts, as for paths). Order is for two numbers or two strings
//! (by code point); between anything else "lt", "le", "gt" and "ge" do not hold. What is no number (NaN) equals nothing.

const std = @import("std");
const reader_file = @import("../json/reader.zig");
const template = @import("template.zig");

const Reader = reader_file.Reader;
const Span = template.Span;
const Value = template.Value;

/// C: gb_compare
pub const Compare = enum(u32) { eq = 0, ne = 1, lt = 2, le = 3, gt = 4, ge = 5, exists = 6, absent = 7, in = 8 };

/// C: gb_predicate
pub const Predicate = extern struct {
    path: Span = .{},
    /// One JSON value; for "in" an array; not looked at for "exists" and "absent".
    value: Span = .{},
    compare: u32 = @backingInt(Compare.eq),

    /// Whether it can be asked at all; spans are inside `text`.
    pub fn isSound(predicate: *const Predicate, text: []const u8) bool {
        const compare = std.enums.fromInt(Compare, predicate.compare) orelse return false;
        if (compare == .exists or compare == .absent) return true;
        const value = whole(predicate.value.of(text)) orelse return false;
        return compare != .in or value[0] == '[';
    }
};

pub fn holds(predicate: Predicate, text: []const u8, value: Value) bool {
    const found = find(value, predicate.path.of(text));
    const compare: Compare = @fromBackingInt(predicate.compare);
    switch (compare) {
        .exists => return found != null,
        .absent => return found == null,
        else => {},
    }
    const it = found orelse return compare == .ne;
    const wanted = whole(predicate.value.of(text)) orelse return false; // isSound says it is JSON
    switch (compare) {
        .eq => return it.equals(.read(wanted)),
        .ne => return !it.equals(.read(wanted)),
        .in => {
            var reader: Reader = .{ .bytes = wanted };
            var elements = reader.enterArray() catch return false;
            while (elements.next() catch return false) {
                if (it.equals(.read(reader.skip() catch return false))) return true;
            }
            return false;
        },
        .lt, .le, .gt, .ge => {
            const order = it.order(.read(wanted)) orelse return false;
            return switch (compare) {
                .lt => order == .lt,
                .le => order != .gt,
                .gt => order == .gt,
                .ge => order != .lt,
                else => unreachable,
            };
        },
        .exists, .absent => unreachable, // above
    }
}

fn find(value: Value, path: []const u8) ?Item {
    const content = value.bytes();
    if (path.len > 0) return switch (value.kind) {
        .none, .number => null,
        .text, .json, .bytes => .read((reader_file.find(content, path) catch return null) orelse return null),
    };
    return switch (value.kind) {
        .none => null,
        .number => .{ .number = .{ .double = value.asNumber() } },
        .text, .bytes => .{ .string = .{ .bytes = content, .escaped = false } },
        .json => .read(whole(content) orelse return null),
    };
}

/// The one value of a document, without the space around it.
fn whole(document: []const u8) ?[]const u8 {
    var reader = Reader.init(document) catch return null;
    const value = reader.skip() catch return null;
    reader.finish() catch return null;
    return value;
}

/// A JSON value that was passed by a Reader.
const Item = union(enum) {
    string: String,
    number: Number,
    array: []const u8,
    object: []const u8,
    /// true, false, null
    word: u8,

    fn read(raw: []const u8) Item {
        return switch (raw[0]) {
            '"' => .{ .string = .{ .bytes = raw[1 .. raw.len - 1], .escaped = true } },
            '[' => .{ .array = raw },
            '{' => .{ .object = raw },
            't', 'f', 'n' => .{ .word = raw[0] },
            else => .{ .number = .read(raw) },
        };
    }

    fn equals(a: Item, b: Item) bool {
        if (std.meta.activeTag(a) != std.meta.activeTag(b)) return false;
        return switch (a) {
            .string => |string| string.order(b.string) == .eq,
            .number => |number| number.order(b.number) == .eq,
            .word => |word| word == b.word,
            .array => |array| equalArrays(array, b.array) catch false,
            .object => |object| equalObjects(object, b.object) catch false,
        };
    }

    /// Null: they have none.
    fn order(a: Item, b: Item) ?std.math.Order {
        if (std.meta.activeTag(a) != std.meta.activeTag(b)) return null;
        return switch (a) {
            .string => |string| string.order(b.string),
            .number => |number| number.order(b.number),
            else => null,
        };
    }
};

fn equalArrays(a: []const u8, b: []const u8) reader_file.Error!bool {
    var left: Reader = .{ .bytes = a };
    var right: Reader = .{ .bytes = b };
    var lefts = try left.enterArray();
    var rights = try right.enterArray();
    while (true) {
        const more = try lefts.next();
        if (more != try rights.next()) return false;
        if (!more) return true;
        if (!Item.read(try left.skip()).equals(.read(try right.skip()))) return false;
    }
}

fn equalObjects(a: []const u8, b: []const u8) reader_file.Error!bool {
    return try holdsAll(a, b) and try holdsAll(b, a);
}

/// Whether every key of `a` is in `b`, with the value it has in `a` where it stands there first.
fn holdsAll(a: []const u8, b: []const u8) reader_file.Error!bool {
    var reader: Reader = .{ .bytes = a };
    var members = try reader.enterObject();
    while (try members.next()) |key| {
        const value = try reader.skip();
        const other = try memberOf(b, key) orelse return false;
        if (Item.read(value).equals(.read(other))) continue;
        // Perhaps a key that stood there before, and does not count.
        const first = (try memberOf(a, key)).?;
        if (first.ptr == value.ptr) return false;
    }
    return true;
}

fn memberOf(object: []const u8, name: []const u8) reader_file.Error!?[]const u8 {
    var reader: Reader = .{ .bytes = object };
    var members = try reader.enterObject();
    const wanted: String = .{ .bytes = name, .escaped = true };
    while (try members.next()) |key| {
        const value = try reader.skip();
        if ((String{ .bytes = key, .escaped = true }).order(wanted) == .eq) return value;
    }
    return null;
}

const Number = union(enum) {
    /// As JSON writes a whole number: no plus, no zeros in front.
    whole: []const u8,
    double: f64,

    fn read(raw: []const u8) Number {
        if (std.mem.findAny(u8, raw, ".eE") == null) return .{ .whole = if (std.mem.eql(u8, raw, "-0")) "0" else raw };
        return .{ .double = std.fmt.parseFloat(f64, raw) catch unreachable }; // the Reader has seen it
    }

    fn order(a: Number, b: Number) ?std.math.Order {
        if (a == .whole and b == .whole) return orderWhole(a.whole, b.whole);
        const left = a.asDouble();
        const right = b.asDouble();
        if (left != left or right != right) return null;
        return std.math.order(left, right);
    }

    fn asDouble(number: Number) f64 {
        return switch (number) {
            .whole => |digits| std.fmt.parseFloat(f64, digits) catch unreachable, // the Reader has seen it
            .double => |double| double,
        };
    }

    fn orderWhole(a: []const u8, b: []const u8) std.math.Order {
        const negative = a[0] == '-';
        if (negative != (b[0] == '-')) return if (negative) .lt else .gt;
        const sizes = std.math.order(a.len, b.len);
        const magnitudes = if (sizes != .eq) sizes else std.mem.order(u8, a, b);
        return if (negative) magnitudes.invert() else magnitudes;
    }
};

const String = struct {
    bytes: []const u8,
    /// As it stands between its quotes.
    escaped: bool,

    fn order(a: String, b: String) std.math.Order {
        var left: Points = .{ .string = a };
        var right: Points = .{ .string = b };
        while (true) {
            const x = left.next() orelse return if (right.next() == null) .eq else .lt;
            const y = right.next() orelse return .gt;
            if (x != y) return std.math.order(x, y);
        }
    }
};

/// A string, code point by code point. A lone surrogate is U+FFFD, as it is wherever text leaves JSON; bytes that are not UTF-8
/// come behind all code points.
const Points = struct {
    string: String,
    at: usize = 0,

    const beyond: u21 = 0x110000;

    fn next(points: *Points) ?u21 {
        const rest = points.string.bytes[points.at..];
        if (rest.len == 0) return null;
        if (rest[0] == '\\' and points.string.escaped) return points.escape(rest);
        if (rest[0] < 0x80) {
            points.at += 1;
            return rest[0];
        }
        const length = std.unicode.utf8ByteSequenceLength(rest[0]) catch 0;
        if (length > 0 and length <= rest.len) if (std.unicode.utf8Decode(rest[0..length])) |code| {
            points.at += length;
            return code;
        } else |_| {};
        points.at += 1;
        return beyond + rest[0];
    }

    fn escape(points: *Points, rest: []const u8) u21 {
        points.at += 2;
        return switch (rest[1]) {
            'b' => 0x08,
            'f' => 0x0c,
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => points.unit(rest[2..]),
            else => rest[1],
        };
    }

    fn unit(points: *Points, rest: []const u8) u21 {
        points.at += 4;
        const high = hex4(rest);
        if (!std.unicode.isSurrogateCodepoint(high)) return high;
        if (high < 0xdc00 and rest.len >= 10 and rest[4] == '\\' and rest[5] == 'u') {
            const low = hex4(rest[6..]);
            if (low >= 0xdc00 and low <= 0xdfff) {
                points.at += 6;
                return 0x10000 + ((high & 0x3ff) << 10) + (low & 0x3ff);
            }
        }
        return std.unicode.replacement_character;
    }

    fn hex4(text: []const u8) u21 {
        return std.fmt.parseInt(u16, text[0..4], 16) catch unreachable; // the Reader checked the digits
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn ask(value: Value, path: []const u8, compare: Compare, wanted: []const u8) !bool {
    const text = try std.mem.concat(testing.allocator, u8, &.{ path, wanted });
    defer testing.allocator.free(text);
    const predicate: Predicate = .{
        .path = .{ .offset = 0, .length = @intCast(path.len) },
        .value = .{ .offset = @intCast(path.len), .length = @intCast(wanted.len) },
        .compare = @backingInt(compare),
    };
    try testing.expect(predicate.isSound(text));
    return holds(predicate, text, value);
}

fn expectHolds(expected: bool, value: Value, path: []const u8, compare: Compare, wanted: []const u8) !void {
    errdefer std.debug.print("{s} {s}: {s} {s}\n", .{ value.bytes(), path, @tagName(compare), wanted });
    try testing.expectEqual(expected, try ask(value, path, compare, wanted));
}

test "values are equal as JSON has it" {
    const equal = [_][2][]const u8{
        .{ "1", "1.0" },
        .{ "100", "1e2" },
        .{ "-0", "0" },
        .{ "0.0", "-0" },
        .{ "\"\\u00e9\\ud83d\\ude00\"", "\"é😀\"" },
        .{ "\"\\/\\n\"", "\"/\\u000a\"" },
        .{ "[]", "[ ]" },
        .{ "true", "true" },
        .{ "{\"a\":1,\"b\":[2]}", " {\"b\": [2.0], \"\\u0061\": 1} " },
        .{ "null", "null" },
        .{ "\"\\ud800\"", "\"\\ufffd\"" },
        .{ "12345678901234567890123456789", "12345678901234567890123456789" },
        .{ "{\"a\":1,\"a\":2}", "{\"a\":1}" }, // the first counts
    };
    for (equal) |pair| for ([_][2][]const u8{ pair, .{ pair[1], pair[0] } }) |it| {
        try expectHolds(true, .of(.json, it[0]), "", .eq, it[1]);
        try expectHolds(false, .of(.json, it[0]), "", .ne, it[1]);
    };
    const different = [_][2][]const u8{
        .{ "1", "true" },
        .{ "1", "\"1\"" },
        .{ "0", "null" },
        .{ "[]", "{}" },
        .{ "[1,2]", "[2,1]" },
        .{ "[1]", "[1,1]" },
        .{ "{}", "{\"a\":null}" },
        .{ "\"a\"", "\"A\"" },
        .{ "{\"a\":1}", "{\"a\":1,\"b\":1}" },
        .{ "\"\"", "null" },
        .{ "false", "true" },
        .{ "9007199254740993", "9007199254740992" },
        .{ "{\"a\":2,\"a\":1}", "{\"a\":1}" },
        .{ "\"a\"", "\"ab\"" },
    };
    for (different) |pair| for ([_][2][]const u8{ pair, .{ pair[1], pair[0] } }) |it| {
        try expectHolds(false, .of(.json, it[0]), "", .eq, it[1]);
        try expectHolds(true, .of(.json, it[0]), "", .ne, it[1]);
    };
}

test "order is for two numbers or two strings" {
    for ([_][2][]const u8{
        .{ "1", "2" },         .{ "-2", "-1" },        .{ "-1", "0.5" },     .{ "9", "10" }, .{ "1e-5", "1" }, .{ "-10", "9" },
        .{ "\"a\"", "\"b\"" }, .{ "\"a\"", "\"aa\"" }, .{ "\"\"", "\"a\"" },
        .{ "\"z\"", "\"é\"" },
        .{ "\"\\uffff\"", "\"😀\"" }, // by code point, not by UTF-16 unit
        .{ "99999999999999999998", "99999999999999999999" },
        .{ "\"a\\u0000\"", "\"aa\"" },
    }) |it| {
        const low: Value = .of(.json, it[0]);
        const high: Value = .of(.json, it[1]);
        inline for (.{ .lt, .le }) |compare| {
            try expectHolds(true, low, "", compare, it[1]);
            try expectHolds(false, high, "", compare, it[0]);
        }
        inline for (.{ .gt, .ge }) |compare| {
            try expectHolds(false, low, "", compare, it[1]);
            try expectHolds(true, high, "", compare, it[0]);
        }
    }
    for ([_][2][]const u8{ .{ "1", "1.0" }, .{ "\"a\"", "\"\\u0061\"" } }) |it| {
        inline for (.{ .le, .ge }) |compare| try expectHolds(true, .of(.json, it[0]), "", compare, it[1]);
        inline for (.{ .lt, .gt }) |compare| try expectHolds(false, .of(.json, it[0]), "", compare, it[1]);
    }
    for ([_][2][]const u8{ .{ "1", "\"2\"" }, .{ "false", "true" }, .{ "null", "1" }, .{ "[1]", "[2]" }, .{ "{}", "{}" } }) |it| {
        inline for (.{ .lt, .le, .gt, .ge }) |compare| try expectHolds(false, .of(.json, it[0]), "", compare, it[1]);
    }
}

test "a path leads into JSON, be it called text or JSON" {
    inline for (.{ .json, .text }) |kind| {
        const value: Value = .of(kind, "{\"score\": 0.7, \"tags\": [\"a\", \"b\"], \"none\": null} and more");
        try expectHolds(true, value, "score", .gt, "0.5");
        try expectHolds(true, value, "tags.1", .eq, "\"b\"");
        try expectHolds(true, value, "tags", .eq, "[\"a\",\"b\"]");
        try expectHolds(true, value, "none", .exists, "");
        try expectHolds(false, value, "none", .absent, "");
        try expectHolds(true, value, "none", .eq, "null");
        try expectHolds(true, value, "tags.0", .in, "[1, \"a\", {}]");
        try expectHolds(false, value, "tags.0", .in, "[\"b\", \"A\"]");
        try expectHolds(false, value, "tags.0", .in, "[]");
    }
}

test "whole text is a string, whatever it looks like" {
    try expectHolds(true, .of(.text, "5"), "", .eq, "\"5\"");
    try expectHolds(false, .of(.text, "5"), "", .eq, "5");
    try expectHolds(true, .of(.text, "a\n\"é\"\\"), "", .eq, "\"a\\n\\\"é\\\"\\\\\"");
    try expectHolds(true, .of(.text, ""), "", .eq, "\"\"");
    try expectHolds(true, .of(.text, "yes"), "", .in, "[\"no\", \"yes\"]");
    try expectHolds(false, .of(.bytes, "\xff"), "", .eq, "\"\\ufffd\"");
    try expectHolds(true, .of(.bytes, "\xff"), "", .gt, "\"\\udbff\\udfff\"");
}

test "a number is compared as one" {
    try expectHolds(true, .number(3), "", .eq, "3");
    try expectHolds(true, .number(0.5), "", .lt, "1");
    try expectHolds(true, .number(0), "", .exists, "");
    try expectHolds(true, .number(1), "a", .absent, "");
    const nan: Value = .number(std.math.nan(f64));
    inline for (.{ .eq, .lt, .le, .gt, .ge }) |compare| try expectHolds(false, nan, "", compare, "1");
    try expectHolds(true, nan, "", .ne, "1");
    try expectHolds(true, .number(std.math.inf(f64)), "", .gt, "1e308");
}

test "what is missing is absent and different from everything" {
    const missing = [_]struct { Value, []const u8 }{
        .{ .{}, "" },                       .{ .{}, "a" },
        .{ .of(.json, "{\"a\": 1}"), "b" }, .{ .of(.json, "{\"a\": 1}"), "a.b" },
        .{ .of(.text, "no JSON"), "a" },    .{ .of(.json, "cut [off"), "" },
        .{ .of(.json, ""), "" },            .{ .of(.json, "1 2"), "" },
        .{ .of(.json, "[1]"), "1" },
    };
    for (missing) |it| {
        try expectHolds(true, it[0], it[1], .absent, "");
        try expectHolds(true, it[0], it[1], .ne, "null");
        try expectHolds(false, it[0], it[1], .exists, "");
        try expectHolds(false, it[0], it[1], .in, "[null, 1]");
        inline for (.{ .eq, .lt, .le, .gt, .ge }) |compare| try expectHolds(false, it[0], it[1], compare, "null");
    }
}

test "a predicate that cannot be asked is not sound" {
    for ([_]Predicate{
        .{ .compare = 9 },
        .{ .value = .{ .length = 0 } },
        .{ .value = .{ .length = 2 }, .compare = @backingInt(Compare.in) }, // no array
        .{ .value = .{ .offset = 2, .length = 2 } },
    }) |predicate| try testing.expect(!predicate.isSound("{}[,"));
    try testing.expect((Predicate{ .compare = @backingInt(Compare.absent) }).isSound(""));
}

test "random values are equal to themselves however they are written, and to nothing else" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    for (0..2_000) |_| {
        var arena_state: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena_state.deinit();
        const arena = arena_state.allocator();
        const one = try randomTree(random, arena, 0);
        const other = if (random.boolean()) one else try randomTree(random, arena, 0);
        const left = try std.json.Stringify.valueAlloc(arena, one, .{ .whitespace = .indent_1, .escape_unicode = true });
        const right = try std.json.Stringify.valueAlloc(arena, other, .{});
        const expected = equalTrees(one, other);
        try expectHolds(expected, .of(.json, left), "", .eq, right);
        try expectHolds(!expected, .of(.json, right), "", .ne, left);
        const list = try arena.print("[0, {s}]", .{right});
        try expectHolds(expected or equalTrees(one, .{ .integer = 0 }), .of(.json, left), "", .in, list);
    }
}

fn randomTree(random: std.Random, arena: std.mem.Allocator, depth: u32) !std.json.Value {
    const strings = [_][]const u8{ "", "a", "é", "😀", "\n", "ab", "\u{ffff}" };
    switch (random.uintLessThan(u8, if (depth > 2) 5 else 7)) {
        0 => return .null,
        1 => return .{ .bool = random.boolean() },
        2 => return .{ .integer = random.intRangeAtMost(i64, -3, 3) },
        3 => return .{ .float = @as(f64, @floatFromInt(random.intRangeAtMost(i64, -4, 4))) / 2 },
        4 => return .{ .string = strings[random.uintLessThan(usize, strings.len)] },
        5 => {
            var array: std.json.Array = .init(arena);
            for (0..random.uintLessThan(usize, 3)) |_| try array.append(try randomTree(random, arena, depth + 1));
            return .{ .array = array };
        },
        else => {
            var object: std.json.ObjectMap = .empty;
            for (0..random.uintLessThan(usize, 3)) |_| {
                const key = strings[random.uintLessThan(usize, strings.len)];
                try object.put(arena, key, try randomTree(random, arena, depth + 1));
            }
            return .{ .object = object };
        },
    }
}

fn equalTrees(a: std.json.Value, b: std.json.Value) bool {
    if (asNumber(a)) |x| return x == asNumber(b) orelse return false;
    if (std.meta.activeTag(a) != std.meta.activeTag(b)) return false;
    switch (a) {
        .null => return true,
        .bool => |it| return it == b.bool,
        .string => |it| return std.mem.eql(u8, it, b.string),
        .array => |it| {
            if (it.items.len != b.array.items.len) return false;
            for (it.items, b.array.items) |x, y| if (!equalTrees(x, y)) return false;
            return true;
        },
        .object => |it| {
            if (it.count() != b.object.count()) return false;
            for (it.keys(), it.values()) |key, x| if (!equalTrees(x, b.object.get(key) orelse return false)) return false;
            return true;
        },
        else => unreachable,
    }
}

fn asNumber(value: std.json.Value) ?f64 {
    return switch (value) {
        .integer => |it| @floatFromInt(it),
        .float => |it| it,
        else => null,
    };
}
