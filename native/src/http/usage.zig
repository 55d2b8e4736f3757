//! How many tokens a reply says it has used, found in its bytes as they pass, whatever else is in them: for replies that nobody here
//! reads. The names are OpenAI's and Anthropic's: the last number of each counts, for a stream tells running ones. In the text of an
//! answer a quote is written as \", so what a model says is not taken for usage. Pure.

const std = @import("std");

const flate = std.compress.flate;
/// Reads memory here, nothing else.
const Reader = @FieldType(flate.Decompress, "reader");

/// Of a body that gzip has made larger than that nothing is looked for behind it.
const unpacked_max = 1 << 20;
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

    /// A whole body that was packed with gzip. What is none says nothing.
    pub fn takePacked(usage: *Usage, gpa: std.mem.Allocator, packed_bytes: []const u8) error{OutOfMemory}!void {
        const window = try gpa.alloc(u8, flate.max_window_len);
        defer gpa.free(window);
        var input: Reader = .fixed(packed_bytes);
        var unpacking: flate.Decompress = .init(&input, .gzip, window);
        var piece: [4096]u8 = undefined;
        var count: usize = 0;
        while (count < unpacked_max) {
            const length = unpacking.reader.readSliceShort(&piece) catch return;
            if (length == 0) return;
            usage.take(piece[0..length]);
            count += length;
        }
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

test "what gzip has packed is unpacked, as far as it is whole" {
    const body = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\xce\xc8\xcf\x4c\x4e\x2d\x56\xb2\x52\x88\xae\x56\xca\x4d\x2d\x2e\x4e\x4c\x4f\x05\x72\xaa\x95\x92\xf3\xf3\x4a\x52\xf3\x4a\x80\x6c\xa5\x8a\x61\x02\x94\x6a\x6b\x63\x75\x14\x94\x4a\xe1\x7e\x2c\x28\xca\xcf\x2d\x28\x89\x2f\xc9\xcf\x4e\xcd\x03\x05\x81\xa1\x11\x50\x3a\x19\x28\x96\x93\x5a\x92\x99\x9f\x87\x90\x30\x36\xa9\xad\x05\x00\xff\x07\x0f\xf9\x2c\x01\x00\x00";
    for (0..body.len + 1) |length| {
        var usage: Usage = .{};
        try usage.takePacked(testing.allocator, body[0..length]);
        if (length == body.len) try testing.expectEqual(12, usage.input);
        if (length == body.len) try testing.expectEqual(34, usage.output);
    }
    var noise: [300]u8 = undefined;
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    for (0..300) |i| {
        prng.random().bytes(&noise);
        if (i % 2 == 0) @memcpy(noise[0..60], body[0..60]);
        var usage: Usage = .{};
        try usage.takePacked(testing.allocator, &noise);
    }
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
