/* A view: a table of mounts, seen from a root directory. Freestanding, as pathwalk.h, which walks in it. */
#ifndef UMVM_VIEW_H
#define UMVM_VIEW_H
#include <stddef.h>
#include <stdint.h>

#define UMVM_PLACE_MAX 16384u /* of a canonical path: a long text may start deep in a mount */
#define UMVM_BY_PATH 0xFFFFFFFFu

enum { UMVM_HOST = 0, UMVM_PROC = 1 }; /* mount ids; all others are served, or bind mounts */

/* What is known of a bind mount: it shows files of the host, those at and below `source`. */
enum umvm_mount_flag {
    UMVM_BIND = 1,
    UMVM_READ_ONLY = 2,
    UMVM_AMBIGUOUS = 4, /* other paths of the view lead to some of its files */
};

#define UMVM_NO_MOUNT 0xFFFFu /* an index: nothing is mounted there, so it is the host */

struct umvm_mount {
    const char *point; /* canonical, without a trailing slash: the root is empty */
    uint32_t len, id;
    uint64_t hash;
    uint16_t parent;   /* index of the mount that it is mounted on */
    uint16_t detached; /* lazily unmounted: not entered, and its root has no parent */
    uint32_t flags, source_len;
    const char *source; /* of a bind mount: canonical, on the host, the root is empty */
};

struct umvm_view {
    const struct umvm_mount *mounts;
    uint16_t *slots; /* hash table of points: index + 1 */
    uint32_t count, mask, binds, flags; /* `flags`: of any bind mount */
    const char *root;      /* nothing above it is reached */
    uint32_t root_len;
};

#define UMVM_HASH_START 1469598103934665603ull
static inline uint64_t umvm_hash(uint64_t h, const char *s, uint32_t n) /* FNV-1a */
{
    for (uint32_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 1099511628211ull;
    return h;
}

static inline uint32_t umvm_slot(const struct umvm_view *v, uint64_t hash)
{
    return (uint32_t)(hash ^ hash >> 32) & v->mask;
}

/* Where the walk is when it comes to this path within mount `in`: in the topmost mount there, or still
   in `in` (lookup_mnt: a mount hangs on a path of its parent, and the next one on its root). */
static inline uint32_t umvm_cross(const struct umvm_view *v, uint32_t in, uint64_t hash, const char *path, uint32_t len)
{
    for (uint32_t i = umvm_slot(v, hash); v->slots[i];) {
        const struct umvm_mount *m = &v->mounts[v->slots[i] - 1];
        if (m->hash == hash && m->parent == in && m->len == len && !__builtin_memcmp(m->point, path, len)) {
            in = v->slots[i] - 1u;
            i = umvm_slot(v, hash);
        } else
            i = (i + 1) & v->mask;
    }
    return in;
}

/* The mount in which this path lies in the view; *hash: the path's. */
static inline uint32_t umvm_place(const struct umvm_view *v, const char *path, uint32_t len, uint64_t *hash)
{
    uint64_t h = UMVM_HASH_START;
    uint32_t in = umvm_cross(v, UMVM_NO_MOUNT, h, path, 0);
    for (uint32_t i = 0; i < len;) {
        uint32_t from = i++;
        while (i < len && path[i] != '/')
            i++;
        h = umvm_hash(h, path + from, i - from);
        in = umvm_cross(v, in, h, path, i);
    }
    *hash = h;
    return in;
}

static inline uint32_t umvm_id(const struct umvm_view *v, uint32_t in)
{
    return in == UMVM_NO_MOUNT ? UMVM_HOST : v->mounts[in].id;
}

/* The bind mount with this index; NULL: it is something else. */
static inline const struct umvm_mount *umvm_bind(const struct umvm_view *v, uint32_t in)
{
    return in != UMVM_NO_MOUNT && v->mounts[in].flags & UMVM_BIND ? &v->mounts[in] : 0;
}

/* Is `inner` at or below `outer`? */
static inline int umvm_below(const char *outer, uint32_t outer_len, const char *inner, uint32_t inner_len)
{
    return outer_len <= inner_len && !__builtin_memcmp(outer, inner, outer_len) &&
           (outer_len == inner_len || inner[outer_len] == '/');
}

static inline uint32_t umvm_text_len(const char *s, uint32_t n) /* without trailing slashes */
{
    while (n && s[n - 1] == '/')
        n--;
    return n;
}

/* --- making a view --------------------------------------------------------------------------- */

static inline uint32_t umvm_view_slots(uint32_t count)
{
    uint32_t n = 8;
    while (n < 2 * count)
        n *= 2;
    return n;
}

/* Bytes that umvm_view_make needs for `count` mounts whose points have `text` bytes in all. */
static inline size_t umvm_view_bytes(uint32_t count, size_t text)
{
    return sizeof(struct umvm_view) + count * sizeof(struct umvm_mount) + umvm_view_slots(count) * sizeof(uint16_t) + text;
}

/* Builds a view in zeroed memory of umvm_view_bytes, `root_len` included in `text`. Mounts are given
   in the order they were made; from index `detached` on they are lazily unmounted ones. */
static inline struct umvm_view *umvm_view_make(void *memory, const char *const *points, const uint32_t *lens, const uint32_t *ids,
                                        uint32_t count, uint32_t detached, const char *root, uint32_t root_len)
{
    struct umvm_view *v = memory;
    uint64_t hash;
    struct umvm_mount *mounts = (struct umvm_mount *)(v + 1);
    uint16_t *slots = (uint16_t *)(mounts + count);
    char *text = (char *)(slots + umvm_view_slots(count));
    v->mounts = mounts;
    v->slots = slots;
    v->count = count;
    v->mask = umvm_view_slots(count) - 1;
    v->root = text;
    v->root_len = umvm_text_len(root, root_len);
    __builtin_memcpy(text, root, v->root_len);
    text += v->root_len;
    for (uint32_t i = 0; i < count; i++) {
        struct umvm_mount *m = &mounts[i];
        m->len = umvm_text_len(points[i], lens[i]);
        m->point = text;
        __builtin_memcpy(text, points[i], m->len);
        text += m->len;
        m->id = ids[i];
        m->detached = i >= detached;
        m->parent = m->detached ? UMVM_NO_MOUNT : (uint16_t)umvm_place(v, m->point, m->len, &hash);
        m->hash = m->detached ? 0 : hash;
        uint32_t s = umvm_slot(v, m->hash);
        while (slots[s])
            s = (s + 1) & v->mask;
        if (!m->detached)
            slots[s] = (uint16_t)(i + 1);
    }
    return v;
}

/* Makes mount `index` of a new view a bind mount; `source` stays the caller's. */
static inline void umvm_view_bind(struct umvm_view *v, uint32_t index, const char *source, uint32_t len, uint32_t flags)
{
    struct umvm_mount *m = (struct umvm_mount *)&v->mounts[index];
    m->source = source;
    m->source_len = umvm_text_len(source, len);
    m->flags = UMVM_BIND | flags;
    v->binds++;
    v->flags |= flags;
}

/* Where a view shows the file that has this path on the host: the path in the view, in `out`, its length and
   the mount's index. `hint`: the id of the mount that it was reached by (UMVM_BY_PATH: not known). Returns at
   how many places it can be seen from the root, or else at all; 0: nowhere, and `out` is the path as it is.
   `path`: scratch memory of `room` bytes. */
static inline int umvm_shown_in(const struct umvm_view *v, uint32_t hint, const char *host, uint32_t len, char *out,
                                uint32_t *out_len, uint32_t *in, char *path, uint32_t room)
{
    int places = 0, best = -1;
    uint32_t best_detail = 0;
    uint64_t hash;
    len = umvm_text_len(host, len);
    __builtin_memcpy(out, host, len);
    *out_len = len;
    *in = UMVM_NO_MOUNT;
    for (uint32_t i = 0; i <= v->count; i++) { /* the last is the path as it is */
        const struct umvm_mount *m = i < v->count ? &v->mounts[i] : 0;
        const char *text = host;
        uint32_t n = len, at;
        if (m) {
            if (!(m->flags & UMVM_BIND) || !umvm_below(m->source, m->source_len, host, len))
                continue;
            n = m->len + len - m->source_len;
            if (n >= room)
                continue;
            __builtin_memcpy(path, m->point, m->len);
            __builtin_memcpy(path + m->len, host + m->source_len, len - m->source_len);
            text = path;
        }
        at = umvm_place(v, text, n, &hash);
        uint32_t id = m ? m->id : UMVM_HOST;
        if (m ? at != i && !(m->detached && id == hint) : umvm_id(v, at) > UMVM_PROC)
            continue;
        int seen = umvm_below(v->root, v->root_len, text, n);
        int rank = (id == hint ? 4 : 0) + (seen ? 2 : 0) + (m == 0 && hint == UMVM_BY_PATH);
        if (places && seen == ((best & 2) != 0))
            places++;
        else if (!places || seen)
            places = 1;
        uint32_t detail = m ? m->source_len : 0; /* of equal ones the closest mount, then the last */
        if (rank > best || (rank == best && detail >= best_detail)) {
            best = rank;
            best_detail = detail;
            *in = m ? i : at;
            *out_len = n;
            __builtin_memcpy(out, text, n);
        }
    }
    return places;
}

static inline int umvm_shown(const struct umvm_view *v, uint32_t hint, const char *host, uint32_t len, char *out,
                             uint32_t *out_len, uint32_t *in)
{
    char path[UMVM_PLACE_MAX];
    return umvm_shown_in(v, hint, host, len, out, out_len, in, path, sizeof path);
}
#endif
