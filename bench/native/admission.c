/* What admission costs: so many requests asked for and settled through the C ABI, all limits on, none of them reached, a few hundred
 * in flight. Prints nanoseconds a request, the least of some rounds.
 *     admission LIBRARY COUNT ROUNDS */
#include "../../native/include/graphbit.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { IN_FLIGHT = 256 };

static uint64_t cpu_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

#define FIND(name) __typeof__(&name) name##_ = (__typeof__(&name))dlsym(library, #name)

int main(int count, char **arguments) {
    if (count != 4) return 2;
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 1;
    FIND(gb_controller_create);
    FIND(gb_controller_ask);
    FIND(gb_controller_settle);
    FIND(gb_controller_destroy);
    uint64_t requests = strtoull(arguments[2], NULL, 10), best = UINT64_MAX, now = 1000000000;
    for (int rounds = atoi(arguments[3]); rounds > 0; rounds--) {
        gb_admission options = {.flags = GB_ADMISSION_ADAPTIVE | GB_ADMISSION_LEARN | GB_ADMISSION_BREAKER, .concurrency = 100000,
                                .requests_per_minute = 2000000000, .tokens_per_minute = 4000000000000};
        gb_controller *controller;
        if (gb_controller_create_(&options, &controller) != GB_OK) return 1;
        static gb_permit permits[IN_FLIGHT];
        gb_permit_result result = {.ending = GB_ENDING_ANSWERED, .retry_after_ms = -1, .input_tokens = 100, .output_tokens = 200, .body_bytes = 400};
        uint64_t until, began = cpu_ns();
        for (uint64_t i = 0; i < requests; i++) {
            gb_permit *permit = &permits[i % IN_FLIGHT];
            if (i >= IN_FLIGHT && gb_controller_settle_(controller, now, permit, &result) != GB_OK) return 1;
            now += 20000;
            if (gb_controller_ask_(controller, now, 400, permit, &until) != GB_VERDICT_GO) return fprintf(stderr, "held back\n"), 1;
        }
        uint64_t took = cpu_ns() - began;
        if (took < best) best = took;
        gb_controller_destroy_(controller);
    }
    printf("{\"ns\": %.1f}\n", (double)best / (double)requests);
    return 0;
}
