//! How many tokens a reply says it has used, found in its bytes as they pass, whatever else is in them: for replies that nobody here
//! reads. The names are OpenAI's and Anthropic's: the last number of each counts, for a stream tells running ones. In the text of an
//! answer a quote is written as \", so what a model says is not taken for usage. Pure.

const std = @import("std");

/// Longer than a name and its number.
const carry_bytes = 96;
const mark = "_tokens\"";

pub const Usage = struct {
    // -1: not said.
    input: i64 = -1,
    output: i64 = -1,
    carry: [carry_bytes]u8 = undefined,
    carried: usize = 0,

    /// The next bytes of a body. A name or a number may be cut anywhere.
    pub fn take(usage: *Usage, bytes: []const u8) void {
        var seam: [2 * carry_bytes]u8 = undefined;
        const head = bytes[0..@min(bytes.len, carry_bytes)];
        @memcpy(seam[0..usage.carried], usage.carry[0..usage.carried]);
        @memcpy(seam[usage.carried..][0..head.len], head);
        usage.scan(seam[0 .. usage.carried + head.len]);
        if (bytes.len > head.len) usage.scan(bytes);
        const whole = if (bytes.len >= carry_bytes) bytes else seam[0 .. usage.carried + head.len];
        usage.carried = @min(whole.len, carry_bytes);
        std.mem.copyForwards(u8, usage.carry[0..usage.carried], whole[whole.len - usage.carried ..]);
    }

    fn scan(usage: *Usage, bytes: []const u8) void {
        var from: usize = 0;
        while (std.mem.findPos(u8, bytes, from, mark)) |at| {
            from = at + mark.len;
            const quote = std.mem.findScalarLast(u8, bytes[0..at], '"') orelse continue;
            if (quote > 0 and bytes[quote - 1] == '\\') continue;
            const name = bytes[quote + 1 .. at];
            const is_input = is(name, "prompt") or is(name, "input");
            if (!is_input and !is(name, "completion") and !is(name, "output")) continue;
            const number = numberAt(bytes[from..]) orelse continue;
            if (is_input) usage.input = number else usage.output = number;
        }
    }

    fn is(name: []const u8, other: []const u8) bool {
        return std.mem.eql(u8, name, other);
    }

    /// Null: none, or it may go on beyond these bytes.
    fn numberAt(bytes: []const u8) ?i64 {
        const rest = std.mem.trimStart(u8, bytes, " \t\r\n");
        if (rest.len == 0 or rest[0] != ':') return null;
        const digits = std.mem.trimStart(u8, rest[1..], " \t\r\n");
        const end = std.mem.findNone(u8, digits, "0123456789") orelse return null;
        return std.fmt.parseInt(u32, digits[0..end], 10) catch null;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "usage is found wherever the bytes are cut" {
    const cases = [_]struct { []const u8, i64, i64 }{
        .{ "{\"usage\":{\"prompt_tokens\":12,\"completion_tokens\": 34,\"prompt_tokens_details\":{\"cached_tokens\":9}}}", 12, 34 },
        .{ "data: {\"message\":{\"usage\":{\"input_tokens\":5,\"cache_read_input_tokens\":7,\"output_tokens\":1}}}\n\ndata: {\"usage\":{\"output_tokens\" : 88}}\n", 5, 88 },
        .{ "{\"content\":\"say \\\"prompt_tokens\\\":99 \",\"x\":1}", -1, -1 },
        .{ "{\"completion_tokens\":\"many\",\"prompt_tokens\":}", -1, -1 },
        .{ "", -1, -1 },
    };
    for (cases) |case| for (1..case[0].len + 2) |piece| {
        var usage: Usage = .{};
        var rest = case[0];
        while (rest.len > 0) {
            const length = @min(piece, rest.len);
            usage.take(rest[0..length]);
            rest = rest[length..];
        }
        try testing.expectEqual(case[1], usage.input);
        try testing.expectEqual(case[2], usage.output);
    };
}

test "a long body is no trouble, whatever is in it" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    const alphabet = "_tokens\":0 123promptinput\\";
    var text: [3_000]u8 = undefined;
    for (0..200) |_| {
        for (&text) |*byte| byte.* = alphabet[prng.random().uintLessThan(usize, alphabet.len)];
        var usage: Usage = .{};
        var from: usize = 0;
        while (from < text.len) {
            const length = @min(text.len - from, prng.random().uintAtMost(usize, 300));
            usage.take(text[from..][0..length]);
            from += length;
            if (length == 0) from += 1;
        }
    }
}
