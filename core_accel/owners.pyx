# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Who owns the host's files as guests see them: a table in memory that can be shared (owners.h)."""
import os

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset, strlen

cdef extern from "owners.h":
    struct statx_t "statx":
        pass
    struct umvm_real:
        uint64_t dev, ino, guard, rdev
        uint32_t uid, gid, mode, links
    struct umvm_spot:
        int fd, flags, owned
        char *path
    int umvm_owners_open(umvm_owners *) nogil
    void umvm_hint_add(umvm_owners_hint *, uint64_t, uint64_t) nogil
    void umvm_notes_begin(umvm_notes *) nogil
    void umvm_owners_begin(umvm_owners *) nogil
    void umvm_owners_notice(umvm_owners *) nogil
    void umvm_owners_end(umvm_owners *) nogil
    umvm_owner *umvm_owner_slots(const umvm_owners_area *) nogil
    umvm_owner *umvm_owner_at(umvm_owners_area *, uint64_t, uint64_t) nogil
    void umvm_owner_died(umvm_owners *, uint64_t, uint64_t) nogil
    umvm_owner *umvm_owner_make(umvm_owners *, const umvm_real *) nogil
    const umvm_owner *umvm_owner_show(umvm_owners *, umvm_real *) nogil
    void umvm_owner_drop(umvm_owners *, umvm_owner *) nogil
    void umvm_owner_touch(umvm_owners *, umvm_owner *) nogil
    long umvm_statx(const umvm_spot *, int more, unsigned mask, statx_t *) nogil
    void umvm_real_of(const statx_t *, umvm_real *) nogil
    int umvm_owner_chown(umvm_owners *, const umvm_spot *, statx_t *, uint32_t uid, uint32_t gid,
                         int) nogil
    int umvm_owner_chmod(umvm_owners *, const umvm_spot *, const statx_t *, uint32_t mode) nogil

cdef extern from *:
    """
    #include <string.h>
    #include <unistd.h>
    static void umvm_spot_set(struct umvm_spot *s, int fd, const char *path, size_t n, int flags)
    {
        s->fd = fd;
        s->flags = flags;
        s->owned = 0;
        memcpy(s->path, path, n + 1);
    }
    static void umvm_owners_close(struct umvm_owners *o)
    {
        if (o->area) {
            munmap(o->area, o->room);
            close(o->fd);
        }
    }
    """
    void umvm_spot_set(umvm_spot *, int fd, const char *path, size_t n, int flags) nogil
    void umvm_owners_close(umvm_owners *) nogil

cdef enum:
    PATH_MAX = 4096
    FREE_FLAGS = 1 | 2 | 4 | 8
    DEAD_FLAG = 8
    CHANGED_FLAG = 16
    GONE_FLAG = 32

HAS_MODE, HAS_TYPE, HAS_XATTR, DEAD, CHANGED, GONE = 1, 2, 4, 8, 16, 32
UNKNOWN_OWN, UNKNOWN_REAL, UNKNOWN_ALL = 0, 1, 2


cdef int _spot(umvm_spot *s, int fd, bytes path, int flags) except -1:
    if len(path) >= PATH_MAX:
        raise OSError(36, os.strerror(36))
    umvm_spot_set(s, fd, path, len(path), flags)
    return 0


cdef int _check(int result) except -1:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


@cython.final
cdef class Owners:
    """The table. All methods may be called from any thread."""

    def __cinit__(self):
        memset(&self.table, 0, sizeof(self.table))
        _check(umvm_owners_open(&self.table))

    def __dealloc__(self):
        umvm_owners_close(&self.table)

    def __len__(self):
        umvm_owners_notice(&self.table)
        return self.table.area.known

    def fileno(self):
        """The file that holds the table (memfd_create(2))."""
        return self.table.fd

    def set_unknown(self, int how, own, shown):
        """How files without an entry are shown: UNKNOWN_*; (uid, gid) of the user, and shown."""
        umvm_owners_begin(&self.table)
        self.table.area.unknown = how
        self.table.area.own_uid, self.table.area.own_gid = own
        self.table.area.as_uid, self.table.area.as_gid = shown
        umvm_owners_end(&self.table)

    def set_guests(self, bint plain, bint new_differ):
        """Are guests root unless marked, and is what they make not shown as theirs by itself?"""
        umvm_owners_begin(&self.table)
        self.table.area.plain = plain
        self.table.area.new_differ = new_differ
        umvm_owners_end(&self.table)

    def set_split(self, bint split):
        """Do threads of any process differ in their credentials?"""
        umvm_owners_begin(&self.table)
        self.table.area.split = split
        umvm_owners_end(&self.table)

    def set_hint(self, area not None, shown not None, notes not None, numbers):
        """Memory that agents see (Area.owners), and the calls it is for."""
        cdef unsigned char[::1] view = area, slots = shown, written = notes
        cdef umvm_owners_hint *hint = <umvm_owners_hint *>&view[0]
        cdef umvm_notes *ring = <umvm_notes *>&written[0]
        cdef umvm_owner *e
        cdef uint64_t bits[8]
        cdef uint64_t i
        memset(bits, 0, sizeof(bits))
        for nr in numbers:
            bits[nr // 64] |= <uint64_t>1 << (nr % 64)
        self.area = view, slots, written  # keeps them
        cdef bint first = self.table.notes != ring  # else guests may be writing to it
        if first:
            umvm_notes_begin(ring)
        umvm_owners_begin(&self.table)
        for i in range(self.table.area.slots):
            e = &umvm_owner_slots(self.table.area)[i]
            if e.ino or e.dev:
                umvm_hint_add(hint, e.dev, e.ino)
        for i in range(8):
            hint.owned[i] = bits[i]
        if first:
            hint.taken = ring.next
        self.table.hint = hint
        self.table.shown = <umvm_shown *>&slots[0]
        self.table.notes = ring
        umvm_owners_end(&self.table)

    def set_logged(self, bint wanted):
        """Is `changed` going to be asked?"""
        self.table.area.logged = wanted

    def look(self, bytes path not None, int flags=0, int fd=-100):
        """(dev, ino, guard, links, entry's flags or −1; uid, gid, mode really; as shown, and rdev).

        `flags`: AT_*. **Errors** as statx(2).
        """
        cdef umvm_spot s
        cdef statx_t x
        cdef umvm_real real, seen
        cdef const umvm_owner *e
        cdef int known = -1
        cdef long r
        _spot(&s, fd, path, flags)
        with nogil:
            r = umvm_statx(&s, 0, 0, &x)
        _check(r)
        umvm_real_of(&x, &real)
        seen = real
        umvm_owners_begin(&self.table)
        e = umvm_owner_show(&self.table, &seen)
        if e is not NULL:
            known = e.flags
        umvm_owners_end(&self.table)
        return (real.dev, real.ino, real.guard, real.links, known, real.uid, real.gid, real.mode,
                seen.uid, seen.gid, seen.mode, seen.rdev)

    def chown(self, bytes path not None, int flags, uid, gid, int fd=-100):
        """chown(2) by somebody who may; −1 keeps. Set-id bits go; what attributes go is not ours."""
        cdef umvm_spot s
        cdef uint32_t new_uid = uid & 0xFFFFFFFF, new_gid = gid & 0xFFFFFFFF
        cdef statx_t x
        cdef int r
        _spot(&s, fd, path, flags)
        with nogil:
            r = umvm_statx(&s, 0, 0, &x)
            if r == 0:
                r = umvm_owner_chown(&self.table, &s, &x, new_uid, new_gid, 0)
        _check(r)

    def chmod(self, bytes path not None, int flags, uint32_t mode, int fd=-100):
        """chmod(2) by somebody who may, on what isn't a symbolic link."""
        cdef umvm_spot s
        cdef statx_t x
        cdef int r
        _spot(&s, fd, path, flags)
        with nogil:
            r = umvm_statx(&s, 0, 0, &x)
            if r == 0:
                r = umvm_owner_chmod(&self.table, &s, &x, mode)
        _check(r)

    def put(self, dev, ino, guard, uid, gid, mode, real_mode, rdev, int flags):
        """Set the entry of an inode. `flags`: HAS_*; `mode` has the type too."""
        umvm_owners_begin(&self.table)
        try:
            self._set((dev, ino, guard, uid, gid, mode, real_mode, rdev), flags)
        finally:
            umvm_owners_end(&self.table)

    cdef _set(self, values, int flags):
        """Lock held."""
        cdef umvm_real r
        cdef umvm_owner *e
        memset(&r, 0, sizeof(r))
        r.dev, r.ino, r.guard, uid, gid, r.mode, real_mode, rdev = values
        e = umvm_owner_at(self.table.area, r.dev, r.ino)
        if e is not NULL:
            umvm_owner_drop(&self.table, e)  # whoever's it was
        e = umvm_owner_make(&self.table, &r)
        if e is NULL:
            raise MemoryError()
        e.uid = uid
        e.gid = gid
        e.real_mode = real_mode
        e.rdev = rdev
        e.flags = (e.flags & CHANGED_FLAG) | (flags & FREE_FLAGS)
        umvm_owner_touch(&self.table, e)
        if flags & HAS_XATTR:
            self.table.area.xattrs += 1
        if flags & HAS_MODE and e.mode & 0o172000 == 0o042000:
            self.table.area.special += 1

    def learn(self, dev, ino, guard, uid, gid, mode, real_mode, rdev, int flags):
        """As `put`, GONE included, of what a database says: it isn't to be told of it again.

        False: the entry has changed here since `changed` was asked.
        """
        cdef umvm_owner *e
        cdef uint32_t logged
        umvm_owners_begin(&self.table)
        e = umvm_owner_at(self.table.area, dev, ino)
        known = e is not NULL
        logged = self.table.area.logged
        try:
            if known and e.flags & CHANGED_FLAG:
                return False
            self.table.area.logged = 0
            if not flags & GONE_FLAG:
                self._set((dev, ino, guard, uid, gid, mode, real_mode, rdev), flags)
            elif known:
                umvm_owner_drop(&self.table, e)
        finally:
            self.table.area.logged = logged
            umvm_owners_end(&self.table)
        return True

    def mark(self, entries, gone):
        """The changes that `changed` told of, (dev, ino) of each, have to be told again."""
        cdef umvm_owner *e
        umvm_owners_begin(&self.table)
        for dev, ino in [*entries, *gone]:
            e = umvm_owner_at(self.table.area, dev, ino)
            if e is not NULL:
                umvm_owner_touch(&self.table, e)
        umvm_owners_end(&self.table)

    def entry(self, dev, ino):
        """The entry of an inode, whoever's it is: as `put` takes it; None: there is none."""
        cdef umvm_owner *e
        umvm_owners_begin(&self.table)
        e = umvm_owner_at(self.table.area, dev, ino)
        found = None if e is NULL or e.flags & GONE_FLAG else _tuple(e)
        umvm_owners_end(&self.table)
        return found

    def drop(self, dev, ino):
        """Forget an inode."""
        cdef umvm_owner *e
        umvm_owners_begin(&self.table)
        e = umvm_owner_at(self.table.area, dev, ino)
        if e is not NULL:
            umvm_owner_drop(&self.table, e)
        umvm_owners_end(&self.table)

    def died(self, dev, ino):
        """The last name of an inode was removed: it is forgotten when it has one again."""
        umvm_owner_died(&self.table, dev, ino)

    def entries(self):
        """All entries of files that have a name, as `put` takes them."""
        cdef umvm_owners_area *a = self.table.area
        cdef umvm_owner *e
        cdef uint64_t i
        found = []
        umvm_owners_begin(&self.table)
        for i in range(a.slots):
            e = &umvm_owner_slots(a)[i]
            if (e.ino or e.dev) and not e.flags & (GONE_FLAG | DEAD_FLAG):
                found.append(_tuple(e))
        umvm_owners_end(&self.table)
        return found

    def changed(self):
        """(entries, gone (dev, ino)) that changed since the last time; those of the dead are gone."""
        cdef umvm_owners_area *a = self.table.area
        cdef umvm_owner *e
        cdef uint64_t i
        found = []
        gone = []
        umvm_owners_notice(&self.table)
        if not a.changes:
            return found, gone
        umvm_owners_begin(&self.table)
        for i in range(a.slots):
            e = &umvm_owner_slots(a)[i]
            if e.flags & CHANGED_FLAG:
                e.flags &= ~CHANGED_FLAG
                if e.flags & (GONE_FLAG | DEAD_FLAG):
                    gone.append((e.dev, e.ino))
                else:
                    found.append(_tuple(e))
        a.changes = 0
        umvm_owners_end(&self.table)
        return found, gone


cdef _tuple(const umvm_owner *e):
    return (e.dev, e.ino, e.guard, e.uid, e.gid, e.mode, e.real_mode, e.rdev, e.flags & FREE_FLAGS)
