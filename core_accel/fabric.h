/* The sockets of virtual networks, as the engine and the interpreter know them: one record each, by inode number.

   A record is the truth about its socket; the interpreter's objects look into it (fabric.pyx). What the engine makes
   itself (fabcalls.h) has no such object until somebody needs one. No GIL here. */
#ifndef UMVM_FABRIC_H
#define UMVM_FABRIC_H
#include "kernel.h"
#include <pthread.h>

enum {
    UMVM_SOCK_CHAINS = 1 << 13,
    UMVM_KEPT = 10, /* options that a record holds */
    UMVM_OWN_IPS = 8,
    UMVM_OPTION_LEVELS = 6,
    UMVM_OPTIONS = 128,
    UMVM_FIRST_EPHEMERAL = 32768,
    UMVM_LAST_EPHEMERAL = 60999,
    UMVM_KEY = 8, /* characters of a host's name in its network's directory */
    UMVM_IDENT = 24,
};

struct umvm_addr { /* size 0: none; ports are in host order */
    uint8_t size, ip[16];
    uint16_t port;
};

struct umvm_kept {
    uint8_t level, number; /* level: umvm_level */
    int value;
};

struct umvm_neighbour { /* an address of a host on the network */
    struct umvm_addr ip;
    char key[UMVM_KEY];
    int direct; /* nothing holds up, loses or looks at what is sent there */
};

struct umvm_home { /* a host of ours */
    int refs, number, fd;
    char key[UMVM_KEY], ident[UMVM_IDENT];
    int open, direct;    /* direct: none of its settings is about what it sends */
    int watched;         /* even what it sends to itself is looked at */
    int waiting;         /* datagrams wait for a receiver, and those to come must not overtake them */
    int shared;          /* sockets with SO_REUSEPORT */
    int own_count;
    struct umvm_addr own[UMVM_OWN_IPS];
    pthread_mutex_t lock; /* of what follows */
    uint64_t stamp;      /* when the directory of hosts had changed; 0: unknown */
    int count;
    struct umvm_neighbour *neighbours;
    uint32_t ports[3][2048]; /* by protocol: those that are bound */
    uint16_t next[3];
};

struct umvm_sock {
    struct umvm_sock *chain;
    uint64_t inode;
    struct umvm_home *home;
    int refs, error;
    pthread_mutex_t lock, accepting; /* held while addresses change; while somebody takes a connection */
    uint16_t protocol;
    uint8_t family, kind, listening, in_progress, reuse, broadcast;
    uint8_t more; /* options that only the interpreter knows */
    uint8_t kept_count;
    struct umvm_kept kept[UMVM_KEPT];
    struct umvm_addr bound, peer, called, shown; /* called: whom its name tells; shown: by getsockname once connected */
};

struct umvm_option { /* one that holds an int (modules/net/fabric/options.py) */
    uint8_t known, flag;
    int first, low, high;
};

struct umvm_socks {
    pthread_mutex_t lock; /* of the chains */
    int count, limit;     /* above the limit the interpreter has to look which are gone */
    int waiters;          /* workers that wait for a moment */
    struct umvm_home *first; /* that of new sockets; NULL: the interpreter knows */
    uint8_t calls[512];   /* those that may be answered here */
    struct umvm_option options[UMVM_OPTION_LEVELS][UMVM_OPTIONS];
    struct umvm_sock *chains[UMVM_SOCK_CHAINS];
};

static inline void umvm_home_put(struct umvm_home *h)
{
    if (__atomic_sub_fetch(&h->refs, 1, __ATOMIC_SEQ_CST) == 0) {
        free(h->neighbours);
        free(h);
    }
}

static inline struct umvm_sock *umvm_sock_new(struct umvm_home *h, int family, int kind, int protocol)
{
    struct umvm_sock *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->accepting, NULL);
    __atomic_add_fetch(&h->refs, 1, __ATOMIC_SEQ_CST);
    s->home = h;
    s->refs = 1;
    s->family = family;
    s->kind = kind;
    s->protocol = protocol;
    return s;
}

static inline void umvm_sock_put(struct umvm_sock *s)
{
    if (__atomic_sub_fetch(&s->refs, 1, __ATOMIC_SEQ_CST) == 0) {
        umvm_home_put(s->home);
        free(s);
    }
}

/* The record of a socket, to be put back; NULL: there is none. */
static inline struct umvm_sock *umvm_sock_get(struct umvm_socks *all, uint64_t inode)
{
    pthread_mutex_lock(&all->lock);
    struct umvm_sock *s = all->chains[inode % UMVM_SOCK_CHAINS];
    while (s && s->inode != inode)
        s = s->chain;
    if (s)
        __atomic_add_fetch(&s->refs, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&all->lock);
    return s;
}

/* Forgets a record. */
static inline void umvm_sock_leave(struct umvm_socks *all, uint64_t inode)
{
    pthread_mutex_lock(&all->lock);
    struct umvm_sock **at = &all->chains[inode % UMVM_SOCK_CHAINS];
    while (*at && (*at)->inode != inode)
        at = &(*at)->chain;
    struct umvm_sock *s = *at;
    if (s) {
        *at = s->chain;
        all->count--;
    }
    pthread_mutex_unlock(&all->lock);
    if (s)
        umvm_sock_put(s);
}

/* Enters a record, which gets a reference more; one that is there already is an older socket's. */
static inline void umvm_sock_enter(struct umvm_socks *all, struct umvm_sock *s, uint64_t inode)
{
    umvm_sock_leave(all, inode);
    s->inode = inode;
    __atomic_add_fetch(&s->refs, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&all->lock);
    s->chain = all->chains[inode % UMVM_SOCK_CHAINS];
    all->chains[inode % UMVM_SOCK_CHAINS] = s;
    all->count++;
    pthread_mutex_unlock(&all->lock);
}

/* --- options ----------------------------------------------------------------------------------- */

static inline int umvm_level(int level)
{
    switch (level) {
    case 0: return 0; /* SOL_IP */
    case 6: return 1; /* SOL_TCP */
    case 17: return 2;
    case 41: return 3; /* SOL_IPV6 */
    case 136: return 4;
    case SOL_SOCKET: return 5;
    }
    return -1;
}

static inline struct umvm_kept *umvm_kept(struct umvm_sock *s, int level, int number)
{
    for (int i = 0; i < s->kept_count; i++)
        if (s->kept[i].level == level && s->kept[i].number == number)
            return &s->kept[i];
    return NULL;
}

/* 0: there is no room. The record's lock is held. */
static inline int umvm_keep(struct umvm_sock *s, int level, int number, int value)
{
    struct umvm_kept *at = umvm_kept(s, level, number);
    if (!at) {
        if (s->kept_count == UMVM_KEPT)
            return 0;
        at = &s->kept[s->kept_count];
        at->level = level;
        at->number = number;
        at->value = value;
        s->kept_count++;
    }
    at->value = value;
    return 1;
}

/* --- addresses --------------------------------------------------------------------------------- */

static inline int umvm_addr_same(const struct umvm_addr *a, const struct umvm_addr *b)
{
    return a->size == b->size && !memcmp(a->ip, b->ip, a->size);
}

static inline int umvm_addr_any(const struct umvm_addr *a)
{
    static const uint8_t none[16];
    return !memcmp(a->ip, none, a->size);
}

static inline int umvm_addr_loopback(const struct umvm_addr *a)
{
    static const uint8_t six[16] = {[15] = 1};
    return a->size == 4 ? a->ip[0] == 127 : !memcmp(a->ip, six, 16);
}

static inline void umvm_addr_set_loopback(struct umvm_addr *a, int size)
{
    memset(a->ip, 0, sizeof a->ip);
    a->size = size;
    if (size == 4)
        a->ip[0] = 127;
    a->ip[size - 1] = 1;
}

static inline int umvm_is_own(const struct umvm_home *h, const struct umvm_addr *a)
{
    for (int i = 0; i < h->own_count; i++)
        if (umvm_addr_same(&h->own[i], a))
            return 1;
    return 0;
}

/* --- ports ------------------------------------------------------------------------------------- */

static inline int umvm_port_set(int protocol) { return protocol == 6 ? 0 : protocol == 17 ? 1 : 2; }

static inline void umvm_port_mark(struct umvm_home *h, int protocol, uint16_t port, int on)
{
    uint32_t *word = &h->ports[umvm_port_set(protocol)][port / 32], bit = 1u << port % 32;
    pthread_mutex_lock(&h->lock);
    *word = on ? *word | bit : *word & ~bit;
    pthread_mutex_unlock(&h->lock);
}

/* A port of the ephemeral range that nobody is bound to; 0: there is none. */
static inline int umvm_port_free(struct umvm_home *h, int protocol)
{
    int set = umvm_port_set(protocol), found = 0;
    pthread_mutex_lock(&h->lock);
    for (int i = UMVM_FIRST_EPHEMERAL; i <= UMVM_LAST_EPHEMERAL && !found; i++) {
        uint16_t port = h->next[set] < UMVM_FIRST_EPHEMERAL || h->next[set] >= UMVM_LAST_EPHEMERAL ? UMVM_FIRST_EPHEMERAL
                                                                                                  : h->next[set] + 1;
        h->next[set] = port;
        if (!(h->ports[set][port / 32] >> port % 32 & 1))
            found = port;
    }
    pthread_mutex_unlock(&h->lock);
    return found;
}

/* --- neighbours -------------------------------------------------------------------------------- */

/* Is what we know of the hosts on the network still so? */
static inline int umvm_hosts_known(struct umvm_home *h)
{
    struct stat st;
    uint64_t stamp = __atomic_load_n(&h->stamp, __ATOMIC_SEQ_CST);
    return stamp && fstatat(h->fd, "hosts", &st, 0) == 0 &&
           (uint64_t)st.st_mtim.tv_sec * 1000000000u + (uint64_t)st.st_mtim.tv_nsec == stamp;
}

/* The host with an address, or (`ip` NULL) that with a key and an address of a size. */
static inline int umvm_neighbour(struct umvm_home *h, const struct umvm_addr *ip, const char *key, int size,
                                 struct umvm_neighbour *out)
{
    int found = 0;
    pthread_mutex_lock(&h->lock);
    for (int i = 0; i < h->count && !found; i++) {
        const struct umvm_neighbour *n = &h->neighbours[i];
        if (ip ? umvm_addr_same(&n->ip, ip) : n->ip.size == size && !memcmp(n->key, key, UMVM_KEY)) {
            *out = *n;
            found = 1;
        }
    }
    pthread_mutex_unlock(&h->lock);
    return found;
}
#endif
