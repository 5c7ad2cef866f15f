"""What others of core_accel need of a Request. Mirrors linux/seccomp.h of Linux 6.6."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "kernel.h":
    struct seccomp_data:
        int nr
        uint32_t arch
        uint64_t instruction_pointer
        uint64_t *args
    struct seccomp_notif:
        uint64_t id
        uint32_t pid
        uint32_t flags
        seccomp_data data


    struct umvm_verdict:
        int kind
        int cloexec
        int64_t number
    int umvm_conclude(int listener, uint64_t id, const umvm_verdict *v) nogil


cdef enum:
    RUN = 0
    VALUE = 1
    ERROR = 2
    FD = 3
    LATER = 4
    DONE = 5


cdef class Reply:
    cdef readonly int kind
    cdef readonly object number
    cdef readonly bint cloexec


cdef class Restarts:
    cdef dict calls, recent
    cdef int pending
    cdef uint8_t *answered  # agents' marks (agent/layout.h), or NULL
    cdef add(self, tid, entry)
    cdef drop(self, tid)


cdef class Request:
    cdef readonly int nr
    cdef readonly int tid
    cdef readonly tuple args
    cdef readonly object ip
    cdef int listener
    cdef uint64_t id
    cdef Restarts restarts
    cdef uint64_t path_at
    cdef bytes path


cdef Reply make_reply(int kind, number, bint cloexec)
cdef Request make_request(int listener, const seccomp_notif *q, Restarts restarts)
cdef umvm_verdict verdict(Reply r) except *
cdef int resume(Request q) except -1
cdef void send(Request q, Reply r)
