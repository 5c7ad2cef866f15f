/* Hard cases for the agent: each is run natively and in a VM with agent, and must print the same.
   `agent_cases NAME`. Calls go through libc, whose sites are patched, or are made right here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static struct stat st;
static volatile long hits, wrong;
#define CHECK(what)                                            \
    do {                                                       \
        if (!(what))                                           \
            printf("line %d: %s (errno %d)\n", __LINE__, #what, errno), exit(1); \
    } while (0)

static void calls(void)
{
    struct stat own;
    char text[300];
    CHECK(stat("/usr/bin/env", &own) == 0 && S_ISREG(own.st_mode));
    CHECK(stat("/bin/no/such", &own) == -1 && errno == ENOENT);
    int fd = open("/etc/passwd", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, 10) == 10 && close(fd) == 0);
    CHECK(access("/etc/passwd", R_OK) == 0);
    CHECK(getcwd(text, sizeof text) != 0);
    CHECK(stat(".", &own) == 0 && S_ISDIR(own.st_mode));
    CHECK(getuid() == geteuid());
}

static void on_alarm(int s)
{
    int saved = errno;
    struct stat own;
    (void)s;
    hits++;
    if (stat("/usr/bin/env", &own) || lstat("/proc/self/exe", &own) || access("/nonexistent", F_OK) == 0)
        wrong++;
    errno = saved;
}

static void ticks(int usec, int flags, int on_own_stack)
{
    static char stack[65536];
    stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = flags | (on_own_stack ? SA_ONSTACK : 0)};
    if (on_own_stack)
        sigaltstack(&ss, 0);
    sigaction(SIGALRM, &sa, 0);
    struct itimerval it = {{0, usec}, {0, usec}};
    setitimer(ITIMER_REAL, &it, 0);
}

static void stop_ticks(void)
{
    struct itimerval it = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &it, 0);
}

static void storm(void)
{
    for (int own = 0; own < 2; own++) {
        ticks(150, SA_RESTART, own);
        for (int i = 0; i < 1500; i++)
            calls();
        stop_ticks();
    }
    CHECK(hits > 10);
    printf("wrong %ld\n", wrong);
}

static void *late_writer(void *fd)
{
    usleep(60000);
    CHECK(write(*(int *)fd, "x", 1) == 1);
    return 0;
}

static void interrupted(void)
{
    int p[2];
    char c;
    pthread_t t;
    CHECK(pipe(p) == 0);
    ticks(20000, 0, 0);
    CHECK(read(p[0], &c, 1) == -1);
    printf("without restart: %s\n", strerror(errno));
    ticks(20000, SA_RESTART, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    pthread_create(&t, 0, late_writer, &p[1]);
    pthread_sigmask(SIG_UNBLOCK, &set, 0);
    ssize_t n = read(p[0], &c, 1);
    stop_ticks();
    printf("with restart: %zd\n", n);
    pthread_join(t, 0);
}

static sigjmp_buf back;
static void leave(int s)
{
    (void)s;
    siglongjmp(back, 1);
}

static void jump_out(void)
{
    struct sigaction sa = {.sa_handler = leave, .sa_flags = SA_NODEFER};
    sigaction(SIGALRM, &sa, 0);
    for (volatile int i = 0; i < 400; i++) {
        struct itimerval it = {{0, 0}, {0, 120 + i % 50}};
        if (sigsetjmp(back, 1) == 0) {
            setitimer(ITIMER_REAL, &it, 0);
            for (;;) {
                struct stat own;
                stat("/bin/../lib/../usr/bin/env", &own);
            }
        }
    }
    calls();
    puts("left 400 times");
}

static ucontext_t main_context, small;
static void on_small_stack(void)
{
    struct stat *own = &st;
    if (stat("/usr/bin/env", own) || stat("/bin/sh", own) || access("/nonexistent", F_OK) == 0 || getuid() != geteuid())
        wrong++;
    int fd = open("/etc/passwd", O_RDONLY);
    if (fd < 0 || close(fd))
        wrong++;
}

static void small_stacks(void)
{
    static const int sizes[] = {4096, 3072, 2048};
    for (int i = 0; i < 3; i++) {
        char *stack = aligned_alloc(4096, 8192); /* the lower part must stay as it is */
        memset(stack, 0x5a, 8192);
        getcontext(&small);
        small.uc_stack.ss_sp = stack + 8192 - sizes[i];
        small.uc_stack.ss_size = sizes[i];
        small.uc_link = &main_context;
        makecontext(&small, on_small_stack, 0);
        swapcontext(&main_context, &small);
        int spoilt = 0;
        for (int k = 0; k < 8192 - sizes[i]; k++)
            spoilt += stack[k] != 0x5a;
        printf("%d bytes: wrong %ld, spoilt %d\n", sizes[i], wrong, spoilt);
        free(stack);
    }
}

/* Everything but rax, rcx and r11 survives a call made here, and the 128 bytes below the stack pointer. */
static void red_zone(void)
{
    long bad = 0, result = -1;
    for (int nr = 0; nr < 2; nr++) {
        long call = nr ? SYS_getppid : SYS_getuid;
        __asm__ volatile("movq $0x1111, -8(%%rsp)\n movq $0x2222, -64(%%rsp)\n movq $0x3333, -128(%%rsp)\n"
                         "mov $0x44, %%rdi\n mov $0x55, %%rsi\n mov $0x66, %%rdx\n mov $0x77, %%r8\n mov $0x88, %%r9\n"
                         "mov $0x99, %%r10\n mov $0xaa, %%r12\n mov $0xbb, %%r13\n mov $0xcc, %%r14\n mov $0xdd, %%r15\n"
                         "syscall\n cmp $-4096, %%rax\n"
                         "cmpq $0x1111, -8(%%rsp)\n jne 1f\n cmpq $0x2222, -64(%%rsp)\n jne 1f\n cmpq $0x3333, -128(%%rsp)\n jne 1f\n"
                         "cmp $0x44, %%rdi\n jne 1f\n cmp $0x55, %%rsi\n jne 1f\n cmp $0x66, %%rdx\n jne 1f\n cmp $0x77, %%r8\n jne 1f\n"
                         "cmp $0x88, %%r9\n jne 1f\n cmp $0x99, %%r10\n jne 1f\n cmp $0xaa, %%r12\n jne 1f\n cmp $0xbb, %%r13\n jne 1f\n"
                         "cmp $0xcc, %%r14\n jne 1f\n cmp $0xdd, %%r15\n jne 1f\n jmp 2f\n"
                         "1: mov $1, %1\n2:\n"
                         : "=a"(result), "+b"(bad)
                         : "a"(call)
                         : "rdi", "rsi", "rdx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
        printf("bad %ld, result %s\n", bad, nr ? "parent" : result == (long)getuid() ? "own" : "wrong");
    }
}

static void *work(void *arg)
{
    for (int i = 0; i < 200; i++)
        calls();
    return arg;
}

static void threads(void)
{
    pthread_t t[8];
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 8; i++)
            CHECK(pthread_create(&t[i], 0, work, 0) == 0);
        for (int i = 0; i < 8; i++)
            pthread_join(t[i], 0);
    }
    puts("80 threads");
}

static void cleaned(void *text) { puts(text); }
static int pipe_ends[2];
static void *blocked(void *arg)
{
    char c;
    (void)arg;
    pthread_cleanup_push(cleaned, "cleaned up");
    if (read(pipe_ends[0], &c, 1) >= 0)
        puts("read something");
    pthread_cleanup_pop(0);
    return 0;
}

static void cancel(void)
{
    for (int i = 0; i < 3; i++) {
        pthread_t t;
        void *result = 0;
        CHECK(pipe(pipe_ends) == 0);
        pthread_create(&t, 0, blocked, 0);
        usleep(30000 * i);
        pthread_cancel(t);
        pthread_join(t, &result);
        puts(result == PTHREAD_CANCELED ? "canceled" : "not canceled");
    }
}

static void vforked(void)
{
    char text[300];
    CHECK(chdir("/usr") == 0 && stat("bin/env", &st) == 0);
    for (int i = 0; i < 3; i++) {
        pid_t p = vfork();
        if (p == 0) {
            if (chdir("/etc") || stat("passwd", &st) || stat("bin/env", &st) == 0)
                _exit(3);
            execl("/bin/sh", "sh", "-c", "pwd; test -f passwd", (char *)0);
            _exit(4);
        }
        int status;
        waitpid(p, &status, 0);
        printf("child %d\n", status);
        CHECK(stat("bin/env", &st) == 0 && stat("passwd", &st) == -1);
        puts(getcwd(text, sizeof text));
        fflush(stdout);
    }
}

static void twice(void)
{
    void *other = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
    CHECK(other);
    int (*get)(void) = (int (*)(void))dlsym(other, "getuid");
    int (*see)(const char *, struct stat *) = (int (*)(const char *, struct stat *))dlsym(other, "stat");
    CHECK(get && see);
    printf("%d %d\n", get() == (int)getuid(), see("/usr/bin/env", &st));
    calls();
    dlclose(other);
    calls();
    puts("closed");
}

static void bad_pointers(void)
{
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(page, "/usr/bin/env");
    CHECK(stat(page, &st) == 0);
    memset(page + 4096 - 8, 'a', 8);
    printf("%d\n", stat((char *)1, &st) == -1 ? errno : 0);
    printf("%d\n", stat(0, &st) == -1 ? errno : 0);
    printf("%d\n", open((char *)-1L, O_RDONLY) == -1 ? errno : 0);
    munmap(page + 4096, 4096);
    printf("%d\n", access(page + 4096 - 8, F_OK) == -1 ? errno : 0);
    munmap(page, 4096);
    printf("%d\n", stat(page, &st) == -1 ? errno : 0);
    printf("%d\n", (int)syscall(SYS_utimensat, AT_FDCWD, 0, 0, 0) == -1 ? errno : 0);
    printf("%d\n", execve((char *)1, 0, 0) == -1 ? errno : 0);
    char text[5000];
    memset(text, 'a', sizeof text);
    text[4999] = 0;
    printf("%d\n", stat(text, &st) == -1 ? errno : 0);
}

static void memory_limit(void)
{
    struct rlimit limit = {400ul << 20, 400ul << 20};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    pid_t p = fork();
    if (p == 0) {
        execl("/bin/sh", "sh", "-c", "echo limited; ls /etc/passwd", (char *)0);
        _exit(9);
    }
    int status;
    waitpid(p, &status, 0);
    printf("%d\n", status);
}

static void on_segv(int s, siginfo_t *i, void *c)
{
    (void)s, (void)c;
    printf("fault at %p\n", i->si_addr);
    fflush(stdout);
    _exit(0);
}

static void own_fault(void)
{
    struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, 0);
    calls();
    *(volatile int *)0x10 = 1;
}

static void environment(void)
{
    char text[300];
    ssize_t n = readlink("/proc/self/exe", text, sizeof text);
    printf("%.*s\n", (int)(n < 0 ? 0 : n), text);
    n = readlink("/proc/self/exe", text, 5);
    printf("%zd\n", n);
    int fd = open("/proc/self/exe", O_RDONLY);
    printf("%d\n", fd >= 0 && read(fd, text, 4) == 4 && !memcmp(text, "\177ELF", 4));
    CHECK(fstat(fd, &st) == 0);
    struct stat named;
    CHECK(stat("/proc/self/exe", &named) == 0);
    printf("%d\n", named.st_ino == st.st_ino);
    fd = open("/proc/self/comm", O_RDONLY);
    n = read(fd, text, sizeof text);
    printf("%.*s", (int)n, text);
    fd = open("/proc/self/cmdline", O_RDONLY);
    n = read(fd, text, sizeof text);
    printf("%zd %s\n", n, text);
    FILE *maps = fopen("/proc/self/maps", "r");
    int heap = 0, stack = 0, vdso = 0, libc = 0;
    char *line = 0;
    size_t size = 0;
    void *block = malloc(100);
    free(block);
    while (getline(&line, &size, maps) > 0) {
        heap += strstr(line, "[heap]") != 0;
        stack += strstr(line, "[stack]") != 0;
        vdso += strstr(line, "[vdso]") != 0;
        libc |= strstr(line, " r-xp ") && strstr(line, "libc.so.6");
    }
    printf("heap %d stack %d vdso %d libc %d\n", heap, stack, vdso, libc);
    char *end = sbrk(4096);
    printf("brk %d\n", end != (char *)-1 && sbrk(-4096) != (void *)-1);
    void *frames[32];
    printf("frames %d\n", backtrace(frames, 32) > 1);
}

/* No process gets a mount or user namespace of its own, whatever makes the call. Compared with no host: some allow it. */
static void namespaces(void)
{
    static const unsigned long flags[] = {CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWPID, CLONE_NEWNS,
                                          CLONE_NEWNS | CLONE_FS, CLONE_NEWUSER | CLONE_FS};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        unsigned long arguments[11] = {flags[i], 0, 0, 0, SIGCHLD};
        for (int how = 0; how < 2; how++) {
            errno = 0;
            long pid = how ? syscall(435 /* clone3 */, arguments, 64) : syscall(SYS_clone, flags[i] | SIGCHLD, 0, 0, 0, 0);
            if (pid == 0)
                _exit(0);
            printf("%d%s", pid > 0 ? -1 : errno, how ? "\n" : " ");
            if (pid > 0)
                waitpid(pid, 0, 0);
        }
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"storm", storm}, {"interrupted", interrupted}, {"jump_out", jump_out}, {"small_stacks", small_stacks},
    {"red_zone", red_zone}, {"threads", threads}, {"cancel", cancel}, {"vforked", vforked}, {"twice", twice},
    {"bad_pointers", bad_pointers}, {"memory_limit", memory_limit}, {"own_fault", own_fault}, {"environment", environment},
    {"namespaces", namespaces},
};

int main(int argc, char **argv)
{
    setvbuf(stdout, 0, _IONBF, 0);
    for (size_t i = 0; argc > 1 && i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(cases[i].name, argv[1])) {
            cases[i].run();
            return 0;
        }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        puts(cases[i].name);
    return 2;
}
