//! Stacks and the switch between them, for sim.zig: the only file with machine code in it. By hand and not std.Io.fiber, whose
//! inlined switch was given a wrong pointer by the compiler (Zig 0.17.1, safe) once its message was a constant.

const std = @import("std");
const builtin = @import("builtin");

pub const stack_bytes = 512 * 1024;
const canary = 0x5c;

/// What is saved of a fibre that does not run; everything else lies on its stack.
pub const Context = struct { sp: usize = 0 };

pub const Stack = []align(16) u8;

pub fn allocate() Stack {
    return std.heap.page_allocator.alignedAlloc(u8, .@"16", stack_bytes) catch @panic("out of memory");
}

/// A context that begins with `start`, which must not return.
pub fn prepare(stack: Stack, start: *const fn () callconv(.c) noreturn) Context {
    @memset(stack[0..64], canary);
    const top = stack[stack.len - 256 ..];
    @memset(top, 0); // the frame above `start`: of nobody
    const words: [*]usize = @ptrCast(@alignCast(top.ptr));
    switch (builtin.target.cpu.arch) {
        // Six registers, then where to return to, then a return address of nobody: as after a call.
        .x86_64 => words[6] = @intFromPtr(start),
        // x30 of the registers below is where to return to.
        .aarch64 => words[11] = @intFromPtr(start),
        else => @compileError("the simulator has no switch for this processor"),
    }
    return .{ .sp = @intFromPtr(top.ptr) };
}

pub fn overflowed(stack: Stack) bool {
    return !std.mem.allEqual(u8, stack[0..64], canary);
}

/// Returns when somebody switches back to `old`.
pub fn switchTo(old: *Context, new: *const Context) void {
    const call: *const fn (*usize, usize) callconv(.c) void = @ptrCast(&exchange);
    call(&old.sp, new.sp);
}

/// (where to leave the stack pointer, the one to go on with): the registers that a call must keep are pushed and popped.
fn exchange() callconv(.naked) void {
    switch (builtin.target.cpu.arch) {
        .x86_64 => asm volatile (
            \\ pushq %%rbp
            \\ pushq %%rbx
            \\ pushq %%r12
            \\ pushq %%r13
            \\ pushq %%r14
            \\ pushq %%r15
            \\ movq %%rsp, (%%rdi)
            \\ movq %%rsi, %%rsp
            \\ popq %%r15
            \\ popq %%r14
            \\ popq %%r13
            \\ popq %%r12
            \\ popq %%rbx
            \\ popq %%rbp
            \\ retq
        ),
        .aarch64 => asm volatile (
            \\ sub sp, sp, #160
            \\ stp x19, x20, [sp, #0]
            \\ stp x21, x22, [sp, #16]
            \\ stp x23, x24, [sp, #32]
            \\ stp x25, x26, [sp, #48]
            \\ stp x27, x28, [sp, #64]
            \\ stp x29, x30, [sp, #80]
            \\ stp d8, d9, [sp, #96]
            \\ stp d10, d11, [sp, #112]
            \\ stp d12, d13, [sp, #128]
            \\ stp d14, d15, [sp, #144]
            \\ mov x9, sp
            \\ str x9, [x0]
            \\ mov sp, x1
            \\ ldp x19, x20, [sp, #0]
            \\ ldp x21, x22, [sp, #16]
            \\ ldp x23, x24, [sp, #32]
            \\ ldp x25, x26, [sp, #48]
            \\ ldp x27, x28, [sp, #64]
            \\ ldp x29, x30, [sp, #80]
            \\ ldp d8, d9, [sp, #96]
            \\ ldp d10, d11, [sp, #112]
            \\ ldp d12, d13, [sp, #128]
            \\ ldp d14, d15, [sp, #144]
            \\ add sp, sp, #160
            \\ ret
        ),
        else => @compileError("the simulator has no switch for this processor"),
    }
}
