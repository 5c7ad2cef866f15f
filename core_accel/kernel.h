/* Constants that old kernel headers lack, and the few helpers that are easier in C.
   Mirrors include/uapi/linux/seccomp.h of Linux 6.6. */
#ifndef UMVM_KERNEL_H
#define UMVM_KERNEL_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

/* Takes the next notification. 0, or a negative errno; EINTR and a vanished guest are retried. */
static inline int umvm_receive(int listener, struct seccomp_notif *request)
{
    for (;;) {
        memset(request, 0, sizeof *request);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, request) == 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != ENOENT)
            return -errno;
        struct pollfd p = {listener, POLLIN, 0};
        if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLNVAL)))
            return -EPIPE; /* the last guest of this filter is gone */
    }
}

/* Answers: error is a positive errno or 0. ENOENT (the guest was killed) is not an error. */
static inline int umvm_answer(int listener, uint64_t id, int64_t value, int error, int run)
{
    struct seccomp_notif_resp r;
    memset(&r, 0, sizeof r);
    r.id = id;
    r.val = error ? 0 : value;
    r.error = error ? -error : 0;
    r.flags = run ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0;
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r) == 0)
        return 0;
    return errno == ENOENT ? 0 : -errno;
}

static inline int umvm_addfd(int listener, uint64_t id, int fd, int cloexec, int at)
{
    struct seccomp_notif_addfd a;
    memset(&a, 0, sizeof a);
    a.id = id;
    a.srcfd = fd;
    a.newfd = at < 0 ? 0 : at;
    a.flags = at < 0 ? 0 : SECCOMP_ADDFD_FLAG_SETFD;
    a.newfd_flags = cloexec ? O_CLOEXEC : 0;
    int r = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &a);
    return r < 0 ? -errno : r;
}

enum umvm_verdict_kind { UMVM_RUN, UMVM_VALUE, UMVM_ERROR, UMVM_FD, UMVM_NONE };

struct umvm_verdict {
    int kind;       /* enum umvm_verdict_kind */
    int cloexec;    /* UMVM_FD: of the guest's descriptor */
    int64_t number; /* what the call returns, a positive errno, or a descriptor of ours, which is then closed */
};

/* Tells the kernel what to do with a call. 0 or a negative errno; ENOENT (the guest was killed) is not an error. */
static inline int umvm_conclude(int listener, uint64_t id, const struct umvm_verdict *v)
{
    if (v->kind == UMVM_NONE)
        return 0;
    if (v->kind != UMVM_FD)
        return umvm_answer(listener, id, v->number, v->kind == UMVM_ERROR ? v->number : 0, v->kind == UMVM_RUN);
    int n = umvm_addfd(listener, id, (int)v->number, v->cloexec, -1);
    close((int)v->number); /* before the guest goes on: a file that we had open for writing could not be executed */
    return n == -ENOENT ? 0 : umvm_answer(listener, id, n, n < 0 ? -n : 0, 0);
}

/* A pidfd of a thread, or of the process it leads on kernels before 6.9 (PIDFD_THREAD). */
static inline long umvm_pidfd(int tid)
{
    long r = syscall(434, tid, O_EXCL);
    if (r < 0 && errno == EINVAL)
        r = syscall(434, tid, 0);
    return r < 0 ? -errno : r;
}

static inline long umvm_pidfd_getfd(int pidfd, int fd)
{
    long r = syscall(438, pidfd, fd, 0);
    return r < 0 ? -errno : r;
}

static inline int umvm_alive(int listener, uint64_t id)
{
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

/* Copies guest memory; short where a page is missing. Returns bytes, or a negative errno if none. */
static inline long umvm_copy(int tid, void *here, uint64_t there, size_t size, int to_guest)
{
    struct iovec l = {here, size}, r = {(void *)there, size};
    long n = to_guest ? process_vm_writev(tid, &l, 1, &r, 1, 0) : process_vm_readv(tid, &l, 1, &r, 1, 0);
    return n < 0 ? -errno : n;
}

/* Reads a string page by page, so that one that ends just before a hole is found.
   Length without NUL, -EFAULT, -EPERM, or -ENAMETOOLONG when size bytes hold no NUL. */
static inline long umvm_string(int tid, char *out, uint64_t addr, size_t size)
{
    size_t got = 0;
    while (got < size) {
        size_t n = 4096 - ((addr + got) & 4095);
        if (got == 0 && n > 256)
            n = 256; /* most paths are short */
        if (n > size - got)
            n = size - got;
        long r = umvm_copy(tid, out + got, addr + got, n, 0);
        if (r <= 0)
            return r == -EPERM ? -EPERM : -EFAULT; /* EPERM: the guest hides its memory */
        char *end = memchr(out + got, 0, r);
        if (end)
            return end - out;
        got += r;
    }
    return -ENAMETOOLONG;
}

/* Identity of a guest descriptor: 1 and its device and inode, or 0 when it isn't open. */
static inline int umvm_identify(int tid, int fd, uint64_t *dev, uint64_t *ino)
{
    char name[64];
    struct stat st;
    snprintf(name, sizeof name, "/proc/%d/fd/%d", tid, fd);
    if (fd < 0 || stat(name, &st) < 0)
        return 0;
    *dev = st.st_dev;
    *ino = st.st_ino;
    return 1;
}

static inline uint64_t umvm_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Reads the start of a file in /proc/TID; empty if the thread is gone. */
static inline void umvm_read_proc(int tid, const char *file, char *text, size_t size)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/%s", tid, file);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    long n = fd < 0 ? 0 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
}

/* The soft limit RLIMIT_LOCKS of a process, which holds its mark. 0, or -ESRCH. Another user's, which prlimit(2) tells
   with CAP_SYS_RESOURCE only, is in /proc/TID/limits. */
static inline int umvm_lock_limit(int tid, uint64_t *soft)
{
    static const char row[] = "\nMax file locks ";
    char text[2048];
    struct rlimit now;
    if (prlimit(tid, (enum __rlimit_resource)10 /* RLIMIT_LOCKS */, NULL, &now) == 0) {
        *soft = now.rlim_cur;
        return 0;
    }
    if (errno != EPERM)
        return -errno;
    umvm_read_proc(tid, "limits", text, sizeof text);
    const char *at = strstr(text, row);
    if (!at)
        return -ESRCH;
    at += sizeof row - 1;
    at += strspn(at, " ");
    *soft = *at == 'u' ? RLIM_INFINITY : strtoull(at, NULL, 10);
    return 0;
}
#endif
