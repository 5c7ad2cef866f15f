/* Answers calls about a guest's credentials in C, from a table that the supervisor keeps.

   A guest process's number is in its soft limit RLIMIT_LOCKS (umvm/guest/marks.py); record 0 is for processes without.
   Nothing here needs the GIL. Freestanding but for the system calls, so that an agent can use the same table. */
#ifndef UMVM_CREDS_H
#define UMVM_CREDS_H
#include "kernel.h"
#include "agent/layout.h"
#include <sys/resource.h>

enum { UMVM_QUICK_GROUPS = 22, UMVM_CALLS = 512 };

enum {
    UMVM_WATCH_MESSAGES = 1, /* some socket has SO_PASSCRED: received messages */
    UMVM_WATCH_LIMITS = 2,   /* some process has limits that the kernel doesn't know */
    UMVM_WATCH_NAMES = 4,    /* the VM has a host name of its own */
};

struct umvm_creds { /* 128 bytes */
    uint32_t valid;
    uint32_t ids[8]; /* real, effective, saved, file system: of the user, then of the group */
    uint32_t count;
    uint32_t groups[UMVM_QUICK_GROUPS];
};

struct umvm_identity {
    int on;                     /* 0: ask the interpreter */
    uint8_t quick[UMVM_CALLS];  /* calls that may be answered here */
    struct umvm_creds *records; /* UMVM_RECORDS of them, filled as they come up */
    uint64_t *peers;            /* by process id, modulo UMVM_RECORDS: id << 32 | number + 1 when it last made a socket known */
    int watching;               /* UMVM_WATCH_…: what has come to be looked at, if it wasn't from the start */
};

/* The number of a process's record; −errno when it is gone. */
static long umvm_mark(int pid)
{
    uint64_t limit;
    int e = umvm_lock_limit(pid, &limit);
    if (e < 0)
        return e;
    return limit - UMVM_MARKED < UMVM_RECORDS ? (long)(limit - UMVM_MARKED) : 0;
}

struct umvm_asked { /* a call, and where its answer goes */
    const struct seccomp_notif *n;
    int listener;
    uint8_t *answered;
};

static int umvm_tell(const struct umvm_asked *q, long value, int error, int run)
{
    umvm_mark_answered(q->answered, q->n->data.instruction_pointer);
    umvm_answer(q->listener, q->n->id, value, error, run);
    return 1;
}

static int umvm_give(const struct umvm_asked *q, long value)
{
    return value < 0 ? umvm_tell(q, 0, (int)-value, 0) : umvm_tell(q, value, 0, 0);
}

static int umvm_give_three(const struct umvm_asked *q, const uint32_t *ids)
{
    for (int i = 0; i < 3; i++)
        if (umvm_copy(q->n->pid, (void *)&ids[i], q->n->data.args[i], 4, 1) != 4)
            return umvm_give(q, -EFAULT);
    return umvm_give(q, 0);
}

static int umvm_give_groups(const struct umvm_asked *q, const struct umvm_creds *own)
{
    int room = (int)q->n->data.args[0], count = (int)own->count;
    long size = 4 * (long)count;
    if (own->count > UMVM_QUICK_GROUPS)
        return 0;
    if (room < 0 || (room > 0 && room < count))
        return umvm_give(q, -EINVAL);
    if (room && count && umvm_copy(q->n->pid, (void *)own->groups, q->n->data.args[1], size, 1) != size)
        return umvm_give(q, -EFAULT);
    return umvm_give(q, count);
}

/* A signal to a process with the very same credentials is allowed. */
static int umvm_same(const struct seccomp_notif *q, long own)
{
    int target = (int)q->data.args[0];
    return target > 0 && umvm_mark(target) == own;
}

/* Does a message that is to be sent name its sender (SCM_CREDENTIALS)? */
static int umvm_names_sender(const struct seccomp_notif *q)
{
    struct msghdr m;
    char control[1024];
    if (umvm_copy(q->pid, &m, q->data.args[1], sizeof m, 0) != sizeof m || m.msg_controllen < sizeof(struct cmsghdr))
        return 0;
    if (m.msg_controllen > sizeof control)
        return 1;
    if (umvm_copy(q->pid, control, (uint64_t)m.msg_control, m.msg_controllen, 0) != (long)m.msg_controllen)
        return 0;
    m.msg_control = control;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS)
            return 1;
    return 0;
}

/* Is it an option that tells, or has the kernel tell, who is at the other end? */
static int umvm_of_peers(int option)
{
    return option == SO_PASSCRED || option == SO_PEERCRED || option == 59; /* SO_PEERGROUPS */
}

/* 1: the call was answered, or let through; 2: it has nothing to do with identities; 0: it is for others to decide. */
static int umvm_quick(struct umvm_identity *s, int listener, const struct seccomp_notif *q, uint8_t *answered)
{
    const struct umvm_asked asked = {q, listener, answered};
    if (!s->on || (unsigned)q->data.nr >= UMVM_CALLS || !s->quick[q->data.nr])
        return 0;
    switch (q->data.nr) {
    case SYS_recvmsg: return s->watching & UMVM_WATCH_MESSAGES ? 0 : 2;
    case SYS_uname: return s->watching & UMVM_WATCH_NAMES ? 0 : 2;
    case SYS_sendmsg: return umvm_names_sender(q) ? 0 : 2;
    case SYS_getsockopt: case SYS_setsockopt:
        return (int)q->data.args[1] == SOL_SOCKET && umvm_of_peers((int)q->data.args[2]) ? 0 : 2;
    case SYS_getrlimit: case SYS_prlimit64:
        if (q->data.nr == SYS_prlimit64 && q->data.args[2])
            return 0;
        return s->watching & UMVM_WATCH_LIMITS || q->data.args[q->data.nr == SYS_prlimit64] == 10 ? 0 : 2;
    }
    long number = umvm_mark(q->pid);
    if (number < 0)
        return 0;
    const struct umvm_creds *own = &s->records[number];
    if (!own->valid)
        return 0;
    int done = 0;
    switch (q->data.nr) {
    case SYS_getuid: done = umvm_give(&asked, own->ids[0]); break;
    case SYS_geteuid: done = umvm_give(&asked, own->ids[1]); break;
    case SYS_getgid: done = umvm_give(&asked, own->ids[4]); break;
    case SYS_getegid: done = umvm_give(&asked, own->ids[5]); break;
    case SYS_getresuid: done = umvm_give_three(&asked, own->ids); break;
    case SYS_getresgid: done = umvm_give_three(&asked, own->ids + 4); break;
    case SYS_getgroups: done = umvm_give_groups(&asked, own); break;
    case SYS_kill: case SYS_tkill: case SYS_tgkill: case SYS_rt_sigqueueinfo: case SYS_rt_tgsigqueueinfo:
        if (!umvm_same(q, number))
            return 0;
        done = umvm_tell(&asked, 0, 0, 1);
        break;
    case SYS_connect: case SYS_listen: case SYS_socketpair: /* what SO_PEERCRED will tell of the caller */
        s->peers[q->pid % UMVM_RECORDS] = (uint64_t)q->pid << 32 | (uint64_t)(number + 1);
        return 2;
    }
    return done;
}

/* The number that a process had when it last connected, listened or made a pair of sockets; −1: not known. */
static long umvm_peer(const struct umvm_identity *s, int pid)
{
    uint64_t known = s->peers ? s->peers[(unsigned)pid % UMVM_RECORDS] : 0;
    return known && known >> 32 == (unsigned)pid ? (long)(known & 0xffffffff) - 1 : -1;
}
#endif
