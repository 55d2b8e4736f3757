//! The plan: a workflow frozen into flat arrays, shared read-only by any number of runs and threads.
//!
//! Checked once, here: indices in range, no cycle. Computed once, here: successor lists, how many arrivals a node
//! waits for, which edges decide whether a node runs at all (below), and the linear segments of callbacks.
//! It knows nothing of time, threads or sockets; its only shared state is the reference count.

const std = @import("std");
const sync = @import("../base/sync.zig");
const template = @import("template.zig");
const topology = @import("topology.zig");
const extract = @import("../json/extract.zig");

const Allocator = std.mem.Allocator;

pub const Span = template.Span;
pub const Range = template.Range;
pub const none = topology.none;
pub const Cycle = topology.Cycle;
pub const Error = topology.Error;
pub const Node = topology.Node;
pub const NodeFlags = topology.NodeFlags;
pub const NodeKind = topology.NodeKind;
pub const Successor = topology.Successor;

/// C: gb_header
pub const Header = extern struct { name: Span, value: u32 };

pub const RequestFlags = packed struct(u32) {
    body: bool = false,
    rules_required: bool = false,
    keep_body: bool = false,
    insecure: bool = false,
    _: u28 = 0,
};

/// C: gb_request
pub const Request = extern struct {
    method: Span,
    url: u32,
    body: u32,
    headers: Range,
    rules: Range,
    flags: RequestFlags,
    connect_timeout_ms: u32,
    idle_timeout_ms: u32,
    total_timeout_ms: u32,
    attempts_max: u32,
    backoff_first_ms: u32,
    backoff_max_ms: u32,
    body_bytes_max: u64,
};

/// C: gb_bytes
pub const Bytes = extern struct {
    ptr: ?[*]const u8 = null,
    len: usize = 0,

    pub fn from(slice: []const u8) Bytes {
        return .{ .ptr = slice.ptr, .len = slice.len };
    }
    pub fn items(bytes: Bytes) []const u8 {
        return if (bytes.ptr) |ptr| ptr[0..bytes.len] else &.{};
    }
};

/// C: gb_plan_spec
pub const Spec = extern struct {
    node_count: u32 = 0,
    edge_count: u32 = 0,
    input_count: u32 = 0,
    segment_count: u32 = 0,
    template_count: u32 = 0,
    header_count: u32 = 0,
    rule_count: u32 = 0,
    request_count: u32 = 0,
    nodes: ?[*]const Node = null,
    edges: ?[*]const u32 = null,
    segments: ?[*]const template.Segment = null,
    templates: ?[*]const Range = null,
    headers: ?[*]const Header = null,
    rules: ?[*]const extract.Rule = null,
    requests: ?[*]const Request = null,
    text: Bytes = .{},
};

pub const Plan = struct {
    gpa: Allocator,
    arena: std.heap.ArenaAllocator,
    references: sync.Atomic(u32),

    nodes: []const Node,
    input_count: u32,
    successor_first: []const u32, // node_count + 1
    successors: []const Successor,
    predecessor_count: []const u32,
    /// How many deciding edges lead into a node; 0: it runs whatever conditions chose.
    deciding_count: []const u32,
    roots: []const u32,
    /// The callback that follows in the same linear segment, or `none`.
    continuation: []const u32,
    /// Nodes carried out by the core have a place in a run's array of operations; callbacks have `none`.
    operation: []const u32,
    operation_count: u32,
    callback_count: u32,

    segments: []const template.Segment,
    templates: []const Range,
    headers: []const Header,
    requests: []const Request,
    programs: []const extract.Program,
    text: []const u8,

    /// A hint that outlives runs: nanoseconds a callback of this plan took lately.
    callback_ns: sync.Atomic(u64) = .init(0),

    pub fn create(gpa: Allocator, spec: *const Spec, cycle: *Cycle) Error!*Plan {
        const plan = try gpa.create(Plan);
        errdefer gpa.destroy(plan);
        var arena_state: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena_state.deinit();
        const arena = arena_state.allocator();

        const text = try arena.dupe(u8, spec.text.items());
        const nodes = try dupe(Node, arena, spec.nodes, spec.node_count);
        const segments = try dupe(template.Segment, arena, spec.segments, spec.segment_count);
        const templates = try dupe(Range, arena, spec.templates, spec.template_count);
        const headers = try dupe(Header, arena, spec.headers, spec.header_count);
        const requests = try dupe(Request, arena, spec.requests, spec.request_count);
        const rules = try dupe(extract.Rule, arena, spec.rules, spec.rule_count);
        const edges = try dupe([2]u32, arena, @as(?[*]const [2]u32, @ptrCast(spec.edges)), spec.edge_count);
        const values_count = std.math.add(u32, spec.node_count, spec.input_count) catch return error.InvalidArgument;

        try checkText(segments, headers, rules, requests, text.len);
        for (segments) |segment| {
            const segment_kind = std.enums.fromInt(template.SegmentKind, segment.kind) orelse return error.InvalidArgument;
            _ = std.enums.fromInt(template.Escape, segment.escape) orelse return error.InvalidArgument;
            if (segment_kind != .literal and segment.source >= values_count) return error.InvalidArgument;
        }
        for (templates) |range| if (!inside(range, segments.len)) return error.InvalidArgument;
        for (headers) |header| if (header.value >= templates.len) return error.InvalidArgument;
        for (requests) |request| {
            if (request.url >= templates.len or !inside(request.headers, headers.len) or
                !inside(request.rules, rules.len) or request.attempts_max == 0 or
                (request.flags.body and request.body >= templates.len)) return error.InvalidArgument;
        }
        for (nodes) |node| switch (std.enums.fromInt(NodeKind, node.kind) orelse return error.InvalidArgument) {
            .callback => {},
            .delay => if (node.body > values_count) return error.InvalidArgument,
            .template => if (node.body >= templates.len) return error.InvalidArgument,
            .request => if (node.body >= requests.len) return error.InvalidArgument,
        };
        for (edges) |edge| if (edge[0] >= nodes.len or edge[1] >= nodes.len) return error.InvalidArgument;

        const programs = try arena.alloc(extract.Program, requests.len);
        for (programs, requests) |*program, request| {
            const of_request = rules[request.rules.first..][0..request.rules.count];
            program.* = extract.Program.compile(arena, of_request, text) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.InvalidRule => return error.InvalidArgument,
            };
        }

        const graph = try topology.Graph.build(arena, nodes, edges, cycle);
        const operation = try arena.alloc(u32, nodes.len);
        var operation_count: u32 = 0;
        for (nodes, operation) |node, *place| {
            place.* = if (node.kind == @backingInt(NodeKind.callback)) none else operation_count;
            if (place.* != none) operation_count += 1;
        }

        plan.* = .{
            .gpa = gpa,
            .arena = arena_state,
            .references = .init(1),
            .nodes = nodes,
            .input_count = spec.input_count,
            .successor_first = graph.successor_first,
            .successors = graph.successors,
            .predecessor_count = graph.predecessor_count,
            .deciding_count = graph.deciding_count,
            .roots = graph.roots,
            .continuation = graph.continuation,
            .operation = operation,
            .operation_count = operation_count,
            .callback_count = @intCast(nodes.len - operation_count),
            .segments = segments,
            .templates = templates,
            .headers = headers,
            .requests = requests,
            .programs = programs,
            .text = text,
        };
        return plan;
    }

    pub fn retain(plan: *Plan) *Plan {
        _ = plan.references.fetchAdd(1, .monotonic);
        return plan;
    }

    /// Acquire-release: the last one out must see every other user's last read done.
    pub fn release(plan: *Plan) void {
        if (plan.references.fetchSub(1, .acq_rel) != 1) return;
        const gpa = plan.gpa;
        plan.arena.deinit();
        gpa.destroy(plan);
    }

    pub fn kind(plan: *const Plan, node: u32) NodeKind {
        return @fromBackingInt(plan.nodes[node].kind);
    }

    pub fn successorsOf(plan: *const Plan, node: u32) []const Successor {
        return plan.successors[plan.successor_first[node]..plan.successor_first[node + 1]];
    }

    pub fn template_(plan: *const Plan, index: u32) []const template.Segment {
        const range = plan.templates[index];
        return plan.segments[range.first..][0..range.count];
    }

    pub fn string(plan: *const Plan, span: Span) []const u8 {
        return plan.text[span.offset..][0..span.length];
    }
};

fn dupe(comptime T: type, arena: Allocator, ptr: ?[*]const T, count: u32) Error![]T {
    if (count == 0) return &.{};
    return arena.dupe(T, (ptr orelse return error.InvalidArgument)[0..count]);
}

fn inside(range: Range, len: usize) bool {
    return @as(u64, range.first) + range.count <= len;
}

fn checkText(
    segments: []const template.Segment,
    headers: []const Header,
    rules: []const extract.Rule,
    requests: []const Request,
    len: usize,
) Error!void {
    const check = struct {
        fn span(s: Span, text_len: usize) Error!void {
            if (@as(u64, s.offset) + s.length > text_len) return error.InvalidArgument;
        }
    };
    for (segments) |segment| try check.span(segment.text, len);
    for (headers) |header| try check.span(header.name, len);
    for (requests) |request| try check.span(request.method, len);
    for (rules) |rule| {
        try check.span(rule.when_path, len);
        try check.span(rule.when_value, len);
        try check.span(rule.take, len);
        try check.span(rule.index, len);
    }
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

pub const test_callback: Node = .{ .kind = @backingInt(NodeKind.callback) };
pub const test_condition: Node = .{ .kind = @backingInt(NodeKind.callback), .flags = .{ .condition = true } };

pub fn testPlan(gpa: Allocator, nodes: []const Node, edges: []const [2]u32, cycle: *Cycle) Error!*Plan {
    return Plan.create(gpa, &.{
        .node_count = @intCast(nodes.len),
        .edge_count = @intCast(edges.len),
        .nodes = nodes.ptr,
        .edges = @ptrCast(edges.ptr),
    }, cycle);
}

test "a cycle is named along its edges" {
    var cycle: Cycle = .{};
    const nodes: [5]Node = @splat(test_callback);
    const edges = [_][2]u32{ .{ 0, 1 }, .{ 1, 2 }, .{ 2, 3 }, .{ 3, 1 }, .{ 3, 4 } };
    try testing.expectError(error.Cycle, testPlan(testing.allocator, &nodes, &edges, &cycle));
    try testing.expectEqual(3, cycle.count);
    for (0..3) |i| {
        const from = cycle.nodes[i];
        const to = cycle.nodes[(i + 1) % 3];
        try testing.expect(for (edges) |edge| {
            if (edge[0] == from and edge[1] == to) break true;
        } else false);
    }
}

test "a node that feeds itself is a cycle of one" {
    var cycle: Cycle = .{};
    try testing.expectError(error.Cycle, testPlan(testing.allocator, &.{test_callback}, &.{.{ 0, 0 }}, &cycle));
    try testing.expectEqual(1, cycle.count);
}

test "indices out of range are refused" {
    var cycle: Cycle = .{};
    try testing.expectError(error.InvalidArgument, testPlan(testing.allocator, &.{test_callback}, &.{.{ 0, 1 }}, &cycle));
    const node: Node = .{ .kind = @backingInt(NodeKind.template), .body = 0 };
    try testing.expectError(error.InvalidArgument, testPlan(testing.allocator, &.{node}, &.{}, &cycle));
    const unknown: Node = .{ .kind = 99 };
    try testing.expectError(error.InvalidArgument, testPlan(testing.allocator, &.{unknown}, &.{}, &cycle));
}

test "a chain of callbacks is one segment, a fork ends it" {
    var cycle: Cycle = .{};
    const nodes: [5]Node = @splat(test_callback);
    const plan = try testPlan(testing.allocator, &nodes, &.{ .{ 0, 1 }, .{ 1, 2 }, .{ 2, 3 }, .{ 2, 4 } }, &cycle);
    defer plan.release();
    try testing.expectEqualSlices(u32, &.{ 1, 2, none, none, none }, plan.continuation);
    try testing.expectEqualSlices(u32, &.{0}, plan.roots);
}

test "data that a branch reads does not decide whether it runs" {
    // 0 load, 1 route (condition), 2 refund reads load; 1 -> 2.
    var cycle: Cycle = .{};
    const nodes = [_]Node{ test_callback, test_condition, test_callback };
    const plan = try testPlan(testing.allocator, &nodes, &.{ .{ 0, 1 }, .{ 0, 2 }, .{ 1, 2 } }, &cycle);
    defer plan.release();
    try testing.expectEqualSlices(u32, &.{ 0, 0, 1 }, plan.deciding_count);
}

test "an early join read below a later condition does not decide" {
    // 0 route -> 1|2 -> 3 join -> 4 check (condition) -> 5|6, and 5 reads 3; 7 hangs below 5 and reads 3 as well.
    var cycle: Cycle = .{};
    var nodes: [8]Node = @splat(test_callback);
    nodes[0] = test_condition;
    nodes[4] = test_condition;
    const edges = [_][2]u32{
        .{ 0, 1 }, .{ 0, 2 }, .{ 1, 3 }, .{ 2, 3 }, .{ 3, 4 }, .{ 4, 5 }, .{ 4, 6 }, .{ 3, 5 }, .{ 5, 7 }, .{ 3, 7 },
    };
    const plan = try testPlan(testing.allocator, &nodes, &edges, &cycle);
    defer plan.release();
    try testing.expectEqualSlices(u32, &.{ 0, 1, 1, 2, 1, 1, 1, 1 }, plan.deciding_count);
    for (plan.successorsOf(3)) |edge| try testing.expectEqual(edge.node == 4, edge.deciding);
}

test "every allocation of a plan may fail" {
    const run = struct {
        fn create(gpa: Allocator) !void {
            var cycle: Cycle = .{};
            var nodes: [4]Node = @splat(test_callback);
            nodes[0] = test_condition;
            const plan = try testPlan(gpa, &nodes, &.{ .{ 0, 1 }, .{ 0, 2 }, .{ 1, 3 }, .{ 2, 3 } }, &cycle);
            plan.release();
        }
    };
    try testing.checkAllAllocationFailures(testing.allocator, run.create, .{});
}
