//! A cache of finished calls: a request that was answered before is not sent again. Any thread; one mutex; nothing waits in here.
//!
//! A call is found by what it sent and by how the reply was read (call/identity.zig). Authorization counts like any header: what
//! one account was told is not for another. Only calls that succeeded are put in, and since a call that is
//! over does not change any more, any number of owners may read it at once.
//!
//! The least recently used goes first when there is no more room; what is older than `ttl_ns` is not found any more. A call may
//! outlive the runtime that sent it (see call.zig), so a cache may serve many. It holds plans through their calls: a plan that
//! held the cache would never go.

const std = @import("std");
const sync = @import("base/sync.zig");
const call_file = @import("call/call.zig");
const identity = @import("call/identity.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Call = call_file.Call;

pub const Key = identity.Key;
pub const keyOf = identity.keyOf;

/// C: gb_cache_stats
pub const Stats = extern struct { hits: u64 = 0, misses: u64 = 0, entries: u32 = 0 };

/// Finished calls, which `Kept` is but for tests.
pub const Cache = Of(Call);

/// `Kept` has `retain` and `release`.
pub fn Of(comptime Kept: type) type {
    return struct {
        gpa: Allocator,
        references: sync.Atomic(u32) = .init(1),
        entries_max: u32,
        /// 0: what is in here does not age.
        ttl_ns: u64,

        mutex: sync.Mutex = .init, // guards what follows
        map: std.HashMapUnmanaged(Key, *Entry, KeyContext, std.hash_map.default_max_load_percentage) = .empty,
        newest: ?*Entry = null,
        oldest: ?*Entry = null,
        hits: u64 = 0,
        misses: u64 = 0,

        const Self = @This();

        /// From the most to the least recently used.
        const Entry = struct {
            key: Key,
            kept: *Kept,
            put_ns: u64,
            newer: ?*Entry = null,
            older: ?*Entry = null,
        };

        pub fn create(gpa: Allocator, entries_max: u32, ttl_ns: u64) error{ OutOfMemory, InvalidArgument }!*Self {
            if (entries_max == 0) return error.InvalidArgument;
            const cache = try gpa.create(Self);
            cache.* = .{ .gpa = gpa, .entries_max = entries_max, .ttl_ns = ttl_ns };
            return cache;
        }

        pub fn retain(cache: *Self) *Self {
            _ = cache.references.fetchAdd(1, .monotonic);
            return cache;
        }

        pub fn release(cache: *Self) void {
            // Acquire-release: the last one out sees every other holder's last access.
            if (cache.references.fetchSub(1, .acq_rel) != 1) return;
            const gpa = cache.gpa;
            cache.clear();
            cache.map.deinit(gpa);
            gpa.destroy(cache);
        }

        /// Retained: the caller releases it.
        pub fn find(cache: *Self, key: *const Key, now: u64) ?*Kept {
            cache.mutex.lock();
            const entry = cache.map.get(key.*) orelse {
                cache.misses += 1;
                cache.mutex.unlock();
                return null;
            };
            cache.unlink(entry);
            if (cache.ttl_ns != 0 and now -| entry.put_ns >= cache.ttl_ns) {
                cache.misses += 1;
                cache.forget(entry);
                cache.mutex.unlock();
                cache.free(entry);
                return null;
            }
            cache.hits += 1;
            cache.linkNewest(entry);
            const kept = entry.kept.retain();
            cache.mutex.unlock();
            return kept;
        }

        /// Takes a reference of its own. Without memory it is not kept, that is all.
        pub fn put(cache: *Self, key: *const Key, kept: *Kept, now: u64) void {
            const entry = cache.gpa.create(Entry) catch return;
            entry.* = .{ .key = key.*, .kept = kept.retain(), .put_ns = now };
            const gone = cache.insert(entry);
            // What is freed may be large; not under the lock.
            if (gone) |it| cache.free(it);
        }

        /// What is to be freed: an entry that had to go, or this one.
        fn insert(cache: *Self, entry: *Entry) ?*Entry {
            cache.mutex.lock();
            defer cache.mutex.unlock();
            const place = cache.map.getOrPut(cache.gpa, entry.key) catch return entry;
            var gone: ?*Entry = null;
            if (place.found_existing) {
                gone = place.value_ptr.*;
                cache.unlink(gone.?);
            }
            place.value_ptr.* = entry;
            cache.linkNewest(entry);
            if (cache.map.count() > cache.entries_max) {
                gone = cache.oldest.?;
                cache.unlink(gone.?);
                cache.forget(gone.?);
            }
            return gone;
        }

        pub fn clear(cache: *Self) void {
            cache.mutex.lock();
            var at = cache.newest;
            cache.newest = null;
            cache.oldest = null;
            cache.map.clearRetainingCapacity();
            cache.mutex.unlock();
            while (at) |entry| {
                at = entry.older;
                cache.free(entry);
            }
        }

        pub fn stats(cache: *Self) Stats {
            cache.mutex.lock();
            defer cache.mutex.unlock();
            return .{ .hits = cache.hits, .misses = cache.misses, .entries = cache.map.count() };
        }

        fn free(cache: *Self, entry: *Entry) void {
            entry.kept.release();
            cache.gpa.destroy(entry);
        }

        fn forget(cache: *Self, entry: *Entry) void {
            const found = cache.map.remove(entry.key);
            assert(found);
        }

        fn linkNewest(cache: *Self, entry: *Entry) void {
            entry.newer = null;
            entry.older = cache.newest;
            if (cache.newest) |newest| newest.newer = entry else cache.oldest = entry;
            cache.newest = entry;
        }

        fn unlink(cache: *Self, entry: *Entry) void {
            if (entry.newer) |newer| newer.older = entry.older else cache.newest = entry.older;
            if (entry.older) |older| older.newer = entry.newer else cache.oldest = entry.newer;
        }

        // ------------------------------------------------------------------------------------------------- calls

        /// A finished call that sent the same as this one is about to send, retained. Before `start`. What is not found
        /// is remembered in the call, for `putFor`.
        pub fn findFor(cache: *Self, call: *Call, now: u64) ?*Kept {
            if (call.failure != .none) return null; // there is nothing to send
            call.cache_key = keyOf(call);
            return cache.find(&call.cache_key.?, now);
        }

        /// Once it is over and has succeeded, after a `findFor`.
        pub fn putFor(cache: *Self, call: *Call, now: u64) void {
            assert(call.failure == .none);
            const key = call.cache_key orelse return;
            cache.put(&key, call, now);
        }
    };
}

/// A digest needs no more hashing.
const KeyContext = struct {
    pub fn hash(_: KeyContext, key: Key) u64 {
        return std.mem.readInt(u64, key[0..8], .little);
    }
    pub fn eql(_: KeyContext, a: Key, b: Key) bool {
        return std.mem.eql(u8, &a, &b);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

/// Something that is counted, in the place of a call.
const Toy = struct {
    number: u32 = 0,
    references: sync.Atomic(u32) = .init(1),

    pub fn retain(toy: *Toy) *Toy {
        _ = toy.references.fetchAdd(1, .monotonic);
        return toy;
    }

    pub fn release(toy: *Toy) void {
        assert(toy.references.fetchSub(1, .acq_rel) > 0);
    }
};

const Toys = Of(Toy);

fn toyKey(number: u64) Key {
    var key: Key = @splat(0);
    std.mem.writeInt(u64, key[0..8], number, .little);
    return key;
}

test "the least recently used goes first" {
    const cache: *Toys = try .create(testing.allocator, 2, 0);
    defer cache.release();
    var toys: [3]Toy = @splat(.{});
    cache.put(&toyKey(0), &toys[0], 0);
    cache.put(&toyKey(1), &toys[1], 0);
    cache.find(&toyKey(0), 0).?.release();
    cache.put(&toyKey(2), &toys[2], 0);
    try testing.expectEqual(null, cache.find(&toyKey(1), 0));
    for ([_]u64{ 0, 2 }) |number| {
        const found = cache.find(&toyKey(number), std.math.maxInt(u64)).?; // nothing ages
        defer found.release();
        try testing.expectEqual(&toys[number], found);
    }
    try testing.expectEqual(Stats{ .hits = 3, .misses = 1, .entries = 2 }, cache.stats());
    try testing.expectEqual(1, toys[1].references.raw); // it was given back
}

test "what is too old is not found, and what is put again is young" {
    const cache: *Toys = try .create(testing.allocator, 8, 100);
    defer cache.release();
    var toys: [2]Toy = @splat(.{});
    cache.put(&toyKey(0), &toys[0], 1_000);
    cache.find(&toyKey(0), 1_099).?.release();
    try testing.expectEqual(null, cache.find(&toyKey(0), 1_100));
    try testing.expectEqual(0, cache.stats().entries);
    cache.put(&toyKey(0), &toys[0], 2_000);
    cache.put(&toyKey(0), &toys[1], 2_050);
    const found = cache.find(&toyKey(0), 2_100).?;
    defer found.release();
    try testing.expectEqual(&toys[1], found);
    try testing.expectEqual(1, toys[0].references.raw);
    cache.find(&toyKey(0), 0).?.release(); // a clock behind the one that put it
}

test "a cleared cache has given everything back" {
    const cache: *Toys = try .create(testing.allocator, 8, 0);
    defer cache.release();
    var toys: [4]Toy = @splat(.{});
    for (&toys, 0..) |*toy, number| cache.put(&toyKey(number), toy, 0);
    cache.clear();
    for (&toys, 0..) |*toy, number| {
        try testing.expectEqual(1, toy.references.raw);
        try testing.expectEqual(null, cache.find(&toyKey(number), 0));
    }
    cache.put(&toyKey(0), &toys[0], 0);
    try testing.expectEqual(1, cache.stats().entries);
    try testing.expectError(error.InvalidArgument, Toys.create(testing.allocator, 0, 0));
}

test "random use finds what a list that is searched from end to end finds" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const Row = struct { number: u64, toy: *Toy, put_ns: u64 };
    const entries_max = 5;
    const ttl_ns = 40;
    const cache: *Toys = try .create(testing.allocator, entries_max, ttl_ns);
    defer cache.release();
    var toys: [16]Toy = @splat(.{});
    var rows: std.ArrayList(Row) = .empty; // the least recently used first
    defer rows.deinit(testing.allocator);
    var now: u64 = 0;
    for (0..20_000) |_| {
        now += random.uintLessThan(u64, 4);
        const number = random.uintLessThan(u64, 12);
        const at = for (rows.items, 0..) |row, at| {
            if (row.number == number) break at;
        } else null;
        switch (random.uintLessThan(u8, 100)) {
            0 => {
                cache.clear();
                rows.clearRetainingCapacity();
            },
            1...40 => {
                const toy = &toys[random.uintLessThan(usize, toys.len)];
                cache.put(&toyKey(number), toy, now);
                if (at) |it| _ = rows.orderedRemove(it);
                try rows.append(testing.allocator, .{ .number = number, .toy = toy, .put_ns = now });
                if (rows.items.len > entries_max) _ = rows.orderedRemove(0);
            },
            else => {
                const found = cache.find(&toyKey(number), now);
                defer if (found) |it| it.release();
                const row = if (at) |it| rows.orderedRemove(it) else null;
                if (row != null and now - row.?.put_ns < ttl_ns) {
                    try testing.expectEqual(row.?.toy, found);
                    try rows.append(testing.allocator, row.?);
                } else try testing.expectEqual(null, found);
            },
        }
        try testing.expectEqual(rows.items.len, cache.stats().entries);
    }
    cache.clear();
    for (&toys) |*toy| try testing.expectEqual(1, toy.references.raw);
}

test "whatever allocation fails, nothing is kept twice or lost" {
    const run = struct {
        fn all(gpa: Allocator) !void {
            var toys: [20]Toy = @splat(.{});
            {
                const cache: *Toys = try .create(gpa, 12, 0);
                defer cache.release();
                for (&toys, 0..) |*toy, number| cache.put(&toyKey(number), toy, 0);
                for (&toys, 0..) |*toy, number| {
                    const found = cache.find(&toyKey(number), 0) orelse continue;
                    defer found.release();
                    try testing.expectEqual(toy, found);
                }
            }
            for (&toys) |*toy| try testing.expectEqual(1, toy.references.raw);
        }
    };
    // A cache without memory keeps less, and says nothing.
    for (0..40) |index| {
        var failing: testing.FailingAllocator = .init(testing.allocator, .{ .fail_index = index });
        run.all(failing.allocator()) catch |err| try testing.expectEqual(error.OutOfMemory, err);
    }
}

test "threads that share a cache find nothing but what was put under the key" {
    const Shared = struct {
        cache: *Toys,
        toys: [32]Toy = @splat(.{}),
        wrong: sync.Atomic(u32) = .init(0),

        fn work(shared: *@This(), seed: u64) void {
            var prng = std.Random.DefaultPrng.init(seed);
            const random = prng.random();
            for (0..5_000) |now| {
                const number = random.uintLessThan(u32, 32);
                const key = toyKey(number);
                if (random.uintLessThan(u32, 500) == 0) shared.cache.clear();
                if (random.boolean()) shared.cache.put(&key, &shared.toys[number], now) else if (shared.cache.find(&key, now)) |found| {
                    if (found != &shared.toys[number] or found.references.load(.monotonic) < 2) _ = shared.wrong.fetchAdd(1, .monotonic);
                    found.release();
                }
            }
        }
    };
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var shared: Shared = .{ .cache = try .create(testing.allocator, 12, 50) };
    var threads: [4]sync.Thread = undefined;
    for (&threads, 0..) |*thread, n| thread.* = try sync.Thread.spawn(.{ .name = "test" }, Shared.work, .{ &shared, seed +% n });
    for (threads) |thread| thread.join();
    try testing.expect(shared.cache.stats().entries <= 12);
    shared.cache.release();
    try testing.expectEqual(0, shared.wrong.load(.monotonic));
    for (&shared.toys) |*toy| try testing.expectEqual(1, toy.references.load(.monotonic));
}
