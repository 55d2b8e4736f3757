//! Extraction programs: rules that say where a reply's fields stand in a JSON document, be it a whole reply or one event of
//! a stream. The core knows no vendor; a program is all it knows of a wire format.
//!
//! A rule's condition may stand behind what it guards (`{"text": …, "type": "text"}`), so a document is read in two steps:
//! one pass finds what all paths of all rules lead to (paths.zig), then the rules are applied in their order, each to its
//! findings in document order. That is also the order of positions: so a rule's condition and what it takes are joined by
//! walking two sorted lists side by side.
//!
//! Nothing is folded into the reply before the whole document turned out to be valid.

const std = @import("std");
const paths_file = @import("paths.zig");
const reader_file = @import("reader.zig");
const reply_file = @import("reply.zig");

const Allocator = std.mem.Allocator;
const Finding = paths_file.Finding;
const PathId = paths_file.PathId;
const Reader = reader_file.Reader;
const Search = paths_file.Search;
const none = paths_file.none;

pub const Reply = reply_file.Reply;
pub const Into = reply_file.Into;
pub const Fold = reply_file.Fold;
pub const Lifetime = reply_file.Lifetime;
pub const ToolCall = reply_file.ToolCall;

/// C: gb_span
pub const Span = extern struct {
    offset: u32 = 0,
    length: u32 = 0,

    pub fn of(span: Span, text: []const u8) []const u8 {
        return text[span.offset..][0..span.length];
    }
};

/// C: gb_rule
pub const Rule = extern struct {
    when_path: Span = .{},
    when_value: Span = .{},
    take: Span = .{},
    index: Span = .{},
    into: u32,
    fold: u32,
};

/// Documents are read by recursion; deeper than this the stack of the thread that reads may not do.
pub const depth_most = 1024;

/// Findings of an ordinary reply fit here; a longer one takes memory for the time of the pass.
const scratch_bytes = 4 * 1024;

/// What a condition's value must be. Null is as good as absent, and absent as good as null: so a rule can be for those that
/// lack something ("parts that are no thoughts").
const Wanted = union(enum) {
    anything,
    nothing,
    string: []const u8,
    number: f64,
    literal: []const u8,

    fn parse(arena: Allocator, raw: []const u8) error{ OutOfMemory, InvalidRule }!Wanted {
        if (raw.len == 0) return .anything;
        var reader = Reader.init(raw) catch return error.InvalidRule;
        const value = reader.skip() catch return error.InvalidRule;
        reader.finish() catch return error.InvalidRule;
        switch (value[0]) {
            '"' => {
                var text: std.ArrayList(u8) = .empty;
                try reader_file.unescape(arena, &text, value[1 .. value.len - 1]);
                return .{ .string = text.items };
            },
            '{', '[' => return error.InvalidRule,
            'n' => return .nothing,
            't', 'f' => return .{ .literal = value },
            else => return .{ .number = std.fmt.parseFloat(f64, value) catch return error.InvalidRule },
        }
    }

    fn is(wanted: Wanted, raw: []const u8) bool {
        return switch (wanted) {
            .anything => raw[0] != 'n',
            .nothing => raw[0] == 'n',
            .string => |text| raw[0] == '"' and reader_file.keyIs(raw[1 .. raw.len - 1], text),
            .number => |number| number == (std.fmt.parseFloat(f64, raw) catch return false),
            .literal => |text| std.mem.eql(u8, raw, text),
        };
    }
};

const CompiledRule = struct {
    condition: ?struct { path: PathId, wanted: Wanted },
    take: PathId,
    index: ?PathId,
    into: Into,
    fold: Fold,

    fn compile(
        arena: Allocator,
        builder: *paths_file.Builder,
        rule: *const Rule,
        text: []const u8,
    ) error{ OutOfMemory, TooComplex, InvalidRule }!CompiledRule {
        const into = std.enums.fromInt(Into, rule.into) orelse return error.InvalidRule;
        const fold = std.enums.fromInt(Fold, rule.fold) orelse return error.InvalidRule;
        // A sum of texts and counts joined like texts are nobody's intention.
        if (fold == if (into.isCount()) Fold.append else Fold.add) return error.InvalidRule;
        return .{
            .condition = if (rule.when_path.length == 0) null else .{
                .path = try builder.add(rule.when_path.of(text)),
                .wanted = try .parse(arena, rule.when_value.of(text)),
            },
            .take = try builder.add(rule.take.of(text)),
            .index = if (rule.index.length == 0) null else try builder.add(rule.index.of(text)),
            .into = into,
            .fold = fold,
        };
    }

    const ApplyError = error{ OutOfMemory, BadJson };

    fn apply(rule: *const CompiledRule, search: *const Search, reply: *Reply, lifetime: Lifetime) ApplyError!void {
        const star_count = search.paths.starCount(rule.take);
        var conditions: Partners = if (rule.condition) |it| .init(search, it.path, star_count) else undefined;
        var numbers: Partners = if (rule.index) |path| .init(search, path, star_count) else undefined;
        var at = search.first(rule.take);
        while (at != none) {
            const finding = &search.findings.items[at];
            at = finding.next;
            if (rule.condition) |it| if (!conditions.hold(finding, it.wanted)) continue;
            var number: u32 = 0;
            if (rule.into.isTool()) {
                const position = if (star_count > 0) finding.positions[star_count - 1] else 0;
                const given = if (rule.index != null) numbers.find(finding, .anything) else null;
                number = numberOf(given) orelse reply.toolNumber(position, rule.fold);
            }
            try reply.store(rule.into, rule.fold, number, finding.raw, lifetime);
        }
    }

    fn numberOf(raw: ?[]const u8) ?u32 {
        return std.math.cast(u32, reader_file.integer(raw orelse return null) orelse return null);
    }
};

pub const Program = struct {
    rules: []const CompiledRule,
    paths: paths_file.Paths,
    substance_wanted: bool,
    depth_max: u32 = reader_file.depth_max_default,

    /// `text` holds the paths and values the rules point into; like `arena` it must live as long as the program.
    pub fn compile(arena: Allocator, rules: []const Rule, text: []const u8) error{ OutOfMemory, InvalidRule }!Program {
        var builder: paths_file.Builder = .{ .arena = arena };
        const compiled = try arena.alloc(CompiledRule, rules.len);
        var substance_wanted = false;
        for (compiled, rules) |*to, *rule| {
            to.* = CompiledRule.compile(arena, &builder, rule, text) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.TooComplex, error.InvalidRule => return error.InvalidRule,
            };
            if (to.into.isSubstance()) substance_wanted = true;
        }
        const paths = builder.finish() catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.TooComplex => return error.InvalidRule,
        };
        return .{ .rules = compiled, .paths = paths, .substance_wanted = substance_wanted };
    }

    /// Reads one document and folds what the rules find into the reply. After a failure the reply is to be cleared.
    pub fn feed(program: *const Program, reply: *Reply, body: []const u8, lifetime: Lifetime) error{ OutOfMemory, BadJson }!void {
        reply.beginDocument(program.substance_wanted);
        var scratch: [scratch_bytes]u8 align(@alignOf(Finding)) = undefined;
        var memory: std.heap.BufferFirstAllocator = .init(&scratch, reply.gpa);
        const byte_order_mark = "\xef\xbb\xbf";
        const document = if (std.mem.startsWith(u8, body, byte_order_mark)) body[byte_order_mark.len..] else body;
        var search: Search = try .init(&program.paths, memory.allocator(), document);
        defer search.deinit();
        search.reader.depth_left = program.depth_max;
        try search.run();
        for (program.rules) |*rule| try rule.apply(&search, reply, lifetime);
    }
};

/// The findings of one path that belong to those of another: equal positions, as far as both have stars. Both lists are
/// sorted by position, so `at` only ever moves forward.
const Partners = struct {
    search: *const Search,
    at: u32,
    common: usize,

    fn init(search: *const Search, path: PathId, star_count: u8) Partners {
        return .{ .search = search, .at = search.first(path), .common = @min(star_count, search.paths.starCount(path)) };
    }

    fn hold(partners: *Partners, finding: *const Finding, wanted: Wanted) bool {
        if (partners.find(finding, wanted) != null) return true;
        return wanted == .nothing and partners.find(finding, .anything) == null;
    }

    fn find(partners: *Partners, finding: *const Finding, wanted: Wanted) ?[]const u8 {
        const findings = partners.search.findings.items;
        const target = finding.positions[0..partners.common];
        while (partners.at != none) : (partners.at = findings[partners.at].next) {
            if (std.mem.order(u32, findings[partners.at].positions[0..partners.common], target) != .lt) break;
        }
        var at = partners.at;
        while (at != none) : (at = findings[at].next) {
            if (!std.mem.eql(u32, findings[at].positions[0..partners.common], target)) break;
            if (wanted.is(findings[at].raw)) return findings[at].raw;
        }
        return null;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// A rule in words, as dialects write it.
pub const RuleText = struct {
    when: []const u8 = "",
    is: []const u8 = "",
    take: []const u8 = "",
    index: []const u8 = "",
    into: Into,
    fold: Fold = .set,
};

/// For tests: the rules as they arrive through the C ABI.
pub fn compileText(arena: Allocator, rows: []const RuleText) error{ OutOfMemory, InvalidRule }!Program {
    var text: std.ArrayList(u8) = .empty;
    const rules = try arena.alloc(Rule, rows.len);
    for (rows, rules) |row, *rule| {
        var spans: [4]Span = undefined;
        for ([_][]const u8{ row.when, row.is, row.take, row.index }, &spans) |from, *span| {
            span.* = .{ .offset = @intCast(text.items.len), .length = @intCast(from.len) };
            try text.appendSlice(arena, from);
        }
        rule.* = .{
            .when_path = spans[0],
            .when_value = spans[1],
            .take = spans[2],
            .index = spans[3],
            .into = @backingInt(row.into),
            .fold = @backingInt(row.fold),
        };
    }
    return .compile(arena, rules, text.items);
}

const Case = struct {
    arena: std.heap.ArenaAllocator,
    program: Program,
    reply: Reply,

    fn init(rows: []const RuleText) !Case {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        errdefer arena.deinit();
        const program = try compileText(arena.allocator(), rows);
        return .{ .arena = arena, .program = program, .reply = .init(testing.allocator) };
    }

    fn deinit(case: *Case) void {
        case.reply.deinit();
        case.arena.deinit();
    }

    fn feed(case: *Case, document: []const u8) !void {
        try case.program.feed(&case.reply, document, .ends_with_call);
    }
};

test "a condition may stand before or behind what it guards" {
    var case: Case = try .init(&.{
        .{ .when = "content.*.type", .is = "\"text\"", .take = "content.*.text", .into = .text, .fold = .append },
        .{ .when = "content.*.type", .is = "\"thinking\"", .take = "content.*.thinking", .into = .reasoning, .fold = .append },
    });
    defer case.deinit();
    try case.feed(
        \\{"content": [{"type": "text", "text": "a"}, {"thinking": "hm", "type": "thinking"}, {"type": "image", "text": "no"},
        \\ {"text": "no type"}, {"text": "b", "type": "t\u0065xt"}, 5, {"type": "text"}]}
    );
    try testing.expectEqualStrings("ab", case.reply.text.items());
    try testing.expectEqualStrings("hm", case.reply.reasoning.items());
}

test "conditions compare strings, numbers and literals by value, and mere presence without null" {
    var case: Case = try .init(&.{
        .{ .when = "n", .is = "1.50", .take = "a", .into = .text, .fold = .append },
        .{ .when = "b", .is = "true", .take = "a", .into = .reasoning, .fold = .append },
        .{ .when = "z", .is = "null", .take = "a", .into = .finish, .fold = .append },
        .{ .when = "z", .take = "a", .into = .model, .fold = .append },
    });
    defer case.deinit();
    try case.feed("{\"a\": 1, \"n\": 15e-1, \"b\": true, \"z\": null}");
    try case.feed("{\"a\": 2, \"n\": \"1.50\", \"b\": \"true\", \"z\": false}");
    try case.feed("{\"a\": 3}");
    try testing.expectEqualStrings("1", case.reply.text.items());
    try testing.expectEqualStrings("1", case.reply.reasoning.items());
    try testing.expectEqualStrings("13", case.reply.finish.items()); // absent is as good as null
    try testing.expectEqualStrings("2", case.reply.model.items());
}

test "stars of one rule stand for the same positions, however many each path has" {
    var case: Case = try .init(&.{
        .{ .when = "a.*.on", .is = "true", .take = "a.*.b.*.x", .into = .text, .fold = .append },
        .{ .when = "a.*.b.*.x", .is = "\"4\"", .take = "a.*.name", .into = .reasoning, .fold = .append },
        .{ .when = "a.*.b.*.x", .is = "\"1\"", .take = "title", .into = .model, .fold = .append },
        .{ .when = "title", .take = "a.*.b.1.x", .into = .finish, .fold = .append },
    });
    defer case.deinit();
    try case.feed(
        \\{"a": [{"on": true, "b": [{"x": "1"}, {"x": "2"}], "name": "first"}, {"b": [{"x": "3"}], "on": false},
        \\ {"name": "third", "b": [{}, {"x": "4"}, {"x": "1"}], "on": true}], "title": "t"}
    );
    try testing.expectEqualStrings("1241", case.reply.text.items());
    try testing.expectEqualStrings("third", case.reply.reasoning.items());
    try testing.expectEqualStrings("t", case.reply.model.items()); // once, though two elements match
    try testing.expectEqualStrings("24", case.reply.finish.items());
}

test "tool calls are numbered by their index, or by where they stand" {
    var case: Case = try .init(&.{
        .{ .take = "calls.*.name", .index = "calls.*.index", .into = .tool_name },
        .{ .take = "calls.*.arguments", .index = "calls.*.index", .into = .tool_arguments, .fold = .append },
    });
    defer case.deinit();
    try case.feed("{\"calls\": [{\"index\": 1, \"name\": \"b\", \"arguments\": \"{\"}, {\"index\": 0, \"name\": \"a\"}]}");
    try case.feed("{\"calls\": [{\"arguments\": \"}\", \"index\": 1}, {\"index\": 0, \"arguments\": {\"k\": 1}}]}");
    try testing.expectEqual(2, case.reply.toolCalls().len);
    for (case.reply.toolCalls(), [_][]const u8{ "a", "b" }, [_][]const u8{ "{\"k\": 1}", "{}" }) |call, name, arguments| {
        try testing.expectEqualStrings(name, call.name.items());
        try testing.expectEqualStrings(arguments, call.arguments.items());
    }
    case.reply.clear();
    try case.feed("{\"calls\": [{\"name\": \"x\"}, {}, {\"name\": \"y\", \"index\": null}]}");
    try testing.expectEqual(2, case.reply.toolCalls().len);
    try testing.expectEqualStrings("y", case.reply.toolCalls()[1].name.items());
}

test "tool calls without a number follow those of earlier events, pieces continue the last one" {
    var case: Case = try .init(&.{
        .{ .take = "calls.*.name", .index = "calls.*.index", .into = .tool_name },
        .{ .take = "calls.*.arguments", .index = "calls.*.index", .into = .tool_arguments, .fold = .append },
    });
    defer case.deinit();
    try case.feed("{\"calls\": [{\"name\": \"a\", \"arguments\": \"1\"}, {\"name\": \"b\", \"arguments\": \"2\"}]}");
    try case.feed("{\"calls\": [{\"name\": \"c\", \"arguments\": \"3\"}]}");
    try case.feed("{\"calls\": [{\"arguments\": \"4\"}]}");
    try testing.expectEqual(3, case.reply.toolCalls().len);
    for (case.reply.toolCalls(), [_][]const u8{ "a", "b", "c" }, [_][]const u8{ "1", "2", "34" }) |call, name, arguments| {
        try testing.expectEqualStrings(name, call.name.items());
        try testing.expectEqualStrings(arguments, call.arguments.items());
    }
}

test "rules are applied in their order, the first to find something wins" {
    var case: Case = try .init(&.{
        .{ .take = "error.message", .into = .error_message },
        .{ .take = "message", .into = .error_message },
        .{ .take = "error", .into = .error_message },
    });
    defer case.deinit();
    try case.feed("{\"message\": \"outer\", \"error\": {\"message\": \"inner\"}}");
    try testing.expectEqualStrings("inner", case.reply.error_message.items());
    case.reply.clear();
    try case.feed("{\"error\": \"just words\", \"message\": null}");
    try testing.expectEqualStrings("just words", case.reply.error_message.items());
}

test "an empty path is the document, and of equal keys the first counts" {
    var case: Case = try .init(&.{
        .{ .into = .value },
        .{ .take = "a", .into = .text, .fold = .append },
        .{ .take = "a.0", .into = .reasoning, .fold = .append },
        .{ .take = "a.*", .into = .finish, .fold = .append },
    });
    defer case.deinit();
    const document = "{\"a\": [1, 2], \"\\u0061\": [3]}";
    try case.feed("\xef\xbb\xbf " ++ document ++ "\n");
    try testing.expectEqualStrings(document, case.reply.value.items());
    try testing.expectEqualStrings("[1, 2]", case.reply.text.items());
    try testing.expectEqualStrings("1", case.reply.reasoning.items());
    try testing.expectEqualStrings("12", case.reply.finish.items());
}

test "a document that ends in nonsense changes nothing" {
    var case: Case = try .init(&.{.{ .take = "a", .into = .text, .fold = .append }});
    defer case.deinit();
    for ([_][]const u8{ "", "{\"a\": \"x\"", "{\"a\": \"x\"} y", "{\"a\": \"x\", \"b\": [1,]}", "[DONE]", "{\"a\": \"\xff\"}" }) |bad| {
        try testing.expectError(error.BadJson, case.feed(bad));
    }
    try testing.expectEqualStrings("", case.reply.text.items());
    try testing.expect(case.reply.isEmpty());
}

test "what is said about a reply is not the reply" {
    var case: Case = try .init(&.{ .{ .take = "text", .into = .text }, .{ .take = "model", .into = .model } });
    defer case.deinit();
    try case.feed("{\"model\": \"m\", \"text\": null}");
    try testing.expect(case.reply.isEmpty());
    try case.feed("{\"model\": \"m\", \"text\": \"\"}");
    try testing.expect(!case.reply.isEmpty());
    var about: Case = try .init(&.{.{ .take = "model", .into = .model }});
    defer about.deinit();
    try about.feed("{\"model\": \"m\"}");
    try testing.expect(!about.reply.isEmpty());
}

test "rules that mean nothing are refused" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    for ([_]RuleText{
        .{ .into = .text, .fold = .add },
        .{ .into = .total_tokens, .fold = .append },
        .{ .into = .text, .when = "a", .is = "bare words" },
        .{ .into = .text, .when = "a", .is = "[1]" },
        .{ .into = .text, .take = "*.*.*.*.*" },
        .{ .into = .text, .take = "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.a.b.c.d.e.f.g" },
    }) |row| try testing.expectError(error.InvalidRule, compileText(arena.allocator(), &.{row}));
    try testing.expectError(error.InvalidRule, Program.compile(arena.allocator(), &.{.{ .into = 99, .fold = 0 }}, ""));
    try testing.expectError(error.InvalidRule, Program.compile(arena.allocator(), &.{.{ .into = 0, .fold = 9 }}, ""));
}

test "every allocation of compiling and reading may fail" {
    const run = struct {
        fn all(gpa: Allocator, document: []const u8) !void {
            var arena: std.heap.ArenaAllocator = .init(gpa);
            defer arena.deinit();
            const program = try compileText(arena.allocator(), &.{
                .{ .when = "a.*.t", .is = "\"\\u0074\"", .take = "a.*.x", .into = .text, .fold = .append },
                .{ .take = "a.0.x", .into = .id },
                .{ .take = "a.*.x", .into = .tool_arguments, .fold = .append },
            });
            var reply: Reply = .init(gpa);
            defer reply.deinit();
            for ([_]Lifetime{ .ends_with_call, .outlives_reply }) |lifetime| try program.feed(&reply, document, lifetime);
        }
    };
    var document: std.ArrayList(u8) = .empty;
    defer document.deinit(testing.allocator);
    try document.appendSlice(testing.allocator, "{\"a\": [");
    for (0..40) |_| try document.appendSlice(testing.allocator, "{\"x\": \"\\n\", \"t\": \"t\"}, "); // more than `scratch_bytes`
    try document.appendSlice(testing.allocator, "{}]}");
    try testing.checkAllAllocationFailures(testing.allocator, run.all, .{document.items});
}
