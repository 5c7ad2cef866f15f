# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The sockets of virtual networks as the engine knows them: `SocketTable`, `Home`, `SocketState`."""
cimport cython
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from "fabric.h":
    const int UMVM_OWN_IPS, UMVM_SOCK_CHAINS, UMVM_KEY, UMVM_IDENT
    void umvm_home_put(umvm_home *)
    umvm_sock *umvm_sock_new(umvm_home *, int family, int kind, int protocol)
    void umvm_sock_put(umvm_sock *)
    umvm_sock *umvm_sock_get(umvm_socks *, uint64_t inode) nogil
    void umvm_sock_enter(umvm_socks *, umvm_sock *, uint64_t inode) nogil
    void umvm_sock_leave(umvm_socks *, uint64_t inode) nogil
    int umvm_level(int level)
    umvm_kept *umvm_kept_of "umvm_kept"(umvm_sock *, int level, int number)
    int umvm_keep(umvm_sock *, int level, int number, int value)
    void umvm_port_mark(umvm_home *, int protocol, uint16_t port, int on) nogil
    int umvm_port_free(umvm_home *, int protocol) nogil

cdef set_addr(umvm_addr *a, value):
    """Store (ip, port); None: no address."""
    cdef umvm_addr new
    memset(&new, 0, sizeof(new))
    if value is not None:
        ip, port = value
        memcpy(new.ip, <const char *><bytes>ip, len(ip))
        new.size = len(ip)
        new.port = port
    a[0] = new


cdef get_addr(const umvm_addr *a):
    return None if a.size == 0 else ((<const char *>a.ip)[:a.size], a.port)


@cython.final
cdef class SocketTable:
    """The sockets of one VM."""

    def __cinit__(self, limit):
        self.socks = <umvm_socks *>calloc(1, sizeof(umvm_socks))
        if self.socks is NULL:
            raise MemoryError()
        pthread_mutex_init(&self.socks.lock, NULL)
        self.socks.limit = limit
        self.firsts = []

    # never freed: a worker may be in it until the process ends

    def __len__(self):
        return self.socks.count

    @property
    def limit(self):
        """Above so many sockets the engine makes none itself."""
        return self.socks.limit

    @limit.setter
    def limit(self, int value):
        self.socks.limit = value

    def set_calls(self, numbers):
        """The system calls that the engine may answer."""
        cdef int nr
        wanted = set(numbers)
        for nr in range(512):
            self.socks.calls[nr] = nr in wanted

    def set_options(self, options):
        """(level, number) → (value at first, lowest, highest, is a flag)."""
        cdef umvm_option *o
        for (level, number), (first, low, high, flag) in options.items():
            if umvm_level(level) >= 0 and number < 128:
                o = &self.socks.options[umvm_level(level)][<int>number]
                o.first, o.low, o.high, o.flag, o.known = first, low, high, flag, 1

    def set_first(self, Home home):
        """New sockets are on this host; None: the interpreter knows where."""
        self.firsts.append(home)  # kept: a worker may still look at one that is replaced
        self.socks.first = NULL if home is None else home.home

    def find(self, uint64_t inode):
        """(number of its home, its state); None: no such socket."""
        cdef umvm_sock *s = umvm_sock_get(self.socks, inode)
        cdef SocketState found
        if s is NULL:
            return None
        found = SocketState.__new__(SocketState)
        found.s = s
        return s.home.number, found

    def enter(self, uint64_t inode, SocketState state not None):
        """A socket is known from now on."""
        umvm_sock_enter(self.socks, state.s, inode)

    def leave(self, uint64_t inode):
        """It is gone."""
        umvm_sock_leave(self.socks, inode)

    def inodes(self):
        """Those of all sockets."""
        cdef int i
        cdef umvm_sock *s
        found = set()
        with nogil:
            pthread_mutex_lock(&self.socks.lock)
        for i in range(UMVM_SOCK_CHAINS):
            s = self.socks.chains[i]
            while s is not NULL:
                found.add(s.inode)
                s = s.chain
        pthread_mutex_unlock(&self.socks.lock)
        return found


@cython.final
cdef class Home:
    """A host of a virtual network whose sockets are in the table."""
    cdef umvm_home *home

    def __cinit__(self, int number, int fd, bytes key, bytes ident, int port):
        """``fd``: the network's directory; ``ident``: the network in names; ``port``: where
        ephemeral ports start."""
        self.home = <umvm_home *>calloc(1, sizeof(umvm_home))
        if self.home is NULL:
            raise MemoryError()
        if len(key) != UMVM_KEY or len(ident) != UMVM_IDENT:
            raise ValueError("key or ident")
        pthread_mutex_init(&self.home.lock, NULL)
        self.home.refs = self.home.open = 1
        self.home.number, self.home.fd = number, fd
        memcpy(self.home.key, <const char *>key, UMVM_KEY)
        memcpy(self.home.ident, <const char *>ident, UMVM_IDENT)
        for i in range(3):
            self.home.next[i] = port

    def __dealloc__(self):
        if self.home is not NULL:
            umvm_home_put(self.home)

    def set_own(self, ips):
        """The host's addresses."""
        cdef int n = 0
        self.home.own_count = 0
        for ip in list(ips)[:UMVM_OWN_IPS]:
            set_addr(&self.home.own[n], (ip, 0))
            n += 1
        self.home.own_count = n

    def set_state(self, open, direct, watched):
        """Is it on the network; are its ways to others, and to itself, plain ones?"""
        self.home.direct, self.home.watched = bool(direct), bool(watched)
        self.home.open = bool(open)

    def set_neighbours(self, uint64_t stamp, neighbours):
        """(address, key, direct) of hosts, as they were at ``stamp`` (0: this may be outdated)."""
        cdef umvm_neighbour *new
        cdef umvm_neighbour *old
        cdef int n = 0
        given = list(neighbours)
        new = <umvm_neighbour *>calloc(len(given) + 1, sizeof(umvm_neighbour))
        if new is NULL:
            raise MemoryError()
        for ip, key, direct in given:
            set_addr(&new[n].ip, (ip, 0))
            memcpy(new[n].key, <const char *><bytes>key, UMVM_KEY)
            new[n].direct = direct
            n += 1
        with nogil:
            pthread_mutex_lock(&self.home.lock)
            old, self.home.neighbours = self.home.neighbours, new
            self.home.count = n
            self.home.stamp = stamp
            pthread_mutex_unlock(&self.home.lock)
        free(old)

    def wait(self, int by):
        """Queues of datagrams that wait: one more (1) or less (-1)."""
        self.home.waiting += by

    def share(self, int by):
        """Sockets with SO_REUSEPORT: one more (1) or less (-1)."""
        self.home.shared += by

    def mark_port(self, int protocol, int port, on):
        """A port is bound, or not any more."""
        umvm_port_mark(self.home, protocol, port, bool(on))

    def free_port(self, int protocol):
        """An ephemeral port that is not bound; 0: there is none."""
        return umvm_port_free(self.home, protocol)

    def state(self, int family, int kind, int protocol):
        """The state of a new socket."""
        cdef SocketState made = SocketState.__new__(SocketState)
        made.s = umvm_sock_new(self.home, family, kind, protocol)
        if made.s is NULL:
            raise MemoryError()
        return made


@cython.final
cdef class SocketState:
    """What is known of one socket. As a context it holds others off (the engine too)."""
    cdef umvm_sock *s

    def __init__(self):
        raise TypeError("use Home.state() or SocketTable.find()")

    def __dealloc__(self):
        if self.s is not NULL:
            umvm_sock_put(self.s)

    def __enter__(self):
        with nogil:
            pthread_mutex_lock(&self.s.lock)

    def __exit__(self, *error):
        pthread_mutex_unlock(&self.s.lock)

    def begin_accept(self):
        """False: somebody else is taking a connection; else `end_accept` is due."""
        return pthread_mutex_trylock(&self.s.accepting) == 0

    def end_accept(self):
        """Let others."""
        pthread_mutex_unlock(&self.s.accepting)

    @property
    def family(self):
        return self.s.family

    @property
    def kind(self):
        return self.s.kind

    @property
    def protocol(self):
        return self.s.protocol

    @property
    def bound(self):
        return get_addr(&self.s.bound)

    @bound.setter
    def bound(self, value):
        set_addr(&self.s.bound, value)

    @property
    def peer(self):
        return get_addr(&self.s.peer)

    @peer.setter
    def peer(self, value):
        set_addr(&self.s.peer, value)

    @property
    def called(self):
        return get_addr(&self.s.called)

    @called.setter
    def called(self, value):
        set_addr(&self.s.called, value)

    @property
    def shown(self):
        return get_addr(&self.s.shown)

    @shown.setter
    def shown(self, value):
        set_addr(&self.s.shown, value)

    @property
    def error(self):
        return self.s.error

    @error.setter
    def error(self, int value):
        self.s.error = value

    @property
    def listening(self):
        return self.s.listening != 0

    @listening.setter
    def listening(self, value):
        self.s.listening = bool(value)

    @property
    def in_progress(self):
        return self.s.in_progress != 0

    @in_progress.setter
    def in_progress(self, value):
        self.s.in_progress = bool(value)

    @property
    def reuse(self):
        return self.s.reuse != 0

    @reuse.setter
    def reuse(self, value):
        self.s.reuse = bool(value)

    @property
    def broadcast(self):
        return self.s.broadcast != 0

    @broadcast.setter
    def broadcast(self, value):
        self.s.broadcast = bool(value)

    def kept(self, int level, int number):
        """The value of an option; None: it was never set, or isn't kept here."""
        cdef umvm_kept *found = umvm_kept_of(self.s, umvm_level(level), number)
        return None if found is NULL else found.value

    def keep(self, int level, int number, int value):
        """Set an option. False: there is no room, or no such level."""
        if umvm_level(level) < 0 or not 0 <= number < 128:
            return False
        return umvm_keep(self.s, umvm_level(level), number, value) != 0

    def copy_kept(self, SocketState other not None):
        """Have the options of another socket."""
        self.s.kept_count = other.s.kept_count
        memcpy(self.s.kept, other.s.kept, other.s.kept_count * sizeof(umvm_kept))

    def set_more(self):
        """There are options that aren't kept here."""
        self.s.more = 1
