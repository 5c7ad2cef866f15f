/* One walk from a path to (mount, canonical path): path_resolution(7) over a table of mounts.

   Freestanding: no libc, no allocation, no recursion; what lies at a path is asked of a callback.
   All memory is one `struct umvm_walk` (32 kB) of the caller's. Behaviour follows fs/namei.c of
   Linux 6.x (link_path_walk, step_into, follow_dotdot, nd_jump_root, nd_jump_link). */
#ifndef UMVM_PATHWALK_H
#define UMVM_PATHWALK_H
#include "view.h"
#include <linux/errno.h>

#define UMVM_PATH_MAX 4096u /* of a text, with the NUL */
#define UMVM_NAME_MAX 255u
#define UMVM_LINKS_MAX 40u
#ifndef UMVM_REST_MAX
#define UMVM_REST_MAX (3 * UMVM_PATH_MAX) /* text not yet walked: the path and links inside links */
#endif

enum umvm_walk_flag {
    UMVM_WALK_FOLLOW = 1,      /* a link as the last component is followed */
    UMVM_WALK_MISSING_OK = 2,  /* the last component may be missing */
    UMVM_WALK_BENEATH = 4,     /* RESOLVE_* of openat2(2) */
    UMVM_WALK_IN_ROOT = 8,
    UMVM_WALK_NO_SYMLINKS = 16,
    UMVM_WALK_NO_XDEV = 32,
    UMVM_WALK_NO_MAGICLINKS = 64,
    UMVM_WALK_SLASH_OK = 128,  /* a trailing slash asks for nothing (mkdir, rename, O_CREAT…) */
    UMVM_WALK_SEARCH = 256,    /* served mounts are asked for DIR/. before a dot component */
};

/* Answers of the callback besides −errno: the length of a link's target (maybe | UMVM_MAGIC), or */
enum { UMVM_IS_DIR = -10001, UMVM_IS_OTHER = -10002, UMVM_IS_SOME = -10003 /* no link */ };
#define UMVM_MAGIC 0x10000 /* a jump to `link` (canonical; empty: to the link itself), not a text */

struct umvm_walk {
    /* set by the caller */
    long (*look)(struct umvm_walk *, uint32_t mount); /* what is at `path`? */
    void *ctx;
    uint32_t base_mount; /* of the base, UMVM_BY_PATH: what the path says */

    /* where the walk is; in the end: its result */
    uint32_t mount, len;
    char path[UMVM_PLACE_MAX + 4]; /* with a NUL */
    int missing, slash, last_dot; /* last_dot: 1 ".", 2 ".." */
    int served;                   /* the kernel would not get there: a mount or virtual root was touched */

    /* for the callback */
    int last;                 /* the component is the last one */
    int suffix;               /* `path` ends in "/" (1) or "/." (2), to see if it is a directory */
    int fresh;                /* kept by the callback: it has just verified the directory `parent` */
    uint64_t hash, parent;    /* of `path` without suffix, and of its directory */
    uint32_t jump_mount;      /* set by it for UMVM_MAGIC; UMVM_BY_PATH unless set */
    int jump_kind;            /* UMVM_IS_…, UMVM_IS_SOME unless set */
    char link[UMVM_PATH_MAX]; /* target, without NUL */

    /* the walk's own */
    const struct umvm_view *view;
    uint32_t flags, links, base_len, at;
    uint32_t in, base_in; /* indexes of `mount` and `base_mount` */
    int kind, root_known;
    const char *base;
    char rest[UMVM_REST_MAX]; /* the text to be walked is at the end, from `at` */
};

/* Is the walk at a file of the host? */
static inline int umvm_on_host(const struct umvm_walk *w)
{
    return w->mount == UMVM_HOST || umvm_bind(w->view, w->in) != 0;
}

/* --- steps of a walk --------------------------------------------------------------------------- */

/* The mount with this id that contains the path: the visible one, or else a covered or detached one. */
static inline uint32_t umvm_index(const struct umvm_view *v, uint32_t id, const char *path, uint32_t len)
{
    uint64_t hash;
    uint32_t in = umvm_place(v, path, len, &hash);
    if (id == UMVM_BY_PATH || umvm_id(v, in) == id)
        return in;
    in = UMVM_NO_MOUNT;
    for (uint32_t i = 0; i < v->count; i++)
        if (v->mounts[i].id == id && umvm_below(v->mounts[i].point, v->mounts[i].len, path, len))
            in = i;
    return in;
}

static inline int umvm_enter(const struct umvm_view *v, struct umvm_walk *w, uint32_t in)
{
    if (in == w->in)
        return 0;
    if (w->flags & UMVM_WALK_NO_XDEV)
        return -EXDEV;
    w->served |= w->mount > UMVM_PROC; /* also where a bind mount is left */
    w->mount = umvm_id(v, in);
    w->in = in;
    w->served |= w->mount > UMVM_PROC;
    return 0;
}

static inline int umvm_is_scoped(const struct umvm_walk *w)
{
    return w->flags & (UMVM_WALK_BENEATH | UMVM_WALK_IN_ROOT);
}

static inline void umvm_set_path(struct umvm_walk *w, const char *path, uint32_t len)
{
    __builtin_memcpy(w->path, path, len);
    w->len = len;
    w->path[len] = 0;
    w->fresh = 0;
}

/* To the start of an absolute path or link; the mount there. */
static inline uint32_t umvm_to_root(const struct umvm_view *v, struct umvm_walk *w)
{
    int scoped = umvm_is_scoped(w);
    w->kind = UMVM_IS_DIR;
    w->served |= !scoped && v->root_len != 0; /* the kernel's root is another one */
    umvm_set_path(w, scoped ? w->base : v->root, scoped ? w->base_len : v->root_len);
    uint32_t in = umvm_place(v, w->path, w->len, &w->hash);
    return scoped ? w->base_in : in;
}

/* Asks about the position itself: "/" must be a directory, "/." one that may be searched. */
static inline int umvm_ask_dir(struct umvm_walk *w, int suffix)
{
    long r = UMVM_IS_DIR;
    if (w->kind == UMVM_IS_OTHER)
        return -ENOTDIR;
    if (umvm_on_host(w) || (suffix == 2 && w->flags & UMVM_WALK_SEARCH && w->mount > UMVM_PROC)) {
        __builtin_memcpy(w->path + w->len, "/.", 3);
        w->path[w->len + suffix] = 0;
        w->suffix = suffix;
        w->len += suffix;
        r = w->look(w, w->mount);
        w->len -= suffix;
        w->path[w->len] = 0;
        w->suffix = 0;
    }
    return r < 0 && r > UMVM_IS_DIR ? (int)r : r == UMVM_IS_OTHER ? -ENOTDIR : 0;
}

static inline int umvm_dot_dot(const struct umvm_view *v, struct umvm_walk *w)
{
    const char *root = umvm_is_scoped(w) ? w->base : v->root;
    uint32_t root_len = umvm_is_scoped(w) ? w->base_len : v->root_len;
    if (w->len == root_len && !__builtin_memcmp(w->path, root, root_len)) {
        w->served |= !umvm_is_scoped(w) && root_len != 0;
        return w->flags & UMVM_WALK_BENEATH ? -EXDEV : 0;
    }
    if (w->len == 0)
        return 0;
    uint32_t in = w->in;
    while (in != UMVM_NO_MOUNT && v->mounts[in].len == w->len) { /* at a mount's root */
        if (v->mounts[in].detached)
            return 0;
        in = v->mounts[in].parent;
    }
    while (w->path[--w->len] != '/')
        ;
    w->path[w->len] = 0;
    w->fresh = 0;
    w->kind = UMVM_IS_DIR;
    umvm_place(v, w->path, w->len, &w->hash);
    return umvm_enter(v, w, umvm_cross(v, in, w->hash, w->path, w->len));
}

/* Goes where a magic link leads; its own path when the target has no name. */
static inline int umvm_jump(const struct umvm_view *v, struct umvm_walk *w, uint32_t n)
{
    if (w->flags & UMVM_WALK_NO_MAGICLINKS)
        return -ELOOP;
    if (umvm_is_scoped(w))
        return -EXDEV;
    w->kind = w->jump_kind;
    if (n == 0)
        return w->flags & UMVM_WALK_NO_XDEV ? -EXDEV : 0;
    if (n >= UMVM_PATH_MAX)
        return -ENAMETOOLONG;
    if (w->link[0] != '/')
        return -EIO; /* the callback's mistake */
    umvm_set_path(w, w->link, umvm_text_len(w->link, n));
    umvm_place(v, w->path, w->len, &w->hash);
    int e = umvm_enter(v, w, umvm_index(v, w->jump_mount, w->path, w->len));
    if (e == 0 && w->jump_mount != UMVM_BY_PATH) {
        w->mount = w->jump_mount; /* also one that isn't in the view */
        w->served |= w->mount > UMVM_PROC;
    }
    return e;
}

/* Is a link at the present component one to be followed? */
static inline int umvm_follows(const struct umvm_walk *w)
{
    if (!w->last || w->suffix)
        return 1;
    return w->slash ? !(w->flags & UMVM_WALK_SLASH_OK) : w->flags & UMVM_WALK_FOLLOW;
}

/* One named component; `tail` is where the text after it begins, empty if it is the last one. */
static inline int umvm_component(const struct umvm_view *v, struct umvm_walk *w, const char *name, uint32_t n, uint32_t tail)
{
    uint64_t parent = w->hash;
    uint32_t parent_len = w->len;
    if (w->kind == UMVM_IS_OTHER)
        return -ENOTDIR;
    if (n > UMVM_NAME_MAX && !umvm_on_host(w)) {
        int e = umvm_ask_dir(w, 2); /* who may not search the directory isn't told about names */
        return e ? e : -ENAMETOOLONG;
    }
    if (w->len + 1 + n >= UMVM_PLACE_MAX)
        return -ENAMETOOLONG;
    w->path[w->len] = '/';
    __builtin_memcpy(w->path + w->len + 1, name, n);
    w->hash = umvm_hash(parent, w->path + w->len, n + 1);
    w->parent = parent;
    w->len += n + 1;
    w->path[w->len] = 0;
    uint32_t in = umvm_cross(v, w->in, w->hash, w->path, w->len);
    if (in != w->in) {
        w->kind = UMVM_IS_DIR;
        w->fresh = 0;
        int e = umvm_enter(v, w, in);
        int asks = w->last && w->slash && !(w->flags & UMVM_WALK_SLASH_OK) && umvm_bind(v, in);
        return e == 0 && asks ? umvm_ask_dir(w, 1) : e; /* a file may be mounted on a file */
    }
    w->jump_mount = UMVM_BY_PATH;
    w->jump_kind = UMVM_IS_SOME;
    long r = w->look(w, w->mount);
    if (r == UMVM_IS_DIR || r == UMVM_IS_OTHER || r == UMVM_IS_SOME) {
        w->kind = (int)r;
        return w->last && w->slash && !(w->flags & UMVM_WALK_SLASH_OK) && r != UMVM_IS_DIR ? umvm_ask_dir(w, 1) : 0;
    }
    if (r < 0) {
        if (r != -ENOENT || !w->last || !(w->flags & UMVM_WALK_MISSING_OK))
            return (int)r;
        w->missing = 1;
        return 0;
    }
    w->kind = UMVM_IS_OTHER;
    if (!umvm_follows(w))
        return 0;
    if (w->links++ >= UMVM_LINKS_MAX || w->flags & UMVM_WALK_NO_SYMLINKS)
        return -ELOOP;
    if (r & UMVM_MAGIC) {
        int e = umvm_jump(v, w, (uint32_t)r & ~UMVM_MAGIC);
        return e == 0 && w->last && w->slash ? umvm_ask_dir(w, 1) : e;
    }
    if (r == 0)
        return -ENOENT;
    if (r >= (long)UMVM_PATH_MAX || r > tail)
        return -ENAMETOOLONG;
    w->at = tail - (uint32_t)r;
    __builtin_memcpy(w->rest + w->at, w->link, r);
    w->len = parent_len;
    w->path[w->len] = 0;
    w->hash = parent;
    w->kind = UMVM_IS_DIR;
    if (w->link[0] != '/')
        return 0;
    if (w->flags & UMVM_WALK_BENEATH)
        return -EXDEV;
    if (w->flags & UMVM_WALK_NO_XDEV && !w->root_known)
        return -EXDEV; /* nd_jump_root compares with a root that wasn't looked up yet */
    return umvm_enter(v, w, umvm_to_root(v, w));
}

/* Walks `path` from the canonical directory `base` (unused for an absolute path unless scoped).
   0 and the result in *w, or −errno as path_resolution(7) and openat2(2) tell. */
static inline int umvm_walk(const struct umvm_view *v, struct umvm_walk *w, const char *base, uint32_t base_len, const char *path,
                     uint32_t len, uint32_t flags)
{
    int e = 0;
    w->view = v;
    w->missing = w->slash = w->last_dot = w->served = w->suffix = w->fresh = w->last = 0;
    w->flags = flags;
    w->links = 0;
    w->mount = UMVM_HOST;
    w->root_known = (len && path[0] == '/') || umvm_is_scoped(w);
    if (len == 0)
        return -ENOENT;
    if (len >= UMVM_PATH_MAX || base_len >= UMVM_PLACE_MAX)
        return -ENAMETOOLONG;
    if ((flags & UMVM_WALK_BENEATH) && (flags & UMVM_WALK_IN_ROOT))
        return -EINVAL;
    if (path[0] == '/' && flags & UMVM_WALK_BENEATH)
        return -EXDEV;
    if (path[0] == '/' && !umvm_is_scoped(w)) {
        w->in = umvm_to_root(v, w);
        w->mount = umvm_id(v, w->in);
        w->served |= w->mount > UMVM_PROC;
    } else {
        w->base = base;
        w->base_len = umvm_text_len(base, base_len);
        if (w->base_len && base[0] != '/')
            return -ENOENT; /* "(unreachable)/…", as d_path writes it */
        umvm_set_path(w, base, w->base_len);
        umvm_place(v, w->path, w->len, &w->hash);
        w->base_in = w->in = umvm_index(v, w->base_mount, w->path, w->len);
        w->mount = w->base_mount == UMVM_BY_PATH ? umvm_id(v, w->in) : w->base_mount;
        w->kind = UMVM_IS_DIR;
        w->fresh = 1;
    }
    w->served |= w->mount > UMVM_PROC && !(w->mount == umvm_id(v, w->in) && umvm_bind(v, w->in));
    w->at = UMVM_REST_MAX - len;
    __builtin_memcpy(w->rest + w->at, path, len);
    for (;;) {
        while (w->at < UMVM_REST_MAX && w->rest[w->at] == '/')
            w->at++;
        if (w->at == UMVM_REST_MAX)
            break;
        const char *name = w->rest + w->at;
        uint32_t n = 1, next;
        while (w->at + n < UMVM_REST_MAX && name[n] != '/')
            n++;
        for (next = w->at + n; next < UMVM_REST_MAX && w->rest[next] == '/';)
            next++;
        w->last = next == UMVM_REST_MAX;
        w->slash = w->last && next != w->at + n;
        uint32_t tail = w->at + n;
        w->at = next;
        int dots = name[0] == '.' ? n == 1 ? 1 : n == 2 && name[1] == '.' ? 2 : 0 : 0;
        w->last_dot = w->last ? dots : 0;
        if (dots) {
            e = umvm_ask_dir(w, 2);
            if (e == 0 && dots == 2) {
                w->root_known = 1;
                e = umvm_dot_dot(v, w);
            }
            w->kind = UMVM_IS_DIR;
        } else
            e = umvm_component(v, w, name, n, tail);
        if (e)
            return e;
    }
    if (w->len == 0) {
        __builtin_memcpy(w->path, "/", 2);
        w->len = 1;
    }
    return 0;
}
#endif
