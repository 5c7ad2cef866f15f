"""The soft resource limits of guests, also of those that became another user on the host.

prlimit(2) on a process with other ids takes CAP_SYS_RESOURCE, which root in a container often
lacks; /proc/PID/limits shows everybody the same. **Source**: check_prlimit_permission() of
kernel/sys.c, proc_pid_limits() of fs/proc/base.c.
"""

from __future__ import annotations

import errno
import os
import resource

RLIMIT_LOCKS = 10
_ROWS = {resource.RLIMIT_FSIZE: b"Max file size ", RLIMIT_LOCKS: b"Max file locks "}


def soft_limit(pid: int, which: int) -> int:
    """A soft limit of a process or of a thread's; -1: unlimited. `which`: a key of `_ROWS`.

    **Errors** ESRCH: it is gone.
    """
    try:
        return resource.prlimit(pid, which)[0]
    except PermissionError:
        return _shown(pid, _ROWS[which])


def _shown(pid: int, row: bytes) -> int:
    try:
        with open(b"/proc/%d/limits" % pid, "rb") as file:
            for line in file:
                if line.startswith(row):
                    value = line.split()[3]
                    return -1 if value == b"unlimited" else int(value)
    except OSError:
        pass
    raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


__all__ = ["RLIMIT_LOCKS", "soft_limit"]
