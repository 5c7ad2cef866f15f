/* Who does ptrace(2) on a guest thread: we, or the debugger among the guests that traces it already.

   A thread has one tracer. If that is a guest, say strace, we stop the debugger in its turn and let it make our
   requests: each becomes a call of its own that is injected. What it would see of them is waited for and swallowed,
   so that in the end it finds the thread as it left it. Source: ptrace(2); do_jobctl_trap, arch_do_signal_or_restart. */
#ifndef UMVM_HAND_H
#define UMVM_HAND_H
#include "kernel.h"
#include <pthread.h>
#include <sched.h>

enum {
    UMVM_SYSCALL_STOP = SIGTRAP | 0x80, /* with PTRACE_O_TRACESYSGOOD */
    UMVM_EVENT_STOP = SIGTRAP | 128 << 8,
    UMVM_SCRATCH = 512,
    UMVM_PATIENCE = 2000, /* milliseconds for a debugger to stop, and for what it is to see */
};

struct umvm_held { int count, signal[8]; }; /* signals that arrived while we worked; delivered afterwards */

struct umvm_hand {
    int tid;
    int debugger;                 /* the guest thread that makes the requests; 0: we do */
    int stepped;                  /* it lets the thread stop at each system call */
    int stop;                     /* the signal that we stop the thread with; 0: PTRACE_INTERRUPT does */
    struct user_regs_struct own;  /* the debugger's registers */
    uint64_t gate, scratch;       /* a system call instruction and some memory of its */
    struct umvm_held held, debugger_held;
};

static pthread_mutex_t umvm_borrowing = PTHREAD_MUTEX_INITIALIZER; /* one debugger at a time, or two workers meet */

static void umvm_hold(struct umvm_held *held, int signal)
{
    for (int i = 0; i < held->count; i++)
        if (held->signal[i] == signal)
            return;
    if (held->count < 8)
        held->signal[held->count++] = signal;
}

/* A number from /proc/TID/status, or -1. */
static long umvm_status(int tid, const char *field, int base)
{
    char text[2048];
    umvm_read_proc(tid, "status", text, sizeof text);
    const char *at = strstr(text, field);
    return at ? strtol(at + strlen(field), NULL, base) : -1;
}

/* Does a signal wait to be delivered to this thread? */
static int umvm_pending(int tid, int signal)
{
    long mask = umvm_status(tid, "\nSigPnd:", 16);
    return mask > 0 && (mask >> (signal - 1) & 1);
}

/* The letter of a thread's state; 0: it is gone. */
static char umvm_state(int tid)
{
    char text[512];
    umvm_read_proc(tid, "stat", text, sizeof text);
    const char *at = strrchr(text, ')');
    return at && at[1] ? at[2] : 0;
}

/* Waits for a stop of a thread that we trace: a status as wait(2) gives, shifted by 8, or a negative errno. */
static int umvm_wait_direct(int tid)
{
    int status;
    while (waitpid(tid, &status, __WALL) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFSTOPPED(status) ? status >> 8 : -ESRCH;
}

/* Lets a thread that we trace and that has stopped make a call at `gate`; its result or a negative errno. */
static long umvm_call(int tid, const struct user_regs_struct *at, uint64_t gate, struct umvm_held *held, long nr,
                      const uint64_t a[6])
{
    struct user_regs_struct u = *at;
    u.rip = gate;
    u.rax = nr;
    u.orig_rax = -1;
    u.rdi = a[0], u.rsi = a[1], u.rdx = a[2], u.r10 = a[3], u.r8 = a[4], u.r9 = a[5];
    if (ptrace(PTRACE_SETREGS, tid, 0, &u) < 0)
        return -errno;
    for (int stops = 0; stops < 2;) { /* entry, exit */
        if (ptrace(PTRACE_SYSCALL, tid, 0, 0) < 0)
            return -errno;
        int status = umvm_wait_direct(tid);
        if (status < 0)
            return status;
        if (status == UMVM_SYSCALL_STOP)
            stops++;
        else if (status >> 8 == 0)
            umvm_hold(held, status);
    }
    if (ptrace(PTRACE_GETREGS, tid, 0, &u) < 0)
        return -errno;
    return (long)u.rax;
}

static long umvm_ask(struct umvm_hand *h, long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    uint64_t args[6] = {a, b, c, d, 0, 0};
    return umvm_call(h->debugger, &h->own, h->gate, &h->debugger_held, nr, args);
}

/* ptrace(2) on the thread: 0 or a negative errno. */
static int umvm_request(struct umvm_hand *h, int what, struct user_regs_struct *data)
{
    if (!h->debugger)
        return ptrace(what, h->tid, 0, data) < 0 ? -errno : 0;
    uint64_t at = data ? h->scratch : 0;
    if (what == PTRACE_SETREGS && umvm_copy(h->debugger, data, at, sizeof *data, 1) != sizeof *data)
        return -EFAULT;
    long r = umvm_ask(h, SYS_ptrace, what, h->tid, 0, at);
    if (r == 0 && what == PTRACE_GETREGS && umvm_copy(h->debugger, data, at, sizeof *data, 0) != sizeof *data)
        return -EFAULT;
    return (int)r;
}

/* Waits for a stop of the thread, as umvm_wait_direct. An end is left for the debugger to see: -ESRCH. */
static int umvm_wait_stop(struct umvm_hand *h)
{
    if (!h->debugger)
        return umvm_wait_direct(h->tid);
    uint64_t until = umvm_now_ms() + UMVM_PATIENCE;
    for (;;) {
        char state = umvm_state(h->tid);
        if (state == 't' || state == 'T') {
            siginfo_t info;
            long r = umvm_ask(h, SYS_waitid, P_PID, h->tid, h->scratch, WSTOPPED | WNOHANG | __WALL);
            if (r < 0)
                return (int)r;
            if (umvm_copy(h->debugger, &info, h->scratch, sizeof info, 0) != sizeof info)
                return -EFAULT;
            if (info.si_pid)
                return info.si_status;
        } else if (state == 0 || state == 'Z' || state == 'X') {
            return -ESRCH;
        }
        if (umvm_now_ms() > until)
            return -ETIMEDOUT;
        sched_yield();
    }
}

/* A system call instruction of a thread: where it made a call, or in the vDSO. 0: none is found. */
static uint64_t umvm_find_gate(int tid, uint64_t rip)
{
    unsigned char code[8192];
    char line[512];
    unsigned long start = 0, end = 0;
    if (umvm_copy(tid, code, rip - 2, 2, 0) == 2 && code[0] == 0x0f && code[1] == 0x05)
        return rip - 2;
    snprintf(line, sizeof line, "/proc/%d/maps", tid);
    FILE *maps = fopen(line, "re");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2)
            break;
    if (maps)
        fclose(maps);
    long n = end > start ? umvm_copy(tid, code, start, end - start < sizeof code ? end - start : sizeof code, 0) : 0;
    for (long i = 0; i + 1 < n; i++)
        if (code[i] == 0x0f && code[i + 1] == 0x05)
            return start + i;
    return 0;
}

/* Attaches to a thread and has it stop soon. -EPERM: somebody traces it; -EAGAIN: a worker of ours does. */
static int umvm_seize(int tid, int attempts)
{
    for (int attempt = 0;; attempt++) {
        if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD) == 0)
            break;
        int e = errno, tracer = e == EPERM ? umvm_status(tid, "\nTracerPid:", 10) : 0;
        if (e != EPERM)
            return -e;
        if (tracer > 0 && umvm_status(tracer, "\nTgid:", 10) != getpid())
            return -EPERM;
        if (tracer < 0 || attempt == attempts)
            return tracer > 0 ? -EAGAIN : -EPERM;
        usleep(200);
    }
    if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0)
        return 0;
    int e = errno;
    ptrace(PTRACE_DETACH, tid, 0, 0);
    return -e;
}

/* Does a thread wait for its child of vfork? Until that executes something, nothing stops the thread. */
static int umvm_in_vfork(int tid)
{
    char text[256];
    umvm_read_proc(tid, "syscall", text, sizeof text);
    long nr = text[0] >= '0' && text[0] <= '9' ? strtol(text, NULL, 10) : -1;
    return umvm_state(tid) == 'D' && (nr == SYS_vfork || nr == SYS_clone || nr == SYS_clone3);
}

/* Stops the debugger that traces the thread. 0 or a negative errno; on success umvm_give_back is due. */
static int umvm_borrow(struct umvm_hand *h)
{
    int debugger = umvm_status(h->tid, "\nTracerPid:", 10);
    if (debugger <= 0 || umvm_in_vfork(debugger))
        return -EPERM;
    pthread_mutex_lock(&umvm_borrowing);
    int r = umvm_seize(debugger, 500);
    int status = r < 0 ? r : umvm_wait_direct(debugger);
    if (status >= 0 && ptrace(PTRACE_GETREGS, debugger, 0, &h->own) < 0)
        status = -errno;
    if (status >= 0 && status >> 8 == 0)
        umvm_hold(&h->debugger_held, status);
    if (status >= 0 && (h->gate = umvm_find_gate(debugger, h->own.rip)) == 0) {
        ptrace(PTRACE_DETACH, debugger, 0, h->debugger_held.count ? h->debugger_held.signal[0] : 0);
        status = -EPERM;
    }
    if (status < 0) {
        pthread_mutex_unlock(&umvm_borrowing);
        return status;
    }
    h->scratch = (h->own.rsp - 256 - UMVM_SCRATCH) & ~15UL;
    h->debugger = debugger;
    return 0;
}

/* Lets the debugger go on where it was; a call that it was in starts again, as after a signal without handler. */
static void umvm_give_back(struct umvm_hand *h)
{
    struct user_regs_struct *u = &h->own;
    if ((long)u->orig_rax >= 0 && (long)u->rax <= -512 && (long)u->rax >= -516 && (long)u->rax != -515) {
        u->rax = (long)u->rax == -516 ? SYS_restart_syscall : u->orig_rax;
        u->rip -= 2;
    }
    u->orig_rax = -1;
    ptrace(PTRACE_SETREGS, h->debugger, 0, u);
    ptrace(PTRACE_DETACH, h->debugger, 0, h->debugger_held.count ? h->debugger_held.signal[0] : 0);
    for (int i = 1; i < h->debugger_held.count; i++)
        syscall(SYS_tkill, h->debugger, h->debugger_held.signal[i]);
    h->debugger = 0;
    pthread_mutex_unlock(&umvm_borrowing);
}
#endif
