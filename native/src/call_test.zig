//! Calls against a server on loopback, in virtual time: how they pause between attempts and go on, how they end while they do,
//! and what a cache makes of those that are over.

const std = @import("std");
const sync = @import("base/sync.zig");
const cache_file = @import("cache.zig");
const call_file = @import("call/call.zig");
const clock_file = @import("base/clock.zig");
const engine_file = @import("http/engine.zig");
const extract = @import("json/extract.zig");
const gates_file = @import("gates.zig");
const loopback = @import("http/loopback.zig");
const plan_file = @import("graph/plan.zig");
const pool_file = @import("pool/pool.zig");
const template = @import("graph/template.zig");
const timers_file = @import("timers.zig");

const testing = std.testing;
const gpa = testing.allocator;
const Cache = cache_file.Cache;
const Call = call_file.Call;
const Count = loopback.Count;
const Plan = plan_file.Plan;
const Value = template.Value;

/// What a runtime has that calls need.
pub const Room = struct {
    clock: clock_file.Clock = .init,
    timers: timers_file.Timers,
    pool: pool_file.Pool,
    engine: engine_file.Engine,
    gates: gates_file.Gates,
    services: call_file.Services,
    server: *loopback.Server,

    pub fn open() !*Room {
        const room = try gpa.create(Room);
        room.* = .{
            .timers = .init(gpa, &room.clock),
            .pool = .init(gpa, .{ .worker_count = 1 }),
            .engine = try .init(gpa, &room.clock, .{}),
            .gates = .{ .gpa = gpa, .timers = &room.timers, .engine = &room.engine },
            .services = .{
                .gates = &room.gates,
                .together = .{ .gpa = gpa },
                .gpa = gpa,
                .clock = &room.clock,
                .timers = &room.timers,
                .engine = &room.engine,
                .pool = &room.pool,
                .dice = .init(testing.random_seed),
            },
            .server = try .start(gpa),
        };
        room.timers.setVirtual(true);
        return room;
    }

    pub fn close(room: *Room) void {
        room.engine.shutdown();
        room.timers.stop();
        room.pool.shutdown();
        room.engine.deinit();
        room.timers.deinit();
        room.gates.deinit();
        room.services.together.deinit();
        room.pool.deinit();
        room.server.stop();
        gpa.destroy(room);
    }

    /// Nobody is busy any more, and nobody was counted twice. Whoever told of the end may need a moment to be through with it.
    pub fn expectIdle(room: *Room) !void {
        for (0..10_000_000) |_| {
            if (room.timers.busy.load(.acquire) == 0) return;
            sync.yield();
        }
        return error.StillBusy;
    }
};

/// GET of the server's `path`; value 0 goes into a header, value 1 is the body. `take`: a rule, where it is not empty.
fn makePlan(room: *Room, path: []const u8, attempts_max: u32, take: []const u8) !*Plan {
    return makePlanFor(room, path, attempts_max, take, null);
}

pub fn makePlanFor(room: *Room, path: []const u8, attempts_max: u32, take: []const u8, admission: ?plan_file.Admission) !*Plan {
    const url = try room.server.url(gpa, path);
    defer gpa.free(url);
    const text = try std.mem.concat(gpa, u8, &.{ "GETX-Key", url, take });
    defer gpa.free(text);
    const url_length: u32 = @intCast(url.len);
    const segments = [_]template.Segment{
        .{ .text = .{ .offset = 8, .length = url_length } },
        .{ .kind = @backingInt(template.SegmentKind.slot), .source = 0 },
        .{ .kind = @backingInt(template.SegmentKind.slot), .source = 1 },
    };
    const templates = [_]plan_file.Range{ .{ .first = 0, .count = 1 }, .{ .first = 1, .count = 1 }, .{ .first = 2, .count = 1 } };
    const header: plan_file.Header = .{ .name = .{ .offset = 3, .length = 5 }, .value = 1 };
    const rule: extract.Rule = .{
        .take = .{ .offset = 8 + url_length, .length = @intCast(take.len) },
        .into = @backingInt(extract.Into.value),
        .fold = @backingInt(extract.Fold.set),
    };
    const request: plan_file.Request = .{
        .method = .{ .offset = 0, .length = 3 },
        .url = 0,
        .body = 2,
        .headers = .{ .first = 0, .count = 1 },
        .rules = .{ .first = 0, .count = @intFromBool(take.len > 0) },
        .flags = .{ .body = true },
        .connect_timeout_ms = 0,
        .idle_timeout_ms = 0,
        .total_timeout_ms = 0,
        .retry = .{ .attempts_max = attempts_max, .backoff_first_ms = 100, .backoff_max_ms = 1_000 },
        .body_bytes_max = 0,
        .admission = @intFromBool(admission != null),
    };
    const admissions = [_]plan_file.Admission{admission orelse .{}};
    var cycle: plan_file.Cycle = .{};
    return Plan.create(gpa, &.{
        .admissions = &admissions,
        .admission_count = @intFromBool(admission != null),
        .input_count = 2,
        .segment_count = segments.len,
        .template_count = templates.len,
        .header_count = 1,
        .rule_count = 1,
        .request_count = 1,
        .segments = &segments,
        .templates = &templates,
        .headers = (&header)[0..1],
        .rules = (&rule)[0..1],
        .requests = (&request)[0..1],
        .text = .from(text),
    }, &cycle);
}

/// Who makes a call, as the dispatcher does for a node that needs permits.
const Owner = struct {
    room: *Room,
    call: *Call,
    /// What `on_resume` is to say.
    may: bool = true,
    /// `proceed` is said before `on_resume` is through.
    hasty: bool = false,
    retries: u32 = 0,
    paused_ms: u64 = 0,
    pauses: u32 = 0,
    resumes: Count = .{},
    overs: Count = .{},

    fn make(owner: *Owner, room: *Room, plan: *Plan) !void {
        owner.* = .{ .room = room, .call = try .create(&room.services, plan, 0, .{ .all = &.{ .of(.text, "key"), .of(.text, "body") } }, onOver) };
        owner.call.owner = owner;
        owner.call.on_retry = onRetry;
        owner.call.on_pause = onPause;
        owner.call.on_resume = onResume;
    }

    fn start(owner: *Owner) void {
        owner.room.timers.enter();
        owner.call.start(0);
    }

    fn of(call: *Call) *Owner {
        return @ptrCast(@alignCast(call.owner.?));
    }

    fn onRetry(call: *Call) void {
        const owner = of(call);
        std.debug.assert(owner.retries == owner.pauses and call.attempts == owner.retries + 1 and call.failure == .status);
        owner.retries += 1;
        owner.paused_ms += call.pause_ms;
    }

    fn onPause(call: *Call) void {
        of(call).pauses += 1;
    }

    fn onResume(call: *Call) bool {
        const owner = of(call);
        const may = owner.may;
        if (owner.hasty) call.proceed();
        owner.resumes.add();
        return may;
    }

    fn onOver(call: *Call) void {
        const owner = of(call);
        owner.room.timers.leave();
        owner.overs.add();
    }
};

test "a call that may go on pauses as long as it was told to, and says so" {
    const room = try Room.open();
    defer room.close();
    const plan = try makePlan(room, "/limited", 3, "");
    defer plan.release();
    var owner: Owner = undefined;
    try owner.make(room, plan);
    defer owner.call.release();
    const began = room.clock.now();
    owner.start();
    owner.overs.waitFor(1);
    try testing.expectEqual(.status, owner.call.failure);
    try testing.expectEqual(3, owner.call.attempts);
    try testing.expectEqual(2, owner.retries);
    try testing.expectEqual(2, owner.pauses);
    try testing.expectEqual(2, owner.resumes.get());
    try testing.expect(owner.paused_ms >= 6_000); // Retry-After: 3
    try testing.expectEqual(owner.paused_ms * std.time.ns_per_ms, room.clock.now() - began);
    try room.expectIdle();
}

test "a call that may not go on waits until it is told to, be it told before it waits" {
    const room = try Room.open();
    defer room.close();
    const plan = try makePlan(room, "/limited", 4, "");
    defer plan.release();
    for ([_]bool{ false, true }) |hasty| {
        var owner: Owner = undefined;
        try owner.make(room, plan);
        defer owner.call.release();
        owner.may = false;
        owner.hasty = hasty;
        owner.start();
        for (1..4) |pause| {
            owner.resumes.waitFor(@intCast(pause));
            if (!hasty) {
                try testing.expectEqual(0, owner.overs.get());
                owner.call.proceed();
            }
        }
        owner.overs.waitFor(1);
        try testing.expectEqual(4, owner.call.attempts);
        try testing.expectEqual(.status, owner.call.failure);
        try testing.expectEqual(3, owner.pauses);
        try room.expectIdle();
    }
}

test "a cancel ends a call that waits, and what it is told later finds it over" {
    const room = try Room.open();
    defer room.close();
    const plan = try makePlan(room, "/limited", 4, "");
    defer plan.release();
    var owner: Owner = undefined;
    try owner.make(room, plan);
    defer owner.call.release();
    owner.may = false;
    owner.start();
    owner.resumes.waitFor(1);
    owner.call.cancel();
    owner.overs.waitFor(1);
    owner.call.proceed();
    owner.call.cancel();
    try testing.expectEqual(.cancelled, owner.call.failure);
    try testing.expectEqual(1, owner.call.attempts);
    try testing.expectEqual(1, owner.overs.get());
}

test "a cancel and a go-ahead at once: the call ends once, and nobody stays busy" {
    const room = try Room.open();
    const plan = try makePlan(room, "/limited", 2, "");
    defer plan.release();
    var ended: [2]u32 = @splat(0);
    for (0..60) |round| {
        var owner: Owner = undefined;
        try owner.make(room, plan);
        defer owner.call.release();
        owner.may = false;
        owner.start();
        owner.resumes.waitFor(1);
        const other = try sync.Thread.spawn(.{ .name = "test" }, Call.cancel, .{owner.call});
        for (0..round % 4) |_| sync.yield();
        owner.call.proceed();
        other.join();
        owner.overs.waitFor(1);
        ended[@intFromBool(owner.call.failure == .cancelled)] += 1;
        try testing.expect(owner.call.failure == .cancelled or owner.call.attempts == 2);
    }
    try testing.expectEqual(60, ended[0] + ended[1]);
    room.engine.shutdown(); // what was posted last has been looked at
    try room.expectIdle();
    room.close();
}

test "a call that waits when its runtime is shut down is cancelled after that" {
    const room = try Room.open();
    const plan = try makePlan(room, "/limited", 4, "");
    defer plan.release();
    var owner: Owner = undefined;
    try owner.make(room, plan);
    owner.may = false;
    owner.start();
    owner.resumes.waitFor(1);
    room.engine.shutdown();
    owner.call.cancel();
    owner.overs.waitFor(1);
    owner.call.proceed();
    try room.expectIdle();
    room.close();
    owner.call.cancel(); // there is no runtime to ask any more
    owner.call.proceed();
    owner.call.release();
}

test "a call is found by everything it sends, and by how its reply is read" {
    const room = try Room.open();
    defer room.close();
    const plan = try makePlan(room, "/echo", 1, "");
    defer plan.release();
    const other_url = try makePlan(room, "/hello", 1, "");
    defer other_url.release();
    const other_rules = try makePlan(room, "/echo", 1, "a.b");
    defer other_rules.release();
    const other_take = try makePlan(room, "/echo", 1, "a.c");
    defer other_take.release();
    const same = try makePlan(room, "/echo", 7, ""); // how often to try changes no answer
    defer same.release();
    const Row = struct { plan: *Plan, key: []const u8, body: []const u8 };
    const rows = [_]Row{
        .{ .plan = plan, .key = "a", .body = "b" }, .{ .plan = plan, .key = "b", .body = "b" },      .{ .plan = plan, .key = "a", .body = "c" },
        .{ .plan = plan, .key = "ab", .body = "" }, .{ .plan = other_url, .key = "a", .body = "b" }, .{ .plan = other_rules, .key = "a", .body = "b" },
        .{ .plan = same, .key = "a", .body = "b" },
    };
    var keys: [rows.len]cache_file.Key = undefined;
    for (rows, &keys) |row, *key| {
        const call: *Call = try .create(&room.services, row.plan, 0, .{ .all = &.{ .of(.text, row.key), .of(.text, row.body) } }, Owner.onOver);
        defer call.release();
        key.* = cache_file.keyOf(call);
    }
    try testing.expectEqual(keys[0], keys[rows.len - 1]);
    for (keys[0 .. rows.len - 1], 0..) |*key, at| {
        for (keys[0..at]) |*other| try testing.expect(!std.mem.eql(u8, key, other));
    }
}

test "a finished call in a cache answers for others, longer than its runtime lives" {
    const cache: *Cache = try .create(gpa, 4, 0);
    defer cache.release();
    {
        const room = try Room.open();
        defer room.close();
        const plan = try makePlan(room, "/echo", 1, "");
        defer plan.release();
        var owner: Owner = undefined;
        try owner.make(room, plan);
        defer owner.call.release();
        try testing.expectEqual(null, cache.findFor(owner.call, 1));
        owner.start();
        owner.overs.waitFor(1);
        try testing.expectEqual(.none, owner.call.failure);
        cache.putFor(owner.call, 2);
        try testing.expectEqual(1, room.server.requests.get());
    }
    const room = try Room.open();
    defer room.close();
    const first = cache.newest.?.kept;
    var owner: Owner = undefined;
    const plan = try makePlan(room, "/echo", 1, "");
    defer plan.release();
    try owner.make(room, plan);
    defer owner.call.release();
    // The other server listened on another port; but for that the request is the same.
    try testing.expectEqual(null, cache.findFor(owner.call, 3));
    cache.put(&owner.call.cache_key.?, first, 3);
    const found = cache.findFor(owner.call, 4).?;
    defer found.release();
    try testing.expectEqual(first, found);
    found.cancel();
    try testing.expect(!found.isCancelAsked());
    try testing.expect(std.mem.endsWith(u8, found.value().bytes(), "body"));
    try testing.expectEqual(cache_file.Stats{ .hits = 1, .misses = 2, .entries = 2 }, cache.stats());
}

test "a request that cannot be rendered is not looked for" {
    const room = try Room.open();
    defer room.close();
    const cache: *Cache = try .create(gpa, 4, 0);
    defer cache.release();
    const text = "GETaddress";
    const segment: template.Segment = .{ .kind = @backingInt(template.SegmentKind.slot), .text = .{ .offset = 3, .length = 7 } };
    const request: plan_file.Request = .{
        .method = .{ .offset = 0, .length = 3 },
        .url = 0,
        .body = 0,
        .headers = .{},
        .rules = .{},
        .flags = .{},
        .connect_timeout_ms = 0,
        .idle_timeout_ms = 0,
        .total_timeout_ms = 0,
        .retry = .{},
        .body_bytes_max = 0,
    };
    var cycle: plan_file.Cycle = .{};
    const plan = try Plan.create(gpa, &.{
        .input_count = 1,
        .segment_count = 1,
        .template_count = 1,
        .request_count = 1,
        .segments = (&segment)[0..1],
        .templates = &.{.{ .first = 0, .count = 1 }},
        .requests = (&request)[0..1],
        .text = .from(text),
    }, &cycle);
    defer plan.release();
    const call: *Call = try .create(&room.services, plan, 0, .{ .all = &.{.of(.json, "{}")} }, Owner.onOver);
    defer call.release();
    try testing.expectEqual(.template, call.failure);
    try testing.expectEqual(null, cache.findFor(call, 0));
    try testing.expectEqual(cache_file.Stats{}, cache.stats());
}
