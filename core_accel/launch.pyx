# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Starts guests: fork, filter, hand the listener over, exec. Watches over them."""
import mmap
import os
import signal
import socket
import struct

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport ESRCH, errno
from libc.stdint cimport uint64_t

cdef extern from "launch.h":
    struct umvm_start:
        const void *program
        int instructions
        int sock
        int other
        uint64_t ignored
        uint64_t open_files[2]
        const char *cwd
        char **paths
        char **argv
        char **envp
    struct umvm_shared:
        int guest
    void umvm_child(const umvm_start *) nogil
    void umvm_init(const umvm_start *, umvm_shared *, int events) nogil
    int umvm_watch(int guest) nogil
    long umvm_pidfd(int tid) nogil
    long umvm_pidfd_getfd(int pidfd, int fd) nogil
cdef extern from "unistd.h":
    int fork() nogil
    long syscall(long, ...)
cdef extern from "sys/syscall.h":
    const long SYS_kcmp
cdef extern from "sys/prctl.h":
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)
cdef extern from "sys/inotify.h":
    int IN_CLOEXEC
    int IN_NONBLOCK
    int inotify_init1(int flags)
    int inotify_add_watch(int fd, const char *path, unsigned int mask)


cdef char **_vector(list items) except NULL:
    cdef char **v = <char **>PyMem_Malloc((len(items) + 1) * sizeof(char *))
    cdef Py_ssize_t i
    if v is NULL:
        raise MemoryError()
    for i in range(len(items)):
        v[i] = <char *><bytes>items[i]
    v[len(items)] = NULL
    return v


class Init:
    """The process between supervisor and guests, which is parent of the first guest and of orphans.

    It sees to it that guests die, and the files in `clean_up` go, if the supervisor is killed.
    """

    def __init__(self):
        self.pid = 0
        self.shared = mmap.mmap(-1, 4096)
        self.paths = []
        self.events, self.far_end = os.pipe()

    @property
    def guest(self):
        """Process id of the first guest; 0 once it has ended."""
        return struct.unpack_from("i", self.shared)[0]

    def clean_up(self, paths):
        """What else to delete, with all that is below, should the supervisor be killed.

        A path that ends with "/" is a directory that goes if it is empty then. OSError(ENOSPC).
        """
        every = [*self.paths, *paths]
        text = b"\0".join(every) + b"\0\0"
        if 4 + len(text) > len(self.shared):
            raise OSError(28, "too many paths to clean up")
        self.shared[4:4 + len(text)] = text
        self.paths = every

    def wait(self):
        """The next event: ("E", wait status) of the first guest, or ("Z", 0): no guest is left."""
        data = os.read(self.events, 8)
        if len(data) < 8:
            return "Z", 0
        what, value = struct.unpack("ii", data)
        return chr(what), value

    def kill(self):
        """End all guests that descend from the first one."""
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGUSR2)
            except ProcessLookupError:
                pass


class Launched:
    """A guest that waits for `go`: its pid and its seccomp listener."""

    def __init__(self, pid, listener, sock):
        self.pid = pid
        self.listener = listener
        self._sock = sock

    def go(self):
        """Let it execute its program. Returns 0, or its errno: negative if chdir failed."""
        self._sock.send(b"g")
        answer = self._sock.recv(4)
        self._sock.close()
        return struct.unpack("i", answer)[0] if len(answer) == 4 else 0


def spawn(bytes program, list paths, list argv, list envp, ignored=0, open_files=(0, 0), cwd=None,
          init=None):
    """Fork a guest that stops before it executes the first of ``paths`` that exists.

    ``program`` is an array of struct sock_filter, ``ignored`` has bit s-1 for each signal s to be
    left ignored, ``open_files`` are its RLIMIT_NOFILE values (soft, hard). With ``init`` (an
    `Init`) that process comes between.
    **Errors** OSError: fork failed, or the kernel refused the filter.
    """
    cdef umvm_start s
    cdef const char *code = program
    cdef bytes there = cwd or b""
    cdef unsigned char[::1] memory
    cdef umvm_shared *shared = NULL
    cdef int pid, events = -1
    cdef long pidfd, listener
    if init is not None:
        memory = init.shared
        shared = <umvm_shared *>&memory[0]
        events = init.far_end
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.program = code
    s.instructions = len(program) // 8
    s.sock, s.other = theirs.fileno(), ours.fileno()
    s.ignored = ignored
    s.open_files[0], s.open_files[1] = open_files
    s.cwd = <const char *>there if cwd else NULL
    s.paths = _vector(paths)
    s.argv = _vector(argv)
    s.envp = _vector(envp)
    pid = fork()
    if pid == 0:
        if shared is not NULL:
            umvm_init(&s, shared, events)
        umvm_child(&s)
    PyMem_Free(s.paths)
    PyMem_Free(s.argv)
    PyMem_Free(s.envp)
    theirs.close()
    if pid < 0:
        ours.close()
        raise OSError(11, os.strerror(11))
    if init is not None:
        init.pid = pid
        os.close(init.far_end)
    answer = ours.recv(8)
    guest, number = struct.unpack("ii", answer) if len(answer) == 8 else (0, -3)
    if number >= 0:
        pidfd = umvm_pidfd(guest)
        listener = umvm_pidfd_getfd(pidfd, number) if pidfd >= 0 else pidfd
        if pidfd >= 0:
            os.close(pidfd)
        number = listener
    if number < 0:
        ours.close()
        if guest > 0:
            os.kill(guest, signal.SIGKILL)
        raise OSError(-number, f"seccomp listener: {os.strerror(-number)}")
    return Launched(guest, number, ours)


def control(int option, unsigned long value=0):
    """prctl(2) with one argument; its result. **Errors** those of the option."""
    cdef int result = prctl(option, value, 0, 0, 0)
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result


def watch_closes():
    """A new inotify(7) instance, which doesn't block. **Errors** EMFILE, ENFILE, ENOMEM."""
    cdef int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
    if fd < 0:
        raise OSError(errno, f"inotify: {os.strerror(errno)}")
    return fd


def watch_directory(int fd, bytes path, unsigned int mask):
    """The number of the watch on a directory (inotify_add_watch(2)). **Errors** ENOSPC …"""
    cdef int watch = inotify_add_watch(fd, path, mask)
    if watch < 0:
        raise OSError(errno, f"inotify: {os.strerror(errno)}")
    return watch


def same_memory(int pid, int other):
    """Have two processes all their memory in common (kcmp(2))? True if that can't be told."""
    cdef long r = syscall(SYS_kcmp, pid, other, 1, 0, 0)
    return r == 0 or (r < 0 and errno != ESRCH)


def watch(int guest):
    """Wait for our child ``guest``, passing signals on and stopping with it; its wait status."""
    cdef int status
    with nogil:
        status = umvm_watch(guest)
    return status
