/* Makes the calls on credentials that its arguments name, and shows what came of each.

   An argument is CALL:NUMBER,…, as setresuid:33,-1,0. `setgroups:4,5` takes the groups themselves;
   `capset:E,P,I` sets of capabilities in octal, `keep:1` is
   PR_SET_KEEPCAPS, `fork:`, `thread:` and `exec:` go on in a child, a thread,
   or after execve.
   System calls are made directly: the C library would make them in every thread. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct caps_header {
    uint32_t version;
    int pid;
};
struct caps_data {
    uint32_t effective, permitted, inheritable;
};

static const struct {
    const char *name;
    long nr;
} calls[] = {
    {"setuid", SYS_setuid},       {"setgid", SYS_setgid},       {"setreuid", SYS_setreuid},
    {"setregid", SYS_setregid},   {"setresuid", SYS_setresuid}, {"setresgid", SYS_setresgid},
    {"setfsuid", SYS_setfsuid},   {"setfsgid", SYS_setfsgid},   {"getgroups", SYS_getgroups},
};

/* The capabilities shown: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETPCAP. A container
   may lack others. */
static const uint32_t shown = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8;

static void show(void)
{
    uint32_t u[3], g[3], groups[64];
    struct caps_header header = {0x20080522, 0};
    struct caps_data data[2];
    syscall(SYS_getresuid, &u[0], &u[1], &u[2]);
    syscall(SYS_getresgid, &g[0], &g[1], &g[2]);
    printf(" uid %u %u %u fs %ld", u[0], u[1], u[2], syscall(SYS_setfsuid, -1));
    printf(" gid %u %u %u fs %ld groups", g[0], g[1], g[2], syscall(SYS_setfsgid, -1));
    long n = syscall(SYS_getgroups, 64, groups);
    for (long i = 0; i < n; i++)
        printf(" %u", groups[i]);
    if (syscall(SYS_getuid) != u[0] || syscall(SYS_geteuid) != u[1] || syscall(SYS_getgid) != g[0] ||
        syscall(SYS_getegid) != g[1])
        printf(" inconsistent");
    syscall(SYS_capget, &header, data);
    printf(" caps %x %x %x\n", data[0].effective & shown, data[0].permitted & shown, data[0].inheritable & shown);
    fflush(stdout);
}

static void run(int count, char **steps);

struct rest {
    int count;
    char **steps;
};

static void *in_thread(void *arg)
{
    struct rest *rest = arg;
    run(rest->count, rest->steps);
    return 0;
}

static long capset(const long *a)
{
    struct caps_header header = {0x20080522, 0};
    struct caps_data data[2];
    memset(data, 0, sizeof data);
    data[0].effective = a[0], data[0].permitted = a[1], data[0].inheritable = a[2];
    return syscall(SYS_capset, &header, data);
}

static void run(int count, char **steps)
{
    for (int i = 0; i < count; i++) {
        char *colon = strchr(steps[i], ':'), *at = colon + 1;
        size_t length = colon - steps[i];
        long a[64] = {0}, result = -1;
        int n = 0, base = strncmp(steps[i], "capset", length) ? 10 : 8;
        while (*at && n < 64) {
            a[n++] = strtol(at, &at, base);
            at += *at == ',';
        }
        struct rest rest = {count - i - 1, steps + i + 1};
        if (!strncmp(steps[i], "fork:", 5)) {
            fflush(stdout);
            if (fork() == 0) {
                run(rest.count, rest.steps);
                _exit(0);
            }
            wait(0);
            return;
        }
        if (!strncmp(steps[i], "thread:", 7)) {
            pthread_t thread;
            pthread_create(&thread, 0, in_thread, &rest);
            pthread_join(thread, 0);
            return;
        }
        if (!strncmp(steps[i], "exec:", 5)) {
            execv("/proc/self/exe", steps + i);
            return;
        }
        errno = 0;
        if (!strncmp(steps[i], "setgroups", length)) {
            uint32_t groups[64];
            for (int k = 0; k < n; k++)
                groups[k] = a[k];
            result = syscall(SYS_setgroups, n, groups);
        } else if (!strncmp(steps[i], "capset", length))
            result = capset(a);
        else if (!strncmp(steps[i], "keep", length))
            result = prctl(PR_SET_KEEPCAPS, a[0], 0, 0, 0);
        else
            for (size_t k = 0; k < sizeof calls / sizeof *calls; k++)
                if (strlen(calls[k].name) == length && !strncmp(calls[k].name, steps[i], length))
                    result = syscall(calls[k].nr, a[0], a[1], a[2]);
        printf("%s = %ld errno %d:", steps[i], result, errno);
        show();
    }
}

int main(int argc, char **argv)
{
    printf("start:");
    show();
    run(argc - 1, argv + 1);
    return 0;
}
