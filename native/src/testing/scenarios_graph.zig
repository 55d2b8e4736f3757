//! Scenarios about runs: random graphs with every join, conditions, attempts and stand-ins, carried out by a few threads, with
//! and without a stop in the middle. A run that nobody stops must end as a dumb walk through the graph says.

const std = @import("std");
const crew_file = @import("crew.zig");
const memory = @import("memory.zig");
const plan_file = @import("../graph/plan.zig");
const pool_file = @import("../pool/pool.zig");
const run_file = @import("../graph/run.zig");
const scenarios = @import("scenarios.zig");
const sim = @import("sim.zig");
const storm_file = @import("storm.zig");
const sync = @import("../base/sync.zig");

const Crew = crew_file.Crew;
const Frontier = crew_file.Frontier;
const Node = plan_file.Node;
const State = crew_file.State;
const between = scenarios.between;
const nodes_max = crew_file.nodes_max;
const oneIn = scenarios.oneIn;

pub const all = [_]scenarios.Scenario{
    .{ .name = "run: threads that settle, nobody stops", .run = toTheEnd },
    .{ .name = "run: threads that settle, another stops", .run = stopped },
    .{ .name = "run: nodes carried out by the pool", .run = onThePool },
};

const Shared = struct {
    crew: Crew = undefined,
    ready: Frontier = .{},
    mutex: sync.Mutex = .init,

    /// One thread of several that share what is ready.
    fn work(shared: *Shared) void {
        const crew = &shared.crew;
        while (!crew.run.isOver()) {
            shared.mutex.lock();
            const popped = shared.ready.pop(&crew.run);
            shared.mutex.unlock();
            const node = popped orelse {
                sync.spinHint();
                continue;
            };
            var mine: Frontier = .{};
            crew.execute(node, &mine);
            if (mine.stopped) {
                mine.stopped = false;
                crew.sweep(&mine);
            }
            crew.noteOver(&mine);
            if (mine.head == plan_file.none) continue;
            shared.mutex.lock();
            while (mine.pop(&crew.run)) |next| shared.ready.push(&crew.run, next);
            shared.mutex.unlock();
        }
    }
};

const Made = struct {
    nodes: [nodes_max]Node = @splat(plan_file.test_callback),
    count: usize,
    edges: [nodes_max * nodes_max][2]u32 = undefined,
    edge_count: usize = 0,
    chosen: [nodes_max][nodes_max]u32 = undefined,

    fn plan(made: *Made, with_stand_ins: bool) *crew_file.Plan {
        made.count = between(1, 12);
        const density = between(1, 4);
        for (0..made.count) |to| {
            const node = &made.nodes[to];
            if (oneIn(4)) node.* = plan_file.test_condition;
            node.join = if (oneIn(2)) 0 else between(0, 2);
            for (0..to) |from| if (oneIn(density)) {
                made.edges[made.edge_count] = .{ @intCast(from), @intCast(to) };
                made.edge_count += 1;
            };
        }
        // Stand-ins come last: they have no edges.
        const with_edges = made.count;
        if (with_stand_ins) for (0..with_edges) |node| if (oneIn(4)) {
            made.nodes[node].stand_in = @intCast(made.count + 1);
            made.count += 1;
        };
        return crew_file.planOf(memory.gpa, made.nodes[0..made.count], made.edges[0..made.edge_count]);
    }

    fn outcomes(made: *Made, crew: *Crew) void {
        for (0..made.count) |node| {
            crew.outcomes[node] = if (oneIn(5)) .failed else .succeeded;
            crew.retries[node] = if (oneIn(4)) 1 else 0;
            if (!made.nodes[node].flags.condition or crew.outcomes[node] == .failed) continue;
            var count: usize = 0;
            for (crew.plan.successorsOf(@intCast(node))) |edge| if (oneIn(2)) {
                made.chosen[node][count] = edge.node;
                count += 1;
            };
            crew.outcomes[node] = .{ .chose = made.chosen[node][0..count] };
        }
    }
};

fn toTheEnd() void {
    play(false);
}

fn stopped() void {
    play(true);
}

fn play(stops: bool) void {
    var made: Made = .{ .count = 0 };
    const plan = made.plan(oneIn(2));
    const keep_going = !stops or oneIn(2);
    var shared: Shared = .{};
    const crew = &shared.crew;
    crew.init(plan, keep_going, &shared.ready);
    made.outcomes(crew);
    var threads: [3]sync.Thread = undefined;
    const count = between(1, 3);
    for (threads[0..count]) |*thread| thread.* = scenarios.spawn("carrier", Shared.work, .{&shared});
    if (stops) {
        for (0..between(0, 40)) |_| sync.yield();
        crew.halt();
    }
    for (threads[0..count]) |thread| thread.join();
    if (!stops) compare(crew);
    crew.finish();
    plan.release();
}

/// The dumb walk: nodes in order, for edges only lead to later ones.
fn compare(crew: *Crew) void {
    const plan = crew.plan;
    var states: [nodes_max]State = @splat(.blocked);
    var broken: [nodes_max]bool = @splat(false);
    var stood_in: [nodes_max]bool = @splat(false); // a stand-in chooses nothing: every way is followed
    for (plan.nodes, 0..) |*node, to| {
        if (crew.standsFor(@intCast(to)) != null) continue;
        var live: u32 = 0;
        var deciding: u32 = 0;
        var deciding_live: u32 = 0;
        var predecessors: u32 = 0;
        for (0..to) |from| for (plan.successorsOf(@intCast(from))) |edge| if (edge.node == to) {
            predecessors += 1;
            const outcome = crew.outcomes[from];
            const followed = states[from] == .succeeded and
                (outcome != .chose or stood_in[from] or std.mem.indexOfScalar(u32, outcome.chose, @intCast(to)) != null);
            live += @intFromBool(followed);
            deciding += @intFromBool(edge.deciding);
            deciding_live += @intFromBool(edge.deciding and followed);
            if (states[from] == .failed or (states[from] == .skipped and broken[from])) broken[to] = true;
        };
        const own: State = if (crew.outcomes[to] == .failed) .failed else .succeeded;
        states[to] = switch (node.joins()) {
            .all => if (broken[to] or (deciding > 0 and deciding_live == 0)) .skipped else own,
            .any => if (predecessors == 0 or live > 0) own else if (broken[to]) .failed else .skipped,
            .all_done => own,
        };
        if (states[to] != .failed or node.stand_in == 0) continue;
        states[to] = if (crew.outcomes[node.stand_in - 1] == .failed) .failed else .succeeded;
        stood_in[to] = true;
    }
    for (plan.nodes, 0..) |_, node| if (crew.standsFor(@intCast(node)) == null) {
        sim.checkEqual(states[node], crew.run.stateOf(@intCast(node)), "the state of a node");
    };
}

fn onThePool() void {
    var pool: pool_file.Pool = .init(memory.gpa, .{ .worker_count = between(1, 3) });
    var storm: storm_file.Storm = undefined;
    storm.init(memory.gpa, between(1, 5), between(1, 4)) catch sim.fail("out of memory");
    for (0..between(1, 2)) |_| {
        _ = storm.run(memory.gpa, &pool) catch sim.fail("out of memory");
        storm.verify() catch sim.fail("a node ran too often, too early or not at all");
    }
    pool.shutdown();
    storm.deinit(memory.gpa);
    pool.deinit();
}
