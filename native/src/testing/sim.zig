//! A scheduler behind the seam: whole rooms of the core run under it as fibres of one thread, and somebody else chooses at
//! every step who goes on. So an interleaving is a list of choices, and can be had again.
//!
//! ## What is a step
//!
//! Every operation on an `Atomic`, every futex wait and wake, the start, the end and the joining of a thread, `yield` and
//! `spinHint`. Before each of them the `Chooser` is asked who takes the next step; what lies between two steps touches nothing
//! shared, or the program has a data race, which ThreadSanitizer finds. Steps follow each other in one order: what is explored
//! is sequential consistency. Whether a `.monotonic` should be an `.acquire` is ThreadSanitizer's question as well.
//!
//! `yield` and `spinHint` say "I can do nothing before somebody else does": the fibre may go on once, after that somebody else
//! has to take a step first. So spinning ends, and a scheduler that always lets the same fibre run cannot live on it.
//!
//! ## What ends a run
//!
//! The first fibre's end, when all others have ended too. Or a failure: `check` was given something false, a safety check
//! panicked, everybody waits and no deadline is set (a deadlock: the lost wake is one), too many steps were taken (a livelock).
//! A failure leaves all fibres as they stand, so that the report can tell where.
//!
//! ## Time
//!
//! `now` is virtual. It moves when everybody waits, to the next deadline, and by a little whenever the Chooser says so.

const std = @import("std");
const fibre_file = @import("fibre.zig");
const memory = @import("memory.zig");

const assert = std.debug.assert;

pub const fibres_max = 16;
pub const trace_max = 64;

pub const Kind = enum { load, store, swap, add, sub, bit_or, bit_and, exchange, refused, wait, woken, timed_out, wake, spawn, join, give_way, end };

pub const Step = struct {
    number: u64,
    fibre: u8,
    kind: Kind,
    address: usize,
    before: u64,
    after: u64,
    /// Where in the program.
    at: usize,
};

pub const Failure = struct {
    message: [200]u8 = undefined,
    length: usize = 0,
    trace: [24]usize = undefined,
    trace_length: usize = 0,
    fibre: u8 = 0,

    pub fn text(failure: *const Failure) []const u8 {
        return failure.message[0..failure.length];
    }
};

/// Whoever decides. `options` are the numbers of fibres that can go on, never empty.
pub const Chooser = struct {
    /// `free`: the one that goes on is in nobody's way (it waits, has ended, gives way); otherwise `options[0]` is the one that
    /// took the last step, and choosing another preempts it.
    pick: *const fn (*Chooser, options: []const u8, free: bool) usize,
    /// Which of `count` waiters is woken.
    pickWaiter: *const fn (*Chooser, count: usize) usize,
    /// Something that may happen or not, one time in so many: a weak exchange fails, a wait returns for no reason.
    chance: *const fn (*Chooser, one_in: u32) bool,
    /// So many nanoseconds pass before the next step.
    pause: *const fn (*Chooser) u64,
};

pub const Fibre = struct {
    name: []const u8,
    context: fibre_file.Context,
    stack: fibre_file.Stack,
    state: enum { runnable, waiting, joining, ended } = .runnable,
    call: *const fn (*anyopaque) void,
    argument: *anyopaque,
    word: usize = 0,
    deadline: ?u64 = null,
    result: WaitResult = .woken,
    joining: u8 = 0,
    wait_number: u64 = 0,
    /// Where it waits.
    at: usize = 0,
    birth: u64,
};

pub const WaitResult = enum { woken, timed_out, interrupted };

pub const Sim = struct {
    chooser: *Chooser = undefined,
    fibres: [fibres_max]Fibre = undefined,
    stacks: [fibres_max]?fibre_file.Stack = @splat(null),
    count: u8 = 0,
    current: ?u8 = null,
    outside: fibre_file.Context = .{},
    /// Bits by number.
    runnable: u32 = 0,
    gave_way: u32 = 0,
    steps: u64 = 0,
    steps_max: u64 = 0,
    waits: u64 = 0,
    births: u64 = 0,
    now_ns: u64 = 0,
    next_deadline: u64 = std.math.maxInt(u64),
    failed: bool = false,
    failure: Failure = .{},
    trace: [trace_max]Step = undefined,
    traced: usize = 0,
    /// One spawn in so many fails; 0: none does.
    spawn_fails_one_in: u32 = 0,

    /// One run of `program` under `chooser`. False: it failed, see `failure`.
    pub fn run(sim: *Sim, chooser: *Chooser, program: *const fn () void, steps_max: u64) bool {
        assert(sim.current == null);
        sim.chooser = chooser;
        sim.count = 0;
        sim.runnable = 0;
        sim.gave_way = 0;
        sim.steps = 0;
        sim.steps_max = steps_max;
        sim.now_ns = 1_000_000_000;
        sim.next_deadline = std.math.maxInt(u64);
        sim.failed = false;
        sim.failure = .{};
        sim.traced = 0;
        sim.spawn_fails_one_in = 0;
        memory.reset();
        _ = sim.make("main", First.call, @ptrCast(@constCast(program)));
        sim.current = 0;
        sim.switchFrom(&sim.outside, 0);
        sim.current = null;
        return !sim.failed;
    }

    const First = struct {
        fn call(argument: *anyopaque) void {
            const program: *const fn () void = @ptrCast(@alignCast(argument));
            program();
            const sim = &the;
            check(sim.othersEnded(), "the program ended before its threads");
            check(memory.isIntact(), "memory was written to after it had been given back");
            check(memory.live_bytes == 0, "memory was kept");
        }
    };

    fn othersEnded(sim: *const Sim) bool {
        for (sim.fibres[1..sim.count]) |*it| if (it.state != .ended) return false;
        return true;
    }

    pub fn make(sim: *Sim, name: []const u8, call: *const fn (*anyopaque) void, argument: *anyopaque) u8 {
        const id = sim.freePlace();
        const stack = sim.stacks[id] orelse blk: {
            sim.stacks[id] = fibre_file.allocate();
            break :blk sim.stacks[id].?;
        };
        sim.births += 1;
        sim.fibres[id] = .{
            .name = name,
            .context = fibre_file.prepare(stack, begin),
            .stack = stack,
            .call = call,
            .argument = argument,
            .birth = sim.births,
        };
        sim.runnable |= bit(id);
        return id;
    }

    /// Ended and joined fibres leave their places to others.
    fn freePlace(sim: *Sim) u8 {
        for (sim.fibres[0..sim.count], 0..) |*it, id| if (it.state == .ended and it.joining == joined) return @intCast(id);
        assert(sim.count < fibres_max);
        sim.count += 1;
        return sim.count - 1;
    }

    pub const joined = 0xff;

    pub fn begin() callconv(.c) noreturn {
        const sim = &the;
        const id = sim.current.?;
        const it = &sim.fibres[id];
        it.call(it.argument);
        check(!fibre_file.overflowed(it.stack), "a fibre's stack overflowed");
        sim.note(.end, 0, 0, 0, 0);
        it.state = .ended;
        sim.runnable &= ~bit(id);
        for (sim.fibres[0..sim.count], 0..) |*other, i| if (other.state == .joining and other.joining == id) {
            other.state = .runnable;
            sim.runnable |= bit(@intCast(i));
        };
        if (id == 0) sim.leave();
        sim.goOn();
        unreachable;
    }

    /// Back to whoever called `run`; for good.
    fn leave(sim: *Sim) noreturn {
        var nowhere: fibre_file.Context = .{};
        fibre_file.switchTo(&nowhere, &sim.outside);
        unreachable;
    }

    fn switchFrom(sim: *Sim, old: *fibre_file.Context, to: u8) void {
        sim.current = to;
        fibre_file.switchTo(old, &sim.fibres[to].context);
    }

    /// Before a step of the current fibre, which could take it: somebody is chosen.
    pub fn step(sim: *Sim, gives_way: bool) void {
        const me = sim.current.?;
        const mine = bit(me);
        sim.steps += 1;
        if (sim.steps > sim.steps_max) fail("too many steps: nobody gets anywhere");
        const passed = sim.chooser.pause(sim.chooser);
        if (passed != 0) {
            sim.now_ns += passed;
            if (sim.now_ns >= sim.next_deadline) sim.expire();
        }
        var others = sim.runnable & ~mine;
        if (others & ~sim.gave_way != 0) others &= ~sim.gave_way;
        const must_give_way = gives_way and sim.gave_way & mine != 0 and others != 0;
        if (gives_way) sim.gave_way |= mine;
        if (others == 0) return sim.tookStep(mine);
        var options: [fibres_max]u8 = undefined;
        var count: usize = 0;
        if (!must_give_way) {
            options[0] = me;
            count = 1;
        }
        count += listFrom(others, me, options[count..]);
        const next = options[if (count == 1) 0 else sim.chooser.pick(sim.chooser, options[0..count], gives_way)];
        if (next != me) sim.switchFrom(&sim.fibres[me].context, next);
        sim.tookStep(mine);
    }

    /// The current fibre goes on: those who waited for somebody to do so may, too. Its own bit stays until another's step.
    fn tookStep(sim: *Sim, mine: u32) void {
        sim.gave_way &= mine;
    }

    /// The current fibre cannot go on: somebody else has to.
    pub fn goOn(sim: *Sim) void {
        const me = sim.current.?;
        while (sim.runnable == 0) {
            if (sim.next_deadline == std.math.maxInt(u64)) fail("a deadlock: everybody waits, and no deadline is set");
            sim.now_ns = @max(sim.now_ns, sim.next_deadline);
            sim.expire();
        }
        const others = if (sim.runnable & ~sim.gave_way != 0) sim.runnable & ~sim.gave_way else sim.runnable;
        var options: [fibres_max]u8 = undefined;
        const count = listFrom(others, me, &options);
        const next = options[if (count == 1) 0 else sim.chooser.pick(sim.chooser, options[0..count], true)];
        if (next != me) sim.switchFrom(&sim.fibres[me].context, next);
        sim.tookStep(bit(me));
    }

    /// Those in `mask`, from the one after `me` on.
    fn listFrom(mask: u32, me: u8, into: []u8) usize {
        var count: usize = 0;
        const below = (@as(u32, 2) << @intCast(me)) - 1;
        for ([_]u32{ mask & ~below, mask & below }) |part| {
            var left = part;
            while (left != 0) : (left &= left - 1) {
                into[count] = @ctz(left);
                count += 1;
            }
        }
        return count;
    }

    pub fn isRunnable(sim: *const Sim, id: u8) bool {
        return sim.runnable & bit(id) != 0;
    }

    pub fn bit(id: u8) u32 {
        return @as(u32, 1) << @intCast(id);
    }

    pub fn expire(sim: *Sim) void {
        sim.next_deadline = std.math.maxInt(u64);
        for (sim.fibres[0..sim.count], 0..) |*it, id| if (it.state == .waiting) if (it.deadline) |deadline| {
            if (deadline <= sim.now_ns) sim.rouse(@intCast(id), .timed_out) else sim.next_deadline = @min(sim.next_deadline, deadline);
        };
    }

    pub fn rouse(sim: *Sim, id: u8, result: WaitResult) void {
        const it = &sim.fibres[id];
        it.state = .runnable;
        it.result = result;
        it.deadline = null;
        sim.runnable |= bit(id);
    }

    pub fn waitOn(sim: *Sim, word: usize, deadline: ?u64, at: usize) WaitResult {
        const me = sim.current.?;
        const it = &sim.fibres[me];
        it.state = .waiting;
        it.word = word;
        it.at = at;
        it.deadline = deadline;
        sim.waits += 1;
        it.wait_number = sim.waits;
        if (deadline) |ns| sim.next_deadline = @min(sim.next_deadline, ns);
        sim.runnable &= ~bit(me);
        sim.goOn();
        return it.result;
    }

    pub fn wakeOn(sim: *Sim, word: usize, count: u32) u32 {
        var woken: u32 = 0;
        while (woken < count) : (woken += 1) {
            var waiters: [fibres_max]u8 = undefined;
            var found: usize = 0;
            for (sim.fibres[0..sim.count], 0..) |*it, id| if (it.state == .waiting and it.word == word) {
                waiters[found] = @intCast(id);
                found += 1;
            };
            if (found == 0) break;
            std.mem.sort(u8, waiters[0..found], sim, longerWaiting);
            sim.rouse(waiters[if (found == 1) 0 else sim.chooser.pickWaiter(sim.chooser, found)], .woken);
        }
        return woken;
    }

    fn longerWaiting(sim: *Sim, a: u8, b: u8) bool {
        return sim.fibres[a].wait_number < sim.fibres[b].wait_number;
    }

    pub fn note(sim: *Sim, kind: Kind, address: usize, before: u64, after: u64, at: usize) void {
        sim.trace[sim.traced % trace_max] = .{
            .number = sim.steps,
            .fibre = sim.current.?,
            .kind = kind,
            .address = address,
            .before = before,
            .after = after,
            .at = at,
        };
        sim.traced += 1;
    }

    /// Oldest first.
    pub fn lastSteps(sim: *const Sim, into: *[trace_max]Step) []Step {
        const count = @min(sim.traced, trace_max);
        for (into[0..count], sim.traced - count..) |*to, i| to.* = sim.trace[i % trace_max];
        return into[0..count];
    }
};

pub var the: Sim = .{};

/// Ends the run as failed. From inside a fibre.
pub fn fail(message: []const u8) noreturn {
    @branchHint(.cold);
    failAt(message, null);
}

pub fn failAt(message: []const u8, first: ?usize) noreturn {
    @branchHint(.cold);
    const sim = &the;
    assert(sim.current != null);
    const failure = &sim.failure;
    failure.length = @min(message.len, failure.message.len);
    @memcpy(failure.message[0..failure.length], message[0..failure.length]);
    failure.fibre = sim.current.?;
    if (wants_trace) {
        const trace = std.debug.captureCurrentStackTrace(.{ .first_address = first }, &failure.trace);
        failure.trace_length = trace.return_addresses.len;
    }
    sim.failed = true;
    sim.leave();
}

/// Off while failures are asked for.
pub var wants_trace = true;

pub fn check(holds: bool, comptime message: []const u8) void {
    if (!holds) fail(message);
}

pub fn checkEqual(expected: anytype, found: @TypeOf(expected), comptime what: []const u8) void {
    if (expected == found) return;
    var buffer: [160]u8 = undefined;
    fail(std.mem.print(&buffer, "{s}: {} was expected, {} found", .{ what, expected, found }) catch what);
}
