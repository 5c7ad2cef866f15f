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

/* What the walk is at, as the host knows it: the path without suffix has `hash`, its directory `parent`. */
struct umvm_host_place {
    const char *path;
    uint64_t hash, parent;
    int in_proc; /* at or below /proc, which a bind mount shows */
    char text[UMVM_PLACE_MAX + 4];
};

/* 0, or −ENAMETOOLONG. Only what a bind mount shows has another path than in the view. */
static inline int umvm_host_place(const struct umvm_walk *w, struct umvm_host_place *p)
{
    const struct umvm_mount *m = umvm_bind(w->view, w->in);
    p->path = w->path;
    p->hash = w->hash;
    p->parent = w->parent;
    p->in_proc = 0;
    if (!m || w->mount != m->id)
        return 0;
    uint32_t n = m->source_len + (w->len - m->len), end = n - (uint32_t)w->suffix, last = end;
    if (n >= UMVM_PLACE_MAX)
        return -ENAMETOOLONG;
    memcpy(p->text, m->source, m->source_len);
    memcpy(p->text + m->source_len, w->path + m->len, w->len - m->len);
    while (last && p->text[last - 1] != '/')
        last--;
    p->parent = umvm_hash(UMVM_HASH_START, p->text, last ? last - 1 : 0);
    p->hash = umvm_hash(UMVM_HASH_START, p->text, end);
    p->text[n] = 0;
    if (n == 0)
        memcpy(p->text, "/", 2);
    p->path = p->text;
    p->in_proc = n >= 5 && !memcmp(p->text, "/proc", 5) && (n == 5 || p->text[5] == '/');
    return 0;
}

/* Would umvm_look_at answer without asking the kernel? */
static inline int umvm_host_known(const struct umvm_walk *w, const struct umvm_host_place *p)
{
    return w->suffix != 1 && !(w->last && !w->suffix) && umvm_seen_dir(p->hash);
}

/* AT_FDCWD; or for a path that the kernel wouldn't take a descriptor of a directory on it, and the rest in *path: the
   guest's own was shorter, from a directory far down. −1: errno. */
static int umvm_reach(const char **path)
{
    int fd = AT_FDCWD;
    for (size_t n = strlen(*path); n >= UMVM_PATH_MAX;) {
        char head[UMVM_PATH_MAX];
        uint32_t k = UMVM_PATH_MAX - 1;
        while (k && (*path)[k] != '/')
            k--;
        memcpy(head, *path, k);
        head[k] = 0;
        int next = openat(fd, head, O_PATH | O_DIRECTORY | O_CLOEXEC), e = errno;
        if (fd >= 0)
            close(fd);
        errno = e;
        if (next < 0)
            return -1;
        fd = next;
        *path += k + 1;
        n -= k + 1;
    }
    return fd;
}

/* What readlink says; of a link that isn't followed 1, without a change of its access time. */
static ssize_t umvm_read_host(struct umvm_walk *w, const char *path)
{
    struct stat st;
    int fd = umvm_reach(&path);
    if (fd == -1)
        return -1;
    ssize_t n = -1;
    if (umvm_follows(w))
        n = readlinkat(fd, path, w->link, UMVM_PATH_MAX);
    else if (fstatat(fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        errno = EINVAL;
        n = S_ISLNK(st.st_mode) ? 1 : -1;
    }
    if (fd >= 0) {
        int e = errno;
        close(fd);
        errno = e;
    }
    return n;
}

/* What the look callback answers for a place on the host. */
static inline long umvm_look_at(struct umvm_walk *w, const struct umvm_host_place *p)
{
    if (umvm_host_known(w, p)) {
        w->fresh = 0;
        return UMVM_IS_DIR;
    }
    ssize_t n = umvm_read_host(w, p->path);
    int e = n < 0 ? errno : 0;
    if (w->suffix == 2 && e == EINVAL && w->fresh)
        umvm_remember_dir(p->hash);
    if (!w->suffix && w->fresh && (e == 0 || e == EINVAL || e == ENOENT))
        umvm_remember_dir(p->parent); /* it was found to be no link, and isn't a file either */
    if (!w->suffix && e)
        w->fresh = 1;
    if (e == EINVAL)
        return w->suffix ? UMVM_IS_DIR : UMVM_IS_SOME;
    return e ? -e : (size_t)n >= UMVM_PATH_MAX ? -ENAMETOOLONG : n;
}

/* The look callback for mount UMVM_HOST. */
static inline long umvm_look_host(struct umvm_walk *w)
{
    struct umvm_host_place p;
    int e = umvm_host_place(w, &p);
    return e ? e : umvm_look_at(w, &p);
}
#endif
