# cython: language_level=3, auto_pickle=False, autotestdict=False
"""One notified call: guest memory and descriptors, and the verdict on it."""
import os

cimport cython
from libc.errno cimport EFAULT, ENOENT, EPERM
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from core_accel.lazy import logger

cdef extern from "rewrite.h":
    struct umvm_change:
        int index
        uint64_t value
        const void *text
        size_t size
        uint64_t address
    struct umvm_hand:
        int tid
    int umvm_rewrite_begin(int listener, uint64_t id, int tid, int nr, umvm_change *changes,
                           int count, void (*fix)(umvm_change *, int), uint64_t *args,
                           umvm_hand *hand, int *stopped) nogil
    void umvm_rewrite_end(umvm_hand *hand) nogil
    int umvm_addfd(int listener, uint64_t id, int fd, int cloexec, int at) nogil
    int umvm_alive(int listener, uint64_t id) nogil
    long umvm_copy(int tid, void *here, uint64_t there, size_t size, int to_guest) nogil
    long umvm_string(int tid, char *out, uint64_t addr, size_t size) nogil
    long umvm_pidfd(int tid) nogil
    long umvm_pidfd_getfd(int pidfd, int fd) nogil

cdef extern from "agent/layout.h":
    const int UMVM_GO
    int umvm_is_agents(int nr, uint64_t ip) nogil
    void umvm_mark_answered(uint8_t *answered, uint64_t ip) nogil

log = logger(__name__)


@cython.final
cdef class Reply:
    """The verdict on one call. Made by the named constructors only."""

    def __init__(self):
        raise TypeError("use Reply.run(), value(), error(), fd() or later()")

    @staticmethod
    def run():
        """The kernel runs the call as it is: no decision, not an approval."""
        return _RUN

    @staticmethod
    def value(number):
        """The call returns ``number`` (0 or more)."""
        return make_reply(VALUE, number, False)

    @staticmethod
    def error(number):
        """The call fails with errno ``number`` (positive)."""
        return make_reply(ERROR, number, False)

    @staticmethod
    def fd(number, cloexec=False):
        """A copy of supervisor descriptor ``number`` is the result; the original is then closed."""
        return make_reply(FD, number, cloexec)

    @staticmethod
    def later():
        """Nobody answers now; ``Request.answer`` does, from any thread."""
        return _LATER

    def __repr__(self):
        return f"Reply({('run', 'value', 'error', 'fd', 'later', 'done')[self.kind]}, {self.number})"


cdef Reply make_reply(int kind, number, bint cloexec):
    cdef Reply r = Reply.__new__(Reply)
    r.kind = kind
    r.number = number
    r.cloexec = cloexec
    return r


cdef Reply _RUN = make_reply(RUN, 0, False)
cdef Reply _LATER = make_reply(LATER, 0, False)
cdef Reply _DONE = make_reply(DONE, 0, False)


@cython.final
cdef class Request:
    """One notified call; valid until it is answered."""

    def __init__(self):
        raise TypeError("made by the engine")

    def read(self, addr, Py_ssize_t size):
        """``size`` bytes of guest memory. OSError(EFAULT)."""
        cdef uint64_t a = addr
        cdef long n
        cdef bytearray b
        if size <= 0:
            return b""
        b = bytearray(size)
        cdef char *p = b
        with nogil:
            n = umvm_copy(self.tid, p, a, size, 0)
        if n != size:
            raise OSError(EFAULT, "bad guest address")
        return bytes(b)

    def peek(self, addr, Py_ssize_t size):
        """Up to ``size`` bytes: as many as are mapped from ``addr`` on, perhaps none."""
        cdef uint64_t a = addr
        cdef long n
        cdef bytearray b = bytearray(size)
        cdef char *p = b
        with nogil:
            n = umvm_copy(self.tid, p, a, size, 0)
        return bytes(b[:n]) if n > 0 else b""

    def write(self, addr, data):
        """Store ``data`` in guest memory. OSError(EFAULT)."""
        cdef uint64_t a = addr
        cdef const unsigned char[::1] view = data
        cdef size_t size = view.shape[0]
        cdef long n
        if size == 0:
            return
        with nogil:
            n = umvm_copy(self.tid, <void *>&view[0], a, size, 1)
        if n != <long>size:
            raise OSError(EFAULT, "bad guest address")

    def string(self, addr, Py_ssize_t limit=4096):
        """A NUL-terminated string, without its NUL. OSError(EFAULT | ENAMETOOLONG)."""
        cdef uint64_t a = addr
        if self.path is not None and a == self.path_at and len(self.path) < limit:
            return self.path
        cdef char[4096] buffer
        cdef char *p = buffer
        cdef char *big = NULL
        cdef long n
        if limit > 4096:
            big = <char *>malloc(limit)
            if big is NULL:
                raise MemoryError()
            p = big
        with nogil:
            n = umvm_string(self.tid, p, a, limit)
        try:
            if n < 0:
                raise OSError(-n, os.strerror(-n))
            return p[:n]
        finally:
            free(big)

    def getfd(self, int fd):
        """A copy of a guest descriptor in the supervisor. OSError(EBADF)."""
        cdef long pidfd = umvm_pidfd(self.tid), copy
        if pidfd < 0:
            raise OSError(-pidfd, os.strerror(-pidfd))
        copy = umvm_pidfd_getfd(pidfd, fd)
        os.close(pidfd)
        if copy < 0:
            raise OSError(-copy, os.strerror(-copy))
        return copy

    def addfd(self, int fd, bint cloexec=False, int at=-1):
        """Install a copy of supervisor descriptor ``fd`` in the guest; its number there."""
        cdef int n = umvm_addfd(self.listener, self.id, fd, cloexec, at)
        if n < 0:
            raise OSError(-n, os.strerror(-n))
        return n

    def alive(self):
        """False once the guest is gone or the call was answered."""
        return bool(umvm_alive(self.listener, self.id))

    def rewrite(self, changes):
        """Run the call with changed arguments.

        ``changes``: index 0 to 5 an argument, 6 the call's number → an int, or bytes that are put
        in guest memory with a NUL. A tuple (bytes, [offset, …]) is put there without NUL, and the
        64-bit words at the offsets, which count from its start, become addresses. OSError(EPERM):
        nothing was done, as a debugger has the thread and can't be made to do it for us.
        """
        cdef umvm_change c[8]
        cdef uint64_t args[6]
        cdef umvm_hand hand
        cdef int n = 0, r, stopped, nr = self.nr
        keep = []
        for index, new in changes.items():
            memset(&c[n], 0, sizeof(umvm_change))
            c[n].index = index
            if isinstance(new, bytes):
                keep.append(new + b"\0")
                c[n].text = <const char *>(<bytes>keep[-1])
                c[n].size = len(keep[-1])
            elif isinstance(new, tuple):
                keep.append(_Relocated(new[0], new[1]))
                c[n].text = <const char *>(<_Relocated>keep[-1]).data
                c[n].size = len(new[0])
                c[n].value = <uint64_t><size_t><void *>keep[-1]
            else:
                c[n].value = <uint64_t>(new & 0xFFFFFFFFFFFFFFFF)
            if index == 6:
                nr = new
            n += 1
        with nogil:
            r = umvm_rewrite_begin(self.listener, self.id, self.tid, self.nr, c, n, _fix, args,
                                   &hand, &stopped)
        if r == -EPERM and not stopped:
            raise OSError(EPERM, "a debugger traces the thread")
        if stopped:
            texts = tuple([(c[i].address, (<const char *>c[i].text)[:c[i].size])
                           for i in range(n) if c[i].text is not NULL])
            self.restarts.add(self.tid, (nr if r == 0 else self.nr, (args[0], args[1], args[2],
                              args[3], args[4], args[5]), -r, texts))
            with nogil:
                umvm_rewrite_end(&hand)
        return _DONE

    def was_changed(self, nr, args):
        """Is this, as far as ``args`` go, the thread's last call that ``rewrite`` changed?"""
        last = self.restarts.recent.get(self.tid)
        return last is not None and last[0] == nr and last[1][:len(args)] == tuple(args)

    def answer(self, Reply reply not None):
        """Answer a call for which the handler returned ``Reply.later()``."""
        send(self, reply)

    def __repr__(self):
        return f"Request(nr={self.nr}, tid={self.tid}, args={self.args})"


@cython.final
cdef class _Relocated:
    """Bytes with words that become addresses once it is known where the bytes go."""
    cdef bytearray bytes
    cdef char *data
    cdef list offsets

    def __cinit__(self, data, offsets):
        self.bytes = bytearray(data)
        self.data = self.bytes
        self.offsets = list(offsets)


cdef void _fix(umvm_change *c, int n) noexcept with gil:
    cdef int i
    cdef _Relocated block
    for i in range(n):
        if c[i].text is not NULL and c[i].value:
            block = <_Relocated><void *><size_t>c[i].value
            for offset in block.offsets:
                (<uint64_t *>(block.data + <size_t>offset))[0] += c[i].address


@cython.final
cdef class Restarts:
    """Calls that were changed and will arrive again: tid → (nr, args, errno, texts)."""

    def __init__(self):
        self.calls = {}
        self.recent = {}
        self.pending = 0
        self.answered = NULL

    cdef add(self, tid, entry):
        self.calls[tid] = entry
        self.pending = len(self.calls)

    cdef drop(self, tid):
        self.calls.pop(tid, None)
        self.pending = len(self.calls)


cdef Request make_request(int listener, const seccomp_notif *q, Restarts restarts):
    cdef Request request = Request.__new__(Request)
    request.nr = q.data.nr
    request.tid = q.pid
    request.args = (q.data.args[0], q.data.args[1], q.data.args[2],
                    q.data.args[3], q.data.args[4], q.data.args[5])
    request.ip = q.data.instruction_pointer
    request.listener = listener
    request.id = q.id
    request.restarts = restarts
    return request


cdef int resume(Request q) except -1:
    """1 if this is a call that ``rewrite`` changed: it was answered; 2: it is, and is to be run."""
    entry = q.restarts.calls.get(q.tid)
    if entry is None or entry[0] != q.nr or entry[1] != q.args:
        return 0
    q.restarts.drop(q.tid)
    if len(q.restarts.recent) >= 4096:
        q.restarts.recent.clear()
    q.restarts.recent[q.tid] = (q.nr, q.args)
    if entry[2]:
        send(q, make_reply(ERROR, entry[2], False))
        return 1
    try:
        for at, text in entry[3]:  # a signal handler may have used that stack meanwhile
            q.write(at, text)
    except OSError as error:
        send(q, make_reply(ERROR, error.errno, False))
        return 1
    return 2


cdef umvm_verdict verdict(Reply r) except *:
    """A reply as C takes it; what was answered already, or will be later, is none."""
    cdef umvm_verdict v
    v.kind = r.kind if r.kind < LATER else LATER
    v.cloexec = r.cloexec
    v.number = r.number
    return v


cdef void send(Request q, Reply r):
    cdef umvm_verdict v = verdict(r)
    cdef int n
    if v.kind <= FD:
        umvm_mark_answered(q.restarts.answered, q.ip)
    if v.kind == RUN and umvm_is_agents(q.nr, q.ip):
        v.kind, v.number = ERROR, UMVM_GO
    with nogil:
        n = umvm_conclude(q.listener, q.id, &v)
    if n < 0:
        log.debug("answer to %r failed: errno %d", q, -n)
