//! Where transfers wait, and for what: any connection (`Engine.waiting`), their host's address (`Origin.held`), or that their host
//! has fewer (`Origin.crowd`). A transfer stands in one line at a time, in the order in which it came.
//!
//! The engine's thread only; these are parts of the engine.

const std = @import("std");
const os = @import("../base/os.zig");
const engine_file = @import("engine.zig");
const origins_file = @import("origins.zig");
const outcome = @import("outcome.zig");
const transfer_file = @import("transfer.zig");
const Shard = @import("shard.zig").Shard;

const Engine = engine_file.Engine;
const Origin = origins_file.Origin;
const Transfer = transfer_file.Transfer;

pub fn place(engine: *Engine, transfer: *Transfer) void {
    const origin = transfer.origin.?;
    if (origin.home) |shard| return engine.begin(transfer, shard, false);
    if (isCrowded(engine, origin)) return wait(engine, transfer, &origin.crowd);
    // Whoever waits longer goes first.
    if (engine.waiting.first != null) return wait(engine, transfer, &engine.waiting);
    if (origin.idleLane()) |lane| return engine.begin(transfer, lane.shard, true);
    if (!origin.isKnown(engine.common.now_ns) and origin.scout != null) return wait(engine, transfer, &origin.held);
    const shard = engine.fleet.shardFor(origin) catch return engine.failForMemory(transfer);
    if (shard == null) return wait(engine, transfer, &engine.waiting);
    if (!origin.isKnown(engine.common.now_ns)) origin.scout = transfer;
    engine.begin(transfer, shard.?, true);
}

pub fn isCrowded(engine: *const Engine, origin: *const Origin) bool {
    const most = engine.options.connections_per_origin;
    return most != 0 and (origin.running >= most or origin.crowd.first != null);
}

pub fn wait(engine: *Engine, transfer: *Transfer, list: *origins_file.List) void {
    transfer.state = .waiting;
    transfer.line = list;
    list.push(transfer);
    _ = engine.stats.queued.fetchAdd(1, .monotonic);
    const at_ns = transfer.lookAgainNs(null, engine.common.now_ns);
    engine.deadlines.set(engine.gpa, &transfer.deadline, at_ns) catch
        engine.stop(transfer, .out_of_memory, "no memory for the request", .{});
}

pub fn stopWaiting(engine: *Engine, transfer: *Transfer) void {
    transfer.assertState(.waiting);
    transfer.phase = if (transfer.isHeld()) .connecting else .waiting;
    transfer.line.?.remove(transfer);
    transfer.line = null;
    _ = engine.stats.queued.fetchSub(1, .monotonic);
    transfer.state = .outside;
}

/// It failed for want of a descriptor: nothing was sent.
pub fn isExhausted(engine: *const Engine, over: Shard.Over) bool {
    const handle = over.handle;
    if (handle.opened.items.len > 0 or handle.is_refused or handle.transfer.is_heard or !engine.is_open) return false;
    return switch (outcome.failureOf(over.code, "", false)) {
        .connect, .resolve, .other => !os.hasDescriptor(),
        else => false,
    };
}

pub fn waitForDescriptor(engine: *Engine, transfer: *Transfer) void {
    const origin = transfer.origin.?;
    engine.takeOut(transfer);
    engine.fleet.noteExhausted();
    if (origin.scout == transfer) {
        origin.scout = null;
        noteKnown(engine, origin); // one of those that wait goes ahead instead
    }
    wait(engine, transfer, &engine.waiting);
}

pub fn noteKnown(engine: *Engine, origin: *Origin) void {
    if (origin.held.first == null or origin.is_known_listed) return;
    origin.is_known_listed = true;
    origin.next_known = engine.common.known;
    engine.common.known = origin;
}

pub fn release(engine: *Engine, origin: *Origin) void {
    var held = origin.held;
    origin.held = .{};
    while (held.pop()) |transfer| placeAgain(engine, transfer);
    if (origin.crowd.first != null) admit(engine, origin); // of those let in one may have gone back
}

/// It has just left its line.
pub fn placeAgain(engine: *Engine, transfer: *Transfer) void {
    _ = engine.stats.queued.fetchSub(1, .monotonic);
    transfer.line = null;
    transfer.state = .outside;
    place(engine, transfer);
}

/// One of those that wait for their origin's other transfers, if there is room now.
pub fn admit(engine: *Engine, origin: *Origin) void {
    const most = engine.options.connections_per_origin;
    while (origin.running < most or origin.home != null) {
        var rest = origin.crowd;
        const transfer = rest.pop() orelse return;
        origin.crowd = .{}; // so that it is not put behind those who come after it
        placeAgain(engine, transfer);
        origin.crowd = rest;
        if (transfer.state == .waiting) return;
    }
}

pub fn startWaiting(engine: *Engine) void {
    while (engine.waiting.first) |transfer| {
        const origin = transfer.origin.?;
        const most = engine.options.connections_per_origin;
        if (origin.home == null and most != 0 and origin.running >= most) { // others went ahead since it was let in
            stopWaiting(engine, transfer);
            wait(engine, transfer, &origin.crowd);
            continue;
        }
        const lane = origin.idleLane();
        const found = origin.home orelse if (lane) |it| it.shard else engine.fleet.shardFor(origin) catch {
            engine.stop(transfer, .out_of_memory, "no memory for the request", .{});
            continue;
        };
        const shard = found orelse return;
        stopWaiting(engine, transfer);
        if (origin.home == null and lane == null and !origin.isKnown(engine.common.now_ns)) {
            if (origin.scout != null) {
                wait(engine, transfer, &origin.held);
                continue;
            }
            origin.scout = transfer;
        }
        engine.begin(transfer, shard, origin.home == null);
    }
}
