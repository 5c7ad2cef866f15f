/* Who answers a notified call: nobody (0: the kernel runs it) or the interpreter (1). No GIL here.

   A wrong 1 costs time, a wrong 0 shows the guest the host: what isn't known to be the host's
   business is claimed. Calls that the kernel will refuse anyway (a bad pointer, a missing name on
   the host) are the kernel's. */
#ifndef UMVM_ROUTE_H
#define UMVM_ROUTE_H
#include "hostlook.h"
#include "kernel.h"
#include "pathwalk.h"
#include <linux/fs.h>
#include <linux/loop.h>

enum { UMVM_INODES = 1 << 14 };

struct umvm_call_kind {
    uint8_t always; /* bits: 1 always ours · 2 while anything is served · 4 on a known socket · 8 if the frame shows an
                       interrupted call */
    uint8_t hooked;
    int8_t fd;       /* index of the descriptor argument, or −1 */
    int8_t path[2];  /* indexes of path arguments, or −1 */
    int8_t dirfd[2]; /* index of the directory descriptor that belongs to each, or −1 */
};

struct umvm_table {
    struct umvm_view *view;
    struct umvm_table *older; /* replaced, but a walk may still be in it */
};

struct umvm_path { /* a path that was read from a guest, for who has to look at it next */
    uint64_t addr;
    long size; /* without its NUL; 0: none was read */
    char text[UMVM_PATH_MAX];
};

struct umvm_router {
    int mounts;      /* served mounts */
    int descriptors; /* open served descriptors */
    int virtual_cwd; /* a process may stand in a served directory */
    uint64_t claimed, passed;
    uint32_t sockets; /* how many sockets are known */
    uint16_t socket_inodes[UMVM_INODES]; /* how many of them have an inode number that ends so */
    struct umvm_table *table; /* swapped whole */
    int readers;              /* walks that are under way */
    int names;                /* how many of `name` are in use */
    char name[8][24];         /* files of /proc that show something else, besides those below */
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
    r->mounts = served;
    if (__atomic_load_n(&r->readers, __ATOMIC_SEQ_CST) == 0)
        while (t->older) { /* who starts to read now finds the new one */
            struct umvm_table *old = t->older;
            t->older = old->older;
            free(old);
        }
    return 0;
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
    static const char *const links[] = {"cwd", "root", "exe", "mounts", "mountinfo", "mountstats",
                                        "maps", "smaps", "numa_maps", 0};
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
    for (int i = 0; i < r->names; i++)
        if (strlen(r->name[i]) == n && !memcmp(r->name[i], last, n))
            return 1;
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
    if (mount == UMVM_HOST)
        return umvm_look_host(w);
    struct umvm_looked *l = w->ctx;
    if (mount == UMVM_PROC && w->len > 6 && !memcmp(w->path, "/proc/", 6) && !umvm_proc_ours(w->path + 6, w->len - 6) &&
        !umvm_last_named(l->router, w->path, w->len))
        return UMVM_IS_DIR; /* the kernel knows if it exists; "self" needn't be followed for this */
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

/* Counts a socket in (1) or out (-1). One caller at a time. */
static void umvm_route_count_socket(struct umvm_router *r, uint64_t inode, int by)
{
    r->socket_inodes[inode % UMVM_INODES] += by;
    r->sockets += by;
}

/* `dirfd`: AT_FDCWD where the call has none. */
static int umvm_route_path(struct umvm_router *r, int tid, uint64_t addr, int dirfd, struct umvm_path *got)
{
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
        if (b <= 0 || base[0] != '/' || n == 0)
            return 0;
        if (b > (long)sizeof deleted && !memcmp(base + b - (sizeof deleted - 1), deleted, sizeof deleted - 1))
            return 0; /* a directory that was removed, on the host */
    }
    struct umvm_walk w;
    struct umvm_looked looked = {0, r};
    w.look = umvm_route_look;
    w.ctx = &looked;
    w.base_mount = UMVM_BY_PATH;
    __atomic_add_fetch(&r->readers, 1, __ATOMIC_SEQ_CST);
    struct umvm_table *t = __atomic_load_n(&r->table, __ATOMIC_SEQ_CST);
    if (t)
        umvm_walk(t->view, &w, base, b, path, n, UMVM_WALK_FOLLOW | UMVM_WALK_MISSING_OK);
    __atomic_sub_fetch(&r->readers, 1, __ATOMIC_SEQ_CST);
    return looked.claimed || (t && w.served);
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
    if (!r->mounts && !r->descriptors && !r->virtual_cwd && !umvm_opens_named(r, q, got->text))
        return 0;
    if (k->always & 2)
        return 1;
    if (q->data.nr == SYS_ioctl && umvm_names_another((uint32_t)a[1]))
        return 1;
    if (k->fd >= 0 && r->descriptors && umvm_route_fd(r, q->pid, (int)a[(int)k->fd]))
        return 1;
    for (int i = 0; i < 2; i++)
        if (k->path[i] >= 0 &&
            umvm_route_path(r, q->pid, a[(int)k->path[i]], k->dirfd[i] >= 0 ? (int)a[(int)k->dirfd[i]] : AT_FDCWD, got))
            return 1;
    if (umvm_moves_dirs(q->data.nr))
        umvm_forget_dirs();
    return 0;
}
#endif
