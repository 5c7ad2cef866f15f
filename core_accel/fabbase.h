/* What the answers to calls on sockets of virtual networks (fabcalls.h) have in common: copies of guests' sockets,
   addresses, names, ways. No GIL here. */
#ifndef UMVM_FABBASE_H
#define UMVM_FABBASE_H
#include "fabric.h"
#include "route.h"
#include <sys/un.h>

enum {
    UMVM_HELD = 8,
    UMVM_MOMENT = 2, /* milliseconds that one worker may wait: an answer by another thread costs more */
    UMVM_MAX_DATA = 65507,
    UMVM_TRIES = 64,
};

struct umvm_held_pids { /* of one worker: pidfds of threads that it has served */
    int tid[UMVM_HELD], fd[UMVM_HELD];
};

struct umvm_fabcall {
    struct umvm_socks *all;
    struct umvm_router *router;
    const struct seccomp_notif *q;
    struct umvm_sock *s;
    int fd; /* a copy of the guest's socket */
    struct umvm_verdict *v;
};

static void umvm_held_close(struct umvm_held_pids *held)
{
    for (int i = 0; i < UMVM_HELD; i++)
        if (held->tid[i])
            close(held->fd[i]);
}

/* A copy of a guest's descriptor, or a negative errno. */
static int umvm_held_getfd(struct umvm_held_pids *held, int tid, int fd)
{
    int *known = &held->tid[tid % UMVM_HELD], *pidfd = &held->fd[tid % UMVM_HELD];
    if (*known == tid) {
        long copy = umvm_pidfd_getfd(*pidfd, fd);
        if (copy != -ESRCH)
            return (int)copy;
    }
    if (*known)
        close(*pidfd);
    *known = 0;
    long made = umvm_pidfd(tid);
    if (made < 0)
        return (int)made;
    *known = tid;
    *pidfd = (int)made;
    return (int)umvm_pidfd_getfd(*pidfd, fd);
}

static int umvm_fab_value(struct umvm_fabcall *c, int64_t value)
{
    *c->v = (struct umvm_verdict){UMVM_VALUE, 0, value};
    return 1;
}

static int umvm_fab_error(struct umvm_fabcall *c, int number)
{
    *c->v = (struct umvm_verdict){UMVM_ERROR, 0, number};
    return 1;
}

static int umvm_fab_run(struct umvm_fabcall *c)
{
    *c->v = (struct umvm_verdict){UMVM_RUN, 0, 0};
    return 1;
}

/* --- addresses --------------------------------------------------------------------------------- */

/* Reads a sockaddr of the socket's family; 0: it is unusual. */
static int umvm_fab_read(struct umvm_fabcall *c, uint64_t at, int size, struct umvm_addr *a)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    uint8_t raw[28] = {0};
    int least = c->s->family == AF_INET ? 16 : 24, n = size < 28 ? size : 28;
    if (size < least || size > 128 || umvm_copy(c->q->pid, raw, at, n, 0) != n || (raw[0] | raw[1] << 8) != c->s->family)
        return 0;
    memset(a, 0, sizeof *a);
    a->port = raw[2] << 8 | raw[3];
    if (c->s->family == AF_INET) {
        a->size = 4;
        memcpy(a->ip, raw + 4, 4);
    } else if (!memcmp(raw + 8, mapped, 12)) {
        a->size = 4;
        memcpy(a->ip, raw + 20, 4);
    } else {
        a->size = 16;
        memcpy(a->ip, raw + 8, 16);
    }
    if (umvm_addr_any(a))
        umvm_addr_set_loopback(a, a->size);
    return 1;
}

static int umvm_fab_pack(int family, const struct umvm_addr *a, uint8_t *out)
{
    int size = family == AF_INET ? 16 : 28;
    memset(out, 0, 28);
    out[0] = family;
    out[2] = a->port >> 8;
    out[3] = a->port & 255;
    if (family == AF_INET && a->size == 4)
        memcpy(out + 4, a->ip, 4);
    else if (family == AF_INET6 && a->size == 16)
        memcpy(out + 8, a->ip, 16);
    else if (family == AF_INET6 && a->size == 4 && !umvm_addr_any(a)) {
        out[18] = out[19] = 0xff;
        memcpy(out + 20, a->ip, 4);
    }
    return size;
}

/* How much room there is for an address; −1: it can't be read, or is no size. */
static int umvm_fab_room(struct umvm_fabcall *c, uint64_t at)
{
    int room;
    return umvm_copy(c->q->pid, &room, at, sizeof room, 0) == sizeof room && room >= 0 ? room : -1;
}

/* Stores an address (NULL: none) where there is `room`; 0 or −EFAULT. */
static int umvm_fab_write(struct umvm_fabcall *c, const struct umvm_addr *a, uint64_t at, uint64_t size_at, int room)
{
    uint8_t raw[28];
    int size = a ? umvm_fab_pack(c->s->family, a, raw) : 0, n = size < room ? size : room;
    if (n && umvm_copy(c->q->pid, raw, at, n, 1) != n)
        return -EFAULT;
    return umvm_copy(c->q->pid, &size, size_at, sizeof size, 1) == sizeof size ? 0 : -EFAULT;
}

static int umvm_fab_name(struct umvm_fabcall *c, int peer)
{
    struct umvm_sock *s = c->s;
    struct umvm_addr none = {.size = s->family == AF_INET ? 4 : 16}, told;
    int room = umvm_fab_room(c, c->q->data.args[2]);
    if (room < 0)
        return 0;
    pthread_mutex_lock(&s->lock);
    told = peer ? s->peer : s->shown.size && s->peer.size ? s->shown : s->bound.size ? s->bound : none;
    pthread_mutex_unlock(&s->lock);
    if (!told.size)
        return 0;
    int e = umvm_fab_write(c, &told, c->q->data.args[1], c->q->data.args[2], room);
    return e ? umvm_fab_error(c, -e) : umvm_fab_value(c, 0);
}

static char *umvm_hex(char *out, const uint8_t *data, int size)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < size; i++) {
        *out++ = digits[data[i] >> 4];
        *out++ = digits[data[i] & 15];
    }
    return out;
}

static int umvm_unhex(uint8_t *out, const char *text, int size)
{
    for (int i = 0; i < 2 * size; i++) {
        int digit = text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : text[i] >= 'a' && text[i] <= 'f' ? text[i] - 'a' + 10 : -1;
        if (digit < 0)
            return 0;
        out[i / 2] = i & 1 ? out[i / 2] | digit : digit << 4;
    }
    return 1;
}

/* The place of a socket in the network's directory (address.py: name). */
static socklen_t umvm_fab_place(const struct umvm_home *h, const char *key, char kind, const struct umvm_addr *to, int any,
                                struct sockaddr_un *un)
{
    static const uint8_t none[16];
    char ip[33];
    *umvm_hex(ip, any ? none : to->ip, to->size) = 0;
    un->sun_family = AF_UNIX;
    int n = snprintf(un->sun_path, sizeof un->sun_path, "/proc/self/fd/%d/%.8s/%c.%s.%x", h->fd, key, kind, ip, to->port);
    return offsetof(struct sockaddr_un, sun_path) + n + 1;
}

/* Where an address leads: the key of its host, and the address of ours to reach it from. 0: the interpreter knows. */
static int umvm_fab_route(struct umvm_home *h, const struct umvm_addr *to, char *key, struct umvm_addr *source)
{
    struct umvm_neighbour n;
    if (!h->open || h->watched)
        return 0;
    memset(source, 0, sizeof *source);
    if (umvm_addr_loopback(to) || umvm_is_own(h, to)) {
        memcpy(key, h->key, UMVM_KEY);
        if (umvm_addr_loopback(to))
            umvm_addr_set_loopback(source, to->size);
        else
            *source = *to;
        return 1;
    }
    if (!h->direct || !umvm_hosts_known(h) || !umvm_neighbour(h, to, NULL, 0, &n) || !n.direct)
        return 0;
    memcpy(key, n.key, UMVM_KEY);
    for (int i = 0; i < h->own_count && !source->size; i++)
        if (h->own[i].size == to->size)
            *source = h->own[i];
    return source->size != 0;
}
#endif
