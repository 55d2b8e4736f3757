//! Extraction by somebody dumb: each rule in its turn follows its paths through the tree, and looks at every condition for every
//! finding. What extract.zig and reply.zig do in one pass and with borrowed text is compared with this.

const std = @import("std");
const extract = @import("../json/extract.zig");
const reader_file = @import("../json/reader.zig");
const spans = @import("spans.zig");

const Allocator = std.mem.Allocator;
const Document = spans.Document;
const Found = Document.Found;
const RuleText = extract.RuleText;

pub const text_fields = .{ "text", "reasoning", "model", "id", "finish", "error_message", "error_type", "error_code", "value" };
pub const count_fields = .{ "prompt_tokens", "completion_tokens", "total_tokens", "cache_read_tokens", "cache_creation_tokens", "reasoning_tokens" };

/// What a reply says, so that two can be compared.
pub const Said = struct {
    arena: Allocator,
    out: std.ArrayList(u8) = .empty,

    pub fn text(it: *Said, name: []const u8, value: []const u8) Allocator.Error!void {
        if (value.len > 0) for ([_][]const u8{ name, "=", value, "\n" }) |part| try it.out.appendSlice(it.arena, part);
    }

    pub fn count(it: *Said, name: []const u8, value: i64) Allocator.Error!void {
        if (value != -1) try it.out.print(it.arena, "{s}={d}\n", .{ name, value });
    }

    pub fn tool(it: *Said, id: []const u8, name: []const u8, arguments: []const u8) Allocator.Error!void {
        for ([_][]const u8{ "tool ", id, "|", name, "|", arguments, "\n" }) |part| try it.out.appendSlice(it.arena, part);
    }

    pub fn end(it: *Said, is_empty: bool) Allocator.Error!void {
        try it.out.appendSlice(it.arena, if (is_empty) "empty" else "not empty");
    }
};

const Tool = struct { number: u32, id: []const u8 = "", name: []const u8 = "", arguments: []const u8 = "" };

pub const Reply = struct {
    arena: Allocator,
    rows: []const RuleText,
    /// By number of the field.
    texts: [fields][]const u8 = @splat(""),
    counts: [fields]i64 = @splat(-1),
    tools: std.ArrayList(Tool) = .empty,
    tools_before: u32 = 0,
    /// The value is an array of all that was appended.
    is_array: bool = false,
    found: bool = false,
    found_substance: bool = false,
    is_fed: bool = false,

    const fields = 18;

    pub fn feed(reply: *Reply, document: *const Document) Allocator.Error!void {
        reply.is_fed = true;
        const tools = reply.tools.items;
        reply.tools_before = if (tools.len > 0) tools[tools.len - 1].number + 1 else 0;
        for (reply.rows) |*row| try reply.apply(row, document);
    }

    pub fn said(reply: *const Reply) Allocator.Error![]const u8 {
        var it: Said = .{ .arena = reply.arena };
        inline for (text_fields) |name| try it.text(name, reply.texts[@backingInt(@field(extract.Into, name))]);
        inline for (count_fields) |name| try it.count(name, reply.counts[@backingInt(@field(extract.Into, name))]);
        for (reply.tools.items) |*tool| try it.tool(tool.id, tool.name, tool.arguments);
        var wanted = false;
        for (reply.rows) |row| wanted = wanted or row.into.isSubstance();
        try it.end(if (wanted and reply.is_fed) !reply.found_substance else !reply.found);
        return it.out.items;
    }

    fn apply(reply: *Reply, row: *const RuleText, document: *const Document) Allocator.Error!void {
        const arena = reply.arena;
        const conditions = if (row.when.len > 0) try document.follow(arena, row.when, .search) else &.{};
        const numbers = if (row.index.len > 0) try document.follow(arena, row.index, .search) else &.{};
        for (try document.follow(arena, row.take, .search)) |one| {
            const raw = document.text(one.value);
            if (row.when.len > 0 and !try holds(arena, row.is, partners(arena, document, conditions, one) catch return error.OutOfMemory)) continue;
            if (raw[0] == 'n' and row.into != .value) continue;
            const position = if (one.positions.len > 0) one.positions[one.positions.len - 1] else 0;
            if (row.into.isTool()) {
                const given = for (try partners(arena, document, numbers, one)) |number| {
                    if (number[0] != 'n') break reader_file.integer(number);
                } else null;
                try reply.storeTool(row, if (given) |it| std.math.cast(u32, it) else null, position, raw);
            } else if (row.into.isCount()) {
                const count = reader_file.integer(raw) orelse continue;
                if (count < 0) continue;
                reply.storeCount(row, count);
            } else if (row.into == .value) {
                try reply.storeValue(row, raw);
            } else {
                const text = &reply.texts[@backingInt(row.into)];
                text.* = try folded(arena, row.fold, text.*, raw);
            }
            reply.found = true;
            if (row.into.isSubstance()) reply.found_substance = true;
        }
    }

    fn storeTool(reply: *Reply, row: *const RuleText, given: ?u32, position: u32, raw: []const u8) Allocator.Error!void {
        const number = given orelse blk: {
            const behind = reply.tools_before + position;
            if (row.fold == .set or reply.tools_before == 0) break :blk behind;
            for (reply.tools.items) |tool| if (tool.number >= behind) break :blk behind;
            break :blk reply.tools_before - 1; // a piece of the last call of an earlier document
        };
        var at: usize = 0;
        while (at < reply.tools.items.len and reply.tools.items[at].number < number) at += 1;
        if (at == reply.tools.items.len or reply.tools.items[at].number != number) try reply.tools.insert(reply.arena, at, .{ .number = number });
        const tool = &reply.tools.items[at];
        const text = switch (row.into) {
            .tool_id => &tool.id,
            .tool_name => &tool.name,
            else => &tool.arguments,
        };
        text.* = try folded(reply.arena, row.fold, text.*, raw);
    }

    fn storeCount(reply: *Reply, row: *const RuleText, count: i64) void {
        const sum = &reply.counts[@backingInt(row.into)];
        switch (row.fold) {
            .set => if (sum.* == -1) {
                sum.* = count;
            },
            .last => sum.* = count,
            .add => sum.* = @max(0, sum.*) + count,
            .append => unreachable,
        }
    }

    fn storeValue(reply: *Reply, row: *const RuleText, raw: []const u8) Allocator.Error!void {
        const value = &reply.texts[@backingInt(extract.Into.value)];
        switch (row.fold) {
            .set => if (value.len == 0) {
                value.* = try reply.arena.dupe(u8, raw);
            },
            .last => {
                value.* = try reply.arena.dupe(u8, raw);
                reply.is_array = false;
            },
            .append => {
                const inside = if (reply.is_array) value.*[1 .. value.len - 1] else value.*;
                const comma = if (inside.len > 0) "," else "";
                value.* = try std.mem.concat(reply.arena, u8, &.{ "[", inside, comma, raw, "]" });
                reply.is_array = true;
            },
            .add => unreachable,
        }
    }
};

/// Those at the same positions, as far as both have stars.
fn partners(arena: Allocator, document: *const Document, all: []const Found, one: Found) Allocator.Error![]const []const u8 {
    var found: std.ArrayList([]const u8) = .empty;
    for (all) |it| {
        const common = @min(it.positions.len, one.positions.len);
        if (std.mem.eql(u32, it.positions[0..common], one.positions[0..common])) try found.append(arena, document.text(it.value));
    }
    return found.items;
}

/// Whether one of these is the JSON scalar `wanted`. Null: absent will do. Nothing: whatever it is, but null.
fn holds(arena: Allocator, wanted: []const u8, all: []const []const u8) Allocator.Error!bool {
    var present = false;
    for (all) |raw| {
        if (raw[0] != 'n') present = true;
        if (try equal(arena, wanted, raw)) return true;
    }
    return std.mem.eql(u8, wanted, "null") and !present;
}

fn equal(arena: Allocator, wanted: []const u8, raw: []const u8) Allocator.Error!bool {
    if (wanted.len == 0) return raw[0] != 'n';
    if (wanted[0] == '"') {
        if (raw[0] != '"') return false;
        return std.mem.eql(u8, try spans.says(arena, wanted[1 .. wanted.len - 1]), try spans.says(arena, raw[1 .. raw.len - 1]));
    }
    const number = std.fmt.parseFloat(f64, wanted) catch return std.mem.eql(u8, wanted, raw);
    return number == (std.fmt.parseFloat(f64, raw) catch return false);
}

/// What a field holds once `raw` has come.
fn folded(arena: Allocator, how: extract.Fold, before: []const u8, raw: []const u8) Allocator.Error![]const u8 {
    const text = if (raw[0] == '"') try spans.says(arena, raw[1 .. raw.len - 1]) else raw;
    return switch (how) {
        .set => if (before.len > 0) before else arena.dupe(u8, text),
        .last => arena.dupe(u8, text),
        .append => std.mem.concat(arena, u8, &.{ before, text }),
        .add => unreachable,
    };
}
