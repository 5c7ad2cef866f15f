/* Who owns a file of the host as guests see it: a flat table by inode, in memory that can be shared.

   An entry is found by device and inode, and is the file's only if its guard, the time the inode was born,
   is too: a number that the file system gives out anew has another one. Where birth times are coarse, or
   missing (0), what guests remove is marked as dead as well: a dead inode lives as long as it is open, and
   has no link any more. Times of birth: statx(2). */
#ifndef UMVM_OWNERS_H
#define UMVM_OWNERS_H
#include "kernel.h"
#include "ownernotes.h"
#include "pathwalk.h"
#include <linux/stat.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

#define UMVM_REAL_UNKNOWN 0xFFFF /* a real_mode that is to be learnt */

struct umvm_owners_area {
    uint64_t magic, seq; /* odd while the table is being changed */
    uint64_t at, slots;  /* where the entries begin, bytes; their number, a power of two */
    uint64_t known, used; /* entries; slots that are taken, by GONE ones too */
    uint64_t changes, special; /* entries with UMVM_CHANGED; setgid directories there ever were */
    uint64_t xattrs;           /* files with attributes there ever were */
    uint32_t own_uid, own_gid; /* whose files unknown ones have to be … */
    uint32_t as_uid, as_gid;   /* … to be shown as these ids' (UMVM_UNKNOWN_OWN) */
    uint32_t unknown;
    uint32_t plain;   /* a guest that never changed its credentials is root */
    uint32_t new_differ; /* what a plain guest makes isn't shown as root's by itself */
    uint32_t split;      /* threads of some process differ in their credentials */
    uint32_t logged;     /* somebody wants to know what changed */
};

struct umvm_owners {
    struct umvm_owners_area *area;
    int fd;
    size_t room; /* bytes of address space */
    uint64_t proc_dev;
    struct umvm_owners_hint *hint; /* what agents know, or 0: there are none */
    struct umvm_shown *shown;      /* … UMVM_SHOWN_SLOTS */
    struct umvm_notes *notes;      /* what they did */
    pthread_mutex_t lock;
};

#define UMVM_OWNERS_MAGIC 0x31737265776e6f75ull
#define UMVM_OWNERS_FIRST 1024u
#define UMVM_OWNERS_HEAD 4096u

static inline struct umvm_owner *umvm_owner_slots(const struct umvm_owners_area *a)
{
    return (struct umvm_owner *)((char *)a + a->at);
}

/* The file grows; the mapping reaches far beyond its end from the start, so that addresses stay. */
static int umvm_owners_open(struct umvm_owners *o)
{
    size_t size = UMVM_OWNERS_HEAD + UMVM_OWNERS_FIRST * sizeof(struct umvm_owner);
    void *p = MAP_FAILED;
    struct stat st;
    o->fd = memfd_create("umvm-owners", MFD_CLOEXEC);
    if (o->fd < 0 || ftruncate(o->fd, size) < 0)
        return -errno;
    for (size_t room = 1ul << 34; p == MAP_FAILED && room >= 1ul << 26; room >>= 2) {
        p = mmap(0, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, o->fd, 0);
        o->room = room;
    }
    if (p == MAP_FAILED)
        return -errno;
    o->area = p;
    o->area->magic = UMVM_OWNERS_MAGIC;
    o->area->at = UMVM_OWNERS_HEAD;
    o->area->slots = UMVM_OWNERS_FIRST;
    o->proc_dev = stat("/proc", &st) == 0 ? st.st_dev : 0;
    pthread_mutex_init(&o->lock, 0);
    return 0;
}

static struct umvm_owner *umvm_owner_slot(struct umvm_owners_area *a, uint64_t dev, uint64_t ino)
{
    struct umvm_owner *slots = umvm_owner_slots(a);
    for (uint64_t i = umvm_owner_hash(dev, ino);; i++) {
        struct umvm_owner *e = &slots[i & (a->slots - 1)];
        if ((e->dev == dev && e->ino == ino) || (!e->ino && !e->dev))
            return e;
    }
}

/* The entry of an inode, perhaps of one that is gone; 0: there never was one. */
static struct umvm_owner *umvm_owner_at(struct umvm_owners_area *a, uint64_t dev, uint64_t ino)
{
    struct umvm_owner *e = umvm_owner_slot(a, dev, ino);
    return e->ino || e->dev ? e : 0;
}

/* Has agents know the entry. */
static void umvm_owner_publish(struct umvm_owners *o, const struct umvm_owner *e, uint64_t ctime)
{
    if (o->shown && !(e->flags & (UMVM_GONE | UMVM_DEAD)))
        umvm_show_entry(&o->shown[umvm_shown_place(e->dev, e->ino)], e, ctime);
}

/* An entry changes, or has just changed. Lock held until that is done. */
static void umvm_owner_touch(struct umvm_owners *o, struct umvm_owner *e)
{
    struct umvm_owners_area *a = o->area;
    struct umvm_shown *s = o->shown ? &o->shown[umvm_shown_place(e->dev, e->ino)] : 0;
    if (s && s->entry.dev == e->dev && s->entry.ino == e->ino)
        umvm_show_entry(s, 0, 0);
    if (!a->logged || e->flags & UMVM_CHANGED)
        return;
    a->changes++;
    e->flags |= UMVM_CHANGED;
}

/* Forgets; the slot stays taken, so that others behind it are found, and a database can be told. */
static void umvm_owner_drop(struct umvm_owners *o, struct umvm_owner *e)
{
    if (e->flags & UMVM_GONE)
        return;
    umvm_owner_touch(o, e);
    e->flags = UMVM_GONE | (e->flags & UMVM_CHANGED);
    o->area->known--;
}

/* A table of twice the size, or of the same one without what is gone, behind the present one. */
static int umvm_owners_grow(struct umvm_owners *o)
{
    struct umvm_owners_area *a = o->area;
    struct umvm_owner *old = umvm_owner_slots(a);
    uint64_t n = a->slots, slots = 2 * (a->known + a->changes) > n ? 2 * n : n, at = a->at + n * sizeof *old;
    if (at + slots * sizeof *old > o->room)
        return -ENOSPC;
    if (ftruncate(o->fd, at + slots * sizeof *old) < 0)
        return -errno;
    struct umvm_owner *new = (struct umvm_owner *)((char *)a + at);
    uint64_t used = 0;
    for (uint64_t i = 0; i < n; i++) {
        if ((!old[i].ino && !old[i].dev) || (old[i].flags & (UMVM_GONE | UMVM_CHANGED)) == UMVM_GONE)
            continue;
        uint64_t k = umvm_owner_hash(old[i].dev, old[i].ino);
        while (new[k & (slots - 1)].ino || new[k & (slots - 1)].dev)
            k++;
        new[k & (slots - 1)] = old[i];
        used++;
    }
    uint64_t gone = a->at;
    a->at = at;
    a->slots = slots;
    a->used = used;
    uint64_t from = (gone + 4095) & ~4095ull, to = at & ~4095ull;
    if (to > from)
        fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from);
    return 0;
}

static inline void umvm_owners_tell(struct umvm_owners *o)
{
    const struct umvm_owners_area *a = o->area;
    struct umvm_owners_hint *h = o->hint;
    h->unknown = a->unknown;
    h->own_uid = a->own_uid;
    h->own_gid = a->own_gid;
    h->as_uid = a->as_uid;
    h->as_gid = a->as_gid;
    h->new_differ = a->new_differ;
    h->special = a->special;
    h->xattrs = a->xattrs;
    h->proc_dev = o->proc_dev;
    __atomic_store_n(&h->on, a->plain && !a->split, __ATOMIC_RELEASE);
}

/* --- one file ------------------------------------------------------------------------------------ */

/* What the host says of a file: the part that the table works with. */
struct umvm_real {
    uint64_t dev, ino, guard, rdev, ctime;
    uint32_t uid, gid, mode, links;
};

static inline uint64_t umvm_device(uint32_t major, uint32_t minor) { return makedev(major, minor); }

static void umvm_real_of(const struct statx *x, struct umvm_real *r)
{
    r->dev = umvm_device(x->stx_dev_major, x->stx_dev_minor);
    r->rdev = umvm_device(x->stx_rdev_major, x->stx_rdev_minor);
    r->ino = x->stx_ino;
    r->guard = x->stx_mask & STATX_BTIME ? x->stx_btime.tv_sec * 1000000000ull + x->stx_btime.tv_nsec : 0;
    r->ctime = x->stx_ctime.tv_sec * 1000000000ull + x->stx_ctime.tv_nsec;
    r->uid = x->stx_uid;
    r->gid = x->stx_gid;
    r->mode = x->stx_mode;
    r->links = x->stx_nlink;
}

/* The file's entry, or 0. Drops one that is another file's, of the same number. Lock held. */
static struct umvm_owner *umvm_owner_find(struct umvm_owners *o, const struct umvm_real *r)
{
    struct umvm_owner *e = umvm_owner_at(o->area, r->dev, r->ino);
    if (!e || e->flags & UMVM_GONE)
        return 0;
    int other_kind = e->mode & S_IFMT && !(e->flags & UMVM_HAS_TYPE) && (e->mode ^ r->mode) & S_IFMT;
    if ((e->guard && r->guard && e->guard != r->guard) || (e->flags & UMVM_DEAD && r->links) || other_kind) {
        umvm_owner_drop(o, e);
        return 0;
    }
    if ((!e->guard && r->guard) || e->real_mode == UMVM_REAL_UNKNOWN) { /* from a file that doesn't tell */
        e->guard = e->guard ? e->guard : r->guard;
        e->real_mode = e->real_mode == UMVM_REAL_UNKNOWN ? r->mode & 07777 : e->real_mode;
        umvm_owner_touch(o, e);
    }
    return e;
}

static uint32_t umvm_unknown_uid(const struct umvm_owners_area *a, uint32_t uid)
{
    return a->unknown == UMVM_UNKNOWN_ALL || (a->unknown == UMVM_UNKNOWN_OWN && uid == a->own_uid) ? a->as_uid : uid;
}

static uint32_t umvm_unknown_gid(const struct umvm_owners_area *a, uint32_t gid)
{
    return a->unknown == UMVM_UNKNOWN_ALL || (a->unknown == UMVM_UNKNOWN_OWN && gid == a->own_gid) ? a->as_gid : gid;
}

/* The real file as guests see it: `r` is changed. Lock held. */
static const struct umvm_owner *umvm_owner_show(struct umvm_owners *o, struct umvm_real *r)
{
    const struct umvm_owners_area *a = o->area;
    const struct umvm_owner *e = a->known ? umvm_owner_find(o, r) : 0;
    if (!e) {
        r->uid = umvm_unknown_uid(a, r->uid);
        r->gid = umvm_unknown_gid(a, r->gid);
        return 0;
    }
    umvm_owner_publish(o, e, r->ctime);
    r->uid = e->uid;
    r->gid = e->gid;
    if (e->flags & UMVM_HAS_MODE && (r->mode & 07777) == e->real_mode)
        r->mode = (r->mode & ~07777u) | (e->mode & 07777);
    if (e->flags & UMVM_HAS_TYPE) {
        r->mode = (r->mode & 07777) | (e->mode & S_IFMT);
        r->rdev = e->rdev;
    }
    return e;
}

/* The file's entry, made if there is none: as it is shown now. 0: no memory. Lock held. */
static struct umvm_owner *umvm_owner_make(struct umvm_owners *o, const struct umvm_real *r)
{
    struct umvm_owners_area *a = o->area;
    struct umvm_owner *e = umvm_owner_find(o, r);
    if (e)
        return e;
    if (2 * (a->used + 1) > a->slots && umvm_owners_grow(o) < 0)
        return 0;
    e = umvm_owner_slot(a, r->dev, r->ino);
    if (!(e->flags & UMVM_GONE))
        a->used++;
    a->known++;
    uint16_t changed = e->flags & UMVM_CHANGED;
    memset(e, 0, sizeof *e);
    if (o->hint)
        umvm_hint_add(o->hint, r->dev, r->ino);
    e->dev = r->dev;
    e->ino = r->ino;
    e->guard = r->guard;
    e->uid = umvm_unknown_uid(a, r->uid);
    e->gid = umvm_unknown_gid(a, r->gid);
    e->mode = r->mode;
    e->flags = changed | (r->links ? 0 : UMVM_DEAD); /* closed, it is gone; see ownernames.py, link */
    umvm_owner_touch(o, e);
    return e;
}

/* --- notes of guests ----------------------------------------------------------------------------- */

/* Makes of an entry what chown(2) makes of the file. `mode`: the real one, afterwards; `seen`: of which kind it is. */
static void umvm_entry_chown(struct umvm_owners *o, struct umvm_owner *e, uint32_t uid, uint32_t gid, uint32_t mode,
                             uint32_t seen)
{
    e->uid = uid == (uint32_t)-1 ? e->uid : uid;
    e->gid = gid == (uint32_t)-1 ? e->gid : gid;
    if (!S_ISDIR(seen) && e->flags & UMVM_HAS_MODE) {
        e->mode &= ~S_ISUID;
        if (e->mode & S_IXGRP)
            e->mode &= ~S_ISGID;
        if ((e->mode & 07777) == e->real_mode)
            e->flags &= ~UMVM_HAS_MODE;
    }
    if (!(e->flags & UMVM_HAS_MODE))
        e->mode = (e->mode & S_IFMT) | (mode & 07777);
    umvm_owner_touch(o, e);
    umvm_owner_publish(o, e, 0);
}

/* The mode was to become `mode`, and the real one is `got`. 0, or −ENOMEM. */
static int umvm_note_mode(struct umvm_owners *o, const struct umvm_real *r, uint32_t mode, uint32_t got)
{
    struct umvm_owner *e =
        got != mode ? umvm_owner_make(o, r) : o->area->known ? umvm_owner_find(o, r) : 0;
    if (!e)
        return got != mode ? -ENOMEM : 0;
    e->flags = got != mode ? e->flags | UMVM_HAS_MODE : e->flags & ~UMVM_HAS_MODE;
    e->mode = (e->mode & S_IFMT) | mode;
    e->real_mode = got;
    o->area->special += S_ISDIR(r->mode) && mode & S_ISGID;
    umvm_owner_touch(o, e);
    umvm_owner_publish(o, e, 0);
    return 0;
}

static void umvm_apply_note(struct umvm_owners *o, const struct umvm_note *n)
{
    struct umvm_real r = {n->dev, n->ino, n->guard, 0, 0, n->real_uid, n->real_gid, n->real_mode, n->links};
    struct umvm_real seen = r;
    struct umvm_owner *e;
    switch (n->what) {
    case UMVM_NOTE_CHOWN:
        umvm_owner_show(o, &seen);
        if ((e = umvm_owner_make(o, &r)))
            umvm_entry_chown(o, e, n->uid, n->gid, r.mode, seen.mode);
        break;
    case UMVM_NOTE_CHMOD:
        umvm_note_mode(o, &r, n->mode, r.mode & 07777);
        break;
    case UMVM_NOTE_DIED:
        e = umvm_owner_at(o->area, n->dev, n->ino);
        if (e && !(e->flags & UMVM_GONE) && e->guard == n->guard) {
            e->flags |= UMVM_DEAD;
            umvm_owner_touch(o, e);
        }
    }
}

/* Takes all notes there are. Lock held. */
static void umvm_take_notes(struct umvm_owners *o)
{
    struct umvm_note note = {0};
    uint64_t from = o->hint->taken, end = __atomic_load_n(&o->notes->next, __ATOMIC_ACQUIRE);
    int sane = end - from <= UMVM_NOTES;
    if (!sane)
        end = from + UMVM_NOTES; /* some guest wrote that */
    for (uint64_t i = from; i != end; i++)
        if (umvm_take_note(o->notes, i, &note))
            umvm_apply_note(o, &note);
    if (!sane)
        __atomic_store_n(&o->notes->next, end, __ATOMIC_RELEASE);
    umvm_owners_tell(o);
    __atomic_store_n(&o->hint->taken, end, __ATOMIC_RELEASE);
}

/* Everybody who looks into the table, or changes it, does so between these two. */
static inline void umvm_owners_begin(struct umvm_owners *o)
{
    pthread_mutex_lock(&o->lock);
    __atomic_add_fetch(&o->area->seq, 1, __ATOMIC_ACQ_REL);
    if (o->notes && __atomic_load_n(&o->notes->next, __ATOMIC_ACQUIRE) != o->hint->taken)
        umvm_take_notes(o);
}

static inline void umvm_owners_end(struct umvm_owners *o)
{
    if (o->hint)
        umvm_owners_tell(o);
    __atomic_add_fetch(&o->area->seq, 1, __ATOMIC_ACQ_REL);
    pthread_mutex_unlock(&o->lock);
}

/* Guests' notes are in the table afterwards. */
static inline void umvm_owners_notice(struct umvm_owners *o)
{
    if (o->notes && __atomic_load_n(&o->notes->next, __ATOMIC_ACQUIRE) != o->hint->taken) {
        umvm_owners_begin(o);
        umvm_owners_end(o);
    }
}

/* Is the file known? */
static inline int umvm_owner_knows(struct umvm_owners *o, const struct umvm_real *r)
{
    umvm_owners_begin(o);
    int known = umvm_owner_find(o, r) != 0;
    umvm_owners_end(o);
    return known;
}

/* The last name of an inode was removed: it is forgotten when it has one again. */
static inline void umvm_owner_died(struct umvm_owners *o, uint64_t dev, uint64_t ino)
{
    umvm_owners_begin(o);
    struct umvm_owner *e = umvm_owner_at(o->area, dev, ino);
    if (e && !(e->flags & UMVM_GONE)) {
        e->flags |= UMVM_DEAD;
        umvm_owner_touch(o, e);
    }
    umvm_owners_end(o);
}

/* --- where a file is ----------------------------------------------------------------------------- */

struct umvm_spot { /* arguments of a …at call of ours */
    int fd, flags, owned; /* owned: `fd` is to be closed */
    char path[64 + UMVM_PATH_MAX];
};

static inline void umvm_spot_close(struct umvm_spot *s)
{
    if (s->owned)
        close(s->fd);
    s->owned = 0;
}

static inline long umvm_statx(const struct umvm_spot *s, int more, unsigned mask, struct statx *x)
{
    long r = syscall(SYS_statx, s->fd, s->path, s->flags | more, mask | STATX_BASIC_STATS | STATX_BTIME, x);
    return r < 0 ? -errno : 0;
}

/* chmod through the link of the descriptor: fchmodat(2) knows no AT_EMPTY_PATH before Linux 6.6. */
static int umvm_spot_chmod(const struct umvm_spot *s, uint32_t mode)
{
    char link[48];
    const char *path = s->path;
    int fd = s->fd;
    if (!*path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", s->fd);
        path = link;
        fd = AT_FDCWD;
    }
    return syscall(SYS_fchmodat, fd, path, mode) < 0 ? -errno : 0;
}

/* The mode that the real file gets for a wanted one: its owner can always use it, and nobody else gains
   by bits that would mean the wrong user. */
static inline uint32_t umvm_real_mode(uint32_t kind, uint32_t wanted)
{
    return (wanted & 0777) | (S_ISDIR(kind) ? 0700 : 0600);
}

static inline int umvm_forbidden(int error) { return error == -EPERM || error == -EACCES; }

/* --- what changes entries ------------------------------------------------------------------------ */

/* As chown(2) by somebody who may; −1 keeps an id. `x`: what is there. 0, −errno, or 1: it has attributes, some of
   which have to go first. */
static int umvm_owner_chown(struct umvm_owners *o, const struct umvm_spot *s, struct statx *x, uint32_t uid,
                            uint32_t gid, int attributes)
{
    struct umvm_real real, seen;
    umvm_real_of(x, &real);
    seen = real;
    umvm_owners_begin(o);
    const struct umvm_owner *old = umvm_owner_show(o, &seen);
    int has = old && old->flags & UMVM_HAS_XATTR;
    umvm_owners_end(o);
    if (has && attributes)
        return 1;
    if (syscall(SYS_fchownat, s->fd, s->path, -1, -1, s->flags) < 0 && !umvm_forbidden(-errno))
        return -errno; /* it has told ctime and whoever watches */
    if (!S_ISDIR(x->stx_mode) && x->stx_mode & (S_ISUID | S_ISGID))
        umvm_statx(s, 0, 0, x); /* the kernel has taken set-id bits away */
    real.mode = x->stx_mode;
    umvm_owners_begin(o);
    struct umvm_owner *e = umvm_owner_make(o, &real);
    if (e)
        umvm_entry_chown(o, e, uid, gid, real.mode, seen.mode);
    umvm_owners_end(o);
    return e ? 0 : -ENOMEM;
}

/* As chmod(2) by somebody who may, on what isn't a symbolic link. */
static int umvm_owner_chmod(struct umvm_owners *o, const struct umvm_spot *s, const struct statx *x, uint32_t mode)
{
    struct umvm_real real;
    umvm_real_of(x, &real);
    mode &= 07777;
    uint32_t wanted = umvm_real_mode(real.mode, mode);
    int error = umvm_spot_chmod(s, wanted);
    if (error && !umvm_forbidden(error))
        return error;
    uint32_t got = error ? real.mode & 07777 : wanted;
    umvm_owners_begin(o);
    error = umvm_note_mode(o, &real, mode, got);
    umvm_owners_end(o);
    return error;
}
#endif
