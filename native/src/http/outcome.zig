//! What libcurl's codes mean to a caller: is it worth another attempt, and whom to ask.

const std = @import("std");
const curl = @import("curl.zig");
const Failure = @import("transfer.zig").Failure;

/// `words`: libcurl's, for what one code is told of several things; `in_head`: the reply's head has begun and not ended.
pub fn failureOf(code: c_int, words: []const u8, in_head: bool) Failure {
    const has = struct {
        fn has(text: []const u8, part: []const u8) bool {
            return std.ascii.findIgnoreCase(text, part) != null;
        }
    }.has;
    switch (@as(curl.Code, @fromBackingInt(code))) {
        // A connection that broke while TLS was being agreed on says nothing about trust.
        .ssl_connect_error => if (has(words, "SSL_ERROR_SYSCALL") or has(words, "reset by peer") or has(words, "unexpected eof") or
            has(words, "terminated")) return .closed,
        .recv_error, .send_error => {
            if (has(words, "Too large response headers")) return .too_large;
            if (has(words, "chunk")) return .protocol;
            if (has(words, "alert") and has(words, "certificate")) return .tls; // TLS 1.3 asks for ours after it has agreed
        },
        .out_of_memory => if (in_head) return .too_large, // a line that libcurl does not keep
        else => {},
    }
    return switch (@as(curl.Code, @fromBackingInt(code))) {
        .ok => .none,
        .url_malformat => .refused,
        .couldnt_resolve_proxy, .couldnt_resolve_host => .resolve,
        // Ours are told apart before libcurl's own, long one for connecting runs out.
        .operation_timedout => .connect_timeout,
        .couldnt_connect, .interface_failed, .proxy, .quic_connect_error, .no_connection_available => .connect,
        .ssl_connect_error, .ssl_engine_notfound, .ssl_engine_setfailed, .ssl_certproblem, .ssl_cipher => .tls,
        .peer_failed_verification, .use_ssl_failed, .ssl_engine_initfailed, .ssl_cacert_badfile, .ssl_shutdown_failed => .tls,
        .ssl_crl_badfile, .ssl_issuer_error, .ssl_pinnedpubkeynotmatch, .ssl_invalidcertstatus, .ssl_clientcert => .tls,
        .ech_required => .tls,
        .partial_file, .got_nothing, .send_error, .recv_error, .send_fail_rewind, .upload_failed => .closed,
        // A server that closes an HTTP/2 connection with streams left is reported in either way.
        .http2, .http2_stream => .closed,
        .filesize_exceeded, .too_large => .too_large,
        // "unsupported protocol" is also how an answer that is no HTTP is reported: schemes were checked before.
        .unsupported_protocol, .weird_server_reply, .http3, .bad_content_encoding, .range_error => .protocol,
        .out_of_memory => .out_of_memory,
        // Ours are told before: what is left is a body that cannot be decoded.
        .write_error => .protocol,
        .failed_init, .not_built_in, .remote_access_denied, .http_returned_error, .read_error => .other,
        .bad_download_resume, .aborted_by_callback, .bad_function_argument, .too_many_redirects, .unknown_option => .other,
        .setopt_option_syntax, .login_denied, .again, .recursive_api_call, .auth_error, .unrecoverable_poll => .other,
        _ => .other,
    };
}

pub fn missingText(err: curl.Table.LoadError) []const u8 {
    return switch (err) {
        error.NotFound => "libcurl was not found: " ++ curl.Table.remedy,
        error.TooOld => "the installed libcurl is older than 7.76: " ++ curl.Table.remedy,
        error.Refused => "the installed libcurl could not be initialised: " ++ curl.Table.remedy,
    };
}

test "every code but 0 is a failure, and what cannot be known is 'other'" {
    try std.testing.expectEqual(.none, failureOf(0, "", false));
    for (1..200) |code| try std.testing.expect(failureOf(@intCast(code), "", false) != .none);
    try std.testing.expectEqual(.closed, failureOf(52, "", false));
    try std.testing.expectEqual(.tls, failureOf(60, "", false));
    try std.testing.expectEqual(.other, failureOf(-1, "", false));
}
