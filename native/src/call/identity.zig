//! What makes two calls the same: a digest of what they send, and of how the reply is read. SHA-256, so what is kept as a key holds
//! neither prompts nor secrets. Of calls that are not over: later what they send is gone.

const std = @import("std");
const call_file = @import("call.zig");

const Call = call_file.Call;
const Sha256 = std.crypto.hash.sha2.Sha256;

pub const Key = [Sha256.digest_length]u8;

/// Of those that get the same answer, sooner or later.
pub fn keyOf(call: *const Call) Key {
    var digest: Digest = .{};
    const request = call.request;
    digest.number(@as(u32, @bitCast(request.flags)));
    digest.text(call.plan.string(request.method));
    digest.text(call.outgoing.url.items);
    // By which way, too: what one route may reach another may not.
    digest.number(if (call.plan.routeOf(request)) |route| route.key else 0);
    digest.number(request.redirects_max);
    const headers = call.outgoing.headers[0..request.headers.count]; // what follows is the call's own, see Outgoing.render
    digest.number(@intCast(headers.len));
    for (headers) |line| digest.text(line);
    digest.text(call.outgoing.body.items);
    const program = call.program;
    digest.number(@intCast(program.rules.len));
    for (program.rules) |*rule| {
        digest.number(@backingInt(rule.into));
        digest.number(@backingInt(rule.fold));
        digest.text(program.paths.all[rule.take].text);
        digest.number(@intFromBool(rule.index != null));
        if (rule.index) |path| digest.text(program.paths.all[path].text);
        digest.number(@intFromBool(rule.condition != null));
        if (rule.condition) |condition| {
            digest.text(program.paths.all[condition.path].text);
            digest.number(@backingInt(condition.wanted));
            switch (condition.wanted) {
                .anything, .nothing => {},
                .string, .literal => |text| digest.text(text),
                .number => |number| digest.text(std.mem.asBytes(&number)),
            }
        }
    }
    return digest.hasher.finalResult();
}

/// Of those for which one may stand now: they give a reply the same time and the same room as well, and stand in one line.
pub fn sharedKeyOf(call: *const Call) Key {
    var digest: Digest = .{};
    const request = call.request;
    const key = call.cache_key orelse keyOf(call);
    digest.text(&key);
    const options = call.plan.admissionOf(request).?;
    digest.text(call.plan.string(options.key));
    for ([_]u64{
        request.connect_timeout_ms, request.first_byte_timeout_ms, request.idle_timeout_ms, request.total_timeout_ms,
        request.body_bytes_max,     request.wire_bytes_max,        request.head_bytes_max,  request.json_depth_max,
        options.queue_timeout_ms,
    }) |number| digest.number(number);
    return digest.hasher.finalResult();
}

/// Pieces go in with their lengths, so that no two lists of pieces look alike.
const Digest = struct {
    hasher: Sha256 = .init(.{}),

    fn number(digest: *Digest, value: u64) void {
        digest.hasher.update(std.mem.asBytes(&value));
    }

    fn text(digest: *Digest, piece: []const u8) void {
        digest.number(piece.len);
        digest.hasher.update(piece);
    }
};
