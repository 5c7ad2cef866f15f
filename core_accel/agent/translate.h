/* Where a path leads on the host, in a view with bind mounts or a root of its own. Part of agent.c.

   What was walked is remembered for 200 ms, for all guests of the view: of a directory's text where it leads, of the
   text of a link what it leads to. A name below it that is a link, or may have something mounted on it, needs more;
   the call itself tells (redirect.h). */
#ifndef UMVM_AGENT_TRANSLATE_H
#define UMVM_AGENT_TRANSLATE_H
#include "paths.h"

#define UNKNOWN_MOUNT 0xFFFFFFFFu

struct found {
    struct part q;
    uint32_t length, id, flags; /* of `text`; of the bind mount (0: none; UNKNOWN_MOUNT: that of a descriptor) */
    int same;                   /* the kernel gets there from the guest's own text */
    int final;                  /* nothing to look at: the kernel refuses it, or it is a descriptor */
    int failed;                 /* the walk failed, as the kernel does with `text` */
    int linked;                 /* `text` is what the guest's text, a link, leads to */
    int missing, at_root, dots, proc, links; /* of a walk: `at_root`: it is the root, or where a bind mount is */
    char text[UMVM_PATH_MAX + 8];
};

struct room {
    int busy;
    struct found f;
};
enum { ROOMS = 16 };
static struct room rooms[ROOMS] PRIVATE_DATA;

/* As slots, but held while a call is made. */
static struct room *take_room(const struct place *p)
{
    for (int i = 0; i < ROOMS; i++)
        if (!__atomic_exchange_n(&rooms[i].busy, 1, __ATOMIC_ACQUIRE)) {
            rooms[i].f.q.place = *p;
            return &rooms[i];
        }
    return 0;
}

static void give_room(struct room *m)
{
    if (m)
        __atomic_store_n(&m->busy, 0, __ATOMIC_RELEASE);
}

/* --- what is remembered -------------------------------------------------------------------------- */

static int translated(uint64_t hash, struct found *f)
{
    struct umvm_translation *t = (struct umvm_translation *)&STATE->translations[hash >> 20 & (UMVM_TRANSLATIONS - 1)];
    uint32_t sequence = __atomic_load_n(&t->sequence, __ATOMIC_ACQUIRE);
    if (sequence & 1 || t->hash != hash || f->q.now - t->time >= UMVM_AGE || t->time <= STATE->since)
        return 0;
    uint32_t n = t->length;
    if (n >= sizeof t->text)
        return 0;
    memcpy(f->text, t->text, n);
    f->text[n] = 0;
    f->length = n;
    f->id = t->id;
    f->flags = t->flags;
    f->same = (int)t->same;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&t->sequence, __ATOMIC_RELAXED) == sequence;
}

static void translate(uint64_t hash, const struct found *f)
{
    struct umvm_translation *t = (struct umvm_translation *)&STATE->translations[hash >> 20 & (UMVM_TRANSLATIONS - 1)];
    uint32_t sequence = t->sequence;
    if (f->length >= sizeof t->text || f->q.now <= STATE->since || sequence & 1 ||
        !__atomic_compare_exchange_n(&t->sequence, &sequence, sequence + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    t->hash = hash;
    t->time = f->q.now;
    t->id = f->id;
    t->flags = (uint16_t)f->flags;
    t->same = (uint32_t)f->same;
    t->length = (uint16_t)f->length;
    memcpy(t->text, f->text, f->length);
    __atomic_store_n(&t->sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* Links on the way of what is remembered are known by name: who removes one voids what is known. */
static void note_link(const char *path, uint32_t n)
{
    uint32_t from = n;
    while (from && path[from - 1] != '/')
        from--;
    uint64_t h = hash_text(0, path + from, n - from);
    __atomic_or_fetch(&STATE->link_names[h >> 6 & 15], 1ull << (h & 63), __ATOMIC_RELAXED);
}

static int may_be_link(const struct found *f)
{
    uint32_t n = umvm_text_len(f->q.text, f->q.length), from = n;
    while (from && f->q.text[from - 1] != '/')
        from--;
    uint64_t h = hash_text(0, f->q.text + from, n - from);
    return STATE->link_names[h >> 6 & 15] >> (h & 63) & 1;
}

/* --- the walk ------------------------------------------------------------------------------------ */

/* The host's path of where the walk is, with its NUL in `out`; its length, 0: it is too long. */
static uint32_t host_name(const struct umvm_walk *w, char *out)
{
    const struct umvm_mount *m = umvm_bind(w->view, w->in);
    uint32_t n = 0, skip = 0;
    if (m && w->mount == m->id) {
        n = m->source_len;
        skip = m->len;
    }
    if (n + (w->len - skip) >= UMVM_PATH_MAX)
        return 0;
    if (n)
        memcpy(out, m->source, n);
    memcpy(out + n, w->path + skip, w->len - skip);
    n += w->len - skip;
    if (n == 0)
        out[n++] = '/';
    out[n] = 0;
    return n;
}

static int is_proc(const char *path, uint32_t n) { return n >= 5 && text_is(path, 5, "/proc") && (n == 5 || path[5] == '/'); }

/* As umvm_look_at (hostlook.h), with what all guests remember of directories. */
static long look_bound(struct umvm_walk *w, uint32_t mount)
{
    struct found *f = w->ctx;
    uint32_t n = umvm_on_host(w) || mount == UMVM_PROC ? host_name(w, f->text) : 0;
    if (!n) {
        f->failed = ASK;
        return -EXDEV;
    }
    if (is_proc(f->text, n)) {
        f->proc = 1;
        if (!proc_ours(f->text + 5, n - 5))
            return UMVM_IS_DIR; /* the kernel knows if it exists; "self" needn't be followed for this */
        f->failed = ASK;
        return -EXDEV;
    }
    uint64_t seen = hash_text(SEED_SEEN, f->text, n - (uint32_t)w->suffix);
    if (w->suffix != 1 && !(w->last && !w->suffix) && verified(seen, f->q.now)) {
        w->fresh = 0;
        return UMVM_IS_DIR;
    }
    long r = SYS3(__NR_readlink, f->text, w->link, UMVM_PATH_MAX);
    if (w->suffix == 2 && r == -EINVAL && w->fresh)
        remember(seen, f->q.now);
    if (!w->suffix && w->fresh && (r >= 0 || r == -EINVAL || r == -ENOENT)) {
        uint32_t last = n;
        while (last && f->text[last - 1] != '/')
            last--;
        remember(hash_text(SEED_SEEN, f->text, last ? last - 1 : 0), f->q.now); /* it is a directory, and no link */
    }
    if (!w->suffix && r < 0)
        w->fresh = 1;
    if (r >= 0)
        note_link(f->text, n);
    if (r == -EINVAL)
        return w->suffix ? UMVM_IS_DIR : UMVM_IS_SOME;
    return r >= (long)UMVM_PATH_MAX ? -ENAMETOOLONG : r;
}

static int ends_with_deleted(const char *s, long n) { return n > 10 && text_is(s + n - 10, 10, " (deleted)"); }

/* Has a text a component ".."? Then it depends on directories that it doesn't lead to. */
static int goes_up(const char *s, uint32_t n)
{
    for (uint32_t i = 0; i + 1 < n; i++)
        if (s[i] == '.' && s[i + 1] == '.' && (i == 0 || s[i - 1] == '/') && (i + 2 == n || s[i + 2] == '/'))
            return 1;
    return 0;
}

/* Walks a text as a whole. NO: f tells, also if it fails; ASK. */
static NOINLINE int walk_bound(struct found *f, const char *text, uint32_t length, int dirfd, uint32_t flags)
{
    struct slot *s = take_slot();
    const struct umvm_view *v = f->q.place.view;
    uint32_t in = UMVM_NO_MOUNT, n;
    int result = ASK;
    if (!s)
        return ASK;
    struct umvm_walk *w = &s->walk;
    __atomic_add_fetch(&STATE->walked, 1, __ATOMIC_RELAXED);
    f->same = f->final = f->failed = f->proc = 0;
    w->len = 0;
    w->base_mount = UMVM_BY_PATH;
    if (text[0] != '/') {
        long b = dirfd == AT_FDCWD ? SYS2(__NR_getcwd, s->base, UMVM_PATH_MAX) - 1 : link_of_fd(dirfd, s->base);
        if (b <= 0 || s->base[0] != '/' || in_shadow(s->base, b) || (dirfd != AT_FDCWD && ends_with_deleted(s->base, b)))
            goto out;
        int places = show_base(s, &f->q.place, dirfd == AT_FDCWD ? f->q.place.cwd : UMVM_BY_PATH, b, &in);
        if (places < 1 || (places > 1 && dirfd != AT_FDCWD))
            goto out;
        w->base_mount = umvm_id(v, in);
    }
    w->look = look_bound;
    w->ctx = f;
    int e = umvm_walk(v, w, w->path, w->len, text, length, flags);
    if (f->failed || (e && e != -ENOENT && e != -ENOTDIR && e != -EACCES) || !(umvm_on_host(w) || w->mount == UMVM_PROC))
        goto out;
    n = host_name(w, f->text);
    if (!n)
        goto out;
    if (e || (w->slash && n > 1 && f->text[n - 1] != '/'))
        f->text[n++] = '/';
    if (e) /* the kernel gives the same error, as it does for its other reasons */
        f->text[n++] = 'x';
    f->text[n] = 0;
    const struct umvm_mount *m = umvm_bind(v, w->in);
    f->length = n;
    f->id = m ? m->id : 0;
    f->flags = m ? m->flags : 0;
    f->failed = e;
    f->missing = w->missing;
    f->links = (int)w->links;
    f->dots = w->last_dot;
    n = umvm_text_len(w->path, w->len);
    f->at_root = n == v->root_len || (w->in != UMVM_NO_MOUNT && v->mounts[w->in].len >= n);
    f->same = text[0] != '/' && !e && !w->links && w->in == in && !goes_up(text, length);
    result = NO;
out:
    give_slot(s);
    return result;
}

/* A path that needs a walk as a whole. */
static NOINLINE int locate_whole(struct found *f, int dirfd, int follow, int changes)
{
    const struct part *q = &f->q;
    uint32_t n = umvm_text_len(q->text, q->length), kept = q->length;
    if (n && n < kept && !follow) { /* "NAME/" of a call that doesn't follow: not if it is a link */
        if (walk_bound(f, q->text, n, dirfd, UMVM_WALK_MISSING_OK) != NO)
            return ASK;
        if (!f->failed && SYS3(__NR_readlink, f->text, &n, 1) >= 0)
            return ASK;
        if (!f->failed && f->length > 1) {
            f->text[f->length++] = '/';
            f->text[f->length] = 0;
        }
    } else if (walk_bound(f, q->text, kept, dirfd, (follow ? UMVM_WALK_FOLLOW : 0) | UMVM_WALK_MISSING_OK) != NO)
        return ASK;
    f->same = 0;
    return changes && (f->at_root || f->dots) ? ASK : NO;
}

/* Where a path of a call leads. `follow`: the last component may be a link that is to be followed; the caller sees to
   that unless the path was walked as a whole. `changes`: the call isn't one that only looks; `mount`: it must be known
   in which bind mount the file is. NO: f tells; ASK. */
static NOINLINE int locate(struct found *f, const char *text, int dirfd, int follow, int changes, int mount)
{
    struct part *q = &f->q;
    const struct umvm_view *v = q->place.view;
    int given = measure(text, q);
    f->same = f->final = f->failed = f->missing = f->proc = f->linked = 0;
    f->id = UNKNOWN_MOUNT;
    f->flags = 0;
    q->hash = 0;
    mount |= changes && v->flags & UMVM_READ_ONLY;
    if (text && !given) { /* EFAULT or ENAMETOOLONG */
        f->same = f->final = 1;
        return NO;
    }
    if (q->length == 0) { /* the descriptor itself, also for utimensat's null path */
        f->same = f->final = 1;
        return dirfd == AT_FDCWD || mount || served_fd(dirfd) ? ASK : NO;
    }
    q->now = now_units();
    int odd = odd_name(text + q->last, q->length - q->last);
    if (text[0] != '/' && dirfd != AT_FDCWD) {
        if (served_fd(dirfd))
            return ASK;
        f->same = q->last == 0 && !odd && !mount;
        return f->same ? NO : locate_whole(f, dirfd, follow, changes);
    }
    q->hash = SEED_ABSOLUTE ^ q->place.seed;
    if (text[0] != '/') {
        if (!cwd_known(&q->place, q->now))
            return ASK;
        q->hash = SELF->cwd_hash;
        if (q->last == 0 && (!odd || (q->length == 1 && text[0] == '.'))) {
            f->id = SELF->cwd_mount;
            f->flags = SELF->cwd_flags;
            f->same = 1;
            return NO;
        }
    }
    if (odd || is_proc(text, q->length)) {
        q->hash = 0;
        return locate_whole(f, dirfd, follow, changes);
    }
    uint32_t n = umvm_text_len(text, q->last);
    q->hash = hash_text(q->hash, text, n);
    f->linked = follow && translated(full_hash(q), f);
    if (f->linked)
        return NO;
    if (!translated(q->hash, f)) {
        if (walk_bound(f, text, n ? n : 1, AT_FDCWD, UMVM_WALK_FOLLOW) != NO)
            return ASK;
        if (f->proc)
            q->hash = 0;
        else if (goes_up(text, n))
            STATE->dotted = q->now;
        if (q->hash && !f->failed)
            translate(q->hash, f);
    }
    uint32_t more = q->length - q->last;
    if (f->length + 1 + more >= UMVM_PATH_MAX)
        return ASK;
    if (f->failed) /* of a directory on the way */
        return NO;
    if (f->text[f->length - 1] != '/')
        f->text[f->length++] = '/';
    memcpy(f->text + f->length, text + q->last, more);
    f->length += more;
    f->text[f->length] = 0;
    return NO;
}

/* The last component turned out to be a link: where that leads. */
static NOINLINE int locate_link(struct found *f, int dirfd)
{
    if (walk_bound(f, f->q.text, f->q.length, dirfd, UMVM_WALK_FOLLOW | UMVM_WALK_MISSING_OK) != NO)
        return ASK;
    f->same = 0;
    f->linked = 1;
    if (f->q.hash && !f->failed && !f->missing && !f->proc && f->length > 1 && f->text[f->length - 1] != '/')
        translate(full_hash(&f->q), f);
    return NO;
}
#endif
