/* What agents know of the table of owners: freestanding.

   The supervisor writes it before it answers the call that changed something. Guests can't write here. */
#ifndef UMVM_OWNERHINT_H
#define UMVM_OWNERHINT_H
#include <stdint.h>

#define UMVM_HINT_WORDS 4096u
#define UMVM_SHOWN_SLOTS 32768u

enum { UMVM_UNKNOWN_OWN = 0, UMVM_UNKNOWN_REAL = 1, UMVM_UNKNOWN_ALL = 2 };

enum {
    UMVM_HAS_MODE = 1,  /* `mode` & 07777 is shown while the real file has `real_mode` */
    UMVM_HAS_TYPE = 2,  /* `mode` & S_IFMT and `rdev` are shown: a device */
    UMVM_HAS_XATTR = 4, /* there are attributes, kept elsewhere */
    UMVM_DEAD = 8,      /* its last name was removed */
    UMVM_CHANGED = 16,  /* since umvm_owners_clean */
    UMVM_GONE = 32,     /* no file's entry any more */
};

struct umvm_owner {
    uint64_t dev, ino, guard, rdev;
    uint32_t uid, gid, mode;
    uint16_t real_mode, flags;
};

/* A copy of an entry as it was last looked at, for agents to read: any other may take its place. */
struct umvm_shown {
    uint64_t seq;   /* odd while it is being written */
    uint64_t ctime; /* of the file, ns, when it was certain that the entry is its; 0: see `guard` */
    struct umvm_owner entry;
};

struct umvm_owners_hint {
    uint32_t on; /* a guest that never changed its credentials is root, and the rest here holds */
    uint32_t unknown, own_uid, own_gid, as_uid, as_gid; /* struct umvm_owners_area */
    uint32_t new_differ, pad;
    uint64_t special, xattrs, proc_dev;
    uint64_t taken;                   /* notes before this one are in the table (ownernotes.h) */
    uint64_t owned[8];                /* bits: calls that the engine answers for owners */
    uint64_t maybe[UMVM_HINT_WORDS]; /* Bloom filter: inodes that have, or had, an entry */
};

static inline uint64_t umvm_owner_hash(uint64_t dev, uint64_t ino)
{
    uint64_t h = (ino ^ dev << 40 ^ dev >> 8) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

static inline int umvm_hint_has(const volatile struct umvm_owners_hint *h, uint64_t dev, uint64_t ino)
{
    uint64_t bit = umvm_owner_hash(dev, ino) % (64 * UMVM_HINT_WORDS);
    return h->maybe[bit / 64] >> (bit % 64) & 1;
}

static inline void umvm_hint_add(struct umvm_owners_hint *h, uint64_t dev, uint64_t ino)
{
    uint64_t bit = umvm_owner_hash(dev, ino) % (64 * UMVM_HINT_WORDS);
    __atomic_fetch_or(&h->maybe[bit / 64], 1ull << (bit % 64), __ATOMIC_RELEASE);
}

static inline uint64_t umvm_shown_place(uint64_t dev, uint64_t ino)
{
    return (umvm_owner_hash(dev, ino) >> 8) % UMVM_SHOWN_SLOTS;
}

/* One writer at a time. `e` 0: nothing is shown there any more. */
static inline void umvm_show_entry(struct umvm_shown *s, const struct umvm_owner *e, uint64_t ctime)
{
    static const struct umvm_owner none;
    __atomic_store_n(&s->seq, s->seq + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    s->entry = e ? *e : none;
    s->ctime = ctime;
    __atomic_store_n(&s->seq, s->seq + 1, __ATOMIC_RELEASE);
}

/* Copies the slot. 0: it was being written. */
static inline int umvm_read_shown(const volatile struct umvm_shown *s, struct umvm_shown *to)
{
    const volatile uint64_t *from = (const volatile uint64_t *)s;
    uint64_t seq = __atomic_load_n(&s->seq, __ATOMIC_ACQUIRE);
    for (unsigned i = 0; i < sizeof *to / 8; i++)
        ((uint64_t *)to)[i] = from[i];
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return !(seq & 1) && __atomic_load_n(&s->seq, __ATOMIC_RELAXED) == seq;
}
#endif
