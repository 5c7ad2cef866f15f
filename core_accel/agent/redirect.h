/* Calls on paths in a view with bind mounts or a root of its own: made here, with the host's path. Part of agent.c.

   The supervisor says the same in umvm/syscalls/ and core_accel/serve.h; it is asked about served files, what /proc
   shows of the view, read-only mounts, names that are mounted on, and whatever fails in a way of its own. */
#ifndef UMVM_AGENT_REDIRECT_H
#define UMVM_AGENT_REDIRECT_H
#include "translate.h"

#define IS_LINK (-70000L) /* the last component is a link, and the call follows it */
enum { O_TMPFILE_BIT = 020000000 };

static uint64_t open_flags(const struct regs *r, const struct umvm_kind *k)
{
    return r->rax == __NR_creat ? O_CREAT | O_WRONLY | O_TRUNC : argument(r, k->flags);
}

static int follows(const struct regs *r, const struct umvm_kind *k)
{
    uint64_t flags = k->flags >= 0 ? argument(r, k->flags) : 0;
    switch (k->flow) {
    case UMVM_F_OPEN:
        flags = open_flags(r, k);
        return !(flags & O_NOFOLLOW) && (flags & (O_CREAT | O_EXCL)) != (O_CREAT | O_EXCL);
    case UMVM_F_STAT:
    case UMVM_F_FOLLOW:
        return !((k->nofollow & 1 && flags & AT_SYMLINK_NOFOLLOW) || (k->nofollow & 2 && !(flags & AT_SYMLINK_FOLLOW)) ||
                 (k->nofollow & 4 && flags & 0x02000000));
    case UMVM_F_ACCESS:
        return !(r->rax == NR_FACCESSAT2 && r->r10 & AT_SYMLINK_NOFOLLOW);
    case UMVM_F_CHDIR:
        return 1;
    default:
        return 0;
    }
}

/* Is the call one that a read-only mount might refuse, or that answers otherwise there? */
static int is_change(const struct regs *r, const struct umvm_kind *k)
{
    switch (k->flow) {
    case UMVM_F_STAT:
    case UMVM_F_READLINK:
    case UMVM_F_CHDIR:
        return 0;
    case UMVM_F_OPEN:
        return (open_flags(r, k) & (O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE_BIT)) != 0;
    case UMVM_F_ACCESS:
        return ((r->rax == __NR_access ? r->rsi : r->rdx) & 2) != 0;
    }
    switch (r->rax) {
    case __NR_lstat: case __NR_getxattr: case __NR_lgetxattr: case __NR_listxattr: case __NR_llistxattr:
    case __NR_inotify_add_watch:
        return 0;
    default:
        return 1;
    }
}

static int is_link_at(const struct regs *r, const struct umvm_kind *k)
{
    char c;
    return SYS4(__NR_readlinkat, dir_of(k, r, 0), path_of(k, r, 0), &c, 1) >= 0;
}

static NOINLINE long open_no_link(const struct regs *r, const struct umvm_kind *k)
{
    uint64_t flags = open_flags(r, k), mode = r->rax == __NR_creat ? r->rsi : argument(r, k->flags + 1);
    struct {
        uint64_t flags, mode, resolve;
    } how = {flags & OPEN_FLAGS, flags & O_CREAT ? mode & 07777 : 0, RESOLVE_NO_LINKS};
    if (!(flags & O_TMPFILE_BIT)) {
        long e = SYS4(437 /* openat2 */, dir_of(k, r, 0), path_of(k, r, 0), &how, sizeof how);
        if (e == -ELOOP)
            return IS_LINK;
        if (e != -EINVAL && e != -ENOSYS && e != -EAGAIN && e != -E2BIG)
            return e;
    }
    return is_link_at(r, k) ? IS_LINK : run_here(r);
}

static NOINLINE long stat_no_link(const struct regs *r, const struct umvm_kind *k)
{
    long e;
    int dirfd = dir_of(k, r, 0);
    const char *path = path_of(k, r, 0);
    if (r->rax == __NR_statx) {
        const struct statx *st = (const struct statx *)r->r8;
        e = SYS6(__NR_statx, dirfd, path, r->rdx | AT_SYMLINK_NOFOLLOW, r->r10, r->r8, 0);
        return e == 0 && (!(st->stx_mask & STATX_TYPE) || (st->stx_mode & S_IFMT) == S_IFLNK) ? IS_LINK : e;
    }
    const struct stat *st = (const struct stat *)(r->rax == __NR_stat ? r->rsi : r->rdx);
    e = SYS4(__NR_newfstatat, dirfd, path, st, (r->rax == __NR_stat ? 0 : r->r10) | AT_SYMLINK_NOFOLLOW);
    return e == 0 && (st->st_mode & S_IFMT) == S_IFLNK ? IS_LINK : e;
}

/* Makes a call that follows, unless the last component is a link. */
static NOINLINE long run_no_link(const struct regs *r, const struct umvm_kind *k)
{
    switch (k->flow) {
    case UMVM_F_OPEN:
        return open_no_link(r, k);
    case UMVM_F_STAT:
        return stat_no_link(r, k);
    case UMVM_F_ACCESS: {
        uint64_t flags = r->rax == NR_FACCESSAT2 ? r->r10 : 0, mode = r->rax == __NR_access ? r->rsi : r->rdx;
        long e = SYS4(NR_FACCESSAT2, dir_of(k, r, 0), path_of(k, r, 0), mode, flags | AT_SYMLINK_NOFOLLOW);
        if (e < 0 && e != -ELOOP && e != -EROFS && e != -ENOSYS && e != -EINVAL)
            return e; /* a link is never refused */
        return is_link_at(r, k) ? IS_LINK : e == 0 ? 0 : run_here(r);
    }
    default:
        return is_link_at(r, k) ? IS_LINK : run_here(r);
    }
}

/* Notes on an opened file by which bind mount it was found, where that could be mistaken (umvm/guest/spaces.py). */
static NOINLINE void note_mount(const struct found *f, const struct regs *r, const struct umvm_kind *k, long fd)
{
    struct stat st;
    long number = f->flags & UMVM_AMBIGUOUS ? 1 + f->id % 63 : 0;
    if (open_flags(r, k) & O_PATH)
        return;
    if (f->id == UNKNOWN_MOUNT && !f->final)
        number = SYS2(__NR_fcntl, dir_of(k, r, 0), F_GETSIG); /* as its directory */
    if (number > 0 && SYS2(__NR_fstat, fd, &st) == 0 && ((st.st_mode & S_IFMT) == S_IFREG || (st.st_mode & S_IFMT) == S_IFDIR))
        SYS3(__NR_fcntl, fd, F_SETSIG, number);
}

/* After these, a path may lead elsewhere than is remembered. */
static NOINLINE int voids_paths(const struct regs *r, const struct umvm_kind *k, const struct found *f)
{
    struct stat st;
    switch (r->rax) {
    case __NR_rmdir:
        return now_units() - STATE->dotted < UMVM_AGE;
    case __NR_unlinkat:
        if (r->rdx & 0x200 /* AT_REMOVEDIR */ && now_units() - STATE->dotted < UMVM_AGE)
            return 1;
        return may_be_link(f);
    case __NR_unlink: case __NR_rename: case __NR_renameat: case __NR_renameat2:
        return may_be_link(f);
    case __NR_chmod: case __NR_fchmodat: case 452 /* fchmodat2 */:
        return SYS4(__NR_newfstatat, dir_of(k, r, 0), path_of(k, r, 0), &st, 0) < 0 || (st.st_mode & S_IFMT) == S_IFDIR;
    default:
        return 0;
    }
}

static NOINLINE long run_redirected(const struct regs *r, const struct umvm_kind *k, const struct found *f, int follow)
{
    int moves = k->flow == UMVM_F_MOVE && !moves_a_file(r, k);
    if (moves)
        forget_paths();
    int known = !follow || f->final || f->failed;
    if (!known && k->flow != UMVM_F_STAT && k->flow != UMVM_F_OPEN) /* for these it costs a call more */
        known = f->q.hash && !f->linked && verified(full_hash(&f->q), f->q.now);
    long e = known ? run_here(r) : run_no_link(r, k);
    if (!known && e >= 0 && f->q.hash && !f->linked && k->flow != UMVM_F_OPEN)
        remember(full_hash(&f->q), f->q.now);
    if (e != IS_LINK && (moves || voids_paths(r, k, f)))
        forget_paths();
    if (e >= 0 && k->flow == UMVM_F_OPEN && f->q.place.view->flags & UMVM_AMBIGUOUS)
        note_mount(f, r, k, e);
    return e;
}

/* May this call be made on what was found? */
static int is_fine(const struct regs *r, const struct umvm_kind *k, const struct found *f)
{
    if (f->failed || f->final)
        return 1;
    if (k->flow == UMVM_F_CHDIR && f->id != f->q.place.cwd)
        return 0; /* the supervisor notes by which mount */
    return !(f->flags & UMVM_READ_ONLY && is_change(r, k));
}

static NOINLINE int redirected(struct regs *r, const struct umvm_kind *k, const struct place *p)
{
    struct room *room[2] = {0, 0};
    struct regs c = *r;
    int follow = follows(r, k), changes = is_change(r, k), ok = 1;
    int mount = k->path[1] >= 0 && dir_of(k, r, 0) != dir_of(k, r, 1);
    long e = IS_LINK;
    for (int i = 0; i < 2 && k->path[i] >= 0 && ok; i++) {
        room[i] = take_room(p);
        struct found *f = room[i] ? &room[i]->f : 0;
        ok = f && locate(f, path_of(k, r, i), dir_of(k, r, i), follow, changes, mount) == NO && is_fine(r, k, f);
        if (ok && !f->same)
            (&c.rdi)[k->path[i]] = (uint64_t)f->text;
    }
    if (ok && k->path[1] >= 0)
        ok = room[0]->f.id == room[1]->f.id; /* else EXDEV, unless something else comes first */
    if (ok) {
        struct found *f = &room[k->path[1] >= 0]->f;
        e = run_redirected(&c, k, f, follow);
        if (e == IS_LINK && locate_link(f, dir_of(k, r, 0)) == NO && is_fine(r, k, f)) {
            (&c.rdi)[k->path[0]] = (uint64_t)f->text;
            e = run_redirected(&c, k, f, follow);
        }
    }
    give_room(room[0]);
    give_room(room[1]);
    return e == IS_LINK ? ask(r) : done(r, e);
}

/* getcwd: the path in the view. */
static NOINLINE int redirected_cwd(struct regs *r, const struct place *p)
{
    const struct umvm_view *v = p->view;
    struct slot *s = take_slot();
    uint32_t in;
    long e = 1;
    if (!s)
        return ask(r);
    long n = SYS2(__NR_getcwd, s->base, UMVM_PATH_MAX);
    if (n > 1 && s->base[0] == '/' && !in_shadow(s->base, n - 1) && show_base(s, p, p->cwd, n - 1, &in) > 0 &&
        (umvm_bind(v, in) || umvm_id(v, in) == UMVM_HOST) && umvm_below(v->root, v->root_len, s->walk.path, s->walk.len)) {
        char *text = s->walk.path + v->root_len;
        uint64_t size = s->walk.len - v->root_len;
        if (size == 0)
            text[size++] = '/';
        text[size++] = 0;
        uint64_t from[2] = {(uint64_t)text, size}, to[2] = {r->rdi, size};
        if (size > UMVM_PATH_MAX)
            e = -ENAMETOOLONG;
        else if (size > r->rsi)
            e = -ERANGE;
        else /* the kernel copies, as the buffer may be bad */
            e = SYS6(__NR_process_vm_writev, SYS1(__NR_getpid, 0), from, 1, to, 1, 0) == (long)size ? (long)size : -EFAULT;
    }
    give_slot(s);
    return e == 1 ? ask(r) : done(r, e);
}

/* Calls that change a file by a descriptor that needn't be open for writing (umvm/syscalls/readonly.py). */
static int changes_by_fd(const struct regs *r)
{
    uint32_t command = (uint32_t)r->rsi;
    return r->rax == __NR_fchmod || r->rax == __NR_fchown || r->rax == __NR_fsetxattr || r->rax == __NR_fremovexattr ||
           (r->rax == __NR_ioctl && (command == 0x40086602 || command == 0x401C5820 || command == 0x40087602));
}
#endif
