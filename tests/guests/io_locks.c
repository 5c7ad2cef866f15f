/* Record locks of two processes that take turns: prints what each attempt gave. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int fd, ro, path, to_child[2], to_parent[2];
static pid_t child;

static void lock(const char *who, int f, int cmd, short type, short whence, long start, long len)
{
    struct flock l = {.l_type = type, .l_whence = whence, .l_start = start, .l_len = len};
    errno = 0;
    int r = fcntl(f, cmd, &l);
    printf("%s cmd %d type %d whence %d %ld+%ld: ", who, cmd, type, whence, start, len);
    if (r < 0)
        printf("%s\n", strerrorname_np(errno));
    else if (cmd == F_GETLK || cmd == F_OFD_GETLK)
        printf("type %d %ld+%ld by %s\n", l.l_type, (long)l.l_start, (long)l.l_len,
               l.l_pid == 0 ? "0" : l.l_pid == -1 ? "-1" : l.l_pid == getppid() ? "parent" : l.l_pid == child ? "child" : "?");
    else
        printf("ok\n");
    fflush(stdout);
}

static void pass(int fds[2], int back[2])
{
    char c = 'x';
    if (write(fds[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
        exit(3);
}

static void in_child(void)
{
    char c;
    if (read(to_child[0], &c, 1) != 1)
        exit(2);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_SET, 15, 1);
    lock("C", fd, F_GETLK, F_WRLCK, SEEK_SET, 0, 100);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_SET, 20, 10);
    lock("C", ro, F_SETLK, F_RDLCK, SEEK_SET, 15, 1);
    lseek(fd, 14, SEEK_SET);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_CUR, 5, 1);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_CUR, 6, 1);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_END, -85, 1);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_END, -80, 1);
    pass(to_parent, to_child);
    lock("C", fd, F_OFD_SETLK, F_WRLCK, SEEK_SET, 40, 1); /* the description is the parent's too */
    int own = open("f", O_RDWR);
    lock("C", own, F_OFD_SETLK, F_WRLCK, SEEK_SET, 40, 1);
    lock("C", own, F_OFD_GETLK, F_WRLCK, SEEK_SET, 40, 1);
    lock("C", own, F_SETLK, F_RDLCK, SEEK_SET, 41, 1);
    lock("C", own, F_GETLK, F_WRLCK, SEEK_SET, 40, 1);
    pass(to_parent, to_child);
    lock("C", fd, F_SETLK, F_WRLCK, SEEK_SET, 200, 1);
    pass(to_parent, to_child);
    alarm(20);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1};
    exit(fcntl(fd, F_SETLKW, &l) < 0 ? errno : 0); /* waits for the parent, who gets the deadlock */
}

int main(void)
{
    char c;
    fd = open("f", O_RDWR | O_CREAT, 0644);
    ro = open("f", O_RDONLY);
    path = open("f", O_PATH);
    if (ftruncate(fd, 100) || pipe(to_child) || pipe(to_parent))
        return 1;
    child = fork();
    if (child == 0)
        in_child();
    lock("P", fd, F_SETLK, F_WRLCK, SEEK_SET, 10, 10);
    lock("P", ro, F_SETLK, F_WRLCK, SEEK_SET, 10, 10);
    lock("P", ro, F_SETLK, F_RDLCK, SEEK_SET, 50, 0);
    lock("P", path, F_SETLK, F_RDLCK, SEEK_SET, 50, 0);
    lock("P", 99, F_SETLK, F_RDLCK, SEEK_SET, 50, 0);
    lock("P", fd, F_SETLK, F_RDLCK, 7, 0, 0);
    lock("P", fd, F_SETLK, 9, SEEK_SET, 0, 0);
    lock("P", fd, F_SETLK, F_RDLCK, SEEK_SET, -1, 1);
    lock("P", fd, F_SETLK, F_RDLCK, SEEK_END, -200, 1);
    lock("P", fd, F_OFD_GETLK, F_RDLCK, SEEK_SET, 0, 1);
    pass(to_child, to_parent);
    lock("P", fd, F_GETLK, F_RDLCK, SEEK_SET, 0, 100);
    lock("P", fd, F_SETLK, F_UNLCK, SEEK_SET, 0, 0);
    lock("P", fd, F_OFD_SETLK, F_WRLCK, SEEK_SET, 40, 1);
    pass(to_child, to_parent);
    lock("P", fd, F_OFD_SETLK, F_UNLCK, SEEK_SET, 0, 0);
    lock("P", fd, F_SETLK, F_WRLCK, SEEK_SET, 201, 1);
    pass(to_child, to_parent);
    c = 'x';
    if (write(to_child[1], &c, 1) != 1)
        return 4;
    usleep(300000);
    alarm(20);
    printf("deadlock\n");
    lock("P", fd, F_SETLKW, F_WRLCK, SEEK_SET, 200, 1);
    lock("P", fd, F_SETLK, F_UNLCK, SEEK_SET, 0, 0);
    int status;
    waitpid(child, &status, 0);
    printf("child %d\n", status);
    return 0;
}
