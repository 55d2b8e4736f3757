//! Native functions: C functions of the user's that workers call, as plans name them (gb_native in the header). They get numbers
//! or bytes and give numbers or bytes; what they do meanwhile is their own affair, and nobody holds the interpreter.

const std = @import("std");
const plan_file = @import("graph/plan.zig");
const reader = @import("json/reader.zig");
const template = @import("graph/template.zig");

const Allocator = std.mem.Allocator;
const Native = plan_file.Native;
const Value = template.Value;
const Values = template.Values;

pub const Error = error{ OutOfMemory, NotANumber, Failed, NeverEnough };

/// What went wrong: which argument is no number, or the function's code.
pub const Diagnostics = struct { argument: u32 = 0, code: i64 = 0 };

/// Calls it. Bytes in the result are the caller's to free.
pub fn call(gpa: Allocator, native: *const Native, values: Values, diagnostics: *Diagnostics) Error!Value {
    const function = native.function.?; // checked by the plan
    const arguments = native.arguments[0..native.argument_count];
    switch (@as(plan_file.NativeKind, @fromBackingInt(native.kind))) {
        .void => {
            const f: *const fn () callconv(.c) void = @ptrCast(@alignCast(function));
            f();
            return .{};
        },
        .numbers => {
            var numbers: [8]f64 = undefined;
            for (arguments, 0..) |source, i| {
                numbers[i] = numberOf(values.at(source)) orelse {
                    diagnostics.argument = @intCast(i);
                    return error.NotANumber;
                };
            }
            return .number(callNumbers(function, numbers[0..arguments.len]));
        },
        .bytes => {
            const f: *const fn (?[*]const u8, usize, [*]u8, usize) callconv(.c) i64 = @ptrCast(@alignCast(function));
            const in: []const u8 = if (arguments.len > 0) values.at(arguments[0]).bytes() else &.{};
            var out = try gpa.alloc(u8, @intCast(@max(1, native.out_capacity)));
            errdefer gpa.free(out);
            for (0..2) |_| {
                const wanted = f(in.ptr, in.len, out.ptr, out.len);
                if (wanted < 0) {
                    diagnostics.code = wanted;
                    return error.Failed;
                }
                const length: usize = @intCast(wanted);
                if (length <= out.len) return .of(.bytes, try gpa.realloc(out, length));
                gpa.free(out);
                out = &.{};
                out = try gpa.alloc(u8, length);
            }
            diagnostics.code = @intCast(out.len);
            return error.NeverEnough;
        },
    }
}

fn callNumbers(function: *const anyopaque, n: []const f64) f64 {
    return switch (n.len) {
        inline 0...8 => |count| {
            const F = switch (count) {
                0 => fn () callconv(.c) f64,
                1 => fn (f64) callconv(.c) f64,
                2 => fn (f64, f64) callconv(.c) f64,
                3 => fn (f64, f64, f64) callconv(.c) f64,
                4 => fn (f64, f64, f64, f64) callconv(.c) f64,
                5 => fn (f64, f64, f64, f64, f64) callconv(.c) f64,
                6 => fn (f64, f64, f64, f64, f64, f64) callconv(.c) f64,
                7 => fn (f64, f64, f64, f64, f64, f64, f64) callconv(.c) f64,
                8 => fn (f64, f64, f64, f64, f64, f64, f64, f64) callconv(.c) f64,
                else => comptime unreachable,
            };
            const f: *const F = @ptrCast(@alignCast(function));
            var given: std.meta.ArgsTuple(F) = undefined;
            inline for (0..count) |i| given[i] = n[i];
            return @call(.auto, f, given);
        },
        else => unreachable, // checked by the plan
    };
}

/// A number as it is, or one written as text or JSON.
pub fn numberOf(value: Value) ?f64 {
    return switch (value.kind) {
        .none, .bytes => null,
        .number => value.asNumber(),
        .text, .json => std.fmt.parseFloat(f64, std.mem.trim(u8, value.bytes(), " \t\r\n")) catch null,
    };
}

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn hypotenuse(a: f64, b: f64) callconv(.c) f64 {
    return @sqrt(a * a + b * b);
}

fn reversed(in: ?[*]const u8, in_length: usize, out: [*]u8, out_capacity: usize) callconv(.c) i64 {
    if (in_length == 0) return -7;
    if (in_length > out_capacity) return @intCast(in_length);
    for (0..in_length) |i| out[i] = in.?[in_length - 1 - i];
    return @intCast(in_length);
}

fn nativeOf(function: *const anyopaque, kind: plan_file.NativeKind, arguments: []const u32) Native {
    var native: Native = .{
        .function = function,
        .kind = @backingInt(kind),
        .argument_count = @intCast(arguments.len),
        .arguments = @splat(0),
        .out_capacity = 2,
    };
    @memcpy(native.arguments[0..arguments.len], arguments);
    return native;
}

test "numbers go in as they are, as text and as JSON" {
    var diagnostics: Diagnostics = .{};
    const values = [_]Value{ .number(3), .of(.json, "4.0"), .of(.text, " 5 "), .of(.text, "five") };
    const f = nativeOf(&hypotenuse, .numbers, &.{ 0, 1 });
    try testing.expectEqual(5, (try call(testing.allocator, &f, .{ .all = &values }, &diagnostics)).asNumber());
    try testing.expectEqual(5, numberOf(values[2]));
    const g = nativeOf(&hypotenuse, .numbers, &.{ 0, 3 });
    try testing.expectError(error.NotANumber, call(testing.allocator, &g, .{ .all = &values }, &diagnostics));
    try testing.expectEqual(1, diagnostics.argument);
}

test "a function that needs more room is called again, and its code is told" {
    var diagnostics: Diagnostics = .{};
    const f = nativeOf(&reversed, .bytes, &.{0});
    const value = try call(testing.allocator, &f, .{ .all = &.{.of(.bytes, "abcdef")} }, &diagnostics);
    defer testing.allocator.free(value.bytes());
    try testing.expectEqualStrings("fedcba", value.bytes());
    try testing.expectError(error.Failed, call(testing.allocator, &f, .{ .all = &.{.of(.bytes, "")} }, &diagnostics));
    try testing.expectEqual(-7, diagnostics.code);
}
