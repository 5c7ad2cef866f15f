/* Changes the arguments of a notified call by a passing ptrace attach (DESIGN: "run changed").

   The thread is seized and interrupted, its notification answered with an error that nobody sees, and once it
   stops its registers are set so that it executes its `syscall` instruction again with other arguments. That call
   arrives as a fresh notification, which the engine lets through. Source: ptrace(2), seccomp_unotify(2). */
#ifndef UMVM_REWRITE_H
#define UMVM_REWRITE_H
#include "hand.h"

enum { UMVM_STACK_MAX = 512 }; /* more than this is not put below a guest's stack: goroutine stacks are small */

struct umvm_change {
    int index;           /* 0 to 5: argument; 6: number of the call */
    uint64_t value;      /* the new value, if text is NULL */
    const void *text;    /* bytes to put in guest memory; the argument becomes their address */
    size_t size;
    uint64_t address;    /* out: where they were put */
};

/* Lets the stopped thread make one call of ours; its result or a negative errno. */
static long umvm_inject(struct umvm_hand *h, const struct user_regs_struct *at, long nr, const uint64_t a[6])
{
    if (!h->debugger)
        return umvm_call(h->tid, at, at->rip - 2, &h->held, nr, a);
    struct user_regs_struct u = *at;
    u.rip -= 2;
    u.rax = nr;
    u.orig_rax = -1;
    u.rdi = a[0], u.rsi = a[1], u.rdx = a[2], u.r10 = a[3], u.r8 = a[4], u.r9 = a[5];
    int r = umvm_request(h, PTRACE_SETREGS, &u);
    for (int stops = 0; r >= 0 && stops < 2;) {
        if ((r = umvm_request(h, PTRACE_SYSCALL, NULL)) < 0 || (r = umvm_wait_stop(h)) < 0)
            break;
        if (r == UMVM_SYSCALL_STOP || r == SIGTRAP) /* the debugger may not have asked for TRACESYSGOOD */
            stops++;
        else if (r >> 8 == 0)
            umvm_hold(&h->held, r);
    }
    if (r < 0 || (r = umvm_request(h, PTRACE_GETREGS, &u)) < 0)
        return r;
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
static int umvm_place(struct umvm_hand *h, const struct user_regs_struct *u, struct umvm_change *changes, int count)
{
    size_t total = 0;
    for (int i = 0; i < count; i++)
        if (changes[i].text)
            total += (changes[i].size + 15) & ~15UL;
    uint64_t at = (u->rsp - 256 - total) & ~15UL;
    if (total > UMVM_STACK_MAX) {
        const uint64_t anonymous[6] = {0, total, 3, 0x22, (uint64_t)-1, 0};
        long map = umvm_inject(h, u, SYS_mmap, anonymous);
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

/* Answers the notification so that the thread comes to a stop, and waits for that. */
static int umvm_bring_to_stop(struct umvm_hand *h, int listener, uint64_t id)
{
    struct seccomp_notif_resp r;
    memset(&r, 0, sizeof r);
    r.id = id;
    r.error = -513; /* ERESTARTNOINTR */
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r) < 0)
        return errno == EPERM ? -ESRCH : -errno; /* the guest is dying */
    for (;;) { /* any stop takes a pending PTRACE_INTERRUPT away, but not a signal */
        int status = umvm_wait_stop(h);
        if (status < 0 || (h->stop && status == h->stop))
            return status;
        if (h->debugger && (status == UMVM_SYSCALL_STOP || status == SIGTRAP))
            h->stepped = 1; /* the call's end, which the debugger is not to see */
        else if (status >> 8 == 0)
            umvm_hold(&h->held, status);
        if (!h->stop)
            return status;
        status = umvm_request(h, PTRACE_CONT, NULL);
        if (status < 0)
            return status;
    }
}

/* Attaches, by a debugger's hand if one has the thread already, and has it stop soon. */
static int umvm_attach(struct umvm_hand *h)
{
    int r = umvm_seize(h->tid, 20);
    if (r != -EPERM)
        return r;
    if ((r = umvm_borrow(h)) < 0)
        return r == -ESRCH || r == -EAGAIN ? -EPERM : r;
    r = umvm_request(h, PTRACE_INTERRUPT, NULL);
    if (r == -EIO) { /* it was attached the old way: a signal that nobody is to see, unless it is the debugger's */
        if (umvm_pending(h->tid, SIGSTOP))
            umvm_hold(&h->held, SIGSTOP);
        r = (int)umvm_ask(h, SYS_tkill, h->tid, h->stop = SIGSTOP, 0, 0);
    }
    if (r < 0)
        umvm_give_back(h);
    return r;
}

/* Lets the thread go. */
static void umvm_rewrite_end(struct umvm_hand *h)
{
    int first = 1;
    if (!h->debugger) {
        ptrace(PTRACE_DETACH, h->tid, 0, h->held.count ? h->held.signal[0] : 0);
    } else {
        first = 0;
        for (int status = h->stepped ? 0 : SIGTRAP; status >= 0 && status != SIGTRAP && status != UMVM_SYSCALL_STOP;) {
            umvm_request(h, PTRACE_SYSCALL, NULL);
            status = umvm_wait_stop(h); /* for the call's start, which the debugger saw already */
            if (status > 0 && status >> 8 == 0 && status != SIGTRAP)
                umvm_hold(&h->held, status);
        }
        if (!h->stepped && !h->stop) /* the debugger may wait for a stop that we took: it gets one, and goes on */
            umvm_request(h, PTRACE_INTERRUPT, NULL);
        umvm_request(h, h->stepped ? PTRACE_SYSCALL : PTRACE_CONT, NULL);
        umvm_give_back(h);
    }
    for (int i = first; i < h->held.count; i++)
        syscall(SYS_tkill, h->tid, h->held.signal[i]);
}

/* Stops the thread and answers its notification. Afterwards the call is repeated when umvm_rewrite_end lets it go.
   fix(changes, count) may alter the texts once their addresses are known (an argv array of pointers).
   `args` receives the six arguments of the repeated call. Returns 0; -EPERM if the thread can't be had (nothing was
   done); -EAGAIN: it will repeat the call unchanged, as it is about to be stopped; any other error: the call will be
   repeated unchanged. *stopped tells if umvm_rewrite_end is due. */
static int umvm_rewrite_begin(int listener, uint64_t id, int tid, int nr, struct umvm_change *changes, int count,
                              void (*fix)(struct umvm_change *, int), uint64_t *args, struct umvm_hand *h, int *stopped)
{
    struct user_regs_struct u;
    *stopped = 0;
    memset(h, 0, sizeof *h);
    memset(args, 0, 6 * sizeof *args);
    h->tid = tid;
    int error = umvm_attach(h);
    if (error == -EAGAIN) {
        struct seccomp_notif_resp again = {.id = id, .error = -513};
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &again);
        return error;
    }
    if (error < 0)
        return error;
    error = umvm_bring_to_stop(h, listener, id);
    if (error >= 0)
        error = umvm_request(h, PTRACE_GETREGS, &u);
    if (error < 0) {
        if (h->debugger)
            umvm_give_back(h);
        else
            ptrace(PTRACE_DETACH, tid, 0, 0);
        return error == -EPERM ? -ESRCH : error;
    }
    *stopped = 1;
    error = umvm_place(h, &u, changes, count);
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
    umvm_request(h, PTRACE_SETREGS, &u);
    return error;
}
#endif
