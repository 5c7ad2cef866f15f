/* Does a path lead to something that is served? Here: no, perhaps (ask), or after a walk.

   Three things make the walk avoidable. A *directory text* ("/usr/lib", or "src" in a known working
   directory) that was walked and stayed on the host is remembered for 200 ms, as is a *full text* that
   may be followed. A name on which nothing can be mounted needs no look at the mounts. And a name
   relative to a descriptor of the host's is in the host's directory. */
#ifndef UMVM_AGENT_PATHS_H
#define UMVM_AGENT_PATHS_H
#include "place.h"

enum { NO, ASK, UNKNOWN, PLAIN /* the kernel refuses it, or it is the host's without doubt */ };

struct part {
    const char *text;
    uint32_t length, last; /* `last`: where the last component begins */
    uint64_t hash;         /* of the directory text, with its base; 0: the base isn't known */
    uint64_t now;
    struct place place;
};

/* --- names --------------------------------------------------------------------------------------- */

static int all_digits(const char *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (s[i] < '0' || s[i] > '9')
            return 0;
    return 1;
}

/* Could something be mounted on this name, or is it one that means something in /proc? */
static int odd_name(const char *s, uint32_t n)
{
    if (n == 0 || (s[0] == '.' && (n == 1 || (n == 2 && s[1] == '.'))) || all_digits(s, n))
        return 1;
    uint64_t h = hash_text(0, s, n);
    return (ROUTE->names[h >> 6 & 15] >> (h & 63) & 1) && (ROUTE->names[h >> 16 & 15] >> (h >> 10 & 63) & 1);
}

static int text_is(const char *s, uint32_t n, const char *word)
{
    for (uint32_t i = 0; i < n; i++)
        if (word[i] == 0 || word[i] != s[i])
            return 0;
    return word[n] == 0;
}

/* Is this file of /proc one that the view changes? More than what the supervisor's route.h knows. */
static int proc_ours(const char *p, uint32_t n)
{
    static const char words[][14] = {"cwd", "root", "exe", "mounts", "mountinfo", "mountstats", "maps", "smaps",
                                     "numa_maps", "filesystems", "thread-self", "status", "auxv", "limits", "hostname",
                                     "domainname", "oom_score_adj", "environ", "mem", "osrelease", "version"};
    for (uint32_t i = 0; i < n;) {
        uint32_t from = i;
        while (i < n && p[i] != '/')
            i++;
        for (uint32_t k = 0; k < sizeof words / sizeof words[0]; k++)
            if (text_is(p + from, i - from, words[k]))
                return 1;
        if (i < n && (text_is(p + from, i - from, "fd") || text_is(p + from, i - from, "fdinfo") ||
                      text_is(p + from, i - from, "map_files") || text_is(p + from, i - from, "net")))
            return 1;
        i++;
    }
    return 0;
}

/* --- descriptors --------------------------------------------------------------------------------- */

static NOINLINE int fd_is_ours(int fd)
{
    struct stat st;
    if (SYS2(__NR_fstat, fd, &st) < 0)
        return 0; /* the kernel says what is wrong with it */
    return st.st_dev == ROUTE->shadow_dev;
}

static inline int served_fd(int fd) { return ROUTE->descriptors && fd_is_ours(fd); }

/* --- one path ------------------------------------------------------------------------------------ */

/* Measures a guest's string. 0: it can't be read, or is too long. */
static int measure(const char *text, struct part *q)
{
    uint64_t a = (uint64_t)(uintptr_t)text;
    uint32_t n = 0, last = 0;
    q->text = text;
    q->length = q->last = 0;
    for (;;) {
        if (a + n >= 0x7ffffffff000ull || !page_readable((a + n) >> 12))
            return 0;
        uint32_t end = n + 4096 - (uint32_t)((a + n) & 4095);
        if (end > UMVM_PATH_MAX)
            end = UMVM_PATH_MAX;
        for (; n < end; n++) {
            if (text[n] == 0) {
                q->length = n;
                q->last = last;
                return 1;
            }
            if (text[n] == '/')
                last = n + 1;
        }
        if (n >= UMVM_PATH_MAX)
            return 0;
    }
}

/* Says whether the directory that holds the last component, and that component unless it is a link,
   are the host's: PLAIN, ASK, or UNKNOWN (a walk tells). Fills *q. */
static int judge(const char *text, int dirfd, struct part *q)
{
    q->hash = 0;
    q->now = 0;
    int given = measure(text, q);
    if (!my_place(&q->place))
        return ASK;
    if (text && !given)
        return PLAIN; /* EFAULT or ENAMETOOLONG */
    if (q->length == 0) /* the descriptor itself, also for utimensat's null path */
        return dirfd == AT_FDCWD ? ASK : served_fd(dirfd) ? ASK : PLAIN;
    if (text[0] == '/') {
        q->hash = SEED_ABSOLUTE ^ q->place.seed;
        if (q->length >= 5 && text[1] == 'p' && text[2] == 'r' && text[3] == 'o' && text[4] == 'c')
            return UNKNOWN;
    } else if (dirfd != AT_FDCWD) {
        if (served_fd(dirfd))
            return ASK;
        return q->last == 0 && !odd_name(text, q->length) ? PLAIN : UNKNOWN;
    }
    q->now = now_units();
    if (text[0] != '/') {
        if (!cwd_known(&q->place, q->now))
            return UNKNOWN;
        q->hash = SELF->cwd_hash;
    }
    if (q->last == q->length) { /* "DIR/": all of it is a directory text */
        uint32_t n = umvm_text_len(text, q->length);
        if (n == 0)
            return UNKNOWN;
        q->hash = hash_text(q->hash, text, n);
        return verified(q->hash, q->now) ? PLAIN : UNKNOWN;
    }
    if (q->last)
        q->hash = hash_text(q->hash, text, umvm_text_len(text, q->last));
    if (q->last == 0 && q->length == 1 && text[0] == '.')
        return PLAIN; /* the working directory was just looked at */
    if (odd_name(text + q->last, q->length - q->last))
        return UNKNOWN;
    return q->last <= 1 || verified(q->hash, q->now) ? PLAIN : UNKNOWN;
}

static inline uint64_t full_hash(const struct part *q)
{
    return hash_text(q->hash ^ SEED_FULL, q->text + q->last, q->length - q->last);
}

struct asked { /* context of a walk */
    int proc, claimed;
};

static long look(struct umvm_walk *w, uint32_t mount)
{
    struct asked *c = w->ctx;
    if (mount == UMVM_PROC) {
        c->proc = 1;
        c->claimed |= proc_ours(w->path + 5, w->len > 5 ? w->len - 5 : 0);
        return UMVM_IS_DIR; /* the kernel knows if it exists; "self" needn't be followed for this */
    }
    if (mount != UMVM_HOST) {
        c->claimed = 1;
        return -EXDEV;
    }
    if (!umvm_follows(w)) { /* readlink would change a link's access time */
        long e = SYS4(__NR_faccessat2, AT_FDCWD, w->path, 0, AT_SYMLINK_NOFOLLOW);
        return e ? e : UMVM_IS_SOME;
    }
    long n = SYS3(__NR_readlink, w->path, w->link, UMVM_PATH_MAX);
    if (n == -EINVAL)
        return w->suffix ? UMVM_IS_DIR : UMVM_IS_SOME;
    return n >= (long)UMVM_PATH_MAX ? -ENAMETOOLONG : n;
}

static long link_of_fd(int fd, char *out)
{
    char name[32] = "/proc/self/fd/", digits[12];
    int n = 14, k = 0;
    if (fd < 0)
        return -EBADF;
    do
        digits[k++] = (char)('0' + fd % 10);
    while (fd /= 10);
    while (k)
        name[n++] = digits[--k];
    name[n] = 0;
    return SYS3(__NR_readlink, name, out, UMVM_PATH_MAX - 1);
}

/* Walks the path as a whole: NO or ASK. Remembers what it found. */
static NOINLINE int walk(struct part *q, int dirfd, int follow)
{
    struct slot *s = take_slot();
    struct asked c = {0, 0};
    long b = 1;
    if (!s)
        return ASK;
    __atomic_add_fetch(&STATE->walked, 1, __ATOMIC_RELAXED);
    s->base[0] = '/';
    if (q->text[0] != '/') {
        b = dirfd == AT_FDCWD ? SYS2(__NR_getcwd, s->base, UMVM_PATH_MAX) - 1 : link_of_fd(dirfd, s->base);
        if (b <= 0 || s->base[0] != '/' || in_shadow(s->base, b)) {
            give_slot(s);
            return ASK;
        }
    }
    struct umvm_walk *w = &s->walk;
    w->look = look;
    w->ctx = &c;
    w->base_mount = UMVM_BY_PATH;
    int e = umvm_walk(q->place.view, w, s->base, (uint32_t)b, q->text, q->length,
                      (follow ? UMVM_WALK_FOLLOW : 0) | UMVM_WALK_MISSING_OK);
    int served = c.claimed || w->served;
    if (!served && !c.proc && q->hash && ((!e && w->mount == UMVM_HOST) || e == -ENOENT || e == -ENOTDIR)) {
        remember(q->hash, q->now); /* also that it is missing: a link that comes to be there voids it */
        if (!e && q->last != q->length && follow)
            remember(full_hash(q), q->now);
    }
    give_slot(s);
    return served ? ASK : NO;
}

/* NO: the host's whatever the last component is; ASK. */
static int leads_nowhere(const char *text, int dirfd, struct part *q)
{
    int r = judge(text, dirfd, q);
    return r == UNKNOWN ? walk(q, dirfd, 0) : r == PLAIN ? NO : ASK;
}

/* The same for a path that is followed. */
static NOINLINE int follows_nowhere(const char *text, int dirfd, struct part *q)
{
    int r = judge(text, dirfd, q);
    char c;
    if (r == UNKNOWN)
        return walk(q, dirfd, 1);
    if (r != PLAIN)
        return ASK;
    if (q->last == q->length || (q->hash && verified(full_hash(q), q->now)))
        return NO;
    if (SYS4(__NR_readlinkat, dirfd, text, &c, 1) < 0) {
        if (q->hash)
            remember(full_hash(q), q->now); /* missing: what comes to be there may be a link: that voids it */
        return NO;
    }
    return walk(q, dirfd, 1);
}
#endif
