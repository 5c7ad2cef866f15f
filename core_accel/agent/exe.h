/* /proc/self/exe: for the kernel a guest's program is the loader. Part of agent.c. */
#ifndef UMVM_AGENT_EXE_H
#define UMVM_AGENT_EXE_H

/* Is this the process's own /proc/PID/exe, which would show the loader? */
static NOINLINE int own_exe(const char *p)
{
    struct part q;
    if (!measure(p, &q) || q.length < 11 || !text_is(p, 6, "/proc/") || !text_is(p + q.length - 4, 4, "/exe"))
        return 0;
    const char *who = p + 6;
    uint32_t n = q.length - 10, pid = 0;
    if (text_is(who, n, "self") || text_is(who, n, "thread-self"))
        return 1;
    for (uint32_t i = 0; i < n; i++) {
        if (who[i] < '0' || who[i] > '9')
            return 0;
        pid = pid * 10 + (uint32_t)(who[i] - '0');
    }
    return pid == (uint32_t)SYS1(__NR_getpid, 0);
}

/* A path that begins with "/proc/": cheap to see. */
static inline int may_be_exe(const char *p)
{
    return page_readable((uint64_t)p >> 12) && page_readable(((uint64_t)p + 5) >> 12) && p[0] == '/' && p[1] == 'p' &&
           p[2] == 'r' && p[3] == 'o' && p[4] == 'c' && p[5] == '/';
}

/* Finds the canonical path of the program, unless the loader was told it. */
static NOINLINE void know_exe(void)
{
    struct stat st;
    if (SELF->exe_known)
        return;
    int fd = (int)SYS4(__NR_openat, AT_FDCWD, SELF->exe, O_PATH | O_CLOEXEC, 0);
    struct slot *s = take_slot();
    long n = 0;
    if (s && fd >= 0 && SYS2(__NR_fstat, fd, &st) == 0 && st.st_dev == SELF->exe_dev && st.st_ino == SELF->exe_ino)
        n = link_of_fd(fd, s->base);
    if (n > 0) {
        memcpy(SELF->exe, s->base, (size_t)n);
        SELF->exe[n] = 0;
    } else
        memcpy(SELF->exe + text_length(SELF->exe), " (deleted)", 11);
    SELF->exe_known = 1;
    if (fd >= 0)
        SYS1(__NR_close, fd);
    if (s)
        give_slot(s);
}

static NOINLINE int read_exe(struct regs *r, int index)
{
    uint64_t size = argument(r, index + 2);
    know_exe();
    size_t n = text_length(SELF->exe);
    if (in_shadow(SELF->exe, (long)n) || (int64_t)size <= 0)
        return ask(r);
    if (n > size)
        n = size;
    uint64_t from[2] = {(uint64_t)SELF->exe, n}, to[2] = {argument(r, index + 1), n};
    long pid = SYS1(__NR_getpid, 0); /* the kernel copies, as the buffer may be bad */
    return done(r, SYS6(__NR_process_vm_writev, pid, from, 1, to, 1, 0));
}

/* The call with the program's path in place of /proc/self/exe. */
static NOINLINE int use_exe(struct regs *r, int index)
{
    if (in_shadow(SELF->exe, (long)text_length(SELF->exe)))
        return ask(r);
    struct regs changed = *r;
    (&changed.rdi)[index] = (uint64_t)SELF->exe;
    return done(r, run_here(&changed));
}

/* Calls in which /proc/self/exe means the program and not the loader. */
static NOINLINE int with_exe(struct regs *r, const struct umvm_kind *k)
{
    int index = k->path[0];
    switch (k->flow) {
    case UMVM_F_READLINK:
        return read_exe(r, index);
    case UMVM_F_STAT:
    case UMVM_F_FOLLOW:
        if (k->flags >= 0 && k->nofollow & 1 && argument(r, k->flags) & AT_SYMLINK_NOFOLLOW)
            return RUN;
        return use_exe(r, index);
    case UMVM_F_OPEN:
        return k->flags >= 0 && argument(r, k->flags) & O_NOFOLLOW ? RUN : use_exe(r, index);
    case UMVM_F_ACCESS:
        return use_exe(r, index);
    default:
        return RUN;
    }
}
#endif
