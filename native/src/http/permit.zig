//! The leave to send one request, and what came of it. Pure.

const announced_file = @import("announced.zig");
const failure_file = @import("../base/failure.zig");

const Failure = failure_file.Failure;

/// C: gb_permit
pub const Permit = extern struct {
    sent_ns: u64 = 0,
    number: u64 = 0,
    input_tokens: u32 = 0,
    output_tokens: u32 = 0,
    /// On their way when it was sent, itself included.
    in_flight: u32 = 0,
    is_probe: u32 = 0,
};

/// C: gb_ending
pub const Ending = enum(u32) {
    /// A reply with a status below 500 that is no refusal: the caller's faults among them.
    answered,
    /// 429.
    limited,
    /// 503, 529.
    overloaded,
    /// Other 5xx, and whatever happened to the connection.
    fault,
    /// It says nothing about the server: cancelled, never sent, no memory here.
    unknown,

    /// `status`: of the reply, or what an error object inside a good one names.
    pub fn of(failure: Failure, status: u16) Ending {
        return switch (failure) {
            .none, .bad_reply, .too_large => .answered,
            .status, .provider => ofStatus(status),
            .resolve, .connect, .tls, .connect_timeout, .closed, .protocol => .fault,
            .first_byte_timeout, .idle_timeout, .total_timeout => .fault,
            .cancelled, .refused, .no_libcurl, .template, .out_of_memory, .shutdown, .other, .redirect, .not_public => .unknown,
            .circuit_open, .queue_timeout, .node_timeout, .none_left, .native => .unknown,
        };
    }

    pub fn ofStatus(status: u16) Ending {
        return switch (status) {
            429 => .limited,
            503, 529 => .overloaded,
            500...502, 504...528, 530...599 => .fault,
            else => .answered,
        };
    }
};

pub const Result = struct {
    ending: Ending,
    /// Nothing has reached the server.
    unsent: bool = false,
    retry_after_ms: i64 = -1,
    // -1: not said.
    input_tokens: i64 = -1,
    output_tokens: i64 = -1,
    /// Of what was sent.
    body_bytes: u64 = 0,
    /// From when it was sent to the first byte of its reply; 0: it says nothing about others.
    first_byte_ns: u64 = 0,
    announced: ?*const announced_file.Announced = null,
    /// See Transfer.broken_port.
    broken_port: u16 = 0,
    dice: u64 = 0,
};
