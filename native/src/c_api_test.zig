//! The header and Zig agree: every enumerator has the same number, every struct the same layout.

const std = @import("std");
const admission = @import("http/admission.zig");
const told = @import("http/told.zig");
const breaker = @import("http/breaker.zig");
const c = @import("graphbit_h");
const c_api = @import("c_api.zig");
const structs = @import("c_structs.zig");
const call_file = @import("call/call.zig");
const cache_file = @import("cache.zig");
const deltas_file = @import("deltas.zig");
const events_file = @import("events.zig");
const exchange_file = @import("exchange.zig");
const execution_file = @import("execution.zig");
const extract = @import("json/extract.zig");
const limits_file = @import("limits.zig");
const predicate = @import("graph/predicate.zig");
const route_file = @import("graph/route.zig");
const retry = @import("graph/retry.zig");
const intake_file = @import("intake.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const run_file = @import("graph/run.zig");
const template = @import("graph/template.zig");
const transfer_file = @import("http/transfer.zig");

const testing = std.testing;

/// Every enumerator of a Zig enum stands in the header under `prefix` with the same number.
fn expectEnum(comptime Enum: type, comptime prefix: []const u8) !void {
    inline for (@typeInfo(Enum).@"enum".field_names) |name| {
        comptime var upper: [name.len]u8 = undefined;
        _ = comptime std.ascii.upperString(&upper, name);
        try testing.expectEqual(@as(i64, @field(c, prefix ++ upper)), @as(i64, @backingInt(@field(Enum, name))));
    }
}

/// Same size, and every field at the same place: fields are compared in order.
fn expectStruct(comptime Zig: type, comptime C: type) !void {
    try testing.expectEqual(@sizeOf(C), @sizeOf(Zig));
    const zig_names = @typeInfo(Zig).@"struct".field_names;
    const c_names = @typeInfo(C).@"struct".field_names;
    inline for (c_names) |name| {
        // A gb_bytes inside another struct is two fields there: compare what both sides name.
        if (@hasField(Zig, name)) try testing.expectEqual(@offsetOf(C, name), @offsetOf(Zig, name));
    }
    try testing.expect(zig_names.len >= c_names.len);
}

test "header and Zig agree" {
    try expectEnum(c_api.Status, "GB_");
    try expectEnum(run_file.State, "GB_");
    try expectEnum(run_file.Cause, "GB_CAUSE_");
    try expectEnum(call_file.Failure, "GB_FAILURE_");
    try expectEnum(template.ValueKind, "GB_VALUE_");
    try expectEnum(template.SegmentKind, "GB_SEGMENT_");
    try expectEnum(template.Escape, "GB_ESCAPE_");
    try expectEnum(extract.Into, "GB_INTO_");
    try expectEnum(extract.Fold, "GB_FOLD_");
    try expectEnum(plan_file.NodeKind, "GB_NODE_");
    try expectEnum(plan_file.NativeKind, "GB_NATIVE_");
    try expectEnum(plan_file.Join, "GB_JOIN_");
    try expectEnum(predicate.Compare, "GB_COMPARE_");
    try expectEnum(queue_file.Kind, "GB_QUEUE_");
    try expectEnum(queue_file.ItemKind, "GB_ITEM_");
    try expectEnum(plan_file.Stream, "GB_STREAM_");
    try expectEnum(deltas_file.Kind, "GB_DELTA_");
    try expectEnum(retry.Reason, "GB_RETRY_");
    try expectEnum(admission.Ending, "GB_ENDING_");
    try expectEnum(breaker.State, "GB_BREAKER_");
    try expectEnum(structs.Verdict, "GB_VERDICT_");
    try expectStruct(plan_file.Admission, c.gb_admission);
    try expectStruct(told.Stats, c.gb_admission_stats);
    try expectStruct(told.QuotaStats, c.gb_quota_stats);
    try expectStruct(admission.Permit, c.gb_permit);
    try expectStruct(breaker.Change, c.gb_breaker_change);
    try expectStruct(structs.PermitResult, c.gb_permit_result);
    inline for (.{ "adaptive", "learn", "breaker", "hedge", "coalesce" }, .{ c.GB_ADMISSION_ADAPTIVE, c.GB_ADMISSION_LEARN, c.GB_ADMISSION_BREAKER, c.GB_ADMISSION_HEDGE, c.GB_ADMISSION_COALESCE }) |name, bit| {
        var flags: admission.Flags = .{};
        @field(flags, name) = true;
        try testing.expectEqual(@as(u32, bit), @as(u32, @bitCast(flags)));
    }
    try expectStruct(deltas_file.Delta, c.gb_delta);
    try expectStruct(route_file.Spec, c.gb_route);
    try expectStruct(structs.HttpStats, c.gb_http_stats);
    try expectStruct(structs.HttpStats.Latency, c.gb_latency);
    try expectStruct(plan_file.Bytes, c.gb_bytes);
    try expectStruct(template.Value, c.gb_value);
    try expectStruct(template.Segment, c.gb_segment);
    try expectStruct(extract.Rule, c.gb_rule);
    try expectStruct(plan_file.Header, c.gb_header);
    try expectStruct(plan_file.Request, c.gb_request);
    try expectStruct(plan_file.Node, c.gb_node);
    try expectStruct(plan_file.Native, c.gb_native);
    try expectStruct(predicate.Predicate, c.gb_predicate);
    try expectStruct(retry.Retry, c.gb_retry);
    try expectStruct(events_file.Event, c.gb_event);
    try expectStruct(limits_file.Counts, c.gb_limit_stats);
    try expectStruct(cache_file.Stats, c.gb_cache_stats);
    try expectStruct(execution_file.Waits, c.gb_node_waits);
    try expectStruct(plan_file.Spec, c.gb_plan_spec);
    try expectStruct(plan_file.Cycle, c.gb_cycle);
    try expectStruct(structs.RuntimeOptions, c.gb_runtime_options);
    try expectStruct(structs.RuntimeStats, c.gb_runtime_stats);
    try expectStruct(structs.Memory, c.gb_memory);
    try expectStruct(intake_file.Settled, c.gb_settled);
    try expectStruct(intake_file.Finished, c.gb_finished);
    try expectStruct(queue_file.Item, c.gb_item);
    try expectStruct(queue_file.News, c.gb_news);
    try expectStruct(structs.RunOptions, c.gb_run_options);
    try expectStruct(structs.RunSummary, c.gb_run_summary);
    try expectStruct(structs.NodeReport, c.gb_node_report);
    try expectStruct(structs.Reply, c.gb_reply);
    try expectStruct(structs.ToolCall, c.gb_tool_call);
    try testing.expectEqual(c.GB_REQUEST_BODY, @as(u32, @bitCast(plan_file.RequestFlags{ .body = true })));
    try testing.expectEqual(c.GB_REQUEST_RULES_REQUIRED, @as(u32, @bitCast(plan_file.RequestFlags{ .rules_required = true })));
    try testing.expectEqual(c.GB_REQUEST_KEEP_BODY, @as(u32, @bitCast(plan_file.RequestFlags{ .keep_body = true })));
    try testing.expectEqual(c.GB_REQUEST_INSECURE, @as(u32, @bitCast(plan_file.RequestFlags{ .insecure = true })));
    try testing.expectEqual(c.GB_NODE_CONDITION, @as(u32, @bitCast(plan_file.NodeFlags{ .condition = true })));
    try testing.expectEqual(c.GB_NODE_LOOP, @as(u32, @bitCast(plan_file.NodeFlags{ .loop = true })));
    try testing.expectEqual(c.GB_NODE_HANDLED, @as(u32, @bitCast(plan_file.NodeFlags{ .handled = true })));
    try testing.expectEqual(c.GB_NODE_ALONE, @as(u32, @bitCast(plan_file.NodeFlags{ .alone = true })));
    try testing.expectEqual(c.GB_NODE_TIMEOUT_IS_FINAL, @as(u32, @bitCast(plan_file.NodeFlags{ .timeout_is_final = true })));
    try expectEnum(transfer_file.Transfer.Phase, "GB_PHASE_");
    try expectStruct(exchange_file.Spec, c.gb_exchange_spec);
    try expectStruct(exchange_file.Report, c.gb_exchange_report);
    try testing.expectEqual(c.GB_EXCHANGE_BODY, @as(u32, @bitCast(exchange_file.Flags{ .body = true })));
    try testing.expectEqual(c.GB_EXCHANGE_BODY_FOLLOWS, @as(u32, @bitCast(exchange_file.Flags{ .body_follows = true })));
    try testing.expectEqual(c.GB_EXCHANGE_INSECURE, @as(u32, @bitCast(exchange_file.Flags{ .insecure = true })));
    try testing.expectEqual(c.GB_EXCHANGE_PROXY, @as(u32, @bitCast(exchange_file.Flags{ .proxy = true })));
    try testing.expectEqual(c.GB_EXCHANGE_PUBLIC_ONLY, @as(u32, @bitCast(exchange_file.Flags{ .public_only = true })));
    try testing.expectEqual(c.GB_NODE_COMPOSITE, @as(u32, @bitCast(plan_file.NodeFlags{ .composite = true })));
}
