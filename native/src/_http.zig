test {
    _ = @import("http/curl.zig");
    _ = @import("http/head.zig");
    _ = @import("http/deadlines.zig");
    _ = @import("http/sockets.zig");
    _ = @import("http/origins.zig");
    _ = @import("http/transfer.zig");
    _ = @import("http/outcome.zig");
    _ = @import("http/engine.zig");
}
