//! Small programs about graph/run.zig: arrival, joins, stopping, attempts, stand-ins. See small.zig.

const std = @import("std");
const crew_file = @import("crew.zig");
const plan_file = @import("../graph/plan.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");
const topology = @import("../graph/topology.zig");
const Program = @import("interleave.zig").Program;

const Crew = crew_file.Crew;
const Frontier = crew_file.Frontier;
const Node = plan_file.Node;
const Outcome = crew_file.Outcome;
const State = crew_file.State;

pub const programs = [_]Program{
    .{ .name = "arrival: two predecessors succeed", .run = Joined(.all, .{ .succeeded, .succeeded }, .succeeded).run },
    .{ .name = "arrival: one of two predecessors fails", .run = Joined(.all, .{ .failed, .succeeded }, .skipped).run },
    .{ .name = "arrival: two conditions, one chooses the join", .run = choosing },
    .{ .name = "any: two predecessors succeed", .run = Joined(.any, .{ .succeeded, .succeeded }, .succeeded).run },
    .{ .name = "any: one of two predecessors fails", .run = Joined(.any, .{ .failed, .succeeded }, .succeeded).run },
    .{ .name = "any: both predecessors fail", .run = Joined(.any, .{ .failed, .failed }, .failed).run },
    .{ .name = "all_done: one of two predecessors fails", .run = Joined(.all_done, .{ .failed, .succeeded }, .succeeded).run },
    .{ .name = "cancel: stop and sweep against start and settle", .run = Halted(&.{callback}, &.{}).run },
    .{ .name = "cancel: against a chain", .run = Halted(&.{ callback, callback }, &.{.{ 0, 1 }}).run },
    .{ .name = "cancel: against an any join", .run = Halted(&.{ callback, joining(.any) }, &.{.{ 0, 1 }}).run },
    .{ .name = "cancel: against an all_done join", .run = Halted(&.{ callback, joining(.all_done) }, &.{.{ 0, 1 }}).run },
    .{ .name = "cancel: against a failure that stops", .run = haltedWhileFailing },
    .{ .name = "cancel: against a node that is given back", .run = haltedWhileGivingBack },
    .{ .name = "cancel: against a stand-in that is called", .run = haltedWhileStandingIn },
    .{ .name = "any: what is not needed any more against its last arrival", .run = droppedWhileDecided },
    .{ .name = "attempts: a late result against the next attempt", .run = lateResult },
    .{ .name = "attempts: a stop against a backoff", .run = haltedWhileWaiting },
};

const callback = plan_file.test_callback;

fn joining(join: topology.Join) Node {
    var node = callback;
    node.join = @backingInt(join);
    return node;
}

fn spawn(comptime function: anytype, args: anytype) sync.Thread {
    return sync.Thread.spawn(.{ .name = "other" }, function, args) catch sim.fail("a thread could not be had");
}

/// Made in the first run and kept: making a plan is no step of the program.
fn Kept(comptime nodes: []const Node, comptime edges: []const [2]u32) type {
    return struct {
        var plan: ?*crew_file.Plan = null;

        fn get() *crew_file.Plan {
            if (plan == null) plan = crew_file.planOf(std.heap.page_allocator, nodes, edges);
            return plan.?;
        }
    };
}

fn carryOne(crew: *Crew, node: u32) void {
    var mine: Frontier = .{};
    mine.push(&crew.run, node);
    crew.carry(&mine);
}

/// Two nodes end at once, and a third waits for both.
fn Joined(comptime join: topology.Join, comptime outcomes: [2]Outcome, comptime expected: State) type {
    return struct {
        fn run() void {
            const plan = Kept(&.{ callback, callback, joining(join) }, &.{ .{ 0, 2 }, .{ 1, 2 } }).get();
            var crew: Crew = undefined;
            var frontier: Frontier = .{};
            crew.init(plan, true, &frontier);
            crew.outcomes[0] = outcomes[0];
            crew.outcomes[1] = outcomes[1];
            const one = frontier.pop(&crew.run).?;
            const two = frontier.pop(&crew.run).?;
            const other = spawn(carryOne, .{ &crew, two });
            carryOne(&crew, one);
            other.join();
            sim.checkEqual(expected, crew.run.stateOf(2), "the join");
            crew.finish();
        }
    };
}

fn choosing() void {
    const condition = plan_file.test_condition;
    const plan = Kept(&.{ condition, condition, callback }, &.{ .{ 0, 2 }, .{ 1, 2 } }).get();
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(plan, true, &frontier);
    crew.outcomes[0] = .{ .chose = &.{} };
    crew.outcomes[1] = .{ .chose = &.{2} };
    const one = frontier.pop(&crew.run).?;
    const two = frontier.pop(&crew.run).?;
    const other = spawn(carryOne, .{ &crew, two });
    carryOne(&crew, one);
    other.join();
    sim.checkEqual(State.succeeded, crew.run.stateOf(2), "the join");
    crew.finish();
}

fn Halted(comptime nodes: []const Node, comptime edges: []const [2]u32) type {
    return struct {
        fn run() void {
            var crew: Crew = undefined;
            var frontier: Frontier = .{};
            crew.init(Kept(nodes, edges).get(), false, &frontier);
            const other = spawn(Crew.halt, .{&crew});
            crew.carry(&frontier);
            other.join();
            crew.finish();
        }
    };
}

fn haltedWhileFailing() void {
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(Kept(&.{ callback, callback }, &.{}).get(), false, &frontier);
    crew.outcomes[0] = .failed;
    const other = spawn(Crew.halt, .{&crew});
    crew.carry(&frontier);
    other.join();
    crew.finish();
}

fn haltedWhileGivingBack() void {
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(Kept(&.{callback}, &.{}).get(), false, &frontier);
    const other = spawn(Crew.halt, .{&crew});
    const node = frontier.pop(&crew.run).?;
    switch (crew.run.start(node, 2)) {
        .running, .resumed => _ = crew.run.giveBack(node, &frontier),
        .stopping => crew.end(node, .running, .cancelled, &frontier),
        .gone => {},
    }
    crew.carry(&frontier);
    other.join();
    crew.finish();
}

fn haltedWhileStandingIn() void {
    const with_stand_in = comptime blk: {
        var node = callback;
        node.stand_in = 2;
        break :blk node;
    };
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(Kept(&.{ with_stand_in, callback }, &.{}).get(), false, &frontier);
    crew.outcomes[0] = .failed;
    const other = spawn(Crew.halt, .{&crew});
    crew.carry(&frontier);
    other.join();
    crew.finish();
}

/// The first attempt is given up and the second started while the first brings its result after all.
fn lateResult() void {
    const GiveUp = struct {
        fn again(crew: *Crew) void {
            var mine: Frontier = .{};
            if (crew.run.pause(0, 1, .backoff) == .waiting) {
                sim.check(crew.run.unpause(0, .backoff, &mine), "nobody else ends a node that waits");
                sim.check(mine.pop(&crew.run).? == 0 and crew.run.start(0, 5) == .running, "the second attempt starts");
                sim.checkEqual(@as(u32, 2), crew.run.attemptOf(0), "the attempt");
                crew.end(0, .running, .failed, &mine);
            }
            crew.noteOver(&mine);
        }
    };
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(Kept(&.{callback}, &.{}).get(), true, &frontier);
    const node = frontier.pop(&crew.run).?;
    sim.check(crew.run.start(node, 2) == .running, "the first attempt starts");
    const other = spawn(GiveUp.again, .{&crew});
    const won = crew.run.settleAt(0, .running, 1, .succeeded, 3, 3, &frontier);
    crew.noteOver(&frontier);
    other.join();
    sim.checkEqual(if (won) State.succeeded else State.failed, crew.run.stateOf(0), "the node");
    sim.checkEqual(@as(u32, if (won) 1 else 2), crew.run.attemptOf(0), "the attempt whose result counts");
    crew.finish();
}

fn haltedWhileWaiting() void {
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(Kept(&.{callback}, &.{}).get(), false, &frontier);
    crew.retries[0] = 1;
    const other = spawn(Crew.halt, .{&crew});
    crew.carry(&frontier);
    other.join();
    crew.finish();
}

/// 0 -> 1 -> 3 and 2 -> 3, a join of kind "any" that 2 has fired: 1 is dropped while 0 arrives at it.
fn droppedWhileDecided() void {
    const Drop = struct {
        fn one(crew: *Crew, seen: *State) void {
            seen.* = crew.run.dropBlocked(1);
        }
    };
    const plan = Kept(&.{ callback, callback, callback, joining(.any) }, &.{ .{ 0, 1 }, .{ 1, 3 }, .{ 2, 3 } }).get();
    var crew: Crew = undefined;
    var frontier: Frontier = .{};
    crew.init(plan, true, &frontier);
    var seen: State = .blocked;
    const other = spawn(Drop.one, .{ &crew, &seen });
    crew.carry(&frontier);
    other.join();
    const is = crew.run.stateOf(1);
    sim.check(is == .succeeded or is == .cancelled, "the node ends");
    sim.check(seen != .blocked or is == .cancelled, "a node that was blocked when it was dropped does not run");
    sim.checkEqual(State.succeeded, crew.run.stateOf(3), "the join");
    crew.finish();
}
