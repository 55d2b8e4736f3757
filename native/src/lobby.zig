//! The lobby: the room where ready callbacks and news meet the Python threads that pull them. Native code calls nothing.
//! One mutex, held for a few dozen nanoseconds a batch, never around a wait. Any thread may call.
//!
//! ## Who takes what
//!
//! - A run that a node started belongs to that node's run's family, at whose head stands a run that somebody waits for.
//! - A caller's queue takes callbacks of the one family it pulls (its thread waits for the head), so that no caller inherits
//!   another run's slow node and a nested `execute` cannot deadlock. Nor does it take what is handed out alone.
//! - A thread's queue takes from any source in turn, round-robin between runs.
//! - A loop's queue takes callbacks of the sources bound to that loop.
//!
//! Within a source the highest rank goes first, and a node is claimed the moment it is handed out: one that nobody needs any
//! more is left out then. How many at a time: `Source.share`.
//!
//! ## Who wakes whom
//!
//! A wake across cores costs 40-50 microseconds and with a GIL a second thread is often of no use. So whoever makes
//! callbacks ready wakes the family's caller if that is parked; a callback thread only where no caller may take them, or where
//! the source's callbacks have been slow (then they block, and threads help). Everything else is the watchdog's (watch.zig):
//! on its tick (1 ms, only while callbacks are out) it looks for threads that have been out for longer than `held_up_ns` while work
//! waits behind them, and wakes one parked callback thread with `lender` set: that thread runs what is left of the other's
//! batch, and asks for the next helper before it starts (`lend`). For this to work one callback thread must be parked
//! whenever user code runs: `News.start_thread` asks Python to start one when the last parked one is given work. How many
//! there may be, and what becomes of those that do not come back, stands in crew.zig.
//!
//! Work that only threads may take can be left with no thread in here to take it: they were all out when it came, or none
//! had been started. Who comes by or is parked then for other reasons, a caller or a loop, has one started (`asks`).
//!
//! ## Parking without losing a wake
//!
//! Waiter: under the mutex find nothing, set `parked`, read `word`; release; futex-wait on that value of `word`.
//! Waker: under the mutex add the news, clear `parked`, step `word`; release; futex-wake. The two mutex sections are
//! ordered: either the waiter finds the news, or the waker finds it parked and changes `word`, and the futex refuses to wait.
//! A thread that is woken for work that may not run more (all places are taken) parks again; whoever holds a place takes the
//! work when it comes back, before it parks.

const std = @import("std");
const sync = @import("base/sync.zig");
const os = @import("base/os.zig");
const crew_file = @import("crew.zig");
const queue_file = @import("queue.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Crew = crew_file.Crew;
const Kind = queue_file.Kind;
const Letter = queue_file.Letter;
const List = queue_file.List;
const News = queue_file.News;
const Queue = queue_file.Queue;
const Source = queue_file.Source;
const items_max = queue_file.items_max;

/// A thread that is out for longer may hold up others: the watchdog looks (watch.zig).
pub const held_up_ns = std.time.ns_per_ms;

pub const Done = queue_file.Done;

pub const WaitError = error{ Interrupted, TimedOut, Shutdown };

pub const Lobby = struct {
    gpa: Allocator,
    mutex: sync.Mutex = .init,
    closed: bool = false,
    crew: Crew,
    /// A helper was wanted while none was parked: the next callback thread to wait starts here.
    pending_lender: u64 = 0,
    queues: std.ArrayList(*Queue) = .empty,
    ready_sources: List(Source, "place") = .{},
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
        if (kind == .thread) lobby.crew.arrive(queue);
        return queue;
    }

    /// The caller's queue is used by a thread that runs callbacks for `outer`: it waits in one of them.
    pub fn within(lobby: *Lobby, queue: *Queue, outer: *Queue) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        assert(queue.kind == .caller and outer.kind == .thread and !outer.gone and !queue.parked);
        queue.outer = outer;
    }

    pub fn destroyQueue(lobby: *Lobby, queue: *Queue) void {
        lobby.mutex.lock();
        lobby.backIn(queue, .{});
        if (queue.asks) lobby.crew.coming -|= 1;
        while (queue.letters.first) |letter| queue.unlink(letter);
        while (queue.sources.first) |source| {
            queue.sources.remove(source);
            source.listed = false;
        }
        if (queue.pulls) |head| {
            head.caller = null;
            if (head.family.first != null) _ = lobby.wakeSpare();
        }
        if (queue.kind == .thread) {
            lobby.crew.depart(queue);
            for (lobby.queues.items) |other| if (other.outer == queue) {
                other.outer = null;
            };
        }
        _ = lobby.queues.swapRemove(std.mem.indexOfScalar(*Queue, lobby.queues.items, queue).?);
        queue.gone = true;
        lobby.mutex.unlock();
        queue.release();
    }

    // ------------------------------------------------------------------------------------------------ news in

    /// Posts a letter. Its item must not change until it is delivered or withdrawn.
    pub fn post(lobby: *Lobby, queue: *Queue, letter: *Letter) void {
        assert(letter.queue == null);
        lobby.postOnce(queue, letter);
    }

    /// Posts a letter unless it is on its way already.
    pub fn postOnce(lobby: *Lobby, queue: *Queue, letter: *Letter) void {
        lobby.mutex.lock();
        if (queue.enclose(letter)) lobby.notifyAndUnlock(queue) else lobby.mutex.unlock();
    }

    /// The same for who is called under the mutex, by `Source.claim`.
    pub fn postHeld(lobby: *Lobby, queue: *Queue, letter: *Letter) void {
        if (queue.enclose(letter)) lobby.notify(queue);
    }

    /// Takes a letter back if it was not delivered. Afterwards its owner may free it.
    pub fn withdraw(lobby: *Lobby, letter: *Letter) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        if (letter.queue) |queue| queue.unlink(letter);
    }

    pub fn wake(lobby: *Lobby, queue: *Queue) void {
        lobby.mutex.lock();
        queue.poked = true;
        lobby.notifyAndUnlock(queue);
    }

    /// The callbacks of the source's family may be run by `caller`'s thread while that waits.
    pub fn setCaller(lobby: *Lobby, source: *Source, caller: ?*Queue) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        const head = source.head();
        if (head.caller) |before| before.pulls = null;
        head.caller = null;
        const queue = caller orelse return;
        if (queue.gone) return;
        if (queue.pulls) |other| other.caller = null;
        queue.pulls = head;
        head.caller = queue;
    }

    /// `queue`'s thread no longer runs callbacks of the source's family, if it did.
    pub fn unsetCaller(lobby: *Lobby, source: *Source, queue: *Queue) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        const head = source.head();
        if (head.caller != queue) return;
        head.caller = null;
        queue.pulls = null;
        // What was offered while it was on its way out woke nobody.
        if (head.family.first != null) _ = lobby.wakeSpare();
    }

    /// Offers ready callbacks. `by`: the queue whose thread is about to take some itself, if there is one.
    pub fn offer(lobby: *Lobby, source: *Source, nodes: []const u32, by: ?*Queue) void {
        if (nodes.len == 0) return;
        lobby.mutex.lock();
        for (nodes) |node| source.push(node);
        lobby.announceAndUnlock(source, by);
    }

    /// Offers the items of a spread, once.
    pub fn offerItems(lobby: *Lobby, source: *Source, by: ?*Queue) void {
        lobby.mutex.lock();
        if (source.count() == 0) return lobby.mutex.unlock();
        lobby.announceAndUnlock(source, by);
    }

    /// So many items of a spread are out no longer.
    pub fn itemsOver(lobby: *Lobby, source: *Source, count: u32, by: ?*Queue) void {
        if (source.spread.live_max == 0 or count == 0) return; // all were offered at the start
        lobby.mutex.lock();
        source.spread.live -|= count;
        if (source.listed or source.count() == 0) return lobby.mutex.unlock();
        lobby.announceAndUnlock(source, by);
    }

    fn announceAndUnlock(lobby: *Lobby, source: *Source, by: ?*Queue) void {
        const head = source.head();
        if (source.loop) |loop| {
            if (loop.gone) return lobby.mutex.unlock();
            if (!source.listed) loop.sources.append(source);
            source.listed = true;
            return lobby.notifyAndUnlock(loop);
        }
        if (!source.listed) {
            lobby.ready_sources.append(source);
            if (!source.alone) head.family.append(source);
            source.listed = true;
        }
        const taker = if (source.alone) null else head.caller;
        const taken_here = if (by) |queue| queue.kind == .thread or queue == taker else false;
        if (!taken_here) if (taker) |caller| if (caller.parked) return lobby.notifyAndUnlock(caller);
        // A caller that is out will be back; threads come for slow callbacks, and where nobody else would.
        const helpers_wanted = if (taken_here) source.count() > 1 and source.isSlow() else taker == null or source.isSlow();
        if (helpers_wanted) {
            if (lobby.crew.spare()) |thread| return lobby.notifyAndUnlock(thread);
            if (source.alone) if (head.caller) |caller| if (caller.parked and lobby.crew.ask()) {
                caller.asks = true;
                return lobby.notifyAndUnlock(caller);
            };
        }
        lobby.mutex.unlock();
    }

    /// Takes offered callbacks back (their run is stopping). Fewer than `nodes` has room for: these were all.
    pub fn drain(lobby: *Lobby, source: *Source, nodes: []u32) []u32 {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        var count: usize = 0;
        while (count < nodes.len) : (count += 1) nodes[count] = source.ready.pop(source.link) orelse break;
        if (source.count() == 0) lobby.unlist(source);
        return nodes[0..count];
    }

    /// Items that were never handed out; afterwards there are none.
    pub fn drainItems(lobby: *Lobby, source: *Source) queue_file.Items {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        const left: queue_file.Items = .{ .first = source.spread.next, .end = source.spread.end };
        source.spread.next = left.end;
        if (source.count() == 0) lobby.unlist(source);
        return left;
    }

    /// The source's run is over: nothing may point to it any more, but sources of its family, which are not to outlive it.
    /// Threads that are out with it are given up, except `by`, whose thread this is.
    pub fn forget(lobby: *Lobby, source: *Source, by: ?*Queue) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        source.ready.clear();
        source.spread.next = source.spread.end;
        lobby.unlist(source);
        source.out = 0;
        if (source.caller) |caller| {
            caller.pulls = null;
            source.caller = null;
            if (source.family.first != null) _ = lobby.wakeSpare();
        }
        var given_up = false;
        var at = lobby.crew.out.first;
        while (at) |queue| : (at = queue.place.next) if (queue.out.source == source) {
            queue.out.source = null;
            if (queue.kind == .thread and queue != by) given_up = lobby.crew.giveUp(queue) or given_up;
        };
        if (given_up) lobby.fillPlace();
    }

    /// Whoever is out with this node of an `alone` source is given up: its result will not be looked at.
    pub fn abandon(lobby: *Lobby, source: *Source, node: u32) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        var at = lobby.crew.out.first;
        while (at) |queue| : (at = queue.place.next) if (queue.out.source == source and queue.out.node == node) {
            if (queue.kind != .thread or !queue.out.alone or queue.standing == .abandoned) continue;
            queue.out.source = null; // how long it takes in the end says nothing about the others
            source.out -|= 1;
            if (lobby.crew.giveUp(queue)) lobby.fillPlace();
            return;
        };
    }

    // ------------------------------------------------------------------------------------------------ news out

    /// Callbacks of this queue's thread have ended since it last asked; it stays out.
    pub fn noteProgress(lobby: *Lobby, queue: *Queue, done: Done) void {
        if (queue.kind == .loop) return;
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        if (!queue.out.is_out) return;
        if (queue.out.source) |source| source.notePace(done);
        queue.out.since_ns = sync.now();
        queue.out.lend_after_ns = held_up_ns; // what it does now may be held up again
    }

    pub fn wait(lobby: *Lobby, queue: *Queue, done: Done, timeout_ns: ?u64, news: *News) WaitError!void {
        news.clear();
        const start_ns = if (timeout_ns == null) 0 else sync.now();
        lobby.mutex.lock();
        lobby.backIn(queue, done);
        while (true) {
            if (lobby.fill(queue, news) or lobby.hasRequest(queue, news)) {
                const is_out = queue.out.is_out;
                lobby.mutex.unlock();
                if (is_out) lobby.arm(lobby.arm_context);
                return;
            }
            if (lobby.closed) {
                lobby.mutex.unlock();
                return error.Shutdown;
            }
            const left_ns = if (timeout_ns) |limit| limit -| (sync.now() - start_ns) else null;
            if (left_ns != null and left_ns.? == 0) {
                lobby.mutex.unlock();
                return error.TimedOut;
            }
            lobby.crew.park(queue);
            const seen = queue.word.load(.monotonic); // only changed under the mutex
            lobby.mutex.unlock();
            const result = sync.futex.wait(&queue.word, seen, left_ns);
            lobby.mutex.lock();
            lobby.crew.unpark(queue);
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
        if (lobby.crew.spare()) |thread| {
            thread.lend_from = lender;
            lobby.notifyAndUnlock(thread);
            return false;
        }
        defer lobby.mutex.unlock();
        // One place: whoever is pushed out of it is lent to again by the watchdog.
        lobby.pending_lender = lender;
        return lobby.crew.ask();
    }

    /// Every wait returns error.Shutdown once its news is delivered, from now on.
    pub fn close(lobby: *Lobby) void {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        lobby.closed = true;
        for (lobby.queues.items) |queue| lobby.notify(queue);
    }

    /// After `close`, once every queue was destroyed.
    pub fn deinit(lobby: *Lobby) void {
        assert(lobby.queues.items.len == 0);
        lobby.queues.deinit(lobby.gpa);
    }

    pub fn threadCounts(lobby: *Lobby) Crew.Counts {
        lobby.mutex.lock();
        defer lobby.mutex.unlock();
        return lobby.crew.counts();
    }

    // ------------------------------------------------------------------------------------------------ under the mutex

    fn hasNews(lobby: *Lobby, queue: *Queue) bool {
        return queue.letters.first != null or queue.poked or queue.asks or lobby.sourceFor(queue) != null or
            (queue.kind == .thread and lobby.crew.hasRoom() and (queue.lend_from != 0 or lobby.pending_lender != 0));
    }

    fn fill(lobby: *Lobby, queue: *Queue, news: *News) bool {
        const poked = queue.poked;
        queue.poked = false;
        while (queue.letters.first) |letter| {
            if (news.item_count == items_max) break;
            news.items[news.item_count] = letter.item;
            news.item_count += 1;
            queue.unlink(letter);
        }
        if (queue.kind == .thread) lobby.takeLender(queue, news);
        // Letters first: the end of a node's attempt must not be overtaken by the next one.
        if (news.lender == 0 and queue.letters.first == null) while (lobby.sourceFor(queue)) |source| {
            lobby.hand(queue, source, news);
            if (news.node_count > 0) break; // else none of what was taken may still be run
        };
        // Claiming may have posted a letter.
        if (queue.letters.first != null or queue.sources.first != null) news.more = 1;
        if (queue.wakeup) |*wakeup| if (news.more == 0 and queue.signalled) {
            wakeup.drain();
            queue.signalled = false;
        };
        return poked or news.item_count > 0 or news.node_count > 0 or news.lender != 0;
    }

    /// Whoever was asked for one lane leaves what is pending to the next.
    fn takeLender(lobby: *Lobby, queue: *Queue, news: *News) void {
        const place = if (queue.lend_from != 0) &queue.lend_from else &lobby.pending_lender;
        const lender = place.*;
        if (lender == 0) return;
        place.* = 0;
        if (!lobby.crew.hasRoom()) {
            if (lobby.pending_lender == 0) lobby.pending_lender = lender;
            return;
        }
        news.lender = lender;
        if (lobby.crew.sourceOf(lender)) |source| {
            source.out += 1;
            lobby.crew.goOut(queue, .{ .is_out = true, .since_ns = sync.now(), .source = source, .helps = true });
        }
        if (lobby.crew.ask()) news.start_thread = 1;
    }

    /// Whether there is work that no caller will take.
    pub fn isStranded(lobby: *Lobby) bool {
        var at = lobby.ready_sources.first;
        while (at) |source| : (at = source.place.next) if (source.alone or source.head().caller == null) return true;
        return false;
    }

    /// What this queue's thread is to do although there is nothing else for it.
    fn hasRequest(lobby: *Lobby, queue: *Queue, news: *News) bool {
        if (lobby.closed) return false;
        const passes_by = queue.kind == .caller and queue.pulls != null and lobby.isStranded();
        if (queue.asks or (passes_by and lobby.crew.ask())) {
            queue.asks = false;
            news.start_thread = 1;
            return true;
        }
        const goes = (if (queue.kind == .thread) lobby.crew.dismiss(queue) else null) orelse return false;
        if (goes == queue) news.retire = 1 else lobby.notify(goes); // it looks, finds nothing, and is told
        return goes == queue;
    }

    fn sourceFor(lobby: *Lobby, queue: *Queue) ?*Source {
        return switch (queue.kind) {
            .caller => if (queue.pulls) |head| head.family.first else null,
            .thread => if (lobby.crew.hasRoom()) lobby.ready_sources.first else null,
            .loop => queue.sources.first,
        };
    }

    fn hand(lobby: *Lobby, queue: *Queue, source: *Source, news: *News) void {
        const nodes = source.take(news.nodes[0..source.share()]);
        const left = source.count();
        if (left == 0) lobby.unlist(source) else switch (queue.kind) { // round-robin between runs
            .thread => lobby.ready_sources.moveToEnd(source),
            .caller => source.head().family.moveToEnd(source),
            .loop => queue.sources.moveToEnd(source),
        }
        if (nodes.len == 0) return;
        news.node_count = @intCast(nodes.len);
        news.run_token = source.token;
        if (source.alone) if (source.attempt_of) |attemptOf| {
            news.attempt = attemptOf(source, nodes[0]);
        };
        if (queue.kind == .loop) return;
        source.out += 1;
        lobby.crew.goOut(queue, .{
            .is_out = true,
            .since_ns = sync.now(),
            .lend_after_ns = held_up_ns,
            .source = source,
            .alone = source.alone,
            .node = nodes[0],
        });
        if (lobby.crew.ask()) news.start_thread = 1;
        // Slow callbacks are left behind: the next thread comes at once, and it wakes the one after it.
        if (left > 0 and source.isSlow()) _ = lobby.wakeSpare();
    }

    pub fn backIn(lobby: *Lobby, queue: *Queue, done: Done) void {
        if (queue.kind == .loop) return;
        if (queue.out.source) |source| {
            source.notePace(done);
            source.out -|= 1;
        }
        lobby.crew.comeBack(queue);
    }

    fn wakeSpare(lobby: *Lobby) bool {
        const thread = lobby.crew.spare() orelse return false;
        lobby.notify(thread);
        return true;
    }

    /// A thread has lost its place. If work waits for it, another one takes it.
    pub fn fillPlace(lobby: *Lobby) void {
        if (!lobby.isStranded() and lobby.pending_lender == 0) return;
        if (lobby.wakeSpare() or !lobby.crew.ask()) return;
        for (lobby.queues.items) |queue| {
            const here = queue.kind == .loop or (queue.parked and queue.pulls != null);
            if (!here) continue;
            queue.asks = true;
            return lobby.notify(queue);
        }
        lobby.crew.coming -= 1; // nobody is here to ask for it
    }

    fn rouse(lobby: *Lobby, queue: *Queue) void {
        lobby.crew.unpark(queue);
        _ = queue.word.fetchAdd(1, .monotonic); // under the mutex; the futex call orders it for the sleeper
    }

    fn signal(queue: *Queue) void {
        if (queue.wakeup) |*wakeup| if (!queue.signalled) {
            queue.signalled = true;
            wakeup.signal();
        };
    }

    /// For the rare case: who is woken finds the mutex held.
    fn notify(lobby: *Lobby, queue: *Queue) void {
        if (queue.parked) {
            lobby.rouse(queue);
            sync.futex.wake(&queue.word, 1);
        }
        signal(queue);
    }

    pub fn notifyAndUnlock(lobby: *Lobby, queue: *Queue) void {
        const asleep = queue.parked;
        if (asleep) lobby.rouse(queue);
        signal(queue);
        lobby.mutex.unlock();
        if (asleep) sync.futex.wake(&queue.word, 1);
    }

    fn unlist(lobby: *Lobby, source: *Source) void {
        if (!source.listed) return;
        source.listed = false;
        if (source.loop) |loop| return loop.sources.remove(source);
        lobby.ready_sources.remove(source);
        if (!source.alone) source.head().family.remove(source);
    }
};
