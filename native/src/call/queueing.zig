//! How a call gets its permit, and gives it back. Parts of a call; the engine's thread only, but for `settle`.
//!
//! A request with `admission` needs a permit of its provider's gate (gates.zig) for each attempt, from before it is sent until it
//! is over. While it waits for one it is `queued`, as long as its queue timeout and its deadline allow. These share the timer with
//! backing off: if it has fired when the wait ends otherwise, its message is waited for, and the verdict stands in `call.turn`.

const std = @import("std");
const admission = @import("../http/admission.zig");
const call_file = @import("call.zig");
const gates_file = @import("../gates.zig");
const request_file = @import("../graph/request.zig");

const Call = call_file.Call;

/// Of another attempt; `attemptNow` sends it.
pub fn attempt(call: *Call) void {
    const options = call.plan.admissionOf(call.request) orelse return call.attemptNow();
    call.phase = .queued;
    const gate = gateOf(call, options) catch return call.overWith(.out_of_memory, "no memory for the request");
    const verdict = call.seat.ask(gate, &.{
        .flags = @bitCast(options.flags),
        .concurrency = options.concurrency,
        .requests_per_minute = options.requests_per_minute,
        .tokens_per_minute = options.tokens_per_minute,
    }, call.outgoing.body.items.len, call.group);
    if (verdict != .waits) return act(call, verdict);
    const timers = call.services.timers;
    var due: u64 = if (call.deadline_ns == 0) admission.never else call.deadline_ns;
    if (options.queue_timeout_ms != 0) due = @min(due, timers.now() + @as(u64, options.queue_timeout_ms) * std.time.ns_per_ms);
    if (due != admission.never) timers.add(&call.backoff, due) catch {
        call.seat.leave();
        if (call.is_virtual) timers.leave(); // it had not left
        return call.overWith(.out_of_memory, "no memory for the request");
    };
    call.has_wait_timer = due != admission.never;
    if (call.is_virtual) timers.leave();
}

pub fn gateOf(call: *Call, options: *const request_file.Admission) error{OutOfMemory}!*gates_file.Gate {
    return call.services.gates.find(call.plan.string(options.key));
}

pub fn onTurn(seat: *gates_file.Seat, verdict: gates_file.Verdict) void {
    const call: *Call = @fieldParentPtr("seat", seat);
    over(call, verdict);
}

/// The wait is over.
pub fn over(call: *Call, verdict: gates_file.Verdict) void {
    if (call.has_wait_timer and !call.services.timers.cancel(&call.backoff)) {
        call.turn = verdict; // its message is on its way
        return;
    }
    act(call, verdict);
}

pub fn onQueueTimer(call: *Call) void {
    const late = call.turn == null;
    if (late) call.seat.leave();
    if (call.is_virtual) call.services.timers.leave(); // the message's
    if (!late) return act(call, call.turn.?);
    call.seat.gate.?.noteQueueTimeout();
    call.overWith(.queue_timeout, "waiting for the provider's limits took too long");
}

fn act(call: *Call, verdict: gates_file.Verdict) void {
    call.has_wait_timer = false;
    call.turn = null;
    if (call.cancel_asked.load(.acquire)) { // pairs with the swap in cancel
        call.failure = .cancelled;
        settle(call, true);
        return call.over();
    }
    switch (verdict) {
        .go => call.attemptNow(),
        .waits => unreachable,
        .no_memory => call.overWith(.out_of_memory, "no memory for the request"),
        .refused => {
            const left_ns = call.seat.open_until_ns -| call.services.timers.now();
            call.transfer.retry_after_ms = @intCast(left_ns / std.time.ns_per_ms);
            call.overWith(.circuit_open, "too many of its last requests have failed");
        },
    }
}

/// An error object inside a good reply may carry the status that the reply did not.
pub fn statusOf(call: *const Call) u16 {
    return if (call.failure == .provider) std.fmt.parseInt(u16, call.reply.error_code.items(), 10) catch 0 else call.transfer.status;
}

/// Waiting does not help.
pub fn hasNoQuota(call: *const Call) bool {
    return std.mem.eql(u8, call.reply.error_code.items(), "insufficient_quota");
}

/// The attempt is over: its permit goes back, with what is to be learned of it.
pub fn settle(call: *Call, unsent: bool) void {
    if (call.seat.state != .taken) return;
    const transfer = &call.transfer;
    const ending: admission.Ending = if (hasNoQuota(call)) .answered else .of(call.failure, statusOf(call));
    // A stream begins before there is an answer, and in virtual time everything is there at once.
    const says_when = ending == .answered and call.reading == null and !call.is_virtual and transfer.first_byte_ns != 0;
    call.seat.settle(&.{
        .ending = ending,
        .first_byte_ns = if (says_when) transfer.first_byte_ns -| transfer.started_ns else 0,
        .unsent = unsent or transfer.bytes_sent == 0,
        .retry_after_ms = transfer.retry_after_ms,
        .input_tokens = call.reply.prompt_tokens,
        .output_tokens = call.reply.completion_tokens,
        .body_bytes = call.outgoing.body.items.len,
        .announced = &transfer.announced,
        .broken_port = transfer.broken_port,
        .dice = call.services.roll(),
    }) catch {}; // no memory for a limit that is learned with the next reply
}
