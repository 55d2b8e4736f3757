//! One execution of a plan: who is ready, who is skipped, when it is over. It decides and never does: no thread,
//! socket or clock in here, the time is an argument. Whoever calls carries out what lands in the `Frontier`.
//!
//! ## The protocol
//!
//! Any number of threads settle nodes at once. A node moves
//!
//!     blocked -> ready <-> running -> succeeded | failed | cancelled
//!        |          ^         |
//!        |          `- waiting <- (backoff, runs it started, its stand-in) -> succeeded | failed | cancelled
//!        `-----------------------------> skipped | cancelled | failed        (decided by its last arrival)
//!
//! and every move but those of the last arrival, and of who is alone with a node (`startAlone`), is a compare-and-swap on `word`, which holds the state and the number of the
//! attempt. So exactly one caller wins each: a callback that ends while its run is being cancelled is either settled by
//! the callback or cancelled by the sweep, never both; and what an attempt brings that was given up cannot touch the next.
//!
//! 1. Arrival. Whoever settles a node arrives at each successor: it notes what kind of arrival it is (broken, cut, live)
//!    with plain counters and then takes one from `pending`, acquire-release. The one who takes the last sees all the notes
//!    and all the outputs of the other predecessors, and alone decides the successor's fate. A join of kind "any" is decided
//!    by its first live arrival instead: the compare-and-swap blocked -> ready; the last arrival finds it decided.
//! 2. Stopping. A stop is a store to `stop_flag` followed by a sweep over the states (by the caller, `sweep`). A node that
//!    starts running or waiting stores its state and then looks at `stop_flag`. All four accesses are sequentially consistent:
//!    either the sweep sees the node, or the node sees the stop. Both may; the compare-and-swap lets one of them win.
//! 3. The end. `remaining` counts nodes that are not final. It is lowered for each after the node's arrivals, for several at
//!    once where one thread ends them (`countSettled`), and the one who takes it to zero ends the run. A ready node is not
//!    final, so nothing is in anybody's frontier by then.
//!
//! A stand-in has no edges. It is started by the failure of the node it stands in for, which waits for it meanwhile, and takes its
//! outcome; where that node ends in another way the stand-in is skipped with it (`dismiss`).

const std = @import("std");
const sync = @import("../base/sync.zig");
const memory = @import("../base/memory.zig");
const plan_file = @import("plan.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Plan = plan_file.Plan;
const none = plan_file.none;

/// C: gb_state
pub const State = enum(u8) {
    blocked = 0,
    ready = 1,
    running = 2,
    succeeded = 3,
    failed = 4,
    skipped = 5,
    cancelled = 6,
    waiting = 7,

    pub fn final(state: State) bool {
        return switch (state) {
            .blocked, .ready, .running, .waiting => false,
            .succeeded, .failed, .skipped, .cancelled => true,
        };
    }
};

/// C: gb_cause
pub const Cause = enum(u8) { none = 0, failure = 1, cancel = 2, timeout = 3, shutdown = 4 };

/// What a node in state waiting waits for; of a ready one: what it has waited for and now goes on from.
pub const WaitsFor = enum(u2) { nothing, backoff, runs, stand_in };

pub const Word = packed struct(u32) {
    state: State = .blocked,
    waits_for: WaitsFor = .nothing,
    attempt: u22 = 0,
};

pub const NodeRun = struct {
    word: sync.Atomic(u32) = .init(@bitCast(Word{})),
    /// Predecessors that have not arrived.
    pending: sync.Atomic(u32),
    /// Live arrivals: deciding ones for "all", every one for "any".
    live: sync.Atomic(u32) = .init(0),
    /// A predecessor failed, or was skipped because one did.
    broken: sync.Atomic(bool) = .init(false),
    /// A predecessor was cancelled.
    cut: sync.Atomic(bool) = .init(false),
    /// Everything that it leads to has gone on without it.
    unneeded: sync.Atomic(bool) = .init(false),
    ready_ns: u64 = 0,
    started_ns: u64 = 0,
    ended_ns: u64 = 0,

    pub fn read(it: *const NodeRun) Word {
        return @bitCast(it.word.load(.acquire)); // pairs with every move
    }

    /// `read` for whoever has just left a sign that the other side looks for after its move: one of the two sees the other.
    pub fn look(it: *const NodeRun) Word {
        return @bitCast(it.word.load(.seq_cst)); // pairs with every move
    }

    /// One move; the word before it, or null if `from` no longer held.
    fn move(it: *NodeRun, from: Word, to: Word) bool {
        // Sequentially consistent: protocol 2.
        return it.word.cmpxchgStrong(@bitCast(from), @bitCast(to), .seq_cst, .monotonic) == null;
    }

    /// By its last arrival, which is alone with it; release: pairs with `read`.
    fn decideAs(it: *NodeRun, state: State) void {
        it.word.store(@bitCast(Word{ .state = state }), .release);
    }
};

/// Nodes that became ready and wait to be carried out by the thread that holds this list. No allocation: linked
/// through the run's `link` array, where a node is in one list at a time.
pub const Frontier = struct {
    head: u32 = none,
    tail: u32 = none,
    /// This call stopped the run: the caller now sweeps.
    stopped: bool = false,
    /// This call settled the last node: the caller now ends the run.
    over: bool = false,
    /// Nodes that have ended and are not counted yet, see `Run.countSettled`.
    settled: u32 = 0,

    pub fn push(list: *Frontier, run: *Run, node: u32) void {
        run.link[node] = none;
        if (list.tail == none) list.head = node else run.link[list.tail] = node;
        list.tail = node;
    }

    pub fn pop(list: *Frontier, run: *Run) ?u32 {
        if (list.head == none) return null;
        const node = list.head;
        list.head = run.link[node];
        if (list.head == none) list.tail = none;
        return node;
    }
};

pub const Outcome = union(enum) {
    succeeded,
    /// A condition: only these successors are followed.
    chose: []const u32,
    failed,
    cancelled,
};

/// Whether predicate `rule` - 1 holds of a node's output; asked once the node has succeeded.
pub const Judge = struct {
    context: *anyopaque,
    holds: *const fn (context: *anyopaque, node: u32, rule: u32) bool,
};

/// What is told as it happens: the ends of nodes, before anything that follows from them.
pub const Watcher = struct {
    context: *anyopaque,
    /// `node` has just become `state`, which is final, at this time.
    saw: *const fn (context: *anyopaque, node: u32, state: State, now: u64) void,
};

pub const Run = struct {
    plan: *const Plan,
    nodes: []NodeRun,
    link: []u32,
    /// Whether a failure leaves independent nodes alone.
    keep_going: bool,
    judge: ?Judge = null,
    watcher: ?Watcher = null,
    /// Sequentially consistent, see protocol 2. A byte of its own: the binding reads it through a pointer.
    stop_flag: sync.Atomic(u8) = .init(0),
    cause: sync.Atomic(Cause) = .init(.none),
    /// The first node whose failure nobody handles.
    first_failed: sync.Atomic(u32) = .init(none),
    remaining: sync.Atomic(u32),
    started_ns: u64,
    ended_ns: u64 = 0,

    pub fn init(run: *Run, arena: Allocator, plan: *const Plan, keep_going: bool, now: u64) Allocator.Error!void {
        const count = plan.nodes.len;
        const nodes = try memory.alloc(NodeRun, arena, count);
        for (nodes, plan.predecessor_count) |*node, pending| node.* = .{ .pending = .init(pending) };
        run.* = .{
            .plan = plan,
            .nodes = nodes,
            .link = try memory.alloc(u32, arena, count),
            .keep_going = keep_going,
            .remaining = .init(@intCast(count)),
            .started_ns = now,
        };
    }

    /// Puts the roots into the frontier. A plan without nodes is over at once.
    pub fn begin(run: *Run, now: u64, frontier: *Frontier) void {
        for (run.plan.roots) |node| {
            run.nodes[node].ready_ns = now;
            run.nodes[node].decideAs(.ready);
            frontier.push(run, node);
        }
        if (run.nodes.len == 0) run.end(now, frontier);
    }

    pub fn stateOf(run: *const Run, node: u32) State {
        return run.nodes[node].read().state;
    }

    pub fn attemptOf(run: *const Run, node: u32) u32 {
        return run.nodes[node].read().attempt;
    }

    pub fn stopping(run: *const Run) bool {
        return run.stop_flag.load(.seq_cst) != 0; // pairs with the store in `stop`, protocol 2
    }

    pub fn isOver(run: *const Run) bool {
        return run.remaining.load(.acquire) == 0; // pairs with the fetchSub in `settle`
    }

    // ------------------------------------------------------------------------------------------ moves that end nothing

    pub const Entered = enum {
        /// The next attempt.
        running,
        /// The attempt that it was at goes on: runs that it started have ended.
        resumed,
        /// It runs, but the run is stopping: the caller settles it as cancelled.
        stopping,
        /// It was not ready any more.
        gone,
    };

    /// ready -> running.
    pub fn start(run: *Run, node: u32, now: u64) Entered {
        const it = &run.nodes[node];
        const word = it.read();
        if (word.state != .ready) return .gone;
        const resumes = word.waits_for == .runs;
        if (word.attempt == 0) it.started_ns = now;
        const attempt = if (resumes) word.attempt else word.attempt +| 1;
        if (!it.move(word, .{ .state = .running, .attempt = attempt })) return .gone; // protocol 2
        if (run.stopping()) return .stopping;
        return if (resumes) .resumed else .running;
    }

    /// The same for callers with one answer to both: false: not running, or the run is stopping.
    pub fn enter(run: *Run, node: u32, now: u64) bool {
        return run.start(node, now) == .running;
    }

    /// running -> ready: it was handed out and not started after all. False: somebody ended it meanwhile.
    pub fn giveBack(run: *Run, node: u32, frontier: *Frontier) bool {
        const it = &run.nodes[node];
        const word = it.read();
        if (word.state != .running) return false;
        // A ready node is ours alone until the frontier is carried out.
        if (!it.move(word, .{ .state = .ready, .attempt = word.attempt -| 1 })) return false;
        frontier.push(run, node);
        return true;
    }

    pub const Paused = enum {
        waiting,
        /// It waits, but the run is stopping: the caller settles it as cancelled.
        stopping,
        /// It was not running any more, or another attempt is.
        gone,
    };

    /// running -> waiting. `attempt` 0: whichever runs.
    pub fn pause(run: *Run, node: u32, attempt: u32, what: WaitsFor) Paused {
        const it = &run.nodes[node];
        const word = it.read();
        if (word.state != .running or (attempt != 0 and attempt != word.attempt)) return .gone;
        if (!it.move(word, .{ .state = .waiting, .waits_for = what, .attempt = word.attempt })) return .gone; // protocol 2
        return if (run.stopping()) .stopping else .waiting;
    }

    /// waiting -> ready. False: it does not wait any more, or for something else.
    pub fn unpause(run: *Run, node: u32, what: WaitsFor, frontier: *Frontier) bool {
        const it = &run.nodes[node];
        const word = it.look(); // after the news of an ended run, see children.zig
        if (word.state != .waiting or word.waits_for != what) return false;
        if (!it.move(word, .{ .state = .ready, .waits_for = if (what == .runs) .runs else .nothing, .attempt = word.attempt })) return false;
        frontier.push(run, node);
        return true;
    }

    /// A running node that is about to be cancelled, or one that was cancelled while it was handed out, had not begun after all.
    pub fn forgetAttempt(run: *Run, node: u32) void {
        const it = &run.nodes[node];
        while (true) { // it may be cancelled in between
            const word = it.read();
            if (word.state != .running and word.state != .cancelled) return;
            if (it.move(word, .{ .state = word.state, .attempt = word.attempt -| 1 })) return;
        }
    }

    /// A node that waits for runs -> running, with the attempt it is at: for whoever is about to end it. False: it moved meanwhile.
    pub fn wakeUp(run: *Run, node: u32) bool {
        const it = &run.nodes[node];
        const word = it.read();
        if (word.state != .waiting or word.waits_for != .runs) return false;
        return it.move(word, .{ .state = .running, .attempt = word.attempt });
    }

    /// Nobody needs the node any more. If it is blocked its last arrival finds that out; in any other state it is for the caller
    /// to end it.
    pub fn dropBlocked(run: *Run, node: u32) State {
        run.nodes[node].unneeded.store(true, .seq_cst); // pairs with decide
        return run.nodes[node].look().state;
    }

    // ------------------------------------------------------------------------------------------------- moves that end

    pub fn settle(run: *Run, node: u32, from: State, outcome: Outcome, now: u64, frontier: *Frontier) bool {
        return run.settleAt(node, from, 0, outcome, now, now, frontier);
    }

    /// As `settleUncounted`, and counts it.
    pub fn settleAt(run: *Run, node: u32, from: State, attempt: u32, outcome: Outcome, ended_ns: u64, now: u64, frontier: *Frontier) bool {
        if (!run.settleUncounted(node, from, attempt, outcome, ended_ns, now, frontier)) return false;
        if (run.countSettled(frontier)) run.end(now, frontier);
        return true;
    }

    /// The nodes of `frontier` that have ended: what is left of the run is lowered by as many, once. Until then the run is not
    /// over; afterwards it may be, and whoever does not hold it must not look at it again. True: it is, by this call, and who
    /// calls notes when that was: later than the last of these nodes, for others were counted by others.
    pub fn countSettled(run: *Run, frontier: *Frontier) bool {
        const settled = frontier.settled;
        if (settled == 0) return false;
        frontier.settled = 0;
        // Acquire-release: the last one must see every other node's final state and times.
        const before = run.remaining.fetchSub(settled, .acq_rel);
        assert(before >= settled);
        return before == settled;
    }

    /// Ends a node in state `from` and does everything that follows from it, but counting it. False: somebody else had ended it, or another
    /// attempt than `attempt` (0: any) is at it; nothing was changed, the outcome is to be dropped. `ended_ns`: a callback may
    /// have ended some time before that is known here. A failed node that has a stand-in waits for that.
    pub fn settleUncounted(
        run: *Run,
        node: u32,
        from: State,
        attempt: u32,
        outcome: Outcome,
        ended_ns: u64,
        now: u64,
        frontier: *Frontier,
    ) bool {
        const it = &run.nodes[node];
        const word = it.read();
        if (word.state != from or (attempt != 0 and attempt != word.attempt)) return false;
        if (outcome == .failed and from != .waiting and run.plan.nodes[node].stand_in != 0) {
            return run.callStandIn(node, word, now, frontier);
        }
        const final: State = switch (outcome) {
            .succeeded, .chose => .succeeded,
            .failed => .failed,
            .cancelled => .cancelled,
        };
        // The node's times and output are visible to who reads the state. The winner alone writes ended_ns,
        // but a reader may see the final state before it: reports are exact once the run is over.
        if (!it.move(word, .{ .state = final, .attempt = word.attempt })) return false;
        it.ended_ns = ended_ns;
        if (run.watcher) |watcher| watcher.saw(watcher.context, node, final, ended_ns);
        if (final == .failed) run.noteFailure(node, frontier);

        run.follow(node, if (outcome == .chose) outcome.chose else null, now, frontier);
        // The node this one stands in for has waited for it.
        if (run.plan.stands_for.len > 0 and run.plan.stands_for[node] != none) {
            _ = run.settleUncounted(run.plan.stands_for[node], .waiting, 0, outcome, ended_ns, now, frontier);
        }
        return true;
    }

    /// What follows from the end of `node`: it is final, and not counted yet.
    pub fn follow(run: *Run, node: u32, chosen: ?[]const u32, now: u64, frontier: *Frontier) void {
        var cascade: Frontier = .{};
        frontier.settled += 1 + run.dismiss(node, now);
        run.arriveAtSuccessors(node, chosen, now, frontier, &cascade);
        while (cascade.pop(run)) |ended| {
            frontier.settled += 1 + run.dismiss(ended, now);
            run.arriveAtSuccessors(ended, null, now, frontier, &cascade);
        }
    }

    fn callStandIn(run: *Run, node: u32, word: Word, now: u64, frontier: *Frontier) bool {
        const it = &run.nodes[node];
        if (!it.move(word, .{ .state = .waiting, .waits_for = .stand_in, .attempt = word.attempt })) return false;
        const stand_in = run.plan.nodes[node].stand_in - 1;
        run.nodes[stand_in].ready_ns = now;
        assert(run.nodes[stand_in].move(.{}, .{ .state = .ready })); // whoever skips it has ended this node, see `dismiss`
        frontier.push(run, stand_in); // a run that is stopping refuses it there, and so ends both
        return true;
    }

    /// `node` has ended: the stand-in that it did not need is skipped. Returns how many nodes that settled.
    fn dismiss(run: *Run, node: u32, now: u64) u32 {
        var dismissed: u32 = 0;
        var at = node;
        while (run.plan.nodes[at].stand_in != 0) {
            at = run.plan.nodes[at].stand_in - 1;
            const it = &run.nodes[at];
            if (!it.move(.{}, .{ .state = .skipped })) break; // it ran, and sees to its own
            it.ended_ns = now;
            dismissed += 1;
        }
        return dismissed;
    }

    /// Asks for an early end. True for exactly one caller, who then sweeps. False: it was asked before, or is over.
    pub fn stop(run: *Run, cause: Cause) bool {
        if (run.isOver()) return false;
        // A failure noted under keep_going does not stop, so a later cancel may still take its place.
        var seen = run.cause.load(.monotonic);
        while (true) {
            if (run.stop_flag.load(.seq_cst) != 0) return false;
            if (seen != .none and !(seen == .failure and run.keep_going)) return false;
            seen = run.cause.cmpxchgWeak(seen, cause, .acq_rel, .monotonic) orelse break;
        }
        return run.stop_flag.swap(1, .seq_cst) == 0; // pairs with `stopping`, protocol 2
    }

    fn end(run: *Run, now: u64, frontier: *Frontier) void {
        run.ended_ns = now;
        frontier.over = true;
    }

    pub fn noteFailure(run: *Run, node: u32, frontier: *Frontier) void {
        if (run.nodes.len > 0 and run.plan.nodes[node].flags.handled) return;
        // A stand-in's failure is told as that of the node it stands in for.
        if (run.plan.stands_for.len > 0 and run.plan.stands_for[node] != none) return;
        _ = run.first_failed.cmpxchgStrong(none, node, .monotonic, .monotonic);
        if (run.keep_going) {
            _ = run.cause.cmpxchgStrong(.none, .failure, .monotonic, .monotonic);
        } else if (run.cause.cmpxchgStrong(.none, .failure, .acq_rel, .monotonic) == null) {
            // A swap: between the two lines `stop` may have set it, and then it is the one who sweeps.
            if (run.stop_flag.swap(1, .seq_cst) == 0) frontier.stopped = true; // pairs with `stopping`, protocol 2
        }
    }

    fn arriveAtSuccessors(run: *Run, node: u32, chosen: ?[]const u32, now: u64, frontier: *Frontier, cascade: *Frontier) void {
        const plan = run.plan;
        const it = &run.nodes[node];
        const state = it.read().state;
        const broken = state == .failed or (state == .skipped and it.broken.load(.monotonic));
        const first = plan.successor_first[node];
        const has_any = plan.predecessor_first.len > 0;
        for (plan.successorsOf(node), first..) |edge, index| {
            const target = &run.nodes[edge.node];
            var followed = state == .succeeded and
                (chosen == null or std.mem.indexOfScalar(u32, chosen.?, edge.node) != null);
            if (followed and plan.rules.len > 0 and plan.rules[index] != 0) {
                followed = if (run.judge) |judge| judge.holds(judge.context, node, plan.rules[index]) else true;
            }
            if (broken) target.broken.store(true, .monotonic);
            if (state == .cancelled) target.cut.store(true, .monotonic);
            if (followed and (edge.deciding or has_any)) switch (plan.joinOf(edge.node)) {
                .all => if (edge.deciding) {
                    _ = target.live.fetchAdd(1, .monotonic);
                },
                .any => run.fire(edge.node, now, frontier),
                .all_done => {},
            };
            if (arrive(target)) run.decide(edge.node, now, frontier, cascade);
        }
    }

    /// True for the last arrival.
    fn arrive(target: *NodeRun) bool {
        // The last that is missing can only be this one: nobody else touches the number any more. Acquire: sees what the
        // others' arrivals noted.
        if (target.pending.load(.acquire) == 1) {
            target.pending.store(0, .monotonic);
            return true;
        }
        // Acquire-release: makes the notes before it and the node's output visible to the last arrival (protocol 1).
        const before = target.pending.fetchSub(1, .acq_rel);
        assert(before > 0);
        return before == 1;
    }

    /// A live arrival at a join of kind "any". In a run that is stopping its last arrival cancels it.
    fn fire(run: *Run, node: u32, now: u64, frontier: *Frontier) void {
        const it = &run.nodes[node];
        if (it.live.fetchAdd(1, .monotonic) != 0 or run.stopping() or it.unneeded.load(.monotonic)) return;
        it.ready_ns = now; // the first live arrival is one thread
        if (it.move(.{}, .{ .state = .ready })) frontier.push(run, node);
    }

    /// All predecessors of `node` have ended: it is ready, or ends here without having run.
    fn decide(run: *Run, node: u32, now: u64, frontier: *Frontier, cascade: *Frontier) void {
        const it = &run.nodes[node];
        const plan = run.plan;
        const broken = it.broken.load(.monotonic);
        const cut = it.cut.load(.monotonic);
        const stopped = it.unneeded.load(.seq_cst) or run.stopping();
        const fate: State = switch (plan.joinOf(node)) {
            .all => if (broken)
                .skipped
            else if (cut)
                .cancelled
            else if (plan.deciding_count[node] != 0 and it.live.load(.monotonic) == 0)
                .skipped
            else if (stopped)
                .cancelled
            else
                .ready,
            // The first live arrival has decided it, unless the run was stopping or nobody needs the node.
            .any => if (it.read().state != .blocked)
                return
            else if (stopped or it.live.load(.monotonic) != 0)
                .cancelled
            else if (broken)
                .failed
            else if (cut)
                .cancelled
            else
                .skipped,
            .all_done => if (stopped) .cancelled else .ready,
        };
        switch (fate) {
            .ready => {
                it.ready_ns = now;
                if (plan.predecessor_first.len == 0) it.decideAs(.ready) else {
                    // Store, then look; who drops a node says so, then looks at the state: one of the two sees the other.
                    it.word.store(@bitCast(Word{ .state = .ready }), .seq_cst);
                    if (it.unneeded.load(.seq_cst) and it.move(.{ .state = .ready }, .{ .state = .cancelled })) {
                        it.ended_ns = now;
                        if (run.watcher) |watcher| watcher.saw(watcher.context, node, .cancelled, now);
                        return cascade.push(run, node);
                    }
                }
                frontier.push(run, node);
            },
            .failed => {
                it.ended_ns = now;
                if (plan.nodes[node].stand_in != 0) {
                    assert(run.callStandIn(node, .{}, now, frontier));
                    return;
                }
                it.decideAs(.failed);
                if (run.watcher) |watcher| watcher.saw(watcher.context, node, .failed, now);
                run.noteFailure(node, frontier);
                cascade.push(run, node);
            },
            else => {
                it.ended_ns = now;
                it.decideAs(fate);
                if (run.watcher) |watcher| watcher.saw(watcher.context, node, fate, now);
                cascade.push(run, node);
            },
        }
    }

    pub fn counts(run: *const Run) [8]u32 {
        var result: [8]u32 = @splat(0);
        for (0..run.nodes.len) |node| result[@backingInt(run.stateOf(@intCast(node)))] += 1;
        return result;
    }
};
