//! The shape of a plan, computed once: successor lists, how many arrivals a node waits for, which edges decide whether a node
//! runs at all (below), the linear segments of callbacks; or the cycle that makes it no plan.
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

const Allocator = std.mem.Allocator;

pub const none = std.math.maxInt(u32);

pub const NodeKind = enum(u32) { callback = 0, template = 1, request = 2, delay = 3 };

pub const NodeFlags = packed struct(u32) { condition: bool = false, loop: bool = false, _: u30 = 0 };

/// C: gb_node
pub const Node = extern struct { kind: u32, flags: NodeFlags = .{}, body: u32 = 0, reserved: u32 = 0, delay_ns: u64 = 0 };

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
    predecessor_count: []u32,
    deciding_count: []u32,
    roots: []u32,
    continuation: []u32,

    pub fn build(arena: Allocator, nodes: []const Node, edges: []const [2]u32, cycle: *Cycle) Error!Graph {
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
