/* The calls of guests that are root, on owners and modes of the host's files: answered without the interpreter.

   A verdict is UMVM_PASS (the kernel's business), UMVM_TO_PYTHON (the interpreter's) or UMVM_DONE_HERE. What the kernel
   will refuse anyway is left to it, so that it gives the errno. */
#ifndef UMVM_OWNERCALLS_H
#define UMVM_OWNERCALLS_H
#include "ownerfind.h"

/* --- stat ---------------------------------------------------------------------------------------- */

static void umvm_show(struct umvm_hostcall *c)
{
    struct umvm_real r;
    umvm_real_of(&c->x, &r);
    umvm_owners_begin(c->o);
    umvm_owner_show(c->o, &r);
    umvm_owners_end(c->o);
    c->x.stx_uid = r.uid;
    c->x.stx_gid = r.gid;
    c->x.stx_mode = r.mode;
    c->x.stx_rdev_major = major(r.rdev);
    c->x.stx_rdev_minor = minor(r.rdev);
}

/* Files of /proc show who a process is (umvm/syscalls/procowner.py). */
static int umvm_of_proc(const struct umvm_hostcall *c)
{
    return umvm_device(c->x.stx_dev_major, c->x.stx_dev_minor) == c->o->proc_dev;
}

/* Stores struct stat in the guest. */
static int umvm_give_stat(struct umvm_hostcall *c, uint64_t to)
{
    const struct statx *x = &c->x;
    struct stat st;
    memset(&st, 0, sizeof st);
    if (umvm_of_proc(c))
        return UMVM_TO_PYTHON;
    umvm_show(c);
    st.st_dev = umvm_device(x->stx_dev_major, x->stx_dev_minor);
    st.st_ino = x->stx_ino;
    st.st_nlink = x->stx_nlink;
    st.st_mode = x->stx_mode;
    st.st_uid = x->stx_uid;
    st.st_gid = x->stx_gid;
    st.st_rdev = umvm_device(x->stx_rdev_major, x->stx_rdev_minor);
    st.st_size = x->stx_size;
    st.st_blksize = x->stx_blksize;
    st.st_blocks = x->stx_blocks;
    st.st_atim = (struct timespec){x->stx_atime.tv_sec, x->stx_atime.tv_nsec};
    st.st_mtim = (struct timespec){x->stx_mtime.tv_sec, x->stx_mtime.tv_nsec};
    st.st_ctim = (struct timespec){x->stx_ctime.tv_sec, x->stx_ctime.tv_nsec};
    long n = umvm_copy(c->q->pid, &st, to, sizeof st, 1);
    return umvm_done(c, n == (long)sizeof st ? 0 : -EFAULT);
}

static int umvm_give_statx(struct umvm_hostcall *c, uint64_t to, unsigned mask)
{
    if (umvm_of_proc(c))
        return UMVM_TO_PYTHON;
    umvm_show(c);
    if (!(mask & STATX_BTIME)) {
        c->x.stx_mask &= ~STATX_BTIME;
        memset(&c->x.stx_btime, 0, sizeof c->x.stx_btime);
    }
    long n = umvm_copy(c->q->pid, &c->x, to, sizeof c->x, 1);
    return umvm_done(c, n == (long)sizeof c->x ? 0 : -EFAULT);
}

/* --- changes ------------------------------------------------------------------------------------- */

static int umvm_answer_chown(struct umvm_hostcall *c, uint64_t uid, uint64_t gid)
{
    int r = umvm_owner_chown(c->o, &c->spot, &c->x, (uint32_t)uid, (uint32_t)gid, 1);
    return r == 1 ? UMVM_TO_PYTHON : umvm_done(c, r);
}

static int umvm_answer_chmod(struct umvm_hostcall *c, uint64_t mode)
{
    if (S_ISLNK(c->x.stx_mode))
        return UMVM_TO_PYTHON;
    return umvm_done(c, umvm_owner_chmod(c->o, &c->spot, &c->x, (uint32_t)mode));
}

/* A descriptor that was opened with O_PATH: its link may not be used (proc_pid_fd(5)). */
static int umvm_is_path_only(int tid, int fd)
{
    char name[48];
    struct stat st;
    umvm_base_link(name, sizeof name, tid, fd);
    return lstat(name, &st) < 0 || !(st.st_mode & 0600);
}

/* As root: everything on files of the user's, but no file without any execute bit is executed. */
static int umvm_answer_access(struct umvm_hostcall *c, int mask)
{
    struct umvm_real r;
    int own = c->x.stx_uid == c->o->area->own_uid;
    umvm_real_of(&c->x, &r);
    umvm_owners_begin(c->o);
    umvm_owner_show(c->o, &r);
    umvm_owners_end(c->o);
    if (mask & X_OK && !S_ISDIR(r.mode) && !(r.mode & 0111))
        return umvm_done(c, -EACCES);
    if (syscall(SYS_faccessat2, c->spot.fd, c->spot.path, mask, c->spot.flags | AT_EACCESS) == 0)
        return umvm_done(c, 0);
    return umvm_done(c, errno == EACCES && own ? 0 : -errno);
}

/* Removes a file that is known, so that it is forgotten exactly when its number may be another's. */
static int umvm_answer_unlink(struct umvm_hostcall *c, int dirfd, uint64_t addr, int flags)
{
    struct umvm_owners_area *a = c->o->area;
    const char *text = c->path->text;
    char base[48];
    struct umvm_real r;
    long n = umvm_text(c, addr);
    if (umvm_locked_out(c, dirfd, addr, W_OK | X_OK, 1))
        return UMVM_TO_PYTHON;
    if (n <= 0 || !a->known)
        return UMVM_PASS;
    int e = umvm_find_text(c, dirfd, text, n, AT_SYMLINK_NOFOLLOW, 0);
    umvm_spot_close(&c->spot);
    if (e)
        return -1 - e;
    umvm_real_of(&c->x, &r);
    int known = umvm_owner_knows(c->o, &r);
    if (!known || (r.links > 1 && !S_ISDIR(r.mode)))
        return UMVM_PASS;
    umvm_base_link(base, sizeof base, c->q->pid, dirfd);
    int at = text[0] == '/' ? AT_FDCWD : open(base, O_PATH | O_CLOEXEC);
    if (at == -1)
        return UMVM_PASS;
    long result = syscall(SYS_unlinkat, at, text, flags) < 0 ? -errno : 0;
    if (at >= 0)
        close(at);
    if (result == 0)
        umvm_owner_died(c->o, r.dev, r.ino);
    return result == -EACCES ? UMVM_TO_PYTHON : umvm_done(c, result);
}

/* A rename over a file that is known is the interpreter's. */
static int umvm_answer_rename(struct umvm_hostcall *c, int dirfd, uint64_t addr)
{
    struct umvm_real r;
    if (umvm_locked_out(c, dirfd, addr, W_OK | X_OK, 1))
        return UMVM_TO_PYTHON;
    int e = c->o->area->known ? umvm_find(c, dirfd, addr, AT_SYMLINK_NOFOLLOW, 0) : -1 - UMVM_PASS;
    if (e)
        return -1 - e;
    umvm_real_of(&c->x, &r);
    int known = umvm_owner_knows(c->o, &r);
    return known && (r.links == 1 || S_ISDIR(r.mode)) ? UMVM_TO_PYTHON : UMVM_PASS;
}

/* open(2), but for O_CREAT and O_TMPFILE. */
static int umvm_answer_open(struct umvm_hostcall *c, int dirfd, uint64_t addr, uint64_t flags)
{
    static const int masks[] = {R_OK, W_OK, R_OK | W_OK, R_OK | W_OK};
    if (flags & O_PATH)
        return UMVM_PASS;
    return umvm_locked_out(c, dirfd, addr, masks[flags & O_ACCMODE], 0) ? UMVM_TO_PYTHON : UMVM_PASS;
}

/* Something new: it is root's by itself unless its directory hands on a group, or its mode is not one
   that the real file can have. */
static int umvm_answer_new(struct umvm_hostcall *c, int dirfd, uint64_t addr, uint32_t mode, uint32_t needed)
{
    struct umvm_real r;
    if (c->o->area->new_differ || (mode & needed) != needed || mode & 07000)
        return UMVM_TO_PYTHON;
    if (umvm_locked_out(c, dirfd, addr, W_OK | X_OK, 1))
        return UMVM_TO_PYTHON;
    if (!c->o->area->special)
        return UMVM_PASS;
    int e = umvm_find_parent(c, dirfd, addr);
    if (e)
        return -1 - e;
    umvm_real_of(&c->x, &r);
    umvm_owners_begin(c->o);
    int known = umvm_owner_show(c->o, &r) != 0;
    umvm_owners_end(c->o);
    return known && r.mode & S_ISGID ? UMVM_TO_PYTHON : UMVM_PASS;
}

/* open(2) with O_CREAT or O_TMPFILE. The number of a file without a name may be known, of one that never had any. */
static int umvm_answer_create(struct umvm_hostcall *c, int dirfd, uint64_t addr, uint64_t flags, uint32_t mode)
{
    return flags & O_TMPFILE & ~O_DIRECTORY ? UMVM_TO_PYTHON : umvm_answer_new(c, dirfd, addr, mode, 0600);
}

/* Does the name of an extended attribute say that only root may set it? */
static int umvm_is_roots(struct umvm_hostcall *c, uint64_t addr)
{
    char name[10];
    long n = umvm_copy(c->q->pid, name, addr, sizeof name, 0);
    return n < 8 || !memcmp(name, "trusted.", 8) || (n >= 9 && !memcmp(name, "security.", 9));
}

/* --- all of them ---------------------------------------------------------------------------------- */

static int umvm_owned_by_nr(struct umvm_hostcall *c)
{
    const __u64 *a = c->q->data.args;
    int plain = umvm_is_plain(c), first = (int)a[0], e;
    switch (c->q->data.nr) {
    case SYS_fstat:
        return umvm_find_fd(c, first, 0) || first < 0 ? UMVM_PASS : umvm_give_stat(c, a[1]);
    case SYS_newfstatat:
        if (a[3] & ~(uint64_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT))
            return UMVM_TO_PYTHON;
        if (!plain && !(a[3] & AT_EMPTY_PATH))
            return UMVM_TO_PYTHON;
        e = umvm_find(c, first, a[1], (int)a[3], 0);
        return e ? -1 - e : umvm_give_stat(c, a[2]);
    }
    if (!plain)
        return UMVM_TO_PYTHON;
    switch (c->q->data.nr) {
    case SYS_stat:
    case SYS_lstat:
        e = umvm_find(c, AT_FDCWD, a[0], c->q->data.nr == SYS_lstat ? AT_SYMLINK_NOFOLLOW : 0, 0);
        return e ? -1 - e : umvm_give_stat(c, a[1]);
    case SYS_statx:
        if ((uint32_t)a[2] & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_FORCE_SYNC |
                               AT_STATX_DONT_SYNC) ||
            a[3] & STATX__RESERVED)
            return UMVM_PASS;
        e = umvm_find(c, first, a[1], (int)a[2], (unsigned)a[3]);
        return e ? -1 - e : umvm_give_statx(c, a[4], (unsigned)a[3]);
    case SYS_chown:
    case SYS_lchown:
        e = umvm_find(c, AT_FDCWD, a[0], c->q->data.nr == SYS_lchown ? AT_SYMLINK_NOFOLLOW : 0, 0);
        return e ? -1 - e : umvm_answer_chown(c, a[1], a[2]);
    case SYS_fchownat:
        if ((uint32_t)a[4] & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
            return UMVM_PASS;
        e = umvm_find(c, first, a[1], (int)a[4], 0);
        return e ? -1 - e : umvm_answer_chown(c, a[2], a[3]);
    case SYS_fchown:
    case SYS_fchmod:
        if (first < 0 || umvm_is_path_only(c->q->pid, first) || umvm_find_fd(c, first, 0))
            return UMVM_PASS;
        return c->q->data.nr == SYS_fchmod ? umvm_answer_chmod(c, a[1]) : umvm_answer_chown(c, a[1], a[2]);
    case SYS_chmod:
        e = umvm_find(c, AT_FDCWD, a[0], 0, 0);
        return e ? -1 - e : umvm_answer_chmod(c, a[1]);
    case SYS_fchmodat:
        e = umvm_find(c, first, a[1], 0, 0);
        return e ? -1 - e : umvm_answer_chmod(c, a[2]);
    case SYS_access:
    case SYS_faccessat:
        e = c->q->data.nr == SYS_access;
        if (a[2 - e] & ~7ull)
            return UMVM_PASS;
        first = e ? AT_FDCWD : first;
        mode_t mask = (mode_t)a[2 - e];
        e = umvm_find(c, first, a[1 - e], 0, 0);
        return e ? -1 - e : umvm_answer_access(c, (int)mask);
    case SYS_faccessat2:
        if (a[2] & ~7ull || (uint32_t)a[3] & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_EACCESS))
            return UMVM_PASS;
        e = umvm_find(c, first, a[1], (int)a[3], 0);
        return e ? -1 - e : umvm_answer_access(c, (int)a[2]);
    case SYS_unlink:
    case SYS_rmdir:
        return umvm_answer_unlink(c, AT_FDCWD, a[0], c->q->data.nr == SYS_rmdir ? AT_REMOVEDIR : 0);
    case SYS_unlinkat:
        return umvm_answer_unlink(c, first, a[1], (int)a[2]);
    case SYS_rename:
        if (umvm_locked_out(c, AT_FDCWD, a[0], W_OK | X_OK, 1))
            return UMVM_TO_PYTHON;
        return umvm_answer_rename(c, AT_FDCWD, a[1]);
    case SYS_renameat:
    case SYS_renameat2:
        if (umvm_locked_out(c, first, a[1], W_OK | X_OK, 1))
            return UMVM_TO_PYTHON;
        if (c->q->data.nr == SYS_renameat2 && a[4])
            return UMVM_PASS;
        return umvm_answer_rename(c, (int)a[2], a[3]);
    case SYS_open:
        return a[1] & (O_CREAT | O_TMPFILE) & ~O_DIRECTORY ? umvm_answer_create(c, AT_FDCWD, a[0], a[1], a[2])
                                                              : umvm_answer_open(c, AT_FDCWD, a[0], a[1]);
    case SYS_openat:
        return a[2] & (O_CREAT | O_TMPFILE) & ~O_DIRECTORY ? umvm_answer_create(c, first, a[1], a[2], a[3])
                                                              : umvm_answer_open(c, first, a[1], a[2]);
    case SYS_creat:
        return umvm_answer_new(c, AT_FDCWD, a[0], a[1], 0600);
    case SYS_openat2:
        return c->o->area->new_differ || c->o->area->special ? UMVM_TO_PYTHON : UMVM_PASS;
    case SYS_chdir:
    case SYS_truncate:
        e = c->q->data.nr == SYS_chdir ? X_OK : W_OK;
        return umvm_locked_out(c, AT_FDCWD, a[0], e, 0) ? UMVM_TO_PYTHON : UMVM_PASS;
    case SYS_mkdir:
        return umvm_answer_new(c, AT_FDCWD, a[0], a[1], 0700);
    case SYS_mkdirat:
        return umvm_answer_new(c, first, a[1], a[2], 0700);
    case SYS_symlink:
        return umvm_answer_new(c, AT_FDCWD, a[1], 0, 0);
    case SYS_symlinkat:
        return umvm_answer_new(c, (int)a[1], a[2], 0, 0);
    case SYS_mknod:
        return S_ISCHR(a[1]) || S_ISBLK(a[1]) ? UMVM_TO_PYTHON : umvm_answer_new(c, AT_FDCWD, a[0], a[1], 0600);
    case SYS_mknodat:
        return S_ISCHR(a[2]) || S_ISBLK(a[2]) ? UMVM_TO_PYTHON : umvm_answer_new(c, first, a[1], a[2], 0600);
    case SYS_setxattr:
    case SYS_lsetxattr:
    case SYS_fsetxattr:
    case SYS_removexattr:
    case SYS_lremovexattr:
    case SYS_fremovexattr:
        /* of a file that is known the kind may be another one, and decides what may be set */
        return c->o->area->known || umvm_is_roots(c, a[1]) ? UMVM_TO_PYTHON : UMVM_PASS;
    case SYS_getxattr:
    case SYS_lgetxattr:
    case SYS_fgetxattr:
        return c->o->area->xattrs && umvm_is_roots(c, a[1]) ? UMVM_TO_PYTHON : UMVM_PASS;
    case SYS_listxattr:
    case SYS_llistxattr:
    case SYS_flistxattr:
        return c->o->area->xattrs ? UMVM_TO_PYTHON : UMVM_PASS;
    case SYS_linkat: /* a file without a name gets one? */
        return a[4] & (AT_EMPTY_PATH | AT_SYMLINK_FOLLOW) ? UMVM_TO_PYTHON : UMVM_PASS;
    case 452: /* fchmodat2 */
    case 463 ... 466: /* setxattrat … removexattrat */
        return UMVM_TO_PYTHON;
    }
    return UMVM_PASS;
}

/* The verdict on a call of the host's; answered ones have value and error. */
static int umvm_owned(struct umvm_owners *o, const struct seccomp_notif *q, struct umvm_path *path, int64_t *value,
                      int *error)
{
    struct umvm_hostcall c;
    c.path = path;
    c.o = o;
    c.q = q;
    c.spot.owned = 0;
    c.error = 0;
    c.value = 0;
    umvm_owners_notice(o);
    int verdict = umvm_owned_by_nr(&c);
    umvm_spot_close(&c.spot);
    *value = c.value;
    *error = c.error;
    return verdict;
}
#endif
