//! Toys with known faults: whether the tools see anything at all. Each must fail under the interleavings and under the dice.

const std = @import("std");
const dice_file = @import("dice.zig");
const interleave = @import("interleave.zig");
const memory = @import("memory.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");

const Toy = struct { name: []const u8, run: *const fn () void, says: []const u8 };

const toys = [_]Toy{
    .{ .name = "an addition by load and store", .run = lostUpdate, .says = "both additions" },
    .{ .name = "a wake before the wait", .run = lostWake, .says = "a deadlock" },
    .{ .name = "two locks in two orders", .run = twoLocks, .says = "a deadlock" },
    .{ .name = "a loop that nobody ends", .run = endless, .says = "too many steps" },
    .{ .name = "memory that is used after its end", .run = usedAfterEnd, .says = "memory was written to" },
    .{ .name = "memory that is kept", .run = kept, .says = "memory was kept" },
    .{ .name = "a thread that is not joined", .run = notJoined, .says = "before its threads" },
};

pub fn main(gpa: std.mem.Allocator, out: *std.Io.Writer) !u8 {
    sim.wants_trace = false;
    defer sim.wants_trace = true;
    var explorer: interleave.Explorer = .{ .gpa = gpa };
    defer explorer.deinit();
    for (toys) |toy| {
        var counts: [3]u64 = undefined;
        const result = explorer.explore(&sim.the, .{ .name = toy.name, .run = toy.run }, 2, &counts);
        const caught = result.failed and std.mem.indexOf(u8, sim.the.failure.text(), toy.says) != null;
        var seed: u64 = 0;
        const by_dice = while (seed < 2_000) : (seed += 1) {
            var dice: dice_file.Dice = .init(seed);
            if (!sim.the.run(&dice.chooser, toy.run, 5_000)) break true;
        } else false;
        if (!caught or !by_dice) {
            try out.print("{s} was not caught: {s}\n", .{ toy.name, sim.the.failure.text() });
            return 1;
        }
        try out.print("{s:<40} {d} preemptions, {d} interleavings, {d} seeds\n", .{ toy.name, result.bound, result.interleavings, seed + 1 });
    }
    return 0;
}

fn spawn(comptime function: anytype, args: anytype) sync.Thread {
    return sync.Thread.spawn(.{ .name = "other" }, function, args) catch unreachable;
}

fn lostUpdate() void {
    const Add = struct {
        fn one(count: *sync.Atomic(u32)) void {
            count.store(count.load(.monotonic) + 1, .monotonic);
        }
    };
    var count: sync.Atomic(u32) = .init(0);
    const other = spawn(Add.one, .{&count});
    Add.one(&count);
    other.join();
    sim.check(count.raw == 2, "both additions count");
}

fn lostWake() void {
    const Waker = struct {
        fn wake(flag: *sync.Atomic(u32), word: *sync.Atomic(u32)) void {
            flag.store(1, .seq_cst);
            sync.futex.wake(word, 1);
        }
    };
    var flag: sync.Atomic(u32) = .init(0);
    var word: sync.Atomic(u32) = .init(0);
    const other = spawn(Waker.wake, .{ &flag, &word });
    if (flag.load(.seq_cst) == 0) sync.futex.wait(&word, 0, null) catch {};
    other.join();
}

fn twoLocks() void {
    const Both = struct {
        fn take(first: *sync.Mutex, second: *sync.Mutex) void {
            first.lock();
            second.lock();
            second.unlock();
            first.unlock();
        }
    };
    var a: sync.Mutex = .init;
    var b: sync.Mutex = .init;
    const other = spawn(Both.take, .{ &b, &a });
    Both.take(&a, &b);
    other.join();
}

fn endless() void {
    var flag: sync.Atomic(bool) = .init(false);
    while (!flag.load(.acquire)) sync.spinHint();
}

fn usedAfterEnd() void {
    const Other = struct {
        fn end(flag: *sync.Atomic(u32)) void {
            memory.gpa.destroy(flag);
        }
    };
    const flag = memory.gpa.create(sync.Atomic(u32)) catch unreachable;
    flag.* = .init(0);
    const other = spawn(Other.end, .{flag});
    flag.store(1, .release);
    other.join();
}

fn kept() void {
    _ = memory.gpa.create(u64) catch unreachable;
}

fn notJoined() void {
    const Other = struct {
        fn work(word: *sync.Atomic(u32)) void {
            _ = word.fetchAdd(1, .monotonic);
        }
    };
    const Shared = struct {
        var word: sync.Atomic(u32) = .init(0);
    };
    _ = spawn(Other.work, .{&Shared.word});
}
