# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The path walk for Python: a view of mounts, and where a path leads in it."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EINVAL, EIO, ENAMETOOLONG, ENOSPC, ENOTDIR
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
import os

cdef extern from "Python.h":
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyEval_SaveThread() nogil
    void PyEval_RestoreThread(PyThreadState *) nogil

cdef extern from "pathwalk.h":
    struct umvm_walk:
        long (*look)(umvm_walk *, uint32_t) noexcept nogil
        void *ctx
        uint32_t base_mount
        uint32_t mount
        uint32_t len
        char *path
        int missing
        int slash
        int last_dot
        int served
        uint32_t jump_mount
        int jump_kind
        char *link
    const uint32_t UMVM_PATH_MAX, UMVM_BY_PATH
    const int UMVM_MAGIC, UMVM_IS_DIR, UMVM_IS_OTHER, UMVM_IS_SOME
    size_t umvm_view_bytes(uint32_t count, size_t text) nogil
    umvm_view *umvm_view_make(void *memory, const char **points, const uint32_t *lens,
                              const uint32_t *ids, uint32_t count, uint32_t detached,
                              const char *root, uint32_t root_len) nogil
    void umvm_view_bind(umvm_view *, uint32_t index, const char *source, uint32_t len,
                        uint32_t flags) nogil
    int umvm_shown(const umvm_view *, uint32_t hint, const char *host, uint32_t len, char *out,
                   uint32_t *out_len, uint32_t *mount) nogil
    uint32_t umvm_id(const umvm_view *, uint32_t mount) nogil
    const int UMVM_PLACE_MAX
    int umvm_walk_path "umvm_walk"(const umvm_view *, umvm_walk *, const char *base,
                                   uint32_t base_len, const char *path, uint32_t len,
                                   uint32_t flags) nogil

cdef extern from "hostlook.h":
    struct umvm_host_place:
        const char *path
        int in_proc
    int umvm_host_place_of "umvm_host_place"(const umvm_walk *, umvm_host_place *) nogil
    long umvm_look_at(umvm_walk *, const umvm_host_place *) nogil
    int umvm_host_known(const umvm_walk *, const umvm_host_place *) nogil
    int umvm_on_host(const umvm_walk *) nogil
    void umvm_forget_dirs() nogil
    void *umvm_seen

FOLLOW, MISSING_OK, BENEATH, IN_ROOT, NO_SYMLINKS, NO_XDEV, NO_MAGICLINKS = 1, 2, 4, 8, 16, 32, 64
SLASH_OK, SEARCH = 128, 256
BIND, READ_ONLY, AMBIGUOUS = 1, 2, 4


@cython.final
cdef class Magic:
    """What ``look`` returns for a magic link: the walk jumps to ``target`` as it is.

    ``target`` is canonical; empty: the file has no name and the walk ends at the link itself.
    ``mount`` −1: what the path says. ``directory`` None: not known (host only).
    """
    cdef readonly bytes target
    cdef readonly int mount
    cdef readonly object directory

    def __init__(self, bytes target not None, int mount=-1, directory=None):
        if target and not target.startswith(b"/"):
            raise ValueError(f"not absolute: {target!r}")
        self.target = target
        self.mount = mount
        self.directory = directory


@cython.final
cdef class Found:
    """Where a path leads: ``path`` is canonical and in the view, ``mount`` the id of its mount."""
    cdef readonly int mount
    cdef readonly bytes path
    cdef readonly bint missing
    cdef readonly bint slash
    cdef readonly int last_dot
    cdef readonly bint crossed

    def __repr__(self):
        return (f"Found(mount={self.mount}, path={self.path!r}, missing={self.missing}, "
                f"slash={self.slash}, last_dot={self.last_dot}, crossed={self.crossed})")


cdef struct Context:
    void *look            # the Python callback
    void *error           # an exception it raised, owned
    PyThreadState *saved  # not NULL: the GIL is released


cdef long _ask(Context *c, umvm_walk *w, uint32_t mount, const char *there) noexcept with gil:
    cdef bytes target
    cdef Magic magic
    cdef long r
    try:
        answer = (<object>c.look)(mount, w.path[:w.len] if there is NULL else <bytes>there)
        if isinstance(answer, bytes):
            target = answer
            r = 0
        elif isinstance(answer, Magic):
            magic = answer
            target = magic.target
            r = UMVM_MAGIC
            if magic.mount >= 0:
                w.jump_mount = magic.mount
            if magic.directory is not None:
                w.jump_kind = UMVM_IS_DIR if magic.directory else UMVM_IS_OTHER
        else:
            r = answer
            if r >= 0:
                raise ValueError(f"look answered {r}")
            return UMVM_IS_DIR if r == -EINVAL else UMVM_IS_OTHER if r == -ENOTDIR else r
        if PyBytes_GET_SIZE(target) >= <Py_ssize_t>UMVM_PATH_MAX:
            return -ENAMETOOLONG
        if b"\0" in target:
            raise ValueError(f"look answered {target!r}")
        memcpy(w.link, PyBytes_AS_STRING(target), PyBytes_GET_SIZE(target))
        return r | PyBytes_GET_SIZE(target)
    except BaseException as error:
        _keep(c, error)
        return -EIO


cdef extern from *:
    """
    #define umvm_own(o) (Py_INCREF((PyObject *)(o)), (void *)(o))
    #define umvm_disown(o) Py_XDECREF((PyObject *)(o))
    """
    void *umvm_own(object)
    void umvm_disown(void *)


cdef void _keep(Context *c, error):
    c.error = umvm_own(error)


cdef long _look(umvm_walk *w, uint32_t mount) noexcept nogil:
    cdef Context *c = <Context *>w.ctx
    cdef umvm_host_place place
    cdef const char *there = NULL
    cdef int e
    if umvm_on_host(w):
        e = umvm_host_place_of(w, &place)
        if e:
            return e
        if not place.in_proc:
            if c.saved is NULL and not umvm_host_known(w, &place):
                c.saved = PyEval_SaveThread()  # the disk, or a network, may be slow
            return umvm_look_at(w, &place)
        there = place.path
        mount = 1
    if c.saved is not NULL:
        PyEval_RestoreThread(c.saved)
        c.saved = NULL
    return _ask(c, w, mount, there)


@cython.final
cdef class View:
    """The mounts of a VM as the walk sees them; never changes."""

    def __cinit__(self, points, bytes root not None=b"/", detached=(), binds={}):
        """``points``: (canonical path, id) in the order of mounting; of equal points the last wins.

        Id 0 is the host, 1 is /proc, others are served. ``root``: absolute paths start there and
        nothing above is reached. ``detached``: mounts that are only reached from within. ``binds``:
        id → (canonical path on the host that the mount shows, flags).
        """
        self.given = list(points)
        self.sources = []
        self.root = root
        self.shows = dict(binds)
        cdef list mounts = [(bytes(point), int(ident)) for point, ident in self.given]
        cdef Py_ssize_t attached = len(mounts), n, k
        cdef size_t text = len(root)
        mounts += [(bytes(point), int(ident)) for point, ident in detached]
        n = len(mounts)
        if n > 30000:
            raise OSError(ENOSPC, "too many mounts")
        for point, ident in [*mounts, (root, 0)]:
            if not point.startswith(b"/") or not 0 <= ident < UMVM_BY_PATH:
                raise ValueError(f"not absolute, or a bad id: {point!r} {ident}")
            if len(point) >= UMVM_PATH_MAX:
                raise OSError(ENAMETOOLONG, "mount point too long")
            text += len(point)
        cdef const char **names = <const char **>calloc(n + 1, sizeof(char *))
        cdef uint32_t *lens = <uint32_t *>calloc(n + 1, sizeof(uint32_t))
        cdef uint32_t *ids = <uint32_t *>calloc(n + 1, sizeof(uint32_t))
        cdef void *memory = calloc(1, umvm_view_bytes(n, text))
        if names is not NULL and lens is not NULL and ids is not NULL and memory is not NULL:
            for k in range(n):
                names[k] = PyBytes_AS_STRING(mounts[k][0])
                lens[k] = len(mounts[k][0])
                ids[k] = mounts[k][1]
            self.view = umvm_view_make(memory, names, lens, ids, n, attached,
                                       PyBytes_AS_STRING(root), len(root))
        else:
            free(memory)
        free(names)
        free(lens)
        free(ids)
        if self.view is NULL:
            raise MemoryError()
        for k in range(n):
            bind = binds.get(mounts[k][1])
            if bind is not None:
                source = <bytes>bind[0]
                self.sources.append(source)
                umvm_view_bind(self.view, k, PyBytes_AS_STRING(source), len(source), bind[1])

    def __dealloc__(self):
        free(self.view)

    def walk(self, bytes base not None, bytes path not None, uint32_t flags, look,
             int base_mount=-1):
        """Resolve ``path`` from the canonical directory ``base``. OSError as path_resolution(7).

        ``look(mount, path)`` tells what is there: a link's target (bytes, or `Magic`) or −errno:
        −EINVAL: a directory, −ENOTDIR: anything else, else an error. An exception goes through.
        ``base_mount``: the mount that ``base`` belongs to where it isn't what its path says.
        """
        cdef umvm_walk w
        cdef Context c
        cdef Found found
        cdef int e
        if not base.startswith(b"/"):
            raise ValueError(f"not absolute: {base!r}")
        if b"\0" in base or b"\0" in path:
            raise ValueError("embedded null byte")
        w.look = _look
        w.ctx = &c
        w.base_mount = UMVM_BY_PATH if base_mount < 0 else base_mount
        c.look = <void *>look
        c.error = NULL
        c.saved = NULL
        e = umvm_walk_path(self.view, &w, PyBytes_AS_STRING(base), PyBytes_GET_SIZE(base),
                           PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), flags)
        if c.saved is not NULL:
            PyEval_RestoreThread(c.saved)
        if c.error is not NULL:
            error = <object>c.error
            umvm_disown(c.error)
            raise error
        if e < 0:
            raise OSError(-e, os.strerror(-e))
        found = Found.__new__(Found)
        found.mount = w.mount
        found.path = w.path[:w.len]
        found.missing = w.missing
        found.slash = w.slash
        found.last_dot = w.last_dot
        found.crossed = w.served
        return found


    def points(self):
        """The mounts that it was made of: (path, id) in the order of mounting."""
        return list(self.given)

    def parts(self):
        """What it was made of: points, root, and binds; without the detached mounts."""
        return list(self.given), self.root, dict(self.shows)

    def binds(self):
        """How many of them are bind mounts."""
        return len(self.sources)

    def shown(self, bytes host not None, hint=None):
        """Where the view shows the host's canonical path: (path, id of the mount, places).

        ``hint``: id of the mount by which the file was reached. At how many places it can be seen
        tells if that had to be guessed; 0: it can't be seen at all.
        """
        cdef char out[16384]
        cdef uint32_t length, mount, h = UMVM_BY_PATH if hint is None else hint
        cdef int places
        if not host.startswith(b"/") or len(host) >= sizeof(out):
            raise ValueError(f"not absolute, or too long: {host!r}")
        places = umvm_shown(self.view, h, PyBytes_AS_STRING(host), len(host), out, &length, &mount)
        return (out[:length] or b"/", umvm_id(self.view, mount), places)


def forget():
    """Forget what is known of host directories: one is about to be moved or removed."""
    umvm_forget_dirs()


cdef void *seen_dirs() noexcept nogil:
    return umvm_seen
