//! Text on its way into JSON and URLs: escaping, and JSON without its white space.

const std = @import("std");
const reader = @import("reader.zig");

const Allocator = std.mem.Allocator;
const List = std.ArrayList(u8);

/// Appends `text` escaped for the inside of a JSON string. What is not UTF-8 in it becomes U+FFFD: JSON cannot hold it.
pub fn escape(gpa: Allocator, out: *List, text: []const u8) Allocator.Error!void {
    try out.ensureUnusedCapacity(gpa, text.len);
    if (std.unicode.utf8ValidateSlice(text)) return escapeValid(gpa, out, text);
    var at: usize = 0;
    while (at < text.len) {
        const good = validLength(text[at..]);
        try escapeValid(gpa, out, text[at..][0..good]);
        at += good;
        if (at == text.len) return;
        try out.appendSlice(gpa, "\u{fffd}");
        at += 1;
    }
}

fn escapeValid(gpa: Allocator, out: *List, text: []const u8) Allocator.Error!void {
    var from: usize = 0;
    while (true) {
        const special = reader.findSpecial(text, from);
        try out.appendSlice(gpa, text[from..special]);
        if (special == text.len) return;
        switch (text[special]) {
            '"' => try out.appendSlice(gpa, "\\\""),
            '\\' => try out.appendSlice(gpa, "\\\\"),
            '\n' => try out.appendSlice(gpa, "\\n"),
            '\r' => try out.appendSlice(gpa, "\\r"),
            '\t' => try out.appendSlice(gpa, "\\t"),
            else => |byte| {
                const digits = "0123456789abcdef";
                try out.appendSlice(gpa, &.{ '\\', 'u', '0', '0', digits[byte >> 4], digits[byte & 15] });
            },
        }
        from = special + 1;
    }
}

/// How many bytes from the start are whole UTF-8 sequences.
fn validLength(text: []const u8) usize {
    var at: usize = 0;
    while (at < text.len) {
        const length = std.unicode.utf8ByteSequenceLength(text[at]) catch return at;
        if (at + length > text.len or !std.unicode.utf8ValidateSlice(text[at..][0..length])) return at;
        at += length;
    }
    return at;
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn percentEncode(gpa: Allocator, out: *List, text: []const u8) Allocator.Error!void {
    try out.ensureUnusedCapacity(gpa, text.len);
    for (text) |byte| switch (byte) {
        'a'...'z', 'A'...'Z', '0'...'9', '-', '.', '_', '~' => try out.append(gpa, byte),
        else => {
            const digits = "0123456789ABCDEF";
            try out.appendSlice(gpa, &.{ '%', digits[byte >> 4], digits[byte & 15] });
        },
    };
}

/// Appends JSON without the white space between its tokens. Of what is no JSON something is left, but nothing is added.
pub fn compact(gpa: Allocator, out: *List, json: []const u8) Allocator.Error!void {
    try out.ensureUnusedCapacity(gpa, json.len);
    var at: usize = 0;
    while (at < json.len) switch (json[at]) {
        ' ', '\t', '\n', '\r' => at += 1,
        '"' => {
            const start = at;
            at = @min(stringEnd(json, at + 1), json.len);
            out.appendSliceAssumeCapacity(json[start..at]);
        },
        else => |byte| {
            out.appendAssumeCapacity(byte);
            at += 1;
        },
    };
}

/// One past the quote that ends the string whose content starts at `from`.
fn stringEnd(json: []const u8, from: usize) usize {
    var at = from;
    while (true) {
        at = reader.findSpecial(json, at);
        if (at == json.len or json[at] == '"') return at + 1;
        at = @min(json.len, at + @as(usize, if (json[at] == '\\') 2 else 1));
    }
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn check(comptime function: anytype, expected: []const u8, input: []const u8) !void {
    var out: List = .empty;
    defer out.deinit(testing.allocator);
    try function(testing.allocator, &out, input);
    try testing.expectEqualStrings(expected, out.items);
}

test "escaping, percent-encoding and compacting" {
    try check(escape, "say \\\"hi\\\"\\n\\u0001é and a long tail without anything to escape", "say \"hi\"\n\x01é and a long tail without anything to escape");
    try check(percentEncode, "a%20b%2Fc%C3%A9~", "a b/cé~");
    try check(compact, "{\"a b\":[1,\"x \\\" y\"]}", " { \"a b\" : [ 1 ,\n\"x \\\" y\" ] } ");
}

test "bytes that are not UTF-8 are replaced, not passed on" {
    try check(escape, "a\u{fffd}b\u{fffd}\u{fffd}\\né", "a\xffb\xe2\x82\né");
    try check(escape, "\u{fffd}", "\xc3");
    try check(escape, "\u{fffd}\u{fffd}\u{fffd}", "\xed\xa0\x80"); // a surrogate
}

test "compacting what is no JSON stays inside it" {
    for ([_][]const u8{ "\"", "\"abc", "\"abc\\", "\"abc\\\"", "{\"a", "\"\x01" }) |bad| try check(compact, bad, bad);
}

test "what is escaped reads back as it was" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    var bytes: [64]u8 = undefined;
    for (0..200) |_| {
        for (&bytes) |*byte| byte.* = prng.random().uintLessThan(u8, 0x80);
        var escaped: List = .empty;
        defer escaped.deinit(testing.allocator);
        try escape(testing.allocator, &escaped, &bytes);
        var back: List = .empty;
        defer back.deinit(testing.allocator);
        try reader.unescape(testing.allocator, &back, escaped.items);
        try testing.expectEqualStrings(&bytes, back.items);
    }
}
