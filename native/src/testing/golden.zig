//! Replies and streams as three wire formats send them, read by programs as dialects write them. The files in golden/ follow
//! the vendors' own documentation; the core sees nothing of a vendor but these rules.

const std = @import("std");
const extract = @import("../json/extract.zig");
const sse = @import("../http/sse.zig");

const testing = std.testing;
const Allocator = std.mem.Allocator;
const RuleText = extract.RuleText;

/// One program for whole replies and streams: what is not there is not found.
pub const openai = [_]RuleText{
    .{ .take = "choices.0.message.content", .into = .text },
    .{ .take = "choices.0.delta.content", .into = .text, .fold = .append },
    .{ .take = "choices.0.message.reasoning_content", .into = .reasoning },
    .{ .take = "choices.0.delta.reasoning_content", .into = .reasoning, .fold = .append },
    .{ .take = "choices.0.message.tool_calls.*.id", .into = .tool_id },
    .{ .take = "choices.0.message.tool_calls.*.function.name", .into = .tool_name },
    .{ .take = "choices.0.message.tool_calls.*.function.arguments", .into = .tool_arguments },
    .{ .take = "choices.0.delta.tool_calls.*.id", .index = "choices.0.delta.tool_calls.*.index", .into = .tool_id },
    .{ .take = "choices.0.delta.tool_calls.*.function.name", .index = "choices.0.delta.tool_calls.*.index", .into = .tool_name },
    .{
        .take = "choices.0.delta.tool_calls.*.function.arguments",
        .index = "choices.0.delta.tool_calls.*.index",
        .into = .tool_arguments,
        .fold = .append,
    },
    .{ .take = "choices.0.finish_reason", .into = .finish, .fold = .last },
    .{ .take = "id", .into = .id },
    .{ .take = "model", .into = .model },
    .{ .take = "usage.prompt_tokens", .into = .prompt_tokens, .fold = .last },
    .{ .take = "usage.completion_tokens", .into = .completion_tokens, .fold = .last },
    .{ .take = "usage.total_tokens", .into = .total_tokens, .fold = .last },
    .{ .take = "usage.prompt_tokens_details.cached_tokens", .into = .cache_read_tokens, .fold = .last },
    .{ .take = "usage.completion_tokens_details.reasoning_tokens", .into = .reasoning_tokens, .fold = .last },
    .{ .take = "error.message", .into = .error_message },
    .{ .take = "error.type", .into = .error_type },
    .{ .take = "error.code", .into = .error_code },
};

pub const anthropic = [_]RuleText{
    .{ .when = "content.*.type", .is = "\"text\"", .take = "content.*.text", .into = .text, .fold = .append },
    .{ .when = "content.*.type", .is = "\"thinking\"", .take = "content.*.thinking", .into = .reasoning, .fold = .append },
    .{ .when = "content.*.type", .is = "\"tool_use\"", .take = "content.*.id", .into = .tool_id },
    .{ .when = "content.*.type", .is = "\"tool_use\"", .take = "content.*.name", .into = .tool_name },
    .{ .when = "content.*.type", .is = "\"tool_use\"", .take = "content.*.input", .into = .tool_arguments },
    .{ .when = "delta.type", .is = "\"text_delta\"", .take = "delta.text", .into = .text, .fold = .append },
    .{ .when = "delta.type", .is = "\"thinking_delta\"", .take = "delta.thinking", .into = .reasoning, .fold = .append },
    .{ .when = "content_block.type", .is = "\"tool_use\"", .take = "content_block.id", .index = "index", .into = .tool_id },
    .{ .when = "content_block.type", .is = "\"tool_use\"", .take = "content_block.name", .index = "index", .into = .tool_name },
    .{ .when = "delta.type", .is = "\"input_json_delta\"", .take = "delta.partial_json", .index = "index", .into = .tool_arguments, .fold = .append },
    .{ .when = "type", .is = "\"message\"", .take = "id", .into = .id },
    .{ .take = "message.id", .into = .id },
    .{ .take = "model", .into = .model },
    .{ .take = "message.model", .into = .model },
    .{ .take = "stop_reason", .into = .finish },
    .{ .take = "delta.stop_reason", .into = .finish, .fold = .last },
    .{ .take = "usage.input_tokens", .into = .prompt_tokens, .fold = .last },
    .{ .take = "message.usage.input_tokens", .into = .prompt_tokens },
    .{ .take = "message.usage.output_tokens", .into = .completion_tokens },
    .{ .take = "usage.output_tokens", .into = .completion_tokens, .fold = .last }, // of all events together
    .{ .take = "usage.cache_read_input_tokens", .into = .cache_read_tokens, .fold = .last },
    .{ .take = "message.usage.cache_read_input_tokens", .into = .cache_read_tokens },
    .{ .take = "usage.cache_creation_input_tokens", .into = .cache_creation_tokens, .fold = .last },
    .{ .take = "message.usage.cache_creation_input_tokens", .into = .cache_creation_tokens },
    .{ .when = "type", .is = "\"error\"", .take = "error.message", .into = .error_message },
    .{ .when = "type", .is = "\"error\"", .take = "error.type", .into = .error_type },
};

pub const gemini = [_]RuleText{
    // "thought" is absent where it is false, mostly.
    .{ .when = "candidates.0.content.parts.*.thought", .is = "null", .take = "candidates.0.content.parts.*.text", .into = .text, .fold = .append },
    .{ .when = "candidates.0.content.parts.*.thought", .is = "false", .take = "candidates.0.content.parts.*.text", .into = .text, .fold = .append },
    .{ .when = "candidates.0.content.parts.*.thought", .is = "true", .take = "candidates.0.content.parts.*.text", .into = .reasoning, .fold = .append },
    .{ .take = "candidates.0.content.parts.*.functionCall.name", .into = .tool_name },
    .{ .take = "candidates.0.content.parts.*.functionCall.args", .into = .tool_arguments },
    .{ .take = "candidates.0.content.parts.*.functionCall.id", .into = .tool_id },
    .{ .take = "candidates.0.finishReason", .into = .finish, .fold = .last },
    .{ .take = "promptFeedback.blockReason", .into = .finish },
    .{ .take = "responseId", .into = .id },
    .{ .take = "modelVersion", .into = .model },
    .{ .take = "usageMetadata.promptTokenCount", .into = .prompt_tokens, .fold = .last },
    .{ .take = "usageMetadata.candidatesTokenCount", .into = .completion_tokens, .fold = .last },
    .{ .take = "usageMetadata.totalTokenCount", .into = .total_tokens, .fold = .last },
    .{ .take = "usageMetadata.cachedContentTokenCount", .into = .cache_read_tokens, .fold = .last },
    .{ .take = "usageMetadata.thoughtsTokenCount", .into = .reasoning_tokens, .fold = .last },
    .{ .take = "error.message", .into = .error_message },
    .{ .take = "error.status", .into = .error_type },
    .{ .take = "error.code", .into = .error_code },
    .{ .take = "0.error.message", .into = .error_message }, // the same in an array
    .{ .take = "0.error.status", .into = .error_type },
    .{ .take = "0.error.code", .into = .error_code },
};

const Tool = struct { id: []const u8 = "", name: []const u8, arguments: []const u8 };

const Expected = struct {
    text: []const u8 = "",
    reasoning: []const u8 = "",
    model: []const u8 = "",
    id: []const u8 = "",
    finish: []const u8 = "",
    error_message: []const u8 = "",
    error_type: []const u8 = "",
    error_code: []const u8 = "",
    tools: []const Tool = &.{},
    prompt_tokens: i64 = -1,
    completion_tokens: i64 = -1,
    total_tokens: i64 = -1,
    cache_read_tokens: i64 = -1,
    cache_creation_tokens: i64 = -1,
    reasoning_tokens: i64 = -1,

    fn check(expected: Expected, reply: *const extract.Reply) !void {
        inline for (.{ "text", "reasoning", "model", "id", "finish", "error_message", "error_type", "error_code" }) |field| {
            errdefer std.debug.print("in {s}\n", .{field});
            try testing.expectEqualStrings(@field(expected, field), @field(reply, field).items());
        }
        inline for (.{
            "prompt_tokens",     "completion_tokens",     "total_tokens",
            "cache_read_tokens", "cache_creation_tokens", "reasoning_tokens",
        }) |field| {
            errdefer std.debug.print("in {s}\n", .{field});
            try testing.expectEqual(@field(expected, field), @field(reply, field));
        }
        try testing.expectEqual(expected.tools.len, reply.toolCalls().len);
        for (expected.tools, reply.toolCalls()) |tool, call| {
            try testing.expectEqualStrings(tool.id, call.id.items());
            try testing.expectEqualStrings(tool.name, call.name.items());
            try testing.expectEqualStrings(tool.arguments, call.arguments.items());
        }
        try testing.expect(!reply.isEmpty() or expected.error_message.len > 0);
    }
};

fn expectReply(rules: []const RuleText, body: []const u8, expected: Expected) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const program = try extract.compileText(arena.allocator(), rules);
    for ([_]extract.Lifetime{ .outlives_reply, .ends_with_call }) |lifetime| {
        var reply: extract.Reply = .init(testing.allocator);
        defer reply.deinit();
        const copy = try testing.allocator.dupe(u8, body);
        try program.feed(&reply, copy, lifetime);
        if (lifetime == .ends_with_call) @memset(copy, '#'); // whatever still points into it would be seen
        defer testing.allocator.free(copy);
        try expected.check(&reply);
    }
}

const EventReader = struct {
    program: *const extract.Program,
    reply: *extract.Reply,

    fn onEvent(reader: *EventReader, event: sse.Event) error{OutOfMemory}!void {
        if (std.mem.eql(u8, event.data, "[DONE]")) return;
        reader.program.feed(reader.reply, event.data, .ends_with_call) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.BadJson => @panic("a golden event is no JSON"),
        };
    }
};

fn readStream(gpa: Allocator, program: *const extract.Program, reply: *extract.Reply, stream: []const u8, piece: usize) !void {
    var decoder: sse.Decoder = .init(gpa);
    defer decoder.deinit();
    var events: EventReader = .{ .program = program, .reply = reply };
    var at: usize = 0;
    while (at < stream.len) : (at += piece) {
        const bytes = try gpa.dupe(u8, stream[at..@min(at + piece, stream.len)]);
        defer gpa.free(bytes);
        try decoder.feed(bytes, &events, EventReader.onEvent);
    }
    try decoder.finish(&events, EventReader.onEvent);
}

fn expectStream(rules: []const RuleText, stream: []const u8, expected: Expected) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const program = try extract.compileText(arena.allocator(), rules);
    // With and without the empty line at the end, and cut into all kinds of pieces.
    for ([_][]const u8{ stream, std.mem.trimEnd(u8, stream, "\r\n") }) |it| for ([_]usize{ 1, 2, 7, 100, it.len }) |piece| {
        errdefer std.debug.print("in pieces of {d} bytes\n", .{piece});
        var reply: extract.Reply = .init(testing.allocator);
        defer reply.deinit();
        try readStream(testing.allocator, &program, &reply, it, piece);
        try expected.check(&reply);
    };
}

test "OpenAI: a chat completion with reasoning tokens" {
    try expectReply(&openai, @embedFile("golden/openai_chat.json"), .{
        .text = "Hello! \"Bees\" are insects.\nHow can I help — 🐝?",
        .model = "gpt-4.1-2025-04-14",
        .id = "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        .finish = "stop",
        .prompt_tokens = 19,
        .completion_tokens = 110,
        .total_tokens = 129,
        .cache_read_tokens = 16,
        .reasoning_tokens = 64,
    });
}

test "OpenAI: tool calls beside a content of null" {
    try expectReply(&openai, @embedFile("golden/openai_tools.json"), .{
        .model = "gpt-4o-mini",
        .id = "chatcmpl-abc123",
        .finish = "tool_calls",
        .tools = &.{
            .{ .id = "call_abc123", .name = "get_current_weather", .arguments = "{\n\"location\": \"Boston, MA\"\n}" },
            .{ .id = "call_def456", .name = "get_time", .arguments = "{}" },
        },
        .prompt_tokens = 82,
        .completion_tokens = 17,
        .total_tokens = 99,
        .reasoning_tokens = 0,
    });
}

test "OpenAI: an error" {
    try expectReply(&openai, @embedFile("golden/openai_error.json"), .{
        .error_message = "You exceeded your current quota, please check your plan and billing details. For more information on this " ++
            "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
        .error_type = "insufficient_quota",
        .error_code = "insufficient_quota",
    });
}

test "OpenAI: a stream of text, with a first event that names nothing and usage in the last" {
    try expectStream(&openai, @embedFile("golden/openai_text.sse"), .{
        .text = "Hello,\n\"bees\" 🐝",
        .model = "gpt-4o-mini",
        .id = "chatcmpl-123",
        .finish = "stop",
        .prompt_tokens = 9,
        .completion_tokens = 12,
        .total_tokens = 21,
        .cache_read_tokens = 0,
        .reasoning_tokens = 5,
    });
}

test "OpenAI: tool calls in pieces, put together by index" {
    try expectStream(&openai, @embedFile("golden/openai_tools.sse"), .{
        .model = "gpt-4.1",
        .id = "chatcmpl-9",
        .finish = "tool_calls",
        .tools = &.{
            .{ .id = "call_DdmO9pD3xa9XTPNJ32zg2hcA", .name = "get_weather", .arguments = "{\"location\":\"Paris, France\"}" },
            .{ .id = "call_2", .name = "get_time", .arguments = "{}" },
        },
    });
}

test "OpenAI: an error in the middle of a stream" {
    try expectStream(&openai, @embedFile("golden/openai_error.sse"), .{
        .text = "Half an ans",
        .model = "m",
        .id = "gen-1",
        .finish = "error",
        .error_message = "Provider disconnected",
        .error_code = "502",
    });
}

test "Anthropic: text blocks among thinking and tool use" {
    try expectReply(&anthropic, @embedFile("golden/anthropic_message.json"), .{
        .text = "I'll check the weather in \"Paris\" and the time.",
        .reasoning = "The user wants the weather.\nI should call the tool.",
        .model = "claude-sonnet-4-20250514",
        .id = "msg_01Aq9w938a90dw8q",
        .finish = "tool_use",
        .tools = &.{
            .{
                .id = "toolu_01A09q90qw90lq917835lq9",
                .name = "get_weather",
                .arguments = "{ \"location\": \"Paris, FR\", \"unit\": \"celsius\" }",
            },
            .{ .id = "toolu_02", .name = "get_time", .arguments = "{}" },
        },
        .prompt_tokens = 2095,
        .completion_tokens = 503,
        .cache_read_tokens = 1033,
        .cache_creation_tokens = 2051,
    });
}

test "Anthropic: a stream of blocks, usage at its start and its end" {
    try expectStream(&anthropic, @embedFile("golden/anthropic_message.sse"), .{
        .text = "Okay, let's check\n",
        .reasoning = "Let me think.",
        .model = "claude-sonnet-4-20250514",
        .id = "msg_014p7gG3wDgGV9EUtLvnow3U",
        .finish = "tool_use",
        .tools = &.{.{
            .id = "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
            .name = "get_weather",
            .arguments = "{\"location\": \"San Francisco, CA\"}",
        }},
        .prompt_tokens = 472,
        .completion_tokens = 89,
        .cache_read_tokens = 128,
        .cache_creation_tokens = 0,
    });
}

test "Anthropic: an error, by itself and in a stream" {
    const body = @embedFile("golden/anthropic_error.json");
    try expectReply(&anthropic, body, .{ .error_message = "Overloaded", .error_type = "overloaded_error" });
    try expectStream(&anthropic, @embedFile("golden/anthropic_error.sse"), .{
        .model = "claude-sonnet-4-20250514",
        .id = "msg_1",
        .error_message = "Overloaded",
        .error_type = "overloaded_error",
        .prompt_tokens = 4,
        .completion_tokens = 1,
    });
}

test "Gemini: parts that are thoughts, text or function calls" {
    try expectReply(&gemini, @embedFile("golden/gemini_generate.json"), .{
        .text = "It is sunny, I think.",
        .reasoning = "**Considering** the request",
        .model = "gemini-2.5-flash",
        .id = "n2lSaKvGJ5uF7dcPvZi4mAo",
        .finish = "STOP",
        .tools = &.{
            .{ .name = "get_weather", .arguments = "{ \"location\": \"Paris\", \"days\": [1, 2] }" },
            .{ .id = "fc_2", .name = "get_time", .arguments = "{}" },
        },
        .prompt_tokens = 57,
        .completion_tokens = 24,
        .total_tokens = 145,
        .cache_read_tokens = 32,
        .reasoning_tokens = 64,
    });
}

test "Gemini: a stream whose function calls come in several events" {
    try expectStream(&gemini, @embedFile("golden/gemini_generate.sse"), .{
        .text = "Sunny today.",
        .reasoning = "**Weighing**",
        .model = "gemini-2.5-flash",
        .id = "r1",
        .finish = "STOP",
        .tools = &.{
            .{ .name = "get_weather", .arguments = "{\"location\": \"Paris\"}" },
            .{ .name = "get_weather", .arguments = "{\"location\": \"Rome\"}" },
        },
        .prompt_tokens = 11,
        .completion_tokens = 17,
        .total_tokens = 60,
        .reasoning_tokens = 32,
    });
}

test "Gemini: an error in an array, and one in the middle of a stream" {
    try expectReply(&gemini, @embedFile("golden/gemini_error.json"), .{
        .error_message = "You exceeded your current quota, please check your plan and billing details.",
        .error_type = "RESOURCE_EXHAUSTED",
        .error_code = "429",
    });
    try expectStream(&gemini, @embedFile("golden/gemini_error.sse"), .{
        .text = "Half",
        .model = "gemini-2.5-flash",
        .error_message = "The model is overloaded. Please try again later.",
        .error_type = "UNAVAILABLE",
        .error_code = "503",
    });
}

test "replies and streams with damaged bytes are read or refused, never worse" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const Tolerant = struct {
        program: *const extract.Program,
        reply: *extract.Reply,

        fn onEvent(it: *@This(), event: sse.Event) error{OutOfMemory}!void {
            it.program.feed(it.reply, event.data, .ends_with_call) catch |err| if (err == error.OutOfMemory) return error.OutOfMemory;
        }
    };
    inline for (.{
        .{ &openai, "golden/openai_tools.json", "golden/openai_tools.sse" },
        .{ &anthropic, "golden/anthropic_message.json", "golden/anthropic_message.sse" },
        .{ &gemini, "golden/gemini_generate.json", "golden/gemini_generate.sse" },
    }) |case| {
        const program = try extract.compileText(arena.allocator(), case[0]);
        const body = try arena.allocator().dupe(u8, @embedFile(case[1]));
        const stream = try arena.allocator().dupe(u8, @embedFile(case[2]));
        for (0..500) |_| {
            for ([_][]u8{ body, stream }) |bytes| {
                const at = random.uintLessThan(usize, bytes.len);
                const before = bytes[at];
                defer if (random.uintLessThan(u8, 4) > 0) {
                    bytes[at] = before; // some damage stays
                };
                bytes[at] = if (random.boolean()) random.int(u8) else "\"\\{}[],:0n\n\r"[random.uintLessThan(usize, 12)];
                var reply: extract.Reply = .init(testing.allocator);
                defer reply.deinit();
                program.feed(&reply, bytes, .outlives_reply) catch |err| if (err != error.BadJson) return err;
                reply.clear();
                var decoder: sse.Decoder = .init(testing.allocator);
                defer decoder.deinit();
                var reader: Tolerant = .{ .program = &program, .reply = &reply };
                try decoder.feed(bytes, &reader, Tolerant.onEvent);
                try decoder.finish(&reader, Tolerant.onEvent);
            }
        }
    }
}

test "every allocation of reading a stream may fail" {
    const run = struct {
        fn all(gpa: Allocator, rules: []const RuleText, stream: []const u8) !void {
            var arena: std.heap.ArenaAllocator = .init(gpa);
            defer arena.deinit();
            const program = try extract.compileText(arena.allocator(), rules);
            var reply: extract.Reply = .init(gpa);
            defer reply.deinit();
            try readStream(gpa, &program, &reply, stream, 200);
        }
    };
    const openai_rules: []const RuleText = &openai;
    const stream: []const u8 = @embedFile("golden/openai_tools.sse");
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{ openai_rules, stream });
    const anthropic_rules: []const RuleText = &anthropic;
    const blocks: []const u8 = @embedFile("golden/anthropic_message.sse");
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{ anthropic_rules, blocks });
}
