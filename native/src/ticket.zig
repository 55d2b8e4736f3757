//! A ticket: one call without a graph (LlmClient's), from gb_call_start to gb_call_release.
//!
//! Two references: the handle, and the call until it has told its queue. Giving the handle back early cancels the call.

const std = @import("std");
const sync = @import("base/sync.zig");
const call_file = @import("call/call.zig");
const deltas_file = @import("deltas.zig");
const execution_file = @import("execution.zig");
const plan_file = @import("graph/plan.zig");
const queue_file = @import("queue.zig");
const template = @import("graph/template.zig");

const Call = call_file.Call;
const Context = execution_file.Context;

/// The calls on their way, so that a shutdown can end them.
pub const Tickets = struct {
    context: *Context,
    mutex: sync.Mutex = .init,
    closed: bool = false,
    first: ?*Ticket = null,
    active: u32 = 0,

    pub fn start(
        tickets: *Tickets,
        plan: *plan_file.Plan,
        request: u32,
        values: []const template.Value,
        timeout_ns: u64,
        group: u64,
        queue: *queue_file.Queue,
        token: u64,
    ) error{ OutOfMemory, InvalidArgument, Shutdown }!*Ticket {
        if (request >= plan.requests.len or values.len != plan.input_count or plan.nodes.len != 0) return error.InvalidArgument;
        const ticket = try Ticket.create(tickets.context, tickets, plan, request, values, queue, token);
        ticket.call.group = group;
        ticket.references.raw = 2; // before others can find it: the handle's, and the call's until it has told
        tickets.mutex.lock();
        if (tickets.closed) {
            tickets.mutex.unlock();
            ticket.destroy();
            return error.Shutdown;
        }
        ticket.next = tickets.first;
        if (tickets.first) |first| first.previous = ticket;
        tickets.first = ticket;
        tickets.active += 1;
        tickets.mutex.unlock();
        if (ticket.is_virtual) tickets.context.timers.enter();
        ticket.call.start(timeout_ns);
        return ticket;
    }

    /// Nothing starts any more; what is on its way is cancelled.
    pub fn close(tickets: *Tickets) void {
        tickets.mutex.lock();
        tickets.closed = true;
        tickets.mutex.unlock();
        while (true) {
            tickets.mutex.lock();
            var at = tickets.first;
            while (at) |ticket| : (at = ticket.next) if (!ticket.call.isCancelAsked()) break;
            if (at) |ticket| _ = ticket.references.fetchAdd(1, .monotonic);
            tickets.mutex.unlock();
            // Outside the lock: where the engine never got a thread, a cancel ends the call then and there.
            const ticket = at orelse return;
            ticket.call.cancel();
            ticket.letGo();
        }
    }

    pub fn count(tickets: *Tickets) u32 {
        tickets.mutex.lock();
        defer tickets.mutex.unlock();
        return tickets.active;
    }

    fn remove(tickets: *Tickets, ticket: *Ticket) void {
        tickets.mutex.lock();
        defer tickets.mutex.unlock();
        if (ticket.previous) |previous| previous.next = ticket.next else tickets.first = ticket.next;
        if (ticket.next) |next| next.previous = ticket.previous;
        tickets.active -= 1;
    }
};

pub const Ticket = struct {
    context: *Context,
    tickets: ?*Tickets,
    call: *Call,
    queue: ?*queue_file.Queue,
    letter: queue_file.Letter = .{},
    deltas_letter: queue_file.Letter = .{},
    references: sync.Atomic(u32) = .init(1),
    /// The handle was given back: nobody wants to be told.
    dropped: sync.Atomic(bool) = .init(false),
    is_virtual: bool,
    next: ?*Ticket = null,
    previous: ?*Ticket = null,

    fn create(
        context: *Context,
        tickets: ?*Tickets,
        plan: *plan_file.Plan,
        request: u32,
        values: []const template.Value,
        queue: ?*queue_file.Queue,
        token: u64,
    ) error{OutOfMemory}!*Ticket {
        const ticket = try context.gpa.create(Ticket);
        errdefer context.gpa.destroy(ticket);
        ticket.* = .{
            .context = context,
            .tickets = tickets,
            .call = try Call.create(context.services, plan, request, .{ .all = values }, onOver),
            .queue = if (queue) |it| it.retain() else null,
            .is_virtual = context.timers.isVirtual(),
        };
        ticket.call.owner = ticket;
        ticket.letter.item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.call_over) };
        ticket.deltas_letter.item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.deltas) };
        ticket.call.on_deltas = onDeltas;
        context.retain();
        return ticket;
    }

    /// A reply read from `body` instead of from a server.
    pub fn read(
        context: *Context,
        plan: *plan_file.Plan,
        request: u32,
        body: []const u8,
        stream: bool,
    ) error{ OutOfMemory, InvalidArgument }!*Ticket {
        if (request >= plan.requests.len) return error.InvalidArgument;
        const values = try context.gpa.alloc(template.Value, plan.nodes.len + plan.input_count);
        defer context.gpa.free(values);
        @memset(values, .{}); // nothing is sent
        const ticket = try Ticket.create(context, null, plan, request, values, null, 0);
        errdefer ticket.destroy();
        try ticket.call.readFrom(body, stream);
        return ticket;
    }

    /// The next pieces of a reply that is taken as it comes.
    pub fn take(ticket: *Ticket, into: []deltas_file.Delta) error{InvalidArgument}!deltas_file.Deltas.Taken {
        const reading = ticket.call.reading orelse return error.InvalidArgument;
        if (into.len == 0) return error.InvalidArgument;
        const taken = reading.deltas.take(into);
        if (taken.proceed) ticket.call.readOn();
        return taken;
    }

    fn onDeltas(call: *Call) void {
        const ticket: *Ticket = @ptrCast(@alignCast(call.owner.?));
        if (!ticket.dropped.load(.acquire)) ticket.context.lobby.postOnce(ticket.queue.?, &ticket.deltas_letter); // pairs with the store in release
    }

    pub fn cancel(ticket: *Ticket) void {
        ticket.call.cancel();
    }

    /// The handle goes back.
    pub fn release(ticket: *Ticket) void {
        ticket.dropped.store(true, .release); // pairs with the load in onOver: at worst a letter is posted, and withdrawn below
        if (ticket.references.load(.acquire) > 1) ticket.call.cancel();
        ticket.letGo();
    }

    fn onOver(call: *Call) void {
        const ticket: *Ticket = @ptrCast(@alignCast(call.owner.?));
        const context = ticket.context;
        ticket.tickets.?.remove(ticket);
        if (!ticket.dropped.load(.acquire)) {
            const item = &ticket.letter.item;
            item.failure = @backingInt(call.failure);
            if (call.failure == .none) {
                const value = call.value();
                item.text_ptr = value.ptr;
                item.text_len = value.len;
            }
            context.lobby.post(ticket.queue.?, &ticket.letter);
        }
        if (ticket.is_virtual) context.timers.leave();
        ticket.letGo();
    }

    fn letGo(ticket: *Ticket) void {
        // Acquire-release: the last one out sees the other's last write.
        if (ticket.references.fetchSub(1, .acq_rel) == 1) ticket.destroy();
    }

    fn destroy(ticket: *Ticket) void {
        const context = ticket.context;
        context.lobby.withdraw(&ticket.letter);
        context.lobby.withdraw(&ticket.deltas_letter);
        ticket.call.release();
        if (ticket.queue) |queue| queue.release();
        context.gpa.destroy(ticket);
        context.release();
    }
};
