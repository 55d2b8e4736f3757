/* C functions for the native nodes of bench/graph_native.py and bench/graph_cores.py, and the loop they are held against.
 * A shared library, loaded with ctypes; nothing but the C library is needed. */
#include <stdint.h>

/* A node that does nothing, and one that can be counted: the check that each ran once. */
void noop(void) {}

static uint64_t counted;
void tally(void) { __atomic_fetch_add(&counted, 1, __ATOMIC_RELAXED); }
uint64_t take_tally(void) { return __atomic_exchange_n(&counted, 0, __ATOMIC_SEQ_CST); }

/* Arithmetic that no compiler shortens: the logistic map, `rounds` times. */
double burn(double rounds) {
    double x = 0.4142135;
    for (uint64_t i = (uint64_t)rounds; i > 0; i--) x = 3.9 * x * (1.0 - x);
    return x;
}

/* The least a scheduler can do: one thread, counters, a list of what is ready. `edges` are sorted by their first node:
 * those of node i are targets[first[i]] up to targets[first[i + 1]]. Returns how many nodes ran. */
uint32_t by_hand(void (*function)(void), uint32_t nodes, const uint32_t *first, const uint32_t *targets, const uint32_t *waits,
                 uint32_t *missing, uint32_t *ready) {
    uint32_t head = 0, tail = 0;
    for (uint32_t i = 0; i < nodes; i++) {
        missing[i] = waits[i];
        if (missing[i] == 0) ready[tail++] = i;
    }
    while (head < tail) {
        uint32_t node = ready[head++];
        function();
        for (uint32_t at = first[node]; at < first[node + 1]; at++)
            if (--missing[targets[at]] == 0) ready[tail++] = targets[at];
    }
    return head;
}
