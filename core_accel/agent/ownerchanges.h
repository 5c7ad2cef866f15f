/* Calls that change owners, modes and names of the host's files where guests are root.

   What the kernel has to do it does here; what is to be remembered becomes a note (core_accel/ownernotes.h), which the
   supervisor reads before anybody is told about the file. */
#ifndef UMVM_AGENT_OWNERCHANGES_H
#define UMVM_AGENT_OWNERCHANGES_H

enum { SET_IDS = 06000, IS_DIR = 0040000, KIND = 0170000 };

/* What a file is, for a note about it. 0: it can't be made here. */
static int note_of(struct umvm_note *n, const struct statx *x, uint32_t what)
{
    n->dev = device_of(x->stx_dev_major, x->stx_dev_minor);
    n->ino = x->stx_ino;
    n->guard = birth_of(x);
    n->real_uid = x->stx_uid;
    n->real_gid = x->stx_gid;
    n->real_mode = x->stx_mode;
    n->links = x->stx_nlink;
    n->what = what;
    n->uid = n->gid = n->mode = 0;
    return n->dev != OWNERS->proc_dev;
}

/* Without room the supervisor is given a call, by which it takes what there is. */
static NOINLINE int note(const struct umvm_note *n)
{
    static const struct regs any = {__NR_fstat, (uint64_t)-1, 0, 0, 0, 0, 0};
    if (umvm_note(&STATE->notes, n))
        return 1;
    ask_gate(&any);
    return umvm_note(&STATE->notes, n);
}

/* The file that a call is about, by descriptor or by a path that is the host's. 0: ask. *e: the kernel's error. */
static int find_file(struct regs *r, const struct umvm_kind *k, uint64_t flags, struct statx *x, long *e)
{
    struct part q;
    if (k->path[0] < 0) {
        *e = statx_of((int)r->rdi, "", AT_EMPTY_PATH, x);
        return !served_fd((int)r->rdi);
    }
    const char *path = path_of(k, r, 0);
    int dirfd = dir_of(k, r, 0);
    if (may_be_exe(path) || (ROUTE->active && (flags & AT_SYMLINK_NOFOLLOW ? leads_nowhere(path, dirfd, &q)
                                                                          : follows_nowhere(path, dirfd, &q)) != NO))
        return 0;
    *e = statx_of(dirfd, path, flags, x);
    return 1;
}

static NOINLINE int owned_chown(struct regs *r, const struct umvm_kind *k)
{
    uint64_t flags = r->rax == __NR_fchownat ? r->r8 : r->rax == __NR_lchown ? AT_SYMLINK_NOFOLLOW : 0;
    int at = r->rax == __NR_fchownat ? 2 : 1;
    struct umvm_note n;
    struct statx x;
    long e;
    if (flags & ~(uint64_t)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) || !find_file(r, k, flags, &x, &e))
        return ask(r);
    if (e < 0)
        return e == -EACCES ? ask(r) : done(r, e);
    if (!note_of(&n, &x, UMVM_NOTE_CHOWN) || (x.stx_mode & SET_IDS && (x.stx_mode & KIND) != IS_DIR) ||
        (OWNERS->xattrs && is_known(n.dev, n.ino)))
        return ask(r); /* something goes away with it */
    n.uid = (uint32_t)argument(r, at);
    n.gid = (uint32_t)argument(r, at + 1);
    e = k->path[0] < 0 ? SYS3(__NR_fchown, r->rdi, -1, -1)
                       : SYS6(__NR_fchownat, dir_of(k, r, 0), path_of(k, r, 0), -1, -1, flags, 0);
    if (e < 0 && e != -EPERM && e != -EACCES)
        return done(r, e);
    return note(&n) ? done(r, 0) : ask(r);
}

static NOINLINE int owned_chmod(struct regs *r, const struct umvm_kind *k)
{
    int at = r->rax == __NR_fchmodat ? 2 : 1;
    uint32_t mode = (uint32_t)argument(r, at) & 07777, wanted;
    struct umvm_note n;
    struct statx x;
    long e;
    if (!find_file(r, k, 0, &x, &e))
        return ask(r);
    if (e < 0)
        return e == -EACCES ? ask(r) : done(r, e);
    int is_dir = (x.stx_mode & KIND) == IS_DIR;
    if (!note_of(&n, &x, UMVM_NOTE_CHMOD) || (is_dir && mode & 02000))
        return ask(r);
    wanted = (mode & 0777) | (is_dir ? 0700 : 0600); /* umvm_real_mode */
    e = k->path[0] < 0 ? SYS2(__NR_fchmod, r->rdi, wanted)
                       : SYS3(__NR_fchmodat, dir_of(k, r, 0), path_of(k, r, 0), wanted);
    if (e < 0)
        return e == -EPERM || e == -EACCES ? ask(r) : done(r, e);
    if (wanted == mode && !is_known(n.dev, n.ino))
        return done(r, 0);
    n.mode = mode;
    n.real_mode = (x.stx_mode & KIND) | wanted;
    return note(&n) ? done(r, 0) : ask(r);
}

/* mkdir, symlink, mknod: what is new is root's by itself. */
static NOINLINE int owned_new(struct regs *r, const struct umvm_kind *k, uint64_t mode, uint64_t needed)
{
    struct regs asked = *r;
    if (OWNERS->new_differ || OWNERS->special || (mode & needed) != needed || mode & 07000)
        return ask(r);
    make_path_call(r, k);
    return or_ask(r, &asked);
}

static NOINLINE int owned_mknod(struct regs *r, const struct umvm_kind *k)
{
    uint64_t mode = argument(r, r->rax == __NR_mknodat ? 2 : 1), kind = mode & KIND;
    return kind == 0020000 || kind == 0060000 ? ask(r) : owned_new(r, k, mode, 0600);
}

/* A call that takes a name, number `which`, from a file, if it succeeds: unlink, rmdir, rename over one. */
static NOINLINE int owned_removal(struct regs *r, const struct umvm_kind *k, int which)
{
    struct regs asked = *r;
    struct umvm_note n;
    struct statx x;
    struct part q;
    int known = 0;
    if (ROUTE->active && leads_nowhere(path_of(k, r, which), dir_of(k, r, which), &q) != NO)
        return ask(r);
    long e = statx_of(dir_of(k, r, which), path_of(k, r, which), AT_SYMLINK_NOFOLLOW, &x);
    if (e == -EACCES || (e == 0 && !note_of(&n, &x, UMVM_NOTE_DIED)))
        return ask(r);
    if (e == 0)
        known = is_known(n.dev, n.ino) && (x.stx_nlink == 1 || (x.stx_mode & KIND) == IS_DIR);
    if (known && (!n.guard || OWNERS->xattrs))
        return ask(r);
    make_path_call(r, k);
    if (r->rax == 0 && known && which) /* a file that was renamed to its own name is still there */
        known = statx_of(dir_of(k, &asked, 1), path_of(k, &asked, 1), AT_SYMLINK_NOFOLLOW, &x) < 0 || x.stx_ino != n.ino;
    if (r->rax == 0 && known)
        note(&n);
    return or_ask(r, &asked);
}

static NOINLINE int owned_chdir(struct regs *r, const struct umvm_kind *k)
{
    struct regs asked = *r;
    with_chdir(r, k);
    int what = or_ask(r, &asked);
    cwd_changed();
    return what;
}

/* A call that the engine answers for owners. */
static NOINLINE int with_owned(struct regs *r, const struct umvm_kind *k)
{
    struct place p;
    if (my_number() != 0 || (ROUTE->redirected && (!my_place(&p) || !is_plain_view(p.view))))
        return ask(r);
    switch (r->rax) {
    case __NR_stat: case __NR_lstat: case __NR_fstat: case __NR_newfstatat: case __NR_statx:
        return owned_stat(r, k);
    case __NR_open: case __NR_openat:
        return owned_open(r, k);
    case __NR_access: case __NR_faccessat: case NR_FACCESSAT2:
        return owned_access(r, k);
    case __NR_chown: case __NR_lchown: case __NR_fchown: case __NR_fchownat:
        return owned_chown(r, k);
    case __NR_chmod: case __NR_fchmod: case __NR_fchmodat:
        return owned_chmod(r, k);
    case __NR_mkdir:
        return owned_new(r, k, r->rsi, 0700);
    case __NR_mkdirat:
        return owned_new(r, k, r->rdx, 0700);
    case __NR_symlink: case __NR_symlinkat:
        return owned_new(r, k, 0, 0);
    case __NR_mknod: case __NR_mknodat:
        return owned_mknod(r, k);
    case __NR_unlink: case __NR_rmdir: case __NR_unlinkat:
        return owned_removal(r, k, 0);
    case __NR_rename: case __NR_renameat: case __NR_renameat2:
        return r->rax == __NR_renameat2 && r->r8 & 2 ? decide_path(r, k) : owned_removal(r, k, 1);
    case __NR_readlink: case __NR_readlinkat: case __NR_utimensat: case __NR_utimes: case __NR_utime:
    case __NR_futimesat: case __NR_statfs:
        return decide_path(r, k);
    case __NR_getxattr: case __NR_lgetxattr: case __NR_listxattr: case __NR_llistxattr:
        return OWNERS->xattrs ? ask(r) : decide_path(r, k);
    case __NR_fgetxattr: case __NR_flistxattr:
        return OWNERS->xattrs || served_fd((int)r->rdi) ? ask(r) : RUN;
    case __NR_chdir:
        return owned_chdir(r, k);
    default:
        return ask(r);
    }
}
#endif
