/* What agents need to know of the table of owners, to show files that nobody changed: freestanding.

   The supervisor writes it before it answers the call that changed something. */
#ifndef UMVM_OWNERHINT_H
#define UMVM_OWNERHINT_H
#include <stdint.h>

#define UMVM_HINT_WORDS 4096u

enum { UMVM_UNKNOWN_OWN = 0, UMVM_UNKNOWN_REAL = 1, UMVM_UNKNOWN_ALL = 2 };

struct umvm_owners_hint {
    uint32_t on; /* a guest that never changed its credentials is root, and the rest here holds */
    uint32_t unknown, own_uid, own_gid, as_uid, as_gid; /* struct umvm_owners_area */
    uint32_t new_differ, pad;
    uint64_t special, xattrs, proc_dev;
    uint64_t owned[8];                /* bits: calls that the engine answers for owners */
    uint64_t maybe[UMVM_HINT_WORDS]; /* Bloom filter: inodes that have, or had, an entry */
};

static inline uint64_t umvm_owner_hash(uint64_t dev, uint64_t ino)
{
    uint64_t h = (ino ^ dev << 40 ^ dev >> 8) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

static inline int umvm_hint_has(const struct umvm_owners_hint *h, uint64_t dev, uint64_t ino)
{
    uint64_t bit = umvm_owner_hash(dev, ino) % (64 * UMVM_HINT_WORDS);
    return h->maybe[bit / 64] >> (bit % 64) & 1;
}

static inline void umvm_hint_add(struct umvm_owners_hint *h, uint64_t dev, uint64_t ino)
{
    uint64_t bit = umvm_owner_hash(dev, ino) % (64 * UMVM_HINT_WORDS);
    __atomic_fetch_or(&h->maybe[bit / 64], 1ull << (bit % 64), __ATOMIC_RELEASE);
}
#endif
