/* core_accel/route.h as a library, so that a test can ask it without a guest. */
#include "route.h"

struct umvm_router *probe_new(void) { return calloc(1, sizeof(struct umvm_router)); }

void probe_free(struct umvm_router *r)
{
    while (r->table) {
        struct umvm_table *t = r->table;
        r->table = t->older;
        free(t);
    }
    free(r);
}

int probe_view(struct umvm_router *r, const char *const *points, const uint32_t *ids, int count)
{
    return umvm_route_set_view(r, points, ids, count);
}

int probe_shadow(struct umvm_router *r, const char *prefix) { return umvm_route_set_shadow(r, prefix); }

void probe_state(struct umvm_router *r, int descriptors, int virtual_cwd)
{
    r->descriptors = descriptors;
    r->virtual_cwd = virtual_cwd;
}

/* kind: always, hooked, fd, path 0, path 1, dirfd 0, dirfd 1. */
int probe_ask(struct umvm_router *r, const signed char *kind, int tid, int nr, const uint64_t *args)
{
    struct umvm_call_kind k = {kind[0], kind[1], kind[2], {kind[3], kind[4]}, {kind[5], kind[6]}};
    struct seccomp_notif q;
    memset(&q, 0, sizeof q);
    q.pid = tid;
    q.data.nr = nr;
    for (int i = 0; i < 6; i++)
        q.data.args[i] = args[i];
    struct umvm_path got;
    return umvm_route(r, &k, &q, &got);
}

/* Nanoseconds for one decision, the mean of `rounds`. */
double probe_cost(struct umvm_router *r, const signed char *kind, int tid, int nr, const uint64_t *args, int rounds)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < rounds; i++)
        probe_ask(r, kind, tid, nr, args);
    clock_gettime(CLOCK_MONOTONIC, &b);
    return ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / rounds;
}
