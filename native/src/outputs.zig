//! Outputs: what the nodes of a run have brought so far, and who may look at it. A node's is written before the node is settled
//! and read after. A request's lies in its call, a delay's is another node's; every other one is kept here.

const std = @import("std");
const memory = @import("base/memory.zig");
const plan_file = @import("graph/plan.zig");
const run_file = @import("graph/run.zig");
const template = @import("graph/template.zig");

const Allocator = std.mem.Allocator;
const Plan = plan_file.Plan;
const Run = run_file.Run;
const Value = template.Value;
const Values = template.Values;
const none = plan_file.none;

pub const Outputs = struct {
    gpa: Allocator,
    plan: *const Plan,
    run: *const Run,
    /// Of nodes, then inputs.
    values: []Value,

    pub fn init(outputs: *Outputs, arena: Allocator, gpa: Allocator, run: *const Run, inputs: []const Value) error{OutOfMemory}!void {
        const plan = run.plan;
        const values = try memory.alloc(Value, arena, plan.nodes.len + inputs.len);
        @memset(values, .{});
        for (values[plan.nodes.len..], inputs) |*value, input| {
            value.* = .{ .ptr = input.ptr, .len = input.len, .kind = input.kind };
            if (input.kind != .number) value.* = .of(input.kind, try arena.dupe(u8, input.bytes()));
        }
        outputs.* = .{ .gpa = gpa, .plan = plan, .run = run, .values = values };
    }

    pub fn deinit(outputs: *Outputs) void {
        for (outputs.plan.nodes, outputs.values[0..outputs.plan.nodes.len], 0..) |*node, value, index| {
            switch (outputs.plan.kind(@intCast(index))) {
                .request, .delay => continue,
                .callback, .template, .native => {},
            }
            if (node.stand_in != 0 and outputs.values[node.stand_in - 1].ptr == value.ptr) continue; // that one's as well
            outputs.gpa.free(value.bytes());
        }
    }

    /// A node's output; that of a stand-in is the output of the node it stands in for as well.
    pub fn set(outputs: *Outputs, node: u32, value: Value) void {
        outputs.values[node] = value;
        const stands_for = outputs.plan.stands_for;
        if (stands_for.len == 0) return;
        var at = stands_for[node];
        while (at != none) : (at = stands_for[at]) outputs.values[at] = value;
    }

    /// What `node` may look at. A join of kind "any" has not waited for everybody: it is shown what has succeeded by now, and
    /// the same for as long as it looks. `done` frees it.
    pub fn seenBy(outputs: *const Outputs, node: u32) error{OutOfMemory}!Values {
        if (outputs.plan.joinOf(node) != .any) return .{ .all = outputs.values };
        var hidden: std.ArrayList(u32) = .empty;
        errdefer hidden.deinit(outputs.gpa);
        for (outputs.plan.predecessorsOf(node)) |source| {
            try outputs.hide(source, &hidden);
            // An edge that is asked about leads through a condition of its own.
            if (outputs.plan.nodes[source].flags.condition) {
                for (outputs.plan.predecessorsOf(source)) |it| try outputs.hide(it, &hidden);
            }
        }
        return .{ .all = outputs.values, .hidden = try hidden.toOwnedSlice(outputs.gpa) };
    }

    fn hide(outputs: *const Outputs, source: u32, hidden: *std.ArrayList(u32)) error{OutOfMemory}!void {
        if (outputs.run.stateOf(source) != .succeeded) try hidden.append(outputs.gpa, source);
    }

    pub fn done(outputs: *const Outputs, seen: Values) void {
        outputs.gpa.free(seen.hidden);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const Stage = struct {
    arena: std.heap.ArenaAllocator,
    plan: *Plan,
    run: Run,
    outputs: Outputs,

    fn init(stage: *Stage, nodes: []const plan_file.Node, edges: []const [2]u32) !void {
        var cycle: plan_file.Cycle = .{};
        stage.plan = try plan_file.testPlan(testing.allocator, nodes, edges, &cycle);
        stage.arena = .init(testing.allocator);
        try stage.run.init(stage.arena.allocator(), stage.plan, true, 0);
        try stage.outputs.init(stage.arena.allocator(), testing.allocator, &stage.run, &.{});
    }

    fn deinit(stage: *Stage) void {
        stage.outputs.deinit();
        stage.arena.deinit();
        stage.plan.release();
    }

    fn bring(stage: *Stage, node: u32, text: []const u8) !void {
        stage.outputs.set(node, .of(.text, try testing.allocator.dupe(u8, text)));
    }
};

test "a stand-in's output is there once, whatever became of the stand-in" {
    var nodes: [3]plan_file.Node = @splat(plan_file.test_callback);
    nodes[0].stand_in = 2;
    nodes[1].stand_in = 3;
    var stage: Stage = undefined;
    try stage.init(&nodes, &.{});
    defer stage.deinit();
    try stage.bring(2, "output"); // and then the run is stopped: none of the three succeeds
    for (stage.outputs.values) |value| try testing.expectEqualStrings("output", value.bytes());
}

test "a join by any is shown what has succeeded and nothing else" {
    var nodes: [3]plan_file.Node = @splat(plan_file.test_callback);
    nodes[2].join = @backingInt(plan_file.Join.any);
    var stage: Stage = undefined;
    try stage.init(&nodes, &.{ .{ 0, 2 }, .{ 1, 2 } });
    defer stage.deinit();
    var frontier: run_file.Frontier = .{};
    stage.run.begin(0, &frontier);
    while (frontier.pop(&stage.run)) |node| {
        _ = stage.run.enter(node, 0);
        try stage.bring(node, "output");
    }
    try testing.expect(stage.run.settle(1, .running, .succeeded, 0, &frontier));
    const seen = try stage.outputs.seenBy(2);
    defer stage.outputs.done(seen);
    try testing.expectEqual(template.ValueKind.none, seen.at(0).kind);
    try testing.expectEqualStrings("output", seen.at(1).bytes());
}
