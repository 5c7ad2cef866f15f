/* Calls that the supervisor runs with changed arguments: chdir("/virtual") leads to /usr, execve("/script") to a shell
   with other arguments. Modes: storm THREADS CALLS, vfork COUNT, exec WORDS, big CALLS, stack. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile long hits;
static int calls;

/* Overwrites what lies below the stack pointer, where the supervisor may have put its bytes. */
static void on_alarm(int number)
{
    char big[3000], where[100];
    (void)number;
    memset(big, 0x55, sizeof big);
    hits++;
    if (!getcwd(where, sizeof where) || big[100] != 0x55)
        abort();
}

static void *change(void *unused)
{
    char where[200];
    for (int i = 0; i < calls; i++) {
        if (chdir("/virtual") < 0)
            perror("chdir"), exit(1);
        if (!getcwd(where, sizeof where) || strcmp(where, "/usr"))
            printf("in %s\n", where), exit(1);
        if (chdir("/virtual/none") == 0 || errno != ENOENT)
            printf("errno %d\n", errno), exit(1);
    }
    return unused;
}

static int storm(int threads, int count)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 400}, {0, 400}};
    pthread_t t[64];
    calls = count;
    sigaction(SIGALRM, &action, 0);
    setitimer(ITIMER_REAL, &often, 0);
    for (int i = 0; i < threads; i++)
        pthread_create(t + i, 0, change, 0);
    for (int i = 0; i < threads; i++)
        pthread_join(t[i], 0);
    printf("done %d\n", hits > 0);
    return 0;
}

/* The child changes its directory and executes; the parent, who shares its memory, notices neither. */
static int with_vfork(int count)
{
    char here[200], there[200], *argv[] = {"given0", "given1", 0}, *env[] = {"A=b", 0};
    if (!getcwd(here, sizeof here))
        return 1;
    for (int i = 0; i < count; i++) {
        pid_t pid = vfork();
        if (pid == 0) {
            if (chdir("/virtual") == 0)
                execve("/script", argv, env);
            _exit(7);
        }
        int status = -1;
        if (waitpid(pid, &status, 0) != pid || status)
            printf("status %x\n", status);
    }
    printf("unmoved %d\n", getcwd(there, sizeof there) && !strcmp(here, there));
    return 0;
}

static int with_words(int words)
{
    char **argv = calloc(words + 1, sizeof *argv), *env[] = {"A=b", 0};
    for (int i = 0; i < words; i++)
        if (asprintf(argv + i, "w%d", i) < 0)
            return 1;
    execve("/script", argv, env);
    perror("execve");
    return 1;
}

static int mappings(void)
{
    FILE *f = fopen("/proc/self/maps", "r");
    int count = 0, c;
    while ((c = getc(f)) != EOF)
        count += c == '\n';
    fclose(f);
    return count;
}

/* Texts that are too big for below the stack. */
static int big(int count)
{
    char where[200];
    int before = mappings();
    for (int i = 0; i < count; i++)
        if (chdir("/big") < 0 || !getcwd(where, sizeof where) || strcmp(where, "/usr"))
            printf("errno %d\n", errno), exit(1);
    printf("big %d\n", mappings() - before < 10);
    return 0;
}

/* A stack with very little room, as goroutines have: what lies above the lowest 1000 bytes stays as it is. */
static char small[4096] __attribute__((aligned(4096)));
static long result;

static void on_small_stack(void)
{
    register uint64_t saved __asm__("r12");
    __asm__ volatile("mov %%rsp, %0\n mov %2, %%rsp\n syscall\n mov %0, %%rsp"
                     : "=&r"(saved), "=a"(result)
                     : "r"(small + 1100), "a"((long)SYS_chdir), "D"("/virtual")
                     : "rcx", "r11", "memory");
}

static int on_stack(void)
{
    memset(small, 0x33, sizeof small);
    on_small_stack();
    for (size_t i = 1100 - 128; i < sizeof small; i++) /* the red zone too */
        if (small[i] != 0x33)
            return printf("byte %zu changed\n", i), 1;
    printf("stack %ld\n", result);
    return 0;
}

int main(int argc, char **argv)
{
    int n = argc > 2 ? atoi(argv[2]) : 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (!strcmp(argv[1], "storm"))
        return storm(n, atoi(argv[3]));
    if (!strcmp(argv[1], "vfork"))
        return with_vfork(n);
    if (!strcmp(argv[1], "exec"))
        return with_words(n);
    if (!strcmp(argv[1], "big"))
        return big(n);
    return on_stack();
}
