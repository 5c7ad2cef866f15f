/* Signals with handlers that don't restart calls: what never waits must not be interrupted, what waits must be.
   Usage: signal_storm storm FILE | signal_storm wait */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 1500 };
static volatile sig_atomic_t seen[2];
static int failures;

static void on_signal(int number)
{
    struct stat s;
    int saved = errno;
    seen[number == SIGUSR1] = 1;
    if (stat("/", &s)) /* calls in a handler, which the other signal may interrupt */
        failures++;
    errno = saved;
}

static void handle(int number, int flags)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = flags};
    sigaction(number, &a, 0);
}

static void expect(int good, const char *what)
{
    if (!good && failures++ < 20)
        printf("%s: %s\n", what, strerror(errno));
}

static void timers(long nanoseconds)
{
    struct itimerval real = {{0, nanoseconds / 1000}, {0, nanoseconds / 1000}};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec other = {{0, nanoseconds * 7 / 10}, {0, nanoseconds * 7 / 10}};
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &other, 0);
    setitimer(ITIMER_REAL, &real, 0);
}

static void *storm(void *name)
{
    char other[4096], byte;
    struct stat s;
    snprintf(other, sizeof other, "%s.%lx", (char *)name, (long)pthread_self());
    for (int i = 0; i < ROUNDS; i++) {
        int fd = open(name, O_RDWR);
        expect(fd >= 0, "open");
        expect(pread(fd, &byte, 1, 0) == 1, "pread");
        expect(pwrite(fd, &byte, 1, 0) == 1, "pwrite");
        expect(lseek(fd, 0, SEEK_SET) == 0, "lseek");
        expect(fstat(fd, &s) == 0, "fstat");
        expect(fcntl(fd, F_GETFL) >= 0, "fcntl");
        expect(close(fd) == 0, "close");
        expect(stat(name, &s) == 0, "stat");
        expect(access(name, R_OK) == 0, "access");
        if (i % 16)
            continue;
        fd = open(other, O_CREAT | O_EXCL | O_WRONLY, 0600);
        expect(fd >= 0 && close(fd) == 0, "create");
        expect(unlink(other) == 0, "unlink");
        expect(mkdir(other, 0700) == 0, "mkdir");
        expect(rmdir(other) == 0, "rmdir");
    }
    return 0;
}

/* Each of these waits until a signal comes. */
static void interrupted(int result, const char *what)
{
    printf("%s: %d %s\n", what, result, result < 0 ? strerror(errno) : "");
}

static void wait_for_signals(void)
{
    int pipes[2], go[2], fd = open("lock", O_CREAT | O_RDWR, 0600);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char byte;
    expect(!pipe(pipes) && !pipe(go) && !mkfifo("fifo", 0600), "prepare");
    pid_t child = fork();
    if (!child) {
        int own = open("lock", O_RDWR);
        expect(!flock(own, LOCK_EX) && !fcntl(own, F_SETLKW, &whole), "lock");
        expect(write(go[1], "x", 1) == 1, "go");
        sleep(30);
        _exit(0);
    }
    expect(read(go[0], &byte, 1) == 1, "ready");
    struct itimerval often = {{0, 50000}, {0, 50000}};
    setitimer(ITIMER_REAL, &often, 0);
    interrupted(read(pipes[0], &byte, 1), "read");
    interrupted(open("fifo", O_RDONLY), "open");
    interrupted(flock(fd, LOCK_EX), "flock");
    interrupted(fcntl(fd, F_SETLKW, &whole), "fcntl");
    interrupted(wait(0), "wait");
    kill(child, SIGKILL);
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int storming = argc == 3 && !strcmp(argv[1], "storm");
    handle(SIGALRM, 0);
    handle(SIGUSR1, storming ? SA_RESTART : 0);
    if (!storming) {
        wait_for_signals();
        return failures;
    }
    timers(400000);
    pthread_create(&thread, 0, storm, argv[2]);
    storm(argv[2]);
    pthread_join(thread, 0);
    printf("%d failures, signals %d %d\n", failures, seen[0], seen[1]);
    return failures != 0;
}
