//! The watchdog's look, on a tick of the timekeeper's: who has been out with callbacks for too long, and what follows from that.
//! Who wakes whom otherwise, and why this is left to a tick, stands at the top of lobby.zig.

const std = @import("std");
const sync = @import("base/sync.zig");
const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");

const Lobby = lobby_file.Lobby;
const Queue = queue_file.Queue;
const held_up_ns = lobby_file.held_up_ns;

pub const tick_ns = std.time.ns_per_ms;
/// The watchdog lies down after so many ticks without anybody out.
const quiet_ticks_max = 20;

/// The watchdog's tick. False: nobody is out, it may lie down.
pub fn watch(lobby: *Lobby) bool {
    lobby.mutex.lock();
    const now = sync.now();
    lobby.quiet_ticks = if (lobby.crew.out.first != null) 0 else lobby.quiet_ticks + 1;
    const stay = lobby.quiet_ticks < quiet_ticks_max;
    if (!lobby.crew.hasRoom()) makeRoom(lobby, now);
    var at = lobby.crew.out.first;
    while (at) |queue| : (at = queue.place.next) {
        const out = &queue.out;
        const out_ns = now -| out.since_ns;
        if (out_ns < held_up_ns) continue;
        if (out.source == null and queue.kind == .thread and !out.helps) {
            if (lobby.crew.giveUp(queue)) lobby.fillPlace(); // the run is over, this callback is not
            continue;
        }
        const thread = lobby.crew.spare() orelse continue;
        // Also with one callback out: what it continues may have ended, and its result waits to be sent. Asked again at
        // growing distances: a helper may come before the thread has its batch (it waits for the GIL), or not at all.
        if (!out.alone and !out.helps and out_ns >= out.lend_after_ns) {
            out.lend_after_ns = 2 * out_ns;
            thread.lend_from = queue.token;
            lobby.notifyAndUnlock(thread);
            return stay;
        }
        if (workWaits(lobby, queue)) {
            lobby.notifyAndUnlock(thread);
            return stay;
        }
    }
    lobby.mutex.unlock();
    return stay;
}

/// Whether there is work that waits for this queue's thread.
fn workWaits(lobby: *Lobby, queue: *Queue) bool {
    if (queue.out.source) |source| if (source.head().family.first != null) return true;
    return queue.kind == .thread and lobby.isStranded();
}

/// All places are taken. A thread that waits, in its callback, for a run that needs a place itself gives up its own.
fn makeRoom(lobby: *Lobby, now: u64) void {
    var at = lobby.ready_sources.first;
    while (at) |source| : (at = source.place.next) {
        if (!source.alone) continue;
        const caller = source.head().caller orelse continue;
        const outer = caller.outer orelse continue;
        if (!caller.parked or !outer.out.is_out or outer.standing != .counted or now -| outer.out.since_ns < held_up_ns) continue;
        lobby.crew.set(outer, .waiting);
        return lobby.fillPlace();
    }
}
