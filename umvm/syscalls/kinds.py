"""What the engine must know of each trapped call to decide in C who may claim it."""

from __future__ import annotations

from umvm.syscalls.row import Row, Verdict
from umvm.syscalls.table import ROWS

ALWAYS = frozenset(
    "umask mount umount2 pivot_root chroot unshare setns clone clone3 prctl setuid setgid setreuid "
    "setregid setresuid setresgid setfsuid setfsgid setgroups capset".split()
)
"""Handled even while nothing is mounted."""
SERVED = frozenset(
    "openat2 execve execveat getcwd sync msync close_range sendfile splice tee vmsplice "
    "copy_file_range bind connect sendto sendmsg sendmmsg getsockname getpeername".split()
)
"""Handled while anything is mounted or open: what decides isn't one path or one descriptor."""
REDIRECTED = frozenset("chdir fchdir".split())
"""Handled while a bind mount or another root shows files of the host at other paths."""
SOCKETS = frozenset(
    "bind connect listen accept accept4 getsockname getpeername sendto sendmsg sendmmsg recvfrom "
    "recvmsg recvmmsg getsockopt setsockopt shutdown ioctl".split()
)
"""Handled if their descriptor is a socket that a network stack answers for."""
_WHEN = {
    **dict.fromkeys(ALWAYS, 1),
    **dict.fromkeys(SERVED, 2),
    "rt_sigreturn": 8,
    **dict.fromkeys(REDIRECTED, 16),
    **dict.fromkeys(("getrlimit", "setrlimit", "prlimit64"), 32),
}
"""Bits of `umvm_call_kind.always` of core_accel/route.h."""
MAX_PATHS = 2


def kind(row: Row) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """(when handled: bits as in `_WHEN`, and 4 for the calls on certain sockets; index of the
    descriptor, indexes of paths, their directories' indexes)."""
    always = _WHEN.get(row.name, 0) | (4 if row.name in SOCKETS else 0)
    kinds = row.args.split()
    paths, bases = [], []
    for index, what in enumerate(kinds):
        if what == "path":
            paths.append(index)
            bases.append(index - 1 if index and kinds[index - 1] == "dirfd" else -1)
    fd = kinds.index("fd") if "fd" in kinds else -1
    return always, fd, tuple(paths[:MAX_PATHS]), tuple(bases[:MAX_PATHS])


KINDS = {row.nr: kind(row) for row in ROWS if row.verdict is Verdict.TRAPPED}
