# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Receives notifications on worker threads; passes unclaimed calls through without the GIL."""
import _thread
import os
import select

cimport cython
from libc.errno cimport EIO
from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from core_accel.fabric cimport SocketTable, umvm_socks
from core_accel.owners cimport Owners, umvm_owners
from core_accel.pathwalk cimport View, seen_dirs, umvm_view
from core_accel.request cimport (
    ERROR, LATER, RUN, Reply, Request, Restarts, make_request, resume, seccomp_notif,
    umvm_conclude, umvm_verdict, verdict,
)
from core_accel.lazy import logger
from core_accel.request import Reply as _Reply, Restarts as _Restarts

cdef extern from "kernel.h":
    int ioctl(int, unsigned long, ...) nogil
    unsigned long SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
    int umvm_receive(int listener, seccomp_notif *request) nogil
    int umvm_answer(int listener, uint64_t id, int64_t value, int error, int run) nogil

cdef extern from "agent/layout.h":
    const int UMVM_GO
    int umvm_is_agents(int nr, uint64_t ip) nogil
    void umvm_mark_answered(uint8_t *answered, uint64_t ip) nogil

cdef extern from "creds.h":
    const int UMVM_RECORDS, UMVM_QUICK_GROUPS
    struct umvm_creds:
        uint32_t valid
        uint32_t ids[8]
        uint32_t count
        uint32_t groups[22]
    struct umvm_identity:
        int on
        uint8_t quick[512]
        umvm_creds *records
        uint64_t *peers
        int watching
    int umvm_quick(umvm_identity *, int listener, const seccomp_notif *, uint8_t *answered) nogil
    long umvm_peer(const umvm_identity *, int pid) nogil

cdef extern from "execwatch.h":
    int umvm_exec_watched(int listener, uint64_t id, int tid, int tgid, const uint64_t *values) nogil
    void umvm_exec_ended(int tgid) nogil

cdef extern from "serve.h":
    struct umvm_router:
        int mounts
        int descriptors
        int virtual_cwd
        int names
        char name[32][24]
        int answers
        uint64_t claimed
        uint32_t sockets
        uint64_t passed
    struct umvm_call_kind:
        uint8_t always
        uint8_t hooked
        int8_t fd
        int8_t path[2]
        int8_t dirfd[2]
    int umvm_route_set_view(umvm_router *, const char **points, const uint32_t *ids, int count) nogil
    int umvm_route_set_views(umvm_router *, umvm_view **views, int count) nogil
    void umvm_route_set_record(umvm_router *, uint32_t number, uint32_t view, uint32_t cwd) nogil
    void umvm_route_count_socket(umvm_router *, uint64_t inode, int by) nogil
    int umvm_route_set_shadow(umvm_router *, const char *prefix) nogil
    struct umvm_path:
        uint64_t addr
        long size
        char *text
    int umvm_route(umvm_router *, const umvm_call_kind *, const seccomp_notif *, umvm_path *) nogil
    int umvm_serve(umvm_router *, const umvm_call_kind *, const seccomp_notif *, const umvm_path *,
                   umvm_verdict *) nogil
    void umvm_tell_unmapped(const seccomp_notif *) nogil
    void umvm_route_forget() nogil
    void umvm_route_share(void *seen) nogil

cdef extern from "fabcalls.h":
    struct umvm_held_pids:
        int *tid
    int umvm_fabric(umvm_socks *, umvm_router *, umvm_held_pids *, const seccomp_notif *,
                    umvm_verdict *) nogil
    void umvm_held_close(umvm_held_pids *) nogil

cdef extern from "ownercalls.h":
    int UMVM_PASS, UMVM_TO_PYTHON, UMVM_DONE_HERE
    int umvm_owned(umvm_owners *, const seccomp_notif *, umvm_path *, int64_t *value,
                   int *error) nogil

log = logger(__name__)


cdef int conclude(uint8_t *answered, int fd, const seccomp_notif *q, umvm_verdict *v) noexcept nogil:
    """End a call, unless its answer comes later; an agent makes its call itself. 0 or -errno."""
    if v.kind < LATER:
        umvm_mark_answered(answered, q.data.instruction_pointer)
        if v.kind == RUN and umvm_is_agents(q.data.nr, q.data.instruction_pointer):
            v.kind, v.number = ERROR, UMVM_GO
    return umvm_conclude(fd, q.id, v)


umvm_route_share(seen_dirs())  # one memory of host directories for both walks

cdef enum:
    PATIENCE = 32  # calls of others until it is looked whether who is expected still lives
    EXECVE = 59
    EXECVEAT = 322
    MAX_NR = 512
    MAX_WORKERS = 256


@cython.final
cdef class Engine:
    """Worker threads on every listener of one VM."""
    cdef umvm_router router
    cdef umvm_identity identity
    cdef umvm_call_kind kinds[MAX_NR]
    cdef uint8_t owned[MAX_NR]
    cdef umvm_owners *table
    cdef umvm_socks *socks
    cdef object handler
    cdef object on_gone
    cdef object on_expected
    cdef set expected
    cdef int expecting
    cdef unsigned int asked
    cdef dict watched
    cdef Restarts restarts
    cdef object marks
    cdef dict idle, holders
    cdef object lock
    cdef list kept
    cdef int workers
    cdef Reply run, done
    cdef list views

    def __cinit__(self, kinds, handler, on_gone, on_expected=None):
        cdef int nr
        memset(&self.router, 0, sizeof(self.router))
        memset(&self.identity, 0, sizeof(self.identity))
        memset(self.owned, 0, sizeof(self.owned))
        for nr in range(MAX_NR):
            memset(&self.kinds[nr], 0, sizeof(umvm_call_kind))
            self.kinds[nr].fd = self.kinds[nr].path[0] = self.kinds[nr].path[1] = -1
            self.kinds[nr].dirfd[0] = self.kinds[nr].dirfd[1] = -1
        for number, (always, fd, paths, dirfds) in kinds.items():
            nr = number
            self.kinds[nr].always = always
            self.kinds[nr].fd = fd
            for i in range(len(paths)):
                self.kinds[nr].path[i] = paths[i]
                self.kinds[nr].dirfd[i] = dirfds[i]
        self.handler = handler
        self.on_gone = on_gone
        self.on_expected = on_expected
        self.expected = set()
        self.watched = {}
        self.restarts = _Restarts()
        self.idle = {}
        self.holders = {}
        self.kept = []
        self.lock = _thread.allocate_lock()
        self.workers = 0
        self.run = _Reply.run()
        self.done = _Reply.later()
        self.views = []
        if umvm_route_set_view(&self.router, ["/", "/proc"], [0, 1], 2) < 0:
            raise MemoryError()

    def add_listener(self, int fd, int workers=2):
        """Serve the notifications that arrive on seccomp listener ``fd``; owned from now on."""
        ioctl(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
        with self.lock:
            self.idle[fd] = 0
            self.holders[fd] = 1
        _thread.start_new_thread(self._hang_up, (fd,))
        for _ in range(workers):
            self._start(fd)

    def _start(self, fd):
        with self.lock:
            self.workers += 1
            self.holders[fd] += 1
            self.idle[fd] += 1
        _thread.start_new_thread(self._work, (fd,))  # without waiting until it runs

    def set_views(self, views):
        """`View` objects: what processes see. The first is that of processes without a mark."""
        cdef umvm_view *pointers[1024]
        cdef int n = 0, r
        cdef View view
        keep = list(views)
        if not 0 < len(keep) <= 1024:
            raise OSError(28, "too many views")
        for item in keep:
            view = item
            pointers[n] = view.view
            n += 1
        r = umvm_route_set_views(&self.router, pointers, n)
        if r < 0:
            raise OSError(-r, "mount table")
        self.views = [keep] if r else [*self.views, keep]  # a walk may still be in an old one

    def set_place(self, uint32_t number, uint32_t view, uint32_t cwd):
        """Processes with mark ``number`` see ``views[view]``; mount ``cwd`` led to their cwd."""
        umvm_route_set_record(&self.router, number, view, cwd)

    def set_shadow(self, bytes prefix):
        """Descriptors and working directories whose link starts with ``prefix`` are ours."""
        umvm_route_set_shadow(&self.router, prefix)

    def set_state(self, int descriptors, int virtual_cwd):
        """How many served descriptors are open; whether a process may stand in a mount."""
        self.router.descriptors = descriptors
        self.router.virtual_cwd = virtual_cwd

    def set_proc_names(self, names):
        """Last components of files in /proc that show something else than the kernel's."""
        keep = list(names)
        if len(keep) > 32 or any(len(name) > 23 for name in keep):
            raise OSError(28, "too many names of /proc, or too long ones")
        self.router.names = 0
        for i, name in enumerate(keep):
            memset(self.router.name[i], 0, 24)
            memcpy(self.router.name[i], <const char *>name, min(len(name), 23))
        self.router.names = len(keep)

    def set_answers(self, on):
        """May the engine itself look at files of the host for guests, as their rights are ours?"""
        self.router.answers = 1 if on else 0

    def add_socket(self, uint64_t inode):
        """A network stack answers for the socket with this inode number. One caller at a time."""
        umvm_route_count_socket(&self.router, inode, 1)

    def drop_socket(self, uint64_t inode):
        """It is gone. One caller at a time."""
        umvm_route_count_socket(&self.router, inode, -1)

    def set_socket_table(self, SocketTable table not None):
        """The sockets of virtual networks, whose usual calls are answered here."""
        self.kept.append(table)
        self.socks = table.socks

    def set_hooks(self, numbers):
        """The calls that are always handed to the handler."""
        cdef int nr
        wanted = set(numbers)
        for nr in range(MAX_NR):
            self.kinds[nr].hooked = nr in wanted

    def set_answered(self, marks not None):
        """Writable memory in which agents look whether a call was answered (Area.answered)."""
        cdef unsigned char[::1] view = marks
        self.marks = view  # keeps it
        self.restarts.answered = &view[0]

    def set_identity(self, numbers):
        """The calls on credentials that are answered here from the records; none: all are asked."""
        cdef int nr
        wanted = set(numbers)
        if wanted and self.identity.records is NULL:
            self.identity.peers = <uint64_t *>calloc(UMVM_RECORDS, sizeof(uint64_t))
            self.identity.records = <umvm_creds *>calloc(UMVM_RECORDS, sizeof(umvm_creds))
            if self.identity.records is NULL or self.identity.peers is NULL:
                raise MemoryError()
        for nr in range(MAX_NR):
            self.identity.quick[nr] = nr in wanted
        self.identity.on = len(wanted) > 0

    def set_record(self, int number, ids, groups):
        """Record ``number``: real, effective, saved and file system ids of user, then group."""
        cdef umvm_creds *own
        cdef int i
        if self.identity.records is NULL or not 0 <= number < UMVM_RECORDS:
            return
        own = &self.identity.records[number]
        own.valid = 0
        for i in range(8):
            own.ids[i] = ids[i]
        own.count = len(groups)
        for i in range(min(len(groups), UMVM_QUICK_GROUPS)):
            own.groups[i] = groups[i]
        own.valid = 1

    def watch(self, int what):
        """Something has come up that has to be looked at from now on (UMVM_WATCH_… of creds.h)."""
        self.identity.watching |= what

    def peer(self, int pid):
        """The record that a process had when it last made a socket known to others; -1: unknown."""
        return umvm_peer(&self.identity, pid)

    def __dealloc__(self):
        free(self.identity.records)
        free(self.identity.peers)

    def set_expected(self, tids):
        """Threads whose next call is announced before it is decided, by ``on_expected(tid)``."""
        self.expected = set(tids)
        self.expecting = len(self.expected)

    def watch_exec(self, int tid, int tgid, values):
        """The execve of a thread, which is being answered, is to give its program other ``values``
        in the auxiliary vector: type → value."""
        self.watched[tid] = tgid, dict(values)

    def set_owners(self, Owners owners, numbers):
        """Calls that nobody else claims and that are about files known to ``owners`` (or None)."""
        cdef int nr
        wanted = set(numbers) if owners is not None else set()
        for nr in range(MAX_NR):
            self.owned[nr] = 0
        if owners is not None:
            self.kept.append(owners)  # for ever: a thread may still look into one that is replaced
            self.table = &owners.table
        for nr in range(MAX_NR):
            self.owned[nr] = nr in wanted

    def forget_paths(self):
        """Drop what is known of host directories (after a rename or removal)."""
        umvm_route_forget()

    def counts(self):
        """(calls passed through in C, calls handed to Python, worker threads)."""
        return self.router.passed, self.router.claimed, self.workers

    def _work(self, int fd):
        """Receive and answer calls.

        A call is concluded without the GIL and after all else: as soon as it is, the guest runs and
        may wake another worker.
        """
        cdef seccomp_notif q
        cdef umvm_path path
        cdef umvm_verdict v
        cdef umvm_held_pids held
        cdef int r, failed, own, error = 0
        cdef int64_t value = 0
        memset(&held, 0, sizeof(held))
        q.id = 0
        v.kind = LATER
        cdef umvm_call_kind kind
        while True:
            with nogil:
                failed = conclude(self.restarts.answered, fd, &q, &v)
                while True:
                    path.size = 0
                    r = umvm_receive(fd, &q)
                    if r < 0:
                        break
                    if self.restarts.answered is not NULL:
                        umvm_tell_unmapped(&q)
                    if <unsigned int>q.data.nr >= MAX_NR or self.restarts.pending or self.expecting:
                        break
                    r = umvm_quick(&self.identity, fd, &q, self.restarts.answered) if self.identity.on else 0
                    if r == 1:
                        continue
                    kind = self.kinds[q.data.nr]
                    own = 0
                    if self.socks is not NULL:
                        own = umvm_fabric(self.socks, &self.router, &held, &q, &v)
                    if own == 1:
                        self.router.passed += 1
                        conclude(self.restarts.answered, fd, &q, &v)
                        continue
                    if r == 2 or own == 2:
                        kind.hooked = 0
                    if umvm_route(&self.router, &kind, &q, &path):
                        if self.owned[q.data.nr] or not umvm_serve(&self.router, &kind, &q, &path, &v):
                            break
                        self.router.passed += 1
                        conclude(self.restarts.answered, fd, &q, &v)
                        continue
                    own = UMVM_PASS
                    value = error = 0
                    if self.owned[q.data.nr]:
                        own = umvm_owned(self.table, &q, &path, &value, &error)
                    if own == UMVM_TO_PYTHON:
                        break
                    self.router.passed += 1
                    umvm_mark_answered(self.restarts.answered, q.data.instruction_pointer)
                    umvm_answer(fd, q.id, value, error, own == UMVM_PASS)
            if failed < 0:
                log.debug("an answer failed: errno %d", -failed)
            if r < 0:
                umvm_held_close(&held)
                with self.lock:
                    self.workers -= 1
                    self.holders[fd] -= 1
                    gone = self.holders[fd] == 0
                if gone:
                    self._close(fd)
                return
            self.router.claimed += 1
            v = self._claimed(fd, &q, &path)

    cdef umvm_verdict _claimed(self, int fd, seccomp_notif *q, umvm_path *path) except *:
        cdef Request request = make_request(fd, q, self.restarts)
        cdef Reply reply
        cdef umvm_verdict v
        cdef int known
        if self.restarts.pending or self.expecting:
            known = resume(request) if self.restarts.pending else 0
            if known:
                return self._exec(request, verdict(self.done if known == 1 else self.run))
            if request.tid in self.expected:
                self._announce(request.tid)
            elif self.expecting:
                self.asked += 1
                if self.asked % PATIENCE == 0:
                    self._announce(0)
            if self.identity.on and umvm_quick(&self.identity, fd, q, self.restarts.answered) == 1:
                return verdict(self.done)
            if (not self.owned[request.nr]
                    and umvm_route(&self.router, &self.kinds[request.nr], q, path) == 0):
                return verdict(self.run)
        if path.size > 0:
            request.path_at = path.addr
            request.path = path.text[:path.size]
        free = self.idle[fd] - 1  # the GIL holds others off, as no interpreted code runs here
        self.idle[fd] = free
        if free == 0 and self.workers < MAX_WORKERS:
            self._start(fd)
        try:
            answer = self.handler(request)
            reply = self.run if answer is None else answer
            v = verdict(reply)
        except OSError as error:
            number = error.errno
            v.kind, v.number = ERROR, number if number and number > 0 else EIO
        except BaseException:
            log.exception("handling %r", request)
            v.kind, v.number = ERROR, EIO
        self.idle[fd] += 1
        return self._exec(request, v)

    def _announce(self, tid):
        try:
            self.on_expected(tid)
        except BaseException:
            log.exception("before a call of %d", tid)

    cdef umvm_verdict _exec(self, Request request, umvm_verdict v) except *:
        """Run an execve that is to be watched (`watch_exec`); any other verdict stays."""
        cdef uint64_t pairs[32]
        cdef int n = 0, leader
        if (not self.watched or v.kind != RUN or request.nr not in (EXECVE, EXECVEAT)
                or request.tid not in self.watched):
            return v
        memset(pairs, 0, sizeof(pairs))
        tgid, values = self.watched.pop(request.tid)
        for kind, value in values.items():
            if n < 30:
                pairs[n], pairs[n + 1] = kind, value
                n += 2
        leader = tgid
        umvm_mark_answered(self.restarts.answered, request.ip)
        with nogil:
            leader = umvm_exec_watched(request.listener, request.id, request.tid, leader, pairs)
        if leader:
            self._announce(leader)
            umvm_exec_ended(leader)
        return verdict(self.done)

    def _hang_up(self, int fd):
        """Wait until the last guest of a listener is gone: before Linux 6.11 no worker is told."""
        poll = select.poll()
        poll.register(fd, 0)
        poll.poll()
        with self.lock:
            self.holders[fd] -= 1
            last = self.holders[fd] == 0
        if last:
            self._close(fd)
        self.on_gone(fd)

    def _close(self, int fd):
        """No thread uses the listener any more: its number may be another's from now on."""
        with self.lock:
            del self.holders[fd]
            del self.idle[fd]
        os.close(fd)
