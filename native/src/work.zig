//! Work: what follows from the end of a node, gathered while nodes are settled and carried out by the dispatcher. Nodes are
//! settled through here, so that whoever ends one gives its permits back.
//!
//! ## Permits
//!
//! A node takes its permits when it is popped from a frontier, or waits in its run's line for them. `admitted` says who has some;
//! whoever ends the node, or puts it aside (a pause before the next attempt), exchanges that and gives them back. What is given
//! back may start nodes of other runs at once: these are `granted`, and have their permits already. But first what the ended node
//! made ready stands in line too, so that rank decides who goes next: `left` waits until the frontier was carried out.
//!
//! ## The way up
//!
//! Rooms between this one and the dispatcher end nodes and stop runs, and what follows from that is the dispatcher's, whom they
//! do not know: `Work.carry` and `cancel` go through the run's `Carrier`.

const std = @import("std");
const execution_file = @import("execution.zig");
const limits_file = @import("limits.zig");
const pool_file = @import("pool/pool.zig");
const run_file = @import("graph/run.zig");

const Execution = execution_file.Execution;
const Frontier = run_file.Frontier;
const Outcome = run_file.Outcome;

/// One run's nodes to start, and what permits given back on the way have started elsewhere.
pub const Work = struct {
    frontier: Frontier = .{},
    granted: limits_file.Granted = .{},
    /// Sets of permits to give back once the frontier was carried out.
    left: [left_max]u32 = undefined,
    left_count: u8 = 0,
    /// What the clock said a moment ago; 0: look at it.
    now: u64 = 0,

    const left_max = 16;

    /// As `.{}`, which would copy the room for grants as well.
    pub fn begin(work: *Work) void {
        work.frontier = .{};
        work.granted.first = 0;
        work.granted.count = 0;
        work.granted.owed = null;
        work.left_count = 0;
        work.now = 0;
    }

    /// As Run.settleUncounted (`carry` counts); who ends a node gives its permits back.
    pub fn settle(work: *Work, x: *Execution, node: u32, from: run_file.State, outcome: Outcome, now: u64) bool {
        return work.settleAt(x, node, from, 0, outcome, now, now);
    }

    pub fn settleAt(
        work: *Work,
        x: *Execution,
        node: u32,
        from: run_file.State,
        attempt: u32,
        outcome: Outcome,
        ended_ns: u64,
        now: u64,
    ) bool {
        if (!x.run.settleUncounted(node, from, attempt, outcome, ended_ns, now, &work.frontier)) return false;
        if (x.limits != null) work.giveBackPermits(x, node);
        return true;
    }

    pub fn giveBackPermits(work: *Work, x: *Execution, node: u32) void {
        const limits = x.limits orelse return;
        if (!x.admitted[node].swap(false, .seq_cst)) return; // see takePermits
        if (work.left_count == left_max) work.leave(limits);
        work.left[work.left_count] = x.plan.nodes[node].limits;
        work.left_count += 1;
    }

    /// What was given back is for others now.
    pub fn leave(work: *Work, limits: *limits_file.Limits) void {
        for (work.left[0..work.left_count]) |mask| limits.leave(mask, &work.granted);
        work.left_count = 0;
    }

    /// A node that waited for its permits has them now. True: it is ready, and goes on in this frontier.
    pub fn takePermits(work: *Work, x: *Execution, node: u32) bool {
        // Sequentially consistent, as is who ends the node meanwhile: it moves the state and then exchanges. One of the two
        // sees the other, and gives the permits back.
        x.admitted[node].store(true, .seq_cst);
        if (x.waits.len > 0) x.waits[node].limit_ns += x.context.clock.now() -| x.waits[node].last_started_ns;
        switch (x.run.nodes[node].look().state) {
            .ready => {
                work.frontier.push(&x.run, node);
                return true;
            },
            // A request that was put aside for its backoff.
            .running => if (x.operationOf(node).call.load(.acquire)) |call| call.proceed(),
            .blocked, .waiting, .succeeded, .failed, .skipped, .cancelled => work.giveBackPermits(x, node), // it ended while it waited
        }
        return false;
    }

    /// Carries on with what follows, and counts what has ended: who does not hold the execution does not look at it
    /// afterwards. `worker`: the pool worker this runs on.
    pub fn carry(work: *Work, x: *Execution, worker: ?*pool_file.Worker) void {
        const carrier: *Carrier = .of(x);
        carrier.carry(carrier, x, work, worker);
    }
};

/// True: the node has the permits it needs. False: it waits in line for them.
pub fn admit(x: *Execution, node: u32) bool {
    const mask = x.plan.nodes[node].limits;
    if (mask == 0 or x.admitted[node].load(.acquire)) return true;
    // When it began to wait, until it is known when it starts: whoever grants the permits reads it.
    x.waits[node].last_started_ns = x.context.clock.now();
    if (!x.limits.?.tryEnter(&x.line, node, mask, x.rankOf(node))) return false;
    x.admitted[node].store(true, .seq_cst);
    return true;
}

/// Who carries runs out.
pub const Carrier = struct {
    carry: *const fn (carrier: *Carrier, x: *Execution, work: *Work, worker: ?*pool_file.Worker) void,
    cancel: *const fn (carrier: *Carrier, x: *Execution, cause: run_file.Cause) void,

    pub fn of(x: *const Execution) *Carrier {
        return @ptrCast(@alignCast(x.carrier.?));
    }
};

/// Stops a run. Once stopped, or over, it stays as it is.
pub fn cancel(x: *Execution, cause: run_file.Cause) void {
    const carrier: *Carrier = .of(x);
    carrier.cancel(carrier, x, cause);
}
