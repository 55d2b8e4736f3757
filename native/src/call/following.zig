//! How a call has another one's answer for its own. Parts of a call; the engine's thread only.
//!
//! Of calls whose requests ask for it (`coalesce`), and that are the same (identity.zig), the first leads: it takes permits, sends, and
//! tries again. Those that come while it is on its way follow (together.zig): they take no permit and send nothing. When the leader
//! has its answer they have it too: they read it from `source`, which they keep. When it has failed, or was cancelled, they have
//! not: the first of them leads the others and begins its own attempts.
//!
//! ## Nobody waits in a circle
//!
//! A follower's owner may hold permits (limits.zig) for which a leader waits that comes back from a pause. So whoever may not go
//! on at once leads no longer; and a leader that is on its way holds what it needs.
//!
//! ## The timer
//!
//! A follower with a deadline shares the timer with backing off. Where it has fired when the leader decides, its message is on its way,
//! and ends the call: with the answer, if there was one.
//!
//! ## Time
//!
//! A follower does not count as busy in virtual time. From when it is decided it does, or, where its timer has fired, since then.

const std = @import("std");
const admission = @import("../http/admission.zig");
const call_file = @import("call.zig");
const identity = @import("identity.zig");
const queueing = @import("queueing.zig");
const together_file = @import("../together.zig");

const assert = std.debug.assert;
const Call = call_file.Call;
const Member = together_file.Member;

/// Another attempt is to begin. True: not by this call, as long as it follows.
pub fn follows(call: *Call) bool {
    if (call.member.party != null) return false; // it leads
    const options = call.plan.admissionOf(call.request) orelse return false;
    const flags: admission.Flags = @bitCast(options.flags);
    if (!flags.coalesce or call.reading != null) return false;
    const services = call.services;
    const key = identity.sharedKeyOf(call);
    const is_one = services.together.join(&call.member, &key) catch return false; // then it goes alone
    if (!is_one) return false;
    call.phase = .following;
    if (call.deadline_ns != 0) services.timers.add(&call.backoff, call.deadline_ns) catch {
        services.together.leave(&call.member);
        call.overWith(.out_of_memory, "no memory for the request");
        return true;
    };
    call.has_wait_timer = call.deadline_ns != 0;
    if (queueing.gateOf(call, options)) |gate| gate.noteCoalesced() else |_| {} // it is only counted
    if (call.is_virtual) services.timers.leave();
    return true;
}

pub fn onCancel(call: *Call) void {
    if (!stopTimer(call)) return; // its message looks at that too
    call.services.together.leave(&call.member);
    if (call.is_virtual) call.services.timers.enter();
    call.overAsCancelled();
}

pub fn onTimer(call: *Call) void {
    call.has_wait_timer = false; // and it counts as busy since it has fired
    if (call.source != null) return call.over();
    if (call.member.party != null) call.services.together.leave(&call.member);
    if (call.cancel_asked.load(.acquire)) return call.overAsCancelled(); // pairs with the swap in cancel
    call.overWith(.total_timeout, "not finished in time");
}

/// What the call brought is final; it may be that others have waited for it.
pub fn onOver(call: *Call) void {
    if (call.member.party == null) return;
    assert(call.services.engine.onEngineThread());
    if (call.failure == .none) handOut(call) else cede(call);
}

fn handOut(leader: *Call) void {
    const services = leader.services;
    var at = services.together.disband(&leader.member);
    while (at) |member| {
        at = member.next;
        member.* = .{};
        const call: *Call = @fieldParentPtr("member", member);
        assert(call.phase == .following);
        call.source = leader.retain();
        call.failure = .none;
        call.attempts = leader.attempts;
        if (!stopTimer(call)) continue;
        if (call.is_virtual) services.timers.enter();
        call.over();
    }
}

/// Others need not wait for this call any more.
pub fn cede(call: *Call) void {
    if (call.member.party == null) return;
    const services = call.services;
    var from = &call.member;
    while (services.together.cede(from)) |member| {
        const next: *Call = @fieldParentPtr("member", member);
        assert(next.phase == .following);
        if (stopTimer(next)) {
            if (next.is_virtual) services.timers.enter();
            next.phase = .new;
            return services.engine.post(&next.start_message);
        }
        from = member; // it has no time left
    }
}

/// False: it has fired.
fn stopTimer(call: *Call) bool {
    if (call.has_wait_timer and !call.services.timers.cancel(&call.backoff)) return false;
    call.has_wait_timer = false;
    return true;
}
