const std = @import("std");
const clock_file = @import("base/clock.zig");
const sync = @import("base/sync.zig");
const os = @import("base/os.zig");
const engine_file = @import("http/engine.zig");
const loopback = @import("http/loopback.zig");
const Transfer = @import("http/transfer.zig").Transfer;
const Engine = engine_file.Engine;
pub const std_options: std.Options = .{ .signal_stack_size = null, .enable_segfault_handler = false };
var engine: Engine = undefined;
var left: usize = 0;
var in_flight: usize = 0;
var done: loopback.Count = .{};
var failed: usize = 0;
var bodies: [][]u8 = undefined;
const gpa = std.heap.c_allocator;
const One = struct { t: Transfer };
var ones: []One = undefined;
var message: engine_file.Message = .{ .run = go };
var timeouts: bool = true;
fn next(t: *Transfer) void {
    left -= 1;
    t.reset();
    t.method = "POST";
    t.url = url;
    t.headers = &.{ "Content-Type: application/json", "Authorization: Bearer sk-0000000000000000000000000000000000000000" };
    t.body = bodies[left % bodies.len];
    if (timeouts) { t.connect_timeout_ms = 10_000; t.idle_timeout_ms = 60_000; t.total_timeout_ms = 120_000; }
    in_flight += 1;
    engine.submit(t);
}
fn go(_: *engine_file.Message) void {
    for (ones) |*one| if (left > 0) next(&one.t);
}
fn onDone(t: *Transfer) void {
    in_flight -= 1;
    if (t.failure != .none or t.status != 200) {
        failed += 1;
        if (failed < 5 or failed % 1000 == 0) std.debug.print("{s} {d}\n", .{ t.failureText(), t.status });
    }
    if (left > 0) return next(t);
    if (in_flight == 0) done.add();
}
var url: [:0]const u8 = "";
const Usage = extern struct { utime: extern struct { sec: c_long, usec: c_long }, stime: extern struct { sec: c_long, usec: c_long }, rest: [14]c_long };
extern "c" fn getrusage(who: c_int, u: *Usage) c_int;
fn cpu() f64 {
    var u: Usage = undefined;
    _ = getrusage(0, &u);
    return @as(f64, @floatFromInt(u.utime.sec + u.stime.sec)) + @as(f64, @floatFromInt(u.utime.usec + u.stime.usec)) * 1e-6;
}
extern "c" fn atoi([*:0]const u8) c_int;
pub fn main(init: std.process.Init.Minimal) !void {
    const vec = init.args.vector;
    url = std.mem.span(vec[1]);
    const count: usize = @intCast(atoi(vec[2]));
    const conc: usize = @intCast(atoi(vec[3]));
    const repeats: usize = @intCast(atoi(vec[4]));
    const per: u32 = @intCast(atoi(vec[5]));
    timeouts = true; const ca = if (vec.len > 6) std.mem.span(vec[6]) else "";
    var clock: clock_file.Clock = .init;
    engine = try .init(gpa, &clock, .{ .connections_per_shard = per, .ca_file = ca });
    bodies = try gpa.alloc([]u8, 64);
    for (bodies, 0..) |*b, i| b.* = try gpa.print("{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"Summarise ticket {d}: the customer reports that the printer on floor 3 jams when the tray is full.\"}}],\"temperature\":0.2,\"max_tokens\":256}}", .{i});
    ones = try gpa.alloc(One, conc);
    for (ones) |*one| one.* = .{ .t = .{ .on_done = onDone } };
    for (0..repeats + 1) |r| {
        left = count;
        const c0 = cpu();
        const w0 = os.monotonicNs();
        engine.post(&message);
        done.waitFor(@intCast(r + 1));
        const wall = @as(f64, @floatFromInt(os.monotonicNs() - w0)) * 1e-9;
        const c = cpu() - c0;
        const stats = engine.readStats();
        std.debug.print("round {d}: wall {d:.3} s, {d:.0} req/s, cpu {d:.1} us/req, opened {d}, reused {d}, failed {d}, shards {d}\n", .{ r, wall, @as(f64, @floatFromInt(count)) / wall, c * 1e6 / @as(f64, @floatFromInt(count)), stats.connections_opened, stats.connections_reused, failed, engine.shards.items.len });
    }
    engine.shutdown();
    engine.deinit();
}
