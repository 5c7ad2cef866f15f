# cython: language_level=3, auto_pickle=False, autotestdict=False
"""What a VM shares with the agents in its guests: two files that every guest maps (agent/layout.h)."""
import mmap
import os

cimport cython
from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from "kernel.h":
    uint64_t umvm_now_ms() nogil
    long umvm_copy(int tid, void *here, uint64_t there, size_t size, int to_guest) nogil

cdef extern from "pathwalk.h":
    struct umvm_view:
        pass
    size_t umvm_view_bytes(uint32_t count, size_t text) nogil
    umvm_view *umvm_view_make(void *memory, const char **points, const uint32_t *lens,
                              const uint32_t *ids, uint32_t count, uint32_t detached,
                              const char *root, uint32_t root_len) nogil
    void umvm_view_bind(umvm_view *, uint32_t index, const char *source, uint32_t len,
                        uint32_t flags) nogil

cdef extern from "agent/layout.h":
    const uint32_t UMVM_AGENT_BASE, UMVM_AGENT_MASK, UMVM_GATE, UMVM_ROUTE, UMVM_STUBS, UMVM_SELF
    const uint32_t UMVM_STATE, UMVM_GATES
    const uint32_t UMVM_PLACES
    const int UMVM_VIEWS, UMVM_VIEW_ROOM, UMVM_SPACES, UMVM_TEXTS, UMVM_MAILBOXES, UMVM_MAX_NR
    const uint64_t UMVM_ENV_STAMP
    struct umvm_kind:
        uint8_t flow
        int8_t fd
        int8_t path[2]
        int8_t dir[2]
        int8_t flags
        uint8_t nofollow
    struct umvm_text:
        uint64_t dev
        uint64_t ino
        uint64_t size
        uint64_t mtime
        uint64_t ctime
        uint32_t id_offset
        uint32_t id_length
        uint8_t id[24]
        uint64_t offset
        uint64_t length
        uint64_t vaddr
        uint32_t stub
        uint32_t stub_length
        uint64_t copy_size
        char name[40]
    const int UMVM_AGENT_IDS
    struct umvm_ids:
        uint32_t valid
        uint32_t ids[8]
    struct umvm_owners_hint:
        uint32_t on
    struct umvm_notes:
        uint64_t next
    const int UMVM_OWNED, UMVM_OWNED_SIZE
    struct umvm_route_area:
        uint64_t stamp
        uint64_t shadow_dev
        uint32_t shadow_len
        uint32_t owner
        char shadow[256]
        char cache[512]
        umvm_kind kinds[512]
        uint64_t hooked[8]
        uint32_t active
        uint32_t descriptors
        uint32_t redirected
        uint32_t read_only
        uint32_t cautious
        uint64_t names[16]
        uint32_t texts_used
        uint32_t identity
        uint64_t place_epoch
        umvm_ids ids[2048]
        uint16_t text_index[8192]
        umvm_text texts[4096]
        umvm_owners_hint owners
    struct umvm_mailbox:
        uint32_t owner
        uint32_t count
        uint32_t name
        uint32_t front
        uint64_t execs
        uint64_t loads
        char loader[480]
        char text[15872]
    struct umvm_state:
        uint64_t since
        uint64_t cwd_epoch
        uint32_t traced
        uint64_t gated
        uint64_t walked
        uint64_t unpatched
        umvm_notes notes
        uint8_t answered[4096]
        umvm_mailbox mailboxes[64]
    struct umvm_self:
        void *entry
        char exe[4096]
        uint64_t bases[1]
    const int UMVM_UNIT_MS

cdef extern from *:
    """
    typedef __typeof__(((struct umvm_places *)0)->records[0]) umvm_place_record;
    """
    ctypedef struct umvm_place_record:
        uint32_t view
        uint32_t cwd

cdef extern from "agent/layout.h":
    struct umvm_places:
        umvm_place_record records[2048]
        uint64_t views[64]
        uint64_t generations[64]
        char rooms[24][16384]
cdef extern from *:
    """
    #include <stddef.h>
    static const unsigned long umvm_exe_at = UMVM_SELF + offsetof(struct umvm_self, exe);
    static const unsigned long umvm_bases_at = UMVM_SELF + offsetof(struct umvm_self, bases);
    /* Makes the pointers in a view fit for memory `shift` bytes on. */
    static void umvm_view_shift(struct umvm_view *v, long shift)
    {
        struct umvm_mount *m = (struct umvm_mount *)v->mounts;
        for (uint32_t i = 0; i < v->count; i++)
            m[i].point += shift, m[i].source += m[i].source ? shift : 0;
        v->mounts = (void *)((char *)v->mounts + shift);
        v->slots = (void *)((char *)v->slots + shift);
        v->root += shift;
    }
    """
    void umvm_view_shift(umvm_view *, long shift) nogil
    const unsigned long umvm_exe_at, umvm_bases_at

AGENT_BASE, AGENT_MASK, GATE = UMVM_AGENT_BASE, UMVM_AGENT_MASK, UMVM_GATE
STUBS, ENTRY, BASES = UMVM_STUBS, UMVM_SELF, umvm_bases_at
FLOWS = (
    "run gate active fd fds path follow stat open access readlink move chdir fchdir getcwd exec mmap "
    "clone address sendto sendmsg ptrace hooked prctl sockname seccomp sigreturn setid"
).split()

cdef uint64_t _mix(uint64_t h, uint64_t word) noexcept:
    h = (h ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return h ^ h >> 29


cdef uint64_t _hash(bytes text):
    """hash_text of agent/base.h."""
    cdef const unsigned char *s = text
    cdef Py_ssize_t n = len(text), i
    cdef uint64_t h = 0, word
    while n >= 8:
        memcpy(&word, s, 8)
        h = _mix(h, word)
        s += 8
        n -= 8
    word = n
    for i in range(n):
        word = word << 8 | s[i]
    return _mix(h, word) * <uint64_t>0x9E3779B97F4A7C15


@cython.final
cdef class Area:
    """The shared file `DIR/area`, mapped here."""
    cdef umvm_route_area *route
    cdef umvm_state *state
    cdef object _map
    cdef unsigned char *_memory
    cdef bytearray _taken  # which pages of stubs are in use
    cdef umvm_places *places
    cdef dict _views, _room  # of each space: what its view was made of, and where
    cdef list _free  # rooms, the one that is free for the longest time first
    cdef bint _served, _active
    cdef readonly bytes directory

    def __cinit__(self, bytes directory not None, bytes shadow not None, bytes cache not None,
                  kinds, uint32_t mode=0o600):
        """Make the file in ``directory``; ``shadow`` is how its paths begin, ``cache`` where patched
        copies are, ``kinds`` maps a call's number to (flow, fd, paths, dirs, flags, nofollow)."""
        cdef unsigned char[::1] view
        cdef int nr, i
        if len(shadow) >= 200 or len(cache) >= 500:
            raise OSError(36, os.strerror(36))
        self.directory = directory
        self._taken = bytearray((UMVM_GATE - UMVM_STUBS) // 4096)
        fd = os.open(os.path.join(directory, b"area"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, UMVM_GATE - UMVM_AGENT_BASE)
            os.fchmod(fd, mode)
            self._map = mmap.mmap(fd, UMVM_GATE - UMVM_AGENT_BASE)
            device = os.fstat(fd).st_dev
        finally:
            os.close(fd)
        view = self._map
        self._memory = &view[0]
        self.route = <umvm_route_area *>(self._memory + (UMVM_ROUTE - UMVM_AGENT_BASE))
        self.state = <umvm_state *>(self._memory + (UMVM_STATE - UMVM_AGENT_BASE))
        self.places = <umvm_places *>(self._memory + (UMVM_PLACES - UMVM_AGENT_BASE))
        self._views, self._room, self._free = {}, {}, list(range(UMVM_VIEWS))
        self.route.shadow_dev = device
        self.route.place_epoch = 1
        self.route.shadow_len = len(shadow)
        self.route.owner = os.geteuid()
        memcpy(self.route.shadow, <const char *>shadow, len(shadow))
        memcpy(self.route.cache, <const char *>cache, len(cache))
        for nr in range(UMVM_MAX_NR):
            self.route.kinds[nr].fd = self.route.kinds[nr].flags = -1
            self.route.kinds[nr].path[0] = self.route.kinds[nr].path[1] = -1
            self.route.kinds[nr].dir[0] = self.route.kinds[nr].dir[1] = -1
        for number, (flow, fd, paths, dirs, flags, nofollow) in kinds.items():
            nr = number
            self.route.kinds[nr].flow = FLOWS.index(flow)
            self.route.kinds[nr].fd = fd
            self.route.kinds[nr].flags = flags
            self.route.kinds[nr].nofollow = nofollow
            for i in range(len(paths)):
                self.route.kinds[nr].path[i] = paths[i]
                self.route.kinds[nr].dir[i] = dirs[i]
        for i in range(UMVM_MAILBOXES):
            text = b"%sl/%02d" % (shadow, i)
            memcpy(self.state.mailboxes[i].loader, <const char *>text, len(text))
        self.route.stamp = UMVM_ENV_STAMP

    def answered(self):
        """The marks by which agents see that a call of theirs was answered (Engine.set_answered)."""
        start = <unsigned char *>self.state.answered - self._memory
        return memoryview(self._map)[start:start + UMVM_GATES]

    def owners(self):
        """What agents know of owners, entries, and what guests did (Owners.set_hint)."""
        start = <unsigned char *>&self.route.owners - self._memory
        ring = <unsigned char *>&self.state.notes - self._memory
        entries = UMVM_OWNED - UMVM_AGENT_BASE
        view = memoryview(self._map)
        return (view[start:start + sizeof(umvm_owners_hint)],
                view[entries:entries + UMVM_OWNED_SIZE], view[ring:ring + sizeof(umvm_notes)])

    def no_owners(self):
        """Agents ask about all calls on owners."""
        self.route.owners.on = 0

    def set_views(self, views, names):
        """The views of all processes, each (mount points [(path, id)] in mount order, root, binds
        {id: (source, flags)}); ``names`` are further last components that agents have to look at
        closely. What they had verified is void afterwards."""
        cdef uint64_t h
        cdef uint64_t[16] filter
        cdef int i
        given = [
            (tuple((bytes(path), ident) for path, ident in points), bytes(root), dict(binds))
            for points, root, binds in views
        ]
        mounted = {path for points, _, _ in given for path, ident in points if ident > 1}
        all_binds = [bind for _, _, binds in given for bind in binds.values()]
        redirected = len(given) > 1 or bool(all_binds) or given[0][1] != b"/"
        every = mounted | {b"/", b"/proc"}
        memset(filter, 0, sizeof(filter))
        for name in [path.rstrip(b"/").rsplit(b"/", 1)[-1] for path in every] + list(names):
            h = _hash(name)
            filter[h >> 6 & 15] |= <uint64_t>1 << (h & 63)
            filter[h >> 16 & 15] |= <uint64_t>1 << (h >> 10 & 63)
        for i in range(16):
            self.route.names[i] |= filter[i]
        self._served = bool(mounted) or redirected
        if self._served:
            self.route.active = 1
        self.route.read_only |= any(flags & 2 for _, flags in all_binds)
        self.route.redirected |= redirected
        for i in range(UMVM_SPACES):
            parts = given[i] if i < len(given) else None
            if self._views.get(i) != parts:
                self._set_one(i, parts)
        self.route.read_only = any(flags & 2 for _, flags in all_binds)
        self.route.redirected = redirected
        self.forget()
        for i in range(16):
            self.route.names[i] = filter[i]
        self.route.active = self._served or self.route.descriptors > 0 or self._active

    cdef _set_one(self, int index, parts):
        """One view; None: there is none. A room is used anew as late as can be: guests may be in it."""
        room = self._room.pop(index, None)
        there = 0
        if parts is not None and len(self._free):
            number = self._free.pop(0)
            there = self._make(number, parts[0], parts[1], parts[2])
            if there:
                self._room[index] = number
            else:
                self._free.append(number)
        self._views[index] = parts
        self.places.views[index] = 0
        self.places.generations[index] += 1
        self.places.views[index] = there
        if room is not None:
            self._free.append(room)

    cdef uint64_t _make(self, int number, points, bytes root, dict binds) except? 0:
        """The guest address of a view that was made in a room; 0: it doesn't fit there."""
        cdef const char *texts[256]
        cdef uint32_t lens[256]
        cdef uint32_t ids[256]
        cdef uint32_t n = 0
        cdef size_t size = len(root)
        cdef uint64_t there
        cdef umvm_view *v
        cdef char *memory = self.places.rooms[number]
        if len(points) >= 256 or any(ident > 1 and not path.rstrip(b"/") for path, ident in points):
            return 0
        for path, ident in points:
            texts[n] = path
            lens[n] = len(path)
            ids[n] = ident
            size += len(path)
            n += 1
        sources = [bytes(binds[ident][0]) if ident in binds else b"" for _, ident in points]
        size = umvm_view_bytes(n, size)
        if size + sum(map(len, sources)) > <size_t>UMVM_VIEW_ROOM:
            return 0
        memset(memory, 0, UMVM_VIEW_ROOM)
        v = umvm_view_make(memory, texts, lens, ids, n, n, <const char *>root, len(root))
        for n, (source, (_, ident)) in enumerate(zip(sources, points)):
            if ident in binds:
                memcpy(memory + size, <const char *>source, len(source))
                umvm_view_bind(v, n, memory + size, len(source), binds[ident][1])
                size += len(source)
        there = UMVM_PLACES + (memory - <char *>self.places)
        umvm_view_shift(v, <long>there - <long>memory)
        return there

    def set_place(self, int number, uint32_t view, uint32_t cwd):
        """Which view processes with this number see, and by which mount they came to where they
        are (core_accel.engine.Engine.set_place)."""
        if 0 <= number < UMVM_AGENT_IDS:
            self.places.records[number].view = view
            self.places.records[number].cwd = cwd

    def marked(self):
        """Some process has another number: what agents know of theirs is void."""
        self.route.place_epoch += 1

    def set_cautious(self):
        """Agents are told that processes may share memory, and so what they remember, unseen."""
        self.route.cautious = 1

    def set_descriptors(self, uint32_t count, active):
        """How many served descriptors are open; whether anything is served at all."""
        self.route.descriptors = count
        self._active = bool(active)
        self.route.active = 1 if active or count or self._served else 0

    def set_hooks(self, numbers):
        """The calls that are always the supervisor's."""
        cdef uint64_t bits[8]
        memset(bits, 0, sizeof(bits))
        for nr in numbers:
            bits[nr // 64] |= <uint64_t>1 << (nr % 64)
        for i in range(8):
            self.route.hooked[i] = bits[i]

    def set_identity(self, on):
        """May agents tell guests their ids by themselves?"""
        self.route.identity = 1 if on else 0

    def set_record(self, int number, ids):
        """The ids of processes with this number (core_accel.engine.Engine.set_record)."""
        cdef umvm_ids *own
        cdef int i
        if 0 <= number < UMVM_AGENT_IDS:
            own = &self.route.ids[number]
            own.valid = 0
            for i in range(8):
                own.ids[i] = ids[i]
            own.valid = 1

    def forget(self):
        """A path may lead elsewhere from now on."""
        self.state.since = umvm_now_ms() // UMVM_UNIT_MS + 2

    def cwd_moved(self):
        """A process may stand in another directory without its agent knowing."""
        self.state.cwd_epoch += 1

    def add_text(self, key, length, vaddr, stub, bytes stubs not None, copy_size, bytes name,
                 id_offset=0, bytes build_id=b""):
        """Tell agents of a patched file; ``key`` is (dev, ino, size, mtime_ns, ctime_ns, offset).
        Without ``stubs`` it was looked at and stays as it is. ``build_id``, if any, is at
        ``id_offset`` in the file. False: the table is full, or others are at the address ``stub``:
        guests may be in them."""
        cdef uint64_t h
        cdef umvm_text *t
        cdef uint16_t *slot
        cdef int i
        dev, ino, size, mtime, ctime, offset = key
        first, last = (stub - UMVM_STUBS) // 4096, (stub + len(stubs) - 1 - UMVM_STUBS) // 4096
        there = stub - UMVM_AGENT_BASE
        if stubs:
            if stub < UMVM_STUBS or stub + len(stubs) > UMVM_GATE:
                return False
            if any(self._taken[first:last + 1]) and self._map[there:there + len(stubs)] != stubs:
                return False
            self._map[there:there + len(stubs)] = stubs
            self._taken[first:last + 1] = b"\1" * (last + 1 - first)
        h = _mix(_mix(dev, ino), offset >> 12)
        for i in range(2 * UMVM_TEXTS):
            slot = &self.route.text_index[(h + i) % (2 * UMVM_TEXTS)]
            t = &self.route.texts[slot[0] - 1] if slot[0] else &self.route.texts[self.route.texts_used]
            if slot[0] == 0 or (t.dev == dev and t.ino == ino and t.offset == offset):
                break
        if slot[0] == 0 and self.route.texts_used >= <uint32_t>UMVM_TEXTS - 1:
            return False
        t.ino = 0
        t.id_offset, t.id_length = id_offset, min(len(build_id), 24)
        memcpy(t.id, <const char *>build_id, t.id_length)
        t.dev, t.size, t.mtime, t.ctime, t.offset = dev, size, mtime, ctime, offset
        t.length, t.vaddr, t.copy_size = length, vaddr, copy_size
        t.stub, t.stub_length = stub, len(stubs)
        memset(t.name, 0, 40)
        memcpy(t.name, <const char *>name, min(len(name), 39))
        t.ino = ino
        if slot[0] == 0:
            self.route.texts_used += 1
            slot[0] = self.route.texts_used
        return True

    def put(self, uint32_t owner, bytes program, bytes name, front):
        """Fill a free mailbox for a process that executes the loader; the loader's path for it.
        None: there is no mailbox, or what it is told doesn't fit."""
        cdef int i
        cdef umvm_mailbox *m = NULL
        words = b"".join(word + b"\0" for word in front)
        text = program + b"\0" + name + b"\0" + words
        if len(program) > 4095 or len(name) > 4095 or len(text) > <Py_ssize_t>sizeof(m.text):
            return None
        for i in range(UMVM_MAILBOXES):
            if self.state.mailboxes[i].owner == 0:
                m = &self.state.mailboxes[i]
                m.owner = owner + 1
                break
        else:
            return None
        memcpy(m.text, <const char *>text, len(text))
        m.name = 0 if program == name else len(program) + 1
        m.front = len(program) + len(name) + 2
        m.count = len(front)
        return <bytes>m.loader

    def counts(self):
        """What agents did: asked, walked, executed, loaded, mappings patched and not patched."""
        cdef uint64_t execs = 0, loads = 0
        for i in range(UMVM_MAILBOXES):
            execs += self.state.mailboxes[i].execs
            loads += self.state.mailboxes[i].loads
        return {"gated": self.state.gated, "walked": self.state.walked, "execs": execs, "loads": loads,
                "unpatched": self.state.unpatched}


def exe(int pid):
    """The program of a process that the loader loaded. OSError: its memory can't be read."""
    cdef char[4096] text
    cdef long n = umvm_copy(pid, <char *>text, umvm_exe_at, 4096, 0)
    if n < 4096:
        raise OSError(-n if n < 0 else 14, "not loaded by umvm")
    text[4095] = 0
    return <bytes><char *>text


def text_hash(bytes text not None):
    """The hash that agents use for names (for tests)."""
    return _hash(text)
