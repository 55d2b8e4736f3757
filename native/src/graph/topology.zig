//! The shape of a plan, computed once: successor lists, how many arrivals a node waits for, which edges decide whether a node
//! runs at all (below), the linear segments of callbacks; or the cycle that makes it no plan.
//!
//! ## Which edges decide
//!
//! A condition follows some of its successors, an edge with a rule is followed when the rule holds. What hangs below a way
//! not taken must not run, yet where ways meet again the join must. Two kinds of edges lead into a node: those that choose (from
//! a condition, or with a rule) or come from a node that is itself only run conditionally ("conditional" edges), and the rest,
//! which only carry data. A node with conditional edges runs when at least one *deciding* edge is live. Deciding are
//!   - every edge that chooses;
//!   - a conditional edge u -> v, unless u is an ancestor of another source of v's conditional edges.
//! The exception matters where a later condition reuses an early join: `route -> (a|b) -> join -> check -> (k|l)` with k
//! also reading `join`. join is conditional and live, but it is an ancestor of `check`, and `check` chose l: k is skipped.
//!
//! That is how a join of kind "all" looks at its edges. "any" and "all_done" run or do not run by themselves: what hangs
//! below them is conditional only by what stands below them.

const std = @import("std");

const Allocator = std.mem.Allocator;

pub const none = std.math.maxInt(u32);

pub const NodeKind = enum(u32) { callback = 0, template = 1, request = 2, delay = 3, native = 4 };

pub const NodeFlags = packed struct(u32) {
    condition: bool = false,
    loop: bool = false,
    handled: bool = false,
    alone: bool = false,
    composite: bool = false,
    timeout_is_final: bool = false,
    _: u26 = 0,
};

/// C: gb_join
pub const Join = enum(u32) { all = 0, any = 1, all_done = 2 };

/// C: gb_node
pub const Node = extern struct {
    kind: u32,
    flags: NodeFlags = .{},
    body: u32 = 0,
    join: u32 = 0,
    delay_ns: u64 = 0,
    timeout_ns: u64 = 0,
    retry: u32 = 0,
    stand_in: u32 = 0,
    limits: u32 = 0,
    reserved: u32 = 0,

    pub fn joins(node: *const Node) Join {
        return @fromBackingInt(node.join);
    }
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

pub const Graph = struct {
    successor_first: []u32,
    successors: []Successor,
    /// Of the edges in `successors`, in that order; empty where no edge has one.
    rules: []const u32,
    /// By node, as `successors`; empty where nothing joins by "any".
    predecessor_first: []const u32,
    predecessors: []const u32,
    predecessor_count: []u32,
    deciding_count: []u32,
    roots: []u32,
    continuation: []u32,
    /// Every node after its predecessors; in `scratch`.
    order: []const u32,

    /// What lasts is allocated from `arena`, what is only needed here from `scratch`. Indices were checked.
    pub fn build(
        arena: Allocator,
        scratch: Allocator,
        nodes: []const Node,
        edges: []const [2]u32,
        rules: []const u32,
        cycle: *Cycle,
    ) Error!Graph {
        const count: u32 = @intCast(nodes.len);
        if (count > std.math.maxInt(u31)) return error.InvalidArgument;
        const forward = try Adjacency.build(arena, scratch, count, edges, 0);
        const has_any = for (nodes) |node| {
            if (node.joins() == .any) break true;
        } else false;
        const backward = try Adjacency.build(if (has_any) arena else scratch, scratch, count, edges, 1);

        const predecessor_count = try arena.alloc(u32, count);
        for (predecessor_count, 0..) |*n, node| n.* = @intCast(backward.of(@intCast(node)).len);
        // A stand-in is started by the node it stands in for.
        for (nodes) |node| if (node.stand_in != 0) {
            const it = node.stand_in - 1;
            if (predecessor_count[it] != 0 or forward.of(it).len != 0) return error.InvalidArgument;
            predecessor_count[it] = 1;
        };
        var root_count: usize = 0;
        for (predecessor_count) |n| root_count += @intFromBool(n == 0);
        const roots = try arena.alloc(u32, root_count);
        var at: usize = 0;
        for (predecessor_count, 0..) |n, node| if (n == 0) {
            roots[at] = @intCast(node);
            at += 1;
        };

        const order = try topologicalOrder(scratch, forward, backward);
        if (order.len < count) {
            nameCycle(backward, order, try scratch.alloc(bool, count), try scratch.alloc(u32, count), cycle);
            return error.Cycle;
        }

        const successors: []Successor = @ptrCast(forward.targets); // in place: the same size
        comptime std.debug.assert(@sizeOf(Successor) == @sizeOf(u32));
        for (successors, forward.targets) |*successor, target| successor.* = .{ .node = @intCast(target), .deciding = false };
        const sorted: []u32 = if (rules.len == 0) &.{} else try sortedRules(arena, scratch, edges, rules, forward.first);
        const deciding_count = try arena.alloc(u32, count);
        @memset(deciding_count, 0);
        try markDeciding(scratch, nodes, order, forward.first, backward, sorted, successors, deciding_count);

        const continuation = try arena.alloc(u32, count);
        for (continuation, 0..) |*next, node| next.* = continuationOf(nodes, forward.first, successors, predecessor_count, @intCast(node));
        return .{
            .successor_first = forward.first,
            .successors = successors,
            .rules = sorted,
            .predecessor_first = if (has_any) backward.first else &.{},
            .predecessors = if (has_any) backward.targets else &.{},
            .predecessor_count = predecessor_count,
            .deciding_count = deciding_count,
            .roots = roots,
            .continuation = continuation,
            .order = order,
        };
    }
};

/// Neighbours by node: targets[first[n]..first[n+1]], in the order in which the edges were given.
const Adjacency = struct {
    first: []u32,
    targets: []u32,

    fn build(arena: Allocator, scratch: Allocator, count: u32, edges: []const [2]u32, comptime key: u1) Error!Adjacency {
        const first = try arena.alloc(u32, count + 1);
        @memset(first, 0);
        for (edges) |edge| first[edge[key] + 1] += 1;
        for (1..count + 1) |n| first[n] += first[n - 1];
        const targets = try arena.alloc(u32, edges.len);
        const next = try scratch.dupe(u32, first[0..count]);
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

/// The edges' rules in the order of the successor lists.
fn sortedRules(arena: Allocator, scratch: Allocator, edges: []const [2]u32, rules: []const u32, first: []const u32) Error![]u32 {
    const sorted = try arena.alloc(u32, edges.len);
    const next = try scratch.dupe(u32, first);
    for (edges, rules) |edge, rule| {
        sorted[next[edge[0]]] = rule;
        next[edge[0]] += 1;
    }
    return sorted;
}

/// Kahn, "Topological sorting of large networks" (1962). Shorter than the graph when there is a cycle.
fn topologicalOrder(scratch: Allocator, forward: Adjacency, backward: Adjacency) Error![]u32 {
    const count = forward.first.len - 1;
    const pending = try scratch.alloc(u32, count);
    const order = try scratch.alloc(u32, count);
    var end: usize = 0;
    for (pending, 0..) |*n, node| {
        n.* = @intCast(backward.of(@intCast(node)).len);
        if (n.* != 0) continue;
        order[end] = @intCast(node);
        end += 1;
    }
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
    scratch: Allocator,
    nodes: []const Node,
    order: []const u32,
    first: []const u32,
    backward: Adjacency,
    rules: []const u32,
    successors: []Successor,
    deciding_count: []u32,
) Error!void {
    const chooser = try scratch.alloc(bool, nodes.len); // some of its edges choose
    var any = false;
    for (nodes, chooser, 0..) |node, *it, index| {
        it.* = node.flags.condition;
        if (rules.len > 0) for (rules[first[index]..first[index + 1]]) |rule| {
            if (rule != 0) it.* = true;
        };
        any = any or it.*;
    }
    if (!any) return;

    const Edges = struct {
        nodes: []const Node,
        first: []const u32,
        rules: []const u32,
        successors: []Successor,
        chooser: []const bool,
        conditional: []bool,

        /// Whether an edge source -> target chooses.
        fn chooses(e: @This(), source: u32, target: u32) bool {
            if (!e.chooser[source]) return false;
            if (e.nodes[source].flags.condition) return true;
            for (e.first[source]..e.first[source + 1]) |edge| {
                if (e.successors[edge].node == target and e.rules[edge] != 0) return true;
            }
            return false;
        }
        fn isConditional(e: @This(), source: u32, target: u32) bool {
            return e.conditional[source] or e.chooses(source, target);
        }
    };
    const conditional = try scratch.alloc(bool, nodes.len);
    const edges: Edges = .{
        .nodes = nodes,
        .first = first,
        .rules = rules,
        .successors = successors,
        .chooser = chooser,
        .conditional = conditional,
    };
    for (order) |node| {
        conditional[node] = false;
        if (nodes[node].joins() == .all_done) continue; // it runs whatever was chosen above
        const is_any = nodes[node].joins() == .any; // one way that nobody chooses is enough for it to run
        conditional[node] = for (backward.of(node)) |source| {
            if (edges.isConditional(source, node) != is_any) break !is_any;
        } else is_any and backward.of(node).len > 0;
    }

    // One backward search per node with several conditional edges; `seen` holds the number of the search.
    const seen = try scratch.alloc(u32, nodes.len);
    @memset(seen, none);
    var stack: std.ArrayList(u32) = .empty;
    const only_all = for (nodes) |node| {
        if (node.joins() != .all) break false;
    } else true;
    for (order) |node| {
        if (!conditional[node]) continue;
        var conditional_edges: usize = 0;
        for (backward.of(node)) |source| conditional_edges += @intFromBool(edges.isConditional(source, node));
        if (conditional_edges > 1) for (backward.of(node)) |source| {
            if (edges.isConditional(source, node)) try stack.append(scratch, source);
        };
        while (stack.pop()) |from| for (backward.of(from)) |source| {
            // Where every node joins by "all" nothing unconditional lies above a way that was chosen.
            if (seen[source] == node or (only_all and !(chooser[source] or conditional[source]))) continue;
            seen[source] = node;
            try stack.append(scratch, source);
        };
        for (backward.of(node)) |source| {
            const decides = edges.chooses(source, node) or (conditional[source] and seen[source] != node);
            if (!decides) continue;
            for (first[source]..first[source + 1]) |edge| {
                if (successors[edge].node != node or successors[edge].deciding) continue;
                successors[edge].deciding = true;
                deciding_count[node] += 1;
            }
        }
    }
}

/// Two callbacks in a row that nothing else joins or leaves. Conditions choose, loop callbacks live on another thread, and what
/// may be tried again, timed, limited or replaced is handed out by itself.
fn continuationOf(nodes: []const Node, first: []const u32, successors: []const Successor, predecessor_count: []const u32, node: u32) u32 {
    const ordinary = struct {
        fn callback(n: *const Node) bool {
            return n.kind == @backingInt(NodeKind.callback) and n.timeout_ns == 0 and n.retry == 0 and n.stand_in == 0 and
                n.limits == 0 and !n.flags.condition and !n.flags.loop and !n.flags.alone and !n.flags.composite;
        }
    }.callback;
    if (!ordinary(&nodes[node])) return none;
    const after = successors[first[node]..first[node + 1]];
    if (after.len != 1 or predecessor_count[after[0].node] != 1 or after[0].deciding) return none;
    const next = after[0].node;
    return if (ordinary(&nodes[next]) and nodes[next].joins() == .all) next else none;
}
