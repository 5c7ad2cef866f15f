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
};

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

/* Maps the whole range with the file's first segment, over which the others are put. Its address, or −errno. */
static long map_range(int fd, const struct image *im, uint64_t base, uint64_t align, const Elf64_Phdr *first, int fixed)
{
    uint64_t span = im->high - im->low, offset = PAGE(first->p_offset);
    int prot = (first->p_flags & PF_R ? 1 : 0) | (first->p_flags & PF_W ? 2 : 0) | (first->p_flags & PF_X ? 4 : 0);
    long at = -EEXIST;
    if (!first->p_filesz || PAGE(first->p_vaddr) != im->low)
        return -ENOEXEC;
    if (fixed)
        return SYS6(__NR_mmap, im->low, span, prot, PRIVATE | FIXED_NOREPLACE, fd, offset);
    if (base)
        at = SYS6(__NR_mmap, (base + align - 1) & ~(align - 1), span, prot, PRIVATE | FIXED_NOREPLACE, fd, offset);
    if (!failed(at))
        return at;
    if (align <= 4096)
        return SYS6(__NR_mmap, 0, span, prot, PRIVATE, fd, offset);
    at = SYS6(__NR_mmap, 0, span + align, 0, PRIVATE | ANON | NORESERVE, -1, 0);
    if (failed(at))
        return at;
    uint64_t start = ((uint64_t)at + align - 1) & ~(align - 1);
    if (start > (uint64_t)at)
        SYS2(__NR_munmap, at, start - (uint64_t)at);
    SYS2(__NR_munmap, start + span, (uint64_t)at + align - start);
    return SYS6(__NR_mmap, start, span, prot, PRIVATE | FIXED, fd, offset);
}

/* Maps one segment. 0 or −errno. */
static long map_segment(int fd, const struct stat *st, const Elf64_Phdr *p, uint64_t start, int mapped)
{
    uint64_t pad = p->p_vaddr & 4095, offset = p->p_offset - pad;
    uint64_t file = p->p_filesz ? p->p_filesz + pad : 0, memory = p->p_memsz + pad, from = start + file;
    int prot = (p->p_flags & PF_R ? 1 : 0) | (p->p_flags & PF_W ? 2 : 0) | (p->p_flags & PF_X ? 4 : 0);
    int patched = prot == 5 && file ? patch_mapping(fd, st, start, file, offset) : -1;
    if (file && patched != 1 && !mapped) {
        long r = SYS6(__NR_mmap, start, file, prot, PRIVATE | FIXED, fd, offset);
        if (failed(r))
            return r;
    }
    if (patched == 0) { /* not known yet: the supervisor sees it mapped once more, and has it analysed */
        struct regs again = {__NR_mmap, start, file, (uint64_t)prot, PRIVATE | FIXED, (uint64_t)fd, offset};
        __atomic_add_fetch(&STATE->unpatched, 1, __ATOMIC_RELAXED);
        ask_gate(&again);
    }
    if (memory <= file)
        return 0;
    uint64_t page = file ? PAGE_UP(from) : start, to = PAGE_UP(start + memory);
    if (file && prot & 2 && page > from)
        memset((void *)from, 0, page - from);
    long r = to > page ? SYS6(__NR_mmap, page, to - page, prot, PRIVATE | ANON | FIXED, -1, 0) : 0;
    return failed(r) ? r : 0;
}

static Elf64_Phdr many_segments[MAX_SEGMENTS] PRIVATE_DATA;

/* Up to the text, so that no gap is left in which the kernel might put what a guest maps. */
static char fill[UMVM_TEXT - UMVM_SELF - sizeof(struct umvm_self) - sizeof slots - sizeof rooms - sizeof many_segments - 4096] PRIVATE_DATA;

/* Maps one file of the program; `interpreter` (256 bytes): where its interpreter's path goes, or NULL. 0, or a negative
   errno; −ENOEXEC: better let the kernel do it. */
static NOINLINE long map_image(int fd, struct image *im, struct stat *st, uint64_t base, char *interpreter)
{
    union {
        Elf64_Ehdr header;
        char bytes[1024];
    } head;
    long n = SYS4(__NR_pread64, fd, &head, sizeof head, 0);
    const Elf64_Ehdr *e = &head.header;
    if (!is_program(head.bytes, n) || e->e_phnum == 0 || e->e_phnum > MAX_SEGMENTS || SYS2(__NR_fstat, fd, st) < 0)
        return -ENOEXEC;
    const Elf64_Phdr *segments = (const Elf64_Phdr *)(head.bytes + e->e_phoff), *first = 0;
    uint64_t size = e->e_phnum * sizeof(Elf64_Phdr), align = 4096;
    if (e->e_phoff > (uint64_t)n || e->e_phoff + size > (uint64_t)n || e->e_phoff & 7) {
        if (SYS4(__NR_pread64, fd, many_segments, size, e->e_phoff) != (long)size)
            return -ENOEXEC;
        segments = many_segments;
    }
    memset(im, 0, sizeof *im);
    im->low = ~0ull;
    im->count = e->e_phnum;
    for (uint32_t i = 0; i < im->count; i++) {
        const Elf64_Phdr *p = &segments[i];
        if (p->p_type == PT_GNU_STACK)
            im->stack_exec = p->p_flags & PF_X;
        if (p->p_type == PT_INTERP && interpreter &&
            (p->p_filesz < 2 || p->p_filesz > 256 ||
             SYS4(__NR_pread64, fd, interpreter, p->p_filesz, p->p_offset) != (long)p->p_filesz ||
             interpreter[p->p_filesz - 1]))
            return -ENOEXEC;
        if (p->p_type != PT_LOAD || p->p_memsz == 0)
            continue;
        if (p->p_filesz > p->p_memsz || p->p_memsz > 0x7fffffffffffull || ((p->p_vaddr ^ p->p_offset) & 4095))
            return -ENOEXEC;
        if (!first)
            first = p;
        if (PAGE(p->p_vaddr) < im->low)
            im->low = PAGE(p->p_vaddr);
        if (PAGE_UP(p->p_vaddr + p->p_memsz) > im->high)
            im->high = PAGE_UP(p->p_vaddr + p->p_memsz);
        if (p->p_align > align && !(p->p_align & (p->p_align - 1)))
            align = p->p_align;
    }
    if (!first || im->high <= im->low)
        return -ENOEXEC;
    long at = map_range(fd, im, base, align, first, e->e_type == ET_EXEC);
    if (failed(at) || (e->e_type == ET_EXEC && at != (long)im->low))
        return -ENOEXEC; /* the range is ours, or the kernel knows better */
    im->bias = (uint64_t)at - im->low;
    uint64_t end = (uint64_t)at; /* of what is mapped */
    for (uint32_t i = 0; i < im->count; i++) {
        const Elf64_Phdr *p = &segments[i];
        if (p->p_type == PT_PHDR)
            im->headers = im->bias + p->p_vaddr;
        if (p->p_type != PT_LOAD || p->p_memsz == 0)
            continue;
        uint64_t start = im->bias + PAGE(p->p_vaddr);
        if (start > end)
            SYS2(__NR_munmap, end, start - end); /* the kernel leaves gaps unmapped */
        if (!im->headers && p->p_offset <= e->e_phoff && e->e_phoff < p->p_offset + p->p_filesz)
            im->headers = im->bias + p->p_vaddr + e->e_phoff - p->p_offset;
        long r = map_segment(fd, st, p, start, p == first);
        if (r)
            return r;
        end = PAGE_UP(im->bias + p->p_vaddr + p->p_memsz);
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

/* Puts the words of a script's first line in place of argv[0]: vector and strings are made anew below. The vector. */
static uint64_t *put_words(uint64_t *old, const char *words, uint32_t count)
{
    uint64_t argc = old[0], *aux = auxiliary(old), n = 0, kept = argc ? argc - 1 : 0, size = 0;
    char **argv = (char **)(old + 1);
    while (aux[n])
        n += 2;
    n += 2;
    uint64_t vector = 1 + (count + kept) + 1 + (uint64_t)(aux - (old + 1 + argc + 1)) + n;
    const char *front = words;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t m = text_length(front) + 1;
        size += m;
        front += m;
    }
    for (uint64_t i = argc - kept; i < argc; i++)
        size += text_length(argv[i]) + 1;
    char *top = (char *)__builtin_frame_address(0) - 16384; /* below what we stand on and will */
    char *strings = (char *)((uint64_t)top - ((size + 15) & ~15ull));
    uint64_t *fresh = (uint64_t *)(((uint64_t)strings - vector * 8) & ~15ull), *p = fresh;
    *p++ = count + kept;
    front = words;
    for (uint64_t i = 0; i < count + kept; i++) {
        const char *word = i < count ? front : argv[argc - kept + (i - count)];
        uint64_t m = text_length(word) + 1;
        memcpy(strings, word, m);
        *p++ = (uint64_t)strings;
        strings += m;
        if (i < count)
            front += m;
    }
    *p++ = 0;
    for (uint64_t *q = old + 1 + argc + 1; q < aux + n; q++)
        *p++ = *q;
    return fresh;
}

/* What /proc/PID/cmdline, stat and auxv show, and where the heap is (prctl(2), PR_SET_MM_MAP). */
static void describe(uint64_t *stack, const struct image *im, uint64_t brk)
{
    uint64_t *aux = auxiliary(stack), argc = stack[0], n = 0, count = 0;
    char **argv = (char **)(stack + 1), **envp = argv + argc + 1;
    while (aux[n])
        n += 2;
    while (envp[count])
        count++;
    struct prctl_mm_map map;
    memset(&map, 0, sizeof map);
    map.start_code = im->code[0];
    map.end_code = im->code[1];
    map.start_data = im->data[0];
    map.end_data = im->data[1];
    map.start_brk = map.brk = brk;
    map.start_stack = (uint64_t)stack;
    map.arg_start = argc ? (uint64_t)argv[0] : (uint64_t)stack;
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

/* The program as the kernel would run it, without agent; UMVM_NATIVELY says so (umvm/syscalls/execute.py). */
static _Noreturn void run_natively(uint64_t *stack)
{
    uint64_t argc = stack[0];
    char **argv = (char **)(stack + 1);
    struct regs r = {__NR_execve, (uint64_t)SELF->exe, (uint64_t)argv, (uint64_t)(argv + argc + 1), UMVM_NATIVELY, 0, 0};
    if (ROUTE->redirected)
        ask_gate(&r); /* its interpreter may be another one than the kernel would find */
    else
        run_here(&r);
    stop("can't load the program");
}

/* The end of the loader's text and constants: sections without a place of their own come last. */
__asm__(".section .zend,\"a\",@progbits\n.globl umvm_text_end\numvm_text_end:\n.byte 0\n.text\n");
extern char umvm_text_end[];

/* Reads the mailbox and gives it back. The stack to go on with; *name: what was executed. */
static NOINLINE uint64_t *read_mailbox(volatile struct umvm_mailbox *m, uint64_t *stack, const char **name)
{
    uint32_t n = 0, at = m->name;
    m->loads++;
    while (n < 4095 && (SELF->exe[n] = m->text[n]))
        n++;
    SELF->exe[n] = 0;
    *name = SELF->exe;
    if (at) {
        char *to = SELF->exe + 4096;
        *name = to;
        for (n = 0; n < 4095 && (to[n] = m->text[at + n]); n++)
            ;
        to[n] = 0;
    }
    if (m->count)
        stack = put_words(stack, (const char *)m->text + m->front, m->count);
    give_mailbox(m);
    return stack;
}

static NOINLINE uint32_t number_of(const char *own, size_t n)
{
    if (n < 6 || n > 300 || own[n - 5] != '/' || own[n - 4] != 'l' || own[n - 3] != '/' || !all_digits(own + n - 2, 2))
        stop("this program is part of umvm and only of use to it");
    uint32_t number = (uint32_t)(own[n - 2] - '0') * 10 + (uint32_t)(own[n - 1] - '0');
    if (number >= UMVM_MAILBOXES)
        stop("no such mailbox");
    return number;
}

static NOINLINE void map_area(const char *own, size_t n)
{
    char path[320];
    uint64_t from = PAGE_UP((uint64_t)umvm_text_end);
    memcpy(path, own, n - 4);
    memcpy(path + n - 4, "area", 5);
    int fd = (int)SYS4(__NR_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    long r = fd < 0 ? fd
                    : SYS6(__NR_mmap, from, UMVM_GATE - from, 5, 1 /* MAP_SHARED */ | FIXED_NOREPLACE, fd, from - UMVM_AGENT_BASE);
    if (!failed(r))
        r = SYS3(__NR_mprotect, UMVM_STATE, PAGE_UP(sizeof(struct umvm_state)), 3);
    if (failed(r) || ROUTE->stamp != UMVM_ENV_STAMP)
        stop("the virtual machine is gone, or there is no memory");
    SYS1(__NR_close, fd);
}

static int open_raw(const char *path) { return (int)SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0); }

/* Opens a part of the program as the guest would. */
static int open_part(const char *path)
{
    return (int)call_as_guest(__NR_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
}

/* Returns the address to go to; *go_on is where the program's stack begins. */
__attribute__((used)) uint64_t load(uint64_t *stack, uint64_t **go_on)
{
    struct image program, interp;
    struct stat st;
    char interpreter[256];
    uint64_t *aux = auxiliary(stack), *entry = aux_entry(aux, AT_EXECFN);
    if (!entry)
        stop("no AT_EXECFN");
    const char *own = (const char *)*entry, *name;
    size_t n = text_length(own);
    uint32_t number = number_of(own, n);
    map_area(own, n);
    stack = read_mailbox(&STATE->mailboxes[number], stack, &name);
    aux = auxiliary(stack);
    SELF->map_generation = 1;
    SELF->entry = umvm_entry;
    entry = aux_entry(aux, AT_SYSINFO_EHDR);
    SELF->clock = (uint64_t(*)(int, void *))find_clock(entry ? (const char *)*entry : 0);

    uint64_t random = 0;
    int fixed = (SYS1(__NR_personality, 0xffffffff) & 0x0040000) != 0; /* ADDR_NO_RANDOMIZE */
    entry = aux_entry(aux, AT_RANDOM);
    if (entry && !fixed)
        random = hash_text(0, (const char *)*entry, 16);
    interpreter[0] = 0;
    if ((entry = aux_entry(aux, AT_EUID)))
        SELF->who = (uint32_t)*entry;
    int fd = open_raw(SELF->exe);
    if (fd < 0 || map_image(fd, &program, &st, PIE_BASE + ((random & 0xfffffff) << 12), interpreter) < 0)
        run_natively(stack);
    SELF->exe_dev = st.st_dev;
    SELF->exe_ino = st.st_ino;
    if (SELF->exe[0] != '/') { /* "./program": relative to a directory that may change */
        struct slot *s = take_slot();
        long length = link_of_fd(fd, s->base);
        size_t text = text_length(name) + 1;
        if (name == SELF->exe) {
            memcpy(SELF->exe + 4096, name, text);
            name = SELF->exe + 4096;
        }
        memcpy(SELF->exe, s->base, length > 0 ? (size_t)length : 0);
        SELF->exe[length > 0 ? length : 0] = 0;
        SELF->exe_known = 1;
        give_slot(s);
    } else if (name == SELF->exe) {
        size_t text = text_length(name) + 1; /* it stays when `exe` becomes canonical */
        name = memcpy(SELF->exe + (text < 1024 ? 2048 : 4096), name, text);
    }
    SYS1(__NR_close, fd);
    uint64_t go = program.entry, interp_base = 0;
    if (interpreter[0]) {
        fd = open_part(interpreter);
        if (fd < 0 || map_image(fd, &interp, &st, 0, 0) < 0)
            run_natively(stack);
        SYS1(__NR_close, fd);
        go = interp.entry;
        interp_base = interp.bias;
    } else
        SELF->unlinked = program.bias == 0; /* valgrind's tools: what they map runs as they think it should */
    const uint64_t known[][2] = {{AT_PHDR, program.headers}, {AT_PHNUM, program.count}, {AT_PHENT, sizeof(Elf64_Phdr)},
                                 {AT_BASE, interp_base}, {AT_ENTRY, program.entry}, {AT_EXECFN, (uint64_t)name}};
    for (uint32_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if ((entry = aux_entry(aux, known[i][0])))
            *entry = known[i][1];
    if (program.stack_exec)
        SYS3(__NR_mprotect, PAGE((uint64_t)stack), 4096, 7 | 0x01000000 /* PROT_GROWSDOWN */);
    uint64_t brk = program.high + program.bias;
    if (!fixed)
        brk += ((random >> 40) & 0x1fff) << 12;
    describe(stack, &program, brk);
    set_name(name);
    *go_on = stack;
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
