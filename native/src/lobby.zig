//! The lobby: the room where ready callbacks and news meet the Python threads that pull them. Native code calls nothing.
//! One mutex, held for a few dozen nanoseconds a batch, never around a wait. Any thread may call.
//!
//! ## Who takes what
//!
//! - A caller's queue takes callbacks of the one source it pulls (the run its thread waits for), so that no caller
//!   inherits another run's slow node and a nested `execute` cannot deadlock.
//! - A thread's queue takes from any source in turn, round-robin between runs.
//! - A loop's queue takes callbacks of the sources bound to that loop.
//!
//! ## How many at a time
//!
//! `share`: as many as fit into 200 microseconds at the pace the source has shown (an exponential average), at most a fair
//! share between the threads that are at it, at most `batch_max`. A fixed batch would let one slow callback hold up
//! everything claimed behind it.
//!
//! ## Who wakes whom
//!
//! A wake across cores costs 40-50 microseconds and with a GIL a second thread is often of no use. So whoever makes
//! callbacks ready wakes the source's caller if that is parked; a callback thread only where no caller pulls, or where the
//! source's callbacks have been slow (then they block, and threads help). Everything else is the watchdog's: on its tick
//! (1 ms, only while callbacks are out) it looks for threads that have been out for longer than `held_up_ns` while work
//! waits behind them, and wakes one parked callback thread with `lender` set: that thread runs what is left of the other's
//! batch, and asks for the next helper before it starts (`lend`). For this to work one callback thread must be parked
//! whenever user code runs: `News.start_thread` asks Python to start one when the last parked one is given work.
//!
//! ## Parking without losing a wake
//!
//! Waiter: under the mutex find nothing, set `parked`, read `word`; release; futex-wait on that value of `word`.
//! Waker: under the mutex add the news, clear `parked`, step `word`; release; futex-wake. The two mutex sections are
//! ordered: either the waiter finds the news, or the waker finds it parked and changes `word`, and the futex refuses to wait.

const std = @import("std");
const sync = @import("base/sync.zig");
const os = @import("base/os.zig");
const queue_file = @import("queue.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Kind = queue_file.Kind;
const Letter = queue_file.Letter;
const List = queue_file.List;
const News = queue_file.News;
const Queue = queue_file.Queue;
const Source = queue_file.Source;
const batch_max = queue_file.batch_max;
const items_max = queue_file.items_max;

const batch_budget_ns = 200 * std.time.ns_per_us;
const slow_callback_ns = 100 * std.time.ns_per_us;
const held_up_ns = std.time.ns_per_ms;
/// What a callback is taken to cost before one has been seen.
const first_guess_ns = 20 * std.time.ns_per_us;
pub const tick_ns = std.time.ns_per_ms;
/// The watchdog lies down after so many ticks without anybody out.
const quiet_ticks_max = 20;

/// Callbacks that ended, and how long they ran in all: their own time, without what it took to get there and back.
pub const Done = struct { count: u32 = 0, busy_ns: u64 = 0 };

pub const WaitError = error{ Interrupted, TimedOut, Shutdown };

pub const Lobby = struct {
    gpa: Allocator,
    mutex: sync.Mutex = .init,
    closed: bool = false,
    threads_max: u32,
    /// Callback threads that exist (their queues).
    threads: u32 = 0,
    threads_parked: u32 = 0,
    /// Threads Python was asked to start and that have not shown up.
    threads_coming: u32 = 0,
    /// A helper was wanted while none was parked: the next callback thread to wait starts here.
    pending_lender: u64 = 0,
    queues: std.ArrayList(*Queue) = .empty,
    ready_sources: List(Source) = .{},
    parked_threads: List(Queue) = .{},
    out_queues: List(Queue) = .{},
    quiet_ticks: u32 = 0,
    /// Set by the runtime: arms the tick that calls `watch`. Cheap when armed.
    arm: *const fn (context: *anyopaque) void,
    arm_context: *anyopaque,

    pub fn of(queue: *Queue) *Lobby {
        return @ptrCast(@alignCast(queue.lobby));
    }

    pub fn createQueue(lobby: *Lobby, kind: Kind, token: u64) error{ OutOfMemory, Shutdown, NoDescriptor }!*Queue {
        const queue = try lobby.gpa.create(Queue);
        errdefer lobby.gpa.destroy(queue);
        queue.* = .{ .lobby = lobby, .gpa = lobby.gpa, .kind = kind, .token = token };
        if (kind == .loop) queue.wakeup = os.Wakeup.init() catch return error.NoDescriptor;
        errdefer if (queue.wakeup) |*wakeup| wakeup.deinit();
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        if (lobby.closed) return error.Shutdown;
        try lobby.queues.append(lobby.gpa, queue);
        if (kind == .thread) {
            lobby.threads += 1;
            lobby.threads_coming -|= 1;
        }
        return queue;
    }

    pub fn destroyQueue(lobby: *Lobby, queue: *Queue) void {
        lobby.mutex.lock();
        lobby.backIn(queue, .{});
        while (queue.letters.first) |letter| unlink(queue, letter);
        while (queue.sources.first) |source| {
            queue.sources.remove(source);
            source.listed = false;
        }
        if (queue.pulls) |source| {
            source.caller = null;
            lobby.wakeForLeftOvers(source);
        }
        if (queue.kind == .thread) lobby.threads -= 1;
        _ = lobby.queues.swapRemove(std.mem.indexOfScalar(*Queue, lobby.queues.items, queue).?);
        queue.gone = true;
        lobby.mutex.unlock();
        queue.release();
    }

    // ------------------------------------------------------------------------------------------------ news in

    /// Posts a letter. Its item must not change until it is delivered or withdrawn.
    pub fn post(lobby: *Lobby, queue: *Queue, letter: *Letter) void {
        lobby.mutex.lock();
        assert(letter.queue == null);
        if (queue.gone) return lobby.mutex.unlock();
        letter.queue = queue;
        queue.letters.append(letter);
        lobby.notifyAndUnlock(queue);
    }

    /// Posts a letter unless it is on its way already.
    pub fn postOnce(lobby: *Lobby, queue: *Queue, letter: *Letter) void {
        lobby.mutex.lock();
        if (letter.queue != null or queue.gone) return lobby.mutex.unlock();
        letter.queue = queue;
        queue.letters.append(letter);
        lobby.notifyAndUnlock(queue);
    }

    /// Takes a letter back if it was not delivered. Afterwards its owner may free it.
    pub fn withdraw(lobby: *Lobby, letter: *Letter) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        if (letter.queue) |queue| unlink(queue, letter);
    }

    pub fn wake(lobby: *Lobby, queue: *Queue) void {
        lobby.mutex.lock();
        queue.poked = true;
        lobby.notifyAndUnlock(queue);
    }

    /// The source's callbacks may be run by `caller`'s thread while that waits.
    pub fn setCaller(lobby: *Lobby, source: *Source, caller: ?*Queue) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        if (source.caller) |before| before.pulls = null;
        if (caller) |queue| {
            if (queue.gone) return;
            if (queue.pulls) |other| other.caller = null;
            queue.pulls = source;
        }
        source.caller = caller;
    }

    /// `queue`'s thread no longer runs the source's callbacks, if it did.
    pub fn unsetCaller(lobby: *Lobby, source: *Source, queue: *Queue) void {
        lobby.mutex.lock();
        if (source.caller == queue) {
            source.caller = null;
            queue.pulls = null;
            lobby.wakeForLeftOvers(source);
        }
        lobby.mutex.unlock();
    }

    /// A caller has left: what was offered while it was on its way out woke nobody.
    fn wakeForLeftOvers(lobby: *Lobby, source: *Source) void {
        if (source.count == 0 or source.loop != null) return;
        if (lobby.parked_threads.first) |thread| {
            lobby.rouse(thread);
            sync.futex.wake(&thread.word, 1);
        }
    }

    /// Offers ready callbacks. `by`: the queue whose thread is about to take some itself, if there is one.
    pub fn offer(lobby: *Lobby, source: *Source, nodes: []const u32, by: ?*Queue) void {
        if (nodes.len == 0) return;
        lobby.mutex.lock();
        for (nodes) |node| {
            assert(source.count < source.ring.len);
            const at = source.head + source.count;
            source.ring[if (at >= source.ring.len) at - source.ring.len else at] = node;
            source.count += 1;
        }
        if (source.loop) |loop| {
            if (loop.gone) return lobby.mutex.unlock();
            if (!source.listed) {
                loop.sources.append(source);
                source.listed = true;
            }
            return lobby.notifyAndUnlock(loop);
        }
        if (!source.listed) {
            lobby.ready_sources.append(source);
            source.listed = true;
        }
        const taken_here = by != null and (by.?.kind == .thread or source.caller == by);
        if (!taken_here) if (source.caller) |caller| if (caller.parked) return lobby.notifyAndUnlock(caller);
        // A caller that is out will be back; threads come for slow callbacks, and where nobody else would.
        const slow = source.average_ns > slow_callback_ns;
        const helpers_wanted = if (taken_here) source.count > 1 and slow else source.caller == null or slow;
        if (helpers_wanted) if (lobby.parked_threads.first) |thread| return lobby.notifyAndUnlock(thread);
        lobby.mutex.unlock();
    }

    /// Takes ready callbacks back (their run is stopping). Fewer than `nodes` has room for: these were all.
    pub fn drain(lobby: *Lobby, source: *Source, nodes: []u32) []u32 {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        const count = @min(source.count, nodes.len);
        for (nodes[0..count]) |*node| {
            node.* = source.ring[source.head];
            source.head = if (source.head + 1 == source.ring.len) 0 else source.head + 1;
        }
        source.count -= @intCast(count);
        if (source.count == 0) lobby.unlist(source);
        return nodes[0..count];
    }

    /// The source's run is over: nothing may point to it any more.
    pub fn forget(lobby: *Lobby, source: *Source) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        source.count = 0;
        lobby.unlist(source);
        if (source.caller) |caller| caller.pulls = null;
        source.caller = null;
        var out = lobby.out_queues.first;
        while (out) |queue| : (out = queue.next) if (queue.out_source == source) {
            queue.out_source = null;
        };
    }

    // ------------------------------------------------------------------------------------------------ news out

    /// Callbacks of this queue's thread have ended since it last asked; it stays out.
    pub fn noteProgress(lobby: *Lobby, queue: *Queue, done: Done) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        if (!queue.listed or queue.parked) return;
        const now = os.monotonicNs();
        pace(queue, done);
        queue.out_count -|= done.count;
        queue.out_since_ns = now;
        queue.lend_after_ns = held_up_ns; // what it does now may be held up again
    }

    pub fn wait(lobby: *Lobby, queue: *Queue, done: Done, timeout_ns: ?u64, news: *News) WaitError!void {
        news.clear();
        const start_ns = os.monotonicNs();
        lobby.mutex.lock();
        lobby.backIn(queue, done);
        while (true) {
            if (lobby.fill(queue, news)) {
                lobby.mutex.unlock();
                if (news.node_count > 0) lobby.arm(lobby.arm_context);
                return;
            }
            if (lobby.closed) {
                lobby.mutex.unlock();
                return error.Shutdown;
            }
            const left_ns = if (timeout_ns) |limit| limit -| (os.monotonicNs() - start_ns) else null;
            if (left_ns != null and left_ns.? == 0) {
                lobby.mutex.unlock();
                return error.TimedOut;
            }
            lobby.park(queue);
            const seen = queue.word.load(.monotonic); // only changed under the mutex
            lobby.mutex.unlock();
            const result = sync.futex.wait(&queue.word, seen, left_ns);
            lobby.mutex.lock();
            lobby.unpark(queue);
            result catch |err| switch (err) {
                error.Timeout => {},
                error.Interrupted => if (!lobby.hasNews(queue)) {
                    lobby.mutex.unlock();
                    return error.Interrupted;
                },
            };
        }
    }

    /// One more helper for what is left of `lender`'s batch. True: Python should start a thread.
    pub fn lend(lobby: *Lobby, lender: u64) bool {
        lobby.mutex.lock();
        if (lobby.parked_threads.first) |thread| {
            thread.lend_from = lender;
            lobby.notifyAndUnlock(thread);
            return false;
        }
        defer lobby.mutex.unlock();
        // One place: whoever is pushed out of it is lent to again by the watchdog.
        lobby.pending_lender = lender;
        return lobby.askForThread();
    }

    /// The watchdog's tick. False: nobody is out, it may lie down.
    pub fn watch(lobby: *Lobby) bool {
        lobby.mutex.lock();
        const now = os.monotonicNs();
        const anybody = lobby.out_queues.first != null;
        lobby.quiet_ticks = if (anybody) 0 else lobby.quiet_ticks + 1;
        const stay = lobby.quiet_ticks < quiet_ticks_max;
        const thread = lobby.parked_threads.first orelse {
            lobby.mutex.unlock();
            return stay;
        };
        var out = lobby.out_queues.first;
        while (out) |queue| : (out = queue.next) {
            if (queue.kind == .loop or now -| queue.out_since_ns < held_up_ns) continue;
            // Also with one callback out: what it continues may have ended, and its result waits to be sent. Asked again at
            // growing distances: a helper may come before the thread has its batch (it waits for the GIL), or not at all.
            if (now -| queue.out_since_ns >= queue.lend_after_ns) {
                queue.lend_after_ns = 2 * (now -| queue.out_since_ns);
                thread.lend_from = queue.token;
                lobby.notifyAndUnlock(thread);
                return stay;
            }
            const source = queue.out_source orelse continue;
            if (source.count > 0) {
                lobby.notifyAndUnlock(thread);
                return stay;
            }
        }
        lobby.mutex.unlock();
        return stay;
    }

    /// Every wait returns error.Shutdown once its news is delivered, from now on.
    pub fn close(lobby: *Lobby) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        lobby.closed = true;
        for (lobby.queues.items) |queue| {
            if (queue.parked) {
                lobby.rouse(queue);
                sync.futex.wake(&queue.word, 1);
            }
            if (queue.wakeup) |*wakeup| wakeup.signal();
        }
    }

    /// After `close`, once every queue was destroyed.
    pub fn deinit(lobby: *Lobby) void {
        assert(lobby.queues.items.len == 0);
        lobby.queues.deinit(lobby.gpa);
    }

    pub const Counts = struct { threads: u32, parked: u32 };

    pub fn threadCounts(lobby: *Lobby) Counts {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        return .{ .threads = lobby.threads, .parked = lobby.threads_parked };
    }

    // ------------------------------------------------------------------------------------------------ under the mutex

    fn hasNews(lobby: *Lobby, queue: *Queue) bool {
        return queue.letters.first != null or queue.poked or queue.lend_from != 0 or lobby.sourceFor(queue) != null or
            (queue.kind == .thread and lobby.pending_lender != 0);
    }

    fn fill(lobby: *Lobby, queue: *Queue, news: *News) bool {
        const poked = queue.poked;
        queue.poked = false;
        while (queue.letters.first) |letter| {
            if (news.item_count == items_max) {
                news.more = 1;
                break;
            }
            news.items[news.item_count] = letter.item;
            news.item_count += 1;
            unlink(queue, letter);
        }
        if (queue.kind == .thread) {
            // Whoever was asked for one lane leaves what is pending to the next.
            const lender = if (queue.lend_from != 0) &queue.lend_from else &lobby.pending_lender;
            news.lender = lender.*;
            lender.* = 0;
        }
        if (news.lender == 0) if (lobby.sourceFor(queue)) |source| lobby.hand(queue, source, news);
        if (news.lender != 0 and lobby.askForThread()) news.start_thread = 1;
        if (queue.wakeup) |*wakeup| if (news.more == 0 and queue.sources.first == null and queue.signalled) {
            wakeup.drain();
            queue.signalled = false;
        };
        if (queue.kind == .loop and queue.sources.first != null) news.more = 1;
        return poked or news.item_count > 0 or news.node_count > 0 or news.lender != 0;
    }

    fn sourceFor(lobby: *Lobby, queue: *Queue) ?*Source {
        return switch (queue.kind) {
            .caller => if (queue.pulls) |source| (if (source.count > 0 and source.loop == null) source else null) else null,
            .thread => lobby.ready_sources.first,
            .loop => queue.sources.first,
        };
    }

    fn hand(lobby: *Lobby, queue: *Queue, source: *Source, news: *News) void {
        const count = share(source);
        source.take(news.nodes[0..count]);
        news.node_count = count;
        news.run_token = source.token;
        if (source.count == 0) lobby.unlist(source) else if (queue.kind == .thread) {
            lobby.ready_sources.remove(source); // round-robin between runs
            lobby.ready_sources.append(source);
        }
        queue.out_since_ns = os.monotonicNs();
        queue.out_count = count;
        queue.out_source = source;
        queue.lend_after_ns = held_up_ns;
        source.out += 1;
        lobby.out_queues.append(queue);
        queue.listed = true;
        if (queue.kind == .loop) return;
        if (lobby.askForThread()) news.start_thread = 1;
        // Slow callbacks are left behind: the next thread comes at once, and it wakes the one after it.
        if (source.count > 0 and source.average_ns > slow_callback_ns) if (lobby.parked_threads.first) |thread| {
            lobby.rouse(thread);
            sync.futex.wake(&thread.word, 1);
        };
    }

    /// One callback thread should be parked while user code runs.
    fn askForThread(lobby: *Lobby) bool {
        if (lobby.threads_parked > 0 or lobby.threads_coming > 0) return false;
        if (lobby.threads >= lobby.threads_max) return false;
        lobby.threads_coming += 1;
        return true;
    }

    fn backIn(lobby: *Lobby, queue: *Queue, done: Done) void {
        if (!queue.listed or queue.parked) return;
        pace(queue, done);
        if (queue.out_source) |source| source.out -|= 1;
        queue.out_source = null;
        queue.out_count = 0;
        lobby.out_queues.remove(queue);
        queue.listed = false;
    }

    fn park(lobby: *Lobby, queue: *Queue) void {
        queue.parked = true;
        if (queue.kind != .thread) return;
        lobby.parked_threads.append(queue);
        queue.listed = true;
        lobby.threads_parked += 1;
    }

    fn unpark(lobby: *Lobby, queue: *Queue) void {
        if (!queue.parked) return;
        queue.parked = false;
        if (queue.kind != .thread) return;
        lobby.parked_threads.remove(queue);
        queue.listed = false;
        lobby.threads_parked -= 1;
    }

    fn rouse(lobby: *Lobby, queue: *Queue) void {
        lobby.unpark(queue);
        _ = queue.word.fetchAdd(1, .monotonic); // under the mutex; the futex call orders it for the sleeper
    }

    fn notifyAndUnlock(lobby: *Lobby, queue: *Queue) void {
        const asleep = queue.parked;
        if (asleep) lobby.rouse(queue);
        if (queue.wakeup) |*wakeup| if (!queue.signalled) {
            queue.signalled = true;
            wakeup.signal();
        };
        lobby.mutex.unlock();
        if (asleep) sync.futex.wake(&queue.word, 1);
    }

    fn unlist(lobby: *Lobby, source: *Source) void {
        if (!source.listed) return;
        if (source.loop) |loop| loop.sources.remove(source) else lobby.ready_sources.remove(source);
        source.listed = false;
    }
};

fn unlink(queue: *Queue, letter: *Letter) void {
    queue.letters.remove(letter);
    letter.queue = null;
}

fn pace(queue: *Queue, done: Done) void {
    if (done.count == 0) return;
    const source = queue.out_source orelse return;
    const each = done.busy_ns / done.count;
    source.average_ns = if (source.average_ns == 0) each else (source.average_ns * 3 + each) / 4;
}

fn share(source: *const Source) u32 {
    const each = @max(1, if (source.average_ns == 0) first_guess_ns else source.average_ns);
    const affordable: u64 = @max(1, batch_budget_ns / each);
    // Slow callbacks are shared with the threads that are at it or will be woken; quick ones are not worth a wake.
    const sharers: u64 = if (source.average_ns > slow_callback_ns) source.out + 1 else 1;
    const fair = (source.count + sharers - 1) / sharers;
    return @intCast(@min(affordable, fair, source.count, batch_max));
}
