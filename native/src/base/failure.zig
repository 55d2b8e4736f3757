//! Why a request did not succeed: the one list that the half which sends and the half which decides about retries share.

/// C: gb_failure
pub const Failure = enum(u32) {
    none = 0,
    cancelled = 1,
    refused = 2,
    no_libcurl = 3,
    resolve = 4,
    connect = 5,
    tls = 6,
    connect_timeout = 7,
    idle_timeout = 8,
    total_timeout = 9,
    closed = 10,
    too_large = 11,
    protocol = 12,
    status = 13,
    bad_reply = 14,
    provider = 15,
    template = 16,
    out_of_memory = 17,
    shutdown = 18,
    other = 19,
    // Of nodes rather than requests:
    node_timeout = 20,
    none_left = 21,
    native = 22,
    // Of requests again:
    first_byte_timeout = 23,
    redirect = 24,
    not_public = 25,
    circuit_open = 26,
    queue_timeout = 27,
};
