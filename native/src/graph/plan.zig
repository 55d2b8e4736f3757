//! The plan: a workflow frozen into flat arrays, shared read-only by any number of runs and threads.
//!
//! Checked once, here: indices in range, no cycle. Computed once, in topology.zig: successor lists, how many arrivals a node
//! waits for, which edges decide whether a node runs at all, and the linear segments of callbacks.
//! It knows nothing of threads or sockets. What its runs share and change is the reference count and what they have learned:
//! how long nodes take, and from that their ranks (pace.zig).

const std = @import("std");
const sync = @import("../base/sync.zig");
const pace_file = @import("pace.zig");
const predicate = @import("predicate.zig");
const request_file = @import("request.zig");
const retry = @import("retry.zig");
const route_file = @import("route.zig");
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
const Route = @import("../base/route.zig").Route;
pub const NodeFlags = topology.NodeFlags;
pub const NodeKind = topology.NodeKind;
pub const Join = topology.Join;
pub const Successor = topology.Successor;

pub const Header = request_file.Header;
pub const RequestFlags = request_file.RequestFlags;
pub const Request = request_file.Request;
pub const Stream = request_file.Stream;
pub const Admission = request_file.Admission;

/// C: gb_native_kind
pub const NativeKind = enum(u32) { void = 0, numbers = 1, bytes = 2 };

/// C: gb_native
pub const Native = extern struct {
    function: ?*const anyopaque,
    kind: u32,
    argument_count: u32,
    arguments: [8]u32,
    out_capacity: u64,
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
    native_count: u32 = 0,
    predicate_count: u32 = 0,
    retry_count: u32 = 0,
    route_count: u32 = 0,
    nodes: ?[*]const Node = null,
    edges: ?[*]const u32 = null,
    edge_rules: ?[*]const u32 = null,
    segments: ?[*]const template.Segment = null,
    templates: ?[*]const Range = null,
    headers: ?[*]const Header = null,
    rules: ?[*]const extract.Rule = null,
    requests: ?[*]const Request = null,
    natives: ?[*]const Native = null,
    predicates: ?[*]const predicate.Predicate = null,
    retries: ?[*]const retry.Retry = null,
    routes: ?[*]const route_file.Spec = null,
    text: Bytes = .{},
    admissions: ?[*]const Admission = null,
    admission_count: u32 = 0,
    reserved: u32 = 0,
};

const large = 1 << 16;

pub const Plan = struct {
    gpa: Allocator,
    arena: std.heap.ArenaAllocator,
    references: sync.Atomic(u32),

    nodes: []const Node,
    input_count: u32,
    successor_first: []const u32, // node_count + 1
    successors: []const Successor,
    /// Of the edges in `successors`: 0, or the predicate + 1 that must hold. Empty where no edge has one.
    rules: []const u32,
    /// As `successors`, the other way round; empty where nothing joins by "any".
    predecessor_first: []const u32,
    predecessors: []const u32,
    predecessor_count: []const u32,
    /// How many deciding edges lead into a node; 0: it runs whatever conditions chose.
    deciding_count: []const u32,
    roots: []const u32,
    /// The callback that follows in the same linear segment, or `none`.
    continuation: []const u32,
    /// By node: the node it stands in for, or `none`. Empty where none does.
    stands_for: []const u32,
    /// By node, the number of its place in a run's tasks (templates, native functions) or operations (what waits: requests,
    /// delays, callbacks with a timeout, retries or runs of their own); `none` for plain callbacks.
    place: []const u32,
    task_count: u32,
    operation_count: u32,
    callback_count: u32,
    /// What kinds of callbacks there are.
    has_plain: bool,
    has_loop: bool,
    has_alone: bool,
    has_alone_loop: bool,
    /// Nodes that wait for something other than their predecessors: reports tell how long.
    has_waits: bool,
    has_limits: bool,
    /// Once its turn has come nobody but who runs it can move a template or native function: nothing joins by "any", no
    /// node has a stand-in, none waits for permits.
    tasks_are_alone: bool,

    segments: []const template.Segment,
    templates: []const Range,
    headers: []const Header,
    requests: []const Request,
    programs: []const extract.Program,
    natives: []const Native,
    predicates: []const predicate.Predicate,
    retries: []const retry.Retry,
    routes: []const Route,
    admissions: []const Admission,
    text: []const u8,
    pace: pace_file.Pace,

    /// A hint that outlives runs: nanoseconds a callback of this plan took lately.
    callback_ns: sync.Atomic(u64) = .init(0),

    pub fn create(gpa: Allocator, spec: *const Spec, cycle: *Cycle) Error!*Plan {
        const plan = try gpa.create(Plan);
        errdefer gpa.destroy(plan);
        var arena_state: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena_state.deinit();
        const arena = arena_state.allocator();
        // What a large plan needs for a moment only goes back to the system: among small things it would stay with the process.
        const is_large = spec.node_count > large or spec.edge_count > large;
        var scratch_state: std.heap.ArenaAllocator = .init(if (is_large) std.heap.page_allocator else gpa);
        defer scratch_state.deinit();
        const scratch = scratch_state.allocator();

        const text = try arena.dupe(u8, spec.text.items());
        const nodes = try dupe(Node, arena, spec.nodes, spec.node_count);
        const segments = try dupe(template.Segment, arena, spec.segments, spec.segment_count);
        const templates = try dupe(Range, arena, spec.templates, spec.template_count);
        const headers = try dupe(Header, arena, spec.headers, spec.header_count);
        const requests = try dupe(Request, arena, spec.requests, spec.request_count);
        const rules = try dupe(extract.Rule, arena, spec.rules, spec.rule_count);
        const natives = try dupe(Native, arena, spec.natives, spec.native_count);
        const predicates = try dupe(predicate.Predicate, arena, spec.predicates, spec.predicate_count);
        const retries = try dupe(retry.Retry, arena, spec.retries, spec.retry_count);
        const routes = try arena.alloc(Route, spec.route_count);
        for (routes, try given(route_file.Spec, spec.routes, spec.route_count)) |*to, *it| to.* = try it.read(arena, text);
        const admissions = try dupe(Admission, arena, spec.admissions, spec.admission_count);
        const edges = try given([2]u32, @as(?[*]const [2]u32, @ptrCast(spec.edges)), spec.edge_count);
        const edge_rules: []const u32 = if (spec.edge_rules) |ptr| ptr[0..spec.edge_count] else &.{};
        const values_count = std.math.add(u32, spec.node_count, spec.input_count) catch return error.InvalidArgument;

        try checkText(segments, headers, rules, requests, predicates, text.len);
        for (segments) |segment| {
            const segment_kind = std.enums.fromInt(template.SegmentKind, segment.kind) orelse return error.InvalidArgument;
            _ = std.enums.fromInt(template.Escape, segment.escape) orelse return error.InvalidArgument;
            if (segment_kind != .literal and segment.source >= values_count) return error.InvalidArgument;
        }
        for (templates) |range| if (!inside(range, segments.len)) return error.InvalidArgument;
        for (headers) |header| if (header.value >= templates.len) return error.InvalidArgument;
        for (requests) |*request| {
            if (request.url >= templates.len or !inside(request.headers, headers.len) or
                !inside(request.rules, rules.len) or !request.retry.isSound() or
                (request.flags.body and request.body >= templates.len) or request.route > routes.len or
                request.admission > admissions.len) return error.InvalidArgument;
            _ = std.enums.fromInt(Stream, request.stream) orelse return error.InvalidArgument;
        }
        for (admissions) |*it| if (@as(u64, it.key.offset) + it.key.length > text.len) return error.InvalidArgument;
        for (retries) |*it| if (!it.isSound()) return error.InvalidArgument;
        for (predicates) |*it| if (!it.isSound(text)) return error.InvalidArgument;
        for (natives) |*it| try checkNative(it, values_count);
        for (edge_rules) |rule| if (rule > predicates.len) return error.InvalidArgument;
        for (edges) |edge| if (edge[0] >= nodes.len or edge[1] >= nodes.len) return error.InvalidArgument;

        const programs = try arena.alloc(extract.Program, requests.len);
        for (programs, requests) |*program, request| {
            const of_request = rules[request.rules.first..][0..request.rules.count];
            program.* = extract.Program.compile(arena, of_request, text) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.InvalidRule => return error.InvalidArgument,
            };
            if (request.json_depth_max != 0) program.depth_max = @min(request.json_depth_max, extract.depth_most);
        }

        plan.* = .{
            .gpa = gpa,
            .arena = undefined, // below: it is still growing
            .references = .init(1),
            .nodes = nodes,
            .input_count = spec.input_count,
            .successor_first = undefined,
            .successors = undefined,
            .rules = undefined,
            .predecessor_first = undefined,
            .predecessors = undefined,
            .predecessor_count = undefined,
            .deciding_count = undefined,
            .roots = undefined,
            .continuation = undefined,
            .stands_for = &.{},
            .place = undefined,
            .task_count = 0,
            .operation_count = 0,
            .callback_count = 0,
            .has_plain = false,
            .has_loop = false,
            .has_alone = false,
            .has_alone_loop = false,
            .has_waits = false,
            .has_limits = false,
            .tasks_are_alone = false,
            .segments = segments,
            .templates = templates,
            .headers = headers,
            .requests = requests,
            .programs = programs,
            .natives = natives,
            .predicates = predicates,
            .retries = retries,
            .routes = routes,
            .admissions = admissions,
            .text = text,
            .pace = undefined,
        };
        try plan.placeNodes(arena, values_count);
        const graph = try topology.Graph.build(arena, scratch, nodes, edges, edge_rules, cycle);
        plan.successor_first = graph.successor_first;
        plan.successors = graph.successors;
        plan.rules = graph.rules;
        plan.predecessor_first = graph.predecessor_first;
        plan.predecessors = graph.predecessors;
        plan.predecessor_count = graph.predecessor_count;
        plan.deciding_count = graph.deciding_count;
        plan.roots = graph.roots;
        plan.continuation = graph.continuation;
        plan.pace = try .init(arena, gpa, graph.order, graph.successor_first, graph.successors);
        plan.arena = arena_state;
        return plan;
    }

    /// Checks the nodes and finds out what they need of a run.
    fn placeNodes(plan: *Plan, arena: Allocator, values_count: u32) Error!void {
        const nodes = plan.nodes;
        const place = try arena.alloc(u32, nodes.len);
        var has_stand_ins = false;
        var has_any = false;
        for (nodes) |*node| has_any = has_any or node.join == @backingInt(Join.any);
        for (nodes, place) |*node, *it| {
            const kind_ = std.enums.fromInt(NodeKind, node.kind) orelse return error.InvalidArgument;
            _ = std.enums.fromInt(Join, node.join) orelse return error.InvalidArgument;
            switch (kind_) {
                .callback => {},
                .delay => if (node.body > values_count) return error.InvalidArgument,
                .template => if (node.body >= plan.templates.len) return error.InvalidArgument,
                .request => if (node.body >= plan.requests.len) return error.InvalidArgument,
                .native => if (node.body >= plan.natives.len) return error.InvalidArgument,
            }
            if (node.retry > plan.retries.len or node.stand_in > nodes.len) return error.InvalidArgument;
            if (kind_ != .callback and (node.retry != 0 or node.timeout_ns != 0)) return error.InvalidArgument;
            has_stand_ins = has_stand_ins or node.stand_in != 0;
            plan.has_limits = plan.has_limits or node.limits != 0;
            plan.has_waits = plan.has_waits or node.limits != 0 or node.retry != 0;
            const waits = switch (kind_) {
                // One on an event loop may be cancelled there, because a join of kind "any" does not wait for it.
                .callback => node.retry != 0 or node.timeout_ns != 0 or node.flags.composite or (node.flags.loop and has_any),
                .request, .delay => true,
                .template, .native => false,
            };
            if (kind_ == .callback) {
                plan.callback_count += 1;
                const kind_of = if (isAlone(node))
                    (if (node.flags.loop) &plan.has_alone_loop else &plan.has_alone)
                else if (node.flags.loop) &plan.has_loop else &plan.has_plain;
                kind_of.* = true;
            }
            if (kind_ == .template or kind_ == .native) {
                it.* = plan.task_count;
                plan.task_count += 1;
            } else if (waits) {
                it.* = plan.operation_count;
                plan.operation_count += 1;
            } else it.* = none;
        }
        plan.place = place;
        plan.tasks_are_alone = !has_any and !has_stand_ins and !plan.has_limits;
        if (!has_stand_ins) return;
        const stands_for = try arena.alloc(u32, nodes.len);
        @memset(stands_for, none);
        for (nodes, 0..) |*node, index| if (node.stand_in != 0) {
            // Behind it, so that no node stands in for itself by way of others.
            if (stands_for[node.stand_in - 1] != none or node.stand_in - 1 <= index) return error.InvalidArgument;
            stands_for[node.stand_in - 1] = @intCast(index);
        };
        plan.stands_for = stands_for;
    }

    pub fn retain(plan: *Plan) *Plan {
        _ = plan.references.fetchAdd(1, .monotonic);
        return plan;
    }

    /// Acquire-release: the last one out must see every other user's last read done.
    pub fn release(plan: *Plan) void {
        if (plan.references.fetchSub(1, .acq_rel) != 1) return;
        const gpa = plan.gpa;
        plan.pace.deinit(gpa);
        plan.arena.deinit();
        gpa.destroy(plan);
    }

    pub fn kind(plan: *const Plan, node: u32) NodeKind {
        return @fromBackingInt(plan.nodes[node].kind);
    }

    pub fn joinOf(plan: *const Plan, node: u32) Join {
        return plan.nodes[node].joins();
    }

    /// Handed out by itself, to a callback thread.
    pub fn isAlone(node: *const Node) bool {
        return node.flags.alone or node.timeout_ns != 0;
    }

    /// Empty unless something in the plan joins by "any".
    pub fn predecessorsOf(plan: *const Plan, node: u32) []const u32 {
        if (plan.predecessor_first.len == 0) return &.{};
        return plan.predecessors[plan.predecessor_first[node]..plan.predecessor_first[node + 1]];
    }

    pub fn successorsOf(plan: *const Plan, node: u32) []const Successor {
        return plan.successors[plan.successor_first[node]..plan.successor_first[node + 1]];
    }

    pub fn template_(plan: *const Plan, index: u32) []const template.Segment {
        const range = plan.templates[index];
        return plan.segments[range.first..][0..range.count];
    }

    pub fn routeOf(plan: *const Plan, request: *const Request) ?*const Route {
        return if (request.route == 0) null else &plan.routes[request.route - 1];
    }

    pub fn admissionOf(plan: *const Plan, request: *const Request) ?*const Admission {
        return if (request.admission == 0) null else &plan.admissions[request.admission - 1];
    }

    pub fn string(plan: *const Plan, span: Span) []const u8 {
        return plan.text[span.offset..][0..span.length];
    }
};

fn dupe(comptime T: type, arena: Allocator, ptr: ?[*]const T, count: u32) Error![]T {
    if (count == 0) return &.{};
    return arena.dupe(T, (ptr orelse return error.InvalidArgument)[0..count]);
}

fn given(comptime T: type, ptr: ?[*]const T, count: u32) Error![]const T {
    if (count == 0) return &.{};
    return (ptr orelse return error.InvalidArgument)[0..count];
}

fn checkNative(native: *const Native, values_count: u32) Error!void {
    const kind = std.enums.fromInt(NativeKind, native.kind) orelse return error.InvalidArgument;
    const arguments_max: u32 = switch (kind) {
        .void => 0,
        .numbers => native.arguments.len,
        .bytes => 1,
    };
    if (native.function == null or native.argument_count > arguments_max) return error.InvalidArgument;
    for (native.arguments[0..native.argument_count]) |value| if (value >= values_count) return error.InvalidArgument;
}

fn inside(range: Range, len: usize) bool {
    return @as(u64, range.first) + range.count <= len;
}

fn checkText(
    segments: []const template.Segment,
    headers: []const Header,
    rules: []const extract.Rule,
    requests: []const Request,
    predicates: []const predicate.Predicate,
    len: usize,
) Error!void {
    const check = struct {
        fn span(s: Span, text_len: usize) Error!void {
            if (@as(u64, s.offset) + s.length > text_len) return error.InvalidArgument;
        }
    };
    for (segments) |segment| try check.span(segment.text, len);
    for (headers) |header| try check.span(header.name, len);
    for (requests) |request| {
        try check.span(request.method, len);
        try check.span(request.idempotency_header, len);
    }
    for (predicates) |it| {
        try check.span(it.path, len);
        try check.span(it.value, len);
    }
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
