//! libcurl, as far as we use it: declarations by hand, and one table of function pointers. The only file that knows libcurl.
//!
//! The table is filled from the libcurl installed on the machine (`Table.load`), or, in a build with
//! `-Dcurl=static`, from the libcurl compiled into the core. Nothing else differs between the two.
//! Numbers are libcurl's ABI and never change; they are checked against curl/curl.h of 8.21.

const std = @import("std");
const options = @import("build_options");
const os = @import("../base/os.zig");
const sync = @import("../base/sync.zig");

pub const Easy = opaque {};
pub const Multi = opaque {};
pub const Share = opaque {};
pub const Url = opaque {};

/// A list of header lines. libcurl only reads it, so its nodes may lie anywhere.
pub const List = extern struct { data: [*:0]const u8, next: ?*List };

pub const Message = extern struct {
    kind: c_int, // message_done
    easy: *Easy,
    data: extern union { whatever: ?*anyopaque, code: c_int },
};
pub const message_done: c_int = 1;

pub const VersionInfo = extern struct {
    age: c_int,
    version: ?[*:0]const u8,
    version_num: c_uint,
    host: ?[*:0]const u8,
    features: c_int,
    ssl_version: ?[*:0]const u8,
    // What follows is not looked at.
};
const version_first: c_int = 0;

/// 7.76.0: the oldest one whose multi interface, URL parser and option types we rely on.
pub const version_oldest: c_uint = 0x074c00;

pub const ok: c_int = 0;
/// What a write callback returns to end the transfer. (Any number but the one it was given does.)
pub const write_error: usize = 0xffff_ffff;
/// What a write callback returns to be given the same bytes again, once `curl_easy_pause` says that the transfer goes on.
pub const write_pause: usize = 0x1000_0001;
pub const pause_none: c_int = 0;
pub const pause_receive: c_int = 1;
pub const pause_send: c_int = 4;
/// What a read callback returns to end the transfer, and to be asked again once `curl_easy_pause` says that it goes on.
pub const read_abort: usize = 0x1000_0000;
pub const read_pause: usize = 0x1000_0001;
/// What a socket-option callback returns to end the transfer.
pub const sockopt_error: c_int = 1;
pub const global_all: c_long = 3;
pub const socket_none: os.Socket = std.math.maxInt(os.Socket) - (if (@typeInfo(os.Socket).int.signedness == .signed) std.math.maxInt(os.Socket) + 1 else 0);

/// CURL_POLL_*: what libcurl wants to know of a socket.
pub const poll_in: c_int = 1;
pub const poll_out: c_int = 2;
pub const poll_remove: c_int = 4;
/// CURL_CSELECT_*: what happened on a socket.
pub const select_in: c_int = 1;
pub const select_out: c_int = 2;
pub const select_error: c_int = 4;

pub const http_1_1: c_long = 2;
pub const http_2_tls: c_long = 4;
/// What CURLINFO_HTTP_VERSION says of a reply over HTTP/2.
pub const http_2: c_long = 3;
pub const protocols_http_https: c_long = 1 | 2;

pub const tls_1_2: c_long = 6;

pub const Option = struct {
    pub const writedata: c_int = 10001;
    pub const url: c_int = 10002;
    pub const proxy: c_int = 10004;
    pub const errorbuffer: c_int = 10010;
    pub const postfields: c_int = 10015;
    pub const useragent: c_int = 10018;
    pub const httpheader: c_int = 10023;
    pub const sslcert: c_int = 10025;
    pub const keypasswd: c_int = 10026;
    pub const headerdata: c_int = 10029;
    pub const sslversion: c_int = 32;
    pub const customrequest: c_int = 10036;
    pub const nobody: c_int = 44;
    pub const post: c_int = 47;
    pub const ssl_verifypeer: c_int = 64;
    pub const cainfo: c_int = 10065;
    pub const fresh_connect: c_int = 74;
    pub const forbid_reuse: c_int = 75;
    pub const httpget: c_int = 80;
    pub const ssl_verifyhost: c_int = 81;
    pub const http_version: c_int = 84;
    pub const sslkey: c_int = 10087;
    pub const capath: c_int = 10097;
    pub const buffersize: c_int = 98;
    pub const nosignal: c_int = 99;
    pub const share: c_int = 10100;
    pub const accept_encoding: c_int = 10102;
    pub const private: c_int = 10103;
    pub const postfieldsize_large: c_int = 30120;
    pub const tcp_nodelay: c_int = 121;
    pub const sockoptdata: c_int = 10149;
    pub const timeout_ms: c_int = 155;
    pub const connecttimeout_ms: c_int = 156;
    pub const opensocketdata: c_int = 10164;
    pub const noproxy: c_int = 10177;
    pub const protocols: c_int = 181;
    pub const closesocketdata: c_int = 10209;
    pub const tcp_keepalive: c_int = 213;
    pub const pipewait: c_int = 237;
    pub const proxy_cainfo: c_int = 10246;
    pub const proxy_capath: c_int = 10247;
    pub const suppress_connect_headers: c_int = 265;
    pub const quick_exit: c_int = 322;
    pub const readdata: c_int = 10009;
    pub const http_content_decoding: c_int = 158;
    pub const path_as_is: c_int = 234;
    pub const request_target: c_int = 10266;
    pub const writefunction: c_int = 20011;
    pub const readfunction: c_int = 20012;
    pub const headerfunction: c_int = 20079;
    pub const sockoptfunction: c_int = 20148;
    pub const opensocketfunction: c_int = 20163;
    pub const closesocketfunction: c_int = 20208;
};

pub const MultiOption = struct {
    pub const socketfunction: c_int = 20001;
    pub const socketdata: c_int = 10002;
    pub const timerfunction: c_int = 20004;
    pub const timerdata: c_int = 10005;
    pub const maxconnects: c_int = 6;
    pub const max_host_connections: c_int = 7;
    pub const max_total_connections: c_int = 13;
    pub const quick_exit: c_int = 21;
};

pub const ShareOption = struct {
    pub const share: c_int = 1;
    pub const data_dns: c_int = 3;
    pub const data_ssl_session: c_int = 4;
};

pub const Info = struct {
    pub const private: c_int = 0x100000 + 21;
    pub const http_version: c_int = 0x200000 + 46;
    /// Bytes sent: the head and, depending on version and size, the body.
    pub const request_size: c_int = 0x200000 + 12;
    /// CURLINFO_HEADER_SIZE: heads received.
    pub const header_size: c_int = 0x200000 + 11;
    /// Body bytes sent.
    pub const size_upload: c_int = 0x600000 + 7;
    /// Body bytes as they came over the wire, before decoding.
    pub const size_download: c_int = 0x600000 + 8;
    /// This side's port of the connection that was used last.
    pub const local_port: c_int = 0x200000 + 42;
    /// The socket of the connection that the handle's last transfer left in the pool; none otherwise.
    pub const active_socket: c_int = 0x500000 + 44;
    /// Microseconds from the start until the request is about to be sent; 0 before that.
    pub const pretransfer_time: c_int = 0x600000 + 53;
};

pub const WriteFunction = fn ([*]const u8, usize, usize, *anyopaque) callconv(.c) usize;
pub const SocketFunction = fn (*Easy, os.Socket, c_int, *anyopaque, ?*anyopaque) callconv(.c) c_int;
pub const TimerFunction = fn (*Multi, c_long, *anyopaque) callconv(.c) c_int;
/// C: curl_sockaddr
pub const SocketAddress = extern struct {
    family: c_int,
    kind: c_int,
    protocol: c_int,
    length: c_uint,
    address: [os.address_bytes_max]u8 align(@alignOf(usize)),
};
pub const OpenSocketFunction = fn (*anyopaque, c_int, *SocketAddress) callconv(.c) os.Socket;
pub const SocketOptionFunction = fn (*anyopaque, os.Socket, c_int) callconv(.c) c_int;
pub const CloseSocketFunction = fn (*anyopaque, os.Socket) callconv(.c) c_int;

/// CURLcode. The numbers without a name are obsolete or belong to protocols that are refused.
pub const Code = enum(c_int) {
    ok = 0,
    unsupported_protocol = 1,
    failed_init = 2,
    url_malformat = 3,
    not_built_in = 4,
    couldnt_resolve_proxy = 5,
    couldnt_resolve_host = 6,
    couldnt_connect = 7,
    weird_server_reply = 8,
    remote_access_denied = 9,
    http2 = 16,
    partial_file = 18,
    http_returned_error = 22,
    write_error = 23,
    upload_failed = 25,
    read_error = 26,
    out_of_memory = 27,
    operation_timedout = 28,
    range_error = 33,
    ssl_connect_error = 35,
    bad_download_resume = 36,
    aborted_by_callback = 42,
    bad_function_argument = 43,
    interface_failed = 45,
    too_many_redirects = 47,
    unknown_option = 48,
    setopt_option_syntax = 49,
    got_nothing = 52,
    ssl_engine_notfound = 53,
    ssl_engine_setfailed = 54,
    send_error = 55,
    recv_error = 56,
    ssl_certproblem = 58,
    ssl_cipher = 59,
    peer_failed_verification = 60,
    bad_content_encoding = 61,
    filesize_exceeded = 63,
    use_ssl_failed = 64,
    send_fail_rewind = 65,
    ssl_engine_initfailed = 66,
    login_denied = 67,
    ssl_cacert_badfile = 77,
    ssl_shutdown_failed = 80,
    again = 81,
    ssl_crl_badfile = 82,
    ssl_issuer_error = 83,
    no_connection_available = 89,
    ssl_pinnedpubkeynotmatch = 90,
    ssl_invalidcertstatus = 91,
    http2_stream = 92,
    recursive_api_call = 93,
    auth_error = 94,
    http3 = 95,
    quic_connect_error = 96,
    proxy = 97,
    ssl_clientcert = 98,
    unrecoverable_poll = 99,
    too_large = 100,
    ech_required = 101,
    _,
};

/// The functions, under libcurl's own names: a field's name is the symbol it is filled from.
pub const Table = struct {
    curl_global_init: *const fn (c_long) callconv(.c) c_int,
    curl_version_info: *const fn (c_int) callconv(.c) *const VersionInfo,
    curl_easy_init: *const fn () callconv(.c) ?*Easy,
    curl_easy_cleanup: *const fn (*Easy) callconv(.c) void,
    curl_easy_setopt: *const fn (*Easy, c_int, ...) callconv(.c) c_int,
    curl_easy_getinfo: *const fn (*Easy, c_int, ...) callconv(.c) c_int,
    curl_easy_pause: *const fn (*Easy, c_int) callconv(.c) c_int,
    curl_easy_strerror: *const fn (c_int) callconv(.c) [*:0]const u8,
    curl_multi_init: *const fn () callconv(.c) ?*Multi,
    curl_multi_cleanup: *const fn (*Multi) callconv(.c) c_int,
    curl_multi_setopt: *const fn (*Multi, c_int, ...) callconv(.c) c_int,
    curl_multi_add_handle: *const fn (*Multi, *Easy) callconv(.c) c_int,
    curl_multi_remove_handle: *const fn (*Multi, *Easy) callconv(.c) c_int,
    curl_multi_socket_action: *const fn (*Multi, os.Socket, c_int, *c_int) callconv(.c) c_int,
    curl_multi_info_read: *const fn (*Multi, *c_int) callconv(.c) ?*Message,
    curl_share_init: *const fn () callconv(.c) ?*Share,
    curl_share_cleanup: *const fn (*Share) callconv(.c) c_int,
    curl_share_setopt: *const fn (*Share, c_int, ...) callconv(.c) c_int,
    curl_url: *const fn () callconv(.c) ?*Url,
    curl_url_cleanup: *const fn (*Url) callconv(.c) void,
    curl_url_set: *const fn (*Url, c_int, ?[*:0]const u8, c_uint) callconv(.c) c_int,
    curl_url_get: *const fn (*Url, c_int, *?[*:0]u8, c_uint) callconv(.c) c_int,
    curl_free: *const fn (*anyopaque) callconv(.c) void,

    pub const LoadError = error{ NotFound, TooOld, Refused };

    /// What to tell the user when there is no libcurl to be had.
    pub const remedy = "install the package 'libcurl4' (Debian, Ubuntu), 'libcurl' (Fedora, Alpine) or 'curl' (Arch); " ++
        "macOS and Windows 10 ship it";

    /// Finds and initialises libcurl. Calls from several threads must not overlap. What was loaded stays: resolver threads
    /// that libcurl detached may still be inside it.
    pub fn load() LoadError!Table {
        const table = if (options.curl_static) fromStatic() else fromLibrary(os.Library.open(os.libcurl_names) orelse return error.NotFound) orelse
            return error.TooOld;
        if (table.curl_version_info(version_first).version_num < version_oldest) return error.TooOld;
        if (table.curl_global_init(global_all) != ok) return error.Refused;
        return table;
    }

    /// The one of this process; loaded by whoever asks first. Any thread.
    pub fn shared() LoadError!*const Table {
        shared_mutex.lock();
        defer shared_mutex.unlock();
        if (shared_result == null) shared_result = load();
        return if (shared_result.?) |*table| table else |err| err;
    }
    var shared_mutex: sync.Mutex = .init;
    var shared_result: ?LoadError!Table = null;

    fn fromStatic() Table {
        var table: Table = undefined;
        inline for (@typeInfo(Table).@"struct".field_names) |name| {
            @field(table, name) = @extern(@FieldType(Table, name), .{ .name = name });
        }
        return table;
    }

    fn fromLibrary(library: os.Library) ?Table {
        var table: Table = undefined;
        inline for (@typeInfo(Table).@"struct".field_names) |name| {
            const symbol = library.symbol(name) orelse return null;
            @field(table, name) = @ptrCast(@alignCast(symbol));
        }
        return table;
    }

    pub fn version(table: *const Table) ?[*:0]const u8 {
        return table.curl_version_info(version_first).version;
    }

    pub const ResolveError = error{ OutOfMemory, BadUrl };

    /// Where `reference` leads from `base` (RFC 3986, 5.2), without user and password. The caller's to free.
    pub fn resolve(table: *const Table, gpa: std.mem.Allocator, base: [:0]const u8, reference: [:0]const u8) ResolveError![:0]u8 {
        const url_part = 0;
        const user_part = 2;
        const password_part = 3;
        const url = table.curl_url() orelse return error.OutOfMemory;
        defer table.curl_url_cleanup(url);
        if (table.curl_url_set(url, url_part, base.ptr, 0) != ok) return error.BadUrl;
        // Many servers do not encode what they should.
        if (table.curl_url_set(url, url_part, reference.ptr, url_encode) != ok) return error.BadUrl;
        _ = table.curl_url_set(url, user_part, null, 0);
        _ = table.curl_url_set(url, password_part, null, 0);
        var text: ?[*:0]u8 = null;
        if (table.curl_url_get(url, url_part, &text, 0) != ok) return error.BadUrl;
        defer table.curl_free(text.?);
        return gpa.dupeSentinel(u8, std.mem.span(text.?), 0);
    }
    const url_encode: c_uint = 1 << 7;

    // Options by type, as C's variadic functions need them. They return whether libcurl took the value.

    pub fn setNumber(table: *const Table, easy: *Easy, option: c_int, value: c_long) bool {
        return table.curl_easy_setopt(easy, option, value) == ok;
    }

    pub fn setSize(table: *const Table, easy: *Easy, option: c_int, value: i64) bool {
        return table.curl_easy_setopt(easy, option, value) == ok;
    }

    pub fn setPointer(table: *const Table, easy: *Easy, option: c_int, value: ?*const anyopaque) bool {
        return table.curl_easy_setopt(easy, option, value) == ok;
    }

    pub fn setText(table: *const Table, easy: *Easy, option: c_int, value: ?[*:0]const u8) bool {
        return table.curl_easy_setopt(easy, option, value) == ok;
    }

    pub fn number(table: *const Table, easy: *Easy, info: c_int) u64 {
        var value: c_long = 0;
        if (table.curl_easy_getinfo(easy, info, &value) != ok) return 0;
        return @intCast(@max(value, 0));
    }

    pub fn size(table: *const Table, easy: *Easy, info: c_int) u64 {
        var value: i64 = 0;
        if (table.curl_easy_getinfo(easy, info, &value) != ok) return 0;
        return @intCast(@max(value, 0));
    }

    pub fn activeSocket(table: *const Table, easy: *Easy) os.Socket {
        var value: os.Socket = socket_none;
        if (table.curl_easy_getinfo(easy, Info.active_socket, &value) != ok) return socket_none;
        return value;
    }

    pub fn private(table: *const Table, easy: *Easy) ?*anyopaque {
        var value: ?*anyopaque = null;
        if (table.curl_easy_getinfo(easy, Info.private, &value) != ok) return null;
        return value;
    }
};

test "the libcurl of this machine is found and new enough" {
    const table = try Table.load();
    try std.testing.expect(table.curl_version_info(version_first).version_num >= version_oldest);
    const easy = table.curl_easy_init().?;
    defer table.curl_easy_cleanup(easy);
    var word: u32 = 7;
    try std.testing.expect(table.setPointer(easy, Option.private, &word));
    try std.testing.expectEqual(@as(?*anyopaque, &word), table.private(easy));
}

test "a reference is resolved, and loses user and password" {
    const table = try Table.load();
    for ([_][3][:0]const u8{
        .{ "http://a.example/b/c?d", "../e?f", "http://a.example/e?f" },
        .{ "http://a.example/b", "https://u:p@c.example:8443/x y", "https://c.example:8443/x%20y" },
        .{ "https://u:p@a.example/b/", "//c.example/d", "https://c.example/d" },
        .{ "http://a.example", "?q", "http://a.example/?q" },
    }) |case| {
        const found = try table.resolve(std.testing.allocator, case[0], case[1]);
        defer std.testing.allocator.free(found);
        try std.testing.expectEqualStrings(case[2], found);
    }
    try std.testing.expectError(error.BadUrl, table.resolve(std.testing.allocator, "http://a/", "http://[::"));
}

test "no socket is libcurl's CURL_SOCKET_BAD" {
    if (@typeInfo(os.Socket).int.signedness == .signed) {
        try std.testing.expectEqual(-1, socket_none);
    } else {
        try std.testing.expectEqual(std.math.maxInt(os.Socket), socket_none);
    }
}
