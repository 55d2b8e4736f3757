//! Where each value of a JSON document begins and ends, as std.json's scanner sees it; what its strings say; and where paths lead
//! in it, the dumb way. The other side of what json/ is compared with.
//!
//! Two things differ from std.json: a lone surrogate is accepted, and depth is bounded.

const std = @import("std");

const Allocator = std.mem.Allocator;
const Scanner = std.json.Scanner;

pub const Error = error{ OutOfMemory, Refused };

pub const Value = struct {
    kind: enum { object, array, string, scalar },
    start: usize,
    end: usize = 0,
    /// In an object: what stands between the key's quotes.
    key: []const u8 = "",
    /// In an array.
    index: usize = 0,
    parent: ?usize = null,
    first: ?usize = null,
    next: ?usize = null,
};

pub const Document = struct {
    bytes: []const u8,
    /// The first is the whole; parents come before what is in them.
    values: []const Value,

    /// Refused: no JSON, or too deep.
    pub fn read(arena: Allocator, bytes: []const u8, depth_max: u32) Error!Document {
        const scanner: Scanner = .initCompleteInput(arena, try withoutSurrogates(arena, bytes));
        var pass: Pass = .{ .arena = arena, .bytes = bytes, .depth_max = depth_max, .scanner = scanner };
        _ = try pass.value(0);
        if (try pass.peek() != .end_of_document) return error.Refused;
        return .{ .bytes = bytes, .values = pass.values.items };
    }

    pub fn text(document: *const Document, at: usize) []const u8 {
        const value = &document.values[at];
        return document.bytes[value.start..value.end];
    }

    pub const Manner = enum {
        /// As reader.find: a star is a key like any other, and there is no path to the whole.
        find,
        /// As paths.zig: a star is every element of an array.
        search,
    };

    pub const Found = struct { value: usize, positions: []const u32 };

    /// All that `path` leads to, in the document's order.
    pub fn follow(document: *const Document, arena: Allocator, path: []const u8, manner: Manner) error{OutOfMemory}![]const Found {
        var found: std.ArrayList(Found) = .empty;
        try document.step(arena, 0, if (path.len == 0 and manner == .search) null else path, &.{}, manner, &found);
        return found.items;
    }

    fn step(
        document: *const Document,
        arena: Allocator,
        at: usize,
        path: ?[]const u8,
        positions: []const u32,
        manner: Manner,
        found: *std.ArrayList(Found),
    ) error{OutOfMemory}!void {
        const part, const rest = cut(path orelse return found.append(arena, .{ .value = at, .positions = positions }));
        const value = &document.values[at];
        const is_star = manner == .search and std.mem.eql(u8, part, "*");
        if (is_star and value.kind == .object) return;
        var inside = value.first;
        while (inside) |it| : (inside = document.values[it].next) switch (value.kind) {
            .object => if (std.mem.eql(u8, try says(arena, document.values[it].key), part)) {
                return document.step(arena, it, rest, positions, manner, found); // of equal keys the first counts
            },
            .array => if (is_star) {
                const longer = try std.mem.concat(arena, u32, &.{ positions, &.{@intCast(document.values[it].index)} });
                try document.step(arena, it, rest, longer, manner, found);
            } else if (std.mem.eql(u8, part, try arena.print("{d}", .{document.values[it].index}))) {
                try document.step(arena, it, rest, positions, manner, found);
            },
            .string, .scalar => unreachable,
        };
    }
};

fn cut(path: []const u8) struct { []const u8, ?[]const u8 } {
    const end = std.mem.indexOfScalar(u8, path, '.') orelse return .{ path, null };
    return .{ path[0..end], path[end + 1 ..] };
}

const Pass = struct {
    arena: Allocator,
    bytes: []const u8,
    depth_max: u32,
    scanner: Scanner,
    values: std.ArrayList(Value) = .empty,

    fn peek(pass: *Pass) Error!std.json.TokenType {
        return pass.scanner.peekNextTokenType() catch error.Refused;
    }

    fn token(pass: *Pass) Error!std.json.Token {
        return pass.scanner.next() catch |err| if (err == error.OutOfMemory) error.OutOfMemory else error.Refused;
    }

    fn value(pass: *Pass, depth: u32) Error!usize {
        const kind = try pass.peek();
        const at = pass.values.items.len;
        try pass.values.append(pass.arena, .{ .start = pass.scanner.cursor, .kind = switch (kind) {
            .object_begin => .object,
            .array_begin => .array,
            .string => .string,
            .number, .true, .false, .null => .scalar,
            .object_end, .array_end, .end_of_document => return error.Refused,
        } });
        switch (kind) {
            .object_begin, .array_begin => {
                if (depth == pass.depth_max) return error.Refused;
                _ = try pass.token();
                try pass.inside(at, depth);
            },
            .string => try pass.string(),
            else => _ = try pass.token(),
        }
        pass.values.items[at].end = pass.scanner.cursor;
        return at;
    }

    fn inside(pass: *Pass, at: usize, depth: u32) Error!void {
        var last: ?usize = null;
        var index: usize = 0;
        while (true) : (index += 1) {
            var key: []const u8 = "";
            switch (try pass.peek()) {
                .object_end, .array_end => {
                    _ = try pass.token();
                    return;
                },
                else => if (pass.values.items[at].kind == .object) {
                    const start = pass.scanner.cursor;
                    try pass.string();
                    key = pass.bytes[start + 1 .. pass.scanner.cursor - 1];
                },
            }
            const one = try pass.value(depth + 1);
            pass.values.items[one].key = key;
            pass.values.items[one].index = index;
            pass.values.items[one].parent = at;
            if (last) |before| pass.values.items[before].next = one else pass.values.items[at].first = one;
            last = one;
        }
    }

    fn string(pass: *Pass) Error!void {
        while (true) switch (try pass.token()) {
            .string => return,
            .partial_string, .partial_string_escaped_1, .partial_string_escaped_2, .partial_string_escaped_3, .partial_string_escaped_4 => {},
            else => return error.Refused,
        };
    }
};

/// "\uD8…" becomes "\u08…": as valid as before, but for surrogates, of which none are left. As long as before.
fn withoutSurrogates(arena: Allocator, bytes: []const u8) error{OutOfMemory}![]const u8 {
    const copy = try arena.dupe(u8, bytes);
    for (copy, 0..) |*byte, at| if ((byte.* == 'd' or byte.* == 'D') and std.mem.endsWith(u8, bytes[0..at], "\\u")) {
        byte.* = '0';
    };
    return copy;
}

/// What a string says, of what stands between its quotes: by way of UTF-16, where escapes are at home. Lone surrogates become U+FFFD.
pub fn says(arena: Allocator, raw: []const u8) error{OutOfMemory}![]const u8 {
    if (std.mem.indexOfScalar(u8, raw, '\\') == null) return raw;
    var units: std.ArrayList(u16) = .empty;
    var rest = raw;
    while (rest.len > 0) {
        if (rest[0] == '\\') {
            const length: usize = if (rest[1] == 'u') 6 else 2;
            try units.append(arena, switch (rest[1]) {
                'u' => std.fmt.parseInt(u16, rest[2..6], 16) catch unreachable, // std.json has passed it
                'b' => 8,
                't' => 9,
                'n' => 10,
                'f' => 12,
                'r' => 13,
                else => |itself| itself,
            });
            rest = rest[length..];
        } else {
            const length = std.mem.indexOfScalar(u8, rest, '\\') orelse rest.len;
            try units.appendSlice(arena, std.unicode.utf8ToUtf16LeAlloc(arena, rest[0..length]) catch unreachable); // the same
            rest = rest[length..];
        }
    }
    var said: std.ArrayList(u8) = .empty;
    var at: usize = 0;
    while (at < units.items.len) {
        const unit = units.items[at];
        const is_pair = std.unicode.utf16IsHighSurrogate(unit) and at + 1 < units.items.len and std.unicode.utf16IsLowSurrogate(units.items[at + 1]);
        const code: u21 = if (is_pair)
            std.unicode.utf16DecodeSurrogatePair(units.items[at..][0..2]) catch unreachable
        else if (std.unicode.isSurrogateCodepoint(unit)) std.unicode.replacement_character else unit;
        var encoded: [4]u8 = undefined;
        try said.appendSlice(arena, encoded[0 .. std.unicode.utf8Encode(code, &encoded) catch unreachable]);
        at += if (is_pair) 2 else 1;
    }
    return said.items;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "values begin and end where they stand, and paths lead to them" {
    var arena_state: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena_state.deinit();
    const arena = arena_state.allocator();
    const bytes = " {\"a\" : [1, {\"\\u0061\": \"\\ud800\"}, \"x\\n\"], \"a\": -2.5e3 , \"0\":{}} ";
    const document: Document = try .read(arena, bytes, 3);
    for ([_][]const u8{
        bytes[1 .. bytes.len - 1], "[1, {\"\\u0061\": \"\\ud800\"}, \"x\\n\"]", "1",  "{\"\\u0061\": \"\\ud800\"}", "\"\\ud800\"",
        "\"x\\n\"",                "-2.5e3",                                    "{}",
    }, 0..) |expected, at| try testing.expectEqualStrings(expected, document.text(at));
    try testing.expectEqual(8, document.values.len);
    const found = try document.follow(arena, "a.*.a", .search);
    try testing.expectEqual(1, found.len);
    try testing.expectEqual(4, found[0].value);
    try testing.expectEqualSlices(u32, &.{1}, found[0].positions);
    try testing.expectEqual(0, (try document.follow(arena, "a.*.a", .find)).len);
    for ([_][]const u8{ "", "{", "[1,]", "1 2", "\"\\ud8\"", "\"\xed\xa0\x80\"", "01", "{\"a\"}", mark ++ "1" }) |bad| {
        try testing.expectError(error.Refused, Document.read(arena, bad, 3));
    }
    try testing.expectError(error.Refused, Document.read(arena, bytes, 2));
    try testing.expectEqualStrings("😀\u{fffd}é\u{fffd}x", try says(arena, "\\ud83d\\ude00\\ude00é\\ud83dx"));
}

const mark = "\xef\xbb\xbf";
