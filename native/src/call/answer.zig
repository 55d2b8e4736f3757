//! What a call makes of what its transfer brought: a reply, or a more exact failure. Parts of a call.

const std = @import("std");
const call_file = @import("call.zig");
const reading_file = @import("../reading.zig");
const template = @import("../graph/template.zig");

const assert = std.debug.assert;
const Call = call_file.Call;
const Reading = reading_file.Reading;

pub fn noteFault(call: *Call, reading: *const Reading, fault: reading_file.Fault) void {
    const transfer = &call.transfer;
    const gpa = call.gpa;
    switch (fault) {
        error.TooLarge => transfer.fail(gpa, .too_large, "an event of the stream is larger than {d} bytes", .{reading.event_bytes_max}),
        error.BadJson => transfer.fail(gpa, .bad_reply, "an event of the stream is not valid JSON", .{}),
        error.Provider => transfer.fail(gpa, .provider, "", .{}), // its words stand in the reply
        error.CutOff => transfer.fail(gpa, .closed, "the stream ended before the answer did", .{}),
        error.OutOfMemory => transfer.fail(gpa, .out_of_memory, "no memory for the reply", .{}),
    }
}

/// A server that did not stream though it was asked to: the answer comes in one piece.
pub fn giveWhole(call: *Call) void {
    const reading = call.reading orelse return;
    if (call.failure != .none or call.transfer.body_received.items.len == 0 or reading.how == .bytes) return;
    const text = if (reading.how == .events) receivedBody(call) else call.reply.text.items();
    if (text.len > 0) reading.give(if (reading.how == .events) .event else .text, text) catch {
        call.failure = .out_of_memory;
    };
}

/// Makes a reply, or a more exact failure, of what the transfer brought.
pub fn read(call: *Call) void {
    const transfer = &call.transfer;
    if (transfer.failure != .none) return call.say(transfer.failureText());
    if (call.reading != null and call.isStreamed() and transfer.body_received.items.len == 0) return; // it was read as it came
    interpret(call, transfer.responseBody(), transfer.status);
}

fn interpret(call: *Call, body: []const u8, status: u16) void {
    if (status >= 400) {
        call.failure = .status;
        // Whatever an error page is, it must not hide the status: what cannot be read is left as `body`.
        if (call.request.rules.count > 0) call.program.feed(&call.reply, body, .outlives_reply) catch {
            call.reply.clear();
        };
        return;
    }
    if (call.request.rules.count == 0) return;
    call.program.feed(&call.reply, body, .outlives_reply) catch |err| {
        call.failure = if (err == error.OutOfMemory) .out_of_memory else .bad_reply;
        return call.say("the reply is not valid JSON");
    };
    judge(call);
}

fn judge(call: *Call) void {
    if (call.reply.error_message.items().len > 0) {
        call.failure = .provider;
    } else if (call.reply.isEmpty()) {
        call.failure = .bad_reply;
        call.say("the reply holds nothing that was asked for");
    }
}

/// Who has the answer: the call, or the one it has followed.
pub fn told(call: *const Call) *const Call {
    return call.source orelse call;
}

/// What the call brought: a node's output.
pub fn value(asked: *const Call) template.Value {
    assert(asked.failure == .none);
    const call = told(asked);
    if (call.request.rules.count == 0) return .of(.text, call.transfer.responseBody());
    const raw = call.reply.value.items();
    if (raw.len > 0) return .of(.json, raw);
    return .of(.text, call.reply.text.items());
}

/// The reply as it came.
pub fn receivedBody(call: *const Call) []const u8 {
    return if (call.read_from) call.outgoing.body.items else call.transfer.responseBody();
}

/// Reads `body` as the reply of this request, without sending anything: one document, or a stream of events.
pub fn readFrom(call: *Call, body: []const u8, stream: bool) error{OutOfMemory}!void {
    const gpa = call.gpa;
    const copy = try gpa.dupe(u8, body);
    call.outgoing.body.deinit(gpa);
    call.outgoing.body = .fromOwnedSlice(copy); // freed with the call: the reply borrows from it
    call.read_from = true;
    call.ended.raw = true; // nobody else knows it yet
    if (!stream) return interpret(call, copy, 200);
    var reading: Reading = .init(gpa, .none, call.program, &call.reply, call.request.event_bytes_max);
    defer reading.deinit();
    readAll(&reading, copy) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.Whole, error.CutOff => unreachable, // of what somebody reads as it comes
        error.Provider, error.TooLarge, error.BadJson => |fault| {
            noteFault(call, &reading, fault);
            call.failure = call.transfer.failure;
            call.say(call.transfer.failureText());
        },
    };
    if (call.failure == .none) judge(call);
}

fn readAll(reading: *Reading, bytes: []const u8) (reading_file.Error || reading_file.Fault)!void {
    _ = try reading.take(.event_stream, bytes);
    _ = try reading.finish();
}
