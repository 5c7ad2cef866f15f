/* Calls, memory and time for code without a C library. */
#ifndef UMVM_AGENT_BASE_H
#define UMVM_AGENT_BASE_H
#include "layout.h"
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <asm/stat.h>
#include <stddef.h>
#include <stdint.h>
#include <asm/unistd.h>

#define ROUTE ((const volatile struct umvm_route_area *)(uintptr_t)UMVM_ROUTE)
#define STATE ((volatile struct umvm_state *)(uintptr_t)UMVM_STATE)
#define SELF ((struct umvm_self *)(uintptr_t)UMVM_SELF)
#define NOINLINE __attribute__((noinline))

/* Data of the process: not in .bss, so that all of it is one mapping at a known place. */
#define PRIVATE_DATA __attribute__((section(".self,\"aw\",@nobits#"), used))
struct umvm_self umvm_self PRIVATE_DATA; /* the first, at UMVM_SELF */

struct regs {
    uint64_t rax, rdi, rsi, rdx, r10, r8, r9;
};

static inline long sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
#define SYS6(n, a, b, c, d, e, f) sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SYS4(n, a, b, c, d) SYS6(n, a, b, c, d, 0, 0)
#define SYS3(n, a, b, c) SYS6(n, a, b, c, 0, 0, 0)
#define SYS2(n, a, b) SYS6(n, a, b, 0, 0, 0, 0)
#define SYS1(n, a) SYS6(n, a, 0, 0, 0, 0, 0)

void *memset(void *d, int c, size_t n)
{
    void *r = d;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return r;
}

void *memcpy(void *d, const void *s, size_t n)
{
    void *r = d;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    return r;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *p = a, *q = b;
    for (; n; n--, p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}

static size_t text_length(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

/* The coarse monotonic clock in units, as the supervisor counts them (hostlook.h). */
static uint64_t now_units(void)
{
    int64_t t[2] = {0, 0};
    if (SELF->clock)
        SELF->clock(6 /* CLOCK_MONOTONIC_COARSE */, t);
    else
        SYS2(__NR_clock_gettime, 6, t);
    return ((uint64_t)t[0] * (1000 / UMVM_UNIT_MS) + (uint64_t)t[1] / (1000000 * UMVM_UNIT_MS));
}

/* May this page be read? Asked of the kernel once, and again after memory was unmapped or protected.
   rt_sigprocmask copies the set before it looks at `how`: EFAULT or EINVAL, and nothing happens
   (kernel/signal.c). */
static NOINLINE int probe_page(uint64_t page)
{
    uint64_t *entry = &SELF->pages[page % 128];
    uint64_t known = page << 28 | (SELF->map_generation & 0xfffffff);
    if (SYS4(__NR_rt_sigprocmask, 99, page << 12, 0, 8) == -EFAULT)
        return 0;
    *entry = known;
    return 1;
}

static inline int page_readable(uint64_t page)
{
    return page && (SELF->pages[page % 128] == (page << 28 | (SELF->map_generation & 0xfffffff)) || probe_page(page));
}

static int readable(uint64_t address, uint64_t size)
{
    if (address + size < address || address + size > 0x7ffffffff000ull)
        return 0;
    for (uint64_t page = address >> 12; page <= (address + size - 1) >> 12; page++)
        if (!page_readable(page))
            return 0;
    return 1;
}

/* Memory was unmapped, or its protection changed. */
static inline void maps_changed(void) { __atomic_add_fetch(&SELF->map_generation, 1, __ATOMIC_RELAXED); }

/* --- verified paths ------------------------------------------------------------------------------ */

#define MIX 0x9E3779B97F4A7C15ull

static inline uint64_t hash_step(uint64_t h, uint64_t word)
{
    h = (h ^ word) * MIX;
    return h ^ h >> 29;
}

/* Hash of bytes that may be read; eight at a time. */
static uint64_t hash_text(uint64_t h, const char *s, size_t n)
{
    for (; n >= 8; n -= 8, s += 8)
        h = hash_step(h, *(const uint64_t *)s);
    uint64_t last = n;
    for (size_t i = 0; i < n; i++)
        last = last << 8 | (unsigned char)s[i];
    h = hash_step(h, last);
    return h * MIX;
}

static inline volatile uint64_t *verified_entry(uint64_t hash)
{
    return &STATE->prefixes[(hash ^ hash >> 24) % UMVM_PREFIXES];
}

static inline int verified(uint64_t hash, uint64_t now)
{
    uint64_t entry = *verified_entry(hash);
    uint64_t age = (now - entry) & UMVM_TIME;
    return ((entry ^ hash) & ~UMVM_TIME) == 0 && age < UMVM_AGE && now - age > STATE->since;
}

#define SEED_ABSOLUTE 0x51a7ull
#define SEED_FULL 0xf011ull
#define SEED_SEEN 0x5ee0ull

/* `now` is the time before it was looked at. */
static inline void remember(uint64_t hash, uint64_t now)
{
    if (now > STATE->since)
        *verified_entry(hash) = (hash & ~UMVM_TIME) | (now & UMVM_TIME);
}

/* A link or a directory has come to a name: what was verified until now is void. */
static inline void forget_paths(void) { STATE->since = now_units(); }
#endif
