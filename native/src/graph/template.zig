//! Templates: text with slots, given as a list of segments and rendered from values. Prompts, URLs, headers and request
//! bodies are all made here. Substituted text is never scanned again: braces in a model's answer are just braces.
//!
//! Any thread; nothing is kept between calls.

const std = @import("std");
const extract = @import("../json/extract.zig");
const reader = @import("../json/reader.zig");
const writer = @import("../json/writer.zig");

const Allocator = std.mem.Allocator;
const List = std.ArrayList(u8);

/// C: gb_span
pub const Span = extract.Span;

/// C: gb_range
pub const Range = extern struct { first: u32 = 0, count: u32 = 0 };

/// C: gb_segment_kind
pub const SegmentKind = enum(u32) { literal = 0, slot = 1, if_present = 2 };

/// C: gb_escape
pub const Escape = enum(u32) { plain = 0, json_string = 1, json = 2, url = 3 };

/// C: gb_segment
pub const Segment = extern struct {
    kind: u32 = @backingInt(SegmentKind.literal),
    escape: u32 = @backingInt(Escape.plain),
    source: u32 = 0,
    count: u32 = 0,
    text: Span = .{},
};

/// C: gb_value_kind
pub const ValueKind = enum(u32) { none = 0, text = 1, json = 2, number = 3, bytes = 4 };

/// C: gb_value
pub const Value = extern struct {
    ptr: ?[*]const u8 = null,
    len: usize = 0,
    kind: ValueKind = .none,

    pub fn of(kind: ValueKind, content: []const u8) Value {
        return .{ .ptr = content.ptr, .len = content.len, .kind = kind };
    }

    /// A double lies in `len`, bit by bit.
    pub fn number(double: f64) Value {
        return .{ .len = @intCast(@as(u64, @bitCast(double))), .kind = .number };
    }

    pub fn asNumber(value: Value) f64 {
        std.debug.assert(value.kind == .number);
        return @bitCast(@as(u64, value.len));
    }

    pub fn bytes(value: Value) []const u8 {
        const ptr = value.ptr orelse return &.{};
        return if (value.kind == .none or value.kind == .number) &.{} else ptr[0..value.len];
    }
};

/// The values that something may look at.
pub const Values = struct {
    all: []const Value,
    /// Those that are none to it, mostly nothing.
    hidden: []const u32 = &.{},

    pub fn at(values: Values, source: u32) Value {
        if (values.hidden.len > 0 and std.mem.findScalar(u32, values.hidden, source) != null) return .{};
        return values.all[source];
    }
};

/// Which slot could not be filled.
pub const Diagnostics = struct { source: u32 = 0, path: []const u8 = "" };

pub const RenderError = error{ OutOfMemory, PathNotFound, NotJson };

/// Appends the rendered template. `segments` were checked by the plan; `text` is what their spans point into.
/// After a failure other than out of memory `diagnostics` tells which value, and which path into it.
pub fn render(
    segments: []const Segment,
    text: []const u8,
    values: Values,
    gpa: Allocator,
    out: *List,
    diagnostics: *Diagnostics,
) RenderError!void {
    try out.ensureTotalCapacityPrecise(gpa, out.items.len + expectedLength(segments, values));
    var at: usize = 0;
    while (at < segments.len) : (at += 1) {
        const segment = &segments[at];
        switch (@as(SegmentKind, @fromBackingInt(segment.kind))) {
            .literal => try out.appendSlice(gpa, segment.text.of(text)),
            .if_present => {
                if (values.at(segment.source).kind == .none) at += segment.count;
            },
            .slot => {
                const path = segment.text.of(text);
                insert(values.at(segment.source), path, @fromBackingInt(segment.escape), gpa, out) catch |err| {
                    diagnostics.* = .{ .source = segment.source, .path = path };
                    return err;
                };
            },
        }
    }
}

/// Exact where nothing needs escaping and no path picks a part.
fn expectedLength(segments: []const Segment, values: Values) usize {
    var length: usize = 0;
    var at: usize = 0;
    while (at < segments.len) : (at += 1) {
        const segment = &segments[at];
        switch (@as(SegmentKind, @fromBackingInt(segment.kind))) {
            .literal => length += segment.text.length,
            .if_present => {
                if (values.at(segment.source).kind == .none) at += segment.count;
            },
            .slot => {
                const quotes: usize = if (segment.escape == @backingInt(Escape.plain)) 0 else 2;
                if (segment.text.length == 0) length += values.at(segment.source).bytes().len + quotes;
            },
        }
    }
    return length;
}

fn insert(value: Value, path: []const u8, escape: Escape, gpa: Allocator, out: *List) RenderError!void {
    const content = value.bytes();
    if (value.kind == .none) {
        if (escape == .json) try out.appendSlice(gpa, "null");
        return;
    }
    if (path.len > 0) {
        const found = reader.find(content, path) catch return error.NotJson;
        return insertJson(found orelse return whyNotFound(content), escape, gpa, out);
    }
    switch (value.kind) {
        .none => unreachable,
        .number => try insertNumber(value.asNumber(), escape, gpa, out),
        .bytes, .text => try insertText(content, escape, gpa, out),
        .json => try insertJson(content, escape, gpa, out),
    }
}

/// The reader stops where the path ends; only a whole document is one that has no such part.
fn whyNotFound(content: []const u8) RenderError {
    var whole = reader.Reader.init(content) catch return error.NotJson;
    _ = whole.skip() catch return error.NotJson;
    whole.finish() catch return error.NotJson;
    return error.PathNotFound;
}

/// As JSON writes it; what JSON has no number for is null there and a word elsewhere.
fn insertNumber(number: f64, escape: Escape, gpa: Allocator, out: *List) RenderError!void {
    if (!std.math.isFinite(number)) return out.appendSlice(gpa, if (escape == .json) "null" else if (number != number) "nan" else if (number > 0) "inf" else "-inf");
    var buffer: [400]u8 = undefined; // the longest double has 309 digits before the point
    try out.appendSlice(gpa, std.fmt.bufPrint(&buffer, "{d}", .{number}) catch unreachable);
}

fn insertText(content: []const u8, escape: Escape, gpa: Allocator, out: *List) RenderError!void {
    switch (escape) {
        .plain => try out.appendSlice(gpa, content),
        .json_string => try writer.escape(gpa, out, content),
        .json => {
            try out.append(gpa, '"');
            try writer.escape(gpa, out, content);
            try out.append(gpa, '"');
        },
        .url => try writer.percentEncode(gpa, out, content),
    }
}

/// A string is inserted as what it says, anything else as compact JSON; where JSON is wanted both stay JSON.
fn insertJson(document: []const u8, escape: Escape, gpa: Allocator, out: *List) RenderError!void {
    const raw = try stringContent(document);
    if (escape == .json) return writer.compact(gpa, out, document);
    if (escape == .plain) {
        return if (raw) |it| reader.unescape(gpa, out, it) else writer.compact(gpa, out, document);
    }
    // What is escaped twice needs a place in between.
    if (raw) |it| if (std.mem.findScalar(u8, it, '\\') == null) return insertText(it, escape, gpa, out);
    var plain: List = .empty;
    defer plain.deinit(gpa);
    if (raw) |it| try reader.unescape(gpa, &plain, it) else try writer.compact(gpa, &plain, document);
    try insertText(plain.items, escape, gpa, out);
}

/// What stands between the quotes of a document that is a string, else null.
fn stringContent(document: []const u8) error{NotJson}!?[]const u8 {
    var whole: reader.Reader = .{ .bytes = document };
    whole.skipSpace();
    if ((whole.peek() catch return error.NotJson) != .string) return null;
    const raw = whole.string() catch return error.NotJson;
    whole.finish() catch return error.NotJson;
    return raw;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// A template being put together, as the binding does it.
const Draft = struct {
    text: List = .empty,
    segments: std.ArrayList(Segment) = .empty,

    fn deinit(draft: *Draft) void {
        draft.text.deinit(testing.allocator);
        draft.segments.deinit(testing.allocator);
    }

    fn add(draft: *Draft, segment: Segment, text: []const u8) !void {
        var it = segment;
        it.text = .{ .offset = @intCast(draft.text.items.len), .length = @intCast(text.len) };
        try draft.text.appendSlice(testing.allocator, text);
        try draft.segments.append(testing.allocator, it);
    }

    fn literal(draft: *Draft, text: []const u8) !void {
        try draft.add(.{}, text);
    }

    fn slot(draft: *Draft, escape: Escape, source: u32, path: []const u8) !void {
        try draft.add(.{ .kind = @backingInt(SegmentKind.slot), .escape = @backingInt(escape), .source = source }, path);
    }

    fn ifPresent(draft: *Draft, source: u32, count: u32) !void {
        try draft.add(.{ .kind = @backingInt(SegmentKind.if_present), .source = source, .count = count }, "");
    }

    fn expect(draft: *const Draft, expected: []const u8, values: []const Value) !void {
        var out: List = .empty;
        defer out.deinit(testing.allocator);
        var diagnostics: Diagnostics = .{};
        try render(draft.segments.items, draft.text.items, .{ .all = values }, testing.allocator, &out, &diagnostics);
        try testing.expectEqualStrings(expected, out.items);
    }
};

fn expectSlot(expected: []const u8, escape: Escape, path: []const u8, value: Value) !void {
    var draft: Draft = .{};
    defer draft.deinit();
    try draft.slot(escape, 0, path);
    try draft.expect(expected, &.{value});
}

fn expectFailure(expected: RenderError, path: []const u8, value: Value) !void {
    var draft: Draft = .{};
    defer draft.deinit();
    try draft.literal("before ");
    try draft.slot(.plain, 1, path);
    var out: List = .empty;
    defer out.deinit(testing.allocator);
    var diagnostics: Diagnostics = .{};
    const values = [_]Value{ .of(.text, "other"), value };
    try testing.expectError(expected, render(draft.segments.items, draft.text.items, .{ .all = &values }, testing.allocator, &out, &diagnostics));
    try testing.expectEqual(1, diagnostics.source);
    try testing.expectEqualStrings(path, diagnostics.path);
}

test "text and values alternate, and what is inserted is not scanned again" {
    var draft: Draft = .{};
    defer draft.deinit();
    try draft.literal("Write about ");
    try draft.slot(.plain, 1, "");
    try draft.literal(", like {this}:\n");
    try draft.slot(.plain, 0, "");
    try draft.expect("Write about {bees}, like {this}:\n{0} \"quoted\"", &.{ .of(.text, "{0} \"quoted\""), .of(.text, "{bees}") });
}

test "text is escaped for where it goes" {
    const value: Value = .of(.text, "a \"b\"\n/é");
    try expectSlot("a \"b\"\n/é", .plain, "", value);
    try expectSlot("a \\\"b\\\"\\n/é", .json_string, "", value);
    try expectSlot("\"a \\\"b\\\"\\n/é\"", .json, "", value);
    try expectSlot("a%20%22b%22%0A%2F%C3%A9", .url, "", value);
    inline for (.{ Escape.plain, Escape.json_string, Escape.url }) |escape| try expectSlot("", escape, "", .of(.text, ""));
    try expectSlot("\"\"", .json, "", .of(.text, ""));
}

test "JSON is inserted compact, a string as what it says" {
    const object: Value = .of(.json, " {\"a b\": [1, \"x y\"]} ");
    try expectSlot("{\"a b\":[1,\"x y\"]}", .plain, "", object);
    try expectSlot("{\\\"a b\\\":[1,\\\"x y\\\"]}", .json_string, "", object);
    try expectSlot("{\"a b\":[1,\"x y\"]}", .json, "", object);
    try expectSlot("%7B%22a%20b%22%3A%5B1%2C%22x%20y%22%5D%7D", .url, "", object);
    const string: Value = .of(.json, " \"a\\n\\u00e9\" ");
    try expectSlot("a\né", .plain, "", string);
    try expectSlot("a\\né", .json_string, "", string);
    try expectSlot("\"a\\n\\u00e9\"", .json, "", string);
    try expectSlot("a%0A%C3%A9", .url, "", string);
    try expectSlot("no escapes", .json_string, "", .of(.json, "\"no escapes\""));
    try expectSlot("null", .plain, "", .of(.json, "null"));
}

test "a path picks a part, out of text as well as out of JSON" {
    inline for (.{ ValueKind.json, ValueKind.text }) |kind| {
        const value: Value = .of(kind, "{\"list\": [{\"name\": \"say \\\"hi\\\"\"}, 2.50, null], \"o\": { \"k\": true }} and more");
        try expectSlot("say \"hi\"", .plain, "list.0.name", value);
        try expectSlot("say \\\"hi\\\"", .json_string, "list.0.name", value);
        try expectSlot("\"say \\\"hi\\\"\"", .json, "list.0.name", value);
        try expectSlot("say%20%22hi%22", .url, "list.0.name", value);
        try expectSlot("2.50", .plain, "list.1", value);
        try expectSlot("null", .plain, "list.2", value);
        try expectSlot("{\"k\":true}", .plain, "o", value);
        try expectSlot("{\\\"k\\\":true}", .json_string, "o", value);
    }
}

test "a path that leads nowhere and a value that is no JSON are told apart, with their place" {
    try expectFailure(error.NotJson, "a", .of(.text, "no JSON"));
    try expectFailure(error.NotJson, "7", .of(.text, "[1,"));
    try expectFailure(error.PathNotFound, "a.b", .of(.json, "{\"a\": {\"c\": 1}}"));
    try expectFailure(error.PathNotFound, "a.1", .of(.text, "{\"a\": [1]}"));
    try expectFailure(error.PathNotFound, "a.b", .of(.text, "{\"a\": 1}"));
    try expectFailure(error.NotJson, "a", .of(.text, "The answer is 42."));
    try expectFailure(error.NotJson, "a", .of(.text, ""));
    try expectFailure(error.NotJson, "", .of(.json, "\"cut off"));
    try expectFailure(error.NotJson, "", .of(.json, ""));
}

test "an absent value inserts nothing, or null where JSON must stand" {
    inline for (.{ Escape.plain, Escape.json_string, Escape.url }) |escape| {
        try expectSlot("", escape, "", .{});
        try expectSlot("", escape, "a.b", .{});
    }
    try expectSlot("null", .json, "", .{});
    try expectSlot("null", .json, "a.b", .{});
}

test "segments behind an absent value's condition are skipped, nested ones too" {
    var draft: Draft = .{};
    defer draft.deinit();
    try draft.literal("{");
    try draft.ifPresent(0, 4);
    try draft.literal("\"a\":");
    try draft.slot(.json, 0, "");
    try draft.ifPresent(1, 1);
    try draft.literal(",\"both\":1");
    try draft.literal("}");
    try draft.ifPresent(1, 99); // more than there are
    try draft.literal("!");
    const a: Value = .of(.text, "x");
    const empty: Value = .of(.text, ""); // present all the same
    try draft.expect("{}", &.{ .{}, .{} });
    try draft.expect("{\"a\":\"x\"}", &.{ a, .{} });
    try draft.expect("{\"a\":\"x\",\"both\":1}!", &.{ a, empty });
    try draft.expect("{}!", &.{ .{}, empty });
}

test "plain text takes one allocation" {
    var draft: Draft = .{};
    defer draft.deinit();
    for (0..50) |_| {
        try draft.literal("literal text ");
        try draft.slot(.plain, 0, "");
        try draft.slot(.json, 0, "");
    }
    var counting: testing.FailingAllocator = .init(testing.allocator, .{});
    var out: List = .empty;
    defer out.deinit(counting.allocator());
    var diagnostics: Diagnostics = .{};
    const value: Value = .of(.text, "value");
    try render(draft.segments.items, draft.text.items, .{ .all = &.{value} }, counting.allocator(), &out, &diagnostics);
    try testing.expectEqual(1, counting.allocations);
    try testing.expectEqual(50 * ("literal text ".len + "value".len + "\"value\"".len), out.items.len);
}

test "what is rendered as JSON is JSON, and says what the values said" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var draft: Draft = .{};
    defer draft.deinit();
    try draft.literal("{\"quoted\": \"<");
    try draft.slot(.json_string, 0, "");
    try draft.literal(">\", \"value\": ");
    try draft.slot(.json, 0, "");
    try draft.literal(", \"part\": ");
    try draft.slot(.json, 1, "0.k");
    try draft.literal("}");
    for (0..500) |_| {
        var bytes: [40]u8 = undefined;
        const text = bytes[0..random.uintLessThan(usize, bytes.len)];
        for (text) |*byte| byte.* = random.uintLessThan(u8, 0x80);
        const document = try std.json.Stringify.valueAlloc(testing.allocator, .{.{ .k = text }}, .{ .whitespace = .indent_2 });
        defer testing.allocator.free(document);
        var out: List = .empty;
        defer out.deinit(testing.allocator);
        var diagnostics: Diagnostics = .{};
        const values = [_]Value{ .of(.text, text), .of(.json, document) };
        try render(draft.segments.items, draft.text.items, .{ .all = &values }, testing.allocator, &out, &diagnostics);
        const Shape = struct { quoted: []const u8, value: []const u8, part: []const u8 };
        const parsed = try std.json.parseFromSlice(Shape, testing.allocator, out.items, .{});
        defer parsed.deinit();
        try testing.expectEqualStrings(text, parsed.value.quoted[1 .. parsed.value.quoted.len - 1]);
        try testing.expectEqualStrings(text, parsed.value.value);
        try testing.expectEqualStrings(text, parsed.value.part);
    }
}

test "every allocation of a rendering may fail" {
    var draft: Draft = .{};
    defer draft.deinit();
    inline for (.{ Escape.plain, Escape.json_string, Escape.json, Escape.url }) |escape| {
        try draft.slot(escape, 0, "");
        try draft.slot(escape, 1, "");
        try draft.slot(escape, 1, "k");
    }
    const run = struct {
        fn all(gpa: Allocator, it: *const Draft) !void {
            var out: List = .empty;
            defer out.deinit(gpa);
            var diagnostics: Diagnostics = .{};
            const values = [_]Value{ .of(.text, "\n\x01 text \xff that grows ///"), .of(.json, "{\"k\": \"\\n\\u0001 grows\"}") };
            try render(it.segments.items, it.text.items, .{ .all = &values }, gpa, &out, &diagnostics);
        }
    };
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{&draft});
}
