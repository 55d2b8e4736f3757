//! A reply: what extraction programs found, field by field. It knows how values are folded into fields, and no JSON paths.
//!
//! Text is borrowed from the body where it stands there as it is and the body lives long enough; else it is the reply's own.
//! Buffers are kept when a reply is cleared for the next attempt. One thread at a time.

const std = @import("std");
const reader = @import("reader.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

/// C: gb_into
pub const Into = enum(u32) {
    text = 0,
    reasoning = 1,
    tool_id = 2,
    tool_name = 3,
    tool_arguments = 4,
    model = 5,
    id = 6,
    finish = 7,
    prompt_tokens = 8,
    completion_tokens = 9,
    total_tokens = 10,
    cache_read_tokens = 11,
    cache_creation_tokens = 12,
    reasoning_tokens = 13,
    error_message = 14,
    error_type = 15,
    error_code = 16,
    value = 17,

    pub fn isCount(into: Into) bool {
        return switch (into) {
            .prompt_tokens, .completion_tokens, .total_tokens => true,
            .cache_read_tokens, .cache_creation_tokens, .reasoning_tokens => true,
            else => false,
        };
    }

    pub fn isTool(into: Into) bool {
        return switch (into) {
            .tool_id, .tool_name, .tool_arguments => true,
            else => false,
        };
    }

    /// What a reply is asked for its own sake, as opposed to what is said about it. A finish reason counts: a model may
    /// have ended well without a word.
    pub fn isSubstance(into: Into) bool {
        return switch (into) {
            .text, .reasoning, .finish, .value => true,
            else => into.isTool(),
        };
    }
};

/// C: gb_fold
pub const Fold = enum(u32) { set = 0, append = 1, last = 2, add = 3 };

/// How long the bytes of a body can be relied on.
pub const Lifetime = enum {
    /// Until the reply is cleared or freed: text may be borrowed from it.
    outlives_reply,
    /// Only during the call.
    ends_with_call,
};

/// C: gb_bytes
pub const Bytes = extern struct {
    ptr: ?[*]const u8 = null,
    len: usize = 0,

    pub fn items(bytes: Bytes) []const u8 {
        return if (bytes.ptr) |ptr| ptr[0..bytes.len] else &.{};
    }
};

/// C: gb_tool_call
pub const ToolCall = extern struct {
    id: Bytes = .{},
    name: Bytes = .{},
    arguments: Bytes = .{},
};

/// A piece of text, borrowed or owned.
pub const Text = struct {
    view: []const u8 = "",
    buffer: std.ArrayList(u8) = .empty,
    /// It is an array that `foldRaw` puts together.
    is_array: bool = false,

    pub fn items(text: *const Text) []const u8 {
        return text.view;
    }

    fn deinit(text: *Text, gpa: Allocator) void {
        text.buffer.deinit(gpa);
    }

    fn clear(text: *Text) void {
        text.view = "";
        text.buffer.clearRetainingCapacity();
        text.is_array = false;
    }

    /// `raw` is a JSON value: a string is folded in as what it says, anything else as it stands.
    fn fold(text: *Text, gpa: Allocator, how: Fold, raw: []const u8, lifetime: Lifetime) Allocator.Error!void {
        const content = if (raw[0] == '"') raw[1 .. raw.len - 1] else raw;
        switch (how) {
            .set => if (text.view.len > 0) return,
            .last => text.clear(),
            .append => {},
            .add => unreachable, // refused by Program.compile
        }
        const plain = raw[0] != '"' or std.mem.findScalar(u8, content, '\\') == null;
        if (plain and text.view.len == 0 and lifetime == .outlives_reply) {
            text.view = content;
            return;
        }
        try text.own(gpa);
        if (plain) try text.buffer.appendSlice(gpa, content) else try reader.unescape(gpa, &text.buffer, content);
        text.view = text.buffer.items;
    }

    /// Like `fold`, but JSON stays JSON. What is appended makes an array of all that was found.
    fn foldRaw(text: *Text, gpa: Allocator, how: Fold, raw: []const u8, lifetime: Lifetime) Allocator.Error!void {
        switch (how) {
            .set => if (text.view.len > 0) return,
            .last => text.clear(),
            .append => {
                if (!text.is_array) try text.beginArray(gpa);
                try text.buffer.ensureUnusedCapacity(gpa, raw.len + 2);
                assert(text.buffer.pop() == ']');
                if (text.buffer.items.len > 1) text.buffer.appendAssumeCapacity(',');
                text.buffer.appendSliceAssumeCapacity(raw);
                text.buffer.appendAssumeCapacity(']');
                text.view = text.buffer.items;
                return;
            },
            .add => unreachable, // refused by Program.compile
        }
        if (lifetime == .outlives_reply) {
            text.view = raw;
            return;
        }
        try text.buffer.appendSlice(gpa, raw);
        text.view = text.buffer.items;
    }

    /// What another rule has set becomes the first element.
    fn beginArray(text: *Text, gpa: Allocator) Allocator.Error!void {
        try text.own(gpa);
        try text.buffer.ensureUnusedCapacity(gpa, 2);
        text.buffer.insertAssumeCapacity(0, '[');
        text.buffer.appendAssumeCapacity(']');
        text.view = text.buffer.items;
        text.is_array = true;
    }

    /// What was borrowed so far is copied, so that something can be appended.
    fn own(text: *Text, gpa: Allocator) Allocator.Error!void {
        if (text.buffer.items.len > 0) return;
        try text.buffer.appendSlice(gpa, text.view);
        text.view = text.buffer.items;
    }

    fn bytes(text: *const Text) Bytes {
        return .{ .ptr = text.view.ptr, .len = text.view.len };
    }
};

/// More calls in one reply than anybody makes: what goes beyond is a server gone wrong.
pub const tool_calls_max = 4096;

pub const Reply = struct {
    gpa: Allocator,
    text: Text = .{},
    reasoning: Text = .{},
    model: Text = .{},
    id: Text = .{},
    finish: Text = .{},
    error_message: Text = .{},
    error_type: Text = .{},
    error_code: Text = .{},
    /// Raw JSON.
    value: Text = .{},
    /// Tokens; -1: not given.
    prompt_tokens: i64 = -1,
    completion_tokens: i64 = -1,
    total_tokens: i64 = -1,
    cache_read_tokens: i64 = -1,
    cache_creation_tokens: i64 = -1,
    reasoning_tokens: i64 = -1,

    /// Ordered by number, and what C sees of each at the same place in `tool_calls`.
    tool_parts: std.ArrayList(ToolParts) = .empty,
    tool_calls: std.ArrayList(ToolCall) = .empty,
    /// One more than the largest number when the document at hand began.
    tools_before: u32 = 0,

    found: bool = false,
    found_substance: bool = false,
    /// The program that was fed last asks for some.
    substance_wanted: bool = false,

    const ToolParts = struct {
        number: u32,
        id: Text = .{},
        name: Text = .{},
        arguments: Text = .{},

        fn deinit(parts: *ToolParts, gpa: Allocator) void {
            parts.id.deinit(gpa);
            parts.name.deinit(gpa);
            parts.arguments.deinit(gpa);
        }
    };

    pub fn init(gpa: Allocator) Reply {
        return .{ .gpa = gpa };
    }

    pub fn deinit(reply: *Reply) void {
        inline for (text_fields) |name| @field(reply, name).deinit(reply.gpa);
        for (reply.tool_parts.items) |*parts| parts.deinit(reply.gpa);
        reply.tool_parts.deinit(reply.gpa);
        reply.tool_calls.deinit(reply.gpa);
        reply.* = undefined;
    }

    /// As after `init`; buffers are kept.
    pub fn clear(reply: *Reply) void {
        inline for (text_fields) |name| @field(reply, name).clear();
        inline for (count_fields) |name| @field(reply, name) = -1;
        for (reply.tool_parts.items) |*parts| parts.deinit(reply.gpa);
        reply.tool_parts.clearRetainingCapacity();
        reply.tool_calls.clearRetainingCapacity();
        reply.tools_before = 0;
        reply.found = false;
        reply.found_substance = false;
        reply.substance_wanted = false;
    }

    /// A whole reply is one document, a stream is one per event.
    pub fn beginDocument(reply: *Reply, substance_wanted: bool) void {
        reply.substance_wanted = substance_wanted;
        const all = reply.tool_parts.items;
        reply.tools_before = if (all.len > 0) all[all.len - 1].number +| 1 else 0;
    }

    /// The number of a tool call that has none of its own, only a position in the document at hand. What is set begins a
    /// new call behind those of earlier documents; a piece belongs to a call begun in this one, else to the last one before.
    pub fn toolNumber(reply: *const Reply, position: u32, how: Fold) u32 {
        const number = reply.tools_before +| position;
        if (how == .set or reply.tools_before == 0) return number;
        const all = reply.tool_parts.items;
        const begun = all.len > 0 and all[all.len - 1].number >= number;
        return if (begun) number else reply.tools_before - 1;
    }

    /// Nothing was found of what the program asks for. Where it asks for text, a value or the like, what was merely said
    /// about the reply (model, id, tokens) does not count.
    pub fn isEmpty(reply: *const Reply) bool {
        return if (reply.substance_wanted) !reply.found_substance else !reply.found;
    }

    pub fn toolCalls(reply: *const Reply) []const ToolCall {
        return reply.tool_calls.items;
    }

    /// Folds one JSON value, as it stands in the document, into a field. Null counts as absent, except as the value itself.
    pub fn store(
        reply: *Reply,
        into: Into,
        how: Fold,
        number: u32,
        raw: []const u8,
        lifetime: Lifetime,
    ) error{ OutOfMemory, BadJson }!void {
        const gpa = reply.gpa;
        if (into != .value and raw[0] == 'n') return;
        switch (into) {
            inline .prompt_tokens,
            .completion_tokens,
            .total_tokens,
            .cache_read_tokens,
            .cache_creation_tokens,
            .reasoning_tokens,
            => |field| {
                if (!foldCount(&@field(reply, @tagName(field)), how, raw)) return;
            },
            inline .text, .reasoning, .model, .id, .finish, .error_message, .error_type, .error_code => |field| {
                try @field(reply, @tagName(field)).fold(gpa, how, raw, lifetime);
            },
            .value => try reply.value.foldRaw(gpa, how, raw, lifetime),
            .tool_id, .tool_name, .tool_arguments => {
                const at = try reply.toolAt(number);
                const parts = &reply.tool_parts.items[at];
                const text = switch (into) {
                    .tool_id => &parts.id,
                    .tool_name => &parts.name,
                    else => &parts.arguments,
                };
                try text.fold(gpa, how, raw, lifetime);
                reply.tool_calls.items[at] = .{
                    .id = parts.id.bytes(),
                    .name = parts.name.bytes(),
                    .arguments = parts.arguments.bytes(),
                };
            },
        }
        reply.found = true;
        if (into.isSubstance()) reply.found_substance = true;
    }

    /// The place of the call with this number, which is made if need be. Deltas mostly concern the last one.
    fn toolAt(reply: *Reply, number: u32) error{ OutOfMemory, BadJson }!usize {
        const all = reply.tool_parts.items;
        var low: usize = 0;
        var high: usize = all.len;
        if (high > 0 and all[high - 1].number == number) return high - 1;
        while (low < high) {
            const middle = low + (high - low) / 2;
            if (all[middle].number == number) return middle;
            if (all[middle].number < number) low = middle + 1 else high = middle;
        }
        if (all.len == tool_calls_max) return error.BadJson;
        try reply.tool_parts.ensureUnusedCapacity(reply.gpa, 1);
        try reply.tool_calls.ensureUnusedCapacity(reply.gpa, 1);
        reply.tool_parts.insertAssumeCapacity(low, .{ .number = number });
        reply.tool_calls.insertAssumeCapacity(low, .{});
        return low;
    }
};

const text_fields = .{ "text", "reasoning", "model", "id", "finish", "error_message", "error_type", "error_code", "value" };
const count_fields = .{
    "prompt_tokens",     "completion_tokens",     "total_tokens",
    "cache_read_tokens", "cache_creation_tokens", "reasoning_tokens",
};

/// False: it is no count.
fn foldCount(count: *i64, how: Fold, raw: []const u8) bool {
    const value = reader.integer(raw) orelse return false;
    if (value < 0) return false;
    switch (how) {
        .set => if (count.* < 0) {
            count.* = value;
        },
        .last => count.* = value,
        .add => count.* = @max(count.*, 0) +| value,
        .append => unreachable, // refused by Program.compile
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "folds: the first wins, the last wins, pieces are joined, counts are summed" {
    var reply: Reply = .init(testing.allocator);
    defer reply.deinit();
    for ([_][]const u8{ "null", "\"\"", "\"a\"", "\"b\"" }) |raw| try reply.store(.model, .set, 0, raw, .ends_with_call);
    try testing.expectEqualStrings("a", reply.model.items()); // an empty one does not count as first
    for ([_][]const u8{ "\"stop\"", "\"length\"", "null" }) |raw| try reply.store(.finish, .last, 0, raw, .ends_with_call);
    try testing.expectEqualStrings("length", reply.finish.items());
    for ([_][]const u8{ "\"a\"", "\"\\n\"", "1.50", "true", "{\"x\": 1}" }) |raw| try reply.store(.text, .append, 0, raw, .ends_with_call);
    try testing.expectEqualStrings("a\n1.50true{\"x\": 1}", reply.text.items());
    for ([_][]const u8{ "3", "null", "\"9\"", "-4", "4" }) |raw| {
        try reply.store(.prompt_tokens, .add, 0, raw, .ends_with_call);
        try reply.store(.total_tokens, .set, 0, raw, .ends_with_call);
        try reply.store(.reasoning_tokens, .last, 0, raw, .ends_with_call);
    }
    try testing.expectEqual(7, reply.prompt_tokens);
    try testing.expectEqual(3, reply.total_tokens);
    try testing.expectEqual(4, reply.reasoning_tokens);
    try testing.expectEqual(-1, reply.completion_tokens);
}

test "text is borrowed where it can be, and copied when something follows" {
    const body = "\"plain\" \"with \\\"escapes\\\"\"";
    var reply: Reply = .init(testing.allocator);
    defer reply.deinit();
    try reply.store(.text, .append, 0, body[0..7], .outlives_reply);
    try testing.expectEqual(body[1..6].ptr, reply.text.items().ptr);
    try reply.store(.text, .append, 0, body[8..], .outlives_reply);
    try testing.expectEqualStrings("plainwith \"escapes\"", reply.text.items());
    try reply.store(.id, .set, 0, body[0..7], .ends_with_call);
    try testing.expect(reply.id.items().ptr != body[1..6].ptr);
    try reply.store(.text, .last, 0, body[0..7], .outlives_reply);
    try testing.expectEqual(body[1..6].ptr, reply.text.items().ptr);
}

test "tool calls stand in the order of their numbers, whatever comes first" {
    var reply: Reply = .init(testing.allocator);
    defer reply.deinit();
    for ([_]u32{ 7, 0, 3, 9, 3 }) |number| {
        const name = try testing.allocator.print("\"n{d}\"", .{number});
        defer testing.allocator.free(name);
        try reply.store(.tool_name, .set, number, name, .ends_with_call);
        try reply.store(.tool_arguments, .append, number, "\"x\"", .ends_with_call);
    }
    try testing.expectEqual(4, reply.toolCalls().len);
    for (reply.toolCalls(), [_][]const u8{ "n0", "n3", "n7", "n9" }, [_][]const u8{ "x", "xx", "x", "x" }) |call, name, arguments| {
        try testing.expectEqualStrings(name, call.name.items());
        try testing.expectEqualStrings(arguments, call.arguments.items());
        try testing.expectEqual(0, call.id.len);
    }
}

test "there is an end to tool calls" {
    var reply: Reply = .init(testing.allocator);
    defer reply.deinit();
    for (0..tool_calls_max) |number| try reply.store(.tool_id, .set, @intCast(number), "\"i\"", .outlives_reply);
    try testing.expectError(error.BadJson, reply.store(.tool_id, .set, tool_calls_max, "\"i\"", .outlives_reply));
}

test "values stay JSON, several become an array" {
    var reply: Reply = .init(testing.allocator);
    defer reply.deinit();
    try testing.expect(reply.isEmpty());
    try reply.store(.value, .set, 0, "null", .outlives_reply);
    try reply.store(.value, .set, 0, "\"second\"", .outlives_reply);
    try testing.expectEqualStrings("null", reply.value.items());
    reply.clear();
    try testing.expect(reply.isEmpty());
    for ([_][]const u8{ "1", "\"a\\n\"", "[]" }) |raw| try reply.store(.value, .append, 0, raw, .outlives_reply);
    try testing.expectEqualStrings("[1,\"a\\n\",[]]", reply.value.items());
    try testing.expect(!reply.isEmpty());
    reply.clear();
    try reply.store(.value, .set, 0, "[7]", .outlives_reply);
    try reply.store(.value, .append, 0, "8", .outlives_reply);
    try testing.expectEqualStrings("[[7],8]", reply.value.items());
    try reply.store(.value, .last, 0, "9", .ends_with_call);
    try testing.expectEqualStrings("9", reply.value.items());
}

test "every allocation of a reply may fail" {
    const run = struct {
        fn fill(gpa: Allocator) !void {
            var reply: Reply = .init(gpa);
            defer reply.deinit();
            for (0..2) |_| {
                for (0..5) |number| {
                    try reply.store(.text, .append, 0, "\"piece\\n\"", .ends_with_call);
                    try reply.store(.tool_id, .set, @intCast(number), "\"an id\"", .ends_with_call);
                    try reply.store(.tool_arguments, .append, @intCast(number), "\"{\"", .ends_with_call);
                    try reply.store(.value, .append, 0, "[1]", .ends_with_call);
                }
                reply.clear();
            }
        }
    };
    try testing.checkAllAllocationFailures(testing.allocator, run.fill, .{});
}
