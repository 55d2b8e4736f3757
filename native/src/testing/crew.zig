//! A crew that carries a run's nodes out, as the dispatcher does but with nothing to it: for programs and scenarios that are
//! about graph/run.zig. Everything that must hold of any run is checked in here.

const std = @import("std");
const memory = @import("memory.zig");
const plan_file = @import("../graph/plan.zig");
const run_file = @import("../graph/run.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");

pub const Frontier = run_file.Frontier;
pub const Outcome = run_file.Outcome;
pub const Plan = plan_file.Plan;
pub const State = run_file.State;

pub const nodes_max = 24;

/// A plan that outlives the simulated run: made once for all interleavings, in memory that is not the run's.
pub fn planOf(gpa: std.mem.Allocator, nodes: []const plan_file.Node, edges: []const [2]u32) *Plan {
    var cycle: plan_file.Cycle = .{};
    return plan_file.testPlan(gpa, nodes, edges, &cycle) catch sim.fail("the plan could not be made");
}

pub const Crew = struct {
    plan: *Plan,
    arena: std.heap.ArenaAllocator,
    run: run_file.Run,
    outcomes: [nodes_max]Outcome = @splat(.succeeded),
    /// How many attempts of a node fail, and wait, before its outcome.
    retries: [nodes_max]u8 = @splat(0),
    started: [nodes_max]u8 = @splat(0),
    ended: [nodes_max]u8 = @splat(0),
    /// Written by a node before it settles, read by those behind it: outputs.
    output: [nodes_max]bool = @splat(false),
    overs: u32 = 0,
    /// Nodes whose start said that they run, until they settle.
    in_flight: [nodes_max]bool = @splat(false),
    /// Nodes that wait for another attempt; others that wait do so for their stand-in, whose end is theirs.
    backing_off: [nodes_max]bool = @splat(false),
    is_swept: bool = false,

    pub fn init(crew: *Crew, plan: *Plan, keep_going: bool, frontier: *Frontier) void {
        crew.* = .{ .plan = plan, .arena = .init(memory.gpa), .run = undefined };
        crew.run.init(crew.arena.allocator(), plan, keep_going, 1) catch sim.fail("out of memory");
        crew.run.watcher = .{ .context = crew, .saw = saw };
        crew.run.begin(1, frontier);
    }

    fn saw(context: *anyopaque, node: u32, state: State, _: u64) void {
        const crew: *Crew = @ptrCast(@alignCast(context));
        if (state.final()) crew.ended[node] += 1;
    }

    /// Everything that must hold once all threads are done.
    pub fn finish(crew: *Crew) void {
        sim.checkEqual(@as(u32, 1), crew.overs, "ends of the run");
        sim.check(crew.run.isOver(), "the run is over");
        for (crew.run.nodes, 0..) |*it, node| {
            sim.check(it.read().state.final(), "a node was left behind");
            sim.check(crew.ended[node] <= 1, "a node ended twice");
            sim.check(crew.started[node] <= 1 + crew.retries[node], "a node was started too often");
        }
        crew.arena.deinit();
    }

    /// Works off a frontier, all of it.
    pub fn carry(crew: *Crew, frontier: *Frontier) void {
        while (true) {
            if (frontier.stopped) {
                frontier.stopped = false;
                crew.sweep(frontier);
            }
            const node = frontier.pop(&crew.run) orelse break;
            crew.execute(node, frontier);
        }
        crew.noteOver(frontier);
    }

    pub fn noteOver(crew: *Crew, frontier: *Frontier) void {
        if (!frontier.over) return;
        frontier.over = false;
        crew.overs += 1;
        sim.checkEqual(@as(u32, 1), crew.overs, "ends of the run");
    }

    pub fn execute(crew: *Crew, node: u32, frontier: *Frontier) void {
        const run = &crew.run;
        sim.check(!run.isOver(), "a node is ready after the end");
        const was_swept = crew.is_swept;
        switch (run.start(node, 2)) {
            .gone => return,
            .stopping => return crew.end(node, .running, .cancelled, frontier),
            .running, .resumed => {},
        }
        sim.check(!was_swept, "a node was started after the sweep");
        crew.in_flight[node] = true;
        defer crew.in_flight[node] = false;
        crew.started[node] += 1;
        crew.checkPredecessors(node);
        if (crew.started[node] <= crew.retries[node]) switch (run.pause(node, 0, .backoff)) {
            .gone => return,
            .stopping => return crew.end(node, .waiting, .cancelled, frontier),
            .waiting => {
                crew.backing_off[node] = true;
                sync.yield();
                crew.backing_off[node] = false;
                _ = run.unpause(node, .backoff, frontier);
                return;
            },
        };
        crew.output[node] = crew.outcomes[node] != .failed;
        if (crew.standsFor(node)) |other| crew.output[other] = crew.output[node];
        crew.end(node, .running, crew.outcomes[node], frontier);
    }

    pub fn end(crew: *Crew, node: u32, from: State, outcome: Outcome, frontier: *Frontier) void {
        _ = crew.run.settle(node, from, outcome, 3, frontier);
    }

    /// All of them have ended, and those that succeeded left something; for "any", one has.
    fn checkPredecessors(crew: *Crew, node: u32) void {
        var live: u32 = 0;
        for (0..crew.run.nodes.len) |other| for (crew.plan.successorsOf(@intCast(other))) |edge| if (edge.node == node) {
            const state = crew.run.stateOf(@intCast(other));
            if (state == .succeeded) {
                live += 1;
                sim.check(crew.output[other], "an output was not there yet");
            }
            if (crew.plan.joinOf(node) != .any) sim.check(state.final(), "a node was started before one it depends on had ended");
        };
        if (crew.plan.joinOf(node) == .any and crew.plan.predecessor_count[node] > 0 and crew.standsFor(node) == null) {
            sim.check(live > 0, "a join of kind any was started by no success");
        }
    }

    pub fn standsFor(crew: *const Crew, node: u32) ?u32 {
        for (crew.plan.nodes, 0..) |*it, other| if (it.stand_in == node + 1) return @intCast(other);
        return null;
    }

    /// From any thread: ends the run early.
    pub fn halt(crew: *Crew) void {
        var frontier: Frontier = .{};
        if (!crew.run.stop(.cancel)) return;
        crew.sweep(&frontier);
        crew.carry(&frontier);
    }

    /// What is ready stays with whoever has it in a frontier: it will be refused there, and with it who waits for it.
    pub fn sweep(crew: *Crew, frontier: *Frontier) void {
        for (0..crew.run.nodes.len) |node| {
            const state = crew.run.stateOf(@intCast(node));
            if (state == .running or (state == .waiting and crew.backing_off[node])) crew.end(@intCast(node), state, .cancelled, frontier);
        }
        crew.is_swept = true;
        for (crew.run.nodes, 0..) |*it, node| {
            const word: run_file.Word = @bitCast(it.word.raw); // no step: as it is at this moment
            sim.check(!crew.in_flight[node] or word.state != .running, "the sweep missed a node that runs");
        }
    }
};
