/* Answers calls that only look at a file of the host which the guest finds at another path (a bind mount, another
   root), or that open a regular file or directory there. No GIL here. What is at all special is left to Python:
   umvm/syscalls/stat.py and hostopen.py say the same. */
#ifndef UMVM_SERVE_H
#define UMVM_SERVE_H
#include "route.h"
#include <sys/xattr.h>

enum { UMVM_LOOK_STAT, UMVM_LOOK_STATX, UMVM_LOOK_ACCESS, UMVM_LOOK_LINK, UMVM_LOOK_OPEN, UMVM_LOOK_XATTR, UMVM_LOOK_XATTRS };

struct umvm_looker {
    short nr;
    signed char what, path, dirfd, flags, out, more; /* indexes of arguments, −1: none */
    int nofollow;                                    /* the call itself doesn't follow links */
};

static const struct umvm_looker *umvm_looker_of(int nr)
{
    static const struct umvm_looker all[] = {
        {SYS_stat, UMVM_LOOK_STAT, 0, -1, -1, 1, -1, 0},
        {SYS_lstat, UMVM_LOOK_STAT, 0, -1, -1, 1, -1, 1},
        {SYS_newfstatat, UMVM_LOOK_STAT, 1, 0, 3, 2, -1, 0},
        {SYS_statx, UMVM_LOOK_STATX, 1, 0, 2, 4, 3, 0},
        {SYS_access, UMVM_LOOK_ACCESS, 0, -1, -1, -1, 1, 0},
        {SYS_faccessat, UMVM_LOOK_ACCESS, 1, 0, -1, -1, 2, 0},
        {SYS_readlink, UMVM_LOOK_LINK, 0, -1, -1, 1, 2, 1},
        {SYS_readlinkat, UMVM_LOOK_LINK, 1, 0, -1, 2, 3, 1},
        {SYS_getxattr, UMVM_LOOK_XATTR, 0, -1, -1, 2, 3, 0},
        {SYS_lgetxattr, UMVM_LOOK_XATTR, 0, -1, -1, 2, 3, 1},
        {SYS_listxattr, UMVM_LOOK_XATTRS, 0, -1, -1, 1, 2, 0},
        {SYS_llistxattr, UMVM_LOOK_XATTRS, 0, -1, -1, 1, 2, 1},
        {SYS_open, UMVM_LOOK_OPEN, 0, -1, 1, -1, -1, 0},
        {SYS_openat, UMVM_LOOK_OPEN, 1, 0, 2, -1, -1, 0},
    };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].nr == nr)
            return &all[i];
    return NULL;
}

/* The walk's look callback: the host's files outside /proc only. */
static long umvm_serve_look(struct umvm_walk *w, uint32_t mount)
{
    struct umvm_host_place p;
    (void)mount;
    if (umvm_on_host(w)) {
        int e = umvm_host_place(w, &p);
        if (e || !p.in_proc)
            return e ? e : umvm_look_at(w, &p);
    }
    *(int *)w->ctx = 1;
    return -EXDEV;
}

/* Where the path leads: 0 and *p, or −errno; 1: it is Python's. *bind: the bind mount there. */
static int umvm_serve_walk(struct umvm_router *r, const struct seccomp_notif *q, const struct umvm_path *got, int dirfd,
                           uint32_t flags, struct umvm_host_place *p, struct umvm_mount *bind)
{
    struct umvm_walk w;
    char base[UMVM_PATH_MAX], shown[UMVM_PLACE_MAX];
    const char *from = base;
    uint32_t length = 1, cwd, in;
    int theirs = 0, e = 1;
    long b = 1;
    base[0] = '/';
    if (got->text[0] != '/') {
        b = dirfd == AT_FDCWD ? umvm_proc_link(q->pid, "cwd", -1, base) : umvm_proc_link(q->pid, 0, dirfd, base);
        if (b <= 0 || base[0] != '/' || umvm_is_ours(r, base, b) || (b > 10 && !strcmp(base + b - 10, " (deleted)")))
            return 1;
        length = b;
    }
    w.look = umvm_serve_look;
    w.ctx = &theirs;
    w.base_mount = UMVM_BY_PATH;
    memset(bind, 0, sizeof *bind);
    __atomic_add_fetch(&r->readers, 1, __ATOMIC_SEQ_CST);
    struct umvm_table *t = __atomic_load_n(&r->table, __ATOMIC_SEQ_CST);
    const struct umvm_view *v = t ? umvm_view_of(r, t, q->pid, &cwd) : NULL;
    if (v) {
        if (v->binds && got->text[0] != '/') {
            theirs = umvm_shown(v, dirfd == AT_FDCWD ? cwd : UMVM_BY_PATH, base, b, shown, &length, &in) != 1 &&
                     dirfd != AT_FDCWD;
            w.base_mount = umvm_id(v, in);
            from = shown;
        }
        if (!theirs)
            e = umvm_walk(v, &w, from, length, got->text, got->size, flags);
        if (!theirs && e == 0) {
            const struct umvm_mount *m = umvm_bind(v, w.in);
            if (m)
                *bind = *m; /* its texts may be gone later, and aren't used */
            e = !umvm_on_host(&w) || umvm_host_place(&w, p) != 0 || p->in_proc || !strncmp(p->path, "/proc", 6);
            if (e == 0 && p->path != p->text) {
                memcpy(p->text, p->path, w.len + 1);
                p->path = p->text;
            }
            size_t n = e ? 0 : strlen(p->path);
            if (e == 0 && w.slash && n > 1)
                memcpy(p->text + n, "/", 2);
        }
    }
    __atomic_sub_fetch(&r->readers, 1, __ATOMIC_SEQ_CST);
    return theirs ? 1 : e;
}

static int umvm_serve_open(const struct umvm_host_place *p, const struct umvm_mount *bind, uint64_t flags,
                           struct umvm_verdict *v)
{
    struct stat st;
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    if (writes && bind->flags & UMVM_READ_ONLY)
        return 0;
    if (lstat(p->path, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
        return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, p->path, (int)flags | O_CLOEXEC | O_NOCTTY, 0);
    if (fd < 0) {
        *v = (struct umvm_verdict){UMVM_ERROR, 0, errno};
        return 1;
    }
    if (bind->flags & UMVM_AMBIGUOUS)
        fcntl(fd, F_SETSIG, 1 + bind->id % 63); /* umvm/guest/spaces.py */
    *v = (struct umvm_verdict){UMVM_FD, (flags & O_CLOEXEC) != 0, fd};
    return 1;
}

/* 1: *v is the answer to a call that umvm_route claimed; 0: it is Python's. `got`: its path. */
static int umvm_serve(struct umvm_router *r, const struct umvm_call_kind *k, const struct seccomp_notif *q,
                      const struct umvm_path *got, struct umvm_verdict *v)
{
    const __u64 *a = q->data.args;
    const struct umvm_looker *l;
    struct umvm_host_place p;
    struct umvm_mount bind;
    char data[UMVM_PATH_MAX], name[256];
    if (!r->redirected || !r->answers || k->hooked || got->size <= 0 || !(l = umvm_looker_of(q->data.nr)) ||
        got->addr != a[(int)l->path])
        return 0;
    int flags = l->flags >= 0 ? (int)a[(int)l->flags] : 0, nofollow = l->nofollow, what = l->what;
    if (what == UMVM_LOOK_OPEN)
        nofollow = flags & O_NOFOLLOW;
    else if (flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT))
        return 0;
    else
        nofollow |= flags & AT_SYMLINK_NOFOLLOW;
    uint64_t more = l->more >= 0 ? a[(int)l->more] : 0;
    if ((what == UMVM_LOOK_OPEN && flags & (O_CREAT | O_PATH | 020000000 /* __O_TMPFILE */)) ||
        (what == UMVM_LOOK_ACCESS && more & ~7ull) || (what == UMVM_LOOK_STATX && more & 0x80000000) ||
        (what == UMVM_LOOK_LINK && (int)more <= 0) || (what >= UMVM_LOOK_XATTR && more > sizeof data) ||
        (what == UMVM_LOOK_XATTR && umvm_string(q->pid, name, a[1], sizeof name) < 0))
        return 0;
    int e = umvm_serve_walk(r, q, got, l->dirfd >= 0 ? (int)a[(int)l->dirfd] : AT_FDCWD,
                            nofollow ? 0 : UMVM_WALK_FOLLOW, &p, &bind);
    if (e > 0 || (what == UMVM_LOOK_ACCESS && more & W_OK && bind.flags & UMVM_READ_ONLY))
        return 0;
    if (e == 0 && what == UMVM_LOOK_OPEN)
        return umvm_serve_open(&p, &bind, (uint64_t)(uint32_t)flags, v);
    long n = 0, size = 0;
    if (e == 0) {
        int at = nofollow ? AT_SYMLINK_NOFOLLOW : 0;
        if (what == UMVM_LOOK_STAT)
            n = syscall(SYS_newfstatat, AT_FDCWD, p.path, data, at), size = 144;
        else if (what == UMVM_LOOK_STATX)
            n = syscall(SYS_statx, AT_FDCWD, p.path, at, (uint32_t)more, data), size = 256;
        else if (what == UMVM_LOOK_ACCESS)
            n = syscall(SYS_faccessat, AT_FDCWD, p.path, (int)more);
        else if (what == UMVM_LOOK_XATTR)
            n = nofollow ? lgetxattr(p.path, name, data, more) : getxattr(p.path, name, data, more);
        else if (what == UMVM_LOOK_XATTRS)
            n = nofollow ? llistxattr(p.path, data, more) : listxattr(p.path, data, more);
        else
            n = size = readlink(p.path, data, (int)more < (int)sizeof data ? (int)more : (int)sizeof data);
        e = n < 0 ? -errno : 0;
        if (what >= UMVM_LOOK_XATTR && more)
            size = n;
    }
    if (e == 0 && size && umvm_copy(q->pid, data, a[(int)l->out], size, 1) != size)
        e = -EFAULT;
    *v = (struct umvm_verdict){e ? UMVM_ERROR : UMVM_VALUE, 0, e ? -e : n};
    return 1;
}
#endif
