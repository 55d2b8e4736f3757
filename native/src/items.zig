//! Runs of items (map over a callable): no nodes, and so no frontier. Numbers are handed out as if they were nodes, and `Items`
//! counts what comes back. Ending such a run is the dispatcher's, when it is told so here.

const execution_file = @import("execution.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");

const Execution = execution_file.Execution;
const Queue = queue_file.Queue;
const none = plan_file.none;

pub fn begin(x: *Execution, by: ?*Queue) void {
    x.busy(); // until it is over
    x.context.lobby.offerItems(x.itemSource(), by);
}

/// Takes in what became of `ended` items. Late ones, of a run that is over, change nothing. True: the caller ends the run.
pub fn takeIn(x: *Execution, succeeded: u32, failed: u32, first_failed: u32, by: *Queue) bool {
    const items = &x.items;
    items.mutex.lock();
    if (items.closed) {
        items.mutex.unlock();
        return false;
    }
    items.succeeded += succeeded;
    items.failed += failed;
    const left = x.run.remaining.raw - succeeded - failed;
    if (left > 0) x.run.remaining.store(left, .monotonic);
    items.mutex.unlock();
    if (failed > 0) {
        _ = x.run.first_failed.cmpxchgStrong(none, first_failed, .monotonic, .monotonic);
        if (x.run.keep_going) {
            _ = x.run.cause.cmpxchgStrong(.none, .failure, .monotonic, .monotonic);
        } else if (x.run.stop(.failure)) return true;
    }
    if (left == 0) return true;
    x.context.lobby.itemsOver(x.itemSource(), succeeded + failed, by);
    return false;
}

/// Nothing more is handed out, and what is out is given up. True for exactly one caller, who tells of the end.
pub fn close(x: *Execution) bool {
    x.items.mutex.lock();
    const closed = x.items.closed;
    x.items.closed = true;
    x.items.mutex.unlock();
    if (closed) return false;
    _ = x.context.lobby.drainItems(x.itemSource());
    if (x.run.stopping()) if (x.loop_queue) |queue| x.context.lobby.postOnce(queue, &x.stopping_letter);
    x.run.ended_ns = x.context.clock.now();
    x.run.remaining.store(0, .release); // pairs with isOver
    return true;
}

/// As Run.counts: those that did not come back are cancelled, or blocked while it goes on.
pub fn counts(x: *const Execution) [8]u32 {
    const items = @constCast(&x.items);
    items.mutex.lock();
    defer items.mutex.unlock();
    var result: [8]u32 = @splat(0);
    result[@backingInt(run_file.State.succeeded)] = items.succeeded;
    result[@backingInt(run_file.State.failed)] = items.failed;
    const rest: run_file.State = if (items.closed) .cancelled else .blocked;
    result[@backingInt(rest)] = items.total - items.succeeded - items.failed;
    return result;
}
