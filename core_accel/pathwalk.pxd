cdef extern from "pathwalk.h":
    struct umvm_view:
        pass


cdef class View:
    cdef umvm_view *view
    cdef list sources, given
    cdef bytes root
    cdef dict shows


cdef void *seen_dirs() noexcept nogil  # the memory of verified directories, for `umvm_route_share`
