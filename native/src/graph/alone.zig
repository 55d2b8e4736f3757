//! Moves of who is alone with a node: once its turn has come, nobody but the thread that runs it can move a template or native
//! function, where `Plan.tasks_are_alone`. The sweep leaves these to themselves, they are over in a moment; nothing drops them,
//! no stand-in waits for them, and they stand in no line. So what run.zig does with compare-and-swaps is done with plain
//! stores here: of a node that costs some nanoseconds each of those is a good part.
//!
//! A stop at the very moment a node begins may be overlooked, as it may be a moment later.

const std = @import("std");
const run_file = @import("run.zig");

const assert = std.debug.assert;
const Frontier = run_file.Frontier;
const Run = run_file.Run;
const Word = run_file.Word;

/// As `Run.start`, for a node that was never started.
pub fn start(run: *Run, node: u32, now: u64) Run.Entered {
    const it = &run.nodes[node];
    assert(it.word.load(.monotonic) == @as(u32, @bitCast(Word{ .state = .ready })));
    it.started_ns = @max(now, it.ready_ns); // by another thread's stopwatch it may have been some nanoseconds later
    it.word.store(@bitCast(Word{ .state = .running, .attempt = 1 }), .release); // pairs with NodeRun.read
    return if (run.stop_flag.load(.monotonic) != 0) .stopping else .running;
}

/// As `Run.settleUncounted`, for a node that was started here and has succeeded.
pub fn succeed(run: *Run, node: u32, now: u64, frontier: *Frontier) void {
    const it = &run.nodes[node];
    it.ended_ns = now;
    it.word.store(@bitCast(Word{ .state = .succeeded, .attempt = 1 }), .release); // pairs with NodeRun.read
    if (run.watcher) |watcher| watcher.saw(watcher.context, node, .succeeded, now);
    run.follow(node, null, now, frontier);
}
