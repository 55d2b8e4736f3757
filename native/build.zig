//! Builds the core.
//!
//!     zig build --release=safe -Dtarget=x86_64-linux-gnu.2.17     zig-out/lib/libgraphbit.so
//!     zig build test [-Dtsan] [-Dfilter=words] [-Dnodes=N]        the unit tests, under ThreadSanitizer if asked
//!     zig build sim -- arguments                                  the simulator, src/sim_main.zig
//!     zig build fuzz -- arguments                                 random runs over the decoders, src/fuzz_main.zig
//!     zig build pool-bench -- arguments                           what a task costs, src/pool_bench.zig
//!
//! Give a target for whatever is to leave this machine: without one the code is made for this very processor.

const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{ .preferred_optimize_mode = .safe });
    const tsan = b.option(bool, "tsan", "run the tests under ThreadSanitizer") orelse false;
    const filter = b.option([]const u8, "filter", "run only the tests whose names contain this");
    const nodes = b.option(u64, "nodes", "how many nodes testing/million.zig runs") orelse 1_000_000;
    const version = b.option([]const u8, "version", "the version gb_version reports") orelse @import("build.zig.zon").version;

    const options = b.addOptions();
    options.addOption([:0]const u8, "version", b.graph.arena.dupeSentinel(u8, version, 0) catch @panic("out of memory"));
    // libcurl is found at run time; a build that has its sources compiled in fills the same table from its own symbols.
    options.addOption(bool, "curl_static", false);
    const build_options = options.createModule();

    const core = b.createModule(.{
        .root_source_file = b.path("src/root.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = optimize != .debug,
    });
    core.addImport("build_options", build_options);
    if (target.result.os.tag == .windows) core.linkSystemLibrary("ws2_32", .{});
    const library = b.addLibrary(.{ .name = "graphbit", .linkage = .dynamic, .root_module = core });
    library.link_gc_sections = true;
    if (target.result.ofmt == .elf) library.setVersionScript(b.path("exports.map"));
    b.installArtifact(library);

    const header = b.addTranslateC(.{
        .root_source_file = b.path("include/graphbit.h"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
    });
    const tested = b.createModule(.{
        .root_source_file = b.path("src/root.zig"),
        .target = target,
        .optimize = .safe,
        .link_libc = true,
        .sanitize_thread = tsan,
    });
    tested.addImport("build_options", build_options);
    tested.addImport("graphbit_h", header.createModule());
    const test_options = b.addOptions();
    test_options.addOption(u64, "nodes", nodes);
    tested.addImport("test_options", test_options.createModule());
    const tests = b.addTest(.{
        .root_module = tested,
        .use_llvm = true,
        .filters = if (filter) |words| b.dupeStrings(&.{words}) else &.{},
    });
    const run = b.addRunArtifact(tests);
    run.has_side_effects = true; // another seed is another run
    b.step("test", "run the unit tests").dependOn(&run.step);

    for ([_]Program{
        .{ .name = "sim", .root = "src/sim_main.zig", .says = "run the simulator" },
        .{ .name = "fuzz", .root = "src/fuzz_main.zig", .says = "make random runs over the decoders" },
        .{ .name = "pool-bench", .root = "src/pool_bench.zig", .says = "measure the pool" },
    }) |program| {
        const root = b.createModule(.{
            .root_source_file = b.path(program.root),
            .target = target,
            .optimize = .safe,
            .link_libc = true,
        });
        root.addImport("build_options", build_options);
        const run_program = b.addRunArtifact(b.addExecutable(.{ .name = program.name, .root_module = root, .use_llvm = true }));
        run_program.has_side_effects = true;
        run_program.addPassthruArgs();
        b.step(program.name, program.says).dependOn(&run_program.step);
    }
}

const Program = struct { name: []const u8, root: []const u8, says: []const u8 };
