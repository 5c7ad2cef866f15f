"""RLIMIT_LOCKS without an identity (with one see umvm/syscalls/limits.py).

It has no effect in Linux and holds the VM's marks (umvm/guest/marks.py). Guests are told what they
set themselves, and can't touch the marks.
"""

from __future__ import annotations

import errno
import resource
import struct
from typing import TYPE_CHECKING

from umvm.guest.marks import MARKED, MAX_RECORDS
from umvm.guest.rlimits import RLIMIT_LOCKS
from umvm.syscalls.context import DONE, Reply, Request, fail, handles, signed
from umvm.syscalls.identity import may

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

LIMIT = "limit"
"""Key of a mark: the limit that a process thinks it has, (soft, hard)."""
CAP_SYS_RESOURCE = 24
_INFINITY = (1 << 64) - 1
_PAIR = struct.Struct("<QQ")
GETRLIMIT, SETRLIMIT = 97, 160


@handles("getrlimit", "setrlimit", "prlimit64")
def sys_prlimit64(vm: VirtualMachine, req: Request) -> Reply | None:
    """prlimit(2), getrlimit(2), setrlimit(2) of RLIMIT_LOCKS.

    **Errors** EINVAL: the soft limit is above the hard one. EPERM: the hard one can't be raised.
    """
    a = req.args
    pid, new, old = signed(a[0]), a[2], a[3]
    if req.nr in (GETRLIMIT, SETRLIMIT):
        pid, new, old = 0, a[1] * (req.nr == SETRLIMIT), a[1] * (req.nr == GETRLIMIT)
    wanted = _PAIR.unpack(req.read(new, _PAIR.size)) if new else None
    if pid < 0 or (pid and pid not in (req.tid, *vm.guest_pids())):
        return None
    if not vm.marks.used:
        if wanted is not None and MARKED <= wanted[0] < MARKED + MAX_RECORDS:
            raise fail(errno.EPERM)
        return None
    target = pid or req.tid
    now: tuple[int, int] = vm.marks.get(target, LIMIT) or _kernels(target)
    if wanted is not None:
        if wanted[0] > wanted[1]:
            raise fail(errno.EINVAL)
        if wanted[1] > now[1] and not may(vm, req, CAP_SYS_RESOURCE):
            raise fail(errno.EPERM)
        vm.marks.set(target, LIMIT, wanted)
    if old:
        req.write(old, _PAIR.pack(*now))
    return DONE


def _kernels(pid: int) -> tuple[int, int]:
    """What the kernel has, if it isn't a mark."""
    soft, hard = (limit & _INFINITY for limit in resource.prlimit(pid, RLIMIT_LOCKS))
    return (_INFINITY if MARKED <= soft < MARKED + MAX_RECORDS else soft), hard
