//! What base/sync.zig takes instead of the real atomics, locks, threads and clock where a program runs under the simulator:
//! each operation is a step (sim.zig), and asks it who goes on.

const std = @import("std");
const memory = @import("memory.zig");
const sim_file = @import("sim.zig");

const assert = std.debug.assert;

pub const spins = 1;

pub fn now() u64 {
    return sim_file.the.now_ns;
}

pub noinline fn giveWay() void {
    const sim = &sim_file.the;
    if (sim.current == null) return;
    sim.step(true);
    sim.note(.give_way, 0, 0, 0, @returnAddress());
}

pub fn Local(comptime Owner: type, comptime T: type) type {
    return struct {
        pub const owner = Owner; // makes it a type of its own
        var values: [sim_file.fibres_max]struct { birth: u64 = 0, value: ?T = null } = @splat(.{});

        pub fn get() ?T {
            const id = sim_file.the.current orelse return null;
            const it = &values[id];
            return if (it.birth == sim_file.the.fibres[id].birth) it.value else null;
        }
        pub fn set(to: ?T) void {
            const id = sim_file.the.current orelse return;
            values[id] = .{ .birth = sim_file.the.fibres[id].birth, .value = to };
        }
    };
}

pub const futex = struct {
    pub noinline fn wait(word: *const Atomic(u32), expect: u32, timeout_ns: ?u64) error{ Timeout, Interrupted }!void {
        const sim = &sim_file.the;
        assert(sim.current != null);
        const address = @intFromPtr(word);
        sim.step(false);
        sim.note(.wait, address, word.raw, expect, @returnAddress());
        if (word.raw != expect) return;
        if (sim.chooser.chance(sim.chooser, 64)) return; // for no reason
        if (sim.chooser.chance(sim.chooser, 64)) return error.Interrupted;
        const deadline = if (timeout_ns) |ns| sim.now_ns +| ns else null;
        const result = sim.waitOn(address, deadline, @returnAddress());
        sim.note(if (result == .timed_out) .timed_out else .woken, address, word.raw, word.raw, @returnAddress());
        if (result == .timed_out) return error.Timeout;
    }

    pub noinline fn wake(word: *const Atomic(u32), count: u32) void {
        const sim = &sim_file.the;
        if (sim.current == null) return;
        const address = @intFromPtr(word);
        sim.step(false);
        const woken = sim.wakeOn(address, count);
        sim.note(.wake, address, count, woken, @returnAddress());
    }
};

pub const Thread = struct {
    id: u8,
    birth: u64,

    pub const Options = struct { stack_size: usize = 0, name: []const u8 };

    pub fn spawn(options: Options, comptime function: anytype, args: anytype) error{ThreadUnavailable}!Thread {
        const Args = @TypeOf(args);
        const Call = struct {
            fn call(argument: *anyopaque) void {
                const given: *Args = @ptrCast(@alignCast(argument));
                const copy = given.*;
                memory.freeArgument(given);
                @call(.auto, function, copy);
            }
        };
        const sim = &sim_file.the;
        assert(sim.current != null);
        sim.step(false);
        if (sim.spawn_fails_one_in != 0 and sim.chooser.chance(sim.chooser, sim.spawn_fails_one_in)) return error.ThreadUnavailable;
        const argument = memory.keepArgument(Args, args);
        const id = sim.make(options.name, Call.call, @ptrCast(argument));
        sim.note(.spawn, 0, 0, id, @returnAddress());
        return .{ .id = id, .birth = sim.fibres[id].birth };
    }

    pub fn join(thread: Thread) void {
        const sim = &sim_file.the;
        const it = &sim.fibres[thread.id];
        sim.step(false);
        sim_file.check(it.birth == thread.birth and it.joining != sim_file.Sim.joined, "a thread was joined twice");
        sim.note(.join, 0, 0, thread.id, @returnAddress());
        if (it.state != .ended) {
            const me = &sim.fibres[sim.current.?];
            me.state = .joining;
            me.joining = thread.id;
            me.at = @returnAddress();
            sim.runnable &= ~sim_file.Sim.bit(sim.current.?);
            sim.goOn();
        }
        it.joining = sim_file.Sim.joined;
    }
};

/// std.atomic.Value with a step before every operation.
pub fn Atomic(comptime T: type) type {
    return extern struct {
        raw: T,

        const Self = @This();
        const Order = std.builtin.AtomicOrder;

        pub fn init(value: T) Self {
            return .{ .raw = value };
        }

        pub noinline fn load(self: *const Self, comptime _: Order) T {
            before();
            done(.load, self, self.raw, self.raw, @returnAddress());
            return self.raw;
        }

        pub noinline fn store(self: *Self, value: T, comptime _: Order) void {
            before();
            done(.store, self, self.raw, value, @returnAddress());
            self.raw = value;
        }

        pub noinline fn swap(self: *Self, value: T, comptime _: Order) T {
            before();
            done(.swap, self, self.raw, value, @returnAddress());
            defer self.raw = value;
            return self.raw;
        }

        pub noinline fn cmpxchgStrong(self: *Self, expected: T, new: T, comptime _: Order, comptime _: Order) ?T {
            before();
            return self.exchange(expected, new, @returnAddress());
        }

        pub noinline fn cmpxchgWeak(self: *Self, expected: T, new: T, comptime _: Order, comptime _: Order) ?T {
            before();
            if (sim_file.the.current != null and sim_file.the.chooser.chance(sim_file.the.chooser, 32)) {
                done(.refused, self, self.raw, new, @returnAddress());
                return self.raw;
            }
            return self.exchange(expected, new, @returnAddress());
        }

        fn exchange(self: *Self, expected: T, new: T, at: usize) ?T {
            const is = self.raw;
            done(if (is == expected) .exchange else .refused, self, is, new, at);
            if (is != expected) return is;
            self.raw = new;
            return null;
        }

        pub noinline fn fetchAdd(self: *Self, operand: T, comptime _: Order) T {
            before();
            return self.become(.add, self.raw +% operand, @returnAddress());
        }
        pub noinline fn fetchSub(self: *Self, operand: T, comptime _: Order) T {
            before();
            return self.become(.sub, self.raw -% operand, @returnAddress());
        }
        pub noinline fn fetchOr(self: *Self, operand: T, comptime _: Order) T {
            before();
            return self.become(.bit_or, self.raw | operand, @returnAddress());
        }
        pub noinline fn fetchAnd(self: *Self, operand: T, comptime _: Order) T {
            before();
            return self.become(.bit_and, self.raw & operand, @returnAddress());
        }
        pub noinline fn fetchMax(self: *Self, operand: T, comptime _: Order) T {
            before();
            return self.become(.swap, @max(self.raw, operand), @returnAddress());
        }
        pub noinline fn fetchMin(self: *Self, operand: T, comptime _: Order) T {
            before();
            return self.become(.swap, @min(self.raw, operand), @returnAddress());
        }

        fn become(self: *Self, kind: sim_file.Kind, value: T, at: usize) T {
            done(kind, self, self.raw, value, at);
            defer self.raw = value;
            return self.raw;
        }

        inline fn before() void {
            if (sim_file.the.current != null) sim_file.the.step(false);
        }

        inline fn done(kind: sim_file.Kind, self: *const Self, is: T, becomes: T, at: usize) void {
            if (sim_file.the.current != null) sim_file.the.note(kind, @intFromPtr(self), bits(is), bits(becomes), at);
        }

        fn bits(value: T) u64 {
            return switch (@typeInfo(T)) {
                .bool => @intFromBool(value),
                .@"enum" => @intCast(@backingInt(value)),
                .pointer, .optional => @intFromPtr(value),
                .int => |int| @as(@Int(.unsigned, int.bits), @bitCast(value)),
                else => 0,
            };
        }
    };
}
