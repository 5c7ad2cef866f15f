/* What the probes of credentials share: calls by name, and the rest of a sequence in a thread. */
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
    {"prctl", SYS_prctl},
};

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

static void run_in_thread(struct rest *rest)
{
    pthread_t thread;
    pthread_create(&thread, 0, in_thread, rest);
    pthread_join(thread, 0);
}

static long set_groups(int count, const long *a)
{
    uint32_t groups[64];
    for (int i = 0; i < count; i++)
        groups[i] = (uint32_t)a[i];
    return syscall(SYS_setgroups, count, groups);
}

/* The call whose name is the first `length` bytes of a step; -1: there is none. */
static long call_named(const char *step, size_t length, const long *a)
{
    long result = -1;
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++)
        if (strlen(calls[k].name) == length && !strncmp(calls[k].name, step, length))
            result = syscall(calls[k].nr, a[0], a[1], a[2], a[3], a[4]);
    return result;
}

/* Real, effective, saved and file system ids of user and group, and the groups, between the words of a probe. */
static void show_ids(const char *user, const char *group, const char *fs, const char *groups_word)
{
    uint32_t u[3], g[3], groups[64];
    syscall(SYS_getresuid, &u[0], &u[1], &u[2]);
    syscall(SYS_getresgid, &g[0], &g[1], &g[2]);
    printf(" %s %u %u %u %s%ld", user, u[0], u[1], u[2], fs, syscall(SYS_setfsuid, -1));
    printf(" %s %u %u %u %s%ld %s", group, g[0], g[1], g[2], fs, syscall(SYS_setfsgid, -1), groups_word);
    long n = syscall(SYS_getgroups, 64, groups);
    for (long i = 0; i < n; i++)
        printf(" %u", groups[i]);
    if (syscall(SYS_getuid) != u[0] || syscall(SYS_geteuid) != u[1] || syscall(SYS_getgid) != g[0] ||
        syscall(SYS_getegid) != g[1])
        printf(" inconsistent");
}
