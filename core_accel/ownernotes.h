/* Notes: changes of owners and modes that guests which are root made to files, without asking. Freestanding.

   A ring that guests and supervisor write. Note number n is in slot n % UMVM_NOTES, whose state says FREE n, BUSY n
   (being written) or READY n. The supervisor takes all notes before it looks into its table for whatever reason; one that is
   BUSY then is void, and its writer asks instead. So nobody waits for anybody, not even for one that was killed.

   Who looks at a file without asking looks at its mark first: with a note that wasn't taken yet, it asks.

   A guest can write here whatever it likes; what it says is believed of what root may say: umvm_note_sound. */
#ifndef UMVM_OWNERNOTES_H
#define UMVM_OWNERNOTES_H
#include "ownerhint.h"

enum { UMVM_NOTES = 4096, UMVM_NOTE_MARKS = 4096, UMVM_NOTE_TRIES = 8 };
enum { UMVM_NOTE_FREE, UMVM_NOTE_BUSY, UMVM_NOTE_READY };
enum { UMVM_NOTE_CHOWN = 1, UMVM_NOTE_CHMOD, UMVM_NOTE_DIED };

struct umvm_note {
    uint64_t state;                 /* number << 2 | UMVM_NOTE_FREE … */
    uint64_t dev, ino, guard;       /* guard: as in struct umvm_owner */
    uint32_t real_uid, real_gid, real_mode; /* what the host says of the file now */
    uint32_t what;
    uint32_t uid, gid, mode;        /* what it is to have: −1 keeps an id; the mode of CHMOD */
    uint32_t links;
};

struct umvm_notes {
    uint64_t next;                  /* the number of the next note */
    uint64_t pad[7];
    uint64_t marks[UMVM_NOTE_MARKS]; /* by inode: the number of its last note, + 1 */
    struct umvm_note notes[UMVM_NOTES];
};

/* Makes the ring ready; before anybody uses it. */
static inline void umvm_notes_begin(struct umvm_notes *n)
{
    for (uint64_t i = 0; i < UMVM_NOTES; i++)
        n->notes[i].state = i << 2 | UMVM_NOTE_FREE;
}

static inline volatile uint64_t *umvm_note_mark(volatile struct umvm_notes *n, uint64_t dev, uint64_t ino)
{
    return &n->marks[(umvm_owner_hash(dev, ino) >> 8) % UMVM_NOTE_MARKS];
}

/* Is there a note about the file that isn't in the table yet? */
static inline int umvm_noted(volatile struct umvm_notes *n, const volatile struct umvm_owners_hint *h, uint64_t dev,
                             uint64_t ino)
{
    uint64_t mark = __atomic_load_n(umvm_note_mark(n, dev, ino), __ATOMIC_ACQUIRE);
    return mark > __atomic_load_n(&h->taken, __ATOMIC_ACQUIRE);
}

/* Writes a note down. 0: there is no room, or somebody was in the way: ask. */
static inline int umvm_note(volatile struct umvm_notes *n, const struct umvm_note *what)
{
    for (int i = 0; i < UMVM_NOTE_TRIES; i++) {
        uint64_t number = __atomic_load_n(&n->next, __ATOMIC_ACQUIRE), seen = number;
        volatile struct umvm_note *to = &n->notes[number % UMVM_NOTES];
        uint64_t state = number << 2 | UMVM_NOTE_FREE, busy = number << 2 | UMVM_NOTE_BUSY;
        int ours = __atomic_compare_exchange_n(&to->state, &state, busy, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
        if (!ours && state >> 2 < number)
            return 0; /* all of the ring is full */
        __atomic_compare_exchange_n(&n->next, &seen, number + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
        if (!ours)
            continue;
        to->dev = what->dev;
        to->ino = what->ino;
        to->guard = what->guard;
        to->real_uid = what->real_uid;
        to->real_gid = what->real_gid;
        to->real_mode = what->real_mode;
        to->what = what->what;
        to->uid = what->uid;
        to->gid = what->gid;
        to->mode = what->mode;
        to->links = what->links;
        volatile uint64_t *mark = umvm_note_mark(n, what->dev, what->ino);
        uint64_t old = *mark;
        while (old < number + 1 &&
               !__atomic_compare_exchange_n(mark, &old, number + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            ;
        return __atomic_compare_exchange_n(&to->state, &busy, number << 2 | UMVM_NOTE_READY, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_ACQUIRE);
    }
    return 0;
}

/* Is it a note that somebody could have written who was to? */
static inline int umvm_note_sound(const struct umvm_note *n)
{
    uint32_t kind = n->real_mode & 0170000;
    int is_kind = kind == 0100000 || kind == 0040000 || kind == 0120000 || kind == 0010000 || kind == 0140000 ||
                  kind == 0020000 || kind == 0060000;
    if (!n->ino || !is_kind || n->real_mode & ~0177777u || n->mode & ~07777u)
        return 0;
    return n->what == UMVM_NOTE_CHOWN || (n->what == UMVM_NOTE_CHMOD && kind != 0120000) ||
           (n->what == UMVM_NOTE_DIED && n->guard);
}

/* Takes note `number` out of its slot. 0: it is void. */
static inline int umvm_take_note(volatile struct umvm_notes *n, uint64_t number, struct umvm_note *to)
{
    volatile struct umvm_note *from = &n->notes[number % UMVM_NOTES];
    uint64_t again = (number + UMVM_NOTES) << 2 | UMVM_NOTE_FREE, state;
    int ready = 0;
    do { /* a writer may make it ready meanwhile */
        state = __atomic_load_n(&from->state, __ATOMIC_ACQUIRE);
        ready = state == (number << 2 | UMVM_NOTE_READY);
        if (ready)
            for (unsigned i = 0; i < sizeof *to / 8; i++)
                ((uint64_t *)to)[i] = ((const volatile uint64_t *)from)[i];
    } while (!__atomic_compare_exchange_n(&from->state, &state, again, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return ready && umvm_note_sound(to);
}
#endif
