//! Requests as they arrive through the C ABI: what to send, how to read the answer, how long and how often to try.

const extract = @import("../json/extract.zig");
const retry = @import("retry.zig");
const template = @import("template.zig");

const Range = template.Range;
const Span = extract.Span;

/// C: gb_header
pub const Header = extern struct { name: Span, value: u32 };

pub const RequestFlags = packed struct(u32) {
    body: bool = false,
    rules_required: bool = false,
    keep_body: bool = false,
    insecure: bool = false,
    _: u28 = 0,
};

/// C: gb_request
pub const Request = extern struct {
    method: Span,
    url: u32,
    body: u32,
    headers: Range,
    rules: Range,
    flags: RequestFlags,
    connect_timeout_ms: u32,
    idle_timeout_ms: u32,
    total_timeout_ms: u32,
    retry: retry.Retry,
    body_bytes_max: u64,
    /// A cache.Cache; untyped, for this file knows none. Whoever makes the plan keeps it alive.
    cache: ?*anyopaque = null,
    wire_bytes_max: u64 = 0,
    first_byte_timeout_ms: u32 = 0,
    head_bytes_max: u32 = 0,
    event_bytes_max: u32 = 0,
    json_depth_max: u32 = 0,
    redirects_max: u32 = 0,
    /// Of `routes`, + 1; 0: none.
    route: u32 = 0,
    idempotency_header: Span = .{},
    /// A Stream.
    stream: u32 = 0,
    /// Of `admissions`, + 1; 0: none.
    admission: u32 = 0,
};

/// C: gb_admission
pub const Admission = extern struct {
    key: Span = .{},
    /// C: gb_admission_flags
    flags: u32 = 0,
    concurrency: u32 = 0,
    requests_per_minute: u32 = 0,
    queue_timeout_ms: u32 = 0,
    tokens_per_minute: u64 = 0,
};

/// C: gb_stream
pub const Stream = enum(u32) {
    /// The reply is read when it is whole.
    none = 0,
    /// Pieces of what the rules find.
    deltas = 1,
    /// The data of each event, or each line.
    events = 2,
    /// Whatever comes.
    bytes = 3,
};
