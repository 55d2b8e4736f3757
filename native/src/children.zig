//! Runs that nodes of a run have started: a workflow in a workflow, a map over one, a loop's next round. Their parent keeps a
//! list of those that are not over; a composite node waits for its own, looks again when one has ended, and takes them with it
//! when it ends before them.

const execution_file = @import("execution.zig");
const work_file = @import("work.zig");

const Execution = execution_file.Execution;
const Work = work_file.Work;

pub fn adopt(x: *Execution, child: *Execution) void {
    x.children_mutex.lock();
    defer x.children_mutex.unlock();
    child.next_child = x.children;
    if (x.children) |first| first.previous_child = child;
    x.children = child;
}

pub fn disown(x: *Execution, child: *Execution) void {
    x.children_mutex.lock();
    defer x.children_mutex.unlock();
    if (child.previous_child) |previous| previous.next_child = child.next_child else x.children = child.next_child;
    if (child.next_child) |next| next.previous_child = child.previous_child;
    child.next_child = null;
    child.previous_child = null;
}

/// A run that `node` (null: any node) started and that is not stopping; retained.
fn live(x: *Execution, node: ?u32) ?*Execution {
    x.children_mutex.lock();
    defer x.children_mutex.unlock();
    var at = x.children;
    while (at) |child| : (at = child.next_child) {
        if (node != null and child.parent_node != node.?) continue;
        if (child.run.stopping() or child.run.isOver()) continue;
        child.retain();
        return child;
    }
    return null;
}

/// Stops the runs that `node`, or any node, has started.
pub fn cancel(x: *Execution, node: ?u32) void {
    while (live(x, node)) |child| {
        work_file.cancel(child, .cancel);
        child.release();
    }
}

/// A callback waits for the runs it started. False: it did not run any more.
/// `overdue` is called where the time of its attempt was up meanwhile.
pub fn waitForRuns(
    x: *Execution,
    node: u32,
    attempt: u32,
    now: u64,
    work: *Work,
    overdue: *const fn (x: *Execution, node: u32) void,
) bool {
    const operation = x.operationOf(node);
    // Before the looks below: who ends a run, or whose time is up, looks at both the other way round.
    switch (x.run.pause(node, attempt, .runs)) {
        .gone => return false,
        .stopping => {
            _ = work.settle(x, node, .waiting, .cancelled, now);
            cancel(x, node);
        },
        .waiting => if (operation.overdue.swap(false, .seq_cst)) {
            overdue(x, node);
        } else if (operation.news.load(.seq_cst)) {
            _ = x.run.unpause(node, .runs, &work.frontier);
        },
    }
    return true;
}

/// A run that `node` started is over.
pub fn ended(x: *Execution, node: u32) void {
    x.operationOf(node).news.store(true, .seq_cst); // before the look: who pauses looks at both the other way round
    var work: Work = .{};
    if (x.run.unpause(node, .runs, &work.frontier)) work.carry(x, null);
}
