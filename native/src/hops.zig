//! Hops: the way of a call from redirect to redirect. The engine's thread only.
//!
//! What is followed decides http/redirect.zig. To another origin only such headers go along as cannot be credentials. A hop is
//! part of its attempt: together they have the attempt's time.

const std = @import("std");
const os = @import("base/os.zig");
const curl = @import("http/curl.zig");
const redirect = @import("http/redirect.zig");
const target = @import("http/target.zig");
const transfer_file = @import("http/transfer.zig");

const Allocator = std.mem.Allocator;
const Transfer = transfer_file.Transfer;

pub const Step = union(enum) {
    /// The reply is what it is.
    stay,
    /// `url` and `headers` say what is to be sent next.
    go,
    refused: []const u8,
};

pub const Hops = struct {
    count: u32 = 0,
    /// Where the last hop led; empty: there was none.
    url: [:0]const u8 = "",
    /// Of the caller's header lines, those that may go there.
    lines: std.ArrayList([:0]const u8) = .empty,
    /// The last hop led to another origin than the first request's.
    is_abroad: bool = false,
    /// When the attempt began, in real time.
    began_ns: u64 = 0,

    pub fn deinit(hops: *Hops, gpa: Allocator) void {
        hops.begin(gpa, 0);
        hops.lines.deinit(gpa);
    }

    /// Another attempt.
    pub fn begin(hops: *Hops, gpa: Allocator, now_ns: u64) void {
        if (hops.url.len > 0) gpa.free(hops.url);
        hops.url = "";
        hops.count = 0;
        hops.is_abroad = false;
        hops.began_ns = now_ns;
    }

    /// What the reply of `transfer` asks for. `headers`: the caller's.
    pub fn follow(
        hops: *Hops,
        gpa: Allocator,
        table: *const curl.Table,
        transfer: *const Transfer,
        headers: []const [:0]const u8,
        most: u32,
    ) error{OutOfMemory}!Step {
        if (most == 0 or !redirect.follows(transfer.status) or transfer.location.len == 0) return .stay;
        const reference = try gpa.dupeSentinel(u8, transfer.location, 0);
        defer gpa.free(reference);
        const url = table.resolve(gpa, transfer.url, reference) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.BadUrl => return .{ .refused = "the redirect leads to no URL" },
        };
        errdefer gpa.free(url);
        const verdict = redirect.verdict(.{
            .method = transfer.method,
            .has_body = transfer.body != null,
            .is_tls = std.ascii.startsWithIgnoreCase(transfer.url, "https:"),
            .left = most -| hops.count,
        }, url);
        switch (verdict) {
            .go => {},
            .stays, .refused => {
                gpa.free(url);
                return if (verdict == .stays) .stay else .{ .refused = verdict.refused };
            },
        }
        // Once abroad it stays so: the headers are not taken up again on the way back.
        hops.is_abroad = hops.is_abroad or !target.haveOneOrigin(transfer.url, url);
        if (hops.is_abroad) if (transfer.route) |route| if (route.texts.client_cert != null) {
            gpa.free(url);
            return .{ .refused = "a redirect to another host is not followed with a client certificate" };
        };
        hops.lines.clearRetainingCapacity();
        for (headers) |line| if (!hops.is_abroad or redirect.travels(line)) try hops.lines.append(gpa, line);
        if (hops.url.len > 0) gpa.free(hops.url);
        hops.url = url;
        hops.count += 1;
        return .go;
    }

    /// Of `timeout_ms` for the attempt, what is left for the next hop; 0: no bound.
    pub fn leftMs(hops: *const Hops, timeout_ms: u32) u32 {
        if (timeout_ms == 0) return 0;
        const passed = (os.monotonicNs() -| hops.began_ns) / std.time.ns_per_ms;
        return @intCast(@max(1, @as(u64, timeout_ms) -| passed));
    }
};
