//! A second transfer of the same request, for one whose reply is slow to begin. Parts of a call; the engine's thread only.
//!
//! When the first was awaited for longer than it mostly takes (http/hedging.zig), and nobody is kept waiting by it, the
//! same is sent again: same URL, headers (the key for the server to know it by among them) and body, with a permit of its own. The
//! first reply that is worth having counts, and the other transfer is cancelled. One that fails, or that would be tried again, leaves
//! the attempt to the other; when both have, the first one's failure is the attempt's.
//!
//! The attempt is over when both transfers are: then what counts stands in the call's own transfer and seat, and the call goes on
//! as if there had been one. The other's permit was given back by then.
//!
//! It is the engine that wakes for it, together with its timeouts: so there is no timer here that could fire too late. In virtual
//! time, which stands still while a request is on its way, no reply is late.

const std = @import("std");
const admission = @import("../http/admission.zig");
const call_file = @import("call.zig");
const gates_file = @import("../gates.zig");
const retry = @import("../graph/retry.zig");
const transfer_file = @import("../http/transfer.zig");

const assert = std.debug.assert;
const Call = call_file.Call;
const Seat = gates_file.Seat;
const Transfer = transfer_file.Transfer;

pub const Hedge = struct {
    call: *Call,
    transfer: Transfer,
    seat: Seat = .{ .on_turn = neverWaits },
    winner: ?*Transfer = null,
};

/// Of a transfer that is about to be submitted.
pub fn arm(call: *Call) void {
    const options = call.plan.admissionOf(call.request) orelse return;
    const flags: admission.Flags = @bitCast(options.flags);
    if (!flags.hedge or call.reading != null or call.request.redirects_max != 0 or call.is_virtual) return;
    assert(call.hedge == null and call.seat.state == .taken);
    call.transfer.silence_ns = call.seat.gate.?.patienceNs() orelse return;
    call.transfer.on_silence = onSilence;
}

fn onSilence(transfer: *Transfer) void {
    const call: *Call = @fieldParentPtr("transfer", transfer);
    if (call.cancel_asked.load(.monotonic)) return; // its end is on its way
    if (transfer.state != .running) return; // it waits for a connection; so would the other
    const gpa = call.gpa;
    const hedge = gpa.create(Hedge) catch return;
    hedge.* = .{ .call = call, .transfer = .{ .on_done = onDone } };
    if (!hedge.seat.askAtOnce(call.seat.gate.?, call.outgoing.body.items.len)) return gpa.destroy(hedge);
    call.hedge = hedge;
    call.fill(&hedge.transfer, transfer.url, transfer.headers);
    call.services.engine.submit(&hedge.transfer);
}

fn neverWaits(_: *Seat, _: gates_file.Verdict) void {
    unreachable;
}

fn onDone(transfer: *Transfer) void {
    const hedge: *Hedge = @fieldParentPtr("transfer", transfer);
    const call = hedge.call;
    if (isOver(call, transfer)) call.transferOver();
}

/// One of the two has ended. True: so has the other, and there is one again.
pub fn isOver(call: *Call, ended: *Transfer) bool {
    const hedge = call.hedge.?;
    const is_first = ended == &call.transfer;
    const other = if (is_first) &hedge.transfer else &call.transfer;
    if (hedge.winner == null and isWorthHaving(call, ended)) hedge.winner = ended;
    if (other.state != .outside) {
        if (hedge.winner == ended) call.services.engine.cancel(other) else giveBack(call, if (is_first) &call.seat else &hedge.seat, ended);
        return false;
    }
    // A cancel, or the end of the runtime, counts for more than a failure that would be tried again.
    const was_stopped = hedge.transfer.failure == .cancelled or hedge.transfer.failure == .shutdown;
    if (hedge.winner == &hedge.transfer or (hedge.winner == null and was_stopped)) {
        giveBack(call, &call.seat, &call.transfer);
        call.seat.permit = hedge.seat.permit;
        call.seat.state = hedge.seat.state;
        call.transfer.exchange(&hedge.transfer);
        call.transfer.started_ns = hedge.transfer.started_ns; // the attempt's
    } else giveBack(call, &hedge.seat, &hedge.transfer);
    call.hedge = null;
    hedge.transfer.deinit(call.gpa);
    call.gpa.destroy(hedge);
    return true;
}

pub fn cancel(call: *Call) void {
    const engine = call.services.engine;
    engine.cancel(&call.transfer);
    if (call.hedge) |hedge| engine.cancel(&hedge.transfer);
}

fn isWorthHaving(call: *const Call, transfer: *const Transfer) bool {
    if (transfer.failure != .none or transfer.status >= 500) return false;
    return transfer.status < 400 or !retry.mayStatusPass(call.request.retry.policy(), transfer.status);
}

/// The permit of a transfer that does not count, unless that was done before.
fn giveBack(call: *Call, seat: *Seat, transfer: *const Transfer) void {
    const failure = if (transfer.failure == .none and transfer.status >= 400) .status else transfer.failure;
    seat.settle(&.{
        .ending = .of(failure, transfer.status),
        .unsent = transfer.bytes_sent == 0,
        .retry_after_ms = transfer.retry_after_ms,
        .body_bytes = call.outgoing.body.items.len,
        .announced = &transfer.announced,
        .broken_port = transfer.broken_port,
        .dice = call.services.roll(),
    }) catch {}; // no memory for a limit that is learned with the next reply
}
