//! Reading the head of a reply, line by line: status, fields, and when the server wants to be asked again. Pure functions.

const std = @import("std");

const ms_per_s = std.time.ms_per_s;

/// Whoever asks for more than a year is taken to mean a year.
pub const retry_after_ms_max: i64 = 365 * 24 * 60 * 60 * ms_per_s;

/// The status, if this is the line a head begins with.
pub fn status(line: []const u8) ?u16 {
    if (!std.mem.startsWith(u8, line, "HTTP/")) return null;
    const space = std.mem.findScalar(u8, line, ' ') orelse return null;
    const rest = std.mem.trimStart(u8, line[space..], " ");
    if (rest.len < 3) return null;
    return std.fmt.parseInt(u16, rest[0..3], 10) catch null;
}

pub const Field = struct { name: []const u8, value: []const u8 };

pub fn field(line: []const u8) ?Field {
    const colon = std.mem.findScalar(u8, line, ':') orelse return null;
    return .{ .name = line[0..colon], .value = std.mem.trim(u8, line[colon + 1 ..], " \t\r\n") };
}

/// A number of bytes: digits and nothing else.
pub fn decimal(value: []const u8) ?u64 {
    if (value.len == 0) return null;
    for (value) |digit| if (!std.ascii.isDigit(digit)) return null;
    return std.fmt.parseInt(u64, value, 10) catch null;
}

/// What kind of body is announced, as far as it decides how it is read.
pub const Media = enum {
    other,
    json,
    event_stream,
    /// A JSON document on each line.
    lines,

    /// Of a Content-Type, its parameters ignored.
    pub fn of(value: []const u8) Media {
        const name = std.mem.trim(u8, value[0 .. std.mem.findScalar(u8, value, ';') orelse value.len], " \t");
        const is = std.ascii.eqlIgnoreCase;
        if (is(name, "text/event-stream")) return .event_stream;
        for ([_][]const u8{ "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/stream+json" }) |it| {
            if (is(name, it)) return .lines;
        }
        if (is(name, "application/json") or std.ascii.endsWithIgnoreCase(name, "+json")) return .json;
        return .other;
    }
};

/// `Retry-After`: seconds (some servers send fractions) or a date. Null: not understood, or negative.
pub fn retryAfterMs(value: []const u8, now_s: i64) ?i64 {
    if (milliseconds(value, ms_per_s)) |ms| return ms;
    const at = date(value) orelse return null;
    return @min(@max(at - now_s, 0) *| ms_per_s, retry_after_ms_max);
}

/// A decimal number of units, each of `unit_ms`, such as "20" or "0.25". Null: it is no such number.
pub fn milliseconds(value: []const u8, unit_ms: u32) ?i64 {
    const whole, const fraction = std.mem.cutScalar(u8, value, '.') orelse .{ value, "0" };
    if (whole.len == 0 or fraction.len == 0) return null;
    var ms: i64 = 0;
    for (whole) |digit| {
        if (!std.ascii.isDigit(digit)) return null;
        ms = ms *| 10 +| @as(i64, digit - '0') *| unit_ms;
    }
    var part: i64 = unit_ms;
    for (fraction) |digit| {
        if (!std.ascii.isDigit(digit)) return null;
        part = @divTrunc(part, 10);
        ms +|= (digit - '0') * part;
    }
    return @min(ms, retry_after_ms_max);
}

/// Seconds since 1970 of an HTTP date in any of its three forms (RFC 9110, 5.6.7):
///     Sun, 06 Nov 1994 08:49:37 GMT      Sunday, 06-Nov-94 08:49:37 GMT      Sun Nov  6 08:49:37 1994
/// The parts tell themselves apart, so their order need not be known: a name of a month, a time with colons, a day of
/// one or two digits that comes before the year.
pub fn date(text: []const u8) ?i64 {
    var month: ?i64 = null;
    var day: ?i64 = null;
    var year: ?i64 = null;
    var seconds: ?i64 = null;
    var parts = std.mem.tokenizeAny(u8, text, " ,-");
    while (parts.next()) |part| {
        if (std.mem.findScalar(u8, part, ':') != null) {
            if (seconds != null) return null;
            seconds = timeOfDay(part) orelse return null;
        } else if (std.ascii.isDigit(part[0])) {
            const number = std.fmt.parseInt(u16, part, 10) catch return null;
            if (day == null) day = number else if (year == null) year = number else return null;
        } else if (month == null) month = monthNumber(part);
    }
    var y = year orelse return null;
    if (y < 100) y += if (y < 70) 2000 else 1900;
    const d = day orelse return null;
    if (d < 1 or d > 31 or y < 1970) return null;
    return daysSince1970(y, month orelse return null, d) * std.time.s_per_day + (seconds orelse return null);
}

/// Seconds since 1970 of a date as JSON documents have it: 2026-01-01T12:00:07Z, with a fraction or an offset as it comes.
pub fn dateOfRfc3339(text: []const u8) ?i64 {
    if (text.len < "2026-01-01T00:00:00Z".len or text[4] != '-' or text[7] != '-') return null;
    switch (text[10]) {
        'T', 't', ' ' => {},
        else => return null,
    }
    const year = decimal(text[0..4]) orelse return null;
    const month = decimal(text[5..7]) orelse return null;
    const day = decimal(text[8..10]) orelse return null;
    if (month < 1 or month > 12 or day < 1 or day > 31) return null;
    const seconds = timeOfDay(text[11..19]) orelse return null;
    var rest = text[19..];
    if (rest[0] == '.') rest = rest[1 + (std.mem.findNone(u8, rest[1..], "0123456789") orelse return null) ..];
    const offset_s: i64 = switch (rest[0]) {
        'Z', 'z' => if (rest.len == 1) 0 else return null,
        '+', '-' => if (rest.len == 6) (hoursAndMinutes(rest[1..]) orelse return null) * @as(i64, if (rest[0] == '-') -1 else 1) else return null,
        else => return null,
    };
    return daysSince1970(@intCast(year), @intCast(month), @intCast(day)) * std.time.s_per_day + seconds - offset_s;
}

fn hoursAndMinutes(text: []const u8) ?i64 {
    if (text[2] != ':') return null;
    const hours = decimal(text[0..2]) orelse return null;
    const minutes = decimal(text[3..5]) orelse return null;
    if (hours > 23 or minutes > 59) return null;
    return @intCast(hours * 3600 + minutes * 60);
}

fn timeOfDay(text: []const u8) ?i64 {
    var parts = std.mem.splitScalar(u8, text, ':');
    const limits = [_]i64{ 23, 59, 60 }; // 60: a leap second
    var seconds: i64 = 0;
    for (limits) |limit| {
        const number = std.fmt.parseInt(u8, parts.next() orelse return null, 10) catch return null;
        if (number > limit) return null;
        seconds = seconds * 60 + number;
    }
    return if (parts.next() == null) seconds else null;
}

fn monthNumber(text: []const u8) ?i64 {
    const names = [_][]const u8{ "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" };
    for (names, 1..) |name, number| if (std.ascii.eqlIgnoreCase(name, text)) return @intCast(number);
    return null;
}

/// Years that begin in March have their leap day at the end (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn daysSince1970(year: i64, month: i64, day: i64) i64 {
    const y = if (month <= 2) year - 1 else year;
    const day_of_year = @divTrunc(153 * @mod(month + 9, 12) + 2, 5) + day - 1;
    return 365 * y + @divTrunc(y, 4) - @divTrunc(y, 100) + @divTrunc(y, 400) + day_of_year - 719_468;
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "a status line is told from a field" {
    try testing.expectEqual(200, status("HTTP/1.1 200 OK\r\n"));
    try testing.expectEqual(503, status("HTTP/2 503\r\n"));
    try testing.expectEqual(null, status("HTTP/1.1 OK\r\n"));
    try testing.expectEqual(null, status("Server: HTTP/1.1 200\r\n"));
    const read = field("X-Request-ID:  a:b \r\n").?;
    try testing.expectEqualStrings("X-Request-ID", read.name);
    try testing.expectEqualStrings("a:b", read.value);
    try testing.expectEqual(null, field("\r\n"));
}

test "a length is digits and nothing else" {
    try testing.expectEqual(161, decimal("161"));
    for ([_][]const u8{ "", "+161", "161abc", "0xa1", "1_0", "-1", "1 1", "1" ++ @as([30]u8, @splat('0')) }) |wrong| {
        try testing.expectEqual(null, decimal(wrong));
    }
}

test "a content type is read without its parameters" {
    try testing.expectEqual(.event_stream, Media.of("Text/Event-Stream; charset=utf-8"));
    try testing.expectEqual(.json, Media.of("application/json"));
    try testing.expectEqual(.json, Media.of("application/problem+json;x=y"));
    try testing.expectEqual(.lines, Media.of("application/x-ndjson"));
    try testing.expectEqual(.other, Media.of("text/html"));
    try testing.expectEqual(.other, Media.of(""));
}

test "Retry-After in seconds, fractions and dates; nonsense is not understood, the far future is a year" {
    const now = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT
    const cases = [_]struct { []const u8, ?i64 }{
        .{ "0", 0 },
        .{ "120", 120_000 },
        .{ "1.5", 1_500 },
        .{ "0.0015", 1 },
        .{ "Sun, 06 Nov 1994 08:49:47 GMT", 10_000 },
        .{ "Sunday, 06-Nov-94 08:50:37 GMT", 60_000 },
        .{ "Sun Nov  6 08:49:38 1994", 1_000 },
        .{ "Sat, 05 Nov 1994 08:49:37 GMT", 0 }, // it has been
        .{ "Tue, 29 Feb 2400 00:00:00 GMT", retry_after_ms_max },
        .{ "99999999999999999999999999", retry_after_ms_max },
        .{ "-5", null },
        .{ "", null },
        .{ ".", null },
        .{ "1.", null },
        .{ "soon", null },
        .{ "12 s", null },
        .{ "Sun, 06 Nov 1994 08:49 GMT", null },
        .{ "Sun, 06 Nov 1994 25:49:37 GMT", null },
        .{ "Sun, 40 Nov 1994 08:49:37 GMT", null },
        .{ "Sun, 06 Nov 08:49:37 GMT", null },
    };
    for (cases) |case| {
        errdefer std.debug.print("'{s}'\n", .{case[0]});
        try testing.expectEqual(case[1], retryAfterMs(case[0], now));
    }
    try testing.expectEqual(250, milliseconds("250", 1));
    try testing.expectEqual(null, milliseconds("0x10", 1));
}

test "days are counted as std counts them" {
    const random = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{random});
    var prng = std.Random.DefaultPrng.init(random);
    for (0..500) |_| {
        const second = prng.random().uintLessThan(u64, 8_000_000_000);
        const epoch: std.time.epoch.EpochSeconds = .{ .secs = second };
        const year_day = epoch.getEpochDay().calculateYearDay();
        const month_day = year_day.calculateMonthDay();
        const days = daysSince1970(year_day.year, month_day.month.numeric(), @as(i64, month_day.day_index) + 1);
        try testing.expectEqual(@as(i64, @intCast(second / std.time.s_per_day)), days);
    }
}

test "whatever comes over the wire, reading it does no harm" {
    const random = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{random});
    var prng = std.Random.DefaultPrng.init(random);
    const alphabet = "0123456789 :.,-GMTNov\r\nHTTP/x";
    var text: [40]u8 = undefined;
    for (0..20_000) |_| {
        const line = text[0..prng.random().uintAtMost(usize, text.len)];
        for (line) |*byte| byte.* = alphabet[prng.random().uintLessThan(usize, alphabet.len)];
        _ = status(line);
        _ = field(line);
        if (retryAfterMs(line, 784_111_777)) |ms| try testing.expect(ms >= 0 and ms <= retry_after_ms_max);
    }
}
