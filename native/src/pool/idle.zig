//! How workers fall asleep without missing work, and how few of them are woken.
//!
//! One word counts the workers that search (awake, without a task) and those that sleep. Each worker sleeps on a futex of its
//! own.
//!
//! Worker:                                     Submitter:
//!   1. searching += 1                            A. put the task where workers look (seq_cst)
//!   2. look everywhere, spinning a while         B. read the word (seq_cst)
//!   3. searching -= 1, sleeping += 1             C. somebody searching: done, he will find it
//!   4. look everywhere once more                 D. nobody searching, somebody sleeping: wake one,
//!   5. futex-wait                                   handing him the role: searching += 1, sleeping -= 1
//!
//! ## The race, and why nothing is lost
//!
//! The worker looks (2), finds nothing; the task arrives (A); the worker goes to sleep (5) and nobody wakes it. For that the
//! submitter must have read the word (B) before 3 as "searching", and the worker must not have seen the task in 4. But 3
//! and 4 come after each other, as do A and B, all four sequentially consistent: if B read the word before 3, then A came
//! before 4, and 4 sees the task.
//!
//! ## Few wakes
//!
//! A wake across cores costs 40-50 microseconds, a spinning worker finds work in one. So: a bounded spin before sleeping,
//! no wake while anybody searches, and a searcher that finds work and was the last one to search wakes the next if there
//! is more (`found`): so the number of workers awake grows with the work, one at a time. That holds for whoever puts more than
//! one task where others can see them: he wakes one, and that one sees to the rest.
//!
//! Only a few spin at a time (Pool.searchers_max): two that look for the same work do not find more than one, and the cores they turn
//! on are somebody else's.

const std = @import("std");
const sync = @import("../base/sync.zig");

const assert = std.debug.assert;

pub const spins = 200;

const Word = packed struct(u32) { searching: u16 = 0, sleeping: u16 = 0 };

/// A worker's bed.
pub const Bed = struct {
    word: sync.Atomic(u32) = .init(0),
    asleep: bool = false, // under Idle.mutex
    next: ?*Bed = null,
};

pub const Idle = struct {
    word: sync.Atomic(u32) = .init(0),
    mutex: sync.Mutex = .init, // the list of beds; only taken to fall asleep and to wake
    beds: ?*Bed = null,

    fn add(idle: *Idle, comptime field: []const u8, comptime sign: i2) Word {
        var one: Word = .{};
        @field(one, field) = 1;
        const step: u32 = @bitCast(one);
        return @bitCast(if (sign > 0) idle.word.fetchAdd(step, .seq_cst) else idle.word.fetchSub(step, .seq_cst)); // see the top
    }

    /// How many searched already.
    pub fn beginSearch(idle: *Idle) u32 {
        return idle.add("searching", 1).searching;
    }

    /// A searcher found a task. True: nobody else searches now, so if there is more work one should be woken.
    pub fn found(idle: *Idle) bool {
        return idle.add("searching", -1).searching == 1;
    }

    /// Step 3. The caller looks once more, then calls `sleep` or `stayUp`.
    pub fn lieDown(idle: *Idle, bed: *Bed) void {
        idle.mutex.lock();
        bed.asleep = true;
        bed.next = idle.beds;
        idle.beds = bed;
        _ = idle.add("sleeping", 1);
        _ = idle.add("searching", -1);
        idle.mutex.unlock();
    }

    /// Returns once woken; the worker then is a searcher again.
    pub fn sleep(idle: *Idle, bed: *Bed) void {
        _ = idle;
        while (true) {
            const seen = bed.word.load(.acquire); // pairs with wake's store
            if (seen == 1) break;
            sync.futex.wait(&bed.word, seen, null) catch {};
        }
        bed.word.store(0, .monotonic);
    }

    /// Instead of `sleep`: work was seen after all. The worker is a searcher again.
    pub fn stayUp(idle: *Idle, bed: *Bed) void {
        idle.mutex.lock();
        if (!bed.asleep) { // woken meanwhile: the wake made it a searcher
            idle.mutex.unlock();
            return idle.sleep(bed);
        }
        idle.remove(bed);
        idle.mutex.unlock();
    }

    /// Work arrived: wakes a worker if nobody is looking for work. False: nobody sleeps, or somebody searches.
    pub fn notify(idle: *Idle) bool {
        const word: Word = @bitCast(idle.word.load(.seq_cst)); // step B
        if (word.searching > 0 or word.sleeping == 0) return false;
        return idle.wake(false);
    }

    /// Whether or not somebody searches.
    pub fn wakeOne(idle: *Idle) bool {
        return idle.wake(true);
    }

    fn wake(idle: *Idle, always: bool) bool {
        idle.mutex.lock();
        // Somebody was woken between step B and the lock: he has not begun to look, and will find what is there.
        const word: Word = @bitCast(idle.word.load(.seq_cst));
        const bed = if (always or word.searching == 0) idle.beds else null;
        if (bed == null) {
            idle.mutex.unlock();
            return false;
        }
        idle.wakeThis(bed.?);
        return true;
    }

    /// Under the lock, which it gives back.
    fn wakeThis(idle: *Idle, bed: *Bed) void {
        idle.remove(bed);
        bed.word.store(1, .release); // pairs with sleep's load
        idle.mutex.unlock();
        sync.futex.wake(&bed.word, 1);
    }

    fn remove(idle: *Idle, bed: *Bed) void {
        var place = &idle.beds;
        while (place.*.? != bed) place = &place.*.?.next;
        place.* = bed.next;
        bed.asleep = false;
        _ = idle.add("searching", 1);
        _ = idle.add("sleeping", -1);
    }

    pub fn sleeping(idle: *const Idle) u32 {
        const word: Word = @bitCast(idle.word.load(.monotonic));
        return word.sleeping;
    }
};

test "a wake makes the sleeper a searcher, and nobody is woken while one searches" {
    var idle: Idle = .{};
    var bed: Bed = .{};
    _ = idle.beginSearch();
    idle.lieDown(&bed);
    try std.testing.expectEqual(1, idle.sleeping());
    try std.testing.expect(idle.notify());
    try std.testing.expect(!idle.notify());
    idle.sleep(&bed); // returns: it was woken
    try std.testing.expectEqual(0, idle.sleeping());
    try std.testing.expect(idle.found());
}

test "work seen at the last moment keeps a worker up" {
    var idle: Idle = .{};
    var bed: Bed = .{};
    _ = idle.beginSearch();
    idle.lieDown(&bed);
    idle.stayUp(&bed);
    try std.testing.expectEqual(0, idle.sleeping());
    try std.testing.expect(!idle.notify());
    try std.testing.expect(idle.found());
}
