/* execve: a host program is run by executing the loader, which learns from a mailbox what to load.

   The guest's argument and environment arrays go to the kernel untouched. Whatever isn't plainly a
   64-bit program or a script for one is left to the kernel, which gives the right error or runs it
   without loader and agent: then its calls arrive by notification. */
#ifndef UMVM_AGENT_EXECUTE_H
#define UMVM_AGENT_EXECUTE_H
#include "translate.h"
#include <linux/elf.h>

enum { LOADED = 10, NOT_OURS };
enum { NAME_AT = 4096, FRONT_AT = 8192 }; /* in a mailbox's text */
enum { HEAD = 256, MORE = 1024, MAX_SCRIPTS = 5, EXECVE_CHECK = 0x10000, ST_NOEXEC = 8 };

static void copy_text(volatile char *to, const char *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = from[i];
    to[n] = 0;
}

static volatile struct umvm_mailbox *take_mailbox(void)
{
    uint32_t me = (uint32_t)SYS1(__NR_getpid, 0) + 1;
    for (int round = 0; round < 2; round++)
        for (uint32_t i = 0; i < UMVM_MAILBOXES; i++) {
            volatile struct umvm_mailbox *m = &STATE->mailboxes[i];
            uint32_t owner = m->owner;
            if (owner && round && SYS2(__NR_kill, owner - 1, 0) != -ESRCH)
                continue; /* in the second round those of the dead are taken */
            if ((!owner || round) && __atomic_compare_exchange_n(&m->owner, &owner, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
                return m;
        }
    return 0;
}

static void give_mailbox(volatile struct umvm_mailbox *m) { __atomic_store_n(&m->owner, 0, __ATOMIC_RELEASE); }

/* May the kernel execute this descriptor's file? */
static int may_execute(int fd)
{
    struct {
        uint64_t words[10], flags, spare[4];
    } fs;
    long r = SYS6(__NR_execveat, fd, "", 0, 0, AT_EMPTY_PATH | EXECVE_CHECK, 0);
    if (r != -EINVAL)
        return r == 0;
    if (SYS4(439 /* faccessat2 */, fd, "", 1, AT_EMPTY_PATH | AT_EACCESS) < 0) /* before Linux 6.14 */
        return 0;
    return SYS2(__NR_fstatfs, fd, &fs) == 0 && !(fs.flags & ST_NOEXEC);
}

/* Opens a program of the host's and reads its first bytes (`size`): the count, or 0 if it isn't for us. */
static long open_program(const char *path, char *head, long size)
{
    int fd = (int)SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
    long n = 0;
    if (fd < 0)
        return 0;
    if (may_execute(fd))
        n = SYS4(__NR_pread64, fd, head, size, 0);
    SYS1(__NR_close, fd);
    return n > 4 ? n : 0;
}

static int is_program(const char *head, long n)
{
    const Elf64_Ehdr *e = (const Elf64_Ehdr *)head;
    return n >= (long)sizeof *e && head[0] == 0x7f && head[1] == 'E' && head[2] == 'L' && head[3] == 'F' &&
           head[4] == ELFCLASS64 && head[5] == ELFDATA2LSB && e->e_machine == EM_X86_64 &&
           (e->e_type == ET_EXEC || e->e_type == ET_DYN) && e->e_phentsize == sizeof(Elf64_Phdr);
}

static int is_blank(char c) { return c == ' ' || c == '\t'; }

/* Takes the first line of a script apart as fs/binfmt_script.c does: *name and *argument end with a NUL, in `head`.
   0: not a script that can be run. */
static int parse_script(char *head, long n, char **name, char **argument)
{
    long end = 2, at = 2;
    while (end < n && head[end] != '\n')
        end++;
    if (end == n && n == HEAD) { /* cut off: allowed only in the argument */
        long i = 2;
        while (i < n && is_blank(head[i]))
            i++;
        while (i < n && !is_blank(head[i]) && head[i])
            i++;
        if (i == n)
            return 0;
        end = n - 1;
    }
    while (end > 2 && is_blank(head[end - 1]))
        end--;
    head[end] = 0;
    while (is_blank(head[at]))
        at++;
    if (!head[at])
        return 0;
    *name = head + at;
    while (head[at] && !is_blank(head[at]))
        at++;
    *argument = 0;
    if (head[at]) {
        head[at++] = 0;
        while (is_blank(head[at]))
            at++;
        if (head[at])
            *argument = head + at;
    }
    return 1;
}

/* Puts `word` before the `*used` bytes of words in the mailbox. 0: no room. */
static int put_front(volatile struct umvm_mailbox *m, uint32_t *used, const char *word, size_t n)
{
    volatile char *front = m->text + m->front;
    if (m->front + *used + n + 1 > sizeof m->text)
        return 0;
    for (uint32_t i = *used; i-- > 0;)
        front[i + n + 1] = front[i];
    copy_text(front, word, n);
    *used += (uint32_t)n + 1;
    m->count++;
    return 1;
}

/* The kernel would run a 32-bit program, whose calls the filter refuses: better none than one that can't even exit. */
static int is_foreign(const char *head, long n) { return n > 4 && text_is(head, 4, "\177ELF") && head[4] == ELFCLASS32; }

/* Where a program is on the host, when a guest executes this name: the path, 0: ask. *failed: there is none, for the
   kernel either. Where paths aren't the host's `room` holds it. */
static NOINLINE const char *find_program(const char *name, struct room *room, int *failed)
{
    struct part q;
    char c;
    *failed = 0;
    if (!room)
        return !ROUTE->active || follows_nowhere(name, AT_FDCWD, &q) == NO ? name : 0;
    struct found *f = &room->f;
    if (locate(f, name, AT_FDCWD, 1, 0, 0) != NO || f->final)
        return 0;
    long e = f->failed ? f->failed : SYS3(__NR_readlink, f->same ? name : f->text, &c, 1);
    if (e >= 0 && locate_link(f, AT_FDCWD) != NO)
        return 0;
    *failed = f->failed || f->missing || (e < 0 && e != -EINVAL);
    return f->same ? name : f->text;
}

/* Is the interpreter of a program there, where the guest finds it? Its path may lie beyond what was read. */
static NOINLINE int has_interpreter(const char *head, long n, struct room *room)
{
    const Elf64_Ehdr *e = (const Elf64_Ehdr *)head;
    int failed;
    for (uint32_t i = 0; i < e->e_phnum && e->e_phoff + (i + 1) * sizeof(Elf64_Phdr) <= (uint64_t)n; i++) {
        const Elf64_Phdr *p = (const Elf64_Phdr *)(head + e->e_phoff) + i;
        if (p->p_type == PT_INTERP)
            return p->p_filesz > 1 && p->p_filesz < HEAD && p->p_offset + p->p_filesz <= (uint64_t)n &&
                   !head[p->p_offset + p->p_filesz - 1] && find_program(head + p->p_offset, room, &failed) && !failed;
    }
    return 1;
}

/* Fills the mailbox for the host's file `path`, which is executed as `name`. NO: the kernel is to execute the file
   itself; ASK; LOADED; NOT_OURS. */
static NOINLINE int prepare(volatile struct umvm_mailbox *m, const char *path, const char *name_used, struct room *room,
                            char *head)
{
    uint32_t used = 0;
    size_t used_length = text_length(name_used);
    m->count = m->name = 0;
    copy_text(m->text, path, text_length(path));
    if (room) {
        m->name = NAME_AT;
        copy_text(m->text + NAME_AT, name_used, used_length);
    }
    for (int depth = 0; depth <= MAX_SCRIPTS; depth++) {
        char *name, *argument;
        long n = open_program((const char *)m->text, head, room ? MORE : HEAD);
        if (is_program(head, n))
            return room && !has_interpreter(head, n, room) ? ASK : LOADED;
        n = n > HEAD ? HEAD : n;
        if (is_foreign(head, n))
            return NOT_OURS;
        if (n < 4 || head[0] != '#' || head[1] != '!' || !parse_script(head, n, &name, &argument))
            return NO;
        size_t length = text_length(name);
        if (depth == 0) {
            m->name = NAME_AT;
            m->front = FRONT_AT;
            copy_text(m->text + NAME_AT, name_used, used_length);
            if (!put_front(m, &used, name_used, used_length))
                return NO;
        }
        if ((argument && !put_front(m, &used, argument, text_length(argument))) || !put_front(m, &used, name, length))
            return NO;
        int failed;
        const char *found = find_program(name, room, &failed);
        if (!found || failed)
            return ASK;
        copy_text(m->text, found, text_length(found));
    }
    return NO; /* ELOOP */
}

/* Is a debugger at work on this process? Only looked at once some guest has used ptrace. */
static int is_traced(char *buffer, long size)
{
    if (SELF->traced)
        return 1;
    if (!STATE->traced)
        return 0;
    int fd = (int)SYS3(__NR_open, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0);
    long n = fd < 0 ? 0 : SYS3(__NR_read, fd, buffer, size);
    if (fd >= 0)
        SYS1(__NR_close, fd);
    for (long i = 0; i + 12 < n; i++)
        if (text_is(buffer + i, 11, "TracerPid:\t"))
            return buffer[i + 11] != '0';
    return 1;
}

/* execve of the host's file `path`, as `name`. Returns the kernel's error, 0 (the kernel is to run the call itself) or
   1 (ask). `room`: where paths aren't the host's, memory for them; given back. */
static NOINLINE long execute_host(const char *path, const char *name, struct room *room, uint64_t argv, uint64_t envp)
{
    struct slot *s = take_slot();
    int what = NO;
    long r = 0;
    if (!s) {
        give_room(room);
        return 0;
    }
    volatile struct umvm_mailbox *m = is_traced(s->base, sizeof s->base) ? 0 : take_mailbox();
    if (m)
        what = prepare(m, path, name, room, s->base);
    give_room(room);
    give_slot(s); /* now: a child of vfork can't after the exec */
    if (what == NOT_OURS)
        r = -ENOEXEC;
    if (what == LOADED) {
        m->execs++;
        cwd_changed(); /* a child of vfork may have looked at its own, which isn't its parent's */
        r = SYS3(__NR_execve, m->loader, argv, envp);
    }
    if (m)
        give_mailbox(m);
    return what == ASK ? 1 : r;
}
#endif
