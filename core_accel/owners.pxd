"""The table of owners, for the engine."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef extern from "owners.h":
    struct umvm_owner:
        uint64_t dev, ino, guard, rdev
        uint32_t uid, gid, mode
        uint16_t real_mode, flags
    struct umvm_owners_area:
        uint64_t slots, known, used, changes, special, xattrs
        uint32_t own_uid, own_gid, as_uid, as_gid, unknown, plain, split, new_differ, logged
    struct umvm_owners_hint:
        uint64_t taken
        uint64_t owned[8]
    struct umvm_shown:
        uint64_t seq
    struct umvm_notes:
        uint64_t next
    struct umvm_owners:
        umvm_owners_area *area
        int fd
        umvm_owners_hint *hint
        umvm_shown *shown
        umvm_notes *notes


cdef class Owners:
    cdef umvm_owners table
    cdef object area
    cdef _set(self, values, int flags)
