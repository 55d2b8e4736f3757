//! The plan: a workflow frozen into flat arrays, shared read-only by any number of runs and threads.
//!
//! Checked once, here: indices in range, no cycle. Computed once, here: successor lists, how many arrivals a node
//! waits for, which edges decide whether a node runs at all (below), and the linear segments of callbacks.
//! It knows nothing of time, threads or sockets; its only shared state is the reference count.
//!
//! ## Which edges decide
//!
//! A condition follows some of its successors. What hangs below a way not taken must not run, yet where ways meet
//! again the join must. Two kinds of edges lead into a node: those that come from a condition or from a node that is
//! itself only run conditionally ("conditional" edges), and the rest, which only carry data. A node with conditional
//! edges runs when at least one *deciding* edge is live. Deciding are
//!   - every edge straight from a condition;
//!   - a conditional edge u -> v, unless u is an ancestor of another source of v's conditional edges.
//! The exception matters where a later condition reuses an early join: `route -> (a|b) -> join -> check -> (k|l)` with k
//! also reading `join`. join is conditional and live, but it is an ancestor of `check`, and `check` chose l: k is skipped.

const std = @import("std");
const sync = @import("../base/sync.zig");
const template = @import("template.zig");
const extract = @import("../json/extract.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;

pub const Span = template.Span;
pub const Range = template.Range;
pub const none = std.math.maxInt(u32);

pub const NodeKind = enum(u32) { callback = 0, template = 1, request = 2, delay = 3 };

pub const NodeFlags = packed struct(u32) { condition: bool = false, loop: bool = false, _: u30 = 0 };

/// C: gb_node
pub const Node = extern struct { kind: u32, flags: NodeFlags = .{}, body: u32 = 0, reserved: u32 = 0, delay_ns: u64 = 0 };

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

/// C: gb_cycle
pub const Cycle = extern struct { count: u32 = 0, nodes: [64]u32 = @splat(0) };

/// An edge as its source sees it.
pub const Successor = packed struct(u32) {
    node: u31,
    /// This edge takes part in deciding whether `node` runs.
    deciding: bool,
};

pub const Error = error{ OutOfMemory, InvalidArgument, Cycle };

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
            .callback, .delay => {},
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

        const graph = try Graph.build(arena, nodes, edges, cycle);
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

const Graph = struct {
    successor_first: []u32,
    successors: []Successor,
    predecessor_count: []u32,
    deciding_count: []u32,
    roots: []u32,
    continuation: []u32,

    fn build(arena: Allocator, nodes: []const Node, edges: []const [2]u32, cycle: *Cycle) Error!Graph {
        const count: u32 = @intCast(nodes.len);
        if (count > std.math.maxInt(u31)) return error.InvalidArgument;
        const forward = try Adjacency.build(arena, count, edges, 0);
        const backward = try Adjacency.build(arena, count, edges, 1);

        const predecessor_count = try arena.alloc(u32, count);
        var root_count: usize = 0;
        for (predecessor_count, 0..) |*n, node| {
            n.* = @intCast(backward.of(@intCast(node)).len);
            root_count += @intFromBool(n.* == 0);
        }
        const roots = try arena.alloc(u32, root_count);
        var at: usize = 0;
        for (predecessor_count, 0..) |n, node| if (n == 0) {
            roots[at] = @intCast(node);
            at += 1;
        };

        const order = try topologicalOrder(arena, forward, predecessor_count, roots);
        if (order.len < count) {
            nameCycle(backward, order, try arena.alloc(bool, count), try arena.alloc(u32, count), cycle);
            return error.Cycle;
        }

        const successors = try arena.alloc(Successor, edges.len);
        for (successors, forward.targets) |*successor, target| successor.* = .{ .node = @intCast(target), .deciding = false };
        const deciding_count = try arena.alloc(u32, count);
        @memset(deciding_count, 0);
        try markDeciding(arena, nodes, order, forward, backward, successors, deciding_count);

        const continuation = try arena.alloc(u32, count);
        for (continuation, 0..) |*next, node| next.* = continuationOf(nodes, forward, backward, @intCast(node));
        return .{
            .successor_first = forward.first,
            .successors = successors,
            .predecessor_count = predecessor_count,
            .deciding_count = deciding_count,
            .roots = roots,
            .continuation = continuation,
        };
    }
};

/// Neighbours by node: targets[first[n]..first[n+1]], in the order in which the edges were given.
const Adjacency = struct {
    first: []u32,
    targets: []u32,

    fn build(arena: Allocator, count: u32, edges: []const [2]u32, comptime key: u1) Error!Adjacency {
        const first = try arena.alloc(u32, count + 1);
        @memset(first, 0);
        for (edges) |edge| first[edge[key] + 1] += 1;
        for (1..count + 1) |n| first[n] += first[n - 1];
        const targets = try arena.alloc(u32, edges.len);
        const next = try arena.dupe(u32, first[0..count]);
        for (edges) |edge| {
            targets[next[edge[key]]] = edge[1 - @as(usize, key)];
            next[edge[key]] += 1;
        }
        return .{ .first = first, .targets = targets };
    }

    fn of(a: Adjacency, node: u32) []const u32 {
        return a.targets[a.first[node]..a.first[node + 1]];
    }
};

/// Kahn, "Topological sorting of large networks" (1962). Shorter than the graph when there is a cycle.
fn topologicalOrder(arena: Allocator, forward: Adjacency, predecessor_count: []const u32, roots: []const u32) Error![]u32 {
    const pending = try arena.dupe(u32, predecessor_count);
    const order = try arena.alloc(u32, pending.len);
    @memcpy(order[0..roots.len], roots);
    var end = roots.len;
    var at: usize = 0;
    while (at < end) : (at += 1) for (forward.of(order[at])) |target| {
        pending[target] -= 1;
        if (pending[target] != 0) continue;
        order[end] = target;
        end += 1;
    };
    return order[0..end];
}

/// Every node that was left over has a left-over predecessor: walking back from one of them meets itself.
fn nameCycle(backward: Adjacency, order: []const u32, ordered: []bool, position: []u32, cycle: *Cycle) void {
    @memset(ordered, false);
    for (order) |node| ordered[node] = true;
    @memset(position, none);
    var node: u32 = @intCast(std.mem.indexOfScalar(bool, ordered, false).?);
    var steps: u32 = 0;
    while (position[node] == none) : (steps += 1) {
        position[node] = steps;
        node = for (backward.of(node)) |source| {
            if (!ordered[source]) break source;
        } else unreachable;
    }
    // `node` is on the cycle; walking back once more lists it against the edges, so it is filled from the end.
    const length = steps - position[node];
    cycle.count = @min(length, cycle.nodes.len);
    var left = length;
    while (left > 0) : (left -= 1) {
        const place = if (left == length) 0 else left;
        if (place < cycle.nodes.len) cycle.nodes[place] = node;
        node = for (backward.of(node)) |source| {
            if (!ordered[source] and position[source] != none and onCycle(position, source, length, steps)) break source;
        } else unreachable;
    }
}

fn onCycle(position: []const u32, node: u32, length: u32, steps: u32) bool {
    return position[node] >= steps - length;
}

/// See "Which edges decide" at the top.
fn markDeciding(
    arena: Allocator,
    nodes: []const Node,
    order: []const u32,
    forward: Adjacency,
    backward: Adjacency,
    successors: []Successor,
    deciding_count: []u32,
) Error!void {
    for (nodes) |node| {
        if (node.flags.condition) break;
    } else return;

    const conditional = try arena.alloc(bool, nodes.len);
    for (order) |node| conditional[node] = for (backward.of(node)) |source| {
        if (nodes[source].flags.condition or conditional[source]) break true;
    } else false;

    // One backward search per node with several conditional edges; `seen` holds the number of the search.
    const seen = try arena.alloc(u32, nodes.len);
    @memset(seen, none);
    var stack: std.ArrayList(u32) = .empty;
    for (order) |node| {
        if (!conditional[node]) continue;
        var conditional_edges: usize = 0;
        for (backward.of(node)) |source| conditional_edges += @intFromBool(nodes[source].flags.condition or conditional[source]);
        if (conditional_edges > 1) for (backward.of(node)) |source| {
            if (nodes[source].flags.condition or conditional[source]) try stack.append(arena, source);
        };
        while (stack.pop()) |from| for (backward.of(from)) |source| {
            if (seen[source] == node or !(nodes[source].flags.condition or conditional[source])) continue;
            seen[source] = node;
            try stack.append(arena, source);
        };
        for (backward.of(node)) |source| {
            const decides = nodes[source].flags.condition or (conditional[source] and seen[source] != node);
            if (!decides) continue;
            for (forward.first[source]..forward.first[source + 1]) |edge| {
                if (successors[edge].node != node or successors[edge].deciding) continue;
                successors[edge].deciding = true;
                deciding_count[node] += 1;
            }
        }
    }
}

/// Two callbacks in a row that nothing else joins or leaves. Conditions choose, loop callbacks live on another thread.
fn continuationOf(nodes: []const Node, forward: Adjacency, backward: Adjacency, node: u32) u32 {
    const ordinary = struct {
        fn callback(n: Node) bool {
            return n.kind == @backingInt(NodeKind.callback) and !n.flags.condition and !n.flags.loop;
        }
    }.callback;
    if (!ordinary(nodes[node])) return none;
    const after = forward.of(node);
    if (after.len != 1 or backward.of(after[0]).len != 1) return none;
    return if (ordinary(nodes[after[0]])) after[0] else none;
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
