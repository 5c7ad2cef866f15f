/* Corrects the auxiliary vector of a program before its first instruction.

   The kernel puts ids and AT_SECURE there. A call later is early enough for most programs, whose dynamic linker makes
   calls that the supervisor sees; but the C library looks at AT_SECURE at once, and a static program may make no such
   call. So the thread is traced over its execve. Source: ptrace(2), getauxval(3), fs/binfmt_elf.c. */
#ifndef UMVM_EXECWATCH_H
#define UMVM_EXECWATCH_H
#include "hand.h"

enum { UMVM_AUX_WORDS = 16384 };

/* Changes entries of the vector above `stack`, where argc is. `values`: pairs of type and value, up to type 0. */
static void umvm_patch_aux(int tid, uint64_t stack, const uint64_t *values)
{
    uint64_t *words = malloc(8 * UMVM_AUX_WORDS);
    long size = 512, n = 0, at = 0;
    int zeros = 0;
    if (!words)
        return;
    for (; size <= UMVM_AUX_WORDS; size *= 8) { /* most are small */
        n = umvm_copy(tid, words, stack, 8 * size, 0) / 8;
        for (at = n > 0 ? (long)words[0] + 1 : n, zeros = 0; at >= 0 && at < n && zeros < 2; at++)
            zeros += words[at] == 0; /* the ends of argv and of the environment */
        if ((zeros == 2 && at + 64 < n) || n < size)
            break;
    }
    for (; zeros == 2 && at + 1 < n && words[at]; at += 2)
        for (const uint64_t *v = values; *v; v += 2)
            if (v[0] == words[at] && v[1] != words[at + 1])
                umvm_copy(tid, (void *)&v[1], stack + 8 * (at + 1), 8, 1);
    free(words);
}

/* Waits for a stop of the thread, which execve may make the main one. *tid becomes its number. */
static int umvm_wait_exec(int *tid, int tgid)
{
    int status;
    if (*tid == tgid)
        return umvm_wait_direct(tgid);
    for (;;) {
        pid_t p = waitpid(*tid, &status, __WALL | WNOHANG), main = p > 0 ? 0 : waitpid(tgid, &status, __WALL | WNOHANG);
        if (p < 0 && main < 0)
            return -ESRCH;
        if (p > 0 || main > 0) {
            *tid = p > 0 ? p : main;
            return WIFSTOPPED(status) ? status >> 8 : -ESRCH;
        }
        usleep(50);
    }
}

/* Lets a thread run its execve, and corrects what the program will find. Somebody else may trace it, and the call may
   fail: then it just runs. The process if it has come to the program's first instruction, where it waits for
   umvm_exec_ended; else 0. */
static int umvm_exec_watched(int listener, uint64_t id, int tid, int tgid, const uint64_t *values)
{
    struct user_regs_struct u;
    int traced = ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACEEXEC) == 0;
    umvm_answer(listener, id, 0, 0, 1);
    if (!traced)
        return 0;
    ptrace(PTRACE_INTERRUPT, tid, 0, 0); /* so that it stops should the call fail */
    int status = umvm_wait_exec(&tid, tgid);
    if (status < 0)
        return 0;
    if (status == (SIGTRAP | PTRACE_EVENT_EXEC << 8) && ptrace(PTRACE_GETREGS, tid, 0, &u) == 0) {
        umvm_patch_aux(tid, u.rsp, values);
        return tid;
    }
    ptrace(PTRACE_DETACH, tid, 0, status >> 8 ? 0 : status);
    return 0;
}

static void umvm_exec_ended(int tgid) { ptrace(PTRACE_DETACH, tgid, 0, 0); }
#endif
