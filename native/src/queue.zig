//! Queues: what Python waits on. The types; what happens between them stands in lobby.zig.
//!
//! A `Queue` is what one waiting thread or event loop waits on. A `Source` holds the callbacks of one run that are ready. A
//! `Letter` is one piece of news, embedded in what it tells about.

const std = @import("std");
const sync = @import("base/sync.zig");
const os = @import("base/os.zig");

const Allocator = std.mem.Allocator;

pub const batch_max = 256;
pub const items_max = 64;

pub const Kind = enum(u32) { caller = 0, thread = 1, loop = 2 };
pub const ItemKind = enum(u32) { run_over = 1, call_over = 2, run_stopping = 3 };

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
    next: ?*Letter = null,
    previous: ?*Letter = null,
};

/// C: gb_news
pub const News = extern struct {
    run_token: u64 = 0,
    lender: u64 = 0,
    node_count: u32 = 0,
    item_count: u32 = 0,
    start_thread: u32 = 0,
    more: u32 = 0,
    nodes: [batch_max]u32 = undefined,
    items: [items_max]Item = undefined,

    pub fn clear(news: *News) void {
        news.run_token = 0;
        news.lender = 0;
        news.node_count = 0;
        news.item_count = 0;
        news.start_thread = 0;
        news.more = 0;
    }
};

/// The ready callbacks of one run: a ring that cannot overflow, for a node is ready at most once at a time.
pub const Source = struct {
    token: u64,
    ring: []u32,
    head: u32 = 0,
    count: u32 = 0,
    /// The event loop that takes from here; null: threads and the caller do.
    loop: ?*Queue = null,
    /// The thread that waits for this run and runs its callbacks meanwhile.
    caller: ?*Queue = null,
    average_ns: u64 = 0,
    /// Threads that are out with callbacks from here.
    out: u32 = 0,
    /// Called under the lobby's mutex for nodes that are handed out.
    claim: *const fn (*Source, nodes: []const u32) void,

    listed: bool = false,
    next: ?*Source = null,
    previous: ?*Source = null,

    pub fn take(source: *Source, into: []u32) void {
        for (into) |*node| {
            node.* = source.ring[source.head];
            source.head = if (source.head + 1 == source.ring.len) 0 else source.head + 1;
        }
        source.count -= @intCast(into.len);
        source.claim(source, into);
    }
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

    letters: List(Letter) = .{},
    sources: List(Source) = .{}, // of a loop
    pulls: ?*Source = null, // of a caller
    parked: bool = false,
    poked: bool = false,
    lend_from: u64 = 0,

    /// Out with callbacks: since when, how many were handed out, from where.
    out_since_ns: u64 = 0,
    out_count: u32 = 0,
    out_source: ?*Source = null,
    /// Out for so long: time to ask for a helper, once more.
    lend_after_ns: u64 = 0,

    next: ?*Queue = null,
    previous: ?*Queue = null,
    listed: bool = false, // in parked_threads or out_queues

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

    pub fn descriptor(queue: *Queue) i64 {
        return if (queue.wakeup) |*wakeup| @intCast(wakeup.fd()) else -1;
    }
};

pub fn List(comptime T: type) type {
    return struct {
        first: ?*T = null,
        last: ?*T = null,

        pub fn append(list: *@This(), node: *T) void {
            node.next = null;
            node.previous = list.last;
            if (list.last) |last| last.next = node else list.first = node;
            list.last = node;
        }
        pub fn remove(list: *@This(), node: *T) void {
            if (node.previous) |previous| previous.next = node.next else list.first = node.next;
            if (node.next) |next| next.previous = node.previous else list.last = node.previous;
            node.next = null;
            node.previous = null;
        }
    };
}
