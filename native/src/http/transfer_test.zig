//! What a transfer decides, without libcurl, socket or thread.

const std = @import("std");
const deadlines = @import("deadlines.zig");
const transfer_file = @import("transfer.zig");

const Transfer = transfer_file.Transfer;

const testing = std.testing;

fn ignore(_: *Transfer) void {}

test "the last head of a reply counts, and milliseconds are more exact than seconds" {
    var transfer: Transfer = .{ .on_done = ignore };
    for ([_][]const u8{
        "HTTP/1.1 100 Continue\r\n",  "Retry-After: 9\r\n",      "X-Request-Id: first\r\n", "\r\n",
        "HTTP/1.1 429 Slow down\r\n", "retry-after-ms: 250\r\n", "Retry-After: 7\r\n",      "request-id: req_1\r\n",
        "x-request-id: other\r\n",    "Content-Length: 12\r\n",  "Content-Type: text\r\n",  "\r\n",
    }) |line| try testing.expect(transfer.takeHead(testing.allocator, line));
    try testing.expectEqual(429, transfer.status);
    try testing.expectEqual(250, transfer.retry_after_ms);
    try testing.expectEqualStrings("req_1", transfer.request_id);
    try testing.expectEqual(12, transfer.content_length);
    transfer.takeHeadLine(testing.allocator, "X-Request-Id: " ++ @as([500]u8, @splat('z')));
    transfer.takeHeadLine(testing.allocator, "HTTP/2 503 \r\n");
    try testing.expectEqual(-1, transfer.retry_after_ms);
    transfer.takeHeadLine(testing.allocator, "X-Request-Id: " ++ @as([500]u8, @splat('z')));
    try testing.expectEqual(transfer_file.request_id_bytes_max, transfer.request_id.len);
    transfer.takeHeadLine(testing.allocator, "retry-after: -3\r\n");
    try testing.expectEqual(-1, transfer.retry_after_ms);
}

test "a body is taken up to its bound and not one byte further" {
    var transfer: Transfer = .{ .on_done = ignore, .body_bytes_max = 10 };
    defer transfer.deinit(testing.allocator);
    try testing.expectEqual(.taken, transfer.takeBody(testing.allocator, "12345", 5));
    try testing.expectEqual(.taken, transfer.takeBody(testing.allocator, "67890", 10));
    try testing.expectEqualStrings("1234567890", transfer.responseBody());
    try testing.expectEqual(.failed, transfer.takeBody(testing.allocator, "x", 11));
    try testing.expectEqual(.too_large, transfer.failure);
    transfer.reset();
    transfer.body_bytes_max = 10;
    transfer.content_length = 11; // announced: the first byte is too much already
    try testing.expectEqual(.failed, transfer.takeBody(testing.allocator, "1", 1));
}

test "what comes over the wire is bounded too, and so is the head" {
    var transfer: Transfer = .{ .on_done = ignore, .wire_bytes_max = 10, .head_bytes_max = 40 };
    defer transfer.deinit(testing.allocator);
    try testing.expect(transfer.takeHead(testing.allocator, "HTTP/1.1 200 OK\r\n"));
    try testing.expect(transfer.takeHead(testing.allocator, "Content-Encoding: gzip"));
    try testing.expect(transfer.is_heard and transfer.is_encoded);
    try testing.expectEqual(.taken, transfer.takeBody(testing.allocator, "decoded to more than ten bytes", 10));
    try testing.expectEqual(.failed, transfer.takeBody(testing.allocator, "x", 11));
    try testing.expectEqual(.too_large, transfer.failure);
    transfer.failure = .none;
    try testing.expect(!transfer.takeHead(testing.allocator, "Xy"));
    try testing.expectEqual(.too_large, transfer.failure);
}

test "an owner that is full gets the same bytes again" {
    const Owner = struct {
        var room: usize = 4;
        var got: usize = 0;
        fn take(_: *Transfer, bytes: []const u8) Transfer.Taken {
            if (bytes.len > room) return .full;
            room -= bytes.len;
            got += bytes.len;
            return .taken;
        }
    };
    var transfer: Transfer = .{ .on_done = ignore, .on_body = Owner.take, .idle_timeout_ms = 5 };
    defer transfer.deinit(testing.allocator);
    try testing.expectEqual(.taken, transfer.takeBody(testing.allocator, "123", 3));
    transfer.state = .running;
    try testing.expect(transfer.due(1) != null);
    try testing.expectEqual(.full, transfer.takeBody(testing.allocator, "45", 5));
    try testing.expectEqual(null, transfer.due(1)); // it is not the server who is silent
    transfer.state = .outside;
    Owner.room = 2;
    try testing.expectEqual(.taken, transfer.takeBody(testing.allocator, "45", 5));
    try testing.expectEqual(5, transfer.body_bytes);
    try testing.expectEqual(5, Owner.got);
}

test "transfers that are exchanged keep their owners" {
    const Other = struct {
        fn ignore(_: *Transfer) void {}
    };
    var one: Transfer = .{ .on_done = ignore };
    var other: Transfer = .{ .on_done = Other.ignore, .status = 200 };
    defer one.deinit(testing.allocator);
    defer other.deinit(testing.allocator);
    other.takeHeadLine(testing.allocator, "request-id: req_2");
    try testing.expectEqual(.taken, other.takeBody(testing.allocator, "12345", 5));
    one.exchange(&other);
    try testing.expectEqualStrings("req_2", one.request_id);
    try testing.expect(one.request_id.ptr == &one.request_id_buffer);
    try testing.expectEqualStrings("12345", one.responseBody());
    try testing.expectEqualStrings("", other.responseBody());
    try testing.expect(one.on_done == ignore and other.on_done == Other.ignore);
}

test "whoever wants to know of silence is told once, and not once a reply has begun" {
    var transfer: Transfer = .{ .on_done = ignore, .on_silence = ignore, .silence_ns = 5, .submitted_ns = 100 };
    try testing.expectEqual(105, transfer.lookAgainNs(null, 100));
    try testing.expectEqual(null, transfer.takeSilence(104));
    transfer.is_heard = true;
    try testing.expectEqual(null, transfer.takeSilence(105));
    try testing.expectEqual(deadlines.never, transfer.lookAgainNs(null, 105));
    transfer.is_heard = false;
    try testing.expectEqual(ignore, transfer.takeSilence(105).?);
    try testing.expectEqual(null, transfer.takeSilence(106));
}

test "no memory for a body is a failure of its own" {
    var transfer: Transfer = .{ .on_done = ignore };
    try testing.expectEqual(.failed, transfer.takeBody(testing.failing_allocator, "12345", 5));
    try testing.expectEqual(.out_of_memory, transfer.failure);
    try testing.expectEqualStrings("out of memory", transfer.failureText());
}

test "the earliest timeout is due; silence only counts once connected" {
    const ms: u64 = std.time.ns_per_ms;
    var transfer: Transfer = .{ .on_done = ignore, .connect_timeout_ms = 10, .idle_timeout_ms = 20, .total_timeout_ms = 100 };
    transfer.submitted_ns = 1000 * ms;
    transfer.state = .waiting;
    try testing.expectEqual(1100 * ms, transfer.due(null).?.at_ns);
    transfer.state = .running;
    transfer.began_ns = 1005 * ms; // it waited five
    try testing.expectEqual(Transfer.Due{ .at_ns = 1015 * ms, .failure = .connect_timeout, .ms = 10 }, transfer.due(null).?);
    try testing.expectEqual(Transfer.Due{ .at_ns = 1028 * ms, .failure = .idle_timeout, .ms = 20 }, transfer.due(1008 * ms).?);
    transfer.active_ns = 1090 * ms;
    try testing.expectEqual(Transfer.Due{ .at_ns = 1100 * ms, .failure = .total_timeout, .ms = 100 }, transfer.due(1008 * ms).?);
    transfer.active_ns = 1010 * ms;
    transfer.first_byte_timeout_ms = 15;
    try testing.expectEqual(Transfer.Due{ .at_ns = 1023 * ms, .failure = .first_byte_timeout, .ms = 15 }, transfer.due(1008 * ms).?);
    transfer.is_heard = true;
    try testing.expectEqual(Transfer.Due{ .at_ns = 1030 * ms, .failure = .idle_timeout, .ms = 20 }, transfer.due(1008 * ms).?);
    transfer.first_byte_timeout_ms = 0;
    transfer.write_timeout_ms = 7;
    transfer.is_raw = true;
    transfer.is_sending = true;
    try testing.expectEqual(7, transfer.due(1008 * ms).?.ms);
    transfer.is_sending = false;
    transfer.write_timeout_ms = 0;
    transfer.connect_timeout_ms = 0;
    transfer.total_timeout_ms = 0;
    try testing.expectEqual(null, transfer.due(null));
    try testing.expectEqual(1027 * ms, transfer.lookAgainNs(null, 1007 * ms));
    transfer.idle_timeout_ms = 0;
    try testing.expectEqual(deadlines.never, transfer.lookAgainNs(1008 * ms, 1007 * ms));
}
