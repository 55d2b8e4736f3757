//! Many paths found in one pass over a document, without building a tree of it.
//!
//! All paths are merged into one decision tree beforehand: a state is "these paths have matched so far", a key or an index
//! leads to the next one. Where a "*" and a number meet ("a.*.x" with "a.0.y") the number's state holds both, so the reader
//! is in one state at any moment. What no path wants is checked and passed over. Each path that ends at a value leaves a
//! *finding*: the value as it stands, and the positions its stars stood for.
//!
//! Of equal keys only the first is looked at. So the findings of one path are sorted by their positions.

const std = @import("std");
const reader_file = @import("reader.zig");

const Allocator = std.mem.Allocator;
const Reader = reader_file.Reader;

const parts_max = 32; // of a path
const stars_max = 4; // of a path
const keys_max = 64; // that one object is asked for
const states_max = 1 << 14;

pub const PathId = u16;
const StateId = u16;

const Path = struct {
    text: []const u8,
    parts: []const []const u8,
    /// Depths at which a star stands.
    stars: [stars_max]u8 = undefined,
    star_count: u8 = 0,
};

const State = struct {
    /// Paths that end here.
    ends: []const PathId = &.{},
    members: []const Member = &.{},
    elements: []const Element = &.{},
    /// For every element that is not listed.
    other: ?StateId = null,

    const Member = struct { key: []const u8, to: StateId };
    const Element = struct { index: u32, to: StateId };

    fn element(state: *const State, index: u32) ?StateId {
        for (state.elements) |it| if (it.index == index) return it.to;
        return state.other;
    }
};

pub const Paths = struct {
    all: []const Path,
    states: []const State, // the first one: nothing has been read

    pub fn starCount(paths: *const Paths, id: PathId) u8 {
        return paths.all[id].star_count;
    }
};

/// TooComplex: longer, wider or with more stars than anybody needs.
pub const BuildError = error{ OutOfMemory, TooComplex };

pub const Builder = struct {
    arena: Allocator,
    all: std.ArrayList(Path) = .empty,
    states: std.ArrayList(State) = .empty,

    /// Equal paths are one path: the events of a stream are told apart by the same key again and again. `text` must live
    /// as long as the paths.
    pub fn add(builder: *Builder, text: []const u8) BuildError!PathId {
        for (builder.all.items, 0..) |*path, id| if (std.mem.eql(u8, path.text, text)) return @intCast(id);
        var path: Path = .{ .text = text, .parts = &.{} };
        if (text.len > 0) {
            const count = std.mem.countScalar(u8, text, '.') + 1;
            if (count > parts_max) return error.TooComplex;
            const parts = try builder.arena.alloc([]const u8, count);
            var rest = std.mem.splitScalar(u8, text, '.');
            for (parts, 0..) |*part, depth| {
                part.* = rest.next().?;
                if (!isStar(part.*)) continue;
                if (path.star_count == stars_max) return error.TooComplex;
                path.stars[path.star_count] = @intCast(depth);
                path.star_count += 1;
            }
            path.parts = parts;
        }
        const id = std.math.cast(PathId, builder.all.items.len) orelse return error.TooComplex;
        try builder.all.append(builder.arena, path);
        return id;
    }

    pub fn finish(builder: *Builder) BuildError!Paths {
        const ids = try builder.arena.alloc(PathId, builder.all.items.len);
        for (ids, 0..) |*id, index| id.* = @intCast(index);
        _ = try builder.state(ids, 0);
        return .{ .all = builder.all.items, .states = builder.states.items };
    }

    /// Makes the state in which just these paths have matched down to `depth`, and all that follow from it.
    fn state(builder: *Builder, matched: []const PathId, depth: usize) BuildError!StateId {
        const arena = builder.arena;
        if (builder.states.items.len == states_max) return error.TooComplex;
        const id: StateId = @intCast(builder.states.items.len);
        try builder.states.append(arena, .{});

        var ends: std.ArrayList(PathId) = .empty;
        var members: std.ArrayList(State.Member) = .empty;
        var elements: std.ArrayList(State.Element) = .empty;
        for (matched) |path| if (builder.all.items[path].parts.len == depth) try ends.append(arena, path);
        const stars = try builder.choose(matched, depth, "*", false);
        for (matched) |path| {
            const parts = builder.all.items[path].parts;
            if (parts.len == depth or isStar(parts[depth])) continue;
            const part = parts[depth];
            const known = for (members.items) |member| {
                if (std.mem.eql(u8, member.key, part)) break true;
            } else false;
            if (known) continue;
            if (members.items.len == keys_max) return error.TooComplex;
            const to = try builder.state(try builder.choose(matched, depth, part, false), depth + 1);
            try members.append(arena, .{ .key = part, .to = to });
            const index = reader_file.arrayIndex(part) orelse continue;
            var with_stars = to;
            if (stars.len > 0) with_stars = try builder.state(try builder.choose(matched, depth, part, true), depth + 1);
            try elements.append(arena, .{ .index = index, .to = with_stars });
        }
        const other = if (stars.len > 0) try builder.state(stars, depth + 1) else null;
        // Only now: the list of states has moved meanwhile.
        builder.states.items[id] = .{ .ends = ends.items, .members = members.items, .elements = elements.items, .other = other };
        return id;
    }

    /// Those of `matched` that go on with `part`.
    fn choose(
        builder: *Builder,
        matched: []const PathId,
        depth: usize,
        part: []const u8,
        or_star: bool,
    ) BuildError![]const PathId {
        var going: std.ArrayList(PathId) = .empty;
        for (matched) |path| {
            const parts = builder.all.items[path].parts;
            if (parts.len == depth) continue;
            if (std.mem.eql(u8, parts[depth], part) or (or_star and isStar(parts[depth]))) try going.append(builder.arena, path);
        }
        return going.items;
    }
};

fn isStar(part: []const u8) bool {
    return std.mem.eql(u8, part, "*");
}

pub const none = std.math.maxInt(u32);

pub const Finding = struct {
    raw: []const u8,
    positions: [stars_max]u32,
    next: u32 = none, // of the same path
};

/// One pass over one document.
pub const Search = struct {
    paths: *const Paths,
    gpa: Allocator,
    reader: Reader,
    findings: std.ArrayList(Finding) = .empty,
    chains: []Chain, // by path
    /// Where the reader stands in the arrays around it, by depth.
    indices: [parts_max]u32 = undefined,

    const Chain = struct { first: u32 = none, last: u32 = none };
    const Error = error{ OutOfMemory, BadJson };

    pub fn init(paths: *const Paths, gpa: Allocator, document: []const u8) Error!Search {
        const reader = try Reader.init(document);
        const chains = try gpa.alloc(Chain, paths.all.len);
        @memset(chains, .{});
        return .{ .paths = paths, .gpa = gpa, .reader = reader, .chains = chains };
    }

    pub fn deinit(search: *Search) void {
        search.gpa.free(search.chains);
        search.findings.deinit(search.gpa);
    }

    /// Reads the whole document.
    pub fn run(search: *Search) Error!void {
        try search.value(0, 0);
        try search.reader.finish();
    }

    /// The first finding of a path, or `none`; the others follow by `next`.
    pub fn first(search: *const Search, path: PathId) u32 {
        return search.chains[path].first;
    }

    fn value(search: *Search, state_id: StateId, depth: usize) Error!void {
        const reader = &search.reader;
        const state = &search.paths.states[state_id];
        const before = search.findings.items.len;
        for (state.ends) |path| try search.note(path);
        const start = reader.at;
        const kind = try reader.peek();
        if (kind == .object and state.members.len > 0) {
            try search.object(state, depth);
        } else if (kind == .array and (state.elements.len > 0 or state.other != null)) {
            try search.array(state, depth);
        } else {
            _ = try reader.skip();
        }
        for (search.findings.items[before..][0..state.ends.len]) |*finding| finding.raw = reader.bytes[start..reader.at];
    }

    fn object(search: *Search, state: *const State, depth: usize) Error!void {
        var members = try search.reader.enterObject();
        var seen: u64 = 0; // one bit for each of the state's members
        comptime std.debug.assert(keys_max <= 64);
        while (try members.next()) |key| {
            const to = for (state.members, 0..) |member, at| {
                if (!reader_file.keyIs(key, member.key)) continue;
                const bit = @as(u64, 1) << @intCast(at);
                if (seen & bit != 0) break null;
                seen |= bit;
                break member.to;
            } else null;
            if (to) |it| try search.value(it, depth + 1) else _ = try search.reader.skip();
        }
    }

    fn array(search: *Search, state: *const State, depth: usize) Error!void {
        var elements = try search.reader.enterArray();
        var index: u32 = 0;
        while (try elements.next()) : (index += 1) {
            if (state.element(index)) |to| {
                search.indices[depth] = index;
                try search.value(to, depth + 1);
            } else _ = try search.reader.skip();
        }
    }

    /// The value itself is filled in when it has been passed.
    fn note(search: *Search, path_id: PathId) Error!void {
        const path = &search.paths.all[path_id];
        const chain = &search.chains[path_id];
        const id: u32 = @intCast(search.findings.items.len);
        var finding: Finding = .{ .raw = "", .positions = @splat(0) };
        for (path.stars[0..path.star_count], finding.positions[0..path.star_count]) |depth, *position| {
            position.* = search.indices[depth];
        }
        try search.findings.append(search.gpa, finding);
        if (chain.first == none) chain.first = id else search.findings.items[chain.last].next = id;
        chain.last = id;
    }
};

// ---------------------------------------------------------------------------------------------------------- tests

const testing = std.testing;

fn expectFound(document: []const u8, path: []const u8, expected: []const []const u8) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var builder: Builder = .{ .arena = arena.allocator() };
    const id = try builder.add(path);
    const paths = try builder.finish();
    var search: Search = try .init(&paths, testing.allocator, document);
    defer search.deinit();
    try search.run();
    var at = search.first(id);
    for (expected) |raw| {
        try testing.expect(at != none);
        try testing.expectEqualStrings(raw, search.findings.items[at].raw);
        at = search.findings.items[at].next;
    }
    try testing.expectEqual(none, at);
}

test "a path leads to a value, a star to every element, neither to what is not there" {
    const document = "{\"a\": [{\"b\": 1}, {\"c\": 2}, {\"b\": [3, 4]}], \"0\": {\"\": \"x\"}}";
    try expectFound(document, "", &.{document});
    try expectFound(document, "a.0.b", &.{"1"});
    try expectFound(document, "a.*.b", &.{ "1", "[3, 4]" });
    try expectFound(document, "a.*.b.*", &.{ "3", "4" });
    try expectFound(document, "0.", &.{"\"x\""});
    try expectFound(document, "a.00.b", &.{});
    try expectFound(document, "*", &.{}); // an object has no elements
    try expectFound(document, "a.b", &.{});
    try expectFound(document, "a.0.b.c", &.{});
}

test "paths beyond reason are refused" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var builder: Builder = .{ .arena = arena.allocator() };
    try testing.expectError(error.TooComplex, builder.add("*.*.*.*.*"));
    const long: [2 * parts_max]u8 = @splat('.');
    try testing.expectError(error.TooComplex, builder.add(&long));
    for (0..keys_max + 1) |n| _ = try builder.add(try arena.allocator().print("a.k{d}", .{n}));
    try testing.expectError(error.TooComplex, builder.finish());
}

test "all paths at once find what each alone finds by way of std.json" {
    const seed = testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    for (0..1_000) |_| {
        var arena_state: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena_state.deinit();
        const arena = arena_state.allocator();
        var document: std.ArrayList(u8) = .empty;
        try randomDocument(random, arena, &document, 0);
        const tree = try std.json.parseFromSliceLeaky(std.json.Value, arena, document.items, .{ .duplicate_field_behavior = .use_first });

        var builder: Builder = .{ .arena = arena };
        var texts: [6][]const u8 = undefined;
        var ids: [6]PathId = undefined;
        for (&texts, &ids) |*text, *id| {
            text.* = try randomPath(random, arena);
            id.* = try builder.add(text.*);
        }
        const paths = try builder.finish();
        var search: Search = try .init(&paths, testing.allocator, document.items);
        defer search.deinit();
        try search.run();

        for (texts, ids) |text, id| {
            errdefer std.debug.print("document: {s}\npath: {s}\n", .{ document.items, text });
            var expected: std.ArrayList(u8) = .empty;
            var positions: std.ArrayList(u32) = .empty;
            try follow(arena, tree, text, &positions, &expected);
            var actual: std.ArrayList(u8) = .empty;
            var at = search.first(id);
            while (at != none) : (at = search.findings.items[at].next) {
                const finding = &search.findings.items[at];
                const found = try std.json.parseFromSliceLeaky(std.json.Value, arena, finding.raw, .{ .duplicate_field_behavior = .use_first });
                try write(arena, finding.positions[0..paths.starCount(id)], found, &actual);
            }
            try testing.expectEqualStrings(expected.items, actual.items);
        }
    }
}

fn randomDocument(random: std.Random, arena: Allocator, out: *std.ArrayList(u8), depth: u32) !void {
    const scalars = [_][]const u8{ "1", "null", "\"s\\n\"", "true", "-2.5", "\"\"" };
    switch (random.uintLessThan(u8, if (depth > 4) 1 else 5)) {
        0 => try out.appendSlice(arena, scalars[random.uintLessThan(usize, scalars.len)]),
        1, 2 => {
            try out.append(arena, '[');
            for (0..random.uintLessThan(usize, 4)) |n| {
                if (n > 0) try out.appendSlice(arena, " ,\n");
                try randomDocument(random, arena, out, depth + 1);
            }
            try out.append(arena, ']');
        },
        else => {
            try out.append(arena, '{');
            for (0..random.uintLessThan(usize, 5)) |n| {
                if (n > 0) try out.append(arena, ',');
                const keys = [_][]const u8{ "a", "b", "0", "1", "\\u0061" }; // the last one is an "a" as well
                try out.appendSlice(arena, try arena.print("\"{s}\" : ", .{keys[random.uintLessThan(usize, keys.len)]}));
                try randomDocument(random, arena, out, depth + 1);
            }
            try out.append(arena, '}');
        },
    }
}

fn randomPath(random: std.Random, arena: Allocator) ![]const u8 {
    var path: std.ArrayList(u8) = .empty;
    for (0..random.uintLessThan(usize, 5)) |n| {
        if (n > 0) try path.append(arena, '.');
        const parts = [_][]const u8{ "a", "b", "0", "1", "*", "*" };
        try path.appendSlice(arena, parts[random.uintLessThan(usize, parts.len)]);
    }
    return path.items;
}

/// The dumb way: one path, by recursion over a tree.
fn follow(arena: Allocator, tree: std.json.Value, path: []const u8, positions: *std.ArrayList(u32), out: *std.ArrayList(u8)) !void {
    if (path.len == 0) return write(arena, positions.items, tree, out);
    const end = std.mem.findScalar(u8, path, '.') orelse path.len;
    const rest = path[@min(end + 1, path.len)..];
    switch (tree) {
        .object => |object| if (object.get(path[0..end])) |member| try follow(arena, member, rest, positions, out),
        .array => |array| for (array.items, 0..) |element, index| {
            if (std.mem.eql(u8, path[0..end], "*")) {
                try positions.append(arena, @intCast(index));
                try follow(arena, element, rest, positions, out);
                _ = positions.pop();
            } else if (std.mem.eql(u8, path[0..end], try arena.print("{d}", .{index}))) {
                try follow(arena, element, rest, positions, out);
            }
        },
        else => {},
    }
}

fn write(arena: Allocator, positions: []const u32, found: std.json.Value, out: *std.ArrayList(u8)) !void {
    try out.appendSlice(arena, try arena.print("{any}: ", .{positions}));
    try out.appendSlice(arena, try std.json.Stringify.valueAlloc(arena, found, .{}));
    try out.append(arena, '\n');
}
