//! How other threads reach the engine's: a mailbox, a descriptor to wake it by, and what happens to messages once it is gone.
//!
//! ## Waking the thread, and how no message is lost
//!
//!     poster:  1. push the message      2. the box was empty: asleep.swap(false); it was true: write the descriptor
//!     thread:  a. asleep.swap(true)     b. is the box empty? then wait on descriptor and sockets
//!
//! All accesses of that word are swaps, so one of 2 and a comes first. If 2 comes before a, then a's swap sees it and the push
//! before it, and b finds the box not empty. If a comes first, 2 reads true and writes. A poster who finds the box not empty
//! relies on the one who found it empty and has yet to do 2.
//!
//! ## After the thread is gone
//!
//! Every message is run, exactly once, and never two at a time, with the thread or without it: whoever posts a call's start
//! waits for its end, and what runs on the engine's thread takes no locks. `word` counts messages that were announced and
//! not yet run, and has a bit for "closed":
//!
//!     post:    count += 1, then push. Closed and the count was 0: the poster becomes the runner. Else somebody runs it.
//!     runner:  take all, run them, count -= as many. Now 0: no longer the runner.
//!
//! The thread sets the bit as the last thing it does but for one: it is the runner until the count is 0. All steps are
//! read-modify-writes of one word: a poster either announced before the count became 0, and the runner of that time finds the
//! message (it waits for the push if it must), or finds 0 and is the runner itself. So at any time there is at most one, and
//! each sees what the one before it wrote. A runner that posts announces while the count is not 0: it is not run inside itself.

const std = @import("std");
const os = @import("../base/os.zig");
const sync = @import("../base/sync.zig");
const mailbox_file = @import("../base/mailbox.zig");

const assert = std.debug.assert;

/// Something to be done on the engine's thread. Intrusive, the sender's until it is run.
pub const Message = struct { run: *const fn (*Message) void, next: ?*Message = null };

pub const Inbox = struct {
    mailbox: mailbox_file.Mailbox(Message, "next") = .{},
    word: sync.Atomic(u32) = .init(0),
    asleep: sync.Atomic(bool) = .init(false),
    wakeup: ?os.Wakeup = null,

    const closed: u32 = 1 << 31;

    /// True: the caller is the runner now and calls `runLast`.
    pub fn post(inbox: *Inbox, message: *Message) bool {
        // Acquire-release: see the top. It also hands what the runners share from one to the next.
        const before = inbox.word.fetchAdd(1, .acq_rel);
        const was_empty = inbox.mailbox.push(message);
        if (before & closed != 0) return before == closed;
        if (was_empty) inbox.wake();
        return false;
    }

    pub fn wake(inbox: *Inbox) void {
        // Acquire-release: see the top.
        if (inbox.asleep.swap(false, .acq_rel)) inbox.wakeup.?.signal();
    }

    /// There never was a thread. Before anybody posts.
    pub fn closeUnused(inbox: *Inbox) void {
        const before = inbox.word.fetchOr(closed, .acq_rel); // see the top
        assert(before == 0);
    }

    pub fn isClosedAndDone(inbox: *const Inbox) bool {
        return inbox.word.load(.monotonic) == closed;
    }

    // ------------------------------------------------------------------------------------------- the thread's part

    /// False: there is a message. True: the thread may wait on the descriptor, and then calls `getUp`.
    pub fn lieDown(inbox: *Inbox) bool {
        _ = inbox.asleep.swap(true, .acq_rel); // see the top
        return inbox.mailbox.isEmpty();
    }

    pub fn getUp(inbox: *Inbox) void {
        _ = inbox.asleep.swap(false, .acq_rel); // see the top; a poster who saw true has written, or is about to
    }

    /// Runs what is there.
    pub fn run(inbox: *Inbox) void {
        const count = inbox.runAll({}, none);
        if (count > 0) _ = inbox.word.fetchSub(count, .monotonic); // nobody looks at the count before it is closed
    }

    fn none(_: void) void {}

    fn runAll(inbox: *Inbox, context: anytype, comptime after: fn (@TypeOf(context)) void) u32 {
        var count: u32 = 0;
        var at = inbox.mailbox.takeAll();
        while (at) |message| {
            at = message.next; // running it may free it
            message.run(message);
            after(context);
            count += 1;
        }
        return count;
    }

    /// The thread's last act: from here on there are only runners, of which it is the first.
    pub fn close(inbox: *Inbox, context: anytype, comptime after: fn (@TypeOf(context)) void) void {
        const left = inbox.word.fetchOr(closed, .acq_rel); // see the top
        assert(left & closed == 0);
        if (left > 0) inbox.runLast(context, after);
    }

    /// The runner's part: until no message is left, calling `after` after each.
    pub fn runLast(inbox: *Inbox, context: anytype, comptime after: fn (@TypeOf(context)) void) void {
        while (true) {
            const count = inbox.runAll(context, after);
            if (count == 0) sync.yield(); // announced, about to be pushed
            // Acquire-release: see the top.
            if (count > 0 and inbox.word.fetchSub(count, .acq_rel) == closed + count) return;
        }
    }
};
