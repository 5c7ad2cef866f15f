/* Calls on the host's files where guests are root: those on files that nobody changed need no question.

   The call is made as it is, and what it shows is corrected as core_accel/owners.h would. What the kernel forbids to
   the user may be allowed to root: then the supervisor is asked. */
#ifndef UMVM_AGENT_OWNERS_H
#define UMVM_AGENT_OWNERS_H

#define OWNERS ((const struct umvm_owners_hint *)&ROUTE->owners)

static int decide_path(struct regs *r, const struct umvm_kind *k);

/* Did this process never change its credentials? */
static int is_plain(void)
{
    uint64_t limit[2];
    return SYS4(__NR_prlimit64, 0, UMVM_RLIMIT_LOCKS, 0, limit) == 0 && limit[0] - UMVM_MARKED - 1 >= UMVM_RECORDS - 1;
}

static void show_ids(uint32_t *uid, uint32_t *gid)
{
    int all = OWNERS->unknown == UMVM_UNKNOWN_ALL, own = OWNERS->unknown == UMVM_UNKNOWN_OWN;
    if (all || (own && *uid == OWNERS->own_uid))
        *uid = OWNERS->as_uid;
    if (all || (own && *gid == OWNERS->own_gid))
        *gid = OWNERS->as_gid;
}

/* Corrects what stat, fstat or newfstatat has stored. 0: the supervisor has to be asked. */
static int show_stat(uint64_t out)
{
    struct stat *st = (struct stat *)out;
    if (st->st_dev == OWNERS->proc_dev || umvm_hint_has(OWNERS, st->st_dev, st->st_ino))
        return 0;
    show_ids(&st->st_uid, &st->st_gid);
    return 1;
}

static int show_statx(uint64_t out)
{
    struct statx *st = (struct statx *)out;
    uint64_t major = st->stx_dev_major, minor = st->stx_dev_minor;
    uint64_t dev = (major & 0xfff) << 8 | (major & ~0xfffull) << 32 | (minor & 0xff) | (minor & ~0xffull) << 12;
    if (dev == OWNERS->proc_dev || umvm_hint_has(OWNERS, dev, st->stx_ino))
        return 0;
    show_ids(&st->stx_uid, &st->stx_gid);
    return 1;
}

/* stat and its relatives, by path or by descriptor. */
static NOINLINE int owned_stat(struct regs *r, const struct umvm_kind *k)
{
    struct regs asked = *r;
    uint64_t out = r->rax == __NR_statx ? r->r8 : r->rax == __NR_newfstatat ? r->rdx : r->rsi;
    int by_fd = r->rax == __NR_fstat;
    if (r->rax == __NR_newfstatat && r->r10 & AT_EMPTY_PATH && (int)r->rdi >= 0 && readable(r->rsi, 1))
        by_fd = *(const char *)r->rsi == 0;
    if (by_fd && served_fd((int)r->rdi))
        return ask(r);
    if (by_fd || decide_path(r, k) == RUN)
        r->rax = (uint64_t)run_here(r);
    if (r->rax == (uint64_t)-EACCES || (r->rax == 0 && !(asked.rax == __NR_statx ? show_statx(out) : show_stat(out)))) {
        *r = asked;
        return ask(r);
    }
    return DONE;
}

static long may(int dirfd, const char *path, int mask) { return SYS4(NR_FACCESSAT2, dirfd, path, mask, AT_EACCESS); }

static NOINLINE int owned_open(struct regs *r, const struct umvm_kind *k)
{
    struct regs asked = *r;
    uint64_t flags = argument(r, k->flags), mode = argument(r, k->flags + 1);
    const char *path = path_of(k, r, 0);
    int dirfd = dir_of(k, r, 0), creates = (flags & (O_CREAT | 020000000)) != 0;
    if (creates && (flags & 020000000 || OWNERS->new_differ || OWNERS->special || (mode & 07600) != 0600))
        return ask(r);
    long e = flags & O_PATH ? 0 : may(dirfd, path, (flags & O_ACCMODE) == O_RDONLY ? 4 : (flags & O_ACCMODE) == O_WRONLY ? 2 : 6);
    if (e == -EACCES || (e == -ENOENT && creates && flags & O_PATH))
        return ask(r);
    int what = decide_path(r, k);
    if (what == RUN && e == -ENOENT && creates) /* it is a new file, so that opening it doesn't wait */
        what = done(r, run_here(r));
    if (what == DONE && r->rax == (uint64_t)-EACCES) {
        *r = asked;
        return ask(r);
    }
    return what;
}

/* access: that a file may be read or written; who asks whether it may be executed asks the supervisor. */
static NOINLINE int owned_access(struct regs *r, const struct umvm_kind *k)
{
    struct part q;
    uint64_t mask = r->rax == __NR_access ? r->rsi : r->rdx;
    if (mask & ~6ull || follows_nowhere(path_of(k, r, 0), dir_of(k, r, 0), &q) != NO)
        return ask(r);
    long e = run_here(r);
    return e == -EACCES ? ask(r) : done(r, e);
}

/* A call that the engine answers for owners. */
static NOINLINE int with_owned(struct regs *r, const struct umvm_kind *k)
{
    struct place p;
    if (!is_plain() || (ROUTE->redirected && (!my_place(&p) || !is_plain_view(p.view))))
        return ask(r);
    switch (r->rax) {
    case __NR_stat: case __NR_lstat: case __NR_fstat: case __NR_newfstatat: case __NR_statx:
        return owned_stat(r, k);
    case __NR_open: case __NR_openat:
        return owned_open(r, k);
    case __NR_access: case __NR_faccessat:
        return owned_access(r, k);
    case __NR_readlink: case __NR_readlinkat: case __NR_utimensat: case __NR_utimes: case __NR_utime:
    case __NR_futimesat: case __NR_statfs:
        return decide_path(r, k);
    case __NR_getxattr: case __NR_lgetxattr: case __NR_listxattr: case __NR_llistxattr:
        return OWNERS->xattrs ? ask(r) : decide_path(r, k);
    default:
        return ask(r);
    }
}
#endif
