/* Calls on the host's files where guests are root, answered without a question: looking, opening.

   The call is made as it is, and what it shows is corrected as core_accel/owners.h would. What the kernel forbids to
   the user may be allowed to root: then the supervisor is asked. */
#ifndef UMVM_AGENT_OWNERS_H
#define UMVM_AGENT_OWNERS_H

#define OWNERS ((const struct umvm_owners_hint *)&ROUTE->owners)
#define SHOWN ((const volatile struct umvm_shown *)(uintptr_t)UMVM_OWNED)
#define TMPFILE_BIT 020000000 /* __O_TMPFILE */
#define UNASKED UINT64_MAX    /* no time of birth: nobody asked for it */

static int decide_path(struct regs *r, const struct umvm_kind *k);

/* As `decide`, but the call is made if it is the kernel's. */
static void make_path_call(struct regs *r, const struct umvm_kind *k)
{
    if (decide_path(r, k) == RUN)
        r->rax = (uint64_t)run_here(r);
}

/* What root may, and the user not: asked again. */
static int or_ask(struct regs *r, const struct regs *asked)
{
    if (r->rax != (uint64_t)-EACCES)
        return DONE;
    *r = *asked;
    return ask(r);
}

/* --- what is known of a file --------------------------------------------------------------------- */

enum { NO_ENTRY, MAYBE /* the supervisor knows */, ENTRY };

static void show_ids(uint32_t *uid, uint32_t *gid)
{
    int all = OWNERS->unknown == UMVM_UNKNOWN_ALL, own = OWNERS->unknown == UMVM_UNKNOWN_OWN;
    if (all || (own && *uid == OWNERS->own_uid))
        *uid = OWNERS->as_uid;
    if (all || (own && *gid == OWNERS->own_gid))
        *gid = OWNERS->as_gid;
}

static inline uint64_t time_of(int64_t s, uint64_t ns) { return (uint64_t)s * 1000000000ull + ns; }

static inline uint64_t device_of(uint64_t major, uint64_t minor)
{
    return (major & 0xfff) << 8 | (major & ~0xfffull) << 32 | (minor & 0xff) | (minor & ~0xffull) << 12;
}

/* Could there be an entry? */
static inline int is_known(uint64_t dev, uint64_t ino)
{
    return umvm_noted(&STATE->notes, OWNERS, dev, ino) || umvm_hint_has(OWNERS, dev, ino);
}

static long statx_of(int dirfd, const char *path, uint64_t flags, struct statx *x)
{
    return SYS6(__NR_statx, dirfd, path, flags, STATX_BASIC_STATS | STATX_BTIME, x, 0);
}

static inline uint64_t birth_of(const struct statx *x)
{
    return x->stx_mask & STATX_BTIME ? time_of(x->stx_btime.tv_sec, x->stx_btime.tv_nsec) : 0;
}

/* The entry of the file that a call of stat was about; `guard`: when it was born, 0: to be found out. */
static NOINLINE int recall(const struct regs *asked, uint64_t dev, uint64_t ino, uint64_t ctime, uint64_t guard,
                           struct umvm_shown *s)
{
    if (dev == OWNERS->proc_dev || umvm_noted(&STATE->notes, OWNERS, dev, ino))
        return MAYBE;
    if (!umvm_hint_has(OWNERS, dev, ino))
        return NO_ENTRY;
    if (!umvm_read_shown(&SHOWN[umvm_shown_place(dev, ino)], s) || s->entry.dev != dev || s->entry.ino != ino)
        return MAYBE;
    if (s->ctime && s->ctime == ctime)
        return ENTRY;
    if (s->entry.guard && !guard) {
        struct statx x;
        uint64_t nr = asked->rax, flags = nr == __NR_newfstatat ? asked->r10 : nr == __NR_lstat ? AT_SYMLINK_NOFOLLOW : 0;
        long e = nr == __NR_fstat ? statx_of((int)asked->rdi, "", AT_EMPTY_PATH, &x)
                 : nr == __NR_newfstatat ? statx_of((int)asked->rdi, (const char *)asked->rsi, flags, &x)
                                         : statx_of(AT_FDCWD, (const char *)asked->rdi, flags, &x);
        if (e == 0 && x.stx_ino == ino && device_of(x.stx_dev_major, x.stx_dev_minor) == dev)
            guard = birth_of(&x);
    }
    return guard && guard == s->entry.guard ? ENTRY : MAYBE;
}

static inline uint32_t mode_of(const struct umvm_owner *e, uint32_t mode)
{
    if (e->flags & UMVM_HAS_MODE && (mode & 07777) == e->real_mode)
        mode = (mode & ~07777u) | (e->mode & 07777);
    return e->flags & UMVM_HAS_TYPE ? (mode & 07777) | (e->mode & 0170000) : mode;
}

/* Corrects what stat, lstat, fstat or newfstatat has stored. 0: the supervisor has to be asked. */
static int show_stat(const struct regs *asked, struct stat *st)
{
    struct umvm_shown s;
    int known = recall(asked, st->st_dev, st->st_ino, time_of((int64_t)st->st_ctime, st->st_ctime_nsec), 0, &s);
    if (known == NO_ENTRY)
        show_ids(&st->st_uid, &st->st_gid);
    else if (known == ENTRY) {
        st->st_uid = s.entry.uid;
        st->st_gid = s.entry.gid;
        st->st_mode = mode_of(&s.entry, st->st_mode);
        if (s.entry.flags & UMVM_HAS_TYPE)
            st->st_rdev = s.entry.rdev;
    }
    return known != MAYBE;
}

static int show_statx(const struct regs *asked, struct statx *st)
{
    struct umvm_shown s;
    uint64_t dev = device_of(st->stx_dev_major, st->stx_dev_minor);
    uint64_t ctime = time_of(st->stx_ctime.tv_sec, st->stx_ctime.tv_nsec), guard = birth_of(st);
    int known = recall(asked, dev, st->stx_ino, ctime, guard ? guard : UNASKED, &s);
    if (known == NO_ENTRY)
        show_ids(&st->stx_uid, &st->stx_gid);
    else if (known == ENTRY) {
        if (s.entry.flags & UMVM_HAS_TYPE)
            return 0;
        st->stx_uid = s.entry.uid;
        st->stx_gid = s.entry.gid;
        st->stx_mode = (uint16_t)mode_of(&s.entry, st->stx_mode);
    }
    return known != MAYBE;
}

/* --- looking and opening ------------------------------------------------------------------------- */

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
    if (by_fd)
        r->rax = (uint64_t)run_here(r);
    else
        make_path_call(r, k);
    if (r->rax == 0 && !(asked.rax == __NR_statx ? show_statx(&asked, (struct statx *)out)
                                                 : show_stat(&asked, (struct stat *)out)))
        r->rax = (uint64_t)-EACCES;
    return or_ask(r, &asked);
}

/* A file that is made is root's by itself; that of one without a name isn't known to be new. */
static NOINLINE int owned_open(struct regs *r, const struct umvm_kind *k)
{
    struct regs asked = *r;
    uint64_t flags = argument(r, k->flags), mode = argument(r, k->flags + 1);
    if (flags & (O_CREAT | TMPFILE_BIT) &&
        (flags & TMPFILE_BIT || OWNERS->new_differ || OWNERS->special || (mode & 07600) != 0600))
        return ask(r);
    make_path_call(r, k);
    return or_ask(r, &asked);
}

/* access: what the user may, root may; and a file that the user may execute has such a bit. */
static NOINLINE int owned_access(struct regs *r, const struct umvm_kind *k)
{
    struct regs asked = *r;
    uint64_t mask = r->rax == __NR_access ? r->rsi : r->rdx;
    if (mask & ~7ull || (r->rax == NR_FACCESSAT2 && r->r10 & ~(uint64_t)(AT_SYMLINK_NOFOLLOW | AT_EACCESS)))
        return ask(r);
    make_path_call(r, k);
    return or_ask(r, &asked);
}
#endif
