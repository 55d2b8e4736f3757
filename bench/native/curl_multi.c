/* The baseline: what completions cost a C program on one libcurl multi handle that looks for the answer with strstr.
 *
 *   curl_multi LIBCURL batch URL COUNT CONCURRENCY REPEATS
 *   curl_multi LIBCURL fan   URL WIDTH REPEATS
 *
 * LIBCURL is a path or a name for dlopen ("libcurl.so.4"); its few declarations stand here, so no headers are needed.
 * batch: COUNT prompts, CONCURRENCY of them in flight. fan: one prompt, WIDTH prompts that quote its answer, one that
 * quotes all of theirs. The prompts are those of bench/_work.py. The first of 1 + REPEATS rounds opens the connections.
 * SSL_CERT_FILE in the environment names whom https trusts. Prints one JSON object: per round the CPU and wall seconds and the connections opened, and the CRC-32 of the answers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

typedef void CURL, CURLM;
struct curl_slist;
typedef struct { int msg; CURL *easy; union { void *whatever; int result; } data; } CURLMsg;
enum { OPT_URL = 10002, OPT_WRITEDATA = 10001, OPT_WRITEFUNCTION = 20011, OPT_POSTFIELDS = 10015, OPT_POSTFIELDSIZE = 60,
       OPT_HTTPHEADER = 10023, OPT_PRIVATE = 10103, OPT_NOSIGNAL = 99, OPT_CAINFO = 10065, OPT_CAPATH = 10097,
       INFO_PRIVATE = 0x100015, INFO_STATUS = 0x200002, INFO_NUM_CONNECTS = 0x20001a, MOPT_SOCKETFUNCTION = 20001, MOPT_TIMERFUNCTION = 20004, MOPT_MAXCONNECTS = 6,
       POLL_IN = 1, POLL_OUT = 2, POLL_REMOVE = 4, SOCKET_TIMEOUT = -1 };
static CURL *(*easy_init)(void);
static int (*easy_setopt)(CURL *, int, ...), (*easy_getinfo)(CURL *, int, ...);
static CURLM *(*multi_init)(void);
static int (*multi_setopt)(CURLM *, int, ...), (*multi_add)(CURLM *, CURL *), (*multi_remove)(CURLM *, CURL *);
static int (*multi_socket_action)(CURLM *, int, int, int *);
static CURLMsg *(*multi_info_read)(CURLM *, int *);
static struct curl_slist *(*slist_append)(struct curl_slist *, const char *);

/* One request at a time; its easy handle and buffers are used again. */
struct slot { CURL *easy; int index; char *body, *reply; size_t reply_length, reply_room; };

static CURLM *multi;
static int epoll_fd;
static long timer_ms = -1;
static const char *url, *trusted;
static struct slot *slots;
static struct curl_slist *headers;
static long connects;

static void die(const char *what) { fprintf(stderr, "curl_multi: %s\n", what); exit(1); }
static void *or_die(void *memory) { if (memory == NULL) die("out of memory"); return memory; }

static int on_socket(CURL *easy, int fd, int what, void *unused, void *known) {
    (void)easy; (void)unused; (void)known;
    struct epoll_event event = { .data.fd = fd, .events = (what & POLL_IN ? EPOLLIN : 0u) | (what & POLL_OUT ? EPOLLOUT : 0u) };
    if (what == POLL_REMOVE) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &event);
    else if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0 && errno == ENOENT) epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    return 0;
}

static int on_timer(CURLM *m, long ms, void *unused) { (void)m; (void)unused; timer_ms = ms; return 0; }

static size_t on_bytes(char *bytes, size_t size, size_t count, void *data) {
    struct slot *slot = data;
    size_t n = size * count;
    if (slot->reply_length + n + 1 > slot->reply_room)
        slot->reply = or_die(realloc(slot->reply, slot->reply_room = (slot->reply_length + n + 1) * 2));
    memcpy(slot->reply + slot->reply_length, bytes, n);
    slot->reply[slot->reply_length += n] = 0;
    return n;
}

static void start(struct slot *slot, char *const *prompts, int index) {
    if (slot->easy == NULL) {
        slot->easy = or_die(easy_init());
        easy_setopt(slot->easy, OPT_URL, url);
        easy_setopt(slot->easy, OPT_HTTPHEADER, headers);
        easy_setopt(slot->easy, OPT_WRITEFUNCTION, on_bytes);
        easy_setopt(slot->easy, OPT_WRITEDATA, slot);
        easy_setopt(slot->easy, OPT_PRIVATE, slot);
        easy_setopt(slot->easy, OPT_NOSIGNAL, 1L);
        if (trusted != NULL) {
            easy_setopt(slot->easy, OPT_CAINFO, trusted);
            easy_setopt(slot->easy, OPT_CAPATH, (char *)NULL);      /* with a directory the store is parsed for each connection */
        }
    }
    free(slot->body);
    long n = asprintf(&slot->body, "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"max_tokens\":64}", prompts[index]);
    slot->index = index;
    slot->reply_length = 0;
    easy_setopt(slot->easy, OPT_POSTFIELDS, slot->body);
    easy_setopt(slot->easy, OPT_POSTFIELDSIZE, n);
    multi_add(multi, slot->easy);
}

/* The answer in the reply, copied. The mock's answers hold no escapes. */
static char *answer_in(const struct slot *slot) {
    long status = 0;
    easy_getinfo(slot->easy, INFO_STATUS, &status);
    const char *from = status == 200 ? strstr(slot->reply, "\"content\":\"") : NULL;
    if (from == NULL) die("not a completion");
    from += 11;
    return or_die(strndup(from, strcspn(from, "\"")));
}

static void complete(char *const *prompts, char **answers, int count, int concurrency) {
    int started = 0, done = 0, running, left;
    while (started < count && started < concurrency) { start(&slots[started], prompts, started); started++; }
    while (done < count) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll_fd, events, 256, timer_ms < 0 ? -1 : (int)timer_ms);
        if (n <= 0 || timer_ms == 0) { timer_ms = -1; multi_socket_action(multi, SOCKET_TIMEOUT, 0, &running); }
        for (int i = 0; i < n; i++)
            multi_socket_action(multi, events[i].data.fd,
                (events[i].events & EPOLLOUT ? POLL_OUT : 0) | (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) ? POLL_IN : 0), &running);
        for (CURLMsg *msg; (msg = multi_info_read(multi, &left)) != NULL; ) {
            struct slot *slot;
            long opened = 0;
            if (msg->data.result != 0) die("a transfer failed");
            easy_getinfo(msg->easy, INFO_PRIVATE, &slot);
            easy_getinfo(msg->easy, INFO_NUM_CONNECTS, &opened);
            connects += opened;
            answers[slot->index] = answer_in(slot);
            multi_remove(multi, slot->easy);
            done++;
            if (started < count) { start(slot, prompts, started); started++; }
        }
    }
}

/* ------------------------------------------------------------------ the work and its measure */

static uint32_t crc32(uint32_t crc, const char *bytes, size_t length) {
    crc = ~crc;
    for (size_t i = 0; i < length; i++) {
        crc ^= (uint8_t)bytes[i];
        for (int k = 0; k < 8; k++) crc = crc & 1 ? 0xedb88320u ^ (crc >> 1) : crc >> 1;
    }
    return ~crc;
}

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long peak_kib(void) {
    char line[128];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) sscanf(line, "VmHWM: %ld", &kib);
    if (file) fclose(file);
    return kib;
}

static void batch(char **prompts, char **answers, int count, int concurrency) {
    for (int i = 0; i < count; i++)
        if (asprintf(&prompts[i], "Item %05d: write one line about bee number %d.", i, i) < 0) die("out of memory");
    complete(prompts, answers, count, concurrency);
}

static void fan(char **prompts, char **answers, int width) {
    prompts[0] = or_die(strdup("Outline a report about bees."));
    complete(prompts, answers, 1, 1);
    size_t length = 6;
    for (int i = 0; i < width; i++)
        if (asprintf(&prompts[1 + i], "Section %d of: %s", i, answers[0]) < 0) die("out of memory");
    complete(prompts + 1, answers + 1, width, width);
    for (int i = 1; i <= width; i++) length += strlen(answers[i]) + 3;
    char *join = prompts[width + 1] = or_die(malloc(length)), *end = stpcpy(join, "Join: ");
    for (int i = 1; i <= width; i++) end = stpcpy(stpcpy(end, answers[i]), i < width ? " | " : "");
    complete(prompts + width + 1, answers + width + 1, 1, 1);
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) die(name);
    return found;
}

int main(int argc, char **argv) {
    int is_batch = argc == 7 && strcmp(argv[2], "batch") == 0;
    if (!is_batch && !(argc == 6 && strcmp(argv[2], "fan") == 0)) die("see the top of curl_multi.c for the arguments");
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    if (library == NULL) die(dlerror());
    ((int (*)(long))symbol(library, "curl_global_init"))(3);
    easy_init = symbol(library, "curl_easy_init"); easy_setopt = symbol(library, "curl_easy_setopt");
    easy_getinfo = symbol(library, "curl_easy_getinfo"); slist_append = symbol(library, "curl_slist_append");
    multi_init = symbol(library, "curl_multi_init"); multi_setopt = symbol(library, "curl_multi_setopt");
    multi_add = symbol(library, "curl_multi_add_handle"); multi_remove = symbol(library, "curl_multi_remove_handle");
    multi_socket_action = symbol(library, "curl_multi_socket_action"); multi_info_read = symbol(library, "curl_multi_info_read");

    url = argv[3];
    trusted = getenv("SSL_CERT_FILE");
    int width = atoi(argv[4]), concurrency = is_batch ? atoi(argv[5]) : width, repeats = atoi(argv[is_batch ? 6 : 5]);
    int count = is_batch ? width : width + 2;
    if (width < 1 || concurrency < 1 || repeats < 0) die("counts must be positive");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    slots = or_die(calloc((size_t)concurrency, sizeof *slots));
    headers = slist_append(slist_append(NULL, "Content-Type: application/json"), "Authorization: Bearer bench-key");
    multi = or_die(multi_init());
    multi_setopt(multi, MOPT_SOCKETFUNCTION, on_socket);
    multi_setopt(multi, MOPT_TIMERFUNCTION, on_timer);
    multi_setopt(multi, MOPT_MAXCONNECTS, (long)concurrency);

    char **prompts = or_die(calloc((size_t)count, sizeof *prompts)), **answers = or_die(calloc((size_t)count, sizeof *answers));
    uint32_t first = 0;
    printf("{\"rounds\":[");
    for (int round = 0; round <= repeats; round++) {
        connects = 0;
        double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
        if (is_batch) batch(prompts, answers, count, concurrency); else fan(prompts, answers, width);
        cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        wall = seconds(CLOCK_MONOTONIC) - wall;
        uint32_t crc = 0;
        for (int i = 0; i < count; i++) {
            if (i > 0) crc = crc32(crc, "\n", 1);
            crc = crc32(crc, answers[i], strlen(answers[i]));
            free(answers[i]); free(prompts[i]);
        }
        if (round == 0) first = crc; else if (crc != first) die("two rounds gave different answers");
        printf("%s{\"cpu_s\":%.6f,\"wall_s\":%.6f,\"connections\":%ld}", round ? "," : "", cpu, wall, connects);
    }
    printf("],\"checksum\":%u,\"rss_peak_kib\":%ld}\n", first, peak_kib());
    return 0;
}
