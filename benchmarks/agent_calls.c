/* The calls that benchmarks/agent.py times: `agent_calls ROUNDS` prints a line "NAME nanoseconds" for each.
   Through libc's own wrappers, since it is their call sites that matter. Medians over batches. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static struct stat st;
static struct statx stx;
static int file, null, dir;
static char buffer[4096];

static void c_getuid(void) { getuid(); }
static void c_read(void) { if (pread(file, buffer, 512, 0) != 512) exit(1); }
static void c_write(void) { if (write(null, buffer, 512) != 512) exit(2); }
static void c_fstat(void) { if (fstat(file, &st)) exit(3); }
static void c_stat(void) { if (stat("/usr/bin/env", &st)) exit(4); }
static void c_lstat(void) { if (lstat("/usr/bin/env", &st)) exit(5); }
static void c_missing(void) { if (stat("/usr/include/no/such.h", &st) == 0) exit(6); }
static void c_link(void) { if (stat("/bin/env", &st)) exit(7); }
static void c_deep(void) { if (stat("/usr/lib/x86_64-linux-gnu/libc.so.6", &st)) exit(8); }
static void c_relative(void) { if (stat("bin/env", &st)) exit(9); }
static void c_plain(void) { if (stat("bin", &st)) exit(10); }
static void c_at(void) { if (fstatat(dir, "env", &st, AT_SYMLINK_NOFOLLOW)) exit(11); }
static void c_statx(void) { if (statx(AT_FDCWD, "/usr/bin/env", 0, STATX_BASIC_STATS, &stx)) exit(12); }
static void c_access(void) { if (access("/usr/bin/env", X_OK)) exit(13); }
static void c_open(void) { int f = open("/usr/bin/env", O_RDONLY); if (f < 0) exit(14); close(f); }
static void c_readlink(void) { if (readlink("/usr/bin/awk", buffer, sizeof buffer) < 0) exit(15); }
static void c_list(void)
{
    DIR *d = opendir("/usr/bin");
    while (readdir(d))
        ;
    closedir(d);
}
static void run(const char *program)
{
    char *argv[] = {(char *)program, "x", 0};
    pid_t p = vfork();
    if (p == 0) {
        execve(program, argv, environ);
        _exit(127);
    }
    int status;
    waitpid(p, &status, 0);
    if (status)
        exit(16);
}
static void c_exec(void) { run("/bin/true"); }
static void c_fork(void)
{
    char *argv[] = {"/bin/true", 0};
    pid_t p = fork();
    if (p == 0) {
        execve(argv[0], argv, environ);
        _exit(127);
    }
    waitpid(p, 0, 0);
}

static const struct {
    const char *name;
    void (*call)(void);
    int count;
} calls[] = {
    {"getuid", c_getuid, 2000}, {"pread", c_read, 1000}, {"write", c_write, 1000}, {"fstat", c_fstat, 1000},
    {"stat", c_stat, 1000}, {"lstat", c_lstat, 1000}, {"stat-missing", c_missing, 1000}, {"stat-link", c_link, 1000},
    {"stat-deep", c_deep, 1000}, {"stat-relative", c_relative, 1000}, {"stat-plain", c_plain, 1000}, {"fstatat", c_at, 1000},
    {"statx", c_statx, 1000}, {"access", c_access, 1000}, {"open+close", c_open, 1000}, {"readlink", c_readlink, 1000},
    {"readdir", c_list, 5}, {"vfork+exec", c_exec, 10}, {"fork+exec", c_fork, 10},
};

static int compare(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 11;
    double *times = calloc(rounds, sizeof *times);
    if (chdir("/usr") || (file = open("/usr/bin/env", O_RDONLY)) < 0 || (null = open("/dev/null", O_WRONLY)) < 0 ||
        (dir = open("/usr/bin", O_RDONLY | O_DIRECTORY)) < 0)
        return 1;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (argc > 2 && strcmp(argv[2], calls[i].name))
            continue;
        for (int k = 0; k < rounds; k++) {
            struct timespec a, b;
            clock_gettime(CLOCK_MONOTONIC, &a);
            for (int n = 0; n < calls[i].count; n++)
                calls[i].call();
            clock_gettime(CLOCK_MONOTONIC, &b);
            times[k] = ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / calls[i].count;
        }
        qsort(times, rounds, sizeof *times, compare);
        printf("%s %.1f\n", calls[i].name, times[rounds / 2]);
    }
    return 0;
}
