"""The records of virtual networks' sockets, for the engine."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<pthread.h>":
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, const void *) nogil
    int pthread_mutex_lock(pthread_mutex_t *) nogil
    int pthread_mutex_trylock(pthread_mutex_t *) nogil
    int pthread_mutex_unlock(pthread_mutex_t *) nogil

cdef extern from "fabric.h":
    struct umvm_addr:
        uint8_t size
        uint8_t *ip
        uint16_t port
    struct umvm_kept:
        uint8_t level
        uint8_t number
        int value
    struct umvm_neighbour:
        umvm_addr ip
        char *key
        int direct
    struct umvm_home:
        int refs, number, fd, open, direct, watched, waiting, shared, own_count, count
        char *key
        char *ident
        umvm_addr *own
        pthread_mutex_t lock
        uint64_t stamp
        umvm_neighbour *neighbours
        uint16_t *next
    struct umvm_option:
        uint8_t known, flag
        int first, low, high
    struct umvm_sock:
        umvm_sock *chain
        uint64_t inode
        umvm_home *home
        int refs, error
        pthread_mutex_t lock, accepting
        uint16_t protocol
        uint8_t family, kind, listening, in_progress, reuse, broadcast, more, kept_count
        umvm_kept *kept
        umvm_addr bound, peer, called, shown
    struct umvm_socks:
        pthread_mutex_t lock
        int count, limit
        umvm_home *first
        uint8_t *calls
        umvm_option options[6][128]
        umvm_sock *chains[8192]


cdef class SocketTable:
    cdef umvm_socks *socks
    cdef object firsts
