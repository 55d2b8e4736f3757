//! What a call sends, rendered: URL, headers, body.

const std = @import("std");
const plan_file = @import("graph/plan.zig");
const services_file = @import("services.zig");
const template = @import("graph/template.zig");

const Allocator = std.mem.Allocator;

pub const Outgoing = struct {
    url: std.ArrayList(u8) = .empty,
    header_text: std.ArrayList(u8) = .empty,
    headers: []const [:0]const u8 = &.{},
    body: std.ArrayList(u8) = .empty,

    pub fn deinit(outgoing: *Outgoing, gpa: Allocator) void {
        outgoing.url.deinit(gpa);
        outgoing.header_text.deinit(gpa);
        outgoing.body.deinit(gpa);
        gpa.free(outgoing.headers);
        outgoing.* = .{};
    }

    pub fn urlText(outgoing: *const Outgoing) [:0]const u8 {
        const url = outgoing.url.items;
        return url[0 .. url.len - 1 :0];
    }

    /// `values` are borrowed for this call. After a failure `deinit` frees what there is.
    pub fn render(
        outgoing: *Outgoing,
        services: *services_file.Services,
        plan: *const plan_file.Plan,
        request: *const plan_file.Request,
        values: template.Values,
        diagnostics: *template.Diagnostics,
    ) template.RenderError!void {
        const gpa = services.gpa;
        try template.render(plan.template_(request.url), plan.text, values, gpa, &outgoing.url, diagnostics);
        try outgoing.url.append(gpa, 0);
        if (request.flags.body) {
            try template.render(plan.template_(request.body), plan.text, values, gpa, &outgoing.body, diagnostics);
        }
        // Header lines lie behind each other in one buffer; slices are taken once it no longer moves.
        const rows = plan.headers[request.headers.first..][0..request.headers.count];
        const key_name = plan.string(request.idempotency_header);
        const count = rows.len + @intFromBool(key_name.len > 0);
        const ends = try gpa.alloc(usize, count);
        defer gpa.free(ends);
        const text = &outgoing.header_text;
        for (rows, ends[0..rows.len]) |row, *end| {
            try text.appendSlice(gpa, plan.string(row.name));
            try text.appendSlice(gpa, ": ");
            try template.render(plan.template_(row.value), plan.text, values, gpa, text, diagnostics);
            end.* = text.items.len;
            try text.append(gpa, 0);
        }
        if (key_name.len > 0) {
            // One for all attempts, and no other call's: a server that has done the work does not do it again.
            try text.print(gpa, "{s}: {x:0>16}{x:0>16}", .{ key_name, services.roll(), services.roll() });
            ends[rows.len] = text.items.len;
            try text.append(gpa, 0);
        }
        const lines = try gpa.alloc([:0]const u8, count);
        var from: usize = 0;
        for (lines, ends) |*line, end| {
            line.* = text.items[from..end :0];
            from = end + 1;
        }
        outgoing.headers = lines;
    }
};

/// Owned by the caller. Values have numbers in here; the binding puts names in their place.
pub fn describeTemplate(gpa: Allocator, err: template.RenderError, diagnostics: template.Diagnostics) error{OutOfMemory}![]u8 {
    const complaint = if (err == error.NotJson) "is not JSON, so it has no" else "has no";
    return gpa.print("value {d} {s} '{s}'", .{ diagnostics.source, complaint, diagnostics.path });
}
