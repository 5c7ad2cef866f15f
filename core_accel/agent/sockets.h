/* Calls with the address of a socket: those that name files are the supervisor's. Part of agent.c. */
#ifndef UMVM_AGENT_SOCKETS_H
#define UMVM_AGENT_SOCKETS_H
#include "paths.h"

/* struct sockaddr: only AF_UNIX names files. */
static int names_file(uint64_t address, uint64_t length)
{
    return address && length >= 2 && readable(address, 2) && *(const uint16_t *)address == 1;
}

static NOINLINE int with_address(struct regs *r, int flow)
{
    uint64_t address, length;
    if (flow == UMVM_F_SENDMSG) {
        if (!readable(r->rsi, 16))
            return RUN;
        address = *(const uint64_t *)r->rsi;
        length = *(const uint32_t *)(r->rsi + 8);
    } else if (flow == UMVM_F_SENDTO)
        address = r->r8, length = r->r9;
    else
        address = r->rsi, length = r->rdx;
    return names_file(address, length) ? ask(r) : RUN;
}

/* The address of a socket: shown as it is, unless it is a file's. */
static NOINLINE int with_sockname(struct regs *r)
{
    int domain = 0, size = sizeof domain;
    return SYS6(__NR_getsockopt, r->rdi, 1 /* SOL_SOCKET */, 39 /* SO_DOMAIN */, &domain, &size, 0) == 0 && domain == 1
               ? ask(r)
               : RUN;
}
#endif
