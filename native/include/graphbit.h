/* graphbit.h - the whole C ABI of the graphbit core, and its specification.
 *
 * Each comment answers four questions: what it does, who owns the bytes, which thread may call, which failures.
 * Where a comment is silent: any thread may call; bytes passed in are borrowed for the call; the only failures are
 * GB_OUT_OF_MEMORY and GB_INVALID_ARGUMENT. Outputs come last and are written only when GB_OK is returned.
 *
 * The core calls nothing back. News leaves it through gb_wait alone. Enumerators and struct fields are appended,
 * never changed. The text between the two markers is read by cffi as it stands: no preprocessor there.
 */
#ifndef GRAPHBIT_H
#define GRAPHBIT_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
/* ---- cffi reads from here ---- */

/* ------------------------------------------------------------------ vocabulary */

typedef enum gb_status {
    GB_OK = 0,
    GB_OUT_OF_MEMORY = 1,
    GB_INVALID_ARGUMENT = 2,    /* an index, count or enumerator is out of range: a fault of the binding */
    GB_CYCLE = 3,               /* gb_plan_create: the graph has a cycle, see gb_cycle */
    GB_SHUTDOWN = 4,            /* the runtime is closing or closed; nothing was started */
    GB_INTERRUPTED = 5,         /* gb_wait: a signal arrived; look at it and call again */
    GB_TIMED_OUT = 6,           /* gb_wait: nothing arrived in time */
    GB_NO_THREAD = 7,           /* the operating system refused a thread or a descriptor */
} gb_status;

/* What became of a node, and before that where it stands. 3 to 6 are final. */
typedef enum gb_state {
    GB_BLOCKED = 0,             /* a predecessor has not ended */
    GB_READY = 1,               /* waits for a thread or a permit */
    GB_RUNNING = 2,
    GB_SUCCEEDED = 3,
    GB_FAILED = 4,
    GB_SKIPPED = 5,             /* a predecessor failed, or a condition chose another way */
    GB_CANCELLED = 6,           /* the run was stopped before the node ended, or nobody needs it any more */
    GB_WAITING = 7,             /* for its backoff, the runs it started, or the node that stands in for it */
} gb_state;

/* Why a request did not succeed. The HTTP status, if one arrived, stands beside it. */
typedef enum gb_failure {
    GB_FAILURE_NONE = 0,
    GB_FAILURE_CANCELLED = 1,
    GB_FAILURE_REFUSED = 2,         /* never sent: URL or header not acceptable (scheme, CR, LF, NUL, space) */
    GB_FAILURE_NO_LIBCURL = 3,
    GB_FAILURE_RESOLVE = 4,
    GB_FAILURE_CONNECT = 5,
    GB_FAILURE_TLS = 6,
    GB_FAILURE_CONNECT_TIMEOUT = 7,
    GB_FAILURE_IDLE_TIMEOUT = 8,
    GB_FAILURE_TOTAL_TIMEOUT = 9,
    GB_FAILURE_CLOSED = 10,         /* the connection broke before the reply was whole */
    GB_FAILURE_TOO_LARGE = 11,
    GB_FAILURE_PROTOCOL = 12,       /* not HTTP, or HTTP that contradicts itself */
    GB_FAILURE_STATUS = 13,         /* a whole reply with a status of 400 or above */
    GB_FAILURE_BAD_REPLY = 14,      /* the reply is not the JSON that was promised */
    GB_FAILURE_PROVIDER = 15,       /* an error object inside a reply with a good status */
    GB_FAILURE_TEMPLATE = 16,       /* a placeholder's path leads nowhere in the value it names */
    GB_FAILURE_OUT_OF_MEMORY = 17,
    GB_FAILURE_SHUTDOWN = 18,
    GB_FAILURE_OTHER = 19,
    GB_FAILURE_NODE_TIMEOUT = 20,   /* an attempt took longer than gb_node.timeout_ns */
    GB_FAILURE_NONE_LEFT = 21,      /* a GB_JOIN_ANY none of whose predecessors succeeded */
    GB_FAILURE_NATIVE = 22,         /* a native function reported a failure, or was to be given what is no number */
    GB_FAILURE_FIRST_BYTE_TIMEOUT = 23,
    GB_FAILURE_REDIRECT = 24,       /* a redirect that is not followed: too many, from https to http, to no URL */
    GB_FAILURE_NOT_PUBLIC = 25,     /* GB_ROUTE_PUBLIC_ONLY, and the host has no public address */
    GB_FAILURE_CIRCUIT_OPEN = 26,   /* never sent: the server has failed too often; gb_reply.retry_after_ms: until the next probe */
    GB_FAILURE_QUEUE_TIMEOUT = 27,  /* never sent: it waited too long for the provider's limits */
} gb_failure;

typedef struct gb_bytes { const uint8_t *ptr; size_t len; } gb_bytes;
typedef struct gb_span  { uint32_t offset; uint32_t length; } gb_span;  /* into gb_plan_spec.text */
typedef struct gb_range { uint32_t first; uint32_t count; } gb_range;   /* of the array the field's comment names */

typedef enum gb_value_kind {
    GB_VALUE_NONE = 0,          /* absent: not produced, or kept by the binding alone */
    GB_VALUE_TEXT = 1,
    GB_VALUE_JSON = 2,          /* one JSON document, UTF-8 */
    GB_VALUE_NUMBER = 3,        /* a double: `len` holds its bits, `ptr` is NULL */
    GB_VALUE_BYTES = 4,
} gb_value_kind;
typedef struct gb_value { const uint8_t *ptr; size_t len; uint32_t kind; } gb_value;

/* ------------------------------------------------------------------ plan: what a workflow is made of */

/* A template is a list of segments. A slot inserts value `source` (0..node_count-1: a node's output; from
 * node_count on: a run input), or what `text` as a path ("key.0.name") finds in it read as JSON. An absent value
 * inserts nothing. GB_SEGMENT_IF_PRESENT skips the `count` segments behind it when value `source` is absent. */
typedef enum gb_segment_kind { GB_SEGMENT_LITERAL = 0, GB_SEGMENT_SLOT = 1, GB_SEGMENT_IF_PRESENT = 2 } gb_segment_kind;
typedef enum gb_escape {
    GB_ESCAPE_PLAIN = 0,        /* text as it is, JSON compact as it is */
    GB_ESCAPE_JSON_STRING = 1,  /* the same, escaped for the inside of a JSON string */
    GB_ESCAPE_JSON = 2,         /* a JSON value: text becomes a quoted string, JSON stays JSON, absent becomes null */
    GB_ESCAPE_URL = 3,          /* percent-encoded (RFC 3986 unreserved characters stay) */
} gb_escape;
typedef struct gb_segment {
    uint32_t kind; uint32_t escape; uint32_t source; uint32_t count;
    gb_span text;               /* the literal, or the slot's path (empty: the whole value) */
} gb_segment;

/* One rule of an extraction program. Paths are "a.0.b" with "*" for every element of an array; the "*"s of one rule
 * stand for the same positions, left to right. For each match of `when_path` whose value equals the JSON scalar
 * `when_value` (null: or the path leads nowhere; empty value: the path exists; empty path: always) what `take` finds (empty:
 * the document) goes `into` a field of the reply. `index` (tool calls): a path to the call's number; empty: the position of
 * the last "*", counted on from event to event where the piece is SET. GB_INTO_VALUE with APPEND makes an array of all
 * matches. ADD is for counts, APPEND for everything else. */
typedef enum gb_into {
    GB_INTO_TEXT = 0, GB_INTO_REASONING = 1, GB_INTO_TOOL_ID = 2, GB_INTO_TOOL_NAME = 3, GB_INTO_TOOL_ARGUMENTS = 4,
    GB_INTO_MODEL = 5, GB_INTO_ID = 6, GB_INTO_FINISH = 7,
    GB_INTO_PROMPT_TOKENS = 8, GB_INTO_COMPLETION_TOKENS = 9, GB_INTO_TOTAL_TOKENS = 10,
    GB_INTO_CACHE_READ_TOKENS = 11, GB_INTO_CACHE_CREATION_TOKENS = 12, GB_INTO_REASONING_TOKENS = 13,
    GB_INTO_ERROR_MESSAGE = 14, GB_INTO_ERROR_TYPE = 15, GB_INTO_ERROR_CODE = 16,
    GB_INTO_VALUE = 17,         /* the node's output as raw JSON (Node.http with a JSON path) */
} gb_into;
typedef enum gb_fold { GB_FOLD_SET = 0, GB_FOLD_APPEND = 1, GB_FOLD_LAST = 2, GB_FOLD_ADD = 3 } gb_fold; /* SET: the first wins */
typedef struct gb_rule {
    gb_span when_path; gb_span when_value; gb_span take; gb_span index;
    uint32_t into; uint32_t fold;
} gb_rule;

typedef struct gb_header { gb_span name; uint32_t value; /* index into templates */ } gb_header;

/* When to try again, and how long to wait before that: graph/retry.zig. */
typedef struct gb_retry {
    uint32_t attempts_max;              /* all tries together; 1: no retry */
    uint32_t backoff_first_ms, backoff_max_ms;
    uint32_t factor_permille;           /* each pause is so many thousandths of the one before: 2000 doubles */
    uint32_t jitter_permille;           /* so much of a pause is spread by dice; 0: none */
    uint32_t status_count;
    uint16_t statuses[12];              /* of replies that are tried again; none: 408, 409, 429, 5xx */
} gb_retry;

/* How requests get to their servers, where that is not the runtime's way. Paths are of PEM files; an empty span: not given. */
typedef enum gb_route_flags {
    GB_ROUTE_PROXY = 1,             /* `proxy` counts, also where it is empty: then there is none */
    GB_ROUTE_PUBLIC_ONLY = 2,       /* connects to public addresses only (checked for each connection), and through no proxy */
} gb_route_flags;
typedef struct gb_route {
    gb_span proxy, no_proxy;        /* a URL; host names and suffixes with commas between them */
    gb_span ca_file, ca_path;       /* in place of the runtime's trust store */
    gb_span client_cert, client_key, client_key_password;
    uint32_t flags; uint32_t reserved;
} gb_route;

/* Whether a reply is handed on as it comes, see gb_call_read. For requests of gb_call_start only. */
typedef enum gb_stream {
    GB_STREAM_NONE = 0,
    GB_STREAM_DELTAS = 1,           /* pieces of text that the rules find; ends well only with a finish or "[DONE]" */
    GB_STREAM_EVENTS = 2,           /* the data of each event (text/event-stream), or each line (NDJSON) */
    GB_STREAM_BYTES = 3,            /* the body as it comes, decoded */
} gb_stream;

/* What holds requests back before they are sent, to respect a provider's limits. All requests of the process with one `key` (a
 * base URL, a credential, a model; not shown to anybody but gb_admission_read) share one controller; where they say something
 * else, the strictest of each number counts, until a minute after it was last asked for. See http/admission.zig. */
typedef enum gb_admission_flags {
    GB_ADMISSION_ADAPTIVE = 1,      /* refusals (429, 503, 529) narrow how many are sent, success widens it */
    GB_ADMISSION_LEARN = 2,         /* limits that replies announce (x-ratelimit-*, anthropic-ratelimit-*) count */
    GB_ADMISSION_BREAKER = 4,       /* a server that fails again and again is not asked for a while */
    GB_ADMISSION_HEDGE = 8,         /* a second attempt where the first is slow to begin */
    GB_ADMISSION_COALESCE = 16,     /* of equal requests on their way one is sent */
} gb_admission_flags;
typedef struct gb_admission {
    gb_span key;
    uint32_t flags;
    uint32_t concurrency;           /* so many at once; 0, here and below: no bound but what is learned */
    uint32_t requests_per_minute;
    uint32_t queue_timeout_ms;      /* how long a request may wait before each attempt */
    uint64_t tokens_per_minute;     /* of prompts and answers together: reserved by estimate, corrected by the reply's usage */
} gb_admission;

/* An HTTP exchange: what to send, how to read the answer, how long and how often to try. */
typedef enum gb_request_flags {
    GB_REQUEST_BODY = 1,            /* `body` is sent (even if empty) */
    GB_REQUEST_RULES_REQUIRED = 2,  /* the reply must be JSON; without this flag a reply without rules is its body */
    GB_REQUEST_KEEP_BODY = 4,       /* gb_reply.body is kept after success as well */
    GB_REQUEST_INSECURE = 8,        /* TLS certificates are not checked */
} gb_request_flags;
typedef struct gb_request {
    gb_span method;
    uint32_t url; uint32_t body;        /* indices into templates */
    gb_range headers;                   /* of headers */
    gb_range rules;                     /* of rules */
    uint32_t flags;
    uint32_t connect_timeout_ms, idle_timeout_ms, total_timeout_ms;  /* 0: none; total is for one attempt */
    gb_retry retry;
    uint64_t body_bytes_max;            /* of a reply; 0: the engine's default */
    struct gb_cache *cache;             /* finished calls are looked up and kept here; NULL: not at all. The plan holds it */
    uint64_t wire_bytes_max;            /* of a reply, before it is decoded; 0: the engine's default */
    uint32_t first_byte_timeout_ms;     /* from the connection to the reply's first byte; 0: none */
    uint32_t head_bytes_max;            /* of all heads of a reply; 0: the engine's default */
    uint32_t event_bytes_max;           /* of one event or line of a stream; 0: 16 MiB */
    uint32_t json_depth_max;            /* 0: 128; at most 1024 */
    uint32_t redirects_max;             /* GET and HEAD without a body follow so many; 0: a redirect is the reply */
    uint32_t route;                     /* number of `routes` + 1; 0: the runtime's way */
    gb_span idempotency_header;         /* a header that carries a random key, the same for all attempts of a call; empty: none */
    uint32_t stream;                    /* gb_stream */
    uint32_t admission;                 /* number of `admissions` + 1; 0: nothing holds it back */
} gb_request;

/* A C function that workers call without the interpreter. It must be safe to call from any thread, and outlive the plan.
 * VOID:    void f(void), no output.
 * NUMBERS: double f(double, ...), one for each argument. Arguments may be numbers, or texts and JSON that hold one.
 * BYTES:   int64_t f(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_capacity) returns how many bytes the output
 *          has; if that is more than `out_capacity` it is called again with so many. Below 0: the node fails with that code. At most one argument. */
typedef enum gb_native_kind { GB_NATIVE_VOID = 0, GB_NATIVE_NUMBERS = 1, GB_NATIVE_BYTES = 2 } gb_native_kind;
typedef struct gb_native {
    void *function;
    uint32_t kind; uint32_t argument_count;
    uint32_t arguments[8];              /* values */
    uint64_t out_capacity;              /* BYTES: room for the output at first */
} gb_native;

/* What an edge asks of its source's output: what `path` finds in it ("": the whole) compared with the JSON value `value`. */
typedef enum gb_compare {
    GB_COMPARE_EQ = 0, GB_COMPARE_NE = 1, GB_COMPARE_LT = 2, GB_COMPARE_LE = 3, GB_COMPARE_GT = 4, GB_COMPARE_GE = 5,
    GB_COMPARE_EXISTS = 6, GB_COMPARE_ABSENT = 7, GB_COMPARE_IN = 8,
} gb_compare;
typedef struct gb_predicate { gb_span path; gb_span value; uint32_t compare; } gb_predicate;

typedef enum gb_node_kind {
    GB_NODE_CALLBACK = 0,       /* run by the binding, handed out by gb_wait */
    GB_NODE_TEMPLATE = 1,       /* `body` = template; output is text */
    GB_NODE_REQUEST = 2,        /* `body` = request */
    GB_NODE_DELAY = 3,          /* succeeds `delay_ns` after it started; output is value `body` - 1, or none where that is 0 */
    GB_NODE_NATIVE = 4,         /* `body` = native */
} gb_node_kind;
typedef enum gb_node_flags {
    GB_NODE_CONDITION = 1,      /* a callback whose result names the successors to follow (gb_settled.chosen) */
    GB_NODE_LOOP = 2,           /* a callback for gb_run_options.loop_queue (an event loop), not for any thread */
    GB_NODE_HANDLED = 4,        /* its failure neither stops the run nor fails it */
    GB_NODE_ALONE = 8,          /* a callback that is handed out by itself, to callback threads only: it blocks by nature */
    GB_NODE_COMPOSITE = 16,     /* a callback that may settle as GB_WAITING for runs it started; holds no permits */
    GB_NODE_TIMEOUT_IS_FINAL = 32,  /* its retry policy is not for attempts that took too long */
} gb_node_flags;
/* How a node looks at its predecessors. "Live" is one that succeeded and whose edge is followed. */
typedef enum gb_join {
    GB_JOIN_ALL = 0,            /* waits for all; a failed one skips it; runs if at least one deciding edge is live */
    GB_JOIN_ANY = 1,            /* ready with the first live one; what feeds nothing else is cancelled then */
    GB_JOIN_ALL_DONE = 2,       /* waits for all, whatever becomes of them */
} gb_join;
typedef struct gb_node {
    uint32_t kind; uint32_t flags; uint32_t body; uint32_t join;
    uint64_t delay_ns;
    uint64_t timeout_ns;        /* of one attempt of a callback; 0: none. Implies GB_NODE_ALONE */
    uint32_t retry;             /* of a callback: number of `retries` + 1; 0: none */
    uint32_t stand_in;          /* node + 1 that runs when this one has failed for good and whose outcome becomes this one's;
                                 * it has no edges of its own; 0: none */
    uint32_t limits;            /* bits: which of gb_run_options.limits it holds a permit of while it executes */
    uint32_t reserved;
} gb_node;

typedef struct gb_plan_spec {
    uint32_t node_count, edge_count, input_count;
    uint32_t segment_count, template_count, header_count, rule_count, request_count;
    uint32_t native_count, predicate_count, retry_count, route_count;
    const gb_node *nodes;
    const uint32_t *edges;          /* edge_count pairs: from, to */
    const uint32_t *edge_rules;     /* for each edge 0, or the number of the predicate + 1 that must hold; NULL: none has one */
    const gb_segment *segments;
    const gb_range *templates;      /* ranges of segments */
    const gb_header *headers;
    const gb_rule *rules;
    const gb_request *requests;
    const gb_native *natives;
    const gb_predicate *predicates;
    const gb_retry *retries;
    const gb_route *routes;
    gb_bytes text;                  /* all literals, paths and names, UTF-8 */
    const gb_admission *admissions;
    uint32_t admission_count; uint32_t reserved;
} gb_plan_spec;

typedef struct gb_plan gb_plan;
/* A cycle, when gb_plan_create returned GB_CYCLE: nodes[0] -> nodes[1] -> ... -> nodes[0]; longer ones are cut. */
typedef struct gb_cycle { uint32_t count; uint32_t nodes[64]; } gb_cycle;

/* Copies, checks and freezes a graph. The plan is immutable, shared by any number of runs and threads.
 * GB_CYCLE fills *cycle. A plan may have no nodes: then it only carries requests for gb_call_start. */
gb_status gb_plan_create(const gb_plan_spec *spec, gb_cycle *cycle, gb_plan **plan);
/* Gives the handle back. Runs that use the plan keep it alive. */
void gb_plan_destroy(gb_plan *plan);
/* For each node the callback that follows it in its linear segment, or UINT32_MAX. A segment is claimed and run as one:
 * whoever runs a node's callback goes on with its continuation. `continuations` has room for node_count numbers. */
void gb_plan_continuations(const gb_plan *plan, uint32_t *continuations);

/* ------------------------------------------------------------------ runtime */

typedef struct gb_runtime gb_runtime;
typedef struct gb_runtime_options {
    uint32_t worker_count;          /* native workers; 0: 2 x cores, at most 32 */
    uint32_t callback_thread_max;   /* 0: 16. Threads given up in a callback do not count */
    size_t worker_stack_bytes;      /* 0: 1 MiB */
    gb_bytes ca_file, ca_path;      /* trust store for TLS; both empty: libcurl's own */
    gb_bytes http_proxy, https_proxy, no_proxy;     /* as environments have them; empty: none */
    uint32_t connections_max;       /* 0: as many as the process may have descriptors, with some left for others */
    uint32_t connections_per_origin;    /* to one scheme, host and port; 0: any number */
} gb_runtime_options;
typedef struct gb_runtime_stats {
    uint32_t worker_threads, callback_threads, callback_threads_parked, http_threads, timer_threads;
    uint32_t callback_threads_abandoned;    /* in callbacks that timed out or whose run is over */
    uint32_t callback_threads_hard_max;     /* of all callback threads, abandoned ones included */
    uint32_t runs_active, calls_active;
    uint64_t runs_started, nodes_settled, tasks_executed, tasks_stolen;
    uint64_t requests_started, requests_in_flight, requests_queued, requests_retried;
    uint64_t connections_opened, connections_reused, bytes_received, bytes_sent;
    uint64_t started_ns;
} gb_runtime_stats;

/* Makes a runtime. No thread starts before something needs it. */
gb_status gb_runtime_create(const gb_runtime_options *options, gb_runtime **runtime);
/* Stops: every run and call ends as cancelled, every gb_wait returns GB_SHUTDOWN, native threads are joined.
 * Call once, from a thread that is not in gb_wait. Handles stay readable. */
void gb_runtime_shutdown(gb_runtime *runtime);
/* Gives the handle back, after gb_runtime_shutdown. Queues, runs and calls keep what they need alive. */
void gb_runtime_destroy(gb_runtime *runtime);
void gb_runtime_stats_read(gb_runtime *runtime, gb_runtime_stats *stats);
/* Of all requests since the runtime was created. Durations of those that ended with a reply; percentiles are right within 4 %. */
typedef struct gb_latency { uint64_t count, p50_ns, p90_ns, p99_ns, max_ns; } gb_latency;
typedef enum gb_retry_reason {
    GB_RETRY_NO_CONNECTION = 0, GB_RETRY_CLOSED = 1, GB_RETRY_TIMEOUT = 2, GB_RETRY_REQUEST_TIMEOUT = 3, GB_RETRY_CONFLICT = 4,
    GB_RETRY_RATE_LIMIT = 5, GB_RETRY_SERVER_ERROR = 6, GB_RETRY_OTHER = 7,
} gb_retry_reason;
typedef struct gb_http_stats {
    uint64_t started;               /* every attempt is a request of its own, and every hop of a redirect */
    uint64_t in_flight, queued;     /* sent or about to be; waiting for a connection or for their host's address */
    uint64_t succeeded, failed, cancelled;  /* below HTTP: a reply with status 500 is a success here */
    uint64_t connections_open, connections_opened, connections_reused;
    uint64_t bytes_sent, bytes_received;
    uint64_t retries[8];            /* by gb_retry_reason */
    gb_latency first_byte, total;
} gb_http_stats;
void gb_http_stats_read(gb_runtime *runtime, gb_http_stats *stats);
/* Monotonic nanoseconds: the operating system's, or the virtual clock's. */
uint64_t gb_runtime_now(gb_runtime *runtime);
/* Virtual time: the clock stands still and jumps to the next timer whenever nothing is running or in flight. */
void gb_runtime_set_virtual(gb_runtime *runtime, int32_t on);
/* The core's version. Static. */
const char *gb_version(void);
/* The version of the libcurl in use, loading it if need be; NULL where none can be had. Static. */
const char *gb_curl_version(gb_runtime *runtime);
typedef struct gb_memory { uint64_t resident, available, total; } gb_memory;
/* Bytes: this process's resident memory, and the machine's available and total memory. 0: not known. */
void gb_memory_read(gb_memory *memory);

/* ------------------------------------------------------------------ queue: what one waiting thread or event loop waits on */

typedef struct gb_queue gb_queue;
typedef struct gb_run gb_run;
typedef struct gb_call gb_call;
typedef struct gb_limits gb_limits;
typedef struct gb_cache gb_cache;

typedef enum gb_queue_kind {
    GB_QUEUE_CALLER = 0,        /* a thread waiting for its own runs and calls; runs callbacks of the run it pulls for */
    GB_QUEUE_THREAD = 1,        /* a callback thread: runs callbacks of any run */
    GB_QUEUE_LOOP = 2,          /* an event loop: has a descriptor, readable while there is news */
} gb_queue_kind;
/* `token` names the queue in gb_news.lender. One thread at a time may wait on a queue. GB_NO_THREAD: no descriptor. */
gb_status gb_queue_create(gb_runtime *runtime, uint32_t kind, uint64_t token, gb_queue **queue);
/* Undelivered items are dropped. Not while a thread waits on it. */
void gb_queue_destroy(gb_queue *queue);
/* The descriptor of a GB_QUEUE_LOOP, else -1. It belongs to the queue: watch it for reading, do not read it. */
int64_t gb_queue_descriptor(gb_queue *queue);
/* `queue` (GB_QUEUE_CALLER) is used by a thread that runs callbacks for `outer` (GB_QUEUE_THREAD) and waits in one of them. Once,
 * right after it was made. */
void gb_queue_within(gb_queue *queue, gb_queue *outer);
/* Wakes a thread in gb_wait on this queue, or the next one to come: it returns GB_OK with empty news. */
void gb_queue_wake(gb_queue *queue);

/* The result of one callback that is more than "it succeeded". */
typedef struct gb_settled {
    uint32_t state;                 /* GB_SUCCEEDED, GB_FAILED, GB_CANCELLED; GB_READY: not started, take it back;
                                     * GB_WAITING: hand it out again when one of the runs it started is over */
    uint32_t chosen_count;
    const uint32_t *chosen;         /* GB_NODE_CONDITION: the successors to follow */
    gb_value value;                 /* for native nodes that insert it; copied */
    uint32_t retry;                 /* GB_FAILED: 1 if the node's retry policy may try again */
    uint32_t attempt;               /* gb_news.attempt, if that was given: a result that comes too late is dropped */
} gb_settled;
/* Results on their way in. nodes[i] with the top bit clear succeeded and no native node wants its value; with the top
 * bit set, the next of `settled` tells. In the order in which the callbacks ended, at ended_ns[i], having begun at
 * began_ns[i]: times of a monotonic clock that `skew_ns` makes gb_runtime_now's. In virtual time they are not looked at. */
typedef struct gb_finished {
    gb_run *run;
    uint32_t count; uint32_t settled_count;
    int64_t skew_ns;
    uint32_t nodes[256];
    uint64_t began_ns[256];
    uint64_t ended_ns[256];
    gb_settled settled[256];
} gb_finished;

typedef enum gb_item_kind {
    GB_ITEM_RUN_OVER = 1,       /* token: as given to gb_run_start or gb_run_attach */
    GB_ITEM_CALL_OVER = 2,      /* token: as given to gb_call_start; state, failure and text as in gb_call_reply */
    GB_ITEM_RUN_STOPPING = 3,   /* to the loop queue: cancel the tasks of the run with this token */
    GB_ITEM_NODE_OVER = 4,      /* to the loop queue: cancel the task of node `failure` of this run: it timed out, or is not needed */
    GB_ITEM_EVENTS = 5,         /* token: as given to gb_run_listen; gb_run_events has some, or nothing is to come */
    GB_ITEM_DELTAS = 6,         /* token: as given to gb_call_start; gb_call_read has some */
    GB_ITEM_EXCHANGE = 7,       /* token: as given to gb_exchange_start; gb_exchange_read has something new */
} gb_item_kind;
typedef struct gb_item {
    uint64_t token;
    uint32_t kind; uint32_t failure;
    gb_bytes text;              /* belongs to the call until gb_call_release */
} gb_item;
/* News on its way out: callbacks of at most one run, and items. */
typedef struct gb_news {
    uint64_t run_token;         /* of the callbacks in `nodes` */
    uint64_t lender;            /* token of a queue whose thread is held up in a callback: run what is left of its batch; else 0 */
    uint32_t node_count; uint32_t item_count;
    uint32_t start_thread;      /* 1: start one more callback thread before anything else */
    uint32_t more;              /* 1: items are left, call again before waiting elsewhere */
    uint32_t attempt;           /* of the one callback in `nodes` where it was handed out alone, else 0 */
    uint32_t retire;            /* 1: there are threads enough; this one ends */
    uint32_t nodes[256];
    gb_item items[64];
} gb_news;

/* The one waiting function. Takes in the results of callbacks (`finished`, may be NULL), then waits until there is news
 * for this queue, at most `timeout_ns` (negative: for ever; 0: does not wait).
 * GB_INTERRUPTED, GB_TIMED_OUT, GB_SHUTDOWN: the results were taken in, the news is empty. */
gb_status gb_wait(gb_queue *queue, const gb_finished *finished, int64_t timeout_ns, gb_news *news);
/* Takes in results and returns at once; for a thread with callbacks left. */
gb_status gb_settle(gb_queue *queue, const gb_finished *finished);
/* Asks for one more callback thread to help with what is left of lender's batch. Returns 1 when the caller should start one. */
int32_t gb_queue_lend(gb_queue *queue, uint64_t lender);

/* ------------------------------------------------------------------ run: one execution of a plan */

typedef enum gb_run_flags {
    GB_RUN_CONTINUE = 1,            /* a failure does not stop independent nodes */
    GB_RUN_CALLER_PULLS = 2,        /* `queue`'s thread will run callbacks of this run, and of runs it starts, in gb_wait */
} gb_run_flags;
typedef struct gb_run_options {
    gb_queue *queue;                /* is told GB_ITEM_RUN_OVER; NULL: nobody yet, see gb_run_attach */
    gb_queue *loop_queue;           /* gets GB_NODE_LOOP callbacks; NULL where the plan has none */
    uint64_t token;                 /* names the run in news: callbacks, over, stopping */
    uint64_t timeout_ns;            /* 0: none. When it runs out the run is cancelled, gb_run_summary tells */
    uint32_t flags;
    uint32_t input_count;
    const gb_value *inputs;         /* copied; GB_VALUE_NONE where no native node inserts it */
    gb_run *parent;                 /* the run whose composite node starts this one; NULL: none. When this run is over that node
                                     * is handed out again; when that node ends or its run stops, this run is cancelled */
    uint32_t parent_node;
    uint32_t item_count;            /* a run of a plan without nodes: so many items are handed out as if they were callbacks.
                                     * Items are not reported one by one; a failed one stops the run unless GB_RUN_CONTINUE */
    uint32_t item_live_max;         /* so many items are out at once; 0: no bound */
    uint32_t event_capacity;        /* 0: no events; else how many are kept for a reader that is late */
    gb_limits *limits;              /* whose permits the plan's nodes need; NULL: none. Held by the run */
} gb_run_options;
/* Starts a run. GB_SHUTDOWN: nothing was started. The handle is the caller's until gb_run_release, running or not; it is written before
 * anything starts, so that a thread that is handed a callback of the run can read it there. */
gb_status gb_run_start(gb_runtime *runtime, gb_plan *plan, const gb_run_options *options, gb_run **run);
/* Stops the run: nothing more starts, transfers are closed, callbacks that are running count as cancelled at once and
 * their results are dropped. Does nothing to a run that is over. */
void gb_run_cancel(gb_run *run);
/* One more queue to be told; at once when the run is over already. With `pulls`, as GB_RUN_CALLER_PULLS. */
gb_status gb_run_attach(gb_run *run, gb_queue *queue, uint64_t token, int32_t pulls);
/* Takes a queue's wish to be told back. */
void gb_run_detach(gb_run *run, gb_queue *queue);
/* Not 0 once no further callback of this run should begin. Readable while the handle is held. */
const uint8_t *gb_run_stop_flag(const gb_run *run);

typedef enum gb_cause { GB_CAUSE_NONE = 0, GB_CAUSE_FAILURE = 1, GB_CAUSE_CANCEL = 2, GB_CAUSE_TIMEOUT = 3, GB_CAUSE_SHUTDOWN = 4 } gb_cause;
typedef struct gb_run_summary {
    uint32_t over;                  /* 0 while nodes are left */
    uint32_t cause;                 /* why it was stopped early, or GB_CAUSE_FAILURE where a node failed under GB_RUN_CONTINUE */
    uint32_t first_failed;          /* node, or UINT32_MAX */
    uint32_t counts[8];             /* nodes by gb_state; items of a run of items: succeeded, failed, cancelled */
    uint64_t started_ns, ended_ns;
} gb_run_summary;
typedef struct gb_node_report {
    uint64_t ready_ns, started_ns, ended_ns;    /* of the first attempt, the first, the last; 0: never */
    uint32_t state; uint32_t attempts;
} gb_node_report;
/* What a node waited for, and how long earlier attempts took. Zeroes where nothing of the kind can have happened. */
typedef struct gb_node_waits {
    uint64_t limit_ns, backoff_ns;  /* for permits; between attempts */
    uint64_t earlier_ns;            /* executing, in attempts before the last one */
    uint64_t last_started_ns;       /* when the last attempt began */
} gb_node_waits;
/* How many nodes or items have not ended; 0: the run is over. Readable while the handle is held. */
const uint32_t *gb_run_remaining(const gb_run *run);
/* Not 0 once every node has ended. */
int32_t gb_run_is_over(const gb_run *run);
void gb_run_summary_read(const gb_run *run, gb_run_summary *summary);
/* Reports of nodes first..first+count-1; at any time. */
gb_status gb_run_reports(const gb_run *run, uint32_t first, uint32_t count, gb_node_report *reports);
gb_status gb_run_waits(const gb_run *run, uint32_t first, uint32_t count, gb_node_waits *waits);
/* A native node's output, while the handle is held; GB_VALUE_NONE where it has none. */
gb_status gb_run_value(const gb_run *run, uint32_t node, gb_value *value);

typedef struct gb_tool_call { gb_bytes id, name, arguments; } gb_tool_call;
/* What came back for a request. Bytes belong to the run or call handle. Token counts: -1 where not given. */
typedef struct gb_reply {
    uint32_t failure; uint32_t http_status;
    uint32_t attempts; uint32_t tool_call_count;
    gb_bytes text, reasoning, model, id, finish;
    gb_bytes error_message, error_type, error_code;
    gb_bytes detail;                /* for people: what went wrong below HTTP */
    gb_bytes body;                  /* the reply as received, after a failure or with GB_REQUEST_KEEP_BODY */
    gb_bytes request_id;
    const gb_tool_call *tool_calls;
    int64_t prompt_tokens, completion_tokens, total_tokens, cache_read_tokens, cache_creation_tokens, reasoning_tokens;
    int64_t retry_after_ms;         /* as the server asked; -1: it did not */
    uint64_t started_ns, first_byte_ns, ended_ns;   /* of the last attempt */
    uint64_t bytes_sent, bytes_received;
} gb_reply;
/* The reply, or what there is to say of the failure, of a node that ended; GB_INVALID_ARGUMENT for a node that has not, and for a
 * callback whose failure is the binding's own. */
gb_status gb_run_reply(const gb_run *run, uint32_t node, gb_reply *reply);
void gb_run_release(gb_run *run);

/* ------------------------------------------------------------------ events: what happens in a run, as it happens */

typedef enum gb_event_kind {
    GB_EVENT_NODE_STARTED = 1, GB_EVENT_NODE_COMPLETED = 2, GB_EVENT_NODE_FAILED = 3, GB_EVENT_NODE_RETRIED = 4,
    GB_EVENT_NODE_SKIPPED = 5, GB_EVENT_NODE_CANCELLED = 6,
    GB_EVENT_VALUE = 7,             /* gb_run_emit */
    GB_EVENT_RUN_OVER = 8,
} gb_event_kind;
typedef struct gb_event {
    uint64_t time_ns;
    uint64_t value;                 /* VALUE: the binding's; RETRIED: nanoseconds until the next attempt */
    uint32_t kind; uint32_t node;
    uint32_t attempt; uint32_t reserved;
} gb_event;
/* Takes out the oldest events, in order; none: there are none now. One thread at a time. While event_capacity of them wait
 * for the reader the newest are dropped: `dropped` are missing right after the last of those taken. RUN_OVER is never dropped
 * and always the last. */
gb_status gb_run_events(gb_run *run, gb_event *events, uint32_t capacity, uint32_t *count, uint64_t *dropped);
/* Tells `queue` GB_ITEM_EVENTS with `token`, once: when there are events to take, or at once where there are some. In place of
 * an earlier wish, which is taken back; NULL: nobody is told. GB_INVALID_ARGUMENT: a run without events. */
gb_status gb_run_listen(gb_run *run, gb_queue *queue, uint64_t token);
/* Adds a VALUE. 1: it will be read, or was; 0: it was dropped, the run is over, or has no events. */
int32_t gb_run_emit(gb_run *run, uint32_t node, uint64_t value);

/* ------------------------------------------------------------------ limits: permits shared by the runs of one executor */

/* Up to 32 limits; bit i of gb_node.limits asks for a permit of number i. */
gb_status gb_limits_create(const uint32_t *capacities, uint32_t count, gb_limits **limits);
typedef struct gb_limit_stats { uint32_t capacity, in_use, waiting, peak; } gb_limit_stats;
void gb_limits_read(gb_limits *limits, gb_limit_stats *stats, uint32_t count);
/* Gives the handle back; runs hold on to their own. */
void gb_limits_destroy(gb_limits *limits);

/* ------------------------------------------------------------------ cache: finished calls, found by what they sent */

/* entries_max of them, the least recently used goes first; ttl_ns 0: they do not age. */
gb_status gb_cache_create(uint32_t entries_max, uint64_t ttl_ns, gb_cache **cache);
void gb_cache_clear(gb_cache *cache);
typedef struct gb_cache_stats { uint64_t hits, misses; uint32_t entries; } gb_cache_stats;
void gb_cache_read(gb_cache *cache, gb_cache_stats *stats);
void gb_cache_destroy(gb_cache *cache);

/* ------------------------------------------------------------------ admission: what holds requests back, and what it has learned */

typedef enum gb_breaker_state { GB_BREAKER_CLOSED = 0, GB_BREAKER_OPEN = 1, GB_BREAKER_HALF_OPEN = 2 } gb_breaker_state;
typedef struct gb_breaker_change { uint64_t at_ns; uint32_t state; uint32_t reserved; } gb_breaker_change;
/* 0: no limit. `announced`: the server's own, in `period_ns` where that is the stricter one; `learned`: from refusals. */
typedef struct gb_quota_stats { uint64_t limit, used, period_ns, announced, learned; } gb_quota_stats;
typedef struct gb_admission_stats {
    uint32_t in_flight, queued;
    uint32_t breaker;               /* gb_breaker_state */
    uint32_t history_count;
    double window;                  /* how many at once the server bears, as learned from refusals; 0: no bound known */
    uint64_t admitted, limited, overloaded;     /* permits; 429; 503 and 529 */
    uint64_t cool_downs, refused, queue_timeouts;
    uint64_t hedged, coalesced;     /* second attempts; requests that waited for the answer of an equal one */
    uint64_t cooled_until_ns;       /* 0: not cooling down */
    uint64_t next_probe_ns;         /* 0: the breaker is closed */
    uint32_t concurrency; uint32_t reserved;
    gb_quota_stats quotas[4];       /* requests, tokens, input tokens, output tokens */
    gb_breaker_change history[16];  /* the last changes of the breaker, the oldest first */
} gb_admission_stats;
/* Of the runtime's controller number `index`, in no order that lasts; GB_INVALID_ARGUMENT: there are fewer. Its key is copied, as far as
 * `capacity` goes; `length` is its own. */
gb_status gb_admission_read(gb_runtime *runtime, uint32_t index, gb_admission_stats *stats, uint8_t *key, uint32_t capacity, uint32_t *length);

/* A controller by itself, for a caller who sends by other means and keeps his own time (monotonic nanoseconds). One thread at
 * a time. `options->key` is not looked at. */
typedef struct gb_controller gb_controller;
typedef struct gb_permit {
    uint64_t sent_ns, number;
    uint32_t input_tokens, output_tokens;       /* as estimated */
    uint32_t in_flight, is_probe;
} gb_permit;
/* How a permit's request ended. ANSWERED: a reply, the caller's faults (4xx) among them; FAULT: other 5xx, and what happened to the
 * connection; UNKNOWN: it says nothing about the server. */
typedef enum gb_ending {
    GB_ENDING_ANSWERED = 0, GB_ENDING_LIMITED = 1, GB_ENDING_OVERLOADED = 2, GB_ENDING_FAULT = 3, GB_ENDING_UNKNOWN = 4,
} gb_ending;
typedef struct gb_permit_result {
    uint32_t ending; uint32_t unsent;           /* unsent: nothing has reached the server */
    int64_t retry_after_ms, input_tokens, output_tokens;    /* -1: not said */
    uint64_t body_bytes;            /* of what was sent */
    uint64_t dice;                  /* 64 random bits: they spread what would happen at once */
    gb_bytes head;                  /* of the reply, lines: what they announce is learned */
} gb_permit_result;
typedef enum gb_verdict { GB_VERDICT_GO = 0, GB_VERDICT_WAIT = 1, GB_VERDICT_OPEN = 2 } gb_verdict;
gb_status gb_controller_create(const gb_admission *options, gb_controller **controller);
/* GO: `permit` is to be settled, once. WAIT: ask again at `until_ns`, or once anything was settled (UINT64_MAX: then only). OPEN: the
 * breaker lets nothing through before `until_ns`. */
uint32_t gb_controller_ask(gb_controller *controller, uint64_t now_ns, uint64_t body_bytes, gb_permit *permit, uint64_t *until_ns);
gb_status gb_controller_settle(gb_controller *controller, uint64_t now_ns, const gb_permit *permit, const gb_permit_result *result);
void gb_controller_read(gb_controller *controller, uint64_t now_ns, gb_admission_stats *stats);
void gb_controller_destroy(gb_controller *controller);

/* ------------------------------------------------------------------ call: one request without a graph */

/* The plan has no nodes. Sends request number `request` of the plan with `values` as its inputs (borrowed for the call) and tells `queue`
 * GB_ITEM_CALL_OVER. timeout_ns bounds all attempts together, 0: no bound. Calls that wait for a provider's limits take turns
 * by `group`, and within one they go in order; a run is a group of its own. */
gb_status gb_call_start(gb_runtime *runtime, gb_plan *plan, uint32_t request, const gb_value *values, uint32_t value_count,
                        uint64_t timeout_ns, uint64_t group, gb_queue *queue, uint64_t token, gb_call **call);
/* A request with a gb_stream: the pieces of its reply, in order. Told by GB_ITEM_DELTAS when the first is there, and again each time
 * after gb_call_read left nothing. Those of a call that is over can still be taken. Once a reader is so far behind that many lie
 * untaken, the transfer stands still until they are taken. One thread at a time. */
typedef enum gb_delta_kind { GB_DELTA_TEXT = 0, GB_DELTA_REASONING = 1, GB_DELTA_EVENT = 2, GB_DELTA_BYTES = 3 } gb_delta_kind;
typedef struct gb_delta { uint32_t kind; uint32_t reserved; gb_bytes bytes; } gb_delta;
/* `bytes` belong to the call until the next gb_call_read. `more`: 1: call again; 0: GB_ITEM_DELTAS will tell. */
gb_status gb_call_read(gb_call *call, gb_delta *deltas, uint32_t capacity, uint32_t *count, uint32_t *more);
/* Closes the socket; the call ends with GB_FAILURE_CANCELLED unless it has ended already. */
void gb_call_cancel(gb_call *call);
/* Once its GB_ITEM_CALL_OVER was delivered. */
gb_status gb_call_reply(const gb_call *call, gb_reply *reply);
/* Also before the end: then the call is cancelled and its news dropped. */
void gb_call_release(gb_call *call);

/* Applies the rules of request number `request` to `body` as if it had arrived: one JSON document, or with `stream` a
 * server-sent-events stream. The reply's bytes belong to *call, to be given to gb_call_release. */
gb_status gb_extract(gb_runtime *runtime, gb_plan *plan, uint32_t request, gb_bytes body, int32_t stream, gb_call **call);

/* ------------------------------------------------------------------ exchange: one HTTP exchange as it is, for other HTTP clients */

typedef struct gb_exchange gb_exchange;
typedef enum gb_exchange_flags {
    GB_EXCHANGE_BODY = 1,           /* `body` is sent (even if empty) */
    GB_EXCHANGE_BODY_FOLLOWS = 2,   /* gb_exchange_write brings the body; it cannot be sent again where a connection dies */
    GB_EXCHANGE_INSECURE = 4,       /* TLS certificates are not checked */
    GB_EXCHANGE_PROXY = 8,          /* as GB_ROUTE_PROXY */
    GB_EXCHANGE_PUBLIC_ONLY = 16,   /* as GB_ROUTE_PUBLIC_ONLY */
} gb_exchange_flags;
/* Sent as it stands: no header is added and none is changed but those that frame the body (Content-Length, Transfer-Encoding, Expect),
 * which are libcurl's to say. No redirect is followed. Nothing is sent again, except over a new connection where one that was kept
 * turns out to be dead before a byte of the reply has come. */
typedef struct gb_exchange_spec {
    gb_bytes method, url;
    gb_bytes target;                /* in place of the URL's path and query ("*"); empty: none */
    gb_bytes headers;               /* whole lines "Name: value", a NUL behind each */
    uint32_t header_count; uint32_t flags;
    gb_bytes body;
    int64_t body_bytes;             /* BODY_FOLLOWS: how many; -1: not known, sent in chunks */
    uint32_t connect_timeout_ms;    /* 0: none, as all of them */
    uint32_t read_timeout_ms;       /* between one byte of the reply and the next, and from the request's last byte to the first */
    uint32_t write_timeout_ms;      /* the same while the request is sent */
    uint32_t pool_timeout_ms;       /* for a connection to be free, where there may be no more of them */
    uint32_t first_byte_timeout_ms;
    uint32_t head_bytes_max;        /* 0: the engine's default */
    uint64_t body_bytes_max, wire_bytes_max;    /* 0: no bound */
    gb_bytes proxy, no_proxy, ca_file, client_cert, client_key, client_key_password;    /* as in gb_route */
    gb_bytes admission_key;         /* as in gb_admission, with what follows; empty: nothing holds it back */
    uint32_t admission_flags, concurrency, requests_per_minute, queue_timeout_ms;
    uint64_t tokens_per_minute;
    uint64_t group;                 /* as in gb_call_start */
} gb_exchange_spec;
/* Tells `queue` GB_ITEM_EXCHANGE whenever gb_exchange_read has something new: a head, bytes of the body, room, the end. `spec` and
 * all it names are copied. GB_SHUTDOWN: nothing was started. GB_INVALID_ARGUMENT: a NUL inside of a header, or a `target` that is none. */
gb_status gb_exchange_start(gb_runtime *runtime, const gb_exchange_spec *spec, gb_queue *queue, uint64_t token, gb_exchange **exchange);

/* How far an exchange had come when it ended. */
typedef enum gb_phase { GB_PHASE_WAITING = 0, GB_PHASE_CONNECTING = 1, GB_PHASE_SENDING = 2, GB_PHASE_RECEIVING = 3 } gb_phase;
typedef struct gb_exchange_report {
    uint32_t status;                /* 0 until the head is whole; heads with a status of 1xx do not count */
    uint32_t over;                  /* 1: `failure`, `phase` and `detail` are final, and with `body` all of it was taken */
    uint32_t failure; uint32_t phase;
    uint32_t room;                  /* 1: gb_exchange_write may go on */
    uint32_t retry_after_ms;        /* GB_FAILURE_CIRCUIT_OPEN: until the next probe */
    gb_bytes head;                  /* its lines as they came, the status line first */
    gb_bytes body;                  /* what has come since the last time, not decoded; chunks are put together */
    gb_bytes detail;                /* for people */
} gb_exchange_report;
/* One thread at a time. `body` belongs to the exchange until the next gb_exchange_read, the rest until its release. A reader who is so
 * far behind that much lies untaken makes the transfer stand still until he takes it. */
void gb_exchange_read(gb_exchange *exchange, gb_exchange_report *report);
/* The next piece of a body that follows; copied. `room` 0: much is unsent, GB_ITEM_EXCHANGE tells when to go on (holding on is the
 * caller's duty). What comes after the exchange is over, or was answered with an error, is dropped. One thread at a time.
 * GB_INVALID_ARGUMENT: more than `body_bytes`, or the last piece and less. */
gb_status gb_exchange_write(gb_exchange *exchange, gb_bytes bytes, int32_t last, uint32_t *room);
/* Closes the socket; the exchange ends with GB_FAILURE_CANCELLED unless it has ended already. */
void gb_exchange_cancel(gb_exchange *exchange);
/* Also before the end: then the exchange is cancelled and its news dropped. */
void gb_exchange_release(gb_exchange *exchange);

/* ---- to here ---- */
#ifdef __cplusplus
}
#endif
#endif
