//! The crew: callback threads that there are, and who is out with callbacks. How many threads may run callbacks at once, and
//! when one more is wanted. Under the lobby's mutex, like everything that touches a queue; wakes nobody.
//!
//! ## Who counts
//!
//! At most `threads_max` callback threads run callbacks at once. A thread that is given up (its callback timed out, its run
//! is over) cannot be had back before its function returns, which may be never: it no longer counts, and another may take its
//! place. The same goes for a thread that waits, in a callback, for a run that itself needs a thread. When such a thread
//! comes back it counts again; whoever is then about to park beside a parked one while there are more than `threads_max` is
//! told to end. `threads_hard_max` bounds all of them together.
//!
//! ## Who is on call
//!
//! Only a Python thread that is in the lobby can start another one. So one should be parked whenever user code runs: whoever
//! takes callbacks while nobody else is parked is asked to start the next one first. With `threads_max` of them at work that
//! ends, but for callbacks that may be given up: then one more is on call, and gets nothing to do before that happens.

const std = @import("std");
const queue_file = @import("queue.zig");

const assert = std.debug.assert;
const List = queue_file.List;
const Queue = queue_file.Queue;
const Source = queue_file.Source;
const Standing = queue_file.Standing;

pub const Crew = struct {
    threads_max: u32,
    threads_hard_max: u32,
    numbers: std.EnumArray(Standing, u32) = .initFill(0),
    /// Threads Python was asked to start and that have not shown up.
    coming: u32 = 0,
    parked: List(Queue, "place") = .{},
    parked_count: u32 = 0,
    /// Threads and callers that are out with callbacks.
    out: List(Queue, "place") = .{},
    /// Of these the threads that count.
    out_count: u32 = 0,
    /// Threads that are out with a callback that may be given up, and were not.
    alone_count: u32 = 0,

    /// hard_max 0: four times as many, but at least 64 more.
    pub fn init(threads_max: u32, hard_max: u32) Crew {
        return .{
            .threads_max = threads_max,
            .threads_hard_max = if (hard_max != 0) @max(hard_max, threads_max) else @max(4 *| threads_max, threads_max +| 64),
        };
    }

    pub fn total(crew: *const Crew) u32 {
        var sum: u32 = 0;
        for (crew.numbers.values) |number| sum += number;
        return sum;
    }

    /// `threads`: those that exist and were not given up.
    pub const Counts = struct { threads: u32, parked: u32, abandoned: u32, hard_max: u32 };

    pub fn counts(crew: *const Crew) Counts {
        const abandoned = crew.numbers.get(.abandoned);
        return .{
            .threads = crew.total() - abandoned,
            .parked = crew.parked_count,
            .abandoned = abandoned,
            .hard_max = crew.threads_hard_max,
        };
    }

    pub fn arrive(crew: *Crew, queue: *Queue) void {
        assert(queue.kind == .thread and queue.standing == .counted);
        crew.numbers.getPtr(.counted).* += 1;
        crew.coming -|= 1;
    }

    pub fn depart(crew: *Crew, queue: *Queue) void {
        assert(!queue.out.is_out and !queue.parked);
        crew.numbers.getPtr(queue.standing).* -= 1;
    }

    pub fn set(crew: *Crew, queue: *Queue, standing: Standing) void {
        if (queue.standing == standing) return;
        crew.numbers.getPtr(queue.standing).* -= 1;
        crew.numbers.getPtr(standing).* += 1;
        if (queue.out.is_out) {
            if (queue.standing == .counted) crew.out_count -= 1;
            if (standing == .counted) crew.out_count += 1;
            if (queue.out.alone and standing == .abandoned) crew.alone_count -= 1;
            if (queue.out.alone and queue.standing == .abandoned) crew.alone_count += 1;
        }
        queue.standing = standing;
    }

    // -------------------------------------------------------------------------------------------- out, and back

    pub fn goOut(crew: *Crew, queue: *Queue, out: Queue.Out) void {
        assert(out.is_out and !queue.out.is_out and !queue.parked);
        queue.out = out;
        crew.out.append(queue);
        if (queue.kind != .thread) return;
        assert(queue.standing == .counted);
        queue.told = false;
        crew.out_count += 1;
        crew.alone_count += @intFromBool(out.alone);
    }

    /// The thread is in the lobby again, whatever it was given up for.
    pub fn comeBack(crew: *Crew, queue: *Queue) void {
        if (queue.kind == .thread) crew.set(queue, .counted);
        if (!queue.out.is_out) return;
        crew.out.remove(queue);
        if (queue.kind == .thread) {
            crew.out_count -= 1;
            crew.alone_count -= @intFromBool(queue.out.alone);
        }
        queue.out = .{};
    }

    /// Its callback is nobody's any more. False: it does not count already.
    pub fn giveUp(crew: *Crew, queue: *Queue) bool {
        assert(queue.kind == .thread and queue.out.is_out);
        if (queue.standing == .abandoned) return false;
        crew.set(queue, .abandoned);
        return true;
    }

    /// What the queue with this token is out with.
    pub fn sourceOf(crew: *const Crew, token: u64) ?*Source {
        var at = crew.out.first;
        while (at) |queue| : (at = queue.place.next) if (queue.token == token) return queue.out.source;
        return null;
    }

    // -------------------------------------------------------------------------------------------- parked

    pub fn park(crew: *Crew, queue: *Queue) void {
        queue.parked = true;
        if (queue.kind != .thread) return;
        crew.parked.append(queue);
        crew.parked_count += 1;
    }

    pub fn unpark(crew: *Crew, queue: *Queue) void {
        if (!queue.parked) return;
        queue.parked = false;
        if (queue.kind == .thread) {
            crew.parked.remove(queue);
            crew.parked_count -= 1;
        } else if (queue.outer) |outer| if (outer.standing == .waiting) crew.set(outer, .counted);
    }

    /// Whether a thread that is not out may run callbacks.
    pub fn hasRoom(crew: *const Crew) bool {
        return crew.out_count < crew.threads_max;
    }

    /// A parked thread that may be given something to do.
    pub fn spare(crew: *const Crew) ?*Queue {
        return if (crew.hasRoom()) crew.parked.first else null;
    }

    // -------------------------------------------------------------------------------------------- how many

    fn wanted(crew: *const Crew) u32 {
        return crew.threads_max + @intFromBool(crew.alone_count > 0);
    }

    /// True: whoever asks tells Python to start one more.
    pub fn ask(crew: *Crew) bool {
        if (crew.parked_count > 0 or crew.coming > 0) return false;
        if (crew.numbers.get(.counted) >= crew.wanted() or crew.total() >= crew.threads_hard_max) return false;
        crew.coming += 1;
        return true;
    }

    /// A thread that has nothing to do ends rather than parks where others are parked and there are too many. It is told once:
    /// one that has a reason to stay does so, and another one goes in its place. Returns who is to go.
    pub fn dismiss(crew: *Crew, queue: *Queue) ?*Queue {
        if (crew.parked_count == 0 or crew.numbers.get(.counted) <= crew.wanted()) return null;
        if (!queue.told) {
            queue.told = true;
            crew.set(queue, .leaving);
            return queue;
        }
        var at = crew.parked.first;
        while (at) |other| : (at = other.place.next) if (!other.told) return other;
        return null;
    }

    /// What is true whenever the mutex is free.
    pub fn assertCounts(crew: *const Crew) void {
        var counted: u32 = 0;
        var alone: u32 = 0;
        var at = crew.out.first;
        while (at) |queue| : (at = queue.place.next) {
            assert(queue.out.is_out and !queue.parked);
            if (queue.kind != .thread) continue;
            counted += @intFromBool(queue.standing == .counted);
            alone += @intFromBool(queue.out.alone and queue.standing != .abandoned);
        }
        assert(counted == crew.out_count and alone == crew.alone_count);
        var parked: u32 = 0;
        at = crew.parked.first;
        while (at) |queue| : (at = queue.place.next) {
            assert(queue.parked and queue.kind == .thread and queue.standing == .counted and !queue.out.is_out);
            parked += 1;
        }
        assert(parked == crew.parked_count);
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn testQueue(kind: queue_file.Kind) Queue {
    return .{ .lobby = undefined, .gpa = testing.allocator, .kind = kind, .token = 0 };
}

test "one thread is asked for while none is parked, up to so many" {
    var crew: Crew = .init(2, 0);
    var queues: [2]Queue = @splat(testQueue(.thread));
    try testing.expect(crew.ask());
    try testing.expect(!crew.ask()); // it is coming
    crew.arrive(&queues[0]);
    crew.park(&queues[0]);
    try testing.expect(!crew.ask());
    try testing.expectEqual(&queues[0], crew.spare().?);
    crew.unpark(&queues[0]);
    crew.goOut(&queues[0], .{ .is_out = true });
    try testing.expect(crew.ask());
    crew.arrive(&queues[1]);
    try testing.expect(crew.hasRoom());
    crew.goOut(&queues[1], .{ .is_out = true });
    try testing.expect(!crew.ask() and !crew.hasRoom());
    crew.assertCounts();
}

test "where a callback may be given up one thread more is on call, and has nothing to do before" {
    var crew: Crew = .init(1, 0);
    var queues: [2]Queue = @splat(testQueue(.thread));
    crew.arrive(&queues[0]);
    crew.goOut(&queues[0], .{ .is_out = true, .alone = true });
    try testing.expect(crew.ask());
    crew.arrive(&queues[1]);
    crew.park(&queues[1]);
    try testing.expectEqual(null, crew.spare());
    try testing.expect(crew.giveUp(&queues[0]));
    try testing.expect(!crew.giveUp(&queues[0]));
    crew.assertCounts();
    try testing.expectEqual(&queues[1], crew.spare().?);
    try testing.expectEqual(1, crew.numbers.get(.abandoned));
    // Back again: one too many, and it has nothing to do.
    crew.comeBack(&queues[0]);
    crew.assertCounts();
    try testing.expectEqual(&queues[0], crew.dismiss(&queues[0]).?);
    crew.comeBack(&queues[0]);
    try testing.expectEqual(&queues[1], crew.dismiss(&queues[0]).?); // told once: the other is to go
    crew.depart(&queues[0]);
    try testing.expectEqual(1, crew.total());
}

test "a thread that is told to end is not the last one parked" {
    var crew: Crew = .init(1, 0);
    var queues: [3]Queue = @splat(testQueue(.thread));
    for (&queues) |*queue| crew.arrive(queue);
    try testing.expectEqual(null, crew.dismiss(&queues[0]));
    crew.park(&queues[0]);
    for (queues[1..]) |*queue| try testing.expectEqual(queue, crew.dismiss(queue).?);
    try testing.expectEqual(1, crew.numbers.get(.counted));
}

test "threads that are given up are replaced up to the hard limit" {
    var crew: Crew = .init(1, 3);
    var queues: [3]Queue = @splat(testQueue(.thread));
    for (&queues) |*queue| {
        try testing.expect(crew.ask());
        crew.arrive(queue);
        crew.goOut(queue, .{ .is_out = true, .alone = true });
        try testing.expect(crew.giveUp(queue));
    }
    try testing.expect(!crew.ask());
    crew.comeBack(&queues[1]);
    crew.depart(&queues[1]);
    try testing.expect(crew.ask());
    crew.assertCounts();
}

test "a thread that waits in a callback gives its place back when its wait ends" {
    var crew: Crew = .init(1, 0);
    var outer = testQueue(.thread);
    var inner = testQueue(.caller);
    inner.outer = &outer;
    crew.arrive(&outer);
    crew.goOut(&outer, .{ .is_out = true });
    crew.park(&inner);
    crew.set(&outer, .waiting);
    try testing.expect(crew.hasRoom() and crew.ask());
    crew.unpark(&inner);
    try testing.expect(!crew.hasRoom());
    // One that was given up meanwhile stays so until it comes back.
    crew.park(&inner);
    crew.set(&outer, .waiting);
    try testing.expect(crew.giveUp(&outer));
    crew.unpark(&inner);
    try testing.expectEqual(.abandoned, outer.standing);
    crew.assertCounts();
}

test "the hard limit is four times as many, but at least 64 more" {
    try testing.expectEqual(80, Crew.init(16, 0).threads_hard_max);
    try testing.expectEqual(400, Crew.init(100, 0).threads_hard_max);
    try testing.expectEqual(16, Crew.init(16, 3).threads_hard_max);
}
