//! The header lines of a request as libcurl wants them: the caller's, and those that stop libcurl from adding its own. They are
//! there until the next request's.

const std = @import("std");
const curl = @import("curl.zig");
const Transfer = @import("transfer.zig").Transfer;

const Allocator = std.mem.Allocator;

pub const Headers = struct {
    lines: std.ArrayList(curl.List) = .empty,
    /// Those that libcurl wants in another form.
    rewritten: std.ArrayList(u8) = .empty,

    pub fn deinit(headers: *Headers, gpa: Allocator) void {
        headers.lines.deinit(gpa);
        headers.rewritten.deinit(gpa);
    }

    /// The caller's header lines, and those that stop libcurl from adding its own.
    pub fn write(headers: *Headers, gpa: Allocator, transfer: *const Transfer) Allocator.Error!*const curl.List {
        const lines = &headers.lines;
        lines.clearRetainingCapacity();
        headers.rewritten.clearRetainingCapacity();
        try lines.ensureTotalCapacity(gpa, transfer.headers.len + 6);
        var empty_bytes: usize = 0;
        for (transfer.headers) |line| if (isEmpty(line)) {
            empty_bytes += line.len + 1;
        };
        try headers.rewritten.ensureTotalCapacity(gpa, empty_bytes);
        var has_type = false;
        var has_accept = !transfer.is_raw;
        var has_encoding = !transfer.is_raw;
        var has_agent = !transfer.is_raw;
        for (transfer.headers) |line| {
            const name = line[0..std.mem.findScalar(u8, line, ':').?];
            switch (name.len) {
                // The length is libcurl's to say, and it does not wait for a "100 Continue" it did not ask for.
                "Content-Length".len => if (std.ascii.eqlIgnoreCase(name, "Content-Length")) continue,
                "Expect".len => {
                    if (std.ascii.eqlIgnoreCase(name, "Expect")) continue;
                    has_accept = has_accept or std.ascii.eqlIgnoreCase(name, "Accept");
                },
                "Content-Type".len => has_type = has_type or std.ascii.eqlIgnoreCase(name, "Content-Type"),
                "User-Agent".len => has_agent = has_agent or std.ascii.eqlIgnoreCase(name, "User-Agent"),
                "Accept-Encoding".len => has_encoding = has_encoding or std.ascii.eqlIgnoreCase(name, "Accept-Encoding"),
                else => {},
            }
            lines.appendAssumeCapacity(.{ .data = if (isEmpty(line)) headers.rewriteEmpty(name) else line.ptr, .next = null });
        }
        lines.appendAssumeCapacity(.{ .data = "Expect:", .next = null });
        if (!has_type) lines.appendAssumeCapacity(.{ .data = "Content-Type:", .next = null });
        if (!has_accept) lines.appendAssumeCapacity(.{ .data = "Accept:", .next = null });
        if (!has_encoding) lines.appendAssumeCapacity(.{ .data = "Accept-Encoding:", .next = null });
        if (!has_agent) lines.appendAssumeCapacity(.{ .data = "User-Agent:", .next = null });
        // libcurl leaves it out with HTTP/2, which has frames.
        if (transfer.on_upload != null and transfer.upload_bytes == null) {
            lines.appendAssumeCapacity(.{ .data = "Transfer-Encoding: chunked", .next = null });
        }
        const items = lines.items;
        for (items[0 .. items.len - 1], items[1..]) |*line, *next| line.next = next;
        return &items[0];
    }

    /// To libcurl "Name:" means that the header is not to be sent, and "Name;" that it is sent without a value.
    fn isEmpty(line: []const u8) bool {
        return switch (line[line.len - 1]) {
            ':', ' ', '\t' => std.mem.trim(u8, line[std.mem.findScalar(u8, line, ':').? + 1 ..], " \t").len == 0,
            else => false,
        };
    }

    fn rewriteEmpty(headers: *Headers, name: []const u8) [*:0]const u8 {
        const from = headers.rewritten.items.len;
        headers.rewritten.appendSliceAssumeCapacity(name);
        headers.rewritten.appendSliceAssumeCapacity(";\x00");
        return headers.rewritten.items[from .. from + name.len + 1 :0].ptr;
    }
};

fn ignore(_: *Transfer) void {}

test "what the caller gave is kept in order, and of libcurl's own nothing is left" {
    const testing = std.testing;
    var headers: Headers = .{};
    defer headers.deinit(testing.allocator);
    var transfer: Transfer = .{ .on_done = ignore, .headers = &.{ "Accept: a", "X-Empty:", "content-length: 3", "Expect: 100-continue" } };
    inline for (.{
        .{ false, "Accept: a|X-Empty;|Expect:|Content-Type:|" },
        .{ true, "Accept: a|X-Empty;|Expect:|Content-Type:|Accept-Encoding:|User-Agent:|" },
    }) |case| {
        transfer.is_raw = case[0];
        var at: ?*const curl.List = try headers.write(testing.allocator, &transfer);
        var text: std.ArrayList(u8) = .empty;
        defer text.deinit(testing.allocator);
        while (at) |line| : (at = line.next) {
            try text.appendSlice(testing.allocator, std.mem.span(line.data));
            try text.append(testing.allocator, '|');
        }
        try testing.expectEqualStrings(case[1], text.items);
    }
}
