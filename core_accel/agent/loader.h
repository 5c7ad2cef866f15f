/* The loader: does what the kernel's ELF loader would have done for the program (fs/binfmt_elf.c).

   It is executed as SHADOW/l/NN and finds in mailbox NN what to load. Where it can't, it executes the
   program without itself: its calls then arrive by notification. */
#ifndef UMVM_AGENT_LOADER_H
#define UMVM_AGENT_LOADER_H
#include <linux/auxvec.h>
#include <linux/prctl.h>

#define PAGE(x) ((x) & ~4095ull)
#define PAGE_UP(x) PAGE((x) + 4095)
#define PIE_BASE 0x555555554000ull /* ELF_ET_DYN_BASE */
enum { MAX_SEGMENTS = 32, FIXED = 0x10, PRIVATE = 2, ANON = 0x20, NORESERVE = 0x4000, FIXED_NOREPLACE = 0x100000 };

struct image {
    uint64_t bias, entry, headers, low, high, code[2], data[2];
    uint32_t count;
    int stack_exec;
    char interpreter[4096];
};

struct loading {
    uint64_t *stack; /* argc, argv, envp, auxv */
    char program[4096], name[4096], front[8192];
    uint32_t words;
    struct image main, interp;
};
static struct loading loading;

static int failed(long r) { return r < 0 && r > -4096; }

static _Noreturn void stop(const char *why)
{
    static const char start[] = "umvm loader: ";
    SYS3(__NR_write, 2, start, sizeof start - 1);
    SYS3(__NR_write, 2, why, text_length(why));
    SYS3(__NR_write, 2, "\n", 1);
    for (;;)
        SYS1(__NR_exit_group, 127);
}

/* Through decide(), as everything the guest opens. */
static long call_as_guest(long nr, long a, long b, long c, long d, long e, long f)
{
    struct regs r = {(uint64_t)nr, (uint64_t)a, (uint64_t)b, (uint64_t)c, (uint64_t)d, (uint64_t)e, (uint64_t)f};
    return decide(&r) == RUN ? run_here(&r) : (long)r.rax;
}

/* Maps one file of the program. 0, or a negative errno; −ENOEXEC: better let the kernel do it. */
static int map_image(int fd, struct image *im, uint64_t base, int main)
{
    static union {
        Elf64_Ehdr header;
        char bytes[4096];
    } head;
    long n = SYS4(__NR_pread64, fd, &head, sizeof head, 0);
    const Elf64_Ehdr *e = &head.header;
    if (!is_program(head.bytes, n) || e->e_phnum == 0 || e->e_phnum > MAX_SEGMENTS)
        return -ENOEXEC;
    static Elf64_Phdr segments[MAX_SEGMENTS];
    uint64_t size = e->e_phnum * sizeof(Elf64_Phdr), align = 4096;
    if (e->e_phoff + size <= (uint64_t)n)
        memcpy(segments, head.bytes + e->e_phoff, size);
    else if (SYS4(__NR_pread64, fd, segments, size, e->e_phoff) != (long)size)
        return -ENOEXEC;
    im->low = ~0ull;
    im->high = 0;
    im->count = e->e_phnum;
    for (uint32_t i = 0; i < im->count; i++) {
        const Elf64_Phdr *p = &segments[i];
        if (p->p_type == PT_GNU_STACK)
            im->stack_exec = p->p_flags & PF_X;
        if (p->p_type == PT_INTERP && main) {
            if (p->p_filesz < 2 || p->p_filesz > sizeof im->interpreter ||
                SYS4(__NR_pread64, fd, im->interpreter, p->p_filesz, p->p_offset) != (long)p->p_filesz ||
                im->interpreter[p->p_filesz - 1])
                return -ENOEXEC;
        }
        if (p->p_type != PT_LOAD || p->p_memsz == 0)
            continue;
        if (p->p_filesz > p->p_memsz || p->p_memsz > 0x7fffffffffffull || ((p->p_vaddr ^ p->p_offset) & 4095))
            return -ENOEXEC;
        if (PAGE(p->p_vaddr) < im->low)
            im->low = PAGE(p->p_vaddr);
        if (PAGE_UP(p->p_vaddr + p->p_memsz) > im->high)
            im->high = PAGE_UP(p->p_vaddr + p->p_memsz);
        if (p->p_align > align && !(p->p_align & (p->p_align - 1)))
            align = p->p_align;
    }
    if (im->high <= im->low)
        return -ENOEXEC;
    /* reserve the whole, then put the segments on it */
    uint64_t span = im->high - im->low;
    long at;
    if (e->e_type == ET_EXEC) {
        at = SYS6(__NR_mmap, im->low, span, 0, PRIVATE | ANON | NORESERVE | FIXED_NOREPLACE, -1, 0);
        if (at != (long)im->low)
            return -ENOEXEC; /* the range is ours, or the kernel knows better */
        im->bias = 0;
    } else {
        at = -EEXIST;
        if (base)
            at = SYS6(__NR_mmap, (base + align - 1) & ~(align - 1), span, 0, PRIVATE | ANON | NORESERVE | FIXED_NOREPLACE,
                      -1, 0);
        if (failed(at) && align > 4096) {
            at = SYS6(__NR_mmap, 0, span + align, 0, PRIVATE | ANON | NORESERVE, -1, 0);
            if (!failed(at)) {
                uint64_t start = ((uint64_t)at + align - 1) & ~(align - 1);
                if (start > (uint64_t)at)
                    SYS2(__NR_munmap, at, start - (uint64_t)at);
                SYS2(__NR_munmap, start + span, (uint64_t)at + align - start);
                at = (long)start;
            }
        } else if (failed(at))
            at = SYS6(__NR_mmap, 0, span, 0, PRIVATE | ANON | NORESERVE, -1, 0);
        if (failed(at))
            return (int)at;
        im->bias = (uint64_t)at - im->low;
    }
    uint64_t end = (uint64_t)at; /* of what is mapped */
    for (uint32_t i = 0; i < im->count; i++) {
        const Elf64_Phdr *p = &segments[i];
        if (p->p_type == PT_PHDR)
            im->headers = im->bias + p->p_vaddr;
        if (p->p_type != PT_LOAD || p->p_memsz == 0)
            continue;
        uint64_t start = im->bias + PAGE(p->p_vaddr), pad = p->p_vaddr & 4095;
        uint64_t file = p->p_filesz ? p->p_filesz + pad : 0, memory = p->p_memsz + pad;
        int prot = (p->p_flags & PF_R ? 1 : 0) | (p->p_flags & PF_W ? 2 : 0) | (p->p_flags & PF_X ? 4 : 0);
        if (start > end)
            SYS2(__NR_munmap, end, start - end); /* the kernel leaves gaps unmapped */
        if (!im->headers && p->p_offset <= e->e_phoff && e->e_phoff < p->p_offset + p->p_filesz)
            im->headers = im->bias + p->p_vaddr + e->e_phoff - p->p_offset;
        if (file) {
            long r = SYS6(__NR_mmap, start, file, prot, PRIVATE | FIXED, fd, p->p_offset - pad);
            if (failed(r))
                return (int)r;
            if (prot == 5 && patch_mapping(fd, start, file, p->p_offset - pad) == 0) {
                struct regs again = {__NR_mmap, start, file, (uint64_t)prot, PRIVATE | FIXED, (uint64_t)fd, p->p_offset - pad};
                __atomic_add_fetch(&STATE->unpatched, 1, __ATOMIC_RELAXED);
                ask_gate(&again);
            }
        }
        if (memory > file) {
            uint64_t from = start + file, page = PAGE_UP(from), to = PAGE_UP(start + memory);
            if (prot & 2 && page > from && file)
                memset((void *)from, 0, page - from);
            if (to > page || !file) {
                long r = SYS6(__NR_mmap, file ? page : start, to - (file ? page : start), prot, PRIVATE | ANON | FIXED, -1, 0);
                if (failed(r))
                    return (int)r;
            }
        }
        end = PAGE_UP(start + memory);
        if (p->p_flags & PF_X && !im->code[1])
            im->code[0] = im->bias + p->p_vaddr, im->code[1] = im->code[0] + p->p_filesz;
        if (!(p->p_flags & PF_X) || p->p_flags & PF_W)
            im->data[0] = im->bias + p->p_vaddr, im->data[1] = im->data[0] + p->p_filesz;
    }
    im->entry = im->bias + e->e_entry;
    return 0;
}

/* Finds __vdso_clock_gettime; 0 if there is none. */
static void *find_clock(const char *vdso)
{
    const Elf64_Ehdr *e = (const Elf64_Ehdr *)vdso;
    const Elf64_Sym *symbols = 0;
    const char *strings = 0;
    const uint32_t *hash = 0;
    uint64_t bias = 0;
    const Elf64_Dyn *dynamic = 0;
    if (!vdso)
        return 0;
    for (int i = 0; i < e->e_phnum; i++) {
        const Elf64_Phdr *p = (const Elf64_Phdr *)(vdso + e->e_phoff) + i;
        if (p->p_type == PT_LOAD)
            bias = (uint64_t)vdso + p->p_offset - p->p_vaddr;
        if (p->p_type == PT_DYNAMIC)
            dynamic = (const Elf64_Dyn *)(vdso + p->p_offset);
    }
    for (; dynamic && dynamic->d_tag; dynamic++) {
        const void *at = (const void *)(bias + dynamic->d_un.d_val);
        if (dynamic->d_tag == DT_SYMTAB)
            symbols = at;
        if (dynamic->d_tag == DT_STRTAB)
            strings = at;
        if (dynamic->d_tag == DT_HASH)
            hash = at;
    }
    if (!symbols || !strings)
        return 0;
    uint32_t count = hash ? hash[1] : 16; /* without DT_HASH: the table lies before the strings */
    if (!hash && (const char *)symbols < strings)
        count = (uint32_t)((uint64_t)(strings - (const char *)symbols) / sizeof *symbols);
    for (uint32_t i = 0; i < count; i++)
        if (text_is(strings + symbols[i].st_name, 20, "__vdso_clock_gettime"))
            return (void *)(bias + symbols[i].st_value);
    return 0;
}

static uint64_t *auxiliary(uint64_t *stack)
{
    uint64_t *p = stack + 1 + stack[0] + 1;
    while (*p)
        p++;
    return p + 1;
}

static uint64_t *aux_entry(uint64_t *aux, uint64_t type)
{
    for (; aux[0]; aux += 2)
        if (aux[0] == type)
            return aux + 1;
    return 0;
}

/* Puts the words of a script's first line in place of argv[0]: vector and strings are made anew below. */
static void put_words(struct loading *l)
{
    uint64_t *old = l->stack, argc = old[0], *aux = auxiliary(old), n = 0;
    uint64_t kept = argc ? argc - 1 : 0, size = 0;
    char **argv = (char **)(old + 1);
    while (aux[n])
        n += 2;
    n += 2;
    uint64_t vector = 1 + (l->words + kept) + 1 + (uint64_t)(aux - (old + 1 + argc + 1)) + n;
    const char *front = l->front;
    for (uint32_t i = 0; i < l->words; i++) {
        uint64_t m = text_length(front) + 1;
        size += m;
        front += m;
    }
    for (uint64_t i = argc - kept; i < argc; i++)
        size += text_length(argv[i]) + 1;
    char *top = (char *)__builtin_frame_address(0) - 8192; /* below what we stand on */
    char *strings = (char *)((uint64_t)top - ((size + 15) & ~15ull));
    uint64_t *fresh = (uint64_t *)(((uint64_t)strings - vector * 8) & ~15ull), *p = fresh;
    *p++ = l->words + kept;
    front = l->front;
    for (uint32_t i = 0; i < l->words + kept; i++) {
        const char *word = i < l->words ? front : argv[argc - kept + (i - l->words)];
        uint64_t m = text_length(word) + 1;
        memcpy(strings, word, m);
        *p++ = (uint64_t)strings;
        strings += m;
        if (i < l->words)
            front += m;
    }
    *p++ = 0;
    for (uint64_t *q = old + 1 + argc + 1; q < aux + n; q++)
        *p++ = *q;
    l->stack = fresh;
}

/* What /proc/PID/cmdline, stat and auxv show, and where the heap is (prctl(2), PR_SET_MM_MAP). */
static void describe(struct loading *l, uint64_t brk)
{
    uint64_t *aux = auxiliary(l->stack), argc = l->stack[0], n = 0, count = 0;
    char **argv = (char **)(l->stack + 1), **envp = argv + argc + 1;
    while (aux[n])
        n += 2;
    while (envp[count])
        count++;
    struct prctl_mm_map map;
    memset(&map, 0, sizeof map);
    map.start_code = l->main.code[0];
    map.end_code = l->main.code[1];
    map.start_data = l->main.data[0];
    map.end_data = l->main.data[1];
    map.start_brk = map.brk = brk;
    map.start_stack = (uint64_t)l->stack;
    map.arg_start = argc ? (uint64_t)argv[0] : (uint64_t)l->stack;
    map.arg_end = argc ? (uint64_t)argv[argc - 1] + text_length(argv[argc - 1]) + 1 : map.arg_start;
    map.env_start = count ? (uint64_t)envp[0] : map.arg_end;
    map.env_end = count ? (uint64_t)envp[count - 1] + text_length(envp[count - 1]) + 1 : map.env_start;
    map.auxv = (void *)aux;
    map.auxv_size = (uint32_t)((n + 2) * 8);
    map.exe_fd = (uint32_t)-1; /* setting it takes a privilege */
    SYS6(__NR_prctl, PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0, 0);
}

static void set_name(const char *path)
{
    const char *name = path;
    for (const char *p = path; *p; p++)
        if (*p == '/')
            name = p + 1;
    SYS6(__NR_prctl, PR_SET_NAME, name, 0, 0, 0, 0);
}

/* The program as the kernel would run it, without agent. */
static _Noreturn void run_natively(struct loading *l, long error)
{
    uint64_t argc = l->stack[0];
    char **argv = (char **)(l->stack + 1);
    if (argc)
        SYS3(__NR_execve, l->program, argv, argv + argc + 1);
    (void)error;
    stop("can't load the program");
}

static int map_area(const char *name, uint64_t at, uint64_t size, int prot, int flags)
{
    int fd = (int)SYS4(__NR_openat, AT_FDCWD, name, (prot & 2 ? O_RDWR : O_RDONLY) | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long r = SYS6(__NR_mmap, at, PAGE_UP(size), prot, flags | FIXED, fd, 0);
    SYS1(__NR_close, fd);
    return failed(r) ? (int)r : 0;
}

extern char _end[];

/* Returns the address to go to; *stack is where the program's stack begins. */
__attribute__((used)) uint64_t load(uint64_t *stack, uint64_t **go_on)
{
    struct loading *l = &loading;
    l->stack = stack;
    uint64_t *aux = auxiliary(stack), *execfn = aux_entry(aux, AT_EXECFN), *entry;
    if (!execfn)
        stop("no AT_EXECFN");
    const char *own = (const char *)*execfn;
    size_t n = text_length(own);
    if (n < 6 || n > 300 || own[n - 5] != '/' || own[n - 4] != 'l' || own[n - 3] != '/' || own[n - 2] < '0' || own[n - 2] > '9' ||
        own[n - 1] < '0' || own[n - 1] > '9')
        stop("this program is part of umvm and only of use to it");
    uint32_t number = (uint32_t)(own[n - 2] - '0') * 10 + (uint32_t)(own[n - 1] - '0');
    char path[320];
    memcpy(path, own, n - 4);
    if (number >= UMVM_MAILBOXES)
        stop("no such mailbox");
    /* nothing of the guest's may come to lie where the filter lets calls pass */
    uint64_t holes[2][2] = {{PAGE_UP((uint64_t)_end), UMVM_SELF}, {PAGE_UP(UMVM_SELF + sizeof(struct umvm_self)), UMVM_GATE}};
    long r = 0;
    for (int i = 0; i < 2 && !failed(r); i++)
        r = SYS6(__NR_mmap, holes[i][0], holes[i][1] - holes[i][0], 0, PRIVATE | ANON | NORESERVE | FIXED_NOREPLACE, -1, 0);
    memcpy(path + n - 4, "state", 6);
    if (!failed(r))
        r = map_area(path, UMVM_STATE, sizeof(struct umvm_state), 3, 1 /* MAP_SHARED */);
    if (failed(r))
        stop("the virtual machine is gone, or there is no memory");
    volatile struct umvm_mailbox *m = &STATE->mailboxes[number];
    for (uint32_t i = 0; i < sizeof l->program; i++)
        if (!(l->program[i] = m->program[i]))
            break;
    for (uint32_t i = 0; i < sizeof l->name; i++)
        if (!(l->name[i] = m->name[i]))
            break;
    l->words = m->count;
    uint32_t at = 0;
    for (uint32_t i = 0; i < l->words; i++)
        do
            l->front[at] = m->front[at];
        while (at < sizeof l->front && l->front[at++]);
    give_mailbox(m);
    if (l->words)
        put_words(l);
    aux = auxiliary(l->stack);
    memcpy(path + n - 4, "route", 6);
    if (map_area(path, UMVM_ROUTE, sizeof(struct umvm_route_area), 1, 1) < 0 || ROUTE->stamp != UMVM_ENV_STAMP)
        run_natively(l, -ENOEXEC);
    __atomic_add_fetch(&STATE->loads, 1, __ATOMIC_RELAXED);
    SELF->map_generation = 1;
    SELF->entry = umvm_entry;
    entry = aux_entry(aux, AT_SYSINFO_EHDR);
    SELF->clock = (uint64_t(*)(int, void *))find_clock(entry ? (const char *)*entry : 0);

    uint64_t random = 0;
    int fixed = (SYS1(__NR_personality, 0xffffffff) & 0x0040000) != 0; /* ADDR_NO_RANDOMIZE */
    entry = aux_entry(aux, AT_RANDOM);
    if (entry && !fixed)
        random = hash_text(0, (const char *)*entry, 16);
    int fd = (int)call_as_guest(__NR_openat, AT_FDCWD, (long)l->program, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        run_natively(l, fd);
    long length = link_of_fd(fd, SELF->exe);
    SELF->exe[length > 0 ? length : 0] = 0;
    if (map_image(fd, &l->main, PIE_BASE + ((random & 0xfffffff) << 12), 1) < 0)
        run_natively(l, -ENOEXEC);
    SYS1(__NR_close, fd);
    uint64_t go = l->main.entry, interp_base = 0;
    if (l->main.interpreter[0]) {
        fd = (int)call_as_guest(__NR_openat, AT_FDCWD, (long)l->main.interpreter, O_RDONLY | O_CLOEXEC, 0, 0, 0);
        if (fd < 0 || map_image(fd, &l->interp, 0, 0) < 0)
            run_natively(l, -ENOEXEC);
        SYS1(__NR_close, fd);
        go = l->interp.entry;
        interp_base = l->interp.bias;
    }
    const struct {
        uint64_t type, value;
    } known[] = {{AT_PHDR, l->main.headers}, {AT_PHNUM, l->main.count}, {AT_PHENT, sizeof(Elf64_Phdr)},
                 {AT_BASE, interp_base}, {AT_ENTRY, l->main.entry}};
    for (uint32_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if ((entry = aux_entry(aux, known[i].type)))
            *entry = known[i].value;
    if ((entry = aux_entry(aux, AT_EXECFN)))
        *entry = (uint64_t)l->name;
    if (l->main.stack_exec)
        SYS3(__NR_mprotect, PAGE((uint64_t)l->stack), 4096, 7 | 0x01000000 /* PROT_GROWSDOWN */);
    uint64_t brk = l->main.high + l->main.bias;
    if (!fixed)
        brk += ((random >> 40) & 0x1fff) << 12;
    describe(l, brk);
    set_name(l->name);
    *go_on = l->stack;
    return go;
}

__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    sub $16, %rsp\n"
        "    mov %rsp, %rsi\n"
        "    and $-16, %rsp\n"
        "    mov %rsi, %rbx\n"
        "    call load\n"
        "    mov (%rbx), %rsp\n"
        "    xor %edx, %edx\n"
        "    xor %ebx, %ebx\n"
        "    xor %ecx, %ecx\n"
        "    xor %esi, %esi\n"
        "    xor %edi, %edi\n"
        "    xor %r8d, %r8d\n"
        "    xor %r9d, %r9d\n"
        "    xor %r10d, %r10d\n"
        "    xor %r11d, %r11d\n"
        "    jmp *%rax\n");
#endif
