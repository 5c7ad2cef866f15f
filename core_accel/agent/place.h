/* Which view a process sees, and where it stands: what it knows of itself, so that it needn't ask.

   The number of its record is in the process (umvm/guest/marks.py), where only the supervisor changes it, which
   changes ROUTE->place_epoch then. A child of vfork shares this memory, but not what is known here: while there may
   be one, the process id is looked at. */
#ifndef UMVM_AGENT_PLACE_H
#define UMVM_AGENT_PLACE_H
#include "base.h"
#define UMVM_REST_MAX (2 * UMVM_PATH_MAX + 512)
#include "../pathwalk.h"

#define PLACES ((const volatile struct umvm_places *)(uintptr_t)UMVM_PLACES)

struct place {
    const struct umvm_view *view;
    uint64_t seed; /* what hashes of its paths begin with */
    uint32_t cwd;  /* the bind mount by which it came to its working directory; 0: none */
};

struct slot {
    int busy;
    struct umvm_walk walk;
    char base[UMVM_PATH_MAX];
};
enum { SLOTS = 8 };
static struct slot slots[SLOTS] PRIVATE_DATA;

/* A slot is lost when a signal handler leaves with siglongjmp while one is held; without any the
   supervisor is asked. */
static struct slot *take_slot(void)
{
    for (int i = 0; i < SLOTS; i++)
        if (!__atomic_exchange_n(&slots[i].busy, 1, __ATOMIC_ACQUIRE))
            return &slots[i];
    return 0;
}

static void give_slot(struct slot *s) { __atomic_store_n(&s->busy, 0, __ATOMIC_RELEASE); }

static int in_shadow(const char *path, long n)
{
    uint32_t m = ROUTE->shadow_len;
    if (n < (long)m)
        return 0;
    for (uint32_t i = 0; i < m; i++)
        if (path[i] != ROUTE->shadow[i])
            return 0;
    return 1;
}

static inline int still_ours(void)
{
    return !(SELF->shared | ROUTE->cautious) || (uint32_t)SYS1(__NR_getpid, 0) == SELF->pid;
}

static NOINLINE uint32_t read_place(uint64_t epoch)
{
    uint64_t limit[2];
    SELF->place_epoch = 0;
    SELF->cwd_ok = 0;
    if (SYS4(__NR_prlimit64, 0, UMVM_RLIMIT_LOCKS, 0, limit) < 0)
        return UMVM_AGENT_IDS;
    uint64_t number = limit[0] - UMVM_MARKED;
    SELF->place = number < UMVM_RECORDS ? (uint32_t)number : 0;
    SELF->pid = (uint32_t)SYS1(__NR_getpid, 0);
    __atomic_store_n(&SELF->place_epoch, epoch, __ATOMIC_RELEASE);
    return SELF->place;
}

/* The number of this process's record; 0: it has none. UMVM_AGENT_IDS or more: it isn't known here. */
static inline uint32_t my_number(void)
{
    uint64_t epoch = ROUTE->place_epoch;
    uint32_t number = *(volatile uint32_t *)&SELF->place; /* before whose it is: the other process may be reading its own */
    int ours = __atomic_load_n(&SELF->place_epoch, __ATOMIC_ACQUIRE) == epoch && still_ours();
    return ours ? number : read_place(epoch);
}

/* 0: it isn't known here, so that the supervisor is to be asked. */
static int my_place(struct place *p)
{
    uint32_t view = 0;
    p->seed = p->cwd = 0;
    if (ROUTE->redirected) {
        uint32_t number = my_number();
        if (number >= UMVM_AGENT_IDS || (view = PLACES->records[number].view) >= UMVM_SPACES)
            return 0;
        p->cwd = PLACES->records[number].cwd;
        p->seed = hash_step(PLACES->generations[view], SELF->who);
    }
    p->view = (const struct umvm_view *)(uintptr_t)PLACES->views[view];
    return p->view != 0;
}

/* Are all paths of the host what they are for the kernel? */
static inline int is_plain_view(const struct umvm_view *v) { return v->binds == 0 && v->root_len == 0; }

/* Where the view shows a directory of the host, whose path is in s->base: the path in s->walk.path, and the mount.
   At how many places it is seen. */
static int show_base(struct slot *s, const struct place *p, uint32_t hint, long n, uint32_t *in)
{
    return umvm_shown_in(p->view, hint, s->base, (uint32_t)n, s->walk.path, &s->walk.len, in, s->walk.rest,
                         sizeof s->walk.rest);
}

/* Looks at the working directory; 1 if it is the host's, outside every served mount and /proc. */
static NOINLINE int look_at_cwd(const struct place *p, uint64_t now)
{
    uint64_t epoch = STATE->cwd_epoch;
    struct slot *s = take_slot();
    int ok = 0;
    uint64_t hash;
    uint32_t in = UMVM_NO_MOUNT;
    if (!s)
        return 0;
    long n = SYS2(__NR_getcwd, s->base, UMVM_PATH_MAX);
    if (n > 1 && s->base[0] == '/' && !in_shadow(s->base, n - 1)) {
        const struct umvm_mount *m = 0;
        if (is_plain_view(p->view)) {
            s->walk.len = umvm_text_len(s->base, (uint32_t)n - 1);
            memcpy(s->walk.path, s->base, s->walk.len);
            ok = umvm_id(p->view, umvm_place(p->view, s->walk.path, s->walk.len, &hash)) == UMVM_HOST;
        } else if (show_base(s, p, p->cwd, n - 1, &in) > 0) {
            m = umvm_bind(p->view, in);
            ok = (m || umvm_id(p->view, in) == UMVM_HOST) && !(n >= 6 && !memcmp(s->base, "/proc", 5));
        }
        SELF->cwd_hash = hash_text(SEED_ABSOLUTE ^ p->seed, s->walk.path, s->walk.len) | 1;
        SELF->cwd_mount = m ? m->id : 0;
        SELF->cwd_flags = m ? m->flags : 0;
        SELF->cwd_epoch = epoch;
        SELF->cwd_time = now;
        SELF->cwd_ok = ok;
    }
    give_slot(s);
    return ok;
}

/* `p` was asked for just before, so that what is known is this process's. */
static inline int cwd_known(const struct place *p, uint64_t now)
{
    return (SELF->cwd_ok && SELF->cwd_epoch == STATE->cwd_epoch && now - SELF->cwd_time < UMVM_AGE &&
            SELF->cwd_time > STATE->since) ||
           look_at_cwd(p, now);
}

static inline void cwd_changed(void) { SELF->cwd_ok = 0; }
#endif
