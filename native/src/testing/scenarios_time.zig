//! Scenarios about timers, in the simulator's time and in the core's own virtual time.

const std = @import("std");
const clock_file = @import("../base/clock.zig");
const memory = @import("memory.zig");
const scenarios = @import("scenarios.zig");
const sim = @import("sim.zig");
const sync = @import("../base/sync.zig");
const timers_file = @import("../timers.zig");

const Timers = timers_file.Timers;
const between = scenarios.between;
const oneIn = scenarios.oneIn;

pub const all = [_]scenarios.Scenario{
    .{ .name = "timers: added, cancelled, fired", .run = realTime },
    .{ .name = "timers: virtual time and busy threads", .run = virtualTime },
};

const Alarm = struct {
    timer: timers_file.Timer = .{ .fire = fired },
    shared: *Shared,
    times: u32 = 0,
    /// So often it adds itself again.
    again: u32,
    cancellable: bool,

    fn fired(timer: *timers_file.Timer) void {
        const alarm: *Alarm = @fieldParentPtr("timer", timer);
        const shared = alarm.shared;
        const now = shared.timers.now();
        alarm.times += 1;
        sim.check(now >= timer.deadline_ns, "a timer fires at its time or later");
        if (shared.is_virtual) {
            sim.checkEqual(timer.deadline_ns, now, "virtual time at which a timer fires");
            sim.check(now >= shared.last_ns, "virtual time runs forwards");
            shared.last_ns = now;
        }
        if (alarm.again > 0) {
            alarm.again -= 1;
            shared.timers.add(timer, now + between(1, 1000)) catch unreachable;
        } else shared.end();
    }
};

const Shared = struct {
    timers: Timers = undefined,
    clock: clock_file.Clock = .init,
    alarms: [12]Alarm = undefined,
    left: sync.Atomic(u32) = .init(0),
    is_virtual: bool = false,
    last_ns: u64 = 0,

    fn end(shared: *Shared) void {
        _ = shared.left.fetchSub(1, .release);
        sync.futex.wake(&shared.left, 1);
    }

    fn waitForAll(shared: *Shared) void {
        while (true) {
            const seen = shared.left.load(.acquire);
            if (seen == 0) return;
            sync.futex.wait(&shared.left, seen, null) catch {};
        }
    }

    /// Adds its alarms, and cancels some of them after a while.
    fn work(shared: *Shared, from: usize, to: usize) void {
        for (shared.alarms[from..to]) |*alarm| {
            const in_ns: u64 = ([_]u32{ 0, 5, 1_000, 1_000_000 })[between(0, 3)];
            if (shared.is_virtual) shared.timers.enter();
            shared.timers.add(&alarm.timer, shared.timers.now() + in_ns + between(0, 20)) catch unreachable;
            if (shared.is_virtual) shared.timers.leave();
            if (oneIn(2)) sync.yield();
        }
        for (shared.alarms[from..to]) |*alarm| if (alarm.cancellable) {
            if (!shared.timers.cancel(&alarm.timer)) continue;
            sim.check(!shared.timers.cancel(&alarm.timer), "a timer is cancelled once");
            sim.checkEqual(@as(u32, 0), alarm.times, "times a cancelled timer fired");
            shared.end();
        };
    }
};

fn start(shared: *Shared, is_virtual: bool) void {
    shared.* = .{ .is_virtual = is_virtual };
    if (is_virtual) shared.clock = .{ .virtual_ns = .init(1) };
    shared.timers = .init(memory.gpa, &shared.clock);
    const count = between(1, shared.alarms.len);
    for (&shared.alarms) |*alarm| {
        const again = if (oneIn(4)) between(1, 3) else 0;
        alarm.* = .{ .shared = shared, .again = again, .cancellable = again == 0 and oneIn(2) };
    }
    shared.left.raw = count;
    const cut = between(0, count);
    const other = scenarios.spawn("other", Shared.work, .{ shared, 0, cut });
    shared.work(cut, count);
    other.join();
    // Some are stopped while timers wait, the others see all of them through.
    const early = oneIn(4);
    if (!early) shared.waitForAll();
    shared.timers.stop();
    for (shared.alarms[0..count]) |*alarm| sim.check(alarm.times + alarm.again <= 4, "a timer fires once for each time it was added");
    shared.timers.deinit();
}

fn realTime() void {
    var shared: Shared = undefined;
    start(&shared, false);
}

fn virtualTime() void {
    var shared: Shared = undefined;
    start(&shared, true);
}
