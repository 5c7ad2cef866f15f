/* What lies at a host path, for the path walk: readlink, with a memory of verified directories. */
#ifndef UMVM_HOSTLOOK_H
#define UMVM_HOSTLOOK_H
#include "kernel.h"
#include "pathwalk.h"

/* A directory is believed to be one for 200 ms from the moment it was seen, and never longer without
   another look. An entry is one word, so that threads need no lock: 40 bits of the path's hash and
   the time it was seen, in units of 4 ms (the time of the coarse clock), modulo 2^24. */
#define UMVM_SEEN_SLOTS 4096u
#define UMVM_SEEN_UNIT 4u
#define UMVM_SEEN_AGE 50u
#define UMVM_SEEN_TIME 0xFFFFFFull

struct umvm_seen {
    uint64_t since; /* entries of this time (in units) or before are void */
    uint64_t entries[UMVM_SEEN_SLOTS];
};
static struct umvm_seen umvm_seen_own, *umvm_seen = &umvm_seen_own;

static inline uint64_t *umvm_seen_entry(uint64_t hash)
{
    return &umvm_seen->entries[(hash ^ hash >> 24) % UMVM_SEEN_SLOTS];
}

static inline int umvm_seen_dir(uint64_t hash)
{
    uint64_t now = umvm_now_ms() / UMVM_SEEN_UNIT;
    uint64_t entry = __atomic_load_n(umvm_seen_entry(hash), __ATOMIC_RELAXED);
    uint64_t age = (now - entry) & UMVM_SEEN_TIME;
    return ((entry ^ hash) & ~UMVM_SEEN_TIME) == 0 && age < UMVM_SEEN_AGE &&
           now - age > __atomic_load_n(&umvm_seen->since, __ATOMIC_RELAXED);
}

static inline void umvm_remember_dir(uint64_t hash)
{
    uint64_t now = umvm_now_ms() / UMVM_SEEN_UNIT;
    __atomic_store_n(umvm_seen_entry(hash), (hash & ~UMVM_SEEN_TIME) | (now & UMVM_SEEN_TIME), __ATOMIC_RELAXED);
}

/* A directory is being moved or removed: what is known, and what is seen in the next 8 ms (while the
   kernel does it), is void. */
static inline void umvm_forget_dirs(void)
{
    __atomic_store_n(&umvm_seen->since, umvm_now_ms() / UMVM_SEEN_UNIT + 2, __ATOMIC_RELAXED);
}

/* Would umvm_look_host answer without asking the kernel? */
static inline int umvm_host_known(const struct umvm_walk *w)
{
    return w->suffix != 1 && !(w->last && !w->suffix) && umvm_seen_dir(w->hash);
}

/* The look callback for mount UMVM_HOST. */
static inline long umvm_look_host(struct umvm_walk *w)
{
    if (umvm_host_known(w)) {
        w->fresh = 0;
        return UMVM_IS_DIR;
    }
    ssize_t n = readlink(w->path, w->link, UMVM_PATH_MAX);
    int e = n < 0 ? errno : 0;
    if (w->suffix == 2 && e == EINVAL && w->fresh)
        umvm_remember_dir(w->hash);
    if (!w->suffix && w->fresh && (e == 0 || e == EINVAL || e == ENOENT))
        umvm_remember_dir(w->parent); /* it was found to be no link, and isn't a file either */
    if (!w->suffix && e)
        w->fresh = 1;
    if (e == EINVAL)
        return w->suffix ? UMVM_IS_DIR : UMVM_IS_SOME;
    return e ? -e : (size_t)n >= UMVM_PATH_MAX ? -ENAMETOOLONG : n;
}
#endif
