//! Reading: what becomes of the body of a reply that is taken as it comes. It is decoded, each event is read by the request's
//! extraction program, and what a reader wants of it goes into `deltas`. On the engine's thread; the reader's end is deltas.zig's.
//!
//! What the body is decides the server: events (text/event-stream, and whatever it does not name), a JSON document on each line, or
//! one document, for there are servers that do not stream though asked to. That one is kept and read when it is whole.
//!
//! A stream of a model's answer has ended well if it said so: by a reason to finish, or by "[DONE]". A connection that was closed
//! before is an answer cut off, however politely it was closed.

const std = @import("std");
const deltas_file = @import("deltas.zig");
const extract = @import("json/extract.zig");
const head = @import("http/head.zig");
const ndjson = @import("http/ndjson.zig");
const plan_file = @import("graph/plan.zig");
const sse = @import("http/sse.zig");

const Allocator = std.mem.Allocator;
const Kind = deltas_file.Kind;

pub const How = plan_file.Stream;

/// `Provider`: an error object in the stream; it stands in the reply. `Whole`: no stream; the body is to be kept.
pub const Error = error{ OutOfMemory, TooLarge, BadJson, Provider, Whole };
/// What may be wrong with a stream. `CutOff`: it ended before it said so.
pub const Fault = error{ OutOfMemory, TooLarge, BadJson, Provider, CutOff };

pub const Reading = struct {
    how: How,
    program: *const extract.Program,
    reply: *extract.Reply,
    deltas: deltas_file.Deltas,
    decoder: Decoder = .undecided,
    event_bytes_max: usize,
    /// The reader has been given something, or may have: the request is not to be made again.
    has_delivered: bool = false,
    is_done: bool = false,
    /// Of the bytes at hand: the reader is to be told, and what went wrong in the middle of them.
    tell: bool = false,
    fault: ?error{ BadJson, Provider } = null,

    const Decoder = union(enum) { undecided, events: sse.Decoder, lines: ndjson.Decoder };

    /// 0: the decoders' own bound.
    pub fn init(gpa: Allocator, how: How, program: *const extract.Program, reply: *extract.Reply, event_bytes_max: usize) Reading {
        return .{
            .how = how,
            .program = program,
            .reply = reply,
            .deltas = .init(gpa),
            .event_bytes_max = if (event_bytes_max == 0) sse.event_bytes_max_default else event_bytes_max,
        };
    }

    pub fn deinit(reading: *Reading) void {
        reading.dropDecoder();
        reading.deltas.deinit();
    }

    fn dropDecoder(reading: *Reading) void {
        switch (reading.decoder) {
            .undecided => {},
            .events => |*it| it.deinit(),
            .lines => |*it| it.deinit(),
        }
        reading.decoder = .undecided;
    }

    /// For the next attempt; nothing was delivered.
    pub fn reset(reading: *Reading) void {
        std.debug.assert(!reading.has_delivered);
        reading.dropDecoder();
        reading.is_done = false;
        reading.tell = false;
        reading.fault = null;
    }

    /// The next bytes of a body. True: the reader is to be told of what has become of them.
    pub fn take(reading: *Reading, media: head.Media, bytes: []const u8) Error!bool {
        if (reading.how == .bytes) {
            reading.has_delivered = true;
            return reading.deltas.put(.bytes, bytes);
        }
        if (reading.decoder == .undecided) try reading.decide(media);
        reading.tell = false;
        switch (reading.decoder) {
            .undecided => unreachable,
            .events => |*it| it.feed(bytes, reading, onEvent) catch |err| return reading.first(err),
            .lines => |*it| it.feed(bytes, reading, onLine) catch |err| return reading.first(err),
        }
        if (reading.fault) |fault| return fault;
        return reading.tell;
    }

    fn decide(reading: *Reading, media: head.Media) Error!void {
        const gpa = reading.deltas.gpa;
        switch (media) {
            .json => return error.Whole,
            .lines => {
                var lines: ndjson.Decoder = .init(gpa);
                lines.event_bytes_max = reading.event_bytes_max;
                reading.decoder = .{ .lines = lines };
            },
            .event_stream, .other => {
                var events: sse.Decoder = .init(gpa);
                events.event_bytes_max = reading.event_bytes_max;
                reading.decoder = .{ .events = events };
            },
        }
    }

    /// The body has ended. True: as with `take`.
    pub fn finish(reading: *Reading) Fault!bool {
        reading.tell = false;
        switch (reading.decoder) {
            .undecided => {},
            .events => |*it| it.finish(reading, onEvent) catch |err| return reading.first(err),
            .lines => |*it| it.finish(reading, onLine) catch |err| return reading.first(err),
        }
        if (reading.fault) |fault| return fault;
        if (reading.how == .deltas and !reading.is_done and reading.reply.finish.items().len == 0) return error.CutOff;
        return reading.tell;
    }

    /// What came too large behind an event that was faulty is noise like all that follows it.
    fn first(reading: *const Reading, err: sse.Error) error{ OutOfMemory, TooLarge, BadJson, Provider } {
        return if (err == error.TooLarge) reading.fault orelse err else err;
    }

    fn onEvent(reading: *Reading, event: sse.Event) error{OutOfMemory}!void {
        return reading.onLine(event.data);
    }

    fn onLine(reading: *Reading, data: []const u8) error{OutOfMemory}!void {
        if (reading.fault != null) return; // the stream is lost, what follows is noise
        if (reading.how == .events) return reading.give(.event, data);
        if (std.mem.eql(u8, data, "[DONE]")) { // ends some dialects' streams; no JSON
            reading.is_done = true;
            return;
        }
        const reply = reading.reply;
        const text = reply.text.items().len;
        const reasoning = reply.reasoning.items().len;
        reading.program.feed(reply, data, .ends_with_call) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.BadJson => {
                reading.fault = error.BadJson;
                return;
            },
        };
        if (reply.error_message.items().len > 0) {
            reading.fault = error.Provider;
            return;
        }
        if (reading.how == .none) return; // the reply is all that is wanted
        if (reply.reasoning.items().len > reasoning) try reading.give(.reasoning, reply.reasoning.items()[reasoning..]);
        if (reply.text.items().len > text) try reading.give(.text, reply.text.items()[text..]);
    }

    pub fn give(reading: *Reading, kind: Kind, bytes: []const u8) error{OutOfMemory}!void {
        reading.has_delivered = true;
        if (try reading.deltas.put(kind, bytes)) reading.tell = true;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

const Case = struct {
    arena: std.heap.ArenaAllocator,
    program: extract.Program,
    reply: extract.Reply,
    reading: Reading,

    fn open(how: How) !*Case {
        const case = try testing.allocator.create(Case);
        case.arena = .init(testing.allocator);
        case.program = try extract.compileText(case.arena.allocator(), &.{
            .{ .take = "t", .into = .text, .fold = .append },
            .{ .take = "r", .into = .reasoning, .fold = .append },
            .{ .take = "f", .into = .finish },
            .{ .take = "e", .into = .error_message },
        });
        case.reply = .init(testing.allocator);
        case.reading = .init(testing.allocator, how, &case.program, &case.reply, 64);
        return case;
    }

    fn close(case: *Case) void {
        case.reading.deinit();
        case.reply.deinit();
        case.arena.deinit();
        testing.allocator.destroy(case);
    }

    fn expect(case: *Case, kinds: []const Kind, texts: []const []const u8) !void {
        var into: [16]deltas_file.Delta = undefined;
        const taken = case.reading.deltas.take(&into);
        try testing.expectEqual(kinds.len, taken.count);
        for (into[0..taken.count], kinds, texts) |delta, kind, text| {
            try testing.expectEqual(kind, delta.kind);
            try testing.expectEqualStrings(text, delta.bytes.items());
        }
    }
};

test "events become pieces of text, once each, and the reply has it all" {
    const case: *Case = try .open(.deltas);
    defer case.close();
    const reading = &case.reading;
    try testing.expect(try reading.take(.event_stream, "data: {\"t\":\"Grü\"}\n\ndata: {\"r\":\"hm\",\"t\":"));
    try testing.expect(!try reading.take(.event_stream, "\"ße\"}\n\ndata: {\"f\":\"stop\"}\n\n"));
    try testing.expect(!try reading.take(.event_stream, "data: [DONE]\n\n"));
    try testing.expect(!try reading.finish());
    try case.expect(&.{ .text, .reasoning, .text }, &.{ "Grü", "hm", "ße" });
    try testing.expectEqualStrings("Grüße", case.reply.text.items());
    try testing.expect(reading.has_delivered);
}

test "lines are events as well, and who wants the events gets their data" {
    const case: *Case = try .open(.events);
    defer case.close();
    _ = try case.reading.take(.lines, "{\"t\":1}\r\n\n{\"t\"");
    _ = try case.reading.take(.lines, ":2}");
    _ = try case.reading.finish();
    try case.expect(&.{ .event, .event }, &.{ "{\"t\":1}", "{\"t\":2}" });
}

test "a stream that ends before it says so was cut off" {
    for ([_][]const u8{ "", "data: {\"t\":\"a\"}\n\n", "data: {\"t\":\"a\"}\n\ndata: [DON" }) |body| {
        const case: *Case = try .open(.deltas);
        defer case.close();
        if (body.len > 0) _ = try case.reading.take(.event_stream, body);
        if (std.mem.endsWith(u8, body, "DON")) {
            try testing.expectError(error.BadJson, case.reading.finish());
        } else try testing.expectError(error.CutOff, case.reading.finish());
    }
    const whole: *Case = try .open(.deltas);
    defer whole.close();
    _ = try whole.reading.take(.other, "data: {\"f\":\"length\"}"); // without the empty line
    _ = try whole.reading.finish();
}

test "an error in the stream, an event that is no JSON or too large: each ends it" {
    const cases = .{
        .{ "data: {\"t\":\"a\"}\n\ndata: {\"e\":\"overloaded\"}\n\ndata: {\"t\":\"b\"}\n\n", error.Provider },
        .{ "data: {\"t\":\"a\"}\n\ndata: {\"t\"\n\ndata: {\"t\":\"b\"}\n\n", error.BadJson },
        .{ "data: {\"t\":\"a\"}\n\ndata: " ++ @as([100]u8, @splat('x')), error.TooLarge },
    };
    inline for (cases) |it| {
        const case: *Case = try .open(.deltas);
        defer case.close();
        try testing.expectError(it[1], case.reading.take(.event_stream, it[0]));
        try case.expect(&.{.text}, &.{"a"});
    }
}

test "a server that answers with one document is no stream; bytes are whatever comes" {
    const case: *Case = try .open(.deltas);
    defer case.close();
    try testing.expectError(error.Whole, case.reading.take(.json, "{}"));
    case.reading.reset();
    _ = try case.reading.take(.event_stream, ": nothing yet\n");
    case.reading.reset();
    const raw: *Case = try .open(.bytes);
    defer raw.close();
    try testing.expect(try raw.reading.take(.json, "{}"));
    try testing.expect(!try raw.reading.take(.json, "\xff"));
    _ = try raw.reading.finish();
    try raw.expect(&.{ .bytes, .bytes }, &.{ "{}", "\xff" });
}
