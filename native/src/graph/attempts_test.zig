//! A node that is tried more than once: attempts, what is given back or waits, and stand-ins. See run_test.zig.

const std = @import("std");
const plan_file = @import("plan.zig");
const run_file = @import("run.zig");
const run_test = @import("run_test.zig");

const testing = std.testing;
const Cause = run_file.Cause;
const Fixture = run_test.Fixture;
const Node = plan_file.Node;
const Outcome = run_file.Outcome;
const State = run_file.State;

const callbacks: [3]Node = @splat(plan_file.test_callback);

// ------------------------------------------------------------------------------------------------------------- attempts

test "what an attempt brings that was given up cannot touch the next" {
    var f: Fixture = undefined;
    try f.init(callbacks[0..1], &.{}, false);
    defer f.deinit();
    try f.start(0);
    try testing.expectEqual(.gone, f.run.pause(0, 2, .backoff)); // not the attempt that runs
    try testing.expectEqual(.waiting, f.run.pause(0, 1, .backoff));
    try testing.expect(!f.run.settleAt(0, .running, 1, .succeeded, 3, 3, &f.frontier));
    try testing.expect(f.run.unpause(0, .backoff, &f.frontier));
    try testing.expect(!f.run.unpause(0, .backoff, &f.frontier));
    try testing.expectEqual(0, f.frontier.pop(&f.run));
    try testing.expectEqual(.running, f.run.start(0, 9));
    try testing.expect(!f.run.settleAt(0, .running, 1, .succeeded, 10, 10, &f.frontier));
    try testing.expect(f.run.settleAt(0, .running, 2, .failed, 10, 11, &f.frontier));
    try testing.expectEqual(2, f.run.attemptOf(0));
    try testing.expectEqual(2, f.run.nodes[0].started_ns); // the first attempt's
    try testing.expectEqual(10, f.run.nodes[0].ended_ns);
    try testing.expectEqual(11, f.run.ended_ns);
}

test "a node that is given back has not begun" {
    var f: Fixture = undefined;
    try f.init(callbacks[0..1], &.{}, false);
    defer f.deinit();
    try f.start(0);
    try testing.expect(f.run.giveBack(0, &f.frontier));
    try testing.expect(!f.run.giveBack(0, &f.frontier));
    try testing.expectEqual(0, f.run.attemptOf(0));
    try testing.expectEqual(0, f.frontier.pop(&f.run));
    try testing.expectEqual(.running, f.run.start(0, 7));
    try testing.expectEqual(1, f.run.attemptOf(0));
    try testing.expectEqual(7, f.run.nodes[0].started_ns);
    f.run.forgetAttempt(0);
    try f.end(0, .cancelled);
    try testing.expectEqual(0, f.run.attemptOf(0));
}

test "a node that was cancelled while it was handed out has not begun either, if whoever had it says so" {
    var f: Fixture = undefined;
    try f.init(callbacks[0..2], &.{}, false);
    defer f.deinit();
    for (0..2) |node| try f.start(@intCast(node));
    try f.end(0, .cancelled);
    try testing.expectEqual(1, f.run.attemptOf(0));
    f.run.forgetAttempt(0);
    try testing.expectEqual(0, f.run.attemptOf(0));
    try testing.expectEqual(.cancelled, f.run.stateOf(0));
    try f.end(1, .succeeded);
    f.run.forgetAttempt(1);
    try testing.expectEqual(1, f.run.attemptOf(1));
}

test "a node that waited for its runs goes on with the attempt it is at" {
    var f: Fixture = undefined;
    try f.init(callbacks[0..1], &.{}, false);
    defer f.deinit();
    try f.start(0);
    try testing.expectEqual(.waiting, f.run.pause(0, 0, .runs));
    try testing.expect(!f.run.unpause(0, .backoff, &f.frontier)); // a timer of another attempt is not meant for it
    try testing.expect(f.run.unpause(0, .runs, &f.frontier));
    try testing.expectEqual(.resumed, f.run.start(0, 9));
    try testing.expectEqual(.gone, f.run.start(0, 9));
    try testing.expectEqual(1, f.run.attemptOf(0));
    // Ended while it waits: it runs again, for that moment.
    try testing.expectEqual(.waiting, f.run.pause(0, 1, .runs));
    try testing.expect(f.run.wakeUp(0));
    try testing.expect(!f.run.wakeUp(0));
    try testing.expect(f.run.settleAt(0, .running, 1, .failed, 4, 4, &f.frontier));
}

test "who starts or waits in a run that is stopping is told so" {
    var f: Fixture = undefined;
    try f.init(&callbacks, &.{}, false);
    defer f.deinit();
    try f.start(0);
    try f.start(1);
    try testing.expectEqual(.waiting, f.run.pause(1, 1, .backoff));
    try testing.expect(f.run.unpause(1, .backoff, &f.frontier));
    try testing.expect(f.run.stop(.shutdown));
    try testing.expectEqual(.stopping, f.run.pause(0, 1, .backoff));
    try testing.expectEqual(.stopping, f.run.start(1, 9));
    try testing.expectEqual(.stopping, f.run.start(2, 4));
    try testing.expect(f.run.settle(0, .waiting, .cancelled, 5, &f.frontier));
    try f.end(1, .cancelled);
    try f.end(2, .cancelled);
    try testing.expect(f.frontier.over);
    try testing.expect(!f.run.stop(.cancel)); // it is over
    try testing.expectEqual(Cause.shutdown, f.run.cause.load(.monotonic));
}

// ------------------------------------------------------------------------------------------------------------ stand-ins

/// 0 has node 1 as its stand-in; 2 hangs below 0.
fn withStandIn() [3]Node {
    var nodes: [3]Node = @splat(plan_file.test_callback);
    nodes[0].stand_in = 1 + 1;
    return nodes;
}

test "a stand-in runs when its node has failed, and its success is the node's" {
    var f: Fixture = undefined;
    try f.init(&withStandIn(), &.{.{ 0, 2 }}, false);
    defer f.deinit();
    try f.start(0);
    try f.end(0, .failed);
    try f.expectStates(&.{ .waiting, .ready, .blocked });
    try f.start(1);
    try f.end(1, .succeeded);
    try f.expectStates(&.{ .succeeded, .succeeded, .ready });
    try testing.expectEqual(Cause.none, f.run.cause.load(.monotonic));
    try f.start(2);
    try f.end(2, .succeeded);
    try testing.expect(f.frontier.over);
}

test "the failure of a stand-in is told as that of its node" {
    var f: Fixture = undefined;
    try f.init(&withStandIn(), &.{.{ 0, 2 }}, false);
    defer f.deinit();
    try f.start(0);
    try f.end(0, .failed);
    try f.start(1);
    try f.end(1, .failed);
    try f.expectStates(&.{ .failed, .failed, .skipped });
    try testing.expectEqual(0, f.run.first_failed.load(.monotonic));
    try testing.expect(f.frontier.stopped and f.frontier.over);
}

test "a stand-in that is not needed is skipped with its node" {
    for ([_]Outcome{ .succeeded, .cancelled }, [_]State{ .succeeded, .cancelled }) |outcome, state| {
        var f: Fixture = undefined;
        try f.init(withStandIn()[0..2], &.{}, false);
        defer f.deinit();
        try f.start(0);
        try testing.expectEqual(null, f.frontier.pop(&f.run)); // it is no root
        try f.end(0, outcome);
        try f.expectStates(&.{ state, .skipped });
        try testing.expect(f.frontier.over);
    }
}

test "a skipped node takes its stand-in with it" {
    var f: Fixture = undefined;
    var nodes = withStandIn();
    nodes[2].flags.handled = true;
    try f.init(&nodes, &.{.{ 2, 0 }}, false);
    defer f.deinit();
    try f.start(2);
    try f.end(2, .failed);
    try f.expectStates(&.{ .skipped, .skipped, .failed });
    try testing.expect(f.frontier.over);
}

test "a join of kind any that nothing led to calls its stand-in" {
    var f: Fixture = undefined;
    var nodes = withStandIn();
    nodes[0].join = @backingInt(plan_file.Join.any);
    nodes[2].flags.handled = true;
    try f.init(&nodes, &.{.{ 2, 0 }}, false);
    defer f.deinit();
    try f.start(2);
    try f.end(2, .failed);
    try f.expectStates(&.{ .waiting, .ready, .failed });
    try f.start(1);
    try f.end(1, .succeeded);
    try f.expectStates(&.{ .succeeded, .succeeded, .failed });
    try testing.expectEqual(Cause.none, f.run.cause.load(.monotonic));
    try testing.expect(f.frontier.over);
}
