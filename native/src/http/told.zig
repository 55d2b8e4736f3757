//! What a controller of admission tells of itself: gb_admission_stats.

const admission = @import("admission.zig");
const announced_file = @import("announced.zig");
const breaker_file = @import("breaker.zig");
const quota_file = @import("quota.zig");

const Controller = admission.Controller;
const Kind = announced_file.Kind;

/// C: gb_quota_stats
pub const QuotaStats = extern struct { limit: u64 = 0, used: u64 = 0, period_ns: u64 = 0, announced: u64 = 0, learned: u64 = 0 };

/// C: gb_admission_stats
pub const Stats = extern struct {
    in_flight: u32 = 0,
    queued: u32 = 0,
    breaker: breaker_file.State = .closed,
    history_count: u32 = 0,
    /// 0: no bound.
    window: f64 = 0,
    admitted: u64 = 0,
    limited: u64 = 0,
    overloaded: u64 = 0,
    cool_downs: u64 = 0,
    refused: u64 = 0,
    queue_timeouts: u64 = 0,
    hedged: u64 = 0,
    coalesced: u64 = 0,
    /// 0: not cooling down.
    cooled_until_ns: u64 = 0,
    /// 0: the breaker is closed.
    next_probe_ns: u64 = 0,
    concurrency: u32 = 0,
    reserved: u32 = 0,
    quotas: [announced_file.kind_count]QuotaStats = @splat(.{}),
    history: [breaker_file.history_max]breaker_file.Change = @splat(.{}),
};

pub fn read(controller: *Controller, given_ns: u64) Stats {
    const now_ns = controller.noteTime(given_ns);
    var stats: Stats = .{
        .in_flight = controller.in_flight,
        .breaker = controller.breaker.state,
        .window = controller.congestion.window orelse 0,
        .admitted = controller.counts.admitted,
        .limited = controller.counts.limited,
        .overloaded = controller.counts.overloaded,
        .cool_downs = controller.counts.cool_downs,
        .refused = controller.counts.refused,
        .hedged = controller.counts.hedged,
        .cooled_until_ns = if (controller.cooled_until_ns > now_ns) controller.cooled_until_ns else 0,
        .next_probe_ns = if (controller.breaker.state == .closed) 0 else @max(controller.breaker.until_ns, 1),
        .concurrency = @intCast(controller.terms.concurrency.value()),
    };
    stats.history_count = controller.breaker.history(&stats.history);
    for (&stats.quotas, &controller.quotas, &controller.given) |*to, *heard, *own| {
        const is_own = own.limit != 0 and (heard.limit == 0 or @as(u128, own.limit) * heard.period_ns <= @as(u128, heard.limit) * own.period_ns);
        const quota = if (is_own) own else heard;
        to.* = .{
            .limit = quota.limit,
            .used = if (quota.limit == 0) 0 else quota.used(now_ns),
            .period_ns = if (quota.limit == 0) 0 else quota.period_ns,
            .announced = heard.limit,
        };
    }
    const minutes = &controller.congestion.minutes;
    if (minutes.limit) |limit| {
        const requests = &stats.quotas[@backingInt(Kind.requests)];
        requests.learned = @intFromFloat(limit);
        if (requests.limit == 0 or requests.learned * @as(u128, requests.period_ns) < @as(u128, requests.limit) * quota_file.minute_ns) {
            requests.limit = requests.learned;
            requests.used = minutes.used(now_ns);
            requests.period_ns = quota_file.minute_ns;
        }
    }
    return stats;
}
