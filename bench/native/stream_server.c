/* A stand-in for an OpenAI-style provider that streams, with next to no work of its own for an event.
 *
 *   stream_server [--events N] [--interval US] [--latency MS]
 *
 * Prints the port it listens on (127.0.0.1) and serves until its standard input closes. Every POST is answered by one stream
 * of N server-sent events and [DONE], one HTTP chunk each, after the latency:
 *
 *   --interval 0    in one burst: what the socket takes at once is one send
 *   --interval US   one event each US microseconds, kept to the schedule; streams are spread over the interval, not in step
 *
 *   GET /stats      {"requests", "connections", "in_flight", "max_in_flight", "events", "cpu_s"}; ?reset=1 as in mock_server
 *
 * An event's text is "@" and 13 digits, CLOCK_MONOTONIC in microseconds just before the send, then " w17" for the 17th;
 * the first one carries the prompt instead, so that streams can be told apart. Everything but the stamps and the first event
 * is made once, when the server starts.
 *
 * One thread, one epoll, one heap of due times. A connection carries one stream at a time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FD_MAX = 1 << 16, EVENTS_MAX = 256, PROMPT_MAX = 64, EVENT_MAX = 512, STAMP_DIGITS = 13, INPUT_MAX = 64 << 10 };

/* One event in its HTTP chunk; the stamp's digits stand at `stamp`. */
struct event { char *bytes; size_t length, stamp; };

enum state { READING, WAITING, STREAMING };

struct connection {
    int fd;
    uint64_t id;                    /* tells this connection from the next with the same descriptor */
    enum state state;
    int wants_room;                 /* epoll is asked to say when the socket takes more */
    unsigned sent;                  /* events of the stream in hand */
    uint64_t due_us;
    char prompt[PROMPT_MAX + 1];
    char *output; size_t output_length, output_sent, output_room;       /* what the socket would not take yet */
    size_t input_length; char input[INPUT_MAX];
};

static unsigned event_count = 200, interval_us = 0, latency_ms = 0;
static struct event *prepared;      /* 1 .. event_count - 1; 0 is made for each stream */
static char ending[1024]; static size_t ending_length;
static struct connection *connections[FD_MAX];
static int epoll_fd;
static uint64_t next_id = 1;
static struct { unsigned long long requests, connections, in_flight, max_in_flight, events; } stats;

static void *or_die(void *memory) { if (memory == NULL) { perror("stream_server"); exit(1); } return memory; }

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* ------------------------------------------------------------------ events */

static size_t put_chunk(char *out, size_t room, const char *data) {
    return (size_t)snprintf(out, room, "%zx\r\ndata: %s\n\n\r\n", strlen(data) + 8, data);
}

static size_t write_event(char *out, size_t room, const char *delta, const char *finish, const char *more) {
    char data[EVENT_MAX];
    snprintf(data, sizeof data,
        "{\"id\":\"chatcmpl-000000000001\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"mock\","
        "\"service_tier\":\"default\",\"system_fingerprint\":\"fp_mock\",\"choices\":[{\"index\":0,\"delta\":%s,"
        "\"logprobs\":null,\"finish_reason\":%s}]%s}", delta, finish, more);
    return put_chunk(out, room, data);
}

static size_t write_text(char *out, size_t room, const char *text) {
    char delta[PROMPT_MAX + 64];
    snprintf(delta, sizeof delta, "{\"content\":\"@%0*d%s\"}", STAMP_DIGITS, 0, text);
    return write_event(out, room, delta, "null", "");
}

static size_t stamp_place(const char *event) { return (size_t)(strchr(event, '@') + 1 - event); }

static void prepare(void) {
    prepared = or_die(calloc(event_count, sizeof *prepared));
    for (unsigned i = 1; i < event_count; i++) {
        char text[16], bytes[EVENT_MAX + 32];
        snprintf(text, sizeof text, " w%u", i);
        size_t length = write_text(bytes, sizeof bytes, text);
        prepared[i] = (struct event){ or_die(strdup(bytes)), length, stamp_place(bytes) };
    }
    ending_length = write_event(ending, sizeof ending, "{}", "\"stop\"",
        ",\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":200,\"total_tokens\":211}");
    ending_length += put_chunk(ending + ending_length, sizeof ending - ending_length, "[DONE]");
    ending_length += (size_t)snprintf(ending + ending_length, sizeof ending - ending_length, "0\r\n\r\n");
}

/* ------------------------------------------------------------------ due times: a binary heap */

struct due { uint64_t at_us, id; int fd; };
static struct due *heap;
static size_t heap_count, heap_room;

static void wait_until(struct connection *c, uint64_t at_us) {
    struct due due = { .at_us = at_us, .id = c->id, .fd = c->fd };
    c->due_us = at_us;
    if (heap_count == heap_room) heap = or_die(realloc(heap, (heap_room = heap_room ? heap_room * 2 : 1024) * sizeof *heap));
    size_t i = heap_count++;
    for (; i > 0 && heap[(i - 1) / 2].at_us > at_us; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = due;
}

static struct due heap_pop(void) {
    struct due top = heap[0], last = heap[--heap_count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < heap_count; i = child) {
        if (child + 1 < heap_count && heap[child + 1].at_us < heap[child].at_us) child++;
        if (heap[child].at_us >= last.at_us) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* ------------------------------------------------------------------ writing */

static void watch(struct connection *c, uint32_t events) {
    struct epoll_event event = { .events = events, .data.fd = c->fd };
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void end_connection(struct connection *c) {
    if (c->state != READING) stats.in_flight--;
    connections[c->fd] = NULL;      /* its entries in the heap find another id here, or nobody */
    close(c->fd);
    free(c->output);
    free(c);
}

/* Adds bytes to what flush() sends; where they begin. */
static char *put(struct connection *c, const char *bytes, size_t length) {
    if (c->output_length + length > c->output_room)
        c->output = or_die(realloc(c->output, c->output_room = (c->output_length + length) * 2));
    char *at = memcpy(c->output + c->output_length, bytes, length);
    c->output_length += length;
    return at;
}

/* False: the connection broke. */
static int flush(struct connection *c) {
    ssize_t n = send(c->fd, c->output + c->output_sent, c->output_length - c->output_sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return 0;
    if (n > 0) c->output_sent += (size_t)n;
    int wants_room = c->output_sent < c->output_length;
    if (!wants_room) c->output_sent = c->output_length = 0;
    if (wants_room != c->wants_room) watch(c, wants_room ? EPOLLIN | EPOLLOUT : EPOLLIN);
    c->wants_room = wants_room;
    return 1;
}

static void put_next(struct connection *c, const char *stamp) {
    if (c->sent > 0) {
        const struct event *event = &prepared[c->sent++];
        memcpy(put(c, event->bytes, event->length) + event->stamp, stamp, STAMP_DIGITS);
        return;
    }
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    char text[PROMPT_MAX + 8], bytes[EVENT_MAX + 32];
    snprintf(text, sizeof text, "re: %s", c->prompt);
    size_t length = write_text(bytes, sizeof bytes, text);
    memcpy(bytes + stamp_place(bytes), stamp, STAMP_DIGITS);
    put(c, head, sizeof head - 1);
    put(c, bytes, length);
    c->sent = 1;
}

/* What is due on this connection, all of it one send. False: it broke. */
static int advance(struct connection *c) {
    char stamp[STAMP_DIGITS + 1];
    uint64_t now = now_us();
    snprintf(stamp, sizeof stamp, "%0*llu", STAMP_DIGITS, (unsigned long long)now);
    c->state = STREAMING;
    uint64_t next = c->due_us;
    unsigned before = c->sent;
    do put_next(c, stamp), next += interval_us; while (c->sent < event_count && next <= now);
    stats.events += c->sent - before;
    if (c->sent < event_count) wait_until(c, next);
    else {
        put(c, ending, ending_length);
        c->state = READING;
        stats.in_flight--;
    }
    return flush(c);
}

/* ------------------------------------------------------------------ reading */

static void put_stats(struct connection *c, int reset) {
    char body[512], head[128];
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    int n = snprintf(body, sizeof body,
        "{\"requests\":%llu,\"connections\":%llu,\"in_flight\":%llu,\"max_in_flight\":%llu,\"events\":%llu,\"cpu_s\":%.6f}",
        stats.requests, stats.connections, stats.in_flight, stats.max_in_flight, stats.events,
        (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    int h = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", n);
    put(c, head, (size_t)h);
    put(c, body, (size_t)n);
    if (reset) {
        stats.requests = stats.connections = stats.events = 0;
        stats.max_in_flight = stats.in_flight;
    }
}

/* The last message's beginning. Prompts of the bench hold no escapes. */
static void read_prompt(struct connection *c, const char *body, size_t length) {
    static const char key[] = "\"content\":";
    const char *end = body + length, *from = NULL;
    for (const char *p = body; (p = memmem(p, (size_t)(end - p), key, sizeof key - 1)) != NULL; ) from = p += sizeof key - 1;
    size_t n = 0;
    if (from != NULL && (from = memchr(from, '"', (size_t)(end - from))) != NULL)
        for (from++; n < PROMPT_MAX && from + n < end && from[n] != '"'; n++) c->prompt[n] = from[n];
    c->prompt[n] = 0;
}

static void start_stream(struct connection *c, const char *body, size_t length) {
    if (c->id == 0) { c->id = next_id++; stats.connections++; }     /* counts with its first stream, as in mock_server */
    if (++stats.in_flight > stats.max_in_flight) stats.max_in_flight = stats.in_flight;
    uint64_t spread = interval_us ? stats.requests * 7919 % interval_us : 0;    /* a prime: streams are not in step */
    stats.requests++;
    read_prompt(c, body, length);
    c->state = WAITING;
    c->sent = 0;
    wait_until(c, now_us() + latency_ms * 1000u + spread);
}

/* Takes a whole request out of the buffer. False: the connection is over. */
static int take_request(struct connection *c) {
    if (c->state != READING || c->input_length == 0) return 1;
    c->input[c->input_length] = 0;
    char *end = strstr(c->input, "\r\n\r\n");
    if (end == NULL) return 1;
    const char *field = strcasestr(c->input, "\ncontent-length:");
    size_t body = field && field < end ? strtoull(field + 16, NULL, 10) : 0, head = (size_t)(end - c->input) + 4;
    if (head + body >= INPUT_MAX) return 0;
    if (c->input_length < head + body) return 1;
    if (strncmp(c->input, "POST ", 5) == 0) start_stream(c, c->input + head, body);
    else {
        put_stats(c, strstr(c->input, "?reset=1") != NULL);
        flush(c);
        return 0;
    }
    c->input_length -= head + body;
    memmove(c->input, c->input + head + body, c->input_length);
    return 1;
}

static int read_input(struct connection *c) {
    ssize_t n = recv(c->fd, c->input + c->input_length, INPUT_MAX - 1 - c->input_length, 0);
    if (n < 0) return errno == EAGAIN;
    c->input_length += (size_t)n;
    return n > 0;
}

/* ------------------------------------------------------------------ the loop */

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; ) {
        if (fd >= FD_MAX) { close(fd); continue; }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = connections[fd] = or_die(calloc(1, sizeof *c));
        c->fd = fd;
        struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void run_due(void) {
    while (heap_count > 0 && heap[0].at_us <= now_us()) {
        struct due due = heap_pop();
        struct connection *c = connections[due.fd];
        if (c != NULL && c->id == due.id && !(advance(c) && take_request(c))) end_connection(c);
    }
}

static int wait_events(struct epoll_event *events) {
    uint64_t now = now_us(), left = heap_count > 0 && heap[0].at_us > now ? heap[0].at_us - now : 0;
#ifdef SYS_epoll_pwait2
    struct timespec timeout = { .tv_sec = (time_t)(left / 1000000u), .tv_nsec = (long)(left % 1000000u) * 1000 };
    long n = syscall(SYS_epoll_pwait2, epoll_fd, events, EVENTS_MAX, heap_count > 0 ? &timeout : NULL, NULL, 0);
    if (n >= 0 || errno != ENOSYS) return (int)n;
#endif
    return epoll_wait(epoll_fd, events, EVENTS_MAX, heap_count > 0 ? (int)((left + 999) / 1000) : -1);
}

static int listen_here(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 8192) < 0
        || getsockname(listener, (struct sockaddr *)&address, &length) < 0) { perror("stream_server: listen"); exit(1); }
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        unsigned number = (unsigned)strtoul(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--events") == 0 && number > 0) event_count = number;
        if (strcmp(argv[i], "--interval") == 0) interval_us = number;
        if (strcmp(argv[i], "--latency") == 0) latency_ms = number;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_here();
    int watched[] = { STDIN_FILENO, listener };
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = { .events = EPOLLIN, .data.fd = watched[i] };
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, watched[i], &event) < 0) { perror("stream_server: epoll"); return 1; }
    }
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = wait_events(events);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd, alive = 1;
            if (fd == listener) { accept_all(listener); continue; }
            if (fd == STDIN_FILENO) {
                char sink[64];
                if (read(STDIN_FILENO, sink, sizeof sink) <= 0) return 0;
                continue;
            }
            struct connection *c = connections[fd];
            if (c == NULL) continue;
            if (events[i].events & EPOLLOUT) alive = flush(c);
            if (alive && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) alive = read_input(c) && take_request(c);
            if (!alive) end_connection(c);
        }
        run_due();
    }
}
