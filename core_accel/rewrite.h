/* Changes the arguments of a notified call by a passing ptrace attach (DESIGN: "run changed").

   The thread is seized and interrupted, its notification answered with an error that nobody sees, and once it
   stops its registers are set so that it executes its `syscall` instruction again with other arguments. That call
   arrives as a fresh notification, which the engine lets through. Source: ptrace(2), seccomp_unotify(2). */
#ifndef UMVM_REWRITE_H
#define UMVM_REWRITE_H
#include "kernel.h"

enum { UMVM_STACK_MAX = 512 }; /* more than this is not put below a guest's stack: goroutine stacks are small */

struct umvm_change {
    int index;           /* 0 to 5: argument; 6: number of the call */
    uint64_t value;      /* the new value, if text is NULL */
    const void *text;    /* bytes to put in guest memory; the argument becomes their address */
    size_t size;
    uint64_t address;    /* out: where they were put */
};

static int umvm_wait_stop(int tid)
{
    int status;
    while (waitpid(tid, &status, __WALL) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFSTOPPED(status) ? status : -ESRCH;
}

struct umvm_held { int count, signal[8]; }; /* signals that arrived while we worked; delivered afterwards */

/* Lets the stopped thread run one call of ours at its own syscall instruction; its result or a negative errno. */
static long umvm_inject(int tid, const struct user_regs_struct *at, struct umvm_held *held, long nr, uint64_t a, uint64_t b,
                        uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct user_regs_struct u = *at;
    u.rip -= 2;
    u.rax = nr;
    u.orig_rax = -1;
    u.rdi = a, u.rsi = b, u.rdx = c, u.r10 = d, u.r8 = e, u.r9 = f;
    if (ptrace(PTRACE_SETREGS, tid, 0, &u) < 0)
        return -errno;
    for (int stops = 0; stops < 2;) { /* entry, exit */
        if (ptrace(PTRACE_SYSCALL, tid, 0, 0) < 0)
            return -errno;
        int status = umvm_wait_stop(tid);
        if (status < 0)
            return status;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80))
            stops++;
        else if ((status >> 16) == 0 && held->count < 8)
            held->signal[held->count++] = WSTOPSIG(status);
    }
    if (ptrace(PTRACE_GETREGS, tid, 0, &u) < 0)
        return -errno;
    return (long)u.rax;
}

static uint64_t *umvm_argument(struct user_regs_struct *u, int index)
{
    switch (index) {
    case 0: return (uint64_t *)&u->rdi;
    case 1: return (uint64_t *)&u->rsi;
    case 2: return (uint64_t *)&u->rdx;
    case 3: return (uint64_t *)&u->r10;
    case 4: return (uint64_t *)&u->r8;
    case 5: return (uint64_t *)&u->r9;
    default: return (uint64_t *)&u->rax;
    }
}

/* Where the bytes go: below the stack's red zone, or in a mapping of their own. Returns 0 or a negative errno. */
static int umvm_place(int tid, const struct user_regs_struct *u, struct umvm_held *held, struct umvm_change *changes,
                      int count)
{
    size_t total = 0;
    for (int i = 0; i < count; i++)
        if (changes[i].text)
            total += (changes[i].size + 15) & ~15UL;
    uint64_t at = (u->rsp - 256 - total) & ~15UL;
    if (total > UMVM_STACK_MAX) {
        long map = umvm_inject(tid, u, held, SYS_mmap, 0, total, 3, 0x22, (uint64_t)-1, 0);
        if (map < 0 && map > -4096)
            return (int)map;
        at = map;
    }
    for (int i = 0; i < count; i++) {
        if (!changes[i].text)
            continue;
        changes[i].address = at;
        at += (changes[i].size + 15) & ~15UL;
    }
    return 0;
}

/* Stops the thread and answers its notification. Afterwards the call is repeated when umvm_rewrite_end lets it go.
   fix(changes, count) may alter the texts once their addresses are known (an argv array of pointers).
   `args` receives the six arguments of the repeated call. Returns 0; -EPERM if the thread is traced already (nothing
   was done); any other error: the call will be repeated unchanged. *stopped tells if umvm_rewrite_end is due. */
static int umvm_rewrite_begin(int listener, uint64_t id, int tid, int nr, struct umvm_change *changes, int count,
                              void (*fix)(struct umvm_change *, int), uint64_t *args, struct umvm_held *held, int *stopped)
{
    *stopped = 0;
    held->count = 0;
    if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD) < 0)
        return -errno;
    struct seccomp_notif_resp r;
    memset(&r, 0, sizeof r);
    r.id = id;
    r.error = -513; /* ERESTARTNOINTR */
    if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0 || ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r) < 0) {
        int e = errno; /* the guest is dying */
        ptrace(PTRACE_DETACH, tid, 0, 0);
        return e == EPERM ? -ESRCH : -e;
    }
    int status = umvm_wait_stop(tid), error;
    if (status < 0)
        return status;
    *stopped = 1;
    struct user_regs_struct u;
    if (ptrace(PTRACE_GETREGS, tid, 0, &u) < 0)
        return -errno;
    if ((status >> 16) == 0)
        held->signal[held->count++] = WSTOPSIG(status);
    error = umvm_place(tid, &u, held, changes, count);
    if (!error && fix)
        fix(changes, count);
    for (int i = 0; i < count && !error; i++)
        if (changes[i].text && umvm_copy(tid, (void *)changes[i].text, changes[i].address, changes[i].size, 1) !=
                                   (long)changes[i].size)
            error = -EFAULT;
    u.rip -= 2;
    u.rax = nr;
    u.orig_rax = -1;
    for (int i = 0; i < count && !error; i++)
        *umvm_argument(&u, changes[i].index) = changes[i].text ? changes[i].address : changes[i].value;
    for (int i = 0; i < 6; i++)
        args[i] = *umvm_argument(&u, i);
    ptrace(PTRACE_SETREGS, tid, 0, &u);
    return error;
}

static void umvm_rewrite_end(int tid, const struct umvm_held *held)
{
    ptrace(PTRACE_DETACH, tid, 0, held->count ? held->signal[0] : 0);
    for (int i = 1; i < held->count; i++)
        syscall(SYS_tkill, tid, held->signal[i]);
}
#endif
