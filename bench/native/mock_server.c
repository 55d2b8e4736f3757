/* A stand-in for an OpenAI-style provider, fast enough not to be what a bench measures.
 *
 *   mock_server [--port N] [--latency MS] [--chunks N] [--interval MS] [--stay]
 *
 * Prints the port it listens on (127.0.0.1; port 0 picks one) and serves until its standard input closes, so that it
 * never outlives the program that started it. --stay does not look at standard input.
 *
 *   POST /v1/chat/completions   one completion of about 1 kB after the latency; where the body says "stream": true,
 *                               the same text as server-sent events, one chunk every interval (0: all at once).
 *                               ?latency=MS&chunks=N&interval=MS override the flags for this request.
 *   GET  /stats                 {"requests", "connections", "open", "in_flight", "max_in_flight", "cpu_s"};
 *                               ?reset=1 sets the counters to zero after reading them.
 *   GET  /closed                [[microseconds on CLOCK_MONOTONIC, beginning of the prompt], ...]: the requests whose
 *                               connection was closed before they were answered, since the last look.
 *
 * The text answers the prompt, so that answers can be matched to prompts: "re: ", the beginning of the last message,
 * then that message's length and CRC-32 as they stand in the request's JSON. It contains no character that JSON escapes.
 *
 * One thread, one epoll, one heap of due times. A connection answers one request at a time; what arrives meanwhile
 * waits in its buffer. Connections count when they carry their first completion: looking at /stats does not show there.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
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

enum { ECHO_MAX = 64, INPUT_MAX = 64 << 20, EVENTS_MAX = 256, FD_MAX = 1 << 17 };
/* What is due this soon is due now: saves a wake for each of many requests that fall due together. */
static const uint64_t due_slack_ns = 30000;

enum state {
    READING,    /* no request in hand */
    WAITING,    /* the reply, or the first chunk, is due at a time in the heap */
    STREAMING,  /* the next chunk is due at a time in the heap */
};

struct settings { unsigned latency_ms, chunks, interval_ms; };

struct connection {
    int fd;
    uint64_t id;                        /* tells this connection from the next with the same descriptor */
    enum state state;
    int counted, close_after, stream;
    int held;                           /* what is put waits for flush(): many small pieces, one send */
    struct settings settings;           /* of the request in hand */
    unsigned chunks_sent;
    char echo[ECHO_MAX + 1];
    uint32_t prompt_crc;
    size_t prompt_length;
    char *input; size_t input_length, input_room;
    char *output; size_t output_length, output_sent, output_room;   /* what the socket would not take yet */
};

static struct settings defaults = { .latency_ms = 0, .chunks = 20, .interval_ms = 0 };
static struct connection *connections[FD_MAX];
static int epoll_fd;
static uint64_t next_id = 1, next_completion = 1;
static struct { uint64_t requests, connections, open, in_flight, max_in_flight; } stats;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *or_die(void *memory) {
    if (memory == NULL) { perror("mock_server"); exit(1); }
    return memory;
}

/* ------------------------------------------------------------------ due times: a binary heap */

struct due { uint64_t at_ns, id; int fd; };
static struct due *heap;
static size_t heap_count, heap_room;

static void heap_push(struct due due) {
    if (heap_count == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 1024;
        heap = or_die(realloc(heap, heap_room * sizeof *heap));
    }
    size_t i = heap_count++;
    while (i > 0 && heap[(i - 1) / 2].at_ns > due.at_ns) { heap[i] = heap[(i - 1) / 2]; i = (i - 1) / 2; }
    heap[i] = due;
}

static struct due heap_pop(void) {
    struct due top = heap[0], last = heap[--heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_count) break;
        if (child + 1 < heap_count && heap[child + 1].at_ns < heap[child].at_ns) child++;
        if (heap[child].at_ns >= last.at_ns) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* ------------------------------------------------------------------ writing */

static void watch(struct connection *c, uint32_t events) {
    struct epoll_event event = { .events = events, .data.fd = c->fd };
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void note_closed(const struct connection *c);

static void end_connection(struct connection *c) {
    if (c->state != READING) { stats.in_flight--; note_closed(c); }
    if (c->counted) stats.open--;
    connections[c->fd] = NULL;      /* its entries in the heap find another id here, or nobody */
    close(c->fd);
    free(c->input);
    free(c->output);
    free(c);
}

/* Sends what it can and keeps the rest. False: the connection broke. */
static int put(struct connection *c, const char *bytes, size_t length) {
    size_t sent = 0;
    if (!c->held && c->output_length == 0) {
        ssize_t n = send(c->fd, bytes, length, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) return 0;
        sent = n < 0 ? 0 : (size_t)n;
        if (sent == length) return 1;
        watch(c, EPOLLIN | EPOLLOUT);
    }
    size_t rest = length - sent;
    if (c->output_length + rest > c->output_room) {
        c->output_room = (c->output_length + rest) * 2;
        c->output = or_die(realloc(c->output, c->output_room));
    }
    memcpy(c->output + c->output_length, bytes + sent, rest);
    c->output_length += rest;
    return 1;
}

static int flush(struct connection *c) {
    if (c->output_length == 0) return 1;
    ssize_t n = send(c->fd, c->output + c->output_sent, c->output_length - c->output_sent, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN;
    c->output_sent += (size_t)n;
    if (c->output_sent == c->output_length) c->output_sent = c->output_length = 0;
    return 1;
}

static int put_reply(struct connection *c, const char *status, const char *type, const char *body, size_t length) {
    char reply[4096];
    int head = snprintf(reply, sizeof reply,
        "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s\r\n",
        status, type, length, c->close_after ? "Connection: close\r\n" : "");
    memcpy(reply + head, body, length);     /* bodies are below 3 kB, see their makers */
    return put(c, reply, (size_t)head + length);
}

/* ------------------------------------------------------------------ requests given up */

static char *closed;
static size_t closed_length, closed_room;

static void note_closed(const struct connection *c) {
    if (closed_room - closed_length < ECHO_MAX + 64) closed = or_die(realloc(closed, closed_room = (closed_room + 4096) * 2));
    closed_length += (size_t)sprintf(closed + closed_length, "%c[%llu,\"%s\"]", closed_length ? ',' : '[',
        (unsigned long long)(now_ns() / 1000), c->echo);
}

static int put_closed(struct connection *c) {
    char head[128];
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
        closed_length ? closed_length + 1 : 2);
    c->close_after = 1;
    int alive = put(c, head, (size_t)n) && put(c, closed_length ? closed : "[", closed_length ? closed_length : 1) && put(c, "]", 1);
    closed_length = 0;
    return alive;
}

/* ------------------------------------------------------------------ completions */

static const char filler[] =
    "A bee that finds clover comes home and dances the way: the angle to the sun is the direction, the length of the "
    "waggle the distance. Others follow the dance in the dark, by touch, and fly out to the same field. Nobody leads. "
    "What a hive knows is what its dances say, and a poor field is forgotten because nobody dances for it. By evening "
    "most of the foragers work the best field there is within an hour of flying, though none of them has seen the rest.";

static size_t write_text(const struct connection *c, char *out, size_t room) {
    int n = snprintf(out, room, "re: %s [%zu bytes, crc %08x] %s", c->echo, c->prompt_length, c->prompt_crc, filler);
    return (size_t)n;
}

static int put_completion(struct connection *c) {
    char text[1024], body[3000];
    write_text(c, text, sizeof text);
    int n = snprintf(body, sizeof body,
        "{\"id\":\"chatcmpl-%012llu\",\"object\":\"chat.completion\",\"created\":1764000000,\"model\":\"mock\",\"choices\":[{"
        "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null,\"annotations\":[]},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":120,"
        "\"total_tokens\":%zu,\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0}},"
        "\"service_tier\":\"default\",\"system_fingerprint\":\"fp_mock\"}",
        (unsigned long long)next_completion++, text, c->prompt_length / 4 + 1, c->prompt_length / 4 + 121);
    return put_reply(c, "200 OK", "application/json", body, (size_t)n);
}

/* One server-sent event in one HTTP chunk. */
static void put_event(struct connection *c, const char *data, size_t length) {
    char chunk[2048];
    int n = snprintf(chunk, sizeof chunk, "%zx\r\ndata: %.*s\n\n\r\n", length + 8, (int)length, data);
    put(c, chunk, (size_t)n);
}

static void put_stream_head(struct connection *c) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    put(c, head, sizeof head - 1);
}

/* The text's beginning is the first chunk, numbered words follow: chunks that differ, as some clients refuse a stream
 * that repeats itself. */
static void put_stream_chunk(struct connection *c) {
    char data[1024];
    int n = snprintf(data, sizeof data,
        "{\"id\":\"chatcmpl-stream\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"mock\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"");
    if (c->chunks_sent == 0)
        n += snprintf(data + n, sizeof data - (size_t)n, "re: %s [%zu bytes, crc %08x]", c->echo, c->prompt_length, c->prompt_crc);
    else
        n += snprintf(data + n, sizeof data - (size_t)n, " w%u", c->chunks_sent);
    n += snprintf(data + n, sizeof data - (size_t)n, "\"},\"finish_reason\":null}]}");
    c->chunks_sent++;
    put_event(c, data, (size_t)n);
}

static void put_stream_end(struct connection *c) {
    char data[512];
    int n = snprintf(data, sizeof data,
        "{\"id\":\"chatcmpl-stream\",\"object\":\"chat.completion.chunk\",\"created\":1764000000,\"model\":\"mock\","
        "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":%zu,\"completion_tokens\":%u,\"total_tokens\":%zu}}",
        c->prompt_length / 4 + 1, c->chunks_sent, c->prompt_length / 4 + 1 + c->chunks_sent);
    put_event(c, data, (size_t)n);
    put_event(c, "[DONE]", 6);
    put(c, "0\r\n\r\n", 5);
}

static void finish_request(struct connection *c) {
    c->state = READING;
    stats.in_flight--;
}

static void wait_ms(struct connection *c, unsigned ms) {
    heap_push((struct due){ .at_ns = now_ns() + (uint64_t)ms * 1000000u, .id = c->id, .fd = c->fd });
}

/* The chunks that are due, up to the next interval or the end. Held back, they go out as one piece. */
static void put_due_chunks(struct connection *c) {
    if (c->state == WAITING) {
        c->state = STREAMING;
        put_stream_head(c);
    }
    while (c->chunks_sent < c->settings.chunks) {
        put_stream_chunk(c);
        if (c->settings.interval_ms > 0 && c->chunks_sent < c->settings.chunks) {
            wait_ms(c, c->settings.interval_ms);
            return;
        }
    }
    put_stream_end(c);
    finish_request(c);
}

/* What is due on this connection. False: it broke. */
static int advance(struct connection *c) {
    if (!c->stream) {
        finish_request(c);
        return put_completion(c);
    }
    int was_empty = c->output_length == 0;
    c->held = 1;
    put_due_chunks(c);
    c->held = 0;
    if (!was_empty) return 1;       /* epoll is asked for room already */
    if (!flush(c)) return 0;
    if (c->output_length > 0) watch(c, EPOLLIN | EPOLLOUT);
    return 1;
}

/* ------------------------------------------------------------------ reading */

static uint32_t crc32(const char *bytes, size_t length) {
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t r = i;
            for (int k = 0; k < 8; k++) r = r & 1 ? 0xedb88320u ^ (r >> 1) : r >> 1;
            table[i] = r;
        }
    uint32_t crc = ~0u;
    for (size_t i = 0; i < length; i++) crc = table[(crc ^ (uint8_t)bytes[i]) & 255] ^ (crc >> 8);
    return ~crc;
}

static const char *skip_space(const char *p, const char *end) {
    while (p < end && isspace((unsigned char)*p)) p++;
    return p;
}

/* Remembers the last message of the request: its "content" string, or the "text" of a list of parts. A quote inside a
 * JSON string is escaped, so the key's pattern cannot be found inside a prompt. */
static void read_prompt(struct connection *c, const char *body, size_t length) {
    static const char key[] = "\"content\":";
    const char *end = body + length, *found = NULL;
    for (const char *p = body; (p = memmem(p, (size_t)(end - p), key, sizeof key - 1)) != NULL; p += sizeof key - 1) found = p;
    c->echo[0] = 0; c->prompt_length = 0; c->prompt_crc = 0;
    if (found == NULL) return;
    const char *from = skip_space(found + sizeof key - 1, end);
    if (from < end && *from == '[') {
        from = memmem(from, (size_t)(end - from), "\"text\":", 7);
        if (from == NULL) return;
        from = skip_space(from + 7, end);
    }
    if (from >= end || *from != '"') return;
    const char *to = ++from;
    while (to < end && *to != '"') to += *to == '\\' ? 2 : 1;
    if (to > end) to = end;
    c->prompt_length = (size_t)(to - from);
    c->prompt_crc = crc32(from, c->prompt_length);
    size_t n = 0;
    while (n < ECHO_MAX && n < c->prompt_length && from[n] != '\\') n++;
    while (n < c->prompt_length && n > 0 && ((unsigned char)from[n] & 0xc0) == 0x80) n--;   /* no half character */
    memcpy(c->echo, from, n);
    c->echo[n] = 0;
}

static int says_stream(const char *body, size_t length) {
    const char *p = memmem(body, length, "\"stream\":", 9), *end = body + length;
    if (p == NULL) return 0;
    p = skip_space(p + 9, end);
    return end - p >= 4 && memcmp(p, "true", 4) == 0;
}

/* The number behind `name=` in a query string, or `otherwise`. */
static unsigned query_number(const char *query, const char *name, unsigned otherwise) {
    size_t length = strlen(name);
    while (query != NULL && *query) {
        if (strncmp(query, name, length) == 0 && query[length] == '=') return (unsigned)strtoul(query + length + 1, NULL, 10);
        query = strchr(query, '&');
        if (query) query++;
    }
    return otherwise;
}

static int put_stats(struct connection *c, const char *query) {
    char body[512];
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_s = (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec
                 + ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec) / 1e6;
    int n = snprintf(body, sizeof body,
        "{\"requests\":%llu,\"connections\":%llu,\"open\":%llu,\"in_flight\":%llu,\"max_in_flight\":%llu,\"cpu_s\":%.6f}",
        (unsigned long long)stats.requests, (unsigned long long)stats.connections, (unsigned long long)stats.open,
        (unsigned long long)stats.in_flight, (unsigned long long)stats.max_in_flight, cpu_s);
    if (query_number(query, "reset", 0)) {
        stats.requests = stats.connections = 0;
        stats.max_in_flight = stats.in_flight;
    }
    return put_reply(c, "200 OK", "application/json", body, (size_t)n);
}

static int start_completion(struct connection *c, const char *query, const char *body, size_t length) {
    if (!c->counted) { c->counted = 1; stats.connections++; stats.open++; }
    stats.requests++;
    if (++stats.in_flight > stats.max_in_flight) stats.max_in_flight = stats.in_flight;
    read_prompt(c, body, length);
    c->state = WAITING;
    c->stream = says_stream(body, length);
    c->chunks_sent = 0;
    c->settings = (struct settings){
        .latency_ms = query_number(query, "latency", defaults.latency_ms),
        .chunks = query_number(query, "chunks", defaults.chunks),
        .interval_ms = query_number(query, "interval", defaults.interval_ms),
    };
    if (c->settings.latency_ms == 0) return advance(c);
    wait_ms(c, c->settings.latency_ms);
    return 1;
}

/* The value of a header inside `head`, or NULL; `head` ends with a NUL in place of its last line break. */
static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

static int route(struct connection *c, char *head, const char *body, size_t length) {
    char *target = strchr(head, ' ');
    char *target_end = target ? strpbrk(++target, " \r") : NULL;
    if (target == NULL || target_end == NULL) return 0;
    const char *version = target_end + 1;
    const char *connection = header(head, "connection");
    c->close_after = strncmp(version, "HTTP/1.0", 8) == 0 || (connection != NULL && strncasecmp(connection, "close", 5) == 0);
    *target_end = 0;
    char *query = strchr(target, '?');
    if (query) *query++ = 0;
    if (strncmp(head, "GET ", 4) == 0 && strcmp(target, "/stats") == 0) return put_stats(c, query);
    if (strncmp(head, "GET ", 4) == 0 && strcmp(target, "/closed") == 0) return put_closed(c);
    size_t n = strlen(target);
    static const char tail[] = "/chat/completions";
    if (strncmp(head, "POST ", 5) == 0 && n >= sizeof tail - 1 && strcmp(target + n - (sizeof tail - 1), tail) == 0)
        return start_completion(c, query, body, length);
    static const char missing[] = "{\"error\":{\"message\":\"no such path\",\"type\":\"invalid_request_error\"}}";
    return put_reply(c, "404 Not Found", "application/json", missing, sizeof missing - 1);
}

/* Takes whole requests out of the buffer while the connection is free to answer. False: it is over. */
static int take_requests(struct connection *c) {
    while (c->state == READING && c->output_length == 0) {
        if (c->close_after) return 0;
        char *end = memmem(c->input, c->input_length, "\r\n\r\n", 4);
        if (end == NULL) return 1;
        size_t head_length = (size_t)(end - c->input) + 4;
        *end = 0;       /* so that the head is a C string; put back below where the request is not whole yet */
        const char *text = header(c->input, "content-length");
        size_t body_length = text ? strtoull(text, NULL, 10) : 0;
        int refused = header(c->input, "transfer-encoding") != NULL || body_length > INPUT_MAX - head_length;
        if (!refused && c->input_length < head_length + body_length) {
            int asks = c->input_length == head_length && header(c->input, "expect") != NULL;
            *end = '\r';
            return asks ? put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25) : 1;
        }
        if (refused) {
            c->close_after = 1;
            if (!put_reply(c, "411 Length Required", "text/plain", "", 0)) return 0;
            continue;       /* and out: close_after is looked at above */
        }
        if (!route(c, c->input, c->input + head_length, body_length)) return 0;
        c->input_length -= head_length + body_length;
        memmove(c->input, c->input + head_length + body_length, c->input_length);
    }
    return 1;
}

static int read_input(struct connection *c) {
    for (;;) {
        if (c->input_room - c->input_length < 2048) {
            if (c->input_room >= INPUT_MAX) return 0;
            c->input_room = c->input_room ? c->input_room * 2 : 4096;
            c->input = or_die(realloc(c->input, c->input_room));
        }
        size_t room = c->input_room - c->input_length;
        ssize_t n = recv(c->fd, c->input + c->input_length, room, 0);
        if (n == 0) return 0;
        if (n < 0) return errno == EAGAIN;
        c->input_length += (size_t)n;
        if ((size_t)n < room) return 1;     /* the socket is empty; if not, epoll says so again */
    }
}

/* ------------------------------------------------------------------ the loop */

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= FD_MAX) { close(fd); continue; }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = or_die(calloc(1, sizeof *c));
        c->fd = fd;
        c->id = next_id++;
        connections[fd] = c;
        struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void run_due(void) {
    uint64_t now = now_ns() + due_slack_ns;
    while (heap_count > 0 && heap[0].at_ns <= now) {
        struct due due = heap_pop();
        struct connection *c = connections[due.fd];
        if (c == NULL || c->id != due.id) continue;
        if (!advance(c) || (c->state == READING && !take_requests(c))) end_connection(c);
    }
}

/* Waits to the nanosecond where the kernel can (5.11), else to the millisecond above. */
static int wait_events(struct epoll_event *events) {
    static int coarse;
    uint64_t now = now_ns(), left = 0;
    if (heap_count > 0 && heap[0].at_ns > now) left = heap[0].at_ns - now;
#ifdef SYS_epoll_pwait2
    if (!coarse) {
        struct timespec timeout = { .tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u) };
        long n = syscall(SYS_epoll_pwait2, epoll_fd, events, EVENTS_MAX, heap_count > 0 ? &timeout : NULL, NULL, 0);
        if (n >= 0 || errno != ENOSYS) return (int)n;
    }
#endif
    coarse = 1;
    return epoll_wait(epoll_fd, events, EVENTS_MAX, heap_count > 0 ? (int)((left + 999999) / 1000000) : -1);
}

static int listen_on(uint16_t port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 8192) < 0
        || getsockname(listener, (struct sockaddr *)&address, &length) < 0) { perror("mock_server: listen"); exit(1); }
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static unsigned flag_number(int argc, char **argv, const char *name, unsigned otherwise) {
    for (int i = 1; i + 1 < argc; i++) if (strcmp(argv[i], name) == 0) return (unsigned)strtoul(argv[i + 1], NULL, 10);
    return otherwise;
}

int main(int argc, char **argv) {
    int stay = 0;
    for (int i = 1; i < argc; i++) if (strcmp(argv[i], "--stay") == 0) stay = 1;
    defaults.latency_ms = flag_number(argc, argv, "--latency", defaults.latency_ms);
    defaults.chunks = flag_number(argc, argv, "--chunks", defaults.chunks);
    defaults.interval_ms = flag_number(argc, argv, "--interval", defaults.interval_ms);

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = STDIN_FILENO };
    if (!stay && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0) {
        fprintf(stderr, "mock_server: standard input must be a pipe or a terminal; --stay does without\n");
        return 1;
    }
    int listener = listen_on((uint16_t)flag_number(argc, argv, "--port", 0));
    event.data.fd = listener;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);

    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = wait_events(events);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) { accept_all(listener); continue; }
            if (fd == STDIN_FILENO && !stay) {
                char sink[64];
                if (read(STDIN_FILENO, sink, sizeof sink) <= 0) return 0;
                continue;
            }
            struct connection *c = connections[fd];
            if (c == NULL) continue;
            int alive = 1;
            if (events[i].events & EPOLLOUT) {
                alive = flush(c);
                if (c->output_length == 0) watch(c, EPOLLIN);
            }
            if (alive && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) alive = read_input(c);
            if (alive) alive = take_requests(c);
            if (!alive) end_connection(c);
        }
        run_due();
    }
}
