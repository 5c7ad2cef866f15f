/* Who answers a notified call: nobody (0: the kernel runs it) or the interpreter (1). No GIL here.

   A wrong 1 costs time, a wrong 0 shows the guest the host: what isn't known to be the host's
   business is claimed. Calls that the kernel will refuse anyway (a bad pointer, a missing name on
   the host) are the kernel's. */
#ifndef UMVM_ROUTE_H
#define UMVM_ROUTE_H
#include "kernel.h" /* first: it asks for _GNU_SOURCE */
#include "agent/layout.h"
#include "hostlook.h"
#include "pathwalk.h"
#include <linux/fs.h>
#include <linux/loop.h>

enum { UMVM_INODES = 1 << 14 };

struct umvm_call_kind {
    uint8_t always;  /* bits: 1 always ours · 2 while anything is served · 4 on a known socket · 8 if the frame shows an
                        interrupted call · 16 while a view isn't the host's · 32 if it is about RLIMIT_LOCKS, which holds
                        the marks */
    uint8_t hooked;
    int8_t fd;       /* index of the descriptor argument, or −1 */
    int8_t path[2];  /* indexes of path arguments, or −1 */
    int8_t dirfd[2]; /* index of the directory descriptor that belongs to each, or −1 */
};

struct umvm_table {
    struct umvm_view *view;   /* that of processes without a mark */
    struct umvm_view **views; /* all, if there are several; they aren't the table's */
    int count;
    struct umvm_table *older; /* replaced, but a walk may still be in it */
};

struct umvm_path { /* a path that was read from a guest, for who has to look at it next */
    uint64_t addr;
    long size; /* without its NUL; 0: none was read */
    char text[UMVM_PATH_MAX];
};
/* Processes carry the number of a record (umvm/guest/marks.py). What it says about paths: */
struct umvm_record {
    uint32_t view; /* index of its view */
    uint32_t cwd;  /* the mount by which it came to its working directory */
};
#define UMVM_RLIMIT_MARK 10 /* RLIMIT_LOCKS */

struct umvm_router {
    int mounts;      /* mounts, and views beside the host's */
    int redirected;  /* bind mounts, and such views */
    int read_only;   /* bind mounts that are read-only */
    int answers;     /* all guests may do on the host what we may: serve.h can answer for it */
    struct umvm_record *records;
    int descriptors; /* open served descriptors */
    int virtual_cwd; /* a process may stand in a served directory */
    uint64_t claimed, passed;
    uint32_t sockets; /* how many sockets are known */
    uint16_t socket_inodes[UMVM_INODES]; /* how many of them have an inode number that ends so */
    struct umvm_table *table; /* swapped whole */
    int readers;              /* walks that are under way */
    int names;                /* how many of `name` are in use */
    char name[32][24];        /* files of /proc that show something else, besides those below */
    uint32_t shadow_len;
    char shadow[256]; /* how the links of descriptors and directories of ours begin */
};

/* A view with `count` mounts, the host's "/" first. 0, −ENOMEM or −ENAMETOOLONG. One caller at a time. */
static int umvm_route_set_view(struct umvm_router *r, const char *const *points, const uint32_t *ids, int count)
{
    uint32_t *lens = calloc(count + 1, sizeof *lens);
    size_t text = 0;
    int served = 0;
    for (int i = 0; lens && i < count; i++) {
        lens[i] = strlen(points[i]);
        if (lens[i] >= UMVM_PATH_MAX) {
            free(lens);
            return -ENAMETOOLONG;
        }
        text += lens[i];
        served += ids[i] > UMVM_PROC;
    }
    struct umvm_table *t = calloc(1, sizeof *t + umvm_view_bytes(count, text));
    if (!lens || !t) {
        free(lens);
        free(t);
        return -ENOMEM;
    }
    t->view = umvm_view_make(t + 1, points, lens, ids, count, count, "", 0);
    free(lens);
    t->older = r->table;
    __atomic_store_n(&r->table, t, __ATOMIC_SEQ_CST);
    r->mounts = served, r->redirected = r->read_only = 0;
    if (__atomic_load_n(&r->readers, __ATOMIC_SEQ_CST) == 0)
        while (t->older) { /* who starts to read now finds the new one */
            struct umvm_table *old = t->older;
            t->older = old->older;
            free(old);
        }
    return 0;
}

/* Several views; the first is that of processes without a mark. They stay the caller's, until 1 is returned
   the replaced ones too. −ENOMEM. */
static int umvm_route_set_views(struct umvm_router *r, struct umvm_view *const *views, int count)
{
    struct umvm_table *t = calloc(1, sizeof *t + count * sizeof *views);
    if (!r->records)
        r->records = calloc(UMVM_RECORDS, sizeof *r->records);
    if (!t || !r->records) {
        free(t);
        return -ENOMEM;
    }
    int mounts = count - 1, redirected = count - 1, read_only = 0;
    t->views = (struct umvm_view **)(t + 1);
    t->count = count;
    for (int i = 0; i < count; i++) {
        const struct umvm_view *v = views[i];
        t->views[i] = views[i];
        redirected += v->binds;
        for (uint32_t m = 0; m < v->count; m++) {
            mounts += v->mounts[m].id > UMVM_PROC;
            read_only += v->mounts[m].flags & UMVM_READ_ONLY ? 1 : 0;
        }
    }
    t->view = views[0];
    t->older = r->table;
    if (mounts > r->mounts)
        r->mounts = mounts; /* who reads meanwhile claims too much, never too little */
    if (redirected > r->redirected)
        r->redirected = redirected;
    if (read_only > r->read_only)
        r->read_only = read_only;
    __atomic_store_n(&r->table, t, __ATOMIC_SEQ_CST);
    r->mounts = mounts;
    r->redirected = redirected;
    r->read_only = read_only;
    if (__atomic_load_n(&r->readers, __ATOMIC_SEQ_CST))
        return 0;
    while (t->older) {
        struct umvm_table *old = t->older;
        t->older = old->older;
        free(old);
    }
    return 1;
}

static void umvm_route_set_record(struct umvm_router *r, uint32_t number, uint32_t view, uint32_t cwd)
{
    if (r->records && number < UMVM_RECORDS)
        r->records[number] = (struct umvm_record){view, cwd};
}

/* The view of a process, and by which mount it came to its working directory. NULL: not known. */
static const struct umvm_view *umvm_view_of(const struct umvm_router *r, const struct umvm_table *t, int tid, uint32_t *cwd)
{
    uint64_t mark = 0;
    *cwd = UMVM_HOST;
    if (!r->redirected || !t->views)
        return t->view;
    if (umvm_lock_limit(tid, &mark) < 0)
        return NULL;
    if (mark < UMVM_MARKED || mark - UMVM_MARKED >= UMVM_RECORDS)
        return t->view;
    const struct umvm_record *record = &r->records[mark - UMVM_MARKED];
    *cwd = record->cwd;
    return record->view < (uint32_t)t->count ? t->views[record->view] : NULL;
}

/* Links in /proc/TID/fd and /proc/TID/cwd that begin with `prefix` (under 256 bytes) are ours. */
static int umvm_route_set_shadow(struct umvm_router *r, const char *prefix)
{
    size_t n = strlen(prefix);
    if (n >= sizeof r->shadow)
        return -ENAMETOOLONG;
    memcpy(r->shadow, prefix, n + 1);
    r->shadow_len = n;
    return 0;
}

/* Shares one memory of host directories with the Python walk. */
static void umvm_route_share(void *seen) { umvm_seen = seen; }

static void umvm_route_forget(void) { umvm_forget_dirs(); }

/* Calls after which a name may be another file than the directory it was. */
static int umvm_moves_dirs(int nr)
{
    return nr == SYS_renameat2 || nr == SYS_renameat || nr == SYS_unlinkat
#ifdef SYS_rename
           || nr == SYS_rename || nr == SYS_rmdir
#endif
        ;
}

/* --- /proc ------------------------------------------------------------------------------------- */

static int umvm_name_in(const char *name, size_t n, const char *const *names)
{
    for (; *names; names++)
        if (strlen(*names) == n && !memcmp(*names, name, n))
            return 1;
    return 0;
}

static size_t umvm_digits(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && s[i] >= '0' && s[i] <= '9')
        i++;
    return i;
}

/* Does this file of /proc show something that the view changes? `p` is what follows "/proc/". */
static int umvm_proc_ours(const char *p, size_t n)
{
    static const char *const top[] = {"mounts", "thread-self", "filesystems", 0};
    static const char *const links[] = {"cwd", "root", "exe", "mounts", "mountinfo", "mountstats", "maps", "smaps", "numa_maps", 0};
    static const char *const dirs[] = {"fd", "fdinfo", "map_files", 0}; /* what is in them */
    const char *slash = memchr(p, '/', n);
    size_t m = slash ? (size_t)(slash - p) : n;
    if (umvm_name_in(p, m, top))
        return 1;
    if (!slash || (umvm_digits(p, m) != m && !(m == 4 && !memcmp(p, "self", 4))))
        return 0;
    p += m + 1;
    n -= m + 1;
    if (n > 5 && !memcmp(p, "task/", 5)) {
        m = umvm_digits(p + 5, n - 5);
        if (m + 5 >= n || p[m + 5] != '/')
            return 0;
        p += m + 6;
        n -= m + 6;
    }
    slash = memchr(p, '/', n);
    m = slash ? (size_t)(slash - p) : n;
    return umvm_name_in(p, m, links) || (slash && umvm_name_in(p, m, dirs));
}

/* Is a path's last component one of the names of /proc that depend on the VM's state? */
static int umvm_last_named(const struct umvm_router *r, const char *path, size_t n)
{
    const char *slash = memrchr(path, '/', n), *last = slash ? slash + 1 : path;
    n -= (size_t)(last - path);
    for (int i = 0; i < r->names; i++) {
        size_t size = strlen(r->name[i]);
        if (size && r->name[i][size - 1] == '/') { /* all files of directories of this name */
            if ((size_t)(last - path) > size && !memcmp(last - size, r->name[i], size) && last[-1 - (long)size] == '/')
                return 1;
        } else if (size == n && !memcmp(r->name[i], last, n))
            return 1;
    }
    return 0;
}

/* Does a call open a file of such a name? All that there is to look at while nothing is served. */
static int umvm_opens_named(const struct umvm_router *r, const struct seccomp_notif *q, char *path)
{
    if (!r->names || (q->data.nr != SYS_openat && q->data.nr != SYS_open && q->data.nr != SYS_openat2))
        return 0;
    long n = umvm_string(q->pid, path, q->data.args[q->data.nr == SYS_open ? 0 : 1], UMVM_PATH_MAX);
    return n > 0 && umvm_last_named(r, path, (size_t)n);
}

struct umvm_looked {
    int claimed;
    const struct umvm_router *router;
};

/* The walk's look callback: anything but the host, and harmless files of /proc, ends the walk. */
static long umvm_route_look(struct umvm_walk *w, uint32_t mount)
{
    struct umvm_looked *l = w->ctx;
    struct umvm_host_place p = {.path = w->path};
    if (umvm_on_host(w)) {
        int e = umvm_host_place(w, &p);
        if (e || !p.in_proc)
            return e ? e : umvm_look_at(w, &p);
        mount = UMVM_PROC;
    }
    size_t n = mount == UMVM_PROC ? strlen(p.path) : 0;
    if (n > 6 && !memcmp(p.path, "/proc/", 6) && !umvm_proc_ours(p.path + 6, n - 6) &&
        !umvm_last_named(l->router, p.path, n))
        return UMVM_IS_DIR; /* the kernel knows if it exists; "self" needn't be followed for this */
    if (n == 5)
        return UMVM_IS_DIR;
    l->claimed = 1;
    return -EXDEV;
}

/* --- descriptors and paths --------------------------------------------------------------------- */

/* Reads a link of /proc/TID into `out` (UMVM_PATH_MAX bytes) with a NUL; its length, or −errno. */
static long umvm_proc_link(int tid, const char *what, int fd, char *out)
{
    char name[48];
    if (what)
        snprintf(name, sizeof name, "/proc/%d/%s", tid, what);
    else
        snprintf(name, sizeof name, "/proc/%d/fd/%d", tid, fd);
    ssize_t n = readlink(name, out, UMVM_PATH_MAX - 1);
    if (n < 0)
        return -errno;
    out[n] = 0;
    return n;
}

static int umvm_is_ours(const struct umvm_router *r, const char *link, long n)
{
    return r->shadow_len && n >= (long)r->shadow_len && !memcmp(link, r->shadow, r->shadow_len);
}

static int umvm_route_fd(const struct umvm_router *r, int tid, int fd)
{
    char link[UMVM_PATH_MAX];
    return fd >= 0 && umvm_is_ours(r, link, umvm_proc_link(tid, 0, fd, link));
}

/* A socket that a network stack may answer for: its link reads socket:[INODE]. */
static int umvm_route_socket(const struct umvm_router *r, int tid, int fd)
{
    char name[48], link[40];
    snprintf(name, sizeof name, "/proc/%d/fd/%d", tid, fd);
    ssize_t n = fd < 0 ? -1 : readlink(name, link, sizeof link - 1);
    if (n < 10 || memcmp(link, "socket:[", 8))
        return 0;
    link[n] = 0;
    return r->socket_inodes[strtoul(link + 8, 0, 10) % UMVM_INODES] != 0;
}

/* Counts a socket in (1) or out (-1). */
static void umvm_route_count_socket(struct umvm_router *r, uint64_t inode, int by)
{
    __atomic_add_fetch(&r->socket_inodes[inode % UMVM_INODES], by, __ATOMIC_RELAXED);
    __atomic_add_fetch(&r->sockets, by, __ATOMIC_RELAXED);
}

/* Calls that leave what a path leads to as it is. */
static int umvm_only_reads(int nr)
{
    static const short calls[] = {
        SYS_stat, SYS_lstat, SYS_newfstatat, SYS_statx, SYS_readlink, SYS_readlinkat, SYS_getxattr, SYS_lgetxattr,
        SYS_listxattr, SYS_llistxattr, SYS_inotify_add_watch, SYS_name_to_handle_at, 464 /* getxattrat */,
        465 /* listxattrat */, 468 /* file_getattr */};
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++)
        if (calls[i] == nr)
            return 1;
    return 0;
}

static int umvm_opens(const struct seccomp_notif *q, uint64_t *flags)
{
    *flags = q->data.nr == SYS_open ? q->data.args[1] : q->data.nr == SYS_openat ? q->data.args[2] : O_CREAT;
    return q->data.nr == SYS_open || q->data.nr == SYS_openat || q->data.nr == SYS_creat || q->data.nr == 437;
}

/* Is a call on a file that a bind mount shows ours, although the kernel would find the file? */
static int umvm_is_minded(const struct umvm_mount *m, const struct seccomp_notif *q)
{
    uint64_t flags;
    int opens = umvm_opens(q, &flags);
    if (opens && m->flags & UMVM_AMBIGUOUS)
        return 1;
    return m->flags & UMVM_READ_ONLY && !umvm_only_reads(q->data.nr) &&
           !(opens && !(flags & (O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE)));
}

/* Calls that change a file by its descriptor, though it wasn't opened for writing. */
static int umvm_changes_by_fd(int nr)
{
    return nr == SYS_fchmod || nr == SYS_fchown || nr == SYS_fsetxattr || nr == SYS_fremovexattr || nr == SYS_ioctl;
}

/* `dirfd`: AT_FDCWD where the call has none. */
static int umvm_route_path(struct umvm_router *r, const struct seccomp_notif *q, uint64_t addr, int dirfd,
                           struct umvm_path *got)
{
    int tid = q->pid;
    static const char deleted[] = " (deleted)";
    char base[UMVM_PATH_MAX], *path = got->text;
    long n = addr ? umvm_string(tid, path, addr, sizeof got->text) : 0, b = 1;
    got->addr = addr;
    got->size = n > 0 ? n : 0;
    if (n < 0)
        return n == -EPERM; /* the kernel gives the errno, but for a guest that can't be read */
    base[0] = '/';
    if (n == 0 || path[0] != '/') { /* AT_EMPTY_PATH, or utimensat's NULL, mean the descriptor */
        if (dirfd != AT_FDCWD && dirfd < 0)
            return 0;
        b = dirfd == AT_FDCWD ? umvm_proc_link(tid, "cwd", -1, base) : umvm_proc_link(tid, 0, dirfd, base);
        if (umvm_is_ours(r, base, b) || b == -EACCES)
            return 1;
        if (n == 0 && r->read_only && !umvm_only_reads(q->data.nr))
            return 1;
        if (b <= 0 || base[0] != '/' || n == 0)
            return 0;
        if (b > (long)sizeof deleted && !memcmp(base + b - (sizeof deleted - 1), deleted, sizeof deleted - 1))
            return r->redirected > 0; /* a directory that was removed, on the host */
    }
    struct umvm_walk w;
    struct umvm_looked looked = {0, r};
    char shown[UMVM_PLACE_MAX];
    const char *from = base;
    uint32_t length = b, cwd, in;
    int claimed = 0;
    w.look = umvm_route_look;
    w.ctx = &looked;
    w.base_mount = UMVM_BY_PATH;
    __atomic_add_fetch(&r->readers, 1, __ATOMIC_SEQ_CST);
    struct umvm_table *t = __atomic_load_n(&r->table, __ATOMIC_SEQ_CST);
    const struct umvm_view *v = t ? umvm_view_of(r, t, tid, &cwd) : NULL;
    if (!v)
        claimed = t != NULL;
    else {
        if (v->binds && path[0] != '/') {
            int guessed = umvm_shown(v, dirfd == AT_FDCWD ? cwd : UMVM_BY_PATH, base, b, shown, &length, &in) != 1;
            claimed = guessed && dirfd != AT_FDCWD;
            w.base_mount = umvm_id(v, in);
            from = shown;
        }
        if (!claimed && umvm_walk(v, &w, from, length, path, n, UMVM_WALK_FOLLOW | UMVM_WALK_MISSING_OK) == 0) {
            const struct umvm_mount *m = umvm_bind(v, w.in);
            claimed |= m && umvm_is_minded(m, q);
        }
        claimed = claimed || w.served;
    }
    __atomic_sub_fetch(&r->readers, 1, __ATOMIC_SEQ_CST);
    return claimed || looked.claimed;
}

/* ioctl commands whose third argument names another descriptor, that of a file to read. */
static int umvm_names_another(uint32_t command)
{
    return command == FICLONE || command == FICLONERANGE || command == LOOP_SET_FD || command == LOOP_CHANGE_FD ||
           command == 0x4C0A; /* LOOP_CONFIGURE, Linux 5.8 */
}

/* Does the frame that rt_sigreturn takes down lead back to a call that ended with EINTR? 1 as well if it can't be seen. */
static int umvm_interrupted(int tid)
{
    enum { RAX = 144 }; /* in struct ucontext (asm/sigcontext.h) */
    char text[256];
    int64_t rax;
    umvm_read_proc(tid, "syscall", text, sizeof text); /* … the stack pointer and the program counter come last */
    char *pc = strrchr(text, ' '), *sp = pc;
    while (sp > text && sp[-1] != ' ')
        sp--;
    if (!pc || sp == text)
        return 1; /* "running": another signal woke it for a moment */
    return umvm_copy(tid, &rax, strtoull(sp, NULL, 16) + RAX, sizeof rax, 0) == sizeof rax && rax == -EINTR;
}

/* A call by unpatched code takes memory away, perhaps a page that its agent knows to be readable: it asks again then
   (agent/base.h). */
static void umvm_tell_unmapped(const struct seccomp_notif *q)
{
    uint64_t at = UMVM_SELF + offsetof(struct umvm_self, map_generation), stamp;
    uint32_t generation;
    if (q->data.nr != SYS_munmap && q->data.nr != SYS_mprotect && q->data.nr != SYS_mremap && q->data.nr != SYS_brk &&
        q->data.nr != SYS_pkey_mprotect)
        return;
    if (umvm_copy(q->pid, &stamp, UMVM_ROUTE + offsetof(struct umvm_route_area, stamp), sizeof stamp, 0) != sizeof stamp ||
        stamp != UMVM_ENV_STAMP || umvm_copy(q->pid, &generation, at, sizeof generation, 0) != sizeof generation)
        return; /* there is no agent */
    generation++;
    umvm_copy(q->pid, &generation, at, sizeof generation, 1);
}

/* 1: the interpreter decides; 0: the kernel runs the call. `got`: a path that had to be read for it. */
static int umvm_route(struct umvm_router *r, const struct umvm_call_kind *k, const struct seccomp_notif *q,
                      struct umvm_path *got)
{
    got->size = 0;
    const __u64 *a = q->data.args;
    if (k->hooked || k->always & 1)
        return 1;
    if (k->always & 4 && r->sockets && umvm_route_socket(r, q->pid, (int)a[0]))
        return 1;
    if (k->always & 8)
        return umvm_interrupted(q->pid);
    if (k->always & 32)
        return a[q->data.nr == SYS_prlimit64] == UMVM_RLIMIT_MARK;
    if (!r->mounts && !r->descriptors && !r->virtual_cwd && !umvm_opens_named(r, q, got->text))
        return 0;
    if (k->always & 2 || (k->always & 16 && r->redirected))
        return 1;
    if (r->read_only && umvm_changes_by_fd(q->data.nr))
        return 1;
    if (q->data.nr == SYS_ioctl && umvm_names_another((uint32_t)a[1]))
        return 1;
    if (k->fd >= 0 && r->descriptors && umvm_route_fd(r, q->pid, (int)a[(int)k->fd]))
        return 1;
    for (int i = 0; i < 2; i++)
        if (k->path[i] >= 0 &&
            umvm_route_path(r, q, a[(int)k->path[i]], k->dirfd[i] >= 0 ? (int)a[(int)k->dirfd[i]] : AT_FDCWD, got))
            return 1;
    if (umvm_moves_dirs(q->data.nr))
        umvm_forget_dirs();
    return 0;
}
#endif
