/* Calls that map memory: the agent's own stays, and text of files that were patched is mapped patched. Part of agent.c. */
#ifndef UMVM_AGENT_MAPS_H
#define UMVM_AGENT_MAPS_H
#include "text.h"

/* Is memory of the agent in this range? */
static inline int is_ours(uint64_t address, uint64_t size)
{
    return address < UMVM_GATE + UMVM_GATES * UMVM_GATE_SIZE && address + size > UMVM_AGENT_BASE;
}

/* Memory is mapped over, unmapped or protected: the vDSO's functions may be gone, or the pages before it that they read. */
static inline void leave_clock(uint64_t address, uint64_t size)
{
    uint64_t clock = (uint64_t)SELF->clock;
    if (address < clock + 4096 && address + size > clock - 65536)
        SELF->clock = 0;
}

static NOINLINE int with_mmap(struct regs *r)
{
    uint64_t flags = r->r10;
    if (flags & 0x10) { /* MAP_FIXED */
        maps_changed();
        leave_clock(r->rdi, r->rsi);
        if (is_ours(r->rdi, r->rsi))
            return done(r, -ENOMEM);
    }
    if (flags & 0x20) /* MAP_ANONYMOUS */
        return RUN;
    if (served_fd((int)r->r8))
        return ask(r);
    if (!(r->rdx & 4))
        return RUN;
    long a = run_here(r);
    if (a < 0 && a > -4096)
        return done(r, a);
    struct stat st;
    if (r->rdx == 5 && (flags & 0xf) == 2 && SYS2(__NR_fstat, r->r8, &st) == 0 &&
        patch_mapping((int)r->r8, &st, (uint64_t)a, r->rsi, r->r9) == 0) {
        /* not known yet: the supervisor sees the mapping made once more, and has the file analysed */
        struct regs again = *r;
        again.rdi = (uint64_t)a;
        again.r10 |= 0x10;
        __atomic_add_fetch(&STATE->unpatched, 1, __ATOMIC_RELAXED);
        ask_gate(&again);
    }
    return done(r, a);
}
#endif
