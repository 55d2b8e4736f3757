//! Who is told what of a run: queues of its end, by a letter each, and one reader of what happens meanwhile, by the log of
//! events and a ring. Any thread. Lock order: this room's mutex, then the lobby's.

const std = @import("std");
const sync = @import("base/sync.zig");
const events_file = @import("events.zig");
const listening = @import("listening.zig");
const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");

const Log = events_file.Log;
const Queue = queue_file.Queue;
const Source = queue_file.Source;

const Attachment = struct {
    queue: *Queue,
    letter: queue_file.Letter,
    next: ?*Attachment = null,
};

pub const Audience = struct {
    gpa: std.mem.Allocator,
    lobby: *lobby_file.Lobby,
    mutex: sync.Mutex = .init, // guards what follows, but for the log, which has its own
    attachments: ?*Attachment = null,
    told: bool = false, // the end was announced
    /// Null unless somebody wants to know what happens; made with the run.
    log: ?*Log = null,
    ear: queue_file.Ear = .{}, // under the lobby's mutex

    pub fn deinit(audience: *Audience) void {
        audience.endLog();
        while (audience.attachments) |attachment| {
            audience.attachments = attachment.next;
            audience.drop(attachment);
        }
    }

    fn drop(audience: *Audience, attachment: *Attachment) void {
        audience.lobby.withdraw(&attachment.letter);
        attachment.queue.release();
        audience.gpa.destroy(attachment);
    }

    // -------------------------------------------------------------------------------------------------------- the end

    /// `pulls`: the queue's thread takes callbacks of `source` meanwhile.
    pub fn attach(audience: *Audience, source: *Source, queue: *Queue, token: u64, pulls: bool) error{OutOfMemory}!void {
        const attachment = try audience.gpa.create(Attachment);
        attachment.* = .{
            .queue = queue.retain(),
            .letter = .{ .item = .{ .token = token, .kind = @backingInt(queue_file.ItemKind.run_over) } },
        };
        audience.mutex.lock();
        defer audience.mutex.unlock();
        attachment.next = audience.attachments;
        audience.attachments = attachment;
        if (audience.told) audience.lobby.post(queue, &attachment.letter) else if (pulls) audience.lobby.setCaller(source, queue);
    }

    pub fn detach(audience: *Audience, source: *Source, queue: *Queue) void {
        audience.mutex.lock();
        defer audience.mutex.unlock();
        audience.lobby.unsetCaller(source, queue);
        var place = &audience.attachments;
        while (place.*) |attachment| {
            if (attachment.queue == queue) {
                place.* = attachment.next;
                audience.drop(attachment);
            } else place = &attachment.next;
        }
    }

    /// The run is over: everybody who asked is told, and who asks later is told at once.
    pub fn tellEnd(audience: *Audience) void {
        audience.mutex.lock();
        defer audience.mutex.unlock();
        audience.told = true;
        var at = audience.attachments;
        while (at) |attachment| : (at = attachment.next) audience.lobby.post(attachment.queue, &attachment.letter);
    }

    // --------------------------------------------------------------------------------------------------------- events

    /// Before anybody else knows the run.
    pub fn openLog(audience: *Audience, capacity: u32) error{OutOfMemory}!void {
        const log = try audience.gpa.create(Log);
        errdefer audience.gpa.destroy(log);
        log.* = try .init(audience.gpa, capacity);
        audience.log = log;
    }

    pub fn endLog(audience: *Audience) void {
        const log = audience.log orelse return;
        listening.listen(audience.lobby, &audience.ear, null, .{});
        log.deinit(audience.gpa);
        audience.gpa.destroy(log);
        audience.log = null;
    }

    /// Adds to the log, if there is one, and tells the reader. False: it will never be read.
    pub fn tell(audience: *Audience, event: events_file.Event) bool {
        const log = audience.log orelse return false;
        const added = log.add(event);
        if (added.tell) listening.ring(audience.lobby, &audience.ear);
        return added.kept;
    }

    /// The same for who holds the lobby's mutex.
    pub fn tellHeld(audience: *Audience, event: events_file.Event) void {
        const log = audience.log orelse return;
        if (log.add(event).tell) listening.ringHeld(audience.lobby, &audience.ear);
    }

    /// `queue` is told once of events to take, see gb_run_listen.
    pub fn listen(audience: *Audience, queue: ?*Queue, token: u64) error{InvalidArgument}!void {
        const log = audience.log orelse return error.InvalidArgument;
        log.disarm();
        listening.listen(audience.lobby, &audience.ear, queue, .{ .token = token, .kind = @backingInt(queue_file.ItemKind.events) });
        if (queue != null and !log.arm()) listening.ring(audience.lobby, &audience.ear);
    }
};
