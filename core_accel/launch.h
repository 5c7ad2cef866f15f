/* Starts the first guest, and watches the supervisor. What runs between fork and exec is async-signal-safe. */
#ifndef UMVM_LAUNCH_H
#define UMVM_LAUNCH_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kernel.h"
#include <ftw.h>
#include <sys/resource.h>

struct umvm_start {
    const void *program;     /* struct sock_filter[] */
    int instructions;
    int sock;                /* our end; carries our pid and the listener's number, then "go" back, then an errno */
    int other;               /* the parent's end, closed here, or −1 */
    uint64_t ignored;        /* bit s−1: signal s stays ignored */
    uint64_t open_files[2];  /* RLIMIT_NOFILE to restore: soft, hard */
    const char *cwd;         /* chdir there inside the view, or NULL */
    char *const *paths;      /* candidates to execute */
    char *const *argv;
    char *const *envp;
};

/* Installs the filter in this process; the listener, or a negative errno. */
static int umvm_install(const void *program, int instructions)
{
    struct sock_fprog p = {(unsigned short)instructions, (struct sock_filter *)program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                     SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &p);
    if (fd < 0 && errno == EINVAL) /* before Linux 5.19 */
        fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &p);
    return fd < 0 ? -errno : fd;
}

static int umvm_execute(const struct umvm_start *s)
{
    int found = ENOENT;
    if (s->cwd && chdir(s->cwd) < 0)
        return -errno; /* negative: the directory's fault */
    for (char *const *p = s->paths; *p; p++) {
        execve(*p, s->argv, s->envp);
        if (errno == EACCES)
            found = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR)
            return errno;
    }
    return found;
}

static void umvm_child(const struct umvm_start *s)
{
    if (s->other >= 0)
        close(s->other);
    struct sigaction d;
    memset(&d, 0, sizeof d);
    for (int n = 1; n < 65; n++) {
        d.sa_handler = s->ignored >> (n - 1) & 1 ? SIG_IGN : SIG_DFL;
        sigaction(n, &d, 0);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, 0);
    struct rlimit files = {s->open_files[0], s->open_files[1]};
    if (files.rlim_max)
        setrlimit(RLIMIT_NOFILE, &files);
    int started[2] = {getpid(), umvm_install(s->program, s->instructions)}, error = EPIPE;
    char go;
    /* from here on only calls that the filter lets pass, until somebody listens; send is sendto without an address */
    send(s->sock, started, sizeof started, MSG_NOSIGNAL);
    if (started[1] >= 0 && recv(s->sock, &go, 1, 0) == 1) {
        close(started[1]);
        error = umvm_execute(s);
    }
    send(s->sock, &error, sizeof error, MSG_NOSIGNAL);
    _exit(error == ENOENT ? 127 : 126);
}

/* Waits for our child `guest`, passing signals that somebody sent us on to it. All signals are blocked here. Stops when
   the guest, in our job, is stopped. Returns its wait status. */
static int umvm_watch(pid_t guest)
{
    sigset_t all;
    sigfillset(&all);
    for (;;) {
        int status;
        pid_t p;
        while ((p = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
            if (p == guest && !WIFSTOPPED(status))
                return status;
            if (p == guest && getpgid(p) == getpgrp())
                raise(SIGSTOP); /* the shell should see its job stop */
        }
        siginfo_t info;
        int s = sigwaitinfo(&all, &info);
        if (s > 0 && s != SIGCHLD && info.si_code <= 0)
            kill(guest, s);
    }
}

/* --- init: parent of the first guest and of orphans, child of the supervisor ------------------------------------ */

struct umvm_shared { /* in memory that supervisor and init share */
    volatile int guest;  /* the first guest's pid, 0 before and after */
    char paths[4000];    /* what to delete should the supervisor be killed: strings, then an empty one */
};

struct umvm_event { int what, value; }; /* 'E': the first guest ended, wait status · 'Z': no guest is left */

static int umvm_delete_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st, (void)type, (void)f;
    remove(path);
    return 0;
}

/* A child of init ended: if it is the first guest, the supervisor is told. */
static void umvm_reaped(struct umvm_shared *shared, int events, pid_t pid, int status)
{
    if (pid != shared->guest)
        return;
    struct umvm_event e = {'E', status};
    shared->guest = 0;
    if (write(events, &e, sizeof e) < 0)
        return; /* the supervisor is gone, as its death signal will tell */
}

/* Kills our children until none is left: theirs become ours as we are a subreaper. */
static void umvm_kill_all(struct umvm_shared *shared, int events)
{
    char name[64], text[4096];
    snprintf(name, sizeof name, "/proc/self/task/%d/children", getpid());
    for (;;) {
        int fd = open(name, O_RDONLY | O_CLOEXEC), status;
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        if (fd >= 0)
            close(fd);
        text[n > 0 ? n : 0] = 0;
        for (char *p = text, *end; *p; p = end) {
            long pid = strtol(p, &end, 10);
            if (end == p)
                break;
            kill(pid, SIGKILL);
        }
        pid_t pid = waitpid(-1, &status, 0);
        if (pid < 0 && errno == ECHILD)
            return;
        umvm_reaped(shared, events, pid, status);
    }
}

/* SIGUSR1: the supervisor died (parent death signal) · SIGUSR2: it wants all guests ended. */
static void umvm_init(const struct umvm_start *s, struct umvm_shared *shared, int events)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0);
    prctl(PR_SET_NAME, "umvm-init", 0, 0, 0);
    pid_t guest = fork();
    if (guest == 0) {
        close(events);
        shared->guest = getpid(); /* before the supervisor hears of us, and looks */
        umvm_child(s);
    }
    close(s->sock);
    if (s->other >= 0)
        close(s->other);
    shared->guest = guest;
    for (;;) {
        int status;
        pid_t p;
        while ((p = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
            if (!WIFSTOPPED(status))
                umvm_reaped(shared, events, p, status);
            else if (p == shared->guest && getpgid(p) == getpgrp())
                kill(getppid(), SIGSTOP); /* the shell should see its job stop */
        }
        if (p < 0 && errno == ECHILD) {
            struct umvm_event e = {'Z', 0};
            _exit(write(events, &e, sizeof e) < 0);
        }
        siginfo_t info;
        int got = sigwaitinfo(&all, &info);
        if (got == SIGUSR2)
            umvm_kill_all(shared, events);
        if (got == SIGUSR1) {
            umvm_kill_all(shared, events);
            for (char *path = shared->paths; *path; path += strlen(path) + 1)
                if (path[strlen(path) - 1] == '/')
                    rmdir(path);
                else
                    nftw(path, umvm_delete_one, 16, FTW_DEPTH | FTW_PHYS);
            _exit(1);
        }
    }
}
#endif
