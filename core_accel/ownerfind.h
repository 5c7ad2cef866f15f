/* Where a call of a guest leads on the host, for the calls in ownercalls.h.

   Nothing is followed out of the guest's own place: names that lead through /proc are the interpreter's. */
#ifndef UMVM_OWNERFIND_H
#define UMVM_OWNERFIND_H
#include "creds.h"
#include "owners.h"
#include "route.h"
#include <linux/openat2.h>

enum { UMVM_PASS = 0, UMVM_TO_PYTHON = 1, UMVM_DONE_HERE = 2 };
#define UMVM_STATX_SYNC 0x6000

struct umvm_hostcall { /* one call */
    struct umvm_owners *o;
    const struct seccomp_notif *q;
    struct umvm_path *path; /* one that was read already, or the last one that was read here */
    struct umvm_spot spot;
    struct statx x;
    int64_t value;
    int error;
};

static int umvm_done(struct umvm_hostcall *c, long result)
{
    c->value = result < 0 ? 0 : result;
    c->error = result < 0 ? (int)-result : 0;
    return UMVM_DONE_HERE;
}

/* Is the caller root, as every guest that never changed its credentials? */
static int umvm_is_plain(const struct umvm_hostcall *c)
{
    return c->o->area->plain && !c->o->area->split && umvm_mark(c->q->pid) == 0;
}

/* --- finding the file ---------------------------------------------------------------------------- */

static int umvm_base_link(char *out, size_t size, int tid, int dirfd)
{
    return dirfd == AT_FDCWD ? snprintf(out, size, "/proc/%d/cwd", tid) : snprintf(out, size, "/proc/%d/fd/%d", tid, dirfd);
}

/* What is open as a descriptor: its magic link leads to exactly that. */
static int umvm_find_fd(struct umvm_hostcall *c, int fd, unsigned mask)
{
    struct umvm_spot *s = &c->spot;
    s->fd = AT_FDCWD;
    s->flags = s->owned = 0;
    if (fd < 0 && fd != AT_FDCWD)
        return -1;
    umvm_base_link(s->path, sizeof s->path, c->q->pid, fd);
    return umvm_statx(s, 0, mask, &c->x) ? -1 : 0;
}

/* The file at `text`, and c->x. 0, or −1 − verdict. Nothing is followed out of the guest's own place: names that
   lead through /proc are the interpreter's. */
static int umvm_find_text(struct umvm_hostcall *c, int dirfd, const char *text, long n, int flags, unsigned mask)
{
    struct umvm_spot *s = &c->spot;
    char base[48];
    int b = umvm_base_link(base, sizeof base, c->q->pid, dirfd);
    s->fd = AT_FDCWD;
    s->owned = 0;
    if (!memchr(text, '/', n)) { /* one name: a link there is the only one */
        memcpy(s->path, base, b);
        s->path[b] = '/';
        memcpy(s->path + b + 1, text, n + 1);
        s->flags = AT_SYMLINK_NOFOLLOW;
        if (umvm_statx(s, flags & UMVM_STATX_SYNC, mask, &c->x))
            return errno == EACCES ? -1 - UMVM_TO_PYTHON : -1 - UMVM_PASS;
        if (umvm_device(c->x.stx_dev_major, c->x.stx_dev_minor) == c->o->proc_dev)
            return -1 - UMVM_TO_PYTHON;
        if (!S_ISLNK(c->x.stx_mode) || flags & AT_SYMLINK_NOFOLLOW)
            return 0;
    }
    struct open_how how = {O_PATH | O_CLOEXEC | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0), 0, RESOLVE_NO_MAGICLINKS};
    int at = text[0] == '/' ? AT_FDCWD : open(base, O_PATH | O_CLOEXEC);
    if (at == -1)
        return -1 - UMVM_PASS;
    s->fd = syscall(SYS_openat2, at, text, &how, sizeof how);
    int error = errno;
    if (at >= 0)
        close(at);
    if (s->fd < 0)
        return error == ELOOP || error == EACCES || error == ENOSYS ? -1 - UMVM_TO_PYTHON : -1 - UMVM_PASS;
    s->owned = 1;
    s->flags = AT_EMPTY_PATH;
    s->path[0] = 0;
    if (umvm_statx(s, flags & UMVM_STATX_SYNC, mask, &c->x))
        return -1 - UMVM_TO_PYTHON;
    return umvm_device(c->x.stx_dev_major, c->x.stx_dev_minor) == c->o->proc_dev ? -1 - UMVM_TO_PYTHON : 0;
}

/* The length of a path argument, now in c->path->text; −errno. */
static long umvm_text(struct umvm_hostcall *c, uint64_t addr)
{
    struct umvm_path *p = c->path;
    if (addr && p->size > 0 && p->addr == addr)
        return p->size;
    long n = addr ? umvm_string(c->q->pid, p->text, addr, sizeof p->text) : 0;
    p->addr = addr;
    p->size = n > 0 ? n : 0;
    return n;
}

static int umvm_find(struct umvm_hostcall *c, int dirfd, uint64_t addr, int flags, unsigned mask)
{
    const char *text = c->path->text;
    long n = umvm_text(c, addr);
    umvm_spot_close(&c->spot);
    if (n < 0)
        return n == -EPERM ? -1 - UMVM_TO_PYTHON : -1 - UMVM_PASS;
    if (n == 0)
        return flags & AT_EMPTY_PATH ? umvm_find_fd(c, dirfd, mask) : -1 - UMVM_PASS;
    return umvm_find_text(c, dirfd, text, n, flags, mask);
}

/* The directory that a new name, or one to be removed, is in. */
static int umvm_find_parent(struct umvm_hostcall *c, int dirfd, uint64_t addr)
{
    char text[UMVM_PATH_MAX];
    long n = umvm_text(c, addr);
    umvm_spot_close(&c->spot);
    if (n <= 0)
        return n == -EPERM ? -1 - UMVM_TO_PYTHON : -1 - UMVM_PASS;
    memcpy(text, c->path->text, n + 1);
    while (n > 1 && text[n - 1] == '/')
        n--;
    while (n && text[n - 1] != '/')
        n--;
    if (n == 0)
        return umvm_find_fd(c, dirfd, 0);
    text[n] = 0;
    return umvm_find_text(c, dirfd, text, n, 0, 0);
}

/* Would the kernel refuse the caller what it allows root: a file of the user's own, or (`parent`) a change of names
   in its directory? The interpreter finds out why, and widens the mode of what is the user's. */
static int umvm_locked_out(struct umvm_hostcall *c, int dirfd, uint64_t addr, int mask, int parent)
{
    char path[64 + UMVM_PATH_MAX];
    long n = umvm_text(c, addr);
    if (c->o->area->own_uid == 0 || n <= 0)
        return 0;
    const char *text = c->path->text;
    int b = 0;
    if (parent) {
        while (n > 1 && text[n - 1] == '/')
            n--;
        while (n && text[n - 1] != '/')
            n--;
    }
    if (text[0] != '/') {
        b = umvm_base_link(path, 64, c->q->pid, dirfd);
        path[b++] = '/';
    }
    memcpy(path + b, text, n);
    path[b + n] = 0;
    return syscall(SYS_faccessat2, AT_FDCWD, path, mask, AT_EACCESS) < 0 && errno == EACCES;
}
#endif
