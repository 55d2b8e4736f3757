//! Gates: where requests wait until a provider's controller (http/admission.zig) lets them through. One Gate for each base URL,
//! key and model, found by its key, shared by all runs, threads and loops of the process.
//!
//!     Seat.ask     -> go        the permit is the seat's, until `settle`
//!                  -> waits     `on_turn` will be called, unless `leave` comes first; the asker does not count as busy any more,
//!                               as soon as he has said so (`Timers.leave`)
//!                  -> refused   the circuit breaker is open; `open_until_ns`
//!
//! ## Threads
//!
//! `ask`, `leave` and `on_turn` belong to the engine's thread. `settle` may come from any. A gate's mutex guards its controller and its
//! line, which are read for statistics too; nothing is called under it. Whoever changes something that somebody may wait for
//! makes the gate look again (`pump`): at once on the engine's thread, else by a message.
//!
//! ## Time
//!
//! Where the controller says "not before then", a timer of the gate brings that message. Whoever waits in a gate does not count
//! as busy in virtual time; from when he is let through, or turned away, he does, before `on_turn`. The message counts as
//! busy from when it is posted, so there is no moment between in which nobody is.
//!
//! ## Lifetime
//!
//! A gate that is idle may be forgotten when there are very many (`kept`). Whoever waits, or holds a permit, keeps it.

const std = @import("std");
const sync = @import("base/sync.zig");
const admission = @import("http/admission.zig");
const told = @import("http/told.zig");
const clock_file = @import("base/clock.zig");
const engine_file = @import("http/engine.zig");
const timers_file = @import("timers.zig");
const turns_file = @import("turns.zig");

const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Controller = admission.Controller;
const Permit = admission.Permit;
const Turn = turns_file.Turn;

/// So many gates are kept although nobody uses them.
const kept = 1024;

pub const Verdict = enum { go, waits, refused, no_memory };

pub const Seat = struct {
    gate: ?*Gate = null,
    state: State = .none,
    turn: Turn = .{},
    permit: Permit = .{},
    /// What its request's user allows.
    options: admission.Options = .{},
    body_bytes: u64 = 0,
    is_virtual: bool = false,
    /// When it was refused: the time of the next probe.
    open_until_ns: u64 = 0,
    /// It waited, and that is over: `go`, `refused` or `no_memory`. On the engine's thread.
    on_turn: *const fn (*Seat, Verdict) void,
    /// While it is handed from one to the other.
    next: ?*Seat = null,

    const State = enum { none, waiting, taken };

    /// `group`: those of one group are served in order, groups in turn.
    pub fn ask(seat: *Seat, gate: *Gate, options: *const admission.Options, body_bytes: u64, group: u64) Verdict {
        assert(seat.state == .none);
        seat.gate = gate;
        seat.options = options.*;
        seat.body_bytes = body_bytes;
        const gates = gate.gates;
        seat.is_virtual = gates.timers.isVirtual();
        gate.mutex.lock();
        var posts = false;
        defer if (posts) gate.post(); // those that wait: not from in here, where nobody expects to be let through
        defer gate.mutex.unlock();
        const now_ns = gates.timers.now();
        const changed = gate.configure(now_ns, options) catch return .no_memory;
        posts = changed and gate.turns.count > 0 and gate.claimPost();
        if (gate.turns.count > 0) {
            if (options.flags.breaker) if (gate.controller.refusesUntil(now_ns)) |until_ns| {
                seat.open_until_ns = until_ns;
                return .refused;
            };
        } else switch (gate.controller.ask(now_ns, body_bytes)) {
            .go => |permit| {
                seat.permit = permit;
                seat.state = .taken;
                return .go;
            },
            .open => |until_ns| {
                seat.open_until_ns = until_ns;
                return .refused;
            },
            .wait => |until_ns| if (!gate.arrange(until_ns)) return .no_memory,
        }
        gate.turns.push(&seat.turn, group) catch return .no_memory;
        seat.state = .waiting;
        return .waits;
    }

    /// For a second transfer of a request whose permit is of that gate: only what is free at once, and nobody waits for.
    pub fn askAtOnce(seat: *Seat, gate: *Gate, body_bytes: u64) bool {
        assert(seat.state == .none);
        gate.mutex.lock();
        defer gate.mutex.unlock();
        if (gate.turns.count > 0) return false;
        seat.permit = gate.controller.askHedge(gate.gates.timers.now(), body_bytes) orelse return false;
        seat.gate = gate;
        seat.body_bytes = body_bytes;
        seat.state = .taken;
        return true;
    }

    /// Of one that waits: it wants nothing any more.
    pub fn leave(seat: *Seat) void {
        assert(seat.state == .waiting);
        const gate = seat.gate.?;
        if (seat.is_virtual) gate.gates.timers.enter();
        gate.mutex.lock();
        gate.turns.remove(&seat.turn);
        const left = gate.turns.count;
        if (left == 0) gate.forgetTimer();
        gate.mutex.unlock();
        seat.state = .none;
        if (left > 0) gate.pump(); // the next one may want less
    }

    /// Its reply has begun. On the engine's thread, not from inside libcurl.
    pub fn noteHead(seat: *Seat, status: u16) void {
        if (seat.state != .taken or seat.permit.is_probe == 0) return;
        const gate = seat.gate.?;
        gate.mutex.lock();
        const closed = gate.controller.noteHead(gate.gates.timers.now(), &seat.permit, status);
        gate.mutex.unlock();
        if (closed) gate.pump();
    }

    /// What came of the permit's request. Any thread.
    pub fn settle(seat: *Seat, result: *const admission.Result) error{OutOfMemory}!void {
        if (seat.state != .taken) return;
        seat.state = .none;
        const gate = seat.gate.?;
        gate.mutex.lock();
        const outcome = gate.controller.settle(gate.gates.timers.now(), &seat.permit, result);
        const waiting = gate.turns.count;
        const here = gate.gates.engine.onEngineThread();
        // Under the mutex: a gate for which a message is posted is not forgotten.
        const posts = waiting > 0 and !here and gate.claimPost();
        gate.mutex.unlock();
        if (posts) gate.post() else if (waiting > 0 and here) gate.pump();
        _ = try outcome;
    }
};

const Seats = struct {
    first: ?*Seat = null,
    last: ?*Seat = null,

    fn append(seats: *Seats, seat: *Seat) void {
        seat.next = null;
        if (seats.last) |last| last.next = seat else seats.first = seat;
        seats.last = seat;
    }

    fn pop(seats: *Seats) ?*Seat {
        const seat = seats.first orelse return null;
        seats.first = seat.next;
        seat.next = null;
        return seat;
    }
};

pub const Gate = struct {
    gates: *Gates,
    key: []const u8,
    used: u64 = 0,
    mutex: sync.Mutex = .init, // guards what follows
    controller: Controller,
    turns: turns_file.Turns,
    queue_timeouts: u64 = 0,
    coalesced: u64 = 0,
    timer: timers_file.Timer = .{ .fire = onTimer },
    /// When those that wait last said what they allow.
    heard_ns: u64 = 0,
    /// So often had the breaker changed when all that wait were last asked whether it turns them away.
    breaker_changes: u32 = 0,
    /// 0: no timer waits.
    timer_ns: u64 = 0,
    message: engine_file.Message = .{ .run = onMessage },
    posted: sync.Atomic(bool) = .init(false),
    // The engine's thread's.
    is_pumping: bool = false,
    pumps_wanted: bool = false,

    /// True: the caller is to `post`. Under the mutex.
    fn claimPost(gate: *Gate) bool {
        return !gate.posted.swap(true, .acq_rel); // pairs with the store in onMessage: it looks after that
    }

    /// Not under the mutex.
    fn post(gate: *Gate) void {
        gate.gates.timers.enter();
        gate.gates.engine.post(&gate.message);
    }

    fn onMessage(message: *engine_file.Message) void {
        const gate: *Gate = @fieldParentPtr("message", message);
        const timers = gate.gates.timers;
        gate.posted.store(false, .release); // pairs with the swap in claimPost
        gate.pump();
        timers.leave();
    }

    /// Before the controller is asked: what whoever asks allows. True: something is different. Under the mutex. As long as somebody waits
    /// what he allows counts as well, though he is not asked.
    fn configure(gate: *Gate, now_ns: u64, options: *const admission.Options) Allocator.Error!bool {
        if (now_ns -% gate.heard_ns >= admission.terms_last_ns / 2) {
            gate.heard_ns = now_ns;
            var turn = gate.turns.peek();
            while (turn) |it| : (turn = gate.turns.after(it)) {
                const seat: *Seat = @fieldParentPtr("turn", it);
                gate.controller.terms.say(now_ns, &seat.options);
            }
        }
        errdefer gate.heard_ns = 0; // all of them say it anew
        return gate.controller.configure(now_ns, options);
    }

    /// Under the mutex. False: there was no memory, or no thread, for a timer.
    fn arrange(gate: *Gate, until_ns: u64) bool {
        if (until_ns == admission.never) return true; // whoever settles will look
        const timers = gate.gates.timers;
        if (gate.timer_ns != 0) {
            if (gate.timer_ns <= until_ns) return true;
            if (!timers.cancel(&gate.timer)) return true; // it fires now, and looks again
        }
        gate.timer_ns = until_ns;
        timers.add(&gate.timer, until_ns) catch {
            gate.timer_ns = 0;
            return gate.controller.in_flight > 0;
        };
        return true;
    }

    /// Nobody waits: virtual time is not to run on to it. Under the mutex.
    fn forgetTimer(gate: *Gate) void {
        if (gate.timer_ns != 0 and gate.gates.timers.cancel(&gate.timer)) gate.timer_ns = 0;
    }

    fn onTimer(timer: *timers_file.Timer) void {
        const gate: *Gate = @fieldParentPtr("timer", timer);
        gate.mutex.lock();
        gate.timer_ns = 0;
        const posts = gate.claimPost();
        gate.mutex.unlock();
        if (posts) gate.post();
    }

    /// Lets through, or turns away, whoever's turn it is. Who gives his permit back from within `on_turn` comes here again: then
    /// the outer one looks once more, so that a thousand of them need no more stack than one.
    fn pump(gate: *Gate) void {
        gate.pumps_wanted = true;
        if (gate.is_pumping) return;
        gate.is_pumping = true;
        while (gate.pumps_wanted) {
            gate.pumps_wanted = false;
            gate.pumpOnce();
        }
        gate.is_pumping = false;
    }

    fn pumpOnce(gate: *Gate) void {
        var over: Seats = .{};
        gate.mutex.lock();
        while (gate.turns.peek()) |turn| {
            const seat: *Seat = @fieldParentPtr("turn", turn);
            const now_ns = gate.gates.timers.now();
            _ = gate.configure(now_ns, &seat.options) catch {}; // without memory it is said anew by the next one
            switch (gate.controller.ask(now_ns, seat.body_bytes)) {
                .go => |permit| {
                    seat.permit = permit;
                    seat.state = .taken;
                },
                .open => |until_ns| {
                    seat.open_until_ns = until_ns;
                    seat.state = .none;
                },
                .wait => |until_ns| {
                    if (gate.arrange(until_ns)) break;
                    seat.state = .none;
                    seat.open_until_ns = 0;
                },
            }
            _ = gate.turns.pop();
            over.append(seat);
        }
        gate.turnAway(&over);
        if (gate.turns.count == 0) gate.forgetTimer();
        gate.mutex.unlock();
        while (over.pop()) |seat| {
            if (seat.is_virtual) gate.gates.timers.enter();
            seat.on_turn(seat, if (seat.state == .taken) .go else if (seat.open_until_ns != 0) .refused else .no_memory);
        }
    }

    /// Who waits for one that wants no breaker does not wait to hear that it is open. Under the mutex.
    fn turnAway(gate: *Gate, over: *Seats) void {
        const changes = gate.controller.breaker.change_count;
        if (gate.breaker_changes == changes) return; // of those that came since none was let in line
        gate.breaker_changes = changes;
        const now_ns = gate.gates.timers.now();
        var next = gate.turns.peek();
        while (next) |turn| {
            next = gate.turns.after(turn);
            const seat: *Seat = @fieldParentPtr("turn", turn);
            if (!seat.options.flags.breaker) continue;
            seat.open_until_ns = gate.controller.refusesUntil(now_ns) orelse break;
            seat.state = .none;
            gate.turns.remove(turn);
            over.append(seat);
        }
    }

    pub fn noteQueueTimeout(gate: *Gate) void {
        gate.mutex.lock();
        defer gate.mutex.unlock();
        gate.queue_timeouts += 1;
    }

    pub fn noteCoalesced(gate: *Gate) void {
        gate.mutex.lock();
        defer gate.mutex.unlock();
        gate.coalesced += 1;
    }

    /// See http/hedging.zig.
    pub fn patienceNs(gate: *Gate) ?u64 {
        gate.mutex.lock();
        defer gate.mutex.unlock();
        return gate.controller.hedging.patienceNs();
    }

    /// Whether it matters how many tokens a reply has used.
    pub fn countsTokens(gate: *Gate) bool {
        gate.mutex.lock();
        defer gate.mutex.unlock();
        return gate.controller.countsTokens();
    }

    fn isIdle(gate: *Gate, now_ns: u64) bool {
        gate.mutex.lock();
        defer gate.mutex.unlock();
        return !gate.is_pumping and gate.turns.count == 0 and gate.timer_ns == 0 and !gate.posted.load(.monotonic) and gate.controller.isIdle(now_ns);
    }

    fn destroy(gate: *Gate, gpa: Allocator) void {
        gate.controller.deinit();
        gate.turns.deinit();
        gpa.free(gate.key);
        gpa.destroy(gate);
    }
};

pub const Gates = struct {
    gpa: Allocator,
    timers: *timers_file.Timers,
    engine: *engine_file.Engine,
    mutex: sync.Mutex = .init, // all
    all: std.StringArrayHashMapUnmanaged(*Gate) = .empty,
    uses: u64 = 0,
    sweep_at: usize = kept,

    /// When engine and timekeeper are gone.
    pub fn deinit(gates: *Gates) void {
        for (gates.all.values()) |gate| gate.destroy(gates.gpa);
        gates.all.deinit(gates.gpa);
    }

    /// On the engine's thread.
    pub fn find(gates: *Gates, key: []const u8) Allocator.Error!*Gate {
        gates.mutex.lock();
        defer gates.mutex.unlock();
        const gate = gates.all.get(key) orelse try gates.add(key);
        gates.uses += 1;
        gate.used = gates.uses;
        return gate;
    }

    fn add(gates: *Gates, key: []const u8) Allocator.Error!*Gate {
        if (gates.all.count() >= gates.sweep_at) gates.sweep();
        const gate = try gates.gpa.create(Gate);
        errdefer gates.gpa.destroy(gate);
        const copy = try gates.gpa.dupe(u8, key);
        errdefer gates.gpa.free(copy);
        gate.* = .{ .gates = gates, .key = copy, .controller = .{ .gpa = gates.gpa }, .turns = .{ .gpa = gates.gpa } };
        try gates.all.put(gates.gpa, copy, gate);
        return gate;
    }

    /// Forgets idle ones that were not used of late.
    fn sweep(gates: *Gates) void {
        const now_ns = gates.timers.now();
        var i: usize = 0;
        while (i < gates.all.count()) {
            const gate = gates.all.values()[i];
            if (gates.uses - gate.used > kept / 2 and gate.isIdle(now_ns)) {
                gates.all.swapRemoveAt(i);
                gate.destroy(gates.gpa);
            } else i += 1;
        }
        gates.sweep_at = @max(kept, 2 * gates.all.count());
    }

    pub fn count(gates: *Gates) u32 {
        gates.mutex.lock();
        defer gates.mutex.unlock();
        return @intCast(gates.all.count());
    }

    /// Of the gate with that number; its key is copied, as far as there is room. Null: there are fewer. Any thread.
    pub fn read(gates: *Gates, index: u32, stats: *told.Stats, key: []u8) ?usize {
        gates.mutex.lock();
        defer gates.mutex.unlock();
        if (index >= gates.all.count()) return null;
        const gate = gates.all.values()[index];
        gate.mutex.lock();
        defer gate.mutex.unlock();
        stats.* = told.read(&gate.controller, gates.timers.now());
        stats.queued = gate.turns.count;
        stats.queue_timeouts = gate.queue_timeouts;
        stats.coalesced = gate.coalesced;
        const length = @min(key.len, gate.key.len);
        @memcpy(key[0..length], gate.key[0..length]);
        return gate.key.len;
    }
};
