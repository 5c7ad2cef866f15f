/* More hard cases for the agent, as agent_cases.c has them: `agent_hard NAME` prints the same natively and in a VM. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define AREA ((void *)0x70000000) /* where a guest has the agent */

static void say(const char *what, long result)
{
    char text[200];
    int n = snprintf(text, sizeof text, "%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : "");
    if (write(1, text, n) != n)
        _exit(9);
}

static void calls(void)
{
    struct stat st;
    char text[300];
    say("stat", stat("/usr/bin/env", &st));
    say("missing", stat("/bin/no/such", &st));
    int fd = open("/etc/passwd", O_RDONLY);
    say("read", fd >= 0 ? read(fd, text, 10) : -1);
    say("close", close(fd));
    say("access", access("/etc/passwd", R_OK));
    say("getcwd", getcwd(text, sizeof text) ? 0 : -1);
}

/* A filter that kills for all but what this program needs: the agent must get by with that. */
static void sandbox(int by_prctl)
{
    static const int allowed[] = {SYS_read, SYS_write, SYS_open, SYS_openat, SYS_close, SYS_stat, SYS_newfstatat, SYS_access,
                                  SYS_faccessat, SYS_getcwd, SYS_execve, SYS_exit_group, SYS_rt_sigreturn};
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter code[COUNT + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    for (int i = 0; i < COUNT; i++)
        code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], COUNT - i, 0);
    code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {COUNT + 3, code};
    say("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (by_prctl)
        say("filter", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    else
        say("filter", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
    calls();
}

static void by_prctl(void) { sandbox(1); }
static void by_seccomp(void) { sandbox(0); }

static void low_addresses(void)
{
    for (uintptr_t at = 0x10000000; at < 0x90000000; at += 0x0fff0000) {
        char *page = mmap((void *)at, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (page != MAP_FAILED)
            strcpy(page, "/etc/passwd");
        say("mapped", page == MAP_FAILED ? -1 : access(page, F_OK));
    }
    char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    say("32 bits", low == MAP_FAILED || (uintptr_t)low >> 31);
}

/* Only in a VM: the agent's own memory stays. */
static void over_the_agent(void)
{
    say("fixed", mmap(AREA, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
    say("mprotect", mprotect(AREA, 4096, PROT_NONE));
    say("mremap", mremap(AREA, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
    say("munmap", munmap(AREA, 32 << 20));
    calls();
}

static void by_descriptor(void)
{
    char *argv[] = {"sh", "-c", "echo $0 by descriptor; ls -d /usr", 0}, *envp[] = {"PATH=/usr/bin:/bin", 0};
    int fd = open("/bin/sh", O_RDONLY | O_CLOEXEC), dir = open("/bin", O_RDONLY | O_DIRECTORY);
    pid_t child = fork();
    if (!child) {
        syscall(SYS_execveat, dir, "sh", argv, envp, 0);
        _exit(9);
    }
    int status;
    waitpid(child, &status, 0);
    say("execveat", status);
    fexecve(fd, argv, envp);
    say("fexecve", -1);
}

/* Text that a program makes writable, reads and runs. */
static void writable_text(void)
{
    uintptr_t page = (uintptr_t)open & ~4095ul;
    say("mprotect", mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC));
    volatile unsigned char *code = (volatile unsigned char *)(uintptr_t)open;
    code[0] = code[0];
    calls();
}

static void small_stack(void)
{
    struct rlimit limit = {256 << 10, 256 << 10};
    say("limit", setrlimit(RLIMIT_STACK, &limit));
    execl("/bin/sh", "sh", "-c", "ls -d /etc/passwd; exec env echo done", (char *)0);
}

/* A debugger's process executes as it is; afterwards it is as any other. */
static void traced(void)
{
    pid_t child = fork();
    int status = 0, stops = 0;
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        execl("/bin/sh", "sh", "-c", "test -e /etc/passwd && test ! -e /none; exit 5", (char *)0);
        _exit(9);
    }
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status) && ++stops < 100)
        ptrace(PTRACE_CONT, child, 0, WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status));
    say("status", WEXITSTATUS(status));
}

static void io_uring(void) { say("io_uring", syscall(SYS_io_uring_setup, 4, 0) < 0 ? 0 : -1); }

/* Valgrind, and whatever makes an image of a process, unmaps the vDSO. */
static void no_vdso(void)
{
    calls();
    say("munmap", munmap((void *)getauxval(AT_SYSINFO_EHDR), 8192));
    for (int i = 0; i < 3; i++)
        calls();
}

/* A program that translates others' code finds it as the file has it. Static, as such programs are. */
static void mapped_text(void)
{
    Elf64_Ehdr e;
    Elf64_Phdr p;
    int fd = open("/lib64/ld-linux-x86-64.so.2", O_RDONLY);
    say("header", pread(fd, &e, sizeof e, 0) == sizeof e ? 0 : -1);
    for (int i = 0; i < e.e_phnum; i++) {
        size_t size = pread(fd, &p, sizeof p, (off_t)(e.e_phoff + (size_t)i * sizeof p)) == sizeof p ? p.p_filesz : 0;
        if (p.p_type != PT_LOAD || !(p.p_flags & PF_X))
            continue;
        char *text = mmap(0, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, (off_t)p.p_offset), *file = malloc(size);
        say("mapped", text == MAP_FAILED ? -1 : 0);
        say("read", pread(fd, file, size, (off_t)p.p_offset) == (ssize_t)size ? 0 : -1);
        say("differs", memcmp(text, file, size) != 0);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"by_prctl", by_prctl}, {"by_seccomp", by_seccomp}, {"low_addresses", low_addresses},
    {"over_the_agent", over_the_agent}, {"by_descriptor", by_descriptor}, {"writable_text", writable_text},
    {"small_stack", small_stack}, {"traced", traced}, {"io_uring", io_uring},
    {"no_vdso", no_vdso}, {"mapped_text", mapped_text},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(cases[i].name, argv[1])) {
            cases[i].run();
            return 0;
        }
    return 2;
}
