"""Makes every third write(2) of the VM fail with EIO, to see how programs take it."""

import errno
import itertools

from umvm import Reply, SyscallClass


def umvm_start(vm, options):
    count = itertools.count(1)

    def write(request):
        return Reply.error(errno.EIO) if next(count) % 3 == 0 else None

    return [SyscallClass(("write",), write)]
