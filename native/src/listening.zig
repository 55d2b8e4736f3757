//! Listening: somebody who wants to be told of something again and again, by one letter at a time, and may change where.

const lobby_file = @import("lobby.zig");
const queue_file = @import("queue.zig");

const Ear = queue_file.Ear;
const Lobby = lobby_file.Lobby;
const Queue = queue_file.Queue;

/// Tells whoever listens there, unless that is on its way already.
pub fn ring(lobby: *Lobby, ear: *Ear) void {
    lobby.mutex.lock();
    if (ear.queue) |queue| if (queue.enclose(&ear.letter)) return lobby.notifyAndUnlock(queue);
    lobby.mutex.unlock();
}

/// The same for who is called under the mutex.
pub fn ringHeld(lobby: *Lobby, ear: *Ear) void {
    if (ear.queue) |queue| lobby.postHeld(queue, &ear.letter);
}

/// From now on `queue` (null: nobody) listens there, and is told `item`. What was told and not delivered is taken back.
pub fn listen(lobby: *Lobby, ear: *Ear, queue: ?*Queue, item: queue_file.Item) void {
    if (queue) |it| _ = it.retain();
    lobby.mutex.lock();
    const before = ear.queue;
    if (ear.letter.queue) |it| it.unlink(&ear.letter);
    ear.queue = queue;
    ear.letter.item = item;
    lobby.mutex.unlock();
    if (before) |it| it.release();
}
