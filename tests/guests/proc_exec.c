/* Executes programs by every call there is. Modes: see main. Prints what happened; also what it was started with. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char **environment;

/* What this process was started as: `proc_exec show …`. */
static int show(int argc, char **argv)
{
    char link[4096], name[32] = "";
    ssize_t n = readlink("/proc/self/exe", link, sizeof link - 1);
    link[n < 0 ? 0 : n] = 0;
    prctl(PR_GET_NAME, name);
    char *slash = strrchr(link, '/');
    printf("argv0=%s argc=%d last=%s exe=%s comm=%s secure=%lu\n", argv[0], argc, argv[argc - 1], slash ? slash + 1 : link,
           name, getauxval(AT_SECURE));
    return 0;
}

static int in_child(int (*run)(void *), void *what)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int error = run(what);
        printf("%s\n", strerror(error));
        fflush(stdout);
        _exit(99);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    printf("  status %x\n", status);
    return status;
}

static char *arguments[] = {"zeroth", "show", "last", 0};

static int by_path(void *path) { execve(path, arguments, environment); return errno; }

static int by_descriptor(void *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    return errno;
}

static int by_path_descriptor(void *path)
{
    int fd = open(path, O_PATH);
    syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    return errno;
}

static int by_directory(void *path)
{
    int fd = open(".", O_RDONLY | O_DIRECTORY);
    if (chdir("/"))
        return errno;
    syscall(SYS_execveat, fd, path, arguments, environment, 0);
    return errno;
}

static int no_follow(void *path)
{
    syscall(SYS_execveat, AT_FDCWD, path, arguments, environment, AT_SYMLINK_NOFOLLOW);
    return errno;
}

static int bad_flags(void *path)
{
    syscall(SYS_execveat, AT_FDCWD, path, arguments, environment, 0x40000);
    return errno;
}

static int empty(void *path) { (void)path; syscall(SYS_execveat, AT_FDCWD, "", arguments, environment, 0); return errno; }

static int fd_path(void *path)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", open(path, O_RDONLY));
    execve(name, arguments, environment);
    return errno;
}

static void *from_thread(void *path) { execve(path, arguments, environment); perror("thread"); return 0; }

static int by_thread(void *path)
{
    pthread_t t;
    pthread_create(&t, 0, from_thread, path);
    pthread_join(t, 0);
    return errno;
}

static int by_vfork(void *path)
{
    char where[4096];
    pid_t pid = vfork();
    if (pid == 0) {
        if (!chdir("sub"))
            execve(path, arguments, environment);
        _exit(77);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    printf("vfork %x, still in %s\n", status, strrchr(getcwd(where, sizeof where), '/'));
    fflush(stdout);
    return 0;
}

static int by_spawn(void *path)
{
    pid_t pid;
    int status = -1;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 7, "spawned", O_WRONLY | O_CREAT, 0600);
    posix_spawn_file_actions_adddup2(&actions, 7, 1);
    posix_spawn_file_actions_addchdir_np(&actions, "sub");
    int error = posix_spawn(&pid, path, &actions, 0, arguments, environment);
    if (error)
        return error;
    waitpid(pid, &status, 0);
    printf("spawn %x %d\n", status, access("spawned", F_OK));
    fflush(stdout);
    return 0;
}

/* No arguments at all, null pointers and bad ones; the kernel gives an empty argv[0] since 5.18. */
static int odd(void *path)
{
    char *none[] = {0};
    syscall(SYS_execve, path, 8, environment);
    printf("%s\n", strerror(errno));
    syscall(SYS_execve, path, arguments, 8);
    printf("%s\n", strerror(errno));
    syscall(SYS_execve, 8, arguments, environment);
    printf("%s\n", strerror(errno));
    syscall(SYS_execve, "", arguments, environment);
    printf("%s\n", strerror(errno));
    fflush(stdout);
    syscall(SYS_execve, path, none, 0);
    return errno;
}

static int many(void *path)
{
    enum { COUNT = 20000 };
    static char *list[COUNT + 1], text[COUNT][8];
    for (int i = 0; i < COUNT; i++) {
        snprintf(text[i], 8, "%d", i);
        list[i] = text[i];
    }
    list[1] = "show";
    execve(path, list, environment);
    return errno;
}

static int written(void *path)
{
    int fd = open(path, O_WRONLY);
    execve(path, arguments, environment);
    int error = errno;
    close(fd);
    return error;
}

static int closed_on_exec(void *path)
{
    int kept = open("kept", O_RDWR | O_CREAT, 0600), shut = open("shut", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char text[64];
    if (write(kept, "kept", 4) != 4 || write(shut, "shut", 4) != 4)
        return errno;
    snprintf(text, sizeof text, "/bin/echo more >&%d; cat kept shut; : >&%d", kept, shut);
    char *list[] = {"sh", "-c", text, path, 0};
    fflush(stdout);
    execve("/bin/sh", list, environment);
    return errno;
}

static const struct { const char *name; int (*run)(void *); } WAYS[] = {
    {"path", by_path}, {"descriptor", by_descriptor}, {"O_PATH", by_path_descriptor}, {"directory", by_directory},
    {"nofollow", no_follow}, {"flags", bad_flags}, {"empty", empty}, {"fd", fd_path}, {"thread", by_thread},
    {"vfork", by_vfork}, {"spawn", by_spawn}, {"odd", odd}, {"many", many}, {"written", written}, {"cloexec", closed_on_exec},
};

int main(int argc, char **argv, char **env)
{
    environment = env;
    if (argc < 2 || !strcmp(argv[1], "show"))
        return show(argc, argv);
    for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++)
        for (int a = 2; a < argc; a++)
            if (!strcmp(argv[1], WAYS[i].name) || !strcmp(argv[1], "all")) {
                printf("%s %s: ", WAYS[i].name, argv[a]);
                in_child(WAYS[i].run, argv[a]);
            }
    return 0;
}
