/* Answers calls on sockets of virtual networks in C, as far as they are usual ones: modules/net/fabric/ says the same, and
   is asked about all else. No GIL here. */
#ifndef UMVM_FABCALLS_H
#define UMVM_FABCALLS_H
#include "fabbase.h"

/* --- streams ----------------------------------------------------------------------------------- */

/* Gives the socket a name that tells the connection (address.py: call_name). 0: it can't be done here. */
static int umvm_fab_call(struct umvm_sock *s, int fd, const struct umvm_addr *source, const struct umvm_addr *to)
{
    struct umvm_home *h = s->home;
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (s->called.size)
        return umvm_addr_same(&s->called, to) && s->called.port == to->port;
    for (int i = 0; i < UMVM_TRIES; i++) {
        struct umvm_addr own = *source;
        own.port = s->bound.size ? s->bound.port : umvm_port_free(h, s->protocol);
        if (!own.port)
            return 0;
        uint8_t ports[4] = {own.port >> 8, own.port & 255, to->port >> 8, to->port & 255};
        char *p = un.sun_path + 1;
        memcpy(p, "umvm", 4);
        memcpy(p + 4, h->ident, UMVM_IDENT);
        p = umvm_hex(p + 4 + UMVM_IDENT, ports, 4);
        p = umvm_hex(p, own.ip, own.size);
        p = umvm_hex(p, to->ip, to->size);
        if (bind(fd, (struct sockaddr *)&un, (socklen_t)(p - (char *)&un)) == 0) {
            s->called = *to;
            s->bound = own;
            return 1;
        }
        if (errno != EADDRINUSE || s->bound.size)
            return 0;
    }
    return 0;
}

/* Connects without waiting for room in the listener's queue. 0 or a positive errno. */
static int umvm_fab_reach(int fd, const struct sockaddr_un *un, socklen_t size, int blocks)
{
    struct timeval kept, moment = {0, 1000};
    socklen_t length = sizeof kept;
    if (blocks && (getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kept, &length) < 0 ||
                   setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &moment, sizeof moment) < 0))
        return errno;
    int e = connect(fd, (const struct sockaddr *)un, size) < 0 ? errno : 0;
    if (blocks)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kept, sizeof kept);
    return e;
}

static int umvm_fab_connect_locked(struct umvm_fabcall *c, const struct umvm_addr *to)
{
    struct umvm_sock *s = c->s;
    struct umvm_home *h = s->home;
    struct umvm_addr source;
    struct sockaddr_un un;
    char key[UMVM_KEY];
    if (s->kind != SOCK_STREAM || s->listening || s->peer.size || s->in_progress || s->error || h->shared ||
        (to->size == 4 && s->family == AF_INET6 && umvm_kept(s, 3, 26 /* IPV6_V6ONLY */)))
        return 0;
    if (!umvm_fab_route(h, to, key, &source))
        return 0;
    if (s->bound.size && !umvm_addr_any(&s->bound)) {
        source = s->bound;
        if (source.size != to->size)
            return 0;
    }
    int flags = fcntl(c->fd, F_GETFL), e = ENOENT;
    if (flags < 0 || !umvm_fab_call(s, c->fd, &source, to))
        return 0;
    for (int any = 0; any < 2 && (e == ENOENT || e == ECONNREFUSED); any++) {
        socklen_t size = umvm_fab_place(h, key, 't', to, any, &un);
        e = umvm_fab_reach(c->fd, &un, size, !(flags & O_NONBLOCK));
    }
    if (e)
        return 0;
    s->peer = *to;
    if (!(flags & O_NONBLOCK))
        return umvm_fab_value(c, 0);
    /* as TCP, it "takes some time", and who polls it already must hear of it: Stream._tell of stream.py */
    int size = 0;
    socklen_t length = sizeof size;
    s->in_progress = 1;
    if (getsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &size, &length) == 0) {
        size /= 2;
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    }
    return umvm_fab_error(c, EINPROGRESS);
}

static int umvm_fab_connect(struct umvm_fabcall *c)
{
    struct umvm_addr to;
    if (!umvm_fab_read(c, c->q->data.args[1], (int)c->q->data.args[2], &to) || pthread_mutex_trylock(&c->s->lock))
        return 0;
    int done = umvm_fab_connect_locked(c, &to);
    pthread_mutex_unlock(&c->s->lock);
    return done;
}

/* Both ends of a connection by the caller's name. */
static int umvm_fab_caller(const struct umvm_home *h, const struct sockaddr_un *un, socklen_t size, struct umvm_addr *client,
                           struct umvm_addr *server)
{
    int head = 5 + UMVM_IDENT, digits = (int)size - (int)offsetof(struct sockaddr_un, sun_path) - head;
    uint8_t raw[36];
    if ((digits != 24 && digits != 72) || un->sun_path[0] || memcmp(un->sun_path + 1, "umvm", 4) ||
        memcmp(un->sun_path + 5, h->ident, UMVM_IDENT) || !umvm_unhex(raw, un->sun_path + head, digits / 2))
        return 0;
    memset(client, 0, sizeof *client);
    memset(server, 0, sizeof *server);
    client->size = server->size = digits == 24 ? 4 : 16;
    client->port = raw[0] << 8 | raw[1];
    server->port = raw[2] << 8 | raw[3];
    memcpy(client->ip, raw + 4, client->size);
    memcpy(server->ip, raw + 4 + client->size, client->size);
    return 1;
}

/* Makes a socket known. NULL: it isn't, and is the interpreter's business. */
static struct umvm_sock *umvm_fab_enter(struct umvm_fabcall *c, struct umvm_home *h, int family, int kind, int protocol, int fd)
{
    struct stat st;
    struct umvm_sock *s = fstat(fd, &st) < 0 ? NULL : umvm_sock_new(h, family, kind, protocol);
    if (!s)
        return NULL;
    umvm_sock_enter(c->all, s, st.st_ino);
    umvm_route_count_socket(c->router, st.st_ino, 1);
    return s;
}

/* Waits for a moment until there is something to receive or accept, if no other worker does. */
static int umvm_fab_wait(struct umvm_fabcall *c)
{
    struct pollfd p = {c->fd, POLLIN, 0};
    int there = 0;
    if (__atomic_fetch_add(&c->all->waiters, 1, __ATOMIC_SEQ_CST) == 0)
        there = poll(&p, 1, UMVM_MOMENT) > 0;
    __atomic_sub_fetch(&c->all->waiters, 1, __ATOMIC_SEQ_CST);
    return there;
}

static int umvm_fab_readable(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, 0) > 0;
}

static int umvm_fab_accept_locked(struct umvm_fabcall *c, int flags, int room)
{
    struct umvm_sock *s = c->s, *made;
    struct umvm_addr client, server;
    struct sockaddr_un un;
    socklen_t size = sizeof un;
    int state = fcntl(c->fd, F_GETFL);
    if (state < 0)
        return 0;
    if (!umvm_fab_readable(c->fd)) {
        if (state & O_NONBLOCK)
            return umvm_fab_error(c, EAGAIN);
        if (!umvm_fab_wait(c))
            return 0;
    }
    int fd = accept4(c->fd, (struct sockaddr *)&un, &size, SOCK_CLOEXEC | (flags & SOCK_NONBLOCK));
    if (fd < 0)
        return 0;
    if (!umvm_fab_caller(s->home, &un, size, &client, &server)) {
        close(fd); /* nobody of this network */
        return umvm_fab_error(c, ECONNABORTED);
    }
    made = umvm_fab_enter(c, s->home, s->family, s->kind, s->protocol, fd);
    if (!made) {
        close(fd);
        return umvm_fab_error(c, ENOBUFS);
    }
    pthread_mutex_lock(&s->lock);
    made->reuse = s->reuse;
    made->kept_count = s->kept_count;
    memcpy(made->kept, s->kept, sizeof s->kept);
    pthread_mutex_unlock(&s->lock);
    made->bound = server;
    made->peer = client;
    umvm_sock_put(made);
    if (room >= 0 && umvm_fab_write(c, &client, c->q->data.args[1], c->q->data.args[2], room) < 0) {
        close(fd);
        return umvm_fab_error(c, EFAULT);
    }
    *c->v = (struct umvm_verdict){UMVM_FD, (flags & SOCK_CLOEXEC) != 0, fd};
    return 1;
}

static int umvm_fab_accept(struct umvm_fabcall *c, int flags)
{
    int room = c->q->data.args[1] ? umvm_fab_room(c, c->q->data.args[2]) : -1;
    if (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK) || !c->s->listening || c->s->more || (c->q->data.args[1] && room < 0) ||
        c->all->count > c->all->limit || pthread_mutex_trylock(&c->s->accepting))
        return 0;
    int done = umvm_fab_accept_locked(c, flags, room);
    pthread_mutex_unlock(&c->s->accepting);
    return done;
}

/* --- datagrams --------------------------------------------------------------------------------- */

/* Who sent a datagram, by the name of the socket (address.py: parse_name). 0: it tells nothing. */
static int umvm_fab_sender(const struct sockaddr_un *un, socklen_t size, char *key, struct umvm_addr *from)
{
    int n = (int)size - (int)offsetof(struct sockaddr_un, sun_path);
    char path[sizeof un->sun_path + 1], *end;
    if (n <= 0)
        return 0;
    memcpy(path, un->sun_path, n);
    path[n] = 0;
    char *base = strrchr(path, '/'), *dot;
    if (!base || base - path < UMVM_KEY + 1 || base[-UMVM_KEY - 1] != '/' || base[2] != '.' || !(dot = strchr(base + 3, '.')))
        return 0;
    memset(from, 0, sizeof *from);
    from->size = (dot - base - 3) / 2;
    if ((from->size != 4 && from->size != 16) || !umvm_unhex(from->ip, base + 3, from->size))
        return 0;
    memcpy(key, base - UMVM_KEY, UMVM_KEY);
    from->port = strtoul(dot + 1, &end, 16);
    return end > dot + 1 && (!*end || *end == '~');
}

/* The address to show of a sender (receive.py: _sender). */
static void umvm_fab_seen(struct umvm_sock *s, const char *key, struct umvm_addr *from)
{
    struct umvm_neighbour n;
    uint16_t port = from->port;
    if (!umvm_addr_any(from))
        return;
    int four = s->family == AF_INET || from->size == 4;
    if (s->bound.size && !umvm_addr_any(&s->bound))
        four = s->bound.size == 4;
    if (!memcmp(key, s->home->key, UMVM_KEY)) {
        if (s->bound.size && umvm_is_own(s->home, &s->bound))
            *from = s->bound;
        else
            umvm_addr_set_loopback(from, four ? 4 : 16);
    } else if (umvm_neighbour(s->home, NULL, key, four ? 4 : 16, &n))
        *from = n.ip;
    else {
        memset(from, 0, sizeof *from);
        from->size = 4;
    }
    from->port = port;
}

static int umvm_fab_recvfrom(struct umvm_fabcall *c)
{
    const __u64 *a = c->q->data.args;
    char data[UMVM_MAX_DATA + 32], key[UMVM_KEY];
    struct umvm_addr from;
    struct sockaddr_un un;
    int flags = (int)a[3], room = umvm_fab_room(c, a[5]), waited = 0;
    if (c->s->kind != SOCK_DGRAM || c->s->error || room < 0 ||
        flags & ~(MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC) || !umvm_hosts_known(c->s->home))
        return 0;
    for (;;) {
        struct iovec iov = {data, sizeof data};
        struct msghdr m = {.msg_name = &un, .msg_namelen = sizeof un, .msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = recvmsg(c->fd, &m, (flags & MSG_PEEK) | MSG_DONTWAIT);
        if (n >= 0) {
            uint64_t took = (uint64_t)n < a[2] ? (uint64_t)n : a[2];
            int named = m.msg_namelen > offsetof(struct sockaddr_un, sun_path);
            int known = named && umvm_fab_sender(&un, m.msg_namelen, key, &from);
            if (known)
                umvm_fab_seen(c->s, key, &from);
            else if (named && c->s->peer.size) { /* by the sink: from the one that it is connected to */
                from = c->s->peer;
                known = 1;
            }
            if ((took && umvm_copy(c->q->pid, data, a[1], took, 1) != (long)took) ||
                umvm_fab_write(c, known ? &from : NULL, a[4], a[5], room) < 0)
                return umvm_fab_error(c, EFAULT);
            return umvm_fab_value(c, flags & MSG_TRUNC ? (uint64_t)n : took);
        }
        if (errno != EAGAIN)
            return 0;
        int state = fcntl(c->fd, F_GETFL);
        if (flags & MSG_DONTWAIT || (state >= 0 && state & O_NONBLOCK))
            return umvm_fab_error(c, EAGAIN);
        if (waited++ || !umvm_fab_wait(c))
            return 0;
    }
}

/* Options that a datagram tells, by the name of another socket that sends it (ancillary.py). */
static int umvm_fab_marked(struct umvm_sock *s)
{
    return umvm_kept(s, 0, 1) || umvm_kept(s, 0, 2) || umvm_kept(s, 3, 16) || umvm_kept(s, 3, 67);
}

static int umvm_fab_sendto(struct umvm_fabcall *c)
{
    const __u64 *a = c->q->data.args;
    struct umvm_sock *s = c->s;
    struct umvm_home *h = s->home;
    char data[UMVM_MAX_DATA + 32], key[UMVM_KEY];
    struct umvm_addr to, source;
    struct sockaddr_un un;
    if (s->kind != SOCK_DGRAM || s->error || !s->bound.size || s->protocol != 17 || h->waiting || h->shared || a[2] > UMVM_MAX_DATA ||
        (int)a[3] & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CONFIRM) || umvm_fab_marked(s) ||
        !umvm_fab_read(c, a[4], (int)a[5], &to) || !to.port)
        return 0;
    if (to.size == 4 ? to.ip[3] == 255 || (to.ip[0] & 0xf0) == 0xe0 : to.ip[0] == 0xff)
        return 0; /* to many, perhaps */
    if (!umvm_fab_route(h, &to, key, &source))
        return 0;
    if (umvm_addr_any(&s->bound) && !memcmp(key, h->key, UMVM_KEY) && !umvm_addr_loopback(&source))
        return 0; /* the name doesn't tell all */
    if (a[2] && umvm_copy(c->q->pid, data, a[1], a[2], 0) != (long)a[2])
        return 0;
    for (int any = 0; any < 2; any++) {
        socklen_t size = umvm_fab_place(h, key, 'u', &to, any, &un);
        if (sendto(c->fd, data, a[2], MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&un, size) >= 0)
            return umvm_fab_value(c, (int64_t)a[2]);
        if (errno != ENOENT && errno != ECONNREFUSED)
            return 0;
    }
    return 0;
}

/* sendmsg, recvmsg: the kernel's where no address, and no control message for datagrams, is to be seen. */
static int umvm_fab_message(struct umvm_fabcall *c, int sends)
{
    static const uint8_t told[][2] = {{0, 8}, {0, 12}, {0, 13}, {3, 49}, {3, 51}, {3, 66}}; /* ancillary.py: _RECEIVED */
    struct msghdr m;
    if (umvm_copy(c->q->pid, &m, c->q->data.args[1], sizeof m, 0) != sizeof m || (m.msg_name && (!sends || m.msg_namelen)))
        return 0;
    if (c->s->kind == SOCK_DGRAM && sends && m.msg_controllen)
        return 0;
    for (unsigned i = 0; c->s->kind == SOCK_DGRAM && !sends && i < sizeof told / sizeof *told; i++)
        if (umvm_kept(c->s, told[i][0], told[i][1]))
            return 0;
    return umvm_fab_run(c);
}

/* --- options ----------------------------------------------------------------------------------- */

/* The option that holds an int, if it is one and of the socket's levels. */
static const struct umvm_option *umvm_fab_option(struct umvm_fabcall *c, int level, uint32_t number)
{
    int of_family = level == 0 || (level == 41 && c->s->family == AF_INET6), at = umvm_level(level);
    if (at < 0 || number >= UMVM_OPTIONS || !(level == SOL_SOCKET || of_family || level == c->s->protocol))
        return NULL;
    return c->all->options[at][number].known ? &c->all->options[at][number] : NULL;
}

static int umvm_fab_setsockopt(struct umvm_fabcall *c)
{
    const __u64 *a = c->q->data.args;
    struct umvm_sock *s = c->s;
    int level = (int)a[1], size = (int)a[4], value, kept;
    uint32_t number = (uint32_t)a[2];
    const struct umvm_option *o = umvm_fab_option(c, level, number);
    int noted = level == SOL_SOCKET && (number == SO_REUSEADDR || number == SO_BROADCAST);
    if (level == SOL_SOCKET && !o && !noted)
        return number == SO_PASSCRED || number == 34 || number == SO_BINDTODEVICE || number == 76 || size < 0 ? 0
                                                                                                             : umvm_fab_run(c);
    if (size < 4 || (!noted && (!o || number == SO_REUSEPORT)) || (level == 41 && number == 26) ||
        umvm_copy(c->q->pid, &value, a[3], sizeof value, 0) != sizeof value)
        return 0;
    if (noted) {
        *(number == SO_REUSEADDR ? &s->reuse : &s->broadcast) = value != 0;
        return umvm_fab_run(c);
    }
    if (value < o->low || value > o->high || pthread_mutex_trylock(&s->lock))
        return 0;
    kept = umvm_keep(s, umvm_level(level), (int)number, o->flag ? value != 0 : value);
    pthread_mutex_unlock(&s->lock);
    return kept ? umvm_fab_value(c, 0) : 0;
}

static int umvm_fab_getsockopt(struct umvm_fabcall *c)
{
    const __u64 *a = c->q->data.args;
    int level = (int)a[1], value, room = umvm_fab_room(c, a[4]), size;
    uint32_t number = (uint32_t)a[2];
    const struct umvm_option *o = umvm_fab_option(c, level, number);
    if (room < 0 || c->s->kept_count == UMVM_KEPT)
        return 0;
    if (level == SOL_SOCKET && number == SO_DOMAIN)
        value = c->s->family;
    else if (level == SOL_SOCKET && number == SO_PROTOCOL)
        value = c->s->protocol;
    else if (level == SOL_SOCKET && (number == SO_ERROR ? !c->s->error : number == SO_TYPE || number == SO_ACCEPTCONN ||
                                     (number >= SO_SNDBUF && number <= SO_LINGER && !o) || number == SO_REUSEADDR))
        return umvm_fab_run(c);
    else if (o) {
        struct umvm_kept *kept = umvm_kept(c->s, umvm_level(level), (int)number);
        value = kept ? kept->value : level == SOL_SOCKET ? 0 : o->first;
        if (level == 0 && number == 2 /* IP_TTL */ && value == -1)
            value = 64;
    } else
        return 0;
    size = room < 4 ? room : 4;
    if (umvm_copy(c->q->pid, &size, a[4], sizeof size, 1) != sizeof size ||
        (size && umvm_copy(c->q->pid, &value, a[3], size, 1) != size))
        return umvm_fab_error(c, EFAULT);
    return umvm_fab_value(c, 0);
}

/* --- all --------------------------------------------------------------------------------------- */

/* socket(2) of a process that uses the VM's first stack, as all do. */
static int umvm_fab_socket(struct umvm_fabcall *c)
{
    const __u64 *a = c->q->data.args;
    int family = (int)a[0], kind = (int)a[1] & 15, flags = (int)a[1] & ~15, protocol = kind == SOCK_STREAM ? 6 : 17;
    struct umvm_home *h = c->all->first;
    if (!h || !h->open || (family != AF_INET && family != AF_INET6) || (kind != SOCK_STREAM && kind != SOCK_DGRAM) ||
        flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK) || (a[2] && (int)a[2] != protocol) || !c->router->sockets ||
        c->all->count > c->all->limit)
        return 0;
    int fd = socket(AF_UNIX, kind | SOCK_CLOEXEC | (flags & SOCK_NONBLOCK), 0);
    if (fd < 0)
        return 0;
    struct umvm_sock *s = umvm_fab_enter(c, h, family, kind, protocol, fd);
    if (!s) {
        close(fd);
        return 0;
    }
    umvm_sock_put(s);
    *c->v = (struct umvm_verdict){UMVM_FD, (flags & SOCK_CLOEXEC) != 0, fd};
    return 1;
}

static int umvm_fab_ioctl(struct umvm_fabcall *c)
{
    static const uint32_t plain[] = {0x5421 /* FIONBIO */, 0x5450, 0x5451, 0x5452};
    for (unsigned i = 0; i < sizeof plain / sizeof *plain; i++)
        if ((uint32_t)c->q->data.args[1] == plain[i])
            return umvm_fab_run(c);
    return 0;
}

static int umvm_fab_known(struct umvm_fabcall *c)
{
    const struct umvm_sock *s = c->s;
    switch (c->q->data.nr) {
    case SYS_connect: return umvm_fab_connect(c);
    case SYS_accept: return umvm_fab_accept(c, 0);
    case SYS_accept4: return umvm_fab_accept(c, (int)c->q->data.args[3]);
    case SYS_getsockname: return umvm_fab_name(c, 0);
    case SYS_getpeername: return umvm_fab_name(c, 1);
    case SYS_sendto: return umvm_fab_sendto(c);
    case SYS_recvfrom: return umvm_fab_recvfrom(c);
    case SYS_sendmsg: return umvm_fab_message(c, 1);
    case SYS_recvmsg: return umvm_fab_message(c, 0);
    case SYS_setsockopt: return umvm_fab_setsockopt(c);
    case SYS_getsockopt: return umvm_fab_getsockopt(c);
    case SYS_shutdown: return s->peer.size || s->listening ? umvm_fab_run(c) : 0;
    case SYS_ioctl: return umvm_fab_ioctl(c);
    }
    return 0;
}

/* 1: *v is the answer; 0: it is for others to decide; 2: so it is, but no network stack wants to see it. */
static int umvm_fabric(struct umvm_socks *all, struct umvm_router *router, struct umvm_held_pids *held,
                       const struct seccomp_notif *q, struct umvm_verdict *v)
{
    struct umvm_fabcall c = {.all = all, .router = router, .q = q, .v = v};
    struct stat st;
    if (!all || (unsigned)q->data.nr >= sizeof all->calls || !all->calls[q->data.nr])
        return 0;
    if (q->data.nr == SYS_socket)
        return umvm_fab_socket(&c);
    if (q->data.nr == SYS_ioctl) {
        /* the close of a copy may mean something to a file, so it is looked first */
        if (!all->count || !umvm_route_socket(router, q->pid, (int)q->data.args[0]))
            return ((uint32_t)q->data.args[1] & ~0xffu) == 0x8900 ? 0 : 2; /* SIOC…: questions about interfaces */
    }
    if (!all->count)
        return 0;
    c.fd = umvm_held_getfd(held, q->pid, (int)q->data.args[0]);
    if (c.fd < 0)
        return 0;
    int done = 0;
    if (fstat(c.fd, &st) == 0 && S_ISSOCK(st.st_mode) && (c.s = umvm_sock_get(all, st.st_ino))) {
        done = umvm_fab_known(&c);
        umvm_sock_put(c.s);
    }
    close(c.fd);
    return done;
}
#endif
