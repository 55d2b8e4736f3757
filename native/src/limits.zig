//! Limits: counted permits that the runs of one executor share ("at most 4 nodes in the database, at most 10 agents").
//! A node names the limits it needs as a bit mask. This room says who may go and keeps those who wait; it starts nothing.
//! Any thread may enter; one mutex guards everything, and nothing is allocated while a node waits.
//!
//! ## The protocol
//!
//!     tryEnter -> true     the permits are taken, all of the mask at once; later exactly one `leave`
//!              -> false    the node waits in its run's line, until a `leave` grants it or `drain` takes it back
//!     leave                gives permits back, takes them for whoever is next, and names those in `Granted`
//!
//! What is granted has its permits already, so the caller may take its time. A node may come to its end while it waits, or
//! between being granted and being carried out, and its run with it: so `on_grant` is called under the mutex, where the line
//! is there for certain, to take a reference for whoever carries the node out. A run that is stopped, and one that ends, is
//! drained; who queued a node (`tryEnter` was false) looks at the stop flag afterwards and drains once more if it is set:
//! either the sweep's drain came later and found the node, or the flag was set before and is seen (the mutex orders the two).
//!
//! Nobody holds one permit while waiting for another, so waiting in a circle cannot happen.
//!
//! ## Who is next
//!
//! Whenever the mutex is free, nobody waits who could go (but see "owing" below). So a newcomer whose permits are free takes
//! them past everybody in line: those lack something else, and keeping a permit idle for them would help nobody at once.
//!
//! When permits come back: between runs, the one whose last turn is longest ago; within it, of the nodes whose permits are
//! free, the highest rank, and of equal ranks the first to come. Nodes that need the same are one class of their run, and a
//! class is a queue; of two classes with equal ranks the one goes first that has waited longer for a grant. A run may put
//! off its own nodes of low rank for long, but not for ever, for it is finite.
//!
//! Lines are found through groups: everybody who needs the same mask, of whatever run. A group's classes stand in the order of
//! their runs' turns, and a run that was served goes to the end in all its groups; so the next one is among the groups'
//! first, and who cannot go costs one look per group, not one per run. There are as many groups as different masks: few.
//!
//! ## A node that needs several
//!
//! With a stream of nodes that need A, and of others that need B, the moment when both are free may never come for one that
//! needs both. So a group of several counts how often somebody else took one of its permits while it waited. After `patience`
//! times it is reserved for: nobody but this group takes a permit of its mask any more. What it lacks is held by nodes that
//! run and wait for nothing, so it comes back and stays free; once all are there, the group's first goes, and the reservation
//! ends. One group at a time, the most often passed first. So a class's turn comes after at most `patience` grants, plus one
//! reservation for each group before it; and within a group runs take turns.
//!
//! ## Owing
//!
//! A `leave` grants few: whoever goes needs one of the permits that came back, else it would have gone before. Only the end of
//! a reservation can let more go, and `Granted` has room for so many. If it is full the rest is owed: newcomers queue up
//! behind them until the holder of that list (`Granted.next`), or any other `leave`, has paid.

const std = @import("std");
const ranked_file = @import("base/ranked.zig");
const sync = @import("base/sync.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Ranked = ranked_file.Ranked;

pub const limits_max = 32;
/// How often a node that needs several permits is passed before they are kept for it. Small: what is kept idles for as long
/// as what it lacks is in use, so at most one in so many grants costs a node's time of one permit.
pub const patience_default = 16;

/// C: gb_limit_stats
pub const Counts = extern struct { capacity: u32 = 0, in_use: u32 = 0, waiting: u32 = 0, peak: u32 = 0 };

pub const Limits = struct {
    gpa: Allocator,
    references: sync.Atomic(u32) = .init(1),
    count: u32,
    patience: u32 = patience_default,

    mutex: sync.Mutex = .init, // guards what follows
    counts: [limits_max]Counts = @splat(.{}),
    /// Limits without a free permit.
    full: u32 = 0,
    waiting: u32 = 0,
    turns: u64 = 0,
    groups: ?*Group = null,
    reserved: ?*Group = null,
    owing: bool = false,

    pub fn create(gpa: Allocator, capacities: []const u32) error{ OutOfMemory, InvalidArgument }!*Limits {
        if (capacities.len > limits_max) return error.InvalidArgument;
        for (capacities) |capacity| if (capacity == 0) return error.InvalidArgument; // nobody would ever go
        const limits = try gpa.create(Limits);
        limits.* = .{ .gpa = gpa, .count = @intCast(capacities.len) };
        for (capacities, limits.counts[0..capacities.len]) |capacity, *it| it.capacity = capacity;
        return limits;
    }

    pub fn retain(limits: *Limits) *Limits {
        _ = limits.references.fetchAdd(1, .monotonic);
        return limits;
    }

    pub fn release(limits: *Limits) void {
        // Acquire-release: the last one out sees every other holder's last access.
        if (limits.references.fetchSub(1, .acq_rel) != 1) return;
        assert(limits.groups == null);
        limits.gpa.destroy(limits);
    }

    /// Whether all of a mask's limits are there.
    pub fn knows(limits: *const Limits, mask: u32) bool {
        return limits.count == limits_max or mask >> @intCast(limits.count) == 0;
    }

    /// True: the permits are the node's. False: it waits in `line`.
    pub fn tryEnter(limits: *Limits, line: *Line, node: u32, mask: u32, rank: u32) bool {
        if (mask == 0) return true;
        assert(limits.knows(mask));
        limits.mutex.lock();
        defer limits.mutex.unlock();
        if (limits.areFree(mask) and !limits.owing and !limits.areKept(mask)) {
            limits.occupy(mask);
            limits.notePassed(mask);
            return true;
        }
        limits.queue(line.classOf(mask), node, rank);
        return false;
    }

    /// Gives a node's permits back. Adds to `granted` who goes now.
    pub fn leave(limits: *Limits, mask: u32, granted: *Granted) void {
        if (mask == 0) return;
        limits.mutex.lock();
        defer limits.mutex.unlock();
        limits.vacate(mask);
        limits.hand(granted);
    }

    /// Takes back nodes that wait in `line`, in no order. Fewer than there is room for: no more wait. If others waited behind
    /// permits that were kept for these, they are added to `granted`.
    pub fn drain(limits: *Limits, line: *Line, into: []u32, granted: *Granted) []u32 {
        limits.mutex.lock();
        defer limits.mutex.unlock();
        var count: usize = 0;
        for (line.classes) |*class| while (class.waiting > 0 and count < into.len) : (count += 1) {
            into[count] = limits.unqueue(class);
        };
        limits.hand(granted);
        return into[0..count];
    }

    pub fn read(limits: *Limits, index: u32) Counts {
        limits.mutex.lock();
        defer limits.mutex.unlock();
        return limits.counts[index];
    }

    // ------------------------------------------------------------------------------------------- under the mutex

    fn areFree(limits: *const Limits, mask: u32) bool {
        return mask & limits.full == 0;
    }

    /// Whether any of them are kept for a group that has waited too long.
    fn areKept(limits: *const Limits, mask: u32) bool {
        const reserved = limits.reserved orelse return false;
        return mask & reserved.mask != 0;
    }

    fn occupy(limits: *Limits, mask: u32) void {
        var bits: Bits = .{ .left = mask };
        while (bits.next()) |bit| {
            const it = &limits.counts[bit];
            assert(it.in_use < it.capacity);
            it.in_use += 1;
            it.peak = @max(it.peak, it.in_use);
            if (it.in_use == it.capacity) limits.full |= @as(u32, 1) << bit;
        }
    }

    fn vacate(limits: *Limits, mask: u32) void {
        var bits: Bits = .{ .left = mask };
        while (bits.next()) |bit| {
            assert(limits.counts[bit].in_use > 0);
            limits.counts[bit].in_use -= 1;
        }
        limits.full &= ~mask;
    }

    fn queue(limits: *Limits, class: *Class, node: u32, rank: u32) void {
        class.ranked.push(class.line.link, node, rank);
        class.waiting += 1;
        if (class.waiting == 1) {
            limits.turns += 1;
            class.since = limits.turns;
            class.group.append(class, limits.turns);
        }
        limits.waiting += 1;
        var bits: Bits = .{ .left = class.group.mask };
        while (bits.next()) |bit| limits.counts[bit].waiting += 1;
    }

    /// The class's first node no longer waits.
    fn unqueue(limits: *Limits, class: *Class) u32 {
        const group = class.group;
        const node = class.ranked.pop(class.line.link).?;
        class.waiting -= 1;
        limits.waiting -= 1;
        var bits: Bits = .{ .left = group.mask };
        while (bits.next()) |bit| limits.counts[bit].waiting -= 1;
        if (class.waiting == 0) group.remove(class);
        if (group.first == null) limits.contented(group);
        return node;
    }

    /// The group has had its turn, or nobody waits in it any more.
    fn contented(limits: *Limits, group: *Group) void {
        group.passed = 0;
        if (limits.reserved != group) return;
        limits.reserved = null;
        limits.reserve();
    }

    /// Somebody took these permits: who else waits for one of them was passed.
    fn notePassed(limits: *Limits, mask: u32) void {
        if (limits.waiting == 0) return;
        var at = limits.groups;
        while (at) |group| : (at = group.next) {
            if (group.first != null and group.mask != mask and group.mask & mask != 0) group.passed +|= 1;
        }
        if (limits.reserved == null) limits.reserve();
    }

    fn reserve(limits: *Limits) void {
        var at = limits.groups;
        var most = limits.patience;
        while (at) |group| : (at = group.next) {
            // A single permit needs no keeping: its turn comes whenever the permit does.
            if (group.first == null or @popCount(group.mask) < 2 or group.passed < most) continue;
            most = group.passed;
            limits.reserved = group;
        }
    }

    fn hand(limits: *Limits, granted: *Granted) void {
        while (limits.nextClass()) |class| {
            if (granted.isFull()) {
                assert(granted.owed == null or granted.owed == limits); // a list is for one Limits
                if (granted.owed == null) granted.owed = limits.retain();
                limits.owing = true;
                return;
            }
            const line = class.line;
            const mask = class.group.mask;
            limits.occupy(mask);
            const node = limits.unqueue(class);
            limits.contented(class.group);
            limits.endTurn(line, class);
            limits.notePassed(mask);
            if (line.on_grant) |hold| hold(line);
            granted.add(.{ .line = line, .node = node });
        }
        limits.owing = false;
    }

    fn nextClass(limits: *const Limits) ?*Class {
        if (limits.waiting == 0) return null;
        var earliest: ?*Class = null;
        var at = limits.groups;
        while (at) |group| : (at = group.next) {
            const first = group.first orelse continue;
            if (limits.mayGo(group) and (earliest == null or first.turn < earliest.?.turn)) earliest = first;
        }
        const line = (earliest orelse return null).line;
        var best: ?*Class = null;
        for (line.classes) |*class| {
            if (class.waiting > 0 and limits.mayGo(class.group) and (best == null or class.goesBefore(best.?))) best = class;
        }
        return best.?;
    }

    fn mayGo(limits: *const Limits, group: *const Group) bool {
        return limits.areFree(group.mask) and (limits.reserved == group or !limits.areKept(group.mask));
    }

    /// Everybody else's turn is before the line's next one.
    fn endTurn(limits: *Limits, line: *Line, served: *Class) void {
        limits.turns += 1;
        served.since = limits.turns;
        for (line.classes) |*class| if (class.waiting > 0) {
            class.group.remove(class);
            class.group.append(class, limits.turns);
        };
    }
};

/// Everybody who needs the same permits.
const Group = struct {
    mask: u32,
    users: u32 = 0,
    passed: u32 = 0,
    /// Classes in which somebody waits, in the order of their turns.
    first: ?*Class = null,
    last: ?*Class = null,
    next: ?*Group = null,

    fn append(group: *Group, class: *Class, turn: u64) void {
        class.turn = turn;
        class.next = null;
        class.previous = group.last;
        if (group.last) |last| last.next = class else group.first = class;
        group.last = class;
    }

    fn remove(group: *Group, class: *Class) void {
        if (class.previous) |previous| previous.next = class.next else group.first = class.next;
        if (class.next) |next| next.previous = class.previous else group.last = class.previous;
    }
};

/// The nodes of one run that need the same permits.
const Class = struct {
    line: *Line,
    group: *Group,
    ranked: Ranked,
    waiting: u32 = 0,
    /// Its run's turn, as the group's order has it.
    turn: u64 = 0,
    /// Since when nobody of it was let in.
    since: u64 = 0,
    next: ?*Class = null,
    previous: ?*Class = null,

    fn highestRank(class: *const Class) u32 {
        const word = 31 - @clz(class.ranked.any);
        return @as(u32, word) * 64 + 63 - @clz(class.ranked.words[word]);
    }

    fn goesBefore(class: *const Class, other: *const Class) bool {
        const rank = class.highestRank();
        const others = other.highestRank();
        return rank > others or (rank == others and class.since < other.since);
    }
};

/// The waiting nodes of one run; they are linked through the run's `link`, where a node is in one list at a time.
pub const Line = struct {
    limits: *Limits,
    link: []u32,
    classes: []Class,
    /// Called under the mutex for each node that is granted: whoever carries it out finds the run alive.
    on_grant: ?*const fn (*Line) void = null,

    /// `masks`: what the run's nodes need, in any order; repetitions and zeros do no harm. The line does not move afterwards.
    pub fn init(line: *Line, arena: Allocator, limits: *Limits, link: []u32, masks: []const u32, rank_count: u32) error{OutOfMemory}!void {
        var classes: std.ArrayList(Class) = .empty;
        line.* = .{ .limits = limits, .link = link, .classes = &.{} };
        limits.mutex.lock();
        defer limits.mutex.unlock();
        errdefer for (classes.items) |*class| line.letGo(class.group);
        for (masks) |mask| {
            if (mask == 0 or find(classes.items, mask) != null) continue;
            assert(limits.knows(mask));
            try classes.ensureUnusedCapacity(arena, 1);
            const ranked: Ranked = try .init(arena, rank_count);
            classes.appendAssumeCapacity(.{ .line = line, .group = try line.join(mask), .ranked = ranked });
        }
        line.classes = classes.items;
        _ = limits.retain();
    }

    /// No node waits.
    pub fn deinit(line: *Line) void {
        const limits = line.limits;
        {
            limits.mutex.lock();
            defer limits.mutex.unlock();
            for (line.classes) |*class| {
                assert(class.waiting == 0);
                line.letGo(class.group);
            }
        }
        limits.release();
    }

    fn classOf(line: *Line, mask: u32) *Class {
        return find(line.classes, mask).?;
    }

    fn find(classes: []Class, mask: u32) ?*Class {
        for (classes) |*class| if (class.group.mask == mask) return class;
        return null;
    }

    fn join(line: *Line, mask: u32) error{OutOfMemory}!*Group {
        const limits = line.limits;
        var at = limits.groups;
        while (at) |group| : (at = group.next) if (group.mask == mask) {
            group.users += 1;
            return group;
        };
        const group = try limits.gpa.create(Group);
        group.* = .{ .mask = mask, .users = 1, .next = limits.groups };
        limits.groups = group;
        return group;
    }

    fn letGo(line: *Line, group: *Group) void {
        group.users -= 1;
        if (group.users > 0) return;
        assert(group.first == null);
        var place = &line.limits.groups;
        while (place.*.? != group) place = &place.*.?.next;
        place.* = group.next;
        line.limits.gpa.destroy(group);
    }
};

/// Nodes whose permits were taken for them, for the caller to carry out: all of them, with `next` until it is null. One list
/// may collect from several `leave`s of one Limits, also while it is worked off.
pub const Granted = struct {
    pairs: [room]Pair = undefined,
    first: u32 = 0,
    count: u32 = 0,
    /// More may go than there was room for. Counted: who was granted may have ended, and the executor with it.
    owed: ?*Limits = null,

    pub const Pair = struct { line: *Line, node: u32 };
    pub const room = 64;

    pub fn next(granted: *Granted) ?Pair {
        if (granted.count == 0) {
            const limits = granted.owed orelse return null;
            granted.owed = null;
            defer limits.release();
            limits.mutex.lock();
            defer limits.mutex.unlock();
            limits.hand(granted);
            if (granted.count == 0) return null; // another leave has paid
        }
        const pair = granted.pairs[granted.first];
        granted.first = (granted.first + 1) % room;
        granted.count -= 1;
        return pair;
    }

    fn isFull(granted: *const Granted) bool {
        return granted.count == room;
    }

    fn add(granted: *Granted, pair: Pair) void {
        granted.pairs[(granted.first + granted.count) % room] = pair;
        granted.count += 1;
    }
};

/// The limits of a mask.
pub const Bits = struct {
    left: u32,

    pub fn next(bits: *Bits) ?u5 {
        if (bits.left == 0) return null;
        const bit: u5 = @intCast(@ctz(bits.left));
        bits.left &= bits.left - 1;
        return bit;
    }
};
