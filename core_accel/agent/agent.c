/* The agent: decides in the guest about each call of patched code. And the loader (loader.h).

   A patched site jumps to a stub, the stub to umvm_entry. decide() answers RUN: the stub executes the
   call, with the guest's own stack and registers, so that calls which block, return twice or never are
   as they were; or DONE: the result is in rax. Nothing is kept between calls that a signal handler,
   which may make calls itself or never return, could spoil.

   The guest's stack may be small: frames stay small, buffers are in slots (paths.h). */
#include "execute.h"
#include "text.h"

enum { RUN, DONE };
enum { OPEN_FLAGS = 037777703, RESOLVE_NO_LINKS = 4, NR_FACCESSAT2 = 439 };

#include "entry.h"
void umvm_entry(void);
long call_at(const struct regs *, uint64_t gate);

/* Makes a call that the supervisor answers.

   A signal that arrives before the supervisor has received the call ends it, with EINTR if the handler doesn't restart
   calls: with others than the few that may end so (signal(7)), too. Then the call wasn't made, and is repeated. Whether
   it was received is seen by a mark, which the supervisor sets when it answers: it belongs to the gate that the call is
   made at, each thread using one of its own. A handler that asks, too, leaves the mark as it was. */
static NOINLINE long ask_gate(const struct regs *r)
{
    uint32_t gate = (SELF->sandboxed ? (uint32_t)((uint64_t)r >> 12) : (uint32_t)SYS1(__NR_gettid, 0)) % UMVM_GATES;
    volatile uint8_t *answered = &STATE->answered[gate];
    uint8_t before = *answered;
    long e;
    do {
        *answered = 0;
        e = call_at(r, UMVM_GATE + gate * UMVM_GATE_SIZE);
    } while (e == -EINTR && !*answered);
    *answered = before;
    return e;
}

static NOINLINE int ask(struct regs *r)
{
    __atomic_add_fetch(&STATE->gated, 1, __ATOMIC_RELAXED);
    r->rax = (uint64_t)ask_gate(r);
    return DONE;
}

static inline uint64_t argument(const struct regs *r, int index) { return (&r->rdi)[index]; }

static inline long run_here(const struct regs *r)
{
    return SYS6(r->rax, r->rdi, r->rsi, r->rdx, r->r10, r->r8, r->r9);
}

static inline int done(struct regs *r, long value)
{
    r->rax = (uint64_t)value;
    return DONE;
}

static inline int dir_of(const struct umvm_kind *k, const struct regs *r, int which)
{
    return k->dir[which] >= 0 ? (int)argument(r, k->dir[which]) : AT_FDCWD;
}

static inline const char *path_of(const struct umvm_kind *k, const struct regs *r, int which)
{
    return (const char *)argument(r, k->path[which]);
}

#include "exe.h"

static NOINLINE int with_stat(struct regs *r, const struct umvm_kind *k)
{
    const char *path = path_of(k, r, 0);
    struct part q;
    int dirfd = dir_of(k, r, 0), what = judge(path, dirfd, &q);
    long e;
    if (what == UNKNOWN)
        what = walk(&q, dirfd, 1) == NO ? PLAIN : ASK;
    else if (what == PLAIN && q.last < q.length && !(q.hash && verified(full_hash(&q), q.now))) {
        /* look without following: only a link needs more */
        if (r->rax == __NR_statx) {
            e = SYS6(__NR_statx, dirfd, path, r->rdx | AT_SYMLINK_NOFOLLOW, r->r10, r->r8, 0);
            if (e == 0 && readable(r->r8, 32)) {
                const struct statx *st = (const struct statx *)r->r8;
                if (!(st->stx_mask & STATX_TYPE) || (st->stx_mode & S_IFMT) == S_IFLNK)
                    e = 1;
            }
        } else {
            uint64_t out = r->rax == __NR_stat ? r->rsi : r->rdx;
            uint64_t flags = r->rax == __NR_stat ? 0 : r->r10;
            e = SYS4(__NR_newfstatat, dirfd, path, out, flags | AT_SYMLINK_NOFOLLOW);
            if (e == 0 && (((const struct stat *)out)->st_mode & S_IFMT) == S_IFLNK)
                e = 1;
        }
        if (e <= 0) {
            if (q.hash && e == 0)
                remember(full_hash(&q), q.now);
            return done(r, e);
        }
        what = walk(&q, dirfd, 1) == NO ? PLAIN : ASK;
    }
    return what == PLAIN ? RUN : ask(r);
}

static NOINLINE int with_open(struct regs *r, const struct umvm_kind *k)
{
    const char *path = path_of(k, r, 0);
    int dirfd = dir_of(k, r, 0);
    uint64_t flags = r->rax == __NR_creat ? O_CREAT | O_WRONLY | O_TRUNC : argument(r, k->flags);
    uint64_t mode = r->rax == __NR_creat ? r->rsi : argument(r, k->flags + 1);
    struct part q;
    if (flags & O_NOFOLLOW)
        return leads_nowhere(path, dirfd, &q) == NO ? RUN : ask(r);
    int what = judge(path, dirfd, &q);
    if (what == PLAIN && q.last < q.length && !(flags & O_PATH) && !(q.hash && verified(full_hash(&q), q.now))) {
        struct {
            uint64_t flags, mode, resolve;
        } how = {flags & OPEN_FLAGS & ~020000000ull, flags & (O_CREAT | 020000000) ? mode & 07777 : 0, RESOLVE_NO_LINKS};
        if (!(flags & 020000000)) { /* __O_TMPFILE */
            long e = SYS4(437 /* openat2 */, dirfd, path, &how, sizeof how);
            if (e >= 0 || (e != -ELOOP && e != -EINVAL && e != -ENOSYS && e != -EAGAIN && e != -E2BIG)) {
                if (e >= 0 && q.hash)
                    remember(full_hash(&q), q.now);
                return done(r, e);
            }
        }
        return follows_nowhere(path, dirfd, &q) == NO ? RUN : ask(r);
    }
    if (what == PLAIN)
        return flags & O_PATH && follows_nowhere(path, dirfd, &q) != NO ? ask(r) : RUN;
    return what == UNKNOWN && walk(&q, dirfd, 1) == NO ? RUN : ask(r);
}

static NOINLINE int with_access(struct regs *r, const struct umvm_kind *k)
{
    const char *path = path_of(k, r, 0);
    int dirfd = dir_of(k, r, 0);
    struct part q;
    int what = judge(path, dirfd, &q);
    if (what == PLAIN && q.last < q.length && !(q.hash && verified(full_hash(&q), q.now))) {
        uint64_t flags = r->rax == 439 ? r->r10 : 0, mode = r->rax == __NR_access ? r->rsi : r->rdx;
        long e = SYS4(439 /* faccessat2 */, dirfd, path, mode, flags | AT_SYMLINK_NOFOLLOW);
        if (e < 0 && e != -ELOOP && e != -EROFS && e != -ENOSYS && e != -EINVAL)
            return done(r, e); /* a link is never refused: it isn't one */
        return follows_nowhere(path, dirfd, &q) == NO ? RUN : ask(r);
    }
    return what == PLAIN || (what == UNKNOWN && walk(&q, dirfd, 1) == NO) ? RUN : ask(r);
}

static NOINLINE int with_follow(struct regs *r, const struct umvm_kind *k)
{
    uint64_t flags = k->flags >= 0 ? argument(r, k->flags) : 0;
    struct part q;
    int stays = (k->nofollow & 1 && flags & AT_SYMLINK_NOFOLLOW) || (k->nofollow & 2 && !(flags & AT_SYMLINK_FOLLOW)) ||
                (k->nofollow & 4 && flags & 0x02000000);
    int r2 = stays ? leads_nowhere(path_of(k, r, 0), dir_of(k, r, 0), &q)
                   : follows_nowhere(path_of(k, r, 0), dir_of(k, r, 0), &q);
    return r2 == NO ? RUN : ask(r);
}

static NOINLINE int both_nowhere(const struct regs *r, const struct umvm_kind *k)
{
    struct part q;
    for (int i = 0; i < 2; i++)
        if (k->path[i] >= 0 && leads_nowhere(path_of(k, r, i), dir_of(k, r, i), &q) != NO)
            return 0;
    return 1;
}

/* Renaming a plain file changes no path to a directory; anything else may. */
static NOINLINE int moves_a_file(const struct regs *r, const struct umvm_kind *k)
{
    struct stat st;
    if (r->rax != __NR_rename && r->rax != __NR_renameat && !(r->rax == __NR_renameat2 && !(r->r8 & 2)))
        return 0;
    return SYS4(__NR_newfstatat, dir_of(k, r, 0), path_of(k, r, 0), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           (st.st_mode & S_IFMT) == S_IFREG;
}

#include "redirect.h"

static NOINLINE int with_move(struct regs *r, const struct umvm_kind *k)
{
    if (ROUTE->active && !both_nowhere(r, k))
        return ask(r);
    if (moves_a_file(r, k))
        return RUN;
    forget_paths();
    long e = run_here(r);
    forget_paths();
    return done(r, e);
}

static NOINLINE int with_chdir(struct regs *r, const struct umvm_kind *k)
{
    struct part q;
    struct place p;
    if (ROUTE->redirected && my_place(&p) && !is_plain_view(p.view))
        redirected(r, k, &p);
    else if (ROUTE->active && follows_nowhere(path_of(k, r, 0), AT_FDCWD, &q) != NO) {
        cwd_changed();
        ask(r);
    } else
        r->rax = (uint64_t)run_here(r);
    cwd_changed();
    return DONE;
}

static NOINLINE int with_fchdir(struct regs *r)
{
    if (ROUTE->redirected || served_fd((int)r->rdi)) /* the supervisor notes by which mount */
        ask(r);
    else
        r->rax = (uint64_t)run_here(r);
    cwd_changed();
    return DONE;
}

static NOINLINE int with_getcwd(struct regs *r)
{
    struct place p;
    if (!ROUTE->active)
        return RUN;
    if (!my_place(&p))
        return ask(r);
    if (!is_plain_view(p.view))
        return redirected_cwd(r, &p);
    return cwd_known(&p, now_units()) ? RUN : ask(r);
}

/* execve where paths aren't the host's: what the kernel would execute itself, the supervisor is asked about. */
static NOINLINE int redirected_exec(struct regs *r, const struct place *p)
{
    struct room *room = take_room(p);
    int failed = 0;
    const char *name = (const char *)r->rdi, *path = room ? find_program(name, room, &failed) : 0;
    if (!path || in_shadow(name, room->f.q.length)) {
        give_room(room);
        return ask(r);
    }
    if (failed) {
        struct regs c = *r;
        c.rdi = (uint64_t)path;
        r->rax = (uint64_t)run_here(&c);
        give_room(room);
        return DONE;
    }
    long e = execute_host(path, name, room, r->rsi, r->rdx);
    return e == 0 || e == 1 ? ask(r) : done(r, e);
}

static NOINLINE int with_exec(struct regs *r)
{
    const char *path = (const char *)r->rdi;
    struct part q;
    struct place p;
    if (ROUTE->redirected && !my_place(&p))
        return ask(r);
    if (ROUTE->redirected && !is_plain_view(p.view))
        return redirected_exec(r, &p);
    if (may_be_exe(path) && own_exe(path))
        path = SELF->exe;
    if (!measure(path, &q))
        return RUN;
    if (in_shadow(path, q.length) || (ROUTE->active && follows_nowhere(path, AT_FDCWD, &q) != NO))
        return ask(r);
    long e = execute_host(path, path, 0, r->rsi, r->rdx);
    return e == 0 ? RUN : e == 1 ? ask(r) : done(r, e);
}

#include "maps.h"

static NOINLINE int with_clone(struct regs *r)
{
    uint64_t flags = r->rax == __NR_vfork ? CLONE_VM : r->rdi;
    if (r->rax == 435) {
        if (!SELF->sandboxed && !readable(r->rdi, 8))
            return RUN;
        flags = *(const uint64_t *)r->rdi;
    }
    /* a namespace of its own would leave the view (syscalls/process.py says the same) */
    if (flags & (CLONE_NEWNS | CLONE_NEWUSER))
        return done(r, flags & CLONE_FS || (flags & CLONE_THREAD && flags & CLONE_NEWUSER) ? -EINVAL : -EPERM);
    if ((flags & (CLONE_VM | CLONE_THREAD)) == CLONE_VM && !SELF->shared) {
        SELF->place_epoch = 0;
        SELF->shared = 1;
    }
    return RUN;
}

#include "sockets.h"

static NOINLINE int with_ptrace(struct regs *r)
{
    STATE->traced = 1;
    if (r->rdi == 0)
        SELF->traced = 1;
    return RUN;
}

/* Is it a call about the limit that holds that number (umvm/syscalls/locklimit.py)? */
static inline int is_mark(const struct regs *r)
{
    return (r->rax == __NR_prlimit64 && (uint32_t)r->rsi == UMVM_RLIMIT_LOCKS) ||
           ((r->rax == __NR_getrlimit || r->rax == __NR_setrlimit) && (uint32_t)r->rdi == UMVM_RLIMIT_LOCKS);
}

/* getuid and its relatives, where guests have ids of their own. 0: it isn't known here. */
static NOINLINE int with_ids(struct regs *r)
{
    int at;
    switch (r->rax) {
    case __NR_getuid: at = 0; break;
    case __NR_geteuid: at = 1; break;
    case __NR_getgid: at = 4; break;
    case __NR_getegid: at = 5; break;
    default: return 0;
    }
    uint32_t number = my_number();
    if (number >= UMVM_AGENT_IDS || !ROUTE->ids[number].valid)
        return 0;
    r->rax = ROUTE->ids[number].ids[at];
    return 1;
}

#include "owners.h"
#include "ownerchanges.h"
/* A handler returns. The supervisor looks at the frame if a call that it was asked about by unpatched code may have been
   interrupted before it saw it (syscalls/restart.py); the frame is where the guest's stack pointer was, so the call is
   made at a gate that the entry jumps to instead of the stub. */
static NOINLINE int with_sigreturn(struct regs *r)
{
    enum { REST = sizeof *r + 8 + 128, RAX = 144, RIP = 168 }; /* entry.h; struct ucontext in asm/sigcontext.h */
    uint64_t frame = (uint64_t)r + REST;
    if (SELF->sandboxed || !readable(frame, RIP + 8) || *(int64_t *)(frame + RAX) != -EINTR ||
        is_ours(*(uint64_t *)(frame + RIP), 1))
        return RUN;
    ((uint64_t *)r)[sizeof *r / 8] = UMVM_GATE + (SYS1(__NR_gettid, 0) % UMVM_GATES) * UMVM_GATE_SIZE;
    return RUN;
}

static NOINLINE int decide_path(struct regs *r, const struct umvm_kind *k)
{
    struct part q;
    int proc = k->path[0] >= 0 && !ROUTE->redirected && may_be_exe(path_of(k, r, 0));
    if (proc && own_exe(path_of(k, r, 0)))
        return with_exe(r, k);
    if (!ROUTE->active && !proc)
        return k->flow == UMVM_F_MOVE ? with_move(r, k) : RUN;
    if (ROUTE->redirected) {
        struct place p;
        if (!my_place(&p))
            return ask(r);
        if (!is_plain_view(p.view))
            return redirected(r, k, &p);
    }
    switch (k->flow) {
    case UMVM_F_STAT:
        if (k->flags >= 0 && argument(r, k->flags) & AT_SYMLINK_NOFOLLOW)
            return leads_nowhere(path_of(k, r, 0), dir_of(k, r, 0), &q) == NO ? RUN : ask(r);
        return with_stat(r, k);
    case UMVM_F_OPEN:
        return with_open(r, k);
    case UMVM_F_ACCESS:
        return with_access(r, k);
    case UMVM_F_FOLLOW:
        return with_follow(r, k);
    case UMVM_F_MOVE:
        return with_move(r, k);
    default:
        return both_nowhere(r, k) ? RUN : ask(r);
    }
}

__attribute__((used)) int decide(struct regs *r)
{
    uint32_t nr = (uint32_t)r->rax;
    if (nr >= UMVM_MAX_NR)
        return RUN;
    if (nr == __NR_munmap || nr == __NR_mprotect || nr == __NR_mremap || nr == __NR_brk || nr == 329) {
        maps_changed();
        if (nr != __NR_brk) {
            leave_clock(r->rdi, r->rsi);
            if (is_ours(r->rdi, r->rsi))
                return done(r, nr == __NR_munmap ? -EINVAL : -ENOMEM);
        }
    }
    const struct umvm_kind *k = (const struct umvm_kind *)&ROUTE->kinds[nr];
    if (k->flow == UMVM_F_RUN)
        return RUN;
    if (SELF->sandboxed && k->flow != UMVM_F_CLONE && k->flow != UMVM_F_SECCOMP && k->flow != UMVM_F_SIGRETURN)
        return nr == __NR_mmap && r->r10 & 0x20 ? RUN : ask(r);
    if (OWNERS->on && OWNERS->owned[nr / 64] >> (nr % 64) & 1)
        return with_owned(r, k);
    if (ROUTE->hooked[nr / 64] >> (nr % 64) & 1 && k->flow != UMVM_F_SIGRETURN) {
        if (ROUTE->identity && with_ids(r))
            return DONE;
        ask(r);
        if (k->flow != UMVM_F_CLONE || r->rax != (uint64_t)-UMVM_GO)
            return DONE;
        r->rax = nr;
        return RUN;
    }
    switch ((enum umvm_flow)k->flow) { /* all of them: the compiler tells if one is missing */
    case UMVM_F_SETID:
        SELF->who = (uint32_t)now_units() << 12 ^ (uint32_t)SYS1(__NR_getpid, 0);
        return ask(r);
    case UMVM_F_FD:
        if (ROUTE->read_only && changes_by_fd(r))
            return ask(r);
        return served_fd((int)argument(r, k->fd)) ? ask(r) : RUN;
    case UMVM_F_FDS:
        return ROUTE->descriptors ? ask(r) : RUN;
    case UMVM_F_ACTIVE:
        return ROUTE->active ? ask(r) : RUN;
    case UMVM_F_GATE:
        return ask(r);
    case UMVM_F_CHDIR:
        return with_chdir(r, k);
    case UMVM_F_FCHDIR:
        return with_fchdir(r);
    case UMVM_F_GETCWD:
        return with_getcwd(r);
    case UMVM_F_EXEC:
        return with_exec(r);
    case UMVM_F_MMAP:
        return with_mmap(r);
    case UMVM_F_ADDRESS:
    case UMVM_F_SENDTO:
    case UMVM_F_SENDMSG:
        return ROUTE->active ? with_address(r, k->flow) : RUN;
    case UMVM_F_PTRACE:
        return with_ptrace(r);
    case UMVM_F_PRCTL:
        if (r->rdi == 22 /* PR_SET_SECCOMP */)
            SELF->sandboxed = 1;
        return r->rdi == 4 /* PR_SET_DUMPABLE */ ? ask(r) : RUN;
    case UMVM_F_SECCOMP:
        SELF->sandboxed |= r->rdi <= 1; /* not what only asks the kernel what it offers */
        return RUN;
    case UMVM_F_SOCKNAME:
        return ROUTE->active ? with_sockname(r) : RUN;
    case UMVM_F_SIGRETURN:
        return with_sigreturn(r);
    case UMVM_F_CLONE:
        return with_clone(r);
    case UMVM_F_HOOKED:
        return is_mark(r) ? ask(r) : RUN;
    case UMVM_F_RUN:
        return RUN;
    case UMVM_F_PATH:
    case UMVM_F_FOLLOW:
    case UMVM_F_STAT:
    case UMVM_F_OPEN:
    case UMVM_F_ACCESS:
    case UMVM_F_READLINK:
    case UMVM_F_MOVE:
        return decide_path(r, k);
    }
    return ask(r);
}

#include "loader.h"
