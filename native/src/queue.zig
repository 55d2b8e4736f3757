//! Queues: what Python waits on. The types; what happens between them stands in lobby.zig.
//!
//! A `Queue` is what one waiting thread or event loop waits on. A `Source` holds the callbacks of one run that are ready. A
//! `Letter` is one piece of news, embedded in what it tells about.

const std = @import("std");
const sync = @import("base/sync.zig");
const os = @import("base/os.zig");
const ranked = @import("base/ranked.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Ranked = ranked.Ranked;

pub const batch_max = 256;
pub const items_max = 64;

const batch_budget_ns = 200 * std.time.ns_per_us;
/// Longer than a wake across cores takes, 40 to 50 us: from there on a second thread is worth waking. Measured with hashes of 93 us
/// on two cores: 1.84 times one core, with a bound of 100 us 0.95; Python loops of 74 us, which gain nothing, lose a tenth.
const slow_callback_ns = 60 * std.time.ns_per_us;
/// What a callback is taken to cost before one has been seen.
const first_guess_ns = 20 * std.time.ns_per_us;

pub const Kind = enum(u32) { caller = 0, thread = 1, loop = 2 };
pub const ItemKind = enum(u32) { run_over = 1, call_over = 2, run_stopping = 3, node_over = 4, events = 5, deltas = 6, exchange = 7 };

/// C: gb_item
pub const Item = extern struct {
    token: u64 = 0,
    kind: u32 = 0,
    failure: u32 = 0,
    text_ptr: ?[*]const u8 = null,
    text_len: usize = 0,
};

/// One piece of news, embedded in what it tells about, so that posting cannot fail.
pub const Letter = struct {
    item: Item = .{},
    queue: ?*Queue = null, // set while posted and undelivered
    place: Place(Letter) = .{},
};

/// C: gb_news
pub const News = extern struct {
    run_token: u64 = 0,
    lender: u64 = 0,
    node_count: u32 = 0,
    item_count: u32 = 0,
    start_thread: u32 = 0,
    more: u32 = 0,
    attempt: u32 = 0,
    retire: u32 = 0,
    nodes: [batch_max]u32 = undefined,
    items: [items_max]Item = undefined,

    pub fn clear(news: *News) void {
        news.run_token = 0;
        news.lender = 0;
        news.node_count = 0;
        news.item_count = 0;
        news.start_thread = 0;
        news.more = 0;
        news.attempt = 0;
        news.retire = 0;
    }
};

/// Callbacks that ended, and how long they ran in all: their own time, without what it took to get there and back.
pub const Done = struct { count: u32 = 0, busy_ns: u64 = 0 };

/// Items `first` to `end` - 1 of a spread.
pub const Items = struct { first: u32, end: u32 };

/// The ready callbacks of one run that may be handed out the same way: nodes that were offered, or the items of a spread.
/// A run has up to four: for any thread, for its event loop, and for each of these what is handed out alone.
pub const Source = struct {
    token: u64,
    /// Called under the lobby's mutex for nodes that are about to be handed out. Moves those that still may to the front and
    /// returns how many they are.
    claim: *const fn (*Source, nodes: []u32) usize,
    /// Of a source whose nodes are handed out alone: the attempt that a claimed node is at. Null: 0.
    attempt_of: ?*const fn (*Source, node: u32) u32 = null,

    /// Nodes that were offered; a node is ready at most once at a time.
    ready: Ranked = .empty,
    /// The run's links, by node: shared with every other list of the run's nodes.
    link: []u32 = &.{},
    /// By node; empty: all 0.
    ranks: []const u16 = &.{},
    /// Numbers that are handed out one after the other without having been offered.
    spread: Spread = .{},

    /// The event loop that takes from here; null: threads and the caller do.
    loop: ?*Queue = null,
    /// Its callbacks may be given up in the middle, or block by nature: one at a time, and never by a caller, who is not to
    /// be held up.
    alone: bool = false,
    /// Somebody watches its run.
    watched: bool = false,
    /// The run at the head of the family: the one that somebody started who is no node. Null: this one.
    root: ?*Source = null,

    // Of the head of a family:
    /// The thread that waits for this run and runs its family's callbacks meanwhile.
    caller: ?*Queue = null,
    /// Sources that the caller may take from.
    family: List(Source, "place_in_family") = .{},

    average_ns: u64 = 0,
    /// Threads that are out with callbacks from here.
    out: u32 = 0,
    listed: bool = false,
    /// Among the lobby's ready sources, or its loop's.
    place: Place(Source) = .{},
    place_in_family: Place(Source) = .{},

    /// Items `next` to `end` - 1 are still to be handed out, at most `live_max` are out at once (0: any number).
    pub const Spread = struct { next: u32 = 0, end: u32 = 0, live: u32 = 0, live_max: u32 = 0 };

    pub fn head(source: *Source) *Source {
        return source.root orelse source;
    }

    /// How many can be handed out now.
    pub fn count(source: *const Source) u32 {
        const spread = &source.spread;
        const here = source.ready.len + (spread.end - spread.next);
        return if (spread.live_max == 0) here else @min(here, spread.live_max -| spread.live);
    }

    pub fn push(source: *Source, node: u32) void {
        assert(node < source.link.len);
        source.ready.push(source.link, node, if (source.ranks.len == 0) 0 else source.ranks[node]);
    }

    /// Takes and claims as many as `into` has room for, at most `count`. Returns those that may be run.
    pub fn take(source: *Source, into: []u32) []u32 {
        const spread = &source.spread;
        for (into) |*node| node.* = source.ready.pop(source.link) orelse blk: {
            assert(spread.next < spread.end);
            defer spread.next += 1;
            break :blk spread.next;
        };
        const claimed = into[0..source.claim(source, into)];
        if (spread.live_max != 0) spread.live += @intCast(claimed.len);
        return claimed;
    }

    pub fn notePace(source: *Source, done: Done) void {
        if (done.count == 0) return;
        const each = done.busy_ns / done.count;
        source.average_ns = if (source.average_ns == 0) each else (source.average_ns * 3 + each) / 4;
    }

    /// Its callbacks take so long that threads are worth waking for them: most likely they block.
    pub fn isSlow(source: *const Source) bool {
        return source.alone or source.average_ns > slow_callback_ns;
    }

    /// How many to hand out at a time: as many as fit into the budget at the pace the source has shown (an exponential
    /// average), at most a fair share between the threads that are at it. A fixed batch would let one slow callback hold up
    /// everything claimed behind it. A loop starts whatever there is. Of an `alone` source one is a batch; of one that is watched
    /// too: what is handed out is told as started.
    pub fn share(source: *const Source) u32 {
        const there = source.count();
        if (source.alone or source.watched) return @min(there, 1);
        if (source.loop != null) return @min(there, batch_max);
        const each = @max(1, if (source.average_ns == 0) first_guess_ns else source.average_ns);
        const affordable: u64 = @max(1, batch_budget_ns / each);
        // Slow callbacks are shared with the threads that are at it or will be woken; quick ones are not worth a wake.
        const sharers: u64 = if (source.isSlow()) source.out + 1 else 1;
        const fair = (there + sharers - 1) / sharers;
        return @intCast(@min(affordable, fair, there, batch_max));
    }
};

/// What a callback thread counts as.
pub const Standing = enum {
    /// One of `threads_max`.
    counted,
    /// It waits for a run that cannot go on without one more thread.
    waiting,
    /// Out in a callback that nobody waits for any more.
    abandoned,
    /// It was told to end.
    leaving,
};

/// Where somebody may listen, and is told by one letter at a time. Changed under the lobby's mutex alone.
pub const Ear = struct {
    queue: ?*Queue = null,
    letter: Letter = .{},
};

pub const Queue = struct {
    /// The handle, and everybody who may still post to it.
    references: sync.Atomic(u32) = .init(1),
    /// Its thread or loop is gone: what is posted is dropped.
    gone: bool = false,
    /// The Lobby it belongs to; `Lobby.of` knows its type.
    lobby: *anyopaque,
    gpa: Allocator,
    kind: Kind,
    token: u64,
    word: sync.Atomic(u32) = .init(0),
    wakeup: ?os.Wakeup = null,
    signalled: bool = false,

    letters: List(Letter, "place") = .{},
    sources: List(Source, "place") = .{}, // of a loop
    pulls: ?*Source = null, // of a caller: the head of the family it takes from
    parked: bool = false,
    poked: bool = false,
    /// It is to ask Python for a callback thread, which counts as coming already.
    asks: bool = false,
    lend_from: u64 = 0,
    standing: Standing = .counted, // of a thread
    /// It was told to end and has not been out since.
    told: bool = false,
    /// Of a caller: the callback thread's queue in one of whose callbacks this thread waits.
    outer: ?*Queue = null,
    out: Out = .{},

    /// Among the parked threads, or those that are out.
    place: Place(Queue) = .{},

    /// Of a thread or caller that is out with callbacks.
    pub const Out = struct {
        is_out: bool = false,
        since_ns: u64 = 0,
        /// Out for so long: time to ask for a helper, once more.
        lend_after_ns: u64 = 0,
        /// Null: that run is over.
        source: ?*Source = null,
        /// It has this one node and nothing behind it. A helper has nothing of its own either.
        alone: bool = false,
        helps: bool = false,
        node: u32 = 0,
    };

    pub fn retain(queue: *Queue) *Queue {
        _ = queue.references.fetchAdd(1, .monotonic);
        return queue;
    }

    pub fn release(queue: *Queue) void {
        // Acquire-release: the last one out sees every other holder's last write.
        if (queue.references.fetchSub(1, .acq_rel) != 1) return;
        if (queue.wakeup) |*wakeup| wakeup.deinit();
        queue.gpa.destroy(queue);
    }

    /// Under the lobby's mutex. False: it is on its way already, or nobody is there any more.
    pub fn enclose(queue: *Queue, letter: *Letter) bool {
        if (letter.queue != null or queue.gone) return false;
        letter.queue = queue;
        queue.letters.append(letter);
        return true;
    }

    /// Under the lobby's mutex.
    pub fn unlink(queue: *Queue, letter: *Letter) void {
        queue.letters.remove(letter);
        letter.queue = null;
    }

    pub fn descriptor(queue: *Queue) i64 {
        return if (queue.wakeup) |*wakeup| @intCast(wakeup.fd()) else -1;
    }
};

/// Where something stands in a list: its neighbours.
pub fn Place(comptime T: type) type {
    return struct { next: ?*T = null, previous: ?*T = null };
}

/// A list through the places that its members hold in the field `place`.
pub fn List(comptime T: type, comptime place: []const u8) type {
    return struct {
        first: ?*T = null,
        last: ?*T = null,

        pub fn append(list: *@This(), it: *T) void {
            @field(it, place) = .{ .previous = list.last };
            if (list.last) |last| @field(last, place).next = it else list.first = it;
            list.last = it;
        }

        pub fn remove(list: *@This(), it: *T) void {
            const at = @field(it, place);
            if (at.previous) |previous| @field(previous, place).next = at.next else list.first = at.next;
            if (at.next) |next| @field(next, place).previous = at.previous else list.last = at.previous;
            @field(it, place) = .{};
        }

        pub fn moveToEnd(list: *@This(), it: *T) void {
            if (list.last == it) return;
            list.remove(it);
            list.append(it);
        }
    };
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn claimAll(_: *Source, nodes: []u32) usize {
    return nodes.len;
}

/// Only even numbers may be run.
fn claimEven(_: *Source, nodes: []u32) usize {
    var kept: usize = 0;
    for (nodes) |node| if (node % 2 == 0) {
        nodes[kept] = node;
        kept += 1;
    };
    return kept;
}

test "a source hands out its nodes by rank" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var link: [4]u32 = undefined;
    var source: Source = .{ .token = 1, .claim = claimAll, .link = &link, .ready = try .init(arena.allocator(), 8), .ranks = &.{ 1, 7, 1, 2 } };
    for (0..4) |node| source.push(@intCast(node));
    try testing.expectEqual(4, source.count());
    var into: [3]u32 = undefined;
    try testing.expectEqualSlices(u32, &.{ 1, 3, 0 }, source.take(&into));
    try testing.expectEqualSlices(u32, &.{2}, source.take(into[0..1]));
    try testing.expectEqual(0, source.count());
}

test "a spread hands out its items in order, so many at once" {
    var source: Source = .{ .token = 1, .claim = claimAll, .spread = .{ .end = 7, .live_max = 3 } };
    var into: [3]u32 = undefined;
    try testing.expectEqual(3, source.count());
    try testing.expectEqualSlices(u32, &.{ 0, 1 }, source.take(into[0..2]));
    try testing.expectEqual(1, source.count());
    try testing.expectEqualSlices(u32, &.{2}, source.take(into[0..1]));
    try testing.expectEqual(0, source.count());
    source.spread.live -= 2;
    try testing.expectEqual(2, source.count());
    try testing.expectEqualSlices(u32, &.{ 3, 4 }, source.take(into[0..2]));
    source.spread.live = 0;
    try testing.expectEqual(2, source.count());
    try testing.expectEqualSlices(u32, &.{ 5, 6 }, source.take(into[0..2]));
    source.spread.live = 0;
    try testing.expectEqual(0, source.count());
}

test "what may no longer be run is not handed out and does not count as out" {
    var source: Source = .{ .token = 1, .claim = claimEven, .spread = .{ .end = 9, .live_max = 5 } };
    var into: [5]u32 = undefined;
    try testing.expectEqualSlices(u32, &.{ 0, 2, 4 }, source.take(&into));
    try testing.expectEqual(3, source.spread.live);
    try testing.expectEqual(2, source.count());
}

test "a batch is what fits into the budget, and slow callbacks are shared" {
    var source: Source = .{ .token = 1, .claim = claimAll, .spread = .{ .end = 1000 } };
    try testing.expectEqual(10, source.share()); // a guess
    source.notePace(.{ .count = 4, .busy_ns = 4000 });
    try testing.expectEqual(200, source.share());
    source.notePace(.{ .count = 1, .busy_ns = 5 });
    try testing.expectEqual(batch_max, source.share());
    source.notePace(.{ .count = 1, .busy_ns = std.time.ns_per_s });
    try testing.expect(source.isSlow());
    try testing.expectEqual(1, source.share());
    source.average_ns = 110_000;
    source.spread.next = 995;
    source.out = 4;
    try testing.expectEqual(1, source.share());
    source.average_ns = 10;
    try testing.expectEqual(5, source.share());
    source.alone = true;
    try testing.expectEqual(1, source.share());
    source.spread.next = 1000;
    try testing.expectEqual(0, source.share());
}

test "a list keeps its order however its members come and go" {
    const Member = struct { number: u32, place: Place(@This()) = .{}, other: Place(@This()) = .{} };
    var members: [4]Member = undefined;
    var list: List(Member, "place") = .{};
    var others: List(Member, "other") = .{};
    for (&members, 0..) |*it, number| {
        it.* = .{ .number = @intCast(number) };
        list.append(it);
    }
    others.append(&members[2]);
    list.remove(&members[1]);
    list.moveToEnd(&members[0]);
    list.moveToEnd(&members[0]);
    list.append(&members[1]);
    list.remove(&members[2]);
    var at = list.first;
    for ([_]u32{ 3, 0, 1 }) |number| {
        try testing.expectEqual(number, at.?.number);
        at = at.?.place.next;
    }
    try testing.expectEqual(null, at);
    try testing.expectEqual(&members[1], list.last.?);
    try testing.expectEqual(&members[2], others.first.?);
    while (list.first) |it| list.remove(it);
    try testing.expectEqual(null, list.last);
}
