//! How an exchange gets its permit, where it needs one, and gives it back: what call/queueing.zig is for a call. The engine's thread.
//!
//! While it waits its queue timeout runs, where it has one. If that timer has fired when the wait ends otherwise, its message is on
//! its way and is waited for, with the verdict in `pending`.

const std = @import("std");
const admission = @import("http/admission.zig");
const engine_file = @import("http/engine.zig");
const gates_file = @import("gates.zig");
const services_file = @import("services.zig");
const timers_file = @import("timers.zig");
const transfer_file = @import("http/transfer.zig");
const usage_file = @import("http/usage.zig");

const Allocator = std.mem.Allocator;
const Failure = transfer_file.Failure;
const Services = services_file.Services;
const Transfer = transfer_file.Transfer;

/// Of a body that is packed so much is kept, to look for usage in it when it is whole.
const packed_bytes_max = 1 << 17;

pub const Verdict = enum { go, refused, too_late, no_memory };

pub const Entry = struct {
    /// Empty: nothing holds it back.
    key: []const u8 = "",
    options: admission.Options = .{},
    queue_timeout_ms: u32 = 0,
    group: u64 = 0,
    body_bytes: u64 = 0,
    services: *Services = undefined,
    seat: gates_file.Seat = .{ .on_turn = onTurn },
    timer: timers_file.Timer = .{ .fire = onTimer },
    message: engine_file.Message = .{ .run = onMessage },
    has_timer: bool = false,
    pending: ?Verdict = null,
    usage: usage_file.Usage = .{},
    /// A body as it came, packed; nobody looks into one that is skipped.
    body: std.ArrayList(u8) = .empty,
    body_is_skipped: bool = false,
    /// Once, from within `ask` or later.
    on_verdict: *const fn (*Entry, Verdict) void,

    /// `spec`: a gb_exchange_spec.
    pub fn describe(entry: *Entry, arena: Allocator, spec: anytype, transfer: *Transfer) Allocator.Error!void {
        if (spec.admission_key.len == 0) return;
        entry.key = try arena.dupe(u8, spec.admission_key.items());
        entry.options = .{
            .flags = @bitCast(spec.admission_flags),
            .concurrency = spec.concurrency,
            .requests_per_minute = spec.requests_per_minute,
            .tokens_per_minute = spec.tokens_per_minute,
        };
        entry.queue_timeout_ms = spec.queue_timeout_ms;
        entry.group = spec.group;
        entry.body_bytes = if (spec.body_bytes > 0) @intCast(spec.body_bytes) else spec.body.len;
        transfer.learns = true;
    }

    pub fn ask(entry: *Entry, services: *Services) void {
        if (entry.key.len == 0) return entry.on_verdict(entry, .go);
        entry.services = services;
        const gate = services.gates.find(entry.key) catch return entry.on_verdict(entry, .no_memory);
        switch (entry.seat.ask(gate, &entry.options, entry.body_bytes, entry.group)) {
            .waits => entry.wait(),
            else => |verdict| entry.decide(verdictOf(verdict)),
        }
    }

    fn wait(entry: *Entry) void {
        const timers = entry.services.timers;
        if (entry.queue_timeout_ms != 0) {
            const due_ns = timers.now() + @as(u64, entry.queue_timeout_ms) * std.time.ns_per_ms;
            timers.add(&entry.timer, due_ns) catch {
                entry.seat.leave();
                if (entry.seat.is_virtual) timers.leave(); // it had not left
                return entry.on_verdict(entry, .no_memory);
            };
            entry.has_timer = true;
        }
        if (entry.seat.is_virtual) timers.leave();
    }

    fn verdictOf(verdict: gates_file.Verdict) Verdict {
        return switch (verdict) {
            .go => .go,
            .refused => .refused,
            .no_memory => .no_memory,
            .waits => unreachable,
        };
    }

    fn onTurn(seat: *gates_file.Seat, verdict: gates_file.Verdict) void {
        const entry: *Entry = @fieldParentPtr("seat", seat);
        entry.decide(verdictOf(verdict));
    }

    fn decide(entry: *Entry, verdict: Verdict) void {
        if (entry.has_timer and !entry.services.timers.cancel(&entry.timer)) {
            entry.pending = verdict;
            return;
        }
        entry.has_timer = false;
        entry.on_verdict(entry, verdict);
    }

    fn onTimer(timer: *timers_file.Timer) void {
        const entry: *Entry = @fieldParentPtr("timer", timer);
        if (entry.seat.is_virtual) entry.services.timers.enter();
        entry.services.engine.post(&entry.message);
    }

    fn onMessage(message: *engine_file.Message) void {
        const entry: *Entry = @fieldParentPtr("message", message);
        entry.has_timer = false;
        const late = entry.pending == null;
        if (late) entry.seat.leave();
        if (entry.seat.is_virtual) entry.services.timers.leave(); // the message's
        if (late) entry.seat.gate.?.noteQueueTimeout();
        entry.on_verdict(entry, entry.pending orelse .too_late);
    }

    /// Its owner is cancelled. If it waits the wait is over; what it is called with then does not matter.
    pub fn cancel(entry: *Entry) void {
        if (entry.seat.state != .waiting) return;
        entry.seat.leave();
        entry.decide(.too_late);
    }

    /// After `refused`.
    pub fn retryAfterMs(entry: *const Entry) u32 {
        const left_ns = entry.seat.open_until_ns -| entry.services.timers.now();
        return @intCast(@min(left_ns / std.time.ns_per_ms, std.math.maxInt(u32)));
    }

    pub fn noteBody(entry: *Entry, transfer: *const Transfer, bytes: []const u8) void {
        if (entry.key.len == 0) return;
        if (!transfer.is_encoded) return entry.usage.take(bytes);
        if (!transfer.is_gzip or entry.body_is_skipped) return;
        const gpa = entry.services.gpa;
        const is_wanted = entry.body.items.len > 0 or entry.seat.gate.?.countsTokens();
        if (is_wanted and bytes.len <= packed_bytes_max - entry.body.items.len) {
            if (entry.body.appendSlice(gpa, bytes)) return else |_| {} // then the estimate stays
        }
        entry.body.clearAndFree(gpa);
        entry.body_is_skipped = true;
    }

    fn unpack(entry: *Entry) void {
        const gpa = entry.services.gpa;
        defer entry.body.clearAndFree(gpa);
        if (entry.body.items.len == 0) return;
        entry.usage.takePacked(gpa, entry.body.items) catch {}; // the estimate stays
    }

    /// How it ended. Does nothing where it has no permit.
    pub fn settle(entry: *Entry, failure: Failure, transfer: *const Transfer) void {
        if (entry.seat.state != .taken) return;
        entry.unpack();
        const is_reply = failure == .none and transfer.status >= 400;
        entry.seat.settle(&.{
            .ending = .of(if (is_reply) .status else failure, transfer.status),
            .unsent = transfer.bytes_sent == 0,
            .retry_after_ms = transfer.retry_after_ms,
            .input_tokens = entry.usage.input,
            .output_tokens = entry.usage.output,
            .body_bytes = entry.body_bytes,
            .announced = &transfer.announced,
            .broken_port = transfer.broken_port,
            .dice = entry.services.roll(),
        }) catch {}; // no memory for a limit that is learned with the next reply
    }
};
