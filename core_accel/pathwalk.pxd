cdef void *seen_dirs() noexcept nogil  # the memory of verified directories, for `umvm_route_share`
