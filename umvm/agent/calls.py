"""How the agent treats each call; made from the same table as the filter and the engine's kinds.

What isn't named here and may concern something served is asked about at the gate.
"""

from __future__ import annotations

from umvm.syscalls.kinds import ALWAYS, KINDS, SERVED
from umvm.syscalls.row import Row, Verdict
from umvm.syscalls.table import ROWS

Kind = tuple[str, int, tuple[int, ...], tuple[int, ...], int, int]

_FLOWS = {
    "stat": "stat newfstatat statx",
    "open": "open openat creat",
    "access": "access faccessat faccessat2",
    "readlink": "readlink readlinkat",
    "move": "rename renameat renameat2 link symlink symlinkat",
    "path": "lstat mkdir mkdirat rmdir unlink unlinkat mknod mknodat lchown lsetxattr lgetxattr "
    "llistxattr lremovexattr",
    "follow": "truncate chmod fchmodat fchmodat2 chown fchownat utime utimes futimesat utimensat "
    "statfs setxattr getxattr listxattr removexattr inotify_add_watch",
    "chdir": "chdir",
    "fchdir": "fchdir",
    "getcwd": "getcwd",
    "exec": "execve",
    "mmap": "mmap",
    "clone": "clone clone3 vfork",
    "address": "bind connect",
    "sendto": "sendto",
    "sendmsg": "sendmsg",
    "fds": "sync msync close_range sendfile splice tee vmsplice copy_file_range sync_file_range",
    "ptrace": "ptrace",
    "prctl": "prctl",
    "sockname": "getsockname getpeername",
    "sigreturn": "rt_sigreturn",
    "seccomp": "seccomp",
    "setid": "setuid setgid setreuid setregid setgroups setresuid setresgid setfsuid setfsgid "
    "capset",
}
FLOW = {name: flow for flow, names in _FLOWS.items() for name in names.split()}
_FLAGS = {
    "newfstatat": (3, 1), "statx": (2, 1), "faccessat2": (3, 1), "fchmodat2": (3, 1),
    "fchownat": (4, 1), "utimensat": (3, 1), "open": (1, 0), "openat": (2, 0),
    "inotify_add_watch": (2, 4),
}  # fmt: skip
"""Index of the argument that says whether links are followed, and how (struct umvm_kind)."""
ODD_NAMES = (
    b"proc cwd root exe mounts mountinfo mountstats maps smaps numa_maps filesystems thread-self "
    b"fd fdinfo map_files self status auxv limits hostname domainname oom_score_adj environ mem "
    b"osrelease version "
    b"net tcp tcp6 udp udp6 udplite udplite6 dev route ipv6_route if_inet6 sockstat sockstat6 arp "
    b"raw raw6 packet unix"
).split()
"""Names that may mean something of /proc's that the view changes."""


def kind(row: Row) -> Kind:
    """(flow, indexes of the descriptor, paths, their directories and the flags, nofollow)."""
    if row.name in ("ptrace", "seccomp", "vfork"):
        return FLOW[row.name], -1, (), (), -1, 0
    if row.verdict is not Verdict.TRAPPED:
        return "run", -1, (), (), -1, 0
    _, fd, paths, dirs = KINDS[row.nr]
    flags, nofollow = _FLAGS.get(row.name, (-1, 0))
    flow = FLOW.get(row.name)
    if flow is None:
        if row.name in ALWAYS:
            flow = "gate"
        elif row.name in SERVED or paths:
            flow = "active"
        else:
            flow = "fd" if fd >= 0 else "hooked"
    return flow, fd, paths, dirs, flags, nofollow


AGENT_KINDS: dict[int, Kind] = {row.nr: kind(row) for row in ROWS}
