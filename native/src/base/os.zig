//! The operating system: the only file that names it. Futexes, clocks, descriptors to poll, memory figures, libraries.
//!
//! Three families: Linux (futex, epoll, eventfd), other POSIX, meaning macOS (ulock, poll, pipe), and Windows (WaitOnAddress,
//! WSAPoll, a UDP socket connected to itself). Only Linux is run by our tests; the others are kept compiling.
//! Any thread may call anything here, except that a Poller belongs to one thread.

const std = @import("std");
const builtin = @import("builtin");

const linux = std.os.linux;
const c = std.c;
const tag = builtin.target.os.tag;
const is_linux = tag == .linux;
const is_windows = tag == .windows;

comptime {
    std.debug.assert(is_linux or is_windows or tag.isDarwin());
}

/// libcurl's curl_socket_t.
pub const Socket = if (is_windows) usize else i32;

/// 0: closed.
pub fn closeSocket(socket: Socket) c_int {
    return if (is_windows) windows.closesocket(socket) else c.close(socket);
}

pub const address_bytes_max = 128; // sockaddr_storage

pub const Peer = union(enum) { v4: [4]u8, v6: [16]u8, other };

/// Reads a sockaddr.
pub fn peerOf(bytes: *const [address_bytes_max]u8) Peer {
    return switch (if (tag.isDarwin()) bytes[1] else std.mem.readInt(u16, bytes[0..2], .native)) {
        2 => .{ .v4 = bytes[4..8].* },
        if (is_windows) 23 else if (tag.isDarwin()) 30 else 10 => .{ .v6 = bytes[8..24].* },
        else => .other,
    };
}

/// As socket(2), not inherited by what the process starts. Null: it was refused.
pub fn openSocket(family: c_int, kind: c_int, protocol: c_int) ?Socket {
    if (is_windows) {
        const made = windows.socket(family, kind, protocol);
        return if (made == std.math.maxInt(usize)) null else made;
    }
    const made = c.socket(@intCast(family), @intCast(if (is_linux) kind | linux.SOCK.CLOEXEC else kind), @intCast(protocol));
    if (made >= 0 and !is_linux) _ = c.fcntl(made, c.F.SETFD, @as(c_int, c.FD_CLOEXEC));
    return if (made < 0) null else made;
}

/// Whether something has come, be it its end. (An event may tell of what has been read meanwhile.)
pub fn hasInput(socket: Socket) bool {
    var byte: [1]u8 = undefined;
    return if (is_windows) true else c.recv(socket, &byte, 1, c.MSG.PEEK | c.MSG.DONTWAIT) >= 0;
}

/// Takes out of it what has come, and lets nothing more in: whoever looks at it next finds it closed. `both`: nothing goes out either;
/// TLS has something to say in parting.
pub fn cutSocket(socket: Socket, both: bool) void {
    var bytes: [4096]u8 = undefined;
    _ = if (is_windows) windows.shutdown(socket, if (both) 2 else 0) else c.shutdown(socket, if (both) 2 else 0);
    if (!is_windows) for (0..256) |_| if (c.recv(socket, &bytes, bytes.len, c.MSG.DONTWAIT) <= 0) return; // it does not block: libcurl's never do
}

/// Whether the process can have one more descriptor at this moment.
pub fn hasDescriptor() bool {
    if (is_windows) return true;
    return closeSocket(openSocket(c.AF.UNIX, c.SOCK.DGRAM, 0) orelse return false) == 0;
}

// ---------------------------------------------------------------------------------------------------------- futex

pub const FutexError = error{ Timeout, Interrupted };

pub fn futexWait(word: *const u32, expect: u32, timeout_ns: ?u64) FutexError!void {
    if (is_linux) {
        var time: linux.timespec = undefined;
        if (timeout_ns) |ns| time = .{ .sec = @intCast(ns / std.time.ns_per_s), .nsec = @intCast(ns % std.time.ns_per_s) };
        const result = linux.futex_4arg(word, .{ .cmd = .WAIT, .private = true }, expect, if (timeout_ns != null) &time else null);
        return switch (linux.errno(result)) {
            .SUCCESS, .AGAIN => {},
            .INTR => error.Interrupted,
            .TIMEDOUT => error.Timeout,
            else => unreachable,
        };
    }
    if (is_windows) {
        // Relative times are negative, in units of 100 ns.
        const time: i64 = if (timeout_ns) |ns| -@as(i64, @intCast(@max(1, ns / 100))) else 0;
        const status = windows.RtlWaitOnAddress(word, &expect, @sizeOf(u32), if (timeout_ns != null) &time else null);
        return if (status == windows.STATUS_TIMEOUT) error.Timeout else {};
    }
    // macOS: 0 means for ever, so a wait for less than a microsecond waits for one.
    const micros: u32 = if (timeout_ns) |ns| @intCast(@min(@max(1, ns / 1000), std.math.maxInt(u32))) else 0;
    const result = darwin.__ulock_wait(darwin.compare_and_wait | darwin.no_errno, word, expect, micros);
    if (result >= 0) return;
    return switch (-result) {
        darwin.EINTR => error.Interrupted,
        darwin.ETIMEDOUT => error.Timeout,
        else => {}, // EFAULT: paged out; the caller looks again
    };
}

pub fn futexWake(word: *const u32, count: u32) void {
    if (is_linux) {
        _ = linux.futex_3arg(word, .{ .cmd = .WAKE, .private = true }, @min(count, std.math.maxInt(i32)));
    } else if (is_windows) {
        if (count == 1) windows.RtlWakeAddressSingle(word) else windows.RtlWakeAddressAll(word);
    } else {
        const all: u32 = if (count == 1) 0 else darwin.wake_all;
        _ = darwin.__ulock_wake(darwin.compare_and_wait | darwin.no_errno | all, word, 0);
    }
}

// ---------------------------------------------------------------------------------------------------- time, process

/// CLOCK_MONOTONIC: on Linux the same as Python's time.monotonic_ns().
pub fn monotonicNs() u64 {
    if (is_windows) {
        var counter: i64 = 0;
        var frequency: i64 = 0;
        _ = windows.QueryPerformanceCounter(&counter);
        _ = windows.QueryPerformanceFrequency(&frequency);
        const wide = @as(u128, @intCast(counter)) * std.time.ns_per_s;
        return @intCast(wide / @as(u128, @intCast(frequency)));
    }
    var time: c.timespec = undefined;
    _ = c.clock_gettime(.MONOTONIC, &time);
    return @as(u64, @intCast(time.sec)) * std.time.ns_per_s + @as(u64, @intCast(time.nsec));
}

/// A wish: the kernel may back what lies in whole large pages with such. They are zeroed faster than as many small ones are faulted in.
pub fn wantLargePages(memory: []u8) void {
    if (!is_linux) return;
    const size = 2 << 20;
    const start = std.mem.alignForward(usize, @intFromPtr(memory.ptr), size);
    const end = std.mem.alignBackward(usize, @intFromPtr(memory.ptr) + memory.len, size);
    if (end > start) _ = linux.madvise(@ptrFromInt(start), end - start, linux.MADV.HUGEPAGE);
}

/// Whether `ticks` counts anything here.
pub const has_ticks = is_linux and @import("builtin").cpu.arch == .x86_64;

/// The processor's own counter: a look costs a third of one at the clock.
pub inline fn ticks() u64 {
    if (!has_ticks) return 0;
    var low: u32 = undefined;
    var high: u32 = undefined;
    asm volatile ("rdtsc"
        : [low] "={eax}" (low),
          [high] "={edx}" (high),
    );
    return @as(u64, high) << 32 | low;
}

/// Whether the counter is even, and the same on every core: then the kernel takes its own time from it.
pub fn ticksAreSteady() bool {
    if (!has_ticks) return false;
    const file = linux.open("/sys/devices/system/clocksource/clocksource0/current_clocksource", .{ .CLOEXEC = true }, 0);
    if (linux.errno(file) != .SUCCESS) return false;
    defer _ = linux.close(@intCast(file));
    var name: [8]u8 = undefined;
    const length = linux.read(@intCast(file), &name, name.len);
    if (linux.errno(length) != .SUCCESS) return false;
    return std.mem.eql(u8, std.mem.trimEnd(u8, name[0..length], "\n"), "tsc");
}

/// Seconds since 1970, for HTTP dates.
pub fn unixSeconds() i64 {
    if (is_windows) {
        var time: u64 = 0; // 100 ns since 1601
        windows.GetSystemTimeAsFileTime(&time);
        return @as(i64, @intCast(time / 10_000_000)) - 11_644_473_600;
    }
    var time: c.timespec = undefined;
    _ = c.clock_gettime(.REALTIME, &time);
    return time.sec;
}

pub fn cpuCount() u32 {
    return @intCast(@max(1, std.Thread.getCpuCount() catch 1));
}

pub fn processId() u32 {
    return if (is_windows) windows.GetCurrentProcessId() else @intCast(c.getpid());
}

/// Every signal is blocked in the calling thread until `restoreSignals`: threads made meanwhile inherit that, so that
/// signals reach the interpreter's own threads alone.
pub fn blockSignals() SignalMask {
    if (is_windows) return {};
    var all: c.sigset_t = undefined;
    var before: c.sigset_t = undefined;
    _ = sigfillset(&all);
    _ = pthread_sigmask(sig_setmask, &all, &before);
    return before;
}

pub fn restoreSignals(mask: SignalMask) void {
    if (is_windows) return;
    var ignored: c.sigset_t = undefined;
    _ = pthread_sigmask(sig_setmask, &mask, &ignored);
}

pub const SignalMask = if (is_windows) void else c.sigset_t;
const sig_setmask: c_int = if (is_linux) 2 else 3;
extern "c" fn sigfillset(set: *c.sigset_t) c_int;
extern "c" fn pthread_sigmask(how: c_int, set: *const c.sigset_t, before: *c.sigset_t) c_int;

// ---------------------------------------------------------------------------------------------------------- memory

/// Bytes of this process in memory; 0 where it cannot be told.
pub fn residentBytes() u64 {
    if (!is_linux) return 0;
    var buffer: [256]u8 = undefined;
    const text = readFile("/proc/self/statm", &buffer);
    var fields = std.mem.tokenizeScalar(u8, text, ' ');
    _ = fields.next();
    const pages = std.fmt.parseInt(u64, fields.next() orelse return 0, 10) catch return 0;
    return pages * std.heap.pageSize();
}

pub fn availableMemoryBytes() u64 {
    return memoryInfo("MemAvailable:");
}

pub fn totalMemoryBytes() u64 {
    return memoryInfo("MemTotal:");
}

fn memoryInfo(key: []const u8) u64 {
    if (!is_linux) return 0;
    var buffer: [4096]u8 = undefined;
    var lines = std.mem.tokenizeScalar(u8, readFile("/proc/meminfo", &buffer), '\n');
    while (lines.next()) |line| if (std.mem.startsWith(u8, line, key)) {
        var fields = std.mem.tokenizeScalar(u8, line[key.len..], ' ');
        const kilobytes = std.fmt.parseInt(u64, fields.next() orelse return 0, 10) catch return 0;
        return kilobytes * 1024;
    };
    return 0;
}

fn readFile(path: [*:0]const u8, buffer: []u8) []const u8 {
    const file = c.open(path, .{ .ACCMODE = .RDONLY, .CLOEXEC = true });
    if (file < 0) return &.{};
    defer _ = c.close(file);
    const count = c.read(file, buffer.ptr, buffer.len);
    return if (count > 0) buffer[0..@intCast(count)] else &.{};
}

/// How many descriptors this process may open, after raising the soft limit to the hard one, at most to `wanted`.
pub fn raiseDescriptorLimit(wanted: u64) u64 {
    if (is_windows) return wanted;
    var limit: c.rlimit = undefined;
    if (c.getrlimit(.NOFILE, &limit) != 0) return 256;
    if (limit.cur < wanted and limit.cur < limit.max) {
        const raised: c.rlimit = .{ .cur = @min(limit.max, wanted), .max = limit.max };
        if (c.setrlimit(.NOFILE, &raised) == 0) return @intCast(raised.cur);
    }
    return @intCast(limit.cur);
}

// --------------------------------------------------------------------------------------------------------- polling

pub const Interest = packed struct(u8) { readable: bool = false, writable: bool = false, _: u6 = 0 };
pub const Event = struct { data: u64, readable: bool, writable: bool, failed: bool };

/// Which of many sockets are ready. epoll on Linux; elsewhere poll over an array, made anew for each wait.
pub const Poller = if (is_linux) struct {
    descriptor: i32,

    pub fn init(_: std.mem.Allocator) error{SystemResources}!Poller {
        const result = linux.epoll_create1(linux.EPOLL.CLOEXEC);
        if (linux.errno(result) != .SUCCESS) return error.SystemResources;
        return .{ .descriptor = @intCast(result) };
    }

    pub fn deinit(poller: *Poller) void {
        _ = c.close(poller.descriptor);
    }

    /// Adds a socket, or changes what is asked of it.
    pub fn set(poller: *Poller, socket: Socket, interest: Interest, data: u64) error{SystemResources}!void {
        var event: linux.epoll_event = .{ .events = 0, .data = .{ .u64 = data } };
        if (interest.readable) event.events |= linux.EPOLL.IN;
        if (interest.writable) event.events |= linux.EPOLL.OUT;
        const changed = linux.epoll_ctl(poller.descriptor, linux.EPOLL.CTL_MOD, socket, &event);
        if (linux.errno(changed) == .SUCCESS) return;
        const added = linux.epoll_ctl(poller.descriptor, linux.EPOLL.CTL_ADD, socket, &event);
        if (linux.errno(added) != .SUCCESS) return error.SystemResources;
    }

    pub fn add(poller: *Poller, socket: Socket, interest: Interest, data: u64) error{SystemResources}!void {
        var event: linux.epoll_event = .{ .events = 0, .data = .{ .u64 = data } };
        if (interest.readable) event.events |= linux.EPOLL.IN;
        if (interest.writable) event.events |= linux.EPOLL.OUT;
        const added = linux.epoll_ctl(poller.descriptor, linux.EPOLL.CTL_ADD, socket, &event);
        switch (linux.errno(added)) {
            .SUCCESS => {},
            .EXIST => return poller.set(socket, interest, data),
            else => return error.SystemResources,
        }
    }

    /// A socket that was closed has left by itself; removing it again does no harm.
    pub fn remove(poller: *Poller, socket: Socket) void {
        _ = linux.epoll_ctl(poller.descriptor, linux.EPOLL.CTL_DEL, socket, null);
    }

    /// Negative: waits for ever. An interrupted wait returns nothing.
    pub fn wait(poller: *Poller, events: []Event, timeout_ms: i32) usize {
        var raw: [256]linux.epoll_event = undefined;
        const room: u32 = @intCast(@min(raw.len, events.len));
        const result = linux.epoll_wait(poller.descriptor, &raw, room, timeout_ms);
        if (linux.errno(result) != .SUCCESS) return 0;
        for (raw[0..result], events[0..result]) |from, *to| to.* = .{
            .data = from.data.u64,
            .readable = from.events & linux.EPOLL.IN != 0,
            .writable = from.events & linux.EPOLL.OUT != 0,
            .failed = from.events & (linux.EPOLL.ERR | linux.EPOLL.HUP) != 0,
        };
        return result;
    }
} else struct {
    gpa: std.mem.Allocator,
    entries: std.ArrayList(PollEntry) = .empty,
    data: std.ArrayList(u64) = .empty,

    pub fn init(gpa: std.mem.Allocator) error{SystemResources}!Poller {
        return .{ .gpa = gpa };
    }

    pub fn deinit(poller: *Poller) void {
        poller.entries.deinit(poller.gpa);
        poller.data.deinit(poller.gpa);
    }

    pub fn set(poller: *Poller, socket: Socket, interest: Interest, data: u64) error{SystemResources}!void {
        var wanted: i16 = 0;
        if (interest.readable) wanted |= poll_in;
        if (interest.writable) wanted |= poll_out;
        for (poller.entries.items, poller.data.items) |*entry, *value| if (entry.fd == socket) {
            entry.events = wanted;
            value.* = data;
            return;
        };
        poller.entries.append(poller.gpa, .{ .fd = socket, .events = wanted, .revents = 0 }) catch return error.SystemResources;
        poller.data.append(poller.gpa, data) catch {
            _ = poller.entries.pop();
            return error.SystemResources;
        };
    }

    pub const add = set;

    pub fn remove(poller: *Poller, socket: Socket) void {
        for (poller.entries.items, 0..) |entry, index| if (entry.fd == socket) {
            _ = poller.entries.swapRemove(index);
            _ = poller.data.swapRemove(index);
            return;
        };
    }

    pub fn wait(poller: *Poller, events: []Event, timeout_ms: i32) usize {
        const entries = poller.entries.items;
        const ready = if (is_windows)
            windows.WSAPoll(entries.ptr, @intCast(entries.len), timeout_ms)
        else
            darwin.poll(entries.ptr, @intCast(entries.len), timeout_ms);
        if (ready <= 0) return 0;
        var count: usize = 0;
        for (entries, poller.data.items) |entry, data| {
            if (entry.revents == 0 or count == events.len) continue;
            events[count] = .{
                .data = data,
                .readable = entry.revents & poll_in != 0,
                .writable = entry.revents & poll_out != 0,
                .failed = entry.revents & ~(poll_in | poll_out) != 0,
            };
            count += 1;
        }
        return count;
    }
};

const PollEntry = extern struct { fd: Socket, events: i16, revents: i16 };
const poll_in: i16 = if (is_windows) 0x0300 else 0x0001;
const poll_out: i16 = if (is_windows) 0x0010 else 0x0004;

/// A descriptor that turns readable when another thread signals.
pub const Wakeup = struct {
    read_end: Socket,
    write_end: Socket,

    pub fn init() error{SystemResources}!Wakeup {
        if (is_linux) {
            const result = linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK);
            if (linux.errno(result) != .SUCCESS) return error.SystemResources;
            return .{ .read_end = @intCast(result), .write_end = @intCast(result) };
        }
        if (is_windows) return windows.socketToItself();
        var ends: [2]i32 = undefined;
        if (c.pipe(&ends) != 0) return error.SystemResources;
        for (ends) |end| {
            _ = darwin.fcntl(end, darwin.F_SETFL, darwin.O_NONBLOCK);
            _ = darwin.fcntl(end, darwin.F_SETFD, darwin.FD_CLOEXEC);
        }
        return .{ .read_end = ends[0], .write_end = ends[1] };
    }

    pub fn deinit(wakeup: *Wakeup) void {
        if (is_windows) {
            _ = windows.closesocket(wakeup.read_end);
        } else {
            _ = c.close(wakeup.read_end);
            if (wakeup.write_end != wakeup.read_end) _ = c.close(wakeup.write_end);
        }
    }

    pub fn fd(wakeup: *const Wakeup) Socket {
        return wakeup.read_end;
    }

    pub fn signal(wakeup: *Wakeup) void {
        const one: u64 = 1;
        const bytes = std.mem.asBytes(&one);
        if (is_windows) _ = windows.send(wakeup.write_end, bytes, 1, 0) else _ = c.write(wakeup.write_end, bytes, if (is_linux) 8 else 1);
    }

    pub fn drain(wakeup: *Wakeup) void {
        var bytes: [64]u8 = undefined;
        if (is_windows) {
            while (windows.recv(wakeup.read_end, &bytes, bytes.len, 0) > 0) {}
        } else if (is_linux) {
            _ = c.read(wakeup.read_end, &bytes, 8);
        } else while (c.read(wakeup.read_end, &bytes, bytes.len) == bytes.len) {}
    }
};

// -------------------------------------------------------------------------------------------------------- libraries

pub const Library = struct {
    handle: *anyopaque,

    /// The first of `names` that can be loaded. It stays loaded: nobody can tell when its last thread is gone.
    pub fn open(names: []const [:0]const u8) ?Library {
        for (names) |name| {
            const handle = if (is_windows) windows.LoadLibraryA(name.ptr) else c.dlopen(name.ptr, .{ .NOW = true });
            if (handle) |it| return .{ .handle = it };
        }
        return null;
    }

    pub fn symbol(library: Library, name: [:0]const u8) ?*anyopaque {
        return if (is_windows) windows.GetProcAddress(library.handle, name.ptr) else c.dlsym(library.handle, name.ptr);
    }
};

/// File names under which libcurl is installed.
pub const libcurl_names: []const [:0]const u8 = if (is_linux)
    &.{ "libcurl.so.4", "libcurl-gnutls.so.4", "libcurl.so" }
else if (is_windows)
    &.{ "libcurl-x64.dll", "libcurl.dll", "libcurl-4.dll" }
else
    &.{ "/usr/lib/libcurl.4.dylib", "libcurl.4.dylib", "libcurl.dylib" };

const darwin = struct {
    const compare_and_wait: u32 = 1;
    const wake_all: u32 = 0x100;
    const no_errno: u32 = 0x0100_0000;
    const EINTR = 4;
    const ETIMEDOUT = 60;
    const F_SETFD = 2;
    const F_SETFL = 4;
    const FD_CLOEXEC: c_int = 1;
    const O_NONBLOCK: c_int = 4;
    extern "c" fn __ulock_wait(operation: u32, address: *const anyopaque, value: u64, timeout_us: u32) c_int;
    extern "c" fn __ulock_wake(operation: u32, address: *const anyopaque, value: u64) c_int;
    extern "c" fn fcntl(fd: c_int, command: c_int, ...) c_int;
    extern "c" fn poll(entries: [*]PollEntry, count: c_uint, timeout_ms: c_int) c_int;
};

const windows = struct {
    const STATUS_TIMEOUT: i32 = 0x102;
    extern "ntdll" fn RtlWaitOnAddress(*const anyopaque, *const anyopaque, usize, ?*const i64) callconv(.winapi) i32;
    extern "ntdll" fn RtlWakeAddressSingle(*const anyopaque) callconv(.winapi) void;
    extern "ntdll" fn RtlWakeAddressAll(*const anyopaque) callconv(.winapi) void;
    extern "kernel32" fn QueryPerformanceCounter(*i64) callconv(.winapi) i32;
    extern "kernel32" fn QueryPerformanceFrequency(*i64) callconv(.winapi) i32;
    extern "kernel32" fn GetSystemTimeAsFileTime(*u64) callconv(.winapi) void;
    extern "kernel32" fn GetCurrentProcessId() callconv(.winapi) u32;
    extern "kernel32" fn LoadLibraryA([*:0]const u8) callconv(.winapi) ?*anyopaque;
    extern "kernel32" fn GetProcAddress(*anyopaque, [*:0]const u8) callconv(.winapi) ?*anyopaque;
    extern "ws2_32" fn WSAStartup(u16, *[512]u8) callconv(.winapi) i32;
    extern "ws2_32" fn WSAPoll([*]PollEntry, u32, i32) callconv(.winapi) i32;
    extern "ws2_32" fn socket(i32, i32, i32) callconv(.winapi) usize;
    extern "ws2_32" fn closesocket(usize) callconv(.winapi) i32;
    extern "ws2_32" fn bind(usize, *const Address, i32) callconv(.winapi) i32;
    extern "ws2_32" fn shutdown(usize, i32) callconv(.winapi) i32;
    extern "ws2_32" fn connect(usize, *const Address, i32) callconv(.winapi) i32;
    extern "ws2_32" fn getsockname(usize, *Address, *i32) callconv(.winapi) i32;
    extern "ws2_32" fn ioctlsocket(usize, u32, *u32) callconv(.winapi) i32;
    extern "ws2_32" fn send(usize, [*]const u8, i32, i32) callconv(.winapi) i32;
    extern "ws2_32" fn recv(usize, [*]u8, i32, i32) callconv(.winapi) i32;
    const Address = extern struct { family: u16 = 2, port: u16 = 0, ip: u32 = 0x0100007f, zero: u64 = 0 };
    const invalid = std.math.maxInt(usize);
    const FIONBIO: u32 = 0x8004667e;

    /// A UDP socket on loopback that is its own peer: what is sent arrives.
    fn socketToItself() error{SystemResources}!Wakeup {
        var data: [512]u8 = undefined;
        _ = WSAStartup(0x0202, &data);
        const it = socket(2, 2, 0);
        if (it == invalid) return error.SystemResources;
        errdefer _ = closesocket(it);
        var address: Address = .{};
        var length: i32 = @sizeOf(Address);
        var nonblocking: u32 = 1;
        if (bind(it, &address, length) != 0 or getsockname(it, &address, &length) != 0 or
            connect(it, &address, length) != 0 or ioctlsocket(it, FIONBIO, &nonblocking) != 0) return error.SystemResources;
        return .{ .read_end = it, .write_end = it };
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

test "a wakeup is readable once signalled and not after it was drained" {
    var poller = try Poller.init(testing.allocator);
    defer poller.deinit();
    var wakeup = try Wakeup.init();
    defer wakeup.deinit();
    try poller.add(wakeup.fd(), .{ .readable = true }, 7);
    var events: [4]Event = undefined;
    try testing.expectEqual(0, poller.wait(&events, 0));
    wakeup.signal();
    wakeup.signal();
    try testing.expectEqual(1, poller.wait(&events, 0));
    try testing.expectEqual(7, events[0].data);
    wakeup.drain();
    try testing.expectEqual(0, poller.wait(&events, 0));
}

test "a futex wait on a changed word returns at once, an expired one says so" {
    var word: u32 = 1;
    try futexWait(&word, 0, null);
    try testing.expectError(error.Timeout, futexWait(&word, 1, 1000));
}

test "memory figures and the clock are there" {
    if (is_linux) {
        try testing.expect(residentBytes() > 100_000);
        try testing.expect(availableMemoryBytes() < totalMemoryBytes());
    }
    const before = monotonicNs();
    try testing.expect(monotonicNs() >= before);
    try testing.expect(unixSeconds() > 1_700_000_000);
}
