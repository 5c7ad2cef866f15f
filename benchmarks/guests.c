/* The loops that benchmarks/calls.py times: `guests NAME COUNT [PATH]` prints nanoseconds per call. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *path;
static int fd;
static char buffer[4096];
static struct stat st;

static void nothing(void) { syscall(SYS_getppid); }
static void stat_it(void) { syscall(SYS_newfstatat, AT_FDCWD, path, &st, 0); }
static void open_close(void) { close(open(path, O_RDONLY)); }
static void read_it(void) { if (pread(fd, buffer, 512, 0) < 0) exit(1); }
static void write_it(void) { if (pwrite(fd, buffer, 512, 0) < 0) exit(1); }
static void null_write(void) { if (write(fd, buffer, 1) < 0) exit(1); }
static void unclaimed(void) { syscall(SYS_sync_file_range, -1, 0, 0, 0); } /* trapped, EBADF at once */
static void fork_exec(void)
{
    pid_t p = vfork();
    if (p == 0) {
        execl(path, path, (char *)0);
        _exit(127);
    }
    waitpid(p, 0, 0);
}

static const struct { const char *name; void (*call)(void); int flags; } loops[] = {
    {"getppid", nothing, 0},       {"trapped", unclaimed, 0},      {"stat", stat_it, 0},
    {"open+close", open_close, 0}, {"pread", read_it, O_RDONLY + 1}, {"pwrite", write_it, O_RDWR + 1},
    {"write", null_write, O_WRONLY + 1}, {"vfork+exec", fork_exec, 0},
};

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    path = argc > 3 ? argv[3] : "/";
    for (size_t i = 0; i < sizeof loops / sizeof *loops; i++) {
        if (strcmp(loops[i].name, argv[1]))
            continue;
        if (loops[i].flags && (fd = open(path, loops[i].flags - 1)) < 0)
            return perror(path), 1;
        struct timespec a, b;
        int n = atoi(argv[2]);
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int k = 0; k < n; k++)
            loops[i].call();
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%.1f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n);
        return 0;
    }
    return 2;
}
